"""What a person who looks into a case wants to see beside it: the entity's own past, and other entities like it.

Everything here is computed from the canonical events and the score table; nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import scipy
from numpy.typing import NDArray

from anomaly.ingest import utc_time
from anomaly.schema import Schema

Floats = NDArray[np.float64]

SIMILAR = 4  # similar past events that a case shows
LINKS = 5  # shared values that a case shows
LINKED = 6  # entities that are named for each of them
DAYS = 3.0  # events of another entity count as "the same days" if they are at most so far from the case
RARE = 0.02  # a value that is in more than this share of the scored events links nobody
CHANCE = 0.01  # so many entities share a value by chance at most this often
USUAL = 0.2  # a value is usual to an entity from this share of its earlier events on
CELL = 0.1  # degrees: places in one cell, about 10 km, are the same place
PLACE = "\x1fplace"  # unlike any column of the user's
LIKENESS = "\x1flikeness"
LINK_SCHEMA: Mapping[str, Any] = {
    "case": pl.Int64,
    "field": pl.String,
    "value": pl.String,
    "entities": pl.Int64,
    "expected": pl.Float64,
    "names": pl.List(pl.String),
    "cases": pl.List(pl.Int64),
}


def similar_events(history: pl.DataFrame, peak: int, before: int, schema: Schema) -> pl.DataFrame:
    """The entity's earlier events that are most like one of its events.

    Likeness is Gower's coefficient (Gower 1971, *Biometrics* 27): the mean over fields of 1 for an equal category, and
    of 1 - distance / range for a number (on a logarithmic scale where the schema says so) and for the time of day.

    Parameters
    ----------
    history : DataFrame (n rows)
        Canonical events of one entity in order of time, with ``surprise``.
    peak : int
        Position of the event to compare with.
    before : int
        Only events before this position are looked at: those before the case.

    Returns
    -------
    DataFrame
        ``time``, `LIKENESS` in [0, 1] (1 = equal in every field), ``surprise`` (null = not scored) and the schema's
        fields; the most alike first, the newest first among equals.
    """
    names = [*(field.name for field in schema.numeric), *schema.categorical]
    if before < 1 or not names:
        return pl.DataFrame()
    total, weight = np.zeros(before), np.zeros(before)
    for field in schema.numeric:
        values = history[f"n:{field.name}"].fill_null(float("nan")).to_numpy()
        if field.scale == "log":
            values = np.sign(values) * np.log1p(np.abs(values))
        _add(total, weight, np.abs(values[:before] - values[peak]) / (np.nanmax(values) - np.nanmin(values) or 1.0))
    for name in schema.categorical:
        texts = history[f"c:{name}"]
        if texts[peak] is None:  # like no value, and unlike none
            continue
        _add(total, weight, (texts[:before] != texts[peak]).cast(pl.Float64).fill_null(float("nan")).to_numpy())
    hour = np.mod(history["clock"].to_numpy(), 86_400.0) / 3600.0
    apart = np.abs(hour[:before] - hour[peak])
    _add(total, weight, np.minimum(apart, 24.0 - apart) / 12.0)
    likeness = total / np.maximum(weight, 1.0)
    best = np.lexsort([-np.arange(before), -likeness])[:SIMILAR]
    return history.select(pl.all().gather(best.tolist())).select(
        utc_time().alias("time"), pl.Series(LIKENESS, likeness[best]), "surprise", *field_columns(schema)
    )


def _add(total: Floats, weight: Floats, distance: Floats) -> None:
    known = np.isfinite(distance)
    total[known] += 1.0 - np.clip(distance[known], 0.0, 1.0)
    weight[known] += 1.0


def field_columns(schema: Schema) -> list[pl.Expr]:
    """The schema's numbers and categories in canonical events, by their own names."""
    numbers = [pl.col(f"n:{field.name}").alias(field.name) for field in schema.numeric]
    return numbers + [pl.col(f"c:{name}").alias(name) for name in schema.categorical]


def familiarity(name: str) -> pl.Expr:
    """How familiar each value of the column `name` was to its entity when it came; see `anomaly.case_figures`.

    0 missing, 1 usual (at least a fifth of the entity's earlier events), 2 seen before, 3 for the first time. For
    canonical events in order of time; counts use earlier events only.
    """
    count = pl.int_range(pl.len()).over("entity", name)
    position = pl.int_range(pl.len()).over("entity")
    return (
        pl.when(pl.col(name).is_null())
        .then(0)
        .when(count == 0)
        .then(3)
        .when(count >= USUAL * position)
        .then(1)
        .otherwise(2)
        .cast(pl.Int8)
    )


def linked_entities(events: pl.DataFrame, cases: pl.DataFrame, schema: Schema, top: int) -> pl.DataFrame:
    """Other entities whose alerting events share a rare value with a case's, such as a merchant, in the same days.

    A value is shown when more entities share it than chance explains: with `m` alerting events of other entities in
    those days and a share `s` of all scored events that have the value, the number of sharing events is Poisson(m s).

    Parameters
    ----------
    events : DataFrame
        Canonical events of the scored period.
    cases : DataFrame
        Of `anomaly.alerts.build_cases`, ranked.
    schema : Schema
        Its categories are compared, and its place in cells of 0.1 degrees.
    top : int
        Cases to look for links of.

    Returns
    -------
    DataFrame
        ``case``, ``field``, ``value``, ``entities`` (other entities that share it), ``expected`` (sharing events by
        chance), ``names`` and ``cases`` (a few of them, with the number of their strangest case); the least likely by
        chance first.
    """
    empty = pl.DataFrame(schema=LINK_SCHEMA)
    columns = {name: f"c:{name}" for name in schema.categorical}
    if schema.place is not None:
        cell = [(pl.col(f"p:{axis}") / CELL).floor() * CELL for axis in ("latitude", "longitude")]
        events = events.with_columns(pl.format("{} / {}", *(c.round(1) for c in cell)).alias(PLACE))
        columns["place"] = PLACE
    owned = cases.select("case", "entity", pl.col("rows").alias("row")).explode("row")
    alerting = owned.join(events.select("row", "time", *columns.values()), on="row", how="inner")
    if not len(alerting) or not columns:
        return empty
    found = [
        _links(alerting, name, column, events[column].value_counts(), len(events), top)
        for name, column in columns.items()
    ]
    links = pl.concat([empty, *(frame for frame in found if len(frame))], how="diagonal_relaxed")
    if not len(links):
        return empty
    return links.sort("case", "chance").group_by("case", maintain_order=True).head(LINKS).select(*LINK_SCHEMA)


def _links(alerting: pl.DataFrame, name: str, column: str, counts: pl.DataFrame, scored: int, top: int) -> pl.DataFrame:
    """Links by one field, with the chance of each."""
    rare = counts.filter(pl.col(column).is_not_null(), pl.col("count") <= max(RARE * scored, 5.0))
    events = alerting.select("case", "entity", "time", pl.col(column).alias("value"))
    rare = rare.select(pl.col(column).alias("value"), share=pl.col("count") / scored)
    events = events.join(rare, on="value")
    shared = events.filter(pl.col("entity").n_unique().over("value") > 1)
    mine = shared.filter(pl.col("case") <= top)
    both = mine.join(shared, on="value", suffix=" other").filter(
        pl.col("entity") != pl.col("entity other"),
        (pl.col("time") - pl.col("time other")).abs() <= DAYS * 86_400,
    )
    if not len(both):
        return pl.DataFrame()
    others = both.group_by("case", "value", "entity other").agg(
        pl.col("case other").min(), pl.col("time other").n_unique().alias("events"), pl.col("share").first()
    )
    grouped = (
        others.sort("case", "value", "case other")
        .group_by("case", "value", maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("entities"),
            pl.col("entity other").head(LINKED).alias("names"),
            pl.col("case other").head(LINKED).alias("cases"),
            pl.col("share").first(),
        )
    )
    expected = grouped["share"].to_numpy() * _near(alerting, grouped["case"])
    chance: Floats = np.asarray(scipy.stats.poisson.sf(grouped["entities"].to_numpy() - 1, expected))
    return grouped.with_columns(
        pl.lit(name).alias("field"), pl.Series("expected", expected), pl.Series("chance", chance)
    ).filter(pl.col("chance") <= CHANCE)


def _near(alerting: pl.DataFrame, cases: pl.Series) -> Floats:
    """How many alerting events lie within some days of each case, its own left out."""
    spans = alerting.group_by("case").agg(start=pl.min("time"), end=pl.max("time"), own=pl.len())
    wanted = pl.DataFrame({"case": cases}).join(spans, on="case", how="left", maintain_order="left")
    time = np.sort(alerting["time"].to_numpy())
    last = np.searchsorted(time, wanted["end"].to_numpy() + DAYS * 86_400, side="right")
    first = np.searchsorted(time, wanted["start"].to_numpy() - DAYS * 86_400, side="left")
    near: Floats = (last - first - wanted["own"].to_numpy()).astype(np.float64)
    return np.maximum(near, 0.0)
