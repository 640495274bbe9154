"""Rehearsal: what planted frauds tell, and how far they are believed."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_histories
from numpy.typing import NDArray

from anomaly import rehearsal
from anomaly.features import Column
from anomaly.rehearsal import LEAST_GAIN, Copies, Reference, caution, choose, gain, recall_by_kind, scales_of
from anomaly.scorer import NEVER, Combination, Errors

DAY = 86_400.0
AMOUNT = Column(name="amount", kind="number", weight=1.0)
CLOCK = Column(name="clock:hour", kind="clock")
FIELDS = {
    "autoencoder": (AMOUNT, CLOCK),
    "forecaster": (AMOUNT, CLOCK),
    "population": (Column(name="population:amount", kind="number", weight=1.0),),
}
RUN = 6  # planted events of an episode


def normal(n: int, seed: int) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(seed)
    return {name: draw.exponential(size=(n, len(columns))).astype(np.float32) for name, columns in FIELDS.items()}


def reference() -> Reference:
    sequences = random_histories(80, 100, 40, seed=0)
    return Reference(normal(len(sequences), 1), sequences, sequences.time > 10 * DAY)


def copies(strange: dict[str, list[float]], episodes: int = 30, kinds: tuple[str, ...] = ("one",)) -> Copies:
    """Episodes of six planted events in a row, fifty events before them and nine after; `strange` is added to them."""
    sequences = random_histories(episodes, 65, 40, seed=2)
    errors = normal(len(sequences), 3)
    position = np.arange(len(sequences)) % 65
    planted = (position >= 50) & (position < 50 + RUN)
    for name, more in strange.items():
        errors[name][planted] += np.array(more, dtype=np.float32)
    episode = np.arange(len(sequences)) // 65
    kind = (episode % len(kinds)).astype(np.int16)
    return Copies(errors, sequences, planted, position >= 50, kind, episode, kinds)


def found(combination: Combination, planted: Copies) -> float:
    return float(np.nanmean(rehearsal.precisions(combination, planted, reference(), FIELDS)))


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_precision_counts_the_frauds_and_the_bystanders_above() -> None:
    """Two planted events, at 3 and 1; a thousand genuine ones, ten of them at 2; one bystander at 5."""
    sequences = random_histories(1, 4, 40, seed=0)
    errors: Errors = {}
    flags = np.array([False, True, True, False])
    after = np.array([False, True, True, True])
    one = Copies(errors, sequences, flags, after, np.zeros(4, dtype=np.int16), np.zeros(4, dtype=np.int64), ("one",))
    genuine = np.sort(np.concatenate([np.zeros(990), np.full(10, 2.0)]))
    precisions = vars(rehearsal)["_episode_precisions"](np.array([9.0, 3.0, 1.0, 5.0]), genuine, one)
    weight = rehearsal.PREVALENCE / 2
    first, second = weight / (weight + weight), 2 * weight / (2 * weight + 0.01 + weight)
    assert precisions.tolist() == [[pytest.approx((first + second) / 2)]]


def test_louder_frauds_are_ranked_better() -> None:
    quiet, loud = (found(Combination(scales=(DAY,)), copies({"forecaster": [more, 0.0]})) for more in (2.0, 9.0))
    assert loud > 2 * quiet > 0


def test_recall_is_by_event_with_an_interval_by_episode() -> None:
    planted = copies({}, episodes=20, kinds=("one", "other"))
    caught = planted.planted & (planted.episode < 10)
    told = recall_by_kind(caught, planted)
    assert list(told) == ["one", "other"]
    for one in told.values():
        assert one["recall"] == one["noticed"] == 0.5
        assert one["episodes"] == 10 and one["events"] == 10 * RUN
        # Ten episodes that are wholly caught or not at all: 0.5 +- 1.96 * sqrt(0.25 / 10), not one over sixty events.
        assert one["high"] - one["recall"] == pytest.approx(1.96 * np.sqrt(0.25 / 10))
    first = planted.planted & (np.arange(len(caught)) % 65 == 50)
    assert recall_by_kind(first, planted)["one"] | {"low": 0, "high": 0} == {
        "recall": 1 / RUN, "low": 0, "high": 0, "noticed": 1.0, "episodes": 10, "events": 60,
    }  # fmt: skip


def test_a_kind_without_an_episode_is_left_out() -> None:
    planted = copies({}, episodes=6)
    assert list(recall_by_kind(planted.planted, planted)) == ["one"]
    more = Copies(**{**vars(planted), "kinds": ("one", "none")})
    assert list(recall_by_kind(more.planted, more)) == ["one"]
    assert choose(Combination(scales=(DAY,)), more, reference(), FIELDS, DAY, 30 * DAY)


# ---- what is chosen --------------------------------------------------------------------------------------------------


def test_fields_that_drown_the_fraud_are_weighed_less() -> None:
    start = Combination(scales=(), other=1.0)
    planted = copies({"forecaster": [4.0, 0.0]}, episodes=60)
    best, trials = choose(start, planted, reference(), FIELDS, 0.0, 30 * DAY)
    assert best.other < start.other
    assert found(best, planted) > found(start, planted) + LEAST_GAIN
    assert trials[0]["what"] == "start" and any(one["what"] == "other" and one["taken"] for one in trials)


def test_fields_that_nobody_named_never_become_louder_than_by_default() -> None:
    """Planted hours and places are chosen at will: on few columns their preference was wrong more often than right."""
    planted = copies({"forecaster": [0.0, 5.0]}, episodes=60)
    best, trials = choose(Combination(scales=()), planted, reference(), FIELDS, 0.0, 30 * DAY)
    assert best.other == Combination().other
    assert max(one["value"] for one in trials if one["what"] == "other") <= Combination().other


def test_a_statement_that_shows_nothing_is_left_out_and_one_that_shows_all_is_kept() -> None:
    start = Combination(scales=(), autoencoder=1.0, ceiling=0.0)
    best, _ = choose(start, copies({"forecaster": [4.0, 0.0]}, episodes=60), reference(), FIELDS, 0.0, 30 * DAY)
    assert best.autoencoder < start.autoencoder
    best, _ = choose(
        Combination(scales=(), population=NEVER, ceiling=0.0),
        copies({"population": [9.0]}, episodes=60), reference(), FIELDS, 0.0, 30 * DAY,
    )  # fmt: skip
    assert best.population < NEVER


def test_runs_want_evidence() -> None:
    sequences = copies({"forecaster": [2.5, 0.0]}, episodes=60)
    start = Combination(scales=(3 * DAY,), ceiling=0.0)
    best, _ = choose(start, sequences, reference(), FIELDS, DAY, 30 * DAY)
    assert best.ceiling > 0.0
    assert found(best, sequences) > found(start, sequences)


def test_what_makes_no_difference_changes_nothing() -> None:
    """Planted events that are like all others: nothing is preferred for sure."""
    start = Combination(scales=(DAY,))
    best, trials = choose(start, copies({}, episodes=60), reference(), FIELDS, DAY, 30 * DAY)
    assert best == start
    assert not any(one["taken"] for one in trials[1:])


def test_every_change_that_was_taken_gained_enough() -> None:
    _, trials = choose(
        Combination(scales=(DAY,)), copies({"forecaster": [1.0, 5.0]}, episodes=60), reference(), FIELDS, DAY, 30 * DAY
    )
    assert {one["what"] for one in trials} >= {"start", "scales", "ceiling", "population", "autoencoder", "other"}
    for one in trials[1:]:
        assert not one["taken"] or one["gain"] > max(LEAST_GAIN, 2 * one["standard_error"])


def test_a_gain_on_some_kinds_that_others_pay_for_is_doubtful() -> None:
    """Which kinds will come nobody knows; the same mean gain on all of them is sure."""
    before = np.zeros((4, 50))
    even, uneven = np.full((4, 50), 0.1), np.array([0.5, 0.4, -0.3, -0.2])[:, None] + before
    assert gain(even, before) == pytest.approx((0.1, 0.0))
    assert gain(even, before)[0] > caution(gain(even, before)[1])
    more, error = gain(uneven, before)
    assert more == pytest.approx(0.1)
    assert caution(error) == pytest.approx(np.std([0.5, 0.4, -0.3, -0.2], ddof=1) / 2)  # over four kinds
    assert more < caution(error)
    draw = np.random.default_rng(0).normal(0.1, 1.0, (4, 50))  # where the episodes differ more than the kinds
    assert gain(draw, before)[1] >= np.sqrt((draw.var(axis=1) / 50).sum()) / 4 * (1 - 1e-9)
    assert np.isfinite(gain(draw[:1], before[:1])[1])


def test_the_same_copies_give_the_same_choice() -> None:
    planted = copies({"forecaster": [3.0, 1.0]})
    one, other = (choose(Combination(scales=(DAY,)), planted, reference(), FIELDS, DAY, 30 * DAY) for _ in range(2))
    assert one == other


# ---- scales ----------------------------------------------------------------------------------------------------------


def test_scales_follow_the_gaps_and_fit_the_held_out_slice() -> None:
    assert scales_of(3600.0, 100 * DAY) == tuple(gaps * 3600.0 for gaps in (0.3, 1, 3, 10, 30, 100))
    assert scales_of(3600.0, 2 * DAY) == tuple(gaps * 3600.0 for gaps in (0.3, 1, 3, 10))
    assert scales_of(30 * DAY, 2 * DAY) == (DAY,)
    assert scales_of(0.0, 2 * DAY) == ()
