"""Views: the same events looked at by several kinds of entities, as by the customer and by the terminal, told as one.

A stolen card shows in the card's own history; a terminal whose customers are robbed shows in the terminal's. So each
view is a detector of its own, fitted on the same events in the order of its entities, and an event has a p-value in
each. What is combined is their weighted harmonic mean (Wilson 2019, "The harmonic mean p-value for combining dependent
tests"), ::

    ln (w_1 / p_1 + w_2 / p_2 + ...) - ln (w_1 + w_2 + ...)

which the smallest p-value rules: a fraud mostly shows in one view, and the noise of the others must not drown it. The
views see the same amount, so that their p-values are dependent, and no formula says how; so the mean is calibrated on
the held-out slice, where each view was calibrated too.

The first view is the one that cases, reports and rankings are made of; it weighs four times as much as a further one
(`FURTHER`), and judges as it would without the others. An event without an entity in a further view is none of its
events, and counts there as an utterly usual one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.artifacts import Arrays, read_manifest, versions
from anomaly.breakdown import Breakdown, histories
from anomaly.calibration import TailCalibrator
from anomaly.compiling import announced
from anomaly.counterfactual import Judge, counterfactuals
from anomaly.detector import Detector, Float
from anomaly.digest import calibration_check
from anomaly.errors import InputError, ParameterError, SchemaError
from anomaly.history import When, as_events, as_seconds
from anomaly.ingest import VIEW, Events
from anomaly.recalibration import Holdout
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, LN_10
from anomaly.thresholds import Threshold

Int = NDArray[np.int64]

# Each view's false alerts take places from the others' frauds. On simulated payments a weight of 1 cost a fifth of the
# average precision of frauds that only the first view sees, 1/4 a twelfth; of frauds that the second view sees best the
# average precision was 0.14 without it, and 0.43 and 0.56 with 1/4 and 1.
FURTHER = 0.25
NODES = 200  # at which the split of a mean into its views is integrated
TAKEN = ("value", "autoencoder", "forecaster")  # score tables have columns p_value, p_autoencoder and p_forecaster


class Views(Detector):
    """Detectors of several views of the same events, used as one; see the module.

    Parameters
    ----------
    schema : Schema
        Its `entity` names the views, the first of which is that of the cases.
    **options
        As for `Detector`, for each of the views.

    Attributes
    ----------
    detectors : tuple of Detector
        One for each view.

    Raises
    ------
    ParameterError
        If the schema has a single view, or none.
    SchemaError
        If a view is called like a model, or like a column of the score table.

    Examples
    --------
    >>> from anomaly import Schema, Views
    >>> schema = Schema(time="when", entity=["card", "terminal"], numeric=["amount"])
    >>> [detector.schema.key for detector in Views(schema).detectors]
    [('card',), ('terminal',)]
    """

    joint_: TailCalibrator

    def __init__(self, schema: Schema, **options: Any) -> None:
        super().__init__(schema, **options)
        if len(schema.entity) < 2:
            raise ParameterError('Views: expected a schema with several views, as entity = ["card", "terminal"]')
        taken = {*TAKEN, *(name[2:] for name in schema.columns() if name[:2] == "p_")}
        if clash := taken & set(schema.view_names):
            raise SchemaError(f"Views: the score table has another column p_{min(clash)}; rename it in your table")
        self._options = options
        self._detectors = tuple(Detector(view, **options) for view in schema.views)

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """One for each view, the first first."""
        return self._detectors

    def fit(
        self,
        events: Any,
        *,
        until: When = None,
        progress: bool | None = None,
        checkpoint: Path | str | None = None,
        resume: bool = False,
    ) -> Views:
        """Fit one view after the other, then how they are combined; as `Detector.fit`.

        The checkpoints of a view lie in a folder of its own.
        """
        read = as_events(events, self.schema)
        self.models_ = ()
        for name, detector in self._named():
            own = None if checkpoint is None else Path(checkpoint) / name
            try:
                detector.fit(
                    read.seen_by(detector.schema), until=until, progress=progress, checkpoint=own, resume=resume
                )
            except InputError as error:
                raise InputError(f"view {name}: {error}") from None
        self._combine(read, None, as_seconds(until))
        self._told_of({**self.detectors[0].fitted_, "rejected": len(read.rejects)})
        return self

    @announced("recalibrate")
    def recalibrate(self, events: Any, *, since: When = None, until: When = None) -> Views:
        """Calibrate every view anew, and then how they are combined; as `Detector.recalibrate`.

        By default each view's slice begins where the one of its fit did; all are judged before any is changed.
        """
        self._fitted()
        read, start, end = as_events(events, self.schema), as_seconds(since), as_seconds(until)
        found = []
        for name, detector in self._named():
            try:
                found.append(detector._judged_anew(read.seen_by(detector.schema), start, end))
            except InputError as error:
                raise InputError(f"view {name}: {error}") from None
        former = [detector._recalibrated(*one) for detector, one in zip(self.detectors, found, strict=True)]
        before = self.holdout_
        said = self._combine(read, start, end, former)
        changes = self.holdout_.changes(before, said)
        self._told_of({**self.fitted_, "check": self.check_, "recalibrated": changes})
        return self

    def score(self, events: Any, *, since: When = None) -> pl.DataFrame:
        """Score events in each view, after the whole history of its entity there; as `Detector.score`.

        Returns
        -------
        polars.DataFrame
            As of the first view's detector, but ``p_value``, ``score`` and ``surprise`` are of all views together;
            further columns are ``p_<view>`` of each view, null where the event is none of its entities', and
            ``status_<view>`` of each but the first, whose status is ``status``.
        """
        self._fitted()
        read = as_events(events, self.schema)
        scores = _scored(self.detectors[0], read, since)
        own = [scores["surprise"]]
        for name, detector in self._named()[1:]:
            found = _scored(detector, read, since).select("row", "surprise", pl.col("status").alias(f"status_{name}"))
            scores = scores.join(found, on="row", how="left", suffix=f" {name}", maintain_order="left")
            own.append(scores[f"surprise {name}"])
            scores = scores.drop(f"surprise {name}")
        nats = LN_10 * np.stack([surprise.fill_null(np.nan).to_numpy() for surprise in own], axis=1)
        log_p = self.together(nats)
        least = np.maximum(log_p, LEAST_LOG_P)
        each = np.exp(np.maximum(-nats, LEAST_LOG_P))
        names = self.schema.view_names
        scores = scores.with_columns(
            pl.Series("p_value", np.exp(least)),
            pl.Series("score", -np.expm1(least)),
            pl.Series("surprise", -log_p / LN_10),
            *(pl.Series(f"p_{name}", one).fill_nan(None) for name, one in zip(names, each.T, strict=True)),
        )
        self._last = (read, scores)
        return scores

    def together(self, nats: Float) -> Float:
        """Natural log of the p-value of n events from -ln p of their views, (n, V); NaN = not in that view."""
        absent = np.zeros((len(nats), len(self.detectors) - nats.shape[1]))
        return np.asarray(np.minimum(self.joint_.log_p(_mean(np.hstack([nats, absent]))), 0.0))

    # ---- explanations ------------------------------------------------------------------------------------------------
    def explain(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> pl.DataFrame:
        """As `anomaly.explain.explain`, view by view; ``view`` names the further ones, and is null for the first."""
        told = []
        for name, detector, seen, own, factor in self._told(events, rows, scores):
            found = detector.explain(seen, rows, own).join(factor, on="row", how="left", maintain_order="left")
            scaled = found.with_columns(pl.col("part") * pl.col("factor"), pl.col("share") * pl.col("view_share"))
            told.append(scaled.drop("factor", "view_share").with_columns(pl.lit(name, pl.String).alias("view")))
        return pl.concat(told)

    def breakdown(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> pl.DataFrame:
        """Parts as of `Breakdown.parts`, which sum to the whole over all views; further views stand in ``detector``.

        A view's part in the surprise is in proportion to its Aumann-Shapley value in the mean, as everywhere in
        `anomaly.breakdown`, and is handed down to its fields in proportion to what they have in its own surprise.
        """
        return self._parted(events, rows, scores).parts

    def counterfactual(self, events: Any, rows: Sequence[int], scores: pl.DataFrame, rule: Threshold) -> pl.DataFrame:
        """Changes with which events would pass, as `anomaly.counterfactual` finds them in the first view.

        What the further views say of an event is left as it was scored: a change that would move it to another
        terminal is judged by the customer's view anew, and not by the terminal's.
        """
        self._fitted()
        read, first = as_events(events, self.schema), self.detectors[0]
        nats = self._nats(rows, scores)
        at = {row: number for number, row in enumerate(rows)}

        def whole(log_p: Float, changed: Any) -> Float:
            said = nats[[at[row] for row in changed.tolist()]]
            return self.together(np.column_stack([-log_p, said[:, 1:]]))

        judge = Judge(
            first.schema,
            first.encoder_,
            first.scorer_,
            first.models_[-1],
            first.errors,
            rule,
            first.quarantine_,
            whole,
        )
        parts = self.breakdown(read, rows, scores)
        mine = parts.filter(~pl.col("detector").str.contains(": ", literal=True))
        return counterfactuals(judge, read.seen_by(first.schema).frame, rows, scores, mine)

    def _parted(self, events: Any, rows: Sequence[int], scores: pl.DataFrame) -> Breakdown:
        parts, windows = [], []
        for name, detector, seen, own, factor in self._told(events, rows, scores):
            told = detector._parted(seen, rows, own)
            scaled = told.parts.join(factor, on="row", how="left", maintain_order="left").with_columns(
                pl.col("part") * pl.col("factor"), pl.col("share") * pl.col("view_share")
            )
            known = pl.col("detector") if name is None else pl.format(f"{name}: {{}}", "detector")
            parts.append(scaled.drop("factor", "view_share").with_columns(known.alias("detector")))
            windows.append(told.windows if name is None else told.windows.clear())
        return Breakdown(pl.concat(parts), pl.concat(windows))

    def _told(
        self, events: Any, rows: Sequence[int], scores: pl.DataFrame
    ) -> list[tuple[str | None, Detector, Events, pl.DataFrame, pl.DataFrame]]:
        """Of each view: name (None: the first), detector, events, own scores of the rows, and what scales its parts."""
        self._fitted()
        read = as_events(events, self.schema)
        nats = self._nats(rows, scores)
        terms = _terms(nats)
        whole = -self.together(nats) / LN_10
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.nan_to_num(terms / terms.sum(axis=1, keepdims=True))
            factor = np.nan_to_num(share * whole[:, None] / (nats / LN_10), posinf=0.0)
        told = []
        for number, (name, detector) in enumerate(self._named()):
            seen = read.seen_by(detector.schema)
            scale = {"row": list(rows), "factor": factor[:, number], "view_share": share[:, number]}
            if number == 0:
                own = scores.with_columns(surprise=-pl.col(f"p_{name}").log10())
            else:
                own = _own_scores(detector, seen, rows)
            told.append((name if number else None, detector, seen, own, pl.DataFrame(scale, schema_overrides=_SCALE)))
        return told

    def _nats(self, rows: Sequence[int], scores: pl.DataFrame) -> Float:
        """-ln p of the rows in each view, (n, V), as the score table has them; NaN = not in that view."""
        names = [f"p_{name}" for name in self.schema.view_names]
        if missing := [name for name in names if name not in scores.columns]:
            raise InputError(f"views: the scores have no column {', '.join(missing)}; score again with this detector")
        given = pl.DataFrame({"row": pl.Series(rows, dtype=pl.Int64)}).join(
            scores.select("row", *names), on="row", how="left", maintain_order="left"
        )
        return np.stack([-np.log(given[name].fill_null(np.nan).to_numpy()) for name in names], axis=1)

    # ---- fitting and keeping -----------------------------------------------------------------------------------------
    def _named(self) -> list[tuple[str, Detector]]:
        return list(zip(self.schema.view_names, self.detectors, strict=True))

    def _combine(
        self, read: Events, since: float | None, end: float | None, former: Sequence[Float] | None = None
    ) -> Float:
        """Calibrate the mean over the views on the events that every view held out.

        Natural logs of these events' p-values before, if `former` has them for the slice of each view.
        """
        rows = [_held_out(detector, read, since, end) for detector in self.detectors]
        start = max(detector.fitted_["held_out_since"] for detector in self.detectors) if since is None else since
        old = self.detectors[0].holdout_
        later = old.time >= start
        places = [_places(rows[0][later], one) for one in rows]

        def side_by_side(each: Sequence[Float]) -> Float:
            return np.column_stack([_taken(one, at) for one, at in zip(each, places, strict=True)])

        said = np.empty(0) if former is None else self.together(side_by_side([-log_p for log_p in former]))
        nats = side_by_side([-np.log(detector.holdout_.p) for detector in self.detectors])
        unusual = side_by_side([(~detector.usual_).astype(np.float64) for detector in self.detectors])
        normal = (np.nan_to_num(unusual) == 0).all(axis=1)
        total = _mean(nats)
        self.joint_ = TailCalibrator().fit(total[normal])
        self.check_ = calibration_check(total[normal], old.time[later][normal])
        p = np.exp(np.maximum(self.together(nats), LEAST_LOG_P))
        self.holdout_, self._last = replace(old.within(later), p=p), None
        return said

    def _told_of(self, fitted: Mapping[str, Any]) -> None:
        """Keep what is told of a fit, the views' own included."""
        views = {name: detector.fitted_ for name, detector in self._named()}
        self.fitted_ = {**fitted, "check": self.check_, "views": views}
        self._follow_first()

    def _follow_first(self) -> None:
        """What the page and the cases show of a detector is the first view's."""
        first = self.detectors[0]
        self.encoder_, self.models_, self.population_ = first.encoder_, first.models_, first.population_
        self.scorer_, self.known_, self.gap_ = first.scorer_, first.known_, first.gap_
        self.quarantine_ = first.quarantine_

    def _settings(self) -> dict[str, str]:
        others = ", ".join(self.schema.view_names[1:])
        return {**super()._settings(), "Further views": others}

    def _one_view(self) -> None:
        """Several views are what this is for."""

    def _copies(self, frame: pl.DataFrame, since: float, episodes: int, seed: int) -> Any:
        """Frauds planted for the first view; the further views say nothing of them."""
        first = self.detectors[0]
        return first._copies(frame.select(pl.exclude(f"^{VIEW}.*$")), since, episodes, seed)

    def _packed(self) -> tuple[dict[str, Any], dict[str, Arrays]]:
        packed = [detector._packed() for detector in self.detectors]
        parts: dict[str, Arrays] = {
            f"view{number}.{name}": part for number, (_, own) in enumerate(packed) for name, part in own.items()
        }
        parts |= {"joint": self.joint_.arrays(), "history": self.holdout_.arrays()}
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "schema": self.schema.model_dump(mode="json"),
            "views": [own for own, _ in packed],
            "fitted": self.fitted_,
        }
        return manifest, parts

    @classmethod
    def _restored(cls, manifest: Mapping[str, Any], parts: Mapping[str, Arrays], device: str | None) -> Views:
        made = cls(Schema.model_validate(manifest["schema"]), **manifest["views"][0]["parameters"], device=device)
        detectors = []
        for number, own in enumerate(manifest["views"]):
            prefix = f"view{number}."
            mine = {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}
            detectors.append(Detector._restored(own, mine, device))
        made._detectors = tuple(detectors)
        made.joint_ = TailCalibrator.from_arrays(parts["joint"])
        made.holdout_ = Holdout.restored(parts["history"])
        made.fitted_ = manifest["fitted"]
        made.check_ = made.fitted_["check"]
        made._follow_first()
        return made


_SCALE = {"row": pl.Int64, "factor": pl.Float64, "view_share": pl.Float64}


def make_detector(schema: Schema, **options: Any) -> Detector:
    """Make the detector of a schema's one view, or of its several."""
    return (Views if len(schema.entity) > 1 else Detector)(schema, **options)


def load_detector(folder: Path | str, *, device: str | None = None) -> Detector:
    """Read what `save` wrote, of one view or of several.

    Raises
    ------
    ArtifactError
        As `Detector.load`.
    """
    several = "views" in read_manifest(folder)
    return (Views if several else Detector).load(folder, device=device)


def _mean(nats: Float) -> Float:
    """-ln of the weighted harmonic mean of p, (n,), from -ln p, (n, V); NaN where the first view says nothing."""
    weights = _weights(nats)
    mean = np.logaddexp.reduce(np.nan_to_num(nats) + np.log(weights), axis=1) - np.log(weights.sum())
    return np.where(np.isnan(nats[:, 0]), np.nan, mean)


def _weights(nats: Float) -> Float:
    return np.array([1.0, *[FURTHER] * (nats.shape[1] - 1)])


def _terms(nats: Float) -> Float:
    """Aumann-Shapley values of the views in the mean, (n, V): >= 0, and they sum to it.

    nats_v times the mean derivative by nats_v along the straight way from 0, which is w_v e^(t nats_v) over the sum of
    these; integrated by Gauss and Legendre, and scaled by what that leaves out.
    """
    known, weights = np.nan_to_num(nats), _weights(nats)
    places, lengths = np.polynomial.legendre.leggauss(NODES)
    raised = np.log(weights) + (places[:, None, None] + 1) / 2 * known
    slope = np.exp(raised - np.logaddexp.reduce(raised, axis=2, keepdims=True))
    values = known * np.einsum("t,tnv->nv", lengths / 2, slope)
    whole = values.sum(axis=1, keepdims=True)
    split: Float = np.nan_to_num(_mean(nats))[:, None] * values
    return np.asarray(np.divide(split, whole, out=np.zeros_like(split), where=whole > 0))


def _held_out(detector: Detector, read: Events, since: float | None, end: float | None) -> Int:
    """Rows of the events that calibrated a view, (n,), in its own order."""
    start = detector.fitted_["held_out_since"] if since is None else since
    held = pl.col("time") >= start if end is None else (pl.col("time") >= start) & (pl.col("time") < end)
    return read.seen_by(detector.schema).frame.filter(held)["row"].to_numpy()


def _places(rows: Int, among: Int) -> Int:
    """Where each of the `rows` (n,) stands among others, all different; -1 = it does not."""
    order = np.argsort(among)
    at = order[np.minimum(np.searchsorted(among, rows, sorter=order), len(among) - 1)]
    return np.where(among[at] == rows, at, -1)


def _taken(values: Float, at: Int) -> Float:
    """The values (m,) at these places, (n,); NaN where there is none."""
    return np.where(at < 0, np.nan, values[at])


def _scored(detector: Detector, read: Events, since: When) -> pl.DataFrame:
    """A view's score table; of a further view without rows where none of the events is of its entities."""
    seen, start = read.seen_by(detector.schema), as_seconds(since)
    late = seen.frame["time"].max() if len(seen) else None
    if detector.schema.key != read.schema.key and (late is None or (start is not None and late < start)):  # type: ignore[operator]
        return pl.DataFrame(schema={"row": pl.Int64, "surprise": pl.Float64, "status": pl.String})
    scores = detector.score(seen, since=since)
    detector._last = None  # the events and scores of all views together are kept, and no others
    return scores


def _own_scores(detector: Detector, seen: Events, rows: Sequence[int]) -> pl.DataFrame:
    """A view's own scores of some rows, after the whole histories of their entities in it."""
    some, chosen = histories(seen.frame, rows)
    if not chosen.any():
        return pl.DataFrame(schema={"row": pl.Int64, "surprise": pl.Float64})
    first = float(some["time"].filter(pl.Series(chosen)).min())  # type: ignore[arg-type]
    scores = detector.score(Events(seen.schema, some, seen.rejects, seen.n_input, seen.notes), since=first)
    detector._last = None
    return scores.filter(pl.col("row").is_in(pl.Series(rows, dtype=pl.Int64).implode()))
