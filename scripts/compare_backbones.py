"""Compare what remembers: the same supervised head on an LSTM, a GRU, a plain RNN, a convolution, attention, nothing.

As in::

    python3 scripts/compare_backbones.py

On simulated payments with labels, the same epochs for each: average precision on later payments beside the rule
`ratio` (amount over the median of the customer's earlier amounts), speed, and size. Then what a short memory cannot do:
tell after a hundred quiet events which cue came first. Speeds are by processor time, so that other work on the machine
counts little. Figures go to reports/compare.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _environment import ROOT, ensure, inside, run_inside

if __name__ == "__main__" and not inside():
    sys.exit(run_inside(ensure(()), __file__, sys.argv[1:]))

import numpy as np
import torch
from _numbers import merge_numbers, table, write_text
from _peers import rules
from numpy.typing import NDArray

from anomaly.evaluation import average_precision
from anomaly.features import Column, Encoder
from anomaly.ingest import read_events
from anomaly.models.backbones import CAUSAL, CONV_REACH, LAYERS, WINDOW
from anomaly.models.classifier import Classifier
from anomaly.sequences import Sequences
from anomaly.simulator import SIMULATED_SCHEMA, simulate

Bools = NDArray[np.bool_]

TRAIN, VALID = 0.6, 0.75  # quantiles of time: what trains, then what chooses the epoch, then the test
CUE = Column(name="cue", kind="category", scored=False, vocabulary=("left", "right", "quiet", "answer"))
LEFT, RIGHT, QUIET, ANSWER = 2, 3, 4, 5
LENGTHS = (98, 108)  # events from the cue to the answer, both included, differing so that no distance is learned
BESIDE = ("lstm_reach", "ratio")  # in the table beside the backbones
REACH = 256  # steps that the gates of `lstm_reach` start with
KEPT = 0.95  # share of right answers from which on a cue is kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the figures, and print where they are."""
    wish = parse(arguments)
    torch.set_num_threads(1)
    figures = on_payments(wish.customers, wish.days, wish.epochs, wish.seeds)
    figures |= on_cues(wish.cue_epochs, wish.seeds)
    sizes = {name: getattr(wish, name) for name in ("customers", "days", "epochs", "cue_epochs", "seeds")}
    changed = [f"--{name.replace('_', '-')} {value}" for name, value in sizes.items() if value != vars(parse([]))[name]]
    command = " ".join(["python scripts/compare_backbones.py", *changed])
    merge_numbers(wish.reports, "backbone", command, figures)
    write_text(wish.reports / "backbones.md", page(figures, command))
    print(f"figures: {wish.reports}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, default=ROOT / "reports" / "compare", help="folder of the figures")
    parser.add_argument("--customers", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--days", type=int, default=60, help="of payments (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--cue-epochs", type=int, default=24, help="of the cue's task (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="simulations, and fits (default: %(default)s)")
    return parser.parse_args(arguments)


def on_payments(customers: int, days: int, epochs: int, seeds: int) -> dict[str, float]:
    """Average precision, speeds and size of each backbone; mean over the seeds, with the least and the largest AP."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("ratio", *CAUSAL)}
    totals = np.zeros(3)
    for seed in range(seeds):
        play = Play.of(customers, days, seed)
        found["ratio"].append({"ap": average_precision(play.ratio[play.test], play.fraud[play.test])})
        totals += [len(play.fraud), play.test.sum(), play.fraud[play.test].sum()]
        for name in CAUSAL:
            print(f"{name}, seed {seed}", flush=True)
            found[name].append(
                measured(play, Classifier(backbone=name, epochs=epochs, seed=seed, calibration="none", device="cpu"))
            )
    figures: dict[str, float] = {"backbone.seeds": seeds, "backbone.epochs": epochs}
    for name, runs in found.items():
        figures |= {f"backbone.{name}.{key}": float(np.mean([run[key] for run in runs])) for key in runs[0]}
        figures[f"backbone.{name}.ap.low"] = min(run["ap"] for run in runs)
        figures[f"backbone.{name}.ap.high"] = max(run["ap"] for run in runs)
    return figures | dict(
        zip(("backbone.events", "backbone.test", "backbone.test_frauds"), totals.tolist(), strict=True)
    )


@dataclass(frozen=True, eq=False)
class Play:
    """A simulation, encoded: N payments, which are fraud, which train and which test, and the rule's scores."""

    sequences: Sequences
    columns: tuple[tuple[Column, ...], tuple[Column, ...]]
    fraud: Bools
    train: Bools
    test: Bools
    ratio: NDArray[np.float64]

    @classmethod
    def of(cls, customers: int, days: int, seed: int) -> Play:
        """Simulate and encode."""
        events, labels = simulate(customers=customers, days=days, seed=seed)
        frame = read_events(events, SIMULATED_SCHEMA).frame
        moment = frame["time"].to_numpy()
        first, second = np.quantile(moment, [TRAIN, VALID])
        train, test = moment < first, moment >= second
        encoder = Encoder(SIMULATED_SCHEMA).fit(frame, train)
        sequences = encoder.transform(frame)
        marked = events.join(labels, on="event_id", how="left", maintain_order="left")["fraud"].to_numpy()
        back = frame["row"].to_numpy()
        amount, category = events["amount"].to_numpy()[back], events["merchant_category"].to_numpy()[back]
        told = rules(sequences.sequence, amount, moment, category, train)
        columns = (encoder.numeric, encoder.category)
        return cls(sequences, columns, marked.astype(bool)[back], train, test, told["ratio"])


def measured(play: Play, model: Classifier) -> dict[str, float]:
    """Fit, score, and tell how well and how fast."""
    began = time.process_time()
    model.fit(play.sequences, *play.columns, play.fraud, train=play.train, valid=~play.train & ~play.test)
    fitted = time.process_time()
    chance = model.predict_proba(play.sequences)
    scored = time.process_time()
    assert model.network_ is not None and model.run_ is not None
    return {
        "ap": average_precision(chance[play.test], play.fraud[play.test]),
        "fit_events_per_second": float(play.train.sum()) * model.run_.epoch / (fitted - began),
        "score_events_per_second": len(play.fraud) / (scored - fitted),
        "parameters": sum(one.numel() for one in model.network_.memory.parameters()),
        "state": sum(one.numel() for one in model.network_.memory.empty(1)),
    }


def on_cues(epochs: int, seeds: int) -> dict[str, float]:
    """Share of answers given rightly, mean over fits of other seeds, with the cue a hundred events back; 0.5 = guess.

    Beside the backbones, all of which start as usual, `lstm_reach`: an LSTM whose gates start with a long memory.
    """
    figures = {}
    sequences, fraud, answer = cues(320, 1)
    late = sequences.sequence >= 256
    later, truth, asked = cues(400, 2)
    for name in (*CAUSAL, "lstm_reach"):
        found = []
        for seed in range(seeds):
            print(f"{name}, cue, seed {seed}", flush=True)
            model = Classifier(
                backbone=name.removesuffix("_reach"),
                hidden=16,
                epochs=epochs,
                learning_rate=0.01,
                seed=seed,
                device="cpu",
                reach=REACH if name == "lstm_reach" else 0,
            )
            model.fit(sequences, (), (CUE,), fraud, train=answer & ~late, valid=answer & late)
            chance = model.predict_proba(later, mask=asked)[asked]
            found.append(float(np.mean((chance > 0.5) == truth[asked])))
        figures[f"backbone.{name}.cue"] = float(np.mean(found))
        figures[f"backbone.{name}.cue.kept"] = sum(one >= KEPT for one in found)
    return figures | {"backbone.cue.fits": seeds}


def cues(entities: int, seed: int) -> tuple[Sequences, Bools, Bools]:
    """Left or right, about a hundred quiet events, then the answer, the one labelled event: fraud if it was left."""
    draw = np.random.default_rng(seed)
    length = draw.integers(*LENGTHS, entities)
    left = draw.random(entities) < 0.5
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    code = np.full(offsets[-1], QUIET, dtype=np.int32)
    code[offsets[:-1]], code[offsets[1:] - 1] = np.where(left, LEFT, RIGHT), ANSWER
    answer = code == ANSWER
    sequences = Sequences(
        entity=np.arange(entities).astype(str).astype(object),
        offsets=offsets,
        time=np.arange(len(code), dtype=np.float64) * 60.0,
        numeric=np.zeros((len(code), 0), dtype=np.float32),
        category=code[:, None],
        row=np.arange(len(code)),
    )
    return sequences, answer & np.repeat(left, length), answer


def page(figures: Mapping[str, float], command: str) -> str:
    """Compose backbones.md."""

    def row(name: str) -> list[object]:
        mine = {key.removeprefix(f"backbone.{name}."): value for key, value in figures.items()}
        kept = f"{mine['cue.kept']:.0f} of {figures['backbone.cue.fits']:.0f}" if "cue" in mine else ""
        between = f"{mine['ap.low']:.3f}–{mine['ap.high']:.3f}" if "ap" in mine else ""
        numbers = ("fit_events_per_second", "score_events_per_second", "parameters", "state")
        cells = (f"{mine[key]:,.0f}" if key in mine else "" for key in numbers)
        return [name, mine.get("ap", ""), between, mine.get("cue", ""), kept, *cells]

    head = [
        "backbone",
        "AP",
        "least–most",
        "cue",
        "cue kept",
        "fit, events/s",
        "score, events/s",
        "parameters",
        "state",
    ]
    total = {key: figures[f"backbone.{key}"] for key in ("epochs", "seeds", "events", "test", "test_frauds")}
    share = total["test_frauds"] / total["test"]
    payments = f"""The same supervised head per event, {total["epochs"]:.0f} epochs, on {total["seeds"]:.0f} simulations
    of {total["events"]:,.0f} payments in all, tested on the last {total["test"]:,.0f}, of which
    {total["test_frauds"]:,.0f} are fraud ({share:.2%}: the AP of a random ranking). Labels are known at once, so that
    figures are higher than in practice. Speeds are events per second of processor time, of one thread. `ratio` is a
    rule: the amount over the median of the customer's earlier amounts. `none` remembers nothing itself, but like the
    others its head sees the averages of the customer's earlier events. Parameters are those of the memory with its
    embeddings; the state is how many numbers are kept of a customer from event to event."""
    cue = f"""The cue: which of two came first, told {LENGTHS[0] - 2} to {LENGTHS[1] - 3} quiet events later. "cue" is
    the mean share of right answers over the fits (0.5 is a guess), and it is kept where the share is at least {KEPT}.
    `lstm_reach` is the LSTM with `reach={REACH}`, whose gates start with memories of up to {REACH} steps; the others
    start as torch starts them."""
    parts = [f"Made by\n\n    {command}", _filled(payments), table(head, [row(name) for name in (*CAUSAL, *BESIDE)])]
    return "\n\n".join(["# Backbones", *parts, _filled(cue), _filled(findings(figures))]) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


def findings(figures: Mapping[str, float]) -> str:
    """Tell what the figures say, and what they do not."""
    ap, low, high, fast = (
        {name: figures[f"backbone.{name}.{key}"] for name in CAUSAL}
        for key in ("ap", "ap.low", "ap.high", "score_events_per_second")
    )
    best, ratio = max(ap, key=ap.__getitem__), figures["backbone.ratio.ap"]
    lead, spread = ap[best] - ap["lstm"], float(np.mean([high[name] - low[name] for name in CAUSAL]))
    gain = ap["lstm"] - ap["none"]
    below = [name for name in CAUSAL if ap[name] <= ratio]
    kept = {name: figures[f"backbone.{name}.cue.kept"] for name in (*CAUSAL, "lstm_reach")}
    fits = figures["backbone.cue.fits"]
    always = ", ".join(name for name, number in kept.items() if number == fits) or "no backbone"
    never = ", ".join(name for name, number in kept.items() if not number) or "no backbone"
    said = [
        f"By average precision: {', '.join(sorted(ap, key=lambda name: -ap[name]))}.",
        f"The best, {best}, is {lead:.3f} above the LSTM; one backbone differs by {spread:.3f} from simulation to",
        f"simulation on average, so {'that is no more than a hint' if lead < spread else 'that lead is clear'}.",
        f"Remembering brings the LSTM {gain:+.3f} over `none`, {'less' if gain < spread else 'more'} than that.",
        f"The rule has {ratio:.3f}; {'no better is ' + ', '.join(below) if below else 'every backbone is above it'}.",
        f"In every fit the cue is kept by {always}, in no fit by {never}: to see it is not",
        f"yet to learn it. The LSTM as torch starts it kept it in {kept['lstm']:.0f} of {fits:.0f} fits,",
        f"with `reach={REACH}` in {kept['lstm_reach']:.0f}.",
        f"A convolution sees just the last {CONV_REACH} events, attention the last {LAYERS * (WINDOW - 1) + 1}, and",
        "for each entity their state holds what they see, where a recurrence holds a vector or two and has no limit.",
        f"Scoring is fastest with {max(fast, key=fast.__getitem__)}, slowest with {min(fast, key=fast.__getitem__)}.",
        choice(figures, lead < spread),
    ]
    return " ".join(said)


def choice(figures: Mapping[str, float], near: bool) -> str:
    """Tell why the LSTM is the usual one, or that these figures speak against it; `near` = none is clearly better."""
    state, kept = {}, {}
    for key in ("gru", "rnn", "transformer", "lstm", "lstm_reach"):
        kept[key] = figures[f"backbone.{key}.cue.kept"]
        state[key] = figures.get(f"backbone.{key}.state", 0.0)
    times = figures["backbone.lstm.score_events_per_second"] / figures["backbone.transformer.score_events_per_second"]
    if not near or kept["lstm_reach"] <= kept["rnn"]:
        return "These figures speak against the LSTM as the usual one."
    fits = f"{kept['lstm_reach']:.0f} of {figures['backbone.cue.fits']:.0f} fits"
    return (
        "That is why the LSTM is the usual one: none ranks clearly better; where an old cue decides, its gates can be "
        f"made to keep it ({fits}), where RNN and GRU kept it in {kept['rnn']:.0f} and {kept['gru']:.0f}; and it "
        f"carries {state['lstm']:,.0f} numbers for each customer, where the Transformer, which kept the cue in "
        f"{kept['transformer']:.0f}, carries {state['transformer']:,.0f} and scores {times:.1f} times slower."
    )


if __name__ == "__main__":
    sys.exit(main())
