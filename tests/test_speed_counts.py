"""What an event costs, counted and not timed, so that it holds on any machine: steps, and bytes that are allocated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DAY, History
from torch.utils._python_dispatch import TorchDispatchMode

from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel, averaged
from anomaly.models.batches import Events
from anomaly.models.cells import Memory
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training
from anomaly.sequences import Sequences

HIDDEN = 8
ROWS, LENGTH = 32, 128


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all new tensors that operations make; views and work in place cost none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs or {}))}
        for one in _tensors(result):
            if one.untyped_storage().data_ptr() not in given:
                self.bytes += one.numel() * one.element_size()
        return result


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


def many(history: History, rows: int, length: int) -> Sequences:
    """So many entities of so many events."""
    pick = np.arange(rows * length) % len(history.sequences)
    return Sequences(
        entity=np.arange(rows).astype(str).astype(object),
        offsets=np.arange(rows + 1) * length,
        time=np.tile(np.arange(length, dtype=np.float64) * 3600.0, rows),
        numeric=history.sequences.numeric[pick],
        category=history.sequences.category[pick],
        row=np.arange(rows * length),
    )


def numbers_of(model: SequenceModel) -> int:
    """Numbers that the model makes of an event at least: inputs, gates, statistics and outputs."""
    assert model.network_ is not None
    fields = model.fields
    read = model.network_.memory.embedding.size + len(model.numeric_) + len(model.category_)
    return read + 6 * HIDDEN + 1 + 2 * len(averaged(model.numeric_)) + fields.number_width + fields.category_width


MODELS = [Forecaster(hidden=HIDDEN), Forecaster(hidden=HIDDEN, quarantine=DAY), Autoencoder(hidden=HIDDEN)]


@pytest.mark.parametrize("model", MODELS)
def test_scoring_takes_one_step_for_each_event(
    history: History, model: SequenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.prepare(history.numeric, history.category)
    steps: list[int] = []
    read = Memory.read

    def counting(self: Memory, events: Events, *rest: Any) -> object:
        steps.append(len(events))
        return read(self, events, *rest)

    monkeypatch.setattr(Memory, "read", counting)
    model.errors(many(history, ROWS, LENGTH))
    assert sum(steps) == ROWS * LENGTH  # rows of one length need no padding


@pytest.mark.parametrize("model", MODELS)
def test_bytes_allocated_for_an_event_are_bounded_however_long_the_history(
    history: History, model: SequenceModel
) -> None:
    model.prepare(history.numeric, history.category)
    spent = []
    for rows, length in ((ROWS, LENGTH), (1, ROWS * LENGTH)):
        with Allocated() as allocated:
            model.errors(many(history, rows, length))
        spent.append(allocated.bytes / (rows * length))
    # About four numbers are made for each that is needed; windows of 32 would be 32 times the inputs alone.
    assert max(spent) <= 4 * 6 * numbers_of(model)


@pytest.mark.parametrize("name", ["forecaster", "autoencoder"])
def test_bytes_allocated_for_an_event_that_trains_are_bounded(history: History, name: str) -> None:
    training = Training(epochs=1, drop_share=0.0)
    model: SequenceModel = (Forecaster if name == "forecaster" else Autoencoder)(hidden=HIDDEN, training=training)
    sequences = many(history, ROWS, LENGTH)
    valid = np.zeros(len(sequences), dtype=bool)
    valid[-1] = True
    with Allocated() as allocated:
        model.fit(sequences, history.numeric, history.category, train=~valid, valid=valid)
    assert allocated.bytes / len(sequences) <= 4 * 14 * numbers_of(model)
