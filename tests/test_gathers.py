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
    index = draw.permutation(events)
    gathers.ask(numeric, category, index, MISSING, numbers, categories, first, value, missing, code)
    numeric, category = numeric[index], category[index]
    assert (value == np.nan_to_num(numeric.T[numbers])).all()
    assert (code == category.T[categories] + first[:, None]).all()
    right = np.concatenate([np.isnan(numeric.T[numbers]), category.T[categories] == MISSING])
    assert (missing == right).all()


def test_chosen_are_the_valid_events_of_a_mask_in_the_order_of_steps() -> None:
    """Two rows, the second one cut out of a longer sequence, over after one step."""
    index, valid = np.array([[3, 7], [4, 7], [5, 7]]), np.array([[True, True], [True, False], [True, False]])
    start, border = np.array([3, 7]), np.array([0, 0, 0, 3, 3, 4, 0, 6])
    for mask, right in (
        (np.zeros(0, dtype=bool), [[3, 7, 4, 5], [0, 0, 0, 1], [0, 1, 0, 0]]),
        (np.arange(8) > 4, [[7, 5], [0, 1], [1, 0]]),
    ):
        found = np.empty((3, 6), dtype=np.int64)
        n = gathers.choose(index, valid, start, border, mask, *found)
        assert found[:, :n].tolist() == right


def test_memories_are_those_of_the_steps_that_are_there_and_derivatives_go_back_to_them() -> None:
    memories = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # after 4 and 5 events of three rows
    step, row = np.array([3, 4, 5, 5, 6]), np.array([0, 2, 1, 1, 0])
    out = np.full((5, 3), -1, np.float32)
    gathers.recall(memories, 4, step, row, out)
    assert out.tolist() == [[-1, -1, -1], [4, 5, -1], [8, 9, -1], [8, 9, -1], [-1, -1, -1]]
    back = np.zeros((3, 3, 2), np.float32)
    gathers.recall_back(np.ones((5, 3), np.float32), 4, step, row, back)
    assert back[..., 0].tolist() == back[..., 1].tolist() == [[0, 0, 1], [0, 2, 0], [1, 0, 0]]


def test_rows_are_put_beside_what_is_there() -> None:
    out = np.zeros((2, 4), np.float32)
    gathers.put_beside(np.array([[1, 2], [3, 4]], dtype=np.float32), np.array([1, 0]), 1, out)
    assert out.tolist() == [[0, 3, 4, 0], [0, 1, 2, 0]]


def test_averages_are_those_of_the_known_values_that_are_remembered() -> None:
    numeric = np.array([[0, 1.0], [0, np.nan], [0, -20.0], [0, 3.0], [0, np.inf], [0, 2.0]], dtype=np.float32)
    offsets, border, out = np.array([0, 3, 6]), np.array([0, 1, 2, 3, 4, 6]), np.full((6, 3), 7, np.float32)
    gathers.averages(numeric, np.array([1]), offsets, border, 8.0, out)
    remembered: list[list[float]] = [[], [1], [1], [], [3], [3, 2]]
    mean = [sum(values) / (1 + len(values)) for values in remembered]
    square = [(1 + sum(x * x for x in values)) / (1 + len(values)) for values in remembered]
    np.testing.assert_allclose(out[:, 1], mean, rtol=1e-6)
    np.testing.assert_allclose(out[:, 2], np.sqrt(np.array(square) - np.array(mean) ** 2), rtol=1e-6)
    assert (out[:, 0] == 7).all()


def embedded(numeric: NDArray[np.float32], category: NDArray[np.int32], tables: list[NDArray[np.float32]]) -> object:
    widths = np.array([table.shape[1] for table in tables])
    sizes = np.array([table.size for table in tables])
    out = np.empty((len(numeric), 2 * numeric.shape[1] + widths.sum()), np.float32)
    weights = np.concatenate([table.ravel() for table in tables])
    index = np.arange(len(numeric))[::-1].copy()
    gathers.embed(numeric, category, index, np.float32(2.0), weights, np.cumsum(sizes) - sizes, widths, out)
    back = np.zeros_like(weights)
    gathers.embed_back(category, index, out, numeric.shape[1], np.cumsum(sizes) - sizes, widths, back)
    return out.tolist(), back.tolist()


def test_an_event_is_its_numbers_flags_and_rows_and_derivatives_go_back_there() -> None:
    numeric = np.array([[5.0], [np.nan]], dtype=np.float32)
    category = np.array([[1, 0], [1, 1]], dtype=np.int32)
    tables = [np.array([[1], [2]], dtype=np.float32), np.array([[3, 4], [5, 6]], dtype=np.float32)]
    right = [[0, 1, 2, 5, 6], [2, 0, 2, 3, 4]]  # the last one first
    assert embedded(numeric, category, tables) == (right, [0, 4, 3, 4, 5, 6])
