"""Figures: values -> matplotlib figures -> SVG text. Nothing is computed here.

One house style, without pyplot and without lasting changes to matplotlib's settings: every function builds its own
`Figure`, and `svg_text` writes it. The SVG is meant to stand inside a page or alone:

- Colours are CSS variables with a fallback (``var(--ink,#1b1f24)``), so that one figure reads on light and on dark.
- The same values give the same bytes: ids are counted from a prefix, no date is written, coordinates have two digits.
- No name that comes from the data is drawn. Matplotlib reads ``$`` as mathematics and warns of glyphs that it lacks;
  an entity's or a model's name belongs into the page around the figure, where it is escaped like any other text.
- Text is left as text (the page's font, searchable), and its size is an attribute, which a style sheet may overrule.

Widths are in px of the page: one unit of the SVG is one px at full size.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from anomaly.wording import MONTHS

__all__ = [
    "Figure",
    "alerts_per_day",
    "calibration_check",
    "score_distribution",
    "short_number",
    "svg_text",
    "training_curves",
]

Floats = NDArray[np.float64]

# Colour -> the CSS variable that replaces it. The hex codes are the light theme's and serve as fallback.
INK, MUTED, LINE, ACCENT, ALERT = "#1b1f24", "#5b6570", "#dfe3e8", "#2f6db3", "#c2410c"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", ALERT: "--alert"}

WIDE, NARROW = (560, 230), (380, 230)
_TEXT = 12.0
# strftime would follow the machine's language.
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TICK_SECONDS = (  # neighbours differ at most by 2.5, so that a range never falls between two steps
    5, 10, 15, 30, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR, 2 * _HOUR,
    3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 4 * _DAY, 7 * _DAY, 14 * _DAY,
)  # fmt: skip
_YEARS = 900  # days of an axis from which its ticks are years
_SVG = "{http://www.w3.org/2000/svg}"


# ---- numbers as text ------------------------------------------------------------------------------------------------
def short_number(value: float) -> str:
    """Write a number in few characters, three digits.

    >>> [short_number(v) for v in (0, 0.05, 950, 1200, 12_500, 3_400_000, -20_000, 999_999)]
    ['0', '0.05', '950', '1.2k', '12.5k', '3.4M', '-20k', '1M']
    """
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _one_in_short(surprise: float) -> str:
    return f"1 in {short_number(10.0 ** min(surprise, 300.0))}"


def _day_or_time(days: float, span: float) -> str:
    """Label of a time tick, `days` since 1970, on an axis that is `span` days wide."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=round(days * 86400))
    if span * 0.8 > _YEARS:
        return str(moment.year)
    if span > 320:
        return f"{MONTHS[moment.month - 1]} {moment.year}"
    if span > 4 or moment.hour == moment.minute == moment.second == 0:
        return f"{moment.day} {MONTHS[moment.month - 1]}"
    return f"{moment:%H:%M:%S}" if span < 6 / 1440 else f"{moment:%H:%M}"


# ---- the house style ------------------------------------------------------------------------------------------------
def _figure(size: tuple[int, int]) -> Figure:
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)  # 72 dpi: one SVG unit is one px
    figure.patch.set_visible(False)
    return figure


def _axes(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Add a panel inside these margins, in px from the figure's own edges."""
    width, height = (side * 72 for side in figure.get_size_inches())
    axes = figure.add_axes((left / width, bottom / height, (width - left - right) / width,
                            (height - top - bottom) / height))  # fmt: skip
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, axis="y", color=LINE, linewidth=1, linestyle="-")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
        spine.set_linewidth(1)
    axes.tick_params(which="both", length=0, pad=6, labelsize=_TEXT, labelcolor=MUTED, labelfontfamily="DejaVu Sans")
    axes.tick_params(axis="x", pad=9)  # room above for the larger text of a small screen
    return axes


def _days(time: NDArray[np.datetime64]) -> Floats:
    """Days since 1970, the unit of matplotlib's time axes."""
    return np.asarray(time, "datetime64[us]").astype(np.int64) / 86_400e6


def _labels(axis: Any, write: Callable[[float], str]) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(float(value))))
    axis.set_minor_formatter(NullFormatter())


def _time_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round moments, in days since 1970, between low and high.

    >>> _time_ticks(19782.2, 19783.1, 4), _time_ticks(19700.0, 19790.0, 4)
    ([19782.25, 19782.5, 19782.75, 19783.0], [19723.0, 19754.0, 19783.0])
    """
    for seconds in _TICK_SECONDS:
        step = seconds / 86400
        if (high - low) / step < most:
            return [i * step for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]
    unit = "datetime64[Y]" if high - low > _YEARS else "datetime64[M]"
    near = np.array([low - 366, high]).astype(np.int64).astype("datetime64[D]").astype(unit)
    starts = np.arange(near[0], near[1] + 1).astype("datetime64[D]").astype(np.int64)
    starts = starts[(starts >= low) & (starts <= high)]
    return [float(day) for day in starts[:: max(1, -(-len(starts) // max(2, most - 1)))]]  # the labels are longer


def _time_axis(axes: Axes, low: float, high: float, most: int, *, inset: float = 0.1) -> None:
    """Set the range and its ticks; none in the outer `inset` shares, where half a label would leave the panel."""
    axes.set_xlim(low, high)
    inset *= high - low
    axes.xaxis.set_major_locator(FixedLocator(_time_ticks(low + inset, high - inset, most)))
    _labels(axes.xaxis, lambda days: _day_or_time(days, high - low))


def _segments(axes: Axes, x: Floats, low: Floats, high: Floats, **style: Any) -> None:
    """Draw one vertical segment per value as a single path, a tenth of the size of one element per value.

    A segment of no height is a dot, as wide as the line, by the rule for round caps.
    """
    drawn = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    if not drawn.any():
        return
    ends = np.stack([np.column_stack([x, low])[drawn], np.column_stack([x, high])[drawn]], axis=1).reshape(-1, 2)
    path = Path(ends, np.tile([Path.MOVETO, Path.LINETO], len(ends) // 2))
    path.should_simplify = False  # simplifying would drop the dots
    axes.add_artist(PathPatch(path, fill=False, **{"capstyle": "round", **style}))


# ---- the figures ----------------------------------------------------------------------------------------------------
def alerts_per_day(day: NDArray[np.datetime64], cases: NDArray[Any], *, budget: float | None = None) -> Figure:
    """Draw the cases of each day as bars, the part above the budget in the alert colour.

    Parameters
    ----------
    day : ndarray of datetime64, shape (D,)
        Days with a count; a day that is absent is drawn as a gap.
    cases : ndarray of shape (D,)
        Cases that start on the day.
    budget : float, optional
        Cases per day that the desk asked for; drawn as a line.
    """
    figure = _figure(WIDE)
    axes = _axes(figure, 52, 12, 8, 30)
    x, counts = _days(day), np.asarray(cases, np.float64)
    low, high = (float(x.min()), float(x.max())) if len(x) else (0.0, 0.0)
    spare = max(0.6, (7 - (high - low)) / 2)  # a single day does not fill the figure with one bar
    _time_axis(axes, low - spare, high + spare, 6, inset=0.04)
    width = 0.8 * (WIDE[0] - 60) / (high - low + 2 * spare)  # in px
    limit = np.minimum(counts, np.inf if budget is None else budget)
    _segments(axes, x, np.zeros(len(x)), limit, edgecolor=ACCENT, linewidth=width, capstyle="butt")
    over = counts > limit
    _segments(axes, x[over], limit[over], counts[over], edgecolor=ALERT, linewidth=width, capstyle="butt")
    top = max([float(counts.max(initial=0)), budget or 0.0, 1.0])
    axes.set_ylim(0, top * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    _labels(axes.yaxis, short_number)
    if budget is not None:
        axes.axhline(budget, color=INK, linewidth=1.2, dashes=(4, 3))
    return figure


def score_distribution(edges: Floats, counts_all: Floats, counts_alerting: Floats, *, threshold_p: float) -> Figure:
    """Draw how many events are how rare (logarithmic), the alerting ones in the alert colour, and the alert line.

    Parameters
    ----------
    edges : ndarray of shape (B + 1,)
        Edges of the bins, in surprise = -log10 p.
    counts_all, counts_alerting : ndarray of shape (B,)
        Events per bin, and those of them that alert.
    threshold_p : float
        The p-value at which events begin to alert; NaN if the decision has no single line.
    """
    figure = _figure(WIDE)
    axes = _axes(figure, 52, 12, 30, 30)
    axes.set_yscale("log")
    every, alerting = np.asarray(counts_all, np.float64), np.asarray(counts_alerting, np.float64)
    for counts, colour in ((every, ACCENT), (alerting, ALERT)):
        axes.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, color=colour, linewidth=0)
    axes.set_ylim(0.5, max(10.0, float(every.max(initial=1)) * 2))
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _labels(axes.yaxis, short_number)
    _labels(axes.xaxis, _one_in_short)
    if 0 < threshold_p <= 1:
        axes.axvline(-float(np.log10(threshold_p)), color=INK, linewidth=1.2, dashes=(4, 3))
    return figure


def calibration_check(nominal: Floats, observed: Floats, low: Floats, high: Floats) -> Figure:
    """Draw how often held-out events passed each p-value, against how often they should; rarer is right and up.

    Parameters
    ----------
    nominal, observed : ndarray of shape (C,)
        The stated p-value, and the share of held-out events at or below it. A share of 0 is left out.
    low, high : ndarray of shape (C,)
        Interval of the observed share.
    """
    figure = _figure(NARROW)
    axes = _axes(figure, 66, 12, 24, 30)
    axes.grid(True, axis="x", color=LINE, linewidth=1)
    stated = -np.log10(np.asarray(nominal, np.float64))
    last = max(float(np.ceil(stated.max(initial=1.0) * 2) / 2), 1.0)
    floor = 10 ** -(last + 1.0)
    centre, above, below = (-np.log10(np.maximum(np.asarray(v, np.float64), floor)) for v in (observed, low, high))
    axes.plot([0, last], [0, last], color=MUTED, linewidth=1.2, dashes=(4, 3))
    axes.fill_between(stated, below, above, color=ACCENT, alpha=0.2, linewidth=0)
    seen = np.asarray(observed, np.float64) > 0
    axes.plot(stated[seen], centre[seen], color=ACCENT, linewidth=2, solid_capstyle="round")
    _segments(axes, stated[seen], centre[seen], centre[seen], edgecolor=ACCENT, linewidth=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
        _labels(axis, _one_in_short)
    axes.set_xlim(0, last + 0.15)
    axes.set_ylim(0, last + 0.15)
    return figure


def training_curves(epoch: NDArray[Any], train_loss: Floats, valid_loss: Floats) -> Figure:
    """Draw the training loss (dashed) and the held-out loss (solid) of one model by epoch.

    Parameters
    ----------
    epoch, train_loss, valid_loss : ndarray of shape (E,)
        NaN where a loss was not taken.
    """
    figure = _figure(NARROW)
    axes = _axes(figure, 66, 12, 24, 30)
    x = np.asarray(epoch, np.float64)
    for loss, colour, dash in ((train_loss, MUTED, (4, 3)), (valid_loss, ACCENT, (None, None))):
        y = np.asarray(loss, np.float64)
        axes.plot(x, y, color=colour, linewidth=2, dashes=dash)
        _segments(axes, x, y, y, edgecolor=colour, linewidth=6)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.04, y=0.12)
    _labels(axes.xaxis, lambda value: f"{value:.0f}")
    _labels(axes.yaxis, lambda value: f"{value:.4g}")
    return figure


# ---- SVG ------------------------------------------------------------------------------------------------------------
def svg_text(figure: Figure, *, prefix: str, label: str) -> str:
    """Write a figure as one ``<svg>`` element that stands inside an HTML page or alone in a file.

    Parameters
    ----------
    figure : Figure
        From one of the functions above.
    prefix : str
        Start of every id in this figure, unique in its page (letters, digits, hyphens).
    label : str
        What the figure shows, for a reader who cannot see it; escaped here.

    Returns
    -------
    str
        The element, without an XML declaration. The same figure gives the same text.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "anomaly"}):  # read from nowhere else by the backend
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)  # type: ignore[no-untyped-call]
    drawing = ET.fromstring(buffer.getvalue())
    width, height = (side * 72 for side in figure.get_size_inches())
    root = ET.Element(
        "svg", {"xmlns": _SVG[1:-1], "viewBox": f"0 0 {width:.0f} {height:.0f}", "role": "img", "aria-label": label,
                "width": f"{width:.0f}", "height": f"{height:.0f}", "stroke-linejoin": "round"}
    )  # fmt: skip
    names: dict[str, str] = {}
    for element in drawing.iter():
        if (name := element.get("id")) and element.tag in (_SVG + "path", _SVG + "clipPath"):
            names.setdefault(name, f"{prefix}-{len(names)}")
    root.extend(_tidied(drawing, names))
    return ET.tostring(root, encoding="unicode")


def _tidied(parent: ET.Element, names: dict[str, str]) -> Sequence[ET.Element]:
    """Return the children rewritten: own ids, CSS variables, short numbers, no empty groups, no global style rule."""
    kept: list[ET.Element] = []
    for child in parent:
        tag = child.tag.removeprefix(_SVG)
        if tag in ("metadata", "style"):
            continue
        inner = _tidied(child, names)
        attributes = _attributes(child, names)
        if tag in ("g", "defs") and not inner:
            continue
        if tag == "g" and not attributes:
            kept.extend(inner)
            continue
        element = ET.Element(tag, attributes)
        element.text = (child.text or "").strip() or None
        element.extend(inner)
        kept.append(element)
    return kept


def _attributes(element: ET.Element, names: dict[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for key, value in element.items():
        if key == "style":
            kept.update(_style(value))
        elif key == "id":
            if value in names:
                kept["id"] = names[value]
        elif key.endswith("href"):
            kept["href"] = "#" + names[value.removeprefix("#")]
        elif key == "clip-path":
            kept[key] = f"url(#{names[value[5:-1]]})"
        elif not value.startswith("rotate(-0 "):
            kept[key] = _short_path(value) if key == "d" else _rounded(value)
    return kept


def _style(text: str) -> dict[str, str]:
    """Turn matplotlib's style into attributes, and what holds a colour variable into a style again."""
    rules = dict(rule.split(": ", 1) for rule in text.split("; "))
    rules.pop("font-family", None)
    style = ";".join(f"{k}:var({_VARIABLES[v]},{v})" for k, v in rules.items() if v in _VARIABLES)
    kept = {k: _rounded(v.removesuffix("px")) for k, v in rules.items() if v not in _VARIABLES}
    return {**kept, "style": style} if style else kept


def _rounded(text: str) -> str:
    """Numbers with one decimal: a tenth of a px cannot be seen."""
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), text)


def _short_path(text: str) -> str:
    r"""Rewrite a path in fewer characters; vertical segments alone by their steps, a third of the size.

    >>> _short_path("M 57.27 198.64 \nL 65 115 \nz \n"), _short_path("M 9.98 20 L 9.98 5 M 10.5 20 L 10.5 20 ")
    ('M57.3 198.6L65 115z', 'm10 20v-15m.5 15v0')
    """
    path = re.sub(r" ?([MLHVCQZz]) ?", r"\1", " ".join(_rounded(text).split()))
    segments = re.findall(r"M([\d.-]+) ([\d.-]+)L\1 ([\d.-]+)", path)
    if not segments or path.count("M") != len(segments) or path.count("L") != len(segments):
        return path
    tenths = np.rint(np.array(segments, np.float64) * 10).astype(np.int64)
    steps, end_x, end_y = [], 0, 0
    for x, start, end in tenths.tolist():
        across, down = _tenths(x - end_x), _tenths(start - end_y)
        steps.append(f"m{across}{'' if down[0] == '-' else ' '}{down}v{_tenths(end - start)}")
        end_x, end_y = x, end
    return "".join(steps)


def _tenths(value: int) -> str:
    whole, rest = divmod(abs(value), 10)
    return ("-" if value < 0 else "") + (f"{whole or ''}.{rest}" if rest else f"{whole}")
