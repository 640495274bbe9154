"""The scorers of a comparison: the rules, the unsupervised detector, labelled models of single events, the heads.

All score the same events. Only the last two kinds read labels, and those of the training events alone.

Letters used in shapes: N events, n scored ones.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.comparison_measures import UNSUPERVISED, Scored
from anomaly.comparison_world import Judged, Mask, World
from anomaly.detector import Detector
from anomaly.digest import money_field
from anomaly.evaluation import rule_amount, rule_ratio
from anomaly.ingest import Events
from anomaly.models.baselines import BASELINES, Isolation
from anomaly.models.classifier import Classifier
from anomaly.schema import Schema
from anomaly.scorer import LN_10
from anomaly.sequences import Sequences
from anomaly.views import Views

Float = NDArray[np.float64]

RULES = ("amount", "ratio")
UNLABELLED = (*RULES, Isolation.name, UNSUPERVISED)  # what needs no label
HEADS = ("head", "head_pretrained")
NEVER = -1.0  # stands for the days since a fraud that never was, where a model takes no missing number


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """How the scorers are made; see `anomaly.comparison.Comparison`."""

    schema: Schema
    hidden: int
    epochs: int | None
    seed: int

    def unsupervised(
        self, read: Events, fraud: Mask, masks: tuple[Mask, Mask, Mask], until: float, delay: float
    ) -> tuple[World, Detector, Scored]:
        """Fit the detector on what was before `until`, without a label, and tell what it says of all N events.

        The detector that comes back is that of the first view, whose memory a head may start from.
        """
        started = time.perf_counter()
        make = Views if len(self.schema.entity) > 1 else Detector
        whole = make(self.schema, hidden=self.hidden, epochs=self.epochs, seed=self.seed)
        whole.fit(read, until=until, progress=False)
        fitted = time.perf_counter()
        detector = whole.detectors[0]
        sequences = detector.encoder_.transform(read.frame)
        encoded = time.perf_counter()
        judged = judge(detector, sequences)
        if len(whole.detectors) > 1:
            judged = replace(judged, surprise=together(whole, read))
        seconds = {
            "detector": fitted - started,
            "encode": encoded - fitted,
            "judge": time.perf_counter() - encoded,
        }
        field = money_field(self.schema)
        money = None if field is None else read.frame[f"n:{field}"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        scored, train, valid = masks
        world = World(read.frame, sequences, fraud, scored, train, valid, delay, judged, seconds, money)
        found = Scored(judged.surprise[scored], seconds["detector"], world.spent(scored, "encode", "judge"))
        return world, detector, found

    def rules(self, world: World) -> dict[str, Scored]:
        """The amount, and how it compares with the entity's median; nothing where the schema names no money."""
        money = money_field(self.schema)
        if money is None:
            return {}
        amount = world.frame[f"n:{money}"].fill_null(0.0).to_numpy()
        began = time.perf_counter()
        ratio = rule_ratio(world.sequences.sequence, amount, world.time)
        seconds = time.perf_counter() - began
        return {
            "amount": Scored(rule_amount(amount)[world.scored], 0.0, 0.0),
            "ratio": Scored(ratio[world.scored], 0.0, seconds * float(world.scored.mean())),
        }

    def isolation(self, world: World) -> Scored:
        """An isolation forest of the causal features of all events before the scored ones; it reads no label."""
        features = _columns(world)
        history = world.time < world.time[world.scored].min()
        began = time.perf_counter()
        model = Isolation().fit(features[history], seed=self.seed)
        fitted = time.perf_counter()
        score = model.score(features[world.scored])
        done = time.perf_counter()
        fit_seconds = fitted - began + world.spent(history, "encode")
        return Scored(score, fit_seconds, done - fitted + world.spent(world.scored, "encode"))

    def baseline(self, name: str, world: World) -> Scored:
        """A labelled model of the causal features, each event a row."""
        needs = ("encode", "risk")
        features = np.column_stack([_columns(world), np.nan_to_num(world.risk, nan=NEVER)])
        learns = world.train | world.valid
        began = time.perf_counter()
        model = BASELINES[name]().fit(features[learns], world.fraud[learns], seed=self.seed)
        fitted = time.perf_counter()
        probability = model.predict_proba(features[world.scored])
        done = time.perf_counter()
        fit_seconds = fitted - began + world.spent(learns, *needs)
        return Scored(probability, fit_seconds, done - fitted + world.spent(world.scored, *needs), probability)

    def head(self, name: str, world: World, detector: Detector) -> Scored:
        """The recurrent head: from scratch, or from the forecaster's memory and with what the detector says.

        What the detector says is the prior of the second one: before any label it ranks as the detector does, and it
        learns from labels what to add.
        """
        pretrained = name == "head_pretrained"
        needs = ("encode", "risk", "judge") if pretrained else ("encode", "risk")
        extra, prior = world.risk, None
        if pretrained:
            extra, prior = np.column_stack([extra, world.judged.inputs]), world.judged.surprise
        began = time.perf_counter()
        model = Classifier(
            hidden=self.hidden,
            epochs=self.epochs,
            seed=self.seed,
            pretrained=detector.models_[-1] if pretrained else None,
            freeze=pretrained,
            refit=True,
        )
        columns = (detector.encoder_.numeric, detector.encoder_.category)
        model.fit(
            world.sequences,
            *columns,
            world.fraud,
            train=world.train,
            valid=world.valid,
            extra=extra,
            prior=prior,
        )
        fitted = time.perf_counter()
        probability = model.predict_proba(world.sequences, extra, world.scored, prior)[world.scored]
        done = time.perf_counter()
        fit_seconds = fitted - began + world.spent(world.train | world.valid, *needs)
        fit_seconds += world.seconds["detector"] if pretrained else 0.0
        return Scored(probability, fit_seconds, done - fitted + world.spent(world.scored, *needs), probability)


def _columns(world: World) -> Float:
    """The causal features as a matrix (N, K): numbers, 0 where missing, and codes of categories."""
    sequences = world.sequences
    return np.nan_to_num(np.column_stack([sequences.numeric, sequences.category]).astype(np.float64))


def judge(detector: Detector, sequences: Sequences) -> Judged:
    """What a detector of one view says of N events; its surprise is 0 where it says nothing."""
    errors = detector.errors(sequences)
    judged = detector.scorer_.judge(errors, sequences)
    fields = errors[detector.models_[-1].name].astype(np.float64)
    return Judged(np.nan_to_num(-judged.log_p, nan=0.0), judged.evidence, fields)


def together(views: Detector, read: Events) -> Float:
    """-ln p of all views together, (N,) in the order of the canonical frame; 0 where they say nothing."""
    scores = views.score(read)
    found = np.zeros(read.n_input)
    found[scores["row"].to_numpy()] = LN_10 * scores["surprise"].fill_null(0.0).fill_nan(0.0).to_numpy()
    return np.asarray(found[read.frame["row"].to_numpy()])
