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
def ask(numeric, category, index, unknown, numbers, categories, first, value, missing, code):  # type: ignore[no-untyped-def]
    """What happened: values (Gn, n), 0 where missing; which fields are missing, (Gn + Gc, n); rows of codes (Gc, n).

    numeric (N, F) and category (N, C), of which the rows `index` (n,) are asked for, and the columns `numbers` (Gn,)
    and `categories` (Gc,) are fields; the outputs of a category begin at row `first` (Gc,). The code `unknown` is that
    of a missing one.
    """
    for start in range(0, len(index), WIDTH):
        events = index[start : start + WIDTH]
        for g in range(len(numbers)):
            values, lacks, column = value[g, start:], missing[g, start:], numbers[g]
            for i in range(len(events)):
                one = numeric[events[i], column]
                known = one == one
                values[i] = one if known else np.float32(0.0)
                lacks[i] = not known
        for g in range(len(categories)):
            rows, lacks, column = code[g, start:], missing[len(numbers) + g, start:], categories[g]
            for i in range(len(events)):
                at = np.int64(category[events[i], column])
                rows[i] = first[g] + at
                lacks[i] = at == unknown


@compiled
def embed(numeric, category, index, clip, weights, first, widths, out):  # type: ignore[no-untyped-def]
    """One vector for each event, into `out` (n, size): clipped numbers, a flag for each missing one, embedded codes.

    numeric (N, F) and category (N, C) int32, of which the rows are `index` (n,); weights: the tables of all categories
    one behind the other, that of each from `first` (C,) on, rows of `widths` (C,).
    """
    numbers = numeric.shape[1]
    for i in range(len(index)):
        event = index[i]
        for f in range(numbers):
            value = numeric[event, f]
            known = value == value
            out[i, f] = min(max(value, -clip), clip) if known else np.float32(0.0)
            out[i, numbers + f] = np.float32(0.0) if known else np.float32(1.0)
        to = 2 * numbers
        for c in range(category.shape[1]):
            start = first[c] + np.int64(category[event, c]) * widths[c]
            for j in range(widths[c]):
                out[i, to + j] = weights[start + j]
            to += widths[c]


@compiled
def embed_back(category, index, by_out, numbers, first, widths, by_weights):  # type: ignore[no-untyped-def]
    """Add the derivatives by the tables to `by_weights`; as `embed`."""
    for i in range(len(index)):
        at = 2 * numbers
        for c in range(category.shape[1]):
            start = first[c] + np.int64(category[index[i], c]) * widths[c]
            for j in range(widths[c]):
                by_weights[start + j] += by_out[i, at + j]
            at += widths[c]


@compiled
def choose(index, valid, start, border, chosen, event, step, row):  # type: ignore[no-untyped-def]
    """Events of a chunk that are chosen: which (n,), how many earlier ones are remembered, and their rows; returns n.

    index and valid (T, B), start (B,): as of a `Chunk`; border (N,): first event that is too young to be remembered;
    chosen (N,) bool, or empty = all. A row cut out of a longer sequence begins with an empty memory.
    """
    n = 0
    for t in range(index.shape[0]):
        for b in range(index.shape[1]):
            one = index[t, b]
            if valid[t, b] and (not len(chosen) or chosen[one]):
                event[n], row[n] = one, b
                step[n] = max(border[one] - start[b], 0)
                n += 1
    return n


@compiled
def recall(memories, first, step, row, out):  # type: ignore[no-untyped-def]
    """Memories of n events into the first H columns of `out`, those of the steps that are there.

    memories (T, B, H): after `first`, `first` + 1, ... events; step and row (n,): as `choose` gives them.
    """
    for i in range(len(step)):
        at = step[i] - first
        if 0 <= at < len(memories):
            one, to = memories[at, row[i]], out[i]
            for j in range(len(one)):
                to[j] = one[j]


@compiled
def recall_back(by_out, first, step, row, by_memories):  # type: ignore[no-untyped-def]
    """Add the derivatives by what `recall` gave to those by the memories; those of earlier steps are left out."""
    for i in range(len(step)):
        at = step[i] - first
        if at >= 0:
            one, to = by_out[i], by_memories[at, row[i]]
            for j in range(len(to)):
                to[j] += one[j]


@compiled
def put_beside(table, index, first, out):  # type: ignore[no-untyped-def]
    """Rows `index` (n,) of the table (N, Q) into the columns of `out` (n, more) from the `first` on."""
    for i in range(len(index)):
        for j in range(table.shape[1]):
            out[i, first + j] = table[index[i], j]


@compiled
def averages(numeric, columns, offsets, border, clip, out):  # type: ignore[no-untyped-def]
    """Mean and spread of the remembered values of each column, clipped, into the columns of `out` from the second on.

    numeric (N, F), of which the `columns` (A,) are averaged; offsets (S + 1,): borders of the sequences; border (N,):
    first event that is too young to be remembered, not falling inside a sequence; out (N, 1 + 2 A). Sums start with one
    pseudo-event of mean 0 and variance 1.
    """
    count, total, square = np.empty((3, len(columns)))
    for s in range(len(offsets) - 1):
        young = offsets[s]
        for a in range(len(columns)):
            count[a], total[a], square[a] = 1.0, 0.0, 1.0
        for i in range(offsets[s], offsets[s + 1]):
            while young < border[i]:
                for a in range(len(columns)):
                    value = numeric[young, columns[a]]
                    if abs(value) < np.inf:
                        value = np.float64(min(max(value, -clip), clip))
                        count[a] += 1.0
                        total[a] += value
                        square[a] += value * value
                young += 1
            for a in range(len(columns)):
                mean = total[a] / count[a]
                out[i, 1 + 2 * a] = mean
                out[i, 2 + 2 * a] = np.sqrt(max(square[a] / count[a] - mean * mean, 1e-4))
