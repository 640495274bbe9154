"""Measure how fast events are read, learned and scored, beside the raw limit of the machine and other detectors.

As in::

    python3 scripts/bench_speed.py                               simulated payments; some minutes; writes reports/speed
    python3 scripts/bench_speed.py --handbook handbook.parquet   payments of the Fraud Detection Handbook too
    python3 scripts/bench_speed.py --only peers                  one section; the others keep the figures they have
    python3 scripts/bench_speed.py --only large --events 50000000  far more events than fit into memory

Each section writes its figures when it is done, so that a bench that breaks off goes on with `--only`. Rates are those
of one thread unless a name says otherwise. The raw limit is torch's own `nn.LSTM` on random input of the same sizes, at
the best of several batches, measured before and after what is compared with it. Absolute figures are of the machine;
the ratios are what holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from _environment import INTERRUPTED, ROOT, ensure, inside, run_inside

SECTIONS = ("rates", "stages", "peers", "scaling", "start", "stream", "handbook", "large")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections inside the project's environment and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, help="one section (default: all that need no more options)")
    parser.add_argument("--customers", type=int, default=500, help="simulated ones (default: %(default)s)")
    parser.add_argument("--handbook", type=Path, help="the Handbook's payments, for the sections handbook and stream")
    parser.add_argument("--events", type=int, default=10_000_000, help="of the section large (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "speed", help="folder of the figures")
    wish = parser.parse_args(arguments)
    if wish.only == "handbook" and wish.handbook is None:
        parser.error("--only handbook: give --handbook, the path of the Handbook's payments")
    if not inside():
        return run_inside(ensure(("bench",)), __file__, sys.argv[1:] if arguments is None else arguments)

    from _bench_speed_report import write_report
    from _numbers import write_numbers

    usual = [name for name in SECTIONS if name != "large" and (name != "handbook" or wish.handbook)]
    for name in [wish.only] if wish.only else usual:
        print(f"{name} ...", file=sys.stderr, flush=True)
        write_numbers(wish.out / "sections" / name, told(wish, name), measure(name, wish))
        figures = gathered(wish.out)
        print(f"The figures: {write_numbers(wish.out, 'python3 scripts/bench_speed.py', figures)}", file=sys.stderr)
        write_report(wish.out)
    return 0


def told(wish: argparse.Namespace, name: str) -> str:
    """Tell the command that measures a section again."""
    words = ["python3 scripts/bench_speed.py", f"--only {name}"]
    words += [f"--customers {wish.customers}"] if wish.customers != 500 else []
    words += [f"--handbook {wish.handbook.name}"] if wish.handbook and name in ("handbook", "stream") else []
    words += [f"--events {wish.events}"] if name == "large" else []
    return " ".join(words)


def measure(name: str, wish: argparse.Namespace) -> dict[str, float]:
    """Figures of a section."""
    import _bench_speed_work as work

    if name == "handbook":
        return work.handbook(wish.handbook)
    if name == "large":
        return work.large(wish.events)
    if name == "start":
        return work.start()
    if name == "stream":
        return work.stream(work.Setting.of(wish.customers), wish.handbook)
    return work.SIMULATED[name](work.Setting.of(wish.customers))


def gathered(folder: Path) -> dict[str, float]:
    """Figures of all sections that were measured."""
    found: dict[str, float] = {}
    for path in sorted((folder / "sections").glob("*/numbers.json")):
        found |= json.loads(path.read_text(encoding="utf-8"))["figures"]
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
