"""Measure what each label buys on simulated payments: average precision by the number of known frauds.

As in::

    python3 scripts/bench_compare.py

For each seed anew: 90 days of payments; the detector learns from the first 60 without labels, labelled models from as
many known frauds as were found of those older than a week; all rank the last 30 days. The scorers: `amount` and `ratio`
(the amount over the median of the customer's earlier amounts), rules; `unsupervised`, the detector; `logistic`,
`forest` and `xgboost` on single events; `head`, the recurrent head from scratch; `pretrained`, the same started from
the detector's memory with its score as an input. Figures go to reports/compare, with labels.md and labels.svg.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _environment import ROOT, ensure, run_inside

# Any environment that has the libraries will do, and is left as it is; only without them is the project's own one made.
if __name__ == "__main__" and importlib.util.find_spec("torch") is None:
    sys.exit(run_inside(ensure(("baselines",)), __file__, sys.argv[1:]))
if importlib.util.find_spec("anomaly") is None:
    sys.path.append(str(ROOT))

import numpy as np
from _numbers import Meter, merge_numbers, table, write_text
from numpy.typing import NDArray

from anomaly.bootstrap import Bootstrap, paired_bootstrap
from anomaly.comparison import Comparison
from anomaly.comparison_figures import STYLES, label_curve
from anomaly.comparison_measures import UNSUPERVISED, Window
from anomaly.comparison_scorers import RULES
from anomaly.figures import svg_text
from anomaly.simulator import SIMULATED_SCHEMA, simulate

Floats = NDArray[np.float64]
Points = Mapping[int, Mapping[str, Floats]]

DAYS, SINCE = 90, "2024-03-01"
FRAUD_RATE = 0.015  # more than the simulation's own 0.01, so that few customers have some 300 known frauds
KNOWN = (10, 30, 100, 300)
ALL = "all"
FEW = 30  # known frauds at which the head started from the detector is judged
FIRST_SEED = 3001  # no choice was made on these
NAMES = {"head_pretrained": "pretrained"}
LEARNERS = ("logistic", "forest", "xgboost", "head", "pretrained")


@dataclass(frozen=True)
class Play:
    """One simulation: its scores by number of known frauds (0 = none needed) and scorer, and the truth."""

    points: Mapping[str, Mapping[str, Floats]]
    window: Window


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write figures, picture and page, and print where they are."""
    wish = parse(arguments)
    with Meter() as meter:
        plays = [play(seed, wish) for seed in range(FIRST_SEED, FIRST_SEED + wish.seeds)]
        figures = measured(plays, wish.repeats)
    figures["labels.seconds"] = meter.seconds
    command = told(wish)
    merge_numbers(wish.reports, "labels", command, figures)
    write_text(wish.reports / "labels.svg", picture(figures))
    write_text(wish.reports / "labels.md", page(figures, command, wish))
    print(f"figures: {wish.reports}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=200, help="of each simulation (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="simulations (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="size of the memories (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="of detector and heads (default: their own)")
    parser.add_argument("--repeats", type=int, default=1000, help="resamples (default: %(default)s)")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "compare", help="folder of the figures")
    return parser.parse_args(arguments)


def told(wish: argparse.Namespace) -> str:
    """Tell the command that makes the figures again: the options that are not the usual ones."""
    usual = parse([])
    names = ("customers", "seeds", "hidden", "epochs", "repeats")
    given = [f"--{name} {getattr(wish, name)}" for name in names if getattr(wish, name) != getattr(usual, name)]
    return " ".join(["python3 scripts/bench_compare.py", *given])


def play(seed: int, wish: argparse.Namespace) -> Play:
    """Simulate, fit all for each number of known frauds, and keep what was scored."""
    print(f"seed {seed}", flush=True)
    events, labels = simulate(customers=wish.customers, days=DAYS, fraud_rate=FRAUD_RATE, seed=seed)
    found = Comparison(
        schema=SIMULATED_SCHEMA,
        since=SINCE,
        known=KNOWN,
        repeats=1,  # intervals are drawn over all seeds, below
        hidden=wish.hidden,
        epochs=wish.epochs,
        seed=seed,
        say=lambda text: print(f"  {text}", flush=True),
    ).run(events, labels["fraud"])
    last = max(found.points)
    points = {
        ALL if known == last else str(known): {NAMES.get(name, name): score for name, score in scores.items()}
        for known, scores in found.points.items()
    }
    return Play(points, found.window)


def measured(plays: Sequence[Play], repeats: int) -> dict[str, float]:
    """All figures: mean over the seeds, with intervals over the customers of all of them."""
    figures: dict[str, float] = {
        "labels.seeds": len(plays),
        "labels.scored": sum(len(one.window.fraud) for one in plays),
        "labels.scored_frauds": sum(int(one.window.fraud.sum()) for one in plays),
        "labels.known_frauds": float(np.mean([one.window.known_frauds for one in plays])),
    }
    figures["labels.base_rate"] = figures["labels.scored_frauds"] / figures["labels.scored"]
    shared = [known for known in plays[0].points if all(known in one.points for one in plays)]
    for known in shared:
        drawn = resampled(plays, known, repeats)
        for name, value in drawn.value.items():
            key = f"labels.{known}.{name}"
            figures |= {f"{key}.ap": value, f"{key}.ap.low": drawn.low[name], f"{key}.ap.high": drawn.high[name]}
        for other in drawn.value:
            if "pretrained" in drawn.value and other != "pretrained":
                figures[f"labels.{known}.pretrained.beats.{other}"] = drawn.beats["pretrained"][other]
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


def learned(figures: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Return the numbers of known frauds at which something was learned, rising, and the learners that are there."""
    names = [name for name in LEARNERS if f"labels.{ALL}.{name}.ap" in figures]
    return [known for known in (*map(str, KNOWN), ALL) if f"labels.{known}.head.ap" in figures], names


def picture(figures: Mapping[str, float]) -> str:
    """Draw the curve as an SVG file."""
    known, names = learned(figures)
    drawn = {after: before for before, after in NAMES.items()}

    def values(name: str, end: str) -> Floats:
        return np.array([figures[f"labels.{one}.{name}.ap{end}"] for one in known])

    curves = {drawn.get(name, name): (values(name, ""), values(name, ".low"), values(name, ".high")) for name in names}
    flat = {name: figures[f"labels.0.{name}.ap"] for name in (*RULES, UNSUPERVISED)}
    numbers = [round(figures["labels.known_frauds"]) if one == ALL else int(one) for one in known]
    label = f"Average precision from {numbers[0]} to {numbers[-1]} known frauds; the numbers stand in labels.md."
    return svg_text(label_curve(numbers, curves, flat), prefix="labels", label=label) + "\n"


def page(figures: Mapping[str, float], command: str, wish: argparse.Namespace) -> str:
    """Compose labels.md."""
    known, names = learned(figures)
    heads = [f"all ({figures['labels.known_frauds']:,.0f})" if one == ALL else one for one in known]

    def cell(name: str, one: str) -> str:
        value, low, high = (figures[f"labels.{one}.{name}.ap{end}"] for end in ("", ".low", ".high"))
        return f"{value:.3f} ({low:.3f}–{high:.3f})"

    rows = [[name, cell(name, "0"), *([""] * len(known))] for name in (*RULES, UNSUPERVISED)]
    rows += [[name, "", *(cell(name, one) for one in known)] for name in names]
    others = [name for name in (*RULES, UNSUPERVISED, *names) if name != "pretrained"]
    beats = [[name, *(f"{figures[f'labels.{one}.pretrained.beats.{name}']:.2f}" for one in known)] for name in others]
    strokes = ", ".join(
        f"`{NAMES.get(name, name)}` {colour} {stroke}"
        for name, (colour, stroke) in STYLES.items()
        if NAMES.get(name, name) in (*RULES, UNSUPERVISED, *names)
    )
    return f"""# What each label buys

Made in {figures["labels.seconds"] / 60:.0f} minutes by

    {command}

Average precision on the last 30 of {DAYS} days of simulated payments ({figures["labels.scored"]:,.0f} payments of
{wish.customers} customers in each of {wish.seeds} simulations, {figures["labels.scored_frauds"]:,.0f} of them fraud:
{figures["labels.base_rate"]:.2%}, which a random ranking gets), by the number of frauds whose label was known when they
began. Mean over the simulations; in brackets 95 % intervals over their customers, which cover neither another fit nor
another draw of the known frauds. The rest of the frauds in the history count as genuine, as they do where nobody finds
them.

{table(["known frauds", "0", *heads], rows)}

![Average precision by known frauds](labels.svg)

({strokes}; bars are the intervals.)

`amount` and `ratio` (the amount over the median of the customer's earlier amounts) are rules, `unsupervised` is the
detector, and `pretrained` the recurrent head started from the detector's memory with its score as an input; `head`
starts from nothing. All but the first three read past fraud of the customer, merchant, device and so on, as far as it
was known by then.

Share of the resamples in which `pretrained` is above another scorer:

{table(["pretrained above", *heads], beats)}

{verdict(figures)}
"""


def verdict(figures: Mapping[str, float]) -> str:
    """Say how the head that starts from the detector fares with few known frauds."""
    start = f"labels.{FEW}.pretrained.beats"
    if f"{start}.head" not in figures:
        return ""
    told = [f"the head from scratch with probability {figures[f'{start}.head']:.2f}"]
    told += [f"XGBoost with {figures[f'{start}.xgboost']:.2f}"] if f"{start}.xgboost" in figures else []
    told += [f"the detector, without a label, with {figures[f'{start}.unsupervised']:.2f}"]
    return f"With {FEW} known frauds the pre-trained head beats {', '.join(told)}."


if __name__ == "__main__":
    sys.exit(main())
