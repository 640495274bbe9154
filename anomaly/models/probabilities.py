"""What a classifier's outputs mean as probabilities, learned on held-out events: Platt, isotonic, temperature.

Letters used in shapes: n events, k knots, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
CalibrationKind = Literal["isotonic", "platt", "none"]

FLATTEST = 1e-3  # least slope of a calibration: a ranking is never turned round


@dataclass(frozen=True)
class Calibration:
    """A rising map from logits to probabilities: straight between knots, and on with one slope beyond the last ones.

    It is straight on the scale of log-odds and rises everywhere, so that no two logits tie and a ranking by
    probability is that by logit (as far as float64 goes: above log-odds of 36 all probabilities are 1).

    logit : (k,) rising, what the network said; log_odds : (k,) rising, what that means; slope : above 0.
    """

    logit: Float
    log_odds: Float
    slope: float

    def __call__(self, logit: Float) -> Float:
        """Probabilities (n,) of the logits (n,); NaN stays NaN."""
        inside = np.interp(logit, self.logit, self.log_odds)
        beyond = np.maximum(logit - self.logit[-1], 0.0) + np.minimum(logit - self.logit[0], 0.0)
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-(inside + self.slope * beyond))))

    @classmethod
    def of(cls, kind: CalibrationKind, logit: Float, fraud: Mask) -> Calibration:
        """Fit the map of a kind (see `Classifier`) to logits (n,) and labels (n,), both of which must occur."""
        if kind == "none":
            return cls(np.zeros(1), np.zeros(1), 1.0)
        slope, shift = platt(logit, fraud)
        if kind == "platt":
            return cls(np.zeros(1), np.array([shift]), slope)
        return cls(*isotonic(logit, fraud), slope)


def platt(logit: Float, fraud: Mask) -> tuple[float, float]:
    """Slope (above 0) and shift of the log-odds that suit logits (n,) and labels (n,) best (Platt 1999).

    With his targets, (P + 1) / (P + 2) and 1 / (N + 2) for P frauds and N others, the slope stays finite even where
    the logits separate the two.
    """
    positives = int(fraud.sum())
    target = np.where(fraud, (positives + 1) / (positives + 2), 1 / (len(fraud) - positives + 2))
    center, spread = float(logit.mean()), float(logit.std()) or 1.0
    z = (logit - center) / spread

    def loss(parameters: Float) -> tuple[float, Float]:
        odds = parameters[0] * z + parameters[1]
        away = 1.0 / (1.0 + np.exp(-np.clip(odds, -500, 500))) - target
        value = float(np.mean(np.logaddexp(0.0, odds) - target * odds))
        return value, np.array([np.mean(away * z), np.mean(away)])

    share = target.mean()
    start = np.array([1.0, math.log(share / (1 - share))])
    bounds = [(FLATTEST * spread, None), (None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    slope = float(found[0]) / spread
    return slope, float(found[1]) - slope * center


def prior_line(prior: Float, fraud: Mask) -> tuple[float, float]:
    """Slope (above 0) of the log-odds that a score (n,) gives by labels (n,), and shift beside those of any event."""
    slope, shift = platt(prior, fraud)
    frauds = int(fraud.sum())
    return slope, shift - math.log(frauds / (len(fraud) - frauds))


def isotonic(logit: Float, fraud: Mask) -> tuple[Float, Float]:
    """Knots of an isotonic regression: mean logit (k,) and log-odds (k,) of each block, both rising.

    The regression itself is a staircase (Zadrozny and Elkan 2002): all events of a block would tie, the strangest ones
    first of all. Here each block is one knot, to be joined by straight lines. A pseudo-event of the common fraud share
    in each block keeps the log-odds finite; where that upsets the order, blocks are merged once more.
    """
    z, which = np.unique(logit, return_inverse=True)  # events of one logit stay together
    weight = np.bincount(which).astype(np.float64)
    share = float(fraud.mean())
    values = np.bincount(which, weights=fraud) / weight
    for pseudo in (0.0, 1.0):
        values = (values * weight + pseudo * share) / (weight + pseudo)
        blocks = optimize.isotonic_regression(values, weights=weight + pseudo).blocks[:-1]
        total = np.add.reduceat(weight, blocks)
        z = np.add.reduceat(z * weight, blocks) / total
        values = np.add.reduceat(values * (weight + pseudo), blocks) / np.add.reduceat(weight + pseudo, blocks)
        weight = total
    return z, np.log(values / (1 - values))


@dataclass(frozen=True)
class Temperature:
    """A map from the logits of C classes to probabilities: a softmax of all of them times one slope above 0."""

    slope: float

    def __call__(self, logits: Float) -> Float:
        """Probabilities (n, C) of the logits (n, C); NaN stays NaN."""
        return np.asarray(special.softmax(logits * self.slope, axis=1))

    @classmethod
    def of(cls, kind: CalibrationKind, logits: Float, label: NDArray[np.int64]) -> Temperature:
        """Find the slope that suits logits (n, C) and labels (n,) best (Guo, Pleiss, Sun and Weinberger 2017)."""
        if kind == "none":
            return cls(1.0)
        rows = np.arange(len(label))

        def loss(log_slope: float) -> float:
            return -float(special.log_softmax(logits * math.exp(log_slope), axis=1)[rows, label].mean())

        return cls(math.exp(float(optimize.minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x)))
