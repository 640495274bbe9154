"""Masks: the same under one key, another under another, and no name is left anywhere in what leaves the house."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from anomaly.detector import Detector
from anomaly.errors import ParameterError
from anomaly.event_figure import story_figure, write_figure
from anomaly.event_story import event_story
from anomaly.export import write_cases
from anomaly.ingest import JOINER, read_events
from anomaly.masking import NameMask, mask_key
from anomaly.printing import find_browser
from anomaly.simulator import SIMULATED_SCHEMA, simulate

KEY = b"a key of enough bytes"


def test_a_mask_is_the_keyed_hash_of_the_name() -> None:
    mask = NameMask(KEY, ["C-0042"])
    assert mask.name("C-0042") == "M-" + hmac.new(KEY, b"C-0042", hashlib.sha256).hexdigest()[:16]
    assert mask.name("C-0042") == NameMask(KEY, []).name("C-0042")
    assert mask.name("C-0042") != NameMask(KEY + b"!", []).name("C-0042")
    assert mask.name("C-0042") != mask.name("C-0043")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("first time at 'Anna Berg', 1 in 30", ["Anna Berg"]),
        ("Anna Berg's card", ["Anna Berg"]),
        ("D-C0042-1; C0042", ["C0042"]),
        ("C00421 and XC0042", []),
        ("amount 596, 7 events", []),
        ("596", ["596"]),
        ("account 5960042 of Ø 42/a", ["5960042", "Ø 42/a"]),
        ("[x] is no name, (x) y is", ["(x) y"]),
        ("", []),
    ],
)
def test_names_in_texts_are_masked_where_they_stand_as_words(text: str, names: list[str]) -> None:
    mask = NameMask(KEY, ["Anna Berg", "C0042", "596", "7", "5960042", "Ø 42/a", "(x) y", f"bank{JOINER}17"])
    expected = text
    for name in set(names):
        expected = expected.replace(name, mask.name(name))
    assert mask.text(text) == expected
    assert mask.text("of bank / 17") == f"of {mask.name('bank / 17')}"


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    assert mask_key({"ANOMALY_MASK_KEY": KEY.decode()}) == KEY == mask_key({"ANOMALY_MASK_KEY_FILE": str(file)})
    for environment, told in (
        ({}, "set ANOMALY_MASK_KEY"),
        ({"ANOMALY_MASK_KEY": "short"}, "has 5 bytes, at least 16"),
        ({"ANOMALY_MASK_KEY_FILE": str(tmp_path / "none")}, "cannot be read"),
    ):
        with pytest.raises(ParameterError, match=told):
            mask_key(environment)


@pytest.fixture(scope="module")
def named() -> tuple[Detector, pl.DataFrame, list[str]]:
    """Payments of customers with names of their own; merchants and devices hold them too, and some rows are bad."""
    events = simulate(customers=30, days=40, seed=2)[0]
    named = events.with_columns(
        customer_id=pl.format("Zoë Qvist{}", pl.col("customer_id")),
        device_id=pl.format("phone-Zoë Qvist{}", pl.col("customer_id")),
        merchant_id=pl.when(pl.col("merchant_id").hash() % 5 == 0)
        .then(pl.format("shop of Zoë Qvist{} & sons", pl.col("customer_id")))
        .otherwise("merchant_id"),
    )
    bad = named.head(2).with_columns(
        event_id=pl.format("bad-{}", "event_id"), time=pl.lit(None, dtype=named["time"].dtype)
    )
    table = pl.concat([named, bad, named.head(1)])  # the last one is a duplicate
    detector = Detector(SIMULATED_SCHEMA, hidden=4, epochs=1).fit(table, until="2024-01-28", progress=False)
    return detector, table, named["customer_id"].unique().to_list()


@pytest.mark.parametrize("suffix", ["html", "md", "pdf"])
def test_no_name_is_left_in_a_masked_report(
    named: tuple[Detector, pl.DataFrame, list[str]], suffix: str, tmp_path: Path
) -> None:
    if suffix == "pdf" and (find_browser() is None or shutil.which("pdftotext") is None):
        pytest.skip("no Chromium to print with, or no pdftotext to read with")
    detector, table, names = named
    scores = detector.score(table, since="2024-01-28")
    options = {"events": table, "budget_per_day": 3, "command": f"anomaly report --title 'of {names[0]}'"}
    path = tmp_path / f"report.{suffix}"
    for key in (None, KEY):
        cases = detector.report(path, scores, **options, title=f"About {names[0]}", mask_key=key)  # type: ignore[arg-type]
        text = path.read_text(encoding="utf-8") if suffix != "pdf" else read_pdf(path)
        words = " ".join(text.split())
        if key is None:
            assert "Qvist" in words
        else:
            assert "Qvist" not in words
            mask = NameMask(KEY, [])
            known = {mask.name(name) for name in names}
            assert set(cases["entity"]) <= known
            assert f"About {mask.name(names[0])}" in words.replace("\\", "")
            beside = write_cases(cases, tmp_path / "cases.jsonl")
            written = (tmp_path / "cases.jsonl").read_text(encoding="utf-8") + beside.read_text(encoding="utf-8")
            assert "Qvist" not in written
            assert cases["entity"][0] in written


def test_no_name_is_left_in_a_masked_explanation(
    named: tuple[Detector, pl.DataFrame, list[str]], tmp_path: Path
) -> None:
    detector, table, names = named
    read = read_events(table, detector.schema)
    scores = detector.score(read, since="2024-01-28")
    rule = detector.threshold(budget_per_day=3)
    row = int(scores.filter(pl.col("merchant_id").str.contains("Qvist")).sort("p_value")["row"][0])
    for mask in (None, NameMask(KEY, names)):
        story = event_story(detector, read, scores, row, rule, mask)
        write_figure(story_figure(story), tmp_path / "event.svg", label=story.facts["summary"])
        told = json.dumps(story.facts, default=str, ensure_ascii=False) + story.events.write_csv()
        told += (tmp_path / "event.svg").read_text(encoding="utf-8")
        assert ("Qvist" in told) is (mask is None)
        if mask is not None:
            assert mask.name(table["customer_id"][row]) in story.facts["summary"]
            assert story.facts["event"]["merchant_id"].startswith("shop of M-")


def read_pdf(path: Path) -> str:
    return subprocess.run(["pdftotext", str(path), "-"], check=True, capture_output=True).stdout.decode()
