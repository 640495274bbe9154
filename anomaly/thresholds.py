"""P-values -> decisions, with the number of cases a day that each decision rule will cost.

Three rules, for three ways to say what is wanted: a share of normal events (`FalseAlertRate`), a number of cases a day
(`Budget`), or a share of false alerts among the alerts (`FalseDiscoveryRate`). Each is fitted on the held-out slice,
whose day-to-day variation gives the interval around the promise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anomaly.errors import NotFittedError, ParameterError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

DAY = 86_400.0
HOUR = 3_600.0
COVERAGE = 0.90
"""Share of the days on which the number of cases lies within `low` and `high`."""


def case_numbers(time: ArrayLike, entity: ArrayLike, decided: ArrayLike, cooldown_hours: float) -> NDArray[np.int64]:
    """Number the bursts of alerting events.

    Alerting events of one entity less than the cool-down apart are one case (each against the one before it, so a case
    lasts for as long as its alerts keep coming).

    Parameters
    ----------
    time : array (n,)
        Seconds, in any order.
    entity : array (n,)
        Integer code of each event's entity.
    decided : array (n,) of bool
        Which events alert.
    cooldown_hours : float
        0 makes each alerting event a case of its own.

    Returns
    -------
    ndarray (n,) of int64
        Case of each event, from 0, by entity and time; -1 for events that do not alert.
    """
    time, entity, decided = np.asarray(time, dtype=np.float64), np.asarray(entity), np.asarray(decided, dtype=np.bool_)
    if not time.shape == entity.shape == decided.shape or time.ndim != 1:
        raise ParameterError(
            f"case_numbers: expected time, entity and decided of one length (n,), got {time.shape}, "
            f"{entity.shape} and {decided.shape}"
        )
    _check_cooldown("case_numbers", cooldown_hours)
    alerting = np.flatnonzero(decided)
    alerting = alerting[np.lexsort((time[alerting], entity[alerting]))]
    numbers = np.full(time.size, -1, dtype=np.int64)
    numbers[alerting] = np.cumsum(_starts(time[alerting], entity[alerting], cooldown_hours)) - 1
    return numbers


def count_cases(time: ArrayLike, entity: ArrayLike, decided: ArrayLike, cooldown_hours: float) -> int:
    """How many cases the alerting events make; see `case_numbers`."""
    return int(case_numbers(time, entity, decided, cooldown_hours).max(initial=-1)) + 1


def _starts(time: Floats, entity: NDArray[Any], cooldown_hours: float) -> Bools:
    """Which of the alerting events open a case; they come sorted by entity and time."""
    opens = np.ones(time.size, dtype=np.bool_)
    opens[1:] = (entity[1:] != entity[:-1]) | (np.diff(time) >= cooldown_hours * HOUR)
    return opens


def _check_cooldown(who: str, cooldown_hours: float) -> None:
    if not 0 <= cooldown_hours < np.inf:
        raise ParameterError(f"{who}: expected cooldown_hours of at least 0, got {cooldown_hours!r}")


class _HeldOut:
    """The held-out events that have a p-value, by entity and time, and the days that they span."""

    def __init__(self, p: ArrayLike, time: ArrayLike, entity: ArrayLike, cooldown_hours: float) -> None:
        p, time, entity = _checked_p(p), np.asarray(time, dtype=np.float64), np.asarray(entity)
        if not p.shape == time.shape == entity.shape:
            raise ParameterError(
                f"expected p, time and entity of one length (n,), got {p.shape}, {time.shape} and {entity.shape}"
            )
        if not np.isfinite(time).all():
            raise ParameterError("expected finite times in seconds; reject events without a time")
        stated = np.flatnonzero(~np.isnan(p))
        if stated.size == 0:
            raise ParameterError(
                "expected at least one held-out event with a p-value, got none; give it a longer slice"
            )
        # The slice lasts from its first to its last event, stated or not, and is cut into equal parts of about a day;
        # a slice under one day is taken as one day: nothing is extrapolated from its busy hours.
        span = max(float(time.max() - time.min()), DAY)
        self.parts = max(1, round(span / DAY))
        self.days = span / DAY
        start = float(time.min())
        stated = stated[np.lexsort((time[stated], entity[stated]))]
        self.p, self.time, self.entity = p[stated], time[stated], entity[stated]
        self.part = np.minimum(((self.time - start) * (self.parts / span)).astype(np.int64), self.parts - 1)
        self.by_p = np.argsort(self.p, kind="stable")
        self.levels = self.p[self.by_p]
        self.cooldown_hours = cooldown_hours

    def openings(self, level: float) -> NDArray[np.int64]:
        """Positions of the events that open a case when all events with p <= `level` alert."""
        alerting = np.sort(self.by_p[: self.events(level)])
        return alerting[_starts(self.time[alerting], self.entity[alerting], self.cooldown_hours)]

    def cases(self, level: float) -> int:
        return int(self.openings(level).size)

    def events(self, level: float) -> int:
        return int(np.searchsorted(self.levels, level, side="right"))


@dataclass
class Threshold(ABC):
    """A rule that turns p-values into alerts, and says beforehand how many.

    Parameters
    ----------
    cooldown_hours : float, default 24
        Alerting events of one entity less than this apart are one case.

    Attributes
    ----------
    threshold_ : float
        The p-value at or below which an event alerts, as found on the held-out slice.
    expected_per_day : float
        Cases a day on the held-out slice.
    low, high : float
        On 90 % of the days the number of cases should lie within these, as far as the held-out days tell: quantiles of
        a negative binomial law with the mean and the variance between days (at least Poisson's), widened by 1 + 1 /
        days for the uncertainty of the mean. Without a single case, 0 and 3 / days (the rule of three).
    events_per_day : float
        Alerting events a day on the held-out slice; several make one case.
    """

    cooldown_hours: float = field(default=24.0, kw_only=True)
    threshold_: float = field(default=float("nan"), init=False)
    expected_per_day: float = field(default=float("nan"), init=False)
    low: float = field(default=float("nan"), init=False)
    high: float = field(default=float("nan"), init=False)
    events_per_day: float = field(default=float("nan"), init=False)

    def fit(self, p: ArrayLike, time: ArrayLike, entity: ArrayLike) -> Self:
        """Learn the threshold and its cost from the held-out slice.

        Parameters
        ----------
        p : array (n,)
            P-values in (0, 1]; smaller = stranger; NaN (no statement) never alerts.
        time : array (n,)
            Seconds.
        entity : array (n,)
            Integer codes.

        Raises
        ------
        ParameterError
            If a parameter is out of its range, the lengths differ, or no event has a p-value.
        """
        self._check_parameters()
        _check_cooldown(type(self).__name__, self.cooldown_hours)
        held = _HeldOut(p, time, entity, self.cooldown_hours)
        self.threshold_ = self._level(held)
        per_part = np.bincount(held.part[held.openings(self.threshold_)], minlength=held.parts)
        daily = np.asarray(per_part * (held.parts / held.days), dtype=np.float64)
        self.expected_per_day = float(daily.mean())
        self.low, self.high = _interval(daily)
        self.events_per_day = held.events(self.threshold_) / held.days
        return self

    def decide(self, p: ArrayLike) -> Bools:
        """Which of the events with p-values `p` (m,) alert; NaN never does."""
        self._check_fitted()
        return np.asarray(_checked_p(p) <= self.threshold_)

    @abstractmethod
    def describe(self) -> str:
        """One or two sentences for a person: the rule, the p-value it comes to, and the cases a day to expect."""

    @abstractmethod
    def _check_parameters(self) -> None: ...

    @abstractmethod
    def _level(self, held: _HeldOut) -> float: ...

    def _check_fitted(self) -> None:
        if np.isnan(self.threshold_):
            raise NotFittedError(f"{type(self).__name__}: not fitted; call fit with the held-out slice first")

    def _cost(self) -> str:
        return (
            f"{_rate(self.expected_per_day)} cases a day on held-out data (9 days in 10: {_rate(self.low)} to "
            f"{_rate(self.high)}), from {_rate(self.events_per_day)} alerting events a day"
        )


@dataclass
class FalseAlertRate(Threshold):
    """Alert on the strangest share of normal events: p <= `rate`.

    Parameters
    ----------
    rate : float
        Share of the normal events that may alert, in (0, 1); 0.001 is one in a thousand.
    """

    rate: float

    def _check_parameters(self) -> None:
        _check_share(self, "rate", self.rate)

    def _level(self, held: _HeldOut) -> float:  # noqa: ARG002 - the rule is the same whatever was held out
        return self.rate

    def describe(self) -> str:
        """The rate and its cost in cases a day."""
        self._check_fitted()
        return f"Alerts on {_one_in(self.rate)} normal events (p <= {self.rate:.3g}): {self._cost()}."


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

    def _level(self, held: _HeldOut) -> float:
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
        budget = f"Budget of {_rate(self.per_day)} cases a day"
        held = f"the held-out slice has only {_rate(self._held_per_day)} events a day"
        if self.filled_:
            return (
                f"{budget}: alerts at p <= {self.threshold_:.3g} ({_one_in(self.threshold_)} normal events); "
                f"{self._cost()}."
            )
        if self.threshold_ == 1.0:
            return f"{budget}: {held}, fewer than the budget, so every event alerts; {self._cost()}."
        return (
            f"{budget}: the held-out slice cannot fill it; beyond p <= {self.threshold_:.3g} more alerts would "
            f"only run cases together; {self._cost()}."
        )


@dataclass
class FalseDiscoveryRate(Threshold):
    """Alert so that at most a share `q` of the alerts is expected to be false.

    Benjamini & Hochberg (1995, "Controlling the false discovery rate"): with the m p-values of the batch in ascending
    order, alert on the i smallest, for the largest i with p_(i) <= q i / m. The threshold moves with the batch: a quiet
    day raises no alert at all, a bad one many. The promise holds for independent or positively dependent p-values.

    `fit` treats the held-out slice as one batch, which says how many alerts normal data cost; `decide` looks only at
    the batch that it is given.

    Parameters
    ----------
    q : float
        Expected share of false ones among the alerts, in (0, 1).
    """

    q: float

    def _check_parameters(self) -> None:
        _check_share(self, "q", self.q)

    def _level(self, held: _HeldOut) -> float:
        return self.batch_threshold(held.p)

    def batch_threshold(self, p: ArrayLike) -> float:
        """Largest p-value of the batch `p` (m,) that alerts; 0 if none does."""
        self._check_parameters()
        p = _checked_p(p)
        p = p[~np.isnan(p)]
        if p.size == 0:
            return 0.0
        passing = p[stats.false_discovery_control(p, method="bh") <= self.q]
        return float(passing.max(initial=0.0))

    def decide(self, p: ArrayLike) -> Bools:
        """Which events of the batch with p-values `p` (m,) alert; NaN never does, and does not count in m."""
        self._check_fitted()
        return np.asarray(_checked_p(p) <= self.batch_threshold(p))

    def describe(self) -> str:
        """The share and what it costs on the held-out slice."""
        self._check_fitted()
        return (
            f"At most {100 * self.q:.3g} % of the alerts of a batch are expected to be false (Benjamini-Hochberg); "
            f"{self._cost()}."
        )


def _checked_p(p: ArrayLike) -> Floats:
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1:
        raise ParameterError(f"expected p-values of shape (n,), got shape {p.shape}")
    if np.any((p < 0) | (p > 1)):
        raise ParameterError(
            f"expected p-values within 0 and 1, got {np.nanmin(p):g} to {np.nanmax(p):g}; "
            "scores and surprises are no p-values"
        )
    return p


def _check_share(rule: Threshold, name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ParameterError(f"{type(rule).__name__}: expected {name} between 0 and 1, both excluded, got {value!r}")


def _interval(daily: Floats) -> tuple[float, float]:
    mean = float(daily.mean())
    if mean == 0:
        return 0.0, 3.0 / daily.size
    variance = max(mean, float(daily.var(ddof=1)) if daily.size > 1 else mean) * (1.0 + 1.0 / daily.size)
    law = stats.nbinom(mean**2 / (variance - mean), mean / variance)
    return float(law.ppf(0.5 - COVERAGE / 2)), float(law.ppf(0.5 + COVERAGE / 2))


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _one_in(p: float) -> str:
    return f"1 in {float(f'{1 / p:.3g}'):,.0f}" if p < 0.1 else f"{100 * p:.3g} % of the"
