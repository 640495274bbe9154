"""One live event is parsed like a row of a table: the same values, and the same words where it is refused."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.errors import InputError
from anomaly.ingest import ParsedEvent, parse_event, read_events
from anomaly.schema import Schema

ROLES: dict[str, Any] = {
    "time": "at",
    "entity": (("a", "b"),),
    "event_id": "id",
    "numeric": ("x",),
    "categorical": ("shop",),
    "place": {"latitude": "lat", "longitude": "lon"},
}
SCHEMA = Schema(**ROLES)


def test_a_live_event() -> None:
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    event = {"at": noon, "a": "s", "b": 7, "id": 12, "x": 1, "shop": None, "lat": 1.0, "lon": 2.0, "more": []}
    assert parse_event(event, SCHEMA) == ParsedEvent(
        "s\x1f7", noon.timestamp(), noon.timestamp(), (1.0,), (None,), 1.0, 2.0, "12"
    )


def test_absent_keys_are_missing_values() -> None:
    event = parse_event({"at": 1.5, "a": "a", "b": "b"}, SCHEMA)
    assert event.category == (None,)
    assert event.event_id is None
    assert all(math.isnan(number) for number in (*event.numeric, event.latitude, event.longitude))
    with pytest.raises(InputError, match=r"^at is missing: every event needs a time; a is missing: every event"):
        parse_event({}, SCHEMA)


def test_without_an_entity_column_the_key_is_empty() -> None:
    assert parse_event({"at": 0}, Schema(time="at"))[:5] == ("", 0.0, 0.0, (), ())


texts = st.one_of(
    st.sampled_from(
        ["", " ", "NA", "null", "1,234.50", "1.234,50", "€ 3", "-$1", "1e3", "1 234", "inf", "1,5", "x\x1fy"]
    ),
    st.floats(width=64).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=2).map(lambda number: f"{number:,}"),
    st.text(max_size=60),
    st.from_regex(r"\A[-+$]?[0-9]{1,3}([,.' ][0-9]{3}){0,2}([.,][0-9]{0,3})?(e[0-9])?\Z"),
)
# After 2099 polars' time zones know no summer time, Python's do: times between then and 2201 are left out.
years = st.datetimes(datetime(1971, 1, 1), datetime(2036, 12, 31))
zones = st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30)), timezone(timedelta(hours=14))])
time_texts = st.one_of(
    years.map(str),
    years.map(lambda moment: moment.isoformat(timespec="minutes").replace("-", "/")),
    st.datetimes(datetime(1971, 1, 1), datetime(2036, 12, 31), timezones=zones).map(lambda moment: moment.isoformat()),
    years.map(lambda moment: f"{moment:%Y-%m-%dT%H:%M:%S}Z"),
    st.from_regex(
        r"\A(17|20|23)[0-9]{2}-[0-3]?[0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9])?([+-][0-9]{2}:?[0-9]{2})?\Z"
    ),
    st.one_of(st.integers(-(10**17), -(10**13)), st.integers(0, 2 * 10**9), st.integers(10**13, 10**17)).map(str),
    texts,
)
numbers = st.one_of(
    st.floats(-1e6, 1e6).map(repr), st.floats(-1e6, 1e6).map("{:,.2f}".format), st.integers(-99, 99).map("{} €".format)
)
near = st.integers(0, 2 * 10**9)
names = st.sampled_from(["a", "b", " a ", "7"])
wide = st.integers(-(2**63), 2**63 - 1)
far = st.datetimes(max_value=datetime(1890, 1, 1)) | st.datetimes(datetime(2210, 1, 1))
seconds = st.floats(0, 2e9) | st.floats(max_value=-1e10) | st.floats(1e11)
columns: dict[str, list[tuple[Any, st.SearchStrategy[Any]]]] = {
    "at": [
        (pl.String, years.map(str) | time_texts),
        (pl.Float64, seconds | st.just(math.nan)),
        (pl.Int64, near | wide.filter(lambda value: abs(value) > 10**13)),
        (pl.Datetime("us"), years | far),
        (pl.Datetime("us", "Asia/Tokyo"), years.map(lambda moment: moment.replace(tzinfo=UTC))),
        (pl.Date, (years | far).map(datetime.date)),
    ],
    "number": [
        (pl.String, numbers | texts),
        (pl.Float64, st.floats(-1e6, 1e6) | st.floats()),
        (pl.Int64, wide),
        (pl.Boolean, st.booleans()),
    ],
    "degrees": [
        (pl.String, st.floats(-90, 90).map(repr) | texts),
        (pl.Float64, st.floats(-90, 90) | st.floats(-200, 200)),
        (pl.Int64, st.integers(-90, 90)),
    ],
    "text": [
        (pl.String, names | st.text(max_size=5) | texts),
        (pl.Float64, st.floats()),
        (pl.Int64, wide),
        (pl.Boolean, st.booleans()),
        (pl.Date, st.dates()),
    ],
}
KINDS = {
    "at": "at",
    "a": "text",
    "b": "text",
    "id": "text",
    "x": "number",
    "shop": "text",
    "lat": "degrees",
    "lon": "degrees",
}


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.integers(1, 4))
    made = {}
    for name, kind in KINDS.items():
        dtype, values = draw(st.sampled_from(columns[kind]))
        cells = [None if draw(st.integers(0, 9)) == 0 else draw(values) for _ in range(rows)]
        made[name] = pl.Series(cells, dtype=dtype)
    return pl.DataFrame(made)


def parsed_or_reason(event: dict[str, Any], schema: Schema) -> ParsedEvent | str:
    try:
        return parse_event(event, schema)
    except InputError as error:
        return str(error)


def canonical(event: ParsedEvent) -> tuple[Any, ...]:
    """The event as a row of the canonical frame, without its row number."""
    numbers = (*event.numeric, event.latitude, event.longitude)
    told = (None if math.isnan(number) else number for number in numbers)
    return (event.entity, event.time, event.clock, event.event_id, *told, *event.category)


@settings(max_examples=150, deadline=None)
@given(
    tables(),
    st.sampled_from(["UTC", "Europe/Paris", "America/New_York"]),
    st.sampled_from(["s", "ms"]),
    st.sampled_from([".", ","]),
)
def test_one_event_is_read_like_a_row_of_a_table(frame: pl.DataFrame, zone: str, unit: Any, decimal: Any) -> None:
    schema = Schema(**ROLES, time_zone=zone, time_unit=unit, decimal=decimal)
    events = read_events(frame, schema)
    duplicates = events.rejects.filter(pl.col("reason").str.starts_with("duplicate of row"))["row"].to_list()
    accepted = {row["row"]: row for row in events.frame.to_dicts()}
    refused = dict(events.rejects.select("row", "reason").rows())
    for row, event in enumerate(frame.to_dicts()):
        parsed = parsed_or_reason(event, schema)
        if isinstance(parsed, str):
            assert parsed == refused.get(row)
            continue
        if row in duplicates:
            continue
        assert row in accepted, refused.get(row)
        assert tuple(accepted[row].values())[1:] == canonical(parsed)
