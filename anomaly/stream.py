"""Stream: one event in, one score out, with each entity's state carried.

Scores equal those of `Detector.score` on the same events: the same definitions, kept up event by event and compiled
(see `anomaly.entity_state`, `anomaly.models.program` and `anomaly.single`): one event costs little more than what it
computes. What is carried of an entity is bounded however long its history and however busy it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.artifacts import pack_text, read_artifact, unpack_text, write_artifact
from anomaly.compiling import announced
from anomaly.detector import Detector
from anomaly.entity_state import Rules, Workbench, last_time, pack_states, unpack_states, value_key
from anomaly.errors import ArtifactError, OrderError
from anomaly.features import (
    CIRCLES,
    EARTH_RADIUS_KM,
    FARTHEST,
    FIRST_CODE,
    LARGEST_AMOUNT,
    MISSING,
    MONDAY,
    NO,
    OWN_VALUES,
    SHORTEST_TRIP_SECONDS,
    UNSEEN,
    WINDOWS,
    YES,
)
from anomaly.ingest import ParsedEvent, parse_event
from anomaly.models.plain import PlainModels
from anomaly.models.program import Desk
from anomaly.recalibration import calibration_mark
from anomaly.score_table import YOUNG
from anomaly.scorer import LEAST_LOG_P, LN_10
from anomaly.single import SinglePopulation, SingleScorer
from anomaly.thresholds import Threshold
from anomaly.thresholds.base import StreamThreshold
from anomaly.values import text_value

NAN = math.nan
MICRO = 1_000_000  # a second


@dataclass(frozen=True, slots=True)
class _Said:
    """What a view says of an event: natural logs of p after all and by model, evidence in nats, and the status."""

    log_p: float
    models: dict[str, float]
    evidence: float
    status: str


class Stream:
    """Scores events as they come.

    Parameters
    ----------
    detector : Detector
        Fitted, of one view or of several. Every entity starts without a history; push its past events first if there
        are any, or `load` a stream that has seen them.
    rule : Threshold, optional
        A fitted decision rule, as `Detector.threshold` gives it: each score then says whether it is an ``alert``. Rules
        that learn (`OnlineFalseDiscoveryRate`, `PeaksOverThreshold`) learn from each event that is pushed.

    Notes
    -----
    What is computed of an event is compiled when the first stream is made on a machine, which takes about ten seconds,
    and loaded in half a second after that; see `anomaly.compiling`. One thread may push at a time.

    An entity costs two to three kB, and never more than the bounds in `anomaly.sequences` let it: of a burst of more
    than `MOST_WAITING` events inside the quarantine the oldest enter the memory early, windows count the last
    `MOST_RECENT` events, and a value beyond `MOST_VALUES` of its category is always new. `Detector.score` counts alike.

    Examples
    --------
    Scores of a stream equal those of a table::

        stream = Stream(detector)
        for event in events.iter_rows(named=True):
            result = stream.push(event)
    """

    def __init__(self, detector: Detector, rule: Threshold | None = None) -> None:
        detector.threshold()  # refuses a detector that is not fitted
        self.detector = copy(detector)  # as it is calibrated now
        self.rule = rule
        self.schema = detector.schema
        self._money = next((at for at, number in enumerate(self.schema.numeric) if number.scale == "log"), None)
        self._views = [_View(one) for one in detector.detectors]

    def __len__(self) -> int:
        """Return the number of entities met, in the first view."""
        return len(self._views[0].entities)

    def push(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Score one event and remember it.

        Parameters
        ----------
        event : mapping
            The schema's columns by name; others are ignored.

        Returns
        -------
        dict
            ``p_value`` in (0, 1], ``score`` = 1 - p, ``surprise`` = -log10 p, ``status``, ``p_autoencoder``,
            ``p_forecaster``, ``recent`` (-log10 p of the entity's recent past), and with a rule ``alert``. With several
            views also ``p_<view>`` of each, and ``status_<view>`` of each but the first; None where the event is none
            of its entities'.

        Raises
        ------
        InputError
            Where `read_events` would reject the row for what it holds; the reason is the same. Nothing is remembered.
            Repeated events are not found out: that would take every id ever seen.
        OrderError
            If the event is older than the last one of its entity, in any view. Nothing is remembered.
        """
        main = parse_event(event, self._views[0].schema)
        parsed = [main, *[view.parse(event) for view in self._views[1:]]]
        for view, one in zip(self._views, parsed, strict=True):
            view.check_order(one)
        said = [None if one is None else view.push(one) for view, one in zip(self._views, parsed, strict=True)]
        first = said[0]
        assert first is not None
        whole = first.log_p if len(said) == 1 else self._together(said)
        log_p = max(whole, LEAST_LOG_P)
        told: dict[str, Any] = {
            "p_value": math.exp(log_p),
            "score": -math.expm1(log_p),
            "surprise": -whole / LN_10,
            "status": first.status,
        }
        for name, log in first.models.items():
            told[f"p_{name}"] = math.exp(max(log, LEAST_LOG_P))
        told["recent"] = first.evidence / LN_10
        if len(said) > 1:
            told |= self._by_view(said)
        if self.rule is not None:
            money = NAN if self._money is None else main.numeric[self._money]
            told["alert"] = self.rule.decide_one(math.exp(log_p), money=money)
        return told

    def _together(self, said: Sequence[_Said | None]) -> float:
        nats = np.array([[NAN if one is None else -one.log_p for one in said]])
        return float(self.detector.together(nats)[0])

    def _by_view(self, said: Sequence[_Said | None]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for number, (name, one) in enumerate(zip(self.schema.view_names, said, strict=True)):
            stated = one is not None and one.log_p == one.log_p
            told[f"p_{name}"] = math.exp(max(one.log_p, LEAST_LOG_P)) if one is not None and stated else None
            if number:
                told[f"status_{name}"] = None if one is None else one.status
        return told

    def save(self, folder: Path | str) -> Path:
        """Write what is remembered of all entities, and what the rule has learned, into `folder`, in one step.

        A manifest and safetensors with checksums, no pickle, as a detector's. The detector itself is not in it.

        Raises
        ------
        ArtifactError
            If `folder` holds other things than a saved stream.
        """
        parts = {}
        for number, view in enumerate(self._views):
            names = np.array(list(view.entities), dtype=object)
            parts[f"entities{number}"] = {"names": pack_text(names), **pack_states(list(view.entities.values()))}
        manifest = {
            "stream": self._marks(),
            "rule": self.rule.state() if isinstance(self.rule, StreamThreshold) else None,
        }
        return write_artifact(folder, manifest, parts)

    @classmethod
    def load(cls, folder: Path | str, detector: Detector, rule: Threshold | None = None) -> Stream:
        """Go on from what `save` wrote: the same scores as if the stream had never stopped.

        Parameters
        ----------
        folder : path
            What `save` wrote.
        detector : Detector
            The one that the stream was made with, fitted or loaded.
        rule : Threshold, optional
            As for the stream; if one was saved it goes on from what it had learned.

        Raises
        ------
        ArtifactError
            If the folder holds no stream, or one of another detector or rule; or a part is missing or was changed.
        """
        manifest, parts = read_artifact(folder)
        stream = cls(detector, rule)
        marks = manifest.get("stream")
        if marks is None:
            raise ArtifactError(f"Stream.load: {folder} holds no stream; give the folder that Stream.save wrote")
        if marks != stream._marks():
            raise ArtifactError(
                f"Stream.load: {folder} holds what another detector remembered, or this one before it was calibrated "
                "anew; load it with the detector of the stream that was saved, or start a new stream and push the past "
                "events"
            )
        if isinstance(rule, StreamThreshold) and manifest["rule"] is not None:
            rule.restore(manifest["rule"])
        try:
            for number, view in enumerate(stream._views):
                arrays = parts[f"entities{number}"]
                states = unpack_states(arrays["packed"], arrays["lengths"])
                view.restore(unpack_text(arrays["names"]).tolist(), states)
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"Stream.load: the parts in {folder} do not fit together ({error})") from None
        return stream

    def _marks(self) -> list[dict[str, Any]]:
        """What a saved stream must have in common with the one that takes it over."""
        joint = self.detector.joint_
        together = [] if joint is None else [{"joint": calibration_mark(joint)}]
        return [view.marks() for view in self._views] + together

    def entities(self) -> list[str]:
        """Keys of the entities met, those of the first view; several columns are joined by U+001F."""
        return list(self._views[0].entities)

    def state_bytes(self, entity: str) -> int:
        """Bytes that the state of an entity takes, by its key in the first view; KeyError if it was not met."""
        return sys.getsizeof(self._views[0].entities[entity])


class _View:
    """The state of each entity of one view, and what its detector says of an event after it."""

    def __init__(self, detector: Detector) -> None:
        self.detector = copy(detector)
        self.schema = detector.schema
        self.entities: dict[str, bytes] = {}
        encoder = detector.encoder_
        networks: dict[str, Any] = {model.name: model.network_ for model in detector.models_}
        self._models = PlainModels(networks["autoencoder"], networks["forecaster"], encoder.numeric, encoder.category)
        self._population = SinglePopulation(detector.population_)
        self._scorer = SingleScorer(detector.scorer_, (*self._models.columns, *self._population.columns))
        self._known = set(detector.known_.tolist())
        self._values = [
            {}
            if column.own
            else {value: (FIRST_CODE + code, value_key(value)) for code, value in enumerate(column.vocabulary)}
            for name in self.schema.categorical
            for column in encoder.category
            if column.name == name
        ]
        self._bench = Workbench(
            rules_of(detector),
            memory=4 * self._models.hidden,
            averaged=len(self._models.averaged),
            given=len(self.schema.numeric),
            columns=len(encoder.category),
        )
        self._sit_down()
        self._warm()

    def parse(self, event: Mapping[str, Any]) -> ParsedEvent | None:
        """The event as this view reads it; None if it is none of its entities'."""
        if any(text_value(event.get(name)) is None for name in self.schema.key):
            return None
        return parse_event(event, self.schema)

    def check_order(self, event: ParsedEvent | None) -> None:
        """Refuse an event that is older than the last one of its entity."""
        packed = b"" if event is None else self.entities.get(event.entity, b"")
        if event is not None and packed and event.time < (last := last_time(packed, len(self._values))):
            raise OrderError(
                f"Stream.push: an event of {event.entity!r} is {last - event.time:g} s older than its last; "
                "push the events of an entity in the order of time"
            )

    def push(self, parsed: ParsedEvent) -> _Said:
        """Judge one event and remember it."""
        self._take(parsed)
        opened = self._bench.open(self.entities.get(parsed.entity, self._bench.empty))
        self._models.step(opened.due, opened.remembered)
        self._population.judge()
        judged = self._scorer.judge(self._scorer.pace(opened.events + 1, parsed.time - opened.first))
        self.entities[parsed.entity] = self._bench.close(judged.counted)
        return _Said(judged.log_p, judged.models, judged.evidence, self._status(opened.events, parsed))

    def marks(self) -> dict[str, Any]:
        """What a saved state must have in common with the view that takes it over."""
        return {
            "fingerprint": self.detector.fitted_["fingerprint"],
            "shapes": self._bench.shapes(),
            "quarantine": self._bench.rules.quarantine,
            "scales": self._bench.rules.scales.tolist(),
            "seed": self.detector.seed,
            "calibration": calibration_mark(self.detector.scorer_),  # what is remembered of an event is its surprise
        }

    def restore(self, names: Sequence[str], states: Sequence[bytes]) -> None:
        """Take over the states of entities; ValueError if they are none."""
        self._bench.check(states)
        self.entities = dict(zip(names, states, strict=True))

    def _sit_down(self) -> None:
        """Set everybody to work on the same arrays."""
        state, live = self._bench.state, self._bench.live
        # Of the type that a table's are: they are rounded alike, and where many are alike so is their calibration.
        errors = np.empty(len(self._models.columns) + len(self._population.columns), dtype=np.float32)
        self._models.sit_down(
            Desk(state.memory, state.sums, state.waiting_numbers, state.waiting_codes, live.numeric, live.codes, errors)
        )
        self._population.sit_down(live.numeric, errors[len(self._models.columns) :])
        self._scorer.sit_down(errors, live.recent_sums, live.recent_number)

    def _take(self, event: ParsedEvent) -> None:
        """Put an event on the workbench."""
        known, keys = [], []
        for value, codes in zip(event.category, self._values, strict=True):
            code, key = (MISSING, 0) if value is None else codes.get(value) or (UNSEEN, value_key(value))
            known.append(code)
            keys.append(key)
        place = event.latitude, event.longitude
        self._bench.take((event.time, event.clock, *place, *event.numeric), known, keys)

    def _warm(self) -> None:
        """Compile, or load what was compiled before, now and not when the first event comes; nothing is remembered."""
        nothing = (math.nan,) * len(self.schema.numeric), (None,) * len(self.schema.categorical)
        with announced("Stream"):
            self.push(ParsedEvent("", 0.0, 0.0, *nothing, math.nan, math.nan, None))
        self.entities.clear()

    def _status(self, events: int, event: ParsedEvent) -> str:
        place = self.schema.place is not None and (math.isnan(event.latitude) or math.isnan(event.longitude))
        if place or None in event.category or any(map(math.isnan, event.numeric)):
            return "incomplete"
        if events < YOUNG:
            return "learning"
        return "ok" if event.entity in self._known else "unseen"


def rules_of(detector: Detector) -> Rules:
    """How a fitted detector's encoder makes columns of an event."""
    schema, encoder = detector.schema, detector.encoder_
    columns = {column.name: at for at, column in enumerate(encoder.category)}
    windows = [seconds * MICRO for seconds in WINDOWS.values()]
    scales = [round(seconds * MICRO) for seconds in detector.scorer_.combination.scales]
    quarantine = round(detector.quarantine_ * MICRO)
    of_evidence = max(scales, default=0)
    keep = max(*windows, of_evidence, quarantine), max(windows), of_evidence
    own = [encoder.category[columns[name]].own * OWN_VALUES for name in schema.categorical]
    kinds = [
        [*(columns[f"{part}{name}"] for part in ("", "first:", "changed:")), codes]
        for name, codes in zip(schema.categorical, own, strict=True)
    ]
    return Rules(
        windows=np.array(windows, dtype=np.int64),
        scales=np.array(scales, dtype=np.int64),
        money=np.array([at for at, number in enumerate(schema.numeric) if number.scale == "log"], dtype=np.int64),
        scaling=np.array([(one.unit, one.center, one.scale) for one in encoder.numeric], dtype=np.float64),
        kinds=np.array(kinds, dtype=np.int64).reshape(len(kinds), 4),
        periods=np.array(list(CIRCLES.values()), dtype=np.float64),
        keep=np.array(keep, dtype=np.int64),
        clock=columns["clock:hour"],
        quarantine=quarantine,
        lately=round(encoder.lately * MICRO),
        has_place=schema.place is not None,
        unseen=UNSEEN,
        missing=MISSING,
        no=NO,
        yes=YES,
        first_code=FIRST_CODE,
        monday=MONDAY,
        shortest_trip=SHORTEST_TRIP_SECONDS,
        earth_radius=EARTH_RADIUS_KM,
        largest_amount=LARGEST_AMOUNT,
        farthest=FARTHEST,
    )
