"""Show the whole path on simulated card payments: simulate, fit without labels, score, report, compare with the truth.

As in::

    python3 scripts/demo.py                                       some minutes; makes the environment in .venv first
    python3 scripts/demo.py --customers 200 --epochs 2 --out out  a quick try

The truth is looked at last: nothing is fitted or stopped by it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _environment import INTERRUPTED, ROOT, ensure, inside, run_inside

if TYPE_CHECKING:
    import polars as pl

START = date(2024, 1, 1)
ALERTS = 50  # a day
SCORERS = ("amount", "ratio", "autoencoder", "forecaster", "both")
MEASURES = {"auc": "AUC", "ap": "average precision", "recall50": f"recall at {ALERTS} alerts a day"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo inside the project's environment and return its exit code."""
    parser = argparse.ArgumentParser(description="Find planted fraud in simulated card payments, without labels.")
    parser.add_argument("--customers", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--days", type=int, default=90, help="two thirds of them are history (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="most passes over the history (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same payments (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "demo", help="folder for what is written")
    wish = parser.parse_args(arguments)
    if not inside():
        return run_inside(ensure(()), __file__, sys.argv[1:] if arguments is None else arguments)
    from anomaly.errors import AnomalyError

    given = {name: value for name, value in vars(wish).items() if name != "out" and value != parser.get_default(name)}
    try:
        return demonstrate(wish, " ".join(["python3 scripts/demo.py", *(f"--{name} {given[name]}" for name in given)]))
    except AnomalyError as error:
        parser.error(str(error))


def demonstrate(wish: argparse.Namespace, told: str) -> int:
    """Simulate, fit, score, report, measure; write the page and the figures, and print a summary."""
    from _numbers import Meter, write_numbers
    from rich.console import Console

    from anomaly import SIMULATED_SCHEMA, Detector, simulate
    from anomaly.terminal import case_table

    console = Console(highlight=False)
    since = START + timedelta(days=2 * wish.days // 3)
    events, labels = simulate(customers=wish.customers, days=wish.days, start=str(START), seed=wish.seed)
    console.print(f"{len(events):,} simulated payments; learning from those before {since}, without labels ...")
    with Meter() as fit:
        detector = Detector(SIMULATED_SCHEMA, epochs=wish.epochs, seed=wish.seed)
        detector.fit(events, until=since, progress=True)
    with Meter() as score:
        scores = detector.score(events, since=since)
    page, title = wish.out / "report.html", "Demo: simulated card payments"
    cases = detector.report(page, budget_per_day=ALERTS, title=title, command=told)
    truth = scores.select("row", "customer_id", labels["fraud"].gather(scores["row"]))
    figures = measure(events, labels, scores) | measure_cases(truth, cases)
    figures |= {"fit.seconds": fit.seconds, "score.seconds": score.seconds}
    console.print(f"\n[bold]Found in {len(scores):,} later payments:[/bold] {len(cases):,} cases. The five strangest:")
    console.print(case_table(cases.head(5), SIMULATED_SCHEMA))
    summarise(console, figures)
    console.print(f"\nThe report: {page}\nThe figures: {write_numbers(wish.out, told, figures)}", soft_wrap=True)
    return 0


def measure(events: pl.DataFrame, labels: pl.DataFrame, scores: pl.DataFrame) -> dict[str, float]:
    """Compare models and rules with the truth, on the same scored events."""
    import numpy as np

    from anomaly.evaluation import average_precision, recall_at_budget, roc_auc, rule_amount, rule_ratio

    row = scores["row"].to_numpy()
    amount, time = events["amount"].to_numpy(), events["time"].dt.epoch("s").to_numpy()
    customer, history = events["customer_id"].rank("dense").to_numpy(), np.delete(amount, row)
    scorers = {
        "amount": rule_amount(amount)[row],
        "ratio": rule_ratio(customer, amount, time, population=float(np.median(history)))[row],
        "autoencoder": -np.log10(scores["p_autoencoder"].to_numpy()),
        "forecaster": -np.log10(scores["p_forecaster"].to_numpy()),
        "both": scores["surprise"].to_numpy(),
    }
    fraud, kind = labels["fraud"].to_numpy()[row], labels["kind"].to_numpy()[row]
    figures = {
        "history": len(history),
        "scored": len(row),
        "frauds": int(fraud.sum()),
        "base_rate": float(fraud.mean()),
    }
    for name, score in scorers.items():
        figures[f"{name}.auc"], figures[f"{name}.ap"] = roc_auc(score, fraud), average_precision(score, fraud)
        figures[f"{name}.recall50"] = recall_at_budget(time[row], score, fraud, ALERTS)
        for one in np.unique(kind[fraud]):
            figures[f"{name}.{one}.recall50"] = recall_at_budget(time[row], score, kind == one, ALERTS)
    return figures


def measure_cases(truth: pl.DataFrame, cases: pl.DataFrame) -> dict[str, float]:
    """Count the cases that hold fraud, and the customers whose fraud is in one."""
    frauds = truth.filter("fraud")
    caught = frauds.join(cases.select("case", "rows").explode("rows"), left_on="row", right_on="rows")
    return {
        "cases": len(cases),
        "cases_with_fraud": caught["case"].n_unique(),
        "customers_defrauded": frauds["customer_id"].n_unique(),
        "customers_caught": caught["customer_id"].n_unique(),
    }


def summarise(console: Any, figures: dict[str, float]) -> None:
    """Print how good models and rules were; the best of each line is bold, whoever it is."""
    from rich.table import Column, Table

    kinds = sorted(name.split(".")[1] for name in figures if name.startswith("both.") and name.count(".") == 2)
    lines = {label: [figures[f"{name}.{key}"] for name in SCORERS] for key, label in MEASURES.items()}
    lines |= {f"  of {kind}": [figures[f"{name}.{kind}.recall50"] for name in SCORERS] for kind in kinds}
    table = Table("", *(Column(name, justify="right") for name in SCORERS), box=None, pad_edge=False)
    for label, values in lines.items():
        cells = (f"[bold]{value:.3f}[/bold]" if value == max(values) else f"{value:.3f}" for value in values)
        table.add_row(label, *cells)
    told = (
        "\n[bold]Against the truth:[/bold] {cases_with_fraud:,} of the cases hold planted fraud; they catch "
        "{customers_caught:,} of {customers_defrauded:,} defrauded customers. {frauds:,} of {scored:,} scored payments "
        "are fraud: a random ranking has an average precision of {base_rate:.3f}.\n"
        "Rules: amount, and ratio, the amount over the median of the customer's earlier amounts.\n"
    )
    console.print(told.format_map(figures))
    console.print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
