"""Small fitted models that many tests share: each is trained once a run.

torch is imported by the fixtures that need it, so that the other tests start at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import polars as pl
import pytest
from hypothesis import settings
from oracles import UNTIDY_SCHEMA, untidy_table

from anomaly.features import Column, Encoder
from anomaly.ingest import read_events
from anomaly.sequences import Sequences
from anomaly.simulator import SIMULATED_SCHEMA, simulate

if TYPE_CHECKING:
    from torch import Tensor

    from anomaly.detector import Detector
    from anomaly.models.base import SequenceModel
    from anomaly.models.batches import Events
    from anomaly.models.training import Mask

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

SPLIT = "2024-02-10"  # what is before it trains, the rest is scored
UNTIDY_SPLIT = "2024-03-16"
DAY = 86_400.0
Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class History:
    """An encoded history, what a model's `fit` takes."""

    sequences: Sequences
    numeric: tuple[Column, ...]
    category: tuple[Column, ...]
    train: Mask
    valid: Mask


def events_of(numeric: Tensor, category: Tensor, statistics: Tensor | None = None) -> Events:
    """All events of a table: numbers (n, F), codes (n, C), averages (n, Q)."""
    import torch

    from anomaly.models.batches import Events, Table

    n = len(numeric)
    averages = torch.zeros(n, 0) if statistics is None else statistics
    at = torch.arange(n)
    return Events(Table(numeric.contiguous(), category.int().contiguous(), averages, 0 * at, at.numpy()), at)


def sequences_of(times: list[list[float]]) -> Sequences:
    """Histories of events of which nothing but the times is known, one per list."""
    total = sum(map(len, times))
    return Sequences(
        entity=np.array([f"e{at}" for at in range(len(times))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in times])]).astype(np.int64),
        time=np.concatenate([np.sort(one) for one in times]),
        numeric=np.zeros((total, 0), dtype=np.float32),
        category=np.zeros((total, 0), dtype=np.int32),
        row=np.arange(total),
    )


def called(part: Callable[Given, Found]) -> Callable[Given, Found]:
    """A part of compiled functions, so that it can be called."""
    import numba

    made: Any = numba.njit(lambda *given: part(*given))  # type: ignore[call-arg]
    return cast("Callable[Given, Found]", made)


def random_histories(entities: int, events: int, days: float, seed: int) -> Sequences:
    """As many events for each entity, spread evenly over the days."""
    return sequences_of(np.random.default_rng(seed).uniform(0, days * DAY, (entities, events)).tolist())


def agree(found: pl.DataFrame, expected: pl.DataFrame, key: str = "id") -> None:
    """Every event of `found` has the scores, to 1e-5 in p, and the status that it has in `expected`."""
    both = found.join(expected, on=key, how="left", suffix=" expected", maintain_order="left")
    assert both["p_value expected"].null_count() == 0
    assert both["status"].to_list() == both["status expected"].to_list()
    numbers = [
        name
        for name in found.columns
        if name[:2] == "p_" or name[:6] == "field:" or name in ("score", "surprise", "recent")
    ]
    for name in numbers:
        mine, other = (both[column].fill_null(np.nan).to_numpy() for column in (name, f"{name} expected"))
        assert np.isnan(mine).tolist() == np.isnan(other).tolist(), name
        is_p = name not in ("surprise", "recent") and not name.startswith("field:")
        away = np.nan_to_num(np.abs(mine - other) / (1.0 if is_p else np.maximum(1.0, np.abs(other))))
        assert away.max(initial=0.0) <= (1e-5 if is_p else 1e-3), name


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads that wait for each other are slower than one on models as small as these."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def payments() -> pl.DataFrame:
    """Simulated card payments of 40 customers over 60 days, with 1 % fraud, as a bank would see them."""
    return simulate(customers=40, days=60, seed=3)[0]


@pytest.fixture(scope="session")
def detector(payments: pl.DataFrame) -> Detector:
    """A detector fitted on the first 40 days of `payments`."""

    from anomaly.detector import Detector

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

    from anomaly.detector import Detector

    @cache
    def fitted(quarantine_hours: float | None) -> Detector:
        detector = Detector(UNTIDY_SCHEMA, hidden=8, epochs=1, quarantine_hours=quarantine_hours)
        return detector.fit(untidy, until=UNTIDY_SPLIT, progress=False)

    return fitted


@pytest.fixture(scope="session")
def history() -> History:
    """The payments of 20 customers over 30 days, encoded; three quarters train."""
    frame = read_events(simulate(customers=20, days=30, seed=5)[0], SIMULATED_SCHEMA).frame
    time = frame["time"].to_numpy()
    train = time < np.quantile(time, 0.75)
    encoder = Encoder(SIMULATED_SCHEMA).fit(frame, train)
    return History(encoder.transform(frame), encoder.numeric, encoder.category, train, ~train)


@pytest.fixture(scope="session")
def trained(history: History) -> Callable[..., SequenceModel]:
    """Models trained on `history` for two epochs, by name, days of quarantine and seed."""
    from anomaly.models.autoencoder import Autoencoder
    from anomaly.models.forecaster import Forecaster
    from anomaly.models.training import Training

    kinds = {"forecaster": Forecaster, "autoencoder": Autoencoder}

    @cache
    def fitted(name: str, *, days: float = 2.0, seed: int = 0) -> SequenceModel:
        model: SequenceModel = kinds[name](
            hidden=8, quarantine=days * DAY, seed=seed, training=Training(epochs=2, batch_events=256)
        )
        model.fit(history.sequences, history.numeric, history.category, train=history.train, valid=history.valid)
        return model

    return fitted
