"""Take the seven series of known causes of the Numenta Anomaly Benchmark from file to report, and measure.

As in::

    python3 scripts/nab.py nab --out ../nab-report

`nab` is a folder with the series (CSV files of timestamp and value) and windows.json. For each series the public
command line fits on the first quarter of its time, cut before the first labelled window, but on 15 % at least; scores
the rest; and writes a report. Only then are the windows read as labels. All figures are over the scored rest; a window
that lies in the fitted part is not among its windows, and was learned as normal.

The scorers: `zscore`, |value - median| over the median absolute deviation, both of the fitted part; `difference`, the
absolute difference to the value before; the detector's `autoencoder`, `forecaster` and `both`. An alert is p <= 0.001,
and for the rules a score above the 0.999 quantile of the fitted part; `windows_fair` gives each scorer the threshold
with 0.001 of the points outside the windows above it, with hindsight.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from _environment import ensure, inside, run_inside

if __name__ == "__main__" and not inside():
    sys.exit(run_inside(ensure(()), __file__, sys.argv[1:]))

import numpy as np
import polars as pl
from _figures import bars
from _numbers import file_to_report, fit_options, parse, table, told_command, write_numbers, write_text
from handbook import model_scores
from numpy.typing import NDArray

from anomaly.evaluation import average_precision, roc_auc
from anomaly.schema import NumericField, Schema

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Window = tuple[datetime, datetime]

SCHEMA = Schema(time="timestamp", numeric=(NumericField(name="value", scale="linear", tail="both"),))
SCORERS = ("zscore", "difference", "autoencoder", "forecaster", "both")
FIT_SHARE, LEAST_SHARE = 0.25, 0.15  # of a series' time
FALSE_ALERT_RATE = 0.001
BUDGET = 1.0  # cases a day in the reports


@dataclass(frozen=True)
class Series:
    """One series: its events in file order, its windows, and where the fitted part ends."""

    name: str
    path: Path
    events: pl.DataFrame
    windows: tuple[Window, ...]
    until: datetime
    fit_share: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures, and print where they are."""
    wish = parse(__doc__, "nab", arguments)
    options = fit_options(wish)
    every = read_folder(wish.data)
    figures: dict[str, float] = {}
    for series in every:
        scores, cost = file_to_report(
            series.path,
            SCHEMA.to_toml(),
            wish.out / series.name,
            until=series.until.isoformat(),
            options=options,
            budget=BUDGET,
        )
        figures |= measure(series, pl.read_parquet(scores))
        for name, value in cost.items():
            kept = figures.get(name, 0.0)
            figures[name] = max(kept, value) if name.endswith("peak_mb") else kept + value
        print(f"{series.name}: AP {figures[f'both.{series.name}.ap']:.3f}", flush=True)
    figures["windows"] = sum(figures[f"{s.name}.windows"] for s in every)
    for scorer in (*SCORERS, "random"):
        figures[f"{scorer}.windows_found"] = sum(figures[f"{scorer}.{s.name}.windows_found"] for s in every)
    for scorer in SCORERS:
        figures[f"{scorer}.windows_fair"] = sum(figures[f"{scorer}.{s.name}.windows_fair"] for s in every)
        for key in ("auc", "ap", "false_per_1000"):
            figures[f"{scorer}.mean.{key}"] = float(np.mean([figures[f"{scorer}.{s.name}.{key}"] for s in every]))
    found = {scorer: np.array([figures[f"{scorer}.{s.name}.ap"] for s in every]) for scorer in SCORERS}
    base = np.array([figures[f"{s.name}.base_rate"] for s in every])
    bars(wish.reports / "average_precision.svg", [s.name for s in every], found, base, "average precision")
    command = told_command(__file__, wish.data, options)
    write_numbers(wish.reports, command, figures)
    write_text(wish.reports / "report.md", page(every, figures, command))
    print(f"figures: {wish.reports}\nscores and reports, with rows of the data: {wish.out}")
    return 0


def read_folder(folder: Path) -> list[Series]:
    """Read the series that windows.json names, and choose where each one's fitted part ends."""
    every = []
    for file, windows in sorted(json.loads((folder / "windows.json").read_text(encoding="utf-8")).items()):
        events = pl.read_csv(folder / file, schema_overrides={"value": pl.Float64}).with_columns(
            pl.col("timestamp").str.to_datetime()
        )
        spans = tuple((datetime.fromisoformat(begin), datetime.fromisoformat(end)) for begin, end in windows)
        time = events["timestamp"].to_list()
        first, length = min(time), max(time) - min(time)
        share = max(LEAST_SHARE, min(FIT_SHARE, (min(spans)[0] - first) / length))
        every.append(Series(Path(file).stem.lower(), folder / file, events, spans, first + share * length, share))
    return every


def measure(series: Series, scores: pl.DataFrame) -> dict[str, float]:
    """Figures of one series: of each scorer on the scored events, with the windows as labels."""
    rows = scores["row"].to_numpy()
    inside = [series.events["timestamp"].is_between(*window).to_numpy()[rows] for window in series.windows]
    scored = [window for window in inside if window.any()]
    label = np.any(scored, axis=0)
    figures: dict[str, float] = {
        f"{series.name}.fit_share": series.fit_share,
        f"{series.name}.events": rows.size,
        f"{series.name}.windows": len(scored),
        f"{series.name}.windows_in_fit": len(inside) - len(scored),
        f"{series.name}.base_rate": float(label.mean()),
        f"random.{series.name}.windows_found": sum(1 - (1 - FALSE_ALERT_RATE) ** int(w.sum()) for w in scored),
    }
    fitted = (series.events["timestamp"] < series.until).to_numpy()
    ranked = {
        name: (score[rows], score[rows] > np.quantile(score[fitted], 1 - FALSE_ALERT_RATE))
        for name, score in rules(series.events["value"].to_numpy(), fitted).items()
    }
    surprise = model_scores(scores)
    ranked |= {name: (score, score >= -np.log10(FALSE_ALERT_RATE)) for name, score in surprise.items()}
    for name, (score, alert) in ranked.items():
        key = f"{name}.{series.name}"
        found = [bool((alert & window).any()) for window in scored]
        figures |= {f"{key}.w{number}": int(hit) for number, hit in enumerate(found, 1)}
        fair = score > np.quantile(score[~label], 1 - FALSE_ALERT_RATE)
        figures |= {
            f"{key}.windows_fair": sum(bool((fair & window).any()) for window in scored),
            f"{key}.auc": roc_auc(score, label),
            f"{key}.ap": average_precision(score, label),
            f"{key}.windows_found": sum(found),
            f"{key}.false_per_1000": 1000 * float(alert[~label].mean()),
        }
    return figures


def rules(value: Floats, fitted: Bools) -> dict[str, Floats]:
    """Score by the simplest rules, for the whole series."""
    middle = np.median(value[fitted])
    spread = float(np.median(np.abs(value[fitted] - middle))) or 1.0  # ranks and alerts are the same for any unit
    return {"zscore": np.abs(value - middle) / spread, "difference": np.abs(np.diff(value, prepend=value[0]))}


def windows_table(every: Sequence[Series], figures: Mapping[str, float], key: str) -> str:
    """Compose a table of how many windows each scorer found."""
    rows = [
        [s.name, int(figures[f"{s.name}.windows"]), f"{figures[f'random.{s.name}.windows_found']:.1f}"]
        + [int(figures[f"{scorer}.{s.name}.{key}"]) for scorer in SCORERS]
        for s in every
    ]
    total = ["all", int(figures["windows"]), f"{figures['random.windows_found']:.1f}"]
    total += [int(figures[f"{scorer}.{key}"]) for scorer in SCORERS]
    return table(["series", "windows", "by chance", *SCORERS], [*rows, total])


def page(every: Sequence[Series], figures: Mapping[str, float], command: str) -> str:
    """Compose report.md."""

    def by_series(key: str) -> str:
        rows = [[s.name, *(figures[f"{scorer}.{s.name}.{key}"] for scorer in SCORERS)] for s in every]
        return table(["series", *SCORERS], [*rows, ["mean", *(figures[f"{scorer}.mean.{key}"] for scorer in SCORERS)]])

    seconds = ", ".join(f"{step} {figures[f'{step}.seconds']:,.0f} s" for step in ("fit", "score", "report"))
    cut = [s for s in every if s.fit_share < FIT_SHARE]
    told = "".join(
        f"; `{s.name}` on {s.fit_share:.0%}, {figures[f'{s.name}.windows_in_fit']:.0f} window in it" for s in cut
    )
    return f"""# Numenta Anomaly Benchmark, seven series of known causes, without labels

Fitted on the first {FIT_SHARE:.0%} of each series' time (cut before the first window, {LEAST_SHARE:.0%} at
least{told}); all figures are over the rest. Made by

    {command}

Average precision, pointwise, every point of a window a positive:

{by_series("ap")}

![Average precision](average_precision.svg)

AUC-ROC, pointwise:

{by_series("auc")}

Windows that hold an alert. The threshold is the one that each scorer learned for a false-alert rate of
{FALSE_ALERT_RATE:g}; `by chance` is what alerts at random, at that rate, would be expected to find:

{windows_table(every, figures, "windows_found")}

Alerts outside the windows at that threshold, per 1000 points (promised: {1000 * FALSE_ALERT_RATE:g}):

{by_series("false_per_1000")}

Windows that hold an alert when, with hindsight, each scorer gets the threshold that makes {1000 * FALSE_ALERT_RATE:g}
alert per 1000 points outside the windows. Only here do scorers that keep their promise and scorers that do not compete
on equal terms:

{windows_table(every, figures, "windows_fair")}

**How to read it.** `zscore` (distance from the fitted part's median) and `difference` (to the value before) are the
rules to beat; the others learned the first quarter of one series, some hundreds to thousands of points, as normal.
NAB's windows are wide, about a tenth of each series around one or a few events, so most of their points look normal and
no detector gets a pointwise AP near 1; what lies outside them is not all normal either. A series that drifts away from
its first quarter breaks the promised false-alert rate, and whoever alerts often finds every window.

All {len(every)} series, each by the public command line, its start included: {seconds}.
"""


if __name__ == "__main__":
    sys.exit(main())
