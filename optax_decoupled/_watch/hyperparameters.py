"""Decay and learning rate of a recorded run, averaged over each interval."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled._common import checks
from optax_decoupled._common.products import peak_of
from optax_decoupled._common.types import Mask, PyTree, Scalar, ScalarOrSchedule
from optax_decoupled._select.masks import leaf_multipliers
from optax_decoupled._select.names import listing, named_leaves
from optax_decoupled._watch.stored import Place
from optax_decoupled.equilibrium import sum_of_sign_correlations

# Counts at which a schedule is evaluated in each interval.
_COUNTS = 64


class Hyperparameters:
    """The run's hyperparameters at each interval."""

    def __init__(
        self,
        steps: np.ndarray,
        interval: int,
        decays: dict[str, Any],
        schedule: ScalarOrSchedule | None,
        learning_rate: ScalarOrSchedule | None,
        b1: Scalar | tuple[Scalar, Scalar],
    ):
        checks.check_schedule("schedule", schedule)
        if learning_rate is not None:
            checks.check_learning_rate(learning_rate)
        self.steps, self.interval = steps, interval
        self.betas = b1 if isinstance(b1, tuple) else (b1,)
        for beta in self.betas:
            checks.check_fraction("b1", beta, "0.9 is usual; for Lion a pair: (0.9, 0.99).")
        places = (np.arange(min(interval, _COUNTS)) + 0.5) / min(interval, _COUNTS)
        self.counts = np.floor(steps[:, None] - interval + places * interval).clip(0)
        self.multiplier = self._values(1.0 if schedule is None else schedule)
        self.rate = None
        if learning_rate is not None:
            self.rate = self._values(learning_rate) * self.multiplier
        self.decays = decays

    def _values(self, value: Any) -> np.ndarray:
        """float64[intervals, counts]."""
        if not callable(value):
            return np.full(self.counts.shape, float(np.asarray(value)))
        counts = jnp.asarray(self.counts.ravel(), jnp.int32)
        return np.asarray(jax.vmap(value)(counts), float).reshape(self.counts.shape)

    def decay(self, path: str) -> np.ndarray:
        """The mean fraction that an update removes of this weight in each interval; or NaN."""
        given, w = self.decays[path]
        if given is None:
            return np.full(len(self.steps), math.nan)
        return (w * self._values(given) * self.multiplier).mean(axis=1)

    def noise_alignment(self, decay: np.ndarray) -> float:
        """Alignment over injection that momentum gives to noise, 0 without momentum.

        Lion's signs stay correlated for so long that decay counts, too.
        """
        if len(self.betas) == 1:
            b1 = float(np.asarray(self.betas[0]))
            return 2 * b1 / (1 - b1)
        c = float(np.mean(decay)) if len(decay) else 0.0
        return 2 * sum_of_sign_correlations(*self.betas, 1 - c)

    def noise_rms(self, decay: np.ndarray, rms: np.ndarray) -> np.ndarray:
        """The rms of a weight that gets noise from the first interval on, at each interval."""
        if self.rate is None or np.isnan(decay).any() or not len(rms):
            return np.full(len(self.steps), math.nan)
        squares = [float(rms[0]) ** 2]
        for c, rate in zip(decay[1:], np.mean(self.rate**2, axis=1)[1:], strict=True):
            kept = (1 - c) ** (2 * self.interval)
            added = (1 - kept) / (1 - (1 - c) ** 2) if c > 0 else self.interval
            squares.append(kept * squares[-1] + added * rate)
        return np.sqrt(squares)


def decay_of_each(
    weight_decay: ScalarOrSchedule | PyTree | None,
    mask: Mask,
    places: dict[str, Place],
    learning_rate: ScalarOrSchedule | None = None,
) -> dict[str, tuple[Any, float]]:
    """For each weight its decay (a number, a schedule or None) and its multiplier.

    Of a multiplier with several values the mean over the weight counts.
    """
    tree = _nested({place.path: place.array for place in places.values()})
    by_path = {"/".join(path): shape for path, shape in named_leaves(tree)[0]}
    multipliers = dict(zip(by_path, leaf_multipliers(mask, tree), strict=True))
    if weight_decay is None or callable(weight_decay) or _is_scalar(weight_decay):
        if weight_decay is not None and not callable(weight_decay):
            _check_decay("weight_decay", weight_decay)
            if float(np.asarray(weight_decay)) > 1.001 * checks.PYTORCH_SCALE:
                checks.check_weight_decay(weight_decay, peak_of(learning_rate))  # warns
        given = dict.fromkeys(by_path, weight_decay)
    else:
        given = {"/".join(path): x for path, x in named_leaves(weight_decay)[0]}
        lacking = [path for path in by_path if path not in given]
        if lacking:
            raise ValueError(
                f"weight_decay has no entry for {listing(lacking)}. Pass a tree with the names of "
                "the parameters, 0 for one that does not decay, or one number and the mask."
            )
        for path in by_path:
            _check_decay(f"weight_decay at {path!r}", given[path])
    return {
        name: (given[place.path], _mean_over(place, multipliers[place.path]))
        for name, place in places.items()
    }


def _mean_over(place: Place, multiplier: Any) -> float:
    w = np.asarray(multiplier, float)
    whole = w.reshape((1,) * (len(place.array.shape) - w.ndim) + w.shape)
    indices = zip(place.indices, whole.shape, strict=False)
    return float(whole[tuple(i if n > 1 else 0 for i, n in indices)].mean())


def _nested(leaves: dict[str, Any]) -> dict:
    """The tree of dicts whose leaves have these paths."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _check_decay(name: str, value: Any) -> None:
    checks.check_share(name, value, "It is the fraction removed per full step.")


def _is_scalar(x: Any) -> bool:
    return checks.is_static(x) or (hasattr(x, "shape") and x.shape == ())
