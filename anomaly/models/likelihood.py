"""What the outputs of heads say of events: errors, and losses with their gradients, in one sweep.

Outputs stand feature-major, (outputs, n): each step of arithmetic then runs along the events, however few components or
codes a field has. The gradient of a loss is worked out beside it, by hand, so that the outputs of a block are made,
used and forgotten while they are in the processor's cache: logits of hundreds of codes for each event are never held
for a whole batch (the idea of fused cross-entropies, as in Wijmans et al. 2024, "Cut your losses").

Letters used in shapes: n events, G fields, M mixture components, S codes of a category, d inputs of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from anomaly.models import kernels

SMALLEST_SCALE = float(kernels.SMALLEST_SCALE)  # of a mixture component, in encoded units
LOG_2 = 0.6931471805599453
LARGEST_LOGIT = float(kernels.LARGEST_LOGIT)  # of a code
BLOCK = 300_000  # outputs at a time: so many stay in the second cache of a processor's core
MOST_EVENTS = 2048  # of a block
BLOCK_ELSEWHERE = 65536  # events at a time: a graphics card wants large pieces


def mixture(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights, locations and scales of the components, (G, M, n) each, from outputs (G, 3, M, n)."""
    logit, location, spread = outputs.unbind(dim=1)
    return fn.log_softmax(logit, dim=1), location, fn.softplus(spread) + SMALLEST_SCALE


@dataclass(frozen=True)
class Tails:
    """What is on either side of the bin from b to a that holds each number, by component: (G, M, n) each.

    Of the bin a component holds sigmoid(a) - sigmoid(b); its log is exact however far out.

    log(sigmoid(a) - sigmoid(b)) = -softplus(-a) - softplus(b) + log(1 - exp(b - a))
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    spread: Tensor  # as the network gave it
    weight: Tensor  # log of what the component counts
    below: Tensor  # -log of the share of the component that lies below a
    above: Tensor  # -log of the share that lies above b

    @classmethod
    def of(cls, outputs: Tensor, lower: Tensor, upper: Tensor) -> Tails:
        """From outputs (G, 3, M, n) and the borders of the bins (G, n)."""
        weight, location, scale = mixture(outputs)
        a = (upper[:, None] - location).div_(scale)
        b = (lower[:, None] - location).div_(scale)
        return cls(a, b, scale, outputs[:, 2], weight, fn.softplus(-a), fn.softplus(b))

    def errors(self, tails: Sequence[str]) -> Tensor:
        """-ln of the tail that each of the G fields names, (G, n) >= 0."""
        log_above = torch.logsumexp(self.weight - self.above, dim=1)
        other = [at for at, tail in enumerate(tails) if tail != "upper"]
        if other:
            log_below = torch.logsumexp(self.weight[other] - self.below[other], dim=1)
            for row, at in enumerate(other):
                twice = torch.minimum(log_above[at], log_below[row]) + LOG_2
                log_above[at] = twice if tails[at] == "both" else log_below[row]
        return log_above.clamp_(max=0.0).neg_()

    def losses(self) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each number in nats, (G, n), and of each component's part in it, (G, M, n)."""
        inside = self.weight - self.below - self.above
        inside += torch.log1p(-torch.exp(self.b - self.a))
        losses = -torch.logsumexp(inside, dim=1)
        return losses, inside

    def gradient(self, losses: Tensor, inside: Tensor) -> Tensor:
        """Derivatives of `losses` by the outputs, (G, 3, M, n).

        With r the share of a component in the likelihood, w its weight, s(x) the sigmoid and q = 1 / (exp(a - b) - 1),
        which cancels for the location::

            by the logit      w - r
            by the location   r (s(-a) - s(b)) / scale
            by the scale      r (a s(-a) - b s(b) + (a - b) q) / scale
        """
        fields, components, events = self.a.shape
        gradient = self.a.new_empty(fields, 3, components, events)
        share = inside.add_(losses[:, None]).exp_()
        torch.sub(self.weight.exp(), share, out=gradient[:, 0])
        share /= self.scale
        rest = torch.sigmoid(-self.a), torch.sigmoid(self.b)
        torch.mul(share, rest[0] - rest[1], out=gradient[:, 1])
        wide = self.a - self.b
        by_scale = self.a * rest[0] - self.b * rest[1] + wide / torch.expm1(wide)
        torch.mul(share * by_scale, torch.sigmoid(self.spread), out=gradient[:, 2])
        return gradient


@dataclass(frozen=True)
class Layout:
    """How the outputs of a network's heads are arranged.

    tails : of its numbers; components : M of each; runs : (fields, codes) of categories in a row with as many codes.
    """

    tails: tuple[str, ...]
    components: int
    runs: tuple[tuple[int, int], ...]

    @property
    def fields(self) -> int:
        """Number of fields K."""
        return len(self.tails) + sum(number for number, _ in self.runs)

    @cached_property
    def tail_codes(self) -> NDArray[np.int64]:
        """The tails as the kernels name them."""
        known = {"upper": kernels.UPPER, "lower": kernels.LOWER, "both": kernels.BOTH}
        return np.array([known[tail] for tail in self.tails], dtype=np.int64)

    @cached_property
    def first_rows(self) -> NDArray[np.int64]:
        """Where the outputs of each category begin, and where the last ones end."""
        sizes = [codes for number, codes in self.runs for _ in range(number)]
        return np.cumsum([0, *sizes]).astype(np.int64)

    @property
    def widths(self) -> tuple[int, int]:
        """Outputs for the numbers, and for the categories."""
        return 3 * self.components * len(self.tails), sum(number * codes for number, codes in self.runs)

    def numbers(self, outputs: Tensor) -> Tensor:
        """(outputs, n) -> (Gn, 3, M, n)."""
        return outputs.view(len(self.tails), 3, self.components, outputs.shape[1])

    def split(self, outputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(outputs, n) -> which categories, and their part (G, S, n), run by run."""
        first = at = 0
        for number, codes in self.runs:
            yield slice(first, first + number), outputs[at : at + number * codes].view(number, codes, -1)
            first, at = first + number, at + number * codes

    def total(self, values: Tensor) -> Tensor:
        """Sum over the codes of each category, (outputs, n) -> (Gc, n)."""
        return torch.cat([part.sum(dim=1) for _, part in self.split(values)])


@dataclass(frozen=True)
class Targets:
    """What happened, as the heads are asked.

    lower, upper : borders of the numbers' bins, (Gn, n); missing : (K, n) bool; code : of the categories, as rows of
    the outputs, (Gc, n) int64.
    """

    lower: Tensor
    upper: Tensor
    missing: Tensor
    code: Tensor

    def block(self, rows: slice) -> Targets:
        """Some of the events."""
        return Targets(self.lower[:, rows], self.upper[:, rows], self.missing[:, rows], self.code[:, rows])


@dataclass(frozen=True)
class Softmax:
    """Shares of the codes of G categories, all in one: a pass over all codes costs less than one for each category.

    odds : (outputs, n), exp of the logits; total : (G, n), their sum over the codes of each category; at : (G, n),
    those of the code that happened.
    """

    layout: Layout
    odds: Tensor
    total: Tensor
    at: Tensor

    @classmethod
    def of(cls, layout: Layout, logit: Tensor, code: Tensor) -> Softmax:
        """From logits (outputs, n), which are overwritten, and what happened, (G, n)."""
        odds = logit.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT).exp_()
        return cls(layout, odds, layout.total(odds), odds.gather(0, code))

    def losses(self) -> Tensor:
        """Negative log-likelihood of what happened in nats, (G, n) >= 0."""
        return torch.log(self.total / self.at)

    def errors(self) -> Tensor:
        """-ln of the tail, (G, n) >= 0: all that is no likelier than what happened."""
        below = torch.empty_like(self.odds)
        for (which, part), (_, odds) in zip(self.layout.split(below), self.layout.split(self.odds), strict=True):
            torch.le(odds, self.at[which, None], out=part)  # into floats, 0 or 1: so it is vectorised
        total = self.layout.total(below.mul_(self.odds))
        # The likeliest code has an error of 0 exactly: most events have it, and calibration ranks them.
        likelier = (self.total - total).div_(self.total)
        tail = total.div_(self.total).clamp_(1e-30, 1.0)
        return torch.where(likelier < 0.5, torch.log1p(-likelier), tail.log_()).neg_()

    def gradient(self, code: Tensor, weight: Tensor) -> Tensor:
        """Derivatives of the losses (G, n) times `weight` (G, n) by the logits, (outputs, n); overwrites the odds."""
        each = weight / self.total
        for which, odds in self.layout.split(self.odds):
            odds.mul_(each[which, None])
        return self.odds.scatter_add_(0, code, -weight)


def judge(layout: Layout, numbers: Tensor, categories: Tensor, targets: Targets, *, loss: bool) -> Tensor:
    """Losses, or else errors, of each field, (K, n); a missing one has a loss of 0, and NaN for an error.

    Parameters
    ----------
    numbers, categories : Tensor, shape (outputs, n)
        Outputs of the heads; those of the categories are overwritten.
    """
    found = []
    if layout.tails:
        tails = Tails.of(layout.numbers(numbers), targets.lower, targets.upper)
        found.append(tails.losses()[0] if loss else tails.errors(layout.tails))
    if layout.runs:
        softmax = Softmax.of(layout, categories, targets.code)
        found.append(softmax.losses() if loss else softmax.errors())
    return torch.cat(found).masked_fill_(targets.missing, 0.0 if loss else torch.nan)


class Parts(NamedTuple):
    """A stage of a network's heads: the inputs of two linear layers, (n, d), and the weights of those there are."""

    inputs: Tensor
    number_weight: Tensor
    number_bias: Tensor
    category_weight: Tensor | None
    category_bias: Tensor | None

    def layers(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield 0 for numbers or 1 for categories, weight and bias of each layer that has outputs."""
        for at in (0, 1):
            weight, bias = self[1 + 2 * at], self[2 + 2 * at]
            if weight is not None and bias is not None and len(weight):
                yield at, weight, bias

    def zeros(self) -> Parts:
        """As many zeros."""
        return Parts(*(None if one is None else torch.zeros_like(one) for one in self))  # type: ignore[arg-type]


def outputs_of(parts: Sequence[Parts], rows: slice) -> tuple[Tensor, Tensor]:
    """Outputs of all stages for a block of events: for the numbers and for the categories, (outputs, n) each."""
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for part in parts:
        for at, weight, bias in part.layers():
            found[at].append(torch.addmm(bias[:, None], weight, part.inputs[rows].t()).float())
    empty = parts[0].inputs.new_empty(0, 0)
    return tuple(torch.cat(one) if len(one) > 1 else one[0] if one else empty for one in found)  # type: ignore[return-value]


class Compiled:
    """The same sums and derivatives for the processor, by `anomaly.models.kernels`: a block of events after the other.

    Parameters
    ----------
    targets : Targets
        What happened, of all n events.
    learns : bool
        Are derivatives by the inputs and the weights wanted: they stand in `gradients` then, one for each of `parts`.
    """

    def __init__(self, layout: Layout, parts: Sequence[Parts], targets: Targets, *, learns: bool = False) -> None:
        self.layout, self.fields = layout, len(layout.tails)
        self.turn_to(parts, targets)
        self.gradients = [part.zeros() for part in parts if learns]
        self._layers = [list(part.layers()) for part in parts]
        self._by_layers = [list(part.layers()) for part in self.gradients]
        biases: tuple[list[Tensor], list[Tensor]] = [], []
        for at, _, bias in chain.from_iterable(self._layers):
            biases[at].append(bias.detach())
        self.bias = [torch.cat(one).numpy() if one else np.empty(0, np.float32) for one in biases]
        self._outputs, self._views = torch.empty(0), dict[int, Views]()

    def turn_to(self, parts: Sequence[Parts], targets: Targets) -> None:
        """Go on with other events, whose parts have the same weights: what is made of those alone is made once."""
        self.parts, self.events = parts, targets.missing.shape[1]
        self.lower, self.upper, self.code = (
            one.contiguous().numpy() for one in (targets.lower, targets.upper, targets.code)
        )

    def blocks(self) -> Iterator[slice]:
        """Blocks of the events, small enough to stay in the cache."""
        return blocks(self.events, sum(self.layout.widths))

    def inputs(self, rows: slice) -> Sequence[Tensor]:
        """What the layers of each stage are given for a block, (n, d) each."""
        return [part.inputs[rows] for part in self.parts]

    def by_inputs(self, rows: slice) -> Sequence[Tensor]:
        """Where the derivatives by `inputs` are to stand, those of the first columns at least."""
        return [part.inputs[rows] for part in self.gradients]

    def take(self, rows: slice) -> None:
        """Make use of them."""

    def products(self, rows: slice) -> tuple[Sequence[Tensor], Views]:
        """Inputs of all stages for a block, and outputs less their biases."""
        given, views = self.inputs(rows), self._views_of(rows.stop - rows.start)
        for inputs, layers in zip(given, views.layers, strict=True):
            turned = inputs.t()
            for weight, outputs in layers:
                torch.mm(weight, turned, out=outputs)
        return given, views

    def _views_of(self, events: int) -> Views:
        """Where the outputs for so many events stand; blocks use one place after the other."""
        if events not in self._views:
            if self._outputs.numel() < sum(self.layout.widths) * events:
                self._outputs, self._views = torch.empty(sum(self.layout.widths) * events), {}
            self._views[events] = Views.of(self._outputs, self.layout.widths, self._layers, events)
        return self._views[events]

    def errors(self) -> Tensor:
        """-ln of the tails, (K, n)."""
        found = torch.empty(self.layout.fields, self.events)
        out, first, tails = found.numpy(), self.layout.first_rows, self.layout.tail_codes
        of_numbers, of_categories = out[: self.fields], out[self.fields :]
        for rows in self.blocks():
            numbers, categories = self.products(rows)[1].arrays
            if len(tails):
                kernels.number_errors(numbers, self.bias[0], tails, rows.start, self.lower, self.upper, of_numbers)
            if len(first) > 1:
                kernels.code_errors(categories, self.bias[1], first, rows.start, self.code, of_categories)
        return found

    def total_loss(self, known: Tensor) -> float:
        """Sum of the losses of the fields that are `known`, (K, n) bool, without a gradient."""
        weight, nothing = known.float(), torch.empty(0, 0)
        return sum(self.loss(rows, weight, nothing)[0] for rows in self.blocks())

    def learn(self, known: Tensor, *, errors: bool) -> tuple[float, Tensor]:
        """Sum of the losses, each field weighed by `known` (K, n), and the errors (K, n), or (0, n) if not wanted.

        The derivatives of the sum are in `gradients` afterwards.
        """
        found = known.new_empty(self.layout.fields if errors else 0, self.events)
        total = 0.0
        for rows in self.blocks():
            loss, given, by_outputs = self.loss(rows, known, found)
            total += loss
            self._back(given, by_outputs, rows)
        return total, found

    def loss(self, rows: slice, known: Tensor, errors: Tensor) -> tuple[float, Sequence[Tensor], Views]:
        """Loss of a block, each field weighed by `known` (K, n); its inputs, and derivatives by the outputs.

        `errors` (K, n), of all events as `known` is, are filled in unless empty.
        """
        given, views = self.products(rows)
        weight, found, first, tails = known.numpy(), errors.numpy(), self.layout.first_rows, self.layout.tail_codes
        start, total = rows.start, 0.0
        if len(tails):
            total += kernels.number_losses(
                *(views.arrays[0], self.bias[0], tails, start, self.lower, self.upper),
                *(weight[: self.fields], found[: self.fields]),
            )
        if len(first) > 1:
            total += kernels.code_losses(
                *(views.arrays[1], self.bias[1], first, start, self.code),
                *(weight[self.fields :], found[self.fields :]),
            )
        return total, given, views

    def _back(self, given: Sequence[Tensor], by_outputs: Views, rows: slice) -> None:
        """Derivatives by the inputs and the weights, from those by the outputs of a block."""
        stages = zip(given, self.by_inputs(rows), by_outputs.layers, self._by_layers, strict=True)
        for inputs, by_inputs, layers, by_layers in stages:
            columns, fresh = by_inputs.shape[1], True
            for (weight, mine), (_, by_weight, by_bias) in zip(layers, by_layers, strict=True):
                by_weight.addmm_(mine, inputs)
                by_bias.addmv_(mine, by_outputs.ones)
                torch.addmm(by_inputs, mine.t(), weight[:, :columns], beta=0.0 if fresh else 1.0, out=by_inputs)
                fresh = False
            if fresh:
                by_inputs.zero_()
        self.take(rows)


class Views(NamedTuple):
    """Where the outputs for a block of n events stand: of numbers and categories, (outputs, n) each.

    arrays : of both; layers : for each stage the weight of each layer, and its outputs; ones : (n,).
    """

    arrays: list[NDArray[np.float32]]
    layers: list[list[tuple[Tensor, Tensor]]]
    ones: Tensor

    @classmethod
    def of(
        cls, room: Tensor, widths: tuple[int, int], layers: Sequence[Sequence[tuple[int, Tensor, Tensor]]], events: int
    ) -> Views:
        """In a room that is large enough, for n = `events`; layers as of `Parts.layers`."""
        split = widths[0] * events
        both = room[:split].view(widths[0], events), room[split : sum(widths) * events].view(widths[1], events)
        used, found = [0, 0], []
        for stage in layers:
            mine = []
            for at, weight, _ in stage:
                mine.append((weight, both[at][used[at] : used[at] + len(weight)]))
                used[at] += len(weight)
            found.append(mine)
        return cls([one.numpy() for one in both], found, torch.ones(events))


def total_loss(layout: Layout, parts: Sequence[Parts], targets: Targets) -> float:
    """Sum of the losses of all fields of n events, without a gradient, by torch."""
    rows_of = blocks(targets.missing.shape[1], sum(layout.widths), elsewhere=True)
    said = (judge(layout, *outputs_of(parts, rows), targets.block(rows), loss=True) for rows in rows_of)
    return sum(float(losses.sum()) for losses in said)


class Heads(torch.autograd.Function):
    """Weighted loss of all heads, with its gradient; see the module."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        targets: Targets,
        event_weight: Tensor,
        wanted: bool,
        *flat: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the losses, each event by its weight (n,), and the errors (K, n) if they are wanted."""
        parts = [Parts(*flat[at : at + 5]) for at in range(0, len(flat), 5)]  # type: ignore[arg-type]
        if parts[0].inputs.device.type == "cpu":
            work = Compiled(layout, parts, targets, learns=True)
            return learned(ctx, work, targets, event_weight, wanted, lambda: chain.from_iterable(work.gradients))
        gradients = [part.zeros() for part in parts]
        errors = event_weight.new_empty(layout.fields if wanted else 0, len(event_weight))
        known = event_weight * ~targets.missing
        total = event_weight.new_zeros(())
        for rows in blocks(len(event_weight), sum(layout.widths), elsewhere=True):
            outputs, asked = outputs_of(parts, rows), targets.block(rows)
            loss, by_outputs = _gradient(layout, outputs, asked, known[:, rows], errors[:, rows])
            total += loss
            _back(parts, gradients, by_outputs, rows)
        if wanted:
            errors.masked_fill_(targets.missing, torch.nan)
        ctx.gradients = list(chain.from_iterable(gradients))
        ctx.mark_non_differentiable(errors)
        return total, errors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Scale what `forward` worked out."""
        return (None,) * 4 + scaled(ctx, by_total)


def learned(
    ctx: Any,
    work: Compiled,
    targets: Targets,
    event_weight: Tensor,
    wanted: bool,
    gradients: Callable[[], Iterable[Tensor | None]],
) -> tuple[Tensor, Tensor]:
    """Sum of the losses and errors (K, n), as `forward` of a loss returns them; keeps the gradients for `scaled`."""
    total, errors = work.learn(event_weight * ~targets.missing, errors=wanted)
    if wanted:
        errors.masked_fill_(targets.missing, torch.nan)
    ctx.gradients = list(gradients())
    ctx.mark_non_differentiable(errors)
    return event_weight.new_tensor(total), errors


def scaled(ctx: Any, by_total: Tensor) -> tuple[Tensor | None, ...]:
    """Derivatives by all weights, of a loss of which the sum of the losses is a part; only once."""
    gradients: list[Tensor | None] = ctx.gradients
    del ctx.gradients
    torch._foreach_mul_([one for one in gradients if one is not None], by_total)
    return tuple(gradients)


def _gradient(
    layout: Layout, outputs: tuple[Tensor, Tensor], asked: Targets, known: Tensor, errors: Tensor
) -> tuple[Tensor | float, Sequence[Tensor]]:
    """Weighted loss of a block and its derivatives by the outputs; `errors` (K, n) are filled in unless empty."""
    numbers, categories = outputs
    losses = []
    count = len(layout.tails)
    if count:
        tails = Tails.of(layout.numbers(numbers), asked.lower, asked.upper)
        said, inside = tails.losses()
        losses.append(said)
        if len(errors):
            errors[:count] = tails.errors(layout.tails)
        numbers = tails.gradient(said, inside).mul_(known[:count, None, None]).flatten(0, 2)
    if layout.runs:
        softmax = Softmax.of(layout, categories, asked.code)
        losses.append(softmax.losses())
        if len(errors):
            errors[count:] = softmax.errors()
        categories = softmax.gradient(asked.code, known[count:])
    return (torch.cat(losses) * known).sum(), (numbers, categories)


def _back(parts: Sequence[Parts], gradients: Sequence[Parts], by_outputs: Sequence[Tensor], rows: slice) -> None:
    """Add the derivatives by the outputs of a block, (outputs, n) each, to those by the inputs and the weights."""
    used = [0, 0]
    for part, gradient in zip(parts, gradients, strict=True):
        added = {at: bias for at, _, bias in gradient.layers()}
        for (at, weight, _), (_, by_weight, _) in zip(part.layers(), gradient.layers(), strict=True):
            mine = by_outputs[at][used[at] : used[at] + len(weight)]
            used[at] += len(weight)
            by_weight.addmm_(mine, part.inputs[rows])
            added[at].addmv_(mine, mine.new_ones(mine.shape[1]))
            gradient.inputs[rows].addmm_(mine.t(), weight)


def blocks(events: int, outputs: int, *, elsewhere: bool = False) -> Iterator[slice]:
    """Blocks of events that have so many outputs each; `elsewhere` than on the processor large ones."""
    most = BLOCK_ELSEWHERE if elsewhere else min(MOST_EVENTS, max(64, BLOCK // max(1, outputs) // 64 * 64))
    # A product of matrices is a fifth faster where rows fill vectors.
    even = -(-events // max(1, -(-events // most)))
    size = max(1, -(-even // 16)) * 16
    for start in range(0, events, size):
        yield slice(start, min(start + size, events))
