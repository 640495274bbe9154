"""Comparison: the same events for all, no label before its time, and figures that can be checked by hand."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from anomaly.cli import app
from anomaly.comparison import Compared, Comparison
from anomaly.comparison_measures import METRICS, UNSUPERVISED
from anomaly.comparison_scorers import HEADS, UNLABELLED
from anomaly.errors import InputError, ParameterError
from anomaly.evaluation import average_precision, roc_auc, rule_amount
from anomaly.history import as_seconds
from anomaly.simulator import SIMULATED_SCHEMA, simulate

SINCE = "2024-02-20"
SMALL: dict[str, Any] = {"hidden": 8, "epochs": 2, "repeats": 60, "known": (10, 10_000), "budget_per_day": 5}


@pytest.fixture(scope="module")
def world() -> tuple[pl.DataFrame, pl.DataFrame]:
    return simulate(customers=60, days=75, fraud_rate=0.03, seed=3)


@pytest.fixture(scope="module")
def compared(world: tuple[pl.DataFrame, pl.DataFrame]) -> Compared:
    events, labels = world
    return Comparison(schema=SIMULATED_SCHEMA, since=SINCE, **SMALL).run(events, labels["fraud"])


def test_every_scorer_is_measured_on_the_same_events(
    compared: Compared, world: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    events, labels = world
    later = events["time"].dt.epoch("s").to_numpy() >= (as_seconds(SINCE) or 0.0)
    truth = labels["fraud"].to_numpy()[later]
    assert compared.facts["scored"] == later.sum() and compared.facts["scored_frauds"] == truth.sum()
    rows = {row["scorer"]: row for row in compared.table.iter_rows(named=True)}
    assert set(rows) >= {"amount", "ratio", UNSUPERVISED, *HEADS}
    assert not any(row["labels"] for name, row in rows.items() if name in UNLABELLED)
    amount = rule_amount(events["amount"].to_numpy()[later])
    assert rows["amount"]["average_precision"] == pytest.approx(average_precision(amount, truth))
    assert rows["amount"]["auc"] == pytest.approx(roc_auc(amount, truth))
    for row in rows.values():
        assert row["ap_low"] <= row["average_precision"] <= row["ap_high"]
        assert (row["brier"] is None) == (row["calibration_error"] is None) == (not row["labels"])
    assert compared.table["average_precision"].is_sorted(descending=True)
    best = compared.table.filter("labels").row(0, named=True)
    assert best["scorer"].replace("_", " ") in compared.sentence
    assert f"{best['recall_at_budget']:.0%}" in compared.sentence


def test_the_curve_goes_from_no_label_to_all(compared: Compared) -> None:
    known = compared.curve["known"].unique().sort().to_list()
    assert known == [0, 10, compared.facts["known_frauds"]]  # ten thousand were never known
    assert compared.curve.filter(known=0)["scorer"].to_list() == list(UNLABELLED)
    for scorer in HEADS:
        last = compared.curve.filter(scorer=scorer, known=known[-1])["ap"].item()
        assert last == pytest.approx(compared.table.filter(scorer=scorer)["average_precision"].item())


def test_each_fold_is_scored_by_what_was_known_before_it(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """The last of two windows gives the figures of a comparison that begins there; means are over the two."""
    events, labels = world
    options = {**SMALL, "hidden": 4, "epochs": 1, "known": (), "baselines": ("logistic",)}
    found = Comparison(schema=SIMULATED_SCHEMA, since=SINCE, folds=2, **options).run(events, labels["fraud"])
    windows = found.facts["windows"]
    assert [one["begin"] for one in windows[1:]] == [one["end"] for one in windows[:-1]]
    later = (events["time"].dt.epoch("us") >= (as_seconds(SINCE) or 0.0) * 1e6).sum()
    assert sum(one["scored"] for one in windows) == later == found.facts["scored"]
    frauds = [one["known_frauds"] for one in windows]
    assert frauds == sorted(frauds) and frauds[0] < frauds[-1]  # labels come in as time goes on
    for row in found.table.iter_rows(named=True):
        each = found.folds.filter(scorer=row["scorer"])["auc"]
        assert row["auc"] == pytest.approx(each.mean())
        assert found.spread.filter(scorer=row["scorer"])["auc"].item() == pytest.approx(each.std())
    alone = Comparison(schema=SIMULATED_SCHEMA, since=windows[-1]["begin"], **options).run(events, labels["fraud"])
    timeless = [name for name in METRICS if not name.endswith("_seconds")]
    last = found.folds.filter(fold=2).sort("scorer").select(timeless)
    assert_frame_equal(last, alone.table.sort("scorer").select(timeless))


def test_folds_without_fraud_and_no_fold_are_refused(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    events, labels = world
    with pytest.raises(ParameterError, match="folds must be at least 1, got 0"):
        Comparison(schema=SIMULATED_SCHEMA, folds=0).run(events, labels["fraud"])
    with pytest.raises(ParameterError, match="baselines are logistic, forest, xgboost, got oracle"):
        Comparison(schema=SIMULATED_SCHEMA, baselines=("oracle", "forest")).run(events, labels["fraud"])
    with pytest.raises(InputError, match=r"scored events hold 0 frauds.*fewer folds"):
        Comparison(schema=SIMULATED_SCHEMA, since=SINCE, folds=400).run(events, labels["fraud"])


def test_times_hold_all_that_a_scorer_needs(compared: Compared) -> None:
    fit = dict(compared.table["scorer", "fit_seconds"].iter_rows())
    score = dict(compared.table["scorer", "score_seconds"].iter_rows())
    assert fit["head_pretrained"] > fit[UNSUPERVISED] > 0 == fit["amount"] == fit["ratio"]  # it starts from its memory
    assert all(score[name] > 0 for name in (UNSUPERVISED, *HEADS))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda labels: labels["fraud"].to_numpy()[:-1], "rows were read, but the labels have shape"),
        (lambda labels: labels["fraud"].to_numpy() & False, "hold 0 frauds"),
        (lambda labels: labels, "need the event id"),
        (lambda labels: pl.concat([labels, labels])["event_id", "fraud"], "twice"),
        (lambda labels: labels.select(pl.col("event_id") + "x", "fraud"), "no label is of any of these events"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    world: tuple[pl.DataFrame, pl.DataFrame], spoil: Callable[[pl.DataFrame], Any], reason: str
) -> None:
    events, labels = world
    with pytest.raises(InputError, match=reason):
        Comparison(schema=SIMULATED_SCHEMA, since=SINCE, **SMALL).run(events, spoil(labels))


def test_a_label_that_is_known_at_once_is_refused(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    events, labels = world
    with pytest.raises(ParameterError, match="label_delay_days must be above 0, got 0"):
        Comparison(schema=SIMULATED_SCHEMA, label_delay_days=0).run(events, labels["fraud"])


def test_the_verb_writes_what_it_found(world: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    events, labels = world
    events.write_parquet(tmp_path / "events.parquet")
    labels.write_parquet(tmp_path / "labels.parquet")
    (tmp_path / "anomaly.toml").write_text(SIMULATED_SCHEMA.to_toml(), encoding="utf-8")
    words = [
        *("compare", tmp_path / "events.parquet", "--labels", tmp_path / "labels.parquet", "--since", SINCE),
        *("--schema", tmp_path / "anomaly.toml", "--out", tmp_path / "out", "--hidden", 4, "--epochs", 1, "--json"),
        *("--budget-per-day", 5),
    ]
    run = CliRunner().invoke(app, [str(word) for word in words])
    assert run.exit_code == 0, run.output
    facts = json.loads(run.stdout)
    out = tmp_path / "out"
    assert {Path(file).name for file in facts["files"]} == {file.name for file in out.iterdir()}
    written = json.loads((out / "numbers.json").read_text(encoding="utf-8"))
    assert written["sentence"] == facts["sentence"]
    assert shlex.split(written["command"])[:4] == ["anomaly", *map(str, words[:3])]
    table = pl.read_csv(out / "table.csv")
    for row in table.iter_rows(named=True):
        assert written["figures"][f"{row['scorer']}.auc"] == pytest.approx(row["auc"])
    assert all(isinstance(value, float | int) for value in written["figures"].values())
    curve = pl.read_csv(out / "curve.csv")
    assert set(curve["scorer"]) >= {UNSUPERVISED, *HEADS, "amount", "ratio"}
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert html.escape(facts["sentence"], quote=False) in page and "anomaly compare" in page
    words[words.index("--labels") + 1] = tmp_path / "events.parquet"
    refused = CliRunner().invoke(app, [str(word) for word in words])
    assert refused.exit_code == 2 and "fraud" in refused.output
