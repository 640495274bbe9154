"""Peaks over a threshold: the rate that was asked for on known tails, and what live events do and do not teach."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from anomaly.errors import ArtifactError, ParameterError
from anomaly.thresholds import PeaksOverThreshold, extremes

DAY = 86_400.0
Floats = NDArray[np.float64]


def held_out(surprise: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """A slice of ten days, in the order of time."""
    n = surprise.size
    return np.exp(-surprise), np.linspace(0, 10 * DAY, n), np.arange(n)


def exponential(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).exponential(size=n)


def heavy(n: int, seed: int = 0) -> Floats:
    return np.asarray(stats.genpareto(0.25).rvs(n, random_state=np.random.default_rng(seed)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exponential tails by their mean: the tests of the bookkeeping need no search for a shape."""
    monkeypatch.setattr(extremes, "fit_tail", lambda _, excess: (0.0, float(excess.mean())))


@pytest.mark.parametrize("rate", [0.005, 0.001, 0.0001])
def test_right_p_values_give_the_rate(rate: float) -> None:
    rule = PeaksOverThreshold(rate).fit(*held_out(exponential(100_000)))
    assert rule.threshold_ == pytest.approx(rate, rel=0.2)
    noise = 4 * np.sqrt(rate / 200_000)
    assert rule.decide(np.exp(-exponential(200_000, seed=1))).mean() == pytest.approx(rule.threshold_, abs=noise)
    assert rule.backtest_.within.sum() >= 7


def test_a_heavy_tail_gives_the_rate_too() -> None:
    rule = PeaksOverThreshold(0.001).fit(*held_out(heavy(50_000)))
    z = -np.log(rule.threshold_)
    assert stats.genpareto(0.25).sf(z) == pytest.approx(0.001, rel=0.4)
    assert rule.threshold_ < 1e-5  # far from p <= rate: the p-values are wrong, the rate is right


def test_a_stream_of_the_same_law_alerts_at_the_rate() -> None:
    rule = PeaksOverThreshold(0.002).fit(*held_out(exponential(50_000)))
    alerts = sum(rule.update(p) for p in np.exp(-exponential(20_000, seed=2)))
    assert alerts == pytest.approx(40, abs=20)
    assert rule.refits_ > 15
    assert rule.threshold_ == pytest.approx(0.002, rel=0.5)


def test_a_stream_that_grows_stranger_comes_back_to_the_rate(quick: None) -> None:  # noqa: ARG001
    rule = PeaksOverThreshold(0.002, peaks=300).fit(*held_out(exponential(15_000)))
    fixed = rule.threshold_
    stranger = np.exp(-1.5 * exponential(40_000, seed=3))
    decided = [rule.update(p) for p in stranger]
    assert np.mean(stranger[20_000:] <= fixed) > 0.01
    assert np.mean(decided[20_000:]) == pytest.approx(0.002, rel=0.5)


def test_the_rate_does_not_creep_up_in_a_window_that_forgets(quick: None) -> None:  # noqa: ARG001
    rule = PeaksOverThreshold(0.004, peaks=200).fit(*held_out(exponential(10_000)))
    decided = [rule.update(p) for p in np.exp(-exponential(60_000, seed=4))]
    assert rule._held == 0  # the window has turned over: only live peaks are left, each of them cut off at z
    assert np.mean(decided[30_000:]) == pytest.approx(0.004, rel=0.35)


def test_alerts_teach_nothing() -> None:
    rule = PeaksOverThreshold(0.001).fit(*held_out(exponential(20_000)))
    before = rule.state()
    for p in (1e-300, 0.0, 1e-9, rule.threshold_):
        assert all(rule.update(p) for _ in range(500))
    assert rule.state() == before
    assert not rule.update(float("nan"))
    assert rule.state() == before


def test_peaks_teach_and_other_events_are_counted() -> None:
    rule = PeaksOverThreshold(0.001).fit(*held_out(exponential(20_000)))
    t, z = rule._start, -np.log(rule.threshold_)
    assert t < z
    before = rule.state()
    assert not rule.update(float(np.exp(-t)))  # at t itself: no peak
    assert rule.state() == {**before, "since": before["since"] + 1}
    assert not rule.update(float(np.exp(-(t + z) / 2)))
    after = rule.state()
    assert after["excesses"][-1] == pytest.approx((z - t) / 2)
    assert after["gaps"][-1] == before["since"] + 2
    assert after["since"] == 0
    assert after["threshold"] != before["threshold"]


def test_what_is_remembered_is_bounded(quick: None) -> None:  # noqa: ARG001
    rule = PeaksOverThreshold(0.001, peaks=100).fit(*held_out(exponential(8_000)))
    for p in np.exp(-exponential(15_000, seed=5)):
        rule.update(p)
        assert len(rule._window) <= 100
    assert rule._count == rule._since + sum(gap for _, gap in rule._window)
    assert rule._share() == pytest.approx(100 / 8_000, rel=0.4)


def test_deciding_a_batch_teaches_nothing() -> None:
    rule = PeaksOverThreshold(0.001).fit(*held_out(exponential(20_000)))
    before = rule.state()
    p = np.exp(-exponential(5_000, seed=6))
    np.testing.assert_array_equal(rule.decide(p), p <= rule.threshold_)
    assert rule.state() == before


def test_a_stream_goes_on_from_its_state() -> None:
    law = exponential(14_000, seed=7)
    rule = PeaksOverThreshold(0.003, peaks=200).fit(*held_out(law[:10_000]))
    for p in np.exp(-law[10_000:12_000]):
        rule.update(p)
    saved = json.loads(json.dumps(rule.state()))
    other = PeaksOverThreshold(0.003, peaks=200).fit(*held_out(exponential(10_000, seed=8))).restore(saved)
    assert other.state() == rule.state()
    rest = np.exp(-law[12_000:])
    assert [other.update(p) for p in rest] == [rule.decide_one(p) for p in rest]
    assert other.state() == rule.state() != saved
    assert other.fit(*held_out(law[:10_000])).refits_ == 0  # fit begins anew


@pytest.mark.parametrize(
    "change",
    [
        {"gaps": []},
        {"excesses": None},
        {"tail": [0.0, -1.0, 10]},
        {"tail": [0.0]},
        {"since": -1},
        {"start": "x"},
    ],
)
def test_a_changed_state_is_refused(change: dict[str, object]) -> None:
    rule = PeaksOverThreshold(0.001).fit(*held_out(exponential(500)))
    before = rule.state()
    with pytest.raises(ArtifactError, match="incomplete or changed"):
        rule.restore({**before, **change})
    with pytest.raises(ArtifactError, match="incomplete or changed"):
        rule.restore({name: value for name, value in before.items() if name != next(iter(change))})
    with pytest.raises(ArtifactError, match="expected the state of a PeaksOverThreshold"):
        PeaksOverThreshold(0.002).fit(*held_out(exponential(500))).restore(before)
    assert rule.state() == before


def test_the_tail_is_learned_without_the_day_that_is_tested() -> None:
    surprise = exponential(30_000)
    surprise[27_000:] *= 3.0  # the last of ten days is three times as strange
    rule = PeaksOverThreshold(0.002).fit(*held_out(surprise))
    without = PeaksOverThreshold(0.002).fit(
        np.exp(-surprise[:27_000]), np.linspace(0, 10 * DAY, 30_000)[:27_000], np.arange(27_000)
    )
    assert rule.backtest_.events[-1] == np.sum(np.exp(-surprise[27_000:]) <= without.threshold_)
    assert rule.backtest_.events[-1] > 3 * rule.backtest_.events[:-1].max()
    assert not rule.backtest_.within[-1]


def test_few_peaks_are_taken_as_exponential() -> None:
    p = np.full(200, 0.5)
    rule = PeaksOverThreshold(0.001).fit(p, np.linspace(0, 3 * DAY, 200), np.arange(200))  # no peak at all
    assert 0 < rule.threshold_ < 0.5
    assert rule.decide([1e-4])[0] and not rule.decide([0.5])[0]
    assert isinstance(rule.update(0.4), bool)


@pytest.mark.parametrize("tie", [0.05, 0.1, 0.3])
def test_ties_at_the_threshold_never_alert(tie: float) -> None:
    p = np.maximum(np.exp(-exponential(1_000)), tie)  # what is strangest ties, so that there is no peak
    rule = PeaksOverThreshold(0.005).fit(p, np.linspace(0, 10 * DAY, 1_000), np.arange(1_000))
    assert not rule.decide(p).any()
    assert rule.decide([tie / 100])[0]


def test_short_slices_and_large_rates_are_sent_elsewhere() -> None:
    with pytest.raises(ParameterError, match="expected at least 100 held-out events with a p-value, got 99; give"):
        PeaksOverThreshold(0.001).fit(*held_out(exponential(99)))
    with pytest.raises(ParameterError, match=r"take FalseAlertRate\(0.05\)"):
        PeaksOverThreshold(0.05).fit(*held_out(exponential(1_000)))
    rule = PeaksOverThreshold(0.001).fit(*held_out(exponential(110)))  # ten days: too few without any of them, yet told
    assert rule.backtest_.cases.size == 10


def test_the_description_says_where_z_stands() -> None:
    rule = PeaksOverThreshold(0.001).fit(*held_out(exponential(20_000)))
    assert rule.describe().startswith(
        "Alerts on 1 in 1,000 normal events, as the peaks over a threshold tell (just now "
        f"p <= {rule.threshold_:.3g}, and it follows the stream): "
    )
