"""Report: values -> one self-contained HTML page. Nothing is computed here; values are formatted and laid out.

The page opens from disk and asks the network for nothing: style, script and figures stand inside it, and its own
Content-Security-Policy forbids every connection and every script but the one whose hash it names. All text that comes
from data is escaped by the template and isolated (``<bdi>``), so that a name cannot change the page or its direction.
The same `ReportData` gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from anomaly import figures
from anomaly.figures import MONTHS, one_in
from anomaly.files import whole_file

__all__ = ["CaseTimeline", "ReportData", "render", "write_report"]

_NAME, _SENTENCE = 80, 240  # characters of a name and of a sentence before they are cut
_MOST_CASES = 1000  # rows of the table of cases; the page says so when there are more
_MOST_EVENTS = 250  # events in one timeline; the page says so when there are more


@dataclass(frozen=True)
class CaseTimeline:
    """What one case's details show.

    Attributes
    ----------
    entity : str
        Name of the entity.
    time : ndarray of datetime64, shape (n,)
        UTC, not decreasing: the entity's history up to the case, and the case.
    value : ndarray of shape (n,), or None
        The value to follow, such as the amount, in its own unit; NaN = missing.
    value_name : str
        Its name; "" if there is no value.
    surprise : ndarray of shape (n,)
        -log10 p of each event; NaN = no statement.
    alerting : ndarray of bool, shape (n,)
        The events that alert, those of the entity's other cases too.
    events : DataFrame
        The events of the case and a few before it, ready to show. Columns with a meaning of their own, each optional:
        ``alerting`` (Boolean, marks the row), ``surprise`` (Float64, shown as "1 in n"), ``reasons`` (List[String] or
        String). Times with a zone are shown in the report's zone; all else is shown as text.
    low, high : ndarray of shape (n,), or None
        Range in which each value was expected, in the value's unit; NaN = not known.
    """

    entity: str
    time: NDArray[np.datetime64]
    value: NDArray[np.float64] | None
    value_name: str
    surprise: NDArray[np.float64]
    alerting: NDArray[np.bool_]
    events: pl.DataFrame
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything on the page, in its order. A frame without rows leaves its part of the page out.

    Attributes
    ----------
    title : str
        Heading and title of the page.
    created : datetime
        When the report was made; shown in its own zone.
    summary : mapping of str to str
        Label -> text, shown as tiles, in order.
    settings, versions : mapping of str to str
        Label -> text, shown as lists, in order.
    command : str or None
        The command that makes this page again.
    threshold_p : float
        p-value at which events begin to alert; NaN if the decision has no single line.
    threshold_text : str
        The decision in a sentence.
    score_histogram : (edges (B + 1,), counts of all events (B,), counts of alerting events (B,))
        On surprise = -log10 p.
    alerts_per_day : DataFrame
        day (Date), cases; further columns are not shown.
    cases : DataFrame
        The table of `anomaly.alerts.build_cases`, with reasons; ranked.
    timelines : mapping of int to CaseTimeline
        Case number -> details, for the top cases; shown in this order.
    calibration : DataFrame
        nominal, observed, low, high: stated p-values and the observed shares on held-out events.
    histories : mapping of str to DataFrame
        Model -> epoch, train_loss, valid_loss.
    rejects : DataFrame
        reason, rows, example.
    notes : sequence of str
        Things worth telling.
    budget_per_day : float or None
        Cases per day that the desk asked for; a line in the figure of alerts per day.
    money_name : str
        Heading of the money column, such as "Amount (EUR)"; "" gives "Money".
    time_zone : str
        Zone in which all times are shown, such as "Europe/Paris".
    """

    title: str
    created: datetime
    summary: Mapping[str, str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    command: str | None
    threshold_p: float
    threshold_text: str
    score_histogram: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    alerts_per_day: pl.DataFrame
    cases: pl.DataFrame
    timelines: Mapping[int, CaseTimeline] = field(default_factory=dict)
    calibration: pl.DataFrame = field(default_factory=pl.DataFrame)
    histories: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    rejects: pl.DataFrame = field(default_factory=pl.DataFrame)
    notes: Sequence[str] = ()
    budget_per_day: float | None = None
    money_name: str = ""
    time_zone: str = "UTC"


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the page to `path`: whole or not at all.

    Returns
    -------
    Path
        The file written. Folders above it are made; an older file is replaced.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as draft:
        draft.write_bytes(render(data).encode())
    return target


def render(data: ReportData) -> str:
    """Return the page as text.

    Parameters
    ----------
    data : ReportData

    Returns
    -------
    str
        One HTML document, without any address to load from.
    """
    environment = _environment()
    script, style = (_source(name) for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rows = _case_rows(data)
    by_case = {row["case"]: row for row in rows}
    page = environment.get_template("report.html.j2").render(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        title=_cut(data.title, _NAME),
        created=f"{_day(data.created)}, {data.created:%H:%M} {data.created.tzname() or ''}".strip(),
        threshold_text=_cut(data.threshold_text, 4 * _SENTENCE),
        summary=[(_cut(label, _NAME), _cut(text, _NAME)) for label, text in data.summary.items()],
        figures=_overview_figures(data),
        rows=rows,
        n_cases=data.cases.height,
        has_money=any(row["money"] for row in rows),
        money_name=_cut(data.money_name, _NAME),
        zone=data.time_zone,
        details=[_detail(data, case, timeline, by_case.get(case)) for case, timeline in data.timelines.items()],
        rejects=[
            (_cut(reason, _SENTENCE), int(n), _cut(example, _SENTENCE))
            for reason, n, example in _rows(data.rejects, "reason", "rows", "example")
        ],
        notes=[_cut(note, 4 * _SENTENCE) for note in data.notes],
        settings=_pairs(data.settings),
        versions=_pairs(data.versions),
        command=_printable(data.command or ""),
    )
    return page.encode("utf-8", "replace").decode()  # half a surrogate pair, which UTF-8 cannot hold, becomes "?"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("anomaly", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()


# ---- text -----------------------------------------------------------------------------------------------------------
def _cut(value: object, most: int) -> str:
    r"""Return text on one line without control characters, at most `most` characters, an ellipsis where it was cut.

    >>> _cut("a\x00b  c", 9), _cut("0123456789", 6), _cut(None, 6)
    ('a�b c', '01234…', '')
    """
    text = "" if value is None else str(value)[: 20 * most]
    text = " ".join(_printable(text).split())
    return text if len(text) <= most else text[: most - 1].rstrip("\u200d ") + "…"


def _printable(text: str) -> str:
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and not c.isspace() else c for c in text)


def _pairs(items: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(_cut(label, _NAME), _cut(text, _SENTENCE)) for label, text in items.items()]


def _day(moment: date) -> str:
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def _hours(start: datetime, end: datetime) -> str:
    """Return the time from start to end, with the later day's date if it is another one."""
    if end.date() != start.date():
        return f"{start:%H:%M} – {end.day} {MONTHS[end.month - 1]} {end:%H:%M}"
    return f"{start:%H:%M} – {end:%H:%M}" if f"{end:%H:%M}" != f"{start:%H:%M}" else f"{start:%H:%M}"


def _number(value: float) -> str:
    """Return a number with separators and up to four decimals.

    >>> _number(1234.5), _number(3.0), _number(float("nan"))
    ('1,234.5', '3', '')
    """
    text = "" if value != value else f"{value:,.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _rarity(surprise: float) -> str:
    """Surprise -> "1 in n"; the power stays where a float can hold it."""
    return one_in(10.0 ** -min(surprise, 300.0))


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _rows(frame: pl.DataFrame, *columns: str) -> Iterable[tuple[Any, ...]]:
    return frame.select(columns).iter_rows() if frame.height else ()


def _local(times: pl.Series, zone: str) -> pl.Series:
    """Return times, UTC unless they say otherwise, as the clock of `zone` showed them."""
    if times.dtype == pl.Datetime and times.dtype.time_zone is None:  # type: ignore[attr-defined]
        times = times.dt.replace_time_zone("UTC")
    return times.dt.convert_time_zone(zone).dt.replace_time_zone(None)


# ---- figures --------------------------------------------------------------------------------------------------------
def _figure(figure: figures.Figure, prefix: str, shape: str, title: str, lead: str, keys: list[tuple[str, str]],
            label: str) -> dict[str, Any]:  # fmt: skip
    svg = Markup(figures.svg_text(figure, prefix=prefix, label=label))
    return {"svg": svg, "shape": shape, "title": title, "lead": lead, "legend": keys}


def _overview_figures(data: ReportData) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if data.alerts_per_day.height:
        found.append(_day_figure(data.alerts_per_day, data.budget_per_day))
    edges, every, alerting = data.score_histogram
    if len(every):
        keys = [("", "events"), ("alert", "alerting events")]
        if 0 < data.threshold_p <= 1:
            keys.append(("dashed ink", f"alert line: {one_in(data.threshold_p)}"))
        found.append(_figure(
            figures.score_distribution(edges, every, alerting, threshold_p=data.threshold_p),
            "scores", "wide", "How strange the events are",
            "Events by rarity; the axis upward is logarithmic.",
            keys,
            f"Histogram of {_plural(int(np.sum(every)), 'event')} by rarity on a logarithmic count axis, "
            f"{int(np.sum(alerting)):,} of them alerting"
            + (f"; alert line at {one_in(data.threshold_p)}." if 0 < data.threshold_p <= 1 else "."),
        ))  # fmt: skip
    if data.calibration.height:
        check = data.calibration.select(pl.col("nominal", "observed", "low", "high").cast(pl.Float64))
        columns = [column.to_numpy() for column in check]
        points = [f"stated {one_in(s)}, observed {one_in(o)}" for s, o in zip(columns[0], columns[1], strict=True)]
        found.append(_figure(
            figures.calibration_check(*columns), "calibration", "narrow", "Are the p-values right?",
            "Stated rarity to the right, observed upward. Below the dashes: more alerts than promised.",
            [("line", "observed"), ("interval", "its interval"), ("dashed", "as stated")],
            f"Stated against observed rarity on held-out events: {'; '.join(points[:40])}.",
        ))  # fmt: skip
    found.extend(_training_figure(i, *item) for i, item in enumerate(data.histories.items()) if item[1].height)
    return found


def _day_figure(per_day: pl.DataFrame, budget: float | None) -> dict[str, Any]:
    days, cases = per_day["day"].cast(pl.Date), per_day["cases"].to_numpy()
    first, last = (_day(d) for d in (days.min(), days.max()) if isinstance(d, date))
    keys = [("", "cases that start on the day")]
    if budget is not None:
        keys += [("alert", "above the budget"), ("dashed ink", f"budget: {budget:,g} per day")]
    label = f"Bars: cases per day from {first} to {last}, at most {int(cases.max()):,} on one day" + (
        "." if budget is None else f"; budget {budget:g} per day."
    )
    figure = figures.alerts_per_day(days.to_numpy(), cases, budget=budget)
    return _figure(figure, "days", "wide", "Cases per day", f"{first} – {last}", keys, label)


def _training_figure(number: int, model: str, history: pl.DataFrame) -> dict[str, Any]:
    name = _cut(model, _NAME)
    columns = (history[column].cast(pl.Float64).to_numpy() for column in ("epoch", "train_loss", "valid_loss"))
    figure = figures.training_curves(*columns)
    return _figure(figure, f"training-{number}", "narrow", f"Training: {name}", "Loss by epoch; lower is better.",
                   [("line", "held-out events"), ("dashed", "training events")],
                   f"Training and held-out loss of {name} over {_plural(history.height, 'epoch')}.")  # fmt: skip


# ---- cases ----------------------------------------------------------------------------------------------------------
def _case_rows(data: ReportData) -> list[dict[str, Any]]:
    """Return the table of cases as text, with plain numbers beside it for sorting."""
    shown = data.cases.head(_MOST_CASES)
    if not shown.height:
        return []
    starts, ends = (_local(shown[name], data.time_zone) for name in ("start", "end"))
    widest = max(float(shown["surprise"].max()), 1e-9)  # type: ignore[arg-type]
    amounts = shown["money"].cast(pl.Float64).fill_nan(None).to_list()
    decimals = 0 if all(amount is None or amount % 1 == 0 for amount in amounts) else 2
    rows = []
    for case, start, end, money in zip(shown.iter_rows(named=True), starts, ends, amounts, strict=True):
        rows.append({
            "case": case["case"],
            "entity": _cut(case["entity"], _NAME) or "(empty)",
            "detail": case["case"] in data.timelines,
            "day": _day(start),
            "hours": _hours(start, end),
            "window": (start, end),
            "start": f"{case['start'].timestamp():.0f}",
            "alerts": case["alerts"],
            "rarity": one_in(case["p_value"]),
            "surprise": f"{case['surprise']:.3f}",
            "share": f"{100 * case['surprise'] / widest:.0f}",
            "money": "" if money is None else f"{money:,.{decimals}f}",
            "money_sort": "" if money is None else f"{money:.2f}",
            "reasons": [_cut(reason, _SENTENCE) for reason in case.get("reasons") or ()],
        })  # fmt: skip
    return rows


def _detail(data: ReportData, case: int, timeline: CaseTimeline, row: Mapping[str, Any] | None) -> dict[str, Any]:
    local = _local(pl.Series(timeline.time.astype("datetime64[us]")), data.time_zone).to_numpy()
    window = None if row is None else (np.datetime64(row["window"][0], "us"), np.datetime64(row["window"][1], "us"))
    part = _drawn(local, timeline.alerting, window)
    time, alerting = local[part], timeline.alerting[part]
    value, low, high = (None if v is None else v[part] for v in (timeline.value, timeline.low, timeline.high))
    figure = figures.case_timeline(time, value, timeline.surprise[part], alerting, low=low, high=high, window=window,
                                   threshold_p=data.threshold_p)  # fmt: skip
    name = _cut(timeline.value_name, _NAME)
    first, last = (_day(moment) for moment in time[[0, -1]].tolist()) if len(time) else ("", "")
    keys = [("dot", "event"), ("diamond", "alerting event")]
    if low is not None and high is not None and value is not None:
        keys.append(("band", "expected range"))
    return {
        "case": case,
        "entity": _cut(timeline.entity, _NAME) or "(empty)",
        "row": row,
        "value_name": name if value is not None else "",
        "legend": [*keys, ("span", "the case"), ("dashed ink", "alert line")],
        "svg": Markup(figures.svg_text(
            figure, prefix=f"case-{case}-figure",
            label=f"Timeline of case {case}: {_plural(len(time), 'event')} from {first} to {last}, "
            f"{int(alerting.sum()):,} alerting" + (f"; {name} above, rarity below." if value is not None else "."),
        )),
        "cut": f"{len(time):,} of {len(local):,} events are drawn: the case and those before it."
        if len(time) < len(local) else "",
        "events": _event_table(timeline, data.time_zone),
    }  # fmt: skip


def _drawn(time: NDArray[np.datetime64], alerting: NDArray[np.bool_],
           window: tuple[np.datetime64, np.datetime64] | None) -> slice:  # fmt: skip
    """Return which events a timeline holds: all, or if they are too many the case's last and those before it."""
    if len(time) <= _MOST_EVENTS:
        return slice(None)
    case = alerting if window is None else alerting & (time >= window[0]) & (time <= window[1])
    stop = int(np.flatnonzero(case)[-1]) + 1 + _MOST_EVENTS // 20 if case.any() else len(time)
    return slice(max(0, min(stop, len(time)) - _MOST_EVENTS), min(stop, len(time)))


def _event_table(timeline: CaseTimeline, zone: str) -> dict[str, Any]:
    """Return headings (name, to the right?) and rows (alerting?, cells) of a case's events."""
    events = timeline.events
    marks = events["alerting"].to_list() if "alerting" in events.columns else [False] * events.height
    heads: list[tuple[str, str]] = []
    columns: list[list[str]] = []
    for column in events.drop("alerting", strict=False).get_columns():
        right = column.dtype.is_numeric() or column.name == timeline.value_name
        heads.append(({"surprise": "rarity"}.get(column.name, _cut(column.name, _NAME)),
                      "number" if right else "text" if column.name == "reasons" else ""))  # fmt: skip
        columns.append(_cells(column, zone))
    return {"heads": heads, "rows": list(zip(marks, zip(*columns, strict=True), strict=True)) if columns else []}


def _cells(column: pl.Series, zone: str) -> list[str]:
    if column.dtype == pl.Datetime:
        return ["" if t is None else f"{_day(t)} {t:%H:%M:%S}" for t in _local(column, zone)]
    values = column.to_list()
    if column.name == "surprise":
        return ["" if v is None else _rarity(v) for v in values]
    if column.dtype.is_float():
        return ["" if v is None else _number(v) for v in values]
    if column.dtype == pl.List:
        return [_cut("; ".join(map(str, v or ())), _SENTENCE) for v in values]
    return [_cut(v, _SENTENCE if column.name == "reasons" else _NAME) for v in values]
