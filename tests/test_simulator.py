from __future__ import annotations

import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from anomaly.errors import ParameterError
from anomaly.features import great_circle_km
from anomaly.frauds import KINDS
from anomaly.simulator import SIMULATED_SCHEMA, simulate, write_simulation

DAYS = 100
SMALL: dict[str, Any] = {"customers": 60, "days": 40, "fraud_rate": 0.03}


@pytest.fixture(scope="module")
def payments() -> pl.DataFrame:
    """Events with their labels, what came before them at the same customer, and the run of fraud they belong to."""
    events, labels = simulate(customers=900, days=DAYS, fraud_rate=0.02, seed=3)
    frame = events.with_columns(labels["fraud"], labels["kind"], hour=pl.col("time").dt.hour())
    before = pl.col("time", "latitude", "longitude", "fraud").shift(1).over("customer_id").name.prefix("before_")
    frame = frame.with_columns(before).with_columns(
        gap=(pl.col("time") - pl.col("before_time")).dt.total_seconds(),
        km=pl.Series(great_circle_km(*_degrees(frame.with_columns(before)))).fill_nan(None),
        new_device=pl.int_range(pl.len()).over("customer_id", "device_id") == 0,
        typical=pl.col("amount").median().over("customer_id"),
    )
    return frame.with_columns(kmh=pl.col("km") / pl.max_horizontal("gap", 60) * 3600)


@pytest.fixture(scope="module")
def genuine(payments: pl.DataFrame) -> pl.DataFrame:
    return payments.filter(~pl.col("fraud"))


@pytest.fixture(scope="module")
def frauds(payments: pl.DataFrame) -> pl.DataFrame:
    """The frauds by customer and time, with `run`: a new kind or a pause of two weeks begins another one."""
    rows = payments.filter("fraud").sort("customer_id", "time")
    same = pl.struct("customer_id", "kind")
    begins = (same != same.shift(1)).fill_null(True) | (pl.col("time").diff() > pl.duration(days=14))
    rows = rows.with_columns(run=begins.cum_sum())
    return rows.with_columns(rank=pl.int_range(pl.len()).over("run"), length=pl.len().over("run"))


def _degrees(frame: pl.DataFrame) -> list[NDArray[np.float64]]:
    columns = ("latitude", "longitude", "before_latitude", "before_longitude")
    return [frame[name].fill_null(np.nan).to_numpy() for name in columns]


def _share(frame: pl.DataFrame, condition: pl.Expr) -> float:
    return frame.filter(condition).height / frame.height


def _quantile(series: pl.Series, q: float = 0.5) -> float:
    """0 the least, 0.5 the median, 1 the greatest."""
    return float(np.quantile(series.to_numpy(), q))


def _average_precision(score: pl.Series, label: pl.Series) -> float:
    hit = label.gather(score.arg_sort(descending=True)).to_numpy()
    return float((np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit].mean())


def test_events_are_complete_sorted_and_numbered_in_the_order_of_time(payments: pl.DataFrame) -> None:
    events, labels = simulate(**SMALL)
    texts = ("event_id", "customer_id", "merchant_id", "merchant_category", "channel", "device_id")
    numbers = ("amount", "latitude", "longitude")
    types = {**dict.fromkeys(texts, pl.String()), **dict.fromkeys(numbers, pl.Float64())}
    assert dict(events.schema) == {**types, "time": pl.Datetime("us", "UTC")}
    assert dict(labels.schema) == {"event_id": pl.String(), "fraud": pl.Boolean(), "kind": pl.String()}
    assert labels["event_id"].equals(events["event_id"])
    assert payments["time"].is_sorted()
    assert payments["event_id"].is_sorted()
    assert payments["event_id"].is_unique().all()
    assert payments["event_id"][0] == "E0000001"
    assert sum(payments.select(events.columns).null_count().row(0)) == 0
    first, last = payments["time"].dt.date().min(), payments["time"].dt.date().max()
    assert str(first) == "2024-01-01"
    assert str(last) == "2024-04-09"


def test_the_schema_describes_the_events() -> None:
    events, _ = simulate(**SMALL)
    assert set(SIMULATED_SCHEMA.columns()) == set(events.columns)
    assert SIMULATED_SCHEMA.label is None


def test_same_seed_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    first = write_simulation(tmp_path / "a", **SMALL, seed=5)
    again = write_simulation(tmp_path / "b" / "deeper", **SMALL, seed=5)
    other = write_simulation(tmp_path / "c", **SMALL, seed=6)
    assert [path.name for path in first] == ["events.parquet", "labels.parquet"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_bytes() != other[0].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["events.parquet", "labels.parquet"]
    events, labels = simulate(**SMALL, seed=5)
    assert_frame_equal(pl.read_parquet(first[0]), events)
    assert_frame_equal(pl.read_parquet(first[1]), labels)


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.01, 0.05, 0.2])
def test_the_share_of_fraud_is_the_one_asked_for(rate: float) -> None:
    events, labels = simulate(customers=500, days=90, fraud_rate=rate, seed=1)
    assert labels["fraud"].sum() == pytest.approx(rate * events.height, abs=12 + 100 * rate)
    assert (labels["fraud"] == (labels["kind"] != "")).all()
    if rate >= 0.01:
        assert set(labels["kind"]) - {""} == set(KINDS)


def test_every_kind_has_its_share(frauds: pl.DataFrame) -> None:
    counts = frauds["kind"].value_counts()
    assert counts.height == len(KINDS)
    assert _quantile(counts["count"], 0) > 0.85 * frauds.height / len(KINDS)
    assert _quantile(counts["count"], 1) < 1.15 * frauds.height / len(KINDS)


def test_frauds_are_spread_over_the_whole_period(payments: pl.DataFrame, frauds: pl.DataFrame) -> None:
    elapsed = (frauds["time"] - payments["time"].min()).dt.total_days() // (DAYS // 5)
    shares = elapsed.value_counts(normalize=True)["proportion"]
    assert len(shares) == 5
    assert _quantile(shares, 0) > 0.1


def test_a_customer_meets_one_fraud_at_a_time(frauds: pl.DataFrame) -> None:
    assert _quantile(frauds["length"], 0) >= 5
    assert _quantile(frauds["length"]) < 16


@pytest.mark.parametrize(("customers", "days"), [(1, 1), (1, 400), (40, 7), (200, 20), (300, 35)])
def test_small_and_short_simulations_work(customers: int, days: int) -> None:
    events, labels = simulate(customers=customers, days=days, fraud_rate=0.02, seed=2)
    assert events.height == labels.height
    assert events["time"].dt.date().is_between(date(2024, 1, 1), date(2024, 1, 1) + timedelta(days=days - 1)).all()
    assert events["time"].is_sorted()
    assert labels["fraud"].sum() <= 0.02 * events.height + 12


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("customers", 0),
        ("customers", 2.5),
        ("days", -3),
        ("days", True),
        ("seed", -1),
        ("fraud_rate", -0.01),
        ("fraud_rate", 1),
        ("fraud_rate", float("nan")),
        ("fraud_rate", "1 %"),
        ("start", "yesterday"),
        ("start", None),
    ],
)
def test_a_bad_argument_is_named(argument: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=rf"simulate: expected {argument} to be .*, got {value!r}"):
        simulate(**{argument: value})


def test_a_hundred_thousand_events_take_less_than_three_seconds() -> None:
    begin = time.perf_counter()
    events, _ = simulate(customers=600, days=90)
    assert events.height > 80_000
    assert time.perf_counter() - begin < 3.0


# What the frauds look like, and how seldom genuine payments look the same.


def test_account_takeover_goes_online_from_a_new_device(frauds: pl.DataFrame) -> None:
    kind = frauds.filter(kind="account_takeover")
    assert set(kind["channel"]) == {"online"}
    assert (kind.group_by("run").agg(pl.col("device_id").n_unique())["device_id"] == 1).all()
    assert kind.filter(rank=0)["new_device"].all()
    assert _quantile(kind["amount"] / kind["typical"]) > 3
    assert _quantile(_duration_days(kind), 1) <= 3.01


def test_card_testing_tries_tiny_amounts_within_minutes_and_then_buys(frauds: pl.DataFrame) -> None:
    kind = frauds.filter(kind="card_testing")
    trial = pl.col("rank") < (0.65 * pl.col("length")).ceil()
    tests, purchases = kind.filter(trial), kind.filter(~trial)
    assert set(kind["channel"]) == {"online"}
    assert _quantile(tests["amount"], 0.97) < 10
    assert _quantile(tests["amount"]) < 3
    minutes = tests.group_by("run").agg(last=(pl.col("time").max() - pl.col("time").min()).dt.total_minutes())
    assert _quantile(minutes["last"]) < 20
    shops = tests.group_by("run").agg(pl.len(), shops=pl.col("merchant_id").n_unique())
    assert _quantile(shops["shops"] / shops["len"]) > 0.7
    assert _quantile(purchases["amount"]) > 20 * _quantile(tests["amount"])


def test_genuine_payments_seldom_look_like_card_testing(genuine: pl.DataFrame) -> None:
    tiny = genuine.filter(pl.col("channel") == "online", pl.col("amount") < 5).sort("customer_id", "time")
    fourth = tiny.with_columns(span=(pl.col("time") - pl.col("time").shift(3)).over("customer_id").dt.total_minutes())
    assert 0 < fourth.filter(pl.col("span") < 10).height < 0.002 * genuine.height


def test_stolen_card_burst_stays_in_town_with_the_customer_s_own_card(frauds: pl.DataFrame) -> None:
    kind = frauds.filter(kind="stolen_card_burst")
    assert "online" not in set(kind["channel"])
    assert _share(kind, pl.col("new_device")) < 0.03  # only a customer's very first payment
    assert _quantile(kind.filter(rank=0)["km"], 0.9) < 50
    assert _quantile(_duration_days(kind)) < 0.5
    assert _share(kind, pl.col("amount").is_between(24, 50)) > 0.4


def test_bust_out_rises_and_then_the_customer_is_gone(payments: pl.DataFrame, frauds: pl.DataFrame) -> None:
    kind = frauds.filter(kind="bust_out")
    early = kind.filter(pl.col("rank") < pl.col("length") // 3)
    late = kind.filter(pl.col("rank") >= pl.col("length") - pl.col("length") // 3)
    assert _quantile(late["amount"]) > 3 * _quantile(early["amount"])
    assert 2 < _quantile(_duration_days(kind)) < 12
    last = kind.group_by("customer_id").agg(end=pl.col("time").max())
    after = payments.join(last, on="customer_id").filter(pl.col("time") > pl.col("end") + pl.duration(days=12))
    assert after.height == 0


def test_impossible_travel_is_faster_than_any_airliner(frauds: pl.DataFrame) -> None:
    kind = frauds.filter(kind="impossible_travel")
    assert _quantile(kind.filter(rank=0)["kmh"], 0) > 900
    assert _quantile(kind.filter(rank=0)["km"], 0) > 1000
    assert "online" not in set(kind["channel"])
    assert _share(kind, pl.col("new_device")) < 0.03  # only a customer's very first payment


def test_genuine_customers_travel_far_but_seldom_faster_than_an_airliner(genuine: pl.DataFrame) -> None:
    alone = genuine.filter(~pl.col("before_fraud"))
    assert alone.filter(pl.col("km") > 1000).height > 50
    assert _share(alone, (pl.col("km") > 100) & (pl.col("kmh") > 900)) < 0.001


def test_dormant_woken_follows_thirty_days_of_silence(frauds: pl.DataFrame, genuine: pl.DataFrame) -> None:
    first = frauds.filter(pl.col("kind") == "dormant_woken", pl.col("rank") == 0)
    assert first["gap"].null_count() == 0
    assert _quantile(first["gap"], 0) >= 30 * 86400
    # people come back from a long silence of their own, too, so that the gap alone proves nothing
    assert 10 < genuine.filter(pl.col("gap") >= 30 * 86400).height < 0.001 * genuine.height


def test_structuring_stays_just_below_the_limit(frauds: pl.DataFrame, genuine: pl.DataFrame) -> None:
    kind = frauds.filter(kind="structuring")
    assert _quantile(kind["amount"], 0) >= 850
    assert _quantile(kind["amount"], 1) < 1000
    assert set(kind["merchant_category"]) == {"money_transfer", "cash"}
    assert _quantile(_duration_days(kind)) > 2
    assert 0 < _share(genuine, pl.col("amount").is_between(900, 999.99)) < 0.005


def test_slow_drip_takes_small_sums_at_few_shops_over_weeks(frauds: pl.DataFrame) -> None:
    kind = frauds.filter(kind="slow_drip")
    assert _quantile(_duration_days(kind)) > 12
    assert _quantile(kind["amount"], 0.9) < 60
    assert _quantile(kind.group_by("run").agg(pl.col("merchant_id").n_unique())["merchant_id"], 0.9) <= 2


def _duration_days(frauds: pl.DataFrame) -> pl.Series:
    spans = frauds.group_by("run").agg(span=pl.col("time").max() - pl.col("time").min())
    return spans["span"].dt.total_seconds() / 86400


# Nothing but behaviour tells the frauds.


def test_amounts_are_written_alike(genuine: pl.DataFrame, frauds: pl.DataFrame) -> None:
    for rows in (genuine, frauds):
        cents = rows["amount"] * 100
        assert _quantile((cents - cents.round()).abs(), 1) < 1e-6
        cash = rows.filter(merchant_category="cash")
        assert set(cash["channel"]) == {"atm"}
        assert (cash["amount"] % 10 == 0).all()
        assert _quantile(rows["amount"], 0) >= 0.1
        assert _quantile(rows.filter(channel="contactless")["amount"], 1) <= 50
        for column in ("latitude", "longitude"):
            assert _quantile((rows[column] * 1e4 - (rows[column] * 1e4).round()).abs(), 1) < 1e-4
    ending = (pl.col("amount") * 100).round() % 100
    ordinary = ~pl.col("merchant_category").is_in(["cash", "money_transfer"]) & (pl.col("amount") >= 3)
    for cents_of_price in (0, 50, 95, 99):
        share = [_share(rows.filter(ordinary), ending == cents_of_price) for rows in (genuine, frauds)]
        assert share[0] == pytest.approx(share[1], abs=0.035)


def test_identifiers_say_nothing(payments: pl.DataFrame, genuine: pl.DataFrame, frauds: pl.DataFrame) -> None:
    for column, letter in (("customer_id", "C"), ("merchant_id", "M"), ("device_id", "D")):
        length = payments[column].str.len_chars()
        assert length.min() == length.max()
        number = payments[column].str.slice(1).cast(pl.Int64)
        assert payments[column].str.starts_with(letter).all()
        unique = pl.DataFrame({"id": number, "fraud": payments["fraud"]}).group_by("id").agg(pl.col("fraud").max())
        rank = unique.filter("fraud")["id"] / _quantile(number, 1)
        assert rank.mean() == pytest.approx(0.5, abs=4 * 0.289 / len(rank) ** 0.5)
    for column in ("merchant_category", "channel"):
        assert set(frauds[column]) <= set(genuine[column])
    # frauds buy where others buy: hardly a merchant has fraud only
    assert _share(frauds, ~pl.col("merchant_id").is_in(genuine["merchant_id"].unique().implode())) < 0.05
    seconds = pl.col("time").dt.microsecond() == 0
    assert _share(payments, seconds) == 1.0


def test_the_amount_alone_is_neither_useless_nor_enough(payments: pl.DataFrame) -> None:
    events, labels = simulate(seed=4, customers=1000)
    ratio = events["amount"] / events.select(pl.col("amount").median().over("customer_id"))["amount"]
    assert 0.08 < _average_precision(events["amount"], labels["fraud"]) < 0.3
    assert 0.08 < _average_precision(ratio, labels["fraud"]) < 0.3
    tiny = payments.with_columns(score=-pl.col("amount"))
    assert _average_precision(tiny["score"], tiny["fraud"]) < 0.1


# Genuine payments are as untidy as people are.


def test_people_pay_about_twice_a_day_and_differ(genuine: pl.DataFrame) -> None:
    per_customer = genuine["customer_id"].value_counts()["count"]
    assert 1.5 < genuine.height / 900 / DAYS < 2.5
    assert _quantile(per_customer, 0.95) > 8 * _quantile(per_customer, 0.05)
    typical = genuine.group_by("customer_id").agg(pl.col("amount").median())["amount"]
    assert _quantile(typical, 0.95) > 3 * _quantile(typical, 0.05)
    assert _quantile(genuine["amount"], 1) > 50 * _quantile(genuine["amount"])


def test_days_and_weeks_have_a_rhythm_of_the_customer_s_own(genuine: pl.DataFrame) -> None:
    assert 0.002 < _share(genuine, pl.col("hour") < 6) < 0.05
    assert _share(genuine, pl.col("hour").is_between(9, 20)) > 0.75
    busy = genuine.filter(pl.len().over("customer_id") >= 100)
    own = busy.group_by("customer_id").agg(
        hour=pl.col("hour").mean(), weekend=(pl.col("time").dt.weekday() >= 6).mean(), n=pl.len()
    )
    # chance alone would spread the means by about 4 hours / sqrt(n) and sqrt(0.2 / n)
    assert np.std(own["hour"].to_numpy()) > 2 * 4 / 200**0.5
    assert np.std(own["weekend"].to_numpy()) > 1.5 * (0.2 / 200) ** 0.5


def test_customers_return_to_their_favourite_merchants(genuine: pl.DataFrame) -> None:
    groceries = genuine.filter(pl.col("merchant_category") == "grocery", pl.len().over("customer_id") >= 100)
    visits = groceries.group_by("customer_id", "merchant_id").len().sort("len", descending=True)
    top = visits.group_by("customer_id").agg(top=pl.col("len").head(3).sum(), all=pl.col("len").sum())
    assert 0.4 < np.sum(top["top"].to_numpy()) / np.sum(top["all"].to_numpy()) < 0.95


def test_life_is_untidy(genuine: pl.DataFrame) -> None:
    first = genuine.group_by("customer_id").agg(pl.col("time").min())["time"]
    assert 0.03 < np.mean((first.dt.ordinal_day() > 14).to_numpy()) < 0.3
    own_device = genuine.filter("new_device", pl.col("time") > pl.datetime(2024, 2, 1, time_zone="UTC"))
    assert own_device["customer_id"].n_unique() > 100
    assert _share(genuine, pl.col("amount") > 10 * pl.col("typical")) > 0.005
    by_hour = genuine.group_by("customer_id", pl.col("time").dt.truncate("1h")).len()
    assert _quantile(by_hour["len"], 1) >= 8
    devices = genuine.group_by("customer_id").agg(pl.col("device_id").n_unique())["device_id"]
    assert _quantile(devices, 0.9) <= 4
