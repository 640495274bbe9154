"""Members: perceptrons of two hidden layers side by side, whose outputs are averaged.

Each starts elsewhere and leaves out other units while training. The mean of a few is surer than one of them, at the
cost of one wider product (deep ensembles: Lakshminarayanan, Pritzel and Blundell 2017).

Letters used in shapes: M members, n events, I inputs, O outputs.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as fn


class Members(nn.Module):
    """M perceptrons that read the same inputs."""

    def __init__(self, members: int, inputs: int, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.outputs = dropout, outputs
        sizes = (inputs, width, width, outputs)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for before, after in pairwise(sizes):
            most = 1.0 / math.sqrt(before)
            self.weights.append(torch.empty(members, before, after).uniform_(-most, most))
            self.biases.append(torch.empty(members, 1, after).uniform_(-most, most))

    @property
    def bias(self) -> Tensor:
        """Of the last layer, (M, 1, O)."""
        last: Tensor = self.biases[-1]
        return last

    def silence(self) -> None:
        """Say nothing but the bias until something is learned: weights of the last layer are 0."""
        with torch.no_grad():
            self.weights[-1].zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, I) -> what each member says, (M, n, O)."""
        x = inputs.expand(len(self.bias), *inputs.shape)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if number:
                x = fn.dropout(fn.silu(x), self.dropout, self.training)
            x = torch.baddbmm(bias, x, weight)
        said: Tensor = x
        return said
