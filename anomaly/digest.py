"""Numbers of a report: scores, cases and events -> ReportData. Everything on the page is computed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import scipy
from numpy.typing import NDArray

from anomaly.alerts import add_reasons, number_text
from anomaly.calibration import TailCalibrator
from anomaly.casework import familiarity, field_columns, linked_entities, similar_events
from anomaly.drift import drift
from anomaly.history import time_text
from anomaly.ingest import Events, utc_time
from anomaly.report_data import CaseTimeline, ReportData
from anomaly.schema import Schema
from anomaly.thresholds import Budget, Threshold

TOP_CASES = 100  # cases with details of their own
CONTEXT_EVENTS = 3  # events before a case that its table shows
TABLE_EVENTS = 20  # events of a case that its table shows
TOLD_REASONS = 1  # of each event in that table; the strangest event has all of its own above it
DRAWN_BEFORE, DRAWN_EVENTS = 40, 64  # events of a timeline: at most so many before the case, and in all
SMALL_SHARE = 0.01  # of a surprise: parts below it are shown as one
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
    quarantine : float
        Seconds until an event is in the models' memory.
    held : DataFrame, optional
        ``entity, time, surprise`` of the events that calibrated the detector.
    breakdown : callable, optional
        Input rows -> frame ``row, detector, field, part, share``: parts that add up to each event's surprise.
    counterfactual : callable, optional
        Input rows -> frame ``row, sentence``: what would have passed.
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
    quarantine: float = 0.0
    held: pl.DataFrame | None = None
    breakdown: Callable[[Sequence[int]], pl.DataFrame] | None = None
    counterfactual: Callable[[Sequence[int]], pl.DataFrame] | None = None


def report_data(source: Source, *, title: str, command: str | None) -> ReportData:
    """Compute all that the page shows."""
    scores, cases = source.scores, source.cases
    threshold = batch_level(source.rule, scores, source.schema)
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
        cases=cases.join(
            scores.select(pl.col("row").alias("peak_row"), "status"), on="peak_row", how="left", maintain_order="left"
        ),
        timelines=timelines(source, decided),
        calibration=pl.DataFrame(source.fitted["check"]),
        histories={name: pl.DataFrame(run["history"]) for name, run in source.fitted["runs"].items()},
        drift=drift(source.events.frame, scores, source.schema, source.held),
        quality=quality(source),
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
    intervals = [scipy.stats.binomtest(hit, len(p)).proportion_ci(method="wilson") for hit in hits]
    return {
        "nominal": LEVELS.tolist(),
        "observed": [hit / len(p) for hit in hits],
        "low": [float(interval.low) for interval in intervals],
        "high": [float(interval.high) for interval in intervals],
    }


def fit_told(fitted: Mapping[str, Any], models: Sequence[str]) -> dict[str, str]:
    """What a detector was fitted on, and calibrated on since, in words by what it is; `fitted` as of `Detector.fit`."""
    drawn = "" if "sample" not in fitted else f", a sample of {fitted['sample']['of_entities']:,}"
    told = {
        "Fitted on": f"{fitted['events']:,} events of {fitted['entities']:,} entities{drawn}, without labels",
        "History": f"{time_text(fitted['first'])} to {time_text(fitted['last'])}",
        "Split by time": f"{fitted['train']:,} train, {fitted['stop']:,} stop, {fitted['held_out']:,} calibrate",
        "Models": " and ".join(models),
    }
    if anew := fitted.get("recalibrated"):
        since = f"{time_text(anew['first'])} to {time_text(anew['last'])}"
        told["Calibrated anew"] = f"on {anew['events']:,} events that trained nothing, {since}"
    return told


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
    worth, entity = money_at_risk(scores, schema), _entity_codes(scores, schema)
    return rule.decide(scores["p_value"].to_numpy(), money=worth, entity=entity)


def batch_level(rule: Threshold, scores: pl.DataFrame, schema: Schema) -> float:
    """Largest p-value that alerts among the scored events, or would; 0 if none does."""
    worth, entity = money_at_risk(scores, schema), _entity_codes(scores, schema)
    return rule.batch_threshold(scores["p_value"].to_numpy(), money=worth, entity=entity)


def _entity_codes(scores: pl.DataFrame, schema: Schema) -> NDArray[np.int64]:
    if not schema.key:
        return np.zeros(len(scores), dtype=np.int64)
    return scores.select(pl.struct(schema.key).rank("dense")).to_series().to_numpy().astype(np.int64)


def summary(source: Source, money: str | None) -> dict[str, str]:
    """Label -> text of the tiles."""
    scores, cases = source.scores, source.cases
    days = max(1, scores["time"].dt.date().n_unique())
    used = len(source.events) - len(scores)
    tiles = {
        "Cases": f"{len(cases):,}",
        "Cases per day": number_text(round(len(cases) / days, 1)),
        "Events scored": f"{len(scores):,}",
        "Entities": f"{scores.select(pl.struct(source.schema.key).n_unique()).item():,}" if source.schema.key else "1",
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


def quality(source: Source) -> pl.DataFrame:
    """What is missing among the scored events, and how many have which status: ``what, events, share``."""
    scores, schema = source.scores, source.schema
    names = [*(field.name for field in schema.numeric), *schema.categorical]
    holes = {f"without {name}": int(scores[name].null_count()) for name in names}
    statuses = {f"status {name}": int(n) for name, n in sorted(scores["status"].value_counts().iter_rows())}
    counts = {**{what: n for what, n in holes.items() if n}, **statuses}
    rows = [(what, n, n / max(len(scores), 1)) for what, n in counts.items()]
    return pl.DataFrame(rows, schema={"what": pl.String, "events": pl.Int64, "share": pl.Float64}, orient="row")


# ---- the details of the top cases ------------------------------------------------------------------------------------
def timelines(source: Source, decided: NDArray[np.bool_]) -> dict[int, CaseTimeline]:
    """Details of the top cases: the entity's events up to the case's end, with what was expected at each."""
    top = source.cases.head(TOP_CASES)
    if not len(top):
        return {}
    told = _told(source, decided, top["peak_row"])
    owner = dict(told.filter(pl.col("row").is_in(top["peak_row"].implode())).select("row", "entity").iter_rows())
    histories = {key: part for (key,), part in told.group_by("entity", maintain_order=True)}
    spans = {case["case"]: _span(histories[owner[case["peak_row"]]], case) for case in top.iter_rows(named=True)}
    views = {case["case"]: (case, histories[owner[case["peak_row"]]]) for case in top.iter_rows(named=True)}
    rows = pl.concat([history["row"].slice(*spans[n].drawn) for n, (_, history) in views.items()]).unique().sort()
    value = source.schema.numeric[0].name if source.schema.numeric else None
    band = None if value is None else source.expected(rows.to_list(), value).unique("row")
    tables = {n: history.slice(*spans[n].table) for n, (_, history) in views.items()}
    reasons = _reasons(source, pl.concat(list(tables.values())))
    scored = source.events.frame.filter(pl.col("row").is_in(source.scores["row"].implode()))
    links = linked_entities(scored, source.cases, source.schema, TOP_CASES)
    parts, sentences = _told_of_peaks(source, top["peak_row"])
    found = {}
    for n, (case, history) in views.items():
        drawn = _drawn(history.slice(*spans[n].drawn), case, source, band)
        found[n] = CaseTimeline(
            entity=case["entity"],
            value_name=value or "",
            events=_event_table(tables[n], reasons, source.schema),
            known=spans[n].last + 1,
            similar=similar_events(history, spans[n].peak, spans[n].first, source.schema),
            linked=links.filter(pl.col("case") == n),
            parts=parts.filter(pl.col("row") == case["peak_row"]),
            counterfactual=sentences.get(case["peak_row"], ""),
            money_since=_money_since(history, spans[n], source.schema),
            **drawn,
        )
    return found


@dataclass(frozen=True)
class _Span:
    """Where a case lies in its entity's history: first and last alerting event, the strangest, and what is shown."""

    first: int
    last: int
    peak: int
    drawn: tuple[int, int]
    table: tuple[int, int]


def _told(source: Source, decided: NDArray[np.bool_], peaks: pl.Series) -> pl.DataFrame:
    """Whole histories of the entities of the peak events, with what was said of each event, in order of time."""
    said = source.scores.select("row", "surprise", "status", pl.Series("alerting", decided))
    frame = source.events.frame
    keys = frame.filter(pl.col("row").is_in(peaks.implode()))["entity"].unique()
    gap = pl.col("time").diff().over("entity")
    return (
        frame.filter(pl.col("entity").is_in(keys.implode()))
        .join(said, on="row", how="left", maintain_order="left")
        .with_columns(
            pl.col("alerting").fill_null(value=False),
            gap.alias("gap"),
            *(familiarity(f"c:{name}").alias(f"k:{name}") for name in source.schema.categorical),
        )
    )


def _span(history: pl.DataFrame, case: Mapping[str, Any]) -> _Span:
    rows = history["row"]
    inside = rows.is_in(pl.Series(case["rows"]).implode()).arg_true()
    first, last = int(inside[0]), int(inside[-1])
    before = max(DRAWN_BEFORE // 4, min(DRAWN_BEFORE, DRAWN_EVENTS - (last + 1 - first)))
    start = max(0, first - before)
    stop = min(last + 1, start + DRAWN_EVENTS)
    context = max(0, first - CONTEXT_EVENTS)
    peak = int((rows == case["peak_row"]).arg_max() or 0)
    return _Span(first, last, peak, (start, stop - start), (context, min(TABLE_EVENTS, last + 1 - context)))


def _drawn(history: pl.DataFrame, case: Mapping[str, Any], source: Source, band: pl.DataFrame | None) -> dict[str, Any]:
    """What a timeline draws: arrays over its events."""
    schema = source.schema

    def column(name: str) -> NDArray[np.float64]:
        return history[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()

    time = history["time"].to_numpy()
    start, end = case["start"].timestamp(), case["end"].timestamp()
    arrays: dict[str, Any] = {
        "time": np.rint(time * 1e6).astype(np.int64).astype("datetime64[us]"),
        "value": None,
        "surprise": column("surprise"),
        "alerting": history["alerting"].to_numpy(),
        "inside": (time >= start - 1e-3) & (time <= end + 1e-3),
        "remembered": time < start - source.quarantine if source.quarantine else None,
        "gap": column("gap"),
        "strips": {name: history[f"k:{name}"].to_numpy() for name in schema.categorical},
    }
    if band is not None:
        known = history.select("row").join(band, on="row", how="left", maintain_order="left")
        arrays["low"], arrays["high"] = (known[name].fill_null(float("nan")).to_numpy() for name in ("low", "high"))
        arrays["value"] = column(f"n:{schema.numeric[0].name}")
    if schema.place is not None:
        arrays["latitude"], arrays["longitude"] = column("p:latitude"), column("p:longitude")
    return arrays


def _told_of_peaks(source: Source, peaks: pl.Series) -> tuple[pl.DataFrame, dict[int, str]]:
    """Parts of each peak event's surprise, the largest first, and what would have passed."""
    rows = peaks.unique(maintain_order=True).to_list()
    parts = pl.DataFrame(schema={"row": pl.Int64, "part": pl.String, "share": pl.Float64})
    if source.breakdown is not None:
        name = pl.concat_str([pl.col(c).fill_null("") for c in ("detector", "field")], separator=" · ")
        found = source.breakdown(rows).select("row", name.str.strip_chars(" ·").alias("part"), "share")
        parts = _folded(found.sort("row", pl.col("share").abs(), descending=[False, True], maintain_order=True))
    if source.counterfactual is None:
        return parts, {}
    told = source.counterfactual(rows).select("row", "sentence").drop_nulls()
    return parts, dict(told.unique("row", keep="first", maintain_order=True).iter_rows())


def _folded(parts: pl.DataFrame) -> pl.DataFrame:
    """Parts too small to be seen as one; the sum stays."""
    small = pl.col("share").abs() < SMALL_SHARE
    rest = parts.filter(small).group_by("row", maintain_order=True).agg(
        pl.format("{} smaller {}", pl.len(), pl.when(pl.len() == 1).then(pl.lit("part")).otherwise(pl.lit("parts")))
        .alias("part"),
        pl.col("share").sum(),
    )  # fmt: skip
    return pl.concat([parts.filter(~small.fill_null(value=True)), rest])


def _money_since(history: pl.DataFrame, span: _Span, schema: Schema) -> float:
    name = money_field(schema)
    return float("nan") if name is None else float(history[f"n:{name}"].slice(span.first).sum())


def _reasons(source: Source, events: pl.DataFrame) -> pl.DataFrame:
    """The first reason of the alerting events: ``row, reasons``."""
    rows = events.filter(pl.col("alerting"))["row"].unique(maintain_order=True)
    table = add_reasons(pl.DataFrame({"peak_row": rows}), source.explain(rows.to_list()), most=TOLD_REASONS)
    return table.select(pl.col("peak_row").alias("row"), "reasons")


def _event_table(events: pl.DataFrame, reasons: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    joined = events.join(reasons, on="row", how="left", maintain_order="left")
    fields = field_columns(schema)
    return joined.select("row", utc_time().alias("time"), *fields, "status", "surprise", "alerting", "reasons")
