"""Alerting events -> cases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ParameterError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

HOUR = 3_600.0


def case_numbers(time: ArrayLike, entity: ArrayLike, decided: ArrayLike, cooldown_hours: float) -> Integers:
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

    Raises
    ------
    ParameterError
        If the lengths differ or the cool-down is negative.
    """
    time, entity, decided = np.asarray(time, dtype=np.float64), np.asarray(entity), np.asarray(decided, dtype=np.bool_)
    if not time.shape == entity.shape == decided.shape or time.ndim != 1:
        raise ParameterError(
            f"case_numbers: expected time, entity and decided of one length (n,), got {time.shape}, "
            f"{entity.shape} and {decided.shape}"
        )
    check_cooldown("case_numbers", cooldown_hours)
    alerting = np.flatnonzero(decided)
    alerting = alerting[np.lexsort((time[alerting], entity[alerting]))]
    numbers = np.full(time.size, -1, dtype=np.int64)
    numbers[alerting] = np.cumsum(starts(time[alerting], entity[alerting], cooldown_hours)) - 1
    return numbers


def count_cases(time: ArrayLike, entity: ArrayLike, decided: ArrayLike, cooldown_hours: float) -> int:
    """How many cases the alerting events make; see `case_numbers`."""
    return int(case_numbers(time, entity, decided, cooldown_hours).max(initial=-1)) + 1


def starts(time: Floats, entity: NDArray[Any], cooldown_hours: float) -> Bools:
    """Which of the alerting events open a case; they come sorted by entity and time."""
    opens = np.ones(time.size, dtype=np.bool_)
    opens[1:] = (entity[1:] != entity[:-1]) | (np.diff(time) >= cooldown_hours * HOUR)
    return opens


def check_cooldown(who: str, cooldown_hours: float) -> None:
    """Refuse a negative or endless cool-down."""
    if not 0 <= cooldown_hours < np.inf:
        raise ParameterError(f"{who}: expected cooldown_hours of at least 0, got {cooldown_hours!r}")


def checked_p(p: ArrayLike) -> Floats:
    """P-values (n,) as float64; NaN may be among them."""
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1:
        raise ParameterError(f"expected p-values of shape (n,), got shape {p.shape}")
    if np.any((p < 0) | (p > 1)):
        raise ParameterError(
            f"expected p-values within 0 and 1, got {np.nanmin(p):g} to {np.nanmax(p):g}; "
            "scores and surprises are no p-values"
        )
    return p


def checked_one(p: float) -> float:
    """A single p-value, or NaN, as `checked_p` would take it; a stream has no time for arrays."""
    value = float(p)
    return value if 0 <= value <= 1 or value != value else float(checked_p([value])[0])


def checked_money(money: ArrayLike, p: Floats) -> Floats:
    """Money at risk (n,) of the events with p-values `p` (n,), as float64; NaN where it is unknown."""
    money = np.asarray(money, dtype=np.float64)
    if money.shape != p.shape:
        raise ParameterError(
            f"expected money of the same length as p, one amount an event, got {money.shape} and {p.shape}"
        )
    if np.isinf(money).any():
        raise ParameterError("expected finite money at risk, got an infinite amount; mark what is unknown as NaN")
    return money
