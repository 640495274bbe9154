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
from anomaly.models.batches import Events
from anomaly.models.cells import Memory
from anomaly.models.heads import Asked, FieldSet, spread_locations
from anomaly.models.training import Network


class LstmStep(torch.autograd.Function):
    """One step of an LSTM from its gates, on the processor; they are activated in their place."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 4 H) and (n, H), or (n, 3 H) and (0, H) = nothing yet -> output and cell, (n, H) each."""
        output, new = (gates.new_empty(len(gates), cell.shape[1]) for _ in range(2))
        kernels.lstm_step(gates.numpy(), cell.numpy(), output.numpy(), new.numpy())
        ctx.save_for_backward(gates, cell, new)
        ctx.set_materialize_grads(False)
        return output, new

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_output: Tensor, by_new: Tensor | None) -> tuple[Tensor, Tensor]:
        """Derivatives by the gates, in their place, and the cell; by the new cell is none where no step follows."""
        gates, cell, new = ctx.saved_tensors
        by_cell = torch.empty_like(cell)
        by = by_output.contiguous().numpy(), (new[:0] if by_new is None else by_new.contiguous()).numpy()
        kernels.lstm_step_back(*(one.numpy() for one in ctx.saved_tensors), *by, by_cell.numpy())
        torch.autograd.graph.increment_version(gates)  # who goes back a second time is told
        return gates, by_cell


def lstm_step(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and cell after a step from gates (n, 4 H) and the cell before it, (n, H) each.

    In a first step there is no cell, and no gate for what to keep of it: gates (n, 3 H).
    """
    if gates.device.type == "cpu":
        nothing = gates.new_empty(0, gates.shape[1] // 3)
        made: tuple[Tensor, Tensor] = LstmStep.apply(gates, nothing if cell is None else cell)  # type: ignore[no-untyped-call]
        return made
    enter, *keep, new, out = gates.chunk(3 if cell is None else 4, dim=1)
    entered = torch.sigmoid(enter) * torch.tanh(new)
    cell = entered if cell is None else entered + torch.sigmoid(keep[0]) * cell
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

    def encode(self, recalled: Tensor, events: Events) -> Tensor:
        """Bottleneck of n events given what is remembered before each, (n, H + Q): (n, Z), each number in (-1, 1)."""
        weight, (first, last) = self.encoder.weight, self._columns
        of_recalled = torch.cat([weight[:, :first], weight[:, last:]], dim=1)
        projected = fn.linear(recalled, of_recalled, self.encoder.bias)
        code = fn.silu(torch.addmm(projected, self.memory.embedding(events), weight[:, first:last].t()))
        code = torch.tanh(self.bottleneck(code))
        if self.training and self.noise:
            code = code + self.noise * torch.randn(code.shape, generator=self.draw, device=code.device)
        return code

    @property
    def _columns(self) -> tuple[int, int]:
        """Where the event stands among the inputs of the encoder, between memory and averages."""
        return self.memory.hidden, self.memory.hidden + self.memory.embedding.size

    def decode(self, code: Tensor, recalled: Tensor, steps: int) -> list[Asked]:
        """Heads that state the event itself, then those before it, newest first."""
        given = torch.cat([code, recalled], dim=1)
        by_input, by_output, *bias = self.decoder.all_weights[0]
        biases = bias[0] + bias[1]
        # The first step starts from nothing, and needs no gate for what to keep of it.
        gates, cell = fn.linear(given, _without_keep(by_input), _without_keep(biases)), None
        # What is given is the same at each later step: projected once.
        projected = fn.linear(given, by_input, biases) if steps > 1 else None
        found: list[Asked] = []
        for _ in range(steps):
            output, cell = lstm_step(gates, cell)
            found.append(Asked(self.fields, [(output, self.numbers, self.categories)]))
            if projected is not None and len(found) < steps:
                gates = torch.addmm(projected, output, by_output.t())
        return found

    def ask(self, recalled: Tensor, events: Events) -> Asked:
        """Heads that state the fields of n events as rebuilt."""
        return self.decode(self.encode(recalled, events), recalled, 1)[0]

    def extra_loss(self, recalled: Tensor, events: Events, weight: Tensor) -> Tensor:
        """Loss of rebuilding the remembered events, newest first, for a sample of the events; dropped ones count 0."""
        if not self.steps:
            return recalled.new_zeros(())
        table, index, recalled = events.table, events.index[::8], recalled[::8]
        code = self.encode(recalled, Events(table, index))
        newest = torch.from_numpy(table.memory[index.cpu().numpy()]).to(index.device)
        total = recalled.new_zeros(())
        for step, asked in enumerate(self.decode(code, recalled, 1 + self.steps)[1:], start=1):
            past = Events(table, (newest - step).clamp(min=0))
            known = (newest - step >= 0) & (table.sequence[newest - step] == table.sequence[index])
            counted = known * weight[index] * weight[newest - step]
            total = total + asked.loss(past, counted, errors=False)[0] / counted.sum().clamp(min=1)
        return 0.25 * total / self.steps


def _without_keep(weight: Tensor) -> Tensor:
    """Rows of an LSTM's weights but for those of its second gate."""
    hidden = len(weight) // 4
    return torch.cat([weight[:hidden], weight[2 * hidden :]])


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
