"""Events by the million, fitted and scored out of core in bounded memory: seconds and peak memory.

    python3 scripts/_bench_large.py FOLDER 1000000 10000000

writes that many cheap payments as Parquet into FOLDER, fits a small detector on a sample of their customers, and scores
all of them with ``anomaly score --memory``, in a process of its own. `measure` is for other scripts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from _numbers import Run, run_cli

from anomaly.simulator import SIMULATED_SCHEMA

PIECE = 1_000_000  # events made, and written, at a time
DAYS = 90
PER_CUSTOMER = 2 * DAYS  # events, about
START = 1_704_067_200_000_000  # 2024-01-01 in microseconds
DAY = 86_400_000_000
CATEGORIES = ("grocery", "dining", "fuel", "fashion", "travel", "electronics", "health", "leisure")
FIT = ("--epochs", "1", "--hidden", "64", "--until", "2024-03-01")


def make_events(folder: Path, events: int, seed: int = 0) -> Path:
    """Write payments in the order of time, in files of a million: untidy enough to score, and no more.

    Each customer has a home, a purse, a phone and five shops; nothing is planted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    customers = max(1, events // PER_CUSTOMER)
    purse = draw.lognormal(0.0, 0.7, customers)
    latitude, longitude = draw.uniform(43, 50, customers), draw.uniform(-1, 7, customers)
    pieces = -(-events // PIECE)
    for piece in range(pieces):
        size = min(PIECE, events - piece * PIECE)
        first, last = (DAYS * DAY * (piece + step) // pieces for step in (0, 1))
        who = draw.integers(0, customers, size)
        shop = np.minimum(draw.geometric(0.35, size), 9) - 1
        away = draw.random(size) < 0.02
        pl.DataFrame({
            "event_id": np.arange(piece * PIECE, piece * PIECE + size),
            "customer_id": who,
            "time": START + np.sort(draw.integers(first, last, size)),
            "amount": np.round(20.0 * purse[who] * draw.lognormal(0.0, 0.8, size), 2),
            "merchant_category": (who * 3 + shop) % len(CATEGORIES),
            "channel": (who + shop * 5) % 3,
            "merchant_id": (who * 31 + shop * 7919) % 50_000,
            "device_id": who,
            "latitude": np.round(latitude[who] + away * draw.normal(0, 2, size), 4),
            "longitude": np.round(longitude[who] + away * draw.normal(0, 2, size), 4),
        }).select(
            pl.format("E{}", "event_id").alias("event_id"),
            pl.format("C{}", "customer_id").alias("customer_id"),
            pl.from_epoch("time", time_unit="us").dt.replace_time_zone("UTC"),
            "amount",
            pl.col("merchant_category").replace_strict(dict(enumerate(CATEGORIES)), return_dtype=pl.String),
            pl.col("channel").replace_strict({0: "chip", 1: "contactless", 2: "online"}, return_dtype=pl.String),
            pl.format("M{}", "merchant_id").alias("merchant_id"),
            pl.format("D{}", "device_id").alias("device_id"),
            "latitude",
            "longitude",
        ).write_parquet(folder / f"events-{piece:05d}.parquet")  # fmt: skip
    return folder


def measure(
    folder: Path, events: int, memory: str = "2GB", detector: Path | None = None
) -> tuple[dict[str, Run], Path]:
    """Make, fit (if there is no detector yet) and score so many events; what each step took, and the detector.

    The events and the scores are removed again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, scores, runs = folder / f"events-{events}", folder / f"scores-{events}.parquet", {}
    make_events(data, events)
    try:
        if detector is None:
            detector, schema = folder / "detector", folder / "anomaly.toml"
            schema.write_text(SIMULATED_SCHEMA.to_toml(), encoding="utf-8")
            runs["fit"] = run_cli(["fit", data, "--schema", schema, "--out", detector, "--memory", memory, *FIT])
        runs["score"] = run_cli(["score", data, "--detector", detector, "--out", scores, "--memory", memory])
        found = pl.scan_parquet(scores).select(pl.len(), pl.col("row").is_sorted().all()).collect()
        if found.row(0) != (events, True):
            raise RuntimeError(f"{scores}: expected {events} rows in the order of the input, got {found.row(0)}")
    finally:
        shutil.rmtree(data)
        scores.unlink(missing_ok=True)
        (folder / "rejects.parquet").unlink(missing_ok=True)
    return runs, detector


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each number of events and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("events", type=int, nargs="+")
    parser.add_argument("--memory", default="2GB")
    wish = parser.parse_args(arguments)
    detector = None
    for events in wish.events:
        runs, detector = measure(wish.folder, events, wish.memory, detector)
        figures = {name: {"seconds": run.seconds, "peak_mb": run.peak_mb} for name, run in runs.items()}
        print(json.dumps({"events": events, **figures}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
