"""Metrics agree with scikit-learn and with cases small enough to count by hand."""

from __future__ import annotations

import time as clock
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.evaluation import (
    average_precision,
    card_precision_at_k,
    card_precision_by_day,
    daily,
    per_kind,
    recall_at_budget,
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
    ],
)
def test_bad_input_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ParameterError, match="expected"):
        call()
