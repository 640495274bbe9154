"""Predictive distributions of the fields of one event: error, tail probability, quantiles, likeliest values.

A number follows a mixture of logistics in encoded units, and its likelihood is the mass of a bin around it (as in
PixelCNN++, Salimans et al. 2017): tails are plain sigmoids, exact far out in log space, and a count that repeats cannot
make a density endless. A category follows a softmax.

Under a right model each tail probability is uniform, whatever the field's entropy; that makes fields comparable.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, zip_longest
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.features import MISSING, Column, judged_twice
from anomaly.models import gathers, kernels
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
    learned,
    mixture,
    outputs_of,
    scaled,
    total_loss,
)

MOST_ROOMS = 4  # for blocks of as many sizes
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
        if events.index.device.type != "cpu":
            value = events.numeric.t()[self.number_index]
            code = events.category.t()[self.category_index].long()
            lower, upper = self.borders(torch.nan_to_num(value))
            first = torch.tensor(self._first_code, device=code.device)
            return Targets(lower, upper, torch.cat([torch.isnan(value), code == MISSING]), code + first[:, None])
        n = len(events)
        lower, upper = torch.empty(2, len(self.numbers), n)
        code, missing = (
            torch.empty(len(self.categories), n, dtype=torch.int64),
            torch.empty(len(self), n, dtype=torch.bool),
        )
        fields = (np.array(one, dtype=np.int64) for one in (self.number_index, self.category_index, self._first_code))
        gathers.ask(*events.arrays, MISSING, *fields, *(one.numpy() for one in (lower, missing, code)))
        kernels.borders(self._bins, np.float32(RESOLUTION), lower.numpy(), upper.numpy())
        return Targets(lower, upper, missing, code)

    @cached_property
    def _bins(self) -> NDArray[np.float32]:
        """Step, centre and scale of each number, step 0 where it is no count, (Kn, 3)."""
        columns = [field.column for field in self.numbers]
        bins = [(column.step, column.center, column.scale) for column in columns]
        return np.array(bins, dtype=np.float32).reshape(-1, 3)

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


Works = list[Compiled]


class Asked:
    """Heads with their inputs, ready to be asked: all stages of a network for n events.

    Parameters
    ----------
    stages : (inputs, numbers, categories) of each stage
        Two linear layers on the same inputs (n, d): for its numbers, and for its categories if it has any.
    """

    def __init__(self, fields: FieldSet, stages: Sequence[tuple[Tensor, nn.Linear, nn.Linear | None]]) -> None:
        self.fields, self.stages = fields, stages

    @torch.no_grad()
    def errors(self, events: Events, works: Works | None = None) -> Tensor:
        """-ln of each field's tail probability, (n, K) >= 0; NaN where the field is missing.

        `works`, empty at first, keeps what is made of the weights for other events, while the weights stay as they are.
        """
        layout, targets = self.fields.layout, self.fields.targets(events)
        if targets.missing.device.type == "cpu":
            return self._work(targets, works).errors().masked_fill_(targets.missing, torch.nan).t()
        found = [
            judge(layout, *outputs_of(self._parts(), rows), targets.block(rows), loss=False)
            for rows in blocks(len(events), sum(layout.widths), elsewhere=True)
        ]
        return torch.cat(found, dim=1).t()

    @torch.no_grad()
    def total_loss(self, events: Events, works: Works | None = None) -> float:
        """Sum of all losses; `works` as of `errors`."""
        targets = self.fields.targets(events)
        if targets.missing.device.type != "cpu":
            return total_loss(self.fields.layout, self._parts(), targets)
        return self._work(targets, works).total_loss(~targets.missing)

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

    def _work(self, targets: Targets, works: Works | None) -> Compiled:
        works = [] if works is None else works
        if works:
            self._turn(works[0], targets)
        else:
            works.append(self._compiled(targets))
        return works[0]

    def _turn(self, work: Any, targets: Targets) -> None:
        work.turn_to(self._parts(), targets)

    def _compiled(self, targets: Targets) -> Compiled:
        return Compiled(self.fields.layout, self._parts(), targets)

    def _parts(self) -> list[Parts]:
        return [
            Parts(inputs, numbers.weight, numbers.bias, *((None, None) if more is None else (more.weight, more.bias)))
            for inputs, numbers, more in self.stages
        ]


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
        self.width, self.statistics = width, statistics
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

    def forward(self, recalled: Tensor, events: Events) -> Asked:
        """Ask for the fields of n events from what is remembered before each, memory and averages (n, H + Q)."""
        return AskedStages(self, recalled, events) if recalled.device.type == "cpu" else self.plain(recalled, events)

    def plain(self, recalled: Tensor, events: Events) -> Asked:
        """As `forward`, by torch's own operations."""
        first, second = self.base(recalled).chunk(2, dim=1)
        second = second + self.clock(events.numeric[:, self.circles])
        parts = [first, second]
        if self.known:
            what = second
            for at, table in zip(self.known, self.what, strict=True):
                what = what + table(events.category[:, at].long())
            parts.append(what)
        statistics = recalled[:, -self.statistics :]
        inputs = [torch.cat([fn.silu(part), statistics], dim=1) for part in parts]
        layers: list[list[Any]] = [list(self.numbers), list(self.categories)]
        return Asked(self.fields, list(zip_longest(inputs, *layers)))


class CompiledStages(Compiled):
    """`StagedHeads` on the processor: what the stages are given is made block by block too, and forgotten.

    Parameters
    ----------
    flat : Tensor
        What there may be derivatives by: memory and statistics (n, H + Q), weights of `base` and `clock`, tables of
        `what`, and weight and bias of each layer.
    """

    def __init__(
        self,
        heads: StagedHeads,
        events: Events,
        targets: Targets,
        flat: Sequence[Tensor | None],
        *,
        learns: bool = False,
    ) -> None:
        self.given, self.base_weight, self.base_bias, self.clock = (cast("Tensor", one) for one in flat[:4])
        tables = [cast("Tensor", one) for one in flat[4 : 4 + len(heads.known)]]
        rest, nothing = flat[4 + len(heads.known) :], self.given.new_empty(0, 0)
        parts = [Parts(nothing, *rest[at : at + 4]) for at in range(0, len(rest), 4)]  # type: ignore[arg-type]
        super().__init__(heads.fields.layout, parts, targets, learns=learns)
        self.width, self.learns = heads.width, learns
        self.circles, self.known = (np.array(one, dtype=np.int64) for one in (heads.circles, heads.known))
        self.rows = [len(table) for table in tables]
        self.first = np.cumsum([0, *self.rows])[:-1].astype(np.int64)
        looked_up = torch.cat(tables) if tables else self.given.new_empty(0, self.width)
        self.arrays, clock = events.arrays, self.clock.detach().t().contiguous()
        self.about = self.circles, clock.numpy(), self.known, looked_up.numpy(), self.first
        self.turned, self.base_bias_ = self.base_weight.t(), self.base_bias.detach().numpy()
        self.columns = self.width + heads.statistics
        self._rooms = dict[int, Rooms]()
        if learns:
            whole = (self.base_weight, self.base_bias, clock, looked_up)
            self.by_base_weight, self.by_base_bias, self.by_clock, self.by_tables = (torch.zeros_like(x) for x in whole)
            self.by_given = torch.empty_like(self.given)

    def turn_to_events(self, recalled: Tensor, events: Events, targets: Targets) -> None:
        """As `turn_to`: with what is remembered before each of other events."""
        self.given, self.arrays = recalled, events.arrays
        self.turn_to(self.parts, targets)

    def inputs(self, rows: slice) -> Sequence[Tensor]:
        """What the layers of each stage are given for a block, (n, W + Q) each."""
        rooms = self._rooms_of(rows)
        torch.mm(self.given[rows], self.turned, out=rooms.base)
        given = self.given.numpy(), rows.start, *self.arrays
        kernels.stage(rooms.base.numpy(), self.base_bias_, *given, *self.about, *rooms.made)
        return rooms.inputs

    def by_inputs(self, rows: slice) -> Sequence[Tensor]:
        """Where the derivatives by what is activated are to stand."""
        return self._rooms_of(rows).by_inputs

    def take(self, rows: slice) -> None:
        """Derivatives by the memory, the base, the clock and the tables."""
        rooms, given = self._rooms_of(rows), self.given[rows]
        slope, by, by_base = rooms.made[0], rooms.by, rooms.base
        whose = rows.start, *self.arrays, self.circles, self.known, self.first
        found = (one.numpy() for one in (by, by_base, self.by_clock, self.by_tables))
        kernels.stage_back(*whose, slope, *found)
        self.by_base_weight.addmm_(by_base.t(), given)
        self.by_base_bias.addmv_(by_base.t(), by_base.new_ones(len(given)))
        torch.mm(by_base, self.base_weight, out=self.by_given[rows])

    def _rooms_of(self, rows: slice) -> Rooms:
        events = rows.stop - rows.start
        if events not in self._rooms:
            if len(self._rooms) == MOST_ROOMS:
                self._rooms.clear()
            self._rooms[events] = Rooms.of(len(self.parts), events, self.width, self.columns, learns=self.learns)
        return self._rooms[events]

    def by_flat(self) -> Iterator[Tensor | None]:
        """Derivatives, in the order of `flat`."""
        yield from (self.by_given, self.by_base_weight, self.by_base_bias, self.by_clock.t())
        yield from torch.split(self.by_tables, self.rows)
        yield from chain.from_iterable(part[1:] for part in self.gradients)


class Rooms(NamedTuple):
    """Where `CompiledStages` makes what it needs of a block of n events.

    base : (n, 2 W); made : slopes (stages, n, W) or none, and inputs (stages, n, W + Q); by : (stages, n, W).
    """

    base: Tensor
    made: tuple[NDArray[np.float32], NDArray[np.float32]]
    inputs: Sequence[Tensor]
    by: Tensor
    by_inputs: Sequence[Tensor]

    @classmethod
    def of(cls, stages: int, events: int, width: int, columns: int, *, learns: bool) -> Rooms:
        """For n = `events`."""
        inputs, by = torch.empty(stages, events, columns), torch.empty(stages, events if learns else 0, width)
        made = torch.empty_like(by).numpy(), inputs.numpy()
        return cls(torch.empty(events, 2 * width), made, inputs.unbind(), by, by.unbind())


class StagesLoss(torch.autograd.Function):
    """Weighted loss of `StagedHeads` on the processor, as `anomaly.models.likelihood.Heads`."""

    @staticmethod
    def forward(
        ctx: Any,
        heads: StagedHeads,
        events: Events,
        targets: Targets,
        event_weight: Tensor,
        wanted: bool,
        *flat: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses, each event by its weight (n,), and the errors (K, n) if they are wanted."""
        work = CompiledStages(heads, events, targets, flat, learns=True)
        return learned(ctx, work, targets, event_weight, wanted, work.by_flat)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Scale what `forward` worked out."""
        return (None,) * 5 + scaled(ctx, by_total)


class AskedStages(Asked):
    """`StagedHeads` on the processor, ready to be asked for n events from what is remembered before each."""

    def __init__(self, heads: StagedHeads, recalled: Tensor, events: Events) -> None:
        super().__init__(heads.fields, [])
        self.heads, self.recalled, self.events = heads, recalled, events

    def loss(self, events: Events, weight: Tensor, *, errors: bool = True) -> tuple[Tensor, Tensor]:
        """Sum of all losses, each event by its weight (n,), with a gradient; and the errors (n, K) if wanted."""
        targets = self.fields.targets(events)
        total, found = StagesLoss.apply(self.heads, self.events, targets, weight, errors, *self._flat())  # type: ignore[no-untyped-call]
        return total, found.t()

    def predict(self) -> Prediction:
        """Distributions of the fields."""
        return self.heads.plain(self.recalled, self.events).predict()

    def _turn(self, work: Any, targets: Targets) -> None:
        work.turn_to_events(self.recalled, self.events, targets)

    def _compiled(self, targets: Targets) -> Compiled:
        return CompiledStages(self.heads, self.events, targets, self._flat())

    def _flat(self) -> list[Tensor | None]:
        heads = self.heads
        layers: list[list[Any]] = [list(heads.numbers), list(heads.categories)]
        weights = [
            one
            for pair in zip_longest(*layers)
            for layer in pair
            for one in ((None, None) if layer is None else (layer.weight, layer.bias))
        ]
        tables: list[Any] = [table.weight for table in heads.what]
        return [self.recalled, heads.base.weight, heads.base.bias, heads.clock.weight, *tables, *weights]


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
