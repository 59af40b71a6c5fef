"""`explain_weight_decay`: is my weight decay on, where, and how much?

Only the optimizer's updates are used. `probe` computes them on small samples of the parameters
(`sample`), `measure` and `uneven` make numbers of them, `verdict` decides the kind of decay, and
`report` and `text` print it.
"""

import jax
import optax

from optax_decoupled._common.probing import probing
from optax_decoupled._common.progress import progress
from optax_decoupled._explain import report, run, text, verdict
from optax_decoupled._explain.arguments import STEP, STEPS, WithLoss, check_arguments, whole_number
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.report import DecayReport, DecayRow
from optax_decoupled._state import foreign

__all__ = ["DecayReport", "DecayRow", "explain_weight_decay"]


@probing()
def explain_weight_decay(
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    state: optax.OptState | None = None,
    grads: optax.Updates | None = None,
    step: int | None = None,
    steps: int | None = None,
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

    Of a whole run it reports the budget and what is left of an initial weight,

    .. math:: Ω = \sum_{t=0}^{S-1} c_t, \qquad \prod_{t=0}^{S-1} (1 - c_t),

    with the fraction :math:`c_t` measured at many counts, more where it changes.

    Args:
      tx: the optimizer; its ``update`` is called as ``tx.update(grads, state, params)``,
        under ``jit``, and with ``value=1`` if it asks for a loss.
      params: the parameter tree, leaves of any shape and dtype. Their values only set the
        amplitude of a second measurement; shapes (:class:`jax.ShapeDtypeStruct`) will do.
        Flax NNX states and their variables are fine.
      state: the optimizer's state for ``params``, so that schedules are those of its
        step; also ``nnx.Optimizer.opt_state``. None: the initial one.
      grads: gradients like ``params``, on which coupled fractions depend. A parameter
        that decays while its gradient is 0 everywhere is warned of. None: synthetic ones
        of size about 1.
      step: the count of the update to report, 0 for the first: every counter of the state
        (fields named ``count`` or ``gradient_step``) is set to it, moments stay. None: the
        state's own.
      steps: :math:`S`, the length of the run, for ``budget`` and ``left`` of each row.
        Counts are of the optimizer's own steps, from 0 whatever ``step`` and ``state`` say.

    Returns:
      A :class:`types.DecayReport`: ``print`` it, read its ``rows``, or call its ``check()``.
      If no update moves anything at first (a warmup from 0, gradient accumulation), the
      report is about the first one that does, and its ``notes`` say which. With ``step``
      it is about no other.

    Raises:
      TypeError: if ``tx`` is no Optax transformation, or the arrays are traced.
      TypeError, ValueError: if ``step`` or ``steps`` is no whole number, or out of range.
      ValueError: if ``tx.init`` or ``tx.update`` fails, ``state`` or ``grads`` does not
        fit ``params``, or ``tx`` is ``optax.lookahead``.

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

      Over a run whose rate falls to 0, half of what the peak would do:

      >>> tx = optax.adamw(optax.cosine_decay_schedule(1e-3, 10_000), weight_decay=0.1)
      >>> row, _ = od.explain_weight_decay(tx, params, steps=10_000).rows
      >>> assert abs(row.budget - 0.5) < 1e-3 and abs(row.left - 0.6065) < 1e-3
    """
    tx, own_state = foreign.transform_and_state(tx)
    check_arguments(tx, params, state, grads)
    step = whole_number("step", step, 0, STEP)
    steps = whole_number("steps", steps, 1, STEPS)
    state = foreign.without_histories(own_state if state is None else state)
    params, state, grads = (foreign.without_boxes(tree) for tree in (params, state, grads))
    optimizer = WithLoss(tx)
    parts = 2 if steps is None else 3
    with progress("explain_weight_decay") as set_stage:
        set_stage(f"1 of {parts}, tracing updates of {len(jax.tree.leaves(params)):,} parameters")
        probe = Probe(optimizer, params, state, grads, step)
        set_stage(f"2 of {parts}, measuring updates")
        found, whole_run = verdict.examine(probe), None
        if steps is not None:
            set_stage(f"3 of {parts}, adding up {steps:,} steps")
            from_state = probe, found
            if found.start is None:  # nothing moves from this state, as at the end of a schedule
                first = Probe(optimizer, params, None, grads)
                from_state = first, verdict.examine(first)
            whole_run = run.measure_run(*from_state, steps)
    rows = report.make_rows(params, probe.kept_as, found, whole_run)
    return DecayReport(
        rows=rows,
        steps=steps,
        warnings=text.warnings(rows, found, probe),
        notes=text.notes(rows, found, probe, whole_run, synthetic=grads is None),
    )
