"""Entity state: all that a stream carries from one event of an entity to the next, small and bounded.

Flat arrays, not objects: an event that is still in a window costs 12 bytes and 8 for each amount, one that waits out
the quarantine 4 a number and 1 or 2 a code. `sequences.MOST_RECENT`, `MOST_WAITING` and `MOST_VALUES` bound them,
however busy an entity is; the table counts by the same bounds.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.sequences import MOST_RECENT, MOST_VALUES

NAN = math.nan
NOWHERE = (NAN, NAN)
Arrays = dict[str, NDArray[Any]]
_ROOM = MOST_RECENT - 1  # earlier events beside the present one


def value_key(value: str) -> int:
    """A value of a category as 64 bits, the same in every process; 0 is kept for a missing one."""
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little") or 1


class EntityState:
    """State of one entity.

    Attributes
    ----------
    memory : ndarray of float32, shape (2, 2 H)
        What the models remember; see `anomaly.models.plain`.
    sums : array of 3 averaged numbers
        How many remembered values there are of each column that is averaged, their sums, and their sums of squares.
    times : array
        Microseconds since 1970 of the events that still wait or that a window may still hold.
    counted : array
        Nats that each of the last of them adds to evidence.
    amounts : tuple of array
        Amounts of the last of them, by field; a missing one is 0.
    waiting_numbers, waiting_codes : array
        Encoded columns of the events that are not in the memory yet, one after the other; they are the last ones.
    met, since : tuple of array
        Sorted keys of the values that it has met, by category, and the microseconds when it first did.
    before : array
        Keys of the categories of its last event, 0 = missing.
    events : int
        How many it has had; all but those that wait are in the memory.
    first, time : float
        Seconds since 1970 of its first event and of its last one, NaN = none yet.
    place : tuple of float
        Latitude and longitude of its last event.
    """

    __slots__ = (
        "amounts",
        "before",
        "counted",
        "events",
        "first",
        "memory",
        "met",
        "place",
        "since",
        "sums",
        "time",
        "times",
        "waiting_codes",
        "waiting_numbers",
    )

    def __init__(
        self, memory: NDArray[np.float32], *, averaged: int, amounts: int, categories: int, codes: int
    ) -> None:
        """`codes` is the largest code there is; the rest are numbers of columns."""
        self.memory = memory
        self.sums = array("d", [0.0]) * (3 * averaged)
        self.times, self.counted = array("q"), array("f")
        self.amounts = tuple([array("d") for _ in range(amounts)])
        self.waiting_numbers, self.waiting_codes = array("f"), array("B" if codes < 256 else "H")
        self.met = tuple([array("Q") for _ in range(categories)])
        self.since = tuple([array("q") for _ in range(categories)])
        self.before = array("Q", [0]) * categories
        self.events, self.first, self.time, self.place = 0, NAN, NAN, NOWHERE

    def window_counts(self, now: int, windows: Sequence[int]) -> list[int]:
        """How many events before the present one each window ``(now - window, now]`` holds; windows in microseconds."""
        times = self.times
        return [len(times) - bisect_right(times, now - window) for window in windows]

    def is_new(self, category: int, key: int, now: int, lately: int) -> bool:
        """Does it meet a value for the first time, which is remembered if there is room, or did so only lately."""
        met, since = self.met[category], self.since[category]
        at = bisect_left(met, key)
        if at < len(met) and met[at] == key:
            return now - since[at] < lately
        if len(met) < MOST_VALUES:
            met.insert(at, key)
            since.insert(at, now)
        return True

    def add(self, now: int, counted: float, amounts: Sequence[float], keep: Sequence[int]) -> None:
        """Remember an event, and forget what is too old.

        `keep` holds the microseconds for which its time, its amounts and what it adds to evidence are needed.
        """
        times = self.times
        times.append(now)
        self.counted.append(counted)
        for kept, amount in zip(self.amounts, amounts, strict=True):
            kept.append(amount)
        for_times, for_amounts, for_evidence = [min(count, _ROOM) for count in self.window_counts(now, keep)]
        parts: list[tuple[array[Any], int]] = [(times, for_times), (self.counted, for_evidence)]
        parts += [(one, for_amounts) for one in self.amounts]
        for part, needed in parts:
            if len(part) > needed:
                del part[: len(part) - needed]

    def nbytes(self) -> int:
        """Bytes in memory, Python's own overhead included; the name of the entity is not counted."""
        parts = [getattr(self, name) for name in self.__slots__]
        inner = [one for part in parts if isinstance(part, tuple) and part is not NOWHERE for one in part]
        return sys.getsizeof(self) + sum(sys.getsizeof(part) for part in (*parts, *inner) if part is not NOWHERE)


def nested_sums(values: array[float], counts: Sequence[int]) -> list[float]:
    """Sums of the last `counts` values, for counts that do not fall; nothing is ever subtracted.

    Examples
    --------
    >>> nested_sums(array("d", [1e18, 0.25, 0.5]), [0, 1, 2, 3])
    [0.0, 0.5, 0.75, 1e+18]
    """
    found, total, end, size = [], 0.0, len(values), len(values)
    for count in counts:
        start = size - count
        if start < end:
            total += math.fsum(values[start:end]) if end - start > 1 else values[start]
            end = start
        found.append(total)
    return found


def pack_states(states: Mapping[str, EntityState]) -> Arrays:
    """The states of many entities as few arrays, their names not included; `unpack_states` is the inverse."""
    every = list(states.values())
    if not every:
        return {}
    packed: Arrays = {
        "memory": np.stack([one.memory for one in every]),
        "sums": np.array([one.sums for one in every]).reshape(len(every), -1),
        "events": np.array([one.events for one in every], dtype=np.int64),
        "places": np.array([[one.first, one.time, *one.place] for one in every]),
        "before": np.array([one.before for one in every], dtype=np.uint64).reshape(len(every), -1),
    }
    for name, parts in _ragged(every[0]):
        arrays = [_part(one, name) for one in every]
        packed[f"{name}|lengths"] = np.array([len(part) for part in arrays], dtype=np.int64)
        packed[f"{name}|values"] = np.concatenate([np.frombuffer(part, dtype=parts.typecode) for part in arrays])
    return packed


def unpack_states(
    names: Sequence[str], packed: Mapping[str, NDArray[Any]], like: EntityState
) -> dict[str, EntityState]:
    """States by name from what `pack_states` gave; `like` is an empty state of the stream that takes them over.

    Raises
    ------
    KeyError, ValueError
        If an array is missing, or does not fit.
    """
    if not names:
        return {}
    pieces = {
        name: np.split(packed[f"{name}|values"], np.cumsum(packed[f"{name}|lengths"])[:-1]) for name, _ in _ragged(like)
    }
    if packed["memory"].shape[1:] != like.memory.shape or packed["sums"].shape[1:] != (len(like.sums),):
        raise ValueError(f"memories of shape {packed['memory'].shape[1:]}, expected {like.memory.shape}")
    found = {}
    for at, name in enumerate(names):
        one = EntityState.__new__(EntityState)
        one.memory, one.sums = packed["memory"][at].copy(), array("d", packed["sums"][at])
        one.events, (one.first, one.time, *place) = int(packed["events"][at]), packed["places"][at].tolist()
        one.place = NOWHERE if place[0] != place[0] and place[1] != place[1] else (place[0], place[1])
        one.before = array("Q", packed["before"][at].tolist())
        for name_ in ("times", "counted", "waiting_numbers", "waiting_codes"):
            setattr(one, name_, array(getattr(like, name_).typecode))
        one.amounts = tuple([array("d") for _ in like.amounts])
        one.met = tuple([array("Q") for _ in like.met])
        one.since = tuple([array("q") for _ in like.since])
        for path, parts in pieces.items():
            _part(one, path).frombytes(np.ascontiguousarray(parts[at], dtype=_part(like, path).typecode).tobytes())
        found[name] = one
    return found


def _ragged(state: EntityState) -> list[tuple[str, array[Any]]]:
    """Arrays whose length differs from entity to entity, by name."""
    single = ("times", "counted", "waiting_numbers", "waiting_codes")
    many = [f"{name}.{at}" for name in ("amounts", "met", "since") for at in range(len(getattr(state, name)))]
    return [(name, _part(state, name)) for name in (*single, *many)]


def _part(state: EntityState, path: str) -> array[Any]:
    name, _, at = path.partition(".")
    found: array[Any] = getattr(state, name)[int(at)] if at else getattr(state, name)
    return found
