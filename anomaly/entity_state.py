"""Entity state: all that a stream carries from one event of an entity to the next, small and bounded.

An entity's state is one string of bytes. It is unpacked into a `Workbench`, an event's encoded columns are worked out
there from what went before, and what is to be remembered is packed again: an event that is refused, or that breaks off,
leaves the old string as it was. An event that is still in a window costs 12 bytes and 8 for each amount, one that waits
out the quarantine 4 a number and 2 a code, a value that was met 9, or 17 while that is news.
`sequences.MOST_RECENT`, `MOST_WAITING` and `MOST_VALUES` bound them, however busy an entity is; the table counts by the
same bounds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.compiling import Held, compiled, holder, part
from anomaly.sequences import MOST_RECENT, MOST_VALUES, MOST_WAITING

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.int64]
Codes = NDArray[np.uint16]
Keys = NDArray[np.uint64]

# Places of `State.counts` and `State.marks`.
EVENTS, TIMES, COUNTED, AMOUNTS, WAITING, DONE, FIRST_MET = 0, 1, 2, 3, 4, 5, 6
FIRST_TIME, LAST_TIME, LATITUDE, LONGITUDE = 0, 1, 2, 3
MOST_USES = 16  # of a value, at which all counts are halved: so many new ones overtake a usage of years


_DOUBLE = struct.Struct("=d")


def value_key(value: str) -> int:
    """A value of a category as 64 bits, the same in every process; 0 is kept for a missing one."""
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little") or 1


def last_time(packed: bytes, categories: int) -> float:
    """Seconds since 1970 of the last event of a packed state."""
    found: float = _DOUBLE.unpack_from(packed, 8 * (FIRST_MET + 2 * categories + LAST_TIME))[0]
    return found


class State(NamedTuple):
    """State of one entity, unpacked; there is room for the largest.

    Attributes
    ----------
    counts : ndarray of int64, shape (6 + 2 categories,)
        Events so far; how many `times`, `counted`, `amounts` and waiting events are kept; how many of the waiting ones
        are due, 0 when packed; and of each category how many values it has met, then how many of these are news.
    marks : ndarray, shape (4,)
        Seconds since 1970 of its first event and of its last one, and the place of the last; NaN = none.
    memory : ndarray of float32, shape (4 H,)
        What the models remember; see `anomaly.models.plain`.
    sums : ndarray, shape (3 averaged,)
        How many remembered values there are of each column that is averaged, their sums, and their sums of squares.
    before : ndarray of uint64, shape (categories,)
        Keys of the categories of its last event, 0 = missing.
    times : ndarray of int64
        Microseconds since 1970 of the events that still wait or that a window may still hold.
    counted : ndarray of float32
        Nats that each of the last of them adds to evidence.
    amounts : ndarray, shape (amounts, MOST_RECENT)
        Amounts of the last of them, by field; a missing one is 0.
    waiting_numbers, waiting_codes : ndarray, shape (waiting, F) and (waiting, C)
        Encoded columns of the events that are not in the memory yet; they are the last ones.
    met : ndarray of uint64, shape (categories, MOST_VALUES)
        Keys of the values that it has met, the commonest of late first; those that are still news last, as they came.
    since : ndarray of int64, shape (categories, MOST_VALUES)
        Microseconds when it met the last of these: those that are still news.
    uses : ndarray of uint8, shape (categories, MOST_VALUES)
        How often it met each of these again since it was news no more; see `MOST_USES`.
    """

    counts: Int
    marks: Float
    memory: Float32
    sums: Float
    before: Keys
    times: Int
    counted: Float32
    amounts: Float
    waiting_numbers: Float32
    waiting_codes: Codes
    met: Keys
    since: Int
    uses: NDArray[np.uint8]


class Rules(NamedTuple):
    """How events are encoded; times in microseconds.

    windows : (V,) of the features, rising; scales : (W,) of the evidence, rising; money : numbers that are summed up,
    by their place among those given; scaling : (F, 3), unit, centre and scale of each column; kinds :
    (categories, 4), columns of its code, of whether it is new, and of whether it changed, and how many codes there are
    for the entity's own values, 0 = a value has the same code for everybody; periods : of the circles, in seconds;
    keep : for which times, amounts, and what counts as evidence, are needed.
    """

    windows: Int
    scales: Int
    money: Int
    scaling: Float
    kinds: Int
    periods: Float
    keep: Int
    clock: int
    quarantine: int
    lately: int
    has_place: bool
    unseen: int
    missing: int
    no: int
    yes: int
    first_code: int
    monday: float
    shortest_trip: float
    earth_radius: float
    largest_amount: float
    farthest: float


class Live(NamedTuple):
    """One event as it came, and what is made of it.

    given : (4 + given numbers,), its time, local clock, latitude and longitude, then its numbers, NaN = missing;
    category : (2 categories,), codes of its values, then the bits of their keys; keys : (categories,), the latter;
    numeric, codes : (F,) and (C,), its columns; recent_sums, recent_number : (W,), of the windows of evidence.
    """

    given: Float
    category: Int
    keys: Keys
    numeric: Float32
    codes: Codes
    recent_sums: Float
    recent_number: Int


class Opened(NamedTuple):
    """What is told of an entity whose state was opened.

    events : how many it has had; due : how many of the waiting ones, the first, may enter the memory now; remembered :
    how many are there then; first : seconds since 1970 of its first event.
    """

    events: int
    due: int
    remembered: int
    first: float


class Bench(NamedTuple):
    """What compiled functions read of a `Workbench` beside the state, the rules and the event.

    raw : the bytes of `state`, part by part; packed : room for a packed state; parts : (parts, 3), of each stretch of
    the state that is as long as some number in `counts` says, where it begins in `raw`, the bytes of one item, and the
    place of that number, -1 = always one item.
    """

    raw: NDArray[np.uint8]
    packed: NDArray[np.uint8]
    parts: Int


class Workbench:
    """Where one entity's state is worked on; see the module.

    Parameters
    ----------
    rules : Rules
        How events are encoded.
    memory, averaged, given, columns : int
        Numbers in a memory, columns that are averaged, numbers of an event as it comes, and columns of codes.

    Attributes
    ----------
    state, live : State, Live
        Of the entity that was opened last, and its event.
    empty : bytes
        State of an entity without any event.
    """

    def __init__(self, rules: Rules, *, memory: int, averaged: int, given: int, columns: int) -> None:
        kinds, numbers, room = len(rules.kinds), len(rules.scaling), MOST_WAITING + 2
        self.rules = rules
        of_met, of_since = range(FIRST_MET, FIRST_MET + kinds), range(FIRST_MET + kinds, FIRST_MET + 2 * kinds)
        # Name, type, shape, and the number in `counts` that tells how much of each row is in use; 8 bytes first.
        plan: list[tuple[str, type, tuple[int, ...], Sequence[int]]] = [
            ("counts", np.int64, (FIRST_MET + 2 * kinds,), ()),
            ("marks", np.float64, (4,), ()),
            ("sums", np.float64, (3 * averaged,), ()),
            ("before", np.uint64, (kinds,), ()),
            ("times", np.int64, (MOST_RECENT,), (TIMES,)),
            ("amounts", np.float64, (len(rules.money), MOST_RECENT), (AMOUNTS,) * len(rules.money)),
            ("met", np.uint64, (kinds, MOST_VALUES), of_met),
            ("since", np.int64, (kinds, MOST_VALUES), of_since),
            ("memory", np.float32, (memory,), ()),
            ("counted", np.float32, (MOST_RECENT,), (COUNTED,)),
            ("waiting_numbers", np.float32, (room, numbers), (WAITING,)),
            ("waiting_codes", np.uint16, (room, columns), (WAITING,)),
            ("uses", np.uint8, (kinds, MOST_VALUES), of_met),
        ]
        self._raw = np.zeros(sum(math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape, _ in plan), np.uint8)
        arrays: dict[str, NDArray[Any]] = {}
        parts, at = [], 0
        for name, kind, shape, counted in plan:
            size = math.prod(shape) * np.dtype(kind).itemsize
            arrays[name] = self._raw[at : at + size].view(kind).reshape(shape)
            rows = 1 if name.startswith("waiting") else max(1, len(counted))
            items = shape[0] if name.startswith("waiting") else shape[-1]
            item = size // max(1, rows * (items if counted else 1))
            parts += [(at + row * (size // rows), item, counted[row] if counted else -1) for row in range(rows) if size]
            at += size
        self.state = State(**arrays)
        category = np.zeros(2 * kinds, dtype=np.int64)
        self.live = Live(
            given=np.full(4 + given, np.nan),
            category=category,
            keys=category[kinds:].view(np.uint64),
            numeric=np.zeros(numbers, dtype=np.float32),
            codes=np.zeros(columns, dtype=np.uint16),
            recent_sums=np.zeros(len(rules.scales)),
            recent_number=np.zeros(len(rules.scales), dtype=np.int64),
        )
        self._given, self._category = struct.Struct(f"={4 + given}d"), struct.Struct(f"={kinds}q{kinds}Q")
        self._packed = np.zeros_like(self._raw)
        self._parts = np.array(parts, dtype=np.int64)
        self._held = _hold((*self.state, *rules, *self.live, *Bench(self._raw, self._packed, self._parts)))
        self.state.marks[:] = np.nan
        self.empty = b"".join(self._raw[start : start + size].tobytes() for start, size, of in parts if of < 0)

    def take(self, given: Sequence[float], known: Sequence[int], keys: Sequence[int]) -> None:
        """Take an event as it came; see `Live`."""
        self._given.pack_into(self.live.given.data, 0, *given)
        self._category.pack_into(self.live.category.data, 0, *known, *keys)

    def open(self, packed: bytes) -> Opened:
        """Unpack a state, and encode the event that was taken."""
        return Opened._make(_open_and_encode(self._held, np.frombuffer(packed, dtype=np.uint8)))

    def close(self, counted: float) -> bytes:
        """Remember the event, which adds `counted` to evidence, forget what is too old, and pack the state."""
        return self._packed[: _close(self._held, counted)].tobytes()

    def shapes(self) -> list[int]:
        """What two workbenches must have in common if one is to open what the other packed."""
        return [size for part in self.state for size in part.shape]

    def check(self, packed: Iterable[bytes]) -> None:
        """Raise ValueError if one of the strings is no state of this workbench."""
        rows = self._parts.tolist()
        ends = [start for start, *_ in rows[1:]] + [len(self._raw)]
        for one in packed:
            counts = np.frombuffer(one[: self.state.counts.nbytes], dtype=np.int64)
            if len(counts) < len(self.state.counts):
                raise ValueError(f"a state of {len(one)} bytes is none")
            sizes = [item * (counts[of] if of >= 0 else 1) for _, item, of in rows]
            fits = all(0 <= size <= end - row[0] for size, row, end in zip(sizes, rows, ends, strict=True))
            if not fits or sum(sizes) != len(one):
                raise ValueError(f"a state of {len(one)} bytes, {sum(sizes)} by its own account")


def pack_states(states: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """The states of many entities as two arrays; `unpack_states` is the inverse."""
    lengths = np.array([len(one) for one in states], dtype=np.int64)
    return {"packed": np.frombuffer(b"".join(states), dtype=np.uint8), "lengths": lengths}


def unpack_states(packed: NDArray[np.uint8], lengths: Int) -> list[bytes]:
    """The states from what `pack_states` gave; ValueError if lengths do not fit."""
    if lengths.sum() != len(packed) or (lengths < 0).any():
        raise ValueError(f"lengths of {lengths.sum()} bytes in all, got {len(packed)} bytes")
    whole, ends = packed.tobytes(), np.cumsum(lengths).tolist()
    return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# --- compiled: bytes --------------------------------------------------------------------------------------------------


HeldBench = holder("HeldBench", __name__, State, Rules, Live, Bench)


@compiled
def _hold(fields: tuple[Any, ...]) -> Held:
    return HeldBench(*fields)


@part
def _copy(values: NDArray[Any], to: NDArray[Any]) -> None:
    """Copy the values to the first places of another row; a slice does the same, and takes seconds to compile."""
    for at in range(len(values)):
        to[at] = values[at]


@part
def _unpack(bench: Held, packed: NDArray[np.uint8]) -> None:
    """Fill the state from bytes; `counts` come first and tell how long the rest is."""
    raw, at = bench.raw, 0
    for row in range(len(bench.parts)):
        start, size, of = bench.parts[row, 0], bench.parts[row, 1], bench.parts[row, 2]
        size *= bench.counts[of] if of >= 0 else 1
        _copy(packed[at : at + size], raw[start : start + size])
        at += size


@part
def _pack(bench: Held) -> int:
    """The inverse; return how many bytes there are."""
    raw, at = bench.raw, 0
    for row in range(len(bench.parts)):
        start, size, of = bench.parts[row, 0], bench.parts[row, 1], bench.parts[row, 2]
        size *= bench.counts[of] if of >= 0 else 1
        _copy(raw[start : start + size], bench.packed[at : at + size])
        at += size
    return at


# --- compiled: an event -----------------------------------------------------------------------------------------------


@part
def window_count(times: Int, now: int, window: int) -> int:
    """How many events before the present one the window ``(now - window, now]`` holds."""
    low, high = 0, len(times)
    while low < high:
        middle = (low + high) // 2
        if times[middle] <= now - window:
            low = middle + 1
        else:
            high = middle
    return len(times) - low


@part
def sum_of_last(values: NDArray[Any], count: int) -> float:
    """Sum of the last values, exact beside a monstrous one (Neumaier 1974); nothing is ever subtracted."""
    total, rest = 0.0, 0.0
    for at in range(len(values) - count, len(values)):
        value = float(values[at])
        found = total + value
        rest += (total - found) + value if abs(total) >= abs(value) else (value - found) + total
        total = found
    return total + rest


@part
def _use(met: NDArray[Any], uses: NDArray[np.uint8], at: int, settled: int) -> None:
    """Count one more use of the value at a place, and put it before those that are used no more often of late.

    The first `settled` values are counted. Places by the order of meeting would rise with an entity's age for ever.
    """
    uses[at] += 1
    if uses[at] >= MOST_USES:
        for other in range(settled):
            uses[other] = (uses[other] + 1) // 2
    while at and uses[at - 1] <= uses[at]:
        met[at - 1], met[at] = met[at], met[at - 1]
        uses[at - 1], uses[at] = uses[at], uses[at - 1]
        at -= 1


@part
def _meet(
    met: NDArray[Any], uses: NDArray[np.uint8], since: Int, number: int, news: int, key: Any, now: int, lately: int
) -> tuple[int, int, bool, int]:
    """Meet a value, which is remembered if there is room.

    Returns how many values it has met now, how many of these are news, whether this one is new to it, or was so less
    than `lately` ago, and its place among them before it was met; an unknown one has the place behind the last.
    """
    old = 0  # what is news no more needs no time
    while old < news and now - since[old] >= lately:
        old += 1
    if old:
        for at in range(old, news):
            since[at - old] = since[at]
        news -= old
    settled = number - news
    for at in range(number):
        if met[at] == key:
            if at < settled:
                _use(met, uses, at, settled)
            return number, news, at >= settled, at
    if number == len(met):
        return number, news, True, number
    met[number], uses[number], since[news] = key, 0, now
    return number + 1, news + 1, True, number


@part
def meet(bench: Held, category: int, key: int, now: int, lately: int) -> tuple[bool, int]:
    """Meet a value: is it new, and which place has it; see `_meet`."""
    counts, of_news = bench.counts, FIRST_MET + len(bench.before) + category
    values = bench.met[category], bench.uses[category], bench.since[category]
    number, news = counts[FIRST_MET + category], counts[of_news]
    number, news, new, place = _meet(*values, number, news, key, now, lately)
    counts[FIRST_MET + category], counts[of_news] = number, news
    return new, place


@compiled
def meet_all(
    code: Int,
    offsets: Int,
    micros: Int,
    lately: int,
    met: Int,
    uses: NDArray[np.uint8],
    since: Int,
    new: NDArray[np.bool_],
    place: NDArray[np.int32],
) -> tuple[int, int]:
    """Meet the values of whole histories; whether each is new, and its place, into `new` and `place`, (N,).

    code : (N,), of the value, negative = there is none, which is not new and has place -1; offsets : (S + 1,), borders
    of the entities; micros : (N,), times; met, uses, since : (most,), room for what is known of an entity, at the end
    of the last one. Returns how many values that one has met, and how many of these were news at its last event.
    """
    number = news = 0
    for sequence in range(len(offsets) - 1):
        number = news = 0
        for i in range(offsets[sequence], offsets[sequence + 1]):
            new[i], place[i] = False, -1
            if code[i] >= 0:
                number, news, new[i], place[i] = _meet(met, uses, since, number, news, code[i], micros[i], lately)
    return number, news


@part
def _square(x: float) -> float:
    return x * x


@part
def kilometres(latitude: float, longitude: float, from_latitude: float, from_longitude: float, radius: float) -> float:
    """Great-circle distance in km, NaN where a place is missing; twin of `features.great_circle_km`."""
    phi, phi0 = math.radians(latitude), math.radians(from_latitude)
    half = _square(math.sin((phi - phi0) / 2.0))
    half += math.cos(phi) * math.cos(phi0) * _square(math.sin(math.radians(longitude - from_longitude) / 2.0))
    return half if np.isnan(half) else 2.0 * radius * math.asin(math.sqrt(min(max(half, 0.0), 1.0)))


@part
def _bounded(amount: float, most: float) -> float:
    """An amount as it enters a sum: bounded, so that no sum is infinite; 0 for NaN."""
    return 0.0 if np.isnan(amount) else min(max(amount, -most), most)


@part
def _raw_numbers(bench: Held, now: int) -> Float:
    """One row of numbers in raw units; twin of `features.raw_numbers`."""
    given, counts = bench.given, bench.counts
    found = np.empty(len(bench.scaling))
    used = len(given) - 4
    _copy(given[4:], found)
    gap = given[0] - bench.marks[LAST_TIME]
    found[used] = gap
    used += 1
    times = bench.times[: counts[TIMES]]
    for at in range(len(bench.windows)):
        found[used] = window_count(times, now, bench.windows[at]) + 1.0
        used += 1
    for field in range(len(bench.money)):
        amount = _bounded(given[4 + bench.money[field]], bench.largest_amount)
        amounts = bench.amounts[field, : counts[AMOUNTS]]
        for at in range(len(bench.windows)):
            window = bench.windows[at]
            # of a time kept only for the quarantine or the evidence the amount is forgotten: it is in no window
            found[used] = sum_of_last(amounts, min(window_count(times, now, window), len(amounts))) + amount
            used += 1
    if bench.has_place:
        away = kilometres(given[2], given[3], bench.marks[LATITUDE], bench.marks[LONGITUDE], bench.earth_radius)
        found[used] = away
        found[used + 1] = away / (max(gap, bench.shortest_trip) / 3600.0) if not np.isnan(gap) else np.nan
        used += 2
    for at in range(len(bench.periods)):
        period = bench.periods[at]
        angle = 2.0 * math.pi * ((given[1] - bench.monday) % period) / period
        found[used], found[used + 1] = math.sin(angle), math.cos(angle)
        used += 2
    return found


@part
def _encode_numbers(bench: Held, now: int) -> None:
    """One row of encoded numbers, as `Encoder.transform` would give it."""
    raw = _raw_numbers(bench, now)
    for at in range(len(raw)):
        unit, center, scale = bench.scaling[at, 0], bench.scaling[at, 1], bench.scaling[at, 2]
        shown = math.asinh(raw[at] / unit) if unit else raw[at]
        value = (shown - center) / scale
        bench.numeric[at] = value if np.isnan(value) else min(max(value, -bench.farthest), bench.farthest)


@part
def _encode_codes(bench: Held, now: int) -> None:
    """One row of codes, as `Encoder.transform` would give it; the entity has met the values then."""
    bench.codes[bench.clock] = bench.first_code + int((bench.given[1] % 86400.0) // 3600.0)
    for kind in range(len(bench.kinds)):
        code, new, changed, own = bench.kinds[kind, 0], bench.kinds[kind, 1], bench.kinds[kind, 2], bench.kinds[kind, 3]
        key, last = bench.keys[kind], bench.before[kind]
        bench.codes[code] = bench.category[kind]
        bench.before[kind] = key
        if key == 0:
            bench.codes[new] = bench.codes[changed] = bench.missing
            continue
        is_new, place = meet(bench, kind, key, now, bench.lately)
        if own:
            bench.codes[code] = bench.unseen if is_new else bench.first_code + min(place, own - 1)
        bench.codes[new] = bench.yes if is_new else bench.no
        bench.codes[changed] = bench.missing if last == 0 else bench.no if last == key else bench.yes


@compiled
def _open_and_encode(bench: Held, packed: NDArray[np.uint8]) -> tuple[int, int, int, float]:
    """`Workbench.open`."""
    _unpack(bench, packed)
    counts = bench.counts
    now = int(np.rint(bench.given[0] * 1e6))
    _encode_numbers(bench, now)
    _encode_codes(bench, now)
    times, counted = bench.times[: counts[TIMES]], bench.counted[: counts[COUNTED]]
    for at in range(len(bench.scales)):
        bench.recent_number[at] = window_count(times, now, bench.scales[at])
        bench.recent_sums[at] = sum_of_last(counted, min(bench.recent_number[at], len(counted)))
    if not counts[EVENTS]:
        bench.marks[FIRST_TIME] = bench.given[0]
    waiting, done = counts[WAITING], 0
    first = counts[TIMES] - waiting
    while done < waiting and (
        bench.quarantine == 0
        or waiting - done > len(bench.waiting_numbers) - 2
        or bench.times[first + done] <= now - bench.quarantine
    ):
        done += 1
    counts[DONE], counts[WAITING] = done, waiting - done
    return counts[EVENTS], done, counts[EVENTS] - counts[WAITING], bench.marks[FIRST_TIME]


@part
def _append(values: NDArray[Any], count: int, value: Any, needed: int) -> int:
    """Put a value behind the `count` there are, and forget all but the last `needed` ones; return how many stay."""
    kept = min(count + 1, needed)
    gone = count + 1 - kept
    for at in range(kept - 1):
        values[at] = values[at + gone]
    if kept:
        values[kept - 1] = value
    return kept


@compiled
def _close(bench: Held, counted: float) -> int:
    """`Workbench.close`; return how many bytes the state takes."""
    counts, now = bench.counts, int(np.rint(bench.given[0] * 1e6))
    waiting, done = counts[WAITING], counts[DONE]
    if done:
        for row in range(waiting):
            _copy(bench.waiting_numbers[row + done], bench.waiting_numbers[row])
            _copy(bench.waiting_codes[row + done], bench.waiting_codes[row])
    _copy(bench.numeric, bench.waiting_numbers[waiting])
    _copy(bench.codes, bench.waiting_codes[waiting])
    counts[WAITING], counts[DONE] = waiting + 1, 0
    times, most = bench.times[: counts[TIMES]], len(bench.times) - 1
    for_times, for_amounts, for_counted = (
        min(window_count(times, now, bench.keep[0]) + (bench.keep[0] > 0), most),
        min(window_count(times, now, bench.keep[1]) + (bench.keep[1] > 0), most),
        min(window_count(times, now, bench.keep[2]) + (bench.keep[2] > 0), most),
    )
    counts[TIMES] = _append(bench.times, counts[TIMES], now, for_times)
    counts[COUNTED] = _append(bench.counted, counts[COUNTED], counted, for_counted)
    kept = counts[AMOUNTS]
    for field in range(len(bench.money)):
        amount = _bounded(bench.given[4 + bench.money[field]], bench.largest_amount)
        kept = _append(bench.amounts[field], counts[AMOUNTS], amount, for_amounts)
    counts[AMOUNTS] = kept
    counts[EVENTS] += 1
    bench.marks[LAST_TIME] = bench.given[0]
    bench.marks[LATITUDE], bench.marks[LONGITUDE] = bench.given[2], bench.given[3]
    return _pack(bench)
