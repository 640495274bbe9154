"""Sections of the speed bench: what is timed, on which events, and under which names."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import _bench_large
import numpy as np
import polars as pl
import torch
from _bench_stream import measure
from _numbers import run_cli
from numpy.typing import NDArray
from torch import nn

from anomaly.detector import Detector
from anomaly.features import Encoder
from anomaly.history import split
from anomaly.ingest import Events, read_events
from anomaly.models.autoencoder import Autoencoder
from anomaly.models.base import SequenceModel
from anomaly.models.forecaster import Forecaster
from anomaly.models.training import Trainer, Training
from anomaly.schema import NumericField, Schema
from anomaly.sequences import Sequences
from anomaly.simulator import SIMULATED_SCHEMA, simulate

Figures = dict[str, float]

SMALL_SCHEMA = Schema(
    time="time",
    entity=("customer_id",),
    event_id="event_id",
    numeric=(NumericField(name="amount", scale="log", tail="upper"),),
    categorical=("device_id",),  # as many as customers: like terminals, too many to be predicted
)
DAYS, SEED, HIDDEN = 90, 77, 64
STEPS, BATCHES = 64, (16, 32, 64, 128)  # of the raw limit; small batches stay in the cache and train fastest
REPEATS = 3
WINDOW, PEER_EVENTS = 32, 20_000  # of PyOD's detector
QUARANTINE_GAPS = 30
SINCE = "2018-08-01"
STREAMED, ONE_CARD_IN = 24_000, 20
MODELS: Mapping[str, type[SequenceModel]] = {"forecaster": Forecaster, "autoencoder": Autoencoder}


def fastest(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Processor seconds of the fastest of some runs: waiting for other programs does not count."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


@contextmanager
def threads(number: int) -> Any:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def raw_limit(inputs: int, hidden: int = HIDDEN) -> tuple[float, float]:
    """Steps a second of `nn.LSTM` alone on random input, forward and forward-backward, each at its best batch."""
    best = [0.0, 0.0]
    lstm = nn.LSTM(inputs, hidden)
    for rows in BATCHES:
        given = torch.randn(STEPS, rows, inputs, requires_grad=True)

        def forward(given: torch.Tensor = given) -> None:
            with torch.inference_mode():
                lstm(given)

        def both(given: torch.Tensor = given) -> None:
            lstm(given)[0].sum().backward()

        for at, work in enumerate((forward, both)):
            work()
            best[at] = max(best[at], STEPS * rows / fastest(work, 15))
    return best[0], best[1]


@dataclass(frozen=True)
class Setting:
    """Simulated payments, encoded, and how they are split."""

    table: pl.DataFrame
    read: Events
    schema: Schema = SIMULATED_SCHEMA

    @classmethod
    def of(cls, customers: int) -> Setting:
        """Simulate."""
        table = simulate(customers=customers, days=DAYS, seed=SEED)[0]
        return cls(table, read_events(table, SIMULATED_SCHEMA))

    def small(self) -> Setting:
        """The same payments by columns like the Handbook's: customer, time, amount, and a device for the terminal."""
        return Setting(self.table, read_events(self.table, SMALL_SCHEMA), SMALL_SCHEMA)

    def of_numbers(self) -> Setting:
        """The same payments without their categories: the same numeric columns, all that PyOD's forecaster can read."""
        schema = self.schema.model_copy(update={"categorical": ()})
        return Setting(self.table, read_events(self.table, schema), schema)

    @cached_property
    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Events that train, stop and calibrate."""
        return split(self.read.frame["time"].to_numpy())

    @cached_property
    def encoder(self) -> Encoder:
        """Fitted on those that train."""
        return Encoder(self.schema).fit(self.read.frame, self.masks[0])

    @cached_property
    def sequences(self) -> Sequences:
        """The encoded events."""
        return self.encoder.transform(self.read.frame)

    def model(self, name: str, hidden: int = HIDDEN) -> SequenceModel:
        """An untrained model: how fast it is does not depend on what it has learned."""
        quarantine = QUARANTINE_GAPS * self.sequences.typical_gap(self.masks[0])
        model = MODELS[name](hidden=hidden, quarantine=quarantine, device="cpu")
        model.prepare(self.encoder.numeric, self.encoder.category)
        return model

    def trainer(self, model: SequenceModel) -> Trainer:
        """Its training loop."""
        assert model.network_ is not None
        train, stop, _ = self.masks
        return Trainer(
            model.network_,
            self.sequences,
            model.table(self.sequences),
            train=train,
            valid=stop,
            training=Training(epochs=REPEATS + 1),
            seed=SEED,
            settings="",
        )


def rates(setting: Setting) -> Figures:
    """Fit and score of each model beside the raw limit, one thread; names that end in ``.small`` are of few columns.

    The heads' work grows with the codes of the categories, the raw limit's does not: with the 469 codes of the
    simulated payments the heads cost more than the memory, with few columns far less.
    """
    few = {f"{name}.small": value for name, value in _rates(setting.small()).items() if name != "raw.gflops"}
    return _rates(setting) | few


def _rates(setting: Setting) -> Figures:
    """Rates with the columns of one schema.

    A pass of training reads each event once: gathering, memory, heads, gradients and optimiser. An epoch also judges
    the later events and looks for runs to leave out. Scoring makes the tensors, and reads, judges and gives back all.
    """
    found: Figures = {}
    spent = dict.fromkeys(("fit", "fit.epoch", "score", "raw.fit", "raw.score"), 0.0)
    with threads(1):
        for name in MODELS:
            model = setting.model(name)
            trainer = setting.trainer(model)
            assert model.network_ is not None
            inputs = model.network_.memory.embedding.size
            before = raw_limit(inputs)
            events = trainer.plan.events
            seconds = {
                "fit": fastest(lambda trainer=trainer: trainer._pass(1, None)) / events,  # type: ignore[misc]
                "fit.epoch": fastest(lambda trainer=trainer: trainer._epoch(None)) / events,  # type: ignore[misc]
                "score": fastest(lambda model=model: model.errors(setting.sequences)) / len(setting.sequences),  # type: ignore[misc]
            }
            forward, both = (max(pair) for pair in zip(before, raw_limit(inputs), strict=True))
            seconds |= {"raw.fit": 1 / both, "raw.score": 1 / forward}
            for part, value in seconds.items():
                spent[part] += value
                found[f"{part}.{name}.events_per_second"] = 1 / value
            found[f"inputs.{name}"] = float(inputs)
            found[f"outputs.{name}"] = float(model.fields.number_width + model.fields.category_width)
            for part, limit in (("fit", both), ("fit.epoch", both), ("score", forward)):
                found[f"{part}.{name}.share_of_raw"] = 1 / (seconds[part] * limit)
        square = torch.randn(1024, 1024)
        found["raw.gflops"] = 2 * 1024**3 / fastest(lambda: square @ square, 10) / 1e9
    found["fit.share_of_raw"] = spent["raw.fit"] / spent["fit"]
    found["fit.epoch.share_of_raw"] = spent["raw.fit"] / spent["fit.epoch"]
    found["score.share_of_raw"] = spent["raw.score"] / spent["score"]
    return found


def stages(setting: Setting) -> Figures:
    """Events a second, share of the time and peak memory of each stage, from a file to scores in a file, one thread."""
    found: Figures = {}
    seconds: dict[str, float] = {}
    events = len(setting.read.frame)

    def stage(name: str, work: Callable[[], Any]) -> Any:
        _forget_peak()
        began = time.process_time()
        made = work()
        seconds[name] = time.process_time() - began
        if (peak := _peak_mb()) is not None:
            found[f"stages.{name}.peak_mb"] = peak
        return made

    with tempfile.TemporaryDirectory(prefix="anomaly-speed-") as folder, threads(1):
        path = Path(folder) / "events.parquet"
        setting.table.write_parquet(path)
        detector = Detector(SIMULATED_SCHEMA, epochs=1, rehearse=False, device="cpu")
        detector.fit(setting.read, progress=False)
        read = stage("read", lambda: read_events(path, SIMULATED_SCHEMA))
        sequences = stage("encode", lambda: detector.encoder_.transform(read.frame))
        stage("batch", lambda: [model.table(sequences) for model in detector.models_])
        trainers = [setting.trainer(setting.model(name)) for name in MODELS]
        stage("epoch", lambda: _one_epoch(trainers))
        errors = stage("score", lambda: detector.errors(sequences))
        stage("calibrate", lambda: detector.scorer_.fit(errors, sequences, setting.masks[2]))
        scores = stage("judge_and_table", lambda: detector.score(read))
        seconds["judge_and_table"] = max(0.0, seconds["judge_and_table"] - seconds["encode"] - seconds["score"])
        stage("write", lambda: scores.write_parquet(Path(folder) / "scores.parquet"))
    whole = sum(seconds.values())
    for name, value in seconds.items():
        found[f"stages.{name}.events_per_second"] = events / max(value, 1e-9)
        found[f"stages.{name}.share_of_time"] = value / whole
    return found | {"stages.events": float(events)}


def _one_epoch(trainers: Sequence[Trainer]) -> None:
    for trainer in trainers:
        trainer._epoch(None)


def peers(setting: Setting) -> Figures:
    """Our forecaster beside PyOD's LSTM forecaster: same events and numeric columns, hidden 64, one thread.

    PyOD runs a window of 32 steps for each event; it has two layers by default, and is measured with one as well, as
    ours has. Its rate of training is that of one epoch of its loop, without what comes before and after. It reads no
    categories, so ours is given none, and with all columns once more: those figures have ``all_columns`` in them.
    """
    from pyod.models.ts_lstm import LSTMAD

    alike = setting.of_numbers()
    numeric = np.nan_to_num(alike.sequences.numeric[:PEER_EVENTS].astype(np.float64)).clip(-10, 10)
    found: Figures = {}
    with threads(1):
        for layers in (1, 2):
            timed = _timed(LSTMAD)(window_size=WINDOW, hidden_size=HIDDEN, n_layers=layers, epochs=1).fit(numeric)
            scored = fastest(lambda timed=timed: timed.decision_function(numeric))  # type: ignore[misc]
            found[f"peers.pyod_lstm_{layers}.fit.events_per_second"] = len(numeric) / timed.seconds
            found[f"peers.pyod_lstm_{layers}.score.events_per_second"] = len(numeric) / scored
        for name, one in (("", alike), (".all_columns", setting)):
            for part, ours in _forecaster_rates(one).items():
                best = max(found[f"peers.pyod_lstm_{layers}.{part}.events_per_second"] for layers in (1, 2))
                found[f"peers.ours{name}.{part}.events_per_second"] = ours
                found[f"{part}.times_best_peer{name}"] = ours / best
    return found


def _forecaster_rates(setting: Setting) -> Figures:
    """Events a second that the forecaster trains and scores."""
    model = setting.model("forecaster")
    trainer = setting.trainer(model)
    return {
        "fit": trainer.plan.events / fastest(lambda: trainer._pass(1, None)),
        "score": len(setting.sequences) / fastest(lambda: model.errors(setting.sequences)),
    }


def _timed(detector: Any) -> Any:
    """A detector of PyOD that tells the processor ``seconds`` of its training loop."""

    class Timed(detector):  # type: ignore[misc]  # PyOD comes without types
        def _train_model(self, *given: Any) -> Any:
            began = time.process_time()
            made = super()._train_model(*given)
            self.seconds = time.process_time() - began
            return made

    return Timed


def scaling(setting: Setting) -> Figures:
    """Rate of scoring over events, the length of a sequence, hidden units and threads; forecaster alone."""
    found: Figures = {}
    few = setting.sequences.take(np.arange(min(100, len(setting.sequences.entity))))
    sizes, seconds = [], []
    with threads(1):
        model = setting.model("forecaster")
        for copies in (1, 4, 16):
            many = few.take(np.tile(np.arange(len(few.entity)), copies))
            sizes.append(len(many))
            seconds.append(fastest(lambda many=many: model.errors(many)))  # type: ignore[misc]
            found[f"scaling.events.{len(many)}.seconds"] = seconds[-1]
        found["scaling.small.exponent"] = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
        for name, length in (("one_long", 100_000), ("of_100", 100), ("of_1", 1)):
            made = _of_length(setting.sequences, length, 100_000)
            seconds_of = fastest(lambda made=made: model.errors(made), 2)  # type: ignore[misc]
            found[f"scaling.length.{name}.events_per_second"] = len(made) / seconds_of
        for hidden in (16, 32, 64, 128):
            other = setting.model("forecaster", hidden)
            assert other.network_ is not None
            ours = len(few) / fastest(lambda other=other: other.errors(few))  # type: ignore[misc]
            found[f"scaling.hidden.{hidden}.events_per_second"] = ours
            found[f"scaling.hidden.{hidden}.share_of_raw"] = (
                ours / raw_limit(other.network_.memory.embedding.size, hidden)[0]
            )
    for number in (1, 2):
        with threads(number):
            began = time.perf_counter()
            model.errors(setting.sequences)
            wall = time.perf_counter() - began
            found[f"scaling.threads.{number}.events_per_wall_second"] = len(setting.sequences) / wall
    return found


def stream(setting: Setting, data: Path | None = None) -> Figures:
    """Latency of a push after a warm-up, and what is kept of an entity; of Handbook's cards too, if they are given."""
    with threads(1):
        detector = Detector(SIMULATED_SCHEMA, epochs=1, rehearse=False, device="cpu")
        detector.fit(setting.read, progress=False)
        found = {f"stream.{name}": value for name, value in measure(detector, first(setting.table, STREAMED)).items()}
        return found if data is None else found | handbook_stream(data)


def first(table: pl.DataFrame, number: int) -> pl.DataFrame:
    """The first events in the order of time."""
    return table.sort("time", maintain_order=True).head(number)


def handbook_stream(data: Path) -> Figures:
    """The same of one card in `ONE_CARD_IN`, each from its first payment to its last; two thirds of the time train."""
    from handbook import SCHEMA

    cards = pl.scan_parquet(data).filter(pl.col("CUSTOMER_ID") % ONE_CARD_IN == 0).collect()
    detector = Detector(SCHEMA, epochs=1, rehearse=False, device="cpu").fit(cards, until=SINCE, progress=False)
    found = {f"stream.handbook.{name}": value for name, value in measure(detector, cards).items()}
    return found | {"stream.handbook.cards": float(cards["CUSTOMER_ID"].n_unique())}


SIMULATED: Mapping[str, Callable[[Setting], Figures]] = {
    "rates": rates,
    "stages": stages,
    "peers": peers,
    "scaling": scaling,
}


def start() -> Figures:
    """Wall-clock seconds of an import, and of the help as a process, the fastest of some."""
    importing = "import time; began = time.perf_counter(); import anomaly; print(time.perf_counter() - began)"
    imports, helps = [], []
    for _ in range(5):
        said = subprocess.run([sys.executable, "-c", importing], check=True, stdout=subprocess.PIPE, encoding="utf-8")
        imports.append(float(said.stdout))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "anomaly", "--help"], check=True, stdout=subprocess.DEVNULL)
        helps.append(time.perf_counter() - began)
    return {"import.seconds": min(imports), "help.seconds": min(helps)}


def handbook(data: Path) -> Figures:
    """The Handbook's payments by the public command line: fit on the first four months, and score the whole file."""
    from handbook import SCHEMA

    with tempfile.TemporaryDirectory(prefix="anomaly-speed-") as name:
        folder = Path(name)
        schema, detector = folder / "anomaly.toml", folder / "detector"
        schema.write_text(SCHEMA.to_toml(), encoding="utf-8")
        fit = run_cli(["fit", data, "--schema", schema, "--until", SINCE, "--out", detector])
        score = run_cli(["score", data, "--detector", detector, "--out", folder / "scores.parquet"])
    peaks = {"fit": fit.peak_mb, "score": score.peak_mb}
    known = {f"handbook.{part}_peak_mb": peak for part, peak in peaks.items() if peak is not None}
    found = {"handbook.fit_seconds": fit.seconds, "handbook.score_seconds": score.seconds, **known}
    return found | ({"handbook.peak_mb": max(known.values())} if known else {})


def large(events: int) -> Figures:
    """Score far more events than fit into memory, by the command line within 1.8 GB; the exponent from a tenth on.

    The exponent is that of the processor time, which hardly depends on what else the machine does; that of the clock
    stands beside it.
    """
    found: Figures = {}
    sizes, clock, processor = (events // 10, events), [], []
    with tempfile.TemporaryDirectory(prefix="anomaly-speed-") as name:
        detector = None
        for size in sizes:
            runs, detector = _bench_large.measure(Path(name), size, "1.8GB", detector)
            score = runs["score"]
            clock.append(score.seconds)
            processor.append(score.processor_seconds or np.nan)
            found |= {"large.events": float(size), "large.seconds": score.seconds}
            if score.peak_mb is not None:
                found["large.peak_mb"] = score.peak_mb
    found["large.processor_seconds"] = processor[-1]
    exponents = {"scaling.exponent": processor, "scaling.exponent_by_the_clock": clock}
    return found | {
        key: float(np.diff(np.log(seconds))[0] / np.diff(np.log(sizes))[0]) for key, seconds in exponents.items()
    }


def _of_length(sequences: Sequences, length: int, events: int) -> Sequences:
    """Sequences of one length from events in any order: only how long they are matters."""
    pick = np.arange(events) % len(sequences)
    number = events // length
    return Sequences(
        entity=np.arange(number).astype(str).astype(object),
        offsets=np.arange(number + 1) * length,
        time=np.tile(np.arange(length, dtype=np.float64) * 3600.0, number),
        numeric=sequences.numeric[pick],
        category=sequences.category[pick],
        row=np.arange(events),
    )


def _forget_peak() -> None:
    """Start the peak memory of this process anew, where the system can (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _peak_mb() -> float | None:
    """Peak memory since then in MiB; None where unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
    return float(lines[0].split()[1]) / 1024 if lines else None
