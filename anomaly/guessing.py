"""What each column of a table is probably for, told from its name and from the first rows.

A guess is a start for a person to correct, so every guess comes with its reason in words. The rules are plain and
few: names first (a column called ``is_fraud`` is a label, whatever it holds), values second (an id that repeats is an
entity, one that does not is an event's own). What tells nothing of an event, or tells too much, is left out, with the
reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from anomaly.columns import number_column, text_column
from anomaly.errors import InputError, SchemaError
from anomaly.values import ISO


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


LABEL = _set("fraud fraudulent isfraud anomaly anomalous isanomaly outlier chargeback label labels")
LABEL_EXACT = _set("class target y istarget")
TIME = _set("timestamp datetime time ts date at dt when unix epoch created occurred step seconds")
RELATIVE_TIME = _set("time step seconds")
NOT_EVENT_TIME = _set("dob birth birthday expiry expires expiration updated modified valid until opened joined signup")
EVENT = _set("transaction trans tx txn event order payment record row log message request invoice uuid guid hash")
ID = _set("id ids key num number no nr code uuid guid ref reference hash")
FILLER = _set("name masked hashed hash")
PERSON = _set(
    "card cards cc pan customer cust client account acct user username member subscriber cardholder payer sender orig "
    "kunde konto karte compte carte cliente cuenta tarjeta"
)
THING = _set("device machine sensor host vehicle phone msisdn imei employee email ip meter station engine unit asset")
PARTNER = _set("merchant terminal dest destination receiver payee beneficiary store shop atm pos product item seller")
CODE = _set("code zip postcode mcc type category flag status bin currency country channel port success result gender")
MONEY = _set(
    "amount amt price sum total cost paid balance revenue fee charge spend spent usd eur gbp betrag montant importe"
)
LATITUDE, LONGITUDE = _set("lat latitude"), _set("lon long lng longitude")

ENOUGH = 100  # rows before "always the same" or "few values" means anything
MOSTLY = 0.9  # share of the values that must read as a kind for the column to be of it

Kind = Literal["time", "number", "flag", "text", "empty"]


@dataclass(frozen=True)
class Look:
    """What the first rows say of one column."""

    name: str
    words: frozenset[str]
    kind: Kind
    filled: int
    distinct: int
    whole: bool = False
    rising: bool = False
    low: float = 0.0
    median: float = 0.0
    high: float = 0.0
    clock: bool = False  # a time that knows more than the day

    @property
    def repeats(self) -> float:
        """Rows per value."""
        return self.filled / max(self.distinct, 1)


def words_of(name: str) -> frozenset[str]:
    """The words of a column's name, in lower case.

    Examples
    --------
    >>> sorted(words_of("TX_DATETIME")), sorted(words_of("nameOrig")), sorted(words_of("userID"))
    (['datetime', 'tx'], ['name', 'orig'], ['id', 'user'])
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return frozenset(word.lower() for word in re.findall(r"[^\W\d_]+|\d+", spaced))


def guess(frame: pl.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments of a `Schema`, and the reason of each.

    Reasons are keyed like the schema (``time``, ``entity``, ...), with ``numeric.<column>``, ``categorical.<column>``
    and ``left_out.<column>`` for single columns. See `anomaly.schema.infer_schema`.
    """
    if frame.height == 0:
        raise InputError("a schema is guessed from rows, and the table has none: give it at least a few events")
    decimal, decimal_reason = _decimal(frame)
    looks = [look_at(frame, name, decimal) for name in frame.columns if name]
    guesses: dict[str, Any] = {"decimal": decimal}
    reasons = {"decimal": decimal_reason}
    for step in (_label, _time, _event_id, _entity, _place):
        looks = step(frame, looks, guesses, reasons)
    _fields(frame, looks, guesses, reasons)
    return guesses, reasons


def _decimal(frame: pl.DataFrame) -> tuple[str, str]:
    counts = {}
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    for mark in (".", ","):
        lazy, values = frame.lazy(), []
        for name in texts:
            lazy, column = number_column(lazy, name, pl.String(), mark)
            values.append(column.value.count().alias(name))
        counts[mark] = sum(lazy.select(values).collect().row(0)) if values else 0
    if counts[","] > counts["."]:
        return ",", f"{counts[',']} values read as numbers with a decimal comma, {counts['.']} with a point"
    return ".", "numbers are typed, or read with a decimal point"


def look_at(frame: pl.DataFrame, name: str, decimal: str) -> Look:
    """Looks at one column of the first rows."""
    dtype, words = frame.schema[name], words_of(name)
    column = frame[name]
    if dtype.is_temporal() and not isinstance(dtype, pl.Duration | pl.Time):
        clock = dtype != pl.Date and bool((column.drop_nulls().dt.date().cast(dtype) != column.drop_nulls()).any())
        return Look(name, words, "time", column.count(), column.n_unique(), clock=clock)
    try:
        text = frame.select(text_column(name, dtype)).to_series().drop_nulls()
    except SchemaError:
        return Look(name, words, "empty", 0, 0)
    filled, distinct = len(text), text.n_unique()
    if filled == 0:
        return Look(name, words, "empty", 0, 0)
    if dtype == pl.Boolean or set(text.str.to_lowercase().unique()) <= {
        "true",
        "false",
        "yes",
        "no",
        "y",
        "n",
        "t",
        "f",
    }:
        return Look(name, words, "flag", filled, distinct)
    if dtype == pl.String and text.str.contains(f"^(?:{ISO})$").sum() >= MOSTLY * filled:
        return Look(name, words, "time", filled, distinct, clock=bool(text.str.contains(":", literal=True).any()))
    lazy, parsed = number_column(frame.lazy(), name, dtype, decimal)
    numbers = lazy.select(parsed.value).collect().to_series().drop_nulls()
    if len(numbers) < MOSTLY * filled or len(numbers) == 0:
        return Look(name, words, "text", filled, distinct)
    low, median, high = (float(value) for value in (numbers.min(), numbers.median(), numbers.max()))  # type: ignore[arg-type]
    whole, rising = bool((numbers == numbers.floor()).all()), numbers.is_sorted() and distinct > 1
    return Look(name, words, "number", filled, distinct, whole, rising, low, median, high)


Step = Callable[[pl.DataFrame, list[Look], dict[str, Any], dict[str, str]], list[Look]]


def _without(looks: list[Look], *taken: Look) -> list[Look]:
    return [look for look in looks if look not in taken]


def _label(_: pl.DataFrame, looks: list[Look], guesses: dict[str, Any], reasons: dict[str, str]) -> list[Look]:
    alike = [look for look in looks if look.words & LABEL or "".join(sorted(look.words)) in LABEL_EXACT]
    for look in alike:
        reasons[f"left_out.{look.name}"] = "by its name another label; a label is never a feature"
    usable = [look for look in alike if look.distinct <= 2]
    if usable:
        best = min(usable, key=lambda look: len(look.words))
        guesses["label"] = best.name
        del reasons[f"left_out.{best.name}"]
        reasons["label"] = "by its name the label: held apart, never a feature"
    return _without(looks, *alike)


def _time_score(look: Look) -> int:
    """How much a column looks like the time of the event; 0 = not at all."""
    named = bool(look.words & TIME)
    score = 0
    if look.kind == "time":
        score = 100 + 20 * look.clock
    elif look.kind == "number" and named and look.low >= 1e8:
        score = 60
    elif look.kind == "number" and named and look.words <= RELATIVE_TIME and look.low >= 0:
        score = 30
    return score and max(1, score + 10 * named + 5 * bool(look.words & EVENT) - 90 * bool(look.words & NOT_EVENT_TIME))


def _time(_: pl.DataFrame, looks: list[Look], guesses: dict[str, Any], reasons: dict[str, str]) -> list[Look]:
    best = max(looks, key=_time_score, default=None)
    if best is None or _time_score(best) == 0:
        names = ", ".join(look.name for look in looks)
        raise SchemaError(
            "no column reads as a time (ISO text such as 2024-12-31 23:59:59, an epoch, or a date type). "
            f"Columns there are: {names}. Write the schema by hand and name one as `time`"
        )
    guesses["time"], guesses["time_zone"], guesses["time_unit"] = best.name, "UTC", "s"
    reasons["time_zone"] = "the zone of times without an offset, of hour and weekday: put yours, e.g. Europe/Paris"
    reasons["time_unit"] = "used for numeric times only"
    if best.kind == "time":
        reasons["time"] = "its values are times" + ("" if best.clock else " (days without a time of day)")
    elif best.high < 1e8:
        reasons["time"] = "numbers counted from a start of their own: hour and weekday mean nothing then"
        reasons["time_unit"] = "small numbers: taken for seconds"
    else:
        unit, word = ("us", "microseconds") if best.median >= 1e14 else ("s", "seconds")
        unit, word = ("ms", "milliseconds") if 1e11 <= best.median < 1e14 else (unit, word)
        guesses["time_unit"] = unit
        reasons["time"] = f"by its name a time, by its size {word} since 1970"
        reasons["time_unit"] = f"around {best.median:.0f}: {word} since 1970"
    second = [look for look in looks if look != best and (_time_score(look) or (look.words & TIME and look.rising))]
    for look in second:
        reasons[f"left_out.{look.name}"] = f"another time; {best.name} is the one in use"
    return _without(looks, best, *second)


def _is_id(look: Look) -> bool:
    return look.kind == "text" or (look.kind == "number" and look.whole and look.low >= 0)


def _event_id(frame: pl.DataFrame, looks: list[Look], guesses: dict[str, Any], reasons: dict[str, str]) -> list[Look]:
    unique = [look for look in looks if _is_id(look) and look.distinct >= 0.99 * look.filled > 0.5 * frame.height]
    named = [look for look in unique if look.words & (EVENT | _set("id key")) and look.words <= EVENT | ID]
    if named:
        best = max(named, key=lambda look: bool(look.words & EVENT))
        guesses["event_id"] = best.name
        reasons["event_id"] = f"by its name an id, and every one of {look_rows(best)} differs; finds duplicates"
        looks = _without(looks, best)
    for look in [
        look for look in looks if look.words & _set("index unnamed") and look.kind == "number" and look.rising
    ]:
        reasons[f"left_out.{look.name}"] = "a row number"
        looks = _without(looks, look)
    return looks


def look_rows(look: Look) -> str:
    """How many values were looked at, in words."""
    return f"{look.filled:,} values"


def _entity(_: pl.DataFrame, looks: list[Look], guesses: dict[str, Any], reasons: dict[str, str]) -> list[Look]:
    def rank(look: Look) -> int:
        groups = (PERSON, THING, PARTNER)
        named = (
            place for place, group in enumerate(groups) if look.words & group and look.words <= group | ID | FILLER
        )
        return next(named, 3 if look.words & _set("id nr no key") else 9)

    able = [look for look in looks if _is_id(look) and rank(look) < 9]
    if not able:
        reasons["entity"] = "no column looks like an id that repeats: the whole table is read as one sequence"
        guesses["entity"] = ()
        return looks
    unique = [look for look in able if look.distinct == look.filled >= 20]
    best = min(able, key=lambda look: (look in unique, rank(look), -look.repeats))
    guesses["entity"] = (best.name,)
    others = [look.name for look in able if look != best]
    reasons["entity"] = f"an id that repeats ({look_rows(best)}, {best.distinct:,} different)"
    if best in unique or best.distinct == best.filled:
        reasons["entity"] = f"by its name whose events these are, though each of {look_rows(best)} differs"
    if others:
        reasons["entity"] += f"; also possible: {', '.join(others)}"
    return _without(looks, best)


def _steady(frame: pl.DataFrame, name: str, guesses: dict[str, Any]) -> bool:
    """Whether every entity has one value only, in enough rows to tell."""
    if not guesses["entity"]:
        return False
    groups = (
        frame.lazy().group_by(*guesses["entity"]).agg(pl.col(name).n_unique().alias("values"), pl.len().alias("rows"))
    )
    table = groups.collect()
    return int((table["rows"] - 1).sum()) >= ENOUGH and table["values"].max() == 1


def _place(frame: pl.DataFrame, looks: list[Look], guesses: dict[str, Any], reasons: dict[str, str]) -> list[Look]:
    numbers = [look for look in looks if look.kind == "number"]
    north = {
        look.words - LATITUDE: look for look in numbers if look.words & LATITUDE and -90 <= look.low <= look.high <= 90
    }
    east = {look.words - LONGITUDE: look for look in numbers if look.words & LONGITUDE}
    pairs = [(north[rest], east[rest]) for rest in north if rest in east]
    if not pairs:
        return looks
    steady = [_steady(frame, latitude.name, guesses) for latitude, _ in pairs]
    latitude, longitude = pairs[steady.index(False)] if False in steady else pairs[0]
    guesses["place"] = {"latitude": latitude.name, "longitude": longitude.name}
    reasons["place"] = "by their names latitude and longitude in degrees, where the event happened"
    taken = [look for pair in pairs for look in pair]
    for look in taken:
        if look not in (latitude, longitude):
            reasons[f"left_out.{look.name}"] = f"a second place; {latitude.name} and {longitude.name} are in use"
    return _without(looks, *taken)


def _fields(frame: pl.DataFrame, looks: Sequence[Look], guesses: dict[str, Any], reasons: dict[str, str]) -> None:
    """Sorts what is left into numbers, categories, and what says nothing of an event."""
    numeric: list[dict[str, str]] = []
    categorical: list[str] = []
    for look in looks:
        why_not = _says_nothing(frame, look, guesses)
        category = _category(frame, look)
        if why_not:
            reasons[f"left_out.{look.name}"] = why_not
        elif category:
            categorical.append(look.name)
            reasons[f"categorical.{look.name}"] = category
        elif look.kind == "number":
            scale, tail, why = _number_shape(look)
            numeric.append({"name": look.name, "scale": scale, "tail": tail})
            reasons[f"numeric.{look.name}"] = why
        else:
            reasons[f"left_out.{look.name}"] = "nearly every value differs: it names, it does not classify"
    guesses["numeric"], guesses["categorical"] = tuple(numeric), tuple(categorical)


def _says_nothing(frame: pl.DataFrame, look: Look, guesses: dict[str, Any]) -> str:
    if look.kind == "empty":
        return "empty in the rows looked at, or of a type that holds no plain values"
    if look.distinct == 1 and look.filled >= ENOUGH:
        return f"the same in all of {look_rows(look)}"
    if not look.words & (ID | THING | PARTNER) and _steady(frame, look.name, guesses):
        return f"the same in all events of each {guesses['entity'][0]}: it says nothing of an event"
    return ""


def _category(frame: pl.DataFrame, look: Look) -> str:
    """Why the column is a category; "" if it is none."""
    if look.kind == "flag":
        return "true or false"
    party = PERSON | THING | PARTNER
    if _is_id(look) and look.words & party and look.words <= party | ID | FILLER:
        return "by its name the other party or the means of the event"
    if look.words & CODE and (look.kind == "text" or look.whole):
        return f"by its name a code ({look.distinct:,} different)"
    if look.words & ID and _is_id(look):
        return f"by its name an id ({look.distinct:,} different)"
    if look.kind == "number":
        few = look.whole and (look.distinct <= 2 or (look.distinct <= 10 and frame.height >= ENOUGH))
        return f"whole numbers, only {look.distinct} different: codes rather than quantities" if few else ""
    told = look.filled < 20 or look.distinct <= max(19, look.filled // 2)
    return f"text with {look.distinct:,} different values" if told else ""


def _number_shape(look: Look) -> tuple[str, str, str]:
    if look.words & MONEY:
        return "log", "upper", "by its name money: spread over powers of ten, and strange when large"
    if look.low >= 0 and look.median > 0 and look.high > 20 * look.median:
        return "log", "both", "never negative, and a few values are far larger than the rest"
    return "linear", "both", "a number; strange when small or large"
