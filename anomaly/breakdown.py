"""Breakdown: an event's surprise, split without rest into what each field and its recent past have in it.

The surprise is made in steps, each of which rises from 0 at 0: what the fields add (`evidence.field_nats`, weighted)
is summed and calibrated; what rareness among everybody exceeds that by is added; what the recent past adds at each
scale is summed and bounded; all are summed and calibrated once more. The part of an input of such a step,
``f(c_1 + ... + c_n)`` with every ``c_k >= 0``, is ::

    part_k = f(c) * c_k / c        c = c_1 + ... + c_n

This is its Aumann-Shapley value (Aumann and Shapley 1974), the integral of the derivative along the straight way from
0; under the name of integrated gradients it is usual for networks (Sundararajan, Taly and Yan 2017). The parts are
efficient, which means that they sum to the whole; equal inputs have equal parts, and one that adds nothing has none.
From step to step a part is handed down in proportion (the rescale rule of DeepLIFT, Shrikumar et al. 2017; layer-wise
relevance propagation, Bach et al. 2015). No part is negative: nothing that is usual about an event excuses the rest.

How busy an entity is of late only chooses the scale that its events are read on; it has no part of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.alerts import duration_text
from anomaly.errors import InputError
from anomaly.evidence import UNUSUAL, recent_sums, window_evidence
from anomaly.features import Encoder, entity_offsets
from anomaly.scorer import LN_10, POPULATION, Errors, Scorer
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

PAST = "recent past"  # stands among the detectors for what the events before say
MOST_APART = 0.05  # share by which a surprise may differ from the one in the score table: batches round differently
PARTS: Mapping[str, Any] = {
    "row": pl.Int64,
    "detector": pl.String,
    "field": pl.String,
    "part": pl.Float64,
    "share": pl.Float64,
}
WINDOWS: Mapping[str, Any] = {
    "row": pl.Int64,
    "seconds": pl.Float64,
    "events": pl.Int64,
    "unusual": pl.Int64,
    "part": pl.Float64,
}


@dataclass(frozen=True)
class Breakdown:
    """The parts of the surprise of n events.

    Attributes
    ----------
    parts : polars.DataFrame
        One row per event, detector and field: ``row``; ``detector`` ("forecaster", "autoencoder", "population" or
        "recent past"); ``field``, of the recent past the length of a window ("2 d"); ``part`` in the unit of the
        surprise, >= 0, and they sum to it; ``share`` of the surprise. Where nothing was said of an event, both are
        null; where nothing about it is strange, each part is 0 and the share null.
    windows : polars.DataFrame
        One row per event and window before it: ``row``, ``seconds`` (its length), ``events`` in it, how many of these
        were ``unusual`` (rarer than 1 in 20 on their own), and ``part``, as above.
    """

    parts: pl.DataFrame
    windows: pl.DataFrame


@dataclass(frozen=True)
class Asked:
    """Events that are asked about, behind the histories of their entities up to the last one asked about.

    frame : N canonical events; sequences : the same, encoded; chosen : (N,) bool, those asked about; lately : seconds
    for which a value is news to its entity, see `Encoder`.
    """

    frame: pl.DataFrame
    sequences: Sequences
    chosen: Mask
    lately: float

    @classmethod
    def of(cls, encoder: Encoder, frame: pl.DataFrame, rows: Sequence[int]) -> Asked:
        """Find the input `rows` among canonical events."""
        frame, chosen = histories(frame, rows)
        starts = entity_offsets(frame["entity"])[:-1]
        index = np.arange(len(frame))
        last = np.maximum.reduceat(np.where(chosen, index, 0), starts) if len(starts) else starts
        needed = index <= np.repeat(last, np.diff([*starts, len(frame)]))
        frame = frame.filter(pl.Series(needed, dtype=pl.Boolean))
        return cls(frame, encoder.transform(frame), chosen[needed], encoder.lately)


def breakdown(
    judge: Callable[[Sequences, Mask], Errors], scorer: Scorer, asked: Asked, scores: pl.DataFrame
) -> Breakdown:
    """Split the surprise of events.

    Parameters
    ----------
    judge : callable
        (sequences, which events) -> errors by model, as `Detector.errors`.
    scorer : Scorer
        The detector's own.
    asked : Asked
        The events.
    scores : polars.DataFrame
        Score table with ``row`` and ``surprise`` of these rows; what is split is the surprise that stands there.

    Raises
    ------
    InputError
        If the scores are not those that this detector gives these events.
    """
    sequences, chosen = asked.sequences, asked.chosen
    if not chosen.any():
        return Breakdown(pl.DataFrame(schema=PARTS), pl.DataFrame(schema=WINDOWS))
    scales = scorer.combination.scales
    errors = judge(sequences, before(sequences, chosen, max(scales, default=0.0)))
    given = pl.DataFrame({"row": sequences.row[chosen]}).join(
        scores.select("row", "surprise"), on="row", how="left", maintain_order="left"
    )
    surprise = given["surprise"].fill_null(np.nan).to_numpy()
    fresh = scorer.fresh(errors)
    sums, number = (values[chosen] for values in recent_sums(sequences, fresh, scales))
    mine = {name: values[chosen] for name, values in errors.items()}
    judged = scorer.judge_sums(mine, sums, number, scorer.pace(sequences)[chosen])
    _check(surprise, -judged.log_p / LN_10, sequences.row[chosen])
    shares, past = _shares(scorer, mine, window_evidence(number, sums, scorer.dependence_))
    row = sequences.row[chosen]
    long = [
        _long(row, name, [column.raw_name for column in scorer.fields[name]], share, surprise)
        for name, share in shares.items()
    ]
    long.append(_long(row, PAST, [duration_text(seconds) for seconds in scales], past, surprise))
    parts = pl.concat(long).group_by("row", "detector", "field", maintain_order=True).agg(pl.col("part", "share").sum())
    said = pl.Series(row[~np.isnan(surprise)])
    told = parts.with_columns(
        pl.when(pl.col("row").is_in(said.implode())).then("part").alias("part"),
        pl.when(pl.col("row").is_in(said.implode()) & (pl.col("share").sum().over("row") > 0)).then("share"),
    )
    order = pl.DataFrame({"row": row, "at": np.arange(len(row))})
    told = told.join(order, on="row", maintain_order="left").sort("at", maintain_order=True).select(*PARTS)
    return Breakdown(told, _windows(sequences, fresh, chosen, scales, number, np.nan_to_num(surprise)[:, None] * past))


def histories(frame: pl.DataFrame, rows: Sequence[int]) -> tuple[pl.DataFrame, Mask]:
    """Whole histories of the entities that the input rows belong to, and which of their events those rows are."""
    wanted = pl.Series(rows, dtype=pl.Int64)
    entities = frame.filter(pl.col("row").is_in(wanted.implode()))["entity"].unique()
    frame = frame.filter(pl.col("entity").is_in(entities.implode()))
    return frame, frame["row"].is_in(wanted.implode()).to_numpy()


def before(sequences: Sequences, chosen: Mask, seconds: float) -> Mask:
    """The chosen events, and those of their entities less than `seconds` before one of them; (N,) bool."""
    if not seconds:
        return chosen
    count = np.concatenate([[0], np.cumsum(chosen)])
    return np.asarray(count[sequences.leading(seconds) + 1] > count[: len(sequences)])


def _shares(scorer: Scorer, errors: Errors, evidence: Float) -> tuple[dict[str, Float], Float]:
    """Shares of the surprise: of each field by model, (n, K), and of each window of the past, (n, W)."""
    terms = scorer.combination.terms(errors, scorer.fields)
    own, alone = np.nan_to_num(scorer.own(errors)), np.nan_to_num(scorer.alone(errors))
    total = scorer.combination.total(alone, evidence)
    of_own = _over(own, total)
    statistic = np.sum([values.sum(axis=1) for values in terms.values()], axis=0)
    fields = {name: of_own[:, None] * _over(values, statistic[:, None]) for name, values in terms.items()}
    # What rareness among everybody has beyond that for the entity belongs to the number that is rarest.
    said = np.nan_to_num(errors[POPULATION])
    rarest = (said == said.max(axis=1, keepdims=True, initial=0.0)).astype(np.float64)
    fields[POPULATION] = _over(alone - own, total)[:, None] * _over(rarest, rarest.sum(axis=1, keepdims=True))
    heard = scorer.combination.heard(evidence)
    past = _over(total - alone, total)[:, None] * _over(heard, heard.sum(axis=1, keepdims=True))
    return fields, past


def _over(values: Float, whole: Float) -> Float:
    """`values` over their `whole`, 0 where that is 0."""
    values, whole = np.broadcast_arrays(values, whole)
    return np.divide(values, whole, out=np.zeros_like(values), where=whole > 0)


def _long(row: NDArray[np.int64], detector: str, names: Sequence[str], share: Float, surprise: Float) -> pl.DataFrame:
    n, wide = share.shape
    return pl.DataFrame(
        {
            "row": np.repeat(row, wide),
            "detector": pl.Series([detector], dtype=pl.String).new_from_index(0, n * wide),
            "field": pl.Series(list(names) * n, dtype=pl.String),
            "part": (np.nan_to_num(surprise)[:, None] * share).ravel(),
            "share": share.ravel(),
        }
    )


def _windows(
    sequences: Sequences, fresh: Float, chosen: Mask, scales: Sequence[float], number: Float, part: Float
) -> pl.DataFrame:
    loud = np.concatenate([[0], np.cumsum(np.nan_to_num(fresh) >= UNUSUAL)])
    at = np.flatnonzero(chosen)
    frames = [pl.DataFrame(schema=WINDOWS)]
    for which, seconds in enumerate(scales):
        unusual = loud[at] - loud[sequences.lagged(seconds)[at]]
        values = {"row": sequences.row[at], "seconds": np.full(len(at), float(seconds)), "events": number[:, which]}
        frames.append(
            pl.DataFrame({**values, "unusual": unusual, "part": part[:, which]}).select(
                pl.col(name).cast(dtype) for name, dtype in WINDOWS.items()
            )
        )
    return pl.concat(frames)


def _check(given: Float, found: Float, row: NDArray[np.int64]) -> None:
    """Refuse scores that another detector gave, or of other events: their parts would explain nothing."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(given - found) > MOST_APART * np.maximum(1.0, np.abs(found))
    if apart.any():
        at = int(np.argmax(apart))
        raise InputError(
            f"breakdown: row {row[at]} has a surprise of {given[at]:.3g} in the scores, and {found[at]:.3g} by this "
            "detector; pass the scores that it gave these very events, or score again"
        )
