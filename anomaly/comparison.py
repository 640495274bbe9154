"""Comparison: what would labels add? Rules, the unsupervised detector and labelled models, on the same events.

One split in time for all: labelled models learn from what was known when the scored time began, that is from events
older than the label delay; the unsupervised detector learns from the whole history, and reads no label. All are then
measured on the same later events, with intervals over entities. With several folds the scored time is cut into windows
that follow each other, and for each all is learned anew from what was known before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.bootstrap import Bootstrap, paired_bootstrap
from anomaly.comparison_measures import UNSUPERVISED, Scored, Window, known_cards, measures, over_folds, sentence
from anomaly.comparison_scorers import HEADS, UNLABELLED, Scorers
from anomaly.comparison_world import DAY, VALID_SHARE, World, fraud_of
from anomaly.detector import Detector
from anomaly.digest import money_field
from anomaly.errors import InputError, PackageError, ParameterError
from anomaly.files import json_value, whole_file
from anomaly.history import When, as_events, as_seconds
from anomaly.ingest import Events, write_table
from anomaly.labels import known_at
from anomaly.models.baselines import BASELINES, Isolation
from anomaly.schema import Schema

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

HISTORY_SHARE = 2 / 3  # of the time, where no `since` is given


@dataclass(frozen=True)
class Fold:
    """A test window, what each scorer said of it, and who was left out for which reason."""

    window: Window
    scorers: Mapping[str, Scored]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes
    ----------
    table : polars.DataFrame
        One row per scorer, the best first: ``scorer``, ``labels`` (does it need them), the mean over the folds of each
        of `anomaly.comparison_measures.METRICS`, and ``ap_low`` and ``ap_high``, a 95 % interval over entities.
    spread : polars.DataFrame
        The same rows and measures: standard deviation over the folds, null where there is one fold.
    folds : polars.DataFrame
        One row per fold and scorer: ``fold`` (from 1), ``begin`` and ``end`` (seconds), and its measures.
    curve : polars.DataFrame
        ``known`` (frauds whose label was there), ``scorer``, ``ap``, ``low``, ``high``, in the last window.
    points : mapping of int to mapping of str to ndarray
        The scores behind it, (n,): by number of known frauds, then by scorer.
    window : Window
        The last window, whose events those are.
    beats : mapping
        ``beats[a][b]``: share of the resamples in which the average precision of a is above that of b.
    facts : mapping
        Sizes of the split.
    notes : sequence of str
        Who was left out, and why.
    sentence : str
        What labels would buy.
    """

    table: pl.DataFrame
    spread: pl.DataFrame
    folds: pl.DataFrame
    curve: pl.DataFrame
    points: Mapping[int, Mapping[str, Float]]
    window: Window
    beats: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, Any]
    notes: Sequence[str]
    sentence: str


@dataclass(kw_only=True)
class Comparison:
    """Compares what finds fraud without labels with what finds it with them.

    Parameters
    ----------
    schema : Schema
        Which column is what.
    since : str, date, datetime or seconds, optional
        Events from then on are scored; by default the last third of the time.
    folds : int
        Windows of equal length into which the scored time is cut, each scored by what was known before it. One more
        costs as much time as the first again, the curve not counted, which belongs to the last window.
    label_delay_days : float
        Days until it is known whether an event was fraud. Labels younger than that at `since` train nothing, and past
        fraud counts as a feature only from that age on.
    budget_per_day : int
        Events that a desk looks into each day.
    baselines : sequence of str
        Labelled models of single events beside the heads; of `anomaly.models.baselines.BASELINES`.
    known : sequence of int
        Numbers of known frauds of the label-efficiency curve.
    repeats : int
        Resamples of the entities behind each interval.
    hidden, epochs, seed :
        Of all models.
    say : callable, optional
        Is told what is being done.

    Examples
    --------
    What labels would add to the payments of `simulate`::

        events, labels = simulate()
        compared = Comparison(SIMULATED_SCHEMA).run(events, labels["fraud"])
        print(compared.sentence)
    """

    schema: Schema = field(kw_only=False)
    since: When = None
    folds: int = 1
    label_delay_days: float = 7.0
    budget_per_day: int = 50
    baselines: Sequence[str] = tuple(BASELINES)
    known: Sequence[int] = (10, 30, 100, 300)
    repeats: int = 500
    hidden: int = 64
    epochs: int | None = None
    seed: int = 0
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def run(self, events: Any, labels: Any) -> Compared:
        """Fit and measure all.

        Parameters
        ----------
        events : path, frame or Events
            Whole histories.
        labels : array-like of bool, shape (rows of the input,), or frame with the event id and one further column
            Which events are fraud. Null or NaN = unknown, which counts as genuine.

        Raises
        ------
        InputError
            If no fraud is among the labelled events or among the scored ones, or the labels do not fit the events.
        """
        if not 0 < self.label_delay_days < math.inf:
            raise ParameterError(
                f"compare: label_delay_days must be above 0, got {self.label_delay_days}; a label that is known at "
                "once would be a feature of its own event"
            )
        if self.folds < 1:
            raise ParameterError(f"compare: folds must be at least 1, got {self.folds}")
        if strange := [name for name in self.baselines if name not in BASELINES]:
            raise ParameterError(f"compare: baselines are {', '.join(BASELINES)}, got {', '.join(strange)}")
        read = as_events(events, self.schema)
        fraud = fraud_of(read, labels)
        edges = self._edges(read.frame["time"].to_numpy())
        for begin, end in pairwise(edges):
            self._masks(read.frame["time"].to_numpy(), fraud, begin, end)  # which refuses before any work is done
        folds: list[Fold] = []
        for number, (begin, end) in enumerate(pairwise(edges), 1):
            self.say(f"window {number} of {self.folds}" if self.folds > 1 else "one window")
            world, detector, fold = self._fold(read, fraud, begin, end)
            folds.append(fold)
        points = self._points(world, detector, folds[-1])
        return self._measured(folds, points)

    @property
    def _scorers(self) -> Scorers:
        return Scorers(schema=self.schema, hidden=self.hidden, epochs=self.epochs, seed=self.seed)

    def _edges(self, moments: Float) -> Float:
        """Borders (folds + 1,) of the windows; the last one is infinite."""
        first, last = float(moments.min()), float(moments.max())
        since = as_seconds(self.since)
        since = first + HISTORY_SHARE * (last - first) if since is None else since
        return np.append(np.linspace(since, last, self.folds + 1)[:-1], np.inf)

    def _masks(self, moments: Float, fraud: Mask, begin: float, end: float) -> tuple[Mask, Mask, Mask]:
        """Events (N,) that a window scores, whose labels train, and whose labels say when to stop."""
        first, delay = float(moments.min()), self.label_delay_days * DAY
        known_until = begin - delay
        begin_valid = known_until - VALID_SHARE * (known_until - first)
        scored, labelled = (moments >= begin) & (moments < end), known_at(moments, fraud, delay, begin)
        for what, mask in (("labelled", labelled & (moments < begin_valid)), ("scored", scored)):
            if not fraud[mask].any() or fraud[mask].all():
                raise InputError(
                    f"compare: {int(mask.sum()):,} {what} events hold {int(fraud[mask].sum())} frauds; both fraud and "
                    "genuine events are needed before and after `since`: choose another one, a shorter label delay, or "
                    "fewer folds"
                )
        valid = labelled & (moments >= begin_valid)
        if not fraud[valid].any():  # too few labels to set some aside
            valid = labelled & (np.arange(len(moments)) % 5 == 0)
        return scored, labelled & ~valid, valid

    def _fold(self, read: Events, fraud: Mask, begin: float, end: float) -> tuple[World, Detector, Fold]:
        """Fit and score all for one window."""
        self.say("unsupervised: fitting on the history")
        masks = self._masks(read.frame["time"].to_numpy(), fraud, begin, end)
        scorers, delay = self._scorers, self.label_delay_days * DAY
        world, detector, without = scorers.unsupervised(read, fraud, masks, begin, delay)
        found = {**scorers.rules(world), UNSUPERVISED: without}
        left_out: dict[str, str] = {}
        others = {Isolation.name: scorers.isolation}
        others |= {name: partial(scorers.baseline, name) for name in self.baselines}
        for name, learn in others.items():
            self.say(f"{name}: fitting")
            try:
                found[name] = learn(world)
            except PackageError as error:
                left_out[name] = str(error)
                self.say(f"{name}: left out; {error}")
        for name in HEADS:
            self.say(f"{name}: fitting")
            found[name] = scorers.head(name, world, detector)
        return world, detector, Fold(self._window(world, begin, end), found, left_out)

    def _window(self, world: World, begin: float, end: float) -> Window:
        money, scored, entity = money_field(self.schema), world.scored, world.sequences.sequence
        amount = np.zeros(int(scored.sum()))
        if money is not None:
            amount = world.frame[f"n:{money}"].fill_null(0.0).clip(lower_bound=0.0).to_numpy()[scored]
        known = known_cards(entity, world.time, world.fraud, world.delay)[scored]
        learns = world.train | world.valid
        return Window(
            time=world.time[scored],
            amount=amount,
            entity=entity[scored].astype(np.int64),
            fraud=world.fraud[scored],
            known=known,
            begin=begin,
            end=min(end, float(world.time.max())),
            labelled=int(learns.sum()),
            known_frauds=int((world.fraud & learns).sum()),
        )

    def _points(self, world: World, detector: Detector, fold: Fold) -> dict[int, dict[str, Float]]:
        """Scores of a window by the number of known frauds, then by scorer: the label-efficiency curve."""
        found, everything = fold.scorers, fold.window.known_frauds
        learners: dict[str, Callable[[World], Scored]] = {
            name: partial(self._scorers.baseline, name) for name in self.baselines if name in found
        }
        learners |= {name: partial(self._scorers.head, name, detector=detector) for name in HEADS}
        points = {0: {name: found[name].score for name in UNLABELLED if name in found}}
        for frauds in sorted(frauds for frauds in self.known if frauds < everything):
            self.say(f"with {frauds} known frauds")
            few = world.with_known(frauds, self.seed)
            points[frauds] = {name: learn(few).score for name, learn in learners.items()}
        points[everything] = {name: found[name].score for name in learners}
        return points

    def _measured(self, folds: Sequence[Fold], points: Mapping[int, Mapping[str, Float]]) -> Compared:
        self.say("resampling the entities")
        names, windows = list(folds[0].scorers), [fold.window for fold in folds]
        drawn = self._drawn({name: [fold.scorers[name].score for fold in folds] for name in names}, windows)
        rows, spreads, each = [], [], []
        for name in names:
            found = [measures(fold.scorers[name], fold.window, self.budget_per_day) for fold in folds]
            means, spread = over_folds(found)
            who = {"scorer": name, "labels": name in (*BASELINES, *HEADS)}
            rows.append({**who, **means, "ap_low": drawn.low[name], "ap_high": drawn.high[name]})
            spreads.append({**who, **spread})
            for number, (one, window) in enumerate(zip(found, windows, strict=True), 1):
                each.append({"fold": number, "begin": window.begin, "end": window.end, "scorer": name, **one})
        order = sorted(range(len(rows)), key=lambda at: -drawn.value[names[at]])
        table, spread_table = (_table([some[at] for at in order]) for some in (rows, spreads))
        curve, facts = self._curve(points, windows[-1]), self._facts(windows)
        return Compared(
            table=table,
            spread=spread_table,
            folds=_table(each).sort("fold", maintain_order=True),
            curve=curve,
            points=points,
            window=windows[-1],
            beats=drawn.beats,
            facts=facts,
            notes=[f"{name} is left out: {why}" for name, why in folds[0].left_out.items()],
            sentence=sentence(table, drawn.beats, curve, facts),
        )

    def _curve(self, points: Mapping[int, Mapping[str, Float]], window: Window) -> pl.DataFrame:
        rows = []
        for known, scores in points.items():
            drawn = self._drawn({name: [score] for name, score in scores.items()}, [window])
            for name in scores:
                interval = {"low": drawn.low[name], "high": drawn.high[name]}
                rows.append({"known": known, "scorer": name, "ap": drawn.value[name], **interval})
        return pl.DataFrame(rows)

    def _drawn(self, scores: Mapping[str, Sequence[Float]], windows: Sequence[Window]) -> Bootstrap:
        """Resamples of the entities, one draw for all windows and scorers."""
        return paired_bootstrap(
            {name: np.concatenate(parts) for name, parts in scores.items()},
            np.concatenate([window.fraud for window in windows]),
            np.concatenate([window.entity for window in windows]),
            fold=np.repeat(np.arange(len(windows)), [len(window.fraud) for window in windows]),
            repeats=self.repeats,
            seed=self.seed,
        )

    def _facts(self, windows: Sequence[Window]) -> dict[str, Any]:
        last = windows[-1]
        scored, frauds = (sum(len(w.fraud) for w in windows), sum(int(w.fraud.sum()) for w in windows))
        return {
            "scored": scored,
            "scored_frauds": frauds,
            "base_rate": frauds / scored,
            "scored_entities": len(np.unique(np.concatenate([window.entity for window in windows]))),
            "labelled": last.labelled,
            "known_frauds": last.known_frauds,
            "since": windows[0].begin,
            "until": last.end,
            "folds": len(windows),
            "windows": [
                {
                    "begin": one.begin,
                    "end": one.end,
                    "scored": len(one.fraud),
                    "scored_frauds": int(one.fraud.sum()),
                    "labelled": one.labelled,
                    "known_frauds": one.known_frauds,
                }
                for one in windows
            ],
            "label_delay_days": self.label_delay_days,
            "budget_per_day": self.budget_per_day,
            "seed": self.seed,
        }


def _table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """A table whose measures are numbers even where all of a column are missing."""
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Null).cast(pl.Float64))


def write_comparison(compared: Compared, folder: Path, command: str | None = None) -> list[Path]:
    """Write ``numbers.json``, ``table.csv``, ``folds.csv`` and ``curve.csv`` into `folder`; return their paths.

    The table has a column ``<measure>_sd`` beside each measure, its spread over the folds. The figures of numbers.json
    have flat dotted names, such as ``head.average_precision`` (and ``.low``, ``.high``, ``.sd``), ``beats.head.ratio``
    and ``curve.30.head.ap``; a measure that does not exist is left out. `command` is what makes them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spread = compared.spread.drop("labels").rename(lambda name: name if name == "scorer" else f"{name}_sd")
    tables = {
        "table": compared.table.join(spread, on="scorer", how="left", maintain_order="left"),
        "folds": compared.folds,
        "curve": compared.curve,
    }
    written = [write_table(table, folder / f"{name}.csv") for name, table in tables.items()]
    found = {"command": command, "sentence": compared.sentence, "facts": dict(compared.facts)}
    target = folder / "numbers.json"
    with whole_file(target) as draft:
        content = json_value({**found, "notes": list(compared.notes), "figures": figures_of(compared)})
        draft.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return [target, *written]


def figures_of(compared: Compared) -> dict[str, float]:
    """All figures by a flat dotted name, one number each, sorted."""
    figures: dict[str, float | None] = {}
    for frame, end in ((compared.table, ""), (compared.spread, ".sd")):
        for row in frame.drop("labels").iter_rows(named=True):
            scorer = row.pop("scorer")
            figures |= {f"{scorer}.{measure.replace('.', '_')}{end}": value for measure, value in row.items()}
    for scorer in compared.table["scorer"]:
        for bound in ("low", "high"):
            figures[f"{scorer}.average_precision.{bound}"] = figures.pop(f"{scorer}.ap_{bound}")
    for row in compared.folds.drop("begin", "end").iter_rows(named=True):
        start = f"fold_{row.pop('fold')}.{row.pop('scorer')}"
        figures |= {f"{start}.{measure.replace('.', '_')}": value for measure, value in row.items()}
    for row in compared.curve.iter_rows(named=True):
        start = f"curve.{row['known']}.{row['scorer']}.ap"
        figures |= {start: row["ap"], f"{start}.low": row["low"], f"{start}.high": row["high"]}
    figures |= {f"beats.{a}.{b}": share for a, others in compared.beats.items() for b, share in others.items()}
    return {name: value for name, value in sorted(figures.items()) if value is not None}
