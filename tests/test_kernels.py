"""Compiled kernels: the numbers of the plain torch formulas, in blocks of any size; and a cache that may be missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import events_of
from numpy.typing import NDArray
from torch import Tensor

from anomaly.features import Column
from anomaly.models import kernels, likelihood
from anomaly.models.autoencoder import lstm_step
from anomaly.models.batches import CLIP, Events
from anomaly.models.cells import EventEmbedding
from anomaly.models.heads import FieldSet, StagedHeads, Works
from anomaly.models.kernels import COMPONENTS, WIDTH
from anomaly.models.likelihood import Compiled, Heads, Layout, Parts, Targets, judge, outputs_of, total_loss

D = 6
LAYOUT = Layout(("upper", "lower", "both"), COMPONENTS, ((1, 7), (2, 40)))
SIZES = (7, 40, 40)


def made(events: int, spread: float = 1.0) -> tuple[list[Parts], Targets]:
    """Two stages of heads with their inputs, and what happened."""
    draw = torch.Generator().manual_seed(events)

    def leaf(*shape: int) -> Tensor:
        return spread * torch.randn(*shape, generator=draw)

    widths = ((3 * COMPONENTS, 7), (6 * COMPONENTS, 80))
    parts = [Parts(leaf(events, D), leaf(a, D), leaf(a), leaf(b, D), leaf(b)) for a, b in widths]
    value = 3 * torch.randn(3, events, generator=draw)
    width = torch.rand(3, events, generator=draw) + 0.01
    missing = torch.rand(6, events, generator=draw) < 0.2
    code = torch.stack([torch.randint(size, (events,), generator=draw) for size in SIZES])
    return parts, Targets(value - width, value + width, missing, code + torch.tensor([0, 7, 47])[:, None])


def told(parts: list[Parts], targets: Targets, *, loss: bool) -> Tensor:
    """Losses or errors (K, n) by torch, for a graphics card."""
    numbers, categories = outputs_of(parts, slice(0, len(parts[0].inputs)))
    return judge(LAYOUT, numbers, categories.clone(), targets, loss=loss)


@pytest.mark.parametrize("events", [1, WIDTH, 3 * WIDTH + 5])
@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("block", [2**18, 2**14])
def test_errors_and_losses_are_those_of_torch(
    events: int, spread: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "BLOCK", block)
    parts, targets = made(events, spread)
    errors = Compiled(LAYOUT, parts, targets).errors().masked_fill_(targets.missing, torch.nan)
    torch.testing.assert_close(errors, told(parts, targets, loss=False), equal_nan=True, rtol=2e-5, atol=2e-5)
    expected = float(told(parts, targets, loss=True).double().sum())
    assert Compiled(LAYOUT, parts, targets).total_loss(~targets.missing) == pytest.approx(expected, rel=1e-5)
    assert total_loss(LAYOUT, parts, targets) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_torch() -> None:
    parts, targets = made(2 * WIDTH + 3)
    known = torch.rand(LAYOUT.fields, 2 * WIDTH + 3) * ~targets.missing
    rows = slice(0, known.shape[1])
    errors = torch.empty(LAYOUT.fields, known.shape[1])
    expected, right = likelihood._gradient(LAYOUT, outputs_of(parts, rows), targets, known, torch.empty(0, 0))
    loss, _, views = Compiled(LAYOUT, parts, targets).loss(rows, known, errors)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(views.arrays, right, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-3, atol=1e-4)
    errors.masked_fill_(targets.missing, torch.nan)
    torch.testing.assert_close(errors, told(parts, targets, loss=False), equal_nan=True, rtol=2e-5, atol=2e-5)


def test_where_arrays_lie_changes_no_bit() -> None:
    """A loop runs as vectors or as single numbers, by where it begins; both must round alike."""
    parts, targets = made(2 * WIDTH + 7)
    known = (torch.rand(LAYOUT.fields, targets.missing.shape[1]) * ~targets.missing).numpy()
    work, count = Compiled(LAYOUT, parts, targets), len(LAYOUT.tails)
    outputs = [one.copy() for one in work.products(slice(0, known.shape[1]))[1].arrays]
    seen = set()
    for shift in range(0, 9, 2):
        errors = np.empty_like(known)
        numbers, categories = (np.empty(shift + one.size, np.float32)[shift:].reshape(one.shape) for one in outputs)
        numbers[:], categories[:] = outputs
        loss = kernels.number_losses(
            *(numbers, work.bias[0], LAYOUT.tail_codes, 0, work.lower, work.upper, known[:count], errors[:count])
        )
        loss += kernels.code_losses(
            *(categories, work.bias[1], LAYOUT.first_rows, 0, work.code, known[count:], errors[count:])
        )
        seen.add((loss, numbers.tobytes(), categories.tobytes(), errors.tobytes()))
    assert len(seen) == 1


def test_the_likeliest_code_has_an_error_of_nothing_exactly() -> None:
    logit = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    found, first = np.empty((1, 300), np.float32), np.array([0, 50])
    kernels.code_errors(logit, np.zeros(50, np.float32), first, 0, logit.argmax(axis=0)[None], found)
    assert (found == 0.0).all()


def test_the_exponential_and_the_logarithm_are_exact_to_the_last_bits() -> None:
    x = np.linspace(-86.0, 86.0, 20_001).astype(np.float32)
    assert relative(np.array([kernels._exp(one) for one in x]), np.exp(x.astype(np.float64))) < 3e-7
    y = np.exp(np.linspace(-60.0, 60.0, 20_001)).astype(np.float32)
    assert np.abs(np.array([kernels._log(one) for one in y]) - np.log(y.astype(np.float64))).max() < 5e-6
    z = np.concatenate([np.linspace(-0.5, 1.0, 5_001), np.logspace(-20, -1, 500)]).astype(np.float32)
    z = z[z != 0]
    assert relative(np.array([kernels._log1p(one) for one in z]), np.log1p(z.astype(np.float64))) < 5e-7


def relative(found: NDArray[np.floating], right: NDArray[np.float64]) -> float:
    return float(np.abs(found / right - 1).max())


@pytest.mark.parametrize("scale", [0.2, 1.5])
def test_borders_of_bins_are_those_of_torch(scale: float) -> None:
    """Half-way to the next counts, few or many, or `RESOLUTION` away, for numbers always."""
    columns = (
        Column(name="amount", kind="number", tail="upper", unit=1.0),
        Column(name="count:1h", kind="count", tail="upper", unit=1.0, center=0.9, scale=scale, step=0.5),
    )
    fields = FieldSet.of(columns, ())
    counts = np.concatenate([np.arange(500.0), np.logspace(2, 8, 500).round()])
    values = torch.from_numpy(np.stack([column.encode(counts) for column in columns], axis=1)).float()
    targets = fields.targets(events_of(values, torch.empty(1000, 0)))
    for found, right in zip((targets.lower, targets.upper), fields.borders(values.double().t()), strict=True):
        np.testing.assert_allclose(found.numpy(), right.numpy(), rtol=3e-7, atol=3e-7 / scale)


def test_odds_far_out_stay_numbers() -> None:
    parts, targets = made(50, 30.0)
    assert torch.isfinite(Compiled(LAYOUT, parts, targets).errors()).all()
    flat = [one.requires_grad_() for part in parts for one in part if one is not None]
    total, _ = Heads.apply(LAYOUT, targets, torch.ones(50), True, *flat)  # type: ignore[no-untyped-call]
    assert torch.isfinite(total)
    assert all(torch.isfinite(one).all() for one in torch.autograd.grad(total, flat))


def test_without_a_place_for_a_cache_they_are_compiled_anyway(tmp_path: Path) -> None:
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from anomaly.models import kernels\n"
        "import numpy as np\n"
        "print(float(kernels._exp(np.float32(0.0))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == "1.0\n", done.stderr


NUMERIC = (
    Column(name="amount", kind="number", tail="upper", unit=1.0),
    Column(name="sin", kind="circle", scored=False),
    Column(name="cos", kind="circle", scored=False),
)
CATEGORY = (
    Column(name="shop", kind="category", tail="density", vocabulary=("a", "b", "c")),
    Column(name="first:shop", kind="flag", tail="density", vocabulary=("no", "yes")),
)


def happened(events: int) -> Events:
    draw = torch.Generator().manual_seed(1)
    numeric = 6 * torch.randn(events, 3, generator=draw)
    numeric[::5, 0] = torch.nan
    category = torch.randint(4, (events, 2), generator=draw, dtype=torch.int32)
    every = events_of(numeric, category, torch.randn(events, 3, generator=draw))
    return Events(every.table, torch.randperm(events, generator=draw))


def same_derivatives(found: list[Tensor], right: list[Tensor], leaves: list[Tensor]) -> None:
    """Are outputs, and derivatives of a weighted sum of them by the leaves, the same."""
    weights = [torch.randn(one.shape, generator=torch.Generator().manual_seed(2)) for one in right]
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    by_found, by_right = (derivatives(outputs, weights, leaves) for outputs in (found, right))
    for one, other in zip(by_found, by_right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def derivatives(outputs: list[Tensor], weights: list[Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    total = torch.stack([(one * weight).sum() for one, weight in zip(outputs, weights, strict=True)]).sum()
    return torch.autograd.grad(total, leaves, retain_graph=True)


def test_an_embedded_event_is_clipped_numbers_flags_and_rows() -> None:
    events, embedding = happened(50), EventEmbedding(NUMERIC, CATEGORY)
    known = torch.nan_to_num(events.numeric).clamp(-CLIP, CLIP)
    tables = [table.weight for table in embedding.tables]
    rows = [table[code.long()] for code, table in zip(events.category.t(), tables, strict=True)]  # type: ignore[index]
    right = torch.cat([known, torch.isnan(events.numeric).float(), *rows], dim=1)
    same_derivatives([embedding(events)], [right], list(embedding.parameters()))


@pytest.mark.parametrize("category", [CATEGORY, CATEGORY[1:]])
@pytest.mark.parametrize("block", [2**18, 1])
def test_stages_of_heads_are_those_of_torch_with_their_derivatives(
    category: tuple[Column, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "BLOCK", block)
    events, memory = happened(150), torch.randn(150, 4, requires_grad=True)
    recalled = torch.cat([memory, events.statistics], dim=1)
    heads, weight = StagedHeads(NUMERIC, category, 4, 3, 5), torch.rand(150)
    asked, plain = heads(recalled, events), heads.plain(recalled, events)
    assert len(plain.stages) == (3 if len(category) > 1 else 2)
    torch.testing.assert_close(asked.errors(events), plain.errors(events), equal_nan=True, rtol=2e-5, atol=2e-5)
    assert asked.total_loss(events) == pytest.approx(plain.total_loss(events), rel=1e-5)
    (found, errors), (right, _) = (one.loss(events, weight) for one in (asked, plain))
    torch.testing.assert_close(errors, plain.errors(events), equal_nan=True, rtol=2e-5, atol=2e-5)
    same_derivatives([found], [right], [memory, *heads.parameters()])


@pytest.mark.parametrize("how", ["compiled", "plain"])
def test_what_is_kept_of_the_weights_serves_other_events_alike(how: str) -> None:
    events, heads, works = happened(700), StagedHeads(NUMERIC, CATEGORY, 4, 3, 5), Works()
    recalled = torch.cat([torch.randn(700, 4), events.statistics], dim=1)
    for stop in range(100, 700, 100):
        some = Events(events.table, events.index[stop // 2 : stop])
        asked = (heads if how == "compiled" else heads.plain)(recalled[stop // 2 : stop], some)
        found = asked.errors(some, works)
        torch.testing.assert_close(found, asked.errors(some), equal_nan=True, rtol=0, atol=0)
        assert asked.total_loss(some, works) == asked.total_loss(some)
    assert len(works) == 1


@pytest.mark.parametrize("carried", [False, True])
def test_a_step_of_an_lstm_is_that_of_the_textbook(carried: bool) -> None:
    gates = (3 * torch.randn(50, 20 if carried else 15)).requires_grad_()
    cell = torch.randn(50, 5).requires_grad_() if carried else None
    enter, *keep, new, out = gates.chunk(4 if carried else 3, dim=1)
    kept = torch.sigmoid(enter) * torch.tanh(new)
    kept = kept if cell is None else kept + torch.sigmoid(keep[0]) * cell
    right = [torch.sigmoid(out) * torch.tanh(kept), kept]
    leaves = [gates] if cell is None else [gates, cell]
    same_derivatives(list(lstm_step(1 * gates, cell)), right, leaves)
    same_derivatives([lstm_step(1 * gates, cell)[0]], right[:1], leaves)
    output = lstm_step(1 * gates, cell)[0].sum()
    torch.autograd.grad(output, leaves, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output, leaves)
