"""The figure of one event: what is drawn is what was given, as SVG and as PNG, whatever the names are."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from anomaly.errors import ParameterError
from anomaly.event_figure import check_figure, event_figure, write_figure

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def figure(n: int = 40, k: int = 4, **more: Any) -> Figure:
    time = np.datetime64("2024-03-01T00:00", "us") + (np.arange(n) * 86_400e6).astype("timedelta64[us]")
    chosen = np.arange(n) == n - 2
    value = np.linspace(5, 90, n)
    given: dict[str, Any] = {"title": "Event of C1\nso rare", "value_name": "amount", "threshold_p": 0.01}
    given |= {"low": value / 2, "high": value * 2, "near_days": 4.0, **more}
    names = [f"field {at}" for at in range(k)]
    return event_figure(time, value, np.linspace(0, 5, n), chosen, names, np.linspace(2, 0.5, k), **given)


def texts(drawn: Figure, path: Path) -> list[str]:
    root = ET.parse(write_figure(drawn, path / "e.svg", label="an event")).getroot()
    return ["".join(one.itertext()).strip() for one in root.iter(f"{SVG}text")]


def test_the_parts_are_drawn_with_their_shares(tmp_path: Path) -> None:
    said = texts(figure(), tmp_path)
    assert {"field 0", "field 3", "40%", "10%", "amount", "surprise", "the 4 days before"} <= set(said)
    assert "Parts of the surprise, 5.00 in all" in said
    axes = figure().axes[-1]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([2.0, 1.5, 1.0, 0.5])  # type: ignore[attr-defined]


def test_small_parts_are_drawn_as_one(tmp_path: Path) -> None:
    time = np.arange(3).astype("datetime64[D]").astype("datetime64[us]")
    names, parts = [f"f{at}" for at in range(5)], np.array([2.0, 1.0, 0.01, 0.01, 0.01])
    drawn = event_figure(time, None, np.ones(3), np.arange(3) == 2, names, parts, title="t")
    assert {"f0", "f1", "3 others"} <= set(texts(drawn, tmp_path))
    assert "f2" not in texts(drawn, tmp_path)
    many = texts(figure(k=30), tmp_path)
    assert "21 others" in many


def test_names_from_the_data_are_text(tmp_path: Path) -> None:
    said = texts(figure(value_name="$x^2$ \N{CJK UNIFIED IDEOGRAPH-4E2D}", title="<b>&\x00 $a$"), tmp_path)
    assert "$x^2$ ?" in said
    assert "<b>&? $a$" in said


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "more",
    [{"near_days": 0.0}, {"threshold_p": NAN}, {"low": None, "high": None}, {"n": 1}, {"n": 2}, {"k": 0}, {"k": 1}],
)
def test_whatever_is_missing_it_is_drawn(tmp_path: Path, more: dict[str, Any]) -> None:
    drawn = figure(**{"n": 40, **more}) if more.get("n") != 1 else None
    if drawn is None:
        time = np.array(["2024-03-01"], dtype="datetime64[us]")
        drawn = event_figure(time, np.array([NAN]), np.array([NAN]), np.array([True]), [], np.zeros(0), title="")
    for suffix in ("svg", "png"):
        assert write_figure(drawn, tmp_path / f"e.{suffix}", label="x").stat().st_size > 1000
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.png", "e.svg"]


def test_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in ("svg", "png"):
        first, second = (
            write_figure(figure(), tmp_path / f"{name}.{suffix}", label="x").read_bytes() for name in ("a", "b")
        )
        assert first == second


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"\.svg or \.png"):
        check_figure(tmp_path / "e.pdf")
    with pytest.raises(ParameterError, match="there is no folder"):
        write_figure(figure(), tmp_path / "absent" / "e.svg", label="x")
