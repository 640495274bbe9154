"""Compiling: what is compiled once is kept, also where the package's folder cannot be written, and never goes stale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

from anomaly import compiling
from anomaly.compiling import announced, compiled, fma, holder, widely

ROOT = Path(__file__).resolve().parent.parent
SUMS = """
from typing import NamedTuple
import numpy as np
from anomaly.compiling import compiled, holder, part
class Pair(NamedTuple):
    values: np.ndarray
    factor: float
HeldPair = holder("HeldPair", __name__, Pair)
@part
def times(pair):
    return pair.factor * FACTOR
@compiled
def hold(pair):
    return HeldPair(*pair)
@compiled
def total(held):
    return held.values.sum() * times(held)
"""
ASK = """
import sums, numpy as np
values = np.arange(3.0)
held = sums.hold(sums.Pair(values, 2.0))
values[0] = 1.0
print(sums.total(held), len(sums.total.stats.cache_hits))
"""


def ask(folder: Path, **environment: str) -> list[str]:
    """What a process of its own says that compiles, or finds compiled, the functions in `folder`."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **environment}
    done = subprocess.run([sys.executable, "-c", ASK], env=given, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_what_is_compiled_is_kept_until_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "sums.py"
    file.write_text(SUMS.replace("FACTOR", "10.0"))
    os.utime(file, (1e9, 1e9))
    assert ask(tmp_path) == ["80.0", "0"]
    assert ask(tmp_path) == ["80.0", "1"]
    # As long as before and of the same time: numba alone would take it for the same file.
    file.write_text(SUMS.replace("FACTOR", "30.0"))
    os.utime(file, (1e9, 1e9))
    assert ask(tmp_path, PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=str(tmp_path / "none")) == ["240.0", "0"]


@pytest.mark.skipif(os.name == "nt", reason="folders are made read-only by their mode")
def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    package, home = tmp_path / "package", tmp_path / "home"
    package.mkdir()
    (package / "sums.py").write_text(SUMS.replace("FACTOR", "10.0"))
    (package / "__pycache__").write_text("no folder: nothing can be written here, by root neither")
    home.mkdir()
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert ask(package, **places) == ["80.0", "0"]
    assert ask(package, **places) == ["80.0", "1"], "the user's cache"
    shutil.rmtree(home)
    home.write_text("no folder either")
    assert ask(package, **places) == ["80.0", "0"], "compiled in each process"


def test_long_compiling_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiling, "PATIENCE", 0.01)
    with announced("fit"):
        time.sleep(0.1)
    assert not capsys.readouterr().err, "it took long, and nothing was compiled"
    halve = numba.njit(lambda x: np.sqrt(x).sum() / 2.0)  # kept nowhere
    with announced("fit"):
        halve(np.ones(3))
    said = capsys.readouterr().err
    assert said.startswith("fit: compiling for this processor")
    assert said.count("\n") == 1
    with announced("fit"):
        halve(np.ones(3))
        time.sleep(0.1)
    assert not capsys.readouterr().err, "it was compiled before"


class Pair(NamedTuple):
    values: Any
    factor: float


def test_a_tuple_is_held_by_compiled_functions_alone() -> None:
    held = holder("HeldPair", __name__, Pair)
    with pytest.raises(TypeError, match="HeldPair: only a compiled function can make one"):
        held((1.0, 2.0), 3.0)


@compiled
def multiply_add(x: Any, y: Any, z: Any, out: Any) -> None:
    """As many products as there are, added to z."""
    widely()
    for i in range(len(out)):
        out[i] = fma(x[i], y[i], z[i])


def test_a_product_goes_into_a_sum_unrounded_in_vectors_as_alone() -> None:
    draw = np.random.default_rng(0)
    x, y, z = draw.normal(size=(3, 37)).astype(np.float32)
    z[:10] = -(x[:10] * y[:10])  # what rounding the product first would leave nothing of
    found = np.empty(37, np.float32)
    multiply_add(x, y, z, found)
    exact = x.astype(np.float64) * y + z
    assert (found[:10] != 0).any()
    assert (found == exact.astype(np.float32)).all()
    for i in range(37):
        one = slice(i, i + 1)
        multiply_add(x[one], y[one], z[one], found[one])
    assert (found == exact.astype(np.float32)).all()


def test_numbers_of_other_kinds_are_refused() -> None:
    wide = np.ones(3)
    with pytest.raises(Exception, match="fma: expected three float32, got float64"):
        multiply_add(wide, wide, wide, wide)
