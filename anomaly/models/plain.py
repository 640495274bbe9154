"""Plain: the autoencoder and the forecaster on one event at a time, in plain arrays.

The same arithmetic as the networks', for a stream: there a call into torch costs more than what it computes. What the
two models do alike is done at once; the embedding of each category is multiplied into the layers that read it, so that
it is looked up, not computed. A test holds the numbers to those of the networks.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.features import MISSING, Column
from anomaly.models.autoencoder import AutoencoderNetwork
from anomaly.models.base import averaged, statistics_width
from anomaly.models.batches import CLIP
from anomaly.models.cells import EventEmbedding
from anomaly.models.forecaster import ForecasterNetwork
from anomaly.models.heads import RESOLUTION, FieldSet
from anomaly.models.kernels import COMPONENTS
from anomaly.models.likelihood import LOG_2, SMALLEST_SCALE

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]
Sums = MutableSequence[float]

# A sigmoid is half a tanh, so that all gates pass through one: sigmoid(x) = (1 + tanh(x / 2)) / 2.
_HALF = np.float32(0.5)
_LSTM_GATES = {"input": 0, "forget": 1, "cell": 2, "output": 3}  # the order in torch's weights


class PlainModels:
    """Reads and judges single events as the two networks would.

    An entity's memory is one array (2, 2 H): what both models remember, and both cells; the autoencoder's half first.

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
        self.hidden = memories[0].hidden
        self.numbers, self.averaged = len(numeric), averaged(numeric)
        sizes = [column.size for column in category]
        self._first_code = np.cumsum([0, *sizes[:-1]])
        self._event = np.zeros(2 * self.numbers + 1, dtype=np.float32)  # clipped numbers, which are missing, 1
        self._event[-1] = 1.0
        sets = autoencoder.fields, forecaster.fields
        self._number_rows, self._code_rows = _NumberRows(sets), _CodeRows(sets)
        self.columns = tuple(
            (name, field.column.name)
            for fields in ([one.numbers for one in sets], [one.categories for one in sets])
            for name, part in zip(("autoencoder", "forecaster"), fields, strict=True)
            for field in part
        )
        self._split = sum(len(one.numbers) for one in sets)
        self._reads(autoencoder, forecaster)
        self._heads(autoencoder, forecaster, numeric)

    def _reads(self, autoencoder: AutoencoderNetwork, forecaster: ForecasterNetwork) -> None:
        """Weights of both memories; the 8 H gates stand in the order input, forget, output, cell of both models."""
        hidden, wide = self.hidden, 2 * self.numbers
        order = [_LSTM_GATES[name] for name in ("input", "forget", "output", "cell")]
        halves = np.array([0.5, 0.5, 0.5, 1.0])[:, None, None]
        inputs, tables, recurrent = [], [], []
        for network in (autoencoder, forecaster):
            lstm = getattr(network.memory, network.memory.backbone)
            weight = halves * _array(lstm.weight_ih_l0).reshape(4, hidden, -1)[order]
            bias = halves * (_array(lstm.bias_ih_l0) + _array(lstm.bias_hh_l0)).reshape(4, hidden, 1)[order]
            inputs.append(np.concatenate([weight[:, :, :wide], bias], axis=2))
            tables.append(_looked_up(network.memory.embedding, weight[:, :, wide:]))
            pull = halves * _array(lstm.weight_hh_l0).reshape(4, hidden, hidden)[order]
            recurrent.append(_weights(pull.reshape(4 * hidden, hidden)))
        self._read_numbers = _weights(np.stack(inputs, axis=1).reshape(8 * hidden, -1))
        self._read_codes = _plain(np.stack(tables, axis=2).reshape(-1, 8 * hidden))
        self._gates = np.empty((4, 2 * hidden), dtype=np.float32)
        self._pulled = np.empty((2, 4, hidden), dtype=np.float32)
        self._pulls = [
            (slice(at * hidden, (at + 1) * hidden), weights, self._pulled[at].reshape(-1))
            for at, weights in enumerate(recurrent)
        ]

    def _heads(self, autoencoder: AutoencoderNetwork, forecaster: ForecasterNetwork, numeric: Sequence[Column]) -> None:
        """Weights from the memories to the outputs.

        The first layer of both models at once: three stages of the forecaster and the autoencoder's encoder.
        """
        hidden, wide, stats = self.hidden, 2 * self.numbers, statistics_width(numeric)
        heads = forecaster.heads
        base = np.zeros((4, hidden, 2 * hidden + stats + wide + 1))
        own, known = slice(0, hidden), slice(2 * hidden, 2 * hidden + stats)
        event = slice(2 * hidden + stats, 2 * hidden + stats + wide)
        stages = _array(heads.base.weight).reshape(2, hidden, -1)
        bias = _array(heads.base.bias).reshape(2, hidden)
        for at, stage in enumerate((0, 1, 1)):
            base[at, :, hidden : 2 * hidden + stats] = stages[stage]
            base[at, :, -1] = bias[stage]
            if stage:
                base[at, :, [event.start + circle for circle in heads.circles]] = _array(heads.clock.weight).T
        encoder = _array(autoencoder.encoder.weight)
        embedded = autoencoder.memory.embedding.size
        base[3, :, own], base[3, :, known] = encoder[:, :hidden], encoder[:, hidden + embedded :]
        base[3, :, event], base[3, :, -1] = encoder[:, hidden : hidden + wide], _array(autoencoder.encoder.bias)
        self._base = _weights(0.5 * base.reshape(4 * hidden, -1))
        codes = np.zeros((len(self._read_codes), 2, hidden))
        for at, table in zip(heads.known, heads.what, strict=True):
            rows = _array(table.weight)
            codes[self._first_code[at] : self._first_code[at] + len(rows), 0] = rows
        looked_up = _looked_up(autoencoder.memory.embedding, encoder[None, :, hidden + wide : hidden + embedded])
        codes[:, 1] = looked_up[:, 0]
        self._base_codes = _plain(0.5 * codes.reshape(-1, 2 * hidden))
        self._given = np.empty(base.shape[2], dtype=np.float32)
        # Three stages of the forecaster, and first the encoder, then the decoder; behind each the averages, and 1.
        self._stages = np.ones((4, hidden + stats + 1), dtype=np.float32)
        self._outer = np.empty(4 * hidden, dtype=np.float32)
        self._bottleneck = _with_bias(autoencoder.bottleneck, hidden + stats + 1)
        self._decode(autoencoder)
        categories = [(autoencoder.categories, 3), *((layer, at) for at, layer in enumerate(heads.categories))]
        numbers = [(autoencoder.numbers, 3), *((layer, at) for at, layer in enumerate(heads.numbers))]
        self._logits, self._category_layers = self._last(categories)
        self._mixtures, self._number_layers = self._last(numbers)

    def _last(self, layers: Sequence[tuple[Any, int]]) -> tuple[Float32, list[tuple[Float32, Float32, Float32]]]:
        """Room for the outputs of last layers, and of each layer the stage that it reads, its weights and its room."""
        weights = [(stage, _with_bias(layer, self._stages.shape[1])) for layer, stage in layers]
        room = np.empty(sum(one.shape[1] for _, one in weights), dtype=np.float32)
        parts = np.split(room, np.cumsum([one.shape[1] for _, one in weights])[:-1])
        return room, [(self._stages[stage], one, part) for (stage, one), part in zip(weights, parts, strict=True)]

    def _decode(self, autoencoder: AutoencoderNetwork) -> None:
        """Weights of the decoder's one step from an empty cell: there is nothing to forget, and no state to pull."""
        decoder, hidden = autoencoder.decoder, self.hidden
        order = [_LSTM_GATES[name] for name in ("input", "output", "cell")]
        halves = np.array([0.5, 0.5, 1.0])[:, None, None]
        weight = halves * _array(decoder.weight_ih_l0).reshape(4, hidden, -1)[order]
        bias = halves * (_array(decoder.bias_ih_l0) + _array(decoder.bias_hh_l0)).reshape(4, hidden, 1)[order]
        self._decoder = _weights(np.concatenate([weight, bias], axis=2).reshape(3 * hidden, -1))
        self._code_width = len(autoencoder.bottleneck.bias)
        self._code = np.empty(self._decoder.shape[0], dtype=np.float32)
        self._code[-1] = 1.0
        self._decoded = np.empty((3, hidden), dtype=np.float32)
        self._rebuilt = np.ones(hidden + 1, dtype=np.float32)

    def empty(self) -> Float32:
        """Memory before the first event, (2, 2 H)."""
        return np.zeros((2, 2 * self.hidden), dtype=np.float32)

    def read(self, memory: Float32, numeric: Float32, codes: Int, sums: Sums) -> None:
        """Let an event, (F,) and (C,), into `memory`, and into the `sums` of the values that are averaged, in place.

        sums : (3 averaged,), the numbers of the remembered values, then their sums, then their sums of squares.
        """
        numbers, wide = self.numbers, len(self.averaged)
        gates, event = self._gates, self._shown(numeric)
        flat = gates.reshape(-1)
        np.dot(event, self._read_numbers, out=flat)
        flat += np.add.reduce(self._read_codes.take(codes + self._first_code, axis=0), axis=0)
        told, cell = memory
        for half, weights, pulled in self._pulls:
            np.dot(told[half], weights, out=pulled)
        each = gates.reshape(4, 2, -1)
        each += self._pulled.transpose(1, 0, 2)
        np.tanh(gates, out=gates)
        open_ = gates[:3]
        open_ *= _HALF
        open_ += _HALF
        new = gates[3]
        new *= gates[0]
        cell *= gates[1]
        cell += new
        np.tanh(cell, out=told)
        told *= gates[2]
        shown = event.tolist()
        for at, column in enumerate(self.averaged):
            value = shown[column]
            sums[at] += 1.0 - shown[numbers + column]
            sums[wide + at] += value
            sums[2 * wide + at] += value * value

    def statistics(self, sums: Sums, remembered: int) -> list[float]:
        """What the heads see of the averages; twin of `batches.memory_statistics`."""
        wide, told = len(self.averaged), [(math.log1p(remembered) - 3.0) / 2.0]
        for at in range(wide):
            count = sums[at] + 1.0
            mean = sums[wide + at] / count
            told += [mean, math.sqrt(max((sums[2 * wide + at] + 1.0) / count - mean * mean, 1e-4))]
        return told

    def errors(self, memory: Float32, statistics: Sequence[float], numeric: Float32, codes: Int) -> Float64:
        """-ln of each field's tail probability, in the order of `columns`; (K,), NaN = missing."""
        hidden, given, stages = self.hidden, self._given, self._stages
        stats = 2 * hidden + len(statistics)
        given[: 2 * hidden] = memory[0]
        given[2 * hidden : stats] = statistics
        given[stats:] = self._shown(numeric)
        outer = np.dot(given, self._base, out=self._outer)
        outer[2 * hidden :] += np.add.reduce(self._base_codes.take(codes + self._first_code, axis=0), axis=0)
        active = np.tanh(outer)  # silu(2 x) = x (1 + tanh x)
        active += 1.0
        np.multiply(active.reshape(4, hidden), outer.reshape(4, hidden), out=stages[:, :hidden])
        stages[:, hidden:-1] = given[2 * hidden : stats]
        self._rebuild(given)
        for stage, weights, part in self._number_layers:
            np.dot(stage, weights, out=part)
        for stage, weights, part in self._category_layers:
            np.dot(stage, weights, out=part)
        found = np.empty(len(self.columns))
        self._number_rows.errors(self._mixtures, numeric, found[: self._split])
        self._code_rows.errors(self._logits, codes, found[self._split :])
        return found

    def _rebuild(self, given: Float32) -> None:
        """Put the decoder's state, from which an event is rebuilt, in the place of what the encoder said of it."""
        hidden, width, code = self.hidden, self._code_width, self._code
        np.dot(self._stages[3], self._bottleneck, out=code[:width])
        np.tanh(code[:width], out=code[:width])
        code[width : width + hidden] = given[:hidden]
        code[width + hidden :] = self._stages[3, hidden:]
        gates = self._decoded
        np.dot(code, self._decoder, out=gates.reshape(-1))
        np.tanh(gates, out=gates)
        open_ = gates[:2]
        open_ *= _HALF
        open_ += _HALF
        cell = gates[0]
        cell *= gates[2]
        np.tanh(cell, out=cell)
        np.multiply(cell, gates[1], out=self._stages[3, :hidden])

    def _shown(self, numeric: Float32) -> Float32:
        """One event as the embedding shows it to the layers: clipped numbers, a flag for each missing one, and 1."""
        event, missing = self._event, np.isnan(numeric)
        values = event[: self.numbers]
        np.maximum(numeric, -CLIP, out=values)
        np.minimum(values, CLIP, out=values)
        np.copyto(values, 0.0, where=missing)
        event[self.numbers : -1] = missing
        return event


class _NumberRows:
    """Tails of the numbers of both models: one row for each side of each field that hurts."""

    def __init__(self, sets: Sequence[FieldSet]) -> None:
        fields = [field for one in sets for field in one.numbers]
        sides = [{"upper": (1,), "lower": (-1,)}.get(field.column.tail, (1, -1)) for field in fields]
        rows = [(at, side) for at, both in enumerate(sides) for side in both]
        self._column = np.array([fields[at].index for at, _ in rows], dtype=np.int64)
        self._sign = np.array([side for _, side in rows], dtype=np.float32)
        self._first = np.cumsum([0, *(len(both) for both in sides)])[:-1].astype(np.int64)
        # From (fields, 3, M) to logits, locations and raw spreads of all rows, (3, M, R).
        field, part = np.array([at for at, _ in rows], dtype=np.int64), np.arange(3 * COMPONENTS)
        self._arranged = (part[:, None] + 3 * COMPONENTS * field).reshape(3, COMPONENTS, -1)
        self._twice = np.array([LOG_2 * (len(both) - 1) for both in sides])
        self._counts = [(row, fields[at].column, side) for row, (at, side) in enumerate(rows) if fields[at].column.step]
        self._work = np.empty((COMPONENTS, 2, len(rows)), dtype=np.float32)

    def errors(self, mixtures: Float32, numeric: Float32, out: Float64) -> None:
        """-ln of the tail of each field, >= 0; NaN where the number is missing."""
        if not len(self._column):
            return
        border = numeric.take(self._column) * self._sign
        border -= RESOLUTION
        for row, column, side in self._counts:
            border[row] = side * _count_border(float(numeric[self._column[row]]), column, side)
        missing = np.isnan(border)
        np.copyto(border, 0.0, where=missing)
        logit, location, spread = mixtures.take(self._arranged)
        location *= self._sign
        np.logaddexp(spread, 0.0, out=spread)
        spread += SMALLEST_SCALE
        np.subtract(border, location, out=location)
        location /= spread
        np.logaddexp(location, 0.0, out=location)
        work = self._work
        work[:, 0] = logit
        np.subtract(logit, location, out=work[:, 1])
        half = np.logaddexp(work[: COMPONENTS // 2], work[COMPONENTS // 2 :])
        whole, beyond = np.logaddexp(*half)
        whole -= beyond
        np.copyto(whole, np.nan, where=missing)
        np.maximum.reduceat(whole, self._first, out=out)
        out -= self._twice
        np.maximum(out, 0.0, out=out)


def _count_border(value: float, column: Column, side: int) -> float:
    """Border of a count's bin, half-way to its neighbour at least; see `FieldSet.borders`."""
    raw = round(math.sinh(value * column.scale + column.center))
    half_way = (math.asinh(raw - side * column.step) - column.center) / column.scale
    return min(half_way, value - RESOLUTION) if side > 0 else max(half_way, value + RESOLUTION)


class _CodeRows:
    """Tails of the categories of both models, field by field in one long row of logits."""

    def __init__(self, sets: Sequence[FieldSet]) -> None:
        fields = [field for one in sets for field in one.categories]
        sizes = np.array([field.column.size for field in fields], dtype=np.int64)
        self._column = np.array([field.index for field in fields], dtype=np.int64)
        self._first = np.cumsum(np.concatenate([[0], sizes]))[:-1].astype(np.int64)
        self._sizes = sizes
        self._odds, self._above = np.empty((2, int(sizes.sum())))

    def errors(self, logits: Float32, codes: Int, out: Float64) -> None:
        """-ln of the share of all that is no likelier than what happened, >= 0; NaN where the category is missing."""
        if not len(self._column):
            return
        mine = codes.take(self._column)
        odds = np.subtract(logits, logits.take(self._first + mine).repeat(self._sizes), out=self._odds)
        likelier = odds > 0.0
        np.exp(odds, out=odds)
        above = np.multiply(odds, likelier, out=self._above)
        odds -= above
        np.divide(np.add.reduceat(above, self._first), np.add.reduceat(odds, self._first), out=out)
        np.log1p(out, out=out)
        np.copyto(out, np.nan, where=mine == MISSING)


def _array(tensor: Any) -> Float64:
    values: Float64 = tensor.detach().cpu().double().numpy()
    return values


def _plain(array: NDArray[Any]) -> Float32:
    return np.ascontiguousarray(array, dtype=np.float32)


def _weights(layer: NDArray[Any]) -> Float32:
    """A layer (outputs, inputs) turned round, (inputs, outputs): the quicker way to multiply one vector."""
    return _plain(layer.T)


def _with_bias(layer: Any, inputs: int) -> Float32:
    """A linear layer turned round, (inputs, outputs), for inputs of which the last is 1; what it does not read is 0."""
    weight, bias = _array(layer.weight), _array(layer.bias)
    whole = np.zeros((inputs, len(weight)))
    whole[: weight.shape[1]], whole[-1] = weight.T, bias
    return _plain(whole)


def _looked_up(embedding: EventEmbedding, weight: Float64) -> Float64:
    """What each code of each category adds to layers (L, H, embedded), by row: (codes, L, H)."""
    rows, at = [], 0
    for table in embedding.tables:
        values = _array(table.weight)
        part = weight[:, :, at : at + values.shape[1]]
        rows.append(np.einsum("ce,lhe->clh", values, part))
        at += values.shape[1]
    return np.concatenate(rows)
