"""The calibrator's promises: p is uniform on fresh normal data, falls strictly, and resolves far past 1 / n."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anomaly.calibration import TailCalibrator, sum_log_p
from anomaly.errors import ArtifactError, NotFittedError, ParameterError

LAWS = {
    "normal": stats.norm(),
    "exponential": stats.expon(),
    "lognormal": stats.lognorm(1.0),
    "student": stats.t(3),
    "gamma": stats.gamma(8.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_p_is_uniform_on_fresh_data(name: str) -> None:
    law = LAWS[name]
    p = TailCalibrator().fit(law.rvs(40_000, random_state=1)).p_values(law.rvs(400_000, random_state=2))
    for level in (0.9, 0.5, 0.1, 0.02, 0.01, 0.005, 0.001):
        sampling = 4.0 * math.sqrt(level / 40_000 + level / 400_000)
        assert abs(np.mean(p <= level) - level) < sampling, level
    # 400 exceedances, extrapolated to one event in ten thousand; a light tail errs upward in p, never far downward
    assert 0.2e-4 < np.mean(p <= 1e-4) + 0.1e-4 < 2.5e-4


@pytest.mark.parametrize("name", ["exponential", "gamma", "lognormal", "normal"])
def test_tail_resolves_past_one_over_n(name: str) -> None:
    law = LAWS[name]
    far = law.isf(1e-5)
    ratios = [float(TailCalibrator().fit(law.rvs(20_000, random_state=s)).p_values(far)) / 1e-5 for s in range(20)]
    assert 1 / 2 < np.median(ratios) < 4
    # Too rare is the dangerous side: 200 exceedances, extrapolated a thousandfold, may err upward more.
    assert np.min(ratios) > 1 / 12
    assert np.max(ratios) < 12


def test_exponential_tail_probability_is_close() -> None:
    x = np.random.default_rng(0).exponential(size=20_000)
    assert 1 / 3 < float(TailCalibrator().fit(x).p_values(-math.log(1e-5))) / 1e-5 < 3


def test_atoms_count_as_at_least_as_strange() -> None:
    x = np.array([0.0] * 500 + [1.0] * 300 + [2.0] * 199 + [9.0])
    calibrator = TailCalibrator().fit(x)
    np.testing.assert_allclose(
        calibrator.p_values([-5.0, 0.0, 0.5, 1.0, 2.0]), np.array([1001, 1001, 501, 501, 201]) / 1001
    )


def test_atoms_in_a_large_sample_never_overstate() -> None:
    rng = np.random.default_rng(3)
    calibrator = TailCalibrator().fit(np.where(rng.random(200_000) < 0.3, 0.0, rng.lognormal(size=200_000)))
    fresh = calibrator.p_values(np.where(rng.random(200_000) < 0.3, 0.0, rng.lognormal(size=200_000)))
    assert abs(np.mean(fresh == 1.0) - 0.3) < 0.01
    for level in (0.6, 0.1, 0.01, 0.001):
        assert abs(np.mean(fresh <= level) - level) < 0.05 * level + 4e-3 * math.sqrt(level)


def test_tail_made_of_few_atoms_falls_back_to_exponential() -> None:
    calibrator = TailCalibrator().fit(np.repeat([0.0, 5.0, 6.0], [98_000, 1_500, 500]))
    assert calibrator.shape_ == 1 / 500
    p = calibrator.p_values([5.0, 6.0, 60.0])
    assert 0.0 < p[2] < p[1] < p[0]


def test_thinning_is_exact_to_one_in_ten_thousand() -> None:
    x = np.random.default_rng(4).normal(size=300_000)
    calibrator = TailCalibrator().fit(x)
    assert calibrator.values_.size <= 20_000
    probe = np.random.default_rng(5).normal(size=50_000)
    exact = (1 + x.size - np.searchsorted(np.sort(x), probe, side="left")) / (x.size + 1)
    error = np.abs(calibrator.p_values(probe) - exact)[probe <= calibrator.threshold_]
    assert error.max() < 1e-4
    band = (probe > np.quantile(x, 0.98)) & (probe <= calibrator.threshold_)
    assert np.abs(calibrator.p_values(probe[band]) - exact[band]).max() < 1e-5


def test_rounding_does_not_choose_the_rank_between_near_ties() -> None:
    x = np.random.default_rng(6).normal(size=200)
    x[100:] = x[:100] + 1e-9  # every value has a twin
    calibrator = TailCalibrator().fit(x)
    probe = x[x <= calibrator.threshold_ - 0.01]
    moved = np.abs(calibrator.p_values(probe + 1e-7) - calibrator.p_values(probe - 1e-7))
    assert moved.max() < 1e-4  # a rank is 5e-3


def test_near_ties_end_where_the_gap_is_less_than_rounding() -> None:
    """Most of the values within 1e-12, the rest so large that a gap of that size moves them nowhere."""
    x = np.concatenate([np.linspace(0, 1e-12, 80), 1e6 + np.arange(10.0), np.full(5, 2e6)])
    calibrator = TailCalibrator().fit(x)
    assert np.all(np.diff(calibrator.values_) > 0)
    assert {1e6, 2e6} <= set(calibrator.values_.tolist())


def test_joined_at_the_threshold() -> None:
    calibrator = TailCalibrator().fit(np.random.default_rng(6).normal(size=30_000))
    u = calibrator.threshold_
    before, after = calibrator.p_values([u, np.nextafter(u, np.inf)])
    assert 0 <= before - after <= 1.5 / 30_001


@pytest.mark.parametrize("name", LAWS)
def test_far_tail_never_ties(name: str) -> None:
    calibrator = TailCalibrator().fit(LAWS[name].rvs(20_000, random_state=7))
    x = calibrator.threshold_ + calibrator.scale_ * np.geomspace(1e-6, 1e8, 20_000)
    assert np.all(np.diff(calibrator.log_p(x)) < 0)
    p = calibrator.p_values(x)
    assert np.all(np.diff(p) <= 0)
    assert p.min() >= 1e-300


def test_log_p_goes_on_below_the_smallest_float() -> None:
    calibrator = TailCalibrator().fit(np.random.default_rng(8).exponential(size=1_000))
    assert calibrator.shape_ == 1 / 50
    far = calibrator.threshold_ + calibrator.scale_ * np.array([1e8, 1e9])
    ratio = (1 + 1e9 / 50) / (1 + 1e8 / 50)
    np.testing.assert_allclose(np.diff(calibrator.log_p(far)), -50 * math.log(ratio))
    assert np.all(calibrator.p_values(far) == 1e-300)
    near = calibrator.threshold_ + np.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(calibrator.log_p(near), np.log(calibrator.p_values(near)))


values = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=80, deadline=None)
@given(st.lists(values, min_size=1, max_size=300), st.lists(st.floats(allow_nan=False), min_size=2, max_size=50))
def test_monotone_and_never_zero(held: list[float], asked: list[float]) -> None:
    calibrator = TailCalibrator().fit(held)
    x = np.sort(np.array(asked + held))
    p, log_p = calibrator.p_values(x), calibrator.log_p(x)
    assert np.all(np.diff(p) <= 0)
    assert np.all(log_p[1:] <= log_p[:-1])
    assert np.all((p > 0) & (p <= 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(LAWS)), st.integers(5_000, 30_000))
def test_monotone_with_a_fitted_tail(seed: int, name: str, n: int) -> None:
    calibrator = TailCalibrator().fit(LAWS[name].rvs(n, random_state=seed))
    x = np.sort(LAWS[name].rvs(2_000, random_state=seed + 1 if seed < 2**32 - 1 else 0) * 3)
    assert np.all(np.diff(calibrator.p_values(x)) <= 0)


def test_nan_passes_through_and_is_dropped_by_fit() -> None:
    calibrator = TailCalibrator().fit([1.0, np.nan, 2.0, 3.0])
    assert calibrator.n_ == 3
    np.testing.assert_array_equal(np.isnan(calibrator.p_values([np.nan, 2.0, np.nan])), [True, False, True])
    assert np.isnan(calibrator.log_p(np.nan))
    assert np.isnan(calibrator.quantile(np.nan))


def test_infinities() -> None:
    calibrator = TailCalibrator().fit(np.arange(100.0))
    np.testing.assert_array_equal(calibrator.p_values([-np.inf, np.inf]), [1.0, 1e-300])
    assert calibrator.log_p(np.inf) == -np.inf


@pytest.mark.parametrize("constant", [0.0, -3.0, 1e9])
def test_constants(constant: float) -> None:
    calibrator = TailCalibrator().fit(np.full(10_000, constant))
    p = calibrator.p_values([constant - 1, constant, constant + 1, constant + 1e10])
    assert p[0] == p[1] == 1.0
    assert 0 < p[3] < p[2] <= 1 / 10_001


def test_tiny_samples() -> None:
    one = TailCalibrator().fit([4.0])
    np.testing.assert_allclose(one.p_values([3.0, 4.0, 8.0]), [1.0, 1.0, 0.5 / 2])  # one excess: (1 + z / m) ** -1
    five = TailCalibrator().fit([1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(five.p_values([0.0, 1.0, 2.5, 5.0]), np.array([6, 6, 4, 2]) / 6)
    assert five.scale_ == 1.5
    assert five.p_values(5.0 + 1.5) == pytest.approx((1 + 1 / 2) ** -2 / 6)


@pytest.mark.parametrize("n", [1_000, 10_000])
def test_far_events_are_promised_what_comes_though_the_scale_is_known_from_a_few_excesses(n: int) -> None:
    """The mean over many held-out slices of the share of new events at or below p is p: the new ones' law is known."""
    rng = np.random.default_rng(0)
    fits = [TailCalibrator().fit(rng.exponential(size=n)) for _ in range(400)]
    for level in (1e-3, 1e-4, 1e-5):
        mine, plain = [], []
        for one in fits:
            mine.append(math.exp(-float(one.quantile(level))))
            last = float(one.levels(slice(-1, None))[0])
            plain.append(math.exp(-(one.threshold_ + one.scale_ * math.log(last / level))))
        assert np.mean(mine) == pytest.approx(level, rel=0.12)
        assert np.mean(plain) > np.mean(mine)
    assert np.mean(plain) > 1.15 * level  # of an exponential tail whose scale is taken as known


@pytest.mark.parametrize("n", [1, 5, 300, 20_000, 100_000])
@pytest.mark.parametrize("name", ["normal", "student"])
def test_quantile_is_the_inverse(n: int, name: str) -> None:
    calibrator = TailCalibrator().fit(LAWS[name].rvs(n, random_state=9))
    levels = np.concatenate([np.geomspace(1e-40, 1e-3, 50), np.linspace(0.001, 1.0, 1_000)])
    x = calibrator.quantile(levels)
    assert np.all(np.diff(x) <= 0)
    reached = calibrator.p_values(x)
    tail = levels < calibrator.above_[-1]
    np.testing.assert_allclose(reached[tail], levels[tail], rtol=1e-6)
    assert np.all(reached[~tail] >= levels[~tail] * (1 - 1e-9))
    assert np.all(reached[~tail] <= levels[~tail] + 1.01 / (n + 1) + 1e-9)


def test_quantile_refuses_what_is_no_probability() -> None:
    calibrator = TailCalibrator().fit([1.0, 2.0])
    for wrong in (0.0, -0.1, 1.5):
        with pytest.raises(ParameterError, match="probabilities"):
            calibrator.quantile([0.5, wrong])


@pytest.mark.parametrize("n", [1, 50, 30_000])
def test_round_trip(n: int) -> None:
    calibrator = TailCalibrator().fit(np.random.default_rng(10).normal(size=n))
    back = TailCalibrator.from_arrays(calibrator.arrays())
    x = np.linspace(-10, 50, 1_001)
    np.testing.assert_array_equal(back.p_values(x), calibrator.p_values(x))
    np.testing.assert_array_equal(back.log_p(x), calibrator.log_p(x))
    np.testing.assert_array_equal(back.quantile([1e-9, 0.2]), calibrator.quantile([1e-9, 0.2]))


def test_broken_arrays_are_refused() -> None:
    arrays = TailCalibrator().fit([1.0, 2.0]).arrays()
    with pytest.raises(ArtifactError, match="missing tail"):
        TailCalibrator.from_arrays({k: v for k, v in arrays.items() if k != "tail"})
    with pytest.raises(ArtifactError, match="one length"):
        TailCalibrator.from_arrays({**arrays, "at": arrays["at"][:1]})
    with pytest.raises(ArtifactError, match="scale"):
        TailCalibrator.from_arrays({**arrays, "tail": np.array([0.1, 0.0])})


def test_errors() -> None:
    with pytest.raises(NotFittedError):
        TailCalibrator().p_values([1.0])
    with pytest.raises(NotFittedError):
        TailCalibrator().arrays()
    with pytest.raises(ParameterError, match="shape"):
        TailCalibrator().fit(np.zeros((2, 2)))
    with pytest.raises(ParameterError, match="at least one"):
        TailCalibrator().fit([np.nan])
    with pytest.raises(ParameterError, match="finite"):
        TailCalibrator().fit([1.0, np.inf])


def test_the_logs_of_several_calibrators_add_up() -> None:
    draw = np.random.default_rng(5)
    calibrators = [TailCalibrator().fit(draw.exponential(size, 5000)) for size in (1.0, 3.0)]
    x = [draw.exponential(4.0, 300).astype(np.float32), draw.exponential(40.0, 300).astype(np.float32)]
    x[0][7] = x[1][9] = np.nan
    x[1][11] = 1e30
    together = sum_log_p(calibrators, x)
    each = [one.log_p(values.astype(np.float64)) for one, values in zip(calibrators, x, strict=True)]
    np.testing.assert_allclose(together, sum(each), rtol=1e-12)
    assert np.isnan(together[[7, 9]]).all()
    assert np.isfinite(together).sum() == 298


def test_another_fit_is_looked_up_anew() -> None:
    draw = np.random.default_rng(6)
    calibrator = TailCalibrator().fit(draw.exponential(1.0, 500))
    assert calibrator.p_values(2.0) < 0.3
    calibrator.fit(draw.exponential(1.0, 500) + 5.0)
    assert calibrator.p_values(2.0) == 1.0
