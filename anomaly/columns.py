"""How whole columns are read: the rules of `anomaly.values` as polars expressions.

Each function adds its intermediate steps to a lazy frame and returns a `Column`: the value to keep, and where and why
it was refused. Nothing is collected here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from anomaly.errors import SchemaError
from anomaly.values import (
    BLANKS,
    EARLIEST,
    EPOCH,
    INFINITE,
    ISO,
    LATEST,
    MISSING,
    NO_TIME,
    NOT_A_NUMBER,
    NOT_A_TIME,
    NOT_DIGITS,
    NUMBER,
    OUTSIDE_YEARS,
    PLAUSIBLE,
    SECOND,
    SHOWN,
    UNITS,
    hole_words,
    other_mark,
    unit_hints,
)


@dataclass(frozen=True)
class Column:
    """A parsed column: `value` (null = missing or faulty) and its faults as pairs (where, reason)."""

    value: pl.Expr
    faults: tuple[tuple[pl.Expr, pl.Expr], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TimeColumn(Column):
    """A parsed time in seconds, with the local `clock` beside it.

    `naive` marks the times without an offset, `ambiguous` those of the hour that a clock shows twice in autumn, which
    were read as the earlier of the two.
    """

    clock: pl.Expr
    naive: pl.Expr
    ambiguous: pl.Expr


def _kept(frame: pl.LazyFrame, name: str, **steps: pl.Expr) -> tuple[pl.LazyFrame, dict[str, pl.Expr]]:
    """Adds intermediate columns to the frame and refers to them.

    An expression used twice is computed twice (or, nested, a hundred times); a column is computed once.
    """
    inner = {key: f"{name}\x1f{key}" for key in steps}
    frame = frame.with_columns(step.alias(inner[key]) for key, step in steps.items())
    return frame, {key: pl.col(column) for key, column in inner.items()}


def _is_text(dtype: pl.DataType) -> bool:
    return dtype == pl.String or dtype == pl.Categorical or isinstance(dtype, pl.Enum)


def text_column(name: str, dtype: pl.DataType) -> pl.Expr:
    """The column as text, null where missing. Whole floats lose their ".0", so 12.0 and 12 are one entity.

    Raises
    ------
    SchemaError
        For a type that has no plain text: lists, structs, bytes, times of day.
    """
    column = pl.col(name)
    if _is_text(dtype):
        text = column.cast(pl.String).str.strip_chars(BLANKS)
        return pl.when(~text.is_in(MISSING)).then(text)
    if dtype.is_float():
        whole = (column == column.floor()) & (column.abs() < 2.0**53)
        number = pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String))
        return pl.when(column.is_not_nan()).then(number.otherwise(column.cast(pl.String)))
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Date, pl.Null):
        return column.cast(pl.String)
    raise SchemaError(f"column {name!r} is of type {dtype}; text, numbers or true/false were expected: cast it first")


def _shown_column(text: pl.Expr) -> pl.Expr:
    cut = pl.concat_str(text.str.slice(0, SHOWN - 1), pl.lit("…"))
    return pl.when(text.str.len_chars() <= SHOWN).then(text).otherwise(cut)


def _reason(name: str, text: pl.Expr, words: str | pl.Expr) -> pl.Expr:
    words = words if isinstance(words, pl.Expr) else pl.lit(words)
    return pl.concat_str(pl.lit(f"{name} '"), _shown_column(text), pl.lit("' "), words)


def _parsed_number(text: pl.Expr, decimal: str) -> pl.Expr:
    """Float64 of a text, infinite where the text says so, null where it is no number."""
    digits = text.str.replace_all("\u2212", "-", literal=True).str.replace_all(NOT_DIGITS, "")
    if decimal == ".":
        digits = digits.str.replace_all(",", "", literal=True)
    else:
        digits = digits.str.replace_all(".", "", literal=True).str.replace_all(",", ".", literal=True)
    number = pl.when(text.str.contains(f"^(?:{NUMBER[decimal]})$")).then(digits).cast(pl.Float64, strict=False)
    infinite = text.str.contains(f"^(?:{INFINITE})$")
    return pl.when(infinite).then(math.inf).otherwise(number)


def number_column(
    frame: pl.LazyFrame,
    name: str,
    dtype: pl.DataType,
    decimal: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> tuple[pl.LazyFrame, Column]:
    """The column as Float64, never NaN, never infinite; outside [low, high] is a fault.

    Returns the frame with intermediate columns added, and the column that stands on them.

    Raises
    ------
    SchemaError
        For a type that holds no numbers (times, lists, ...).
    """
    words: pl.Expr | str = NOT_A_NUMBER
    frame, kept = _kept(frame, name, text=text_column(name, dtype))
    text = kept["text"]
    if _is_text(dtype):
        parsed = _parsed_number(text, decimal)
        other, hint = other_mark(decimal)
        would = text.str.contains(f"^(?:{NUMBER[other]})$")
        words = pl.when(would).then(pl.lit(hint)).otherwise(pl.lit(NOT_A_NUMBER))
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        parsed = pl.col(name).cast(pl.Float64).fill_nan(None)
    else:
        raise SchemaError(f"column {name!r} is of type {dtype}; a number was expected: name another column, or cast it")
    frame, kept = _kept(frame, name, number=parsed)
    number = kept["number"]
    faults = [
        (text.is_not_null() & number.is_null(), _reason(name, text, words)),
        (number.is_infinite().fill_null(False), _reason(name, text, "is infinite")),
    ]
    if math.isfinite(low):
        outside = (number.is_finite() & ~number.is_between(low, high)).fill_null(False)
        faults.append((outside, _reason(name, text, f"is outside {low:g} to {high:g}")))
    return frame, Column(pl.when(number.is_finite()).then(number), tuple(faults))


def time_column(
    frame: pl.LazyFrame, name: str, dtype: pl.DataType, zone: str, unit: str
) -> tuple[pl.LazyFrame, TimeColumn]:
    """The column as seconds since 1970-01-01 UTC, with the local wall clock beside it.

    Times with an offset are honoured, also mixed with others; those without are read in `zone`. Numbers, also as text,
    are epochs in `unit`. Returns the frame with intermediate columns added, and the column that stands on them. (The
    time zones of polars know no summer time after 2099; those of Python, in `time_value`, do.)

    Raises
    ------
    SchemaError
        For a type that holds no times.
    """
    column = pl.col(name)
    said: dict[str, pl.Expr] = {}
    if _is_text(dtype):
        frame, kept = _kept(frame, name, text=text_column(name, dtype))
        text = kept["text"]
        frame, said = _text_time(frame, name, text)
    elif dtype.is_numeric() or dtype == pl.Null:
        text, said["number"] = text_column(name, dtype), column.cast(pl.Float64).fill_nan(None)
    elif isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        text = column.dt.convert_time_zone("UTC").dt.to_string("%Y-%m-%d %H:%M:%SZ")
        said["instant"] = column.dt.timestamp("us")
    elif isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        text = column.cast(pl.Datetime("us")).dt.to_string("%Y-%m-%d %H:%M:%S")
        said["local"] = column.cast(pl.Datetime("us")).dt.timestamp("us")
    else:
        raise SchemaError(f"column {name!r} is of type {dtype}; a time was expected: name another column, or cast it")
    return _placed_time(frame, name, text, zone, unit, said)


def _text_time(frame: pl.LazyFrame, name: str, text: pl.Expr) -> tuple[pl.LazyFrame, dict[str, pl.Expr]]:
    """A text as an epoch `number`, a `local` clock or an `instant` (both in microseconds); null where it is none."""
    frame, kept = _kept(frame, name, fields=text.str.extract_groups(f"^(?:{ISO})$"))
    fields = kept["fields"].struct
    keys = ("year", "month", "day", "hour", "minute", "second")
    zone = fields.field("zone")
    zone_hour, zone_minute = zone.str.slice(1, 2), zone.str.replace(":", "", literal=True).str.slice(3, 2)
    parts = {key: fields.field(key).cast(pl.Int64, strict=False).fill_null(0) for key in keys}
    parts["micro"] = fields.field("fraction").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64).fill_null(0)
    parts["zone_hour"] = zone_hour.cast(pl.Int64, strict=False).fill_null(0)
    parts["zone_minute"] = zone_minute.cast(pl.Int64, strict=False).fill_null(0)
    frame, at = _kept(frame, name, **parts, west=zone.str.starts_with("-"), has_zone=zone.is_not_null())
    frame, kept = _kept(frame, name, days=_days(at["year"], at["month"], at["day"]))
    days = kept["days"]
    # An impossible day (30 February) lands in the next month, so it does not come back as itself.
    date_ok = (
        (at["year"] > 0) & at["month"].is_between(1, 12) & (days.cast(pl.Int32).cast(pl.Date).dt.day() == at["day"])
    )
    clock_ok = (at["hour"] < 24) & (at["minute"] < 60) & (at["second"] < 60)
    local = (((days * 24 + at["hour"]) * 60 + at["minute"]) * 60 + at["second"]) * SECOND + at["micro"]
    offset = (at["zone_hour"] * 60 + at["zone_minute"]) * 60 * SECOND
    offset = pl.when(at["west"]).then(-offset).otherwise(offset)
    good = date_ok & clock_ok & (at["zone_hour"] < 24) & (at["zone_minute"] < 60)
    return _kept(
        frame,
        name,
        number=pl.when(text.str.contains(f"^(?:{EPOCH})$")).then(text).cast(pl.Float64, strict=False),
        local=pl.when(good & ~at["has_zone"]).then(local),
        instant=pl.when(good & at["has_zone"]).then(local - offset),
    )


def _days(year: pl.Expr, month: pl.Expr, day: pl.Expr) -> pl.Expr:
    """Days since 1970-01-01 of a Gregorian date, with years that begin in March (H. Hinnant's days_from_civil).

    `pl.date` would do, were it not that one impossible date stops the whole column.
    """
    years = year - (month <= 2).cast(pl.Int64)
    era = years // 400
    of_era = years - era * 400
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _placed_time(
    frame: pl.LazyFrame, name: str, text: pl.Expr, zone: str, unit: str, said: dict[str, pl.Expr]
) -> tuple[pl.LazyFrame, TimeColumn]:
    """Joins the three ways to say a time, checks the range, and adds the local clock."""
    none, no = pl.lit(None, pl.Int64), pl.lit(False)
    local, number = said.get("local", none), said.get("number", pl.lit(None, pl.Float64))
    frame, kept = _kept(frame, name, **_in_zone(local, zone)) if "local" in said else (frame, {})
    hole, ambiguous = kept.get("hole", no), kept.get("ambiguous", no)
    micro = pl.coalesce(said.get("instant", none), kept.get("placed", none))
    frame, kept = _kept(frame, name, seconds=pl.coalesce(_divided(number, UNITS[unit]), _divided(micro, SECOND)))
    seconds = kept["seconds"]
    inside = ((seconds >= EARLIEST) & (seconds < LATEST)).fill_null(False)
    value = pl.when(inside).then(seconds)
    clock: pl.Expr = value
    if zone != "UTC":
        frame, kept = _kept(frame, name, moment=pl.from_epoch((value * SECOND).floor().cast(pl.Int64), "us"))
        moment = kept["moment"].dt.replace_time_zone("UTC")
        shift = moment.dt.convert_time_zone(zone).dt.replace_time_zone(None) - kept["moment"]
        clock = value + shift.dt.total_seconds()
    words: pl.Expr = pl.lit(OUTSIDE_YEARS)
    for factor, hint in reversed(unit_hints(unit)):
        other = number / UNITS[unit] / factor
        words = pl.when((other >= PLAUSIBLE) & (other < LATEST)).then(pl.lit(hint)).otherwise(words)
    faults = (
        (text.is_null(), pl.lit(f"{name} {NO_TIME}")),
        (text.is_not_null() & seconds.is_null() & ~hole, _reason(name, text, NOT_A_TIME)),
        (hole, _reason(name, text, hole_words(zone))),
        (seconds.is_not_null() & ~inside, _reason(name, text, words)),
    )
    naive = local.is_not_null() & inside
    return frame, TimeColumn(value, faults, clock=clock, naive=naive, ambiguous=ambiguous)


def _divided(value: pl.Expr, by: float) -> pl.Expr:
    """The exact quotient. By a constant, polars multiplies with the reciprocal, and may miss the last digit."""
    return value / (value.is_null().cast(pl.Float64) + by)  # a null stays null, whatever it is divided by


def _in_zone(local: pl.Expr, zone: str) -> dict[str, pl.Expr]:
    """A local clock (microseconds) as an instant, where it is ambiguous, and where it does not exist."""
    if zone == "UTC":
        return {"placed": local}
    day = 86_400 * SECOND  # far outside the years that are accepted, a zone's tables end
    near = local.is_between(int(EARLIEST) * SECOND - day, int(LATEST) * SECOND + day)
    moment = pl.from_epoch(pl.when(near).then(local), "us")
    earliest = moment.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.timestamp("us")
    certain = moment.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    return {
        "placed": pl.when(near).then(earliest).otherwise(local),
        "hole": (near & earliest.is_null()).fill_null(False),
        "ambiguous": certain.is_null() & earliest.is_not_null(),
    }


def any_fault(columns: Sequence[Column]) -> pl.Expr:
    """Boolean: where any of these columns has a fault."""
    return pl.any_horizontal([where for column in columns for where, _ in column.faults])


def all_reasons(columns: Sequence[Column]) -> pl.Expr:
    """String: every reason of a row, joined by "; " in the order of the columns."""
    reasons = [pl.when(where).then(reason) for column in columns for where, reason in column.faults]
    return pl.concat_str(reasons, separator="; ", ignore_nulls=True)
