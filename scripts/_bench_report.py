"""The page and the pictures of the detection bench: figures -> report.md and SVG files. Nothing is measured here."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import _bench_contamination
import _bench_handbook
import _bench_nab
import _bench_rates
import _bench_simulator
import _bench_targets as targets
import matplotlib as mpl
from _bench_targets import Figures, Target, kinds
from _bench_work import Sizes
from _figures import INK, MODELS, RULES, STYLE
from _numbers import table, write_text
from matplotlib.figure import Figure

from anomaly.rehearsal import LEAST_GAIN

SECTIONS = ("simulator", "contamination", "rates", "handbook", "nab")
DRAWN = ("ratio", "robust_z", "isolation_forest", "plain_forecaster", "ours")
COLOURS = dict(zip(DRAWN, RULES + MODELS, strict=True)) | {"without_robust_weights": MODELS[-1]}
MARKS = {"plain_forecaster": "s", "ours": "o", "isolation_forest": "^"}
NONE = "–"
WAYS = {"": "once", f"{_bench_rates.MONTHLY}.": "monthly"}
PUBLISHED_WEEK = {
    "autoencoder (published)": (0.836, 0.180, 0.217),
    "isolation forest (published)": (0.808, 0.164, 0.190),
}
PUBLISHED_SERIES = {
    "TSB-AD's AutoEncoder": (0.328, 0.340),
    "TSB-AD's LSTMAD": (0.121, 0.136),
    "TSB-AD's Sub-PCA": (0.370, 0.378),
}


@dataclass(frozen=True)
class Told:
    """What the page says beside the figures.

    Attributes
    ----------
    command : str
        What makes the figures again.
    sizes : Sizes
        What was measured.
    progress : mapping of str to (int, int)
        Pieces done, and pieces in all, by section.
    reasons : mapping of str to list of str
        Why something is missing, by section.
    kept : mapping of str to str
        Of the sections whose figures are those of an earlier run, the commit that they were made at.
    """

    command: str
    sizes: Sizes
    progress: Mapping[str, tuple[int, int]]
    reasons: Mapping[str, Sequence[str]]
    kept: Mapping[str, str]


def write_report(folder: Path, figures: Figures, told: Told) -> None:
    """Write report.md and its pictures; a picture without figures is not drawn, and an old one is removed."""
    pictures = {
        "recall.svg": recall_picture(figures),
        "contamination.svg": contamination_picture(figures, told.sizes),
        "rates.svg": rates_picture(figures),
    }
    for name, picture in pictures.items():
        if picture is None:
            (folder / name).unlink(missing_ok=True)
        else:
            _save(picture, folder / name)
    write_text(folder / "report.md", page(figures, told, [name for name, picture in pictures.items() if picture]))


def page(figures: Figures, told: Told, pictures: Sequence[str]) -> str:
    """Compose report.md."""
    write = {
        "simulator": simulator,
        "contamination": contamination,
        "rates": rates,
        "handbook": handbook,
        "nab": nab,
    }
    parts = [HEAD.format(command=told.command), overview(figures, told)]
    for section in SECTIONS:
        parts.append(f"## {TITLES[section]}")
        reasons = list(told.reasons.get(section, ()))
        done, wanted = told.progress[section]
        if section in told.kept:
            parts += [
                f"Measured earlier, at commit `{told.kept[section][:7]}`.",
                *write[section](figures, told.sizes, pictures),
            ]
            continue
        if done < wanted and not reasons:
            reasons = ["not measured yet"]
        if reasons:
            parts.append(f"Missing ({done} of {wanted} pieces are there): {'; '.join(reasons)}.")
        if done:
            parts += write[section](figures, told.sizes, pictures)
    return "\n\n".join(parts) + "\n"


def overview(figures: Figures, told: Told) -> str:
    """The targets, and what is missing."""
    rows = [[TITLES[section], *target.row()] for section, each in all_targets(figures).items() for target in each]
    met = sum(target.met for each in all_targets(figures).values() for target in each)
    missing = [
        TITLES[name] for name, (done, wanted) in told.progress.items() if done < wanted and name not in told.kept
    ]
    lines = [f"**{met} of {len(rows)} targets are met.**"] if rows else ["Nothing has been measured yet."]
    if missing:
        lines.append(f"Not complete: {', '.join(missing)}; each says below what is missing.")
    return "\n\n".join([*lines, table(["section", "target", "wanted", "found", "verdict"], rows)] if rows else lines)


def all_targets(figures: Figures) -> dict[str, list[Target]]:
    """By section."""
    return {
        "simulator": targets.simulator(figures) + targets.promises(figures),
        "contamination": targets.contamination(figures),
        "rates": targets.rates(figures),
        "handbook": targets.handbook(figures),
        "nab": targets.nab(figures),
    }


# ---- sections --------------------------------------------------------------------------------------------------------


def simulator(figures: Figures, sizes: Sizes, pictures: Sequence[str]) -> list[str]:
    """Recall by kind, promises, rehearsal and ablation."""
    scorers = [name for name in _bench_simulator.SCORERS if f"simulator.{name}.ap" in figures]
    measures = ["auc", "ap", "recall.macro", *(f"recall.{kind}" for kind in kinds(figures))]
    rows = [[_words(key), *(_mean(figures, f"simulator.{name}.{key}") for name in scorers)] for key in measures]
    rows.append(["simulations", *(_whole(figures, f"simulator.{name}.seeds") for name in scorers)])
    parts = [SIMULATOR.format(sizes=sizes, budget=sizes.per_day), table(["", *scorers], rows)]
    if "recall.svg" in pictures:
        parts.append("![Recall by kind of fraud](recall.svg)")
    found = [
        [f"q = {q:g}, {of}", figures[name], figures[f"{name}.se"], _whole(figures, f"{name}.alerts")]
        for q in _bench_simulator.SHARES
        for of, name in (("events", f"fdr.{q:g}"), ("cases", f"fdr.{q:g}.cases"))
        if name in figures
    ]
    if found:
        parts += [DISCOVERIES, table(["asked", "false share", "standard error", "alerts"], found)]
    if "budget.mean" in figures:
        told = "Budget: {asked:g} cases a day asked for, {came} came (ratio {ratio})."
        came, ratio = _mean(figures, "budget.cases_per_day"), _mean(figures, "budget.mean")
        parts.append(told.format(asked=figures["budget.asked"], came=came, ratio=ratio))
    return parts + _rehearsal(figures) + _ablation(figures) + _choices(figures)


def _rehearsal(figures: Figures) -> list[str]:
    found = sorted(name.split(".")[1] for name in figures if name.startswith("rehearsal.") and name.endswith(".recall"))
    rows = [
        [_words(kind), *(figures[f"rehearsal.{kind}.{key}"] for key in ("recall", "low", "high"))] for kind in found
    ]
    return [REHEARSAL, table(["planted", "recall", "low", "high"], rows)] if rows else []


def _ablation(figures: Figures) -> list[str]:
    keys = ("ap", "recall.macro", "planted")
    rows = [
        [
            f"without {_words(part)}",
            _whole(figures, f"ablation.{part}.seeds"),
            *(_mean(figures, f"ablation.{part}.{key}.difference") for key in keys),
            _signed(figures.get(f"handbook.ablation.{part}.planted.difference")),
        ]
        for part in _bench_simulator.PARTS
        if f"ablation.{part}.ap" in figures
    ]
    head = ["", "simulations", "AP", "mean recall", "planted", "planted, Handbook"]
    return [ABLATION, table(head, rows)] if rows else []


def _choices(figures: Figures) -> list[str]:
    names = [
        name.removeprefix("choice.").removesuffix(".planted")
        for name in figures
        if name.endswith(".planted") and ".afar." not in name
    ]
    names = [name for name in names if f"choice.{name}.ap" in figures]
    rows = [
        [name.replace(".", " = ", 1), *(_signed(figures[f"choice.{name}.{key}"]) for key in ("planted", "ap"))]
        for name in sorted(names, key=lambda name: -figures[f"choice.{name}.planted"])
    ]
    if not rows:
        return []
    correlation = figures.get("choice.rank_correlation", float("nan"))
    told = CHOICES.format(correlation=correlation, least=LEAST_GAIN)
    parts = [told, table(["instead of the default", "planted precision", "true AP"], rows)]
    if "choice.afar.after.ap" in figures:
        afar = {
            f"{when}_{key}": figures[f"choice.afar.{when}.{key}"]
            for when in ("before", "after")
            for key in ("ap", "planted")
        }
        parts.append(AFAR.format(**afar))
    return parts


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def contamination(figures: Figures, sizes: Sizes, pictures: Sequence[str]) -> list[str]:
    """AP by level."""
    rows = [
        [
            f"{level:g} %",
            *(_mean(figures, f"contamination.{level:g}.{name}.ap") for name in _bench_contamination.SCORERS),
            _percent(figures.get(f"contamination.{level:g}.history_share")),
        ]
        for level in sizes.levels
    ]
    head = ["fraud in the history", *_bench_contamination.SCORERS, "measured share"]
    parts = [CONTAMINATION.format(sizes=sizes), table(head, rows)]
    if "contamination.svg" in pictures:
        parts.append("![Average precision by fraud in the history](contamination.svg)")
    return parts


def rates(figures: Figures, sizes: Sizes, pictures: Sequence[str]) -> list[str]:
    """Observed shares beside the nominal ones."""
    rows: list[list[object]] = []
    for group in _bench_rates.GROUPS:
        for way, told in WAYS.items():
            name = _bench_rates.figure_name(f"{way}{group}")
            if not figures.get(f"{name}.events"):
                continue
            row: list[object] = [_words(group), told, f"{figures[f'{name}.events']:,.0f}"]
            for level in _bench_rates.LEVELS:
                key = f"{name}.{level:g}"
                ends = f"{figures[f'{key}.least']:.3g}–{figures[f'{key}.most']:.3g}"
                row += [f"{figures[key]:.3g} ({ends})", f"{figures[key] / level:.2f}"]
                row += ["yes" if figures[f"{key}{of}.inside"] else "no" for of in ("", ".calibrated")]
            rows.append(row)
    words = (word for level in _bench_rates.LEVELS for word in (f"p ≤ {level:g}", "over it", "inside", "fit's"))
    counts = {key: figures.get(f"rates.{key}", 0) for key in ("fits", "history", "held_out", "events")}
    parts = [
        RATES.format(
            sizes=sizes,
            fits=counts["fits"],
            history=counts["history"],
            held=counts["held_out"],
            scored=counts["events"],
        ),
        table(["events", "calibrated", "number", *words], rows),
    ]
    if "rates.svg" in pictures:
        parts.append("![Observed over promised](rates.svg)")
    return parts


def handbook(figures: Figures, sizes: Sizes, pictures: Sequence[str]) -> list[str]:  # noqa: ARG001 - as its siblings
    """August and September, the four weeks, and the autoencoder's week."""
    scorers = _bench_handbook.SCORERS
    keys = ("auc", "ap", "cp100", "s1.auc", "s1.ap", "s2.auc", "s3.auc", "s3.ap")
    rows = [[name, *_cells(figures, f"handbook.{name}", keys)] for name in scorers if f"handbook.{name}.ap" in figures]
    head = ["August, September", "AUC", "AP", "CP@100", "S1 AUC", "S1 AP", "S2 AUC", "S3 AUC", "S3 AP"]
    parts = [HANDBOOK, table(head, rows)]
    rows = [
        [name, *(f"{figures[f'{start}.{key}']:.3f} ± {figures[f'{start}.{key}.sd']:.3f}" for key in keys[:3])]
        for name in scorers
        if f"{(start := f'handbook.weeks.{name}')}.ap" in figures
    ]
    parts += [WEEKS, table(["four test weeks", "AUC", "AP", "CP@100"], rows)] if rows else []
    rows = [
        [name, *_cells(figures, f"handbook.ae_week.{name}", keys[:3])]
        for name in scorers
        if f"handbook.ae_week.{name}.ap" in figures
    ]
    if rows:
        rows += [[name, *values] for name, values in PUBLISHED_WEEK.items()]
        parts += [AE_WEEK, table(["25 to 31 July", "AUC", "AP", "CP@100"], rows)]
    return parts


def nab(figures: Figures, sizes: Sizes, pictures: Sequence[str]) -> list[str]:  # noqa: ARG001 - as its siblings
    """VUS-PR and AUC-PR, means and by series."""
    scorers, keys = _bench_nab.SCORERS, _bench_nab.MEASURES
    parts = [NAB]
    if f"nab.ours.{keys[0]}" in figures:
        rows: list[list[object]] = [[name, *_cells(figures, f"nab.{name}", keys)] for name in scorers]
        rows += [[name, *values] for name, values in PUBLISHED_SERIES.items()]
        parts.append(table(["mean of six series", "VUS-PR", "AUC-PR"], rows))
    start, end = "nab.ours.", ".vus_pr"
    names = sorted(name[len(start) : -len(end)] for name in figures if name.startswith(start) and name.count(".") == 3)
    for key, word in zip(keys, ("VUS-PR", "AUC-PR"), strict=True):
        rows = [[name, *(figures[f"nab.{scorer}.{name}.{key}"] for scorer in scorers)] for name in dict.fromkeys(names)]
        parts.append(table([word, *scorers], rows))
    return parts


def _cells(figures: Figures, start: str, keys: Sequence[str]) -> list[object]:
    return [figures.get(f"{start}.{key}", NONE) for key in keys]


def _mean(figures: Figures, name: str) -> str:
    """A mean with half its interval, if it has one."""
    if name not in figures:
        return NONE
    half = f" ± {(figures[f'{name}.high'] - figures[f'{name}.low']) / 2:.3f}" if f"{name}.low" in figures else ""
    return f"{figures[name]:.3f}{half}"


def _whole(figures: Figures, name: str) -> str:
    return f"{figures[name]:,.0f}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.2%}"


def _words(name: str) -> str:
    known = {"auc": "AUC", "ap": "AP", "recall.macro": "recall, mean of the kinds"}
    return known.get(name, name.replace("recall.", "– of ").replace("_", " "))


# ---- pictures --------------------------------------------------------------------------------------------------------


def recall_picture(figures: Figures) -> Figure | None:
    """Recall by kind, one mark for each scorer, with intervals."""
    names, shown = kinds(figures), [name for name in DRAWN if f"simulator.{name}.ap" in figures]
    if not names or "ours" not in shown:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.55 * len(names) + 1.3), layout="constrained")
        axes = figure.subplots()
        for at, name in enumerate(shown):
            axes.plot([], [], MARKS.get(name, "|"), color=COLOURS[name], label=name.replace("_", " "))
            for place, kind in enumerate(names):
                key, y = f"simulator.{name}.recall.{kind}", place + 0.14 * (at - (len(shown) - 1) / 2)
                if f"{key}.low" in figures:
                    axes.plot([figures[f"{key}.low"], figures[f"{key}.high"]], [y, y], color=COLOURS[name], linewidth=1)
                if key in figures:  # a kind may be missing in few simulations
                    axes.plot(figures[key], y, MARKS.get(name, "|"), color=COLOURS[name], markersize=5)
        axes.set_yticks(range(len(names)), [_words(kind) for kind in names])
        axes.set(xlabel="recall at the alert budget; lines: 95 % intervals", xlim=(-0.02, 1.02))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(False, axis="y")
        _legend(figure)
    return figure


def contamination_picture(figures: Figures, sizes: Sizes) -> Figure | None:
    """AP against the share of fraud in the history."""
    names = [name for name in _bench_contamination.SCORERS if f"contamination.0.{name}.ap" in figures]
    if "ours" not in names:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for name in names:
            levels = [level for level in sizes.levels if f"contamination.{level:g}.{name}.ap" in figures]
            y = [figures[f"contamination.{level:g}.{name}.ap"] for level in levels]
            line = "--o" if name.startswith("without") else "-o"
            axes.plot(levels, y, line, color=COLOURS[name], markersize=4, label=name.replace("_", " "))
        axes.set(xlabel="per cent of fraud in the history", ylabel="average precision", ylim=(0, None))
        _legend(figure)
    return figure


def rates_picture(figures: Figures) -> Figure | None:
    """Observed over promised, by group and level, with the interval."""
    groups = [group for group in _bench_rates.GROUPS if figures.get(f"{_bench_rates.figure_name(group)}.events")]
    if not groups:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.8), layout="constrained")
        for axes, level in zip(
            figure.subplots(1, len(_bench_rates.LEVELS), sharey=True), _bench_rates.LEVELS, strict=True
        ):
            for place, group in enumerate(groups):
                for (way, told), (mark, shift) in zip(WAYS.items(), (("o", -0.13), ("s", 0.13)), strict=True):
                    key = f"{_bench_rates.figure_name(way + group)}.{level:g}"
                    for of, width in ((".calibrated", 2), ("", 6)) if not way else ():
                        ends = [figures[f"{key}{of}.low"] / level, figures[f"{key}{of}.high"] / level]
                        axes.plot(ends, [place, place], color=RULES[0], linewidth=width, solid_capstyle="butt")
                    face = MODELS[-1] if not way else "white"
                    known = f"calibrated {told}" if not place else None
                    given = {"color": MODELS[-1], "markerfacecolor": face, "markersize": 5, "label": known}
                    axes.plot(figures[key] / level, place + shift, mark, **given)
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
            axes.set(title=f"p ≤ {level:g}", xlabel="observed over promised", ylim=(len(groups) - 0.5, -0.5))
            axes.set_yticks(range(len(groups)), [_words(group) for group in groups])
            axes.grid(False, axis="y")
        _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))


def _save(figure: Figure, path: Path) -> None:
    stream = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None})
    write_text(path, stream.getvalue())


# ---- words -----------------------------------------------------------------------------------------------------------

TITLES = {
    "simulator": "Simulated payments",
    "contamination": "Fraud in the history",
    "rates": "Promised and observed rates",
    "handbook": "Fraud Detection Handbook",
    "nab": "Single time series",
}
HEAD = """# Detection bench

Made by

    {command}

**How to read it.** `amount`, `ratio` (the amount over the median of the customer's earlier amounts), `robust_z` (how
far the amount lies from the usual of its category) and `distance_from_median` are rules: what a model must beat.
`isolation_forest`, `ecod` and `pyod_lstm` are other people's detectors, on the same causal features. `plain_forecaster`
and `plain_autoencoder` are this project's models alone, without quarantine, robust weights, evidence or rehearsal.
`ours` is the detector with its defaults; `autoencoder` and `forecaster` are its p-values from each model. `oracle` is
the same detector after somebody has taken the frauds out of the history, and `ceiling` is the best that any ranking
without labels can do: neither can be had. Labels are read when all scores are made, for the figures alone. ± is half of
a 95 % interval over the simulations, unless it says otherwise."""
SIMULATOR = """{sizes.customers} customers, {sizes.days} days, 1 % fraud; learned from the first {sizes.fit_days} days,
without labels, frauds included; the seeds were not used for any choice. Recall is within the {budget} highest events of
each day: 25 for 1,000 customers, which is 50 a day for 2,000."""
DISCOVERIES = """Benjamini-Hochberg over the customers and then over the events of those that alert, all scored weeks as
one batch, pooled over the simulations. A case is false if none of its alerts is fraud. The standard error is taken over
the customers, and knows nothing of what a fit's calibration adds:"""
REHEARSAL = """What the detector itself foretells without labels, on frauds planted into its held-out history (first
simulation; events above the threshold for the same budget of cases):"""
ABLATION = """One part removed at a time; differences to `ours` on the same simulations. `planted` is the mean precision
on frauds planted into the held-out history, which needs no labels, and so can be had of the Handbook's payments too.
`rehearsal` = the default combination, `fields` = only the numbers that the schema names, `given` = no number judged
given the categories of its event:"""
CHOICES = """What a rehearsal would prefer, held against the truth: gains on planted frauds and true gains of each value
that it may choose, mean of the simulations where this was measured. Their rank correlation is {correlation:.2f}. A
change is taken only for a planted gain beyond {least:g}, two standard errors over the
episodes and one over the kinds:"""
AFAR = """Begun far from good, without the past, with large amounts first and every field alike, a rehearsal leads from
a true AP of {before_ap:.3f} (planted {before_planted:.3f}) to {after_ap:.3f} (planted {after_planted:.3f}), without
a label."""
CONTAMINATION = """{sizes.contamination_seeds} simulations of {sizes.customers} customers whose frauds are thinned by
whole runs: the history holds each share, and the scored events, 1 % of them fraud, are the same for all. Mean average
precision; `without_robust_weights` is `ours` when the strangest runs of the history train it too:"""
RATES = """Simulated payments without any fraud: {fits:.0f} fits of {sizes.rates_customers} customers each, learned from
{history:,.0f} events of the first {sizes.rates_fit_days} days, {scored:,.0f} later ones scored, all by the same models.
`once`: calibrated at the fit alone, on {held:,.0f} held-out events. `monthly`: each month of 30 days is scored by a
detector that was calibrated anew at its start, on the 60 days before it as far as they trained nothing, as
`anomaly recalibrate --since` does it and as a detector is to be run. The targets ask for both. In the first month both
are the same. `over it` = observed over stated share. `inside` = within the interval in which 99 % of
the shares would lie if events were independent and the calibration exact. `fit's` = within the interval that knows that
a calibration is learned from so many events as the fits held out (Vovk 2012), events still taken as independent, and a
group as calibrated by all of them. In brackets the least and the largest share of the fits. Young: fewer than 20
earlier events. Quiet, busy: the lowest and highest third by events in the last 30 days. Drift: all later amounts 10 %
higher, as prices rise, which `monthly` hears of from the second month on."""
HANDBOOK = """Learned from everything to 31 July 2018 without labels. S1: amounts over 220. S2: all payments at a
terminal for 28 days, which changes labels only, so its AUC must be about 0.5. S3: amounts times five. Each scenario
stands against the genuine payments alone."""
WEEKS = """The same scores on the Handbook's own test weeks, from 8, 15, 22 and 29 August, without the cards that are
known to be compromised; mean ± standard deviation over the weeks:"""
AE_WEEK = """The week on which the Handbook measured its autoencoder; ours learned from everything before. The published
figures use features that are derived from labels (the terminals' past share of fraud); nothing else here does:"""
NAB = """Seven series of known causes; learned from the first quarter, cut before the first labelled window; the whole
is scored. VUS-PR and AUC-PR as in TSB-AD, whose published figures are means over the same six series (all but
`rogue_agent_key_hold`):"""
