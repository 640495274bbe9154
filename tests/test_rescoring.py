"""Rescoring: a version of an event has the score that it has when it is written into the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from anomaly import rescoring
from anomaly.detector import Detector
from anomaly.ingest import read_events
from anomaly.rescoring import Rescorer

Untidy = Callable[[float | None], Detector]
Int = NDArray[np.int64]


def rescorer(detector: Detector, frame: pl.DataFrame, histories: list[Int]) -> Rescorer:
    return Rescorer(
        detector.encoder_, detector.scorer_, detector.errors, detector.quarantine_, frame, histories,
        detector.schema.categorical,
    )  # fmt: skip


def histories_of(frame: pl.DataFrame, at: list[int]) -> list[Int]:
    entity = frame["entity"].to_list()
    return [np.arange(entity.index(entity[one]), one + 1) for one in at]


def slowly(detector: Detector, frame: pl.DataFrame, at: Int, edit: Mapping[str, Any]) -> tuple[float, float]:
    """Log p of the last of the events `at` with its columns edited, and of a usual event there: all scored anew."""
    changed = frame[at].with_columns(
        pl.when(pl.int_range(pl.len()) == len(at) - 1)
        .then(pl.lit(value, frame.schema[name]))
        .otherwise(name)
        .alias(name)
        for name, value in edit.items()
    )
    sequences = detector.encoder_.transform(changed)
    errors = detector.errors(sequences)
    log_p = float(detector.scorer_.judge(errors, sequences).log_p[-1])
    past = detector.scorer_.past(errors, sequences)
    pace = detector.scorer_.pace(sequences)[-1:]
    return log_p, float(detector.scorer_.past_alone(past.sums[-1:], past.number[-1:], pace)[0])


def edits_of(frame: pl.DataFrame, at: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """An event as it is, and with other numbers, categories, places and times, one by one and together."""
    edits: list[dict[str, Any]] = [{}]
    for name in (one for one in frame.columns if one[:2] in ("n:", "c:")):
        values = [value for value in frame[name].unique().sort().to_list() if value is not None]
        edits += [{name: values[one]} for one in rng.integers(0, len(values), 3)]
    place = frame.filter(pl.col("p:latitude").is_not_null()).select("p:latitude", "p:longitude").row(0, named=True)
    now = frame.select("time", "clock").row(at, named=True)
    moves = [{name: value + 3600.0 * hours for name, value in now.items()} for hours in (0.5, 7.0, 23.0, 90.0)]
    edits += [dict(place), *moves]
    return [*edits, *({**edits[one], **edits[other]} for one, other in rng.integers(0, len(edits), (6, 2)))]


@pytest.mark.parametrize("hours", [None, 0.0, 1.0, 48.0])
def test_a_version_scores_as_in_the_table(
    untidy_detector: Untidy, untidy: pl.DataFrame, hours: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescoring, "MOST_ROWS", 300)
    detector, rng = untidy_detector(hours), np.random.default_rng(0)
    frame = read_events(untidy, detector.schema).frame
    position = frame.select(pl.int_range(pl.len()).over("entity")).to_series()
    first, last = int((position == 0).arg_max() or 0), len(frame) - 1
    at = [first, first + 1, *rng.integers(0, len(frame), 5).tolist(), last]
    histories = histories_of(frame, at)
    made = rescorer(detector, frame, histories)
    tries = [(number, edit) for number, one in enumerate(at) for edit in edits_of(frame, one, rng)]
    order = rng.permutation(len(tries))
    found = made.score(np.array([tries[one][0] for one in order]), [tries[one][1] for one in order])
    expected = [slowly(detector, frame, histories[tries[one][0]], tries[one][1]) for one in order]
    for mine, its in zip(found, np.array(expected).T, strict=True):
        assert np.isnan(mine).tolist() == np.isnan(its).tolist()
        np.testing.assert_allclose(np.exp(mine), np.exp(its), atol=1e-6, rtol=1e-4)
    assert len(np.unique(np.round(found[0], 3))) > 20


def test_events_may_be_left_out_of_a_history(detector: Detector, payments: pl.DataFrame) -> None:
    frame = read_events(payments, detector.schema).frame
    whole = histories_of(frame, [len(frame) - 1, len(frame) // 2])
    holes = [np.delete(one, [2, len(one) - 3, len(one) - 2]) for one in whole]
    log_p, alone = rescorer(detector, frame, holes).score(np.array([1, 0]), [{}, {}])
    expected = [slowly(detector, frame, one, {}) for one in reversed(holes)]
    np.testing.assert_allclose(np.stack([log_p, alone], axis=1), expected, rtol=1e-5)


def test_what_was_unusual_before_is_what_the_breakdown_counts(
    detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame
) -> None:
    frame = read_events(payments, detector.schema).frame
    rows = scores.sort("recent")["row"].tail(10).to_list()
    at = [int((frame["row"] == row).arg_max() or 0) for row in rows]
    made = rescorer(detector, frame, histories_of(frame, at))
    told = detector._broken_down(payments, rows, scores)[1].windows
    longest = dict(told.sort("seconds").group_by("row").agg(pl.last("unusual")).iter_rows())
    assert [len(made.unusual_before(number)) for number in range(len(at))] == [longest[row] for row in rows]
    assert max(longest.values()) > 1


def test_nothing_asked_is_nothing_told(detector: Detector, payments: pl.DataFrame) -> None:
    frame = read_events(payments, detector.schema).frame
    made = rescorer(detector, frame, histories_of(frame, [5]))
    assert [len(values) for values in made.score(np.zeros(0, dtype=np.int64), [])] == [0, 0]
