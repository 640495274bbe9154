"""Single: one event in plain numbers is judged as it is among many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import called, sequences_of
from hypothesis import given
from hypothesis import strategies as st

from anomaly.calibration import TailCalibrator
from anomaly.detector import Detector
from anomaly.evidence import window_evidence
from anomaly.features import Column, judged_twice
from anomaly.history import as_events
from anomaly.population import Population
from anomaly.scorer import Combination, Scorer
from anomaly.single import SinglePopulation, SingleScorer, Tails, tail_log_p, window_nats

log_p = called(tail_log_p)
nats = called(window_nats)
DRAW = np.random.default_rng(2)
SAMPLES = {
    "one value": np.array([1.5]),
    "few": DRAW.exponential(size=30),
    "many": DRAW.exponential(size=60_000),
    "heavy tail": DRAW.standard_t(2, size=9_000),
    "short tail": DRAW.uniform(size=9_000) ** 2,
    "atoms": np.round(DRAW.exponential(size=4_000)),
}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_one_tail_is_that_of_many(name: str) -> None:
    held = SAMPLES[name]
    calibrator = TailCalibrator().fit(held)
    low, high = held.min(), held.max()
    x = np.concatenate([held[:500], DRAW.uniform(low - 1, high + 1, 500), [low, high, high * 50 + 9, 1e30, np.nan]])
    tails = Tails.of([TailCalibrator().fit(DRAW.normal(size=50)), calibrator])
    found = [log_p(tails, 1, value) for value in x.tolist()]
    np.testing.assert_allclose(found, calibrator.log_p(x), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 3000), st.floats(0, 1e5), st.floats(1, 50))
def test_one_window_is_that_of_many(number: int, total: float, dependence: float) -> None:
    expected = window_evidence(np.array([[float(number)]]), np.array([[total]]), dependence)
    assert nats(number, total, dependence) == pytest.approx(float(expected[0, 0]), rel=1e-9, abs=1e-12)


def test_one_number_is_as_rare_among_everybody() -> None:
    columns = [Column(name=tail, kind="number", tail=tail) for tail in ("upper", "lower", "both")]
    values = DRAW.normal(size=(3000, 3)).astype(np.float32)
    population = Population(columns).fit(values)
    probe = np.concatenate([values[:200] * 3, [[np.nan] * 3, [1e4, -1e4, 1e4]]]).astype(np.float32)
    one = SinglePopulation(population)
    numeric, errors, found = probe[0].copy(), np.empty(len(one.columns), dtype=np.float32), []
    one.sit_down(numeric, errors)
    for row in probe:
        numeric[:] = row
        one.judge()
        found.append(errors.copy())
    np.testing.assert_allclose(found, population.errors(probe), rtol=1e-5, atol=1e-6)
    assert one.columns == tuple(("population", column.name) for column in population.fields)


def single_judgements(scorer: Scorer, errors: Any, sums: Any, number: Any, pace: Any) -> list[Any]:
    columns = [(name, column.name) for name, fields in scorer.fields.items() for column in fields]
    shuffled = np.random.default_rng(0).permutation(len(columns))
    single = SingleScorer(scorer, [columns[at] for at in shuffled])
    whole = np.concatenate([errors[name] for name in scorer.fields], axis=1).astype(np.float32)[:, shuffled]
    desk, found = (whole[0].copy(), sums[0].copy(), number[0].astype(np.int64)), []
    single.sit_down(*desk)
    for *event, at_pace in zip(whole, sums, number, pace.tolist(), strict=True):
        for part, values in zip(desk, event, strict=True):
            part[:] = values
        found.append(single.judge(at_pace))
    return found


@pytest.mark.parametrize("hours", [0.0, None])
def test_one_event_is_judged_as_among_many(
    untidy_detector: Callable[[float | None], Detector], untidy: pl.DataFrame, hours: float | None
) -> None:
    detector = untidy_detector(hours)
    scorer = detector.scorer_
    sequences = detector.encoder_.transform(as_events(untidy, detector.schema).frame)
    errors = {name: values.copy() for name, values in detector.errors(sequences).items()}
    for values in errors.values():
        values[7] = np.nan  # of one event nothing is said
        values[9] = 80.0  # one is stranger than any model knows
        values[11, ::2] = np.nan  # of one only half is said
    assert any(len(judged_twice(columns)) for columns in scorer.fields.values())
    width = len(scorer.combination.scales)
    number = DRAW.integers(0, 3, (len(sequences), width)).cumsum(axis=1).astype(np.float64)
    number *= DRAW.integers(0, 15, (len(sequences), 1))  # some pasts are busy, some quiet
    sums = number * DRAW.exponential(size=number.shape)
    pace = scorer.pace(sequences)
    life = np.column_stack([pace, (number[:, -1] + 1) / (pace + 1)])
    assert len(np.unique(scorer._group(life))) > 3
    expected = scorer.judge_sums(errors, sums, number, pace)
    found = single_judgements(scorer, errors, sums, number, pace)
    columns = [(name, column.name) for name, fields in scorer.fields.items() for column in fields]
    age = sequences.time - sequences.time[sequences.offsets[:-1]].repeat(sequences.lengths)
    single = SingleScorer(scorer, columns)
    assert [single.pace(*one) for one in zip(sequences.position + 1, age, strict=True)] == pace.tolist()
    np.testing.assert_allclose([one.log_p for one in found], expected.log_p, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose([one.evidence for one in found], expected.evidence, rtol=1e-9, atol=1e-15)
    for name, log_p in expected.models.items():
        np.testing.assert_allclose([one.models[name] for one in found], log_p, rtol=1e-6, atol=1e-9)
    fresh = np.minimum(np.nan_to_num(scorer.fresh(errors)), 7.0)
    np.testing.assert_allclose([one.counted for one in found], fresh, rtol=1e-6, atol=1e-9)


def test_without_a_past_and_without_groups(detector: Detector) -> None:
    """A combination without scales, calibrated on too few events for a group of their own."""
    scorer = Scorer(detector.scorer_.fields, Combination(scales=()))
    errors = {
        name: DRAW.exponential(size=(50, len(columns))).astype(np.float32) for name, columns in scorer.fields.items()
    }

    sequences = sequences_of([np.arange(50.0).tolist()])
    scorer.fit(errors, sequences, np.ones(50, dtype=bool))
    assert not [name for name in scorer.calibrators_ if name.startswith("group.")]
    nothing = np.zeros((50, 0))
    pace = scorer.pace(sequences)
    expected = scorer.judge_sums(errors, nothing, nothing, pace)
    found = single_judgements(scorer, errors, nothing, nothing, pace)
    assert not pace.any()
    np.testing.assert_allclose([one.log_p for one in found], expected.log_p, rtol=1e-6, atol=1e-9)
