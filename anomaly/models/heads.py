"""Predictive distributions of the fields of one event: error, tail probability, quantiles, likeliest values.

A number follows a mixture of logistics in encoded units (as in PixelCNN++, Salimans et al. 2017, but continuous): its
distribution function and its tails are plain sigmoids, exact far out in log space. A category follows a softmax.

Under a right model each tail probability is uniform, whatever the field's entropy; that makes fields comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.features import MISSING, Column
from anomaly.models.batches import Events

COMPONENTS = 4
SMALLEST_SCALE = 0.02  # of a mixture component, in encoded units: repeated prices must not make a density infinite
LOG_2 = 0.6931471805599453


@dataclass(frozen=True)
class Field:
    """A scored column and its index among the numeric or the category columns."""

    column: Column
    index: int


@dataclass(frozen=True)
class FieldSet:
    """The K scored fields of a layout: the numbers first, then the categories, each in the order of the stages."""

    numbers: tuple[Field, ...]
    categories: tuple[Field, ...]

    @classmethod
    def of(cls, numeric: Sequence[Column], category: Sequence[Column]) -> FieldSet:
        """Scored fields of the columns."""

        def scored(columns: Sequence[Column]) -> tuple[Field, ...]:
            fields = [Field(column, index) for index, column in enumerate(columns) if column.scored]
            return tuple(sorted(fields, key=lambda field: field.column.stage))

        return cls(scored(numeric), scored(category))

    def __iter__(self) -> object:
        """Fields in the order of the columns of `Prediction.errors`."""
        return iter((*self.numbers, *self.categories))

    def __len__(self) -> int:
        """Return K."""
        return len(self.numbers) + len(self.categories)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The K scored columns."""
        return tuple(field.column for field in (*self.numbers, *self.categories))

    @property
    def weight(self) -> NDArray[np.float64]:
        """What each field counts, (K,)."""
        return np.array([column.weight for column in self.columns])

    @cached_property
    def number_index(self) -> list[int]:
        """Numeric columns that are fields."""
        return [field.index for field in self.numbers]

    @property
    def number_width(self) -> int:
        """Outputs of a network for the numbers."""
        return 3 * COMPONENTS * len(self.numbers)

    @property
    def category_width(self) -> int:
        """Outputs of a network for the categories."""
        return sum(field.column.size for field in self.categories)

    def step(self, value: Tensor) -> Tensor:
        """Half the distance to the next lower count, in encoded units, (n, Kn); 0 for continuous numbers.

        The tail of a count must hold the count itself.
        """
        steps = torch.zeros_like(value)
        for at, field in enumerate(self.numbers):
            column = field.column
            if column.step:
                transformed = value[:, at].double() * column.scale + column.center
                raw = torch.sinh(transformed) * column.unit if column.unit else transformed
                lower = torch.asinh((raw - column.step) / column.unit) if column.unit else raw - column.step
                steps[:, at] = ((transformed - lower) / column.scale).to(value.dtype)
        return steps


@dataclass(frozen=True)
class Prediction:
    """Distributions of K fields for n events, as a network gave them.

    numbers : (n, Kn * 3 * M), for each field M logits, M locations, M raw spreads; categories : (n, sum of codes) logits.
    """

    fields: FieldSet
    numbers: Tensor
    categories: Tensor

    def losses(self, events: Events) -> Tensor:
        """Negative log-likelihood of each field, (n, K) in nats of encoded units; 0 where the field is missing."""
        value, known = self._values(events)
        weight, location, scale = self._mixture()
        z = (value[:, :, None] - location) / scale
        density = torch.logsumexp(weight - z - 2 * fn.softplus(-z) - scale.log(), dim=2)
        parts = [torch.where(known, -density, 0.0)]
        for code, logits in self._codes(events):
            loss = fn.cross_entropy(logits, code, reduction="none")
            parts.append(torch.where(code == MISSING, 0.0, loss)[:, None])
        return torch.cat(parts, dim=1)

    def errors(self, events: Events) -> Tensor:
        """-ln of each field's tail probability, (n, K) >= 0, higher = stranger; NaN where the field is missing."""
        value, known = self._values(events)
        weight, location, scale = self._mixture()
        step = self.fields.step(value)
        tails = [field.column.tail for field in self.fields.numbers]
        sign = value.new_tensor([-1.0 if tail == "lower" else 1.0 for tail in tails])
        z = ((value - sign * step)[:, :, None] - location) / scale
        log_tail = torch.logsumexp(weight - fn.softplus(sign[:, None] * z), dim=2)
        both = [at for at, tail in enumerate(tails) if tail == "both"]
        if both:  # a continuous number, or a count judged from its middle
            z = (value[:, both, None] - location[:, both]) / scale[:, both]
            lower = torch.logsumexp(weight[:, both] - fn.softplus(-z), dim=2)
            log_tail[:, both] = (torch.minimum(log_tail[:, both], lower) + LOG_2).clamp(max=0.0)
        parts = [torch.where(known, -log_tail, torch.nan)]
        for code, logits in self._codes(events):
            probability = fn.softmax(logits, dim=1)
            own = probability.gather(1, code[:, None])
            # Highest-density tail: all that is no likelier than what happened.
            tail = torch.where(probability <= own, probability, 0.0).sum(dim=1).clamp(1e-30, 1.0)
            parts.append(torch.where(code == MISSING, torch.nan, -tail.log())[:, None])
        return torch.cat(parts, dim=1).clamp(min=0.0)

    def quantiles(self, probabilities: Sequence[float]) -> Tensor:
        """Quantiles of the numbers in encoded units, by bisection: (n, Kn, len(probabilities))."""
        weight, location, scale = self._mixture()
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
        return [fn.softmax(logits, dim=1) for logits in self._logits()]

    def _values(self, events: Events) -> tuple[Tensor, Tensor]:
        value = events.numeric[:, self.fields.number_index]
        return torch.nan_to_num(value), ~torch.isnan(value)

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, locations and scales, each (n, Kn, M)."""
        parts = self.numbers.float().view(len(self.numbers), len(self.fields.numbers), 3, COMPONENTS).unbind(dim=2)
        return fn.log_softmax(parts[0], dim=2), parts[1], fn.softplus(parts[2]) + SMALLEST_SCALE

    def _logits(self) -> tuple[Tensor, ...]:
        return self.categories.float().split([field.column.size for field in self.fields.categories], dim=1)

    def _codes(self, events: Events) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self.fields.categories, self._logits(), strict=True)
        return [(events.category[:, field.index], logits) for field, logits in pairs]


class StagedHeads(nn.Module):
    """Fields predicted in two stages: when from the memory alone, what else from the memory and the clock.

    An amount is judged for the entity and the hour, and not for its merchant category as well: a thief who buys
    jewellery would be excused by its price. The stages share one matrix product.
    """

    def __init__(
        self, numeric: Sequence[Column], category: Sequence[Column], memory: int, statistics: int, width: int
    ) -> None:
        super().__init__()
        self.fields = FieldSet.of(numeric, category)
        self.width = width
        self.circles = [index for index, column in enumerate(numeric) if column.kind == "circle"]
        self.base = nn.Linear(memory + statistics, 2 * width)
        self.clock = nn.Linear(len(self.circles), width, bias=False)
        # Each stage also sees the remembered averages directly: levels pass through without saturating.
        self.numbers = nn.ModuleList()
        self.categories = nn.ModuleList()
        for stage in (1, 2):
            numbers = sum(3 * COMPONENTS for field in self.fields.numbers if field.column.stage == stage)
            codes = sum(field.column.size for field in self.fields.categories if field.column.stage == stage)
            self.numbers.append(spread_locations(nn.Linear(width + statistics, numbers)))
            self.categories.append(nn.Linear(width + statistics, codes))

    def forward(self, memory: Tensor, events: Events) -> Prediction:
        """Predict the fields of n events from the memory before each, (n, H)."""
        first, second = self.base(torch.cat([memory, events.statistics], dim=1)).chunk(2, dim=1)
        second = second + self.clock(events.numeric[:, self.circles])
        stages = [torch.cat([fn.silu(part), events.statistics], dim=1) for part in (first, second)]
        return Prediction(
            self.fields,
            torch.cat([head(part) for head, part in zip(self.numbers, stages, strict=True)], dim=1),
            torch.cat([head(part) for head, part in zip(self.categories, stages, strict=True)], dim=1),
        )


def spread_locations(layer: nn.Linear) -> nn.Linear:
    """Start the components of each mixture apart, so that they do not all learn the same."""
    with torch.no_grad():
        bias = layer.bias.view(-1, 3, COMPONENTS)
        bias[:, 1] = torch.linspace(-1.5, 1.5, COMPONENTS)
    return layer
