"""scripts/handbook_compare.py on a few simulated customers; the published numbers of rows, where the data is here."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from pathlib import Path

import _handbook_protocol as protocol
import handbook_compare
import numpy as np
import polars as pl
import pytest
from _environment import ROOT
from _handbook_detector import Ours
from _handbook_protocol import DAY, EPOCH, FEATURES, MEASURES, TRAINED_FROM, Payments, Split
from _published import PUBLISHED

from anomaly.evaluation import average_precision, card_precision_at_k, roc_auc

HANDBOOK = ROOT.parent / "shared" / "data" / "handbook.parquet"
NEEDS_HANDBOOK = pytest.mark.skipif(
    not HANDBOOK.exists(), reason="the Fraud Detection Handbook's payments are not here"
)
FIRST = TRAINED_FROM[0]
SLOW = ("forest", "xgboost", "xgboost_views", "unsupervised", "head", "customer")


def made(customers: int = 60, terminals: int = 30) -> pl.DataFrame:
    """Payments from June to September: at two terminals at a time half are fraud for four weeks."""
    rng = np.random.default_rng(0)
    n = customers * 122
    seconds = np.sort(rng.integers(0, 122 * 86_400, n))
    terminal, amount = rng.integers(0, terminals, n), rng.gamma(2.0, 30.0, n).round(2)
    bad = (terminal // 2 == seconds // (28 * 86_400)) & (rng.random(n) < 0.5)
    kind = np.where(amount > 220, 1, np.where(bad, 2, np.where(rng.random(n) < 0.005, 3, 0)))
    return pl.DataFrame(
        {
            "TRANSACTION_ID": np.arange(n),
            "TX_DATETIME": [datetime(2018, 6, 1) + timedelta(seconds=int(one)) for one in seconds],
            "CUSTOMER_ID": rng.integers(0, customers, n),
            "TERMINAL_ID": terminal,
            "TX_AMOUNT": amount,
            "TX_FRAUD": (kind > 0).astype(np.int8),
            "TX_FRAUD_SCENARIO": kind.astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def payments() -> Payments:
    return Payments(made())


def slow_fold(payments: Payments, first: date) -> tuple[list[int], list[int]]:
    """By the Handbook's words, in loops: rows that train, and rows of the test days without known cards."""
    day = [int(d) - (first - EPOCH).days for d in payments.day]  # 0 = first day of training
    card, fraud = payments.card.tolist(), payments.fraud.tolist()
    train = [i for i, d in enumerate(day) if 0 <= d < 7]
    known = {card[i] for i in train if fraud[i]}
    test: list[int] = []
    for d in range(14, 21):
        known |= {card[i] for i in range(len(day)) if fraud[i] and day[i] == d - 8}
        test += [i for i in range(len(day)) if day[i] == d and card[i] not in known]
    return train, test


def test_folds_are_their_definition(payments: Payments) -> None:
    for split, first in zip(protocol.folds(payments), TRAINED_FROM, strict=True):
        train, test = slow_fold(payments, first)
        assert split.name == first.isoformat()
        assert split.train.tolist() == train and split.test.tolist() == test
        week = np.flatnonzero((payments.day >= (first - EPOCH).days + 14) & (payments.day < (first - EPOCH).days + 21))
        assert 0 < len(test) < len(week)  # some cards are taken out, some are not


def test_the_long_split_trains_on_labels_that_are_known(payments: Payments) -> None:
    split = protocol.long_split(payments)
    when = payments.events["TX_DATETIME"]
    assert when[split.train.tolist()].max() < datetime(2018, 7, 25) < when[int(split.train[-1]) + 1]
    assert split.train.tolist() == list(range(len(split.train)))
    assert split.test.tolist() == np.flatnonzero((when >= datetime(2018, 8, 1)).to_numpy()).tolist()
    assert protocol.last_training_day(payments, split) == date(2018, 7, 24)


def test_the_features_are_the_handbooks(payments: Payments) -> None:
    assert payments.features.shape == (payments.events.height, 15) and len(set(FEATURES)) == 15
    values = dict(zip(FEATURES, payments.features.T, strict=True))
    when = payments.events["TX_DATETIME"]
    np.testing.assert_array_equal(values["TX_AMOUNT"], payments.events["TX_AMOUNT"])
    np.testing.assert_array_equal(values["TX_DURING_WEEKEND"], (when.dt.weekday() >= 6).to_numpy())
    np.testing.assert_array_equal(values["TX_DURING_NIGHT"], (when.dt.hour() <= 6).to_numpy())
    time, terminal = payments.time, payments.events["TERMINAL_ID"].to_numpy()
    amount = payments.events["TX_AMOUNT"].to_numpy()
    for i in range(0, len(time), 500):
        for days in (1, 7, 30):
            mine = (payments.card == payments.card[i]) & (time > time[i] - days * DAY) & (np.arange(len(time)) <= i)
            assert values[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"][i] == mine.sum()
            assert values[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"][i] == pytest.approx(amount[mine].mean())
            here = (terminal == terminal[i]) & (time <= time[i] - 7 * DAY) & (time > time[i] - (7 + days) * DAY)
            assert values[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"][i] == here.sum()
            risk = payments.fraud[here].mean() if here.any() else 0.0
            assert values[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"][i] == pytest.approx(risk)


def test_labels_of_the_last_week_reach_no_feature(payments: Payments) -> None:
    """What a test event is scored by, with every label that isn't known yet turned over."""
    split = protocol.fold(payments, FIRST)
    first = int(split.test[0])
    young = payments.time > payments.time[first] - 7 * DAY
    turned = payments.events.with_columns(TX_FRAUD=pl.Series(payments.fraud ^ young).cast(pl.Int8))
    other = Payments(turned)
    np.testing.assert_array_equal(other.features[: first + 1], payments.features[: first + 1])
    assert (other.features != payments.features).any()  # later ones do read them


def test_quality_is_that_of_the_test_events(payments: Payments) -> None:
    split = protocol.fold(payments, FIRST)
    score = payments.rules["amount"][split.test]
    found = protocol.quality(payments, split, score)
    fraud, day, card = (values[split.test] for values in (payments.fraud, payments.day, payments.card))
    assert list(found) == list(MEASURES) == ["auc", "ap", "cp100"]
    assert found["auc"] == roc_auc(score, fraud) and found["ap"] == average_precision(score, fraud)
    assert found["cp100"] == card_precision_at_k(day, card, score, fraud, 100)


def test_a_scorer_learns_from_the_training_labels_alone(payments: Payments) -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    split = protocol.fold(payments, FIRST)
    scorer = handbook_compare.scorers()["logistic"]
    score = scorer(payments, split)
    blind = Payments(payments.events)
    blind.__dict__["features"] = payments.features  # as they are: here it is about what the fit reads
    others = np.ones(len(payments.fraud), dtype=bool)
    others[split.train] = False
    blind.__dict__["fraud"] = np.where(others, ~payments.fraud, payments.fraud)
    np.testing.assert_array_equal(scorer(blind, split), score)
    blind.__dict__["fraud"] = np.where(others, payments.fraud, np.roll(payments.fraud, 1))
    assert (scorer(blind, split) != score).any()


def test_the_detector_reads_no_label_and_nothing_that_is_tested(payments: Payments) -> None:
    """It is fitted once for all splits; with every label turned over, and other weeks from then on, it is the same."""
    splits = [protocol.long_split(payments), protocol.fold(payments, FIRST)]
    scorer = Ours(hidden=4, epochs=1).unsupervised
    scores = [scorer(payments, split) for split in splits]
    both = np.isin(splits[0].test, splits[1].test)
    np.testing.assert_array_equal(scores[0][both], scores[1])  # one fit
    assert np.isfinite(scores[0]).all()
    early = payments.day[splits[0].test] == payments.day[splits[0].test].min()
    later = payments.day > payments.day[splits[0].test].min()
    turned = payments.events.with_columns(
        TX_FRAUD=pl.Series(~payments.fraud).cast(pl.Int8),
        TX_AMOUNT=pl.when(pl.Series(later)).then(pl.col("TX_AMOUNT") * 3 + 1).otherwise("TX_AMOUNT"),
    )
    again = Ours(hidden=4, epochs=1).unsupervised(Payments(turned), splits[0])
    np.testing.assert_allclose(again[early], scores[0][early], rtol=1e-9)
    assert (again[~early] != scores[0][~early]).any()


def test_the_head_reads_no_label_before_its_time(payments: Payments) -> None:
    """Labels that are not known on the first test day change no score of that day, nor what is read of it."""
    split = protocol.fold(payments, FIRST)
    scores = Ours(hidden=4, epochs=1).head(payments, split)
    begin = payments.time[split.test].min() // DAY * DAY
    unknown = payments.time >= begin + DAY - protocol.DELAY * DAY
    fraud = np.where(unknown, ~payments.fraud, payments.fraud)
    turned = Payments(payments.events.with_columns(TX_FRAUD=pl.Series(fraud).cast(pl.Int8)))
    day = payments.time[split.test] < begin + DAY
    np.testing.assert_array_equal(turned.views[split.test][day], payments.views[split.test][day])
    np.testing.assert_array_equal(Ours(hidden=4, epochs=1).head(turned, split)[day], scores[day])
    known = Payments(payments.events.with_columns(TX_FRAUD=pl.Series(~payments.fraud).cast(pl.Int8)))
    assert (Ours(hidden=4, epochs=1).head(known, split)[day] != scores[day]).any()


def test_from_the_file_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="sklearn (extra baselines) is not installed")
    data, reports = tmp_path / "small.parquet", tmp_path / "reports"
    table = made()
    table.write_parquet(data)
    few = {name: scorer for name, scorer in handbook_compare.scorers().items() if name not in SLOW}
    few["oracle"] = lambda payments, split: payments.fraud[split.test].astype(float)  # one more entry is all it takes
    monkeypatch.setattr(handbook_compare, "scorers", lambda *_: few)  # forests take long
    assert handbook_compare.main([str(data), "--reports", str(reports)]) == 0

    content = json.loads((reports / "numbers.json").read_text(encoding="utf-8"))
    figures = content["figures"]
    assert content["parts"]["long.logistic"]["command"] == "python scripts/handbook_compare.py small.parquet"
    payments = Payments(table)
    splits = protocol.folds(payments)
    for name in few:
        for measure in MEASURES:
            key = f"handbook.{name}.{measure}"
            each = [figures[f"{key}.fold_{split.name.replace('-', '_')}"] for split in splits]
            assert figures[key] == pytest.approx(np.mean(each), rel=1e-4)
            assert figures[f"{key}.std"] == pytest.approx(np.std(each), rel=1e-4, abs=1e-5)
            assert 0 <= figures[f"long.{name}.{measure}"] <= 1
    assert figures["handbook.oracle.auc"] == figures["long.oracle.ap"] == figures["long.oracle.s2.auc"] == 1
    assert figures["long.logistic.s2.auc"] > 0.8 > 0.6 > figures["long.amount.s2.auc"]  # past fraud at the terminal
    first, long = splits[0], protocol.long_split(payments)
    day, card, fraud = (values[long.test] for values in (payments.day, payments.card, payments.fraud))
    every = card_precision_at_k(day, card, payments.rules["ratio"][long.test], fraud, 100, drop_detected=False)
    assert figures["long.ratio.cp100"] == pytest.approx(every, rel=1e-4)
    for prefix, split in (("handbook.rows", first), ("long.rows", long)):
        assert figures[f"{prefix}.train"] == len(split.train)
        assert figures[f"{prefix}.test_frauds"] == payments.fraud[split.test].sum()
    text = (reports / "handbook.md").read_text(encoding="utf-8")
    assert f"{figures['handbook.logistic.ap']:.3f} ± {figures['handbook.logistic.ap.std']:.3f} (0.623)" in text
    assert f"| oracle | {figures['long.oracle.auc']:.3f}" in text and str(tmp_path) not in text


def test_the_verdict_counts_what_is_near() -> None:
    figures = {
        f"handbook.{name}.{measure}": value
        for name, values in PUBLISHED.items()
        for measure, value in zip(MEASURES, values, strict=True)
    }
    assert handbook_compare.verdict(figures) == "9 of 9 are within 0.01 of it."
    figures["handbook.forest.ap"] -= 0.02
    assert handbook_compare.verdict(figures) == "8 of 9 are within 0.01 of it; farther off: forest ap (-0.020)."


def test_what_is_found_without_labels_stands_beside_what_they_bring() -> None:
    keys = ("ap", "s3.ap", "s3.auc")
    figures = {f"long.customer.{key}": 0.5 for key in keys}
    assert handbook_compare.without_labels(figures) == ""
    figures |= {f"long.unsupervised.{key}": 0.25 for key in keys}
    told = handbook_compare.without_labels(figures)
    assert "an AP of 0.500 (S3: AP 0.500, AUC 0.500); the detector comes to 0.250 (S3: 0.250, 0.250)" in told


@NEEDS_HANDBOOK
def test_the_published_numbers_of_rows() -> None:
    payments = Payments.read(HANDBOOK)

    def counted(split: Split) -> tuple[int, int, int, int]:
        fraud = payments.fraud
        return len(split.train), int(fraud[split.train].sum()), len(split.test), int(fraud[split.test].sum())

    assert counted(protocol.fold(payments, FIRST)) == (67_240, 598, 58_264, 385)
