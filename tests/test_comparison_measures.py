"""What a comparison measures: the functions of `anomaly.evaluation` on the right events, and their means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from anomaly.comparison_measures import (
    DAY,
    METRICS,
    UNSUPERVISED,
    Scored,
    Window,
    known_cards,
    measures,
    over_folds,
    sentence,
)
from anomaly.evaluation import average_precision, brier, card_precision_at_k, daily, money_saved, recall_at_budget


def window(known: bool = False) -> Window:
    rng = np.random.default_rng(0)
    n = 400
    entity = rng.integers(0, 30, n)
    time = np.sort(rng.uniform(0, 5 * DAY, n))
    fraud = rng.random(n) < 0.1
    return Window(time, rng.gamma(2.0, 30.0, n), entity, fraud, (entity < 10) | known, 0.0, 5 * DAY, 1000, 50)


def test_measures_are_those_of_the_events() -> None:
    test = window()
    score = np.random.default_rng(1).random(400) + 0.3 * test.fraud
    found = measures(Scored(score, 3.0, 0.5, score / 2), test, 4)
    assert tuple(found) == METRICS
    assert found["average_precision"] == average_precision(score, test.fraud)
    assert found["recall_at_budget"] == recall_at_budget(test.time, score, test.fraud, 4)
    assert found["money_saved"] == money_saved(test.entity, test.time, test.amount, score, test.fraud, 4).money
    assert found["brier"] == brier(score / 2, test.fraud)
    assert (found["fit_seconds"], found["score_seconds"]) == (3.0, 0.5)
    day, rest = daily(test.time), test.entity >= 10
    left = card_precision_at_k(day[rest], test.entity[rest], score[rest], test.fraud[rest])
    assert found["card_precision_at_100"] == left
    every = card_precision_at_k(day, test.entity, score, test.fraud, drop_detected=False)
    assert found["card_precision_at_100_all"] == every != left


def test_what_does_not_exist_is_none() -> None:
    test = window(known=True)
    found = measures(Scored(-test.fraud.astype(float), 0.0, 0.0), test, 1)
    assert found["card_precision_at_100"] is None  # nobody is left
    assert found["brier"] is None and found["calibration_error"] is None
    assert found["runs_detected"] == 0 and found["delay_hours"] is None
    poor = measures(Scored(test.fraud.astype(float), 0.0, 0.0), replace(test, amount=np.zeros(400)), 9)
    assert poor["runs_detected"] and poor["delay_hours"] is not None
    assert poor["share_saved"] is poor["money_saved"] is poor["delay_money"] is None


def test_cards_are_known_a_delay_after_their_first_fraud_from_the_next_day_on() -> None:
    """By the Handbook's words, in loops: with a delay of 7 days, frauds of eight or more days before the day."""
    rng = np.random.default_rng(2)
    n = 500
    entity, time = rng.integers(0, 40, n), np.sort(rng.uniform(0, 40 * DAY, n))
    fraud = rng.random(n) < 0.05
    day = daily(time)
    expected = [any(fraud[j] and entity[j] == entity[i] and day[j] <= day[i] - 8 for j in range(n)) for i in range(n)]
    found = known_cards(entity, time, fraud, 7 * DAY)
    assert found.tolist() == expected and 0 < found.sum() < n


def test_means_and_spreads_are_over_the_folds_that_have_the_measure() -> None:
    one, two = dict.fromkeys(METRICS, 1.0), dict.fromkeys(METRICS, 2.0)
    folds = [{**one, "brier": None, "delay_hours": None}, {**two, "brier": None}]
    means, spreads = over_folds(folds)
    assert means["auc"] == 1.5 and spreads["auc"] == pytest.approx(np.std([1, 2], ddof=1))
    assert means["delay_hours"] == 2.0 and spreads["delay_hours"] is None
    assert means["brier"] is None and spreads["brier"] is None


@pytest.mark.parametrize(
    ("aps", "told"),
    [
        ([0.2, 0.4, 0.6], "From 30 known frauds on the best labelled model is above the detector (forest, 0.400)."),
        ([0.4, 0.2, 0.6], "From 100 known frauds on the best"),
        ([0.1, 0.1, 0.1], "With none of the numbers of known frauds"),
    ],
)
def test_the_sentence_says_what_labels_buy(aps: list[float], told: str) -> None:
    row = {"recall_at_budget": 0.5, "share_saved": 0.7}
    table = pl.DataFrame([
        {"scorer": "forest", "labels": True, "average_precision": 0.6, **row},
        {"scorer": UNSUPERVISED, "labels": False, "average_precision": 0.3, **row, "share_saved": None},
    ])  # fmt: skip
    rows = [{"known": 0, "scorer": UNSUPERVISED, "ap": 0.3}]
    rows += [{"known": known, "scorer": "forest", "ap": ap} for known, ap in zip((10, 30, 100), aps, strict=True)]
    facts = {"known_frauds": 1200, "budget_per_day": 20}
    text = sentence(table, {"forest": {UNSUPERVISED: 0.98}}, pl.DataFrame(rows), facts)
    assert text.startswith(
        "With 1,200 known frauds, forest finds 50% of the frauds and stops 70% of their money, at 20 alerts a day; "
        "without any label the detector finds 50% of the frauds. In average precision labels win (0.600 against "
        "0.300) in 98% of the resamples."
    )
    assert told in text
