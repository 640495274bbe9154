"""How sure a comparison of rankings is: a paired bootstrap that draws whole entities.

Frauds come in runs, and the events of one entity resemble each other, so entities are drawn, not events: an interval
from single events would be too narrow (the cluster bootstrap, Davison & Hinkley 1997, section 3.8). All scorers are
measured on the same resample (Efron & Tibshirani 1993): much of what makes a resample easy or hard is common to them,
and how often one is above another says more than whether their intervals overlap.

Covered: which entities happened to be seen. Not covered: another period, another training run, another population.
With few defrauded entities (some twenty or fewer) percentile intervals are too narrow, those of the AUC above all.

A resample is never built. It is how often each event counts, and the events are sorted by each score once, so a metric
of a resample costs a few passes over n numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ParameterError
from anomaly.evaluation import Floats, Ints, checked, same_length

Metric: TypeAlias = Literal["ap", "auc"]

INTERVAL = (0.025, 0.975)
ROUNDING = 1e-12  # metrics closer than this differ by the order of their sums alone, and are equal


@dataclass(frozen=True)
class Bootstrap:
    """What `paired_bootstrap` found; all mappings by name of the scorer.

    Attributes
    ----------
    metric : str
        `ap` or `auc`.
    value : mapping of float
        The metric on the events themselves, no resample.
    low, high : mapping of float
        Ends of the 95 % percentile interval.
    beats : mapping of mappings of float
        ``beats[a][b]`` is the share of the resamples in which a is above b, a tie counting half; in [0, 1], and
        ``beats[a][b] + beats[b][a] == 1``. A scorer beats itself in half of them.
    repeats : int
        Resamples that were measured.
    redrawn : int
        Resamples that were thrown away besides, for want of a class.
    """

    metric: Metric
    value: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    beats: Mapping[str, Mapping[str, float]]
    repeats: int
    redrawn: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """Events sorted once by their score, to be measured under many integer weights.

    A weight is how often an event counts; 0 leaves it out. Equal scores form one threshold. Made by `rank_events`.

    Attributes
    ----------
    order : ndarray of int64, shape (n,)
        The events from the highest score down.
    positive : ndarray of int64, shape (p,)
        The positives among them, from the highest score down.
    first : ndarray of int64, shape (g,)
        Where in `positive` each of the g groups of ties that hold a positive begins.
    begin, end : ndarray of int64, shape (g,)
        Events with a higher score than such a group; the same with the group's own.
    """

    order: Ints
    positive: Ints
    first: Ints
    begin: Ints
    end: Ints

    def average_precision(self, weight: Ints) -> float:
        """Average precision with the events (n,) weighted; see `anomaly.evaluation.average_precision`.

        The same number as scikit-learn's with ``sample_weight``. Some positive must have a weight above 0.
        """
        positives, found, _, events = self._tallies(weight)
        return float(np.sum(positives * found / np.maximum(events, 1)) / found[-1])

    def roc_auc(self, weight: Ints) -> float:
        """Area under the ROC curve with the events (n,) weighted; see `anomaly.evaluation.roc_auc`.

        The same number as scikit-learn's with ``sample_weight``. Both classes must have a weight above 0.
        """
        positives, found, before, events = self._tallies(weight)
        negatives = int(weight.sum()) - int(found[-1])
        above = before - (found - positives)  # negatives that score higher than the group ...
        tied = events - found - above  # ... and in it
        return float(np.sum(positives * (negatives - above - tied / 2)) / (float(found[-1]) * negatives))

    def _tallies(self, weight: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Weights of each group that holds a positive, (g,).

        Of its own positives, of all positives down to its score, of all events above it, and of all down to it.
        """
        total = np.zeros(weight.size + 1, dtype=np.int64)
        np.cumsum(weight[self.order], out=total[1:])
        positives = np.add.reduceat(weight[self.positive], self.first)
        return positives, np.cumsum(positives), total[self.begin], total[self.end]


def rank_events(score: ArrayLike, label: ArrayLike) -> Ranking:
    """Sorts events for `Ranking`.

    Parameters
    ----------
    score : array (n,)
        Higher = stranger.
    label : array (n,)
        1 = positive.

    Raises
    ------
    ParameterError
        If a score is NaN, a label is no 0 or 1, or there is no positive.
    """
    score, label = checked("rank_events", score, label)
    order = np.argsort(-score, kind="stable")
    score = score[order]
    at = np.flatnonzero(label[order])  # places of the positives
    edge = np.append(0, np.flatnonzero(score[1:] != score[:-1]) + 1)  # where each group of ties begins
    group = np.searchsorted(edge, at, side="right") - 1
    first = np.flatnonzero(np.diff(group, prepend=-1))
    held = group[first]
    return Ranking(order, order[at], first, edge[held], np.append(edge, score.size)[held + 1])


def paired_bootstrap(
    scores: Mapping[str, ArrayLike],
    label: ArrayLike,
    entity: ArrayLike,
    *,
    fold: ArrayLike | None = None,
    metric: Metric = "ap",
    repeats: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Intervals of a metric for several scorers, and how often each is above each other, over resampled entities.

    A resample draws as many entities as there are, with replacement; all events of an entity stand and fall together,
    and it is the same for all scorers. One without a positive (for `auc`, or without a negative) has no metric and is
    drawn again: the intervals hold given that there is something to find.

    Parameters
    ----------
    scores : mapping of arrays (n,)
        Scores by name of the scorer; higher = stranger. Only their order matters.
    label : array (n,)
        1 = positive.
    entity : array (n,)
        Code or name of each event's entity.
    fold : array (n,), optional
        Code of each event's fold. Scores of different folds are of different fits and are never ranked together: the
        metric is that of each fold, averaged over them. A resample draws entities for all folds at once.
    metric : {"ap", "auc"}
        Average precision or area under the ROC curve.
    repeats : int
        Resamples. The ends of an interval are the 25th value or so from either side of 1000.
    seed : int
        The same seed gives the same resamples, whatever the scorers are.

    Raises
    ------
    ParameterError
        If there is no scorer, a score is NaN (the message names the scorer), a label is no 0 or 1, there is no positive
        (for `auc`, or no negative) in a fold, there are fewer than two entities, or `metric` or `repeats` is out of
        range.

    Examples
    --------
    >>> label, entity = [1, 0, 1, 0, 0, 0], ["a", "a", "b", "b", "c", "c"]
    >>> scores = {"good": [9, 1, 8, 2, 3, 0], "bad": [1, 9, 2, 8, 0, 3]}
    >>> found = paired_bootstrap(scores, label, entity, repeats=200)
    >>> found.value["good"], found.low["good"], found.beats["good"]["bad"]
    (1.0, 1.0, 1.0)
    """
    if metric not in get_args(Metric):
        raise ParameterError(f"paired_bootstrap: expected metric ap or auc, got {metric!r}")
    if repeats < 1:
        raise ParameterError(f"paired_bootstrap: expected repeats of at least 1, got {repeats}")
    if not scores:
        raise ParameterError("paired_bootstrap: expected at least one scorer, got none")
    for name, score in scores.items():
        _, positive = checked(f"paired_bootstrap, scorer {name}", score, label)
    names = np.asarray(entity)
    of = np.zeros(positive.size, dtype=np.int64) if fold is None else np.unique(fold, return_inverse=True)[1]
    same_length("paired_bootstrap", label=positive, entity=names, fold=of)
    parts = [np.flatnonzero(of == one) for one in range(int(of.max()) + 1)]
    for rows in parts:
        lacking = "" if positive[rows].any() else "positives"
        lacking = "negatives" if metric == "auc" and positive[rows].all() else lacking
        if lacking:
            raise ParameterError(f"paired_bootstrap: expected {lacking} in each fold, got one without any")
    entities, code = np.unique(names, return_inverse=True)
    if entities.size < 2:
        raise ParameterError(f"paired_bootstrap: expected at least 2 entities to draw from, got {entities.size}")
    rankings = [[rank_events(np.asarray(score)[rows], positive[rows]) for rows in parts] for score in scores.values()]
    measured = Ranking.average_precision if metric == "ap" else Ranking.roc_auc

    def measure(ranked: list[Ranking], weight: Ints) -> float:
        return float(np.mean([measured(one, weight[rows]) for one, rows in zip(ranked, parts, strict=True)]))

    classes = (positive,) if metric == "ap" else (positive, ~positive)
    needed = [np.bincount(code[rows[events[rows]]], minlength=entities.size) for events in classes for rows in parts]
    drawn = np.empty((len(rankings), repeats))
    rng = np.random.default_rng(seed)
    redrawn = 0
    for repeat in range(repeats):
        times, failed = _draw(rng, entities.size, needed)
        redrawn += failed
        weight = times[code]
        drawn[:, repeat] = [measure(ranked, weight) for ranked in rankings]
    low, high = np.quantile(drawn, INTERVAL, axis=1).tolist()
    whole = np.ones(code.size, dtype=np.int64)
    return Bootstrap(
        metric=metric,
        value={name: measure(ranked, whole) for name, ranked in zip(scores, rankings, strict=True)},
        low=dict(zip(scores, low, strict=True)),
        high=dict(zip(scores, high, strict=True)),
        beats={a: dict(zip(scores, _beaten(drawn, at), strict=True)) for at, a in enumerate(scores)},
        repeats=repeats,
        redrawn=redrawn,
    )


def _draw(rng: np.random.Generator, entities: int, needed: list[NDArray[np.int64]]) -> tuple[Ints, int]:
    """How often each entity (E,) is drawn, so that every class has an event; and how many draws lacked one.

    `needed` are the events of each class and fold by entity, (E,) each. A draw that holds an entity of each exists, so
    this ends; with one fold at worst half of the draws fail (two entities, a class each).
    """
    failed = 0
    while True:
        times = np.bincount(rng.integers(entities, size=entities), minlength=entities)
        if all(times @ events for events in needed):
            return times, failed
        failed += 1


def _beaten(drawn: Floats, at: int) -> list[float]:
    """Share of the resamples (scorers, repeats) in which the scorer `at` is above each scorer, ties counting half."""
    ahead = drawn[at] - drawn
    above, tied = ahead > ROUNDING, np.abs(ahead) <= ROUNDING
    return [float(share) for share in (above + 0.5 * tied).mean(axis=1)]
