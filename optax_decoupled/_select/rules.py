"""Rules over parameter paths: which parameters decay, and how much."""

import difflib
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import inject_hint
from optax_decoupled._common.dtypes import is_decayable
from optax_decoupled._common.types import Leaf, MaskFunction, Multiplier, Path, PyTree
from optax_decoupled._select.masks import leaf_multipliers
from optax_decoupled._select.multipliers import Shape, check_multiplier, fitted
from optax_decoupled._select.names import listing, named_leaves, one_of_each_kind_first

# A multiplier, or a function of the parameter's shape that returns it.
RuleMultiplier = Multiplier | Callable[[Shape], Multiplier]
_Rules = Sequence[tuple[re.Pattern[str], RuleMultiplier]]
# A check of rules tries no more names than this, in about 0.1 s.
_MOST_NAMES = 200_000


def decay_rules(
    *rules: tuple[str, RuleMultiplier],
    default: Multiplier | MaskFunction | None = None,
    unused: Literal["error", "ignore"] = "error",
) -> MaskFunction:
    r"""Selects and scales the decay by regular expressions over parameter paths.

    The multiplier :math:`w` of a parameter is that of the first rule whose pattern
    matches its whole path (:func:`re.fullmatch` on the keys joined by ``/``).

    Args:
      *rules: pairs ``(pattern, multiplier)``. A multiplier is a finite number
        :math:`\ge 0` (dimensionless): 1 is the full decay, 0 none. It may be an array that
        broadcasts to the parameter's shape, or a function of that shape (shape → number or
        array).
      default: the multiplier of parameters that no rule matches, or a mask function that
        returns it: ``default=decay_mask`` makes the rules exceptions. None: refuse them.
      unused: ``"ignore"`` accepts rules that decide nothing here, for one list of rules
        that serves several models.

    Returns:
      A mask function for any ``mask=`` argument of this package. A mask of Optax is true or
      false: there every multiplier but 0 is the full decay.

    Raises:
      TypeError, ValueError: at once for a malformed rule; when the mask is evaluated
        (first at ``init``) for a rule that matches no parameter or none that an earlier
        rule leaves to it, and for a parameter that no rule matches and that has no
        ``default``.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_decoupled as od
      >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
      >>> mask = od.decay_rules((".*/kernel", 1.0), (".*", 0.0))
      >>> assert mask(params) == {"dense": {"kernel": 1.0, "bias": 0.0}}

      The selection of :func:`decay_mask` without embeddings:

      >>> mask = od.decay_rules((".*embed.*", 0.0), default=od.decay_mask, unused="ignore")
      >>> assert mask(params) == {"dense": {"kernel": True, "bias": False}}

      A decay that falls with depth, in a stack of layers along the first axis:

      >>> import numpy as np
      >>> stack = {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}
      >>> falling = lambda shape: np.linspace(1, 0.5, shape[0])[:, None, None]
      >>> tx = od.sgdw(0.1, 1e-3, mask=od.decay_rules(("kernel", falling), ("bias", 0.0)))
      >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, stack), tx.init(stack), stack)
      >>> assert jnp.allclose(updates["kernel"][:, 0, 0], jnp.array([-1e-3, -7.5e-4, -5e-4]))
    """
    compiled = [_compile_rule(rule, len(rules)) for rule in rules]
    if default is not None and not callable(default):
        check_multiplier("default", default)
    if unused not in ("error", "ignore"):
        raise ValueError(f'unused={unused!r} must be "error" or "ignore".')
    if not rules:
        raise ValueError(
            'decay_rules() got no rule; pass at least one (pattern, multiplier), e.g. (".*", 1.0).'
        )

    @checks.mask_function
    def mask(params: optax.Params, /) -> PyTree:
        leaves, empty = named_leaves(params)
        paths = ["/".join(path) for path, _ in leaves]
        if leaves and unused == "error":
            _refuse_idle(compiled, paths, ["/".join(path) for path in empty])
        first = [next(iter(_matches(compiled, path)), None) for path in paths]
        others = leaf_multipliers(default, params) if callable(default) else [default] * len(paths)
        chosen = [
            other if rule is None else _multiplier_of(compiled[rule], leaf)
            for rule, other, leaf in zip(first, others, leaves, strict=True)
        ]
        undecided = [leaf for leaf, w in zip(leaves, chosen, strict=True) if w is None]
        missed = ["/".join(path) for path, leaf in undecided if is_decayable(leaf)]
        if missed:
            raise ValueError(
                f"No decay rule matches {listing(one_of_each_kind_first(missed))}. Every parameter "
                'must match a rule: add one, end with (".*", 0.0), or pass default=0.0.'
            )
        weights = [0.0 if w is None else w for w in chosen]  # what cannot decay needs no rule
        return jax.tree.unflatten(jax.tree.structure(params), weights)

    return mask


def _multiplier_of(
    rule: tuple[re.Pattern[str], RuleMultiplier], named_leaf: tuple[Path, Leaf]
) -> Multiplier:
    """The rule's multiplier of one parameter."""
    (pattern, multiplier), (path, leaf) = rule, named_leaf
    shape = jnp.shape(leaf)
    name = f"multiplier of decay rule {pattern.pattern!r} for {'/'.join(path)!r}"
    if callable(multiplier):
        multiplier = check_multiplier(name, multiplier(shape))
    w = fitted(name, multiplier, shape) if is_decayable(leaf) else 0.0
    return float(w) if isinstance(w, bool) else w


def _compile_rule(rule: object, count: int) -> tuple[re.Pattern[str], RuleMultiplier]:
    if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
        unpacked = count == 1 and isinstance(rule, tuple | list | dict)
        way_out = " Unpack a list of rules with a star: decay_rules(*rules)." if unpacked else ""
        raise TypeError(
            f"decay rule {rule!r} must be a pair (pattern, multiplier), e.g. ('.*/kernel', 1.0)."
            f"{way_out}"
        )
    pattern, multiplier = rule
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"decay rule pattern {pattern!r} is not a regular expression: {error}. "
            "Escape special characters, or see Python's re module."
        ) from error
    if not callable(multiplier):
        multiplier = check_multiplier(f"multiplier of decay rule {pattern!r}", multiplier)
    return compiled, cast("RuleMultiplier", multiplier)


def _matches(rules: _Rules, path: str) -> list[int]:
    return [i for i, (pattern, _) in enumerate(rules) if pattern.fullmatch(path)]


def _refuse_idle(rules: _Rules, paths: Sequence[str], empty: Sequence[str]) -> None:
    """Refuses a rule that decides about no parameter, neither here nor below an empty node.

    Optax puts an empty node in the place of parameters that another transform updates.
    """
    matching = [_matches(rules, path) for path in (*paths, *empty)]
    matched = {i for found in matching for i in found}
    deciding = {found[0] for found in matching if found}
    tails = _tails_by_depth(paths, empty)
    for i, (rule, _) in enumerate(rules):
        if i in deciding or _may_match_below(rule, empty, tails):
            continue
        if i not in matched:
            raise ValueError(_no_match(rule.pattern, paths, empty))
        earlier = [set(found) for found in matching if i in found]
        covering = min(set.intersection(*earlier))
        catches_all = i == len(rules) - 1 and all(i in found for found in matching)
        if covering < i and not catches_all:
            raise ValueError(
                f"decay rule pattern {rule.pattern!r} never decides: the earlier "
                f"{rules[covering][0].pattern!r} matches every parameter that it matches, and "
                "the first match counts. Put the special rule first, or drop it."
            )


def _no_match(pattern: str, paths: Sequence[str], empty: Sequence[str]) -> str:
    if list(paths) == [""]:
        return (
            f"decay_rules got a single array for the whole parameter tree, so {pattern!r} matches "
            f"nothing. {inject_hint('mask')}"
        )
    ranked = difflib.get_close_matches(pattern, paths, n=len(paths), cutoff=0.0)
    close = one_of_each_kind_first(ranked)[:3]
    hidden = f" The parameters below {listing(empty)} cannot be seen here." if empty else ""
    return (
        f"decay rule pattern {pattern!r} matches no parameter. It must match a whole path; the "
        f"closest of {len(paths)} are {listing(close)}.{hidden} Correct or drop the rule, or pass "
        'unused="ignore".'
    )


def _tails_by_depth(paths: Sequence[str], empty: Sequence[str]) -> dict[int, list[str]]:
    """Names that parameters below an empty node of each depth may have, if it is a subtree.

    They are the ends of the visible paths below that depth, and the last key of every path. There
    are none where no path is longer: then the empty nodes stand for single parameters.
    """
    keys = [path.split("/") for path in paths] if empty else []
    last = dict.fromkeys(key[-1] for key in keys)
    tails: dict[int, list[str]] = {}
    for depth in set(map(_depth, empty)):
        ends = dict.fromkeys("/".join(key[depth:]) for key in keys if key[depth:])
        tails[depth] = list(ends | last) if ends else []
    return tails


def _depth(path: str) -> int:
    return path.count("/") + 1


def _may_match_below(
    pattern: re.Pattern[str], empty: Sequence[str], tails: dict[int, list[str]]
) -> bool:
    """Whether a rule may be about parameters below an empty node, a subtree masked as a whole.

    It is, if it begins with the node's path, or would match a parameter there that is called like
    a visible one. Where there are too many names to try, the answer is yes: only a rule that is
    sure to be idle is refused.
    """
    if any(pattern.pattern.startswith(f"{node}/") for node in empty):
        return True
    names = (f"{node}/{tail}" for node in empty for tail in tails[_depth(node)])
    tried = itertools.islice(names, _MOST_NAMES)
    return any(map(pattern.fullmatch, tried)) or next(names, None) is not None
