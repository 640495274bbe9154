"""Figures of a comparison, in the house style of `anomaly.figures`: values -> matplotlib figures. Nothing is computed.

Scorers are told apart by colour (who needs labels, and of which kind) and by dashes, so that a figure reads without
colour too. Only their own short names are drawn, never a name that comes from data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from anomaly.figures import (
    ACCENT,
    ALERT,
    INK,
    LINE,
    MUTED,
    WIDE,
    Figure,
    _axes,
    _figure,
    _labels,
    _segments,
    short_number,
)
from anomaly.wording import MONTHS

__all__ = ["STYLES", "average_precisions", "folds", "label_curve", "words"]

Floats = NDArray[np.float64]

STYLES: Mapping[str, tuple[str, str]] = {  # scorer -> colour and stroke, which are also the classes of a legend's key
    "amount": ("muted", "dotted"),
    "ratio": ("muted", "dashed"),
    "isolation_forest": ("muted", "solid"),
    "unsupervised": ("alert", "solid"),
    "logistic": ("ink", "dotted"),
    "forest": ("ink", "dashed"),
    "xgboost": ("ink", "solid"),
    "head": ("accent", "dashed"),
    "head_pretrained": ("accent", "solid"),
}
_COLOURS = {"muted": MUTED, "alert": ALERT, "ink": INK, "accent": ACCENT}
_DASHES: Mapping[str, tuple[float | None, ...]] = {"solid": (None, None), "dashed": (5, 3), "dotted": (1.5, 2.5)}
_ROW = 26  # px of a scorer's row
_APART = 5  # px between the intervals of two scorers at one place
_WORDS = {
    "ratio": "amount / median",
    "isolation_forest": "isolation forest",
    "unsupervised": "detector",
    "head_pretrained": "head, pre-trained",
}


def words(scorer: str) -> str:
    """A scorer's name as it is shown.

    >>> words("head_pretrained"), words("forest")
    ('head, pre-trained', 'forest')
    """
    return _WORDS.get(scorer, scorer)


def average_precisions(scorers: Sequence[str], value: Floats, low: Floats, high: Floats, *, base_rate: float) -> Figure:
    """Draw the average precision of each scorer with its interval, and what a random ranking gets.

    Parameters
    ----------
    scorers : sequence of str
        S names, drawn from the top; see `STYLES`.
    value, low, high : ndarray of shape (S,)
        In [0, 1].
    base_rate : float
        Share of frauds: the average precision of a random ranking.
    """
    figure = _figure((WIDE[0], 42 + _ROW * len(scorers)))
    axes = _axes(figure, 176, 8, 24, 34)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=LINE, linewidth=1)
    for place, name in enumerate(scorers):
        colour = _COLOURS[STYLES[name][0]]
        axes.plot([low[place], high[place]], [place, place], color=colour, linewidth=6, alpha=0.28,
                  solid_capstyle="round")  # fmt: skip
        axes.plot([value[place]], [place], marker="o", markersize=8, color=colour, markeredgewidth=0)
    axes.axvline(base_rate, color=INK, linewidth=1.2, dashes=(4, 3))
    axes.set_xlim(0, max(float(np.max(high)) * 1.04, 0.01))
    axes.set_ylim(len(scorers) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(FixedLocator(list(range(len(scorers)))))
    _labels(axes.xaxis, short_number)
    _labels(axes.yaxis, lambda place: words(scorers[round(place)]))
    return figure


def label_curve(known: Sequence[int], curves: Mapping[str, tuple[Floats, Floats, Floats]],
                flat: Mapping[str, float]) -> Figure:  # fmt: skip
    """Draw the average precision of learners by the number of known frauds, and that of scorers that need none.

    Parameters
    ----------
    known : sequence of int
        K numbers of known frauds, rising; drawn at even distances.
    curves : mapping of str to (value, low, high)
        By scorer; (K,) each.
    flat : mapping of str to float
        What does not depend on labels, drawn as level lines.
    """
    figure = _figure((WIDE[0], WIDE[1] + 50))
    axes = _axes(figure, 52, 12, 24, 34)
    for name, value in flat.items():
        axes.axhline(value, color=_COLOURS[STYLES[name][0]], linewidth=2, dashes=_DASHES[STYLES[name][1]])
    place = np.arange(len(known), dtype=np.float64)
    step = (len(known) - 0.5) / (WIDE[0] - 76)  # places of a px
    for at, (name, (ap, low, high)) in enumerate(curves.items()):
        x = place + (at - (len(curves) - 1) / 2) * _APART * step
        _segments(axes, x, low, high, edgecolor=_COLOURS[STYLES[name][0]], linewidth=3, alpha=0.28)
        _line(axes, name, x, ap)
    axes.set_xlim(-0.25, len(known) - 0.75)
    axes.xaxis.set_major_locator(FixedLocator(place.tolist()))
    _labels(axes.xaxis, lambda at: f"{known[round(at)]:,}")
    tops = [np.max(high) for _, _, high in curves.values()]
    _share_axis(axes, max([*tops, *flat.values()]))
    return figure


def folds(begin: Floats, values: Mapping[str, Floats]) -> Figure:
    """Draw the average precision of each scorer in each test window.

    Parameters
    ----------
    begin : ndarray of shape (F,)
        Where each window begins, in seconds since 1970 UTC.
    values : mapping of str to ndarray of shape (F,)
        By scorer.
    """
    figure = _figure((WIDE[0], WIDE[1] + 50))
    axes = _axes(figure, 52, 12, 24, 34)
    place = np.arange(len(begin), dtype=np.float64)
    for name, value in values.items():
        _line(axes, name, place, value)
    axes.set_xlim(-0.25, len(begin) - 0.75)
    axes.xaxis.set_major_locator(FixedLocator(place.tolist()))
    _labels(axes.xaxis, lambda at: _day(begin[round(at)]))
    _share_axis(axes, max(float(np.max(value)) for value in values.values()))
    return figure


def _line(axes: Axes, name: str, x: Floats, y: Floats) -> None:
    colour, stroke = STYLES[name]
    style: dict[str, Any] = {"color": _COLOURS[colour], "linewidth": 2, "dashes": _DASHES[stroke]}
    axes.plot(x, y, **style)
    _segments(axes, x, y, y, edgecolor=_COLOURS[colour], linewidth=6)


def _share_axis(axes: Axes, top: float) -> None:
    axes.set_ylim(0, max(top * 1.06, 0.01))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_minor_locator(NullLocator())
    _labels(axes.yaxis, short_number)


def _day(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.day} {MONTHS[moment.month - 1]}"
