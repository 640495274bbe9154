"""Pictures of a report's page for the README: light, dark, a phone, and on paper.

As in::

    python3 scripts/screenshots.py     some minutes; writes reports/page, needs an installed Chromium

The report is of simulated payments; the detector is a small one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _environment import INTERRUPTED, ROOT, ensure, inside, run_inside

SINCE, DAYS = "2024-02-20", 75
LARGEST = 300_000  # bytes of a picture
WIDE = {"width": 1280, "height": 860}
VIEWS: dict[str, tuple[dict[str, Any], str]] = {
    "overview": ({"viewport": WIDE, "color_scheme": "light"}, "body"),
    "cases": ({"viewport": WIDE, "color_scheme": "light"}, "#cases"),
    "case": ({"viewport": WIDE, "color_scheme": "light"}, "#case-1"),
    "health": ({"viewport": WIDE, "color_scheme": "light"}, "#health"),
    "dark": ({"viewport": WIDE, "color_scheme": "dark"}, "#case-1"),
    "phone": ({"viewport": {"width": 390, "height": 844}, "color_scheme": "light"}, "#case-1"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the pictures inside the project's environment and return the exit code."""
    parser = argparse.ArgumentParser(description="Pictures of a report's page.")
    parser.add_argument("--customers", type=int, default=400, help="simulated ones (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "page", help="folder for the pictures")
    wish = parser.parse_args(arguments)
    if not inside():
        return run_inside(ensure(("dev",)), __file__, sys.argv[1:] if arguments is None else arguments)
    from anomaly import SIMULATED_SCHEMA, Detector, simulate
    from anomaly.printing import needed_browser

    browser = needed_browser()
    events = simulate(customers=wish.customers, days=DAYS, seed=4)[0]
    detector = Detector(SIMULATED_SCHEMA, hidden=16, epochs=3).fit(events, until=SINCE, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        scores = detector.score(events, since=SINCE)
        title = "Card payments: cases of the morning"
        detector.report(
            page, scores, budget_per_day=6, title=title, command=f"anomaly report events.parquet --since {SINCE}"
        )
        for picture in take(page, browser, wish.out):
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")
    return 0


def take(page: Path, browser: str, folder: Path) -> list[Path]:
    """Photograph the views of a page; each picture stays below the largest size or is refused."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, (options, place) in VIEWS.items():
            tab = window.new_page(**options)
            tab.goto(page.as_uri())
            tab.evaluate("place => document.querySelector(place).scrollIntoView()", place)
            tab.wait_for_timeout(300)
            made.append(folder / f"{name}.png")
            tab.screenshot(path=made[-1])
            tab.close()
            if made[-1].stat().st_size > LARGEST:
                raise SystemExit(f"{made[-1]}: {made[-1].stat().st_size:,} bytes, at most {LARGEST:,} are wanted")
        window.close()
    return made


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
