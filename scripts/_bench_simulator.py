"""Simulated payments: what each scorer finds of each kind of fraud, and what our detector finds without its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

import _peers
import numpy as np
import polars as pl
from _bench_ablation import RESCORED, Judged, Planted, ablation, ablation_figures, choice_figures, choices, from_afar
from _bench_work import Done, Found, Piece, Sizes, epochs, mean_over, seeds, with_interval
from numpy.typing import NDArray

from anomaly.detector import Detector
from anomaly.evaluation import average_precision, recall_at_budget, roc_auc
from anomaly.history import as_seconds
from anomaly.ingest import read_events
from anomaly.simulator import SIMULATED_SCHEMA, simulate
from anomaly.thresholds import FalseDiscoveryRate, case_numbers, count_cases

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
    "robust_weights": {"drop_share": 0.0},
    "quarantine": {"quarantine_hours": 0},
}
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
    add(sizes.seeds, "robust_weights", refitted, "robust_weights")
    add(few, "quarantine", refitted, "quarantine")  # what it brings is plain in two
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
    detector, scores = fitted_scores(world, make(sizes, **REFITTED[part]))
    planted = Planted.by(detector, world.history, SIMULATED_SCHEMA).precision(detector.scorer_.combination)
    return {"ablation": {part: {**world.quality(surprise(scores), sizes.per_day), "planted": planted}}}


def ours(sizes: Sizes, seed: int) -> Found:
    """Our detector with its promises, and what it finds without its parts.

    On the first seeds also what a rehearsal prefers, and on the first one what it foretells.
    """
    world = play(sizes, seed)
    detector, scores = fitted_scores(world, make(sizes))
    planted = Planted.by(detector, world.history, SIMULATED_SCHEMA)
    judged = Judged.by(detector, world.events, world.since)
    quality = partial(world.quality, per_day=sizes.per_day)
    whole = {**quality(surprise(scores)), "planted": planted.precision(detector.scorer_.combination)}
    found: Found = {
        "scorers": {"ours": whole},
        "fdr": discoveries(detector, world, scores),
        "budget": budget(detector, world, scores, sizes),
        "ablation": ablation(judged, planted, quality),
    }
    if seed in seeds(sizes, min(sizes.few_seeds, sizes.seeds)):
        found["choices"] = choices(judged, planted, quality)
        found["afar"] = from_afar(judged, planted, quality)
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
    """Alerting events and false ones among them, and the same of cases, with their sums of squares by customer.

    A case is false if none of its alerts is fraud.
    """
    held, p = detector.holdout_, scores["p_value"].to_numpy()
    found = {}
    for q in SHARES:
        rule = FalseDiscoveryRate(q).fit(held.p, held.time, held.entity)
        alert = rule.decide(p, entity=world.customer)
        found[f"{q:g}"] = _shares(world.customer[alert], ~world.fraud[alert])
        case = case_numbers(world.time, world.customer, alert, COOLDOWN_HOURS)[alert]
        owner = world.customer[alert][np.unique(case, return_index=True)[1]]
        found[f"{q:g}.cases"] = _shares(owner, np.bincount(case, world.fraud[alert], len(owner)) == 0)
    return found


def _shares(customer: NDArray[np.int64], is_false: Bools) -> dict[str, float]:
    alerts = np.bincount(customer).astype(np.float64)
    false = np.bincount(customer, is_false).astype(np.float64)
    return {
        "alerts": alerts.sum(),
        "false": false.sum(),
        "alerts_squared": (alerts**2).sum(),
        "false_squared": (false**2).sum(),
        "product": (alerts * false).sum(),
    }


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
        result |= ablation_figures(_by_seed(done), by_seed["ours"])
        chosen = [found for found in mine if "choices" in found]
        result |= choice_figures([found["choices"] for found in chosen], [found["afar"] for found in chosen])
    for found in mine:
        for kind, values in found.get("rehearsal", {}).items():
            result |= {f"rehearsal.{kind}.{key}": value for key, value in values.items()}
    return result | ({f"{SECTION}.per_day": sizes.per_day} if result else {})


def _promises(mine: Sequence[Found]) -> dict[str, float]:
    result: dict[str, float] = {}
    for name in (f"{q:g}{of}" for q in SHARES for of in ("", ".cases")):
        share, error, alerts = pooled_share([found["fdr"][name] for found in mine])
        result |= {f"fdr.{name}": share, f"fdr.{name}.se": error, f"fdr.{name}.alerts": alerts}
    asked = mine[0]["budget"]["asked"]
    days = [found["budget"]["cases_per_day"] for found in mine]
    result |= with_interval("budget.cases_per_day", days) | {"budget.asked": asked}
    return result | with_interval("budget.mean", [day / asked for day in days])


def _by_seed(done: Done) -> dict[int, dict[str, dict[str, float]]]:
    result: dict[int, dict[str, dict[str, float]]] = {}
    for name, found in done.items():
        result.setdefault(int(name.split(".")[0]), {}).update(found.get("ablation", {}))
    return result
