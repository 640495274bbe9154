"""Loops over arrays, compiled; those of the models are in `anomaly.models.kernels`."""

from __future__ import annotations

import math

import numpy as np

from anomaly.compiling import compiled

CELLS = 16_384  # of values that are ranked against
NEAR = 8  # values: fewer are gone through one by one
STRETCH = 8192  # events


@compiled
def tabulate_tail(values, at, level, lines, guide):  # type: ignore[no-untyped-def]
    """What `multiply_tail` reads of a `TailCalibrator`, whose kept values and levels of p are given, (k,) each.

    lines : (k, 3), of each kept value itself, its share, and how fast that of the values below it rises; guide :
    (cells + 2,), the first value of each cell. Most values stand close together at the lower end, and so do the cells.
    """
    last = len(values) - 1
    for right in range(len(values)):
        left = max(right - 1, 0)
        rise = level[left] - at[right]
        slope = rise / (values[right] - values[left]) if right and rise > 0.0 else 0.0
        lines[right, 0], lines[right, 1] = values[right], at[right]
        lines[right, 2] = slope if slope < np.inf else 0.0
    per = _cells_per_unit(lines, guide)
    right = 0
    for cell in range(len(guide)):
        while right < last and math.sqrt((values[right] - values[0]) * per) < cell:
            right += 1
        guide[cell] = right


@compiled
def multiply_tail(lines, guide, x, out):  # type: ignore[no-untyped-def]
    """Multiply `out` (n,) by the share of the held-out values that are at least as high as each of x (n,); NaN is NaN.

    Beyond the last kept value `out` is left as it is; returns how many of x lie there. lines, guide : see
    `tabulate_tail`.
    """
    lowest, highest, per = lines[0, 0], lines[len(lines) - 1, 0], _cells_per_unit(lines, guide)
    beyond = 0
    for i in range(len(x)):
        one = float(x[i])
        if not one <= highest:
            beyond += one == one
            out[i] = out[i] if one == one else np.nan
        elif one >= lowest:
            cell = np.uint64(math.sqrt((one - lowest) * per))
            right, end = np.uint64(guide[cell]), np.uint64(guide[cell + np.uint64(1)])
            while end - right > np.uint64(NEAR):
                half = (right + end) >> np.uint64(1)
                if lines[half, 0] < one:
                    right = half + np.uint64(1)
                else:
                    end = half
            while lines[right, 0] < one:
                right += np.uint64(1)
            out[i] *= lines[right, 1] + (lines[right, 0] - one) * lines[right, 2]
    return beyond


@compiled
def _cells_per_unit(lines, guide):  # type: ignore[no-untyped-def]
    """Square of what a value's distance to the lowest one is multiplied by for its cell, a root."""
    width = lines[len(lines) - 1, 0] - lines[0, 0]
    return float((len(guide) - 2) ** 2) / width if width > 1e-200 else 0.0


@compiled
def _guide(values, asked):  # type: ignore[no-untyped-def]
    """Where to look, by cells of equal width, and their number per unit; one cell for few questions.

    Most values stand close together, and a search among all takes long.
    """
    last = len(values) - 1
    width = values[last] - values[0]
    cells = CELLS if asked * 8 > len(values) and width > 1e-200 else 1
    per = cells / width if cells > 1 else 0.0
    guide = np.zeros(cells + 1, np.int64)
    for j in range(len(values) if cells > 1 else 0):
        guide[min(int((values[j] - values[0]) * per), cells - 1) + 1] = j
    for cell in range(1, cells + 1):
        guide[cell] = max(guide[cell], guide[cell - 1])
    return guide, per


@compiled
def rank_all(values, x, out):  # type: ignore[no-untyped-def]
    """How many of the rising values (k,) lie below each of x, into `out` (n,); of NaN, none."""
    last = len(values) - 1
    guide, per = _guide(values, len(x))
    cells = len(guide) - 1
    for i in range(len(x)):
        one = x[i]
        if one > values[last]:
            out[i] = last + 1
        elif one > values[0]:
            cell = min(int((one - values[0]) * per), cells - 1)
            out[i] = _first_not_below(values, one, guide[cell], min(guide[cell + 1] + 1, last) if cells > 1 else last)
        else:
            out[i] = 0


@compiled
def add_fields(surprise, weight, pairs, soft_threshold, gentle, far, out):  # type: ignore[no-untyped-def]
    """Weighted sums (N,) over the fields of each event, (N, K), into `out`; see `anomaly.evidence.combine_fields`."""
    nats = np.empty(len(weight))
    for i in range(len(surprise)):
        known, beyond = 0, 0
        for k in range(len(weight)):
            one = float(surprise[i, k])
            known += one == one
            nats[k] = one if one == one else 0.0
            beyond += nats[k] > far
        for k in range(len(weight) if beyond else 0):
            if nats[k] > far:
                nats[k] = far + np.log1p(min(nats[k], 1e30) - far)
        for at in range(len(pairs)):
            first, second = pairs[at, 0], pairs[at, 1]
            nats[second if nats[first] >= nats[second] else first] = 0.0
        total = 0.0
        for k in range(len(weight)):
            total += weight[k] * (max(nats[k] - soft_threshold, 0.0) + gentle * nats[k])
        out[i] = total if known else np.nan


@compiled
def look_up_curves(number, sums, first, cells, least, highest, pieces, out):  # type: ignore[no-untyped-def]
    """Evidence of each event and window (N, W) into `out`, NaN where the curves do not tell it; are there such ones.

    number, sums : (N, W); the others : see `anomaly.evidence._Curves`; `highest` : the mean where all curves end.
    """
    unknown, root = False, math.sqrt(highest)
    for i in range(len(number)):
        for window in range(number.shape[1]):
            count = int(number[i, window])
            if count <= 0:
                out[i, window] = 0.0
                continue
            mean = max(sums[i, window], 0.0) / count
            v = math.sqrt(mean)
            if count >= cells.shape[1] or not (mean <= highest and v >= least[window, count]):
                out[i, window] = np.nan
                unknown = True
                continue
            place = v / root * cells[window, count]
            cell = min(int(place), cells[window, count] - 1)
            at, t = first[window, count] + cell, place - cell
            nats = pieces[at, 4] + t * pieces[at, 5]
            nats = pieces[at, 2] + t * (pieces[at, 3] + t * nats)
            out[i, window] = pieces[at, 0] + t * (pieces[at, 1] + t * nats)
    return unknown


@compiled
def bound_runs(index, total, number, back, on, nodes, per, straight, out):  # type: ignore[no-untyped-def]
    """What the evidence around the events `index` (n,) adds up to at most, into `out` (n,); see `anomaly.evidence`.

    total, number : (N + 1,), sums of what counts and of how many count; back, on : (W, N), how far each window reaches;
    nodes : (counts, nodes + 1), evidence of so many events at means from 0 on, `per` of them in a nat; `straight` : the
    nats from which on the higher node is the bound.
    """
    most = nodes.shape[1] - 1
    for i in range(len(index)):
        event, bound = index[i], 0.0
        for window in range(len(back)):
            first, last = event - back[window, event], event + on[window, event] + 1
            count = number[last] - number[first]
            if count < 1.0:
                continue
            place = min(max((total[last] - total[first]) / count * per, 0.0), float(most))
            left = min(int(place), most - 1)
            low, high = nodes[int(count), left], nodes[int(count), left + 1]
            bound += high if high > straight else low + (place - left) * (high - low)
        out[i] = bound * (1.0 + 1e-9) + 1e-9


@compiled
def _first_not_below(values, x, first, last):  # type: ignore[no-untyped-def]
    """Index of the first value that is not below x, from `first` to `last`; the last one if all are."""
    rest = last - first + 1
    while rest > 1:
        half = rest >> 1
        first += half if values[first + half - 1] < x else 0
        rest -= half
    return first


@compiled
def reach_back(micros, offsets, windows, most, out):  # type: ignore[no-untyped-def]
    """How many events of its sequence before each one are less than each window older, of the last `most`, into `out`.

    The event itself is one of the `most`. micros : (N,), not falling inside a sequence; offsets : (S + 1,), the borders
    of the sequences; windows : (W,), microseconds; out : (W, N).
    """
    for sequence in range(len(offsets) - 1):
        for window in range(len(windows)):
            first = offsets[sequence]
            for i in range(offsets[sequence], offsets[sequence + 1]):
                while first < i and (micros[first] <= micros[i] - windows[window] or i - first >= most):
                    first += 1
                out[window, i] = i - first


@compiled
def sum_recent(total, back, sums, number):  # type: ignore[no-untyped-def]
    """Sum and number of what lies so many events back from each one, `back` (W, N), into `sums`, `number`, (N, W).

    total : (N + 1,), running sums.
    """
    for i in range(len(sums)):
        for window in range(len(back)):
            reach = int(back[window, i])
            number[i, window] = reach
            sums[i, window] = total[i] - total[i - reach]


@compiled
def sum_windows(values, first, out):  # type: ignore[no-untyped-def]
    """See `anomaly.features.window_sums`; all (N,). A stretch at a time, so that it stays in the processor's cache."""
    start = 0
    while start < len(values):
        stop = min(start + STRETCH, len(values))
        begin, longest = start, 1
        for i in range(start, stop):
            begin, longest = min(begin, first[i]), max(longest, i - first[i] + 1)
        run = values[begin:stop].copy()
        end = np.arange(start - begin, stop - begin)
        for i in range(start, stop):
            out[i] = 0.0
        step = 1
        while step <= longest:
            for i in range(start, stop):
                if (i - first[i] + 1) & step:
                    out[i] += run[end[i - start]]
                    end[i - start] -= step
            for i in range(len(run) - 1, step - 1, -1):
                run[i] += run[i - step]
            step *= 2
        start = stop
