"""What both models promise: one statement per event and field, from that event and its past alone, however batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DAY, History
from numpy.typing import NDArray

from anomaly.errors import NotFittedError
from anomaly.models.base import SequenceModel
from anomaly.models.batches import Plan
from anomaly.models.forecaster import Forecaster
from anomaly.sequences import Sequences

Trained = Callable[..., SequenceModel]
Errors = NDArray[np.float32]

CASES = [("forecaster", 2.0), ("forecaster", 0.0), ("forecaster", 60.0), ("autoencoder", 2.0), ("autoencoder", 0.0)]


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}, {days:g} days" for name, days in CASES])
def model(request: pytest.FixtureRequest, trained: Trained) -> SequenceModel:
    """Each model with a quarantine of some days, of none, and of longer than there are data."""
    name, days = request.param
    return trained(name, days=days)


@pytest.fixture(scope="module")
def errors(model: SequenceModel, history: History) -> Errors:
    return model.errors(history.sequences)


def close(a: Errors, b: Errors) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def with_numbers(sequences: Sequences, where: Any, add: float = 1.0) -> Sequences:
    numeric = sequences.numeric.copy()
    numeric[where] += add
    category = sequences.category.copy()
    category[where] = 2
    return replace(sequences, numeric=numeric, category=category)


def test_there_is_an_error_for_every_event_and_field(model: SequenceModel, errors: Errors, history: History) -> None:
    assert errors.shape == (len(history.sequences), len(model.fields))
    assert errors.dtype == np.float32
    assert (np.nan_to_num(errors) >= 0).all()
    columns = {column.name: at for at, column in enumerate((*history.numeric, *history.category))}
    for at, column in enumerate(model.fields.columns):
        if column.is_category:
            index = columns[column.name] - len(history.numeric)
            missing = history.sequences.category[:, index] == 1
        else:
            missing = np.isnan(history.sequences.numeric[:, columns[column.raw_name]])
        np.testing.assert_array_equal(np.isnan(errors[:, at]), missing, err_msg=column.name)


def test_the_first_event_of_an_entity_is_judged_like_any_other(errors: Errors, history: History) -> None:
    """Peers fill the first window with zeros, the threshold or the first score."""
    first = errors[history.sequences.offsets[:-1]]
    stated = ~np.isnan(first).all(axis=0)
    assert stated.sum() >= errors.shape[1] - 5, "gap, distance and speed (twice) need a previous event"
    assert (np.nanstd(first[:, stated], axis=0) > 0).sum() >= stated.sum() - 4


def test_a_sequence_alone_gets_the_errors_it_has_among_others(
    model: SequenceModel, errors: Errors, history: History
) -> None:
    sequences = history.sequences
    for number in (0, 7, len(sequences.entity) - 1):
        part = slice(sequences.offsets[number], sequences.offsets[number + 1])
        close(model.errors(sequences.take(np.array([number]))), errors[part])


def test_the_order_of_the_sequences_does_not_matter(model: SequenceModel, errors: Errors, history: History) -> None:
    order = np.random.default_rng(0).permutation(len(history.sequences.entity))
    mixed = history.sequences.take(order)
    found = np.empty_like(errors)
    found[mixed.row] = model.errors(mixed)
    close(found[history.sequences.row], errors)


@pytest.mark.parametrize(("events", "steps"), [(1, 1), (64, 3), (10**9, 10**9), (300, 7)])
def test_the_size_of_batches_and_chunks_does_not_matter(
    model: SequenceModel, errors: Errors, history: History, monkeypatch: pytest.MonkeyPatch, events: int, steps: int
) -> None:
    usual = Plan.of.__func__  # type: ignore[attr-defined]

    def of(cls: type[Plan], /, offsets: Any, **more: Any) -> Plan:
        plan: Plan = usual(cls, offsets, **(more | {"events": events, "steps": steps}))
        return plan

    monkeypatch.setattr(Plan, "of", classmethod(of))
    # One event after the other takes its time: a part of the entities will do.
    few = history.sequences.take(np.arange(2 if steps == 1 else len(history.sequences.entity)))
    close(model.errors(few), errors[: len(few)])


def test_a_giant_beside_dwarfs_changes_none_of_them(trained: Trained, history: History) -> None:
    """An entity of 3,000 events in one batch with entities of one."""
    sequences = history.sequences
    pick = np.concatenate([np.arange(3000) % len(sequences), sequences.offsets[:-1]])
    dwarfs = len(sequences.offsets) - 1
    both = Sequences(
        entity=np.array(["giant", *(f"dwarf {at}" for at in range(dwarfs))], dtype=object),
        offsets=np.concatenate([[0], 3000 + np.arange(dwarfs + 1)]),
        time=np.concatenate([np.arange(3000) * 600.0, np.full(dwarfs, 5.0)]),
        numeric=sequences.numeric[pick],
        category=sequences.category[pick],
        row=np.arange(len(pick)),
    )
    for name in ("forecaster", "autoencoder"):
        model = trained(name)
        together = model.errors(both)
        close(model.errors(both.take(np.array([0]))), together[:3000])
        close(model.errors(both.take(np.arange(1, dwarfs + 1))), together[3000:])


def test_a_mask_selects_what_is_said_and_changes_nothing_of_it(
    model: SequenceModel, errors: Errors, history: History
) -> None:
    draw = np.random.default_rng(1)
    for mask in (history.valid, draw.random(len(history.sequences)) < 0.1):
        found = model.errors(history.sequences, mask)
        close(found[mask], errors[mask])
        assert np.isnan(found[~mask]).all()


def test_later_events_change_nothing_earlier(model: SequenceModel, errors: Errors, history: History) -> None:
    sequences = history.sequences
    late = sequences.position >= sequences.lengths[sequences.sequence] // 2
    close(model.errors(with_numbers(sequences, late))[~late], errors[~late])


def test_other_entities_change_nothing(model: SequenceModel, errors: Errors, history: History) -> None:
    others = history.sequences.sequence != 3
    close(model.errors(with_numbers(history.sequences, others, add=1e4))[~others], errors[~others])


def test_an_event_changes_its_own_errors(model: SequenceModel, errors: Errors, history: History) -> None:
    middle = history.sequences.offsets[:-1] + history.sequences.lengths // 2
    changed = model.errors(with_numbers(history.sequences, middle, add=3.0))
    assert (np.nanmax(np.abs(changed[middle] - errors[middle]), axis=1) > 0.1).all()


def test_a_memory_does_not_hold_what_is_younger_than_the_quarantine(
    model: SequenceModel, errors: Errors, history: History
) -> None:
    """What happened in the last days changes nothing of what is expected; what is older does."""
    sequences = history.sequences
    wait = model.quarantine
    last = sequences.offsets[1:] - 1
    age = np.repeat(sequences.time[last], sequences.lengths) - sequences.time
    past = np.ones(len(sequences), dtype=bool)
    past[last] = False
    if wait:
        young = past & (age < wait)
        assert young.any()
        close(model.errors(with_numbers(sequences, young))[last], errors[last])
    old = past & (age >= wait)
    if old.any():
        assert np.nanmax(np.abs(model.errors(with_numbers(sequences, old, add=2.0))[last] - errors[last])) > 1e-3
    else:
        assert wait > 30 * DAY


def test_predictions_and_errors_are_of_the_same_distributions(
    model: SequenceModel, errors: Errors, history: History
) -> None:
    from anomaly.models.batches import Events

    mask = history.sequences.position % 5 == 2
    index, prediction = model.predictions(history.sequences, mask)
    assert index.tolist() == np.flatnonzero(mask).tolist()
    events = Events(model.table(history.sequences), torch.from_numpy(index))
    close(prediction.errors(events).numpy(), errors[index])


def test_scoring_changes_nothing(model: SequenceModel, errors: Errors, history: History) -> None:
    before = {name: value.clone() for name, value in model.arrays().items()}
    again = model.errors(history.sequences)
    np.testing.assert_array_equal(again, errors)
    assert all(torch.equal(value, before[name]) for name, value in model.arrays().items())


def test_a_model_that_is_not_fitted_says_so(history: History) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: Forecaster().errors(history.sequences),
        lambda: Forecaster().predictions(history.sequences, history.valid),
        lambda: Forecaster().fields,
        Forecaster().arrays,
    ]
    for attempt in attempts:
        with pytest.raises(NotFittedError, match="Forecaster: not fitted"):
            attempt()


def test_parameters_are_kept_as_given(model: SequenceModel) -> None:
    assert (model.hidden, model.seed, model.device) == (8, 0, None)
    assert type(model)(**{name: getattr(model, name) for name in ("hidden", "quarantine", "training")}) == model
