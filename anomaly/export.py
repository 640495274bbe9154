"""Cases for machines: one table with a fixed, versioned layout, and its JSON Schema beside it.

The layout is `COLUMNS`; a change of a name, a type or a meaning raises `SCHEMA_VERSION`, which every row carries. A
file ``cases.jsonl`` gets ``cases.schema.json`` beside it; the same layout holds for Parquet and for CSV, where lists
are joined by "; ".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from anomaly.files import whole_file
from anomaly.ingest import check_target, write_table

__all__ = ["COLUMNS", "SCHEMA_VERSION", "export_cases", "json_schema", "write_cases"]

SCHEMA_VERSION = 1


class _Column(NamedTuple):
    """One column: its polars type, its JSON Schema, what it means."""

    dtype: Any
    json: dict[str, Any]
    meaning: str


_TIME = {"type": "string", "format": "date-time"}
_TEXTS = {"type": "array", "items": {"type": "string"}}
COLUMNS: dict[str, _Column] = {
    "schema_version": _Column(pl.Int64, {"const": SCHEMA_VERSION}, "layout of this row"),
    "case": _Column(pl.Int64, {"type": "integer", "minimum": 1}, "rank, from 1: the strangest case first"),
    "entity": _Column(pl.String, {"type": "string"}, "whose case it is; several columns are joined by ' / '"),
    "start": _Column(pl.Datetime("us", "UTC"), _TIME, "time of the first alerting event, UTC"),
    "end": _Column(pl.Datetime("us", "UTC"), _TIME, "time of the last alerting event, UTC"),
    "alerts": _Column(pl.Int64, {"type": "integer", "minimum": 1}, "alerting events of the case"),
    "p_value": _Column(
        pl.Float64,
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "of the strangest event: share of normal events that are at least as strange; lower is stranger",
    ),
    "score": _Column(pl.Float64, {"type": "number", "minimum": 0, "maximum": 1}, "1 - p_value; higher is stranger"),
    "surprise": _Column(pl.Float64, {"type": "number", "minimum": 0}, "-log10 p_value; higher is stranger"),
    "evidence": _Column(pl.Float64, {"type": "number", "minimum": 0}, "surprises of the alerting events, summed"),
    "money": _Column(
        pl.Float64, {"type": ["number", "null"]}, "worth of the alerting events, in the unit of the data; null: unknown"
    ),
    "status": _Column(
        pl.String,
        {"enum": ["ok", "learning", "unseen", "incomplete", None]},
        "how far to trust the strangest event's score; null: not known",
    ),
    "peak_row": _Column(pl.Int64, {"type": "integer", "minimum": 0}, "input row of the strangest event, from 0"),
    "rows": _Column(
        pl.List(pl.Int64),
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        "input rows of the alerting events, in order of time",
    ),
    "reasons": _Column(pl.List(pl.String), _TEXTS, "why the strangest event is strange, in words, strongest first"),
    "fields": _Column(pl.List(pl.String), _TEXTS, "the fields of these reasons"),
}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one row, as a line of JSON."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "anomaly case",
        "description": "One case of `anomaly report --alerts`: a burst of alerting events of one entity.",
        "type": "object",
        "properties": {name: {**column.json, "description": column.meaning} for name, column in COLUMNS.items()},
        "required": list(COLUMNS),
        "additionalProperties": False,
    }


def export_cases(cases: pl.DataFrame) -> pl.DataFrame:
    """Cases with exactly the columns of `COLUMNS`, in their order and types.

    Parameters
    ----------
    cases : DataFrame
        Of `Detector.alerts` or `Detector.report`; ``status`` may be absent.
    """
    table = cases.with_columns(pl.lit(SCHEMA_VERSION).alias("schema_version"))
    if "status" not in table.columns:
        table = table.with_columns(pl.lit(None, dtype=pl.String).alias("status"))
    floats = [name for name, column in COLUMNS.items() if column.dtype == pl.Float64]
    return table.select(pl.col(name).cast(column.dtype) for name, column in COLUMNS.items()).with_columns(
        pl.col(floats).fill_nan(None)
    )


def write_cases(cases: pl.DataFrame, path: str | Path) -> Path:
    """Write cases as .parquet, .csv, .ndjson or .jsonl, and their JSON Schema beside them; each whole or not at all.

    Returns
    -------
    Path
        Where the schema is: the same name with the suffix ``.schema.json``.

    Raises
    ------
    ParameterError
        For another suffix, or a folder that does not exist.
    """
    target = check_target(path)
    table = export_cases(cases)
    if target.suffix.lower() in (".ndjson", ".jsonl"):
        table = table.with_columns(pl.col("start", "end").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    write_table(table, target)
    beside = target.with_suffix(".schema.json")
    with whole_file(beside) as draft:
        draft.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    return beside
