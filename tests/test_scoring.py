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
