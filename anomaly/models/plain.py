"""Plain: the autoencoder and the forecaster on one event at a time, as one compiled program.

The same arithmetic as the networks', for a stream: there a call into torch costs more than what it computes.
The embedding of each category is multiplied into the layers that read it, so that it is looked up, not computed.
A test holds the numbers to those of the networks.

Letters used in shapes: F numbers, C categories, H hidden units, Q averages (see `batches.memory_statistics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.features import MISSING, Column
from anomaly.models.autoencoder import AutoencoderNetwork
from anomaly.models.base import averaged, statistics_width
from anomaly.models.batches import CLIP, ENOUGH
from anomaly.models.cells import EventEmbedding
from anomaly.models.forecaster import ForecasterNetwork
from anomaly.models.heads import RESOLUTION
from anomaly.models.kernels import COMPONENTS
from anomaly.models.likelihood import LARGEST_LOGIT, SMALLEST_SCALE
from anomaly.models.program import (
    ADD,
    CELL,
    LOOKUP,
    MULTIPLY,
    PRODUCT,
    SIGMOID,
    STRETCH,
    Desk,
    Layout,
    Program,
    held_models,
    step,
)

Float64 = NDArray[np.float64]

_LSTM_GATES = {"input": 0, "forget": 1, "cell": 2, "output": 3}  # the order in torch's weights
_ORDER = [_LSTM_GATES[name] for name in ("input", "forget", "output", "cell")]  # the order here
_SIDES = {"upper": 1, "lower": -1}  # 0 = both


class PlainModels:
    """Reads and judges single events as the two networks would.

    Parameters
    ----------
    autoencoder, forecaster : network
        Trained, with LSTM memories of one size.
    numeric, category : sequence of Column
        The columns that they read.

    Attributes
    ----------
    columns : tuple of (model, column)
        Names of the K scored fields of both models: all numbers, then all categories.

    Raises
    ------
    ParameterError
        If a memory is no LSTM, or the two differ in size.
    """

    def __init__(
        self,
        autoencoder: AutoencoderNetwork,
        forecaster: ForecasterNetwork,
        numeric: Sequence[Column],
        category: Sequence[Column],
    ) -> None:
        memories = autoencoder.memory, forecaster.memory
        if any(memory.backbone != "lstm" for memory in memories) or memories[0].hidden != memories[1].hidden:
            told = ", ".join(f"{memory.backbone} of {memory.hidden}" for memory in memories)
            raise ParameterError(f"PlainModels: expected two LSTM memories of one size, got {told}")
        self.hidden, self.averaged = memories[0].hidden, averaged(numeric)
        sets = autoencoder.fields, forecaster.fields
        self.columns = tuple(
            (name, field.column.name)
            for fields in ([one.numbers for one in sets], [one.categories for one in sets])
            for name, part in zip(("autoencoder", "forecaster"), fields, strict=True)
            for field in part
        )
        written = _Written(autoencoder, forecaster, numeric, category)
        self.program, self.layout = written.program(), written.layout(numeric, category)

    def sit_down(self, desk: Desk) -> None:
        """Work on these arrays from now on."""
        self._held = held_models(self.program, self.layout, desk)

    def step(self, due: int, remembered: int) -> None:
        """Let the first `due` waiting events into the memory, which then holds `remembered`, and judge the event."""
        step(self._held, due, remembered)


class _Written:
    """Writes two networks down as a `Program`."""

    def __init__(
        self,
        autoencoder: AutoencoderNetwork,
        forecaster: ForecasterNetwork,
        numeric: Sequence[Column],
        category: Sequence[Column],
    ) -> None:
        self.sets = autoencoder.fields, forecaster.fields
        self.first_code = np.cumsum([0, *(column.size for column in category)])
        self._rows: list[tuple[int, ...]] = []
        self._weights: list[NDArray[Any]] = []
        self._taken = self._weighed = 0
        self.inputs, self.hidden = 2 * len(numeric), autoencoder.memory.hidden
        self.event = self._place(self.inputs + 1)  # clipped numbers, which are missing, 1
        self.told = self._place(2 * self.hidden)
        self.cell = self._place(2 * self.hidden)
        self.averages = self._place(statistics_width(numeric) + 1)  # and 1
        self.kept, self.known = self._taken, statistics_width(numeric)
        self.numbers = self._place(sum(one.number_width for one in self.sets))
        self.logits = self._place(sum(one.category_width for one in self.sets))
        self.rest = self._taken
        self._read((autoencoder, forecaster))
        self.read = len(self._rows)
        used = self._ask_autoencoder(autoencoder)
        self._ask_forecaster(forecaster, *used)

    def program(self) -> Program:
        """What was written."""
        return Program(
            rows=np.array(self._rows, dtype=np.int64),
            read=self.read,
            weights=np.concatenate([one.reshape(-1) for one in self._weights]).astype(np.float32),
            work=np.zeros(self._taken, dtype=np.float32),
            kept=self.kept,
        )

    def layout(self, numeric: Sequence[Column], category: Sequence[Column]) -> Layout:
        """Where things are."""
        numbers = [field for one in self.sets for field in one.numbers]
        categories = [field for one in self.sets for field in one.categories]
        bins = [(field.column.step, field.column.center, field.column.scale) for field in numbers]
        return Layout(
            first_code=self.first_code[: len(category)],
            averaged=np.array(averaged(numeric), dtype=np.int64),
            number=_table([(field.index, _SIDES.get(field.column.tail, 0)) for field in numbers], 2).astype(np.int64),
            bins=_table(bins, 3),
            category=_table([(field.index, field.column.size) for field in categories], 2).astype(np.int64),
            at_memory=self.told,
            at_statistics=self.averages,
            at_numbers=self.numbers,
            at_logits=self.logits,
            at_rest=self.rest,
            missing=MISSING,
            components=COMPONENTS,
            clip=CLIP,
            enough=ENOUGH,
            resolution=RESOLUTION,
            smallest_scale=SMALLEST_SCALE,
            largest_logit=LARGEST_LOGIT,
        )

    def _read(self, networks: Sequence[AutoencoderNetwork | ForecasterNetwork]) -> None:
        """Let an event into both memories. A tanh(x) is a sigmoid of 2 x: weights of what passes one are doubled."""
        hidden, wide = self.hidden, 4 * self.hidden
        gates = self._place(2 * wide)
        for at, network in enumerate(networks):
            lstm, told = getattr(network.memory, network.memory.backbone), self.told + at * hidden
            weight, bias = _gates(lstm.weight_ih_l0, hidden), _biases(lstm, hidden)
            numbers = np.concatenate([weight[:, : self.inputs], bias], axis=1)
            self._product(gates + at * wide, self.event, numbers.T)
            self._lookup(gates + at * wide, _looked_up(network.memory.embedding, weight[:, self.inputs :]))
            self._product(gates + at * wide, told, _gates(lstm.weight_hh_l0, hidden).T)
        self._do(SIGMOID, gates, 0, 2 * wide)
        for at in range(2):
            self._do(CELL, self.told + at * hidden, gates + at * wide, hidden, self.cell - self.told)
        self._do(SIGMOID, self.told, 0, 2 * hidden)
        self._do(STRETCH, self.told, 0, 2 * hidden)
        for at in range(2):
            self._do(MULTIPLY, self.told + at * hidden, gates + at * wide + 2 * hidden, hidden)

    def _ask_autoencoder(self, network: AutoencoderNetwork) -> tuple[int, int]:
        """Rebuild the event and judge it; return how many outputs for numbers and for categories were used."""
        hidden, inputs, embedding, fields = self.hidden, self.inputs, network.memory.embedding, network.fields
        encoder, squeezed = network.encoder, self._place(hidden)
        weight = _array(encoder.weight)
        self._product(squeezed, self.told, weight[:, :hidden].T)
        self._product(squeezed, self.event, weight[:, hidden : hidden + inputs].T)
        self._lookup(squeezed, _looked_up(embedding, weight[:, hidden + inputs : hidden + embedding.size]))
        known = weight[:, hidden + embedding.size :]
        self._product(squeezed, self.averages, np.concatenate([known, _array(encoder.bias)[:, None]], axis=1).T)
        self._silu(squeezed, hidden)
        narrow, decoder = len(network.bottleneck.bias), network.decoder
        weight, bias = _gates(decoder.weight_ih_l0, hidden), _biases(decoder, hidden)
        code = self._place(narrow)
        self._layer(code, squeezed, network.bottleneck, 2.0)
        self._do(SIGMOID, code, 0, narrow)
        self._do(STRETCH, code, 0, narrow)
        # One step from an empty cell: nothing to keep, no state to pull.
        gates, rebuilt, _ = self._place(4 * hidden), self._place(hidden), self._place(hidden)
        self._product(gates, code, weight[:, :narrow].T)
        self._product(gates, self.told, weight[:, narrow : narrow + hidden].T)
        self._product(gates, self.averages, np.concatenate([weight[:, narrow + hidden :], bias], axis=1).T)
        self._do(SIGMOID, gates, 0, 4 * hidden)
        self._do(CELL, rebuilt, gates, hidden, hidden)
        self._do(SIGMOID, rebuilt, 0, hidden)
        self._do(STRETCH, rebuilt, 0, hidden)
        self._do(MULTIPLY, rebuilt, gates + 2 * hidden, hidden)
        self._layer(self.numbers, rebuilt, network.numbers)
        self._layer(self.logits, rebuilt, network.categories)
        return fields.number_width, fields.category_width

    def _ask_forecaster(self, network: ForecasterNetwork, numbers: int, logits: int) -> None:
        """Predict the event in three stages, see `heads.StagedHeads`, and judge it."""
        heads, hidden, told = network.heads, self.hidden, self.told + self.hidden
        stages = self._place(3 * hidden)
        second, third = stages + hidden, stages + 2 * hidden
        self._layer(stages, told, heads.base)
        self._product(second, self.event, self._by_clock(network))
        self._do(ADD, third, second, hidden)
        self._lookup(third, self._by_category(network))
        self._silu(stages, 3 * hidden)
        for at, layer in enumerate(_layers(heads.numbers)):
            self._layer(self.numbers + numbers, stages + at * hidden, layer)
            numbers += len(layer.bias)
        for at, layer in enumerate(_layers(heads.categories)):
            self._layer(self.logits + logits, stages + at * hidden, layer)
            logits += len(layer.bias)

    def _by_clock(self, network: ForecasterNetwork) -> Float64:
        """Weights from the event's numbers, (F, H): of those that tell the clock."""
        weight = np.zeros((self.inputs // 2, self.hidden))
        weight[network.heads.circles] = _array(network.heads.clock.weight).T
        return weight

    def _by_category(self, network: ForecasterNetwork) -> Float64:
        """What each code adds, (codes, H): of the categories that explain a number."""
        weight = np.zeros((int(self.first_code[-1]), self.hidden))
        for at, table in zip(network.heads.known, network.heads.what, strict=True):
            weight[self.first_code[at] : self.first_code[at + 1]] = _array(table.weight)
        return weight

    def _place(self, size: int) -> int:
        """Room for so many numbers; where it begins."""
        self._taken += size
        return self._taken - size

    def _do(self, operation: int, a: int, b: int, many: int, more: int = 0, weights: int = 0) -> None:
        self._rows.append((operation, a, b, many, more, weights))

    def _weigh(self, weights: NDArray[Any]) -> int:
        self._weights.append(weights)
        self._weighed += weights.size
        return self._weighed - weights.size

    def _product(self, out: int, given: int, weights: Float64) -> None:
        self._do(PRODUCT, out, given, weights.shape[1], weights.shape[0], self._weigh(weights))

    def _lookup(self, out: int, weights: Float64) -> None:
        self._do(LOOKUP, out, 0, weights.shape[1], 0, self._weigh(weights))

    def _layer(self, out: int, given: int, layer: Any, times: float = 1.0) -> None:
        """A layer of a state (H,), and of the averages if it reads them; its bias counts by the 1 behind these."""
        weight, bias = times * _array(layer.weight), times * _array(layer.bias)[:, None]
        rest = weight[:, self.hidden :]
        self._product(out, given, weight[:, : self.hidden].T)
        if rest.shape[1]:
            self._product(out, self.averages, np.concatenate([rest, bias], axis=1).T)
        else:
            self._product(out, self.averages + self.known, bias.T)

    def _silu(self, a: int, many: int) -> None:
        """A = a sigmoid(a)."""
        gate = self._place(many)
        self._do(ADD, gate, a, many)
        self._do(SIGMOID, gate, 0, many)
        self._do(MULTIPLY, a, gate, many)


def _layers(layers: Any) -> list[Any]:
    return list(layers)


def _array(tensor: Any) -> Float64:
    values: Float64 = tensor.detach().cpu().double().numpy()
    return values


def _table(rows: Sequence[Sequence[float]], width: int) -> Float64:
    return np.array(rows, dtype=np.float64).reshape(len(rows), width)


def _gates(tensor: Any, hidden: int) -> Float64:
    """Weights (4 H, inputs) or a bias (4 H,) of an LSTM in the order used here, those of the new value twice."""
    values = _array(tensor).reshape(4, hidden, -1)[_ORDER]
    values[3] *= 2.0
    return values.reshape(4 * hidden, -1)


def _biases(lstm: Any, hidden: int) -> Float64:
    return _gates(lstm.bias_ih_l0 + lstm.bias_hh_l0, hidden)


def _looked_up(embedding: EventEmbedding, weight: Float64) -> Float64:
    """What each code of each category adds to a layer (outputs, embedded), by row: (codes, outputs)."""
    rows, at = [], 0
    for table in embedding.tables:
        values = _array(table.weight)
        rows.append(values @ weight[:, at : at + values.shape[1]].T)
        at += values.shape[1]
    return np.concatenate(rows)
