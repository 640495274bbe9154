"""Tables for a terminal."""

from __future__ import annotations

import polars as pl
from rich.table import Column, Table
from rich.text import Text

from anomaly.alerts import number_text
from anomaly.digest import money_field
from anomaly.figures import one_in
from anomaly.schema import Schema


def rehearsal_table(found: pl.DataFrame) -> Table:
    """Table of a rehearsal for a terminal."""
    heads = ("recall", "95 %", "noticed", "frauds", "events")
    table = Table("kind", *(Column(head, justify="right") for head in heads), box=None, pad_edge=False)
    for row in found.iter_rows(named=True):
        interval = f"{row['low']:.2f}-{row['high']:.2f}"
        counts = (f"{row['noticed']:.2f}", f"{row['episodes']:,.0f}", f"{row['events']:,.0f}")
        table.add_row(row["kind"].replace("_", " "), f"{row['recall']:.2f}", interval, *counts)
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


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
