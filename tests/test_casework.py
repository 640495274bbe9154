"""What lies beside a case: likeness by hand, first times, and links where there is one and nowhere else."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from anomaly.alerts import build_cases
from anomaly.casework import LIKENESS, familiarity, linked_entities, similar_events
from anomaly.ingest import read_events
from anomaly.schema import NumericField, Place, Schema
from anomaly.simulator import SIMULATED_SCHEMA

SCHEMA = Schema(time="at", entity=("card",), numeric=(NumericField(name="amount"),), categorical=("shop",))
HOUR = 3600


def history(rows: list[tuple[float, float | None, str | None]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema={"at": pl.Float64, "amount": pl.Float64, "shop": pl.String}, orient="row")
    frame = read_events(
        table.with_columns(at=1_700_000_000 // 86_400 * 86_400 + pl.col("at"), card=pl.lit("a")), SCHEMA
    )
    return frame.frame.with_columns(surprise=pl.lit(0.5))


def test_likeness_is_gowers_by_hand() -> None:
    past = history([(0, 0.0, "x"), (12 * HOUR, 9.0, "y"), (24 * HOUR, 9.0, "x"), (36 * HOUR, None, "x"),
                    (48 * HOUR, 99.0, "x")])  # fmt: skip
    found = similar_events(past, 4, 4, SCHEMA)
    span = np.log1p(99.0)
    near = 1 - (span - np.log1p(9.0)) / span
    by_hand = {0: (0 + 1 + 1) / 3, 1: (near + 0 + 0) / 3, 2: (near + 1 + 1) / 3, 3: (1 + 0) / 2}
    order = sorted(by_hand, key=lambda at: -by_hand[at])
    assert found[LIKENESS].to_list() == pytest.approx([by_hand[at] for at in order])
    assert found["time"].dt.epoch("s").to_list() == [int(past["time"][at]) for at in order]
    assert found["amount"].to_list() == [past["n:amount"][at] for at in order]


def test_the_first_event_of_an_entity_is_like_none() -> None:
    past = history([(0, 5.0, "x"), (HOUR, 6.0, "x")])
    assert not similar_events(past, 0, 0, SCHEMA).height
    assert similar_events(past, 1, 1, SCHEMA).height == 1


def test_a_missing_category_says_nothing_of_likeness() -> None:
    past = history([(0, 5.0, "x"), (24 * HOUR, 6.0, None), (48 * HOUR, 6.0, None)])
    found = similar_events(past, 2, 2, SCHEMA)
    assert found[LIKENESS].to_list() == [1.0, 0.5]  # by amount and hour alone: equal in both, and in the hour


def test_familiarity_looks_at_earlier_events_only() -> None:
    shops = ["x", "x", "y", "x", "x", "x", "x", "x", "x", "y", None, "z"]
    past = history([(HOUR * at, 1.0, shop) for at, shop in enumerate(shops)])
    codes = past.select(familiarity("c:shop")).to_series().to_list()
    assert codes == [3, 1, 3, 1, 1, 1, 1, 1, 1, 2, 0, 3]
    cut = past.head(5).select(familiarity("c:shop")).to_series().to_list()
    assert cut == codes[:5]


def alerting(rows: list[tuple[str, float, str]], others: int) -> tuple[pl.DataFrame, pl.DataFrame, Schema]:
    """Alerting events (card, day, shop) amid unremarkable ones, at one place each."""
    schema = Schema(time="at", entity=("card",), categorical=("shop",), place=Place(latitude="lat", longitude="lon"))
    draw = np.random.default_rng(0)
    quiet = [(f"q{i % 50}", float(draw.uniform(0, 30)), f"s{draw.integers(40)}") for i in range(others)]
    table = pl.DataFrame([*rows, *quiet], schema=["card", "day", "shop"], orient="row").with_columns(
        at=1_700_000_000 + pl.col("day") * 86_400, lat=pl.lit(48.0), lon=pl.int_range(pl.len()) * 0.0 + 2.0
    )
    frame = read_events(table, schema).frame
    scores = frame.select(
        "row", (pl.col("time") * 1e6).cast(pl.Datetime("us", "UTC")).alias("time"), pl.col("entity").alias("card"),
        p_value=pl.when(pl.col("row") < len(rows)).then(1e-4).otherwise(0.5),
    ).with_columns(surprise=-pl.col("p_value").log10())  # fmt: skip
    cases = build_cases(scores, scores["row"].to_numpy() < len(rows), entity_columns=["card"])
    return frame, cases, schema


def test_entities_that_share_a_rare_value_in_the_same_days_are_linked() -> None:
    rows = [("a", 10.0, "bad"), ("b", 10.5, "bad"), ("c", 11.0, "bad"), ("d", 25.0, "bad"), ("e", 10.0, "s1")]
    frame, cases, schema = alerting(rows, 2000)
    links = linked_entities(frame, cases, schema, 10)
    number = dict(cases.select("entity", "case").iter_rows())
    assert set(links["case"]) == {number[name] for name in "abc"}  # d is two weeks later, e shares with nobody
    one = links.filter(case=number["a"]).row(0, named=True)
    assert (one["field"], one["value"], one["entities"]) == ("shop", "bad", 2)
    assert sorted(one["names"]) == ["b", "c"]
    assert sorted(one["cases"]) == sorted([number["b"], number["c"]])
    assert one["expected"] == pytest.approx(3 * 4 / len(frame))  # b, c, e alert in those days; 4 events are at `bad`


def test_what_all_share_links_nobody() -> None:
    """Everybody is at one place, and alerts at common shops meet by chance."""
    rows = [(f"a{i}", 10.0 + i / 50, f"s{i % 40}") for i in range(60)]
    frame, cases, schema = alerting(rows, 2000)
    assert not linked_entities(frame, cases, schema, 100).height


def test_links_of_no_case_and_of_no_category_are_none() -> None:
    frame, cases, schema = alerting([("a", 10.0, "bad"), ("b", 10.0, "bad")], 200)
    assert not linked_entities(frame, cases.clear(), schema, 10).height
    assert not linked_entities(frame, cases, Schema(time="at", entity=("card",)), 10).height


def test_simulated_payments_name_only_other_entities(scores: pl.DataFrame, payments: pl.DataFrame) -> None:
    frame = read_events(payments, SIMULATED_SCHEMA).frame
    decided = scores["surprise"].to_numpy() > 2
    cases = build_cases(scores, decided, entity_columns=["customer_id"])
    links = linked_entities(frame, cases, SIMULATED_SCHEMA, 50)
    entity = dict(cases.select("case", "entity").iter_rows())
    for link in links.iter_rows(named=True):
        assert entity[link["case"]] not in link["names"]
        assert [entity[case] for case in link["cases"]] == link["names"]
        assert link["entities"] > link["expected"]
