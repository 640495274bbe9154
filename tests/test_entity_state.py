"""Entity state: windows, values met, bounds, encoded columns, and the way to bytes and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import oracles
import pytest
from conftest import called
from hypothesis import given
from hypothesis import strategies as st

from anomaly.entity_state import (
    AMOUNTS,
    COUNTED,
    FIRST_MET,
    MOST_USES,
    TIMES,
    Rules,
    Workbench,
    kilometres,
    last_time,
    meet_all,
    pack_states,
    sum_of_last,
    unpack_states,
    value_key,
)
from anomaly.features import great_circle_km
from anomaly.sequences import MOST_RECENT, MOST_VALUES, MOST_WAITING

HOUR = 3_600_000_000
last_sum = called(sum_of_last)
away = called(kilometres)
KEYS = [value_key(f"shop {at}") for at in range(MOST_VALUES + 1)]


def bench_of(
    windows: tuple[int, ...] = (HOUR, 9 * HOUR),
    scales: tuple[int, ...] = (5 * HOUR,),
    quarantine: int = 3 * HOUR,
    lately: int = 0,
    keep: tuple[int, int, int] | None = None,
) -> Workbench:
    """A workbench for events of an amount and two categories, encoded as they are."""
    columns = 2 + 2 * len(windows) + 4
    rules = Rules(
        windows=np.array(windows, dtype=np.int64),
        scales=np.array(scales, dtype=np.int64),
        money=np.zeros(1, dtype=np.int64),
        scaling=np.array([(0.0, 0.0, 1.0)] * columns),
        kinds=np.array([[1, 3, 4, 0], [2, 5, 6, 3]]),
        periods=np.array([86_400.0, 604_800.0]),
        keep=np.array(keep or (max(*windows, *scales, quarantine), max(windows), max(scales)), dtype=np.int64),
        clock=0,
        quarantine=quarantine,
        lately=lately,
        has_place=False,
        unseen=0,
        missing=1,
        no=2,
        yes=3,
        first_code=2,
        monday=345_600.0,
        shortest_trip=60.0,
        earth_radius=6371.0,
        largest_amount=1e300,
        farthest=1e9,
    )
    return Workbench(rules, memory=8, averaged=2, given=1, columns=7)


@dataclass
class Walk:
    """One entity's events, pushed one by one."""

    bench: Workbench
    packed: bytes = b""

    def push(self, micros: int, amount: float = 5.0, keys: tuple[int, int] = (0, 0), counted: float = 1.0) -> Any:
        """Push an event; what is told of the entity before it."""
        self.bench.take((micros / 1e6, micros / 1e6, math.nan, math.nan, amount), (7, 8), keys)
        opened = self.bench.open(self.packed or self.bench.empty)
        self.packed = self.bench.close(counted)
        return opened

    def kept(self, which: int) -> int:
        self.bench.open(self.packed)
        return int(self.bench.state.counts[which])


def test_a_window_is_open_at_its_old_end() -> None:
    walk = Walk(bench_of(windows=(1, HOUR, HOUR + 1, 9 * HOUR)))
    for at in (0, 1, 2, 2):
        walk.push(at * HOUR)
    assert walk.bench.live.numeric[2:6].tolist() == [2, 2, 3, 4]
    walk.push(2 * HOUR)
    assert walk.bench.live.numeric[2:6].tolist() == [3, 3, 4, 5]
    assert walk.bench.live.numeric[6:10].tolist() == [15, 15, 20, 25]
    assert (walk.bench.live.recent_number.tolist(), walk.bench.live.recent_sums.tolist()) == ([4], [4.0])


def test_what_is_too_old_is_forgotten_each_for_its_own_time() -> None:
    walk = Walk(bench_of(keep=(9 * HOUR, 5 * HOUR, 0)))
    for at in range(50):
        walk.push(at * HOUR, amount=float(at))
    assert [walk.kept(which) for which in (TIMES, AMOUNTS, COUNTED)] == [9, 5, 0]
    assert walk.bench.state.amounts[0, :5].tolist() == [45.0, 46.0, 47.0, 48.0, 49.0]


def test_of_a_busy_entity_the_last_events_are_kept_and_few_of_them_wait() -> None:
    walk = Walk(bench_of())
    for at in range(2 * MOST_RECENT):
        opened = walk.push(at)
    assert opened.remembered == 2 * MOST_RECENT - 1 - MOST_WAITING
    assert (walk.kept(TIMES), walk.kept(AMOUNTS), walk.kept(COUNTED)) == (MOST_RECENT - 1,) * 3
    assert walk.bench.state.times[0] == MOST_RECENT + 1
    assert len(walk.packed) <= sum(part.nbytes for part in walk.bench.state)


def test_events_enter_the_memory_when_the_quarantine_is_over_the_oldest_first() -> None:
    walk = Walk(bench_of(quarantine=3 * HOUR))
    due = []
    for at in range(8):
        opened = walk.push(at * HOUR, amount=float(at))
        due.append(opened.due)
        if opened.due:
            assert walk.bench.state.waiting_numbers[0, 0] == at - 2
    assert due == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (opened.events, opened.remembered, opened.first) == (7, 5, 0.0)
    assert [Walk(bench_of(quarantine=0)).push(at).due for at in (0, 1)] == [0, 0]
    at_once = Walk(bench_of(quarantine=0))
    assert [at_once.push(at).due for at in (0, 0, 1)] == [0, 1, 1]


def test_values_are_new_once_and_for_ever_when_there_is_no_more_room() -> None:
    walk = Walk(bench_of())
    for turn in range(2):
        for at, key in enumerate(KEYS):
            walk.push(turn, keys=(key, 0))
            expected = 3 if turn == 0 or at == MOST_VALUES else 2
            assert walk.bench.live.codes[[1, 2, 3, 5]].tolist() == [7, 8, expected, 1]
    walk.push(2, keys=(KEYS[3], KEYS[3]))
    assert walk.bench.live.codes[[3, 4, 5, 6]].tolist() == [2, 3, 3, 1]
    walk.push(3, keys=(KEYS[3], KEYS[4]))
    assert walk.bench.live.codes[[3, 4, 5, 6]].tolist() == [2, 2, 3, 3]
    assert walk.kept(FIRST_MET) == MOST_VALUES


def test_a_value_is_news_for_a_while_and_then_costs_half() -> None:
    walk, sizes = Walk(bench_of(lately=60)), []
    for at, new in ((0, 3), (10, 3), (59, 3), (60, 2), (1000, 2)):
        walk.push(at, keys=(KEYS[0], 0))
        assert walk.bench.live.codes[3] == new
        sizes.append(walk.kept(FIRST_MET + 2))
    assert sizes == [1, 1, 1, 0, 0]
    for at, key in enumerate(KEYS[1:4]):
        walk.push(1000 + 30 * at, keys=(key, 0))
    assert walk.kept(FIRST_MET + 2) == 2  # those of the last minute
    walk.push(1061, keys=(KEYS[2], 0))
    assert walk.bench.live.codes[3] == 3


@given(
    st.lists(
        st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 5)), min_size=1, max_size=80), min_size=1, max_size=4
    ),
    st.sampled_from([0, 3, 12]),
    st.sampled_from([1, 2, 4, 300]),
)
def test_values_have_places_by_how_often_they_were_met_of_late(
    histories: list[list[tuple[int, int]]], lately: int, most: int
) -> None:
    micros = np.concatenate([np.cumsum([gap for _, gap in history]) for history in histories])
    offsets = np.cumsum([0, *map(len, histories)])
    code = np.array([value for history in histories for value, _ in history])
    new, place = np.empty(len(code), dtype=bool), np.empty(len(code), dtype=np.int32)
    room = np.empty(most, np.int64), np.empty(most, np.uint8), np.empty(most, np.int64)
    meet_all(code, offsets, micros, lately, *room, new, place)
    values = [None if value < 0 else value for value in code.tolist()]
    for begin, end in pairwise(offsets.tolist()):
        told = oracles.places(list(zip(values, micros.tolist(), strict=True))[begin:end], lately, most)
        assert list(zip(new.tolist(), place.tolist(), strict=True))[begin:end] == told


def test_what_replaces_a_usage_of_years_soon_has_its_place() -> None:
    code = np.array([0] * 5_000 + [1] * 3 * MOST_USES)
    new, place = np.empty(len(code), dtype=bool), np.empty(len(code), dtype=np.int32)
    room = np.empty(9, np.int64), np.empty(9, np.uint8), np.empty(9, np.int64)
    meet_all(code, np.array([0, len(code)]), np.arange(len(code)), 1, *room, new, place)
    assert np.flatnonzero(place).tolist() == list(range(5_000, 5_000 + int(place.sum())))
    assert MOST_USES // 2 <= place.sum() <= 2 * MOST_USES


def test_keys_of_values_are_the_same_in_every_process() -> None:
    assert value_key("grocery") == 0xE1D6C09759C4A3CB  # BLAKE2b of eight bytes, little-endian
    assert len({value_key(text) for text in ("", "a", "b", "ab", "ä")}) == 5


@given(st.lists(st.floats(-1e300, 1e300), max_size=40), st.integers(0, 40))
def test_sums_are_those_of_the_end(values: list[float], wanted: int) -> None:
    count = min(wanted, len(values))
    end = values[len(values) - count :]
    scale = math.fsum(map(abs, end))
    assert last_sum(np.array(values), count) == pytest.approx(math.fsum(end), abs=1e-12 * scale)


def test_nothing_is_lost_beside_a_monstrous_amount() -> None:
    assert last_sum(np.array([1e18, 0.25, 0.5]), 2) == 0.75
    assert last_sum(np.array([1e18, 0.25, -1e18]), 3) == 0.25


def test_distances_are_those_of_the_table() -> None:
    places = np.random.default_rng(1).uniform(-80, 80, (50, 4))
    places[0], places[1, 3] = 1.0, np.nan
    found = [away(a, b, c, d, 6371.0088) for a, b, c, d in places.tolist()]
    np.testing.assert_allclose(found, great_circle_km(*places.T), rtol=1e-12, atol=1e-9)


def test_states_go_to_arrays_and_back() -> None:
    bench, states = bench_of(lately=HOUR), []
    for number in range(3):
        walk = Walk(bench)
        for at in range(1 + 30 * number):
            walk.push(at * HOUR // 9, amount=at, keys=(KEYS[at], KEYS[number]))
        states.append(walk.packed)
        assert last_time(walk.packed, 2) == pytest.approx(30 * number * 400.0)
    packed = pack_states([*states, bench.empty])
    found = unpack_states(packed["packed"], packed["lengths"])
    assert found == [*states, bench.empty]
    bench.check(found)
    other = Walk(bench_of(lately=HOUR), states[2])
    walk.push(10 * HOUR, keys=(KEYS[70], KEYS[2]))
    other.push(10 * HOUR, keys=(KEYS[70], KEYS[2]))
    assert other.packed == walk.packed
    for one, two in zip(other.bench.live, bench.live, strict=True):
        np.testing.assert_array_equal(one, two)
    assert unpack_states(**pack_states([])) == []


def test_what_is_no_state_is_refused() -> None:
    bench = bench_of()
    walk = Walk(bench)
    walk.push(5, keys=(KEYS[0], KEYS[1]))
    counts = np.frombuffer(walk.packed, dtype=np.uint8).copy()
    counts[8 * TIMES] = 200
    for wrong in (b"", walk.packed[:-1], walk.packed + b"x", counts.tobytes(), walk.packed[:40]):
        with pytest.raises(ValueError, match="a state of"):
            bench.check([bench.empty, wrong])
    with pytest.raises(ValueError, match="lengths of 3 bytes in all, got 2"):
        unpack_states(np.zeros(2, dtype=np.uint8), np.array([3]))
