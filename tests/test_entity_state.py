"""Entity state: windows, values met, bounds, and the way to arrays and back."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.entity_state import NOWHERE, EntityState, nested_sums, pack_states, unpack_states, value_key
from anomaly.sequences import MOST_RECENT, MOST_VALUES

HOUR = 3_600_000_000


def empty(codes: int = 300) -> EntityState:
    return EntityState(np.zeros((2, 8), dtype=np.float32), averaged=2, amounts=1, categories=2, codes=codes)


def test_a_window_is_open_at_its_old_end() -> None:
    state = empty()
    for at in (0, 1, 2, 2):
        state.add(at * HOUR, 1.0, [5.0], (10 * HOUR, 10 * HOUR, 10 * HOUR))
    assert state.window_counts(2 * HOUR, [1, HOUR, HOUR + 1, 9 * HOUR]) == [2, 2, 3, 4]


def test_what_is_too_old_is_forgotten_each_for_its_own_time() -> None:
    state = empty()
    for at in range(50):
        state.add(at * HOUR, 1.0, [float(at)], (9 * HOUR, 5 * HOUR, 0))
    assert (len(state.times), len(state.amounts[0]), len(state.counted)) == (9, 5, 0)
    assert state.amounts[0].tolist() == [45.0, 46.0, 47.0, 48.0, 49.0]


def test_of_a_busy_entity_the_last_events_are_kept() -> None:
    state = empty()
    for at in range(2 * MOST_RECENT):
        state.add(at, 1.0, [1.0], (HOUR, HOUR, HOUR))
    assert len(state.times) == len(state.amounts[0]) == len(state.counted) == MOST_RECENT - 1
    assert state.times[0] == MOST_RECENT + 1


def test_values_are_new_once_and_for_ever_when_there_is_no_more_room() -> None:
    state = empty()
    keys = [value_key(f"shop {at}") for at in range(MOST_VALUES + 1)]
    assert [state.is_new(0, key, 0, 0) for key in keys] == [True] * len(keys)
    assert [state.is_new(0, key, 0, 0) for key in keys] == [False] * MOST_VALUES + [True]
    assert state.is_new(1, keys[0], 0, 0)
    assert [state.is_new(0, keys[0], now, 60) for now in (0, 59, 60)] == [True, True, False]


def test_keys_of_values_are_the_same_in_every_process() -> None:
    assert value_key("grocery") == 0xE1D6C09759C4A3CB  # BLAKE2b of eight bytes, little-endian
    assert len({value_key(text) for text in ("", "a", "b", "ab", "ä")}) == 5


@given(st.lists(st.floats(-1e300, 1e300), max_size=40), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_nested_sums_are_the_sums_of_the_ends(values: list[float], counts: list[int]) -> None:
    wanted = sorted(min(count, len(values)) for count in counts)
    found = nested_sums(array("d", values), wanted)
    for count, total in zip(wanted, found, strict=True):
        scale = math.fsum(map(abs, values[len(values) - count :]))
        assert total == pytest.approx(math.fsum(values[len(values) - count :]), abs=1e-12 * scale)


@pytest.mark.parametrize("codes", [200, 300])
def test_states_go_to_arrays_and_back(codes: int) -> None:
    states = {}
    for number, name in enumerate(("first", "", "third")):
        state = empty(codes)
        state.memory[:] = number + 0.25
        for at in range(3 * number):
            state.add(at * HOUR, 0.5 * at, [2.0 * at], (HOUR * 9,) * 3)
            state.is_new(at % 2, value_key(str(at)), at, 0)
            state.waiting_numbers.extend([1.5, at])
            state.waiting_codes.extend([at, codes - 1])
            state.sums[at % 6] += at
            state.events, state.time, state.before[0] = at + 1, 7.5 * at, value_key("x")
        state.place = (51.5, math.nan) if number == 2 else NOWHERE
        states[name] = state
    found = unpack_states(list(states), pack_states(states), empty(codes))
    assert list(found) == list(states)
    for name, state in states.items():
        for part in EntityState.__slots__:
            one, other = getattr(found[name], part), getattr(state, part)
            assert type(one) is type(other)
            pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
            for mine, theirs in pairs:
                np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), err_msg=part)
    assert pack_states({}) == {}
    assert unpack_states([], {}, empty()) == {}


def test_states_of_another_size_are_refused() -> None:
    packed = pack_states({"a": empty()})
    other = EntityState(np.zeros((2, 16), dtype=np.float32), averaged=2, amounts=1, categories=2, codes=300)
    with pytest.raises(ValueError, match="memories of shape"):
        unpack_states(["a"], packed, other)
