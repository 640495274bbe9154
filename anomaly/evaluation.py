"""How good a ranking is, where labels exist: by event, by kind of fraud, by day and by card; and the rules to beat.

Scores are arrays (n,), higher = stranger; labels are 0 or 1 (or bool). For p-values give ``-log10(p)``, the surprise:
1 - p rounds to 1 in the far tail and makes ties there. A NaN score is refused: whoever compares models must say first
what an event without a statement counts for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anomaly.errors import ParameterError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

DAY = 86_400.0


def roc_auc(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    By ranks (Mann & Whitney 1947), with average ranks for ties: AUC = (sum of the ranks of the positives -
    P (P + 1) / 2) / (P N). The same number as scikit-learn's ``roc_auc_score``.

    Parameters
    ----------
    score : array (n,)
        Higher = stranger.
    label : array (n,)
        1 = positive.

    Raises
    ------
    ParameterError
        If a score is NaN, a label is no 0 or 1, or one of the classes is empty.
    """
    score, label = _checked("roc_auc", score, label)
    positives = int(label.sum())
    negatives = label.size - positives
    if negatives == 0:
        raise ParameterError("roc_auc: expected negatives as well as positives, got positives only")
    ranks = stats.rankdata(score)
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the precision-recall steps: sum over the thresholds of (R_i - R_(i-1)) P_i.

    Events of one score enter together, and nothing is interpolated, as in scikit-learn's ``average_precision_score``. A
    random ranking gets the share of positives.

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
    score, label = _checked("average_precision", score, label)
    order = np.argsort(-score, kind="stable")
    score, label = score[order], label[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # the last event of each group of ties
    found = np.cumsum(label)[last]
    precision = found / (last + 1.0)
    return float(np.sum(np.diff(found, prepend=0) * precision) / found[-1])


def per_kind(score: ArrayLike, label: ArrayLike, kind: ArrayLike) -> dict[str, dict[str, float]]:
    """Quality of the ranking for each kind of positive, against the negatives alone.

    The other kinds are removed first: otherwise a ranking is blamed for putting another fraud on top.

    Parameters
    ----------
    score : array (n,)
        Higher = stranger.
    label : array (n,)
        1 = positive.
    kind : array (n,)
        Name or number of each positive's kind; not looked at for negatives.

    Returns
    -------
    dict
        For each kind, in sorted order, by its text: `auc`, `ap`, `positives` (how many) and `base_rate` (AP of a random
        ranking of these events).
    """
    score, label = _checked("per_kind", score, label)
    kind = np.asarray(kind)
    _same_length("per_kind", score=score, kind=kind)
    found: dict[str, dict[str, float]] = {}
    for one in np.unique(kind[label]):
        mine = ~label | (kind == one)
        positives = int(label[mine].sum())
        found[str(one)] = {
            "auc": roc_auc(score[mine], label[mine]),
            "ap": average_precision(score[mine], label[mine]),
            "positives": positives,
            "base_rate": positives / int(mine.sum()),
        }
    return found


def daily(time: ArrayLike) -> Ints:
    """Day of each time (n,) in seconds since 1970-01-01: whole days since then, in the zone of the times."""
    seconds = np.asarray(time, dtype=np.float64)
    if not np.isfinite(seconds).all():
        raise ParameterError("daily: expected finite times in seconds")
    return np.floor(seconds / DAY).astype(np.int64)


def card_precision_by_day(
    day: ArrayLike, entity: ArrayLike, score: ArrayLike, label: ArrayLike, k: int = 100, drop_detected: bool = True
) -> tuple[Ints, Floats]:
    """Card precision of each day; see `card_precision_at_k`.

    Returns
    -------
    days : ndarray (d,) of int64
        The days that have events, ascending.
    precision : ndarray (d,)
        Compromised cards among the day's top k, over k.
    """
    score, label = _checked("card_precision_at_k", score, label, need_positive=False)
    day, entity = np.asarray(day), np.asarray(entity)
    _same_length("card_precision_at_k", score=score, day=day, entity=entity)
    if k < 1:
        raise ParameterError(f"card_precision_at_k: expected k of at least 1, got {k}")
    days, day_code = np.unique(day, return_inverse=True)
    cards, card = np.unique(entity, return_inverse=True)
    # One row per day and card: largest score, largest label.
    key = day_code.astype(np.int64) * cards.size + card
    order = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.diff(key[order], prepend=-1))
    if first.size == 0:
        raise ParameterError("card_precision_at_k: expected at least one event, got none")
    best = np.maximum.reduceat(score[order], first)
    bad = np.logical_or.reduceat(label[order], first)
    row_day, row_card = np.divmod(key[order][first], cards.size)
    detected = np.zeros(cards.size, dtype=np.bool_)
    precision = np.zeros(days.size)
    edges = np.searchsorted(row_day, np.arange(days.size + 1))
    for d in range(days.size):
        rows = np.arange(edges[d], edges[d + 1])
        rows = rows[~detected[row_card[rows]]]
        top = rows[np.argsort(-best[rows], kind="stable")[:k]]
        hit = row_card[top[bad[top]]]
        precision[d] = hit.size / k
        if drop_detected:
            detected[hit] = True
    return days.astype(np.int64), precision


def card_precision_at_k(
    day: ArrayLike, entity: ArrayLike, score: ArrayLike, label: ArrayLike, k: int = 100, drop_detected: bool = True
) -> float:
    """Share of compromised cards among the k that a team looks at each day, averaged over the days.

    As in the Fraud Detection Handbook (Le Borgne et al. 2021): each day the events of cards that were detected on
    earlier days are left out; a card's score is its largest one of the day, and it is compromised if any of its events
    of the day is fraud; of the k cards with the highest scores, the share of compromised ones is (compromised) / k,
    even if the day has fewer cards; these are the detected ones. Ties go to the smaller entity code.

    Parameters
    ----------
    day : array (n,)
        Integer day of each event; see `daily`.
    entity : array (n,)
        Card of each event.
    score : array (n,)
        Higher = stranger.
    label : array (n,)
        1 = fraud.
    k : int
        Cards looked at a day.
    drop_detected : bool
        Leave out the cards detected on earlier days.

    Returns
    -------
    float
        Mean over the days that have events, in [0, 1]. The best possible value is often well below 1: a day may have
        fewer than k compromised cards.
    """
    return float(card_precision_by_day(day, entity, score, label, k, drop_detected)[1].mean())


def recall_at_budget(time: ArrayLike, score: ArrayLike, label: ArrayLike, per_day: int) -> float:
    """Share of the positives found when the top `per_day` events of each day are alerts.

    Parameters
    ----------
    time : array (n,)
        Seconds; a day is a calendar day of their zone.
    score : array (n,)
        Higher = stranger; ties go to the earlier event, then to the earlier row.
    label : array (n,)
        1 = positive.
    per_day : int
        Alerts a day.
    """
    score, label = _checked("recall_at_budget", score, label)
    time = np.asarray(time, dtype=np.float64)
    _same_length("recall_at_budget", score=score, time=time)
    if per_day < 1:
        raise ParameterError(f"recall_at_budget: expected per_day of at least 1, got {per_day}")
    day = daily(time)
    order = np.lexsort((time, -score, day))
    day = day[order]
    place = np.arange(day.size) - np.searchsorted(day, day, side="left")
    return float(label[order][place < per_day].sum() / label.sum())


def rule_amount(amount: ArrayLike) -> Floats:
    """The simplest rule: the amount itself (n,) as a score."""
    return np.array(amount, dtype=np.float64)


def rule_ratio(entity: ArrayLike, amount: ArrayLike, time: ArrayLike, population: float | None = None) -> Floats:
    """The rule that a model must beat: the amount over the median of the entity's earlier amounts.

    Causal: an event is compared with earlier events of its entity alone. An entity's first event, and one whose earlier
    median isn't above 0, is compared with the population's median.

    Parameters
    ----------
    entity : array (n,)
        Integer codes.
    amount : array (n,)
        NaN = unknown; such an event scores NaN and does not enter the history.
    time : array (n,)
        Seconds, in any order; events of one entity at the same time count in row order.
    population : float, optional
        Median amount of the history. By default the median of all amounts given above 0 (1 if there are none), which
        for the entities' first events looks ahead a little.

    Returns
    -------
    ndarray (n,)
        Higher = stranger.
    """
    amount = np.asarray(amount, dtype=np.float64)
    entity, time = np.asarray(entity), np.asarray(time, dtype=np.float64)
    _same_length("rule_ratio", amount=amount, entity=entity, time=time)
    if population is None:
        spent = amount[amount > 0]
        population = float(np.median(spent)) if spent.size else 1.0
    if not population > 0:
        raise ParameterError(f"rule_ratio: expected a population median above 0, got {population}")
    order = np.lexsort((time, entity))
    history = (
        pl.DataFrame({"entity": entity[order], "amount": amount[order]})
        .select(
            pl.col("amount")
            .fill_nan(None)
            .rolling_median(window_size=max(amount.size, 1), min_samples=1)
            .shift(1)
            .over("entity")
        )["amount"]
        .to_numpy()
    )
    earlier = np.empty(amount.size)
    earlier[order] = history
    return np.asarray(amount / np.where(earlier > 0, earlier, population))


def _checked(who: str, score: ArrayLike, label: ArrayLike, need_positive: bool = True) -> tuple[Floats, Bools]:
    score, given = np.asarray(score, dtype=np.float64), np.asarray(label)
    _same_length(who, score=score, label=given)
    if np.isnan(score).any():
        raise ParameterError(
            f"{who}: expected a score for each event, got {int(np.isnan(score).sum())} NaN; decide "
            "what an event without a statement counts for (0 surprise, say), the same for all models"
        )
    positive = given == 1
    if not np.all(positive | (given == 0)):
        raise ParameterError(f"{who}: expected labels 0 and 1, got others; map them first")
    if need_positive and not positive.any():
        raise ParameterError(f"{who}: expected at least one positive label, got none among {given.size}")
    return score, positive


def _same_length(who: str, **arrays: NDArray[Any]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ParameterError(f"{who}: expected arrays of one length (n,), got {told}")
