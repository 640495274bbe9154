"""Thresholds keep their promise on held-out data, and cases are counted as a person would count them."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.errors import NotFittedError, ParameterError
from anomaly.thresholds import (
    Budget,
    ExpectedCost,
    FalseAlertRate,
    FalseDiscoveryRate,
    OnlineFalseDiscoveryRate,
    PeaksOverThreshold,
    StreamThreshold,
    Threshold,
    case_numbers,
    count_cases,
)

DAY = 86_400.0
Floats = NDArray[np.float64]


def held_out(n: int = 40_000, days: float = 20.0, entities: int = 500, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    time = np.concatenate([[0.0, days * DAY], rng.uniform(0, days * DAY, n - 2)])
    return 1.0 - rng.random(n), time, rng.integers(0, entities, n).astype(np.float64)


def cases_by_hand(time: list[float], entity: list[int], decided: list[bool], hours: float) -> int:
    alerts = sorted((e, t) for t, e, d in zip(time, entity, decided, strict=True) if d)
    joined = sum(a[0] == b[0] and b[1] - a[1] < hours * 3600 for a, b in itertools.pairwise(alerts))
    return len(alerts) - joined


def every_rule() -> list[Threshold]:
    """One of each kind; a new rule is tested by being listed."""
    return [
        FalseAlertRate(0.005),
        Budget(20),
        FalseDiscoveryRate(0.2),
        FalseDiscoveryRate(0.2, "any"),
        OnlineFalseDiscoveryRate(0.2),
        PeaksOverThreshold(0.005),
        ExpectedCost(20.0, fraud_share=0.01),
    ]


events = st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 3), st.booleans()), max_size=60)


@settings(max_examples=100, deadline=None)
@given(events, st.sampled_from([0.0, 1.0, 24.0]))
def test_cases_are_counted_as_by_hand(rows: list[tuple[int, int, bool]], hours: float) -> None:
    time, entity, decided = [float(r[0]) for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    assert count_cases(time, entity, decided, hours) == cases_by_hand(time, entity, decided, hours)
    numbers = case_numbers(time, entity, decided, hours)
    np.testing.assert_array_equal(numbers >= 0, np.array(decided, dtype=bool))
    for case in np.unique(numbers[numbers >= 0]):
        assert np.unique(np.array(entity)[numbers == case]).size == 1


def test_a_case_goes_on_while_its_alerts_keep_coming() -> None:
    hours = np.array([0, 23, 46, 70, 71], dtype=np.float64)
    np.testing.assert_array_equal(case_numbers(hours * 3600, np.zeros(5), np.ones(5), 24.0), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(case_numbers(hours * 3600, [0, 1, 0, 1, 1], [1, 1, 0, 1, 1], 24.0), [0, 1, -1, 2, 2])


def test_false_alert_rate() -> None:
    p, time, entity = held_out()
    rule = FalseAlertRate(0.01).fit(p, time, entity)
    assert rule.threshold_ == 0.01
    assert rule.decide(p).mean() == pytest.approx(0.01, abs=0.002)
    assert rule.events_per_day == pytest.approx(20, rel=0.2)
    assert rule.expected_per_day == pytest.approx(count_cases(time, entity, p <= 0.01, 24.0) / 20)
    assert rule.low < rule.expected_per_day < rule.high


@pytest.mark.parametrize("per_day", [0.5, 1, 10, 50.5, 150])
def test_budget_is_met(per_day: float) -> None:
    p, time, entity = held_out()
    rule = Budget(per_day).fit(p, time, entity)
    cases = count_cases(time, entity, rule.decide(p), 24.0)
    assert per_day * 20 - 2 <= cases <= per_day * 20
    assert rule.expected_per_day == pytest.approx(cases / 20)
    assert rule.events_per_day >= rule.expected_per_day
    assert rule.filled_


def test_budget_holds_on_fresh_days() -> None:
    rule = Budget(40).fit(*held_out(seed=1))
    p, time, entity = held_out(seed=2)
    daily = [
        count_cases(time[day], entity[day], rule.decide(p[day]), 24.0)
        for day in (np.floor(time / DAY) == d for d in range(20))
    ]
    inside = np.mean([rule.low <= cases <= rule.high for cases in daily])
    assert inside >= 0.75
    assert np.mean(daily) == pytest.approx(40, rel=0.15)


def test_budget_of_less_than_one_case_extrapolates() -> None:
    p, time, entity = held_out(n=2_000)
    rule = Budget(0.005).fit(p, time, entity)
    assert 0 < rule.threshold_ < p.min()
    assert rule.threshold_ == pytest.approx(0.1 * p.min())
    assert rule.expected_per_day == rule.low == 0
    assert rule.high == pytest.approx(3 / 20)


def test_budget_above_what_there_is() -> None:
    p, time, entity = held_out(n=60)
    rule = Budget(1_000).fit(p, time, entity)
    assert rule.threshold_ == 1.0
    assert rule.decide(p).all()
    assert not rule.filled_
    assert "only 3 events a day, fewer than the budget, so every event alerts" in rule.describe()


def test_budget_that_merging_cases_cannot_fill() -> None:
    p, time, entity = held_out(n=20_000, entities=10)
    rule = Budget(900).fit(p, time, entity)
    assert not rule.filled_
    assert rule.threshold_ < 1
    # alerting on everything would be ten cases in all
    assert count_cases(time, entity, rule.decide(p), 24.0) > 50
    assert "run cases together" in rule.describe()


def test_budget_with_ties_stays_below() -> None:
    p, time, entity = held_out()
    p[:2_000] = 1e-4
    rule = Budget(10).fit(p, time, entity)
    assert rule.decide(p).sum() <= 200
    assert rule.decide([1e-9])[0]


def test_false_discovery_rate_by_hand() -> None:
    # q i / m = 0.01, 0.02, 0.03, 0.04, 0.05: the third one passes, and takes the second along
    p = np.array([0.001, 0.025, 0.03, 0.2, 0.9])
    rule = FalseDiscoveryRate(0.05).fit(p, np.arange(5) * DAY, np.arange(5))
    np.testing.assert_array_equal(rule.decide(p), [True, True, True, False, False])
    np.testing.assert_array_equal(rule.decide([0.02, np.nan, 0.03]), [True, False, True])
    np.testing.assert_array_equal(rule.decide([np.nan]), [False])
    assert rule.decide([]).size == 0


def test_false_discovery_rate_keeps_q() -> None:
    rng = np.random.default_rng(5)
    rule = FalseDiscoveryRate(0.2).fit(*held_out(n=1_000))
    shares = []
    for _ in range(100):
        p = np.concatenate([1.0 - rng.random(900), 1e-4 * (1.0 - rng.random(100))])
        alerts = rule.decide(p)
        assert alerts[900:].mean() > 0.9
        shares.append(alerts[:900].sum() / alerts.sum())
    assert np.mean(shares) < 0.2


def test_nan_never_alerts_and_does_not_count() -> None:
    p, time, entity = held_out(n=5_000)
    full = Budget(20).fit(p, time, entity)
    padded = Budget(20).fit(
        np.concatenate([p, np.full(999, np.nan)]),
        np.concatenate([time, np.zeros(999)]),
        np.concatenate([entity, np.zeros(999)]),
    )
    assert padded.threshold_ == full.threshold_
    for rule in (full, FalseAlertRate(0.5).fit(p, time, entity), FalseDiscoveryRate(0.5).fit(p, time, entity)):
        assert not rule.decide([np.nan])[0]


def test_short_slice_is_taken_as_one_day() -> None:
    rng = np.random.default_rng(6)
    rule = FalseAlertRate(0.1).fit(1 - rng.random(1_000), rng.uniform(0, 3600, 1_000), np.arange(1_000))
    assert rule.expected_per_day == rule.events_per_day
    assert rule.expected_per_day == pytest.approx(100, abs=30)


def test_busy_days_widen_the_interval() -> None:
    p, time, _ = held_out(n=30_000, days=20)
    calm = FalseAlertRate(0.02).fit(p, time, np.arange(30_000))
    busy = FalseAlertRate(0.02).fit(np.where(np.floor(time / DAY) % 2 == 0, p / 2, 1 - p / 2), time, np.arange(30_000))
    assert busy.high - busy.low > 1.5 * (calm.high - calm.low)


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: type(rule).__name__)
def test_every_rule_keeps_the_contract(rule: Threshold) -> None:
    p, time, entity = held_out(n=10_000)
    money = np.random.default_rng(8).lognormal(3, 1, p.size)
    with pytest.raises(NotFittedError):
        rule.describe()
    with pytest.raises(NotFittedError):
        rule.decide([0.1], money=[1.0])
    assert rule.fit(p, time, entity, money=money) is rule
    text = rule.describe()
    assert re.search(r"cases a day on held-out data \(9 days in 10: [\d.,]+ to [\d.,]+\)", text)
    assert re.search(r"; back-test on 20 held-out days: \d+ within", text)
    assert "nan" not in text
    assert rule.low <= rule.expected_per_day <= rule.high
    assert rule.events_per_day >= rule.expected_per_day

    batch = np.concatenate([p[:3_000], np.full(40, 1e-9), [np.nan]])
    amounts = np.concatenate([money[:3_000], np.full(41, 1e4)])
    decided = rule.decide(batch, money=amounts)
    assert decided.shape == batch.shape and decided.dtype == np.bool_
    assert decided[3_000:3_040].all() and not decided[-1]
    np.testing.assert_array_equal(rule.decide(batch, money=amounts), decided)  # deciding teaches nothing
    assert batch[decided].max() <= rule.batch_threshold(batch, money=amounts) < 0.05
    assert rule.decide([], money=[]).shape == (0,)
    again = (rule.threshold_, rule.expected_per_day, rule.low, rule.high, text)
    rule.fit(p, time, entity, money=money)
    assert again == (rule.threshold_, rule.expected_per_day, rule.low, rule.high, rule.describe())


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: type(rule).__name__)
def test_one_event_is_decided_as_in_a_batch(rule: Threshold) -> None:
    p, time, entity = held_out(n=10_000)
    rule.fit(p, time, entity, money=np.full(p.size, 100.0))
    if isinstance(rule, FalseDiscoveryRate):
        with pytest.raises(ParameterError, match=r"for a stream take OnlineFalseDiscoveryRate\(0.2\)"):
            rule.decide_one(0.1)
        return
    for value in (1e-12, 0.3, float("nan"), 1.0):
        batch = rule.decide([value], money=[100.0])
        alerts = rule.decide_one(value, money=100.0)
        assert isinstance(alerts, bool)
        assert alerts == batch[0] == (value < 1e-6)
    with pytest.raises(ParameterError, match="within 0 and 1"):
        rule.decide_one(1.5, money=100.0)
    assert isinstance(rule, StreamThreshold) == hasattr(rule, "state")


def test_descriptions_read_well() -> None:
    p, time, entity = held_out()
    assert (
        FalseAlertRate(0.0004)
        .fit(p, time, entity)
        .describe()
        .startswith("Alerts on 1 in 2,500 normal events (p <= 0.0004): ")
    )
    assert FalseAlertRate(0.25).fit(p, time, entity).describe().startswith("Alerts on 25 % of the normal events")


@pytest.mark.parametrize(
    "rule",
    [
        FalseAlertRate(0.0),
        FalseAlertRate(1.0),
        Budget(0),
        Budget(float("inf")),
        Budget(float("nan")),
        FalseDiscoveryRate(0),
        FalseDiscoveryRate(1.5),
        FalseDiscoveryRate(0.1, "none"),  # type: ignore[arg-type]
        OnlineFalseDiscoveryRate(1.0),
        PeaksOverThreshold(0.0),
        PeaksOverThreshold(0.01),
        PeaksOverThreshold(0.001, peaks=99),
        ExpectedCost(0.0, 0.01),
        ExpectedCost(float("nan"), 0.01),
        ExpectedCost(10.0, 0.0),
        Budget(5, cooldown_hours=-1),
    ],
)
def test_parameters_are_checked_in_fit(rule: Threshold) -> None:
    p, time, entity = held_out(n=100)
    with pytest.raises(ParameterError, match="expected"):
        rule.fit(p, time, entity, money=np.ones(100))


def test_bad_input_is_refused() -> None:
    p, time, entity = held_out(n=100)
    for wrong in (
        ([], [], []),
        ([np.nan], [0.0], [0]),
        (p, time[:-1], entity),
        (p + 1, time, entity),
        (p, time * np.nan, entity),
        (p.reshape(10, 10), time, entity),
    ):
        with pytest.raises(ParameterError):
            FalseAlertRate(0.1).fit(*wrong)
    with pytest.raises(ParameterError, match="one length"):
        count_cases([0.0], [0, 1], [True], 24.0)
