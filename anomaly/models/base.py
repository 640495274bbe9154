"""The Model protocol, what the sequence models share, and `check_model`, the contract as a function."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.errors import NotFittedError, ParameterError
from anomaly.features import Column
from anomaly.models import gathers
from anomaly.models.backbones import check_backbone
from anomaly.models.batches import Table
from anomaly.models.heads import FieldSet, Prediction, Works
from anomaly.models.training import Mask, Network, Progress, Run, Trainer, Training, autocast, choose_device, scan
from anomaly.sequences import Sequences

_PREPARING = threading.Lock()  # weights are drawn from torch's one generator


@dataclass(kw_only=True)
class SequenceModel:
    """A network over whole histories that states how strange each field of each event is.

    Parameters are kept as given; learned names end in ``_``.

    Parameters
    ----------
    hidden : int
        Numbers in the memory.
    quarantine : float
        Seconds that an event waits before it enters the memory: 0 = a plain next-step model.
    backbone : {"lstm", "gru", "rnn", "conv", "transformer", "none"}
        What remembers; see `anomaly.models.backbones`.
    training : Training
        How to train.
    seed : int
        Same seed, same machine, same numbers.
    device : str, optional
        Where to work; chosen automatically.
    """

    hidden: int = 64
    quarantine: float = 0.0
    backbone: str = "lstm"
    training: Training = field(default_factory=Training)
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        self.network_: Network | None = None
        self.run_: Run | None = None
        self._dropped: Mask | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name, for columns and files."""

    @abstractmethod
    def _make(self, numeric: Sequence[Column], category: Sequence[Column]) -> Network:
        """Return an untrained network."""

    def prepare(self, numeric: Sequence[Column], category: Sequence[Column]) -> None:
        """Make the untrained network for these columns."""
        self._check()
        self.numeric_, self.category_ = tuple(numeric), tuple(category)
        with _PREPARING, torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.network_ = self._make(numeric, category).to(choose_device(self.device))

    def fit(
        self,
        sequences: Sequences,
        numeric: Sequence[Column],
        category: Sequence[Column],
        *,
        train: Mask,
        valid: Mask,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
        table: Table | None = None,
    ) -> SequenceModel:
        """Train on the events of `train`, stop on those of `valid` (both (N,) bool); returns self.

        `table` is that of another model for the same sequences, columns and quarantine, if there is one.
        """
        self.prepare(numeric, category)
        trainer = Trainer(
            self._network(),
            sequences,
            self.table(sequences) if table is None else table,
            train=train,
            valid=valid,
            training=self.training,
            seed=self.seed,
            settings=repr(replace(self, device=None)),
        )
        self.run_ = trainer.fit(progress=progress, checkpoint=checkpoint, resume=resume)
        self._dropped = trainer.weight == 0
        return self

    def kept(self, train: Mask) -> Mask:
        """The events of `train` (N,) that the robust weights had not dropped at the end of `fit`."""
        return train if self._dropped is None else train & ~self._dropped

    def _check(self) -> None:
        check_backbone(type(self).__name__, self.backbone)
        for name, least in (("hidden", 1), ("quarantine", 0), ("seed", 0)):
            value = getattr(self, name)
            if not least <= value < float("inf"):
                raise ParameterError(f"{type(self).__name__}: {name} must be at least {least}, got {value!r}")

    @property
    def fields(self) -> FieldSet:
        """The K scored fields, in the order of the columns of `errors`."""
        return self._network().fields

    @property
    def device_(self) -> torch.device:
        """Where the network is."""
        return next(self._network().parameters()).device

    def table(self, sequences: Sequences) -> Table:
        """Tensors of `sequences` for this model, on its device."""
        return Table.of(sequences, self.quarantine, averaged(self.numeric_), self.device_)

    @torch.inference_mode()
    def errors(self, sequences: Sequences, mask: Mask | None = None, table: Table | None = None) -> NDArray[np.float32]:
        """-ln of the tail probability of each field of each event, shape (N, K).

        Higher = stranger, >= 0; NaN = no statement (a missing field, or an event outside `mask`).
        One pass: N events cost N recurrent steps. `table` as in `fit`.
        """
        network = self._network()
        table = self.table(sequences) if table is None else table
        result = np.full((len(sequences), len(self.fields)), np.nan, dtype=np.float32)
        works: Works = []
        for events, recalled in scan(network, table, sequences, mask):
            with autocast(recalled.device):
                errors = network.ask(recalled, events).errors(events, works)
            gathers.put(errors.t().contiguous().cpu().numpy(), events.index.cpu().numpy(), result)
        return result

    @torch.inference_mode()
    def predictions(self, sequences: Sequences, mask: Mask) -> tuple[NDArray[np.int64], Prediction]:
        """Predictive distributions of the chosen events: their indices (n,), rising, and the distributions."""
        network = self._network()
        found = [
            (events.index, network.predict(recalled, events))
            for events, recalled in scan(network, self.table(sequences), sequences, mask)
        ]
        index = torch.cat([index for index, _ in found]).cpu()
        order = torch.argsort(index)
        numbers = torch.cat([prediction.numbers for _, prediction in found]).cpu()[order]
        categories = torch.cat([prediction.categories for _, prediction in found]).cpu()[order]
        return index[order].numpy(), Prediction(self.fields, numbers, categories)

    def arrays(self) -> dict[str, Tensor]:
        """Learned weights by name."""
        return {name: value.detach().cpu().contiguous() for name, value in self._network().state_dict().items()}

    def restore(
        self, numeric: Sequence[Column], category: Sequence[Column], arrays: Mapping[str, Any]
    ) -> SequenceModel:
        """Take over weights that `arrays` gave; returns self."""
        self.prepare(numeric, category)
        self._network().load_state_dict({name: torch.as_tensor(value) for name, value in arrays.items()})
        return self

    def _network(self) -> Network:
        if self.network_ is None:
            raise NotFittedError(f"{type(self).__name__}: not fitted yet; call fit(...) or load a saved detector")
        return self.network_


def averaged(numeric: Sequence[Column]) -> list[int]:
    """Numeric columns whose remembered averages the heads see: the scored ones."""
    return [index for index, column in enumerate(numeric) if column.scored]


def statistics_width(numeric: Sequence[Column]) -> int:
    """Columns of `Table.statistics`."""
    return 1 + 2 * len(averaged(numeric))
