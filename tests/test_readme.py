"""The README tells the truth: its figures are those of the reports, and its examples run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import readme
from typer.testing import CliRunner

from anomaly.cli import app
from anomaly.verbs import EXAMPLES

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def code(language: str) -> list[str]:
    """The blocks of code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_figures_are_those_of_the_reports() -> None:
    assert readme.refreshed(TEXT, ROOT / "reports") == TEXT, "run python3 scripts/readme.py"
    assert readme.MARKED.findall(TEXT)
    assert [name for _, name, _ in readme.MARKED.findall(TEXT)] == list(readme.BLOCKS)


def test_figures_are_written_between_the_markers(tmp_path: Path) -> None:
    figures = {f"{scorer}.{key}": 0.5 for scorer in ("amount", "both") for key in ("auc", "ap", "drip.recall50")}
    counts = {"scored": 1200, "history": 3000, "frauds": 12, "cases": 9, "cases_with_fraud": 4}
    counts |= {"customers_caught": 3, "customers_defrauded": 5}
    more = {"base_rate": 0.01, "fit.seconds": 12.3, "score.seconds": 0.5}
    machine = {"cores": 2, "cpu": "Some CPU", "memory_gib": 8.0, "python": "3.12.1"}
    content = {"command": "python3 scripts/demo.py", "machine": machine, "figures": {**figures, **counts, **more}}
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "numbers.json").write_text(json.dumps(content), encoding="utf-8")
    text = "a\n<!-- numbers:demo -->\nformer\n<!-- /numbers -->\nb\n<!-- numbers:detection -->\n<!-- /numbers -->\n"
    new = readme.refreshed(text, tmp_path)
    assert new.startswith("a\n<!-- numbers:demo -->\n\n### Simulated card payments")
    assert "Of 1,200 payments scored after 3,000" in new
    assert "| average precision | 0.500 | – | – | – | 0.500 |" in new
    assert "– of drip | 0.500" in new
    assert "Made by `python3 scripts/demo.py` on 2 cores of Some CPU, 8.0 GiB, Python 3.12.1." in new
    assert "former" not in new
    assert new.endswith("<!-- numbers:detection -->\n<!-- /numbers -->\n")
    assert readme.refreshed(new, tmp_path) == new


def test_rules_that_win_are_named() -> None:
    figures = {"amount.drip.recall50": 0.4, "both.drip.recall50": 0.3, "both.bust_out.recall50": 0.3}
    assert readme._rules_win(figures, ["bust_out", "drip"]) == " A rule finds more than any model of: drip."
    assert readme._rules_win(figures, ["bust_out"]) == ""


def test_the_bench_has_its_block(tmp_path: Path) -> None:
    found = ("simulator.ours.ap", "simulator.ours.recall.slow_drip", "handbook.ratio.s3.ap", "nab.ours.vus_pr")
    machine = {"cores": 2, "cpu": "Some CPU", "python": "3.12.1"}
    content = {"command": "python3 scripts/x.py", "machine": machine, "figures": dict.fromkeys(found, 0.25)}
    (tmp_path / "numbers.json").write_text(json.dumps(content), encoding="utf-8")
    text = readme.block("detection", tmp_path / "numbers.json")
    assert "| – of slow drip | – | – | – | – | – | – | 0.250 | – |" in text
    assert text.count("0.250 |") == len(found)
    assert "Made by `python3 scripts/x.py` on 2 cores of Some CPU, ? GiB" in text


def test_what_labels_add_has_its_block() -> None:
    models = ("logistic", "forest", "xgboost", "xgboost_views", "head")
    figures = {f"handbook.{name}.{key}": 0.7 for name in models for key in ("auc", "ap", "cp100")}
    figures |= {f"long.{name}.ap": 0.25 for name in (*models[2:], "unsupervised")}
    figures |= {f"{part}.30.pretrained.ap": 0.5 for part in ("labels", "labels.handbook")}
    figures |= {"labels.handbook.customers": 1000, "labels.0.unsupervised.ap": 0.4}
    told = readme.compare(figures)
    assert "0 of 9\nfigures of our baselines are within 0.01 of the published ones" in told
    assert "an average precision of 0.700 (0.687), an AUC of 0.700 (0.876)" in told
    assert "features 0.250 and told the same 0.250; without a label" in told and "of 1,000 customers" in told
    assert "| simulated: unsupervised | 0.400 |  |" in told
    assert "| Handbook: pretrained |  |  | 0.500 |" in told
    figures.pop("long.xgboost_views.ap")
    assert "features 0.250; without a label" in readme.compare(figures)


def test_explanations_drift_and_the_report_have_their_blocks() -> None:
    figures = {
        f"explain.{name}.{kind}": 0.75 for name in ("top_reason", "amount_rule") for kind in ("all", "slow_drip")
    }
    figures |= {f"counterfactual.{name}": 0.5 for name in ("passes", "one_field", "run")}
    figures |= {"counterfactual.alerts": 1234, "drift.plays": 20, "drift.cells": 480, "drift.false_plays": 0.05}
    figures |= {"drift.flagged.up_20": 0.1, "drift.flagged.up_140": 1.0}
    figures |= {f"report.{name}": 7 for name in ("events", "cases", "seconds", "processor_seconds", "times")}
    figures |= {f"report.{name}": 1234.5 for name in ("slowest_seconds", "peak_mb", "megabytes")}
    told = readme.explain(figures)
    assert (
        "| all | 0.750 | – | 0.750 | – |\n| slow drip |" in told and "Of 1,234 alerts, fraud or not, 50.0% have" in told
    )
    assert "flagged in 10% if they rise by 20 %, 100% if they rise by 140 %; where nothing changes, 5%" in readme.drift(
        figures
    )
    assert "7 s (7 s of processor time; the slowest of 7: 1234 s) and 1,234 MB" in readme.report(figures)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for the size of the data and of the models."""
    monkeypatch.chdir(tmp_path)
    (example,) = code("python")
    assert "simulate(" in example
    small = example.replace("customers=2000, days=90", "customers=40, days=75")
    small = small.replace("Detector(SIMULATED_SCHEMA)", "Detector(SIMULATED_SCHEMA, hidden=8, epochs=1)")
    assert small.count("=40") == small.count("hidden=8") == 1
    names: dict[str, Any] = {}
    exec(small, names)
    assert names["cases"].columns[:2] == ["case", "entity"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_commands_are_those_of_the_help() -> None:
    lines = [shlex.split(line, comments=True) for block in code("console") for line in block.splitlines()]
    told = [line for line in lines if line[:1] == ["anomaly"]]
    assert told == [shlex.split(example) for example in EXAMPLES.values()]
    for line in told:
        assert CliRunner().invoke(app, [line[1], "--help"]).exit_code == 0


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
