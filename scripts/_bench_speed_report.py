"""The page and the picture of the speed bench, from its figures alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _figures import MODELS, RULES, STYLE, _save
from _numbers import table, write_text
from matplotlib.figure import Figure

TARGETS = {
    "fit.share_of_raw": (">=", 0.40),
    "score.share_of_raw": (">=", 0.40),
    "fit.times_best_peer": (">=", 10.0),
    "score.times_best_peer": (">=", 20.0),
    "handbook.fit_seconds": ("<=", 90.0),
    "handbook.score_seconds": ("<=", 12.0),
    "handbook.peak_mb": ("<=", 1500.0),
    "large.events": (">=", 5e7),
    "large.peak_mb": ("<=", 2000.0),
    "scaling.exponent": ("<=", 1.04),  # 15 % more time per event over a factor of 50
    "stream.p50_us": ("<=", 100.0),
    "stream.p99_us": ("<=", 400.0),
    "stream.state_bytes": ("<=", 4096.0),
    "stream.handbook.state_bytes": ("<=", 4096.0),
    "stream.most_state_bytes": ("<=", 65536.0),
    "import.seconds": ("<=", 0.3),
    "help.seconds": ("<=", 0.5),
}
REST = ("peers.", "scaling.", "raw.", "large.", "stream.")
PARTS = ("fit", "fit.epoch", "score")
STAGES = ("read", "encode", "batch", "epoch", "score", "calibrate", "judge_and_table", "write")


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and ``stages.svg`` from the figures in ``numbers.json`` and in those of each section."""
    figures: dict[str, float] = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))["figures"]
    parts = ["# How fast it is\n", _targets(figures), _rates(figures), _stages(figures), _rest(figures), _made(folder)]
    if "stages.events" in figures:
        _picture(folder / "stages.svg", figures)
    return write_text(folder / "report.md", "\n".join(part for part in parts if part))


def _targets(figures: dict[str, float]) -> str:
    rows = []
    for name, (sign, goal) in TARGETS.items():
        got = figures.get(name)
        met = "not measured" if got is None else "yes" if (got >= goal if sign == ">=" else got <= goal) else "**no**"
        rows.append([f"`{name}`", "" if got is None else f"{got:,.4g}", f"{sign} {goal:,.4g}", met])
    words = (
        "Raw is torch's own `nn.LSTM` on random input of the same sizes and threads, at its best batch, in the same "
        "run; `fit` is one pass of training, `score` the scoring of both models, heads and data movement included. "
        "Peers are PyOD's LSTM forecaster, with one layer and with two, the faster of them. It reads numbers alone, so "
        "ours is given the same numeric columns; what it takes with the categories too is `all_columns` below. CUDA "
        "was not measured.\n"
    )
    return words + "\n" + table(["figure", "measured", "target", "met"], rows) + "\n"


def _rates(figures: dict[str, float]) -> str:
    if "fit.share_of_raw" not in figures:
        return ""
    rows: list[list[Any]] = []
    for columns, end in (("all", ""), ("few", ".small")):
        for model in ("forecaster", "autoencoder") if f"fit.share_of_raw{end}" in figures else ():
            sizes = [f"{figures[f'{what}.{model}{end}']:,.0f}" for what in ("inputs", "outputs")]
            for part in PARTS:
                rate, share = (figures[f"{part}.{model}.{what}{end}"] for what in ("events_per_second", "share_of_raw"))
                rows.append([columns, model, *sizes, part, f"{rate:,.0f}", share])
        for part in PARTS if f"fit.share_of_raw{end}" in figures else ():
            rows.append([columns, "both", "", "", part, "", figures[f"{part}.share_of_raw{end}"]])
    words = (
        "Few columns are like the Handbook's payments': customer, time, amount and device. The raw limit counts "
        "the recurrence alone; the heads' outputs are what is done beside it.\n\n"
    )
    head = ["columns", "model", "inputs", "outputs", "part", "events a second", "share of raw"]
    return "## Beside the raw limit, one thread\n\n" + words + table(head, rows) + "\n"


def _stages(figures: dict[str, float]) -> str:
    if "stages.events" not in figures:
        return ""
    rows = []
    for name in STAGES:
        peak = figures.get(f"stages.{name}.peak_mb")
        rate, share = (figures[f"stages.{name}.{what}"] for what in ("events_per_second", "share_of_time"))
        rows.append([name, f"{rate:,.0f}", share, "" if peak is None else f"{peak:,.0f}"])
    head = ["stage", "events a second", "share of time", "peak MiB"]
    words = f"{figures['stages.events']:,.0f} simulated payments; `epoch` and `score` are of both models.\n\n"
    return "## Stages, one thread\n\n" + words + table(head, rows) + "\n\n![Stages](stages.svg)\n"


def _rest(figures: dict[str, float]) -> str:
    names = [name for name in figures if name.startswith(REST) or name.endswith("peer.all_columns")]
    rows = [[f"`{name}`", f"{figures[name]:,.4g}"] for name in names]
    return "## Peers, scaling and the rest\n\n" + table(["figure", "measured"], rows) + "\n" if rows else ""


def _made(folder: Path) -> str:
    lines = []
    for path in sorted((folder / "sections").glob("*/numbers.json")):
        made = json.loads(path.read_text(encoding="utf-8"))
        machine = made["machine"]
        lines.append(f"- `{made['command']}`: {made['commit'][:8]}, {machine['cores']} cores of {machine['cpu']}")
    return "## Made by\n\n" + "\n".join(lines) + "\n"


def _picture(path: Path, figures: dict[str, float]) -> Path:
    """Share of the time of each stage, as bars."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.2), layout="constrained")
        axes = figure.subplots()
        shares = [figures[f"stages.{name}.share_of_time"] for name in STAGES]
        axes.barh(range(len(STAGES)), shares, color=[MODELS[0] if share >= 0.1 else RULES[0] for share in shares])
        axes.set_yticks(range(len(STAGES)), STAGES)
        axes.invert_yaxis()
        axes.set(xlabel="share of the processor time of one epoch and one scoring", xlim=(0, 1))
        return _save(figure, path)
