"""Score table: what was judged of each event -> one row per scored event, in the order of the input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.ingest import JOINER, utc_time
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, LN_10, Judgement
from anomaly.sequences import Sequences

YOUNG = 5  # earlier events below which an entity's status is `learning`


def score_table(
    frame: pl.DataFrame,
    schema: Schema,
    mask: NDArray[np.bool_],
    judged: Judgement,
    fields: Mapping[str, NDArray[np.float64]],
    status: pl.Series,
) -> pl.DataFrame:
    """The rows of the events in `mask`; see `Detector.score` for the columns.

    Parameters
    ----------
    frame : polars.DataFrame
        N canonical events.
    schema : Schema
        Theirs.
    mask : ndarray of bool, shape (N,)
        The n events to show.
    judged : Judgement
        Of these n.
    fields : mapping of str to ndarray, shape (n,)
        -log10 of each field's tail probability.
    status : polars.Series
        N values of `statuses`.
    """
    log_p = np.maximum(judged.log_p, LEAST_LOG_P)
    columns: list[pl.Series | pl.Expr] = [pl.col("row")]
    if schema.event_id is not None:
        columns.append(pl.col("event_id").alias(schema.event_id))
    columns += entity_columns(schema)
    columns += [
        utc_time().alias("time"),
        pl.Series("p_value", np.exp(log_p)),
        pl.Series("score", -np.expm1(log_p)),
        pl.Series("surprise", -judged.log_p / LN_10),
        pl.col("status"),
        *(pl.Series(f"p_{name}", np.exp(np.maximum(log, LEAST_LOG_P))) for name, log in judged.models.items()),
        pl.Series("recent", judged.evidence / LN_10),
        *(pl.Series(f"field:{name}", values).fill_nan(None) for name, values in fields.items()),
        *(pl.col(f"n:{field.name}").alias(field.name) for field in schema.numeric),
        *(pl.col(f"c:{name}").alias(name) for name in schema.categorical),
    ]
    return frame.with_columns(status).filter(pl.Series(mask)).select(columns).sort("row")


def statuses(frame: pl.DataFrame, sequences: Sequences, known: NDArray[np.object_]) -> pl.Series:
    """How far to trust what is said of each event: ``incomplete``, ``learning``, ``unseen`` or ``ok``; (N,)."""
    fields = [name for name in frame.columns if name[:2] in ("n:", "c:", "p:")]
    facts = frame.select(
        incomplete=pl.any_horizontal(pl.lit(value=False), *(pl.col(name).is_null() for name in fields)),
        unseen=~pl.col("entity").is_in(pl.Series(known.tolist(), dtype=pl.String).implode()),
        learning=pl.Series(sequences.position < YOUNG),
    )
    return facts.select(
        pl.when("incomplete")
        .then(pl.lit("incomplete"))
        .when("learning")
        .then(pl.lit("learning"))
        .when("unseen")
        .then(pl.lit("unseen"))
        .otherwise(pl.lit("ok"))
        .alias("status")
    ).to_series()


def entity_columns(schema: Schema) -> list[pl.Expr]:
    """Columns of the entity key, taken apart again."""
    if len(schema.key) == 1:
        return [pl.col("entity").alias(schema.key[0])]
    parts = pl.col("entity").str.split(JOINER)
    return [parts.list.get(index).alias(name) for index, name in enumerate(schema.key)]
