"""Detector: what it composes, what it refuses by name, and that a fit which breaks off leaves no half of one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from anomaly.detector import Detector
from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError, SchemaError
from anomaly.history import as_seconds, split
from anomaly.ingest import read_events
from anomaly.injections import possible_kinds
from anomaly.progress import TrainingBar
from anomaly.rehearsal import LEAST_GAIN
from anomaly.schema import NumericField, Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate
from anomaly.thresholds import PeaksOverThreshold

Untidy = Callable[[float | None], Detector]


@pytest.fixture(scope="module")
def little() -> pl.DataFrame:
    """Payments of 12 customers over 25 days."""
    return simulate(customers=12, days=25, seed=6)[0]


def small(**changes: Any) -> Detector:
    return Detector(SIMULATED_SCHEMA, **({"hidden": 4, "epochs": 2} | changes))


@pytest.fixture(scope="module")
def whole(little: pl.DataFrame) -> Detector:
    """A fit that nothing disturbs."""
    return small().fit(little, progress=False)


def same_weights(a: Detector, b: Detector) -> bool:
    pairs = zip(a.models_, b.models_, strict=True)
    return all(torch.equal(x.arrays()[key], value) for x, y in pairs for key, value in y.arrays().items())


def test_a_score_table_has_the_columns_it_promises(scores: pl.DataFrame) -> None:
    first = ["row", "event_id", "customer_id", "time", "p_value", "score", "surprise", "status", "p_autoencoder"]
    assert scores.columns[: len(first)] == first
    fields = [name for name in scores.columns if name.startswith("field:")]
    assert "field:amount" in fields
    assert "field:time:gap" in fields
    assert "field:population:amount" in fields
    read = ["amount", "merchant_category", "channel", "merchant_id", "device_id"]
    assert scores.columns[len(first) :] == ["p_forecaster", "recent", *fields, *read]
    assert scores.schema["time"] == pl.Datetime("us", "UTC")


def test_planted_frauds_are_stranger_than_normal_events() -> None:
    events, labels = simulate(customers=40, days=60, fraud_rate=0.03, seed=3)
    detector = Detector(SIMULATED_SCHEMA, hidden=16, epochs=6).fit(events, until="2024-02-10", progress=False)
    scores = detector.score(events, since="2024-02-10").join(labels, on="event_id")
    fraud, normal = scores.filter("fraud")["surprise"], scores.filter(~pl.col("fraud"))["surprise"]
    assert len(fraud) > 20
    above = np.mean([np.mean(value > normal.to_numpy()) for value in fraud])
    assert above > 0.8, "the area under the curve"


def test_alerts_are_cases_of_the_strangest_events_with_reasons(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    cases = detector.alerts(scores, events=payments, budget_per_day=1)
    assert len(cases)
    assert cases["p_value"].is_sorted()
    by_row = dict(scores.select("row", "p_value").iter_rows())
    for case in cases.iter_rows(named=True):
        assert by_row[case["peak_row"]] == case["p_value"] == min(by_row[row] for row in case["rows"])
        assert case["peak_row"] in case["rows"]
        assert payments["customer_id"][case["peak_row"]] == case["entity"]
    assert cases["reasons"].list.len().max() > 0  # type: ignore[operator]
    limit = cases["p_value"].max()
    assert scores.filter(pl.col("p_value") < limit)["row"].is_in(cases["rows"].explode().implode()).all()


def test_every_way_to_choose_a_threshold_works_and_only_one_at_a_time(detector: Detector) -> None:
    ways: list[dict[str, float]] = [{"budget_per_day": 3}, {"false_alert_rate": 0.01}, {"false_discovery_rate": 0.2}]
    for options in (*ways, {"alert_cost": 5.0, "fraud_share": 0.01}, {}):
        assert "case" in detector.threshold(None, **options).describe()
    assert "follow" in detector.threshold(PeaksOverThreshold(0.001)).describe()
    with pytest.raises(ParameterError, match="one of"):
        detector.threshold(budget_per_day=3, false_alert_rate=0.01)
    with pytest.raises(ParameterError, match="one of"):
        detector.threshold(PeaksOverThreshold(0.001), false_alert_rate=0.01)
    with pytest.raises(ParameterError, match="go together"):
        detector.threshold(alert_cost=5.0)


def test_a_cost_is_weighed_against_the_money_at_risk(detector: Detector, payments: pl.DataFrame) -> None:
    scores = detector.score(payments)
    cases = detector.alerts(scores, events=payments, alert_cost=20.0, fraud_share=0.05)
    alerting = scores.filter(pl.col("row").is_in(cases["rows"].explode().implode()))
    assert len(alerting) and (alerting["amount"] > 20.0).all(), "nothing below the cost of an alert"
    dearer = detector.alerts(scores, events=payments, alert_cost=200.0, fraud_share=0.05)
    assert dearer["alerts"].sum() < cases["alerts"].sum()


def test_a_rehearsal_tells_the_recall_of_each_kind_and_changes_nothing(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    found = detector.rehearsal(payments, detector.threshold(budget_per_day=2), episodes=8)
    assert found["kind"].to_list() == list(
        possible_kinds(read_events(payments, SIMULATED_SCHEMA).frame, SIMULATED_SCHEMA)
    )
    assert ((found["low"] <= found["recall"]) & (found["recall"] <= found["high"])).all()
    assert found["recall"].is_between(0, 1).all() and found["noticed"].is_between(0, 1).all()
    large = found.filter(kind="large")
    assert large["recall"].item() > 0.7, "amounts beyond all others"
    loose = detector.rehearsal(payments, detector.threshold(budget_per_day=20), episodes=8)
    assert loose["recall"].mean() > found["recall"].mean()  # type: ignore[operator]
    assert_frame_equal(detector.score(payments), scores, check_exact=True)


def test_the_combination_is_chosen_on_copies_that_touch_nothing_else(little: pl.DataFrame) -> None:
    """With and without a rehearsal the networks are the same; what was tried is told."""
    fits = [
        Detector(SIMULATED_SCHEMA, hidden=4, epochs=1, rehearse=on).fit(little, progress=False) for on in (True, False)
    ]
    for mine, other in zip(fits[0].models_, fits[1].models_, strict=True):
        assert all(bool((mine.arrays()[name] == value).all()) for name, value in other.arrays().items())
    assert fits[1].fitted_["trials"] == []
    trials = fits[0].fitted_["trials"]
    assert trials[0]["what"] == "start" and {one["what"] for one in trials[1:]} >= {"evidence", "population", "other"}
    for one in trials[1:]:
        assert not one["taken"] or one["gain"] > max(2 * one["standard_error"], LEAST_GAIN)


def test_a_budget_is_kept_on_normal_days(detector: Detector) -> None:
    rule = detector.threshold(budget_per_day=2)
    assert rule.expected_per_day <= 2
    assert rule.low <= rule.expected_per_day <= rule.high


def test_fit_returns_itself_and_says_what_it_did(whole: Detector, little: pl.DataFrame) -> None:
    fitted = whole.fitted_
    assert fitted["events"] == len(little)
    assert fitted["entities"] == little["customer_id"].n_unique()
    assert fitted["rejected"] == 0
    for run in fitted["runs"].values():
        assert run["epoch"] == len(run["history"]) == 2
        assert not run["interrupted"]
    assert small().fit(little, progress=False) is not None


def test_a_fit_after_a_fit_is_a_fit_alone(whole: Detector, little: pl.DataFrame) -> None:
    other = simulate(customers=15, days=30, seed=8)[0]
    again = small().fit(other, progress=False).fit(little, progress=False)
    assert same_weights(again, whole)
    assert_frame_equal(again.score(little), whole.score(little), check_exact=True)


class BreakError(Exception):
    """Something goes wrong in the midst of a fit."""


def breaking(monkeypatch: pytest.MonkeyPatch, model: str, epochs: int, error: type[BaseException]) -> None:
    """Let a fit break off while `model` trains, after some epochs."""
    seen: list[int] = []

    def events(self: TrainingBar, done: int, total: int, loss: float) -> None:
        del done, total, loss
        if self.name == model and len(seen) == epochs:
            raise error

    def epoch(self: TrainingBar, *told: float) -> None:
        del told
        if self.name == model:
            seen.append(1)

    monkeypatch.setattr(TrainingBar, "events", events)
    monkeypatch.setattr(TrainingBar, "epoch", epoch)


@pytest.mark.parametrize(
    ("model", "epochs", "error"),
    [("autoencoder", 1, BreakError), ("forecaster", 1, BreakError), ("forecaster", 0, KeyboardInterrupt)],
)
def test_a_fit_resumed_from_its_checkpoints_is_one_that_never_broke(
    whole: Detector,
    little: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    epochs: int,
    error: type[BaseException],
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, model, epochs, error)
        with pytest.raises(error):
            small().fit(little, progress=False, checkpoint=tmp_path)
    resumed = small().fit(little, progress=False, checkpoint=tmp_path, resume=True)
    assert same_weights(resumed, whole)
    assert_frame_equal(resumed.score(little), whole.score(little), check_exact=True)


def test_ctrl_c_keeps_the_best_epoch_and_says_so(
    little: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking(monkeypatch, "autoencoder", 1, KeyboardInterrupt)
    stopped = small().fit(little, progress=False)
    runs = stopped.fitted_["runs"]
    assert runs["autoencoder"]["interrupted"]
    assert runs["autoencoder"]["best_epoch"] == 1
    assert "interrupted: keeping epoch 1" in capsys.readouterr().err
    assert len(stopped.score(little)) == len(little)


def test_a_fit_that_breaks_off_leaves_nothing_half_fitted(
    little: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a first fit nor a second one, over an older fit, may answer with untrained weights."""
    again = small().fit(simulate(customers=15, days=30, seed=8)[0], progress=False)
    breaking(monkeypatch, "forecaster", 0, KeyboardInterrupt)
    for detector in (small(), again):
        with pytest.raises(KeyboardInterrupt):
            detector.fit(little, progress=False)
        with pytest.raises(NotFittedError):
            detector.score(little)


def test_a_checkpoint_of_another_history_is_refused(whole: Detector, little: pl.DataFrame, tmp_path: Path) -> None:
    del whole
    small(epochs=1).fit(little, progress=False, checkpoint=tmp_path)
    dearer = little.with_columns(pl.col("amount") * 1.5 + pl.int_range(pl.len()) % 7)
    with pytest.raises(ArtifactError, match="checkpoint"):
        small(epochs=1).fit(dearer, progress=False, checkpoint=tmp_path, resume=True)


def test_asking_before_fitting_is_refused(little: pl.DataFrame, tmp_path: Path) -> None:
    asked: list[Callable[[], object]] = [
        lambda: small().score(little),
        lambda: small().threshold(),
        lambda: small().explain(little, [0], pl.DataFrame()),
        lambda: small().save(tmp_path / "x"),
        lambda: small().alerts(pl.DataFrame(), events=little),
        lambda: small().report(tmp_path / "x.html", pl.DataFrame(), events=little),
    ]
    for ask in asked:
        with pytest.raises(NotFittedError, match="fit"):
            ask()
    assert not list(tmp_path.iterdir())


def test_alerts_of_nothing_scored_are_refused(whole: Detector, tmp_path: Path) -> None:
    fresh = Detector.load(whole.save(tmp_path / "saved"))
    with pytest.raises(ParameterError, match="score"):
        fresh.alerts()
    with pytest.raises(ParameterError, match="score"):
        fresh.report(tmp_path / "x.html")


def test_scores_of_other_events_than_the_last_are_not_explained_by_the_last(
    whole: Detector, little: pl.DataFrame, tmp_path: Path
) -> None:
    """Their row numbers mean other events: the reasons would be those of strangers."""
    scores = whole.score(little)
    expected = whole.alerts(scores, budget_per_day=1)
    whole.score(simulate(customers=12, days=25, seed=7)[0])
    with pytest.raises(ParameterError, match="other events"):
        whole.alerts(scores, budget_per_day=1)
    with pytest.raises(ParameterError, match="other events"):
        whole.report(tmp_path / "page.html", scores)
    assert_frame_equal(whole.alerts(scores, events=little, budget_per_day=1), expected)
    whole.score(little)
    assert len(whole.alerts(scores.head(500), budget_per_day=1))


@pytest.mark.parametrize("rows", [1, 50, 99])
def test_too_short_a_history_is_refused(little: pl.DataFrame, rows: int) -> None:
    with pytest.raises(InputError, match=f"{rows} usable events.*100"):
        small().fit(little.head(rows), progress=False)


def test_a_history_without_a_usable_event_is_refused(little: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="0 usable events"):
        small().fit(little, until="1999-01-01", progress=False)
    with pytest.raises(InputError, match="0 usable events"):
        small().fit(little.with_columns(time=pl.lit("soon")), progress=False)


def test_a_history_of_one_moment_is_refused(little: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="time"):
        small().fit(little.with_columns(time=pl.lit(1_700_000_000)), progress=False)


def test_scoring_no_event_is_refused(whole: Detector, little: pl.DataFrame) -> None:
    with pytest.raises(InputError, match="no event at or after 2031"):
        whole.score(little, since="2031-01-01")
    with pytest.raises(InputError, match="rejected"):
        whole.score(little.head(3).with_columns(time=pl.lit("soon")))
    with pytest.raises(InputError, match="no rows"):
        whole.score(little.clear())


def test_one_event_is_enough_to_score(whole: Detector, little: pl.DataFrame) -> None:
    scores = whole.score(little.head(1))
    assert scores["status"].to_list() == ["learning"]
    assert 0 < scores["p_value"][0] <= 1


@pytest.mark.parametrize("column", ["amount", "time", "customer_id", "latitude"])
def test_a_missing_column_is_named(whole: Detector, little: pl.DataFrame, column: str) -> None:
    with pytest.raises(SchemaError, match=column):
        whole.score(little.drop(column))


def test_a_column_of_another_type_is_refused_or_its_rows_are(whole: Detector, little: pl.DataFrame) -> None:
    with pytest.raises(SchemaError, match="amount"):
        whole.score(little.with_columns(amount="time"))
    words = little.with_columns(amount=pl.when(pl.int_range(pl.len()) < 5).then(pl.lit("much")).otherwise(pl.lit("5")))
    assert len(whole.score(words)) == len(little) - 5


def test_events_read_with_another_schema_are_refused(whole: Detector, little: pl.DataFrame) -> None:
    other = SIMULATED_SCHEMA.model_copy(update={"categorical": ("channel",)})
    events = read_events(little, other)
    for attempt in (lambda: whole.score(events), lambda: small().fit(events, progress=False)):
        with pytest.raises(SchemaError, match="schema"):
            attempt()


def test_events_read_before_score_like_the_table(whole: Detector, little: pl.DataFrame) -> None:
    labelled = SIMULATED_SCHEMA.model_copy(update={"label": "fraud"})
    for schema in (SIMULATED_SCHEMA, labelled):
        assert_frame_equal(whole.score(read_events(little, schema)), whole.score(little), check_exact=True)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 0},
        {"hidden": -3},
        {"epochs": 0},
        {"quarantine_hours": -1.0},
        {"quarantine_hours": float("nan")},
        {"seed": -1},
        {"device": "abacus"},
    ],
)
def test_parameters_out_of_range_are_refused(little: pl.DataFrame, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options)).removesuffix("_hours")):
        small(**options).fit(little, progress=False)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="hiden"):
        Detector(SIMULATED_SCHEMA, hiden=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("when", ["yesterday", "2024-02-30", "", object(), float("nan"), [1]])
def test_a_time_that_is_none_is_refused(little: pl.DataFrame, when: Any) -> None:
    with pytest.raises(ParameterError, match="time"):
        small().fit(little, until=when, progress=False)


def test_a_time_may_be_said_in_many_ways() -> None:
    expected = datetime(2024, 3, 1, tzinfo=UTC).timestamp()
    paris = datetime(2024, 3, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    ways: list[Any] = [
        "2024-03-01",
        "2024-03-01T01:00:00+01:00",
        date(2024, 3, 1),
        datetime(2024, 3, 1),
        paris,
        expected,
    ]
    assert [as_seconds(way) for way in ways] == [expected] * len(ways)
    assert as_seconds(None) is None
    assert as_seconds(0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_split_is_by_time_and_of_all_events(seed: int) -> None:
    draw = np.random.default_rng(seed)
    time = draw.choice(draw.uniform(0, 1e6, 60), 400)
    train, stop, held = split(time)
    assert ((train.astype(int) + stop + held) == 1).all()
    assert time[train].max() < time[stop].min() <= time[stop].max() < time[held].min()
    assert abs(train.mean() - 0.75) < 0.06


@pytest.mark.parametrize("name", ["row", "time", "p_value", "score", "surprise", "status", "p_forecaster"])
@pytest.mark.parametrize("role", ["numeric", "categorical", "entity", "event_id"])
def test_a_column_named_like_one_of_the_score_table_is_refused_by_name(name: str, role: str) -> None:
    """A transaction's own `status` is common enough."""
    draw = np.random.default_rng(0)
    values: dict[str, Any] = {
        "numeric": draw.normal(size=120),
        "categorical": draw.choice(["approved", "declined"], 120),
        "entity": draw.choice(["a", "b"], 120),
        "event_id": np.arange(120).astype(str),
    }
    roles: dict[str, Any] = {role: name if role == "event_id" else (name,)}
    table = pl.DataFrame({"at": 1_700_000_000 + np.arange(120) * 3600, name: values[role]})
    with pytest.raises(SchemaError, match=name):
        Detector(Schema(time="at", **roles), hidden=4, epochs=1).fit(table, progress=False)


def test_a_quarantine_is_chosen_from_the_gaps_and_kept_if_given(whole: Detector, little: pl.DataFrame) -> None:
    span = (little["time"].max() - little["time"].min()).total_seconds()  # type: ignore[operator, union-attr]
    assert 0 < whole.quarantine_ <= 0.1 * span
    assert small(quarantine_hours=0, epochs=1).fit(little, progress=False).quarantine_ == 0
    assert small(quarantine_hours=5, epochs=1).fit(little, progress=False).quarantine_ == 5 * 3600


def test_entities_of_several_columns_are_taken_apart_again(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    scores = untidy_detector(None).score(untidy)
    assert scores["bank"].to_list() == untidy["bank"].to_list()
    assert scores["card"].to_list() == untidy["card"].to_list()


def test_one_sequence_needs_no_entity() -> None:
    table = pl.DataFrame({"at": np.arange(150) * 3600 + 1_700_000_000, "load": np.sin(np.arange(150))})
    schema = Schema(time="at", numeric=(NumericField(name="load", scale="linear"),))
    detector = Detector(schema, hidden=4, epochs=1).fit(table, progress=False)
    scores = detector.score(table)
    assert set(scores["status"]) <= {"ok", "learning"}
    assert detector.alerts(budget_per_day=1)["entity"].unique().to_list() in (["all"], [])


def test_monsters_in_the_history_do_not_ruin_the_fit(little: pl.DataFrame) -> None:
    """DBL_MAX and card numbers among the amounts: the weights stay numbers, and normal events stay normal."""
    at = pl.int_range(pl.len())
    wild = little.with_columns(
        amount=pl.when(at % 50 == 7).then(1.7976931348623157e308).when(at % 50 == 8).then(4e15).otherwise("amount")
    )
    for scale in ("log", "linear"):
        field = NumericField(name="amount", scale=scale, tail="upper")
        schema = SIMULATED_SCHEMA.model_copy(update={"numeric": (field,)})
        detector = Detector(schema, hidden=4, epochs=2).fit(wild, progress=False)
        for model in detector.models_:
            assert all(torch.isfinite(value).all() for value in model.arrays().values())
        assert np.isfinite(detector.score(little)["surprise"].to_numpy()).all()
