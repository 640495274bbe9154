"""Population: how rare a number is among everybody's."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.errors import NotFittedError
from anomaly.features import Column
from anomaly.population import Population

UPPER = Column(name="amount", kind="number", tail="upper", weight=1.0)
LOWER = Column(name="level", kind="number", tail="lower", weight=1.0)
BOTH = Column(name="value", kind="number", tail="both", weight=1.0)
OTHERS = (
    Column(name="sum:1h:amount", kind="number", scored=False),
    Column(name="time:gap", kind="duration"),
    Column(name="circle:hour_sin", kind="circle", scored=False),
)


def fitted(columns: tuple[Column, ...]) -> tuple[Population, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    numbers = np.random.default_rng(0).normal(size=(5000, len(columns))).astype(np.float32)
    return Population(columns).fit(numbers), numbers


def test_only_the_numbers_that_the_schema_names_are_fields() -> None:
    population, _ = fitted((OTHERS[0], UPPER, *OTHERS[1:], BOTH))
    assert [column.name for column in population.fields] == ["population:amount", "population:value"]
    assert population.index == [1, 4]


def test_errors_are_logs_of_tail_probabilities_on_the_side_that_the_schema_names() -> None:
    population, _ = fitted((UPPER, LOWER, BOTH))
    low, middle, high = population.errors(np.array([[-2.0] * 3, [0.0] * 3, [2.0] * 3], dtype=np.float32))
    one_side, two_sides = -np.log(0.0228), -np.log(0.0456)
    np.testing.assert_allclose(high, [one_side, 0.0, two_sides], atol=0.25)
    np.testing.assert_allclose(low, [0.0, one_side, two_sides], atol=0.25)
    np.testing.assert_allclose(middle, [np.log(2), np.log(2), 0.0], atol=0.1)


def test_p_is_uniform_among_those_that_were_fitted() -> None:
    population, numbers = fitted((UPPER, LOWER, BOTH))
    p = np.exp(-population.errors(numbers).astype(np.float64))
    for level in (0.5, 0.1, 0.01):
        np.testing.assert_allclose((p <= level).mean(axis=0), level, rtol=0.2)


def test_a_missing_number_says_nothing_and_a_column_of_nothing_neither() -> None:
    numbers = np.full((200, 2), np.nan, dtype=np.float32)
    numbers[:, 0] = np.arange(200)
    population = Population((UPPER, BOTH)).fit(numbers)
    errors = population.errors(np.array([[np.nan, 1.0], [500.0, 1.0]], dtype=np.float32))
    assert np.isnan(errors).tolist() == [[True, True], [False, True]]
    again = Population((UPPER, BOTH)).restore(population.arrays())
    np.testing.assert_array_equal(again.errors(numbers), population.errors(numbers))


def test_what_was_saved_says_the_same() -> None:
    population, numbers = fitted((UPPER, LOWER, BOTH))
    again = Population((UPPER, LOWER, BOTH)).restore(population.arrays())
    np.testing.assert_array_equal(again.errors(numbers), population.errors(numbers))


def test_a_table_without_numbers_has_no_population_and_needs_no_fit() -> None:
    assert Population(OTHERS).errors(np.zeros((3, 3), dtype=np.float32)).shape == (3, 0)


def test_it_must_be_fitted() -> None:
    with pytest.raises(NotFittedError, match="Population"):
        Population((UPPER,)).errors(np.zeros((1, 1), dtype=np.float32))
