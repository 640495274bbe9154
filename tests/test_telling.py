"""What the verbs tell: counts that add up, and what a recalibration changed."""

from __future__ import annotations

from io import StringIO

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from anomaly.detector import Detector
from anomaly.ingest import read_events
from anomaly.recalibration import Holdout
from anomaly.simulator import SIMULATED_SCHEMA
from anomaly.telling import fit_facts, fit_text, recalibration_facts, row_counts, row_counts_text, threshold_facts
from anomaly.terminal import recalibration_table
from anomaly.thresholds import usual_rule


def test_every_row_is_counted_once(detector: Detector, payments: pl.DataFrame, scores: pl.DataFrame) -> None:
    spoilt = payments.with_columns(amount=pl.when(pl.int_range(pl.len()) < 3).then(None).otherwise("amount").cast(str))
    read = read_events(spoilt.with_columns(amount=pl.col("amount").fill_null("oops")), SIMULATED_SCHEMA)
    counts = row_counts(read, scores.head(100))
    assert counts == {"rows": len(payments), "history": len(payments) - 103, "scored": 100, "rejected": 3}
    assert row_counts_text(counts).endswith("100 scored, 3 rejected")
    facts = fit_facts(detector.fitted_, read)
    assert facts["history"] + facts["later"] + facts["rejected"] == len(payments)
    assert "forecaster: keeps epoch" in fit_text(facts) and "sample" not in fit_text(facts)


def test_a_rule_is_told_with_its_cases_a_day(detector: Detector) -> None:
    told = threshold_facts(detector.threshold(budget_per_day=3))
    assert told["expected_per_day_low"] <= told["expected_per_day"] <= told["expected_per_day_high"]
    assert told["threshold"].startswith("Budget of 3 cases")


@pytest.mark.parametrize("new", [0, 40])
def test_a_recalibration_is_told_before_and_after(new: int) -> None:
    rng = np.random.default_rng(0)
    slices = []
    for count in (200, 200 + new):
        time = np.linspace(0.0, 3600.0 * (count - 1), count)
        nobody, one = np.full(count, np.nan), np.zeros(count, dtype=np.int32)
        slices.append(Holdout(rng.uniform(size=count), time, one, nobody, np.array(["A"], dtype=object)))
    rules = [usual_rule(budget_per_day=1).fit(one.p, one.time, one.entity) for one in slices]
    changes = slices[1].changes(slices[0], np.log(slices[1].p) - 3)
    facts = recalibration_facts(rules[0], slices[0], rules[1], slices[1], changes)
    assert facts["new_events"] == new
    assert facts["before"]["held_out"] == 200 and facts["after"]["held_out"] == 200 + new
    assert facts["after"]["threshold_p"] == rules[1].threshold_
    console = Console(width=120, record=True, file=StringIO())
    console.print(recalibration_table(facts))
    shown = console.export_text()
    assert "1970-01-01 00:00" in shown and f"{1 - rules[0].threshold_:.6f}" in shown
    assert ("40 new events at p ≤ 0.01" in shown) == bool(new)
    if new:
        late = slices[1].p[200:]
        assert facts["before"]["new_share"]["0.01"] == np.mean(late * np.exp(-3) <= 0.01)
