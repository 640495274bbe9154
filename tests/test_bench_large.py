"""The events of the large bench: as many as asked for, in the order of time, readable by the schema, and cheap."""

from __future__ import annotations

from pathlib import Path

import _bench_large
import polars as pl
import pytest

from anomaly.ingest import read_events
from anomaly.simulator import SIMULATED_SCHEMA


def test_the_events_are_as_many_as_asked_for_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench_large, "PIECE", 1_000)
    folder = _bench_large.make_events(tmp_path / "events", 2_500)
    assert len(list(folder.iterdir())) == 3
    read = read_events(folder, SIMULATED_SCHEMA)
    assert (len(read), len(read.rejects)) == (2_500, 0)
    by_row = read.frame.sort("row")
    assert by_row["time"].is_sorted()
    assert by_row["event_id"].n_unique() == 2_500
    assert read.frame["entity"].n_unique() == 2_500 // _bench_large.PER_CUSTOMER
    again = _bench_large.make_events(tmp_path / "again", 2_500)
    assert pl.read_parquet(sorted(again.iterdir())).equals(pl.read_parquet(sorted(folder.iterdir())))
