"""The supervised head: what only a history can tell, what it may look at, and what its probabilities are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import History
from numpy.typing import NDArray

from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError
from anomaly.evaluation import average_precision, brier, expected_calibration_error
from anomaly.features import Column
from anomaly.models.base import SequenceModel
from anomaly.models.classifier import Classifier
from anomaly.models.labelled import Extra
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

AMOUNT = Column(name="amount", kind="number", unit=1.0, center=5.0, scale=1.5)
SMALL: dict[str, Any] = {
    "hidden": 8,
    "epochs": 4,
    "learning_rate": 0.02,
    "batch_events": 128,
    "steps": 32,
    "device": "cpu",
}


def amounts(*histories: Sequence[float] | Float) -> Sequences:
    """Payments of one entity each, an hour apart."""
    lengths = [len(one) for one in histories]
    number = sum(lengths)
    return Sequences(
        entity=np.array([f"card {at}" for at in range(len(histories))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        time=np.concatenate([np.arange(length) * 3600.0 for length in lengths]),
        numeric=AMOUNT.encode(np.concatenate(histories)).astype(np.float32)[:, None],
        category=np.zeros((number, 0), dtype=np.int32),
        row=np.arange(number),
    )


def spenders(entities: int, seed: int) -> tuple[Sequences, Mask]:
    """Cards that each spend about their own usual amount, between 5 and 8,000; a fraud is some 20 to 300 times that.

    What is large for one card is usual for another, so that no amount tells a fraud by itself.
    """
    draw = np.random.default_rng(seed)
    length = draw.integers(3, 30, entities)
    usual = np.exp(draw.uniform(np.log(5), np.log(8000), entities))
    spent = np.repeat(usual, length) * np.exp(draw.normal(0, 0.35, length.sum()))
    first = np.concatenate([[0], np.cumsum(length)[:-1]])
    fraud = draw.random(len(spent)) < 0.06
    fraud[first] = False  # nothing is known yet of the card
    spent[fraud] *= np.exp(draw.uniform(np.log(20), np.log(300), int(fraud.sum())))
    return amounts(*np.split(spent, first[1:])), fraud


def fitted_on(sequences: Sequences, fraud: Mask, columns: tuple[Any, Any], **more: Any) -> Classifier:
    """A classifier whose last fifth of the entities validates."""
    valid = sequences.sequence >= len(sequences.entity) * 4 // 5
    return Classifier(**more).fit(sequences, *columns, fraud, train=~valid, valid=valid)


@pytest.fixture(scope="module")
def by_amount() -> Classifier:
    """Learned what is large for each card."""
    small: dict[str, Any] = {
        "hidden": 16,
        "epochs": 12,
        "learning_rate": 0.01,
        "batch_events": 512,
        "steps": 32,
        "device": "cpu",
    }
    return fitted_on(*spenders(400, seed=1), ((AMOUNT,), ()), **small)


def test_a_sudden_large_payment_is_flagged_and_those_before_it_are_not(by_amount: Classifier) -> None:
    chance = by_amount.predict_proba(amounts([20, 25, 30, 28, 5000]))
    assert chance[-1] > 0.9
    assert (chance[:-1] < 0.1).all()


def test_the_order_of_the_amounts_counts(by_amount: Classifier) -> None:
    falling = by_amount.predict_proba(amounts([2000, 12, 10]))
    rising = by_amount.predict_proba(amounts([10, 12, 2000]))
    assert rising[-1] > 0.5 > falling.max()
    falling, rising = (by_amount.decision_function(amounts(one)) for one in ([100, 10, 5], [5, 10, 100]))
    assert rising[-1] > falling[-1] + 1


def test_the_order_of_the_history_counts(by_amount: Classifier) -> None:
    """The same event after the same events in another order has another chance: averages alone do not tell."""
    one, other = by_amount.decision_function(amounts([5, 300, 5, 300, 2000], [300, 300, 5, 5, 2000]))[[4, 9]]
    assert abs(one - other) > 1e-3


def test_what_is_large_for_a_low_spender_is_usual_for_a_high_one(by_amount: Classifier) -> None:
    chance = by_amount.predict_proba(amounts([20, 25, 30, 28, 22, 5000], [4800, 5200, 4900, 5600, 4700, 5000]))
    low, high = chance[5], chance[11]
    assert low > 0.9
    assert high < 0.1


def test_a_short_history_beside_a_long_one_has_the_chances_it_has_alone(by_amount: Classifier) -> None:
    draw = np.random.default_rng(3)
    short, long = [20, 25, 4000, 28, 5000], 40 * np.exp(draw.normal(0, 0.4, 500))
    together = by_amount.predict_proba(amounts(short, long))
    np.testing.assert_allclose(together[:5], by_amount.predict_proba(amounts(short)), atol=1e-5)
    np.testing.assert_allclose(together[5:], by_amount.predict_proba(amounts(long)), atol=1e-5)
    assert np.ptp(together[:5]) > 0.5


# --- what it may look at ---------------------------------------------------------------------------------------------


def labelled(history: History) -> Mask:
    """Payments above a fixed amount count as fraud: something to learn."""
    return np.nan_to_num(history.sequences.numeric[:, 0]) > 0.7


def learned(history: History, fraud: Any = None, **more: Any) -> Classifier:
    masks = {"train": history.train, "valid": history.valid} | {k: more.pop(k) for k in ("train", "valid") if k in more}
    given = {key: more.pop(key) for key in ("extra", "progress") if key in more}
    model = Classifier(**(SMALL | more))
    label = labelled(history) if fraud is None else fraud
    return model.fit(history.sequences, history.numeric, history.category, label, **masks, **given)


@pytest.fixture(scope="module")
def extra(history: History) -> Float:
    """Two extra inputs, some of them missing."""
    draw = np.random.default_rng(2)
    values = draw.normal(3.0, 10.0, (len(history.sequences), 2))
    values[draw.random(len(values)) < 0.2, 1] = np.nan
    return values


@pytest.fixture(scope="module")
def model(history: History, extra: Float) -> Classifier:
    return learned(history, extra=extra)


@pytest.fixture(scope="module")
def chance(model: Classifier, history: History, extra: Float) -> Float:
    return model.predict_proba(history.sequences, extra)


def same_weights(a: Classifier, b: Classifier) -> bool:
    mine, other = a.arrays(), b.arrays()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_there_is_a_probability_for_every_event(chance: Float, history: History) -> None:
    assert chance.shape == (len(history.sequences),)
    assert ((chance >= 0) & (chance <= 1)).all()
    assert average_precision(chance[history.valid], labelled(history)[history.valid]) > 0.8


def test_a_mask_selects_what_is_said_and_changes_nothing_of_it(
    model: Classifier, chance: Float, history: History, extra: Float
) -> None:
    mask = np.random.default_rng(1).random(len(chance)) < 0.1
    found = model.predict_proba(history.sequences, extra, mask)
    np.testing.assert_allclose(found[mask], chance[mask], atol=1e-5)
    assert np.isnan(found[~mask]).all()


def test_later_events_change_no_earlier_probability(
    model: Classifier, chance: Float, history: History, extra: Float
) -> None:
    sequences = history.sequences
    late = sequences.position >= sequences.lengths[sequences.sequence] // 2
    numeric, category, other = sequences.numeric.copy(), sequences.category.copy(), extra.copy()
    numeric[late] += 3.0
    category[late] = 2
    other[late] += 5.0
    found = model.predict_proba(replace(sequences, numeric=numeric, category=category), other)
    np.testing.assert_allclose(found[~late], chance[~late], atol=1e-5)
    assert np.abs(found[late] - chance[late]).max() > 0.1


def test_the_order_of_the_entities_does_not_matter(
    model: Classifier, chance: Float, history: History, extra: Float
) -> None:
    order = np.random.default_rng(0).permutation(len(history.sequences.entity))
    pieces = np.array_split(order, 3)
    found = np.full(len(chance), np.nan)
    for piece in pieces:
        part = history.sequences.take(piece)
        at = np.concatenate([np.arange(*history.sequences.offsets[one : one + 2]) for one in piece])
        found[at] = model.predict_proba(part, extra[at])
    np.testing.assert_allclose(found, chance, atol=1e-5)


class Unread:
    """A label that nobody may look at."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("this label was read")

    __hash__ = None  # type: ignore[assignment]


def test_labels_outside_train_and_valid_are_never_read(history: History) -> None:
    """Unknown labels may be anything: permuted, missing or never to be looked at, the fit gives the same bits."""
    draw = np.random.default_rng(4)
    hidden = draw.random(len(history.sequences)) < 0.4
    masks = {"train": history.train & ~hidden, "valid": history.valid & ~hidden}
    truth = labelled(history)
    usual = learned(history, truth, **masks)
    missing = np.where(hidden, np.nan, truth)
    permuted = truth.copy()
    permuted[hidden] = draw.permutation(truth[hidden])
    poisoned = truth.astype(object)
    poisoned[hidden] = Unread()
    for fraud in (permuted, missing, poisoned):
        assert same_weights(learned(history, fraud, **masks), usual)
    seen = np.where(history.train & truth & (history.sequences.row % 2 == 0), False, truth)
    assert not same_weights(learned(history, seen, **masks), usual), "the labels of train count"


def test_events_outside_train_are_context(history: History) -> None:
    """They train nothing by themselves, but what they hold is remembered."""
    early = history.sequences.position < 10
    usual = learned(history, train=history.train & ~early)
    numeric = history.sequences.numeric.copy()
    numeric[early] += 1.0
    other = replace(history, sequences=replace(history.sequences, numeric=numeric))
    assert not same_weights(learned(other, labelled(history), train=history.train & ~early), usual)


def test_the_same_seed_gives_the_same_bits(history: History, model: Classifier, extra: Float) -> None:
    torch.manual_seed(12345)
    expected = torch.rand(3)
    torch.manual_seed(12345)
    again = learned(history, extra=extra)
    assert torch.equal(torch.rand(3), expected), "the global random state is left alone"
    assert same_weights(again, model)
    assert not same_weights(learned(history, extra=extra, seed=1), model)
    again.fit(
        history.sequences, history.numeric, history.category, labelled(history),
        train=history.train, valid=history.valid, extra=extra,
    )  # fmt: skip
    assert same_weights(again, model), "a fit of one object twice is a fit once"


def test_a_restored_model_says_the_same(model: Classifier, chance: Float, history: History, extra: Float) -> None:
    arrays = safetensors.torch.load(safetensors.torch.save(model.arrays()))
    again = Classifier(**SMALL).restore(history.numeric, history.category, arrays)
    np.testing.assert_array_equal(again.predict_proba(history.sequences, extra), chance)
    plain = learned(history, calibration="isotonic", epochs=1)  # no extra inputs, several knots
    arrays_of_plain = safetensors.torch.load(safetensors.torch.save(plain.arrays()))
    again.restore(history.numeric, history.category, arrays_of_plain)
    np.testing.assert_array_equal(again.predict_proba(history.sequences), plain.predict_proba(history.sequences))
    with pytest.raises(ArtifactError, match=r"hidden=9.*restore with"):
        Classifier(hidden=9).restore(history.numeric, history.category, arrays)
    with pytest.raises(ArtifactError, match="weight_ih"):
        Classifier(**SMALL).restore(history.numeric[1:], history.category, arrays)


def test_what_is_known_besides_is_learned_from(history: History, extra: Float) -> None:
    """Frauds that nothing but the extra input tells, in the present and in the missing ones."""
    fraud = np.isnan(extra[:, 1]) | (np.nan_to_num(extra[:, 1]) > 20)
    found = learned(history, fraud, extra=extra, epochs=8, learning_rate=0.04)
    blind = learned(history, fraud, epochs=8, learning_rate=0.04)
    told, guessed = found.predict_proba(history.sequences, extra), blind.predict_proba(history.sequences)
    later = history.valid
    assert average_precision(told[later], fraud[later]) > 0.65
    assert average_precision(guessed[later], fraud[later]) < 0.4


def test_extra_inputs_are_put_on_a_common_scale() -> None:
    values = np.array([[1e6, 5.0, np.nan], [3e6, 5.0, np.nan], [np.nan, 7.0, 1.0], [9e9, np.nan, 2.0]])
    table = Extra.of(values, np.array([True, True, True, False])).table(values, torch.device("cpu")).numpy()
    assert table.shape == (4, 6)
    np.testing.assert_allclose(table[:2, 0], np.arcsinh([-1.0, 1.0]), rtol=1e-6)
    assert table[2, [0, 3]].tolist() == [0, 1], "missing"
    assert 5 < table[3, 0] < 15, "far out it is logarithmic"
    assert np.isfinite(table).all()
    assert Extra.of(values[:2], np.array([True, True])).scale[1:].tolist() == [1.0, 1.0], "constant, and all missing"


# --- a pretrained memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forecaster", "autoencoder"])
def test_a_pretrained_memory_is_taken_over(name: str, history: History, trained: Callable[..., SequenceModel]) -> None:
    source = trained(name, seed=5)
    before = {key: value.clone() for key, value in source.arrays().items()}
    frozen = learned(history, pretrained=source, freeze=True).arrays()
    moved = learned(history, pretrained=source).arrays()
    scratch = learned(history).arrays()
    memory = [key for key in before if key.startswith("memory.")]
    resting = learned(history, pretrained=source, learning_rate=1e-9, epochs=1).arrays()
    assert len(memory) >= 4
    for key in memory:
        assert torch.equal(frozen[f"network.{key}"], before[key]), "frozen: bit for bit"
        assert not torch.equal(moved[f"network.{key}"], before[key]), "trained further"
        assert torch.allclose(resting["network." + key.replace("memory.embedding", "event")], before[key], atol=1e-6)
    away, far = (
        (one["network.memory.lstm.weight_hh_l0"] - before["memory.lstm.weight_hh_l0"]).norm()
        for one in (moved, scratch)
    )
    assert away < 0.5 * far, "it starts from there"
    assert all(torch.equal(value, before[key]) for key, value in source.arrays().items()), "the source is not changed"


def test_a_pretrained_memory_of_other_columns_is_refused_by_name(
    history: History, trained: Callable[..., SequenceModel]
) -> None:
    source = trained("forecaster")
    given: dict[str, Any] = {"train": history.train, "valid": history.valid}
    fraud = labelled(history)
    scaled = (replace(history.numeric[0], scale=77.0), *history.numeric[1:])
    with pytest.raises(ParameterError, match=f"Forecaster was fitted on other columns.*: {scaled[0].name} differ"):
        Classifier(hidden=8, pretrained=source).fit(history.sequences, scaled, history.category, fraud, **given)
    fewer = replace(history.sequences, category=history.sequences.category[:, 1:].copy())
    with pytest.raises(ParameterError, match=f": {history.category[0].name} differ"):
        Classifier(hidden=8, pretrained=source).fit(fewer, history.numeric, history.category[1:], fraud, **given)
    with pytest.raises(ParameterError, match="hidden=8, expected 12"):
        learned(history, pretrained=source, hidden=12)
    with pytest.raises(NotFittedError, match="pretrained=Forecaster is not fitted"):
        learned(history, pretrained=replace(source))


# --- what the probabilities are worth --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stated() -> tuple[Sequences, Mask, Mask]:
    """Cards, which payments are fraud (noisy: large ones are fraud by half), and which are later ones."""
    sequences, large = spenders(900, seed=5)
    draw = np.random.default_rng(6)
    fraud = np.where(large, draw.random(len(large)) < 0.5, draw.random(len(large)) < 0.01)
    return sequences, fraud, sequences.position >= 2 * sequences.lengths[sequences.sequence] // 3


@pytest.fixture(scope="module")
def inflated(stated: tuple[Sequences, Mask, Mask]) -> Classifier:
    """A head whose weighted loss makes it cry wolf."""
    sequences, fraud, later = stated
    valid = ~later & (sequences.sequence % 4 == 0)
    model = Classifier(hidden=8, epochs=8, steps=32, positive_weight=30.0, calibration="none", device="cpu")
    return model.fit(sequences, (AMOUNT,), (), fraud, train=~later & ~valid, valid=valid)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_mends_the_probabilities(
    kind: Any, inflated: Classifier, stated: tuple[Sequences, Mask, Mask]
) -> None:
    sequences, fraud, later = stated
    raw = inflated.predict_proba(sequences)[later]
    valid = ~later & (sequences.sequence % 4 == 0)
    model = replace(inflated, calibration=kind)
    model.fit(sequences, (AMOUNT,), (), fraud, train=~later & ~valid, valid=valid)
    chance = model.predict_proba(sequences)[later]
    truth = fraud[later]
    assert abs(raw.mean() - truth.mean()) > 0.1, "the head is deliberately mis-scaled"
    assert abs(chance.mean() - truth.mean()) < 0.012
    assert brier(chance, truth) < 0.7 * brier(raw, truth)
    assert expected_calibration_error(chance, truth) < 0.3 * expected_calibration_error(raw, truth)
    logit = model.decision_function(sequences)[later]
    np.testing.assert_array_equal(logit, inflated.decision_function(sequences)[later])
    assert np.argsort(chance, kind="stable").tolist() == np.argsort(logit, kind="stable").tolist()


def test_a_plain_loss_needs_little_calibration(by_amount: Classifier) -> None:
    sequences, fraud = spenders(300, seed=9)
    assert by_amount.predict_proba(sequences).mean() == pytest.approx(fraud.mean(), abs=0.012)


# --- the loop, and what is refused -----------------------------------------------------------------------------------


class Recorder:
    """Progress that remembers, and may break off in an epoch."""

    def __init__(self, break_in: int | None = None) -> None:
        self.break_in = break_in
        self.epochs: list[tuple[int, int, float, float]] = []
        self.said: list[str] = []
        self.done = 0

    def events(self, done: int, total: int, loss: float) -> None:
        assert 0 < done <= total
        assert np.isfinite(loss)
        self.done += done
        if self.break_in == len(self.epochs) + 1:
            raise KeyboardInterrupt

    def epoch(self, epoch: int, epochs: int, train_loss: float, valid_loss: float) -> None:
        self.epochs.append((epoch, epochs, train_loss, valid_loss))

    def say(self, text: str) -> None:
        self.said.append(text)


def test_the_best_epoch_on_later_events_is_kept(history: History) -> None:
    noise = np.random.default_rng(0).random(len(history.sequences)) < 0.3
    told = Recorder()
    model = learned(history, noise, epochs=6, progress=told)
    assert model.run_ is not None
    losses = [valid for *_, valid in told.epochs]
    assert [epoch for epoch, *_ in told.epochs] == list(range(1, 7))
    assert model.run_.best_epoch == 1 + int(np.argmin(losses))
    assert losses[-1] > min(losses), "noise is learned by heart"
    logit = model.decision_function(history.sequences)[history.valid]
    own = np.where(noise[history.valid], logit, -logit)
    assert np.logaddexp(0, -own).mean() == pytest.approx(min(losses), rel=1e-4)
    stopped = Recorder()
    learned(history, noise, epochs=6, patience=1, progress=stopped)
    worse = next(at for at in range(1, 6) if losses[at] >= min(losses[:at]))
    assert len(stopped.epochs) == worse + 1


def test_breaking_off_keeps_the_best_epoch(history: History) -> None:
    told = Recorder(break_in=3)
    model = learned(history, progress=told)
    assert model.run_ is not None
    assert model.run_.interrupted
    assert "keeping epoch" in told.said[0]
    assert np.isfinite(model.predict_proba(history.sequences)).all()
    with pytest.raises(KeyboardInterrupt):
        learned(history, progress=Recorder(break_in=1))


def test_a_fit_that_breaks_off_leaves_no_half_of_a_model(history: History) -> None:
    model = learned(history, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            history.sequences, history.numeric, history.category, labelled(history),
            train=history.train, valid=history.valid, progress=Recorder(break_in=1),
        )  # fmt: skip
    with pytest.raises(NotFittedError, match="Classifier: not fitted"):
        model.predict_proba(history.sequences)


def test_the_weights_of_the_loss_do_what_they_say(history: History) -> None:
    """Of what no model can be sure of: half of the large payments are fraud, and a tenth of the others."""
    share = np.where(labelled(history), 0.5, 0.1)
    fraud = np.random.default_rng(0).random(len(share)) < share
    common = {"fraud": fraud, "calibration": "none", "epochs": 2}
    plain, heavy, focal = (
        learned(history, **common, **more).predict_proba(history.sequences)
        for more in ({}, {"positive_weight": "balanced"}, {"gamma": 2.0})
    )
    number = (~fraud & history.train).sum() / (fraud & history.train).sum()
    same = learned(history, **common, positive_weight=float(number)).predict_proba(history.sequences)
    np.testing.assert_array_equal(same, heavy)
    assert heavy.mean() > plain.mean() + 0.05
    assert np.abs(focal - 0.5).mean() < np.abs(plain - 0.5).mean(), "a focal loss is less sure of itself"


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("hidden", 0, "hidden must be at least 1, got 0"),
        ("epochs", 0, "epochs must be at least 1"),
        ("dropout", 1.0, "dropout must be below 1"),
        ("gamma", -1.0, "gamma must be at least 0"),
        ("learning_rate", 0.0, "learning_rate must be above 0"),
        ("positive_weight", "much", "positive_weight must be above 0, got 'much'"),
        ("positive_weight", -2.0, "positive_weight must be above 0"),
        ("calibration", "beta", "calibration must be one of isotonic, platt, none, got 'beta'"),
        ("freeze", True, "freeze=True needs a pretrained model"),
    ],
)
def test_parameters_out_of_range_are_refused(history: History, parameter: str, value: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=f"Classifier: {message}"):
        learned(history, **{parameter: value})


def test_labels_that_teach_nothing_are_refused(history: History) -> None:
    fraud = labelled(history)
    with pytest.raises(InputError, match="train must hold frauds and genuine events, got 0 frauds among"):
        learned(history, fraud & ~history.train)
    with pytest.raises(InputError, match=r'valid must hold.*or calibration="none"'):
        learned(history, fraud & ~history.valid)
    learned(history, fraud & ~history.valid, calibration="none", epochs=1)
    with pytest.raises(InputError, match=r"valid must hold.*among 0 events"):
        learned(history, fraud, valid=np.zeros(len(fraud), dtype=bool), calibration="none")
    with pytest.raises(ParameterError, match=r"share [0-9]+ events"):
        learned(history, fraud, valid=history.train)
    with pytest.raises(InputError, match="labels of train and valid must be 0 or 1"):
        learned(history, np.where(history.train, 2, 0))
    with pytest.raises(InputError, match=r"one label for each of [0-9]+ events, got shape \(3,\)"):
        learned(history, fraud[:3])
    with pytest.raises(InputError, match="train must be bool of shape"):
        learned(history, fraud, train=history.train.astype(np.int64))


def test_inputs_of_other_shapes_are_refused(model: Classifier, history: History, extra: Float) -> None:
    with pytest.raises(InputError, match=r"extra must have shape \([0-9]+, 2\) as in fit, got \([0-9]+, 0\)"):
        model.predict_proba(history.sequences)
    with pytest.raises(InputError, match="extra must have shape"):
        learned(history, extra=extra[:5])
    with pytest.raises(InputError, match="extra must be finite, or NaN"):
        learned(history, extra=np.where(np.isnan(extra), np.inf, extra))
    with pytest.raises(InputError, match=r"expected sequences of [0-9]+ numeric .* got [0-9]+ and 0"):
        model.predict_proba(replace(history.sequences, category=history.sequences.category[:, :0].copy()), extra)
    with pytest.raises(InputError, match="mask must be bool"):
        model.predict_proba(history.sequences, extra, np.zeros(3, dtype=bool))


def test_parameters_are_kept_as_given(model: Classifier) -> None:
    assert (model.hidden, model.epochs, model.steps, model.seed) == (8, 4, 32, 0)
    assert Classifier(**SMALL) == model
