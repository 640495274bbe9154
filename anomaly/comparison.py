"""Comparison: what would labels add? Rules, the unsupervised detector and labelled models, on the same events.

One split in time for all: labelled models learn from what was known when the scored time began, that is from events
older than the label delay; the unsupervised detector learns from the whole history, and reads no label. All are then
measured on the same later events, with intervals over entities.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.bootstrap import paired_bootstrap
from anomaly.detector import Detector
from anomaly.digest import money_field
from anomaly.errors import InputError, PackageError, ParameterError
from anomaly.evaluation import (
    average_precision,
    brier,
    card_precision_at_k,
    daily,
    detection_delay,
    expected_calibration_error,
    money_saved,
    precision_at_budget,
    recall_at_budget,
    recall_at_false_alerts,
    roc_auc,
    rule_amount,
    rule_ratio,
)
from anomaly.files import json_value, whole_file
from anomaly.history import When, as_events, as_seconds
from anomaly.ingest import Events, read_labels, write_table
from anomaly.labels import known_at, known_fraud
from anomaly.models.baselines import BASELINES
from anomaly.models.classifier import Classifier
from anomaly.schema import Schema, check_columns
from anomaly.sequences import Sequences
from anomaly.sources import collect, open_parts

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

DAY = 86_400.0
RISK_DAYS = (1.0, 7.0, 30.0)  # windows of known past fraud
HISTORY_SHARE = 2 / 3  # of the time, where no `since` is given
VALID_SHARE = 0.2  # of the labelled time, its end: says when to stop, and calibrates probabilities
UNSUPERVISED = "unsupervised"
HEADS = ("head", "head_pretrained")


@dataclass(frozen=True)
class World:
    """The events of a comparison, encoded, and what is known of them; N events in the order of `frame`.

    Attributes
    ----------
    frame : polars.DataFrame
        Canonical events.
    sequences : Sequences
        The same, encoded.
    fraud : ndarray of bool, shape (N,)
        The truth.
    scored, train, valid : ndarray of bool, shape (N,)
        Events that are scored; whose labels train; whose labels say when to stop.
    delay : float
        Seconds until a label is known.
    surprise : ndarray, shape (N, 2)
        What the unsupervised detector says: -ln p of each event, and the evidence of its recent past.
    """

    frame: pl.DataFrame
    sequences: Sequences
    fraud: Mask
    scored: Mask
    train: Mask
    valid: Mask
    delay: float
    surprise: Float

    @property
    def time(self) -> Float:
        """Seconds of all events, (N,)."""
        return self.sequences.time

    def with_known(self, frauds: int, seed: int) -> World:
        """The same world where just so many of the labelled frauds were ever found; the rest is taken for genuine."""
        draw = np.random.default_rng(seed)
        found = np.zeros(len(self.fraud), dtype=bool)
        for mask, share in ((self.valid, VALID_SHARE), (self.train, 1 - VALID_SHARE)):
            those = draw.permutation(np.flatnonzero(mask & self.fraud))
            found[those[: max(1, round(frauds * share))]] = True
        return replace(self, fraud=found)

    @cached_property
    def risk(self) -> Float:
        """Past fraud by entity and by each category, as labels of age `delay` tell it: (N, views * 2 * windows)."""
        views = [self.frame[name] for name in self.frame.columns if name == "entity" or name.startswith("c:")]
        windows = [days * DAY for days in RISK_DAYS]
        parts = []
        for view in views:
            key = view.fill_null("").rank("dense").to_numpy().astype(np.int64)
            parts.append(known_fraud(key, self.time, self.fraud, delay=self.delay, windows=windows))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Scored:
    """What one scorer said of the n scored events: higher = stranger; probabilities where it has any."""

    score: Float
    fit_seconds: float
    score_seconds: float
    probability: Float | None = None


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes
    ----------
    table : polars.DataFrame
        One row per scorer: ``scorer``, ``labels`` (does it need them), and its metrics (see `anomaly.evaluation`),
        ``ap_low`` and ``ap_high`` among them.
    curve : polars.DataFrame
        ``known`` (frauds whose label was there), ``scorer``, ``ap``, ``low``, ``high``.
    beats : dict
        Share of the resamples in which one scorer's average precision is above another's.
    facts : dict
        Sizes of the split.
    sentence : str
        What labels would buy.
    """

    table: pl.DataFrame
    curve: pl.DataFrame
    beats: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, Any]
    sentence: str


@dataclass(kw_only=True)
class Comparison:
    """Compares what finds fraud without labels with what finds it with them.

    Parameters
    ----------
    schema : Schema
        Which column is what.
    since : str, date, datetime or seconds, optional
        Events from then on are scored; by default the last third of the time.
    label_delay_days : float
        Days until it is known whether an event was fraud. Labels younger than that at `since` train nothing, and past
        fraud counts as a feature only from that age on.
    budget_per_day : int
        Events that a desk looks into each day.
    known : sequence of int
        Numbers of known frauds of the label-efficiency curve.
    repeats : int
        Resamples of the entities behind each interval.
    hidden, epochs, seed :
        Of all models.
    say : callable, optional
        Is told what is being done.

    Examples
    --------
    What labels would add to the payments of `simulate`::

        events, labels = simulate()
        compared = Comparison(schema=SIMULATED_SCHEMA).run(events, labels["fraud"])
        print(compared.sentence)
    """

    schema: Schema
    since: When = None
    label_delay_days: float = 7.0
    budget_per_day: int = 50
    known: Sequence[int] = (10, 30, 100, 300)
    repeats: int = 500
    hidden: int = 64
    epochs: int | None = None
    seed: int = 0
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def run(self, events: Any, labels: Any) -> Compared:
        """Fit and measure all.

        Parameters
        ----------
        events : path, frame or Events
            Whole histories.
        labels : array-like of bool, shape (rows of the input,), or frame with the event id and one further column
            Which events are fraud. Null or NaN = unknown, which counts as genuine.

        Raises
        ------
        InputError
            If no fraud is among the labelled events or among the scored ones, or the labels do not fit the events.
        """
        if not 0 < self.label_delay_days < math.inf:
            raise ParameterError(
                f"compare: label_delay_days must be above 0, got {self.label_delay_days}; a label that is known at "
                "once would be a feature of its own event"
            )
        read = as_events(events, self.schema)
        fraud = fraud_of(read, labels)
        self.say("unsupervised: fitting on the history")
        world, detector, found = self._unsupervised(read, fraud)
        found = {**self._rules(world), **found}
        for name in BASELINES:
            self.say(f"{name}: fitting")
            try:
                found[name] = self._baseline(name, world)
            except PackageError as error:
                self.say(f"{name}: left out; {error}")
        found |= {name: self._head(name, world, detector) for name in HEADS}
        curve = self._curve(world, detector, found)
        return self._measured(world, found, curve)

    def _unsupervised(self, read: Events, fraud: Mask) -> tuple[World, Detector, dict[str, Scored]]:
        moments = read.frame["time"].to_numpy()
        first, last = float(moments.min()), float(moments.max())
        since = as_seconds(self.since)
        since = first + HISTORY_SHARE * (last - first) if since is None else since
        delay = self.label_delay_days * DAY
        known_until = since - delay
        begin_valid = known_until - VALID_SHARE * (known_until - first)
        scored, labelled = moments >= since, known_at(moments, fraud, delay, since)
        for what, mask in (("labelled", labelled & (moments < begin_valid)), ("scored", scored)):
            if not fraud[mask].any() or fraud[mask].all():
                raise InputError(
                    f"compare: {int(mask.sum()):,} {what} events hold {int(fraud[mask].sum())} frauds; both fraud and "
                    "genuine events are needed before and after `since`: choose another one, or a shorter label delay"
                )
        began = time.perf_counter()
        detector = Detector(self.schema, hidden=self.hidden, epochs=self.epochs, seed=self.seed)
        detector.fit(read, until=since, progress=False)
        fitted = time.perf_counter()
        sequences = detector.encoder_.transform(read.frame)
        judged = detector.scorer_.judge(detector.errors(sequences), sequences)
        surprise = np.nan_to_num(-judged.log_p, nan=0.0)
        done = time.perf_counter()
        valid = labelled & (moments >= begin_valid)
        if not fraud[valid].any():  # too few labels to set some aside
            valid = labelled & (np.arange(len(moments)) % 5 == 0)
        said = np.stack([surprise, judged.evidence], axis=1)
        world = World(read.frame, sequences, fraud, scored, labelled & ~valid, valid, delay, said)
        return world, detector, {UNSUPERVISED: Scored(surprise[scored], fitted - began, done - fitted)}

    def _rules(self, world: World) -> dict[str, Scored]:
        money = money_field(self.schema)
        if money is None:
            return {}
        amount = world.frame[f"n:{money}"].fill_null(0.0).to_numpy()
        began = time.perf_counter()
        ratio = rule_ratio(world.sequences.sequence, amount, world.time)
        seconds = time.perf_counter() - began
        return {
            "amount": Scored(rule_amount(amount)[world.scored], 0.0, 0.0),
            "ratio": Scored(ratio[world.scored], 0.0, seconds),
        }

    def _baseline(self, name: str, world: World) -> Scored:
        """A labelled model of the causal features, each event a row."""
        sequences = world.sequences
        features = np.nan_to_num(
            np.concatenate([sequences.numeric, sequences.category, world.risk], axis=1, dtype=np.float64)
        )
        learns = world.train | world.valid
        began = time.perf_counter()
        model = BASELINES[name]().fit(features[learns], world.fraud[learns], seed=self.seed)
        fitted = time.perf_counter()
        probability = model.predict_proba(features[world.scored])
        return Scored(probability, fitted - began, time.perf_counter() - fitted, probability)

    def _head(self, name: str, world: World, detector: Detector) -> Scored:
        """The recurrent head, from scratch or from the forecaster's memory and with the unsupervised surprise."""
        self.say(f"{name}: fitting")
        pretrained = name == "head_pretrained"
        extra = world.risk
        if pretrained:
            extra = np.concatenate([extra, world.surprise], axis=1)
        began = time.perf_counter()
        model = Classifier(
            hidden=self.hidden,
            epochs=self.epochs,
            seed=self.seed,
            pretrained=detector.models_[-1] if pretrained else None,
        )
        encoder = detector.encoder_
        model.fit(
            world.sequences,
            encoder.numeric,
            encoder.category,
            world.fraud,
            train=world.train,
            valid=world.valid,
            extra=extra,
        )
        fitted = time.perf_counter()
        probability = model.predict_proba(world.sequences, extra=extra, mask=world.scored)[world.scored]
        return Scored(probability, fitted - began, time.perf_counter() - fitted, probability)

    def _curve(self, world: World, detector: Detector, found: Mapping[str, Scored]) -> pl.DataFrame:
        """Average precision by the number of known frauds: the label-efficiency curve."""
        truth, entity = world.fraud[world.scored], world.sequences.sequence[world.scored]
        everything = int((world.fraud & (world.train | world.valid)).sum())
        learners: dict[str, Callable[[World], Scored]] = {
            name: partial(self._baseline, name) for name in BASELINES if name in found
        }
        learners |= {name: partial(self._head, name, detector=detector) for name in HEADS}
        rows: list[dict[str, Any]] = []

        def measure(known: int, scorers: Mapping[str, Float]) -> None:
            drawn = paired_bootstrap(scorers, truth, entity, repeats=self.repeats, seed=self.seed)
            for name in scorers:
                interval = {"low": drawn.low[name], "high": drawn.high[name]}
                rows.append({"known": known, "scorer": name, "ap": drawn.value[name], **interval})

        measure(0, {UNSUPERVISED: found[UNSUPERVISED].score})
        for frauds in (frauds for frauds in self.known if frauds < everything):
            self.say(f"with {frauds} known frauds")
            few = world.with_known(frauds, self.seed)
            measure(frauds, {name: learn(few).score for name, learn in learners.items()})
        measure(everything, {name: found[name].score for name in learners})
        return pl.DataFrame(rows)

    def _measured(self, world: World, found: Mapping[str, Scored], curve: pl.DataFrame) -> Compared:
        self.say("resampling the entities")
        truth, entity = world.fraud[world.scored], world.sequences.sequence[world.scored]
        scores = {name: one.score for name, one in found.items()}
        drawn = paired_bootstrap(scores, truth, entity, repeats=self.repeats, seed=self.seed)
        money = money_field(self.schema)
        amount = np.zeros(len(truth))
        if money is not None:
            amount = world.frame[f"n:{money}"].fill_null(0.0).clip(lower_bound=0.0).to_numpy()[world.scored]
        moments = world.time[world.scored]
        rows = []
        for name, one in found.items():
            measured = _metrics(one, moments, entity, amount, truth, self.budget_per_day)
            interval = {"ap_low": drawn.low[name], "ap_high": drawn.high[name]}
            rows.append({"scorer": name, "labels": name in (*BASELINES, *HEADS), **measured, **interval})
        table = pl.DataFrame(rows).sort("average_precision", descending=True, maintain_order=True)
        facts = {
            "events": len(world.fraud),
            "scored": int(world.scored.sum()),
            "scored_frauds": int(truth.sum()),
            "labelled": int((world.train | world.valid).sum()),
            "known_frauds": int((world.fraud & (world.train | world.valid)).sum()),
            "entities": len(world.sequences.entity),
            "since": float(moments.min()),
            "label_delay_days": self.label_delay_days,
            "budget_per_day": self.budget_per_day,
        }
        return Compared(table, curve, drawn.beats, facts, sentence(table, drawn.beats, facts))


def _metrics(
    one: Scored, moments: Float, entity: NDArray[np.int64], amount: Float, truth: Mask, budget: int
) -> dict[str, float | None]:
    """All that is measured of one scorer, by name."""
    score = one.score
    threshold = _threshold(moments, score, budget)
    delay = detection_delay(entity, moments, amount, score, truth, threshold)
    saved = money_saved(entity, moments, amount, score, truth, budget)
    return {
        "average_precision": average_precision(score, truth),
        "auc": roc_auc(score, truth),
        "precision_at_budget": precision_at_budget(moments, score, truth, budget),
        "recall_at_budget": recall_at_budget(moments, score, truth, budget),
        "card_precision_at_100": card_precision_at_k(daily(moments), entity, score, truth),
        "recall_at_0.1_percent": recall_at_false_alerts(score, truth, 0.001),
        "recall_at_1_percent": recall_at_false_alerts(score, truth, 0.01),
        "runs_detected": delay.detected,
        "delay_events": delay.events,
        "delay_hours": delay.hours,
        "delay_money": delay.lost,
        "money_saved": saved.money,
        "share_saved": saved.share,
        "brier": None if one.probability is None else brier(one.probability, truth),
        "calibration_error": None if one.probability is None else expected_calibration_error(one.probability, truth),
        "fit_seconds": one.fit_seconds,
        "score_seconds": one.score_seconds,
    }


def _threshold(moments: Float, score: Float, budget: int) -> float:
    """Score that lets through the budget on the mean day."""
    days = len(np.unique(daily(moments)))
    alerts = min(len(score), budget * days)
    return float(np.sort(score)[len(score) - alerts])


def fraud_of(read: Events, labels: Any) -> Mask:
    """Which events are fraud, (N,) in the order of the canonical frame; what nobody knows counts as genuine.

    Parameters
    ----------
    read : Events
        The events.
    labels : array-like of bool, shape (rows of the input,), or frame
        A frame has the event id under its name in the schema, and one column of labels.
    """
    if isinstance(labels, pl.DataFrame):
        name = read.schema.event_id
        rest = [column for column in labels.columns if column != name]
        if name is None or name not in labels.columns or len(rest) != 1:
            raise InputError(
                f"compare: labels need the event id ({name or 'none in the schema'}) and one column of labels, got "
                f"{', '.join(labels.columns)}"
            )
        told = labels.select(event_id=pl.col(name).cast(pl.String), fraud=pl.col(rest[0]).cast(pl.Boolean))
        twice = told["event_id"].filter(told["event_id"].is_duplicated())
        if len(twice):
            raise InputError(f"compare: the labels name the event {twice[0]!r} twice")
        joined = read.frame.join(told, on="event_id", how="left", maintain_order="left")["fraud"]
        if joined.null_count() == len(joined):
            raise InputError(f"compare: no label is of any of these events; is {name!r} the same in both tables?")
        return joined.fill_null(value=False).to_numpy()
    array = np.asarray(labels)
    if array.shape != (read.n_input,):
        raise InputError(f"compare: {read.n_input:,} rows were read, but the labels have shape {array.shape}")
    known = np.nan_to_num(array.astype(np.float64)) != 0
    return np.asarray(known[read.frame["row"].to_numpy()])


def read_label_table(path: Any, schema: Schema, column: str) -> pl.DataFrame:
    """Read a table of labels of its own: the event id of `schema`, and the labels (see `read_labels`) in `column`."""
    if schema.event_id is None:
        raise InputError("compare: labels in a table of their own need an event_id in the schema, to join by")
    only = Schema(time=schema.event_id, label=column)
    parts, _ = open_parts(path, None)
    names = []
    for part in parts:
        check_columns(only, part.columns, part.name)
        if column not in part.columns:
            raise InputError(
                f"compare: {part.name} has no column of labels {column!r}; columns there are: {', '.join(part.columns)}"
            )
        names.append(collect(part, lambda one: one.frame.select(pl.col(schema.event_id or "").cast(pl.String))))
    return pl.concat(names).with_columns(read_labels(path, only)["label"].alias(column))


def write_comparison(compared: Compared, folder: Path) -> list[Path]:
    """Write ``table.csv``, ``curve.csv`` and ``comparison.json`` into `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_table(compared.table, folder / "table.csv"), write_table(compared.curve, folder / "curve.csv")]
    found = {
        "sentence": compared.sentence,
        "facts": dict(compared.facts),
        "scorers": {row.pop("scorer"): row for row in compared.table.to_dicts()},
        "curve": compared.curve.to_dicts(),
        "beats": {name: dict(others) for name, others in compared.beats.items()},
    }
    target = folder / "comparison.json"
    with whole_file(target) as draft:
        draft.write_text(json.dumps(json_value(found), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return [*written, target]


def sentence(table: pl.DataFrame, beats: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]) -> str:
    """What labels would buy, in a sentence."""
    with_labels = table.filter("labels").row(0, named=True)
    without = table.filter(scorer=UNSUPERVISED).row(0, named=True)
    sure = beats[with_labels["scorer"]][UNSUPERVISED]
    return (
        f"With {facts['known_frauds']:,} known frauds, {with_labels['scorer']} finds "
        f"{with_labels['recall_at_budget']:.0%} of the frauds at {facts['budget_per_day']} alerts a day and stops "
        f"{with_labels['share_saved']:.0%} of their money; without any label the detector finds "
        f"{without['recall_at_budget']:.0%} and stops {without['share_saved']:.0%}. Labels win in average precision "
        f"({with_labels['average_precision']:.3f} against {without['average_precision']:.3f}) in {sure:.0%} of the "
        "resamples."
    )
