"""Autoencoder: can this event, after this history, be squeezed through a bottleneck and rebuilt.

In the manner of EncDec-AD (Malhotra et al. 2016): an encoder runs over the history with its state carried, a narrow
bottleneck holds what it made of the event and of what went before, and a decoder rebuilds the recent events in reverse
order. Since the newest event is rebuilt first, its error needs one decoder step: scoring is one pass, and causal. The
longer decode trains the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.features import Column
from anomaly.models import kernels
from anomaly.models.base import SequenceModel, statistics_width
from anomaly.models.batches import Events, Table
from anomaly.models.cells import Memory
from anomaly.models.heads import Asked, FieldSet, spread_locations
from anomaly.models.training import Network


class LstmStep(torch.autograd.Function):
    """One step of an LSTM from its gates, on the processor."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 4 H) and (n, H), or (0, H) = nothing yet -> output and cell, (n, H) each."""
        output, new = (gates.new_empty(len(gates), cell.shape[1]) for _ in range(2))
        kernels.lstm_step(gates.numpy(), cell.numpy(), output.numpy(), new.numpy())
        ctx.save_for_backward(gates, cell, new)
        return output, new

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_output: Tensor, by_new: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives by the gates and the cell."""
        gates, cell, _ = ctx.saved_tensors
        by_gates, by_cell = torch.empty_like(gates), torch.empty_like(cell)
        by = by_output.contiguous().numpy(), by_new.contiguous().numpy()
        kernels.lstm_step_back(*(one.numpy() for one in ctx.saved_tensors), *by, by_gates.numpy(), by_cell.numpy())
        return by_gates, by_cell


def lstm_step(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and cell after a step from gates (n, 4 H) and the cell before it, if there is one; (n, H) each."""
    if gates.device.type == "cpu":
        nothing = gates.new_empty(0, gates.shape[1] // 4)
        made: tuple[Tensor, Tensor] = LstmStep.apply(gates, nothing if cell is None else cell)  # type: ignore[no-untyped-call]
        return made
    enter, keep, new, out = gates.chunk(4, dim=1)
    entered = torch.sigmoid(enter) * torch.tanh(new)
    cell = entered if cell is None else entered + torch.sigmoid(keep) * cell
    return torch.sigmoid(out) * torch.tanh(cell), cell


class AutoencoderNetwork(Network):
    """Encoder memory, bottleneck with noise, decoder LSTM and one layer of predictive heads."""

    def __init__(
        self,
        numeric: Sequence[Column],
        category: Sequence[Column],
        hidden: int,
        bottleneck: int,
        noise: float,
        steps: int,
        backbone: str,
    ) -> None:
        super().__init__()
        self.memory = Memory(numeric, category, hidden, backbone)
        self.fields = FieldSet.of(numeric, category)
        self.noise, self.steps = noise, steps
        self.encoder = nn.Linear(hidden + self.memory.embedding.size + statistics_width(numeric), hidden)
        self.bottleneck = nn.Linear(hidden, bottleneck)
        self.decoder = nn.LSTM(bottleneck + hidden + statistics_width(numeric), hidden)
        self.numbers = spread_locations(nn.Linear(hidden, self.fields.number_width))
        self.categories = nn.Linear(hidden, self.fields.category_width)

    def encode(self, memory: Tensor, events: Events) -> Tensor:
        """Bottleneck of n events given the memory before each: (n, Z), each number in (-1, 1)."""
        embedded = self.memory.embedding(events.numeric, events.category)
        code = fn.silu(self.encoder(torch.cat([memory, embedded, events.statistics], dim=1)))
        code = torch.tanh(self.bottleneck(code))
        if self.training and self.noise:
            code = code + self.noise * torch.randn(code.shape, generator=self.draw, device=code.device)
        return code

    def decode(self, code: Tensor, memory: Tensor, events: Events, steps: int) -> list[Asked]:
        """Heads that state the event itself, then those before it, newest first."""
        given = torch.cat([code, memory, events.statistics], dim=1)
        # What is given is the same at each step: projected once. The first step starts from nothing.
        by_input, by_output, *bias = self.decoder.all_weights[0]
        projected = fn.linear(given, by_input, bias[0] + bias[1])
        found: list[Asked] = []
        gates, cell = projected, None
        for _ in range(steps):
            output, cell = lstm_step(gates, cell)
            found.append(Asked(self.fields, [(output, self.numbers, self.categories)]))
            gates = projected if len(found) == steps else projected + fn.linear(output, by_output)
        return found

    def ask(self, memory: Tensor, events: Events) -> Asked:
        """Heads that state the fields of n events as rebuilt."""
        return self.decode(self.encode(memory, events), memory, events, 1)[0]

    def extra_loss(self, memory: Tensor, index: Tensor, table: Table, weight: Tensor) -> Tensor:
        """Loss of rebuilding the remembered events, newest first, for a sample of the events; dropped ones count 0."""
        if not self.steps:
            return memory.new_zeros(())
        chosen = torch.arange(0, len(index), 8, device=index.device)
        index, memory = index[chosen], memory[chosen]
        events = Events.pick(table, index)
        code = self.encode(memory, events)
        newest = torch.from_numpy(table.memory[index.cpu().numpy()]).to(index.device)
        total = memory.new_zeros(())
        for step, asked in enumerate(self.decode(code, memory, events, 1 + self.steps)[1:], start=1):
            past = Events.pick(table, (newest - step).clamp(min=0))
            known = (newest - step >= 0) & (table.sequence[newest - step] == table.sequence[index])
            counted = known * weight[index] * weight[newest - step]
            total = total + asked.loss(past, counted, errors=False)[0] / counted.sum().clamp(min=1)
        return 0.25 * total / self.steps


@dataclass(kw_only=True)
class Autoencoder(SequenceModel):
    """Sequence autoencoder with a narrow, noisy bottleneck.

    Parameters
    ----------
    bottleneck : int
        Numbers that an event and its history must pass through.
    noise : float
        Standard deviation of the noise on each of them while training; they lie in (-1, 1). It bounds what they can
        carry, so that the decoder keeps to what is usual.
    decoded : int
        Earlier events that are rebuilt too while training.
    """

    bottleneck: int = 4
    noise: float = 1.0
    decoded: int = 1

    @property
    def name(self) -> str:
        """Short name, for columns and files."""
        return "autoencoder"

    def _make(self, numeric: Sequence[Column], category: Sequence[Column]) -> Network:
        return AutoencoderNetwork(
            numeric, category, self.hidden, self.bottleneck, self.noise, self.decoded, self.backbone
        )
