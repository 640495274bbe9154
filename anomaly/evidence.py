"""From many small surprises to one: over the fields of an event, and over the events of an entity.

Surprises are -ln p and follow a standard exponential distribution while nothing is wrong, so that they add up:
a sum of n of them is Gamma(n, 1) (Fisher 1932).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from anomaly.sequences import Sequences

Float = NDArray[np.float64]
SOFT_THRESHOLD = float(np.log(20.0))  # a field says something once its own p-value is below 1 in 20
FAR = 30.0  # beyond e^-30 no model knows its own tail: such surprises keep their order, but not their size
GENTLE = 0.1  # weight of all the rest, so that events without a strange field keep an order


def combine_fields(surprise: NDArray[np.floating[Any]], weight: Float) -> Float:
    """One statistic per event from the surprises of its fields; higher = stranger.

    Soft-thresholded Fisher sum (TFisher, Zhang, Tong, Landers and Wu 2020): what each field exceeds `SOFT_THRESHOLD`
    by, summed. A fraud shows in few fields, and the noise of the others must not drown it. The sum splits exactly into
    its fields. It is no p-value: calibrate it.

    Parameters
    ----------
    surprise : ndarray, shape (N, K)
        -ln of each field's tail probability; NaN = no statement, adds nothing.
    weight : ndarray, shape (K,)
        What each field counts.

    Returns
    -------
    ndarray, shape (N,)
        NaN for an event without any statement.
    """
    known = np.nan_to_num(surprise.astype(np.float64), posinf=1e30)
    known = np.where(known > FAR, FAR + np.log1p(np.maximum(known - FAR, 0.0)), known)
    total = (np.maximum(known - SOFT_THRESHOLD, 0.0) + GENTLE * known) @ weight
    return np.where(np.isnan(surprise).all(axis=1), np.nan, total)


def accumulate(sequences: Sequences, surprise: Float, seconds: float) -> Float:
    """-ln of the tail probability of each event's summed surprise over the last `seconds`, shape (N,).

    Sum of the n surprises in the window ``(t - seconds, t]`` of the entity, against Gamma(n, 1); NaN counts as 1, its
    expectation. Higher = stranger.
    """
    lag = sequences.lagged(seconds)
    total = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(surprise), surprise, 1.0))])
    index = np.arange(len(sequences))
    number, sums = index - lag + 1.0, total[1:] - total[lag]
    tail = special.gammaincc(number, sums)
    # Far out the leading term of the incomplete gamma function stands in for what underflows.
    far = sums - (number - 1) * np.log(np.maximum(sums, 1e-9)) + special.gammaln(number)
    return np.asarray(np.where(tail > 1e-290, -np.log(np.maximum(tail, 1e-300)), far))


def rank_surprise(values: Float, most: int = 20_000) -> Float:
    """-ln of the share of `values` (N,) that are at least as high; NaN stays NaN.

    At most `most` evenly spaced values are ranked against: exact enough for weights, cheap in a training loop.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.full(len(values), np.nan)
    ranked = np.sort(known[:: max(1, len(known) // most)])
    above = len(ranked) - np.searchsorted(ranked, values, side="left")
    return np.where(np.isfinite(values), -np.log((above + 1.0) / (len(ranked) + 1.0)), np.nan)
