"""The figures of a comparison: they hold what they are given, and their text is their own."""

from __future__ import annotations

import re

import numpy as np
import pytest

from anomaly.comparison_figures import STYLES, average_precisions, folds, label_curve, words
from anomaly.comparison_scorers import HEADS, UNLABELLED
from anomaly.figures import svg_text
from anomaly.models.baselines import BASELINES


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_every_scorer_has_a_style_of_its_own() -> None:
    assert set(STYLES) == {*UNLABELLED, *BASELINES, *HEADS}
    assert len(set(STYLES.values())) == len(STYLES)


def test_a_scorer_a_row_with_its_name() -> None:
    names = ["forest", "head_pretrained", "ratio"]
    value = np.array([0.6, 0.5, 0.2])
    svg = svg_text(
        average_precisions(names, value, value - 0.1, value + 0.1, base_rate=0.05), prefix="a", label="what it shows"
    )
    assert [text for text in texts(svg) if not text[0].isdigit()] == [words(name) for name in names]
    assert 'aria-label="what it shows"' in svg


@pytest.mark.parametrize("numbers", [(10, 30, 1234), (7,)])
def test_the_curve_names_the_numbers_of_known_frauds(numbers: tuple[int, ...]) -> None:
    value = np.linspace(0.2, 0.6, len(numbers))
    curves = dict.fromkeys(("forest", "head"), (value, value - 0.1, value + 0.1))
    svg = svg_text(label_curve(numbers, curves, {"unsupervised": 0.3, "ratio": 0.1}), prefix="c", label="")
    assert texts(svg)[: len(numbers)] == [f"{number:,}" for number in numbers]
    for colour in ("--ink", "--accent", "--alert", "--muted"):
        assert f"stroke:var({colour}," in svg


def test_windows_are_named_by_their_first_day() -> None:
    begin = np.array([1_707_523_200.0, 1_708_128_000.0])
    svg = svg_text(folds(begin, {"forest": np.array([0.3, 0.4])}), prefix="f", label="")
    assert texts(svg)[:2] == ["10 Feb", "17 Feb"]
