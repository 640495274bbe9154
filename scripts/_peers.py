"""The detectors that the models are measured against: rules on the amount, outliers among single events, PyOD's LSTM.

Plain arrays in, plain arrays out; a score is higher for what is stranger. Nobody sees a label. scikit-learn and PyOD
(the extra `bench`) are imported by the functions that need them, so the rest works without.

Shapes as in the package: N events, S sequences (entities, such as cards), F features. Events come in the order of
canonical events, that is by entity, time and row, with the borders of the entities in `offsets` (S + 1,); the rules
take any order. `history` (N,) tells which events may be learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from anomaly.evaluation import rule_amount, rule_ratio
from anomaly.features import FIRST_CODE, Encoder
from anomaly.schema import Schema

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

YES = FIRST_CODE + 1  # code of a flag that is set
NORMAL = 1.4826  # standard deviation of a normal, in median absolute deviations
RARE = 20.0  # events of history at which a category counts as much as the population
LEAST_SPREAD = 0.1  # of the population's: a category of equal amounts is no reason to call a penny strange


def rules(
    entity: ArrayLike, amount: ArrayLike, time: ArrayLike, category: ArrayLike, history: ArrayLike
) -> dict[str, Floats]:
    """Score by the three simplest rules.

    Parameters
    ----------
    entity : array (N,)
        Integer codes.
    amount : array (N,)
        NaN = unknown; such an event scores NaN.
    time : array (N,)
        Seconds.
    category : array (N,)
        Text or codes, None = missing.
    history : array (N,) of bool
        What the population's median and the categories are learned from.

    Returns
    -------
    dict of str to ndarray (N,)
        `amount`; `ratio`, the amount over the median of the entity's earlier amounts; `robust_z`, see there. Higher =
        stranger.
    """
    amount, history = np.asarray(amount, dtype=np.float64), np.asarray(history, dtype=bool)
    population = float(np.nanmedian(amount[history]))
    return {
        "amount": rule_amount(amount),
        "ratio": rule_ratio(entity, amount, time, population),
        "robust_z": robust_z(amount, category, history),
    }


def robust_z(
    amount: ArrayLike, category: ArrayLike, history: ArrayLike, tail: Literal["upper", "both"] = "upper"
) -> Floats:
    """Robust z of the log amount among the amounts of its category: (x - median) / (1.4826 MAD).

    Median and median absolute deviation come from the history alone, so nothing looks ahead, and they are shrunk to
    those of all amounts with weight 20 / (n + 20) for a category of n events; one that the history lacks is judged by
    the population, and a missing category is one of its own. The logarithm is an asinh in units of a hundredth of the
    median amount: logarithmic for all but cents, and it takes refunds.

    Parameters
    ----------
    amount : array (N,)
        NaN = unknown; such an event scores NaN.
    category : array (N,)
        Text or codes, None = missing.
    history : array (N,) of bool
        What the medians are learned from.
    tail : {"upper", "both"}
        Are only large amounts strange, or small ones too (then the score is |z|).

    Returns
    -------
    ndarray (N,)
        Higher = stranger.

    Raises
    ------
    ValueError
        If the history holds no amount.
    """
    amount, known = np.asarray(amount, dtype=np.float64), np.asarray(history, dtype=bool)
    known = known & np.isfinite(amount)
    if not known.any():
        raise ValueError("robust_z: expected at least one amount in the history, got none")
    sizes = np.abs(amount[known])
    unit = float(np.median(sizes[sizes > 0])) / 100 if (sizes > 0).any() else 1.0
    x = np.arcsinh(amount / unit)
    centre = float(np.median(x[known]))
    spread = float(np.median(np.abs(x[known] - centre))) or 1.0

    groups = pl.DataFrame({"category": pl.Series(values=np.asarray(category).tolist(), strict=False), "x": x})
    middle = pl.col("x").median()
    learned = (
        groups.filter(pl.Series(known))
        .group_by("category")
        .agg(n=pl.len(), centre=middle, spread=(pl.col("x") - middle).abs().median())
    )
    mine = groups.join(learned, on="category", how="left", nulls_equal=True, maintain_order="left")
    n = mine["n"].fill_null(0).to_numpy()
    weight = n / (n + RARE)
    centres = weight * mine["centre"].fill_null(0.0).to_numpy() + (1 - weight) * centre
    spreads = weight * mine["spread"].fill_null(0.0).to_numpy() + (1 - weight) * spread
    z = (x - centres) / (NORMAL * np.maximum(spreads, LEAST_SPREAD * spread))
    return np.asarray(z if tail == "upper" else np.abs(z))


@dataclass(frozen=True)
class EventFeatures:
    """One row of numbers per event, for detectors that take nothing else.

    Attributes
    ----------
    names : tuple of str
        Of the F features.
    matrix : ndarray (N, F)
        Robustly scaled numbers and flags of 0 and 1; no NaN.
    offsets : ndarray of int64 (S + 1,)
        Borders of the entities.
    row : ndarray of int64 (N,)
        Position of each event in the input.
    """

    names: tuple[str, ...]
    matrix: Floats
    offsets: Ints
    row: Ints


def event_features(frame: pl.DataFrame, schema: Schema, history: Bools) -> EventFeatures:
    """Give other detectors what the models see: the encoder's numeric columns, and its flags as 0 and 1.

    The same causal columns, so that the comparison is one of detectors and not of features: amounts, gaps, counts and
    sums of the last hour, day and week, distances and speeds, time of day and week, first time at a merchant, changed
    device. The values of categories have no order and stay out. What is missing, as the gap before an entity's first
    event, becomes 0: the median of a number, a flag that is not set.

    Parameters
    ----------
    frame : polars.DataFrame
        Canonical events, as from `anomaly.ingest.read_events`.
    schema : Schema
        Which columns there are.
    history : ndarray of bool (N,)
        Events that the scales are learned from.
    """
    encoder = Encoder(schema).fit(frame, history)
    sequences = encoder.transform(frame)
    flags = [index for index, column in enumerate(encoder.category) if column.kind == "flag"]
    numbers = np.nan_to_num(sequences.numeric.astype(np.float64), nan=0.0)
    return EventFeatures(
        names=(*(column.name for column in encoder.numeric), *(encoder.category[index].name for index in flags)),
        matrix=np.hstack([numbers, (sequences.category[:, flags] == YES).astype(np.float64)]),
        offsets=sequences.offsets,
        row=sequences.row,
    )


def isolation_forest(train: Floats, test: Floats, *, seed: int, trees: int = 100) -> Floats:
    """Score by scikit-learn's isolation forest: how few random cuts set an event apart.

    Its defaults are those of the paper (Liu, Ting & Zhou 2008): 100 trees of 256 events each.

    Parameters
    ----------
    train : ndarray (M, F)
        Events to learn from.
    test : ndarray (N, F)
        Events to score.
    seed : int
        Same seed, same scores.
    trees : int
        More of them blur less.

    Returns
    -------
    ndarray (N,)
        In (0, 1), higher = stranger.
    """
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=trees, random_state=seed).fit(train)
    return np.asarray(-forest.score_samples(test), dtype=np.float64)


def ecod(train: Floats, test: Floats) -> Floats:
    """Score by PyOD's ECOD (Li et al. 2022): the sum over the features of -log of the emptier tail.

    PyOD puts the events to be scored into the empirical distributions beside those learned from. A score thus depends
    on the whole of `test`, later events included: an advantage over causal detectors, and it is left in place.

    Parameters
    ----------
    train : ndarray (M, F)
        Events to learn from.
    test : ndarray (N, F)
        Events to score, all in one call.

    Returns
    -------
    ndarray (N,)
        Above 0, higher = stranger.
    """
    from pyod.models.ecod import ECOD

    return np.asarray(ECOD().fit(train).decision_function(test), dtype=np.float64)


def pyod_lstm(
    features: Floats,
    offsets: Ints,
    history: Bools,
    scored: Bools,
    *,
    seed: int,
    window: int = 20,
    epochs: int = 10,
    train_events: int = 20_000,
    largest: float = 10.0,
) -> Floats:
    """Score by PyOD's LSTM detector (LSTMAD), one detector for all entities, an entity at a time.

    PyOD's detector reads one series, predicts each event from the `window` before it, and scores by the Mahalanobis
    distance of its error. This is the fairest use on many entities that is feasible:

    - It learns from the histories of entities drawn at random, put one after another, up to `train_events` events.
      Windows that cross from one entity to the next are left out of training, of the errors' mean and covariance and
      of the threshold; all else is PyOD's own code. One detector per entity would have too little to learn from.
    - It scores each entity's own series. An event with fewer than `window` earlier ones of its entity gets what PyOD
      gives: its threshold, the 0.9 quantile of the training scores.
    - Net, batches and learning rate are PyOD's defaults (2 layers of 64, 32 windows, 0.001). Its defaults of 50 epochs
      and windows of 50 take about ten times as long as those here, which learn from 20,000 events of 22 features in
      one or two minutes on one core. PyOD scales nothing, and squared errors are ruled by the far out, so features are
      clipped to +-`largest`.

    N events cost N times `window` steps: some thousands of events a second on one core.

    Parameters
    ----------
    features : ndarray (N, F)
        On scales like those of `event_features`; no NaN.
    offsets : ndarray (S + 1,)
        Borders of the entities, S = 1 for a single series.
    history : ndarray of bool (N,)
        Events to learn from: the first of each entity, up to a time.
    scored : ndarray of bool (N,)
        Events to score.
    seed : int
        Of the sample and of the net; torch's own state is left as it was.
    window, epochs, train_events, largest
        See above.

    Returns
    -------
    ndarray (N,)
        Higher = stranger; NaN where not asked.

    Raises
    ------
    ValueError
        If the events of `history` are not the first of each entity, or too few for a single window.
    """
    import torch

    bounded = np.clip(features, -largest, largest)
    card = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    sample = _sample(offsets, history, window, train_events, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = _fit_lstm(bounded[sample], card[sample], window, epochs)
        score = np.full(len(features), np.nan)
        for start, stop in pairwise(offsets):
            asked = np.flatnonzero(scored[start:stop])
            if not asked.size:
                continue
            begin = max(start, start + asked[0] - window)  # what is earlier changes nothing
            series = bounded[begin:stop]
            given = (
                detector.decision_function(series)
                if len(series) > window
                else np.full(len(series), detector.threshold_)
            )
            score[start + asked] = given[start + asked - begin]
    return score


def _sample(offsets: Ints, history: Bools, window: int, most: int, seed: int) -> Ints:
    """Indices of the events to learn from: whole histories of entities in random order, the last one cut to fit."""
    start, lengths = offsets[:-1], np.add.reduceat(history.astype(np.int64), offsets[:-1])
    position = np.arange(len(history)) - np.repeat(start, np.diff(offsets))
    if not np.array_equal(history, position < np.repeat(lengths, np.diff(offsets))):
        raise ValueError("pyod_lstm: expected the history to be the first events of each entity")
    chosen: list[Ints] = []
    left = most
    for card in np.random.default_rng(seed).permutation(len(start)):
        n = min(int(lengths[card]), left)
        if n > window:
            chosen.append(np.arange(start[card], start[card] + n))
            left -= n
    found = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
    if len(found) < window + 10:  # what PyOD itself asks for
        raise ValueError(
            f"pyod_lstm: expected entities with more than window={window} events of history, {window + 10} or more in "
            f"all, got {len(found)} events"
        )
    return found


def _fit_lstm(series: Floats, card: Ints, window: int, epochs: int) -> Any:
    """PyOD's detector on the entities' series one after another, learning from no window that crosses a border."""
    from pyod.models.ts_lstm import LSTMAD

    whole = card[:-window] == card[window:]  # is the window before event i + window all of its entity

    class ByEntity(LSTMAD):  # type: ignore[misc]  # PyOD comes without types
        def _train_model(self, inputs: Floats, targets: Floats, n_channels: int) -> Any:
            return super()._train_model(inputs[whole], targets[whole], n_channels)

        def _mahalanobis_scores(self, errors: Floats) -> tuple[Floats, Floats, Floats]:
            _, centre, inverse = LSTMAD._mahalanobis_scores(errors[whole])
            away = errors - centre
            return np.sum(away @ inverse * away, axis=1), centre, inverse

    detector = ByEntity(window_size=window, epochs=epochs).fit(series)
    learned = detector.decision_scores_[window:][whole]
    detector.threshold_ = float(np.quantile(learned, 1 - detector.contamination))
    return detector
