"""Figures: what is drawn is what was given, in both themes, with the same bytes each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomaly import figures

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def days(n: int, step: float = 1.0) -> NDArray[np.datetime64]:
    return np.datetime64("2024-03-01T00:00", "us") + (np.arange(n) * step * 86_400e6).astype("timedelta64[us]")


EVERY: dict[str, Callable[[], Figure]] = {
    "days": lambda: figures.alerts_per_day(days(28), np.arange(28), budget=20),
    "scores": lambda: figures.score_distribution(
        np.linspace(0, 6, 31), np.geomspace(1e5, 1, 30), np.r_[np.zeros(20), np.geomspace(200, 1, 10)],
        threshold_p=1e-4,
    ),
    "calibration": lambda: figures.calibration_check(
        np.array([0.1, 0.01, 0.001]), np.array([0.12, 0.009, 0.0]), np.array([0.1, 0.008, 0.0]),
        np.array([0.13, 0.011, 0.002]),
    ),
    "training": lambda: figures.training_curves(np.arange(1, 6), np.linspace(3, 2, 5), np.linspace(3.1, 2.2, 5)),
}  # fmt: skip


def parsed(figure: Figure, prefix: str = "f") -> ET.Element:
    return ET.fromstring(figures.svg_text(figure, prefix=prefix, label="a figure"))


@pytest.mark.parametrize("name", EVERY)
def test_same_values_give_the_same_bytes(name: str) -> None:
    first, second = (figures.svg_text(EVERY[name](), prefix="f", label="x") for _ in range(2))
    assert first == second


def test_bytes_do_not_depend_on_the_process_and_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, numpy as np; from anomaly import figures as f;"
        "print(f.svg_text(f.training_curves(np.arange(3), np.ones(3), np.arange(3.0)), prefix='f', label='x'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    texts = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                       env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


def test_matplotlibs_settings_are_left_as_they_were() -> None:
    before = dict(mpl.rcParams)
    for draw in EVERY.values():
        figures.svg_text(draw(), prefix="f", label="x")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", EVERY)
def test_every_colour_follows_the_theme_and_nothing_opaque_lies_behind(name: str) -> None:
    text = figures.svg_text(EVERY[name](), prefix="f", label="x")
    assert "var(--" in text
    assert not re.findall(r"#[0-9a-f]{6}", re.sub(r"var\(--[a-z]+,#[0-9a-f]{6}\)", "", text))
    for forbidden in ("<style", "<metadata", "font-family", "<image", "DejaVu", "xlink"):
        assert forbidden not in text


def test_ids_carry_the_prefix_and_every_reference_leads_to_one() -> None:
    root = parsed(EVERY["days"](), prefix="case-7")
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert ids
    assert len(ids) == len(set(ids))
    assert all(name.startswith("case-7-") for name in ids)
    used = re.findall(r"(?:href=\"|url\()#([\w-]+)", ET.tostring(root, encoding="unicode"))
    assert set(used) <= set(ids)


def test_the_label_is_escaped() -> None:
    label = '"><script>alert(1)</script> & $x^2$ 😀'
    text = figures.svg_text(figures.training_curves(np.arange(2), np.ones(2), np.ones(2)), prefix="f", label=label)
    assert "<script" not in text
    assert ET.fromstring(text).attrib["aria-label"] == label
    assert ET.fromstring(text).attrib["role"] == "img"


def test_cases_above_the_budget_are_drawn_apart() -> None:
    axes = figures.alerts_per_day(days(3), np.array([3, 8, 5]), budget=5).axes[0]
    bars = [np.asarray(patch.get_path().vertices).reshape(-1, 2, 2) for patch in axes.patches]
    assert [[(low, high) for (_, low), (_, high) in bar] for bar in bars] == [[(0, 3), (0, 5), (0, 5)], [(5, 8)]]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.alerts_per_day(days(0), np.zeros(0)),
        lambda: figures.alerts_per_day(days(1), np.array([0]), budget=0.5),
        lambda: figures.alerts_per_day(days(900), np.ones(900), budget=50),
        lambda: figures.score_distribution(np.array([0.0, 1.0]), np.zeros(1), np.zeros(1), threshold_p=NAN),
        lambda: figures.score_distribution(np.linspace(0, 3, 4), np.ones(3), np.zeros(3), threshold_p=1e-9),
        lambda: figures.calibration_check(*(np.array([0.1]) for _ in range(4))),
        lambda: figures.calibration_check(np.array([0.1, 0.01]), *(np.zeros(2) for _ in range(3))),
        lambda: figures.training_curves(np.arange(1), np.ones(1), np.full(1, NAN)),
        lambda: figures.training_curves(np.arange(3), np.full(3, NAN), np.full(3, NAN)),
    ],
)
def test_sparse_and_extreme_values_draw_without_a_warning(figure: Any) -> None:
    text = figures.svg_text(figure(), prefix="f", label="x")
    assert not re.search(r"\b(nan|inf)\b", text)
