"""Backbones: one interface, whatever remembers; what they see, and that chunks, padding and batches change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DAY, History, events_of
from torch import Tensor

from anomaly.errors import ParameterError
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.backbones import CAUSAL, CONV_REACH, LAYERS, WINDOW, State
from anomaly.models.batches import Events, Plan, Table
from anomaly.models.cells import Memory, Reader
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training

NAMES = list(CAUSAL)
HIDDEN = 8


@pytest.fixture(params=NAMES)
def memory(request: pytest.FixtureRequest, history: History) -> Memory:
    torch.manual_seed(0)
    return Memory(history.numeric, history.category, HIDDEN, request.param).eval()


def rows_of(history: History, steps: int, rows: int) -> tuple[Tensor, Tensor]:
    """Some rows of events, (T, B, F) and (T, B, C)."""
    index = torch.arange(steps * rows).view(steps, rows) % len(history.sequences)
    numeric = torch.from_numpy(history.sequences.numeric.copy())[index]
    return numeric, torch.from_numpy(history.sequences.category.astype(np.int64))[index]


def read(memory: Memory, numeric: Tensor, category: Tensor, state: State) -> tuple[Tensor, State]:
    """Read T steps of B rows, (T, B, F) and (T, B, C)."""
    return memory.read(events_of(numeric.flatten(0, 1), category.flatten(0, 1)), state)


def in_chunks(memory: Memory, numeric: Tensor, category: Tensor, size: int) -> tuple[Tensor, State]:
    state, found = memory.empty(numeric.shape[1]), []
    for one, other in zip(torch.split(numeric, size), torch.split(category, size), strict=True):
        output, state = read(memory, one, other, state)
        found.append(output)
    return torch.cat(found), state


@torch.inference_mode()
def test_one_pass_is_chunks_is_one_step_at_a_time(memory: Memory, history: History) -> None:
    numeric, category = rows_of(history, 200, 3)
    whole, end = read(memory, numeric, category, memory.empty(3))
    assert whole.shape == (200, 3, HIDDEN)
    for size in (1, 7, 64, 150):
        found, state = in_chunks(memory, numeric, category, size)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
        assert len(state) == len(end)
    state, row = memory.empty(1), []
    for values, codes in zip(numeric[:, 1:2], category[:, 1:2], strict=True):
        output, state = read(memory, values[None], codes[None], state)
        row.append(output[0])
    torch.testing.assert_close(torch.cat(row), whole[:, 1], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_the_state_is_bounded_and_its_first_part_is_the_memory(memory: Memory, history: History) -> None:
    numeric, category = rows_of(history, 150, 4)
    empty = memory.empty(4)
    output, state = read(memory, numeric, category, empty)
    assert [part.shape for part in state] == [part.shape for part in empty]
    assert all(part.shape[1] == 4 for part in state)
    torch.testing.assert_close(state[0], output[-1:])
    assert not empty[0].any()


@torch.inference_mode()
def test_later_events_and_other_rows_change_nothing(memory: Memory, history: History) -> None:
    numeric, category = rows_of(history, 150, 3)
    whole, _ = read(memory, numeric, category, memory.empty(3))
    other = numeric.clone()
    other[100:] += 2.0
    found, _ = read(memory, other, category, memory.empty(3))
    torch.testing.assert_close(found[:100], whole[:100], rtol=0, atol=1e-6)
    assert memory.backbone == "none" or (found[100:] - whole[100:]).abs().max() > 1e-3
    alone, _ = read(memory, numeric[:, 2:], category[:, 2:], memory.empty(1))
    torch.testing.assert_close(alone[:, 0], whole[:, 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reach"), [("conv", CONV_REACH), ("transformer", LAYERS * (WINDOW - 1) + 1), ("none", 0)]
)
@torch.inference_mode()
def test_what_is_out_of_reach_is_forgotten(history: History, name: str, reach: int) -> None:
    torch.manual_seed(1)
    memory = Memory(history.numeric, history.category, HIDDEN, name).eval()
    numeric, category = rows_of(history, 200, 1)
    other = numeric.clone()
    other[:5] += 3.0
    gap = (
        read(memory, numeric, category, memory.empty(1))[0] - read(memory, other, category, memory.empty(1))[0]
    ).abs()
    far = gap[:, 0].amax(dim=1)
    assert not far[4 + reach :].any()
    assert not reach or far[3 + reach] > 0, "the last event that sees it"


@torch.inference_mode()
def test_a_reader_takes_any_backbone_through_rows_that_end(memory: Memory, history: History) -> None:
    """The memory before each event is that after the last one that is old enough, of the row read alone."""
    sequences = history.sequences
    table = Table.of(sequences, DAY, [0], torch.device("cpu"))
    found = torch.full((len(sequences), HIDDEN), torch.nan)
    plan = Plan.of(sequences.offsets, events=200, steps=7)
    for group in range(len(plan.groups)):
        reader = Reader(memory, table)
        for chunk in plan.chunks(group):
            index, before = reader.read(chunk)
            found[index] = before[:, :HIDDEN]
    for number in (0, 5, len(sequences.entity) - 1):
        first, last = sequences.offsets[number : number + 2]
        output, _ = memory.read(Events(table, torch.arange(first, last)), memory.empty(1))
        memories = torch.cat([memory.empty(1)[0], output])[:, 0]
        expected = memories[torch.from_numpy(table.memory[first:last] - first)]
        torch.testing.assert_close(found[first:last], expected, rtol=0, atol=1e-5)


# --- the models on any backbone --------------------------------------------------------------------------------------


def fitted(kind: Any, history: History, backbone: str) -> Any:
    model = kind(hidden=HIDDEN, quarantine=DAY, backbone=backbone, training=Training(epochs=1, batch_events=512))
    return model.fit(history.sequences, history.numeric, history.category, train=history.train, valid=history.valid)


@pytest.mark.parametrize("kind", [Forecaster, Autoencoder])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_keeps_its_promises_on_any_backbone(kind: Any, name: str, history: History) -> None:
    sequences = history.sequences
    model = fitted(kind, history, name)
    errors = model.errors(sequences)
    np.testing.assert_array_equal(fitted(kind, history, name).errors(sequences), errors, "same seed, same bits")
    again = kind(hidden=HIDDEN, quarantine=DAY, backbone=name)
    again.restore(history.numeric, history.category, model.arrays())
    np.testing.assert_array_equal(again.errors(sequences), errors, "restored")
    late = sequences.position >= sequences.lengths[sequences.sequence] // 2
    numeric = sequences.numeric.copy()
    numeric[late] += 1.0
    changed = model.errors(replace(sequences, numeric=numeric))
    np.testing.assert_allclose(changed[~late], errors[~late], rtol=1e-4, atol=1e-5)
    alone = model.errors(sequences.take(np.array([4])))
    part = slice(sequences.offsets[4], sequences.offsets[5])
    np.testing.assert_allclose(alone, errors[part], rtol=1e-4, atol=1e-5)


def test_the_weights_of_the_usual_backbone_keep_their_names(history: History) -> None:
    model = Forecaster(hidden=HIDDEN)
    model.prepare(history.numeric, history.category)
    names = [name for name in model.arrays() if name.startswith("memory.lstm.")]
    assert names == [f"memory.lstm.{what}_l0" for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


@pytest.mark.parametrize("kind", [Forecaster, Autoencoder])
def test_what_looks_ahead_or_does_not_exist_is_refused_by_name(kind: Any, history: History) -> None:
    with pytest.raises(ParameterError, match=rf"{kind.__name__}: backbone='bilstm'.* is for whole sequences"):
        fitted(kind, history, "bilstm")
    with pytest.raises(ParameterError, match=r"backbone must be one of lstm, gru, .* got 'mamba'"):
        fitted(kind, history, "mamba")
