"""Measure how long a report of many scored events takes, how much memory it needs and how large it is.

As in::

    python3 scripts/bench_report.py handbook.parquet   payments of the Fraud Detection Handbook
    python3 scripts/bench_report.py                    as many simulated payments

The detector is small and fitted for one pass over the first days: what is measured is the report, not the detection.
All events are scored; the report is made by the public command line in a process of its own, several times. The
quickest counts, since a busy machine only makes it slower; the slowest is told too. Seconds are by the clock, processor
seconds are those of all threads. Aimed at: 30 s and 2,000 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from _environment import INTERRUPTED, ROOT, ensure, inside, run_inside

EVENTS, CUSTOMERS, DAYS = 1_750_000, 9_800, 90
HISTORY_DAYS = 14
BUDGET = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench inside the project's environment and return its exit code."""
    parser = argparse.ArgumentParser(description="Time, memory and size of a report of many scored events.")
    parser.add_argument("data", type=Path, nargs="?", help="the Handbook's payments (default: simulated ones)")
    parser.add_argument("--customers", type=int, default=CUSTOMERS, help="simulated ones (default: %(default)s)")
    parser.add_argument("--times", type=int, default=3, help="reports made (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "report", help="folder for numbers.json")
    wish = parser.parse_args(arguments)
    if not inside():
        return run_inside(ensure(()), __file__, sys.argv[1:] if arguments is None else arguments)
    from _numbers import write_numbers

    told = ["python3 scripts/bench_report.py", *([wish.data.name] if wish.data else [])]
    given = {name: getattr(wish, name) for name in ("customers", "times")}
    told += [f"--{name} {value}" for name, value in given.items() if value != parser.get_default(name)]
    with tempfile.TemporaryDirectory(prefix="anomaly-report-") as folder:
        figures = measure(wish.data, wish.customers, wish.times, Path(folder))
    print(figures, f"The figures: {write_numbers(wish.out, ' '.join(told), figures)}", sep="\n")
    return 0


def measure(data: Path | None, customers: int, times: int, folder: Path) -> dict[str, float]:
    """Fit a small detector, score everything, and measure the report."""
    import polars as pl
    from _numbers import run_cli
    from handbook import SCHEMA

    from anomaly.simulator import SIMULATED_SCHEMA, simulate

    schema = folder / "anomaly.toml"
    if data is None:
        data = folder / "events.parquet"
        simulate(customers=customers, days=DAYS, seed=0)[0].write_parquet(data)
        schema.write_text(SIMULATED_SCHEMA.to_toml(), encoding="utf-8")
        column = SIMULATED_SCHEMA.time
    else:
        schema.write_text(SCHEMA.to_toml(), encoding="utf-8")
        column = SCHEMA.time
    first = pl.scan_parquet(data).select(pl.col(column).min()).collect().item()
    until = f"{first + timedelta(days=HISTORY_DAYS):%Y-%m-%d}"
    detector, scores, page = folder / "detector", folder / "scores.parquet", folder / "report.html"
    run_cli(["fit", data, "--schema", schema, "--out", detector, "--until", until, "--epochs", "1", "--hidden", "16"])
    scored = run_cli(["score", data, "--detector", detector, "--out", scores])
    options: list[str | Path] = ["--scores", scores, "--out", page, "--budget-per-day", str(BUDGET)]
    runs = [run_cli(["report", data, "--detector", detector, *options]) for _ in range(times)]
    made = min(runs, key=lambda run: run.seconds)
    return {
        "report.times": times,
        "report.events": scored.result["scored"],
        "report.cases": made.result["cases"],
        "report.seconds": made.seconds,
        "report.slowest_seconds": max(run.seconds for run in runs),
        **({} if made.peak_mb is None else {"report.peak_mb": max(run.peak_mb or 0.0 for run in runs)}),
        **({} if made.processor_seconds is None else {"report.processor_seconds": made.processor_seconds}),
        "report.megabytes": page.stat().st_size / 1e6,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
