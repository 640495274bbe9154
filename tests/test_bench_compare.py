"""scripts/bench_compare.py on a few customers: figures are those of its scores, and the figures of others stay."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import _numbers
import bench_compare
import numpy as np
import polars as pl
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
    assert "It is never below the detector, and rises with every step." not in text
    low = figures | {"labels.10.pretrained.ap": 0.0, "labels.30.pretrained.ap": 0.7, "labels.all.pretrained.ap": 0.6}
    assert "It is below the detector with 10 known, and falls at all." in bench_compare.verdict(low)


def test_neighbours_share_their_terminals() -> None:
    pays = {1: "ab", 2: "bc", 3: "xy", 4: "cd", 5: "yz"}
    events = pl.DataFrame([{"CUSTOMER_ID": c, "TERMINAL_ID": t} for c, those in pays.items() for t in those])
    assert bench_compare.neighbours(events, 2).sort().to_list() == [1, 2]
    assert bench_compare.neighbours(events, 3).sort().to_list() == [1, 2, 4]
    assert bench_compare.neighbours(events, 9).sort().to_list() == [1, 2, 3, 4, 5]


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


def test_the_handbooks_payments_stand_beside_the_simulated_ones(tmp_path: Path) -> None:
    """On payments of the same layout; what they have to say is another matter."""
    pytest.importorskip("xgboost", reason="xgboost (extra baselines) is not installed")
    rng, start = np.random.default_rng(0), datetime(2018, 7, 1)
    moments = sorted(start + timedelta(days=float(day)) for day in rng.uniform(0, 50, 3000))
    fraud = rng.random(3000) < 0.05
    events = pl.DataFrame(
        {
            "TRANSACTION_ID": np.arange(3000),
            "TX_DATETIME": moments,
            "CUSTOMER_ID": rng.integers(0, 30, 3000),
            "TERMINAL_ID": rng.integers(0, 20, 3000),
            "TX_AMOUNT": np.round(np.exp(rng.normal(3, 0.5, 3000) + 2 * fraud), 2),
            "TX_FRAUD": fraud.astype(np.int64),
            "TX_FRAUD_SCENARIO": fraud.astype(np.int64),
        }
    ).with_columns(pl.col("TX_DATETIME").cast(pl.Datetime("us")))
    events.write_parquet(tmp_path / "handbook.parquet")
    _numbers.merge_numbers(tmp_path, "labels", "python scripts/other.py", {"labels.10.head.ap": 0.5})
    options = ["--customers", "20", "--hidden", "4", "--epochs", "1", "--repeats", "20"]
    data = ["--data", str(tmp_path / "handbook.parquet")]
    assert bench_compare.main([*data, *options, "--reports", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    figures = content["figures"]
    assert figures["labels.10.head.ap"] == 0.5
    assert figures["labels.handbook.customers"] == 20
    told = f"python3 scripts/bench_compare.py --data handbook.parquet {' '.join(options)}"
    assert content["parts"]["labels.handbook"]["command"] == told
    for known, name in (("0", "unsupervised"), ("10", "head"), ("30", "pretrained"), ("all", "xgboost")):
        low, value, high = (figures[f"labels.handbook.{known}.{name}.ap{end}"] for end in (".low", "", ".high"))
        assert 0 < low <= value <= high <= 1
    assert not any(".forest." in name for name in figures)
    text = (tmp_path / "labels_handbook.md").read_text(encoding="utf-8")
    assert "August and September, of 20 customers" in text and "labels_handbook.svg" in text
    assert (tmp_path / "labels_handbook.svg").exists()
