"""A table scored piece by piece: the scores of one piece, in the order of the input, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from anomaly import scoring
from anomaly.detector import Detector
from anomaly.models import abreast
from anomaly.score_table import statuses


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(abreast, "ENOUGH_EVENTS", 0)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("since", [None, "2024-02-20"])
def test_many_pieces_give_the_scores_of_one(
    detector: Detector, payments: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, threads: int, since: str | None
) -> None:
    assert torch.get_num_threads() == threads
    shuffled = payments.sample(fraction=1.0, shuffle=True, seed=1)
    whole = detector.score(shuffled, since=since)
    monkeypatch.setattr(scoring, "PIECE", 300)
    pieces = detector.score(shuffled, since=since)
    assert pieces["row"].is_sorted()
    assert_frame_equal(pieces, whole, rel_tol=1e-4, abs_tol=1e-5)
    ids = shuffled.with_row_index("row").select(pl.col("row").cast(pl.Int64), "event_id", "amount")
    assert_frame_equal(pieces.select("row", "event_id", "amount"), ids.join(pieces, on="row", how="semi"))


def test_entities_without_an_event_to_score_are_not_looked_at(
    detector: Detector, payments: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PIECE", 1)
    asked: list[int] = []
    errors = detector.errors

    def counted(sequences: object, mask: object = None) -> dict[str, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
        asked.append(1)
        return errors(sequences, mask)  # type: ignore[arg-type]

    monkeypatch.setattr(detector, "errors", counted)
    last = payments["time"].max()
    found = detector.score(payments, since=str(last))
    assert len(asked) == found["customer_id"].n_unique() < payments["customer_id"].n_unique()


def test_rows_are_put_in_order_with_and_without_sorting() -> None:
    draw = np.random.default_rng(0)
    for most in (60, 100, 10**9):
        row = draw.choice(most, 50, replace=False).astype(np.int64) + 7
        np.testing.assert_array_equal(scoring._rising(row), np.argsort(row))


@pytest.mark.parametrize("longest", [1, 40, 900])
def test_pieces_are_whole_and_small_at_the_end(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PIECE", 400)
    lengths = np.random.default_rng(longest).integers(1, longest + 1, 6000 // longest + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pieces = scoring._pieces(offsets)
    assert [first for first, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
    assert (pieces[0][0], pieces[-1][1]) == (0, offsets[-1])
    assert {border for piece in pieces for border in piece} <= set(offsets.tolist())
    if longest < 100:
        sizes = np.diff(np.array(pieces)).ravel()
        assert (sizes[:-9] > 300).all()
        assert (sizes[-5:] < 150).all()
    assert scoring._pieces(offsets[:2]) == [(0, offsets[1])]


def test_each_status_has_its_reason() -> None:
    entity = ["a"] * 7 + ["b"] * 6
    amounts = [1.0, None, *[1.0] * 4, None, *[1.0] * 6]
    frame = pl.DataFrame({"entity": entity, "n:amount": amounts})
    offsets = np.array([0, 7, 13])
    known = np.array(["a"], dtype=object)
    found = statuses(frame, offsets, known).to_list()
    assert found == [
        *("learning", "incomplete", "learning", "learning", "learning", "ok", "incomplete"),
        *["learning"] * 5,
        "unseen",
    ]
    plain = statuses(frame.select("entity"), offsets, known).to_list()  # no field that could be missing
    assert plain == [*["learning"] * 5, "ok", "ok", *["learning"] * 5, "unseen"]
