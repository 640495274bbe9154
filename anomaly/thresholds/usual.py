"""The usual decision rules by what is wished for: one wish, one rule."""

from __future__ import annotations

from collections.abc import Callable

from anomaly.errors import ParameterError
from anomaly.thresholds.base import Threshold
from anomaly.thresholds.cost import ExpectedCost
from anomaly.thresholds.discovery import FalseDiscoveryRate
from anomaly.thresholds.rates import Budget, FalseAlertRate

BUDGET_PER_DAY = 50.0  # cases that a desk looks into, unless told otherwise


def usual_rule(
    rule: Threshold | None = None,
    *,
    budget_per_day: float | None = None,
    false_alert_rate: float | None = None,
    false_discovery_rate: float | None = None,
    alert_cost: float | None = None,
    fraud_share: float | None = None,
    cooldown_hours: float = 24.0,
) -> Threshold:
    """Return the rule of the one wish that is given, not yet fitted; parameters as for `Detector.threshold`.

    Raises
    ------
    ParameterError
        If there are several wishes, or one of `alert_cost` and `fraud_share` without the other.
    """
    makers: dict[str, Callable[[float], Threshold]] = {
        "budget_per_day": lambda cases: Budget(cases, cooldown_hours=cooldown_hours),
        "false_alert_rate": lambda share: FalseAlertRate(share, cooldown_hours=cooldown_hours),
        "false_discovery_rate": lambda share: FalseDiscoveryRate(share, cooldown_hours=cooldown_hours),
        "alert_cost": lambda cost: ExpectedCost(cost, fraud_share or 0.0, cooldown_hours=cooldown_hours),
    }
    wishes = (budget_per_day, false_alert_rate, false_discovery_rate, alert_cost)
    given = {name: value for name, value in zip(makers, wishes, strict=True) if value is not None}
    if len(given) + (rule is not None) > 1:
        raise ParameterError(f"threshold: give one of rule, {', '.join(makers)}")
    if (alert_cost is None) != (fraud_share is None):
        raise ParameterError("threshold: alert_cost and fraud_share go together; give both")
    name, value = next(iter(given.items()), ("budget_per_day", BUDGET_PER_DAY))
    return rule or makers[name](value)
