"""Losses in one sweep: the same losses and gradients as plain formulas with torch's own derivatives, in any blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

from anomaly.models import likelihood
from anomaly.models.likelihood import SMALLEST_SCALE, Heads, Layout, Parts, Targets, judge, outputs_of

N, D, M = 37, 5, 4
LAYOUT = Layout(("upper", "lower", "both"), M, ((1, 7), (2, 4)))


def parts_of(generator: torch.Generator) -> list[Parts]:
    """Two stages: one number and one category; two numbers and two categories."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    widths = ((3 * M, 7), (6 * M, 8))
    return [Parts(leaf(N, D), leaf(a, D), leaf(a), leaf(b, D), leaf(b)) for a, b in widths]


def targets_of(generator: torch.Generator) -> Targets:
    value = 2 * torch.randn(3, N, generator=generator)
    width = torch.rand(3, N, generator=generator) + 0.01
    missing = torch.rand(6, N, generator=generator) < 0.2
    code = torch.stack([torch.randint(size, (N,), generator=generator) for size in (7, 4, 4)])
    return Targets(value - width, value + width, missing, code + torch.tensor([0, 7, 11])[:, None])


def plain(parts: list[Parts], targets: Targets) -> Tensor:
    """Losses (K, n) by the plain formulas, in float64."""
    numbers = torch.cat([fn.linear(p.inputs, p.number_weight, p.number_bias) for p in parts], dim=1).double()
    categories = torch.cat(
        [fn.linear(p.inputs, p.category_weight, p.category_bias) for p in parts if p.category_weight is not None], dim=1
    ).double()
    logit, location, raw = numbers.view(N, 3, 3, M).unbind(dim=2)
    scale = fn.softplus(raw) + SMALLEST_SCALE
    a, b = ((border.t()[:, :, None] - location) / scale for border in (targets.upper, targets.lower))
    a, b = torch.where(b > 0, -b, a), torch.where(b > 0, -a, b)  # the mass of the mirrored bin, which is no 1 - 1
    mass = (fn.softmax(logit, dim=2) * (torch.sigmoid(a) - torch.sigmoid(b))).sum(dim=2)
    split = torch.split(categories, [7, 4, 4], dim=1)
    shares = torch.cat([fn.softmax(one, dim=1) for one in split], dim=1)
    likelihood = torch.cat([mass, shares.gather(1, targets.code.t())], dim=1)
    return -likelihood.log().t().masked_fill(targets.missing, 0.0)


@pytest.mark.parametrize("block", [1000, 10])
def test_losses_and_gradients_are_those_of_the_plain_formulas(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "BLOCK", block)
    generator = torch.Generator().manual_seed(3)
    parts, targets = parts_of(generator), targets_of(generator)
    weight = torch.rand(N, generator=generator)
    leaves = [one for part in parts for one in part if one is not None]
    expected = (plain(parts, targets) * weight).sum()
    wanted = torch.autograd.grad(expected, leaves)
    total, errors = Heads.apply(LAYOUT, targets, weight, True, *leaves)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=1e-4)
    for found, right in zip(torch.autograd.grad(total, leaves), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)
    outputs = outputs_of(parts, slice(0, N))
    with torch.no_grad():
        said = judge(LAYOUT, outputs[0], outputs[1].clone(), targets, loss=False)
    torch.testing.assert_close(errors, said, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_the_error_of_a_code_is_the_share_of_all_that_is_no_likelier() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    layout = Layout((), M, ((1, 4),))
    logit = shares.log()[:, None].expand(4, 4).clone()
    nothing = torch.zeros(0, 4)
    targets = Targets(nothing, nothing, torch.zeros(1, 4, dtype=torch.bool), torch.arange(4)[None])
    errors = judge(layout, nothing, logit, targets, loss=False)[0]
    torch.testing.assert_close(torch.exp(-errors), torch.tensor([1.0, 0.5, 0.2, 0.05]))
    assert float(errors[0]) == 0.0  # exactly


def test_a_sure_head_says_numbers_of_what_it_ruled_out() -> None:
    layout = Layout((), M, ((1, 3),))
    nothing = torch.zeros(0, 1)
    targets = Targets(nothing, nothing, torch.zeros(1, 1, dtype=torch.bool), torch.tensor([[2]]))
    for loss in (True, False):
        said = judge(layout, nothing, torch.tensor([[1e4], [0.0], [-1e4]]), targets, loss=loss)
        assert torch.isfinite(said).all()
        assert float(said) > 50.0
