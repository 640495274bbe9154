"""Measure how well fraud is found, against rules and other detectors, and whether promises are kept.

As in::

    python3 scripts/bench_detection.py                              everything; some hours
    python3 scripts/bench_detection.py --only simulator rates       some sections
    python3 scripts/bench_detection.py --size tiny --reports out    a quick try of every section

Five sections: simulated payments, fraud in the history, promised rates, the Fraud Detection Handbook, single series.
Figures, pictures and report.md go to reports/detection. Each piece of work is kept in a folder outside the repository
and is not done again, so that a run that was broken off goes on where it was; changed sizes or code make it do the
piece anew. The report is written from whatever is there, and names what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from _environment import INTERRUPTED, ROOT, ensure, run_inside

# Any environment that has the libraries will do, and is left as it is; only without them is the project's own one made.
if __name__ == "__main__" and importlib.util.find_spec("torch") is None:
    sys.exit(run_inside(ensure(("bench",)), __file__, sys.argv[1:]))
if importlib.util.find_spec("anomaly") is None:
    sys.path.append(str(ROOT))

import _bench_contamination
import _bench_handbook
import _bench_nab
import _bench_rates
import _bench_simulator
from _bench_report import SECTIONS, Told, write_report
from _bench_work import FULL, TINY, Data, Folder, Piece, Sizes, code_digest, run_pieces
from _numbers import merge_numbers, read_numbers

PREFIXES = {
    "simulator": ("simulator.", "fdr.", "budget.", "rehearsal.", "ablation.", "choice.", "seconds.simulator"),
    "contamination": ("contamination.", "seconds.contamination"),
    "rates": ("rates.", "seconds.rates"),
    "handbook": ("handbook.", "seconds.handbook"),
    "nab": ("nab.", "seconds.nab"),
}
"""How the names of each section's figures begin."""
SIZES = {"tiny": TINY, "full": FULL}
SHARED = Path("../shared/data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is not done yet, and write the report; 1 if a piece failed."""
    wish = parse(arguments)
    sizes: Sizes = SIZES[wish.size]
    options = "" if wish.size == "full" else f" --size {wish.size}"
    command = f"python3 scripts/bench_detection.py{options}"
    return bench(sizes, Data(wish.handbook, wish.nab), command, wish)


def bench(sizes: Sizes, data: Data, command: str, wish: argparse.Namespace) -> int:
    """Do the pieces of the wished sections, and write the report of all that is there."""
    folder = Folder(wish.out, sizes, code_digest())
    sections = all_pieces(sizes, data)
    able = {name: [piece for piece in pieces if not reason(piece)] for name, pieces in sections.items()}
    todo = [piece for name in wish.only for piece in able[name]]
    if wish.fresh:
        folder.forget(todo)
    failed: dict[str, str] = {}
    try:
        failed = run_pieces(folder, todo, wish.processes)
    finally:  # an interrupted run tells what it has
        write(folder, sections, wish.reports, command, failed)
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    print(f"figures: {wish.reports}\npieces: {wish.out}")
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; `out` is a folder outside the repository, which is checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(tempfile.gettempdir()) / "anomaly-bench-detection"
    parser.add_argument("--handbook", type=Path, default=ROOT / SHARED / "handbook.parquet", help="its payments")
    parser.add_argument("--nab", type=Path, default=ROOT / SHARED / "nab", help="folder of the series")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="how much (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="pieces at a time (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some sections")
    parser.add_argument("--fresh", action="store_true", help="do again what is there")
    parser.add_argument("--out", type=Path, default=default, help="folder of the pieces, outside the repository")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "detection", help="folder of the figures")
    wish = parser.parse_args(arguments)
    if wish.out.resolve().is_relative_to(ROOT):
        parser.error(f"--out {wish.out}: inside the repository; what is half done does not belong there")
    if wish.processes < 1:
        parser.error(f"--processes {wish.processes}: expected at least 1")
    return wish


def all_pieces(sizes: Sizes, data: Data) -> dict[str, list[Piece]]:
    """Every piece of every section, whether it can be done here or not."""
    return {
        "simulator": _bench_simulator.pieces(sizes),
        "contamination": _bench_contamination.pieces(sizes),
        "rates": _bench_rates.pieces(sizes),
        "handbook": _bench_handbook.pieces(sizes, data),
        "nab": _bench_nab.pieces(sizes, data),
    }


def reason(piece: Piece) -> str:
    """Why a piece cannot be done here; empty if it can."""
    if piece.data is not None and not piece.data.exists():
        return f"the data `{piece.data.name}` is not here"
    if piece.needs and importlib.util.find_spec(piece.needs) is None:
        return f"`{piece.name.rsplit('.', 1)[-1]}` needs the library {piece.needs} of the extra `bench`"
    return ""


def write(
    folder: Folder, sections: Mapping[str, Sequence[Piece]], reports: Path, command: str, failed: Mapping[str, str]
) -> None:
    """Write figures, pictures and page from whatever is there.

    A section of which no piece is there keeps the figures of an earlier run, perhaps of other code, in `reports`.
    """
    collect = {
        "simulator": _bench_simulator.figures,
        "contamination": _bench_contamination.figures,
        "rates": _bench_rates.figures,
        "handbook": _bench_handbook.figures,
        "nab": _bench_nab.figures,
    }
    progress, reasons = {}, {}
    reports.mkdir(parents=True, exist_ok=True)
    for name, pieces in sections.items():
        done = folder.read(pieces)
        progress[name] = (len(done), len(pieces))
        missing = [piece for piece in pieces if piece.name not in done]
        why = {reason(piece) or _told(failed.get(f"{name}.{piece.name}")) for piece in missing}
        reasons[name] = sorted(why - {""})
        if done:
            figures = collect[name](done, folder.sizes)
            figures[f"seconds.{name}"] = sum(found["seconds"] for found in done.values())
            merge_numbers(reports, name, command, figures, PREFIXES[name])
    content = read_numbers(reports)
    made = {name: part["commit"] for name, part in content.get("parts", {}).items()}
    kept = {name: commit for name, commit in made.items() if name in progress and not progress[name][0]}
    write_report(reports, content.get("figures", {}), Told(command, folder.sizes, progress, reasons, kept))


def _told(error: str | None) -> str:
    """The kind of an error, for the page: its message may hold paths."""
    return "" if error is None else f"a piece failed ({error.split(':', 1)[0]})"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted: what is done is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
