"""A pilot: real small fits on simulated payments, compared on the same planted frauds."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from anomaly import pilot
from anomaly.errors import InputError, ParameterError
from anomaly.ingest import read_events
from anomaly.pilot import choose_quarantine
from anomaly.rehearsal import LEAST_GAIN
from anomaly.schema import Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return simulate(customers=40, days=60, seed=3)[0]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot, "HIDDEN", 8)
    monkeypatch.setattr(pilot, "EPOCHS", 1)


def test_the_usual_quarantine_stays_unless_another_is_clearly_better(events: pl.DataFrame) -> None:
    found = choose_quarantine(events, SIMULATED_SCHEMA, gaps=(0,), progress=False)
    assert len(found.trials) == 2
    usual, none = found.trials
    assert none["hours"] == 0 < usual["hours"]
    assert usual["gain"] == 0
    assert none["gain"] == pytest.approx(none["precision"] - usual["precision"])
    better = none["gain"] > max(2 * none["standard_error"], LEAST_GAIN)
    assert (none["taken"], usual["taken"]) == (better, not better)
    assert found.hours == (none if better else usual)["hours"]
    assert choose_quarantine(events, SIMULATED_SCHEMA, gaps=(0,), progress=False) == found  # same seed, same numbers


def test_a_candidate_that_gains_clearly_is_taken(events: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot, "caution", lambda _error: -1.0)
    found = choose_quarantine(events, SIMULATED_SCHEMA, gaps=(0, 3), progress=False)
    best = max(found.trials, key=lambda one: one["precision"])
    assert best["taken"]
    assert found.hours == best["hours"]


def test_events_after_the_end_and_labels_change_nothing(events: pl.DataFrame) -> None:
    until = "2024-02-10"
    whole = choose_quarantine(events, SIMULATED_SCHEMA, until=until, gaps=(0,), progress=False)
    cut = events.filter(pl.col("time") < pl.lit(until).str.to_datetime(time_zone="UTC"))
    assert choose_quarantine(cut, SIMULATED_SCHEMA, gaps=(0,), progress=False) == whole


def test_a_sample_holds_whole_histories(events: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot, "MOST_EVENTS", 900)
    frame = read_events(events, SIMULATED_SCHEMA).frame
    some = pilot._sample(frame, seed=1)
    lengths = dict(frame.group_by("entity").len().iter_rows())
    assert 0 < len(some) <= 900
    assert dict(some.group_by("entity").len().iter_rows()).items() <= lengths.items()
    assert (
        some["row"].to_list()
        == frame.filter(pl.col("entity").is_in(some["entity"].unique().implode()))["row"].to_list()
    )


def test_what_cannot_be_rehearsed_is_said() -> None:
    clock, bare = pl.DataFrame({"at": np.arange(300) * 60}), Schema(time="at")
    with pytest.raises(InputError, match="no kind of fraud can be planted"):
        choose_quarantine(clock, bare, progress=False)
    with pytest.raises(ParameterError, match="at least 0"):
        choose_quarantine(clock, bare, gaps=(-1,))
