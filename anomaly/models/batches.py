"""Sequences <-> torch batches: in length order, in chunks of steps, in bounded memory.

Sequences are cut into rows, rows of like length share a batch, and a batch is read in chunks of steps with the
recurrent state carried from one to the next. Since the rows of a batch stand in falling length, those that end drop
off the end, and padding never costs more than one chunk. No window is ever copied out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.models import gathers
from anomaly.sequences import MOST_WAITING, Sequences, lagged

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """All that a model reads of N events, as tensors on one device.

    numeric : (N, F) float32, NaN = missing; category : (N, C) int32; statistics : (N, Q) float32, what the entity's
    remembered events average to; sequence : (N,) int64, number of the event's sequence; memory : (N,) int64, index of
    the first event that is too young to be remembered.
    """

    numeric: Tensor
    category: Tensor
    statistics: Tensor
    sequence: Tensor
    memory: Int

    @classmethod
    def of(cls, sequences: Sequences, quarantine: float, averaged: Sequence[int], device: torch.device) -> Table:
        """Gather the table of `sequences` for a memory that is at least `quarantine` seconds old.

        `averaged` names the numeric columns whose remembered values are averaged.
        """
        memory = memory_border(sequences, quarantine)
        return cls(
            numeric=torch.from_numpy(sequences.numeric.copy()).to(device),
            category=torch.from_numpy(sequences.category.copy()).to(device),
            statistics=torch.from_numpy(memory_statistics(sequences, memory, averaged)).to(device),
            sequence=torch.from_numpy(sequences.sequence).to(device),
            memory=memory,
        )


@dataclass(frozen=True)
class Events:
    """The events of one step of work: rows `index` (n,) of a `Table`, where kernels look; others pick them."""

    table: Table
    index: Tensor

    def __len__(self) -> int:
        """Return n."""
        return len(self.index)

    @property
    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.int32], Int]:
        """Numbers (N, F) and categories (N, C) of all events, and which these are, (n,); on the processor."""
        return self.table.numeric.numpy(), self.table.category.numpy(), self.index.contiguous().numpy()

    @cached_property
    def numeric(self) -> Tensor:
        """(n, F)."""
        return self.table.numeric.index_select(0, self.index)

    @cached_property
    def category(self) -> Tensor:
        """(n, C)."""
        return self.table.category.index_select(0, self.index)

    @cached_property
    def statistics(self) -> Tensor:
        """(n, Q)."""
        return self.table.statistics.index_select(0, self.index)


@dataclass(frozen=True)
class Chunk:
    """T steps of B rows; `index` (T, B) points into the table, clipped to the row where it is over."""

    index: Int
    valid: NDArray[np.bool_]  # (T, B)
    start: Int  # (B,) first event of each row
    step: int  # steps of the rows before this chunk


def memory_border(sequences: Sequences, quarantine: float) -> Int:
    """Index of the first event that the memory before each event does not hold, shape (N,).

    With a quarantine above 0 the memory holds the entity's events that are at least so many seconds old, and of a busy
    entity all but the last `MOST_WAITING` anyway; with 0 it holds every earlier one, equal times included.
    """
    if quarantine > 0:
        return lagged(sequences.time, sequences.offsets, quarantine, MOST_WAITING + 1)
    return np.arange(len(sequences))


def memory_statistics(sequences: Sequences, memory: Int, averaged: Sequence[int]) -> NDArray[np.float32]:
    """Number, mean and spread of the entity's remembered values, shape (N, 1 + 2 averaged).

    Each column's sums start with one pseudo-event of mean 0 and variance 1 (the population, in encoded units), so that
    young entities are not over-trusted. Values count clipped to +-`CLIP`, so that one monster does not own the mean.
    """
    start = np.repeat(sequences.offsets[:-1], sequences.lengths)
    found = np.empty((len(start), 1 + 2 * len(averaged)), np.float32)
    found[:, 0] = remembered_number(memory - start)
    columns = np.array(averaged, dtype=np.int64)
    gathers.averages(np.ascontiguousarray(sequences.numeric), columns, sequences.offsets, memory, CLIP, found)
    return found


CLIP = 8.0
ENOUGH = 20  # remembered events, beyond which their number is not told: what a model learned of entities two months old
# it would carry on for those two years old, to which nothing like them has been shown


def remembered_number(count: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many events are remembered, up to `ENOUGH`, on a scale of -1.5 to 0."""
    return np.asarray((np.log1p(np.minimum(count, ENOUGH)) - 3.0) / 2.0)


@dataclass(frozen=True)
class Plan:
    """Rows of events (start and length of each), grouped into batches of like length."""

    groups: tuple[tuple[Int, Int], ...]
    steps: int
    least: int

    @classmethod
    def of(
        cls,
        offsets: Int,
        *,
        until: Int | None = None,
        events: int = 4096,
        steps: int = 64,
        least: int | None = None,
        longest: int | None = None,
    ) -> Plan:
        """Plan the batches of one pass.

        Parameters
        ----------
        offsets : ndarray, shape (S + 1,)
            Borders of the sequences.
        until : ndarray, shape (S,), optional
            Read only the first `until` events of each sequence.
        events : int
            Events of one chunk, about: as many rows share a batch. Small enough to stay in the processor's cache.
        steps : int
            Longest chunk.
        least : int, optional
            Chunks may be as short as this where more than a quarter of the rows end sooner; else all are `steps` long.
        longest : int, optional
            Cut longer sequences into rows of this many events, so that a few long ones train side by side. The state
            starts afresh at a cut: for training only.
        """
        start = offsets[:-1]
        length = np.diff(offsets) if until is None else until
        if longest is not None:
            pieces = np.maximum(1, -(-length // longest))
            number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
            start = np.repeat(start, pieces) + number * longest
            length = np.minimum(np.repeat(length, pieces) - number * longest, longest)
        start, length = start[length > 0], length[length > 0]
        order = np.argsort(-length, kind="stable")
        start, length = start[order], length[order]
        groups, first = [], 0
        while first < len(start):
            size = max(1, events // min(steps, int(length[first])))
            groups.append((start[first : first + size], length[first : first + size]))
            first += size
        return cls(tuple(groups), steps, steps if least is None else least)

    @property
    def events(self) -> int:
        """Number of events in all rows."""
        return int(sum(length.sum() for _, length in self.groups))

    def chunks(self, group: int) -> Iterator[Chunk]:
        """Chunks of one batch, in the order of time."""
        start, length = self.groups[group]
        step, end = 0, int(length[0])
        while step < end:
            alive = int(np.searchsorted(-length, -step, side="left"))
            most_end = int(length[alive - 1 - alive // 4]) - step
            steps = min(self.steps, max(self.least, most_end), end - step)
            time = np.arange(step, step + steps)[:, None]
            valid = time < length[None, :alive]
            index = start[None, :alive] + np.minimum(time, length[None, :alive] - 1)
            yield Chunk(index, valid, start[:alive], step)
            step += steps
