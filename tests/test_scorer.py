"""Scorer: fields, models and the recent past to one calibrated p-value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import DAY, random_histories, sequences_of
from numpy.typing import NDArray

from anomaly.evidence import loud, measure_dependence, recent_sums, window_evidence
from anomaly.features import Column
from anomaly.scorer import NEVER, Combination, Scorer, everybody, suspects
from anomaly.sequences import Sequences

HOUR = 3600.0
FIELDS = {
    "autoencoder": (Column(name="amount", kind="number", weight=1.0), Column(name="time:gap", kind="duration")),
    "forecaster": (Column(name="amount", kind="number", weight=1.0), Column(name="time:gap", kind="duration")),
    "population": (Column(name="population:amount", kind="number", weight=1.0),),
}
COMBINATION = Combination(scales=(3 * HOUR, 24 * HOUR))
Errors = dict[str, NDArray[np.float32]]


def surprises(n: int, seed: int = 1) -> Errors:
    draw = np.random.default_rng(seed)
    return {name: draw.exponential(size=(n, len(columns))).astype(np.float32) for name, columns in FIELDS.items()}


def fitted(combination: Combination = COMBINATION) -> tuple[Scorer, Sequences, Errors]:
    sequences = random_histories(60, 100, 30, seed=0)
    errors = surprises(len(sequences))
    scorer = Scorer(FIELDS, combination)
    scorer.fit(errors, sequences, sequences.time > 10 * 86_400)
    return scorer, sequences, errors


# ---- evidence of the recent past -------------------------------------------------------------------------------------


def test_the_recent_past_is_what_came_before_in_the_window() -> None:
    sequences = random_histories(4, 30, 30, seed=0)
    surprise = np.random.default_rng(2).exponential(size=len(sequences)) * 3
    surprise[5] = np.nan
    sums, number = recent_sums(sequences, surprise, (HOUR, 50 * HOUR))
    for at in range(len(sequences)):
        first = at - at % 30
        for scale, window in enumerate((HOUR, 50 * HOUR)):
            mine = [i for i in range(first, at) if sequences.time[i] > sequences.time[at] - window]
            assert number[at, scale] == len(mine)
            assert sums[at, scale] == pytest.approx(sum(loud(surprise)[i] for i in mine), abs=1e-9)


def test_evidence_of_normal_sums_is_exponential_and_that_of_nothing_is_nothing() -> None:
    draw = np.random.default_rng(3)
    number = np.full((40_000, 1), 12.0)
    sums = draw.gamma(12.0, size=(40_000, 1))
    p = np.exp(-window_evidence(number, sums, 1.0))
    for level in (0.5, 0.1, 0.01):
        assert np.mean(p <= level) == pytest.approx(level, rel=0.15)
    assert window_evidence(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(2)).tolist() == [[0.0, 0.0]]


def test_dependence_is_the_variance_over_that_of_independent_surprises() -> None:
    draw = np.random.default_rng(4)
    shared = draw.exponential(size=(50_000, 1)).repeat(4, axis=1)  # four events that all say the same
    number, sums = np.full((50_000, 1), 4.0), shared.sum(axis=1, keepdims=True)
    found = measure_dependence(sums, number)
    np.testing.assert_allclose(found, 4.0, rtol=0.05)
    independent = draw.exponential(size=(50_000, 4)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(measure_dependence(independent, number), 1.0, rtol=0.05)
    # With it the tail keeps its promise at 1 in 100; without it, it is broken many times over.
    assert np.mean(np.exp(-window_evidence(number, sums, found)) <= 0.01) < 0.015
    assert np.mean(np.exp(-window_evidence(number, sums, 1.0)) <= 0.01) > 0.04


def test_one_event_has_the_law_of_one_event_whatever_the_dependence() -> None:
    """Also, its evidence does not leap where the surprise is as good as 0."""
    surprise = np.array([[0.0], [1e-9], [1.0], [5.0]])
    found = window_evidence(np.ones((4, 1)), surprise, np.array([3.0]))
    np.testing.assert_allclose(found, surprise, atol=1e-12)
    assert window_evidence(np.full((1, 1), 2.0), np.full((1, 1), 1e-9), np.array([3.0])).item() < 1e-8


def test_no_past_has_a_dependence_of_one() -> None:
    assert measure_dependence(np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [1.0, 1.0]


# ---- the scorer ------------------------------------------------------------------------------------------------------


def test_later_p_values_of_normal_events_are_uniform() -> None:
    scorer, _, _ = fitted()
    fresh = random_histories(60, 100, 30, seed=7)
    judged = scorer.judge(surprises(len(fresh), seed=8), fresh)
    for level in (0.5, 0.1, 0.01):
        assert np.mean(np.exp(judged.log_p) <= level) == pytest.approx(level, rel=0.25), level


def test_a_run_of_strange_events_is_stranger_than_each_of_them() -> None:
    scorer, sequences, errors = fitted()
    alone, run = ({name: values.copy() for name, values in errors.items()} for _ in range(2))
    last = 99  # of the first entity
    for name in ("autoencoder", "forecaster"):
        alone[name][last] = run[name][last - 8 : last + 1] = 5.0
    time = sequences.time.copy()
    time[last - 8 : last + 1] = time[last - 8] + np.arange(9) * 60.0
    dense = Sequences(
        entity=sequences.entity,
        offsets=sequences.offsets,
        time=time,
        numeric=sequences.numeric,
        category=sequences.category,
        row=sequences.row,
    )
    judged = [scorer.judge(one, dense) for one in (alone, run)]
    assert judged[1].log_p[last] < judged[0].log_p[last] - 1.0
    assert judged[1].evidence[last] > judged[0].evidence[last] + 3.0


def test_without_evidence_the_past_does_not_count() -> None:
    scorer, sequences, errors = fitted(replace(COMBINATION, evidence=0.0))
    loudly = {name: values.copy() for name, values in errors.items()}
    for values in loudly.values():
        values[:99] = 6.0
    judged = [scorer.judge(one, sequences).log_p[99] for one in (errors, loudly)]
    assert judged[0] == judged[1]


def test_weights_are_those_of_the_models_and_of_the_fields_that_the_schema_names() -> None:
    combination = Combination(other=0.3, autoencoder=0.5, population=2.0)
    errors = {name: np.zeros((1, len(columns)), dtype=np.float32) for name, columns in FIELDS.items()}

    def own(name: str, field: int) -> float:
        one = {key: values.copy() for key, values in errors.items()}
        one[name][0, field] = 10.0
        return float(combination.own(one, FIELDS)[0])

    unit = own("forecaster", 0)
    assert own("forecaster", 1) == pytest.approx(0.3 * unit)
    assert own("autoencoder", 0) == pytest.approx(0.5 * unit)
    assert own("population", 0) == 0.0


def test_the_population_speaks_where_it_is_louder_than_the_entity_by_far() -> None:
    combination = Combination(population=3.0)
    said = [combination.either(np.array([own]), np.array([among]))[0] for own, among in ((4.0, 6.0), (4.0, 9.0))]
    assert said == [4.0, 6.0]
    assert replace(combination, population=NEVER).either(np.array([4.0]), np.array([600.0]))[0] == 4.0
    assert combination.either(np.array([np.nan]), np.array([9.0]))[0] == 6.0
    assert np.isnan(combination.either(np.array([np.nan]), np.array([-np.inf]))[0])


def test_of_several_numbers_the_rarest_among_everybody_pays_for_the_choice() -> None:
    errors = {"population": np.array([[1.0, 9.0], [np.nan, 2.0], [np.nan, np.nan]], dtype=np.float32)}
    np.testing.assert_allclose(everybody(errors), [9.0 - np.log(2), 2.0 - np.log(2), -np.inf])
    assert everybody({"forecaster": np.zeros((2, 3), dtype=np.float32)}).tolist() == [-np.inf, -np.inf]


def test_a_murmur_of_evidence_is_not_heard() -> None:
    combination = Combination(scales=(1.0, 2.0))
    total = combination.total(np.zeros(3), np.array([[1.9, 0.5], [4.0, 0.0], [40.0, 40.0]]))
    assert total[0] == 0.0
    assert total[1] == pytest.approx(combination.ceiling * -np.expm1(-combination.evidence * 2.0 / combination.ceiling))
    assert total[1] < total[2] <= combination.ceiling


def test_a_count_of_earlier_events_speaks_for_its_event_and_not_for_the_run() -> None:
    """In a busy week each event's count is strange for the same reason; that is one fact, not ten."""
    fields = {"forecaster": (Column(name="amount", kind="number", weight=1.0), Column(name="count:1h", kind="count"))}
    sequences = random_histories(60, 100, 30, seed=0)
    errors = {"forecaster": np.random.default_rng(1).exponential(size=(len(sequences), 2)).astype(np.float32)}
    scorer = Scorer(fields, COMBINATION)
    scorer.fit(errors, sequences, sequences.time > 10 * 86_400)
    busy = {"forecaster": errors["forecaster"].copy()}
    busy["forecaster"][:100, 1] = 9.0
    before, after = (scorer.judge(one, sequences) for one in (errors, busy))
    np.testing.assert_array_equal(before.evidence, after.evidence)
    assert (after.log_p[:100] < before.log_p[:100]).all()


def test_an_event_of_which_no_model_says_anything_has_no_p_value() -> None:
    scorer, sequences, errors = fitted()
    silent = {name: values.copy() for name, values in errors.items()}
    for values in silent.values():
        values[50] = np.nan
    judged = scorer.judge(silent, sequences)
    assert np.flatnonzero(np.isnan(judged.log_p)).tolist() == [50]


def test_pace_is_events_by_the_longest_window() -> None:
    sequences = sequences_of([[0.0, 100.0, 400.0], [50.0]])
    scorer = Scorer({}, Combination(scales=(10.0, 200.0)))
    np.testing.assert_allclose(scorer.pace(sequences), [200 / 100, 400 / 200, 600 / 500, 200 / 100])
    assert not Scorer({}, Combination()).pace(sequences).any()


def test_slow_entities_that_are_harder_to_foretell_are_calibrated_for_themselves() -> None:
    """Slow ones have errors half as large again; each pace keeps its own stated rate, which one for all would not."""
    rng = np.random.default_rng(3)
    days = [np.sort(rng.uniform(0, 40 * DAY, number)).tolist() for number in [40] * 300 + [160] * 150]
    sequences = sequences_of(days)
    slow = sequences.lengths[sequences.sequence] == 40
    said = rng.exponential(size=(len(sequences), 1)) * np.where(slow, 1.5, 1.0)[:, None]
    scorer = Scorer({"forecaster": (Column(name="amount", kind="number", weight=1.0),)}, COMBINATION)
    errors = {"forecaster": said.astype(np.float32)}
    scorer.fit(errors, sequences, sequences.time > 10 * DAY)
    later = sequences.time > 10 * DAY
    rare = scorer.judge(errors, sequences, later).log_p <= np.log(0.01)
    alone = -scorer.calibrators_["all"].log_p(scorer.weigh(scorer.past(errors, sequences), later)) >= -np.log(0.01)
    assert rare[slow[later]].mean() < 0.014 < 0.017 < alone[slow[later]].mean()
    assert 0.8 * rare[~slow[later]].mean() > alone[~slow[later]].mean()
    assert rare[~slow[later]].mean() < 0.01


def test_the_suspects_are_the_events_amid_a_run() -> None:
    sequences = random_histories(60, 100, 30, seed=0)
    surprise = np.random.default_rng(5).exponential(size=len(sequences))
    surprise[200:260] = 6.0
    held = np.ones(len(sequences), dtype=bool)
    found = suspects(sequences, surprise, COMBINATION.scales, held)
    assert found.sum() <= 0.03 * len(sequences) + 1
    assert found[215:260].mean() > 0.8
    assert not suspects(sequences, surprise, (), held).any()


def test_runs_beyond_doubt_do_not_calibrate_and_lone_strange_events_do() -> None:
    """With a run of fraud in the held-out slice, p-values stay those of normal events."""
    sequences = random_histories(60, 100, 30, seed=0)
    errors = surprises(len(sequences))
    held = np.ones(len(sequences), dtype=bool)
    run, lone = np.arange(110, 170), np.arange(250, len(sequences), 200)
    for values in errors.values():
        values[run] += 6.0
        values[lone] += 6.0
    scorer = Scorer(FIELDS, COMBINATION)
    calibrated = np.isfinite(scorer.fit(errors, sequences, held))
    assert calibrated[run].mean() < 0.2
    assert calibrated[lone].all()
    assert calibrated[np.setdiff1d(np.arange(len(sequences)), np.arange(90, 200))].all()


def test_what_was_saved_judges_the_same() -> None:
    scorer, sequences, errors = fitted()
    again = Scorer.restored(FIELDS, scorer.settings(), scorer.arrays())
    one, other = (each.judge(errors, sequences) for each in (scorer, again))
    np.testing.assert_array_equal(one.log_p, other.log_p)
    np.testing.assert_array_equal(one.evidence, other.evidence)
    assert again.combination == scorer.combination
    for name, values in scorer.field_surprise(errors).items():
        np.testing.assert_array_equal(values, again.field_surprise(errors)[name])
