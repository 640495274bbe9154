"""Rules for what a desk can bear: a share of the normal events that may alert, or a number of cases a day."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from anomaly.errors import ParameterError
from anomaly.thresholds.base import Threshold, check_share, one_in, rate_text
from anomaly.thresholds.heldout import HeldOut

FEWEST_RANKS = 10
"""Held-out events that must alert before their rank alone says where a rate lies."""


@dataclass
class FalseAlertRate(Threshold):
    """Alert on the strangest share of normal events: p <= `rate`.

    The p-values are calibrated on the held-out slice, so that the share is right there by construction. The back-test
    therefore calibrates anew: a day's events alert if their conformal p-value among the n events of the other days,
    (1 + #{others <= p}) / (n + 1), is at most `rate`. Where that takes fewer than ten of the others, the level at which
    ten of them would alert is scaled down in proportion.

    Parameters
    ----------
    rate : float
        Share of the normal events that may alert, in (0, 1); 0.001 is one in a thousand.
    """

    rate: float

    def _check_parameters(self) -> None:
        check_share(self, "rate", self.rate)

    def _level(self, held: HeldOut) -> float:
        return self.rate

    def _level_without(self, part: int, held: HeldOut) -> float:
        others = held.without(part).levels
        if others.size < FEWEST_RANKS:
            return self.rate
        rank = self.rate * (others.size + 1)
        taken = max(FEWEST_RANKS, int(rank))
        level = float(np.nextafter(others[taken - 1], 0.0))
        return level if rank >= taken else level * rank / taken

    def describe(self) -> str:
        """The rate and its cost in cases a day."""
        self._check_fitted()
        return f"Alerts on {one_in(self.rate)} normal events (p <= {self.rate:.3g}): {self._cost()}."


@dataclass
class Budget(Threshold):
    """Alert on as many events as make `per_day` cases a day on the held-out slice.

    More alerting events make more cases at first; far on, they fill the gaps between cases and merge them. So the
    threshold is looked for from the strange end, in steps of a quarter more events, up to the first one over the
    budget, and there by bisection. A budget under one case in the whole slice is extrapolated: p-values of normal
    events are uniform, so a tenth of the smallest one is passed a tenth as often.

    Parameters
    ----------
    per_day : float
        Cases that can be looked into a day, above 0.

    Attributes
    ----------
    filled_ : bool
        False if the held-out slice cannot fill the budget. With fewer events than the budget, every event alerts
        (threshold 1). With more, the threshold makes the most cases: beyond it alerts only run cases together.
    """

    per_day: float
    filled_: bool = field(default=True, init=False)
    _held_per_day: float = field(default=float("nan"), init=False, repr=False)

    def _check_parameters(self) -> None:
        if not 0 < self.per_day < np.inf:
            raise ParameterError(f"Budget: expected per_day above 0, got {self.per_day!r}")

    def _level(self, held: HeldOut) -> float:
        target = self.per_day * held.days
        levels = held.levels
        self._held_per_day = levels.size / held.days
        self.filled_ = levels.size > target
        if not self.filled_:
            return 1.0
        within, beyond = 0, 1
        most, widest = 0, 1.0
        while (cases := held.cases(levels[beyond - 1])) <= target:
            within = beyond
            if cases > most:
                most, widest = cases, float(levels[beyond - 1])
            if within == levels.size:
                self.filled_ = most == target
                return widest
            beyond = min(levels.size, beyond + beyond // 4 + 1)
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if held.cases(levels[middle - 1]) <= target:
                within = middle
            else:
                beyond = middle
        if within:
            return float(levels[within - 1])
        return float(np.nextafter(levels[0] * min(1.0, target), 0.0))

    def describe(self) -> str:
        """The budget, the p-value it comes to, and what was found on the held-out slice."""
        self._check_fitted()
        budget = f"Budget of {rate_text(self.per_day)} cases a day"
        held = f"the held-out slice has only {rate_text(self._held_per_day)} events a day"
        if self.filled_:
            return (
                f"{budget}: alerts at p <= {self.threshold_:.3g} ({one_in(self.threshold_)} normal events); "
                f"{self._cost()}."
            )
        if self.threshold_ == 1.0:
            return f"{budget}: {held}, fewer than the budget, so every event alerts; {self._cost()}."
        return (
            f"{budget}: the held-out slice cannot fill it; beyond p <= {self.threshold_:.3g} more alerts would "
            f"only run cases together; {self._cost()}."
        )
