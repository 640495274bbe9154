"""Batches: what a memory holds, in which order events are read, and that each is read once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from conftest import DAY, History
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel, averaged
from anomaly.models.batches import CLIP, Events, Plan, Table, memory_border, memory_statistics
from anomaly.models.cells import Memory
from anomaly.models.forecaster import Forecaster
from anomaly.sequences import Sequences

Trained = Callable[..., SequenceModel]


def sequences_of(histories: list[list[tuple[float, float]]]) -> Sequences:
    """Sequences of one numeric column from pairs of a gap and a value."""
    values = [value for history in histories for _, value in history]
    return Sequences(
        entity=np.array([f"e{at}" for at in range(len(histories))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in histories])]).astype(np.int64),
        time=np.concatenate([np.cumsum([gap for gap, _ in history]) for history in histories]),
        numeric=np.array(values, dtype=np.float32)[:, None],
        category=np.zeros((len(values), 0), dtype=np.int32),
        row=np.arange(len(values)),
    )


def plain(sequences: Sequences) -> list[oracles.Event]:
    events: list[oracles.Event] = []
    for number, entity in enumerate(sequences.entity):
        past: list[oracles.Event] = []
        for at in range(sequences.offsets[number], sequences.offsets[number + 1]):
            time, value = float(sequences.time[at]), float(sequences.numeric[at, 0])
            event = oracles.Event(entity, time, time, {"value": value}, {}, (0.0, 0.0), tuple(past))
            past.append(event)
            events.append(event)
    return events


gaps = st.sampled_from([0.0, 0.5, 59.0, 3600.0, 86_399.0, 86_400.0, 86_401.0, 200_000.0])
values = st.sampled_from([np.nan, 0.0, 1.0, -2.0, 100.0, -1e4]) | st.floats(-3, 3, width=32)
histories = st.lists(st.lists(st.tuples(gaps, values), min_size=1, max_size=9), min_size=1, max_size=4)


@settings(deadline=None)
@given(histories, st.sampled_from([0.0, 1.0, 86_400.0, 1e7]))
def test_a_memory_holds_the_earlier_events_that_are_old_enough(
    drawn: list[list[tuple[float, float]]], quarantine: float
) -> None:
    sequences = sequences_of(drawn)
    held = oracles.remembered(plain(sequences), quarantine)
    border = memory_border(sequences, quarantine)
    start = np.repeat(sequences.offsets[:-1], sequences.lengths)
    assert (border - start).tolist() == [len(one) for one in held]
    found = memory_statistics(sequences, border, [0])
    expected = [oracles.statistics([event.numbers["value"] for event in one], CLIP) for one in held]
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-4, atol=1e-4)
    by_number = {len(one): float(number) for one, number in zip(held, found[:, 0], strict=True)}
    assert sorted(by_number.values()) == [by_number[number] for number in sorted(by_number)]


def test_how_old_an_entity_is_is_told_up_to_twenty_events() -> None:
    """What was learned of entities two months old must hold for those two years old."""
    sequences = sequences_of([[(3600.0, 1.0)] * 500])
    found = memory_statistics(sequences, memory_border(sequences, 0.0), [0])[:, 0]
    np.testing.assert_allclose(found[:21], (np.log1p(np.arange(21)) - 3.0) / 2.0, rtol=1e-6)
    assert (found[20:] == found[20]).all()


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=40)


@settings(deadline=None)
@given(lengths, st.integers(1, 200), st.integers(1, 40), st.none() | st.integers(1, 40), st.none() | st.integers(1, 60))
def test_a_plan_reads_every_event_once_and_those_of_a_row_in_order(
    drawn: list[int], events: int, steps: int, least: int | None, longest: int | None
) -> None:
    offsets = np.concatenate([[0], np.cumsum(drawn)]).astype(np.int64)
    plan = Plan.of(offsets, events=events, steps=steps, least=least, longest=longest)
    seen: list[int] = []
    for group in range(len(plan.groups)):
        rows: dict[int, list[int]] = {}
        for chunk in plan.chunks(group):
            assert len(chunk.index) <= steps
            assert (chunk.index >= 0).all()
            assert (chunk.index < offsets[-1]).all()
            for row, start in enumerate(chunk.start):
                rows.setdefault(int(start), []).extend(chunk.index[chunk.valid[:, row], row].tolist())
        for start, read in rows.items():
            assert read == list(range(start, start + len(read)))
            assert longest is None or len(read) <= longest
            seen += read
    assert sorted(seen) == list(range(offsets[-1]))
    assert plan.events == offsets[-1]


@settings(deadline=None)
@given(lengths, st.data())
def test_a_plan_reads_no_further_than_it_was_told(drawn: list[int], data: st.DataObject) -> None:
    offsets = np.concatenate([[0], np.cumsum(drawn)]).astype(np.int64)
    until = np.array([data.draw(st.integers(0, length)) for length in drawn])
    plan = Plan.of(offsets, until=until, events=50, steps=7)
    chunks = [chunk for group in range(len(plan.groups)) for chunk in plan.chunks(group)]
    seen = sorted(index for chunk in chunks for index in chunk.index[chunk.valid].tolist())
    assert seen == [
        offset + at for offset, stop in zip(offsets[:-1].tolist(), until.tolist(), strict=True) for at in range(stop)
    ]


def lengths_of(law: str) -> NDArray[np.int64]:
    draw = np.random.default_rng(0)
    return {
        "as of cards": np.exp(draw.normal(5.0, 0.6, 2000)).astype(np.int64) + 1,
        "equal": np.full(3000, 37),
        "short": draw.geometric(1 / 40, 3000),
        "heavy": np.minimum(1 + draw.pareto(1.0, 3000) * 10, 20_000).astype(np.int64),
        "one giant": np.array([30_000, *[1] * 3000]),
    }[law]


def steps_of(lengths: NDArray[np.int64]) -> int:
    plan = Plan.of(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), events=16_384, steps=64)
    return sum(chunk.index.size for group in range(len(plan.groups)) for chunk in plan.chunks(group))


@pytest.mark.parametrize("law", ["as of cards", "equal"])
def test_padding_costs_little(law: str) -> None:
    assert steps_of(lengths_of(law)) <= 1.15 * lengths_of(law).sum()


@pytest.mark.parametrize("law", ["short", "heavy", "one giant"])
def test_padding_is_bounded_at_its_worst(law: str) -> None:
    assert steps_of(lengths_of(law)) <= 1.5 * lengths_of(law).sum()


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps times rows of each call of a memory, from now on."""
    steps: list[int] = []
    read = Memory.read

    def counting(self: Memory, events: Events, *rest: Any) -> object:
        steps.append(len(events))
        return read(self, events, *rest)

    monkeypatch.setattr(Memory, "read", counting)
    return steps


@pytest.mark.parametrize("name", ["forecaster", "autoencoder"])
def test_as_many_events_as_many_steps(
    trained: Trained, history: History, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass: a window slid over each event would cost as many times more as it is long."""
    model = trained(name)
    plan = Plan.of(history.sequences.offsets, events=16_384, steps=64)
    steps = counted_steps(monkeypatch)
    model.errors(history.sequences)
    assert len(history.sequences) <= sum(steps) <= len(history.sequences) + 64 * len(history.sequences.entity)
    assert sum(steps) <= sum(chunk.index.size for at in range(len(plan.groups)) for chunk in plan.chunks(at))


def test_training_too_reads_each_event_once_an_epoch(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly.models.training import Training

    steps = counted_steps(monkeypatch)
    model = Forecaster(hidden=4, training=Training(epochs=1, batch_events=256))
    model.fit(history.sequences, history.numeric, history.category, train=history.train, valid=history.valid)
    # The whole history is read once more, to judge the epoch by the later events.
    assert sum(steps) <= int(history.train.sum()) + len(history.sequences) + 2 * 64 * len(history.sequences.entity)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return result


@pytest.mark.parametrize("model", [Forecaster(hidden=8), Forecaster(hidden=8, quarantine=DAY), Autoencoder(hidden=8)])
def test_no_window_is_copied_out(history: History, model: SequenceModel) -> None:
    """The largest tensor of a pass over a long history is no larger than its events and what is said of each."""
    long = one_long(history, 5000)
    model.prepare(history.numeric, history.category)
    with Largest() as largest:
        model.errors(long)
    columns = len(history.numeric) + len(history.category)
    said = 1 + 2 * len(averaged(history.numeric))
    assert largest.numbers <= len(long) * max(columns, said, model.hidden) + 200_000


def one_long(history: History, events: int) -> Sequences:
    """One entity with the events of all, again and again."""
    sequences = history.sequences
    pick = np.arange(events) % len(sequences)
    return Sequences(
        entity=np.array(["long"], dtype=object),
        offsets=np.array([0, events]),
        time=np.arange(events, dtype=np.float64) * 3600.0,
        numeric=sequences.numeric[pick],
        category=sequences.category[pick],
        row=np.arange(events),
    )


def test_a_table_holds_copies_that_training_cannot_change(history: History) -> None:
    table = Table.of(history.sequences, DAY, [0], torch.device("cpu"))
    before = history.sequences.numeric.copy()
    table.numeric.fill_(0.0)
    np.testing.assert_array_equal(history.sequences.numeric, before)
