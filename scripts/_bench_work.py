"""The work of the detection bench: its sizes, its pieces, and the folder that keeps what a piece found.

A piece is one fit or one rule on one seed. What it finds is a small JSON value, stored under a name that holds a digest
of the sizes, the data and the code, so that a piece is done once and is done again where any of these changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from _environment import ROOT
from _numbers import write_text
from scipy import stats

Found = dict[str, Any]
Done = Mapping[str, Found]  # what the pieces of a section found, by the piece's name

PRESENTATION = ("__main__.py", "cli.py", "figures.py", "report.py", "_bench_report.py", "_bench_targets.py")
SCRIPTS = ("_peers.py", "_series.py", "handbook.py", "nab.py")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    customers, days, fit_days : int
        Of the simulated payments; the first `fit_days` are history.
    seeds, few_seeds, lstm_seeds : int
        Simulations for our detector and the rules; for variants of it; for PyOD's LSTM.
    first_seed : int
        None of these seeds was used for any choice.
    hidden, epochs : int
        Of every detector fitted on simulated payments; 0 epochs = the detector's own default.
    lstm_epochs, lstm_events : int
        Of PyOD's LSTM.
    episodes : int
        Planted frauds of each kind in the rehearsal.
    levels : tuple of float
        Per cent of fraud in the history.
    contamination_seeds : int
        Simulations of which each gives all levels.
    rates_seeds, rates_customers, rates_days, rates_fit_days : int
        Of the payments without fraud.
    data_epochs : int
        On the Handbook and the single series; 0 = the detector's own default.
    every : int
        Take each `every`-th customer of the Handbook.
    second_fit : bool
        Fit the Handbook a second time, for its autoencoder's week.
    """

    customers: int = 500
    days: int = 90
    fit_days: int = 60
    seeds: int = 5
    few_seeds: int = 2
    lstm_seeds: int = 2
    first_seed: int = 1001
    hidden: int = 64
    epochs: int = 0
    lstm_epochs: int = 10
    lstm_events: int = 20_000
    episodes: int = 100
    levels: tuple[float, ...] = (0, 0.5, 1, 2, 5)
    contamination_seeds: int = 2
    rates_seeds: int = 4
    rates_customers: int = 1000
    rates_days: int = 300
    rates_fit_days: int = 60
    data_epochs: int = 0
    every: int = 1
    second_fit: bool = True

    @property
    def per_day(self) -> int:
        """Alerts a day: 25 for 1,000 customers."""
        return max(1, round(0.025 * self.customers))


FULL = Sizes()
TINY = Sizes(
    customers=60,
    days=75,
    fit_days=50,
    seeds=2,
    few_seeds=2,
    lstm_seeds=1,
    hidden=4,
    epochs=1,
    lstm_epochs=1,
    lstm_events=2000,
    episodes=5,
    rates_seeds=2,
    rates_customers=60,
    rates_days=75,
    rates_fit_days=50,
    data_epochs=1,
    every=50,
    second_fit=False,
)


@dataclass(frozen=True)
class Data:
    """Where the data is that does not come with the project."""

    handbook: Path
    nab: Path


@dataclass(frozen=True)
class Piece:
    """One piece of work.

    Attributes
    ----------
    section, name : str
        Together unique.
    work : callable
        Returns what was found, as plain JSON values; can be pickled.
    data : Path, optional
        A file or folder that it reads.
    needs : str
        A library that it needs and that may be absent.
    """

    section: str
    name: str
    work: Callable[[], Found]
    data: Path | None = None
    needs: str = ""


@dataclass(frozen=True)
class Folder:
    """Keeps what pieces found."""

    path: Path
    sizes: Sizes
    code: str

    def file(self, piece: Piece) -> Path:
        """Where the piece's findings are, or will be."""
        told = json.dumps([asdict(self.sizes), self.code, _stamp(piece.data)], sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return self.path / f"{piece.section}.{piece.name}.{digest}.json"

    def read(self, pieces: Iterable[Piece]) -> dict[str, Found]:
        """What is there of these pieces, by name."""
        files = {piece.name: self.file(piece) for piece in pieces}
        return {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}

    def forget(self, pieces: Iterable[Piece]) -> None:
        """Remove what these pieces found."""
        for piece in pieces:
            self.file(piece).unlink(missing_ok=True)


def run_pieces(folder: Folder, pieces: Sequence[Piece], processes: int = 1) -> dict[str, str]:
    """Do the pieces that are not there yet, and store what each found as soon as it is done.

    Parameters
    ----------
    folder : Folder
        Where findings are kept.
    pieces : sequence of Piece
        What to do.
    processes : int
        How many at a time; each gets an equal share of the cores.

    Returns
    -------
    dict of str to str
        The failed pieces, and the last line of each one's error.
    """
    left = [piece for piece in pieces if not folder.file(piece).exists()]
    failed: dict[str, str] = {}
    if processes == 1:
        for number, piece in enumerate(left, 1):
            _store(folder, piece, _timed, failed, f"{number}/{len(left)}")
        return failed
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = threads  # the new processes read them when they begin
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running: dict[Future[Found], Piece] = {pool.submit(_timed, piece): piece for piece in left}
        number = 0
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number += 1
                piece = running.pop(future)
                _store(folder, piece, partial(_result, future), failed, f"{number}/{len(left)}")
    return failed


def _timed(piece: Piece) -> Found:
    began = time.perf_counter()
    found = piece.work()
    return {**found, "seconds": time.perf_counter() - began}


def _result(future: Future[Found], _: Piece) -> Found:
    return future.result()


def _store(folder: Folder, piece: Piece, get: Callable[[Piece], Found], failed: dict[str, str], told: str) -> None:
    name = f"{piece.section}.{piece.name}"
    try:
        found = get(piece)
    except Exception as error:  # one piece less is no reason to lose the others; it is told, and the exit code is 1
        traceback.print_exception(error)
        failed[name] = f"{type(error).__name__}: {str(error)[:200]}"
        return
    write_text(folder.file(piece), json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"{told} {name}: {found['seconds']:.0f} s", flush=True)


def code_digest() -> str:
    """Sha256 of the source that the figures depend on; what only shows them is left out."""
    scripts = [ROOT / "scripts" / name for name in SCRIPTS] + sorted((ROOT / "scripts").glob("_bench_*.py"))
    digest = hashlib.sha256()
    for file in [*sorted((ROOT / "anomaly").rglob("*.py")), *scripts]:
        if file.name not in PRESENTATION:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(ROOT).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _stamp(data: Path | None) -> list[list[object]]:
    """Names and sizes of the files of some data."""
    if data is None or not data.exists():
        return []
    files = sorted(data.iterdir()) if data.is_dir() else [data]
    return [[file.name, file.stat().st_size] for file in files]


def seeds(sizes: Sizes, number: int) -> list[int]:
    """The first seeds, in order."""
    return list(range(sizes.first_seed, sizes.first_seed + number))


def epochs(given: int) -> int | None:
    """Epochs for a detector; None is its own default."""
    return given or None


def with_interval(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of some seeds, with the 95 % t interval as `.low` and `.high` if there are two or more.

    >>> with_interval("a.ap", [0.5])
    {'a.ap': 0.5}
    >>> sorted(with_interval("a.ap", [0.4, 0.6]))
    ['a.ap', 'a.ap.high', 'a.ap.low']
    """
    found = {name: float(np.mean(values))}
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        found |= {f"{name}.low": found[name] - half, f"{name}.high": found[name] + half}
    return found


def mean_over(name: str, each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means with intervals of every measure that any of the seeds has."""
    keys = sorted({key for one in each for key in one})
    figures: dict[str, float] = {}
    for key in keys:
        figures |= with_interval(f"{name}.{key}", [one[key] for one in each if key in one])
    return figures
