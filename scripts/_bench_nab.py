"""Single time series with labelled windows: the seven of known causes of the Numenta Anomaly Benchmark."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from _bench_work import Data, Done, Found, Piece, Sizes, epochs
from _series import Series, auc_pr, distance_from_median, load_series, period, series_names, vus_pr
from nab import SCHEMA
from numpy.typing import NDArray

from anomaly.detector import Detector

Floats = NDArray[np.float64]

SECTION = "nab"
SCORERS = ("distance_from_median", "autoencoder", "forecaster", "ours")
LEFT_OUT = "rogue_agent_key_hold"  # of the means, as in TSB-AD
COUNTED = 6  # series in a mean
MEASURES = ("vus_pr", "auc_pr")


def pieces(sizes: Sizes, data: Data) -> list[Piece]:
    """One for each series."""
    names = series_names(data.nab) if data.nab.is_dir() else ["all"]
    return [Piece(SECTION, name, partial(one_series, sizes, data, name), data.nab) for name in names]


def one_series(sizes: Sizes, data: Data, name: str) -> Found:
    """Fit on the first part, score the whole, measure."""
    series = load_series(data.nab, name)
    scores = {"distance_from_median": distance_from_median(series), **ours(series, sizes)}
    window = period(series.value)
    return {
        "scorers": {
            scorer: {"vus_pr": vus_pr(score, series.label, window), "auc_pr": auc_pr(score, series.label)}
            for scorer, score in scores.items()
        }
    }


def ours(series: Series, sizes: Sizes) -> dict[str, Floats]:
    """Score (n,) by our detector and each of its models; a point without a statement, or refused, counts as usual."""
    events = pl.DataFrame({"timestamp": series.time, "value": series.value})
    detector = Detector(SCHEMA, hidden=sizes.hidden, epochs=epochs(sizes.data_epochs))
    scores = detector.fit(events.head(series.fitted), progress=False).score(events)
    columns = {name: -np.log10(scores[f"p_{name}"].to_numpy()) for name in ("autoencoder", "forecaster")}
    columns["ours"] = scores["surprise"].to_numpy()
    found = {name: np.zeros(len(events)) for name in columns}
    for name, values in columns.items():
        found[name][scores["row"].to_numpy()] = np.nan_to_num(values, nan=0.0)
    return found


def figures(done: Done, sizes: Sizes) -> dict[str, float]:  # noqa: ARG001 - every section is asked the same
    """Each series, and the mean of all but one as soon as all of them are there."""
    result = {
        f"{SECTION}.{scorer}.{name}.{key}": value
        for name, found in done.items()
        for scorer, values in found["scorers"].items()
        for key, value in values.items()
    }
    counted = [name for name in done if name != LEFT_OUT]
    for scorer in SCORERS if len(counted) == COUNTED else ():
        for key in MEASURES:
            each = [result[f"{SECTION}.{scorer}.{name}.{key}"] for name in counted]
            result[f"{SECTION}.{scorer}.{key}"] = float(np.mean(each))
    return result | ({f"{SECTION}.series": len(counted)} if counted else {})
