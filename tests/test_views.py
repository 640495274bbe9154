from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import SPLIT, agree

from anomaly.detector import Detector
from anomaly.errors import ArtifactError, InputError, OrderError, ParameterError, SchemaError
from anomaly.event_story import event_story
from anomaly.ingest import read_events
from anomaly.inputs import read_scores
from anomaly.schema import Schema
from anomaly.simulator import SIMULATED_SCHEMA
from anomaly.stream import Stream
from anomaly.views import FURTHER, Views, _mean, _terms, load_detector, make_detector

LATER = "2024-02-20"
SCHEMA = Schema(
    **{
        **SIMULATED_SCHEMA.model_dump(),
        "entity": ("customer_id", "merchant_id"),
        "categorical": (*SIMULATED_SCHEMA.categorical, "customer_id"),
    }
)
OPTIONS: dict[str, Any] = {"hidden": 4, "epochs": 1, "seed": 1, "rehearse": False}


@pytest.fixture(scope="module")
def table(payments: pl.DataFrame) -> pl.DataFrame:
    """The payments; those in cash have no merchant."""
    cash = pl.col("channel") == "atm"
    return payments.with_columns(pl.when(cash).then(None).otherwise("merchant_id").alias("merchant_id"))


@pytest.fixture(scope="module")
def views(table: pl.DataFrame) -> Views:
    return Views(SCHEMA, **OPTIONS).fit(table, until=SPLIT, progress=False)


@pytest.fixture(scope="module")
def told(views: Views, table: pl.DataFrame) -> pl.DataFrame:
    return views.score(table, since=SPLIT)


@pytest.fixture(scope="module")
def strangest(told: pl.DataFrame) -> list[int]:
    """Rows of the strangest events, and of some in cash."""
    cash = told.filter(pl.col("p_merchant_id").is_null()).sort("surprise", descending=True)["row"].head(3)
    return [*told.sort("surprise", descending=True)["row"].head(12).to_list(), *cash.to_list()]


def test_every_event_has_one_row_in_the_order_of_the_input(table: pl.DataFrame, told: pl.DataFrame) -> None:
    wanted = table.with_row_index("row").filter(pl.col("time").dt.strftime("%Y-%m-%d") >= SPLIT)["row"]
    assert told["row"].to_list() == list(wanted)
    assert told["p_value"].is_between(0, 1).all()
    np.testing.assert_allclose(told["surprise"], -np.log10(told["p_value"]), rtol=1e-9, atol=1e-9)


def test_the_first_view_judges_as_it_would_alone(table: pl.DataFrame, told: pl.DataFrame) -> None:
    alone = Detector(SCHEMA.views[0], **OPTIONS).fit(table, until=SPLIT, progress=False).score(table, since=SPLIT)
    np.testing.assert_allclose(told["p_customer_id"], alone["p_value"], rtol=1e-9)
    same = [name for name in alone.columns if name not in ("p_value", "score", "surprise")]
    assert told.select(same).equals(alone.select(same))
    assert (told["p_value"] != told["p_customer_id"]).any()


def test_a_further_view_judges_the_events_of_its_entities_only(table: pl.DataFrame, told: pl.DataFrame) -> None:
    known = table[told["row"].to_list()]["merchant_id"].is_not_null()
    with_merchant = table.with_row_index("at").filter(pl.col("merchant_id").is_not_null())
    alone = Detector(SCHEMA.views[1], **OPTIONS).fit(with_merchant, until=SPLIT, progress=False)
    scores = alone.score(with_merchant, since=SPLIT)
    assert 0 < known.sum() < len(told)
    assert told["p_merchant_id"].is_not_null().to_list() == known.to_list()
    assert told["status_merchant_id"].is_not_null().to_list() == known.to_list()
    np.testing.assert_allclose(told.filter(known)["p_merchant_id"], scores["p_value"], rtol=1e-12)
    assert told.filter(known)["status_merchant_id"].to_list() == scores["status"].to_list()


def test_p_values_rise_in_no_view_and_are_calibrated(views: Views, told: pl.DataFrame) -> None:
    nats = np.random.default_rng(0).exponential(2.0, (500, 2))
    more = nats + np.random.default_rng(1).exponential(1.0, nats.shape)
    assert (views.together(more) <= views.together(nats)).all()
    assert np.isnan(views.together(np.full((1, 2), np.nan))).all()
    np.testing.assert_array_equal(
        views.together(nats[:, :1]), views.together(np.column_stack([nats[:, 0], np.zeros(500)]))
    )
    held = views.holdout_.p
    assert abs((held <= 0.1).mean() - 0.1) < 0.02  # made from these events: it can hardly be wrong
    assert views.fitted_["check"]["nominal"]
    assert told.filter(pl.col("p_merchant_id").is_null())["p_value"].is_not_null().all()


def test_a_mean_is_split_into_its_views_as_by_hand() -> None:
    # of two views the integral has a closed form; with d = b - a: a (1 - (ln(1 + w e^d) - ln(1 + w)) / d)
    a, b, w = 3.0, 7.5, FURTHER
    mean = np.log((np.exp(a) + w * np.exp(b)) / (1 + w))
    first = a * (1 - (np.log1p(w * np.exp(b - a)) - np.log1p(w)) / (b - a))
    nats = np.array([[a, b], [0.0, 0.0], [4.0, np.nan], [40.0, 650.0]])
    np.testing.assert_allclose(_mean(nats)[0], mean)
    np.testing.assert_allclose(_terms(nats)[0], [first, mean - first], rtol=1e-9)
    np.testing.assert_allclose(_terms(nats).sum(axis=1), _mean(nats), rtol=1e-12)
    np.testing.assert_allclose(_terms(nats)[1:3], [[0, 0], [np.log((np.exp(4) + w) / (1 + w)), 0]])
    assert _terms(nats)[3, 1] > 0.95 * _mean(nats)[3]


def test_labels_and_later_events_change_nothing(views: Views, table: pl.DataFrame, told: pl.DataFrame) -> None:
    early = views.score(table.filter(pl.col("time").dt.strftime("%Y-%m-%d") < LATER), since=SPLIT)
    agree(early, told, key="row")


def test_the_parts_of_all_views_sum_to_the_surprise(
    views: Views, table: pl.DataFrame, told: pl.DataFrame, strangest: list[int]
) -> None:
    parts = views.breakdown(table, strangest, told)
    assert (parts["part"] >= 0).all()
    found = parts.group_by("row").agg(pl.col("part", "share").sum())
    both = found.join(told.select("row", "surprise"), on="row")
    assert sorted(both["row"]) == sorted(strangest)
    np.testing.assert_allclose(both["part"], both["surprise"], rtol=1e-4)
    np.testing.assert_allclose(both["share"], 1.0, rtol=1e-4)
    merchant = parts.filter(pl.col("detector").str.starts_with("merchant_id: "))
    assert merchant["part"].sum() > 0
    silent = told.filter(pl.col("p_merchant_id").is_null())["row"]
    assert not merchant["row"].is_in(silent.implode()).any()


def test_explanations_name_the_view(
    views: Views, table: pl.DataFrame, told: pl.DataFrame, strangest: list[int]
) -> None:
    explained = views.explain(table, strangest, told)
    assert set(explained["view"]) == {None, "merchant_id"}
    parts = views.breakdown(table, strangest, told)
    for view, prefix in ((None, ""), ("merchant_id", "merchant_id: ")):
        mine = explained.filter(pl.col("view").eq_missing(pl.lit(view)), pl.col("kind") == "past")
        past = parts.filter(pl.col("detector") == f"{prefix}recent past").group_by("row").agg(pl.col("part").sum())
        both = mine.join(past, on="row", suffix=" in the whole")
        assert len(both) == len(mine) > 0
        np.testing.assert_allclose(both["part"], both["part in the whole"], rtol=1e-9)
    cases = views.alerts(told, events=table, budget_per_day=2)
    reasons = [reason for case in cases["reasons"] for reason in case]
    assert any(reason.startswith("by merchant_id: ") for reason in reasons)
    assert any(field.startswith("merchant_id: ") for case in cases["fields"] for field in case)


def test_a_counterfactual_leaves_the_further_views_as_they_were(
    views: Views, table: pl.DataFrame, told: pl.DataFrame, strangest: list[int]
) -> None:
    rule = views.threshold(budget_per_day=2)
    found = views.counterfactual(table, strangest, told, rule)
    assert found["row"].to_list() == strangest
    passing = found.filter(pl.col("passes") & (pl.col("changes").list.len() > 0))
    assert len(passing)
    assert (passing["p_value"] > rule.threshold_).all()


def test_a_stream_pushes_each_event_to_each_view(views: Views, table: pl.DataFrame) -> None:
    few = table.head(300)
    stream = Stream(views)
    pushed = pl.DataFrame([stream.push(event) for event in few.iter_rows(named=True)], infer_schema_length=None)
    scores = views.score(few)
    assert set(pushed.columns) <= set(scores.columns)
    agree(pushed.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64)), scores, key="row")
    assert pushed["status_merchant_id"].to_list() == scores["status_merchant_id"].to_list()
    assert pushed["p_merchant_id"].null_count() == scores["p_merchant_id"].null_count() > 0


def test_an_event_out_of_order_in_any_view_is_forgotten_in_all(views: Views, table: pl.DataFrame) -> None:
    stream, other = Stream(views), Stream(views)
    first, second = (table.filter(pl.col("merchant_id").is_not_null()).row(at, named=True) for at in (5, 0))
    second = {**second, "merchant_id": first["merchant_id"], "customer_id": "somebody else"}
    for one in (stream, other):
        one.push(first)
    with pytest.raises(OrderError, match=first["merchant_id"]):
        stream.push(second)
    later = {**first, "event_id": "later", "customer_id": "somebody else"}
    assert stream.push(later) == other.push(later)


def test_a_saved_stream_goes_on_in_every_view(views: Views, table: pl.DataFrame, tmp_path: Path) -> None:
    rows = list(table.sort("time").head(300).iter_rows(named=True))
    stream = Stream(views)
    for row in rows[:150]:
        stream.push(row)
    again = Stream.load(stream.save(tmp_path / "stream"), load_detector(views.save(tmp_path / "views")))
    assert len(again) == len(stream) == len({row["customer_id"] for row in rows[:150]})
    told = [again.push(row) for row in rows[150:]]
    assert told == [stream.push(row) for row in rows[150:]]
    fresh = Stream(views)
    afresh = [fresh.push(row) for row in rows[150:]]
    assert any(one["p_merchant_id"] != other["p_merchant_id"] for one, other in zip(told, afresh, strict=True))
    with pytest.raises(ArtifactError, match="another detector"):
        Stream.load(tmp_path / "stream", views.detectors[0])


def test_views_are_saved_and_loaded_to_the_bit(views: Views, table: pl.DataFrame, tmp_path: Path) -> None:
    folder = views.save(tmp_path / "views")
    again = load_detector(folder)
    assert isinstance(again, Views)
    assert again.score(table, since=LATER).equals(views.score(table, since=LATER))
    assert again.threshold().threshold_ == views.threshold().threshold_
    assert again.save(tmp_path / "again").joinpath("manifest.json").exists()
    with pytest.raises((ArtifactError, ParameterError), match="view"):
        Detector.load(folder)


def test_a_report_of_views_is_written(views: Views, table: pl.DataFrame, told: pl.DataFrame, tmp_path: Path) -> None:
    cases = views.report(tmp_path / "report.html", told, events=table, budget_per_day=1)
    assert len(cases)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "by merchant_id" in page
    assert "Further views" in page


def test_a_mask_hides_the_names_of_every_view(
    views: Views, table: pl.DataFrame, told: pl.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    views.report(path, told, events=table, budget_per_day=2, mask_key=b"sixteen bytes or more")
    page = path.read_text(encoding="utf-8")
    for column in ("customer_id", "merchant_id"):
        names = {name for name in table[column].drop_nulls().unique() if len(name) > 2}
        assert names and not any(re.search(rf"\b{re.escape(name)}\b", page) for name in names)


def test_the_story_of_an_event_is_told_from_saved_scores(
    views: Views, table: pl.DataFrame, told: pl.DataFrame, strangest: list[int], tmp_path: Path
) -> None:
    read = read_events(table, SCHEMA)
    told.write_parquet(tmp_path / "scores.parquet")
    scores = read_scores(tmp_path / "scores.parquet", read, views, None)
    story = event_story(views, read, scores, strangest[0], views.threshold())
    whole = told.filter(pl.col("row") == strangest[0])["surprise"].item()
    assert sum(part["part"] for part in story.facts["parts"]) == pytest.approx(whole, rel=1e-4)
    without = tmp_path / "without.parquet"
    told.drop("p_merchant_id").write_parquet(without)
    with pytest.raises(InputError, match="p_merchant_id"):
        views.breakdown(table, strangest, pl.read_parquet(without))


def test_frauds_are_rehearsed_in_the_first_view(views: Views, table: pl.DataFrame) -> None:
    history = table.filter(pl.col("time").dt.strftime("%Y-%m-%d") < SPLIT)
    assert views.rehearsal(history, episodes=3)["recall"].is_between(0, 1).all()


def test_one_view_is_a_detector_and_several_are_views(detector: Detector, tmp_path: Path) -> None:
    assert type(make_detector(SIMULATED_SCHEMA, hidden=4)) is Detector
    assert type(make_detector(SCHEMA, hidden=4)) is Views
    assert type(load_detector(detector.save(tmp_path / "one"))) is Detector
    with pytest.raises(ParameterError, match="several views"):
        Views(SIMULATED_SCHEMA)
    with pytest.raises(ParameterError, match="2 views"):
        Detector(SCHEMA).fit(pl.DataFrame())


def test_a_view_with_too_few_events_is_named(table: pl.DataFrame) -> None:
    rare = table.with_columns(pl.when(pl.int_range(pl.len()) % 100 == 0).then("merchant_id").alias("merchant_id"))
    with pytest.raises(InputError, match="view merchant_id: fit: "):
        Views(SCHEMA, **OPTIONS).fit(rare, until=SPLIT, progress=False)


def test_a_view_is_not_called_like_a_column_of_the_score_table() -> None:
    with pytest.raises(SchemaError, match="p_forecaster"):
        Views(Schema(time="t", entity=("card", "forecaster")))


def test_events_are_seen_in_the_order_of_a_views_entities(table: pl.DataFrame) -> None:
    read = read_events(table, SCHEMA)
    first, second = (read.seen_by(view) for view in SCHEMA.views)
    assert first.frame["entity"].to_list() == read.frame["entity"].to_list()
    assert len(second) == table["merchant_id"].is_not_null().sum()
    assert second.frame.equals(second.frame.sort("entity", "time", "row"))
    with pytest.raises(SchemaError, match="no view"):
        read.seen_by(Schema(time="time"))
