"""The state of one optimizer, carried into another."""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.types import Leaf, Path, PyTree, Scalar
from optax_decoupled._select.names import unboxed
from optax_decoupled._state import foreign
from optax_decoupled._state.histories import with_histories

# Fields that start anew at a migration: the reference of toward_init is then the current weights.
_BEGUN_ANEW = foreign.REFUSALS | {"reference"}

_Keys = tuple[Any, ...]
_Field = tuple[str, Path]


def migrate_opt_state(
    opt_state: PyTree,
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    count: int | None = None,
) -> Any:
    """Carries the moments and counts of one optimizer's state into another's.

    Between :func:`optax.adamw`, :func:`optax.adam`, :func:`optax.sgd` with momentum and the
    optimizers of this package, in both directions, through ``optax.chain``,
    ``optax.inject_hyperparams``, ``optax.MultiSteps``, ``optax.apply_if_finite`` and
    ``flax.nnx.Optimizer``. Moments are matched by name and parameter path, and never
    converted: the next steps are those that the new optimizer takes from the old moments.
    (Adamax and Yogi store theirs in Adam's state class, so nothing can tell them apart: do not
    migrate those.)

    Args:
      opt_state: the state to carry over; of an ``nnx.Optimizer`` or ``TrainState``, its
        ``opt_state``. (``nnx.update(optimizer, nnx.state({"opt_state": migrated}))`` puts the
        new one in its place.)
      tx: the optimizer to carry it into.
      params: the parameters, of the structure that ``tx.init`` gets.
      count: the number of updates so far. Only for states without a counter, such as that
        of ``optax.sgd`` with a constant rate. An error asks for it if it is needed.

    A weight history (:func:`record_weight_dynamics`) is carried as well; it begins anew, with a
    warning, if it is not one of the same weights and capacity.

    Returns:
      A state of the structure and dtypes of ``tx.init(params)``. Injected hyperparameters
      are those of ``tx``: their meaning may differ between optimizers.

    Raises:
      ValueError: if fields have no counterpart, have another shape or would lose precision
        (the message lists them); for momentum buffers of different units; for counters that
        disagree.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> params, theirs = {"w": jnp.ones(3)}, optax.adamw(1e-3)
      >>> _, state = theirs.update(params, theirs.init(params), params)
      >>> migrated = od.migrate_opt_state(state, od.adamw(1e-3, 1e-6), params)
      >>> assert (migrated[0].nu["w"] == state[0].nu["w"]).all()
      >>> assert migrated[0].count == migrated[1].count == migrated[2].count == 1
    """
    if count is not None:
        rule = "a whole number >= 0"
        holds = lambda x: 0 <= x < math.inf and x == round(x)
        checks.check_number("count", count, rule, holds, "It counts the updates so far.")
    _check_order(opt_state, tx)
    target = _grown(tx, params, opt_state)
    old, new = _fields(opt_state), _fields(target)
    problems = [
        *_kind_problems(opt_state, target),
        *_momentum_problems(opt_state, target),
        *_problems(old, new),
    ]
    if count is None:
        counters = [_number(leaf) for field, leaf in old.items() if _is_counter(field)]
        counts = {n for n in counters if n is not None}
        if None in counters:
            problems.append("its counters are traced, or arrays of several: pass count")
        elif len(counts) > 1:
            problems.append(f"its counters disagree, {sorted(counts)}: pass count")
        elif not counts and _depends_on_count(tx, target, params):
            problems.append(
                "it does not count steps, and the updates of tx depend on them: pass count"
            )
        count = max(counts, default=0)
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"opt_state cannot be migrated: {'; '.join(problems[:8])}{more}. To start the new "
            "optimizer afresh instead, use tx.init(params)."
        )
    return with_histories(_filled(target, old, count), opt_state, count)


def _check_order(opt_state: optax.OptState, tx: optax.GradientTransformation) -> None:
    if hasattr(opt_state, "opt_state") and not isinstance(opt_state, tuple):  # as Optax's are
        kind = type(opt_state).__name__
        raise TypeError(
            f"opt_state is a {kind}, which holds more than the optimizer's state. Pass its "
            ".opt_state."
        )
    if hasattr(opt_state, "init") or not hasattr(tx, "init"):
        raise TypeError(
            f"opt_state is a {type(opt_state).__name__} and tx a {type(tx).__name__}; the order is "
            "migrate_opt_state(opt_state, tx, params): the state to carry over, then the optimizer "
            "to carry it into."
        )
    flat, _ = jax.tree_util.tree_flatten_with_path(opt_state)
    if flat and not any(isinstance(k, jax.tree_util.GetAttrKey) for keys, _ in flat for k in keys):
        raise ValueError(
            "opt_state has none of the types of Optax's states, only dicts and lists, as a "
            "checkpoint has that was restored without a target, so nothing tells its moments from "
            "its counters. Restore it into old_tx.init(params), e.g. with Orbax's "
            "StandardCheckpointer().restore(path, old_tx.init(params))."
        )


def _grown(
    tx: optax.GradientTransformation, params: optax.Params, opt_state: optax.OptState
) -> optax.OptState:
    """The state to fill: the initial one of tx, or the one after its first update.

    The latter if the first update adds leaves (as in :func:`optax.monitor`) that the old state has.
    """
    initial = tx.init(params)
    if not any(map(_is_carried, _fields(opt_state).keys() - _fields(initial).keys())):
        return initial  # spares the trace of an update, which takes seconds for 1,000 leaves
    try:
        later = jax.eval_shape(lambda p, s: tx.update(p, s, p)[1], params, initial)
    except Exception:  # it needs extra arguments, which are not passed here
        return initial
    gained = _fields(later).keys() - _fields(initial).keys()
    if not gained or not gained <= _fields(opt_state).keys():
        return initial
    own = dict(jax.tree_util.tree_flatten_with_path(initial)[0])
    fill = lambda keys, x: own.get(keys, jnp.zeros(x.shape, x.dtype))
    return jax.tree_util.tree_map_with_path(fill, later)


def _fields(state: optax.OptState) -> dict[_Field, Any]:
    """A state's leaves by the name of their field and the path below it.

    Names of fields that hold an inner transform's state are left out, so that a moment has
    the same name in a chain, injected or under MultiSteps. Counters and fields that are not
    carried keep their whole path, because a state may hold several.
    """
    fields: dict[_Field, Any] = {}
    for _, field, leaf in _leaves(state):
        if field[0] == foreign.HISTORY:
            continue
        if field in fields:
            raise ValueError(
                f"opt_state is ambiguous: it holds {_text(field)} more than once. Migrate its "
                "parts one by one."
            )
        fields[field] = leaf
    return fields


def _leaves(state: optax.OptState) -> list[tuple[_Keys, _Field, Any]]:
    """The leaves of a state in order, each with its keys and its field."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    paths = unboxed([keys for keys, _ in flat])
    recounting = _keys_of(state, foreign.RECOUNTING)
    return [
        (keys, _field(keys, path, recounting), leaf)
        for (keys, leaf), path in zip(flat, paths, strict=True)
    ]


def _keys_of(state: optax.OptState, types: frozenset[str]) -> dict[_Keys, str]:
    """The type name of each node of these types, by its keys in the state."""
    is_named = lambda node: type(node).__name__ in types
    flat, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_named)
    return {keys: type(node).__name__ for keys, node in flat if is_named(node)}


def _field(keys: _Keys, path: Path, recounting: dict[_Keys, str]) -> _Field:
    for i, key in enumerate(keys):
        if keys[:i] in recounting:
            return recounting[keys[:i]], path[i:]
        if isinstance(key, jax.tree_util.GetAttrKey) and key.name not in foreign.CONTAINERS:
            repeated = key.name in foreign.COUNTERS | foreign.OWN
            return path[i], path if repeated else path[i + 1 :]
    return "", path


def _is_counter(field: _Field) -> bool:
    name, path = field
    return name in foreign.COUNTERS or (name == "hyperparams_states" and path[-1:] == ("count",))


def _is_carried(field: _Field) -> bool:
    """False for counters, which are set, and for fields that the target keeps."""
    return not _is_counter(field) and field[0] not in foreign.OWN


def _problems(old: dict[_Field, Any], new: dict[_Field, Any]) -> list[str]:
    """The reasons why a state cannot be migrated, one phrase each."""
    between_steps = _number(old.get(("mini_step", ()), 0)) == 0
    spare = foreign.REFUSALS | (foreign.ACCUMULATION if between_steps else frozenset())
    missing = [
        f"it lacks {_text(field)}"
        for field in sorted(new.keys() - old.keys())
        if _is_carried(field) and field[0] not in foreign.ACCUMULATION | _BEGUN_ANEW
    ]
    extra = [
        f"the new optimizer has no {_text(field)}"
        for field in sorted(old.keys() - new.keys())
        if _is_carried(field) and field[0] not in spare
    ]
    shared = sorted(filter(_is_carried, old.keys() & new.keys()))
    return missing + extra + [p for f in shared for p in _mismatch(f, old[f], new[f])]


def _mismatch(field: _Field, old: PyTree, new: PyTree) -> list[str]:
    if jnp.shape(old) != jnp.shape(new):
        return [f"{_text(field)} has shape {jnp.shape(old)}, not {jnp.shape(new)}"]
    if not _holds(new.dtype, old.dtype):
        return [f"{_text(field)} would lose precision from {old.dtype} to {new.dtype}"]
    return []


def _holds(new: PyTree, old: PyTree) -> bool:
    """Whether the new dtype represents every value of the old one. Random keys: the same."""
    if any(jnp.issubdtype(dtype, jax.dtypes.extended) for dtype in (new, old)):
        return new == old
    if all(jnp.issubdtype(dtype, jnp.floating) for dtype in (new, old)):
        info, other = jnp.finfo(new), jnp.finfo(old)
        return info.nmant >= other.nmant and float(info.max) >= float(other.max)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(old, new) == new


def _number(x: Leaf) -> int | None:
    """The value of a scalar; None if it is traced or an array with axes."""
    return None if isinstance(x, jax.core.Tracer) or jnp.shape(x) != () else int(x)


def _kind_problems(old: PyTree, new: PyTree) -> list[str]:
    """A problem if moments of one name have two meanings: AdaBelief's `nu` is a variance."""
    nodes = [foreign.nodes_with(state, "mu", "nu") for state in (old, new)]
    kinds = [sorted({type(node).__name__ for node in each}) for each in nodes]
    if kinds[0] == kinds[1] or not all(kinds):
        return []
    return [f"its moments are those of {kinds[0]}, not {kinds[1]}"]


def _text(field: _Field) -> str:
    return "/".join((field[0], *field[1]))


def _momentum_problems(old: PyTree, new: PyTree) -> list[str]:
    """A problem if one momentum buffer holds scaled gradients and the other plain ones."""
    before, after = _scaled_momenta(old), _scaled_momenta(new)
    different = sorted(f for f in before.keys() & after.keys() if before[f] != after[f])
    if not different:
        return []
    first = different[0]
    old_kind, kind = ("scaled gradients", "plain") if before[first] else ("gradients", "scaled")
    return [
        f"its momentum buffer holds {old_kind}, the new one {kind} ones ({_text(first)}): choose "
        "scale_before_momentum of sgdw accordingly (optax.sgd's is False)"
    ]


def _scaled_momenta(state: optax.OptState) -> dict[_Field, bool]:
    """For each momentum buffer, whether gradients are scaled by a schedule before they enter."""
    schedules = _keys_of(state, frozenset({"ScaleByScheduleState"}))
    found: dict[_Field, bool] = {}
    before: list[_Keys] = []
    for keys, field, _ in _leaves(state):
        before += [schedule for schedule in schedules if keys[: len(schedule)] == schedule]
        if field[0] == "trace":
            found[field] = any(_in_one_chain(schedule, keys) for schedule in before)
    return found


def _in_one_chain(first: _Keys, second: _Keys) -> bool:
    """False for two nodes of a state in different groups of a partition."""
    n = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return not n or getattr(first[n - 1], "name", None) != "inner_states"


def _depends_on_count(
    tx: optax.GradientTransformation, state: optax.OptState, params: optax.Params
) -> bool:
    """Whether the updates of tx are a function of its counters, by dataflow."""

    def updates(count: jax.Array) -> Any:
        return tx.update(params, _filled(state, {}, count), params)[0]

    try:
        jaxpr = jax.make_jaxpr(updates)(jnp.zeros([], jnp.int32)).jaxpr
    except Exception:  # its update needs more arguments: it may
        return True
    needed = {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(var) in needed for var in equation.outvars):
            needed |= {id(var) for var in equation.invars}
    return id(jaxpr.invars[0]) in needed


def _filled(target: PyTree, old: dict[_Field, Any], steps: Scalar) -> Any:
    """The target's structure with the old leaves, and `steps` in every counter."""
    leaves = []
    for _, field, leaf in _leaves(target):
        if _is_counter(field):
            leaf = jnp.asarray(steps, leaf.dtype)
        elif field in old and _is_carried(field):
            given = jnp.asarray(old[field])
            leaf = given if given.dtype == leaf.dtype else given.astype(leaf.dtype)
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(target), leaves)
