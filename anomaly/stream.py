"""Stream: one event in, one score out, with each entity's state carried.

Scores equal those of `Detector.score` on the same events: the same definitions, kept up event by event, in plain arrays
and numbers (see `anomaly.models.plain` and `anomaly.single`): one event costs little more than what it computes. What
is carried of an entity is an `EntityState`, bounded however long its history and however busy it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.artifacts import pack_text, read_artifact, unpack_text, write_artifact
from anomaly.detector import Detector
from anomaly.entity_state import EntityState, nested_sums, pack_states, unpack_states, value_key
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
    SHORTEST_TRIP_SECONDS,
    UNSEEN,
    WINDOWS,
    YES,
)
from anomaly.ingest import ParsedEvent, parse_event
from anomaly.models.plain import PlainModels
from anomaly.score_table import YOUNG
from anomaly.scorer import LEAST_LOG_P, LN_10
from anomaly.sequences import MOST_WAITING
from anomaly.single import SinglePopulation, SingleScorer
from anomaly.thresholds import Threshold
from anomaly.thresholds.base import StreamThreshold
from anomaly.values import text_value

NAN = math.nan
WINDOW_MICROS = [seconds * 1_000_000 for seconds in WINDOWS.values()]
Numbers = NDArray[np.float32]
Codes = NDArray[np.int64]


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
    An event costs a few small products of a vector. Where numpy's library splits those over several threads, set
    OMP_NUM_THREADS=1 before Python starts.

    Examples
    --------
    Scores of a stream equal those of a table::

        stream = Stream(detector)
        for event in events.iter_rows(named=True):
            result = stream.push(event)
    """

    def __init__(self, detector: Detector, rule: Threshold | None = None) -> None:
        detector.threshold()  # refuses a detector that is not fitted
        self.detector = detector
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
            parts[f"entities{number}"] = {"names": pack_text(names), **pack_states(view.entities)}
        manifest = {
            "stream": [view.marks() for view in self._views],
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
        if marks != [view.marks() for view in stream._views]:
            raise ArtifactError(
                f"Stream.load: {folder} holds what another detector remembered; load it with the detector of the "
                "stream that was saved, or start a new stream and push the past events"
            )
        if isinstance(rule, StreamThreshold) and manifest["rule"] is not None:
            rule.restore(manifest["rule"])
        try:
            for number, view in enumerate(stream._views):
                arrays = parts[f"entities{number}"]
                view.entities = unpack_states(unpack_text(arrays["names"]).tolist(), arrays, view.new_entity())
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"Stream.load: the parts in {folder} do not fit together ({error})") from None
        return stream

    def entities(self) -> list[str]:
        """Keys of the entities met, those of the first view; several columns are joined by U+001F."""
        return list(self._views[0].entities)

    def state_bytes(self, entity: str) -> int:
        """Bytes that the state of an entity takes, by its key in the first view; KeyError if it was not met."""
        return self._views[0].entities[entity].nbytes()


class _View:
    """The state of each entity of one view, and what its detector says of an event after it."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.schema = detector.schema
        self.entities: dict[str, EntityState] = {}
        encoder = detector.encoder_
        networks: dict[str, Any] = {model.name: model.network_ for model in detector.models_}
        self._models = PlainModels(networks["autoencoder"], networks["forecaster"], encoder.numeric, encoder.category)
        self._population = SinglePopulation(detector.population_)
        self._scorer = SingleScorer(detector.scorer_, (*self._models.columns, *self._population.columns))
        self._known = set(detector.known_.tolist())
        self._quarantine, self._lately = round(detector.quarantine_ * 1e6), round(encoder.lately * 1e6)
        self._scales = [round(seconds * 1e6) for seconds in detector.scorer_.combination.scales]
        of_windows, of_evidence = max(WINDOW_MICROS), max(self._scales, default=0)
        self._keep = max(of_windows, of_evidence, self._quarantine), of_windows, of_evidence
        self._scaling = [(one.name, one.unit, one.center, one.scale) for one in encoder.numeric]
        self._values = {
            column.name: {value: (FIRST_CODE + code, value_key(value)) for code, value in enumerate(column.vocabulary)}
            for column in encoder.category
        }
        self._category_order = [column.name for column in encoder.category]
        self._money = [(at, number.name) for at, number in enumerate(self.schema.numeric) if number.scale == "log"]

    def parse(self, event: Mapping[str, Any]) -> ParsedEvent | None:
        """The event as this view reads it; None if it is none of its entities'."""
        if any(text_value(event.get(name)) is None for name in self.schema.key):
            return None
        return parse_event(event, self.schema)

    def check_order(self, event: ParsedEvent | None) -> None:
        """Refuse an event that is older than the last one of its entity."""
        last = None if event is None else self.entities.get(event.entity)
        if event is not None and last is not None and event.time < last.time:
            raise OrderError(
                f"Stream.push: an event of {event.entity!r} is {last.time - event.time:g} s older than its last; "
                "push the events of an entity in the order of time"
            )

    def push(self, parsed: ParsedEvent) -> _Said:
        """Judge one event and remember it."""
        entity = self.entities.get(parsed.entity)
        if entity is None:
            entity = self.entities[parsed.entity] = self.new_entity()
        now = round(parsed.time * 1e6)
        amounts = [_bounded(parsed.numeric[at]) for at, _ in self._money]
        numbers = self._numbers(entity, parsed, now, amounts)
        numeric, codes = np.array(numbers, dtype=np.float32), self._codes(entity, parsed, now)
        self._remember(entity, now)
        waiting = len(entity.waiting_codes) // len(codes)
        statistics = self._models.statistics(entity.sums, entity.events - waiting)
        errors = np.concatenate((
            self._models.errors(entity.memory, statistics, numeric, codes),
            self._population.errors(numeric.tolist()),
        ))  # fmt: skip
        recent = entity.window_counts(now, self._scales)
        if not entity.events:
            entity.first = parsed.time
        pace = self._scorer.pace(entity.events + 1, parsed.time - entity.first)
        judged = self._scorer.judge(errors, nested_sums(entity.counted, recent), recent, pace)
        status = self._status(entity, parsed)
        entity.add(now, judged.counted, amounts, self._keep)
        entity.waiting_numbers.frombytes(numeric.tobytes())
        entity.waiting_codes.extend(codes.tolist())
        entity.events += 1
        entity.time = parsed.time
        if self.schema.place is not None:
            entity.place = parsed.latitude, parsed.longitude
        return _Said(judged.log_p, judged.models, judged.evidence, status)

    def marks(self) -> dict[str, Any]:
        """What a saved state must have in common with the stream that takes it over."""
        return {
            "fingerprint": self.detector.fitted_["fingerprint"],
            "hidden": self._models.hidden,
            "quarantine": self._quarantine,
            "scales": self._scales,
            "seed": self.detector.seed,
        }

    def new_entity(self) -> EntityState:
        """The state of an entity without any event."""
        return EntityState(
            self._models.empty(),
            averaged=len(self._models.averaged),
            amounts=len(self._money),
            categories=len(self.schema.categorical),
            codes=max(column.size for column in self.detector.encoder_.category) - 1,
        )

    def _numbers(self, entity: EntityState, event: ParsedEvent, now: int, amounts: list[float]) -> list[float]:
        """One row of encoded numbers, as `Encoder.transform` would give it."""
        gap = event.time - entity.time
        raw = [*event.numeric, gap]
        counts = entity.window_counts(now, WINDOW_MICROS)
        raw += [count + 1.0 for count in counts]
        for values, amount in zip(entity.amounts, amounts, strict=True):
            raw += [total + amount for total in nested_sums(values, counts)]
        if self.schema.place is not None:
            away = kilometres(event.latitude, event.longitude, *entity.place)
            raw += [away, away / (max(gap, SHORTEST_TRIP_SECONDS) / 3600.0)]
        for period in CIRCLES.values():
            angle = 2 * math.pi * ((event.clock - MONDAY) % period) / period
            raw += [math.sin(angle), math.cos(angle)]
        found = []
        for (_, unit, center, scale), value in zip(self._scaling, raw, strict=True):
            shown = math.asinh(value / unit) if unit else value
            found.append(min(max((shown - center) / scale, -FARTHEST), FARTHEST))
        return found

    def _codes(self, entity: EntityState, event: ParsedEvent, now: int) -> Codes:
        """One row of codes, as `Encoder.transform` would give it; the entity has met the values then."""
        codes = {"clock:hour": FIRST_CODE + int(event.clock % 86400.0 // 3600.0)}
        for at, (name, value) in enumerate(zip(self.schema.categorical, event.category, strict=True)):
            last = entity.before[at]
            if value is None:
                codes[name] = codes[f"first:{name}"] = codes[f"changed:{name}"] = MISSING
                entity.before[at] = 0
                continue
            known = self._values[name].get(value)
            codes[name], key = (UNSEEN, value_key(value)) if known is None else known
            codes[f"first:{name}"] = YES if entity.is_new(at, key, now, self._lately) else NO
            codes[f"changed:{name}"] = MISSING if not last else NO if last == key else YES
            entity.before[at] = key
        return np.array([codes[name] for name in self._category_order], dtype=np.int64)

    def _remember(self, entity: EntityState, now: int) -> None:
        """Let the events that have waited long enough into the memory, and the oldest if too many wait."""
        width, columns = len(self._scaling), len(self._category_order)
        waiting = len(entity.waiting_codes) // columns
        times, first = entity.times, len(entity.times) - waiting
        done = 0
        while done < waiting and (
            not self._quarantine or waiting - done > MOST_WAITING or times[first + done] <= now - self._quarantine
        ):
            numeric = np.array(entity.waiting_numbers[done * width : (done + 1) * width], dtype=np.float32)
            codes = np.array(entity.waiting_codes[done * columns : (done + 1) * columns], dtype=np.int64)
            self._models.read(entity.memory, numeric, codes, entity.sums)
            done += 1
        if done:
            del entity.waiting_numbers[: done * width]
            del entity.waiting_codes[: done * columns]

    def _status(self, entity: EntityState, event: ParsedEvent) -> str:
        place = self.schema.place is not None and (math.isnan(event.latitude) or math.isnan(event.longitude))
        if place or None in event.category or any(map(math.isnan, event.numeric)):
            return "incomplete"
        if entity.events < YOUNG:
            return "learning"
        return "ok" if event.entity in self._known else "unseen"


def _bounded(amount: float) -> float:
    """An amount as it enters a sum: bounded, so that no sum is infinite; 0 for NaN."""
    return 0.0 if amount != amount else min(max(amount, -LARGEST_AMOUNT), LARGEST_AMOUNT)


def kilometres(latitude: float, longitude: float, from_latitude: float, from_longitude: float) -> float:
    """Great-circle distance in km, NaN where a place is missing; twin of `features.great_circle_km`."""
    phi, phi0 = math.radians(latitude), math.radians(from_latitude)
    half = math.sin((phi - phi0) / 2) ** 2
    half += math.cos(phi) * math.cos(phi0) * math.sin(math.radians(longitude - from_longitude) / 2) ** 2
    return NAN if half != half else 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(max(half, 0.0), 1.0)))
