"""The story of one event: everything in it agrees with what the detector says of the event elsewhere."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from anomaly.detector import Detector
from anomaly.errors import InputError
from anomaly.event_story import LAST_EVENTS, EventStory, event_story, find_row
from anomaly.ingest import Events, read_events
from anomaly.thresholds import Threshold


@pytest.fixture(scope="module")
def read(payments: pl.DataFrame, detector: Detector) -> Events:
    return read_events(payments, detector.schema)


@pytest.fixture(scope="module")
def rule(detector: Detector) -> Threshold:
    return detector.threshold(budget_per_day=1)


@pytest.fixture(scope="module")
def story(detector: Detector, read: Events, scores: pl.DataFrame, rule: Threshold) -> EventStory:
    """Of the strangest event."""
    return event_story(detector, read, scores, int(scores.sort("p_value")["row"][0]), rule)


def test_the_facts_are_those_of_the_detector(
    story: EventStory, detector: Detector, read: Events, scores: pl.DataFrame, rule: Threshold
) -> None:
    facts = story.facts
    row, score = facts["row"], scores.sort("p_value").row(0, named=True)
    assert (facts["p_value"], facts["surprise"], facts["status"]) == (
        score["p_value"], score["surprise"], score["status"]
    )  # fmt: skip
    assert facts["alerts"] is True and facts["threshold_p"] == rule.threshold_
    assert facts["event"]["amount"] == score["amount"] and facts["event"]["event_id"] == score["event_id"]
    assert score["customer_id"] in facts["summary"] and "it alerts" in facts["summary"]
    assert sum(part["part"] for part in facts["parts"]) == pytest.approx(facts["surprise"], abs=1e-9)
    assert story.parts["part"].sum() == pytest.approx(facts["surprise"], abs=1e-9)
    assert story.parts["part"].is_sorted(descending=True)
    case = detector.cases(read, scores, rule).filter(peak_row=row)
    assert facts["reasons"][:3] == case["reasons"][0].to_list()
    changed = detector.counterfactual(read, [row], scores, rule).drop("row").row(0, named=True)
    assert facts["counterfactual"] == changed


def test_the_last_events_lead_up_to_it(story: EventStory, payments: pl.DataFrame) -> None:
    row = story.facts["row"]
    mine = payments.with_row_index("row").filter(customer_id=payments["customer_id"][row]).sort("time", "row")
    until = mine.filter(pl.col("time") <= payments["time"][row]).tail(LAST_EVENTS + 1)
    assert story.events["event_id"].to_list() == until["event_id"].to_list()
    assert story.events["event_id"][-1] == payments["event_id"][row]
    assert story.events["time"].to_list() == until["time"].to_list()
    drawn = story.timeline
    assert drawn["value"].tolist() == mine["amount"].to_list()
    assert int(np.flatnonzero(drawn["chosen"]).item()) == mine["row"].to_list().index(row)
    assert (drawn["low"] <= drawn["high"]).all()


def test_events_that_were_not_scored_lead_up_too(
    detector: Detector, read: Events, scores: pl.DataFrame, rule: Threshold
) -> None:
    later = scores.filter(pl.col("time") >= scores["time"].quantile(0.9))
    story = event_story(detector, read, later, int(later["row"][0]), rule)
    assert story.events["surprise"].null_count() == story.events.height - 1
    assert not story.events["alerting"][:-1].any()


def test_an_event_is_found_by_id_or_row(read: Events, scores: pl.DataFrame, payments: pl.DataFrame) -> None:
    assert find_row(read, scores, payments["event_id"][17], None) == 17
    assert find_row(read, scores, None, 17) == 17
    with pytest.raises(InputError, match="no accepted event nobody; event_id is like E"):
        find_row(read, scores, "nobody", None)
    with pytest.raises(InputError, match="no accepted event in row 999999; there are rows 0 to"):
        find_row(read, scores, None, 999_999)
    with pytest.raises(InputError, match="row 17 has no score"):
        find_row(read, scores.filter(pl.col("row") > 17), None, 17)
    bare = Events(read.schema.model_copy(update={"event_id": None}), read.frame, read.rejects, read.n_input, ())
    with pytest.raises(InputError, match="--row"):
        find_row(bare, scores, "E1", None)
