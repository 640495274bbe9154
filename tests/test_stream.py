"""Stream: events pushed one by one get the scores that the table gets, and what is refused leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import UNTIDY_SPLIT, agree
from oracles import UNTIDY_SCHEMA, untidy_table

from anomaly.detector import Detector
from anomaly.entity_state import DONE, FIRST_MET, TIMES, WAITING, Workbench
from anomaly.errors import ArtifactError, InputError, NotFittedError, OrderError
from anomaly.ingest import read_events
from anomaly.models.base import averaged
from anomaly.schema import NumericField, Place, Schema
from anomaly.sequences import MOST_RECENT, MOST_VALUES, MOST_WAITING
from anomaly.stream import Stream, rules_of
from anomaly.thresholds import OnlineFalseDiscoveryRate

Untidy = Callable[[float | None], Detector]

AMOUNT = NumericField(name="amount", tail="upper")
VALUE = NumericField(name="value", scale="linear", tail="both")


def pushed(stream: Stream, table: pl.DataFrame, time: str) -> pl.DataFrame:
    """What the stream says of the rows, in the order of time, as a table in the order of the input."""
    rows = table.with_row_index("row").sort(time, "row", maintain_order=True)
    return pl.DataFrame([{"row": row["row"], **stream.push(row)} for row in rows.iter_rows(named=True)]).sort("row")


def same(detector: Detector, table: pl.DataFrame, time: str) -> pl.DataFrame:
    """Push the rows, and compare with the scores of the table."""
    streamed, scored = pushed(Stream(detector), table, time), detector.score(table)
    assert streamed["row"].to_list() == scored["row"].to_list()
    agree(streamed, scored, "row")
    return streamed


def simple_table(events: int = 120, entities: int = 4, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    seconds = np.sort(draw.integers(0, 20 * 86_400, events))
    return pl.DataFrame({
        "at": 1_700_000_000.0 + seconds,
        "card": [f"K{draw.integers(entities)}" for _ in range(events)],
        "amount": np.round(np.exp(draw.normal(3, 1, events)), 2),
        "value": draw.normal(size=events),
        "merchant": [("shop", "fuel", "web")[draw.integers(3)] for _ in range(events)],
        "channel": [("chip", "web")[draw.integers(2)] for _ in range(events)],
        "latitude": 50 + draw.random(events),
        "longitude": draw.random(events),
    })  # fmt: skip


SCHEMAS: Mapping[str, Schema] = {
    "one sequence, numbers": Schema(time="at", numeric=(AMOUNT, VALUE)),
    "time alone": Schema(time="at", entity=("card",)),
    "categories alone": Schema(time="at", entity=("card",), categorical=("merchant", "channel")),
    "places": Schema(
        time="at", entity=("card",), numeric=(AMOUNT,), place=Place(latitude="latitude", longitude="longitude")
    ),
    "a zone with summer time": Schema(
        time="at", entity=("card",), numeric=(AMOUNT,), categorical=("merchant",), time_zone="Europe/Berlin"
    ),
}


@pytest.mark.parametrize("hours", [0.0, None, 24.0 * 60], ids=["no quarantine", "default", "long"])
def test_a_stream_of_untidy_events_gets_the_scores_of_the_table(
    untidy_detector: Untidy, untidy: pl.DataFrame, hours: float | None
) -> None:
    detector = untidy_detector(hours)
    few = untidy.filter(pl.col("card").is_in(["K0", "K3", "K6", "K7", "K8", "K9"]))
    assert set(same(detector, few, "at")["status"]) == {"ok", "learning", "unseen", "incomplete"}


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_stream_of_any_schema_gets_the_scores_of_the_table(name: str) -> None:
    table = simple_table()
    if name == "a zone with summer time":  # 29 October 2023, 03:00 -> 02:00
        table = table.with_columns(pl.col("at") - 1_700_000_000.0 + datetime(2023, 10, 20, tzinfo=UTC).timestamp())
    schema = SCHEMAS[name]
    detector = Detector(schema, hidden=4, epochs=1).fit(table, progress=False)
    same(detector, table, "at")


def test_a_stream_of_payments_gets_the_scores_of_the_table(detector: Detector, payments: pl.DataFrame) -> None:
    few = payments.filter(pl.col("customer_id").is_in(["C01", "C02", "C40"])).head(120)
    same(detector, few, "time")


@pytest.mark.parametrize("hours", [1.0, 24.0])
def test_the_ends_of_windows_and_quarantine_are_the_same_to_the_second(hours: float) -> None:
    """Events an hour apart, and some at once: each leaves a window, and enters the memory, at a full hour."""
    table = simple_table(entities=2)
    whole_hours = 1_700_000_000.0 + np.cumsum(np.random.default_rng(3).choice([0, 1, 1, 12, 24], 120)) * 3600.0
    table = table.with_columns(pl.Series("at", whole_hours))
    schema = Schema(time="at", entity=("card",), numeric=(AMOUNT,), categorical=("merchant",))
    detector = Detector(schema, hidden=4, epochs=1, quarantine_hours=hours).fit(table, progress=False)
    same(detector, table, "at")


def test_a_stream_survives_a_monstrous_amount() -> None:
    table = simple_table(entities=2)
    schema = Schema(time="at", entity=("card",), numeric=(AMOUNT, VALUE))
    detector = Detector(schema, hidden=4, epochs=1, quarantine_hours=24).fit(table, progress=False)
    at = pl.int_range(pl.len())
    wild = table.with_columns(
        amount=pl.when(at == 30).then(4.2e18).when(at == 60).then(-1.7e308).otherwise("amount"),
        value=pl.when(at == 40).then(1.7e308).otherwise("value"),
    )
    same(detector, wild, "at")


def test_events_as_text_are_read_as_in_a_table(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    few = untidy.filter(card="K1").sort("at")
    text = few.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"), pl.col("amount", "lat").cast(pl.String))
    found = [Stream(detector), Stream(detector)]
    for row, words in zip(few.iter_rows(named=True), text.iter_rows(named=True), strict=True):
        assert found[0].push(row) == found[1].push(words)


def test_the_entities_of_a_stream_do_not_know_of_each_other(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    mine = untidy.filter(card="K2").sort("at")
    alone = [Stream(detector).push(mine.row(0, named=True))]
    stream, both = Stream(detector), []
    for row in mine.iter_rows(named=True):
        stream.push(row | {"card": "other", "amount": 1e18})
        both.append(stream.push(row))
        stream.push(row | {"bank": "other", "amount": -5.0})
    assert both[0] == alone[0]
    assert len(stream) == 3
    lone = Stream(detector)
    assert [lone.push(row) for row in mine.iter_rows(named=True)] == both


def test_an_event_out_of_order_is_refused_and_forgotten(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    rows = list(untidy.filter(card="K4").sort("at").iter_rows(named=True))
    late = rows[10] | {"at": rows[10]["at"] - timedelta(seconds=1), "amount": 1e6, "merchant": "new"}
    plain, disturbed = Stream(detector), Stream(detector)
    for at, row in enumerate(rows):
        expected = plain.push(row)
        assert disturbed.push(row) == expected
        if at >= 10:
            with pytest.raises(OrderError, match=r"K4.*older") as caught:
                disturbed.push(late | {"at": row["at"] - timedelta(seconds=1)})
            assert isinstance(caught.value, ValueError)
    assert len(disturbed) == 1


def test_an_event_of_the_same_time_is_in_order(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    stream = Stream(untidy_detector(None))
    row = untidy.row(0, named=True)
    for _ in range(3):
        stream.push(row)


@pytest.mark.parametrize(
    "fault",
    [{"at": None}, {"at": "soon"}, {"card": None}, {"amount": "a lot"}, {"lat": "95.0"}, {"balance": "inf"}],
)
def test_what_a_table_would_reject_is_refused_for_the_same_reason_and_forgotten(
    untidy_detector: Untidy, untidy: pl.DataFrame, fault: dict[str, Any]
) -> None:
    detector = untidy_detector(None)
    rows = list(untidy.filter(card="K5").sort("at").iter_rows(named=True))[:8]
    bad = rows[4] | fault
    stream, plain = Stream(detector), Stream(detector)
    for at, row in enumerate(rows):
        if at == 4:
            table = pl.DataFrame([{name: None if value is None else str(value) for name, value in bad.items()}])
            reason = read_events(table, UNTIDY_SCHEMA).rejects["reason"][0]
            with pytest.raises(InputError) as caught:
                stream.push(bad)
            assert str(caught.value) == reason
        assert stream.push(row) == plain.push(row)


def test_a_refused_first_event_makes_no_entity(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    stream = Stream(untidy_detector(None))
    with pytest.raises(InputError):
        stream.push(untidy.row(0, named=True) | {"at": "never"})
    assert len(stream) == 0


def test_a_stream_needs_a_fitted_detector() -> None:
    with pytest.raises(NotFittedError, match="fit"):
        Stream(Detector(UNTIDY_SCHEMA))


def test_a_stream_changes_nothing_of_its_detector(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(0.0)
    before = [{name: value.clone() for name, value in model.arrays().items()} for model in detector.models_]
    stream = Stream(detector)
    for row in untidy.sort("at").head(40).iter_rows(named=True):
        stream.push(row)
    after = [model.arrays() for model in detector.models_]
    assert all(bool((a[name] == b[name]).all()) for a, b in zip(after, before, strict=True) for name in b)


def test_a_saved_detector_streams_the_same_scores(untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Any) -> None:
    detector = untidy_detector(None)
    again = Stream(Detector.load(detector.save(tmp_path / "saved")))
    stream = Stream(detector)
    for row in untidy.sort("at").head(60).iter_rows(named=True):
        assert stream.push(row) == again.push(row)


def test_the_state_of_an_entity_does_not_grow_with_its_history() -> None:
    """Events of one card that meets no new merchant: after two hundred the state is that after a hundred."""
    schema = Schema(time="at", entity=("card",), numeric=(AMOUNT,), categorical=("merchant",))
    detector = Detector(schema, hidden=4, epochs=1, quarantine_hours=48).fit(simple_table(), progress=False)
    stream, sizes = Stream(detector), {}
    for at in range(200):
        stream.push({"at": 1_700_000_000 + at * 36_000, "card": "K1", "amount": 5.0, "merchant": "shop"})
        sizes[at] = stream.state_bytes("K1")
    assert sizes[199] <= 1.1 * sizes[99]


def test_other_columns_are_ignored_and_absent_ones_are_missing(untidy_detector: Untidy, untidy: pl.DataFrame) -> None:
    detector = untidy_detector(None)
    row = next(row for row in untidy.iter_rows(named=True) if None not in row.values())
    plain = Stream(detector).push(row)
    assert Stream(detector).push(row | {"remark": object(), "is_fraud": 1}) == plain
    assert plain["status"] == "learning"
    holed = Stream(detector).push({name: value for name, value in row.items() if name != "tip"})
    assert holed["status"] == "incomplete"
    assert set(holed) == {"p_value", "score", "surprise", "status", "p_autoencoder", "p_forecaster", "recent"}


def test_a_stream_with_a_rule_alerts_as_the_table_does(detector: Detector, payments: pl.DataFrame) -> None:
    few = payments.filter(pl.col("customer_id").is_in(["C01", "C02", "C40"])).head(150)
    rule = detector.threshold(false_alert_rate=0.05)
    streamed = pushed(Stream(detector, rule), few, "time")
    assert streamed["alert"].to_list() == rule.decide(detector.score(few)["p_value"].to_numpy()).tolist()
    assert 0 < streamed["alert"].sum() < 75


def test_a_rule_that_learns_learns_from_what_is_pushed(detector: Detector, payments: pl.DataFrame) -> None:
    few = payments.sort("time").head(150)
    rules = [OnlineFalseDiscoveryRate(0.1) for _ in range(2)]
    for rule in rules:
        detector.threshold(rule)
    before = rules[0].state()
    streamed = pushed(Stream(detector, rules[0]), few, "time")
    by_hand = [rules[1].decide_one(p) for p in streamed["p_value"]]
    assert streamed["alert"].to_list() == by_hand
    assert rules[0].state() == rules[1].state() != before


def test_the_split_of_the_untidy_table_leaves_entities_unseen() -> None:
    table = untidy_table()
    since = pl.lit(UNTIDY_SPLIT).str.to_datetime(time_zone="UTC", time_unit="us")
    assert table.group_by("card").agg(new=pl.col("at").min() >= since)["new"].sum() == 2


def busy_table(events: int, seconds: float) -> pl.DataFrame:
    """Payments of one busy card among others, each at another shop."""
    table = simple_table(events=300, entities=4)
    return pl.concat([
        table.select("at", "card", "amount", "merchant"),
        pl.DataFrame({
            "at": 1_700_000_000.0 + seconds * np.arange(events),
            "card": ["busy"] * events,
            "amount": np.random.default_rng(1).lognormal(3, 1, events).round(2),
            "merchant": [f"M{at * 7919 % (events // 2)}" for at in range(events)],
        }),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def busy() -> tuple[Detector, pl.DataFrame]:
    """A card with more events than any bound lets a stream keep, and a detector of 20 hours of quarantine."""
    schema = Schema(time="at", entity=("card",), numeric=(AMOUNT,), categorical=("merchant",))
    table = busy_table(2_600, seconds=120.0)
    return Detector(schema, hidden=4, epochs=1, quarantine_hours=20).fit(table, progress=False), table


def test_a_busy_entity_gets_the_scores_of_the_table_beyond_every_bound(busy: tuple[Detector, pl.DataFrame]) -> None:
    detector, table = busy
    same(detector, table, "at")


def test_the_state_of_a_busy_entity_is_bounded(busy: tuple[Detector, pl.DataFrame]) -> None:
    """Each bound is reached, and the state does not grow any more; at full size too it is below 64 kB."""
    detector, table = busy
    stream, sizes = Stream(detector), []
    for row in table.filter(card="busy").iter_rows(named=True):
        stream.push(row)
        sizes.append(stream.state_bytes("busy"))
    bench = stream._views[0]._bench
    bench.open(stream._views[0].entities["busy"])
    counts = bench.state.counts
    assert counts[TIMES] == MOST_RECENT - 1
    assert counts[WAITING] + counts[DONE] == MOST_WAITING + 1
    assert counts[FIRST_MET] == MOST_VALUES
    assert max(sizes[1_300:]) <= 1.02 * sizes[1_300] < 64_000


def test_the_state_of_any_entity_of_the_demo_is_below_64_kb(detector: Detector) -> None:
    """By the bounds: memories of 64 units, five kinds of numbers, four categories, a place."""
    rules = rules_of(detector)
    numeric = detector.encoder_.numeric
    full = Workbench(
        rules, memory=4 * 64, averaged=len(averaged(numeric)), given=2, columns=len(detector.encoder_.category)
    )
    assert sum(part.nbytes for part in full.state) < 64_000


def burst(events: int) -> list[dict[str, Any]]:
    """So many payments of one card within seconds, each at another shop, then one after a month."""
    rows = [
        {"at": 1_700_000_000.0 + at / 100, "card": "K1", "amount": 5.0 + at % 7, "merchant": f"M{at}"}
        for at in range(events)
    ]
    return [*rows, rows[-1] | {"at": 1_702_600_000.0}]


def test_a_burst_inside_the_quarantine_is_bounded_and_scored_as_the_table_scores_it() -> None:
    """Of more events than may wait, the oldest enter the memory early: the state stays small, and nothing is lost."""
    schema = Schema(time="at", entity=("card",), numeric=(AMOUNT,), categorical=("merchant",))
    detector = Detector(schema, epochs=1, quarantine_hours=48)
    detector.fit(simple_table().select("at", "card", "amount", "merchant"), progress=False)
    rows = burst(3 * MOST_WAITING)
    same(detector, pl.DataFrame(rows), "at")
    stream = Stream(detector)
    for row in burst(2 * MOST_RECENT):
        stream.push(row)
        assert stream.state_bytes("K1") < 64_000
    bench = stream._views[0]._bench
    opened = bench.open(stream._views[0].entities["K1"])
    assert opened.events == 2 * MOST_RECENT + 1
    assert opened.remembered == 2 * MOST_RECENT  # the quarantine is over for all but the last


def halves(detector: Detector, table: pl.DataFrame, time: str, folder: Path) -> tuple[list[Any], list[Any]]:
    """What a stream says of the second half of the events; and what one says that was saved and loaded in between."""
    rows = list(table.sort(time, maintain_order=True).iter_rows(named=True))
    before, after = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    stream = Stream(detector)
    for row in before:
        stream.push(row)
    again = Stream.load(stream.save(folder), Detector.load(detector.save(folder.with_name("detector"))))
    assert len(again) == len(stream) > 0
    return [stream.push(row) for row in after], [again.push(row) for row in after]


def test_a_stream_that_is_saved_and_loaded_goes_on_as_if_it_had_never_stopped(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path
) -> None:
    few = untidy.filter(pl.col("card").is_in(["K0", "K3", "K6", "K7"]))
    straight, resumed = halves(untidy_detector(None), few, "at", tmp_path / "stream")
    assert straight == resumed


def test_a_busy_stream_survives_a_restart(busy: tuple[Detector, pl.DataFrame], tmp_path: Path) -> None:
    straight, resumed = halves(*busy, "at", tmp_path / "stream")
    assert straight == resumed


def test_a_stream_without_an_event_is_saved_and_loaded(detector: Detector, tmp_path: Path) -> None:
    assert len(Stream.load(Stream(detector).save(tmp_path / "stream"), detector)) == 0


def test_what_a_rule_has_learned_is_saved_with_the_stream(
    detector: Detector, payments: pl.DataFrame, tmp_path: Path
) -> None:
    rows = list(payments.sort("time").head(200).iter_rows(named=True))
    rules = [OnlineFalseDiscoveryRate(0.1) for _ in range(2)]
    for rule in rules:
        detector.threshold(rule)
    stream = Stream(detector, rules[0])
    for row in rows[:100]:
        stream.push(row)
    again = Stream.load(stream.save(tmp_path / "stream"), detector, rules[1])
    assert rules[1].state() == rules[0].state()
    assert [stream.push(row) for row in rows[100:]] == [again.push(row) for row in rows[100:]]


def test_a_stream_of_another_detector_is_refused(
    detector: Detector, untidy_detector: Untidy, payments: pl.DataFrame, tmp_path: Path
) -> None:
    stream = Stream(detector)
    stream.push(payments.row(0, named=True))
    folder = stream.save(tmp_path / "stream")
    with pytest.raises(ArtifactError, match="another detector"):
        Stream.load(folder, untidy_detector(None))
    with pytest.raises(ArtifactError, match="holds no stream"):
        Stream.load(detector.save(tmp_path / "detector"), detector)
    part = next(folder.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="was changed"):
        Stream.load(folder, detector)
