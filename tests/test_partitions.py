"""Partitions: what is scored out of core is what is scored in memory, whatever is cut off on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import SPLIT, UNTIDY_SPLIT
from oracles import UNTIDY_SCHEMA
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from anomaly import partitions
from anomaly.cli import app
from anomaly.detector import Detector
from anomaly.errors import InputError, NotFittedError, ParameterError
from anomaly.ingest import read_events
from anomaly.partitions import fit_within, memory_bytes, sample_within, score_within
from anomaly.schema import NumericField, Schema
from anomaly.simulator import SIMULATED_SCHEMA
from anomaly.sources import Part
from anomaly.views import make_detector

Untidy = Callable[[float | None], Detector]
LEAST = 60


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> int:
    """So little memory that some tens of events fill a partition."""
    monkeypatch.setattr(partitions, "LEAST", LEAST)
    monkeypatch.setattr(partitions, "BATCH", 37)
    monkeypatch.setattr(partitions, "DEAL_EACH", partitions.FIT_EACH)
    return partitions.BASE + LEAST * partitions.FIT_EACH


def flawed(untidy: pl.DataFrame) -> pl.DataFrame:
    """The untidy table as text, with bad rows and with ids that come twice, within an entity and across two."""
    text = untidy.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"), pl.col("amount", "lat").cast(pl.String))
    at = pl.int_range(pl.len())
    bad = text.with_columns(
        at=pl.when(at.is_in([5, 90])).then(pl.lit("soon")).otherwise("at"),
        amount=pl.when(at == 40).then(pl.lit("much")).otherwise("amount"),
        card=pl.when(at == 41).then(None).otherwise("card"),
    )
    return pl.concat([bad, bad[7:9], bad[100:101].with_columns(card=pl.lit("K1"))])


def files_of(table: pl.DataFrame, folder: Path, suffix: str) -> Path:
    """The table in three files of a folder."""
    folder.mkdir()
    for at, start in enumerate(range(0, len(table), 150)):
        piece, path = table[start : start + 150], folder / f"part-{at}{suffix}"
        if suffix == ".parquet":
            piece.write_parquet(path)
        elif suffix == ".csv":
            piece.write_csv(path)
        else:
            piece.write_ndjson(path)
    return folder


def same_scores(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Probabilities equal to 1e-6, surprises to 1e-5 (they grow without end), all else the same, in the same order."""
    assert found.columns == expected.columns
    chance = [name for name in found.columns if name[:2] == "p_" or name == "score"]
    assert_frame_equal(found.select(chance), expected.select(chance), abs_tol=1e-6, rel_tol=0)
    # A field's surprise is read between held-out values, of which some lie 1e-4 apart: rounding shows there.
    assert_frame_equal(found.drop(chance), expected.drop(chance), abs_tol=1e-4, rel_tol=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".ndjson"])
@pytest.mark.parametrize("since", [None, UNTIDY_SPLIT])
def test_scores_rejects_and_notes_are_those_of_one_piece(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int, suffix: str, since: str | None
) -> None:
    detector = untidy_detector(None)
    source = files_of(flawed(untidy), tmp_path / "events", suffix)
    read = read_events(source, UNTIDY_SCHEMA)
    expected = detector.score(read, since=since)
    found = score_within(detector, source, tmp_path / "scores.parquet", memory=memory, since=since)
    assert found.partitions >= 3
    same_scores(pl.read_parquet(tmp_path / "scores.parquet"), expected)
    assert_frame_equal(found.rejects, read.rejects)
    assert len(found.rejects) == 4 + 3
    assert found.notes == read.notes
    assert (found.rows, found.scored) == (read.n_input, len(expected))
    assert found.status == dict(sorted(expected["status"].value_counts().iter_rows()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "scores.parquet"]


def test_exact_repeats_are_found_without_an_id(tmp_path: Path, memory: int) -> None:
    schema = Schema(time="at", entity=("card",), numeric=(NumericField(name="amount"),))
    draw = np.random.default_rng(0)
    table = pl.DataFrame({
        "at": 1_700_000_000 + draw.integers(0, 10**6, 400),
        "card": [f"K{at % 20}" for at in range(400)],
        "amount": draw.lognormal(3, 1, 400).round(2),
    })  # fmt: skip
    table = pl.concat([table, table[10:14]])
    detector = Detector(schema, hidden=4, epochs=1).fit(table, progress=False)
    found = score_within(detector, table, tmp_path / "scores.parquet", memory=memory)
    same_scores(pl.read_parquet(tmp_path / "scores.parquet"), detector.score(table))
    assert_frame_equal(found.rejects, read_events(table, schema).rejects)
    assert len(found.rejects) == 4


@pytest.mark.parametrize("suffix", [".csv", ".ndjson"])
def test_scores_are_written_in_other_formats(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int, suffix: str
) -> None:
    out = tmp_path / f"scores{suffix}"
    score_within(untidy_detector(None), untidy, out, memory=memory)
    rows = pl.read_csv(out) if suffix == ".csv" else pl.read_ndjson(out)
    assert rows["row"].to_list() == list(range(len(untidy)))


def test_a_broken_line_costs_that_line_only(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int
) -> None:
    source = tmp_path / "events.ndjson"
    lines = untidy.with_columns(pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_ndjson().splitlines()
    source.write_text("\n".join([*lines[:200], '{"at": ', *lines[200:]]), encoding="utf-8")
    read = read_events(source, UNTIDY_SCHEMA)
    found = score_within(untidy_detector(None), source, tmp_path / "scores.parquet", memory=memory)
    assert_frame_equal(found.rejects, read.rejects)
    assert len(found.rejects) == 1
    same_scores(pl.read_parquet(tmp_path / "scores.parquet"), untidy_detector(None).score(read))


def test_what_was_dealt_out_of_a_file_that_breaks_later_is_dropped(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole = files_of(untidy, tmp_path / "events", ".ndjson"), partitions.batches
    broken: list[str] = []

    def breaking(part: Part, schema: Schema, start: int) -> Iterator[pl.DataFrame]:
        for at, batch in enumerate(whole(part, schema, start)):
            if part.careful is not None and at == 3:
                broken.extend(str(file) for file in (tmp_path / ".scores.parquet.partial").glob("*/*/*.arrow"))
                raise pl.exceptions.ComputeError("this line cannot be read")
            yield batch

    monkeypatch.setattr(partitions, "batches", breaking)
    score_within(untidy_detector(None), source, tmp_path / "scores.parquet", memory=memory)
    assert broken
    same_scores(pl.read_parquet(tmp_path / "scores.parquet"), untidy_detector(None).score(untidy))


class Cut:
    """Says nothing, and after so many partitions does what Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.after, self.scored = after, 0

    def __call__(self, text: str) -> None:
        self.scored += text.startswith("scored")
        if self.scored == self.after:
            raise KeyboardInterrupt


def test_a_run_that_was_cut_off_goes_on_with_the_next_partition(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int
) -> None:
    detector, out = untidy_detector(None), tmp_path / "scores.parquet"
    source = files_of(flawed(untidy), tmp_path / "events", ".csv")
    with pytest.raises(KeyboardInterrupt):
        score_within(detector, source, out, memory=memory, progress=Cut(2))
    assert not out.exists()
    told: list[str] = []
    found = score_within(detector, source, out, memory=memory, progress=told.append)
    assert [text.split()[0] for text in told] == ["scored"] * (found.partitions - 2)
    same_scores(pl.read_parquet(out), detector.score(source))


def test_a_full_disk_at_the_end_loses_nothing(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, out = untidy_detector(None), tmp_path / "scores.parquet"
    source = files_of(untidy, tmp_path / "events", ".csv")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(out))

    with monkeypatch.context() as patch:
        patch.setattr(partitions, "_sink", full)
        with pytest.raises(OSError, match="No space left"):
            score_within(detector, source, out, memory=memory)
    told: list[str] = []
    score_within(detector, source, out, memory=memory, progress=told.append)
    assert told == []
    same_scores(pl.read_parquet(out), detector.score(source))


@pytest.mark.parametrize("change", ["source", "since", "state"])
def test_what_was_done_for_other_events_is_done_again(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int, change: str
) -> None:
    detector, out = untidy_detector(None), tmp_path / "scores.parquet"
    source = files_of(untidy, tmp_path / "events", ".csv")
    with pytest.raises(KeyboardInterrupt):
        score_within(detector, source, out, memory=memory, progress=Cut(1))
    since = UNTIDY_SPLIT if change == "since" else None
    if change == "source":
        untidy[:50].write_csv(source / "part-0.csv")
    if change == "state":
        (tmp_path / ".scores.parquet.partial" / "state.json").write_text("{", encoding="utf-8")
    told: list[str] = []
    found = score_within(detector, source, out, memory=memory, since=since, progress=told.append)
    assert sum(text.startswith("scored") for text in told) == found.partitions
    same_scores(pl.read_parquet(out), detector.score(source, since=since))


def test_an_old_table_stays_until_the_new_one_is_whole(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int
) -> None:
    out = tmp_path / "scores.parquet"
    out.write_text("old", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        score_within(untidy_detector(None), untidy, out, memory=memory, progress=Cut(2))
    assert out.read_text(encoding="utf-8") == "old"


def test_what_cannot_be_scored_is_refused(
    untidy_detector: Untidy, untidy: pl.DataFrame, tmp_path: Path, memory: int
) -> None:
    detector, out = untidy_detector(None), tmp_path / "scores.parquet"
    with pytest.raises(InputError, match="no event at or after"):
        score_within(detector, untidy, out, memory=memory, since="2030-01-01")
    with pytest.raises(InputError, match=r"none of the .* rows can be read"):
        score_within(detector, untidy.with_columns(at=pl.lit("never")), out, memory=memory)
    with pytest.raises(InputError, match="no rows"):
        score_within(detector, untidy.clear(), out, memory=memory)
    with pytest.raises(ParameterError, match="too little"):
        score_within(detector, untidy, out, memory="100MB")
    with pytest.raises(ParameterError, match="suffix"):
        score_within(detector, untidy, tmp_path / "scores.xlsx", memory=memory)
    with pytest.raises(NotFittedError):
        score_within(Detector(UNTIDY_SCHEMA), untidy, out, memory=memory)
    assert list(tmp_path.iterdir()) == []


def test_several_views_are_refused(tmp_path: Path, payments: pl.DataFrame) -> None:
    views = make_detector(SIMULATED_SCHEMA.model_copy(update={"entity": (("customer_id",), ("merchant_id",))}))
    with pytest.raises(ParameterError, match=r"one view, got 2 \(customer_id, merchant_id\)"):
        score_within(views, payments, tmp_path / "scores.parquet", memory="2GB")
    with pytest.raises(ParameterError, match="one view, got 2"):
        fit_within(views, payments, memory="2GB")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GB", 1e9), ("1.5 gb", 1.5e9), ("900MB", 9e8), ("1GiB", 2**30), (2e9, 2e9), ("2e9", None), ("x", None)],
)
def test_sizes_are_read(text: str | float, size: float | None) -> None:
    if size is None:
        with pytest.raises(ParameterError, match="no size"):
            memory_bytes(text)
    else:
        assert memory_bytes(text) == size


def test_a_sample_holds_whole_entities_and_knows_all(
    payments: pl.DataFrame, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LEAST", 10 * LEAST)
    memory += 9 * LEAST * partitions.FIT_EACH
    sample = sample_within(payments, SIMULATED_SCHEMA, memory=memory, until=SPLIT)
    history = read_events(payments, SIMULATED_SCHEMA).frame.filter(pl.col("time") < 1_707_523_200.0)
    assert sample.of_events == len(history)
    assert sample.later == len(payments) - len(history)
    assert sample.entities.tolist() == history["entity"].unique().sort().to_list()
    drawn = sample.events.frame
    assert LEAST < len(drawn) <= 10 * LEAST
    assert not sample.whole
    mine = history.filter(pl.col("entity").is_in(drawn["entity"].unique().implode()))
    assert_frame_equal(drawn, mine)
    again = sample_within(payments, SIMULATED_SCHEMA, memory=memory, until=SPLIT)
    other = sample_within(payments, SIMULATED_SCHEMA, memory=memory, until=SPLIT, seed=1)
    assert again.events.frame.equals(drawn)
    assert not other.events.frame.equals(drawn)


def test_an_entity_that_does_not_fit_is_refused(payments: pl.DataFrame, memory: int) -> None:
    one = payments.with_columns(customer_id=pl.lit("the only one"))
    with pytest.raises(InputError, match="holds about 60 events, and no entity drawn has so few"):
        sample_within(one, SIMULATED_SCHEMA, memory=memory)


def test_with_memory_enough_a_fit_is_that_of_all_events(untidy: pl.DataFrame) -> None:
    plain = Detector(UNTIDY_SCHEMA, hidden=4, epochs=1).fit(untidy, until=UNTIDY_SPLIT, progress=False)
    within = Detector(UNTIDY_SCHEMA, hidden=4, epochs=1)
    sample = fit_within(within, untidy, memory="2GB", until=UNTIDY_SPLIT, progress=False)
    assert sample.whole
    assert within.fitted_["fingerprint"] == plain.fitted_["fingerprint"]
    assert "sample" not in within.fitted_
    assert within.score(untidy).equals(plain.score(untidy))


def test_a_fit_on_a_sample_says_so_and_knows_every_entity(
    payments: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LEAST", 1_000)
    monkeypatch.setattr(partitions, "BATCH", 300)
    detector = Detector(SIMULATED_SCHEMA, hidden=4, epochs=1, rehearse=False)
    memory = partitions.BASE + 1_000 * partitions.FIT_EACH
    sample = fit_within(detector, payments, memory=memory, until=SPLIT, progress=False)
    assert detector.fitted_["events"] == len(sample.events) <= 1_000 < sample.of_events
    assert detector.fitted_["sample"] == {"of_events": sample.of_events, "of_entities": len(sample.entities)}
    assert f"a sample of {len(sample.entities)}" in detector._settings()["Fitted on"]
    again = Detector.load(detector.save(tmp_path / "detector"))
    assert "unseen" not in again.score(payments)["status"].to_list()
    held = again.holdout_.surprises()
    assert set(held["entity"]) <= set(sample.events.frame["entity"])
    assert set(held["time"]) <= set(sample.events.frame["time"])


def test_the_command_line_keeps_to_memory(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LEAST", 1_000)
    memory = f"{(partitions.BASE + 1_000 * partitions.FIT_EACH) / 1e6}MB"
    payments.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "anomaly.toml").write_text(SIMULATED_SCHEMA.to_toml(), encoding="utf-8")
    detector.save(tmp_path / "detector")

    def told(verb: str, **options: Any) -> dict[str, Any]:
        given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        result = CliRunner().invoke(app, [verb, str(tmp_path / "events.parquet"), *given, "--memory", memory, "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    out = tmp_path / "scores.parquet"
    facts = told("score", detector=tmp_path / "detector", out=out)
    same_scores(pl.read_parquet(out), scores)
    assert (facts["rows"], facts["scored"], facts["history"], facts["rejected"]) == (len(payments), len(scores), 0, 0)
    assert pl.read_parquet(tmp_path / "rejects.parquet").height == 0
    facts = told("fit", schema=tmp_path / "anomaly.toml", out=tmp_path / "other", until=SPLIT, epochs=1, hidden=4)
    assert facts["sample"]["events"] <= 1_000 < facts["history"]
    assert facts["history"] + facts["later"] + facts["rejected"] == facts["rows"] == len(payments)
