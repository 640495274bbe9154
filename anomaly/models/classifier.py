"""Classifier: the supervised head, for the cases where labels exist.

One LSTM reads whole histories once, and each event gets one logit from the memory before it, the event itself, what
the remembered events average to, and what else is known of it: many-to-many, causal, N events for N recurrent steps.
The unsupervised path uses nothing of this module; this one may start from the memory that a forecaster or an
autoencoder has learned without labels.

Letters used in shapes: N events, E extra inputs, H hidden units, n events of one step of work, k knots.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional as fn

from anomaly.errors import ArtifactError, InputError, NotFittedError, ParameterError
from anomaly.features import Column
from anomaly.models.base import SequenceModel, averaged, statistics_width
from anomaly.models.batches import Events, Plan, Table
from anomaly.models.cells import EventEmbedding, Memory, Reader
from anomaly.models.heads import FieldSet
from anomaly.models.training import Mask, Network, Progress, Run, autocast, choose_device, scan
from anomaly.sequences import Sequences

Float = NDArray[np.float64]
CalibrationKind = Literal["isotonic", "platt", "none"]

ENOUGH_STEPS = 200  # of the optimiser, where the number of epochs is not given; more learn the frauds by heart
LONGEST_ROW = 512  # longer histories train in pieces, side by side
CLIP_NORM = 1.0  # largest norm of the gradient
NETWORK = "network."  # begins the names of the network's arrays
FLATTEST = 1e-3  # least slope of a calibration: a ranking is never turned round


class ClassifierNetwork(Network):
    """LSTM memory, and a head of two layers with one logit."""

    def __init__(self, numeric: Sequence[Column], category: Sequence[Column], extra: int, model: Classifier) -> None:
        super().__init__()
        hidden = model.hidden
        self.memory = Memory(numeric, category, hidden)
        self.fields = FieldSet((), ())  # it says one thing of an event, and predicts no field of it
        if model.reach:
            keep_long(self.memory.lstm, model.reach)
        self.event = EventEmbedding(numeric, category)
        inputs = hidden + self.event.size + statistics_width(numeric) + 2 * extra
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(model.dropout)

    def logits(self, memory: Tensor, events: Events, extra: Tensor) -> Tensor:
        """Logit of fraud of n events (n,) from the memory before each (n, H), and what is known besides (n, 2 E)."""
        event = self.event(events.numeric, events.category)
        known = self.first(torch.cat([memory, event, events.statistics, extra], dim=1))
        logit: Tensor = self.last(self.dropout(fn.silu(known)))
        return logit[:, 0].float()


@dataclass(frozen=True)
class Calibration:
    """A rising map from logits to probabilities: straight between knots, and on with one slope beyond the last ones.

    It is straight on the scale of log-odds and rises everywhere, so that no two logits tie and a ranking by
    probability is that by logit (as far as float64 goes: above log-odds of 36 all probabilities are 1).

    logit : (k,) rising, what the network said; log_odds : (k,) rising, what that means; slope : above 0.
    """

    logit: Float
    log_odds: Float
    slope: float

    def __call__(self, logit: Float) -> Float:
        """Probabilities (n,) of the logits (n,); NaN stays NaN."""
        inside = np.interp(logit, self.logit, self.log_odds)
        beyond = np.maximum(logit - self.logit[-1], 0.0) + np.minimum(logit - self.logit[0], 0.0)
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-(inside + self.slope * beyond))))

    @classmethod
    def of(cls, kind: CalibrationKind, logit: Float, fraud: Mask) -> Calibration:
        """Fit the map of a kind (see `Classifier`) to logits (n,) and labels (n,), both of which must occur."""
        if kind == "none":
            return cls(np.zeros(1), np.zeros(1), 1.0)
        slope, shift = platt(logit, fraud)
        if kind == "platt":
            return cls(np.zeros(1), np.array([shift]), slope)
        return cls(*isotonic(logit, fraud), slope)


def platt(logit: Float, fraud: Mask) -> tuple[float, float]:
    """Slope (above 0) and shift of the log-odds that suit logits (n,) and labels (n,) best (Platt 1999).

    With his targets, (P + 1) / (P + 2) and 1 / (N + 2) for P frauds and N others, the slope stays finite even where
    the logits separate the two.
    """
    positives = int(fraud.sum())
    target = np.where(fraud, (positives + 1) / (positives + 2), 1 / (len(fraud) - positives + 2))
    center, spread = float(logit.mean()), float(logit.std()) or 1.0
    z = (logit - center) / spread

    def loss(parameters: Float) -> tuple[float, Float]:
        odds = parameters[0] * z + parameters[1]
        away = 1.0 / (1.0 + np.exp(-np.clip(odds, -500, 500))) - target
        value = float(np.mean(np.logaddexp(0.0, odds) - target * odds))
        return value, np.array([np.mean(away * z), np.mean(away)])

    share = target.mean()
    start = np.array([1.0, math.log(share / (1 - share))])
    bounds = [(FLATTEST * spread, None), (None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    slope = float(found[0]) / spread
    return slope, float(found[1]) - slope * center


def isotonic(logit: Float, fraud: Mask) -> tuple[Float, Float]:
    """Knots of an isotonic regression: mean logit (k,) and log-odds (k,) of each block, both rising.

    The regression itself is a staircase (Zadrozny and Elkan 2002): all events of a block would tie, the strangest ones
    first of all. Here each block is one knot, to be joined by straight lines. A pseudo-event of the common fraud share
    in each block keeps the log-odds finite; where that upsets the order, blocks are merged once more.
    """
    z, which = np.unique(logit, return_inverse=True)  # events of one logit stay together
    weight = np.bincount(which).astype(np.float64)
    share = float(fraud.mean())
    values = np.bincount(which, weights=fraud) / weight
    for pseudo in (0.0, 1.0):
        values = (values * weight + pseudo * share) / (weight + pseudo)
        blocks = optimize.isotonic_regression(values, weights=weight + pseudo).blocks[:-1]
        total = np.add.reduceat(weight, blocks)
        z = np.add.reduceat(z * weight, blocks) / total
        values = np.add.reduceat(values * (weight + pseudo), blocks) / np.add.reduceat(weight + pseudo, blocks)
        weight = total
    return z, np.log(values / (1 - values))


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
class Classifier:
    """Probability that an event is fraud, learned from labels: an LSTM over whole histories and a small head.

    Parameters are kept as given; learned names end in ``_``.

    Parameters
    ----------
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
    positive_weight : float, "balanced" or None
        What a fraud counts for in the loss beside a genuine event: None = 1, "balanced" = as many times as genuine
        events outnumber frauds among those that train.
    gamma : float
        Focus on what is not yet told apart (focal loss, Lin, Goyal, Girshick, He and Dollár 2017): each event counts
        (1 - probability of its own label) to this power. 0 = plain binary cross-entropy.
    calibration : {"platt", "isotonic", "none"}
        How logits become probabilities, learned on the events of `valid`: a line on the scale of log-odds, or knots of
        an isotonic regression joined by lines (for many labels; see `Calibration`). Both keep the ranking. With "none"
        the probability is the sigmoid of the logit, which a `positive_weight` or a `gamma` distorts.
    pretrained : Forecaster or Autoencoder, optional
        A fitted model of the same columns and the same `hidden`, whose memory the fit starts from. It is not changed.
    freeze : bool
        Leave that memory as it is, and train the head alone: faster, but on simulated payments it found less.
    batch_events : int
        Events of one step of the optimiser, about.
    steps : int
        Steps that a gradient goes back.
    reach : int
        Longest memory, in steps, that the gates start with: 128 where a cue of a hundred events ago decides. 0 = about
        one step, torch's usual start; on simulated payments, where the last few events say most, it found more.
    seed : int
        Same seed, same machine, same numbers.
    device : str, optional
        Where to work; chosen automatically.
    """

    hidden: int = 64
    epochs: int | None = None
    patience: int | None = None
    learning_rate: float = 3e-3
    dropout: float = 0.2
    positive_weight: float | Literal["balanced"] | None = None
    gamma: float = 0.0
    calibration: CalibrationKind = "platt"
    pretrained: SequenceModel | None = None
    freeze: bool = False
    batch_events: int = 2048
    steps: int = 128
    reach: int = 0
    seed: int = 0
    device: str | None = None
    network_: ClassifierNetwork | None = field(default=None, init=False, repr=False, compare=False)
    run_: Run | None = field(default=None, init=False, repr=False, compare=False)

    def fit(
        self,
        sequences: Sequences,
        numeric: Sequence[Column],
        category: Sequence[Column],
        fraud: ArrayLike,
        *,
        train: Mask,
        valid: Mask,
        extra: ArrayLike | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from the labels of some events, each given its whole history; returns self.

        Ctrl-C keeps the best epoch so far, as the end does.

        Parameters
        ----------
        sequences : Sequences
            Whole histories, N events. Those outside `train` and `valid` are context only.
        numeric, category : sequence of Column
            The columns of the sequences.
        fraud : array of bool, shape (N,)
            Labels. Only those of `train` and `valid` are read; the others may be anything.
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
            If shapes disagree, labels are no 0 or 1, or `train` (or `valid`, to calibrate on) lacks one of the two.
        ParameterError
            If a parameter is out of its range, the masks overlap, or `pretrained` has other columns or another size.
        NotFittedError
            If `pretrained` is not fitted.
        """
        self.network_ = None  # a fit that breaks off leaves no half of a model
        self._check_parameters()
        _check_columns(sequences, numeric, category)
        train, valid = (_mask(name, mask, len(sequences)) for name, mask in (("train", train), ("valid", valid)))
        label = _labels(fraud, train, valid)
        self._check_labels(label, train, valid)
        values = _extra("fit", sequences, extra)
        self.extra_ = Extra.of(values, train)
        network = self._make(numeric, category, values.shape[1])
        if self.pretrained is not None:
            self._take_memory(network, self.pretrained, (*numeric, *category))
        self.numeric_, self.category_ = tuple(numeric), tuple(category)
        task = _Task(sequences, *self._tables(network, sequences, values), label, train, valid)
        self.run_, logit = _Loop(self, network, task).run(progress)
        self.calibration_ = Calibration.of(self.calibration, logit, label[valid])
        self.network_ = network
        return self

    def predict_proba(self, sequences: Sequences, extra: ArrayLike | None = None, mask: Mask | None = None) -> Float:
        """Probability that each event is fraud, given its history, (N,) in [0, 1]; higher = more likely.

        NaN outside `mask` (N,). One pass: N events cost N recurrent steps. The columns of the sequences and of `extra`
        are those of the fit, else an InputError says so; before the fit it is a NotFittedError.
        """
        logit = self.decision_function(sequences, extra, mask)  # which refuses before `fit`
        return self.calibration_(logit)

    @torch.inference_mode()
    def decision_function(
        self, sequences: Sequences, extra: ArrayLike | None = None, mask: Mask | None = None
    ) -> Float:
        """Logit of each event before any calibration, (N,); higher = more likely fraud. Else as `predict_proba`."""
        network = self._network()
        _check_columns(sequences, self.numeric_, self.category_)
        values = _extra("predict_proba", sequences, extra, expected=len(self.extra_.center))
        chosen = None if mask is None else _mask("mask", mask, len(sequences))
        return _logits(network, *self._tables(network, sequences, values), sequences, chosen)

    def arrays(self) -> dict[str, Tensor]:
        """All that was learned, by name."""
        found = {NETWORK + name: value for name, value in self._network().state_dict().items()}
        for part, learned in (("extra", self.extra_), ("calibration", self.calibration_)):
            found |= {f"{part}.{name}": torch.from_numpy(np.asarray(value)) for name, value in vars(learned).items()}
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def restore(self, numeric: Sequence[Column], category: Sequence[Column], arrays: Mapping[str, Any]) -> Self:
        """Take over what `arrays` gave; returns self.

        Raises
        ------
        ArtifactError
            If the arrays are of other columns or another `hidden`.
        """
        given = {name: torch.as_tensor(value) for name, value in arrays.items()}
        try:
            numbers = {name: value.double().numpy() for name, value in given.items() if not name.startswith(NETWORK)}
            self.extra_ = Extra(*(numbers[f"extra.{name}"] for name in ("center", "scale")))
            logit, log_odds, slope = (numbers[f"calibration.{name}"] for name in ("logit", "log_odds", "slope"))
            self.calibration_ = Calibration(logit, log_odds, float(slope))
            network = self._make(numeric, category, len(self.extra_.center))
            network.load_state_dict({k.removeprefix(NETWORK): v for k, v in given.items() if k.startswith(NETWORK)})
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"Classifier.restore: the arrays do not fit these columns and hidden={self.hidden} ({reason}); "
                "restore with the columns and parameters of the fit"
            ) from None
        self.numeric_, self.category_ = tuple(numeric), tuple(category)
        self.network_ = network
        return self

    def _make(self, numeric: Sequence[Column], category: Sequence[Column], extra: int) -> ClassifierNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return ClassifierNetwork(numeric, category, extra, self).to(choose_device(self.device))

    def _take_memory(self, network: ClassifierNetwork, pretrained: SequenceModel, columns: Sequence[Column]) -> None:
        """Start from the memory of a fitted model; the head's embeddings of categories start from its own, too."""
        who = f"Classifier: pretrained={type(pretrained).__name__}"
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
        if pretrained.hidden != self.hidden:
            raise ParameterError(f"{who} has hidden={pretrained.hidden}, expected {self.hidden}; give both the same")
        network.memory.load_state_dict(pretrained.network_.memory.state_dict())
        network.event.load_state_dict(pretrained.network_.memory.embedding.state_dict())

    def _check_labels(self, label: Mask, train: Mask, valid: Mask) -> None:
        for what, mask in (("train", train), ("valid", valid)):
            frauds, events = int(label[mask].sum()), int(mask.sum())
            needs_both = what == "train" or self.calibration != "none"
            if not events or (needs_both and frauds in (0, events)):
                remedy = "choose other events" + (', or calibration="none"' if what == "valid" and events else "")
                raise InputError(
                    f"Classifier: {what} must hold frauds and genuine events, got {frauds} frauds among {events} "
                    f"events; {remedy}"
                )

    def _check_parameters(self) -> None:
        least = dict.fromkeys(("hidden", "epochs", "patience", "batch_events", "steps"), 1)
        for name, lowest in (least | dict.fromkeys(("reach", "seed", "gamma", "dropout"), 0)).items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ParameterError(f"Classifier: {name} must be at least {lowest}, got {value!r}")
        if self.dropout >= 1:
            raise ParameterError(f"Classifier: dropout must be below 1, got {self.dropout!r}")
        for name in ("learning_rate", "positive_weight"):
            value = getattr(self, name)
            if value not in (None, "balanced") and (isinstance(value, str) or not 0 < value < math.inf):
                raise ParameterError(f"Classifier: {name} must be above 0, got {value!r}")
        if self.calibration not in get_args(CalibrationKind):
            kinds = ", ".join(get_args(CalibrationKind))
            raise ParameterError(f"Classifier: calibration must be one of {kinds}, got {self.calibration!r}")
        if self.freeze and self.pretrained is None:
            raise ParameterError("Classifier: freeze=True needs a pretrained model whose memory is kept; give one")

    def _tables(self, network: ClassifierNetwork, sequences: Sequences, values: Float) -> tuple[Table, Tensor]:
        """Tensors of the sequences, and of the extra inputs; the memory holds every earlier event."""
        device = next(network.parameters()).device
        return Table.of(sequences, 0.0, averaged(self.numeric_), device), self.extra_.table(values, device)

    def _network(self) -> ClassifierNetwork:
        if self.network_ is None:
            raise NotFittedError("Classifier: not fitted yet; call fit(...) or restore(...) first")
        return self.network_


@dataclass(frozen=True)
class _Task:
    """What is to be learned: N events, their tensors, labels that are False where they must not be read, and masks."""

    sequences: Sequences
    table: Table
    extra: Tensor  # (N, 2 E)
    label: Mask
    train: Mask
    valid: Mask


class _Loop:
    """Epochs of training over the rows that hold labels: seeded, clipped, the learning rate falling along a cosine."""

    def __init__(self, model: Classifier, network: ClassifierNetwork, task: _Task) -> None:
        self.model, self.network, self.task = model, network, task
        # Behind the last label of a sequence nothing is read.
        position = np.where(task.train, task.sequences.position + 1, 0)
        until = np.maximum.reduceat(position, task.sequences.offsets[:-1])
        self.plan = Plan.of(
            task.sequences.offsets, until=until, events=model.batch_events, steps=model.steps, longest=LONGEST_ROW
        )
        self.steps = sum(-(-int(length[0]) // model.steps) for _, length in self.plan.groups)
        self.epochs = model.epochs or int(np.clip(ENOUGH_STEPS // self.steps, 4, 60))
        frauds, events = int(task.label[task.train].sum()), int(task.train.sum())
        weight = model.positive_weight or 1.0
        self.weight = float(events / frauds - 1 if weight == "balanced" else weight)
        # Weight of one step, on average: each event counts the same, however many labels its chunk holds.
        self.share = (events + (self.weight - 1) * frauds) / self.steps
        self.label, self.train = (torch.from_numpy(one).to(task.extra.device) for one in (task.label, task.train))
        network.memory.requires_grad_(not model.freeze)
        with torch.no_grad():  # start from the share of frauds
            network.last.bias.fill_(math.log(self.weight * frauds / (events - frauds)))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=model.learning_rate)

    def _losses(self, logit: Tensor, fraud: Tensor) -> Tensor:
        """Loss of each event, (n,) >= 0 in nats, weighted: binary cross-entropy, focal if `gamma` is above 0."""
        wrong = fn.softplus(torch.where(fraud, -logit, logit))  # -ln of the probability of the event's own label
        weight = torch.where(fraud, self.weight, 1.0)
        if self.model.gamma:
            right = fn.softplus(torch.where(fraud, logit, -logit))
            weight = weight * torch.exp(-self.model.gamma * right)
        return weight * wrong

    def run(self, progress: Progress | None) -> tuple[Run, Float]:
        """Train until the epochs end, patience does, or Ctrl-C; return how it went and the logits of `valid`.

        The network holds the best epoch's weights at the end, and the logits are theirs.
        """
        run, patience = Run(), self.model.patience or math.inf
        best, found = self.network.state_dict(), np.empty(0)
        try:
            while run.epoch < self.epochs and run.epoch - run.best_epoch < patience:
                started = time.perf_counter()
                with torch.random.fork_rng():
                    torch.manual_seed(self.model.seed * 100_003 + run.epoch + 1)
                    train_loss = self._pass(run.epoch, progress)
                logit, valid_loss = self._validate()
                run.epoch += 1
                if not len(found) or valid_loss < run.best_loss:
                    run.best_loss, run.best_epoch, found = valid_loss, run.epoch, logit
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
        """Logits of the events of `valid`, and their mean loss."""
        task = self.task
        logit = _logits(self.network, task.table, task.extra, task.sequences, task.valid)[task.valid]
        return logit, float(self._losses(torch.from_numpy(logit), torch.from_numpy(task.label[task.valid])).mean())

    def _pass(self, epoch: int, progress: Progress | None) -> float:
        total, count, step = 0.0, 0, epoch * self.steps
        table, extra = self.task.table, self.task.extra
        self.network.train()
        for group in np.random.default_rng([self.model.seed, epoch]).permutation(len(self.plan.groups)):
            reader = Reader(self.network.memory, table)
            for chunk in self.plan.chunks(group):
                for parameters in self.optimizer.param_groups:
                    parameters["lr"] = self._learning_rate(step)
                step += 1
                with autocast(extra.device):
                    index, memory = reader.read(chunk)
                    keep = self.train[index]
                    chosen, memory = index[keep], memory[keep]
                    logit = self.network.logits(memory, Events.pick(table, chosen), extra[chosen])
                summed = self._losses(logit, self.label[chosen]).sum()
                if len(chosen):
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


def keep_long(lstm: nn.LSTM, reach: int) -> None:
    """Let the gates start with memories of 2 to `reach` steps.

    As in Tallec and Ollivier (2018): a forget bias of ln(T - 1) keeps what was read for about T steps. With the usual
    start near 0 half of it is gone after each step, and a gradient does not reach a hundred steps back.
    """
    gates = dict(lstm.named_parameters())
    hidden = lstm.hidden_size
    kept = torch.log(torch.empty(hidden).uniform_(1.0, max(2.0, reach - 1.0)))
    with torch.no_grad():
        gates["bias_hh_l0"].zero_()  # torch adds up two biases
        gates["bias_ih_l0"].zero_()
        gates["bias_ih_l0"][: 2 * hidden] = torch.cat([-kept, kept])  # its order: input, forget, cell, output


def _logits(network: ClassifierNetwork, table: Table, extra: Tensor, sequences: Sequences, mask: Mask | None) -> Float:
    """Logits of the events of `mask`, (N,); NaN for the others."""
    found = np.full(len(sequences), np.nan)
    for events, memory, index in scan(network, table, sequences, mask):
        with autocast(memory.device):
            logit = network.logits(memory, events, extra[index])
        found[index.cpu().numpy()] = logit.double().cpu().numpy()
    return found


def _check_columns(sequences: Sequences, numeric: Sequence[Column], category: Sequence[Column]) -> None:
    got, expected = (sequences.numeric.shape[1], sequences.category.shape[1]), (len(numeric), len(category))
    if got != expected:
        raise InputError(
            f"Classifier: expected sequences of {expected[0]} numeric and {expected[1]} category columns, got {got[0]} "
            f"and {got[1]}; encode them with the Encoder of the fit"
        )


def _mask(name: str, mask: Mask, n: int) -> Mask:
    got = np.asarray(mask)
    if got.shape != (n,) or got.dtype != bool:
        raise InputError(f"Classifier: {name} must be bool of shape ({n},), got {got.dtype} of shape {got.shape}")
    return got


def _labels(fraud: ArrayLike, train: Mask, valid: Mask) -> Mask:
    """Labels (N,) of the events of the masks, False elsewhere: what is behind them is not read."""
    n, known, shared = len(train), train | valid, int((train & valid).sum())
    if shared:
        raise ParameterError(f"Classifier: train and valid share {shared} events; give each event to one of them")
    given = np.asarray(fraud)
    if given.shape != (n,):
        raise InputError(f"Classifier: fraud must be one label for each of {n} events, got shape {given.shape}")
    label = np.zeros(n, dtype=bool)
    label[known] = given[known] == 1
    if not np.all(label[known] | (given[known] == 0)):
        raise InputError("Classifier: labels of train and valid must be 0 or 1; leave unknown ones out of the masks")
    return label


def _extra(who: str, sequences: Sequences, extra: ArrayLike | None, expected: int | None = None) -> Float:
    """Extra inputs as (N, E) float64; E = 0 if there are none."""
    n = len(sequences)
    values = np.zeros((n, 0)) if extra is None else np.asarray(extra, dtype=np.float64)
    width = values.shape[1] if values.ndim == 2 else None
    if width is None or len(values) != n or (expected is not None and width != expected):
        wanted = f"({n}, {'E' if expected is None else expected})"
        raise InputError(f"Classifier.{who}: extra must have shape {wanted} as in fit, got {values.shape}")
    if np.isinf(values).any():
        raise InputError(f"Classifier.{who}: extra must be finite, or NaN where missing; got infinite values")
    return values
