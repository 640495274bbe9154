"""Program: two networks as operations on one row of numbers, compiled, and what their outputs say of an event.

`anomaly.models.plain` writes the programs. A network could be compiled as it is written down, layer by layer; but each
use of a product would be compiled anew, and that takes half a minute. One loop over operations takes a tenth of it, and
computes as fast.

Letters used in shapes: F numbers, C categories, H hidden units, Q averages (see `batches.memory_statistics`), M
components of a mixture.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.compiling import Held, compiled, holder, loose_part

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int = NDArray[np.int64]
Codes = NDArray[np.uint16]

# Operations of a `Program` on places a and b of the work; each is written once, since each use would be compiled anew.
PRODUCT = 0  # a += b @ weights
LOOKUP = 1  # a += row of the weights, for the code of each category
ADD, MULTIPLY = 2, 3  # a += b, a *= b
SIGMOID, STRETCH = 4, 5  # a = sigmoid(a), a = 2 a - 1: both give tanh(x) of what was 2 x
CELL = 6  # of gates b: the cell behind a takes the new in and keeps the old; a = 2 cell

# exp(x) = 2^n exp(r) with |r| <= ln(2) / 2: its Taylor polynomial is exact to float32; ln 2 stands in two parts.
_LOG2_E, _HALF, _BIAS, _MANTISSA = np.float32(1.4426950408889634), np.float32(0.5), np.int32(127), np.int32(23)
_LN_2, _LN_2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
_TAYLOR = tuple(np.float32(1.0 / math.factorial(power)) for power in range(8))
_ONE, _TWO, _FARTHEST = np.float32(1.0), np.float32(2.0), np.float32(80.0)


class Program(NamedTuple):
    """Both networks as operations on numbers that stand in one row, `work`.

    rows : (operations, 6), the operation, its places a and b, how many numbers it has at a and at b, and where its
    weights begin; read : how many of the operations, the first, let an event into the memories, the others judge one;
    weights : (inputs, outputs) of each layer, one after the other; work : the numbers; kept : how many of them, the
    first, are not 0 when the operations begin.
    """

    rows: Int
    read: int
    weights: Float32
    work: Float32
    kept: int


class Layout(NamedTuple):
    """How events, and the outputs for their fields, are arranged.

    first_code : (C,), row of each category's first code among the codes of all; averaged : columns that are averaged;
    number : (fields, 2), column and side that hurts of the fields that are
    numbers; bins : (fields, 3), step, centre and scale of those that are counts, step 0 = none; category :
    (fields, 2), column and number of codes. at_memory, at_statistics, at_numbers, at_logits, at_rest : places in the
    work, where the event is at 0. The rest are constants of the batches.
    """

    first_code: Int
    averaged: Int
    number: Int
    bins: Float64
    category: Int
    at_memory: int
    at_statistics: int
    at_numbers: int
    at_logits: int
    at_rest: int
    missing: int
    components: int
    clip: float
    enough: int
    resolution: float
    smallest_scale: float
    largest_logit: float


class Desk(NamedTuple):
    """What the models read and write; the owner of the arrays puts an entity's state and its event into them.

    memory : (4 H,), what both models remember, and both cells, the autoencoder's half first, 0 before the first event;
    sums : (3 averaged,), numbers of the remembered values that are averaged, then their sums, then their sums of
    squares; waiting_numbers, waiting_codes : (W, F) and (W, C), events not in the memory yet, the oldest first;
    numeric, codes : (F,) and (C,), the event to be judged; errors : (K or more,), takes -ln of each field's tail
    probability, in the order of `PlainModels.columns`, NaN = missing.
    """

    memory: Float32
    sums: Float64
    waiting_numbers: Float32
    waiting_codes: Codes
    numeric: Float32
    codes: Codes
    errors: Float32


HeldModels = holder("HeldModels", __name__, Program, Layout, Desk)


def held_models(program: Program, layout: Layout, desk: Desk) -> Held:
    """Hold all that a step takes."""
    return _hold((*program, *layout, *desk))


@compiled
def _hold(fields: tuple[Any, ...]) -> Held:
    return HeldModels(*fields)


@loose_part
def _add_product(out: Float32, given: Float32, weights: Float32) -> None:
    """Out += given @ weights, four rows at a time: the outputs are then read and written a quarter as often."""
    wide = len(out)
    whole = len(given) // 4 * 4
    for row in range(0, whole, 4):
        a, b, c, d = given[row], given[row + 1], given[row + 2], given[row + 3]
        if a != 0.0 or b != 0.0 or c != 0.0 or d != 0.0:  # most flags of missing numbers are 0
            four = weights[row * wide : (row + 4) * wide]
            for at in range(wide):
                two = a * four[at] + b * four[wide + at]
                out[at] += two + c * four[2 * wide + at] + d * four[3 * wide + at]
    for row in range(whole, len(given)):
        factor, one = given[row], weights[row * wide : (row + 1) * wide]
        for at in range(wide):
            out[at] += factor * one[at]


@loose_part
def _add(out: Float32, given: Float32) -> None:
    """Out += given, which numba would take seconds to compile if it were written so."""
    for at in range(len(out)):
        out[at] += given[at]


@loose_part
def _exponential(values: Float32) -> None:
    """Exp of each value in place; they lie within +-80."""
    power = np.empty(len(values), dtype=np.int32)
    for at in range(len(values)):
        whole = np.floor(values[at] * _LOG2_E + _HALF)
        x = (values[at] - whole * _LN_2) - whole * _LN_2_REST
        found = _TAYLOR[6] + x * _TAYLOR[7]
        found = _TAYLOR[4] + x * (_TAYLOR[5] + x * found)
        found = _TAYLOR[2] + x * (_TAYLOR[3] + x * found)
        values[at] = _TAYLOR[0] + x * (_TAYLOR[1] + x * found)
        power[at] = (np.int32(whole) + _BIAS) << _MANTISSA
    scale = power.view(np.float32)
    for at in range(len(values)):
        values[at] *= scale[at]


@loose_part
def _sigmoid(values: Float32) -> None:
    """Sigmoid of each value in place."""
    for at in range(len(values)):
        values[at] = min(max(-values[at], -_FARTHEST), _FARTHEST)
    _exponential(values)
    for at in range(len(values)):
        values[at] = _ONE / (_ONE + values[at])


@loose_part
def _show(event: Float32, numeric: Float32, clip: float) -> None:
    """One event (2 F + 1,) as the embedding shows it: clipped numbers, a flag for each missing one, and 1."""
    for at in range(len(numeric)):
        missing = np.isnan(numeric[at])
        event[at] = 0.0 if missing else min(max(numeric[at], np.float32(-clip)), np.float32(clip))
        event[len(numeric) + at] = 1.0 if missing else 0.0
    event[2 * len(numeric)] = 1.0


@loose_part
def _run(held: Held, codes: Codes, first: int, last: int) -> None:
    """Carry out some operations of a held."""
    work, weights = held.work, held.weights
    for row in range(first, last):
        operation, a, b = held.rows[row, 0], held.rows[row, 1], held.rows[row, 2]
        many, more, start = held.rows[row, 3], held.rows[row, 4], held.rows[row, 5]
        out, given = work[a : a + many], work[b : b + many]
        if operation == PRODUCT:
            _add_product(out, work[b : b + more], weights[start : start + more * many])
        elif operation == LOOKUP:
            for at in range(len(codes)):
                begin = start + (held.first_code[at] + codes[at]) * many
                _add(out, weights[begin : begin + many])
        elif operation == ADD:
            _add(out, given)
        elif operation == MULTIPLY:
            for at in range(many):
                out[at] *= given[at]
        elif operation == SIGMOID:
            _sigmoid(out)
        elif operation == CELL:
            for at in range(many):
                new = _TWO * work[b + 3 * many + at] - _ONE
                cell = work[b + many + at] * work[a + more + at] + work[b + at] * new
                work[a + more + at] = cell
                out[at] = _TWO * cell
        elif operation == STRETCH:
            for at in range(many):
                out[at] = _TWO * out[at] - _ONE


@loose_part
def _average(held: Held, event: Float32) -> None:
    """Add an event to the sums of the values that are averaged."""
    sums, wide, numbers = held.sums, len(held.averaged), len(event) // 2
    for at in range(wide):
        value = float(event[held.averaged[at]])
        sums[at] += 1.0 - event[numbers + held.averaged[at]]
        sums[wide + at] += value
        sums[2 * wide + at] += value * value


@loose_part
def _average_so_far(held: Held, remembered: int) -> None:
    """What the heads see of the averages, (Q,), goes to its place; twin of `batches.memory_statistics`."""
    sums, wide = held.sums, len(held.averaged)
    told = held.work[held.at_statistics :]
    told[0] = (math.log1p(min(remembered, held.enough)) - 3.0) / 2.0
    for at in range(wide):
        count = sums[at] + 1.0
        mean = sums[wide + at] / count
        told[1 + 2 * at] = mean
        told[2 + 2 * at] = math.sqrt(max((sums[2 * wide + at] + 1.0) / count - mean * mean, 1e-4))
    told[1 + 2 * wide] = 1.0


@loose_part
def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@loose_part
def _log_sum_exp(values: Float64) -> float:
    most, total = values[0], 0.0
    for at in range(len(values)):
        most = max(most, values[at])
    for at in range(len(values)):
        total += math.exp(values[at] - most)
    return float(most + math.log(total))


@loose_part
def _border(value: float, side: int, bins: Float64, resolution: float) -> float:
    """Border of a number's bin on the side from which the tail is taken; see `FieldSet.borders`."""
    border = value - side * resolution
    if not bins[0]:
        return border
    step, center, scale = float(bins[0]), float(bins[1]), float(bins[2])
    raw = np.rint(math.sinh(value * scale + center))
    half_way = (math.asinh(raw - side * step) - center) / scale
    return min(half_way, border) if side > 0 else max(half_way, border)


@loose_part
def _number_error(held: Held, at: int, value: float, outputs: Float32) -> float:
    """-ln of the tail of a number, >= 0; outputs (3 M,) are logits, locations and raw spreads."""
    components, sides = held.components, held.number[at, 1]
    logits, inside, found = np.empty(components), np.empty(components), 0.0
    for part in range(components):
        logits[part] = outputs[part]
    whole = _log_sum_exp(logits)
    for side in (1, -1):
        if sides != -side:
            border = _border(value, side, held.bins[at], held.resolution)
            for part in range(components):
                scale = _softplus(float(outputs[2 * components + part])) + held.smallest_scale
                inside[part] = logits[part] - _softplus(side * (border - outputs[components + part]) / scale)
            found = max(found, whole - _log_sum_exp(inside))
    return max(found - math.log(2.0), 0.0) if sides == 0 else found


@loose_part
def _category_error(odds: Float32, code: int) -> float:
    """-ln of the share of all that is no likelier than what happened, >= 0; twin of `likelihood.Softmax.errors`."""
    total, below, mine = np.float32(0.0), np.float32(0.0), odds[code]
    for at in range(len(odds)):
        total += odds[at]
        below += odds[at] if odds[at] <= mine else np.float32(0.0)
    likelier = (total - below) / total
    return -math.log1p(-likelier) if likelier < 0.5 else -math.log(max(float(below / total), 1e-30))


@loose_part
def _errors(held: Held) -> None:
    """Errors of all fields from the outputs of both models."""
    wide, fields, errors = 3 * held.components, len(held.number), held.errors
    numbers = held.work[held.at_numbers : held.at_logits]
    for at in range(fields):
        value = float(held.numeric[held.number[at, 0]])
        outputs = numbers[at * wide : (at + 1) * wide]
        errors[at] = np.nan if np.isnan(value) else _number_error(held, at, value, outputs)
    most, logits = np.float32(held.largest_logit), held.work[held.at_logits : held.at_rest]
    for at in range(len(logits)):
        logits[at] = min(max(logits[at], -most), most)
    _exponential(logits)
    first = 0
    for at in range(len(held.category)):
        size, code = held.category[at, 1], held.codes[held.category[at, 0]]
        odds = logits[first : first + size]
        errors[fields + at] = np.nan if code == held.missing else _category_error(odds, code)
        first += size


@compiled
def step(held: Held, due: int, remembered: int) -> None:
    """See `plain.PlainModels.step`."""
    work = held.work
    memory = work[held.at_memory : held.at_memory + len(held.memory)]
    event = work[: 2 * len(held.numeric) + 1]
    for at in range(len(memory)):
        memory[at] = held.memory[at]
    for turn in range(due + 1):  # the last one is that of the event to be judged
        numeric, codes = held.numeric, held.codes
        first, last = held.read, len(held.rows)
        if turn < due:
            numeric, codes = held.waiting_numbers[turn], held.waiting_codes[turn]
            first, last = 0, held.read
        else:
            for at in range(len(memory)):
                held.memory[at] = memory[at]
            _average_so_far(held, remembered)
        _show(event, numeric, held.clip)
        for at in range(held.kept, len(work)):
            work[at] = 0.0
        _run(held, codes, first, last)
        if turn < due:
            _average(held, event)
    _errors(held)
