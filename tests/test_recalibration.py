"""Recalibration: p-values keep their promise on events after the fit, and nothing is learned but the calibration."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import SPLIT, agree
from polars.testing import assert_frame_equal

from anomaly.detector import Detector
from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError
from anomaly.history import as_seconds
from anomaly.ingest import read_events
from anomaly.recalibration import FEWEST_HELD, calibration_mark, recalibrate
from anomaly.schema import Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate
from anomaly.stream import Stream
from anomaly.views import Views

FITTED, MIDDLE = "2024-02-15", "2024-03-16"
VIEWS = Schema(
    **{
        **SIMULATED_SCHEMA.model_dump(),
        "entity": ("customer_id", "merchant_id"),
        "categorical": (*SIMULATED_SCHEMA.categorical, "customer_id"),
    }
)
Changed = Callable[..., Detector]


def at(time: str) -> pl.Expr:
    return pl.lit(time).str.to_datetime(time_zone="UTC", time_unit="us")


@pytest.fixture(scope="module")
def dearer() -> pl.DataFrame:
    """Payments without fraud whose amounts rise by half once the fit is over."""
    events, labels = simulate(customers=120, days=105, fraud_rate=0.0, seed=11)
    assert not labels["fraud"].any()
    later = pl.col("time") >= at(FITTED)
    return events.with_columns(amount=pl.when(later).then((pl.col("amount") * 1.5).round(2)).otherwise("amount"))


@pytest.fixture(scope="module")
def once(dearer: pl.DataFrame) -> Detector:
    return Detector(SIMULATED_SCHEMA, hidden=8, epochs=3, rehearse=False).fit(dearer, until=FITTED, progress=False)


@pytest.fixture(scope="module")
def anew(once: Detector, dearer: pl.DataFrame) -> Changed:
    """The same detector, calibrated anew."""

    def changed(**window: Any) -> Detector:
        return copy.copy(once).recalibrate(dearer, **window)

    return changed


@pytest.fixture(scope="module")
def views(payments: pl.DataFrame) -> Views:
    return Views(VIEWS, hidden=4, epochs=1, rehearse=False).fit(payments, until=SPLIT, progress=False)


def shares(detector: Detector, events: pl.DataFrame, since: str) -> np.ndarray:
    """Observed over stated share at p <= 0.1, 0.03 and 0.01."""
    p = detector.score(events, since=since)["p_value"].to_numpy()
    assert len(p) > 3000
    return np.array([np.mean(p <= level) / level for level in (0.1, 0.03, 0.01)])


def test_p_values_of_later_events_are_uniform_again_where_amounts_have_drifted(
    once: Detector, anew: Changed, dearer: pl.DataFrame
) -> None:
    before = shares(once, dearer, MIDDLE)
    after = shares(anew(since=FITTED, until=MIDDLE), dearer, MIDDLE)  # of a month that calibrated nothing
    assert (before > 1.8).all()
    assert np.abs(np.log(after)).max() < np.log(1.5)


def test_nothing_is_learned_but_the_calibration(once: Detector, anew: Changed) -> None:
    other = anew()
    assert other.scorer_.combination == once.scorer_.combination
    assert all(mine is its for mine, its in zip(other.models_, once.models_, strict=True))
    assert other.encoder_ is once.encoder_ and other.population_ is once.population_
    assert calibration_mark(other.scorer_) != calibration_mark(once.scorer_)
    assert "recalibrated" not in once.fitted_, "a copy was calibrated anew"


def test_what_was_done_is_written_down(once: Detector, anew: Changed, dearer: pl.DataFrame) -> None:
    other = anew(until=MIDDLE)
    told = other.fitted_["recalibrated"]
    time = dearer["time"].dt.epoch("us").to_numpy() / 1e6
    slice_ = time[(time >= once.fitted_["held_out_since"]) & (time < (as_seconds(MIDDLE) or 0.0))]
    assert (told["events"], told["first"], told["last"]) == (len(slice_), slice_.min(), slice_.max())
    np.testing.assert_array_equal(np.sort(other.holdout_.time), np.sort(slice_))
    scores = once.score(dearer, since=FITTED).filter(pl.col("time") < at(MIDDLE))
    assert told["new"] == len(scores)
    for level in ("0.01", "0.001"):
        assert told["before"][level] == np.mean(scores["p_value"].to_numpy() <= float(level))
    assert told["after"]["0.01"] < told["before"]["0.01"]
    assert other.fitted_["held_out"] == once.fitted_["held_out"], "of the fit"
    assert f"on {len(slice_):,} events" in other._settings()["Calibrated anew"]
    assert other.fitted_["check"] == other.check_ != once.check_


def test_the_slice_of_the_fit_gives_the_calibration_of_the_fit(
    detector: Detector, views: Views, payments: pl.DataFrame
) -> None:
    for fitted in (detector, views):
        again = copy.deepcopy(fitted).recalibrate(payments, until=SPLIT)
        for mine, its in zip(again.detectors, fitted.detectors, strict=True):
            assert calibration_mark(mine.scorer_) == calibration_mark(its.scorer_)
            assert mine.known_.tolist() == its.known_.tolist()
        np.testing.assert_array_equal(again.holdout_.p, fitted.holdout_.p)
        np.testing.assert_array_equal(again.holdout_.entity, fitted.holdout_.entity)
        assert again.fitted_["check"] == fitted.fitted_["check"]
        assert again.fitted_["recalibrated"]["new"] == 0
        assert_frame_equal(again.score(payments), fitted.score(payments), check_exact=True)


def test_a_later_fit_of_the_same_models_would_be_calibrated_alike(once: Detector, dearer: pl.DataFrame) -> None:
    """By hand: judged once, calibrated for a window without the models, as a recalibration on the events before it."""
    judged = once.judged(dearer)
    start, end = once.fitted_["held_out_since"], as_seconds(MIDDLE)
    made = recalibrate(once.scorer_, judged, judged.within(start, end), once.schema)
    later = judged.within(end or 0.0)
    said = made.scorer.judge(judged.errors, judged.sequences, later)
    scores = copy.copy(once).recalibrate(dearer, until=MIDDLE).score(dearer, since=MIDDLE)
    by_row = dict(zip(judged.sequences.row[later].tolist(), np.exp(said.log_p).tolist(), strict=True))
    np.testing.assert_allclose([by_row[row] for row in scores["row"]], scores["p_value"], rtol=1e-6)


def test_later_events_and_labels_have_no_say(payments: pl.DataFrame, detector: Detector) -> None:
    labelled = SIMULATED_SCHEMA.model_copy(update={"label": "fraud"})
    answers = payments.with_columns(fraud=pl.Series(np.arange(len(payments)) % 2 == 0))
    turned = answers.with_columns(fraud=~pl.col("fraud"), amount=_late(pl.col("amount") * 9, pl.col("amount")))
    marks = []
    for table in (answers, turned):
        known = copy.copy(detector)
        known.schema = labelled
        known.recalibrate(read_events(table, labelled), until="2024-02-20")
        marks.append(calibration_mark(known.scorer_))
    marks.append(calibration_mark(copy.copy(detector).recalibrate(payments, until="2024-02-20").scorer_))
    assert len(set(marks)) == 1


def _late(then: pl.Expr, otherwise: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("time") >= at("2024-02-20")).then(then).otherwise(otherwise)


def test_thresholds_follow(once: Detector, anew: Changed, dearer: pl.DataFrame) -> None:
    share = {}
    for name, fitted in (("once", once), ("anew", anew(since=FITTED, until=MIDDLE))):
        p = fitted.score(dearer, since=MIDDLE)["p_value"].to_numpy()
        share[name] = fitted.threshold(false_alert_rate=0.02).decide(p).mean()
    assert share["once"] > 0.04, "dearer payments alert too often"
    assert 0.012 < share["anew"] < 0.027


def test_a_saved_one_scores_alike_and_can_be_calibrated_again(
    anew: Changed, dearer: pl.DataFrame, tmp_path: Path
) -> None:
    changed = anew(until=MIDDLE)
    loaded = Detector.load(changed.save(tmp_path / "detector"))
    assert loaded.fitted_ == changed.fitted_
    assert_frame_equal(loaded.score(dearer), changed.score(dearer), check_exact=True)
    assert loaded.threshold(budget_per_day=3).threshold_ == changed.threshold(budget_per_day=3).threshold_
    assert calibration_mark(loaded.recalibrate(dearer).scorer_) == calibration_mark(anew().scorer_)


def test_views_are_calibrated_anew_each_and_together(views: Views, payments: pl.DataFrame, tmp_path: Path) -> None:
    changed = copy.deepcopy(views).recalibrate(payments)
    scores = changed.score(payments, since=SPLIT)
    told = changed.fitted_["recalibrated"]
    assert told["events"] == len(changed.holdout_.p) > len(views.holdout_.p)
    before = views.score(payments, since=SPLIT)
    assert told["new"] == len(before)
    assert told["before"]["0.01"] == np.mean(before["p_value"].to_numpy() <= 0.01)
    assert told["after"]["0.01"] == np.mean(scores["p_value"].to_numpy() <= 0.01)
    assert changed.fitted_["views"]["merchant_id"]["recalibrated"]["new"] > 0
    assert scores["p_merchant_id"].to_list() != before["p_merchant_id"].to_list()
    assert_frame_equal(Views.load(changed.save(tmp_path / "views")).score(payments, since=SPLIT), scores)
    with pytest.raises(InputError, match=r"view customer_id: recalibrate: 0 events from 2025-01-01"):
        changed.recalibrate(payments, since="2025-01-01")


@pytest.mark.parametrize("several", [False, True])
def test_a_stream_scores_as_the_table_does(
    several: bool, detector: Detector, views: Views, payments: pl.DataFrame
) -> None:
    some = payments.filter(pl.col("customer_id").is_in(payments["customer_id"].unique().sort()[:4].implode()))
    changed = copy.deepcopy(views if several else detector).recalibrate(payments)
    stream = Stream(changed)
    pushed = [{"event_id": event["event_id"], **stream.push(event)} for event in some.sort("time").to_dicts()]
    table = changed.score(some)
    agree(pl.DataFrame(pushed), table, "event_id")


@pytest.mark.parametrize("several", [False, True])
def test_a_stream_goes_on_with_the_calibration_that_it_was_made_with(
    several: bool, detector: Detector, views: Views, payments: pl.DataFrame, tmp_path: Path
) -> None:
    made = copy.deepcopy(views if several else detector)
    former = copy.deepcopy(made)
    stream, undisturbed = Stream(made), Stream(former)
    events = payments.head(150).to_dicts()
    for event in events[:100]:
        assert stream.push(event) == undisturbed.push(event)
    made.recalibrate(payments)
    for event in events[100:]:
        assert stream.push(event) == undisturbed.push(event)
    stream.save(tmp_path / "stream")
    assert len(Stream.load(tmp_path / "stream", former)) == len(stream)
    with pytest.raises(ArtifactError, match="before it was calibrated anew"):
        Stream.load(tmp_path / "stream", made)


def test_events_that_trained_are_refused(once: Detector, dearer: pl.DataFrame) -> None:
    began = datetime.fromtimestamp(once.fitted_["held_out_since"], UTC)
    with pytest.raises(InputError, match=rf"since 2024-01-15T00:00:00\+00:00 is before {began:%Y-%m-%d}T.*trained on"):
        once.recalibrate(dearer, since="2024-01-15")


def test_too_little_is_refused_and_says_how_much_is_needed(once: Detector, dearer: pl.DataFrame) -> None:
    mark = calibration_mark(once.scorer_)
    with pytest.raises(InputError, match=rf"0 events from 2024-06-01.*at least {FEWEST_HELD} are.*last one is of 2024"):
        once.recalibrate(dearer, since="2024-06-01")
    with pytest.raises(InputError, match=rf"\d+ events from 2024-03-01.*at least {FEWEST_HELD} are needed"):
        once.recalibrate(dearer, since="2024-03-01", until="2024-03-01T06:00")
    with pytest.raises(InputError, match="0 events"):
        once.recalibrate(dearer, until="2023-01-01")
    with pytest.raises(InputError, match=r"no event before 2024-.*give the histories too"):
        once.recalibrate(dearer.filter(pl.col("time") >= at(FITTED)))
    assert calibration_mark(once.scorer_) == mark
    with pytest.raises(NotFittedError):
        Detector(SIMULATED_SCHEMA).recalibrate(dearer)


def test_entities_that_came_after_the_fit_stay_unseen(once: Detector, dearer: pl.DataFrame) -> None:
    """The models learned nothing of them; the calibration has their names all the same."""
    first = dearer["customer_id"][0]
    some = dearer.filter(pl.col("customer_id") != first).with_columns(
        pl.when(pl.col("customer_id") == dearer["customer_id"].unique().sort()[-1])
        .then(pl.lit("somebody new")).otherwise(pl.col("customer_id")).alias("customer_id")
    )  # fmt: skip
    changed = copy.copy(once).recalibrate(some)
    assert changed.known_ is once.known_
    scores = changed.score(some)
    unseen = set(scores.filter(pl.col("status") == "unseen")["customer_id"])
    assert "somebody new" in unseen and not unseen & set(once.known_)
    held = changed.holdout_.surprises()
    assert "somebody new" in held["entity"].to_list() and first not in held["entity"].to_list()


def test_scores_of_the_former_calibration_are_not_reported(once: Detector, dearer: pl.DataFrame) -> None:
    changed = copy.copy(once)
    changed.score(dearer, since=FITTED)
    changed.recalibrate(dearer)
    with pytest.raises(ParameterError, match="Call score"):
        changed.alerts()


def test_weights_are_the_same_to_the_last_bit(once: Detector, anew: Changed) -> None:
    for mine, its in zip(anew().models_, once.models_, strict=True):
        assert all(torch.equal(value, its.arrays()[name]) for name, value in mine.arrays().items())
