"""A fitted detector on disk: a folder with ``manifest.json`` and ``.safetensors`` parts. It knows nothing of models.

Each part's file name holds the first digits of its sha256, and the manifest, replaced last and in one step, names the
parts. So a crash while saving leaves the old detector whole, and a changed part is refused by name. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from anomaly.errors import AnomalyError, ArtifactError
from anomaly.schema import Schema

FORMAT = 6  # an entity's own values are coded by how common they are, and how much is remembered is told no further
MANIFEST = "manifest.json"
_OWN = re.compile(r".+-[0-9a-f]{12}\.safetensors(\.part)?|manifest\.json\.part")  # what a save leaves beside it

Arrays = dict[str, NDArray[Any]]


def write_artifact(folder: Path | str, manifest: Mapping[str, Any], parts: Mapping[str, Arrays]) -> Path:
    """Write a detector's parts and then its manifest into `folder` (made if need be); returns the folder.

    Parameters
    ----------
    folder : path
        An artifact that is there already is replaced in one step.
    manifest : mapping
        Plain JSON values; ``format`` and ``parts`` are added.
    parts : mapping of str to mapping of str to ndarray
        Named arrays of each part.

    Raises
    ------
    ArtifactError
        If `folder` is a file, or holds other things than an artifact.
    """
    path = check_folder(folder)
    path.mkdir(parents=True, exist_ok=True)
    listed = {}
    for name, arrays in parts.items():
        data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}-{digest[:12]}.safetensors"
        _replace(path / file, data)
        listed[name] = {"file": file, "sha256": digest}
    text = json.dumps({"format": FORMAT, **manifest, "parts": listed}, indent=2, ensure_ascii=False)
    _replace(path / MANIFEST, text.encode())
    kept = {MANIFEST, *(part["file"] for part in listed.values())}
    for old in path.iterdir():
        if _OWN.fullmatch(old.name) and old.name not in kept:
            old.unlink()
    return path


def check_folder(folder: Path | str) -> Path:
    """Refuse a folder into which `write_artifact` would not write, so that a long fit need not end in an error.

    Raises
    ------
    ArtifactError
        If `folder` is a file, or holds other things than an artifact.
    """
    path = Path(folder)
    # A first save that broke off leaves parts without a manifest; they may be written over.
    strange = path.is_dir() and not all(_OWN.fullmatch(file.name) for file in path.iterdir())
    if path.is_file() or (strange and not (path / MANIFEST).exists()):
        raise ArtifactError(f"save: {path} holds other things than a saved detector; give a new or empty folder")
    return path


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Read the manifest alone; errors as of `read_artifact`."""
    path = Path(folder)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"load: no {MANIFEST} in {path}; give a folder that Detector.save or `anomaly fit` wrote"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"load: {path / MANIFEST} is not readable ({error}); save the detector again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(
            f"load: {path / MANIFEST} has format {found!r}, this version reads format {FORMAT}; fit again "
            "(and push the past events into a new stream)"
        )
    return manifest


def read_schema(folder: Path | str) -> Schema:
    """Read the schema of a saved detector alone; errors as of `read_artifact`."""
    manifest = read_manifest(folder)
    try:
        return Schema.model_validate(manifest["schema"])
    except (KeyError, ValueError) as error:
        path, kind = Path(folder) / MANIFEST, type(error).__name__
        raise ArtifactError(f"load: {path} holds no schema of a detector ({kind}); fit again") from None


def read_artifact(folder: Path | str) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Read manifest and parts, and check them.

    Raises
    ------
    ArtifactError
        If there is no manifest, its format is unknown, or a part is missing or changed (named in the message).
    """
    path = Path(folder)
    manifest = read_manifest(path)
    try:
        listed = {name: (path / part["file"], part["sha256"]) for name, part in manifest["parts"].items()}
    except (AttributeError, KeyError, TypeError):
        raise ArtifactError(f"load: {path / MANIFEST} does not list the parts as it should; fit again") from None
    parts = {}
    for name, (file, digest) in listed.items():
        if not file.is_file():
            raise ArtifactError(f"load: the part {file.name} is missing from {path}; copy it over or fit again")
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError(f"load: the part {file.name} in {path} was changed since it was saved; fit again")
        parts[name] = load(data)
    return manifest, parts


@contextmanager
def fitting_together(folder: Path | str) -> Iterator[None]:
    """Say which artifact it was where what was read of it does not fit together."""
    try:
        yield
    except AnomalyError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ArtifactError(f"load: the manifest and the parts in {folder} do not fit together ({reason})") from None


def versions() -> Mapping[str, str]:
    """Versions of what made the numbers."""
    libraries = {name: version(name) for name in ("torch", "numpy", "polars", "scipy")}
    return {"anomaly": version("anomaly"), "python": platform.python_version(), **libraries}


def pack_text(values: NDArray[np.object_]) -> NDArray[np.uint8]:
    """Texts as one array of bytes (JSON, so that any character may occur)."""
    return np.frombuffer(json.dumps(values.tolist()).encode(), dtype=np.uint8)


def unpack_text(packed: NDArray[np.uint8]) -> NDArray[np.object_]:
    """Inverse of `pack_text`."""
    return np.array(json.loads(packed.tobytes().decode()), dtype=object)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
