"""The one training loop: seeded, clipped, stopped early on later time, robust to what hides in the history.

Training goes over rows in length order, in chunks with the state carried (truncated back-propagation through time).
After each epoch the events amid the strangest runs, the top `drop_share`, get weight zero and the loop goes on: an
unlabelled history holds the fraud too, and a plain fit would learn it. Runs are looked for on both sides of an event:
what comes later may tell what to learn from, though never what to score.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anomaly.errors import ArtifactError, ParameterError
from anomaly.evidence import amid_strange_runs, combine_fields, rank_surprise
from anomaly.models import gathers
from anomaly.models.batches import Events, Plan, Table
from anomaly.models.cells import Memory, Reader
from anomaly.models.heads import Asked, FieldSet, Prediction, Works
from anomaly.sequences import Sequences

Mask = NDArray[np.bool_]

# The learning rate falls to its end over the epochs planned. Many epochs, stopped early, end while it is high: on
# simulated payments twelve epochs gone to the end ranked better than sixty planned and four to fifty taken.
ENOUGH_STEPS = 600
ROBUST_GAPS = (1, 3, 10, 30)  # typical gaps to either side of an event in which a run is looked for


class Network(nn.Module):
    """What the loop asks of a network."""

    memory: Memory
    fields: FieldSet
    draw: torch.Generator | None = None  # of what is random in a training step; set by the loop

    def ask(self, recalled: Tensor, events: Events) -> Asked:
        """Heads that state the fields of n events, given what is remembered before each, (n, H + Q)."""
        raise NotImplementedError

    def predict(self, recalled: Tensor, events: Events) -> Prediction:
        """Distributions of the fields of n events from what is remembered before each, (n, H + Q)."""
        return self.ask(recalled, events).predict()

    def extra_loss(self, recalled: Tensor, events: Events, weight: Tensor) -> Tensor:  # noqa: ARG002
        """Loss beyond the likelihood of the events themselves, a scalar; `weight` (N,) is that of all events."""
        return recalled.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train.

    Parameters
    ----------
    epochs : int, optional
        Most passes over the history; by default enough for about 600 steps, between 4 and 60.
    patience : int
        Epochs without a better validation loss before the loop stops.
    learning_rate : float
        Of Adam at the start; falls to a tenth along a cosine.
    clip : float
        Largest norm of the gradient.
    drop_share : float
        Share of the events, those amid the strangest runs, that train nothing in the next epoch.
    batch_events, steps, longest : int
        Events of one step of work, longest chunk and longest row; see `batches.Plan`.
    """

    epochs: int | None = None
    patience: int = 6
    learning_rate: float = 4e-3
    clip: float = 1.0
    drop_share: float = 0.03
    batch_events: int = 2048
    steps: int = 64
    longest: int = 512

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ParameterError(f"Training: epochs must be at least 1, got {self.epochs}")
        if not 0 <= self.drop_share < 0.5:
            raise ParameterError(f"Training: drop_share must be in [0, 0.5), got {self.drop_share}")


@dataclass
class Run:
    """State of a training run, whole enough to go on from: see `save` and `load`."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    interrupted: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class Weights:
    """All weights of a network in one row: an optimiser that steps through dozens of them takes ten times as long.

    The network's own become parts of it until it is left. On a graphics card, whose LSTM has its own place for
    them, they stay as they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parts = self.whole = list(network.parameters())
        if self.parts[0].device.type == "cpu":
            self.whole = [nn.Parameter(torch.cat([part.detach().flatten() for part in self.parts]))]
            mine = torch.split(self.whole[0].detach(), [part.numel() for part in self.parts])
            for part, own in zip(self.parts, mine, strict=True):
                part.data = own.view(part.shape)

    def gather(self) -> None:
        """Make the gradients of the parts that of the whole."""
        if self.whole is not self.parts:
            gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in self.parts]
            self.whole[0].grad = torch.cat([gradient.flatten() for gradient in gradients])
            self.forget()

    def clip(self, most: float) -> None:
        """Shorten the gradient to a norm of `most`, if it is longer."""
        if self.whole is self.parts:
            nn.utils.clip_grad_norm_(self.whole, most, foreach=True)
        elif (gradient := self.whole[0].grad) is not None:  # a row of its own: without what a list of them takes
            gradient.mul_((most / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp_(max=1.0))

    def forget(self) -> None:
        """Drop the gradients of the parts."""
        for part in self.parts:
            part.grad = None

    def leave(self) -> None:
        """Give the network weights of its own."""
        for part in self.parts:
            part.data = part.detach().clone()


class Trainer:
    """Trains one network on one history.

    Parameters
    ----------
    network : Network
        Trained in place; holds the best epoch's weights at the end.
    sequences, table : Sequences, Table
        The history and its tensors.
    train, valid : ndarray of bool, shape (N,)
        Events that train (the first ones of each entity), and the later ones that say when to stop.
    settings : str
        All that the model was told; a checkpoint of other settings is refused.
    """

    def __init__(
        self,
        network: Network,
        sequences: Sequences,
        table: Table,
        *,
        train: Mask,
        valid: Mask,
        training: Training,
        seed: int,
        settings: str,
    ) -> None:
        self.network, self.sequences, self.table = network, sequences, table
        self.train, self.valid = train, valid
        self.training, self.seed, self.settings = training, seed, settings
        until = np.add.reduceat(train.astype(np.int64), sequences.offsets[:-1])
        self.plan = Plan.of(
            sequences.offsets,
            until=until,
            events=training.batch_events,
            steps=training.steps,
            longest=training.longest,
        )
        self.steps = sum(-(-int(length[0]) // training.steps) for _, length in self.plan.groups)
        self.epochs = training.epochs or int(np.clip(ENOUGH_STEPS // max(1, self.steps), 4, 60))
        self.weight = train.astype(np.float32)
        gap = sequences.typical_gap(train)
        self.scales = [factor * gap for factor in ROBUST_GAPS if gap]
        self.weights = Weights(network)
        self.optimizer = torch.optim.Adam(self.weights.whole, lr=training.learning_rate, fused=True)
        self.run = Run()
        self.best: dict[str, Tensor] = {}

    def fit(self, *, progress: Progress | None = None, checkpoint: Path | None = None, resume: bool = False) -> Run:
        """Train until the validation loss stops falling, the epochs end, or Ctrl-C; keep the best epoch."""
        if resume and checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        try:
            while self.run.epoch < self.epochs and self.run.epoch - self.run.best_epoch < self._patience():
                self._epoch(progress)
                if checkpoint is not None:
                    self._save(checkpoint)
        except KeyboardInterrupt:
            if not self.best:
                raise
            self.run.interrupted = True
            if progress is not None:
                progress.say(f"interrupted: keeping epoch {self.run.best_epoch}, the best so far")
        self.network.load_state_dict(self.best)
        self.weights.leave()
        return self.run

    def _learning_rate(self, step: int) -> float:
        done = min(1.0, step / (self.epochs * self.steps))
        return self.training.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))

    def _patience(self) -> int:
        return self.training.patience + 1 if self.run.best_epoch == 0 else self.training.patience

    def _epoch(self, progress: Progress | None) -> None:
        epoch = self.run.epoch + 1
        started = time.perf_counter()
        self.network.draw = torch.Generator(self.table.numeric.device).manual_seed(self.seed * 100_003 + epoch)
        loss, errors = self._pass(epoch, progress)
        valid_loss = evaluate(self.network, self.table, self.sequences, self.valid)
        seconds = time.perf_counter() - started
        self._reweight(errors)
        self.run.epoch = epoch
        if valid_loss < self.run.best_loss or not self.best:
            self.run.best_loss, self.run.best_epoch = valid_loss, epoch
            self.best = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.run.history.append({"epoch": epoch, "train_loss": loss, "valid_loss": valid_loss, "seconds": seconds})
        if progress is not None:
            progress.epoch(epoch, self.epochs, loss, valid_loss)

    def _pass(self, epoch: int, progress: Progress | None) -> tuple[float, NDArray[np.float32]]:
        """Train on every row once; return the mean loss per event and the errors (N, K) seen on the way."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.plan.groups))
        device = self.table.numeric.device
        weight = torch.from_numpy(self.weight).to(device)
        errors: NDArray[np.float32] | None = None
        total, count, step = 0.0, 0.0, (epoch - 1) * self.steps
        self.network.train()
        for group in order:
            reader = Reader(self.network.memory, self.table)
            for chunk in self.plan.chunks(group):
                for parameters in self.optimizer.param_groups:
                    parameters["lr"] = self._learning_rate(step)
                step += 1
                with autocast(device):
                    index, recalled = reader.read(chunk)
                    events = Events(self.table, index)
                    chosen = weight[index]
                    summed, found = self.network.ask(recalled, events).loss(events, chosen)
                    extra = self.network.extra_loss(recalled, events, weight)
                number = float(chosen.sum())
                loss = summed / max(1.0, number) + extra
                self.weights.forget()
                loss.backward()  # type: ignore[no-untyped-call]
                self.weights.gather()
                self.weights.clip(self.training.clip)
                self.optimizer.step()
                total, count = total + float(summed.detach()), count + number
                if errors is None:
                    errors = np.full((len(self.sequences), found.shape[1]), np.nan, dtype=np.float32)
                gathers.put(found.t().float().contiguous().cpu().numpy(), index.cpu().numpy(), errors)
                if progress is not None:
                    progress.events(len(index), self.plan.events, total / max(1.0, count))
        assert errors is not None
        return total / max(1.0, count), errors

    def _reweight(self, errors: NDArray[np.float32]) -> None:
        """Give weight zero to the training events amid the strangest runs."""
        if not self.training.drop_share:
            return
        fields = self.network.fields
        surprise = rank_surprise(combine_fields(errors, fields.evidence_weight, fields.pairs))
        strange = amid_strange_runs(self.sequences, surprise, self.scales, self.train, self.training.drop_share)
        self.weight = (self.train & ~strange).astype(np.float32)

    def _fingerprint(self) -> str:
        history = self.sequences
        data = hashlib.sha256()
        told = self.table.memory, self.table.statistics.cpu().numpy()
        for array in (history.offsets, history.time, history.numeric, history.category, *told):
            data.update(np.ascontiguousarray(array).data)
        for mask in (self.train, self.valid):
            data.update(np.packbits(mask).data)
        learned = [list(one.shape) for group in self.optimizer.param_groups for one in group["params"]]
        return json.dumps([self.settings, self.seed, data.hexdigest(), _shapes(self.network), learned])

    def _save(self, path: Path) -> None:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
        tensors["weight"] = torch.from_numpy(self.weight)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            temporary,
            metadata={"run": json.dumps(asdict(self.run)), "fingerprint": self._fingerprint()},
        )
        temporary.replace(path)

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"Trainer: the checkpoint {path} is not readable ({error}); fit without resume to start anew"
            ) from None
        if metadata.get("fingerprint") != self._fingerprint():
            raise ArtifactError(
                f"Trainer: the checkpoint {path} is of other data, settings or another version; "
                "fit without resume to start anew"
            )
        self.run = Run(**json.loads(metadata["run"]))
        self.network.load_state_dict(_under("network.", tensors))
        self.best = _under("best.", tensors)
        self.weight = tensors["weight"].numpy()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


class Progress(Protocol):
    """What the loop tells while it runs."""

    def events(self, done: int, total: int, loss: float) -> None:
        """`done` more events of an epoch of `total` are trained; mean loss so far in the epoch."""

    def epoch(self, epoch: int, epochs: int, train_loss: float, valid_loss: float) -> None:
        """An epoch is over."""

    def say(self, text: str) -> None:
        """Tell something else."""


def autocast(device: torch.device) -> Any:
    """Mixed precision on CUDA, plain float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def choose_device(name: str | None = None) -> torch.device:
    """The device to work on: CUDA if there is one, else MPS, else the CPU; or the one named."""
    if name is not None:
        try:
            return torch.empty(0, device=name).device
        except (AssertionError, NotImplementedError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ParameterError(f"device {name!r} cannot be used here: {reason}") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@torch.inference_mode()
def evaluate(network: Network, table: Table, sequences: Sequences, mask: Mask) -> float:
    """Mean loss per event over the events of `mask`, each after its whole history."""
    total, count = 0.0, 0
    works: Works = []
    for events, recalled in scan(network, table, sequences, mask):
        total += network.ask(recalled, events).total_loss(events, works)
        count += len(events)
    return total / max(1, count)


def scan(
    network: Network, table: Table, sequences: Sequences, mask: Mask | None = None
) -> Iterator[tuple[Events, Tensor]]:
    """Read whole histories once; yield the events of `mask`, and what is remembered before each, batch by batch."""
    network.eval()
    until = None
    if mask is not None:  # no need to read on behind the last chosen event of a sequence
        position = np.where(mask, sequences.position + 1, 0)
        until = np.maximum.reduceat(position, sequences.offsets[:-1])
    plan = Plan.of(sequences.offsets, until=until, events=8192, steps=128, least=32)
    device = table.numeric.device
    for group in range(len(plan.groups)):
        reader = Reader(network.memory, table)
        for chunk in plan.chunks(group):
            with autocast(device):
                index, recalled = reader.read(chunk, mask)
            if len(index):
                yield Events(table, index), recalled


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _shapes(network: Network) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}
