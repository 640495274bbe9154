"""The network that learns from labels: what its head reads of an event, and gates that start with a long memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from conftest import History

from anomaly.models.base import averaged
from anomaly.models.batches import Events, Table
from anomaly.models.labelled import LabelledNetwork, Sizes, all_outputs, keep_long

SIZES = Sizes(backbone="lstm", hidden=6, reach=0, width=8, members=3, dropout=0.2, outputs=2, extra=1, prior=False)


def made(history: History) -> tuple[LabelledNetwork, Table, torch.Tensor]:
    torch.manual_seed(0)
    network = LabelledNetwork(history.numeric, history.category, SIZES)
    table = Table.of(history.sequences, 0.0, averaged(history.numeric), torch.device("cpu"))
    extra = torch.zeros(len(history.sequences), 2)
    extra[::2] = torch.tensor([0.0, 1.0])  # missing
    extra[1::2, 0] = 3.0
    return network, table, extra


def test_numbers_stand_as_they_are_beside_how_far_they_are_from_the_usual(history: History) -> None:
    network, table, extra = made(history)
    at = torch.arange(40)
    events = Events(table, at)
    numbers = network.numbers(events, extra[at])
    columns, usual = len(history.numeric), averaged(history.numeric)
    assert numbers.shape == (40, columns + 2 * len(usual) + 1)
    np.testing.assert_array_equal(numbers[:, :columns].numpy(), history.sequences.numeric[:40])
    mean, spread = events.statistics[:, 1], events.statistics[:, 2]
    less = events.numeric[:, usual[0]] - mean
    torch.testing.assert_close(numbers[:, columns], less, equal_nan=True)
    torch.testing.assert_close(numbers[:, columns + len(usual)], less / spread, equal_nan=True)
    assert torch.isnan(numbers[::2, -1]).all()
    assert (numbers[1::2, -1] == 3.0).all()


def test_what_is_said_is_the_mean_of_the_members(history: History) -> None:
    network, table, extra = made(history)
    network.eval()
    at, memory = torch.arange(9), torch.randn(9, 6)
    events = Events(table, at)
    each = network.each(memory, events, extra[at])
    assert each.shape == (3, 9, 2)
    torch.testing.assert_close(network.outputs(memory, events, extra[at]), each.mean(dim=0))


def test_outputs_of_chosen_events_are_those_of_all(history: History) -> None:
    network, table, extra = made(history)
    with torch.no_grad():
        every = all_outputs(network, table, extra, history.sequences, None)
        mask = np.arange(len(every)) % 7 == 0
        some = all_outputs(network, table, extra, history.sequences, mask)
    np.testing.assert_allclose(some[mask], every[mask], atol=1e-5)
    assert np.isnan(some[~mask]).all()


def test_gates_start_with_memories_up_to_the_reach(history: History) -> None:
    network, *_ = made(history)
    before = network.memory.get_submodule("lstm").get_parameter("weight_ih_l0").detach().clone()
    keep_long(network.memory, 200)
    gates = dict(network.memory.get_submodule("lstm").named_parameters())
    closed, kept = gates["bias_ih_l0"][:6], gates["bias_ih_l0"][6:12]
    assert torch.equal(closed, -kept)
    assert ((kept >= 0) & (kept <= np.log(199))).all()
    assert gates["bias_hh_l0"].abs().sum() == 0
    torch.testing.assert_close(gates["weight_ih_l0"], before * 4)


def test_a_prior_is_a_line_to_which_the_head_adds_nothing_at_first(history: History) -> None:
    torch.manual_seed(0)
    network = LabelledNetwork(history.numeric, history.category, replace(SIZES, outputs=1, prior=True)).eval()
    _, table, extra = made(history)
    at, memory = torch.arange(9), torch.randn(9, 6)
    prior = torch.randn(len(extra), 1)
    events, known = Events(table, at), torch.cat([extra, prior], dim=1)[at]
    network.draw_line(2.0, -1.0)
    with torch.no_grad():
        network.head.bias.fill_(0.5)
    torch.testing.assert_close(network.outputs(memory, events, known), 2.0 * prior[at] - 1.0 + 0.5)
    assert network.numbers(events, known).shape == made(history)[0].numbers(events, extra[at]).shape
