"""Partitions: events that do not fit into memory, as files of whole entities on disk, read one by one.

An event is judged by its entity's history and by nobody else's. So a table of any size is dealt out by the hash of the
entity to files small enough to be scored one after the other, and the scores are put back in the order of the input:
they are those of one piece. What is done is kept beside the output until all of it is: a run that was cut off goes on
with the next partition. A fit takes as many whole entities as memory allows.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from anomaly.detector import Detector
from anomaly.errors import InputError, ParameterError
from anomaly.files import whole_file
from anomaly.history import When, as_seconds
from anomaly.ingest import BAD, INNER, Events, canonical, check_target, explained, in_order, notes_on, repeats, tally
from anomaly.models.abreast import give_back
from anomaly.recalibration import calibration_mark
from anomaly.schema import Schema, check_columns
from anomaly.sources import Part, open_parts

BASE = 700_000_000  # bytes of Python, its libraries, the detector, and the part of a file that is being read
SCORE_EACH = 2_500  # bytes that an event needs while its partition is scored, at most
DEAL_EACH = 1_250  # bytes that an event needs while it is held to be dealt out with others, and its file is read
ID_EACH = 300  # bytes that an id needs while repeated ones are looked for
SORT_EACH = 1_600  # bytes that a score needs while scores are put in order, and the ones before are written
FIT_EACH = 5_000  # bytes that an event needs while a detector is fitted
BATCH = 200_000  # rows read at a time
LAYOUT = 2  # of the folder of a run; one that another layout began is begun anew
LEAST = 20_000  # events of a partition: with fewer, files would outnumber what they hold
SHRINK = 0.8  # of the entities stay in a sample that has grown too large
STATE, BLOCKS, IDS, SCORES = "state.json", "blocks", "ids", "scores"
_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

Progress = Callable[[str], None]


def memory_bytes(memory: str | float) -> int:
    """Bytes of a size such as "1GB", "800 MB" or "2GiB"; a plain number is bytes.

    Raises
    ------
    ParameterError
        If it is no size, or too small for Python and its libraries.

    Examples
    --------
    >>> memory_bytes("1.5GB"), memory_bytes("1GiB")
    (1500000000, 1073741824)
    """
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([KMGT]?I?B)?\s*", memory.upper())
        if match is None:
            raise ParameterError(f"memory {memory!r} is no size; write it like 1GB or 800MB")
        memory = float(match[1]) * _UNITS[match[2] or "B"]
    least = BASE + LEAST * FIT_EACH
    if not memory >= least:
        raise ParameterError(
            f"memory of {memory / 1e6:,.0f} MB is too little: Python and its libraries alone take most of "
            f"{least / 1e6:,.0f} MB; give that much or more"
        )
    return int(memory)


def refuse_views(detector: Detector) -> None:
    """Raise ParameterError for a detector of several views: a partition holds whole entities of one of them."""
    if len(detector.schema.entity) > 1:
        raise ParameterError(
            f"partitions: expected a detector of one view, got {len(detector.schema.entity)} "
            f"({', '.join(detector.schema.view_names)}); leave out the memory, or fit one view alone"
        )


@dataclass(frozen=True)
class Scored:
    """What `score_within` did: counts of rows, of scored events by status, and notes; rejects as in `Events`."""

    rows: int
    scored: int
    status: dict[str, int]
    rejects: pl.DataFrame
    notes: tuple[str, ...]
    partitions: int


def score_within(
    detector: Detector,
    source: Any,
    out: Path | str,
    *,
    memory: str | float,
    since: When = None,
    query: str | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Score events of any number in bounded memory, and write the score table.

    The scores are those of `Detector.score`, in the order of the input. They are written whole or not at all. Until
    then the work stands in a hidden folder beside `out`; the same call goes on from there after an interruption. It
    takes as much of the disk as the scores, or else the events, would take of the memory.

    Parameters
    ----------
    detector : Detector
        Fitted.
    source : path, glob, folder, list of these, or frame
        See `anomaly.sources`. A frame, or the answer of a database, is in memory already: only the scoring is bounded.
    out : path
        Ends in .parquet, .csv or .ndjson.
    memory : str or float
        Most memory that the whole process should take, such as "1GB". It is kept but for an entity that alone has more
        events than a partition holds (memory less 0.7 GB, by 2.5 kB): an entity is never cut.
    since : str, date, datetime or seconds, optional
        Score events from this time on; the earlier ones are history only.
    query : str, optional
        SQL, for a database.
    progress : callable, optional
        Told in a line what has been done.

    Raises
    ------
    InputError
        If the source cannot be read, or there is no event to score.
    ParameterError
        If the memory is too little, or `out` cannot be written; or if the detector has several views.
    """
    refuse_views(detector)
    out, budget = check_target(out), memory_bytes(memory) - BASE
    detector.threshold()  # refuses a detector that is not fitted
    folder = out.with_name(f".{out.name}.partial")
    marks = _marks(detector, source, memory, since, query)
    say = progress or (lambda _: None)
    table = Partitions.kept(folder, source, detector.schema, query, marks)
    if table is None:
        table = Partitions.made(folder, source, detector.schema, query, marks, budget, say)
    run = _Run(detector, table, as_seconds(since), _fitting(budget, SORT_EACH))
    for number in range(len(table)):
        if run.score(number):
            give_back()
            say(f"scored partition {number + 1} of {len(table)}")
    try:
        found = run.finish(out)
    except InputError:  # there is nothing to score, now or later
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
    return found


def _fitting(budget: int, each: int) -> int:
    """How many rows may be in memory, if each takes so many bytes."""
    return max(LEAST, budget // each)


def _marks(detector: Detector, source: Any, memory: str | float, since: When, query: str | None) -> dict[str, Any]:
    """What an interrupted run must have in common with the one that takes it up; a frame has nothing to know it by."""
    paths = [] if query is not None else [Path(part.name) for part in open_parts(source)[0]]
    known = paths and all(path.is_file() for path in paths)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths] if known else None
    return {
        "files": files,
        "detector": [detector.fitted_["fingerprint"], detector.scorer_.settings(), calibration_mark(detector.scorer_)],
        "schema": detector.schema.model_dump(mode="json"),
        "memory": memory_bytes(memory),
        "since": as_seconds(since),
        "versions": {"layout": LAYOUT} | {name: version(name) for name in ("anomaly", "polars")},
    }


class Partitions:
    """The events of a source in a folder, dealt out by the hash of their entity.

    Parameters
    ----------
    folder : Path
        Where they are.
    schema : Schema
        Theirs.
    parts : list of Part
        The source.
    state : mapping
        What is known of them: `number` of partitions, first row of each part, notes.
    """

    def __init__(self, folder: Path, schema: Schema, parts: list[Part], state: Mapping[str, Any]) -> None:
        self.folder, self.schema, self.state = folder, schema, state
        self._parts = parts

    def __len__(self) -> int:
        """Return the number of partitions."""
        return int(self.state["number"])

    @property
    def rows(self) -> int:
        """Rows of the input."""
        return int(self.state["starts"][-1])

    @classmethod
    def kept(
        cls, folder: Path, source: Any, schema: Schema, query: str | None, marks: Mapping[str, Any]
    ) -> Partitions | None:
        """The partitions that an interrupted run has left in `folder`, if they are of these `marks`."""
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        if marks["files"] is None or state["marks"] != json.loads(json.dumps(marks)):
            return None
        return cls(folder, schema, open_parts(source, query)[0], state)

    @classmethod
    def made(
        cls,
        folder: Path,
        source: Any,
        schema: Schema,
        query: str | None,
        marks: Mapping[str, Any],
        budget: int,
        say: Progress,
    ) -> Partitions:
        """Deal out the events of `source`, so that those of one partition can be scored within `budget` bytes."""
        shutil.rmtree(folder, ignore_errors=True)
        (folder / SCORES).mkdir(parents=True)
        parts, notes = open_parts(source, query)
        for part in parts:
            check_columns(schema, part.columns, part.name)
        dealer = _Dealer.of(folder, schema, sum(map(_length, parts)), budget)
        starts, bad = [0], [pl.Series("row", [], dtype=pl.Int64)]
        for at, part in enumerate(parts):
            rows, refused = dealer.take(part, starts[-1])
            starts.append(starts[-1] + rows)
            bad.append(refused)
            say(f"dealt out {starts[-1]:,} rows of {at + 1} of {len(parts)} files into {dealer.number} partitions")
        if starts[-1] == 0:
            shutil.rmtree(folder)
            names = ", ".join(part.name for part in parts[:5])
            raise InputError(f"{names}: no rows, at most a header; expected at least one event")
        dealer.deal()
        rejected = pl.DataFrame(pl.concat(bad)).with_columns(pl.lit(None, pl.String).alias("reason"))
        rejected.write_parquet(folder / "bad.parquet")
        _repeated_ids(folder, schema).write_parquet(folder / "repeated.parquet")
        state = {"marks": dict(marks), "number": dealer.number, "starts": starts, "notes": list(notes)}
        _write_json(folder / STATE, state)
        return cls(folder, schema, parts, state)

    def events(self, number: int) -> tuple[Events, dict[str, float]]:
        """The accepted events of a partition, its repeated rows (row, reason) as rejects; and their `tally`."""
        block = self.folder / BLOCKS / f"{number:05d}"
        if not block.exists():
            return Events(self.schema, pl.DataFrame(), pl.DataFrame(), 0, ()), {}
        good = in_order(_together(block))
        rows = good.height
        if self.schema.event_id is None:
            repeated = repeats(good, self.schema)
        else:
            repeated = pl.read_parquet(self.folder / "repeated.parquet")
        good = good.join(repeated, on="row", how="anti", maintain_order="left") if repeated.height else good
        return Events(self.schema, good.drop(INNER), repeated, rows, ()), tally(good, self.schema)

    def rejects(self) -> pl.DataFrame:
        """All rejected rows with their reasons, as `Events.rejects`; needs every partition to have been scored."""
        found = [pl.read_parquet(self.folder / "bad.parquet"), pl.read_parquet(self.folder / "repeated.parquet")]
        found += [pl.read_parquet(file) for file in sorted((self.folder / SCORES).glob("repeated-*.parquet"))]
        return explained(pl.concat(found).sort("row"), self._parts, self.state["starts"], self.schema)


def _length(part: Part) -> int:
    """Rows of a part, about: how many partitions there are need not be exact."""
    try:
        return int(part.frame.select(pl.len()).collect(engine="streaming").item())
    except (pl.exceptions.PolarsError, OSError):
        return 0 if part.careful is None else _length(part.careful())


def batches(part: Part, schema: Schema, start: int) -> Iterator[pl.DataFrame]:
    """The canonical rows of a part, `BATCH` at a time."""
    lazy = canonical(part, schema, start)
    yield from lazy.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming")


@dataclass
class _Dealer:
    """Deals events out to the files of their partitions, and their ids to others, each by its hash.

    Some `most` at a time: a file takes its time, however few rows it has.
    """

    folder: Path
    schema: Schema
    number: int
    of_ids: int
    most: int

    def __post_init__(self) -> None:
        self.held: list[pl.DataFrame] = []
        self.waiting = self.dealt = 0  # rows held, and files of a partition at most

    @classmethod
    def of(cls, folder: Path, schema: Schema, rows: int, budget: int) -> _Dealer:
        """For about so many rows, so that each partition can be dealt with within `budget` bytes."""
        number, of_ids = (max(1, -(-rows // _fitting(budget, each))) for each in (SCORE_EACH, ID_EACH))
        return cls(folder, schema, number, of_ids, _fitting(budget, DEAL_EACH))

    def take(self, part: Part, start: int) -> tuple[int, pl.Series]:
        """Take the rows of a part, whose first has number `start`; how many they are, and which of them are bad."""
        earlier = 0 if part.careful is None else len(self.held)  # of other parts: not to be dropped with this one
        bad, rows, before = [pl.Series("row", [], dtype=pl.Int64)], 0, self.dealt
        try:
            for batch in batches(part, self.schema, start):
                rows += batch.height
                bad.append(batch.filter(BAD)["row"])
                self.held.append(batch.filter(~pl.col(BAD)))
                self.waiting += self.held[-1].height
                if self.waiting >= self.most:
                    if earlier:
                        self.deal(earlier)
                        earlier, before = 0, self.dealt
                    self.deal()
        except (pl.exceptions.PolarsError, OSError) as error:
            if part.careful is None:
                shutil.rmtree(self.folder)
                raise InputError(f"{part.name}: cannot be read ({str(error).splitlines()[0]})") from None
            del self.held[earlier:]
            self.waiting = sum(one.height for one in self.held)
            for number in range(before, self.dealt):
                for file in self.folder.glob(f"*/*/{_numbered(number)}"):
                    file.unlink()
            return self.take(part.careful(), start)
        return rows, pl.concat(bad)

    def deal(self, first: int | None = None) -> None:
        """Write what is held, or the `first` so many batches of it."""
        if self.held:
            good, name = pl.concat(self.held[:first]), _numbered(self.dealt)
            self.held, self.dealt = [] if first is None else self.held[first:], self.dealt + 1
            self.waiting -= good.height
            _spread(good, pl.col("entity").hash(seed=0) % self.number, self.folder / BLOCKS, name)
            if self.schema.event_id is not None:
                ids = good.select("row", "event_id").drop_nulls()
                _spread(ids, pl.col("event_id").hash(seed=0) % self.of_ids, self.folder / IDS, name)


def _numbered(number: int) -> str:
    """Name of a file that is forgotten in the end: not packed, which is written several times as fast."""
    return f"{number:06d}.arrow"


def _spread(frame: pl.DataFrame, place: pl.Expr, folder: Path, name: str) -> None:
    """Write the rows of a frame into numbered folders, each where its place is."""
    parts = frame.with_columns(place.alias("\x1fplace"))
    for (number,), rows in parts.partition_by("\x1fplace", as_dict=True, include_key=False).items():
        target = folder / f"{number:05d}"
        target.mkdir(parents=True, exist_ok=True)
        rows.write_ipc(target / name)


def _together(folder: Path) -> pl.DataFrame:
    """What was spread into a folder, in the order of the files' names."""
    return pl.scan_ipc(sorted(folder.iterdir()), glob=False).collect()


def _repeated_ids(folder: Path, schema: Schema) -> pl.DataFrame:
    """(row, reason) of the events whose id an earlier row has, whatever its entity."""
    found = [pl.DataFrame(schema={"row": pl.Int64(), "reason": pl.String()})]
    found += [repeats(_together(path), schema) for path in sorted((folder / IDS).glob("*"))]
    shutil.rmtree(folder / IDS, ignore_errors=True)
    return pl.concat(found)


@dataclass(frozen=True)
class _Run:
    """The scoring of one partition after the other; `most` scores are put in order at a time."""

    detector: Detector
    table: Partitions
    start: float | None
    most: int

    def score(self, number: int) -> bool:
        """Score a partition and keep its scores; False if that was done before."""
        folder = self.table.folder
        done = folder / SCORES / f"done-{number:05d}.json"
        if done.exists():
            return False
        read, tallied = self.table.events(number)
        status: dict[str, int] = {}
        if len(read) and (self.start is None or (read.frame["time"] >= self.start).any()):
            scores = self.detector.score(read, since=self.start)
            self.detector._last = None  # or two partitions would be in memory
            status = dict(scores["status"].value_counts().iter_rows())
            _spread(scores, pl.col("row") // self.most, folder / SCORES, _numbered(number))
        if self.table.schema.event_id is None and read.rejects.height:
            read.rejects.write_parquet(folder / SCORES / f"repeated-{number:05d}.parquet")
        _write_json(done, {"status": status, "tally": tallied})
        shutil.rmtree(folder / BLOCKS / f"{number:05d}", ignore_errors=True)
        return True

    def finish(self, out: Path) -> Scored:
        """Put the scores in the order of the input, and write them."""
        scores = self.table.folder / SCORES
        done = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(scores.glob("done-*.json"))]
        status: Counter[str] = Counter()
        for one in done:
            status.update(one["status"])
        rejects = self.table.rejects()
        notes = notes_on([one["tally"] for one in done], rejects, self.table.schema)
        if not any(one["tally"] for one in done):
            raise InputError(f"none of the {self.table.rows:,} rows can be read; the first one: {rejects['reason'][0]}")
        if not status:
            raise InputError("score: no event at or after `since`; give an earlier one")
        ranges = sorted(path for path in scores.iterdir() if path.is_dir())
        with whole_file(out) as draft:
            _sink(_ordered(ranges), draft, out.suffix.lower())
        return Scored(
            rows=self.table.rows,
            scored=sum(status.values()),
            status=dict(sorted(status.items())),
            rejects=rejects,
            notes=(*self.table.state["notes"], *notes),
            partitions=len(self.table),
        )


def _ordered(ranges: Sequence[Path]) -> pl.LazyFrame:
    """The scores in the order of the input, range by range: one is read when those before it have been taken."""

    def pieces(*_: object) -> Iterator[pl.DataFrame]:
        for path in ranges:
            yield _together(path).sort("row")

    first = next(ranges[0].iterdir())
    return register_io_source(pieces, schema=pl.scan_ipc(first, glob=False).collect_schema())


def _sink(table: pl.LazyFrame, path: Path, suffix: str) -> None:
    """Write a lazy table as `ingest.write_table` would write it."""
    if suffix == ".parquet":
        table.sink_parquet(path, compression_level=1)
    elif suffix == ".csv":
        table.sink_csv(path)
    else:
        table.sink_ndjson(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with whole_file(path) as draft:
        draft.write_text(json.dumps(value), encoding="utf-8")


@dataclass(frozen=True)
class Sample:
    """Whole entities of a history, as many as memory allows.

    Attributes
    ----------
    events : Events
        Their events before `until`; the rejects are those of the whole input, `n_input` its rows.
    entities : ndarray of str
        All entities of the history, sampled or not.
    of_events, later : int
        Accepted events of the whole history, and those after it.
    """

    events: Events
    entities: np.ndarray[Any, np.dtype[np.object_]]
    of_events: int
    later: int

    @property
    def whole(self) -> bool:
        """Is nothing left out."""
        return len(self.events) == self.of_events


def sample_within(
    source: Any, schema: Schema, *, memory: str | float, until: When = None, seed: int = 0, query: str | None = None
) -> Sample:
    """Read as many whole entities of a history as a fit may have in `memory`: those of the least hashes.

    One pass; whenever there is too much, a fifth of the entities is let go. Same seed, same entities. Repeated ids are
    found among the sampled events only.
    """
    most = max(LEAST, (memory_bytes(memory) - BASE) // FIT_EACH)
    end = as_seconds(until)
    parts, notes = open_parts(source, query)
    for part in parts:
        check_columns(schema, part.columns, part.name)
    keeper = _Keeper(most, seed, np.inf if end is None else end)
    starts, bad = [0], [pl.Series("row", [], dtype=pl.Int64)]
    for part in parts:
        rows, refused = keeper.take(part, schema, starts[-1])
        starts.append(starts[-1] + rows)
        bad.append(refused)
    good = in_order(keeper.events()) if keeper.frames else None
    if not keeper.history or good is None:
        raise InputError(f"none of the {starts[-1]:,} rows can be read, or none is before {until}")
    if not good.height:
        raise InputError(f"memory {memory!r} holds about {most:,} events, and no entity drawn has so few; give more")
    repeated = repeats(good, schema)
    good = good.join(repeated, on="row", how="anti", maintain_order="left")
    rejected = pl.DataFrame(pl.concat(bad)).with_columns(pl.lit(None, pl.String).alias("reason"))
    rejects = explained(pl.concat([rejected, repeated]).sort("row"), parts, starts, schema)
    told = notes_on([tally(good, schema)], rejects, schema)
    events = Events(schema, good.drop(INNER), rejects, starts[-1], (*notes, *told))
    return Sample(events, keeper.names(), keeper.history - repeated.height, keeper.later)


class _Keeper:
    """Keeps the events of entities whose hash is low enough, `most` in all."""

    def __init__(self, most: int, seed: int, end: float) -> None:
        self.most, self.end = most, end
        self.hash = pl.col("entity").hash(seed=seed).cast(pl.Float64) / 2.0**64
        self.share = 1.0
        self.frames: list[pl.DataFrame] = []
        self.known = pl.Series("entity", [], dtype=pl.String)
        self.history = self.later = 0

    def take(self, part: Part, schema: Schema, start: int) -> tuple[int, pl.Series]:
        """Take what is to be kept of a part; how many rows it has, and which of them are bad."""
        before = list(self.frames), self.known, self.history, self.later
        bad, rows = [pl.Series("row", [], dtype=pl.Int64)], 0
        try:
            for batch in batches(part, schema, start):
                rows += batch.height
                bad.append(batch.filter(BAD)["row"])
                self._add(batch.filter(~pl.col(BAD)))
        except (pl.exceptions.PolarsError, OSError) as error:
            if part.careful is None:
                raise InputError(f"{part.name}: cannot be read ({str(error).splitlines()[0]})") from None
            self.frames, self.known, self.history, self.later = before
            return self.take(part.careful(), schema, start)
        return rows, pl.concat(bad)

    def _add(self, good: pl.DataFrame) -> None:
        past = good.filter(pl.col("time") < self.end)
        self.history, self.later = self.history + past.height, self.later + good.height - past.height
        self.known = pl.concat([self.known, past["entity"].unique()]).unique()
        self.frames.append(past.filter(self.hash < self.share))
        while sum(frame.height for frame in self.frames) > self.most:
            self.share *= SHRINK
            self.frames = [self.events()]

    def events(self) -> pl.DataFrame:
        """What is kept."""
        return pl.concat(self.frames).filter(self.hash < self.share)

    def names(self) -> np.ndarray[Any, np.dtype[np.object_]]:
        """All entities, in order."""
        return self.known.sort().to_numpy().astype(object)


def fit_within(
    detector: Detector,
    source: Any,
    *,
    memory: str | float,
    until: When = None,
    query: str | None = None,
    told: Callable[[Sample], None] | None = None,
    **options: Any,
) -> Sample:
    """Fit a detector in bounded memory: on as many whole entities, drawn by the seed, as `memory` allows.

    Training, stopping and calibration all see the sampled entities only, split by time as ever; but `unseen` means an
    entity that was not in the whole history. ``detector.fitted_["sample"]`` tells how much was left out, and the report
    says it too.

    Parameters are those of `Detector.fit` and `sample_within`; `told` is called once the sample is read.
    """
    refuse_views(detector)
    sample = sample_within(source, detector.schema, memory=memory, until=until, seed=detector.seed, query=query)
    if told is not None:
        told(sample)
    detector.fit(sample.events, until=until, **options)
    if not sample.whole:
        seen = set(detector.known_.tolist())
        others = [name for name in sample.entities.tolist() if name not in seen]
        # The held-out slice names its entities by their place: the new ones come behind.
        detector.known_ = np.concatenate([detector.known_, np.array(others, dtype=object)])
        detector.fitted_["sample"] = {"of_events": sample.of_events, "of_entities": len(sample.entities)}
    return sample
