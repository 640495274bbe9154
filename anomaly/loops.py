"""Loops over arrays, compiled; those of the models are in `anomaly.models.kernels`."""

from __future__ import annotations

import numpy as np

from anomaly.compiling import compiled

CELLS = 16_384  # of the values of a calibrator
STRETCH = 8192  # events


@compiled
def interpolate_tail(values, at, level, x, out):  # type: ignore[no-untyped-def]
    """Share of the held-out values that are at least as high as each of x, into `out`; all (n,), or (k,) as learned.

    See `anomaly.calibration.TailCalibrator`, of which `values`, `at` and `level` (all (k,)) are. NaN stays NaN; beyond
    the last value it is that of the last one.
    """
    last = len(values) - 1
    guide, per = _guide(values, len(x))
    cells = len(guide) - 1
    for i in range(len(x)):
        one = x[i]
        if one != one:
            out[i] = one
            continue
        if one < values[0]:
            out[i] = 1.0
            continue
        cell = min(int((min(one, values[last]) - values[0]) * per), cells - 1)
        right = _first_not_below(values, one, guide[cell], min(guide[cell + 1] + 1, last) if cells > 1 else last)
        left = max(right - 1, 0)
        share, top, low, high = at[right], level[left], values[left], values[right]
        if top > share and low < one < high:
            share = max(top - (one - low) / (high - low) * (top - share), share)
        out[i] = share


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
def first_within(micros, offsets, window, most, out):  # type: ignore[no-untyped-def]
    """First event of each one's sequence that is less than `window` microseconds older, of the last `most`, into `out`.

    micros, out : (N,), not falling inside a sequence; offsets : (S + 1,), the borders of the sequences.
    """
    for sequence in range(len(offsets) - 1):
        first = offsets[sequence]
        for i in range(offsets[sequence], offsets[sequence + 1]):
            while first < i and (micros[first] <= micros[i] - window or i - first >= most):
                first += 1
            out[i] = first


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
