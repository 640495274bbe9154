"""Single: the scoring of one event at a time, compiled.

What `scorer`, `evidence`, `population` and `calibration` say of many events at once, said of one, for a stream: there
arrays of one number cost ten times what they compute. Each part names its twin, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import TailCalibrator
from anomaly.compiling import Held, compiled, holder, part
from anomaly.evidence import FAR, GENTLE, LOUDEST, SOFT_THRESHOLD
from anomaly.features import judged_twice
from anomaly.population import Population
from anomaly.scorer import GROUP_PSEUDO_EVENTS, GROUPS, MURMUR, POPULATION, Scorer, models

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int = NDArray[np.int64]
OWN, FRESH, ALL, FIRST_MODEL = 0, 1, 2, 3  # places of calibrators among the `Tails` of a scorer


class Tails(NamedTuple):
    """Calibrators, their kept values one after the other; see `TailCalibrator`.

    first : (T + 1,), where those of each begin; law : (T, 5), each tail's shape and scale, the log of p where it
    begins, and where a tail of negative shape bends and the scale from there on.
    """

    values: Float
    at: Float
    level: Float
    first: Int
    law: Float

    @classmethod
    def of(cls, calibrators: Sequence[TailCalibrator]) -> Tails:
        """Of some."""
        law = [
            (one.shape_, one.scale_, math.log(one.levels()[-1]), *(one.bend() if one.shape_ < 0 else (0.0, 1.0)))
            for one in calibrators
        ]
        empty = [np.empty(0)]
        return cls(
            np.concatenate([one.values_ for one in calibrators] or empty),
            np.concatenate([one.at_ for one in calibrators] or empty),
            np.concatenate([one.levels() for one in calibrators] or empty),
            np.cumsum([0, *(one.values_.size for one in calibrators)]),
            np.array(law, dtype=np.float64).reshape(len(law), 5),
        )


class Crowd(NamedTuple):
    """What is known of everybody's numbers.

    sides : (n, 3), for each calibrator the field that it speaks for, the column that it reads, and the sign of what is
    strange; numeric : (F,), the event's numbers; errors : (P,), takes -ln of each field's tail probability.
    """

    sides: Int
    numeric: Float32
    errors: Float32


class SinglePopulation:
    """How rare the named numbers of one event are among everybody's; twin of `Population.errors`."""

    def __init__(self, population: Population) -> None:
        self.columns = tuple((population.name, column.name) for column in population.fields)
        pairs = zip(population.index, population.signs, strict=True)
        asked = [(field, at, sign) for field, (at, signs) in enumerate(pairs) for sign in signs]
        sides = [(*one, tail) for one, tail in zip(asked, population.tails_, strict=True) if tail is not None]
        self._sides = np.array([one[:3] for one in sides], dtype=np.int64).reshape(len(sides), 3)
        self._tails = Tails.of([tail for *_, tail in sides])

    def sit_down(self, numeric: Float32, errors: Float32) -> None:
        """Read these numbers (F,) and write these errors (P,) from now on."""
        self._held = _hold_crowd((*self._tails, *Crowd(self._sides, numeric, errors)))

    def judge(self) -> None:
        """Write -ln of the tail probability of each field, >= 0; NaN = no statement."""
        _judge_among_everybody(self._held)


class Weighing(NamedTuple):
    """What a scorer has learned and what its combination says, as plain numbers.

    weights : (K, 2 + models), what each field counts in `Combination.own`, in the same for evidence, in its model;
    other, second : (K,), the field that judges the same number, -1 = none, and is it the second of the two;
    everybody : (K,), is it a field of the population; dependence, scales : (W,); edges : (2, GROUPS - 1); group :
    (GROUPS ** 2,), the calibrator of each group, -1 = none; share : (GROUPS ** 2, 2), logs of what the group and the
    population are worth.
    """

    weights: Float
    other: Int
    second: NDArray[np.bool_]
    everybody: NDArray[np.bool_]
    dependence: Float
    edges: Float
    group: Int
    share: Float
    longest: float
    population: float
    evidence: float
    ceiling: float
    murmur: float
    soft_threshold: float
    gentle: float
    far: float
    loudest: float


class Judging(NamedTuple):
    """What a judgement reads, see `SingleScorer.sit_down`, and where it is written."""

    errors: Float32
    sums: Float
    number: Int
    found: Float


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
        found = scorer.calibrators_
        self.models = [name for name in scorer.fields if name in found]
        groups = [name for name in found if name.startswith("group.")]
        self._tails = Tails.of([found[name] for name in ("own", "fresh", "all", *self.models, *groups)])
        group, share = np.full(GROUPS**2, -1, dtype=np.int64), np.zeros((GROUPS**2, 2))
        for at, name in enumerate(groups, start=FIRST_MODEL + len(self.models)):
            number, worth = int(name.removeprefix("group.")), found[name].n_ / (found[name].n_ + GROUP_PSEUDO_EVENTS)
            group[number], share[number] = at, (math.log(worth), math.log1p(-worth))
        combination = scorer.combination
        self._weighing = Weighing(
            self._weights(scorer, columns),
            *self._judged_twice(scorer, columns),
            np.array([model == POPULATION for model, _ in columns], dtype=np.bool_),
            np.array(scorer.dependence_, dtype=np.float64),
            np.array(scorer.edges_, dtype=np.float64),
            group,
            share,
            longest=float(max(combination.scales, default=0.0)),
            population=float(combination.population),
            evidence=float(combination.evidence),
            ceiling=float(combination.ceiling),
            murmur=MURMUR,
            soft_threshold=SOFT_THRESHOLD,
            gentle=GENTLE,
            far=FAR,
            loudest=LOUDEST,
        )

    def _weights(self, scorer: Scorer, columns: Sequence[tuple[str, str]]) -> Float:
        """What each field counts; see `Weighing`."""
        found = np.zeros((len(columns), 2 + len(self.models)))
        for name, fields in models(scorer.fields).items():
            at = [columns.index((name, column.name)) for column in fields]
            weights, model = scorer.combination.field_weights(fields), scorer.combination.model_weight(name)
            fresh = np.where([column.cumulative for column in fields], 0.0, weights)
            found[at, 0], found[at, 1] = model * weights, model * fresh
            if name in self.models:
                found[at, 2 + self.models.index(name)] = weights
        return found

    def _judged_twice(self, scorer: Scorer, columns: Sequence[tuple[str, str]]) -> tuple[Int, NDArray[np.bool_]]:
        """See `Weighing`."""
        other, second = np.full(len(columns), -1, dtype=np.int64), np.zeros(len(columns), dtype=np.bool_)
        for name, fields in models(scorer.fields).items():
            at = np.array([columns.index((name, column.name)) for column in fields], dtype=np.int64)
            one, two = at[judged_twice(fields)].T
            other[one], other[two], second[two] = two, one, True
        return other, second

    def sit_down(self, errors: Float32, sums: Float, number: Int) -> None:
        """Read an event's errors (K,), and the sums and numbers of each window before it, (W,), from these arrays."""
        self._found = np.empty(3 + len(self.models))
        self._held = _hold_judging((*self._tails, *self._weighing, *Judging(errors, sums, number, self._found)))

    def judge(self, pace: float) -> Judged:
        """Judge an event of an entity of this pace."""
        _judge(self._held, pace)
        log_p, evidence, counted, *alone = self._found.tolist()
        return Judged(dict(zip(self.models, alone, strict=True)), log_p, evidence, counted)

    def pace(self, events: int, age: float) -> float:
        """Twin of `Scorer.pace_of`: of an entity with so many events, this one included, so old in seconds."""
        longest = self._weighing.longest
        return events * (longest / (age + longest / 2)) if longest else 0.0


# --- compiled ---------------------------------------------------------------------------------------------------------


HeldCrowd = holder("HeldCrowd", __name__, Tails, Crowd)
HeldJudging = holder("HeldJudging", __name__, Tails, Weighing, Judging)


@compiled
def _hold_crowd(fields: tuple[Any, ...]) -> Held:
    return HeldCrowd(*fields)


@compiled
def _hold_judging(fields: tuple[Any, ...]) -> Held:
    return HeldJudging(*fields)


@part
def _search(values: Float, first: int, last: int, x: float) -> int:
    """Index of the first of the rising values from `first` to `last` that is at least x, else `last`."""
    while first < last:
        middle = (first + last) // 2
        if values[middle] < x:
            first = middle + 1
        else:
            last = middle
    return first


@part
def tail_log_p(tails: Tails | Held, which: int, x: float) -> float:
    """Natural log of the p-value of a number, NaN stays NaN; twin of `TailCalibrator.log_p`."""
    first, last = tails.first[which], tails.first[which + 1] - 1
    if not x <= tails.values[last]:
        return _log_tail(tails.law[which], x - tails.values[last])
    if x < tails.values[first]:
        return 0.0
    right = _search(tails.values, first, last, x)
    p = tails.at[right]
    if right > first and x < tails.values[right] and tails.level[right - 1] > p:
        below, above, upper = tails.values[right - 1], tails.values[right], tails.level[right - 1]
        p = max(upper - (x - below) / (above - below) * (upper - p), p)
    return math.log(p)


@part
def _log_tail(law: Float, excess: float) -> float:
    """Natural log of p so far beyond the threshold; twin of `TailCalibrator._log_tail`."""
    shape, scale, level = float(law[0]), float(law[1]), float(law[2])
    bend, beyond = float(law[3]), float(law[4])
    if shape == 0.0:
        return level - excess / scale
    if shape > 0.0:
        return level - math.log1p(shape * (excess / scale)) / shape
    near = math.log1p(shape * min(excess, bend) / scale) / shape
    return level - near - max(excess - bend, 0.0) / beyond


@compiled
def _judge_among_everybody(held: Held) -> None:
    """`SinglePopulation.judge`."""
    sides, numeric, errors = held.sides, held.numeric, held.errors
    log_p, counted = np.zeros(len(errors)), np.zeros(len(errors))
    for at in range(len(sides)):
        field = sides[at, 0]
        one = tail_log_p(held, at, sides[at, 2] * float(numeric[sides[at, 1]]))
        log_p[field] = one if counted[field] == 0.0 or np.isnan(one) else min(one, log_p[field])
        counted[field] += 1.0
    for field in range(len(errors)):
        nats = -log_p[field] - (counted[field] - 1.0) * math.log(2.0)  # both tails: twice the smaller probability
        errors[field] = np.nan if counted[field] == 0.0 or np.isnan(nats) else max(nats, 0.0)


@part
def log_gamma_tail(shape: float, x: float) -> float:
    """Natural log of Q(shape, x), the share of a Gamma law of that shape, at least 1, beyond x.

    By the series of its complement up to about the mean, and by the continued fraction beyond (Lentz's method), as in
    Press et al., Numerical Recipes, 6.2.
    """
    if x <= 0.0:
        return 0.0
    front = shape * math.log(x) - x - math.lgamma(shape)
    if x < shape + 1.0:
        term = total = 1.0 / shape
        above = shape
        while term > total * 1e-17:
            above += 1.0
            term *= x / above
            total += term
        return math.log1p(-min(total * math.exp(front), 1.0))
    tiny, b = 1e-300, x + 1.0 - shape
    c, d = 1.0 / tiny, 1.0 / b
    found, step, change = d, 0.0, 0.0
    while abs(change - 1.0) > 1e-15 and step < 10_000.0:
        step += 1.0
        a = -step * (step - shape)
        b += 2.0
        d = a * d + b
        c = b + a / c
        d = 1.0 / (d if abs(d) > tiny else tiny)
        c = c if abs(c) > tiny else tiny
        change = d * c
        found *= change
    return front + math.log(found)


@part
def window_nats(number: int, total: float, dependence: float) -> float:
    """Nats that speak against one window; twin of `evidence.window_evidence`."""
    if number == 0:
        return 0.0
    widened = min(dependence, float(number))
    shape, scaled = number / widened, max(total, 0.0) / widened
    nats = -log_gamma_tail(shape, scaled)
    if nats < 290.0 * math.log(10.0):
        return nats
    return scaled - (shape - 1.0) * math.log(max(scaled, 1e-9)) + math.lgamma(shape)


@part
def _known(weighing: Weighing, error: float) -> float:
    """A surprise as far as a model knows its own tail; NaN is 0."""
    if np.isnan(error):
        return 0.0
    nats = min(error, 1e30)
    return nats if nats <= weighing.far else weighing.far + math.log1p(nats - weighing.far)


@part
def _field_nats(weighing: Weighing, errors: Float32, at: int) -> float:
    """What a field says before it is weighed; twin of `evidence.field_nats`."""
    nats, other = _known(weighing, float(errors[at])), weighing.other[at]
    if other >= 0:
        beside = _known(weighing, float(errors[other]))
        if beside > nats or (beside == nats and weighing.second[at]):
            return 0.0
    return max(nats - weighing.soft_threshold, 0.0) + weighing.gentle * nats


@part
def _statistics(weighing: Weighing, errors: Float32) -> Float:
    """Twin of `Combination.own` (twice), and of the statistic of each model."""
    found, known = np.zeros(weighing.weights.shape[1]), False
    for at in range(len(errors)):
        nats = _field_nats(weighing, errors, at)
        known = known or not (weighing.everybody[at] or np.isnan(errors[at]))
        for column in range(len(found)):
            found[column] += nats * weighing.weights[at, column]
    if not known:
        found[0] = found[1] = np.nan
    return found


@part
def _either(weighing: Weighing, own: float, errors: Float32) -> float:
    """Twin of `Combination.either` and of `scorer.everybody`."""
    among, choices = -np.inf, 0
    for at in range(len(errors)):
        if weighing.everybody[at]:
            choices += 1
            among = among if np.isnan(errors[at]) else max(among, float(errors[at]))
    if among == -np.inf:
        return own if np.isnan(own) else max(own, 0.0)
    among -= math.log(choices) + weighing.population
    return max(among, 0.0) if np.isnan(own) else max(own, among, 0.0)


@part
def _total(weighing: Weighing, surprise: float, heard: float) -> float:
    """Twin of `Combination.total`; `heard` is what the past says beyond murmurs, summed over the scales."""
    if weighing.ceiling == 0.0:
        return surprise
    return surprise - weighing.ceiling * math.expm1(-weighing.evidence * heard / weighing.ceiling)


@part
def _calibrated(held: Held, total: float, pace: float, busy: float) -> float:
    """Twin of `Scorer._calibrated`."""
    log_p = tail_log_p(held, ALL, total)
    groups, group = held.edges.shape[1] + 1, 0
    for edge in range(groups - 1):
        group += groups * (held.edges[0, edge] <= pace) + (held.edges[1, edge] <= busy)
    if held.group[group] >= 0:
        mine = held.share[group, 0] + tail_log_p(held, held.group[group], total)
        rest = held.share[group, 1] + log_p
        high = max(mine, rest)
        log_p = high + math.log1p(math.exp(min(mine, rest) - high))
    return log_p if np.isnan(log_p) else min(log_p, 0.0)


@compiled
def _judge(held: Held, pace: float) -> None:
    """Put the log of p, the evidence, what counts of it later, and the log of p of each model into `found`."""
    found, number, statistics = held.found, held.number, _statistics(held, held.errors)
    for at in range(2, len(statistics)):
        found[1 + at] = tail_log_p(held, FIRST_MODEL + at - 2, statistics[at])
    loudest, heard, latest = 0.0, 0.0, 0.0
    for at in range(len(number)):
        nats = window_nats(number[at], held.sums[at], held.dependence[at])
        loudest, latest = max(loudest, nats), float(number[at])
        heard += max(nats - held.murmur, 0.0)
    own = _either(held, -tail_log_p(held, OWN, statistics[0]), held.errors)
    counted = -tail_log_p(held, FRESH, statistics[1])
    found[0] = _calibrated(held, _total(held, own, heard), pace, (latest + 1.0) / (pace + 1.0))
    found[1] = loudest
    found[2] = 0.0 if np.isnan(counted) else min(counted, held.loudest)
