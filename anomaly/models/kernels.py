"""Kernels: the inner loops of the models, compiled, for the processor.

A call into torch sweeps a whole array, so that a softmax and its tail cost six trips through the cache, and more calls
than arithmetic where fields are few. Here each output is read once, and all that hangs on it is done in registers. The
formulas are those of `anomaly.models.likelihood`, which does the same with torch on a graphics card; a test holds one
to the other.

Outputs stand feature-major, (outputs, n). All arrays are float32, codes are rows of the outputs (int64).

Letters used in shapes: n events, G fields, M mixture components, O outputs, d inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from anomaly import compiling
from anomaly.compiling import fma, widely

# No reordering of sums: the exponential below rounds by adding a large number and taking it away again. And no product
# that goes into a sum unrounded as LLVM likes: whether a loop runs as vectors hangs on where its arrays lie, and both
# must agree. They do where `fma` says so.
compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = partial(compiling.compiled, fast={"nsz", "nnan", "ninf"})
WIDTH = 256  # events at a time: what is summed up for them stays in the first cache
COMPONENTS = 4
SMALLEST_SCALE = np.float32(0.02)  # of a mixture component, in encoded units
LARGEST_LOGIT = np.float32(40.0)  # of a code: its exponential, and the sum of hundreds of them, stay within float32
SMALLEST_TAIL = np.float32(1e-30)
LOG_2 = np.float32(0.6931471805599453)
F32 = np.float32
UPPER, LOWER, BOTH = 0, 1, 2  # tails of a number

_ROUND = np.float32(12582912.0)  # 1.5 * 2 ** 23: a float32 that is added to it is rounded to a whole number
_ZERO, _HALF, _ONE, _TWO, _HUGE = (np.float32(x) for x in (0.0, 0.5, 1.0, 2.0, 1e30))


@compiled
def _exp(x):  # type: ignore[no-untyped-def]
    """Exponential of a float32 from -86 to 86 (polynomial of the Cephes library, Moshier 1992); error 1.2e-7."""
    shifted = fma(x, np.float32(1.44269504088896341), _ROUND)
    whole = shifted - _ROUND
    r = fma(whole, np.float32(2.12194440e-4), fma(whole, np.float32(-0.693359375), x))
    p = fma(np.float32(1.9875691500e-4), r, np.float32(1.3981999507e-3))
    p = fma(p, r, np.float32(8.3334519073e-3))
    p = fma(p, r, np.float32(4.1665795894e-2))
    p = fma(p, r, np.float32(1.6666665459e-1))
    p = fma(p, r, np.float32(5.0000001201e-1))
    y = np.float32(fma(p, r * r, r + _ONE))
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23))
    return np.int32(y.view(np.int32) + power).view(np.float32)


@compiled
def _decay(x):  # type: ignore[no-untyped-def]
    """Exponential of -x, x >= 0; of more than 86 that of 86."""
    return _exp(-min(x, np.float32(86.0)))


@compiled
def _log(x):  # type: ignore[no-untyped-def]
    """Logarithm of a normal float32 above 0: 2 artanh((m - 1) / (m + 1)) with x = m 2^k, m about 1."""
    bits = np.float32(x).view(np.int32)
    k = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    f = np.int32(bits - np.int32(k << np.int32(23))).view(np.float32) - _ONE
    s = f / (_TWO + f)
    z = s * s
    p = fma(np.float32(1 / 9), z, np.float32(1 / 7))
    p = fma(p, z, np.float32(1 / 5))
    p = fma(p, z, np.float32(1 / 3))
    return fma(np.float32(k), LOG_2, _TWO * fma(s * z, p, s))


@compiled
def _log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x) of -0.5 to 1, exact in proportion near 0."""
    s = x / (_TWO + x)
    z = s * s
    p = fma(np.float32(1 / 17), z, np.float32(1 / 15))
    p = fma(p, z, np.float32(1 / 13))
    p = fma(p, z, np.float32(1 / 11))
    p = fma(p, z, np.float32(1 / 9))
    p = fma(p, z, np.float32(1 / 7))
    p = fma(p, z, np.float32(1 / 5))
    p = fma(p, z, np.float32(1 / 3))
    return _TWO * fma(s * z, p, s)


@compiled
def _softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x))."""
    return max(x, _ZERO) + _log1p(_decay(abs(x)))


@compiled
def _sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x))."""
    e = _decay(abs(x))
    return (_ONE if x > _ZERO else e) / (_ONE + e)


@compiled
def _surprise(below, total):  # type: ignore[no-untyped-def]
    """-ln of the share `below` of `total`; exact in proportion where it is near 1, and exactly 0 there."""
    likelier = (total - below) / total
    near = -_log1p(-min(likelier, _HALF))
    return near if likelier < _HALF else -_log(max(below / total, SMALLEST_TAIL))


@compiled
def _bounded(logit):  # type: ignore[no-untyped-def]
    return min(max(logit, -LARGEST_LOGIT), LARGEST_LOGIT)


@compiled
def code_errors(logit, bias, first, at_event, code, out):  # type: ignore[no-untyped-def]
    """-ln of the tail of each category, >= 0, into `out`: all that is no likelier than what happened.

    logit (O, n) of the n events of a block and bias (O,); first (G + 1,), where the outputs of each category begin.
    Of `code` and `out`, (G, all events), the block begins at `at_event`. Odds stand in `logit` afterwards.
    """
    widely()
    n = logit.shape[1]
    total, below, at = np.empty((3, WIDTH), np.float32)
    for start in range(0, n, WIDTH):
        width = min(WIDTH, n - start)
        for g in range(len(first) - 1):
            here = code[g, at_event + start : at_event + start + width]
            _add_up(logit, start, bias, first[g], first[g + 1], here, at, total, below)
            found = out[g, at_event + start : at_event + start + width]
            for j in range(width):
                found[j] = _surprise(below[j], total[j])


@compiled
def code_losses(logit, bias, first, at_event, code, weight, errors):  # type: ignore[no-untyped-def]
    """Weighted sum of the losses of the categories; the derivatives by the logits stand in `logit` afterwards.

    As `code_errors`; `weight` and `errors` are (G, all events), and errors are filled in unless empty.
    """
    widely()
    n = logit.shape[1]
    total, below, at = np.empty((3, WIDTH), np.float32)
    summed = 0.0
    for start in range(0, n, WIDTH):
        width = min(WIDTH, n - start)
        for g in range(len(first) - 1):
            here = code[g, at_event + start : at_event + start + width]
            _add_up(logit, start, bias, first[g], first[g + 1], here, at, total, below)
            if len(errors):
                found = errors[g, at_event + start : at_event + start + width]
                for j in range(width):
                    found[j] = _surprise(below[j], total[j])
            mine = weight[g, at_event + start : at_event + start + width]
            for j in range(width):
                at[j] = total[j] / logit[here[j], start + j]
            _logs(at, width)
            for j in range(width):
                summed += mine[j] * at[j]
                total[j] = mine[j] / total[j]
            for row in range(first[g], first[g + 1]):
                odds = logit[row, start : start + width]
                for j in range(width):
                    odds[j] *= total[j]
            for j in range(width):
                logit[here[j], start + j] -= mine[j]
    return summed


@compiled
def _logs(x, number):  # type: ignore[no-untyped-def]
    """Logarithms of the first few, in their place."""
    widely()
    for j in range(number):
        x[j] = _log(x[j])


@compiled
def _add_up(logit, start, bias, first, last, code, at, total, below):  # type: ignore[no-untyped-def]
    """Odds of the codes `first` to `last`, in place of their logits: of all, and of those no likelier than `code`.

    `code` (width,) is that of the events from `start` on. Rows are cut out one by one: as a matrix they would not be
    known to be contiguous, and take three times as long.
    """
    widely()
    width = len(code)
    for j in range(width):
        at[j] = _bounded(logit[code[j], start + j] + bias[code[j]])
        total[j] = below[j] = _ZERO
    for row in range(first, last):
        _add(logit[row, start : start + width], bias[row], at, total, below)


@compiled
def _add(logit, bias, at, total, below):  # type: ignore[no-untyped-def]
    """Add the odds of one code to the total, and to what is no likelier than what happened."""
    widely()
    for j in range(len(logit)):
        one = _bounded(logit[j] + bias)
        odds = _exp(one)
        logit[j] = odds
        total[j] += odds
        below[j] += odds if one <= at[j] else _ZERO


@compiled
def _mixture(outputs, first, here, bias, weight):  # type: ignore[no-untyped-def]
    """Log weights (M, width) of the components of the field whose outputs begin at row `first`, events `here`."""
    widely()
    most, total = np.empty((2, WIDTH), np.float32)
    width = here.stop - here.start
    most[:], total[:] = -_HUGE, _ZERO
    for m in range(COMPONENTS):
        logit, by = outputs[first + m, here], bias[first + m]
        for j in range(width):
            most[j] = max(most[j], logit[j] + by)
    for m in range(COMPONENTS):
        logit, by, mine = outputs[first + m, here], bias[first + m], weight[m]
        for j in range(width):
            mine[j] = logit[j] + by - most[j]
            total[j] += _decay(-mine[j])
    for j in range(width):
        total[j] = _log(total[j])
    for m in range(COMPONENTS):
        mine = weight[m]
        for j in range(width):
            mine[j] -= total[j]


@compiled
def _log_sum(terms, width, out):  # type: ignore[no-untyped-def]
    """Log of the sum of the exponentials of (M, width), into (width,)."""
    widely()
    most = np.empty(WIDTH, np.float32)
    most[:], out[:] = -_HUGE, _ZERO
    for m in range(COMPONENTS):
        mine = terms[m]
        for j in range(width):
            most[j] = max(most[j], mine[j])
    for m in range(COMPONENTS):
        mine = terms[m]
        for j in range(width):
            out[j] += _decay(most[j] - mine[j])
    for j in range(width):
        out[j] = most[j] + _log(out[j])


@compiled
def _sides(outputs, first, here, bias, lower, upper, per, a, b, below, above, tail):  # type: ignore[no-untyped-def]
    """Borders of the bins in units of each component, and -log of the shares below the upper, above the lower one.

    All (M, width): 1 / scale into `per`, (upper - location) / scale into `a`, (lower - location) / scale into `b`;
    softplus(-a) into `below` and softplus(b) into `above`, if the `tail` asks for them.
    """
    widely()
    for m in range(COMPONENTS):
        at, spread = first + COMPONENTS + m, first + 2 * COMPONENTS + m
        location, raw, by_location, by_raw = outputs[at, here], outputs[spread, here], bias[at], bias[spread]
        each, high, low = per[m], a[m], b[m]
        for j in range(len(location)):
            each[j] = _ONE / (_softplus(raw[j] + by_raw) + SMALLEST_SCALE)
        for j in range(len(location)):
            center = location[j] + by_location
            high[j] = (upper[j] - center) * each[j]
            low[j] = (lower[j] - center) * each[j]
        if tail != UPPER:
            _softplus_of(high, -_ONE, below[m])
        if tail != LOWER:
            _softplus_of(low, _ONE, above[m])


@compiled
def _softplus_of(given, sign, out):  # type: ignore[no-untyped-def]
    widely()
    for j in range(len(given)):
        out[j] = _softplus(sign * given[j])


@compiled
def _number_error(weight, below, above, tail, work, out):  # type: ignore[no-untyped-def]
    """-ln of the tail of one field, (width,) >= 0, from what its components say, (M, width) each."""
    widely()
    found = np.empty((2, WIDTH), F32)
    up, down = found[0], found[1]
    _log_mass(weight, below if tail == LOWER else above, work, len(out), up)
    if tail == BOTH:
        _log_mass(weight, below, work, len(out), down)
        for j in range(len(out)):
            up[j] = min(up[j], down[j]) + LOG_2
    for j in range(len(out)):
        out[j] = max(-up[j], _ZERO)


@compiled
def _log_mass(weight, beside, work, width, out):  # type: ignore[no-untyped-def]
    """Log of the mass of all components, less what is `beside` of each; into (width,)."""
    widely()
    for m in range(COMPONENTS):
        one, other, made = weight[m], beside[m], work[m]
        for j in range(width):
            made[j] = one[j] - other[j]
    _log_sum(work, width, out)


@compiled
def number_errors(outputs, bias, tails, at_event, lower, upper, out):  # type: ignore[no-untyped-def]
    """-ln of the tail of each number, >= 0, into `out`.

    outputs (G * 3 * M, n) of the n events of a block and bias (G * 3 * M,): logits, locations and raw spreads of each
    field; tails (G,). Of `lower` and `upper`, the borders of the bins, and of `out`, (G, all events), the block begins
    at `at_event`.
    """
    widely()
    room = np.empty((7, COMPONENTS, WIDTH), F32)
    weight, per, a, b, below, above, work = room[0], room[1], room[2], room[3], room[4], room[5], room[6]
    for start in range(0, outputs.shape[1], WIDTH):
        here = slice(start, min(start + WIDTH, outputs.shape[1]))
        there = slice(at_event + here.start, at_event + here.stop)
        for g in range(len(tails)):
            first = 3 * COMPONENTS * g
            _mixture(outputs, first, here, bias, weight)
            _sides(outputs, first, here, bias, lower[g, there], upper[g, there], per, a, b, below, above, tails[g])
            _number_error(weight, below, above, tails[g], work, out[g, there])


@compiled
def number_losses(outputs, bias, tails, at_event, lower, upper, known, errors):  # type: ignore[no-untyped-def]
    """Weighted sum of the losses of the numbers; the derivatives by the outputs stand in `outputs` afterwards.

    As `number_errors`; `known` and `errors` are (G, all events): what each counts, and what is filled in unless empty.
    The derivatives are those of `anomaly.models.likelihood.Tails.gradient`.
    """
    widely()
    room = np.empty((7, COMPONENTS, WIDTH), F32)
    weight, per, a, b, below, above, inside = room[0], room[1], room[2], room[3], room[4], room[5], room[6]
    loss, wides = np.empty(WIDTH, F32), np.empty(WIDTH, F32)
    summed = 0.0
    for start in range(0, outputs.shape[1], WIDTH):
        here = slice(start, min(start + WIDTH, outputs.shape[1]))
        there = slice(at_event + here.start, at_event + here.stop)
        for g in range(len(tails)):
            first, low, high, count = 3 * COMPONENTS * g, lower[g, there], upper[g, there], known[g, there]
            _mixture(outputs, first, here, bias, weight)
            _sides(outputs, first, here, bias, low, high, per, a, b, below, above, BOTH)
            if len(errors):
                _number_error(weight, below, above, tails[g], inside, errors[g, there])
            _inside(weight, below, above, per, low, high, inside)
            _log_sum(inside, len(count), loss)
            for j in range(len(count)):
                summed -= count[j] * loss[j]
            for j in range(len(count)):
                wides[j] = high[j] - low[j]
            _number_gradient(outputs, first, here, bias, weight, per, a, b, wides, inside, loss, count)
    return summed


@compiled
def _share(wide):  # type: ignore[no-untyped-def]
    """1 - exp(-x) of x > 0, exact in proportion near 0."""
    x = min(wide, F32(0.25))
    p = fma(F32(-1 / 720), x, F32(1 / 120))
    p = fma(p, x, F32(-1 / 24))
    p = fma(p, x, F32(1 / 6))
    p = fma(p, x, F32(-1 / 2))
    near, far = fma(x * x, p, x), _ONE - _decay(wide)
    return near if wide < F32(0.25) else far


@compiled
def _inside(weight, below, above, per, lower, upper, inside):  # type: ignore[no-untyped-def]
    """Log of what each component puts into the bin, (M, width)."""
    widely()
    for m in range(COMPONENTS):
        one, under, over, each, made = weight[m], below[m], above[m], per[m], inside[m]
        for j in range(len(lower)):
            made[j] = _log(_share((upper[j] - lower[j]) * each[j]))
        for j in range(len(lower)):
            made[j] += one[j] - under[j] - over[j]


@compiled
def _number_gradient(outputs, first, here, bias, weight, per, a, b, wides, inside, loss, known):  # type: ignore[no-untyped-def]
    """Derivatives by the outputs of a field, in their place; `inside` becomes what each component counts."""
    widely()
    for m in range(COMPONENTS):
        at, spread = first + COMPONENTS + m, first + 2 * COMPONENTS + m
        logit, location, raw, by_raw = outputs[first + m, here], outputs[at, here], outputs[spread, here], bias[spread]
        log_weight, share, each, high, low = weight[m], inside[m], per[m], a[m], b[m]
        for j in range(len(location)):
            share[j] = _decay(max(loss[j] - share[j], _ZERO))
        for j in range(len(location)):
            logit[j] = known[j] * (_decay(-log_weight[j]) - share[j])
        for j in range(len(location)):
            share[j] *= known[j] * each[j]
        for j in range(len(location)):
            wide = wides[j] * each[j]
            rest_high, rest_low = _sigmoid(-high[j]), _sigmoid(low[j])
            location[j] = share[j] * (rest_high - rest_low)
            share[j] *= high[j] * rest_high - low[j] * rest_low + wide * _decay(wide) / _share(wide)
        for j in range(len(location)):
            raw[j] = share[j] * _sigmoid(raw[j] + by_raw)


@compiled
def borders(bins, resolution, lower, upper):  # type: ignore[no-untyped-def]
    """Lower and upper border of the bin that holds each value, (G, n); the values stand in `lower` before.

    bins (G, 3): step, centre and scale of a count, step 0 = none; counts stand on an asinh scale of unit 1.
    """
    widely()
    for g in range(len(lower)):
        low, high, step, center, scale = lower[g], upper[g], bins[g, 0], bins[g, 1], bins[g, 2]
        for j in range(len(low)):
            value = low[j]
            low[j], high[j] = value - resolution, value + resolution
            if step > _ZERO:
                power = _exp(min(max(fma(value, scale, center), F32(-40.0)), F32(40.0)))
                count = (_HALF * (power - _ONE / power) + _ROUND) - _ROUND
                low[j] = min(low[j], (_asinh(count - step) - center) / scale)
                high[j] = max(high[j], (_asinh(count + step) - center) / scale)


@compiled
def _asinh(x):  # type: ignore[no-untyped-def]
    far = abs(x)
    found = _log(far + np.sqrt(fma(far, far, _ONE)))
    return found if x > _ZERO else -found


@compiled
def stage(base, bias, given, start, numeric, category, index, circles, clock, known, tables, first, slope, out):  # type: ignore[no-untyped-def]
    """Inputs of the heads' stages, (stages, n, W + Q), into `out`, and slopes of what is activated into `slope`.

    base (n, 2 W): of the memory, less its bias (2 W,). Of all events that are judged, of which the n begin at `start`:
    given (all, H + Q), averages behind the memory, and `index` (all,), rows of numeric (N, F), of which the columns
    `circles` pass through `clock` (circles, W), and of category (N, C) int32, of which the columns `known` are looked
    up in `tables` (rows, W), from rows `first` on.
    slope (stages, n, W), or without events where it is not wanted.
    """
    widely()
    width = clock.shape[1]
    averages = out.shape[2] - width
    memory = given.shape[1] - averages
    for i in range(len(base)):
        event = index[start + i]
        one, two = out[0, i], out[1, i]
        for j in range(width):
            one[j] = base[i, j] + bias[j]
        for j in range(width):
            two[j] = base[i, width + j] + bias[width + j]
        for c in range(len(circles)):
            value = numeric[event, circles[c]]
            for j in range(width):
                two[j] = fma(value, clock[c, j], two[j])
        if len(out) > 2:
            three = out[2, i]
            for j in range(width):
                three[j] = two[j]
            for k in range(len(known)):
                row = first[k] + np.int64(category[event, known[k]])
                for j in range(width):
                    three[j] += tables[row, j]
        for s in range(len(out)):
            made = out[s, i]
            if slope.shape[1]:
                steep = slope[s, i]
                for j in range(width):
                    x = made[j]
                    share = _sigmoid(x)
                    made[j] = x * share
                    steep[j] = share * fma(x, _ONE - share, _ONE)
            else:
                for j in range(width):
                    made[j] *= _sigmoid(made[j])
            for j in range(averages):
                made[width + j] = given[start + i, memory + j]


@compiled
def stage_back(start, numeric, category, index, circles, known, first, slope, by_out, by_base, by_clock, by_tables):  # type: ignore[no-untyped-def]
    """Derivatives of `stage` by the base (n, 2 W), and by the clock and the tables, to which they are added."""
    widely()
    width = slope.shape[2]
    whole = np.empty(width, F32)
    for i in range(slope.shape[1]):
        event = index[start + i]
        one, two = by_base[i, :width], by_base[i, width:]
        for j in range(width):
            one[j] = by_out[0, i, j] * slope[0, i, j]
        for j in range(width):
            two[j] = by_out[1, i, j] * slope[1, i, j]
        if len(slope) > 2:
            for j in range(width):
                whole[j] = by_out[2, i, j] * slope[2, i, j]
            for j in range(width):
                two[j] += whole[j]
            for k in range(len(known)):
                row = by_tables[first[k] + np.int64(category[event, known[k]])]
                for j in range(width):
                    row[j] += whole[j]
        for c in range(len(circles)):
            value, row = numeric[event, circles[c]], by_clock[c]
            for j in range(width):
                row[j] = fma(value, two[j], row[j])


@compiled
def _tanh(x):  # type: ignore[no-untyped-def]
    e = _decay(_TWO * abs(x))
    t = (_ONE - e) / (_ONE + e)
    return t if x > _ZERO else -t


@compiled
def lstm_step(gates, cell, out, new):  # type: ignore[no-untyped-def]
    """One step of an LSTM from its gates (n, 4 H): output into `out` and cell into `new`, (n, H) each.

    cell (n, H): before the step; empty (0, H) = nothing yet, and no gate for what to keep of it: gates (n, 3 H). What
    the gates are once they are activated stands in their place afterwards.
    """
    widely()
    hidden = out.shape[1]
    last = gates.shape[1] - hidden
    for i in range(len(gates)):
        row, kept, said = gates[i], new[i], out[i]
        enter, fresh, leave = row[:hidden], row[last - hidden : last], row[last:]
        for j in range(hidden):
            enter[j] = _sigmoid(enter[j])
        for j in range(hidden):
            fresh[j] = _tanh(fresh[j])
        for j in range(hidden):
            leave[j] = _sigmoid(leave[j])
        for j in range(hidden):
            kept[j] = enter[j] * fresh[j]
        if len(cell):
            old, keep = cell[i], row[hidden : 2 * hidden]
            for j in range(hidden):
                keep[j] = _sigmoid(keep[j])
            for j in range(hidden):
                kept[j] += keep[j] * old[j]
        for j in range(hidden):
            said[j] = leave[j] * _tanh(kept[j])


@compiled
def lstm_step_back(gates, cell, new, by_out, by_new, by_cell):  # type: ignore[no-untyped-def]
    """Derivatives of `lstm_step` by the gates, in the place of those, which are as it has left them, and by the cell.

    by_new (n, H): by the new cell; empty (0, H) = there is none. Each loop has one name for what it overwrites, or it
    would not be vectorised.
    """
    widely()
    hidden = new.shape[1]
    last = gates.shape[1] - hidden
    by_kept = np.empty(hidden, F32)
    for i in range(len(gates)):
        row, kept, by = gates[i], new[i], by_out[i]
        enter, fresh, leave = row[:hidden], row[last - hidden : last], row[last:]
        for j in range(hidden):
            full, out = _tanh(kept[j]), leave[j]
            by_kept[j] = by[j] * out * (_ONE - full * full)
            leave[j] = by[j] * full * out * (_ONE - out)
        if len(by_new):
            beside = by_new[i]
            for j in range(hidden):
                by_kept[j] += beside[j]
        for j in range(hidden):
            one, other = enter[j], fresh[j]
            enter[j] = by_kept[j] * other * one * (_ONE - one)
            fresh[j] = by_kept[j] * one * (_ONE - other * other)
        if len(cell):
            keep, old, by_old = row[hidden : 2 * hidden], cell[i], by_cell[i]
            for j in range(hidden):
                still = keep[j]
                by_old[j] = by_kept[j] * still
                keep[j] = by_kept[j] * old[j] * still * (_ONE - still)
