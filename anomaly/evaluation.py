"""How good a ranking is, where labels exist: by event, by kind of fraud, by day and by card, in hours and in money.

Also how far stated probabilities can be believed, and the rules to beat. How sure a difference is, tells
`anomaly.bootstrap`.

Scores are arrays (n,), higher = stranger; labels are 0 or 1 (or bool). For p-values give ``-log10(p)``, the surprise:
1 - p rounds to 1 in the far tail and makes ties there. A NaN score is refused: whoever compares models must say first
what an event without a statement counts for. So are labels without a positive, by whatever needs one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from anomaly.errors import ParameterError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

HOUR = 3_600.0
DAY = 86_400.0


@dataclass(frozen=True)
class Delay:
    """How soon runs of fraud are noticed; see `detection_delay`.

    Attributes
    ----------
    runs : int
        Runs of fraud.
    detected : float
        Share of them with an alert on one of their frauds, in [0, 1].
    events : float
        Median number of frauds before the first alerted one, over the detected runs; NaN if there are none. 0 = the
        first fraud alerts.
    hours : float
        Median hours from the first fraud to the first alerted one, likewise.
    lost : float
        Mean money lost before the first alerted fraud, likewise, in the unit of the amounts.
    """

    runs: int
    detected: float
    events: float
    hours: float
    lost: float


@dataclass(frozen=True)
class Saved:
    """Money that alerts save; see `money_saved`.

    Attributes
    ----------
    money : float
        Fraud money stopped less the cost of the alerts, in the unit of the amounts; below 0 if they cost more.
    share : float
        The same over all fraud money, at most 1; NaN if the frauds hold no money.
    alerts : int
        How many events are alerted.
    """

    money: float
    share: float
    alerts: int


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
    score, label = checked("roc_auc", score, label)
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
    score, label = checked("average_precision", score, label)
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
    score, label = checked("per_kind", score, label)
    kind = np.asarray(kind)
    same_length("per_kind", score=score, kind=kind)
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
    score, label = checked("card_precision_at_k", score, label, need_positive=False)
    day, entity = np.asarray(day), np.asarray(entity)
    same_length("card_precision_at_k", score=score, day=day, entity=entity)
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
    score, label = checked("recall_at_budget", score, label)
    alerted = _top_of_each_day("recall_at_budget", time, score, per_day)
    return float(label[alerted].sum() / label.sum())


def precision_at_budget(time: ArrayLike, score: ArrayLike, label: ArrayLike, per_day: int) -> float:
    """Share of the alerts that are positives when the top `per_day` events of each day are alerts.

    Parameters are those of `recall_at_budget`. A day with fewer than `per_day` events has that many alerts, so the best
    possible value is below 1 only where days have fewer positives than alerts.
    """
    score, label = checked("precision_at_budget", score, label)
    alerted = _top_of_each_day("precision_at_budget", time, score, per_day)
    return float(label[alerted].mean())


def recall_at_false_alerts(score: ArrayLike, label: ArrayLike, share: float) -> float:
    """Share of the positives found at the lowest threshold at which at most `share` of the negatives alert.

    A point of the ROC curve: the recall at a false alert rate. Events of one score alert together or not at all, so
    ties at the threshold count as not found (no interpolation). `share` below 1 / negatives allows no false alert.

    Parameters
    ----------
    score : array (n,)
        Higher = stranger.
    label : array (n,)
        1 = positive.
    share : float
        Largest share of the negatives that may alert, in [0, 1], such as 0.001.

    Raises
    ------
    ParameterError
        If a score is NaN, a label is no 0 or 1, one of the classes is empty, or `share` is out of range.
    """
    score, label = checked("recall_at_false_alerts", score, label)
    if not 0 <= share <= 1:
        raise ParameterError(f"recall_at_false_alerts: expected a share from 0 to 1, got {share}")
    negatives = label.size - int(label.sum())
    if negatives == 0:
        raise ParameterError("recall_at_false_alerts: expected negatives as well as positives, got positives only")
    _, group = np.unique(score, return_inverse=True)
    # From the highest score down; a count over a count, so that 29 of 100 are at most 0.29 (0.29 * 100 is below 29).
    false = np.cumsum(np.bincount(group[~label], minlength=group.max() + 1)[::-1])[::-1]
    allowed = false / negatives <= share
    return float(allowed[group[label]].mean())


def detection_delay(
    entity: ArrayLike,
    time: ArrayLike,
    amount: ArrayLike,
    score: ArrayLike,
    label: ArrayLike,
    threshold: float,
    gap_hours: float = 168.0,
) -> Delay:
    """How soon runs of fraud are noticed, in events, hours and money.

    A run is the frauds of one entity, split where two that follow each other are more than `gap_hours` apart. It is
    detected by the first alert on one of its frauds; alerts on genuine events don't count. The alerted payment itself
    counts as stopped. Delays are those of the detected runs alone: compare scorers only with `detected` beside them,
    since one that finds just the easy runs may find them soon.

    Parameters
    ----------
    entity : array (n,)
        Code or name of each event's entity.
    time : array (n,)
        Seconds, in any order; frauds of one entity at the same time count in row order.
    amount : array (n,)
        Money lost by each fraud; not looked at for genuine events.
    score : array (n,)
        Higher = stranger.
    label : array (n,)
        1 = fraud.
    threshold : float
        An event alerts if its score is at least that.
    gap_hours : float
        Longest pause within a run; infinity makes all frauds of an entity one run.

    Raises
    ------
    ParameterError
        If a score or the threshold is NaN, a label is no 0 or 1, there is no fraud, a time is not finite, a fraud's
        amount isn't a number from 0, or `gap_hours` is below 0.
    """
    score, label = checked("detection_delay", score, label)
    code, time, amount = _payments("detection_delay", entity, time, amount, label)
    if np.isnan(threshold):
        raise ParameterError("detection_delay: expected a threshold, got NaN")
    if not gap_hours >= 0:
        raise ParameterError(f"detection_delay: expected gap_hours of at least 0, got {gap_hours}")
    order = np.lexsort((time, code))
    order = order[label[order]]  # the frauds, by entity and time
    code, time, amount = code[order], time[order], amount[order]
    starts = np.append(True, (np.diff(code) != 0) | (np.diff(time) > gap_hours * HOUR))
    start, run = np.flatnonzero(starts), np.cumsum(starts) - 1
    place = np.arange(code.size)
    first = np.minimum.reduceat(np.where(score[order] >= threshold, place, code.size), start)  # alerted fraud of a run
    found = first < code.size
    if not found.any():
        return Delay(runs=start.size, detected=0.0, events=np.nan, hours=np.nan, lost=np.nan)
    lost = np.add.reduceat(np.where(place < first[run], amount, 0.0), start)
    start, first = start[found], first[found]
    return Delay(
        runs=found.size,
        detected=float(found.mean()),
        events=float(np.median(first - start)),
        hours=float(np.median((time[first] - time[start]) / HOUR)),
        lost=float(lost[found].mean()),
    )


def money_saved(
    entity: ArrayLike,
    time: ArrayLike,
    amount: ArrayLike,
    score: ArrayLike,
    label: ArrayLike,
    per_day: int,
    alert_cost: float = 0.0,
) -> Saved:
    """Fraud money stopped when the top `per_day` events of each day are alerts, less what the alerts cost.

    Assumptions: an alert stops its own payment and blocks the entity for good, whether it is right or wrong, so every
    later fraud of the entity is stopped too. A false alert costs `alert_cost` and nothing else: blocked genuine
    payments are not charged. A blocked entity's events stay in the ranking, and alerts on them are paid for. The alerts
    of a day are known when its events happen, as with a threshold that yields just the budget.

    Parameters
    ----------
    entity, time, amount, score, label : array (n,)
        As in `detection_delay`; among equal scores the earlier event alerts first, as in `recall_at_budget`.
    per_day : int
        Alerts a day, which is a calendar day of the zone of the times.
    alert_cost : float
        Cost of one alert, right or wrong, in the unit of the amounts.

    Raises
    ------
    ParameterError
        As in `detection_delay`; or if `per_day` is below 1, or `alert_cost` isn't a number from 0.
    """
    score, label = checked("money_saved", score, label)
    code, time, amount = _payments("money_saved", entity, time, amount, label)
    if not 0 <= alert_cost < np.inf:
        raise ParameterError(f"money_saved: expected an alert_cost of at least 0, got {alert_cost}")
    alerted = _top_of_each_day("money_saved", time, score, per_day)
    order = np.lexsort((time, code))
    code, label, amount = code[order], label[order], amount[order]
    alerts = np.cumsum(alerted[order])
    start = np.searchsorted(code, code)  # where the event's entity begins
    blocked = alerts > np.append(0, alerts)[start]
    total = float(amount[label].sum())
    money = float(amount[label & blocked].sum()) - alert_cost * int(alerted.sum())
    return Saved(money=money, share=money / total if total > 0 else np.nan, alerts=int(alerted.sum()))


def brier(probability: ArrayLike, label: ArrayLike) -> float:
    """Mean squared difference between stated probability and label (Brier 1950, for two classes): 0 = perfect.

    A proper score: no statement does better on average than the true probability. Where frauds are rare it is small for
    everybody; compare it with that of the constant base rate b, which gets b (1 - b).

    Parameters
    ----------
    probability : array (n,)
        Stated chance of a positive, in [0, 1]: neither a p-value nor a score.
    label : array (n,)
        1 = positive.

    Raises
    ------
    ParameterError
        If a probability is NaN or out of range, a label is no 0 or 1, or there is no positive.
    """
    probability, label = _probabilities("brier", probability, label)
    return float(np.mean((probability - label) ** 2))


def expected_calibration_error(probability: ArrayLike, label: ArrayLike, bins: int = 15) -> float:
    """Mean distance between stated and observed frequency over bins of equally many events: 0 = calibrated.

    Sum over the bins of (events in the bin / n) |mean probability - share of positives| (Naeini et al. 2015), with bins
    of equal mass instead of equal width (Nixon et al. 2019): with rare frauds nearly all events would share one bin of
    equal width. Equal probabilities share a bin, the one of the middle of their ranks, so that the order of the rows
    does not matter; with many ties some bins are empty. A ranking is not judged: the constant base rate gets 0. With
    few positives in a bin even true probabilities get more than 0.

    Parameters
    ----------
    probability, label : array (n,)
        As in `brier`, which has the same errors.
    bins : int
        How many, at least 1; each holds about n / bins events.
    """
    probability, label = _probabilities("expected_calibration_error", probability, label)
    if bins < 1:
        raise ParameterError(f"expected_calibration_error: expected bins of at least 1, got {bins}")
    rank = stats.rankdata(probability) - 0.5  # in (0, n); ties get the middle of theirs
    place = (rank * bins / rank.size).astype(np.int64)
    gap = np.bincount(place, weights=probability - label)  # (mean probability - share of positives) x events of the bin
    return float(np.abs(gap).sum() / rank.size)


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
    same_length("rule_ratio", amount=amount, entity=entity, time=time)
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


def checked(who: str, score: ArrayLike, label: ArrayLike, need_positive: bool = True) -> tuple[Floats, Bools]:
    """Scores and labels (n,) as arrays; refuses NaN scores, labels other than 0 and 1 and, if needed, no positive."""
    score, given = np.asarray(score, dtype=np.float64), np.asarray(label)
    same_length(who, score=score, label=given)
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


def same_length(who: str, **arrays: NDArray[Any]) -> None:
    """Refuses arrays that are not all (n,)."""
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ParameterError(f"{who}: expected arrays of one length (n,), got {told}")


def _top_of_each_day(who: str, time: ArrayLike, score: Floats, per_day: int) -> Bools:
    """Which events (n,) are among the `per_day` highest scores of their day; ties to the earlier event, then row."""
    time = np.asarray(time, dtype=np.float64)
    same_length(who, score=score, time=time)
    if per_day < 1:
        raise ParameterError(f"{who}: expected per_day of at least 1, got {per_day}")
    day = daily(time)
    order = np.lexsort((time, -score, day))
    day = day[order]
    place = np.arange(day.size) - np.searchsorted(day, day, side="left")
    top = np.zeros(day.size, dtype=np.bool_)
    top[order[place < per_day]] = True
    return top


def _payments(
    who: str, entity: ArrayLike, time: ArrayLike, amount: ArrayLike, label: Bools
) -> tuple[Ints, Floats, Floats]:
    """Code of the entity, time and amount (n,) of each event; a fraud without an amount is refused."""
    entity = np.asarray(entity)
    time, amount = np.asarray(time, dtype=np.float64), np.asarray(amount, dtype=np.float64)
    same_length(who, label=label, entity=entity, time=time, amount=amount)
    if not np.isfinite(time).all():
        raise ParameterError(f"{who}: expected finite times in seconds")
    lacking = int((~((amount[label] >= 0) & (amount[label] < np.inf))).sum())
    if lacking:
        raise ParameterError(
            f"{who}: expected an amount of at least 0 for each fraud, got {lacking} NaN, infinite or below 0; decide "
            "what such a fraud costs, the same for all models"
        )
    return np.unique(entity, return_inverse=True)[1].astype(np.int64), time, amount


def _probabilities(who: str, probability: ArrayLike, label: ArrayLike) -> tuple[Floats, Bools]:
    probability, label = checked(who, probability, label)
    if probability.min() < 0 or probability.max() > 1:
        raise ParameterError(
            f"{who}: expected probabilities from 0 to 1, got {probability.min():g} to {probability.max():g}"
        )
    return probability, label
