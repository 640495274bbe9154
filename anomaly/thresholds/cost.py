"""A rule for what an alert costs and what it may save: more money at risk, less strangeness needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from anomaly.errors import ParameterError
from anomaly.thresholds.base import Threshold, check_share, rate_text
from anomaly.thresholds.cases import Bools, Floats, checked_money, checked_p
from anomaly.thresholds.heldout import HeldOut


@dataclass
class ExpectedCost(Threshold):
    """Alert where the loss that an alert may prevent exceeds what the alert costs.

    That is, where ``money at risk * P(fraud | p) > alert_cost``. Unlabelled events calibrate the p-values, fraud among
    them, so that all events together are spread evenly over p, and the probability of fraud is the share of fraud among
    the events times the density of the p-values of fraud::

        P(fraud | p) = fraud_share * f(p)

    Without labels nobody knows f, and no estimate of the density of all p-values can tell it (as the local
    false-discovery rate, Efron 2004, would): it is 1 whatever the share of fraud. But f has a bound. Among the
    densities that fall as a power of p, a p**(a - 1) with 0 < a <= 1, none is higher at p than 1 / (-e p ln p) if p is
    below 1/e, and than 1 beyond (Sellke, Bayarri & Berger 2001, "Calibration of p values for testing precise null
    hypotheses").

    The rule takes the bound for f. So an event is passed over only if alerting on it does not pay, as far as the stated
    share is right; of those that alert, some will not pay. If the p-values were calibrated on normal events alone, the
    probability is lower, and the bound holds all the same.

    Parameters
    ----------
    alert_cost : float
        What it costs to look into an alert, in the unit of the money at risk; above 0. If an alert in time saves only a
        part of the money, divide the cost by that part.
    fraud_share : float
        Share of fraud among the events, in (0, 1), as you expect it: 0.001 is one event in a thousand.

    Attributes
    ----------
    threshold_ : float
        Largest p-value that alerts on the held-out slice; 0 if none does. How strange an event must be depends on its
        money, see `level`.

    Notes
    -----
    Unknown money (NaN), and none or less (a refund), never alerts. The cost is counted for each event, although several
    alerts of an entity are one case and are looked into together. Nothing but the promise is learned from the held-out
    slice.
    """

    needs_money: ClassVar[bool] = True

    alert_cost: float
    fraud_share: float
    _typical: tuple[float, float] = field(default=(float("nan"), float("nan")), init=False, repr=False, compare=False)

    def _check_parameters(self) -> None:
        if not 0 < self.alert_cost < np.inf:
            raise ParameterError(f"ExpectedCost: expected alert_cost above 0, got {self.alert_cost!r}")
        check_share(self, "fraud_share", self.fraud_share)

    def _level(self, held: HeldOut) -> float:
        money = self._checked_money(held.money, held.p)
        known = money[~np.isnan(money)]
        if known.size:
            median, high = np.quantile(known, [0.5, 0.99])
            self._typical = float(median), float(high)
        return float(held.p[self._pays(held.p, money)].max(initial=0.0))

    def _alerting(self, held: HeldOut) -> Bools:
        return self._pays(held.p, self._checked_money(held.money, held.p))

    def _alerting_without(self, part: int, held: HeldOut, alerting: Bools) -> Bools:
        return alerting

    def probability(self, p: ArrayLike) -> Floats:
        """Highest probability of fraud that p-values `p` (m,) can stand for; NaN stays NaN. Falls with p.

        min(1, fraud_share / (-e p ln p)) for p < 1/e; beyond, fraud_share: such p say nothing.
        """
        self._check_parameters()
        p = np.clip(checked_p(p), np.finfo(np.float64).tiny, 1.0 / np.e)
        return np.asarray(np.minimum(1.0, self.fraud_share / (-np.e * p * np.log(p))))

    def level(self, money: ArrayLike) -> Floats:
        """The p-value at or below which events with `money` (m,) at risk alert; 0 if none can, NaN for NaN.

        Solves -e p ln p = fraud_share * money / alert_cost: p = exp(W(-fraud_share * money / (e alert_cost))), on the
        lower branch of Lambert's W; 1 if the share alone is worth the cost. For money up to the cost no probability is
        high enough.
        """
        self._check_parameters()
        money = np.asarray(money, dtype=np.float64)
        worth = self.fraud_share * money / self.alert_cost
        p = np.exp(special.lambertw(-np.clip(worth, 0.0, 1.0) / np.e, -1).real)
        p = np.where(worth > 1.0, 1.0, np.where(money > self.alert_cost, p, 0.0))
        return np.asarray(np.where(np.isnan(money), np.nan, p))

    def decide(self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None) -> Bools:
        """Which of the events with p-values `p` (m,) and `money` (m,) at risk alert; NaN in either never does.

        Raises
        ------
        ParameterError
            If the money is missing or has another length than `p`.
        """
        self._check_fitted()
        p = checked_p(p)
        return self._pays(p, self._checked_money(money, p))

    def batch_threshold(
        self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None
    ) -> float:
        """Largest p-value of the batch `p` (m,) that alerts, with `money` (m,) at risk; 0 if none does."""
        return float(checked_p(p)[self.decide(p, money=money)].max(initial=0.0))

    def describe(self) -> str:
        """The rule, what it asks of typical events, and its cost on the held-out slice."""
        self._check_fitted()
        median, high = self._typical
        return (
            f"Alerts where the money at risk times the highest probability of fraud (its share being "
            f"{self.fraud_share:.3g}) exceeds {rate_text(self.alert_cost)}: {self._typically('half', median)}, "
            f"{self._typically('one in a hundred', high)}; {self._cost()}; looking into them costs "
            f"{rate_text(self.expected_per_day * self.alert_cost)} a day."
        )

    def _typically(self, share: str, money: float) -> str:
        level = float(self.level([money])[0])
        if np.isnan(money):
            return f"{share} of the events of unknown money never"
        asks = f"at p <= {level:.3g}" if level > 0 else "never"
        return f"{share} of the events have {rate_text(money)} or more, which alerts {asks}"

    def _pays(self, p: Floats, money: Floats) -> Bools:
        return np.asarray((p <= self.level(money)) & (money > self.alert_cost))

    def _checked_money(self, money: ArrayLike | None, p: Floats) -> Floats:
        if money is None:
            raise ParameterError(
                "ExpectedCost: expected the money at risk of each event, got none; give fit and decide money=..., such "
                "as the amounts of the payments, or take a rule that needs none, such as Budget"
            )
        return checked_money(money, p)
