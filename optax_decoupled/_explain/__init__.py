"""`explain_weight_decay`: is my weight decay on, where, and how much?

The optimizer is a black box: `sample` and `probe` ask it for updates of small samples,
`verdict` says what they mean, `report` and `text` say it to people.
"""

import jax
import jax.numpy as jnp
import optax

from optax_decoupled import _foreign, _paths
from optax_decoupled._explain import report, text, verdict
from optax_decoupled._explain.arguments import check_arguments
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.report import DecayReport, DecayRow

__all__ = ["DecayReport", "DecayRow", "explain_weight_decay"]


def explain_weight_decay(
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    state: optax.OptState | None = None,
    grads: optax.Updates | None = None,
) -> DecayReport:
    r"""Measures the weight decay that an optimizer applies to each parameter.

    .. math:: c = -\frac{\langle d, v \rangle}{\langle v, v \rangle}, \qquad
        d = \tfrac12 (U(g, s, v) - U(g, s, -v))

    for the update :math:`U` of any transformation, Optax's, this package's or your own,
    with synthetic parameters :math:`v` of the shapes of ``params``. Decay is *decoupled*
    if this fraction is one number, and *coupled* if it depends on the gradients, differs
    between elements or is remembered by the state. The arithmetic is at least float32,
    so the fraction is that of the formula; whether the parameter's own dtype can
    represent the change is reported apart. Nothing that is passed in changes.

    Args:
      tx: the optimizer; its ``update`` is called as ``tx.update(grads, state, params)``,
        under ``jit``.
      params: the parameter tree, leaves of any shape and dtype. Their values only set the
        amplitude of a second measurement; shapes (:class:`jax.ShapeDtypeStruct`) will do.
        Flax NNX states and their variables are fine.
      state: the optimizer's state for ``params``, so that schedules are those of its
        step; also ``nnx.Optimizer.opt_state``. None: the initial one.
      grads: gradients like ``params``, on which coupled fractions depend. None: synthetic
        ones of size about 1.

    Returns:
      A :class:`DecayReport`: ``print`` it, read its ``rows``, or call its ``check()``.
      If no update moves anything at first (a warmup from 0, gradient accumulation), the
      report is about the first one that does, and its ``notes`` say which.

    Raises:
      TypeError: if ``tx`` is no Optax transformation, or the arrays are traced.
      ValueError: if ``tx.init`` or ``tx.update`` fails, or ``state`` or ``grads`` does not
        fit ``params``.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> params = {"dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)}}
      >>> tx = od.adamw(1e-3, 1e-5, mask=od.decay_mask)
      >>> report = od.explain_weight_decay(tx, params)
      >>> report.check()
      >>> bias, kernel = report.rows
      >>> assert (bias.kind, kernel.kind) == ("none", "decoupled")
      >>> assert abs(kernel.decay_per_step / 1e-5 - 1) < 1e-3
      >>> broken = optax.chain(optax.adam(1e-3), optax.add_decayed_weights(1e-5))
      >>> assert {row.kind for row in od.explain_weight_decay(broken, params).rows} == {"growing"}
    """
    tx, own_state = _foreign.transform_and_state(tx)
    check_arguments(tx, params, state, grads)
    state = own_state if state is None else state
    params, state, grads = (_foreign.without_boxes(tree) for tree in (params, state, grads))
    probe = Probe(tx, params, state, grads)
    found = verdict.examine(probe)
    leaves, columns = _paths.named_leaves(params)[0], (found.kind, found.fraction, found.steady)
    rows = tuple(
        report.make_row("/".join(path), leaf, kept_as, kind, decay, steady, found.period)
        for (path, leaf), kept_as, kind, decay, steady in zip(
            leaves, probe.kept_as, *(x.tolist() for x in columns), strict=True
        )
    )
    return DecayReport(
        rows=rows,
        warnings=text.warnings(rows, found, probe.start),
        notes=text.notes(
            rows,
            found,
            has_copies=bool(probe.follows),
            synthetic=grads is None,
            sampled=probe.is_sampled,
        ),
    )


def decaying(tx: optax.GradientTransformation, params: optax.Params) -> list[str]:
    """The parameters that an optimizer decays by itself; none if it cannot be asked.

    For callers that may be traced: only the shapes of `params` are used.
    """
    shape = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
    shapes = jax.tree.map(shape, _foreign.without_boxes(params))
    paths = ["/".join(path) for path, _ in _paths.named_leaves(shapes)[0]]
    try:
        with jax.ensure_compile_time_eval():
            found = verdict.decays(Probe(tx, shapes, None, None)) if paths else []
    except ValueError:  # its update needs more arguments
        return []
    return [path for path, decays in zip(paths, found, strict=True) if decays]
