"""Progress of long work on standard error: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class TrainingBar:
    """A training run's progress: loss, events per second and time left.

    Parameters
    ----------
    name : str
        What is trained.
    show : bool, optional
        Show it at all; by default if standard error is a terminal.
    """

    def __init__(self, name: str, *, show: bool | None = None) -> None:
        self.console = Console(stderr=True)
        self.name = name
        self.show = self.console.is_terminal if show is None else show
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self._started = time.perf_counter()
        self._done = 0

    def __enter__(self) -> TrainingBar:
        """Start the bar."""
        if self.show and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} events/s"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self._add_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if self.bar is not None:
            self.bar.stop()

    @classmethod
    @contextmanager
    def all(cls, names: Sequence[str], *, show: bool | None = None) -> Iterator[list[TrainingBar]]:
        """One below the other: progress of several runs that go on at the same time."""
        bars = [cls(name, show=show) for name in names]
        with bars[0] as first:
            for bar in bars[1:]:
                bar.bar = first.bar
                bar._add_task()
            yield bars

    def begin(self) -> None:
        """Take the time from now on."""
        self._started = time.perf_counter()

    def _add_task(self) -> None:
        if self.bar is not None:
            self.task = self.bar.add_task(f"{self.name} epoch 1", total=None, loss=float("nan"), speed=0.0)

    def events(self, done: int, total: int, loss: float) -> None:
        """`done` more events of an epoch of `total` are trained; mean loss so far in the epoch."""
        self._done += done
        if self.bar is not None:
            speed = self._done / (time.perf_counter() - self._started)
            self.bar.update(self.task, total=total, completed=self._done % (total + 1), loss=loss, speed=speed)

    def epoch(self, epoch: int, epochs: int, train_loss: float, valid_loss: float) -> None:
        """An epoch is over."""
        if not self.show:
            return
        seconds = time.perf_counter() - self._started
        text = f"epoch {epoch} of at most {epochs}: loss {train_loss:.3f}, later time {valid_loss:.3f}"
        self.say(f"{text}, {self._done / seconds:,.0f} events/s")
        self._started, self._done = time.perf_counter(), 0
        if self.bar is not None:
            self.bar.update(self.task, description=f"{self.name} epoch {epoch + 1}", completed=0)

    def say(self, text: str) -> None:
        """Print a line above the bar, or on standard error where there is no terminal."""
        if self.bar is not None:
            self.bar.console.print(f"{self.name}: {text}", style="dim", highlight=False)
        else:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)  # noqa: T201 (what it is for)
