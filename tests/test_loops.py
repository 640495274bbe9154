"""Compiled loops: what they share, and the numbers of the plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.compiling import compiled
from anomaly.loops import STRETCH, multiply_tail, rank_all, sum_windows, tabulate_tail

Float = NDArray[np.float64]


def shares(values: list[float], at: list[float], level: list[float], x: list[float], cells: int) -> tuple[Float, int]:
    """The share of each x by the compiled look-up, and how many lie beyond the last value."""
    lines, guide, found = np.empty((len(values), 3)), np.empty(cells + 2, dtype=np.int32), np.ones(len(x))
    tabulate_tail(np.array(values), np.array(at), np.array(level), lines, guide)
    return found, multiply_tail(lines, guide, np.array(x), found)


def plain(values: list[float], at: list[float], level: list[float], x: float) -> float:
    """One share, by the first value that is not below x."""
    if x < values[0] or x > values[-1]:  # what lies beyond is left alone
        return 1.0
    right = next((index for index, value in enumerate(values) if value >= x), len(values) - 1)
    left = max(right - 1, 0)
    if level[left] > at[right] and values[left] < x < values[right]:
        share = (x - values[left]) / (values[right] - values[left])
        return max(level[left] - share * (level[left] - at[right]), at[right])
    return at[right]


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=40, unique=True),
    st.lists(st.floats(-120, 120), max_size=30),
    st.sampled_from([1, 2, 50, 1000]),
)
def test_each_value_finds_its_place(values: list[float], x: list[float], cells: int) -> None:
    values = sorted(values)
    at = [1.0 - index / len(values) for index in range(len(values))]
    level = [one - 0.5 / len(values) * (index % 3 == 0) for index, one in enumerate(at)]
    asked = [*x, *values]
    found, beyond = shares(values, at, level, asked, cells)
    np.testing.assert_allclose(found, [plain(values, at, level, one) for one in asked], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(found[len(x) :], at)  # nothing is rounded at the values themselves
    assert beyond == sum(one > values[-1] for one in asked)


def test_values_that_stand_close_together_are_found() -> None:
    values = [0.0, *np.geomspace(1e-12, 1e-9, 500), 1.0]
    at = np.linspace(1.0, 0.01, len(values)).tolist()
    asked = np.concatenate([np.geomspace(1e-13, 1.0, 3000), values]).tolist()
    found, beyond = shares(values, at, at, asked, 64)
    np.testing.assert_allclose(found, np.interp(asked, values, at), rtol=1e-9)
    assert beyond == 0


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=300),
    st.lists(st.floats(-120, 120), max_size=60),
)
def test_as_many_lie_below_as_a_search_finds(values: list[float], x: list[float]) -> None:
    rising, asked = np.sort(values), np.array([*x, *values, np.inf, -np.inf])
    found = np.empty(len(asked), dtype=np.int64)
    rank_all(rising, asked, found)
    np.testing.assert_array_equal(found, np.searchsorted(rising, asked, side="left"))


@pytest.mark.parametrize("longest", [1, 40, 900])
def test_windows_are_summed_over_the_borders_of_stretches(longest: int) -> None:
    draw = np.random.default_rng(longest)
    values = draw.integers(0, 1000, STRETCH + 3000).astype(np.float64)  # whole numbers: any order gives the same sum
    first = np.maximum(np.arange(len(values)) - draw.integers(0, longest, len(values)), 0)
    found = np.empty(len(values))
    sum_windows(values, first, found)
    total = np.concatenate([[0.0], np.cumsum(values)])
    np.testing.assert_array_equal(found, total[1:] - total[first])


def test_nothing_is_said_of_nothing() -> None:
    found, beyond = shares([1.0], [0.25], [0.25], [np.nan, 1.0], 8)
    assert np.isnan(found[0])
    assert found[1] == 0.25
    assert beyond == 0


def test_a_loop_is_compiled_and_lets_go_of_the_interpreter() -> None:
    def double(x: float) -> float:
        return 2.0 * x

    made = compiled(double)
    assert made(2.0) == 4.0
    assert made.targetoptions["nogil"]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = double.targetoptions  # type: ignore[attr-defined]
