"""Measure what each label buys: average precision by the number of known frauds.

As in::

    python3 scripts/bench_compare.py
    python3 scripts/bench_compare.py --data handbook.parquet

The detector learns from history without labels, labelled models from as many known frauds as were found of those older
than a week; all rank the same later payments. On simulated payments, for each seed anew: 60 days of history, 30 scored.
With `--data` on the Handbook's: four months of history, August and September scored, of customers who pay at the same
terminals. The scorers: `amount` and `ratio` (the amount over the median of the customer's earlier amounts), rules;
`isolation_forest`; `unsupervised`, the detector; `logistic`, `forest` (on simulated payments alone) and `xgboost` on
single events; `head`, the recurrent head from scratch; `pretrained`, the same started from the detector: its memory is
the detector's, and its score a prior to which it learns what to add. Figures go to reports/compare, with a page and a
picture.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from _environment import ROOT, ensure, run_inside

# Any environment that has the libraries will do, and is left as it is; only without them is the project's own one made.
if __name__ == "__main__" and importlib.util.find_spec("torch") is None:
    sys.exit(run_inside(ensure(("baselines",)), __file__, sys.argv[1:]))
if importlib.util.find_spec("anomaly") is None:
    sys.path.append(str(ROOT))

import handbook
import numpy as np
import polars as pl
from _numbers import Meter, merge_numbers, table, write_text
from numpy.typing import NDArray

from anomaly.bootstrap import Bootstrap, paired_bootstrap
from anomaly.comparison import Comparison
from anomaly.comparison_figures import STYLES, label_curve
from anomaly.comparison_measures import UNSUPERVISED, Window
from anomaly.comparison_scorers import UNLABELLED
from anomaly.figures import svg_text
from anomaly.simulator import SIMULATED_SCHEMA, simulate

Floats = NDArray[np.float64]

DAYS, SINCE = 90, "2024-03-01"
FRAUD_RATE = 0.025  # more than the simulation's own 0.01, so that few customers have more than 300 known frauds
KNOWN = (10, 30, 100, 300)
ALL = "all"
FEW = 30  # known frauds at which the head started from the detector is judged
FIRST_SEED = 3101  # no choice was made on these
EPOCHS = 4  # of detector and heads
HANDBOOK_BASELINES = ("logistic", "xgboost")  # a forest on so many payments takes as long as all others together
NAMES = {"head_pretrained": "pretrained"}
LEARNERS = ("logistic", "forest", "xgboost", "head", "pretrained")
PART, HANDBOOK = "labels", "labels.handbook"  # begin the names of figures


@dataclass(frozen=True)
class Play:
    """What was scored: by number of known frauds (0 = none needed) and scorer, and the truth."""

    points: Mapping[str, Mapping[str, Floats]]
    window: Window


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write figures, picture and page, and print where they are."""
    wish = parse(arguments)
    part = HANDBOOK if wish.data else PART
    with Meter() as meter:
        seeds = range(FIRST_SEED, FIRST_SEED + wish.seeds)
        plays = [on_handbook(wish)] if wish.data else [on_simulated(seed, wish) for seed in seeds]
        figures = measured(plays, wish.repeats, part)
    figures[f"{part}.seconds"] = meter.seconds
    command = told(wish)
    own = sorted({f"{part}.{name.removeprefix(part)[1:].split('.')[0]}" for name in figures})
    merge_numbers(wish.reports, part, command, figures, own)  # the ones of the other payments stay
    stem = part.replace(".", "_")
    write_text(wish.reports / f"{stem}.svg", picture(figures, part))
    write_text(wish.reports / f"{stem}.md", page(figures, part, command, wish))
    print(f"figures: {wish.reports}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the Handbook's payments, a Parquet file; else simulated ones")
    parser.add_argument("--customers", type=int, help="(default: 160 of each simulation, 400 of the Handbook's)")
    parser.add_argument("--seeds", type=int, default=2, help="simulations (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="size of the memories (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of detector and heads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1000, help="resamples (default: %(default)s)")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "compare", help="folder of the figures")
    wish = parser.parse_args(arguments)
    wish.customers = wish.customers or (400 if wish.data else 160)
    return wish


def told(wish: argparse.Namespace) -> str:
    """Tell the command that makes the figures again: the options that are not the usual ones."""
    data = ["--data", str(wish.data)] if wish.data else []
    usual = parse(data)
    names = ("customers", "seeds", "hidden", "epochs", "repeats")
    given = [f"--{name} {getattr(wish, name)}" for name in names if getattr(wish, name) != getattr(usual, name)]
    shown = [f"--data {wish.data.name}"] if wish.data else []
    return " ".join(["python3 scripts/bench_compare.py", *shown, *given])


def on_simulated(seed: int, wish: argparse.Namespace) -> Play:
    """Simulate, fit all for each number of known frauds, and keep what was scored."""
    print(f"seed {seed}", flush=True)
    events, labels = simulate(customers=wish.customers, days=DAYS, fraud_rate=FRAUD_RATE, seed=seed)
    return compared(events, labels["fraud"], wish, schema=SIMULATED_SCHEMA, since=SINCE, seed=seed)


def on_handbook(wish: argparse.Namespace) -> Play:
    """The same on the Handbook's payments of some customers."""
    events = pl.read_parquet(wish.data)
    events = events.filter(pl.col("CUSTOMER_ID").is_in(neighbours(events, wish.customers).implode()))
    return compared(
        events.drop("TX_FRAUD", "TX_FRAUD_SCENARIO"),
        events["TX_FRAUD"],
        wish,
        schema=handbook.SCHEMA.model_copy(update={"label": None}),
        since=handbook.SINCE,
        baselines=HANDBOOK_BASELINES,
    )


def neighbours(events: pl.DataFrame, number: int) -> pl.Series:
    """Return customers who pay at the same terminals: the first one, and again and again those who share the most.

    So most of what is known of a terminal is among the payments of these customers. No label is read.
    """
    pairs = events.select("CUSTOMER_ID", "TERMINAL_ID").unique(maintain_order=True)
    customer, terminal = (
        pairs[name].cast(pl.String).rank("dense").to_numpy().astype(np.int64) - 1
        for name in ("CUSTOMER_ID", "TERMINAL_ID")
    )
    names = pairs.select("CUSTOMER_ID", code=customer).unique().sort("code")["CUSTOMER_ID"]
    inside = np.zeros(len(names), dtype=bool)
    inside[0] = True
    while inside.sum() < min(number, len(names)):
        met = np.zeros(terminal.max() + 1, dtype=bool)
        met[terminal[inside[customer]]] = True
        shared = np.bincount(customer, weights=met[terminal]) / np.bincount(customer)  # of each customer's terminals
        shared[inside] = 2.0
        inside[np.argsort(-shared, kind="stable")[: min(number, 2 * inside.sum())]] = True
    return names.filter(inside)


def compared(events: pl.DataFrame, fraud: pl.Series, wish: argparse.Namespace, **asked: Any) -> Play:
    """Compare, and keep what was scored."""
    found = Comparison(
        known=KNOWN,
        repeats=1,  # intervals are drawn over all plays, below
        hidden=wish.hidden,
        epochs=wish.epochs,
        say=lambda text: print(f"  {text}", flush=True),
        **asked,
    ).run(events, fraud)
    last = max(found.points)
    points = {
        ALL if known == last else str(known): {NAMES.get(name, name): score for name, score in scores.items()}
        for known, scores in found.points.items()
    }
    return Play(points, found.window)


def measured(plays: Sequence[Play], repeats: int, part: str = PART) -> dict[str, float]:
    """All figures: mean over the plays, with intervals over the customers of all of them."""
    facts: dict[str, float] = {
        "seeds": len(plays),
        "scored": sum(len(one.window.fraud) for one in plays),
        "scored_frauds": sum(int(one.window.fraud.sum()) for one in plays),
        "known_frauds": float(np.mean([one.window.known_frauds for one in plays])),
        "customers": sum(len(np.unique(one.window.entity)) for one in plays),
    }
    figures = {f"{part}.{name}": value for name, value in facts.items()}
    figures[f"{part}.base_rate"] = facts["scored_frauds"] / facts["scored"]
    shared = [known for known in plays[0].points if all(known in one.points for one in plays)]
    for known in shared:
        drawn = resampled(plays, known, repeats)
        for name, value in drawn.value.items():
            key = f"{part}.{known}.{name}"
            figures |= {f"{key}.ap": value, f"{key}.ap.low": drawn.low[name], f"{key}.ap.high": drawn.high[name]}
        for other in drawn.value:
            if "pretrained" in drawn.value and other != "pretrained":
                figures[f"{part}.{known}.pretrained.beats.{other}"] = drawn.beats["pretrained"][other]
    return figures


def resampled(plays: Sequence[Play], known: str, repeats: int) -> Bootstrap:
    """Draw the customers of all seeds; those of two seeds are different ones, and each seed is a fold of its own."""
    scores = [{**one.points["0"], **one.points[known]} for one in plays]
    sizes = [len(one.window.fraud) for one in plays]
    first = np.cumsum([0, *(int(one.window.entity.max()) + 1 for one in plays[:-1])])
    return paired_bootstrap(
        {name: np.concatenate([each[name] for each in scores]) for name in scores[0]},
        np.concatenate([one.window.fraud for one in plays]),
        np.concatenate([one.window.entity + start for one, start in zip(plays, first, strict=True)]),
        fold=np.repeat(np.arange(len(plays)), sizes),
        repeats=repeats,
    )


def learned(figures: Mapping[str, float], part: str) -> tuple[list[str], list[str]]:
    """Return the numbers of known frauds at which something was learned, rising, and the learners that are there."""
    names = [name for name in LEARNERS if f"{part}.{ALL}.{name}.ap" in figures]
    return [known for known in (*map(str, KNOWN), ALL) if f"{part}.{known}.head.ap" in figures], names


def picture(figures: Mapping[str, float], part: str) -> str:
    """Draw the curve as an SVG file."""
    known, names = learned(figures, part)
    drawn = {after: before for before, after in NAMES.items()}

    def values(name: str, end: str) -> Floats:
        return np.array([figures[f"{part}.{one}.{name}.ap{end}"] for one in known])

    curves = {drawn.get(name, name): (values(name, ""), values(name, ".low"), values(name, ".high")) for name in names}
    flat = {name: figures[f"{part}.0.{name}.ap"] for name in UNLABELLED if f"{part}.0.{name}.ap" in figures}
    numbers = [round(figures[f"{part}.known_frauds"]) if one == ALL else int(one) for one in known]
    label = f"Average precision from {numbers[0]} to {numbers[-1]} known frauds; the numbers stand in the page beside."
    return svg_text(label_curve(numbers, curves, flat), prefix=part.replace(".", "_"), label=label) + "\n"


def page(figures: Mapping[str, float], part: str, command: str, wish: argparse.Namespace) -> str:
    """Compose the page of the simulated or the Handbook's payments."""
    known, names = learned(figures, part)
    mine = {name.removeprefix(part)[1:]: value for name, value in figures.items()}
    heads = [f"all ({mine['known_frauds']:,.0f})" if one == ALL else one for one in known]

    def cell(name: str, one: str) -> str:
        value, low, high = (mine[f"{one}.{name}.ap{end}"] for end in ("", ".low", ".high"))
        return f"{value:.3f} ({low:.3f}–{high:.3f})"

    flat = [name for name in UNLABELLED if f"0.{name}.ap" in mine]
    rows = [[name, cell(name, "0"), *([""] * len(known))] for name in flat]
    rows += [[name, "", *(cell(name, one) for one in known)] for name in names]
    others = [name for name in (*flat, *names) if name != "pretrained"]
    beats = [[name, *(f"{mine[f'{one}.pretrained.beats.{name}']:.2f}" for one in known)] for name in others]
    strokes = ", ".join(
        f"`{NAMES.get(name, name)}` {colour} {stroke}"
        for name, (colour, stroke) in STYLES.items()
        if NAMES.get(name, name) in (*flat, *names)
    )
    scored = f"""{mine["scored"]:,.0f} payments, {mine["scored_frauds"]:,.0f} of them fraud: {mine["base_rate"]:.2%},
        which a random ranking gets), by the number of frauds whose label was known when they began."""
    what = (
        f"""Average precision on the Handbook's payments of August and September, of {wish.customers:,} customers who
        pay at the same terminals ({scored} One fit; in brackets 95 % intervals over the customers"""
        if part == HANDBOOK
        else f"""Average precision on the last 30 of {DAYS} days of simulated payments ({wish.customers} customers
        of each simulation, of which there are {mine["seeds"]:.0f}; {scored} Mean over the simulations; in brackets
        95 % intervals over their customers"""
    )
    parts = [
        f"# What each label buys{': the Handbook' if part == HANDBOOK else ''}",
        f"Made in {mine['seconds'] / 60:.0f} minutes by\n\n    {command}",
        filled(f"""{what}, which cover neither another fit nor another draw of the known frauds. The rest of the frauds
            in the history count as genuine, as they do where nobody finds them, and none that is scored is found but
            for the last column, where labels go on coming in, a week late."""),
        table(["known frauds", "0", *heads], rows),
        f"![Average precision by known frauds]({part.replace('.', '_')}.svg)",
        filled(f"({strokes}; bars are the intervals.)"),
        filled("""`amount` and `ratio` (the amount over the median of the customer's earlier amounts) are rules,
            `isolation_forest` reads the causal features, `unsupervised` is the detector, and `pretrained` the recurrent
            head started from it: from its memory, and with its score as a prior to which it learns what to add; `head`
            starts from nothing. What learns from labels also reads past fraud of the customer, merchant, device and so
            on, as far as it was known by then."""),
        "Share of the resamples in which `pretrained` is above another scorer:",
        table(["pretrained above", *heads], beats),
        filled(verdict(figures, part)),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(figures: Mapping[str, float], part: str = PART) -> str:
    """Say how the head that starts from the detector fares with few known frauds."""
    start = f"{part}.{FEW}.pretrained.beats"
    if f"{start}.head" not in figures:
        return ""
    said = [f"the head from scratch with probability {figures[f'{start}.head']:.2f}"]
    said += [f"XGBoost with {figures[f'{start}.xgboost']:.2f}"] if f"{start}.xgboost" in figures else []
    said += [f"the detector, without a label, with {figures[f'{start}.unsupervised']:.2f}"]
    known, _ = learned(figures, part)
    below = [one for one in known if figures[f"{part}.{one}.pretrained.ap"] < figures[f"{part}.0.{UNSUPERVISED}.ap"]]
    falls = [
        one
        for before, one in pairwise(known)
        if figures[f"{part}.{one}.pretrained.ap"] < figures[f"{part}.{before}.pretrained.ap"]
    ]
    ends = f"below the detector with {', '.join(below)} known" if below else "never below the detector"
    rises = f"falls at {', '.join(falls)}" if falls else "rises with every step"
    return f"With {FEW} known frauds the pre-trained head beats {', '.join(said)}. It is {ends}, and {rises}."


def filled(text: str) -> str:
    """Wrap a paragraph."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())
