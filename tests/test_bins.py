"""Numbers cut into bins: where the edges lie, and what is said of a number."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.models.bins import BINS, Bins


def learned(column: NDArray[np.float64], kind: NDArray[np.int64]) -> Bins:
    bins = Bins(1)
    bins.learn(column[:, None].astype(np.float32), kind)
    return bins


def codes(bins: Bins, *numbers: float) -> NDArray[np.float32]:
    return np.asarray(bins(torch.tensor(numbers)[:, None]).numpy())


def test_a_code_counts_the_bins_below_and_the_share_of_its_own() -> None:
    column = np.arange(BINS + 1, dtype=np.float64)
    bins = learned(column, np.zeros(BINS + 1, dtype=np.int64))
    found = codes(bins, 0.0, 2.25, BINS + 50.0, -3.0)
    np.testing.assert_allclose(found.sum(axis=1), [0.0, 2.25, BINS, 0.0], rtol=1e-6)
    assert found[1].tolist() == [1.0, 1.0, 0.25, *[0.0] * (BINS - 3)]


def test_the_rare_class_has_as_many_bins_as_the_common_one() -> None:
    """Frauds lie between 8 and 9, where almost nothing else does."""
    draw = np.random.default_rng(0)
    kind = (np.arange(20_000) < 100).astype(np.int64)
    column = np.where(kind == 1, draw.uniform(8, 9, len(kind)), draw.normal(0, 1, len(kind)))
    edges = learned(column, kind).get_buffer("low")[0].numpy()
    assert 12 <= ((edges >= 8) & (edges <= 9)).sum() <= 20
    alone = learned(column, np.zeros_like(kind)).get_buffer("low")[0].numpy()
    assert ((alone >= 8) & (alone <= 9)).sum() <= 1


def test_what_is_missing_constant_or_not_learned_is_coded_as_nothing() -> None:
    column = np.where(np.arange(100) % 3 == 0, np.nan, np.arange(100.0))
    bins = learned(column, np.zeros(100, dtype=np.int64))
    assert codes(bins, np.nan).sum() == 0 < codes(bins, 50.0).sum()
    for constant in (np.full(9, 4.0), np.full(9, np.nan)):
        assert codes(learned(constant, np.zeros(9, dtype=np.int64)), -1.0, 4.0, 99.0).sum() == 0
    assert codes(Bins(1), 1.0).sum() == 0


def test_near_numbers_have_near_codes() -> None:
    """However many equal values there are: no edge is steeper than its narrowest bin."""
    bins = learned(np.repeat([0.0, 1.0, 1.00001, 5.0], 100), np.zeros(400, dtype=np.int64))
    numbers = np.linspace(-1, 6, 3000)
    found = codes(bins, *numbers), codes(bins, *(numbers + 1e-6))
    assert np.abs(found[0] - found[1]).max() < 2e-3
