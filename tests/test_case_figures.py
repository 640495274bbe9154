"""Figures of a case: each event is drawn once, whatever the values are, and nothing but numbers is written."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from anomaly.case_figures import LEFT, RIGHT, WIDTH, case_figure, case_map

NAN = float("nan")
START = np.datetime64("2024-03-01T00:00", "us")


def drawn(n: int = 40, alerts: int = 5, **more: Any) -> ET.Element:
    alerting = np.arange(n) >= n - alerts
    value = np.linspace(5, 90, n)
    given: dict[str, Any] = {
        "value": value, "surprise": np.linspace(0, 5, n), "alerting": alerting, "label": "a case", "low": value / 2,
        "high": value * 2, "inside": alerting, "remembered": np.arange(n) < n - 2 * alerts,
        "gap": np.full(n, 3600.0), "strips": [np.arange(n).astype(np.int8) % 4], "alert_line": 3.0, **more,
    }  # fmt: skip
    time = given.pop("time", START + np.arange(n).astype("timedelta64[D]"))
    return ET.fromstring(case_figure(time, given.pop("value"), given.pop("surprise"), given.pop("alerting"), **given))


def marks(root: ET.Element, name: str) -> int:
    return sum(path.attrib["d"].count("M") for path in root.iter("path") if path.get("class") == name)


def test_each_event_is_drawn_once_and_each_alert_as_a_diamond() -> None:
    root = drawn(40, 5)
    assert marks(root, "p") == 35
    assert marks(root, "d") == marks(root, "x") == 5
    assert marks(root, "s") == 35
    assert marks(root, "r") == marks(root, "m") == 40
    assert marks(root, "w") == marks(root, "q") == 1  # the case, and the events in quarantine before it
    assert root.attrib["aria-label"] == "a case"


def test_what_is_missing_is_not_drawn() -> None:
    value, surprise = np.array([1.0, NAN, 3.0]), np.array([NAN, 1.0, 2.0])
    root = drawn(3, 0, value=value, low=None, high=None, surprise=surprise, strips=[np.array([0, 1, 0], np.int8)])
    assert marks(root, "p") == marks(root, "s") == 2
    assert marks(root, "u") == 1
    assert marks(root, "d") == marks(root, "w") == 0


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0, "alerts": 0},
        {"n": 1, "alerts": 1},
        {"value": None},
        {"value": np.full(40, NAN)},
        {"value": np.zeros(40), "low": np.full(40, NAN), "high": np.full(40, NAN)},
        {"value": np.where(np.arange(40) == 3, 1e9, -5.0)},
        {"low": np.full(40, -np.inf), "high": np.full(40, np.inf)},
        {"surprise": np.full(40, NAN), "alert_line": NAN},
        {"surprise": np.full(40, 400.0), "alert_line": 1e-9},
        {"gap": np.full(40, NAN), "strips": []},
        {"time": START + np.zeros(40).astype("timedelta64[s]")},
    ],
)
def test_sparse_and_extreme_values_draw_without_a_warning(change: dict[str, Any]) -> None:
    root = drawn(**change)
    text = ET.tostring(root, encoding="unicode")
    assert not re.search(r"\b(nan|inf)\b", text)
    assert not {"id", "style", "onload"} & {key for element in root.iter() for key in element.attrib}


@pytest.mark.parametrize("days", [0.01, 1.0, 3.0, 900.0])
def test_dates_stay_inside_and_apart(days: float) -> None:
    time = START + np.linspace(0, days * 86_400e6, 64).astype("timedelta64[us]")
    root = drawn(64, 3, time=time)
    places = [float(t.attrib["x"]) for t in root.iter("text") if t.get("class") in ("b", "c")]
    assert len(places) >= 4
    assert all(b - a >= 90 for a, b in pairwise(places))
    assert places[0] >= LEFT and places[-1] <= WIDTH - RIGHT - 30


def test_a_case_of_usual_size_is_small() -> None:
    rng = np.random.default_rng(0)
    strips = [rng.integers(1, 4, 60).astype(np.int8) for _ in range(4)]
    size = len(ET.tostring(drawn(60, 6, value=rng.lognormal(3, 1, 60), strips=strips)))
    assert size < 9_000


def test_a_map_keeps_directions_distances_and_its_frame() -> None:
    latitude, longitude = np.array([48.85, 48.85, 48.95, NAN]), np.array([2.35, 2.45, 2.35, 2.0])
    root = ET.fromstring(case_map(latitude, longitude, np.array([False, True, True, True]), label="m"))
    route = next(path.attrib["d"] for path in root.iter("path") if path.get("class") == "t")
    (x1, y1), (x2, y2) = [tuple(map(float, point.split())) for point in route[1:].split("L")]
    assert x1 > x2 and y1 > y2  # the second place is west and north of the first
    text = next(t.text or "" for t in root.iter("text"))
    scale = next(path.attrib["d"] for path in root.iter("path") if path.get("class") == "k")
    pixels = float(scale.split("h")[1])
    km = float(text.removesuffix(" km")) / pixels * np.hypot(x1 - x2, y1 - y2)
    assert km == pytest.approx(np.hypot(11.12, 7.31), rel=0.03)
    for none in (np.full(2, NAN), np.zeros(0)):
        assert ET.fromstring(case_map(none, none, np.zeros(len(none), bool), label="m")).tag == "svg"
