"""What a supervised head is to learn: the loss of each event, where the head starts, and which events train.

Letters used in shapes: n events, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

Mask = NDArray[np.bool_]
Weight = float | Literal["balanced"] | None
Level = Literal["event", "sequence"]


class Objective(Protocol):
    """What the loop asks of an objective."""

    @property
    def total(self) -> float:
        """Weight of all that trains in an epoch."""

    @property
    def start(self) -> list[float]:
        """Outputs of a head that knows no event yet."""

    @property
    def kept(self) -> float:
        """Share of the genuine events that train in each epoch, drawn anew."""

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each event, >= 0, (n,), from outputs (n, O) and targets (n,)."""


@dataclass(frozen=True)
class Binary:
    """Binary cross-entropy on one logit, weighted, focal if `gamma` is above 0, or on balanced samples.

    events, frauds : numbers among those that train; weight : of a fraud; kept : share of the genuine that train.
    """

    events: int
    frauds: int
    weight: float
    gamma: float
    kept: float

    @classmethod
    def of(cls, label: Mask, weight: Weight, gamma: float, genuine: float | None = None) -> Binary:
        """Count the labels (n,) of the events that train; samples keep so many `genuine` events for each fraud."""
        frauds, events = int(label.sum()), len(label)
        heavy = float(events / frauds - 1 if weight == "balanced" else weight or 1.0)
        kept = 1.0 if genuine is None else min(1.0, genuine * frauds / (events - frauds))
        return cls(events, frauds, heavy, gamma, kept)

    @property
    def total(self) -> float:
        """Weight of all that trains in an epoch, on average."""
        if self.kept < 1:
            return self.weight * self.frauds + self.kept * (self.events - self.frauds)
        return self.events + (self.weight - 1) * self.frauds

    @property
    def start(self) -> list[float]:
        """The share of frauds among what trains."""
        return [math.log(self.weight * self.frauds / (self.kept * (self.events - self.frauds)))]

    @property
    def shift(self) -> float:
        """What a logit learned on the sample lacks: ln of the share of the genuine events in it (King, Zeng 2001)."""
        return math.log(self.kept)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each event, >= 0, (n,) in nats, from logits (n, 1) and labels (n,) bool."""
        logit = output[:, 0]
        wrong = fn.softplus(torch.where(target, -logit, logit))  # -ln of the probability of the event's own label
        weight = torch.where(target, self.weight, 1.0)
        if self.gamma:
            right = fn.softplus(torch.where(target, logit, -logit))
            weight = weight * torch.exp(-self.gamma * right)
        return weight * wrong


@dataclass(frozen=True)
class Multiclass:
    """Cross-entropy over C classes, focal if `gamma` is above 0; number and weight : of each class."""

    number: tuple[int, ...]
    weight: tuple[float, ...]
    gamma: float
    kept: float = 1.0

    @classmethod
    def of(cls, label: NDArray[np.int64], classes: int, gamma: float, *, balanced: bool) -> Multiclass:
        """Count the labels (n,) of the events that train; `balanced` lets all classes weigh alike."""
        number = np.bincount(label, minlength=classes)
        weight = len(label) / (classes * number) if balanced else np.ones(classes)
        return cls(tuple(number.tolist()), tuple(weight.tolist()), gamma)

    @property
    def total(self) -> float:
        """Weight of all that trains."""
        return float(np.dot(self.number, self.weight))

    @property
    def start(self) -> list[float]:
        """The shares of the classes."""
        return [math.log(number * weight) for number, weight in zip(self.number, self.weight, strict=True)]

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each event, >= 0, (n,) in nats, from logits (n, C) and labels (n,) int64."""
        wrong = fn.cross_entropy(output, target, reduction="none")
        weight = output.new_tensor(self.weight)[target]
        if self.gamma:
            weight = weight * (-torch.expm1(-wrong)) ** self.gamma
        return weight * wrong


@dataclass(frozen=True)
class Regression:
    """Squared error of a standardised target; number : of those that train."""

    number: int
    kept: float = 1.0

    @property
    def total(self) -> float:
        """Weight of all that trains."""
        return float(self.number)

    @property
    def start(self) -> list[float]:
        """The mean."""
        return [0.0]

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Squared error of each event, (n,), from outputs (n, 1) and standardised targets (n,)."""
        return (output[:, 0] - target) ** 2
