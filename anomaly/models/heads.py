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
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.features import MISSING, Column
from anomaly.models.batches import Events

COMPONENTS = 4
SMALLEST_SCALE = 0.02  # of a mixture component, in encoded units
RESOLUTION = 0.01  # half the width of a number's bin, in encoded units: repeated prices must not make a loss endless
LOG_2 = 0.6931471805599453
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

    @cached_property
    def number_index(self) -> list[int]:
        """Numeric columns that are fields."""
        return [field.index for field in self.numbers]

    @cached_property
    def category_index(self) -> list[int]:
        """Category columns that are fields."""
        return [field.index for field in self.categories]

    @cached_property
    def category_runs(self) -> list[int]:
        """How many categories in a row have as many codes, run by run."""
        return [len(list(run)) for _, run in groupby(field.column.size for field in self.categories)]

    @property
    def number_width(self) -> int:
        """Outputs of a network for the numbers."""
        return 3 * COMPONENTS * len(self.numbers)

    @property
    def category_width(self) -> int:
        """Outputs of a network for the categories."""
        return sum(field.column.size for field in self.categories)

    def borders(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper border of the bin that holds each value, in encoded units, (n, Kn) each.

        A bin reaches `RESOLUTION` to both sides, that of a count at least half-way to the next ones.
        """
        lower, upper = value - RESOLUTION, value + RESOLUTION
        for at, field in enumerate(self.numbers):
            column = field.column
            if column.step:  # counts stand on an asinh scale of unit 1
                raw = torch.sinh(value[:, at] * column.scale + column.center).round()
                for border, step, outer in ((lower, -column.step, torch.minimum), (upper, column.step, torch.maximum)):
                    half_way = (torch.asinh(raw + step) - column.center) / column.scale
                    border[:, at] = outer(half_way, border[:, at])
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
        tails = self._tails(events)
        return torch.cat([tails.losses(), *(loss_of(*pair) for pair in self._pairs(events))], dim=1)

    @torch.no_grad()
    def errors(self, events: Events) -> Tensor:
        """-ln of each field's tail probability, (n, K) >= 0, higher = stranger; NaN where the field is missing."""
        tails = self._tails(events)
        return torch.cat([tails.errors(self.fields), *(error_of(*pair) for pair in self._pairs(events))], dim=1)

    def judge(self, events: Events) -> tuple[Tensor, Tensor]:
        """Losses and errors of each field, (n, K) each; errors carry no gradient."""
        tails, pairs = self._tails(events), self._pairs(events)
        losses = torch.cat([tails.losses(), *(loss_of(*pair) for pair in pairs)], dim=1)
        with torch.no_grad():
            errors = torch.cat([tails.errors(self.fields), *(error_of(*pair) for pair in pairs)], dim=1)
        return losses, errors

    def _tails(self, events: Events) -> Tails:
        given = events.numeric[:, self.fields.number_index]
        missing = torch.isnan(given)
        lower, upper = self.fields.borders(torch.nan_to_num(given))
        weight, location, scale = self._mixture
        a = (upper[:, :, None] - location) / scale
        b = (lower[:, :, None] - location) / scale
        return Tails(missing, a, b, weight - fn.softplus(-a), fn.softplus(b), weight)

    def _pairs(self, events: Events) -> list[tuple[Tensor, Tensor]]:
        """Codes (n, G) and log probabilities (n, G, codes) of each run of categories with as many codes."""
        code = events.category[:, self.fields.category_index]
        pairs, first = [], 0
        for number, logits in zip(self.fields.category_runs, self._runs, strict=True):
            pairs.append((code[:, first : first + number], fn.log_softmax(logits, dim=2)))
            first += number
        return pairs

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """Quantiles of the numbers in encoded units, by bisection: (n, Kn, len(probabilities))."""
        weight, location, scale = self._mixture
        found = []
        for probability in probabilities:
            low = (location - 40 * scale).min(dim=2).values
            high = (location + 40 * scale).max(dim=2).values
            for _ in range(60):
                middle = (low + high) / 2
                z = (middle[:, :, None] - location) / scale
                below = torch.logsumexp(weight - fn.softplus(-z), dim=2).exp() < probability
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            found.append((low + high) / 2)
        return torch.stack(found, dim=2)

    def probabilities(self) -> list[Tensor]:
        """Probability of each code, (n, codes), for each category."""
        return [fn.softmax(logits, dim=1) for run in self._runs for logits in run.unbind(dim=1)]

    @cached_property
    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, locations and scales, each (n, Kn, M)."""
        parts = self.numbers.float().view(len(self.numbers), len(self.fields.numbers), 3, COMPONENTS).unbind(dim=2)
        return fn.log_softmax(parts[0], dim=2), parts[1], fn.softplus(parts[2]) + SMALLEST_SCALE

    @cached_property
    def _runs(self) -> list[Tensor]:
        """Logits (n, G, codes) of each run of categories with as many codes: many flags are judged at once."""
        sizes = [field.column.size for field in self.fields.categories]
        widths, at = [], 0
        for number in self.fields.category_runs:
            widths.append(number * sizes[at])
            at += number
        parts = torch.split(self.categories.float(), widths, dim=1)
        return [
            part.reshape(len(part), number, -1) for part, number in zip(parts, self.fields.category_runs, strict=True)
        ]


@dataclass(frozen=True)
class Tails:
    """What is on either side of the bin from b to a that holds each number, by component: (n, Kn, M) each.

    Of the bin a component holds sigmoid(a) - sigmoid(b); its log is exact however far out.

    log(sigmoid(a) - sigmoid(b)) = -softplus(-a) - softplus(b) + log(1 - exp(b - a))
    """

    missing: Tensor  # (n, Kn)
    a: Tensor
    b: Tensor
    below: Tensor  # log of what lies below a
    above: Tensor  # -log of the share of the component that lies above b
    weight: Tensor

    def losses(self) -> Tensor:
        """(n, Kn)."""
        inside = self.below - self.above + torch.log1p(-torch.exp(self.b - self.a))
        return (-torch.logsumexp(inside, dim=2)).masked_fill(self.missing, 0.0)

    def errors(self, fields: FieldSet) -> Tensor:
        """(n, Kn)."""
        log_above = torch.logsumexp(self.weight - self.above, dim=2)
        log_below = torch.logsumexp(self.below, dim=2)
        twice = (torch.minimum(log_above, log_below) + LOG_2).clamp(max=0.0)
        tails = {"upper": log_above, "lower": log_below, "both": twice}
        wanted = [tails[field.column.tail][:, at] for at, field in enumerate(fields.numbers)]
        error = -torch.stack(wanted, dim=1) if wanted else -log_above
        return error.clamp(min=0.0).masked_fill(self.missing, torch.nan)


def loss_of(code: Tensor, logs: Tensor) -> Tensor:
    """Loss of codes (n, G) under log probabilities (n, G, codes), (n, G); 0 where the code is missing."""
    return (-logs.gather(2, code[:, :, None]).squeeze(2)).masked_fill(code == MISSING, 0.0)


def error_of(code: Tensor, logs: Tensor) -> Tensor:
    """-ln of the tail, (n, G): all that is no likelier than what happened; NaN where the code is missing."""
    share = logs.exp()
    above = share.masked_fill(logs <= logs.gather(2, code[:, :, None]), 0.0)
    likelier = above.sum(dim=2)
    tail = (share - above).sum(dim=2).clamp(1e-30, 1.0)
    # The likeliest code has an error of 0 exactly: most events have it, and calibration ranks them.
    error = -torch.where(likelier < 0.5, torch.log1p(-likelier), tail.log())
    return error.masked_fill(code == MISSING, torch.nan)


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
        self.what = nn.ModuleList(nn.Embedding(category[index].size, width) for index in self.known)
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

    def forward(self, memory: Tensor, events: Events) -> Prediction:
        """Predict the fields of n events from the memory before each, (n, H)."""
        first, second = self.base(torch.cat([memory, events.statistics], dim=1)).chunk(2, dim=1)
        second = second + self.clock(events.numeric[:, self.circles])
        parts = [first, second]
        if self.known:
            what = [table(events.category[:, at]) for at, table in zip(self.known, self.what, strict=True)]
            parts.append(second + torch.stack(what).sum(dim=0))
        stages = [torch.cat([fn.silu(part), events.statistics], dim=1) for part in parts]
        return Prediction(
            self.fields,
            torch.cat([head(part) for head, part in zip(self.numbers, stages, strict=True)], dim=1),
            torch.cat([head(part) for head, part in zip(self.categories, stages[:2], strict=True)], dim=1),
        )


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
