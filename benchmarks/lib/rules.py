"""When does a number support a claim? Rules as data, by equivalence."""

from typing import NamedTuple

import numpy as np

LEVEL = 0.9  # of all intervals that decide a claim
PERCENT = f"{100 * LEVEL:.0f} %"
NEAR = 0.5  # a slope this near to a claimed one is taken for it
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


class Interval(NamedTuple):
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float

    def holds(self, low: float, high: float) -> bool:
        """Whether a number of the interval lies in [low, high]."""
        return not (self.low > high or self.high < low)

    @property
    def may_be_chance(self) -> bool:
        return self.holds(0, 0)

    def text(self, digits: int = 2) -> str:
        value, low, high = (signed(x, digits) for x in self)
        return f"{value} [{low}, {high}]"


class Rule(NamedTuple):
    """A claim is contradicted by an interval outside of it, supported by one within its bounds.

    All other intervals leave it undecided: a wide one, in particular, supports nothing.

    Attributes:
      claim: the least and the greatest number that the claim allows.
      within: the bounds between which an interval must lie to support it. They are wider than
        the claim where the claim competes with another number: "15 %" with "no difference".
    """

    claim: tuple[float, float]
    within: tuple[float, float]


def about(value: float) -> Rule:
    """A slope that is this one, to within one half."""
    both = value - NEAR, value + NEAR
    return Rule(both, both)


MORE = Rule((0, np.inf), (0, np.inf))
AT_LEAST_15 = Rule((15, np.inf), (0, np.inf))
NOTHING = Rule((-np.inf, 0), (-np.inf, 15))
BELOW_MINUS_QUARTER = Rule((-np.inf, -0.25), (-np.inf, -0.25))


def verdict(rule: Rule, interval: Interval | None) -> str:
    """Of one interval; None or NaN, where there is none, leaves the claim undecided."""
    if interval is None or not np.isfinite(interval).all():
        return UNDECIDED
    if not interval.holds(*rule.claim):
        return CONTRADICTED
    low, high = rule.within
    return SUPPORTED if low < interval.low <= interval.high < high else UNDECIDED


def signed(value: float, digits: int) -> str:
    """With its sign, and zero as +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
