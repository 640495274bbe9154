"""Measure what a second view finds: customers alone, merchants alone, and both, on simulated payments.

As in::

    python3 scripts/bench_views.py            some twenty minutes; writes reports/views
    python3 scripts/bench_views.py --plays 1 --customers 100 --epochs 1 --hidden 8   a quick try

Beside the simulator's eight kinds of fraud, which a customer's history shows, some merchants are compromised: for some
days they charge cards that were never there, one payment each. A quiet merchant that charges many cards is a flood; a
busier one that charges fewer a trickle. The history holds as many of them as the weeks that are scored. Rules stand
beside: the amount, the amount over the customer's median, and the merchant's payments of the last 24 hours over its
usual ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from _environment import INTERRUPTED, ROOT, ensure, inside, run_inside

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

START, DAYS, FIT_DAYS, FRAUD_RATE = datetime(2024, 1, 1, tzinfo=UTC), 120, 90, 0.01
FIRST_SEED = 711  # no choice was made on it and the next ones
DEARER = 1.5  # fraudulent charges, over the merchant's usual amounts
PLANTED = {  # merchants a month, cards that each charges, for how many days, and its usual payments a day
    "merchant_flood": (3, 40, 2.0, 0.3, 5.0),
    "merchant_trickle": (2, 25, 3.0, 1.0, 20.0),
}
PER_DAY = 0.025  # alerts a day for each customer
VIEWS = {"customers": "p_customer_id", "merchants": "p_merchant_id"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench inside the project's environment and return its exit code."""
    parser = argparse.ArgumentParser(description="What a second view of the same events finds.")
    parser.add_argument("--plays", type=int, default=3, help="simulations (default: %(default)s)")
    parser.add_argument("--customers", type=int, default=300, help="of each (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="of each fit (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=32, help="of each model (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "views", help="folder for numbers.json")
    wish = parser.parse_args(arguments)
    if not inside():
        return run_inside(ensure(()), __file__, sys.argv[1:] if arguments is None else arguments)
    given = {name: value for name, value in vars(wish).items() if name != "out" and value != parser.get_default(name)}
    told = " ".join(["python3 scripts/bench_views.py", *(f"--{name} {given[name]}" for name in given)])

    from _numbers import write_numbers

    plays = []
    for seed in range(FIRST_SEED, FIRST_SEED + wish.plays):
        plays.append(measure(seed, wish.customers, wish.epochs, wish.hidden))
        print(f"simulation {seed}: done", file=sys.stderr)
    names = {name for play in plays for name in play}
    known = {name: [play[name] for play in plays if name in play] for name in names}
    figures = {f"views.{name}": sum(values) / len(values) for name, values in known.items()}
    print(f"The figures: {write_numbers(wish.out, told, {**figures, 'views.plays': wish.plays})}")
    return 0


def measure(seed: int, customers: int, epochs: int, hidden: int) -> dict[str, float]:
    """Average precision, AUC and recall at the budget by kind, of one simulation, by scorer."""
    import numpy as np

    from anomaly.evaluation import average_precision, recall_at_budget, roc_auc

    events, kind = play(seed, customers)
    later = (events["time"] >= START + timedelta(days=FIT_DAYS)).to_numpy()
    time = events["time"].dt.epoch("s").to_numpy()[later].astype(np.float64)
    kind = kind[later]
    fraud = kind != ""
    figures = {"fraud_share": float(fraud.mean())}
    for name, score in scorers(events, later, epochs=epochs, hidden=hidden).items():
        budget = round(PER_DAY * customers)
        found = {one: recall_at_budget(time, score, kind == one, budget) for one in np.unique(kind[fraud])}
        figures |= {f"{name}.recall.{one}": value for one, value in found.items()}
        figures[f"{name}.recall.macro"] = float(np.mean(list(found.values())))
        figures[f"{name}.ap"] = average_precision(score, fraud)
        figures[f"{name}.auc"] = roc_auc(score, fraud)
        usual = ~np.isin(kind, list(PLANTED))
        for one, mine in {"usual_kinds": usual, **{one: ~fraud | (kind == one) for one in PLANTED}}.items():
            figures[f"{name}.ap.{one}"] = average_precision(score[mine], fraud[mine])
    return figures


def play(seed: int, customers: int) -> tuple[pl.DataFrame, NDArray[np.str_]]:
    """Simulated payments with the charges of compromised merchants among them, and the kind of fraud of each (N,)."""
    import numpy as np
    import polars as pl

    from anomaly.simulator import simulate

    events, labels = simulate(customers, DAYS, f"{START:%Y-%m-%d}", FRAUD_RATE, seed)
    rng = np.random.default_rng(seed)
    genuine = events.with_columns(kind=labels["kind"]).filter(pl.col("kind") == "")
    charges = [events.with_columns(kind=labels["kind"])]
    for kind in PLANTED:
        charges += planted(genuine, kind, rng)
    together = pl.concat(charges).sort("time", maintain_order=True)
    return together.drop("kind"), together["kind"].to_numpy().astype(str)


def planted(genuine: pl.DataFrame, kind: str, rng: np.random.Generator) -> list[pl.DataFrame]:
    """The charges of each compromised merchant of a kind: its own payments, with cards that were never there."""
    import numpy as np
    import polars as pl

    a_month, most, days, quietest, busiest = PLANTED[kind]
    size = genuine.group_by("merchant_id").agg((pl.len() / DAYS).alias("a_day")).sort("merchant_id")
    fit = size.filter(pl.col("a_day").is_between(quietest, busiest))["merchant_id"].to_list()
    chosen = rng.permutation(fit)[: round(a_month * DAYS / 30)].tolist()
    charges = []
    for merchant, begin in zip(chosen, np.linspace(5, DAYS - days - 1, len(chosen)), strict=True):
        own = genuine.filter(pl.col("merchant_id") == merchant)
        strangers = genuine.filter(~pl.col("customer_id").is_in(own["customer_id"].unique().implode()))
        cards = strangers.sample(min(most, len(strangers)), seed=int(rng.integers(1 << 30)))
        like = own[rng.integers(0, len(own), len(cards)).tolist()]
        seconds = np.sort(rng.uniform(begin, begin + days, len(cards)) * 86_400).round().tolist()
        charges.append(
            like.with_columns(
                cards["customer_id"],
                cards["device_id"],
                event_id=pl.Series([f"X{kind[9]}{merchant}-{at}" for at in range(len(cards))]),
                time=pl.Series([START + timedelta(seconds=value) for value in seconds]).cast(genuine["time"].dtype),
                amount=(pl.col("amount") * DEARER).round(2),
                kind=pl.lit(kind),
            )
        )
    return charges


def scorers(
    events: pl.DataFrame, later: NDArray[np.bool_], *, epochs: int, hidden: int
) -> Mapping[str, NDArray[np.float64]]:
    """Scores of the later events (n,), by scorer."""
    import numpy as np

    from anomaly.schema import Schema
    from anomaly.simulator import SIMULATED_SCHEMA
    from anomaly.views import Views

    known = {**SIMULATED_SCHEMA.model_dump(), "entity": ("customer_id", "merchant_id")}
    known["categorical"] = (*SIMULATED_SCHEMA.categorical, "customer_id")
    views = Views(Schema(**known), hidden=hidden, epochs=epochs)
    since = START + timedelta(days=FIT_DAYS)
    scores = views.fit(events, until=since, progress=False).score(events, since=since)
    assert scores["row"].to_list() == np.flatnonzero(later).tolist()
    found = rules(events, later)
    found |= {name: -np.log(scores[column].to_numpy()) for name, column in VIEWS.items()}
    return {**found, "both": scores["surprise"].to_numpy()}


def rules(events: pl.DataFrame, later: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Scores of the later events (n,) by the rules."""
    import polars as pl

    median = pl.col("amount").shift().rolling_median(len(events), min_samples=1).over("customer_id")
    ratio = events.select(pl.col("amount") / median.fill_null(pl.col("amount").median())).to_series()
    usual = events.filter(~pl.Series(later)).group_by("merchant_id").agg(usual=pl.len() / FIT_DAYS)
    own = events.with_row_index("at").sort("merchant_id", "time", maintain_order=True)
    recent = own.rolling("time", period="24h", group_by="merchant_id").agg(pl.len().alias("recent"))["recent"]
    rush = own.with_columns(recent).join(usual, on="merchant_id", how="left").sort("at")
    return {
        "amount": events["amount"].to_numpy()[later],
        "ratio": ratio.to_numpy()[later],
        "merchant_rush": rush.select(pl.col("recent") / (1 + pl.col("usual").fill_null(0.0)))
        .to_series()
        .to_numpy()[later],
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
