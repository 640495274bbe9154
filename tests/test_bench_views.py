"""The bench of views: what it plants, and its rules, against loops; no detector is fitted."""

from __future__ import annotations

from datetime import timedelta

import bench_views
import numpy as np


def test_charges_are_planted_in_bursts_on_cards_that_were_never_there() -> None:
    events, kind = bench_views.play(5, 60)
    planted = np.isin(kind, list(bench_views.PLANTED))
    mine = events.filter(planted)
    days = max(one[2] for one in bench_views.PLANTED.values())
    assert events["time"].is_sorted() and len(events) == len(kind) == events["event_id"].n_unique()
    assert mine["merchant_id"].n_unique() >= 4
    # A merchant may be fit for both kinds, and be compromised twice.
    for (merchant, _), some in mine.with_columns(kind=kind[planted]).group_by("merchant_id", "kind"):
        assert some["time"].max() - some["time"].min() <= timedelta(days=days)  # type: ignore[operator]
        genuine = events.filter((events["merchant_id"] == merchant).to_numpy() & (kind == ""))
        assert not some["customer_id"].is_in(genuine["customer_id"].unique().implode()).any()
    late = events["time"] >= bench_views.START + timedelta(days=bench_views.FIT_DAYS)
    assert 0 < (late.to_numpy() & planted).sum() < len(mine)


def test_the_rules_are_as_by_hand() -> None:
    events, _ = bench_views.play(6, 12)
    later = (events["time"] >= bench_views.START + timedelta(days=bench_views.FIT_DAYS)).to_numpy()
    found = bench_views.rules(events, later)
    assert {name: len(score) for name, score in found.items()} == dict.fromkeys(found, later.sum())
    rows = events.to_dicts()
    for number, at in list(enumerate(np.flatnonzero(later)))[::40]:
        before, one = rows[:at], rows[at]
        own = [row["amount"] for row in before if row["customer_id"] == one["customer_id"]]
        usual = np.median(own) if own else np.median([row["amount"] for row in rows])
        assert found["ratio"][number] == one["amount"] / usual
        here = [row for row in rows if row["merchant_id"] == one["merchant_id"]]
        recent = [row for row in here if one["time"] - timedelta(days=1) < row["time"] <= one["time"]]
        early = [row for row in here if row["time"] < bench_views.START + timedelta(days=bench_views.FIT_DAYS)]
        expected = len(recent) / (1 + len(early) / bench_views.FIT_DAYS)
        assert np.isclose(found["merchant_rush"][number], expected)
