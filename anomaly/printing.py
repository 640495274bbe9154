"""A page as PDF, printed by a browser that is installed: the page's own style sheet says how it looks on paper.

A second layout engine would need a second style sheet and would draw the figures anew; Chromium prints what a reader
sees, with text that can be searched and links that lead within the document.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from anomaly.errors import PackageError

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    ),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    ),
}
PATIENCE = 180  # seconds until a browser that does not answer is ended


def find_browser() -> str | None:
    """Path of an installed Chromium, Chrome or Edge; None if there is none."""
    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    return on_path or next((place for place in PLACES.get(sys.platform, ()) if Path(place).exists()), None)


def needed_browser() -> str:
    """The same, or an error that says what to install.

    Raises
    ------
    PackageError
        If no browser is found.
    """
    browser = find_browser()
    if browser is None:
        raise PackageError(
            "a report is printed to PDF by an installed browser, and none was found: install Chromium (on Debian and "
            "Ubuntu: apt-get install chromium), Google Chrome or Microsoft Edge, or write report.html and print it"
        )
    return browser


def write_pdf(page: str, target: Path) -> None:
    """Print an HTML document into `target`.

    Raises
    ------
    PackageError
        If no browser is found, or it does not print.
    """
    browser = needed_browser()
    with tempfile.TemporaryDirectory(prefix="anomaly-") as folder:
        source, made = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8")
        command = [
            browser, "--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer", "--disable-extensions",
            "--disable-background-networking", f"--user-data-dir={Path(folder) / 'profile'}",
            f"--print-to-pdf={made}", source.as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # Chromium refuses to run as root with it
        try:
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise PackageError(f"{browser} did not print within {PATIENCE} s; write report.html and print it") from None
        if not made.exists() or not made.read_bytes().startswith(b"%PDF"):
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise PackageError(f"{browser} printed no PDF (exit code {done.returncode}), and said: {said[0][:300]}")
        shutil.copyfile(made, target)
