"""Memory: a backbone that reads whole histories once, and hands out what it remembered at any event.

The memory before an event holds only events that are old enough (see the quarantine in `batches`), so that a run of
fraud does not rewrite the memory that should expose it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.features import Column
from anomaly.models import gathers
from anomaly.models.backbones import CAUSAL, Backbone, State
from anomaly.models.batches import CLIP, Chunk, Events, Int, Table

Mask = NDArray[np.bool_]


class Looked(torch.autograd.Function):
    """Rows of a table by code. The gradient is added up row by row, where torch's own takes several times as long."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, code: Tensor) -> Tensor:
        """Rows (n, d) of the weight (codes, d) at the codes (n,)."""
        ctx.save_for_backward(code)
        ctx.codes = len(weight)
        return weight.index_select(0, code)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor, None]:
        """Derivative by the weight."""
        (code,) = ctx.saved_tensors
        return by_rows.new_zeros(ctx.codes, by_rows.shape[1]).index_add_(0, code, by_rows), None


class Codes(nn.Embedding):
    """A vector for each code."""

    def forward(self, code: Tensor) -> Tensor:
        """(n,) int64 -> (n, width)."""
        found: Tensor = Looked.apply(self.weight, code)  # type: ignore[no-untyped-call]
        return found


class Embedded(torch.autograd.Function):
    """One vector for each event, on the processor: all of `EventEmbedding` at once."""

    @staticmethod
    def forward(ctx: Any, events: Events, *weights: Tensor) -> Tensor:
        """Vectors (n, size) of n events, by the C tables."""
        numeric, category, index = events.arrays
        widths = np.array([weight.shape[1] for weight in weights], dtype=np.int64)
        sizes = np.array([weight.numel() for weight in weights], dtype=np.int64)
        first = np.cumsum(sizes) - sizes
        flat = torch.cat([weight.flatten() for weight in weights]) if weights else torch.empty(0)
        out = torch.empty(len(index), 2 * numeric.shape[1] + int(widths.sum()))
        gathers.embed(numeric, category, index, np.float32(CLIP), flat.numpy(), first, widths, out.numpy())
        ctx.events, ctx.tables, ctx.sizes = events, (first, widths), sizes.tolist()
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        """Derivatives by the tables."""
        numeric, category, index = ctx.events.arrays
        found = by_out.new_zeros(sum(ctx.sizes))
        by, (first, widths) = by_out.contiguous().numpy(), ctx.tables
        gathers.embed_back(category, index, by, numeric.shape[1], first, widths, found.numpy())
        parts = torch.split(found, ctx.sizes)
        return None, *(part.view(-1, int(width)) for part, width in zip(parts, widths, strict=True))


class EventEmbedding(nn.Module):
    """One event as one vector: clipped numbers, a flag for each missing one, and an embedding of each category."""

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(Codes(c.size, embedding_width(c.size)) for c in category)
        self.size: int = 2 * len(numeric) + sum(embedding_width(c.size) for c in category)

    def forward(self, events: Events) -> Tensor:
        """Vectors (n, size) of n events."""
        if events.index.device.type == "cpu":
            found: Tensor = Embedded.apply(events, *(table.weight for table in self.tables))  # type: ignore[no-untyped-call]
            return found
        numeric, category = events.numeric, events.category
        missing = torch.isnan(numeric)
        parts = [torch.nan_to_num(numeric).clamp(-CLIP, CLIP), missing.to(numeric.dtype)]
        parts += [table(code) for table, code in zip(self.tables, category.t().long().contiguous(), strict=True)]
        return torch.cat(parts, dim=1)


def embedding_width(size: int) -> int:
    """Width of an embedding of `size` codes: enough to tell them apart, never wide."""
    return min(16, max(2, round(math.sqrt(size))))


class Memory(nn.Module):
    """A causal backbone over an entity's events; `hidden` numbers are what it remembers.

    The weights of the backbone are named after it: ``lstm.weight_hh_l0``.
    """

    def __init__(
        self, numeric: Sequence[Column], category: Sequence[Column], hidden: int, backbone: str = "lstm"
    ) -> None:
        super().__init__()
        self.embedding = EventEmbedding(numeric, category)
        self.backbone = backbone
        setattr(self, backbone, CAUSAL[backbone](self.embedding.size, hidden))
        self.hidden = hidden

    def read(self, events: Events, state: State) -> tuple[Tensor, State]:
        """Read T steps of B rows, step by step: T B events -> memories after each step (T, B, H), and the state."""
        rows = state[0].shape[1]
        return self._cell.read(self.embedding(events).view(-1, rows, self.embedding.size), state)

    def empty(self, rows: int) -> State:
        """State before the first event, B = `rows`."""
        return self._cell.empty(rows)

    @property
    def _cell(self) -> Backbone:
        cell: Backbone = getattr(self, self.backbone)
        return cell


class Chosen(NamedTuple):
    """Events of a chunk, how many earlier ones are remembered before each, and the row that it is of; (n,) each."""

    event: Int
    step: Int
    row: Int

    @classmethod
    def of(cls, chunk: Chunk, table: Table, mask: Mask | None) -> Chosen:
        """All events of the chunk, or those of the mask (N,)."""
        found = np.empty((3, chunk.index.size), dtype=np.int64)
        every = np.empty(0, dtype=np.bool_) if mask is None else mask
        n = gathers.choose(chunk.index, chunk.valid, chunk.start, table.memory, every, *found)
        return cls(*found[:, :n])


class Recalled(torch.autograd.Function):
    """What is remembered before each of n events; gradients go to the memories of the newest chunk."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, kept: Sequence[Kept], statistics: Tensor, chosen: Chosen) -> Tensor:
        """Memories and averages (n, H + Q), of those that are `kept`, `output` (T, B, H) the last of them."""
        ctx.shape, ctx.first, ctx.chosen = output.shape, kept[-1].first, chosen
        rows, hidden = output.shape[1:]
        if output.device.type == "cpu":
            out = output.new_empty(len(chosen.event), hidden + statistics.shape[1])
            for first, memories in kept:
                gathers.recall(memories.numpy(), first, chosen.step, chosen.row, out.numpy())
            gathers.put_beside(statistics.numpy(), chosen.event, hidden, out.numpy())
            return out
        memories = torch.cat([one.memories[:, :rows] for one in kept]).flatten(0, 1)
        place = torch.from_numpy((chosen.step - kept[0].first) * rows + chosen.row).to(output.device)
        event = torch.from_numpy(chosen.event).to(output.device)
        return torch.cat([memories.index_select(0, place), statistics.index_select(0, event)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, None, None, None]:
        """Derivative by `output`."""
        steps, rows, hidden = ctx.shape
        step, row = ctx.chosen.step, ctx.chosen.row
        if by_out.device.type == "cpu":
            found = by_out.new_zeros(ctx.shape)
            gathers.recall_back(by_out.contiguous().numpy(), ctx.first, step, row, found.numpy())
            return found, None, None, None
        # Memories before the chunk count into a row that is thrown away.
        place = torch.from_numpy((1 + (step - ctx.first) * rows + row).clip(min=0) * (step >= ctx.first))
        found = by_out.new_zeros(1 + steps * rows, hidden)
        found.index_add_(0, place.to(by_out.device), by_out[:, :hidden].to(found.dtype))
        return found[1:].view(ctx.shape), None, None, None


class Kept(NamedTuple):
    """Memories (T, B, H) after `first`, `first` + 1, ... events of each row."""

    first: int
    memories: Tensor


class Reader:
    """Carries a batch of rows through a `Memory`, chunk by chunk, keeping just the memories that are still needed.

    With a quarantine an event may need a memory of some steps ago; those are kept until no row needs them any more.
    """

    def __init__(self, memory: Memory, table: Table) -> None:
        self.memory = memory
        self.table = table
        self._state: State | None = None
        self._kept: list[Kept] = []

    def read(self, chunk: Chunk, mask: Mask | None = None) -> tuple[Tensor, Tensor]:
        """Return the events of the chunk, those of the mask (N,) if there is one, and what is remembered before each.

        As indices (n,) into the table; as memory and averages (see `Table.statistics`), (n, H + Q).
        """
        device = self.table.numeric.device
        rows = chunk.index.shape[1]
        if self._state is None:
            self._state = self.memory.empty(rows)
            self._kept = [Kept(0, self._state[0])]
        state = tuple(part[:, :rows].detach().contiguous() for part in self._state)
        read = Events(self.table, torch.from_numpy(chunk.index).to(device).view(-1))
        output, self._state = self.memory.read(read, state)
        self._kept.append(Kept(chunk.step + 1, output.detach()))
        chosen = Chosen.of(chunk, self.table, mask)
        recalled: Tensor = Recalled.apply(output, self._kept, self.table.statistics, chosen)  # type: ignore[no-untyped-call]
        oldest = int((self.table.memory[chunk.index[-1]] - chunk.start).min())
        while len(self._kept) > 1 and self._kept[1].first <= oldest:
            self._kept.pop(0)
        return torch.from_numpy(chosen.event).to(device), recalled
