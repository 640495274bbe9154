"""What the measuring scripts share: numbers.json, a stopwatch, and the public command line with its peak memory.

Nothing but the standard library. Started as a program, this file runs a command and writes its peak memory into a file:
a process that is started from a large one counts the large one's memory as its own, so a small one stands between.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from _environment import ROOT

CODE = ("anomaly", "scripts", "pyproject.toml", "constraints.txt")  # what a figure depends on
NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def parse(doc: str | None, name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; `out` is a folder outside the repository, which is checked."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="where the data is")
    parser.add_argument("--out", type=Path, help="folder outside the repository (default: a temporary one)")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / name, help="folder of the figures")
    for option in ("--epochs", "--hidden", "--seed"):
        parser.add_argument(option, type=int, help="of anomaly fit")
    parser.add_argument("--quarantine-hours", type=float, help="of anomaly fit")
    wish = parser.parse_args(arguments)
    if wish.out is None:
        wish.out = Path(tempfile.mkdtemp(prefix=f"anomaly-{name}-"))
    if wish.out.resolve().is_relative_to(ROOT):
        parser.error(f"--out {wish.out}: inside the repository; rows of the data do not belong there")
    return wish


def fit_options(wish: argparse.Namespace) -> list[str]:
    """Options of ``anomaly fit`` that were given."""
    given = {
        f"--{key.replace('_', '-')}": getattr(wish, key) for key in ("epochs", "hidden", "quarantine_hours", "seed")
    }
    return [word for key, value in given.items() if value is not None for word in (key, f"{value:g}")]


class Meter:
    """Wall-clock seconds of a block.

    >>> with Meter() as meter:
    ...     pass
    >>> 0 <= meter.seconds < 1
    True
    """

    seconds: float = math.nan

    def __enter__(self) -> Meter:
        """Start."""
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._began


class Run(NamedTuple):
    """What the command line said, how long it took, the most memory it had (MiB), and its processor time.

    None where unknown. The processor time is that of all its threads; it hardly depends on what else the machine does.
    """

    result: dict[str, Any]
    seconds: float
    peak_mb: float | None
    processor_seconds: float | None = None


def run_cli(args: Sequence[str | Path]) -> Run:
    """Run ``python -m anomaly ... --json`` in a process of its own; its messages go to standard error.

    Raises
    ------
    RuntimeError
        If it fails, or its standard output is not one JSON object.
    """
    command = [sys.executable, "-m", "anomaly", *(str(part) for part in args), "--json"]
    with tempfile.TemporaryDirectory() as folder:
        peak = Path(folder) / "peak"
        with Meter() as meter:
            done = subprocess.run(
                [sys.executable, "-S", "-E", __file__, str(peak), *command],
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=False,
            )
        peak_mb, processor = map(float, peak.read_text().split()) if peak.exists() else (None, None)
    told = f"anomaly {' '.join(command[3:])}"
    if done.returncode:
        raise RuntimeError(f"`{told}` failed with exit code {done.returncode}; its message is above")
    try:
        result = json.loads(done.stdout)
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise RuntimeError(f"`{told}`: expected one JSON object on standard output, got {done.stdout[:200]!r}")
    return Run(result, meter.seconds, peak_mb, processor)


def file_to_report(
    events: Path, schema: str, folder: Path, *, until: str, options: Sequence[str] = (), budget: float
) -> tuple[Path, dict[str, float]]:
    """Fit before `until`, score from then on and report, each by the command line.

    Parameters
    ----------
    events : Path
        The table.
    schema : str
        Its schema, as TOML.
    folder : Path
        Gets ``schema.toml``, ``detector``, ``scores.parquet`` and ``report.html``; made if need be.
    until : str
        End of the history and start of what is scored.
    options : sequence of str
        Further options of ``anomaly fit``.
    budget : float
        Cases a day in the report.

    Returns
    -------
    scores : Path
        The scored events.
    figures : dict
        ``fit.seconds``, ``fit.peak_mb``, the same of ``score`` and ``report``, and ``peak_mb`` over all three.
    """
    folder.mkdir(parents=True, exist_ok=True)
    toml, detector, scores = folder / "schema.toml", folder / "detector", folder / "scores.parquet"
    toml.write_text(schema, encoding="utf-8")
    steps: dict[str, list[str | Path]] = {
        "fit": ["fit", events, "--schema", toml, "--out", detector, "--until", until, *options],
        "score": ["score", events, "--detector", detector, "--since", until, "--out", scores],
        "report": ["report", events, "--detector", detector, "--scores", scores, "--out", folder / "report.html",
                   "--budget-per-day", f"{budget:g}"],
    }  # fmt: skip
    figures: dict[str, float] = {}
    for step, args in steps.items():
        run = run_cli(args)
        figures[f"{step}.seconds"] = run.seconds
        if run.peak_mb is not None:
            figures[f"{step}.peak_mb"] = run.peak_mb
            figures["peak_mb"] = max(run.peak_mb, figures.get("peak_mb", 0.0))
    return scores, figures


def write_numbers(folder: Path, command: str, figures: Mapping[str, float]) -> Path:
    """Write ``numbers.json`` into `folder`, whole or not at all; what `merge_numbers` put there stays.

    Parameters
    ----------
    folder : Path
        Made if need be.
    command : str
        What makes the figures again; see `told_command`.
    figures : mapping of str to float
        By flat dotted name in lower case.

    Raises
    ------
    ValueError
        If a name is not of that form, or a figure is NaN or infinite.
    """
    content, old = _content(command, figures), read_numbers(folder)
    if parts := old.get("parts"):
        kept = {name: value for name, value in old["figures"].items() if name.split(".")[0] in parts}
        content |= {"parts": parts, "figures": dict(sorted({**content["figures"], **kept}.items()))}
    return _write(folder, content)


def merge_numbers(
    folder: Path, part: str, command: str, figures: Mapping[str, float], prefixes: Sequence[str] = ()
) -> Path:
    """Put the figures of one part among the others in ``numbers.json``; their names begin with the part and a dot.

    What the file says of its other figures stays as it is; who made these, from which code and where, stands under
    ``parts``, and on top if the same command made the rest. A file that is not there yet is made. With `prefixes` the
    names begin with one of these instead.

    Raises
    ------
    ValueError
        If a name does not begin so, or as for `write_numbers`.
    """
    begins = tuple(prefixes) or (f"{part}.",)
    strangers = sorted(name for name in figures if not name.startswith(begins))
    if strangers:
        raise ValueError(f"figure {strangers[0]!r}: expected a name that begins with {' or '.join(begins)}")
    old, made = read_numbers(folder), _content(command, figures)
    merged = {name: value for name, value in old.get("figures", {}).items() if not name.startswith(begins)}
    merged |= made.pop("figures")
    newest = made if old.get("command", command) == command else old
    content = {key: newest[key] for key in ("command", "commit", "machine")}
    content |= {"parts": old.get("parts", {}) | {part: made}, "figures": dict(sorted(merged.items()))}
    return _write(folder, content)


def read_figures(folder: Path) -> dict[str, float]:
    """All figures of ``numbers.json``; none if it is not there."""
    return dict(read_numbers(folder).get("figures", {}))


def _content(command: str, figures: Mapping[str, float]) -> dict[str, Any]:
    for name, value in figures.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"figure {name!r}: expected a name like both.s1.auc, in lower case")
        if not math.isfinite(value):
            raise ValueError(f"figure {name!r}: expected a number, got {value}")
    return {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "figures": {name: _rounded(figures[name]) for name in sorted(figures)},
    }


def read_numbers(folder: Path) -> dict[str, Any]:
    """Content of ``numbers.json`` in `folder`; empty if there is none."""
    path = folder / "numbers.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _write(folder: Path, content: Mapping[str, Any]) -> Path:
    return write_text(folder / "numbers.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _rounded(value: float) -> float | int:
    """Six digits, which is more than any of these figures has; whole numbers stay whole."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def told_command(script: str | Path, data: Path, options: Sequence[str]) -> str:
    """Tell the command that makes the figures again, with the data's name in place of its path.

    >>> told_command("/home/me/scripts/nab.py", Path("/data/nab"), ["--seed", "1"])
    'python scripts/nab.py nab --seed 1'
    """
    return " ".join(["python", f"scripts/{Path(script).name}", data.name, *options])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown table, numbers with three decimals.

    >>> print(table(["scorer", "AP"], [["amount", 0.25]]))
    | scorer | AP |
    |---|---:|
    | amount | 0.250 |
    """
    lines = [" | ".join(head), "---|" + "|".join(["---:"] * (len(head) - 1))]
    lines += [" | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) for row in rows]
    return "\n".join(f"| {line} |" if " " in line else f"|{line}|" for line in lines)


def commit(root: Path = ROOT) -> str:
    """Commit of the code, with ``-dirty`` if the code differs from it; "unknown" outside git."""
    head = _said(["git", "rev-parse", "HEAD"], root)
    changes = _said(["git", "status", "--porcelain", "--", *CODE], root)
    return "unknown" if head is None else head + ("-dirty" if changes else "")


def machine() -> dict[str, str | int | float]:
    """Describe what the figures were measured on: nothing that names the machine or its user."""
    found: dict[str, str | int | float] = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "system": platform.system(),
        "python": platform.python_version(),
    }
    try:
        found["torch"] = version("torch")
    except PackageNotFoundError:
        found["torch"] = "none"
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return found


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    apple = _said(["sysctl", "-n", "machdep.cpu.brand_string"], ROOT) if sys.platform == "darwin" else None
    return apple or platform.processor() or platform.machine()


def _said(command: Sequence[str], root: Path) -> str | None:
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _watch(peak: Path, command: Sequence[str]) -> int:
    """Run a command, write its peak memory (MiB) and processor time (s) into a file (not on Windows); its exit code."""
    code = subprocess.call(command)
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        most = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        peak.write_text(f"{most} {used.ru_utime + used.ru_stime}")
    return code


if __name__ == "__main__":
    sys.exit(_watch(Path(sys.argv[1]), sys.argv[2:]))
