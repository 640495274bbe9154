"""The cost rule: what a p-value can say at most, and alerts exactly where they may pay."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.thresholds import ExpectedCost, count_cases

DAY = 86_400.0
Floats = NDArray[np.float64]


def held_out(n: int = 20_000, seed: int = 0) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
    rng = np.random.default_rng(seed)
    time = np.concatenate([[0.0, 10 * DAY], rng.uniform(0, 10 * DAY, n - 2)])
    return 1.0 - rng.random(n), time, rng.integers(0, 400, n), rng.lognormal(3, 1.5, n)


def fitted(alert_cost: float = 25.0, fraud_share: float = 0.001) -> ExpectedCost:
    p, time, entity, money = held_out()
    return ExpectedCost(alert_cost, fraud_share).fit(p, time, entity, money=money)


def test_the_probability_by_hand() -> None:
    rule = ExpectedCost(25.0, 0.01)
    # 1 / (-e p ln p) = 7.99 for p = 0.01 and 53.3 for p = 0.001
    np.testing.assert_allclose(rule.probability([0.01, 0.001]), [0.0799, 0.5326], rtol=1e-3)
    np.testing.assert_array_equal(rule.probability([1e-6, 1e-300, 0.0]), [1.0, 1.0, 1.0])
    np.testing.assert_allclose(rule.probability([0.4, 1.0]), [0.01, 0.01])
    assert np.isnan(rule.probability([np.nan]))[0]


def test_no_power_law_says_more_than_the_bound() -> None:
    p = np.geomspace(1e-12, 1.0, 200)
    rule = ExpectedCost(25.0, 1e-11)  # so small a share that the probability stays below 1
    powers = np.concatenate([np.geomspace(0.01, 1.0, 300), -1.0 / np.log(p[p < np.exp(-1)])])
    density = powers[:, None] * p ** (powers[:, None] - 1.0)
    highest = rule.probability(p)
    assert (1e-11 * density <= highest * (1 + 1e-12)).all()
    # and the bound is reached
    np.testing.assert_allclose(1e-11 * density.max(axis=0), highest, rtol=1e-9)


def test_the_level_is_where_an_alert_begins_to_pay() -> None:
    rule = ExpectedCost(25.0, 0.001)
    money = np.array([25.01, 40.0, 100.0, 2_000.0, 24_999.0])
    level = rule.level(money)
    assert (np.diff(level) > 0).all()
    np.testing.assert_allclose(money * rule.probability(level), 25.0 * np.ones(5), rtol=1e-9)
    np.testing.assert_array_equal(rule.level([25.0, 1.0, 0.0, -50.0]), 0.0)
    np.testing.assert_array_equal(rule.level([25_001.0, 1e9]), 1.0)  # the share alone is worth the cost
    assert np.isnan(rule.level([np.nan]))[0]


def test_alerts_are_where_the_expected_loss_exceeds_the_cost() -> None:
    rule = fitted()
    rng = np.random.default_rng(1)
    p, money = 10 ** rng.uniform(-9, 0, 50_000), rng.lognormal(5, 2, 50_000)
    decided = rule.decide(p, money=money)
    expected = money * rule.probability(p)
    clear = abs(expected / 25.0 - 1) > 1e-9
    np.testing.assert_array_equal(decided[clear], (expected > 25.0)[clear])
    assert 0.1 < decided.mean() < 0.9


def test_more_money_needs_less_strangeness() -> None:
    rule = fitted()
    np.testing.assert_array_equal(rule.decide([5e-4] * 3, money=[20.0, 100.0, 1_000.0]), [False, False, True])
    np.testing.assert_array_equal(rule.decide([1e-9] * 3, money=[20.0, 100.0, 1_000.0]), [False, True, True])


def test_a_dearer_alert_and_a_smaller_share_alert_less() -> None:
    p, _, _, money = held_out(seed=2)
    base = fitted().decide(p, money=money)
    for other in (fitted(alert_cost=100.0), fitted(fraud_share=1e-4)):
        fewer = other.decide(p, money=money)
        assert fewer.sum() < base.sum()
        assert not (fewer & ~base).any()


def test_unknown_money_and_refunds_never_alert() -> None:
    rule = fitted()
    assert not rule.decide([1e-12, 0.0, 0.0, np.nan], money=[np.nan, -1e6, 0.0, 1e6]).any()
    assert rule.decide([0.0], money=[1e6])[0]


def test_the_promise_is_that_of_the_held_out_slice() -> None:
    p, time, entity, money = held_out()
    rule = ExpectedCost(5.0, 0.01).fit(p, time, entity, money=money)
    decided = rule.decide(p, money=money)
    assert decided.sum() > 50
    assert rule.threshold_ == rule.batch_threshold(p, money=money) == p[decided].max()
    assert rule.expected_per_day == pytest.approx(count_cases(time, entity, decided, 24.0) / 10)
    assert rule.events_per_day == pytest.approx(decided.sum() / 10)
    assert rule.backtest_.events.sum() == decided.sum()
    assert fitted(alert_cost=1e9).threshold_ == 0
    assert fitted(alert_cost=1e9).batch_threshold(p, money=money) == 0


def test_the_description_tells_what_is_asked_of_typical_events() -> None:
    p, time, entity, _ = held_out()
    money = np.where(np.arange(p.size) % 40 == 0, 1_000.0, 20.0)
    text = ExpectedCost(25.0, 0.001).fit(p, time, entity, money=money).describe()
    assert "exceeds 25: half of the events have 20 or more, which alerts never, " in text
    assert "one in a hundred of the events have 1,000 or more, which alerts at p <= 0.00" in text
    assert "; back-test on 10 held-out days: " in text and text.endswith(" a day.")
    unknown = ExpectedCost(25.0, 0.001).fit(p, time, entity, money=np.full(p.size, np.nan)).describe()
    assert "nan" not in unknown and "unknown" in unknown


def test_missing_money_is_asked_for() -> None:
    p, time, entity, money = held_out(n=200)
    with pytest.raises(ParameterError, match="expected the money at risk of each event, got none"):
        ExpectedCost(25.0, 0.001).fit(p, time, entity)
    rule = fitted()
    for ask in (rule.decide, rule.batch_threshold):
        with pytest.raises(ParameterError, match="or take a rule that needs none, such as Budget"):
            ask(p)
    with pytest.raises(ParameterError, match="got none"):
        rule.decide_one(0.1)
    with pytest.raises(ParameterError, match="same length"):
        rule.decide(p, money=money[:-1])
    with pytest.raises(ParameterError, match="finite"):
        rule.decide([0.1], money=[np.inf])
    assert rule.needs_money
    assert rule.decide_one(1e-9, money=1e4)
