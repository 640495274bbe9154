"""What a comparison measures of each scorer in a window of time, over several windows, and in a sentence.

A window is a stretch of events that all scorers rank, none of which was learned from. Several windows that follow each
other are the folds of a prequential evaluation (Dawid 1984; Gama, Sebastião & Rodrigues 2013): each is scored by what
was learned before it.

Letters used in shapes: n events of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.evaluation import (
    average_precision,
    brier,
    card_precision_at_k,
    daily,
    detection_delay,
    expected_calibration_error,
    money_saved,
    precision_at_budget,
    recall_at_budget,
    recall_at_false_alerts,
    roc_auc,
)

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

DAY = 86_400.0
UNSUPERVISED = "unsupervised"
METRICS = (
    "average_precision",
    "auc",
    "precision_at_budget",
    "recall_at_budget",
    "card_precision_at_100",
    "card_precision_at_100_all",
    "recall_at_0.1_percent",
    "recall_at_1_percent",
    "runs_detected",
    "delay_events",
    "delay_hours",
    "delay_money",
    "money_saved",
    "share_saved",
    "brier",
    "calibration_error",
    "fit_seconds",
    "score_seconds",
)


@dataclass(frozen=True)
class Scored:
    """What one scorer said of the n scored events: higher = stranger; probabilities where it has any.

    Seconds hold all that the scorer needs: what was computed once for several (encoded events, past fraud, the detector
    whose memory a head starts from) counts for each of them, by the share of the events that it was needed for.
    """

    score: Float
    fit_seconds: float
    score_seconds: float
    probability: Float | None = None


@dataclass(frozen=True)
class Window:
    """The n events of one test window.

    Attributes
    ----------
    time, amount : ndarray, shape (n,)
        Seconds; money, at least 0.
    entity : ndarray of int64, shape (n,)
        Codes, the same in all windows.
    fraud, known : ndarray of bool, shape (n,)
        The truth; whether a fraud of the event's entity was known when its day began (see `known_cards`).
    begin, end : float
        Seconds; events in [begin, end).
    labelled, known_frauds : int
        Events whose label was known at `begin`, and the frauds among them: what labelled models learned from.
    """

    time: Float
    amount: Float
    entity: NDArray[np.int64]
    fraud: Mask
    known: Mask
    begin: float
    end: float
    labelled: int
    known_frauds: int


def known_cards(entity: NDArray[np.int64], time: Float, fraud: Mask, delay: float) -> Mask:
    """Which events (N,) are of an entity with a fraud that was known when the event's day began.

    As the Fraud Detection Handbook takes known compromised cards out of its test days: with a delay of 7 days a card is
    out from the eighth day after its first fraud on. Here any fraud of the past counts, there those of the training
    week and later ones.

    Parameters
    ----------
    entity, time, fraud : array (N,)
        Codes, seconds and labels of all events.
    delay : float
        Seconds until a label is known.
    """
    first = np.full(int(entity.max(initial=-1)) + 1, np.inf)
    np.minimum.at(first, entity[fraud], time[fraud])
    return np.asarray(first[entity] + delay < daily(time) * DAY)


def measures(one: Scored, window: Window, budget: int) -> dict[str, float | None]:
    """All that is measured of one scorer in a window, by name, in the order of `METRICS`; None = no such number."""
    score, fraud = one.score, window.fraud
    delay = detection_delay(
        window.entity, window.time, window.amount, score, fraud, _threshold(window.time, score, budget)
    )
    saved = money_saved(window.entity, window.time, window.amount, score, fraud, budget)
    probability, worth = (
        one.probability,
        not math.isnan(saved.share),
    )  # without money in the frauds none is lost or saved
    found = (
        average_precision(score, fraud),
        roc_auc(score, fraud),
        precision_at_budget(window.time, score, fraud, budget),
        recall_at_budget(window.time, score, fraud, budget),
        _card_precision(score, window, ~window.known, drop_detected=True),
        _card_precision(score, window, np.ones_like(fraud), drop_detected=False),
        recall_at_false_alerts(score, fraud, 0.001),
        recall_at_false_alerts(score, fraud, 0.01),
        delay.detected,
        delay.events,
        delay.hours,
        delay.lost if worth else None,
        saved.money if worth else None,
        saved.share,
        None if probability is None else brier(probability, fraud),
        None if probability is None else expected_calibration_error(probability, fraud),
        one.fit_seconds,
        one.score_seconds,
    )
    told = (None if value is None or math.isnan(value) else float(value) for value in found)
    return dict(zip(METRICS, told, strict=True))


def over_folds(folds: Sequence[Mapping[str, float | None]]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and standard deviation over the folds of each measure, over those folds that have it.

    The deviation is that of the sample (n - 1), and None where fewer than two folds have the measure.
    """
    means: dict[str, float | None] = {}
    spreads: dict[str, float | None] = {}
    for name in METRICS:
        values = [value for one in folds if (value := one[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
        spreads[name] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return means, spreads


def sentence(
    table: pl.DataFrame, beats: Mapping[str, Mapping[str, float]], curve: pl.DataFrame, facts: Mapping[str, Any]
) -> str:
    """What labels would buy, in a few sentences."""
    best = table.filter("labels").row(0, named=True)
    without = table.filter(scorer=UNSUPERVISED).row(0, named=True)
    name = best["scorer"].replace("_", " ")

    def does(verb: str, stops: str, row: Mapping[str, Any]) -> str:
        money = "" if row["share_saved"] is None else f" and {stops} {row['share_saved']:.0%} of their money"
        return f"{verb} {row['recall_at_budget']:.0%} of the frauds{money}"

    return (
        f"With {facts['known_frauds']:,} known frauds, {name} {does('finds', 'stops', best)}, at "
        f"{facts['budget_per_day']:,} alerts a day; without any label the detector {does('finds', 'stops', without)}. "
        f"In average precision labels win ({best['average_precision']:.3f} against "
        f"{without['average_precision']:.3f}) in {beats[best['scorer']][UNSUPERVISED]:.0%} of the resamples."
        f"{_needed(curve)}"
    )


def _needed(curve: pl.DataFrame) -> str:
    """From how many known frauds on labelled models are above the detector."""
    alone = curve.filter(known=0, scorer=UNSUPERVISED)["ap"].item()
    learned = curve.filter(pl.col("known") > 0).sort("known", "ap", descending=[False, True])
    tops = learned.group_by("known", maintain_order=True).first()
    below = tops.filter(pl.col("ap") <= alone)["known"].max()
    above = tops.filter(pl.col("known") > (0 if below is None else below))
    if above.is_empty():
        return " With none of the numbers of known frauds that were tried did a labelled model overtake the detector."
    first = above.row(0, named=True)
    return (
        f" From {first['known']:,} known frauds on the best labelled model is above the detector "
        f"({first['scorer'].replace('_', ' ')}, {first['ap']:.3f})."
    )


def _card_precision(score: Float, window: Window, kept: Mask, *, drop_detected: bool) -> float | None:
    """Card precision at 100 of the events that are kept; None if there are none."""
    if not kept.any():
        return None
    day, entity = daily(window.time)[kept], window.entity[kept]
    return card_precision_at_k(day, entity, score[kept], window.fraud[kept], drop_detected=drop_detected)


def _threshold(moments: Float, score: Float, budget: int) -> float:
    """Score that lets through the budget on the mean day."""
    days = len(np.unique(daily(moments)))
    alerts = min(len(score), budget * days)
    return float(np.sort(score)[len(score) - alerts])
