"""The events of a comparison: labels by row or by id, what is known of each event, and what few known frauds mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anomaly.comparison_world import DAY, Judged, World, fraud_of, read_label_table
from anomaly.errors import InputError
from anomaly.features import Encoder
from anomaly.ingest import read_events
from anomaly.labels import known_past
from anomaly.schema import Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate

SINCE = 1_708_387_200.0  # 20 February 2024


@pytest.fixture(scope="module")
def world() -> tuple[pl.DataFrame, pl.DataFrame]:
    return simulate(customers=60, days=75, fraud_rate=0.03, seed=3)


def encoded(events: pl.DataFrame, labels: pl.DataFrame, schema: Schema = SIMULATED_SCHEMA) -> World:
    """The world of a comparison, about which no detector was asked."""
    read = read_events(events, schema)
    view = schema.views[0]
    sequences = Encoder(view).fit(read.frame).transform(read.frame)
    fraud, time = fraud_of(read, labels["fraud"]), sequences.time
    known, late = time < SINCE - 7 * DAY, time >= SINCE - 20 * DAY
    nothing = Judged(np.zeros(len(time)), np.zeros(len(time)), np.zeros((len(time), 0)))
    return World(read.frame, sequences, fraud, time >= SINCE, known & ~late, known & late, 7 * DAY, nothing, {}, None)


def test_with_few_known_frauds_the_rest_is_taken_for_genuine(
    world: tuple[pl.DataFrame, pl.DataFrame],
) -> None:
    made = encoded(*world)
    few = made.with_known(10, seed=0)
    assert few.fraud.sum() == 10
    assert not (few.fraud & ~made.fraud).any()
    assert (few.fraud & few.train).any() and (few.fraud & few.valid).any()
    np.testing.assert_array_equal(few.train, made.train)
    assert isinstance(few, World) and replace(few, fraud=made.fraud).fraud is made.fraud


def test_labels_come_by_row_or_by_event_id(world: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    events, labels = world
    read = read_events(events, SIMULATED_SCHEMA)
    truth = labels["fraud"].to_numpy()[read.frame["row"].to_numpy()]
    np.testing.assert_array_equal(fraud_of(read, labels["fraud"]), truth)
    mixed = labels.sample(fraction=1.0, shuffle=True, seed=1).filter(
        pl.col("fraud") | (pl.int_range(pl.len()) % 2 == 0)
    )
    mixed.with_columns(pl.col("fraud").cast(pl.Int8)).write_csv(tmp_path / "labels.csv")
    told = read_label_table(tmp_path / "labels.csv", SIMULATED_SCHEMA, "fraud")
    np.testing.assert_array_equal(fraud_of(read, told), truth)


def test_a_table_without_the_labels_is_refused(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    with pytest.raises(InputError, match="no column of labels 'nope'; columns there are: event_id, fraud, kind"):
        read_label_table(world[1], SIMULATED_SCHEMA, "nope")


def test_past_fraud_is_told_of_every_view_once(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """A further view counts like a category, and one that is a category too counts once."""
    customers = encoded(*world)
    assert "c:merchant_id" in customers.frame.columns
    both = SIMULATED_SCHEMA.model_copy(update={"entity": (("customer_id",), ("merchant_id",))})
    np.testing.assert_array_equal(encoded(*world, both).risk, customers.risk)
    rest = tuple(name for name in SIMULATED_SCHEMA.categorical if name != "merchant_id")
    without, with_view = (
        encoded(*world, SIMULATED_SCHEMA.model_copy(update={"categorical": rest, "entity": entity}))
        for entity in (SIMULATED_SCHEMA.entity, both.entity)
    )
    assert with_view.risk.shape[1] > without.risk.shape[1]
    shop = with_view.frame["e:merchant_id"].rank("dense").to_numpy().astype(np.int64)
    told = known_past(shop, with_view.time, with_view.fraud, delay=7 * DAY, windows=[DAY, 7 * DAY, 30 * DAY])
    np.testing.assert_array_equal(with_view.risk[:, -told.shape[1] :], told)
