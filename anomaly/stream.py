"""Stream: one event in, one score out, with each entity's state carried.

Scores equal those of `Detector.score` on the same events: the same definitions, kept up event by event. An entity's
state is what its features need of the last seven days, the surprises of the last events at each scale of the evidence,
the events that still wait out the quarantine, and one state of the memory per model; its size does not grow with the
length of the history (only with the values it has met).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.detector import Detector
from anomaly.errors import OrderError
from anomaly.evidence import loud
from anomaly.features import (
    CIRCLES,
    FARTHEST,
    FIRST_CODE,
    LARGEST_AMOUNT,
    MISSING,
    MONDAY,
    NO,
    UNSEEN,
    WINDOWS,
    YES,
    great_circle_km,
    speed_kmh,
)
from anomaly.ingest import ParsedEvent, parse_event
from anomaly.models.backbones import State
from anomaly.models.base import averaged
from anomaly.models.batches import CLIP, Events, mean_and_spread, remembered_number
from anomaly.score_table import YOUNG
from anomaly.scorer import LEAST_LOG_P, LN_10
from anomaly.thresholds import Threshold

NAN = float("nan")
ONE = 1 << 1074  # every float is a whole number of ONE-ths


@dataclass
class _Window:
    """Events of the last seconds, with running sums; whole numbers (see `_whole`), so that taking away is exact.

    An event enters and leaves once: O(1) each, however many there are.
    """

    micros: int
    events: deque[tuple[int, tuple[int, ...]]] = field(default_factory=deque)
    sums: list[int] = field(default_factory=list)

    def push(self, now: int, amounts: tuple[int, ...]) -> None:
        self.events.append((now, amounts))
        self.sums = [total + amount for total, amount in zip(self.sums or [0] * len(amounts), amounts, strict=True)]
        self.leave(now)

    def leave(self, now: int) -> None:
        """Drop what is too old at `now`."""
        while self.events and self.events[0][0] <= now - self.micros:
            _, gone = self.events.popleft()
            self.sums = [total - amount for total, amount in zip(self.sums, gone, strict=True)]


@dataclass
class _Entity:
    """All that is carried from one event of an entity to the next."""

    states: list[State]
    sums: NDArray[np.float64]  # (3, averaged): number, sum and sum of squares of the remembered values
    windows: list[_Window]
    recent: list[_Window]  # the surprises of the last events, at each scale of the evidence
    seen: list[set[str]]
    events: int = 0
    remembered: int = 0
    time: float = NAN
    place: tuple[float, float] = (NAN, NAN)
    previous: tuple[str | None, ...] = ()
    waiting: deque[tuple[int, NDArray[np.float32], NDArray[np.int64]]] = field(default_factory=deque)


class Stream:
    """Scores events as they come.

    Parameters
    ----------
    detector : Detector
        Fitted. Every entity starts without a history; push its past events first if there are any.
    rule : Threshold, optional
        A fitted decision rule, as `Detector.threshold` gives it: each score then says whether it is an ``alert``. Rules
        that learn (`OnlineFalseDiscoveryRate`, `PeaksOverThreshold`) learn from each event that is pushed.

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
        self._encoder = detector.encoder_
        self._scorer = detector.scorer_
        self._known = set(detector.known_.tolist())
        self._averaged = averaged(self._encoder.numeric)
        self._quarantine = round(detector.quarantine_ * 1e6)
        self._codes = {
            column.name: {value: FIRST_CODE + code for code, value in enumerate(column.vocabulary)}
            for column in self._encoder.category
        }
        self._money = [at for at, number in enumerate(self.schema.numeric) if number.scale == "log"]
        # One event is soonest scored on the processor, wherever the networks were trained.
        networks = [model.network_ for model in detector.models_ if model.network_ is not None]
        self._networks = [deepcopy(network).cpu().eval() for network in networks]
        self._entities: dict[str, _Entity] = {}

    def __len__(self) -> int:
        """Return the number of entities met."""
        return len(self._entities)

    @torch.inference_mode()
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
            ``p_forecaster``, ``recent`` (-log10 p of the entity's recent past), and with a rule ``alert``.

        Raises
        ------
        InputError
            Where `read_events` would reject the row for what it holds; the reason is the same. Nothing is remembered.
            Repeated events are not found out: that would take every id ever seen.
        OrderError
            If the event is older than the last one of its entity. Nothing is remembered.
        """
        parsed = parse_event(event, self.schema)
        entity = self._entities.get(parsed.entity)
        if entity is None:
            entity = self._entities[parsed.entity] = self._new_entity()
        elif parsed.time < entity.time:
            raise OrderError(
                f"Stream.push: an event of {parsed.entity!r} is {entity.time - parsed.time:g} s older than its last; "
                "push the events of an entity in the order of time"
            )
        now = round(parsed.time * 1e6)
        numeric, category = self._features(entity, parsed, now)
        self._remember(entity, now)
        errors = self._errors(entity, numeric, category)
        sums, number = self._recent(entity, now)
        judged = self._scorer.judge_sums(errors, sums, number)
        status = self._status(entity, parsed)
        counted = float(loud(self._scorer.fresh(errors))[0])
        for window in entity.recent:
            window.push(now, (_whole(counted),))
        entity.waiting.append((now, numeric, category))
        entity.events += 1
        entity.time = parsed.time
        log_p = max(float(judged.log_p[0]), LEAST_LOG_P)
        said: dict[str, Any] = {} if self.rule is None else {"alert": self._alert(parsed, math.exp(log_p))}
        return {
            "p_value": math.exp(log_p),
            "score": -math.expm1(log_p),
            "surprise": -float(judged.log_p[0]) / LN_10,
            "status": status,
            **{f"p_{name}": math.exp(max(float(log[0]), LEAST_LOG_P)) for name, log in judged.models.items()},
            "recent": float(judged.evidence[0]) / LN_10,
            **said,
        }

    def _alert(self, event: ParsedEvent, p: float) -> bool:
        assert self.rule is not None
        money = event.numeric[self._money[0]] if self._money else NAN
        return self.rule.decide_one(p, money=money)

    def _new_entity(self) -> _Entity:
        return _Entity(
            states=[network.memory.empty(1) for network in self._networks],
            sums=np.zeros((3, len(self._averaged))),
            windows=[_Window(seconds * 1_000_000) for seconds in WINDOWS.values()],
            recent=[_Window(round(seconds * 1e6), sums=[0]) for seconds in self._scorer.combination.scales],
            seen=[set() for _ in self.schema.categorical],
        )

    def _features(self, entity: _Entity, event: ParsedEvent, now: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """One row of encoded columns, as `Encoder.transform` would give it."""
        raw = dict(zip((number.name for number in self.schema.numeric), event.numeric, strict=True))
        raw["time:gap"] = event.time - entity.time
        amounts = tuple(_whole(event.numeric[at]) for at in self._money)
        for label, window in zip(WINDOWS, entity.windows, strict=True):
            window.push(now, amounts)
            raw[f"count:{label}"] = float(len(window.events))
            for at, total in zip(self._money, window.sums, strict=True):
                raw[f"sum:{label}:{self.schema.numeric[at].name}"] = total / ONE
        if self.schema.place is not None:
            raw["place:distance"] = great_circle_km(event.latitude, event.longitude, *entity.place)
            raw["place:speed"] = speed_kmh(raw["place:distance"], raw["time:gap"])
            entity.place = (event.latitude, event.longitude)
        for name, period in CIRCLES.items():
            angle = 2 * math.pi * ((event.clock - MONDAY) % period) / period
            raw[f"circle:{name}_sin"], raw[f"circle:{name}_cos"] = math.sin(angle), math.cos(angle)
        encoded = np.array([column.encode(raw[column.name]) for column in self._encoder.numeric], dtype=np.float64)
        numeric = np.clip(encoded, -FARTHEST, FARTHEST).astype(np.float32)
        codes = self._category_codes(entity, event)
        return numeric, np.array([codes[column.name] for column in self._encoder.category], dtype=np.int64)

    def _category_codes(self, entity: _Entity, event: ParsedEvent) -> dict[str, int]:
        codes = {"clock:hour": FIRST_CODE + int(event.clock % 86400.0 // 3600.0)}
        before = entity.previous or (None,) * len(event.category)
        for name, value, last, seen in zip(self.schema.categorical, event.category, before, entity.seen, strict=True):
            if value is None:
                codes[name] = codes[f"first:{name}"] = codes[f"changed:{name}"] = MISSING
                continue
            codes[name] = self._codes[name].get(value, UNSEEN)
            codes[f"first:{name}"] = NO if value in seen else YES
            codes[f"changed:{name}"] = MISSING if last is None else NO if last == value else YES
            seen.add(value)
        entity.previous = event.category
        return codes

    def _remember(self, entity: _Entity, now: int) -> None:
        """Let the events that have waited long enough into the memory."""
        while entity.waiting and (self._quarantine == 0 or entity.waiting[0][0] <= now - self._quarantine):
            _, numeric, category = entity.waiting.popleft()
            values, codes = torch.from_numpy(numeric)[None, None], torch.from_numpy(category)[None, None]
            for at, network in enumerate(self._networks):
                _, entity.states[at] = network.memory.read(values, codes, entity.states[at])
            averages = numeric[self._averaged].astype(np.float64)
            known = np.isfinite(averages)
            clipped = np.clip(np.where(known, averages, 0.0), -CLIP, CLIP)
            entity.sums += np.stack([known.astype(np.float64), clipped, clipped**2])
            entity.remembered += 1

    def _recent(self, entity: _Entity, now: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums and numbers of the surprises in each window before the event, (1, W) each."""
        for window in entity.recent:
            window.leave(now)
        sums = np.array([[window.sums[0] / ONE for window in entity.recent]])
        return sums, np.array([[float(len(window.events)) for window in entity.recent]])

    def _errors(
        self, entity: _Entity, numeric: NDArray[np.float32], category: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        """-ln of each field's tail probability by model, (1, K) each."""
        mean, spread = mean_and_spread(*entity.sums)
        statistics = np.empty((1, 1 + 2 * len(mean)), dtype=np.float32)
        statistics[0, 0] = remembered_number(entity.remembered)
        statistics[0, 1::2], statistics[0, 2::2] = mean, spread
        events = Events(torch.from_numpy(numeric)[None], torch.from_numpy(category)[None], torch.from_numpy(statistics))
        judged = {
            model.name: network.ask(state[0][0], events).judge(events, loss=False).numpy()
            for model, network, state in zip(self.detector.models_, self._networks, entity.states, strict=True)
        }
        return {**judged, "population": self.detector.population_.errors(numeric[None])}

    def _status(self, entity: _Entity, event: ParsedEvent) -> str:
        place = self.schema.place is not None and (math.isnan(event.latitude) or math.isnan(event.longitude))
        if place or any(value is None for value in event.category) or any(math.isnan(value) for value in event.numeric):
            return "incomplete"
        if entity.events < YOUNG:
            return "learning"
        return "ok" if event.entity in self._known else "unseen"


def _whole(amount: float) -> int:
    """An amount in ONE-ths, exactly; 0 for NaN."""
    if math.isnan(amount):
        return 0
    numerator, denominator = min(max(amount, -LARGEST_AMOUNT), LARGEST_AMOUNT).as_integer_ratio()
    return numerator * (ONE // denominator)
