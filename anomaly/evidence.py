"""From many small surprises to one: over the fields of an event, and over the events of an entity.

Surprises are -ln p and follow a standard exponential distribution while nothing is wrong, so that they add up:
a sum of n of them is Gamma(n, 1) (Fisher 1932).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from anomaly.sequences import Sequences

Float = NDArray[np.float64]
SOFT_THRESHOLD = float(np.log(20.0))  # a field says something once its own p-value is below 1 in 20
FAR = 30.0  # beyond e^-30 no model knows its own tail: such surprises keep their order, but not their size
GENTLE = 0.1  # weight of all the rest, so that events without a strange field keep an order
BLOCK = 8192  # events at a time
LEAST_FOR_A_THREAD = 100_000  # events
NO_PAIRS: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
LOUDEST = 7.0  # nats that one event adds to evidence at most: 1 in 1,100; a run is more than one event


def combine_fields(surprise: NDArray[np.floating[Any]], weight: Float, pairs: NDArray[np.int64] = NO_PAIRS) -> Float:
    """One statistic per event from the surprises of its fields; higher = stranger.

    Soft-thresholded Fisher sum (TFisher, Zhang, Tong, Landers and Wu 2020): what each field exceeds `SOFT_THRESHOLD`
    by, summed, and a little of the rest for order. A fraud shows in few fields, and the noise of the others must not
    drown it. The sum splits exactly into its fields. It is no p-value: calibrate it.

    Parameters
    ----------
    surprise : ndarray, shape (N, K)
        -ln of each field's tail probability; NaN = no statement, adds nothing.
    weight : ndarray, shape (K,)
        What each field counts.
    pairs : ndarray of int, shape (P, 2), optional
        Fields that judge the same number; see `field_nats`.

    Returns
    -------
    ndarray, shape (N,)
        NaN for an event without any statement.
    """
    total = np.empty(len(surprise))
    # Block by block: what stays in the processor's cache is done in a third of the time, and no copy is large.
    for start in range(0, len(surprise), BLOCK):
        block = surprise[start : start + BLOCK]
        said = field_nats(block, pairs) @ weight
        total[start : start + BLOCK] = np.where(np.isnan(block).all(axis=1), np.nan, said)
    return total


def field_nats(surprise: NDArray[np.floating[Any]], pairs: NDArray[np.int64] = NO_PAIRS) -> Float:
    """What each field says before it is weighed, (N, K); NaN says 0.

    Of the two fields of each pair, (P, 2), which judge the same number in two ways, the louder one speaks alone: their
    sum would count one strange number twice. Of two alike it is the first.
    """
    known = surprise.astype(np.float64)
    known[np.isnan(known)] = 0.0
    np.minimum(known, 1e30, out=known)
    far = known > FAR
    if far.any():
        known[far] = FAR + np.log1p(known[far] - FAR)
    for first, second in pairs:
        louder = known[:, first] >= known[:, second]
        known[louder, second] = known[~louder, first] = 0.0
    return np.asarray(np.maximum(known - SOFT_THRESHOLD, 0.0) + GENTLE * known)


def recent_sums(sequences: Sequences, surprise: Float, scales: Sequence[float]) -> tuple[Float, Float]:
    """Summed surprise and number of the events before each one in each window, (N, W) each.

    The event itself is left out: a small payment amid a run of fraud may well be genuine.

    Parameters
    ----------
    sequences : Sequences
        N events.
    surprise : ndarray, shape (N,)
        -ln p of each event, on its own; it counts up to `LOUDEST`, NaN as 0.
    scales : sequence of float
        W lengths of the window ``(t - scale, t)`` in seconds; earlier events of the same time belong to it.
    """
    counted = loud(surprise)
    total = np.concatenate([[0.0], np.cumsum(counted)])
    index = np.arange(len(sequences))
    lags = [sequences.lagged(seconds) for seconds in scales]
    shape = (len(sequences), 0)
    sums = np.stack([total[index] - total[lag] for lag in lags], axis=1) if lags else np.zeros(shape)
    number = np.stack([index - lag for lag in lags], axis=1).astype(np.float64) if lags else np.zeros(shape)
    return sums, number


def loud(surprise: Float) -> Float:
    """A surprise as it counts for evidence: bounded, since one event is no run; NaN counts 0."""
    return np.minimum(np.nan_to_num(surprise, posinf=LOUDEST), LOUDEST)


def window_evidence(number: Float, sums: Float, dependence: Float | float) -> Float:
    """-ln of the tail probability of the sum of `number` normal surprises, >= 0 in nats; 0 where there are none.

    Independent surprises would sum to Gamma(n, 1). They are not quite independent, so the law is widened to the
    variance that was measured: Gamma(n / d, d), of the same mean n and d times the variance (Brown 1975). At most d is
    n: all events say the same.
    """
    known = number > 0
    count = number[known]
    widened = np.minimum(np.broadcast_to(dependence, number.shape)[known], count)
    shape, scaled = count / widened, np.maximum(sums[known], 0.0) / widened
    tail = _upper_gamma(shape, scaled)
    nats = -np.log(np.maximum(tail, 1e-300))
    # Far out the leading term of the incomplete gamma function stands in for what underflows.
    far = ~(tail > 1e-290)
    if far.any():
        shape, scaled = shape[far], scaled[far]
        nats[far] = scaled - (shape - 1) * np.log(np.maximum(scaled, 1e-9)) + special.gammaln(shape)
    evidence = np.zeros(number.shape)
    evidence[known] = nats
    return evidence


def _upper_gamma(shape: Float, x: Float) -> Float:
    """Regularised upper incomplete gamma function, (n,); long arrays by several threads, since SciPy lets them run."""
    threads = min(len(shape) // LEAST_FOR_A_THREAD, os.cpu_count() or 1)
    if threads < 2:
        return np.asarray(special.gammaincc(shape, x))
    with ThreadPoolExecutor(threads) as pool:
        parts = (np.array_split(one, threads) for one in (shape, x))
        return np.concatenate(list(pool.map(special.gammaincc, *parts)))


def surroundings(
    sequences: Sequences,
    surprise: Float,
    scales: Sequence[float],
    dependence: Float | float = 1.0,
    *,
    itself: bool = True,
) -> Float:
    """Nats that speak against the time around each event, before and after it, at each scale, (N, W).

    For histories only: what trains, and what calibrates, may be judged by what came later. No score may.

    Parameters
    ----------
    sequences : Sequences
        N events.
    surprise : ndarray, shape (N,)
        -ln p of each event, on its own; it counts up to `LOUDEST`. Events of which nothing is said (NaN) are left out.
    scales : sequence of float
        W windows ``(t - scale, t + scale)``, in seconds.
    dependence : float or ndarray, shape (W,)
        See `measure_dependence`.
    itself : bool
        Does the event count too, or only its neighbours.
    """
    counted, known = loud(surprise), np.isfinite(surprise).astype(np.float64)
    total, number = (np.concatenate([[0.0], np.cumsum(values)]) for values in (counted, known))
    sums, numbers = np.zeros((2, len(sequences), len(scales)))
    for at, seconds in enumerate(scales):
        first, last = sequences.lagged(seconds), sequences.leading(seconds) + 1
        sums[:, at], numbers[:, at] = total[last] - total[first], number[last] - number[first]
    if not itself:
        sums, numbers = sums - counted[:, None], numbers - known[:, None]
    return window_evidence(numbers, sums, dependence)


def measure_dependence(sums: Float, number: Float) -> Float:
    """How many times the variance of independent surprises the sums over each window have, (W,), at least 1.

    E (S - n)^2 / n over the events that have a past, where n is the number of summed surprises of mean 1.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        found = ((sums - number) ** 2).sum(axis=0) / number.sum(axis=0)
    return np.asarray(np.maximum(np.nan_to_num(found, nan=1.0, posinf=1.0), 1.0))


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
