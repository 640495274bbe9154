"""The page of a comparison: one file without a script, whatever names it shows, and that a browser shows as meant."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly.comparison import Compared, Comparison, Fold, figures_of
from anomaly.comparison_measures import Scored, Window
from anomaly.comparison_page import PAGE, render_comparison, write_comparison_page
from anomaly.schema import NumericField, Schema
from anomaly.terminal import comparison_table

NAMES = (
    "amount",
    "ratio",
    "isolation_forest",
    "unsupervised",
    "logistic",
    "forest",
    "xgboost",
    "head",
    "head_pretrained",
)
WITHOUT = 4  # of them need no label
HOSTILE = {
    "markup": "</bdi></dd></td></table><script>alert(1)</script><img src=x onerror=alert(2)>",
    "quotes": '" onmouseover="alert(3)\' autofocus',
    "template": "{{ 7 * 7 }} {% raw %} $x^{2}_$",
    "right to left": "\u202e\u05d0\u05d1\u05d2",
    "control": "a\x00b\x1bc\nd",
    "half a pair": "a\ud800b",
    "long": "x" * 10_000,
}
DAY = 86_400.0
BEGIN = 19_800 * DAY


def schema(name: str = "amount") -> Schema:
    return Schema(time="time", entity=("customer",), numeric=(NumericField(name=name, scale="log", tail="upper"),))


def fold(number: int, seed: int = 0) -> Fold:
    """A window of 20 entities over ten days, and scorers that know more and more of the truth."""
    rng = np.random.default_rng(seed + number)
    begin = BEGIN + number * 10 * DAY
    n, entity = 600, rng.integers(0, 20, 600)
    time = np.sort(rng.uniform(begin, begin + 10 * DAY, n))
    fraud = rng.random(n) < 0.1
    window = Window(time, rng.gamma(2.0, 30.0, n), entity, fraud, entity == 0, begin, begin + 10 * DAY, 5000, 400)
    scorers = {}
    for rank, name in enumerate(NAMES):
        score = 1 / (1 + np.exp(-(rng.normal(size=n) + 0.5 * rank * fraud - 2)))
        scorers[name] = Scored(score, float(rank), 0.1, score if rank >= WITHOUT else None)
    return Fold(window, scorers, {} if number else {"tabnet": "it needs a package"})


def compared(folds: int = 1, **changes: Any) -> Compared:
    """What a comparison would find of made-up scores, measured for real."""
    made = [fold(number) for number in range(folds)]
    last = made[-1].scorers
    rng = np.random.default_rng(1)
    points = {0: {name: last[name].score for name in NAMES[:WITHOUT]}}
    for known, noise in ((10, 0.5), (30, 0.3), (100, 0.1)):
        points[known] = {name: last[name].score + noise * rng.random(600) for name in NAMES[WITHOUT:]}
    points[400] = {name: last[name].score for name in NAMES[WITHOUT:]}
    found = Comparison(schema=schema(), folds=folds, repeats=40, budget_per_day=5)._measured(made, points)
    return Compared(**{**vars(found), **changes})


def test_the_page_has_no_script_and_loads_nothing() -> None:
    text = render_comparison(compared(), created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert "<script" not in text and "javascript:" not in text
    assert "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'" in html.unescape(text)
    addresses = set(re.findall(r"""(?:https?:)?//[^\s"'<>)]+""", text)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set()
    assert not re.search(r"<(link|img|iframe|object|embed|base|form|source)\b", text)
    assert re.findall(r' (?:src|srcset|action)="', text) == []
    assert "Made 2 Jan 2026, 03:04 UTC" in text


def test_every_figure_of_the_table_is_on_the_page() -> None:
    found = compared(2)
    text = re.sub(r"<[^>]+>", " ", render_comparison(found))
    for row in found.table.iter_rows(named=True):
        assert f"{row['average_precision']:.3f}" in text and f"{row['recall_at_1_percent']:.1%}" in text
        assert f"{row['ap_low']:.3f}–{row['ap_high']:.3f}" in text
    for row in found.spread.iter_rows(named=True):
        assert f"± {row['auc']:.3f}" in text
    assert found.sentence in text and "tabnet is left out: it needs a package" in text
    assert "Does it last?" in text and "Does it last?" not in render_comparison(compared(1))


def test_the_best_of_a_line_is_bold_and_no_delay_is() -> None:
    text = render_comparison(compared())
    lines = {head: cells for head, cells in re.findall(r'<tr><th scope="row">([^<]+)</th>(.*?)</tr>', text)}  # noqa: C416
    best = re.findall(r'<td class="best">([^<]+)', lines["AUC ROC"])
    every = re.findall(r"<td[^>]*>([^<]+)", lines["AUC ROC"])
    assert best == [max(every)] and len(every) == len(NAMES)
    assert re.findall(r'<td class="best">([^<]+)', lines["Brier score"]) == [
        min(re.findall(r"<td[^>]*>(0\.\d+)", lines["Brier score"]))
    ]
    assert "best" not in lines["– after so many hours (median)"]


def test_without_money_nothing_is_said_of_it() -> None:
    made = fold(0)
    poor = replace(made, window=replace(made.window, amount=np.zeros(600)))
    points = {0: {name: poor.scorers[name].score for name in NAMES[:WITHOUT]}}
    points[400] = {name: poor.scorers[name].score for name in NAMES[WITHOUT:]}
    found = Comparison(schema=schema(), repeats=20, budget_per_day=5)._measured([poor], points)
    assert "money" not in found.sentence
    assert "Money stopped" not in render_comparison(found) and "Frauds in a row" in render_comparison(found)
    shown = comparison_table(found.table, 5)
    assert shown.row_count == len(NAMES) and "–" in list(shown.columns[6].cells)
    assert not {name for name in figures_of(found) if "money" in name or "share" in name}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_names_are_text(name: str, tmp_path: Path) -> None:
    asked = Comparison(schema=schema(name if "\x00" not in name and "\ud800" not in name else "amount"))
    path = write_comparison_page(
        compared(notes=[name], sentence=name), tmp_path / PAGE, title=name, asked=asked, command=name
    )
    text = path.read_text(encoding="utf-8")
    plain = render_comparison(compared(notes=["x"], sentence="x"), title="x", asked=asked, command="x")
    assert re.findall(r"<(\w+)", text.replace(name, "")) == re.findall(r"<(\w+)", plain)
    assert "<script" not in text and "<img" not in text and 'onmouseover="' not in text
    assert "\x00" not in text and "\x1b" not in text and len(text) < 1.5 * len(plain) + 20_000
    assert [file.name for file in tmp_path.iterdir()] == [PAGE]


def test_the_same_comparison_gives_the_same_bytes() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    assert render_comparison(compared(2), created=moment) == render_comparison(compared(2), created=moment)


# ---- in a real browser ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("comparison") / PAGE
    asked = Comparison(schema=schema(HOSTILE["markup"]))
    notes = [HOSTILE["markup"], HOSTILE["long"], HOSTILE["quotes"]]
    return write_comparison_page(compared(3, notes=notes), path, title=HOSTILE["markup"], asked=asked).as_uri()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    """Opens the page in a window; at the end nothing may have been said on the console or asked of the network."""
    said: list[str] = []
    windows: list[Any] = []

    def open_page(**window: Any) -> Any:
        page = browser.new_page(**window)
        windows.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: None if request.url == address else said.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for page in windows:
        page.close()
    assert said == []


def test_browser_shows_hostile_names_as_text(visit: Any) -> None:
    page = visit()
    assert page.locator("h1").inner_text().startswith("</bdi></dd></td></table><script>alert(1)</script>"[:60])
    assert page.locator("script, img").count() == 0
    assert page.locator("table.measures thead th").count() == len(NAMES) + 1
    assert page.locator("figure svg").count() == 3


def test_browser_nothing_sticks_out_at_any_width(visit: Any) -> None:
    page = visit()
    page.locator("summary").click()
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg, .hidden')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
    outside = """[...document.querySelectorAll('svg text')].filter(t => {
        const a = t.getBoundingClientRect(), b = t.closest('figure').getBoundingClientRect();
        return a.left < b.left - 1 || a.right > b.right + 1;
    }).map(t => t.textContent)"""
    for width in (390, 600, 760, 1000, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(wide) == []
        assert page.evaluate(outside) == []
    fits = "document.querySelector('.measures').scrollWidth <= document.querySelector('.scroll').clientWidth"
    assert page.evaluate(fits.replace("'.scroll'", "'#measures .scroll'"))  # all scorers at once on a wide screen


def test_browser_follows_the_colour_scheme(visit: Any) -> None:
    shown = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        shown[scheme] = (
            page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor"),
            page.locator("svg text").first.evaluate("e => getComputedStyle(e).fill"),
        )
    assert shown["light"][0] != shown["dark"][0] and shown["light"][1] != shown["dark"][1]


def test_browser_policy_refuses_scripts(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    entered = page.evaluate("""async () => {
        const script = document.createElement('script');
        script.textContent = 'window.entered = true';
        document.body.append(script);
        await new Promise(done => setTimeout(done, 50));
        return window.entered === true;
    }""")
    page.close()
    assert entered is False
