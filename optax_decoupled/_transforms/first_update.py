"""Probes the first update of any optimizer on a few elements of each parameter."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.dtypes import is_decayable, widen
from optax_decoupled._common.probing import Originals, measuring
from optax_decoupled._common.types import Leaf
from optax_decoupled._select.names import is_empty, named_leaves

_GRADIENT = 2.0**-10
# For each parameter: its path, values v, and the first nonzero updates at v and at -v.
Rows = list[tuple[str, Leaf, Leaf, Leaf]]


def probe_once(
    inner: optax.GradientTransformation, verdict: Callable[[Rows], str]
) -> Callable[[optax.Params], None]:
    """A function for `init` that probes `inner` once and warns with the verdict's text, if any.

    No warning is given if the optimizer needs extra arguments or its hyperparameters are
    traced.
    """
    done: list[bool] = []

    def probe(params: optax.Params) -> None:
        if done:
            return
        done.append(True)
        try:
            structs = {
                path: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
                for path, x in named_leaves(params)[0]
            }
            with jax.ensure_compile_time_eval(), measuring(Originals(structs, are_sampled=True)):
                text = verdict(_small_updates(inner, params))
        except Exception:
            return
        if text:
            checks.warn(text)

    return probe


def _small_updates(inner: optax.GradientTransformation, params: optax.Params) -> Rows:
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
    paths = ["/".join(path) for path, _ in named_leaves(params)[0]]
    columns = map(treedef.flatten_up_to, (plus, after[0][0], after[1][0]))
    rows = zip(paths, *columns, strict=True)
    return [row for row in rows if is_decayable(row[1]) and not is_empty(row[2])]
