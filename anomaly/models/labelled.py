"""The network that learns from labels: a memory of each entity's history, and a head that says what an event is.

The head reads what is remembered, the event itself, what the remembered events average to, how far the event is from
that, and what else is known of it. Its numbers come as they are and cut into bins.

Letters used in shapes: N events, E extra inputs, A averaged columns, H hidden units, M members, O outputs, D numbers
that are cut into bins, n events of one step of work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.features import Column
from anomaly.models.backbones import BOTH_ENDS
from anomaly.models.base import averaged, statistics_width
from anomaly.models.batches import CLIP, Events, Table
from anomaly.models.bins import Bins
from anomaly.models.cells import EventEmbedding, Memory
from anomaly.models.heads import FieldSet
from anomaly.models.members import Members
from anomaly.models.training import Mask, Network, autocast, scan
from anomaly.sequences import Sequences

Float = NDArray[np.float64]

LOUDER = 4.0  # weights of what is read, beside torch's usual start, in a memory that is to last


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a network; see `anomaly.models.supervised.Supervised`."""

    backbone: str
    hidden: int
    reach: int
    width: int
    members: int
    dropout: float
    outputs: int
    extra: int
    prior: bool


class LabelledNetwork(Network):
    """Memory, and a head with O outputs; with ``bilstm`` a second memory that reads from the end.

    With a `prior` the last column of what is known besides is a score that was there before any label. The output is
    then a line of it, and what the head adds to that, nothing at first.
    """

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column], sizes: Sizes) -> None:
        super().__init__()
        hidden, both = sizes.hidden, sizes.backbone == BOTH_ENDS
        self.memory = Memory(numeric, category, hidden, "lstm" if both else sizes.backbone)
        self.fields = FieldSet((), ())  # it says one thing of an event, and predicts no field of it
        self.event = EventEmbedding(numeric, category)
        self.averaged = averaged(numeric)
        numbers = len(numeric) + 2 * len(self.averaged) + sizes.extra
        self.bins = Bins(numbers)
        known = self.event.size + statistics_width(numeric) + 2 * len(self.averaged) + 2 * sizes.extra + self.bins.size
        inputs = hidden * (1 + both) + known
        self.head = Members(sizes.members, inputs, sizes.width, sizes.outputs, sizes.dropout)
        self.prior = sizes.prior
        if sizes.prior:
            self.register_buffer("line", torch.tensor([1.0, 0.0]))  # slope and shift
            self.head.silence()
        self.from_end = Memory(numeric, category, hidden) if both else None
        for memory in (self.memory, self.from_end):
            if memory is not None and sizes.reach:
                keep_long(memory, sizes.reach)

    def draw_line(self, slope: float, shift: float) -> None:
        """Set what a prior means as an output."""
        self.get_buffer("line").copy_(torch.tensor([slope, shift]))

    def each(self, memory: Tensor, events: Events, extra: Tensor) -> Tensor:
        """Outputs of each member for n events, (M, n, O), from the memory of each (n, H), or of both ends."""
        extra, prior = self._apart(extra)
        event = self.event(events)
        away = torch.nan_to_num(self._away(events)).clamp(-CLIP, CLIP)
        codes = self.bins(self._numbers(events, extra))
        said: Tensor = self.head(torch.cat([memory, event, events.statistics, away, extra, codes], dim=1))
        return said.float() + prior

    def outputs(self, memory: Tensor, events: Events, extra: Tensor) -> Tensor:
        """Mean over the members, (n, O)."""
        return self.each(memory, events, extra).mean(dim=0)

    def numbers(self, events: Events, extra: Tensor) -> Tensor:
        """What is cut into bins, (n, D), NaN = missing: numbers, how far they are from the usual, extra inputs."""
        return self._numbers(events, self._apart(extra)[0])

    def _apart(self, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Extra inputs, and what the prior says, (n, 1), 0 where there is none."""
        if not self.prior:
            return extra, extra.new_zeros(len(extra), 1)
        slope, shift = self.get_buffer("line")
        return extra[:, :-1], slope * extra[:, -1:] + shift

    def _numbers(self, events: Events, extra: Tensor) -> Tensor:
        scaled, missing = extra.chunk(2, dim=1)
        return torch.cat([events.numeric, self._away(events), torch.where(missing > 0, torch.nan, scaled)], dim=1)

    def _away(self, events: Events) -> Tensor:
        """Each averaged number less the mean of the remembered ones, and that in units of their spread, (n, 2 A)."""
        mean, spread = events.statistics[:, 1::2], events.statistics[:, 2::2]
        less = events.numeric[:, self.averaged] - mean
        return torch.cat([less, less / spread], dim=1)

    def with_other_end(self, memory: Tensor, index: Tensor, table: Table, offsets: NDArray[np.int64]) -> Tensor:
        """Beside the memory before the last events `index` (n,), with ``bilstm``, that of reading back to the first."""
        if self.from_end is None or not len(index):
            return memory
        number = table.sequence[index]
        borders = torch.tensor(offsets, device=index.device)
        steps = torch.arange(int((index - borders[number]).max()) + 1, device=index.device)
        at = torch.maximum(index - steps[:, None], borders[number])  # past the first event it is read on, unheeded
        output, _ = self.from_end.read(Events(table, at.view(-1)), self.from_end.empty(len(index)))
        last = output[index - borders[number], torch.arange(len(index), device=index.device)]
        return torch.cat([memory, last], dim=1)


@dataclass(frozen=True)
class Extra:
    """What is known of events besides their columns, on a common scale.

    center, scale : (E,), mean and standard deviation over the training events.
    """

    center: Float
    scale: Float

    @classmethod
    def of(cls, values: Float, train: Mask) -> Extra:
        """Learn the scale of values (N, E) on the training events; a column that is constant or missing counts 0."""
        known = np.isfinite(values[train])
        number = np.maximum(known.sum(axis=0), 1)
        given = np.where(known, values[train], 0.0)
        center = given.sum(axis=0) / number
        scale = np.sqrt((np.where(known, given - center, 0.0) ** 2).sum(axis=0) / number)
        return cls(center, np.where(scale > 0, scale, 1.0))

    def table(self, values: Float, device: torch.device) -> Tensor:
        """(N, E) -> (N, 2 E): standardised, logarithmic far out (asinh), 0 where missing; then a flag for missing."""
        missing = np.isnan(values)
        scaled = np.arcsinh((np.where(missing, self.center, values) - self.center) / self.scale)
        return torch.from_numpy(np.concatenate([scaled, missing], axis=1).astype(np.float32)).to(device)


def keep_long(memory: Memory, reach: int) -> None:
    """Let the gates start with memories of 2 to `reach` steps.

    As in Tallec and Ollivier (2018): a forget bias of ln(T - 1) keeps what was read for about T steps. With the usual
    start near 0 half of it is gone after each step, and a gradient does not reach a hundred steps back. Gates that let
    in little at a time would write down little of a single event; so what is read starts with larger weights.
    """
    gates = dict(memory.get_submodule("lstm").named_parameters())
    hidden = memory.hidden
    kept = torch.log(torch.empty(hidden).uniform_(1.0, max(2.0, reach - 1.0)))
    with torch.no_grad():
        gates["bias_hh_l0"].zero_()  # torch adds up two biases
        gates["bias_ih_l0"].zero_()
        gates["weight_ih_l0"].mul_(LOUDER)
        gates["bias_ih_l0"][: 2 * hidden] = torch.cat([-kept, kept])  # its order: input, forget, cell, output


def all_outputs(
    network: LabelledNetwork, table: Table, extra: Tensor, sequences: Sequences, mask: Mask | None
) -> Float:
    """Outputs for the events of `mask`, (N, O); NaN for the others."""
    found = np.full((len(sequences), network.head.outputs), np.nan)
    for events, recalled in scan(network, table, sequences, mask):
        with autocast(recalled.device):
            memory, index = recalled[:, : network.memory.hidden], events.index
            both = network.with_other_end(memory, index, table, sequences.offsets)
            output = network.outputs(both, events, extra[index])
        found[index.cpu().numpy()] = output.double().cpu().numpy()
    return found
