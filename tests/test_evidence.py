"""Small surprises added up: over the fields of an event, over the events of an entity."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import sequences_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anomaly import evidence
from anomaly.evidence import (
    GENTLE,
    LOUDEST,
    SOFT_THRESHOLD,
    amid_strange_runs,
    combine_fields,
    field_nats,
    rank_surprise,
    surroundings,
    window_evidence,
)

NAN = np.nan


moments = st.sampled_from([0.0, 1.0, 1.5, 3599.0, 3600.0, 7200.0, 86_400.0, 86_401.0, 200_000.0])
surprises = st.sampled_from([0.0, 0.01, 1.0, 5.0, 30.0, NAN]) | st.floats(0, 50)


drawn_histories = st.lists(st.lists(moments, min_size=1, max_size=12), min_size=1, max_size=4)
drawn_surprises = st.lists(surprises, min_size=48, max_size=48)


@given(drawn_histories, drawn_surprises, st.sampled_from([1.0, 3600.0, 86_400.0]), st.booleans())
def test_the_surroundings_are_the_gamma_tail_of_what_lies_around(
    times: list[list[float]], drawn: list[float], seconds: float, itself: bool
) -> None:
    sequences = sequences_of(times)
    surprise = drawn[: len(sequences)]
    found = surroundings(sequences, np.array(surprise), [seconds], itself=itself)[:, 0]
    for at, near in enumerate(oracles.around(sequences.time.tolist(), sequences.offsets.tolist(), seconds)):
        counted = [min(surprise[one], LOUDEST) for one in near if itself or one != at]
        known = [value for value in counted if not np.isnan(value)]
        told = -stats.gamma.logsf(sum(known), len(known)) if known else 0.0
        assert found[at] == pytest.approx(told, rel=1e-6, abs=1e-9)


def test_evidence_that_underflows_keeps_growing() -> None:
    for events in (1, 3, 30):
        found = window_evidence(np.full(500, float(events)), events * np.linspace(1, 2000, 500), 1.0)
        assert np.all(np.diff(found) > 0)
        assert found[-1] == pytest.approx(2000 * events, rel=0.02)


def test_one_strange_event_is_nothing_and_ten_are_a_case() -> None:
    one, ten = (surroundings(sequences_of([[0.0] * n]), np.full(n, -np.log(0.01)), [3600.0])[-1, 0] for n in (1, 10))
    assert one == pytest.approx(-np.log(0.01))
    assert ten > 4 * one


def test_evidence_of_an_entity_is_its_own() -> None:
    two = sequences_of([[0.0, 1.0], [0.0, 1.0]])
    quiet, loud = (surroundings(two, np.array([more, more, 1.0, 1.0]), [10.0]) for more in (1.0, 6.0))
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
    """Peers add up all columns: half of these events pass for noise then. Here it is one in five."""
    draw = np.random.default_rng(1)
    noise = draw.exponential(size=(2000, 40))
    strange = noise.copy()
    strange[:, 0] = -np.log(1e-5)

    def found(statistic: Any) -> float:
        return float(np.mean(statistic(strange) > np.quantile(statistic(noise), 0.95)))

    assert found(partial(combine_fields, weight=np.ones(40))) > 0.8 > 0.6 > found(partial(np.sum, axis=1))


@pytest.mark.parametrize(
    ("one", "two", "counted"),
    [
        (9.0, 4.0, [9.0, 0.0]),
        (4.0, 9.0, [0.0, 9.0]),
        (6.0, 6.0, [6.0, 0.0]),
        (NAN, 5.0, [0.0, 5.0]),
        (5.0, NAN, [5, 0]),
    ],
)
def test_of_two_judgements_of_one_number_the_louder_counts(one: float, two: float, counted: list[float]) -> None:
    """Added up, one strange number would count twice; other fields are left alone."""
    surprise = np.array([[7.0, one, 3.0, two]])
    found = field_nats(surprise, np.array([[1, 3]]))
    np.testing.assert_allclose(found, field_nats(np.array([[7.0, counted[0], 3.0, counted[1]]])))
    weight = np.array([0.5, 1.0, 0.3, 1.0])
    np.testing.assert_allclose(combine_fields(surprise, weight, np.array([[1, 3]])), found @ weight)


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


@pytest.mark.parametrize("dependence", [1.0, np.array([1.0, 1.04, 2.5, 9.0, 70.0])])
def test_evidence_that_is_looked_up_is_what_is_computed(dependence: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    number = draw.integers(0, evidence.TABLED + 6, (20_000, 5)).astype(np.float64)
    mean = np.minimum(draw.exponential(1.0, number.shape), LOUDEST)
    mean[:5000] = draw.uniform(0.0, LOUDEST + 0.5, (5000, 5))  # beyond the end of the curves too
    mean[5000:5200] = draw.uniform(0.0, 0.06, (200, 5))  # about where they begin
    mean[5200], mean[5201] = 0.0, LOUDEST
    assert number.size >= evidence.MANY
    found = window_evidence(number, number * mean, dependence)
    monkeypatch.setattr(evidence, "MANY", number.size + 1)
    expected = window_evidence(number, number * mean, dependence)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.abs(found - expected).max() > 0.0  # it was looked up
    assert (found[number == 0] == 0.0).all()


def test_few_events_of_much_dependence_are_one_event() -> None:
    number = np.repeat(np.arange(1.0, 11.0), 20_000)[:, None]
    mean = np.tile(np.linspace(0.0, LOUDEST, 20_000), 10)[:, None]
    np.testing.assert_allclose(window_evidence(number, number * mean, 10.0), mean, rtol=1e-9, atol=1e-12)


def test_long_arrays_are_summed_up_like_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    number = draw.integers(0, 50, (101, 4)).astype(np.float64)
    sums = number * draw.uniform(0.5, 3.0, number.shape)
    expected = window_evidence(number, sums, 1.5)
    monkeypatch.setattr(evidence, "MANY", 0)
    monkeypatch.setattr(evidence, "TABLED", 0)  # all are computed
    monkeypatch.setattr(evidence, "PIECE", 10)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    np.testing.assert_array_equal(window_evidence(number, sums, 1.5), expected)


@given(
    drawn_histories, drawn_surprises, st.lists(st.booleans(), min_size=48, max_size=48), st.sampled_from([0.03, 0.3])
)
def test_the_strangest_runs_are_those_of_the_strangest_surroundings(
    times: list[list[float]], drawn: list[float], chosen: list[bool], share: float
) -> None:
    sequences, scales = sequences_of(times), [3600.0, 86_400.0]
    surprise, among = np.array(drawn[: len(sequences)]), np.array(chosen[: len(sequences)])
    found = amid_strange_runs(sequences, surprise, scales, among, share)
    assert_same_as_by_looking_at_all(found, sequences, surprise, scales, among, share)


def test_the_strangest_runs_are_found_among_many_events_and_far_out() -> None:
    draw = np.random.default_rng(4)
    sequences = sequences_of([np.sort(draw.uniform(0, 1e6, events)).tolist() for events in (900, 3000, 40)])
    surprise = draw.exponential(size=len(sequences)) + 7.0 * (draw.random(len(sequences)) < 0.02)
    surprise[1200:1700] = LOUDEST  # thousands of nats, where evidence is no longer convex
    among = draw.random(len(sequences)) < 0.8
    for scales in ([1e3, 1e4, 3e5], []):
        found = amid_strange_runs(sequences, surprise, scales, among, 0.1)
        assert_same_as_by_looking_at_all(found, sequences, surprise, scales, among, 0.1)


def assert_same_as_by_looking_at_all(
    found: Any, sequences: Any, surprise: Any, scales: list[float], among: Any, share: float
) -> None:
    worst = surroundings(sequences, surprise, scales).sum(axis=1)
    limit = np.quantile(worst[among], 1 - share) if among.any() else np.inf
    np.testing.assert_array_equal(found, among & (worst > limit))
    some = surroundings(sequences, surprise, scales, among=among).sum(axis=1)
    np.testing.assert_array_equal(some, worst[among])
