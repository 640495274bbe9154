"""Metrics agree with scikit-learn and with cases small enough to count by hand."""

from __future__ import annotations

import math
import statistics
import time as clock
from collections.abc import Callable
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.evaluation import (
    Delay,
    Saved,
    average_precision,
    brier,
    card_precision_at_k,
    card_precision_by_day,
    daily,
    detection_delay,
    expected_calibration_error,
    money_saved,
    per_kind,
    precision_at_budget,
    recall_at_budget,
    recall_at_false_alerts,
    roc_auc,
    rule_amount,
    rule_ratio,
)

rankings = st.lists(
    st.tuples(st.sampled_from([-1e300, -2.0, 0.0, 0.1, 0.5, 3.0, 1e300]), st.booleans()), min_size=2, max_size=60
)


@settings(max_examples=40, deadline=None)
@given(rankings)
def test_as_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score, label = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    if not label.any():
        label[0] = True
    assert average_precision(score, label) == pytest.approx(metrics.average_precision_score(label, score))
    if not label.all():
        assert roc_auc(score, label) == pytest.approx(metrics.roc_auc_score(label, score))


def test_as_scikit_learn_on_many_events() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    label = rng.random(50_000) < 0.01
    score = np.round(rng.normal(size=50_000) + 2.0 * label, 2)
    assert roc_auc(score, label) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
    assert average_precision(score, label) == pytest.approx(metrics.average_precision_score(label, score), abs=1e-12)


def test_rankings_by_hand() -> None:
    assert roc_auc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert roc_auc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert roc_auc([1, 1, 1, 1], [0, 1, 0, 1]) == 0.5
    assert average_precision([4, 3, 2, 1], [1, 0, 1, 0]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([1, 1, 1, 1], [1, 0, 0, 0]) == 0.25


def test_kinds_are_measured_without_each_other() -> None:
    score = np.array([9.0, 8.0, 7.0, 2.0, 1.0])
    label = np.array([1, 1, 0, 1, 0])
    kind = np.array(["theft", "theft", "ignored", "test", ""])
    found = per_kind(score, label, kind)
    assert list(found) == ["test", "theft"]
    assert found["theft"] == {"auc": 1.0, "ap": 1.0, "positives": 2, "base_rate": 0.5}
    assert found["test"] == {"auc": 0.5, "ap": 0.5, "positives": 1, "base_rate": pytest.approx(1 / 3)}
    assert list(per_kind(score, label, np.array([2, 1, 0, 3, 0]))) == ["1", "2", "3"]


def test_days() -> None:
    np.testing.assert_array_equal(daily([0.0, 86_399.9, 86_400.0, -1.0]), [0, 0, 1, -1])
    with pytest.raises(ParameterError):
        daily([np.nan])


# Day 0: card 1 scores 9 (its fraud) and 2, card 2 scores 8 (genuine), card 3 scores 7 (its only fraud at 1).
# Day 1: card 1 again with fraud and the top score; card 2 with fraud.
DAYS = np.array([0, 0, 0, 0, 0, 1, 1, 1])
CARDS = np.array([1, 1, 2, 3, 3, 1, 2, 3])
SCORES = np.array([9.0, 2.0, 8.0, 7.0, 1.0, 9.0, 5.0, 6.0])
FRAUD = np.array([1, 0, 0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("k", "drop", "expected"),
    [
        (1, True, [1 / 1, 0 / 1]),  # card 1 is found on day 0; on day 1 card 3 is on top
        (1, False, [1 / 1, 1 / 1]),
        (2, True, [1 / 2, 1 / 2]),  # day 0: cards 1, 2; day 1, without card 1: cards 3, 2
        (2, False, [1 / 2, 1 / 2]),  # day 1: cards 1, 3
        (3, True, [2 / 3, 1 / 3]),  # day 0: cards 1, 2, 3; day 1: only card 2 is left, out of k = 3
        (100, False, [2 / 100, 2 / 100]),
    ],
)
def test_card_precision_by_hand(k: int, drop: bool, expected: list[float]) -> None:
    for order in (np.arange(8), np.arange(8)[::-1], np.random.default_rng(1).permutation(8)):
        days, precision = card_precision_by_day(DAYS[order], CARDS[order], SCORES[order], FRAUD[order], k, drop)
        np.testing.assert_array_equal(days, [0, 1])
        np.testing.assert_allclose(precision, expected)
        mean = card_precision_at_k(DAYS[order], CARDS[order], SCORES[order], FRAUD[order], k, drop)
        assert mean == pytest.approx(np.mean(expected))


def test_a_card_missed_on_its_day_stays_in() -> None:
    days, cards = np.array([0, 0, 1]), np.array([1, 2, 2])
    precision = card_precision_by_day(days, cards, np.array([5.0, 1.0, 5.0]), np.array([0, 1, 1]), 1)[1]
    np.testing.assert_array_equal(precision, [0.0, 1.0])


def handbook(
    day: NDArray[np.int64], card: NDArray[np.int64], score: NDArray[np.float64], fraud: NDArray[np.bool_], k: int
) -> float:
    """The Handbook's definition, a card at a time."""
    detected: set[int] = set()
    shares = []
    for d in sorted(set(day.tolist())):
        best: dict[int, float] = {}
        bad: dict[int, bool] = {}
        for c, s, f in zip(card[day == d].tolist(), score[day == d].tolist(), fraud[day == d].tolist(), strict=True):
            if c not in detected:
                best[c], bad[c] = max(best.get(c, -np.inf), s), bad.get(c, False) or f
        hits = {c for c in sorted(best, key=lambda c: -best[c])[:k] if bad[c]}
        detected |= hits
        shares.append(len(hits) / k)
    return float(np.mean(shares))


def test_card_precision_against_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    day, card, score = rng.integers(10, 20, 3_000), rng.integers(0, 200, 3_000), rng.normal(size=3_000)
    fraud = rng.random(3_000) < 0.05
    for k in (1, 10, 500):
        assert card_precision_at_k(day, card, score, fraud, k) == pytest.approx(handbook(day, card, score, fraud, k))


def test_recall_at_budget_by_hand() -> None:
    time = np.array([0, 1, 2, 86_400, 86_401, 86_402], dtype=np.float64)
    score, label = np.array([3.0, 2.0, 1.0, 1.0, 1.0, 0.0]), np.array([0, 1, 1, 1, 0, 0])
    assert recall_at_budget(time, score, label, 1) == pytest.approx(1 / 3)  # the tie goes to the earlier event
    assert recall_at_budget(time, score, label, 2) == pytest.approx(2 / 3)
    assert recall_at_budget(time[::-1], score[::-1], label[::-1], 1) == pytest.approx(1 / 3)
    assert recall_at_budget(time, score, label, 99) == 1.0


def test_rule_ratio_by_hand() -> None:
    entity = np.array([7, 7, 3, 7, 7, 3, 7])
    time = np.array([0, 1, 0, 2, 3, 5, 4], dtype=np.float64)
    amount = np.array([10.0, 30.0, 4.0, 40.0, np.nan, 2.0, 60.0])
    expected = [10 / 20, 30 / 10, 4 / 20, 40 / 20, np.nan, 2 / 4, 60 / 30]
    np.testing.assert_allclose(rule_ratio(entity, amount, time, population=20.0), expected)
    order = np.random.default_rng(3).permutation(7)
    np.testing.assert_allclose(rule_ratio(entity[order], amount[order], time[order], 20.0), np.array(expected)[order])
    np.testing.assert_array_equal(rule_amount(amount), amount)


def test_rule_ratio_is_causal() -> None:
    rng = np.random.default_rng(4)
    entity, amount, time = rng.integers(0, 20, 500), rng.lognormal(size=500), np.sort(rng.random(500))
    before = rule_ratio(entity[:300], amount[:300], time[:300], 1.0)
    np.testing.assert_array_equal(rule_ratio(entity, amount, time, 1.0)[:300], before)


def test_rule_ratio_without_a_usable_median() -> None:
    refunds = rule_ratio(np.zeros(3), np.array([-5.0, 0.0, 8.0]), np.arange(3))
    np.testing.assert_allclose(refunds, [-5 / 8, 0.0, 1.0])
    np.testing.assert_allclose(rule_ratio(np.zeros(2), np.zeros(2), np.arange(2)), [0.0, 0.0])
    assert rule_ratio([], [], []).size == 0
    with pytest.raises(ParameterError, match="population"):
        rule_ratio([0], [1.0], [0.0], population=0.0)


@pytest.mark.parametrize("entities", [5_000, 1])
def test_rule_ratio_is_fast(entities: int) -> None:
    rng = np.random.default_rng(5)
    n = 400_000
    entity, amount, time = rng.integers(0, entities, n), rng.lognormal(size=n), np.arange(n, dtype=np.float64)
    start = clock.perf_counter()
    ratio = rule_ratio(entity, amount, time)
    assert clock.perf_counter() - start < 5.0
    last = np.flatnonzero(entity == entity[-1])
    assert ratio[-1] == pytest.approx(amount[-1] / np.median(amount[last[:-1]]))


@pytest.mark.parametrize(
    "call",
    [
        lambda: roc_auc([1.0, np.nan], [0, 1]),
        lambda: roc_auc([1.0, 2.0], [1, 1]),
        lambda: roc_auc([1.0, 2.0], [0, 0]),
        lambda: roc_auc([1.0, 2.0], [0, 2]),
        lambda: roc_auc([1.0, 2.0], [0, np.nan]),
        lambda: average_precision([1.0, 2.0], [0, 0]),
        lambda: average_precision([1.0, 2.0], [0]),
        lambda: per_kind([1.0, 2.0], [0, 1], ["a"]),
        lambda: card_precision_at_k([0], [0], [1.0], [1], k=0),
        lambda: card_precision_at_k([], [], [], []),
        lambda: recall_at_budget([0.0], [1.0], [1], 0),
        lambda: rule_ratio([0], [1.0, 2.0], [0.0]),
        lambda: precision_at_budget([0.0], [1.0], [1], 0),
        lambda: precision_at_budget([0.0], [np.nan], [1], 1),
        lambda: precision_at_budget([0.0], [1.0], [0], 1),
        lambda: precision_at_budget([0.0, 1.0], [1.0], [1], 1),
        lambda: recall_at_false_alerts([1.0, 2.0], [1, 1], 0.1),
        lambda: recall_at_false_alerts([1.0, 2.0], [0, 0], 0.1),
        lambda: recall_at_false_alerts([1.0, np.nan], [0, 1], 0.1),
        lambda: recall_at_false_alerts([1.0, 2.0], [0, 1], 1.1),
        lambda: recall_at_false_alerts([1.0, 2.0], [0, 1], np.nan),
        lambda: detection_delay([1], [0.0], [1.0], [np.nan], [1], 1.0),
        lambda: detection_delay([1], [0.0], [1.0], [1.0], [0], 1.0),
        lambda: detection_delay([1], [0.0], [1.0], [1.0], [1], np.nan),
        lambda: detection_delay([1], [0.0], [1.0], [1.0], [1], 1.0, gap_hours=-1.0),
        lambda: detection_delay([1], [np.inf], [1.0], [1.0], [1], 1.0),
        lambda: detection_delay([1], [0.0], [np.nan], [1.0], [1], 1.0),
        lambda: detection_delay([1, 2], [0.0], [1.0], [1.0], [1], 1.0),
        lambda: money_saved([1], [0.0], [1.0], [np.nan], [1], 1),
        lambda: money_saved([1], [0.0], [1.0], [1.0], [0], 1),
        lambda: money_saved([1], [0.0], [-1.0], [1.0], [1], 1),
        lambda: money_saved([1], [0.0], [np.inf], [1.0], [1], 1),
        lambda: money_saved([1], [0.0], [1.0], [1.0], [1], 0),
        lambda: money_saved([1], [0.0], [1.0], [1.0], [1], 1, alert_cost=-1.0),
        lambda: brier([0.5, 1.5], [0, 1]),
        lambda: brier([0.5, np.nan], [0, 1]),
        lambda: brier([0.5, 0.5], [0, 0]),
        lambda: expected_calibration_error([-0.5, 0.5], [0, 1]),
        lambda: expected_calibration_error([0.5, np.nan], [0, 1]),
        lambda: expected_calibration_error([0.5, 0.5], [0, 1], bins=0),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ParameterError, match="expected"):
        call()


def test_a_refusal_names_the_metric_and_what_is_wrong() -> None:
    with pytest.raises(ParameterError, match=r"money_saved: expected a score for each event, got 2 NaN"):
        money_saved([1, 1, 1], [0, 1, 2], [1, 1, 1], [np.nan, 0.0, np.nan], [0, 1, 1], 1)
    with pytest.raises(ParameterError, match=r"detection_delay: expected an amount .* got 1 NaN"):
        detection_delay([1, 1], [0, 1], [np.nan, np.nan], [0.0, 1.0], [0, 1], 1.0)


# Few values, so that there are many ties: entity, day and hours, amount, score, label.
payments = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([0.0, 3.0, 25.0, 30.0, 200.0]),
        st.integers(0, 4),
        st.sampled_from([-np.inf, 0.0, 1.0, 2.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)
Rows = list[tuple[int, float, int, float, bool]]
Column = NDArray[np.float64]
Columns = tuple[Column, Column, Column, Column, Column]


def columns(rows: Rows) -> Columns:
    """Entity, time in seconds, amount, score and label, with a fraud among them."""
    entity, hours, amount, score, label = np.array(rows, dtype=np.float64).T
    if not label.any():
        label[0] = 1.0
    return entity, hours * 3600.0, amount, score, label


def alerted_rows(time: NDArray[np.float64], score: NDArray[np.float64], per_day: int) -> set[int]:
    rows: set[int] = set()
    for day in {math.floor(t / 86_400) for t in time.tolist()}:
        mine = [at for at, t in enumerate(time.tolist()) if math.floor(t / 86_400) == day]
        rows |= set(sorted(mine, key=lambda at: (-score[at], time[at], at))[:per_day])
    return rows


def test_precision_at_budget_by_hand() -> None:
    time = np.array([0, 1, 2, 86_400, 86_401, 86_402], dtype=np.float64)
    score, label = np.array([3.0, 2.0, 1.0, 1.0, 1.0, 0.0]), np.array([0, 1, 1, 1, 0, 0])
    assert precision_at_budget(time, score, label, 1) == pytest.approx(1 / 2)  # the tie goes to the earlier event
    assert precision_at_budget(time, score, label, 2) == pytest.approx(2 / 4)
    assert precision_at_budget(time[::-1], score[::-1], label[::-1], 1) == pytest.approx(1 / 2)
    assert precision_at_budget(time, score, label, 99) == pytest.approx(3 / 6)  # six alerts, since there are six events


@settings(max_examples=80, deadline=None)
@given(payments, st.integers(1, 4))
def test_budgets_against_a_plain_loop(rows: Rows, per_day: int) -> None:
    _, time, _, score, label = columns(rows)
    alerted = alerted_rows(time, score, per_day)
    hits = sum(label[at] for at in alerted)
    assert recall_at_budget(time, score, label, per_day) == pytest.approx(hits / label.sum())
    assert precision_at_budget(time, score, label, per_day) == pytest.approx(hits / len(alerted))


def test_recall_at_false_alerts_by_hand() -> None:
    score, label = [9, 8, 7, 6, 6, 5, 4], [1, 0, 1, 1, 0, 1, 0]  # 3 genuine: at 8, at 6 (tied with a fraud) and at 4
    for share, expected in [(0.0, 1 / 4), (0.33, 1 / 4), (0.34, 2 / 4), (0.66, 2 / 4), (0.67, 1.0), (1.0, 1.0)]:
        assert recall_at_false_alerts(score, label, share) == pytest.approx(expected)
    assert recall_at_false_alerts([1, 1], [0, 1], 0.999) == 0.0
    assert recall_at_false_alerts([np.inf, 0, -np.inf], [1, 0, 1], 0.0) == 0.5


def test_a_share_is_met_exactly() -> None:
    score, label = np.arange(101), np.arange(101) == 71  # 29 of the 100 genuine events score higher
    assert recall_at_false_alerts(score, label, 0.29) == 1.0
    assert recall_at_false_alerts(score, label, 0.289) == 0.0


@settings(max_examples=80, deadline=None)
@given(rankings, st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0]))
def test_recall_at_false_alerts_as_scikit_learn(rows: list[tuple[float, bool]], share: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score, label = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    label[:2] = [True, False]
    false, true, _ = metrics.roc_curve(label, score, drop_intermediate=False)
    found = recall_at_false_alerts(score, label, share)
    assert found == pytest.approx(true[false <= share].max())
    assert recall_at_false_alerts(np.unique(score, return_inverse=True)[1], label, share) == found  # the order alone


def test_detection_delay_by_hand() -> None:
    hour = np.array([0, 1, 2, 3, 300, 301, 5, 0])
    entity = np.array(["a", "a", "a", "a", "a", "a", "b", "c"])
    amount = np.array([10, np.nan, 20, 40, 5, 6, 100, 3], dtype=np.float64)
    score = np.array([0, 9, 1, 2, 0, 2, 1, 2])  # the genuine event of `a` with score 9 detects nothing
    label = np.array([1, 0, 1, 1, 1, 1, 1, 1])
    # Runs: a at 0-3 h (found at its third fraud), a at 300-301 h (at its second), b (missed), c (at once).
    expected = Delay(runs=4, detected=3 / 4, events=1.0, hours=1.0, lost=(30 + 5 + 0) / 3)
    for order in (np.arange(8), np.arange(8)[::-1]):
        given_ = (entity[order], hour[order] * 3600.0, amount[order], score[order], label[order])
        assert astuple(detection_delay(*given_, threshold=2.0)) == pytest.approx(astuple(expected))
        whole = detection_delay(*given_, threshold=2.0, gap_hours=np.inf)
        assert astuple(whole) == pytest.approx((3, 2 / 3, 1.0, 1.5, 15.0))
        assert detection_delay(*given_, threshold=2.0, gap_hours=297.0).runs == 3  # a gap of just that does not split
        assert detection_delay(*given_, threshold=2.0, gap_hours=0.0).runs == 7
        missed = detection_delay(*given_, threshold=9.5)
        assert (missed.runs, missed.detected) == (4, 0.0)
        assert np.isnan([missed.events, missed.hours, missed.lost]).all()


def delay_by_loop(rows: Columns, threshold: float, gap_hours: float) -> tuple[float, ...]:
    runs: list[list[tuple[float, float, float]]] = []
    entity, time, amount, score, label = (column.tolist() for column in rows)
    for one in sorted(set(entity)):
        mine = [at for at in range(len(entity)) if entity[at] == one and label[at]]
        last = -math.inf
        for at in sorted(mine, key=lambda at: time[at]):
            if time[at] - last > gap_hours * 3600.0:
                runs.append([])
            runs[-1].append((time[at], amount[at], score[at]))
            last = time[at]
    events, hours, lost = [], [], []
    for run in runs:
        first = next((at for at, (_, _, s) in enumerate(run) if s >= threshold), None)
        if first is not None:
            events.append(first)
            hours.append((run[first][0] - run[0][0]) / 3600.0)
            lost.append(sum(a for _, a, _ in run[:first]))
    if not events:
        return len(runs), 0.0, math.nan, math.nan, math.nan
    medians = statistics.median(events), statistics.median(hours)
    return len(runs), len(events) / len(runs), *medians, statistics.fmean(lost)


@settings(max_examples=120, deadline=None)
@given(payments, st.sampled_from([-np.inf, 1.0, 2.0, 3.0]), st.sampled_from([0.0, 22.0, 24.0, 168.0, 1000.0]))
def test_detection_delay_against_a_plain_loop(rows: Rows, threshold: float, gap_hours: float) -> None:
    given_ = columns(rows)
    found = astuple(detection_delay(*given_, threshold, gap_hours))
    assert found == pytest.approx(delay_by_loop(given_, threshold, gap_hours), nan_ok=True)
    entity, time, amount, score, label = given_
    moved = detection_delay(entity, time + 1e6, 2 * amount, np.exp(score), label, np.exp(threshold), gap_hours)
    assert astuple(moved)[:4] == pytest.approx(found[:4], nan_ok=True)
    assert moved.lost == pytest.approx(2 * found[4], nan_ok=True)


def test_money_saved_by_hand() -> None:
    day = np.array([0, 0, 0, 0, 1, 1, 2])
    second = np.array([1, 2, 3, 4, 1, 2, 1])
    entity = np.array([1, 1, 2, 1, 1, 2, 2])
    amount = np.array([10, 20, np.nan, 40, 80, 160, 320], dtype=np.float64)
    score = np.array([1.0, 5.0, 4.0, 0.0, 0.0, 1.0, 0.0])
    label = np.array([1, 1, 0, 1, 1, 1, 1])
    call = (entity, day * 86_400.0 + second, amount, score, label)
    # Alerts: the 20 of entity 1, which blocks its 40 and 80; the 160 of entity 2, which blocks its 320, and that too.
    assert money_saved(*call, per_day=1) == Saved(money=620.0, share=620 / 630, alerts=3)
    assert money_saved(*call, per_day=1, alert_cost=10.0) == Saved(money=590.0, share=590 / 630, alerts=3)
    assert money_saved(*call, per_day=1, alert_cost=1000.0).share == pytest.approx((620 - 3000) / 630)
    # A false alert on entity 2 on the first day, alone with label 0, blocks its frauds as well.
    first = call[0], call[1], call[2], np.array([0, 0, 9, 0, 0, 0, 0]), label
    assert money_saved(*first, per_day=1).money == 160 + 320 + 80  # on the second day the tie goes to the 80
    assert money_saved(*call, per_day=99) == Saved(money=630.0, share=1.0, alerts=7)
    nothing = money_saved([1], [0.0], [0.0], [1.0], [1], 1, alert_cost=2.0)
    assert (nothing.money, nothing.alerts) == (-2.0, 1) and math.isnan(nothing.share)


@settings(max_examples=120, deadline=None)
@given(payments, st.integers(1, 3), st.sampled_from([0.0, 1.5]))
def test_money_saved_against_a_plain_loop(rows: Rows, per_day: int, cost: float) -> None:
    entity, time, amount, score, label = columns(rows)
    alerted = alerted_rows(time, score, per_day)
    blocked: set[float] = set()
    stopped = 0.0
    for at in sorted(range(len(rows)), key=lambda at: time[at]):
        if at in alerted:
            blocked.add(entity[at])
        if label[at] and entity[at] in blocked:
            stopped += amount[at]
    expected, total = stopped - cost * len(alerted), amount[label == 1].sum()
    found = money_saved(entity, time, amount, score, label, per_day, cost)
    assert found.money == pytest.approx(expected)
    assert found.alerts == len(alerted)
    assert found.share == pytest.approx(expected / total if total else math.nan, nan_ok=True)
    assert money_saved(entity, time, amount, np.exp(score), label, per_day, cost).money == found.money


stated = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.3, 0.5, 0.99, 1.0]), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(stated, st.integers(1, 20))
def test_probabilities_against_plain_loops(rows: list[tuple[float, bool]], bins: int) -> None:
    p, y = [r[0] for r in rows], [r[1] for r in rows]
    y[0] = True
    n = len(rows)
    assert brier(p, y) == pytest.approx(sum((a - b) ** 2 for a, b in zip(p, y, strict=True)) / n)
    gaps: dict[int, float] = {}
    for a, b in zip(p, y, strict=True):
        middle = sum(other < a for other in p) + Fraction(p.count(a), 2)  # of the ranks of its ties
        place = math.floor(middle * bins / n)
        gaps[place] = gaps.get(place, 0.0) + a - b
    assert expected_calibration_error(p, y, bins) == pytest.approx(sum(map(abs, gaps.values())) / n)
    assert expected_calibration_error(p[::-1], y[::-1], bins) == pytest.approx(expected_calibration_error(p, y, bins))


def test_brier_as_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(6)
    p = rng.random(2_000)
    y = rng.random(2_000) < p**2
    assert brier(p, y) == pytest.approx(metrics.brier_score_loss(y, p))


def test_calibration_by_hand() -> None:
    p, y = [0.1, 0.2, 0.6, 0.9], [0, 1, 1, 1]
    assert brier(p, y) == pytest.approx((0.01 + 0.64 + 0.16 + 0.01) / 4)
    assert expected_calibration_error(p, y, bins=1) == pytest.approx(abs(1.8 - 3) / 4)
    assert expected_calibration_error(p, y, bins=2) == pytest.approx((abs(0.3 - 1) + abs(1.5 - 2)) / 4)
    assert expected_calibration_error(p, y, bins=4) == pytest.approx((0.1 + 0.8 + 0.4 + 0.1) / 4)
    assert expected_calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0.0)  # the base rate


def test_bins_have_equal_mass() -> None:
    rng = np.random.default_rng(7)
    p = rng.random(600) ** 8  # nearly all in the first of fifteen bins of equal width
    y = rng.random(600) < p
    order = np.argsort(p)
    parts = [abs(p[part].mean() - y[part].mean()) * part.size / 600 for part in np.array_split(order, 15)]
    assert expected_calibration_error(p, y) == pytest.approx(sum(parts))


def test_true_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(8)
    p = rng.beta(0.5, 20, 200_000)
    y = rng.random(p.size) < p
    assert expected_calibration_error(p, y) < 0.002
    assert expected_calibration_error(np.minimum(2 * p, 1), y) == pytest.approx(p.mean(), rel=0.1)
    assert brier(p, y) < min(brier(np.minimum(2 * p, 1), y), brier(p / 2, y), brier(np.full(p.size, y.mean()), y))
