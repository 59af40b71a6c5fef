"""One optimizer on small samples of its parameters: a compiled update, the rest is NumPy."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled import _foreign
from optax_decoupled._dtypes import is_decayable, is_narrow
from optax_decoupled._explain import arguments, sample
from optax_decoupled._explain.sharing import Layout, Leaves, Sharing

# Results, and amplitudes that are no number, are float64[parameters].
Amplitude = float | np.ndarray

MAX_STEPS = 100  # how far to look for an update that moves anything
# Weights up to which an optimizer is measured at full size if samples will not do: 64 MiB
# of float32, of which AdamW needs seven copies.
FULL_SIZE = 2**24


class Probe:
    """Updates of an optimizer at multiples of synthetic parameters v and gradients g.

    Attributes:
      count: that of the update to measure; None: as the state counts.
      start: the state to start from.
      natural: a power of two near the size of each parameter.
      decays: whether it can decay.
      v: the unit parameters, of size 1 to 2.
      kept_as: the dtype in which each parameter is kept: its own, or that of a wider copy
        of which its update is made.
      follows: paths of leaves of the state that are copies of the parameters and move with
        them, such as schedule-free's z.
      is_sampled: whether the arrays are samples.
      calls_per_step: calls of tx.update that make one update, 1 but for SAM.
      sharing: finds equal leaves.
    """

    def __init__(
        self,
        tx: optax.GradientTransformation,
        params: optax.Params,
        state: optax.OptState | None,
        grads: optax.Updates | None,
        step: int | None = None,
    ):
        self.tx, self.count = tx, step
        leaves, self.treedef = jax.tree.flatten(params)
        self.dtypes = [jnp.result_type(x) for x in leaves]
        self.wide = [np.float32 if is_narrow(np.empty(0, d)) else d for d in self.dtypes]
        self.decays = [is_decayable(x) for x in leaves]
        # With a state of its own, no parameter is like another.
        self.sharing = Sharing(state is None)
        self._init = jax.jit(functools.partial(arguments.told, tx.init, arguments.INIT, ""))
        self._update = jax.jit(self._update_distinct, static_argnums=0)
        full = [jnp.shape(x) for x in leaves]
        like = next(self._states(full))
        if state is not None:
            like = arguments.fitting(state, self._states(full))
        arguments.check_shapes("grads", grads, params)
        given = arguments.per_parameter(grads, self.treedef)
        wide = self._shapes(full)
        trees, structure = jax.tree.flatten((wide, like, wide))
        program = self._program(full, (tuple(range(len(trees))), structure), trees)
        self._given = leaves, given, program
        for shapes in sample.samples(full):
            if self._take(shapes, leaves, state, given, None if shapes == full else program):
                break
        self.start = _foreign.at_cycle_start(self.start)
        if step is not None:
            self.start = _foreign.at_count(self.start, step)
        self._find_copies()

    def _take(
        self,
        shapes: list[sample.Shape],
        leaves: Leaves,
        state: optax.OptState | None,
        given: Leaves,
        program: sample.Fingerprint | None,
    ) -> bool:
        """Samples everything to these shapes; whether the optimizer is this program there."""
        self.is_sampled, weights = program is not None, sum(map(math.prod, shapes))
        if program is None and weights > max(FULL_SIZE, 2**12 * len(shapes)):
            raise ValueError(arguments.NOT_SAMPLED.format(weights))
        try:
            states = self._states(shapes)
            self._like = next(states)
            self._set_parameters(leaves, shapes)
            self._set_gradients(given, shapes)
            if state is None:
                self.start = self.fresh(self.natural)
            else:
                own = (
                    x
                    for x in itertools.chain([self._like], states)
                    if arguments.same_structure(x, state)
                )
                fit = lambda x, s: sample.cast(sample.sampled(x, s.shape), s.dtype)
                self.start = jax.tree.map(fit, state, next(own))
            if program is None:
                return True
            given_once = self.sharing.distinct(
                self._grads(1.0, 0.0, False), self.start, self.params(1.0)
            )
            return self._program(shapes, *given_once) == program
        except ValueError:  # it holds arrays of other shapes
            if program is None:
                raise
            return False

    def _shapes(self, shapes: list[sample.Shape]) -> optax.Params:
        like = zip(shapes, self.wide, strict=True)
        return self.treedef.unflatten(jax.ShapeDtypeStruct(*leaf) for leaf in like)

    def _states(self, shapes: list[sample.Shape]) -> Iterator[optax.OptState]:
        """The initial state and later ones, as shapes: some gain leaves at the first updates."""
        params = self._shapes(shapes)
        state = self._init.trace(params).out_info
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        yield state
        for _ in range(2):
            state = jax.eval_shape(self._told_update, params, state, params)[1]
            yield state

    def _program(
        self, shapes: list[sample.Shape], layout: Layout, distinct: Leaves
    ) -> sample.Fingerprint:
        """What is done by init, and by an update of a state of the initial structure."""
        init = self._init.trace(self._shapes(shapes)).jaxpr
        update = self._update.trace(layout, distinct).jaxpr
        return [*sample.fingerprint(init), *sample.fingerprint(update)]

    def _told_update(self, *trees: Any) -> tuple[Any, Any]:
        return arguments.told(self.tx.update, arguments.UPDATE, arguments.BIND, *trees)

    def _update_distinct(self, layout: Layout, distinct: Leaves) -> tuple[Any, Any]:
        """tx.update on trees whose equal leaves are given once, and so compiled once."""
        index, structure = layout
        return self._told_update(*structure.unflatten(distinct[i] for i in index))

    def _set_parameters(self, leaves: Leaves, shapes: list[sample.Shape]) -> None:
        like = list(zip(leaves, shapes, strict=True))
        self.natural = np.array([sample.natural_amplitude(*x) for x in like])
        keys = set(zip(shapes, self.wide, strict=True))
        made = {key: sample.pattern(*key) for key in keys}
        pairs = [made[key] for key in zip(shapes, self.wide, strict=True)]
        self.v, self.g = [v for v, _ in pairs], [g for _, g in pairs]
        fixed = zip(like, self.decays, strict=True)
        self._fixed = [None if decays else sample.sampled(*x) for x, decays in fixed]

    def _set_gradients(self, given: Leaves, shapes: list[sample.Shape]) -> None:
        keys = zip(shapes, self.wide, self.natural, map(id, given), strict=True)
        first: dict[Any, int] = {}
        alike = [first.setdefault(key, i) for i, key in enumerate(keys)]
        self._alike = alike if self.sharing.active else list(range(len(shapes)))
        given = [g if decays else None for g, decays in zip(given, self.decays, strict=True)]
        self.g, self._other_g = sample.gradients(given, self.g, shapes)

    def params(self, amplitude: Amplitude, dtypes: Sequence[Any] | None = None) -> optax.Params:
        """amplitude·v, equal leaves as one array."""
        make = functools.cache(lambda i, a, dtype: (a * self.v[i]).astype(dtype))
        each = np.broadcast_to(amplitude, len(self.v)).tolist()
        leaves = zip(self._alike, each, dtypes or self.wide, self._fixed, strict=True)
        return self.treedef.unflatten(
            make(*leaf) if fixed is None else fixed for *leaf, fixed in leaves
        )

    def _grads(self, factor: float, shift: Amplitude, other: bool) -> optax.Updates:
        @functools.cache
        def make(i: int, k: float) -> np.ndarray:
            return (factor * units[i] + k * self.v[i]).astype(self.wide[i])

        units = self._other_g if other else self.g
        each = np.broadcast_to(shift, len(self.v)).tolist()
        leaves = zip(self._alike, each, self._fixed, strict=True)
        return self.treedef.unflatten(
            make(i, k) if fixed is None else np.zeros_like(fixed) for i, k, fixed in leaves
        )

    def fresh(self, amplitude: Amplitude) -> optax.OptState:
        """The initial state of parameters in their own dtypes, as that of wide ones."""
        state = self._init(self.params(amplitude, self.dtypes))
        return jax.tree.map(lambda x, s: sample.cast(x, s.dtype), state, self._like)

    def _find_copies(self) -> None:
        """Leaves of the initial state that change sign with the parameters, and what they do."""
        plus, minus = (sample.leaves_by_path(self.fresh(sign)) for sign in (1.0, -1.0))
        self.follows = {path for path, x in plus.items() if sample.differ(x, minus[path])}
        self.kept_as = list(self.dtypes)
        if not self.follows:
            return
        _, before, _, _ = self.until_moving(self.start, self.natural)
        before = self._following(before, self.natural, self.follows)
        after = sample.leaves_by_path(
            self._call(self._grads(1.0, 0.0, False), before, self.params(-1.0))[1]
        )
        start = sample.leaves_by_path(before)
        stay = {path for path in self.follows if not sample.differ(start[path], after[path])}
        # What parameters are pulled to: as where they start at v, for some of them start at 0.
        self.start = self._following(self.start, self.natural, stay)
        self.follows -= stay
        self.kept_as = self._find_kept_as(before)

    def _find_kept_as(self, state: optax.OptState) -> list[Any]:
        dtypes = {
            path: x.dtype
            for path, x in sample.leaves_by_path(state).items()
            if path in self.follows
        }
        kept = list(self.dtypes)
        for wide in set(dtypes.values()):
            which = {path for path, dtype in dtypes.items() if dtype == wide}
            states = [self._following(state, s * self.natural, which) for s in (1, -1)]
            trees = self._grads(1.0, 0.0, False), self.params(self.natural)
            both = [self._call(trees[0], state, trees[1])[0] for state in states]
            kept = [
                wide if np.any(a != b) and sample.digits(wide) > sample.digits(k) else k
                for a, b, k in zip(*both, kept, strict=True)
            ]
        return kept

    def _following(
        self, state: optax.OptState, amplitude: Amplitude, which: set[Any]
    ) -> optax.OptState:
        """The state with some copies of the parameters as they are at this amplitude."""
        if not which:
            return state
        copies = sample.leaves_by_path(self.fresh(amplitude))
        return jax.tree_util.tree_map_with_path(
            lambda path, x: sample.cast(copies[path], x.dtype) if path in which else x, state
        )

    def _call(
        self, grads: optax.Updates, state: optax.OptState, params: optax.Params
    ) -> tuple[Leaves, optax.OptState]:
        updates, after = self._update(*self.sharing.distinct(grads, state, params))
        leaves = zip(self.treedef.flatten_up_to(updates), self.v, self.decays, strict=True)
        return [
            np.asarray(u) if decays and u is not None else np.zeros(v.shape, np.float32)
            for u, v, decays in leaves
        ], after

    def step(
        self,
        state: optax.OptState,
        amplitude: Amplitude,
        *,
        factor: float = 1.0,
        shift: Amplitude = 0.0,
        other: bool = False,
    ) -> tuple[Leaves, optax.OptState]:
        """The update at amplitude·v for factor·g + shift·v, and the state after it.

        It is one call of tx.update, but for SAM, whose last one undoes the others. `other`
        takes other gradients.
        """
        grads, params = self._grads(factor, shift, other), self.params(amplitude)
        total, state = self._call(grads, self._following(state, amplitude, self.follows), params)
        calls = 1
        while _foreign.is_perturbed(state):
            tree = self.treedef.unflatten(total)
            moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, tree)
            updates, state = self._call(grads, state, moved)
            total, calls = [x + u for x, u in zip(total, updates, strict=True)], calls + 1
        self.calls_per_step = calls
        return total, state

    def smaller(self, state: optax.OptState, most: int) -> "Probe":
        """This one from another state, on `most` elements a parameter if they do the same."""
        leaves, given, program = self._given
        small, shapes = copy.copy(self), [sample.reduced(v.shape, most, True) for v in self.v]
        on_host = jax.tree.map(lambda x: np.asarray(x) if sample.is_device_array(x) else x, state)
        if not small._take(shapes, leaves, on_host, given, program):
            small = copy.copy(self)
            small.start = state
        small.start = jax.tree.map(jnp.asarray, small.start)  # so that equal leaves are shared
        return small

    def arguments(self, amplitude: Amplitude, factor: float) -> tuple[Layout, Leaves]:
        """What the update from the start at amplitude·v for factor·g is called with."""
        state = self._following(self.start, amplitude, self.follows)
        return self.sharing.distinct(self._grads(factor, 0.0, False), state, self.params(amplitude))

    def until_moving(
        self, state: optax.OptState, amplitude: Amplitude, **kwargs: Any
    ) -> tuple[Leaves, optax.OptState, optax.OptState, int]:
        """The first update that moves anything, the states before and after it, the calls."""
        steps = calls = 0
        while True:
            updates, after = self.step(state, amplitude, **kwargs)
            steps, calls = steps + 1, calls + self.calls_per_step
            if any(map(np.any, updates)) or not any(self.decays) or steps > MAX_STEPS:
                return updates, state, after, calls
            state = after

    @functools.cached_property
    def epsilon(self) -> np.ndarray:
        """Of the arithmetic on each parameter."""
        dtypes = zip(self.wide, self.decays, strict=True)
        return np.array([float(jnp.finfo(d).eps) if decays else 0.0 for d, decays in dtypes])
