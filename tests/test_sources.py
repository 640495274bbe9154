from __future__ import annotations

import gzip
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from anomaly.errors import InputError, ParameterError
from anomaly.sources import SUFFIXES, open_parts, read_head, scan, sniff_delimiter, source_columns

TABLE = pl.DataFrame({"at": ["2024-01-01", "2024-01-02"], "card": ["a", "b"], "amount": [1.5, 2.0]})
AS_TEXT = [("2024-01-01", "a", "1.5"), ("2024-01-02", "b", "2.0")]
NAMES = ["at", "card", "amount"]


def write(frame: pl.DataFrame, path: Path) -> Path:
    """The frame as a file of the kind that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.suffix == ".gz"
    kind = SUFFIXES[Path(path.stem).suffix if packed else path.suffix]
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "arrow":
        frame.write_ipc(path)
    else:
        text = frame.write_csv() if kind == "csv" else frame.write_ndjson()
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def texts(frame: pl.LazyFrame) -> list[tuple[str, ...]]:
    return frame.select(pl.all().cast(pl.String)).collect().rows()


@pytest.mark.parametrize("name", [*(f"x{suffix}" for suffix in SUFFIXES), "x.csv.gz", "x.jsonl.gz"])
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = write(TABLE, tmp_path / name)
    for source in (path, str(path), [path]):
        rows = texts(scan(source))
        assert [(at, card, float(amount)) for at, card, amount in rows] == TABLE.rows()
        assert source_columns(source) == NAMES
    assert read_head(path, rows=1).height == 1


def test_text_files_are_read_as_text(tmp_path: Path) -> None:
    frame = scan(write(TABLE, tmp_path / "x.csv"))
    assert set(frame.collect_schema().dtypes()) == {pl.String()}
    (tmp_path / "y.jsonl").write_text('{"a": 1, "b": "x"}\n\n{"a": "oops", "b": true}\n{"b": null}\n', encoding="utf-8")
    assert scan(tmp_path / "y.jsonl").collect().rows() == [("1", "x"), ("oops", "true"), (None, None)]


def test_an_arrow_stream_is_read_like_an_arrow_file(tmp_path: Path) -> None:
    TABLE.write_ipc_stream(tmp_path / "x.arrow")
    assert scan(tmp_path / "x.arrow").collect().equals(TABLE)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    text = "\n".join(delimiter.join(row) for row in [NAMES, *AS_TEXT])
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    assert texts(scan(tmp_path / "x.csv")) == AS_TEXT


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("a;b\n1,5;2,5\n1,7;2\n", ";"),
        ("a,b\n1;5,2\n", ","),
        ('a|b\n"x,y,z"|1\n', "|"),
        ("value\n1\n2\n", ","),
        ("", ","),
        ("a;b\n1;2\n1;", ";"),
    ],
)
def test_the_delimiter_is_the_one_of_even_rows(head: str, expected: str) -> None:
    assert sniff_delimiter(head, whole=False) == expected


def test_a_byte_order_mark_windows_line_ends_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffat;card\r\n2024-01-01;"a ""b""\r\nc;d"\r\n'.encode())
    assert texts(scan(path)) == [("2024-01-01", 'a "b"\r\nc;d')]


def test_a_glob_is_read_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    for day in (2, 10, 1):
        write(pl.DataFrame({"day": [day]}), tmp_path / f"{day:02}.csv")
    write(pl.DataFrame({"day": [99]}), tmp_path / "other.parquet")
    assert scan(str(tmp_path / "*.csv")).collect()["day"].to_list() == ["1", "2", "10"]
    assert scan([tmp_path / "10.csv", tmp_path / "0*.csv"]).collect()["day"].to_list() == ["10", "1", "2"]


def test_a_folder_is_read_with_its_hive_partitions(tmp_path: Path) -> None:
    write(pl.DataFrame({"x": [3]}), tmp_path / "t" / "country=FR" / "day=2024-01-02" / "a.parquet")
    write(pl.DataFrame({"x": [1]}), tmp_path / "t" / "country=D%C3%A9" / "day=2024-01-01" / "b.parquet")
    write(pl.DataFrame({"x": [2]}), tmp_path / "t" / "country=__HIVE_DEFAULT_PARTITION__" / "a.parquet")
    (tmp_path / "t" / "_SUCCESS").touch()
    (tmp_path / "t" / ".hidden.parquet").write_text("no table", encoding="utf-8")
    (tmp_path / "t" / "readme.md").write_text("not a table", encoding="utf-8")
    table = scan(tmp_path / "t").collect().sort("x")
    assert table["country"].to_list() == ["Dé", None, "FR"]
    assert table["day"].to_list() == ["2024-01-01", None, "2024-01-02"]
    assert scan(tmp_path / "t" / "country=*" / "*").collect().height == 3
    assert scan(tmp_path / "t" / "**" / "*.parquet").collect().height == 3
    assert scan(tmp_path / "t" / "country=FR" / "day=2024-01-02" / "a.parquet").collect()["country"].item() == "FR"


def test_partitions_hold_in_the_careful_reading_too(tmp_path: Path) -> None:
    path = tmp_path / "t" / "day=1" / "a.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"a": 1}\n{broken\n', encoding="utf-8")
    assert read_head(tmp_path / "t").rows() == [("1", "1"), (None, "1")]


def test_files_named_twice_are_read_once_and_empty_ones_skipped_with_a_note(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "a.csv")
    (tmp_path / "b.csv").touch()
    parts, notes = open_parts([path, tmp_path / "*.csv"])
    assert [part.name for part in parts] == [str(path)]
    assert notes == ("files named more than once are read once (1 repeats)", "files without a byte are skipped (1)")


def test_files_of_different_kinds_and_columns_make_one_table(tmp_path: Path) -> None:
    paths = [write(TABLE, tmp_path / "a.csv"), write(TABLE.with_columns(more=pl.lit(1)), tmp_path / "b.parquet")]
    assert source_columns(paths) == [*NAMES, "more"]
    assert scan(paths).collect()["more"].to_list() == [None, None, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none.csv", "no such file or folder"),
        (lambda path: path / "*.csv", "no file matches"),
        (lambda path: path, "no known files in this folder; known are .parquet"),
        (lambda path: (path / "x.xlsx").write_text("x") and path / "x.xlsx", "unknown kind of file; known are"),
        (lambda path: (path / "x.parquet.gz").write_text("x") and path / "x.parquet.gz", "unknown kind of file"),
        (lambda path: (path / "x.parquet").write_text("x") and path / "x.parquet", "cannot be read"),
        (lambda path: (path / "x.arrow").write_text("x" * 99) and path / "x.arrow", "cannot be read"),
        (lambda path: (path / "x.csv").touch() or path / "x.csv", "empty, not even a header"),
        (lambda path: (path / "x.csv").write_text("\n\n") and path / "x.csv", "cannot be read"),
        (lambda path: (path / "x.csv").write_text("a,b\n") and path / "x.csv", "no rows"),
        (lambda path: (path / "x.csv").write_bytes("a,b\n".encode("utf-16")) and path / "x.csv", "not UTF-8 text"),
        (lambda path: (path / "x.csv.gz").write_text("plain") and path / "x.csv.gz", "cannot be read"),
        (lambda path: (path / "x.csv.gz").write_bytes(gzip.compress(b"")) and path / "x.csv.gz", "cannot be read"),
        (lambda path: (path / "x.jsonl").write_text("[1]\n") and path / "x.jsonl", "no JSON object in its first lines"),
        (lambda _: pl.LazyFrame({"a": [1]}).select("b"), "the table: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_head(make(tmp_path))


@pytest.mark.parametrize("source", [42, None, [], {"a": [1]}, b"bytes", [TABLE], [42]])
def test_other_sources_are_refused_with_what_is_expected(source: Any) -> None:
    with pytest.raises(ParameterError, match=r"expected a path, a glob, a folder|a list of sources holds paths only"):
        scan(source)


@pytest.mark.parametrize(
    "source",
    [TABLE, TABLE.lazy(), TABLE.to_arrow(), TABLE.to_arrow().to_batches()[0], TABLE.to_pandas()],
    ids=["polars", "lazy", "arrow", "batch", "pandas"],
)
def test_frames(source: Any) -> None:
    assert scan(source).collect().equals(TABLE)


def test_pandas_without_its_index_and_with_mixed_objects() -> None:
    frame = pd.DataFrame({"a": [1.5, None], "mixed": ["1,5", 2]}, index=[7, 8])
    frame["when"] = pd.to_datetime(pd.Series(["2024-01-01", None], index=frame.index))
    table = scan(frame).collect()
    assert table.columns == ["a", "mixed", "when"]
    assert table["a"].to_list() == [1.5, None]
    assert table["mixed"].to_list() == ["1,5", "2"]
    assert table["when"].null_count() == 1
    with pytest.raises(InputError, match="two columns 'a'"):
        scan(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_arrow_tables_keep_their_types() -> None:
    table = pa.table({"a": pa.array(["x", None]).dictionary_encode(), "n": pa.array([1, None], pa.int8())})
    assert scan(table).collect().rows() == [("x", 1), (None, None)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "events.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE events (at TEXT, card TEXT, amount REAL, note)")
        rows = [("2024-01-01", "a", 1.5, "x"), ("2024-01-02", "b", 2.0, 7)]
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    return path


def test_sqlite(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = "SELECT at, card, amount FROM events ORDER BY at"
    monkeypatch.chdir(database.parent)
    for uri in (f"sqlite://{database}", f"sqlite:///{database}", "sqlite:///events.db", "sqlite://events.db"):
        assert scan(uri, query).collect().equals(TABLE)
    assert source_columns(f"sqlite://{database}", query) == NAMES


def test_faults_of_a_database_say_what_to_do(database: Path) -> None:
    with pytest.raises(ParameterError, match=r'a database needs a query, e.g. query="SELECT'):
        scan(f"sqlite://{database}")
    with pytest.raises(InputError, match=r"the query failed .*no such table: absent"):
        scan(f"sqlite://{database}", "SELECT * FROM absent")
    with pytest.raises(InputError, match=r"let the query cast the column to text: CAST\(amount AS TEXT\)"):
        scan(f"sqlite://{database}", "SELECT note FROM events")
    assert scan(f"sqlite://{database}", "SELECT CAST(note AS TEXT) AS note FROM events").collect().height == 2
    missing = database.with_name("other.db")
    with pytest.raises(InputError, match="there is no database file"):
        scan(f"sqlite://{missing}", "SELECT 1")
    assert not missing.exists()


def test_a_query_needs_a_database() -> None:
    with pytest.raises(ParameterError, match="a query needs a database URI such as"):
        scan(TABLE, "SELECT 1")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://joe:s3cr%40t@localhost:port/db",
        "postgresql://joe:s3cr@t@localhost:port/db",
        "postgresql://joe:s3cr%40t@[::1/db?password=s3cr@t",
        "nodatabase://joe:s3cr%40t@localhost/db?password=s3cr%40t",
    ],
)
def test_no_password_is_ever_shown(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        scan(uri, "SELECT 1")
    told = str(caught.value)
    assert "s3cr" not in told
    assert told.startswith(f"{uri.split(':')[0]}://joe:***@")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
