"""Encoder: every derived column against its definition in loops, and what is learned from which events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import oracles
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.errors import NotFittedError, ParameterError, SchemaError
from anomaly.features import (
    FARTHEST,
    FIRST_CODE,
    UNSEEN,
    Column,
    Encoder,
    entity_offsets,
    great_circle_km,
    judged_twice,
    raw_numbers,
    speed_kmh,
)
from anomaly.ingest import read_events
from anomaly.schema import NumericField, Place, Schema

SCHEMA = Schema(
    time="at",
    entity=("card",),
    event_id="id",
    numeric=(
        NumericField(name="amount", tail="upper"),
        NumericField(name="tip", tail="both"),
        NumericField(name="balance", scale="linear", tail="lower"),
    ),
    categorical=("merchant", "channel"),
    place=Place(latitude="lat", longitude="lon"),
    time_zone="Europe/Berlin",
)
BEFORE_SPRING = datetime(2024, 3, 30, 22, 0, tzinfo=UTC).timestamp()  # five hours before the clocks skip one
BEFORE_AUTUMN = datetime(2024, 10, 26, 22, 0, tzinfo=UTC).timestamp()

gaps = st.sampled_from(
    [0.0, 0.000001, 0.5, 1.0, 59.0, 60.0, 61.0, 3599.999999, 3600.0, 3600.000001, 7200.0, 86_400.0, 604_800.0, 1e7]
)
amounts = st.sampled_from([None, 0.0, 0.01, 5.0, 19.99, 250.0, 1e6]) | st.floats(-1e4, 1e4)
words = st.sampled_from([None, "a", "b", "c", "Ä 'quoted'"])
places = st.sampled_from([None, 0.0, 52.52, 52.53, -33.9, 90.0]), st.sampled_from([None, 0.0, 13.4, 179.9, -179.9])
rows = st.tuples(gaps, amounts, amounts, amounts, words, words, *places)
tables = st.tuples(
    st.sampled_from([0.0, BEFORE_SPRING, BEFORE_AUTUMN, -1e9]),
    st.lists(st.lists(rows, min_size=1, max_size=10), min_size=1, max_size=4),
)


def table_of(start: float, histories: list[list[tuple[Any, ...]]]) -> pl.DataFrame:
    """A table from gaps and values, one list per entity."""
    found: list[tuple[Any, ...]] = []
    for number, history in enumerate(histories):
        time = start
        for gap, amount, tip, balance, merchant, channel, lat, lon in history:
            time = round(time + gap, 6)
            found.append((time, f"card {number}", amount, tip, balance, merchant, channel, lat, lon, str(len(found))))
    floats = dict.fromkeys(("amount", "tip", "balance", "lat", "lon"), pl.Float64)
    texts = dict.fromkeys(("card", "merchant", "channel", "id"), pl.String)
    order = ["at", "card", "amount", "tip", "balance", "merchant", "channel", "lat", "lon", "id"]
    types = {"at": pl.Float64, **floats, **texts}
    return pl.DataFrame(found, schema={name: types[name] for name in order}, orient="row")


def canonical(start: float, histories: list[list[tuple[Any, ...]]]) -> pl.DataFrame:
    events = read_events(table_of(start, histories), SCHEMA)
    assert not len(events.rejects)
    return events.frame


@settings(deadline=None, max_examples=60)
@given(tables)
def test_every_derived_number_is_what_its_definition_says(drawn: tuple[float, Any]) -> None:
    frame = canonical(*drawn)
    raw = raw_numbers(frame, SCHEMA)
    told = oracles.raw_columns(oracles.plain_events(frame, SCHEMA), SCHEMA)
    assert list(raw) == list(told)
    for name, values in raw.items():
        # Two places that differ by nothing are as far apart as rounding makes them.
        slack = 0.05 if name.startswith("place:") else 1e-9
        np.testing.assert_allclose(values, told[name], rtol=1e-9, atol=slack, err_msg=name)


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from([0.0, 60.0, 3 * 3600.0, 1e9]), st.sampled_from([1, 200]))
def test_every_code_is_what_its_definition_says(drawn: tuple[float, Any], lately: float, largest: int) -> None:
    frame = canonical(*drawn)
    encoder = Encoder(SCHEMA, largest_vocabulary=largest, fewest_events=2, lately=lately).fit(frame)
    own = [column.name for column in encoder.category if column.own]
    told = oracles.category_words(oracles.plain_events(frame, SCHEMA), SCHEMA, lately, own)
    codes = encoder.transform(frame).category
    assert sorted(column.name for column in encoder.category) == sorted(told)
    for index, column in enumerate(encoder.category):
        assert codes[:, index].tolist() == [oracles.code(word, column.vocabulary) for word in told[column.name]]


@settings(deadline=None, max_examples=40)
@given(tables)
def test_numbers_are_scaled_by_what_was_learned_and_come_back(drawn: tuple[float, Any]) -> None:
    frame = canonical(*drawn)
    encoder = Encoder(SCHEMA).fit(frame)
    raw, encoded = raw_numbers(frame, SCHEMA), encoder.transform(frame).numeric
    for index, column in enumerate(encoder.numeric):
        values = raw[column.name]
        transformed = [math.asinh(value / column.unit) if column.unit else value for value in values]
        expected = np.clip([(value - column.center) / column.scale for value in transformed], -FARTHEST, FARTHEST)
        np.testing.assert_allclose(encoded[:, index], expected, rtol=1e-5, atol=1e-5, err_msg=column.name)
        again = column.decode(column.encode(values))
        np.testing.assert_allclose(again, values, rtol=1e-6, atol=1e-6, err_msg=column.name)


def test_an_event_counts_in_its_own_windows_and_an_hour_ends_after_an_hour() -> None:
    plain = (None, None, None, None, None)
    history = [(0.0, 1.0, *plain[:2], "a", *plain[:3]), (3600.0, 2.0, *plain[:2], "a", *plain[:3])]
    frame = canonical(0.0, [history])
    raw = raw_numbers(frame, SCHEMA)
    assert raw["count:1h"].tolist() == [1.0, 1.0]
    assert raw["count:24h"].tolist() == [1.0, 2.0]
    assert raw["sum:1h:amount"].tolist() == [1.0, 2.0]
    assert raw["sum:24h:amount"].tolist() == [1.0, 3.0]


def test_a_monstrous_amount_spoils_no_other_sum() -> None:
    """A card number in the amount column: neither other entities nor later windows may lose their pence by it."""
    empty = (None, None, "a", "a", None, None)
    usual = [(60.0, 0.25, *empty), (60.0, 0.5, *empty)]
    before = [(0.0, 4e18, *empty), (8 * 86_400.0, 0.25, *empty), (60.0, 0.5, *empty)]
    raw = raw_numbers(canonical(0.0, [before, usual]), SCHEMA)
    assert raw["sum:7d:amount"].tolist() == [4e18, 0.25, 0.75, 0.25, 0.75]


def test_the_hour_is_that_of_the_clock_on_the_wall() -> None:
    """02:00 to 03:00 does not exist on 31 March, and is there twice on 27 October."""
    empty = (None, None, None, "a", "a", None, None)
    for start, hours in ((BEFORE_SPRING, [0, 1, 3, 4]), (BEFORE_AUTUMN, [1, 2, 2, 3])):
        frame = canonical(start, [[(3600.0, *empty)] * 4])
        encoder = Encoder(SCHEMA).fit(frame)
        codes = encoder.transform(frame).category[:, 0] - 2
        assert codes.tolist() == hours
        assert raw_numbers(frame, SCHEMA)["time:gap"].tolist()[1:] == [3600.0] * 3


def test_monday_midnight_is_where_the_week_begins() -> None:
    utc = SCHEMA.model_copy(update={"time_zone": "UTC"})
    monday = datetime(2024, 1, 1, tzinfo=UTC)
    at = [monday + timedelta(days=day) for day in (0, 3.5, 7)]
    frame = read_events(table_of(0.0, [[(0.0, *[None] * 7)] * 3]).with_columns(at=pl.Series(at)), utc).frame
    raw = raw_numbers(frame, utc)
    np.testing.assert_allclose(raw["circle:weekday_sin"], [0.0, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(raw["circle:weekday_cos"], [1.0, -1.0, 1.0], atol=1e-9)


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
def test_the_great_circle_is_that_between_two_vectors(a: float, b: float, c: float, d: float) -> None:
    assert float(great_circle_km(a, b, c, d)) == pytest.approx(oracles.great_circle_km((a, b), (c, d)), abs=0.05)


def test_a_trip_of_no_time_is_one_of_a_minute() -> None:
    assert speed_kmh(10.0, 0.0) == speed_kmh(10.0, 60.0) == 600.0
    assert speed_kmh(10.0, 7200.0) == 5.0
    assert math.isnan(speed_kmh(math.nan, 60.0))


def history(values: Sequence[float | None], merchants: Sequence[str | None] | None = None) -> pl.DataFrame:
    merchants = merchants or ["a"] * len(values)
    pairs = zip(values, merchants, strict=True)
    return canonical(0.0, [[(3600.0, value, None, value, word, "x", None, None) for value, word in pairs]])


def column(encoder: Encoder, name: str) -> Column:
    return next(column for column in encoder.columns_ if column.name == name)


def test_nothing_is_learned_outside_the_mask() -> None:
    values: list[float | None] = [*map(float, range(1, 41)), *[1e9] * 10]
    merchants: list[str | None] = [*["a"] * 40, *["new"] * 10]
    mask = np.arange(50) < 40
    masked = Encoder(SCHEMA, fewest_events=1).fit(history(values, merchants), mask)
    alone = Encoder(SCHEMA, fewest_events=1).fit(history(values[:40], merchants[:40]))
    assert masked.columns_ == alone.columns_
    assert column(masked, "merchant").vocabulary == ("a",)


def test_scales_are_robust() -> None:
    tame: list[float | None] = [*map(float, range(1, 100))]
    wild = [*tame[:-1], 1e12]
    fits = [Encoder(SCHEMA).fit(history(values)) for values in (tame, wild)]
    for name in ("amount", "balance"):
        assert column(fits[0], name).center == pytest.approx(column(fits[1], name).center)
        assert column(fits[0], name).scale == pytest.approx(column(fits[1], name).scale)


@pytest.mark.parametrize("values", [[7.0] * 30, [0.0] * 30, [None] * 30, [None] * 29 + [3.0], [0.0] * 29 + [1e300]])
def test_a_field_that_says_little_is_encoded_without_a_fuss(values: list[float | None]) -> None:
    frame = history(values)
    encoder = Encoder(SCHEMA).fit(frame)
    sequences = encoder.transform(frame)
    for name in ("amount", "balance"):
        index = [column.name for column in encoder.numeric].index(name)
        encoded = sequences.numeric[:, index]
        assert np.isnan(encoded).tolist() == [value is None for value in values]
        assert np.isfinite(encoded[~np.isnan(encoded)]).all()


def test_a_number_beyond_single_precision_stays_a_number() -> None:
    """DBL_MAX marks a missing value in many an export."""
    encoder = Encoder(SCHEMA).fit(history([1.0, 2.0, 3.0, 4.0] * 10))
    sequences = encoder.transform(history([1.0, 1.7976931348623157e308, -1.7976931348623157e308]))
    assert np.isfinite(sequences.numeric[:, [0, 2]]).all()


def test_the_commonest_values_get_codes_and_the_rare_ones_share_one() -> None:
    merchants: list[str | None] = ["b"] * 40 + ["a"] * 40 + ["c"] * 3 + ["x", "y", "z"] + [None] * 14
    frame = history([1.0] * 100, merchants)
    encoder = Encoder(SCHEMA).fit(frame)
    assert column(encoder, "merchant").vocabulary == ("a", "b", "c")
    encoder = Encoder(SCHEMA, largest_vocabulary=2).fit(frame)
    assert column(encoder, "merchant").vocabulary == ("a", "b") and not column(encoder, "merchant").own
    index = [column.name for column in encoder.category].index("merchant")
    codes = encoder.transform(frame).category[:, index]
    assert codes.tolist() == [3] * 40 + [2] * 40 + [0] * 3 + [0] * 3 + [1] * 14


def test_where_most_values_are_rare_the_codes_are_the_entitys_own() -> None:
    merchants = [f"m{at}" for at in range(20)] + ["m3", "m0", "m17", "m18"]
    encoder = Encoder(SCHEMA, largest_vocabulary=5).fit(history([1.0] * 24, merchants))
    assert column(encoder, "merchant").own and not column(encoder, "channel").own
    index = [column.name for column in encoder.category].index("merchant")
    codes = encoder.transform(history([1.0] * 24, merchants)).category[:, index]
    assert codes.tolist() == [UNSEEN] * 20 + [FIRST_CODE + place for place in (3, 1, 15, 15)]


def test_where_entities_share_no_values_the_codes_are_their_own() -> None:
    """A telephone of one's own: as common as any, and nobody else's. The second is everybody's second, at first."""

    def paid(device: str) -> tuple[Any, ...]:
        return (3600.0, 1.0, None, 1.0, device, "x", None, None)

    table = canonical(0.0, [[paid(f"phone {who}")] * 30 + [paid(f"tablet {who}")] * 30 for who in range(20)])
    encoder = Encoder(SCHEMA).fit(table)
    assert column(encoder, "merchant").own and not column(encoder, "channel").own
    index = [column.name for column in encoder.category].index("merchant")
    codes = encoder.transform(table).category[:, index].reshape(20, 60)
    second = [FIRST_CODE + 1] * 13 + [FIRST_CODE] * 16  # by then it is the commonest of late
    assert (codes == [UNSEEN, *[FIRST_CODE] * 29, UNSEEN, *second]).all()


def test_a_field_that_most_events_lack_is_only_read() -> None:
    encoder = Encoder(SCHEMA).fit(history([1.0] * 100, ["a"] * 40 + [None] * 60))
    assert not column(encoder, "merchant").scored
    assert column(encoder, "channel").scored


def test_an_unknown_value_is_unseen_and_an_absent_one_missing() -> None:
    encoder = Encoder(SCHEMA).fit(history([1.0] * 40))
    codes = encoder.transform(history([1.0, 2.0, 3.0], ["a", "never met", None])).category
    at = [column.name for column in encoder.category].index("merchant")
    assert codes[:, at].tolist() == [2, 0, 1]
    assert codes[:, at + 2].tolist()[1:] != [1, 1], "the flags of an unknown value are known"


def test_what_was_learned_survives_as_json() -> None:
    import json

    frame = history([1.0, 5.0, 9.0, None] * 10)
    encoder = Encoder(SCHEMA).fit(frame)
    again = Encoder.from_dict(SCHEMA, json.loads(json.dumps(encoder.to_dict())))
    assert again.columns_ == encoder.columns_
    for name in ("numeric", "category"):
        np.testing.assert_array_equal(getattr(encoder.transform(frame), name), getattr(again.transform(frame), name))


def test_sequences_lead_back_to_the_input() -> None:
    table = table_of(0.0, [[(5.0, 1.0, *[None] * 6)] * 3, [(1.0, 2.0, *[None] * 6)] * 2])
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    frame = read_events(shuffled, SCHEMA).frame
    sequences = Encoder(SCHEMA).fit(frame).transform(frame)
    assert sequences.entity.tolist() == ["card 0", "card 1"]
    assert sequences.lengths.tolist() == [3, 2]
    assert shuffled["at"].to_numpy()[sequences.row].tolist() == sequences.time.tolist() == [5.0, 10.0, 15.0, 1.0, 2.0]


@pytest.mark.parametrize("entities", [[], ["a"], ["", "", "b"], ["a", "b", "b"]])
def test_the_borders_of_entities_are_where_the_key_changes(entities: list[str]) -> None:
    offsets = entity_offsets(pl.Series(entities, dtype=pl.String)).tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(entities)
    assert [entities[at] for at in offsets[:-1]] == sorted(set(entities))


def test_a_number_that_is_judged_twice_is_found_by_its_name() -> None:
    gap, amount = Column(name="time:gap", kind="duration"), Column(name="amount", kind="number")
    assert judged_twice([gap, amount.given(), amount]).tolist() == [[2, 1]]
    assert judged_twice([gap, amount]).shape == (0, 2)


def test_an_encoder_that_is_not_fitted_says_so() -> None:
    frame = history([1.0])
    for attempt in (lambda: Encoder(SCHEMA).transform(frame), Encoder(SCHEMA).to_dict, lambda: Encoder(SCHEMA).numeric):
        with pytest.raises(NotFittedError, match="fit"):
            attempt()


def test_a_mask_of_nothing_is_refused() -> None:
    with pytest.raises(ParameterError, match="no event"):
        Encoder(SCHEMA).fit(history([1.0, 2.0]), np.zeros(2, dtype=bool))


@pytest.mark.parametrize("name", ["time:gap", "count:1h", "sum:x", "clock:hour", "first:merchant", "place:speed"])
@pytest.mark.parametrize("role", ["numeric", "categorical"])
def test_a_field_named_like_a_derived_column_is_refused(name: str, role: str) -> None:
    roles: dict[str, Any] = {role: (name,)}
    schema = Schema(time="at", **roles)
    frame = read_events(pl.DataFrame({"at": [1.0, 2.0], name: ["1", "2"]}), schema).frame
    with pytest.raises(SchemaError, match=name):
        Encoder(schema).fit(frame)


def test_a_field_may_have_the_name_of_any_part_of_a_derived_one() -> None:
    schema = Schema(time="at", numeric=(NumericField(name="speed"),), categorical=("hour", "gap"))
    table = pl.DataFrame({"at": [1.0, 2.0], "speed": [1.0, 2.0], "hour": ["x", "y"], "gap": ["x", "x"]})
    encoder = Encoder(schema).fit(read_events(table, schema).frame)
    assert len({column.name for column in encoder.columns_}) == len(encoder.columns_)
