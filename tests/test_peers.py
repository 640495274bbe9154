"""The detectors to compare with, and TSB-AD's measures; what needs the extra `bench` or the data is skipped without."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import _peers
import _series
import numpy as np
import polars as pl
import pytest
from _environment import ROOT
from numpy.typing import NDArray

from anomaly.evaluation import average_precision, roc_auc, rule_ratio
from anomaly.features import Encoder
from anomaly.ingest import read_events
from anomaly.simulator import SIMULATED_SCHEMA, simulate

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NAB = ROOT.parent / "shared" / "data" / "nab"
NEEDS_NAB = pytest.mark.skipif(not NAB.exists(), reason="the Numenta Anomaly Benchmark's series are not here")


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Payments with their frauds, as canonical events with a column `fraud`."""
    events, labels = simulate(customers=60, days=60, fraud_rate=0.03, seed=4)
    canonical = read_events(events, SIMULATED_SCHEMA).frame
    return canonical.with_columns(fraud=labels["fraud"].gather(canonical["row"]))


@pytest.fixture(scope="module")
def history(frame: pl.DataFrame) -> Bools:
    time = frame["time"].to_numpy()
    return np.asarray(time < time.min() + 40 * 86_400)


@pytest.fixture(scope="module")
def features(frame: pl.DataFrame, history: Bools) -> _peers.EventFeatures:
    return _peers.event_features(frame, SIMULATED_SCHEMA, history)


# ---- rules -----------------------------------------------------------------------------------------------------------


def test_rules_rank_simulated_frauds_above_chance(frame: pl.DataFrame, history: Bools) -> None:
    entity, time = frame["entity"].rank("dense").to_numpy(), frame["time"].to_numpy()
    amount, category = frame["n:amount"].to_numpy(), frame["c:merchant_category"].to_numpy()
    found = _peers.rules(entity, amount, time, category, history)
    assert list(found) == ["amount", "ratio", "robust_z"]
    assert found["amount"].tolist() == amount.tolist()
    expected = rule_ratio(entity, amount, time, float(np.median(amount[history])))
    assert found["ratio"].tolist() == expected.tolist()
    for score in found.values():
        assert roc_auc(score[~history], frame["fraud"].to_numpy()[~history]) > 0.55


def test_robust_z_learns_nothing_from_what_is_scored(frame: pl.DataFrame, history: Bools) -> None:
    amount, category = frame["n:amount"].to_numpy(), frame["c:merchant_category"].to_numpy()
    score = _peers.robust_z(amount, category, history)
    later = np.where(history, amount, 1000 * amount)
    changed = _peers.robust_z(later, category, history)
    assert changed[history].tolist() == score[history].tolist()
    assert (changed[~history] > score[~history]).all()


def test_robust_z_of_a_common_category_is_the_textbook_s() -> None:
    rng = np.random.default_rng(0)
    amount = np.exp(np.concatenate([rng.normal(3, 0.4, 40_000), rng.normal(6, 0.8, 40_000)]))
    category = np.repeat(["coffee", "rent"], 40_000)
    score = _peers.robust_z(amount, category, np.ones(80_000, dtype=bool))
    expected = np.concatenate([(np.log(amount[:40_000]) - 3) / 0.4, (np.log(amount[40_000:]) - 6) / 0.8])
    assert np.abs(score - expected).max() < 0.15
    assert score[:40_000].std() == pytest.approx(1, abs=0.02)


def test_robust_z_judges_rare_and_unknown_categories_by_the_population() -> None:
    rng = np.random.default_rng(1)
    amount = np.append(np.exp(rng.normal(3, 0.5, 1000)), [20.0, 20.0, 500.0, 500.0, 500.0, np.nan])
    names = ["common"] * 1000 + ["constant", "constant", "constant", "new", None, "common"]
    history = np.append(np.ones(1002, dtype=bool), np.zeros(4, dtype=bool))
    category = np.array(names, dtype=object)
    score = _peers.robust_z(amount, category, history)
    assert np.isnan(score[-1]) and np.isfinite(score[:-1]).all()
    assert score[1003] == score[1004] == pytest.approx((np.log(500) - 3) / 0.5, rel=0.1)  # never seen: the population
    assert score[1002] == pytest.approx(score[1003], rel=0.15)  # two equal amounts teach next to nothing
    both = _peers.robust_z(amount, category, history, tail="both")
    assert both[:-1].tolist() == np.abs(score[:-1]).tolist()


def test_robust_z_takes_refunds_and_equal_amounts_and_refuses_an_empty_history() -> None:
    amount, category = np.array([5.0, 5.0, 5.0, 5.0, -5.0, 0.0, 50.0]), np.zeros(7, dtype=int)
    history = np.array([True] * 4 + [False] * 3)
    score = _peers.robust_z(amount, category, history)
    assert score[:4].tolist() == [0, 0, 0, 0]
    assert score[4] < score[5] < 0 < score[6]
    with pytest.raises(ValueError, match="at least one amount"):
        _peers.robust_z(amount, category, np.zeros(7, dtype=bool))


# ---- features and detectors of single events -------------------------------------------------------------------------


def test_features_are_the_encoder_s_numbers_and_flags(
    frame: pl.DataFrame, history: Bools, features: _peers.EventFeatures
) -> None:
    encoder = Encoder(SIMULATED_SCHEMA).fit(frame, history)
    sequences = encoder.transform(frame)
    width = len(encoder.numeric)
    assert features.matrix.shape == (len(frame), len(features.names))
    assert features.names[:width] == tuple(column.name for column in encoder.numeric)
    assert features.names[width:] == tuple(
        f"{what}:{name}" for name in SIMULATED_SCHEMA.categorical for what in ("first", "changed")
    )
    missing = np.isnan(sequences.numeric)
    assert missing.any()
    assert np.array_equal(features.matrix[:, :width], np.where(missing, 0, sequences.numeric))
    assert set(np.unique(features.matrix[:, width:])) == {0, 1}
    assert features.offsets.tolist() == sequences.offsets.tolist()
    assert features.row.tolist() == frame["row"].to_list()
    first = features.matrix[:, features.names.index("first:device_id")]
    assert first[features.offsets[:-1]].all() and first.mean() < 0.2
    assert not features.matrix[features.offsets[:-1], features.names.index("changed:device_id")].any()


def test_an_isolation_forest_finds_simulated_frauds(
    frame: pl.DataFrame, history: Bools, features: _peers.EventFeatures
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn (extra bench) is not installed")
    train, test = features.matrix[history], features.matrix[~history]
    score = _peers.isolation_forest(train, test, seed=1)
    assert score.shape == (len(test),)
    assert score.tolist() == _peers.isolation_forest(train, test, seed=1).tolist()
    assert score.tolist() != _peers.isolation_forest(train, test, seed=2).tolist()
    assert roc_auc(score, frame["fraud"].to_numpy()[~history]) > 0.7
    far = np.full((1, train.shape[1]), 50.0)
    assert _peers.isolation_forest(train, far, seed=1)[0] > score.max()


def test_ecod_finds_simulated_frauds(frame: pl.DataFrame, history: Bools, features: _peers.EventFeatures) -> None:
    pytest.importorskip("pyod", reason="PyOD (extra bench) is not installed")
    train, test = features.matrix[history], features.matrix[~history]
    score = _peers.ecod(train, test)
    assert score.shape == (len(test),) and np.isfinite(score).all()
    assert roc_auc(score, frame["fraud"].to_numpy()[~history]) > 0.7
    far = np.vstack([test, np.full((1, train.shape[1]), 50.0)])
    assert np.argmax(_peers.ecod(train, far)) == len(test)


# ---- PyOD's LSTM -----------------------------------------------------------------------------------------------------


def waves(lengths: tuple[int, ...], seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """One wave per entity, at levels far apart, and the borders."""
    rng = np.random.default_rng(seed)
    parts = [
        np.column_stack([np.sin(np.arange(n) / 2 + level), np.full(n, 3.0 * (level % 2))])
        + 0.05 * rng.normal(size=(n, 2))
        for level, n in enumerate(lengths)
    ]
    return np.vstack(parts), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def lstm(matrix: Floats, offsets: NDArray[np.int64], learned: int, **given: Any) -> Floats:
    position = np.arange(len(matrix)) - np.repeat(offsets[:-1], np.diff(offsets))
    history = position < learned
    return _peers.pyod_lstm(matrix, offsets, history, ~history, **{"seed": 0, "window": 5, "epochs": 2, **given})


def test_pyod_s_lstm_scores_each_entity_alone() -> None:
    pytest.importorskip("pyod", reason="PyOD (extra bench) is not installed")
    import torch

    matrix, offsets = waves((60, 50, 43, 3))
    matrix[55, 0] += 8.0
    before = torch.random.get_rng_state()
    score = lstm(matrix, offsets, 40)
    assert torch.equal(before, torch.random.get_rng_state())
    asked = np.concatenate([np.arange(40, 60), np.arange(100, 110), np.arange(150, 153)])
    assert np.flatnonzero(~np.isnan(score)).tolist() == asked.tolist()  # the last entity has history alone
    assert np.nanargmax(score) == 55
    assert score.tolist() == pytest.approx(lstm(matrix, offsets, 40).tolist(), nan_ok=True)
    changed = matrix.copy()
    changed[40:60] = 0.0  # what is scored of one entity changes nothing of another, and teaches nothing
    assert lstm(changed, offsets, 40)[60:].tolist() == pytest.approx(score[60:].tolist(), nan_ok=True)


def test_pyod_s_lstm_gives_its_threshold_to_events_without_a_window() -> None:
    pytest.importorskip("pyod", reason="PyOD (extra bench) is not installed")
    matrix, offsets = waves((60, 12, 4))
    position = np.arange(len(matrix)) - np.repeat(offsets[:-1], np.diff(offsets))
    history = (np.arange(len(matrix)) < 40) & (position < 40)
    score = _peers.pyod_lstm(matrix, offsets, history, ~history, seed=0, window=5, epochs=2)
    cold = np.concatenate([score[60:65], score[72:76]])
    assert len(set(cold)) == 1 and np.isfinite(cold).all()
    assert len(set(score[65:72])) == 7


def test_pyod_s_lstm_on_one_series_is_pyod_s_own() -> None:
    module = pytest.importorskip("pyod.models.ts_lstm", reason="PyOD (extra bench) is not installed")
    import torch

    matrix, offsets = waves((80,))
    score = lstm(matrix, offsets, 60)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = module.LSTMAD(window_size=5, epochs=2).fit(matrix[:60]).decision_function(matrix)
    assert score[60:].tolist() == pytest.approx(own[60:].tolist())


def test_pyod_s_lstm_learns_from_no_window_across_a_border(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("pyod.models.ts_lstm", reason="PyOD (extra bench) is not installed")
    seen: list[Floats] = []
    train = module.LSTMAD._train_model

    def spy(self: Any, inputs: Floats, targets: Floats, n_channels: int) -> Any:
        seen.append(np.concatenate([inputs, targets[:, None]], axis=1))
        return train(self, inputs, targets, n_channels)

    monkeypatch.setattr(module.LSTMAD, "_train_model", spy)
    matrix, offsets = waves((60, 50, 43, 3))
    lstm(matrix, offsets, 40)
    (windows,) = seen
    assert len(windows) == 3 * (40 - 5)
    assert np.ptp(windows[:, :, 1], axis=1).max() < 1  # the entities' levels are 3 apart
    lstm(matrix, offsets, 40, train_events=55)
    assert len(seen[1]) == (40 - 5) + (15 - 5)  # one history whole, another cut


def test_pyod_s_lstm_refuses_a_history_that_it_cannot_use() -> None:
    matrix, offsets = waves((30, 30))
    late = np.tile(np.arange(30) >= 20, 2)
    with pytest.raises(ValueError, match="first events of each entity"):
        _peers.pyod_lstm(matrix, offsets, late, ~late, seed=0)
    short = np.tile(np.arange(30) < 4, 2)
    with pytest.raises(ValueError, match="more than window=5 events of history"):
        _peers.pyod_lstm(matrix, offsets, short, ~short, seed=0, window=5)


# ---- TSB-AD's measures -----------------------------------------------------------------------------------------------


def labelled_wave() -> tuple[Floats, Bools, Floats]:
    """Value, label and score of 600 hours with a period of 24; the last anomaly ends with the series."""
    rng = np.random.default_rng(5)
    value = np.sin(np.arange(600) * 2 * np.pi / 24) + 0.3 * rng.normal(size=600)
    label = np.zeros(600, dtype=bool)
    for first, end in ((200, 230), (240, 250), (420, 450), (590, 600)):
        label[first:end] = True
    return value, label, np.abs(value) + np.where(label, 0.7, 0.0)


def test_vus_pr_is_what_tsb_ad_says() -> None:
    """The numbers were computed by TSB-AD 1.5."""
    _, label, score = labelled_wave()
    assert _series.vus_pr(score, label, 0) == pytest.approx(0.7073172776479084)
    assert _series.vus_pr(score, label, 24) == pytest.approx(0.7422212708813904)
    assert _series.vus_pr(score, label, 125) == pytest.approx(0.8247985355456297)
    assert _series.vus_pr(np.round(score), label, 24) == pytest.approx(0.49020850719363035)  # ties
    assert _series.vus_pr(-score, label, 24) == pytest.approx(0.10667778307493604)


def test_vus_pr_and_period_agree_with_the_package_where_it_is_installed() -> None:
    pytest.importorskip("TSB_AD", reason="TSB-AD is not installed (it asks for numpy below 2)")
    rng = np.random.default_rng(0)
    for turn in range(9):
        n = int(rng.integers(30, 600))
        label = np.zeros(n, dtype=bool)
        for first in rng.integers(0, n, size=rng.integers(1, 5)):
            label[first : first + rng.integers(1, n // 8)] = True
        score = np.round(rng.normal(size=n) + label, 0 if turn % 3 == 0 else 9)
        window = int(rng.integers(0, 50))
        assert _series.vus_pr(score, label, window) == pytest.approx(_series.published_vus_pr(score, label, window))
    windows = pytest.importorskip("TSB_AD.utils.slidingWindows", reason="statsmodels is not installed")
    for n, length in ((50, 7), (500, 24), (2000, 180), (2000, 350), (300, 1000)):
        value = np.sin(np.arange(n) * 2 * np.pi / length) + 0.2 * rng.normal(size=n)
        assert _series.period(value) == windows.find_length_rank(value.reshape(-1, 1), rank=1)


def test_vus_pr_without_tolerance_is_average_precision() -> None:
    rng = np.random.default_rng(2)
    label = np.zeros(240, dtype=bool)
    label[100:130] = True  # one anomaly, and fewer points than thresholds
    score = rng.normal(size=240) + label
    assert _series.vus_pr(score, label, 0) == pytest.approx(average_precision(score, label))
    assert _series.auc_pr(score, label) == average_precision(score, label)


def test_vus_pr_of_the_best_and_of_a_late_alarm() -> None:
    label = np.zeros(400, dtype=bool)
    label[200:220] = True
    distance = np.maximum(np.maximum(200 - np.arange(400), np.arange(400) - 219), 0).astype(float)
    assert _series.vus_pr(-distance, label, 20) > 0.98
    late = np.zeros(400)
    late[222:232] = 1.0
    assert _series.vus_pr(late, label, 20) > 2 * _series.vus_pr(late, label, 0)


@pytest.mark.parametrize(
    ("score", "label"),
    [
        ([1.0, np.nan], [True, False]),
        ([1.0, 2.0], [False, False]),
        ([1.0, 2.0, 3.0], [True, False]),
    ],
)
def test_vus_pr_refuses_what_it_cannot_rank(score: list[float], label: list[bool]) -> None:
    with pytest.raises(ValueError, match="vus_pr: expected scores without NaN"):
        _series.vus_pr(np.array(score), np.array(label), 3)


def test_the_period_is_the_highest_peak_of_autocorrelation() -> None:
    assert _series.period(labelled_wave()[0]) == 24
    assert _series.period(np.ones(300)) == _series.NO_PERIOD
    assert _series.period(np.arange(300.0)) == _series.NO_PERIOD


# ---- series ----------------------------------------------------------------------------------------------------------


def write_series(folder: Path, first: int) -> None:
    """A series of 100 hours with a window of ten from hour `first`."""
    start = datetime(2024, 1, 1)
    times = [start + timedelta(hours=hour) for hour in range(100)]
    value = np.where((np.arange(100) >= first) & (np.arange(100) < first + 10), 50.0, np.arange(100) % 3)
    pl.DataFrame({"timestamp": [str(time) for time in times], "value": value}).write_csv(folder / "one.csv")
    told = [[f"{times[first]}.000000", f"{times[first + 9]}.000000"]]
    (folder / "windows.json").write_text(json.dumps({"one.csv": told}), encoding="utf-8")


@pytest.mark.parametrize(("first", "fitted"), [(60, 25), (20, 20), (5, 15)])
def test_a_series_is_read_with_its_labels_and_its_fitted_part(tmp_path: Path, first: int, fitted: int) -> None:
    write_series(tmp_path, first)
    assert _series.series_names(tmp_path) == ["one"]
    series = _series.load_series(tmp_path, "one")
    assert np.flatnonzero(series.label).tolist() == list(range(first, first + 10))
    assert series.fitted == fitted and series.until == datetime(2024, 1, 1) + timedelta(hours=fitted)
    score = _series.distance_from_median(series)
    assert score.shape == series.value.shape
    assert score.tolist() == np.abs(series.value - np.median(series.value[:fitted])).tolist()
    if first != 5:
        assert _series.auc_pr(score, series.label) == _series.vus_pr(score, series.label, 0) == 1


@NEEDS_NAB
def test_the_median_rule_on_the_benchmark_s_series() -> None:
    """The figures were computed by TSB-AD 1.5 and scikit-learn."""
    expected = {
        "ambient_temperature_system_failure": (23, 0.36488, 0.35939),
        "cpu_utilization_asg_misconfiguration": (12, 0.22195, 0.21789),
        "ec2_request_latency_system_failure": (6, 0.12757, 0.13582),
        "machine_temperature_system_failure": (125, 0.62622, 0.60165),
        "nyc_taxi": (125, 0.16182, 0.14813),
        "rogue_agent_key_hold": (125, 0.24476, 0.15749),
        "rogue_agent_key_updown": (24, 0.10375, 0.09960),
    }
    assert _series.series_names(NAB) == sorted(expected)
    for name, (window, vus, auc) in expected.items():
        series = _series.load_series(NAB, name)
        assert sum(time < series.until for time in series.time) == series.fitted
        score = _series.distance_from_median(series)
        assert _series.period(series.value) == window
        assert _series.vus_pr(score, series.label, window) == pytest.approx(vus, abs=1e-5)
        assert _series.auc_pr(score, series.label) == pytest.approx(auc, abs=1e-5)
