"""Known past fraud as causal inputs: what was known of a card or a terminal by the time of an event.

A label comes late: whether an event was fraud is known only when a cardholder has complained or an investigator has
looked, a *delay* after it. An input that reads labels sooner looks well in a back-test and is not there in production.
Here the label of an event at time s is known from s + `delay` on, and nothing reads it before.

Events are grouped by a *key*, such as the customer or the terminal of each: terminals with much past fraud are where
much of the next fraud is. Windows and means are those of the Fraud Detection Handbook, chapter 3 (Le Borgne, Siblini,
Lebichot & Bontempi 2021), for the terminals with a delay of 7 days and windows of 1, 7 and 30 days.

Letters used in shapes: N events, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ParameterError
from anomaly.features import window_sums
from anomaly.sequences import lagged, microseconds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

DAY = 86_400.0
LEAST = 0.01  # what smaller amounts count as, in their own unit
SHORTEST = 1e-6  # seconds; times are compared in whole microseconds


def known_fraud(
    key: ArrayLike, time: ArrayLike, fraud: ArrayLike, *, delay: float, windows: Sequence[float]
) -> NDArray[np.float64]:
    """Number of each key's events in a past window whose labels are known by now, and the share of fraud among them.

    For event i and window w these are the events of its key in ``(t_i - delay - w, t_i - delay]``, a window
    that ends a delay ago, so that all labels in it are known.

    Parameters
    ----------
    key : array (N,)
        Whose past is looked at: customer, terminal, device; numbers or text, none missing.
    time : array (N,)
        Seconds since 1970, in any order.
    fraud : array (N,)
        1 = fraud, 0 = genuine; NaN = never labelled: such an event counts neither in the number nor in the share.
    delay : float
        Seconds from an event until its label is known; above 0, so that no event's own label is among its inputs.
    windows : sequence of float
        Lengths w of the W windows in seconds, each above 0.

    Returns
    -------
    ndarray (N, 2 W)
        Number and share of the first window, number and share of the second, and so on, in the order of the input. The
        share is 0 where the number is 0; the number tells that apart from a past without fraud.

    Raises
    ------
    ParameterError
        If lengths differ, a key or time is missing, a label is no 0, 1 or NaN, or `delay` or a window is not above 0.

    Notes
    -----
    Equal times: an event at exactly ``t_i - delay`` is inside, with all others of that time, and one at exactly ``t_i -
    delay - w`` is outside. The order of the input plays no part, since the delay keeps the event itself out.

    Examples
    --------
    Two events at a terminal on day 0, the first one fraud, and one each on days 3 and 8:

    >>> day = 86_400.0
    >>> time = np.array([0, 0, 3, 8]) * day
    >>> known_fraud(["t", "t", "t", "t"], time, [1, 0, 0, 0], delay=7 * day, windows=[day, 30 * day]).tolist()
    [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.5]]
    """
    view = _View.of("known_fraud", key, time)
    label = _labels("known_fraud", fraud, len(view.time))[view.order]
    delay = _lengths("known_fraud", "delay", [delay])[0]
    numbers, frauds = _running(~np.isnan(label)), _running(label == 1)
    stop = lagged(view.time, view.offsets, delay)  # the first event whose label isn't known yet
    columns = []
    for window in _lengths("known_fraud", "windows", windows):
        start = lagged(view.time, view.offsets, delay + window)
        number = numbers[stop] - numbers[start]
        columns += [number, (frauds[stop] - frauds[start]) / np.maximum(number, 1)]
    return view.in_input_order(columns)


def rolling(key: ArrayLike, time: ArrayLike, value: ArrayLike, *, windows: Sequence[float]) -> NDArray[np.float64]:
    """Number and mean of the values of each key's events in ``(t_i - w, t_i]``, the event itself included.

    The same numbers as ``rolling("7d").count()`` and ``.mean()`` of pandas on the events of one key, but sums are never
    differences of running totals, so one monstrous amount doesn't blur the means after it.

    Parameters
    ----------
    key : array (N,)
        Whose past is looked at: customer, terminal, device; numbers or text, none missing.
    time : array (N,)
        Seconds since 1970, in any order.
    value : array (N,)
        Finite; NaN = missing: such an event counts neither in the number nor in the mean.
    windows : sequence of float
        Lengths w of the W windows in seconds, each above 0.

    Returns
    -------
    ndarray (N, 2 W)
        Number and mean of the first window, number and mean of the second, and so on, in the order of the input. The
        mean is NaN where the number is 0, which takes a missing value of the event itself.

    Raises
    ------
    ParameterError
        If lengths differ, a key or time is missing, a value is infinite, or a window is not above 0.

    Notes
    -----
    Equal times: among events of one key at the same time, those in earlier rows of the input come first, so each sees
    the rows before it and none after it, as a stream would that pushes them one by one. Sort the input if that order
    means something. An event at exactly ``t_i - w`` is outside.

    Examples
    --------
    >>> rolling(["a", "a", "b", "a"], [0, 60, 60, 60], [1.0, 3.0, 9.0, 8.0], windows=[61]).tolist()
    [[1.0, 1.0], [2.0, 2.0], [1.0, 9.0], [3.0, 4.0]]
    """
    view = _View.of("rolling", key, time)
    given = np.asarray(value, dtype=np.float64)
    _same_length("rolling", len(view.time), value=given)
    if np.isinf(given).any():
        raise ParameterError(f"rolling: expected finite values or NaN, got {int(np.isinf(given).sum())} infinite ones")
    given = given[view.order]
    missing = np.isnan(given)
    numbers, values = _running(~missing), np.where(missing, 0.0, given)
    columns: list[NDArray[Any]] = []
    for window in _lengths("rolling", "windows", windows):
        start = lagged(view.time, view.offsets, window)
        number = numbers[1:] - numbers[start]
        mean = window_sums(values, start) / np.maximum(number, 1)
        columns += [number, np.where(number > 0, mean, np.nan)]
    return view.in_input_order(columns)


def known_past(
    key: ArrayLike, time: ArrayLike, fraud: ArrayLike, *, delay: float, windows: Sequence[float]
) -> NDArray[np.float64]:
    """What is known by now of each key's past frauds: how many, which share, since when, and whether they go on.

    The same events and the same delay as in `known_fraud`. A share of few events says little, so here one event of the
    common share is added to each; and a run of frauds says more than a share, such as that of a terminal in a thief's
    hands, or of a card that is not blocked yet.

    Parameters
    ----------
    key, time, fraud, delay, windows :
        As in `known_fraud`.

    Returns
    -------
    ndarray (N, 3 W + 5)
        For each window number of events, number of frauds, and (frauds + s) / (events + 1), where s is the share of
        fraud among all events whose labels are known by now, of any key. Then days since the key's last known fraud;
        since its last known genuine event; number of known frauds after that one; days since the first of these; days
        since the first known fraud of the longest window. NaN where there is none.

    Raises
    ------
    ParameterError
        As in `known_fraud`.

    Examples
    --------
    Three events at a terminal, the last two fraud, seen ten days later:

    >>> time = np.array([0, 1, 2, 12]) * 86_400.0
    >>> known_past(["t"] * 4, time, [0, 1, 1, 0], delay=7 * 86_400.0, windows=[30 * 86_400.0])[3].tolist()
    [3.0, 2.0, 0.6666666666666666, 10.0, 12.0, 2.0, 11.0, 11.0]
    """
    view = _View.of("known_past", key, time)
    given = _labels("known_past", fraud, len(view.time))
    delay = _lengths("known_past", "delay", [delay])[0]
    lengths = _lengths("known_past", "windows", windows)
    common, label = _common_share(view.time_of_input(), given, delay)[view.order], given[view.order]
    numbers, frauds = _running(~np.isnan(label)), _running(label == 1)
    stop = lagged(view.time, view.offsets, delay)
    columns: list[NDArray[Any]] = []
    for window in lengths:
        start = lagged(view.time, view.offsets, delay + window)
        number, found = numbers[stop] - numbers[start], frauds[stop] - frauds[start]
        columns += [number, found, (found + common) / (number + 1)]
    start = np.repeat(view.offsets[:-1], np.diff(view.offsets))
    last_fraud, last_genuine = (np.maximum(_last(label == one)[stop], start - 1) for one in (1, 0))
    after = np.maximum(last_genuine + 1, start)
    run = frauds[stop] - frauds[np.minimum(after, stop)]
    first = lagged(view.time, view.offsets, delay + max(lengths))
    columns += [
        view.days_since(last_fraud, last_fraud >= start),
        view.days_since(last_genuine, last_genuine >= start),
        run,
        view.days_since(_next(label == 1)[np.minimum(after, len(label))], run > 0),
        view.days_since(_next(label == 1)[first], frauds[stop] > frauds[first]),
    ]
    return view.in_input_order(columns)


def usual(key: ArrayLike, time: ArrayLike, value: ArrayLike, *, windows: Sequence[float]) -> NDArray[np.float64]:
    """How far each event's value, and the mean of its key's last ones, is above what is usual for the key.

    Usual is the geometric mean of the key's earlier values, with one of everybody's among them; all of it causal.

    Parameters
    ----------
    key, time, windows :
        As in `rolling`.
    value : array (N,)
        Amounts, finite; NaN = missing. What is below 0.01 counts as 0.01.

    Returns
    -------
    ndarray (N, 1 + W)
        ln of the value over the usual one; then, for each window, ln of the mean of the values in ``(t_i - w, t_i]``,
        the event's own included, over the usual one. NaN where there is no value.

    Raises
    ------
    ParameterError
        As in `rolling`.

    Examples
    --------
    >>> usual(["a", "a", "a"], [0, 60, 120], [10.0, 10.0, 100.0], windows=[90]).round(2).tolist()
    [[0.0, 0.0], [0.0, 0.0], [2.3, 1.7]]
    """
    means = rolling(key, time, value, windows=windows)[:, 1::2]
    view = _View.of("usual", key, time)
    logs = np.log(np.maximum(np.asarray(value, dtype=np.float64), LEAST))
    ordered = np.argsort(view.time_of_input(), kind="stable")
    everybody = np.empty(len(logs))
    everybody[ordered] = _mean_before(logs[ordered], np.zeros(len(logs), dtype=np.int64), 0.0, 0.0)
    first = np.repeat(view.offsets[:-1], np.diff(view.offsets))
    typical = view.in_input_order([_mean_before(logs[view.order], first, everybody[view.order], 1.0)])[:, 0]
    said = np.column_stack([logs, np.log(np.maximum(means, LEAST))]) - typical[:, None]
    return np.asarray(said)


def known_at(time: ArrayLike, fraud: ArrayLike, delay: float, now: float) -> NDArray[np.bool_]:
    """Tell which labels are known at a moment: what a model that is fitted then may learn from.

    Parameters
    ----------
    time : array (N,)
        Seconds since 1970.
    fraud : array (N,)
        1 = fraud, 0 = genuine, NaN = never labelled.
    delay : float
        Seconds from an event until its label is known; 0 = at once.
    now : float
        The moment, in seconds since 1970.

    Returns
    -------
    ndarray (N,) of bool
        True where the event is labelled and happened at ``now - delay`` or before.

    Raises
    ------
    ParameterError
        If lengths differ, a time is missing, a label is no 0, 1 or NaN, or `delay` is negative.

    Examples
    --------
    >>> known_at([0, 10, 20, 5], [0, 1, 0, np.nan], delay=60, now=70).tolist()
    [True, True, False, False]
    """
    seconds = _times("known_at", time)
    label = _labels("known_at", fraud, len(seconds))
    if not (np.isfinite(delay) and delay >= 0):
        raise ParameterError(f"known_at: expected a delay of 0 or more seconds, got {delay}")
    if not np.isfinite(now):
        raise ParameterError(f"known_at: expected now as finite seconds since 1970, got {now}")
    newest = round(now * 1e6) - round(delay * 1e6)
    return np.asarray((microseconds(seconds) <= newest) & ~np.isnan(label))


class _View(NamedTuple):
    """Events sorted by key, then time, then row: their rows (N,), times (N,) and the keys' borders (S + 1,)."""

    order: Ints
    time: Floats
    offsets: Ints

    @classmethod
    def of(cls, who: str, key: ArrayLike, time: ArrayLike) -> _View:
        seconds = _times(who, time)
        code = _codes(who, key)
        _same_length(who, len(seconds), key=code)
        order = np.lexsort((seconds, code))  # stable: rows stay in order among equal times
        code = code[order]
        offsets = np.append(np.flatnonzero(np.diff(code, prepend=-1)), len(code))
        return cls(order, seconds[order], offsets.astype(np.int64))

    def time_of_input(self) -> Floats:
        """Times (N,) in the order of the input."""
        found = np.empty(len(self.time))
        found[self.order] = self.time
        return found

    def days_since(self, at: Ints, there: Bools) -> Floats:
        """Days from the sorted event `at` (N,) to each one; NaN where it is not `there`."""
        then = self.time[np.where(there, at, 0)] if len(self.time) else self.time
        return np.where(there, (self.time - then) / DAY, np.nan)

    def in_input_order(self, columns: Sequence[NDArray[Any]]) -> Floats:
        """Columns (N,) of sorted events as a matrix (N, number of columns) in the order of the input."""
        matrix = np.empty((len(self.time), len(columns)))
        for number, column in enumerate(columns):
            matrix[self.order, number] = column
        return matrix


def _codes(who: str, key: ArrayLike) -> Ints:
    """Integer code of each key, equal where the keys are."""
    keys = np.asarray(key)
    if keys.dtype == object:
        missing = np.equal(keys, np.array(None)).astype(bool) | (keys != keys)  # NaN differs from itself
    else:
        missing = np.isnan(keys) if keys.dtype.kind == "f" else np.zeros(keys.shape, dtype=bool)
    if missing.any():
        raise ParameterError(
            f"{who}: expected a key for each event, got {int(missing.sum())} missing; give events "
            "without one a key of their own each, or leave them out"
        )
    try:
        return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.int64)
    except TypeError:
        kinds = ", ".join(sorted({type(one).__name__ for one in keys}))
        raise ParameterError(f"{who}: expected keys of one kind, got {kinds}; make them text") from None


def _times(who: str, time: ArrayLike) -> Floats:
    seconds = np.asarray(time, dtype=np.float64)
    _same_length(who, len(seconds) if seconds.ndim else 0, time=seconds)
    if not np.isfinite(seconds).all():
        raise ParameterError(
            f"{who}: expected finite times in seconds, got {int((~np.isfinite(seconds)).sum())} others"
        )
    return seconds


def _labels(who: str, fraud: ArrayLike, n: int) -> Floats:
    label = np.asarray(fraud, dtype=np.float64)
    _same_length(who, n, fraud=label)
    odd = ~((label == 0) | (label == 1) | np.isnan(label))
    if odd.any():
        raise ParameterError(
            f"{who}: expected labels 0, 1 or NaN (never labelled), got {label[odd][0]:g}; map them first"
        )
    return label


def _lengths(who: str, name: str, lengths: Sequence[float]) -> list[float]:
    found = [float(length) for length in lengths]
    if not found or not all(np.isfinite(length) and length >= SHORTEST for length in found):
        told = f"{found[0]:g}" if len(found) == 1 else found
        raise ParameterError(f"{who}: expected {name} in seconds, finite and above 0, got {told}")
    return found


def _same_length(who: str, n: int, **arrays: NDArray[Any]) -> None:
    for name, array in arrays.items():
        if array.shape != (n,):
            raise ParameterError(f"{who}: expected arrays of one length, ({n},) as time has, got {name} {array.shape}")


def _running(flags: Bools) -> Ints:
    """Number of set flags before each place, shape (N + 1,)."""
    return np.concatenate([[0], np.cumsum(flags)]).astype(np.int64)


def _last(flags: Bools) -> Ints:
    """Index of the last set flag before each place, shape (N + 1,); -1 where there is none."""
    return np.concatenate([[-1], np.maximum.accumulate(np.where(flags, np.arange(len(flags)), -1))]).astype(np.int64)


def _next(flags: Bools) -> Ints:
    """Index of the first set flag at each place or behind it, shape (N + 1,); N where there is none."""
    n = len(flags)
    at = np.where(flags, np.arange(n), n)
    return np.concatenate([np.minimum.accumulate(at[::-1])[::-1], [n]]).astype(np.int64)


def _common_share(time: Floats, label: Floats, delay: float) -> Floats:
    """Share of fraud among all events whose labels are known at each one, (N,); 0 where none is."""
    order = np.argsort(time, kind="stable")
    known, frauds = _running(~np.isnan(label[order])), _running(label[order] == 1)
    then = microseconds(time) - round(delay * 1e6)
    at = np.searchsorted(microseconds(time[order]), then, side="right")
    return np.asarray(frauds[at] / np.maximum(known[at], 1))


def _mean_before(value: Floats, start: Ints, prior: Floats | float, weight: float) -> Floats:
    """Mean of the values (N,) from `start` (N,) up to each event, NaN and itself left out, and a weighted prior."""
    known = ~np.isnan(value)
    number, total = _running(known), np.concatenate([[0.0], np.cumsum(np.where(known, value, 0.0))])
    at = np.arange(len(value))
    count = number[at] - number[start] + weight
    own = total[at] - total[start] + weight * prior
    return np.where(count > 0, own / np.maximum(count, 1e-9), np.where(known, value, 0.0))
