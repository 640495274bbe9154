"""Score table: what was judged of each event -> one row per scored event."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.ingest import JOINER, utc_time
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, LN_10, Judgement

Float = NDArray[np.float64]
STATUSES = ("incomplete", "learning", "ok", "unseen")
INCOMPLETE, LEARNING, OK, UNSEEN = range(len(STATUSES))
YOUNG = 5  # earlier events below which an entity's status is `learning`


def score_columns(judged: Judgement, fields: Mapping[str, Float]) -> dict[str, Float]:
    """Columns of the score table that tell how strange n events are, (n,) each; NaN = no statement.

    `fields` is -log10 of each field's tail probability, (n,).
    """
    log_p = np.maximum(judged.log_p, LEAST_LOG_P)
    models = {f"p_{name}": np.exp(np.maximum(log, LEAST_LOG_P)) for name, log in judged.models.items()}
    said = {"p_value": np.exp(log_p), "score": -np.expm1(log_p), "surprise": -judged.log_p / LN_10, **models}
    return said | {"recent": judged.evidence / LN_10} | {f"field:{name}": values for name, values in fields.items()}


def score_table(frame: pl.DataFrame, schema: Schema, status: pl.Series, said: dict[str, Float]) -> pl.DataFrame:
    """The score table, a row for each event; see `Detector.score` for the columns.

    Parameters
    ----------
    frame : polars.DataFrame
        N canonical events, in the order of the input.
    schema : Schema
        Theirs.
    status : polars.Series
        N values of `statuses`.
    said : dict of str to ndarray, shape (N,)
        What `score_columns` gave. It is emptied, so that no column is there twice.
    """
    own = [pl.col(f"n:{field.name}").alias(field.name) for field in schema.numeric]
    own += [pl.col(f"c:{name}").alias(name) for name in schema.categorical]
    named = [] if schema.event_id is None else [pl.col("event_id").alias(schema.event_id)]
    first = [pl.col("row"), *named, *entity_columns(schema), utc_time().alias("time")]
    table = frame.with_columns(status).select(*first, "status", *own)
    shown, names = table.columns, list(said)
    told = [pl.Series(name, said.pop(name), nan_to_null=name.startswith("field:")) for name in names]
    here = len(first)
    order = [*shown[:here], *names[:3], "status", *names[3:], *shown[here + 1 :]]
    return table.hstack(told).select(order)


def statuses(frame: pl.DataFrame, offsets: NDArray[np.int64], known: NDArray[np.object_]) -> pl.Series:
    """How far to trust what is said of each event: ``incomplete``, ``learning``, ``unseen`` or ``ok``; (N,).

    Parameters
    ----------
    frame : polars.DataFrame
        N canonical events.
    offsets : ndarray, shape (S + 1,)
        Borders of their entities.
    known : ndarray of str
        The entities of the history.
    """
    position = np.arange(len(frame)) - np.repeat(offsets[:-1], np.diff(offsets))
    fields = [name for name in frame.columns if name[:2] in ("n:", "c:", "p:")]
    gaps = frame.select(pl.any_horizontal(pl.lit(value=False), *(pl.col(name).is_null() for name in fields)))
    unseen = ~frame["entity"].gather(offsets[:-1]).is_in(pl.Series(known.tolist(), dtype=pl.String).implode())
    status = np.where(np.repeat(unseen.to_numpy(), np.diff(offsets)), UNSEEN, OK)
    status[position < YOUNG] = LEARNING
    status[np.broadcast_to(gaps.to_series().to_numpy(), len(frame))] = INCOMPLETE
    return pl.Series("status", STATUSES).gather(status)


def entity_columns(schema: Schema) -> list[pl.Expr]:
    """Columns of the entity key, taken apart again."""
    if len(schema.key) == 1:
        return [pl.col("entity").alias(schema.key[0])]
    parts = pl.col("entity").str.split(JOINER)
    return [parts.list.get(index).alias(name) for index, name in enumerate(schema.key)]
