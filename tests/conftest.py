"""Small fitted detectors that many tests share: each is trained once a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import polars as pl
import pytest

from anomaly.detector import Detector
from anomaly.schema import NumericField, Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate
from oracles import UNTIDY_SCHEMA, untidy_table

SPLIT = "2024-02-10"  # what is before trains, the rest is scored

SINGLE_SCHEMA = Schema(time="at", numeric=(NumericField(name="amount"), NumericField(name="balance", scale="linear")))
WORDS_SCHEMA = Schema(time="at", entity=("card",), event_id="id", categorical=("merchant", "channel"))


@pytest.fixture(scope="session")
def payments() -> pl.DataFrame:
    """Simulated card payments of 40 customers over 60 days, with 1 % fraud, as a bank would see them."""
    return simulate(customers=40, days=60, seed=3)[0]


@pytest.fixture(scope="session")
def detector(payments: pl.DataFrame) -> Detector:
    """A detector fitted on the first 40 days of `payments`."""
    return Detector(SIMULATED_SCHEMA, hidden=8, epochs=2, seed=1).fit(payments, until=SPLIT, progress=False)


@pytest.fixture(scope="session")
def scores(detector: Detector, payments: pl.DataFrame) -> pl.DataFrame:
    """Scores of all payments."""
    return detector.score(payments)


@pytest.fixture(scope="session")
def untidy() -> pl.DataFrame:
    """Rows with holes, equal times, two entity columns, places, and a change of clocks; see `oracles`."""
    return untidy_table()


@pytest.fixture(scope="session")
def untidy_detector(untidy: pl.DataFrame) -> Callable[[float | None], Detector]:
    """Detectors of `untidy` by hours of quarantine; None = chosen from the gaps."""

    @cache
    def fitted(quarantine_hours: float | None) -> Detector:
        detector = Detector(UNTIDY_SCHEMA, hidden=8, epochs=1, quarantine_hours=quarantine_hours)
        return detector.fit(untidy, until="2024-03-16", progress=False)

    return fitted
