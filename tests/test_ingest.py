from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from anomaly.errors import InputError, ParameterError, SchemaError
from anomaly.ingest import Events, check_target, in_order, read_events, read_labels, write_table
from anomaly.schema import NumericField, Place, Schema

SCHEMA = Schema(
    time="at",
    entity=("card",),
    numeric=(NumericField(name="amount"),),
    categorical=("shop",),
    place=Place(latitude="lat", longitude="lon"),
)
PLAIN = Schema(time="at", entity=("card",), numeric=(NumericField(name="amount"),))
WITH_ID = PLAIN.model_copy(update={"event_id": "id"})
GOOD: dict[str, Any] = {
    "at": "2024-05-01 10:00",
    "card": "a",
    "amount": "1.5",
    "shop": "kiosk",
    "lat": "48.1",
    "lon": "2",
}


def table(*rows: dict[str, Any], **columns: Any) -> pl.DataFrame:
    """Rows as text, each with the good values where it says nothing."""
    return pl.DataFrame([{**GOOD, **row, **columns} for row in rows], schema_overrides=dict.fromkeys(GOOD, pl.String))


def csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def check(events: Events) -> Events:
    """What holds for all that is read: nothing is lost, nothing twice, sorted, no NaN."""
    frame, rejects = events.frame, events.rejects
    assert len(events) + rejects.height == events.n_input
    assert sorted([*frame["row"], *rejects["row"]]) == list(range(events.n_input))
    assert frame.select("entity", "time", "row").equals(frame.select("entity", "time", "row").sort(pl.all()))
    assert rejects["row"].is_sorted()
    assert rejects["reason"].null_count() == 0
    assert (rejects["reason"].str.len_chars() > 0).all()
    assert frame.select("row", "entity", "time", "clock").null_count().row(0) == (0, 0, 0, 0)
    for name in frame.columns:
        if frame.schema[name] == pl.Float64:
            assert frame[name].drop_nulls().is_finite().all()
    return events


def reasons(events: Events) -> dict[int, str]:
    return dict(check(events).rejects.select("row", "reason").rows())


def test_the_canonical_frame() -> None:
    schema = Schema(
        time="time",
        entity=(("row", "card"),),
        event_id="event_id",
        numeric=(NumericField(name="amount"), NumericField(name="n")),
        categorical=("clock", "mcc"),
        place=Place(latitude="la", longitude="lo"),
        label="fraud",
        time_zone="Asia/Kolkata",
    )
    source = pl.DataFrame(
        {
            "time": [datetime(2024, 5, 1, 12, tzinfo=UTC), datetime(2024, 5, 1, 11, tzinfo=UTC)],
            "row": [1, 1],
            "card": ["b", "b"],
            "event_id": [7, None],
            "amount": [1, None],
            "n": [math.nan, 2.0],
            "clock": [None, "x"],
            "mcc": [5411, 5812],
            "la": [90.0, None],
            "lo": [-180.0, None],
            "fraud": [1, 0],
            "more": [[1], [2]],
        }
    )
    events = check(read_events(source, schema))
    assert events.frame.schema == {
        "row": pl.Int64,
        "entity": pl.String,
        "time": pl.Float64,
        "clock": pl.Float64,
        "event_id": pl.String,
        "n:amount": pl.Float64,
        "n:n": pl.Float64,
        "p:latitude": pl.Float64,
        "p:longitude": pl.Float64,
        "c:clock": pl.String,
        "c:mcc": pl.String,
    }
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp()
    assert events.frame.rows() == [
        (1, "1\x1fb", noon - 3600, noon - 3600 + 19800, None, None, 2.0, None, None, "x", "5812"),
        (0, "1\x1fb", noon, noon + 19800, "7", 1.0, None, 90.0, -180.0, None, "5411"),
    ]
    assert events.rejects.columns == ["row", "reason", "time", "input:row", *schema.columns()[2:]]
    assert events.rejects.height == 0


def test_bad_values_cost_their_row_and_name_column_and_value() -> None:
    events = read_events(
        table(
            {},
            {"at": "yesterday"},
            {"at": None},
            {"amount": "1,5"},
            {"amount": "Infinity"},
            {"lat": "91"},
            {"lon": "-180.5"},
            {"card": " "},
            {"at": "2300-01-01", "card": "NA", "amount": "x"},
        ),
        SCHEMA,
    )
    assert reasons(events) == {
        1: "at 'yesterday' is not a time (write it like 2024-12-31 23:59:59)",
        2: "at is missing: every event needs a time",
        3: "amount '1,5' is not a number (with decimal = \",\" it would be one)",
        4: "amount 'Infinity' is infinite",
        5: "lat '91' is outside -90 to 90",
        6: "lon '-180.5' is outside -180 to 180",
        7: "card is missing: every event needs an entity",
        8: "at '2300-01-01' is outside the years 1900-2200; card is missing: every event needs an entity; "
        "amount 'x' is not a number",
    }
    assert events.rejects.filter(pl.col("row") == 8).row(0)[2:] == ("2300-01-01", "NA", "x", "kiosk", "48.1", "2")


def test_missing_fields_are_kept_as_null() -> None:
    names = ["amount", "shop", "lat", "lon"]
    words = [None, "", "NA", "null", "None", "NaN"]
    rows = [{**dict.fromkeys(names, word), "at": f"2024-05-0{day + 1}"} for day, word in enumerate(words)]
    events = check(read_events(table(*rows), SCHEMA))
    assert len(events) == len(words)
    assert events.frame.select("n:amount", "c:shop", "p:latitude", "p:longitude").null_count().row(0) == (6, 6, 6, 6)
    assert "amount is missing in 6 events" in events.notes


def test_negative_amounts_stay() -> None:
    assert read_events(table({"amount": "-5"}), SCHEMA).frame["n:amount"].to_list() == [-5.0]


def test_mixed_time_zones_and_what_was_assumed() -> None:
    schema = SCHEMA.model_copy(update={"time_zone": "Europe/Paris"})
    times = [
        "2024-07-01T10:00:00Z",
        "2024-07-01T12:00:01+02:00",
        "2024-07-01 12:00:02",
        "2024-03-31 02:30:00",
        "2024-10-27 02:30:00",
        "2024-07-01T05:30:03-04:30",
    ]
    events = read_events(table(*[{"at": time} for time in times]), schema)
    assert reasons(events) == {3: "at '2024-03-31 02:30:00' does not exist in Europe/Paris (the clocks skip it)"}
    ten = datetime(2024, 7, 1, 10, tzinfo=UTC).timestamp()
    autumn = datetime(2024, 10, 27, 0, 30, tzinfo=UTC).timestamp()
    assert events.frame["time"].to_list() == [ten, ten + 1, ten + 2, ten + 3, autumn]
    assert (events.frame["clock"] - events.frame["time"]).to_list() == [7200.0] * 5
    assert events.notes == (
        "2 times without an offset were read as Europe/Paris",
        "1 time that Europe/Paris has twice when clocks go back was read as the earlier one",
    )


def test_rows_are_sorted_and_equal_times_keep_their_order() -> None:
    rows = [{"card": "b"}, {"at": "2024-05-01 09:00"}, {"amount": "3"}, {"amount": "1"}, {"amount": "2"}]
    events = check(read_events(table(*rows), SCHEMA))
    assert events.frame["row"].to_list() == [1, 2, 3, 4, 0]


@pytest.mark.parametrize("entities", [1, 3, 300])
def test_events_come_in_the_order_of_entity_time_and_row(entities: int) -> None:
    draw = np.random.default_rng(entities)
    names = [f"{number}ä" for number in draw.integers(0, entities, 400)]
    row = draw.permutation(400)
    events = pl.DataFrame({"entity": names, "time": draw.integers(-3, 3, 400).astype(float), "row": row})
    pieces = pl.concat([events[:7], events[7:]], rechunk=False)
    for given in (events, pieces, events.head(0)):
        assert_frame_equal(in_order(given), given.sort("entity", "time", "row"))


def test_of_duplicate_ids_the_first_accepted_one_stays() -> None:
    rows: list[dict[str, Any]] = [
        {"id": "x", "amount": "bad"},
        {"id": "x", "at": "2024-05-09"},
        {"id": "y"},
        {"id": "x", "at": "2024-05-01"},
        {"id": None},
        {"id": None},
        {"id": " y ", "card": "other"},
    ]
    events = read_events(table(*rows), WITH_ID)
    assert reasons(events) == {
        0: "amount 'bad' is not a number",
        3: "duplicate of row 1: the same id 'x'",
        6: "duplicate of row 2: the same id 'y'",
    }
    assert "id is missing in 2 events" in events.notes


def test_with_an_id_only_the_id_counts() -> None:
    assert read_events(table({"id": "1"}, {"id": "2"}), WITH_ID).rejects.height == 0


def test_without_an_id_exact_duplicates_are_rejected_but_not_events_that_differ() -> None:
    rows: list[dict[str, Any]] = [
        {"fraud": 0},
        {"amount": "2"},
        {"fraud": 1, "amount": "1.50", "at": "2024-05-01T10:00Z"},
        {"card": "b"},
        {"shop": None},
        {},
        {"shop": ""},
        {"other": "counts not"},
    ]
    events = read_events(table(*rows), SCHEMA.model_copy(update={"label": "fraud"}))
    assert reasons(events) == {
        2: "exact duplicate of row 0",
        5: "exact duplicate of row 0",
        6: "exact duplicate of row 4",
        7: "exact duplicate of row 0",
    }
    assert events.rejects["amount"].to_list() == ["1.50", "1.5", "1.5", "1.5"]
    assert "fraud" not in events.rejects.columns


def test_a_table_without_an_entity_is_one_sequence() -> None:
    events = check(read_events(table({"card": None}, {"at": "2024-05-02"}), Schema(time="at")))
    assert events.frame["entity"].to_list() == ["", ""]
    assert [name for name in events.frame.columns if ":" in name] == []


def test_several_entity_columns_make_one_key_that_cannot_be_mistaken() -> None:
    schema = Schema(time="at", entity=(("shop", "card"),))
    events = read_events(table({"shop": "x\x1fy", "card": "z"}, {"shop": "x", "card": "y"}, {"card": None}), schema)
    assert events.frame["entity"].to_list() == ["x\x1fy"]
    assert reasons(events) == {
        0: "shop holds the character U+001F, which joins the columns of an entity",
        2: "card is missing: every event needs an entity",
    }


@pytest.mark.parametrize("entities", [["a"], ["a", "b", "c"]])
def test_one_entity_and_one_event_per_entity(entities: list[str]) -> None:
    events = check(read_events(table(*[{"card": name} for name in entities]), SCHEMA))
    assert events.frame["entity"].to_list() == entities


def test_one_entity_of_10_000_events_beside_entities_of_one() -> None:
    count = 10_000
    many = pl.DataFrame({"at": pl.int_range(count, eager=True) + 1_700_000_000, "card": "many", "amount": 1.0})
    few = pl.DataFrame({"at": [1_700_000_000] * 3, "card": ["a", "z", "m"], "amount": [2.0] * 3})
    events = check(read_events(pl.concat([few.head(2), many.reverse(), few.tail(1)]), PLAIN))
    assert events.frame["entity"].rle().struct.field("len").to_list() == [1, 1, count, 1]


def test_csv_with_every_kind_of_damage(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "x.csv",
        "at;card;amount;note\n"
        '2024-05-01;a;1;"two\nlines; one field"\n'
        "2024-05-02;a;1,5;more;than;four\n"
        "2024-05-03;a\n"
        "\n"
        "2024-05-05;a;1.234,50\n",
    )
    with path.open("ab") as file:
        file.write("2024-05-06;Mül;1;ok\n2024-05-07;a;1;not read: é\n".encode("latin-1"))
    events = read_events(path, PLAIN.model_copy(update={"decimal": ","}))
    assert reasons(events) == {
        1: "the line has more than the header's 4 fields",
        3: "at is missing: every event needs a time; card is missing: every event needs an entity",
        5: "the line holds bytes that are not UTF-8 (save the file as UTF-8)",
    }
    assert events.frame.select("row", "n:amount").rows() == [(0, 1.0), (2, None), (4, 1234.5), (6, 1.0)]
    assert events.rejects.row(0)[2:] == ("2024-05-02", "a", "1,5")


def test_ndjson_with_a_broken_line_and_pythons_nan(tmp_path: Path) -> None:
    lines = [
        '{"at": "2024-05-01", "card": 1, "amount": 1.5}',
        '{"at": "2024-05-02", "card": 1, "amount": NaN}',
        '{"at": "2024-05-03", "card"',
        "[1, 2]",
        '{"card": 1, "at": "2024-05-04"}',
        '{"at": 1714780800, "card": "1", "amount": "7", "more": {"x": [1]}}',
    ]
    events = read_events(csv(tmp_path / "x.jsonl", "\n".join(lines)), PLAIN)
    broken = "the line is not a JSON object; at is missing: every event needs a time; "
    assert reasons(events) == dict.fromkeys((2, 3), f"{broken}card is missing: every event needs an entity")
    assert dict(events.frame.select("row", "n:amount").rows()) == {0: 1.5, 1: None, 4: None, 5: 7.0}


def test_rows_are_counted_over_all_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    csv(tmp_path / "b.csv", "card,at,amount\na,2024-05-03,3\na,soon,3\n")
    csv(tmp_path / "a.csv", "at,card,amount,extra\nnever,a,1,x\n2024-05-01,a,1,x\n")
    table({"at": "2024-05-02"}).write_parquet(tmp_path / "c.parquet")
    csv(tmp_path / "d.csv", "at,card,amount\n")
    events = read_events(tmp_path, PLAIN)
    assert events.frame["row"].to_list() == [1, 4, 2]
    assert {row: reason[:9] for row, reason in reasons(events).items()} == {0: "at 'never", 3: "at 'soon'"}
    assert events.n_input == 5


def test_a_partition_of_a_folder_can_be_the_entity(tmp_path: Path) -> None:
    for card in ("b", "a"):
        (tmp_path / f"card={card}").mkdir()
        csv(tmp_path / f"card={card}" / "x.csv", "at,amount\n2024-05-01,1\n")
    assert read_events(tmp_path, PLAIN).frame["entity"].to_list() == ["a", "b"]


@pytest.mark.parametrize("text", ["", "at,card,amount\n", "\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"x\.csv"):
        read_events(csv(tmp_path / "x.csv", text), PLAIN)
    with pytest.raises(InputError, match="the table: no rows"):
        read_events(table({}).clear(), PLAIN)


def test_a_missing_column_is_an_error_and_names_the_file(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "at,card,amount\n2024-05-01,a,1\n")
    csv(tmp_path / "b.csv", "at,card,amuont\n2024-05-01,a,1\n")
    with pytest.raises(SchemaError, match=r"b\.csv has no column 'amount' \(numeric; did you mean 'amuont'\?\)"):
        read_events(tmp_path, PLAIN)


def test_a_column_of_the_wrong_type_is_an_error() -> None:
    with pytest.raises(SchemaError, match=r"the table: column 'amount' is of type Date; a number was expected"):
        read_events(pl.DataFrame({"at": [1], "card": ["a"], "amount": [datetime(2024, 5, 1).date()]}), PLAIN)


def test_when_nothing_is_accepted_the_note_says_why() -> None:
    events = check(read_events(table({"at": "1/5/2024"}, {"at": "2/5/2024"}), PLAIN))
    assert len(events) == 0
    assert events.notes == (
        "no row was accepted; the first one was rejected because "
        "at '1/5/2024' is not a time (write it like 2024-12-31 23:59:59)",
    )


def test_times_that_are_hardly_epochs_are_noted() -> None:
    events = read_events(pl.DataFrame({"at": [20180401, 20180402], "card": ["a", "a"], "amount": [1, 2]}), PLAIN)
    assert events.notes == ("all times are before 1980: if they are no seconds since 1970, check time and time_unit",)


def test_every_door_gives_the_same_events(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "at": ["2024-05-01 10:00:00", "2024-05-01T10:00:00+02:00", "2024-05-02 11:00:00.25"],
            "card": ["a", "b", "a"],
            "amount": [1.5, None, 1e-7],
        }
    )
    expected = read_events(frame, PLAIN).frame
    frame.write_parquet(tmp_path / "x.parquet")
    frame.write_ipc(tmp_path / "x.feather")
    frame.write_csv(tmp_path / "x.csv")
    frame.write_ndjson(tmp_path / "x.ndjson")
    for path in sorted(tmp_path.glob("x.*")):
        assert read_events(path, PLAIN).frame.equals(expected), path
    for source in (frame.lazy(), frame.to_arrow(), frame.to_pandas(), frame.cast(pl.String)):
        assert read_events(source, PLAIN).frame.equals(expected)
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("CREATE TABLE events (at TEXT, card TEXT, amount REAL)")
        connection.executemany("INSERT INTO events VALUES (?, ?, ?)", frame.rows())
        connection.commit()
    uri = f"sqlite://{tmp_path / 'x.db'}"
    assert read_events(uri, PLAIN, query="SELECT * FROM events ORDER BY rowid").frame.equals(expected)


def test_a_source_that_changes_while_it_is_read_is_an_error() -> None:
    calls: list[int] = []

    def shrink(frame: pl.DataFrame) -> pl.DataFrame:
        calls.append(frame.height)
        return frame if len(calls) == 1 else frame.head(1)

    source = table({}, {"at": "soon"}).lazy().map_batches(shrink, predicate_pushdown=False, projection_pushdown=False)
    with pytest.raises(InputError, match="changed while it was read"):
        read_events(source, PLAIN)


# --- labels and tables ------------------------------------------------------------------------------------------------


def test_labels_are_read_alone_and_by_row(tmp_path: Path) -> None:
    schema = PLAIN.model_copy(update={"label": "fraud"})
    csv(tmp_path / "a.csv", "at,fraud\n2024-05-01,0\nnever,1\n2024-05-01,\n")
    csv(tmp_path / "b.csv", "fraud\nTrue\nno\n1.0\n")
    labels = read_labels(tmp_path, schema)
    assert labels.schema == {"row": pl.Int64, "label": pl.Boolean}
    assert labels.rows() == [(0, False), (1, True), (2, None), (3, True), (4, False), (5, True)]
    assert read_labels(pl.DataFrame({"fraud": [2, 0, None]}), schema)["label"].to_list() == [True, False, None]
    with pytest.raises(SchemaError, match="the schema names no label"):
        read_labels(tmp_path, PLAIN)
    with pytest.raises(SchemaError, match=r"the table has no column 'fraud'"):
        read_labels(table({}), schema)
    with pytest.raises(SchemaError, match="label 'fraud' holds 'perhaps'; expected 0 and 1, or true and false"):
        read_labels(pl.DataFrame({"fraud": ["1", "perhaps"]}), schema)


RESULT = pl.DataFrame({"row": [1, 2], "rows": [[1, 2], []], "reasons": [["a", "b"], None], "p": [0.5, None]})


def test_tables_are_written_by_suffix(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.ndjson", "x.jsonl", "x.CSV"):
        assert write_table(RESULT, tmp_path / name) == tmp_path / name
    assert pl.read_parquet(tmp_path / "x.parquet").equals(RESULT)
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == RESULT.to_dicts()
    assert (tmp_path / "x.CSV").read_text() == 'row,rows,reasons,p\n1,1; 2,a; b,0.5\n2,"",,\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.CSV", "x.jsonl", "x.ndjson", "x.parquet"]


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_table(RESULT, tmp_path / "x.csv")
    before = path.read_bytes()
    unwritable = pl.DataFrame({"a": [{"b": 1}]})
    with pytest.raises(pl.exceptions.PolarsError):
        write_table(unwritable, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.csv"]


def test_unknown_suffixes_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ParameterError, match="is a folder; name a file"):
        write_table(RESULT, tmp_path / "folder.csv")
    assert check_target(str(tmp_path / "x.csv")) == tmp_path / "x.csv"
    with pytest.raises(ParameterError, match=r"written as \.parquet, \.csv, \.ndjson, \.jsonl; got suffix '\.xlsx'"):
        write_table(RESULT, tmp_path / "x.xlsx")
    with pytest.raises(ParameterError, match="there is no folder"):
        write_table(RESULT, tmp_path / "none" / "x.csv")


def test_an_event_without_an_entity_in_a_further_view_is_no_reject() -> None:
    table = pl.DataFrame(
        {
            "at": [4, 3, 2, 1, 0],
            "card": ["a", "b", "a", None, "b"],
            "shop": ["x", None, "y", "x", "x"],
            "bank": list("pqppq"),
        }
    )
    schema = Schema(time="at", entity=("card", ("bank", "shop")), categorical=("shop", "card"))
    read = read_events(table, schema)
    assert read.rejects.select("row", "reason").rows() == [(3, "card is missing: every event needs an entity")]
    assert read.frame.select("row", "entity", "e:bank+shop").rows() == [
        (2, "a", "p\x1fy"),
        (0, "a", "p\x1fx"),
        (4, "b", "q\x1fx"),
        (1, "b", None),
    ]
    assert "bank+shop is missing in 1 event" in read.notes
    first, second = (read.seen_by(view) for view in schema.views)
    assert first.frame.select("row", "entity").rows() == [(2, "a"), (0, "a"), (4, "b"), (1, "b")]
    assert second.frame.select("row", "entity", "c:card").rows() == [
        (0, "p\x1fx", "a"),
        (2, "p\x1fy", "a"),
        (4, "q\x1fx", "b"),
    ]
    assert len(read) + len(read.rejects) == read.n_input == second.n_input
