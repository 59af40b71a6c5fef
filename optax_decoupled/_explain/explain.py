r"""Is my weight decay on, where, and how much? Answered by probing the optimizer.

The optimizer is a black box :math:`U(g, s, θ)`. At one state and one gradient it is
asked for its update at :math:`+v` and at :math:`-v`; half the difference is the part
that is odd in the parameters,

.. math:: d = \tfrac12 (U(g, s, v) - U(g, s, -v))

which is :math:`-c v` for decoupled decay. Factors that depend on the size of the
parameters (trust ratios, parameter scales) are even and cancel. :math:`v` is synthetic,
so biases that start at zero are seen too. Decay is coupled if :math:`d` is not a
multiple of :math:`v`, if the multiple changes with the amplitude of :math:`v` and the
scale of :math:`g`, or if it leaks into the state and from there into later updates.
"""

import dataclasses
import reprlib
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
import optax

from optax_decoupled import _dtypes, _paths
from optax_decoupled._explain import report, text
from optax_decoupled._explain.memory import MEMORABLE, Memory, measure_memory, steady_fraction
from optax_decoupled._explain.probe import MAX_STEPS, Data, Probe, Response
from optax_decoupled._explain.report import DecayReport, DecayRow
from optax_decoupled._explain.setup import make_probe

# A saturated preconditioner turns L2 into steps of fixed size: at this amplitude they
# are small beside decoupled decay, and so is rounding.
_LARGE = 2.0**20
# Copies of the parameters in the state may be in float16, which ends at 2**16.
_LARGE_COPIED = 2.0**14
# Gradients at the large amplitude are scaled down, so a decay that depends on them shows.
_FAINT = 2.0**-6
# Two fractions that differ by more, relative, are different; rounding comes on top.
_TOLERANCE = 1e-2

# An optimizer may return what is not finite: that is reported, not warned about.
_QUIET = np.errstate(invalid="ignore", over="ignore")


def explain_weight_decay(
    tx: optax.GradientTransformation, params: Any, *, state: Any = None, grads: Any = None
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
    _check_arguments(tx, params, state, grads)
    params, state, grads = (_without_boxes(tree) for tree in (params, state, grads))
    named = [("/".join(path), leaf) for path, leaf in _paths.named_leaves(params)[0]]
    probe, data, may_remember = make_probe(tx, params, state, grads)
    probe, data, steps, at_large = _until_moving(probe, data)
    found = _measure(probe, data, at_large, may_remember)
    columns = (x.tolist() for x in (found.kind, found.fraction, found.steady))
    rows = [
        report.make_row(*leaf, *measured)
        for leaf, *measured in zip(named, probe.kept_as, *columns, strict=True)
    ]
    gave_up = steps == MAX_STEPS and not at_large.update.any()

    def chosen(mask: np.ndarray) -> list[DecayRow]:
        return [row for row, take in zip(rows, mask, strict=True) if take]

    return DecayReport(
        rows=tuple(rows),
        warnings=text.warnings(
            rows,
            broken=chosen(~found.finite),
            double=chosen(found.double),
            gave_up=gave_up,
            state=probe.state_def.unflatten(probe.state_dtypes),
        ),
        notes=text.notes(
            rows,
            still=chosen(~found.moves),
            steps=0 if gave_up else steps,
            has_copies=any(probe.copies),
            synthetic=grads is None,
        ),
    )


class _Found(NamedTuple):
    """What was found out about each parameter, arrays of one entry for each.

    Attributes:
      kind: a `report.Kind`.
      fraction: the fraction removed by an update.
      steady: that removed by each of many; NaN where it depends on their gradients.
      double: whether L2 and decoupled decay act at once.
      moves: whether the update is not zero.
      finite: whether the update is finite.
    """

    kind: np.ndarray
    fraction: np.ndarray
    steady: np.ndarray
    double: np.ndarray
    moves: np.ndarray
    finite: np.ndarray


@_QUIET
def _until_moving(probe: Probe, data: Data) -> tuple[Probe, Data, int, Response]:
    """Goes on to the first update that moves anything: it, and how many were skipped.

    One (a warmup from 0) can be computed with each measurement and needs no memory; after
    more of them the state is kept.
    """

    def measure(probe: Probe, data: Data) -> Response:
        return probe.response(data, _large(probe), _FAINT)

    at_large = measure(probe, data)
    if at_large.update.any() or not any(map(_dtypes.is_decayable, probe.leaves)):
        return probe, data, 0, at_large
    once = dataclasses.replace(probe, skip=1)
    at_large = measure(once, data)
    if at_large.update.any():
        return once, data, 1, at_large
    data, steps = probe.advance(data, donate=False), 1
    while not at_large.update.any() and steps < MAX_STEPS:
        data, steps = probe.advance(data, donate=True), steps + 1
        at_large = measure(probe, data)
    return probe, data, steps, at_large


@_QUIET
def _measure(probe: Probe, data: Data, at_large: Response, may_remember: bool) -> _Found:
    at_natural = probe.response(data, probe.natural, 1.0)
    c, c_natural, noise = at_large.fraction, at_natural.fraction, at_natural.fraction_noise
    odd = _is_odd(probe, at_large)
    straight = at_large.residual < _TOLERANCE + at_large.noise / (at_large.odd + 1e-300)
    same = abs(c - c_natural) < _TOLERANCE * abs(c) + noise
    memory = Memory(*np.zeros((6, len(c))))
    suspicious = np.any(odd & ~(straight & same))
    if may_remember and (suspicious or probe.changes_state(data, MEMORABLE)):
        memory = measure_memory(probe, data, _large(probe), at_large)
    remembered = memory.remembered > 0
    nothing, coupled = ~(odd | remembered), remembered | ~straight | ~same
    sign = np.sign(np.where(odd, c, memory.leak))
    # Adam's first step hides L2 all but for its eps: then the second one counts.
    second = np.where(abs(memory.second) > memory.noise, abs(memory.second), 0.0)
    fractions = [
        (nothing, 0.0),
        (~coupled, c),
        (abs(c_natural) > np.maximum(noise, 0.1 * second), sign * abs(c_natural)),
        (second > 0, sign * second),
    ]
    kinds = [(nothing, "none"), (sign < 0, "growing"), (coupled, "coupled")]
    # What is left is a step of fixed size, in which these gradients hide L2.
    hidden = np.where(sign < 0, c, 0.0)
    fraction = np.select(*map(list, zip(*fractions, strict=True)), default=hidden)
    steady = np.where(remembered, np.nan, fraction)
    linear = remembered & straight & same & (abs(memory.immediate - c) < _TOLERANCE * abs(c))
    if linear.any():
        steady = np.where(linear, steady_fraction(probe, data), steady)
    return _Found(
        kind=np.select(*map(list, zip(*kinds, strict=True)), default="decoupled"),
        fraction=fraction,
        steady=steady,
        double=memory.decoupled > 0,
        moves=(at_large.update != 0) | (_sizes(probe) == 0),
        finite=np.isfinite(at_large.update),
    )


def _large(probe: Probe) -> np.ndarray:
    return np.full_like(probe.natural, _LARGE_COPIED if any(probe.copies) else _LARGE)


def _sizes(probe: Probe) -> np.ndarray:
    """The number of elements that can decay, of each leaf."""
    leaves = probe.leaves
    return np.array([_dtypes.is_decayable(x) * np.prod(x.shape) for x in leaves], int)


def _is_odd(probe: Probe, response: Response) -> np.ndarray:
    """Whether d is more than rounding: too large, or too straight, for it."""
    straight = (response.residual < 0.5) & (_sizes(probe) >= 16)
    return (response.odd > response.noise) | (straight & (response.odd > response.own_noise))


def _check_arguments(tx: Any, params: Any, state: Any, grads: Any) -> None:
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(
            f"tx={reprlib.repr(tx)} must be an optax.GradientTransformation (init and update), and "
            "the first argument: explain_weight_decay(tx, params). Call the optimizer's factory "
            "first, e.g. optax.adamw(1e-3)."
        )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, state, grads))):
        raise TypeError(
            "explain_weight_decay got traced arrays, but it reports numbers. Call it outside "
            "jit, grad and scan; tx.update may be a jitted function."
        )


def _without_boxes(tree: Any) -> Any:
    """Flax NNX variables as their arrays, as nnx.Optimizer passes them to tx.update."""

    def is_box(node: Any) -> bool:
        return hasattr(node, "get_value") and hasattr(node, "get_metadata")

    return jax.tree.map(lambda x: x.get_value() if is_box(x) else x, tree, is_leaf=is_box)
