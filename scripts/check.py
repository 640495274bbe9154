"""Check everything: lint, format, types and tests. Exit code 0 means that all of it passed.

As in::

    python3 scripts/check.py               everything; makes the environment in .venv first if need be
    python3 scripts/check.py --fix         let ruff repair what it can, then check everything
    python3 scripts/check.py -- -k stream  the same with options to pytest
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from _environment import INTERRUPTED, ROOT, ensure, run

WORKERS = 2


def main() -> int:
    """Run every step, the failed ones' followers too, and return 0 if all passed."""
    parser = argparse.ArgumentParser(description="Check lint, format, types and tests.")
    parser.add_argument("--fix", action="store_true", help="let ruff repair what it can first")
    parser.add_argument("pytest", nargs="*", help="options to pytest, after --")
    wish = parser.parse_args()
    python = str(ensure(("dev",)))
    started = time.perf_counter()
    steps = {
        "ruff check": [python, "-m", "ruff", "check", "."],
        "ruff format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy"],
    }
    if wish.fix:
        repairs = {
            "ruff check --fix": [python, "-m", "ruff", "check", "--fix-only", "."],
            "ruff format --fix": [python, "-m", "ruff", "format", "."],
        }
        steps = {**repairs, **steps}
    passed = {name: _step(name, command) for name, command in steps.items()}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "tests.xml"
        passed["pytest"] = _step("pytest", _pytest(python, results, wish.pytest), threads=1)
        counts = _counts(results)
    failed = [name for name, good in passed.items() if not good]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"\n{verdict} ({time.perf_counter() - started:.1f} s)\n{counts}")
    return 1 if failed else 0


def _pytest(python: str, results: Path, options: Sequence[str]) -> list[str]:
    """Compose the test run: on two processes, unless single tests were asked for."""
    spread = [] if options else ["-n", str(WORKERS), "--dist", "loadfile"]
    return [python, "-m", "pytest", "-q", *spread, f"--junit-xml={results}", *options]


def _step(name: str, command: Sequence[str], threads: int | None = None) -> bool:
    """Run one step, show its output and a line on how it ended; whether it passed."""
    print(f"\n--- {name}", flush=True)
    env = dict(os.environ)
    if threads is not None:
        env.setdefault("OMP_NUM_THREADS", str(threads))  # processes that each start a thread per core slow each other
    began = time.perf_counter()
    code = run(command, cwd=ROOT, env=env)
    print(f"--- {name}: {'pass' if code == 0 else 'FAIL'}, {time.perf_counter() - began:.1f} s", flush=True)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return code == 0


def _counts(results: Path) -> str:
    """Sum up the test run in one plain line."""
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if results.exists():
        for suite in ET.parse(results).iter("testsuite"):
            for key in total:
                total[key] += int(suite.get(key, "0"))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
    return f"tests: {passed} passed, {failed} failed{skipped}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
