"""Loops: compiled for the processor when they are first called, and kept for the next time.

`compiled` is for the loops of all other modules; those of the models are in `anomaly.models.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], fast: Any = False) -> Callable[..., Any]:
    """Compile at the first call, and keep that beside the package or in the user's cache, where one may be written.

    Threads that call it run side by side. `fast` names what LLVM may assume of floats; by default nothing, so that NaN
    is NaN and each sum is as written.
    """
    wish: dict[str, Any] = {"fastmath": fast, "nogil": True, "error_model": "numpy"}
    try:
        made: Callable[..., Any] = njit(cache=True, **wish)(function)
    except RuntimeError:  # neither may: it is compiled in each process
        made = njit(**wish)(function)
    return made


@compiled
def interpolate_tail(values, at, level, x, out):  # type: ignore[no-untyped-def]
    """Share of the held-out values that are at least as high as each of x, into `out`; all (n,), or (k,) as learned.

    See `anomaly.calibration.TailCalibrator`, of which `values`, `at` and `level` (all (k,)) are. NaN stays NaN; beyond
    the last value it is that of the last one.
    """
    last = len(values) - 1
    for i in range(len(x)):
        one = x[i]
        if one != one:
            out[i] = one
            continue
        if one < values[0]:
            out[i] = 1.0
            continue
        right, rest = 0, last + 1  # the first value that is not below x lies among the `rest` from `right` on
        while rest > 1:
            half = rest >> 1
            right += half if values[right + half - 1] < one else 0
            rest -= half
        if right < last and values[right] < one:
            right += 1
        left = max(right - 1, 0)
        share, top, low, high = at[right], level[left], values[left], values[right]
        if top > share and low < one < high:
            share = max(top - (one - low) / (high - low) * (top - share), share)
        out[i] = share
