"""scripts/bench_detection.py on a few customers: pieces, resuming, what is missing, names and targets."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import _bench_ablation
import _bench_contamination
import _bench_handbook
import _bench_nab
import _bench_rates
import _bench_simulator
import _bench_targets
import _bench_work
import bench_detection
import numpy as np
import polars as pl
import pytest
from _environment import ROOT
from _numbers import NAME

import anomaly.detector
from anomaly.detector import Detector
from anomaly.simulator import SIMULATED_SCHEMA, simulate

SIZES = replace(
    _bench_work.TINY,
    customers=40,
    days=60,
    fit_days=40,
    seeds=2,
    few_seeds=1,
    lstm_seeds=0,
    first_seed=1012,  # these have fraud in the scored days, few as the customers are
    levels=(0, 2),
    episodes=2,
    rates_customers=40,
    rates_days=60,
    rates_fit_days=40,
)
NOWHERE = _bench_work.Data(Path("nowhere") / "handbook.parquet", Path("nowhere") / "nab")


def wish(folder: Path, *more: str) -> argparse.Namespace:
    sections = ["--only", "simulator", "contamination", "rates", "handbook", "nab"]
    return bench_detection.parse(
        ["--out", str(folder / "work"), "--reports", str(folder / "reports"), *(more or sections)]
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anomaly.detector, "EPISODES", 5)  # most of a fit's time at this size
        code = bench_detection.bench(SIZES, NOWHERE, "python3 scripts/bench_detection.py", wish(folder))
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def figures(done: Path) -> dict[str, float]:
    content = json.loads((done / "reports" / "numbers.json").read_text(encoding="utf-8"))
    assert list(content) == ["command", "commit", "machine", "parts", "figures"]
    assert list(content["parts"]) == ["simulator", "contamination", "rates"]
    found: dict[str, float] = content["figures"]
    return found


def test_every_section_has_its_figures(figures: dict[str, float]) -> None:
    wanted = [
        *(f"simulator.{name}.{key}" for name in ("ratio", "ours") for key in ("recall.macro", "ap", "auc", "ap.low")),
        *(f"simulator.{name}.ap" for name in ("plain_forecaster", "plain_autoencoder", "oracle", "isolation_forest")),
        *(f"fdr.{q}{end}" for q in ("0.05", "0.1", "0.2") for end in ("", ".se", ".alerts", ".cases")),
        *("budget.asked", "budget.cases_per_day", "budget.mean"),
        *(f"ablation.{part}.{key}" for part in _bench_simulator.PARTS for key in ("ap", "recall.macro.difference")),
        *(f"contamination.{level}.{name}.ap" for level in (0, 2) for name in _bench_contamination.SCORERS),
        "contamination.ratio_2_to_0",
        *(f"rates.{level}{end}" for level in ("0.01", "0.0001") for end in ("", ".low", ".high", ".inside")),
        *(
            f"rates.{way}{name}"
            for way in ("", "monthly.")
            for name in ("quiet.0.01", "busy.0.001", "drift.0.0001", "events")
        ),
        *("rates.monthly.0.01.inside", "rates.monthly.first_month.0.01"),
    ]
    assert [name for name in wanted if name not in figures] == []
    assert all(NAME.fullmatch(name) for name in figures)
    assert any(name.startswith("rehearsal.") and name.endswith(".recall") for name in figures)
    assert figures["simulator.ours.seeds"] == 2 and figures["budget.asked"] == SIZES.per_day == 1
    ratio = figures["contamination.2.ours.ap"] / figures["contamination.0.ours.ap"]
    assert figures["contamination.ratio_2_to_0"] == pytest.approx(ratio, rel=1e-4)
    assert figures["contamination.0.history_share"] == 0


def test_the_page_names_what_is_missing_and_no_path(done: Path, figures: dict[str, float]) -> None:
    text = (done / "reports" / "report.md").read_text(encoding="utf-8")
    assert "the data `handbook.parquet` is not here" in text and "the data `nab` is not here" in text
    assert str(done) not in text and "nowhere" not in text and str(ROOT) not in text
    assert "targets are met" in text and f"{figures['simulator.ours.ap']:.3f}" in text
    for picture in ("recall.svg", "contamination.svg", "rates.svg"):
        assert f"]({picture})" in text and (done / "reports" / picture).stat().st_size > 1000


def test_what_is_done_is_not_done_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(piece: _bench_work.Piece) -> _bench_work.Found:
        raise AssertionError(f"{piece.section}.{piece.name} is done again")

    before = (done / "reports" / "numbers.json").read_bytes()
    monkeypatch.setattr(_bench_work, "_timed", refuse)
    assert bench_detection.bench(SIZES, NOWHERE, "python3 scripts/bench_detection.py", wish(done)) == 0
    assert (done / "reports" / "numbers.json").read_bytes() == before


def test_a_section_that_is_not_measured_anew_keeps_its_figures(done: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    shutil.copytree(done / "reports", reports)
    before = (reports / "numbers.json").read_bytes()
    nothing = _bench_work.Folder(tmp_path / "work", SIZES, "other code")
    sections = bench_detection.all_pieces(SIZES, NOWHERE)
    bench_detection.write(nothing, sections, reports, "python3 scripts/bench_detection.py", {})
    assert (reports / "numbers.json").read_bytes() == before
    text = (reports / "report.md").read_text(encoding="utf-8")
    assert text.count("Measured earlier, at commit") == 3 and "the data `nab` is not here" in text


def test_other_sizes_data_and_code_are_other_pieces(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("a")
    piece = _bench_work.Piece("rates", "all", dict, data)
    folder = _bench_work.Folder(tmp_path, SIZES, "code")
    names = [folder.file(piece), replace(folder, code="other").file(piece)]
    names.append(replace(folder, sizes=replace(SIZES, epochs=2)).file(piece))
    data.write_text("aa")
    names.append(folder.file(piece))
    assert len(set(names)) == 4


def test_a_failed_piece_is_told_and_the_others_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> _bench_work.Found:
        raise ValueError("no such luck")

    good, bad = _bench_work.Piece("rates", "good", dict), _bench_work.Piece("rates", "bad", fail)
    folder = _bench_work.Folder(tmp_path, SIZES, "code")
    assert _bench_work.run_pieces(folder, [bad, good]) == {"rates.bad": "ValueError: no such luck"}
    assert list(folder.read([bad, good])) == ["good"]
    folder.forget([good])
    assert folder.read([bad, good]) == {}
    assert "no such luck" in capsys.readouterr().err


def test_the_folder_of_pieces_is_outside_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_detection.parse(["--out", str(ROOT / "reports" / "work")])
    assert "inside the repository" in capsys.readouterr().err


def test_the_same_combination_scores_the_same() -> None:
    world = _bench_simulator.play(SIZES, 1)
    detector, scores = _bench_simulator.fitted_scores(world, _bench_simulator.make(SIZES))
    judged = _bench_ablation.Judged.by(detector, world.events, world.since)
    found = judged.rescored(detector.scorer_.combination)
    assert np.allclose(found, _bench_simulator.surprise(scores), rtol=1e-3, atol=1e-3)


def test_levels_score_the_same_events() -> None:
    low, high = (_bench_contamination.thinned(SIZES, 1, level) for level in (0.0, 5.0))
    assert low.events[low.row].equals(high.events[high.row])
    assert low.labels["fraud"].head(len(low.history)).sum() == 0
    assert set(low.history["event_id"]) < set(high.history["event_id"])
    assert 0.01 < high.labels["fraud"].head(len(high.history)).to_numpy().mean() <= 0.05


def test_the_pooled_share_is_of_all_alerts() -> None:
    one = {"alerts": 2.0, "false": 2.0, "alerts_squared": 4.0, "false_squared": 4.0, "product": 4.0}
    two = {"alerts": 6.0, "false": 0.0, "alerts_squared": 36.0, "false_squared": 0.0, "product": 0.0}
    share, error, alerts = _bench_simulator.pooled_share([one, two])
    assert (share, alerts) == (0.25, 8)
    assert error == pytest.approx(np.sqrt((2 - 0.5) ** 2 + 1.5**2) / 8)
    nothing = dict.fromkeys(one, 0.0)
    assert _bench_simulator.pooled_share([nothing]) == (0, 0, 0)


def test_rates_are_told_beside_their_intervals() -> None:
    none = {"events": 0}
    counts = {
        **dict.fromkeys((*_bench_rates.GROUPS, *(f"monthly.{group}" for group in _bench_rates.GROUPS)), none),
        "all": {"events": 10_000, "0.01": 130, "0.001": 10, "0.0001": 0},
    }
    other = {**counts, "all": {"events": 10_000, "0.01": 170, "0.001": 10, "0.0001": 2}}
    fits = {
        "1": {"counts": counts, "history": 5, "held_out": 100},
        "2": {"counts": other, "history": 5, "held_out": 100},
    }
    found = _bench_rates.figures(fits, SIZES)
    assert found["rates.0.01"] == 0.015 and found["rates.0.01.inside"] == 0
    assert (found["rates.0.01.least"], found["rates.0.01.most"]) == (0.013, 0.017)
    assert found["rates.0.01.calibrated.inside"] == 1  # 200 held-out events tell little of 1 in 100
    assert found["rates.0.01.calibrated.high"] > found["rates.0.01.high"]
    assert found["rates.0.001.inside"] == found["rates.0.0001.inside"] == 1
    assert found["rates.young.events"] == 0 and "rates.young.0.01" not in found


def test_months_are_scored_as_by_a_detector_that_was_calibrated_anew_before_them() -> None:
    events, _ = simulate(customers=40, days=130, fraud_rate=0.0, seed=2)
    since, second, third = "2024-02-10", "2024-03-11", "2024-04-10"  # 30 days each
    detector = Detector(SIMULATED_SCHEMA, hidden=4, epochs=1, rehearse=False).fit(events, until=since, progress=False)
    once, monthly = _bench_rates.p_values(detector, events, since)
    first = detector.score(events, since=since)
    np.testing.assert_allclose(once[first["row"]], first["p_value"], rtol=1e-6)
    assert np.isnan(once).sum() == len(events) - len(first)
    early = first.filter(pl.col("time") < _at(second))["row"]
    np.testing.assert_allclose(monthly[early], once[early], rtol=1e-6)
    for start, end, window in ((second, third, {}), (third, "2024-05-10", {"since": since})):  # the 60 days before
        detector.recalibrate(events, until=start, **window)
        later = detector.score(events, since=start).filter(pl.col("time") < _at(end))
        np.testing.assert_allclose(monthly[later["row"]], later["p_value"], rtol=1e-6)
        assert not np.allclose(monthly[later["row"]], once[later["row"]])


def _at(time: str) -> pl.Expr:
    return pl.lit(time).str.to_datetime(time_zone="UTC")


def test_preferences_are_held_against_the_truth() -> None:
    one: dict[str, dict[str, float]] = {
        "ceiling.1": {"ap": 0.1, "planted": 0.2},
        "ceiling.2": {"ap": 0, "planted": 0},
        "other.1": {"ap": -0.1, "planted": -0.1},
    }
    found = _bench_ablation.choice_figures(
        [one, {**one, "ceiling.1": {"ap": 0.3, "planted": 0.2}}], [{"after.ap": 1.0}]
    )
    assert found["choice.ceiling.1.ap"] == pytest.approx(0.2)
    assert found["choice.rank_correlation"] == pytest.approx(1)
    assert found["choice.afar.after.ap"] == 1


def test_known_cards_are_left_out_as_in_the_handbook() -> None:
    day = np.array([0, 12, 13, 14, 14, 15, 15])  # from the first day of the training week
    card = np.array([1, 2, 3, 1, 2, 2, 3])
    first = (_bench_handbook.TEST_WEEKS[0] - date(1970, 1, 1)).days - 14
    events = pl.DataFrame({"TX_DATETIME": (first + day) * 86_400, "CUSTOMER_ID": card})
    events = events.with_columns(pl.from_epoch("TX_DATETIME"))

    def counted(frauds: list[int]) -> list[int]:
        kind = np.isin(np.arange(7), frauds).astype(np.int64)
        payments = _bench_handbook.Payments(events, kind, "2018-08-01", np.arange(7))
        return np.flatnonzero(payments.counted(_bench_handbook.TEST_WEEKS[0])).tolist()

    assert counted([]) == [3, 4, 5, 6]
    assert counted([0]) == [4, 5, 6]  # a fraud in the training week
    assert counted([1]) == [3, 4, 5, 6]  # too late to be known before day 20


def test_a_mean_of_series_waits_for_all_of_them() -> None:
    values = {scorer: {"vus_pr": 0.5, "auc_pr": 0.25} for scorer in _bench_nab.SCORERS}
    six = {f"s{number}": {"scorers": values} for number in range(5)}
    assert "nab.ours.vus_pr" not in _bench_nab.figures(six, SIZES)
    six |= {"s5": {"scorers": values}}
    six |= {_bench_nab.LEFT_OUT: {"scorers": {scorer: {"vus_pr": 0.0, "auc_pr": 0.0} for scorer in values}}}
    assert _bench_nab.figures(six, SIZES)["nab.ours.vus_pr"] == 0.5


def test_targets_are_met_or_missed_by_how_much() -> None:
    target = _bench_targets.Target
    assert target("a", 0.3, 0.335).row() == ["a", "at least 0.335", "0.3", "missed by 0.035"]
    assert target("a", 0.05, 0.1, most=True).row()[-1] == "met"
    assert target("a", 0.1, 0.1).met and not target("a", 0.1, 0.1, above=True).met
