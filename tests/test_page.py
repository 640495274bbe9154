"""The page in a real browser: it loads nothing, says nothing on the console, and does what its controls promise."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_report import HOSTILE, full_timeline, report_data

from anomaly.printing import find_browser
from anomaly.report import ReportData, write_report

FIELDS = (["amount"], ["time:gap", "amount"], ["first:merchant_id"])
SERIOUS = ("serious", "critical")
AXE = "axe-core@4.14.1"  # fetched for the test, and kept nowhere


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = find_browser()
    with playwright.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        if chromium is None and not own.exists():
            pytest.skip("no Chromium: not on PATH, and `playwright install chromium` was not run")
        found = driver.chromium.launch(executable_path=chromium or own, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--no-first-run",
        ])  # fmt: skip
        yield found
        found.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from its package registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core: npm, which fetches it, is not installed")
    folder = tmp_path_factory.mktemp("axe")
    command = [
        npm,
        "pack",
        AXE,
        "--silent",
        "--fetch-retries=1",
        "--fetch-timeout=60000",
        f"--cache={folder / 'cache'}",
    ]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{AXE}: the registry did not answer")
    packed = next(folder.glob("*.tgz"), None)
    if done.returncode or packed is None:
        pytest.skip(f"{AXE} could not be fetched: {(done.stderr.strip().splitlines() or ['no reason given'])[0][:200]}")
    with tarfile.open(packed) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def page_data() -> ReportData:
    """Twelve cases, two of hostile names, three with details, all parts of the page filled."""
    names = [f"C{i:03d}" for i in range(1, 11)] + [HOSTILE["markup"], HOSTILE["long"]]
    data = report_data(names, timelines={i: full_timeline(names[i - 1]) for i in (1, 2, 3, 4, 11, 12)})
    cases = data.cases.with_columns(
        status=pl.Series(["ok", "learning", "ok", "unseen"] * 3),
        fields=pl.Series([FIELDS[i % 3] for i in range(12)]),
    )
    days = data.alerts_per_day.with_columns(money=pl.col("cases") * 100.0)
    weeks = pl.date_range(pl.date(2024, 3, 4), pl.date(2024, 3, 25), "1w", eager=True)
    drift = pl.DataFrame({"week": weeks, "psi": [0.02, 0.12, 0.3, None]}).with_columns(
        field=pl.lit("amount"), events=pl.lit(900), ks=pl.lit(0.1), p_value=pl.lit(1e-9), flagged=pl.col("psi") > 0.2
    )
    quality = pl.DataFrame({"what": ["status ok"], "events": [900], "share": [1.0]})
    return replace(data, cases=cases, alerts_per_day=days, money_name="amount", drift=drift, quality=quality)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(page_data(), tmp_path_factory.mktemp("report") / "report.html").as_uri()


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


def shown(page: Any) -> list[int]:
    """Ranks of the rows that can be seen, in their order."""
    return [int(cell.inner_text()) for cell in page.locator("#case-table tbody tr:visible td.rank").all()]


def test_browser_search_filters_rows(visit: Any) -> None:
    page = visit()
    page.keyboard.press("/")
    page.keyboard.type("c003 AMOUNT")
    assert shown(page) == [3]
    assert page.locator("#case-count").inner_text() == "1 of 12 cases"
    page.keyboard.press("Escape")
    assert len(shown(page)) == 12
    page.locator("#case-search").fill("no such thing")
    assert shown(page) == []


def test_browser_sorts_by_keyboard_and_keeps_missing_values_last(visit: Any) -> None:
    page = visit()
    money = page.locator("#case-table th", has_text="amount")
    table = report_data([""] * 12).cases
    for order, descending in (("descending", True), ("ascending", False)):
        money.locator("button").focus()
        page.keyboard.press("Enter")
        assert money.get_attribute("aria-sort") == order
        assert shown(page) == table.sort("money", descending=descending, nulls_last=True)["case"].to_list()
    page.locator("#case-table th button", has_text="Rank").click()
    assert shown(page) == list(range(1, 13))
    assert page.locator("#case-table th[aria-sort]").count() == 1


def test_browser_follows_the_colour_scheme(visit: Any) -> None:
    ink = {}
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        ink[scheme] = (
            page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor"),
            page.locator("svg text").first.evaluate("e => getComputedStyle(e).fill"),
        )
    assert ink["light"] == ("rgb(246, 247, 249)", "rgb(91, 101, 112)")
    assert ink["dark"] == ("rgb(16, 19, 23)", "rgb(155, 166, 178)")


def test_browser_nothing_sticks_out_at_any_width(visit: Any) -> None:
    page = visit()
    wide = """[...document.querySelectorAll('main *')].filter(e =>
        !e.closest('.scroll, pre, svg, .hidden, .casepage:not([open])')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
    outside = """[...document.querySelectorAll('svg text')].filter(t => {
        const a = t.getBoundingClientRect(), b = t.closest('figure, .map').getBoundingClientRect();
        return a.left < b.left - 1 || a.right > b.right + 1;
    }).map(t => t.textContent)"""
    for width in (390, 600, 760, 830, 1000, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(wide) == []
        assert page.evaluate(outside) == []


def test_browser_policy_refuses_scripts_and_connections(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    refused = page.evaluate("""async () => {
        const refused = [];
        document.addEventListener('securitypolicyviolation', e => refused.push(e.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.entered = true';
        document.body.append(script);
        new Image().src = 'https://example.invalid/x.png';
        await fetch('https://example.invalid/').catch(() => null);
        await new Promise(done => setTimeout(done, 50));
        return [refused.sort(), window.entered === undefined];
    }""")
    page.close()
    assert refused == [["connect-src", "img-src", "script-src-elem"], True]


def test_browser_prints_dark_pages_on_white(visit: Any) -> None:
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("h1").evaluate("e => getComputedStyle(e).color") == "rgb(27, 31, 36)"
    assert not page.locator("nav").is_visible()


def test_browser_each_printed_page_of_cases_has_its_headings(browser: Any, tmp_path: Path) -> None:
    pdftotext = shutil.which("pdftotext")
    if pdftotext is None:
        pytest.skip("pdftotext is not installed")
    page = browser.new_page()
    names = [f"Customer{i:02d}" for i in range(80)]
    page.goto(write_report(report_data(names, top=0), tmp_path / "long.html").as_uri())
    page.pdf(path=tmp_path / "long.pdf", prefer_css_page_size=True)
    page.close()
    text = subprocess.run(
        [pdftotext, tmp_path / "long.pdf", "-"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    pages = [one.split() for one in text.split("\f") if "Customer" in one]
    assert len(pages) > 3
    assert all({"Rank", "Entity", "Alerts", "Rarity", "Reasons"} <= set(words) for words in pages)


def test_browser_five_hundred_cases_stay_fast(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(write_report(report_data([f"C{i}" for i in range(500)], top=0), tmp_path / "long.html").as_uri())
    milliseconds = page.evaluate("""() => {
        const search = document.getElementById('case-search'), began = performance.now();
        for (const text of ['C4', 'C49', '']) {
            search.value = text;
            search.dispatchEvent(new Event('input'));
            document.body.getBoundingClientRect();
        }
        for (const button of [...document.querySelectorAll('#case-table th button')].slice(1, 3)) {
            button.click();
            document.body.getBoundingClientRect();
        }
        return performance.now() - began;
    }""")
    page.close()
    assert milliseconds < 3000  # five steps, on a machine that may be busy


def test_browser_filters_by_status_reason_and_money(visit: Any) -> None:
    page = visit()
    page.locator("#case-status").select_option("learning")
    assert shown(page) == [2, 6, 10]
    page.locator("#case-status").select_option("")
    page.locator("#case-field").select_option(label="time:gap")
    assert shown(page) == [2, 5, 8, 11]
    page.locator("#case-field").select_option("")
    least = report_data([""] * 12).cases.filter(pl.col("money") >= 5000)["case"].to_list()
    page.locator("#case-least").fill("5000")
    assert 0 < len(least) < 12
    assert shown(page) == least
    page.locator("#case-search").fill("c0")
    assert page.locator("#case-count").inner_text() == f"{len([n for n in least if n < 11])} of 12 cases"


def test_browser_opens_a_case_by_link_and_by_keyboard(visit: Any) -> None:
    page = visit()
    fourth = page.locator("#case-4")
    assert fourth.get_attribute("open") is None  # the first three are open
    page.locator("#case-table a[href='#case-4']").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('case-4').open")
    assert fourth.locator("svg.sketch").first.is_visible()
    assert page.evaluate("document.activeElement.closest('details').id") == "case-4"
    page.keyboard.press("Enter")
    assert fourth.get_attribute("open") is None
    page.locator("#case-table a[href='#case-4']").click()
    page.wait_for_function("document.getElementById('case-4').open")
    fourth.locator("a", has_text="Next case").click()
    page.wait_for_function("document.getElementById('case-11').open")


def test_browser_theme_button_overrules_the_system(visit: Any) -> None:
    ground = "e => getComputedStyle(e).backgroundColor"
    page = visit(color_scheme="light")
    button = page.locator("#theme")
    assert (button.inner_text(), page.locator("body").evaluate(ground)) == ("Dark", "rgb(246, 247, 249)")
    button.click()
    assert (button.inner_text(), page.locator("body").evaluate(ground)) == ("Light", "rgb(16, 19, 23)")
    button.click()
    assert page.locator("body").evaluate(ground) == "rgb(246, 247, 249)"


def test_browser_hostile_names_are_text_and_run_nothing(browser: Any, tmp_path: Path) -> None:
    for kind, name in HOSTILE.items():
        said: list[str] = []
        page = browser.new_page()
        page.on("dialog", lambda dialog, said=said: said.append(dialog.message))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("console", lambda message, said=said: said.append(message.text))
        data = report_data([name] * 3, timelines={i: full_timeline(name) for i in (1, 2, 3)}, title=name,
                           money_name=name)  # fmt: skip
        page.goto(write_report(data, tmp_path / "hostile.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        title = page.locator("h1").inner_text()
        assert page.locator("script").count() == 1
        assert page.locator("img").count() == 0
        assert page.evaluate("document.querySelectorAll('[onerror], [onmouseover]').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), kind
        page.close()
        assert said == [], kind
        assert title[:1] == name[:1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_browser_accessibility_has_no_serious_finding(visit: Any, axe: str, scheme: str, width: int) -> None:
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    assert len(found["passes"]) > 10
    serious = [one for one in found["violations"] if one["impact"] in SERIOUS]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious] == []


def test_browser_five_hundred_case_pages_open_at_once(browser: Any, tmp_path: Path) -> None:
    names = [f"C{i}" for i in range(500)]
    one = full_timeline("C")
    data = report_data(names, timelines={i: replace(one, entity=names[i - 1]) for i in range(1, 501)})
    page = browser.new_page()
    page.goto(write_report(data, tmp_path / "many.html").as_uri())
    milliseconds = page.evaluate("""() => {
        const began = performance.now();
        for (const n of [10, 250, 499]) {
            const fold = document.getElementById(`case-${n}`);
            fold.open = true;
            fold.scrollIntoView();
            document.body.getBoundingClientRect();
        }
        return performance.now() - began;
    }""")
    page.close()
    assert milliseconds < 3000
