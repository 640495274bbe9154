"""Encoder: canonical events -> Sequences, with causal columns only.

A derived column has a colon in its name, so that a table may hold a ``speed`` or an ``hour`` of its own.

Every column says of an event something that was known the moment it happened: its own fields, and what the earlier
events of its entity make of them. Scales and vocabularies are learned on a masked part of the history.

| column | what it is | kind |
|---|---|---|
| a numeric field | as given; a ``log`` field on an asinh scale (linear near 0, signed, logarithmic beyond) | number |
| ``time:gap`` | seconds since the entity's previous event, logarithmic; none for the first | duration |
| ``count:1h``, ``count:24h``, ``count:7d`` | its events in the last hours, this one included; 1,000 at most | count |
| ``sum:1h:<field>`` ... | the same as a sum, for each ``log`` field | number |
| ``place:distance``, ``place:speed`` | km from the entity's previous place (great circle), and km/h | distance, speed |
| ``circle:hour_sin`` ... ``circle:weekday_cos`` | local time of day and of week as circles | circle |
| a categorical field | code in a vocabulary of the commonest values; or, where few entities share a value or most are \
rare (a device, a payee), its place among the entity's own values, the commonest of late first | category |
| ``clock:hour`` | local hour as a code | clock |
| ``first:<field>`` | does the entity meet this value for the first time, or did so only lately; it knows 300 | flag |
| ``changed:<field>`` | does the value differ from that of the entity's previous event | flag |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.entity_state import meet_all
from anomaly.errors import NotFittedError, ParameterError, SchemaError
from anomaly.loops import sum_windows
from anomaly.schema import Schema
from anomaly.sequences import (
    MOST_RECENT,
    MOST_VALUES,
    PIECE,
    Sequences,
    by_pieces,
    counts_within,
    microseconds,
    whole_sequences,
)

WINDOWS: Mapping[str, int] = {"1h": 3600, "24h": 86400, "7d": 604800}
EARTH_RADIUS_KM = 6371.0088
SHORTEST_TRIP_SECONDS = 60.0  # two places in the same second are not an infinite speed
LARGEST_AMOUNT = 1e300  # as much of an amount enters a sum, so that no sum is infinite
FARTHEST = 1e4  # encoded numbers lie within this: a marker like 1.8e308 is no infinity, and 0.01 still counts
CIRCLES: Mapping[str, float] = {"hour": 86400.0, "weekday": 604800.0}
MONDAY = 4 * 86400.0  # 1970-01-05, the first Monday of the epoch
GIVEN = "given:"  # before the name of a number that is judged given the categories of its own event
POPULATION = "population:"  # before the name of a number that is judged among those of everybody
DERIVED = ("time:", "count:", "sum:", "place:", "circle:", "clock:", "first:", "changed:", "field:", GIVEN, POPULATION)
SCORE_COLUMNS = (
    "row",
    "time",
    "p_value",
    "score",
    "surprise",
    "status",
    "p_autoencoder",
    "p_forecaster",
    "recent",
    "alerting",
    "reasons",
)
UNSEEN, MISSING, FIRST_CODE = 0, 1, 2
NO, YES = FIRST_CODE, FIRST_CODE + 1

# A number that the schema names, with the tail that hurts, is what the user asks about: it counts 1. The rest
# corroborates it, what is new to an entity more so than what is rare.
# Chosen on simulated frauds (recall at 50 alerts a day): 1, 0.5, 0.3, 0.2 and 0.1 were tried.
OTHER_WEIGHT = 0.3
NEW_WEIGHT = 0.7
OWN_VALUES = 16  # an entity's commonest values have a code each, the last of them for all the others
LEAST_COVERED = 0.9  # share of the events that a vocabulary must know
LEAST_SHARED = 0.1  # share of the entities that take a value, mean over the events, from which on it says something

Float = NDArray[np.float64]
Kind = Literal["number", "duration", "count", "distance", "speed", "circle", "category", "clock", "flag"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One encoded column, with all that is needed to encode a value and to name it in a report.

    Attributes
    ----------
    name, kind : str
        See the table at the top of this module.
    scored : bool
        Does the column have a predictive distribution of its own (is it a *field*), or is it only read as input.
    stage : int
        Fields are predicted in stages: 1 from the memory alone (when), 2 also from the clock (all else), 3 also from
        the categories of the event itself (a number once more, see `Column.given`).
    tail : {"upper", "lower", "both", "density"}
        Which side of the predictive distribution is strange; ``density`` (categories) = whatever is improbable.
    unit : float
        For an asinh scale, the raw value at which linear turns into logarithmic; 0 = linear scale.
    center, scale : float
        Robust location and spread after the scale: encoded = (transform(raw) - center) / scale.
    weight : float
        How much the field's surprise counts in that of the event.
    step : float
        Half the distance between two neighbouring raw values of a count, 0 for a continuous number.
    vocabulary : tuple of str
        Values with a code of their own; the first has code 2.
    own : bool
        The vocabulary is of places among the entity's own values, "1" for the one that was the commonest of late, and
        what is new to it is unseen.
    """

    name: str
    kind: Kind
    scored: bool = True
    stage: Literal[1, 2, 3] = 2
    tail: Literal["upper", "lower", "both", "density"] = "upper"
    unit: float = 0.0
    center: float = 0.0
    scale: float = 1.0
    step: float = 0.0
    weight: float = OTHER_WEIGHT
    vocabulary: tuple[str, ...] = ()
    own: bool = False

    @property
    def is_category(self) -> bool:
        """Does the column live in ``Sequences.category`` (else in ``Sequences.numeric``)."""
        return self.kind in ("category", "clock", "flag")

    @property
    def raw_name(self) -> str:
        """Name of the values behind the column; several fields may judge the same ones."""
        return self.name.removeprefix(GIVEN).removeprefix(POPULATION)

    def given(self) -> Column:
        """The same number, judged given the categories of its own event."""
        return replace(self, name=GIVEN + self.name, stage=3)

    @property
    def cumulative(self) -> bool:
        """Does the column say again what it said of the events before: added up, its surprises would count many times.

        A count is the sum of earlier events, and what is new stays new for a while; among an entity's own values that
        is what is strangest, so that such a column is left out as a whole.
        """
        return self.kind in ("count", "flag") or self.own

    @property
    def size(self) -> int:
        """Number of codes of a category column."""
        return FIRST_CODE + len(self.vocabulary)

    def encode(self, raw: Any) -> Any:
        """Raw numbers to encoded ones; NaN stays NaN."""
        with np.errstate(over="ignore"):
            transformed = np.arcsinh(raw / self.unit) if self.unit else raw
            return (transformed - self.center) / self.scale

    def decode(self, encoded: Any) -> Any:
        """Encoded numbers back to raw ones."""
        transformed = np.asarray(encoded, dtype=np.float64) * self.scale + self.center
        # 700 is where sinh leaves float64; a quantile may lie far out before the model has learned anything.
        return np.sinh(np.clip(transformed, -700, 700)) * self.unit if self.unit else transformed


class Encoder:
    """Learns scales and vocabularies from a history, and turns events into Sequences.

    Parameters
    ----------
    schema : Schema
        Which columns there are.
    largest_vocabulary : int
        Values of a categorical field that get a code of their own, the commonest first; the rest share code 0. Where
        that leaves too many without one, codes are of the entity's own values (see `Column.own`).
    fewest_events : int
        How often a value must occur in the history to get a code. The rare ones teach the model what code 0, an
        unseen value, looks like.
    lately : float
        Seconds for which a value stays new to its entity (``first:<field>``), from its first event with it on. A thief
        pays ten times with a telephone of his own; the second time it is as little the owner's as the first.
    """

    def __init__(
        self, schema: Schema, *, largest_vocabulary: int = 200, fewest_events: int = 20, lately: float = 0.0
    ) -> None:
        self.schema = schema
        self.largest_vocabulary = largest_vocabulary
        self.fewest_events = fewest_events
        self.lately = lately
        self.columns_: tuple[Column, ...] = ()

    @property
    def numeric(self) -> tuple[Column, ...]:
        """Columns of ``Sequences.numeric``, in order."""
        return tuple(c for c in self._fitted() if not c.is_category)

    @property
    def category(self) -> tuple[Column, ...]:
        """Columns of ``Sequences.category``, in order."""
        return tuple(c for c in self._fitted() if c.is_category)

    def fit(self, frame: pl.DataFrame, mask: NDArray[np.bool_] | None = None) -> Encoder:
        """Learn scales and vocabularies.

        Parameters
        ----------
        frame : polars.DataFrame
            Canonical events (see `anomaly.ingest`), sorted by entity, time and row.
        mask : ndarray of bool, shape (N,), optional
            Events to learn from; the others still count as history. All by default.

        Raises
        ------
        ParameterError
            If the mask selects no event.
        """
        chosen = np.ones(len(frame), dtype=bool) if mask is None else mask
        if not chosen.any():
            raise ParameterError("Encoder.fit: the mask selects no event to learn from; give a later `until`")
        refuse_names(self.schema)
        raw = raw_numbers(frame, self.schema)
        columns = [self._numeric_column(name, values[chosen]) for name, values in raw.items()]
        self.columns_ = (*columns, *self._category_columns(frame.filter(pl.Series(chosen))))
        return self

    def transform(self, frame: pl.DataFrame) -> Sequences:
        """Encode canonical events (sorted by entity, time and row) as Sequences, one row per event in that order."""
        offsets = entity_offsets(frame["entity"])
        numeric = np.empty((len(frame), len(self.numeric)), dtype=np.float32)
        category = np.empty((len(frame), len(self.category)), dtype=np.int32)

        def encode(first: int, last: int) -> None:
            some = frame[first:last]
            own = offsets[np.searchsorted(offsets, first) : np.searchsorted(offsets, last) + 1] - first
            raw, codes = raw_numbers(some, self.schema, own), self._codes(some, own)
            encoded = np.empty((len(self.numeric), last - first), dtype=np.float32)  # turned over once, not by column
            for index, column in enumerate(self.numeric):
                encoded[index] = np.clip(column.encode(raw[column.name]), -FARTHEST, FARTHEST)
            numeric[first:last] = encoded.T
            for index, column in enumerate(self.category):
                category[first:last, index] = codes[column.name]

        by_pieces(encode, whole_sequences(offsets, PIECE))
        return Sequences(
            entity=frame["entity"].gather(offsets[:-1]).to_numpy().astype(object),
            offsets=offsets,
            time=frame["time"].to_numpy(),
            numeric=numeric,
            category=category,
            row=frame["row"].to_numpy(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Learned state as plain JSON values."""
        return {"lately": self.lately, "columns": [asdict(column) for column in self._fitted()]}

    @classmethod
    def from_dict(cls, schema: Schema, state: Mapping[str, Any]) -> Encoder:
        """Make an encoder from what `to_dict` returned."""
        encoder = cls(schema, lately=state["lately"])
        encoder.columns_ = tuple(
            Column(**{**column, "vocabulary": tuple(column["vocabulary"])}) for column in state["columns"]
        )
        return encoder

    def _fitted(self) -> tuple[Column, ...]:
        if not self.columns_:
            raise NotFittedError("Encoder: not fitted yet; call fit(frame) first")
        return self.columns_

    def _numeric_column(self, name: str, raw: Float) -> Column:
        given = {field.name: field for field in self.schema.numeric}.get(name)
        values = raw[np.isfinite(raw)]
        if name.startswith("circle:"):
            return Column(name=name, kind="circle", scored=False)
        if given is not None:
            unit = _asinh_unit(values) if given.scale == "log" else 0.0
            return _scaled(Column(name=name, kind="number", tail=given.tail, unit=unit, weight=1.0), values)
        if name == "time:gap":
            return _scaled(
                Column(name=name, kind="duration", stage=1, tail="both", unit=1.0, scored=_varies(values)), values
            )
        if name.startswith("count:"):
            # A day and a week change little from event to event: read by the models, but no statement of their own.
            scored = name == "count:1h" and _varies(values)
            return _scaled(Column(name=name, kind="count", unit=1.0, step=0.5, scored=scored), values)
        if name in ("place:distance", "place:speed"):
            kind: Kind = "distance" if name == "place:distance" else "speed"
            return _scaled(Column(name=name, kind=kind, unit=1.0, scored=_varies(values)), values)
        return _scaled(Column(name=name, kind="number", unit=_asinh_unit(values), scored=False), values)

    def _category_columns(self, frame: pl.DataFrame) -> Iterable[Column]:
        yield Column(
            name="clock:hour", kind="clock", stage=1, tail="density", vocabulary=tuple(f"{h:02d}" for h in range(24))
        )
        for name in self.schema.categorical:
            yield self._category_column(name, frame)
        for name in self.schema.categorical:
            yield Column(name=f"first:{name}", kind="flag", tail="density", weight=NEW_WEIGHT, vocabulary=("no", "yes"))
            yield Column(name=f"changed:{name}", kind="flag", scored=False, vocabulary=("no", "yes"))

    def _category_column(self, name: str, frame: pl.DataFrame) -> Column:
        value = pl.col(f"c:{name}")
        counts = (
            frame.select(value, "entity")
            .drop_nulls(f"c:{name}")
            .group_by(value)
            .agg(pl.len().alias("count"), pl.col("entity").n_unique().alias("entities"))
            .sort(["count", f"c:{name}"], descending=[True, False])
        )
        events = counts["count"].to_numpy()
        known = max(1, int(events.sum()))
        shared = float(events @ counts["entities"].to_numpy()) / (known * frame["entity"].n_unique())
        fewest = min(self.fewest_events, max(2, len(frame) // 100))
        common = counts.filter(pl.col("count") >= fewest).head(self.largest_vocabulary)
        scored = known >= len(frame) / 2  # of what most events lack nothing much is said
        column = Column(
            name=name, kind="category", tail="density", scored=scored, vocabulary=tuple(common[f"c:{name}"])
        )
        covered = int(common["count"].to_numpy().sum()) / known
        if shared >= LEAST_SHARED and covered >= LEAST_COVERED:
            return column
        places = tuple(str(place + 1) for place in range(OWN_VALUES))
        return replace(column, own=True, vocabulary=places)

    def _codes(self, frame: pl.DataFrame, offsets: NDArray[np.int64]) -> dict[str, NDArray[np.int32]]:
        hour = np.floor(np.mod(frame["clock"].to_numpy(), 86400.0) / 3600.0).astype(np.int32)
        codes = {"clock:hour": FIRST_CODE + hour}
        micros = microseconds(frame["time"].to_numpy())
        columns = {column.name: column for column in self.category}
        for name in self.schema.categorical:
            own = columns[name].own
            code, known = _numbered(frame[f"c:{name}"], () if own else columns[name].vocabulary)
            missing = code < 0
            new, place = met_values(code, offsets, micros, round(self.lately * 1e6))
            if own:
                known = np.where(new, UNSEEN, FIRST_CODE + np.minimum(place, OWN_VALUES - 1))
            codes[name] = np.where(missing, MISSING, known).astype(np.int32)
            codes[f"first:{name}"] = np.where(missing, MISSING, np.where(new, YES, NO)).astype(np.int32)
            before = np.concatenate([[-1], code[:-1]])[: len(code)]
            before[offsets[:-1]] = -1
            same = np.where(code == before, NO, YES)
            codes[f"changed:{name}"] = np.where(missing | (before < 0), MISSING, same).astype(np.int32)
        return codes


def judged_twice(columns: Sequence[Column]) -> NDArray[np.int64]:
    """Places of the numbers that are judged as such, and given the categories of their event, (P, 2)."""
    at = {column.name: place for place, column in enumerate(columns)}
    pairs = [(at[name.removeprefix(GIVEN)], place) for name, place in at.items() if name.startswith(GIVEN)]
    return np.array(pairs, dtype=np.int64).reshape(len(pairs), 2)


def met_values(
    code: NDArray[np.int64], offsets: NDArray[np.int64], micros: NDArray[np.int64], lately: int
) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Did each event's entity meet its value for the first time, or less than `lately` microseconds ago; (N,).

    And the value's place among those that it had met before, (N,), the commonest of late first; -1 for a missing value
    (a negative code), which is none. Of an entity that met `MOST_VALUES`, any other one is always new, and in the last
    place.
    """
    new, place = np.empty(len(code), dtype=bool), np.empty(len(code), dtype=np.int32)
    meet_all(code, offsets, micros, lately, *_room(), new, place)
    return new, place


def known_values(
    values: pl.Series, time: Float, pasts: Iterable[tuple[int, int]], lately: float, now: Iterable[float] | None = None
) -> list[list[str]]:
    """The values of a category that entities have met, by their place, after each of some stretches of events.

    `values` and `time` are of N events, and each of the `pasts` is where some of one entity begin and end among them.
    Those that are still news are left out if it is told for each past what time it is `now`, and stand last otherwise.
    All times in seconds, `lately` as in `Encoder`.
    """
    code, _ = _numbered(values, ())
    micros, span, (met, uses, since) = microseconds(time), round(lately * 1e6), _room()
    new, place = np.empty(len(code), dtype=bool), np.empty(len(code), dtype=np.int32)
    words, at = np.unique(code, return_index=True)
    found = []
    for (begin, end), moment in zip(pasts, repeat(math.inf) if now is None else now, strict=False):
        number, news = meet_all(code, np.array([begin, end]), micros, span, met, uses, since, new, place)
        number -= int((np.rint(moment * 1e6) - since[:news] < span).sum())
        found.append(values.gather(at[np.searchsorted(words, met[:number])]).to_list())
    return found


def _room() -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    return np.empty(MOST_VALUES, np.int64), np.empty(MOST_VALUES, np.uint8), np.empty(MOST_VALUES, np.int64)


def refuse_names(schema: Schema) -> None:
    """Raise SchemaError if a field is named like a derived column, or any column like one of the score table."""
    for name in (*(field.name for field in schema.numeric), *schema.categorical):
        if name.startswith(DERIVED):
            raise SchemaError(
                f"Encoder: the field {name!r} begins like a derived column ({', '.join(DERIVED)}); rename it"
            )
    shown = [*schema.key, schema.event_id, *(field.name for field in schema.numeric), *schema.categorical]
    for column in shown:
        if column in SCORE_COLUMNS:
            raise SchemaError(f"Encoder: the score table has a column {column!r} of its own; rename it in your table")


def entity_offsets(entity: pl.Series) -> NDArray[np.int64]:
    """Borders of the runs of equal entities in a sorted column, shape (S + 1,)."""
    starts = (entity != entity.shift(1)).fill_null(value=True).arg_true().to_numpy()
    return np.concatenate([starts, [len(entity)]]).astype(np.int64) if len(entity) else np.zeros(1, dtype=np.int64)


def raw_numbers(frame: pl.DataFrame, schema: Schema, offsets: NDArray[np.int64] | None = None) -> dict[str, Float]:
    """Numeric columns in raw units (seconds, events, km, km/h, the fields' own), NaN = no statement.

    `offsets` (S + 1,) are the borders of the frame's entities, if they are known; see `entity_offsets`.

    Returns
    -------
    dict of str to ndarray of float64, shape (N,)
        In the order of the encoded columns.
    """
    time = frame["time"].to_numpy()
    offsets = entity_offsets(frame["entity"]) if offsets is None else offsets
    first = offsets[:-1]
    raw = {field.name: _floats(frame[f"n:{field.name}"]) for field in schema.numeric}
    gap = _previous_difference(time, first)
    columns: dict[str, Float] = dict(raw) | {"time:gap": gap}
    counts = dict(zip(WINDOWS, counts_within(time, offsets, list(WINDOWS.values()), MOST_RECENT), strict=True))
    index = np.arange(len(time))
    for label, count in counts.items():
        columns[f"count:{label}"] = count.astype(np.float64)
    for field in schema.numeric:
        if field.scale == "log":
            amount = np.clip(np.nan_to_num(raw[field.name]), -LARGEST_AMOUNT, LARGEST_AMOUNT)
            for label, count in counts.items():
                columns[f"sum:{label}:{field.name}"] = window_sums(amount, index - count + 1)
    if schema.place is not None:
        latitude, longitude = _floats(frame["p:latitude"]), _floats(frame["p:longitude"])
        before = _previous(latitude, first), _previous(longitude, first)
        columns["place:distance"] = great_circle_km(latitude, longitude, *before)
        columns["place:speed"] = speed_kmh(columns["place:distance"], gap)
    clock = frame["clock"].to_numpy()
    for name, period in CIRCLES.items():
        turns = (clock - MONDAY) / period
        angle = 2 * np.pi * (turns - np.floor(turns))
        columns[f"circle:{name}_sin"], columns[f"circle:{name}_cos"] = np.sin(angle), np.cos(angle)
    return columns


def window_sums(values: Float, first: NDArray[np.int64]) -> Float:
    """Sum of the values from event ``first[i]`` to event i, shape (N,).

    By doubling: runs of 1, 2, 4, ... values are added up to each window's length, and nothing is subtracted. A running
    total would be quicker, but after one monstrous amount it has lost the pence of everyone else's.

    Examples
    --------
    >>> window_sums(np.array([1e18, 0.25, 0.5]), np.array([0, 1, 1])).tolist()
    [1e+18, 0.25, 0.75]
    """
    total = np.empty(len(values))
    sum_windows(np.ascontiguousarray(values), first, total)
    return total


def great_circle_km(latitude: Any, longitude: Any, from_latitude: Any, from_longitude: Any) -> Any:
    """Great-circle distance in km by the haversine formula; degrees in, NaN where a place is missing.

    Examples
    --------
    >>> round(float(great_circle_km(52.52, 13.405, 48.8566, 2.3522)))  # Berlin from Paris
    877
    """
    phi, phi0 = np.radians(latitude), np.radians(from_latitude)
    half = np.sin((phi - phi0) / 2) ** 2
    half = half + np.cos(phi) * np.cos(phi0) * np.sin(np.radians(longitude - from_longitude) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0)))


def speed_kmh(distance_km: Any, gap_seconds: Any) -> Any:
    """Speed of the trip from the previous place; trips shorter than a minute count as one minute."""
    return distance_km / (np.maximum(gap_seconds, SHORTEST_TRIP_SECONDS) / 3600.0)


def _scaled(column: Column, values: Float) -> Column:
    """`column` with a robust centre and scale: median and interquartile range of the transformed values."""
    if not len(values):
        return column
    transformed = column.encode(values)
    low, center, high = np.quantile(transformed, [0.25, 0.5, 0.75])
    # 1.349 = interquartile range of a standard normal. Half of the values may be equal: fall back on the spread.
    with np.errstate(over="ignore", invalid="ignore"):
        scale = next(one for one in ((high - low) / 1.349, transformed.std(), 1.0) if 0 < one < np.inf)
    return Column(**{**asdict(column), "center": float(center), "scale": float(scale)})


def _varies(values: Float) -> bool:
    """Does a derived number vary at all; of one that never did, as the gaps of a regular clock, nothing is learned."""
    return bool(len(values) and np.quantile(values, 0.01) < np.quantile(values, 0.99))


def _asinh_unit(values: Float) -> float:
    """A hundredth of the median size: payments of cents stay linear, everything of note is logarithmic."""
    sizes = np.abs(values[values != 0])
    return float(np.median(sizes)) / 100.0 if len(sizes) else 1.0


def _floats(column: pl.Series) -> Float:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _numbered(values: pl.Series, vocabulary: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """A number for each value, the same for equal ones and -1 for none; and its code in the vocabulary; (N,) each."""
    words = pl.Series(values.name, vocabulary, dtype=pl.String)
    number = pl.concat([words, values]).cast(pl.Categorical).to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
    codes = np.full(int(number.max(initial=-1)) + 2, UNSEEN, dtype=np.int32)
    codes[number[: len(words)]] = FIRST_CODE + np.arange(len(words))
    return number[len(words) :], codes[number[len(words) :]]


def _previous(values: Float, first: NDArray[np.int64]) -> Float:
    shifted = np.concatenate([[np.nan], values[:-1]])[: len(values)]
    shifted[first] = np.nan
    return shifted


def _previous_difference(time: Float, first: NDArray[np.int64]) -> Float:
    return time - _previous(time, first)
