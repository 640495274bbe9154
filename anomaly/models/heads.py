"""Predictive distributions of the fields of one event: error, tail probability, quantiles, likeliest values.

A number follows a mixture of logistics in encoded units, and its likelihood is the mass of a bin around it (as in
PixelCNN++, Salimans et al. 2017): tails are plain sigmoids, exact far out in log space, and a count that repeats cannot
make a density endless. A category follows a softmax.

Under a right model each tail probability is uniform, whatever the field's entropy; that makes fields comparable.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.features import MISSING, Column, judged_twice
from anomaly.models import kernels
from anomaly.models.batches import Events
from anomaly.models.cells import Codes
from anomaly.models.kernels import COMPONENTS
from anomaly.models.likelihood import (
    Compiled,
    Heads,
    Layout,
    Parts,
    Targets,
    blocks,
    judge,
    mixture,
    outputs_of,
    total_loss,
)

RESOLUTION = 0.01  # half the width of a number's bin, in encoded units: repeated prices must not make a loss endless
EXPLAINED = ("number", "distance", "speed")  # kinds of numbers that the categories of an event may explain


@dataclass(frozen=True)
class Field:
    """A scored column and its index among the numeric or the category columns."""

    column: Column
    index: int


@dataclass(frozen=True)
class FieldSet:
    """The K scored fields of a layout: the numbers first, then the categories, each in the order of the stages.

    With `given` the numbers that a category may explain (an amount, a distance) are fields twice: as such, and given
    the categories of their own event.
    """

    numbers: tuple[Field, ...]
    categories: tuple[Field, ...]

    @classmethod
    def of(cls, numeric: Sequence[Column], category: Sequence[Column], *, given: bool = False) -> FieldSet:
        """Scored fields of the columns."""

        def scored(columns: Sequence[Column]) -> list[Field]:
            return [Field(column, index) for index, column in enumerate(columns) if column.scored]

        numbers, categories = scored(numeric), scored(category)
        if given and any(field.column.kind == "category" for field in categories):
            explained = [field for field in numbers if field.column.kind in EXPLAINED]
            numbers += [Field(field.column.given(), field.index) for field in explained]
        return cls(*(tuple(sorted(one, key=lambda field: field.column.stage)) for one in (numbers, categories)))

    def __len__(self) -> int:
        """Return K."""
        return len(self.numbers) + len(self.categories)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The K scored columns."""
        return tuple(field.column for field in (*self.numbers, *self.categories))

    @property
    def evidence_weight(self) -> NDArray[np.float64]:
        """What each field counts where surprises are added up over events, (K,)."""
        return np.array([0.0 if column.cumulative else column.weight for column in self.columns])

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Fields that judge the same number in two ways, (P, 2)."""
        return judged_twice(self.columns)

    @cached_property
    def number_index(self) -> list[int]:
        """Numeric columns that are fields."""
        return [field.index for field in self.numbers]

    @cached_property
    def category_index(self) -> list[int]:
        """Category columns that are fields."""
        return [field.index for field in self.categories]

    @cached_property
    def layout(self) -> Layout:
        """How the outputs of a network for these fields are arranged."""
        runs = [(size, len(list(run))) for size, run in groupby(field.column.size for field in self.categories)]
        tails = tuple(field.column.tail for field in self.numbers)
        return Layout(tails, COMPONENTS, tuple((number, size) for size, number in runs))

    def targets(self, events: Events) -> Targets:
        """What happened, as the heads are asked."""
        value = events.numeric.t()[self.number_index]
        code = events.category.t()[self.category_index].long()
        lower, upper = self.borders(torch.nan_to_num(value))
        first = torch.tensor(self._first_code, device=code.device)
        return Targets(lower, upper, torch.cat([torch.isnan(value), code == MISSING]), code + first[:, None])

    @cached_property
    def _first_code(self) -> list[int]:
        """Where the outputs of each category begin among those of all."""
        sizes = [field.column.size for field in self.categories]
        return [sum(sizes[:at]) for at in range(len(sizes))]

    @property
    def number_width(self) -> int:
        """Outputs of a network for the numbers."""
        return 3 * COMPONENTS * len(self.numbers)

    @property
    def category_width(self) -> int:
        """Outputs of a network for the categories."""
        return sum(field.column.size for field in self.categories)

    def borders(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper border of the bin that holds each value, in encoded units, (Kn, n) each.

        A bin reaches `RESOLUTION` to both sides, that of a count at least half-way to the next ones.
        """
        lower, upper = value - RESOLUTION, value + RESOLUTION
        for at, field in enumerate(self.numbers):
            column = field.column
            if column.step:  # counts stand on an asinh scale of unit 1
                raw = torch.sinh(value[at] * column.scale + column.center).round()
                for border, step, outer in ((lower, -column.step, torch.minimum), (upper, column.step, torch.maximum)):
                    half_way = (torch.asinh(raw + step) - column.center) / column.scale
                    border[at] = outer(half_way, border[at])
        return lower, upper


@dataclass(frozen=True)
class Prediction:
    """Distributions of K fields for n events, as a network gave them.

    numbers : (n, Kn * 3 * M), for each field M logits, M locations, M raw spreads; categories : (n, codes) logits.
    """

    fields: FieldSet
    numbers: Tensor
    categories: Tensor

    def losses(self, events: Events) -> Tensor:
        """Negative log-likelihood of each field, (n, K) in nats, >= 0; 0 where the field is missing."""
        return self._judged(events, loss=True)

    def errors(self, events: Events) -> Tensor:
        """-ln of each field's tail probability, (n, K) >= 0, higher = stranger; NaN where the field is missing."""
        return self._judged(events, loss=False)

    @torch.no_grad()
    def _judged(self, events: Events, *, loss: bool) -> Tensor:
        numbers, categories = (part.float().t().contiguous() for part in (self.numbers, self.categories.clone()))
        return judge(self.fields.layout, numbers, categories, self.fields.targets(events), loss=loss).t()

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """Quantiles of the numbers in encoded units, by bisection: (n, Kn, len(probabilities))."""
        weight, location, scale = mixture(self.fields.layout.numbers(self.numbers.float().t().contiguous()))
        found = []
        for probability in probabilities:
            low = (location - 40 * scale).min(dim=1).values
            high = (location + 40 * scale).max(dim=1).values
            for _ in range(60):
                middle = (low + high) / 2
                z = (middle[:, None] - location) / scale
                below = torch.logsumexp(weight - fn.softplus(-z), dim=1).exp() < probability
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            found.append((low + high).t() / 2)
        return torch.stack(found, dim=2)

    def probabilities(self) -> list[Tensor]:
        """Probability of each code, (n, codes), for each category."""
        sizes = [field.column.size for field in self.fields.categories]
        return [fn.softmax(logits, dim=1) for logits in torch.split(self.categories.float(), sizes, dim=1)]


@dataclass(frozen=True)
class Asked:
    """Heads with their inputs, ready to be asked: all stages of a network for n events.

    Each stage is two linear layers on the same inputs (n, d): for its numbers, and for its categories if it has any.
    """

    fields: FieldSet
    stages: Sequence[tuple[Tensor, nn.Linear, nn.Linear | None]]

    @torch.no_grad()
    def errors(self, events: Events) -> Tensor:
        """-ln of each field's tail probability, (n, K) >= 0; NaN where the field is missing."""
        layout, targets, parts = self.fields.layout, self.fields.targets(events), self._parts()
        inputs = parts[0].inputs
        if inputs.device.type == "cpu":
            return Compiled(layout, parts, targets).errors().masked_fill_(targets.missing, torch.nan).t()
        found = [
            judge(layout, *outputs_of(parts, rows), targets.block(rows), loss=False)
            for rows in blocks(inputs, sum(layout.widths))
        ]
        return torch.cat(found, dim=1).t()

    @torch.no_grad()
    def total_loss(self, events: Events) -> float:
        """Sum of all losses."""
        return total_loss(self.fields.layout, self._parts(), self.fields.targets(events))

    def loss(self, events: Events, weight: Tensor, *, errors: bool = True) -> tuple[Tensor, Tensor]:
        """Sum of all losses, each event by its weight (n,), with a gradient; and the errors (n, K) if wanted."""
        flat = [one for part in self._parts() for one in part]
        total, found = Heads.apply(self.fields.layout, self.fields.targets(events), weight, errors, *flat)  # type: ignore[no-untyped-call]
        return total, found.t()

    def predict(self) -> Prediction:
        """Distributions of the fields."""
        numbers = [layer(inputs) for inputs, layer, _ in self.stages]
        categories = [layer(inputs) for inputs, _, layer in self.stages if layer is not None]
        return Prediction(self.fields, torch.cat(numbers, dim=1), torch.cat(categories, dim=1))

    def _parts(self) -> list[Parts]:
        return [
            Parts(inputs, numbers.weight, numbers.bias, *((None, None) if more is None else (more.weight, more.bias)))
            for inputs, numbers, more in self.stages
        ]


class Stages(torch.autograd.Function):
    """Inputs of all stages of heads on the processor, see `StagedHeads`."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: tuple[int, list[int], list[int]],
        events: Events,
        base: Tensor,
        clock: Tensor,
        *tables: Tensor,
    ) -> tuple[Tensor, ...]:
        """(n, 2 W) of the memory and (W, circles) of the clock -> as many inputs (n, W + Q) as there are stages.

        layout : number of stages, columns of the clock, columns of the categories that are looked up in `tables`.
        """
        stages, circles, known = layout
        n, width = len(base), clock.shape[0]
        first = np.cumsum([0, *(len(table) for table in tables)])[:-1].astype(np.int64)
        rows = torch.cat(tables) if tables else base.new_empty(0, width)
        ctx.first, ctx.rows = (np.array(known, dtype=np.int64), first), [len(table) for table in tables]
        before, out = (base.new_empty(stages, n, width + more) for more in (0, events.statistics.shape[1]))
        kernels.stage(
            *(base.contiguous().numpy(), events.numeric.numpy(), np.array(circles, dtype=np.int64)),
            *(clock.t().contiguous().numpy(), events.category.numpy(), ctx.first[0], rows.numpy(), first),
            *(events.statistics.numpy(), before.numpy(), out.numpy()),
        )
        ctx.save_for_backward(events.category, events.numeric[:, circles], before)
        return out.unbind()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *by_out: Tensor) -> tuple[Tensor | None, ...]:
        """Derivatives by the base, the clock and the tables."""
        category, clock, before = ctx.saved_tensors
        width = before.shape[2]
        by_base, by_tables = before.new_empty(len(category), 2 * width), before.new_zeros(sum(ctx.rows), width)
        by = torch.stack([one[:, :width] for one in by_out])
        kernels.stage_back(category.numpy(), *ctx.first, before.numpy(), by.numpy(), by_base.numpy(), by_tables.numpy())
        return None, None, by_base, by_base[:, width:].t() @ clock, *torch.split(by_tables, ctx.rows)


class StagedHeads(nn.Module):
    """Fields predicted in stages: when, from the memory; what, also from the clock; the numbers once more, given what.

    An amount is judged for the entity and the hour, or a thief who buys jewellery would be excused by its price. It is
    judged given its merchant category as well, or each honest holiday would be as strange as he. The first two stages
    share one matrix product; the third adds to the second what each category of the event brings.
    """

    def __init__(
        self, numeric: Sequence[Column], category: Sequence[Column], memory: int, statistics: int, width: int
    ) -> None:
        super().__init__()
        self.fields = FieldSet.of(numeric, category, given=True)
        self.width = width
        self.circles = [index for index, column in enumerate(numeric) if column.kind == "circle"]
        self.base = nn.Linear(memory + statistics, 2 * width)
        self.clock = nn.Linear(len(self.circles), width, bias=False)
        given = any(field.column.stage == 3 for field in self.fields.numbers)
        self.known = [field.index for field in self.fields.categories if given and field.column.kind == "category"]
        self.what = nn.ModuleList(Codes(category[index].size, width) for index in self.known)
        for table in self.what:
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
        # Each stage also sees the remembered averages directly: levels pass through without saturating.
        self.numbers = nn.ModuleList()
        self.categories = nn.ModuleList()
        for stage in (1, 2, 3) if given else (1, 2):
            numbers = sum(3 * COMPONENTS for field in self.fields.numbers if field.column.stage == stage)
            self.numbers.append(spread_locations(linear(width + statistics, numbers)))
        for stage in (1, 2):
            codes = sum(field.column.size for field in self.fields.categories if field.column.stage == stage)
            self.categories.append(linear(width + statistics, codes))

    def forward(self, memory: Tensor, events: Events) -> Asked:
        """Ask for the fields of n events from the memory before each, (n, H)."""
        base = self.base(torch.cat([memory, events.statistics], dim=1))
        layers: list[list[Any]] = [list(self.numbers), list(self.categories)]
        if base.device.type == "cpu":
            tables = [table.weight for table in self.what]
            layout = len(self.numbers), self.circles, self.known
            given = Stages.apply(layout, events, base, self.clock.weight, *tables)  # type: ignore[no-untyped-call]
            return Asked(self.fields, list(zip_longest(given, *layers)))
        first, second = base.chunk(2, dim=1)
        second = second + self.clock(events.numeric[:, self.circles])
        parts = [first, second]
        if self.known:
            what = second
            for at, table in zip(self.known, self.what, strict=True):
                what = what + table(events.category[:, at].long())
            parts.append(what)
        inputs = [torch.cat([fn.silu(part), events.statistics], dim=1) for part in parts]
        return Asked(self.fields, list(zip_longest(inputs, *layers)))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer, possibly without outputs (a table without categories), which torch would warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        return nn.Linear(inputs, outputs)


def spread_locations(layer: nn.Linear) -> nn.Linear:
    """Start the components of each mixture apart, so that they do not all learn the same."""
    with torch.no_grad():
        bias = layer.bias.view(-1, 3, COMPONENTS)
        bias[:, 1] = torch.linspace(-1.5, 1.5, COMPONENTS)
    return layer
