"""Memory: a backbone that reads whole histories once, and hands out what it remembered at any event.

The memory before an event holds only events that are old enough (see the quarantine in `batches`), so that a run of
fraud does not rewrite the memory that should expose it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.features import Column
from anomaly.models import gathers
from anomaly.models.backbones import CAUSAL, Backbone, State
from anomaly.models.batches import CLIP, Chunk, Table


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
    def forward(ctx: Any, numeric: Tensor, category: Tensor, *weights: Tensor) -> Tensor:
        """(n, F), (n, C) and the C tables -> (n, size)."""
        widths = np.array([weight.shape[1] for weight in weights], dtype=np.int64)
        sizes = np.array([weight.numel() for weight in weights], dtype=np.int64)
        first = np.cumsum(sizes) - sizes
        flat = torch.cat([weight.flatten() for weight in weights]) if weights else numeric.new_empty(0)
        out = numeric.new_empty(len(numeric), 2 * numeric.shape[1] + int(widths.sum()))
        tables = flat.numpy(), first, widths
        gathers.embed(numeric.numpy(), category.numpy(), np.float32(CLIP), *tables, out.numpy())
        ctx.save_for_backward(category)
        ctx.numbers, ctx.tables, ctx.sizes = numeric.shape[1], (first, widths), sizes.tolist()
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        """Derivatives by the tables."""
        (category,) = ctx.saved_tensors
        found = by_out.new_zeros(sum(ctx.sizes))
        by, (first, widths) = by_out.contiguous().numpy(), ctx.tables
        gathers.embed_back(category.numpy(), by, ctx.numbers, first, widths, found.numpy())
        parts = torch.split(found, ctx.sizes)
        return None, None, *(part.view(-1, int(width)) for part, width in zip(parts, widths, strict=True))


class EventEmbedding(nn.Module):
    """One event as one vector: clipped numbers, a flag for each missing one, and an embedding of each category."""

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(Codes(c.size, embedding_width(c.size)) for c in category)
        self.size: int = 2 * len(numeric) + sum(embedding_width(c.size) for c in category)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """(n, F) and (n, C) -> (n, size)."""
        if numeric.device.type == "cpu":
            weights = [table.weight for table in self.tables]
            found: Tensor = Embedded.apply(numeric.contiguous(), category.contiguous(), *weights)  # type: ignore[no-untyped-call]
            return found
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

    def read(self, numeric: Tensor, category: Tensor, state: State) -> tuple[Tensor, State]:
        """Read T steps of B rows: (T, B, F) and (T, B, C) -> memories after each step (T, B, H), and the state."""
        steps, rows = numeric.shape[:2]
        embedded = self.embedding(numeric.flatten(0, 1), category.flatten(0, 1))
        return self._cell.read(embedded.view(steps, rows, -1), state)

    def step(self, numeric: Tensor, category: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one event of B rows: (B, F) and (B, C) -> the memory after it (B, H), and the state."""
        output, state = self.read(numeric[None], category[None], state)
        return output[0], state

    def empty(self, rows: int) -> State:
        """State before the first event, B = `rows`."""
        return self._cell.empty(rows)

    @property
    def _cell(self) -> Backbone:
        cell: Backbone = getattr(self, self.backbone)
        return cell


class Picked(torch.autograd.Function):
    """Memories by their places in the steps that are kept; gradients go to those of the newest chunk."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, kept: Tensor, place: Tensor, first: int) -> Tensor:
        """Rows (n, H) of `kept` (places, H) at `place` (n,); from place `first` on, `output` (T, B, H) stands there."""
        ctx.save_for_backward(place)
        ctx.first, ctx.shape = first, output.shape
        return kept.index_select(0, place)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor, None, None, None]:
        """Derivative by `output`."""
        (place,) = ctx.saved_tensors
        steps, rows, hidden = ctx.shape
        if by_rows.device.type == "cpu":
            summed = by_rows.new_zeros(ctx.shape)
            gathers.add_rows(by_rows.contiguous().numpy(), place.numpy(), ctx.first, summed.view(-1, hidden).numpy())
            return summed, None, None, None
        # Places before the chunk count into a row that is thrown away.
        found = by_rows.new_zeros(1 + steps * rows, hidden)
        found.index_add_(0, (place - (ctx.first - 1)).clamp_(min=0), by_rows)
        return found[1:].view(ctx.shape), None, None, None


class Reader:
    """Carries a batch of rows through a `Memory`, chunk by chunk, keeping just the memories that are still needed.

    With a quarantine an event may need a memory of some steps ago; those are kept until no row needs them any more.
    """

    def __init__(self, memory: Memory, table: Table) -> None:
        self.memory = memory
        self.table = table
        self._state: State | None = None
        self._kept: Tensor | None = None  # (steps kept, B, H): memory after `_base`, `_base + 1`, ... events
        self._base = 0

    def read(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return the events of the chunk, as indices (n,) into the table, and the memory before each, (n, H)."""
        device = self.table.numeric.device
        index = torch.from_numpy(chunk.index).to(device)
        steps, rows = index.shape
        if self._state is None:
            self._state = self.memory.empty(rows)
            self._kept = self._state[0]
        state = tuple(part[:, :rows].detach().contiguous() for part in self._state)
        numeric, category = (
            part.index_select(0, index.view(-1)).view(steps, rows, -1)
            for part in (self.table.numeric, self.table.category)
        )
        output, self._state = self.memory.read(numeric, category, state)
        assert self._kept is not None
        before = self._kept[:, :rows].flatten(0, 1)
        memories = torch.cat([before, output.detach().flatten(0, 1)])
        # Remembered events of each row's own; a row cut out of a longer sequence starts with an empty memory.
        remembered = (self.table.memory[chunk.index] - chunk.start[None, :]).clip(min=0)
        at = (remembered - self._base) * rows + np.arange(rows)[None, :]
        place = torch.from_numpy(at[chunk.valid]).to(device)
        picked: Tensor = Picked.apply(output, memories, place, len(before))  # type: ignore[no-untyped-call]
        oldest = int(remembered[-1].min())
        self._kept = memories.view(-1, rows, self.memory.hidden)[oldest - self._base :]
        self._base = oldest
        return index[torch.from_numpy(chunk.valid).to(device)], picked
