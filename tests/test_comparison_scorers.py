"""The scorers of a comparison: no label before its time, several views, and a head that starts as the detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from anomaly.comparison import Comparison
from anomaly.comparison_measures import UNSUPERVISED, Scored
from anomaly.comparison_scorers import HEADS, Scorers
from anomaly.comparison_world import DAY, World, fraud_of
from anomaly.detector import Detector
from anomaly.evaluation import average_precision
from anomaly.history import as_seconds
from anomaly.ingest import Events, read_events
from anomaly.schema import Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate
from anomaly.views import Views

SINCE = as_seconds("2024-02-20") or 0.0
DELAY = 7 * DAY
BOTH = SIMULATED_SCHEMA.model_copy(update={"entity": (("customer_id",), ("merchant_id",))})


@pytest.fixture(scope="module")
def world() -> tuple[pl.DataFrame, pl.DataFrame]:
    return simulate(customers=60, days=75, fraud_rate=0.03, seed=3)


def scorers(schema: Schema = SIMULATED_SCHEMA) -> Scorers:
    return Scorers(schema=schema, hidden=8, epochs=2, seed=0)


def judged(read: Events, fraud: Any, by: Scorers) -> tuple[World, Detector, Scored]:
    told = fraud_of(read, fraud)
    masks = Comparison(schema=by.schema)._masks(read.frame["time"].to_numpy(), told, SINCE, np.inf)
    return by.unsupervised(read, told, masks, SINCE, DELAY)


def shuffled(fraud: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    changed = fraud.copy()
    changed[mask] = np.random.default_rng(0).permutation(fraud[mask])
    return changed


def test_labels_that_are_not_yet_known_change_no_score(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """Those younger than the delay when scoring begins train nothing, and no event knows labels younger than that."""
    events, labels = world
    fraud = labels["fraud"].to_numpy()
    time = events["time"].dt.epoch("s").to_numpy().astype(np.float64)
    unknown = (time >= SINCE - 6 * DAY) & (time < SINCE)  # to all events of the first scored day
    assert fraud[unknown].any()
    found = []
    for told in (fraud, shuffled(fraud, unknown)):
        made, detector, _ = judged(read_events(events, SIMULATED_SCHEMA), told, scorers())
        both = [scorers().head(name, made, detector).score for name in HEADS]
        found.append((made, np.stack([*both, scorers().baseline("logistic", made).score])))
    (one, first), (other, second) = found
    learned = one.train | one.valid
    assert (one.time[learned] < SINCE - DELAY).all()
    np.testing.assert_array_equal(learned, other.train | other.valid)
    early = one.time[one.scored] < SINCE + DAY
    assert early.any()
    np.testing.assert_array_equal(first[:, early], second[:, early])
    later = (time >= SINCE) & (time < SINCE + DAY)
    assert fraud[later].any()
    third, detector, _ = judged(read_events(events, SIMULATED_SCHEMA), shuffled(fraud, time >= SINCE), scorers())
    np.testing.assert_array_equal(third.risk[third.time < SINCE + DELAY], one.risk[one.time < SINCE + DELAY])
    again = scorers().head("head_pretrained", third, detector).score
    early = one.time[one.scored] < SINCE + DELAY  # no label of the scored time was there yet
    np.testing.assert_array_equal(again[early], first[HEADS.index("head_pretrained")][early])


def test_the_head_starts_as_the_detector(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    """With two known frauds and one epoch of learning it ranks much as the detector does; from scratch it doesn't."""
    events, labels = world
    made, detector, without = judged(read_events(events, SIMULATED_SCHEMA), labels["fraud"], scorers())
    few, truth = made.with_known(2, seed=0), made.fraud[made.scored]
    once = Scorers(schema=SIMULATED_SCHEMA, hidden=8, epochs=1, seed=0)
    started, scratch = (once.head(name, few, detector).score for name in ("head_pretrained", "head"))
    assert average_precision(started, truth) > 0.8 * average_precision(without.score, truth)
    alike, unlike = (spearmanr(score, without.score).statistic for score in (started, scratch))
    assert alike > 0.8 > 0.5 > unlike
    np.testing.assert_array_equal(made.judged.surprise[made.scored], without.score)
    fields = detector.errors(made.sequences)[detector.models_[-1].name].shape[1]
    assert made.judged.inputs.shape == (len(made.time), 2 + fields)


def test_several_views_are_told_as_one(world: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    events, labels = world
    read = read_events(events, BOTH)
    made, detector, found = judged(read, labels["fraud"], scorers(BOTH))
    views = Views(BOTH, hidden=8, epochs=2, seed=0).fit(read, until=SINCE, progress=False)
    told = views.score(read)
    expected = np.full(read.n_input, np.nan)
    expected[told["row"].to_numpy()] = told["surprise"].to_numpy()
    by_row = expected[read.frame["row"].to_numpy()]
    np.testing.assert_allclose(made.judged.surprise, np.nan_to_num(by_row) * np.log(10), rtol=1e-9)
    assert detector.schema == BOTH.views[0] and len(found.score) == made.scored.sum()
    compared = Comparison(schema=BOTH, since=SINCE, hidden=4, epochs=1, known=(), repeats=5, budget_per_day=5).run(
        events, labels["fraud"]
    )
    assert {UNSUPERVISED, *HEADS} <= set(compared.table["scorer"])
