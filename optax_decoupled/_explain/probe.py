"""One optimizer on small samples of its parameters: a compiled update, the rest is NumPy."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled import _foreign
from optax_decoupled._dtypes import is_decayable, is_narrow
from optax_decoupled._explain import sample
from optax_decoupled._paths import named_leaves

# A leaf's array or number for each parameter; amplitudes and results are float64[parameters].
Leaves = list[Any]
Amplitude = float | np.ndarray

MAX_STEPS = 100  # how far to look for an update that moves anything
# Weights up to which an optimizer is measured at full size if samples will not do: 64 MiB
# of float32, of which AdamW needs seven copies.
FULL_SIZE = 2**24

_INJECT_HINT = (
    "A mask function under optax.inject_hyperparams is taken for a schedule, unless it is named "
    'in static_args=("mask",).'
)


class Probe:
    """Updates of an optimizer at multiples of synthetic parameters v and gradients g.

    Attributes:
      start: the state to start from.
      natural: a power of two near the size of each parameter.
      decays: whether it can decay.
      v: the unit parameters, of size 1 to 2.
      kept_as: the dtype in which each parameter is kept: its own, or that of a wider copy
        of which its update is made.
      follows: paths of leaves of the state that are copies of the parameters and move with
        them, such as schedule-free's z.
      references: paths of those that stay, such as what the parameters are pulled to.
      is_sampled: whether the arrays are samples.
      calls_per_step: calls of tx.update that make one update, 1 but for SAM.
    """

    def __init__(
        self,
        tx: optax.GradientTransformation,
        params: optax.Params,
        state: optax.OptState | None,
        grads: optax.Updates | None,
    ):
        self.tx = tx
        leaves, self.treedef = jax.tree.flatten(params)
        self.dtypes = [jnp.result_type(x) for x in leaves]
        self.wide = [
            np.float32 if is_narrow(jax.ShapeDtypeStruct((), d)) else d for d in self.dtypes
        ]
        self.decays = [is_decayable(x) for x in leaves]
        full = [jnp.shape(x) for x in leaves]
        expected, program = self._trace(full)
        state = None if state is None else _fitting(state, expected)
        _check_shapes("grads", grads, params)
        given = self._per_parameter(grads)
        shapes, like = self._smallest(full, expected, program)
        self.is_sampled = shapes != full
        self._init, self._update = jax.jit(tx.init), jax.jit(tx.update)
        self._set_parameters(leaves, shapes)
        self._set_gradients(given, shapes)
        self._like = like[0]
        self.start = self.fresh(self.natural)
        if state is not None:
            (own,) = (x for x in like if jax.tree.structure(x) == jax.tree.structure(state))
            self.start = jax.tree.map(
                lambda x, s: _cast(sample.sampled(x, s.shape), s.dtype), state, own
            )
        self.start = _foreign.at_cycle_start(self.start)
        self._find_copies()

    def _smallest(
        self, full: list[sample.Shape], expected: list[Any], program: sample.Fingerprint
    ) -> tuple[list[sample.Shape], list[Any]]:
        """The smallest shapes at which the optimizer does the same, and its states there."""
        for shapes in sample.samples(full):
            if shapes == full:
                break
            try:
                states, small_program = self._trace(shapes)
            except ValueError:  # it holds arrays of other shapes
                continue
            structures = [list(map(jax.tree.structure, x)) for x in (states, expected)]
            if small_program == program and structures[0] == structures[1]:
                return shapes, states
        weights = sum(map(np.prod, full))
        if weights > FULL_SIZE:
            raise ValueError(
                f"tx cannot be measured on samples of these {weights:,.0f} weights, because it "
                "holds arrays of their shapes or depends on their number, and they are too many "
                "to measure it on all. Explain it for fewer or narrower layers of the same names."
            )
        return full, expected

    def _trace(self, shapes: Sequence[sample.Shape]) -> tuple[list[Any], sample.Fingerprint]:
        """The states before the first and after some updates, as shapes, and the program."""
        like = zip(shapes, self.wide, strict=True)
        params = self.treedef.unflatten(jax.ShapeDtypeStruct(*leaf) for leaf in like)

        def first(params: Any) -> Any:
            state = _told(self.tx.init, "tx.init fails on these params", "", params)
            return state, self._told_update(params, state, params)[1]

        jaxpr, states = jax.make_jaxpr(first, return_shape=True)(params)
        states, structures = list(states), list(map(jax.tree.structure, states))
        if structures[0] == structures[1]:
            return states[:1], sample.fingerprint(jaxpr)
        later = jax.eval_shape(self._told_update, params, states[1], params)[1]
        distinct = states + [later] * (jax.tree.structure(later) != structures[1])
        return distinct, sample.fingerprint(jaxpr)

    def _told_update(self, *arguments: Any) -> tuple[Any, Any]:
        way_out = (
            "\nIf it needs more arguments, bind them: "
            "optax.GradientTransformation(tx.init, functools.partial(tx.update, value=...))."
        )
        return _told(self.tx.update, "tx.update(grads, state, params) fails", way_out, *arguments)

    def _per_parameter(self, grads: optax.Updates | None) -> Leaves:
        if grads is None:
            return [None] * len(self.dtypes)
        try:
            return self.treedef.flatten_up_to(grads)
        except ValueError as error:
            raise ValueError(
                f"grads has the structure {jax.tree.structure(grads)}; it must be that of "
                f"params, {self.treedef}. Pass what you pass to tx.update, or None."
            ) from error

    def _set_parameters(self, leaves: Leaves, shapes: list[sample.Shape]) -> None:
        like = list(zip(leaves, shapes, strict=True))
        self.natural = np.array([sample.natural_amplitude(*x) for x in like])
        made = {key: sample.pattern(*key) for key in zip(shapes, self.wide, strict=True)}
        pairs = [made[key] for key in zip(shapes, self.wide, strict=True)]
        self.v, self.g = [v for v, _ in pairs], [g for _, g in pairs]
        fixed = zip(like, self.decays, strict=True)
        self._fixed = [None if decays else sample.sampled(*x) for x, decays in fixed]

    def _set_gradients(self, given: Leaves, shapes: list[sample.Shape]) -> None:
        """The caller's, their zeros filled by small synthetic ones; and others of their size."""
        leaves = zip(given, shapes, self.decays, strict=True)
        given = [sample.sampled(g, s) if d and g is not None else None for g, s, d in leaves]
        size = np.array([0.0 if g is None else sample.root_mean_square(g) for g in given])
        size[size == 0] = size.max(initial=0) or 1.0
        # Of other relative sizes: with equal ones Adam's memory is invisible.
        self._other_g = [z / 3 * np.flip(g) for z, g in zip(size, self.g, strict=True)]
        self.g = [
            z * g if x is None else np.where(x == 0, z * g / 1024, x)
            for x, g, z in zip(given, self.g, size, strict=True)
        ]

    def params(self, amplitude: Amplitude, dtypes: Sequence[Any] | None = None) -> optax.Params:
        each = np.broadcast_to(amplitude, len(self.v))
        leaves = zip(each, self.v, dtypes or self.wide, self._fixed, strict=True)
        return self.treedef.unflatten(
            (a * v).astype(dtype) if fixed is None else fixed for a, v, dtype, fixed in leaves
        )

    def _grads(self, factor: float, shift: Amplitude, other: bool) -> optax.Updates:
        each = np.broadcast_to(shift, len(self.v))
        units = self._other_g if other else self.g
        leaves = zip(units, self.v, each, self.wide, self._fixed, strict=True)
        return self.treedef.unflatten(
            (factor * g + k * v).astype(dtype) if fixed is None else np.zeros_like(fixed)
            for g, v, k, dtype, fixed in leaves
        )

    def fresh(self, amplitude: Amplitude) -> optax.OptState:
        """The initial state of parameters in their own dtypes, as that of wide ones."""
        state = self._init(self.params(amplitude, self.dtypes))
        return jax.tree.map(lambda x, s: _cast(x, s.dtype), state, self._like)

    def _find_copies(self) -> None:
        """Leaves of the initial state that change sign with the parameters, and what they do."""
        plus, minus = (_leaves(self.fresh(sign)) for sign in (1.0, -1.0))
        self.follows = {path for path, x in plus.items() if _differ(x, minus[path])}
        self.references: set[Any] = set()
        self.kept_as = list(self.dtypes)
        if not self.follows:
            return
        _, before, _, _ = self.until_moving(self.start, self.natural)
        before = self._following(before, self.natural, self.follows)
        after = _leaves(self._call(self._grads(1.0, 0.0, False), before, self.params(-1.0))[1])
        start = _leaves(before)
        self.references = {path for path in self.follows if not _differ(start[path], after[path])}
        self.follows -= self.references
        self.kept_as = self._find_kept_as(before)

    def _find_kept_as(self, state: optax.OptState) -> list[Any]:
        dtypes = {path: x.dtype for path, x in _leaves(state).items() if path in self.follows}
        kept = list(self.dtypes)
        for wide in set(dtypes.values()):
            which = {path for path, dtype in dtypes.items() if dtype == wide}
            both = [
                self._call(
                    self._grads(1.0, 0.0, False),
                    self._following(state, sign * self.natural, which),
                    self.params(self.natural),
                )[0]
                for sign in (1, -1)
            ]
            kept = [
                wide if np.any(a != b) and _digits(wide) > _digits(k) else k
                for a, b, k in zip(*both, kept, strict=True)
            ]
        return kept

    def _following(
        self, state: optax.OptState, amplitude: Amplitude, which: set[Any]
    ) -> optax.OptState:
        """The state with some copies of the parameters as they are at this amplitude."""
        if not which:
            return state
        copies = _leaves(self.fresh(amplitude))
        return jax.tree_util.tree_map_with_path(
            lambda path, x: _cast(copies[path], x.dtype) if path in which else x, state
        )

    def _call(
        self, grads: optax.Updates, state: optax.OptState, params: optax.Params
    ) -> tuple[Leaves, optax.OptState]:
        updates, after = self._update(grads, state, params)
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
        along: bool = False,
    ) -> tuple[Leaves, optax.OptState]:
        """The update at amplitude·v for factor·g + shift·v, and the state after it.

        It is one call of tx.update, but for SAM, whose last one undoes the others. `along`
        moves the references with the parameters, `other` takes other gradients.
        """
        grads, params = self._grads(factor, shift, other), self.params(amplitude)
        which = self.follows | self.references if along else self.follows
        total, state = self._call(grads, self._following(state, amplitude, which), params)
        calls = 1
        while _foreign.is_perturbed(state):
            tree = self.treedef.unflatten(total)
            moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, tree)
            updates, state = self._call(grads, state, moved)
            total, calls = [x + u for x, u in zip(total, updates, strict=True)], calls + 1
        self.calls_per_step = calls
        return total, state

    def until_moving(
        self, state: optax.OptState, amplitude: Amplitude, **kwargs: Any
    ) -> tuple[Leaves, optax.OptState, optax.OptState, int]:
        """The first update that moves anything, the states before and after it, the calls."""
        calls = 0
        for _ in range(MAX_STEPS + 1):
            updates, after = self.step(state, amplitude, **kwargs)
            calls += self.calls_per_step
            if any(map(np.any, updates)) or not any(self.decays):
                break
            state, before = after, state
        else:
            state, calls = before, calls
        return updates, state, after, calls

    @functools.cached_property
    def epsilon(self) -> np.ndarray:
        """Of the arithmetic on each parameter."""
        dtypes = zip(self.wide, self.decays, strict=True)
        return np.array([float(jnp.finfo(d).eps) if decays else 0.0 for d, decays in dtypes])


def _told(function: Any, what: str, way_out: str, *arguments: Any) -> Any:
    """The function's result, or a ValueError that shows its error."""
    try:
        return function(*arguments)
    except Exception as error:
        known = "static_args" in str(error) or not _foreign.came_through_injection(error)
        hint = "" if known else f" {_INJECT_HINT}"
        text = f"{what} with {type(error).__name__}: {error}{hint}{way_out}"
        raise ValueError(text) from error


def _fitting(state: optax.OptState, expected: Sequence[Any]) -> optax.OptState:
    """The state, if it has the structure and shapes of one of those expected."""
    for like in expected:
        if jax.tree.structure(state) == jax.tree.structure(like):
            _check_shapes("state", state, like)
            return state
    given, own = ({"/".join(p) for p, _ in named_leaves(tree)[0]} for tree in (state, expected[0]))
    differences = [f"{path!r} is missing" for path in sorted(own - given)]
    differences += [f"{path!r} is unexpected" for path in sorted(given - own)]
    raise ValueError(
        "state is not what this tx has for these params: "
        f"{', '.join(differences[:3]) or 'its containers are of other types'}. "
        "Pass tx.init(params) or a later state of the same optimizer; that of Flax's nnx.Optimizer "
        "is its opt_state, for nnx.state(model, nnx.Param) as params."
    )


def _check_shapes(name: str, tree: Any, expected: Any) -> None:
    """Where both have a leaf, it must have the same shape."""
    wanted = dict(named_leaves(expected)[0])
    for path, leaf in named_leaves(tree)[0]:
        shape = jnp.shape(wanted.get(path, leaf))
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"{name} at {'/'.join(path)!r} has shape {jnp.shape(leaf)}; for these params it "
                f"must be {shape}. Pass what belongs to the same parameters, or None."
            )


def _leaves(tree: Any) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def _differ(x: Any, y: Any) -> bool:
    return is_decayable(x) and bool(np.any(np.asarray(x) != np.asarray(y)))


def _cast(x: Any, dtype: Any) -> Any:
    return x if x.dtype == dtype else x.astype(dtype)


def _digits(dtype: Any) -> int:
    return int(jnp.finfo(dtype).nmant) if jnp.issubdtype(dtype, jnp.inexact) else 0
