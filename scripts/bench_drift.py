"""Measure how often drift is flagged where there is some, and where there is none, on simulated payments.

As in::

    python3 scripts/bench_drift.py            some minutes; writes reports/drift
    python3 scripts/bench_drift.py --plays 4  a quick try

Each play is a simulation of its own without fraud, of which the last three weeks are scored. From the second of them on
everybody's amounts rise by a factor; a play counts as flagged if any cell of the amount is marked in those weeks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from _environment import INTERRUPTED, ROOT, ensure, inside, run_inside

DAYS, WEEKS, START = 70, 3, datetime(2024, 1, 1, tzinfo=UTC)
FACTORS = (1.2, 1.4, 1.6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench inside the project's environment and return its exit code."""
    parser = argparse.ArgumentParser(description="How often drift is flagged, with and without one.")
    parser.add_argument("--plays", type=int, default=60, help="simulations (default: %(default)s)")
    parser.add_argument("--customers", type=int, default=200, help="of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "drift", help="folder for numbers.json")
    wish = parser.parse_args(arguments)
    if not inside():
        return run_inside(ensure(()), __file__, sys.argv[1:] if arguments is None else arguments)
    given = {name: value for name, value in vars(wish).items() if name != "out" and value != parser.get_default(name)}
    told = " ".join(["python3 scripts/bench_drift.py", *(f"--{name} {given[name]}" for name in given)])

    from _numbers import write_numbers

    print(f"The figures: {write_numbers(wish.out, told, measure(wish.plays, wish.customers))}")
    return 0


def measure(plays: int, customers: int) -> dict[str, float]:
    """Share of the plays that are flagged by factor, and of the cells that are flagged without a change."""
    import polars as pl

    from anomaly.drift import drift
    from anomaly.ingest import read_events
    from anomaly.simulator import SIMULATED_SCHEMA, simulate

    since = START + timedelta(days=DAYS - 7 * WEEKS)
    change = since + timedelta(days=7)
    hits, false_flags, false_plays, cells = dict.fromkeys(FACTORS, 0), 0, 0, 0
    for seed in range(plays):
        calm = simulate(customers=customers, days=DAYS, seed=1000 + seed, fraud_rate=0.0)[0]
        for factor in (1.0, *FACTORS):
            amount = pl.when(pl.col("time") >= change).then(pl.col("amount") * factor).otherwise("amount")
            frame = read_events(calm.with_columns(amount=amount), SIMULATED_SCHEMA).frame
            scores = frame.filter(pl.col("time") >= since.timestamp()).select("row", surprise=pl.lit(0.3))
            found = drift(frame, scores, SIMULATED_SCHEMA)
            flagged = found.filter("flagged")
            if factor == 1.0:
                false_flags, cells = false_flags + len(flagged), cells + len(found)
                false_plays += bool(len(flagged))
            else:
                late = flagged.filter(pl.col("field").str.starts_with("amount"), pl.col("week") >= change.date())
                hits[factor] += bool(len(late))
    shares = {f"drift.flagged.up_{100 * (factor - 1):.0f}": hits[factor] / plays for factor in FACTORS}
    return {
        **shares,
        "drift.flagged": hits[1.6] / plays,
        "drift.false_flags": false_flags / cells,
        "drift.false_plays": false_plays / plays,
        "drift.plays": plays,
        "drift.cells": cells,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
