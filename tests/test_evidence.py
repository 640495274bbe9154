"""Small surprises added up: over the fields of an event, over the events of an entity."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anomaly.evidence import GENTLE, SOFT_THRESHOLD, accumulate, combine_fields, rank_surprise
from anomaly.sequences import Sequences

NAN = np.nan


def sequences_of(times: list[list[float]]) -> Sequences:
    total = sum(map(len, times))
    return Sequences(
        entity=np.array([f"e{at}" for at in range(len(times))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in times])]).astype(np.int64),
        time=np.concatenate([np.sort(one) for one in times]),
        numeric=np.zeros((total, 0), dtype=np.float32),
        category=np.zeros((total, 0), dtype=np.int32),
        row=np.arange(total),
    )


moments = st.sampled_from([0.0, 1.0, 1.5, 3599.0, 3600.0, 7200.0, 86_400.0, 86_401.0, 200_000.0])
surprises = st.sampled_from([0.0, 0.01, 1.0, 5.0, 30.0, NAN]) | st.floats(0, 50)


@settings(deadline=None)
@given(
    st.lists(st.lists(moments, min_size=1, max_size=12), min_size=1, max_size=4),
    st.lists(surprises, min_size=48, max_size=48),
    st.sampled_from([1.0, 3600.0, 86_400.0]),
)
def test_evidence_is_the_gamma_tail_of_each_window(
    times: list[list[float]], drawn: list[float], seconds: float
) -> None:
    sequences = sequences_of(times)
    surprise = drawn[: len(sequences)]
    told = oracles.accumulated(sequences.time.tolist(), sequences.offsets.tolist(), surprise, seconds)
    found = accumulate(sequences, np.array(surprise), seconds)
    np.testing.assert_allclose(found, told, rtol=1e-6, atol=1e-9)


def test_evidence_that_underflows_keeps_growing() -> None:
    for events in (1, 3, 30):
        sequences = sequences_of([[0.0] * events])
        found = [float(accumulate(sequences, np.full(events, each), 1.0)[-1]) for each in np.linspace(1, 2000, 500)]
        assert np.all(np.diff(found) > 0)
        assert found[-1] == pytest.approx(2000 * events, rel=0.02)


def test_evidence_of_normal_events_is_exponential() -> None:
    draw = np.random.default_rng(0)
    sequences = sequences_of([np.cumsum(draw.exponential(3600, 40)).tolist() for _ in range(500)])
    found = accumulate(sequences, draw.exponential(size=len(sequences)), 86_400.0)
    assert found.min() >= 0
    for level in (0.5, 0.1, 0.01):
        assert np.mean(np.exp(-found) <= level) == pytest.approx(level, rel=0.25)


def test_one_strange_event_is_nothing_and_ten_are_a_case() -> None:
    one = accumulate(sequences_of([[0.0]]), np.array([-np.log(0.01)]), 3600.0)[-1]
    ten = accumulate(sequences_of([[float(at) for at in range(10)]]), np.full(10, -np.log(0.01)), 3600.0)[-1]
    assert one == pytest.approx(-np.log(0.01))
    assert ten > 4 * one


def test_evidence_of_an_entity_is_its_own() -> None:
    quiet = accumulate(sequences_of([[0.0, 1.0], [0.0, 1.0]]), np.array([1.0, 1.0, 1.0, 1.0]), 10.0)
    loud = accumulate(sequences_of([[0.0, 1.0], [0.0, 1.0]]), np.array([90.0, 90.0, 1.0, 1.0]), 10.0)
    np.testing.assert_allclose(quiet[2:], loud[2:])
    assert (loud[:2] > quiet[:2]).all()


def test_fields_are_added_by_what_exceeds_the_threshold() -> None:
    surprise = np.array([[SOFT_THRESHOLD + 2.0, 0.0], [SOFT_THRESHOLD, 1.0], [SOFT_THRESHOLD + 1.0] * 2])
    weight = np.array([1.0, 0.5])
    expected = [
        2.0 + GENTLE * (SOFT_THRESHOLD + 2.0),
        GENTLE * (SOFT_THRESHOLD + 0.5),
        1.5 + GENTLE * 1.5 * (SOFT_THRESHOLD + 1.0),
    ]
    np.testing.assert_allclose(combine_fields(surprise, weight), expected)


def test_a_missing_field_adds_nothing_and_an_event_without_fields_says_nothing() -> None:
    weight = np.array([1.0, 2.0])
    found = combine_fields(np.array([[7.0, NAN], [7.0, 0.0], [NAN, NAN]]), weight)
    assert found[0] == found[1]
    assert np.isnan(found[2])


def test_an_impossible_field_is_the_strangest_of_all_and_still_a_number() -> None:
    found = combine_fields(np.array([[np.inf], [700.0]]), np.array([1.0]))
    assert np.isfinite(found).all()
    assert found[0] > found[1]


def test_the_noise_of_many_fields_does_not_drown_one_strange_field() -> None:
    """Peers average over all columns; here forty unremarkable fields change the order of few events."""
    draw = np.random.default_rng(1)
    noise = draw.exponential(size=(2000, 40))
    strange = noise.copy()
    strange[:, 0] = -np.log(1e-5)
    weight = np.ones(40)
    limit = np.quantile(combine_fields(noise, weight), 0.95)
    assert np.mean(combine_fields(strange, weight) > limit) > 0.9


@settings(deadline=None)
@given(st.lists(st.sampled_from([NAN, 0.0, 1.0, 2.0]) | st.floats(-9, 9), min_size=1, max_size=30))
def test_ranks_are_shares_at_least_as_high(values: list[float]) -> None:
    array = np.array(values)
    known = [value for value in values if not np.isnan(value)]
    expected = [
        NAN if np.isnan(value) else -np.log((sum(other >= value for other in known) + 1) / (len(known) + 1))
        for value in values
    ]
    np.testing.assert_allclose(rank_surprise(array), expected)


def test_ranks_of_a_sample_are_close_to_those_of_all() -> None:
    values = np.random.default_rng(2).normal(size=50_000)
    exact = -np.log((stats.rankdata(-values, method="max") + 1) / (len(values) + 1))
    assert np.abs(np.exp(-rank_surprise(values, most=5_000)) - np.exp(-exact)).max() < 0.02
