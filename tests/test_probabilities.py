"""What outputs mean as probabilities: every map rises, and finds what made the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomaly.models.probabilities import Calibration, Temperature, isotonic, platt, prior_line


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
@pytest.mark.parametrize("case", ["usual", "separated", "backwards", "constant", "one fraud", "few values"])
def test_any_calibration_rises(kind: Any, case: str) -> None:
    draw = np.random.default_rng(0)
    fraud = np.arange(400) % 10 == 0
    logit = {
        "usual": draw.normal(0, 1, 400) + 2 * fraud,
        "separated": draw.normal(0, 1, 400) + 50 * fraud,
        "backwards": draw.normal(0, 1, 400) - 3 * fraud,
        "constant": np.full(400, 0.5),
        "one fraud": draw.normal(0, 1, 400),
        "few values": draw.integers(0, 3, 400) + 1.0 * fraud,
    }[case]
    fraud = np.arange(400) == 7 if case == "one fraud" else fraud
    calibration = Calibration.of(kind, logit, fraud)
    grid = np.linspace(logit.min() - 1, logit.max() + 1, 1001)
    chance = calibration(grid)
    assert (np.diff(chance) > 0).all(), "no ties, no turning round"
    assert ((chance > 0) & (chance < 1)).all()
    assert calibration(logit).mean() == pytest.approx(fraud.mean(), abs=0.012)
    assert np.isnan(calibration(np.array([np.nan]))).all()


def test_platt_finds_the_line_that_made_the_labels() -> None:
    draw = np.random.default_rng(1)
    logit = draw.normal(100, 40, 50_000)
    fraud = draw.random(50_000) < 1 / (1 + np.exp(-(0.05 * logit - 7)))
    slope, shift = platt(logit, fraud)
    assert slope == pytest.approx(0.05, rel=0.05)
    assert shift == pytest.approx(-7, rel=0.05)


def test_isotonic_follows_what_no_line_can() -> None:
    draw = np.random.default_rng(2)
    logit = draw.uniform(-4, 4, 50_000)
    truth = np.where(logit < 0, 0.02, 0.6)  # a step
    z, log_odds = isotonic(logit, draw.random(50_000) < truth)
    assert (np.diff(z) > 0).all()
    assert (np.diff(log_odds) > 0).all()
    found = Calibration(z, log_odds, 1.0)(np.array([-2.0, 2.0]))
    np.testing.assert_allclose(found, [0.02, 0.6], atol=0.03)


def test_a_temperature_finds_the_slope_that_made_the_labels() -> None:
    draw = np.random.default_rng(3)
    logits = draw.normal(0, 3, (20_000, 4))
    label = np.argmax(0.5 * logits + draw.gumbel(size=logits.shape), axis=1)  # draws from a softmax
    assert Temperature.of("platt", logits, label).slope == pytest.approx(0.5, rel=0.05)
    assert Temperature.of("none", logits, label).slope == 1.0
    chance = Temperature(0.5)(np.vstack([logits, np.full(4, np.nan)]))
    np.testing.assert_allclose(chance[:-1].sum(axis=1), 1.0)
    assert np.isnan(chance[-1]).all()


def test_a_prior_becomes_log_odds_beside_those_of_any_event() -> None:
    draw = np.random.default_rng(0)
    score = draw.normal(size=40_000)
    fraud = draw.random(len(score)) < 1 / (1 + np.exp(4.0 - 0.7 * score))
    slope, shift = prior_line(score, fraud)
    assert slope == pytest.approx(0.7, abs=0.05)
    assert shift + np.log(fraud.mean() / (1 - fraud.mean())) == pytest.approx(-4.0, abs=0.1)
    assert prior_line(-score, fraud)[0] > 0  # a ranking is never turned round
