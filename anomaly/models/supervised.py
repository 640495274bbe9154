"""Supervised heads: what a classifier and a regressor share, for the cases where labels exist.

One backbone reads whole histories once, and each event gets its outputs from the memory before it, the event itself,
what the remembered events average to, and what else is known of it: many-to-many, causal, N events for N recurrent
steps. What is said of a whole sequence is said at its last event, with a bidirectional LSTM also from its other end.
The unsupervised path uses nothing of this module; this one may start from the memory that a forecaster or an
autoencoder has learned without labels. The network is in `labelled`, its loop in `learning`.

Letters used in shapes: N events, S sequences, E extra inputs, H hidden units, O outputs, n events of one step of work.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError
from anomaly.features import Column
from anomaly.models.backbones import BOTH_ENDS, check_backbone
from anomaly.models.base import SequenceModel, averaged
from anomaly.models.batches import Table
from anomaly.models.labelled import Extra, LabelledNetwork, Sizes, all_outputs
from anomaly.models.learning import Loop, Remembered, Task
from anomaly.models.objectives import Level, Objective
from anomaly.models.probabilities import prior_line
from anomaly.models.training import Mask, Progress, Run, choose_device
from anomaly.sequences import Sequences

Float = NDArray[np.float64]

NETWORK = "network."  # begins the names of the network's arrays


@dataclass(kw_only=True)
class Supervised:
    """A backbone over whole histories and a small head that learns from labels; see `Classifier` and `Regressor`.

    Parameters are kept as given; learned names end in ``_``.

    Parameters
    ----------
    level : {"event", "sequence"}
        Of what something is said: of each event given its history, or of each sequence as a whole (at its last event).
        Targets, masks and results then have one entry for each of S sequences instead of N events.
    backbone : {"lstm", "gru", "rnn", "conv", "transformer", "none", "bilstm"}
        What remembers; see `anomaly.models.backbones`. ``bilstm`` is for ``level="sequence"`` only.
    hidden : int
        Numbers in the memory.
    width : int
        Units in each of the two hidden layers of the head.
    members : int
        Heads that learn side by side and are averaged; they share the memory.
    epochs : int, optional
        Passes over the labelled history; by default enough for about 200 steps, or for 300,000 events where the memory
        is left as it is; between 4 and 60.
    patience : int, optional
        Epochs without a better validation loss before the fit stops. By default it goes through all epochs, so that
        the learning rate falls to its end; the best epoch is kept either way.
    learning_rate : float
        Of AdamW at the start; falls to a hundredth along a cosine.
    dropout : float
        Share of the head's hidden layers that is left out while training, in [0, 1).
    pretrained : Forecaster or Autoencoder, optional
        A fitted model of the same columns, `hidden` and `backbone`, whose memory the fit starts from. It is not
        changed.
    freeze : bool
        Leave that memory as it is, and train the head alone: the histories are then read once, not once an epoch.
    refit : bool
        In the end learn all anew from `train` and `valid` together, for as many epochs as were best. Probabilities are
        calibrated before that.
    batch_events : int
        Events of one step of the optimiser, about.
    steps : int
        Steps that a gradient goes back; for whole sequences it goes back up to 512.
    reach : int
        Longest memory, in steps, that the gates of an LSTM start with: 256 where a cue of a hundred events ago decides.
        0 = about one step, torch's usual start; on simulated payments, where the last few events say most, it found
        more.
    seed : int
        Same seed, same machine, same numbers.
    device : str, optional
        Where to work; chosen automatically.
    """

    level: Level = "event"
    backbone: str = "lstm"
    hidden: int = 64
    width: int = 128
    members: int = 2
    epochs: int | None = None
    patience: int | None = None
    learning_rate: float = 3e-3
    dropout: float = 0.2
    pretrained: SequenceModel | None = None
    freeze: bool = False
    refit: bool = False
    batch_events: int = 2048
    steps: int = 128
    reach: int = 0
    seed: int = 0
    device: str | None = None
    network_: LabelledNetwork | None = field(default=None, init=False, repr=False, compare=False)
    run_: Run | None = field(default=None, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Outputs of the head, O."""

    @abstractmethod
    def _targets(self, given: ArrayLike, train: Mask, valid: Mask) -> NDArray[Any]:
        """Check what is to be learned; what is behind neither mask is not read."""

    @abstractmethod
    def _objective(self, target: NDArray[Any]) -> tuple[Objective, Any]:
        """What to learn from the targets that train, and what turns targets into those of the network."""

    @abstractmethod
    def _conclude(self, output: Float, target: NDArray[Any]) -> None:
        """Learn from outputs (n, O) and targets (n,) of `valid` what the outputs mean."""

    @abstractmethod
    def _learned(self) -> Mapping[str, Any]:
        """What `_conclude` learned, by name."""

    @abstractmethod
    def _recall(self, arrays: Mapping[str, Float]) -> None:
        """Take over what `_learned` gave."""

    def fit(
        self,
        sequences: Sequences,
        numeric: Sequence[Column],
        category: Sequence[Column],
        target: ArrayLike,
        *,
        train: Mask,
        valid: Mask,
        extra: ArrayLike | None = None,
        prior: ArrayLike | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from the labels of some events, each given its whole history; returns self.

        Ctrl-C keeps the best epoch so far, as the end does. With ``level="sequence"`` read S for N in what follows,
        but for `extra`.

        Parameters
        ----------
        sequences : Sequences
            Whole histories, N events. Those outside `train` and `valid` are context only.
        numeric, category : sequence of Column
            The columns of the sequences.
        target : array, shape (N,)
            Labels or values. Only those of `train` and `valid` are read; the others may be anything.
        train : ndarray of bool, shape (N,)
            Events whose labels train. Leave out those whose label is not known.
        valid : ndarray of bool, shape (N,)
            Other labelled events, best later ones: they choose the epoch and calibrate the probabilities. Their share
            of fraud should be that of the events to come.
        extra : array, shape (N, E), optional
            What is known of each event besides its columns (scores of a detector, known past fraud of its terminal);
            it must have been known when the event happened. NaN = missing.
        prior : array, shape (N,), optional
            A score that was there before any label, higher = more likely fraud, such as a detector's -ln p. The head
            starts as a line of it, with a slope above 0, and learns what to add.
        progress : Progress, optional
            Is told how it goes.

        Raises
        ------
        InputError
            If shapes disagree, labels are none, or `train` (or `valid`, to calibrate on) lacks one of them.
        ParameterError
            If a parameter is out of its range, the masks overlap, or `pretrained` has other columns or another size.
        NotFittedError
            If `pretrained` is not fitted.
        """
        self.network_ = None  # a fit that breaks off leaves no half of a model
        self._check_parameters()
        self._check_columns(sequences, numeric, category)
        size = len(sequences) if self.level == "event" else len(sequences.entity)
        train, valid = (self._mask(name, mask, size) for name, mask in (("train", train), ("valid", valid)))
        shared, units = int((train & valid).sum()), f"{self.level}s"
        if shared:
            raise ParameterError(f"{self._who}: train and valid share {shared} {units}; give each to one of them")
        if np.shape(target) != (size,):
            raise InputError(
                f"{self._who}: {self._what} must be one label for each of {size} {units}, got shape {np.shape(target)}"
            )
        wanted = self._targets(target, train, valid)
        values, known = self._extra("fit", sequences, extra), self._prior("fit", size, prior)
        self.numeric_, self.category_ = tuple(numeric), tuple(category)

        kept: list[Remembered] = []  # a memory that is left as it is gets read once

        def learned(train: Mask, epochs: int | None = None) -> tuple[LabelledNetwork, Run]:
            objective, scaled = self._objective(wanted[train])
            label, trained, held = (self._by_event(sequences, one) for one in (scaled(wanted), train, valid))
            self.extra_ = Extra.of(values, trained)
            network = self._make(numeric, category, values.shape[1], prior=known is not None)
            if known is not None:
                network.draw_line(*prior_line(known[train], wanted[train]))
            if self.pretrained is not None:
                self._take_memory(network, self.pretrained, (*numeric, *category))
            tables = self._tables(network, sequences, values, known)
            task = Task(sequences, *tables, label, trained, held, objective)
            if self.freeze and not kept:
                kept.append(Remembered(network, task))
            run, output = Loop(self, network, task, *kept).run(progress, epochs)
            shift = math.log(objective.kept)
            with torch.no_grad():
                network.head.bias.add_(shift)
            if epochs is None:
                self._conclude(output + shift, label[held])
            return network, run

        network, self.run_ = learned(train)
        if self.refit and not self.run_.interrupted:
            network, _ = learned(train | valid, self.run_.best_epoch)
        self.network_ = network
        return self

    @torch.inference_mode()
    def decide(
        self,
        sequences: Sequences,
        extra: ArrayLike | None = None,
        mask: Mask | None = None,
        prior: ArrayLike | None = None,
    ) -> Float:
        """Outputs of the network for each event (N, O), or each sequence (S, O); NaN outside `mask`."""
        network = self._network()
        self._check_columns(sequences, self.numeric_, self.category_)
        values = self._extra("predict_proba", sequences, extra, expected=len(self.extra_.center))
        whole = self.level == "sequence"
        size = len(sequences.entity) if whole else len(sequences)
        known = self._prior("predict_proba", size, prior)
        if (known is not None) != network.prior:
            raise InputError(
                f"{self._who}.predict_proba: the fit was given {'a' if network.prior else 'no'} prior; give one to "
                "both or to neither"
            )
        chosen = None if mask is None else self._mask("mask", mask, size)
        if whole:
            chosen = self._by_event(sequences, np.ones(size, dtype=bool) if chosen is None else chosen)
        found = all_outputs(network, *self._tables(network, sequences, values, known), sequences, chosen)
        return found[sequences.offsets[1:] - 1] if whole else found

    def arrays(self) -> dict[str, Tensor]:
        """All that was learned, by name."""
        found = {NETWORK + name: value for name, value in self._network().state_dict().items()}
        learned = {f"extra.{name}": value for name, value in vars(self.extra_).items()} | dict(self._learned())
        found |= {name: torch.from_numpy(np.asarray(value)) for name, value in learned.items()}
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def restore(self, numeric: Sequence[Column], category: Sequence[Column], arrays: Mapping[str, Any]) -> Self:
        """Take over what `arrays` gave; returns self.

        Raises
        ------
        ArtifactError
            If the arrays are of other columns, another `hidden` or another `backbone`.
        """
        given = {name: torch.as_tensor(value) for name, value in arrays.items()}
        try:
            numbers = {name: value.double().numpy() for name, value in given.items() if not name.startswith(NETWORK)}
            self.extra_ = Extra(*(numbers[f"extra.{name}"] for name in ("center", "scale")))
            self._recall(numbers)
            network = self._make(numeric, category, len(self.extra_.center), prior=f"{NETWORK}line" in given)
            network.load_state_dict({k.removeprefix(NETWORK): v for k, v in given.items() if k.startswith(NETWORK)})
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"{self._who}.restore: the arrays do not fit these columns and hidden={self.hidden} ({reason}); "
                "restore with the columns and parameters of the fit"
            ) from None
        self.numeric_, self.category_ = tuple(numeric), tuple(category)
        self.network_ = network
        return self

    @property
    def _who(self) -> str:
        return type(self).__name__

    _what = "target"

    @property
    def _takes_prior(self) -> bool:
        """Whether its output is the log-odds of fraud."""
        return False

    def _make(
        self, numeric: Sequence[Column], category: Sequence[Column], extra: int, *, prior: bool
    ) -> LabelledNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            sizes = Sizes(
                backbone=self.backbone,
                hidden=self.hidden,
                reach=self.reach,
                width=self.width,
                members=self.members,
                dropout=self.dropout,
                outputs=self.outputs,
                extra=extra,
                prior=prior,
            )
            return LabelledNetwork(numeric, category, sizes).to(choose_device(self.device))

    def _take_memory(self, network: LabelledNetwork, pretrained: SequenceModel, columns: Sequence[Column]) -> None:
        """Start from the memory of a fitted model; the head's embeddings of categories start from its own, too."""
        who = f"{self._who}: pretrained={type(pretrained).__name__}"
        if pretrained.network_ is None:
            raise NotFittedError(f"{who} is not fitted yet; call its fit(...) first")
        theirs = {column.name: column for column in (*pretrained.numeric_, *pretrained.category_)}
        mine = {column.name: column for column in columns}
        if tuple(theirs.values()) != tuple(columns):
            other = [name for name in mine | theirs if theirs.get(name) != mine.get(name)] or ["their order"]
            raise ParameterError(
                f"{who} was fitted on other columns than these: {', '.join(other)} differ; encode both with one fitted "
                "Encoder"
            )
        for name in ("hidden", "backbone"):
            theirs_is, mine_is = getattr(pretrained, name), getattr(self, name)
            if theirs_is != mine_is:
                raise ParameterError(f"{who} has {name}={theirs_is}, expected {mine_is}; give both the same")
        network.memory.load_state_dict(pretrained.network_.memory.state_dict())
        network.event.load_state_dict(pretrained.network_.memory.embedding.state_dict())

    def _check_parameters(self) -> None:
        if self.level not in get_args(Level):
            raise ParameterError(f"{self._who}: level must be one of event, sequence, got {self.level!r}")
        check_backbone(self._who, self.backbone, whole=self.level == "sequence")
        least = dict.fromkeys(("hidden", "width", "members", "epochs", "patience", "batch_events", "steps"), 1)
        for name, lowest in (least | dict.fromkeys(("reach", "seed", "dropout"), 0)).items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ParameterError(f"{self._who}: {name} must be at least {lowest}, got {value!r}")
        if self.dropout >= 1:
            raise ParameterError(f"{self._who}: dropout must be below 1, got {self.dropout!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ParameterError(f"{self._who}: learning_rate must be above 0, got {self.learning_rate!r}")
        if self.freeze and self.pretrained is None:
            raise ParameterError(f"{self._who}: freeze=True needs a pretrained model whose memory is kept; give one")
        if self.reach and self.backbone not in ("lstm", BOTH_ENDS):
            raise ParameterError(
                f"{self._who}: reach sets the gates of an LSTM, and backbone={self.backbone!r} has none; leave it at 0"
            )

    def _by_event(self, sequences: Sequences, values: NDArray[Any]) -> NDArray[Any]:
        """Values by event: what is said of a whole sequence (S,) stands at its last event, 0 elsewhere."""
        if self.level == "event":
            return values
        found = np.zeros(len(sequences), dtype=values.dtype)
        found[sequences.offsets[1:] - 1] = values
        return found

    def _tables(
        self, network: LabelledNetwork, sequences: Sequences, values: Float, prior: Float | None
    ) -> tuple[Table, Tensor]:
        """Tensors of the sequences, and of what is known besides; the memory holds every earlier event."""
        device = next(network.parameters()).device
        known = self.extra_.table(values, device)
        if prior is not None:
            last = torch.from_numpy(self._by_event(sequences, prior).astype(np.float32)).to(device)
            known = torch.cat([known, last[:, None]], dim=1)
        return Table.of(sequences, 0.0, averaged(self.numeric_), device), known

    def _network(self) -> LabelledNetwork:
        if self.network_ is None:
            raise NotFittedError(f"{self._who}: not fitted yet; call fit(...) or restore(...) first")
        return self.network_

    def _check_columns(self, sequences: Sequences, numeric: Sequence[Column], category: Sequence[Column]) -> None:
        got, expected = (sequences.numeric.shape[1], sequences.category.shape[1]), (len(numeric), len(category))
        if got != expected:
            raise InputError(
                f"{self._who}: expected sequences of {expected[0]} numeric and {expected[1]} category columns, got "
                f"{got[0]} and {got[1]}; encode them with the Encoder of the fit"
            )

    def _mask(self, name: str, mask: Mask, n: int) -> Mask:
        got = np.asarray(mask)
        if got.shape != (n,) or got.dtype != bool:
            raise InputError(f"{self._who}: {name} must be bool of shape ({n},), got {got.dtype} of shape {got.shape}")
        return got

    def _extra(self, verb: str, sequences: Sequences, extra: ArrayLike | None, expected: int | None = None) -> Float:
        """Extra inputs as (N, E) float64; E = 0 if there are none."""
        n = len(sequences)
        values = np.zeros((n, 0)) if extra is None else np.asarray(extra, dtype=np.float64)
        width = values.shape[1] if values.ndim == 2 else None
        if width is None or len(values) != n or (expected is not None and width != expected):
            wanted = f"({n}, {'E' if expected is None else expected})"
            raise InputError(f"{self._who}.{verb}: extra must have shape {wanted} as in fit, got {values.shape}")
        if np.isinf(values).any():
            raise InputError(f"{self._who}.{verb}: extra must be finite, or NaN where missing; got infinite values")
        return values

    def _prior(self, verb: str, size: int, prior: ArrayLike | None) -> Float | None:
        """The prior as (N,) float64, or (S,)."""
        if prior is None:
            return None
        if not self._takes_prior:
            raise ParameterError(
                f"{self._who}: a prior is a score of fraud, for a Classifier of two classes; leave it out"
            )
        values = np.asarray(prior, dtype=np.float64)
        if values.shape != (size,) or not np.isfinite(values).all():
            raise InputError(
                f"{self._who}.{verb}: prior must be {size} finite numbers, one for each {self.level}, got shape "
                f"{values.shape} with {int((~np.isfinite(values)).sum())} that are not finite"
            )
        return values
