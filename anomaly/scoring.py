"""Scoring: the events of a table, judged piece by piece.

An event is judged by its entity's history and by nobody else's. So a table is cut into pieces of whole entities, and
each goes all the way from its columns to its scores on one thread of the processor. What is made on the way is held
for as many pieces as there are threads, and not for the whole table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.features import Encoder, entity_offsets
from anomaly.models.abreast import pays, side_by_side
from anomaly.models.base import SequenceModel
from anomaly.schema import Schema
from anomaly.score_table import score_columns, score_table, statuses
from anomaly.scorer import Errors, Scorer
from anomaly.sequences import PIECE, Sequences, whole_sequences

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the events of a table are scored.

    Attributes
    ----------
    schema, encoder, scorer :
        What was learned.
    model : SequenceModel
        Any of the models: on its device the work is done.
    errors : callable
        Errors of sequences by model, of the events of a mask, if there is one.
    known : ndarray of str
        The entities of the history.
    """

    schema: Schema
    encoder: Encoder
    scorer: Scorer
    model: SequenceModel
    errors: Callable[[Sequences, Mask | None], Errors]
    known: NDArray[np.object_]

    def table(self, frame: pl.DataFrame, start: float | None) -> pl.DataFrame:
        """Score the canonical events from `start` on, the earlier ones being history; see `Detector.score`.

        Some of them must be.
        """
        offsets = entity_offsets(frame["entity"])
        status = statuses(frame, offsets, self.known)
        time, row = frame["time"].to_numpy(), frame["row"].to_numpy()
        chosen = np.ones(len(frame), dtype=bool) if start is None else time >= start
        order = np.flatnonzero(chosen)
        order = order[np.argsort(row[order])]  # of the score table's rows in the frame
        place = np.empty(len(frame), dtype=np.int64)
        place[order] = np.arange(len(order))
        said: dict[str, Float] = {}

        def score(first: int, last: int) -> None:
            mask = chosen[first:last]
            at = place[first:last][mask]
            for name, values in self._piece(frame[first:last], mask, start).items():
                said.setdefault(name, np.empty(len(order)))[at] = values

        borders = [border for border in whole_sequences(offsets, PIECE) if chosen[slice(*border)].any()]
        side_by_side([partial(score, *border) for border in borders], parallel=pays(self.model.device_, len(frame)))
        return score_table(frame[order], self.schema, status[order], said)

    def _piece(self, frame: pl.DataFrame, mask: Mask, start: float | None) -> dict[str, Float]:
        """Columns of the score table for the events of whole entities in `mask`, in their order."""
        sequences = self.encoder.transform(frame)
        longest = max(self.scorer.combination.scales, default=0.0)
        errors = self.errors(sequences, None if start is None else sequences.time > start - longest)
        judged = self.scorer.judge(errors, sequences, mask)
        if not mask.all():
            errors = {name: values[mask] for name, values in errors.items()}
        return score_columns(judged, self.scorer.field_surprise(errors))
