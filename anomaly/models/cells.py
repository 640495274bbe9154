"""Memory: a backbone that reads whole histories once, and hands out what it remembered at any event.

The memory before an event holds only events that are old enough (see the quarantine in `batches`), so that a run of
fraud does not rewrite the memory that should expose it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomaly.features import Column
from anomaly.models.backbones import CAUSAL, Backbone, State
from anomaly.models.batches import CLIP, Chunk, Table


class EventEmbedding(nn.Module):
    """One event as one vector: clipped numbers, a flag for each missing one, and an embedding of each category."""

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(c.size, embedding_width(c.size)) for c in category)
        self.size: int = 2 * len(numeric) + sum(embedding_width(c.size) for c in category)

    def forward(self, numeric: Tensor, category: Tensor) -> Tensor:
        """(n, F) and (n, C) -> (n, size)."""
        missing = torch.isnan(numeric)
        parts = [torch.nan_to_num(numeric).clamp(-CLIP, CLIP), missing.to(numeric.dtype)]
        parts += [table(category[:, index]) for index, table in enumerate(self.tables)]
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
        rows = chunk.index.shape[1]
        if self._kept is None:
            self._state = self.memory.empty(rows)
            self._kept = self._state[0]
        assert self._state is not None
        state = tuple(part[:, :rows].detach().contiguous() for part in self._state)
        output, self._state = self.memory.read(self.table.numeric[index], self.table.category[index], state)
        memories = torch.cat([self._kept[:, :rows], output])
        # Remembered events of each row's own; a row cut out of a longer sequence starts with an empty memory.
        remembered = (self.table.memory[chunk.index] - chunk.start[None, :]).clip(min=0)
        at = (remembered - self._base) * rows + torch.arange(rows).numpy()[None, :]
        picked = memories.view(-1, self.memory.hidden)[torch.from_numpy(at[chunk.valid]).to(device)]
        oldest = int(remembered[-1].min())
        self._kept, self._base = memories.detach()[oldest - self._base :], oldest
        return index[torch.from_numpy(chunk.valid).to(device)], picked
