"""All that is told of one event, computed: how rare it is, what made it so, what would have let it pass, what led up.

For the verb ``anomaly explain``; `anomaly.terminal` and `anomaly.event_figure` show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.alerts import add_reasons
from anomaly.breakdown import PAST, histories
from anomaly.detector import Detector
from anomaly.digest import batch_level, decide
from anomaly.errors import InputError
from anomaly.explain import expected_range
from anomaly.ingest import Events, utc_time
from anomaly.masking import NameMask
from anomaly.schema import Schema
from anomaly.thresholds import Threshold
from anomaly.wording import one_in

LAST_EVENTS = 10  # shown before the event
MOST_REASONS = 5
TOLD_IDS = 3  # examples in an error


@dataclass(frozen=True, kw_only=True)
class EventStory:
    """One event, explained.

    Attributes
    ----------
    facts : dict
        Plain values: ``summary`` in a sentence, ``row``, ``event`` (its columns), ``p_value``, ``surprise``,
        ``status``, ``alerts``, ``threshold_p``, ``reasons``, ``parts`` (see `Breakdown.parts`), ``counterfactual``,
        ``last_events``.
    parts : polars.DataFrame
        ``field, part, share, detectors``: summed over the detectors, the largest first, "recent past" as one.
    events : polars.DataFrame
        The event, last, and those of its entity before it: ``time`` in the schema's zone, the fields, ``status``,
        ``surprise`` (null where not scored), ``alerting``.
    timeline : dict of str to ndarray, shape (n,)
        All events of the entity: ``time`` (datetime64), ``value, low, high`` of the first numeric field where there is
        one, ``surprise``, ``alerting``, and ``chosen``, which is the event.
    value_name : str
        Name of that field, or "".
    near_days : float
        Length of the longest window of the recent past.
    """

    facts: dict[str, Any]
    parts: pl.DataFrame
    events: pl.DataFrame
    timeline: Mapping[str, NDArray[Any]]
    value_name: str
    near_days: float


def find_row(read: Events, scores: pl.DataFrame, event: str | None, row: int | None) -> int:
    """Input row of the scored event that is named by its id or its row.

    Raises
    ------
    InputError
        If there is no such event, it was not scored, or the schema has no event id.
    """
    if event is not None and read.schema.event_id is None:
        raise InputError("--event: the schema names no event id; give --row, the position in the input from 0")
    found = read.frame.filter(pl.col("event_id") == event if event is not None else pl.col("row") == row)
    if not len(found):
        ids = ", ".join(read.frame["event_id"].drop_nulls().head(TOLD_IDS)) if event is not None else ""
        known = f"{read.schema.event_id} is like {ids}" if ids else f"there are rows 0 to {read.n_input - 1:,}"
        raise InputError(f"no accepted event {event if event is not None else f'in row {row}'}; {known}")
    row = int(found["row"][0])
    if row not in scores["row"]:
        raise InputError(f"the event in row {row} has no score: it is from before the time that was scored from")
    return row


def event_story(
    detector: Detector, read: Events, scores: pl.DataFrame, row: int, rule: Threshold, mask: NameMask | None = None
) -> EventStory:
    """Gather all that is told of the scored event in the input `row`, under a fitted decision rule.

    The mask, if any, hides the names of entities (see `anomaly.masking`).
    """
    schema = detector.schema
    scored = scores.with_columns(alerting=pl.Series(decide(rule, scores, schema)))
    score = scored.filter(pl.col("row") == row).row(0, named=True)
    told = detector.explain(read, [row], scores)
    told = told if mask is None else mask.explanations(told)
    reasons = add_reasons(pl.DataFrame({"peak_row": [row]}), told, most=MOST_REASONS)["reasons"][0].to_list()
    parts = detector.breakdown(read, [row], scores)
    changed = detector.counterfactual(read, [row], scores, rule).drop("row").row(0, named=True)
    level = batch_level(rule, scores, schema)
    history, chosen = histories(read.frame, [row])
    history = history.join(scored.select("row", "status", "surprise", "alerting"), on="row", how="left",
                           maintain_order="left")  # fmt: skip
    value = schema.numeric[0].name if schema.numeric else ""
    shown = [*([schema.event_id] if schema.event_id else []), *(one.name for one in schema.numeric)]
    shown += schema.categorical
    position = int(np.flatnonzero(chosen)[0])
    events = history.slice(max(0, position - LAST_EVENTS), min(position, LAST_EVENTS) + 1).select(
        utc_time().dt.convert_time_zone(schema.time_zone).alias("time"),
        *([pl.col("event_id").alias(schema.event_id)] if schema.event_id else []),
        *(pl.col(f"n:{one.name}").alias(one.name) for one in schema.numeric),
        *(pl.col(f"c:{name}").alias(name) for name in schema.categorical),
        "status",
        pl.col("surprise").fill_nan(None),
        pl.col("alerting").fill_null(value=False),
    )
    who = " / ".join(str(score[name]) for name in schema.key) or "the sequence"
    own = {name: score[name] for name in ("time", *schema.key, *shown)}
    if mask is not None:
        who, events = mask.name(who), mask.frame(events)
        own, changed = mask.values(own), mask.values(changed)
    facts = {
        "summary": _summary(score, schema, who, alerts=score["alerting"], level=level),
        "row": row,
        "event": own,
        **{name: score[name] for name in ("p_value", "surprise", "status")},
        "alerts": score["alerting"],
        "threshold_p": level,
        "reasons": reasons,
        "parts": parts.drop("row").filter(pl.col("part") > 0).sort("part", descending=True).to_dicts(),
        "counterfactual": changed,
        "last_events": events.to_dicts(),
    }
    timeline = _timeline(detector, history, chosen, value)
    near = max(detector.scorer_.combination.scales, default=0.0) / 86400.0
    return EventStory(
        facts=facts, parts=_by_field(parts), events=events, timeline=timeline, value_name=value, near_days=near
    )


def _summary(score: Mapping[str, Any], schema: Schema, who: str, *, alerts: bool, level: float) -> str:
    moment = score["time"].astimezone(ZoneInfo(schema.time_zone))
    verdict = "it alerts" if alerts else "it does not alert"
    return (
        f"Event of {who} at {moment:%Y-%m-%d %H:%M:%S}: {one_in(score['p_value'])} normal events is at least as "
        f"strange (surprise {score['surprise']:.2f}, {score['status']}); {verdict}, with the line at {one_in(level)}."
    )


def _by_field(parts: pl.DataFrame) -> pl.DataFrame:
    """Parts summed over the detectors, and those of the recent past over its windows."""
    name = pl.when(pl.col("detector").str.ends_with(PAST)).then("detector").otherwise("field").alias("field")
    return (
        parts.filter(pl.col("part") > 0)
        .with_columns(name)
        .sort("part", descending=True)
        .group_by("field", maintain_order=True)
        .agg(pl.col("part", "share").sum(), detectors=pl.col("detector").unique(maintain_order=True).str.join(", "))
        .sort("part", descending=True)
    )


def _timeline(
    detector: Detector, history: pl.DataFrame, chosen: NDArray[np.bool_], value: str
) -> Mapping[str, NDArray[Any]]:
    local = history.select(utc_time().dt.convert_time_zone(detector.schema.time_zone).dt.replace_time_zone(None))
    drawn: dict[str, NDArray[Any]] = {
        "time": local.to_series().to_numpy(),
        "surprise": history["surprise"].fill_null(np.nan).to_numpy(),
        "alerting": history["alerting"].fill_null(value=False).to_numpy(),
        "chosen": chosen,
    }
    if value:
        rows = history["row"].to_list()
        ranges = expected_range(detector.models_[-1], detector.encoder_, history, rows, value).sort("row")
        band = pl.DataFrame({"row": rows}).join(ranges, on="row", how="left", maintain_order="left")
        drawn["value"] = history[f"n:{value}"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        drawn |= {name: band[name].fill_null(np.nan).to_numpy() for name in ("low", "high")}
    return drawn
