"""The laws of the design, each on a fitted detector and data with holes. What a law means for one part is tested there:
padding in test_models.py, one pass in test_batches.py, streams in test_stream.py, resuming in test_training.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from conftest import SPLIT, UNTIDY_SPLIT, agree
from oracles import UNTIDY_SCHEMA, untidy_table
from polars.testing import assert_frame_equal

from anomaly.detector import Detector
from anomaly.ingest import read_events
from anomaly.schema import Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate

Untidy = Callable[[float | None], Detector]

QUARANTINES = [0.0, None, 24.0 * 60]


@pytest.fixture(scope="module", params=QUARANTINES, ids=["no quarantine", "default quarantine", "long quarantine"])
def fitted(request: pytest.FixtureRequest, untidy_detector: Untidy) -> Detector:
    return untidy_detector(request.param)


@pytest.fixture(scope="module")
def told(fitted: Detector, untidy: pl.DataFrame) -> pl.DataFrame:
    return fitted.score(untidy)


def test_law_of_n_every_event_gets_one_row_in_the_order_of_the_input(fitted: Detector, untidy: pl.DataFrame) -> None:
    bad = untidy.head(12).with_columns(pl.col("at").cast(pl.String))
    bad = bad.with_columns(pl.Series("at", ["soon", "", "2024-13-01", "never"] * 3), id=pl.format("bad {}", "id"))
    mixed = pl.concat([untidy.with_columns(pl.col("at").cast(pl.String)), bad]).sample(fraction=1, shuffle=True, seed=4)
    events = read_events(mixed, UNTIDY_SCHEMA)
    scores = fitted.score(events)
    assert len(events.rejects) == 12
    assert len(scores) + len(events.rejects) == len(mixed) == events.n_input
    good = mixed.with_row_index("row").filter(~pl.col("id").str.starts_with("bad"))
    assert scores["row"].to_list() == good["row"].to_list()
    for name in ("id", "bank", "card", "amount", "tip", "balance", "merchant", "channel"):
        assert scores[name].to_list() == good[name].to_list(), name


def test_law_of_n_nothing_is_invented(fitted: Detector, told: pl.DataFrame, untidy: pl.DataFrame) -> None:
    del fitted
    table = untidy.with_row_index("row").sort("card", "at", "row")
    place = ["lat", "lon"]
    before = table.select(pl.all().shift(1).over("card").name.suffix(" before"))
    table = pl.concat([table, before], how="horizontal").sort("row")
    first = table["id before"].is_null()
    holes = {"field:time:gap": first}
    holes |= {f"field:{name}": table[name].is_null() for name in ("amount", "tip", "balance", "merchant", "channel")}
    holes |= {f"field:first:{name}": table[name].is_null() for name in ("merchant", "channel")}
    nowhere = table.select(pl.any_horizontal(pl.col(*place, "lat before", "lon before").is_null())).to_series()
    holes |= {f"field:place:{name}": nowhere for name in ("distance", "speed")}
    holes |= {f"field:{name}": pl.repeat(False, len(table), eager=True) for name in ("count:1h", "clock:hour")}
    for name, hole in holes.items():
        if name in told.columns:  # a field may have no calibration on so small a slice
            assert told[name].is_null().to_list() == hole.to_list(), name
    assert told.select(pl.col("p_value", "score", "surprise", "status").null_count()).row(0) == (0, 0, 0, 0)


def test_scores_say_one_thing_in_three_ways(told: pl.DataFrame) -> None:
    p = told["p_value"].to_numpy()
    assert ((p > 0) & (p <= 1)).all()
    np.testing.assert_allclose(told["score"], 1 - p)
    np.testing.assert_allclose(told["surprise"], -np.log10(p), atol=1e-9)
    score = told["score"].to_numpy()
    assert ((score >= 0) & (score < 1)).all()


def test_every_status_occurs_where_it_should(told: pl.DataFrame, untidy: pl.DataFrame) -> None:
    holes = ("amount", "tip", "balance", "merchant", "channel", "lat", "lon")
    position = pl.int_range(pl.len()).over("card", order_by=["at", "row"])
    table = untidy.with_row_index("row").with_columns(position=position)
    since = pl.lit(UNTIDY_SPLIT).str.to_datetime(time_zone="UTC", time_unit="us")
    expected = table.select(
        pl.when(pl.any_horizontal(pl.col(holes).is_null()))
        .then(pl.lit("incomplete"))
        .when(pl.col("position") < 5)
        .then(pl.lit("learning"))
        .when(pl.col("at").min().over("card") >= since)
        .then(pl.lit("unseen"))
        .otherwise(pl.lit("ok"))
    ).to_series()
    assert told["status"].to_list() == expected.to_list()
    assert set(expected) == {"ok", "learning", "unseen", "incomplete"}


def test_law_of_time_later_events_change_nothing_earlier(
    fitted: Detector, told: pl.DataFrame, untidy: pl.DataFrame
) -> None:
    middle = pl.col("at") >= pl.lit("2024-02-28").str.to_datetime(time_zone="UTC", time_unit="us")
    early, late = untidy.filter(~middle), untidy.filter(middle)
    other = late.with_columns(
        amount=pl.lit(1e18), merchant=pl.lit("elsewhere"), lat=pl.lit(-80.0), tip=pl.lit(None, pl.Float64)
    )
    more = other.with_columns(at=pl.col("at") + pl.duration(seconds=7), id=pl.format("more {}", "id"))
    expected = told.filter(pl.col("id").is_in(early["id"].implode()))
    assert len(early) > 100
    for table in (early, pl.concat([early, other]), pl.concat([more, untidy]), pl.concat([late.head(30), early])):
        found = fitted.score(table).filter(pl.col("id").is_in(early["id"].implode()))
        assert len(found) == len(expected)
        agree(found, expected)


def test_law_of_time_other_entities_change_nothing(fitted: Detector, told: pl.DataFrame, untidy: pl.DataFrame) -> None:
    """Not even one whose amount is a card number, nor a new one in between."""
    mine, others = untidy.filter(card="K3"), untidy.filter(pl.col("card") != "K3")
    wild = others.with_columns(amount=pl.lit(4.2e18), balance=pl.lit(-1.7e308), channel=pl.lit("odd"))
    added = wild.with_columns(card=pl.concat_str(pl.col("card"), pl.lit("x")), id=pl.format("x{}", "id"))
    for table in (mine, pl.concat([wild, mine]), pl.concat([added, untidy])):
        agree(fitted.score(table).filter(card="K3"), told)


def test_law_of_time_an_event_is_judged_by_itself(fitted: Detector, told: pl.DataFrame, untidy: pl.DataFrame) -> None:
    last = untidy.group_by("card").agg(pl.col("id").sort_by("at").last())["id"]
    mine = pl.col("id").is_in(last.implode())
    dear = untidy.with_columns(amount=pl.when(mine).then(5e4).otherwise("amount"))
    both = fitted.score(dear).filter(mine).join(told, on="id", suffix=" before")
    assert (both["field:amount"] > both["field:amount before"].fill_null(0.0)).all()
    assert np.mean(both["p_value"].to_numpy() < both["p_value before"].to_numpy()) > 0.8


def test_law_of_time_the_end_of_the_history_is_the_end_of_what_is_learned(payments: pl.DataFrame) -> None:
    before = payments.filter(pl.col("time") < pl.lit("2024-01-20").str.to_datetime(time_zone="UTC"))
    fits = [
        Detector(SIMULATED_SCHEMA, hidden=4, epochs=1).fit(table, until="2024-01-20", progress=False)
        for table in (payments, before)
    ]
    assert same_bits(*fits)


def test_law_of_streams_scores_in_pieces_are_scores_at_once(
    fitted: Detector, told: pl.DataFrame, untidy: pl.DataFrame
) -> None:
    cards = sorted(untidy["card"].unique())
    for pieces in ([[card] for card in cards], [cards[0::2], cards[1::2]]):
        found = [fitted.score(untidy.filter(pl.col("card").is_in(piece))) for piece in pieces]
        agree(pl.concat(found), told)


def test_law_of_streams_a_later_start_changes_no_score(
    fitted: Detector, told: pl.DataFrame, untidy: pl.DataFrame
) -> None:
    found = fitted.score(untidy, since="2024-03-01")
    since = pl.lit("2024-03-01").str.to_datetime(time_zone="UTC", time_unit="us")
    assert found["id"].to_list() == untidy.filter(pl.col("at") >= since)["id"].to_list()
    agree(found, told)


def test_law_of_padding_the_order_of_the_rows_changes_no_score(detector: Detector, payments: pl.DataFrame) -> None:
    scores = detector.score(payments)
    mixed = payments.sample(fraction=1.0, shuffle=True, seed=1)
    agree(detector.score(mixed), scores, key="event_id")


def same_bits(a: Detector, b: Detector) -> bool:
    """Are the weights, the calibration and the held-out p-values of two detectors equal, bit by bit?"""
    for mine, other in zip(a.models_, b.models_, strict=True):
        arrays, others = mine.arrays(), other.arrays()
        if arrays.keys() != others.keys() or not all(torch.equal(arrays[key], others[key]) for key in arrays):
            return False
    return bool(np.array_equal(a.holdout_.p, b.holdout_.p)) and a.encoder_.columns_ == b.encoder_.columns_


def test_law_of_labels_they_never_reach_the_fit() -> None:
    """Right, wrong, permuted or absent labels give the same bits."""
    events, labels = simulate(customers=15, days=30, fraud_rate=0.05, seed=2)
    schema = SIMULATED_SCHEMA.model_copy(update={"label": "fraud"})
    right = events.with_columns(labels["fraud"])
    tables = {
        "right": (right, schema),
        "permuted": (right.with_columns(pl.col("fraud").shuffle(seed=3)), schema),
        "all fraud, as text": (right.with_columns(fraud=pl.lit("yes")), schema),
        "absent": (events, SIMULATED_SCHEMA),
    }
    fits, scores = {}, {}
    for name, (table, own) in tables.items():
        fits[name] = Detector(own, hidden=4, epochs=2).fit(table, progress=False)
        scores[name] = fits[name].score(table)
    for name in tables:
        assert same_bits(fits[name], fits["right"]), name
        assert_frame_equal(scores[name], scores["right"], check_exact=True)
    assert "fraud" not in scores["right"].columns


def test_law_of_calibration_what_calibrates_trained_and_stopped_nothing(
    detector: Detector, payments: pl.DataFrame
) -> None:
    fitted = detector.fitted_
    before = payments.filter(pl.col("time") < pl.lit(SPLIT).str.to_datetime(time_zone="UTC"))
    assert fitted["train"] + fitted["stop"] + fitted["held_out"] == fitted["events"] == len(before)
    time = np.sort(before["time"].dt.epoch("us").to_numpy() / 1e6)
    assert fitted["held_out_since"] == time[fitted["train"] + fitted["stop"]]
    np.testing.assert_array_equal(np.sort(detector.holdout_.time), time[-fitted["held_out"] :])
    assert time[fitted["train"] - 1] < time[fitted["train"]] < fitted["held_out_since"]


def test_law_of_calibration_held_out_events_move_no_weight(payments: pl.DataFrame) -> None:
    """Their amounts are ten times what they were: weights, scales and vocabularies stay, p-values follow."""
    history = payments.filter(pl.col("time") < pl.lit("2024-01-25").str.to_datetime(time_zone="UTC"))
    usual = Detector(SIMULATED_SCHEMA, hidden=4, epochs=2).fit(history, progress=False)
    held = pl.col("time").dt.epoch("us") / 1e6 >= usual.fitted_["held_out_since"]
    dear = history.with_columns(amount=pl.when(held).then(pl.col("amount") * 10).otherwise("amount"))
    other = Detector(SIMULATED_SCHEMA, hidden=4, epochs=2).fit(dear, progress=False)
    assert other.encoder_.columns_ == usual.encoder_.columns_
    assert not np.array_equal(other.holdout_.p, usual.holdout_.p)
    for mine, its in zip(usual.models_, other.models_, strict=True):
        arrays, others = mine.arrays(), its.arrays()
        assert all(torch.equal(arrays[key], others[key]) for key in arrays)


def test_law_of_calibration_later_p_values_of_normal_events_are_about_uniform() -> None:
    events, labels = simulate(customers=60, days=75, fraud_rate=0.0, seed=11)
    assert not labels["fraud"].any()
    detector = Detector(SIMULATED_SCHEMA, hidden=8, epochs=3).fit(events, until="2024-02-25", progress=False)
    p = detector.score(events, since="2024-02-25")["p_value"].to_numpy()
    assert len(p) > 1500
    for level, low, high in ((0.5, 0.4, 0.6), (0.1, 0.06, 0.16), (0.01, 0.002, 0.03)):
        assert low < np.mean(p <= level) < high, level


def test_law_of_the_seed_same_seed_same_bits_another_seed_others() -> None:
    events = simulate(customers=12, days=25, seed=6)[0]
    fits = [Detector(SIMULATED_SCHEMA, hidden=4, epochs=1, seed=seed).fit(events, progress=False) for seed in (5, 5, 6)]
    assert same_bits(fits[0], fits[1])
    assert_frame_equal(fits[0].score(events), fits[1].score(events), check_exact=True)
    assert not same_bits(fits[0], fits[2])


def test_law_of_the_seed_scoring_twice_gives_the_same_bits(detector: Detector, payments: pl.DataFrame) -> None:
    assert_frame_equal(detector.score(payments), detector.score(payments), check_exact=True)


def test_the_untidy_table_is_as_untidy_as_it_says() -> None:
    table = untidy_table()
    assert table.select(pl.struct("card", "at").is_duplicated().any()).item(), "equal times of one entity"
    assert table["at"].is_sorted() is False
    change = pl.lit("2024-03-10").str.to_datetime(time_zone="UTC", time_unit="us")
    assert table.select((pl.col("at").min() < change).and_(pl.col("at").max() > change)).item(), "a change of clocks"
    assert not len(read_events(table, UNTIDY_SCHEMA).rejects)
    assert isinstance(UNTIDY_SCHEMA, Schema)
