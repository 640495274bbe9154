"""Errors of held-out normal events -> tail probabilities (p-values), down into the far tail.

Two parts, joined at the threshold ``u``, the held-out 99th percentile:

* up to ``u`` the empirical survival function of the held-out values, ``(1 + #{held-out >= x}) / (n + 1)``;
* beyond ``u`` a generalised Pareto tail fitted to the exceedances. The theorem of Balkema & de Haan (1974) and Pickands
  (1975) says that excesses over a high threshold tend to that family, whatever the parent law; Siffer et al. (2017,
  "Anomaly detection in streams with extreme value theory") use it for thresholds. Here it gives every far event its own
  p-value, where ranks alone would tie at ``1 / (n + 1)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ArtifactError, NotFittedError, ParameterError
from anomaly.loops import multiply_tail, tabulate_tail

Floats = NDArray[np.float64]

TAIL_SHARE = 0.01
"""Share of the held-out values that lies beyond the threshold ``u``."""
FLOOR = 1e-300
"""Smallest p-value handed out; ``log_p`` goes on below it."""
SHAPE_LIMITS = (-0.5, 1.0)
"""Shapes below -0.5 have no regular likelihood; above 1 the tail has no mean: both are signs of a bad fit."""
NEAR = 1.0
"""Held-out values closer than this share of the interquartile range over n are near ties, and one of them is kept: p
falls by a rank between two neighbours, and between near ties rounding, not the event, would choose the rank."""
ATOM = 0.01
"""A value with at least this share of the held-out ones is an atom: p steps there, and is continuous elsewhere."""
_FEWEST_EXCEEDANCES = 50
_FEWEST_DISTINCT = 20
_FEWEST_EQUAL = 5  # equal values of an atom: in a small sample one value alone has the share of an atom
_FEWEST_SMOOTH = 10  # a smaller sample steps at each value
_BEND_EXCEEDANCES = 10
_BULK_POINTS = 10_000
_BAND_POINTS = 10_000
_BAND_START = 0.98
_LARGEST = 1e150
_CELLS_EACH = 8  # of a kept value; look-ups begin at the first value of a cell
_MOST_CELLS = 65_536


class TailCalibrator:
    """Maps a score (higher = stranger) to the probability that a normal event is at least as strange.

    Fit it on values of events that trained nothing. NaN means "no statement": dropped by `fit`, handed through by the
    rest. Everything is float64 and vectorised.

    Attributes
    ----------
    n_ : int
        Number of held-out values fitted on.
    values_ : ndarray (k,)
        Kept held-out values, strictly ascending; the last one is the threshold ``u``. All distinct values up to ``u``
        but near ties (see `NEAR`) if they are at most 20,000. Otherwise 10,000 evenly spaced ranks up to the 98th
        percentile, and 10,000 from there to ``u``. Between kept values p is interpolated; thinning costs an error below
        1e-4 (below 2e-6 past the 98th percentile). An atom of more than 1e-4 of the mass is always kept, with its exact
        p. Values beyond ``u`` are not kept: the tail speaks for them.
    at_, above_ : ndarray (k,)
        p at each kept value, and just above it: (1 + #{held-out >= v}) / (n + 1), (1 + #{held-out > v}) / (n + 1).
    shape_, scale_ : float
        Of the generalised Pareto tail; a fit gives no shape 0, but peaks over a threshold may.

    Notes
    -----
    Beyond ``u``, with excess z = x - u and zeta = (1 + #{held-out >= u}) / (n + 1) (> u for an atom)::

        p(x) = zeta * (1 + shape * z / scale) ** (-1 / shape)        shape != 0
        p(x) = zeta * exp(-z / scale)                                shape == 0

    A shape estimated a little too small makes far events look a thousand times too rare. So the tail errs on the heavy
    side: a negative shape is taken only if it beats the exponential by Schwarz's criterion (twice the gain in
    log-likelihood above the log of the number of exceedances); else the tail is exponential.

    The scale of an exponential tail is known from its k excesses of mean m only, and where it was found too small, far
    events are promised far too rare: more is lost there than is won where it was found too large. What k such excesses
    say of the next one, whatever the scale, is ``(1 + z / (k m)) ** -k`` (the predictive law under the prior 1 / scale;
    Aitchison & Dunsmore 1975, "Statistical Prediction Analysis"), a generalised Pareto tail of shape 1 / k.

    A negative shape also has an end beyond which p would be 0 and all events tie. So it is believed only as far as the
    data bear it out: from the excess that ten held-out events pass (fitted probability 10 / (exceedances + 1)), the
    tail goes on as an exponential with the slope it has there. Hence p decreases strictly for ever: far events keep
    their order, and p errs upward.

    With fewer than 50 exceedances (n below about 5,000) or fewer than 20 distinct ones the tail is exponential too. Its
    mean excess is that of the upper 50 values (at most the upper half) over the next value below; if that is 0,
    the range of the data; if that is 0 too (one value, or a constant), max(abs(u), 1).
    """

    def __init__(self) -> None:
        self.n_: int = 0
        self.values_: Floats = np.empty(0)
        self.at_: Floats = np.empty(0)
        self.above_: Floats = np.empty(0)
        self.shape_: float = 0.0
        self.scale_: float = 1.0
        self._table: tuple[Floats, NDArray[np.int32]] | None = None  # made when it is first asked

    def fit(self, x: ArrayLike) -> TailCalibrator:
        """Learn from held-out values `x` (n,), higher = stranger.

        Raises
        ------
        ParameterError
            If `x` isn't one-dimensional, holds no number beside NaN, or holds an infinite or absurd one (over 1e150).
        """
        held = np.asarray(x, dtype=np.float64)
        if held.ndim != 1:
            raise ParameterError(f"TailCalibrator.fit: expected values of shape (n,), got shape {held.shape}")
        held = np.sort(held[~np.isnan(held)])
        if held.size == 0:
            raise ParameterError(
                "TailCalibrator.fit: expected at least one held-out value that is not NaN, got none; "
                "give it a longer calibration slice"
            )
        if max(-held[0], held[-1]) > _LARGEST:
            raise ParameterError(
                f"TailCalibrator.fit: expected finite values of size up to {_LARGEST:g}, got "
                f"{held[0]:g} to {held[-1]:g}; mark what is unknown as NaN"
            )
        self._table = None
        n = held.size
        threshold = held[n - 1 - int(n * TAIL_SHARE)]
        beyond = held[np.searchsorted(held, threshold, side="right") :]
        self.n_ = n
        self.values_ = _kept_points(held, threshold)
        self.at_ = np.asarray((1.0 + n - np.searchsorted(held, self.values_, side="left")) / (n + 1.0))
        self.above_ = np.asarray((1.0 + n - np.searchsorted(held, self.values_, side="right")) / (n + 1.0))
        shape, self.scale_ = fit_tail(held, beyond - threshold)
        self.shape_ = shape or 1.0 / _told_by(n, beyond.size)
        return self

    @property
    def threshold_(self) -> float:
        """Value ``u`` beyond which the tail speaks."""
        self._check_fitted()
        return float(self.values_[-1])

    def p_values(self, x: ArrayLike) -> Floats:
        """P-values in (0, 1] of `x`, same shape; smaller = stranger. NaN stays NaN; never below 1e-300."""
        x = np.asarray(x, dtype=np.float64)
        p = np.ones(x.shape)
        if self._multiply(x, p):
            far = x > self.values_[-1]
            p[far] = np.maximum(np.exp(self._log_tail(x[far])), FLOOR)
        return p

    def log_p(self, x: ArrayLike) -> Floats:
        """Natural logarithm of the p-values of `x`, same shape, without underflow: surprise = -log_p / ln 10."""
        x = np.asarray(x)
        return sum_log_p([self], [x if x.dtype == np.float32 else x.astype(np.float64, copy=False)])

    def quantile(self, p: ArrayLike) -> Floats:
        """Largest value whose p-value is at least `p` (any shape, in (0, 1]; NaN stays NaN); the inverse of `p_values`.

        Raises
        ------
        ParameterError
            If a probability lies outside (0, 1].
        """
        self._check_fitted()
        p = np.asarray(p, dtype=np.float64)
        if np.any((p <= 0) | (p > 1)):
            raise ParameterError(
                f"TailCalibrator.quantile: expected probabilities in (0, 1], got {np.nanmin(p):g} to {np.nanmax(p):g}"
            )
        last = self.values_.size - 1
        # p falls along values_, so the last point with at_ >= p is found among the negated levels.
        j = np.clip(np.searchsorted(-self.at_, -p, side="right") - 1, 0, last)
        k = np.minimum(j + 1, last)
        level = self.levels()
        gap = level[j] - self.at_[k]
        share = np.divide(level[j] - p, gap, out=np.zeros_like(p), where=(gap > 0) & (level[j] >= p))
        x = np.asarray(self.values_[j] + share * (self.values_[k] - self.values_[j]))
        far = p <= level[-1]
        if far.any():
            x[far] = self.values_[-1] + self._excess(np.log(p[far]) - np.log(level[-1]))
        x[np.isnan(p)] = np.nan
        return x

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learned, as plain arrays for an artifact (at most about 20,000 points)."""
        self._check_fitted()
        tail = np.array([self.shape_, self.scale_])
        return {"values": self.values_, "at": self.at_, "above": self.above_, "tail": tail, "n": np.array([self.n_])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TailCalibrator:
        """Bring back what `arrays` gave; the same p-values to the last bit.

        Raises
        ------
        ArtifactError
            If an array is missing or the shapes do not fit together.
        """
        names = ("values", "at", "above", "tail", "n")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ArtifactError(f"TailCalibrator: expected arrays {', '.join(names)}; missing {', '.join(missing)}")
        values, at, above = (np.array(arrays[name], dtype=np.float64) for name in names[:3])
        tail, n = np.asarray(arrays["tail"], dtype=np.float64), np.asarray(arrays["n"])
        if values.ndim != 1 or values.size == 0 or at.shape != values.shape or above.shape != values.shape:
            raise ArtifactError(
                f"TailCalibrator: expected values, at and above of one length (k,), got "
                f"{values.shape}, {at.shape}, {above.shape}"
            )
        if tail.shape != (2,) or n.shape != (1,) or not tail[1] > 0:
            raise ArtifactError("TailCalibrator: expected tail = (shape, scale > 0) and n = (count,)")
        made = cls()
        made.values_, made.at_, made.above_ = values, at, above
        made.shape_, made.scale_, made.n_ = float(tail[0]), float(tail[1]), int(n[0])
        return made

    def _check_fitted(self) -> None:
        if self.values_.size == 0:
            raise NotFittedError("TailCalibrator: not fitted; call fit with held-out values first")

    def _multiply(self, x: NDArray[np.floating[Any]], p: Floats) -> int:
        """Multiply `p` by the empirical p of `x`, of the same shape; how many lie beyond the threshold, left alone."""
        self._check_fitted()
        if self._table is None:
            lines = np.empty((self.values_.size, 3))
            guide = np.empty(min(_CELLS_EACH * self.values_.size, _MOST_CELLS) + 2, dtype=np.int32)
            tabulate_tail(self.values_, self.at_, self.levels(), lines, guide)
            self._table = lines, guide
        beyond: int = multiply_tail(*self._table, np.ascontiguousarray(x).reshape(-1), p.reshape(-1))
        return beyond

    def levels(self, some: slice = slice(None)) -> Floats:
        """Level of p just above all or `some` kept values: continuous, so that rounding makes no step; atoms step."""
        few = (_FEWEST_EQUAL - 0.5) / (self.n_ + 1.0) if self.n_ >= _FEWEST_SMOOTH else 0.0
        at, above = self.at_[some], self.above_[some]
        return np.where(at - above < max(ATOM, few), at, above)

    def bend(self) -> tuple[float, float]:
        """Excess where a tail of negative shape turns exponential, and the scale from there on."""
        shrunk = self._reach() ** self.shape_
        return self.scale_ * (shrunk - 1.0) / self.shape_, self.scale_ * shrunk

    def _reach(self) -> float:
        """One over the share of the exceedances that lie beyond the bend."""
        return max(1.0, float(self.above_[-1]) * (self.n_ + 1.0) / _BEND_EXCEEDANCES)

    def _log_tail(self, x: Floats) -> Floats:
        """Natural log of p for values beyond the threshold."""
        base = float(np.log(self.levels(slice(-1, None))[0]))
        with np.errstate(over="ignore"):
            z = x - self.values_[-1]
            if self.shape_ == 0:
                return np.asarray(base - z / self.scale_)
            if self.shape_ > 0:
                return np.asarray(base - np.log1p(self.shape_ * (z / self.scale_)) / self.shape_)
            bend, scale = self.bend()
            near = np.log1p(self.shape_ * np.minimum(z, bend) / self.scale_) / self.shape_
            return np.asarray(base - near - np.maximum(z - bend, 0.0) / scale)

    def _excess(self, log_share: Floats) -> Floats:
        """Excess over the threshold whose log probability among the exceedances is `log_share` (<= 0)."""
        if self.shape_ == 0:
            return -self.scale_ * log_share
        with np.errstate(over="ignore"):
            if self.shape_ > 0:
                return np.asarray(self.scale_ * np.expm1(-self.shape_ * log_share) / self.shape_)
            _, scale = self.bend()
            turn = -float(np.log(self._reach()))
            near = self.scale_ * np.expm1(-self.shape_ * np.maximum(log_share, turn)) / self.shape_
            return np.asarray(near + np.maximum(turn - log_share, 0.0) * scale)


def sum_log_p(calibrators: Sequence[TailCalibrator], x: Sequence[NDArray[np.floating[Any]]]) -> Floats:
    """Sum of what each calibrator's `log_p` says of its own `x`, all of one shape, with one logarithm for all of them.

    So few that the product of as many p-values of held-out events is a number: 1 / (n + 1) each at least.
    """
    total = np.ones(x[0].shape)
    beyond = [one._multiply(values, total) for one, values in zip(calibrators, x, strict=True)]
    total = np.asarray(np.log(total, out=total))
    for one, values, some in zip(calibrators, x, beyond, strict=True):
        if some:
            far = values > one.values_[-1]
            total[far] += one._log_tail(values[far].astype(np.float64))
    return total


def _kept_points(held: Floats, threshold: np.float64) -> Floats:
    """Distinct values up to the threshold; thinned by rank if there are more than the artifact may hold."""
    bulk = held[: np.searchsorted(held, threshold, side="right")]
    if np.unique(bulk).size <= _BULK_POINTS + _BAND_POINTS:
        return _spaced(bulk)
    band = int(_BAND_START * held.size)
    ranks = np.concatenate(
        [
            np.linspace(0, band, _BULK_POINTS).astype(np.int64),
            np.linspace(band, bulk.size - 1, _BAND_POINTS).astype(np.int64),
        ]
    )
    return np.unique(bulk[ranks])


def _spaced(bulk: Floats) -> Floats:
    """Distinct values of the sorted `bulk` without near ties, see `NEAR`; atoms, the first and the last value stay."""
    distinct, times = np.unique(bulk, return_counts=True)
    low, high = np.quantile(bulk, [0.25, 0.75])
    gap = NEAR * float(high - low) / bulk.size
    if bulk.size < _FEWEST_SMOOTH or gap == 0:
        return distinct
    keep = times >= _FEWEST_EQUAL
    keep[-1] = True
    at, end = 0, max(1, int(np.searchsorted(distinct, distinct[-1] - gap, side="right")))
    while at < end:
        keep[at] = True
        # Beside a huge value the gap is less than rounding: the next value then, or the loop would never end.
        at = max(at + 1, int(np.searchsorted(distinct, distinct[at] + gap)))
    return np.asarray(distinct[keep])


def fit_tail(held: Floats, excess: Floats) -> tuple[float, float]:
    """Shape and scale of the tail; `held` sorted, `excess` the sorted excesses over the threshold."""
    if excess.size < _FEWEST_EXCEEDANCES or np.unique(excess).size < _FEWEST_DISTINCT:
        return 0.0, _exponential_scale(held, excess.size)
    unit = float(excess.mean())
    shape, scale = _fit_pareto(excess / unit)
    return shape, scale * unit


def _told_by(n: int, exceedances: int) -> int:
    """How many excesses tell the scale of an exponential tail; at least 1."""
    return max(1, min(max(exceedances, _FEWEST_EXCEEDANCES), n // 2))


def _exponential_scale(held: Floats, exceedances: int) -> float:
    n = held.size
    upper = _told_by(n, exceedances) if n > 1 else 0
    mean_excess = float((held[n - upper :] - held[n - 1 - upper]).mean()) if upper else 0.0
    spread = float(held[-1] - held[0])
    return next(scale for scale in (mean_excess, spread, max(abs(float(held[-1])), 1.0)) if scale > 0)


def _fit_pareto(z: Floats) -> tuple[float, float]:
    """Generalised Pareto shape and scale for excesses `z` of mean 1: likelihood, else moments, shape within limits.

    The start is by probability-weighted moments (Hosking & Wallis 1987): with z ascending, a0 = mean(z) and
    a1 = mean(z * (1 - (i - 0.35) / k)), shape = 2 - a0 / (a0 - 2 a1), scale = 2 a0 a1 / (a0 - 2 a1).
    """
    low, high = SHAPE_LIMITS
    weights = 1.0 - (np.arange(1, z.size + 1) - 0.35) / z.size
    a0, a1 = float(z.mean()), float((weights * z).mean())
    start = float(np.clip(2.0 - a0 / (a0 - 2.0 * a1), low, high)) if a0 > 2.0 * a1 else high
    moments = start, max(a0 * (1.0 - start), 0.05)
    try:
        with np.errstate(all="ignore"):  # the search may step where the likelihood is 0
            shape, _, scale = scipy.stats.genpareto.fit(z, start, floc=0.0, scale=moments[1])
            if not low <= shape <= high:
                shape, _, scale = scipy.stats.genpareto.fit(z, f0=float(np.clip(shape, low, high)), floc=0.0, scale=a0)
    except (scipy.stats.FitError, RuntimeError, ValueError):
        shape, scale = moments
    if not (np.isfinite(shape) and np.isfinite(scale) and scale > 0):
        shape, scale = moments
    if shape < 1e-6:
        gain = scipy.stats.genpareto.logpdf(z, shape, scale=scale).sum() + z.size  # the exponential's: -k
        if not 2.0 * gain > np.log(z.size):
            return 0.0, 1.0
    return float(shape), float(scale)
