"""Plain: the arithmetic in plain arrays gives the numbers of the networks, event by event."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import History, sequences_of

from anomaly.errors import ParameterError
from anomaly.features import MISSING, Column
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel, averaged
from anomaly.models.batches import memory_border, memory_statistics
from anomaly.models.forecaster import Forecaster
from anomaly.models.plain import PlainModels

Trained = Callable[..., SequenceModel]
TAILS = ("upper", "lower", "both")


def plain_models(models: Sequence[SequenceModel], history: History) -> PlainModels:
    networks: list[Any] = [model.network_ for model in models]
    return PlainModels(networks[0], networks[1], history.numeric, history.category)


def stepped(plain: PlainModels, sequences: Any, border: Any) -> np.ndarray[Any, Any]:
    """Errors (N, K) event by event; `border` (N,) tells which earlier events the memory holds."""
    found = np.empty((len(sequences), len(plain.columns)))
    for start, stop in zip(sequences.offsets, sequences.offsets[1:], strict=False):
        memory, sums, read = plain.empty(), array("d", [0.0]) * (3 * len(plain.averaged)), start
        for at in range(start, stop):
            while read < border[at]:
                plain.read(memory, sequences.numeric[read], sequences.category[read].astype(np.int64), sums)
                read += 1
            statistics = plain.statistics(sums, int(read - start))
            found[at] = plain.errors(memory, statistics, sequences.numeric[at], sequences.category[at].astype(np.int64))
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
    plain = plain_models([trained("autoencoder"), trained("forecaster")], history)
    one = history.sequences.take(np.arange(1))
    expected = memory_statistics(one, np.arange(len(one)), averaged(history.numeric))
    memory, sums = plain.empty(), array("d", [0.0]) * (3 * len(plain.averaged))
    for at in range(len(one)):
        np.testing.assert_allclose(plain.statistics(sums, at), expected[at], rtol=1e-6, atol=1e-6)
        plain.read(memory, one.numeric[at], one.category[at].astype(np.int64), sums)


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
