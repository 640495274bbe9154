"""Simulated payments: what each scorer finds of each kind of fraud, and what our detector finds without its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import _peers
import numpy as np
import polars as pl
from _bench_work import Done, Found, Piece, Sizes, epochs, mean_over, seeds, with_interval
from numpy.typing import NDArray

from anomaly.detector import Detector
from anomaly.evaluation import average_precision, recall_at_budget, roc_auc
from anomaly.features import GIVEN
from anomaly.history import as_seconds
from anomaly.ingest import read_events
from anomaly.rehearsal import scales_of
from anomaly.scorer import NEVER, Combination, Errors, Scorer
from anomaly.sequences import Sequences
from anomaly.simulator import SIMULATED_SCHEMA, simulate
from anomaly.thresholds import FalseDiscoveryRate, count_cases

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SECTION = "simulator"
START = date(2024, 1, 1)
FRAUD_RATE = 0.01
RULES = ("amount", "ratio", "robust_z")
PEERS = ("isolation_forest", "ecod", "pyod_lstm")
SCORERS = (*RULES, *PEERS, "plain_forecaster", "plain_autoencoder", "ours", "oracle")
PLAIN: Mapping[str, Any] = {"quarantine_hours": 0, "drop_share": 0.0, "rehearse": False}
REFITTED: Mapping[str, Mapping[str, Any]] = {
    "quarantine": {"quarantine_hours": 0},
    "robust_weights": {"drop_share": 0.0},
}
RESCORED = ("evidence", "population", "autoencoder", "rehearsal", "fields", "given")
PARTS = (*RESCORED, *REFITTED)
SHARES = (0.05, 0.1, 0.2)  # of false ones among the alerts
COOLDOWN_HOURS = 24.0


@dataclass(frozen=True)
class Play:
    """Simulated payments, cut in two: history, and the rows that are scored.

    Attributes
    ----------
    events, labels : DataFrame
        All N of them, in the order of time.
    since : str
        Where the history ends.
    row : ndarray (n,)
        The scored events.
    """

    events: pl.DataFrame
    labels: pl.DataFrame
    since: str
    row: NDArray[np.int64]

    @classmethod
    def of(cls, events: pl.DataFrame, labels: pl.DataFrame, fit_days: int) -> Play:
        """Cut after `fit_days`."""
        since = str(START + timedelta(days=fit_days))
        later = events["time"].dt.epoch("s").to_numpy() >= as_seconds(since)
        return cls(events, labels, since, np.flatnonzero(later))

    @property
    def history(self) -> pl.DataFrame:
        """The events before."""
        return self.events.head(int(self.row[0]))  # events come in the order of time

    @property
    def time(self) -> Floats:
        """Seconds of the scored events (n,)."""
        return self.events["time"].dt.epoch("s").to_numpy()[self.row].astype(np.float64)

    @property
    def fraud(self) -> Bools:
        """Which of the scored events are fraud (n,)."""
        return self.labels["fraud"].to_numpy()[self.row]

    @property
    def customer(self) -> NDArray[np.int64]:
        """Codes of the scored events' customers (n,)."""
        return self.events["customer_id"].rank("dense").to_numpy()[self.row].astype(np.int64)

    def quality(self, score: Floats, per_day: int) -> dict[str, float]:
        """AP, AUC, and recall of each kind within the top `per_day` events of each day; the truth is read here."""
        fraud, kind, time = self.fraud, self.labels["kind"].to_numpy()[self.row], self.time
        found = {f"recall.{one}": recall_at_budget(time, score, kind == one, per_day) for one in np.unique(kind[fraud])}
        macro = float(np.mean(list(found.values())))
        return {**found, "recall.macro": macro, "ap": average_precision(score, fraud), "auc": roc_auc(score, fraud)}


def play(sizes: Sizes, seed: int) -> Play:
    """Simulate."""
    events, labels = simulate(sizes.customers, sizes.days, str(START), FRAUD_RATE, seed)
    return Play.of(events, labels, sizes.fit_days)


def make(sizes: Sizes, **options: Any) -> Detector:
    """Our detector; with its defaults, unless told otherwise."""
    return Detector(SIMULATED_SCHEMA, hidden=sizes.hidden, epochs=epochs(sizes.epochs), **options)


def surprise(scores: pl.DataFrame, model: str = "") -> Floats:
    """-log10 p of all or of one model; no statement counts as no surprise."""
    found = -np.log10(scores[f"p_{model}"].to_numpy()) if model else scores["surprise"].to_numpy()
    known: Floats = np.nan_to_num(found.astype(np.float64), nan=0.0)
    return known


# ---- pieces ----------------------------------------------------------------------------------------------------------


def pieces(sizes: Sizes) -> list[Piece]:
    """Rules and peers first: they are quick."""
    found: list[Piece] = []

    def add(number: int, name: str, work: Callable[..., Found], *args: Any, needs: str = "") -> None:
        found.extend(
            Piece(SECTION, f"{seed}.{name}", partial(work, sizes, seed, *args), needs=needs)
            for seed in seeds(sizes, number)
        )

    add(sizes.seeds, "rules", rules)
    add(sizes.seeds, "isolation_forest", peer, "isolation_forest", needs="sklearn")
    add(sizes.seeds, "ecod", peer, "ecod", needs="pyod")
    add(sizes.seeds, "ours", ours)
    few = min(sizes.few_seeds, sizes.seeds)
    add(few, "plain", plain)
    add(few, "oracle", oracle)
    for part in REFITTED:
        add(few, part, refitted, part)
    add(min(sizes.lstm_seeds, sizes.seeds), "pyod_lstm", peer, "pyod_lstm", needs="pyod")
    return found


def rules(sizes: Sizes, seed: int) -> Found:
    """Score by the rules."""
    world = play(sizes, seed)
    return {"scorers": {name: world.quality(score, sizes.per_day) for name, score in rule_scores(world).items()}}


def rule_scores(world: Play) -> dict[str, Floats]:
    """Scores (n,) of the rules."""
    events, history = world.events, np.ones(len(world.events), dtype=bool)
    history[world.row] = False
    customer, time = events["customer_id"].rank("dense").to_numpy(), events["time"].dt.epoch("s").to_numpy()
    scores = _peers.rules(customer, events["amount"].to_numpy(), time, events["merchant_category"].to_numpy(), history)
    return {name: score[world.row] for name, score in scores.items()}


def peer(sizes: Sizes, seed: int, name: str) -> Found:
    """Score by another detector, on the same causal features."""
    world = play(sizes, seed)
    frame = read_events(world.events, SIMULATED_SCHEMA).frame
    history = frame["row"].to_numpy() < world.row[0]
    features = _peers.event_features(frame, SIMULATED_SCHEMA, history)
    score = np.full(len(frame), np.nan)
    if name == "pyod_lstm":
        score[features.row] = _peers.pyod_lstm(
            features.matrix,
            features.offsets,
            history,
            ~history,
            seed=seed,
            epochs=sizes.lstm_epochs,
            train_events=sizes.lstm_events,
        )
    else:
        train, test = features.matrix[history], features.matrix[~history]
        found = _peers.ecod(train, test) if name == "ecod" else _peers.isolation_forest(train, test, seed=seed)
        score[features.row[~history]] = found
    return {"scorers": {name: world.quality(score[world.row], sizes.per_day)}}


def plain(sizes: Sizes, seed: int) -> Found:
    """Both models without quarantine, robust weights, evidence or rehearsal."""
    world = play(sizes, seed)
    scores = fitted_scores(world, make(sizes, **PLAIN))[1]
    return {
        "scorers": {
            f"plain_{model}": world.quality(surprise(scores, model), sizes.per_day)
            for model in ("forecaster", "autoencoder")
        }
    }


def oracle(sizes: Sizes, seed: int) -> Found:
    """Our detector, fitted on a history whose frauds somebody has taken out; it scores what the others score."""
    world = play(sizes, seed)
    genuine = world.history.filter(~world.labels["fraud"].head(len(world.history)))
    detector = make(sizes).fit(genuine, until=world.since, progress=False)
    scores = detector.score(world.events, since=world.since)
    return {"scorers": {"oracle": world.quality(surprise(scores), sizes.per_day)}}


def refitted(sizes: Sizes, seed: int, part: str) -> Found:
    """Our detector, fitted without a part."""
    world = play(sizes, seed)
    scores = fitted_scores(world, make(sizes, **REFITTED[part]))[1]
    return {"ablation": {part: world.quality(surprise(scores), sizes.per_day)}}


def ours(sizes: Sizes, seed: int) -> Found:
    """Our detector with its promises, what it finds without its parts, and on the first seed its rehearsal."""
    world = play(sizes, seed)
    detector, scores = fitted_scores(world, make(sizes))
    found: Found = {
        "scorers": {"ours": world.quality(surprise(scores), sizes.per_day)},
        "fdr": discoveries(detector, world, scores),
        "budget": budget(detector, world, scores, sizes),
    }
    if seed in seeds(sizes, min(sizes.few_seeds, sizes.seeds)):
        found["ablation"] = ablation(detector, world, sizes)
    if seed == sizes.first_seed:
        rule = detector.threshold(budget_per_day=float(sizes.per_day))
        rehearsed = detector.rehearsal(world.history, rule, episodes=sizes.episodes)
        found["rehearsal"] = {
            row["kind"]: {key: row[key] for key in ("recall", "low", "high")} for row in rehearsed.iter_rows(named=True)
        }
    return found


def fitted_scores(world: Play, detector: Detector) -> tuple[Detector, pl.DataFrame]:
    """Fit on the history and score the rest."""
    detector.fit(world.events, until=world.since, progress=False)
    scores = detector.score(world.events, since=world.since)
    if scores["row"].to_list() != world.row.tolist():
        raise RuntimeError("the scored rows are not those that were asked for")
    return detector, scores


# ---- promises --------------------------------------------------------------------------------------------------------


def discoveries(detector: Detector, world: Play, scores: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Alerts and false alerts of Benjamini-Hochberg over the scored events, with their sums of squares by customer."""
    held, p = detector.holdout_, scores["p_value"].to_numpy()
    found = {}
    for q in SHARES:
        alert = FalseDiscoveryRate(q).fit(held.p, held.time, held.entity).decide(p)
        alerts = np.bincount(world.customer, alert).astype(np.float64)
        false = np.bincount(world.customer, alert & ~world.fraud).astype(np.float64)
        found[f"{q:g}"] = {
            "alerts": alerts.sum(),
            "false": false.sum(),
            "alerts_squared": (alerts**2).sum(),
            "false_squared": (false**2).sum(),
            "product": (alerts * false).sum(),
        }
    return found


def pooled_share(each: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """False share among the alerts of all seeds, its standard error by customer, and the number of alerts.

    >>> pooled_share([{"alerts": 4, "false": 1, "alerts_squared": 4, "false_squared": 1, "product": 1}])[0]
    0.25
    """
    total = {key: sum(one[key] for one in each) for key in each[0]}
    if not total["alerts"]:
        return 0.0, 0.0, 0.0
    share = total["false"] / total["alerts"]
    squares = total["false_squared"] - 2 * share * total["product"] + share**2 * total["alerts_squared"]
    return share, float(np.sqrt(max(squares, 0.0))) / total["alerts"], total["alerts"]


def budget(detector: Detector, world: Play, scores: pl.DataFrame, sizes: Sizes) -> dict[str, float]:
    """Cases a day that were asked for, and that came."""
    rule = detector.threshold(budget_per_day=float(sizes.per_day), cooldown_hours=COOLDOWN_HOURS)
    cases = count_cases(world.time, world.customer, rule.decide(scores["p_value"].to_numpy()), COOLDOWN_HOURS)
    return {"asked": sizes.per_day, "cases_per_day": cases / (sizes.days - sizes.fit_days)}


# ---- ablation --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What the models of a fitted detector say of all events: all that another combination needs."""

    detector: Detector
    sequences: Sequences
    errors: Errors
    held: Bools
    scored: Bools

    @classmethod
    def by(cls, detector: Detector, events: pl.DataFrame, since: str) -> Judged:
        """Run the models over all events once."""
        frame = read_events(events, SIMULATED_SCHEMA).frame
        sequences = detector.encoder_.transform(frame)
        begin, end = detector.fitted_["held_out_since"], as_seconds(since)
        assert end is not None
        longest = max(scales_of(detector.gap_, sequences.time.max() - begin, "long"), default=0.0)
        errors = detector.errors(sequences, sequences.time > begin - longest)
        later = sequences.time >= end
        return cls(detector, sequences, errors, (sequences.time >= begin) & ~later, later)

    @property
    def span(self) -> float:
        """Seconds from the first to the last held-out event."""
        held = self.sequences.time[self.held]
        return float(held.max() - held.min())


def rescored(judged: Judged, combination: Combination) -> Floats:
    """Score anew with another combination, calibrated on the same held-out slice; (n,) in the order of the rows.

    Parameters
    ----------
    judged : Judged
        What the models say.
    combination : Combination
        What counts how much.
    """
    sequences = judged.sequences
    scorer = Scorer(judged.detector.scorer_.fields, combination)
    scorer.fit(judged.errors, sequences, judged.held)
    log_p = scorer.judge(judged.errors, sequences, judged.scored).log_p
    surprise: Floats = np.nan_to_num(-log_p / np.log(10), nan=0.0)
    return surprise[np.argsort(sequences.row[judged.scored], kind="stable")]


def ablation(detector: Detector, world: Play, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Quality without each part that needs no new fit."""
    judged = Judged.by(detector, world.events, world.since)
    whole = detector.scorer_.combination
    without = {
        "evidence": replace(whole, evidence=0.0),
        "population": replace(whole, population=NEVER),
        "autoencoder": replace(whole, autoencoder=0.0),
        "rehearsal": Combination(scales=scales_of(detector.gap_, judged.span)),
        "fields": replace(whole, other=0.0),
    }
    found = {part: world.quality(rescored(judged, one), sizes.per_day) for part, one in without.items()}
    silent = replace(judged, errors=_without_given(judged))
    return {**found, "given": world.quality(rescored(silent, whole), sizes.per_day)}


def _without_given(judged: Judged) -> dict[str, NDArray[np.float32]]:
    """The errors, none of them given the categories of the event."""
    said = {}
    for name, values in judged.errors.items():
        given = [column.name.startswith(GIVEN) for column in judged.detector.scorer_.fields[name]]
        said[name] = np.where(given, np.float32(np.nan), values)
    return said


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(done: Done, sizes: Sizes) -> dict[str, float]:
    """Means over the seeds."""
    by_seed: dict[str, dict[int, dict[str, float]]] = {}
    for name, found in done.items():
        for scorer, values in found.get("scorers", {}).items():
            by_seed.setdefault(scorer, {})[int(name.split(".")[0])] = values
    result: dict[str, float] = {}
    for scorer, each in by_seed.items():
        result |= mean_over(f"{SECTION}.{scorer}", list(each.values())) | {f"{SECTION}.{scorer}.seeds": len(each)}
    mine = [found for name, found in done.items() if name.endswith(".ours")]
    if mine:
        result |= _promises(mine)
        result |= _ablation(done, by_seed["ours"])
    for found in mine:
        for kind, values in found.get("rehearsal", {}).items():
            result |= {f"rehearsal.{kind}.{key}": value for key, value in values.items()}
    return result | ({f"{SECTION}.per_day": sizes.per_day} if result else {})


def _promises(mine: Sequence[Found]) -> dict[str, float]:
    result: dict[str, float] = {}
    for q in SHARES:
        share, error, alerts = pooled_share([found["fdr"][f"{q:g}"] for found in mine])
        result |= {f"fdr.{q:g}": share, f"fdr.{q:g}.se": error, f"fdr.{q:g}.alerts": alerts}
    asked = mine[0]["budget"]["asked"]
    days = [found["budget"]["cases_per_day"] for found in mine]
    result |= with_interval("budget.cases_per_day", days) | {"budget.asked": asked}
    return result | with_interval("budget.mean", [day / asked for day in days])


def _ablation(done: Done, whole: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    result: dict[str, float] = {}
    for part in PARTS:
        each = {
            int(name.split(".")[0]): found["ablation"][part]
            for name, found in done.items()
            if part in found.get("ablation", {})
        }
        paired = sorted(set(each) & set(whole))
        for key in ("ap", "recall.macro") if paired else ():
            result |= with_interval(f"ablation.{part}.{key}", [each[seed][key] for seed in paired])
            change = [each[seed][key] - whole[seed][key] for seed in paired]
            result |= with_interval(f"ablation.{part}.{key}.difference", change)
    return result
