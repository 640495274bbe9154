"""Detector: unlabelled events in, calibrated scores and ranked cases out. Composes everything above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.alerts import add_reasons, build_cases, duration_text
from anomaly.artifacts import Arrays, fitting_together, pack_text, read_artifact, unpack_text, versions, write_artifact
from anomaly.breakdown import Asked, Breakdown, breakdown
from anomaly.calibration import TailCalibrator
from anomaly.compiling import announced
from anomaly.counterfactual import Judge, counterfactuals
from anomaly.digest import Source, decide, fit_told, money_field, report_data
from anomaly.errors import InputError, NotFittedError, ParameterError
from anomaly.explain import expected_range, explain
from anomaly.features import Encoder, entity_offsets
from anomaly.history import When, as_events, as_seconds, check_scores_of, split, time_text
from anomaly.ingest import Events
from anomaly.injections import inject, possible_kinds
from anomaly.masking import NameMask
from anomaly.models.abreast import all_errors, fit_all
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training
from anomaly.population import Population
from anomaly.recalibration import Calibrated, Holdout, Judged, calibrate, checked_start, recalibrate, reference_of
from anomaly.rehearsal import Copies, choose, recall_by_kind, scales_of
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, Combination, Scorer
from anomaly.scoring import Scoring
from anomaly.sequences import Sequences, fingerprint, typical_gap
from anomaly.thresholds import Threshold, usual_rule

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

QUARANTINE_GAPS = 30  # typical gaps until an event is remembered: longer than most runs of fraud
EPISODES = 40  # planted frauds of each kind by which the combination is chosen
PARAMETERS = ("hidden", "quarantine_hours", "epochs", "seed", "drop_share", "rehearse")
MOST_REHEARSED = 150_000  # events of copies, and of genuine histories beside them


class Detector:
    """Learns how each entity normally behaves from unlabelled events, and scores events by how far they leave that.

    Parameters
    ----------
    schema : Schema
        Which column is what. Its label, if any, is never read.
    hidden : int
        Size of the memory of each model.
    quarantine_hours : float, optional
        Age at which an event enters the memory, and a value is no longer new to its entity. By default 30 times the
        typical gap between two events of an entity (at most a tenth of the history), so that a run of fraud cannot
        explain itself away. 0 = at once.
    epochs : int, optional
        Most passes over the history; by default enough for about 600 steps, between 4 and 60.
    seed : int
        Same seed, same machine, same numbers.
    device : str, optional
        "cpu", "cuda", "mps"; by default the best there is.
    drop_share : float
        Share of the history, the events with the strangest recent past, that trains nothing: it may be fraud. 0 where
        the history is known to be clean.
    rehearse : bool
        Choose what counts how much by frauds planted into held-out histories (see `anomaly.rehearsal`); without it the
        default combination is taken. Labels are read in neither case.

    Examples
    --------
    >>> from anomaly import Detector, SIMULATED_SCHEMA, simulate
    >>> events, labels = simulate(customers=20, days=40)
    >>> detector = Detector(SIMULATED_SCHEMA, hidden=8, epochs=1).fit(events, until="2024-02-01", progress=False)
    >>> scores = detector.score(events, since="2024-02-01")
    >>> cases = detector.alerts(scores, budget_per_day=1)
    >>> cases.columns[:4]
    ['case', 'entity', 'start', 'end']
    """

    joint_: TailCalibrator | None = None  # of several views: how they are combined

    def __init__(
        self,
        schema: Schema,
        *,
        hidden: int = 64,
        quarantine_hours: float | None = None,
        epochs: int | None = None,
        seed: int = 0,
        device: str | None = None,
        drop_share: float = 0.03,
        rehearse: bool = True,
    ) -> None:
        self.schema = schema
        self.hidden = hidden
        self.quarantine_hours = quarantine_hours
        self.epochs = epochs
        self.seed = seed
        self.device = device
        self.drop_share = drop_share
        self.rehearse = rehearse
        self.models_: tuple[SequenceModel, ...] = ()
        self._last: tuple[Events, pl.DataFrame] | None = None

    @announced("fit")
    def fit(
        self,
        events: Any,
        *,
        until: When = None,
        progress: bool | None = None,
        checkpoint: Path | str | None = None,
        resume: bool = False,
    ) -> Detector:
        """Learn from unlabelled history; returns self.

        The history is split by time: the first 75 % of the events train, the next 10 % say when to stop, the last
        15 % calibrate. Labels are not read. Ctrl-C keeps the best epoch so far.

        Parameters
        ----------
        events : path, frame or Events
            Anything `read_events` reads.
        until : str, date, datetime or seconds, optional
            Use events before this time only (UTC if it has no zone).
        progress : bool, optional
            Show progress on standard error; by default if that is a terminal.
        checkpoint : path, optional
            Folder for a checkpoint after each epoch.
        resume : bool
            Go on from the checkpoint if there is one: ends exactly where an uninterrupted fit ends.

        Raises
        ------
        InputError
            If there are fewer than 100 usable events, or no two different times.
        """
        self._one_view()
        read = as_events(events, self.schema)
        end = as_seconds(until)
        frame = read.frame if end is None else read.frame.filter(pl.col("time") < end)
        train, stop, held = split(frame["time"].to_numpy())
        self.models_ = ()  # a fit that breaks off leaves no half of a detector
        time = frame["time"].to_numpy()
        self.gap_ = typical_gap(time, entity_offsets(frame["entity"]), train)
        self.quarantine_ = self._quarantine(float(time.max() - time.min()))
        self.encoder_ = Encoder(self.schema, lately=self.quarantine_).fit(frame, train)
        sequences = self.encoder_.transform(frame)
        models = self._make_models()
        columns = self.encoder_.numeric, self.encoder_.category
        folder = None if checkpoint is None else Path(checkpoint)
        fit_all(models, sequences, columns, (train, stop), show=progress, folder=folder, resume=resume)
        self.models_ = models
        self.population_ = Population(self.encoder_.numeric).fit(sequences.numeric[models[-1].kept(train)])
        self._calibrate(frame, sequences, held)
        self.fitted_: dict[str, Any] = {
            "events": len(frame),
            "entities": len(sequences.entity),
            "train": int(train.sum()),
            "stop": int(stop.sum()),
            "held_out": int(held.sum()),
            "first": float(time.min()),
            "last": float(time.max()),
            "held_out_since": float(sequences.time[held].min()),
            "rejected": len(read.rejects),
            "check": self.check_,
            "trials": self.trials_,
            "fingerprint": fingerprint(sequences),
            "runs": {model.name: asdict(model.run_) for model in self.models_ if model.run_ is not None},
        }
        return self

    @announced("recalibrate")
    def recalibrate(self, events: Any, *, since: When = None, until: When = None) -> Detector:
        """Calibrate anew on events that came after the fit, which trained nothing; returns self.

        One pass of the models; they and the combination stay as they are. It keeps what p-values promise where a short
        slice says little of rare events, or levels have moved; it teaches no new habits, for which there is `fit`. No
        label is read, and runs that are strange beyond doubt are left out as in a fit; but a month full of fraud makes
        fraud look less rare. A `Stream` made before goes on with the former calibration.

        Parameters
        ----------
        events : path, frame or Events
            The histories, as for `score`, and the events that came after the fit.
        since : str, date, datetime or seconds, optional
            Calibrate on events from this time on; by default on all that were never trained on, from the held-out slice
            of the fit on (``fitted_["held_out_since"]``).
        until : str, date, datetime or seconds, optional
            Use events before this time only.

        Raises
        ------
        InputError
            If `since` lies before that slice, no event lies before `since`, or fewer than 100 lie after it.
        """
        self._fitted()
        read, start, end = as_events(events, self.schema), as_seconds(since), as_seconds(until)
        self._recalibrated(*self._judged_anew(read, start, end))
        return self

    def judged(self, events: Any) -> Judged:
        """What the models say of events from the held-out slice of the fit on, under any calibration."""
        self._fitted()
        frame, longest = as_events(events, self.schema).frame, max(self.scorer_.combination.scales, default=0.0)
        return self._judged(frame, self.encoder_.transform(frame), self.fitted_["held_out_since"], longest)

    @announced("score")
    def score(self, events: Any, *, since: When = None) -> pl.DataFrame:
        """Score events, each after the whole history of its entity in `events`.

        Parameters
        ----------
        events : path, frame or Events
            The events to score, and before them the history they continue.
        since : str, date, datetime or seconds, optional
            Score events from this time on; the earlier ones are history only.

        Returns
        -------
        polars.DataFrame
            One row per scored event, in input order: ``row``, the event id and entity columns, ``time``, ``p_value``
            (probability that a normal event is at least as strange), ``score`` = 1 - p, ``surprise`` = -log10 p,
            ``status``, ``p_autoencoder``, ``p_forecaster``, ``field:<name>`` (surprise of each field), and the
            schema's numeric and categorical fields as read.
        """
        self._fitted()
        read = as_events(events, self.schema)
        start = as_seconds(since)
        if not len(read):
            raise InputError("score: no event is left, since every row was rejected; read_events tells why")
        last = float(read.frame["time"].max())  # type: ignore[arg-type]
        if start is not None and last < start:
            raise InputError(f"score: no event at or after {since}; the last one is of {time_text(last)}")
        scoring = Scoring(
            schema=self.schema,
            encoder=self.encoder_,
            scorer=self.scorer_,
            model=self.models_[0],
            errors=self.errors,
            known=self.known_,
        )
        scores = scoring.table(read.frame, start)
        self._last = (read, scores)
        return scores

    def alerts(
        self,
        scores: pl.DataFrame | None = None,
        *,
        events: Any = None,
        **threshold: Any,
    ) -> pl.DataFrame:
        """Ranked cases with reasons: one case per entity and burst of alerting events, the strangest first.

        Parameters
        ----------
        scores : polars.DataFrame, optional
            What `score` returned; by default the last scores made with this detector.
        events : path, frame or Events, optional
            The events that were scored, for the reasons; by default the last ones scored with this detector.
        **threshold
            How to choose the threshold, as for `threshold`; by default a budget of 50 cases a day.

        Returns
        -------
        polars.DataFrame
            See `anomaly.alerts.build_cases`, with ``reasons`` and ``fields`` for the strangest event of each case.
        """
        read, scores = self._scored(events, scores)
        return self.cases(read, scores, self.threshold(**threshold))

    def threshold(self, rule: Threshold | None = None, **wish: float | None) -> Threshold:
        """Return the decision rule, fitted on the held-out slice; ``describe()`` says what it costs a day.

        Parameters
        ----------
        rule : Threshold, optional
            Any rule of `anomaly.thresholds`; or else one of the next ones, which make the usual rules.
        budget_per_day : float
            Cases a day; the default is 50.
        false_alert_rate : float
            Share of the normal events that may alert.
        false_discovery_rate : float
            Share of the alerts that may be false.
        alert_cost, fraud_share : float
            What it costs to look into an alert, in the unit of the schema's first log number, and the share of fraud
            among the events as far as you know: alerts where the money at risk may be worth it.
        cooldown_hours : float
            Alerting events of one entity closer than this are one case; 24 by default.
        """
        self._fitted()
        held = self.holdout_
        return usual_rule(rule, **wish).fit(held.p, held.time, held.entity, money=held.money)  # type: ignore[arg-type]

    def cases(
        self, events: Events, scores: pl.DataFrame, rule: Threshold, mask: NameMask | None = None
    ) -> pl.DataFrame:
        """Cases of the events on which the fitted `rule` alerts, with reasons; the mask, if any, hides names."""
        decided = decide(rule, scores, self.schema)
        money = money_field(self.schema)
        cases = build_cases(
            scores,
            decided,
            entity_columns=self.schema.key,
            cooldown_hours=rule.cooldown_hours,
            money=None if money is None else scores[money],
        )
        told = self.explain(events, cases["peak_row"].to_list(), scores)
        if mask is None:
            return add_reasons(cases, told)
        return mask.cases(add_reasons(cases, mask.explanations(told)))

    def explain(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> pl.DataFrame:
        """Observed, expected, rarity and part of each field of the events in `rows`; see `anomaly.explain.explain`."""
        asked, told = self._broken_down(events, rows, scores)
        return explain(self.models_[-1], self.schema, asked, scores, told)

    def breakdown(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> pl.DataFrame:
        """Parts of each field and of the recent past in the surprise of the events in `rows`; see `Breakdown.parts`."""
        return self._parted(events, rows, scores).parts

    def counterfactual(self, events: Any, rows: Sequence[int], scores: pl.DataFrame, rule: Threshold) -> pl.DataFrame:
        """Changes of one or two fields with which the events in `rows` would pass; see `anomaly.counterfactual`."""
        parts, model = self.breakdown(events, rows, scores), self.models_[-1]
        judge = Judge(self.schema, self.encoder_, self.scorer_, model, self.errors, rule, self.quarantine_)
        return counterfactuals(judge, as_events(events, self.schema).frame, rows, scores, parts)

    def _parted(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> Breakdown:
        return self._broken_down(events, rows, scores)[1]

    def _broken_down(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> tuple[Asked, Breakdown]:
        self._fitted()
        asked = Asked.of(self.encoder_, as_events(events, self.schema).frame, rows)
        return asked, breakdown(self.errors, self.scorer_, asked, scores)

    def report(
        self,
        path: Path | str,
        scores: pl.DataFrame | None = None,
        *,
        events: Any = None,
        title: str = "Anomaly report",
        command: str | None = None,
        mask_key: bytes | None = None,
        **threshold: Any,
    ) -> pl.DataFrame:
        """Write a report of the scored events (.html, .pdf or .md), and return its cases.

        Parameters are those of `alerts`, the `title`, the `command` that makes it again, and a `mask_key`: a secret
        under which all names of entities are hidden, in the cases returned too (see `anomaly.masking`).
        """
        from anomaly.report import write_report  # figures and templates, which nothing else here needs

        read, scores = self._scored(events, scores)
        rule = self.threshold(**threshold)
        mask = None if mask_key is None else NameMask(mask_key, read.names)
        told = partial(self.explain, read, scores=scores)
        cases = self.cases(read, scores, rule, mask)
        source = Source(
            schema=self.schema,
            events=read,
            scores=scores,
            cases=cases,
            rule=rule,
            explain=told if mask is None else lambda rows: mask.explanations(told(rows)),
            expected=lambda rows, field: expected_range(self.models_[-1], self.encoder_, read.frame, rows, field),
            fitted=self.fitted_,
            settings=self._settings(),
            versions=versions(),
            quarantine=self.quarantine_,
            held=self.holdout_.surprises(),
            breakdown=partial(self.breakdown, read, scores=scores),
            counterfactual=partial(self.counterfactual, read, scores=scores, rule=rule),
        )
        data = report_data(source, title=title, command=command)
        write_report(data if mask is None else mask.report(data), Path(path))
        return cases

    def save(self, folder: Path | str) -> Path:
        """Write the fitted detector into `folder` (manifest and safetensors, no pickle), in one step."""
        self._fitted()
        return write_artifact(folder, *self._packed())

    def _packed(self) -> tuple[dict[str, Any], dict[str, Arrays]]:
        """The manifest and the parts; `_restored` is the way back."""
        parts: dict[str, Arrays] = {
            model.name: {k: v.numpy() for k, v in model.arrays().items()} for model in self.models_
        }
        parts |= {
            "population": self.population_.arrays(),
            "calibration": self.scorer_.arrays(),
            "history": {"entities": pack_text(self.known_), **self.holdout_.arrays()},
        }
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "schema": self.schema.model_dump(mode="json"),
            "parameters": {name: getattr(self, name) for name in PARAMETERS},
            "gap_seconds": self.gap_,
            "quarantine_seconds": self.quarantine_,
            "combination": self.scorer_.settings(),
            "encoder": self.encoder_.to_dict(),
            "fitted": self.fitted_,
        }
        return manifest, parts

    @classmethod
    def load(cls, folder: Path | str, *, device: str | None = None) -> Detector:
        """Read a detector that `save` wrote.

        Raises
        ------
        ArtifactError
            If the format is unknown, or a part is missing or was changed (named in the message).
        """
        manifest, parts = read_artifact(folder)
        with fitting_together(folder):
            return cls._restored(manifest, parts, device)

    @classmethod
    def _restored(cls, manifest: Mapping[str, Any], parts: Mapping[str, Arrays], device: str | None) -> Detector:
        detector = cls(Schema.model_validate(manifest["schema"]), **manifest["parameters"], device=device)
        detector._one_view()
        detector.encoder_ = Encoder.from_dict(detector.schema, manifest["encoder"])
        detector.gap_, detector.quarantine_ = manifest["gap_seconds"], manifest["quarantine_seconds"]
        detector.models_ = detector._make_models()
        for model in detector.models_:
            model.restore(detector.encoder_.numeric, detector.encoder_.category, parts[model.name])
        detector.population_ = Population(detector.encoder_.numeric).restore(parts["population"])
        detector.scorer_ = Scorer.restored(detector._fields(), manifest["combination"], parts["calibration"])
        history = parts["history"]
        detector.known_ = unpack_text(history["entities"])
        detector.holdout_ = Holdout.restored(history)
        detector.fitted_ = manifest["fitted"]
        return detector

    def errors(self, sequences: Sequences, mask: Mask | None = None) -> dict[str, NDArray[np.float32]]:
        """-ln of each field's tail probability by model and in the population, (N, K) each; NaN outside `mask`."""
        found = all_errors(self.models_, sequences, mask)
        everybody = self.population_.errors(sequences.numeric)
        if mask is not None:
            everybody[~mask] = np.nan
        return {**found, self.population_.name: everybody}

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """One for each view of the events; a detector of a single view is its own."""
        return (self,)

    def together(self, nats: Float) -> Float:
        """Natural log of the p-value of n events from -ln p of their views, (n, V); the first views are enough."""
        return -nats[:, 0]

    def _one_view(self) -> None:
        if len(self.schema.entity) > 1:
            raise ParameterError(
                f"Detector: its schema has {len(self.schema.entity)} views ({', '.join(self.schema.view_names)}); take "
                "anomaly.Views for them, and load_detector of anomaly.views for what was saved; a key of several "
                f'columns is written entity = [["{self.schema.key[0]}", ...]]'
            )

    def _fields(self) -> dict[str, Any]:
        models = {model.name: model.fields.columns for model in self.models_}
        return {**models, self.population_.name: self.population_.fields}

    def _calibrate(self, frame: pl.DataFrame, sequences: Sequences, held: Mask) -> None:
        """Rehearse, and fit every calibrator on the held-out slice, which trained and stopped nothing."""
        since = float(sequences.time[held].min())
        span = float(sequences.time[held].max()) - since
        judged = self._judged(frame, sequences, since, max(scales_of(self.gap_, span, "long"), default=0.0))
        start = Combination(scales=scales_of(self.gap_, span))
        self.trials_: list[dict[str, Any]] = []
        copies = None
        if self.rehearse and possible_kinds(frame, self.schema):
            with suppress(ParameterError):  # no held-out event suits a kind: the default combination stays
                copies = self._copies(frame, since, EPISODES, self.seed)
        if copies is not None:
            reference = reference_of(judged, held, MOST_REHEARSED, self.seed)
            start, self.trials_ = choose(start, copies, reference, self._fields(), self.gap_, span)
        self.known_ = sequences.entity
        self._take(calibrate(Scorer(self._fields(), start), judged, held, self.schema))

    def _take(self, made: Calibrated) -> None:
        """Judge by this calibration from now on; scores made by another one are not kept."""
        self.scorer_, self.holdout_, self.usual_, self.check_ = made.scorer, made.holdout, made.usual, made.check
        self._last = None

    def _judged(self, frame: pl.DataFrame, sequences: Sequences, since: float, longest: float) -> Judged:
        """What the models say of the events from `since` on, and of those in the `longest` window before it."""
        return Judged(frame, sequences, self.errors(sequences, sequences.time > since - longest))

    def _judged_anew(self, read: Events, since: float | None, until: float | None) -> tuple[Judged, Mask]:
        """The events before `until` as the models judge them, and which of them are held out."""
        frame = read.frame if until is None else read.frame.filter(pl.col("time") < until)
        start = checked_start(frame["time"].to_numpy(), self.fitted_["held_out_since"], since)
        judged = self.judged(replace(read, frame=frame))
        return judged, judged.within(start)

    def _recalibrated(self, judged: Judged, held: Mask) -> Float:
        """Calibrate anew, and write down what changed; natural logs of the p-values under the former calibration."""
        former = self.scorer_.judge(judged.errors, judged.sequences, held).log_p
        before = self.holdout_
        self._take(recalibrate(self.scorer_, judged, held, self.schema))
        self.fitted_ = {**self.fitted_, "check": self.check_, "recalibrated": self.holdout_.changes(before, former)}
        return former

    def _copies(self, frame: pl.DataFrame, since: float, episodes: int, seed: int) -> Copies:
        """Histories with planted frauds, judged by the models."""
        made = inject(frame, self.schema, since=since, episodes=episodes, seed=seed, most_events=MOST_REHEARSED)
        sequences = self.encoder_.transform(made.frame)
        after = sequences.time >= made.since[made.episode]
        return Copies(self.errors(sequences), sequences, made.planted, after, made.kind, made.episode, made.kinds)

    def rehearsal(
        self, events: Any, rule: Threshold | None = None, *, episodes: int = 100, seed: int = 1
    ) -> pl.DataFrame:
        """Recall at the alert budget by kind of fraud, without labels: on frauds planted into held-out histories.

        Parameters
        ----------
        events : path, frame or Events
            The history that was fitted, or a later one; frauds are planted from the start of the held-out slice on.
        episodes : int
            Planted frauds of each kind.
        seed : int
            Another seed than that of the fit plants other frauds than those that the combination was chosen by.
        rule : Threshold, optional
            What `threshold` gave; by default a budget of 50 cases a day.

        Returns
        -------
        polars.DataFrame
            ``kind``, ``recall`` (share of the planted events that alert) with ``low`` and ``high`` (95 %, by episode),
            ``noticed`` (share of the frauds with an alert), ``episodes``, ``events``.
        """
        rule = rule or self.threshold()
        frame = as_events(events, self.schema).frame
        if not possible_kinds(frame, self.schema):
            raise InputError("rehearse: no kind of fraud can be planted into these events; name numbers in the schema")
        copies = self._copies(frame, self.fitted_["held_out_since"], episodes, seed)
        judged = self.scorer_.judge(copies.errors, copies.sequences)
        p = np.exp(np.maximum(self.together(-judged.log_p[:, None]), LEAST_LOG_P))
        caught = rule.decide(p, entity=copies.sequences.sequence)
        found = recall_by_kind(caught, copies)
        return pl.DataFrame([{"kind": kind, **values} for kind, values in found.items()])

    def _quarantine(self, span: float) -> float:
        if self.quarantine_hours is not None:
            if not 0 <= self.quarantine_hours < np.inf:
                raise ParameterError(f"Detector: quarantine_hours must be at least 0, got {self.quarantine_hours!r}")
            return self.quarantine_hours * 3600.0
        return float(min(QUARANTINE_GAPS * self.gap_, 0.1 * span))

    def _settings(self) -> dict[str, str]:
        fields = [column.name for column in self.models_[-1].fields.columns]
        return {
            **fit_told(self.fitted_, [model.name for model in self.models_]),
            "Quarantine": duration_text(self.quarantine_),
            "Hidden units": str(self.hidden),
            "Seed": str(self.seed),
            "Entity": ", ".join(self.schema.key) or "one sequence",
            "Fields scored": ", ".join(fields),
        }

    def _make_models(self) -> tuple[SequenceModel, ...]:
        shared: dict[str, Any] = {
            "hidden": self.hidden,
            "quarantine": self.quarantine_,
            "training": Training(epochs=self.epochs, drop_share=self.drop_share),
            "seed": self.seed,
            "device": self.device,
        }
        return Autoencoder(**shared), Forecaster(**shared)

    def _scored(self, events: Any, scores: pl.DataFrame | None) -> tuple[Events, pl.DataFrame]:
        self._fitted()
        last = self._last or (None, None)
        read = last[0] if events is None else as_events(events, self.schema)
        scores = last[1] if scores is None else scores
        if read is None or scores is None:
            raise ParameterError("alerts: of what? Call score(events) first, or pass scores= and events=")
        check_scores_of(read, scores)
        return read, scores

    def _fitted(self) -> None:
        if not self.models_:
            raise NotFittedError("Detector: not fitted yet; call fit(events), or Detector.load(folder)")
