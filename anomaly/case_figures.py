"""Figures of one case as compact SVG: values -> text. Nothing is computed here.

A report holds hundreds of cases, so these figures are written by hand: no ids, classes in place of styles, one path
for all marks of a kind, half pixels. Their colours stand in the page's style sheet, under ``svg.sketch``. No name that
comes from the data is drawn: rows of categories carry letters, which the page explains beside the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from html import escape

import numpy as np
from numpy.typing import NDArray

from anomaly.figures import short_number
from anomaly.wording import MONTHS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

WIDTH, LEFT, RIGHT = 640, 62, 8
_VALUE, _GAP, _SURPRISE, _STRIP, _AXIS = 104, 30, 44, 11, 22  # heights of the rows
_SPACE = 12  # between rows
STRIP_CLASSES = ("", "u", "o", "n")  # missing, usual, seen before, first time
_MAP = (300, 190)
_ROUND = (1, 2, 5)


def case_figure(
    time: NDArray[np.datetime64],
    value: Floats | None,
    surprise: Floats,
    alerting: Mask,
    *,
    label: str,
    low: Floats | None = None,
    high: Floats | None = None,
    inside: Mask,
    remembered: Mask,
    gap: Floats,
    strips: Sequence[NDArray[np.int8]] = (),
    alert_line: float = float("nan"),
) -> str:
    """Draw an entity's events in order, each as wide as the next: value, gap, rarity and categories above each other.

    Equal steps keep a burst of minutes as legible as the months before it; the row of gaps tells the time between.

    Parameters
    ----------
    time : ndarray of datetime64, shape (n,)
        Not decreasing, as the wall clock showed it.
    value : ndarray of shape (n,), optional
        The value to follow; NaN = missing.
    surprise : ndarray of shape (n,)
        -log10 p; NaN = not scored.
    alerting, inside, remembered : ndarray of bool, shape (n,)
        Events that alert (diamonds), those from the case's first alert on (shaded), and those old enough at its start
        to be in the models' memory (what is not, is shaded in grey).
    label : str
        What the figure shows, for a reader who cannot see it.
    low, high : ndarray of shape (n,), optional
        Expected range of each value.
    gap : ndarray of shape (n,)
        Seconds since the previous event of the entity; NaN = none.
    strips : sequence of ndarray of int8, shape (n,)
        Per category: 0 missing, 1 usual, 2 seen before, 3 for the first time.
    alert_line : float
        Surprise at which events begin to alert; NaN = none.
    """
    n = len(time)
    step = (WIDTH - LEFT - RIGHT) / max(n, 1)
    x = np.rint((LEFT + (np.arange(n) + 0.5) * step) * 2) / 2
    parts: list[str] = []
    top = 6.0
    if value is not None:
        parts += _value_row(x, np.asarray(value, np.float64), np.asarray(alerting, bool), low, high, top)
        top += _VALUE + _SPACE
    parts += _bar_row(x, _heights(np.log10(np.maximum(gap, 1.0)), _GAP, 7.0), top + _GAP, step, "gap", "m")
    top += _GAP + _SPACE
    parts += _surprise_row(x, surprise, np.asarray(alerting, bool), alert_line, top, step)
    top += _SURPRISE + _SPACE
    for at, codes in enumerate(strips):
        parts.append(_text(LEFT - 8, top + 9, chr(ord("a") + at), "e"))
        for kind, name in enumerate(STRIP_CLASSES):
            if kind and (found := _runs(codes == kind, step, top, _STRIP - 2)):
                parts.append(f'<path class="{name}" d="{found}"/>')
        top += _STRIP + 3
    bottom = top - 4
    shades = [
        f'<path class="{name}" d="{runs}"/>'
        for name, mask in (("q", ~np.asarray(remembered, bool) & ~np.asarray(inside, bool)), ("w", inside))
        if (runs := _runs(np.asarray(mask, bool), step, 2, bottom - 2))
    ]
    parts = [*shades, *parts, *_dates(time, x, bottom + 16)]
    return _svg(WIDTH, int(bottom + _AXIS), label, parts)


def _svg(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    """One figure around its parts."""
    return (
        f'<svg class="sketch" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{_n(x)}" y="{_n(y)}">{escape(text)}</text>'


def _n(value: float) -> str:
    """A coordinate in as few characters as half a px allows.

    >>> _n(3.0), _n(2.5), _n(-0.1)
    ('3', '2.5', '0')
    """
    half = round(value * 2) / 2
    return f"{half:g}" if half else "0"


def _runs(mask: Mask, step: float, top: float, height: float) -> str:
    """Path of boxes over the events in `mask`, neighbours as one box."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    boxes = []
    for first, last in edges.reshape(-1, 2):
        wide = max(round((last - first) * step * 2) / 2 - (1 if step > 5 else 0), 1)
        boxes.append(f"M{_n(LEFT + first * step)} {_n(top)}h{_n(wide)}v{_n(height)}h-{_n(wide)}z")
    return "".join(boxes)


def _scale(values: Floats) -> tuple[Callable[[Floats], Floats], list[float]]:
    """Value -> share of the height, and round values for its labels; logarithmic beyond a hundredfold."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low > 0 and high > 100 * low:
        first, last = np.log10(low / 1.3), np.log10(high * 1.3)
        ticks = [10.0**power for power in range(int(np.ceil(first)), int(np.floor(last)) + 1)]
        return lambda v: (np.log10(np.maximum(v, 10.0**first)) - first) / (last - first), ticks[:: len(ticks) // 4 + 1]
    low, high = min(low, 0.0), max(high, 0.0)
    high += 0.06 * ((high - low) or 1.0)
    rough = (high - low) / 3
    unit = 10.0 ** np.floor(np.log10(rough))
    step = unit * next((r for r in _ROUND if r * unit >= rough), 10)
    ticks = [float(t) for t in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]
    return lambda v: (v - low) / (high - low), ticks


def _value_row(x: Floats, value: Floats, alerting: Mask, low: Floats | None, high: Floats | None,
               top: float) -> list[str]:  # fmt: skip
    """Points over their expected ranges; a range far wider than every value is cut at the figure's edge."""
    ranges = low is not None and high is not None
    shown = [value]
    if low is not None and high is not None:
        largest = 3 * float(np.max(np.abs(value[np.isfinite(value)]), initial=0.0))
        shown += [low[low > 0], high[high < largest]]
    share, ticks = _scale(np.concatenate(shown))

    def y(values: Floats) -> Floats:
        return top + _VALUE * (1 - np.clip(share(values), 0.0, 1.0))

    parts = []
    for tick in ticks:
        at = float(y(np.array([tick]))[0])
        parts.append(f'<path class="g" d="M{LEFT} {_n(at)}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, at + 4, short_number(tick), "e"))
    if ranges:
        parts.append(_path("r", x, y(np.asarray(low, np.float64)), y(np.asarray(high, np.float64))))
    level = y(value)
    parts.append(_path("p", x[~alerting], level[~alerting], level[~alerting]))
    return [*parts, _diamonds(x[alerting], level[alerting])]


def _diamonds(x: Floats, y: Floats) -> str:
    known = np.isfinite(y)
    marks = "".join(f"M{_n(a)} {_n(b - 5)}l5 5-5 5-5-5z" for a, b in zip(x[known], y[known], strict=True))
    return f'<path class="d" d="{marks}"/>' if marks else ""


def _path(name: str, x: Floats, start: Floats, end: Floats) -> str:
    """One vertical segment per value; a segment of no height is a dot by the rule for round caps."""
    known = np.isfinite(start) & np.isfinite(end)
    steps = [f"M{_n(a)} {_n(b)}v{_n(c - b)}" for a, b, c in zip(x[known], start[known], end[known], strict=True)]
    return f'<path class="{name}" d="{"".join(steps)}"/>' if steps else ""


def _heights(values: Floats, height: float, most: float) -> Floats:
    known = values[np.isfinite(values)]
    return values / max(float(known.max(initial=0.0)), most) * height


def _bar_row(x: Floats, height: Floats, base: float, step: float, name: str, kind: str) -> list[str]:
    bars = _path(kind, x, np.full(len(x), base), base - height)
    return [_text(LEFT - 8, base - 2, name, "e"), _widened(bars, step)]


def _widened(path: str, step: float) -> str:
    return path.replace(" d=", f' stroke-width="{_n(min(max(step * 0.6, 1.5), 7))}" d=', 1)


def _surprise_row(x: Floats, surprise: Floats, alerting: Mask, line: float, top: float, step: float) -> list[str]:
    known = np.isfinite(line)
    height = _heights(np.minimum(surprise, 300.0), _SURPRISE, 1.12 * line if known else 1.0)
    most = max(float(surprise[np.isfinite(surprise)].max(initial=0.0)), 1.12 * line if known else 1.0)
    base = top + _SURPRISE
    parts = _bar_row(x[~alerting], height[~alerting], base, step, "rarity", "s")
    parts.append(_widened(_path("x", x[alerting], np.full(int(alerting.sum()), base), base - height[alerting]), step))
    if known:
        parts.append(f'<path class="l" d="M{LEFT} {_n(base - line / most * _SURPRISE)}H{WIDTH - RIGHT}"/>')
    return parts


def _dates(time: NDArray[np.datetime64], x: Floats, y: float) -> list[str]:
    """Dates below the first event and below later ones, far enough apart; hours where all is within two days."""
    if not len(time):
        return []
    moments: list[datetime] = time.astype("datetime64[us]").tolist()
    short = moments[-1].timestamp() - moments[0].timestamp() < 2 * 86_400
    parts, last = [], -np.inf
    for at, moment in zip(x, moments, strict=True):
        if at - last >= 120 and (at <= WIDTH - 60 or last < 0):
            name = f"{moment:%H:%M}" if short else f"{moment.day} {MONTHS[moment.month - 1]}"
            parts.append(_text(at, y, name, "b" if last < 0 else "c"))
            last = at
    return parts


def case_map(latitude: Floats, longitude: Floats, alerting: Mask, *, label: str) -> str:
    """Draw the places of an entity's events on a plain grid, north up, with a scale; the case's in the alert colour.

    Parameters
    ----------
    latitude, longitude : ndarray of shape (n,)
        Degrees, NaN = missing; an equirectangular map around their middle (longitudes are not joined across 180°).
    alerting : ndarray of bool, shape (n,)
        Events that alert: diamonds, joined in order.
    label : str
        What the figure shows, for a reader who cannot see it.
    """
    known = np.isfinite(latitude) & np.isfinite(longitude)
    width, height = _MAP
    parts = [f'<path class="f" d="M.5 .5h{width - 1}v{height - 1}h-{width - 1}z"/>']
    if not known.any():
        return _svg(width, height, label, parts)
    lat, lon, marked = latitude[known], longitude[known], np.asarray(alerting, bool)[known]
    middle = (lat.min() + lat.max()) / 2
    squeeze = max(float(np.cos(np.radians(middle))), 0.05)
    east, north = (lon - (lon.min() + lon.max()) / 2) * squeeze * 111.2, (lat - middle) * 111.2
    km = max(float(np.ptp(east)) / (width - 36), float(np.ptp(north)) / (height - 56), 0.02)  # per px
    x, y = width / 2 + east / km, (height - 20) / 2 - north / km
    plain = np.unique(np.rint(np.column_stack([x, y])[~marked]), axis=0)
    parts.append(_path("p", plain[:, 0], plain[:, 1], plain[:, 1]))
    if marked.any():
        line = "L".join(f"{_n(a)} {_n(b)}" for a, b in zip(x[marked], y[marked], strict=True))
        marks = np.unique(np.rint(np.column_stack([x, y])[marked]), axis=0)
        parts.append(f'<path class="t" d="M{line}"/>')
        parts.append(_diamonds(marks[:, 0], marks[:, 1]))
    length = _round_below(80 * km)
    parts.append(f'<path class="k" d="M12 {height - 12}h{_n(length / km)}"/>')
    parts.append(_text(18 + length / km, height - 8, f"{length:g} km"))
    return _svg(width, height, label, parts)


def _round_below(value: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `value`.

    >>> _round_below(80.0), _round_below(1.9), _round_below(5.0)
    (50.0, 1.0, 5.0)
    """
    unit = 10.0 ** float(np.floor(np.log10(value)))
    return float(max(r for r in _ROUND if r * unit <= value * (1 + 1e-9)) * unit)
