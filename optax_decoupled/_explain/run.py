r"""The decay of a whole run: measured at many counts at once, at most where it moves.

Between two counts the decay is taken as a line. If it is monotone there, the sum is wrong by
at most half of what it changes by, times the steps between: counts are added where that is
large, so that a jump ends between two neighbours and the sum of what is known is exact.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from optax_decoupled._explain import arguments
from optax_decoupled._explain.measure import FAINT, TINY, rounding
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.program import Leaves, Program
from optax_decoupled._explain.verdict import Findings
from optax_decoupled._state import foreign

# Elements of a parameter: enough for a fraction that is the same for all of them.
_ELEMENTS = 16
# Counts to begin with, one at random in each of so many equal parts of the run: at even
# distances they could all hit the same place of a cycle.
_GRID = 1024
# Bound on the relative error of the sum, where it can be afforded.
_TOLERANCE = 2e-3
# Elements times counts in one call (memory), and in all of them (time).
_BATCH, _MOST = 2**22, 2**27
_AT_MANY_COUNTS = "tx.update fails at many counts at once (jax.vmap)"
_WAY_OUT = "\nLeave steps out, or give the schedule as a function of jax.numpy."


class Run(NamedTuple):
    """The decay of each parameter over a run, float64[parameters]; NaN if it varies."""

    budget: np.ndarray  # the sum of its fractions
    left: np.ndarray  # the product of what each of them leaves
    period: int  # calls that make an update at first
    error: float  # the bound on the relative error of the budgets
    is_partial: bool  # whether at some counts no update could be made


@np.errstate(all="ignore")  # a fraction above 1 leaves nothing that has a logarithm
def measure_run(p: Probe, found: Findings, steps: int) -> Run:
    """The decay at counts 0 to steps - 1, by the updates that follow ``found.start``."""
    if found.start is None:
        unknown = np.full(len(p.v), np.nan)
        return Run(unknown, unknown, found.period, 0.0, False)
    has_ranges = np.isfinite(found.spread).any()
    # All elements of the samples: a few would not have the mean of a range.
    small = p.from_state(found.start) if has_ranges else p.smaller(found.start, _ELEMENTS)
    counts, decay, error = _sampled(_Decay(small, found), steps)
    budget, left = _sum(counts, decay), np.exp(_sum(counts, np.log1p(-decay)))
    budget, left = (np.where(found.varies, np.nan, x) for x in (budget, left))
    return Run(budget, left, found.period, error, bool(np.isnan(decay).any()))


class _Decay:
    """The fraction that the update with a count removes of each parameter."""

    def __init__(self, p: Probe, found: Findings):
        self.p = p
        self.sides = [p.trees(p.start, sign * p.large, factor=FAINT) for sign in (1, -1)]
        self.factor = np.select([found.kind == "cautious", found.kind == "constrained"], [2, 0], 1)
        ranges = np.isfinite(found.spread[0])
        self.factor = np.where(ranges, found.fraction / found.projected, self.factor)
        weights = max(sum(v.size for v in p.v), 1)
        self.batch = 2 ** int(np.log2(np.clip(_BATCH // weights, 1, _GRID)))
        self.most = max(_MOST // weights, _GRID // 32)
        self.updates = Program(self._update, is_mapped=True)
        if p.is_for_any_size:
            count = jax.ShapeDtypeStruct((), np.int32)
            self.updates.is_for_any_size = self.updates.acts_on_elements(count, *p.full_trees)
            assert self.updates.is_for_any_size

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """float64[counts, parameters]; NaN where there is no update."""
        padded = np.resize(counts, -(-len(counts) // self.batch) * self.batch).astype(np.int32)
        parts = [self._measured(part) for part in padded.reshape(-1, self.batch)]
        return np.concatenate(parts)[: len(counts)]

    def _measured(self, counts: np.ndarray) -> np.ndarray:
        sides = [
            arguments.with_context(self.updates, _AT_MANY_COUNTS, _WAY_OUT, counts, *side)
            for side in self.sides
        ]
        (plus, made), (minus, _) = sides
        leaves = zip(plus, minus, self.p.v, strict=True)
        columns = zip(*(_along(*leaf) for leaf in leaves), strict=True)
        removed, update, size = (np.array(column) for column in columns)
        extent = self.p.large * size + TINY
        c = removed.T / (extent * size + TINY)
        seen = abs(c) * extent > rounding(self.p, update.T, extent)
        c = np.where(seen, self.factor * c, 0.0)
        return np.where(np.asarray(made)[:, None], c, np.nan)

    def _update(
        self, count: jax.Array, grads: Any, state: Any, params: Any
    ) -> tuple[Leaves, jax.Array]:
        """The update with a count, and whether there is one."""
        call = lambda *trees: self.p.dense(*self.p.update_in_context(*trees), trees[2])
        before = foreign.at_count(state, count)
        update, after, _ = self.p.all_calls(call, grads, before, params, self.p.calls_per_step)
        return update, foreign.makes_update(before, after)


def _along(plus: jax.Array, minus: jax.Array, v: np.ndarray) -> tuple[Any, Any, Any]:
    """The projection that v loses and the norm of the update, at each count; the norm of v."""
    wide = np.result_type(v, np.float64)
    at_plus, at_minus = (np.asarray(u, wide).reshape(len(u), v.size) for u in (plus, minus))
    unit = np.conj(v.ravel().astype(wide))
    lost = np.real((at_minus - at_plus) @ unit) / 2
    return lost, np.linalg.norm(at_plus, axis=1), np.linalg.norm(unit)


def _sampled(decay_at: _Decay, steps: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Counts from 0 to steps - 1, the decay there, and the bound on the error of its sum."""
    most = min(steps, decay_at.most)
    counts = _grid(steps, min(_GRID, most))
    decay = decay_at(counts)
    while True:
        errors = _errors(counts, decay)
        error = float(errors.sum())
        if error <= _TOLERANCE or len(counts) >= most:
            return counts, decay, error
        added = _between(counts, errors)
        order = np.argsort(np.concatenate([counts, added]))
        decay = np.concatenate([decay, decay_at(added)])[order]
        counts = np.concatenate([counts, added])[order]


def _grid(steps: int, parts: int) -> np.ndarray:
    """The first count, the last one, and one in each part of the run."""
    edges = np.linspace(0, steps, parts + 1).astype(int)
    inside = np.random.default_rng(0).integers(edges[:-1], edges[1:])
    return np.unique(np.concatenate([[0], inside, [steps - 1]]))


def _errors(counts: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """The bound on each interval's error, relative to the sum; of the worst parameter.

    An interval may hide a cycle whose ends are alike: it is taken to change as its neighbours.
    """
    width, change = np.diff(counts)[:, None], abs(np.diff(decay, axis=0))
    beside = np.pad(change, ((1, 1), (0, 0)))
    change = np.maximum(change, np.maximum(beside[:-2], beside[2:]))
    bound = change * (width - 1) / 2
    total = _sum(counts, abs(decay))
    is_summed = np.isfinite(total) & (total > 0)
    return (bound[:, is_summed] / total[is_summed]).max(1, initial=0.0)


def _between(counts: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """About as many new counts as there are, in proportion to the errors of the intervals."""
    width = np.diff(counts)
    n = np.minimum(width - 1, np.rint(errors / errors.sum() * len(counts)).astype(int))
    part = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + 1
    first, width, n = (np.repeat(x, n) for x in (counts[:-1], width, n))
    return np.unique(first + part * width // (n + 1))


def _sum(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Over all counts from the first to the last, with lines between those known."""
    width = np.diff(counts)[:, None]
    return (width * (values[1:] + values[:-1]) / 2).sum(0) + (values[0] + values[-1]) / 2
