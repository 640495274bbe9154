"""Past fraud and rolling means agree with their definitions in loops and with pandas, and no label is read too soon."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.labels import known_at, known_fraud, known_past, rolling, usual

Floats = NDArray[np.float64]

DAY = 86_400.0
NAN = math.nan

keys = st.sampled_from(["a", "b", "c"])
times = st.integers(0, 12).map(float)  # so few that events meet, and fall onto the borders of windows
labels = st.sampled_from([0.0, 0.0, 1.0, NAN])
labelled_events = st.lists(st.tuples(keys, times, labels), max_size=25)
valued_events = st.lists(st.tuples(keys, times, st.sampled_from([0.0, 1.0, 2.5, -4.0, 1e6, NAN])), max_size=25)
lengths = st.lists(st.integers(1, 8).map(float), min_size=1, max_size=3)


def columns(events: Sequence[tuple[str, float, float]]) -> tuple[list[str], Floats, Floats]:
    return [e[0] for e in events], np.array([e[1] for e in events]), np.array([e[2] for e in events])


def slow_known_fraud(
    events: Sequence[tuple[str, float, float]], delay: float, windows: Sequence[float]
) -> list[list[float]]:
    """By definition: all labelled events of the key in (t - delay - w, t - delay]."""
    rows = []
    for key, time, _ in events:
        row: list[float] = []
        for window in windows:
            seen = [f for k, t, f in events if k == key and time - delay - window < t <= time - delay and f == f]
            row += [len(seen), sum(seen) / len(seen) if seen else 0.0]
        rows.append(row)
    return rows


def slow_rolling(events: Sequence[tuple[str, float, float]], windows: Sequence[float]) -> list[list[float]]:
    """By definition: all values of the key in (t - w, t], of equal times those of earlier rows and the event's own."""
    rows = []
    for i, (key, time, _) in enumerate(events):
        row: list[float] = []
        for window in windows:
            before = [(j, e) for j, e in enumerate(events) if e[0] == key and time - window < e[1] <= time]
            seen = [e[2] for j, e in before if (e[1] < time or j <= i) and e[2] == e[2]]
            row += [len(seen), math.fsum(seen) / len(seen) if seen else NAN]
        rows.append(row)
    return rows


# ---- the numbers -----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(labelled_events, st.integers(1, 6).map(float), lengths)
def test_known_fraud_is_its_definition(
    events: list[tuple[str, float, float]], delay: float, windows: list[float]
) -> None:
    key, time, fraud = columns(events)
    found = known_fraud(key, time, fraud, delay=delay, windows=windows)
    assert found.shape == (len(events), 2 * len(windows)) and found.dtype == np.float64
    np.testing.assert_allclose(found, np.reshape(slow_known_fraud(events, delay, windows), found.shape), atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(valued_events, lengths)
def test_rolling_is_its_definition(events: list[tuple[str, float, float]], windows: list[float]) -> None:
    key, time, value = columns(events)
    found = rolling(key, time, value, windows=windows)
    assert found.shape == (len(events), 2 * len(windows)) and found.dtype == np.float64
    np.testing.assert_allclose(found, np.reshape(slow_rolling(events, windows), found.shape), atol=1e-9)


def test_as_pandas_as_the_handbook_has_it() -> None:
    rng = np.random.default_rng(0)
    n, days = 3000, (1, 7, 30)
    time = np.sort(rng.integers(0, 80 * 24, n)) * 3600.0  # in hours: equal times and borders are frequent
    key, amount, fraud = rng.integers(0, 12, n), rng.gamma(2.0, 30.0, n), rng.random(n) < 0.2
    means = rolling(key, time, amount, windows=[day * DAY for day in days])
    risks = known_fraud(key, time, fraud, delay=7 * DAY, windows=[day * DAY for day in days])
    for one in range(12):
        mine = key == one
        index = pd.to_datetime(time[mine], unit="s")
        values, marks = pd.Series(amount[mine], index), pd.Series(fraud[mine].astype(float), index)
        young = marks.rolling("7D")
        for w, day in enumerate(days):
            window, both = values.rolling(f"{day}D"), marks.rolling(f"{day + 7}D")
            np.testing.assert_array_equal(means[mine, 2 * w], window.count())
            np.testing.assert_allclose(means[mine, 2 * w + 1], window.mean())
            number = both.count() - young.count()
            risk = ((both.sum() - young.sum()) / number).fillna(0.0)
            np.testing.assert_array_equal(risks[mine, 2 * w], number)
            np.testing.assert_allclose(risks[mine, 2 * w + 1], risk, atol=1e-12)


def test_a_monstrous_amount_leaves_the_later_means_alone() -> None:
    found = rolling([1, 1, 1], [0, 100, 101], [1e18, 0.25, 0.75], windows=[10])
    assert found.tolist() == [[1, 1e18], [1, 0.25], [2, 0.5]]


def test_a_missing_value_is_neither_counted_nor_filled() -> None:
    found = rolling(["a", "a", "a"], [0, 1, 50], [2.0, NAN, NAN], windows=[10])
    np.testing.assert_array_equal(found, [[1, 2], [1, 2], [0, NAN]])


def test_a_label_that_never_came_is_not_counted() -> None:
    found = known_fraud(["a"] * 4, [0, 0, 0, 20], [1, NAN, 0, 0], delay=10, windows=[15])
    assert found[3].tolist() == [2, 0.5]


# ---- no label too soon -----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(labelled_events, st.integers(1, 6).map(float), lengths, st.randoms(use_true_random=False))
def test_labels_that_are_not_known_yet_change_nothing(
    events: list[tuple[str, float, float]], delay: float, windows: list[float], random: Any
) -> None:
    key, time, fraud = columns(events)
    before = known_fraud(key, time, fraud, delay=delay, windows=windows)
    for i, now in enumerate(time):
        changed = np.where(time > now - delay, [random.choice([0.0, 1.0, NAN]) for _ in events], fraud)
        after = known_fraud(key, time, changed, delay=delay, windows=windows)
        np.testing.assert_array_equal(after[i], before[i])


def test_a_label_counts_from_the_moment_it_is_known() -> None:
    key, time = ["t"] * 4, np.array([0.0, 6.999, 7.0, 8.0]) * DAY
    found = {
        first: known_fraud(key, time, [first, 0, 0, 0], delay=7 * DAY, windows=[30 * DAY])[:, 1] for first in (0, 1)
    }
    assert (found[1] - found[0]).tolist() == [0, 0, 1, 1]


@settings(max_examples=100, deadline=None)
@given(labelled_events, st.integers(1, 6).map(float))
def test_what_counts_is_what_is_known(events: list[tuple[str, float, float]], delay: float) -> None:
    key, time, fraud = columns(events)
    number = known_fraud(key, time, fraud, delay=delay, windows=[100])[:, 0]
    for i, now in enumerate(time):
        mine = np.array([one == key[i] for one in key])
        assert number[i] == (known_at(time, fraud, delay, now) & mine).sum()


@settings(max_examples=60, deadline=None)
@given(valued_events, lengths, st.integers(0, 25))
def test_later_events_change_nothing(events: list[tuple[str, float, float]], windows: list[float], cut: int) -> None:
    events = sorted(events, key=lambda event: event[1])
    key, time, value = columns(events)
    whole = rolling(key, time, value, windows=windows)
    part = rolling(key[:cut], time[:cut], value[:cut], windows=windows)
    np.testing.assert_array_equal(whole[:cut], part)


@settings(max_examples=60, deadline=None)
@given(labelled_events, st.integers(1, 6).map(float), lengths, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_plays_no_part(
    events: list[tuple[str, float, float]], delay: float, windows: list[float], random: Any
) -> None:
    key, time, fraud = columns(events)
    order = list(range(len(events)))
    random.shuffle(order)
    shuffled = known_fraud([key[i] for i in order], time[order], fraud[order], delay=delay, windows=windows)
    np.testing.assert_array_equal(shuffled, known_fraud(key, time, fraud, delay=delay, windows=windows)[order])


def test_of_equal_times_a_row_sees_the_rows_before_it() -> None:
    found = rolling([5, 5, 5], [60, 60, 60], [1.0, 3.0, 8.0], windows=[1])
    assert found.tolist() == [[1, 1], [2, 2], [3, 4]]


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, np.array, lambda keys: np.array(keys, dtype=object)])
def test_keys_may_be_text_numbers_or_objects(make: Callable[[list[Any]], Any]) -> None:
    asked = {"delay": 5.0, "windows": [30.0]}
    time, fraud = [0, 0, 10, 10], [1, 0, 0, 0]
    text = known_fraud(make(["x", "y", "x", "y"]), time, fraud, **asked)  # type: ignore[arg-type]
    codes = known_fraud(make([7, 3, 7, 3]), time, fraud, **asked)  # type: ignore[arg-type]
    assert text.tolist() == codes.tolist() == [[0, 0], [0, 0], [1, 1], [1, 0]]


def test_no_events_have_no_features() -> None:
    assert known_fraud([], [], [], delay=1, windows=[1, 2]).shape == (0, 4)
    assert rolling([], [], [], windows=[1]).shape == (0, 2)
    assert known_at([], [], 1, 1).shape == (0,)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"fraud": [0, 2]}, "known_fraud: expected labels 0, 1 or NaN.*got 2"),
        ({"fraud": [0, 1, 0]}, r"known_fraud: expected arrays of one length, \(2,\) as time has, got fraud \(3,\)"),
        ({"key": ["a"]}, r"got key \(1,\)"),
        ({"key": [1.0, NAN]}, "expected a key for each event, got 1 missing"),
        ({"key": np.array(["a", None], dtype=object)}, "expected a key for each event, got 1 missing"),
        ({"key": np.array(["a", 1], dtype=object)}, "expected keys of one kind, got int, str"),
        ({"time": [0, NAN]}, "expected finite times in seconds, got 1 others"),
        ({"time": [[0, 1]]}, "one length"),
        ({"delay": 0}, "expected delay in seconds, finite and above 0, got 0"),
        ({"delay": math.inf}, "expected delay"),
        ({"windows": []}, "expected windows in seconds"),
        ({"windows": [60, -1]}, r"expected windows in seconds, finite and above 0, got \[60.0, -1.0\]"),
        ({"windows": [NAN]}, "expected windows"),
    ],
)
def test_known_fraud_refuses(changed: dict[str, Any], told: str) -> None:
    good: dict[str, Any] = {"key": ["a", "b"], "time": [0, 1], "fraud": [0, 1], "delay": 1, "windows": [60]}
    known_fraud(**good)
    with pytest.raises(ParameterError, match=told):
        known_fraud(**(good | changed))


def test_rolling_and_known_at_refuse() -> None:
    with pytest.raises(ParameterError, match="rolling: expected finite values or NaN, got 1 infinite"):
        rolling(["a", "a"], [0, 1], [1.0, math.inf], windows=[1])
    with pytest.raises(ParameterError, match=r"rolling.*got value \(1,\)"):
        rolling(["a", "a"], [0, 1], [1.0], windows=[1])
    with pytest.raises(ParameterError, match="known_at: expected a delay of 0 or more seconds, got -1"):
        known_at([0], [1], -1, 5)
    with pytest.raises(ParameterError, match="known_at: expected now"):
        known_at([0], [1], 1, NAN)


# --- known past, and what is usual ------------------------------------------------------------------------------------


def events(n: int = 400) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Keys, times and labels, some of them unknown, some at equal times, in no order."""
    draw = np.random.default_rng(3)
    fraud = np.where(draw.random(n) < 0.1, np.nan, draw.random(n) < 0.4)
    return draw.integers(0, 12, n), draw.integers(0, 60, n) * DAY / 2, fraud


def test_known_past_is_what_one_counts_by_hand() -> None:
    key, time, fraud = events()
    found = known_past(key, time, fraud, delay=3 * DAY, windows=[2 * DAY, 10 * DAY])
    for i in range(len(key)):
        known = (time <= time[i] - 3 * DAY) & ~np.isnan(fraud)
        common = fraud[known].mean() if known.any() else 0.0
        mine = known & (key == key[i])
        expected: list[float] = []
        for window in (2 * DAY, 10 * DAY):
            those = fraud[mine & (time > time[i] - 3 * DAY - window)]
            expected += [len(those), those.sum(), (those.sum() + common) / (len(those) + 1)]
        rows = np.flatnonzero(mine)
        rows = rows[np.argsort(time[rows], kind="stable")]
        frauds, genuine = rows[fraud[rows] == 1], rows[fraud[rows] == 0]
        run = [row for row in frauds if not len(genuine) or list(rows).index(row) > list(rows).index(genuine[-1])]
        late = [row for row in frauds if time[row] > time[i] - 13 * DAY]
        expected += [(time[i] - time[row[0]]) / DAY if len(row) else np.nan for row in (frauds[-1:], genuine[-1:])]
        expected += [len(run), *((time[i] - time[row[0]]) / DAY if len(row) else np.nan for row in (run, late))]
        np.testing.assert_allclose(found[i], expected, err_msg=f"event {i}")


def test_labels_that_are_not_known_yet_change_nothing_of_the_known_past() -> None:
    key, time, fraud = events()
    usual_one = known_past(key, time, fraud, delay=3 * DAY, windows=[10 * DAY])
    now = 20 * DAY
    shuffled = fraud.copy()
    late = time > now - 3 * DAY
    shuffled[late] = np.random.default_rng(0).permutation(fraud[late])
    found = known_past(key, time, shuffled, delay=3 * DAY, windows=[10 * DAY])
    np.testing.assert_array_equal(found[time <= now], usual_one[time <= now])
    assert not np.array_equal(found[time > now], usual_one[time > now], equal_nan=True)


def test_usual_compares_with_the_keys_own_earlier_values() -> None:
    key, time, _ = events()
    value = np.exp(np.random.default_rng(1).normal(3, 1, len(key)))
    value[5] = np.nan
    found = usual(key, time, value, windows=[4 * DAY])
    order = np.argsort(time, kind="stable")
    place = np.argsort(order, kind="stable")
    for i in range(len(key)):
        earlier = (place < place[i]) & ~np.isnan(value)
        everybody = np.log(value[earlier]).mean() if earlier.any() else np.log(value[i])
        own = np.log(value[earlier & (key == key[i])])
        typical = (own.sum() + everybody) / (len(own) + 1)
        window = (place <= place[i]) & (key == key[i]) & (time > time[i] - 4 * DAY) & ~np.isnan(value)
        recent = np.log(value[window].mean()) if window.any() else np.nan
        np.testing.assert_allclose(found[i], [np.log(value[i]) - typical, recent - typical], rtol=1e-9)
    changed = np.where(time > 15 * DAY, value * 7, value)
    early = time <= 15 * DAY
    np.testing.assert_allclose(usual(key, time, changed, windows=[4 * DAY])[early], found[early], atol=1e-9)
