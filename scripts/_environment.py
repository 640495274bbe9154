"""The project's own environment in `.venv`, made with nothing but the standard library.

A script calls `ensure`, which makes the environment and installs the project with the tested versions of
constraints.txt, once. Later calls compare a stamp and return within a tenth of a second. A script that needs the
project then runs itself again inside::

    python = ensure(())
    if not inside():
        return run_inside(python, __file__, sys.argv[1:])

Two files in `.venv` keep the state honest. `unfinished` stands there while packages are being changed: an environment
that still has it was interrupted half-way and is made anew, since an installer takes a half-copied package for a whole
one. `stamp.json` is written last and tells what the finished environment was made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
INTERRUPTED = 130  # the exit code that shells give to Ctrl-C
LAST_LINES = 12


def interpreter(environment: Path, *, windows: bool = os.name == "nt") -> Path:
    """Path of an environment's Python."""
    return environment / "Scripts" / "python.exe" if windows else environment / "bin" / "python"


def inside(root: Path = ROOT) -> bool:
    """Whether this process runs in the project's environment."""
    return Path(sys.prefix).resolve() == (root / ".venv").resolve()


def ensure(extras: tuple[str, ...] = (), root: Path = ROOT) -> Path:
    """Make or complete the environment if need be, and return the path of its Python.

    Parameters
    ----------
    extras : tuple of str
        Optional dependencies of pyproject.toml that must be there, such as ``("dev",)``. Extras that were installed
        before stay.
    root : Path
        The folder with pyproject.toml and constraints.txt.

    Raises
    ------
    SystemExit
        With a message on what failed and how to go on (exit code 1).
    """
    environment = root / ".venv"
    python = interpreter(environment)
    stamp = _read_stamp(environment)
    made_from = {"root": str(root), "files": _hash_of(root / "pyproject.toml", root / "constraints.txt")}
    usable = _is_usable(environment, stamp, root)
    installed = set(stamp.get("extras", ())) if usable else set()
    if usable and set(extras) <= installed and all(stamp.get(key) == made_from[key] for key in made_from):
        return python
    if not usable:
        _create(environment, root)
    wanted = sorted(installed.union(extras))
    _install(environment, wanted, root)
    _write_stamp(environment, {**made_from, "python": _version_of(python), "extras": wanted})
    return python


def run_inside(python: Path, script: str, arguments: Sequence[str]) -> int:
    """Run `script` with the environment's Python, and return its exit code."""
    return run([python, script, *arguments])


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run a command to its end and return its exit code.

    Ctrl-C reaches the command as well: the first one leaves it time to tidy up, the second one ends it.
    """
    process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=env)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
        code = INTERRUPTED
    return code if code >= 0 else 128 - code  # a negative code is the signal that ended the command


def _hash_of(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _read_stamp(environment: Path) -> dict[str, Any]:
    """Read what the environment was made from; {} if it was never finished."""
    try:
        stamp = json.loads((environment / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(environment: Path, stamp: Mapping[str, object]) -> None:
    new = environment / "stamp.json.new"
    new.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    new.replace(environment / "stamp.json")


def _version_of(python: Path) -> list[int] | None:
    """Ask an interpreter for its (major, minor) version; None if it is gone or does not run."""
    question = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([str(python), "-I", "-S", "-c", question], capture_output=True, text=True, check=True)
        return [int(part) for part in answer.stdout.split()]
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _is_usable(environment: Path, stamp: Mapping[str, Any], root: Path) -> bool:
    """Whether packages may be installed into the environment that is there: it runs, is whole and was made here."""
    version = _version_of(interpreter(environment))
    return (
        version is not None
        and version >= list(OLDEST_PYTHON)
        and not (environment / "unfinished").exists()
        # A folder that was copied or moved still points to the old place; a system's new Python finds no packages.
        and stamp.get("root", str(root)) == str(root)
        and stamp.get("python", version) == version
    )


def _create(environment: Path, root: Path) -> None:
    """Make an empty environment in place of whatever is there."""
    _check_running_python(sys.version_info[:2], [m for m in ("venv", "ensurepip") if not importlib.util.find_spec(m)])
    if inside(root):
        raise SystemExit(f"{environment} must be made anew: start this script with a Python outside it.")
    print(f"Making the environment {environment} (once: some minutes, up to 2 GB) ...", flush=True)
    if environment.is_symlink():
        environment.unlink()
    elif environment.exists():
        shutil.rmtree(environment)
    environment.mkdir()
    (environment / "unfinished").touch()
    code, lines = _follow([sys.executable, "-I", "-m", "venv", str(environment)], root)
    if code:
        raise SystemExit(_failure("make an empty environment", code, lines))


def _check_running_python(version: tuple[int, ...], missing: Sequence[str]) -> None:
    """Refuse to make an environment with a Python that is too old or that came without its own modules for this."""
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if version < OLDEST_PYTHON:
        raise SystemExit(
            f"This project needs Python {oldest} or newer, but {sys.executable} is Python "
            f"{'.'.join(map(str, version))}. Start this script with a newer one, as in: python{oldest} {sys.argv[0]}"
        )
    if missing:
        raise SystemExit(
            f"{sys.executable} lacks its module {' and '.join(missing)}, needed to make an environment. On Debian and "
            "Ubuntu: apt-get install python3-venv. Elsewhere: install Python with venv and ensurepip."
        )


def _install(environment: Path, extras: Sequence[str], root: Path) -> None:
    """Install the project, editable, with the tested versions; the environment is left unmarked if it stayed whole."""
    unfinished = environment / "unfinished"
    unfinished.touch()
    project = f".[{','.join(extras)}]" if extras else "."
    print(f"Installing {project} with the versions of constraints.txt ...", flush=True)
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--constraint=constraints.txt"]
    python = str(interpreter(environment))
    code, lines = _follow([python, "-I", "-u", "-m", "pip", "install", *options, "--editable", project], root)
    # Before this line pip has looked up, downloaded and built, but changed no installed package.
    if code == 0 or not any(line.startswith("Installing collected packages") for line in lines):
        unfinished.unlink()
    if code:
        raise SystemExit(_failure(f"install {project}", code, lines))


def _follow(command: Sequence[str], cwd: Path) -> tuple[int, list[str]]:
    """Run a command, show its newest line on a terminal, and return its exit code and its lines."""
    lines: list[str] = []
    terminal = sys.stdout.isatty()
    environment = {**os.environ, "PIP_USER": "0"}  # a person's own setting that pip refuses in an environment
    try:
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                if terminal:
                    print(f"\r{line.strip()[:76]:78}", end="", flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED, lines
    finally:
        if terminal:
            print(f"\r{'':78}\r", end="", flush=True)
    return process.returncode, lines


def _failure(deed: str, code: int, lines: Sequence[str]) -> str:
    """Tell what failed, with the last words of the tool, and how to go on."""
    if code == INTERRUPTED:
        return f"Interrupted on the way to {deed}. Run the same command again to go on."
    last = "\n".join(f"    {line}" for line in deque(lines, LAST_LINES))
    return f"""Could not {deed} (exit code {code}). The last lines were:

{last}

How to go on:
  - A download was cut off or too slow: run the same command again; finished downloads are kept.
  - The network has a proxy or a mirror of its own: tell pip, by HTTPS_PROXY or in pip's own settings, and run again.
  - No network: on a machine that has one, in this folder,
        python3 -m pip download --dest wheels --constraint constraints.txt ".[dev]" "setuptools>=77"
    then bring the folder `wheels` here, set PIP_NO_INDEX=1 and PIP_FIND_LINKS to its full path, and run again.
  - The environment itself is odd: delete the folder .venv and run again."""
