"""Drift: how far the scored weeks have moved away from the history, field by field, and for the score itself.

Two measures of each field and week, both against the same reference:

- The population stability index, PSI = sum over bins of (p - q) ln(p / q), p and q the shares of the week and of the
  reference: the symmetrised Kullback-Leibler divergence (Jeffreys 1946). The usual reading in credit scoring: below 0.1
  nothing, from 0.2 on a large shift (Siddiqi 2006, *Credit Risk Scorecards*).
- The Kolmogorov-Smirnov distance of numbers, the largest gap between the two distribution functions.

Both grow when a week happens to hold other customers, and events of one customer are alike: the usual p-values, which
take events as independent, would flag every week of a large table. So a flag needs an effect (PSI of at least 0.2),
enough events, and a difference that is significant when whole entities are the sample: the shares' standard errors are
those of cluster sampling with linearised ratios (Rao and Scott 1981), corrected for the number of bins and of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import scipy
from numpy.typing import NDArray

from anomaly.schema import Schema

Float = NDArray[np.float64]
Int = NDArray[np.int64]

LARGE = 0.2  # PSI from which a shift is large
LEVEL = 0.01  # chance of a flag anywhere on a page without drift, as far as entities are independent
FEWEST_EVENTS, FEWEST_CLUSTERS, FEWEST_DAYS = 200, 20, 5
REFERENCE_WEEKS = 8  # the last weeks of the history, whole ones so that weekdays are mixed alike
BINS = 10
FEW_VALUES = 50  # of a category whose medians are taken off a number
MOST_SORTED = 200_000  # values of the reference that the KS distance looks at
WEEK, DAY = 7 * 86_400.0, 86_400.0
SCHEMA: dict[str, Any] = {
    "field": pl.String,
    "week": pl.Date,
    "events": pl.Int64,
    "psi": pl.Float64,
    "ks": pl.Float64,
    "p_value": pl.Float64,
    "flagged": pl.Boolean,
}


@dataclass(frozen=True)
class _Sample:
    """Values of one field (NaN = missing) or codes of its bins (-1 = missing), and the cluster of each; (n,)."""

    codes: Int
    cluster: Int
    values: Float | None = None


def drift(events: pl.DataFrame, scores: pl.DataFrame, schema: Schema, held: pl.DataFrame | None = None) -> pl.DataFrame:
    """Compare each scored week with the history before the scored period.

    Fields are compared by their values: numbers as such and less what is usual for their entity and categories (which
    tells a rise of everybody's amounts from other customers or purchases), categories by their nine commonest values
    and the rest, the time since the previous event, the hour. The score is compared with the surprises of the
    detector's held-out slice.

    Parameters
    ----------
    events : DataFrame
        Canonical events, history and scored ones.
    scores : DataFrame
        ``row`` and ``surprise`` of the scored ones.
    schema : Schema
        Theirs.
    held : DataFrame, optional
        ``entity``, ``time`` (seconds) and ``surprise`` of the events that calibrated the detector.

    Returns
    -------
    DataFrame
        One row per field and week: ``field``, ``week`` (its first day; weeks count from the first scored event, and
        less than half a week at the end belongs to the one before), ``events``, ``psi``, ``ks`` (null for categories),
        ``p_value`` (corrected for the bins), ``flagged``. A field whose week or reference has fewer than 200 events has
        null measures there. Larger = further away.
    """
    empty = pl.DataFrame(schema=SCHEMA)
    if not len(scores):
        return empty
    marked = events.join(scores.select("row", "surprise"), on="row", how="left", maintain_order="left")
    marked = marked.with_columns(
        cluster=pl.col("entity").rank("dense").cast(pl.Int64) - 1, gap=pl.col("time").diff().over("entity")
    )
    scored = marked.filter(pl.col("row").is_in(scores["row"].implode()))
    start = float(scored["time"].min())  # type: ignore[arg-type]
    before = marked.filter(pl.col("time") < start, pl.col("time") >= start - REFERENCE_WEEKS * WEEK)
    span = start - float(before["time"].min()) if len(before) else 0.0  # type: ignore[arg-type]
    before = before.filter(pl.col("time") >= start - max(1.0, span // WEEK) * WEEK)
    week = _weeks(scored["time"].to_numpy() - start)
    by_day = marked["cluster"].n_unique() < FEWEST_CLUSTERS
    weeks = [np.flatnonzero(week == at) for at in range(int(week.max()) + 1)]
    rows = [
        {"field": name, "week": _date(start + at * WEEK), **_measure(reference, sample, chosen, by_day)}
        for name, reference, sample in _samples(before, scored, schema, held, by_day)
        for at, chosen in enumerate(weeks)
    ]
    found = pl.DataFrame(rows, schema_overrides=SCHEMA) if rows else empty.drop("flagged")
    cells = max(found["psi"].count(), 1)
    flagged = (pl.col("psi") >= LARGE) & (pl.col("p_value") * cells < LEVEL)
    return found.with_columns(flagged=flagged.fill_null(value=False)).select(*SCHEMA)


def _weeks(seconds: Float) -> Int:
    """Number of each event's week; a last one of less than half a week belongs to the one before."""
    week = (seconds // WEEK).astype(np.int64)
    last = int(week.max())
    if last and seconds.max() - last * WEEK < WEEK / 2:
        week[week == last] = last - 1
    return week


def _date(seconds: float) -> Any:
    return datetime.fromtimestamp(seconds, UTC).date()


def _samples(
    before: pl.DataFrame, scored: pl.DataFrame, schema: Schema, held: pl.DataFrame | None, by_day: bool
) -> Iterator[tuple[str, _Sample, _Sample]]:
    """Name, reference and scored sample of everything that is compared."""
    key = pl.col("time") // DAY if by_day else pl.col("cluster")
    clusters = [frame.select(key.cast(pl.Int64)).to_series().to_numpy() for frame in (before, scored)]
    if held is not None and len(held):
        codes = scored.select("entity", "cluster").unique()
        known = held.join(codes, on="entity", how="left", maintain_order="left")["cluster"].fill_null(-1)
        cluster = (held["time"] // DAY).cast(pl.Int64).to_numpy() if by_day else known.to_numpy()
        yield "score", *_numbers(_floats(held["surprise"]), cluster, _floats(scored["surprise"]), clusters[1])
    for field in schema.numeric:
        values = [_floats(frame[f"n:{field.name}"]) for frame in (before, scored)]
        yield field.name, *_numbers(values[0], clusters[0], values[1], clusters[1])
        given = [] if by_day else _given(before, scored, field.name, field.scale == "log", schema)
        if given:
            yield (
                f"{field.name}, given its entity and categories",
                *_numbers(given[0], clusters[0], given[1], clusters[1]),
            )
    gaps = [_floats(frame["gap"]) for frame in (before, scored)]
    yield "time since the previous event", *_numbers(gaps[0], clusters[0], gaps[1], clusters[1])
    hours = [np.mod(frame["clock"].to_numpy(), DAY) // 10_800 for frame in (before, scored)]
    yield "hour", _Sample(hours[0].astype(np.int64), clusters[0]), _Sample(hours[1].astype(np.int64), clusters[1])
    for name in schema.categorical:
        common = before[f"c:{name}"].drop_nulls().value_counts(sort=True).head(BINS - 1)
        codes = common.select(pl.col(f"c:{name}"), code=pl.int_range(pl.len()))
        pair = [
            frame.select(f"c:{name}")
            .join(codes, on=f"c:{name}", how="left", maintain_order="left")
            .select(pl.when(pl.col(f"c:{name}").is_null()).then(-1).otherwise(pl.col("code").fill_null(BINS - 1)))
            .to_series()
            .cast(pl.Int64)
            .to_numpy()
            for frame in (before, scored)
        ]
        yield name, _Sample(pair[0], clusters[0]), _Sample(pair[1], clusters[1])


def _floats(column: pl.Series) -> Float:
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _given(before: pl.DataFrame, scored: pl.DataFrame, name: str, log: bool, schema: Schema) -> list[Float]:
    """A number less the medians of its categories and then of its entity, both of the reference: one median polish.

    What is left varies less than the number itself (Tukey 1977, *Exploratory Data Analysis*), so that a rise of
    everybody's amounts stands out. Categories of many values, such as merchants, stay out of it.
    """
    value = pl.col(f"n:{name}").cast(pl.Float64)
    value = value.sign() * value.abs().log1p() if log else value
    frames = [frame.select("entity", *(f"c:{c}" for c in schema.categorical), rest=value) for frame in (before, scored)]
    few = [f"c:{c}" for c in schema.categorical if frames[0][f"c:{c}"].n_unique() <= FEW_VALUES]
    for key in [*few, "entity"]:
        middle = frames[0].group_by(key).agg(middle=pl.col("rest").median())
        frames = [
            frame.join(middle, on=key, how="left", maintain_order="left", nulls_equal=True)
            .with_columns(rest=pl.col("rest") - pl.col("middle"))
            .drop("middle")
            for frame in frames
        ]
    return [_floats(frame["rest"]) for frame in frames]


def _numbers(reference: Float, cluster: Int, values: Float, now: Int) -> tuple[_Sample, _Sample]:
    """Both samples in bins of a tenth of the reference each; equal edges are one."""
    known = reference[np.isfinite(reference)]
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.zeros(0)
    both = [np.where(np.isfinite(v), np.searchsorted(edges, v, side="left"), -1) for v in (reference, values)]
    return _Sample(both[0], cluster, reference), _Sample(both[1], now, values)


def _measure(reference: _Sample, sample: _Sample, chosen: Int, by_day: bool) -> dict[str, Any]:
    """PSI, KS distance and p-value of the events numbered `chosen` against the reference."""
    old, now = np.flatnonzero(reference.codes >= 0), chosen[sample.codes[chosen] >= 0]
    counts: dict[str, Any] = {"events": len(now), "psi": None, "ks": None, "p_value": None}
    if min(len(now), len(old)) < FEWEST_EVENTS:
        return counts
    bins = int(max(reference.codes.max(), sample.codes[now].max())) + 1
    clusters = np.concatenate([reference.cluster[old], sample.cluster[now]])
    index = np.unique(clusters, return_inverse=True)[1]
    first, second = index[: len(old)], index[len(old) :]
    fewest = min(len(np.unique(first)), len(np.unique(second)))
    if fewest < (FEWEST_DAYS if by_day else FEWEST_CLUSTERS):
        return counts
    size = int(index.max()) + 1
    tables = [
        np.bincount(which * bins + codes, minlength=size * bins).reshape(size, bins).astype(np.float64)
        for which, codes in ((first, reference.codes[old]), (second, sample.codes[now]))
    ]
    counts["psi"] = psi(tables[0].sum(0), tables[1].sum(0))
    counts["p_value"] = _p_value(tables[0], tables[1], fewest - 1)
    if reference.values is not None and sample.values is not None:
        counts["ks"] = ks_distance(reference.values[old], sample.values[now])
    return counts


def psi(reference: Float, now: Float) -> float:
    """Population stability index of two tables of counts, (B,) each; half an event is added to each bin.

    >>> round(psi(np.array([50.0, 50.0]), np.array([50.0, 50.0])), 6)
    0.0
    >>> round(psi(np.array([500.0, 500.0]), np.array([300.0, 700.0])), 2)
    0.17
    """
    q, p = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (reference, now))
    return float(np.sum((p - q) * np.log(p / q)))


def ks_distance(reference: Float, now: Float) -> float:
    """Largest gap between two empirical distribution functions, in [0, 1].

    >>> ks_distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0]))
    0.5
    """
    first = np.sort(reference[:: len(reference) // MOST_SORTED + 1])
    second = np.sort(now[:: len(now) // MOST_SORTED + 1])
    at = np.concatenate([first, second])
    below = [np.searchsorted(one, at, side="right") / len(one) for one in (first, second)]
    return float(np.max(np.abs(below[0] - below[1])))


def _p_value(reference: Float, now: Float, freedom: int) -> float:
    """p-value of the most significant bin, times the bins; tables are (clusters, B).

    An entity that is in both tables enters both shares, and its own habits cancel out of the difference.
    """
    total_old, total_now = reference.sum(), now.sum()
    q, p = reference.sum(0) / total_old, now.sum(0) / total_now
    part = (now - p * now.sum(1, keepdims=True)) / total_now
    part -= (reference - q * reference.sum(1, keepdims=True)) / total_old
    clusters = len(part)
    error = np.sqrt((part**2).sum(0) * clusters / max(clusters - 1, 1))
    ratio = np.abs(p - q) / np.maximum(error, 1e-12)
    return float(min(1.0, 2.0 * len(p) * scipy.stats.t.sf(ratio.max(), max(freedom, 1))))
