"""The numbers of a report: days add up, timelines are of the right entity, and any table of events has a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anomaly.detector import Detector
from anomaly.digest import (
    CONTEXT_EVENTS,
    DRAWN_BEFORE,
    DRAWN_EVENTS,
    TABLE_EVENTS,
    TOP_CASES,
    Source,
    alerts_per_day,
    calibration_check,
    money_field,
    quality,
    rejects,
    report_data,
    score_histogram,
)
from anomaly.explain import expected_range
from anomaly.ingest import read_events
from anomaly.report import ReportData, render
from anomaly.schema import NumericField, Schema
from anomaly.thresholds import Threshold

Untidy = Callable[[float | None], Detector]


def source_of(detector: Detector, table: pl.DataFrame, *, since: str | None = None, **rule: float) -> Source:
    """What `Detector.report` hands to the digest."""
    events = read_events(table, detector.schema)
    scores = detector.score(events, since=since)
    threshold = detector.threshold(None, **rule)
    model, encoder = detector.models_[-1], detector.encoder_
    return Source(
        schema=detector.schema,
        events=events,
        scores=scores,
        cases=detector.cases(events, scores, threshold),
        rule=threshold,
        explain=lambda rows: detector.explain(events, rows, scores),
        expected=lambda rows, field: expected_range(model, encoder, events.frame, rows, field),
        fitted=detector.fitted_,
        settings={"Seed": "0"},
        versions={"anomaly": "0"},
        quarantine=2 * 86_400.0,
    )


@pytest.fixture(scope="module")
def source(detector: Detector, payments: pl.DataFrame) -> Source:
    return source_of(detector, payments, since="2024-02-10", budget_per_day=2)


@pytest.fixture(scope="module")
def data(source: Source) -> ReportData:
    return report_data(source, title="Payments", command=None)


def test_the_counts_of_the_days_add_up(source: Source, data: ReportData) -> None:
    daily = data.alerts_per_day
    decided = source.rule.decide(source.scores["p_value"].to_numpy())
    assert daily["events"].sum() == len(source.scores)
    assert daily["alerting"].sum() == decided.sum() == source.cases["alerts"].sum()
    assert daily["cases"].sum() == len(source.cases)
    assert daily["money"].sum() == pytest.approx(source.cases["money"].sum())
    days = daily["day"].to_list()
    assert days == sorted(set(days))
    assert (days[-1] - days[0]).days + 1 == len(days)


def test_a_day_without_events_is_a_day(source: Source) -> None:
    holiday = source.scores.filter(pl.col("time").dt.date() != date(2024, 2, 20))
    decided = source.rule.decide(holiday["p_value"].to_numpy())
    daily = alerts_per_day(holiday, source.cases.clear(), decided)
    assert daily.filter(pl.col("day") == date(2024, 2, 20)).row(0) == (date(2024, 2, 20), 0, 0, 0, 0.0)


def test_money_is_that_of_the_alerting_events(source: Source) -> None:
    amounts = dict(source.scores.select("row", "amount").iter_rows())
    for case in source.cases.iter_rows(named=True):
        assert case["money"] == pytest.approx(sum(amounts[row] for row in case["rows"]))


def test_a_timeline_is_of_the_entity_of_its_case_and_of_no_other(source: Source, data: ReportData) -> None:
    cases = {case["case"]: case for case in source.cases.iter_rows(named=True)}
    assert set(data.timelines) == set(list(cases)[:TOP_CASES])
    for number, timeline in data.timelines.items():
        case = cases[number]
        mine = source.events.frame.filter(entity=case["entity"]).sort("time", "row")
        mine = mine.join(source.scores.select("row", "surprise"), on="row", how="left", maintain_order="left")
        last = mine["row"].to_list().index(case["rows"][-1]) + 1
        n = len(timeline.time)
        first = last - n if len(case["rows"]) < n else mine["row"].to_list().index(case["rows"][0]) - DRAWN_BEFORE // 4
        mine = mine.head(last).slice(max(first, 0), n)
        assert timeline.entity == case["entity"]
        assert timeline.known == last
        assert n == min(last, n) <= DRAWN_EVENTS
        assert timeline.value is not None
        assert timeline.value.tolist() == mine["n:amount"].to_list()
        np.testing.assert_array_equal(timeline.surprise, mine["surprise"].fill_null(np.nan).to_numpy())
        assert timeline.value_name == "amount"
        assert (timeline.low <= timeline.high).all()  # type: ignore[operator]
        assert timeline.inside is not None and timeline.inside[timeline.alerting].any()
        assert timeline.remembered is not None
        assert not (timeline.remembered & timeline.inside).any()  # no event of a case is in the memory that judged it
        old = timeline.time < np.datetime64(case["start"].replace(tzinfo=None) - timedelta(days=2), "us")
        assert timeline.remembered.tolist() == old.tolist()
        inside = timeline.events.filter(pl.col("row").is_in(case["rows"]))
        assert min(len(case["rows"]), TABLE_EVENTS - CONTEXT_EVENTS) <= len(inside) <= len(case["rows"])
        assert inside["alerting"].all()
        assert inside["reasons"].null_count() == 0
        assert source.scores.filter(pl.col("row").is_in(timeline.events["row"].implode()))[
            "customer_id"
        ].unique().to_list() == [case["entity"]]


def test_the_histogram_holds_every_event_once(source: Source) -> None:
    decided = source.rule.decide(source.scores["p_value"].to_numpy())
    edges, events, alerting = score_histogram(source.scores["surprise"], decided)
    assert len(edges) == len(events) + 1 == len(alerting) + 1
    assert events.sum() == len(source.scores)
    assert alerting.sum() == decided.sum()
    assert (alerting <= events).all()


def test_the_threshold_parts_the_alerting_events_from_the_rest(source: Source, detector: Detector) -> None:
    p = source.scores["p_value"].to_numpy()
    rules: list[Threshold] = [source.rule, detector.threshold(false_discovery_rate=0.3)]
    for rule in rules:
        limit = rule.batch_threshold(p)
        np.testing.assert_array_equal(rule.decide(p), p <= limit)


def test_the_tiles_say_what_was_scored(source: Source, data: ReportData) -> None:
    assert data.summary["Cases"] == f"{len(source.cases):,}"
    assert data.summary["Events scored"] == f"{len(source.scores):,}"
    assert data.summary["Entities"] == f"{source.scores['customer_id'].n_unique()}"
    assert data.summary["Period"] == "2024-02-10 to 2024-02-29"
    assert data.summary["Rows rejected"] == f"0 of {source.events.n_input:,}"


def test_rejects_are_gathered_by_kind() -> None:
    table = pl.DataFrame({
        "at": ["2024-05-01", "soon", "later", "", "2024-05-02", "2024-05-03"],
        "amount": ["1", "2", "3", "4", "much", "inf"],
    })  # fmt: skip
    schema = Schema(time="at", numeric=(NumericField(name="amount"),))
    kinds = rejects(read_events(table, schema).rejects)
    assert kinds["rows"].to_list() == [2, 1, 1, 1]
    assert kinds["example"][0].startswith("row 1: at 'soon'")
    assert "…" in kinds["reason"][0]
    assert not len(rejects(read_events(table.head(1), schema).rejects))


def test_a_calibration_check_tells_right_from_wrong() -> None:
    draw = np.random.default_rng(0)
    time = np.arange(4000.0)
    fair = calibration_check(draw.normal(size=4000), time)
    drifted = calibration_check(draw.normal(size=4000) + (time >= 2000), time)
    levels = np.array(fair["nominal"])
    at = int(np.abs(levels - 0.1).argmin())
    assert fair["low"][at] <= levels[at] * 1.2
    assert fair["high"][at] >= levels[at] * 0.8
    assert drifted["low"][at] > levels[at]
    assert all(low <= seen <= high for low, seen, high in zip(fair["low"], fair["observed"], fair["high"], strict=True))


def test_a_calibration_check_of_one_moment_says_nothing() -> None:
    assert calibration_check(np.arange(5.0), np.zeros(5)) == {"nominal": [], "observed": [], "low": [], "high": []}


def test_money_is_the_first_number_on_a_log_scale() -> None:
    linear, log = NumericField(name="load", scale="linear"), NumericField(name="amount", scale="log")
    assert money_field(Schema(time="at", numeric=(linear, log))) == "amount"
    assert money_field(Schema(time="at", numeric=(linear,))) is None
    assert money_field(Schema(time="at")) is None


def page_of(detector: Detector, table: pl.DataFrame, path: Path, **options: Any) -> tuple[str, pl.DataFrame]:
    detector.score(table)
    cases = detector.report(path, **options)
    return path.read_text(encoding="utf-8"), cases


def test_a_report_without_a_single_alert_is_a_page(detector: Detector, payments: pl.DataFrame, tmp_path: Path) -> None:
    page, cases = page_of(detector, payments.head(200), tmp_path / "calm.html", false_alert_rate=1e-12)
    assert not len(cases)
    assert "</html>" in page


def test_a_report_by_any_rule_is_a_page(detector: Detector, payments: pl.DataFrame, tmp_path: Path) -> None:
    for rule in ({"false_discovery_rate": 0.5}, {"false_alert_rate": 0.01}):
        page, cases = page_of(detector, payments.head(1000), tmp_path / "page.html", **rule, title="A <b> title")
        assert "A &lt;b&gt; title" in page
        assert len(cases) == 0 or cases["entity"][0] in page


def test_a_report_of_untidy_events_tells_of_rejects_and_holes(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path
) -> None:
    detector = untidy_detector(None)
    bad = untidy.with_columns(pl.col("at").dt.to_string("iso")).with_columns(
        at=pl.when(pl.int_range(pl.len()) < 4).then(pl.lit("soon")).otherwise("at")
    )
    page, cases = page_of(detector, bad, tmp_path / "page.html", budget_per_day=0.5)
    assert "4 of 340" in page
    assert cases["entity"].str.contains(" / ").all()


SINGLE = Schema(time="at", numeric=(NumericField(name="load", scale="linear"),))
WORDS = Schema(time="at", entity=("card",), categorical=("merchant",))


def plain_table(events: int = 150) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    return pl.DataFrame({
        "at": 1_700_000_000 + np.sort(draw.integers(0, 10 * 86_400, events)),
        "card": draw.choice(["a", "b"], events),
        "merchant": draw.choice(["shop", "fuel"], events),
        "load": draw.normal(size=events),
    })  # fmt: skip


@pytest.mark.parametrize(
    "schema", [SINGLE, WORDS, Schema(time="at", entity=("card",))], ids=["single", "words", "time"]
)
def test_a_report_of_the_barest_schema_is_a_page(schema: Schema, tmp_path: Path) -> None:
    table = plain_table()
    detector = Detector(schema, hidden=4, epochs=1).fit(table, progress=False)
    page, cases = page_of(detector, table, tmp_path / "page.html", budget_per_day=0.5)
    assert "</html>" in page
    assert len(cases)
    assert set(cases["entity"]) <= ({"a", "b"} if schema.entity else {"all"})


HOSTILE = {
    "prices of a stock": ("open", "high", "low", "median"),
    "words of the report": ("position", "money", "rows", "entity", "case"),
    "words of the events": ("kind", "peak_row", "day", "events", "id", "at first"),
    "markup": ("</td><script>alert(1)</script>", "{{ 7 * 7 }}", 'a"onmouseover="b'),
    "letters": ("сумма", "金額", "a b\tc", "x" * 300),
}


@pytest.mark.parametrize("names", list(HOSTILE.values()), ids=list(HOSTILE))
def test_columns_of_any_name_are_shown_as_what_they_are(names: tuple[str, ...]) -> None:
    """Above all a field called `low` is not the lower end of what was expected."""
    draw = np.random.default_rng(1)
    entity, words, *numbers = (*names[-2:], *names[:-2]) if len(names) > 3 else (*names[-2:], names[0])
    table = pl.DataFrame({"at": 1_700_000_000 + np.arange(160) * 3600} | {
        entity: draw.choice(["<i>a", "b&"], 160), words: draw.choice(["x'", '"y'], 160),
    } | {name: 1000.0 * (at + 1) + draw.normal(size=160) for at, name in enumerate(numbers)})  # fmt: skip
    fields = tuple(NumericField(name=name, scale="linear") for name in numbers)
    schema = Schema(time="at", entity=(entity,), categorical=(words,), numeric=fields)
    detector = Detector(schema, hidden=4, epochs=1).fit(table, progress=False)
    source = source_of(detector, table, budget_per_day=0.5)
    data = report_data(source, title="t", command=None)
    assert len(data.timelines)
    expected = source.expected(source.events.frame["row"].to_list(), numbers[0])
    cases = {case["case"]: case for case in source.cases.iter_rows(named=True)}
    for number, timeline in data.timelines.items():
        mine = source.scores.filter(pl.col(entity) == timeline.entity).sort("time", "row")
        upto = mine["row"].to_list().index(cases[number]["rows"][-1]) + 1
        mine = mine.head(upto).tail(len(timeline.time))
        band = mine.select("row").join(expected, on="row", how="left", maintain_order="left")
        np.testing.assert_allclose(timeline.value, mine[numbers[0]].to_numpy())  # type: ignore[arg-type]
        np.testing.assert_allclose(timeline.low, band["low"].to_numpy())  # type: ignore[arg-type]
        np.testing.assert_allclose(timeline.high, band["high"].to_numpy())  # type: ignore[arg-type]
        shown = timeline.events.filter(pl.col("row").is_in(mine["row"].implode()))
        assert len(shown) == len(timeline.events)
        truth = mine.filter(pl.col("row").is_in(shown["row"].implode()))
        for name in (*numbers, words):
            assert shown[name].to_list() == truth[name].to_list(), name
    page = render(data)
    assert "<script>alert(1)" not in page


def test_parts_and_what_would_pass_are_shown_when_given(source: Source) -> None:
    def breakdown(rows: Sequence[int]) -> pl.DataFrame:
        parts = {
            "detector": ["forecaster", "forecaster", "recent past", "autoencoder"],
            "field": ["amount", "hour", "2 d", "shop"],
            "part": [1.5, 0.016, 3.0, 0.004],
            "share": [0.33, 0.008, 0.66, 0.002],
        }
        return pl.concat([pl.DataFrame({"row": [row] * 4, **parts}) for row in rows])

    def counterfactual(rows: Sequence[int]) -> pl.DataFrame:
        return pl.DataFrame({"row": rows, "sentence": [f"Row {row} would pass." for row in rows]})

    told = report_data(replace(source, breakdown=breakdown, counterfactual=counterfactual), title="t", command=None)
    for case in source.cases.head(len(told.timelines)).iter_rows(named=True):
        timeline = told.timelines[case["case"]]
        assert timeline.counterfactual == f"Row {case['peak_row']} would pass."
        assert timeline.parts["part"].to_list() == ["recent past · 2 d", "forecaster · amount", "2 smaller parts"]
        assert timeline.parts["share"].sum() == pytest.approx(1.0)


def test_the_quality_of_the_scored_events_counts_holes_and_statuses(source: Source) -> None:
    scores = source.scores.with_columns(amount=pl.when(pl.int_range(pl.len()) < 3).then(None).otherwise("amount"))
    found = dict(quality(replace(source, scores=scores)).select("what", "events").iter_rows())
    assert found.pop("without amount") == 3
    assert sum(found.values()) == len(scores)
