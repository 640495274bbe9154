"""Gathers: rows picked, laid side by side, added up and put back, compiled, for the processor.

The arithmetic of the models is in `anomaly.models.kernels`; here numbers are moved. Letters used in shapes: N events of
a table, n chosen ones, F numeric and C category columns, Q statistics, K fields, H hidden units.
"""

from __future__ import annotations

import numpy as np

from anomaly.compiling import compiled

WIDTH = 256  # events at a time: their columns stay in the first cache


@compiled
def put(found, index, out):  # type: ignore[no-untyped-def]
    """Columns of `found` (K, n) into the rows `index` (n,) of `out` (N, K)."""
    for i in range(len(index)):
        row = out[index[i]]
        for k in range(len(found)):
            row[k] = found[k, i]


@compiled
def ask(numeric, category, unknown, numbers, categories, first, value, missing, code):  # type: ignore[no-untyped-def]
    """What happened: values (Gn, n), 0 where missing; which fields are missing, (Gn + Gc, n); rows of codes (Gc, n).

    numeric (n, F) and category (n, C), of which the columns `numbers` (Gn,) and `categories` (Gc,) are fields; the
    outputs of a category begin at row `first` (Gc,). The code `unknown` is that of a missing one.
    """
    for start in range(0, len(numeric), WIDTH):
        events, kinds = numeric[start : start + WIDTH], category[start : start + WIDTH]
        for g in range(len(numbers)):
            values, lacks, column = value[g, start:], missing[g, start:], numbers[g]
            for i in range(len(events)):
                one = events[i, column]
                known = one == one
                values[i] = one if known else np.float32(0.0)
                lacks[i] = not known
        for g in range(len(categories)):
            rows, lacks, column = code[g, start:], missing[len(numbers) + g, start:], categories[g]
            for i in range(len(kinds)):
                at = np.int64(kinds[i, column])
                rows[i] = first[g] + at
                lacks[i] = at == unknown


@compiled
def embed(numeric, category, clip, weights, first, widths, out):  # type: ignore[no-untyped-def]
    """One vector for each event, into `out` (n, size): clipped numbers, a flag for each missing one, embedded codes.

    numeric (n, F); category (n, C) int32; weights: the tables of all categories one behind the other, that of each from
    `first` (C,) on, rows of `widths` (C,).
    """
    numbers = numeric.shape[1]
    for i in range(len(numeric)):
        for f in range(numbers):
            value = numeric[i, f]
            known = value == value
            out[i, f] = min(max(value, -clip), clip) if known else np.float32(0.0)
            out[i, numbers + f] = np.float32(0.0) if known else np.float32(1.0)
        to = 2 * numbers
        for c in range(category.shape[1]):
            start = first[c] + np.int64(category[i, c]) * widths[c]
            for j in range(widths[c]):
                out[i, to + j] = weights[start + j]
            to += widths[c]


@compiled
def embed_back(category, by_out, numbers, first, widths, by_weights):  # type: ignore[no-untyped-def]
    """Add the derivatives by the tables to `by_weights`; as `embed`."""
    for i in range(len(category)):
        at = 2 * numbers
        for c in range(category.shape[1]):
            start = first[c] + np.int64(category[i, c]) * widths[c]
            for j in range(widths[c]):
                by_weights[start + j] += by_out[i, at + j]
            at += widths[c]


@compiled
def add_rows(rows, place, first, out):  # type: ignore[no-untyped-def]
    """Add the rows (n, H) to those of `out` at `place` (n,) less `first`; places before the first one are left out."""
    for i in range(len(rows)):
        at = place[i] - first
        if at >= 0:
            one, to = rows[i], out[at]
            for j in range(len(one)):
                to[j] += one[j]


@compiled
def sums(column, start, stop, clip, total, out):  # type: ignore[no-untyped-def]
    """Number, sum and sum of squares of the known values of a column, clipped, of the events `start` to `stop`.

    column (N,); start and stop (N,): where what is added up for each event begins and ends; out (N, 3) float64. They
    are differences of running sums, for which `total` (N + 1, 3) float64 is a place.
    """
    for j in range(3):
        total[0, j] = 0.0
    for i in range(len(column)):
        known = abs(column[i]) < np.inf
        value = min(max(np.float64(column[i]), -clip), clip) if known else np.float64(0.0)
        total[i + 1, 0] = total[i, 0] + (1.0 if known else 0.0)
        total[i + 1, 1] = total[i, 1] + value
        total[i + 1, 2] = total[i, 2] + value * value
    for i in range(len(column)):
        for j in range(3):
            out[i, j] = total[stop[i], j] - total[start[i], j]
