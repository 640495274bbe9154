"""How one value is read: what is missing, what is a text, a number, a time, and what is refused and why.

Here are the rules in plain Python, for one live event; `anomaly.columns` has the same rules for whole columns. Both
give the same values and the same words, and a test holds them together on random input.

A *missing* value (null, NaN, empty text, or one of `MISSING`) is no fault: the event is kept and its field is null. A
*fault* is a value that is there and cannot be meant: a number that is not one, an infinite number, a time outside the
years 1900 to 2200. Its reason names the column and the value.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

MISSING = ("", "NA", "N/A", "<NA>", "NaN", "nan", "NaT", "null", "NULL", "None")
"""Texts that mean "no value", after blanks are stripped."""
BLANKS = " \t\r\n\v\f\u00a0\u2007\u202f\ufeff"
"""What is stripped from both ends of a text. A list of our own: Python's and polars' ideas of a blank differ."""
EARLIEST = -2_208_988_800.0  # 1900-01-01 UTC, in seconds since 1970
LATEST = 7_289_654_400.0  # 2201-01-01 UTC, the first second that is too late
PLAUSIBLE = 631_152_000.0  # 1990-01-01 UTC: another unit of time is proposed only if it leads beyond
SHOWN = 40  # characters of a value quoted in a reason
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}

_GROUP = r"[0-9]{{1,3}}(?:{0}[0-9]{{3}})+"
_SPACE = "[ \u00a0\u2007\u2009\u202f]"
_CURRENCY = "[$€£¥₹₽₩₺₴₪₫₱₦฿¢]"
_SIGN = "[+\u2212-]"
INFINITE = r"[+-]?(?:[iI][nN][fF]|[iI]nfinity|INFINITY)"
EPOCH = r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
ISO = (
    r"(?P<year>[0-9]{4})[-/](?P<month>[0-9]{1,2})[-/](?P<day>[0-9]{1,2})"
    r"(?:[Tt ] ?(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
    r" ?(?P<zone>[Zz]|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_EPOCH_START_UTC = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_START = _EPOCH_START_UTC.replace(tzinfo=None)
SECOND = 1_000_000  # microseconds


def _number_pattern(decimal: str) -> str:
    """Regular expression of a number written as text; groups of thousands must be whole, so "1,23" is no number."""
    other, point = (",", r"\.") if decimal == "." else (r"\.", ",")
    grouped = "|".join(_GROUP.format(mark) for mark in (other, _SPACE, "['\u2019]"))
    digits = rf"(?:(?:{grouped}|[0-9]+)(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"
    return rf"(?:{_SIGN}?(?:{_CURRENCY} ?)?|{_CURRENCY} ?{_SIGN}){digits}(?: ?{_CURRENCY})?"


NUMBER = {mark: _number_pattern(mark) for mark in (".", ",")}
_NUMBER_RE = {mark: re.compile(pattern) for mark, pattern in NUMBER.items()}
_INFINITE_RE, _EPOCH_RE, _ISO_RE = re.compile(INFINITE), re.compile(EPOCH), re.compile(ISO)
_MISSING_SET = frozenset(MISSING)
NOT_DIGITS = "[^0-9eE.,+-]"
_NOT_DIGITS_RE = re.compile(NOT_DIGITS)


# --- text -------------------------------------------------------------------------------------------------------------


def text_value(value: Any) -> str | None:
    """One value as text, None where missing; the twin of `text_column`.

    Examples
    --------
    >>> text_value("  grocery "), text_value(12.0), text_value(True), text_value("NA")
    ('grocery', '12', 'true', None)
    """
    if isinstance(value, str):
        text = value.strip(BLANKS)
        return None if text in _MISSING_SET else text
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return str(value)
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    return text_value(_plain(value))


def _float_text(value: float) -> str | None:
    """A float as polars writes it, without the ".0" of a whole number."""
    if value != value:
        return None
    if abs(value) < 2.0**53 and value == math.floor(value):
        return str(int(value))
    text = repr(value)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    if int(exponent) == -5:
        sign, digits = ("-", mantissa[1:]) if value < 0 else ("", mantissa)
        return f"{sign}0.0000{digits.replace('.', '')}"
    return f"{mantissa}e{int(exponent):+d}" if int(exponent) > 0 else f"{mantissa}e{int(exponent)}"


def _plain(value: Any) -> Any:
    """A value of numpy or pandas as Python's own; what is none of these comes back as its text."""
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, datetime):
        return None if value != value else value.isoformat(sep=" ")
    return str(value)


def shown(text: str) -> str:
    """The text as a reason quotes it: cut to 40 characters."""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


# --- numbers ----------------------------------------------------------------------------------------------------------

NOT_A_NUMBER = "is not a number"


def other_mark(decimal: str) -> tuple[str, str]:
    """The other decimal mark, and the words for a number that only it could read."""
    other = "," if decimal == "." else "."
    return other, f'{NOT_A_NUMBER} (with decimal = "{other}" it would be one)'


def number_value(
    name: str, value: Any, decimal: str, faults: list[str], *, low: float = -math.inf, high: float = math.inf
) -> float:
    r"""One number, NaN where missing; the twin of `number_column`. A fault's reason is added to `faults`.

    Examples
    --------
    >>> faults: list[str] = []
    >>> [number_value("amount", text, ".", faults) for text in ("1,234.50", "$ 12", "1'000", "-3e2", "NA")]
    [1234.5, 12.0, 1000.0, -300.0, nan]
    >>> number_value("amount", "1,23", ".", faults), number_value("amount", "inf", ".", faults)
    (nan, nan)
    >>> faults
    ['amount \'1,23\' is not a number (with decimal = "," it would be one)', "amount 'inf' is infinite"]
    """
    if type(value) is float and low <= value <= high and value - value == 0.0:  # the usual case, quickly: finite
        return value
    try:
        number = _number(value, decimal)
    except OverflowError:
        number = math.inf
    if number is None or number != number:
        text = text_value(value) if number is None else None
        if text is not None:
            other, hint = other_mark(decimal)
            words = hint if _NUMBER_RE[other].fullmatch(text) else NOT_A_NUMBER
            faults.append(f"{name} '{shown(text)}' {words}")
        return math.nan
    if not math.isfinite(number):
        faults.append(f"{name} '{shown(text_value(value) or '')}' is infinite")
        return math.nan
    if not low <= number <= high:
        faults.append(f"{name} '{shown(text_value(value) or '')}' is outside {low:g} to {high:g}")
    return number


def _number(value: Any, decimal: str) -> float | None:
    """A float (NaN = missing), or None for what is no number."""
    if isinstance(value, float):
        return value
    if value is None:
        return math.nan
    if isinstance(value, int | Decimal):
        return float(value)
    if not isinstance(value, str):
        plain = _plain(value)
        return _number(plain, decimal)
    text = text_value(value)
    if text is None:
        return math.nan
    if _NUMBER_RE[decimal].fullmatch(text):
        digits = _NOT_DIGITS_RE.sub("", text.replace("\u2212", "-"))
        digits = digits.replace(",", "") if decimal == "." else digits.replace(".", "").replace(",", ".")
        return float(digits)
    return math.inf if _INFINITE_RE.fullmatch(text) else None


# --- times ------------------------------------------------------------------------------------------------------------

NOT_A_TIME = "is not a time (write it like 2024-12-31 23:59:59)"
NO_TIME = "is missing: every event needs a time"
OUTSIDE_YEARS = "is outside the years 1900-2200"


def hole_words(zone: str) -> str:
    """The words for a local time that the clocks of a zone skip in spring."""
    return f"does not exist in {zone} (the clocks skip it)"


def unit_hints(unit: str) -> list[tuple[float, str]]:
    """The other units of an epoch: how many times smaller they are, and the words that propose them."""
    others = [other for other in UNITS if other != unit]
    return [(UNITS[other] / UNITS[unit], f'{OUTSIDE_YEARS} (time_unit = "{other}" would fit)') for other in others]


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo | None:
    return None if name == "UTC" else ZoneInfo(name)


def time_value(name: str, value: Any, zone: str, unit: str, faults: list[str]) -> tuple[float, float]:
    """One time as (seconds since 1970-01-01 UTC, local clock), both NaN at a fault; the twin of `time_column`.

    Examples
    --------
    >>> faults: list[str] = []
    >>> time_value("at", "1970-01-02T01:00:00+01:00", "UTC", "s", faults), time_value("at", 1500, "UTC", "ms", faults)
    ((86400.0, 86400.0), (1.5, 1.5))
    >>> time_value("at", "2024-07-01 12:00", "Europe/Paris", "s", faults)
    (1719828000.0, 1719835200.0)
    >>> time_value("at", "2024-03-31 02:30", "Europe/Paris", "s", faults)
    (nan, nan)
    >>> faults
    ["at '2024-03-31 02:30' does not exist in Europe/Paris (the clocks skip it)"]
    """
    table = _zone(zone)
    try:
        seconds, number = _seconds(value, table, unit)
    except _HoleError:
        faults.append(f"{name} '{shown(_time_text(value))}' {hole_words(zone)}")
        return math.nan, math.nan
    except OverflowError:
        seconds, number = math.inf, None
    if seconds is None:
        text = _time_text(value)
        faults.append(f"{name} '{shown(text)}' {NOT_A_TIME}" if text else f"{name} {NO_TIME}")
        return math.nan, math.nan
    if not EARLIEST <= seconds < LATEST:
        hints = unit_hints(unit) if number is not None else []
        words = next((hint for factor, hint in hints if PLAUSIBLE <= seconds / factor < LATEST), OUTSIDE_YEARS)
        faults.append(f"{name} '{shown(_time_text(value))}' {words}")
        return math.nan, math.nan
    if table is None:
        return seconds, seconds
    offset = (_EPOCH_START_UTC + timedelta(microseconds=math.floor(seconds * SECOND))).astimezone(table).utcoffset()
    return seconds, seconds + (offset.total_seconds() if offset is not None else 0.0)


class _HoleError(Exception):
    """A local time that the clocks skip."""


def _seconds(value: Any, table: ZoneInfo | None, unit: str) -> tuple[float | None, float | None]:
    """(seconds, epoch number if it was one); (None, None) for what is missing or no time."""
    if isinstance(value, datetime):
        if value != value:  # pandas' NaT
            return None, None
        if value.tzinfo is not None:
            return (value - _EPOCH_START_UTC).total_seconds(), None
        return _local_seconds(value, table), None
    if isinstance(value, bool) or value is None:
        return None, None
    if isinstance(value, float | int | Decimal):
        number = float(value) / UNITS[unit]
        return (None, None) if number != number else (number, number)
    if isinstance(value, date):
        return _local_seconds(datetime.combine(value, time.min), table), None
    if not isinstance(value, str):
        return _seconds(_plain(value), table, unit)
    return _text_seconds(value.strip(BLANKS), table, unit)


def _text_seconds(text: str, table: ZoneInfo | None, unit: str) -> tuple[float | None, float | None]:
    match = _ISO_RE.fullmatch(text)
    if match is None:
        return _seconds(float(text), table, unit) if _EPOCH_RE.fullmatch(text) else (None, None)
    year, month, day, hour, minute, second, fraction, mark = match.groups()
    micro = int(fraction[:6].ljust(6, "0")) if fraction else 0
    try:
        clock = time(int(hour or 0), int(minute or 0), int(second or 0), micro)
        local = datetime.combine(date(int(year), int(month), int(day)), clock)
    except ValueError:
        return None, None
    if mark is None:
        return _local_seconds(local, table), None
    offset = 0
    if mark[0] in "+-":
        hours, minutes = int(mark[1:3]), int(mark[3:].lstrip(":") or 0)
        if hours > 23 or minutes > 59:
            return None, None
        offset = (hours * 3600 + minutes * 60) * (-1 if mark[0] == "-" else 1)
    span = local - _EPOCH_START
    return ((span.days * 86_400 + span.seconds - offset) * SECOND + span.microseconds) / SECOND, None


def _local_seconds(local: datetime, table: ZoneInfo | None) -> float:
    if table is None:
        return (local - _EPOCH_START).total_seconds()
    moment = local.replace(tzinfo=table, fold=0).astimezone(UTC)
    if moment.astimezone(table).replace(tzinfo=None, fold=0) != local.replace(fold=0):
        raise _HoleError
    return (moment - _EPOCH_START_UTC).total_seconds()


def _time_text(value: Any) -> str:
    """The value as a reason quotes it, "" where missing."""
    if isinstance(value, np.generic):
        value = _plain(value)
    if isinstance(value, datetime):
        if value != value:
            return ""
        moment = value if value.tzinfo is None else value.astimezone(UTC)
        return moment.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds") + ("Z" if value.tzinfo else "")
    if isinstance(value, date):
        return f"{value.isoformat()} 00:00:00"
    return text_value(value) or ""
