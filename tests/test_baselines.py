"""The supervised baselines: one contract for all, the settings that reach the libraries, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from _environment import ROOT
from numpy.typing import NDArray

from anomaly.errors import AnomalyError, NotFittedError, PackageError, ParameterError
from anomaly.evaluation import roc_auc
from anomaly.models.baselines import BASELINES, Baseline, Boosting, Forest, Isolation, Logistic

Floats = NDArray[np.float64]

NEEDS = {"logistic": ["sklearn"], "forest": ["sklearn"], "xgboost": ["sklearn", "xgboost"]}
KINDS: dict[str, Callable[[], Baseline]] = {
    "logistic": Logistic,
    "forest": lambda: Forest(trees=20, depth=4),
    "xgboost": lambda: Boosting(trees=20),
}


@pytest.fixture(params=list(KINDS))
def make(request: pytest.FixtureRequest) -> Callable[[], Baseline]:
    for package in NEEDS[request.param]:
        pytest.importorskip(package, reason=f"{package} (extra baselines) is not installed")
    return KINDS[request.param]


@pytest.fixture(scope="module")
def events() -> tuple[Floats, NDArray[np.bool_]]:
    """Features of which the second one tells fraud, on scales far apart."""
    rng = np.random.default_rng(0)
    fraud = rng.random(2000) < 0.1
    features = np.column_stack([rng.normal(0, 1e4, 2000), rng.normal(0, 1e-2, 2000) + 0.02 * fraud, np.ones(2000)])
    return features, fraud


Events = tuple[Floats, NDArray[np.bool_]]


def test_the_table_lists_them_by_name() -> None:
    assert list(BASELINES) == ["logistic", "forest", "xgboost"]
    assert [make().name for make in BASELINES.values()] == list(BASELINES)


def test_it_learns_to_tell_fraud(make: Callable[[], Baseline], events: Events) -> None:
    features, fraud = events
    model = make()
    assert model.fit(features[:1000], fraud[:1000], seed=1) is model
    probability = model.predict_proba(features[1000:])
    assert probability.shape == (1000,) and probability.dtype == np.float64
    assert probability.min() >= 0 and probability.max() <= 1
    assert roc_auc(probability, fraud[1000:]) > 0.85  # 0.92 is the best that can be had
    assert 0.05 < probability.mean() < 0.15  # a probability, as frequent as fraud is


def test_the_same_seed_gives_the_same_model(make: Callable[[], Baseline], events: Events) -> None:
    features, fraud = events
    first, second = (make().fit(features, fraud, seed=3).predict_proba(features) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_fitted_twice_is_fitted_once(make: Callable[[], Baseline], events: Events) -> None:
    features, fraud = events
    model = make().fit(features[:, :2], ~fraud, seed=5).fit(features, fraud, seed=5)
    np.testing.assert_array_equal(
        model.predict_proba(features), make().fit(features, fraud, seed=5).predict_proba(features)
    )


def test_an_event_alone_is_an_event_among_many(make: Callable[[], Baseline], events: Events) -> None:
    features, fraud = events
    model = make().fit(features, fraud)
    alone = np.concatenate([model.predict_proba(features[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, model.predict_proba(features)[:5], rtol=1e-6)
    assert model.predict_proba(features[:0]).shape == (0,)


def test_other_seeds_give_other_forests(events: Events) -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    features, fraud = events
    first, second = (Forest(trees=5).fit(features, fraud, seed).predict_proba(features) for seed in (0, 1))
    assert (first != second).any()


def test_logistic_regression_does_not_care_for_units(events: Events) -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    features, fraud = events
    cents = features * [100.0, 1.0, 1.0]
    np.testing.assert_allclose(
        Logistic().fit(cents, fraud).predict_proba(cents), Logistic().fit(features, fraud).predict_proba(features)
    )


def test_the_settings_reach_the_libraries() -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    logistic = Logistic(C=0.5, max_iter=7)._make(3).steps[-1][1].get_params()
    assert (logistic["C"], logistic["max_iter"], logistic["random_state"]) == (0.5, 7, 3)
    forest = Forest()._make(3).get_params()
    assert [forest[key] for key in ("n_estimators", "max_depth", "n_jobs", "random_state")] == [100, 20, 1, 3]
    pytest.importorskip("xgboost", reason="xgboost (extra baselines) is not installed")
    boosting = Boosting()._make(3).get_params()
    wanted: dict[str, object] = {"n_estimators": 100, "learning_rate": 0.3, "max_depth": 3, "n_jobs": 1}
    wanted |= {"base_score": 0.5, "tree_method": "exact", "random_state": 3}
    assert {key: boosting[key] for key in wanted} == wanted


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BASELINES.values())
@pytest.mark.parametrize(
    ("features", "fraud", "told"),
    [
        ([1.0, 2.0], [0, 1], r"fit: expected features of shape \(n, K\), got \(2,\)"),
        ([[1.0], [np.nan]], [0, 1], "fit: expected finite features, got 1 others, the first in column 0"),
        ([[1.0], [2.0]], [0], r"fit: expected one label for each of 2 events, got shape \(1,\)"),
        ([[1.0], [2.0]], [0.0, np.nan], "fit: expected labels 0 and 1"),
        ([[1.0], [2.0]], [0, 0], "fit: expected frauds and genuine events.*2 genuine events only"),
        ([[1.0], [2.0]], [1, 1], "fit: expected frauds and genuine events.*2 frauds only"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    kind: Callable[[], Baseline], features: Any, fraud: Any, told: str
) -> None:
    with pytest.raises(ParameterError, match=told):
        kind().fit(features, fraud)


@pytest.mark.parametrize("kind", BASELINES.values())
def test_fit_comes_first(kind: Callable[[], Baseline]) -> None:
    with pytest.raises(NotFittedError, match="predict_proba: not fitted yet"):
        kind().predict_proba([[1.0]])


def test_other_features_than_those_of_the_fit_are_refused(make: Callable[[], Baseline], events: Events) -> None:
    model = make().fit(*events)
    with pytest.raises(ParameterError, match="expected 3 features as in fit, got 2"):
        model.predict_proba(events[0][:, :2])


@pytest.mark.parametrize(("kind", "package"), [(Logistic, "sklearn"), (Forest, "sklearn"), (Boosting, "xgboost")])
def test_without_the_package_the_extra_is_named(
    kind: Callable[[], Baseline], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # None makes an import fail
    with pytest.raises(PackageError, match=r'pip install "anomaly\[baselines\]"') as caught:
        kind().fit([[1.0], [2.0]], [0, 1])
    assert isinstance(caught.value, AnomalyError) and isinstance(caught.value, ImportError)


@pytest.mark.skipif(find_spec("sklearn") is None, reason="sklearn (extra baselines) is not installed")
def test_the_libraries_are_loaded_by_the_fit_alone() -> None:
    question = (
        "import sys, anomaly.models.baselines as b; m = [make() for make in b.BASELINES.values()]; "
        "print('sklearn' in sys.modules, 'xgboost' in sys.modules, 'torch' in sys.modules); "
        "m[0].fit([[1.0], [2.0]], [0, 1]); print('sklearn' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["False False False", "True"]


def test_an_isolation_forest_finds_what_lies_apart_without_a_label() -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    rng = np.random.default_rng(0)
    features, apart = rng.normal(size=(1000, 3)), np.arange(1000) >= 990
    features[apart] += 6.0
    model = Isolation(trees=50).fit(features, seed=1)
    score = model.score(features)
    assert score.shape == (1000,) and roc_auc(score, apart) > 0.99
    np.testing.assert_array_equal(Isolation(trees=50).fit(features, seed=1).score(features), score)
    np.testing.assert_allclose(model.score(features[:5]), score[:5])
    assert model.score(features[:0]).shape == (0,)
    with pytest.raises(ParameterError, match="expected 3 features as in fit, got 2"):
        model.score(features[:, :2])
    with pytest.raises(ParameterError, match="expected finite features, got 1 others"):
        Isolation().fit(np.array([[1.0, np.nan]]))
    with pytest.raises(ParameterError, match="expected events to learn from, got none"):
        Isolation().fit(np.zeros((0, 2)))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        Isolation().score(features)
