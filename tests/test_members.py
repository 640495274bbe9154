"""Members: each is a perceptron of its own, and the mean of them is what is said."""

from __future__ import annotations

import torch
from torch.nn import functional as fn

from anomaly.models.members import Members


def test_each_member_is_a_perceptron_of_two_hidden_layers() -> None:
    torch.manual_seed(0)
    members, inputs = Members(3, inputs=5, width=7, outputs=2, dropout=0.5).eval(), torch.randn(11, 5)
    said = members(inputs)
    assert said.shape == (3, 11, 2)
    for one in range(3):
        x = inputs
        for number, (weight, bias) in enumerate(zip(members.weights, members.biases, strict=True)):
            x = x @ weight[one] + bias[one]
            x = fn.silu(x) if number < 2 else x
        torch.testing.assert_close(said[one], x)
    assert not torch.allclose(said[0], said[1]), "each starts elsewhere"
    assert members.bias.shape == (3, 1, 2)


def test_units_are_left_out_while_training_alone() -> None:
    members, inputs = Members(2, inputs=5, width=50, outputs=1, dropout=0.5), torch.randn(4, 5)
    assert not torch.equal(members(inputs), members(inputs))
    members.eval()
    assert torch.equal(members(inputs), members(inputs))


def test_no_member_learns_from_anothers_error() -> None:
    members = Members(2, inputs=3, width=4, outputs=1, dropout=0.0)
    members(torch.randn(6, 3))[0].sum().backward()
    for weight in members.weights:
        assert weight.grad is not None
        assert weight.grad[0].abs().sum() > 0 == weight.grad[1].abs().sum()
