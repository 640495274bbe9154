"""Where tables come from: files, folders, databases and frames, all as lazy polars frames, text left as text.

A source is one of

- a path, a glob (``data/2024-*.csv``), a folder (all known files below it, with hive partitions ``day=2024-01-01`` as
  columns), or a list of these;
- a database URI (``sqlite:///events.db``, ``postgresql://user:password@host/db``) together with a query;
- a polars DataFrame or LazyFrame, a pandas DataFrame, or anything that speaks Arrow.

Files are known by their suffix (`SUFFIXES`). They are read in the order of their sorted paths, each as one `Part`; a
list keeps its own order. CSV and NDJSON values stay text: what a number or a time is, and what becomes of a bad one, is
decided in one place, `anomaly.values`.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import polars as pl

from anomaly.errors import AnomalyError, InputError, ParameterError

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""Known files. CSV and NDJSON may also be packed: ``.csv.gz``, ``.jsonl.gz``."""

DELIMITERS = (",", ";", "\t", "|")
HEAD_BYTES = 65_536
HEAD_LINES = 10_000  # lines of NDJSON in which its keys are looked for
OVERFLOW = "\x1foverflow"  # inner column: what a CSV line holds beyond the header
BROKEN = "\x1fbroken"  # inner column: the line is no JSON object


@dataclass(frozen=True)
class Part:
    """One table of a source.

    Attributes
    ----------
    name : str
        What messages call it; never holds a password.
    frame : polars.LazyFrame
        Its rows, in order; may have inner columns whose names start with U+001F.
    columns : tuple of str
        The user's columns.
    faults : tuple of (expression, reason)
        Faults of whole lines, found while reading.
    lossy : bool
        Whether U+FFFD stands for bytes that are no text.
    careful : callable, optional
        Reads the same part more slowly, where the quick way stops at a broken line.
    """

    name: str
    frame: pl.LazyFrame
    columns: tuple[str, ...]
    faults: tuple[tuple[pl.Expr, str], ...] = ()
    lossy: bool = False
    careful: Callable[[], Part] | None = None


def scan(source: Any, query: str | None = None) -> pl.LazyFrame:
    """All rows of a source as one lazy frame; nothing is read before it is collected.

    Parameters
    ----------
    source : path, list of paths, database URI, or frame
        See the top of this module.
    query : str, optional
        SQL, for a database URI.

    Raises
    ------
    InputError
        If there is no such file, or it cannot be read.
    ParameterError
        If the source is of an unknown kind, or a database comes without a query.
    """
    parts, _ = open_parts(source, query)
    frames = [part.frame.select(part.columns) for part in parts]
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")


def source_columns(source: Any, query: str | None = None) -> list[str]:
    """The columns of a source, in order of appearance over its files."""
    parts, _ = open_parts(source, query)
    return list(dict.fromkeys(name for part in parts for name in part.columns))


def read_head(source: Any, query: str | None = None, *, rows: int = HEAD_LINES) -> pl.DataFrame:
    """The first rows of a source, of its first file that has any, e.g. for `anomaly.schema.infer_schema`.

    Raises
    ------
    InputError
        As for `scan`, and if there is no row.
    """
    parts, _ = open_parts(source, query)
    for part in parts:
        head = collect(part, lambda part: part.frame.select(part.columns).head(rows))
        if head.height:
            return head
    raise InputError(f"{', '.join(part.name for part in parts)}: no rows; a header alone is not enough")


def collect(part: Part, plan: Callable[[Part], pl.LazyFrame]) -> pl.DataFrame:
    """Runs a plan on a part, the careful way if the quick one stops at a broken line.

    Raises
    ------
    InputError
        If the part cannot be read at all.
    """
    try:
        return plan(part).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        if part.careful is not None:
            return collect(part.careful(), plan)
        raise InputError(f"{part.name}: cannot be read ({_first_line(error)})") from None


def open_parts(source: Any, query: str | None = None) -> tuple[list[Part], tuple[str, ...]]:
    """The parts of a source in reading order, and notes on what was skipped."""
    if isinstance(source, str) and "://" in source:
        return [_database(source, query)], ()
    if query is not None:
        raise ParameterError(f"a query needs a database URI such as sqlite:///events.db; the source is {_kind(source)}")
    if isinstance(source, str | Path) or (isinstance(source, list | tuple) and source):
        return _file_parts([source] if isinstance(source, str | Path) else list(source))
    frame = _frame(source)
    return [Part("the table", frame, tuple(_names(frame, "the table")))], ()


def _kind(source: Any) -> str:
    return f"of type {type(source).__module__}.{type(source).__qualname__}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _names(frame: pl.LazyFrame, name: str) -> list[str]:
    try:
        return frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{name}: cannot be read ({_first_line(error)})") from None


# --- frames -----------------------------------------------------------------------------------------------------------


def _frame(source: Any) -> pl.LazyFrame:
    if isinstance(source, pl.LazyFrame):
        return source
    if isinstance(source, pl.DataFrame):
        return source.lazy()
    if type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns"):
        return _from_pandas(source).lazy()
    if hasattr(source, "__arrow_c_stream__") or hasattr(source, "__arrow_c_array__"):
        return pl.DataFrame(source).lazy()
    raise ParameterError(
        f"no table can be read from a source {_kind(source)}; expected a path, a glob, a folder, a list of these, a "
        "database URI with query=, a polars or pandas DataFrame, or an Arrow table"
    )


def _from_pandas(frame: Any) -> pl.DataFrame:
    """A pandas frame without its index. A column of mixed Python objects becomes text, to be parsed value by value."""
    columns = {}
    for position, name in enumerate(frame.columns):
        series = frame.iloc[:, position]
        if str(name) in columns:
            raise InputError(f"the pandas table has two columns {str(name)!r}: rename one")
        try:
            columns[str(name)] = pl.from_pandas(series)
        except (TypeError, ValueError, pl.exceptions.PolarsError):
            columns[str(name)] = pl.from_pandas(series.astype("string"))
    return pl.DataFrame(columns)


# --- databases --------------------------------------------------------------------------------------------------------


def _database(uri: str, query: str | None) -> Part:
    scheme, rest = uri.split("://", 1)
    shown = _without_password(uri)
    if query is None or not query.strip():
        raise ParameterError(f'{shown}: a database needs a query, e.g. query="SELECT * FROM events"')
    if scheme == "sqlite":
        path = Path(rest if Path(rest).exists() else rest.removeprefix("/"))
        if not path.is_file():
            raise InputError(f"{shown}: there is no database file {path}")
        uri = f"sqlite://{path.resolve()}"
    try:
        frame = pl.read_database_uri(query, uri, engine="connectorx")
    except ImportError:
        raise InputError(f"{shown}: reading databases needs the extra: pip install 'anomaly[sql]'") from None
    except Exception as error:  # connectorx raises bare RuntimeErrors, and some quote the URI
        told = _first_line(error).replace(uri, shown)
        for secret in _passwords(uri):
            told = told.replace(secret, "***")
        raise InputError(
            f"{shown}: the query failed ({told}). If it is about the type of a value, let the query cast the column to "
            "text: CAST(amount AS TEXT) AS amount"
        ) from None
    return Part(shown, frame.lazy(), tuple(frame.columns))


def _passwords(uri: str) -> list[str]:
    """The passwords of a URI, as written and decoded: before the host, or among the options behind it."""
    credentials = uri.split("://", 1)[1].rpartition("@")[0]
    found = [credentials.partition(":")[2], *re.findall(r"(?i)passw(?:or)?d=([^&]*)", uri)]
    return sorted({form for word in found for form in (word, unquote(word))} - {""}, key=len, reverse=True)


def _without_password(uri: str) -> str:
    """The URI as messages may show it: no password, and none of the options, which may hold one too."""
    scheme, rest = uri.split("://", 1)
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{colon and ':***'}{at}{place.partition('?')[0]}"


# --- files ------------------------------------------------------------------------------------------------------------


def _file_parts(items: list[Any]) -> tuple[list[Part], tuple[str, ...]]:
    paths = [path for item in items for path in _expand(item)]
    unique = list(dict.fromkeys(paths))
    filled = [path for path in unique if path.stat().st_size > 0]
    if not filled:
        raise InputError(f"{', '.join(str(path) for path in unique[:5])}: empty, not even a header")
    notes = []
    if len(unique) < len(paths):
        notes.append(f"files named more than once are read once ({len(paths) - len(unique)} repeats)")
    if len(filled) < len(unique):
        notes.append(f"files without a byte are skipped ({len(unique) - len(filled)})")
    return [_file(path) for path in filled], tuple(notes)


def _expand(item: Any) -> list[Path]:
    """The files of one path, glob or folder, sorted."""
    if not isinstance(item, str | Path):
        raise ParameterError(f"a list of sources holds paths only; found one {_kind(item)}: read or join it first")
    path = Path(item).expanduser()
    if path.is_dir():
        if found := _below(path):
            return sorted(found)
        raise InputError(f"{path}: no known files in this folder; known are {', '.join(SUFFIXES)}")
    if path.is_file():
        return [path]
    if not _is_pattern(str(path)):
        raise InputError(f"{path}: no such file or folder")
    fixed = Path(*takewhile(lambda step: not _is_pattern(step), path.parts))
    matches = [match for match in fixed.glob(str(path.relative_to(fixed))) if _visible(match, fixed)]
    if files := {file for match in matches for file in ([match] if match.is_file() else _below(match))}:
        return sorted(files)
    raise InputError(f"{path}: no file matches")


def _below(folder: Path) -> list[Path]:
    """All known files in a folder and its folders."""
    files = (path for path in folder.rglob("*") if path.is_file() and _visible(path, folder))
    return [path for path in files if _format(path)]


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _visible(path: Path, folder: Path) -> bool:
    """Whether nothing below the folder is hidden; files like `_SUCCESS` are marks left by other programs."""
    return not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def _format(path: Path) -> str | None:
    packed = path.suffix == ".gz"
    suffix = (Path(path.stem).suffix if packed else path.suffix).lower()
    kind = SUFFIXES.get(suffix)
    return None if packed and kind not in ("csv", "ndjson") else kind


def _file(path: Path) -> Part:
    readers = {"parquet": _parquet, "csv": _csv, "ndjson": _ndjson, "arrow": _arrow}
    kind = _format(path)
    if kind is None:
        raise InputError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)} (CSV and NDJSON also as .gz)")
    try:
        part = readers[kind](path)
    except AnomalyError:
        raise
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)})") from None
    return _with_partitions(part, path)


def _with_partitions(part: Part, path: Path) -> Part:
    """Adds the columns that hive folders state in their names, e.g. ``country=FR/day=2024-01-01/part.parquet``."""
    steps = [step.split("=", 1) for step in path.parts[:-1] if "=" in step]
    stated = {name: unquote(value) for name, value in steps if name not in part.columns}
    if not stated:
        return part
    literals = [
        pl.lit(None if value == "__HIVE_DEFAULT_PARTITION__" else value, pl.String).alias(name)
        for name, value in stated.items()
    ]
    careful = part.careful
    return replace(
        part,
        frame=part.frame.with_columns(literals),
        columns=(*part.columns, *stated),
        careful=None if careful is None else lambda: _with_partitions(careful(), path),
    )


def _parquet(path: Path) -> Part:
    frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    return Part(str(path), frame, tuple(frame.collect_schema().names()))


def _arrow(path: Path) -> Part:
    """An Arrow file, or what is often called one: an Arrow stream."""
    try:
        frame = pl.scan_ipc(path, glob=False, hive_partitioning=False)
        return Part(str(path), frame, tuple(frame.collect_schema().names()))
    except pl.exceptions.PolarsError:
        table = pl.read_ipc_stream(path)
        return Part(str(path), table.lazy(), tuple(table.columns))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _csv(path: Path) -> Part:
    with _open(path) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise InputError(f"{path}: not UTF-8 text (UTF-16?): save it as UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
    delimiter = sniff_delimiter(head.decode("utf-8", errors="replace"), whole=len(head) < HEAD_BYTES)
    known: dict[str, Any] = {
        "separator": delimiter,
        "encoding": "utf8-lossy",
        "glob": False,
        "truncate_ragged_lines": True,
    }
    names = pl.scan_csv(path, infer_schema=False, **known).collect_schema().names()
    # One column more than the header has: a line that fills it has shifted values, and must not pass for a good one.
    schema = dict.fromkeys([*names, OVERFLOW], pl.String())
    frame = pl.scan_csv(path, schema=schema, missing_columns="insert", **known)
    overflow = (pl.col(OVERFLOW).is_not_null(), f"the line has more than the header's {len(names)} fields")
    return Part(str(path), frame, tuple(names), (overflow,), lossy=True)


def sniff_delimiter(head: str, *, whole: bool = True) -> str:
    r"""The delimiter of a CSV file, from its first lines: the one that gives the most even rows.

    Parameters
    ----------
    head : str
        The start of the file.
    whole : bool
        Whether that is the whole file; otherwise the last line is cut off and does not count.

    Examples
    --------
    >>> sniff_delimiter("time;amount;note\n2024-01-01;1,50;a, b\n2024-01-02;2,50;\n")
    ';'
    """
    lines = head.splitlines()
    lines = lines[: len(lines) if whole or len(lines) == 1 else -1][:100]
    best, best_score = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        widths = [len(row) for row in _rows(lines, delimiter) if row]
        if widths and widths[0] > 1:
            even = sum(width == widths[0] for width in widths) / len(widths)
            best, best_score = max(
                (best, best_score), (delimiter, (round(even, 1), widths[0])), key=lambda pair: pair[1]
            )
    return best


def _rows(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines, delimiter=delimiter)
    except csv.Error:  # a field beyond the reader's limit: what was read so far has to do
        return


def _ndjson(path: Path) -> Part:
    with _open(path) as file:
        head = list(islice(file, HEAD_LINES))
    keys: dict[str, None] = {}
    for line in head:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        keys.update(dict.fromkeys(record if isinstance(record, dict) else ()))
    if not keys:
        raise InputError(f'{path}: no JSON object in its first lines; expected one object per line, as in {{"id": 1}}')
    names = list(keys)
    frame = pl.scan_ndjson(path, schema=dict.fromkeys(names, pl.String()))
    return Part(str(path), frame, tuple(names), careful=lambda: _careful_ndjson(path, names))


def _careful_ndjson(path: Path, names: list[str]) -> Part:
    """Reads line by line, so that a broken line costs that line only; NaN, which is no JSON, is read as null."""
    line = pl.col("line")
    frame = pl.scan_lines(path, glob=False).filter(line.str.strip_chars() != "")
    valid = line.str.json_path_match("$").is_not_null()
    repaired = line.str.replace_all(r":\s*NaN\b", ": null")
    frame = frame.with_columns(pl.when(valid).then(line).otherwise(repaired).alias("line"))
    root = line.str.json_path_match("$")
    broken = (root.is_null() | ~root.str.starts_with("{")).alias(BROKEN)
    values = [line.str.json_path_match(f"$[{json.dumps(name, ensure_ascii=False)}]").alias(name) for name in names]
    return Part(
        str(path),
        frame.select(*values, broken),
        tuple(names),
        ((pl.col(BROKEN), "the line is not a JSON object"),),
    )
