"""The history of one weight."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class WeightHistoryRow:
    r"""The history of one weight; arrays are float64[intervals], NaN where a value is unknown.

    Attributes:
      path: the parameter's keys, joined by ``/``; of a stacked array's slice also its index.
      shape: the weight's shape.
      dtype: the name of its dtype.
      rms: root mean square of its sampled elements.
      rotation: the angle that an update turns it by, in radians: the root of the mean square.
      growth: the relative change of its squared length by one update.
      unchanged: the share of its elements whose bits an update does not change although it is
        not 0. It is 0 for weights of 32 bits and more, where rounding is hardly a loss.
      removed: :math:`2c`, the part of the squared length that decay removes, by one update.
      aligned: :math:`2⟨θ, u⟩ / \|θ\|^2` of the update :math:`u` without decay.
      injected: :math:`\|u\|^2 / \|θ\|^2`.
      ratio: ``aligned / injected`` over its value for noise, :math:`2β_1 / (1 - β_1)`; for
        :math:`β_1 = 0`, where that is 0, ``aligned / injected`` itself.
      last_ratio: that of the last half of the run, the median of 16 parts.
      predicted_rms: that of AdamW's weights under noise, from the first interval on.
      kind: ``"settled"`` (its rms stays, and decay had time to act), ``"steady"`` (its rms
        stays, because decay had no time to act), ``"growing"``, ``"shrinking"``, ``"only
        decays"`` (no other update moves it), ``"frozen"``, ``"lost"`` (to rounding), ``"not
        finite"`` or ``"too short"``.
      since: the number of updates after which a settled weight has its final rms.
      held_by: ``"noise"`` if ``last_ratio`` is between 1/1.4 and 1.4 (for :math:`β_1 = 0`
        between -0.4 and 0.4), otherwise ``"the loss"``; None if the decay is unknown, or had
        removed less than the squared length in that half.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    rms: np.ndarray
    rotation: np.ndarray
    growth: np.ndarray
    unchanged: np.ndarray
    removed: np.ndarray
    aligned: np.ndarray
    injected: np.ndarray
    ratio: np.ndarray
    last_ratio: float
    predicted_rms: np.ndarray
    kind: str
    since: int | None
    held_by: str | None
