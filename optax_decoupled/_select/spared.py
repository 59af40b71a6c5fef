"""Which parameters weight decay usually spares, told from their names.

These rules are for one parameter at a time: its path, its shape, and the names of the other
parameters of its module. Names decide rather than the number of axes, because scanned or vmapped
layers turn a bias into a matrix.
"""

import re
from collections.abc import Sequence

from optax_decoupled._common.types import Path

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Words that mark a parameter wherever they stand in its name.
_UNDECAYED = {"bias", "biases", "scale", "scales", "beta", "gamma", "offset", "slope", "slopes"}
# A word that marks a parameter unless a layer's word follows: x0_lambda, but not lambda_proj.
_LAMBDA = re.compile(r"lambdas?")
_NORM = re.compile(r"[a-z]*(norms?|normali[sz](e|er|ation))|bn|(sub)?ln|gn|rms")
_LAYERS = {"attention", "attn", "block", "conv", "dense", "embed", "embedding", "fc", "ffn"}
_LAYERS |= {"gate", "head", "linear", "mlp", "proj", "projection"}
_SINKS = {"sink", "sinks"}
_LAYER_SCALES = (["ls"], ["layer", "scale"], ["layerscale"])
# A bias b beside a weight w: b, b1, b_in beside w, w1, w_in.
_SHORT_BIAS = re.compile(r"b(\d*|_\w+)")
_WEIGHTS = ("w", "weight", "kernel")
# Of state space models and linear recurrences: rates, their logarithms, step sizes.
_RECURRENCE = re.compile(r"a_logs?|log_a|a_param|log_(dt|step)|(nu|theta|gamma)_log|lambda_(re|im)")
_PASS_THROUGH = {"d", "ds"}
_PRELU = re.compile(r".*prelu[_\d]*")
# Of optax.contrib.split_real_and_imaginary.
_COMPLEX_PARTS = {"real", "imaginary"}


def are_spared(paths: Sequence[Path], shapes: Sequence[tuple[int, ...]]) -> list[bool]:
    """For each parameter of a tree, whether decay_mask's docstring lists it as spared.

    An array without a name is not spared, whatever its shape.
    """
    split = [tuple(name for key in path for name in key.split("/")) for path in paths]  # Haiku's
    split = [path[:-1] if path[-1:] and path[-1] in _COMPLEX_PARTS else path for path in split]
    siblings: dict[Path, set[str]] = {}
    for path in split:
        siblings.setdefault(path[:-1], set()).update(name.lower() for name in path[-1:])
    return [
        bool(path) and (shape == () or _is_spared(path, shape, siblings[path[:-1]]))
        for path, shape in zip(split, shapes, strict=True)
    ]


def _is_spared(path: Path, shape: tuple[int, ...], siblings: set[str]) -> bool:
    name = path[-1]
    module = next((key for key in path[-2::-1] if not key.isdigit()), "")
    words = name_words(name)
    return (
        not _UNDECAYED.isdisjoint(words)
        or _ends_with(words, _LAMBDA)
        or not _SINKS.isdisjoint(words[-1:])
        or is_norm(name)
        or is_norm(module)
        or _is_short_bias(name, siblings)
        or _is_of_recurrence(name, siblings)
        or name_words(module) in _LAYER_SCALES
        or words in _LAYER_SCALES
        or _PRELU.fullmatch(module.lower()) is not None
        or _is_mixing_scalar(words, shape)
    )


def name_words(name: str) -> list[str]:
    """The words of a name in lower case, without its digits: LayerNorm_0 is layer, norm."""
    return [word.lower() for word in _WORD.findall(name)]


def is_norm(name: str) -> bool:
    """LayerNorm_0, ln_f, norm1, pre_norm; not norm_mlp, nor normalized_proj."""
    return _ends_with(name_words(name), _NORM)


def _ends_with(words: Sequence[str], pattern: re.Pattern[str]) -> bool:
    """Whether a word matches, and no layer's word after it makes it an adjective."""
    places = [i for i, word in enumerate(words) if pattern.fullmatch(word)]
    return bool(places) and _LAYERS.isdisjoint(words[places[-1] + 1 :])


def _is_short_bias(name: str, siblings: set[str]) -> bool:
    """Such as b1 beside w1, but not beside a factor a1 (LoRA), nor B_re beside C_re (an SSM)."""
    match = _SHORT_BIAS.fullmatch(name.lower())
    if match is None or f"a{match[1]}" in siblings:
        return False
    if match[1].startswith("_"):
        return f"c{match[1]}" not in siblings
    return any(f"{weight}{match[1]}" in siblings for weight in _WEIGHTS)


def _is_of_recurrence(name: str, siblings: set[str]) -> bool:
    """A_log, log_step, a_param; and D, but only beside one of them."""
    beside = name.lower() in _PASS_THROUGH and any(map(_RECURRENCE.fullmatch, siblings))
    return beside or _RECURRENCE.fullmatch(name.lower()) is not None


def _is_mixing_scalar(words: Sequence[str], shape: tuple[int, ...]) -> bool:
    """A gate or skip weight with at most one axis longer than 1: of shape (L,), (1,) or (L, 1).

    A longer second axis makes a matrix of it, such as a router or the gate of a gated MLP.
    """
    is_gate = words[-1:] in (["gate"], ["gates"]) and {"w", "weight", "kernel"}.isdisjoint(words)
    is_skip = words[-2:] in (["skip", "weight"], ["skip", "weights"])
    return (is_gate or is_skip) and sum(n > 1 for n in shape) <= 1
