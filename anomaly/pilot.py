"""Pilot: the quarantine, chosen without labels by small fits on a sample, each rehearsed on the same planted frauds.

The quarantine shapes the memory itself, so that no weighing after a fit can choose it, as `anomaly.rehearsal` chooses
the rest. A pilot fits a small detector for each candidate on the whole histories of some entities, and compares how
well each ranks the same planted frauds. The choice is as cautious as a rehearsal's: the usual quarantine stays unless
another gains two standard errors and `LEAST_GAIN`, since how long planted frauds last is our own assumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.detector import EPISODES, MOST_REHEARSED, QUARANTINE_GAPS, Detector
from anomaly.errors import InputError, ParameterError
from anomaly.features import entity_offsets
from anomaly.history import When, as_events, as_seconds, split
from anomaly.ingest import Events
from anomaly.injections import possible_kinds
from anomaly.recalibration import Judged, reference_of
from anomaly.rehearsal import Copies, Reference, caution, gain, precisions
from anomaly.schema import Schema
from anomaly.sequences import typical_gap

GAPS: tuple[float, ...] = (0, 10, QUARANTINE_GAPS, 100)
"""Candidates, in typical gaps between two events of an entity."""
MOST_EVENTS = 60_000
HIDDEN, EPOCHS = 32, 4


@dataclass(frozen=True)
class Pilot:
    """What a pilot found.

    Attributes
    ----------
    hours : float
        The quarantine to fit with.
    trials : tuple of dict
        For each candidate ``hours``, ``precision`` (mean over the kinds, of the planted frauds), ``gain`` over the
        usual quarantine, its ``standard_error``, and whether it was ``taken``.
    """

    hours: float
    trials: tuple[dict[str, Any], ...]


def choose_quarantine(
    events: Any,
    schema: Schema,
    *,
    until: When = None,
    gaps: Sequence[float] = GAPS,
    seed: int = 0,
    device: str | None = None,
    progress: bool | None = None,
) -> Pilot:
    """Choose the quarantine for a fit on these events; labels are not read.

    Parameters
    ----------
    events : path, frame or Events
        The history of the fit.
    schema : Schema
        Which column is what; one view.
    until : str, date, datetime or seconds, optional
        Use events before this time only.
    gaps : sequence of float
        Candidates in typical gaps; the usual one is tried too. None is longer than a tenth of the history.
    seed, device, progress :
        As for `Detector`.

    Raises
    ------
    InputError
        If no kind of fraud can be planted, or there is too little history for a fit.
    """
    if not all(0 <= gap < np.inf for gap in gaps):
        raise ParameterError(f"choose_quarantine: gaps must be at least 0, got {list(gaps)}")
    read, end = as_events(events, schema), as_seconds(until)
    frame = _sample(read.frame if end is None else read.frame.filter(pl.col("time") < end), seed)
    if not possible_kinds(frame, schema):
        raise InputError(
            "choose_quarantine: no kind of fraud can be planted into these events; name numbers in the schema"
        )
    time = frame["time"].to_numpy()
    gap = typical_gap(time, entity_offsets(frame["entity"]), split(time)[0])
    longest = 0.1 * float(time.max() - time.min())
    usual = min(QUARANTINE_GAPS * gap, longest)
    candidates = [usual, *sorted({min(one * gap, longest) for one in gaps} - {usual})]
    some = replace(read, frame=frame)
    found = [_precisions(some, seconds, seed, device, progress) for seconds in candidates]
    measured = [gain(one, found[0]) for one in found]
    best = max(range(len(found)), key=lambda at: measured[at][0])
    taken = best if measured[best][0] > caution(measured[best][1]) else 0
    trials = tuple(
        {
            "hours": seconds / 3600,
            "precision": float(np.nanmean(one, axis=1).mean()),
            "gain": more,
            "standard_error": error,
            "taken": at == taken,
        }
        for at, (seconds, one, (more, error)) in enumerate(zip(candidates, found, measured, strict=True))
    )
    return Pilot(candidates[taken] / 3600, trials)


def rehearsed(detector: Detector, events: Events, episodes: int, seed: int) -> tuple[Copies, Reference]:
    """Plant frauds into the history that the detector was fitted on; they and genuine ones beside them are judged."""
    since = detector.fitted_["held_out_since"]
    copies = detector._copies(events.frame, since, episodes, seed)
    sequences = detector.encoder_.transform(events.frame)
    judged = Judged(events.frame, sequences, detector.errors(sequences))
    return copies, reference_of(judged, judged.within(since), MOST_REHEARSED, detector.seed)


def _precisions(
    events: Events, quarantine: float, seed: int, device: str | None, progress: bool | None
) -> NDArray[np.float64]:
    """Fit with one quarantine in seconds, and rank the planted frauds; see `anomaly.rehearsal.precisions`."""
    detector = Detector(
        events.schema,
        hidden=HIDDEN,
        epochs=EPOCHS,
        quarantine_hours=quarantine / 3600,
        seed=seed,
        device=device,
        rehearse=False,
    ).fit(events, progress=progress)
    return precisions(
        detector.scorer_.combination, *rehearsed(detector, events, EPISODES, seed), detector.scorer_.fields
    )


def _sample(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The whole histories of some entities, drawn at random: as many as `MOST_EVENTS` hold, at least one."""
    lengths = frame.group_by("entity", maintain_order=True).len()
    order = np.random.default_rng(seed).permutation(len(lengths))
    within = np.cumsum(lengths["len"].to_numpy()[order]) <= MOST_EVENTS
    within[:1] = True
    return frame.filter(pl.col("entity").is_in(lengths["entity"].gather(np.sort(order[within])).implode()))
