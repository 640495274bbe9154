"""The page of a comparison: values -> one self-contained HTML page. Nothing is computed here.

As the report (`anomaly.report`), whose style it wears: it opens from disk, asks the network for nothing, and its own
Content-Security-Policy forbids every connection and every script, for it has none. All text is escaped by the template.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from markupsafe import Markup

from anomaly.alerts import number_text
from anomaly.comparison import Compared, Comparison
from anomaly.comparison_figures import STYLES, average_precisions, folds, label_curve, words
from anomaly.figures import Figure, svg_text
from anomaly.files import whole_file
from anomaly.report import _environment, _pairs, _source
from anomaly.wording import cut, day, printable

__all__ = ["PAGE", "render_comparison", "write_comparison_page"]

PAGE = "comparison.html"  # its name among the files of a comparison
_NAME, _SENTENCE = 80, 1000  # characters of a name and of a sentence before they are cut


class _Measure(NamedTuple):
    """A line of the table: the measure's name, its heading, how it is written, and which end is the better one."""

    name: str
    head: str
    write: Callable[[float], str]
    better: str = ""


def _three(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


_GROUPS: Sequence[tuple[str, Sequence[_Measure]]] = (
    (
        "Ranking",
        (
            _Measure("average_precision", "Average precision", _three, "high"),
            _Measure("auc", "AUC ROC", _three, "high"),
            _Measure("recall_at_0.1_percent", "Recall at 0.1 % false alerts", _percent, "high"),
            _Measure("recall_at_1_percent", "Recall at 1 % false alerts", _percent, "high"),
        ),
    ),
    (
        "At {budget} alerts a day",
        (
            _Measure("precision_at_budget", "Precision", _percent, "high"),
            _Measure("recall_at_budget", "Recall", _percent, "high"),
            _Measure("money_saved", "Money stopped", number_text, "high"),
            _Measure("share_saved", "– of all fraud money", _percent, "high"),
            _Measure("runs_detected", "Frauds in a row that are noticed", _percent, "high"),
            _Measure("delay_events", "– after so many frauds (median)", number_text),
            _Measure("delay_hours", "– after so many hours (median)", number_text),
            _Measure("delay_money", "– after so much money (mean)", number_text),
        ),
    ),
    (
        "Entities, 100 looked at each day",
        (
            _Measure("card_precision_at_100", "Card precision, known ones taken out", _three, "high"),
            _Measure("card_precision_at_100_all", "Card precision, nothing taken out", _three, "high"),
        ),
    ),
    (
        "Probabilities",
        (
            _Measure("brier", "Brier score", lambda value: f"{value:.5f}", "low"),
            _Measure("calibration_error", "Expected calibration error", lambda value: f"{value:.5f}", "low"),
        ),
    ),
    (
        "Seconds",
        (
            _Measure("fit_seconds", "Fit", number_text),
            _Measure("score_seconds", "Score", number_text),
        ),
    ),
)


def write_comparison_page(
    compared: Compared,
    path: str | os.PathLike[str],
    *,
    title: str = "What would labels add?",
    created: datetime | None = None,
    asked: Comparison | None = None,
    command: str | None = None,
) -> Path:
    """Write the page of a comparison to `path`, whole or not at all; return its path.

    Parameters
    ----------
    compared : Compared
        What `Comparison.run` returned.
    path : path
        The file; folders above it are made.
    title : str
        Heading of the page.
    created : datetime, optional
        When it was made; now, if not given.
    asked : Comparison, optional
        Its settings are shown.
    command : str, optional
        The command that makes the page again.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = render_comparison(compared, title=title, created=created, asked=asked, command=command)
    with whole_file(target) as draft:
        draft.write_bytes(text.encode())
    return target


def render_comparison(
    compared: Compared,
    *,
    title: str = "What would labels add?",
    created: datetime | None = None,
    asked: Comparison | None = None,
    command: str | None = None,
) -> str:
    """Return the page as text; see `write_comparison_page`."""
    moment, facts = created or datetime.now(UTC), compared.facts
    page = _environment().get_template("comparison.html.j2").render(
        policy="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        style=Markup("\n".join(_source(f"{name}.css") for name in ("report", "cases", "small", "comparison"))),
        title=cut(title, _NAME),
        created=f"{day(moment)}, {moment:%H:%M} {moment.tzname() or ''}".strip(),
        sentence=cut(compared.sentence, _SENTENCE),
        tiles=_tiles(facts),
        figures=_figures(compared),
        scorers=[(words(name), needs) for name, needs in compared.table.select("scorer", "labels").iter_rows()],
        groups=_groups(compared),
        several=facts["folds"] > 1,
        money=compared.table["money_saved"].is_not_null().any(),
        beats=_beats(compared),
        curve=_curve_table(compared.curve),
        windows=_windows(facts["windows"]),
        delay=number_text(facts["label_delay_days"]),
        budget=f"{facts['budget_per_day']:,}",
        notes=[cut(note, _SENTENCE) for note in compared.notes],
        settings=_pairs({} if asked is None else _settings(asked)),
        command=printable(command or ""),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode()  # half a surrogate pair, which UTF-8 cannot hold, becomes "?"


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    tiles = [
        ("Scored events", f"{facts['scored']:,}"),
        ("Frauds among them", f"{facts['scored_frauds']:,}"),
        ("Share of fraud", f"{facts['base_rate']:.2%}"),
        ("Known frauds before", f"{facts['known_frauds']:,}"),
        ("Delay of a label", f"{number_text(facts['label_delay_days'])} d"),
    ]
    return [*tiles, ("Test windows", str(facts["folds"]))] if facts["folds"] > 1 else tiles


def _settings(asked: Comparison) -> dict[str, str]:
    """What was asked for, as text by its heading."""
    columns = [*asked.schema.key, *(one.name for one in asked.schema.numeric), *asked.schema.categorical]
    return {
        "Columns": ", ".join(columns),
        "Scored from": "the last third of the time" if asked.since is None else str(asked.since),
        "Test windows": str(asked.folds),
        "Label delay": f"{number_text(asked.label_delay_days)} days",
        "Alerts a day": f"{asked.budget_per_day:,}",
        "Size of the memory": f"{asked.hidden:,}",
        "Passes over the history": "by size" if asked.epochs is None else f"{asked.epochs:,}",
        "Resamples": f"{asked.repeats:,}",
        "Seed": str(asked.seed),
    }


# ---- figures --------------------------------------------------------------------------------------------------------
def _figures(compared: Compared) -> list[dict[str, Any]]:
    table, facts = compared.table, compared.facts
    names = table["scorer"].to_list()
    value, low, high = (table[name].to_numpy() for name in ("average_precision", "ap_low", "ap_high"))
    told = [f"{words(name)} {one:.3f}" for name, one in zip(names, value, strict=True)]
    over = f"Mean over the {facts['folds']} windows" if facts["folds"] > 1 else "Precision averaged over recall"
    drawn = [
        _figure(
            average_precisions(names, value, low, high, base_rate=facts["base_rate"]),
            "precision",
            "Average precision",
            f"{over}; the band is a 95 % interval over entities.",
            [("dot", "measured"), ("line muted dashed ink", "a random ranking")],
            f"Average precision of each scorer: {'; '.join(told)}. A random ranking has {facts['base_rate']:.3f}.",
        ),
        _curve_figure(compared.curve),
    ]
    return [*drawn, _fold_figure(compared)] if facts["folds"] > 1 else drawn


def _curve_figure(curve: pl.DataFrame) -> dict[str, Any]:
    learned = curve.filter(pl.col("known") > 0)
    known, flat = learned["known"].unique().sort().to_list(), dict(curve.filter(known=0)["scorer", "ap"].iter_rows())
    curves = {}
    for name in learned["scorer"].unique(maintain_order=True):
        one = learned.filter(scorer=name).sort("known")
        curves[name] = (one["ap"].to_numpy(), one["low"].to_numpy(), one["high"].to_numpy())
    ends = [f"{words(name)} from {ap[0]:.3f} to {ap[-1]:.3f}" for name, (ap, _, _) in curves.items()]
    level = [f"{words(name)} {value:.3f}" for name, value in flat.items()]
    return _figure(
        label_curve(known, curves, flat),
        "curve",
        "What each label buys",
        "Average precision by the number of known frauds, with intervals; level lines need no label.",
        [_key(name) for name in (*flat, *curves)],
        f"Average precision from {known[0]:,} to {known[-1]:,} known frauds: {'; '.join(ends)}. "
        f"Without labels: {'; '.join(level)}.",
    )


def _fold_figure(compared: Compared) -> dict[str, Any]:
    by_fold, names = compared.folds, compared.table["scorer"].to_list()
    begin = by_fold["begin"].unique().sort().to_numpy()
    values = {name: by_fold.filter(scorer=name)["average_precision"].to_numpy() for name in names}
    told = [f"{words(name)} {', '.join(f'{one:.3f}' for one in value)}" for name, value in values.items()]
    return _figure(
        folds(begin, values),
        "folds",
        "Does it last?",
        "Average precision in each window, by its first day; all is learned anew before each.",
        [_key(name) for name in names],
        f"Average precision by window: {'; '.join(told)}.",
    )


def _figure(figure: Figure, prefix: str, title: str, lead: str, keys: Sequence[tuple[str, str]],
            label: str) -> dict[str, Any]:  # fmt: skip
    svg = Markup(svg_text(figure, prefix=prefix, label=label))
    return {"svg": svg, "title": title, "lead": lead, "legend": list(keys)}


def _key(scorer: str) -> tuple[str, str]:
    return f"line {' '.join(STYLES[scorer])}", words(scorer)


# ---- tables ---------------------------------------------------------------------------------------------------------
def _groups(compared: Compared) -> list[tuple[str, list[tuple[str, list[tuple[str, list[str], bool]]]]]]:
    """Return (heading, lines) of each group; a line is (heading, cells), a cell (text, smaller texts, is it best?)."""
    budget = f"{compared.facts['budget_per_day']:,}"
    found = []
    for head, lines in _GROUPS:
        rows = [(line.head, _cells(compared, line)) for line in lines if compared.table[line.name].is_not_null().any()]
        found.append((head.format(budget=budget), rows))
    return [(head, rows) for head, rows in found if rows]


def _cells(compared: Compared, line: _Measure) -> list[tuple[str, list[str], bool]]:
    values, spreads = compared.table[line.name].to_list(), compared.spread[line.name].to_list()
    texts = ["" if value is None else line.write(value) for value in values]
    best = {"high": max, "low": min}.get(line.better)
    top = None if best is None or len(set(texts)) == 1 else line.write(best(v for v in values if v is not None))
    small = [[] if spread is None else [f"± {line.write(spread)}"] for spread in spreads]
    if line.name == "average_precision":
        for more, low, high in zip(small, compared.table["ap_low"], compared.table["ap_high"], strict=True):
            more.append(f"{low:.3f}–{high:.3f}")
    return [(text, more, text == top) for text, more in zip(texts, small, strict=True)]


def _beats(compared: Compared) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (scorer, cells) of each row; a cell is (text, share of 100), without text on the diagonal."""
    names = compared.table["scorer"].to_list()
    rows = []
    for a in names:
        shares = [None if a == b else 100 * compared.beats[a][b] for b in names]
        rows.append((words(a), [("", "0") if one is None else (_sure(one), f"{one:.0f}") for one in shares]))
    return rows


def _sure(percent: float) -> str:
    """A share of the resamples in per cent; only what never or always happened is 0 or 100.

    >>> _sure(100.0), _sure(99.8), _sure(48.6), _sure(0.2)
    ('100', '>99', '49', '<1')
    """
    if 0 < percent < 1:
        return "<1"
    return ">99" if 99 < percent < 100 else f"{percent:.0f}"


def _curve_table(curve: pl.DataFrame) -> dict[str, Any]:
    """Return the heads (known frauds) and (scorer, cells) of the curve in numbers; a cell is (text, smaller text)."""
    known = curve["known"].unique().sort().to_list()
    found = {(row["known"], row["scorer"]): row for row in curve.iter_rows(named=True)}
    names = sorted(curve["scorer"].unique(), key=list(STYLES).index)
    rows = []
    for name in names:
        cells = [found.get((number, name)) for number in known]
        told = [("", "") if c is None else (f"{c['ap']:.3f}", f"{c['low']:.3f}–{c['high']:.3f}") for c in cells]
        rows.append((words(name), told))
    return {"known": [f"{number:,}" for number in known], "rows": rows}


def _windows(windows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of each test window: its number, first and last moment, and sizes."""
    counts = ("labelled", "known_frauds", "scored", "scored_frauds")
    rows = []
    for number, one in enumerate(windows, 1):
        begin, end = (datetime.fromtimestamp(float(np.floor(one[name])), UTC) for name in ("begin", "end"))
        moments = [f"{day(moment)} {moment:%H:%M}" for moment in (begin, end)]
        rows.append([str(number), *moments, *(f"{one[name]:,}" for name in counts)])
    return rows
