"""Population: how rare is a number among those of everybody, whoever it belongs to.

The sequence models ask what is usual for the entity: to a customer who pays much, much is usual. A desk also asks what
is usual at all. So each number that the schema names gets a second statement, its tail probability among the events
that trained, without those that the robust weights dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import TailCalibrator
from anomaly.errors import NotFittedError
from anomaly.features import POPULATION, Column

Float = NDArray[np.float64]
LOG_2 = float(np.log(2.0))


class Population:
    """Tail probabilities of the named numbers among all entities.

    Parameters
    ----------
    numeric : sequence of Column
        The columns of ``Sequences.numeric``; those that the schema names (weight 1, see `anomaly.features`) are fields.
    """

    name = "population"

    def __init__(self, numeric: Sequence[Column]) -> None:
        self.index = [at for at, column in enumerate(numeric) if column.kind == "number" and column.scored]
        self.fields = tuple(replace(numeric[at], name=POPULATION + numeric[at].name) for at in self.index)
        self.signs = tuple(_signs(column) for column in self.fields)
        self.tails_: tuple[TailCalibrator | None, ...] = ()

    def fit(self, numeric: NDArray[np.float32]) -> Population:
        """Learn from the encoded numbers of the events that count, (n, F); returns self."""
        made: list[TailCalibrator | None] = []
        for at, column in zip(self.index, self.fields, strict=True):
            values = numeric[:, at].astype(np.float64)
            for sign in _signs(column):
                made.append(TailCalibrator().fit(sign * values) if np.isfinite(values).any() else None)
        self.tails_ = tuple(made)
        return self

    def errors(self, numeric: NDArray[np.float32]) -> NDArray[np.float32]:
        """-ln of the tail probability of each field, (n, P) >= 0; higher = stranger, NaN = no statement."""
        if self.index and not self.tails_:
            raise NotFittedError("Population: not fitted; call fit with the numbers of the history first")
        found = np.full((len(numeric), len(self.index)), np.nan, dtype=np.float32)
        tails = iter(self.tails_)
        for to, (at, column) in enumerate(zip(self.index, self.fields, strict=True)):
            values = numeric[:, at].astype(np.float64)
            sides = [
                tail.log_p(sign * values) for sign, tail in zip(_signs(column), tails, strict=False) if tail is not None
            ]
            if sides:
                # Both tails: twice the smaller of the two probabilities.
                both = len(sides) == 2
                found[:, to] = np.maximum(-(np.minimum(*sides) + LOG_2 if both else sides[0]), 0.0)
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learned, by name."""
        return {
            f"{at}.{key}": value
            for at, tail in enumerate(self.tails_)
            if tail is not None
            for key, value in tail.arrays().items()
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Population:
        """Take over what `arrays` gave; returns self."""
        made: list[TailCalibrator | None] = []
        for at in range(sum(len(_signs(column)) for column in self.fields)):
            mine = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.split(".", 1)[0] == str(at)}
            made.append(TailCalibrator.from_arrays(mine) if mine else None)
        self.tails_ = tuple(made)
        return self


def _signs(column: Column) -> tuple[int, ...]:
    """1 = large values are strange, -1 = small ones."""
    return {"upper": (1,), "lower": (-1,)}.get(column.tail, (1, -1))
