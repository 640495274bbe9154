"""Predictive distributions: they integrate to one, their tails, quantiles and losses agree, and they can be learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import oracles
import pytest
import torch
from conftest import events_of as every
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomaly.features import FARTHEST, MISSING, Column
from anomaly.models.batches import Events
from anomaly.models.heads import Asked, FieldSet, Prediction, StagedHeads
from anomaly.models.kernels import COMPONENTS
from anomaly.models.likelihood import SMALLEST_SCALE

AMOUNT = Column(name="amount", kind="number", tail="upper", unit=1.0)
BALANCE = Column(name="balance", kind="number", tail="lower")
GAP = Column(name="time:gap", kind="duration", tail="both", unit=1.0, stage=1)
COUNT = Column(name="count:1h", kind="count", tail="upper", unit=1.0, center=0.9, scale=0.4, step=0.5)
UNSCORED = Column(name="sum:1h:amount", kind="number", scored=False)
SHOP = Column(name="shop", kind="category", tail="density", vocabulary=("a", "b", "c"))
FLAG = Column(name="first:shop", kind="flag", tail="density", vocabulary=("no", "yes"))
NUMERIC = (AMOUNT, UNSCORED, BALANCE, GAP, COUNT)
CATEGORY = (SHOP, FLAG)
FIELDS = FieldSet.of(NUMERIC, CATEGORY)
NAMES = [column.name for column in FIELDS.columns]

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, events: int = 1, wide: float = 1.0, fields: FieldSet = FIELDS) -> Prediction:
    """One random distribution, said of so many events."""
    generator = torch.Generator().manual_seed(seed)
    numbers = wide * torch.randn(1, fields.number_width, generator=generator)
    categories = wide * torch.randn(1, fields.category_width, generator=generator)
    return Prediction(fields, numbers.expand(events, -1), categories.expand(events, -1))


def events_of(numeric: Tensor, category: Tensor | None = None) -> Events:
    codes = torch.full((len(numeric), len(CATEGORY)), 2) if category is None else category
    return every(numeric, codes)


def same_value(column: Column, values: Tensor) -> Events:
    """Events whose `column` takes these values, with zeros elsewhere."""
    numeric = torch.zeros(len(values), len(NUMERIC))
    numeric[:, NUMERIC.index(column)] = values
    return events_of(numeric)


def mixture(prediction: Prediction, column: Column) -> tuple[oracles.Float, oracles.Float, oracles.Float]:
    """Logits, locations and scales of a field, from what the network gave."""
    at = [field.column for field in FIELDS.numbers].index(column)
    parts = prediction.numbers[0].double().view(-1, 3, COMPONENTS)[at].numpy()
    return parts[0], parts[1], np.logaddexp(0, parts[2]) + SMALLEST_SCALE


def test_fields_are_the_scored_columns_by_stage_numbers_first() -> None:
    assert NAMES == ["time:gap", "amount", "balance", "count:1h", "shop", "first:shop"]
    assert len(FIELDS) == len(NAMES)
    repeated = [
        NAMES.index("count:1h"),
        NAMES.index("first:shop"),
    ]  # they say again what they said of the events before
    assert (FIELDS.evidence_weight[repeated] == 0).all()
    assert (np.delete(FIELDS.evidence_weight, repeated) > 0).all()
    assert drawn(0, 3).errors(events_of(torch.zeros(3, len(NUMERIC)))).shape == (3, len(NAMES))


def test_a_number_that_a_category_may_explain_is_judged_twice() -> None:
    """As such, whatever the category; and given the category, whose change moves that statement alone."""
    torch.manual_seed(0)
    layout = (*NUMERIC, Column(name="circle:hour_sin", kind="circle", scored=False))
    heads = StagedHeads(layout, CATEGORY, memory=3, statistics=1, width=8)
    names = [column.name for column in heads.fields.columns]
    twice = {"given:amount", "given:balance"}
    assert set(names) == {*NAMES, *twice}
    numeric, recalled = torch.ones(1, len(layout)), torch.ones(1, 3 + 1)
    bought_a, bought_b = (events_of(numeric, torch.tensor([[shop, 2]])) for shop in (2, 3))
    errors = [heads(recalled, events).errors(bought_a)[0] for events in (bought_a, bought_b)]
    assert {name for name, one, other in zip(names, *errors, strict=True) if one != other} == twice
    plain = StagedHeads(layout, (FLAG,), memory=3, statistics=1, width=8)
    assert not any(column.name.startswith("given:") for column in plain.fields.columns)


@pytest.mark.parametrize("column", [AMOUNT, BALANCE, GAP])
@pytest.mark.parametrize("seed", range(4))
def test_the_likelihoods_of_all_numbers_add_up_to_one(column: Column, seed: int) -> None:
    """Each value stands for the bin around it; bins side by side share out the whole mass."""
    values = torch.arange(-60.0, 60.0, 0.02, dtype=torch.float64).float()
    losses = drawn(seed, len(values)).losses(same_value(column, values))[:, NAMES.index(column.name)]
    assert float(torch.exp(-losses.double()).sum()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_the_likelihoods_of_all_counts_add_up_to_what_lies_above_half_an_event(seed: int) -> None:
    counts = np.arange(1, 100)
    values = torch.from_numpy(COUNT.encode(counts)).float()
    prediction = drawn(seed, len(values))
    losses = prediction.losses(same_value(COUNT, values))[:, NAMES.index(COUNT.name)]
    above = oracles.mixture_sf(COUNT.encode(0.5), *mixture(prediction, COUNT))
    beyond = oracles.mixture_sf(COUNT.encode(99.5), *mixture(prediction, COUNT))
    assert float(torch.exp(-losses.double()).sum()) == pytest.approx(above - beyond, rel=0.01)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(0.001, 0.999))
def test_quantiles_and_tails_agree(seed: int, share: float) -> None:
    prediction = drawn(seed)
    quantiles = prediction.quantiles([share])[0, :, 0]
    at = {field.column.name: index for index, field in enumerate(FIELDS.numbers)}
    for column, tail in ((AMOUNT, 1 - share), (BALANCE, share), (GAP, 2 * min(share, 1 - share))):
        events = same_value(column, quantiles[at[column.name]][None])
        found = float(torch.exp(-prediction.errors(events)[0, NAMES.index(column.name)]))
        # A tail holds the bin of its own value, two hundredths wide.
        assert tail - 1e-3 < found < tail + 0.6
        exact = oracles.mixture_sf(float(quantiles[at[column.name]]), *mixture(prediction, column))
        assert exact == pytest.approx(1 - share, abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(-30, 30))
def test_tails_hold_the_value_itself(seed: int, value: float) -> None:
    prediction = drawn(seed)
    half = 0.01
    for column in (AMOUNT, BALANCE, GAP):
        law = mixture(prediction, column)
        above = oracles.mixture_sf(value - half, *law)
        below = 1 - oracles.mixture_sf(value + half, *law)
        tail = {"upper": above, "lower": below, "both": min(1.0, 2 * min(above, below))}[column.tail]
        found = prediction.errors(same_value(column, torch.tensor([value])))[0, NAMES.index(column.name)]
        assert np.exp(-float(found)) == pytest.approx(tail, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 300))
def test_the_tail_of_a_count_holds_the_count_itself(seed: int, count: int) -> None:
    prediction = drawn(seed)
    tail = oracles.mixture_sf(COUNT.encode(count - 0.5), *mixture(prediction, COUNT))
    events = same_value(COUNT, torch.tensor([COUNT.encode(float(count))], dtype=torch.float32))
    found = prediction.errors(events)[0, NAMES.index(COUNT.name)]
    assert float(found) == pytest.approx(-np.log(tail), rel=1e-3, abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_farther_out_is_never_less_strange(seed: int) -> None:
    values = torch.linspace(-50, 50, 400)
    prediction = drawn(seed, len(values))
    for column in (AMOUNT, COUNT):
        errors = prediction.errors(same_value(column, values))[:, NAMES.index(column.name)]
        assert (errors.diff() >= -1e-5).all()
    errors = prediction.errors(same_value(BALANCE, values))[:, NAMES.index(BALANCE.name)]
    assert (errors.diff() <= 1e-5).all()


def test_far_tails_do_not_underflow() -> None:
    values = torch.tensor([100.0, 1000.0, FARTHEST])
    errors = drawn(0, 3).errors(same_value(AMOUNT, values))[:, NAMES.index("amount")]
    assert (errors.diff() > 50).all()
    assert torch.isfinite(errors).all()


@settings(deadline=None, max_examples=50)
@given(seeds, st.floats(0.1, 5.0))
def test_a_category_tail_is_all_that_is_no_likelier_and_never_promises_too_much(seed: int, wide: float) -> None:
    prediction = drawn(seed, 1, wide)
    for index, column in enumerate(CATEGORY):
        shares = prediction.probabilities()[index][0].double().numpy()
        assert shares.sum() == pytest.approx(1.0, abs=1e-6)
        tails = np.full(column.size, np.nan)
        for code in range(column.size):
            category = torch.full((1, len(CATEGORY)), 2)
            category[0, index] = code
            error = prediction.errors(events_of(torch.zeros(1, len(NUMERIC)), category))[0, NAMES.index(column.name)]
            tails[code] = np.exp(-float(error))
        assert np.isnan(tails[MISSING])
        for code in {*range(column.size)} - {MISSING}:
            no_likelier = shares[shares <= shares[code] + 1e-9].sum()
            assert tails[code] == pytest.approx(no_likelier, abs=1e-5)
            assert shares[np.nan_to_num(tails, nan=2.0) <= tails[code]].sum() <= tails[code] + 1e-5


def test_the_likeliest_category_is_not_strange_at_all() -> None:
    """Exactly 0, not a rounding error above it: calibration ranks these values, and most events have them."""
    for seed in range(200):
        prediction = drawn(seed)
        for index, column in enumerate(CATEGORY):
            shares = prediction.probabilities()[index][0]
            if int(shares.argmax()) != MISSING:
                category = torch.full((1, len(CATEGORY)), MISSING)
                category[0, index] = int(shares.argmax())
                events = events_of(torch.zeros(1, len(NUMERIC)), category)
                assert float(prediction.errors(events)[0, NAMES.index(column.name)]) == 0.0


@pytest.mark.parametrize("field", range(len(FIELDS)))
def test_a_missing_field_says_nothing_and_leaves_the_others_alone(field: int) -> None:
    prediction = drawn(1)
    numeric, category = torch.full((1, len(NUMERIC)), 0.3), torch.full((1, len(CATEGORY)), 3)
    whole = events_of(numeric.clone(), category.clone())
    if field < len(FIELDS.numbers):
        numeric[0, FIELDS.numbers[field].index] = torch.nan
    else:
        category[0, FIELDS.categories[field - len(FIELDS.numbers)].index] = MISSING
    holed = events_of(numeric, category)
    others = [at for at in range(len(FIELDS)) if at != field]
    assert torch.isnan(prediction.errors(holed)[0, field])
    assert float(prediction.losses(holed)[0, field]) == 0.0
    torch.testing.assert_close(prediction.errors(holed)[0, others], prediction.errors(whole)[0, others])
    torch.testing.assert_close(prediction.losses(holed)[0, others], prediction.losses(whole)[0, others])


@pytest.mark.parametrize("value", [torch.nan, 0.0, 50.0, -50.0, FARTHEST, -FARTHEST])
def test_losses_and_their_gradients_are_numbers_whatever_comes(value: float) -> None:
    for seed in range(5):
        asked, weights = constant(drawn(seed, 1, 3.0), 1)
        numeric = torch.full((1, len(NUMERIC)), value)
        numeric[:, NUMERIC.index(COUNT)] = COUNT.encode(3.0)
        loss, _ = asked.loss(events_of(numeric), torch.ones(1))
        assert torch.isfinite(loss)
        found = torch.autograd.grad(loss, weights)
        assert all(torch.isfinite(gradient).all() for gradient in found)


@pytest.mark.parametrize("count", [1, 100, 10_000, 1_000_000, 100_000_000])
def test_an_entity_may_have_any_number_of_events_a_day(count: int) -> None:
    value = torch.tensor([COUNT.encode(float(count))], dtype=torch.float32)
    prediction = drawn(0)
    assert torch.isfinite(prediction.losses(same_value(COUNT, value))).all()
    assert torch.isfinite(prediction.errors(same_value(COUNT, value))).all()


def constant(prediction: Prediction, events: int) -> tuple[Asked, list[Tensor]]:
    """Heads that say the same of each of n events, and what they say as their weights, with gradients."""
    layers = []
    for outputs in (prediction.numbers[0], prediction.categories[0]):
        layer = torch.nn.Linear(1, len(outputs))
        layer.bias.data.zero_()
        layer.weight.data = outputs[:, None].clone()
        layers.append(layer)
    asked = Asked(prediction.fields, [(torch.ones(events, 1), layers[0], layers[1])])
    return asked, [layer.weight for layer in layers]


def learned(sample: Tensor, category: Tensor, columns: Sequence[Column]) -> Prediction:
    """The one distribution that fits the sample best, after some hundred steps."""
    fields = FieldSet.of(columns, CATEGORY)
    numbers = drawn(0, 1, 0.3, fields).numbers.clone().view(-1, 3, COMPONENTS)
    numbers[:, 1] = torch.linspace(-1.5, 1.5, COMPONENTS)
    start = Prediction(fields, numbers.flatten()[None], torch.zeros(1, fields.category_width))
    asked, weights = constant(start, len(sample))
    optimizer = torch.optim.Adam(weights, lr=0.05)
    events = every(sample, category)
    for _ in range(250):
        loss, _ = asked.loss(events, torch.full((len(sample),), 1 / len(sample)), errors=False)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return Prediction(fields, *(weight.detach().t() for weight in weights))


def test_a_known_distribution_is_recovered() -> None:
    generator = torch.Generator().manual_seed(7)
    high = torch.rand(1500, generator=generator) < 0.3
    amount = torch.where(high, 2.0, -0.5) + 0.4 * torch.randn(1500, generator=generator)
    shares = torch.tensor([0.05, 0.0, 0.7, 0.2, 0.05])
    shop = torch.multinomial(shares, 1500, replacement=True, generator=generator)
    category = torch.stack([shop, torch.full_like(shop, 2)], dim=1)
    found = learned(amount[:, None], category, (AMOUNT,))
    asked = (0.1, 0.35, 0.6, 0.9)
    expected = torch.quantile(amount, torch.tensor(asked))
    torch.testing.assert_close(found.quantiles(asked)[0, 0], expected, atol=0.2, rtol=0.0)
    torch.testing.assert_close(found.probabilities()[0][0], shares, atol=0.04, rtol=0.0)
    fresh = torch.where(torch.rand(1500, generator=generator) < 0.3, 2.0, -0.5)
    fresh = fresh + 0.4 * torch.randn(1500, generator=generator)
    spread = Prediction(found.fields, found.numbers.expand(1500, -1), found.categories.expand(1500, -1))
    tails = torch.exp(-spread.errors(every(fresh[:, None], category))[:, 0])
    for level in (0.9, 0.5, 0.1):
        assert float((tails <= level).float().mean()) == pytest.approx(level, abs=0.05)
