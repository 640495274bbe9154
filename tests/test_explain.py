"""Explanations: what was observed is what came in, and what was expected is what the model itself says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import oracles
import polars as pl
import pytest
from oracles import UNTIDY_SCHEMA

from anomaly.alerts import add_reasons
from anomaly.breakdown import PAST
from anomaly.detector import Detector
from anomaly.explain import SCHEMA, editable, expected_range
from anomaly.ingest import read_events
from anomaly.schema import NumericField, Schema

Untidy = Callable[[float | None], Detector]


@pytest.fixture(scope="module")
def told(detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Explanations of every 40th payment."""
    return detector.explain(payments, list(range(0, len(payments), 40)), scores)


def test_there_is_one_row_for_each_event_and_field_that_says_something(
    told: pl.DataFrame, detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    assert dict(told.schema) == dict(SCHEMA)
    assert not told.select(pl.struct("row", "field").is_duplicated().any()).item()
    fields = [column.name for column in detector.models_[-1].fields.columns]
    assert set(told["field"]) == {*fields, PAST}
    assert set(told["row"]) == set(range(0, len(payments), 40))
    surprises = scores.unpivot(
        [name for name in scores.columns if name.startswith("field:")], index="row", variable_name="field"
    ).with_columns(pl.col("field").str.strip_prefix("field:"))
    both = told.filter(pl.col("kind") != "past").join(surprises, on=["row", "field"], how="left")
    assert both["surprise"].equals(both["value"])


def test_what_was_observed_is_what_came_in(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    frame = read_events(untidy, UNTIDY_SCHEMA).frame
    events = oracles.plain_events(frame, UNTIDY_SCHEMA)
    raw = oracles.raw_columns(events, UNTIDY_SCHEMA)
    at = {row: index for index, row in enumerate(frame["row"])}
    told = detector.explain(untidy, list(range(len(untidy))), detector.score(untidy))
    for one in told.filter(pl.col("kind") != "past").iter_rows(named=True):
        index, field = at[one["row"]], one["field"]
        event = events[index]
        if one["kind"] in ("category", "flag"):
            assert one["observed_text"] == event.categories[field.removeprefix("first:")]
            assert one["observed"] is None
        elif one["kind"] == "clock":
            moment = oracles.local(event)
            hours = moment.hour + moment.minute / 60 + moment.second / 3600
            assert one["observed"] == pytest.approx(hours, abs=1e-4)
        else:
            assert one["observed"] == pytest.approx(raw[field.removeprefix("given:")][index], rel=1e-9, abs=0.05)
            assert one["observed_text"] is None


def test_a_missing_field_is_not_explained(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    table = untidy.with_row_index("row")
    told = detector.explain(untidy, list(range(len(untidy))), detector.score(untidy))
    for name in ("amount", "tip", "balance", "merchant"):
        missing = table.filter(pl.col(name).is_null())["row"]
        assert len(missing)
        assert not told.filter(pl.col("field") == name)["row"].is_in(missing.implode()).any()


def test_derived_columns_lead_back_to_the_events_own_fields() -> None:
    schema = Schema(time="at", entity=("who",), numeric=(NumericField(name="amount"),), categorical=("shop",))
    names = ("amount", "shop", "first:shop", "changed:shop", "place:distance", "time:gap", "count:1h", "clock:hour")
    assert [editable(schema, name) for name in names] == [
        "amount", "shop", "shop", "shop", "place", "time", "time", "time"
    ]  # fmt: skip


def test_a_speed_is_about_what_is_stranger_the_way_or_the_time(told: pl.DataFrame, scores: pl.DataFrame) -> None:
    both = told.filter(kind="speed").join(
        scores.select("row", gap="field:time:gap", way="field:place:distance"), on="row"
    )
    soon = both.filter(pl.col("gap") > pl.col("way"))
    assert 0 < len(soon) < len(both)
    assert set(soon["about"]) == {"time"}
    assert set(both.join(soon, on=["row"], how="anti")["about"]) == {"place"}
    rest = told.filter(pl.col("kind") != "speed").select("field", "about").unique()
    assert set(rest.filter(pl.col("field").str.contains("amount"))["about"]) == {"amount"}
    assert rest.filter(field=PAST)["about"].to_list() == [PAST]


def test_low_is_below_median_below_high_and_nothing_lies_below_nothing(told: pl.DataFrame) -> None:
    numbers = told.filter(pl.col("low").is_not_null())
    assert len(numbers)
    assert numbers.select((pl.col("low") <= pl.col("median")).and_(pl.col("median") <= pl.col("high")).all()).item()
    assert numbers.filter(pl.col("kind") != "number")["low"].min() >= 0  # type: ignore[operator]
    assert numbers.filter(pl.col("kind") == "count")["low"].min() >= 1  # type: ignore[operator]
    assert np.isfinite(numbers.select("low", "median", "high").to_numpy()).all()


def test_about_nine_in_ten_numbers_lie_in_their_range(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    told = detector.explain(payments, list(range(0, len(payments), 5)), scores).filter(field="amount")
    inside = told.select(pl.col("observed").is_between("low", "high").mean()).item()
    assert 0.75 < inside <= 1.0


def test_likely_values_are_known_and_the_likeliest_come_first(
    told: pl.DataFrame, detector: Detector, payments: pl.DataFrame
) -> None:
    columns = {column.name: column for column in detector.encoder_.category}
    hours = {f"{hour:02d}:00" for hour in range(24)}
    words = told.filter(pl.col("likely").is_not_null())
    assert set(words["kind"]) == {"category", "clock", "flag"}
    assert {"merchant_id", "device_id"} <= {name for name, column in columns.items() if column.own}
    of_its_own, usual = 0, []
    for row, field, likely in words.select("row", "field", "likely").iter_rows():
        assert len(set(likely)) == len(likely) <= 3
        column = columns[field]
        if column.own:  # what this customer had before
            now = payments.row(row, named=True)
            settled = now["time"] - timedelta(seconds=detector.quarantine_)  # what was met later is news
            past = payments.filter(pl.col("customer_id") == now["customer_id"], pl.col("time") <= settled)
            assert set(likely) <= set(past[field])
            of_its_own += len(likely)
            usual += [likely[0] == now[field]] if likely and field == "device_id" else []
        else:
            assert set(likely) <= (hours if field == "clock:hour" else set(column.vocabulary))
    assert of_its_own > 50
    assert np.mean(usual) > 0.6  # most have one device, or a card and a telephone


def test_rows_may_be_asked_for_in_any_order_and_twice(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    rows = [900, 3, 77, 450]
    once = detector.explain(payments, rows, scores)
    again = detector.explain(payments, [*reversed(rows), 3], scores)
    assert once.equals(again)
    for row in rows:
        alone = detector.explain(payments, [row], scores)
        mine = once.filter(pl.col("row") == row)
        assert alone["field"].to_list() == mine["field"].to_list()
        for name in ("low", "median", "high"):
            np.testing.assert_allclose(alone[name].fill_null(0), mine[name].fill_null(0), rtol=1e-4, atol=1e-4)


def test_no_rows_have_no_explanations(detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame) -> None:
    nothing = detector.explain(payments, [], scores)
    assert not len(nothing)
    assert dict(nothing.schema) == dict(SCHEMA)


def test_later_events_do_not_change_what_was_expected(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    rows = [100, 200, 300]
    whole = detector.explain(payments, rows, scores)
    until = detector.explain(payments.head(301), rows, scores)
    for name in ("low", "median", "high"):
        np.testing.assert_allclose(whole[name].fill_null(0), until[name].fill_null(0), rtol=1e-4, atol=1e-4)


def test_the_range_of_one_field_is_that_of_its_explanation(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    rows = [5, 600, 42]
    frame = read_events(payments, detector.schema).frame
    model, encoder = detector.models_[-1], detector.encoder_
    ranges = expected_range(model, encoder, frame, rows, "amount").sort("row")
    told = detector.explain(payments, rows, scores).filter(field="amount").sort("row")
    assert ranges["row"].to_list() == told["row"].to_list() == sorted(rows)
    for name in ("low", "high"):
        np.testing.assert_allclose(ranges[name], told[name])


def test_explanations_become_sentences(told: pl.DataFrame) -> None:
    rows = told["row"].unique()
    reasons = add_reasons(pl.DataFrame({"peak_row": rows}), told)
    assert reasons["reasons"].list.len().sum() > 0
    assert reasons["reasons"].list.len().to_list() == reasons["fields"].list.len().to_list()
