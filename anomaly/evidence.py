"""From many small surprises to one: over the fields of an event, and over the events of an entity.

Surprises are -ln p and follow a standard exponential distribution while nothing is wrong, so that they add up:
a sum of n of them is Gamma(n, 1) (Fisher 1932).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from anomaly.loops import add_fields, bound_runs, look_up_curves, rank_all, sum_recent
from anomaly.sequences import Sequences, by_pieces

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Mask = NDArray[np.bool_]
SOFT_THRESHOLD = float(np.log(7.0))  # a field says something once its own p-value is below 1 in 7
UNUSUAL = float(np.log(20.0))  # nats from which an event is called unusual by itself
FAR = 30.0  # beyond e^-30 no model knows its own tail: such surprises keep their order, but not their size
GENTLE = 0.1  # weight of all the rest, so that events without a strange field keep an order
NO_PAIRS: Int = np.zeros((0, 2), dtype=np.int64)
PIECE = 32_768  # events at a time, where each takes long and several threads share the work
LOUDEST = 7.0  # nats that one event adds to evidence at most: 1 in 1,100; a run is more than one event
NODES = 64  # of a bound on evidence, for each number of events
TABLED = 128  # events in a window whose evidence is looked up: more are rare
MANY = 60_000  # windows, from which on it pays to make the table
DENSE = 40.0  # cells of such a curve for each root of its shape; more than are needed for few events
FEWEST_CELLS = 64
NOT_SMOOTH = 0.2  # root of the mean
STRAIGHT = 600.0  # nats up to which evidence is convex: further out another formula goes on


def combine_fields(surprise: NDArray[np.floating[Any]], weight: Float, pairs: Int = NO_PAIRS) -> Float:
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
    add_fields(surprise, weight, pairs, SOFT_THRESHOLD, GENTLE, FAR, total)
    return total


def field_nats(surprise: NDArray[np.floating[Any]], pairs: Int = NO_PAIRS) -> Float:
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
    total = np.concatenate([[0.0], np.cumsum(loud(surprise))])
    back = np.array(sequences.reaches("lagged", scales), np.uint16).reshape(len(scales), len(sequences))
    sums, number = np.empty((2, len(sequences), len(scales)))
    sum_recent(total, back, sums, number)
    return sums, number


def loud(surprise: Float) -> Float:
    """A surprise as it counts for evidence: bounded, since one event is no run; NaN counts 0."""
    return np.where(np.isnan(surprise), 0.0, np.minimum(surprise, LOUDEST))


def window_evidence(number: Float, sums: Float, dependence: Float | float) -> Float:
    """-ln of the tail probability of the sum of `number` normal surprises, >= 0 in nats; 0 where there are none.

    Independent surprises would sum to Gamma(n, 1). They are not quite independent, so the law is widened to the
    variance that was measured: Gamma(n / d, d), of the same mean n and d times the variance (Brown 1975). At most d is
    n: all events say the same.

    Where many are asked for, windows of few events are looked up in a table of such curves, right to 1e-9 nats; the
    others are computed.

    Parameters
    ----------
    number, sums : ndarray, shape (N, W)
        Of the surprises in each window.
    dependence : float or ndarray, shape (W,)
        See `measure_dependence`.
    """
    if number.size < MANY:
        return _gamma_nats(number, sums, dependence)
    curves = _Curves.of(tuple(np.broadcast_to(dependence, number.shape[1:]).tolist()))
    evidence = np.empty(number.shape)
    if look_up_curves(number, sums, curves.first, curves.cells, curves.least, LOUDEST, curves.pieces, evidence):
        rest = np.nonzero(np.isnan(evidence))
        few, total, wide = number[rest], sums[rest], np.broadcast_to(dependence, number.shape)[rest]

        def judge(first: int, last: int) -> None:
            piece = slice(first, last)
            evidence[rest[0][piece], rest[1][piece]] = _gamma_nats(few[piece], total[piece], wide[piece])

        by_pieces(judge, _pieces(len(few)))
    return evidence


@dataclass(frozen=True)
class _Curves:
    """Evidence of 1 to `TABLED` surprises in W windows, by the root v of their mean; see `window_evidence`.

    Between nodes, `DENSE` to the width of the law at least, a curve is the polynomial of fifth degree that has its
    value and two derivatives at both. With shape a the first one by x = a v^2 is the hazard h = x^(a-1) e^-x /
    (Gamma(a) Q), the second h (h + (a-1) / x - 1).

    first, cells : (W, TABLED + 1), where the curve of so many surprises begins in `pieces`, and how many it has;
    least : (W, TABLED + 1), the v below which it is not smooth enough; pieces : (all, 6), coefficients, rising.
    """

    first: Int
    cells: Int
    least: Float
    pieces: Float

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, dependence: tuple[float, ...]) -> _Curves:
        """Of windows of such a dependence (W,)."""
        number = np.arange(1.0, TABLED + 1)
        shape = number / np.minimum(np.array(dependence).reshape(-1, 1), number)
        cells = np.zeros((len(dependence), TABLED + 1), dtype=np.int64)
        cells[:, 1:] = np.maximum(np.ceil(DENSE * np.sqrt(shape)), FEWEST_CELLS)
        first = np.cumsum(cells).reshape(cells.shape) - cells
        least = np.where(shape > 1.0, NOT_SMOOTH, 0.0)  # of shape 1 it is a parabola
        return cls(first, cells, np.pad(least, ((0, 0), (1, 0))), _polynomials(shape.ravel(), cells[:, 1:].ravel()))


def _polynomials(shapes: Float, cells: Int) -> Float:
    """Polynomials of `_Curves` of these shapes, with so many cells, one curve after the other, (cells of all, 6)."""
    nodes = cells + 1
    last = np.cumsum(nodes) - 1
    shape, step = np.repeat(shapes, nodes), np.repeat(np.sqrt(LOUDEST) / cells, nodes)
    v = (np.arange(nodes.sum()) - np.repeat(last - cells, nodes)) * step
    x = np.maximum(shape * v * v, 1e-300)
    value = _gamma_nats(shape, x, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        front = np.repeat(special.gammaln(shapes), nodes)
        hazard = np.exp((shape - 1.0) * np.log(x) - x - front + value)
        by_v = 2.0 * shape * v
        slope = hazard * by_v * step
        bend = (hazard * (hazard + (shape - 1.0) / x - 1.0) * by_v**2 + hazard * 2.0 * shape) * step**2
        rise = np.diff(value) - slope[:-1] - bend[:-1] / 2
        turn, twist = np.diff(slope) - bend[:-1], np.diff(bend)
        high = 10 * rise - 4 * turn + twist / 2, 7 * turn - 15 * rise - twist, 6 * rise - 3 * turn + twist / 2
    return np.delete(np.stack([value[:-1], slope[:-1], bend[:-1] / 2, *high], axis=1), last[:-1], axis=0)


def _gamma_nats(number: Float, sums: Float, dependence: Float | float) -> Float:
    """Return `window_evidence` of any numbers of one shape, computed."""
    known = number > 0
    count = number[known]
    widened = np.minimum(np.broadcast_to(dependence, number.shape)[known], count)
    shape, scaled = count / widened, np.maximum(sums[known], 0.0) / widened
    tail = special.gammaincc(shape, scaled)
    nats = -np.log(np.maximum(tail, 1e-300))
    # Far out the leading term of the incomplete gamma function stands in for what underflows.
    far = ~(tail > 1e-290)
    if far.any():
        shape, scaled = shape[far], scaled[far]
        nats[far] = scaled - (shape - 1) * np.log(np.maximum(scaled, 1e-9)) + special.gammaln(shape)
    evidence = np.zeros(number.shape)
    evidence[known] = nats
    return evidence


def _pieces(events: int) -> list[tuple[int, int]]:
    return [(start, min(start + PIECE, events)) for start in range(0, events, PIECE)]


def surroundings(
    sequences: Sequences,
    surprise: Float,
    scales: Sequence[float],
    dependence: Float | float = 1.0,
    *,
    itself: bool = True,
    among: Mask | None = None,
) -> Float:
    """Nats that speak against the time around each event, before and after it, at each scale, (n, W).

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
    among : ndarray of bool, shape (N,), optional
        The n events to judge; all by default.
    """
    around = _Around.of(sequences, surprise, scales, itself)
    index = np.arange(len(sequences)) if among is None else np.flatnonzero(among)
    return around.evidence(index, dependence)


def amid_strange_runs(
    sequences: Sequences, surprise: Float, scales: Sequence[float], among: Mask, share: float
) -> Mask:
    """Which of the events `among` stand amid the strangest runs, (N,) bool: `share` of them.

    Those where the sum of `surroundings` over the scales exceeds its quantile. The gamma function is asked about those
    only that may be among them: a bound from a table tells the others apart, and says nothing more of them.
    """
    index = np.flatnonzero(among)
    found = np.zeros(len(among), dtype=bool)
    if not len(scales) or not len(index):
        return found
    around = _Around.of(sequences, surprise, scales, itself=True)
    bound = around.bound(index)
    top = min(len(index), len(index) - int((len(index) - 1) * (1 - share)) + 1)
    worst = np.full(len(index), -1.0)
    first = np.argpartition(bound, len(index) - top)[len(index) - top :]
    worst[first] = around.evidence(index[first], 1.0).sum(axis=1)
    rest = np.flatnonzero((bound >= worst[first].min()) & (worst < 0))
    worst[rest] = around.evidence(index[rest], 1.0).sum(axis=1)
    found[index[worst > np.quantile(worst, 1 - share)]] = True
    return found


@dataclass(frozen=True)
class _Around:
    """Sums over the time around each of N events.

    total, number : (N + 1,) running sums of what counts, and of how many count; own : (2, N), the event's own part that
    is to be left out; back, on : (W, N), how many events each window reaches back and on.
    """

    total: Float
    number: Float
    own: Float | None
    back: NDArray[np.uint16]
    on: NDArray[np.uint16]

    @classmethod
    def of(cls, sequences: Sequences, surprise: Float, scales: Sequence[float], itself: bool) -> _Around:
        """See `surroundings`."""
        own = np.stack([loud(surprise), np.isfinite(surprise)])
        total, number = (np.concatenate([[0.0], np.cumsum(values)]) for values in own)
        back, on = (
            np.array(sequences.reaches(side, scales), np.uint16).reshape(len(scales), len(surprise))
            for side in ("lagged", "leading")
        )
        return cls(total, number, None if itself else own, back, on)

    def evidence(self, index: Int, dependence: Float | float) -> Float:
        """Nats of the events `index` (n,), (n, W)."""
        found = np.empty((len(index), len(self.back)))

        def judge(first: int, last: int) -> None:
            found[first:last] = window_evidence(*self._sums(index[first:last]), dependence)

        by_pieces(judge, _pieces(len(index)))
        return found

    def bound(self, index: Int) -> Float:
        """What the evidence of the events `index` (n,) without dependence adds up to at most, (n,).

        -ln of a Gamma law's tail is convex, so that between two nodes it lies below the line that joins them.
        """
        number = np.arange(float(self.back.max()) + float(self.on.max()) + 2.0)[:, None].repeat(NODES + 1, axis=1)
        nodes = _gamma_nats(number, number * np.linspace(0.0, LOUDEST, NODES + 1), 1.0)
        found = np.empty(len(index))

        def judge(first: int, last: int) -> None:
            given = self.total, self.number, self.back, self.on, nodes, NODES / LOUDEST, STRAIGHT
            bound_runs(index[first:last], *given, found[first:last])

        by_pieces(judge, _pieces(len(index)))
        return found

    def _sums(self, index: Int) -> tuple[Float, Float]:
        """How many events count in each window, and their sum, (n, W) each."""
        first, last = index[:, None] - self.back[:, index].T, index[:, None] + self.on[:, index].T + 1
        numbers, sums = self.number[last] - self.number[first], self.total[last] - self.total[first]
        if self.own is not None:
            sums, numbers = sums - self.own[0, index, None], numbers - self.own[1, index, None]
        return numbers, sums


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
    below = np.empty(len(values), dtype=np.int64)
    rank_all(ranked, values, below)
    nats = -np.log((np.arange(len(ranked), -1.0, -1.0) + 1.0) / (len(ranked) + 1.0))
    return np.where(np.isfinite(values), nats[below], np.nan)
