"""The bench of explanations: what counts as changed, on payments made by hand, and a whole run on tiny data."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bench_explain
import polars as pl
import pytest
from bench_explain import CHANGED, WHAT, summary, truly_changed

from anomaly.breakdown import PAST
from anomaly.frauds import KINDS

START = datetime(2024, 1, 1, 12, tzinfo=UTC)
USUAL = {
    "amount": 20.0, "merchant_category": "grocery", "channel": "chip", "merchant_id": "M1", "device_id": "D1",
    "latitude": 48.0, "longitude": 2.0, "fraud": False, "kind": "",
}  # fmt: skip


def history(*frauds: dict[str, Any]) -> pl.DataFrame:
    """Thirty usual payments at noon, one a day, and then these."""
    rows = [{**USUAL, "time": START + timedelta(days=day)} for day in range(30)]
    return pl.DataFrame([*rows, *frauds])


def fraud(kind: str, hours: float, **more: Any) -> dict[str, Any]:
    return {**USUAL, "fraud": True, "kind": kind, "time": START + timedelta(days=29, hours=hours), **more}


def test_every_kind_has_its_fields() -> None:
    assert set(CHANGED) == set(KINDS)
    assert all(set(fields) <= set(WHAT) for fields in CHANGED.values())


def test_what_counts_is_set_and_unlike_the_customer() -> None:
    same = fraud("card_testing", 24.0)
    assert truly_changed(same, history(same)) == set()
    far = fraud("impossible_travel", 1.0, latitude=40.0, amount=41.0, device_id="D9")
    assert truly_changed(far, history(far)) == {"place", "amount", "time"}  # this kind sets no device
    later = fraud("impossible_travel", 25.0, merchant_id="M2")  # a day after the other
    assert truly_changed(later, history(far, later)) == {"merchant_id", PAST}
    slow = fraud("slow_drip", 25.0, channel="online")
    assert truly_changed(slow, history(far, slow)) == {"channel"}  # nor does this one set the pace
    night = fraud("account_takeover", 40.0, device_id="D9", merchant_category="travel", amount=39.0)
    assert truly_changed(night, history(night)) == {"device_id", "merchant_category", "time"}


def test_the_figures_are_shares_by_kind() -> None:
    named = pl.DataFrame(
        {
            "kind": ["bust_out", "bust_out", "slow_drip", "slow_drip"],
            "first": ["amount", PAST, PAST, ""],
            "field": ["amount", "amount", "channel", ""],
            "true": [["amount"], ["merchant_id"], ["channel"], ["channel", "amount"]],
        }
    )
    changed = pl.DataFrame(
        {"found": [True, True, False], "single": [True, False, False], "run": [False, True, False],
         "holds": [True, False, False], "away": [0.0, -0.5, 0.0], "seconds": [0.1] * 3}
    )  # fmt: skip
    figures = summary(named, changed)
    assert figures["explain.top_reason.bust_out"] == 0.5 and figures["explain.top_reason.slow_drip"] == 0.0
    assert figures["explain.first_field.slow_drip"] == 0.5
    assert figures["explain.set_reason.bust_out"] == 1.0  # the run of a bust-out is its own
    assert figures["explain.amount_rule.all"] == 0.5 and figures["explain.top_reason.all"] == 0.25
    assert figures["explain.chance.bust_out"] == pytest.approx(1 / len(WHAT))
    assert figures["counterfactual.found"] == pytest.approx(2 / 3) and figures["counterfactual.holds"] == 0.5
    assert figures["counterfactual.passes"] == pytest.approx(1 / 3) == figures["counterfactual.run"]
    assert figures["counterfactual.largest_p_difference"] == 0.5
    assert "explain.top_reason.structuring" not in figures


def test_a_whole_run_on_tiny_data(tmp_path: Path) -> None:
    wish = ("--seeds", "7", "--customers", "60", "--epochs", "1", "--most", "5", "--reports", str(tmp_path))
    assert bench_explain.main(wish) == 0
    content = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    figures = content["figures"]
    assert content["command"] == "python3 scripts/bench_explain.py --seeds 7 --customers 60 --epochs 1 --most 5"
    assert figures["explain.alerts.all"] == sum(figures[f"explain.alerts.{kind}"] for kind in KINDS) > 0
    assert 0 <= figures["explain.top_reason.all"] <= 1 and 0 < figures["counterfactual.alerts"] <= 5
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| all |" in page and "| slow drip |" in page and "always to\nname the amount" in page
    assert (
        max(len(line) for line in page.splitlines() if not line.startswith("|") and "counterfactual" not in line) < 400
    )
