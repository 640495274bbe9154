"""Weighted metrics agree with scikit-learn; intervals agree with a slow loop and hold what they should."""

from __future__ import annotations

import time as clock
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.bootstrap import Metric, paired_bootstrap, rank_events
from anomaly.errors import ParameterError
from anomaly.evaluation import average_precision, roc_auc

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

METRICS: tuple[Metric, ...] = ("ap", "auc")
weighted = st.lists(
    st.tuples(st.sampled_from([-1e300, -2.0, 0.0, 0.1, 3.0, 1e300]), st.booleans(), st.integers(0, 4)),
    min_size=2,
    max_size=40,
)


def both_classes(rows: list[tuple[float, bool, int]]) -> tuple[Floats, Bools, Ints]:
    score, label = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    weight = np.array([r[2] for r in rows], dtype=np.int64)
    label[:2], weight[:2] = [True, False], np.maximum(weight[:2], 1)
    return score, label, weight


@settings(max_examples=120, deadline=None)
@given(weighted)
def test_weighted_metrics_as_scikit_learn(rows: list[tuple[float, bool, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    score, label, weight = both_classes(rows)
    ranking = rank_events(score, label)
    ap = metrics.average_precision_score(label, score, sample_weight=weight)
    auc = metrics.roc_auc_score(label, score, sample_weight=weight)
    assert ranking.average_precision(weight) == pytest.approx(ap, abs=1e-12)
    assert ranking.roc_auc(weight) == pytest.approx(auc, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(weighted)
def test_a_weight_is_how_often_an_event_counts(rows: list[tuple[float, bool, int]]) -> None:
    score, label, weight = both_classes(rows)
    ranking, stacked = rank_events(score, label), np.repeat(np.arange(label.size), weight)
    assert ranking.average_precision(weight) == pytest.approx(average_precision(score[stacked], label[stacked]))
    assert ranking.roc_auc(weight) == pytest.approx(roc_auc(score[stacked], label[stacked]))
    once = np.ones_like(weight)
    assert ranking.average_precision(once) == pytest.approx(average_precision(score, label))
    assert ranking.roc_auc(once) == pytest.approx(roc_auc(score, label))


def test_weighted_metrics_as_scikit_learn_on_many_events() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    label = rng.random(50_000) < 0.01
    weight = rng.poisson(1.0, 50_000)
    for digits in (0, 2, 12):  # with ever fewer ties
        score = np.round(rng.normal(size=50_000) + 2.0 * label, digits)
        ranking = rank_events(score, label)
        ap = metrics.average_precision_score(label, score, sample_weight=weight)
        auc = metrics.roc_auc_score(label, score, sample_weight=weight)
        assert ranking.average_precision(weight) == pytest.approx(ap, abs=1e-12)
        assert ranking.roc_auc(weight) == pytest.approx(auc, abs=1e-12)


def test_weighted_metrics_by_hand() -> None:
    ranking = rank_events([4.0, 3.0, 2.0, 2.0, np.inf], [1, 0, 1, 0, 0])
    weight = np.array([2, 3, 1, 1, 0])
    assert ranking.average_precision(weight) == pytest.approx(2 / 3 * 1 + 1 / 3 * 3 / 7)
    assert ranking.roc_auc(weight) == pytest.approx((2 * 4 + 1 * 0.5) / (3 * 4))


def sample(seed: int, entities: int = 60, scorers: int = 3) -> tuple[dict[str, Floats], Bools, Ints]:
    """Scores with ties, labels and entities of some 10 events, every tenth of which is defrauded."""
    rng = np.random.default_rng(seed)
    entity = np.repeat(np.arange(entities), rng.integers(5, 16, entities))
    label = (rng.random(entities) < 0.1)[entity] & (rng.random(entity.size) < 0.5)
    label[0] = True
    own = rng.normal(size=entities)[entity]
    scores = {
        f"scorer {at}": np.asarray(np.round(rng.normal(size=entity.size) + own + (1.0 + at) * label, 1), np.float64)
        for at in range(scorers)
    }
    shuffled = rng.permutation(entity.size)
    return {name: score[shuffled] for name, score in scores.items()}, label[shuffled], entity[shuffled]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("entities", [4, 60])
def test_the_bootstrap_against_a_slow_loop(metric: Metric, entities: int) -> None:
    """Every resample is built, event by event of each drawn entity, and measured by scikit-learn."""
    metrics = pytest.importorskip("sklearn.metrics")
    slow = {"ap": metrics.average_precision_score, "auc": metrics.roc_auc_score}[metric]
    scores, label, entity = sample(1, entities)
    found = paired_bootstrap(scores, label, entity, metric=metric, repeats=50, seed=7)
    rng = np.random.default_rng(7)
    values: list[list[float]] = []
    thrown = 0
    while len(values) < 50:
        drawn = rng.integers(entities, size=entities)
        rows = np.concatenate([np.flatnonzero(entity == one) for one in drawn])
        if label[rows].any():
            values.append([slow(label[rows], score[rows]) for score in scores.values()])
        else:
            thrown += 1
    assert (found.repeats, found.redrawn) == (50, thrown)
    assert thrown > 0 or entities == 60
    table = np.array(values)
    for at, (name, score) in enumerate(scores.items()):
        assert found.value[name] == pytest.approx(slow(label, score))
        assert found.low[name] == pytest.approx(np.quantile(table[:, at], 0.025))
        assert found.high[name] == pytest.approx(np.quantile(table[:, at], 0.975))
        for other, rival in enumerate(scores):
            ahead = table[:, at] - table[:, other]
            expected = np.mean(ahead > 1e-12) + np.mean(np.abs(ahead) <= 1e-12) / 2
            assert found.beats[name][rival] == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_order_of_the_scores_matters(metric: Metric) -> None:
    scores, label, entity = sample(2)
    transforms: list[Callable[[Floats], Floats]] = [np.exp, lambda s: 3.0 * s - 50.0, lambda s: np.sinh(s) ** 3]
    changed = {name: transform(scores[name]) for name, transform in zip(scores, transforms, strict=True)}
    expected = paired_bootstrap(scores, label, entity, metric=metric, repeats=100)
    assert paired_bootstrap(changed, label, entity, metric=metric, repeats=100) == expected
    same = paired_bootstrap({"a": scores["scorer 0"], "b": changed["scorer 0"]}, label, entity, metric=metric)
    assert same.beats == {"a": {"a": 0.5, "b": 0.5}, "b": {"a": 0.5, "b": 0.5}}


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_the_rows_and_the_names_do_not_matter(metric: Metric) -> None:
    scores, label, entity = sample(3)
    expected = paired_bootstrap(scores, label, entity, metric=metric, repeats=100)
    order = np.random.default_rng(0).permutation(label.size)
    turned = {name: score[order] for name, score in scores.items()}
    names = np.array([f"card {at:03d}" for at in range(60)])[entity]
    assert paired_bootstrap(turned, label[order], names[order], metric=metric, repeats=100) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_an_entity_that_repeats_itself_tells_nothing_new(metric: Metric) -> None:
    scores, label, entity = sample(4)
    once = paired_bootstrap(scores, label, entity, metric=metric, repeats=100)
    again = np.tile(np.arange(label.size), 5)
    repeated = {name: score[again] for name, score in scores.items()}
    found = paired_bootstrap(repeated, label[again], entity[again], metric=metric, repeats=100)
    for name in scores:
        assert (found.low[name], found.high[name]) == pytest.approx((once.low[name], once.high[name]))
    single = paired_bootstrap(repeated, label[again], np.arange(again.size), metric=metric, repeats=100)
    for name in scores:  # events drawn one by one pretend to know much more
        assert single.high[name] - single.low[name] < 0.7 * (once.high[name] - once.low[name])


def test_scorers_are_measured_on_the_same_resamples() -> None:
    scores, label, entity = sample(5)
    together = paired_bootstrap(scores, label, entity, repeats=100)
    for name, score in scores.items():
        alone = paired_bootstrap({name: score}, label, entity, repeats=100)
        assert (alone.low[name], alone.high[name]) == (together.low[name], together.high[name])
    assert paired_bootstrap(scores, label, entity, repeats=100, seed=1) != together


def test_a_small_steady_advantage_is_seen_although_the_intervals_overlap() -> None:
    rng = np.random.default_rng(6)
    entity = np.repeat(np.arange(300), 10)
    label = (rng.random(300) < 0.2)[entity] & (rng.random(3_000) < 0.5)
    shared = rng.normal(size=3_000) + rng.normal(size=300)[entity] + 1.5 * label
    found = paired_bootstrap({"better": shared + 0.15 * label, "worse": shared}, label, entity)
    assert found.low["better"] < found.high["worse"]
    assert found.beats["better"]["worse"] > 0.99
    assert found.beats["better"]["worse"] + found.beats["worse"]["better"] == pytest.approx(1.0)
    assert all(found.low[name] < found.value[name] < found.high[name] for name in found.value)


def test_the_same_draws_count_as_ties() -> None:
    found = paired_bootstrap({"a": [3, 2, 1, 0], "b": [3, 1, 2, 0]}, [1, 1, 0, 0], [0, 0, 1, 1], repeats=400)
    # Both entities must be drawn, or only the one with the frauds: then both scorers are perfect.
    assert found.beats["a"]["b"] == pytest.approx(2 / 3 + 1 / 3 / 2, abs=0.07)
    assert found.redrawn == pytest.approx(400 / 3, abs=40)
    assert (found.low["a"], found.high["a"], found.high["b"]) == (1.0, 1.0, 1.0)
    assert found.low["b"] == pytest.approx((1 + 2 / 3) / 2)


def world(rng: np.random.Generator, genuine: int, defrauded: int) -> tuple[Ints, Floats, Bools]:
    """Entities with 5 to 29 events and a level of their own; the defrauded ones begin with 1 to 5 frauds."""
    events = rng.integers(5, 30, genuine + defrauded)
    entity = np.repeat(np.arange(events.size), events)
    frauds = np.where(np.arange(events.size) < defrauded, rng.integers(1, 6, events.size), 0)
    place = np.arange(entity.size) - (np.cumsum(events) - events)[entity]
    label = place < frauds[entity]
    score = rng.normal(size=entity.size) + 0.7 * rng.normal(size=events.size)[entity] + 2.0 * label
    return entity, score, label


@pytest.mark.parametrize("metric", METRICS)
def test_folds_are_ranked_apart_and_drawn_together(metric: Metric) -> None:
    """Scores of another scale in a second fold change nothing; a fold twice over gives what it gives once."""
    entity, score, label = world(np.random.default_rng(5), 400, 40)
    once = paired_bootstrap({"a": score}, label, entity, metric=metric, repeats=50)
    twice = paired_bootstrap(
        {"a": np.append(score, 1000 + 3 * score)},
        np.append(label, label),
        np.append(entity, entity),
        fold=np.repeat([7, 3], len(label)),
        metric=metric,
        repeats=50,
    )
    for one, other in ((once.value, twice.value), (once.low, twice.low), (once.high, twice.high)):
        assert one["a"] == pytest.approx(other["a"], abs=1e-12)
    with pytest.raises(ParameterError, match="expected positives in each fold"):
        paired_bootstrap({"a": score}, label, entity, fold=label, metric=metric)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_cover_the_truth(metric: Metric) -> None:
    """Of 80 intervals of 95 % at least 68, four standard errors below 76; of those from single events fewer."""
    rng = np.random.default_rng(7)
    _, score, label = world(rng, 20_000, 2_000)
    truth = {"ap": average_precision, "auc": roc_auc}[metric](score, label)
    by_entity = by_event = 0
    for _ in range(80):
        entity, score, label = world(rng, 400, 40)
        found = paired_bootstrap({"a": score}, label, entity, metric=metric, repeats=100)
        by_entity += found.low["a"] <= truth <= found.high["a"]
        found = paired_bootstrap({"a": score}, label, np.arange(label.size), metric=metric, repeats=100)
        by_event += found.low["a"] <= truth <= found.high["a"]
    assert by_entity >= 68
    assert by_event < by_entity


def test_the_bootstrap_is_fast() -> None:
    rng = np.random.default_rng(8)
    label, entity = rng.random(50_000) < 0.01, rng.integers(0, 2_000, 50_000)
    scores = {str(at): rng.normal(size=50_000) + (1.0 + 0.1 * at) * label for at in range(5)}
    start = clock.perf_counter()
    paired_bootstrap(scores, label, entity)
    assert clock.perf_counter() - start < 30.0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: paired_bootstrap({"ours": [1.0, np.nan]}, [0, 1], [0, 1]), "scorer ours: expected .* 1 NaN"),
        (lambda: paired_bootstrap({"ours": [1.0]}, [0, 1], [0, 1]), "scorer ours: expected arrays of one length"),
        (lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [0, 2], [0, 1]), "expected labels 0 and 1"),
        (lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [0, 0], [0, 1]), "expected at least one positive"),
        (lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [1, 1], [0, 1], metric="auc"), "expected negatives"),
        (lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [0, 1], [0]), "expected arrays of one length"),
        (lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [0, 1], [5, 5]), "expected at least 2 entities .* got 1"),
        (lambda: paired_bootstrap({}, [0, 1], [0, 1]), "expected at least one scorer"),
        (lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [0, 1], [0, 1], repeats=0), "expected repeats"),
        (
            lambda: paired_bootstrap({"ours": [1.0, 2.0]}, [0, 1], [0, 1], metric="f1"),  # type: ignore[arg-type]
            "expected metric ap or auc, got 'f1'",
        ),
        (lambda: rank_events([1.0, np.nan], [0, 1]), "rank_events: expected .* 1 NaN"),
        (lambda: rank_events([1.0, 2.0], [0, 0]), "rank_events: expected at least one positive"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        call()
