"""The report: one file that needs nothing else, whatever the data's names hold, and that a browser shows as meant."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anomaly.digest import TOP_CASES
from anomaly.report import CaseTimeline, ReportData, render, write_report

START = datetime(2024, 3, 4, 22, 30, tzinfo=UTC)
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect"}
HOSTILE = {
    "markup": "</bdi></td></table><script>alert(1)</script><img src=x onerror=alert(2)>",
    "quotes": '" onmouseover="alert(3)\' autofocus',
    "dollars": "$x^{2}_$ 100% \\frac{1}{2} {{ 7 * 7 }} {% raw %}",
    "emoji": "👩‍🚒🔥 漢字 \u0d9a",
    "right to left": "\u202e\u05d0\u05d1\u05d2 \u0627\u0644\u0639",
    "control": "a\x00b\x1bc\nd\u2028e\x9f",
    "long": "x" * 10_000,
}


def timeline(entity: str, alerts: int = 3, history: int = 30, value_name: str = "amount") -> CaseTimeline:
    n = history + alerts
    time = np.datetime64("2024-02-01T00:00", "us") + (np.arange(n) * 86_400e6 / 2).astype("timedelta64[us]")
    alerting = np.arange(n) >= history
    value = np.where(alerting, 900.0, 20.0 + np.arange(n) % 7)
    surprise = np.where(alerting, 4.5, 0.4)
    events = pl.DataFrame({
        "alerting": alerting[-6:],
        "time": pl.Series(time[-6:]).dt.replace_time_zone("UTC"),
        "amount": [f"{v:,.2f}" for v in value[-6:]],
        "merchant": [entity] * 6,
        "surprise": surprise[-6:],
        "reasons": [[f"merchant {entity}"]] * 6,
    })  # fmt: skip
    return CaseTimeline(entity, time, value, value_name, surprise, alerting, events, value / 3, value * 3)


def case_table(entities: list[str], *, money: bool = True) -> pl.DataFrame:
    n = len(entities)
    surprise = np.linspace(6, 3, n)
    return pl.DataFrame({
        "case": range(1, n + 1),
        "entity": entities,
        "start": [START + timedelta(hours=7 * i) for i in range(n)],
        "end": [START + timedelta(hours=8 * i) for i in range(n)],
        "alerts": [1 + i % 9 for i in range(n)],
        "p_value": 10**-surprise,
        "score": 1 - 10**-surprise,
        "surprise": surprise,
        "evidence": surprise * 2,
        "money": [100.5 * ((i * 37) % 101) if money and i != 1 else None for i in range(n)],
        "reasons": [[f"amount {i:,}, expected 12-80", f"merchant {entity}"] for i, entity in enumerate(entities)],
    }, schema_overrides={"case": pl.Int64, "money": pl.Float64, "start": pl.Datetime("us", "UTC"),
                         "end": pl.Datetime("us", "UTC"), "reasons": pl.List(pl.String), "entity": pl.String,
                         "alerts": pl.Int64})  # fmt: skip


def report_data(entities: list[str] | None = None, top: int = 3, **changes: Any) -> ReportData:
    entities = [f"C{i:03d}" for i in range(1, 13)] if entities is None else entities
    edges = np.linspace(0, 6, 25)
    data = ReportData(
        title="Card payments",
        created=datetime(2024, 4, 1, 6, 30, tzinfo=UTC),
        summary={"Cases": "12", "Period": "4 March to 31 March 2024"},
        settings={"Budget": "20 cases per day"},
        versions={"anomaly": "0.1.0"},
        command="anomaly report events.parquet --budget 20",
        threshold_p=1e-3,
        threshold_text="An event alerts at p <= 0.001.",
        score_histogram=(edges, np.geomspace(1e5, 1, 24), np.where(edges[:-1] >= 3, np.geomspace(1e5, 1, 24), 0)),
        alerts_per_day=pl.DataFrame({"day": [START.date() + timedelta(days=i) for i in range(9)], "cases": range(9)}),
        cases=case_table(entities),
        timelines={i: timeline(entity) for i, entity in enumerate(entities[:top], start=1)},
        calibration=pl.DataFrame({"nominal": [0.1, 0.01], "observed": [0.11, 0.0], "low": [0.1, 0], "high": [0.12, 1]}),
        histories={"forecaster": pl.DataFrame({"epoch": [1, 2], "train_loss": [3.0, 2.5], "valid_loss": [3.1, 2.7]})},
        rejects=pl.DataFrame({"reason": ["no time"], "rows": [1204], "example": ["row 7"]}),
        notes=["12 times without an offset were read as UTC."],
        budget_per_day=5,
    )
    return replace(data, **changes)


def hostile_data(name: str) -> ReportData:
    """The name in every place where text from data can stand."""
    frame = timeline(name).events.rename({"merchant": name or "merchant"})
    return report_data(
        [name, "plain"], top=0, title=name, summary={name: name}, settings={name: name}, versions={name: name},
        command=name, threshold_text=name, notes=[name], money_name=name,
        rejects=pl.DataFrame({"reason": [name], "rows": [1], "example": [name]}),
        histories={name: report_data().histories["forecaster"]},
        timelines={1: replace(timeline(name, value_name=name), events=frame)},
    )  # fmt: skip


class Page(HTMLParser):
    """What a page is made of; refuses tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


def test_the_page_loads_nothing_and_forbids_loading() -> None:
    text = render(report_data())
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source"}
    assert not page.having("src") + page.having("srcset") + page.having("action") + page.having("data")
    assert all(target.startswith("#") for target in page.having("href"))
    assert not re.findall(r"url\((?!#)|@import|@font-face|xlink", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() in policy for s in script] == [True]
    assert not [name for name in {key for _, a in page.tags for key in a} if name.startswith("on")]


def test_every_anchor_leads_somewhere_and_every_id_is_one_of_a_kind() -> None:
    page = Page(render(report_data()))
    ids = page.having("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.having("href")} <= set(ids)
    for name in page.having("aria-labelledby"):
        assert name in ids


def test_landmarks_headings_figures_and_tables_are_named() -> None:
    page = Page(render(report_data()))
    tags = [tag for tag, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert tags.count(landmark) >= 1
    assert tags.count("h1") == 1
    assert next(a for tag, a in page.tags if tag == "html")["lang"] == "en"
    figures = [a for tag, a in page.tags if tag == "svg"]
    assert len(figures) == 4 + 3
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in figures)
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")


def test_numbers_and_times_are_written_for_people() -> None:
    cases = case_table(["A"]).with_columns(
        end=pl.lit(START + timedelta(minutes=25)), p_value=pl.lit(1 / 9321), money=pl.lit(12345.6)
    )
    text = Page(render(report_data(cases=cases, timelines={}, time_zone="Europe/Paris", money_name="EUR"))).text
    for expected in ("1 in 9,300", "12,345.60", "EUR", "4 Mar 2024 23:30 – 23:55", "1,204", "1 Apr 2024, 06:30 UTC"):
        assert expected in text
    cases = cases.with_columns(end=pl.lit(START + timedelta(hours=3)))
    assert "4 Mar 2024 22:30 – 5 Mar 01:30" in Page(render(report_data(cases=cases, timelines={}))).text


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_stay_text(kind: str) -> None:
    name = HOSTILE[kind]
    plain, text = render(hostile_data("plain")), render(hostile_data(name))
    shape = [[tag for tag, _ in Page(page).tags] for page in (plain, text)]
    assert shape[0] == shape[1]  # the same elements, whatever the name
    assert "alert(1)</script>" not in text
    assert not {"onmouseover", "onerror", "autofocus"} & {key for _, a in Page(text).tags for key in a}
    assert not re.search(r"[\x00\x1b\x9f]", text)
    assert len(text) < len(plain) + 60_000


def test_a_long_name_is_cut_with_an_ellipsis() -> None:
    text = Page(render(report_data(["x" * 10_000]))).text
    assert "x" * 79 + "…" in text
    assert max(map(len, re.findall("x+", text))) < 240  # the longest sentence


def test_text_that_no_file_can_hold_and_names_of_nothing_are_written_too(tmp_path: Path) -> None:
    path = write_report(report_data([""], title="half \ud800 a pair"), tmp_path / "report.html")
    text = Page(path.read_text(encoding="utf-8")).text
    assert "half ? a pair" in text
    assert "(empty)" in text


def test_names_never_enter_a_figures_text() -> None:
    text = render(hostile_data("NAME"))
    drawn = "".join(re.findall(r"<text.*?</text>", text))
    assert "NAME" not in drawn
    assert "1 in 100" in drawn


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_report(report_data(), tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_writing_makes_folders_and_leaves_no_draft(tmp_path: Path) -> None:
    path = write_report(report_data(top=0), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        write_report(report_data(cases=pl.DataFrame({"case": [1]})), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_nothing_found_is_said_in_words() -> None:
    empty = report_data(
        [], summary={}, settings={}, versions={}, command=None, threshold_p=float("nan"), threshold_text="",
        score_histogram=(np.array([0.0, 1.0]), np.zeros(0), np.zeros(0)), alerts_per_day=pl.DataFrame(),
        calibration=pl.DataFrame(), histories={}, rejects=pl.DataFrame(), notes=(), budget_per_day=None,
    )  # fmt: skip
    text = Page(render(empty)).text
    assert "No case: no event passed the alert line." in text
    assert "None: every row was read." in text
    assert "Details" not in text


def test_no_money_means_no_column() -> None:
    tables = (case_table(["A", "B"], money=money) for money in (True, False))
    with_money, without = (Page(render(report_data(timelines={}, cases=table))).text for table in tables)
    assert "Money" in with_money
    assert "Money" not in without


def test_long_lists_are_cut_and_the_page_says_so() -> None:
    many = render(report_data([f"C{i}" for i in range(1100)], top=0))
    assert many.count('role="rowheader"') == 1000
    assert "The first 1,000 of 1,100 cases." in Page(many).text
    text = Page(render(report_data(["A"], timelines={1: replace(timeline("A"), known=3003)}))).text
    assert text.count("33 of 3,003 events are drawn") == 1


def full_timeline(name: str) -> CaseTimeline:
    """As much as a case can show."""
    plain = timeline(name, alerts=24, history=40)
    n = len(plain.time)
    table = pl.concat([plain.events.with_columns(**{f"c{i}": pl.lit("M0123") for i in range(3)})] * 4).head(20)
    linked = pl.DataFrame({
        "case": [1] * 5, "field": ["merchant_id"] * 5, "value": ["M0123"] * 5, "entities": [9] * 5,
        "expected": [0.31] * 5, "names": [[f"C{i:05d}" for i in range(6)]] * 5, "cases": [list(range(6))] * 5,
    })  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 4, (4, n)).astype(np.int8)
    place = np.random.default_rng(1).normal(48, 2, (2, n))
    return replace(
        plain, events=table, strips={f"c{i}": codes[i] for i in range(4)}, latitude=place[0], longitude=place[1],
        remembered=np.arange(n) < 20, known=900, similar=table.head(4).drop("reasons"), linked=linked,
        parts=pl.DataFrame({"part": ["forecaster · amount", "recent"], "share": [3.0, -0.5]}),
        counterfactual="It would pass if the amount were below 120.", money_since=1234.5,
    )  # fmt: skip


def test_five_hundred_cases_fit_in_five_megabytes() -> None:
    """As many of them with details as a report has, and with as much in each as a case can show."""
    names = [f"C{i:05d}" for i in range(500)]
    details = {i: full_timeline(names[i]) for i in range(1, TOP_CASES + 1)}
    assert 1_000_000 < len(render(report_data(names, timelines=details)).encode()) < 5_000_000


def test_a_case_shows_what_is_known_beside_it() -> None:
    text = render(report_data(["C1", "C2"], timelines={1: full_timeline("C1"), 2: timeline("C2")}))
    page = Page(text)
    for told in ("would pass if the amount were below 120", "forecaster · amount", "sum 2.50", "most alike", "Places",
                 "9 other entities, 0.31 by chance", "and 3 more", "1,234.50 with all events since the first alert",
                 "not yet in the models' memory"):  # fmt: skip
        assert told in page.text, told
    assert "#case-1" in page.having("href") and "#case-2" in page.having("href")
    assert "#case-3" not in page.having("href")  # no details to lead to


def test_drift_is_a_table_of_weeks_with_the_marked_cells_said_in_words() -> None:
    drift = pl.DataFrame({
        "field": ["score", "amount", "amount"], "week": [date(2024, 3, 4), date(2024, 3, 4), date(2024, 3, 11)],
        "events": [900, 900, 50], "psi": [0.02, 0.31, None], "ks": [0.03, None, None],
        "p_value": [0.4, 1e-9, None], "flagged": [False, True, False],
    })  # fmt: skip
    text = Page(render(report_data(drift=drift, quality=pl.DataFrame({
        "what": ["without amount"], "events": [12], "share": [0.011]})))).text  # fmt: skip
    assert "1 cell marked" in text
    assert "drift: 0.31" in text
    assert "1.10%" in text
    assert "No drift" in Page(render(report_data(drift=drift.with_columns(flagged=False)))).text


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, WCAG 2.1."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_on_light_and_on_dark() -> None:
    pairs = re.findall(r"--(\w+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", render(report_data(top=0)))
    assert len(pairs) >= 8
    for theme in (1, 2):
        colours = {pair[0]: pair[theme] for pair in pairs}
        for text in ("ink", "muted", "accent", "alert"):
            for behind in ("page", "surface", "tint", "soft", "warn"):
                assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
