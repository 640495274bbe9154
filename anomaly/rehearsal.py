"""Rehearsal: what a detector would find, without labels, shown by frauds planted into copies of held-out histories.

It answers two questions. Which combination of fields, models and time scales finds most (`choose`), and how much of
each kind would be found at the alert budget (`recall_by_kind`). The copies are scored and thrown away: nothing is
trained or calibrated on them.

A combination is judged by the average precision with which it ranks the planted events, for each kind apart, among
genuine ones as rare as fraud is: the held-out events, and those that the victims make during and after the fraud, which
suffer for the evidence that it leaves. The choice is cautious, since planted frauds are not the real ones: what they
prefer is taken only if it gains `LEAST_GAIN`, two standard errors over the episodes, and one over the kinds. Which
kinds will come, and how many of each, nobody knows, so they are a sample of what may come: what gains much on some of
them and loses as much on others is not taken. Otherwise the default stays. All but the
numbers that the schema names are never made louder than by default: who plants a fraud chooses its hour and place at
will (see the diary in reports).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.features import OTHER_WEIGHT, Column
from anomaly.scorer import NEVER, Combination, Errors, Scorer
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

SCALE_GAPS: Mapping[str, tuple[float, ...]] = {
    "short": (0.1, 0.3, 1, 3, 10, 30),
    "usual": (0.3, 1, 3, 10, 30, 100),
    "long": (1, 3, 10, 30, 100, 300),
}
"""Time scales of the evidence, in typical gaps between two events of an entity."""
CANDIDATES: Mapping[str, tuple[float, ...]] = {
    "ceiling": (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0),
    "evidence": (0.2, 0.35, 0.7),
    "population": (0.0, 1.0, 2.0, 3.0, NEVER),
    "autoencoder": (0.0, 0.3, 1.0),
    "other": (0.1, OTHER_WEIGHT),  # planted frauds may make these fields quieter, never louder
}
ROUNDS = 2
STANDARD_ERRORS = 2.0
PREVALENCE = 0.01
"""Share of fraud among the events, as far as average precision depends on it."""
LEAST_GAIN = 0.03
"""Average precision that a change must gain. Smaller preferences did not carry over to frauds that were not planted
here (see the diary in reports): they tell how the planted ones were made."""


@dataclass(frozen=True)
class Copies:
    """Histories with planted frauds, judged by the models.

    Attributes
    ----------
    errors, sequences :
        Of their N events.
    planted, after : ndarray of bool, shape (N,)
        The planted events; those from the first planted one of their episode on.
    kind, episode : ndarray of int, shape (N,)
        Kind and number of the episode that the event belongs to.
    kinds : tuple of str
        Names of the kinds.
    """

    errors: Errors
    sequences: Sequences
    planted: Bool
    after: Bool
    kind: NDArray[np.int16]
    episode: NDArray[np.int64]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """Genuine histories beside them: the held-out events say where the alerts begin."""

    errors: Errors
    sequences: Sequences
    held: Bool


def scales_of(gap: float, span: float, name: str = "usual") -> tuple[float, ...]:
    """Time scales in seconds for a typical gap, none longer than half of the held-out history's `span`."""
    scales = [factor * gap for factor in SCALE_GAPS[name]]
    fitting = tuple(scale for scale in scales if 0 < scale <= span / 2)
    return fitting or tuple(scale for scale in (min(scales[0], span / 2),) if scale > 0)


def choose(
    start: Combination,
    copies: Copies,
    reference: Reference,
    fields: Mapping[str, Sequence[Column]],
    gap: float,
    span: float,
) -> tuple[Combination, list[dict[str, Any]]]:
    """The combination that finds most of the planted frauds, and what was tried.

    One thing is changed at a time, and the change is kept if it raises the average precision, the mean over the kinds,
    by two standard errors and by `LEAST_GAIN`; see `gain`.

    Returns
    -------
    combination : Combination
        `start`, or better.
    trials : list of dict
        ``what``, ``value``, ``precision``, ``gain``, ``standard_error``, ``taken``.
    """
    best, found = start, precisions(start, copies, reference, fields)
    trials = [_trial("start", "", _mean(found), 0.0, 0.0, taken=True)]
    settings: list[tuple[str, Sequence[Any]]] = [
        ("scales", [scales_of(gap, span, name) for name in SCALE_GAPS]),
        *CANDIDATES.items(),
    ]
    for _ in range(ROUNDS):
        before = best
        for what, values in settings:
            others = [value for value in values if value != getattr(best, what)]
            changed = [replace(best, **{what: value}) for value in others]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                tried = list(pool.map(partial(precisions, copies=copies, reference=reference, fields=fields), changed))
            measured = [(*gain(other, found), value, other) for value, other in zip(others, tried, strict=True)]
            if not measured:
                continue
            more, error, value, other = max(measured, key=lambda one: one[0])
            taken = more > caution(error)
            trials += [
                _trial(what, one[2], float(_mean(one[3])), one[0], one[1], taken=taken and one[2] == value)
                for one in measured
            ]
            if taken:
                best, found = replace(best, **{what: value}), other
        if best == before:
            break
    return best, trials


def recall_by_kind(caught: Bool, copies: Copies) -> dict[str, dict[str, float]]:
    """Share of the planted events that alert, by kind, with a 95 % interval, and share of the episodes noticed.

    Parameters
    ----------
    caught : ndarray of bool, shape (N,)
        Which events of the copies alert.
    """
    result = {}
    for number, name in enumerate(copies.kinds):
        mine = copies.planted & (copies.kind == number)
        if not mine.any():
            continue
        episodes, at = np.unique(copies.episode[mine], return_inverse=True)
        events = np.bincount(at).astype(np.float64)
        hits = np.bincount(at, caught[mine])
        recall = float(hits.sum() / events.sum())
        # Events of one episode stand and fall together: the ratio's standard error is taken over the episodes.
        residual = hits - recall * events
        error = float(np.sqrt((residual**2).sum()) / events.sum())
        result[name] = {
            "recall": recall,
            "low": max(0.0, recall - 1.96 * error),
            "high": min(1.0, recall + 1.96 * error),
            "noticed": float((hits > 0).mean()),
            "episodes": float(len(episodes)),
            "events": float(events.sum()),
        }
    return result


def precisions(
    combination: Combination, copies: Copies, reference: Reference, fields: Mapping[str, Sequence[Column]]
) -> Float:
    """How well each episode's planted events are ranked by `combination`, (kinds, episodes of a kind); NaN = none.

    See `_episode_precisions`.
    """
    scorer = Scorer(fields, combination)
    usual, _, past = scorer.learn(reference.errors, reference.sequences, reference.held)
    genuine = np.sort(scorer.weigh(past, usual))
    counted = copies.planted | copies.after
    total = np.full(len(counted), np.nan)
    total[counted] = scorer.weigh(scorer.past(copies.errors, copies.sequences), counted)
    return _episode_precisions(total, genuine, copies)


def _episode_precisions(total: Float, genuine: Float, copies: Copies) -> Float:
    """Mean precision at the planted events of each episode, (kinds, episodes of a kind); NaN = none.

    Precision at a score is the share of fraud among the events that score at least as high; fraud is `PREVALENCE` of
    the genuine events, spread evenly over the planted ones. The victims' own events weigh as the planted ones do.
    """
    rows = []
    for kind in range(len(copies.kinds)):
        mine = copies.kind == kind
        frauds, bystanders = mine & copies.planted, mine & copies.after & ~copies.planted
        if not frauds.any():
            continue
        weight = PREVALENCE / frauds.sum()
        score = total[frauds]
        true = weight * _at_least(np.sort(score), score)
        false = _at_least(genuine, score) / len(genuine) + weight * _at_least(np.sort(total[bystanders]), score)
        episode = copies.episode[frauds]
        first = episode.min()
        count = np.bincount(episode - first)
        means = np.bincount(episode - first, true / (true + false))[count > 0] / count[count > 0]
        rows.append(means)
    result = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for at, row in enumerate(rows):
        result[at, : len(row)] = row
    return result


def _at_least(rising: Float, score: Float) -> Float:
    """How many of the `rising` values are at least as high as each score."""
    return np.asarray(len(rising) - np.searchsorted(rising, score, side="left"), dtype=np.float64)


def _mean(found: Float) -> float:
    return float(np.nanmean(found, axis=1).mean())


def gain(found: Float, before: Float) -> tuple[float, float]:
    """How much more is found than before, the mean over the kinds, and its standard error.

    The larger of two: that over the episodes of these kinds, paired; and half of that over the kinds, as if they were
    drawn from all that may come, so that one of it is enough where two of the other are asked for (the rule of one
    standard error, Breiman et al. 1984).
    """
    difference = found - before
    count = np.isfinite(difference).sum(axis=1)
    by_kind = np.nanmean(difference, axis=1)
    episodes = (np.nanvar(difference, axis=1) / np.maximum(count, 1)).sum() / len(found) ** 2
    kinds = by_kind.var(ddof=1) / len(found) if len(found) > 1 else 0.0
    return float(by_kind.mean()), float(np.sqrt(max(episodes, kinds / STANDARD_ERRORS**2)))


def caution(standard_error: float) -> float:
    """What a change must gain to be taken: planted frauds are not the real ones."""
    return max(STANDARD_ERRORS * standard_error, LEAST_GAIN)


def _trial(what: str, value: object, precision: float, gain: float, error: float, *, taken: bool) -> dict[str, Any]:
    shown = list(value) if isinstance(value, tuple) else value
    return {
        "what": what,
        "value": shown,
        "precision": float(precision),
        "gain": gain,
        "standard_error": error,
        "taken": taken,
    }
