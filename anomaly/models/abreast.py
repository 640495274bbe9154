"""Work side by side: the models of a detector, each in a thread of its own, on its share of the processor.

Both models are small. Their products of a few hundred rows gain little by being cut up over two cores, which wait for
each other after each of them; two models that run beside each other do not. Nothing that they draw is shared, so that
the numbers are those of one after the other.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.features import Column
from anomaly.models.base import SequenceModel
from anomaly.models.training import Mask, Progress
from anomaly.progress import TrainingBar
from anomaly.sequences import PIECE, Sequences, whole_sequences

Result = TypeVar("Result")
ENOUGH_EVENTS = 10_000  # with fewer the work is over before threads would pay


class Stopped:
    """What a training run tells its progress, until all runs are asked to stop: then the run is interrupted."""

    def __init__(self, progress: Progress, stop: threading.Event) -> None:
        self.progress, self.stop = progress, stop

    def events(self, done: int, total: int, loss: float) -> None:
        """`done` more events of an epoch of `total` are trained; mean loss so far in the epoch."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.progress.events(done, total, loss)

    def epoch(self, epoch: int, epochs: int, train_loss: float, valid_loss: float) -> None:
        """An epoch is over."""
        self.progress.epoch(epoch, epochs, train_loss, valid_loss)

    def say(self, text: str) -> None:
        """Tell something else."""
        self.progress.say(text)


def fit_all(
    models: Sequence[SequenceModel],
    sequences: Sequences,
    columns: tuple[Sequence[Column], Sequence[Column]],
    masks: tuple[Mask, Mask],
    *,
    show: bool | None,
    folder: Path | None,
    resume: bool,
) -> None:
    """Train models of the same quarantine on the same sequences, each as `SequenceModel.fit` would.

    Parameters
    ----------
    columns : (numeric, category)
    masks : (train, valid)
    show : bool, optional
        As of `TrainingBar`.
    folder : Path, optional
        Where the checkpoint of each model goes, under its name.
    """
    models[0].prepare(*columns)
    table, stop = models[0].table(sequences), threading.Event()

    def fit(model: SequenceModel, bar: TrainingBar) -> None:
        bar.begin()
        path = None if folder is None else folder / f"{model.name}.safetensors"
        told: dict[str, Any] = {"progress": Stopped(bar, stop), "checkpoint": path, "resume": resume, "table": table}
        model.fit(sequences, *columns, train=masks[0], valid=masks[1], **told)

    with TrainingBar.all([model.name for model in models], show=show) as bars:
        works = [partial(fit, model, bar) for model, bar in zip(models, bars, strict=True)]
        side_by_side(works, stop, parallel=pays(models[0].device_, len(sequences)))


def all_errors(
    models: Sequence[SequenceModel], sequences: Sequences, mask: Mask | None = None
) -> dict[str, NDArray[np.float32]]:
    """`SequenceModel.errors` of models of the same quarantine, by name, (N, K) each.

    A long history is judged piece by piece, so that no table of all events is needed; a short one model by model.
    """
    parallel = pays(models[0].device_, len(sequences))
    pieces = whole_sequences(sequences.offsets, PIECE)
    if len(pieces) < 2:
        table = models[0].table(sequences)
        each = side_by_side([partial(model.errors, sequences, mask, table) for model in models], parallel=parallel)
        return dict(zip((model.name for model in models), each, strict=True))
    found = {model.name: np.full((len(sequences), len(model.fields)), np.nan, dtype=np.float32) for model in models}

    def judge(first: int, last: int) -> None:
        part = sequences.stretch(first, last)
        chosen = None if mask is None else mask[first:last]
        table = models[0].table(part)
        for model in models:
            found[model.name][first:last] = model.errors(part, chosen, table)

    works = [partial(judge, *piece) for piece in pieces if mask is None or mask[slice(*piece)].any()]
    side_by_side(works, parallel=parallel)
    return found


def pays(device: torch.device, events: int) -> bool:
    """Tell whether works are better done side by side: on several threads of a processor, and for enough events."""
    return device.type == "cpu" and events >= ENOUGH_EVENTS and torch.get_num_threads() > 1


def side_by_side(
    works: Sequence[Callable[[], Result]], stop: threading.Event | None = None, *, parallel: bool = True
) -> list[Result]:
    """Results of the works, in their order, by as many threads as torch has.

    Ctrl-C sets `stop`, and waits until those that have begun are over. Works that are given a `stop` of their own look
    at it, and end well; other ones are interrupted.

    Raises
    ------
    BaseException
        What the first work to fail has raised; the others are asked to stop.
    """
    if not parallel or len(works) < 2:
        return [work() for work in works]
    asked, stop = stop is not None, stop or threading.Event()
    found: list[Any] = [None] * len(works)
    failed: list[BaseException] = []
    waiting = deque(range(len(works)))

    def run(threads: int) -> None:
        torch.set_num_threads(threads)
        while waiting and not stop.is_set():
            with suppress(IndexError):  # another thread was quicker
                at = waiting.popleft()
                try:
                    found[at] = works[at]()
                except BaseException as error:  # raised anew below
                    failed.append(error)
                    stop.set()

    with _share(len(works)) as (workers, threads):
        running = [threading.Thread(target=run, args=(threads,), daemon=True) for _ in range(workers)]
        for thread in running:
            thread.start()
        _wait(running, stop)
    give_back()
    if failed:
        raise failed[0]
    if waiting or (stop.is_set() and not asked):
        raise KeyboardInterrupt
    return found


def give_back() -> None:
    """Give freed memory back to the system: threads that come and go leave it behind in pieces (glibc alone)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _wait(running: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Wait for all, however often somebody asks to stop."""
    for thread in running:
        while thread.is_alive():
            try:
                thread.join(0.1)
            except KeyboardInterrupt:
                stop.set()


@contextmanager
def _share(works: int) -> Iterator[tuple[int, int]]:
    """How many threads share the works, and how many of torch's each has; all are the caller's again afterwards."""
    before = torch.get_num_threads()
    workers = min(works, before)
    torch.set_num_threads(before // workers)
    try:
        yield workers, before // workers
    finally:
        torch.set_num_threads(before)
