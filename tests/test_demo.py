"""scripts/demo.py on a few customers: the page, the figures, and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import demo
import pytest


def test_the_demo_writes_a_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--customers", "150", "--days", "45", "--epochs", "1", "--out", str(tmp_path)]
    assert demo.main(options) == 0
    told = capsys.readouterr().out
    assert "<title>Demo: simulated card payments</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert content["command"] == "python3 scripts/demo.py --customers 150 --days 45 --epochs 1"
    assert "/" not in "".join(str(value) for value in content["machine"].values())
    figures = content["figures"]
    for scorer in demo.SCORERS:
        for measure in demo.MEASURES:
            assert 0 <= figures[f"{scorer}.{measure}"] <= 1
    kinds = {name.split(".")[1] for name in figures if name.startswith("both.") and name.count(".") == 2}
    assert kinds
    assert all(f"{scorer}.{kind}.recall50" in figures for scorer in demo.SCORERS for kind in kinds)
    assert figures["history"] > figures["scored"] > figures["frauds"] > 0
    assert 0 < figures["cases_with_fraud"] <= figures["cases"]
    assert 0 < figures["customers_caught"] <= figures["customers_defrauded"] < figures["frauds"]
    assert f"{figures['cases']} cases" in told
    assert all(kind in told for kind in kinds)


def test_what_cannot_be_is_refused_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--customers", "0", "--out", str(tmp_path)])
    assert "expected customers" in capsys.readouterr().err
