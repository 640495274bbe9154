"""Our models as scorers of the Handbook's protocol: what is found without a label, and what the recurrent head adds.

The detector is fitted once, without labels, on all payments before the first fold's week of training: no event of any
training or test week trains it, and they are the same events whose labels the models of the long split know. It isn't
fitted again; what it remembers of each customer goes on to the event, as in production. It reads no label of any time.

The head starts from that memory, leaves it as it is, and learns from the labels of each split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from _handbook_protocol import TRAINED_FROM, Floats, Payments, Scorer, Split
from handbook import SCHEMA
from numpy.typing import NDArray

from anomaly.detector import Detector
from anomaly.ingest import read_events
from anomaly.models.classifier import Classifier
from anomaly.sequences import Sequences

UNLABELLED = SCHEMA.model_copy(update={"label": None})
LEARNED_UNTIL = TRAINED_FROM[0].isoformat()
VALID_SHARE = 0.2  # of the training payments, the last ones: they say when the head has learned enough
GENUINE = 30.0  # genuine payments in each pass of the head, for each fraud


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The payments without their labels, and the detector that learned from them."""

    payments: Payments
    seed: int
    hidden: int
    epochs: int | None

    @cached_property
    def detector(self) -> Detector:
        """Fitted on all before `LEARNED_UNTIL`."""
        detector = Detector(UNLABELLED, hidden=self.hidden, epochs=self.epochs, seed=self.seed)
        return detector.fit(self.payments.events.drop("TX_FRAUD", "TX_FRAUD_SCENARIO"), until=LEARNED_UNTIL)

    @cached_property
    def surprise(self) -> Floats:
        """Surprise (N,) of all payments from `LEARNED_UNTIL` on, NaN before; 0 where nothing can be said."""
        events = self.payments.events.drop("TX_FRAUD", "TX_FRAUD_SCENARIO")
        scores = self.detector.score(events, since=LEARNED_UNTIL)
        found = np.full(events.height, np.nan)
        found[scores["row"].to_numpy()] = np.nan_to_num(scores["surprise"].to_numpy(), nan=0.0)
        return found

    @cached_property
    def encoded(self) -> tuple[Sequences, NDArray[np.int64]]:
        """Each customer's payments in a row, and the payment of each event (N,)."""
        frame = read_events(self.payments.events.drop("TX_FRAUD", "TX_FRAUD_SCENARIO"), UNLABELLED).frame
        return self.detector.encoder_.transform(frame), frame["row"].to_numpy()


class Ours:
    """The two scorers, which share one detector; the first split that one is asked for pays for its fit."""

    def __init__(self, seed: int = 0, hidden: int = 64, epochs: int | None = None) -> None:
        self.seed, self.hidden, self.epochs = seed, hidden, epochs
        self._kept: Unlabelled | None = None

    def unsupervised(self, payments: Payments, split: Split) -> Floats:
        """Surprise of the detector."""
        return self._of(payments).surprise[split.test]

    def head(self, payments: Payments, split: Split) -> Floats:
        """Log-odds of the recurrent head, which reads the `views` of a payment beside the memory of its customer."""
        known = self._of(payments)
        sequences, row = known.encoded
        train, test = (np.isin(row, rows) for rows in (split.train, split.test))
        late = sequences.time >= np.quantile(sequences.time[train], 1 - VALID_SHARE)
        views = payments.views[row]
        model = Classifier(
            hidden=self.hidden,
            epochs=self.epochs,
            pretrained=known.detector.models_[-1],
            freeze=True,
            refit=True,
            sampling=GENUINE,
            seed=self.seed,
        )
        encoder, masks = known.detector.encoder_, {"train": train & ~late, "valid": train & late}
        model.fit(sequences, encoder.numeric, encoder.category, payments.fraud[row], extra=views, **masks)
        scores = np.full(len(row), np.nan)
        scores[row] = model.decision_function(sequences, extra=views, mask=test)
        return scores[split.test]

    def _of(self, payments: Payments) -> Unlabelled:
        if self._kept is None or self._kept.payments is not payments:
            self._kept = Unlabelled(payments, self.seed, self.hidden, self.epochs)
        return self._kept


def unsupervised(seed: int = 0, hidden: int = 64, epochs: int | None = None) -> Scorer:
    """Return the detector alone as a scorer."""
    return Ours(seed, hidden, epochs).unsupervised
