"""Drift: quiet where nothing moved, though customers differ; loud where amounts rose; measures by hand."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest
from scipy import stats

from anomaly.drift import FEWEST_EVENTS, drift, ks_distance, psi
from anomaly.ingest import read_events
from anomaly.schema import NumericField, Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate

SINCE, CHANGE = 1_708_300_800.0, date(2024, 2, 26)  # scored from 19 February 2024 on; a change a week later
GIVEN = "amount, given its entity and categories"


@pytest.fixture(scope="module", params=[0, 1])
def calm(request: pytest.FixtureRequest) -> pl.DataFrame:
    return simulate(customers=120, days=70, seed=request.param, fraud_rate=0.0)[0]


def found(events: pl.DataFrame, held: pl.DataFrame | None = None) -> pl.DataFrame:
    frame = read_events(events, SIMULATED_SCHEMA).frame
    scores = frame.filter(pl.col("time") >= SINCE).select("row", surprise=-pl.lit(0.5).log10())
    surprise = np.random.default_rng(0).exponential(1 / np.log(10), len(scores))
    return drift(frame, scores.with_columns(surprise=pl.Series(surprise)), SIMULATED_SCHEMA, held)


def test_nothing_is_flagged_where_nothing_moved(calm: pl.DataFrame) -> None:
    table = found(calm)
    assert not table["flagged"].any()
    assert table["psi"].max() < 0.2  # type: ignore[operator]
    assert table["week"].unique().sort().to_list() == [date(2024, 2, 19), CHANGE, date(2024, 3, 4)]
    assert table["psi"].null_count() == 0


def test_amounts_that_rose_by_60_percent_are_flagged_and_nothing_else(calm: pl.DataFrame) -> None:
    later = pl.col("time").dt.date() >= CHANGE
    table = found(calm.with_columns(amount=pl.when(later).then(pl.col("amount") * 1.6).otherwise("amount")))
    flags = table.filter("flagged")
    assert flags["field"].unique().to_list() == [GIVEN]
    assert flags["week"].to_list() == [CHANGE, date(2024, 3, 4)]


def test_a_score_that_moved_away_from_the_held_out_slice_is_flagged(calm: pl.DataFrame) -> None:
    frame = read_events(calm, SIMULATED_SCHEMA).frame.filter(pl.col("time") < SINCE).tail(4000)
    draw = np.random.default_rng(1).exponential(1 / np.log(10), len(frame))
    for factor, expected in ((1.0, False), (0.5, True)):
        table = found(calm, frame.select("entity", "time", surprise=pl.Series(draw * factor)))
        assert table.filter(pl.col("field") == "score")["flagged"].to_list() == [expected] * 3


def test_one_loud_customer_is_no_drift(calm: pl.DataFrame) -> None:
    """A third of the week's events at one customer's new habit: a large shift of the shares, by one entity."""
    week = pl.col("time").dt.date() >= CHANGE
    busiest = calm["customer_id"].value_counts(sort=True)["customer_id"][0]
    mine = calm.filter(week, pl.col("customer_id") == busiest)
    loud = mine.with_columns(amount=pl.lit(3000.0))
    copies = pl.concat([
        loud.with_columns(event_id=pl.col("event_id") + f"-{i}", time=pl.col("time") + pl.duration(seconds=i))
        for i in range(1, 40)
    ])  # fmt: skip
    table = found(pl.concat([calm, copies]))
    amounts = table.filter(pl.col("field") == "amount", pl.col("week") == CHANGE)
    assert amounts["psi"][0] > 0.2
    assert not amounts["flagged"][0]


def test_a_single_sequence_is_compared_by_days() -> None:
    draw = np.random.default_rng(0)
    at = 1_700_000_000 + np.arange(0, 60 * 86_400, 600)
    load = draw.normal(size=len(at))
    schema = Schema(time="at", numeric=(NumericField(name="load", scale="linear"),))
    for moved in (0.0, 1.0):
        table = pl.DataFrame({"at": at, "load": load + moved * (at >= at[0] + 46 * 86_400)})
        frame = read_events(table, schema).frame
        scores = frame.filter(pl.col("time") >= at[0] + 46 * 86_400).select("row", surprise=pl.lit(0.1))
        flags = drift(frame, scores, schema).filter("flagged")["field"].unique().to_list()
        assert flags == (["load"] if moved else [])


def test_few_events_say_nothing(calm: pl.DataFrame) -> None:
    frame = read_events(calm, SIMULATED_SCHEMA).frame
    last = frame.sort("time").tail(FEWEST_EVENTS - 1).select("row", surprise=pl.lit(0.1))
    table = drift(frame, last, SIMULATED_SCHEMA)
    assert table["events"].max() < FEWEST_EVENTS  # type: ignore[operator]
    assert table["psi"].null_count() == len(table) > 0
    assert not table["flagged"].any()
    assert not drift(frame, last.clear(), SIMULATED_SCHEMA).height
    everything = frame.select("row", surprise=pl.lit(0.1))
    assert not drift(frame, everything, SIMULATED_SCHEMA)["flagged"].any()  # no history to compare with


def test_measures_agree_with_their_definitions() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=500), draw.normal(0.4, 1.2, size=300)
    assert ks_distance(first, second) == pytest.approx(stats.ks_2samp(first, second).statistic)
    q, p = np.array([40, 60, 100.0]), np.array([90, 60, 50.0])
    shares = [(counts + 0.5) / (counts.sum() + 1.5) for counts in (q, p)]
    assert psi(q, p) == pytest.approx(stats.entropy(*shares) + stats.entropy(*shares[::-1]))
