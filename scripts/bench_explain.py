"""Measure explanations on simulated payments: do the reasons name what the fraudster changed, do counterfactuals hold.

As in::

    python3 scripts/bench_explain.py                                   some minutes
    python3 scripts/bench_explain.py --seeds 7 --customers 60 --epochs 1 --reports out    a quick try

For each simulation a detector is fitted on two thirds of the days, without labels, and alerts on the rest. Labels are
read last, to ask of the alerts that are fraud whether the first reason names a field that this kind of fraud sets and
that is unlike the customer's genuine payments at this very event. Each counterfactual is written into the table of
payments, and the whole table is scored anew. Figures and report.md go to reports/explain.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _environment import INTERRUPTED, ROOT, ensure, run_inside

# Any environment that has the libraries will do, and is left as it is; only without them is the project's own one made.
if __name__ == "__main__" and importlib.util.find_spec("torch") is None:
    sys.exit(run_inside(ensure(()), __file__, sys.argv[1:]))
if importlib.util.find_spec("anomaly") is None:
    sys.path.append(str(ROOT))

import numpy as np
import polars as pl
from _numbers import Meter, table, write_numbers, write_text

from anomaly.breakdown import PAST
from anomaly.detector import Detector
from anomaly.features import great_circle_km
from anomaly.frauds import KINDS
from anomaly.ingest import read_events
from anomaly.simulator import SIMULATED_SCHEMA, simulate

if TYPE_CHECKING:
    from anomaly.thresholds import Threshold

START = date(2024, 1, 1)
SEEDS = (2011, 2012, 2013, 2014)  # none of them was used while the explanations were built
TARGETS = {"explain.top_reason": 0.85, "counterfactual.passes": 0.95}
WHAT = ("amount", "merchant_category", "channel", "merchant_id", "device_id", "place", "time", PAST)

# What `anomaly.frauds` sets for each kind. All choose the shop and its trade. "time" where a kind sets gaps of minutes
# or hours, any hour, or a long silence. PAST where it adds 1.5 payments a day or more; a customer makes two.
SHOP = ("merchant_category", "merchant_id")
CHANGED: Mapping[str, tuple[str, ...]] = {
    "account_takeover": ("amount", *SHOP, "channel", "device_id", "place", "time", PAST),
    "card_testing": ("amount", *SHOP, "channel", "device_id", "place", "time", PAST),
    "stolen_card_burst": ("amount", *SHOP, "time", PAST),
    "bust_out": ("amount", *SHOP, PAST),
    "impossible_travel": ("amount", *SHOP, "place", "time", PAST),
    "dormant_woken": ("amount", *SHOP, "channel", "device_id", "place", "time", PAST),
    "structuring": ("amount", *SHOP, PAST),
    "slow_drip": ("amount", *SHOP, "channel", "device_id", "place"),
}
# Unlike the customer: what a reason must be, to count.
TWICE = 2.0  # times the customer's median amount so far, over all or in the category
SELDOM = 0.1  # share of the customer's payments so far that have the value
FAR_KM = 50.0  # from the customer's last genuine payment
QUICK, SILENT_DAYS = 0.1, 30.0  # quantile of the customer's gaps; days without a payment
NIGHT, NIGHT_SHARE = 1.0, 0.03  # hours to both sides of the payment in which so small a share of the others lie
RUN_DAYS = 4.0  # an earlier payment of the same run at most so long before: the longest window of the detector


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, fit, alert and compare with the truth, seed by seed; write figures and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the simulations")
    parser.add_argument("--customers", type=int, default=500, help="of each (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="most passes over the history (default: %(default)s)")
    parser.add_argument("--most", type=int, default=100, help="counterfactuals looked for (default: %(default)s)")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "explain", help="folder of the figures")
    wish = parser.parse_args(arguments)
    named, changed = [], []
    with Meter() as meter:
        for seed in wish.seeds:
            events, labels = simulate(customers=wish.customers, days=90, start=str(START), seed=seed)
            since = START + timedelta(days=60)
            detector = Detector(SIMULATED_SCHEMA, epochs=wish.epochs, seed=seed).fit(
                events, until=since, progress=False
            )
            scores = detector.score(events, since=since)
            rule = detector.threshold(budget_per_day=max(1.0, 0.025 * wish.customers))
            named.append(reasons(detector, rule, events, labels, scores))
            changed.append(counterfactuals(detector, rule, events, scores, since, wish.most))
            print(f"seed {seed}: {len(named[-1])} alerts are fraud, {len(changed[-1])} counterfactuals looked for")
    figures = summary(pl.concat(named), pl.concat(changed)) | {"seeds": len(wish.seeds), "seconds": meter.seconds}
    given = {"customers": wish.customers, "epochs": wish.epochs, "most": wish.most}
    told = "".join(f" --{name} {value}" for name, value in given.items() if value != parser.get_default(name))
    told = (f" --seeds {' '.join(map(str, wish.seeds))}" if wish.seeds != list(SEEDS) else "") + told
    command = f"python3 scripts/bench_explain.py{told}"
    print(f"figures: {write_numbers(wish.reports, command, figures)}")
    print(f"report: {write_text(wish.reports / 'report.md', report(figures, command, wish.customers))}")
    return 0


# ---- reasons ---------------------------------------------------------------------------------------------------------
def reasons(
    detector: Detector, rule: Threshold, events: pl.DataFrame, labels: pl.DataFrame, scores: pl.DataFrame
) -> pl.DataFrame:
    """Of each alerting event that is fraud: ``kind``, what is ``true``, and what the first reason names.

    ``first`` is the first reason, and ``field`` the first one that is no recent past; "" if there is none.
    """
    from anomaly.alerts import add_reasons
    from anomaly.digest import decide

    alerting = scores.filter(pl.Series(decide(rule, scores, detector.schema)))
    frauds = alerting.filter(labels["fraud"].gather(alerting["row"]))
    rows = frauds["row"].to_list()
    explained = detector.explain(events, rows, scores)
    about = {(row, field): about for row, field, about in explained.select("row", "field", "about").iter_rows()}
    told = add_reasons(frauds.select(peak_row="row"), explained)
    payments = events.with_columns(fraud=labels["fraud"], kind=labels["kind"]).with_row_index("row")
    mine = payments.filter(pl.col("customer_id").is_in(frauds["customer_id"].unique().implode()))
    histories = {key: one.sort("time", "row") for (key,), one in mine.group_by("customer_id")}
    lines = []
    for row, fields in told.select("peak_row", "fields").iter_rows():
        event = payments.row(row, named=True)
        groups = [about[row, field] for field in fields]
        first, field = next(iter(groups), ""), next((name for name in groups if name != PAST), "")
        lines.append((event["kind"], first, field, sorted(truly_changed(event, histories[event["customer_id"]]))))
    names = ("kind", "first", "field", "true")
    return pl.DataFrame(
        lines, schema=pl.Schema(zip(names, (*[pl.String()] * 3, pl.List(pl.String)), strict=True)), orient="row"
    )


def truly_changed(event: Mapping[str, Any], history: pl.DataFrame) -> set[str]:
    """What this kind of fraud sets and is unlike the customer's genuine payments before, at this event."""
    before = history.filter((pl.col("time") < event["time"]) & ~pl.col("fraud"))
    if not len(before):
        return set(CHANGED[event["kind"]])
    found = set(CHANGED[event["kind"]]) & set(SIMULATED_SCHEMA.categorical)
    found = {name for name in found if (before[name] == event[name]).mean() <= SELDOM}
    in_category = before.filter(pl.col("merchant_category") == event["merchant_category"])["amount"]
    usual = [float(values.median()) for values in (before["amount"], in_category) if len(values)]  # type: ignore[arg-type]
    unlike = {
        "amount": event["amount"] >= TWICE * min(usual),
        "place": great_circle_km(event["latitude"], event["longitude"], *before.select("latitude", "longitude").row(-1))
        >= FAR_KM,
        "time": odd_time(event, history, before),
        PAST: bool(len(run_before(event, history))),
    }
    return found | {name for name, holds in unlike.items() if holds and name in CHANGED[event["kind"]]}


def odd_time(event: Mapping[str, Any], history: pl.DataFrame, before: pl.DataFrame) -> bool:
    """Did the payment come quicker than nine in ten of the customer's, after a month, or at an hour that is not his."""
    gaps = before["time"].diff().dt.total_seconds().drop_nulls().to_numpy()
    last = history.filter(pl.col("time") < event["time"])["time"].max()
    gap = (event["time"] - last).total_seconds()
    hours = before["time"].dt.hour().to_numpy() + before["time"].dt.minute().to_numpy() / 60.0
    away = np.abs((hours - event["time"].hour - event["time"].minute / 60.0 + 12.0) % 24.0 - 12.0)
    quick = len(gaps) > 0 and gap < np.quantile(gaps, QUICK, method="lower")
    return bool(quick or gap >= SILENT_DAYS * 86400 or (away <= NIGHT).mean() <= NIGHT_SHARE)


def run_before(event: Mapping[str, Any], history: pl.DataFrame) -> pl.DataFrame:
    """Earlier payments of the same run."""
    since = event["time"] - timedelta(days=RUN_DAYS)
    return history.filter(pl.col("time").is_between(since, event["time"], closed="left") & pl.col("fraud"))


# ---- counterfactuals -------------------------------------------------------------------------------------------------
def counterfactuals(
    detector: Detector, rule: Threshold, events: pl.DataFrame, scores: pl.DataFrame, since: date, most: int
) -> pl.DataFrame:
    """Of the strangest case of each customer, evenly chosen: is there one (``found``), and does it ``hold``."""
    read = read_events(events, detector.schema)
    cases = detector.cases(read, scores, rule).unique("entity", keep="first", maintain_order=True)
    cases = cases.gather_every(max(1, -(-len(cases) // most)))
    began = time.process_time()
    told = detector.counterfactual(read, cases["peak_row"].to_list(), scores, rule)
    seconds = (time.process_time() - began) / max(len(told), 1)
    ids = told.select(event_id=events["event_id"].gather(told["row"]))
    again = detector.score(changed_table(events, told), since=since).select("event_id", "p_value")
    p = ids.join(again, on="event_id", how="left", maintain_order="left")["p_value"]
    alerts = rule.decide(p.to_numpy())
    return told.select(
        found="passes",
        single=(pl.col("changes").list.len() == 1) & (pl.col("without").list.len() == 0),
        run=pl.col("without").list.len() > 0,
        holds=pl.Series(~alerts) & pl.col("passes"),
        away=(p - told["p_value"]),
        seconds=pl.lit(seconds),
    )


def changed_table(events: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """The table of payments with every change written into it, as the texts say; at most one event of a customer.

    Payments that a counterfactual leaves out are not in it.
    """
    columns = {name: events[name].to_list() for name in events.columns}
    for row, changes in told.select("row", "changes").iter_rows():
        for change in changes:
            name, to = change["field"], change["to"]
            if name == "place":
                columns["latitude"][row], columns["longitude"][row] = map(float, to.split(", "))
            elif name == "time":
                columns["time"][row] = pl.Series([to]).str.to_datetime(time_zone="UTC")[0]
            else:
                columns[name][row] = float(to.replace(",", "")) if name == "amount" else to
    without = told["without"].explode().drop_nulls()
    table = pl.DataFrame(columns, schema=events.schema).with_row_index("row")
    return table.filter(~pl.col("row").is_in(without.implode())).drop("row")


# ---- telling ---------------------------------------------------------------------------------------------------------
def summary(named: pl.DataFrame, changed: pl.DataFrame) -> dict[str, float]:
    """Figures by dotted name."""
    first = pl.col("first")
    told = named.select(
        "kind",
        top_reason=pl.col("true").list.contains(first),
        first_field=pl.col("true").list.contains(pl.col("field")),
        set_reason=pl.struct("kind", "first").map_elements(
            lambda one: one["first"] in CHANGED[one["kind"]], return_dtype=pl.Boolean
        ),
        amount_rule=pl.col("true").list.contains("amount"),
        chance=pl.col("true").list.len() / len(WHAT),
    )
    figures: dict[str, float] = {}
    for name, one in [("all", told), *((kind, told.filter(kind=kind)) for kind in KINDS)]:
        figures[f"explain.alerts.{name}"] = len(one)
        if len(one):
            for measure in ("top_reason", "first_field", "set_reason", "amount_rule", "chance"):
                figures[f"explain.{measure}.{name}"] = float(one[measure].mean())  # type: ignore[arg-type]
    figures["counterfactual.alerts"] = len(changed)
    if len(changed):
        figures |= {f"counterfactual.{name}": float(changed[name].mean()) for name in ("found", "run", "seconds")}  # type: ignore[arg-type]
        figures["counterfactual.passes"] = float(changed["holds"].mean())  # type: ignore[arg-type]
        figures["counterfactual.one_field"] = float(changed["single"].mean())  # type: ignore[arg-type]
    have = changed.filter("found")
    if len(have):
        figures["counterfactual.holds"] = float(have["holds"].mean())  # type: ignore[arg-type]
        figures["counterfactual.largest_p_difference"] = float(have["away"].abs().max())  # type: ignore[arg-type]
    return figures


def report(figures: Mapping[str, float], command: str, customers: int) -> str:
    """The page."""
    rows = []
    for kind in ("all", *KINDS):
        measures = ("top_reason", "first_field", "amount_rule", "chance", "set_reason")
        known = [figures.get(f"explain.{measure}.{kind}") for measure in measures]
        values: list[object] = ["–" if value is None else float(value) for value in known]
        what = "" if kind == "all" else ", ".join(CHANGED[kind])
        rows.append([kind.replace("_", " "), int(figures[f"explain.alerts.{kind}"]), *values, what])
    head = ["kind", "alerts", "first reason", "first field", "the amount", "at random", "set", "what is set"]
    target = TARGETS["explain.top_reason"]
    names = [name for name in KINDS if f"explain.top_reason.{name}" in figures]
    missed = [name.replace("_", " ") for name in names if figures[f"explain.top_reason.{name}"] < target]
    verdict = f"Below the target: {', '.join(missed)}." if missed else "Every kind meets it."
    return f"""# Explanations, measured

{int(figures["seeds"])} simulations of {customers} customers over 90 days with 1 % of fraud; detectors fitted on the
first 60 without labels; alerts within a budget of 25 cases a day for 1,000 customers. Labels are read last.

## Does the first reason name what the fraudster changed?

Of the alerting events that are fraud. *First reason*: share of which the first reason names something that this kind of
fraud sets (last column) and that is unlike the customer at this very event: an amount at least {TWICE:g} times the
median of his genuine ones so far, over all or in the category; a category, channel, shop or device that at most
{SELDOM:.0%} of his genuine payments had; a place {FAR_KM:g} km or more from the last one; a gap among his shortest
{QUICK:.0%}, or of {SILENT_DAYS:g} days, or an hour at which he hardly ever pays; for the recent past, an earlier
payment of the same run within {RUN_DAYS:g} days, where the kind adds at least 1.5 payments a day to a customer's two.
A reason names one thing; a speed is about the place, or about the time where the gap is stranger than the distance.
*First field*: the same of the first reason that is not the recent past. *The amount* is the trivial rule, always to
name the amount; *at random* the share of the eight things that would count; *set* asks of the first reason only
whether the kind sets it. For a run the recent past is a true reason nearly always, so *first
field* is the harder question. The target is {target:g} of the first reason, for each kind. {verdict}

{table(head, rows)}

## Do counterfactuals hold?

{textwrap.fill(holding(figures), 120)}

Where none is found, the sentence says so, and what came nearest.

Made by `{command}`.
"""


def holding(figures: Mapping[str, float]) -> str:
    """What is told of the counterfactuals."""
    found = figures.get("counterfactual.found", 0.0)
    looked = (
        f"Looked for at {int(figures['counterfactual.alerts'])} alerts, the strangest of a customer, fraud or not; one "
        f"was found for {found:.1%}."
    )
    if not found:
        return looked
    target = TARGETS["counterfactual.passes"]
    one, run = figures["counterfactual.one_field"], figures["counterfactual.run"]
    return (
        f"{looked} {figures['counterfactual.holds']:.1%} of these pass the rule when they are written into the table "
        f"and everything is scored anew: {figures['counterfactual.passes']:.1%} of all alerts (target {target:.0%}). "
        f"Of all, {one:.1%} change one field, {run:.1%} leave out the unusual payments shortly before (some with a "
        f"change, too), the others change two fields. The largest difference to the p that was stated is "
        f"{figures['counterfactual.largest_p_difference']:.2g}; one alert takes "
        f"{figures['counterfactual.seconds']:.2f} s of processor time."
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
