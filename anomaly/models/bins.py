"""Bins: numbers as piecewise-linear codes, so that a network sees sharp edges in them.

A perceptron learns smooth functions of its inputs easily and an edge, such as "above 220", hardly at all. Cut into bins
that follow the data, a number becomes one input for each bin: 0 below it, 1 above it, and the share of it in between
(Gorishniy, Rubachev and Babenko 2022, "On embeddings for numerical features in tabular deep learning").

Letters used in shapes: n events, D columns, B bins.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BINS = 32  # of each column
NARROWEST = 1e-3  # least width of a bin, in the columns' own units, which are about 1
ENOUGH = 50_000  # events of a class from which edges are learned


class Bins(nn.Module):
    """Codes of D columns. Before `learn` all of them are 0."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((columns, BINS), math.inf))
        self.register_buffer("width", torch.ones(columns, BINS))
        self.size: int = columns * BINS

    def forward(self, numbers: Tensor) -> Tensor:
        """(n, D), NaN = missing -> (n, D * B) in [0, 1]; 0 where missing."""
        low, width = self.get_buffer("low"), self.get_buffer("width")
        code = ((numbers[:, :, None] - low) / width).clamp(0.0, 1.0)
        return torch.nan_to_num(code).flatten(1)

    @torch.no_grad()
    def learn(self, numbers: NDArray[np.float32], kind: NDArray[np.int64]) -> None:
        """Lay the edges at quantiles of the numbers (n, D), all classes `kind` (n,) weighing alike.

        So the bins are fine where the rare class lies, and where the common one does. A column with one value has none.
        """
        chosen, weight = _balanced(kind)
        levels = np.linspace(0.0, 1.0, BINS + 1)
        low, width = self.get_buffer("low"), self.get_buffer("width")
        for number, column in enumerate(numbers[chosen].T):
            known = np.isfinite(column)
            edges = _quantiles(column[known].astype(np.float64), weight[known], levels)
            edges = edges[np.diff(edges, prepend=-math.inf) > NARROWEST]
            low[number], width[number] = math.inf, 1.0  # bins that are not needed are never reached
            if len(edges) > 1:
                low[number, : len(edges) - 1] = torch.from_numpy(edges[:-1])
                width[number, : len(edges) - 1] = torch.from_numpy(np.diff(edges))


def _balanced(kind: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Events to look at, evenly drawn from each class, and their weights."""
    parts, weights = [], []
    for one in np.unique(kind):
        those = np.flatnonzero(kind == one)
        those = those[:: -(-len(those) // ENOUGH)]
        parts.append(those)
        weights.append(np.full(len(those), 1.0 / len(those)))
    return np.concatenate(parts), np.concatenate(weights)


def _quantiles(
    values: NDArray[np.float64], weight: NDArray[np.float64], levels: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Quantiles of weighted values (n,), rising; none of none."""
    if not len(values):
        return np.zeros(0)
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    at = np.searchsorted(reached, levels * reached[-1] * (1 - 1e-12))
    return np.asarray(values[order][np.minimum(at, len(values) - 1)])
