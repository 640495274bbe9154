"""The speed bench on a handful of payments: its names, its page, and that sections are kept apart."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import _bench_speed_work as work
import bench_speed
import pytest
import torch
from _bench_speed_report import TARGETS, write_report
from _numbers import write_numbers


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> work.Setting:
    monkeypatch.setattr(work, "DAYS", 40)
    monkeypatch.setattr(work, "HIDDEN", 8)
    monkeypatch.setattr(work, "BATCHES", (4,))
    monkeypatch.setattr(work, "REPEATS", 1)
    return work.Setting.of(12)


def test_a_share_of_raw_is_the_ratio_of_two_rates_of_the_same_run(setting: work.Setting) -> None:
    before = torch.get_num_threads()
    figures = work.rates(setting)
    assert torch.get_num_threads() == before
    for part, end in product(("fit", "score"), ("", ".small")):
        raw = "raw.fit" if part == "fit" else "raw.score"
        for model in work.MODELS:
            rate, limit = (figures[f"{name}.{model}.events_per_second{end}"] for name in (part, raw))
            assert figures[f"{part}.{model}.share_of_raw{end}"] == pytest.approx(rate / limit)
        shares = [figures[f"{part}.{model}.share_of_raw{end}"] for model in work.MODELS]
        assert min(shares) <= figures[f"{part}.share_of_raw{end}"] <= max(shares)
    for size in ("inputs", "outputs"):
        assert figures[f"{size}.forecaster.small"] < figures[f"{size}.forecaster"]


def test_sections_are_gathered_and_the_page_tells_what_was_not_measured(tmp_path: Path) -> None:
    write_numbers(tmp_path / "sections" / "start", "one", {"import.seconds": 0.1, "help.seconds": 0.9})
    write_numbers(tmp_path / "sections" / "stream", "two", {"stream.p50_us": 50.0})
    figures = bench_speed.gathered(tmp_path)
    assert figures == {"import.seconds": 0.1, "help.seconds": 0.9, "stream.p50_us": 50}
    write_numbers(tmp_path, "all", figures)
    lines = write_report(tmp_path).read_text(encoding="utf-8").splitlines()
    told = {line.split("`")[1]: line.split("|")[-2].strip() for line in lines if line.startswith("| `")}
    assert [told[name] for name in ("import.seconds", "help.seconds", "fit.share_of_raw")] == [
        "yes",
        "**no**",
        "not measured",
    ]
    assert set(TARGETS) <= set(told)


def test_the_command_of_a_section_names_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_speed, "measure", lambda name, _: {f"{name}.x": 1.0})
    assert bench_speed.main(["--only", "start", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "sections" / "start" / "numbers.json").read_text(encoding="utf-8"))
    assert content["command"] == "python3 scripts/bench_speed.py --only start"
    assert content["figures"] == {"start.x": 1}
