"""What the verbs of the command line read, checked before the work begins; notes go to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly.errors import InputError, ParameterError
from anomaly.verbs import note, settled

if TYPE_CHECKING:
    import polars as pl

    from anomaly.detector import Detector
    from anomaly.ingest import Events
    from anomaly.schema import Schema

TOLD_REJECTS = 3  # kinds of reasons shown in the terminal


def source_of(
    events: Sequence[str], query: str | None, *, reads: Iterable[Path] = (), writes: Iterable[Path | None] = ()
) -> str | list[str]:
    """What to read, after a check that nothing that is read will be written over."""
    databases = [name for name in events if "://" in name]
    if databases and len(events) > 1:
        raise ParameterError("a database is read alone: give either one database or files")
    if query is not None and not databases:
        raise ParameterError(f"--query needs a database, such as sqlite:///events.db; {events[0]} is none")
    inputs = {Path(name).resolve() for name in events} | {path.resolve() for path in reads}
    for path in writes:
        if path is not None and path.resolve() in inputs:
            raise ParameterError(f"{path} is read here and would be overwritten; give another name")
    return events[0] if len(events) == 1 else list(events)


def check_report_files(scores: Path | None, out: Path, alerts: Path | None) -> None:
    """Refuse what could not be read or written, before the work begins."""
    from anomaly.ingest import check_target
    from anomaly.report import check_report

    if out.is_dir():
        raise ParameterError(f"--out {out} is a folder; name the file of the page, such as {out / 'report.html'}")
    if alerts is not None:
        check_target(alerts)
    check_report(out)
    check_scores(scores)


def check_scores(scores: Path | None) -> None:
    """Refuse a missing score table before the work begins."""
    if scores is not None and not scores.is_file():
        raise InputError(f"--scores {scores}: no such file; `anomaly score` writes one")


def seconds_of(option: str, text: str | None) -> float | None:
    """Seconds since 1970 of an option's time."""
    from anomaly.history import as_seconds

    try:
        return as_seconds(text)
    except ParameterError as error:
        raise ParameterError(f"{option}: {error}") from None


def read_events_told(
    source: str | list[str], schema: Schema, query: str | None, wait: Callable[[], Any] = lambda: None
) -> Events:
    """Read events, wait for what else is done meanwhile, and tell on standard error what is worth telling."""
    from anomaly.ingest import read_events

    read = read_events(source, schema, query=query)
    wait()
    settled()
    if not len(read):
        raise InputError(f"none of the {read.n_input:,} rows can be read; the first one: {read.rejects['reason'][0]}")
    tell_rejects(read.rejects, read.notes)
    return read


def made(schema: Schema, options: Mapping[str, Any]) -> Detector:
    """Return an unfitted detector, of one view or of several."""
    from anomaly.views import make_detector

    detector = make_detector(schema, **options)
    settled()
    return detector


def loaded(folder: Path) -> Detector:
    """Return a saved detector."""
    from anomaly.views import load_detector

    detector = load_detector(folder)
    settled()
    return detector


def read_beside(
    make: Callable[[], Detector], source: str | list[str], schema: Schema, query: str | None
) -> tuple[Detector, Events]:
    """Make or load a detector while its events are read: that is mostly to import torch, which leaves a core idle."""
    import anomaly.ingest  # noqa: F401 - by one thread, before there are two

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make)
        read = read_events_told(source, schema, query, making.result)
    return making.result(), read


def tell_rejects(table: pl.DataFrame, notes: Iterable[str]) -> None:
    """Tell on standard error what is worth telling of what was read, and the kinds of rows that were rejected."""
    from anomaly.digest import rejects

    for text in notes:
        note(f"note: {text}")
    kinds = rejects(table)
    for _, rows, example in kinds.head(TOLD_REJECTS).iter_rows():
        note(f"rejected: {rows:,} {'row' if rows == 1 else 'rows'} like {example}")
    if len(kinds) > TOLD_REJECTS:
        note(f"rejected: {kinds['rows'][TOLD_REJECTS:].sum():,} rows for other reasons")


def read_scores(path: Path, read: Events, detector: Detector, start: float | None) -> pl.DataFrame:
    """Read scores that `anomaly score` wrote, and check that they are scores of these events by this detector."""
    import polars as pl

    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"--scores {path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
    schema = detector.schema
    needed = ["row", "time", "p_value", "score", "surprise", "status", *schema.key, *schema.categorical]
    needed += [field.name for field in schema.numeric]
    needed += [f"field:{column.name}" for column in detector.models_[-1].fields.columns]
    if missing := [name for name in needed if name not in table.columns]:
        raise InputError(f"--scores {path}: no column {', '.join(missing)}; score again with this detector")
    _check_same_events(path, table, read)
    return table if start is None else table.filter(pl.col("time").dt.epoch("us") >= start * 1e6)


def _check_same_events(path: Path, scores: pl.DataFrame, read: Events) -> None:
    import polars as pl

    time = pl.from_epoch((pl.col("time") * 1e6).round().cast(pl.Int64), time_unit="us").dt.replace_time_zone("UTC")
    known = read.frame.select("row", read=time)
    both = scores.select("row", "time").join(known, on="row", how="left")
    strange = both.filter(pl.col("read").is_null() | (pl.col("read") != pl.col("time")) | pl.col("row").is_duplicated())
    if len(strange):
        row, scored, found = strange.row(0)
        there = "no accepted event" if found is None else f"of {found:%Y-%m-%d %H:%M:%S}"
        raise InputError(
            f"--scores {path}: row {row} was scored as an event of {scored:%Y-%m-%d %H:%M:%S}, but in the events given "
            f"it is {there}; give the same events in the same order, or score again"
        )
