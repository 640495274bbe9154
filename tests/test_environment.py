"""scripts/_environment.py against real environments and a real pip, without a network.

The project to install is a tiny one that builds itself, so that pip needs to fetch nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from _environment import (
    ROOT,
    _check_running_python,
    _is_usable,
    _read_stamp,
    _write_stamp,
    ensure,
    inside,
    interpreter,
    run,
    run_inside,
)

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

# An editable wheel by hand. With a file `slow` beside it, the build says that it began and takes a minute.
BACKEND = '''\
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

METADATA = """Metadata-Version: 2.1
Name: tiny
Version: 1.0
Provides-Extra: dev
Provides-Extra: sql
"""


def build_editable(folder, config_settings=None, metadata_directory=None):
    if Path("slow").exists():
        Path("began").touch()
        time.sleep(60)
    with zipfile.ZipFile(Path(folder) / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
'''

# Ctrl-C is heard even if whoever started the tests has it ignored, as shells do in the background.
ENSURE = """\
import pathlib, signal, sys
from _environment import ensure
signal.signal(signal.SIGINT, signal.default_int_handler)
ensure((), pathlib.Path(sys.argv[1]))
"""


def make_project(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "backend.py").write_text(BACKEND, encoding="utf-8")
    (folder / "constraints.txt").write_text("# nothing\n", encoding="utf-8")
    return folder


def copy_of(finished: Path, folder: Path) -> Path:
    """Make a new project with an environment in which nothing but pip and `tiny` is there, and no stamp."""
    project = make_project(folder)
    shutil.copytree(finished / ".venv", project / ".venv", symlinks=True)
    (project / ".venv" / "stamp.json").unlink()
    return project


def stamp_of(project: Path) -> dict[str, object]:
    stamp: dict[str, object] = json.loads((project / ".venv" / "stamp.json").read_text(encoding="utf-8"))
    return stamp


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project whose environment is finished, with the extra `dev`."""
    project = make_project(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        ensure(("dev",), project)
    return project


@pytest.mark.parametrize(("windows", "expected"), [(False, "env/bin/python"), (True, "env/Scripts/python.exe")])
def test_each_system_keeps_its_interpreter_elsewhere(windows: bool, expected: str) -> None:
    assert interpreter(Path("env"), windows=windows).as_posix() == expected


def test_a_finished_environment_runs_and_holds_the_project(finished: Path) -> None:
    python = interpreter(finished / ".venv")
    assert run([python, "-c", "import tiny"]) == 0
    assert stamp_of(finished)["extras"] == ["dev"]
    assert not (finished / ".venv" / "unfinished").exists()


@pytest.mark.parametrize("wish", [("dev",), ()])
def test_a_second_call_is_quick_and_silent(
    finished: Path, wish: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamp_of(finished)
    began = time.perf_counter()
    assert ensure(wish, finished) == interpreter(finished / ".venv")
    assert time.perf_counter() - began < 2
    assert capsys.readouterr().out == ""
    assert stamp_of(finished) == before


def test_a_bigger_wish_installs_and_keeps_what_was_there(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensure(("sql",), finished)
    assert "Installing .[dev,sql]" in capsys.readouterr().out
    assert stamp_of(finished)["extras"] == ["dev", "sql"]


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_again(finished: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (finished / file).open("a", encoding="utf-8") as changed:
        changed.write("# changed\n")
    ensure(("dev",), finished)
    said = capsys.readouterr().out
    assert "Installing" in said
    assert "Making" not in said
    ensure(("dev",), finished)
    assert capsys.readouterr().out == ""


def test_a_script_runs_inside_and_gives_its_exit_code(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = finished / "script.py"
    script.write_text("import sys\nprint(sys.prefix, *sys.argv[1:])\nsys.exit(3)\n", encoding="utf-8")
    assert run_inside(interpreter(finished / ".venv"), str(script), ["one", "two words"]) == 3
    prefix, rest = capfd.readouterr().out.strip().split(" ", 1)
    assert Path(prefix).resolve() == (finished / ".venv").resolve()
    assert rest == "one two words"
    assert not inside(finished)


def spoil_interpreter(environment: Path) -> None:
    """Leave what a removed Python leaves: a link to nowhere, or no file at all."""
    interpreter(environment).unlink()


def spoil_root(environment: Path) -> None:
    """Leave what a moved folder leaves: a stamp that names the old place."""
    stamp = environment / "stamp.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text(encoding="utf-8")), "root": "old"}), encoding="utf-8")


def spoil_version(environment: Path) -> None:
    """Leave what a system's upgrade leaves: packages for the Python before."""
    stamp = environment / "stamp.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text(encoding="utf-8")), "python": [3, 1]}), encoding="utf-8")


def spoil_halfway(environment: Path) -> None:
    """Leave what a power cut leaves: packages that were being changed."""
    (environment / "unfinished").touch()


@pytest.mark.parametrize("spoil", [spoil_interpreter, spoil_root, spoil_version, spoil_halfway])
def test_a_broken_environment_is_noticed(finished: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    project = copy_of(finished, tmp_path / "project")
    environment = project / ".venv"
    _write_stamp(environment, {"root": str(project)})
    assert _is_usable(environment, _read_stamp(environment), project)
    spoil(environment)
    assert not _is_usable(environment, _read_stamp(environment), project)


def test_a_failed_installation_says_what_failed_and_how_to_go_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copy_of(finished, tmp_path / "project")
    (project / "pyproject.toml").write_text(PYPROJECT.replace("[]", '["no-such-tool"]', 1), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(SystemExit) as failure:
        ensure((), project)
    message = str(failure.value)
    assert "Could not install ." in message
    assert "No matching distribution found for no-such-tool" in message
    assert all(word in message for word in ("How to go on", "PROXY", "again", "PIP_FIND_LINKS"))
    assert not (project / ".venv" / "stamp.json").exists()

    make_project(project)
    ensure((), project)  # nothing was half-installed, so the same environment goes on
    assert "Making" not in capsys.readouterr().out
    assert stamp_of(project)["extras"] == []


@pytest.mark.skipif(os.name == "nt", reason="signals to a group of processes are POSIX")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_an_interrupted_installation_is_noticed(
    finished: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copy_of(finished, tmp_path / "project")
    (project / "slow").touch()
    command = [sys.executable, "-c", ENSURE, str(project)]
    with subprocess.Popen(command, cwd=ROOT / "scripts", stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (project / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.Signals[how])
        _, said = process.communicate(timeout=60)
    assert process.returncode
    assert not (project / ".venv" / "stamp.json").exists()
    (project / "slow").unlink()

    if how == "SIGINT":  # it could still tell that nothing was half-installed
        assert b"Interrupted" in said
        assert not (project / ".venv" / "unfinished").exists()
    else:
        assert (project / ".venv" / "unfinished").exists()
        python = ensure((), project)
        assert "Making the environment" in capsys.readouterr().out
        assert run([python, "-c", "import tiny"]) == 0


def test_a_python_that_cannot_make_an_environment_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer.*is Python 3\.9"):
        _check_running_python((3, 9), [])
    with pytest.raises(SystemExit, match=r"lacks its module ensurepip.*python3-venv"):
        _check_running_python((3, 12), ["ensurepip"])
    _check_running_python((3, 11), [])
