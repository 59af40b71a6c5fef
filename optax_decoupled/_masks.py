"""Which parameters decay: masks, and rules over paths.

A mask is matched to parameters by path, so its containers may be of other types.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_decoupled import _checks, _foreign
from optax_decoupled._dtypes import is_decayable
from optax_decoupled._paths import is_array, listing, named_leaves, unboxed
from optax_decoupled._types import Mask, MaskFunction, Multiplier, Path, PyTree

_NORM = re.compile(r"norm(?!al(?!iz))|(^|_)(bn|ln|gn|rms)\d*($|_)", re.IGNORECASE)
_UNDECAYED = {"bias", "scale"}
# Of optax.contrib.split_real_and_imaginary.
_COMPLEX_PARTS = {"real", "imaginary"}


def decay_rules(*rules: tuple[str, float], default: float | None = None) -> MaskFunction:
    r"""Selects and scales the decay by regular expressions over parameter paths.

    The multiplier :math:`w` of a parameter is that of the first rule whose pattern
    matches its whole path (:func:`re.fullmatch` on the keys joined by ``/``).

    Args:
      *rules: pairs ``(pattern, multiplier)``. A multiplier is a finite number
        :math:`\ge 0` (dimensionless): 1 is the full decay, 0 none.
      default: the multiplier of parameters that no rule matches. None: refuse them.

    Returns:
      A mask function for any ``mask=`` argument of this package.

    Raises:
      TypeError, ValueError: at once for a malformed rule; when the mask is evaluated
        (first at ``init``) for a rule that matches no parameter, and for a parameter
        that no rule matches and that has no ``default``.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> mask = od.decay_rules((".*/kernel", 1.0), (".*", 0.0))
      >>> assert mask(params) == {"dense": {"kernel": 1.0, "bias": 0.0}}
    """
    compiled = [_compile_rule(rule) for rule in rules]
    if default is not None:
        _check_multiplier("default", default)
    if not rules:
        raise ValueError(
            'decay_rules() got no rule; pass at least one (pattern, multiplier), e.g. (".*", 1.0).'
        )

    def mask(params: optax.Params, /) -> Any:
        leaves, empty = named_leaves(params)
        treedef = jax.tree.structure(params)
        paths = ["/".join(path) for path, _ in leaves]
        used = set().union(*(_all_matches(compiled, "/".join(path)) for path in empty))
        chosen: list[float] = []
        missed: list[str] = []
        for path, (_, leaf) in zip(paths, leaves, strict=True):
            rule = _first_match(compiled, path)
            used |= _all_matches(compiled, path)
            if rule is None and default is None and is_decayable(leaf):
                missed.append(path)
            chosen.append(compiled[rule][1] if rule is not None else float(default or 0.0))
        if leaves:
            _refuse_unused(compiled, used, paths, ["/".join(path) for path in empty])
        if missed:
            raise ValueError(
                f"No decay rule matches {listing(missed)}. Every parameter must match a "
                'rule: add one, end with (".*", 0.0), or pass default=0.0.'
            )
        return jax.tree.unflatten(treedef, chosen)

    return mask


def decay_mask(params: optax.Params) -> Any:
    """The usual selection, by name: everything but biases, scales and norm layers.

    No decay for a parameter whose name contains the word ``bias`` or ``scale``, nor for
    one whose own module has a name (or class, where the tree holds modules) like a norm:
    ``LayerNorm_0``, ``bn1``, ``ln_f``, ``input_layernorm``. The layers inside a
    ``PreNorm`` block decay. Names rather than ``ndim``, because scanned or vmapped layers
    turn a bias into a matrix.

    Args:
      params: the parameter tree. Leaves of any shape and dtype.

    Returns:
      A tree of bools of the structure of ``params``. Pass the function itself:
      ``mask=decay_mask``.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
      ...           "LayerNorm_0": {"scale": jnp.ones(2)}}
      >>> mask = od.decay_mask(params)
      >>> assert mask == {"Dense_0": {"kernel": True, "bias": False},
      ...                 "LayerNorm_0": {"scale": False}}
    """

    def is_norm_module(node: PyTree) -> bool:
        children = () if is_array(node) else jax.tree.structure(node).children()
        innermost = all(child.num_nodes == 1 for child in children)
        return innermost and _NORM.search(type(node).__name__) is not None

    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_norm_module)
    paths = unboxed([key_path for key_path, _ in flat])
    nodes = [
        jax.tree.map(lambda _: False, node) if is_norm_module(node) else not is_bias_or_norm(path)
        for path, (_, node) in zip(paths, flat, strict=True)
    ]
    return jax.tree.unflatten(treedef, nodes)


def is_bias_or_norm(path: Path) -> bool:
    """Whether a path names a bias, a scale or a parameter of a norm layer."""
    if not path:
        return False
    path = tuple(name for key in path for name in key.split("/"))  # Haiku joins them in one key
    if path[-1] in _COMPLEX_PARTS:
        path = path[:-1]
    words = re.split(r"[^a-zA-Z]+", path[-1].lower())
    module = next((name for name in path[-2::-1] if not name.isdigit()), "")
    return any(map(_NORM.search, (path[-1], module))) or not _UNDECAYED.isdisjoint(words)


def leaf_multipliers(mask: Mask, params: optax.Params) -> list[Multiplier]:
    """Evaluates a mask on params: one multiplier for each of ``jax.tree.leaves(params)``.

    A static 0 comes back as False and a static 1 as True, so that callers can skip
    the arithmetic; leaves that cannot decay are False.
    """
    leaves, empty = named_leaves(params)
    if mask is None or not leaves:
        return [is_decayable(leaf) for _, leaf in leaves]
    tree = mask(params) if _is_function(mask) else mask
    entries = _mask_entries(tree, params)
    used: set[Path] = set()
    multipliers: list[Multiplier] = []
    uncovered: list[str] = []
    for path, leaf in leaves:
        entry = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in entries), None)
        if entry is None:
            uncovered.append("/".join(path))
            continue
        used.add(entry)
        name = f"mask at {'/'.join(entry)!r}"
        multipliers.append(_check_multiplier(name, entries[entry]) if is_decayable(leaf) else False)
    unused = ["/".join(path) for path in foreign_entries(entries, used, empty)]
    if uncovered or unused:
        raise ValueError(_mismatch(uncovered, unused))
    return multipliers


def _mask_entries(tree: PyTree, params: optax.Params) -> dict[Path, Any]:
    """The mask's values by path; None counts as a value, so that it can be refused."""
    bare = jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))
    bare_params = jax.tree_util.treedef_is_leaf(jax.tree.structure(params))
    if bare and not (bare_params and isinstance(tree, bool | float)):
        raise ValueError(
            f"mask is {tree!r}, a single {type(tree).__name__} for the whole parameter tree. "
            "It must be a tree (or prefix) of bools or multipliers shaped like the parameters, "
            "or a function from the parameters to one; None decays everything. "
            f"{_foreign.INJECT_HINT}"
        )
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return dict(zip(unboxed([key_path for key_path, _ in flat]), (v for _, v in flat), strict=True))


def _check_multiplier(name: str, value: object) -> Multiplier:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(
                f"{name} is an array of shape {value.shape}; it must be a bool or a scalar "
                "multiplier, one for the whole parameter."
            )
        return value
    if not _checks.is_static(value):
        raise TypeError(
            f"{name} is {value!r}, a {type(value).__name__}; it must be a bool or a multiplier "
            ">= 0. Use False (or 0.0) for parameters that shall not decay."
        )
    _checks.check_nonnegative(name, value, "A multiplier scales the decay; 0.0 turns it off.")
    return bool(value) if value in (0.0, 1.0) else float(value)


def _mismatch(uncovered: Sequence[str], unused: Sequence[str]) -> str:
    parts = ["mask does not have the structure of the parameters (or a prefix of it)."]
    if uncovered:
        parts.append(f"It says nothing about the parameters {listing(uncovered)}.")
    if unused:
        parts.append(f"It has entries that are no parameters: {listing(unused)}.")
    parts.append("Build it with jax.tree.map over the parameters, or use decay_rules.")
    return " ".join(parts)


def foreign_entries(entries: Iterable[Path], used: set[Path], empty: Sequence[Path]) -> list[Path]:
    """Mask entries that select nothing, but for those above, at or below an empty node."""
    nodes = set(empty)
    above = {path[:n] for path in empty for n in range(len(path))}
    return [
        path
        for path in entries
        if path not in used
        and path not in above
        and not any(path[:n] in nodes for n in range(len(path) + 1))
    ]


def _compile_rule(rule: object) -> tuple[re.Pattern[str], float]:
    if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
        raise TypeError(
            f"decay rule {rule!r} must be a pair (pattern, multiplier), e.g. ('.*/kernel', 1.0)."
        )
    pattern, multiplier = rule
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"decay rule pattern {pattern!r} is not a regular expression: {error}. "
            "Escape special characters, or see Python's re module."
        ) from error
    return compiled, float(_check_multiplier(f"multiplier of decay rule {pattern!r}", multiplier))


_Rules = Sequence[tuple[re.Pattern[str], float]]


def _first_match(rules: _Rules, path: str) -> int | None:
    return next((i for i, (pattern, _) in enumerate(rules) if pattern.fullmatch(path)), None)


def _all_matches(rules: _Rules, path: str) -> set[int]:
    return {i for i, (pattern, _) in enumerate(rules) if pattern.fullmatch(path)}


def _refuse_unused(
    rules: _Rules, used: set[int], paths: Sequence[str], empty: Sequence[str]
) -> None:
    unused = [i for i in range(len(rules)) if i not in used]
    unused = [i for i in unused if not _may_match_below(rules[i][0], empty, paths)]
    if not unused:
        return
    pattern = rules[unused[0]][0].pattern
    close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
    if list(paths) == [""]:
        raise ValueError(
            f"decay_rules got a single array for the whole parameter tree, so {pattern!r} matches "
            f"nothing. {_foreign.INJECT_HINT}"
        )
    hidden = f" What lies below {listing(empty)} cannot be seen here." if empty else ""
    raise ValueError(
        f"decay rule pattern {pattern!r} matches no parameter. It must match a whole path; the "
        f"closest of {len(paths)} are {listing(close)}.{hidden} Mend or drop the rule."
    )


def _may_match_below(pattern: re.Pattern[str], empty: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether a rule is about what an empty node hides: a subtree masked as a whole.

    It begins with the node's path, or matches a parameter there that is called like one here.
    """
    if any(pattern.pattern.startswith(f"{node}/") for node in empty):
        return True
    keys = [path.split("/") for path in paths] if empty else []
    tails = {"/".join(path[n:]) for path in keys for n in range(len(path))}
    return any(pattern.fullmatch(f"{node}/{tail}") for node in empty for tail in tails)


def _is_function(mask: Mask) -> bool:
    """A function of the parameters, and no module of bools that happens to be callable."""
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(mask))
    return callable(mask) and (is_leaf or isinstance(mask, jax.tree_util.Partial))
