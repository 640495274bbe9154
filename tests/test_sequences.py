"""Sequences: flat arrays and offsets, checked at birth; and the one search behind windows and memories."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
from conftest import sequences_of
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.errors import InputError
from anomaly.sequences import Sequences, counts_within, lagged, microseconds, whole_sequences

YEAR = 365.25 * 86_400


def made(**changes: Any) -> Sequences:
    """Two sequences of three and two events."""
    parts: dict[str, Any] = {
        "entity": np.array(["a", "b"], dtype=object),
        "offsets": np.array([0, 3, 5]),
        "time": np.array([5.0, 6.0, 6.0, 1.0, 2.0]),
        "numeric": np.arange(10, dtype=np.float32).reshape(5, 2),
        "category": np.arange(5, dtype=np.int32)[:, None],
        "row": np.array([4, 0, 3, 1, 2]),
    }
    return Sequences(**(parts | changes))


def test_a_sequence_knows_its_events() -> None:
    sequences = made()
    assert len(sequences) == 5
    assert sequences.lengths.tolist() == [3, 2]
    assert sequences.sequence.tolist() == [0, 0, 0, 1, 1]
    assert sequences.position.tolist() == [0, 1, 2, 0, 1]


def test_no_events_are_no_sequences() -> None:
    empty = made(
        entity=np.empty(0, dtype=object),
        offsets=np.zeros(1, dtype=np.int64),
        time=np.empty(0),
        numeric=np.empty((0, 2), dtype=np.float32),
        category=np.empty((0, 1), dtype=np.int32),
        row=np.empty(0, dtype=np.int64),
    )
    assert len(empty) == 0
    assert empty.lagged(3600.0).tolist() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offsets", np.array([0, 5])),
        ("offsets", np.array([0, 3, 4])),
        ("offsets", np.array([1, 3, 5])),
        ("offsets", np.array([0, 5, 5])),
        ("offsets", np.array([0, 6, 5])),
        ("numeric", np.zeros((4, 2), dtype=np.float32)),
        ("category", np.zeros((6, 1), dtype=np.int32)),
        ("row", np.arange(4)),
        ("time", np.array([5.0, 6.0, 5.9, 1.0, 2.0])),
        ("time", np.array([5.0, 6.0, 6.0, 2.0, 1.0])),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"Sequences: {name}"):
        made(**{name: value})


def test_time_may_fall_from_one_entity_to_the_next() -> None:
    assert made(time=np.array([7.0, 8.0, 9.0, 1.0, 1.0])).time[3] == 1.0


def test_a_sequence_cannot_be_changed() -> None:
    sequences = made()
    for name in ("offsets", "time", "numeric", "category", "row"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(sequences, name)[0] = 0
    with pytest.raises(AttributeError):
        sequences.time = np.zeros(5)  # type: ignore[misc]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_taking_sequences_takes_whole_histories_in_the_order_asked_for(lengths: list[int], draw: Any) -> None:
    total = sum(lengths)
    sequences = Sequences(
        entity=np.array([f"e{at}" for at in range(len(lengths))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        time=np.zeros(total),
        numeric=np.arange(total, dtype=np.float32)[:, None],
        category=np.arange(total, dtype=np.int32)[:, None],
        row=np.arange(total),
    )
    which = draw.sample(range(len(lengths)), draw.randint(1, len(lengths)))
    taken = sequences.take(np.array(which))
    wanted = [
        row for number in which for row in range(sequences.offsets[number], sequences.offsets[number] + lengths[number])
    ]
    assert taken.entity.tolist() == [f"e{number}" for number in which]
    assert taken.row.tolist() == taken.numeric[:, 0].tolist() == taken.category[:, 0].tolist() == wanted
    assert taken.lengths.tolist() == [lengths[number] for number in which]


gaps = st.sampled_from([0.0, 1e-6, 0.5, 1.0, 4.999999, 5.0, 5.000001, 3600.0, 86_400.0])
histories = st.lists(st.lists(gaps, min_size=1, max_size=8), min_size=1, max_size=5)


@settings(deadline=None)
@given(histories, st.sampled_from([1e-6, 1.0, 5.0, 3600.0, 86_401.0]), st.sampled_from([0.0, 1.7e9, -2e9]))
def test_the_first_event_of_a_window_is_found_as_by_looking_at_each(
    gaps: list[list[float]], seconds: float, start: float
) -> None:
    time = np.concatenate([start + np.cumsum(one) for one in gaps])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in gaps])]).astype(np.int64)
    assert lagged(time, offsets, seconds).tolist() == oracles.lagged(time.tolist(), offsets.tolist(), seconds)


@given(histories, st.sampled_from([1e-6, 1.0, 5.0, 3600.0, 86_401.0]))
def test_the_last_event_of_the_window_after_is_found_as_by_looking_at_each(
    gaps: list[list[float]], seconds: float
) -> None:
    sequences = sequences_of([np.cumsum(one).tolist() for one in gaps])
    near = oracles.around(sequences.time.tolist(), sequences.offsets.tolist(), seconds)
    assert sequences.leading(seconds).tolist() == [max(one) for one in near]


@given(histories)
def test_several_windows_are_found_at_once_as_one_by_one(gaps: list[list[float]]) -> None:
    times = [np.cumsum(one).tolist() for one in gaps]
    scales = [5.0, 1.0, 86_401.0, 5.0]
    together, alone = sequences_of(times), sequences_of(times)
    for side in ("lagged", "leading"):
        together.reach(side, 1.0)  # one of them is known already
        found = together.reaches(side, scales)
        assert [one.tolist() for one in found] == [alone.reach(side, seconds).tolist() for seconds in scales]
    counts = counts_within(alone.time, alone.offsets, [5.0, 3600.0], most=3)
    expected = [np.arange(len(alone)) - lagged(alone.time, alone.offsets, seconds, 3) + 1 for seconds in (5.0, 3600.0)]
    np.testing.assert_array_equal(counts, expected)


def test_the_last_windows_are_kept_and_no_more() -> None:
    sequences = sequences_of([[0.0, 1.0, 5.0, 9.0]])
    for seconds in range(1, 30):
        sequences.reaches("lagged", [float(seconds), seconds + 0.5])
    assert list(sequences._found) == [("lagged", seconds / 2) for seconds in range(50, 60)]
    again = sequences.reach("lagged", 29.5)
    assert sequences.reach("lagged", 29.5) is again
    many = [float(seconds) for seconds in range(1, 40)]
    assert len(sequences.reaches("lagged", many)) == len(many)
    assert list(sequences._found) == [("lagged", float(seconds)) for seconds in range(30, 40)]


def test_the_typical_gap_is_that_within_an_entity_between_different_times() -> None:
    sequences = sequences_of([[0.0, 2.0, 2.0, 8.0], [1000.0], [5000.0, 5004.0]])
    assert sequences.typical_gap(np.ones(7, dtype=bool)) == 4.0  # of 2, 6 and 4
    assert sequences.typical_gap(sequences.time < 7) == 2.0
    assert sequences.typical_gap(np.zeros(7, dtype=bool)) == 0.0


def test_a_thousand_entities_with_histories_of_centuries_fit_into_the_search() -> None:
    """Their summed spans, in microseconds, are four times what an int64 holds."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 6, 10_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    time = np.concatenate([np.sort(draw.uniform(-70 * YEAR, 230 * YEAR, length)) for length in lengths]).round(3)
    assert (time[offsets[1:] - 1] - time[offsets[:-1]]).sum() * 1e6 > 4 * 2**63
    for seconds in (3600.0, 40 * YEAR, 400 * YEAR):
        found = lagged(time, offsets, seconds)
        assert found.tolist() == oracles.lagged(time.tolist(), offsets.tolist(), seconds)


def test_a_window_longer_than_all_time_begins_with_the_entity() -> None:
    time, offsets = np.array([0.0, 1e9, 2e9, -1e9, 3e9]), np.array([0, 3, 5])
    assert lagged(time, offsets, 9e9).tolist() == [0, 0, 0, 3, 3]


def test_microseconds_are_rounded_not_cut() -> None:
    assert microseconds(np.array([0.1 + 0.2, 1_700_000_000.000001, -1e-6])).tolist() == [
        300_000,
        1_700_000_000_000_001,
        -1,
    ]


@pytest.mark.parametrize("events", [1, 5, 64])
def test_a_piece_that_is_cut_again_stays_whole(events: int) -> None:
    """So that a thread which works on a piece starts no threads of its own."""
    offsets = np.cumsum([0, *np.random.default_rng(0).integers(1, 20, 300)])
    pieces = whole_sequences(offsets, events)
    assert len(pieces) > 10 and [pieces[0][0], pieces[-1][1]] == [0, offsets[-1]]
    for first, last in pieces:
        inside = offsets[(offsets >= first) & (offsets <= last)]
        assert whole_sequences(inside - first, events) == [(0, last - first)]
