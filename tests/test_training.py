"""The training loop: it learns, stops on later time, goes on where it was cut off, and gives the same bits again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import DAY, History
from numpy.typing import NDArray
from oracles import Float
from torch import Tensor

from anomaly.errors import ArtifactError, ParameterError
from anomaly.features import Encoder
from anomaly.ingest import read_events
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Training, choose_device
from anomaly.schema import NumericField, Schema
from anomaly.sequences import Sequences

KINDS = {"forecaster": Forecaster, "autoencoder": Autoencoder}
SMALL = Training(epochs=3, batch_events=256)


class Recorder:
    """Progress that remembers, and may break off after some epochs."""

    def __init__(self, *, break_after: int | None = None, error: BaseException | None = None) -> None:
        self.break_after, self.error = break_after, error or KeyboardInterrupt()
        self.epochs: list[tuple[int, int, float, float]] = []
        self.said: list[str] = []
        self.done = 0

    def events(self, done: int, total: int, loss: float) -> None:
        assert 0 < done <= total
        assert np.isfinite(loss)
        self.done += done
        if self.break_after is not None and len(self.epochs) == self.break_after:
            raise self.error

    def epoch(self, epoch: int, epochs: int, train_loss: float, valid_loss: float) -> None:
        self.epochs.append((epoch, epochs, train_loss, valid_loss))

    def say(self, text: str) -> None:
        self.said.append(text)


def fit(name: str, history: History, training: Training = SMALL, **more: Any) -> SequenceModel:
    options = {key: more.pop(key) for key in ("quarantine", "seed") if key in more}
    model: SequenceModel = KINDS[name](hidden=6, **({"quarantine": DAY} | options), training=training, device="cpu")
    masks = {"train": history.train, "valid": history.valid} | more
    model.fit(history.sequences, history.numeric, history.category, **masks)
    return model


def same_weights(a: SequenceModel, b: SequenceModel) -> bool:
    mine, other = a.arrays(), b.arrays()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def untrained(model: SequenceModel, history: History) -> SequenceModel:
    blank = replace(model)
    blank.prepare(history.numeric, history.category)
    return blank


def changed(sequences: Sequences, where: Any) -> Sequences:
    """The same history with other numbers in some events."""
    numeric = sequences.numeric.copy()
    numeric[where] += 0.5
    return replace(sequences, numeric=numeric)


@pytest.fixture(scope="module", params=list(KINDS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(name: str, history: History) -> SequenceModel:
    """A fit that nothing disturbs."""
    return fit(name, history)


def test_every_weight_is_trained(whole: SequenceModel, history: History) -> None:
    """A forgotten backward pass, a layer that nothing reads, a branch that ignores its input: those stay put."""
    before, after = untrained(whole, history).arrays(), whole.arrays()
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert still == []


def test_a_trained_model_predicts_later_events_better(whole: SequenceModel, history: History) -> None:
    assert later_loss(whole, history) < later_loss(untrained(whole, history), history) - 0.5


def later_loss(model: SequenceModel, history: History) -> float:
    """Mean loss of the later events, from the public predictions."""
    from anomaly.models.batches import Events

    index, prediction = model.predictions(history.sequences, history.valid)
    events = Events(model.table(history.sequences), torch.from_numpy(index))
    return float(prediction.losses(events).sum(dim=1).mean())


def test_the_stated_loss_is_that_of_the_later_events(whole: SequenceModel, history: History) -> None:
    assert whole.run_ is not None
    assert whole.run_.best_loss == pytest.approx(later_loss(whole, history), rel=1e-4)
    best = min(whole.run_.history, key=lambda told: told["valid_loss"])
    assert whole.run_.best_epoch == best["epoch"]


def test_the_same_seed_gives_the_same_bits(name: str, whole: SequenceModel, history: History) -> None:
    torch.manual_seed(12345)
    torch.rand(10)
    again = fit(name, history)
    assert same_weights(again, whole)
    np.testing.assert_array_equal(again.errors(history.sequences), whole.errors(history.sequences))


def test_another_seed_gives_others(name: str, whole: SequenceModel, history: History) -> None:
    assert not same_weights(fit(name, history, seed=1), whole)


def test_a_fit_leaves_the_global_random_state_alone(name: str, history: History) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fit(name, history, Training(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_fit_of_one_object_twice_is_a_fit_once(whole: SequenceModel, history: History) -> None:
    again = replace(whole)
    for _ in range(2):
        again.fit(history.sequences, history.numeric, history.category, train=history.train, valid=history.valid)
    assert same_weights(again, whole)


@pytest.mark.parametrize(("break_after", "error"), [(1, KeyboardInterrupt()), (2, MemoryError("gone"))])
def test_a_resumed_fit_ends_like_one_that_was_never_cut_off(
    name: str, whole: SequenceModel, history: History, tmp_path: Path, break_after: int, error: BaseException
) -> None:
    path = tmp_path / "deep" / "checkpoint"
    if isinstance(error, KeyboardInterrupt):
        fit(name, history, progress=Recorder(break_after=break_after, error=error), checkpoint=path)
    else:
        with pytest.raises(MemoryError):
            fit(name, history, progress=Recorder(break_after=break_after, error=error), checkpoint=path)
    recorder = Recorder()
    resumed = fit(name, history, checkpoint=path, resume=True, progress=recorder)
    assert [told[0] for told in recorder.epochs] == list(range(break_after + 1, 4))
    assert same_weights(resumed, whole)
    assert resumed.run_ is not None
    assert whole.run_ is not None
    assert not resumed.run_.interrupted
    for mine, other in zip(resumed.run_.history, whole.run_.history, strict=True):
        assert {**mine, "seconds": 0} == {**other, "seconds": 0}


def test_resuming_a_fit_that_was_over_changes_nothing(
    name: str, whole: SequenceModel, history: History, tmp_path: Path
) -> None:
    fit(name, history, checkpoint=tmp_path / "checkpoint")
    recorder = Recorder()
    again = fit(name, history, checkpoint=tmp_path / "checkpoint", resume=True, progress=recorder)
    assert recorder.epochs == []
    assert same_weights(again, whole)


def test_without_resume_a_checkpoint_is_written_over(
    name: str, whole: SequenceModel, history: History, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    fit(name, history, progress=Recorder(break_after=1), checkpoint=path)
    assert same_weights(fit(name, history, checkpoint=path), whole)


def test_an_interrupt_keeps_the_best_epoch_and_says_so(name: str, history: History) -> None:
    recorder = Recorder(break_after=1)
    stopped = fit(name, history, progress=recorder)
    assert stopped.run_ is not None
    assert stopped.run_.interrupted
    assert stopped.run_.best_epoch == 1
    assert any("interrupted" in text and "epoch 1" in text for text in recorder.said)
    assert stopped.run_.best_loss == pytest.approx(later_loss(stopped, history), rel=1e-4)


def test_an_interrupt_before_anything_is_learned_stops_the_fit(name: str, history: History) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(name, history, progress=Recorder(break_after=0))


def test_a_checkpoint_of_anything_else_is_refused(name: str, history: History, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    once = Training(epochs=1)
    fit(name, history, once, checkpoint=path)
    train = history.train.copy()
    train[np.flatnonzero(train)[:1]] = False
    attempts: list[tuple[History, dict[str, Any]]] = [
        (history, {"seed": 1}),
        (history, {"training": Training(epochs=2)}),
        (history, {"quarantine": 2 * DAY}),
        (history, {"quarantine": 0.0}),
        (replace(history, train=train), {}),
        (replace(history, sequences=changed(history.sequences, np.s_[:1])), {}),
        (replace(history, sequences=replace(history.sequences, time=history.sequences.time + 1.0)), {}),
    ]
    for other, options in attempts:
        with pytest.raises(ArtifactError, match="checkpoint"):
            fit(name, other, **({"training": once} | options), checkpoint=path, resume=True)


def test_a_damaged_checkpoint_is_refused_by_name(name: str, history: History, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    fit(name, history, Training(epochs=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="checkpoint"):
        fit(name, history, Training(epochs=1), checkpoint=path, resume=True)


def test_a_checkpoint_that_is_not_there_yet_is_no_fault(
    name: str, whole: SequenceModel, history: History, tmp_path: Path
) -> None:
    assert same_weights(fit(name, history, checkpoint=tmp_path / "new", resume=True), whole)


def test_events_that_do_not_train_leave_no_trace_in_the_weights(name: str, history: History) -> None:
    once = Training(epochs=1)
    other = replace(history, sequences=changed(history.sequences, ~history.train))
    assert same_weights(fit(name, history, once), fit(name, other, once))


def test_the_loop_stops_when_later_time_gets_no_better(history: History) -> None:
    """A learning rate at which the network soon jumps about."""
    recorder = Recorder()
    model = fit("forecaster", history, Training(epochs=30, learning_rate=0.1, patience=2), progress=recorder)
    assert model.run_ is not None
    assert len(recorder.epochs) < 30
    assert len(recorder.epochs) <= model.run_.best_epoch + 3


def test_progress_counts_every_training_event(name: str, history: History) -> None:
    recorder = Recorder()
    fit(name, history, progress=recorder)
    assert recorder.done == 3 * int(history.train.sum())
    assert [told[:2] for told in recorder.epochs] == [(1, 3), (2, 3), (3, 3)]


AMOUNTS = Schema(time="at", entity=("card",), numeric=(NumericField(name="amount", tail="both"),))


def hourly(values: Float) -> History:
    """One entity per row of `values`, one amount an hour; the last quarter of each says when to stop."""
    entities, events = values.shape
    table = pl.DataFrame({
        "at": np.tile(np.arange(events) * 3600.0, entities) + np.repeat(np.arange(entities), events),
        "card": np.repeat([f"{entity:03d}" for entity in range(entities)], events),
        "amount": values.ravel(),
    })  # fmt: skip
    frame = read_events(table, AMOUNTS).frame
    late = np.tile(np.arange(events) >= events * 3 // 4, entities)
    encoder = Encoder(AMOUNTS).fit(frame, ~late)
    return History(encoder.transform(frame), encoder.numeric, encoder.category, ~late, late)


def amount_of(model: SequenceModel, found: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The column of the amount, one row per entity."""
    return found[:, [column.name for column in model.fields.columns].index("amount")].reshape(shape)


@pytest.mark.parametrize("name", list(KINDS))
def test_an_amount_is_judged_by_the_level_of_its_entity(name: str) -> None:
    draw = np.random.default_rng(1)
    level = np.where(np.arange(40) % 2, 1000.0, 10.0)
    values = level[:, None] * np.exp(0.3 * draw.normal(size=(40, 60)))
    values[:2, -1] = 1000.0  # usual for the one, never seen of the other
    history = hourly(values)
    training = Training(epochs=8, learning_rate=0.02, batch_events=128, patience=8)
    model = fit(name, history, training, quarantine=7200.0)
    errors = amount_of(model, model.errors(history.sequences), values.shape)[:2, -1]
    assert errors[0] > errors[1] + 1.5


def test_a_memory_of_what_came_before_is_learned() -> None:
    """Two amounts take turns; which one comes next shows in no average, only in the order."""
    draw = np.random.default_rng(2)
    values = np.tile([2.0, 200.0], (40, 30)) * np.exp(0.05 * draw.normal(size=(40, 60)))
    history = hourly(values)
    training = Training(epochs=10, learning_rate=0.02, batch_events=64, patience=10)
    model = Forecaster(hidden=12, training=training, device="cpu")
    model.fit(history.sequences, history.numeric, history.category, train=history.train, valid=history.valid)
    _, prediction = model.predictions(history.sequences, history.valid)
    at = [field.column.name for field in prediction.fields.numbers].index("amount")
    column = prediction.fields.numbers[at].column
    middle = column.decode(prediction.quantiles([0.5])[:, at, 0].numpy()).reshape(40, 15)
    assert np.mean(np.abs(np.log(middle / values[:, 45:])) < 0.7) > 0.8


def test_events_in_a_strange_run_get_no_weight() -> None:
    """Large payments in runs, hidden in the history of some cards: robust training does not learn them."""
    draw = np.random.default_rng(0)
    values = 10.0 * np.exp(0.5 * draw.normal(size=(40, 60)))
    values[:4, 20:30] *= 100.0
    history = hourly(values)
    found = {}
    for share in (0.0, 0.05):
        training = Training(epochs=8, drop_share=share, learning_rate=0.02, batch_events=256)
        model = fit("forecaster", history, training, quarantine=7200.0)
        found[share] = amount_of(model, model.errors(history.sequences), values.shape)[:4, 20:30].mean()
    assert found[0.05] > found[0.0] + 1.0


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"epochs": -1}, {"drop_share": 0.5}, {"drop_share": -0.1}, {"drop_share": float("nan")}]
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        Training(**options)


def test_the_device_named_is_the_device_taken() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cpu", "cuda", "mps")


def test_weights_come_back_as_they_were(whole: SequenceModel, history: History) -> None:
    arrays: dict[str, Tensor] = whole.arrays()
    again = replace(whole).restore(history.numeric, history.category, {k: v.numpy() for k, v in arrays.items()})
    assert same_weights(again, whole)
    np.testing.assert_array_equal(again.errors(history.sequences), whole.errors(history.sequences))
