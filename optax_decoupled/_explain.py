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
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
import optax

from optax_decoupled import _explain_text, _report, _selection
from optax_decoupled._probe import MAX_STEPS, Data, Probe, Response
from optax_decoupled._probe_memory import MEMORABLE, Memory, measure_memory
from optax_decoupled._probe_setup import make_probe
from optax_decoupled._report import DecayReport

# A saturated preconditioner turns L2 into steps of fixed size: at this amplitude they
# are small beside decoupled decay, and so is rounding.
_LARGE = 2.0**20
# Copies of the parameters in the state may be in float16, which ends at 2**16.
_LARGE_COPIED = 2.0**14
# Gradients at the large amplitude are scaled down, so a decay that depends on them shows.
_FAINT = 2.0**-6
# Two fractions that differ by more, relative, are different; rounding comes on top.
_TOLERANCE = 1e-2


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
        amplitude of a second measurement. Flax NNX states and their variables are fine.
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
    named = [("/".join(path), leaf) for path, leaf in _selection.named_leaves(params)[0]]
    probe, data, may_remember = make_probe(tx, params, state, grads)
    found, steps = _measure(probe, data, may_remember)
    rows = [
        _report.make_row(path, leaf, *_kind_and_decay(finding))
        for (path, leaf), finding in zip(named, found, strict=True)
    ]
    warnings = _explain_text.warnings(
        rows,
        double=[row for row, f in zip(rows, found, strict=True) if f.decoupled > 0],
        state=jax.eval_shape(tx.init, params) if state is None else state,
    )
    notes = _explain_text.notes(
        rows,
        still=[row for row, f in zip(rows, found, strict=True) if not f.moves],
        steps=steps,
        gave_up=steps == MAX_STEPS,
        has_copies=any(probe.copies),
        synthetic=grads is None,
    )
    return DecayReport(tuple(rows), tuple(warnings), tuple(notes))


class _Finding(NamedTuple):
    """All that was measured of one parameter.

    Attributes:
      moves: whether its update is not zero.
      odd: whether the update has a significant part odd in the parameters.
      uniform: whether that part is one fraction of every element, at any amplitude.
      remembered: whether it reaches later updates through the state.
      fractions: candidates for the fraction removed, best first, with their noise.
      sign: +1 if weights shrink, -1 if they grow.
      decoupled: the fraction left when the part that acts like a gradient is taken out;
        0.0 without one.
    """

    moves: bool
    odd: bool
    uniform: bool
    remembered: bool
    fractions: tuple[tuple[float, float], ...]
    sign: float
    decoupled: float


def _measure(probe: Probe, data: Data, may_remember: bool) -> tuple[list[_Finding], int]:
    steps, amplitude = 0, _LARGE_COPIED if any(probe.copies) else _LARGE
    large = np.full(len(probe.kinds), amplitude)
    at_large = probe.response(data, large, _FAINT)
    if len(large) and not at_large.update.any():
        probe, data, steps = _skip_still_updates(probe, data, large)
        at_large = probe.response(data, large, _FAINT)
    at_natural = probe.response(data, probe.natural, 1.0)
    c, c_natural = at_large.fraction, at_natural.fraction
    odd = _is_odd(probe, at_large)
    straight = at_large.residual < _TOLERANCE + at_large.noise / (at_large.odd + 1e-300)
    same = abs(c - c_natural) < _TOLERANCE * abs(c) + at_natural.fraction_noise
    memory = Memory(*np.zeros((5, len(c))))
    if may_remember and probe.changes_state(data, np.full_like(large, MEMORABLE), 1.0):
        memory = measure_memory(probe, data, large, c)
    found = [
        _Finding(
            moves=bool(at_large.update[i] > 0),
            odd=bool(odd[i]),
            uniform=bool(straight[i] and same[i]),
            remembered=bool(memory.remembered[i]),
            fractions=(
                (c_natural[i], at_natural.fraction_noise[i]),
                (memory.second[i], memory.noise[i]),
                (c[i], 0.0),
            ),
            sign=float(np.sign(c[i] if odd[i] else memory.leak[i])),
            decoupled=float(memory.decoupled[i]),
        )
        for i in range(len(c))
    ]
    return found, steps


def _skip_still_updates(probe: Probe, data: Data, large: np.ndarray) -> tuple[Probe, Data, int]:
    """One update (a warmup from 0) costs no memory; more of them need the whole state."""
    once = dataclasses.replace(probe, skip=1)
    if once.response(data, large, _FAINT).update.any():
        return once, data, 1
    return probe, *probe.advance(data, probe.natural)


def _is_odd(probe: Probe, response: Response) -> np.ndarray:
    """Whether d is more than rounding: too large, or too straight, for it."""
    sizes = np.array([np.prod(leaf.shape) for leaf in probe.leaves])
    straight = (response.residual < 0.5) & (sizes >= 16) & (response.odd > 0)
    own_noise = 16 * np.finfo(np.float32).eps * response.update
    return (response.odd > response.noise) | (straight & (response.odd > own_noise))


def _kind_and_decay(finding: _Finding) -> tuple[_report.Kind, float]:
    if not (finding.odd or finding.remembered):
        return "none", 0.0
    coupled = finding.remembered or not finding.uniform
    decay = finding.fractions[-1][0]
    if coupled:
        significant = [abs(c) for c, noise in finding.fractions if abs(c) > noise]
        decay = finding.sign * (significant or [0.0])[0]
    if finding.sign < 0:
        return "growing", float(decay)
    return ("coupled" if coupled else "decoupled"), float(decay)


def _check_arguments(tx: Any, params: Any, state: Any, grads: Any) -> None:
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(
            f"tx={tx!r} must be an optax.GradientTransformation (init and update). "
            "Call the optimizer's factory first, e.g. optax.adamw(1e-3)."
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
