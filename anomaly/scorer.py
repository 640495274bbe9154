"""Scorer: what the models found strange about each event -> one calibrated p-value.

Three steps, the same for a table and for a stream:

1. *The event on its own*: the surprises of its fields, of all models, weighted and summed (`evidence.combine_fields`;
   of two that judge the same number the louder one counts), and calibrated on the held-out slice; or how rare its
   numbers are among everybody's, if that is rarer by far. The smaller of two p-values, of which one counts less, is a
   weighted Tippett test (1931).
2. *Its entity's recent past*: evidence at several time scales from what the events before it were on their own.
   Frauds come in runs. Columns that are sums over earlier events already do not count here: their surprises repeat
   themselves from event to event, in busy weeks as in frauds.
3. *Both together*, calibrated again among events of entities of the same pace, and as busy of late beside it, as far as
   there is enough of them: the population speaks for the rest (credibility; Bühlmann 1967).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.calibration import TailCalibrator, sum_log_p
from anomaly.evidence import (
    amid_strange_runs,
    combine_fields,
    field_nats,
    measure_dependence,
    recent_sums,
    surroundings,
    window_evidence,
)
from anomaly.features import OTHER_WEIGHT, Column, judged_twice
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
Errors = Mapping[str, NDArray[np.float32]]  # by model: -ln of each field's tail probability, (N, K)

LN_10 = float(np.log(10.0))
POPULATION = "population"  # among the models: what is rare among everybody
NEVER = 1e9  # nats: so much less counts what is never to count (infinity is no JSON number)
MURMUR = 2.0  # nats of evidence at each scale that say nothing: about 1 in 7 normal pasts is as strange
LEAST_LOG_P = -690.0  # exp of it is still a number above 0
BEYOND_DOUBT = 10.0  # nats; among normal events 1 in 22,000 has neighbours so strange
SUSPECT_SHARE = 0.03  # of the held-out events, those amid the strangest runs: they teach nothing about normal
GROUPS = 3  # of events by the pace of their entity, and as many by how busy it is of late beside that
GROUP_PSEUDO_EVENTS = 1000.0  # held-out events at which a group speaks for itself as loud as the population


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What counts how much: all that a rehearsal may choose (see `anomaly.rehearsal`).

    Attributes
    ----------
    other : float
        Weight of the fields beside the numbers that the schema names, which count 1. What is new to an entity counts
        more, in proportion (see `anomaly.features`).
    autoencoder : float
        Weight of the autoencoder beside the forecaster. It has seen the event that it judges, and ranks worse for it.
    population : float
        Nats by which what is rare among everybody (see `anomaly.population`) counts less than what is rare for the
        entity: to a customer who pays much, much is usual. `NEVER` = it does not count.
    evidence : float
        What the first nat of evidence from the recent past beyond `MURMUR` counts, at each scale, beside a nat of the
        event's own surprise.
    ceiling : float
        What the recent past can add at most, in nats. It tells that the entity is probably in a thief's hands, and no
        more than that: the odds of each event rise by a factor, however long the run was. 0 = the past is left out.
    scales : tuple of float
        Lengths of the windows in seconds, rising.
    """

    other: float = OTHER_WEIGHT
    autoencoder: float = 0.3
    population: float = 3.0
    evidence: float = 0.35
    ceiling: float = 4.0
    scales: tuple[float, ...] = ()

    def model_weight(self, name: str) -> float:
        """Weight of a model's statistic."""
        return self.autoencoder if name == "autoencoder" else 1.0

    def field_weights(self, columns: Sequence[Column]) -> Float:
        """Weights of a model's fields, (K,)."""
        weights = np.array([column.weight for column in columns])
        return np.where(weights == 1.0, 1.0, weights * (self.other / OTHER_WEIGHT))

    def own(self, errors: Errors, fields: Mapping[str, Sequence[Column]], *, fresh: bool = False) -> Float:
        """Statistic of each event on its own, (N,); higher = stranger, NaN = no model says anything.

        `fresh` leaves out the columns that sum up the events before: what is left can be added up over a run.
        """
        said = {}
        for name, columns in models(fields).items():
            weights = self.field_weights(columns)
            if fresh:
                weights = np.where([column.cumulative for column in columns], 0.0, weights)
            said[name] = combine_fields(errors[name], weights, judged_twice(columns))
        return self.together(said)

    def together(self, said: Mapping[str, Float]) -> Float:
        """Statistic of each event from that of each model, (N,) each; NaN = no model says anything."""
        parts = [self.model_weight(name) * one for name, one in said.items()]
        silent = reduce(np.logical_and, map(np.isnan, parts))
        total: Float = sum((_or_zero(one) for one in parts), np.zeros(len(silent)))
        return np.where(silent, np.nan, total)

    def terms(self, errors: Errors, fields: Mapping[str, Sequence[Column]]) -> dict[str, Float]:
        """What each field adds to the statistic `own`, (N, K) by model: >= 0, and their sum is the statistic."""
        return {
            name: self.model_weight(name)
            * self.field_weights(columns)
            * field_nats(errors[name], judged_twice(columns))
            for name, columns in models(fields).items()
        }

    def either(self, own: Float, everybody: Float) -> Float:
        """The event's surprise for its entity, or among everybody where that is larger; (N,) each, in nats."""
        silent = np.isnan(own) & np.isneginf(everybody)
        return np.where(silent, np.nan, np.maximum(np.fmax(own, everybody - self.population), 0.0))

    def heard(self, evidence: Float) -> Float:
        """What of the evidence at each scale, in nats, says something: what it exceeds `MURMUR` by; of any shape."""
        return np.asarray(np.maximum(evidence - MURMUR, 0.0))

    def total(self, surprise: Float, evidence: Float) -> Float:
        """The event's own surprise (N,) and what its recent past adds, both in nats; evidence at each scale (N, W)."""
        if not self.ceiling:
            return surprise
        past = self.evidence * sum((self.heard(one) for one in evidence.T), np.zeros(len(evidence)))
        return np.asarray(surprise - self.ceiling * np.expm1(-past / self.ceiling))


def models(fields: Mapping[str, Sequence[Column]]) -> dict[str, Sequence[Column]]:
    """The models among the names that say something, without the population."""
    return {name: columns for name, columns in fields.items() if name != POPULATION}


def everybody(errors: Errors) -> Float:
    """How rare the rarest number of each event is among everybody's, (N,) in nats; -inf = nothing is said."""
    said = errors.get(POPULATION)
    if said is None or not said.shape[1]:
        return np.full(len(next(iter(errors.values()))), -np.inf)
    loudest = np.where(np.isnan(said), -np.inf, said).max(axis=1)
    return np.asarray(loudest - np.log(said.shape[1]), dtype=np.float64)  # the smallest of P p-values (Bonferroni)


@dataclass(frozen=True)
class Judgement:
    """What is said of n events.

    Attributes
    ----------
    models : dict of str to ndarray, shape (n,)
        Natural logs of the p-values of each model alone.
    log_p : ndarray, shape (n,)
        Natural log of the p-value after all.
    evidence : ndarray, shape (n,)
        Nats that speak against the entity's recent past, at the scale where it is strangest.
    """

    models: dict[str, Float]
    log_p: Float
    evidence: Float


@dataclass(frozen=True)
class Past:
    """What N events said, before it is weighed.

    own : (N,) statistic of each event on its own; everybody : (N,) nats among everybody; fresh : (N,) nats that it adds
    to evidence; sums, number : (N, W) over the windows before it.
    """

    own: Float
    everybody: Float
    fresh: Float
    sums: Float
    number: Float


class Scorer:
    """Combines and calibrates; see the module.

    Parameters
    ----------
    fields : mapping of str to sequence of Column
        The K scored fields of each model, and of the population.
    combination : Combination
        The weights.
    """

    def __init__(self, fields: Mapping[str, Sequence[Column]], combination: Combination) -> None:
        self.fields = {name: tuple(columns) for name, columns in fields.items()}
        self.combination = combination
        self.calibrators_: dict[str, TailCalibrator] = {}

    def fit(self, errors: Errors, sequences: Sequences, held: NDArray[np.bool_]) -> Float:
        """Calibrate on the held-out events; return what was calibrated, (N,), NaN for all other events.

        The held-out slice holds fraud too, and p-values are about normal events. So events whose neighbours, before and
        after, are strange `BEYOND_DOUBT` are left out. The event itself has no say in that: a tail must not be cut off
        by its own length.

        Parameters
        ----------
        errors : mapping of str to ndarray, shape (N, K)
            NaN where an event was not judged; judged must be the held-out events and those in the longest window before
            them.
        sequences : Sequences
            The N events.
        held : ndarray of bool, shape (N,)
            Events that trained nothing.
        """
        _, normal, past = self.learn(errors, sequences, held)
        calibrators = self.calibrators_
        for name, columns in self.fields.items():
            for column, values in zip(columns, errors[name][normal].T, strict=True):
                if np.isfinite(values).any():
                    calibrators[f"{name}.{column.name}"] = TailCalibrator().fit(np.minimum(values, 1e6))
            if name != POPULATION:
                calibrators[name] = TailCalibrator().fit(_or_zero(self._said({name: errors[name][normal]}, name)))
        weighed, life = self.weigh(past, held), _life(past.number[held], self.pace(sequences)[held])
        usual = normal[held]
        self.edges_ = np.quantile(life[usual], np.arange(1, GROUPS) / GROUPS, axis=0).T
        calibrators["all"] = TailCalibrator().fit(weighed[usual])
        groups = self._group(life)
        for group in range(GROUPS**2):
            mine = usual & (groups == group)
            if mine.sum() >= GROUP_PSEUDO_EVENTS / 10:
                calibrators[f"group.{group}"] = TailCalibrator().fit(weighed[mine])
        self.held_log_p_ = self._calibrated(weighed, life)
        calibrated = np.full(len(sequences), np.nan)
        calibrated[normal] = weighed[usual]
        return calibrated

    def learn(
        self, errors: Errors, sequences: Sequences, held: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Past]:
        """Learn all but the last calibration, enough for `weigh`.

        Calibrated on all that was held out, the strangest events of a fraud-ridden slice would pass for its usual tail,
        and the run that they stand in would count for more than they do. So what is said of an event on its own is
        calibrated twice: the second time without the runs that the first time told.

        Parameters are those of `fit`. Returns which held-out events are usual and which are normal, (N,) bool each (see
        `suspects` and `fit`), and what was found of all.
        """
        own, fresh = (self.combination.own(errors, self.fields, fresh=fresh) for fresh in (False, True))
        said = own, everybody(errors), fresh
        _, past = self._learn(said, sequences, held, held)
        judged = np.where(held, past.fresh, np.nan)
        del past  # of all events, and another one is to come
        scales = self.combination.scales
        around = surroundings(sequences, judged, scales, self.dependence_, itself=False, among=held)
        normal = held.copy()
        normal[held] = around.max(axis=1, initial=0.0) <= BEYOND_DOUBT
        usual, past = self._learn(said, sequences, held, normal)
        return usual, normal, past

    def _learn(
        self,
        said: tuple[Float, Float, Float],
        sequences: Sequences,
        held: NDArray[np.bool_],
        normal: NDArray[np.bool_],
    ) -> tuple[NDArray[np.bool_], Past]:
        """One time of `learn`, calibrated on the held-out events that are `normal`; said : own, everybody, fresh."""
        own, _, fresh = said
        self.calibrators_ = {"own": TailCalibrator().fit(own[normal]), "fresh": TailCalibrator().fit(fresh[normal])}
        past = self._past(*said, sequences)
        usual = held & ~suspects(sequences, past.fresh, self.combination.scales, held)
        self.dependence_ = measure_dependence(past.sums[usual], past.number[usual])
        return usual, past

    def past(self, errors: Errors, sequences: Sequences) -> Past:
        """What `weigh` needs of N events."""
        own, fresh = (self.combination.own(errors, self.fields, fresh=fresh) for fresh in (False, True))
        return self._past(own, everybody(errors), fresh, sequences)

    def weigh(self, past: Past, chosen: NDArray[np.bool_]) -> Float:
        """Nats that speak against each event of `chosen`, (N,) bool, its past included; (n,)."""
        own = self.combination.either(-self.calibrators_["own"].log_p(past.own[chosen]), past.everybody[chosen])
        return self.combination.total(own, window_evidence(past.number[chosen], past.sums[chosen], self.dependence_))

    def judge(self, errors: Errors, sequences: Sequences, mask: NDArray[np.bool_] | None = None) -> Judgement:
        """Judge events of whole histories.

        Parameters
        ----------
        errors : mapping of str to ndarray, shape (N, K)
            Of the events to judge, and of those in the longest window before them.
        sequences : Sequences
            The N events.
        mask : ndarray of bool, shape (N,), optional
            The n events to judge; all by default.
        """
        sums, number = recent_sums(sequences, self.fresh(errors), self.combination.scales)
        if mask is None or mask.all():  # nothing to copy
            return self.judge_sums(errors, sums, number, self.pace(sequences))
        mine = {name: values[mask] for name, values in errors.items()}
        return self.judge_sums(mine, sums[mask], number[mask], self.pace(sequences)[mask])

    def judge_sums(self, errors: Errors, sums: Float, number: Float, pace: Float) -> Judgement:
        """Judge N events by what the models said of them, the sums (N, W) over the recent past, and the pace (N,)."""
        said = {name: self._said(errors, name) for name in models(self.fields)}
        alone = {name: self.calibrators_[name].log_p(_or_zero(one)) for name, one in said.items()}
        own = -self.calibrators_["own"].log_p(self.combination.together(said))
        surprise = self.combination.either(own, everybody(errors))
        evidence = window_evidence(number, sums, self.dependence_)
        loudest = reduce(np.maximum, evidence.T, np.zeros(len(evidence)))
        total = self.combination.total(surprise, evidence)
        return Judgement(alone, self._calibrated(total, _life(number, pace)), loudest)

    def past_alone(self, sums: Float, number: Float, pace: Float) -> Float:
        """Natural logs of the p-values of N events if nothing were strange about themselves, (N,); as `judge_sums`."""
        total = self.combination.total(np.zeros(len(sums)), window_evidence(number, sums, self.dependence_))
        return self._calibrated(total, _life(number, pace))

    def pace(self, sequences: Sequences) -> Float:
        """The pace of the entity at each event, (N,); see `pace_of`."""
        age = sequences.time - np.repeat(sequences.time[sequences.offsets[:-1]], sequences.lengths)
        return self.pace_of(sequences.position + 1, age)

    def pace_of(self, events: NDArray[np.int64], age: Float) -> Float:
        """How many events an entity has had, the present one included, for each stretch as long as the longest window.

        Half a window more than its age (n,) in seconds counts as its time, so that the first events tell little.
        """
        longest = max(self.combination.scales, default=0.0)
        return events * (longest / (age + longest / 2)) if longest else np.zeros(len(age))

    def alone(self, errors: Errors) -> Float:
        """Surprise of each event on its own, for its entity or among everybody, (N,) in nats."""
        return self.combination.either(self.own(errors), everybody(errors))

    def own(self, errors: Errors) -> Float:
        """-ln p of each event on its own, for its entity, (N,)."""
        return -self.calibrators_["own"].log_p(self.combination.own(errors, self.fields))

    def fresh(self, errors: Errors) -> Float:
        """-ln p of each event without the columns that sum up earlier ones, (N,): what adds up to evidence."""
        return -self.calibrators_["fresh"].log_p(self.combination.own(errors, self.fields, fresh=True))

    def field_surprise(self, errors: Errors) -> dict[str, Float]:
        """-log10 of each field's calibrated tail probability, (N,), mean over its models; NaN = no statement."""
        asked: dict[str, list[tuple[TailCalibrator | None, NDArray[np.float32]]]] = {}
        for model, columns in self.fields.items():
            for index, column in enumerate(columns):
                calibrator = self.calibrators_.get(f"{model}.{column.name}")
                asked.setdefault(column.name, []).append((calibrator, np.minimum(errors[model][:, index], 1e6)))
        found = {}
        for name, each in asked.items():
            calibrators = [calibrator for calibrator, _ in each if calibrator is not None]
            if len(calibrators) == len(each):
                found[name] = sum_log_p(calibrators, [values for _, values in each]) / (-LN_10 * len(each))
            else:
                found[name] = np.full(len(each[0][1]), np.nan)
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learned, by name."""
        found = {
            f"{name}|{key}": value for name, one in self.calibrators_.items() for key, value in one.arrays().items()
        }
        learned = {"dependence": self.dependence_, "edges": self.edges_}
        return found | {f"|{name}": value for name, value in learned.items()}

    @classmethod
    def restored(
        cls, fields: Mapping[str, Sequence[Column]], combination: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Scorer:
        """Bring back what `arrays` and `Combination` were."""
        scorer = cls(fields, Combination(**{**combination, "scales": tuple(combination["scales"])}))
        by_name: dict[str, dict[str, NDArray[Any]]] = {}
        for path, value in arrays.items():
            name, key = path.split("|")
            by_name.setdefault(name, {})[key] = value
        learned = by_name.pop("")
        scorer.calibrators_ = {name: TailCalibrator.from_arrays(parts) for name, parts in by_name.items()}
        scorer.dependence_, scorer.edges_ = learned["dependence"], learned["edges"]
        return scorer

    def settings(self) -> dict[str, Any]:
        """The combination as plain JSON values."""
        return asdict(self.combination)

    def _past(self, own: Float, everybody: Float, fresh: Float, sequences: Sequences) -> Past:
        nats = -self.calibrators_["fresh"].log_p(fresh)
        return Past(own, everybody, nats, *recent_sums(sequences, nats, self.combination.scales))

    def _said(self, errors: Errors, name: str) -> Float:
        """Statistic of one model, (N,); NaN = it says nothing."""
        columns = self.fields[name]
        return combine_fields(errors[name], self.combination.field_weights(columns), judged_twice(columns))

    def _group(self, life: Float) -> NDArray[np.int64]:
        pace, busy = (np.searchsorted(edges, one, side="right") for edges, one in zip(self.edges_, life.T, strict=True))
        return np.asarray(pace * GROUPS + busy)

    def _calibrated(self, total: Float, life: Float) -> Float:
        """Natural logs of the p-values of `total`: the group's and the population's, each by what it is worth."""
        log_p = self.calibrators_["all"].log_p(total)
        groups = self._group(life).astype(np.uint8)
        order = np.argsort(groups, kind="stable")
        borders = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=GROUPS**2))])
        mine, mixed = total[order], log_p[order]
        for group, (first, last) in enumerate(pairwise(borders)):
            one = self.calibrators_.get(f"group.{group}")
            if one is not None and first < last:
                share = one.n_ / (one.n_ + GROUP_PSEUDO_EVENTS)
                loud, rest = np.log(share) + one.log_p(mine[first:last]), np.log1p(-share) + mixed[first:last]
                mixed[first:last] = np.maximum(loud, rest) + np.log(1.0 + np.exp(-np.abs(loud - rest)))
        log_p[order] = mixed
        return np.asarray(np.minimum(log_p, 0.0))


def suspects(
    sequences: Sequences, surprise: Float, scales: Sequence[float], held: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The held-out events amid the strangest runs, (N,) bool: `SUSPECT_SHARE` of them.

    The held-out slice holds fraud too; where the level of normal events matters, as in a rehearsal, it is left out.
    """
    return amid_strange_runs(sequences, np.where(held, surprise, np.nan), scales, held, SUSPECT_SHARE)


def _or_zero(said: Float) -> Float:
    return np.where(np.isnan(said), 0.0, said)


def _life(number: Float, pace: Float) -> Float:
    """The entity's pace, and how busy it is of late beside that: by the events in the longest window; (N, 2)."""
    busy = number[:, -1] if number.shape[1] else np.zeros(len(number))
    return np.column_stack([pace, (busy + 1) / (pace + 1)])
