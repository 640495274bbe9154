"""Each rule for reading one value, in both its forms: the plain function and the polars column."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from anomaly.columns import all_reasons, any_fault, number_column, text_column, time_column
from anomaly.errors import SchemaError
from anomaly.values import LATEST, MISSING, number_value, text_value, time_value

Read = tuple[float | str | None, str]  # (value or None, reasons or "")


def number_both(value: Any, decimal: str = ".", dtype: Any = None, **limits: float) -> tuple[Read, Read]:
    """The same value through the function and through the column."""
    faults: list[str] = []
    number = number_value("x", value, decimal, faults, **limits)
    frame = pl.DataFrame({"x": pl.Series([value], dtype=dtype)})
    lazy, column = number_column(frame.lazy(), "x", frame.schema["x"], decimal, **limits)
    row = lazy.select(column.value.alias("v"), any_fault([column]).alias("bad"), all_reasons([column])).collect().row(0)
    alone = None if math.isnan(number) or faults else number
    return (alone, "; ".join(faults)), (None if row[1] else row[0], row[2])


def time_both(value: Any, zone: str = "UTC", unit: str = "s", dtype: Any = None) -> tuple[Any, Any]:
    """((seconds, clock) or None, reasons) from the function and from the column."""
    faults: list[str] = []
    seconds, clock = time_value("t", value, zone, unit, faults)
    frame = pl.DataFrame({"t": pl.Series([value], dtype=dtype)})
    lazy, column = time_column(frame.lazy(), "t", frame.schema["t"], zone, unit)
    row = lazy.select(column.value.alias("v"), column.clock.alias("c"), all_reasons([column])).collect().row(0)
    return (None if math.isnan(seconds) else (seconds, clock), "; ".join(faults)), (
        row[:2] if row[0] is not None else None,
        row[2],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", 12.0),
        (" 12.5\t", 12.5),
        ("+.5", 0.5),
        ("5.", 5.0),
        ("-3e2", -300.0),
        ("1E+05", 100000.0),
        ("1,234.50", 1234.5),
        ("1,234,567", 1234567.0),
        ("1 234.5", 1234.5),
        ("1\u00a0234\u00a0567", 1234567.0),
        ("1\u202f234", 1234.0),
        ("1'234.50", 1234.5),
        ("1\u2019234", 1234.0),
        ("$12.50", 12.5),
        ("€ 1,234.50", 1234.5),
        ("-$5", -5.0),
        ("$-5", -5.0),
        ("12.50 €", 12.5),
        ("\u221212", -12.0),
        ("-0", 0.0),
        ("0.1", 0.1),
        ("123456789012345678901234567890", 1.2345678901234568e29),
    ],
)
def test_numbers_as_text(text: str, expected: float) -> None:
    assert number_both(text) == ((expected, ""), (expected, ""))


@pytest.mark.parametrize(
    ("text", "expected"), [("1.234,50", 1234.5), ("1,5", 1.5), ("1 234,5", 1234.5), ("€1.234.567", 1234567.0)]
)
def test_numbers_with_a_decimal_comma(text: str, expected: float) -> None:
    assert number_both(text, ",") == ((expected, ""), (expected, ""))


@pytest.mark.parametrize(
    "text", ["abc", "1_000", "0x1F", "1,23,4", "12 34", "--5", "5-", "1e", ".", "$", "1.2.3", "12%", "٣"]
)
def test_a_text_that_is_no_number_is_a_fault(text: str) -> None:
    fault = (None, f"x '{text}' is not a number")
    assert number_both(text) == (fault, fault)


@pytest.mark.parametrize(
    ("text", "decimal", "other"),
    [("1,23", ".", ","), ("1.234,50", ".", ","), ("1.23", ",", "."), ("1,234.5", ",", ".")],
)
def test_the_other_decimal_mark_is_proposed_where_it_would_do(text: str, decimal: str, other: str) -> None:
    fault = (None, f"x '{text}' is not a number (with decimal = \"{other}\" it would be one)")
    assert number_both(text, decimal) == (fault, fault)


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e999", math.inf, -math.inf])
def test_infinite_numbers_are_faults(value: Any) -> None:
    fault = (None, f"x '{value}' is infinite")
    assert number_both(value) == (fault, fault)


@pytest.mark.parametrize("value", [None, math.nan, *MISSING, "  "])
def test_missing_numbers_are_no_faults(value: Any) -> None:
    assert number_both(value) == ((None, ""), (None, ""))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (3, pl.Int8),
        (2**60, pl.Int64),
        (True, pl.Boolean),
        (Decimal("1.10"), pl.Decimal(10, 2)),
        (0.5, pl.Float32),
        ("7", pl.Categorical),
    ],
)
def test_typed_numbers(value: Any, dtype: Any) -> None:
    assert number_both(value, dtype=dtype) == ((float(value), ""), (float(value), ""))


@pytest.mark.parametrize(
    ("value", "fine"), [("90", True), (-90.0, True), ("90.5", False), (-91, False), (1e300, False)]
)
def test_a_number_outside_its_limits_is_a_fault(value: Any, fine: bool) -> None:
    alone, column = number_both(value, low=-90.0, high=90.0)
    assert alone == column
    assert alone == ((float(value), "") if fine else (None, f"x '{text_value(value)}' is outside -90 to 90"))


def test_a_value_in_a_reason_is_cut_to_40_characters() -> None:
    alone, column = number_both("x" * 100)
    assert alone == column == (None, f"x '{'x' * 39}…' is not a number")


def test_values_of_numpy_and_pandas_are_read_like_pythons_own() -> None:
    faults: list[str] = []
    assert number_value("x", np.float32(0.5), ".", faults) == 0.5
    assert number_value("x", np.int64(7), ".", faults) == 7.0
    assert math.isnan(number_value("x", pd.NA, ".", faults))
    assert text_value(np.int64(7)) == "7"
    assert text_value(pd.NA) is None
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert time_value("t", np.datetime64("2024-05-01T12:00:00", "ns"), "UTC", "s", faults)[0] == noon.timestamp()
    assert (
        time_value("t", pd.Timestamp("2024-05-01 14:00", tz="Europe/Paris"), "UTC", "s", faults)[0] == noon.timestamp()
    )
    assert faults == []
    assert math.isnan(time_value("t", pd.NaT, "UTC", "s", faults)[0])
    assert faults == ["t is missing: every event needs a time"]


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (" shop ", None, "shop"),
        ("\u00a0a b\ufeff", None, "a b"),
        ("007", None, "007"),
        (12, None, "12"),
        (12.0, None, "12"),
        (-0.0, None, "0"),
        (0.1, None, "0.1"),
        (1e-5, None, "0.00001"),
        (-1.5e-5, None, "-0.000015"),
        (9.9e-6, None, "9.9e-6"),
        (5e-324, None, "5e-324"),
        (2.0**53, None, "9007199254740992.0"),
        (1e16, None, "1e+16"),
        (1.5e300, None, "1.5e+300"),
        (math.inf, None, "inf"),
        (True, None, "true"),
        (date(2024, 5, 1), None, "2024-05-01"),
        (Decimal("1.50"), pl.Decimal(10, 2), "1.50"),
        ("a", pl.Enum(["a"]), "a"),
        (None, pl.String, None),
        (math.nan, None, None),
        *((word, None, None) for word in MISSING),
        ("none", None, "none"),
    ],
)
def test_text(value: Any, dtype: Any, expected: str | None) -> None:
    frame = pl.DataFrame({"x": pl.Series([value], dtype=dtype)})
    assert frame.select(text_column("x", frame.schema["x"])).item() == expected
    assert text_value(value) == expected


def seconds(*parts: int, zone: Any = UTC, micro: int = 0) -> float:
    return (datetime(*parts, tzinfo=zone) + timedelta(microseconds=micro)).timestamp()  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29", seconds(2024, 2, 29)),
        ("2024/2/9 7:05", seconds(2024, 2, 9, 7, 5)),
        ("2024-05-01 10:00:01", seconds(2024, 5, 1, 10, 0, 1)),
        ("2024-05-01T10:00:01Z", seconds(2024, 5, 1, 10, 0, 1)),
        ("2024-05-01t10:00:01z", seconds(2024, 5, 1, 10, 0, 1)),
        ("2024-05-01 10:00:01 UTC", seconds(2024, 5, 1, 10, 0, 1)),
        ("2024-05-01 10:00+02:00", seconds(2024, 5, 1, 8)),
        ("2024-05-01 10:00-0330", seconds(2024, 5, 1, 13, 30)),
        ("2024-05-01 10:00+05", seconds(2024, 5, 1, 5)),
        ("2024-05-01 10:00:01.5", seconds(2024, 5, 1, 10, 0, 1, micro=500_000)),
        ("2024-05-01 10:00:01,123456789", seconds(2024, 5, 1, 10, 0, 1, micro=123_456)),
        ("1900-01-01", seconds(1900, 1, 1)),
        ("2200-12-31 23:59:59", seconds(2200, 12, 31, 23, 59, 59)),
        ("1969-12-31 23:59:59.75", -0.25),
        ("1714557600", 1714557600.0),
        ("1714557600.5", 1714557600.5),
        ("1.7145576e9", 1714557600.0),
    ],
)
def test_times_as_text(text: str, expected: float) -> None:
    good = ((expected, expected), "")
    assert time_both(text) == (good, good)


@pytest.mark.parametrize(
    "text",
    [
        *("soon", "31/12/2024", "2024-02-30", "2023-02-29", "2024-13-01", "2024-00-10", "2024-01-00", "0000-01-01"),
        *("2024-01-01 24:00:00", "2024-01-01 12:60", "2024-01-01 23:59:60", "2024-01-01 10", "2024-01-01 10:00:00 PM"),
        *("2024-01-01 10:00+24:00", "2024-01-01 10:00+02:60", "2024-01-01 10:00 CET", "2024-W01-1", "inf", "10:00"),
    ],
)
def test_a_text_that_is_no_time_is_a_fault(text: str) -> None:
    fault = (None, f"t '{text}' is not a time (write it like 2024-12-31 23:59:59)")
    assert time_both(text) == (fault, fault)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(None, pl.String), ("", None), ("NaT", None), (math.nan, None), (None, pl.Datetime), (None, None)],
)
def test_a_missing_time_is_a_fault(value: Any, dtype: Any) -> None:
    fault = (None, "t is missing: every event needs a time")
    assert time_both(value, dtype=dtype) == (fault, fault)


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        ("1899-12-31 23:59:59", "s", ""),
        ("2201-01-01", "s", ""),
        ("9999-12-31", "s", ""),
        (LATEST, "s", ""),
        (-1e300, "s", ""),
        (math.inf, "s", ""),
        (1_519_900_000_000, "s", "ms"),
        ("1519900000000", "s", "ms"),
        (1_519_900_000_000_000, "s", "us"),
        (1_519_900_000_000_000, "ms", "us"),
    ],
)
def test_times_outside_1900_to_2200_are_faults_and_a_fitting_unit_is_proposed(
    value: Any, unit: str, words: str
) -> None:
    hint = f' (time_unit = "{words}" would fit)' if words else ""
    fault = (None, f"t '{text_value(value)}' is outside the years 1900-2200{hint}")
    assert time_both(value, unit=unit) == (fault, fault)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris", "America/New_York"])
@pytest.mark.parametrize(
    "value", [datetime(9999, 12, 31, 23, 59), datetime(1, 1, 1), datetime(9999, 12, 31, tzinfo=UTC)]
)
def test_typed_times_far_away_are_faults_in_any_zone(value: datetime, zone: str) -> None:
    alone, column = time_both(value, zone=zone)
    assert alone == column
    assert alone[0] is None
    assert alone[1].endswith("is outside the years 1900-2200")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1500, "ms", 1.5),
        (1_500_000, "us", 1.5),
        (1.25, "s", 1.25),
        (date(1970, 1, 2), "s", 86400.0),
        (datetime(1970, 1, 1, 0, 0, 1, 5), "s", 1.000005),
        (datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=1))), "s", 3600.0),
    ],
)
def test_typed_times(value: Any, unit: str, expected: float) -> None:
    good = ((expected, expected), "")
    assert time_both(value, unit=unit) == (good, good)


PARIS = "Europe/Paris"


@pytest.mark.parametrize(
    ("value", "utc", "clock"),
    [
        ("2024-07-01 12:00", (2024, 7, 1, 10), (2024, 7, 1, 12)),  # summer, two hours ahead
        ("2024-01-01 12:00", (2024, 1, 1, 11), (2024, 1, 1, 12)),
        ("2024-07-01T10:00:00Z", (2024, 7, 1, 10), (2024, 7, 1, 12)),
        ("2024-10-27 02:30", (2024, 10, 27, 0, 30), (2024, 10, 27, 2, 30)),  # there twice: the earlier one
        (datetime(2024, 10, 27, 2, 30), (2024, 10, 27, 0, 30), (2024, 10, 27, 2, 30)),
        (datetime(2024, 7, 1, 12), (2024, 7, 1, 10), (2024, 7, 1, 12)),
        (date(2024, 7, 1), (2024, 6, 30, 22), (2024, 7, 1)),
        (1719828000, (2024, 7, 1, 10), (2024, 7, 1, 12)),
    ],
)
def test_local_times(value: Any, utc: tuple[int, ...], clock: tuple[int, ...]) -> None:
    good = ((seconds(*utc), seconds(*clock)), "")
    assert time_both(value, PARIS) == (good, good)


@pytest.mark.parametrize("value", ["2024-03-31 02:30:00", datetime(2024, 3, 31, 2, 30)])
def test_a_local_time_that_the_clocks_skip_is_a_fault(value: Any) -> None:
    fault = (None, "t '2024-03-31 02:30:00' does not exist in Europe/Paris (the clocks skip it)")
    assert time_both(value, PARIS) == (fault, fault)


def test_the_hour_that_is_there_twice_is_marked() -> None:
    frame = pl.LazyFrame({"t": ["2024-10-27 02:30", "2024-10-27 02:30+01:00", "2024-10-27 03:30"]})
    lazy, column = time_column(frame, "t", pl.String(), PARIS, "s")
    table = lazy.select(column.naive.alias("naive"), column.ambiguous.alias("ambiguous")).collect()
    assert table["naive"].to_list() == [True, False, True]
    assert table["ambiguous"].to_list() == [True, False, False]


@pytest.mark.parametrize("values", [[[1]], [b"x"], [timedelta(1)]])
def test_types_that_cannot_play_the_role_are_refused(values: list[Any]) -> None:
    frame = pl.DataFrame({"x": values})
    with pytest.raises(SchemaError, match=r"column 'x' is of type .*; text, numbers or true/false were expected"):
        text_column("x", frame.schema["x"])
    with pytest.raises(SchemaError, match=r"column 'x' is of type"):
        number_column(frame.lazy(), "x", frame.schema["x"], ".")
    with pytest.raises(SchemaError, match=r"a time was expected"):
        time_column(frame.lazy(), "x", frame.schema["x"], "UTC", "s")


def test_a_quotient_is_exact_in_a_column_of_any_length() -> None:
    """Polars divides a column by a constant through its reciprocal, but not a column of one row."""
    for rows in (1, 2, 1000):
        frame = pl.LazyFrame({"t": [33_554_429] * rows})
        lazy, column = time_column(frame, "t", pl.Int64(), "UTC", "ms")
        assert set(lazy.select(column.value).collect().to_series()) == {33_554.429}
