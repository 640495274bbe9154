"""Counterfactuals: what is said to pass does pass, when the table itself is changed and everything is scored anew."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from anomaly.alerts import add_reasons
from anomaly.counterfactual import SCHEMA
from anomaly.detector import Detector
from anomaly.errors import InputError
from anomaly.explain import editable
from anomaly.simulator import SIMULATED_SCHEMA
from anomaly.thresholds import FalseAlertRate, Threshold


@pytest.fixture(scope="module")
def rule(detector: Detector) -> Threshold:
    return detector.threshold(FalseAlertRate(0.02))


@pytest.fixture(scope="module")
def peaks(scores: pl.DataFrame, rule: Threshold) -> list[int]:
    """The strangest event of each customer that alerts."""
    alerting = scores.filter(pl.Series(rule.decide(scores["p_value"].to_numpy())))
    return alerting.sort("p_value").unique("customer_id", keep="first", maintain_order=True)["row"].to_list()


@pytest.fixture(scope="module")
def told(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, rule: Threshold, peaks: list[int]
) -> pl.DataFrame:
    return detector.counterfactual(payments, peaks, scores, rule)


def changed(payments: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """The table with the changes written into it by hand, one event a customer, and without what is to be left out."""
    columns: dict[str, list[Any]] = {name: payments[name].to_list() for name in payments.columns}
    for row, changes in told.select("row", "changes").iter_rows():
        for one in changes:
            to = one["to"]
            if one["field"] == "place":
                columns["latitude"][row], columns["longitude"][row] = (float(part) for part in to.split(", "))
            elif one["field"] == "time":
                columns["time"][row] = datetime.fromisoformat(f"{to}+00:00")
            else:
                columns[one["field"]][row] = float(to.replace(",", "")) if one["field"] == "amount" else to
    without = told["without"].explode().drop_nulls()
    table = pl.DataFrame(columns, schema=payments.schema).with_row_index("row")
    return table.filter(~pl.col("row").is_in(without.implode())).drop("row")


def scored_again(
    detector: Detector, payments: pl.DataFrame, told: pl.DataFrame
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """p of each told event in the changed table."""
    ids = told.select(event_id=payments["event_id"].gather(told["row"]))
    again = detector.score(changed(payments, told)).select("event_id", "p_value")
    return ids.join(again, on="event_id", how="left", maintain_order="left")["p_value"].to_numpy()


def test_what_passes_is_true_in_the_table(
    detector: Detector, payments: pl.DataFrame, told: pl.DataFrame, rule: Threshold, peaks: list[int]
) -> None:
    assert dict(told.schema) == dict(SCHEMA)
    assert told["row"].to_list() == peaks
    found = told.filter("passes")
    assert len(found) > 0.9 * len(told) > 5
    assert found["changes"].list.len().max() <= 2  # type: ignore[operator]
    assert (found["changes"].list.len() + found["without"].list.len()).min() > 0  # type: ignore[operator]
    p = scored_again(detector, payments, found)
    assert not rule.decide(p).any()
    np.testing.assert_allclose(p, found["p_value"], atol=1e-3)  # places are told to four decimals
    assert set(found["changes"].explode().struct.field("field")) <= {
        "amount", "merchant_category", "channel", "merchant_id", "device_id", "place", "time"
    }  # fmt: skip


def test_a_number_is_changed_no_more_than_needed(
    detector: Detector, payments: pl.DataFrame, told: pl.DataFrame, rule: Threshold
) -> None:
    """A little less of a change does not pass: 5 % of the way back, on a logarithmic scale."""
    alone = told.filter(pl.col("changes").list.len() == 1).explode("changes").unnest("changes")
    alone = alone.filter(field="amount")
    assert len(alone) and set(alone["bound"]) == {"<="}
    number = pl.col("to", "from").str.replace_all(",", "").cast(pl.Float64)
    numbers = alone.with_columns(number)
    nearer = numbers.select("row", amount=pl.col("to") * (pl.col("from") / pl.col("to")) ** 0.05)
    table = payments.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    table = table.update(nearer, on="row").drop("row")
    p = nearer.join(detector.score(table).select("row", "p_value"), on="row", maintain_order="left")["p_value"]
    assert rule.decide(p.to_numpy()).mean() > 0.8


def test_the_field_of_the_largest_part_is_changed_first(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, told: pl.DataFrame
) -> None:
    parts = detector.breakdown(payments, told["row"].to_list(), scores).filter(pl.col("detector") != "recent past")
    parts = parts.with_columns(
        mine=pl.col("field").map_elements(lambda name: editable(SIMULATED_SCHEMA, name), return_dtype=pl.String)
    )
    largest = parts.group_by("row", "mine").agg(pl.col("part").sum()).sort("part").group_by("row").agg(pl.last("mine"))
    alone = told.filter(pl.col("changes").list.len() == 1).explode("changes").unnest("changes")
    both = alone.join(largest, on="row")
    assert (both["field"] == both["mine"]).mean() > 0.5  # type: ignore[operator]


def test_where_none_is_found_it_is_said(told: pl.DataFrame, scores: pl.DataFrame) -> None:
    none = told.filter(~pl.col("passes"))
    both = none.join(scores.select("row", was="p_value"), on="row")
    assert (both["p_value"] == both["was"]).all()
    assert none["changes"].list.len().sum() == none["without"].list.len().sum() == 0
    assert none["sentence"].str.contains("^No change of").all()


def test_where_the_past_is_enough_the_run_is_left_out(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    """Under a rule that nearly everything breaks, whose past is odd breaks it however usual the event is."""
    rule = detector.threshold(FalseAlertRate(0.3))
    rows = scores.sort("recent").unique("customer_id", keep="last")["row"].tail(20).to_list()
    told = detector.counterfactual(payments, rows, scores, rule)
    run = told.filter(pl.col("without").list.len() > 0)
    assert len(run)
    assert run["sentence"].str.contains(r"^It would pass without the( \d+)? unusual events? of the .* before it").all()
    times = payments["time"]
    for row, without in run.select("row", "without").iter_rows():
        assert payments["customer_id"].gather(without).unique().to_list() == [payments["customer_id"][row]]
        assert all(times[one] <= times[row] and one != row for one in without)
    p = scored_again(detector, payments, run)
    assert not rule.decide(p).any()
    np.testing.assert_allclose(p, run["p_value"], atol=1e-3)


def test_what_does_not_alert_passes_as_it_is(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, rule: Threshold
) -> None:
    row = int(scores.filter(pl.col("p_value") > 0.5)["row"][0])
    told = detector.counterfactual(payments, [row, row], scores, rule)
    assert told["sentence"].to_list() == ["It passes as it is."] * 2
    assert told["passes"].all() and told["changes"].list.len().sum() == told["without"].list.len().sum() == 0


def test_alone_or_among_others_is_the_same(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, rule: Threshold, told: pl.DataFrame
) -> None:
    row = told["row"][0]
    alone = detector.counterfactual(payments, [row], scores, rule)
    assert alone["changes"].to_list() == told["changes"].to_list()[:1]


def test_a_rule_that_weighs_money_decides_by_the_changed_money(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    rule = detector.threshold(alert_cost=20.0, fraud_share=0.01)
    decided = rule.decide(scores["p_value"].to_numpy(), money=scores["amount"].to_numpy())
    row = int(scores.filter(pl.Series(decided)).sort("amount")["row"][-1])
    told = detector.counterfactual(payments, [row], scores, rule).row(0, named=True)
    assert told["passes"] and [one["field"] for one in told["changes"]][-1] == "amount"
    amount = float(told["changes"][-1]["to"].replace(",", ""))
    assert not rule.decide(np.array([told["p_value"]]), money=np.array([amount])).any()


def test_rows_that_were_not_scored_are_refused(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, rule: Threshold
) -> None:
    with pytest.raises(InputError, match="row 3 is no scored event"):
        detector.counterfactual(payments, [3], scores.filter(pl.col("row") != 3), rule)
    assert detector.counterfactual(payments, [], scores, rule).schema == SCHEMA


def test_reasons_and_counterfactual_speak_of_the_same(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, told: pl.DataFrame
) -> None:
    """Where a change of the amount alone is enough, the amount is among the reasons."""
    alone = told.filter(pl.col("changes").list.len() == 1).explode("changes").unnest("changes").filter(field="amount")
    rows = alone["row"].to_list()
    reasons = add_reasons(pl.DataFrame({"peak_row": rows}), detector.explain(payments, rows, scores))
    named = [any("amount" in field for field in fields) for fields in reasons["fields"].to_list()]
    assert np.mean(named) > 0.9
