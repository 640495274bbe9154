"""The Fraud Detection Handbook's way to judge a model that learns from labels: features, weeks, known cards, measures.

After chapters 3 to 5 (Le Borgne, Siblini, Lebichot & Bontempi 2021): a model learns from a week of payments, waits a
week for the labels, and is tested on the next one; this is done four times, a week apart. Cards that are known to be
compromised are taken out of the test days. Besides, a longer split: all labels known by the end of July, tested on all
of August and September.

A scorer is a function of the payments and a split that returns a score for each test event, higher = more likely fraud.
It may read whatever was known when the event happened, and learn from the labels of the training events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from handbook import CARDS, SINCE, rules
from numpy.typing import NDArray

from anomaly.evaluation import average_precision, card_precision_at_k, daily, roc_auc
from anomaly.history import as_seconds
from anomaly.labels import known_at, known_fraud, known_past, rolling, usual
from anomaly.models.baselines import Baseline

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

DAY = 86_400.0
EPOCH = date(1970, 1, 1)  # a Thursday
WINDOWS = (1, 7, 30)  # days
WEEK, DELAY = 7, 7  # days that train, as many that test; days until a label is known
LAST_NIGHT_HOUR = 6
TRAINED_FROM = (date(2018, 7, 25), date(2018, 8, 1), date(2018, 8, 8), date(2018, 8, 15))  # first day of each fold
FEATURES = (
    "TX_AMOUNT",
    "TX_DURING_WEEKEND",
    "TX_DURING_NIGHT",
    *(f"CUSTOMER_ID_{what}_{days}DAY_WINDOW" for days in WINDOWS for what in ("NB_TX", "AVG_AMOUNT")),
    *(f"TERMINAL_ID_{what}_{days}DAY_WINDOW" for days in WINDOWS for what in ("NB_TX", "RISK")),
)
MISSING = -1.0  # what stands for a time since a fraud that never was
MEASURES = ("auc", "ap", f"cp{CARDS}")


@dataclass(frozen=True, eq=False)
class Payments:
    """All N payments in the order of the file, and what is computed of them once for all splits.

    Attributes
    ----------
    events : polars.DataFrame
        The table.
    """

    events: pl.DataFrame

    @classmethod
    def read(cls, path: Path) -> Payments:
        """Read the file."""
        return cls(pl.read_parquet(path))

    @cached_property
    def time(self) -> Floats:
        """Seconds since 1970 (N,)."""
        return self.events["TX_DATETIME"].dt.epoch("us").to_numpy() / 1e6

    @cached_property
    def day(self) -> Ints:
        """Days since 1970 (N,)."""
        return daily(self.time)

    @cached_property
    def card(self) -> NDArray[np.generic]:
        """The customer of each payment (N,)."""
        return self.events["CUSTOMER_ID"].to_numpy()

    @cached_property
    def kind(self) -> Ints:
        """Scenario of the fraud (N,), 0 = genuine."""
        return self.events["TX_FRAUD_SCENARIO"].cast(pl.Int64).to_numpy()

    @cached_property
    def fraud(self) -> Bools:
        """Labels (N,)."""
        return np.asarray(self.events["TX_FRAUD"].cast(pl.Int64).to_numpy() == 1)

    @cached_property
    def features(self) -> Floats:
        """The Handbook's features (N, 15), named by `FEATURES`; past fraud at the terminal waits for its labels."""
        amount = self.events["TX_AMOUNT"].cast(pl.Float64).to_numpy()
        hour = np.floor(np.mod(self.time, DAY) / 3600)
        weekend = np.mod(self.day + EPOCH.weekday(), 7) >= 5
        windows = seconds(WINDOWS)
        terminal = self.events["TERMINAL_ID"].to_numpy()
        return np.column_stack(
            [
                amount,
                weekend,
                hour <= LAST_NIGHT_HOUR,
                rolling(self.card, self.time, amount, windows=windows),
                known_fraud(terminal, self.time, self.fraud, delay=DELAY * DAY, windows=windows),
            ]
        )

    @cached_property
    def own(self) -> Floats:
        """How far this payment, and those of the last days, are above what is usual for the customer, (N, 6)."""
        amount = self.events["TX_AMOUNT"].cast(pl.Float64).to_numpy()
        return usual(self.card, self.time, amount, windows=seconds((1, 3, 7, 14, 30)))

    @cached_property
    def views(self) -> Floats:
        """What the recurrent head is told besides: the features, and more of what its two views show, (N, 46).

        Of the terminal and of the customer what is known of past frauds, a week late; and the customer's `own`.
        """
        views = {"TERMINAL_ID": (1, 7, 28), "CUSTOMER_ID": (7, 30)}
        past = [
            known_past(self.events[name].to_numpy(), self.time, self.fraud, delay=DELAY * DAY, windows=seconds(days))
            for name, days in views.items()
        ]
        return np.column_stack([self.features, *past, self.own])

    @cached_property
    def rules(self) -> dict[str, Floats]:
        """Scores (N,) of the rules that need no label."""
        return rules(self.events, np.arange(self.events.height))


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of the payments that train, and those that test."""

    name: str
    train: Ints
    test: Ints


def seconds(days: Sequence[float]) -> list[float]:
    """Lengths of windows."""
    return [one * DAY for one in days]


Scorer = Callable[[Payments, Split], Floats]


def rule(name: str) -> Scorer:
    """Return a rule as a scorer."""
    return lambda payments, split: payments.rules[name][split.test]


def labelled(make: Callable[[], Baseline], seed: int = 0, what: str = "features") -> Scorer:
    """Return a classifier of single events as a scorer: it learns from `what` is known of the training events.

    That is the Handbook's ``features``, or the ``views``, all that the recurrent head is told.
    """

    def score(payments: Payments, split: Split) -> Floats:
        inputs = getattr(payments, what)
        inputs = np.where(np.isnan(inputs), MISSING, inputs)
        model = make().fit(inputs[split.train], payments.fraud[split.train], seed)
        return model.predict_proba(inputs[split.test])

    return score


def fold(payments: Payments, first: date) -> Split:
    """Return the split whose week of training begins on the day `first`.

    The test week begins two weeks later. Taken out of it are the cards with a fraud in the week of training and, from
    each test day on, those with a fraud eight days before it: labels of that day are known on the eve of the test day.
    """
    train = week_of(payments.day, first)
    test = counted(payments.day, payments.card, payments.fraud, first)
    return Split(first.isoformat(), np.flatnonzero(train), np.flatnonzero(test))


def week_of(day: Ints, first: date) -> Bools:
    """Which events (N,), of those days since 1970, are in the week from the day `first` on."""
    begin = (first - EPOCH).days
    return np.asarray((day >= begin) & (day < begin + WEEK))


def counted(day: Ints, card: NDArray[Any], fraud: Bools, first: date) -> Bools:
    """Which events (N,) are in the test week and of a card not known by then; training begins on the day `first`."""
    known = card[week_of(day, first) & fraud]
    found = np.zeros(len(day), dtype=bool)
    begin = (first - EPOCH).days + WEEK + DELAY
    for today in range(begin, begin + WEEK):
        known = np.union1d(known, card[fraud & (day == today - DELAY - 1)])
        found |= (day == today) & ~np.isin(card, known)
    return found


def folds(payments: Payments) -> list[Split]:
    """Return the Handbook's four test folds."""
    return [fold(payments, first) for first in TRAINED_FROM]


def long_split(payments: Payments, since: str = SINCE) -> Split:
    """Train on all labels that are known at `since`, and test on everything from then on; no card is taken out."""
    now = as_seconds(since)
    if now is None:
        raise ValueError("long_split: expected a day")
    train = known_at(payments.time, payments.fraud, DELAY * DAY, now)
    return Split("long", np.flatnonzero(train), np.flatnonzero(payments.time >= now))


def last_training_day(payments: Payments, split: Split) -> date:
    """Return the day of the newest event that trains."""
    return EPOCH + timedelta(days=int(payments.day[split.train].max()))


def quality(payments: Payments, split: Split, score: Floats) -> dict[str, float]:
    """AUC, average precision and card precision at 100 of scores (n,) of the test events."""
    fraud = payments.fraud[split.test]
    day, card = payments.day[split.test], payments.card[split.test]
    values = (roc_auc(score, fraud), average_precision(score, fraud))
    return dict(zip(MEASURES, (*values, card_precision_at_k(day, card, score, fraud, CARDS)), strict=True))
