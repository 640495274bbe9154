"""Single time series with labelled windows (the Numenta Anomaly Benchmark), and the measures of TSB-AD for them.

A series is fitted on its first quarter, cut before the first labelled window, but on 15 % of its rows at least; all of
it is scored. Scores are arrays (n,), higher = stranger.

The measures are those that the benchmark TSB-AD (Liu & Paparrizos 2024) ranks by: VUS-PR with the series' period as the
largest tolerance, and AUC-PR. TSB-AD's own package asks for numpy below 2, so it cannot stand among this project's
dependencies. `vus_pr` computes the same number; `published_vus_pr` asks the package itself where somebody has put it
beside, with ``pip install --no-deps TSB-AD==1.5``, and a test compares the two. Other packages under the name VUS-PR
(TimeEval, aeon, dtaianomaly: one code) join the points of the curve by trapezoids, begin the tolerance after an anomaly
one point early, and count half of the whole tolerance as what should be found, alarm or not. On the seven series here
they differ from TSB-AD by up to 0.08, and by 0.002 in the mean of six.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.evaluation import average_precision

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FIT_SHARE, LEAST_SHARE = 0.25, 0.15  # of a series' rows
THRESHOLDS = 250  # of a precision-recall curve
LONGEST = 20_000  # points that the period is estimated from
SHORTEST_LAG, LAGS, LARGEST_LAG = 3, 400, 300
NO_PERIOD = 125  # the window where no period is found


@dataclass(frozen=True)
class Series:
    """One series with its labels.

    Attributes
    ----------
    name : str
        Of the file, without its ending.
    time : list of datetime
        Of the n points, as the file says them.
    value : ndarray (n,)
        What was measured.
    label : ndarray of bool (n,)
        Does the point lie in a labelled window, both ends included.
    fitted : int
        How many points, from the first, may be learned from.
    """

    name: str
    time: list[datetime]
    value: Floats
    label: Bools
    fitted: int

    @property
    def until(self) -> datetime:
        """Time of the first point that may not be learned from."""
        return self.time[self.fitted]


def series_names(folder: Path) -> list[str]:
    """Names of the series in a folder, sorted."""
    return sorted(Path(file).stem for file in _windows(folder))


def load_series(folder: Path, name: str) -> Series:
    """Read a series and its windows.

    Parameters
    ----------
    folder : Path
        With the series (CSV files of timestamp and value) and windows.json, which gives begin and end of each file's
        windows.
    name : str
        Of the file, without its ending.
    """
    table = pl.read_csv(folder / f"{name}.csv", schema_overrides={"value": pl.Float64})
    time = table["timestamp"].str.to_datetime()
    label = np.zeros(len(table), dtype=bool)
    for begin, end in _windows(folder)[f"{name}.csv"]:
        label |= time.is_between(datetime.fromisoformat(begin), datetime.fromisoformat(end)).to_numpy()
    return Series(name, time.to_list(), table["value"].to_numpy(), label, fitted_points(label))


def fitted_points(label: Bools) -> int:
    """Tell how many of the first points may be learned from.

    The first quarter, cut before the first labelled point, but 15 % at least: a series whose first window comes earlier
    teaches that window as normal.

    >>> [fitted_points(np.arange(100) == first) for first in (50, 20, 5)]
    [25, 20, 15]
    """
    first = int(np.argmax(label)) if label.any() else label.size
    return max(int(LEAST_SHARE * label.size), min(int(FIT_SHARE * label.size), first))


def distance_from_median(series: Series) -> Floats:
    """Score (n,) by the simplest rule: |value - median of the fitted part|."""
    return np.abs(series.value - np.median(series.value[: series.fitted]))


def auc_pr(score: Floats, label: Bools) -> float:
    """Average precision, every point of a window a positive: the same number as TSB-AD's AUC-PR."""
    return average_precision(score, label)


def period(value: Floats) -> int:
    """Estimate a series' period as TSB-AD does (`find_length_rank`): the lag of the highest peak of autocorrelation.

    Lags from 4 to 400 over the first 20,000 points; 125 where there is no peak, or the highest is too near or too far.

    Parameters
    ----------
    value : ndarray (n,)
        The series itself, not a score; no NaN.
    """
    some = value[:LONGEST] - np.mean(value[:LONGEST])
    spectrum = np.fft.rfft(some, 2 * len(some))
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[: min(LAGS + 1, len(some))]
    if not covariance[0] > 0:
        return NO_PERIOD
    curve = covariance[SHORTEST_LAG:]
    peaks = np.flatnonzero((curve[1:-1] > curve[:-2]) & (curve[1:-1] > curve[2:])) + 1
    if not peaks.size:
        return NO_PERIOD
    highest = int(peaks[np.argmax(curve[peaks])])
    return highest + SHORTEST_LAG if SHORTEST_LAG <= highest <= LARGEST_LAG else NO_PERIOD


class Span(NamedTuple):
    """Points `first` to `last` of an anomaly, both included."""

    first: int
    last: int


def vus_pr(score: Floats, label: Bools, window: int) -> float:
    """Volume under the surface of precision and recall (Paparrizos et al. 2022), as TSB-AD computes it.

    The mean, over the tolerances w = 0 to `window`, of an area under precision and recall in which a point near an
    anomaly counts in part. With weights g(t) = 1 inside the anomalies and sqrt(1 - d / w) at distance d <= w / 2 of
    one (added up and cut at 1 where two are near), and the points above a threshold as alarms:

    - TP = sum of g over the alarms, precision = TP / alarms;
    - recall = min(1, TP / P') times the share of the widened anomalies (those that touch count as one) that hold an
      alarm, where P' = points of the anomalies + half of what the alarms get outside them;
    - the area is the sum of (step of recall) x precision over 250 thresholds, which are every (n / 250)-th score.

    Parameters
    ----------
    score : ndarray (n,)
        Higher = stranger. Equal scores enter together.
    label : ndarray of bool (n,)
        Points of an anomaly.
    window : int
        The largest tolerance in points; `period` of the series.

    Returns
    -------
    float
        In [0, 1]; 1 = all anomalies before all else.

    Raises
    ------
    ValueError
        If a score is NaN, lengths differ, or nothing is labelled.
    """
    score, label = np.asarray(score, dtype=np.float64), np.asarray(label, dtype=bool)
    if score.shape != label.shape or np.isnan(score).any() or not label.any():
        raise ValueError(
            f"vus_pr: expected scores without NaN and labels of one length, some of them true; got scores "
            f"{score.shape} with {int(np.isnan(score).sum())} NaN, labels {label.shape} with {int(label.sum())} true"
        )
    order = np.argsort(-score, kind="stable")
    threshold = score[order][np.linspace(0, score.size - 1, THRESHOLDS).astype(np.int64)]
    alarms = np.searchsorted(-score[order], -threshold, side="right")  # points at the threshold or above
    inside = np.cumsum(label[order])[alarms - 1]
    spans = _spans(label)
    areas = []
    for tolerance in range(window + 1):
        found = np.cumsum(_weights(label, spans, tolerance)[order])[alarms - 1]
        peaks = np.array([score[one.first : one.last + 1].max() for one in _widened(spans, tolerance // 2, score.size)])
        touched = (peaks[:, None] >= threshold).mean(axis=0)
        recall = np.minimum(found / (label.sum() + (found - inside) / 2), 1.0) * touched
        areas.append(float(np.sum(np.diff(recall, prepend=0.0) * found / alarms)))
    return float(np.mean(areas))


def published_vus_pr(score: Floats, label: Bools, window: int) -> float:
    """Compute `vus_pr` by the package TSB-AD itself, which is no dependency of this project: see above.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    from TSB_AD.evaluation.basic_metrics import generate_curve

    return float(generate_curve(label.astype(np.int64), score, window, "opt", THRESHOLDS)[-1])


def _spans(label: Bools) -> list[Span]:
    """Runs of labelled points."""
    edges = np.diff(label.astype(np.int8), prepend=0, append=0)
    firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [Span(int(first), int(end) - 1) for first, end in zip(firsts, ends, strict=True)]


def _weights(label: Bools, spans: list[Span], tolerance: int) -> Floats:
    """How much of an anomaly each point is, shape (n,)."""
    weight = label.astype(np.float64)
    for span in spans:
        after = np.arange(span.last + 1, min(span.last + tolerance // 2 + 1, label.size))
        before = np.arange(max(span.first - tolerance // 2, 0), span.first)
        weight[after] += np.sqrt(1 - (after - span.last) / tolerance) if after.size else 0.0
        weight[before] += np.sqrt(1 - (span.first - before) / tolerance) if before.size else 0.0
    return np.minimum(weight, 1.0)


def _widened(spans: list[Span], reach: int, size: int) -> list[Span]:
    """The anomalies with `reach` points more on either side; those that then touch are one."""
    found: list[Span] = []
    for span in spans:
        wide = Span(max(span.first - reach, 0), min(span.last + reach, size - 1))
        if found and found[-1].last >= wide.first:
            found[-1] = Span(found[-1].first, wide.last)
        else:
            found.append(wide)
    return found


def _windows(folder: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = json.loads((folder / "windows.json").read_text(encoding="utf-8"))
    return found
