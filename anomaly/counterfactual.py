"""Counterfactuals: the smallest change of one or two of an event's own fields with which it would not have alerted.

Found with the detector itself, and stated only after the changed event was scored behind its entity's whole history:
all that is derived from a field (sums, the first time at a merchant, a speed) changes with it. Wachter, Mittelstadt and
Russell (2017) call this the closest possible world; here "closest" means few fields, the one with the largest part in
the surprise first (see `anomaly.breakdown`), and of a number the value nearest to what was observed.

An alert may rest on what came before it. Where no change of the event's own fields is enough, the unusual events
shortly before are left out as well: the event, so changed, is scored behind the history without them. What is stated
can be checked by anybody: change the table so, and score it again.

Many changes are judged in one pass (see `anomaly.rescoring`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.alerts import duration_text, number_text
from anomaly.breakdown import PAST, histories
from anomaly.digest import batch_level, money_field
from anomaly.errors import InputError
from anomaly.explain import editable, expectations
from anomaly.features import Column, Encoder, entity_offsets
from anomaly.models.base import SequenceModel
from anomaly.rescoring import Rescorer
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, Errors, Scorer
from anomaly.sequences import Sequences
from anomaly.thresholds import Threshold
from anomaly.wording import one_in

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

HOURS_LATER = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0)
MOST_HAD = 3  # categories that the entity has had most, beside the likeliest
GRID, ROUNDS = 8, 3  # a number is narrowed down to 1 / 9^3 of the way between what passes and what does not
MOST_EVENTS = 200_000  # of the histories that are judged at once
VALUES = 2  # of each field that are tried together with those of another, the best alone
SCHEMA: Mapping[str, Any] = {
    "row": pl.Int64,
    "changes": pl.List(pl.Struct({"field": pl.String, "from": pl.String, "to": pl.String, "bound": pl.String})),
    "sentence": pl.String,
    "without": pl.List(pl.Int64),
    "p_value": pl.Float64,
    "passes": pl.Boolean,
}

Value = tuple[Any, ...]  # of a field's canonical columns


@dataclass(frozen=True)
class Judge:
    """What a search needs of a fitted detector.

    Attributes
    ----------
    schema, encoder, scorer, model :
        The detector's own; the model tells what was expected.
    errors : callable
        (sequences, which events) -> errors by model, as `Detector.errors`.
    rule : Threshold
        The fitted decision rule.
    quarantine : float
        Seconds until an event is in the models' memory.
    whole : callable, optional
        (natural logs of p-values (n,), input rows (n,)) -> natural logs of the p-values that are judged by the rule,
        where other detectors have a say too.
    """

    schema: Schema
    encoder: Encoder
    scorer: Scorer
    model: SequenceModel
    errors: Callable[[Sequences, Mask], Errors]
    rule: Threshold
    quarantine: float
    whole: Callable[[Float, NDArray[np.int64]], Float] = lambda log_p, _: log_p


@dataclass(frozen=True)
class Change:
    """One field with another value; `columns` are its canonical columns."""

    name: str
    columns: tuple[str, ...]
    value: Value
    bound: str  # "<=" or ">=" where every value beyond will do as well, else "="


@dataclass
class Finding:
    """Changes that let an event pass.

    Attributes
    ----------
    changes : list of Change
        One or two; a number comes last.
    p : float
        What the event so changed was scored with.
    limit : float
        Of the number, the value nearest to the one that passes that is known not to pass.
    run : bool
        Are the unusual events shortly before left out too.
    """

    changes: list[Change]
    p: float
    limit: float
    run: bool = False


@dataclass
class Event:
    """An event to change.

    Attributes
    ----------
    row, first, last : int
        Input row; where its entity's history begins in the frame, and where it stands itself.
    number : int
        Of its history in the search.
    order : dict of str to float
        By field, its part in the surprise.
    options : dict of str to list of Change
        By field, in the order of their parts, the changes to try.
    best : dict of str to list of (float, Change)
        By field, the p-values of its changes alone, the largest first.
    found : list of Finding
        What lets it pass.
    nearest : (list of Change, float)
        What comes nearest to passing, and its p-value.
    past_alone : bool
        Would it alert however usual it were itself.
    run : ndarray of int
        Positions in the frame of the unusual events shortly before.
    """

    row: int
    first: int
    last: int
    number: int
    order: dict[str, float]
    options: dict[str, list[Change]] = field(default_factory=dict)
    best: dict[str, list[tuple[float, Change]]] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)
    nearest: tuple[list[Change], float] = field(default_factory=lambda: ([], 0.0))
    past_alone: bool = False
    run: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def counterfactuals(
    judge: Judge, frame: pl.DataFrame, rows: Sequence[int], scores: pl.DataFrame, parts: pl.DataFrame
) -> pl.DataFrame:
    """Say of each event what would have let it pass.

    Parameters
    ----------
    judge : Judge
        The detector and the rule.
    frame : polars.DataFrame
        Canonical events, whole histories.
    rows : sequence of int
        Input rows of the events.
    scores : polars.DataFrame
        Score table of these rows and the others: some rules look at all of them.
    parts : polars.DataFrame
        `Breakdown.parts` of these rows: the field of the largest part is changed first.

    Returns
    -------
    polars.DataFrame
        One row per event, in the order of `rows`: ``row``; ``changes``, a list of ``field``, ``from``, ``to`` and
        ``bound`` ("<=", ">=" or "="); ``sentence``; ``without``, the input rows of earlier events that are left out
        too; ``p_value`` of the event so changed (as it is, where none was found: then both lists are empty);
        ``passes``, which is true only of what was scored so.

    Raises
    ------
    InputError
        If a row is of no accepted event, or has no score.
    """
    whole, chosen = histories(frame, rows)
    if not len(rows):
        return pl.DataFrame(schema=SCHEMA)
    known = dict(scores.filter(pl.col("row").is_in(rows)).select("row", "p_value").iter_rows())
    if unknown := set(rows) - (known.keys() & set(whole["row"])):
        raise InputError(f"counterfactual: row {min(unknown)} is no scored event; give rows of the score table")
    level = batch_level(judge.rule, scores, judge.schema)
    orders = _orders(judge.schema, parts)
    told: dict[int, dict[str, Any]] = {}
    for at in _blocks(whole, np.flatnonzero(chosen)):
        told |= _Search(judge, whole, at, level, orders).run(known)
    return pl.DataFrame([told[row] for row in rows], schema=SCHEMA, orient="row")


def _blocks(frame: pl.DataFrame, at: NDArray[np.int64]) -> Iterable[NDArray[np.int64]]:
    """The chosen events in blocks whose histories hold a bounded number of events."""
    length = np.cumsum(at - _firsts(frame, at) + 1)
    return np.split(at, np.flatnonzero(np.diff(length // MOST_EVENTS)) + 1)


def _firsts(frame: pl.DataFrame, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the history of each of the events begins."""
    starts = entity_offsets(frame["entity"])
    return np.asarray(starts[np.searchsorted(starts, at, side="right") - 1])


class _Search:
    """The search for some events at once."""

    def __init__(
        self,
        judge: Judge,
        frame: pl.DataFrame,
        at: NDArray[np.int64],
        level: float,
        orders: Mapping[int, dict[str, float]],
    ) -> None:
        self.judge, self.frame, self.level = judge, frame, level
        self.money = money_field(judge.schema)
        rows = frame["row"].to_numpy()
        self.events = [
            Event(int(rows[last]), int(first), int(last), number, orders.get(int(rows[last]), {}))
            for number, (first, last) in enumerate(zip(_firsts(frame, at), at, strict=True))
        ]
        self._histories = self._rescorer([np.arange(event.first, event.last + 1) for event in self.events])
        self._without = self._histories
        self._propose(at)

    def run(self, known: Mapping[int, float]) -> dict[int, dict[str, Any]]:
        """Search; the rows of the result, by input row."""
        wanted = [event for event in self.events if self.alerts(event, known[event.row])]
        self.singles(wanted)
        self.pairs([event for event in wanted if not event.found and not event.past_alone])
        self.without_run([event for event in wanted if not event.found])
        alerted = {event.row for event in wanted}
        return {event.row: self.told(event, known[event.row], alerted=event.row in alerted) for event in self.events}

    # ---- judging ----
    def _rescorer(self, positions: Sequence[NDArray[np.int64]]) -> Rescorer:
        judge = self.judge
        return Rescorer(
            judge.encoder, judge.scorer, judge.errors, judge.quarantine, self.frame, positions, judge.schema.categorical
        )

    def passes(self, p: Float, money: Float) -> Mask:
        """Which events do not alert among those scored; NaN = nothing was said, and no alert."""
        if self.judge.rule.needs_money:
            return ~self.judge.rule.decide(p, money=money)
        return np.asarray(~(p <= self.level))

    def score(self, tries: Sequence[tuple[Event, Sequence[Change]]], *, run: bool = False) -> tuple[Float, Mask, Mask]:
        """p-value of each changed event, whether it passes, and whether it would if it were usual itself; (n,) each.

        `run` leaves out the unusual events shortly before.
        """
        edits = [
            {column: value for one in changes for column, value in zip(one.columns, one.value, strict=True)}
            for _, changes in tries
        ]
        which = np.array([event.number for event, _ in tries], dtype=np.int64)
        found = (self._without if run else self._histories).score(which, edits)
        rows = np.array([event.row for event, _ in tries], dtype=np.int64)
        p, alone = (np.exp(np.maximum(self.judge.whole(log_p, rows), LEAST_LOG_P)) for log_p in found)
        name = "" if self.money is None else f"n:{self.money}"
        worth = [edit.get(name, self._value(name, event)) for edit, (event, _) in zip(edits, tries, strict=True)]
        money = np.array([np.nan if one is None else float(one) for one in worth])
        return p, self.passes(p, money), self.passes(alone, money)

    def _value(self, column: str, event: Event) -> Any:
        return self.frame[column][event.last] if column else None

    def alerts(self, event: Event, p: float) -> bool:
        """Does the event alert as it was scored."""
        money = None if self.money is None else self._value(f"n:{self.money}", event)
        given = np.array([np.nan if money is None else float(money)])
        return not self.passes(np.array([p]), given)[0]

    # ---- proposing ----
    def _propose(self, at: NDArray[np.int64]) -> None:
        """The values that each field might have had."""
        chosen = np.zeros(len(self.frame), dtype=bool)
        chosen[at] = True
        index, prediction = self.judge.model.predictions(self.judge.encoder.transform(self.frame), chosen)
        expected = expectations(prediction, self.frame, index, self.judge.encoder.lately)
        told = {f.name: (f, one) for f, one in zip(prediction.fields.columns, expected, strict=True)}
        for number, event in enumerate(self.events):
            for name in (one.name for one in self.judge.schema.numeric):
                if name in told:
                    column, one = told[name]
                    range_of = [float(one[key][number]) for key in ("low", "median", "high")]
                    event.options[name] = self._numbers(event, column, range_of)
            for name in self.judge.schema.categorical:
                likely = told[name][1]["likely"][number] if name in told else []
                event.options[name] = self._categories(event, name, likely)
            if self.judge.schema.place is not None:
                event.options["place"] = self._places(event)
            event.options["time"] = self._times(event)
            event.options = {
                name: event.options[name]
                for name in sorted(event.options, key=lambda name: -event.order.get(name, 0.0))
                if event.options[name]
            }

    def _numbers(self, event: Event, column: Column, expected: Sequence[float]) -> list[Change]:
        """Towards the median and beyond, on the side of the tail that is strange."""
        observed = self.frame[f"n:{column.name}"][event.last]
        if observed is None:
            return []
        low, median, high = expected
        above = column.tail == "upper" or (column.tail == "both" and observed > median)
        targets = [high, median, low] if above else [low, median, high]
        targets = targets[:2] if column.tail == "both" else targets
        targets = [self._rounded(column.name, value, above) for value in targets]
        targets = [value for value in dict.fromkeys(targets) if (value < observed if above else value > observed)]
        return [Change(column.name, (f"n:{column.name}",), (value,), "<=" if above else ">=") for value in targets]

    def _rounded(self, name: str, value: float, down: bool) -> float:
        """Rounded away from the observed value, to hundredths or three digits; whole where all numbers are."""
        size = abs(value)
        whole = name in self._whole_numbers
        small = 0.01 if size >= 0.1 or not size else 10.0 ** (np.floor(np.log10(size)) - 2)
        step = 1.0 if whole or size >= 10_000 else small
        return float((np.floor if down else np.ceil)(round(value / step, 6)) * step) if size < 1e15 else value

    @property
    def _whole_numbers(self) -> set[str]:
        if not hasattr(self, "_whole"):
            names = [one.name for one in self.judge.schema.numeric]
            rest = self.frame.select((pl.col(f"n:{name}").mod(1) == 0).all().alias(name) for name in names)
            self._whole = {name for name in names if rest[name][0]}
        return self._whole

    def _categories(self, event: Event, name: str, likely: Sequence[str]) -> list[Change]:
        """What the model expects most, and what the entity has had most."""
        column = f"c:{name}"
        observed = self.frame[column][event.last]
        past = self.frame[column][event.first : event.last].drop_nulls()
        most = past.value_counts().sort(["count", column], descending=[True, False]).head(MOST_HAD)[column].to_list()
        return [
            Change(name, (column,), (value,), "=") for value in dict.fromkeys([*likely, *most]) if value != observed
        ]

    def _places(self, event: Event) -> list[Change]:
        """Where the entity was before, and where it has been most."""
        columns = ("p:latitude", "p:longitude")
        past = self.frame.select(columns)[event.first : event.last].drop_nulls()
        if not len(past):
            return []
        usual = past.group_by(columns, maintain_order=True).len().sort("len", descending=True, maintain_order=True)
        here = self.frame.select(columns).row(event.last)
        places = dict.fromkeys([past.row(-1), usual.select(columns).row(0)])
        return [Change("place", columns, place, "=") for place in places if place != here]

    def _times(self, event: Event) -> list[Change]:
        """Later within a day, as long as the entity's next event stays the next one."""
        time, entity = self.frame["time"], self.frame["entity"]
        now, following = time[event.last], event.last + 1
        more = following < len(time) and entity[following] == entity[event.last]
        end = time[following] if more else np.inf
        later = [now + 3600.0 * hours for hours in HOURS_LATER if now + 3600.0 * hours < end]
        return [Change("time", ("time", "clock"), (one, self._clock(one)), "=") for one in later]

    def _clock(self, time: float) -> float:
        moment = pl.from_epoch(pl.Series([round(time * 1e6)]), time_unit="us").dt.replace_time_zone("UTC")
        local = moment.dt.convert_time_zone(self.judge.schema.time_zone).dt.replace_time_zone(None)
        return float(local.dt.epoch("us")[0] / 1e6)

    # ---- searching ----
    def singles(self, events: Sequence[Event], *, run: bool = False) -> None:
        """Try one field after the other; with `run`, none of them first."""
        for event, p, good, usual in zip(events, *self.score([(event, []) for event in events], run=run), strict=True):
            event.past_alone = not usual
            if run and good:
                event.found.append(Finding([], p, np.nan, run))
        tries = [
            (event, [change])
            for event in events
            for name, changes in event.options.items()
            if not event.found and (not event.past_alone or name == "time")
            for change in changes
        ]
        done: set[tuple[int, str]] = set()
        limit: dict[tuple[int, str], float] = {}
        for (event, (change,)), p, good in zip(tries, *self.score(tries, run=run)[:2], strict=True):
            key = (event.row, change.name)
            event.best.setdefault(change.name, []).append((p, change))
            if p > event.nearest[1]:
                event.nearest = ([change], p)
            if good and key not in done:
                done.add(key)
                event.found.append(Finding([change], p, limit.get(key, self._observed(event, change)), run))
            elif not good and change.bound != "=":
                limit[key] = change.value[0]
        self._narrow([(event, finding) for event in events for finding in event.found[:2]])

    def pairs(self, events: Sequence[Event], *, run: bool = False) -> None:
        """Try two fields at once, with the values that did best alone; numbers last."""
        for event in events:
            for tried in event.best.values():
                tried.sort(key=lambda one: -one[0])
        tries = [
            (event, sorted((mine[1], its[1]), key=lambda change: change.bound != "="))
            for event in events
            for one, other in combinations([name for name in event.options if name in event.best], 2)
            for mine in event.best[one][:VALUES]
            for its in event.best[other][:VALUES]
        ]
        for (event, changes), p, good in zip(tries, *self.score(tries, run=run)[:2], strict=True):
            if p > event.nearest[1]:
                event.nearest = (list(changes), p)
            if good and not event.found:
                event.found.append(Finding(list(changes), p, self._observed(event, changes[-1]), run))
        self._narrow([(event, event.found[0]) for event in events if event.found])

    def without_run(self, events: Sequence[Event]) -> None:
        """Leave out the unusual events shortly before, and search once more."""
        for event in events:
            event.run = event.first + self._histories.unusual_before(event.number)
        events = [event for event in events if len(event.run)]
        if not events:
            return
        numbers = {event.row: number for number, event in enumerate(events)}
        kept = [np.setdiff1d(np.arange(event.first, event.last + 1), event.run) for event in events]
        self._without = self._rescorer(kept)
        for event in events:
            event.number, event.best = numbers[event.row], {}
        own = [(event.nearest, event.past_alone) for event in events]
        self.singles(events, run=True)
        self.pairs([event for event in events if not event.found and not event.past_alone], run=True)
        for event, told in zip(events, own, strict=True):
            event.nearest, event.past_alone = told  # where nothing passes, what is told is of its own fields

    def _observed(self, event: Event, change: Change) -> float:
        return float(self.frame[change.columns[0]][event.last]) if change.bound != "=" else np.nan

    def _narrow(self, findings: Sequence[tuple[Event, Finding]]) -> None:
        """Bring numbers back towards what was observed, as far as they still pass."""
        columns = {column.name: column for column in self.judge.encoder.numeric}
        numbers = [(event, one) for event, one in findings if one.changes and one.changes[-1].bound != "="]
        for _ in range(ROUNDS if numbers else 0):
            tries, of = [], []
            for event, finding in numbers:
                *others, change = finding.changes
                good, bad = columns[change.name].encode(np.array([change.value[0], finding.limit]))
                between = columns[change.name].decode(np.linspace(good, bad, GRID + 2)[1:-1])
                values = dict.fromkeys(self._rounded(change.name, float(v), change.bound == "<=") for v in between)
                low, high = sorted((change.value[0], finding.limit))
                new = [[*others, replace(change, value=(value,))] for value in values if low < value < high]
                tries += [(event, changes) for changes in new]
                of += [finding] * len(new)
            failed: set[int] = set()  # nothing beyond the first value that fails is believed
            judged = self.score(tries, run=numbers[0][1].run)[:2]
            for finding, (_, changes), p, good in zip(of, tries, *judged, strict=True):
                if id(finding) in failed:
                    continue
                if good:
                    finding.changes, finding.p = changes, p
                else:
                    finding.limit = changes[-1].value[0]
                    failed.add(id(finding))

    # ---- telling ----
    def told(self, event: Event, p: float, *, alerted: bool) -> dict[str, Any]:
        """The row of the result."""
        found = event.found[:2]
        if not alerted:
            sentence = "It passes as it is."
        else:
            sentence = self._sentence(event, found) if found else self._nothing(event)
        return {
            "row": event.row,
            "changes": [self._struct(event, change) for change in (found[0].changes if found else [])],
            "sentence": sentence,
            "without": self.frame["row"].gather(event.run).to_list() if found and found[0].run else [],
            "p_value": found[0].p if found else p,
            "passes": bool(found) or not alerted,
        }

    def _sentence(self, event: Event, found: Sequence[Finding]) -> str:
        conditions = ", or if ".join(self._conditions(event, one.changes) for one in found if one.changes)
        if not found[0].run:
            return f"It would pass if {conditions}."
        seconds = self.frame["time"][event.last] - self.frame["time"][int(event.run[0])]
        events = "the unusual event" if len(event.run) == 1 else f"the {len(event.run):,} unusual events"
        run = f"without {events} of the {duration_text(seconds)} before it"
        return f"It would pass {run}{f', if {conditions}' if conditions else ''}."

    def _nothing(self, event: Event) -> str:
        if event.past_alone:
            return (
                "No change of its own fields would make it pass: its recent past alone is enough for an alert, however "
                "usual the event itself were."
            )
        changes, p = event.nearest
        if not changes:
            return "None of its fields could be changed: nothing is known of what would be usual."
        return (
            "No change of one or two of its fields that was tried makes it pass. Nearest comes, with "
            f"{one_in(p)}: {self._conditions(event, changes)}."
        )

    def _conditions(self, event: Event, changes: Sequence[Change]) -> str:
        return " and ".join(self._condition(event, change) for change in reversed(changes))

    def _condition(self, event: Event, change: Change) -> str:
        text = self._text(change.columns, change.value)
        if change.name == "time":
            return f"it came {duration_text(change.value[0] - self.frame['time'][event.last])} later"
        if change.name == "place":
            return f"it were at {text}, where the entity was before"
        return f"{change.name} {change.bound} {text}"

    def _struct(self, event: Event, change: Change) -> dict[str, str | None]:
        now = self.frame.select(change.columns).row(event.last)
        old, new = (self._text(change.columns, value) for value in (now, change.value))
        return {"field": change.name, "from": old, "to": new, "bound": change.bound}

    def _text(self, columns: tuple[str, ...], value: Value) -> str | None:
        if value[0] is None:
            return None
        if columns[0] == "time":
            moment = pl.from_epoch(pl.Series([round(value[0] * 1e6)]), time_unit="us").dt.replace_time_zone("UTC")
            return str(moment.dt.convert_time_zone(self.judge.schema.time_zone).dt.to_string("%Y-%m-%d %H:%M:%S")[0])
        if columns[0] == "p:latitude":
            return _place_text(value)
        return number_text(value[0]) if columns[0].startswith("n:") else str(value[0])


def _orders(schema: Schema, parts: pl.DataFrame) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row, name, part in (
        parts.filter(pl.col("detector") != PAST).select("row", "field", pl.col("part").fill_null(0.0)).iter_rows()
    ):
        order = found.setdefault(row, {})
        order[editable(schema, name)] = order.get(editable(schema, name), 0.0) + part
    return found


def _place_text(place: Value) -> str:
    return f"{place[0]:.4f}, {place[1]:.4f}"
