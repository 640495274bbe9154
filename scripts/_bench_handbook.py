"""The Fraud Detection Handbook's payments, without labels: two months, its test weeks, and its autoencoder's week.

The weeks follow the Handbook: the test week begins 14 days after the training week; cards known to be compromised are
taken out, which are those with a fraud in the training week, and day by day those that a delay of a week has told of.
That takes labels, and changes which events are counted, for every scorer alike; no score is made with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial

import _peers
import numpy as np
import polars as pl
from _bench_ablation import Planted, planted_alone
from _bench_work import Data, Done, Found, Piece, Sizes, epochs
from _handbook_protocol import DELAY, WEEK, counted
from handbook import CARDS, SCHEMA, SINCE, quality
from numpy.typing import NDArray

from anomaly.detector import Detector
from anomaly.evaluation import average_precision, card_precision_at_k, daily, roc_auc
from anomaly.ingest import read_events

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SECTION = "handbook"
UNLABELLED = SCHEMA.model_copy(update={"label": None})
RULES = ("amount", "ratio", "robust_z")
PEERS = ("isolation_forest", "ecod")
SCORERS = (*RULES, *PEERS, "autoencoder", "forecaster", "ours", "ceiling")
TEST_WEEKS = (date(2018, 8, 8), date(2018, 8, 15), date(2018, 8, 22), date(2018, 8, 29))
AE_WEEK = date(2018, 7, 25)


@dataclass(frozen=True)
class Payments:
    """The Handbook's payments up to some day, and the rows that are scored.

    Attributes
    ----------
    events : DataFrame
        All N of them, in the order of time, without labels.
    kind : ndarray (N,)
        Scenario, 0 = genuine.
    since : str
        Where the history ends.
    row : ndarray (n,)
        The scored events.
    """

    events: pl.DataFrame
    kind: Ints
    since: str
    row: Ints

    @classmethod
    def read(cls, data: Data, sizes: Sizes, since: str, until: date | None = None) -> Payments:
        """Read the file; keep each `every`-th customer, and days before `until`."""
        table = pl.read_parquet(data.handbook).filter(pl.col("CUSTOMER_ID").cast(pl.Int64) % sizes.every == 0)
        if until is not None:
            table = table.filter(pl.col("TX_DATETIME").dt.date() < until)
        kind = table["TX_FRAUD_SCENARIO"].cast(pl.Int64).to_numpy()
        row = np.flatnonzero((table["TX_DATETIME"].dt.date() >= date.fromisoformat(since)).to_numpy())
        return cls(table.drop("TX_FRAUD", "TX_FRAUD_SCENARIO"), kind, since, row)

    @property
    def day(self) -> Ints:
        """Days since 1970 (N,)."""
        return daily(self.events["TX_DATETIME"].dt.epoch("s").to_numpy())

    @property
    def card(self) -> Ints:
        """The customer of each event (N,)."""
        return self.events["CUSTOMER_ID"].cast(pl.Int64).to_numpy()

    def counted(self, week: date) -> Bools:
        """Which events (N,) of a test week the Handbook counts: see the module."""
        return counted(self.day, self.card, self.kind > 0, week - timedelta(days=WEEK + DELAY))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def pieces(sizes: Sizes, data: Data) -> list[Piece]:
    """August and September, and the autoencoder's week."""
    found = [Piece(SECTION, "main.rules", partial(main_rules, sizes, data), data.handbook)]
    found += [
        Piece(SECTION, f"main.{name}", partial(main_peer, sizes, data, name), data.handbook, needs)
        for name, needs in (("isolation_forest", "sklearn"), ("ecod", "pyod"))
    ]
    found.append(Piece(SECTION, "main.ours", partial(main_ours, sizes, data), data.handbook))
    if sizes.second_fit:
        found += [
            Piece(SECTION, "ae_week.rules", partial(week_rules, sizes, data), data.handbook),
            Piece(
                SECTION,
                "ae_week.isolation_forest",
                partial(week_peer, sizes, data, "isolation_forest"),
                data.handbook,
                "sklearn",
            ),
            Piece(SECTION, "ae_week.ours", partial(week_ours, sizes, data), data.handbook),
        ]
    return found


def main_rules(sizes: Sizes, data: Data) -> Found:
    """Rules and the ceiling on August and September."""
    payments = Payments.read(data, sizes, SINCE)
    scores = rules(payments)
    kind = payments.kind[payments.row]
    scores["ceiling"] = np.isin(kind, (1, 3)) + np.random.default_rng(0).random(kind.size)
    counts = {"events": kind.size, "frauds": int((kind > 0).sum())}
    return {**whole(payments, scores), "facts": counts | week_counts(payments)}


def main_peer(sizes: Sizes, data: Data, name: str) -> Found:
    """Another detector on August and September."""
    payments = Payments.read(data, sizes, SINCE)
    return whole(payments, {name: peer(payments, name)})


def main_ours(sizes: Sizes, data: Data) -> Found:
    """Our detector on August and September."""
    payments = Payments.read(data, sizes, SINCE)
    detector, scores = ours(payments, sizes)
    history = payments.events.filter(pl.col("TX_DATETIME").dt.date() < date.fromisoformat(SINCE))
    return {**whole(payments, scores), "ablation": planted_alone(Planted.by(detector, history, UNLABELLED))}


def week_rules(sizes: Sizes, data: Data) -> Found:
    """Rules on the autoencoder's week."""
    payments = Payments.read(data, sizes, str(AE_WEEK), AE_WEEK + timedelta(days=WEEK))
    return {"ae_week": week_quality(payments, rules(payments), AE_WEEK)}


def week_peer(sizes: Sizes, data: Data, name: str) -> Found:
    """Another detector on the autoencoder's week."""
    payments = Payments.read(data, sizes, str(AE_WEEK), AE_WEEK + timedelta(days=WEEK))
    return {"ae_week": week_quality(payments, {name: peer(payments, name)}, AE_WEEK)}


def week_ours(sizes: Sizes, data: Data) -> Found:
    """Our detector on the autoencoder's week."""
    payments = Payments.read(data, sizes, str(AE_WEEK), AE_WEEK + timedelta(days=WEEK))
    return {"ae_week": week_quality(payments, ours(payments, sizes)[1], AE_WEEK)}


# ---- scores (n,) -----------------------------------------------------------------------------------------------------


def rules(payments: Payments) -> dict[str, Floats]:
    """Score by the rules; the category is the terminal."""
    events, history = payments.events, np.ones(len(payments.events), dtype=bool)
    history[payments.row] = False
    time, terminal = events["TX_DATETIME"].dt.epoch("s").to_numpy(), events["TERMINAL_ID"].to_numpy()
    scores = _peers.rules(payments.card, events["TX_AMOUNT"].to_numpy(), time, terminal, history)
    return {name: score[payments.row] for name, score in scores.items()}


def peer(payments: Payments, name: str) -> Floats:
    """Score by another detector, on the same causal features."""
    frame = read_events(payments.events, UNLABELLED).frame
    later = np.zeros(len(payments.events), dtype=bool)
    later[payments.row] = True
    scored = later[frame["row"].to_numpy()]
    features = _peers.event_features(frame, UNLABELLED, ~scored)
    scored = later[features.row]
    train, test = features.matrix[~scored], features.matrix[scored]
    score = np.full(len(later), np.nan)
    score[features.row[scored]] = (
        _peers.ecod(train, test) if name == "ecod" else _peers.isolation_forest(train, test, seed=0)
    )
    return score[payments.row]


def ours(payments: Payments, sizes: Sizes) -> tuple[Detector, dict[str, Floats]]:
    """Score by our detector, and by each of its models alone."""
    hidden = sizes.hidden
    detector = Detector(UNLABELLED, hidden=hidden, epochs=epochs(sizes.data_epochs))
    detector.fit(payments.events, until=payments.since, progress=False)
    scores = detector.score(payments.events, since=payments.since)
    if scores["row"].to_list() != payments.row.tolist():
        raise RuntimeError("the scored rows are not those that were asked for")
    found = {name: -np.log10(scores[f"p_{name}"].to_numpy()) for name in ("autoencoder", "forecaster")}
    found["ours"] = scores["surprise"].to_numpy()
    return detector, {name: np.nan_to_num(score, nan=0.0) for name, score in found.items()}


# ---- quality ---------------------------------------------------------------------------------------------------------


def whole(payments: Payments, scores: dict[str, Floats]) -> Found:
    """Quality over all scored events, and on each test week."""
    kind, day, card = payments.kind[payments.row], payments.day[payments.row], payments.card[payments.row]
    result: dict[str, dict[str, float]] = {}
    for name, score in scores.items():
        measures = quality(name, score, kind) | {
            f"{name}.cp100": card_precision_at_k(day, card, score, kind > 0, CARDS)
        }
        result[name] = {key.split(".", 1)[1]: value for key, value in measures.items()}
    return {"scorers": result, "weeks": {str(week): week_quality(payments, scores, week) for week in TEST_WEEKS}}


def week_quality(payments: Payments, scores: dict[str, Floats], week: date) -> dict[str, dict[str, float]]:
    """AUC, AP and CP@100 on the events of a week that the Handbook counts; nothing if there is no fraud."""
    counted = payments.counted(week)[payments.row]
    mine = payments.row[counted]
    fraud, day, card = payments.kind[mine] > 0, payments.day[mine], payments.card[mine]
    if not fraud.any():
        return {}
    return {
        name: {
            "auc": roc_auc(score[counted], fraud),
            "ap": average_precision(score[counted], fraud),
            "cp100": card_precision_at_k(day, card, score[counted], fraud, CARDS),
        }
        for name, score in scores.items()
    }


def week_counts(payments: Payments) -> dict[str, int]:
    """Events and frauds that the Handbook counts in its first test week: 58,264 and 385 on the whole data are right."""
    counted = payments.counted(TEST_WEEKS[0])
    return {"first_week.events": int(counted.sum()), "first_week.frauds": int((payments.kind[counted] > 0).sum())}


def figures(done: Done, sizes: Sizes) -> dict[str, float]:  # noqa: ARG001 - every section is asked the same
    """All that was found, and means and standard deviations over the test weeks."""
    result: dict[str, float] = {}
    for found in done.values():
        for scorer, values in found.get("scorers", {}).items():
            result |= {f"{SECTION}.{scorer}.{key}": value for key, value in values.items()}
            weeks = [week[scorer] for week in found["weeks"].values() if scorer in week]
            for key in weeks[0] if weeks else ():
                each = [week[key] for week in weeks]
                name = f"{SECTION}.weeks.{scorer}.{key}"
                result |= {name: float(np.mean(each)), f"{name}.sd": float(np.std(each))}
        for scorer, values in found.get("ae_week", {}).items():
            result |= {f"{SECTION}.ae_week.{scorer}.{key}": value for key, value in values.items()}
        result |= {f"{SECTION}.{key}": value for key, value in found.get("facts", {}).items()}
        for part, values in found.get("ablation", {}).items():
            name, whole = f"{SECTION}.ablation.{part}.planted", found["ablation"]["whole"]["planted"]
            result |= {name: values["planted"], f"{name}.difference": values["planted"] - whole}
    return result
