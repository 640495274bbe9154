"""Rules for how many of the alerts may be false: over a batch, and over a stream that never ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from anomaly.errors import ParameterError
from anomaly.thresholds.base import StreamThreshold, Threshold, check_share
from anomaly.thresholds.cases import Bools, Floats, checked_one, checked_p
from anomaly.thresholds.heldout import HeldOut

Dependence = Literal["positive", "any"]

SCALES: Floats = np.logspace(1, 8, 8)
"""How many events the error budget of an alert is spread over, from ten to a hundred million: an equal part on each."""
_KEEP = 1.0 - 1.0 / SCALES
_SPEND = 1.0 / (SCALES.size * SCALES)
_LONGEST = 4_096  # events decided in one stroke: an alert makes the work on the rest of the stroke void


@dataclass
class FalseDiscoveryRate(Threshold):
    """Alert so that at most a share `q` of the entities that alert is expected to be without fraud.

    A desk looks into entities, and fraud comes in runs: what may be false is an entity's whole batch, not one event of
    it. So the hypotheses are entities ("all its events of this batch are normal"), in two steps:

    1. An entity's p is Simes' (1986): with its n p-values in ascending order, the smallest n p_(i) / i. Benjamini &
       Hochberg (1995, "Controlling the false discovery rate") over these m: alert on the R smallest, for the largest R
       whose p is at most q R / m. The threshold moves with the batch: a quiet day raises no alert at all, a bad one
       many.
    2. Within an entity that alerts, its events by Benjamini-Hochberg at q R / m, the level at which the entity itself
       was chosen (Benjamini & Bogomolov 2014, "Selective inference on multiple families of hypotheses"): the mean
       share of false ones among the events of an entity, over the entities that alert, is kept as well. At least one
       event of each alerts.

    Both promises hold for independent or positively dependent p-values. On simulated payments this also finds more
    victims than one hypothesis for each event, above all at small `q`: ten strange payments of one customer among
    three hundred customers can be told from chance where each alone among twenty thousand payments cannot. The longer
    the batch, the more so: a month finds more than its days one by one.

    Benjamini & Yekutieli (2001, "The control of the false discovery rate in multiple testing under dependency") divide
    by 1 + 1/2 + ... + 1/m as well, and by the same of n within an entity (Hommel 1983): the promise is kept under any
    dependence, and little is found.

    `fit` treats the held-out slice as one batch, which says how many alerts normal data cost; `decide` looks only at
    the batch that it is given. Nothing but the promise is learned, so the back-test judges the slice as that one batch.

    Parameters
    ----------
    q : float
        Expected share of false ones among the entities that alert, in (0, 1).
    dependence : "positive" or "any", default "positive"
        Between the p-values. Events of one entity tend to be strange together, which is positive; "any" assumes
        nothing.
    """

    q: float
    dependence: Dependence = "positive"

    def _check_parameters(self) -> None:
        check_share(self, "q", self.q)
        if self.dependence not in ("positive", "any"):
            raise ParameterError(
                f'FalseDiscoveryRate: expected dependence "positive" (Benjamini-Hochberg) or "any" '
                f"(Benjamini-Yekutieli), got {self.dependence!r}"
            )

    def _level(self, held: HeldOut) -> float:
        return self.batch_threshold(held.p, entity=held.entity)

    def _alerting(self, held: HeldOut) -> Bools:
        return self._decided(held.p, held.entity)

    def _alerting_without(self, part: int, held: HeldOut, alerting: Bools) -> Bools:
        return alerting

    def _decided(self, p: Floats, entity: ArrayLike | None) -> Bools:
        codes = np.arange(p.size) if entity is None else np.asarray(entity)
        if codes.shape != p.shape:
            raise ParameterError(f"expected entity codes of the same length as p, got {codes.shape} and {p.shape}")
        stated = np.flatnonzero(~np.isnan(p))
        decided = np.zeros(p.size, dtype=np.bool_)
        if stated.size == 0:
            return decided
        stated = stated[np.lexsort((p[stated], codes[stated]))]
        _, first, code, number = np.unique(codes[stated], return_index=True, return_inverse=True, return_counts=True)
        rank = np.arange(stated.size) - first[code] + 1
        each = p[stated] * self._divided(number)[code] / rank
        simes = np.sort(np.minimum.reduceat(each, first))
        levels = self.q * np.arange(1, first.size + 1) / self._divided(np.array([first.size]))
        chosen = np.flatnonzero(simes <= levels)
        if chosen.size:
            passing = each <= levels[chosen[-1]]
            last = np.maximum.reduceat(np.where(passing, rank, 0), first)  # up to it all of the entity's events alert
            decided[stated] = rank <= last[code]
        return decided

    def _divided(self, number: NDArray[np.int64]) -> Floats:
        """What q is divided by for so many hypotheses (k,)."""
        if self.dependence == "positive":
            return number.astype(np.float64)
        return number * (special.digamma(number + 1.0) + np.euler_gamma)

    def batch_threshold(
        self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None
    ) -> float:
        """Largest p-value of the batch `p` (m,) that alerts; 0 if none does."""
        self._check_parameters()
        return float(checked_p(p)[self._decided(checked_p(p), entity)].max(initial=0.0))

    def decide(self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None) -> Bools:
        """Which events of the batch with p-values `p` (k,) alert; NaN never does, and does not count.

        `entity` (k,) says whose events they are. Without it each event is one of its own, which is Benjamini-Hochberg
        as usual.
        """
        self._check_fitted()
        return self._decided(checked_p(p), entity)

    def decide_one(self, p: float, *, money: float | None = None) -> bool:
        """Refused: a batch of one event says nothing of a share.

        Raises
        ------
        ParameterError
            Always.
        """
        raise ParameterError(
            "FalseDiscoveryRate: expected a batch of events, got a single one; "
            f"for a stream take OnlineFalseDiscoveryRate({self.q:g})"
        )

    def describe(self) -> str:
        """The share and what it costs on the held-out slice."""
        self._check_fitted()
        method = "Benjamini-Hochberg" if self.dependence == "positive" else "Benjamini-Yekutieli"
        return (
            f"At most {100 * self.q:.3g} % of the entities that alert in a batch are expected to be false ({method}); "
            f"{self._cost()}."
        )


@dataclass
class OnlineFalseDiscoveryRate(StreamThreshold):
    """Alert on a stream, so that at any time at most a share `q` of its alerts so far is expected to be false.

    LORD++ (Ramdas, Yang, Wainwright & Jordan 2017, "Online control of the false discovery rate with decaying memory";
    after Javanmard & Montanari 2018). The t-th event alerts if its p is at most::

        level(t) = q/2 g(t) + q/2 g(t - t1) + q (g(t - t2) + g(t - t3) + ...)

    where t1 < t2 < ... are the events that alerted before, and g(1) >= g(2) >= ... are shares that sum to 1 (0 up to
    t = 0): the stream begins with an error budget of q/2, each alert earns a new one, and g says how it is spent on the
    events that follow. Hence the sum of all levels never exceeds q times the number of alerts (at least 1).

    Any such g keeps the promise. The usual ones fall like a power of t, and must remember every alert for ever. Here g
    is a mixture of geometric series with means of 10, 100, ... 100,000,000 events, in equal parts: close to a power,
    but each part only needs its own running sum. So the state is eight numbers, exactly, and nothing is cut off. On
    simulated streams it also found more than the usual g.

    The promise holds if normal p-values are independent of each other and of the rest, and uniform or larger. In a long
    quiet time the level falls, about as 1 / t, until only the rarest events pass; after alerts it rises.

    Parameters
    ----------
    q : float
        Expected share of false ones among the alerts, in (0, 1).

    Attributes
    ----------
    threshold_ : float
        Level of the next event.

    Notes
    -----
    `fit` runs over the held-out slice in the order of time, which says what normal data cost, and then begins anew.
    Nothing else is learned from the slice, so the back-test judges that one run.
    """

    q: float
    _sums: Floats = field(default_factory=lambda: np.zeros(SCALES.size), init=False, repr=False, compare=False)
    _alerts: int = field(default=0, init=False, repr=False, compare=False)

    def _check_parameters(self) -> None:
        check_share(self, "q", self.q)

    def _level(self, held: HeldOut) -> float:
        self._sums, self._alerts = np.full(SCALES.size, self.q / 2), 0
        return float(_level_of(self._sums))

    def _alerting(self, held: HeldOut) -> Bools:
        alerting = np.zeros(held.p.size, dtype=np.bool_)
        alerting[held.in_time] = self._run(held.p[held.in_time])[0]
        return alerting

    def _alerting_without(self, part: int, held: HeldOut, alerting: Bools) -> Bools:
        return alerting

    def decide(self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None) -> Bools:
        """Which of the events with p-values `p` (m,), in the order of the stream, alert from here on.

        Equal to `decide_one` on one after the other, but changes nothing. NaN never alerts, and takes no turn.
        """
        self._check_fitted()
        p = checked_p(p)
        stated = np.flatnonzero(~np.isnan(p))
        decided = np.zeros(p.size, dtype=np.bool_)
        decided[stated] = self._run(p[stated])[0]
        return decided

    def decide_one(self, p: float, *, money: float | None = None) -> bool:
        """Whether the next event alerts; the level moves on. NaN never alerts, and takes no turn."""
        self._check_fitted()
        value = checked_one(p)
        if isnan(value):
            return False
        decided, self._sums, self._alerts = self._run(np.array([value]))
        self.threshold_ = float(_level_of(self._sums))
        return bool(decided[0])

    def batch_threshold(
        self, p: ArrayLike, *, money: ArrayLike | None = None, entity: ArrayLike | None = None
    ) -> float:
        """Largest p-value of `p` (m,) that alerts, in the order of the stream; 0 if none does."""
        return float(checked_p(p)[self.decide(p)].max(initial=0.0))

    def describe(self) -> str:
        """The share, the level that the next event has to pass, and the cost on the held-out slice."""
        self._check_fitted()
        return (
            f"At most {100 * self.q:.3g} % of all alerts of the stream so far are expected to be false (LORD++); the "
            f"next event alerts at p <= {self.threshold_:.3g}; {self._cost()}."
        )

    def _run(self, p: Floats) -> tuple[Bools, Floats, int]:
        """Decisions on `p` (m,) without NaN, and the state after them.

        Between two alerts the sums only shrink, by the same factors: whole strokes of events are decided at once, with
        the same multiplications as one by one.
        """
        decided = np.zeros(p.size, dtype=np.bool_)
        sums, alerts = self._sums, self._alerts
        at, width = 0, 64
        while at < p.size:
            stroke = p[at : at + width]
            path = np.empty((SCALES.size, stroke.size + 1))  # sums before each event of the stroke, and after the last
            path[:, 0], path[:, 1:] = sums, _KEEP[:, None]
            np.multiply.accumulate(path, axis=1, out=path)
            hits = np.flatnonzero(stroke <= _level_of(path[:, :-1]))
            if hits.size == 0:
                sums, at, width = path[:, -1], at + stroke.size, min(2 * width, _LONGEST)
                continue
            hit = int(hits[0])
            decided[at + hit] = True
            sums = path[:, hit + 1] + (self.q if alerts else self.q / 2)
            at, width, alerts = at + hit + 1, 64, alerts + 1
        return decided, np.array(sums), alerts

    def _memory(self) -> dict[str, Any]:
        return {"sums": self._sums.tolist(), "alerts": self._alerts}

    def _remember(self, state: Mapping[str, Any]) -> None:
        sums, alerts = np.array(state["sums"], dtype=np.float64), int(state["alerts"])
        if sums.shape != SCALES.shape or not (sums >= 0).all() or alerts < 0:
            raise ValueError(f"expected {SCALES.size} sums and a number of alerts, none below 0")
        self._sums, self._alerts = sums, alerts


def _level_of(sums: Floats) -> Floats:
    """Levels (...) from the sums (8, ...); added up in one order, whatever the shape, so that streams equal batches."""
    level = _SPEND[0] * sums[0]
    for spend, part in zip(_SPEND[1:], sums[1:], strict=True):
        level = level + spend * part
    return np.asarray(level)
