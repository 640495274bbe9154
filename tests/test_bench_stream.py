"""The bench of a stream: every figure is there and sensible."""

from __future__ import annotations

import _bench_stream
import polars as pl

from anomaly.detector import Detector


def test_a_stream_is_measured(detector: Detector, payments: pl.DataFrame) -> None:
    found = _bench_stream.measure(detector, payments.head(400))
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert 0 < found["cpu_p50_us"] <= found["cpu_p99_us"]
    assert 0 < found["state_bytes"] <= found["most_state_bytes"] < 64_000
    assert 0 < found["lstm_step_us"] < found["cpu_p50_us"]
