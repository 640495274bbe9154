"""Sequences: the one value type between the events of a table and the models that read them.

Ragged data as flat arrays and offsets: all events of the first entity, then all of the second, each in the order of
time. Nothing is padded, and masks over the N events select what is trained on, calibrated with and scored, so that
history stays in place as context.

Letters used in shapes all over the package: S sequences, N events, F numeric columns, C category columns, K scored
fields, T steps, B rows of a batch, H hidden units, M mixture components.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import InputError
from anomaly.loops import reach_back

# What is carried from event to event is bounded, however busy an entity: in a table as in a stream.
PIECE = 65_536  # events worked on at a time, about; of one size everywhere: a piece that is cut again stays whole
MOST_RECENT = 1000  # events in any window, the present one included; of a busier entity the last so many
MOST_WAITING = 200  # events that wait out the quarantine; with more of them the oldest enters the memory early
MOST_VALUES = 300  # values of a category that an entity is known to have met; once so many, a new one is always new

_MOST_KEPT = 10  # windows: those of the robust weights, to both sides
_LONGEST = 2**61  # microseconds of a window; more would leave int64


@dataclass(frozen=True, eq=False, kw_only=True)
class Sequences:
    """Event histories of S entities with N events in all; frozen, and checked once when made.

    Parameters
    ----------
    entity : ndarray of str, shape (S,)
        Key of each sequence.
    offsets : ndarray of int64, shape (S + 1,)
        Events of sequence s are ``offsets[s]:offsets[s + 1]``; rising from 0 to N, no sequence is empty.
    time : ndarray of float64, shape (N,)
        Seconds since 1970-01-01 UTC; never falls inside a sequence.
    numeric : ndarray of float32, shape (N, F)
        Scaled numbers; NaN = missing.
    category : ndarray of int32, shape (N, C)
        Codes; 0 = unseen (or too rare in the history to be told apart), 1 = missing.
    row : ndarray of int64, shape (N,)
        Position of each event in the input.

    Raises
    ------
    InputError
        If shapes disagree, times fall inside a sequence, or offsets do not rise from 0 to N.
    """

    entity: NDArray[np.object_]
    offsets: NDArray[np.int64]
    time: NDArray[np.float64]
    numeric: NDArray[np.float32]
    category: NDArray[np.int32]
    row: NDArray[np.int64]
    _found: dict[tuple[str, float], NDArray[np.uint16]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.time)
        _require(
            len(self.offsets) == len(self.entity) + 1, "offsets", f"{len(self.entity) + 1} values", len(self.offsets)
        )
        _require(
            self.offsets[0] == 0 and self.offsets[-1] == n, "offsets", f"0 first and {n} last", self.offsets[[0, -1]]
        )
        _require(
            bool((np.diff(self.offsets) > 0).all()), "offsets", "rising (no empty sequence)", "a step of 0 or less"
        )
        for name, rows in (("numeric", len(self.numeric)), ("category", len(self.category)), ("row", len(self.row))):
            _require(rows == n, name, f"{n} rows, as many as time", rows)
        fell = np.diff(self.time) < 0
        fell[self.offsets[1:-1] - 1] = False
        fall = np.flatnonzero(fell)
        _require(not len(fall), "time", "not falling inside a sequence", f"a fall after event {fall[:1]}")
        for array in (self.offsets, self.time, self.numeric, self.category, self.row):
            array.setflags(write=False)

    def __len__(self) -> int:
        """Return the number of events N."""
        return len(self.time)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of events of each sequence, shape (S,)."""
        return np.diff(self.offsets)

    @property
    def sequence(self) -> NDArray[np.int64]:
        """Number of the sequence that each event belongs to, shape (N,)."""
        return np.repeat(np.arange(len(self.entity)), self.lengths)

    @property
    def position(self) -> NDArray[np.int64]:
        """Number of earlier events of the same entity, shape (N,); 0 for an entity's first event."""
        return np.arange(len(self)) - np.repeat(self.offsets[:-1], self.lengths)

    def lagged(self, seconds: float) -> NDArray[np.int64]:
        """Index of each event's first companion among the last `MOST_RECENT` younger than `seconds`; see `lagged`."""
        return np.arange(len(self)) - self.reach("lagged", seconds)

    def leading(self, seconds: float) -> NDArray[np.int64]:
        """Index of each event's last companion that is less than `seconds` later; the mirror of `lagged`."""
        return np.arange(len(self)) + self.reach("leading", seconds)

    def reach(self, side: str, seconds: float) -> NDArray[np.uint16]:
        """How many events a window, "lagged" or "leading", reaches back or on, (N,), `MOST_RECENT` - 1 at most."""
        return self.reaches(side, [seconds])[0]

    def reaches(self, side: str, scales: Sequence[float]) -> list[NDArray[np.uint16]]:
        """`reach` of windows of so many seconds.

        The last few answers are kept: the same windows are asked for after each epoch, and in each trial.
        """
        known = {seconds: self._found.get((side, seconds)) for seconds in scales}
        if missing := [seconds for seconds, reach in known.items() if reach is None]:
            time, offsets = self.time, self.offsets
            if side == "leading":
                time, offsets = -time[::-1], len(self) - offsets[::-1]
            made = np.empty((len(missing), len(self)), dtype=np.uint16)
            reach_back(*_whole(time, offsets, missing), MOST_RECENT, made)
            made = made[:, ::-1].copy() if side == "leading" else made
            known |= zip(missing, made, strict=True)
            for old in list(self._found)[: max(0, len(self._found) + len(missing) - _MOST_KEPT)]:
                self._found.pop(old, None)  # unless another thread was quicker
            newest = list(zip(missing, made, strict=True))[-_MOST_KEPT:]
            self._found.update(((side, seconds), reach) for seconds, reach in newest)
        return [reach for seconds in scales if (reach := known[seconds]) is not None]

    def typical_gap(self, mask: NDArray[np.bool_]) -> float:
        """Median seconds from one event of an entity to the next one at a later time, those of `mask`; 0 if none."""
        return typical_gap(self.time, self.offsets, mask)

    def stretch(self, first: int, last: int) -> Sequences:
        """Return the whole sequences from event `first` up to event `last`; nothing is copied."""
        begin, end = np.searchsorted(self.offsets, [first, last])
        return Sequences(
            entity=self.entity[begin:end],
            offsets=self.offsets[begin : end + 1] - first,
            time=self.time[first:last],
            numeric=self.numeric[first:last],
            category=self.category[first:last],
            row=self.row[first:last],
        )

    def take(self, which: NDArray[np.int64]) -> Sequences:
        """Return the sequences numbered `which`, whole and in that order."""
        starts, lengths = self.offsets[which], self.lengths[which]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Sequences(
            entity=self.entity[which],
            offsets=offsets,
            time=self.time[index],
            numeric=self.numeric[index],
            category=self.category[index],
            row=self.row[index],
        )


def typical_gap(time: NDArray[np.float64], offsets: NDArray[np.int64], mask: NDArray[np.bool_]) -> float:
    """Median seconds from one event of an entity to the next one at a later time, those of `mask`; 0 if none.

    Examples
    --------
    >>> typical_gap(np.array([0.0, 5.0, 5.0, 100.0]), np.array([0, 3, 4]), np.ones(4, dtype=bool))
    5.0
    """
    later = mask.copy()
    later[offsets[:-1]] = False
    gap = time[later] - time[np.flatnonzero(later) - 1]
    gap = gap[gap > 0]
    return float(np.median(gap)) if len(gap) else 0.0


def microseconds(time: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds as whole microseconds, so that window borders are compared exactly, in a batch as in a stream."""
    return np.asarray(np.rint(time * 1e6), dtype=np.int64)


def lagged(
    time: NDArray[np.float64], offsets: NDArray[np.int64], seconds: float, most: int | None = None
) -> NDArray[np.int64]:
    """Index of the first event of the same entity with a time later than that of the event less `seconds`.

    One search serves windows and memories: with ``lag = lagged(time, offsets, w)`` the window ``(t - w, t]`` of event i
    holds the events ``lag[i]`` to i, and the events older than that are those before ``lag[i]``.

    Parameters
    ----------
    time : ndarray, shape (N,)
        Seconds, not falling inside a sequence.
    offsets : ndarray, shape (S + 1,)
        Borders of the sequences.
    seconds : float
        Length of the window, above 0. Compared in whole microseconds.
    most : int, optional
        Events of a window, the event itself included: of more, the last so many.

    Returns
    -------
    ndarray of int64, shape (N,)
        Never before the start of the event's own sequence and never after the event itself.

    Examples
    --------
    >>> lagged(np.array([0.0, 5.0, 10.0, 3.0]), np.array([0, 3, 4]), seconds=5.0)
    array([0, 1, 2, 3])
    """
    if not len(time):
        return np.zeros(0, dtype=np.int64)
    back = np.empty((1, len(time)), dtype=np.int64)
    reach_back(*_whole(time, offsets, [seconds]), most or len(time), back)
    return np.asarray(np.arange(len(time)) - back[0])


def counts_within(
    time: NDArray[np.float64], offsets: NDArray[np.int64], scales: Sequence[float], most: int
) -> NDArray[np.int64]:
    """How many events of each window ``(t - scale, t]`` are there, the event itself included, (W, N); as `lagged`."""
    back = np.empty((len(scales), len(time)), dtype=np.int64)
    reach_back(*_whole(time, offsets, scales), most, back)
    return np.add(back, 1, out=back)


def _whole(
    time: NDArray[np.float64], offsets: NDArray[np.int64], scales: Sequence[float]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Times, borders and windows as whole numbers, the times and windows in microseconds."""
    windows = [min(round(seconds * 1e6), _LONGEST) for seconds in scales]
    return microseconds(time), np.asarray(offsets, dtype=np.int64), np.array(windows, dtype=np.int64)


def whole_sequences(offsets: NDArray[np.int64], events: int) -> list[tuple[int, int]]:
    """First event and end of stretches of whole sequences, `events` long, more or less by less than a sequence.

    Examples
    --------
    >>> whole_sequences(np.array([0, 3, 4, 9, 10]), 4)
    [(0, 4), (4, 9), (9, 10)]
    """
    first = offsets[:-1]
    borders = [*first[np.diff(first // events, prepend=-1) > 0].tolist(), int(offsets[-1])]
    return list(pairwise(borders))


def by_pieces(work: Callable[[int, int], None], pieces: Sequence[tuple[int, int]]) -> None:
    """Do the work from the first event to the end of each piece, on several threads if there are several pieces.

    For work in libraries that let other threads run. What is made for a piece only never takes much memory.
    """
    threads = min(len(pieces), os.cpu_count() or 1)
    if threads < 2:
        for piece in pieces:
            work(*piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, *zip(*pieces, strict=True)))


def _require(holds: bool, name: str, expected: object, got: object) -> None:
    if not holds:
        raise InputError(f"Sequences: {name} must be {expected}, got {got}")


def fingerprint(sequences: Sequences) -> str:
    """Sha256 of the encoded history."""
    digest_ = hashlib.sha256()
    for array in (sequences.offsets, sequences.time, sequences.numeric, sequences.category):
        digest_.update(np.ascontiguousarray(array).data)
    return digest_.hexdigest()
