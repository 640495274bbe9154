"""Where a planted fraud happens: a population of events, and a scene, which is one entity of it at one event.

A scene knows what an episode may be made of: the entity's events up to the anchor, the event at which it begins, and
the population as a whole. `anomaly.episodes` says what happens in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.features import entity_offsets
from anomaly.schema import NumericField, Schema

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
MISSING, NOBODYS = (
    -1,
    -2,
)  # codes of a category that is null, and of one that nobody has, the same all through an episode
HALF = 0.5
REGULAR = 0.9  # share of the gaps that are equal, up to a hundredth, in a regular series
RECENT = 100  # events of the entity that an episode "like its own" may repeat
CANDIDATES = 64  # events of others among which new categories are looked for
AFTERMATH = 30  # genuine events after an episode: they suffer for the evidence that it left
LONGEST_BETWEEN = 2000  # genuine events of a busy entity that an episode may last


@dataclass(frozen=True, eq=False, kw_only=True)
class Population:
    """All events of a canonical frame as arrays, and how they behave as a whole; each figure is computed once.

    Attributes
    ----------
    offsets : ndarray of int64, shape (S + 1,)
        Borders of the entities.
    time, clock : ndarray, shape (N,)
        Seconds since 1970, in UTC and on the wall clock.
    fields : tuple of NumericField
        The F numeric fields.
    numbers : ndarray, shape (F, N)
        NaN = missing.
    categories : ndarray of int64, shape (C, N)
        Positions among the field's distinct values in order; `MISSING` = null.
    place : ndarray, shape (2, N), or None
        Latitude and longitude in degrees, NaN = missing.
    """

    offsets: Int
    time: Float
    clock: Float
    fields: tuple[NumericField, ...]
    numbers: Float
    categories: Int
    place: Float | None

    @classmethod
    def of(cls, frame: pl.DataFrame, schema: Schema) -> Population:
        """The population of a canonical frame (see `anomaly.ingest`), sorted by entity, time and row."""
        numbers = [_floats(frame[f"n:{field.name}"]) for field in schema.numeric]
        codes = [_codes(frame[f"c:{name}"]) for name in schema.categorical]
        place = None
        if schema.place is not None:
            place = np.stack([_floats(frame["p:latitude"]), _floats(frame["p:longitude"])])
        return cls(
            offsets=entity_offsets(frame["entity"]),
            time=frame["time"].to_numpy(),
            clock=frame["clock"].to_numpy(),
            fields=schema.numeric,
            numbers=np.stack(numbers) if numbers else np.zeros((0, len(frame))),
            categories=np.stack(codes) if codes else np.zeros((0, len(frame)), dtype=np.int64),
            place=place,
        )

    @cached_property
    def last(self) -> float:
        """Time of the last event of all."""
        return float(self.time.max())

    @cached_property
    def sorted(self) -> list[Float]:
        """Values of each numeric field, rising."""
        return [np.sort(values[np.isfinite(values)]) for values in self.numbers]

    @cached_property
    def spread(self) -> Float:
        """Robust spread of each numeric field, above 0, shape (F,)."""
        return np.array([robust_spread(values) for values in self.sorted])

    @cached_property
    def sizes(self) -> list[Float]:
        """Sizes of the values of each numeric field that are not 0, rising."""
        return [np.sort(np.abs(values[values != 0])) for values in self.sorted]

    @cached_property
    def signs(self) -> Float:
        """-1 for a numeric field whose values are mostly below 0, else 1, shape (F,)."""
        return np.array([-1.0 if (values < 0).sum() > (values > 0).sum() else 1.0 for values in self.sorted])

    @cached_property
    def changes(self) -> Bool:
        """Numeric fields that usually differ from one event of an entity to the next, shape (F,)."""
        found = []
        for values in self.numbers:
            before, after = values[self._pairs], values[self._pairs + 1]
            known = np.isfinite(before) & np.isfinite(after)
            found.append(bool(known.any() and (before != after)[known].mean() >= HALF))
        return np.array(found, dtype=bool)

    @cached_property
    def filled(self) -> Int:
        """Categorical fields with any value at all."""
        return np.flatnonzero((self.categories != MISSING).any(axis=1))

    @cached_property
    def private(self) -> Bool:
        """Categorical fields most of whose values in use belong to one entity alone, shape (C,)."""
        entity = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        found = []
        for codes in self.categories:
            known = codes != MISSING
            values = int(codes.max(initial=0)) + 1
            pairs = np.unique(entity[known] * values + codes[known])
            owners = np.bincount(pairs % values, minlength=values)
            found.append(bool(known.any() and (owners[codes[known]] == 1).mean() >= HALF))
        return np.array(found, dtype=bool)

    @cached_property
    def hours(self) -> Float:
        """Share of the events in each local hour, shape (24,)."""
        return np.bincount(hour_of(self.clock), minlength=24) / len(self.clock)

    @cached_property
    def grain(self) -> float:
        """Seconds of the longest unit (day, hour, minute, second) of which all wall clocks are multiples; 0 = none."""
        units = (DAY, HOUR, MINUTE, 1.0)
        return next((unit for unit in units if not np.mod(self.clock, unit).any()), 0.0)

    @cached_property
    def regular(self) -> bool:
        """Do the events come at equal gaps, so that an added one would give itself away."""
        gaps = np.diff(self.time)[self._pairs]
        if not len(gaps):
            return False
        usual = float(np.median(gaps))
        return usual > 0 and bool((np.abs(gaps - usual) <= 0.01 * usual).mean() >= REGULAR)

    @cached_property
    def amounts(self) -> Int:
        """Numeric fields on a log scale whose large values are strange, and that hold more than zeros."""
        wanted = [field.scale == "log" and field.tail != "lower" for field in self.fields]
        return np.array([f for f, yes in enumerate(wanted) if yes and len(self.sizes[f])], dtype=np.int64)

    @cached_property
    def readings(self) -> Int:
        """Numeric fields on a linear scale that usually change."""
        wanted = [field.scale == "linear" for field in self.fields]
        return np.flatnonzero(np.array(wanted, dtype=bool) & self.changes)

    @cached_property
    def placed(self) -> bool:
        """Does any event have a place."""
        return self.place is not None and bool(np.isfinite(self.place).all(axis=0).any())

    def movable(self, events: Int) -> Bool:
        """Numbers of these events that can be moved: those that are known, and on a log scale are not 0; (F, n)."""
        values = self.numbers[:, events]
        log = np.array([field.scale == "log" for field in self.fields], dtype=bool)
        return np.asarray(np.isfinite(values) & ~(log[:, None] & (values == 0)), dtype=bool)

    def bounds(self, events: Int) -> tuple[Int, Int]:
        """First event of each event's entity, and the one after its last."""
        entity = np.searchsorted(self.offsets, events, side="right") - 1
        return self.offsets[entity], self.offsets[entity + 1]

    @cached_property
    def _pairs(self) -> Int:
        """Events that another one of their entity follows."""
        follows = np.ones(len(self.time), dtype=bool)
        follows[self.offsets[1:] - 1] = False
        return np.flatnonzero(follows)


@dataclass(frozen=True, eq=False, kw_only=True)
class Episode:
    """What became of one entity's history: a stretch of its events, with some altered and some added.

    Attributes
    ----------
    start : float
        Time of the first planted event.
    begin, past, stop : int
        Events ``begin:stop`` of the population are copied; those before `past` lie before the episode.
    altered : ndarray of int64, shape (k,)
        Events with another number.
    field, values : int, ndarray of shape (k,)
        The numeric field and its new numbers.
    time, clock : ndarray, shape (m,)
        Seconds of the added events, rising.
    numbers, categories, place : ndarray, shapes (F, m), (C, m) and (2, m)
        The added events, as in `Population`; a category may be `NOBODYS`. No place if the population has none.
    """

    start: float
    begin: int
    past: int
    stop: int
    altered: Int
    field: int
    values: Float
    time: Float
    clock: Float
    numbers: Float
    categories: Int
    place: Float | None


@dataclass(frozen=True, eq=False)
class Scene:
    """Where an episode happens: a population, an entity of it, and the event from which on it begins.

    Attributes
    ----------
    population : Population
        All events.
    rng : numpy.random.Generator
        The only source of chance.
    anchor : int
        The event from which on the episode begins.
    first, end : int
        Events ``first:end`` are those of the anchor's entity.
    """

    population: Population
    rng: np.random.Generator
    anchor: int
    first: int
    end: int

    @property
    def gap(self) -> float:
        """Mean seconds between the entity's events up to the anchor; 0 with one event."""
        time = self.population.time
        return float(time[self.anchor] - time[self.first]) / max(self.anchor - self.first, 1)

    def span(self, low: float, high: float) -> float:
        """A positive number whose logarithm is uniform."""
        return float(low * (high / low) ** self.rng.random())

    def coin(self) -> bool:
        """Heads or tails."""
        return bool(self.rng.random() < HALF)

    def times(self, count: int, seconds: float, delay: float | None = None) -> Float:
        """`count` rising times: the first `delay` after the anchor (minutes to hours), the others within `seconds`."""
        start = self.span(MINUTE, 3 * HOUR) if delay is None else delay
        offsets = np.sort(self.rng.uniform(0.0, min(seconds, self.left(start)), count))
        offsets[0] = 0.0
        return start + offsets

    def left(self, delay: float) -> float:
        """Seconds from so long after the anchor to the end of the population, or until too many own events passed."""
        time = self.population.time
        after = min(self.anchor + LONGEST_BETWEEN, self.end) - 1
        crowded = after < self.end - 1
        latest = min(self.population.last, float(time[after])) if crowded else self.population.last
        return max(latest - float(time[self.anchor]) - delay, HOUR)

    def own(self, count: int) -> Int:
        """Recent events of the entity up to the anchor, drawn at random, shape (count,)."""
        return self.rng.integers(max(self.first, self.anchor + 1 - RECENT), self.anchor + 1, count)

    def others(self, count: int) -> Int:
        """Events of other entities, drawn at random, shape (count,); of its own past if it is the only entity."""
        own = self.end - self.first
        rest = len(self.population.time) - own
        if not rest:
            return self.own(count)
        drawn = self.rng.integers(0, rest, count)
        return drawn + own * (drawn >= self.first)

    def direction(self, field: int) -> int:
        """1 if the large values of a numeric field are strange, -1 if the small ones are; either where both are."""
        tail = self.population.fields[field].tail
        return (1 if self.coin() else -1) if tail == "both" else 1 if tail == "upper" else -1

    def movable(self) -> int:
        """One of the numeric fields whose number at the anchor can be moved."""
        at = np.array([self.anchor])
        return int(self.rng.choice(np.flatnonzero(self.population.movable(at)[:, 0])))

    def amounts(self, field: int, shares: Float) -> Float:
        """Numbers of a numeric field by the share of the population's that are smaller in size, shape (n,)."""
        sizes, sign = self.population.sizes[field], self.population.signs[field]
        return np.array([sign * quantile(sizes, float(share)) for share in shares])

    def usual_place(self) -> tuple[float, float]:
        """Median latitude and longitude of the latest events, in degrees; the anchor must have a place."""
        assert self.population.place is not None
        latitude, longitude = self.population.place[:, max(self.first, self.anchor + 1 - RECENT) : self.anchor + 1]
        known = np.isfinite(latitude) & np.isfinite(longitude)
        # longitudes are counted from the anchor's, so that 180 is no border
        east = np.mod(longitude[known] - longitude[-1] + 180.0, 360.0) - 180.0
        return float(np.median(latitude[known])), float(longitude[-1] + np.median(east))

    def borrowed(self, events: Int) -> Int:
        """Categories of these events, shape (C, m).

        In a private field they are the entity's latest, or with even odds one that nobody has.
        """
        codes = self.population.categories[:, events]
        for field in np.flatnonzero(self.population.private):
            codes[field] = NOBODYS if self.coin() else self.population.categories[field, self.anchor]
        return codes

    def strange(self, count: int, fields: int, *, constant: bool) -> tuple[Int, Int]:
        """Categories that are new to the entity in up to `fields` fields, and the events whose numbers go with them.

        The fields that are not private come from one event together, so that they fit each other: from one of the
        population if one of them is to be new, otherwise from a recent one of the entity.

        Parameters
        ----------
        count : int
            Events m.
        fields : int
            Categorical fields that are to be new; at least one will be, if any has values.
        constant : bool
            Are the categories the same all through the episode.

        Returns
        -------
        codes : ndarray of int64, shape (C, m)
            The categories.
        events : ndarray of int64, shape (m,)
            Events of the population.
        """
        population, everything = self.population, self.population.categories
        own, drawn = self.own(1 if constant else count), self.others(CANDIDATES)
        fits = np.ones(len(drawn), dtype=bool)
        order = self.rng.permutation(population.filled)
        new: list[int] = []
        for field in order:
            if len(new) == fields:
                break
            if not population.private[field]:
                known = everything[field, self.first : self.anchor + 1]
                unmet = ~np.isin(everything[field, drawn], known) & (everything[field, drawn] != MISSING) & fits
                if not unmet.any():
                    continue  # whatever the others have, the entity had
                fits = unmet
            new.append(int(field))
        events = self.rng.choice(drawn[fits], len(own))
        codes = everything[:, own]
        if not population.private[new].all():
            codes = np.where(population.private[:, None], codes, everything[:, events])
        alone = [field for field in new if population.private[field]] if new else order[:1]
        codes[alone] = NOBODYS
        if constant:
            return np.repeat(codes, count, axis=1), self.others(count)
        return codes, events

    def added(
        self, times: Float, numbers: Float, categories: Int, place: Float | None = None, *, stop: int | None = None
    ) -> Episode:
        """An episode of added events, `times` seconds after the anchor.

        Without `place` they are where the anchor is. The entity's own events go on until the last of them and for
        `AFTERMATH` more, or end before `stop`.
        """
        population, anchor = self.population, self.anchor
        offset = population.clock[anchor] - population.time[anchor]
        clock = population.clock[anchor] + times
        grain = population.grain
        clock = np.floor(clock / grain) * grain if grain else clock
        time = np.maximum(np.round(clock - offset, 6), population.time[anchor])
        if population.place is not None and place is None:
            place = np.repeat(population.place[:, anchor : anchor + 1], len(time), axis=1)
        goes_on = anchor + int(np.searchsorted(population.time[anchor : self.end], time[-1], side="right"))
        goes_on = min(goes_on + AFTERMATH, self.end)
        return Episode(
            start=float(time[0]), begin=self.first, past=min(anchor + 1, stop or anchor + 1), stop=stop or goes_on,
            altered=np.zeros(0, dtype=np.int64), field=0, values=np.zeros(0),
            time=time, clock=time + offset, numbers=numbers, categories=categories, place=place,
        )  # fmt: skip

    def changed(self, events: Int, field: int, values: Float) -> Episode:
        """An episode that gives own events, the anchor or later ones, another number, and `AFTERMATH` more."""
        population = self.population
        differs = np.isfinite(values) & (values != population.numbers[field, events])
        events, values = events[differs], values[differs]
        none = np.zeros(0, dtype=np.int64)
        return Episode(
            start=float(population.time[events[0] if len(events) else self.anchor]),
            begin=self.first, past=self.anchor,
            stop=min(int(events[-1]) + 1 + AFTERMATH, self.end) if len(events) else self.anchor,
            altered=events, field=field, values=values,
            time=np.zeros(0), clock=np.zeros(0), numbers=population.numbers[:, none],
            categories=population.categories[:, none],
            place=None if population.place is None else population.place[:, none],
        )  # fmt: skip


def robust_spread(values: Float) -> float:
    """Interquartile range on the scale of a standard deviation, else the standard deviation, else 1; `values` rise."""
    if not len(values):
        return 1.0
    low, high = quantile(values, 0.25), quantile(values, 0.75, up=True)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(next(one for one in ((high - low) / 1.349, values.std(), 1.0) if 0 < one < np.inf))


def hour_of(clock: Float) -> Int:
    """Local hour of the day, 0 to 23."""
    return np.floor(np.mod(clock, DAY) / HOUR).astype(np.int64)


def quantile(values: Float, share: float, *, up: bool = False) -> float:
    """The value of rising `values` below (or above) which that share lies; one of them, so that nothing overflows."""
    at = share * (len(values) - 1)
    return float(values[int(np.ceil(at) if up else np.floor(at))])


def _floats(column: pl.Series) -> Float:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _codes(column: pl.Series) -> Int:
    """Positions of the values among the distinct ones in order, `MISSING` for null."""
    values = pl.Enum(column.drop_nulls().unique().sort())
    return column.cast(values).to_physical().cast(pl.Int64).fill_null(MISSING).to_numpy()
