"""Explanations from the models' own predictive distributions: observed, expected and how rare, by event and field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anomaly.features import FIRST_CODE, Column, Encoder, raw_numbers
from anomaly.models.base import SequenceModel
from anomaly.models.heads import Prediction

QUANTILES = (0.05, 0.5, 0.95)
LIKELY = 0.05  # a category less probable than this is not named among the expected ones
SCHEMA: Mapping[str, Any] = {
    "row": pl.Int64,
    "field": pl.String,
    "kind": pl.String,
    "surprise": pl.Float64,
    "observed": pl.Float64,
    "low": pl.Float64,
    "median": pl.Float64,
    "high": pl.Float64,
    "observed_text": pl.String,
    "likely": pl.List(pl.String),
}


def explain(
    model: SequenceModel, encoder: Encoder, frame: pl.DataFrame, rows: Sequence[int], scores: pl.DataFrame
) -> pl.DataFrame:
    """Explain events, field by field.

    Parameters
    ----------
    model : SequenceModel
        Fitted; its predictive distributions say what was expected.
    encoder : Encoder
        The one that the model was fitted with.
    frame : polars.DataFrame
        Canonical events.
    rows : sequence of int
        Input rows of the events to explain.
    scores : polars.DataFrame
        Score table with the ``field:<name>`` columns of these rows.

    Returns
    -------
    polars.DataFrame
        One row per event and field: ``row, field, kind, surprise, observed, low, median, high, observed_text, likely``;
        numbers in raw units (5 %, 50 % and 95 % of what was expected); ``likely`` = the likeliest values, best first.
    """
    frame, chosen = histories(frame, rows)
    if not chosen.any():
        return pl.DataFrame(schema=SCHEMA)
    index, prediction = model.predictions(encoder.transform(frame), chosen)
    raw = raw_numbers(frame, encoder.schema)
    row = frame["row"].to_numpy()[index]
    wanted = pl.DataFrame({"row": row}).join(scores, on="row", how="left", maintain_order="left")
    parts = []
    for column, told in zip(prediction.fields.columns, _expected(prediction), strict=True):
        given = {
            "row": row,
            "field": column.name,
            "kind": column.kind,
            "surprise": wanted[f"field:{column.name}"],
            **told,
            **_observed(column, frame, raw, index),
        }
        absent = {
            name: pl.Series([None] * len(row), dtype=dtype) for name, dtype in SCHEMA.items() if name not in given
        }
        parts.append(
            pl.DataFrame({**given, **absent}).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
        )
    return pl.concat(parts).filter(pl.col("observed").is_not_null() | pl.col("observed_text").is_not_null())


def expected_range(
    model: SequenceModel, encoder: Encoder, frame: pl.DataFrame, rows: Sequence[int], field: str
) -> pl.DataFrame:
    """Range in which the number `field` was expected at each of the rows: ``row, low, high`` in raw units."""
    frame, chosen = histories(frame, rows)
    index, prediction = model.predictions(encoder.transform(frame), chosen)
    number = [column.name for column in prediction.fields.columns].index(field)
    told = _expected(prediction)[number]
    return pl.DataFrame({"row": frame["row"].to_numpy()[index], "low": told["low"], "high": told["high"]})


def histories(frame: pl.DataFrame, rows: Sequence[int]) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
    """Whole histories of the entities that the input rows belong to, and which of their events those rows are."""
    wanted = pl.Series(rows, dtype=pl.Int64)
    entities = frame.filter(pl.col("row").is_in(wanted.implode()))["entity"].unique()
    frame = frame.filter(pl.col("entity").is_in(entities.implode()))
    return frame, frame["row"].is_in(wanted.implode()).to_numpy()


def _expected(prediction: Prediction) -> list[dict[str, Any]]:
    """What was expected of each field."""
    with torch.inference_mode():
        quantiles = prediction.quantiles(QUANTILES).numpy()
        probabilities = [probability.numpy() for probability in prediction.probabilities()]
    told: list[dict[str, Any]] = []
    for at, field in enumerate(prediction.fields.numbers):
        low, median, high = (field.column.decode(quantiles[:, at, q]) for q in range(len(QUANTILES)))
        if field.column.kind != "number":  # spans, counts and distances cannot lie below 0
            low, median, high = (
                np.maximum(values, 1.0 if field.column.kind == "count" else 0.0) for values in (low, median, high)
            )
        told.append({"low": low, "median": median, "high": high})
    for field, probability in zip(prediction.fields.categories, probabilities, strict=True):
        told.append({"likely": _likely(field.column, probability)})
    return told


def _likely(column: Column, probability: NDArray[np.float32]) -> list[list[str]]:
    known = probability[:, FIRST_CODE:]
    best = np.argsort(-known, axis=1)[:, :3]
    names = [f"{name}:00" for name in column.vocabulary] if column.kind == "clock" else column.vocabulary
    return [[names[code] for code in codes if share[code] >= LIKELY] for codes, share in zip(best, known, strict=True)]


def _observed(
    column: Column, frame: pl.DataFrame, raw: Mapping[str, NDArray[np.float64]], index: NDArray[np.int64]
) -> dict[str, Any]:
    if column.kind == "clock":
        return {"observed": np.mod(frame["clock"].to_numpy()[index], 86400.0) / 3600.0}
    if column.kind == "category":
        return {"observed_text": frame[f"c:{column.name}"].gather(index)}
    if column.kind == "flag":
        return {"observed_text": frame[f"c:{column.name.partition(':')[2]}"].gather(index)}
    return {"observed": pl.Series(raw[column.raw_name][index]).fill_nan(None)}
