"""A rule for streams whose normal events do not stay as strange as they were: the tail is learned anew all the time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, isnan, log
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import FLOOR, TailCalibrator, fit_tail
from anomaly.errors import ParameterError
from anomaly.thresholds.base import StreamThreshold, check_share, one_in
from anomaly.thresholds.cases import Floats, checked_one
from anomaly.thresholds.heldout import HeldOut

PEAK_SHARE = 0.02
"""Share of the held-out events above the initial threshold, at most: the 98th percentile of Siffer et al."""
FEWEST_PEAKS = 10
_ROOM = 2.0  # peaks per alert, at least: the tail is fitted to what lies between the initial threshold and the alerts


@dataclass
class PeaksOverThreshold(StreamThreshold):
    """Alert on a share `rate` of the normal events, whatever becomes of the tail of their surprise.

    SPOT (Siffer, Fouque, Termier & Largouet 2017, "Anomaly detection in streams with extreme value theory"), on
    surprises x = -ln p. A high quantile t of the held-out slice is the initial threshold; the excesses x - t of the
    peaks above it follow a generalised Pareto law, whatever the law of x (Pickands 1975). With shape s and scale c of
    that law, and the share of peaks among the events, an event alerts beyond::

        z = t + c / s ((rate / share) ** -s - 1)        or t + c ln(share / rate) for s = 0

    Each live event then teaches something, see `update`. What is learned from is a window of the latest `peaks` peaks
    and the events between them.

    While the p-values are right, surprises are exponential and this is `FalseAlertRate`: p <= rate. It differs where
    normal behaviour drifts: when normal events have become twice as strange, the fixed rate floods the desk, and this
    rule comes back to `rate`. The price: fraud that grows slowly enough is taken for drift. A jump is not: events
    beyond z teach nothing, however many they are, and the detector is to be fitted anew.

    Parameters
    ----------
    rate : float
        Share of the normal events that may alert, in (0, 0.01).
    peaks : int, default 1000
        Most peaks that are remembered; at least 100. More make the tail steadier and slower to follow.

    Attributes
    ----------
    threshold_ : float
        The p-value exp(-z) at or below which the next event alerts.
    refits_ : int
        How often the tail was fitted to live peaks since `fit`.

    Notes
    -----
    The tail is fitted as `anomaly.calibration.TailCalibrator` does it, with its safeguards (errs on the heavy side, a
    bounded tail is believed only as far as data bear it out). With fewer than ten peaks in the window it is the
    standard exponential, which surprises follow as long as the p-values are right. Fitting takes some 20 ms; at the
    defaults at most one live event in 500 has to wait for it.

    As published, alerts teach nothing, so the tail is always fitted to peaks that were cut off at z. In a window that
    forgets, each cut builds on the one before, and the rate of alerts creeps up to ten times what was asked. So the
    normal events that z is expected to cut off, `rate` of them, are put back at their places in the fitted tail.
    """

    fewest_events: ClassVar[int] = 100

    rate: float
    peaks: int = 1_000
    refits_: int = field(default=0, init=False)
    _start: float = field(default=0.0, init=False, repr=False)  # t
    _window: deque[tuple[float, int]] = field(default_factory=deque, init=False, repr=False, compare=False)
    _count: int = field(default=0, init=False, repr=False)  # events of the window, peaks and others
    _held: int = field(default=0, init=False, repr=False)  # those of them that are from the held-out slice
    _since: int = field(default=0, init=False, repr=False)  # events since the last peak
    _unseen: int = field(default=0, init=False, repr=False)  # peaks that the tail was not yet fitted to
    _tail: TailCalibrator = field(default_factory=TailCalibrator, init=False, repr=False, compare=False)

    def _check_parameters(self) -> None:
        check_share(self, "rate", self.rate)
        if not self.rate < PEAK_SHARE / _ROOM:
            raise ParameterError(
                f"PeaksOverThreshold: expected a rate below {PEAK_SHARE / _ROOM:g}, got {self.rate:g}: the tail is "
                f"fitted to the strangest {100 * PEAK_SHARE:g} % of the events; take FalseAlertRate({self.rate:g})"
            )
        if not (isinstance(self.peaks, int) and self.peaks >= 100):
            raise ParameterError(
                f"PeaksOverThreshold: expected peaks to be a whole number from 100, got {self.peaks!r}"
            )

    def _level(self, held: HeldOut) -> float:
        surprise = _surprise(held.p[held.in_time])
        n = surprise.size
        share = min(PEAK_SHARE, max(self.peaks / max(n, 1), _ROOM * self.rate))
        number = min(max(FEWEST_PEAKS, round(share * n)), n // 2)
        self._start = float(np.partition(surprise, n - 1 - number)[n - 1 - number]) if n else 0.0
        at = np.flatnonzero(surprise > self._start)
        gaps = np.diff(at, prepend=-1)
        self._window = deque(zip((surprise[at] - self._start).tolist(), gaps.tolist(), strict=True), maxlen=self.peaks)
        self._since = n - 1 - int(at[-1]) if at.size else n
        self._count = self._held = self._since + sum(gap for _, gap in self._window)
        self._unseen = self.refits_ = 0
        self._refit()
        return self._limit()

    def decide_one(self, p: float, *, money: float | None = None) -> bool:
        """The same as `update`."""
        return self.update(p)

    def update(self, p: float) -> bool:
        """Whether the next event of the stream, with p-value `p`, alerts; and learn from it.

        An event beyond z alerts, and is neither learned from nor counted. One between t and z is a peak: it is
        remembered, the oldest one may be forgotten, z moves, and the tail is fitted anew once a hundredth of the window
        is new. Any other is counted. NaN (no statement) never alerts, and is not counted.
        """
        self._check_fitted()
        value = checked_one(p)
        if value <= self.threshold_:
            return True
        if isnan(value):
            return False
        self._count += 1
        self._since += 1
        excess = -log(value) - self._start  # value > threshold_ >= 0
        if excess > 0:
            self._learn(excess)
        return False

    def describe(self) -> str:
        """The rate, the p-value that it comes to just now, and the cost on the held-out slice."""
        self._check_fitted()
        return (
            f"Alerts on {one_in(self.rate)} normal events, as the peaks over a threshold tell (just now "
            f"p <= {self.threshold_:.3g}, and it follows the stream): {self._cost()}."
        )

    def _learn(self, excess: float) -> None:
        if len(self._window) == self.peaks:
            forgotten = self._window[0][1]
            self._count, self._held = self._count - forgotten, max(0, self._held - forgotten)
        self._window.append((excess, self._since))
        self._since = 0
        self._unseen += 1
        if self._unseen >= max(1, len(self._window) // 100):
            self._refit()
            self._unseen, self.refits_ = 0, self.refits_ + 1
        self.threshold_ = self._limit()

    def _cut_off(self) -> float:
        """Normal events that are expected beyond z while the live part of the window passed."""
        return self.rate / (1.0 - self.rate) * (self._count - self._held)

    def _share(self) -> float:
        """Share of peaks among the events, those beyond z among them; where there is none, as if there were one."""
        lost = self._cut_off()
        return (max(1, len(self._window)) + lost) / (max(1, self._count) + lost)

    def _refit(self) -> None:
        """Fit the tail of the excesses to the peaks of the window and to those that were cut off."""
        excess = np.array([peak for peak, _ in self._window])
        lost = round(self._cut_off())
        if lost:
            within = min(1.0, self.rate / self._share())
            excess = np.concatenate([excess, self._tail.quantile(within * (np.arange(lost) + 0.5) / lost)])
        excess.sort()
        enough = excess.size >= FEWEST_PEAKS
        shape, scale = fit_tail(np.concatenate([[0.0], excess]), excess) if enough else (0.0, 1.0)
        self._tail = _tail(shape, scale, excess.size)

    def _limit(self) -> float:
        """The p-value exp(-z): below that of t even where no peak is rare enough, so that ties at t never alert."""
        excess = float(self._tail.quantile([min(1.0, self.rate / self._share())])[0])
        return exp(-self._start) * min(exp(-excess), 1.0 - 1e-12)

    def _memory(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "excesses": [excess for excess, _ in self._window],
            "gaps": [gap for _, gap in self._window],
            "since": self._since,
            "held": self._held,
            "unseen": self._unseen,
            "refits": self.refits_,
            "tail": [self._tail.shape_, self._tail.scale_, self._tail.n_],
        }

    def _remember(self, state: Mapping[str, Any]) -> None:
        excesses, gaps = [float(value) for value in state["excesses"]], [int(gap) for gap in state["gaps"]]
        start = float(state["start"])
        counts = [int(state[name]) for name in ("since", "held", "unseen", "refits")]
        shape, scale, n = state["tail"]
        tail = _tail(float(shape), float(scale), int(n))
        if not (len(excesses) == len(gaps) <= self.peaks and min([*excesses, *gaps, *counts]) >= 0):
            raise ValueError(f"expected at most {self.peaks} excesses, as many gaps, and nothing below 0")
        self._window = deque(zip(excesses, gaps, strict=True), maxlen=self.peaks)
        self._start, self._tail = start, tail
        self._since, self._held, self._unseen, self.refits_ = counts
        self._count = self._since + sum(gaps)


def _surprise(p: Floats) -> Floats:
    return np.asarray(-np.log(np.maximum(p, FLOOR)))


def _tail(shape: float, scale: float, n: int) -> TailCalibrator:
    """The law of the excesses alone, which begin at 0: beyond it the p-values are shares of the peaks."""
    one: NDArray[np.float64] = np.ones(1)
    parts = {"values": np.zeros(1), "at": one, "above": one, "tail": np.array([shape, scale]), "n": np.array([n])}
    return TailCalibrator.from_arrays(parts)
