"""History: what is read, from when to when, and which part of it is used for what."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.errors import InputError, ParameterError, SchemaError
from anomaly.ingest import Events, read_events, utc_time
from anomaly.schema import Schema

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
When = str | date | datetime | float | None

FEWEST_EVENTS = 100  # a history below this cannot be split into training, stopping and calibration
TRAIN_SHARE, STOP_SHARE = 0.75, 0.10  # of the history's events, by time; the rest calibrates


def as_events(events: Any, schema: Schema) -> Events:
    """Return `events` if they are Events already, else read them."""
    if not isinstance(events, Events):
        return read_events(events, schema)
    if events.schema.model_copy(update={"label": schema.label}) != schema:
        raise SchemaError("these events were read with another schema than the detector's; read them with its own")
    return events


def as_seconds(when: When) -> float | None:
    """Return a time as seconds since 1970 UTC; a time without a zone is UTC.

    Examples
    --------
    >>> as_seconds("1970-01-02")
    86400.0
    """
    if when is None or (isinstance(when, int | float) and np.isfinite(when)):
        return when
    said = when
    if isinstance(when, str):
        with suppress(ValueError):
            when = datetime.fromisoformat(when)
    elif isinstance(when, date) and not isinstance(when, datetime):
        when = datetime(when.year, when.month, when.day, tzinfo=UTC)
    if not isinstance(when, datetime):
        raise ParameterError(f"time {said!r} is not like 2024-01-31 or 2024-01-31T12:00:00+01:00")
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def time_text(seconds: float) -> str:
    """A time in UTC, for a message.

    Examples
    --------
    >>> time_text(86400.0)
    '1970-01-02T00:00:00+00:00'
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def check_scores_of(read: Events, scores: pl.DataFrame) -> None:
    """Refuse scores of other events; those without rows and times are believed."""
    known = read.frame.select(pl.col("row").alias("known"), utc_time().alias("known_time"))
    if {"row", "time"} <= set(scores.columns) and len(
        scores.join(known, left_on=["row", "time"], right_on=["known", "known_time"], how="anti")
    ):
        raise ParameterError("alerts: these scores are of other events than those scored last; pass events= too")


def split(time: Float) -> tuple[Mask, Mask, Mask]:
    """Masks (N,) of the events that train, those that say when to stop, and those that calibrate: by time."""
    if len(time) < FEWEST_EVENTS:
        raise InputError(f"fit: {len(time)} usable events, at least {FEWEST_EVENTS} are needed; give a longer history")
    first, second = np.quantile(time, [TRAIN_SHARE, TRAIN_SHARE + STOP_SHARE], method="higher")
    train, stop, held = time < first, (time >= first) & (time < second), time >= second
    if not (train.any() and stop.any() and held.any()):
        raise InputError(
            "fit: the history cannot be split by time, since most events share one time; check the time column"
        )
    return train, stop, held
