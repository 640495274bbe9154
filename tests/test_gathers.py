"""Gathers: the numbers of plain indexing, wherever the events stand, in tables of any length."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.models import gathers

MISSING = 1


def test_columns_are_put_into_rows() -> None:
    found = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = np.full((5, 2), -1, dtype=np.float32)
    gathers.put(found, np.array([4, 0, 2]), out)
    assert out.tolist() == [[1, 4], [-1, -1], [2, 5], [-1, -1], [0, 3]]


@pytest.mark.parametrize("events", [1, gathers.WIDTH, 2 * gathers.WIDTH + 3])
def test_what_happened_is_values_gaps_and_rows_of_codes(events: int) -> None:
    draw = np.random.default_rng(events)
    numeric = draw.normal(size=(events, 4)).astype(np.float32)
    numeric[::3, 2] = np.nan
    category = draw.integers(5, size=(events, 3)).astype(np.int32)
    numbers, categories, first = (np.array(one, dtype=np.int64) for one in ([2, 0], [1, 2], [0, 7]))
    value, code = np.empty((2, events), np.float32), np.empty((2, events), np.int64)
    missing = np.empty((4, events), np.bool_)
    gathers.ask(numeric, category, MISSING, numbers, categories, first, value, missing, code)
    assert (value == np.nan_to_num(numeric.T[numbers])).all()
    assert (code == category.T[categories] + first[:, None]).all()
    right = np.concatenate([np.isnan(numeric.T[numbers]), category.T[categories] == MISSING])
    assert (missing == right).all()


def test_rows_before_the_first_place_are_not_added() -> None:
    out = np.zeros((2, 3), np.float32)
    gathers.add_rows(np.ones((4, 3), np.float32), np.array([4, 5, 6, 6]), 5, out)
    assert out.tolist() == [[1, 1, 1], [2, 2, 2]]


def test_sums_are_those_of_the_known_values_between_the_borders() -> None:
    column = np.array([1.0, np.nan, -20.0, 3.0, np.inf, 2.0], dtype=np.float32)
    start, stop = np.array([0, 0, 0, 3, 3, 3]), np.array([0, 1, 3, 3, 4, 6])
    total, out = np.empty((7, 3)), np.empty((6, 3))
    gathers.sums(column, start, stop, 8.0, total, out)
    right: list[list[float]] = [[0, 0, 0], [1, 1, 1], [2, -7, 65], [0, 0, 0], [1, 3, 9], [2, 5, 13]]
    assert out.tolist() == right


def embedded(numeric: NDArray[np.float32], category: NDArray[np.int32], tables: list[NDArray[np.float32]]) -> object:
    widths = np.array([table.shape[1] for table in tables])
    sizes = np.array([table.size for table in tables])
    out = np.empty((len(numeric), 2 * numeric.shape[1] + widths.sum()), np.float32)
    weights = np.concatenate([table.ravel() for table in tables])
    gathers.embed(numeric, category, np.float32(2.0), weights, np.cumsum(sizes) - sizes, widths, out)
    back = np.zeros_like(weights)
    gathers.embed_back(category, out, numeric.shape[1], np.cumsum(sizes) - sizes, widths, back)
    return out.tolist(), back.tolist()


def test_an_event_is_its_numbers_flags_and_rows_and_derivatives_go_back_there() -> None:
    numeric = np.array([[5.0], [np.nan]], dtype=np.float32)
    category = np.array([[1, 0], [1, 1]], dtype=np.int32)
    tables = [np.array([[1], [2]], dtype=np.float32), np.array([[3, 4], [5, 6]], dtype=np.float32)]
    assert embedded(numeric, category, tables) == ([[2, 0, 2, 3, 4], [0, 1, 2, 5, 6]], [0, 4, 3, 4, 5, 6])
