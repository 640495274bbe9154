"""Figures of the measuring scripts: values -> SVG files. Nothing is computed here, and no row of the data is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from _numbers import write_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Curve = tuple[NDArray[np.float64] | NDArray[np.datetime64], Floats]  # x, y

INK, MUTED, LINE = "#1b1f24", "#5b6570", "#dfe3e8"
RULES, MODELS = ("#a9b1ba", "#5b6570"), ("#2f6db3", "#2a9d8f", "#c2410c")  # the simple rules are grey
STYLE: Any = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "anomaly",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "date.converter": "concise",
}


def curves(path: Path, panels: Mapping[str, Mapping[str, Curve]], x_label: str, y_label: str) -> Path:
    """Draw panels of curves, one colour per name; two names of rules come first, then three of models.

    Parameters
    ----------
    path : Path
        The SVG file.
    panels : mapping of str to mapping of str to (x, y)
        By the panel's title, then by the curve's name; the same names in each panel. x in [0, 1], or days.
    x_label, y_label : str
        What the axes hold.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 2.9 * ((len(panels) + 1) // 2) + 0.6), layout="constrained")
        grid = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False)
        for axes, (title, named) in zip(grid.flat, panels.items(), strict=False):
            for (name, (x, y)), colour in zip(named.items(), RULES + MODELS, strict=True):
                style = "-" if colour in MODELS else "--"
                axes.plot(x, y, style, color=colour, linewidth=2.2 if colour == MODELS[-1] else 1.4, label=name)
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
            axes.set_ylim(0, 1.02 if np.asarray(x).dtype.kind == "f" else None)
            if np.asarray(x).dtype.kind == "f":
                axes.set_xlim(0, 1.02)
        _legend(figure, grid.flat[0])
        return _save(figure, path)


def bars(path: Path, groups: Sequence[str], values: Mapping[str, Floats], base: Floats, x_label: str) -> Path:
    """Draw groups of horizontal bars, one colour per name, with a mark for the base rate of each group.

    Parameters
    ----------
    path : Path
        The SVG file.
    groups : sequence of str
        Names of the G groups, from the top.
    values : mapping of str to ndarray of shape (G,)
        Two rules first, then three models; in [0, 1].
    base : ndarray of shape (G,)
        What a random ranking gets.
    x_label : str
        What the bars hold.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.85 * len(groups) + 1.3), layout="constrained")
        axes = figure.subplots()
        middle = np.arange(len(groups))
        for i, ((name, lengths), colour) in enumerate(zip(values.items(), RULES + MODELS, strict=True)):
            axes.barh(middle + 0.16 * (i - 2), lengths, height=0.15, color=colour, label=name)
        axes.vlines(base, middle - 0.42, middle + 0.42, color=INK, linewidth=1.2, linestyle=":", label="random")
        axes.set_yticks(middle, groups)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set(xlabel=x_label, xlim=(0, 1), ylim=(len(groups) - 0.5, -0.5))
        axes.xaxis.set_major_locator(MultipleLocator(0.2))
        _legend(figure, axes)
        return _save(figure, path)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))


def _save(figure: Figure, path: Path) -> Path:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None})
    return write_text(path, stream.getvalue())
