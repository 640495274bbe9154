"""Our detector as a scorer of the Handbook's protocol: what is found without a label, beside what labels find.

It is fitted once, without labels, on all payments before the first fold's week of training: no event of any training or
test week trains it, and they are the same events whose labels the models of the long split know. It isn't fitted again;
what it remembers of each customer goes on to the event, as in production. It reads no label of any time.
"""

from __future__ import annotations

import numpy as np
from _handbook_protocol import TRAINED_FROM, Floats, Payments, Scorer, Split
from handbook import SCHEMA

from anomaly.detector import Detector

UNLABELLED = SCHEMA.model_copy(update={"label": None})
LEARNED_UNTIL = TRAINED_FROM[0].isoformat()


def unsupervised(seed: int = 0, hidden: int = 64, epochs: int | None = None) -> Scorer:
    """Return the detector as a scorer; the first split it is asked for pays for the fit of all."""
    said: list[tuple[Payments, Floats]] = []

    def score(payments: Payments, split: Split) -> Floats:
        if not said or said[0][0] is not payments:
            said[:] = [(payments, surprise(payments, seed, hidden, epochs))]
        return said[0][1][split.test]

    return score


def surprise(payments: Payments, seed: int, hidden: int, epochs: int | None) -> Floats:
    """Surprise (N,) of all payments from `LEARNED_UNTIL` on, NaN before; 0 where nothing can be said."""
    events = payments.events.drop("TX_FRAUD", "TX_FRAUD_SCENARIO")
    detector = Detector(UNLABELLED, hidden=hidden, epochs=epochs, seed=seed)
    detector.fit(events, until=LEARNED_UNTIL, progress=False)
    scores = detector.score(events, since=LEARNED_UNTIL)
    found = np.full(events.height, np.nan)
    found[scores["row"].to_numpy()] = np.nan_to_num(scores["surprise"].to_numpy(), nan=0.0)
    return found
