"""Saved detectors: a folder that is whole or refused by name, replaced in one step, and equal to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from anomaly import artifacts
from anomaly.artifacts import (
    FORMAT,
    MANIFEST,
    Arrays,
    pack_text,
    read_artifact,
    read_schema,
    unpack_text,
    write_artifact,
)
from anomaly.detector import Detector
from anomaly.errors import ArtifactError

FIRST: dict[str, Arrays] = {"a": {"x": np.arange(6.0).reshape(2, 3)}, "b": {"y": np.array([1], dtype=np.int32)}}
SECOND: dict[str, Arrays] = {"a": {"x": np.arange(9.0)}, "b": FIRST["b"]}


def same_parts(found: dict[str, Arrays], expected: dict[str, Arrays]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[part][name], array) and found[part][name].dtype == array.dtype
        for part, arrays in expected.items()
        for name, array in arrays.items()
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "new" / "folder", {"name": "Ä", "values": [1, None, 2.5]}, FIRST)
    manifest, parts = read_artifact(folder)
    assert manifest["name"] == "Ä"
    assert manifest["values"] == [1, None, 2.5]
    assert manifest["format"] == FORMAT
    assert same_parts(parts, FIRST)


def test_arrays_in_any_layout_come_back(tmp_path: Path) -> None:
    odd: dict[str, Arrays] = {
        "part": {
            "turned": np.arange(6.0).reshape(2, 3).T,
            "every other": np.arange(10)[::2],
            "empty": np.empty((0, 3), dtype=np.float32),
            "bytes": np.frombuffer(b"abc", dtype=np.uint8),
        }
    }
    assert same_parts(read_artifact(write_artifact(tmp_path, {}, odd))[1], odd)


def test_the_schema_is_read_alone(detector: Detector, tmp_path: Path) -> None:
    assert read_schema(detector.save(tmp_path / "saved")) == detector.schema
    other = write_artifact(tmp_path / "other", {"schema": {"time": 1}}, FIRST)
    for folder in (other, write_artifact(tmp_path / "none", {}, FIRST)):
        with pytest.raises(ArtifactError, match=r"manifest.json holds no schema .*Error\); fit again"):
            read_schema(folder)


def test_a_second_save_replaces_the_first_and_leaves_no_litter(tmp_path: Path) -> None:
    write_artifact(tmp_path, {"version": 1}, FIRST)
    write_artifact(tmp_path, {"version": 2}, SECOND)
    manifest, parts = read_artifact(tmp_path)
    assert manifest["version"] == 2
    assert same_parts(parts, SECOND)
    assert len(list(tmp_path.iterdir())) == 3


class CrashError(Exception):
    """The power is gone."""


@pytest.mark.parametrize("writes", range(4))
def test_a_crash_while_saving_leaves_the_old_detector_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Broken off before the first part, between the parts, before the manifest, and in the midst of a file."""
    write_artifact(tmp_path, {"version": 1}, FIRST)
    usual = Path.replace
    done: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        if len(done) == writes:
            raise CrashError
        done.append(target)
        return usual(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if writes < 3:
            with pytest.raises(CrashError):
                write_artifact(tmp_path, {"version": 2}, SECOND)
        else:
            write_artifact(tmp_path, {"version": 2}, SECOND)
    manifest, parts = read_artifact(tmp_path)
    assert manifest["version"] == (1 if writes < 3 else 2)
    assert same_parts(parts, FIRST if writes < 3 else SECOND)
    write_artifact(tmp_path, {"version": 3}, SECOND)
    assert read_artifact(tmp_path)[0]["version"] == 3


def test_a_crash_of_the_very_first_save_can_be_saved_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are there, the manifest is not: trying again must not be refused as a folder of other things."""
    folder = tmp_path / "detector"

    def crash(path: Path, data: bytes) -> None:
        if path.name == MANIFEST:
            raise CrashError
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "_replace", crash)
        with pytest.raises(CrashError):
            write_artifact(folder, {}, FIRST)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_artifact(folder)
    assert same_parts(read_artifact(write_artifact(folder, {}, FIRST))[1], FIRST)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="other things"):
        write_artifact(tmp_path, {}, FIRST)
    file = tmp_path / "thesis.txt"
    with pytest.raises(ArtifactError, match="thesis"):
        write_artifact(file, {}, FIRST)
    assert file.read_text() == "years of work"


def edited(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest |= changes
    text = json.dumps({name: value for name, value in manifest.items() if value != "gone"})
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def part_file(folder: Path, name: str) -> Path:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return folder / str(manifest["parts"][name]["file"])


@pytest.mark.parametrize("number", [0, FORMAT + 1, "1", None, "gone"])
def test_an_unknown_format_is_refused(tmp_path: Path, number: Any) -> None:
    write_artifact(tmp_path, {}, FIRST)
    edited(tmp_path, format=number)
    with pytest.raises(ArtifactError, match="format"):
        read_artifact(tmp_path)


def test_a_changed_part_is_refused_by_name(tmp_path: Path) -> None:
    write_artifact(tmp_path, {}, FIRST)
    file = part_file(tmp_path, "b")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{file.name}.*changed"):
        read_artifact(tmp_path)


def test_a_missing_part_is_refused_by_name(tmp_path: Path) -> None:
    write_artifact(tmp_path, {}, FIRST)
    file = part_file(tmp_path, "a")
    file.unlink()
    with pytest.raises(ArtifactError, match=f"{file.name} is missing"):
        read_artifact(tmp_path)


@pytest.mark.parametrize(
    "parts", ["gone", None, [], {"a": {}}, {"a": "file"}, {"a": {"file": "x"}}, {"a": {"file": None, "sha256": None}}]
)
def test_a_manifest_without_its_parts_is_refused(tmp_path: Path, parts: Any) -> None:
    write_artifact(tmp_path, {}, FIRST)
    edited(tmp_path, parts=parts)
    with pytest.raises(ArtifactError, match=f"{MANIFEST}|missing"):
        read_artifact(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": NaN}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_artifact(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ArtifactError, match=r"no manifest\.json"):
            read_artifact(path)


@given(st.lists(st.text()))
def test_texts_of_any_kind_come_back(texts: list[str]) -> None:
    assert unpack_text(pack_text(np.array(texts, dtype=object))).tolist() == texts


def test_a_saved_detector_scores_to_the_bit(detector: Detector, payments: pl.DataFrame, tmp_path: Path) -> None:
    folder = detector.save(tmp_path / "detector")
    again = Detector.load(folder)
    assert_frame_equal(again.score(payments), detector.score(payments), check_exact=True)
    assert_frame_equal(
        again.alerts(again.score(payments), events=payments, budget_per_day=2),
        detector.alerts(detector.score(payments), events=payments, budget_per_day=2),
        check_exact=True,
    )
    assert again.threshold().describe() == detector.threshold().describe()
    assert (again.schema, again.hidden, again.seed, again.epochs) == (
        detector.schema,
        detector.hidden,
        detector.seed,
        detector.epochs,
    )


def test_a_detector_saved_again_is_the_same_file_for_file(detector: Detector, tmp_path: Path) -> None:
    first = detector.save(tmp_path / "first")
    second = Detector.load(first).save(tmp_path / "second")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        if name != MANIFEST:
            assert (first / name).read_bytes() == (second / name).read_bytes()
    manifests = [json.loads((folder / MANIFEST).read_text()) | {"created": ""} for folder in (first, second)]
    assert manifests[0] == manifests[1]


def test_the_manifest_says_what_made_the_detector(detector: Detector, tmp_path: Path) -> None:
    manifest = json.loads((detector.save(tmp_path / "detector") / MANIFEST).read_text())
    assert {"anomaly", "torch", "numpy", "python"} <= manifest["versions"].keys()
    assert manifest["schema"]["entity"] == ["customer_id"]
    assert manifest["parameters"]["hidden"] == 8
    assert len(manifest["fitted"]["fingerprint"]) == 64
    assert manifest["fitted"]["runs"].keys() == {"autoencoder", "forecaster"}
    assert {"autoencoder", "forecaster", "calibration"} <= manifest["parts"].keys()
    assert all(file.suffix in (".json", ".safetensors") for file in (tmp_path / "detector").iterdir())


@pytest.mark.parametrize("key", ["schema", "parameters", "quarantine_seconds", "encoder", "fitted"])
def test_a_manifest_of_which_something_is_gone_is_refused(
    untidy_detector: Callable[[float | None], Detector], tmp_path: Path, key: str
) -> None:
    folder = untidy_detector(None).save(tmp_path / "detector")
    edited(folder, **{key: "gone"})
    with pytest.raises(ArtifactError, match=key):
        Detector.load(folder)


def test_a_part_of_another_detector_is_refused(
    untidy_detector: Callable[[float | None], Detector], detector: Detector, tmp_path: Path
) -> None:
    """Parts and manifest, each whole, but of two detectors."""
    mine, other = untidy_detector(None).save(tmp_path / "mine"), detector.save(tmp_path / "other")
    parts = [json.loads((folder / MANIFEST).read_text())["parts"] for folder in (mine, other)]
    file = parts[1]["forecaster"]["file"]
    (mine / file).write_bytes((other / file).read_bytes())
    edited(mine, parts=parts[0] | {"forecaster": parts[1]["forecaster"]})
    with pytest.raises(ArtifactError, match="do not fit together"):
        Detector.load(mine)
    edited(mine, parts={name: part for name, part in parts[0].items() if name != "forecaster"})
    with pytest.raises(ArtifactError, match="forecaster"):
        Detector.load(mine)
