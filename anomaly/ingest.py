"""Tables -> canonical events, plus the rejected rows with their reasons.

Every row of the input is accepted or rejected, never lost: the two counts add up to the input. A missing number,
category or place is no reason to reject: the event is kept, its field is null, and scoring calls it incomplete.

The canonical frame has one row per accepted event, sorted by (entity, time, row):

| column | type | what |
|---|---|---|
| ``row`` | Int64 | position in the input, from 0, over all files in the order they were read |
| ``entity`` | String | key of the first view; several columns are joined by U+001F; "" without an entity column |
| ``time`` | Float64 | seconds since 1970-01-01 UTC |
| ``clock`` | Float64 | the same on the wall clock of the schema's time zone, for hour and weekday |
| ``event_id`` | String | null where there is none |
| ``n:<field>`` | Float64 | a number; null = missing; never NaN, never infinite |
| ``c:<field>`` | String | a category; null = missing |
| ``p:latitude``, ``p:longitude`` | Float64 | degrees; only if the schema has a place |
| ``e:<view>`` | String | key of a further view, see `Events.seen_by`; null = the event is none of its entities' |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from anomaly.columns import Column, all_reasons, any_fault, number_column, text_column, time_column
from anomaly.errors import InputError, ParameterError, SchemaError
from anomaly.files import whole_file
from anomaly.schema import Schema, check_columns
from anomaly.sources import Part, collect, open_parts
from anomaly.values import number_value, shown, text_value, time_value

__all__ = [
    "Events",
    "ParsedEvent",
    "check_target",
    "parse_event",
    "read_events",
    "read_labels",
    "utc_time",
    "write_table",
]

JOINER = "\x1f"  # between the columns of one entity key
VIEW = "e:"  # before the name of a further view
NO_ENTITY = "is missing: every event needs an entity"
JOINER_INSIDE = "holds the character U+001F, which joins the columns of an entity"
NOT_UTF8 = "the line holds bytes that are not UTF-8 (save the file as UTF-8)"
TABLE_SUFFIXES = (".parquet", ".csv", ".ndjson", ".jsonl")
_ROW, _BAD, _NAIVE, _AMBIGUOUS = "\x1frow", "\x1fbad", "\x1fnaive", "\x1fambiguous"
_NUMBER, _REASON = "\x1fnumber", "\x1freason"
EVENTS_EACH = 8  # of an entity, from which on it pays to number the entities before events are sorted
_YEAR_1980 = 315_532_800.0
BAD = _BAD
INNER = (_BAD, _NAIVE, _AMBIGUOUS)  # columns of what is read that the canonical frame has no more


@dataclass(frozen=True)
class Events:
    """What was read: the accepted events, the rejected rows, and what is worth telling.

    Attributes
    ----------
    schema : Schema
        The schema they were read with.
    frame : polars.DataFrame
        The canonical events, sorted by (entity, time, row).
    rejects : polars.DataFrame
        ``row``, ``reason``, and the columns in use as text, in input order. A user's own column ``row`` or ``reason``
        is called ``input:row`` or ``input:reason`` there.
    n_input : int
        Rows of the input; always ``len(frame) + len(rejects)``.
    notes : tuple of str
        Decisions that a reader should know, such as "12 times without an offset were read as UTC".
    """

    schema: Schema
    frame: pl.DataFrame
    rejects: pl.DataFrame
    n_input: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """How many events were accepted."""
        return self.frame.height

    @property
    def names(self) -> list[str]:
        """Keys of all entities, of every view."""
        columns = ["entity", *(f"{VIEW}{name}" for name in self.schema.view_names[1:])]
        return pl.concat([self.frame[name].drop_nulls().alias("entity") for name in columns]).unique().to_list()

    def seen_by(self, view: Schema) -> Events:
        """The events as one of the schema's views sees them: those that have an entity there, sorted by its entities.

        The rows stay those of the input. The counts of rejected rows are of the whole input: an event without an
        entity in a further view is no reject.
        """
        if view not in self.schema.views:
            raise SchemaError(f"Events: no view of their schema is {'+'.join(view.key) or 'the whole table'}")
        if view == self.schema:
            return self
        name = "entity" if view.key == self.schema.key else f"{VIEW}{'+'.join(view.key)}"
        others = [f"{VIEW}{one}" for one in self.schema.view_names[1:]]
        frame = self.frame.with_columns(pl.col(name).alias("entity")).drop(others).drop_nulls("entity")
        if name != "entity":
            frame = in_order(frame)
        return Events(view, frame, self.rejects, self.n_input, self.notes)


class ParsedEvent(NamedTuple):
    """One live event, parsed by the rules of the batch path.

    Attributes
    ----------
    entity : str
        Key of its entity, "" without an entity column.
    time, clock : float
        Seconds since 1970-01-01 UTC, and the same on the local wall clock.
    numeric : tuple of float
        Numbers in the order of the schema, NaN = missing.
    category : tuple of str or None
        Categories in the order of the schema, None = missing.
    latitude, longitude : float
        Degrees, NaN = missing.
    event_id : str or None
        Its name, if it has one.
    """

    entity: str
    time: float
    clock: float
    numeric: tuple[float, ...]
    category: tuple[str | None, ...]
    latitude: float
    longitude: float
    event_id: str | None


def read_events(source: Any, schema: Schema, *, query: str | None = None) -> Events:
    """Reads a table of events, and the rejected rows a second time, for their reasons.

    Parameters
    ----------
    source : path, glob, folder, list of these, database URI, or frame
        See `anomaly.sources`.
    schema : Schema
        Which column is what. The label is not read.
    query : str, optional
        SQL, for a database URI.

    Returns
    -------
    Events
        With ``len(events.frame) + len(events.rejects) == events.n_input``.

    Raises
    ------
    InputError
        If the source cannot be read or has no row.
    SchemaError
        If a column of the schema is missing, or of a type that cannot play its role.

    Examples
    --------
    A bad value costs its row, a missing one does not:

    >>> from anomaly.schema import NumericField
    >>> schema = Schema(time="at", entity=("card",), numeric=(NumericField(name="amount"),))
    >>> table = pl.DataFrame({
    ...     "at": ["2024-05-01 10:00", "2024-05-01T09:00:00+02:00", "soon", "2024-05-02"],
    ...     "card": ["a", "a", "a", "b"],
    ...     "amount": ["12.50", None, "3", "12,50"],
    ... })
    >>> events = read_events(table, schema)
    >>> events.frame.select("row", "entity", "time", "n:amount").rows()
    [(1, 'a', 1714546800.0, None), (0, 'a', 1714557600.0, 12.5)]
    >>> for row, reason in events.rejects.select("row", "reason").rows():
    ...     print(row, reason)
    2 at 'soon' is not a time (write it like 2024-12-31 23:59:59)
    3 amount '12,50' is not a number (with decimal = "," it would be one)
    >>> events.notes
    ('1 time without an offset was read as UTC', 'amount is missing in 1 event')
    """
    parts, notes = open_parts(source, query)
    for part in parts:
        check_columns(schema, part.columns, part.name)
    pieces, starts = [], [0]
    for part in parts:
        piece = collect(part, partial(canonical, schema=schema, start=starts[-1]))
        pieces.append(piece)
        starts.append(starts[-1] + piece.height)
    n_input = starts[-1]
    if n_input == 0:
        names = ", ".join(part.name for part in parts[:5])
        raise InputError(f"{names}: no rows, at most a header; expected at least one event")
    table = pl.concat(pieces)
    good = in_order(table.filter(~pl.col(_BAD)))
    repeated = repeats(good, schema)
    good = good.join(repeated, on="row", how="anti", maintain_order="left") if repeated.height else good
    bad = table.filter(_BAD).select("row", pl.lit(None, pl.String).alias("reason"))
    rejects = explained(pl.concat([bad, repeated]).sort("row"), parts, starts, schema)
    assert good.height + rejects.height == n_input, "every row is accepted or rejected"
    return Events(schema, good.drop(INNER), rejects, n_input, notes + notes_on([tally(good, schema)], rejects, schema))


def in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Canonical events sorted by entity, time and row, as one chunk."""
    names = table["entity"].unique().sort()
    if len(names) * EVENTS_EACH > len(table):
        return table.sort("entity", "time", "row").rechunk()
    # Texts are compared once for each entity, not for each event: four times as fast as to sort by all three.
    code = table["entity"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.min_scalar_type(len(names)))
    order = np.lexsort((table["row"].to_numpy(), table["time"].to_numpy(), code))
    return table.rechunk()[order]


@dataclass(frozen=True)
class _Plan:
    """How one part is read: its frame with intermediate columns, the canonical columns, and the faults."""

    frame: pl.LazyFrame
    outputs: tuple[pl.Expr, ...]
    columns: tuple[Column, ...]


def _plan(part: Part, frame: pl.LazyFrame, schema: Schema) -> _Plan:
    """Plans the reading of `frame`, which is the part's own or some rows of it."""
    types = part.frame.collect_schema()
    try:
        frame, time = time_column(frame, schema.time, types[schema.time], schema.time_zone, schema.time_unit)
        keys = [[text_column(name, types[name]) for name in key] for key in schema.keys]
        event_id = text_column(schema.event_id, types[schema.event_id]) if schema.event_id else pl.lit(None, pl.String)
        outputs = [
            (pl.concat_str(keys[0], separator=JOINER) if keys else pl.lit("")).alias("entity"),
            *(time.value.alias("time"), time.clock.alias("clock"), event_id.alias("event_id")),
        ]
        columns = [
            _line_faults(part, schema, types),
            time,
            *_entity_faults(schema, keys),
        ]
        for name, alias, low, high in _number_columns(schema):
            frame, column = number_column(frame, name, types[name], schema.decimal, low=low, high=high)
            columns.append(column)
            outputs.append(column.value.alias(alias))
        outputs += [text_column(name, types[name]).alias(f"c:{name}") for name in schema.categorical]
    except SchemaError as error:
        raise SchemaError(f"{part.name}: {error}") from None
    further = zip(schema.view_names[1:], keys[1:], strict=True)
    outputs += [pl.concat_str(texts, separator=JOINER).alias(f"{VIEW}{name}") for name, texts in further]
    outputs += [time.naive.alias(_NAIVE), time.ambiguous.alias(_AMBIGUOUS)]
    return _Plan(frame, tuple(outputs), tuple(columns))


def _number_columns(schema: Schema) -> list[tuple[str, str, float, float]]:
    """(column, canonical name, lowest, highest) of every number, the place last."""
    numbers = [(field.name, f"n:{field.name}", -math.inf, math.inf) for field in schema.numeric]
    if schema.place is not None:
        numbers.append((schema.place.latitude, "p:latitude", -90.0, 90.0))
        numbers.append((schema.place.longitude, "p:longitude", -180.0, 180.0))
    return numbers


def _line_faults(part: Part, schema: Schema, types: pl.Schema) -> Column:
    faults = [(where.fill_null(False), pl.lit(reason)) for where, reason in part.faults]
    texts = [name for name in schema.columns() if types[name] == pl.String]
    if part.lossy and texts:
        replaced = pl.any_horizontal(pl.col(name).str.contains("\ufffd", literal=True) for name in texts)
        faults.append((replaced.fill_null(False), pl.lit(NOT_UTF8)))
    return Column(pl.lit(None), tuple(faults))


def _entity_faults(schema: Schema, keys: list[list[pl.Expr]]) -> list[Column]:
    """Every event needs an entity in the first view; no part of a joint key may hold the joiner."""
    columns = []
    for number, (names, texts) in enumerate(zip(schema.keys, keys, strict=True)):
        for name, text in zip(names, texts, strict=True):
            faults = [(text.is_null(), pl.lit(f"{name} {NO_ENTITY}"))] if number == 0 else []
            if len(names) > 1:
                inside = text.str.contains(JOINER, literal=True).fill_null(False)
                faults.append((inside, pl.lit(f"{name} {JOINER_INSIDE}")))
            columns.append(Column(text, tuple(faults)))
    return columns


def canonical(part: Part, schema: Schema, start: int) -> pl.LazyFrame:
    """The canonical columns of a part whose first row has number `start`, and the `INNER` ones; no row is left out."""
    plan = _plan(part, part.frame.with_row_index(_ROW), schema)
    row = (pl.col(_ROW).cast(pl.Int64) + start).alias("row")
    return plan.frame.select(row, *plan.outputs, any_fault(plan.columns).alias(_BAD))


def repeats(good: pl.DataFrame, schema: Schema) -> pl.DataFrame:
    """(row, reason) of the events that repeat an earlier one. `good` is sorted by (entity, time, row)."""
    if schema.event_id is not None:
        keys = ["event_id"]
        named = good["event_id"]
        all_differ = named.n_unique() == len(named) - named.null_count() + (named.null_count() > 0)
        likely = good.lazy().select("row", *keys).filter(pl.col("event_id").is_not_null())
        likely = likely.filter(pl.lit(value=False) if all_differ else pl.col("event_id").is_duplicated())
        which = pl.concat_str(pl.lit(f": the same {schema.event_id} '"), pl.col("event_id"), pl.lit("'"))
        word = "duplicate of row "
    else:
        keys = [name for name in good.columns if name not in ("row", "clock", _BAD, _NAIVE, _AMBIGUOUS)]
        as_before = (pl.col("entity") == pl.col("entity").shift()) & (pl.col("time") == pl.col("time").shift())
        likely = good.lazy().select("row", *keys).filter(as_before | as_before.shift(-1))
        which, word = pl.lit(""), "exact duplicate of row "
    first = pl.col("row").min().over(keys)
    reason = pl.concat_str(pl.lit(word), first.cast(pl.String), which).alias("reason")
    return (
        likely.with_columns(reason, (pl.col("row") > first).alias("later"))
        .filter("later")
        .select("row", "reason")
        .collect()
    )


def explained(rows: pl.DataFrame, parts: list[Part], starts: list[int], schema: Schema) -> pl.DataFrame:
    """The rejected rows (row, reason or null), read once more for their reasons and their original values."""
    names = {name: f"input:{name}" if name in ("row", "reason") else name for name in schema.columns()}
    empty = {"row": pl.Int64(), "reason": pl.String(), **dict.fromkeys(names.values(), pl.String())}
    pieces = [pl.DataFrame(schema=empty)]
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        here = rows.filter(pl.col("row").is_between(start, stop, closed="left"))
        if here.height:
            piece = collect(part, partial(_originals, schema=schema, rows=here, start=start, names=names))
            if piece.height != here.height:
                raise InputError(f"{part.name}: changed while it was read; read it again when nothing writes to it")
            pieces.append(piece)
    return pl.concat(pieces)


def _originals(part: Part, schema: Schema, rows: pl.DataFrame, start: int, names: Mapping[str, str]) -> pl.LazyFrame:
    wanted = rows.lazy().select(
        (pl.col("row") - start).cast(pl.UInt32).alias(_ROW),
        pl.col("row").alias(_NUMBER),
        pl.col("reason").alias(_REASON),
    )
    plan = _plan(part, part.frame.with_row_index(_ROW).join(wanted, on=_ROW), schema)
    reason = pl.coalesce(_REASON, all_reasons(plan.columns)).alias("reason")
    texts = [pl.col(name).cast(pl.String).alias(alias) for name, alias in names.items()]
    return plan.frame.select(pl.col(_NUMBER).alias("row"), reason, *texts).sort("row")


def tally(good: pl.DataFrame, schema: Schema) -> dict[str, float]:
    """What `notes_on` needs of accepted events: counts, and the latest time; of no event, nothing."""
    if not good.height:
        return {}
    fields = {"event_id": schema.event_id} if schema.event_id else {}
    fields |= {name: name[2:] for name in good.columns if name[1:2] == ":"}
    found = {"naive": float(good[_NAIVE].sum()), "ambiguous": float(good[_AMBIGUOUS].sum())}
    found["latest"] = float(good["time"].max())  # type: ignore[arg-type]
    return found | {f"missing {told}": float(good[name].null_count()) for name, told in fields.items()}


def notes_on(tallies: Sequence[Mapping[str, float]], rejects: pl.DataFrame, schema: Schema) -> tuple[str, ...]:
    """What is worth telling of all accepted events, tallied in one piece or in several."""
    tallies = [one for one in tallies if one]
    if not tallies:
        return (f"no row was accepted; the first one was rejected because {rejects['reason'][0]}",)
    total = {name: int(sum(one[name] for one in tallies)) for name in tallies[0] if name != "latest"}
    notes = []
    if naive := total["naive"]:
        notes.append(f"{_count(naive, 'time', 'was', 'were', ' without an offset')} read as {schema.time_zone}")
    if twice := total["ambiguous"]:
        clocks = f" that {schema.time_zone} has twice when clocks go back"
        notes.append(f"{_count(twice, 'time', 'was', 'were', clocks)} read as the earlier one")
    if max(one["latest"] for one in tallies) < _YEAR_1980:
        notes.append("all times are before 1980: if they are no seconds since 1970, check time and time_unit")
    missing = {name.removeprefix("missing "): number for name, number in total.items() if name.startswith("missing ")}
    notes += [f"{told} is missing in {_count(number, 'event')}" for told, number in missing.items() if number]
    return tuple(notes)


def _count(number: int, noun: str, one: str = "", many: str = "", between: str = "") -> str:
    verb = one if number == 1 else many
    return f"{number:,} {noun}{'' if number == 1 else 's'}{between}{' ' + verb if verb else ''}"


def utc_time() -> pl.Expr:
    """Seconds of the canonical column ``time`` as a time in UTC."""
    return pl.from_epoch((pl.col("time") * 1e6).round().cast(pl.Int64), time_unit="us").dt.replace_time_zone("UTC")


def parse_event(event: Mapping[str, Any], schema: Schema) -> ParsedEvent:
    """Parses one live event by the rules of `read_events`, in plain Python.

    Parameters
    ----------
    event : mapping
        Values by column name, typed or as text. Other keys are ignored; an absent key is a missing value.
    schema : Schema
        Which column is what.

    Raises
    ------
    InputError
        With the same reason as in the rejects of `read_events`.

    Examples
    --------
    >>> from anomaly.schema import NumericField
    >>> schema = Schema(time="at", entity=("card",), numeric=(NumericField(name="amount"),), categorical=("shop",))
    >>> parse_event({"at": "2024-05-01T09:00:00+02:00", "card": 7, "amount": "1,234.50", "shop": "kiosk"}, schema)
    ParsedEvent(entity='7', time=1714546800.0, clock=1714546800.0, numeric=(1234.5,), category=('kiosk',), latitude=nan,
    longitude=nan, event_id=None)
    >>> parse_event({"at": None, "card": "7", "amount": "abc"}, schema)
    Traceback (most recent call last):
        ...
    anomaly.errors.InputError: at is missing: every event needs a time; amount 'abc' is not a number
    """
    faults: list[str] = []
    get = event.get
    time, clock = time_value(schema.time, get(schema.time), schema.time_zone, schema.time_unit, faults)
    names = schema.key
    keys = [_entity_key(name, get(name), len(names) > 1, faults) for name in names]
    numeric = tuple([number_value(field.name, get(field.name), schema.decimal, faults) for field in schema.numeric])
    latitude = longitude = math.nan
    if schema.place is not None:
        north, east = schema.place.latitude, schema.place.longitude
        latitude = number_value(north, get(north), schema.decimal, faults, low=-90.0, high=90.0)
        longitude = number_value(east, get(east), schema.decimal, faults, low=-180.0, high=180.0)
    if faults:
        raise InputError("; ".join(faults))
    category = tuple([text_value(get(name)) for name in schema.categorical])
    event_id = text_value(get(schema.event_id)) if schema.event_id is not None else None
    return ParsedEvent(JOINER.join(keys), time, clock, numeric, category, latitude, longitude, event_id)


def _entity_key(name: str, value: Any, joint: bool, faults: list[str]) -> str:
    text = text_value(value)
    if text is None:
        faults.append(f"{name} {NO_ENTITY}")
    elif joint and JOINER in text:
        faults.append(f"{name} {JOINER_INSIDE}")
    return text or ""


def read_labels(source: Any, schema: Schema, *, query: str | None = None) -> pl.DataFrame:
    """Reads the label column alone, for evaluation and the labelled baseline.

    Returns
    -------
    polars.DataFrame
        ``row`` Int64 as in the canonical frame, and ``label`` Boolean, null = unknown. True are numbers other than 0,
        and the words true, yes, y, t; false are 0 and false, no, n, f.

    Raises
    ------
    SchemaError
        If the schema names no label, the column is absent, or it holds another word.
    """
    if schema.label is None:
        raise SchemaError('the schema names no label; add label = "<column>" to read labels')
    only = Schema(time=schema.label)
    parts, _ = open_parts(source, query)
    pieces = []
    for part in parts:
        check_columns(only, part.columns, part.name)
        dtype = part.frame.collect_schema()[schema.label]
        text = text_column(schema.label, dtype).str.to_lowercase().alias("text")
        pieces.append(collect(part, partial(_selected, text=text)))
    said = pl.concat(pieces)["text"]
    number = said.cast(pl.Float64, strict=False)
    yes, no = (
        said.is_in(["true", "yes", "y", "t"]) | (number != 0),
        said.is_in(["false", "no", "n", "f"]) | (number == 0),
    )
    unknown = said.filter(said.is_not_null() & ~(yes | no).fill_null(False))
    if len(unknown):
        raise SchemaError(f"label {schema.label!r} holds '{shown(unknown[0])}'; expected 0 and 1, or true and false")
    label = pl.select(pl.when(yes.fill_null(False)).then(True).when(no.fill_null(False)).then(False)).to_series()
    return pl.DataFrame({"row": pl.int_range(len(said), eager=True), "label": label})


def _selected(part: Part, text: pl.Expr) -> pl.LazyFrame:
    return part.frame.select(text)


def write_table(frame: pl.DataFrame, path: str | Path) -> Path:
    """Writes a table, whole or not at all: under a temporary name first, then renamed.

    Parameters
    ----------
    frame : polars.DataFrame
        In CSV, lists are joined by "; ".
    path : str or Path
        Ends in .parquet, .csv, .ndjson or .jsonl.

    Returns
    -------
    Path
        Where the table is.

    Raises
    ------
    ParameterError
        For another suffix, or a folder that does not exist.
    """
    target = check_target(path)
    suffix = target.suffix.lower()
    with whole_file(target) as temporary:
        if suffix == ".parquet":
            frame.write_parquet(temporary, compression_level=1)  # scores hardly pack; more takes longer
        elif suffix == ".csv":
            lists = [name for name, dtype in frame.schema.items() if dtype == pl.List]
            frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join("; ") for name in lists).write_csv(
                temporary
            )
        else:
            frame.write_ndjson(temporary)
    return target


def check_target(path: str | Path) -> Path:
    """Refuses what `write_table` could not write, so that long work need not end in an error.

    Raises
    ------
    ParameterError
        For an unknown suffix, a folder that does not exist, or a folder in place of the file.
    """
    target = Path(path)
    if target.suffix.lower() not in TABLE_SUFFIXES:
        raise ParameterError(
            f"{target}: a table is written as {', '.join(TABLE_SUFFIXES)}; got suffix {target.suffix!r}"
        )
    if not target.parent.is_dir():
        raise ParameterError(f"{target}: there is no folder {target.parent}: make it first")
    if target.is_dir():
        raise ParameterError(f"{target}: is a folder; name a file")
    return target
