"""Do p-values keep their promise: the share of events without fraud at or below a p-value, against that p-value.

Two ways to run a detector for months: calibrated once, at its fit; or anew at the start of each month, on the last 60
days as far as they trained nothing, as `Detector.recalibrate` does. The models are the same, and asked once.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from _bench_simulator import START, Play, make
from _bench_work import Done, Found, Piece, Sizes, seeds
from numpy.typing import NDArray
from scipy import stats

from anomaly.detector import Detector
from anomaly.history import as_seconds
from anomaly.recalibration import Judged, recalibrate
from anomaly.scorer import Scorer
from anomaly.simulator import simulate

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SECTION = "rates"
LEVELS = (0.01, 0.001, 0.0001)
GROUPS = ("all", "first_month", "young", "quiet", "busy", "drift")
YOUNG = 20  # earlier events of the customer
RECENT_DAYS = 30
DRIFT = 1.1  # factor of the scored amounts
ENDS = (0.005, 0.995)  # of an interval that holds 99 %
MONTH = 30 * 86_400.0
WINDOW = 2 * MONTH  # longer ones lag behind customers whose habits move, shorter ones know less of rare events
MONTHLY = "monthly"  # in the names of what is calibrated anew each month; the others are calibrated at the fit alone


def pieces(sizes: Sizes) -> list[Piece]:
    """Some fits, and all that is scored with each."""
    return [Piece(SECTION, str(seed), partial(rates, sizes, seed)) for seed in seeds(sizes, sizes.rates_seeds)]


def rates(sizes: Sizes, seed: int) -> Found:
    """Count events by group and level, calibrated anew each month and calibrated once."""
    events, labels = simulate(sizes.rates_customers, sizes.rates_days, str(START), 0.0, seed)
    world = Play.of(events, labels, sizes.rates_fit_days)
    detector = make(sizes).fit(world.events, until=world.since, progress=False)
    later = np.zeros(len(events), dtype=bool)
    later[world.row] = True
    drifted = events.with_columns(
        amount=pl.when(pl.Series(later)).then((pl.col("amount") * DRIFT).round(2)).otherwise(pl.col("amount"))
    )
    counts: dict[str, dict[str, int]] = {}
    for table, member in ((events, groups(events, later)), (drifted, {"drift": later})):
        once, monthly = p_values(detector, table, world.since)
        for way, p in (("", once), (f"{MONTHLY}.", monthly)):
            counts |= {f"{way}{group}": _counted(p[mask]) for group, mask in member.items()}
    return {"counts": counts, "history": int((~later).sum()), "held_out": detector.fitted_["held_out"]}


def p_values(detector: Detector, events: pl.DataFrame, since: str) -> tuple[Floats, Floats]:
    """P-values of the events (N,) calibrated once, and calibrated anew each month; NaN before `since`."""
    judged, start = detector.judged(events), as_seconds(since)
    assert start is not None
    once, monthly = np.full((2, len(events)), np.nan)
    _judge(detector.scorer_, judged, judged.within(start), once)
    for begin in np.arange(start, judged.sequences.time.max() + 1.0, MONTH).tolist():
        held = judged.within(max(detector.fitted_["held_out_since"], begin - WINDOW), begin)
        made = recalibrate(detector.scorer_, judged, held, detector.schema)
        _judge(made.scorer, judged, judged.within(begin, begin + MONTH), monthly)
    return once, monthly


def _judge(scorer: Scorer, judged: Judged, chosen: Bools, p: Floats) -> None:
    said = scorer.judge(judged.errors, judged.sequences, chosen)
    p[judged.sequences.row[chosen]] = np.exp(said.log_p)


def groups(events: pl.DataFrame, later: Bools) -> dict[str, Bools]:
    """Which of the events (N,) belong to each group; none of the history does."""
    customer = events["customer_id"].rank("dense").to_numpy().astype(np.int64)
    time = events["time"].dt.epoch("s").to_numpy().astype(np.int64)
    earlier, recent = past(customer, time)
    low, high = np.quantile(recent[later], [1 / 3, 2 / 3])
    return {
        "all": later,
        "first_month": later & (time < time[later].min() + RECENT_DAYS * 86_400),
        "young": later & (earlier < YOUNG),
        "quiet": later & (recent <= low),
        "busy": later & (recent > high),
    }


def past(customer: Ints, time: Ints) -> tuple[Ints, Ints]:
    """How many earlier events each event's customer has, in all and within 30 days; (N,) each.

    >>> [found.tolist() for found in past(np.array([1, 2, 1, 1]), np.array([0, 0, 86_400, 40 * 86_400]))]
    [[0, 0, 1, 2], [0, 0, 1, 0]]
    """
    order = np.lexsort((time, customer))
    customer, time = customer[order], time[order]
    here = np.arange(len(order))
    first = np.searchsorted(customer, customer, side="left")
    span = int(time.max() - time.min()) + RECENT_DAYS * 86_400 + 1
    key = (customer - customer.min()) * span + time - time.min()
    begin = np.maximum(np.searchsorted(key, key - RECENT_DAYS * 86_400, side="left"), first)
    earlier, recent = np.empty_like(here), np.empty_like(here)
    earlier[order], recent[order] = here - first, here - begin
    return earlier, recent


def _counted(p: Floats) -> dict[str, int]:
    """How many there are, and how many at or below each level."""
    stated = p[np.isfinite(p)]
    return {"events": stated.size, **{f"{level:g}": int((stated <= level).sum()) for level in LEVELS}}


def figures(done: Done, sizes: Sizes) -> dict[str, float]:  # noqa: ARG001 - every section is asked the same
    """Observed shares over all fits, each with two intervals in which 99 % of such shares would lie.

    One is binomial: events independent, and the calibration exact. The other knows that a calibration is learned from
    held-out events: the share that lies beyond the k-th largest of n of them follows a beta distribution (Vovk 2012).
    """
    if not done:
        return {}
    fits = list(done.values())
    held = sum(found["held_out"] for found in fits)
    result: dict[str, float] = {
        f"{SECTION}.history": sum(found["history"] for found in fits),
        f"{SECTION}.held_out": held,
        f"{SECTION}.fits": len(fits),
    }
    for group in (*GROUPS, *(f"{MONTHLY}.{group}" for group in GROUPS)):
        name, n = figure_name(group), sum(found["counts"][group]["events"] for found in fits)
        result[f"{name}.events"] = n
        for level in LEVELS if n else ():
            key, counts = f"{name}.{level:g}", [found["counts"][group] for found in fits]
            share = sum(one[f"{level:g}"] for one in counts) / n
            result[key] = share
            result |= _inside(key, share, stats.binom.ppf(ENDS, n, level) / n)
            made = stats.betabinom.ppf(ENDS, n, level * (held + 1), (1 - level) * (held + 1)) / n
            result |= _inside(f"{key}.calibrated", share, made)
            each = [one[f"{level:g}"] / one["events"] for one in counts if one["events"]]
            result |= {f"{key}.least": min(each), f"{key}.most": max(each)}
    return result


def figure_name(group: str) -> str:
    """How the figures of a group begin.

    >>> [figure_name(group) for group in ("all", "quiet", "monthly.all", "monthly.quiet")]
    ['rates', 'rates.quiet', 'rates.monthly', 'rates.monthly.quiet']
    """
    return f"{SECTION}.{group}".removesuffix(".all")


def _inside(key: str, share: float, ends: NDArray[np.float64]) -> dict[str, float]:
    low, high = (float(end) for end in ends)
    return {f"{key}.low": low, f"{key}.high": high, f"{key}.inside": int(low <= share <= high)}
