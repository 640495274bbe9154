"""What every decision rule promises: alerts from p-values, their number beforehand, and a back-test of that number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ArtifactError, NotFittedError, ParameterError
from anomaly.thresholds.cases import Bools, Floats, Integers, check_cooldown, checked_p
from anomaly.thresholds.heldout import DAY, HeldOut

COVERAGE = 0.90
"""Share of the days on which the number of cases lies within `low` and `high`."""


@dataclass(frozen=True, eq=False)
class BackTest:
    """How the held-out days would have gone, each judged by a rule that had not seen it.

    For each day the rule is learned anew from the other held-out days, and so is its interval; then it decides on the
    day's events. A case counts on the day that it begins on, and the days before count towards the cool-down. The
    interval should hold 9 days in 10.

    The p-values are taken as they are given. Where the same slice calibrated them, their level is right by
    construction, and a rule that learns nothing from them is tested only for how much the days differ.

    Attributes
    ----------
    start : ndarray (days,)
        Second at which each day begins: the slice is cut into equal parts of about 24 hours.
    cases, events : ndarray (days,) of int64
        Cases that begin on the day, and alerting events.
    low, high : ndarray (days,)
        Between which the number of cases should lie, as the other days tell.
    within : ndarray (days,) of bool
        Whether it does.

    Notes
    -----
    A slice of a single day has no other days: all arrays are empty.
    """

    start: Floats = field(default_factory=lambda: np.empty(0))
    cases: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    events: Integers = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    low: Floats = field(default_factory=lambda: np.empty(0))
    high: Floats = field(default_factory=lambda: np.empty(0))

    @property
    def within(self) -> Bools:
        """Whether the number of cases lies within `low` and `high`, (days,)."""
        return np.asarray((self.low <= self.cases) & (self.cases <= self.high))

    def __str__(self) -> str:
        if self.cases.size == 0:
            return "no back-test: the held-out slice is a single day"
        return f"back-test on {self.cases.size} held-out days: {int(self.within.sum())} within"


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
    backtest_ : BackTest
        The held-out slice day by day, each day with the rule learned from the others.
    """

    needs_money: ClassVar[bool] = False
    """Whether `fit` and `decide` must be given the money at risk."""
    fewest_events: ClassVar[int] = 1
    """Held-out events with a p-value that `fit` needs."""

    cooldown_hours: float = field(default=24.0, kw_only=True)
    threshold_: float = field(default=float("nan"), init=False)
    expected_per_day: float = field(default=float("nan"), init=False)
    low: float = field(default=float("nan"), init=False)
    high: float = field(default=float("nan"), init=False)
    events_per_day: float = field(default=float("nan"), init=False)
    backtest_: BackTest = field(default_factory=BackTest, init=False, repr=False, compare=False)

    def fit(self, p: ArrayLike, time: ArrayLike, entity: ArrayLike, *, money: ArrayLike | None = None) -> Self:
        """Learn the threshold and its cost from the held-out slice.

        Parameters
        ----------
        p : array (n,)
            P-values in (0, 1]; smaller = stranger; NaN (no statement) never alerts.
        time : array (n,)
            Seconds.
        entity : array (n,)
            Integer codes.
        money : array (n,), optional
            Money at risk, such as the amount of a payment; NaN where unknown. Only rules with `needs_money` read it.

        Raises
        ------
        ParameterError
            If a parameter is out of its range, the lengths differ, no event has a p-value, or the rule needs more than
            it is given.
        """
        self._check_parameters()
        check_cooldown(type(self).__name__, self.cooldown_hours)
        held = HeldOut.of(p, time, entity, money, cooldown_hours=self.cooldown_hours)
        if held.p.size < self.fewest_events:
            raise ParameterError(
                f"{type(self).__name__}: expected at least {self.fewest_events} held-out events with a p-value, got "
                f"{held.p.size}; give it a longer slice, or take a rule that needs less, such as FalseAlertRate"
            )
        self.threshold_ = self._level(held)
        alerting = self._alerting(held)
        daily = held.cases_by_part(alerting) * (held.parts / held.days)
        self.expected_per_day = float(daily.mean())
        self.low, self.high = _interval(daily)
        self.events_per_day = float(alerting.sum()) / held.days
        self.backtest_ = self._backtest(held, alerting)
        return self

    def decide(self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None) -> Bools:
        """Which of the events with p-values `p` (m,) alert; NaN never does. Learns nothing.

        Money at risk (m,) and codes of the entities (m,) are read by the rules that need them.
        """
        self._check_fitted()
        return np.asarray(checked_p(p) <= self.threshold_)

    def decide_one(self, p: float, *, money: float | None = None) -> bool:
        """Whether one live event alerts; a `StreamThreshold` learns from it too."""
        return bool(self.decide([p], money=None if money is None else [money])[0])

    def batch_threshold(
        self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None
    ) -> float:
        """Largest p-value that alerts in the batch `p` (m,), or would; 0 if none does."""
        self._check_fitted()
        return self.threshold_

    @abstractmethod
    def describe(self) -> str:
        """One or two sentences for a person: the rule, the p-value it comes to, and the cases a day to expect."""

    @abstractmethod
    def _check_parameters(self) -> None: ...

    @abstractmethod
    def _level(self, held: HeldOut) -> float:
        """What `threshold_` becomes; learns the rest of the rule as well."""

    def _alerting(self, held: HeldOut) -> Bools:
        """Which of the held-out events alert, once the rule is learned."""
        return np.asarray(held.p <= self.threshold_)

    def _alerting_without(self, part: int, held: HeldOut, alerting: Bools) -> Bools:
        """The same as `alerting` (n,), by a rule learned from the parts other than `part`."""
        return np.asarray(held.p <= self._level_without(part, held))

    def _level_without(self, part: int, held: HeldOut) -> float:
        return replace(self)._level(held.without(part))  # a twin learns, so that self stays as it is

    def _backtest(self, held: HeldOut, alerting: Bools) -> BackTest:
        if held.parts == 1:
            return BackTest()
        length = held.days / held.parts
        cases, events = np.zeros((2, held.parts), dtype=np.int64)
        bounds = np.zeros((2, held.parts))
        for part in range(held.parts):
            decided = self._alerting_without(part, held, alerting)
            inside = held.part == part
            cases[part] = held.cases_by_part(decided)[part]
            events[part] = int((decided & inside).sum())
            others = np.delete(held.cases_by_part(decided & ~inside), part)
            bounds[:, part] = length * np.array(_interval(others / length))
        start = held.start + DAY * length * np.arange(held.parts, dtype=np.float64)
        return BackTest(start, cases, events, *bounds)

    def _check_fitted(self) -> None:
        if np.isnan(self.threshold_):
            raise NotFittedError(f"{type(self).__name__}: not fitted; call fit with the held-out slice first")

    def _cost(self) -> str:
        return (
            f"{rate_text(self.expected_per_day)} cases a day on held-out data (9 days in 10: {rate_text(self.low)} to "
            f"{rate_text(self.high)}), from {rate_text(self.events_per_day)} alerting events a day; {self.backtest_}"
        )


class StreamThreshold(Threshold):
    """A rule that learns from each live event that it decides on, and can be saved in between.

    `decide` starts from what the rule knows and changes nothing; `decide_one` moves on by one event. `fit` forgets what
    was learned from live events.
    """

    @abstractmethod
    def decide_one(self, p: float, *, money: float | None = None) -> bool:
        """Whether one live event alerts; learns from it. NaN (no statement) never alerts, and teaches nothing."""

    def state(self) -> dict[str, Any]:
        """What the rule has learned, as plain JSON values; the parameters are among them, to be compared."""
        self._check_fitted()
        return {
            "rule": type(self).__name__,
            "parameters": self._parameters(),
            "threshold": self.threshold_,
            **self._memory(),
        }

    def restore(self, state: Mapping[str, Any]) -> Self:
        """Go on from what `state` gave: the same decisions to the last bit.

        Fit the rule first: what it costs a day is not part of the state.

        Raises
        ------
        ArtifactError
            If the state is of another rule or of other parameters, or something in it is missing or of another kind.
        """
        self._check_fitted()
        who = type(self).__name__
        given = state.get("rule"), state.get("parameters")
        if given != (who, self._parameters()):
            raise ArtifactError(
                f"{who}.restore: expected the state of a {who} with {self._parameters()}, got {given[0]} with "
                f"{given[1]}; make the rule with the parameters it was saved with, or start anew without a state"
            )
        try:
            threshold = float(state["threshold"])
            self._remember(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{who}.restore: expected what state() gave, found it incomplete or changed ({error!r}); "
                "start anew without a state"
            ) from error
        self.threshold_ = threshold
        return self

    @abstractmethod
    def _memory(self) -> dict[str, Any]: ...

    @abstractmethod
    def _remember(self, state: Mapping[str, Any]) -> None:
        """Take over what `_memory` gave; KeyError, TypeError or ValueError, and no change, if it cannot be."""

    def _parameters(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}


def check_share(rule: Threshold, name: str, value: float) -> None:
    """Refuse a share that is not between 0 and 1."""
    if not 0 < value < 1:
        raise ParameterError(f"{type(rule).__name__}: expected {name} between 0 and 1, both excluded, got {value!r}")


def rate_text(value: float) -> str:
    """A number of cases or events a day, for a person."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def one_in(p: float) -> str:
    """A share, for a person; "normal events" is to follow."""
    return f"1 in {float(f'{1 / p:.3g}'):,.0f}" if p < 0.1 else f"{100 * p:.3g} % of the"


def _interval(daily: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """`Threshold.low` and `high` from the cases of each day (days,)."""
    mean = float(daily.mean())
    if mean == 0:
        return 0.0, 3.0 / daily.size
    variance = max(mean, float(daily.var(ddof=1)) if daily.size > 1 else mean) * (1.0 + 1.0 / daily.size)
    law = scipy.stats.nbinom(mean**2 / (variance - mean), mean / variance)
    return float(law.ppf(0.5 - COVERAGE / 2)), float(law.ppf(0.5 + COVERAGE / 2))
