"""Our models as scorers of the Handbook's protocol: what is found without a label, and what the recurrent head adds.

The detector is fitted once, without labels, on all payments before the first fold's week of training: no event of any
training or test week trains it, and they are the same events whose labels the models of the long split know. It isn't
fitted again; what it remembers of each customer goes on to the event, as in production. It reads no label of any time.

The head starts from the memory of a forecaster that learned from the same payments of some customers, leaves it as it
is, and learns from the labels of each split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from _handbook_protocol import DAY, TRAINED_FROM, Floats, Payments, Scorer, Split
from handbook import SCHEMA
from numpy.typing import NDArray

from anomaly.detector import Detector
from anomaly.features import Encoder
from anomaly.history import as_seconds
from anomaly.ingest import read_events
from anomaly.models.classifier import Classifier
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training
from anomaly.sequences import Sequences

UNLABELLED = SCHEMA.model_copy(update={"label": None})
LEARNED_UNTIL = TRAINED_FROM[0].isoformat()
VALID_SHARE = 0.2  # of the training payments, the last ones: they say when the head has learned enough
CONTEXT_DAYS = 30.0  # of payments before the training ones that the head's memory reads
CUSTOMERS, EPOCHS = 1000, 4  # that the memory learns from, before any label
GENUINE, MOST = 30.0, 100_000  # genuine payments in each pass of the head for each fraud, and in all at most


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The payments without their labels, and what learned from them before `LEARNED_UNTIL`."""

    payments: Payments
    seed: int
    hidden: int
    epochs: int | None

    @cached_property
    def events(self) -> pl.DataFrame:
        """The payments."""
        return self.payments.events.drop("TX_FRAUD", "TX_FRAUD_SCENARIO")

    @cached_property
    def surprise(self) -> Floats:
        """Surprise (N,) of all payments from `LEARNED_UNTIL` on, NaN before; 0 where nothing can be said."""
        detector = Detector(UNLABELLED, hidden=self.hidden, epochs=self.epochs, seed=self.seed)
        detector.fit(self.events, until=LEARNED_UNTIL, progress=False)
        scores = detector.score(self.events, since=LEARNED_UNTIL)
        found = np.full(self.events.height, np.nan)
        found[scores["row"].to_numpy()] = np.nan_to_num(scores["surprise"].to_numpy(), nan=0.0)
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """What makes numbers of the payments."""
        frame = read_events(self.events, UNLABELLED).frame
        return Encoder(UNLABELLED).fit(frame, frame["time"].to_numpy() < (as_seconds(LEARNED_UNTIL) or 0.0))

    def encoded(self, rows: NDArray[np.int64]) -> tuple[Sequences, NDArray[np.int64]]:
        """Each customer's payments of these rows, one after the other, and the row of each event."""
        frame = read_events(self.events[rows], UNLABELLED).frame
        return self.encoder.transform(frame), rows[frame["row"].to_numpy()]

    @cached_property
    def forecaster(self) -> Forecaster:
        """A forecaster of the next payment, from those of `CUSTOMERS` customers."""
        few = np.unique(self.payments.card)[:CUSTOMERS]
        early = self.payments.time < (as_seconds(LEARNED_UNTIL) or 0.0)
        sequences, _ = self.encoded(np.flatnonzero(early & np.isin(self.payments.card, few)))
        late = sequences.time >= np.quantile(sequences.time, 1 - VALID_SHARE)
        training = Training(epochs=self.epochs or EPOCHS)
        model = Forecaster(hidden=self.hidden, training=training, seed=self.seed)
        model.fit(sequences, self.encoder.numeric, self.encoder.category, train=~late, valid=late)
        return model


class Ours:
    """Our scorers, which share what was learned without labels; the first split that one is asked for pays for it."""

    def __init__(self, seed: int = 0, hidden: int = 64, epochs: int | None = None) -> None:
        self.seed, self.hidden, self.epochs = seed, hidden, epochs
        self._kept: Unlabelled | None = None

    def unsupervised(self, payments: Payments, split: Split) -> Floats:
        """Surprise of the detector."""
        return self._of(payments).surprise[split.test]

    def head(self, payments: Payments, split: Split, what: str = "views") -> Floats:
        """Log-odds of the recurrent head, which reads the `views` of a payment beside the memory of its customer.

        The memory holds the payments from `CONTEXT_DAYS` before the training on; of those it sees no label.
        """
        known, time = self._of(payments), payments.time
        begin, end = time[split.train].min() - CONTEXT_DAYS * DAY, time[split.test].max()
        sequences, row = known.encoded(np.flatnonzero((time >= begin) & (time <= end)))
        train, test = (np.isin(row, rows) for rows in (split.train, split.test))
        late = sequences.time >= np.quantile(sequences.time[train], 1 - VALID_SHARE)
        views = getattr(payments, what)[row]
        model = Classifier(
            hidden=self.hidden,
            epochs=self.epochs,
            pretrained=known.forecaster,
            freeze=True,
            refit=True,
            sampling=min(GENUINE, MOST / payments.fraud[split.train].sum()),
            seed=self.seed,
        )
        columns = (known.encoder.numeric, known.encoder.category)
        fraud = payments.fraud[row]
        model.fit(sequences, *columns, fraud, train=train & ~late, valid=train & late, extra=views)
        scores = np.full(len(time), np.nan)
        scores[row] = model.decision_function(sequences, extra=views, mask=test)
        return scores[split.test]

    def customer(self, payments: Payments, split: Split) -> Floats:
        """Log-odds of a head that knows the customer's own payments alone: no terminal, and no past fraud."""
        return self.head(payments, split, "own")

    def _of(self, payments: Payments) -> Unlabelled:
        if self._kept is None or self._kept.payments is not payments:
            self._kept = Unlabelled(payments, self.seed, self.hidden, self.epochs)
        return self._kept


def unsupervised(seed: int = 0, hidden: int = 64, epochs: int | None = None) -> Scorer:
    """Return the detector alone as a scorer."""
    return Ours(seed, hidden, epochs).unsupervised
