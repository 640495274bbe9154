"""Supervised heads: what a classifier and a regressor share, for the cases where labels exist.

One backbone reads whole histories once, and each event gets its outputs from the memory before it, the event itself,
what the remembered events average to, and what else is known of it: many-to-many, causal, N events for N recurrent
steps. What is said of a whole sequence is said at its last event, with a bidirectional LSTM also from its other end.
The unsupervised path uses nothing of this module; this one may start from the memory that a forecaster or an
autoencoder has learned without labels.

Letters used in shapes: N events, S sequences, E extra inputs, H hidden units, O outputs, n events of one step of work.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError
from anomaly.features import Column
from anomaly.models.backbones import BOTH_ENDS, check_backbone
from anomaly.models.base import SequenceModel, averaged, statistics_width
from anomaly.models.batches import Events, Plan, Table
from anomaly.models.cells import EventEmbedding, Memory, Reader
from anomaly.models.heads import FieldSet
from anomaly.models.objectives import Level, Objective
from anomaly.models.training import Mask, Network, Progress, Run, autocast, choose_device, scan
from anomaly.sequences import Sequences

Float = NDArray[np.float64]

ENOUGH_STEPS = 200  # of the optimiser, where the number of epochs is not given; more learn the frauds by heart
LONGEST_ROW = 512  # longer histories train in pieces, side by side; for whole sequences a gradient goes so far back
CLIP_NORM = 1.0  # largest norm of the gradient
NETWORK = "network."  # begins the names of the network's arrays


class SupervisedNetwork(Network):
    """Memory, and a head of two layers with O outputs; with ``bilstm`` a second memory that reads from the end."""

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column], extra: int, model: Supervised) -> None:
        super().__init__()
        hidden, both = model.hidden, model.backbone == BOTH_ENDS
        self.memory = Memory(numeric, category, hidden, "lstm" if both else model.backbone)
        self.fields = FieldSet((), ())  # it says one thing of an event, and predicts no field of it
        if model.reach:
            keep_long(self.memory, model.reach)
        self.event = EventEmbedding(numeric, category)
        inputs = hidden * (1 + both) + self.event.size + statistics_width(numeric) + 2 * extra
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, model.outputs)
        self.dropout = nn.Dropout(model.dropout)
        self.from_end = Memory(numeric, category, hidden) if both else None
        if self.from_end is not None and model.reach:
            keep_long(self.from_end, model.reach)

    def outputs(self, memory: Tensor, events: Events, extra: Tensor) -> Tensor:
        """Outputs of n events (n, O) from the memory of each (n, H), or of both ends, and what is known besides."""
        event = self.event(events.numeric, events.category)
        known = self.first(torch.cat([memory, event, events.statistics, extra], dim=1))
        output: Tensor = self.last(self.dropout(fn.silu(known)))
        return output.float()

    def with_other_end(self, memory: Tensor, index: Tensor, table: Table, offsets: NDArray[np.int64]) -> Tensor:
        """Beside the memory before the last events `index` (n,), with ``bilstm``, that of reading back to the first."""
        if self.from_end is None or not len(index):
            return memory
        number = table.sequence[index]
        borders = torch.tensor(offsets, device=index.device)
        steps = torch.arange(int((index - borders[number]).max()) + 1, device=index.device)
        at = torch.maximum(index - steps[:, None], borders[number])  # past the first event it is read on, unheeded
        output, _ = self.from_end.read(table.numeric[at], table.category[at], self.from_end.empty(len(index)))
        last = output[index - borders[number], torch.arange(len(index), device=index.device)]
        return torch.cat([memory, last], dim=1)


@dataclass(frozen=True)
class Extra:
    """What is known of events besides their columns, on a common scale.

    center, scale : (E,), mean and standard deviation over the training events.
    """

    center: Float
    scale: Float

    @classmethod
    def of(cls, values: Float, train: Mask) -> Extra:
        """Learn the scale of values (N, E) on the training events; a column that is constant or missing counts 0."""
        known = np.isfinite(values[train])
        number = np.maximum(known.sum(axis=0), 1)
        given = np.where(known, values[train], 0.0)
        center = given.sum(axis=0) / number
        scale = np.sqrt((np.where(known, given - center, 0.0) ** 2).sum(axis=0) / number)
        return cls(center, np.where(scale > 0, scale, 1.0))

    def table(self, values: Float, device: torch.device) -> Tensor:
        """(N, E) -> (N, 2 E): standardised, logarithmic far out (asinh), 0 where missing; then a flag for missing."""
        missing = np.isnan(values)
        scaled = np.arcsinh((np.where(missing, self.center, values) - self.center) / self.scale)
        return torch.from_numpy(np.concatenate([scaled, missing], axis=1).astype(np.float32)).to(device)


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
        Numbers in the memory, and in the layer of the head.
    epochs : int, optional
        Passes over the labelled history; by default enough for about 200 steps, between 4 and 60.
    patience : int, optional
        Epochs without a better validation loss before the fit stops. By default it goes through all epochs, so that
        the learning rate falls to its end; the best epoch is kept either way.
    learning_rate : float
        Of Adam at the start; falls to a hundredth along a cosine.
    dropout : float
        Share of the head's hidden layer that is left out while training, in [0, 1).
    pretrained : Forecaster or Autoencoder, optional
        A fitted model of the same columns, `hidden` and `backbone`, whose memory the fit starts from. It is not
        changed.
    freeze : bool
        Leave that memory as it is, and train the head alone: faster, but on simulated payments it found less.
    batch_events : int
        Events of one step of the optimiser, about.
    steps : int
        Steps that a gradient goes back; for whole sequences it goes back up to 512.
    reach : int
        Longest memory, in steps, that the gates of an LSTM start with: 128 where a cue of a hundred events ago decides.
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
    epochs: int | None = None
    patience: int | None = None
    learning_rate: float = 3e-3
    dropout: float = 0.2
    pretrained: SequenceModel | None = None
    freeze: bool = False
    batch_events: int = 2048
    steps: int = 128
    reach: int = 0
    seed: int = 0
    device: str | None = None
    network_: SupervisedNetwork | None = field(default=None, init=False, repr=False, compare=False)
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
    def _conclude(self, network: SupervisedNetwork, objective: Objective, output: Float, target: NDArray[Any]) -> None:
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
        objective, scaled = self._objective(wanted[train])
        values = self._extra("fit", sequences, extra)
        train, valid, label = (self._by_event(sequences, one) for one in (train, valid, scaled(wanted)))
        self.extra_ = Extra.of(values, train)
        network = self._make(numeric, category, values.shape[1])
        if self.pretrained is not None:
            self._take_memory(network, self.pretrained, (*numeric, *category))
        self.numeric_, self.category_ = tuple(numeric), tuple(category)
        task = _Task(sequences, *self._tables(network, sequences, values), label, train, valid, objective)
        self.run_, output = _Loop(self, network, task).run(progress)
        self._conclude(network, objective, output, label[valid])
        self.network_ = network
        return self

    @torch.inference_mode()
    def decide(self, sequences: Sequences, extra: ArrayLike | None = None, mask: Mask | None = None) -> Float:
        """Outputs of the network for each event (N, O), or each sequence (S, O); NaN outside `mask`."""
        network = self._network()
        self._check_columns(sequences, self.numeric_, self.category_)
        values = self._extra("predict_proba", sequences, extra, expected=len(self.extra_.center))
        whole = self.level == "sequence"
        size = len(sequences.entity) if whole else len(sequences)
        chosen = None if mask is None else self._mask("mask", mask, size)
        if whole:
            chosen = self._by_event(sequences, np.ones(size, dtype=bool) if chosen is None else chosen)
        found = _outputs(network, *self._tables(network, sequences, values), sequences, chosen)
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
            network = self._make(numeric, category, len(self.extra_.center))
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

    def _make(self, numeric: Sequence[Column], category: Sequence[Column], extra: int) -> SupervisedNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return SupervisedNetwork(numeric, category, extra, self).to(choose_device(self.device))

    def _take_memory(self, network: SupervisedNetwork, pretrained: SequenceModel, columns: Sequence[Column]) -> None:
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
        least = dict.fromkeys(("hidden", "epochs", "patience", "batch_events", "steps"), 1)
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

    def _tables(self, network: SupervisedNetwork, sequences: Sequences, values: Float) -> tuple[Table, Tensor]:
        """Tensors of the sequences, and of the extra inputs; the memory holds every earlier event."""
        device = next(network.parameters()).device
        return Table.of(sequences, 0.0, averaged(self.numeric_), device), self.extra_.table(values, device)

    def _network(self) -> SupervisedNetwork:
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


@dataclass(frozen=True)
class _Task:
    """What is to be learned: N events, their tensors, targets that are 0 where they must not be read, and masks."""

    sequences: Sequences
    table: Table
    extra: Tensor  # (N, 2 E)
    target: NDArray[Any]
    train: Mask
    valid: Mask
    objective: Objective


class _Loop:
    """Epochs of training over the rows that hold labels: seeded, clipped, the learning rate falling along a cosine."""

    def __init__(self, model: Supervised, network: SupervisedNetwork, task: _Task) -> None:
        self.model, self.network, self.task, self.objective = model, network, task, task.objective
        # Behind the last label of a sequence nothing is read.
        position = np.where(task.train, task.sequences.position + 1, 0)
        until = np.maximum.reduceat(position, task.sequences.offsets[:-1])
        whole = model.level == "sequence"  # a cut would lose the beginning
        steps, longest = (LONGEST_ROW, None) if whole else (model.steps, LONGEST_ROW)
        offsets = task.sequences.offsets
        self.plan = Plan.of(offsets, until=until, events=model.batch_events, steps=steps, longest=longest)
        self.steps = sum(-(-int(length[0]) // steps) for _, length in self.plan.groups)
        self.epochs = model.epochs or int(np.clip(ENOUGH_STEPS // self.steps, 4, 60))
        # Weight of one step, on average: each event counts the same, however many labels its chunk holds.
        self.share = self.objective.total / self.steps
        self.target, self.train = (torch.from_numpy(one).to(task.extra.device) for one in (task.target, task.train))
        network.memory.requires_grad_(not model.freeze)
        with torch.no_grad():
            network.last.bias.copy_(torch.tensor(self.objective.start))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=model.learning_rate)

    def run(self, progress: Progress | None) -> tuple[Run, Float]:
        """Train until the epochs end, patience does, or Ctrl-C; return how it went and the outputs of `valid`.

        The network holds the best epoch's weights at the end, and the outputs are theirs.
        """
        run, patience = Run(), self.model.patience or math.inf
        best, found = self.network.state_dict(), np.empty(0)
        try:
            while run.epoch < self.epochs and run.epoch - run.best_epoch < patience:
                started = time.perf_counter()
                with torch.random.fork_rng():
                    torch.manual_seed(self.model.seed * 100_003 + run.epoch + 1)
                    train_loss = self._pass(run.epoch, progress)
                output, valid_loss = self._validate()
                run.epoch += 1
                if not len(found) or valid_loss < run.best_loss:
                    run.best_loss, run.best_epoch, found = valid_loss, run.epoch, output
                    best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
                told = {"epoch": run.epoch, "train_loss": train_loss, "valid_loss": valid_loss}
                run.history.append(told | {"seconds": time.perf_counter() - started})
                if progress is not None:
                    progress.epoch(run.epoch, self.epochs, train_loss, valid_loss)
        except KeyboardInterrupt:
            if not len(found):
                raise
            run.interrupted = True
            if progress is not None:
                progress.say(f"interrupted: keeping epoch {run.best_epoch}, the best so far")
        self.network.load_state_dict(best)
        return run, found

    @torch.inference_mode()
    def _validate(self) -> tuple[Float, float]:
        """Outputs for the events of `valid`, and their mean loss."""
        task = self.task
        output = _outputs(self.network, task.table, task.extra, task.sequences, task.valid)[task.valid]
        target = torch.from_numpy(task.target[task.valid])
        return output, float(self.objective.losses(torch.from_numpy(output) + self._shift, target).mean())

    @property
    def _shift(self) -> float:
        """What the outputs lack because a part of the genuine events trains only."""
        return math.log(self.objective.kept)

    def _sample(self, epoch: int) -> Tensor:
        """Which events (N,) train in this epoch."""
        if self.objective.kept >= 1:
            return self.train
        draw = np.random.default_rng([self.model.seed, epoch, 1]).random(len(self.task.train))
        kept = torch.from_numpy(draw < self.objective.kept).to(self.train.device)
        return self.train & (kept | (self.target != 0))

    def _pass(self, epoch: int, progress: Progress | None) -> float:
        total, count, step = 0.0, 0, epoch * self.steps
        table, extra, train = self.task.table, self.task.extra, self._sample(epoch)
        self.network.train()
        for group in np.random.default_rng([self.model.seed, epoch]).permutation(len(self.plan.groups)):
            reader = Reader(self.network.memory, table)
            for chunk in self.plan.chunks(group):
                for parameters in self.optimizer.param_groups:
                    parameters["lr"] = self._learning_rate(step)
                step += 1
                with autocast(extra.device):
                    index, memory = reader.read(chunk)
                    keep = train[index]
                    chosen, memory = index[keep], memory[keep]
                    memory = self.network.with_other_end(memory, chosen, table, self.task.sequences.offsets)
                    if len(chosen):
                        output = self.network.outputs(memory, Events.pick(table, chosen), extra[chosen])
                if len(chosen):
                    summed = self.objective.losses(output, self.target[chosen]).sum()
                    self.optimizer.zero_grad(set_to_none=True)
                    (summed / self.share).backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
                    self.optimizer.step()
                    total, count = total + float(summed.detach()), count + len(chosen)
                if progress is not None:
                    progress.events(len(index), self.plan.events, total / max(1, count))
        return total / max(1, count)

    def _learning_rate(self, step: int) -> float:
        done = min(1.0, step / (self.epochs * self.steps))
        return self.model.learning_rate * (0.505 + 0.495 * math.cos(math.pi * done))


def keep_long(memory: Memory, reach: int) -> None:
    """Let the gates start with memories of 2 to `reach` steps.

    As in Tallec and Ollivier (2018): a forget bias of ln(T - 1) keeps what was read for about T steps. With the usual
    start near 0 half of it is gone after each step, and a gradient does not reach a hundred steps back.
    """
    gates = dict(memory.get_submodule("lstm").named_parameters())
    hidden = memory.hidden
    kept = torch.log(torch.empty(hidden).uniform_(1.0, max(2.0, reach - 1.0)))
    with torch.no_grad():
        gates["bias_hh_l0"].zero_()  # torch adds up two biases
        gates["bias_ih_l0"].zero_()
        gates["bias_ih_l0"][: 2 * hidden] = torch.cat([-kept, kept])  # its order: input, forget, cell, output


def _outputs(network: SupervisedNetwork, table: Table, extra: Tensor, sequences: Sequences, mask: Mask | None) -> Float:
    """Outputs for the events of `mask`, (N, O); NaN for the others."""
    found = np.full((len(sequences), network.last.out_features), np.nan)
    for events, memory, index in scan(network, table, sequences, mask):
        with autocast(memory.device):
            both = network.with_other_end(memory, index, table, sequences.offsets)
            output = network.outputs(both, events, extra[index])
        found[index.cpu().numpy()] = output.double().cpu().numpy()
    return found
