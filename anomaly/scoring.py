"""Scoring: the events of a table, judged piece by piece.

An event is judged by its entity's history and by nobody else's. So a table is cut into pieces of whole entities, and
each goes all the way from its columns to its scores on one thread of the processor. What is made on the way is held
for as many pieces as there are threads, and not for the whole table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.features import Encoder, entity_offsets
from anomaly.models.abreast import pays, side_by_side
from anomaly.models.base import SequenceModel
from anomaly.schema import Schema
from anomaly.score_table import score_columns, score_table, statuses
from anomaly.scorer import Errors, Scorer
from anomaly.sequences import PIECE, Sequences, by_pieces, whole_sequences

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
LAST, LAST_PARTS = 2, 4  # so many pieces at the end of a table are cut into so many parts each


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
        chosen = np.ones(len(frame), dtype=bool) if start is None else frame["time"].to_numpy() >= start
        borders = [border for border in _pieces(offsets) if chosen[slice(*border)].any()]
        place = np.cumsum([0, *(np.count_nonzero(chosen[slice(*border)]) for border in borders)]).tolist()
        said: dict[str, Float] = {}

        def score(first: int, last: int, at: slice) -> None:
            for name, values in self._piece(frame[first:last], chosen[first:last], start).items():
                said.setdefault(name, np.empty(place[-1]))[at] = values

        works = [partial(score, *border, slice(*at)) for border, at in zip(borders, pairwise(place), strict=True)]
        side_by_side(works, parallel=pays(self.model.device_, len(frame)))
        order = np.flatnonzero(chosen)
        by_row, names = _rising(frame["row"].to_numpy()[order]), list(said)

        def sort(first: int, last: int) -> None:
            for name in names[first:last]:
                said[name] = said[name][by_row]

        by_pieces(sort, [(at, at + 1) for at in range(len(names))])
        order = order[by_row]
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


def _rising(row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the rows (n,), all different, are in rising order; without sorting, if they are most of all rows."""
    first, last = int(row.min()), int(row.max())
    if last - first > 2 * len(row):
        return np.argsort(row)
    where = np.full(last - first + 1, -1)
    where[row - first] = np.arange(len(row))
    return np.asarray(where[where >= 0])


def _pieces(offsets: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pieces of whole entities, at the end smaller ones, so that no thread waits long for the last one."""
    pieces = whole_sequences(offsets, PIECE)
    if len(pieces) <= LAST:
        return pieces
    first = pieces[-LAST][0]
    late = whole_sequences(offsets[np.searchsorted(offsets, first) :] - first, max(PIECE // LAST_PARTS, 1))
    return [*pieces[:-LAST], *((first + begin, first + end) for begin, end in late)]
