"""How much is lost when the unlabelled history holds more fraud: one simulation, thinned to several levels.

Frauds are taken out by whole runs, at random and nested: what a lower level keeps, a higher one keeps too. The scored
events are the same at all levels. Runs that reach from the history into the scored time are taken out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import polars as pl
from _bench_simulator import PLAIN, REFITTED, START, Play, fitted_scores, make, rule_scores, surprise
from _bench_work import Done, Found, Piece, Sizes, mean_over, seeds
from numpy.typing import NDArray

from anomaly.evaluation import average_precision
from anomaly.simulator import simulate

SECTION = "contamination"
SCORERS = ("ratio", "plain_forecaster", "without_robust_weights", "ours")
SIMULATED_RATE = 0.06  # some is lost with the runs that reach over the border
SCORED_RATE = 0.01
LONGEST_GAP_DAYS = 14.0  # between two events of a run


def pieces(sizes: Sizes) -> list[Piece]:
    """One for each level and detector."""
    work = {"ratio": ratio, "ours": ours, "plain": plain, "without_robust_weights": without_robust_weights}
    return [
        Piece(SECTION, f"{seed}.{level:g}.{name}", partial(one, sizes, seed, level))
        for seed in seeds(sizes, sizes.contamination_seeds)
        for level in sizes.levels
        for name, one in work.items()
    ]


def ratio(sizes: Sizes, seed: int, level: float) -> Found:
    """The rule."""
    world = thinned(sizes, seed, level)
    history = world.labels["fraud"].head(len(world.history))
    score = rule_scores(world)["ratio"]
    return {
        "scorers": {"ratio": {"ap": average_precision(score, world.fraud)}},
        "facts": {"history_share": float(history.to_numpy().mean()), "scored_share": float(world.fraud.mean())},
    }


def ours(sizes: Sizes, seed: int, level: float, name: str = "ours", **options: Any) -> Found:
    """Our detector, under this name."""
    world = thinned(sizes, seed, level)
    scores = fitted_scores(world, make(sizes, **options))[1]
    return {"scorers": {name: {"ap": average_precision(surprise(scores), world.fraud)}}}


def without_robust_weights(sizes: Sizes, seed: int, level: float) -> Found:
    """Our detector when the strangest runs of the history train it too: what that costs depends on its frauds."""
    return ours(sizes, seed, level, "without_robust_weights", **REFITTED["robust_weights"])


def plain(sizes: Sizes, seed: int, level: float) -> Found:
    """The forecaster without quarantine, robust weights, evidence or rehearsal."""
    world = thinned(sizes, seed, level)
    scores = fitted_scores(world, make(sizes, **PLAIN))[1]
    return {"scorers": {"plain_forecaster": {"ap": average_precision(surprise(scores, "forecaster"), world.fraud)}}}


def thinned(sizes: Sizes, seed: int, level: float) -> Play:
    """Payments with `level` per cent of fraud in the history, and the same scored events for every level."""
    events, labels = simulate(sizes.customers, sizes.days, str(START), SIMULATED_RATE, seed)
    whole = Play.of(events, labels, sizes.fit_days)
    border = int(whole.row[0])
    run = runs(events, labels)
    first, last = np.full(run.max() + 1, len(run)), np.zeros(run.max() + 1, dtype=np.int64)
    fraud = np.flatnonzero(run >= 0)
    np.minimum.at(first, run[fraud], fraud)
    np.maximum.at(last, run[fraud], fraud)
    length = np.bincount(run[fraud])
    rng = np.random.default_rng(seed)
    kept = np.zeros(len(first), dtype=bool)
    genuine_before = int((run[:border] < 0).sum())
    genuine_after = int((run[border:] < 0).sum())
    for mine, share, genuine in (
        (np.flatnonzero(first >= border), SCORED_RATE, genuine_after),
        (np.flatnonzero(last < border), level / 100, genuine_before),
    ):
        order = rng.permutation(mine)
        kept[order[np.cumsum(length[order]) <= share / (1 - share) * genuine]] = True
    stays = pl.Series((run < 0) | kept[np.maximum(run, 0)])
    return Play.of(events.filter(stays), labels.filter(stays), sizes.fit_days)


def runs(events: pl.DataFrame, labels: pl.DataFrame) -> NDArray[np.int64]:
    """Number of the run that each event belongs to, (N,); -1 = genuine.

    The frauds of one kind that follow each other on one customer, no more than two weeks apart.
    """
    table = pl.DataFrame(
        {
            "row": np.arange(len(events)),
            "customer": events["customer_id"],
            "time": events["time"].dt.epoch("s"),
            "kind": labels["kind"],
        }
    ).filter(labels["fraud"])
    ordered = table.sort("customer", "time", "row")
    new = (
        (pl.col("customer") != pl.col("customer").shift(1))
        | (pl.col("kind") != pl.col("kind").shift(1))
        | (pl.col("time") - pl.col("time").shift(1) > LONGEST_GAP_DAYS * 86_400)
    )
    number = ordered.select(new.fill_null(value=True).cum_sum() - 1).to_series().to_numpy()
    found = np.full(len(events), -1, dtype=np.int64)
    found[ordered["row"].to_numpy()] = number
    return found


def figures(done: Done, sizes: Sizes) -> dict[str, float]:
    """AP by level, and how much of the clean history's is left at 2 %."""
    result: dict[str, float] = {}
    for level in sizes.levels:
        by_scorer: dict[str, list[dict[str, float]]] = {}
        facts = []
        for name, found in done.items():
            if name.split(".", 1)[1].rsplit(".", 1)[0] == f"{level:g}":
                facts += [found["facts"]] if "facts" in found else []
                for scorer, values in found["scorers"].items():
                    by_scorer.setdefault(scorer, []).append(values)
        for scorer, each in by_scorer.items():
            result |= mean_over(f"{SECTION}.{level:g}.{scorer}", each)
        result |= mean_over(f"{SECTION}.{level:g}", facts)
    clean, two = (result.get(f"{SECTION}.{level}.ours.ap") for level in (0, 2))
    if clean and two is not None:
        result[f"{SECTION}.ratio_2_to_0"] = two / clean
    return result
