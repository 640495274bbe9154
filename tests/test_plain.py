"""Plain: the arithmetic in plain arrays gives the numbers of the networks, event by event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import History, called, sequences_of

from anomaly.errors import ParameterError
from anomaly.features import MISSING, Column
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel, averaged
from anomaly.models.batches import memory_border, memory_statistics
from anomaly.models.forecaster import Forecaster
from anomaly.models.plain import PlainModels
from anomaly.models.program import Desk, _exponential, _sigmoid

Trained = Callable[..., SequenceModel]
exponential = called(_exponential)
sigmoid = called(_sigmoid)
TAILS = ("upper", "lower", "both")


def plain_models(models: Sequence[SequenceModel], history: History) -> PlainModels:
    networks: list[Any] = [model.network_ for model in models]
    return PlainModels(networks[0], networks[1], history.numeric, history.category)


def desk_of(plain: PlainModels, sequences: Any) -> Desk:
    """A desk for the events of a history, one at a time: room for all of them to wait."""
    return Desk(
        memory=np.zeros(4 * plain.hidden, dtype=np.float32),
        sums=np.zeros(3 * len(plain.averaged)),
        waiting_numbers=sequences.numeric.copy(),
        waiting_codes=sequences.category.astype(np.uint16),
        numeric=sequences.numeric[0].copy(),
        codes=sequences.category[0].astype(np.uint16),
        errors=np.empty(len(plain.columns), dtype=np.float32),
    )


def stepped(plain: PlainModels, sequences: Any, border: Any) -> np.ndarray[Any, Any]:
    """Errors (N, K) event by event; `border` (N,) tells which earlier events the memory holds."""
    found, desk = np.empty((len(sequences), len(plain.columns))), desk_of(plain, sequences)
    plain.sit_down(desk)
    for start, stop in zip(sequences.offsets, sequences.offsets[1:], strict=False):
        desk.memory[:] = desk.sums[:] = 0.0
        read = start
        for at in range(start, stop):
            due = max(border[at] - read, 0)
            desk.waiting_numbers[:due] = sequences.numeric[read : read + due]
            desk.waiting_codes[:due] = sequences.category[read : read + due]
            desk.numeric[:], desk.codes[:] = sequences.numeric[at], sequences.category[at]
            read += due
            plain.step(int(due), int(read - start))
            found[at] = desk.errors
    return found


def together(plain: PlainModels, models: Sequence[SequenceModel], sequences: Any) -> np.ndarray[Any, Any]:
    """Errors of the networks, in the order of the plain columns."""
    errors = {model.name: model.errors(sequences) for model in models}
    names = {model.name: [column.name for column in model.fields.columns] for model in models}
    return np.stack([errors[model][:, names[model].index(column)] for model, column in plain.columns], axis=1)


def test_errors_are_those_of_the_networks(trained: Trained, history: History) -> None:
    models = [trained("autoencoder", days=2.0), trained("forecaster", days=2.0)]
    some = history.sequences.take(np.arange(4))
    plain = plain_models(models, history)
    found = stepped(plain, some, memory_border(some, 2.0 * 86_400))
    expected = together(plain, models, some)
    assert np.isnan(found).tolist() == np.isnan(expected).tolist()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert (expected[np.isfinite(expected)] > 3).any()


def test_statistics_are_those_of_the_batches(trained: Trained, history: History) -> None:
    """Sums of some remembered events give the averages that the heads of a table see."""
    plain = plain_models([trained("autoencoder"), trained("forecaster")], history)
    one = history.sequences.take(np.arange(1))
    expected = memory_statistics(one, np.arange(len(one)), averaged(history.numeric))
    desk = desk_of(plain, one)
    plain.sit_down(desk)
    for at in range(len(one)):
        plain.step(0, at)
        start = plain.layout.at_statistics
        seen = plain.program.work[start : start + expected.shape[1]]
        np.testing.assert_allclose(seen, expected[at], rtol=1e-6, atol=1e-6)
        desk.waiting_numbers[0] = one.numeric[at]
        plain.step(1, at + 1)


def test_exponentials_are_exact_to_float32() -> None:
    x = np.linspace(-80, 80, 40_001).astype(np.float32)
    found = x.copy()
    exponential(found)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=3e-7)
    wide = np.concatenate([x, [-1e30, 1e30, 0.0]]).astype(np.float32)
    found = wide.copy()
    sigmoid(found)
    np.testing.assert_allclose(found, torch.sigmoid(torch.from_numpy(wide)).numpy(), rtol=5e-7, atol=1e-30)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("categories", [0, 2])
def test_any_columns_and_wild_values_agree(tail: Any, categories: int) -> None:
    """Every tail, counts, holes, monsters and missing codes; untrained networks of random weights."""
    numeric = (
        Column(name="x", kind="number", tail=tail, weight=1.0),
        Column(name="n", kind="count", unit=1.0, step=0.5, center=0.3, scale=0.7),
        Column(name="t", kind="duration", stage=1, tail="both"),
        Column(name="c", kind="circle", scored=False),
        Column(name="unread", kind="number", scored=False),
    )
    category = (
        Column(name="clock:hour", kind="clock", stage=1, tail="density", vocabulary=tuple("abcd")),
        *(Column(name=f"k{at}", kind="category", tail="density", vocabulary=tuple("xyz")) for at in range(categories)),
    )
    models: list[SequenceModel] = [Autoencoder(hidden=6, seed=1), Forecaster(hidden=6, seed=2)]
    for model in models:
        model.prepare(numeric, category)
        with torch.no_grad():
            for weight in model.network_.parameters():  # type: ignore[union-attr]
                weight.mul_(3.0)
    draw = np.random.default_rng(4)
    values = (draw.normal(size=(40, 5)) * draw.choice([1, 30, 3000], (40, 1))).astype(np.float32)
    values[:, 3] = np.clip(values[:, 3], -1, 1)
    values[:, 1] = (np.arcsinh(draw.integers(1, 40, 40)) - 0.3) / 0.7
    values[draw.random((40, 5)) < 0.1] = np.nan
    values[:, [1, 3]] = np.nan_to_num(values[:, [1, 3]])
    codes = np.stack([draw.integers(0, column.size, 40) for column in category], axis=1).astype(np.int32)
    assert (codes == MISSING).any()
    sequences = replace(sequences_of([np.arange(40.0).tolist()]), numeric=values, category=codes)
    networks: list[Any] = [model.network_ for model in models]
    plain = PlainModels(networks[0], networks[1], numeric, category)
    found, expected = stepped(plain, sequences, np.arange(40)), together(plain, models, sequences)
    assert np.isnan(found).tolist() == np.isnan(expected).tolist()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_other_memories_are_refused(history: History) -> None:
    models: list[SequenceModel] = [Autoencoder(hidden=4), Forecaster(hidden=4, backbone="gru")]
    for model in models:
        model.prepare(history.numeric, history.category)
    with pytest.raises(ParameterError, match="two LSTM memories of one size, got lstm of 4, gru of 4"):
        plain_models(models, history)
