"""Calibration of the models' errors on held-out events: at the end of a fit, and anew whenever later events are there.

Nothing is learned from the events that come after a fit, labels or not, so that they are held out as much as those that
the fit put aside. Calibrating on them costs one pass of the models and no training, and keeps what p-values promise: a
short slice says little about rare events, and amounts rise with the years.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.artifacts import pack_text, unpack_text
from anomaly.calibration import TailCalibrator
from anomaly.digest import calibration_check, money_field
from anomaly.errors import InputError
from anomaly.history import time_text
from anomaly.rehearsal import Reference
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, Errors, Scorer
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEWEST_HELD = 100  # events from which a calibration is made anew: with fewer, what was there is better
LEVELS = (0.01, 0.001)  # p-values at which the calibrations before and after are compared


@dataclass(frozen=True)
class Holdout:
    """The held-out slice that calibrated the detector: p, time in seconds, entity codes, money at risk; (n,) each.

    `names` are the entities that the codes stand for.
    """

    p: Float
    time: Float
    entity: NDArray[np.int32]
    money: Float
    names: NDArray[np.object_]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For an artifact."""
        names = pack_text(self.names)
        return {"p": self.p, "time": self.time, "entity": self.entity, "money": self.money, "names": names}

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]]) -> Holdout:
        """What `arrays` gave; others beside them are left alone."""
        return cls(arrays["p"], arrays["time"], arrays["entity"], arrays["money"], unpack_text(arrays["names"]))

    def within(self, chosen: Mask) -> Holdout:
        """The chosen ones of the events, (n,) bool."""
        return Holdout(self.p[chosen], self.time[chosen], self.entity[chosen], self.money[chosen], self.names)

    def surprises(self) -> pl.DataFrame:
        """Entity, time and surprise of the events."""
        surprise = -np.log10(np.maximum(self.p, 1e-300))
        return pl.DataFrame({"entity": self.names[self.entity].tolist(), "time": self.time, "surprise": surprise})

    def changes(self, before: Holdout, former: Float) -> dict[str, Any]:
        """What a recalibration on this slice did, as plain values for the manifest.

        Parameters
        ----------
        before : Holdout
            The slice that calibrated the detector before.
        former : ndarray, shape (n,)
            Natural logs of the p-values of the events of this slice under the calibration before.

        Returns
        -------
        dict
            ``events``, ``first`` and ``last`` (seconds) of the slice; ``new``, how many came after the slice before was
            over; ``before`` and ``after``, the shares of these at or below each p-value of `LEVELS`, if there are any.
        """
        new = self.time > before.time.max()
        said = {"before": np.exp(former[new]), "after": self.p[new]} if new.any() else {}
        return {
            "events": len(self.p),
            "first": float(self.time.min()),
            "last": float(self.time.max()),
            "new": int(new.sum()),
            **{when: {f"{level:g}": float((p <= level).mean()) for level in LEVELS} for when, p in said.items()},
        }


@dataclass(frozen=True, eq=False)
class Judged:
    """What the models say of N events: all that a calibration needs, and nothing of it depends on one.

    Attributes
    ----------
    frame : polars.DataFrame
        The canonical events, in the order of `sequences`.
    sequences : Sequences
        The same, encoded.
    errors : mapping of str to ndarray, shape (N, K)
        -ln of each field's tail probability by model; NaN before the longest window that ends at the held-out slice.
    """

    frame: pl.DataFrame
    sequences: Sequences
    errors: Errors

    def within(self, since: float, until: float | None = None) -> Mask:
        """Events from `since` on and before `until`, in seconds, (N,)."""
        time = self.sequences.time
        return (time >= since) & (time < (np.inf if until is None else until))


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A calibration of n held-out events.

    Attributes
    ----------
    scorer : Scorer
        Calibrated.
    holdout : Holdout
        The slice.
    usual : ndarray of bool, shape (n,)
        Which of them calibrated: all but those amid runs beyond doubt.
    check : dict
        See `anomaly.digest.calibration_check`.
    """

    scorer: Scorer
    holdout: Holdout
    usual: Mask
    check: dict[str, list[float]]


def calibrate(scorer: Scorer, judged: Judged, held: Mask, schema: Schema) -> Calibrated:
    """Fit every calibrator of `scorer` on the held-out events, (N,) bool, which trained and stopped nothing."""
    sequences = judged.sequences
    total = scorer.fit(judged.errors, sequences, held)
    normal = np.isfinite(total)
    p = np.exp(np.maximum(scorer.held_log_p_, LEAST_LOG_P))
    money = money_field(schema)
    worth = np.full(len(p), np.nan) if money is None else judged.frame[f"n:{money}"].to_numpy()[held]
    holdout = Holdout(p, sequences.time[held], sequences.sequence[held].astype(np.int32), worth, sequences.entity)
    return Calibrated(scorer, holdout, normal[held], calibration_check(total[normal], sequences.time[normal]))


def recalibrate(scorer: Scorer, judged: Judged, held: Mask, schema: Schema) -> Calibrated:
    """Calibrate another scorer of the same combination, as `calibrate`; the one given is left as it is."""
    return calibrate(Scorer(scorer.fields, scorer.combination), judged, held, schema)


def reference_of(judged: Judged, held: Mask, most: int, seed: int) -> Reference:
    """Whole genuine histories of some entities, up to a number of events, for a rehearsal."""
    sequences = judged.sequences
    order = np.random.default_rng(seed).permutation(len(sequences.entity))
    within = np.cumsum(sequences.lengths[order]) <= most
    within[0] = True
    which = np.sort(order[within])
    events = np.isin(sequences.sequence, which)
    some = {name: values[events] for name, values in judged.errors.items()}
    return Reference(some, sequences.take(which), held[events])


def checked_start(time: Float, fitted: float, since: float | None) -> float:
    """From when on events calibrate, in seconds; refused where they trained, are too few, or have no histories.

    Parameters
    ----------
    time : ndarray, shape (N,)
        Seconds of the events, histories included.
    fitted : float
        When the held-out slice of the fit began.
    since : float, optional
        What was asked for; by default that, so that all events count that were never trained on.

    Raises
    ------
    InputError
        Tells what is needed.
    """
    start = fitted if since is None else since
    if start < fitted:
        raise InputError(
            f"recalibrate: since {time_text(start)} is before {time_text(fitted)}, when the held-out slice of the fit "
            "began; the models were trained on earlier events and find them too usual; give a later time, or none"
        )
    count = int((time >= start).sum())
    if count < FEWEST_HELD:
        last = f"; the last one is of {time_text(time.max())}" if len(time) else ""
        raise InputError(
            f"recalibrate: {count} events from {time_text(start)} on, at least {FEWEST_HELD} are needed{last}; give "
            f"the events that came after the fit{'' if since is None else ', an earlier since'} or a later until"
        )
    if count == len(time):
        raise InputError(
            f"recalibrate: no event before {time_text(start)}; an event is judged by what came before it, so give the "
            "histories too, as for score"
        )
    return start


def calibration_mark(calibrated: Scorer | TailCalibrator) -> str:
    """Digest of what a scorer, or a calibrator, was calibrated to: other marks, other p-values."""
    digest = hashlib.sha256()
    for name, values in sorted(calibrated.arrays().items()):
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
