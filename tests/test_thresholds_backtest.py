"""Each held-out day is judged by a rule that has not seen it: against a slow version, and where the answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from anomaly.thresholds import BackTest, Budget, FalseAlertRate, FalseDiscoveryRate, Threshold, case_numbers
from anomaly.thresholds.heldout import HeldOut

DAY = 86_400.0
Floats = NDArray[np.float64]
Level = Callable[[Floats, Floats, Floats, float, float], float]


def held_out(n: int = 1_500, days: float = 5.3, entities: int = 40, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    time = 1e9 + np.concatenate([[0.0, days * DAY], rng.uniform(0, days * DAY, n - 2)])
    return 1.0 - rng.random(n), time, rng.integers(0, entities, n).astype(np.float64)


def slow_cases(time: Floats, entity: Floats, decided: NDArray[np.bool_], hours: float) -> list[float]:
    """Times at which cases begin."""
    numbers = case_numbers(time, entity, decided, hours)
    return [float(time[numbers == case].min()) for case in range(int(numbers.max(initial=-1)) + 1)]


def slow_interval(daily: list[float]) -> tuple[float, float]:
    mean = float(np.mean(daily))
    if mean == 0:
        return 0.0, 3 / len(daily)
    spread = float(np.var(daily, ddof=1)) if len(daily) > 1 else mean
    variance = max(mean, spread) * (1 + 1 / len(daily))
    law = stats.nbinom(mean**2 / (variance - mean), mean / variance)
    return float(law.ppf(0.05)), float(law.ppf(0.95))


def slow_budget(per_day: float) -> Level:
    def level(p: Floats, time: Floats, entity: Floats, days: float, hours: float) -> float:
        levels, target = np.sort(p), per_day * days
        count = [len(slow_cases(time, entity, p <= value, hours)) for value in levels[: int(4 * target) + 4]]
        if len(levels) <= target:
            return 1.0
        over = next(i for i, cases in enumerate(count) if cases > target)
        return float(levels[over - 1]) if over else float(levels[0] * min(1, target)) * (1 - 1e-15)

    return level


def slow_rate(rate: float) -> Level:
    def level(p: Floats, *_: object) -> float:
        # just below the first one whose conformal p-value among the others is over the rate
        over = [value for value in p if (1 + np.sum(p <= value)) / (len(p) + 1) > rate]
        return float(np.nextafter(min(over), 0.0))

    return level


def slow_backtest(level: Level, p: Floats, time: Floats, entity: Floats, hours: float) -> BackTest:
    days = (time.max() - time.min()) / DAY
    parts = round(days)
    length = days / parts
    start = time.min() + np.arange(parts) * length * DAY
    rows = []
    for begin in start:
        last = begin == start[-1]
        inside = (time >= begin) & (last | (time < begin + length * DAY))
        out = ~inside
        t = level(p[out], time[out], entity[out], days - length, hours)
        opens = np.array(slow_cases(time, entity, p <= t, hours))
        cases = int(np.sum((opens >= begin) & (last | (opens < begin + length * DAY))))
        others = np.array(slow_cases(time[out], entity[out], p[out] <= t, hours))
        elsewhere = start[start != begin]
        daily = [float(np.sum((others >= one) & (others < one + length * DAY))) / length for one in elsewhere]
        low, high = slow_interval(daily)
        rows.append((cases, int(np.sum((p <= t) & inside)), low * length, high * length))
    cases_, events, low_, high_ = (np.array(column) for column in zip(*rows, strict=True))
    return BackTest(start, cases_, events, low_, high_)


@pytest.mark.parametrize("hours", [0.0, 6.0, 24.0, 60.0])
@pytest.mark.parametrize(
    ("rule", "slow"),
    [
        (Budget(7.5), slow_budget(7.5)),
        (Budget(0.05), slow_budget(0.05)),
        (FalseAlertRate(0.02), slow_rate(0.02)),
    ],
    ids=["budget", "small budget", "rate"],
)
def test_the_back_test_is_the_slow_one(rule: Threshold, slow: Level, hours: float) -> None:
    p, time, entity = held_out(n=400)
    if isinstance(rule, FalseAlertRate):
        p = np.concatenate([p, held_out(n=400, seed=1)[0]])
        time, entity = np.tile(time, 2), np.tile(entity, 2) + 1_000 * np.repeat([0, 1], 400)
    rule.cooldown_hours = hours
    fast = rule.fit(p, time, entity).backtest_
    oracle = slow_backtest(slow, p, time, entity, hours)
    np.testing.assert_allclose(fast.start, oracle.start, rtol=1e-15)
    np.testing.assert_array_equal(fast.cases, oracle.cases)
    np.testing.assert_array_equal(fast.events, oracle.events)
    np.testing.assert_allclose(fast.low, oracle.low)
    np.testing.assert_allclose(fast.high, oracle.high)
    assert str(fast) == f"back-test on 5 held-out days: {oracle.within.sum()} within"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 400_000), st.integers(0, 2)), min_size=2, max_size=50),
    st.sampled_from([0.0, 5.0, 24.0, 100.0]),
)
def test_cases_are_counted_at_any_level(rows: list[tuple[int, int, int]], hours: float) -> None:
    p, time, entity = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    p /= 16  # few levels, so that there are ties
    whole = HeldOut.of(p, time, entity, cooldown_hours=hours)
    for part in (None, *range(whole.parts)):
        held = whole if part is None else whole.without(part)
        keep = np.ones(len(rows), dtype=np.bool_) if part is None else whole.part != part
        stays = np.zeros(len(rows), dtype=np.bool_)
        stays[np.lexsort((time, entity))] = keep
        np.testing.assert_array_equal(held.levels, np.sort(p[stays]))
        for level in (0.0, *np.unique(p), 1.0):
            assert held.cases(level) == len(slow_cases(time[stays], entity[stays], p[stays] <= level, hours))
            assert held.events(level) == np.sum(p[stays] <= level)


def test_a_bad_day_is_found_by_the_others() -> None:
    p, time, entity = held_out(n=20_000, days=20.0, entities=20_000)
    seventh = np.floor((time - time.min()) / DAY) == 7
    burst = np.flatnonzero(seventh)[:60]
    p[burst] = 1e-6
    rule = Budget(10).fit(p, time, entity)
    assert rule.backtest_.cases[7] >= 60
    assert not rule.backtest_.within[7]
    assert rule.backtest_.high[7] < 25 < rule.high  # the day itself widens the interval of the whole slice
    assert rule.backtest_.within.sum() >= 17
    assert f"back-test on 20 held-out days: {rule.backtest_.within.sum()} within" in rule.describe()


def test_calm_days_are_within_about_nine_times_in_ten() -> None:
    within = [
        FalseAlertRate(0.01).fit(*held_out(n=20_000, days=20.0, entities=20_000, seed=seed)).backtest_.within
        for seed in range(10)
    ]
    assert 0.85 <= np.mean(within) <= 0.99


def test_a_rate_is_learned_anew_without_the_day() -> None:
    # the last day is four times as strange, and p is uniform over all of them
    p, time, entity = held_out(n=40_000, days=20.0, entities=40_000)
    late = time - time.min() > 19 * DAY
    p = np.where(late, p / 4, p)
    p = stats.rankdata(p) / (p.size + 1)  # calibrated on this very slice
    rule = FalseAlertRate(0.01).fit(p, time, entity)
    assert rule.expected_per_day == pytest.approx(20, abs=0.2)  # right by construction
    assert rule.backtest_.cases[-1] > 1.1 * np.sum(late & (p <= 0.01))  # the others alone call more of that day strange
    assert not rule.backtest_.within[-1]


def test_a_rare_rate_is_scaled_from_the_ten_strangest() -> None:
    p, time, entity = held_out(n=2_000)
    rule = FalseAlertRate(0.001)
    held = HeldOut.of(p, time, entity, cooldown_hours=24.0)
    others = np.sort(held.p[held.part != 2])
    assert rule._level_without(2, held) == pytest.approx(others[9] * 0.001 * (others.size + 1) / 10)
    few = HeldOut.of(p[:8], time[:8], entity[:8], cooldown_hours=24.0)
    assert rule._level_without(2, few) == 0.001


def test_ties_do_not_exceed_a_rate() -> None:
    p, time, entity = held_out(n=4_000)
    p = np.maximum(p, 0.2)  # a fifth of the events tie at 0.2: none is as rare as the rate
    assert FalseAlertRate(0.05).fit(p, time, entity).backtest_.events.sum() == 0


def test_a_rule_of_the_batch_has_its_promise_tested_only() -> None:
    p, time, entity = held_out(n=3_000)
    p[:40] = 1e-7
    rule = FalseDiscoveryRate(0.1).fit(p, time, entity)
    decided = rule.decide(p, entity=entity)
    assert rule.backtest_.events.sum() == decided.sum() >= 40
    assert rule.backtest_.cases.sum() == len(slow_cases(time, entity, decided, 24.0))


def test_a_single_day_has_no_back_test() -> None:
    p, time, entity = held_out(n=200, days=0.5)
    rule = Budget(5).fit(p, time, entity)
    assert rule.backtest_.cases.size == 0
    assert "; no back-test: the held-out slice is a single day." in rule.describe()


def test_days_add_up() -> None:
    p, time, entity = held_out(n=5_000, days=9.6)
    table = FalseAlertRate(0.03).fit(p, time, entity).backtest_
    assert table.start.size == table.cases.size == table.events.size == table.low.size == table.within.size == 10
    assert all(b - a == pytest.approx(0.96 * DAY) for a, b in itertools.pairwise(table.start))
    assert (table.cases <= table.events).all()
    assert table.events.sum() == pytest.approx(150, abs=40)


def test_the_twin_that_is_tested_leaves_the_rule_alone() -> None:
    p, time, entity = held_out(n=60, days=6.0)
    rule = Budget(9.9).fit(p, time, entity)  # ten a day in all: fewer than the budget without some of the days
    again = Budget(9.9)
    again._level(HeldOut.of(p, time, entity, cooldown_hours=24.0))
    assert rule.filled_ == again.filled_
    assert rule._held_per_day == again._held_per_day
