"""Breakdown: the parts are all of the surprise and nothing but it, and they are where it came from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from conftest import random_histories, sequences_of
from oracles import UNTIDY_SCHEMA

from anomaly.breakdown import PARTS, PAST, Asked, before, breakdown
from anomaly.detector import Detector
from anomaly.errors import InputError
from anomaly.evidence import recent_sums, window_evidence
from anomaly.ingest import read_events
from anomaly.scorer import Scorer

Untidy = Callable[[float | None], Detector]


@pytest.fixture(scope="module")
def parts(detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Parts of the surprise of every payment."""
    return detector.breakdown(payments, scores["row"].to_list(), scores)


def whole(parts: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """The surprise of each event beside the sum of its parts."""
    summed = parts.group_by("row").agg(pl.col("part", "share").sum(), said=pl.col("part").is_not_null().all())
    return scores.select("row", "surprise").join(summed, on="row", how="left")


def test_the_parts_sum_to_the_surprise(parts: pl.DataFrame, scores: pl.DataFrame) -> None:
    both = whole(parts, scores)
    assert len(both) == len(scores) > 3000
    assert both["said"].all()
    assert scores["surprise"].min() < 1e-3 < 2 < scores["surprise"].max()  # type: ignore[operator]
    assert (both["surprise"] - both["part"]).abs().max() < 1e-9  # type: ignore[operator]
    assert parts["part"].min() >= 0  # type: ignore[operator]
    shares = both.filter(pl.col("share") > 0)["share"]
    np.testing.assert_allclose(shares, 1.0, atol=1e-9)
    assert dict(parts.schema) == dict(PARTS)
    assert not parts.select(pl.struct("row", "detector", "field").is_duplicated().any()).item()


def test_events_with_missing_fields_are_split_too(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    scores = detector.score(untidy)
    rows = scores["row"].to_list()
    parts = detector.breakdown(untidy, rows, scores)
    both = whole(parts, scores)
    assert (scores["status"] == "incomplete").sum() > 10
    said = both.filter(pl.col("surprise").is_not_nan())
    assert (said["surprise"] - said["part"]).abs().max() < 1e-9  # type: ignore[operator]
    missing = read_events(untidy, UNTIDY_SCHEMA).frame.filter(pl.col("n:amount").is_null())["row"]
    of_amount = parts.filter(pl.col("row").is_in(missing.implode()), pl.col("field") == "amount")
    assert len(of_amount) and of_amount["part"].max() == 0


def test_the_parts_are_the_formula(detector: Detector, payments: pl.DataFrame, parts: pl.DataFrame) -> None:
    """Once more by hand, for one event with a past: its own share by field, and the rest by window."""
    frame = read_events(payments, detector.schema).frame
    sequences = detector.encoder_.transform(frame)
    errors = detector.errors(sequences)
    scorer = detector.scorer_
    sums, number = recent_sums(sequences, scorer.fresh(errors), scorer.combination.scales)
    evidence = window_evidence(number, sums, scorer.dependence_)
    own = scorer.alone(errors)
    total = scorer.combination.total(own, evidence)
    heard = scorer.combination.heard(evidence)
    at = int(np.argmax(np.where(own > 2, total - own, 0)))
    assert total[at] > own[at] > 0
    surprise = -scorer.judge(errors, sequences).log_p[at] / np.log(10)
    mine = parts.filter(pl.col("row") == sequences.row[at])
    past = mine.filter(pl.col("detector") == PAST)
    np.testing.assert_allclose(float(past["part"].sum()), surprise * (total - own)[at] / total[at], rtol=1e-4)
    np.testing.assert_allclose(past["part"] / past["part"].sum(), heard[at] / heard[at].sum(), rtol=1e-4)
    terms = scorer.combination.terms(errors, scorer.fields)
    statistic = sum(values[at].sum() for values in terms.values())
    np.testing.assert_allclose(statistic, scorer.combination.own(errors, scorer.fields)[at], rtol=1e-12)
    names = [column.raw_name for column in scorer.fields["forecaster"]]
    amount = sum(term for name, term in zip(names, terms["forecaster"][at], strict=True) if name == "amount")
    found = mine.filter(pl.col("detector") == "forecaster", pl.col("field") == "amount")["part"].item()
    np.testing.assert_allclose(found, surprise * own[at] / total[at] * amount / statistic, rtol=1e-4)


def test_a_strange_amount_owns_the_surprise(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, parts: pl.DataFrame
) -> None:
    row = int(scores.filter(pl.col("surprise") < 0.5, pl.col("recent") == 0)["row"][-1])
    changed = payments.with_columns(amount=pl.when(pl.int_range(pl.len()) == row).then(1e6).otherwise("amount"))
    told = detector.score(changed)
    after = detector.breakdown(changed, [row], told).group_by("field").agg(pl.col("part").sum())
    was = parts.filter(pl.col("row") == row, pl.col("field") == "amount")["part"].sum()
    now = after.filter(field="amount")["part"].item()
    assert now > was + 2
    assert now > 0.9 * float(after["part"].sum())


def test_scores_of_another_detector_are_refused(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    with pytest.raises(InputError, match="row 7 has a surprise of 99"):
        detector.breakdown(payments, [7], scores.with_columns(surprise=pl.lit(99.0)))


def test_no_rows_have_no_parts(detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame) -> None:
    assert detector.breakdown(payments, [], scores).schema == PARTS


def test_only_what_is_needed_is_judged() -> None:
    sequences = sequences_of([[0.0, 10.0, 20.0, 30.0], [5.0, 15.0]])
    chosen = np.array([False, False, True, False, False, False])
    assert before(sequences, chosen, 11.0).tolist() == [False, True, True, False, False, False]
    assert before(sequences, chosen, 0.0).tolist() == chosen.tolist()
    sequences = random_histories(5, 40, 10.0, seed=1)
    chosen = np.random.default_rng(2).random(len(sequences)) < 0.05
    expected = [
        any(
            chosen[j] and sequences.sequence[i] == sequences.sequence[j]
            and 0 <= sequences.time[j] - sequences.time[i] < 86_400
            for j in range(i, len(sequences))
        )
        for i in range(len(sequences))
    ]  # fmt: skip
    assert before(sequences, chosen, 86_400.0).tolist() == expected


def test_windows_count_the_unusual_events(detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame) -> None:
    frame = read_events(payments, detector.schema).frame
    rows = scores.sort("recent")["row"].tail(5).to_list()
    asked = Asked.of(detector.encoder_, frame, rows)
    assert asked.frame.filter(pl.Series(asked.chosen))["row"].sort().to_list() == sorted(rows)
    ends = asked.frame.group_by("entity").agg(pl.last("row"))["row"]
    assert set(ends) <= set(rows)  # what comes after is not read
    told = breakdown(detector.errors, detector.scorer_, asked, scores)
    assert set(told.windows["row"]) == set(rows)
    assert len(told.windows) == len(rows) * len(detector.scorer_.combination.scales)
    assert (told.windows["unusual"] <= told.windows["events"]).all()
    assert told.windows["unusual"].max() >= 1  # type: ignore[operator]
    past = told.parts.filter(pl.col("detector") == PAST).group_by("row").agg(pl.col("part").sum()).sort("row")
    summed = told.windows.group_by("row").agg(pl.col("part").sum()).sort("row")
    np.testing.assert_allclose(summed["part"], past["part"], atol=1e-9)
    assert isinstance(detector.scorer_, Scorer)
