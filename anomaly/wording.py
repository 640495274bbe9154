"""Values in words for people who read a report: text on one line, dates, hours, numbers, rarity."""

from __future__ import annotations

import unicodedata
from datetime import date, datetime

import polars as pl

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
NAME, SENTENCE = 80, 240  # characters of a name and of a sentence before they are cut


def cut(value: object, most: int) -> str:
    r"""Return text on one line without control characters, at most `most` characters, an ellipsis where it was cut.

    >>> cut("a\x00b  c", 9), cut("0123456789", 6), cut(None, 6)
    ('a�b c', '01234…', '')
    """
    text = "" if value is None else str(value)[: 20 * most]
    text = " ".join(printable(text).split())
    return text if len(text) <= most else text[: most - 1].rstrip("\u200d ") + "…"


def printable(text: str) -> str:
    """Text whose control characters are replaced; white space stays."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and not c.isspace() else c for c in text)


def day(moment: date) -> str:
    """A day, as "4 Mar 2024"."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def hours(start: datetime, end: datetime) -> str:
    """Return the time from start to end, with the later day's date if it is another one."""
    if end.date() != start.date():
        return f"{start:%H:%M} – {end.day} {MONTHS[end.month - 1]} {end:%H:%M}"
    return f"{start:%H:%M} – {end:%H:%M}" if f"{end:%H:%M}" != f"{start:%H:%M}" else f"{start:%H:%M}"


def number(value: float) -> str:
    """Return a number with separators and up to four decimals.

    >>> number(1234.5), number(3.0), number(float("nan"))
    ('1,234.5', '3', '')
    """
    text = "" if value != value else f"{value:,.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def rarity(surprise: float) -> str:
    """Surprise -> "1 in n"; the power stays where a float can hold it."""
    return one_in(10.0 ** -min(surprise, 300.0))


def plural(n: int, word: str) -> str:
    """A count with its noun.

    >>> plural(1, "event"), plural(1200, "event")
    ('1 event', '1,200 events')
    """
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def local(times: pl.Series, zone: str) -> pl.Series:
    """Return times, UTC unless they say otherwise, as the clock of `zone` showed them."""
    if times.dtype == pl.Datetime and times.dtype.time_zone is None:  # type: ignore[attr-defined]
        times = times.dt.replace_time_zone("UTC")
    return times.dt.convert_time_zone(zone).dt.replace_time_zone(None)


def cells(column: pl.Series, zone: str) -> list[str]:
    """A column of a table as text: times in `zone`, surprise as rarity, lists joined, all else as it is."""
    if column.dtype == pl.Datetime:
        return ["" if t is None else f"{day(t)} {t:%H:%M:%S}" for t in local(column, zone)]
    values = column.to_list()
    if column.name == "surprise":
        return ["" if v is None else rarity(v) for v in values]
    if column.dtype.is_float():
        return ["" if v is None else number(v) for v in values]
    if column.dtype == pl.List:
        return [cut("; ".join(map(str, v or ())), SENTENCE) for v in values]
    return [cut(v, SENTENCE if column.name == "reasons" else NAME) for v in values]


def one_in(p: float) -> str:
    """Write a probability as ``1 in n`` with two leading digits, in the words of `anomaly.alerts.sentence`.

    >>> [one_in(p) for p in (1, 0.4, 0.011, 1 / 9321, 1 / 2_345_678, 1e-13, float("nan"))]
    ['1 in 1', '1 in 2.5', '1 in 91', '1 in 9,300', '1 in 2.3 million', 'less than 1 in a trillion', '–']
    """
    if not p > 0:  # NaN too: no statement
        return "–"
    if p <= 1e-12:
        return "less than 1 in a trillion"
    n = float(f"{1 / p:.2g}")
    for unit, word in ((1e9, "billion"), (1e6, "million")):
        if n >= unit:
            return f"1 in {n / unit:.3g} {word}"
    return f"1 in {n:,.0f}" if n >= 10 else f"1 in {n:g}"
