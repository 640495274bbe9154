"""PDF and Markdown: the same report in other clothes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import HOSTILE, full_timeline, hostile_data, report_data

from anomaly import printing
from anomaly.errors import PackageError, ParameterError
from anomaly.report import check_report, render_markdown, write_report

needs_browser = pytest.mark.skipif(printing.find_browser() is None, reason="no Chromium, Chrome or Edge is installed")


@needs_browser
def test_a_pdf_holds_the_cases_as_text_on_landscape_pages(tmp_path: Path) -> None:
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext (poppler) to read the PDF with")
    names = [f"C{i:03d}" for i in range(1, 13)]
    data = report_data(names, timelines={i: full_timeline(names[i - 1]) for i in range(1, 5)})
    path = write_report(data, tmp_path / "report.pdf")
    assert path.read_bytes().startswith(b"%PDF")
    text = subprocess.run(["pdftotext", str(path), "-"], check=True, capture_output=True).stdout.decode()
    for told in ("Card payments", "Details of the top cases", "most alike", *names):
        assert told in text, told
    assert "Search the cases" not in text
    info = subprocess.run(["pdfinfo", str(path)], check=True, capture_output=True).stdout.decode()
    wide, high = map(float, re.findall(r"Page size:\s+([\d.]+) x ([\d.]+)", info)[0])
    assert wide > high
    assert [file.name for file in tmp_path.iterdir()] == ["report.pdf"]


def test_without_a_browser_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(printing, "PLACES", {})
    with pytest.raises(PackageError, match="apt-get install chromium"):
        write_report(report_data(), tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_browser_that_prints_nothing_is_told_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(PackageError, match=r"exit code 3.*no display"):
        write_report(report_data(), tmp_path / "report.pdf")
    assert [file.name for file in tmp_path.iterdir()] == ["chromium"]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"\.html, \.pdf, \.md; got suffix '\.docx'"):
        check_report(tmp_path / "report.docx")


def test_markdown_says_what_the_page_says() -> None:
    data = report_data(["C1", "C2"], timelines={1: full_timeline("C1")}, money_name="EUR")
    text = render_markdown(data)
    expected = ["# Card payments", "| 1 | C1 |", "### Case 1: C1", "would pass if", "| sum | 2.50 |"]
    expected += ["    anomaly report", "12 times without an offset", "| no time | 1204 | row 7 |", "Budget: 20 cases"]
    for told in expected:
        assert told in text, told
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 6
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines[:3]  # as many cells in each row
    assert render_markdown(data) == text


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_plain_text_in_markdown(kind: str) -> None:
    plain, text = render_markdown(hostile_data("plain")), render_markdown(hostile_data(HOSTILE[kind]))
    assert len(plain.splitlines()) == len(text.splitlines())
    body = "\n".join(
        line for line in text.splitlines() if not line.startswith("    ")
    )  # a block of code is shown as it is
    assert "<script" not in body and "<img" not in body
    count = [len(re.findall(r"(?<!\\)\|", one)) for one in (plain, body)]
    assert count[0] == count[1]
