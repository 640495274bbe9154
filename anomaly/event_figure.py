"""Figure of one explained event: what its entity did over time, and a bar for each part of its surprise.

In the style of `anomaly.figures`, as a file of its own. Nothing is computed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.event_story import EventStory
from anomaly.figures import (
    _TEXT,
    ACCENT,
    ALERT,
    INK,
    LINE,
    MUTED,
    _axes,
    _days,
    _figure,
    _labels,
    _segments,
    _time_axis,
    short_number,
    svg_text,
)
from anomaly.files import whole_file

Floats = NDArray[np.float64]

WIDTH = 760
LEFT, RIGHT = 150, 24  # px beside the panels
VALUE, SURPRISE, BAR = 130, 80, 24  # px of a row
TITLE, NAME, AXIS = 52, 22, 34  # px above all, above a row for its name, and below the time and the bars
NEAR_LEFT, NEAR_GAP = 500, 28  # px: where the panel of the last days begins, and before it
MOST_BARS = 10
LEAST_SHARE = 0.01  # of the surprise; parts below are drawn as one bar
LONGEST_NAME = 20
DRAWABLE = 0x530  # characters from here on the font may lack
SUFFIXES = (".svg", ".png")


def check_figure(path: Path) -> None:
    """Refuse what `write_figure` could not write, before the work begins."""
    if path.suffix.lower() not in SUFFIXES:
        raise ParameterError(f"{path}: a figure is written as .svg or .png; got suffix {path.suffix!r}")
    if not path.parent.is_dir():
        raise ParameterError(f"{path}: there is no folder {path.parent}: make it first")


def story_figure(story: EventStory) -> Figure:
    """Draw all that is told of an event."""
    drawn = story.timeline
    return event_figure(
        drawn["time"],
        drawn.get("value"),
        drawn["surprise"],
        drawn["chosen"],
        story.parts["field"].to_list(),
        story.parts["part"].to_numpy(),
        title=story.facts["summary"].split(";")[0].replace(": ", "\n", 1),
        value_name=story.value_name,
        low=drawn.get("low"),
        high=drawn.get("high"),
        alerting=drawn["alerting"],
        near_days=story.near_days,
        threshold_p=story.facts["threshold_p"],
    )


def event_figure(
    time: NDArray[np.datetime64],
    value: Floats | None,
    surprise: Floats,
    chosen: NDArray[np.bool_],
    fields: list[str],
    parts: Floats,
    *,
    title: str,
    value_name: str = "",
    low: Floats | None = None,
    high: Floats | None = None,
    alerting: NDArray[np.bool_] | None = None,
    near_days: float = 0.0,
    threshold_p: float = float("nan"),
) -> Figure:
    """Draw an entity's timeline with the event, the days before it once more, and the parts of its surprise as bars.

    Parameters
    ----------
    time : ndarray of datetime64, shape (n,)
        Of all events of the entity; not decreasing, shown as it is.
    value : ndarray, shape (n,), or None
        The number to follow, called `value_name`; NaN = missing.
    surprise : ndarray, shape (n,)
        -log10 p; NaN = not scored.
    chosen : ndarray of bool, shape (n,)
        The event; drawn as a diamond.
    fields : list of str, (k,)
        What the parts are of.
    parts : ndarray, shape (k,)
        In the unit of the surprise, the largest first; small ones are summed up.
    title : str
        Two lines above.
    low, high : ndarray, shape (n,), optional
        Range in which the value was expected.
    alerting : ndarray of bool, shape (n,), optional
        Other events that alert.
    near_days : float
        Days before the event that get a panel of their own; 0 = none.
    threshold_p : float
        The alert line; NaN = none.
    """
    fields, parts = _shown(fields, parts)
    alerts = np.zeros_like(chosen) if alerting is None else alerting & ~chosen
    block = NAME + SURPRISE + (NAME + VALUE if value is not None else 0)
    bars = BAR * max(1, len(fields))
    height = TITLE + block + AXIS + NAME + bars + AXIS
    figure = _figure((WIDTH, height))
    days = _days(time)
    at, span = float(days[chosen][0]), float(days[-1] - days[0])
    pad = max(0.02 * span, 1 / 1440)
    panels = [(LEFT, RIGHT, (float(days[0]) - pad, float(days[-1]) + pad), 6)]
    if 0 < near_days < 0.5 * span:
        near = (at - near_days, at + 0.12 * near_days)
        panels = [(LEFT, WIDTH - NEAR_LEFT + NEAR_GAP, panels[0][2], 4), (NEAR_LEFT, RIGHT, near, 3)]
    for number, (left, right, (first, last), ticks) in enumerate(panels):
        inside = (days >= first) & (days <= last)
        lower = _axes(figure, left, TITLE + block - SURPRISE, right, height - TITLE - block)
        _surprises(lower, days, surprise, chosen, alerts, inside, threshold_p)
        rows = [(lower, "surprise")]
        if value is not None:
            upper = _axes(figure, left, TITLE + NAME, right, height - TITLE - NAME - VALUE)
            _values(upper, days, value, chosen, alerts, inside, low, high)
            rows.append((upper, value_name))
        for axes, name in rows:
            _time_axis(axes, first, last, ticks)
            axes.tick_params(labelbottom=axes is lower, labelleft=not number)
            axes.axvline(at, color=ALERT, linewidth=1, alpha=0.4)
            if not number or axes is rows[-1][0]:
                _text(axes, 0, 1.03, _before(near_days) if number else _drawable(name, LONGEST_NAME), va="bottom")
    figure.text(12 / WIDTH, 1 - 10 / height, _drawable(title, 200), color=INK, fontsize=13, va="top",
                fontfamily="DejaVu Sans", parse_math=False, linespacing=1.4)  # fmt: skip
    _bars(_axes(figure, LEFT, TITLE + block + AXIS + NAME, RIGHT, AXIS), fields, parts)
    return figure


def write_figure(figure: Figure, path: Path, *, label: str) -> Path:
    """Write the figure as SVG or PNG, whole or not at all; `label` says in words what it shows."""
    check_figure(path)
    with whole_file(path) as draft:
        if path.suffix.lower() == ".svg":
            draft.write_text(svg_text(figure, prefix="event", label=label) + "\n", encoding="utf-8")
        else:
            figure.patch.set(visible=True, facecolor="white")
            figure.set_dpi(144)
            with draft.open("wb") as stream:
                FigureCanvasAgg(figure).print_png(stream)  # type: ignore[no-untyped-call]
    return path


def _shown(fields: list[str], parts: Floats) -> tuple[list[str], Floats]:
    """The large parts, and what the small ones sum to."""
    large = min(int((parts >= LEAST_SHARE * parts.sum()).sum()), MOST_BARS - 1)
    if len(fields) - large < 2:
        return fields, parts
    return [*fields[:large], f"{len(fields) - large} others"], np.append(parts[:large], parts[large:].sum())


def _values(
    axes: Axes,
    days: Floats,
    value: Floats,
    chosen: NDArray[np.bool_],
    alerts: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    low: Floats | None,
    high: Floats | None,
) -> None:
    """Values over the ranges that they were expected in; one scale for both panels."""
    _value_scale(axes, value)
    if low is not None and high is not None:
        floor, roof = axes.get_ylim()
        bottom, top = (np.clip(edge, floor, roof)[inside] for edge in (low, high))
        _segments(axes, days[inside], bottom, top, edgecolor=MUTED, linewidth=3, alpha=0.25, capstyle="butt")
    for which, colour, marker, size in (
        (inside & ~chosen & ~alerts, ACCENT, "o", 4.0),
        (inside & alerts, ALERT, "o", 5.0),
        (inside & chosen, ALERT, "D", 8.5),
    ):
        axes.plot(days[which], value[which], linestyle="none", marker=marker, markersize=size, color=colour,
                  markeredgewidth=0)  # fmt: skip


def _surprises(
    axes: Axes,
    days: Floats,
    surprise: Floats,
    chosen: NDArray[np.bool_],
    alerts: NDArray[np.bool_],
    inside: NDArray[np.bool_],
    threshold_p: float,
) -> None:
    line = -float(np.log10(threshold_p)) if 0 < threshold_p <= 1 else None
    top = float(np.nanmax(np.append(surprise, [1.0])))
    axes.set_ylim(0, max(1.12 * top, 1.35 * (line or 0.0)))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    _labels(axes.yaxis, short_number)
    zero = np.zeros_like(surprise)
    for which, colour, width in (
        (inside & ~chosen & ~alerts, ACCENT, 2),
        (inside & alerts, ALERT, 2),
        (inside & chosen, ALERT, 4),
    ):
        _segments(axes, days[which], zero[which], surprise[which], edgecolor=colour, linewidth=width, capstyle="butt")
    if line is not None:
        axes.axhline(line, color=INK, linewidth=1.2, dashes=(4, 3))
        _text(axes, 0.005, line / axes.get_ylim()[1] + 0.02, "alert", va="bottom", fontsize=11)


def _before(days: float) -> str:
    return f"the {days:.2g} days before" if days >= 2 else f"the {24 * days:.2g} hours before"


def _bars(axes: Axes, fields: list[str], parts: Floats) -> None:
    """One bar for each part, with its share."""
    axes.grid(False)
    axes.grid(True, axis="x", color=LINE, linewidth=1)
    place = np.arange(len(parts))
    axes.barh(place, parts, height=0.62, color=ALERT, linewidth=0)
    axes.set_ylim(max(len(parts), 1) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(float(parts.max(initial=0.0)), 1e-3))
    axes.set_yticks(place, [_drawable(name, LONGEST_NAME) for name in fields], parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    _labels(axes.xaxis, short_number)
    whole = max(float(parts.sum()), 1e-12)
    for at, part in zip(place, parts, strict=True):
        axes.annotate(f"{part / whole:.0%}", (part, at), xytext=(5, 0), textcoords="offset points", va="center",
                      color=MUTED, fontsize=11, fontfamily="DejaVu Sans")  # fmt: skip
    _text(axes, 0, 1, f"Parts of the surprise, {parts.sum():.2f} in all", color=INK, va="bottom")


def _drawable(text: str, most: int) -> str:
    """Text from the data: of characters that the font has, and short."""
    line = "".join(c if c == "\n" or (c.isprintable() and ord(c) < DRAWABLE) else "?" for c in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write a short fixed text inside the panel; x and y in shares of it."""
    style = {"color": MUTED, "fontsize": _TEXT, "fontfamily": "DejaVu Sans", "transform": axes.transAxes, **style}
    axes.text(x, y, text, parse_math=False, **style)


def _value_scale(axes: Axes, values: Floats) -> None:
    """Set the value axis: from zero, or logarithmic when positive values differ more than a hundredfold."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low > 0 and high > 100 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, high * 1.6)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        pad = 0.08 * ((high - low) or 1.0)
        axes.set_ylim(low - pad, high + pad)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    _labels(axes.yaxis, short_number)
