"""Detector: unlabelled events in, calibrated scores and ranked cases out. Composes everything above it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.alerts import add_reasons, build_cases, duration_text
from anomaly.artifacts import Arrays, pack_text, read_artifact, unpack_text, write_artifact
from anomaly.calibration import TailCalibrator
from anomaly.digest import Source, calibration_check, money_field, report_data
from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError, SchemaError
from anomaly.evidence import combine_fields
from anomaly.explain import expected_range, explain
from anomaly.features import Encoder, raw_numbers
from anomaly.ingest import JOINER, Events, read_events, utc_time
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training
from anomaly.progress import TrainingBar
from anomaly.report import write_report
from anomaly.schema import Schema
from anomaly.sequences import Sequences
from anomaly.thresholds import Budget, FalseAlertRate, FalseDiscoveryRate, Threshold

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
When = str | date | datetime | float | None

FEWEST_EVENTS = 100  # a history below this cannot be split into training, stopping and calibration
YOUNG = 5  # earlier events below which an entity's status is `learning`
TRAIN_SHARE, STOP_SHARE = 0.75, 0.10  # of the history's events, by time; the rest calibrates
QUARANTINE_GAPS = 30  # typical gaps until an event is remembered: longer than most runs of fraud
LN_10 = float(np.log(10.0))


@dataclass(frozen=True)
class Holdout:
    """The held-out slice that calibrated the detector: p (n,), time (n,) in seconds, entity (n,) codes."""

    p: Float
    time: Float
    entity: NDArray[np.int32]


class Detector:
    """Learns how each entity normally behaves from unlabelled events, and scores events by how far they leave that.

    Parameters
    ----------
    schema : Schema
        Which column is what. Its label, if any, is never read.
    hidden : int
        Size of the memory of each model.
    quarantine_hours : float, optional
        Age at which an event enters the memory. By default 30 times the typical gap between two events of an entity
        (at most a tenth of the history), so that a run of fraud cannot explain itself away. 0 = at once.
    epochs : int, optional
        Most passes over the history; by default enough for about 2,500 steps, between 5 and 60.
    seed : int
        Same seed, same machine, same numbers.
    device : str, optional
        "cpu", "cuda", "mps"; by default the best there is.

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

    def __init__(
        self,
        schema: Schema,
        *,
        hidden: int = 64,
        quarantine_hours: float | None = None,
        epochs: int | None = None,
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        self.schema = schema
        self.hidden = hidden
        self.quarantine_hours = quarantine_hours
        self.epochs = epochs
        self.seed = seed
        self.device = device
        self.models_: tuple[SequenceModel, ...] = ()
        self._last: tuple[Events, pl.DataFrame] | None = None

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
        read = as_events(events, self.schema)
        end = as_seconds(until)
        frame = read.frame if end is None else read.frame.filter(pl.col("time") < end)
        train, stop, held = split(frame["time"].to_numpy())
        self.models_ = ()  # a fit that breaks off leaves no half of a detector
        self.encoder_ = Encoder(self.schema).fit(frame, train)
        sequences = self.encoder_.transform(frame)
        self.quarantine_ = self._quarantine(frame, train)
        models = self._make_models()
        for model in models:
            with TrainingBar(model.name, show=progress) as bar:
                model.fit(
                    sequences,
                    self.encoder_.numeric,
                    self.encoder_.category,
                    train=train,
                    valid=stop,
                    progress=bar,
                    checkpoint=None if checkpoint is None else Path(checkpoint) / f"{model.name}.safetensors",
                    resume=resume,
                )
        self.models_ = models
        self._calibrate(sequences, held)
        self.known_ = sequences.entity
        time = frame["time"]
        self.fitted_: dict[str, Any] = {
            "events": len(frame),
            "entities": len(sequences.entity),
            "train": int(train.sum()),
            "stop": int(stop.sum()),
            "held_out": int(held.sum()),
            "first": float(time.min() or 0.0),  # type: ignore[arg-type]
            "last": float(time.max() or 0.0),  # type: ignore[arg-type]
            "held_out_since": float(sequences.time[held].min()),
            "rejected": len(read.rejects),
            "check": self.check_,
            "fingerprint": fingerprint(sequences),
            "runs": {model.name: asdict(model.run_) for model in self.models_ if model.run_ is not None},
        }
        return self

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
        sequences = self.encoder_.transform(read.frame)
        mask = np.ones(len(sequences), dtype=bool) if start is None else sequences.time >= start
        if not len(sequences):
            raise InputError("score: no event is left, since every row was rejected; read_events tells why")
        if not mask.any():
            raise InputError(f"score: no event at or after {since}; the last one is of {_text(sequences.time.max())}")
        errors = [model.errors(sequences, mask) for model in self.models_]
        logs = self.log_p(errors)
        status = self._status(read.frame, sequences)
        scores = self._score_frame(read.frame, mask, logs, self._field_surprise(errors), status)
        self._last = (read, scores)
        return scores

    def alerts(
        self,
        scores: pl.DataFrame | None = None,
        *,
        events: Any = None,
        budget_per_day: float | None = None,
        false_alert_rate: float | None = None,
        false_discovery_rate: float | None = None,
        cooldown_hours: float = 24.0,
    ) -> pl.DataFrame:
        """Ranked cases with reasons: one case per entity and burst of alerting events, the strangest first.

        Parameters
        ----------
        scores : polars.DataFrame, optional
            What `score` returned; by default the last scores made with this detector.
        events : path, frame or Events, optional
            The events that were scored, for the reasons; by default the last ones scored with this detector.
        budget_per_day, false_alert_rate, false_discovery_rate : float
            How to choose the threshold, one of the three; by default a budget of 50 cases a day.
        cooldown_hours : float
            Alerting events of one entity closer than this are one case.

        Returns
        -------
        polars.DataFrame
            See `anomaly.alerts.build_cases`, with ``reasons`` and ``fields`` for the strangest event of each case.
        """
        read, scores = self._scored(events, scores)
        rule = self.threshold(
            budget_per_day=budget_per_day,
            false_alert_rate=false_alert_rate,
            false_discovery_rate=false_discovery_rate,
            cooldown_hours=cooldown_hours,
        )
        return self.cases(read, scores, rule)

    def threshold(
        self,
        *,
        budget_per_day: float | None = None,
        false_alert_rate: float | None = None,
        false_discovery_rate: float | None = None,
        cooldown_hours: float = 24.0,
    ) -> Threshold:
        """Return the decision rule, fitted on the held-out slice; ``describe()`` says what it costs a day."""
        self._fitted()
        given = [value for value in (budget_per_day, false_alert_rate, false_discovery_rate) if value is not None]
        if len(given) > 1:
            raise ParameterError("threshold: give one of budget_per_day, false_alert_rate and false_discovery_rate")
        rule: Threshold
        if false_alert_rate is not None:
            rule = FalseAlertRate(false_alert_rate, cooldown_hours=cooldown_hours)
        elif false_discovery_rate is not None:
            rule = FalseDiscoveryRate(false_discovery_rate, cooldown_hours=cooldown_hours)
        else:
            rule = Budget(50.0 if budget_per_day is None else budget_per_day, cooldown_hours=cooldown_hours)
        return rule.fit(self.holdout_.p, self.holdout_.time, self.holdout_.entity)

    def cases(self, events: Events, scores: pl.DataFrame, rule: Threshold) -> pl.DataFrame:
        """Cases of the events on which the fitted `rule` alerts, with reasons."""
        decided = rule.decide(scores["p_value"].to_numpy())
        money = money_field(self.schema)
        cases = build_cases(
            scores,
            decided,
            entity_columns=self.schema.entity,
            cooldown_hours=rule.cooldown_hours,
            money=None if money is None else scores[money],
        )
        return add_reasons(cases, self.explain(events, cases["peak_row"].to_list(), scores))

    def explain(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> pl.DataFrame:
        """Observed, expected and rarity of each field of the events in the input `rows`; see `anomaly.explain`."""
        self._fitted()
        return explain(self.models_[-1], self.encoder_, as_events(events, self.schema).frame, rows, scores)

    def report(
        self,
        path: Path | str,
        scores: pl.DataFrame | None = None,
        *,
        events: Any = None,
        budget_per_day: float | None = None,
        false_alert_rate: float | None = None,
        false_discovery_rate: float | None = None,
        cooldown_hours: float = 24.0,
        title: str = "Anomaly report",
        command: str | None = None,
    ) -> pl.DataFrame:
        """Write one self-contained HTML page of the scored events, and return its cases.

        Parameters are those of `alerts`, and the page's `title` and the `command` that makes it again.
        """
        read, scores = self._scored(events, scores)
        rule = self.threshold(
            budget_per_day=budget_per_day,
            false_alert_rate=false_alert_rate,
            false_discovery_rate=false_discovery_rate,
            cooldown_hours=cooldown_hours,
        )
        cases = self.cases(read, scores, rule)
        source = Source(
            schema=self.schema,
            events=read,
            scores=scores,
            cases=cases,
            rule=rule,
            explain=lambda rows: self.explain(read, rows, scores),
            expected=lambda rows, field: expected_range(self.models_[-1], self.encoder_, read.frame, rows, field),
            fitted=self.fitted_,
            settings=self._settings(),
            versions=versions(),
        )
        write_report(report_data(source, title=title, command=command), Path(path))
        return cases

    def save(self, folder: Path | str) -> Path:
        """Write the fitted detector into `folder` (manifest and safetensors, no pickle), in one step."""
        self._fitted()
        calibration = {
            f"{name}.{key}": value for name, part in self.calibration_.items() for key, value in part.arrays().items()
        }
        held: Arrays = {"p": self.holdout_.p, "time": self.holdout_.time, "entity": self.holdout_.entity}
        parts: dict[str, Arrays] = {
            model.name: {k: v.numpy() for k, v in model.arrays().items()} for model in self.models_
        }
        parts |= {"calibration": calibration, "history": {"entities": pack_text(self.known_), **held}}
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "schema": self.schema.model_dump(mode="json"),
            "parameters": {
                "hidden": self.hidden,
                "quarantine_hours": self.quarantine_hours,
                "epochs": self.epochs,
                "seed": self.seed,
            },
            "quarantine_seconds": self.quarantine_,
            "encoder": self.encoder_.to_dict(),
            "fitted": self.fitted_,
        }
        return write_artifact(folder, manifest, parts)

    @classmethod
    def load(cls, folder: Path | str, *, device: str | None = None) -> Detector:
        """Read a detector that `save` wrote.

        Raises
        ------
        ArtifactError
            If the format is unknown, or a part is missing or was changed (named in the message).
        """
        manifest, parts = read_artifact(folder)
        try:
            return cls._restored(manifest, parts, device)
        except (ArtifactError, ParameterError):
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {str(error)[:300]}"
            raise ArtifactError(
                f"load: the manifest and the parts in {folder} do not fit together ({reason})"
            ) from None

    @classmethod
    def _restored(cls, manifest: Mapping[str, Any], parts: Mapping[str, Arrays], device: str | None) -> Detector:
        detector = cls(Schema.model_validate(manifest["schema"]), **manifest["parameters"], device=device)
        detector.encoder_ = Encoder.from_dict(detector.schema, manifest["encoder"])
        detector.quarantine_ = manifest["quarantine_seconds"]
        detector.models_ = detector._make_models()
        for model in detector.models_:
            model.restore(detector.encoder_.numeric, detector.encoder_.category, parts[model.name])
        detector.calibration_ = {}
        for name in {key.rsplit(".", 1)[0] for key in parts["calibration"]}:
            arrays = {k.rsplit(".", 1)[1]: v for k, v in parts["calibration"].items() if k.rsplit(".", 1)[0] == name}
            detector.calibration_[name] = TailCalibrator.from_arrays(arrays)
        history = parts["history"]
        detector.known_ = unpack_text(history["entities"])
        detector.holdout_ = Holdout(history["p"], history["time"], history["entity"])
        detector.fitted_ = manifest["fitted"]
        return detector

    def log_p(self, errors: Sequence[NDArray[np.float32]]) -> dict[str, Float]:
        """Natural logs of the calibrated p-values, (n,) each, by model name, and of both together (``both``)."""
        logs: dict[str, Float] = {}
        for model, found in zip(self.models_, errors, strict=True):
            statistic = combine_fields(found, model.fields.weight)
            logs[model.name] = self.calibration_[model.name].log_p(statistic)
        both = sum((-model.weight * logs[model.name] for model in self.models_), start=np.zeros(len(errors[0])))
        logs["both"] = self.calibration_["both"].log_p(both)
        return logs

    def _calibrate(self, sequences: Sequences, held: Mask) -> None:
        """Fit every calibrator on the held-out slice, which trained and stopped nothing."""
        self.calibration_: dict[str, TailCalibrator] = {}
        total = np.zeros(int(held.sum()))
        for model in self.models_:
            errors = model.errors(sequences, held)[held]
            for column, values in zip(model.fields.columns, errors.T, strict=True):
                if np.isfinite(values).any():
                    name = f"{model.name}.{column.name}"
                    self.calibration_[name] = TailCalibrator().fit(np.minimum(values, 1e6))
            statistic = combine_fields(errors, model.fields.weight)
            calibrator = self.calibration_[model.name] = TailCalibrator().fit(statistic)
            total -= model.weight * calibrator.log_p(statistic)
        both = self.calibration_["both"] = TailCalibrator().fit(total)
        self.check_ = calibration_check(total, sequences.time[held])
        self.holdout_ = Holdout(both.p_values(total), sequences.time[held], sequences.sequence[held].astype(np.int32))

    def _field_surprise(self, errors: Sequence[NDArray[np.float32]]) -> dict[str, Float]:
        """-log10 of each field's calibrated tail probability, mean over the models; NaN = no statement."""
        surprise: dict[str, Float] = {}
        for model, found in zip(self.models_, errors, strict=True):
            for index, column in enumerate(model.fields.columns):
                calibrator = self.calibration_.get(f"{model.name}.{column.name}")
                values = np.full(len(found), np.nan)
                if calibrator is not None:
                    values = -calibrator.log_p(np.minimum(found[:, index], 1e6)) / (LN_10 * len(self.models_))
                surprise[column.name] = surprise[column.name] + values if column.name in surprise else values
        return surprise

    def _status(self, frame: pl.DataFrame, sequences: Sequences) -> pl.Series:
        fields = [name for name in frame.columns if name[:2] in ("n:", "c:", "p:")]
        facts = frame.select(
            incomplete=pl.any_horizontal(pl.lit(value=False), *(pl.col(name).is_null() for name in fields)),
            unseen=~pl.col("entity").is_in(pl.Series(self.known_.tolist(), dtype=pl.String).implode()),
            learning=pl.Series(sequences.position < YOUNG),
        )
        return facts.select(
            pl.when("incomplete")
            .then(pl.lit("incomplete"))
            .when("learning")
            .then(pl.lit("learning"))
            .when("unseen")
            .then(pl.lit("unseen"))
            .otherwise(pl.lit("ok"))
            .alias("status")
        ).to_series()

    def _score_frame(
        self, frame: pl.DataFrame, mask: Mask, logs: dict[str, Float], fields: dict[str, Float], status: pl.Series
    ) -> pl.DataFrame:
        chosen = frame.with_columns(status).filter(pl.Series(mask))
        both = np.maximum(logs["both"][mask], -690.0)  # exp(-690) is still a number above 0
        columns: list[pl.Series | pl.Expr] = [pl.col("row")]
        if self.schema.event_id is not None:
            columns.append(pl.col("event_id").alias(self.schema.event_id))
        columns += entity_columns(self.schema)
        columns += [
            utc_time().alias("time"),
            pl.Series("p_value", np.exp(both)),
            pl.Series("score", -np.expm1(both)),
            pl.Series("surprise", -logs["both"][mask] / LN_10),
            pl.col("status"),
            *(
                pl.Series(f"p_{model.name}", np.exp(np.maximum(logs[model.name][mask], -690.0)))
                for model in self.models_
            ),
            *(pl.Series(f"field:{name}", values[mask]).fill_nan(None) for name, values in fields.items()),
            *(pl.col(f"n:{field.name}").alias(field.name) for field in self.schema.numeric),
            *(pl.col(f"c:{name}").alias(name) for name in self.schema.categorical),
        ]
        return chosen.select(columns).sort("row")

    def _quarantine(self, frame: pl.DataFrame, train: Mask) -> float:
        if self.quarantine_hours is not None:
            return self.quarantine_hours * 3600.0
        gap = raw_numbers(frame, self.schema)["time:gap"][train]
        gap = gap[gap > 0]
        if not len(gap):
            return 0.0
        time = frame["time"].to_numpy()
        return float(min(QUARANTINE_GAPS * np.median(gap), 0.1 * (time.max() - time.min())))

    def _settings(self) -> dict[str, str]:
        fitted: Mapping[str, Any] = self.fitted_
        return {
            "Fitted on": f"{fitted['events']:,} events of {fitted['entities']:,} entities, without labels",
            "History": f"{_text(fitted['first'])} to {_text(fitted['last'])}",
            "Split by time": f"{fitted['train']:,} train, {fitted['stop']:,} stop, {fitted['held_out']:,} calibrate",
            "Models": " and ".join(model.name for model in self.models_),
            "Quarantine": duration_text(self.quarantine_),
            "Hidden units": str(self.hidden),
            "Seed": str(self.seed),
            "Entity": ", ".join(self.schema.entity) or "one sequence",
            "Fields scored": ", ".join(column.name for column in self.models_[-1].fields.columns),
        }

    def _make_models(self) -> tuple[SequenceModel, ...]:
        shared: dict[str, Any] = {
            "hidden": self.hidden,
            "quarantine": self.quarantine_,
            "training": Training(epochs=self.epochs),
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
        known = read.frame.select(pl.col("row").alias("known"), utc_time().alias("known_time"))
        if {"row", "time"} <= set(scores.columns) and len(
            scores.join(known, left_on=["row", "time"], right_on=["known", "known_time"], how="anti")
        ):
            raise ParameterError("alerts: these scores are of other events than those scored last; pass events= too")
        return read, scores

    def _fitted(self) -> None:
        if not self.models_:
            raise NotFittedError("Detector: not fitted yet; call fit(events), or Detector.load(folder)")


def as_events(events: Any, schema: Schema) -> Events:
    """Return `events` if they are Events already, else read them."""
    if not isinstance(events, Events):
        return read_events(events, schema)
    if events.schema.model_copy(update={"label": schema.label}) != schema:
        raise SchemaError("these events were read with another schema than the detector's; read them with its own")
    return events


def as_seconds(when: When) -> float | None:
    """Return a time as seconds since 1970 UTC; a time without a zone is UTC.

    Examples
    --------
    >>> as_seconds("1970-01-02")
    86400.0
    """
    if when is None or (isinstance(when, int | float) and np.isfinite(when)):
        return when
    said = when
    if isinstance(when, str):
        with suppress(ValueError):
            when = datetime.fromisoformat(when)
    elif isinstance(when, date) and not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day, tzinfo=UTC)
    if not isinstance(when, datetime):
        raise ParameterError(f"time {said!r} is not like 2024-01-31 or 2024-01-31T12:00:00+01:00")
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def split(time: Float) -> tuple[Mask, Mask, Mask]:
    """Masks (N,) of the events that train, those that say when to stop, and those that calibrate: by time."""
    if len(time) < FEWEST_EVENTS:
        raise InputError(f"fit: {len(time)} usable events, at least {FEWEST_EVENTS} are needed; give a longer history")
    first, second = np.quantile(time, [TRAIN_SHARE, TRAIN_SHARE + STOP_SHARE], method="higher")
    train, stop, held = time < first, (time >= first) & (time < second), time >= second
    if not (train.any() and stop.any() and held.any()):
        raise InputError(
            "fit: the history cannot be split by time, since most events share one time; check the time column"
        )
    return train, stop, held


def entity_columns(schema: Schema) -> list[pl.Expr]:
    """Columns of the entity key, taken apart again."""
    if len(schema.entity) == 1:
        return [pl.col("entity").alias(schema.entity[0])]
    parts = pl.col("entity").str.split(JOINER)
    return [parts.list.get(index).alias(name) for index, name in enumerate(schema.entity)]


def fingerprint(sequences: Sequences) -> str:
    """Sha256 of the encoded history."""
    digest_ = hashlib.sha256()
    for array in (sequences.offsets, sequences.time, sequences.numeric, sequences.category):
        digest_.update(np.ascontiguousarray(array).data)
    return digest_.hexdigest()


def versions() -> Mapping[str, str]:
    """Versions of what made the numbers."""
    libraries = {name: version(name) for name in ("torch", "numpy", "polars", "scipy")}
    return {"anomaly": version("anomaly"), "python": platform.python_version(), **libraries}


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
