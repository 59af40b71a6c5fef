"""What somebody's optimizer does at its first update, asked on a few elements of each parameter."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._dtypes import is_decayable, widen
from optax_decoupled._types import Leaf

_GRADIENT = 2.0**-10


def looked_at_once(look: Callable[[optax.Params], None]) -> Callable[[optax.Params], None]:
    """A function for `init`, which looks at the first parameters that it is given."""
    seen: list[bool] = []

    def once(params: optax.Params) -> None:
        if not seen:
            seen.append(True)
            look(params)

    return once


def small_updates(
    inner: optax.GradientTransformation, params: optax.Params
) -> list[tuple[Leaf, Leaf, Leaf]]:
    """For each parameter its values v, and the first updates that move anything at v and -v."""
    leaves, treedef = jax.tree.flatten(params)
    shapes = [[min(n, 2) for n in jnp.shape(x)] for x in leaves]
    dtypes = [widen(jnp.zeros((), jnp.result_type(x))).dtype for x in leaves]
    filled = lambda value: treedef.unflatten(
        [jnp.full(shape, value, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    )
    grads, (plus, minus) = filled(_GRADIENT), (filled(64), filled(-64))
    after = [(at, inner.init(at)) for at in (plus, minus)]  # updates or parameters, state
    for _ in range(3):  # a warmup begins at 0
        after = [
            inner.update(grads, state, at)
            for at, (_, state) in zip((plus, minus), after, strict=True)
        ]
        if any(np.any(x) for x in jax.tree.leaves(after[0][0])):
            break
    columns = (plus, after[0][0], after[1][0])
    return list(zip(*map(treedef.flatten_up_to, columns), strict=True))


def climbs(direction: optax.GradientTransformation, params: optax.Params) -> bool:
    """Whether its updates point against the gradient, as those of a finished optimizer do.

    What cannot be asked is not told.
    """
    try:
        with jax.ensure_compile_time_eval():
            rows = [row for row in small_updates(direction, params) if is_decayable(row[0])]
            both = [[np.asarray(u) for u in updates] for _, *updates in rows]
            # What turns with the sign of the parameters, a decay, cancels; noise has both signs.
            return bool(both) and all(np.all(x + y < -1e-3 * np.abs(x - y)) for x, y in both)
    except Exception:
        return False
