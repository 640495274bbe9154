"""What the verbs of the command line tell: plain values for a program, and text for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from anomaly.ingest import Events
    from anomaly.recalibration import Holdout
    from anomaly.thresholds import Threshold


def row_counts(read: Events, scores: pl.DataFrame) -> dict[str, int]:
    """Every row of the input is one of the last three."""
    history = len(read) - len(scores)
    return {"rows": read.n_input, "history": history, "scored": len(scores), "rejected": len(read.rejects)}


def row_counts_text(counts: Mapping[str, int]) -> str:
    """The same in words."""
    return "{rows:,} rows read: {history:,} history, {scored:,} scored, {rejected:,} rejected".format(**counts)


def fit_facts(fitted: Mapping[str, Any], read: Events) -> dict[str, Any]:
    """Every row is of the history, later, or rejected; of the history a sample may have been learned from."""
    drawn = int(fitted["events"])
    history = int(fitted.get("sample", {}).get("of_events", drawn))
    return {
        "rows": read.n_input,
        "history": history,
        "later": read.n_input - len(read.rejects) - history,
        "rejected": len(read.rejects),
        "entities": fitted.get("sample", {}).get("of_entities", fitted["entities"]),
        "sample": {"events": drawn, "entities": fitted["entities"]} if drawn < history else None,
        "models": {
            name: {key: run[key] for key in ("epoch", "best_epoch", "best_loss", "interrupted")}
            for name, run in fitted["runs"].items()
        },
        "notes": read.notes,
    }


def fit_text(facts: Mapping[str, Any]) -> str:
    """The same in words."""
    counts = "{rows:,} rows read: {history:,} history of {entities:,} entities, {later:,} later, {rejected:,} rejected"
    lines = [counts.format(**facts)]
    if facts["sample"]:
        lines.append("learned from a sample: {events:,} events of {entities:,} entities".format(**facts["sample"]))
    for name, run in facts["models"].items():
        ended = "interrupted, " if run["interrupted"] else ""
        lines.append(f"{name}: {ended}keeps epoch {run['best_epoch']} of {run['epoch']}")
    return "\n".join(lines)


def threshold_facts(rule: Threshold) -> dict[str, Any]:
    """A fitted rule, and the cases a day that it promises."""
    return {
        "threshold": rule.describe(),
        "threshold_p": rule.threshold_,
        "expected_per_day": rule.expected_per_day,
        "expected_per_day_low": rule.low,
        "expected_per_day_high": rule.high,
    }


def recalibration_facts(
    rule: Threshold, held: Holdout, new_rule: Threshold, new_held: Holdout, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """What a recalibration changed: the slice, the usual threshold, and the shares of the new events below each p."""
    from anomaly.history import time_text
    from anomaly.thresholds.usual import BUDGET_PER_DAY

    facts: dict[str, Any] = {"new_events": changes["new"], "budget_per_day": BUDGET_PER_DAY}
    for when, one, threshold in (("before", held, rule), ("after", new_held, new_rule)):
        facts[when] = {
            "held_out": len(one.p),
            "first": time_text(one.time.min()),
            "last": time_text(one.time.max()),
            "threshold_p": threshold.threshold_,
            "new_share": changes.get(when, {}),
        }
    return facts
