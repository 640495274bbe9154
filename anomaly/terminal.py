"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from anomaly.alerts import number_text
from anomaly.digest import money_field
from anomaly.event_story import EventStory
from anomaly.schema import Schema
from anomaly.wording import one_in

BAR = 30  # characters of a bar for the whole surprise
LEAST_SHARE = 0.01  # of the surprise; parts below are told together


def rehearsal_table(found: pl.DataFrame) -> Table:
    """Table of a rehearsal for a terminal."""
    heads = ("recall", "95 %", "noticed", "frauds", "events")
    table = Table("kind", *(Column(head, justify="right") for head in heads), box=None, pad_edge=False)
    for row in found.iter_rows(named=True):
        interval = f"{row['low']:.2f}-{row['high']:.2f}"
        counts = (f"{row['noticed']:.2f}", f"{row['episodes']:,.0f}", f"{row['events']:,.0f}")
        table.add_row(row["kind"].replace("_", " "), f"{row['recall']:.2f}", interval, *counts)
    return table


def recalibration_table(facts: Mapping[str, Any]) -> Table:
    """Table of what a recalibration changed, for a terminal; `facts` as of `anomaly.telling.recalibration_facts`."""
    table = Table("", *(Column(when, justify="right") for when in ("before", "after")), box=None, pad_edge=False)
    pair = [facts[when] for when in ("before", "after")]
    table.add_row("held-out events", *(f"{one['held_out']:,}" for one in pair))
    for end, name in (("first", "from"), ("last", "to")):
        table.add_row(name, *(one[end][:16].replace("T", " ") for one in pair))
    budget = f"{facts['budget_per_day']:g} cases a day: alerts from a score of"
    table.add_row(budget, *(f"{1 - one['threshold_p']:.6f}" for one in pair))
    for level in pair[0]["new_share"]:
        share = (f"{one['new_share'][level]:.3%}" for one in pair)
        table.add_row(f"of the {facts['new_events']:,} new events at p ≤ {level}, {float(level):.1%} promised", *share)
    if not facts["new_events"]:
        table.add_row("new events", "", "0")
    return table


def comparison_table(found: pl.DataFrame, budget: int) -> Table:
    """Table of a comparison for a terminal, the best scorer first."""
    heads = ("AP", "95 %", "AUC", f"recall at {budget} a day", "money saved", "fit s")
    table = Table("scorer", "labels", *(Column(head, justify="right") for head in heads), box=None, pad_edge=False)
    for row in found.iter_rows(named=True):
        interval = f"{row['ap_low']:.3f}-{row['ap_high']:.3f}"
        quality = (f"{row['average_precision']:.3f}", interval, f"{row['auc']:.3f}", f"{row['recall_at_budget']:.0%}")
        saved = "–" if row["share_saved"] is None else f"{row['share_saved']:.0%}"
        rest = (saved, f"{row['fit_seconds']:.0f}")
        table.add_row(row["scorer"].replace("_", " "), "yes" if row["labels"] else "no", *quality, *rest)
    return table


def case_table(cases: pl.DataFrame, schema: Schema) -> Table:
    """Table of cases for a terminal. Text from the data cannot style it, nor send it control characters."""
    money = money_field(schema)
    table = Table("case", "entity and start", "rarity and size", "why", box=None, pad_edge=False, header_style="bold")
    for case in cases.with_columns(pl.col("start").dt.convert_time_zone(schema.time_zone)).iter_rows(named=True):
        who = [case["entity"], f"{case['start']:%Y-%m-%d %H:%M}"]
        size = [one_in(case["p_value"]), f"{case['alerts']:,} {'alert' if case['alerts'] == 1 else 'alerts'}"]
        size += [] if case["money"] is None else [f"{money} {number_text(case['money'])}"]
        cells = [[str(case["case"])], who, size, case["reasons"]]
        table.add_row(*(Text("\n".join(map(_printable, lines))) for lines in cells))
    return table


def story_tables(story: EventStory) -> Group:
    """The parts of an event's surprise with bars, its reasons, and what led up to it, for a terminal."""
    table = Table("part", Column("of the surprise", justify="right"), "", "said by", box=None, pad_edge=False)
    table.header_style = "bold"
    for name, part, share, detectors in story.parts.iter_rows():
        if share >= LEAST_SHARE:
            bar = Text("█" * max(1, round(BAR * share)), style="red")
            table.add_row(Text(_printable(name)), f"{part:.2f}  {share:4.0%}", bar, Text(detectors))
    if (rest := story.parts.filter(pl.col("share") < LEAST_SHARE)).height:
        table.add_row(f"{rest.height} others", f"{rest['part'].sum():.2f}  {rest['share'].sum():4.0%}")
    reasons = story.facts["reasons"] or ["nothing about it is strange"]
    told = [Text(f"  {number}. {_printable(reason)}") for number, reason in enumerate(reasons, 1)]
    change = Text(_printable(story.facts["counterfactual"]["sentence"]))
    head = Text("\nLast events of the entity, the one explained last", style="bold")
    why = Text("\nWhy", style="bold")
    return Group(table, why, *told, Text("\nWhat would have let it pass", style="bold"), change, head, _last(story))


def _last(story: EventStory) -> Table:
    names = [name for name in story.events.columns if name != "alerting"]
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    last = story.events.height - 1
    for at, event in enumerate(story.events.iter_rows(named=True)):
        cells = (Text(_printable(_cell(event[name]))) for name in names)
        table.add_row(*cells, style="bold" if at == last else "red" if event["alerting"] else "")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return number_text(round(value, 2)) if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
