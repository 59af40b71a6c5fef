"""The history that `record_weight_dynamics` keeps in an optimizer's state, as a report."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from optax_decoupled._common.checks import brief
from optax_decoupled._common.types import Mask, PyTree, Scalar, ScalarOrSchedule
from optax_decoupled._watch import picture, printed, stored
from optax_decoupled._watch.hyperparameters import Hyperparameters, decay_of_each
from optax_decoupled._watch.row import WeightHistoryRow
from optax_decoupled._watch.verdict import Averages, Forces, judged, last_ratio


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WeightHistory:
    """What happened to each weight over a run; ``print`` it, plot it, or use it as data.

    Attributes:
      steps: the number of updates up to the end of each interval, int[intervals].
      interval: updates in each.
      rows: one :class:`~optax_decoupled.types.WeightHistoryRow` for each weight, in the tree's
        order.
    """

    steps: np.ndarray
    interval: int
    rows: tuple[WeightHistoryRow, ...]

    def __str__(self) -> str:
        return printed.text(self.steps, self.interval, self.rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return printed.as_html(self.steps, self.interval, self.rows)

    def plot(self, axes: Any = None) -> Any:
        """Draws rms, rotation and ratio over the run, a line for each group of weights.

        Args:
          axes: three Matplotlib axes, or None for a new figure.

        Returns:
          The three axes. The predicted rms, if known, is a thin line in the same colour.

        Raises:
          ImportError: without Matplotlib.
        """
        return picture.draw(self.steps, self.rows, axes)

    def metrics(self, prefix: str = "decay") -> dict[str, float]:
        """The last interval as a flat dict for W&B, TensorBoard or clu.

        Args:
          prefix: the beginning of every key.

        Returns:
          ``{"decay/dense/kernel/rms": 0.02, ...}`` with Python floats; unknown values are left
          out, as is the ratio of weights without decay, which says nothing about them. It is
          empty before the first interval ends.
        """
        names = ("rms", "rotation", "growth", "unchanged", "ratio")
        last = (
            (f"{prefix}/{row.path}/{name}", float(getattr(row, name)[-1]))
            for row in self.rows
            for name in names
            if len(self.steps) and (name != "ratio" or np.any(row.removed > 0))
        )
        return {key: value for key, value in last if not math.isnan(value)}


def recorded_weight_dynamics(
    opt_state: PyTree,
    *,
    weight_decay: ScalarOrSchedule | PyTree | None = None,
    schedule: ScalarOrSchedule | None = None,
    learning_rate: ScalarOrSchedule | None = None,
    mask: Mask = None,
    b1: Scalar | tuple[Scalar, Scalar] = 0.9,
) -> WeightHistory:
    r"""The history that :func:`~optax_decoupled.record_weight_dynamics` keeps in a state.

    An update :math:`u` and decay :math:`c` change the squared length of a weight by
    *alignment*, *injection* and *removal*:

    .. math:: \|θ\|^2 \leftarrow \|θ\|^2 + 2⟨θ, u⟩ + \|u\|^2 - 2c \|θ\|^2 + O(c^2, cu)

    Momentum alone gives noise an alignment of :math:`2β_1 / (1 - β_1)` times the injection.
    ``ratio`` is the measured one over that; without momentum it is the measured one itself, 0
    for noise. A weight with the ratio of noise is held by noise: decay sets its rotation. With
    any other the loss holds its length, and decay changes that length.

    Args:
      opt_state: a state that holds a :class:`types.WeightHistoryState` anywhere, such as that
        of a chain, an ``nnx.Optimizer``, a ``TrainState`` or its ``opt_state``, or a
        checkpoint that Orbax restored without a target. Several of them (of
        ``optax.partition``) are joined.
      weight_decay: the fraction removed per full step, as given to the optimizer: a number, a
        schedule, or a tree of numbers with the parameters' names. None: unknown.
      schedule: the multiplier of learning rate and decay, as given to the optimizer.
      learning_rate: that of an Adam-type optimizer, for ``predicted_rms``; a number or a
        schedule. None: unknown.
      mask: the parameters that decay, as given to the optimizer; of a multiplier with one value
        for each element the mean over the weight counts.
      b1: the decay rate of the first moment, or the momentum of SGD, in [0, 1). For Lion, whose
        signs are correlated otherwise, the pair ``(b1, b2)``. (Nesterov's momentum has another
        alignment: 13.2 instead of 18 for 0.9, so that noise reads 0.73.)

    Returns:
      A :class:`types.WeightHistory`.

    Raises:
      TypeError, ValueError: for arguments out of range; if the state holds no history, or
        several of different lengths; for a tree that lacks a recorded parameter.

    Warns:
      UserWarning: if ``weight_decay`` looks like PyTorch's, as the optimizers do.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = optax.chain(od.adamw(1e-3, 5e-3), od.record_weight_dynamics())
      >>> params = {"w": jnp.full((32, 32), 0.01)}
      >>> @jax.jit
      ... def step(carry, key):
      ...     params, state = carry
      ...     grads = {"w": jax.random.normal(key, (32, 32))}
      ...     updates, state = tx.update(grads, state, params)
      ...     return (optax.apply_updates(params, updates), state), None
      >>> keys = jax.random.split(jax.random.key(0), 1_000)
      >>> (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
      >>> history = od.recorded_weight_dynamics(state, weight_decay=5e-3, learning_rate=1e-3)
      >>> (row,) = history.rows
      >>> assert row.held_by == "noise" and abs(row.predicted_rms[-1] / row.rms[-1] - 1) < 0.1

    References:
      Kosson et al., Rotational Equilibrium, arXiv:2305.17212.
    """
    tables = stored.tables(opt_state)
    if not tables:
        raise ValueError(
            f"opt_state={brief(type(opt_state).__name__)} holds no weight history. Train with "
            "optax.chain(optimizer, od.record_weight_dynamics()), and pass the state of that chain."
        )
    ends = [table.steps.tolist() for table in tables]
    if any(each != ends[0] for each in ends):
        lengths = ", ".join(str(each[-1]) if each else "0" for each in ends)
        raise ValueError(
            f"opt_state holds {len(tables)} weight histories of {lengths} updates; they must be of "
            "the same. Pass one of the states that hold them."
        )
    steps, interval = tables[0].steps, tables[0].interval
    decays = decay_of_each(weight_decay, mask, stored.places(tables), learning_rate)
    known = Hyperparameters(steps, interval, decays, schedule, learning_rate, b1)
    rows = [_row(known, *each) for table in tables for each in table.weights()]
    return WeightHistory(steps, interval, tuple(rows))


@np.errstate(divide="ignore", invalid="ignore")
def _row(
    known: Hyperparameters, path: str, shape: tuple[int, ...], dtype: str, a: Averages
) -> WeightHistoryRow:
    c = known.decay(path)
    rms = np.sqrt(a.square)
    aligned = 2 * (a.along + c * a.square)
    injected = a.change + 2 * c * a.along + c**2 * a.square
    ratio = aligned / injected / (known.noise_alignment(c) or 1.0)
    forces = Forces(aligned, injected, 2 * c * a.square, known.noise_alignment(c), known.interval)
    verdict = judged(a, forces, known.steps, math.prod(shape))
    return WeightHistoryRow(
        path=path,
        shape=shape,
        dtype=dtype,
        rms=rms,
        rotation=np.arctan2(np.sqrt(a.across * a.square), a.square + a.along),
        growth=np.where(a.square > 0, (2 * a.along + a.change) / a.square, 0.0),
        unchanged=a.unchanged,
        removed=2 * c,
        aligned=aligned / a.square,
        injected=injected / a.square,
        ratio=ratio,
        last_ratio=last_ratio(forces),
        predicted_rms=known.noise_rms(c, rms),
        **verdict._asdict(),
    )
