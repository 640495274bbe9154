"""Single: the scoring of one event at a time, in plain numbers.

What `scorer`, `evidence`, `population` and `calibration` say of many events at once, said of one, for a stream: there
arrays of one number cost ten times what they compute. Each part names its twin, and a test holds the two together.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from anomaly.calibration import TailCalibrator
from anomaly.evidence import FAR, GENTLE, LOUDEST, SOFT_THRESHOLD
from anomaly.population import Population
from anomaly.scorer import GROUP_PSEUDO_EVENTS, GROUPS, POPULATION, Scorer, models

Float = NDArray[np.float64]
LOG_2 = math.log(2.0)


class SingleTail:
    """One number to the logarithm of its p-value; twin of `TailCalibrator.log_p`."""

    def __init__(self, calibrator: TailCalibrator) -> None:
        self._calibrator = calibrator
        self._values, self._at = array("d", calibrator.values_), array("d", calibrator.at_)
        self._level = array("d", calibrator.levels())
        self._least, self._most = self._values[0], self._values[-1]
        self._shape, self._scale, self._log_level = calibrator.shape_, calibrator.scale_, math.log(self._level[-1])

    def __call__(self, x: float) -> float:
        """Natural log of the p-value; NaN stays NaN."""
        values = self._values
        if not x <= self._most:
            if self._shape == 0.0:
                return self._log_level - (x - self._most) / self._scale
            return float(self._calibrator.log_p(np.array([x]))[0])
        if x < self._least:
            return 0.0
        right = bisect_left(values, x)
        p = self._at[right]
        above, upper = values[right], self._level[right - 1] if right else p
        if x < above and upper > p:
            below = values[right - 1]
            p = max(upper - (x - below) / (above - below) * (upper - p), p)
        return math.log(p)


def window_nats(number: int, total: float, dependence: float) -> float:
    """Nats that speak against one window; twin of `evidence.window_evidence`."""
    if not number:
        return 0.0
    widened = min(dependence, number)
    shape, scaled = number / widened, max(total, 0.0) / widened
    tail = float(special.gammaincc(shape, scaled))
    if tail > 1e-290:
        return -math.log(tail)
    return scaled - (shape - 1) * math.log(max(scaled, 1e-9)) + math.lgamma(shape)


class SinglePopulation:
    """How rare the named numbers of one event are among everybody's; twin of `Population.errors`."""

    def __init__(self, population: Population) -> None:
        tails = [None if one is None else SingleTail(one) for one in population.tails_]
        self.columns = tuple((population.name, column.name) for column in population.fields)
        self._fields: list[tuple[int, list[tuple[int, SingleTail]]]] = []
        first = 0
        for at, signs in zip(population.index, population.signs, strict=True):
            sides = zip(signs, tails[first : first + len(signs)], strict=True)
            self._fields.append((at, [(sign, tail) for sign, tail in sides if tail is not None]))
            first += len(signs)

    def errors(self, numeric: Sequence[float]) -> list[float]:
        """-ln of the tail probability of each field, >= 0; NaN = no statement."""
        found = []
        for at, sides in self._fields:
            value = numeric[at]
            if value != value or not sides:
                found.append(math.nan)
                continue
            log_p = min(tail(sign * value) for sign, tail in sides)
            found.append(max(-(log_p + LOG_2 * (len(sides) - 1)), 0.0))
        return found


class Judged(NamedTuple):
    """What is said of one event: see `scorer.Judgement`; `counted` is what it adds to its entity's evidence."""

    models: dict[str, float]
    log_p: float
    evidence: float
    counted: float


class SingleScorer:
    """Judges one event; twin of `Scorer.judge_sums`.

    Parameters
    ----------
    scorer : Scorer
        Fitted.
    columns : sequence of (model, column)
        Names of the K fields, of all models and of the population, in the order in which their errors will stand.
    """

    def __init__(self, scorer: Scorer, columns: Sequence[tuple[str, str]]) -> None:
        self._combination = scorer.combination
        tails = {name: SingleTail(one) for name, one in scorer.calibrators_.items() if "." not in name}
        self._own, self._fresh, self._all = tails["own"], tails["fresh"], tails["all"]
        self._models = [(name, tails[name]) for name in scorer.fields if name in tails]
        self._edges, self._dependence = scorer.edges_.tolist(), scorer.dependence_.tolist()
        self._groups: dict[int, tuple[SingleTail, float, float]] = {}
        for group in range(GROUPS**2):
            one = scorer.calibrators_.get(f"group.{group}")
            if one is not None:
                share = one.n_ / (one.n_ + GROUP_PSEUDO_EVENTS)
                self._groups[group] = SingleTail(one), math.log(share), math.log1p(-share)
        self._weigh(scorer, columns)

    def _weigh(self, scorer: Scorer, columns: Sequence[tuple[str, str]]) -> None:
        """What each field counts, (K, 2 + models): in `Combination.own`, in the same for evidence, in its model."""
        self._weights = np.zeros((len(columns), 2 + len(self._models)))
        self._everybody = [at for at, (model, _) in enumerate(columns) if model == POPULATION]
        self._mine = [at for at, (model, _) in enumerate(columns) if model != POPULATION]
        self._choices = math.log(max(1, len(self._everybody)))
        names = [name for name, _ in self._models]
        for name, fields in models(scorer.fields).items():
            at = [columns.index((name, column.name)) for column in fields]
            weights, model = scorer.combination.field_weights(fields), scorer.combination.model_weight(name)
            fresh = np.where([column.cumulative for column in fields], 0.0, weights)
            self._weights[at, 0], self._weights[at, 1] = model * weights, model * fresh
            if name in names:
                self._weights[at, 2 + names.index(name)] = weights

    def judge(self, errors: Float, sums: Sequence[float], number: Sequence[int], pace: float) -> Judged:
        """Judge an event by its errors (K,), the sums and numbers of each window before it, (W,), and the pace."""
        own, fresh, *alone = self._statistics(errors)
        models = {name: tail(value) for (name, tail), value in zip(self._models, alone, strict=True)}
        evidence = [window_nats(*one) for one in zip(number, sums, self._dependence, strict=True)]
        weighed = self._combination.total(np.array([self._either(-self._own(own), errors)]), np.array([evidence]))
        busy = ((number[-1] if len(number) else 0) + 1) / (pace + 1)
        counted = -self._fresh(fresh)
        return Judged(
            models,
            self._calibrated(float(weighed[0]), (pace, busy)),
            max(evidence, default=0.0),
            0.0 if counted != counted else min(counted, LOUDEST),
        )

    def _either(self, own: float, errors: Float) -> float:
        """Twin of `Combination.either` and `scorer.everybody`."""
        said = [one for one in errors[self._everybody].tolist() if one == one]
        if not said:
            return own
        among: float = max(said) - self._choices - self._combination.population
        return max(0.0 if own != own else own, among, 0.0)

    def _statistics(self, errors: Float) -> list[float]:
        """Twin of `Combination.own` (twice) and of the statistic of each model."""
        known = errors == errors
        nats = np.where(known, errors, 0.0)
        np.minimum(nats, 1e30, out=nats)
        loudest = nats.max(initial=0.0)
        if loudest > FAR:
            far = nats > FAR
            nats[far] = FAR + np.log1p(nats[far] - FAR)
        beyond = nats - SOFT_THRESHOLD
        np.maximum(beyond, 0.0, out=beyond)
        nats *= GENTLE
        beyond += nats
        found: list[float] = (beyond @ self._weights).tolist()
        if found[0] == 0.0 and not known[self._mine].any():
            found[:2] = [math.nan, math.nan]
        return found

    def pace(self, events: int, age: float) -> float:
        """Twin of `Scorer.paced`: of an entity with so many events, the present one included, and so old in seconds."""
        longest = max(self._combination.scales, default=0.0)
        return events * (longest / (age + longest / 2)) if longest else 0.0

    def _calibrated(self, total: float, life: tuple[float, float]) -> float:
        """Twin of `Scorer._calibrated`."""
        log_p = self._all(total)
        at, beside = (bisect_right(edges, one) for edges, one in zip(self._edges, life, strict=True))
        group = at * GROUPS + beside
        if group in self._groups:
            tail, mine, rest = self._groups[group]
            log_p = _log_add(mine + tail(total), rest + log_p)
        return min(log_p, 0.0) if log_p == log_p else log_p


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b)."""
    high, low = (a, b) if a > b else (b, a)
    return high + math.log1p(math.exp(low - high))
