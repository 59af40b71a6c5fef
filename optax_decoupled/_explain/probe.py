"""The measurements behind `explain_weight_decay`: one optimizer, synthetic parameters.

Memory and compile time are why this looks as it does. Parameters of one shape, dtype
and size share one synthetic array, and only sums leave the compiled functions: what is
done for one parameter is forgotten before the next, and done once for equal ones.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._dtypes import is_decayable
from optax_decoupled._explain import arrays, programs

MAX_STEPS = 100  # how far to look for an update that moves anything


class Data(NamedTuple):
    """The arrays of a probe, passed to its compiled functions as arguments.

    Attributes:
      patterns: pairs of unit parameters and unit gradients, one for each placement.
      fixed: for each leaf the parameter if it cannot decay, else None.
      state: the optimizer state to start from; None for the initial one.
      grads: for each leaf the caller's gradient, or None.
      scales: for each leaf the size of a synthetic gradient, or None for 1.
    """

    patterns: list[tuple[jax.Array, jax.Array]]
    fixed: list[Any]
    state: Any
    grads: list[Any]
    scales: list[Any]


class Response(NamedTuple):
    """What an update has that is odd in the parameters, for each leaf, float64[n].

    Attributes:
      fraction: the c of the best fit d = -c·v.
      odd: the norm of d.
      residual: the norm of d + c·v, relative to that of d.
      update: the norm of the update itself.
      own_noise: the norm of d that rounding of the update may cause.
      noise: the norm of d that any rounding may cause.
      fraction_noise: the same as a fraction.
    """

    fraction: np.ndarray
    odd: np.ndarray
    residual: np.ndarray
    update: np.ndarray
    own_noise: np.ndarray
    noise: np.ndarray
    fraction_noise: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """An optimizer and the shapes of its parameters.

    Amplitudes have one entry for each of the `kinds`; results one for each leaf.

    Attributes:
      tx: the optimizer.
      treedef: the parameters' tree.
      leaves: shape and dtype of each parameter.
      kinds: distinct (placement, dtype, natural amplitude) of parameters.
      kind_of: which of them each leaf is.
      state_def: the state's tree.
      state_dtypes: those of its leaves for parameters of at least float32.
      copies: for each of its leaves, whether it is a copy of a parameter.
      kept_as: for each parameter the dtype in which it is kept: its own, or that of a
        copy of which its update is made.
      skip: updates to take before the measured one.
    """

    tx: optax.GradientTransformation
    treedef: Any
    leaves: list[jax.ShapeDtypeStruct]
    kinds: list[tuple[int, Any, float]]
    kind_of: list[int]
    state_def: Any
    state_dtypes: list[Any]
    copies: list[bool]
    kept_as: list[Any]
    skip: int = 0

    @property
    def natural(self) -> np.ndarray:
        return np.array([amplitude for _, _, amplitude in self.kinds])

    def per_leaf(self, amplitudes: np.ndarray) -> np.ndarray:
        return amplitudes[np.array(self.kind_of, int)]

    def response(self, data: Data, amplitudes: np.ndarray, factor: float) -> Response:
        """Two updates from one state at ±amplitude·unit, gradients scaled by factor."""
        sums = self._update_sums(data, arrays.scalars(amplitudes), _twice(factor))
        dv, dd, vv, uu = arrays.to_numpy(sums)
        size = self.per_leaf(amplitudes) * np.sqrt(vv) + 1e-300
        eps = np.array([arrays.epsilon(leaf) for leaf in self.leaves])
        own_noise = 16 * eps * np.sqrt(uu)
        # A transform with copies of the parameters may return the difference of two.
        noise = own_noise + (4 * eps * size if any(self.copies) else 0.0)
        explained = dv**2 / (vv * dd + 1e-300)
        return Response(
            fraction=-dv / (size * np.sqrt(vv) + 1e-300),
            odd=np.sqrt(dd),
            residual=np.sqrt(np.clip(1 - explained, 0, 1)),
            update=np.sqrt(uu),
            own_noise=own_noise,
            noise=noise,
            fraction_noise=noise / size,
        )

    def changes_state(self, data: Data, amplitude: float) -> bool:
        """Whether the state after one update depends on the sign of the parameters."""
        amplitudes = np.full_like(self.natural, amplitude)
        sums = self._state_sums(data, arrays.scalars(amplitudes), _twice(1.0))
        diff, size = arrays.to_numpy(sums)
        return bool(np.any(diff > (64 * np.finfo(np.float32).eps) ** 2 * size))

    def two_steps(self, data: Data, *starts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Two updates, at `first` and then at `second`, projected on the unit parameters v.

        Each start is (first, shift, second); the first gradient is shifted by `shift`·v.
        Returns for each the rows ⟨u₁, v⟩/⟨v, v⟩, ⟨u₂, v⟩/⟨v, v⟩ and ‖u₂‖/‖v‖, where u₂ is
        the next update that moves anything.
        """
        results = []
        amplitudes = [[arrays.scalars(x) for x in start] for start in starts]
        running = [self._two_step_sums(data, *x) for x in amplitudes]
        for given, sums in zip(amplitudes, running, strict=True):
            uv1, uv2, uu2, vv = arrays.to_numpy(sums)
            if not uu2.any():
                uv1, uv2, uu2, vv = arrays.to_numpy(self._patient_two_step_sums(data, *given))
            vv = vv + 1e-300
            results.append(np.array([uv1 / vv, uv2 / vv, np.sqrt(uu2 / vv)]))
        return results

    def held(self, data: Data, amplitudes: np.ndarray) -> np.ndarray:
        """The fractions removed by three updates in a row while the parameters are held."""
        plus, minus = (
            arrays.to_numpy(self._held_sums(data, arrays.scalars(sign * amplitudes)))
            for sign in (1, -1)
        )
        return (minus[1:] - plus[1:]) / (2 * plus[0] * self.per_leaf(amplitudes) + 1e-300)

    def advance(self, data: Data, donate: bool) -> Data:
        """Takes an update; `donate` lets it overwrite the state that it starts from."""
        advance = self._advance_in_place if donate else self._advance
        state = advance(data.state, data._replace(state=None), arrays.scalars(self.natural))
        return data._replace(state=state)

    @functools.cached_property
    def _update(self) -> Any:
        return jax.jit(self.tx.update)

    @functools.cached_property
    def _init(self) -> Any:
        return jax.jit(self.tx.init)

    @functools.cached_property
    def _update_sums(self) -> Any:
        def sums(data: Data, amplitudes: list[Any], factors: Any) -> Any:
            (plus, _), (minus, _) = self._pair(data, amplitudes, factors)
            pairs = zip(*map(self.treedef.flatten_up_to, (plus, minus)), strict=True)
            units = self._units(data)
            return [
                arrays.odd_sums(*pair, v) if arrays.is_update(pair[0]) else np.zeros(4, np.float32)
                for pair, v in zip(pairs, units, strict=True)
            ]

        return programs.PerParameter(sums)

    @functools.cached_property
    def _state_sums(self) -> Any:
        def sums(data: Data, amplitudes: list[Any], factors: Any) -> Any:
            (_, plus), (_, minus) = self._pair(data, amplitudes, factors)
            pairs = zip(jax.tree.leaves(plus), jax.tree.leaves(minus), self.copies, strict=True)
            return [np.zeros(2, np.float32)] + [
                arrays.difference_sums(x, y)
                for x, y, is_copy in pairs
                if is_decayable(x) and not is_copy
            ]

        return programs.PerParameter(sums)

    @functools.cached_property
    def _two_step_sums(self) -> Any:
        return programs.PerParameter(functools.partial(self._two_steps, patient=False))

    @functools.cached_property
    def _patient_two_step_sums(self) -> Any:
        return programs.PerParameter(functools.partial(self._two_steps, patient=True))

    def _two_steps(self, data: Data, first: Any, shift: Any, second: Any, patient: bool) -> Any:
        """The projections of both updates."""
        params, grads = self._params(data, first), self._grads(data, 1.0, shift)
        updates, state = self._update(grads, self._start(data, params), params)
        before = self.treedef.flatten_up_to(updates)
        params, grads = self._params(data, second), self._other_grads(data)
        state = self._with_copies(state, params)
        if patient:
            state, _ = self._until_moving(grads, state, params)
        updates, _ = self._update(grads, state, params)
        both = zip(before, self.treedef.flatten_up_to(updates), self._units(data), strict=True)
        return [
            arrays.projection_sums(u1, u2, v) if arrays.is_update(u1) else np.zeros(4, np.float32)
            for u1, u2, v in both
        ]

    @functools.cached_property
    def _held_sums(self) -> Any:
        def sums(data: Data, amplitudes: list[Any]) -> Any:
            params, grads = self._params(data, amplitudes), self._grads(data, 1.0)
            state, updates = self._start(data, params), []
            for _ in range(3):
                update, state = self._update(grads, self._with_copies(state, params), params)
                updates.append(self.treedef.flatten_up_to(update))
            return [
                arrays.projections(v, *u) if arrays.is_update(u[0]) else np.zeros(4, np.float32)
                for v, *u in zip(self._units(data), *updates, strict=True)
            ]

        return programs.PerParameter(sums)

    @functools.cached_property
    def _advance(self) -> Any:
        return jax.jit(self._next_state)

    @functools.cached_property
    def _advance_in_place(self) -> Any:
        return jax.jit(self._next_state, donate_argnums=0)

    def _next_state(self, state: Any, data: Data, amplitudes: Any) -> Any:
        data = data._replace(state=state)
        params, grads = self._params(data, amplitudes), self._grads(data, np.float32(1))
        before = self._start(data, params)
        _, after = self._update(grads, before, params)
        return arrays.cast_like(after, before)

    def _until_moving(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The first state from which an update moves anything, and the updates before it.

        Computing the update twice, to look and to go on, is what keeps one state in memory.
        """

        def still(carry: tuple[Any, Any]) -> Any:
            updates, _ = self._update(grads, carry[0], params)
            return ~arrays.moves_anything(updates) & (carry[1] < MAX_STEPS)

        def step(carry: tuple[Any, Any]) -> tuple[Any, Any]:
            _, state = self._update(grads, carry[0], params)
            return arrays.cast_like(state, carry[0]), carry[1] + 1

        return jax.lax.while_loop(still, step, (state, jnp.int32(0)))

    def _pair(self, data: Data, amplitudes: list[Any], factors: Any) -> list[tuple[Any, Any]]:
        results = []
        for sign, factor in zip((1, -1), factors, strict=True):
            params = self._params(data, [sign * a for a in amplitudes])
            grads = self._grads(data, factor)
            results.append(self._update(grads, self._start(data, params), params))
        return results

    def _units(self, data: Data, which: int = 0) -> list[jax.Array]:
        """Unit parameters (which=0) or gradients (1) for each leaf, at least float32."""
        made = [arrays.complete(data.patterns[k][which], dtype) for k, dtype, _ in self.kinds]
        return [made[kind] for kind in self.kind_of]

    def _params(self, data: Data, amplitudes: Sequence[Any]) -> Any:
        made = [
            (amplitude * arrays.complete(data.patterns[k][0], dtype)).astype(arrays.wide(dtype))
            for amplitude, (k, dtype, _) in zip(amplitudes, self.kinds, strict=True)
        ]
        return self.treedef.unflatten(
            made[kind] if fixed is None else fixed
            for kind, fixed in zip(self.kind_of, data.fixed, strict=True)
        )

    def _grads(self, data: Data, factor: Any, shift: Sequence[Any] | None = None) -> Any:
        units = self._units(data, 1)
        given = zip(units, data.scales, data.grads, data.fixed, strict=True)
        grads = [arrays.gradient(factor, *leaf) for leaf in given]
        if shift is not None:
            shifts = [shift[kind] for kind in self.kind_of]
            shifted = zip(grads, self._units(data), shifts, strict=True)
            grads = [(g + s * v).astype(g.dtype) for g, v, s in shifted]
        return self.treedef.unflatten(grads)

    def _other_grads(self, data: Data) -> Any:
        """Gradients of other relative sizes: with equal ones Adam's memory is invisible."""
        units = [jnp.flip(unit) / 3 for unit in self._units(data, 1)]
        leaves = zip(units, data.scales, data.fixed, strict=True)
        return self.treedef.unflatten(arrays.gradient(1.0, g, s, None, f) for g, s, f in leaves)

    def _start(self, data: Data, params: Any) -> Any:
        """The state to start from, with copies of the parameters that follow `params`."""
        given = self._fresh(params) if data.state is None else data.state
        leaves = zip(jax.tree.leaves(given), self.state_dtypes, strict=True)
        state = self.state_def.unflatten(arrays.cast(x, dtype) for x, dtype in leaves)
        for _ in range(self.skip):
            before, grads = self._params(data, arrays.scalars(self.natural)), self._grads(data, 1.0)
            _, after = self._update(grads, self._with_copies(state, before), before)
            state = arrays.cast_like(after, state)
        return state if data.state is None and not self.skip else self._with_copies(state, params)

    def _with_copies(self, state: Any, params: Any) -> Any:
        if not any(self.copies):
            return state
        leaves = zip(*map(jax.tree.leaves, (self._fresh(params), state)), self.copies, strict=True)
        return self.state_def.unflatten(arrays.cast(f, s.dtype) if c else s for f, s, c in leaves)

    def _fresh(self, params: Any) -> Any:
        leaves = zip(jax.tree.leaves(params), self.leaves, strict=True)
        return self._init(self.treedef.unflatten(arrays.cast(x, y.dtype) for x, y in leaves))


def _twice(factor: float) -> tuple[np.float32, np.float32]:
    """One argument for each of two updates: XLA would keep in memory what they share."""
    return np.float32(factor), np.float32(factor)
