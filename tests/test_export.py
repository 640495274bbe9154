"""Cases for machines: every line obeys the JSON Schema that lies beside it, and every format holds the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anomaly.detector import Detector
from anomaly.export import COLUMNS, SCHEMA_VERSION, export_cases, json_schema, write_cases

TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "array": list, "null": type(None)}


def faults(value: Any, rule: dict[str, Any], where: str = "row") -> list[str]:
    """What a JSON value breaks of the keywords that the schema uses; an unknown keyword is a fault of its own."""
    known = {"type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "format", "items", "minItems",
             "description", "$schema", "title", "properties", "required", "additionalProperties"}  # fmt: skip
    found = [f"{where}: unknown keyword {key}" for key in rule.keys() - known]
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds == ["object"]:
        found += [f"{where}: lacks {name}" for name in rule["required"] if name not in value]
        found += [f"{where}: {name} is not allowed" for name in value.keys() - rule["properties"].keys()]
        for name in value.keys() & rule["properties"].keys():
            found += faults(value[name], rule["properties"][name], name)
        return found
    if kinds and (isinstance(value, bool) or not any(isinstance(value, TYPES[kind]) for kind in kinds)):
        return [*found, f"{where}: {value!r} is not {kinds}"]
    checks: dict[str, Callable[[Any], bool]] = {
        "const": lambda limit: value == limit,
        "enum": lambda limit: value in limit,
        "minimum": lambda limit: value is None or value >= limit,
        "maximum": lambda limit: value is None or value <= limit,
        "exclusiveMinimum": lambda limit: value is None or value > limit,
        "minItems": lambda limit: len(value) >= limit,
        "format": lambda _: value.endswith("Z") and datetime.fromisoformat(value).tzinfo is not None,
        "items": lambda inner: not any(faults(item, inner, where) for item in value),
    }
    return found + [
        f"{where}: {value!r} breaks {key}" for key, check in checks.items() if key in rule and not check(rule[key])
    ]


@pytest.fixture(scope="module")
def cases(detector: Detector, payments: pl.DataFrame) -> pl.DataFrame:
    scores = detector.score(payments, since="2024-02-10")
    found = detector.alerts(scores, budget_per_day=2)
    return found.join(scores.select(pl.col("row").alias("peak_row"), "status"), on="peak_row", how="left")


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_every_line_obeys_the_schema_beside_it(cases: pl.DataFrame, suffix: str, tmp_path: Path) -> None:
    beside = write_cases(cases, tmp_path / f"cases{suffix}")
    assert beside == tmp_path / "cases.schema.json"
    rule = json.loads(beside.read_text(encoding="utf-8"))
    assert rule == json_schema()
    lines = [json.loads(line) for line in (tmp_path / f"cases{suffix}").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(cases) > 0
    for line, case in zip(lines, cases.iter_rows(named=True), strict=True):
        assert faults(line, rule) == []
        assert list(line) == list(COLUMNS)
        assert datetime.fromisoformat(line["start"]) == case["start"]
        assert line["p_value"] == case["p_value"]
        assert line["rows"] == case["rows"]


def test_the_check_finds_what_breaks_the_schema(cases: pl.DataFrame, tmp_path: Path) -> None:
    write_cases(cases, tmp_path / "cases.jsonl")
    line = json.loads((tmp_path / "cases.jsonl").read_text(encoding="utf-8").splitlines()[0])
    changes: list[dict[str, Any]] = [
        {"p_value": 0}, {"status": "fine"}, {"alerts": 1.5}, {"more": 1}, {"start": "yesterday Z"}, {"rows": []},
        {"schema_version": SCHEMA_VERSION + 1}, {"reasons": [3]}, {"entity": None},
    ]  # fmt: skip
    for change in changes:
        try:
            assert faults({**line, **change}, json_schema()), change
        except ValueError:
            assert "start" in change  # no time at all


def test_every_format_holds_the_same(cases: pl.DataFrame, tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        write_cases(cases, tmp_path / f"cases{suffix}")
    table = export_cases(cases)
    read = pl.read_parquet(tmp_path / "cases.parquet")
    assert read.equals(table)
    assert dict(read.schema) == {name: column.dtype for name, column in COLUMNS.items()}
    text = pl.read_csv(tmp_path / "cases.csv")
    assert text.columns == list(COLUMNS)
    assert text["surprise"].to_list() == pytest.approx(table["surprise"].to_list())
    assert text["rows"].cast(pl.String).to_list() == ["; ".join(map(str, rows)) for rows in table["rows"]]


def test_unknown_money_and_status_are_null(cases: pl.DataFrame, tmp_path: Path) -> None:
    bare = cases.drop("status").with_columns(money=pl.lit(float("nan")))
    write_cases(bare, tmp_path / "cases.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["money"] is None and line["status"] is None and not faults(line, json_schema()) for line in lines)
    write_cases(bare.clear(), tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_text(encoding="utf-8") == ""
