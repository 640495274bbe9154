"""Learning from labels: epochs over the events that hold them, the best one kept.

While the memory learns too, histories are read in chunks of steps. A memory that is left as it is gets read once, and
its labelled events are then learned from in any order.

Letters used in shapes: N events, E extra inputs, H hidden units, M members, O outputs, n events of one step of work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anomaly.models.batches import Events, Plan, Table
from anomaly.models.cells import Reader
from anomaly.models.labelled import LabelledNetwork, all_outputs
from anomaly.models.objectives import Level, Objective
from anomaly.models.training import Mask, Progress, Run, autocast, scan
from anomaly.sequences import Sequences

Float = NDArray[np.float64]

ENOUGH_STEPS = 200  # of the optimiser, where the number of epochs is not given; more learn the frauds by heart
ENOUGH_DRAWS = 300_000  # events drawn in all where the memory is left as it is, likewise
DRAWN = 512  # events of a step there
LONGEST_ROW = 512  # longer histories train in pieces, side by side; for whole sequences a gradient goes so far back
CLIP_NORM = 1.0  # largest norm of the gradient
WEIGHT_DECAY = 1e-2  # of AdamW (Loshchilov and Hutter 2019)
LAST_STEPS = 0.1  # share of all steps over which weights are averaged (Polyak and Juditsky 1992)


class Wish(Protocol):
    """How to learn; see `anomaly.models.supervised.Supervised`."""

    level: Level
    epochs: int | None
    patience: int | None
    learning_rate: float
    freeze: bool
    batch_events: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Task:
    """What is to be learned: N events, their tensors, targets that are 0 where they must not be read, and masks."""

    sequences: Sequences
    table: Table
    extra: Tensor  # (N, 2 E)
    target: NDArray[Any]
    train: Mask
    valid: Mask
    objective: Objective


class Remembered:
    """What is remembered before each labelled event, read once: rows of N events, kept for the labelled ones alone."""

    @torch.no_grad()
    def __init__(self, network: LabelledNetwork, task: Task) -> None:
        known = task.train | task.valid
        self.place = torch.full((len(known),), -1, device=task.extra.device)
        index = torch.from_numpy(np.flatnonzero(known)).to(task.extra.device)
        self.place[index] = torch.arange(len(index), device=index.device)
        self.memory = torch.zeros(len(index), network.memory.hidden, device=index.device)
        for events, recalled in scan(network, task.table, task.sequences, known):
            self.memory[self.place[events.index]] = recalled[:, : network.memory.hidden].float()

    def __getitem__(self, index: Tensor) -> Tensor:
        """Of the events `index` (n,), (n, H)."""
        return self.memory[self.place[index]]


class Loop:
    """Epochs of training over the rows that hold labels: seeded, clipped, the learning rate falling along a cosine.

    What validates, and what is kept, are the weights averaged over the last steps.
    """

    def __init__(self, wish: Wish, network: LabelledNetwork, task: Task, remembered: Remembered | None = None) -> None:
        self.wish, self.network, self.task, self.objective = wish, network, task, task.objective
        device = task.extra.device
        self.target, self.train = (torch.from_numpy(one).to(device) for one in (task.target, task.train))
        self._learn_bins()
        self.cache = remembered
        if self.cache is None:
            self.plan = self._planned()
            self.steps = sum(-(-int(length[0]) // self.plan.steps) for _, length in self.plan.groups)
            enough = ENOUGH_STEPS // self.steps
        else:
            drawn = max(1, int(self._sample(0).sum()))
            self.steps, enough = -(-drawn // DRAWN), ENOUGH_DRAWS // drawn
        self.epochs = wish.epochs or int(np.clip(enough, 4, 60))
        # Weight of one step, on average: each event counts the same, however many labels its chunk holds.
        self.share = self.objective.total / self.steps
        network.memory.requires_grad_(not wish.freeze)
        with torch.no_grad():
            network.head.bias.copy_(torch.tensor(self.objective.start).expand_as(network.head.bias))
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=wish.learning_rate, weight_decay=WEIGHT_DECAY)
        horizon = max(1.0, LAST_STEPS * self.epochs * self.steps)
        self.averaged = AveragedModel(network, avg_fn=lambda mean, new, n: mean + (new - mean) * _newest(horizon, n))

    def run(self, progress: Progress | None, epochs: int | None = None) -> tuple[Run, Float]:
        """Train until the epochs end, patience does, or Ctrl-C; return how it went and the outputs of `valid`.

        The network holds the best epoch's weights at the end, and the outputs are theirs. With `epochs` it goes through
        so many, keeps the last, and outputs are none.
        """
        run, patience = Run(), self.wish.patience or math.inf
        best, found = self.network.state_dict(), np.empty(0)
        try:
            while run.epoch < (epochs or self.epochs) and (epochs or run.epoch - run.best_epoch < patience):
                started = time.perf_counter()
                with torch.random.fork_rng():
                    torch.manual_seed(self.wish.seed * 100_003 + run.epoch + 1)
                    train_loss = self._pass(run.epoch, progress)
                output, valid_loss = (found, train_loss) if epochs else self._validate()
                run.epoch += 1
                if epochs or not len(found) or valid_loss < run.best_loss:
                    run.best_loss, run.best_epoch, found = valid_loss, run.epoch, output
                    weights = self.averaged.module.state_dict()
                    best = {name: value.detach().clone() for name, value in weights.items()}
                told = {"epoch": run.epoch, "train_loss": train_loss, "valid_loss": valid_loss}
                run.history.append(told | {"seconds": time.perf_counter() - started})
                if progress is not None:
                    progress.epoch(run.epoch, epochs or self.epochs, train_loss, valid_loss)
        except KeyboardInterrupt:
            if not run.epoch:
                raise
            run.interrupted = True
            if progress is not None:
                progress.say(f"interrupted: keeping epoch {run.best_epoch}, the best so far")
        self.network.load_state_dict(best)
        return run, found

    def _learn_bins(self) -> None:
        """Lay the edges of the bins by the events that train, all classes weighing alike."""
        task = self.task
        rows = np.flatnonzero(task.train)
        index = torch.from_numpy(rows).to(task.extra.device)
        numbers = self.network.numbers(Events(task.table, index), task.extra[index]).cpu().numpy()
        kind = task.target[rows]
        self.network.bins.learn(numbers, kind.astype(np.int64) if kind.dtype.kind in "bi" else np.zeros(len(rows), int))

    def _planned(self) -> Plan:
        """Cut the histories into rows and chunks; behind the last label of a sequence nothing is read."""
        wish, sequences = self.wish, self.task.sequences
        position = np.where(self.task.train, sequences.position + 1, 0)
        until = np.maximum.reduceat(position, sequences.offsets[:-1])
        whole = wish.level == "sequence"  # a cut would lose the beginning
        steps, longest = (LONGEST_ROW, None) if whole else (wish.steps, LONGEST_ROW)
        return Plan.of(sequences.offsets, until=until, events=wish.batch_events, steps=steps, longest=longest)

    @torch.inference_mode()
    def _validate(self) -> tuple[Float, float]:
        """Outputs for the events of `valid`, and their mean loss."""
        task, network = self.task, self._averaged()
        if self.cache is None:
            output = all_outputs(network, task.table, task.extra, task.sequences, task.valid)[task.valid]
        else:
            rows = torch.from_numpy(np.flatnonzero(task.valid)).to(task.extra.device)
            said = [
                network.outputs(self.cache[at], Events(task.table, at), task.extra[at])
                for at in torch.split(rows, 8 * DRAWN)
            ]
            output = torch.cat(said).double().cpu().numpy()
        target = torch.from_numpy(task.target[task.valid])
        return output, float(self.objective.losses(torch.from_numpy(output) + self._shift, target).mean())

    def _averaged(self) -> LabelledNetwork:
        """The network with the averaged weights."""
        network = self.averaged.module
        assert isinstance(network, LabelledNetwork)
        return network.eval()

    @property
    def _shift(self) -> float:
        """What the outputs lack because a part of the genuine events trains only."""
        return math.log(self.objective.kept)

    def _sample(self, epoch: int) -> Tensor:
        """Which events (N,) train in this epoch."""
        if self.objective.kept >= 1:
            return self.train
        draw = np.random.default_rng([self.wish.seed, epoch, 1]).random(len(self.task.train))
        kept = torch.from_numpy(draw < self.objective.kept).to(self.train.device)
        return self.train & (kept | (self.target != 0))

    def _pass(self, epoch: int, progress: Progress | None) -> float:
        total, count, step = 0.0, 0, epoch * self.steps
        table, extra = self.task.table, self.task.extra
        self.network.train()
        for chosen, memory, read, of in self._batches(epoch):
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = self._learning_rate(step)
            step += 1
            if len(chosen):
                with autocast(extra.device):
                    output = self.network.each(memory, Events(table, chosen), extra[chosen])
                wanted = self.target[chosen].repeat(len(output))
                summed = self.objective.losses(output.flatten(0, 1), wanted).sum() / len(output)
                self.optimizer.zero_grad(set_to_none=True)
                (summed / self.share).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
                self.optimizer.step()
                self.averaged.update_parameters(self.network)
                total, count = total + float(summed.detach()), count + len(chosen)
            if progress is not None:
                progress.events(read, of, total / max(1, count))
        return total / max(1, count)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        """Events (n,) that train, what is remembered before each (n, H), and how many of how many were read."""
        train, draw = self._sample(epoch), np.random.default_rng([self.wish.seed, epoch])
        if self.cache is not None:
            rows = np.flatnonzero(train.cpu().numpy())
            for at in torch.split(torch.from_numpy(draw.permutation(rows)).to(train.device), DRAWN):
                yield at, self.cache[at], len(at), len(rows)
            return
        for group in draw.permutation(len(self.plan.groups)):
            reader = Reader(self.network.memory, self.task.table)
            for chunk in self.plan.chunks(group):
                with autocast(train.device):
                    index, recalled = reader.read(chunk)
                    keep = train[index]
                    chosen, memory = index[keep], recalled[keep, : self.network.memory.hidden]
                    offsets = self.task.sequences.offsets
                    memory = self.network.with_other_end(memory, chosen, self.task.table, offsets)
                yield chosen, memory, len(index), self.plan.events

    def _learning_rate(self, step: int) -> float:
        done = min(1.0, step / (self.epochs * self.steps))
        return self.wish.learning_rate * (0.505 + 0.495 * math.cos(math.pi * done))


def _newest(horizon: float, number: Tensor | int) -> float:
    """Weight of the newest weights in their mean: that of one of `horizon`, more in the beginning."""
    return max(1.0 / horizon, 10.0 / (10.0 + float(number)))
