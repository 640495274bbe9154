"""The held-out slice: what a rule is learned from, whole or without one of its days."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ParameterError
from anomaly.thresholds.cases import HOUR, Bools, Floats, Integers, checked_money, checked_p, starts

DAY = 86_400.0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The held-out events that have a p-value, by entity and time, and the days that they span.

    Attributes
    ----------
    p, time, entity : ndarray (n,)
        P-value, seconds and code of the entity; a stable order by entity and time.
    money : ndarray (n,), or None
        Money at risk, if it was given; NaN where it is unknown.
    part : ndarray (n,) of int64
        Which part of the slice, each about a day long, an event lies in, from 0.
    first : ndarray (n,) of int64
        Position of the earliest one of the entity's events that are less than the cool-down older than this one; the
        event's own position if there is none.
    start, days, parts : float, float, int
        First second, length in days, and number of parts of the slice.
    cooldown_hours : float
        Alerting events of one entity less than this apart are one case.
    """

    p: Floats
    time: Floats
    entity: NDArray[Any]
    money: Floats | None
    part: Integers
    first: Integers
    start: float
    days: float
    parts: int
    cooldown_hours: float

    @classmethod
    def of(
        cls,
        p: ArrayLike,
        time: ArrayLike,
        entity: ArrayLike,
        money: ArrayLike | None = None,
        *,
        cooldown_hours: float,
    ) -> Self:
        """Check the columns (n,) of a held-out slice, and put them in order.

        Raises
        ------
        ParameterError
            If the lengths differ, a value is out of its range, or no event has a p-value.
        """
        p, time, entity = checked_p(p), np.asarray(time, dtype=np.float64), np.asarray(entity)
        if not p.shape == time.shape == entity.shape:
            raise ParameterError(
                f"expected p, time and entity of one length (n,), got {p.shape}, {time.shape} and {entity.shape}"
            )
        money = None if money is None else checked_money(money, p)
        if not np.isfinite(time).all():
            raise ParameterError("expected finite times in seconds; reject events without a time")
        stated = np.flatnonzero(~np.isnan(p))
        if stated.size == 0:
            raise ParameterError(
                "expected at least one held-out event with a p-value, got none; give it a longer slice"
            )
        # The slice lasts from its first to its last event, stated or not, and is cut into equal parts of about a day;
        # a slice under one day is taken as one day: nothing is extrapolated from its busy hours.
        start = float(time.min())
        span = max(float(time.max()) - start, DAY)
        parts = max(1, round(span / DAY))
        stated = stated[np.lexsort((time[stated], entity[stated]))]
        p, time, entity = p[stated], time[stated], entity[stated]
        return cls(
            p=p,
            time=time,
            entity=entity,
            money=None if money is None else money[stated],
            part=np.minimum(((time - start) * (parts / span)).astype(np.int64), parts - 1),
            first=_first_near(time, entity, cooldown_hours),
            start=start,
            days=span / DAY,
            parts=parts,
            cooldown_hours=cooldown_hours,
        )

    def without(self, part: int) -> HeldOut:
        """The same slice as if nothing had happened in one part: its events get p = inf, and its days do not count."""
        same = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        p = np.where(self.part == part, np.inf, self.p)
        rest = self.days * (self.parts - 1) / self.parts
        return _Remainder(**{**same, "p": p, "days": rest}, whole=self, left_out=part)

    @cached_property
    def levels(self) -> Floats:
        """All p-values, ascending."""
        return np.asarray(self.p[self._by_p])

    @cached_property
    def in_time(self) -> Integers:
        """Positions of the events in the order of time."""
        return np.asarray(np.argsort(self.time, kind="stable"))

    def events(self, level: float) -> int:
        """How many events alert when all with p <= `level` do."""
        return _up_to(self.levels, level)

    def cases(self, level: float) -> int:
        """How many cases there are when all events with p <= `level` alert.

        The alerting events, but for those with another one less than the cool-down before them: a few look-ups,
        whatever the level.
        """
        return self.events(level) - self._joining(level)

    def cases_by_part(self, alerting: Bools) -> Integers:
        """How many cases open in each part (parts,) if the events `alerting` (n,) alert."""
        positions = np.flatnonzero(alerting)
        opens = starts(self.time[positions], self.entity[positions], self.cooldown_hours)
        return np.bincount(self.part[positions[opens]], minlength=self.parts)

    def _joining(self, level: float) -> int:
        """How many alerting events join a case that is open already."""
        return _up_to(self._join_levels, level)

    @cached_property
    def _join_level(self) -> Floats:
        """The level from which on each event (n,) alerts and has an alert of its entity shortly before it."""
        return np.maximum(self.p, _lowest_before(self.p, self.first, np.arange(self.p.size)))

    @cached_property
    def _join_levels(self) -> Floats:
        return np.sort(self._join_level)

    # What every part that is left out asks of the whole slice: reading by position is slow, and is done once.

    @cached_property
    def _by_p(self) -> Integers:
        return np.asarray(np.argsort(self.p, kind="stable"))

    @cached_property
    def _part_by_p(self) -> Integers:
        return self.part[self._by_p]

    @cached_property
    def _part_in_time(self) -> Integers:
        return self.part[self.in_time]

    @cached_property
    def _part_of_first(self) -> Integers:
        return self.part[self.first]


@dataclass(frozen=True, eq=False)
class _Remainder(HeldOut):
    """A slice without one of its parts, with the work done on the whole slice used again.

    Attributes
    ----------
    whole, left_out : HeldOut, int
        The slice that the part was taken from, and the part.
    """

    whole: HeldOut
    left_out: int

    @cached_property
    def levels(self) -> Floats:
        return np.asarray(self.whole.levels[self.whole._part_by_p != self.left_out])

    @cached_property
    def in_time(self) -> Integers:
        return np.asarray(self.whole.in_time[self.whole._part_in_time != self.left_out])

    def _joining(self, level: float) -> int:
        before, after = self._changed
        return self.whole._joining(level) - _up_to(before, level) + _up_to(after, level)

    @cached_property
    def _changed(self) -> tuple[Floats, Floats]:
        """Join levels of the events to which the part matters, ascending: in the whole slice, and without the part."""
        near = np.flatnonzero((self.whole._part_of_first <= self.left_out) & (self.part > self.left_out))
        gone = np.flatnonzero(self.part == self.left_out)
        before = self.whole._join_level[np.concatenate([near, gone])]
        after = np.maximum(self.p[near], _lowest_before(self.p, self.first, near))
        return np.sort(before), np.sort(after)


def _first_near(time: Floats, entity: NDArray[Any], cooldown_hours: float) -> Integers:
    """Where the entity's events of the last `cooldown_hours` begin, for each event; see `HeldOut.first`.

    By bisection of all events at once, with the very comparison of `starts`: a look-up of ``time - cooldown`` would
    round otherwise.
    """
    here = np.arange(time.size)
    new = np.concatenate([[True], entity[1:] != entity[:-1]])
    low, high = np.maximum.accumulate(np.where(new, here, 0)), here.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        near = time - time[middle] < cooldown_hours * HOUR
        high = np.where(open_ & near, middle, high)
        low = np.where(open_ & ~near, middle + 1, low)
    return low


def _lowest_before(values: Floats, first: Integers, at: Integers) -> Floats:
    """Minimum of ``values[first[i]:i]`` for each i of `at` (k,); inf where that is empty.

    Two overlapping runs of a power of two cover each stretch, so that n stretches of length w cost n log w.
    """
    begin, length = first[at], at - first[at]
    lowest = np.full(at.size, np.inf)
    runs, width = values, 1  # runs[i] is the minimum of values[i : i + width]
    while width <= length.max(initial=0):
        mine = np.flatnonzero((length >= width) & (length < 2 * width))
        lowest[mine] = np.minimum(runs[begin[mine]], runs[at[mine] - width])
        runs = np.minimum(runs[:-width], runs[width:])
        width *= 2
    return lowest


def _up_to(ascending: Floats, level: float) -> int:
    return int(np.searchsorted(ascending, level, side="right"))
