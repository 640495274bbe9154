"""Side by side: the numbers of one after the other, an interrupt for all, and the first failure handed on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import History

from anomaly.models import abreast
from anomaly.models.abreast import Stopped, all_errors, fit_all, side_by_side
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(abreast, "ENOUGH_EVENTS", 0)
    yield
    torch.set_num_threads(before)


def models() -> list[SequenceModel]:
    training = Training(epochs=2)
    return [
        Autoencoder(hidden=8, device="cpu", training=training),
        Forecaster(hidden=8, device="cpu", training=training),
    ]


def fitted(history: History, folder: Path | None = None) -> list[SequenceModel]:
    made = models()
    columns, masks = (history.numeric, history.category), (history.train, history.valid)
    fit_all(made, history.sequences, columns, masks, show=False, folder=folder, resume=False)
    return made


def test_models_that_train_side_by_side_learn_what_they_learn_alone(history: History) -> None:
    together = fitted(history)
    found = all_errors(together, history.sequences)
    torch.set_num_threads(1)
    for model, alone in zip(together, models(), strict=True):
        alone.fit(history.sequences, history.numeric, history.category, train=history.train, valid=history.valid)
        for name, values in alone.arrays().items():
            torch.testing.assert_close(model.arrays()[name], values, rtol=0, atol=0)
        np.testing.assert_array_equal(found[model.name], alone.errors(history.sequences))


@pytest.mark.parametrize("masked", [False, True])
def test_a_long_history_is_judged_piece_by_piece(
    history: History, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    together, mask = fitted(history), history.valid if masked else None
    monkeypatch.setattr(abreast, "PIECE", 200)
    found = all_errors(together, history.sequences, mask)
    for model in together:
        np.testing.assert_allclose(found[model.name], model.errors(history.sequences, mask), rtol=1e-4, atol=1e-5)


def test_each_model_writes_its_own_checkpoint(history: History, tmp_path: Path) -> None:
    fitted(history, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autoencoder.safetensors", "forecaster.safetensors"]


def test_works_run_at_the_same_time_each_on_its_share_of_the_threads() -> None:
    both = threading.Barrier(2, timeout=10)

    def work() -> int:
        both.wait()
        return torch.get_num_threads()

    assert side_by_side([work, work]) == [1, 1]
    assert torch.get_num_threads() == 2


def test_the_first_failure_is_raised_and_stops_the_others() -> None:
    stop = threading.Event()

    def fails() -> None:
        raise ValueError("no")

    def waits() -> None:
        assert stop.wait(10)

    with pytest.raises(ValueError, match="no"):
        side_by_side([waits, fails], stop)
    assert stop.is_set()


def test_an_interrupt_stops_all_works_before_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, ended = threading.Event(), []
    join = threading.Thread.join
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        for error in interrupts:
            raise error
        join(self, timeout)

    def work() -> None:
        while not stop.is_set():
            time.sleep(0.01)
        ended.append(1)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    side_by_side([work, work], stop)
    assert ended == [1, 1]


def test_a_run_that_is_to_stop_is_interrupted_at_its_next_step() -> None:
    class Silent:
        def events(self, done: int, total: int, loss: float) -> None: ...
        def epoch(self, epoch: int, epochs: int, train_loss: float, valid_loss: float) -> None: ...
        def say(self, text: str) -> None: ...

    stop = threading.Event()
    progress = Stopped(Silent(), stop)
    progress.events(1, 2, 0.0)
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        progress.events(2, 2, 0.0)


def test_more_works_than_threads_wait_for_their_turn() -> None:
    names: set[str] = set()

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.01)
        return number

    assert side_by_side([partial(work, number) for number in range(7)]) == list(range(7))
    assert len(names) == 2


def test_works_that_cannot_be_asked_to_stop_are_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    interrupts = iter([KeyboardInterrupt()])
    join = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        for error in interrupts:
            raise error
        join(self, timeout)

    def work() -> None:
        time.sleep(0.05)
        done.append(1)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side([work] * 9)
    assert len(done) < 9
