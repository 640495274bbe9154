"""Explanations from the models' own predictive distributions: observed, expected and how rare, by event and field.

Beside them stand what the field has in the event's surprise (see `anomaly.breakdown`) and the entity's own past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anomaly.breakdown import PAST, Asked, Breakdown
from anomaly.features import (
    FIRST_CODE,
    OWN_VALUES,
    POPULATION,
    Column,
    Encoder,
    entity_offsets,
    known_values,
    raw_numbers,
)
from anomaly.models.base import SequenceModel
from anomaly.models.heads import Prediction
from anomaly.schema import Schema

QUANTILES = (0.05, 0.5, 0.95)
LIKELY = 0.05  # a category less probable than this is not named among the expected ones
SCHEMA: Mapping[str, Any] = {
    "row": pl.Int64,
    "field": pl.String,
    "kind": pl.String,
    "about": pl.String,
    "surprise": pl.Float64,
    "part": pl.Float64,
    "share": pl.Float64,
    "observed": pl.Float64,
    "low": pl.Float64,
    "median": pl.Float64,
    "high": pl.Float64,
    "observed_text": pl.String,
    "likely": pl.List(pl.String),
    "everybody": pl.Float64,
    "past_events": pl.Int64,
    "past_same": pl.Int64,
    "past_low": pl.Float64,
    "past_high": pl.Float64,
}


def explain(model: SequenceModel, schema: Schema, asked: Asked, scores: pl.DataFrame, told: Breakdown) -> pl.DataFrame:
    """Explain events, field by field.

    Parameters
    ----------
    model : SequenceModel
        Fitted; its predictive distributions say what was expected.
    schema : Schema
        Of the events.
    asked : Asked
        The events to explain.
    scores : polars.DataFrame
        Score table with the ``field:<name>`` columns of these rows.
    told : Breakdown
        Of these rows.

    Returns
    -------
    polars.DataFrame
        One row per event and field, and one of kind ``past`` where events before this one have a part in its surprise:

        - ``row, field, kind``; ``about``, the event's own field (a column, "place" or "time") that the statement is
          about, see `editable`, or "recent past"; a speed is about the time where that is the stranger of the two;
          ``surprise`` of the field; ``part`` and ``share`` that all that is said of its values
          has in the surprise of the event;
        - ``observed, low, median, high``: numbers in raw units (5 %, 50 % and 95 % of what was expected), or
          ``observed_text`` and ``likely``, the likeliest values, best first; ``everybody``: surprise of the number
          among those of all entities;
        - the entity's own past: ``past_events``, its earlier events where the field is known; ``past_same`` of them had
          this value (this hour); ``past_low, past_high``, the range of its earlier numbers.

        Of the kind ``past``, ``observed`` is the length of the window in seconds, ``past_events`` how many events are
        in it, and ``past_same`` how many of these were unusual; ``surprise`` is the score table's ``recent``.
    """
    if not asked.chosen.any():
        return pl.DataFrame(schema=SCHEMA)
    frame = asked.frame
    index, prediction = model.predictions(asked.sequences, asked.chosen)
    raw = raw_numbers(frame, schema)
    row = frame["row"].to_numpy()[index]
    wanted = pl.DataFrame({"row": row}).join(scores, on="row", how="left", maintain_order="left")
    shares = told.parts.filter(pl.col("detector") != PAST).group_by("row", "field").agg(pl.col("part", "share").sum())
    parts = []
    expectation = expectations(prediction, frame, index, asked.lately)
    for column, expected in zip(prediction.fields.columns, expectation, strict=True):
        mine = pl.DataFrame({"row": row}).join(
            shares.filter(pl.col("field") == column.raw_name), on="row", how="left", maintain_order="left"
        )
        everybody = f"field:{POPULATION}{column.raw_name}"
        given = {
            "row": row,
            "field": column.name,
            "kind": column.kind,
            "about": _about(column, schema, wanted),
            "surprise": wanted[f"field:{column.name}"],
            "part": mine["part"],
            "share": mine["share"],
            **({"everybody": wanted[everybody]} if everybody in wanted.columns else {}),
            **expected,
            **_observed(column, frame, raw, index),
            **_own_past(column, frame, raw, index),
        }
        parts.append(_whole(given, len(row)))
    parts.append(_recent(told, wanted))
    return pl.concat(parts).filter(pl.col("observed").is_not_null() | pl.col("observed_text").is_not_null())


def editable(schema: Schema, name: str) -> str:
    """Which of an event's own fields (a column, "place" or "time") a raw column is made of.

    Examples
    --------
    >>> from anomaly.simulator import SIMULATED_SCHEMA
    >>> [editable(SIMULATED_SCHEMA, name) for name in ("amount", "first:merchant_id", "place:speed", "time:gap")]
    ['amount', 'merchant_id', 'place', 'time']
    """
    before_colon, _, rest = name.partition(":")
    if name in schema.categorical or any(one.name == name for one in schema.numeric):
        return name
    if before_colon in ("first", "changed"):
        return rest
    return "place" if before_colon == "place" else "time"


def expected_range(
    model: SequenceModel, encoder: Encoder, frame: pl.DataFrame, rows: Sequence[int], field: str
) -> pl.DataFrame:
    """Range in which the number `field` was expected at each of the rows: ``row, low, high`` in raw units."""
    asked = Asked.of(encoder, frame, rows)
    index, prediction = model.predictions(asked.sequences, asked.chosen)
    number = [column.name for column in prediction.fields.columns].index(field)
    told = expected_numbers(prediction)[number]
    return pl.DataFrame({"row": asked.sequences.row[index], "low": told["low"], "high": told["high"]})


def expectations(
    prediction: Prediction, frame: pl.DataFrame, index: NDArray[np.int64], lately: float
) -> list[dict[str, Any]]:
    """What was expected of each of the K fields, for n events: low, median and high (n,), or the n likeliest values.

    The events are those at `index` (n,) in the `frame` that was judged; `lately` is that of its encoder.
    """
    with torch.inference_mode():
        probabilities = [probability.numpy() for probability in prediction.probabilities()]
    categories = zip(prediction.fields.categories, probabilities, strict=True)
    return [
        *expected_numbers(prediction),
        *({"likely": _likely(field.column, probability, frame, index, lately)} for field, probability in categories),
    ]


def expected_numbers(prediction: Prediction) -> list[dict[str, Any]]:
    """What was expected of each numeric field, the first of the fields: low, median and high (n,)."""
    with torch.inference_mode():
        quantiles = prediction.quantiles(QUANTILES).numpy()
    told: list[dict[str, Any]] = []
    for at, field in enumerate(prediction.fields.numbers):
        low, median, high = (field.column.decode(quantiles[:, at, q]) for q in range(len(QUANTILES)))
        if field.column.kind != "number":  # spans, counts and distances cannot lie below 0
            low, median, high = (
                np.maximum(values, 1.0 if field.column.kind == "count" else 0.0) for values in (low, median, high)
            )
        told.append({"low": low, "median": median, "high": high})
    return told


def _about(column: Column, schema: Schema, scores: pl.DataFrame) -> pl.Series:
    """The own field that a column speaks of: a speed is high because the way is long, or because the time is short."""
    own = pl.repeat(editable(schema, column.raw_name), len(scores), eager=True)
    parts = [f"field:{name}" for name in ("time:gap", "place:distance")]
    if column.kind != "speed" or not set(parts) <= set(scores.columns):
        return own
    soon = scores[parts[0]].fill_nan(None) > scores[parts[1]].fill_nan(None)
    return pl.select(pl.when(soon).then(pl.lit("time")).otherwise(own)).to_series()


def _likely(
    column: Column, probability: NDArray[np.float32], frame: pl.DataFrame, index: NDArray[np.int64], lately: float
) -> list[list[str]]:
    known = probability[:, FIRST_CODE:]
    best = np.argsort(-known, axis=1)[:, :3]
    names: Sequence[Mapping[int, str]]
    if column.own:
        names = _own_values(column.name, frame, index, lately)
    else:
        of_all = [f"{name}:00" for name in column.vocabulary] if column.kind == "clock" else column.vocabulary
        names = [dict(enumerate(of_all))] * len(known)
    return [
        [name[code] for code in codes if share[code] >= LIKELY and code in name]
        for name, codes, share in zip(names, best.tolist(), known, strict=True)
    ]


def _own_values(name: str, frame: pl.DataFrame, index: NDArray[np.int64], lately: float) -> list[dict[int, str]]:
    """The values of a field that the entity of each chosen event knew before it, by their place; see `Column.own`.

    The last place is no value's own, and what is still news has none.
    """
    starts, time = entity_offsets(frame["entity"]), frame["time"].to_numpy()
    first = starts[np.searchsorted(starts, index, side="right") - 1]
    pasts = zip(first.tolist(), index.tolist(), strict=True)
    known = known_values(frame[f"c:{name}"], time, pasts, lately, time[index].tolist())
    return [dict(enumerate(one[: OWN_VALUES - 1])) for one in known]


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


def _whole(given: Mapping[str, Any], n: int) -> pl.DataFrame:
    """The n rows of a field, with null in the columns that say nothing of it."""
    absent = {name: pl.Series([None] * n, dtype=dtype) for name, dtype in SCHEMA.items() if name not in given}
    return pl.DataFrame({**given, **absent}).select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())


def _own_past(
    column: Column, frame: pl.DataFrame, raw: Mapping[str, NDArray[np.float64]], index: NDArray[np.int64]
) -> dict[str, Any]:
    """What the entity's events before each of the chosen ones had in this field."""
    if column.is_category:
        clock = np.mod(frame["clock"].to_numpy(), 86400.0) // 3600.0
        name = column.name.partition(":")[2] if column.kind == "flag" else column.name
        value = pl.Series(clock) if column.kind == "clock" else frame[f"c:{name}"]
        known = pl.DataFrame({"entity": frame["entity"], "value": value}).select(
            past_events=pl.col("value").is_not_null().cum_sum().over("entity") - 1,
            past_same=pl.int_range(pl.len()).over("entity", "value"),
        )
        return known[index].to_dict()
    value = pl.Series(raw[column.raw_name]).fill_nan(None)
    one = pl.col("value")
    known = pl.DataFrame({"entity": frame["entity"], "value": value}).select(
        past_events=one.is_not_null().cum_sum().over("entity") - 1,
        past_low=one.cum_min().forward_fill().shift(1).over("entity"),
        past_high=one.cum_max().forward_fill().shift(1).over("entity"),
    )
    return known[index].to_dict()


def _recent(told: Breakdown, scores: pl.DataFrame) -> pl.DataFrame:
    """Of each event with a past that has a part in its surprise: the window of the largest part, and all of them."""
    windows = told.windows.filter(pl.col("events") > 0).sort("row", "part", descending=[False, True])
    shares = told.parts.filter(pl.col("detector") == PAST).group_by("row").agg(pl.col("part", "share").sum())
    one = windows.unique("row", keep="first", maintain_order=True).drop("part")
    one = scores.select("row", "recent").join(one, on="row", maintain_order="left").join(shares, on="row", how="left")
    given = {
        "row": one["row"],
        "field": [PAST] * len(one),
        "kind": ["past"] * len(one),
        "about": [PAST] * len(one),
        "surprise": one["recent"],
        "part": one["part"],
        "share": one["share"],
        "observed": one["seconds"],
        "past_events": one["events"],
        "past_same": one["unusual"],
    }
    return _whole(given, len(one))
