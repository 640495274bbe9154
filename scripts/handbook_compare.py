"""Measure what labels would add on the Fraud Detection Handbook's payments, by the Handbook's own protocol.

As in::

    python3 scripts/handbook_compare.py handbook.parquet

Four folds of a week of training, a week of delay and a week of test, as published; then a long split: all labels known
at the end of July, tested on August and September. The scorers: `amount` and `ratio`, rules without labels;
`unsupervised`, our detector, without labels too; `logistic`, `forest` and `xgboost`, which learn from labels and read
past fraud at the terminal as a feature; `head`, the recurrent head, which remembers each customer's payments and reads
more of what is known of customer and terminal; `xgboost_views`, which reads the same without the memory; on the long
split also `customer`, a head that knows the customer's own payments alone. Figures go to reports/compare, those of each
scorer as soon as they are there; no row of the data does.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from _environment import ROOT, ensure, inside, run_inside

if __name__ == "__main__" and not inside():
    sys.exit(run_inside(ensure(("baselines",)), __file__, sys.argv[1:]))

import numpy as np
from _handbook_detector import LEARNED_UNTIL, Ours
from _handbook_protocol import (
    FEATURES,
    MEASURES,
    TRAINED_FROM,
    Floats,
    Payments,
    Scorer,
    Split,
    folds,
    labelled,
    last_training_day,
    long_split,
    quality,
    rule,
)
from _numbers import merge_numbers, read_figures, table, told_command, write_text
from _published import NEAR, PUBLISHED
from handbook import CARDS, SINCE
from handbook import quality as quality_by_kind

from anomaly.evaluation import card_precision_at_k
from anomaly.models.baselines import Boosting, Forest, Logistic

LONG_ONLY = ("customer",)
FIRST = TRAINED_FROM[0].isoformat()  # the fold whose numbers of rows are published: 67,240 with 598; 58,264 with 385
KINDS = {1: "large amounts", 2: "terminals", 3: "amounts times five"}


def scorers(seed: int = 0, n_jobs: int = 1) -> dict[str, Scorer]:
    """Return all scorers by name, the rules first; another one is one more entry."""
    ours = Ours(seed)
    return {
        "amount": rule("amount"),
        "ratio": rule("ratio"),
        "unsupervised": ours.unsupervised,
        "logistic": labelled(Logistic, seed),
        "forest": labelled(partial(Forest, trees=100, depth=20, n_jobs=n_jobs), seed),
        "xgboost": labelled(partial(Boosting, trees=100, learning_rate=0.3, depth=3, n_jobs=n_jobs), seed),
        "xgboost_views": labelled(
            partial(Boosting, trees=100, learning_rate=0.1, depth=4, n_jobs=n_jobs), seed, "views"
        ),
        "head": ours.head,
        "customer": ours.customer,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures, and print where they are."""
    wish = parse(arguments)
    payments = Payments.read(wish.data)
    named = scorers(wish.seed, wish.n_jobs)
    options = ["--seed", str(wish.seed)] if wish.seed else []
    command = told_command(__file__, wish.data, options)
    split, splits = long_split(payments), folds(payments)
    for name in wish.scorers or named:
        one = {name: named[name]}
        if name not in LONG_ONLY:
            merge_numbers(wish.reports, f"handbook.{name}", command, by_folds(payments, one, splits))
        merge_numbers(wish.reports, f"long.{name}", command, by_long_split(payments, one, split))
    merge_numbers(wish.reports, "handbook.rows", command, counts(payments, first_of(splits), "handbook.rows"))
    merge_numbers(wish.reports, "long.rows", command, counts(payments, split, "long.rows"))
    figures = read_figures(wish.reports)
    write_text(wish.reports / "handbook.md", page(figures, list(named), command))
    print(f"figures: {wish.reports}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the Handbook's payments, a Parquet file")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "compare", help="folder of the figures")
    names = list(scorers())
    parser.add_argument(
        "--scorers", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}: only these"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the models (default: %(default)s)")
    parser.add_argument("--n-jobs", type=int, default=1, help="threads of a model (default: %(default)s)")
    return parser.parse_args(arguments)


def by_folds(payments: Payments, named: Mapping[str, Scorer], splits: Sequence[Split]) -> dict[str, float]:
    """Measure each scorer on each fold; mean and standard deviation (over the folds, as published) of each measure."""
    figures: dict[str, float] = {}
    for name, scorer in named.items():
        found = [quality(payments, split, _told(name, scorer, payments, split)) for split in splits]
        for measure in MEASURES:
            each = [values[measure] for values in found]
            key = f"handbook.{name}.{measure}"
            figures |= {key: float(np.mean(each)), f"{key}.std": float(np.std(each))}
            figures |= {f"{key}.{_part(split)}": value for split, value in zip(splits, each, strict=True)}
    return figures


def by_long_split(payments: Payments, named: Mapping[str, Scorer], split: Split) -> dict[str, float]:
    """Measure each scorer on the long split, and on each scenario's frauds against the genuine payments alone.

    Card precision here has nothing taken out: neither known cards nor those found on earlier days. In two months most
    cards are compromised at some time, and with those gone it says little.
    """
    figures: dict[str, float] = {}
    for name, scorer in named.items():
        score = _told(name, scorer, payments, split)
        figures |= {f"long.{name}.{key}": value for key, value in quality(payments, split, score).items()}
        day, card, fraud = (values[split.test] for values in (payments.day, payments.card, payments.fraud))
        figures[f"long.{name}.cp{CARDS}"] = card_precision_at_k(day, card, score, fraud, CARDS, drop_detected=False)
        kinds = quality_by_kind(name, score, payments.kind[split.test])
        figures |= {f"long.{key}": value for key, value in kinds.items() if f"{name}.s" in key}
    return figures


def first_of(splits: Sequence[Split]) -> Split:
    """Return the split whose numbers of rows are published."""
    return next(split for split in splits if split.name == FIRST)


def counts(payments: Payments, split: Split, prefix: str) -> dict[str, float]:
    """Count the events and frauds that train and that test."""
    figures: dict[str, float] = {}
    for part, rows in (("train", split.train), ("test", split.test)):
        figures |= {f"{prefix}.{part}": len(rows), f"{prefix}.{part}_frauds": int(payments.fraud[rows].sum())}
    return figures


def page(figures: Mapping[str, float], names: Sequence[str], command: str) -> str:
    """Compose handbook.md; a scorer that was not measured yet is left out."""
    heads = ["AUC", "AP", "CP@100"]
    weeks, folded = [first.isoformat() for first in TRAINED_FROM], _measured(figures, names, "handbook")
    each = table(
        ["scorer", "measure", *weeks],
        [
            [name, head, *(figures[f"handbook.{name}.{measure}.fold_{week.replace('-', '_')}"] for week in weeks)]
            for name in folded
            for head, measure in zip(heads, MEASURES, strict=True)
        ],
    )
    parts = [
        f"# Fraud Detection Handbook, with labels\n\nMade by\n\n    {command}\n\n## As published",
        _filled(f"""Mean ± standard deviation over the Handbook's four test folds, and the published mean in brackets.
            {verdict(figures)}"""),
        against_published(figures, folded, heads),
        _filled(f"""A fold is a week of training, a week until the labels are there, and a week of test without the
            cards that are known to be compromised by then. The fold that trains from {FIRST} has
            {figures["handbook.rows.train"]:,} payments with {figures["handbook.rows.train_frauds"]:,} frauds to train
            on, and {figures["handbook.rows.test"]:,} with {figures["handbook.rows.test_frauds"]:,} to test on."""),
        _filled(f"""`amount` and `ratio` (amount over the median of the customer's earlier amounts) are rules without
            labels, and `unsupervised` is our detector, fitted once without labels on all payments before
            {LEARNED_UNTIL} and never again. `logistic`, `forest` and `xgboost` learn from the Handbook's
            {len(FEATURES)} features, of which three are the shares of fraud among the terminal's payments in the 1, 7
            and 30 days that ended a week ago. The forest has 100 trees of depth 20 and XGBoost 100 of depth 3 with a
            learning rate of 0.3, as the Handbook's validation chose; the logistic regression has scikit-learn's usual
            penalty."""),
        _filled(f"""`head` is the recurrent head: it starts from the memory of a forecaster, which learned without
            labels from payments before {LEARNED_UNTIL}, and besides the features it is told what else is known, a week
            late, of past frauds of terminal and customer (how many, since when, in a row), and how the last days'
            amounts are above the customer's usual ones. `xgboost_views` is told the same, without the memory: 100 trees
            of depth 4, learning rate 0.1. Sizes, steps and inputs of both were chosen on the four weeks before, which
            the Handbook validates on, not on these. Each fold, by the first day of its training:"""),
        each,
        by_long_page(figures, names, heads),
    ]
    return "\n\n".join(parts) + "\n"


def by_long_page(figures: Mapping[str, float], names: Sequence[str], heads: Sequence[str]) -> str:
    """Compose what handbook.md says of the long split."""
    names = _measured(figures, names, "long")
    kinds = [(f"S{kind} {what}", f"s{kind}.{key}") for kind in KINDS for what, key in (("AUC", "auc"), ("AP", "ap"))]
    kinds = [(head, key) for head, key in kinds if f"long.{names[0]}.{key}" in figures]
    long = table(
        ["scorer", *heads, *(head for head, _ in kinds)],
        [
            [name, *(figures.get(f"long.{name}.{key}", "") for key in [*MEASURES, *(k for _, k in kinds)])]
            for name in names
        ],
    )
    share = figures["long.rows.test_frauds"] / figures["long.rows.test"]
    parts = [
        "## All labels of four months",
        _filled(f"""Trained on the {figures["long.rows.train"]:,} payments whose labels are known on {SINCE}, with
            {figures["long.rows.train_frauds"]:,} frauds; tested on the {figures["long.rows.test"]:,} from then to
            the end of September, {figures["long.rows.test_frauds"]:,} of them fraud ({share:.2%}, which is the AP
            of a random ranking). No card is taken out: neither known ones nor, in CP@100, those found on earlier
            days, which count again (empty: not measured so yet). In the folds a card that was found is taken out of
            the days after, as the Handbook does. Models aren't trained again; past fraud at a terminal goes on
            being read, a week late. `customer` is a head that knows the customer's own payments alone: no terminal,
            no past fraud. S1 ({KINDS[1]}), S2 ({KINDS[2]}) and S3 ({KINDS[3]}) stand against the genuine payments
            alone."""),
        long,
        _filled(f"""S2 marks all payments at a terminal for 28 days and changes nothing else. Without labels nothing
            ranks it above chance, so what is found there is what labels add; a customer's own history tells S1 and S3
            apart without them. {without_labels(figures)}"""),
    ]
    return "\n\n".join(parts)


def without_labels(figures: Mapping[str, float]) -> str:
    """Tell how near the detector, without a label, comes to the head that knows the customer's own payments alone."""
    own, without = (
        [figures.get(f"long.{name}.{key}") for key in ("ap", "s3.ap", "s3.auc")]
        for name in ("customer", "unsupervised")
    )
    if None in (*own, *without):
        return ""
    (ap, s3, auc), (bare_ap, bare_s3, bare_auc) = own, without
    return (
        f"By those alone labels bring `customer` to an AP of {ap:.3f} (S3: AP {s3:.3f}, AUC {auc:.3f}); the detector "
        f"comes to {bare_ap:.3f} (S3: {bare_s3:.3f}, {bare_auc:.3f}) without a label."
    )


def _measured(figures: Mapping[str, float], names: Sequence[str], split: str) -> list[str]:
    return [name for name in names if f"{split}.{name}.auc" in figures]


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


def against_published(figures: Mapping[str, float], names: Sequence[str], heads: Sequence[str]) -> str:
    """Compose the table of means beside the published ones."""
    rows = []
    for name in names:
        published = PUBLISHED.get(name)
        cells = []
        for number, measure in enumerate(MEASURES):
            key = f"handbook.{name}.{measure}"
            beside = f" ({published[number]:.3f})" if published else ""
            cells.append(f"{figures[key]:.3f} ± {figures[f'{key}.std']:.3f}{beside}")
        rows.append([name, *cells])
    return table(["scorer", *heads], rows)


def verdict(figures: Mapping[str, float]) -> str:
    """Tell how near the measured means are to the published ones."""
    gaps = {
        f"{name} {measure}": figures[f"handbook.{name}.{measure}"] - published
        for name, values in PUBLISHED.items()
        for measure, published in zip(MEASURES, values, strict=True)
        if f"handbook.{name}.{measure}" in figures
    }
    far = [f"{name} ({gap:+.3f})" for name, gap in gaps.items() if abs(gap) > NEAR]
    told = f"{len(gaps) - len(far)} of {len(gaps)} are within {NEAR} of it"
    return f"{told}; farther off: {', '.join(far)}." if far else f"{told}."


def _told(name: str, scorer: Scorer, payments: Payments, split: Split) -> Floats:
    """Score, and tell that it is being done: a forest takes minutes."""
    print(f"{name}, {split.name}: trained to {last_training_day(payments, split)}", flush=True)
    return scorer(payments, split)


def _part(split: Split) -> str:
    return f"fold_{split.name.replace('-', '_')}"


if __name__ == "__main__":
    sys.exit(main())
