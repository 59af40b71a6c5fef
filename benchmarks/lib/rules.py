"""When is a claim reproduced? Rules as data: what an interval must hold, and what it must not."""

from typing import NamedTuple

import numpy as np

REPRODUCED, NEARLY, REFUTED, UNDECIDED = "reproduced", "nearly", "not reproduced", "undecided"


class Interval(NamedTuple):
    """A number and the ends of its 95 % interval."""

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
    """Reproduced by an interval that reaches into the claim and holds no rival.

    One that does not reach into the claim says that it is not reproduced, or nearly so, if all
    of it is near; one that holds both the claim and a rival leaves it undecided.

    Attributes:
      low: the least number that the claim allows.
      high: the greatest.
      rivals: numbers of which it says that they are not so.
      near: the ends of what is near, if anything is.
    """

    low: float
    high: float
    rivals: tuple[float, ...]
    near: tuple[float, float] | None = None


def whole_number(value: int) -> Rule:
    """Of the whole numbers it is this one, and not a neighbour; near is what rounds to it."""
    return Rule(value, value, (value - 1, value + 1), (value - 0.5, value + 0.5))


MORE = Rule(0, np.inf, (0,))
AT_LEAST_15 = Rule(15, np.inf, (0,))
NOTHING = Rule(-np.inf, 0, (15,))
BELOW_MINUS_QUARTER = Rule(-np.inf, -0.25, (-0.25,))


def verdict(rule: Rule, interval: Interval | None) -> str:
    """Of one interval; None or NaN, where there is none, leaves the claim undecided."""
    if interval is None or not np.isfinite(interval).all():
        return UNDECIDED
    if not interval.holds(rule.low, rule.high):
        near = rule.near is not None and rule.near[0] < interval.low <= interval.high < rule.near[1]
        return NEARLY if near else REFUTED
    return UNDECIDED if any(interval.holds(x, x) for x in rule.rivals) else REPRODUCED


def verdict_of_all(verdicts: list[str]) -> str:
    """A claim of several parts fails with any of them, and waits for all."""
    return next((x for x in (REFUTED, UNDECIDED, NEARLY) if x in verdicts), REPRODUCED)


def signed(value: float, digits: int) -> str:
    """With its sign, and zero as +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
