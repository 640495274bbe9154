"""Report: values -> one self-contained HTML page, PDF or Markdown text. Nothing is computed here, only laid out.

The page opens from disk and asks the network for nothing: style, script and figures stand inside it, and its own
Content-Security-Policy forbids every connection and every script but the one whose hash it names. All text that comes
from data is escaped by the template and isolated (``<bdi>``), so that a name cannot change the page or its direction.
The same `ReportData` gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from anomaly import figures
from anomaly.case_figures import case_figure, case_map
from anomaly.casework import LIKENESS
from anomaly.errors import ParameterError
from anomaly.files import whole_file
from anomaly.printing import needed_browser, write_pdf
from anomaly.report_data import CaseTimeline, ReportData
from anomaly.wording import NAME, SENTENCE, cells, cut, day, hours, local, one_in, plural, printable

__all__ = ["CaseTimeline", "ReportData", "check_report", "render", "render_markdown", "write_report"]

_MOST_CASES = 1000  # rows of the table of cases; the page says so when there are more
_HEADING = 24  # characters of a heading in the table
_OPEN, _UNFOLDED = 3, 20  # cases whose details are open at first; on paper and in Markdown
SUFFIXES = (".html", ".pdf", ".md")


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the report to `path`, whole or not at all: a page, or by its suffix .md Markdown text, .pdf a printed page.

    Returns
    -------
    Path
        The file written. Folders above it are made; an older file is replaced.

    Raises
    ------
    ParameterError
        For a suffix that is none of these.
    PackageError
        For a PDF without an installed browser.
    """
    target = check_report(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    kind = target.suffix.lower()
    with whole_file(target) as draft:
        if kind == ".pdf":
            write_pdf(render(data, unfolded=_UNFOLDED), draft)
        else:
            draft.write_bytes((render_markdown(data) if kind == ".md" else render(data)).encode())
    return target


def check_report(path: str | os.PathLike[str]) -> Path:
    """Refuse what `write_report` could not write, so that long work need not end in an error."""
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in SUFFIXES:
        raise ParameterError(f"{target}: a report is written as {', '.join(SUFFIXES)}; got suffix {target.suffix!r}")
    if kind == ".pdf":
        needed_browser()
    return target


def render(data: ReportData, *, unfolded: int = _OPEN) -> str:
    """Return the page as text.

    Parameters
    ----------
    data : ReportData
    unfolded : int
        Cases whose details are open at first; on paper, the others are left out.

    Returns
    -------
    str
        One HTML document, without any address to load from.
    """
    script = _source("report.js")
    style = "\n".join(_source(name) for name in ("report.css", "cases.css", "small.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
            "form-action 'none'",
            style=Markup(style),
            script=Markup(script),
            figures=_overview_figures(data),
            health=_health_figures(data),
            unfolded=unfolded,
            **_context(data),
        )
    )
    return _encodable(page)


def render_markdown(data: ReportData) -> str:
    """Return the report as Markdown text, with what the page says, without its figures."""
    days = [(day(row[0]), f"{row[1]:,}") for row in _rows(data.alerts_per_day, "day", "cases")]
    valued = bool(data.money_name) and "money" in data.alerts_per_day.columns
    worth = [f"{money:,.0f}" for money in data.alerts_per_day["money"]] if valued else [""] * len(days)
    check = [
        (one_in(stated), one_in(seen), f"{one_in(high)} to {one_in(low)}")
        for stated, seen, low, high in _rows(data.calibration, "nominal", "observed", "low", "high")
    ]
    text = (
        _environment(markdown=True)
        .get_template("report.md.j2")
        .render(
            days=[(*one, money) for one, money in zip(days, worth, strict=True)],
            calibration=check,
            most_details=_UNFOLDED,
            code=Markup(" ".join(printable(data.command or "").split())),
            **_context(data),
        )
    )
    return _encodable(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair, which UTF-8 cannot hold, becomes "?"


def _context(data: ReportData) -> dict[str, Any]:
    """What both templates show."""
    rows = _case_rows(data)
    return {
        "title": cut(data.title, NAME),
        "created": f"{day(data.created)}, {data.created:%H:%M} {data.created.tzname() or ''}".strip(),
        "threshold_text": cut(data.threshold_text, 4 * SENTENCE),
        "summary": [(cut(label, NAME), cut(text, NAME)) for label, text in data.summary.items()],
        "drift": _drift(data.drift),
        "quality": [
            (cut(what, NAME), f"{n:,}", f"{share:.2%}")
            for what, n, share in _rows(data.quality, "what", "events", "share")
        ],
        "rows": rows,
        **_filters(rows),
        "n_cases": data.cases.height,
        "has_money": any(row["money"] for row in rows),
        "money_name": cut(data.money_name, _HEADING),
        "zone": data.time_zone,
        "details": _details(data, {row["case"]: row for row in rows}),
        "rejects": [
            (cut(reason, SENTENCE), int(n), cut(example, SENTENCE))
            for reason, n, example in _rows(data.rejects, "reason", "rows", "example")
        ],
        "notes": [cut(note, 4 * SENTENCE) for note in data.notes],
        "settings": _pairs(data.settings),
        "versions": _pairs(data.versions),
        "command": printable(data.command or ""),
    }


@cache
def _environment(*, markdown: bool = False) -> Environment:
    return Environment(
        loader=PackageLoader("anomaly", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain if markdown else None,
    )


def _plain(value: object) -> object:
    r"""Text from the data as plain text of Markdown, HTML escaped as well.

    >>> print(_plain("a|b_c <i>"))
    a\|b\_c &lt;i&gt;
    """
    return (
        value
        if isinstance(value, Markup)
        else Markup(re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", escape(str(value), quote=False)))
    )


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()


# ---- text -----------------------------------------------------------------------------------------------------------
def _pairs(items: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(cut(label, NAME), cut(text, SENTENCE)) for label, text in items.items()]


def _rows(frame: pl.DataFrame, *columns: str) -> Iterable[tuple[Any, ...]]:
    return frame.select(columns).iter_rows() if frame.height else ()


# ---- figures --------------------------------------------------------------------------------------------------------
def _figure(figure: figures.Figure, prefix: str, shape: str, title: str, lead: str, keys: list[tuple[str, str]],
            label: str) -> dict[str, Any]:  # fmt: skip
    svg = Markup(figures.svg_text(figure, prefix=prefix, label=label))
    return {"svg": svg, "shape": shape, "title": title, "lead": lead, "legend": keys}


def _overview_figures(data: ReportData) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if data.alerts_per_day.height:
        found.append(_day_figure(data.alerts_per_day, data.budget_per_day))
        if "money" in data.alerts_per_day.columns and data.money_name:
            found.append(_money_figure(data.alerts_per_day, cut(data.money_name, NAME)))
    return found


def _health_figures(data: ReportData) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
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
            f"Histogram of {plural(int(np.sum(every)), 'event')} by rarity on a logarithmic count axis, "
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
    first, last = (day(d) for d in (days.min(), days.max()) if isinstance(d, date))
    keys = [("", "cases that start on the day")]
    if budget is not None:
        keys += [("alert", "above the budget"), ("dashed ink", f"budget: {budget:,g} per day")]
    label = f"Bars: cases per day from {first} to {last}, at most {int(cases.max()):,} on one day" + (
        "." if budget is None else f"; budget {budget:g} per day."
    )
    figure = figures.alerts_per_day(days.to_numpy(), cases, budget=budget)
    return _figure(figure, "days", "wide", "Cases per day", f"{first} – {last}", keys, label)


def _money_figure(per_day: pl.DataFrame, name: str) -> dict[str, Any]:
    days, money = per_day["day"].cast(pl.Date), per_day["money"].cast(pl.Float64).fill_nan(0.0).to_numpy()
    most = int(np.argmax(money))
    figure = figures.alerts_per_day(days.to_numpy(), money)
    label = f"Bars: {name} in the cases that start on the day; most on {day(days[most])}, {money[most]:,.0f}."
    lead = f"{name} of the alerting events, by the day on which their case starts."
    return _figure(figure, "money", "wide", "Money at risk per day", lead, [("", name)], label)


def _training_figure(at: int, model: str, history: pl.DataFrame) -> dict[str, Any]:
    name = cut(model, NAME)
    columns = (history[column].cast(pl.Float64).to_numpy() for column in ("epoch", "train_loss", "valid_loss"))
    figure = figures.training_curves(*columns)
    return _figure(figure, f"training-{at}", "narrow", f"Training: {name}", "Loss by epoch; lower is better.",
                   [("line", "held-out events"), ("dashed", "training events")],
                   f"Training and held-out loss of {name} over {plural(history.height, 'epoch')}.")  # fmt: skip


# ---- cases ----------------------------------------------------------------------------------------------------------
def _case_rows(data: ReportData) -> list[dict[str, Any]]:
    """Return the table of cases as text, with plain numbers beside it for sorting."""
    shown = data.cases.head(_MOST_CASES)
    if not shown.height:
        return []
    starts, ends = (local(shown[name], data.time_zone) for name in ("start", "end"))
    widest = max(float(shown["surprise"].max()), 1e-9)  # type: ignore[arg-type]
    amounts = shown["money"].cast(pl.Float64).fill_nan(None).to_list()
    decimals = _decimals(amounts)
    rows = []
    for case, start, end, money in zip(shown.iter_rows(named=True), starts, ends, amounts, strict=True):
        rows.append({
            "case": case["case"],
            "entity": cut(case["entity"], NAME) or "(empty)",
            "detail": case["case"] in data.timelines,
            "day": day(start),
            "hours": hours(start, end),
            "window": (start, end),
            "start": f"{case['start'].timestamp():.0f}",
            "alerts": case["alerts"],
            "rarity": one_in(case["p_value"]),
            "surprise": f"{case['surprise']:.3f}",
            "share": f"{100 * case['surprise'] / widest:.0f}",
            "money": "" if money is None else f"{money:,.{decimals}f}",
            "money_sort": "" if money is None else f"{money:.2f}",
            "status": cut(case.get("status") or "", NAME),
            "fields": [cut(name, NAME) for name in case.get("fields") or ()],
            "reasons": [cut(reason, SENTENCE) for reason in case.get("reasons") or ()],
        })  # fmt: skip
    return rows


def _filters(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the table can be filtered by: the statuses, and the fields that are reasons, the commonest first."""
    fields = Counter(name for row in rows for name in row["fields"])
    statuses = Counter(row["status"] for row in rows if row["status"])
    named = {"fields": fields, "statuses": statuses}
    return {what: [name for name, _ in counts.most_common()] for what, counts in named.items()}


def _decimals(amounts: Iterable[float | None]) -> int:
    return 0 if all(amount is None or amount % 1 == 0 for amount in amounts) else 2


def _details(data: ReportData, rows: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    numbers = list(data.timelines)
    found: list[dict[str, Any]] = []
    for before, case, after in zip([None, *numbers], numbers, [*numbers[1:], None], strict=False):
        around = {"before": before, "after": after, "place": len(found) + 1}
        found.append({**_detail(data, case, data.timelines[case], rows.get(case)), **around})
    return found


def _detail(data: ReportData, case: int, timeline: CaseTimeline, row: Mapping[str, Any] | None) -> dict[str, Any]:
    time = local(pl.Series(timeline.time.astype("datetime64[us]")), data.time_zone).to_numpy()
    name = cut(timeline.value_name, NAME)
    valued = timeline.value is not None
    keys = [("dot", "event"), ("diamond", "alerting event")]
    if timeline.low is not None and timeline.high is not None and valued:
        keys.append(("band", "expected range"))
    if timeline.remembered is not None and not timeline.remembered.all():
        keys.append(("quarantine", "not yet in the models' memory"))
    if timeline.strips:
        keys += [("line usual", "usual"), ("line seen", "seen before"), ("line new", "first time")]
    since = timeline.money_since
    return {
        "case": case,
        "entity": cut(timeline.entity, NAME) or "(empty)",
        "row": row,
        "value_name": name if valued else "",
        "legend": [*keys, ("span", "the case"), ("dashed ink", "alert line")],
        "strips": [(chr(ord("a") + at), cut(name, NAME)) for at, name in enumerate(timeline.strips)],
        "svg": _timeline_figure(data, case, timeline, row, time),
        "map": _map(case, timeline),
        "cut": f"{len(time):,} of {timeline.known:,} events are drawn: the case and those before it."
        if len(time) < timeline.known else "",
        "money_since": "" if since != since else f"{since:,.{_decimals([since])}f}",
        "parts": _parts(timeline.parts),
        "counterfactual": cut(timeline.counterfactual, SENTENCE),
        "events": _table(timeline.events, timeline.value_name, data.time_zone),
        "similar": _table(timeline.similar, timeline.value_name, data.time_zone),
        "linked": _linked(timeline.linked, data),
    }  # fmt: skip


def _timeline_figure(data: ReportData, case: int, timeline: CaseTimeline, row: Mapping[str, Any] | None,
                     time: NDArray[np.datetime64]) -> Markup:  # fmt: skip
    inside, gap = timeline.inside, timeline.gap
    if inside is None and row is not None:
        first, last = (np.datetime64(moment, "us") for moment in row["window"])
        inside = (time >= first) & (time <= last)
    if gap is None:
        gap = np.concatenate([[np.nan], np.diff(time).astype(np.float64) / 1e6])[: len(time)]
    span = [day(moment) for moment in time[[0, -1]].tolist()] if len(time) else ["", ""]
    threshold = data.threshold_p
    return Markup(case_figure(
        time, timeline.value, timeline.surprise, timeline.alerting, low=timeline.low, high=timeline.high,
        inside=timeline.alerting if inside is None else inside,
        remembered=np.ones(len(time), bool) if timeline.remembered is None else timeline.remembered,
        gap=gap, strips=list(timeline.strips.values()),
        alert_line=-float(np.log10(threshold)) if 0 < threshold <= 1 else float("nan"),
        label=f"Timeline of case {case}: {plural(len(time), 'event')} from {span[0]} to {span[1]}, "
        f"{int(timeline.alerting.sum()):,} alerting; from above"
        + (" the value," if timeline.value is not None else "")
        + " the time since the previous event, the rarity"
        + (" and how usual the categories are." if timeline.strips else "."),
    ))  # fmt: skip


def _map(case: int, timeline: CaseTimeline) -> Markup | None:
    latitude, longitude = timeline.latitude, timeline.longitude
    if latitude is None or longitude is None or not (np.isfinite(latitude) & np.isfinite(longitude)).any():
        return None
    label = f"Map of case {case}: the places of its entity's events, the alerting ones marked and joined."
    return Markup(case_map(latitude, longitude, timeline.alerting, label=label))


def _parts(parts: pl.DataFrame) -> dict[str, Any] | None:
    """Bars of what adds up to the surprise, and their sum."""
    if not parts.height:
        return None
    shares = parts["share"].cast(pl.Float64).to_list()
    most = max(max(map(abs, shares)), 1e-9)
    bars = [
        (cut(name, NAME), f"{share:.2f}", f"{100 * abs(share) / most:.0f}", share < 0)
        for name, share in zip(parts["part"], shares, strict=True)
    ]
    return {"bars": bars, "sum": f"{sum(shares):.2f}"}


def _linked(linked: pl.DataFrame, data: ReportData) -> list[dict[str, Any]]:
    found = []
    for link in linked.iter_rows(named=True):
        names = [
            (cut(name, NAME) or "(empty)", other if other in data.timelines else None)
            for name, other in zip(link["names"], link["cases"], strict=True)
        ]
        found.append({
            "field": cut(link["field"], NAME),
            "value": cut(link["value"], NAME),
            "told": f"{link['entities']:,} other {'entity' if link['entities'] == 1 else 'entities'}, "
            f"{link['expected']:.2g} by chance",
            "names": names,
            "more": link["entities"] - len(names),
        })  # fmt: skip
    return found


def _table(events: pl.DataFrame, value_name: str, zone: str) -> dict[str, Any]:
    """Return headings (name, to the right?) and rows (alerting?, cells) of a table of events."""
    marks = events["alerting"].to_list() if "alerting" in events.columns else [False] * events.height
    heads: list[tuple[str, str]] = []
    columns: list[list[str]] = []
    for column in events.drop("alerting", strict=False).get_columns():
        right = column.dtype.is_numeric() or column.name == value_name
        told = {"surprise": "rarity", LIKENESS: "likeness"}.get(column.name, cut(column.name, NAME))
        heads.append((told, "n" if right else "t" if column.name == "reasons" else ""))
        alike = column.name == LIKENESS
        columns.append([f"{share:.0%}" for share in column] if alike else cells(column, zone))
    return {"heads": heads, "rows": list(zip(marks, zip(*columns, strict=True), strict=True)) if columns else []}


# ---- health ---------------------------------------------------------------------------------------------------------
def _drift(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Weeks as columns, fields as rows, each cell with its numbers as text."""
    if not frame.height:
        return None
    weeks = frame["week"].unique().sort().to_list()
    rows = []
    for (name,), part in frame.group_by("field", maintain_order=True):
        by_week = {row["week"]: row for row in part.iter_rows(named=True)}
        rows.append((cut(name, NAME), [_drift_cell(by_week.get(week)) for week in weeks]))
    flagged = frame.filter("flagged")
    return {
        "weeks": [day(week) for week in weeks],
        "rows": rows,
        "told": "No drift: no week differs by much from the history."
        if not flagged.height else f"{plural(flagged.height, 'cell')} marked: the model may be out of date there.",
    }  # fmt: skip


def _drift_cell(row: Mapping[str, Any] | None) -> dict[str, Any]:
    if row is None or row["psi"] is None:
        return {"psi": "–", "ks": "", "level": 0, "flagged": False, "events": 0 if row is None else row["events"]}
    level = int(row["psi"] >= 0.1) + int(row["psi"] >= 0.2)
    ks = "" if row["ks"] is None else f"{row['ks']:.2f}"
    return {"psi": f"{row['psi']:.2f}", "ks": ks, "level": level, "flagged": row["flagged"], "events": row["events"]}
