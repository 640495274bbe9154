"""The command line, run for real: the whole chain on tiny data, what --json prints, and every way to be refused."""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from anomaly.cli import app
from anomaly.detector import Detector
from anomaly.ingest import read_events
from anomaly.schema import Schema
from anomaly.terminal import case_table

SINCE = "2024-02-10"
BAD_AMOUNTS = (5, 6, 7)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> dict[str, Any]:
    """What a verb prints with --json: one object, and nothing else on standard output."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    assert found["seconds"] > 0
    return found


def refused(*arguments: str | Path) -> str:
    """The one message of a refusal: exit code 2, the message on standard error, and the same as JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == 2, result.output
    told = json.loads(result.stdout)
    assert result.stderr.splitlines()[-1] == f"Error: {told['error']}"
    assert told["kind"].endswith("Error")
    assert "Traceback" not in result.output
    return str(told["error"])


@dataclass(frozen=True)
class Chain:
    """Files of one run from play data to a report, and what each verb said."""

    events: Path
    schema: Path
    detector: Path
    scores: Path
    report: Path
    alerts: Path
    told: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """simulate -> init -> fit -> score -> report, once."""
    play = tmp_path_factory.mktemp("play")
    events, schema = play / "events.parquet", play / "guessed.toml"
    detector, scores, report, alerts = (play / name for name in ("detector", "s.parquet", "r.html", "cases.ndjson"))
    until, since = ("--until", SINCE), ("--since", SINCE)
    told = {
        "simulate": done("simulate", play, "--customers", "40", "--days", "60", "--seed", "3"),
        "init": done("init", events, "--out", schema),
        "fit": done("fit", events, "--schema", schema, "--out", detector, *until, "--epochs", "1", "--hidden", "8"),
        "score": done("score", events, "--detector", detector, "--out", scores, *since),
        "report": done(
            *("report", events, "--detector", detector, "--scores", scores, *since, "--out", report),
            *("--alerts", alerts, "--budget-per-day", "3", "--title", "Tiny & <small>"),
        ),
    }
    return Chain(events, schema, detector, scores, report, alerts, told)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and work in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bad_csv(chain: Chain, tmp_path: Path) -> Path:
    """The play data as CSV, with three amounts that are none and one row without a customer."""
    row = pl.int_range(pl.len())
    table = pl.read_parquet(chain.events).with_columns(
        pl.col("time").dt.to_string("%Y-%m-%d %H:%M:%S"),
        pl.when(row.is_in(BAD_AMOUNTS))
        .then(pl.lit("oops"))
        .otherwise(pl.col("amount").cast(pl.String))
        .alias("amount"),
        pl.when(row == 8).then(None).otherwise("customer_id").alias("customer_id"),
    )
    table.write_csv(tmp_path / "bad.csv")
    return tmp_path / "bad.csv"


# ---- the chain -------------------------------------------------------------------------------------------------------
def test_the_chain_writes_what_it_says(chain: Chain) -> None:
    for told in chain.told.values():
        for name in ("events", "labels", "schema", "detector", "scores", "rejects", "report", "alerts"):
            assert told.get(name) is None or Path(told[name]).exists()
    assert (chain.events.parent / "anomaly.toml").exists()


def test_the_guessed_schema_is_that_of_the_play_data(chain: Chain) -> None:
    schema = Schema.from_toml(chain.schema)
    assert (schema.time, schema.entity, schema.event_id) == ("time", ("customer_id",), "event_id")
    assert [field.name for field in schema.numeric] == ["amount"]
    assert chain.schema.read_text(encoding="utf-8").startswith("# Guessed from the first")
    assert "# an id that repeats" in chain.schema.read_text(encoding="utf-8")


def test_every_row_is_counted_once(chain: Chain) -> None:
    events = pl.read_parquet(chain.events)
    later = events.filter(pl.col("time") >= pl.lit(SINCE).str.to_datetime(time_zone="UTC")).height
    fit, score, report = (chain.told[verb] for verb in ("fit", "score", "report"))
    assert (fit["rows"], fit["later"], fit["history"]) == (events.height, later, events.height - later)
    assert score["rows"] == score["history"] + score["scored"] + score["rejected"] == events.height
    assert score["scored"] == later == sum(score["status"].values()) == pl.read_parquet(chain.scores).height
    assert all(report[name] == score[name] for name in ("rows", "history", "scored", "rejected"))


def test_the_report_holds_the_cases(chain: Chain) -> None:
    told, page = chain.told["report"], chain.report.read_text(encoding="utf-8")
    cases = pl.read_ndjson(chain.alerts)
    assert told["cases"] == cases.height > 0
    assert told["top"][0]["case"] == 1
    assert told["top"][0]["reasons"]
    assert told["expected_per_day_low"] <= told["expected_per_day"] <= told["expected_per_day_high"]
    assert told["threshold"].startswith("Budget of 3 cases a day")
    assert "<title>Tiny &amp; &lt;small&gt;</title>" in page
    assert "anomaly report " in page


def test_a_person_is_told_the_same(chain: Chain, here: Path) -> None:
    scored = run("score", chain.events, "--detector", chain.detector, "--since", SINCE)
    assert scored.exit_code == 0, scored.output
    counts = "{rows:,} rows read: {history:,} history, {scored:,} scored, {rejected:,} rejected"
    assert scored.stdout.splitlines()[0] == counts.format(**chain.told["score"])
    assert pl.read_parquet(here / "rejects.parquet").is_empty()
    report = run("report", chain.events, "--detector", chain.detector, "--since", SINCE, "--budget-per-day", "3")
    assert report.exit_code == 0, report.output
    told = chain.told["report"]
    assert told["threshold"] in report.stdout
    assert f"The {min(10, told['cases'])} strangest of {told['cases']} cases:" in report.stdout
    assert told["top"][0]["entity"] in report.stdout
    assert report.stdout.splitlines()[-1] == "report.html   the page"


def test_the_same_is_scored_whatever_is_written(chain: Chain, here: Path) -> None:
    done("score", chain.events, "--detector", chain.detector, "--since", SINCE, "--out", here / "s.csv")
    assert pl.read_csv(here / "s.csv")["p_value"].to_list() == pl.read_parquet(chain.scores)["p_value"].to_list()


def test_scores_of_a_later_time_only(chain: Chain, here: Path) -> None:
    told = done(
        *("report", chain.events, "--detector", chain.detector, "--scores", chain.scores),
        *("--since", "2024-02-20T00:00:00+00:00", "--false-discovery-rate", "0.0001"),
    )
    assert told["scored"] < chain.told["score"]["scored"]
    assert told["rows"] == told["history"] + told["scored"] + told["rejected"]
    assert told["cases"] == 0
    assert (here / "report.html").exists()


def test_bad_rows_are_put_aside_with_reasons(chain: Chain, bad_csv: Path) -> None:
    out = bad_csv.with_name("s.parquet")
    result = run("score", bad_csv, "--detector", chain.detector, "--since", SINCE, "--out", out)
    assert result.exit_code == 0, result.output
    rows = chain.told["score"]["rows"]
    assert f"{rows:,} rows read: {rows - len(pl.read_parquet(out)) - 4:,} history" in result.stdout
    assert "4 rejected" in result.stdout
    assert "rejected: 3 rows like row 5: amount 'oops' is not a number" in result.stderr
    assert "rejected: 1 row like row 8: customer_id is missing" in result.stderr
    rejects = pl.read_parquet(bad_csv.with_name("rejects.parquet"))
    assert rejects["row"].to_list() == [*BAD_AMOUNTS, 8]


def test_files_of_two_kinds_and_a_database_are_read(chain: Chain, bad_csv: Path, here: Path) -> None:
    table = pl.read_csv(bad_csv, infer_schema=False)
    table[: len(table) // 2].write_csv(here / "a.csv")
    table[len(table) // 2 :].write_ndjson(here / "b.ndjson")
    database = sqlite3.connect(here / "events.db")
    database.execute(f"CREATE TABLE events ({', '.join(table.columns)})")
    database.executemany(f"INSERT INTO events VALUES ({', '.join('?' * table.width)})", table.rows())
    database.commit()
    database.close()
    options = ("--detector", chain.detector, "--since", SINCE)
    two = done("score", "a.csv", "b.ndjson", *options)
    pytest.importorskip("connectorx")
    one = done("score", "sqlite:///events.db", "--query", "SELECT * FROM events", *options, "--out", "d.parquet")
    assert {**two, "scores": "", "seconds": 0} == {**one, "scores": "", "seconds": 0}
    assert pl.read_parquet("scores.parquet").equals(pl.read_parquet("d.parquet"))


def test_a_fit_is_resumed_from_its_checkpoint(chain: Chain, here: Path) -> None:
    options = ("--schema", chain.schema, "--until", SINCE, "--hidden", "4", "--epochs", "1", "--checkpoint", "kept")
    first = done("fit", chain.events, *options)
    again = done("fit", chain.events, *options, "--resume")
    assert sorted(path.stem for path in (here / "kept").iterdir()) == ["autoencoder", "forecaster"]
    assert again["models"] == first["models"]


@pytest.mark.usefixtures("here")
def test_a_pilot_chooses_the_quarantine(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.pilot.EPOCHS", 1)
    monkeypatch.setattr("anomaly.pilot.HIDDEN", 4)
    command = (
        "fit",
        chain.events,
        "--schema",
        chain.schema,
        "--until",
        SINCE,
        "--hidden",
        "4",
        "--epochs",
        "1",
        "--pilot",
    )
    told = run(*command)
    assert told.exit_code == 0, told.output
    lines = [line for line in told.stderr.splitlines() if line.startswith("Pilot: quarantine")]
    assert len(lines) == 3 and sum(line.endswith("taken") for line in lines) == 1
    refused = run(*command, "--quarantine-hours", "5")
    assert refused.exit_code == 2 and "no --quarantine-hours" in refused.stderr


def test_a_rehearsal_on_the_command_line(chain: Chain) -> None:
    told = done("rehearse", chain.events, "--detector", chain.detector, "--episodes", "5", "--budget-per-day", "5")
    kinds = {one["kind"]: one for one in told["kinds"]}
    assert {"scaled", "burst", "new_category", "far_place", "wake_up"} <= kinds.keys()
    assert all(0 <= one["low"] <= one["recall"] <= one["high"] <= 1 for one in kinds.values())
    shown = run("rehearse", chain.events, "--detector", chain.detector, "--episodes", "5")
    assert shown.exit_code == 0, shown.output
    assert "Budget of 50 cases a day" in shown.stdout and "new category" in shown.stdout and "noticed" in shown.stdout


def test_a_detector_is_calibrated_anew(chain: Chain, here: Path) -> None:
    options = ("recalibrate", chain.events, "--detector", chain.detector)
    told = done(*options, "--out", here / "anew")
    later = chain.told["fit"]["later"]
    assert told["new_events"] == later and told["rejected"] == 0
    assert told["after"]["held_out"] == told["before"]["held_out"] + later
    assert told["before"]["first"] == told["after"]["first"] < told["before"]["last"] < told["after"]["last"]
    first = pl.read_parquet(chain.scores)["p_value"]
    assert told["before"]["new_share"]["0.01"] == (first <= 0.01).mean()
    done("score", chain.events, "--detector", here / "anew", "--out", here / "anew.parquet", "--since", SINCE)
    second = pl.read_parquet(here / "anew.parquet")["p_value"]
    assert told["after"]["new_share"]["0.01"] == (second <= 0.01).mean() and first.to_list() != second.to_list()
    shown = run(*options, "--out", here / "anew", "--until", "2024-02-20")  # in the place of the last one
    assert shown.exit_code == 0, shown.output
    assert "held-out events" in shown.stdout and f"{told['before']['held_out']:,}" in shown.stdout
    assert "50 cases a day: alerts from a score of" in shown.stdout and "new events at p ≤ 0.01" in shown.stdout
    assert f"{here / 'anew'} --since 2024-02-20" in shown.stdout


def test_a_calibration_on_what_trained_or_on_nothing_is_refused(chain: Chain, here: Path) -> None:
    options = ("recalibrate", chain.events, "--detector", chain.detector, "--out", here / "anew")
    assert "models were trained on earlier events" in refused(*options, "--since", "2024-01-03")
    assert "0 events from 2025-01-01T00:00:00+00:00 on, at least 100 are needed" in refused(
        *options, "--since", "2025-01-01"
    )
    assert refused(*options, "--until", "soon").startswith("--until: time 'soon'")
    (here / "anew").write_text("a file", encoding="utf-8")
    assert str(here / "anew") in refused(*options)


def test_one_event_is_explained(chain: Chain, here: Path) -> None:
    scored = pl.read_parquet(chain.scores).sort("p_value")
    event, row = scored["event_id"][0], scored["row"][0]
    options = ("explain", chain.events, "--detector", chain.detector, "--scores", chain.scores, "--budget-per-day", "3")
    told = done(*options, "--event", event, "--figure", here / "event.svg")
    assert told["row"] == row and told["alerts"] is True and told["p_value"] == scored["p_value"][0]
    assert sum(part["part"] for part in told["parts"]) == pytest.approx(scored["surprise"][0], abs=1e-9)
    assert told["reasons"] and told["counterfactual"]["sentence"]
    assert told["last_events"][-1]["event_id"] == event
    assert told["figure"] == str(here / "event.svg")
    assert "<svg" in (here / "event.svg").read_text(encoding="utf-8")[:500]
    person = run(*options, "--row", str(row), "--figure", "event.png")
    assert person.exit_code == 0, person.output
    assert person.stdout.splitlines()[0] == told["summary"]
    assert person.stdout.splitlines()[-1] == "event.png   the figure"
    assert all(reason[:40] in person.stdout for reason in told["reasons"])
    assert "What would have let it pass" in person.stdout and event in person.stdout
    assert (here / "event.png").read_bytes().startswith(b"\x89PNG")
    now = done("explain", chain.events, "--detector", chain.detector, "--event", event)
    assert now["p_value"] == pytest.approx(told["p_value"], rel=1e-3)


def test_an_explanation_hides_names_when_asked(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = pl.read_parquet(chain.scores).sort("p_value")
    options = ("explain", chain.events, "--detector", chain.detector, "--scores", chain.scores, "--row")
    name, row = scored["customer_id"][0], str(scored["row"][0])
    monkeypatch.delenv("ANOMALY_MASK_KEY", raising=False)
    assert "ANOMALY_MASK_KEY" in refused(*options, row, "--mask")
    monkeypatch.setenv("ANOMALY_MASK_KEY", "sixteen bytes or more")
    plain, hidden = done(*options, row), done(*options, row, "--mask")
    assert name in json.dumps(plain) and name not in json.dumps(hidden)
    assert hidden["event"]["customer_id"].startswith("M-") and hidden["p_value"] == plain["p_value"]
    assert name not in run(*options, row, "--mask").stdout


def test_what_cannot_be_explained_is_named(chain: Chain, here: Path) -> None:
    options = ("explain", chain.events, "--detector", chain.detector, "--scores", chain.scores)
    assert "Give either --event ID or --row N" in refused(*options)
    assert "Give either --event ID or --row N" in refused(*options, "--row", "1", "--event", "E1")
    assert "no accepted event E?" in refused(*options, "--event", "E?")
    assert "has no score" in refused(*options, "--row", "0")
    assert ".svg or .png" in refused(*options, "--row", "0", "--figure", "event.pdf")
    assert "no such file" in refused(*options[:-1], here / "absent.parquet", "--row", "0")


def test_a_report_by_cost_needs_the_share_of_fraud(chain: Chain, here: Path) -> None:
    options = ("--detector", chain.detector, "--since", SINCE)
    refused = run("report", chain.events, *options, "--alert-cost", "20")
    assert refused.exit_code == 2 and "fraud_share" in refused.stderr
    told = done("report", chain.events, *options, "--alert-cost", "20", "--fraud-share", "0.05", "--out", "r.html")
    assert told["cases"] > 0 and (here / "r.html").exists()


def test_the_table_of_cases_keeps_text_from_the_data_in_its_place(chain: Chain) -> None:
    from rich.console import Console

    top = pl.DataFrame(chain.told["report"]["top"]).head(1)
    cases = top.with_columns(pl.col("start").str.to_datetime(time_zone="UTC"), entity=pl.lit("[red]\x1b[31mC1\n"))
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(case_table(cases, Schema.from_toml(chain.schema)))
    console.file.close()
    assert "[red]\ufffd[31mC1\ufffd" in console.export_text()


# ---- refusals --------------------------------------------------------------------------------------------------------
def test_files_that_are_not_there_are_named(chain: Chain, here: Path) -> None:
    assert "nope.csv: no such file" in refused("init", "nope.csv")
    assert "nope.csv: no such file" in refused("fit", "nope.csv", "--schema", chain.schema)
    assert "anomaly.toml: no schema can be read" in refused("fit", chain.events)
    assert "no manifest.json in nope" in refused("score", chain.events, "--detector", "nope")
    assert "--scores nope.parquet: no such file" in refused("report", chain.events, "--scores", "nope.parquet")
    assert list(here.iterdir()) == []


def test_what_is_no_table_no_schema_or_no_detector_is_named(chain: Chain, here: Path) -> None:
    (here / "note.md").write_text("text\n")
    (here / "broken.toml").write_text("x = [\n")
    (here / "other").mkdir()
    (here / "other" / "file").touch()
    assert "note.md: unknown kind of file" in refused("fit", "note.md", "--schema", chain.schema)
    assert "broken.toml: not a TOML file" in refused("fit", chain.events, "--schema", "broken.toml")
    assert "no manifest.json in other" in refused("score", chain.events, "--detector", "other")
    assert "no manifest.json in note.md" in refused("score", chain.events, "--detector", "note.md")
    assert "other holds other things" in refused("fit", chain.events, "--schema", chain.schema, "--out", "other")
    (here / "g.parquet").write_text("text\n")
    options = ("--detector", chain.detector, "--scores")
    assert "g.parquet: cannot be read as Parquet" in refused("report", chain.events, *options, "g.parquet")
    assert "no column row, time, p_value" in refused(
        "report", chain.events, *options, chain.events.parent / "labels.parquet"
    )


def test_a_wrong_column_is_named_with_the_closest_one(chain: Chain, here: Path) -> None:
    wrong = here / "wrong.toml"
    wrong.write_text(chain.schema.read_text(encoding="utf-8").replace('"customer_id"', '"custmer_id"'))
    assert "'custmer_id' (entity; did you mean 'customer_id'?)" in refused("fit", chain.events, "--schema", wrong)
    (here / "ab.csv").write_text("a,b\n1,2\n")
    assert "no column reads as a time" in refused("init", "ab.csv")
    assert "Columns there are: a, b" in refused("score", "ab.csv", "--detector", chain.detector)


def test_times_and_numbers_out_of_range_are_named(chain: Chain, here: Path) -> None:
    fit, score = ("fit", chain.events, "--schema", chain.schema), ("score", chain.events, "--detector", chain.detector)
    assert "--until: time 'soon' is not like 2024-01-31" in refused(*fit, "--until", "soon")
    assert "--until 2020-01-01: no event is before it" in refused(*fit, "--until", "2020-01-01")
    assert "--since: time '31.1.2024' is not like" in refused(*score, "--since", "31.1.2024")
    assert "no event at or after 2030-01-01" in refused(*score, "--since", "2030-01-01")
    report = ("report", chain.events, "--detector", chain.detector)
    assert "expected per_day above 0, got 0.0" in refused(*report, "--budget-per-day", "0")
    assert "give one of --budget-per-day and --false-alert-rate" in refused(
        *report, "--budget-per-day", "1", "--false-alert-rate", "0.1"
    )
    assert "--resume needs --checkpoint" in refused(*fit, "--resume")
    assert "expected customers" in refused("simulate", here / "play", "--customers", "0")
    assert list(here.iterdir()) == []


def test_a_target_that_cannot_be_written_is_refused_before_the_work(chain: Chain, here: Path) -> None:
    score, report = (("score", chain.events, "--detector", "x"), ("report", chain.events, "--detector", "x"))
    assert "got suffix '.xlsx'" in refused(*score, "--out", "s.xlsx")
    assert "no folder nowhere" in refused(*score, "--out", "nowhere/s.csv")
    assert "taken by the rejected rows" in refused(*score, "--out", "rejects.parquet")
    assert "is read here and would be overwritten" in refused(*score, "--out", chain.events)
    assert "got suffix '.xlsx'" in refused(*report, "--alerts", "cases.xlsx")
    assert "is a folder" in refused(*report, "--out", here)
    assert "no folder nowhere" in refused("init", chain.events, "--out", "nowhere/a.toml")
    (here / "file").touch()
    assert str(here / "file") in refused("simulate", here / "file" / "play", "--customers", "5", "--days", "2")


def test_a_schema_of_the_user_is_not_overwritten(chain: Chain, here: Path) -> None:
    schema = here / "anomaly.toml"
    schema.write_text("# mine\n")
    assert "--force overwrites it" in refused("init", chain.events)
    assert "holds something else" in refused("simulate", here, "--customers", "5", "--days", "2")
    assert schema.read_text() == "# mine\n"
    assert [path.name for path in here.iterdir()] == ["anomaly.toml"]
    shown = run("init", chain.events, "--force")
    assert shown.exit_code == 0
    assert shown.stdout.startswith(schema.read_text(encoding="utf-8"))


def test_a_database_comes_alone_and_with_a_query(chain: Chain) -> None:
    options = ("--detector", chain.detector)
    assert "give either one database or files" in refused("score", "sqlite:///a.db", chain.events, *options)
    assert "a database needs a query" in refused("score", "sqlite:///a.db", *options)
    assert "no database file a.db" in refused("score", "sqlite:///a.db", "--query", "SELECT 1", *options)
    assert "--query needs a database" in refused("score", chain.events, "--query", "SELECT 1", *options)


def test_a_table_of_bad_rows_only_is_refused(chain: Chain, here: Path) -> None:
    table = read_events(chain.events, Schema.from_toml(chain.schema)).n_input
    pl.read_parquet(chain.events).with_columns(amount=pl.lit("oops")).write_csv(here / "all.csv")
    told = refused("score", "all.csv", "--detector", chain.detector)
    assert told == f"none of the {table:,} rows can be read; the first one: amount 'oops' is not a number"


def test_scores_of_other_events_are_refused(chain: Chain, here: Path) -> None:
    pl.read_parquet(chain.events).reverse().write_parquet(here / "other.parquet")
    told = refused("report", "other.parquet", "--detector", chain.detector, "--scores", chain.scores)
    assert "was scored as an event of 2024-" in told
    assert "give the same events in the same order" in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fit"], "EVENTS"),
        (["fit", "x.csv", "--epochs", "0"], "--epochs"),
        (["fit", "x.csv", "--nope"], "--nope"),
        (["report", "x.csv", "--cooldown-hours", "-1"], "--cooldown-hours"),
        (["scor"], "scor"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], named: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert named in result.stderr
    assert "Traceback" not in result.stderr


# ---- the program itself ----------------------------------------------------------------------------------------------
def test_help_teaches_and_loads_nothing_heavy() -> None:
    question = "import sys; sys.argv = ['anomaly', '--help']\nfrom anomaly.cli import main\ntry:\n    main()\n" + (
        "except SystemExit:\n    print([name for name in ('torch', 'polars', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    places = [shown.index(f"\n    anomaly {verb} ") for verb in ("simulate", "init", "fit", "score", "report")]
    assert places == sorted(places)
    for verb in ("simulate", "init", "fit", "score", "report"):
        assert f"  anomaly {verb} " in run(verb, "--help").stdout


@pytest.mark.skipif(os.name == "nt", reason="a signal to one process alone")
def test_the_garbage_collector_rests_while_modules_are_imported_and_no_longer(
    chain: Chain, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def watched(name: str, function: Callable[..., Any]) -> None:
        def watch(*given: Any, **options: Any) -> Any:
            seen.append((gc.isenabled(), gc.get_freeze_count() > 0))
            return function(*given, **options)

        monkeypatch.setattr(name, watch)

    watched("anomaly.ingest.read_events", read_events)
    watched("anomaly.detector.Detector.score", Detector.score)
    done("score", chain.events, "--detector", chain.detector, "--out", here / "watched.parquet")
    assert seen == [(False, False), (True, True)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    refused("score", here / "absent.csv", "--detector", chain.detector)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_ctrl_c_keeps_the_best_epoch(chain: Chain, here: Path) -> None:
    """In a process of its own: each model is interrupted after its first epoch, and the detector is saved."""
    command = [sys.executable, "-m", "anomaly", "fit", str(chain.events), "--schema", str(chain.schema), "--json"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--hidden", "8", "--epochs", "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=settings,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 1 of" in line:
                process.send_signal(signal.SIGINT)
        told = json.loads(process.stdout.read())
    assert process.returncode == 0
    assert [run["interrupted"] for run in told["models"].values()] == [True, True]
    assert done("score", chain.events, "--detector", here / "detector", "--since", SINCE)["scored"] > 0


def test_a_refusal_of_the_program_is_one_line(here: Path) -> None:
    command = [sys.executable, "-m", "anomaly", "init", "nope.csv"]
    answer = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "Error: nope.csv: no such file or folder\n"
