"""Write the figures of reports/*/numbers.json into the README, between its markers.

As in::

    python3 scripts/readme.py

Between ``<!-- numbers:demo -->`` and ``<!-- /numbers -->`` stands what `block` makes of reports/demo/numbers.json;
tests/test_readme.py fails where the two disagree. A report that is not there leaves its block empty.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _environment import ROOT
from _numbers import table, write_text
from _published import BEST, NEAR, PUBLISHED

Figures = Mapping[str, float]

README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- numbers:(\w+) -->\n).*?(<!-- /numbers -->)", re.DOTALL)


def main() -> int:
    """Refresh the README and say whether it changed."""
    old = README.read_text(encoding="utf-8")
    new = refreshed(old, ROOT / "reports")
    if new != old:
        write_text(README, new)
    print("README.md: figures renewed" if new != old else "README.md: figures are those of the reports")
    return 0


def refreshed(readme: str, reports: Path) -> str:
    """Return the README's text with the figures of `reports` between its markers."""
    return MARKED.sub(lambda found: found[1] + block(found[2], reports / found[2] / "numbers.json") + found[3], readme)


def block(name: str, numbers: Path) -> str:
    """Compose what stands between the markers of a report."""
    if not numbers.exists():
        return ""
    content: dict[str, Any] = json.loads(numbers.read_text(encoding="utf-8"))
    parts = content.get("parts", {}).values()
    commands = dict.fromkeys([content["command"], *(part["command"] for part in parts)])
    told = "Made by {commands} on {cores} cores of {cpu}, {memory_gib} GiB, Python {python}."
    named = ", ".join(f"`{command}`" for command in commands)
    made = told.format_map({"memory_gib": "?", **content["machine"], "commands": named})
    paragraphs = [*BLOCKS[name](content["figures"]).split("\n\n"), made]
    return "\n" + "".join(f"{_wrapped(paragraph)}\n\n" for paragraph in paragraphs)


def _wrapped(paragraph: str) -> str:
    return paragraph if paragraph.startswith("|") else textwrap.fill(paragraph, 120, break_on_hyphens=False)


def compare(figures: Figures) -> str:
    """Compose what labels add, on the Handbook's payments, and what each of them buys."""
    measures = ("auc", "ap", "cp100")
    gaps = [
        figures[f"handbook.{name}.{measure}"] - value
        for name, values in PUBLISHED.items()
        for measure, value in zip(measures, values, strict=True)
    ]
    near = sum(abs(gap) <= NEAR for gap in gaps)
    auc, ap, cards = (
        f"{figures[f'handbook.head.{measure}']:.3f} ({best:.3f})" for measure, best in zip(measures, BEST, strict=True)
    )
    found = {name.replace(".", "_"): f"{value:.3f}" for name, value in figures.items()}
    more = figures.get("long.xgboost_views.ap")
    same = "" if more is None else f" and told the same {more:.3f}"
    told = """On the Fraud Detection Handbook's own protocol ([measured](reports/compare/handbook.md)) {near} of {all}
figures of our baselines are within {limit} of the published ones. In brackets the best published of any model: the
recurrent head has an average precision of {ap}, an AUC of {auc} and a card precision@100 of {cards}. What it is told
besides brings more than its memory does: how many frauds in a row are known of a terminal, since when, and how the last
days' amounts are above what is usual for the customer. XGBoost, told the same, has an average precision of
{handbook_xgboost_views_ap}. With the labels of four months the head has {long_head_ap}, XGBoost on the Handbook's
features {long_xgboost_ap}{same}; without a label the detector has {long_unsupervised_ap}.

Average precision by the number of frauds whose label is known ([simulated payments](reports/compare/labels.md), and
[the Handbook's](reports/compare/labels_handbook.md) of {customers:,.0f} customers); `pretrained` is the head that
starts from the detector, its memory and its score:""".format(
        near=near, all=len(gaps), limit=NEAR, ap=ap, auc=auc, cards=cards, same=same,
        customers=figures["labels.handbook.customers"], **found,
    )  # fmt: skip
    return f"{told}\n\n{by_labels(figures)}"


def by_labels(figures: Figures) -> str:
    """Table of average precision by the number of known frauds: a line for each scorer of each sort of payments."""
    known = ["0", "10", "30", "100", "300", "all"]
    rows = []
    for what, part in (("simulated", "labels"), ("Handbook", "labels.handbook")):
        for name in ("unsupervised", "pretrained", "head", "xgboost"):
            has = [one for one in known if (one == "0") == (name == "unsupervised")]
            cells = {one: figures.get(f"{part}.{one}.{name}.ap") for one in has}
            shown = ("" if cells.get(one) is None else f"{cells[one]:.3f}" for one in known)
            rows.append([f"{what}: {name}", *shown])
    return table(["known frauds", *known], rows)


def demo(figures: Figures) -> str:
    """Compose the table of the simulated payments: rules and models side by side, overall and by kind of fraud."""
    kinds = sorted(name.split(".")[1] for name in figures if re.fullmatch(r"both\.\w+\.recall50", name))
    lines = {"AUC": "auc", "average precision": "ap", "recall at 50 alerts a day": "recall50"}
    lines |= {f"– of {kind.replace('_', ' ')}": f"{kind}.recall50" for kind in kinds}
    return (
        "### Simulated card payments\n\n"
        f"[This is the report](reports/demo/report.html), to be opened in a browser. Of {figures['scored']:,} payments "
        f"scored after {figures['history']:,} of unlabelled history, {figures['frauds']:,} are planted fraud: a random "
        f"ranking has an average precision of {figures['base_rate']:.3f}. With a budget of 50 cases a day, "
        f"{figures['cases_with_fraud']:,} of {figures['cases']:,} cases hold fraud, and they catch "
        f"{figures['customers_caught']:,} of {figures['customers_defrauded']:,} defrauded customers. The fit took "
        f"{figures['fit.seconds']:,.0f} s, scoring {figures['score.seconds']:,.0f} s."
        f"{_rules_win(figures, kinds)}\n\n"
        + compared(figures, ("amount", "ratio", "autoencoder", "forecaster", "both"), lines)
    )


def _rules_win(figures: Figures, kinds: Sequence[str]) -> str:
    """Name the kinds of which a rule finds more than any model."""

    def best(kind: str, scorers: Sequence[str]) -> float:
        return max(figures.get(f"{scorer}.{kind}.recall50", 0.0) for scorer in scorers)

    models = ("autoencoder", "forecaster", "both")
    won = [kind.replace("_", " ") for kind in kinds if best(kind, ("amount", "ratio")) > best(kind, models)]
    return f" A rule finds more than any model of: {', '.join(won)}." if won else ""


def detection(figures: Figures) -> str:
    """Compose the tables of the detection bench: simulated payments, the Handbook's, single series, promises."""
    kinds = sorted(
        {name.split(".")[3] for name in figures if re.match(r"simulator\.ours\.recall\.\w+$", name)} - {"macro"}
    )
    lines = {"AUC": "auc", "average precision": "ap", "recall at 25 alerts per 1,000 customers a day": "recall.macro"}
    lines |= {f"– of {kind.replace('_', ' ')}": f"recall.{kind}" for kind in kinds}
    scorers = ("amount", "ratio", "isolation_forest", "ecod", "pyod_lstm", "plain_forecaster", "ours", "oracle")
    payments = {"AUC": "auc", "average precision": "ap", "card precision at 100": "cp100"}
    payments |= {"– AUC of scenario 1, large amounts": "s1.auc"}
    payments |= {"– AUC of scenario 3, amounts times five": "s3.auc", "– its average precision": "s3.ap"}
    others = ("amount", "ratio", "isolation_forest", "ecod", "ours", "ceiling")
    series = {"VUS-PR": "vus_pr", "AUC-PR": "auc_pr"}
    return (
        "### Against rules and other detectors\n\n"
        "[The whole bench](reports/detection/report.md) tells what was aimed at and missed, the contribution of each "
        "part, and whether stated rates are kept. Simulated payments, mean over the seeds; other detectors "
        "(PyOD, scikit-learn) see the same causal features:\n\n"
        + compared(figures, scorers, lines, "simulator.")
        + "\n\nPayments of the Fraud Detection Handbook, August and September; `ceiling` is the best that can be had "
        "without labels, since one of its three kinds of fraud changes labels only:\n\n"
        + compared(figures, others, payments, "handbook.")
        + "\n\nSix series of the Numenta Anomaly Benchmark, as TSB-AD measures them:\n\n"
        + compared(figures, ("distance_from_median", "autoencoder", "forecaster", "ours"), series, "nab.")
    )


def explain(figures: Figures) -> str:
    """Compose what is told of reasons and counterfactuals."""
    kinds = sorted(name.rpartition(".")[2] for name in figures if name.startswith("explain.top_reason."))
    lines = {kind.replace("_", " "): kind for kind in sorted(kinds, key=lambda kind: (kind != "all", kind))}
    found = {name.partition(".")[2]: value for name, value in figures.items() if name.startswith("counterfactual.")}
    return (
        "### Explanations\n\n"
        "[Do reasons name what was changed](reports/explain/report.md), on simulated payments? Of the alerts that are "
        "fraud, the share whose first reason (`top_reason`) names something that the fraudster set and that is unlike "
        "the customer; the same of the first reason that is not the recent past (`first_field`); beside it the rule "
        "always to name the amount, and one of the eight things at random:\n\n"
        + compared(figures, ("top_reason", "first_field", "amount_rule", "chance"), lines, "explain.")
        + f"\n\nOf {found['alerts']:,.0f} alerts, fraud or not, {found['passes']:.1%} have a change that lets them "
        f"pass when it is written into the table and all is scored anew: {found['one_field']:.1%} by one field, "
        f"{found['run']:.1%} without the unusual events shortly before."
    )


def drift(figures: Figures) -> str:
    """Compose what is told of drift."""
    shares = {name.rpartition("_")[2]: value for name, value in figures.items() if ".flagged.up_" in name}
    told = [
        f"{value:.0%} if they rise by {rise} %" for rise, value in sorted(shares.items(), key=lambda one: int(one[0]))
    ]
    return (
        f"Drift, on {figures['drift.plays']:,.0f} simulations without fraud: everybody's amounts are flagged in "
        f"{', '.join(told)}; where nothing changes, {figures['drift.false_plays']:.0%} have a flag anywhere "
        f"({figures['drift.cells']:,.0f} cells)."
    )


def report(figures: Figures) -> str:
    """Compose what a report costs."""
    found = {name.partition(".")[2]: value for name, value in figures.items()}
    return (
        f"A report of {found['events']:,.0f} scored payments with {found['cases']:,.0f} cases takes "
        f"{found['seconds']:.0f} s ({found['processor_seconds']:.0f} s of processor time; the slowest of "
        f"{found['times']:.0f}: {found['slowest_seconds']:.0f} s) and {found['peak_mb']:,.0f} MB; the page has "
        f"{found['megabytes']:.1f} MB."
    )


def speed(figures: Figures) -> str:
    """Compose what is told of speed, targets that were missed among it."""
    found = {name.replace(".", "_"): value for name, value in figures.items()}
    return """### Speed

[Stages, peers and targets](reports/speed/report.md). One event costs one step of each model: scoring is
{score_times_best_peer:.1f} times as fast as PyOD's LSTM detector and training {fit_times_best_peer:.1f} times, on one
thread. Of what torch's own `nn.LSTM` reaches at the same sizes training has {fit_share_of_raw:.0%} and scoring
{score_share_of_raw:.0%}, where 40% was aimed at. On the Handbook's 1.75 million payments a fit takes
{handbook_fit_seconds:,.0f} s, scoring {handbook_score_seconds:,.0f} s and at most {handbook_peak_mb:,.0f} MB; a live
event {stream_p50_us:,.0f} microseconds at the median and
{stream_p99_us:,.0f} at the 99th percentile.""".format_map(found)


BLOCKS: Mapping[str, Callable[[Figures], str]] = {
    "compare": compare,
    "demo": demo,
    "detection": detection,
    "explain": explain,
    "drift": drift,
    "report": report,
    "speed": speed,
}


def compared(figures: Figures, scorers: Sequence[str], lines: Mapping[str, str], section: str = "") -> str:
    """Markdown table with a column for each scorer; the best of a line is not marked, so that all are read."""
    rows = []
    for label, key in lines.items():
        found = [figures.get(f"{section}{scorer}.{key}") for scorer in scorers]
        rows.append([label, *("–" if value is None else f"{value:.3f}" for value in found)])
    return table(["", *scorers], rows)


if __name__ == "__main__":
    sys.exit(main())
