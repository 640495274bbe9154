"""scripts/bench_compare.py on a few customers: figures are those of its scores, and the figures of others stay."""

from __future__ import annotations

import json
from pathlib import Path

import _numbers
import bench_compare
import numpy as np
import pytest
from bench_compare import Play

from anomaly.comparison_measures import DAY, Window
from anomaly.evaluation import average_precision


def window(seed: int) -> Window:
    rng = np.random.default_rng(seed)
    n, entity = 500, rng.integers(0, 25, 500)
    fraud = rng.random(n) < 0.1
    time = np.sort(rng.uniform(0, 5 * DAY, n))
    return Window(time, np.ones(n), entity, fraud, np.zeros(n, dtype=bool), 0.0, 5 * DAY, 1000, 50 + seed)


def made(seed: int) -> Play:
    test, rng = window(seed), np.random.default_rng(seed)

    def score(strength: float) -> bench_compare.Floats:
        return rng.normal(size=500) + strength * test.fraud

    flat = {"amount": score(0.5), "ratio": score(0.5), "unsupervised": score(1.0)}
    learned = {known: {"head": score(1), "pretrained": score(3), "xgboost": score(2)} for known in ("10", "30", "all")}
    return Play({"0": flat, **learned}, test)


def test_figures_are_means_over_the_seeds() -> None:
    plays = [made(1), made(2)]
    figures = bench_compare.measured(plays, 50)
    for known, name in (("30", "pretrained"), ("all", "xgboost"), ("10", "head")):
        each = [average_precision(one.points[known][name], one.window.fraud) for one in plays]
        key = f"labels.{known}.{name}.ap"
        assert figures[key] == pytest.approx(np.mean(each))
        assert figures[f"{key}.low"] < figures[key] < figures[f"{key}.high"]
    assert figures["labels.0.unsupervised.ap"] == figures["labels.all.unsupervised.ap"]
    assert figures["labels.30.pretrained.beats.head"] > 0.9 > figures["labels.30.head.ap"]
    assert figures["labels.known_frauds"] == 51.5
    text = bench_compare.verdict(figures)
    assert f"XGBoost with {figures['labels.30.pretrained.beats.xgboost']:.2f}" in text


def test_from_the_payments_to_the_page(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    _numbers.write_numbers(tmp_path, "python scripts/other.py", {"long.amount.ap": 0.5})
    options = ["--customers", "25", "--seeds", "1", "--hidden", "4", "--epochs", "1", "--repeats", "20"]
    assert bench_compare.main([*options, "--reports", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    figures = content["figures"]
    assert figures["long.amount.ap"] == 0.5 and content["command"] == "python scripts/other.py"
    assert content["parts"]["labels"]["command"] == f"python3 scripts/bench_compare.py {' '.join(options)}"
    for known, name in (("0", "ratio"), ("10", "head"), ("30", "pretrained"), ("all", "logistic")):
        assert 0 < figures[f"labels.{known}.{name}.ap"] <= 1
    text = (tmp_path / "labels.md").read_text(encoding="utf-8")
    assert f"| ratio | {figures['labels.0.ratio.ap']:.3f} (" in text and "labels.svg" in text
    assert (tmp_path / "labels.svg").read_text(encoding="utf-8").startswith("<svg")
    _numbers.write_numbers(tmp_path, "python scripts/other.py", {"long.amount.ap": 0.6})  # the other one again
    again = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert again["figures"] == {**figures, "long.amount.ap": 0.6} and again["parts"] == content["parts"]
