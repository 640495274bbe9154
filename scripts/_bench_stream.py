"""What one live event costs: latency of `Stream.push` and the state of an entity.

    python3 scripts/_bench_stream.py DETECTOR EVENTS [--events N]

pushes the first N events of a table in the order of time, and measures the second half of them one by one, on one core.
`measure` is for other scripts. How fast the machine is just then is told by one plain step of an LSTM in numpy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from anomaly import Detector, Stream

Microseconds = np.ndarray[tuple[int], np.dtype[np.float64]]


def measure(detector: Detector, events: pl.DataFrame) -> dict[str, float]:
    """Figures of the events' second half, after the first half was pushed.

    By the clock on the wall ``p50_us`` and ``p99_us``; in processor time, without what other processes take,
    ``cpu_p50_us`` and ``cpu_p99_us``; ``state_bytes`` of the median entity and ``most_state_bytes``; ``lstm_step_us``,
    a step of an LSTM of 64 units in plain numpy at the same time, at the median.
    """
    rows = events.sort(detector.schema.time, maintain_order=True).to_dicts()
    stream, half = Stream(detector), len(rows) // 2
    for row in rows[:half]:
        stream.push(row)
    wall, processor = np.zeros(len(rows) - half), np.zeros(len(rows) - half)
    for at, row in enumerate(rows[half:]):
        began, started = time.perf_counter_ns(), time.thread_time_ns()
        stream.push(row)
        processor[at], wall[at] = time.thread_time_ns() - started, time.perf_counter_ns() - began
    sizes = [stream.state_bytes(entity) for entity in stream.entities()]
    return {
        "p50_us": float(np.quantile(wall, 0.5)) / 1e3,
        "p99_us": float(np.quantile(wall, 0.99)) / 1e3,
        "cpu_p50_us": float(np.quantile(processor, 0.5)) / 1e3,
        "cpu_p99_us": float(np.quantile(processor, 0.99)) / 1e3,
        "state_bytes": float(np.median(sizes)),
        "most_state_bytes": float(max(sizes)),
        "lstm_step_us": float(np.median(timed(lstm_step(), 2_000))),
    }


def lstm_step(hidden: int = 64, inputs: int = 16) -> Callable[[], None]:
    """One step of one LSTM in numpy, as one would write it down."""
    draw = np.random.default_rng(0)
    weight = draw.normal(0, 0.1, (4 * hidden, inputs + hidden)).astype(np.float32)
    given, memory, cell = (np.zeros(size, dtype=np.float32) for size in (inputs, hidden, hidden))

    def step() -> None:
        gates = weight @ np.concatenate([given, memory])
        let_in, kept, shown = (1 / (1 + np.exp(-gates[at * hidden : (at + 1) * hidden])) for at in (0, 1, 3))
        cell[:] = kept * cell + let_in * np.tanh(gates[2 * hidden : 3 * hidden])
        memory[:] = shown * np.tanh(cell)

    return step


def timed(work: Callable[[], None], times: int) -> Microseconds:
    """Processor time of each call, in microseconds."""
    found = np.zeros(times)
    for at in range(times):
        began = time.thread_time_ns()
        work()
        found[at] = (time.thread_time_ns() - began) / 1e3
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--events", type=int, default=40_000)
    wish = parser.parse_args(arguments)
    detector = Detector.load(wish.detector)
    events = pl.scan_parquet(wish.data).sort(detector.schema.time).head(wish.events).collect()
    print(json.dumps({"events": len(events), **measure(detector, events)}))


if __name__ == "__main__":
    main()
