"""Supervised heads on any backbone: whole sequences, several classes, numbers, rare labels, and cues of long ago."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import History
from numpy.typing import NDArray

from anomaly.errors import InputError, ParameterError
from anomaly.evaluation import average_precision
from anomaly.features import Column
from anomaly.models.backbones import CAUSAL
from anomaly.models.classifier import Classifier, Regressor
from anomaly.models.forecaster import Forecaster
from anomaly.models.objectives import Binary, Multiclass
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

CUE = Column(name="cue", kind="category", scored=False, vocabulary=("left", "right", "quiet", "answer"))
LEFT, RIGHT, QUIET, ANSWER = 2, 3, 4, 5
VALUE = Column(name="value", kind="number", unit=1.0, center=0.0, scale=1.0)
SMALL: dict[str, Any] = {"hidden": 8, "epochs": 3, "learning_rate": 0.02, "batch_events": 256, "device": "cpu"}


def codes(rows: list[NDArray[np.int32]]) -> Sequences:
    """Sequences of one category."""
    lengths = [len(row) for row in rows]
    total = sum(lengths)
    return Sequences(
        entity=np.arange(len(rows)).astype(str).astype(object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        time=np.concatenate([np.arange(length) * 60.0 for length in lengths]),
        numeric=np.zeros((total, 0), dtype=np.float32),
        category=np.concatenate(rows)[:, None],
        row=np.arange(total),
    )


# --- cues of long ago ------------------------------------------------------------------------------------------------


def cues(entities: int, seed: int, *, silent: bool = False) -> tuple[Sequences, Mask, Mask]:
    """Left or right, a hundred quiet events or so, then the answer, the one labelled event: fraud if it was left."""
    draw = np.random.default_rng(seed)
    length = draw.integers(98, 108, entities)
    left = draw.random(entities) < 0.5
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    code = np.full(offsets[-1], QUIET, dtype=np.int32)
    code[offsets[:-1]] = QUIET if silent else np.where(left, LEFT, RIGHT)
    code[offsets[1:] - 1] = ANSWER
    answer = np.zeros(len(code), dtype=bool)
    answer[offsets[1:] - 1] = True
    sequences = Sequences(
        entity=np.arange(entities).astype(str).astype(object),
        offsets=offsets,
        time=np.arange(offsets[-1]) * 60.0,
        numeric=np.zeros((len(code), 0), dtype=np.float32),
        category=code[:, None],
        row=np.arange(len(code)),
    )
    return sequences, np.repeat(left, length) & answer, answer


def by_cue(backbone: str, reach: int = 0, seed: int = 0) -> Classifier:
    sequences, fraud, answer = cues(320, seed=1)
    late = sequences.sequence >= 256
    model = Classifier(
        backbone=backbone, hidden=16, epochs=24, learning_rate=0.01, reach=reach, seed=seed, device="cpu"
    )
    return model.fit(sequences, (), (CUE,), fraud, train=answer & ~late, valid=answer & late)


def told(model: Classifier) -> float:
    """Share of later answers that the model gives rightly."""
    later, truth, asked = cues(400, seed=2)
    chance = model.predict_proba(later, mask=asked)[asked]
    return float(np.mean((chance > 0.5) == truth[asked]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_cue_of_a_hundred_steps_back_is_kept(seed: int) -> None:
    model = by_cue("lstm", reach=256, seed=seed)
    assert told(model) >= 0.95
    silent, truth, asked = cues(200, seed=2, silent=True)
    unknown = model.predict_proba(silent, mask=asked)[asked]
    assert np.mean((unknown > 0.5) == truth[asked]) < 0.7, "the answer is told by something else than the cue"


@pytest.mark.parametrize("backbone", ["rnn", "none"])
def test_a_cue_of_a_hundred_steps_back_is_lost(backbone: str) -> None:
    """A plain recurrence has no gate that would keep it, and its gradient fades on the way: so with five seeds of five.

    Where the answer is always equally far away it may still learn that distance; here it varies.
    """
    assert told(by_cue(backbone)) <= 0.7


# --- events, on any backbone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", list(CAUSAL))
def test_a_classifier_keeps_its_promises_on_any_backbone(backbone: str, history: History) -> None:
    sequences = history.sequences
    fraud = np.nan_to_num(sequences.numeric[:, 0]) > 0.7

    def learned() -> Classifier:
        return Classifier(backbone=backbone, **SMALL).fit(
            sequences, history.numeric, history.category, fraud, train=history.train, valid=history.valid
        )

    model = learned()
    logit = model.decision_function(sequences)
    np.testing.assert_array_equal(learned().decision_function(sequences), logit, "same seed, same bits")
    arrays = safetensors.torch.load(safetensors.torch.save(model.arrays()))
    again = Classifier(backbone=backbone, **SMALL).restore(history.numeric, history.category, arrays)
    np.testing.assert_array_equal(again.predict_proba(sequences), model.predict_proba(sequences))
    part = slice(sequences.offsets[3], sequences.offsets[4])
    np.testing.assert_allclose(model.decision_function(sequences.take(np.array([3]))), logit[part], atol=1e-4)
    half = sequences.position < sequences.lengths[sequences.sequence] // 2
    np.testing.assert_allclose(model.decision_function(sequences, mask=half)[half], logit[half], atol=1e-4)


def test_what_does_not_go_together_is_refused_by_name(history: History) -> None:
    def learn(kind: Any = Classifier, **more: Any) -> None:
        target = np.zeros(len(history.sequences))
        target[::2] = 1
        kind(**(SMALL | more)).fit(
            history.sequences, history.numeric, history.category, target, train=history.train, valid=history.valid
        )

    for kind in (Classifier, Regressor):
        with pytest.raises(ParameterError, match=rf"{kind.__name__}: backbone='bilstm'.*for whole sequences"):
            learn(kind, backbone="bilstm")
    with pytest.raises(ParameterError, match="Regressor: level must be one of event, sequence, got 'day'"):
        learn(Regressor, level="day")
    with pytest.raises(ParameterError, match="reach sets the gates of an LSTM, and backbone='gru' has none"):
        learn(backbone="gru", reach=5)
    with pytest.raises(ParameterError, match="sampling must be 'balanced', above 0 or None, got 'half'"):
        learn(sampling="half")
    with pytest.raises(ParameterError, match="with classes=3 there is no sampling"):
        learn(classes=3, sampling="balanced")
    with pytest.raises(InputError, match="train must hold all 3 classes, got 2 of them"):
        learn(classes=3)
    few = np.arange(len(history.sequences.entity)) < 9
    whole, columns = Regressor(level="sequence"), (history.numeric, history.category)
    with pytest.raises(InputError, match=r"one label for each of [0-9]+ sequences, got shape"):
        whole.fit(history.sequences, *columns, np.zeros(3), train=few, valid=~few)
    source = Forecaster(hidden=8, backbone="gru")
    source.prepare(history.numeric, history.category)
    with pytest.raises(ParameterError, match="has backbone=gru, expected lstm; give both the same"):
        learn(pretrained=source)


# --- whole sequences -------------------------------------------------------------------------------------------------


def ends(number: int, seed: int) -> tuple[Sequences, Mask]:
    """Sequences of 8 to 40 lefts and rights; a fraud begins and ends alike, whatever is in between."""
    draw = np.random.default_rng(seed)
    rows = [draw.integers(LEFT, RIGHT + 1, draw.integers(8, 41)).astype(np.int32) for _ in range(number)]
    return codes(rows), np.array([row[0] == row[-1] for row in rows])


@pytest.fixture(scope="module")
def both_ends() -> Classifier:
    sequences, fraud = ends(600, seed=1)
    valid = np.arange(600) >= 480
    model = Classifier(level="sequence", backbone="bilstm", hidden=16, epochs=25, learning_rate=0.02, batch_events=512)
    return model.fit(sequences, (), (CUE,), fraud, train=~valid, valid=valid)


def test_a_bidirectional_lstm_tells_whole_sequences(both_ends: Classifier) -> None:
    later, truth = ends(300, seed=2)
    chance = both_ends.predict_proba(later)
    assert chance.shape == (300,)
    assert np.mean((chance > 0.5) == truth) >= 0.95


def test_a_sequence_alone_is_told_as_among_others(both_ends: Classifier) -> None:
    later, _ = ends(40, seed=3)
    logit = both_ends.decision_function(later)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(both_ends.decision_function(later.take(order)), logit[order], atol=1e-5)
    np.testing.assert_allclose(both_ends.decision_function(later.take(np.array([7]))), logit[[7]], atol=1e-5)
    mask = order < 9
    np.testing.assert_allclose(both_ends.decision_function(later, mask=mask)[mask], logit[mask], atol=1e-5)
    assert np.isnan(both_ends.decision_function(later, mask=mask)[~mask]).all()
    again = Classifier(level="sequence", backbone="bilstm", hidden=16).restore((), (CUE,), both_ends.arrays())
    np.testing.assert_array_equal(again.decision_function(later), logit)


def test_the_state_at_the_end_of_a_causal_backbone_tells_a_whole_sequence() -> None:
    """More lefts than rights: a count, told by the last state."""
    draw = np.random.default_rng(4)
    rows = [draw.choice([LEFT, RIGHT], 21, p=[p, 1 - p]).astype(np.int32) for p in draw.uniform(0.1, 0.9, 500)]
    label = np.array([(row == LEFT).sum() > 10 for row in rows])
    valid = np.arange(500) >= 300
    model = Classifier(level="sequence", backbone="gru", hidden=8, epochs=15, learning_rate=0.02, batch_events=512)
    model.fit(codes(rows), (), (CUE,), label, train=~valid, valid=valid)
    assert np.mean((model.predict_proba(codes(rows)) > 0.5)[valid] == label[valid]) > 0.9


# --- several classes, and numbers ------------------------------------------------------------------------------------


def walks(number: int, seed: int) -> Sequences:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 30, number)
    total = int(lengths.sum())
    return Sequences(
        entity=np.arange(number).astype(str).astype(object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        time=np.concatenate([np.arange(length) * 60.0 for length in lengths]),
        numeric=draw.normal(0, 1, (total, 1)).astype(np.float32),
        category=np.zeros((total, 0), dtype=np.int32),
        row=np.arange(total),
    )


def previous(sequences: Sequences) -> Float:
    """The value of the event before, 0 before the first."""
    value = np.concatenate([[0.0], sequences.numeric[:-1, 0]])
    value[sequences.offsets[:-1]] = 0.0
    return value


def test_several_classes_of_events() -> None:
    """The class of an event is told by the one before it: low, middle or high."""
    sequences, later = walks(300, seed=1), walks(100, seed=2)
    label = np.digitize(previous(sequences), [-0.5, 0.5])
    valid = sequences.sequence >= 240
    model = Classifier(classes=3, hidden=16, epochs=12, learning_rate=0.02, batch_events=512, device="cpu")
    model.fit(sequences, (VALUE,), (), label, train=~valid, valid=valid)
    chance = model.predict_proba(later)
    assert chance.shape == (len(later), 3)
    np.testing.assert_allclose(chance.sum(axis=1), 1.0)
    assert np.mean(chance.argmax(axis=1) == np.digitize(previous(later), [-0.5, 0.5])) > 0.9
    again = Classifier(classes=3, hidden=16).restore((VALUE,), (), model.arrays())
    np.testing.assert_array_equal(again.predict_proba(later), chance)
    unknown = np.where(valid, label, 7)
    with pytest.raises(InputError, match="must be whole numbers from 0 to 2"):
        model.fit(sequences, (VALUE,), (), unknown, train=~valid, valid=valid)


@pytest.mark.parametrize("backbone", ["lstm", "conv", "transformer"])
def test_a_number_for_each_event_in_its_own_unit(backbone: str) -> None:
    """1000 + 50 times the value before: in that unit, and better than its mean."""
    sequences, later = walks(300, seed=1), walks(100, seed=2)
    target = 1000 + 50 * previous(sequences)
    valid = sequences.sequence >= 240
    poisoned = np.where(sequences.sequence == 5, np.nan, target)
    model = Regressor(backbone=backbone, hidden=16, epochs=15, learning_rate=0.01, batch_events=512, dropout=0.0)
    model.fit(sequences, (VALUE,), (), poisoned, train=~valid & (sequences.sequence != 5), valid=valid)
    found = model.predict(later)
    truth = 1000 + 50 * previous(later)
    assert np.mean((found - truth) ** 2) < 0.1 * truth.var()
    again = Regressor(backbone=backbone, hidden=16).restore((VALUE,), (), model.arrays())
    np.testing.assert_array_equal(again.predict(later), found)
    with pytest.raises(InputError, match="Regressor: train and valid must hold finite targets"):
        model.fit(sequences, (VALUE,), (), poisoned, train=~valid, valid=valid)


def test_a_number_for_each_whole_sequence() -> None:
    sequences, later = walks(400, seed=1), walks(100, seed=2)
    sums, truth = (np.add.reduceat(one.numeric[:, 0], one.offsets[:-1]).astype(float) for one in (sequences, later))
    valid = np.arange(400) >= 320
    model = Regressor(level="sequence", backbone="bilstm", hidden=16, epochs=20, learning_rate=0.01, batch_events=512)
    model.fit(sequences, (VALUE,), (), sums, train=~valid, valid=valid)
    assert model.predict(later).shape == (100,)
    assert np.mean((model.predict(later) - truth) ** 2) < 0.3 * truth.var()


# --- rare labels -----------------------------------------------------------------------------------------------------


def rare(seed: int) -> tuple[Sequences, Mask]:
    """Some 2 % of fraud: an event above 1.5 standard deviations is one, with a chance of a quarter."""
    sequences = walks(1200, seed)
    chance = np.random.default_rng(seed).random(len(sequences))
    return sequences, (sequences.numeric[:, 0] > 1.5) & (chance < 0.25)


def with_rare(**more: Any) -> tuple[Classifier, Float, Mask]:
    sequences, fraud = rare(1)
    valid = sequences.sequence >= 1000
    model = Classifier(hidden=8, epochs=8, learning_rate=0.01, batch_events=1024, calibration="none", **more)
    model.fit(sequences, (VALUE,), (), fraud, train=~valid, valid=valid)
    later, truth = rare(2)
    return model, model.predict_proba(later), truth


def test_balanced_samples_train_few_and_mean_the_share_of_fraud_as_it_is() -> None:
    """Without any calibration: the sample's odds are taken back."""
    _, plain, truth = with_rare()
    model, sampled, _ = with_rare(sampling="balanced")
    _, heavy, _ = with_rare(positive_weight="balanced")
    assert truth.mean() < 0.03
    assert plain.mean() == pytest.approx(truth.mean(), rel=0.3)
    assert sampled.mean() == pytest.approx(truth.mean(), rel=0.4)
    assert heavy.mean() > 3 * truth.mean(), "a weight distorts the probabilities, by design"
    again = Classifier(hidden=8).restore((VALUE,), (), model.arrays())
    np.testing.assert_array_equal(again.predict_proba(rare(2)[0]), sampled)


def test_a_sample_may_hold_several_genuine_events_for_each_fraud() -> None:
    objective = Binary.of(np.arange(1000) < 20, None, 0.0, 5.0)
    assert objective.kept * 980 == pytest.approx(100)
    assert objective.total == pytest.approx(120)
    assert Binary.of(np.arange(1000) < 20, None, 0.0, 500.0).kept == 1.0
    with pytest.raises(ParameterError, match="sampling must be 'balanced', above 0 or None, got"):
        with_rare(sampling=-1.0)


def test_a_balanced_sample_holds_as_many_of_both() -> None:
    label = np.arange(1000) < 20
    objective = Binary.of(label, None, 0.0, 1.0)
    assert objective.kept * 980 == pytest.approx(20)
    assert objective.total == pytest.approx(40)
    assert objective.start == pytest.approx([0.0])
    assert objective.shift == pytest.approx(math.log(20 / 980))
    usual = Binary.of(label, "balanced", 0.0)
    assert (usual.weight, usual.kept, usual.total) == (49.0, 1.0, 1960.0)


def test_balanced_classes_weigh_alike_and_focus_leaves_out_what_is_known() -> None:
    label = np.repeat([0, 1, 2], [80, 15, 5])
    objective = Multiclass.of(label, 3, 0.0, balanced=True)
    weighed = np.array(objective.weight) * objective.number
    np.testing.assert_allclose(weighed, weighed[0])
    assert objective.start == pytest.approx([math.log(weighed[0])] * 3)
    sure, target = torch.tensor([[8.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 0])
    plain = Multiclass.of(label, 3, 0.0, balanced=False).losses(sure, target)
    focal = Multiclass.of(label, 3, 2.0, balanced=False).losses(sure, target)
    assert focal[0] / plain[0] < 1e-4
    assert focal[1] / plain[1] == pytest.approx((2 / 3) ** 2)


# --- a score that was there before any label -------------------------------------------------------------------------


def with_prior(history: History, prior: Any, **more: Any) -> Classifier:
    fraud = np.nan_to_num(history.sequences.numeric[:, 0]) > 0.7
    return Classifier(**(SMALL | more)).fit(
        history.sequences,
        history.numeric,
        history.category,
        fraud,
        train=history.train,
        valid=history.valid,
        prior=prior,
    )


def test_a_head_with_a_prior_starts_from_it_and_learns_what_to_add(history: History) -> None:
    draw, sequences = np.random.default_rng(5), history.sequences
    fraud = np.nan_to_num(sequences.numeric[:, 0]) > 0.7
    prior = draw.normal(size=len(sequences)) + 2.0 * fraud
    hardly = with_prior(history, prior, learning_rate=1e-9, epochs=1)
    assert hardly.network_ is not None
    slope, shift = hardly.network_.get_buffer("line").tolist()
    said = hardly.decision_function(sequences, prior=prior)
    frauds = int(fraud[history.train].sum())
    base = np.log(frauds / (history.train.sum() - frauds))
    np.testing.assert_allclose(said, slope * prior + shift + base, atol=1e-4)
    assert slope > 0.5
    model = with_prior(history, prior)
    chance = model.predict_proba(sequences, prior=prior)
    held, truth = history.valid, fraud[history.valid]
    assert average_precision(chance[held], truth) > average_precision(prior[held], truth) + 0.05
    arrays = safetensors.torch.load(safetensors.torch.save(model.arrays()))
    again = Classifier(**SMALL).restore(history.numeric, history.category, arrays)
    np.testing.assert_array_equal(again.predict_proba(sequences, prior=prior), chance)


def test_a_prior_that_does_not_fit_is_refused(history: History) -> None:
    number = len(history.sequences)
    model = with_prior(history, np.zeros(number), epochs=1)
    with pytest.raises(InputError, match="the fit was given a prior; give one to both or to neither"):
        model.predict_proba(history.sequences)
    with pytest.raises(InputError, match="the fit was given no prior"):
        with_prior(history, None, epochs=1).predict_proba(history.sequences, prior=np.zeros(number))
    for spoilt in (np.zeros(3), np.full(number, np.nan)):
        with pytest.raises(InputError, match=rf"prior must be {number} finite numbers, one for each event"):
            with_prior(history, spoilt)
    with pytest.raises(ParameterError, match="a prior is a score of fraud, for a Classifier of two classes"):
        Regressor(**SMALL).fit(
            history.sequences,
            history.numeric,
            history.category,
            np.zeros(number),
            train=history.train,
            valid=history.valid,
            prior=np.zeros(number),
        )
