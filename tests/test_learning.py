"""Learning from labels with a memory that is left as it is: read once, the same each time, and refitted on all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import History

from anomaly.evaluation import average_precision
from anomaly.models import learning
from anomaly.models.base import SequenceModel
from anomaly.models.batches import Events
from anomaly.models.cells import Memory
from anomaly.models.classifier import Classifier

FROZEN: dict[str, Any] = {"hidden": 8, "width": 16, "freeze": True, "epochs": 6, "learning_rate": 0.01, "device": "cpu"}


def learned(history: History, source: SequenceModel, **more: Any) -> Classifier:
    fraud = np.nan_to_num(history.sequences.numeric[:, 0]) > 0.7
    model = Classifier(**(FROZEN | more), pretrained=source)
    masks = {name: getattr(history, name) for name in ("train", "valid")}
    return model.fit(history.sequences, history.numeric, history.category, fraud, **masks)


def test_a_memory_that_rests_is_read_once_however_many_epochs(
    history: History, trained: Callable[..., SequenceModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, steps, read = trained("forecaster"), [], Memory.read

    def counted(memory: Memory, events: Events, *rest: Any) -> Any:
        steps.append(len(events))
        return read(memory, events, *rest)

    monkeypatch.setattr(Memory, "read", counted)
    totals = []
    for more in ({"epochs": 2}, {"epochs": 9, "refit": True}):
        learned(history, source, **more)
        totals.append(sum(steps))
        steps.clear()
    assert totals[0] == totals[1] < 2 * len(history.sequences), "padding apart, each event once"


def test_what_was_learned_ranks_later_events_and_is_the_same_each_time(
    history: History, trained: Callable[..., SequenceModel]
) -> None:
    source = trained("forecaster")
    model, again = learned(history, source), learned(history, source)
    chance = model.predict_proba(history.sequences)
    np.testing.assert_array_equal(again.predict_proba(history.sequences), chance)
    fraud = np.nan_to_num(history.sequences.numeric[:, 0]) > 0.7
    assert average_precision(chance[history.valid], fraud[history.valid]) > 0.8


def test_a_refit_learns_from_all_labels_and_keeps_the_calibration(
    history: History, trained: Callable[..., SequenceModel]
) -> None:
    source = trained("forecaster")
    first, refitted = learned(history, source), learned(history, source, refit=True)
    assert refitted.run_ is not None and first.run_ is not None
    assert refitted.run_.best_epoch == first.run_.best_epoch
    for name, value in vars(first.calibration_).items():
        np.testing.assert_array_equal(value, vars(refitted.calibration_)[name])
    one, other = (model.decision_function(history.sequences) for model in (first, refitted))
    assert np.abs(one - other).max() > 1e-3
    low = [model.arrays()["network.bins.low"] for model in (first, refitted)]
    assert not torch.equal(*low)


def test_the_newest_weights_count_most_at_first() -> None:
    shares = [learning._newest(50.0, number) for number in range(1000)]
    assert shares[0] == 1.0
    assert shares[-1] == 1 / 50
    assert all(before >= after for before, after in pairwise(shares))
