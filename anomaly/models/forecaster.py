"""Forecaster: what will this entity do next, given what it did until now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from anomaly.features import Column
from anomaly.models.base import SequenceModel, statistics_width
from anomaly.models.batches import Events
from anomaly.models.cells import Memory
from anomaly.models.heads import Asked, StagedHeads
from anomaly.models.training import Network


class ForecasterNetwork(Network):
    """Memory and staged predictive heads."""

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column], hidden: int, backbone: str) -> None:
        super().__init__()
        self.memory = Memory(numeric, category, hidden, backbone)
        self.heads = StagedHeads(numeric, category, hidden, statistics_width(numeric), hidden)
        self.fields = self.heads.fields

    def ask(self, recalled: Tensor, events: Events) -> Asked:
        """Heads that state the fields of n events, given what is remembered before each, (n, H + Q)."""
        asked: Asked = self.heads(recalled, events)
        return asked


@dataclass(kw_only=True)
class Forecaster(SequenceModel):
    """Next-step forecaster: a causal backbone whose memory before event t predicts the fields of event t.

    With a quarantine the memory is at least that old, so that a run of fraud cannot explain itself away.
    """

    @property
    def name(self) -> str:
        """Short name, for columns and files."""
        return "forecaster"

    def _make(self, numeric: Sequence[Column], category: Sequence[Column]) -> Network:
        return ForecasterNetwork(numeric, category, self.hidden, self.backbone)
