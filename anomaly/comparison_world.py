"""The events of a comparison as its scorers see them: encoded, labelled, and what was known of each when.

Labels come by row or by event id. What nobody knows counts as genuine, and a label is known a delay after its event.

Letters used in shapes: N events, E numbers of what is known of an event.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.errors import InputError
from anomaly.ingest import VIEW, Events, read_labels
from anomaly.labels import known_past, usual
from anomaly.schema import Schema, check_columns
from anomaly.sequences import Sequences
from anomaly.sources import collect, open_parts

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

DAY = 86_400.0
RISK_DAYS = (1.0, 7.0, 30.0)  # windows of known past fraud
VALID_SHARE = 0.2  # of the labelled time, its end: says when to stop, and calibrates probabilities


@dataclass(frozen=True)
class Judged:
    """What the unsupervised detector says of N events.

    surprise : (N,) -ln p, of all views together; evidence : (N,) nats that speak against the recent past; errors :
    (N, K) what the last model, whose memory a head starts from, says of each field: -ln of a tail probability, NaN
    where it says nothing. The last two are of the first view.
    """

    surprise: Float
    evidence: Float
    errors: Float

    @property
    def inputs(self) -> Float:
        """All of it as inputs of a head, (N, 2 + K)."""
        return np.column_stack([self.surprise, self.evidence, self.errors])


@dataclass(frozen=True)
class World:
    """The events of a comparison, encoded, and what is known of them; N events in the order of `frame`.

    Attributes
    ----------
    frame : polars.DataFrame
        Canonical events.
    sequences : Sequences
        The same, encoded.
    fraud : ndarray of bool, shape (N,)
        The truth.
    scored, train, valid : ndarray of bool, shape (N,)
        Events that are scored; whose labels train; whose labels say when to stop.
    delay : float
        Seconds until a label is known.
    judged : Judged
        What the unsupervised detector says.
    seconds : mapping of str to float
        What was computed of all N events for several scorers: ``encode``, ``judge`` (the surprise); and ``detector``,
        its fit.
    money : ndarray, shape (N,), optional
        The field that is summed as money, NaN where missing; None where there is none.
    """

    frame: pl.DataFrame
    sequences: Sequences
    fraud: Mask
    scored: Mask
    train: Mask
    valid: Mask
    delay: float
    judged: Judged
    seconds: Mapping[str, float]
    money: Float | None

    @property
    def time(self) -> Float:
        """Seconds of all events, (N,)."""
        return self.sequences.time

    def with_known(self, frauds: int, seed: int) -> World:
        """The same world where just so many of the labelled frauds were ever found; the rest is taken for genuine."""
        draw = np.random.default_rng(seed)
        found = np.zeros(len(self.fraud), dtype=bool)
        for mask, share in ((self.valid, VALID_SHARE), (self.train, 1 - VALID_SHARE)):
            those = draw.permutation(np.flatnonzero(mask & self.fraud))
            found[those[: max(1, round(frauds * share))]] = True
        return replace(self, fraud=found)

    @property
    def risk(self) -> Float:
        """Past fraud by view and category, as labels of age `delay` tell it, and the entity's usual money, (N, E)."""
        return self._timed_risk[0]

    @cached_property
    def _timed_risk(self) -> tuple[Float, float]:
        began = time.perf_counter()
        names = [name for name in self.frame.columns if name == "entity" or name.startswith(("c:", VIEW))]
        names = [name for name in names if f"c:{name.removeprefix(VIEW)}" not in names]  # a view that is a category too
        views = [self.frame[name] for name in names]
        windows = [days * DAY for days in RISK_DAYS]
        parts = []
        for view in views:
            key = view.fill_null("").rank("dense").to_numpy().astype(np.int64)
            parts.append(known_past(key, self.time, self.fraud, delay=self.delay, windows=windows))
        if self.money is not None:
            parts.append(usual(self.sequences.sequence, self.time, self.money, windows=windows))
        return np.concatenate(parts, axis=1), time.perf_counter() - began

    def spent(self, mask: Mask, *what: str) -> float:
        """Seconds that these events had of what was computed for all: ``encode``, ``risk``, ``judge``."""
        spent = {**self.seconds, "risk": self._timed_risk[1] if "risk" in what else 0.0}
        return float(mask.mean()) * sum(spent[one] for one in what)


def fraud_of(read: Events, labels: Any) -> Mask:
    """Which events are fraud, (N,) in the order of the canonical frame; what nobody knows counts as genuine.

    Parameters
    ----------
    read : Events
        The events.
    labels : array-like of bool, shape (rows of the input,), or frame
        A frame has the event id under its name in the schema, and one column of labels.
    """
    if isinstance(labels, pl.DataFrame):
        name = read.schema.event_id
        rest = [column for column in labels.columns if column != name]
        if name is None or name not in labels.columns or len(rest) != 1:
            raise InputError(
                f"compare: labels need the event id ({name or 'none in the schema'}) and one column of labels, got "
                f"{', '.join(labels.columns)}"
            )
        told = labels.select(event_id=pl.col(name).cast(pl.String), fraud=pl.col(rest[0]).cast(pl.Boolean))
        twice = told["event_id"].filter(told["event_id"].is_duplicated())
        if len(twice):
            raise InputError(f"compare: the labels name the event {twice[0]!r} twice")
        joined = read.frame.join(told, on="event_id", how="left", maintain_order="left")["fraud"]
        if joined.null_count() == len(joined):
            raise InputError(f"compare: no label is of any of these events; is {name!r} the same in both tables?")
        return joined.fill_null(value=False).to_numpy()
    array = np.asarray(labels)
    if array.shape != (read.n_input,):
        raise InputError(f"compare: {read.n_input:,} rows were read, but the labels have shape {array.shape}")
    known = np.nan_to_num(array.astype(np.float64)) != 0
    return np.asarray(known[read.frame["row"].to_numpy()])


def read_label_table(path: Any, schema: Schema, column: str) -> pl.DataFrame:
    """Read a table of labels of its own: the event id of `schema`, and the labels (see `read_labels`) in `column`."""
    if schema.event_id is None:
        raise InputError("compare: labels in a table of their own need an event_id in the schema, to join by")
    only = Schema(time=schema.event_id, label=column)
    parts, _ = open_parts(path, None)
    names = []
    for part in parts:
        check_columns(only, part.columns, part.name)
        if column not in part.columns:
            raise InputError(
                f"compare: {part.name} has no column of labels {column!r}; columns there are: {', '.join(part.columns)}"
            )
        names.append(collect(part, lambda one: one.frame.select(pl.col(schema.event_id or "").cast(pl.String))))
    return pl.concat(names).with_columns(read_labels(path, only)["label"].alias(column))
