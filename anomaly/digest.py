"""Numbers of a report: scores, cases and events -> ReportData. Everything on the page is computed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from anomaly.alerts import add_reasons, number_text
from anomaly.calibration import TailCalibrator
from anomaly.ingest import Events
from anomaly.report import CaseTimeline, ReportData
from anomaly.schema import Schema
from anomaly.thresholds import Budget, Threshold

TOP_CASES = 12  # cases with details of their own
CONTEXT_EVENTS = 8  # events before a case that its table shows, and at most as many of a long case after its first
TABLE_EVENTS = 40
LEVELS = np.logspace(-4, 0, 13)
_KEY, _LOW, _HIGH = "\x1fentity", "\x1flow", "\x1fhigh"  # unlike any column of the user's


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a report is made of.

    Attributes
    ----------
    schema, events, scores, cases, rule :
        The schema, the events read, the score table, the cases found, and the fitted decision rule.
    explain : callable
        Input rows -> explanation table (see `anomaly.explain.explain`).
    expected : callable
        (input rows, field) -> frame ``row, low, high``.
    fitted : mapping
        What the detector says of its fit: counts, times, training runs, calibration check.
    settings, versions : mapping of str to str
        Shown as they are.
    """

    schema: Schema
    events: Events
    scores: pl.DataFrame
    cases: pl.DataFrame
    rule: Threshold
    explain: Callable[[Sequence[int]], pl.DataFrame]
    expected: Callable[[Sequence[int], str], pl.DataFrame]
    fitted: Mapping[str, Any]
    settings: Mapping[str, str]
    versions: Mapping[str, str]


def report_data(source: Source, *, title: str, command: str | None) -> ReportData:
    """Compute all that the page shows."""
    scores, cases = source.scores, source.cases
    worth = money_at_risk(scores, source.schema)
    threshold = source.rule.batch_threshold(scores["p_value"].to_numpy(), money=worth)
    decided = decide(source.rule, scores, source.schema)
    money = money_field(source.schema)
    return ReportData(
        title=title,
        created=datetime.now(UTC),
        summary=summary(source, money),
        settings=source.settings,
        versions=source.versions,
        command=command,
        threshold_p=threshold,
        threshold_text=source.rule.describe(),
        score_histogram=score_histogram(scores["surprise"], decided),
        alerts_per_day=alerts_per_day(scores, cases, decided),
        cases=cases,
        timelines=timelines(source, decided),
        calibration=pl.DataFrame(source.fitted["check"]),
        histories={name: pl.DataFrame(run["history"]) for name, run in source.fitted["runs"].items()},
        rejects=rejects(source.events.rejects),
        notes=source.events.notes,
        budget_per_day=source.rule.per_day if isinstance(source.rule, Budget) else None,
        money_name=money or "",
        time_zone=source.schema.time_zone,
    )


def calibration_check(statistic: NDArray[np.float64], time: NDArray[np.float64]) -> dict[str, list[float]]:
    """Stated against observed shares: p-values from the first half of the held-out slice, checked on its second half.

    Returns
    -------
    dict
        ``nominal``, ``observed``, and ``low``, ``high`` of a 95 % interval (Wilson); plain lists.
    """
    early = time <= np.median(time)
    if not early.any() or early.all():
        return {"nominal": [], "observed": [], "low": [], "high": []}
    p = TailCalibrator().fit(statistic[early]).p_values(statistic[~early])
    hits = [int((p <= level).sum()) for level in LEVELS]
    intervals = [stats.binomtest(hit, len(p)).proportion_ci(method="wilson") for hit in hits]
    return {
        "nominal": LEVELS.tolist(),
        "observed": [hit / len(p) for hit in hits],
        "low": [float(interval.low) for interval in intervals],
        "high": [float(interval.high) for interval in intervals],
    }


def money_field(schema: Schema) -> str | None:
    """The field that is summed as money at risk: the first numeric one on a log scale."""
    return next((field.name for field in schema.numeric if field.scale == "log"), None)


def money_at_risk(scores: pl.DataFrame, schema: Schema) -> NDArray[np.float64]:
    """What each scored event is worth, (n,); NaN where unknown."""
    name = money_field(schema)
    if name is None:
        return np.full(len(scores), np.nan)
    return scores[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def decide(rule: Threshold, scores: pl.DataFrame, schema: Schema) -> NDArray[np.bool_]:
    """Which of the scored events alert, (n,)."""
    return rule.decide(scores["p_value"].to_numpy(), money=money_at_risk(scores, schema))


def summary(source: Source, money: str | None) -> dict[str, str]:
    """Label -> text of the tiles."""
    scores, cases = source.scores, source.cases
    days = max(1, scores["time"].dt.date().n_unique())
    used = len(source.events) - len(scores)
    tiles = {
        "Cases": f"{len(cases):,}",
        "Cases per day": number_text(round(len(cases) / days, 1)),
        "Events scored": f"{len(scores):,}",
        "Entities": f"{scores.select(pl.struct(source.schema.entity).n_unique()).item():,}"
        if source.schema.entity
        else "1",
        "Period": scores.select(pl.format("{} to {}", pl.min("time").dt.date(), pl.max("time").dt.date())).item(),
        "History before": f"{used:,} events",
        "Rows rejected": f"{len(source.events.rejects):,} of {source.events.n_input:,}",
    }
    if money is not None and len(cases):
        tiles[f"{money} in alerts"] = f"{cases['money'].sum():,.0f}"
    return tiles


def score_histogram(
    surprise: pl.Series, decided: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Edges, counts of all events and counts of alerting ones, on surprise."""
    values = surprise.to_numpy()
    known = np.isfinite(values)
    top = float(np.ceil(values[known].max(initial=0.0)))
    edges = np.linspace(0.0, max(4.0, top), 49)
    return edges, np.histogram(values[known], edges)[0], np.histogram(values[known & decided], edges)[0]


def alerts_per_day(scores: pl.DataFrame, cases: pl.DataFrame, decided: NDArray[np.bool_]) -> pl.DataFrame:
    """One row per day of the scored period: ``day, cases, events, alerting, money``; a case counts where it starts."""
    daily = (
        scores.select(day=pl.col("time").dt.date(), alerting=pl.Series(decided))
        .group_by("day")
        .agg(events=pl.len(), alerting=pl.col("alerting").sum())
    )
    opened = cases.group_by(day=pl.col("start").dt.date()).agg(cases=pl.len(), money=pl.col("money").sum())
    days = daily.select(day=pl.date_range(pl.min("day"), pl.max("day")))
    joined = days.join(daily, on="day", how="left").join(opened, on="day", how="left")
    return joined.select("day", pl.col("cases", "events", "alerting", "money").fill_null(0)).sort("day")


def rejects(frame: pl.DataFrame) -> pl.DataFrame:
    """Kinds of reasons with how many rows they hit and the first of them: ``reason, rows, example``."""
    # A reason ends in the value it names; what stands before the value is its kind.
    kind = pl.col("reason").str.replace_all(r"'[^']*'|row \d+|-?\d[\d.,:+TZ-]*", "…")
    return (
        frame.group_by(kind.alias("kind"), maintain_order=True)
        .agg(rows=pl.len(), row=pl.col("row").first(), example=pl.col("reason").first())
        .select(
            pl.col("kind").alias("reason"),
            "rows",
            pl.format("row {}: {}", "row", "example").alias("example"),
        )
        .sort("rows", descending=True)
    )


def timelines(source: Source, decided: NDArray[np.bool_]) -> dict[int, CaseTimeline]:
    """Details of the top cases: the entity's scored events, with what was expected at each."""
    top = source.cases.head(TOP_CASES)
    if not len(top):
        return {}
    scores = source.scores.with_columns(alerting=pl.Series(decided))
    frame = source.events.frame
    entity_of = frame.select("row", pl.col("entity").alias(_KEY))
    chosen = entity_of.filter(pl.col("row").is_in(top["peak_row"].implode()))
    entities = dict(chosen.iter_rows())
    wanted = entity_of.filter(pl.col(_KEY).is_in(list(entities.values())))
    told = wanted.join(scores, on="row", how="inner").sort("time", "row")
    value = source.schema.numeric[0].name if source.schema.numeric else None
    if value is not None:
        band = source.expected(told["row"].to_list(), value).select(
            "row", pl.col("low").alias(_LOW), pl.col("high").alias(_HIGH)
        )
        told = told.join(band, on="row", how="left", maintain_order="left")
    shown = {
        case["case"]: _case_events(told.filter(pl.col(_KEY) == entities[case["peak_row"]]), case)
        for case in top.iter_rows(named=True)
    }
    reasons = _reasons(source, pl.concat(list(shown.values())))
    return {
        case["case"]: _timeline(
            case["entity"],
            told.filter(pl.col(_KEY) == entities[case["peak_row"]]),
            value,
            _event_table(shown[case["case"]], reasons, source.schema),
        )
        for case in top.iter_rows(named=True)
    }


def _case_events(history: pl.DataFrame, case: Mapping[str, Any]) -> pl.DataFrame:
    """The events of a case and a few before it."""
    position = pl.int_range(pl.len())
    inside = history.with_columns(position=position).filter(pl.col("row").is_in(case["rows"]))["position"]
    first, last = int(inside.min()), int(inside.max())  # type: ignore[arg-type]
    return history.slice(max(0, first - CONTEXT_EVENTS), min(TABLE_EVENTS, last - max(0, first - CONTEXT_EVENTS) + 1))


def _reasons(source: Source, events: pl.DataFrame) -> pl.DataFrame:
    """Reasons of the alerting events: ``row, reasons``."""
    rows = events.filter(pl.col("alerting"))["row"].unique(maintain_order=True)
    table = add_reasons(pl.DataFrame({"peak_row": rows}), source.explain(rows.to_list()))
    return table.select(pl.col("peak_row").alias("row"), "reasons")


def _event_table(events: pl.DataFrame, reasons: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    names = [*(field.name for field in schema.numeric), *schema.categorical]
    joined = events.join(reasons, on="row", how="left", maintain_order="left")
    return joined.select("row", "time", *names, "status", "surprise", "alerting", "reasons")


def _timeline(entity: str, history: pl.DataFrame, value: str | None, table: pl.DataFrame) -> CaseTimeline:
    def column(name: str) -> NDArray[np.float64]:
        return history[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()

    return CaseTimeline(
        entity=entity,
        time=history["time"].dt.replace_time_zone(None).to_numpy(),
        value=None if value is None else column(value),
        value_name=value or "",
        surprise=column("surprise"),
        alerting=history["alerting"].to_numpy(),
        events=table,
        low=None if value is None else column(_LOW),
        high=None if value is None else column(_HIGH),
    )
