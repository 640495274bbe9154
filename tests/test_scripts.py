"""The measuring scripts against the real command line, on data small enough to make here."""

from __future__ import annotations

import getpass
import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import _numbers
import handbook
import nab
import numpy as np
import polars as pl
import pytest
from _environment import ROOT
from typer.testing import CliRunner

from anomaly.cli import app
from anomaly.evaluation import average_precision, roc_auc
from anomaly.simulator import simulate

TINY = ["--epochs", "1", "--hidden", "4"]
NEAR_WINDOW, FAR_WINDOW = (60, 70), (500, 560)  # in hours from the start


def figures_in(folder: Path) -> dict[str, float]:
    content = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    assert list(content) == ["command", "commit", "machine", "figures"]
    figures: dict[str, float] = content["figures"]
    assert list(figures) == sorted(figures)
    return figures


# ---- numbers.json ----------------------------------------------------------------------------------------------------


def test_numbers_are_written_sorted_and_whole(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    path = _numbers.write_numbers(folder, "python scripts/x.py", {"both.s1.auc": 0.123456789, "amount.ap": 1.0})
    assert [file.name for file in folder.iterdir()] == ["numbers.json"] == [path.name]
    assert figures_in(folder) == {"amount.ap": 1, "both.s1.auc": 0.123457}
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["command"] == "python scripts/x.py"
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(-dirty)?", content["commit"])
    assert content["machine"]["cores"] >= 1 and content["machine"]["python"] == sys.version.split()[0]


def test_numbers_tell_nothing_about_the_machine_s_name_or_user(tmp_path: Path) -> None:
    machine = json.dumps(_numbers.machine())
    assert socket.gethostname() not in machine
    assert str(Path.home()) not in machine and str(ROOT) not in machine
    assert f'"{getpass.getuser()}"' not in machine
    told = _numbers.told_command(ROOT / "scripts" / "nab.py", tmp_path / "nab", ["--seed", "1"])
    assert told == "python scripts/nab.py nab --seed 1"


@pytest.mark.parametrize(
    "figures", [{"a.auc": math.nan}, {"a.auc": math.inf}, {"A.auc": 1.0}, {"a auc": 1.0}, {"a..auc": 1.0}, {"": 1.0}]
)
def test_a_bad_figure_is_refused_and_the_old_numbers_stay(tmp_path: Path, figures: dict[str, float]) -> None:
    _numbers.write_numbers(tmp_path, "old", {"a.auc": 0.5})
    with pytest.raises(ValueError, match="figure"):
        _numbers.write_numbers(tmp_path, "new", figures)
    assert figures_in(tmp_path) == {"a.auc": 0.5}


def test_the_commit_is_unknown_outside_git(tmp_path: Path) -> None:
    assert _numbers.commit(tmp_path) == "unknown"


def test_a_meter_counts_seconds() -> None:
    with _numbers.Meter() as meter:
        sum(range(1000))
    assert 0 < meter.seconds < 5


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_is_run_and_its_memory_measured(tmp_path: Path) -> None:
    run = _numbers.run_cli(["simulate", tmp_path / "play", "--customers", "20", "--days", "20"])
    assert run.result["rows"] == len(pl.read_parquet(tmp_path / "play" / "events.parquet"))
    assert run.seconds > 0
    if sys.platform == "win32":
        assert run.peak_mb is None
    else:
        assert run.peak_mb is not None and 30 < run.peak_mb < 3000


def test_the_memory_of_the_caller_is_not_counted(tmp_path: Path) -> None:
    ballast = np.ones(100 * 2**20, dtype=np.uint8)
    peak = tmp_path / "peak"
    assert subprocess.call([sys.executable, "-S", _numbers.__file__, str(peak), sys.executable, "-c", ""]) == 0
    assert sys.platform == "win32" or float(peak.read_text().split()[0]) < 60 < ballast.nbytes / 2**20


def test_a_command_that_fails_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="failed with exit code 2"):
        _numbers.run_cli(["fit", tmp_path / "absent.csv"])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("script", [handbook, nab])
def test_rows_of_the_data_stay_outside_the_repository(script: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["data", "--out", str(ROOT / "reports")])  # type: ignore[attr-defined]
    assert "inside the repository" in capsys.readouterr().err


# ---- handbook --------------------------------------------------------------------------------------------------------


def test_the_handbook_from_file_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, out, reports = tmp_path / "small.parquet", tmp_path / "out", tmp_path / "reports"
    table = payments()
    table.write_parquet(data)
    assert handbook.main([str(data), "--out", str(out), "--reports", str(reports), *TINY]) == 0
    figures = figures_in(reports)

    measures = ["auc", "ap", "cp100", *(f"s{k}.{key}" for k in (1, 2, 3) for key in ("auc", "ap"))]
    for scorer in ("amount", "ratio", "autoencoder", "forecaster", "both", "ceiling"):
        for measure in measures:
            assert 0 <= figures[f"{scorer}.{measure}"] <= 1
    late = table.filter(pl.col("TX_DATETIME") >= datetime(2018, 8, 1))
    fraud = late["TX_FRAUD"].to_numpy()
    assert figures["score.events"] == len(late) and figures["frauds"] == fraud.sum()
    assert figures["score.events_read"] == len(table)
    assert figures["amount.ap"] == pytest.approx(average_precision(late["TX_AMOUNT"], fraud), abs=1e-5)
    kind = late["TX_FRAUD_SCENARIO"].to_numpy()
    one = late.filter(pl.Series((kind == 0) | (kind == 3)))
    assert figures["amount.s3.auc"] == pytest.approx(roc_auc(one["TX_AMOUNT"], one["TX_FRAUD"]), abs=1e-5)
    scores = pl.read_parquet(out / "scores.parquet")
    assert figures["both.ap"] == pytest.approx(average_precision(scores["surprise"], fraud), abs=1e-5)
    assert figures["ceiling.s1.auc"] == figures["ceiling.s3.ap"] == 1
    for step in ("fit", "score", "report"):
        assert figures[f"{step}.seconds"] > 0
        assert sys.platform == "win32" or 0 < figures[f"{step}.peak_mb"] <= figures["peak_mb"]
    speed = len(late) / figures["score.seconds"]
    assert figures["score.events_per_second"] == pytest.approx(speed, rel=1e-3)

    files = {path.name: path.read_text(encoding="utf-8") for path in reports.iterdir()}
    assert sorted(files) == ["card_precision.svg", "numbers.json", "precision_recall.svg", "report.md"]
    for text in files.values():  # no row of the data, and nobody's path
        assert str(tmp_path) not in text
        assert not any(str(name) in text for name in table["TRANSACTION_ID"].to_list()[:200])
    assert f"{figures['both.ap']:.3f}" in files["report.md"]
    assert "changes labels only" in files["report.md"] and "about 0.36" in files["report.md"]
    assert (out / "report.html").stat().st_size > 10_000


def test_labels_are_no_field_of_the_handbook_s_schema() -> None:
    assert not [name for name in handbook.SCHEMA.columns() if "FRAUD" in name]


def test_far_events_do_not_tie() -> None:
    scores = pl.DataFrame({"p_autoencoder": [1e-20, 1e-30], "p_forecaster": [1e-200, 0.1], "surprise": [20.0, 400.0]})
    found = handbook.model_scores(scores)
    assert found["autoencoder"].tolist() == [20, 30]
    assert found["forecaster"].tolist() == [200, 1]
    assert found["both"].tolist() == [20, 400]


def test_curves_end_at_the_base_rate() -> None:
    kind = np.array([1, 0, 2, 0, 3, 0, 0, 0, 0, 0])
    panels = handbook.precision_recall({"good": -np.arange(10.0)}, kind)
    recall, precision = panels["all frauds"]["good"]
    assert recall.tolist() == [1 / 3, 2 / 3, 1]
    assert precision.tolist() == [1, 2 / 3, 3 / 5]
    assert panels["scenario 3 against genuine"]["good"][1].tolist() == [1 / 3]


def payments() -> pl.DataFrame:
    """Simulated payments in the Handbook's form, with scenarios made up in turn."""
    events, labels = simulate(customers=40, days=60, start="2018-07-01", fraud_rate=0.05, seed=3)
    scenario = pl.when(labels["fraud"]).then(labels["fraud"].cum_sum() % 3 + 1).otherwise(0)
    return events.select(
        TRANSACTION_ID="event_id",
        TX_DATETIME=pl.col("time").dt.replace_time_zone(None),
        CUSTOMER_ID=pl.col("customer_id").cast(pl.Categorical).to_physical().cast(pl.Int32),
        TERMINAL_ID="merchant_id",
        TX_AMOUNT="amount",
        TX_FRAUD=labels["fraud"].cast(pl.Int8),
        TX_FRAUD_SCENARIO=scenario.cast(pl.Int8),
    )


# ---- nab -------------------------------------------------------------------------------------------------------------


def run_here(args: Sequence[str | Path]) -> _numbers.Run:
    """The same command line in this process, which saves the start; the Handbook's test takes the long way."""
    with _numbers.Meter() as meter:
        result = CliRunner().invoke(app, [*(str(part) for part in args), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return _numbers.Run(json.loads(result.stdout), meter.seconds, 100.0)


def test_the_series_from_file_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_numbers, "run_cli", run_here)
    data, out, reports = tmp_path / "nab", tmp_path / "out", tmp_path / "reports"
    write_series(data)
    assert nab.main([str(data), "--out", str(out), "--reports", str(reports), *TINY]) == 0
    assert str(out) in capsys.readouterr().out
    figures = figures_in(reports)

    assert figures["early.fit_share"] == 0.15 and figures["late.fit_share"] == 0.25
    assert (figures["early.windows"], figures["early.windows_in_fit"]) == (1, 1)
    assert (figures["late.windows"], figures["late.windows_in_fit"]) == (1, 0)
    assert figures["windows"] == 2 and figures["peak_mb"] == 100
    assert 0.05 < figures["random.late.windows_found"] < 0.07  # 61 points at one in a thousand
    for scorer in nab.SCORERS:
        for measure in ("auc", "ap", "false_per_1000"):
            each = [figures[f"{scorer}.{name}.{measure}"] for name in ("early", "late")]
            assert figures[f"{scorer}.mean.{measure}"] == pytest.approx(np.mean(each), rel=1e-4)
        found = [figures[f"{scorer}.{name}.windows_found"] for name in ("early", "late")]
        assert figures[f"{scorer}.windows_found"] == sum(found)
        assert figures[f"{scorer}.late.w1"] == figures[f"{scorer}.late.windows_found"]
    assert (
        figures["zscore.late.auc"] > 0.99 and figures["zscore.late.windows_found"] == 1
    )  # the window is a level of 50
    assert figures["both.late.auc"] > 0.9
    scores = pl.read_parquet(out / "late" / "scores.parquet")
    assert scores["row"].to_list() == list(range(200, 800))

    files = {path.name: path.read_text(encoding="utf-8") for path in reports.iterdir()}
    assert sorted(files) == ["average_precision.svg", "numbers.json", "report.md"]
    assert not any(str(tmp_path) in text for text in files.values())
    assert "`early` on 15%, 1 window in it" in files["report.md"]
    assert (out / "early" / "report.html").exists() and (out / "late" / "report.html").exists()


def test_the_fitted_part_ends_before_the_first_window(tmp_path: Path) -> None:
    write_series(tmp_path, near=(160, 170))
    early, late = nab.read_folder(tmp_path)
    assert early.until == datetime(2024, 1, 1) + timedelta(hours=160)
    assert early.fit_share == pytest.approx(160 / 799)
    assert late.until == datetime(2024, 1, 1) + timedelta(hours=0.25 * 799)


def write_series(folder: Path, near: tuple[int, int] = NEAR_WINDOW) -> None:
    """Two series of 800 hours; a window is a level of 50."""
    folder.mkdir(exist_ok=True)
    start = datetime(2024, 1, 1)
    rng = np.random.default_rng(0)
    windows = {"late.csv": [FAR_WINDOW], "early.csv": [near, FAR_WINDOW]}
    for name in windows:
        hour = np.arange(800)
        value = 10 + 3 * np.sin(hour / 24 * 2 * np.pi) + rng.normal(size=800)
        value[FAR_WINDOW[0] : FAR_WINDOW[1] + 1] = 50
        times = [(start + timedelta(hours=int(h))).isoformat(sep=" ") for h in hour]
        pl.DataFrame({"timestamp": times, "value": value.round(3)}).write_csv(folder / name)
    told = {
        name: [[f"{start + timedelta(hours=edge)}.000000" for edge in span] for span in spans]
        for name, spans in windows.items()
    }
    (folder / "windows.json").write_text(json.dumps(told), encoding="utf-8")
