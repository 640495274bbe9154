"""Take the Fraud Detection Handbook's payments from file to report, and measure what comes out.

As in::

    python3 scripts/handbook.py handbook.parquet --out ../handbook-report

The public command line fits on everything to 31 July 2018 without labels, scores August and September, and writes the
report. Only then are the labels read. Figures and aggregates go to reports/handbook; the scores and the report, which
hold rows of the data, go to a folder outside the repository.

The scorers: `amount`; `ratio`, the amount over the median of the customer's earlier amounts; the detector's
`autoencoder`, `forecaster` and `both`; and the `ceiling`, an oracle: all frauds of scenarios 1 and 3 first, then the
rest at random, since scenario 2 changes nothing but labels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from _environment import ensure, inside, run_inside

if __name__ == "__main__" and not inside():
    sys.exit(run_inside(ensure(()), __file__, sys.argv[1:]))

import numpy as np
import polars as pl
from _figures import Curve, curves
from _numbers import file_to_report, fit_options, parse, table, told_command, write_numbers, write_text
from numpy.typing import NDArray

from anomaly.evaluation import (
    average_precision,
    card_precision_at_k,
    card_precision_by_day,
    daily,
    per_kind,
    roc_auc,
    rule_amount,
    rule_ratio,
)
from anomaly.schema import NumericField, Schema

Floats = NDArray[np.float64]

SINCE = "2018-08-01"
SCHEMA = Schema(
    time="TX_DATETIME",
    entity=("CUSTOMER_ID",),
    event_id="TRANSACTION_ID",
    numeric=(NumericField(name="TX_AMOUNT", scale="log", tail="upper"),),
    categorical=("TERMINAL_ID",),
    label="TX_FRAUD",
)
SCORERS = ("amount", "ratio", "autoencoder", "forecaster", "both")
CARDS = 100  # that a team looks at each day
POINTS = 120  # of a drawn curve
WEEK = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures, and print where they are."""
    wish = parse(__doc__, "handbook", arguments)
    scores_path, figures = file_to_report(
        wish.data, SCHEMA.to_toml(), wish.out, until=SINCE, options=fit_options(wish), budget=CARDS
    )
    scores = pl.read_parquet(scores_path)
    events = pl.read_parquet(wish.data).with_row_index("row")  # with the labels, after the scores are written
    scorers = rules(events, scores["row"].to_numpy()) | model_scores(scores)
    scored = events[scores["row"].to_numpy()]
    if scored["TRANSACTION_ID"].cast(pl.String).to_list() != scores["TRANSACTION_ID"].cast(pl.String).to_list():
        raise RuntimeError("the scores' rows lead to other events than the events' ids: labels cannot be joined")
    kind = scored["TX_FRAUD_SCENARIO"].cast(pl.Int64).to_numpy()
    figures |= counts(kind, figures["score.seconds"], events.height)
    scorers["ceiling"] = np.isin(kind, (1, 3)) + np.random.default_rng(0).random(kind.size)
    day, card = daily(scored["TX_DATETIME"].dt.epoch("s").to_numpy()), scored["CUSTOMER_ID"].to_numpy()
    for name, score in scorers.items():
        figures |= quality(name, score, kind) | {
            f"{name}.cp100": card_precision_at_k(day, card, score, kind > 0, CARDS)
        }
    drawn = {name: scorers[name] for name in SCORERS}
    curves(wish.reports / "precision_recall.svg", precision_recall(drawn, kind), "recall", "precision")
    curves(wish.reports / "card_precision.svg", by_day(drawn, day, card, kind), "", f"CP@{CARDS}, mean of {WEEK} days")
    command = told_command(__file__, wish.data, fit_options(wish))
    write_numbers(wish.reports, command, figures)
    write_text(wish.reports / "report.md", page(figures, command))
    print(f"figures: {wish.reports}\nscores and report, with rows of the data: {wish.out}")
    return 0


def rules(events: pl.DataFrame, rows: NDArray[np.int64]) -> dict[str, Floats]:
    """Score by the simplest rules over the whole history, for the events in `rows`."""
    amount = events["TX_AMOUNT"].to_numpy()
    time = events["TX_DATETIME"].dt.epoch("s").to_numpy()
    history = events.filter(pl.col("TX_DATETIME").dt.to_string("%Y-%m-%d") < SINCE)["TX_AMOUNT"]
    population = float(np.median(history.to_numpy()))
    ratio = rule_ratio(events["CUSTOMER_ID"].to_numpy(), amount, time, population)
    return {"amount": rule_amount(amount)[rows], "ratio": ratio[rows]}


def model_scores(scores: pl.DataFrame) -> dict[str, Floats]:
    """Surprise of each model and of both. 1 - p would round to 1 in the far tail and make ties there."""
    single = {name: -np.log10(scores[f"p_{name}"].to_numpy()) for name in ("autoencoder", "forecaster")}
    return single | {"both": scores["surprise"].to_numpy()}


def quality(name: str, score: Floats, kind: NDArray[np.int64]) -> dict[str, float]:
    """AUC and average precision over all frauds, and for each scenario against the genuine events alone."""
    found = {f"{name}.auc": roc_auc(score, kind > 0), f"{name}.ap": average_precision(score, kind > 0)}
    for one, values in per_kind(score, kind > 0, kind).items():
        found |= {f"{name}.s{one}.auc": values["auc"], f"{name}.s{one}.ap": values["ap"]}
    return found


def counts(kind: NDArray[np.int64], seconds: float, read: int) -> dict[str, float]:
    """Count the scored events and their frauds; the speed counts no event of the history that was read with them."""
    frauds = {f"s{one}.frauds": int((kind == one).sum()) for one in (1, 2, 3)}
    return frauds | {
        "score.events": kind.size,
        "score.events_read": read,
        "score.events_per_second": kind.size / seconds,
        "frauds": int((kind > 0).sum()),
        "base_rate": float((kind > 0).mean()),
    }


def precision_recall(scorers: Mapping[str, Floats], kind: NDArray[np.int64]) -> dict[str, dict[str, Curve]]:
    """Curves over all frauds and for each scenario against the genuine events, thinned evenly in recall."""
    panels: dict[str, dict[str, Curve]] = {}
    for title, one in {"all frauds": 0, **{f"scenario {k} against genuine": k for k in (1, 2, 3)}}.items():
        mine = (kind == 0) | (kind == one) | (one == 0)
        panels[title] = {}
        for name, score in scorers.items():
            order = np.argsort(-score[mine], kind="stable")
            found = np.cumsum(kind[mine][order] > 0)
            at = np.searchsorted(found, np.unique(np.linspace(1, found[-1], POINTS).astype(np.int64)))
            panels[title][name] = (found[at] / found[-1], found[at] / (at + 1.0))
    return panels


def by_day(
    scorers: Mapping[str, Floats], day: NDArray[np.int64], card: NDArray[np.int64], kind: NDArray[np.int64]
) -> dict[str, dict[str, Curve]]:
    """Card precision of each day, the mean of it and the six days before."""
    found: dict[str, Curve] = {}
    for name, score in scorers.items():
        days, precision = card_precision_by_day(day, card, score, kind > 0, CARDS)
        mean = pl.Series(precision).rolling_mean(WEEK, min_samples=1).to_numpy()
        found[name] = (days.astype("datetime64[D]"), mean)
    return {f"compromised cards among the {CARDS} looked at each day": found}


def page(figures: Mapping[str, float], command: str) -> str:
    """Compose report.md."""
    head = ["scorer", "AUC", "AP", "CP@100", *(f"S{k} {what}" for k in (1, 2, 3) for what in ("AUC", "AP"))]
    keys = ["auc", "ap", "cp100", *(f"s{k}.{what}" for k in (1, 2, 3) for what in ("auc", "ap"))]
    quality_ = table(head, [[name, *(figures[f"{name}.{key}"] for key in keys)] for name in (*SCORERS, "ceiling")])
    steps = [
        [
            step,
            f"{figures[f'{step}.seconds']:,.0f}",
            f"{figures[key]:,.0f}" if (key := f"{step}.peak_mb") in figures else "–",
        ]
        for step in ("fit", "score", "report")
    ]
    frauds = ", ".join(f"{figures[f's{k}.frauds']:,} of scenario {k}" for k in (1, 2, 3))
    return f"""# Fraud Detection Handbook, without labels

Fitted on everything to 31 July 2018 without labels; scored: {figures["score.events"]:,} payments from {SINCE} on,
{figures["frauds"]:,} of them fraud ({figures["base_rate"]:.2%}: {frauds}). Made by

    {command}

{quality_}

**How to read it.** `amount` and `ratio` (amount over the median of the customer's earlier amounts) are the rules to
beat; the others learned from the unlabelled history. AP of a random ranking is the base rate. S1 (amounts over 220), S2
(all payments at a terminal for 28 days) and S3 (a third of a customer's payments in 14 days, amounts times 5) stand
against the genuine payments alone. S2 changes labels only: amounts, times and terminals are as before, so nothing
without labels can rank it above chance, and S2 AUC must be about 0.5. `ceiling` is what that leaves, an oracle with
all of S1 and S3 first and the rest at random: overall AP {figures["ceiling.ap"]:.3f} on these events (about 0.36 on the
whole of August and September), not 1. CP@100 has a ceiling of its own: a day has fewer than 100 compromised cards.

![Precision and recall](precision_recall.svg)

![Card precision by day](card_precision.svg)

{table(["step (public command line)", "seconds", "peak memory, MiB"], steps)}

Scoring: {figures["score.events_per_second"]:,.0f} scored events per second of the whole command, which also reads the
history before them ({figures["score.events_read"]:,} events in all).
"""


if __name__ == "__main__":
    sys.exit(main())
