"""Slow truth: every derived column, memory and tail by its definition, in loops over plain Python values.

Nothing here is imported from the package but the schema and the events read, so that a fast function and its oracle
cannot share a mistake. Also the untidy tables that several tests read.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from anomaly.schema import NumericField, Place, Schema

NAN = float("nan")
WINDOWS = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}
HOUR, DAY = 3600.0, 86_400.0

Float = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """One canonical event as plain values; `past` are the earlier events of its entity, oldest first."""

    entity: str
    time: float
    clock: float
    numbers: Mapping[str, float]
    categories: Mapping[str, str | None]
    place: tuple[float, float]
    past: Sequence[Event]


def plain_events(frame: pl.DataFrame, schema: Schema) -> list[Event]:
    """Canonical events (sorted by entity, time and row) as plain values."""
    events: list[Event] = []
    histories: dict[str, list[Event]] = {}
    for row in frame.iter_rows(named=True):
        past = histories.setdefault(row["entity"], [])
        latitude, longitude = row.get("p:latitude"), row.get("p:longitude")
        event = Event(
            entity=row["entity"],
            time=row["time"],
            clock=row["clock"],
            numbers={field.name: _number(row[f"n:{field.name}"]) for field in schema.numeric},
            categories={name: row[f"c:{name}"] for name in schema.categorical},
            place=(_number(latitude), _number(longitude)),
            past=tuple(past),
        )
        past.append(event)
        events.append(event)
    return events


def raw_columns(events: Sequence[Event], schema: Schema) -> dict[str, list[float]]:
    """Numeric columns in raw units, column by column and event by event."""
    makers: dict[str, Callable[[Event], float]] = {}
    for field in schema.numeric:
        makers[field.name] = partial(_own, field.name)
    makers["time:gap"] = _gap
    for label, window in WINDOWS.items():
        makers[f"count:{label}"] = partial(_count, window)
    for field in schema.numeric:
        for label, window in WINDOWS.items():
            if field.scale == "log":
                makers[f"sum:{label}:{field.name}"] = partial(_sum, field.name, window)
    if schema.place is not None:
        makers["place:distance"] = _distance
        makers["place:speed"] = lambda event: _distance(event) / (max(_gap(event), 60.0) / HOUR)
    for name, turn in (("hour", _hour_turn), ("weekday", _weekday_turn)):
        makers[f"circle:{name}_sin"] = partial(_circle, math.sin, turn)
        makers[f"circle:{name}_cos"] = partial(_circle, math.cos, turn)
    return {name: [maker(event) for event in events] for name, maker in makers.items()}


def category_words(
    events: Sequence[Event], schema: Schema, lately: float = 0.0, own: Sequence[str] = ()
) -> dict[str, list[str | None]]:
    """Category columns as words, None = missing; those of `own` as places among the entity's own values."""
    words: dict[str, list[str | None]] = {"clock:hour": [f"{local(event).hour:02d}" for event in events]}
    for name in schema.categorical:
        words[name] = [_place(event, name, lately) if name in own else event.categories[name] for event in events]
        words[f"first:{name}"] = [_first(event, name, lately) for event in events]
        words[f"changed:{name}"] = [_changed(event, name) for event in events]
    return words


def places(history: Sequence[tuple[T | None, int]], lately: int, most: int) -> list[tuple[bool, int]]:
    """Is each value (None = missing) new to its entity, and its place, -1 = none; for values and times.

    What was met less than `lately` ago is new, and stands behind all others. Of these, what is used goes before those
    that were used no more often; sixteen uses halve all counts. No more than `most` values are known.
    """
    found: list[tuple[bool, int]] = []
    settled: list[T] = []
    uses: dict[T, int] = {}
    since: dict[T, int] = {}
    for value, now in history:
        if value is None:
            found.append((False, -1))
            continue
        for one in [one for one, met in since.items() if now - met >= lately]:
            settled.append(one)
            uses[one] = 0
            del since[one]
        known = [*settled, *since]
        place = known.index(value) if value in known else len(known)
        found.append((value not in settled, place))
        if value in settled:
            uses[value] += 1
            if uses[value] == 16:
                uses = {one: (number + 1) // 2 for one, number in uses.items()}
            settled.remove(value)
            ahead = [at for at, one in enumerate(settled[:place]) if uses[one] > uses[value]]
            settled.insert(max(ahead, default=-1) + 1, value)
        elif value not in known and len(known) < most:
            since[value] = now
    return found


def code(word: str | None, vocabulary: Sequence[str]) -> int:
    """Code of a word: 0 = unseen, 1 = missing, then the vocabulary in order."""
    if word is None:
        return 1
    return 2 + list(vocabulary).index(word) if word in vocabulary else 0


def remembered(events: Sequence[Event], quarantine: float) -> list[list[Event]]:
    """What the memory before each event holds: the earlier events that are at least `quarantine` seconds old."""
    wait = timedelta(seconds=quarantine)
    return [
        [one for one in event.past if not quarantine or _moment(one.time) <= _moment(event.time) - wait]
        for event in events
    ]


def statistics(values: Sequence[float], limit: float) -> tuple[float, float]:
    """Mean and spread of the values and one of mean 0 and variance 1; NaN is left out, the rest is clipped."""
    known = [min(max(value, -limit), limit) for value in values if not math.isnan(value)]
    mean = math.fsum(known) / (len(known) + 1)
    square = (math.fsum(value**2 for value in known) + 1) / (len(known) + 1)
    return mean, math.sqrt(max(square - mean**2, 1e-4))


def lagged(time: Sequence[float], offsets: Sequence[int], seconds: float) -> list[int]:
    """First event of the same sequence, up to the event itself, that is younger than `seconds`."""
    found = []
    for start, stop in pairwise(offsets):
        for at in range(start, stop):
            border = _micros(time[at]) - round(seconds * 1e6)
            found.append(next(one for one in range(start, at + 1) if _micros(time[one]) > border))
    return found


def around(time: Sequence[float], offsets: Sequence[int], seconds: float) -> list[list[int]]:
    """Events of the same sequence less than `seconds` before or after each one, itself included."""
    limit = round(seconds * 1e6)
    return [
        [one for one in range(start, stop) if abs(_micros(time[one]) - _micros(time[at])) < limit]
        for start, stop in pairwise(offsets)
        for at in range(start, stop)
    ]


def local(event: Event) -> datetime:
    """The event's time on the wall clock."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=_micros(event.clock))


def great_circle_km(place: tuple[float, float], other: tuple[float, float]) -> float:
    """Great-circle distance by the angle between two vectors."""
    if any(math.isnan(value) for value in (*place, *other)):
        return NAN
    a, b = _vector(place), _vector(other)
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    return 6371.0088 * math.atan2(math.hypot(*cross), math.fsum(x * y for x, y in zip(a, b, strict=True)))


def mixture_sf(value: float, logits: Float, location: Float, scale: Float) -> float:
    """P(X >= value) of a mixture of logistics."""
    weight = np.exp(logits - np.logaddexp.reduce(logits))
    return float(weight @ stats.logistic.sf(value, location, scale))


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _moment(seconds: float) -> timedelta:
    return timedelta(microseconds=_micros(seconds))


def _inside(event: Event, window: timedelta) -> list[Event]:
    now = _moment(event.time)
    return [one for one in (*event.past, event) if now - window < _moment(one.time) <= now]


def _own(name: str, event: Event) -> float:
    return event.numbers[name]


def _count(window: timedelta, event: Event) -> float:
    return float(len(_inside(event, window)))


def _sum(name: str, window: timedelta, event: Event) -> float:
    amounts = [one.numbers[name] for one in _inside(event, window)]
    return math.fsum(amount for amount in amounts if not math.isnan(amount))


def _circle(function: Callable[[float], float], turn: Callable[[Event], float], event: Event) -> float:
    return function(2 * math.pi * turn(event))


def _gap(event: Event) -> float:
    return event.time - event.past[-1].time if event.past else NAN


def _distance(event: Event) -> float:
    return great_circle_km(event.place, event.past[-1].place) if event.past else NAN


def _vector(place: tuple[float, float]) -> tuple[float, float, float]:
    latitude, longitude = math.radians(place[0]), math.radians(place[1])
    return (
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    )


def _hour_turn(event: Event) -> float:
    moment = local(event)
    return (moment - moment.replace(hour=0, minute=0, second=0, microsecond=0)) / timedelta(days=1)


def _weekday_turn(event: Event) -> float:
    return (local(event).weekday() + _hour_turn(event)) / 7


def _first(event: Event, name: str, lately: float) -> str | None:
    value = event.categories[name]
    if value is None:
        return None
    since = [_moment(event.time) - _moment(one.time) for one in event.past if one.categories[name] == value]
    return "no" if since and max(since) >= timedelta(seconds=lately) else "yes"


def _place(event: Event, name: str, lately: float) -> str | None:
    history = [(one.categories[name], _micros(one.time)) for one in (*event.past, event)]
    new, place = places(history, round(lately * 1e6), 300)[-1]
    if place < 0:
        return None
    return "new" if new else str(min(place + 1, 16))


def _changed(event: Event, name: str) -> str | None:
    value = event.categories[name]
    before = event.past[-1].categories[name] if event.past else None
    if value is None or before is None:
        return None
    return "no" if value == before else "yes"


UNTIDY_SCHEMA = Schema(
    time="at",
    entity=(("bank", "card"),),
    event_id="id",
    numeric=(
        NumericField(name="amount", scale="log", tail="upper"),
        NumericField(name="tip", scale="log", tail="both"),
        NumericField(name="balance", scale="linear", tail="lower"),
    ),
    categorical=("merchant", "channel"),
    place=Place(latitude="lat", longitude="lon"),
    time_zone="America/New_York",
)
"""The schema of `untidy_table`."""


def untidy_table(entities: int = 10, events: int = 40, seed: int = 0) -> pl.DataFrame:
    """Rows as they come: sorted by nothing, with holes in them, equal times, a change of clocks, and no two alike.

    The last two entities begin in the last fifth of the time, so that a fit on what is before knows nothing of them.
    """
    draw = random.Random(seed)
    rows = []
    start = datetime(2024, 2, 20, tzinfo=UTC)
    for entity in range(entities):
        late = entity >= entities - 2
        moment = start + timedelta(days=32) if late else start
        level = draw.choice((10.0, 100.0))
        for _ in range(max(8, events // 4) if late else events):
            days = draw.choice((0.0, 0.02, 0.3, 1.0, 2.0)) * (0.4 if late else 1.0) * 40 / events
            moment += timedelta(seconds=round(days * DAY * draw.random()))
            rows.append({
                "at": moment,
                "bank": f"B{entity % 2}",
                "card": f"K{entity}",
                "amount": _holed(draw, round(level * math.exp(draw.gauss(0.0, 0.5)), 2)),
                "tip": _holed(draw, draw.choice((0.0, -0.5, round(draw.random() * 3, 2)))),
                "balance": _holed(draw, round(draw.gauss(500.0, 80.0), 2)),
                "merchant": _holed(draw, draw.choice(("shop", "shop", "fuel", "web", f"new {draw.randrange(99)}"))),
                "channel": _holed(draw, draw.choice(("chip", "web"))),
                "lat": _holed(draw, round(40.0 + draw.random(), 4)),
                "lon": _holed(draw, round(-74.0 + draw.random(), 4)),
            })  # fmt: skip
    draw.shuffle(rows)
    table = pl.DataFrame(rows, infer_schema_length=None)
    return table.with_columns(id=pl.format("E{}", pl.int_range(pl.len())))


def _holed(draw: random.Random, value: T) -> T | None:
    return None if draw.random() < 0.03 else value
