"""What the outputs of heads say of events: errors, and losses with their gradients, in one sweep.

Outputs stand feature-major, (outputs, n): each step of arithmetic then runs along the events, however few components or
codes a field has. The gradient of a loss is worked out beside it, by hand, so that the outputs of a block are made,
used and forgotten while they are in the processor's cache: logits of hundreds of codes for each event are never held
for a whole batch (the idea of fused cross-entropies, as in Wijmans et al. 2024, "Cut your losses").

Letters used in shapes: n events, G fields, M mixture components, S codes of a category, d inputs of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
BLOCK = 2**18  # outputs at a time: so many stay in the second cache of a processor's core
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
    """

    def __init__(self, layout: Layout, parts: Sequence[Parts], targets: Targets) -> None:
        self.layout, self.parts, self.fields = layout, parts, len(layout.tails)
        self.lower, self.upper, self.code = (
            one.contiguous().numpy() for one in (targets.lower, targets.upper, targets.code)
        )
        biases: tuple[list[Tensor], list[Tensor]] = [], []
        for part in parts:
            for at, _, bias in part.layers():
                biases[at].append(bias.detach())
        self.bias = [torch.cat(one).numpy() if one else np.empty(0, np.float32) for one in biases]
        self._room = [torch.empty(0), torch.empty(0)]

    def products(self, rows: slice) -> list[Tensor]:
        """Outputs of all stages for a block, less their biases: of the numbers and of the categories, (outputs, n)."""
        events = rows.stop - rows.start
        for at, width in enumerate(self.layout.widths):
            if self._room[at].numel() < width * events:
                self._room[at] = torch.empty(width * events)
        made = [
            room[: width * events].view(width, events)
            for room, width in zip(self._room, self.layout.widths, strict=True)
        ]
        used = [0, 0]
        for part in self.parts:
            inputs = part.inputs[rows].t()
            for at, weight, _ in part.layers():
                torch.mm(weight, inputs, out=made[at][used[at] : used[at] + len(weight)])
                used[at] += len(weight)
        return made

    def errors(self) -> Tensor:
        """-ln of the tails, (K, n)."""
        inputs = self.parts[0].inputs
        found = inputs.new_empty(self.layout.fields, len(inputs))
        out, first, tails = found.numpy(), self.layout.first_rows, self.layout.tail_codes
        for rows in blocks(inputs, sum(self.layout.widths)):
            numbers, categories = (one.numpy() for one in self.products(rows))
            start = rows.start
            if len(tails):
                kernels.number_errors(numbers, self.bias[0], tails, start, self.lower, self.upper, out[: self.fields])
            if len(first) > 1:
                kernels.code_errors(categories, self.bias[1], first, start, self.code, out[self.fields :])
        return found

    def loss(self, rows: slice, known: Tensor, errors: Tensor) -> tuple[Tensor | float, Sequence[Tensor]]:
        """Loss of a block, each field weighed by `known` (K, n), and its derivatives by the outputs.

        `errors` (K, n), of all events as `known` is, are filled in unless empty.
        """
        numbers, categories = outputs = self.products(rows)
        weight, found, first, tails = known.numpy(), errors.numpy(), self.layout.first_rows, self.layout.tail_codes
        start, total = rows.start, 0.0
        if len(tails):
            total += kernels.number_losses(
                *(numbers.numpy(), self.bias[0], tails, start, self.lower, self.upper),
                *(weight[: self.fields], found[: self.fields]),
            )
        if len(first) > 1:
            total += kernels.code_losses(
                *(categories.numpy(), self.bias[1], first, start, self.code),
                *(weight[self.fields :], found[self.fields :]),
            )
        return total, outputs


def total_loss(layout: Layout, parts: Sequence[Parts], targets: Targets) -> float:
    """Sum of the losses of all fields of n events, without a gradient."""
    inputs = parts[0].inputs
    rows_of = blocks(inputs, sum(layout.widths))
    if inputs.device.type != "cpu":
        said = (judge(layout, *outputs_of(parts, rows), targets.block(rows), loss=True) for rows in rows_of)
        return sum(float(losses.sum()) for losses in said)
    compiled, known, nothing = Compiled(layout, parts, targets), (~targets.missing).float(), inputs.new_empty(0, 0)
    return sum(float(compiled.loss(rows, known, nothing)[0]) for rows in rows_of)


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
        gradients = [Parts(*(None if one is None else torch.zeros_like(one) for one in part)) for part in parts]  # type: ignore[arg-type]
        inputs = parts[0].inputs
        errors = event_weight.new_empty(layout.fields if wanted else 0, len(inputs))
        known = event_weight * ~targets.missing
        total = event_weight.new_zeros(())
        compiled = Compiled(layout, parts, targets) if inputs.device.type == "cpu" else None
        for rows in blocks(inputs, sum(layout.widths)):
            if compiled is None:
                outputs, asked = outputs_of(parts, rows), targets.block(rows)
                loss, by_outputs = _gradient(layout, outputs, asked, known[:, rows], errors[:, rows])
            else:
                loss, by_outputs = compiled.loss(rows, known, errors)
            total += loss
            _back(parts, gradients, by_outputs, rows)
        if wanted:
            errors.masked_fill_(targets.missing, torch.nan)
        ctx.save_for_backward(*(one for part in gradients for one in part))
        ctx.mark_non_differentiable(errors)
        return total, errors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        """Scale what `forward` worked out."""
        return (None,) * 4 + tuple(None if one is None else by_total * one for one in ctx.saved_tensors)


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


def blocks(inputs: Tensor, outputs: int) -> Iterator[slice]:
    """Blocks of the rows of (n, d), of like size, that have so many outputs each."""
    most = min(MOST_EVENTS, max(64, BLOCK // max(1, outputs))) if inputs.device.type == "cpu" else BLOCK_ELSEWHERE
    size = max(1, -(-len(inputs) // max(1, -(-len(inputs) // most))))
    for start in range(0, len(inputs), size):
        yield slice(start, min(start + size, len(inputs)))
