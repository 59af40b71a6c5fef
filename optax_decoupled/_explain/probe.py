"""One optimizer on small samples of its parameters: a compiled update, the rest is NumPy."""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.dtypes import cast_like, is_decayable, is_narrow
from optax_decoupled._common.probing import Originals, measuring
from optax_decoupled._explain import arguments, sample
from optax_decoupled._explain.program import Leaves, Program
from optax_decoupled._select.names import entries_like, named_leaves
from optax_decoupled._state import foreign

# Results, and amplitudes that are no number, are float64[parameters].
Amplitude = float | np.ndarray

MAX_STEPS = 100  # how far to look for an update that moves anything
# Weights up to which an optimizer is measured at full size if samples will not do: 64 MiB
# of float32, of which AdamW needs seven copies.
FULL_SIZE = 2**24
# A saturated preconditioner turns L2 into steps of fixed size: at this amplitude they
# are small beside decoupled decay, and so is rounding.
_LARGE = 2.0**20
# Copies of the parameters in the state may be in float16, which ends at 2**16.
_LARGE_COPIED = 2.0**14
# Here an update that is a difference of copies has no rounding that hides a step.
_SMALL = 2.0**-40


class Probe:
    """Updates of an optimizer at multiples of synthetic parameters v and gradients g."""

    count: int | None  # that of the update to measure; None: as the state counts
    start: Any  # the state to start from
    natural: np.ndarray  # a power of two near the size of each parameter
    large: float  # an amplitude beside which the gradients' part of an update is small
    decays: list[bool]  # whether each parameter can decay
    epsilon: np.ndarray  # that of the arithmetic on it
    v: Leaves  # the unit parameters, of size 1 to 2
    kept_as: list[Any]  # the dtype of each, or of a wider copy of which its update is made
    moving_copies: set[Any]  # paths of copies in the state that move with them: schedule-free's z
    references: set[Any]  # of copies that stay: what they are pulled to, or measured from
    is_sampled: bool  # whether the arrays are samples
    is_for_any_size: bool  # whether samples of any size do what all elements do
    counts_of: Any = None  # a state whose counts all others keep: at the end of a schedule
    calls_per_step: int  # calls of tx.update that make one update, 1 but for SAM

    def __init__(
        self,
        tx: arguments.WithLoss,
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
        dtypes = zip(self.wide, self.decays, strict=True)
        self.epsilon = np.array([float(jnp.finfo(d).eps) if k else 0.0 for d, k in dtypes])
        self._init = Program(self._init_in_context)
        self._update = Program(self.update_in_context)
        self._leaves, self._full = leaves, [jnp.shape(x) for x in leaves]
        paths = [path for path, _ in named_leaves(params)[0]]
        structs = map(jax.ShapeDtypeStruct, self._full, self.dtypes)
        self._originals = dict(zip(paths, structs, strict=True))
        self._initial = next(self._states(self._full))
        like = arguments.check_state_fits(state, self._states(self._full))
        way_out = "Pass what you pass to tx.update, or None."
        self._given = [None] * len(leaves)
        if grads is not None:
            self._given = entries_like("grads", grads, params, way_out)
        params = self._shapes(self._full)
        self.full_trees = params, like, params
        self.is_for_any_size = self._acts_on_elements_alone()
        self._init.is_for_any_size = self._update.is_for_any_size = self.is_for_any_size
        if not self.is_for_any_size:
            self._full_program = self._program(self._full, *self.full_trees)
        for shapes in sample.samples(self._full):
            if self._take(shapes, state):
                break
        self.start = foreign.at_cycle_start(self.start)
        if step is not None:
            self.start = foreign.at_count(self.start, step)
        self._find_copies()
        self.large = _LARGE_COPIED if self.moving_copies else _LARGE

    def _take(self, shapes: list[sample.Shape], state: optax.OptState | None) -> bool:
        """Samples everything to these shapes; whether the optimizer does the same there."""
        self.is_sampled, weights = shapes != self._full, sum(map(math.prod, shapes))
        if not self.is_sampled and weights > max(FULL_SIZE, 2**12 * len(shapes)):
            raise ValueError(arguments.NOT_SAMPLED.format(weights))
        try:
            self._like, like_given = self._states_like(shapes, state)
            self._set_units(shapes)
            if state is None:
                self.start = self.fresh(self.natural)
            else:
                fit = lambda x, s: cast_like(sample.sampled(x, s.shape), s)
                self.start = sample.map_once(fit, state, like_given)
            if self.is_for_any_size or not self.is_sampled:
                return True
            trees = self._grads(), self.start, self.params(1.0)
            return self._program(shapes, *trees) == self._full_program
        except (ValueError, StopIteration):  # it holds arrays of other shapes, or other arrays
            if not self.is_sampled:
                raise
            return False

    def _acts_on_elements_alone(self) -> bool:
        """Whether samples can be computed by what is traced at full size, in all calls."""
        params, state, _ = self.full_trees
        own = self._shapes(self._full, self.dtypes)
        if not all(map(self._init.acts_on_elements, [params] if own == params else [params, own])):
            return False
        if not self._update.acts_on_elements(*self.full_trees):
            return False
        after = self._update.trace(*self.full_trees).out_info[1]
        kinds = lambda tree: (jax.tree.structure(tree), [x.dtype for x in jax.tree.leaves(tree)])
        return kinds(after) == kinds(state)

    def _shapes(
        self, shapes: list[sample.Shape], dtypes: Sequence[Any] | None = None
    ) -> optax.Params:
        like = zip(shapes, dtypes or self.wide, strict=True)
        return self.treedef.unflatten(jax.ShapeDtypeStruct(*leaf) for leaf in like)

    def _states_like(
        self, shapes: list[sample.Shape], state: optax.OptState | None
    ) -> tuple[optax.OptState, optax.OptState]:
        """The initial state and one of the structure of `state`, as shapes."""
        if self.is_for_any_size:
            sampled = dict(zip(self._full, shapes, strict=True))
            like = lambda x: jax.ShapeDtypeStruct(sampled.get(x.shape, x.shape), x.dtype)
            return jax.tree.map(like, self._initial), jax.tree.map(like, self.full_trees[1])
        initial = next(self._states(shapes))
        if state is None:
            return initial, initial
        return initial, next(x for x in self._states(shapes) if arguments.same_structure(x, state))

    def _states(self, shapes: list[sample.Shape]) -> Iterator[optax.OptState]:
        """The initial state and later ones, as shapes: some gain leaves at the first updates."""
        params = self._shapes(shapes)
        state = self._init.trace(params).out_info
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        yield state
        for _ in range(2):
            state = jax.eval_shape(self.update_in_context, params, state, params)[1]
            yield state

    def _program(self, shapes: list[sample.Shape], *trees: Any) -> sample.Fingerprint:
        """The operations of init, and of an update of a state of the initial structure."""
        init = self._init.trace(self._shapes(shapes)).jaxpr
        update = self._update.trace(*trees).jaxpr
        return [*sample.fingerprint(init), *sample.fingerprint(update)]

    def _init_in_context(self, params: optax.Params) -> optax.OptState:
        with self._measuring(params):
            return arguments.with_context(self.tx.init, arguments.INIT, "", params)

    def update_in_context(self, *trees: Any) -> tuple[Any, Any]:
        with self._measuring(trees[2]):
            return arguments.with_context(self.tx.update, arguments.UPDATE, arguments.BIND, *trees)

    def _measuring(self, params: optax.Params) -> contextlib.AbstractContextManager[None]:
        """The context in which masks fit these parameters, or samples of them."""
        is_sample = [jnp.shape(x) for x in jax.tree.leaves(params)] != self._full
        return measuring(Originals(self._originals, is_sample))

    def _set_units(self, shapes: list[sample.Shape]) -> None:
        like = list(zip(self._leaves, shapes, strict=True))
        self.natural = np.array([sample.natural_amplitude(*x) for x in like])
        fixed = zip(like, self.decays, strict=True)
        self._fixed = [None if decays else sample.sampled(*x) for x, decays in fixed]
        pairs = list(map(functools.cache(sample.pattern), shapes, self.wide))
        self.v, units = [v for v, _ in pairs], [g for _, g in pairs]
        given = [g if d else None for g, d in zip(self._given, self.decays, strict=True)]
        self.g, self._other_g = sample.gradients(given, units, shapes)
        keys = zip(shapes, self.dtypes, self.natural, map(id, self._given), strict=True)
        first: dict[Any, int] = {}
        self._alike = [first.setdefault(key, i) for i, key in enumerate(keys)]

    def gradient_is_zero(self) -> np.ndarray:
        """Whether each parameter was given a gradient that is 0 everywhere: bool[parameters]."""
        given = zip(self._given, self.decays, strict=True)
        return np.array([k and g is not None and sample.is_all_zero(g) for g, k in given], bool)

    def params(self, amplitude: Amplitude, dtypes: Sequence[Any] | None = None) -> optax.Params:
        """amplitude·v, equal leaves as one array."""
        dtypes = dtypes or self.wide
        make = lambda i, a: (a * self.v[i]).astype(dtypes[i])
        return self._tree(make, amplitude, np.asarray)

    def _grads(self, factor: float = 1.0, shift: float = 0.0, other: bool = False) -> optax.Updates:
        """factor·g + shift·v, with other gradients if asked for."""
        units = self._other_g if other else self.g
        make = lambda i, k: (factor * units[i] + k * self.v[i]).astype(self.wide[i])
        return self._tree(make, shift, np.zeros_like)

    def _tree(self, make: Callable[..., Any], each: Amplitude, fix: Callable[..., Any]) -> Any:
        """Of what is made for each leaf, once for equal ones, or of those that do not decay."""
        make, numbers = functools.cache(make), np.broadcast_to(each, len(self.v)).tolist()
        leaves = zip(self._alike, numbers, self._fixed, strict=True)
        return self.treedef.unflatten(
            make(i, k) if fixed is None else fix(fixed) for i, k, fixed in leaves
        )

    def fresh(self, amplitude: Amplitude) -> optax.OptState:
        """The initial state of parameters in their own dtypes, as that of wide ones."""
        state = self._init(self.params(amplitude, self.dtypes))
        return sample.map_once(cast_like, state, self._like)

    def _find_copies(self) -> None:
        """Leaves of the initial state that change sign with the parameters, and what they do."""
        plus, minus = self.fresh(1.0), self.fresh(-1.0)
        self.moving_copies = set(sample.leaves_by_path(plus)) - sample.unchanged(plus, minus)
        self.references, self.kept_as = set(), list(self.dtypes)
        if not self.moving_copies:
            return
        _, before, _, _ = self.until_moving(self.start, self.natural)
        before = self._with_copies(before, self.natural, self.moving_copies)
        after = self._call(self._grads(_LARGE), before, self.params(-1.0))[1]
        self.references = self.moving_copies & sample.unchanged(before, after)
        # At 0, so that what depends on the distance from them is as large at v as at -v.
        self.start = self.with_references(self.start, 0.0)
        self.moving_copies -= self.references
        self._find_kept_as(before)

    def _find_kept_as(self, state: optax.OptState) -> None:
        """The widest dtype of the copies that change each parameter's update, or its own."""
        dtypes = {path: x.dtype for path, x in sample.leaves_by_path(state).items()}
        digits = lambda dtype: jnp.finfo(dtype).nmant
        for wide in {dtypes[path] for path in self.moving_copies}:
            which = {path for path in self.moving_copies if dtypes[path] == wide}
            states = [self._with_copies(state, s * self.natural, which) for s in (1, -1)]
            grads, params = self._grads(), self.params(self.natural)
            both = [self._call(grads, state, params)[0] for state in states]
            self.kept_as = [
                wide if np.any(a != b) and digits(wide) > digits(kept) else kept
                for a, b, kept in zip(*both, self.kept_as, strict=True)
            ]

    def with_references(self, state: optax.OptState, amplitude: Amplitude) -> optax.OptState:
        return self._with_copies(state, amplitude, self.references)

    def _with_copies(
        self, state: optax.OptState, amplitude: Amplitude, which: set[Any]
    ) -> optax.OptState:
        """The state with some copies of the parameters as they are at this amplitude."""
        if not which:
            return state
        copies = sample.leaves_by_path(self.fresh(amplitude))
        replaced = jax.tree_util.tree_map_with_path(
            lambda path, x: copies[path] if path in which else x, state
        )
        return sample.map_once(cast_like, replaced, state)

    def _call(self, *trees: Any) -> tuple[Leaves, optax.OptState]:
        updates, after = self._update(*trees)
        return self.dense(updates, after, trees[2])

    def dense(
        self, updates: optax.Updates, after: Any, params: optax.Params
    ) -> tuple[Leaves, optax.OptState]:
        """An array for each parameter, 0 where it has no update; and the state."""
        trees = map(self.treedef.flatten_up_to, (updates, params))
        module = lambda p: jnp if isinstance(p, jax.core.Tracer) else np
        zeros = lambda p: module(p).zeros(np.shape(p), np.float32)
        leaves = zip(*trees, self.decays, strict=True)
        return [u if k and u is not None else zeros(p) for u, p, k in leaves], after

    def trees(self, state: optax.OptState, amplitude: Amplitude, **kwargs: Any) -> tuple[Any, ...]:
        """The arguments of the update at amplitude·v for `_grads(**kwargs)`."""
        state = self._with_copies(state, amplitude, self.moving_copies)
        return self._grads(**kwargs), state, self.params(amplitude)

    def step(
        self, state: optax.OptState, amplitude: Amplitude, **kwargs: Any
    ) -> tuple[Leaves, optax.OptState]:
        """The update for these trees, and the state after it."""
        trees = self.trees(state, amplitude, **kwargs)
        total, after, self.calls_per_step = self.all_calls(self._call, *trees)
        if self.counts_of is not None:
            after = foreign.at_count_of(after, self.counts_of)
        return total, after

    def all_calls(
        self, call: Callable[..., Any], grads: Any, state: Any, params: Any, calls: int = 0
    ) -> tuple[Leaves, optax.OptState, int]:
        """One update, the state after it, and how many calls make it, unless that is given.

        It is one call of tx.update, but for SAM, whose last one undoes the others.
        """
        (total, state), made = call(grads, state, params), 1
        while made < calls if calls else foreign.is_perturbed(state):
            tree = self.treedef.unflatten(total)
            moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, tree)
            updates, state = call(grads, state, moved)
            total, made = [x + u for x, u in zip(total, updates, strict=True)], made + 1
        return total, state, made

    def smaller(self, state: optax.OptState, most: int) -> "Probe":
        """This one from another state, on `most` elements a parameter if they do the same."""
        small, shapes = copy.copy(self), [sample.reduced(v.shape, most, True) for v in self.v]
        return small if small._take(shapes, state) else self.from_state(state)

    def from_state(self, state: optax.OptState) -> "Probe":
        """This one from another state."""
        other = copy.copy(self)
        other.start = state
        return other

    def until_moving(
        self, state: optax.OptState, amplitude: Amplitude, **kwargs: Any
    ) -> tuple[Leaves, optax.OptState, optax.OptState, int]:
        """The first update that moves anything, the states before and after it, the calls."""
        steps = calls = 0
        while True:
            updates, after = self.step(state, amplitude, **kwargs)
            steps, calls = steps + 1, calls + self.calls_per_step
            if self._moves(updates, state) or not any(self.decays) or steps > MAX_STEPS:
                return updates, state, after, calls
            state = after

    def _moves(self, updates: Leaves, state: optax.OptState) -> bool:
        """Whether an update from this state is more than the rounding of copies."""
        moves = any(map(np.any, updates))
        if not moves or not self.moving_copies:
            return moves
        leaves = sample.leaves_by_path(state)
        coarsest = max(float(jnp.finfo(leaves[path].dtype).eps) for path in self.moving_copies)
        small, _ = self.step(state, _SMALL)
        return any(np.any(abs(u) > 32 * coarsest * _SMALL) for u in small)
