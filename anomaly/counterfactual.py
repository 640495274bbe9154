"""Counterfactuals: the smallest change of one or two of an event's own fields with which it would not have alerted.

Found with the detector itself, and stated only after the changed event was scored behind its entity's whole history:
all that is derived from a field (sums, the first time at a merchant, a speed) changes with it. Wachter, Mittelstadt and
Russell (2017) call this the closest possible world; here "closest" means few fields, the one with the largest part in
the surprise first (see `anomaly.breakdown`), and of a number the value nearest to what was observed.

Many changes are judged in one pass: each is an entity of its own, a copy of the history with another last event.
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
from anomaly.breakdown import PAST, before, histories
from anomaly.digest import batch_level, money_field
from anomaly.errors import InputError
from anomaly.explain import expectations
from anomaly.features import Column, Encoder
from anomaly.figures import one_in
from anomaly.models.base import SequenceModel
from anomaly.schema import Schema
from anomaly.scorer import LEAST_LOG_P, Errors, Scorer
from anomaly.sequences import Sequences
from anomaly.thresholds import Threshold

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

HOURS_LATER = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0)
MOST_HAD = 3  # categories that the entity has had most, beside the likeliest
GRID, ROUNDS = 8, 3  # a number is narrowed down to 1 / 9^3 of the way between what passes and what does not
MOST_EVENTS = 200_000  # of the copied histories that are judged at once
PAIRED = 5  # fields that are tried two by two, those of the largest parts
SCHEMA: Mapping[str, Any] = {
    "row": pl.Int64,
    "changes": pl.List(pl.Struct({"field": pl.String, "from": pl.String, "to": pl.String, "bound": pl.String})),
    "sentence": pl.String,
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
    """

    changes: list[Change]
    p: float
    limit: float


@dataclass
class Event:
    """An event to change.

    Attributes
    ----------
    row, first, last : int
        Input row; where its entity's history begins in the frame, and where it stands itself.
    order : dict of str to float
        By field, its part in the surprise.
    options : dict of str to list of Change
        By field, in the order of their parts, the changes to try.
    best : dict of str to (float, Change)
        By field, the change with the largest p-value.
    found : list of Finding
        What lets it pass.
    nearest : (list of Change, float)
        What comes nearest to passing, and its p-value.
    past_alone : bool
        Would it alert however usual it were itself.
    """

    row: int
    first: int
    last: int
    order: dict[str, float]
    options: dict[str, list[Change]] = field(default_factory=dict)
    best: dict[str, tuple[float, Change]] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)
    nearest: tuple[list[Change], float] = field(default_factory=lambda: ([], 0.0))
    past_alone: bool = False


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
        ``bound`` ("<=", ">=" or "="), empty where none was found; ``sentence``; ``p_value`` of the event so changed (as
        it is, where there is no change); ``passes``, which is true only of what was scored so.

    Raises
    ------
    InputError
        If a row is of no accepted event, or has no score.
    """
    whole, chosen = histories(frame, rows)
    if not len(rows):
        return pl.DataFrame(schema=SCHEMA)
    search = _Search(judge, whole, np.flatnonzero(chosen), scores, parts)
    known = dict(scores.select("row", "p_value").iter_rows())
    if unknown := set(rows) - (known.keys() & set(whole["row"])):
        raise InputError(f"counterfactual: row {min(unknown)} is no scored event; give rows of the score table")
    wanted = [event for event in search.events if search.alerts(event, known[event.row])]
    search.singles(wanted)
    search.pairs([event for event in wanted if not event.found and not event.past_alone])
    told = {event.row: search.told(event, known[event.row], alerted=event in wanted) for event in search.events}
    return pl.DataFrame([told[row] for row in rows], schema=SCHEMA, orient="row")


class _Search:
    """The search for all events at once."""

    def __init__(
        self,
        judge: Judge,
        frame: pl.DataFrame,
        at: NDArray[np.int64],
        scores: pl.DataFrame,
        parts: pl.DataFrame,
    ) -> None:
        self.judge, self.frame = judge, frame
        self.money = money_field(judge.schema)
        self.level = batch_level(judge.rule, scores, judge.schema)
        starts = np.flatnonzero((frame["entity"] != frame["entity"].shift(1)).fill_null(value=True).to_numpy())
        first = starts[np.searchsorted(starts, at, side="right") - 1]
        rows = frame["row"].to_numpy()
        orders = _orders(judge.schema, parts)
        self.events = [
            Event(int(rows[last]), int(start), int(last), orders.get(int(rows[last]), {}))
            for start, last in zip(first, at, strict=True)
        ]
        self._propose(at)

    # ---- judging ----
    def passes(self, p: Float, money: Float) -> Mask:
        """Which events do not alert among those scored; NaN = nothing was said, and no alert."""
        if self.judge.rule.needs_money:
            return ~self.judge.rule.decide(p, money=money)
        return np.asarray(~(p <= self.level))

    def score(self, tries: Sequence[tuple[Event, Sequence[Change]]]) -> tuple[Float, Mask, Mask]:
        """p-value of each changed event, whether it passes, and whether it would if it were usual itself; (n,) each."""
        found = [(np.empty(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))]
        lengths = np.array([event.last - event.first + 1 for event, _ in tries], dtype=np.int64)
        start = 0
        while start < len(tries):
            stop = start + max(1, int(np.searchsorted(np.cumsum(lengths[start:]), MOST_EVENTS, side="right")))
            found.append(self._score(tries[start:stop]))
            start = stop
        p, passes, usual = (np.concatenate(values) for values in zip(*found, strict=True))
        return p, passes, usual

    def _score(self, tries: Sequence[tuple[Event, Sequence[Change]]]) -> tuple[Float, Mask, Mask]:
        frame, last = self._copies(tries)
        sequences = self.judge.encoder.transform(frame)
        mask = np.zeros(len(sequences), dtype=bool)
        mask[last] = True
        scorer = self.judge.scorer
        errors = self.judge.errors(sequences, before(sequences, mask, max(scorer.combination.scales, default=0.0)))
        rows = np.array([event.row for event, _ in tries])
        p, alone = (
            np.exp(np.maximum(self.judge.whole(log_p, rows), LEAST_LOG_P))
            for log_p in (scorer.judge(errors, sequences, mask).log_p, scorer.past_alone(errors, sequences, mask))
        )
        name = self.money
        money = np.full(len(last), np.nan) if name is None else frame[f"n:{name}"][last].fill_null(np.nan).to_numpy()
        return p, self.passes(p, money), self.passes(alone, money)

    def _copies(self, tries: Sequence[tuple[Event, Sequence[Change]]]) -> tuple[pl.DataFrame, NDArray[np.int64]]:
        """A frame in which each try is an entity: the history with its last event changed, and where those stand."""
        lengths = np.array([event.last - event.first + 1 for event, _ in tries], dtype=np.int64)
        last = np.cumsum(lengths) - 1
        index = np.arange(last[-1] + 1) + np.repeat([event.last for event, _ in tries] - last, lengths)
        names = pl.Series([str(number) for number in range(len(tries))], dtype=pl.String)
        frame = self.frame[index].with_columns(names.gather(np.repeat(np.arange(len(tries)), lengths)).alias("entity"))
        edits: dict[str, dict[int, Any]] = {}
        for at, (_, changes) in zip(last.tolist(), tries, strict=True):
            for change in changes:
                for column, value in zip(change.columns, change.value, strict=True):
                    edits.setdefault(column, {})[at] = value
        for column, values in edits.items():
            changed = frame[column].scatter(list(values), pl.Series(list(values.values()), dtype=frame.schema[column]))
            frame = frame.with_columns(changed.alias(column))
        return frame, last

    def alerts(self, event: Event, p: float) -> bool:
        """Does the event alert as it was scored."""
        name = self.money
        money = None if name is None else self.frame[f"n:{name}"][event.last]
        given = np.array([np.nan if money is None else float(money)])
        return not self.passes(np.array([p]), given)[0]

    # ---- proposing ----
    def _propose(self, at: NDArray[np.int64]) -> None:
        """The values that each field might have had."""
        chosen = np.zeros(len(self.frame), dtype=bool)
        chosen[at] = True
        _, prediction = self.judge.model.predictions(self.judge.encoder.transform(self.frame), chosen)
        told = {f.name: (f, one) for f, one in zip(prediction.fields.columns, expectations(prediction), strict=True)}
        for number, event in enumerate(self.events):
            for name in (one.name for one in self.judge.schema.numeric):
                if name in told:
                    column, one = told[name]
                    expected = [float(one[key][number]) for key in ("low", "median", "high")]
                    event.options[name] = self._numbers(event, column, expected)
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
    def singles(self, events: Sequence[Event]) -> None:
        """Try one field after the other."""
        for event, usual in zip(events, self.score([(event, []) for event in events])[2], strict=True):
            event.past_alone = not usual
        tries = [
            (event, [change])
            for event in events
            for name, changes in event.options.items()
            if not event.past_alone or name == "time"
            for change in changes
        ]
        done: set[tuple[int, str]] = set()
        limit: dict[tuple[int, str], float] = {}
        for (event, (change,)), p, good in zip(tries, *self.score(tries)[:2], strict=True):
            key = (event.row, change.name)
            self._note(event, [change], p)
            if good and key not in done:
                done.add(key)
                event.found.append(Finding([change], p, limit.get(key, self._observed(event, change))))
            elif not good and change.bound != "=":
                limit[key] = change.value[0]
        self._narrow([finding for event in events for finding in event.found[:2]], events)

    def pairs(self, events: Iterable[Event]) -> None:
        """Try two fields at once, each with the value that did best alone; numbers last."""
        tries = [
            (event, sorted((event.best[one][1], event.best[other][1]), key=lambda change: change.bound != "="))
            for event in events
            for one, other in combinations([name for name in event.options if name in event.best][:PAIRED], 2)
        ]
        changed = []
        for (event, changes), p, good in zip(tries, *self.score(tries)[:2], strict=True):
            self._note(event, changes, p)
            if good and not event.found:
                event.found.append(Finding(list(changes), p, self._observed(event, changes[-1])))
                changed.append(event)
        self._narrow([event.found[0] for event in changed], changed)

    def _note(self, event: Event, changes: Sequence[Change], p: float) -> None:
        if len(changes) == 1 and p > event.best.get(changes[0].name, (-1.0, changes[0]))[0]:
            event.best[changes[0].name] = (p, changes[0])
        if p > event.nearest[1]:
            event.nearest = (list(changes), p)

    def _observed(self, event: Event, change: Change) -> float:
        return float(self.frame[change.columns[0]][event.last]) if change.bound != "=" else np.nan

    def _narrow(self, findings: Sequence[Finding], events: Sequence[Event]) -> None:
        """Bring numbers back towards what was observed, as far as they still pass."""
        columns = {column.name: column for column in self.judge.encoder.numeric}
        owner = {id(finding): event for event in events for finding in event.found}
        for _ in range(ROUNDS):
            tries, of = [], []
            for finding in findings:
                *others, change = finding.changes
                if change.bound == "=":
                    continue
                good, bad = columns[change.name].encode(np.array([change.value[0], finding.limit]))
                between = columns[change.name].decode(np.linspace(good, bad, GRID + 2)[1:-1])
                values = dict.fromkeys(self._rounded(change.name, float(v), change.bound == "<=") for v in between)
                low, high = sorted((change.value[0], finding.limit))
                new = [[*others, replace(change, value=(value,))] for value in values if low < value < high]
                tries += [(owner[id(finding)], changes) for changes in new]
                of += [finding] * len(new)
            failed: set[int] = set()  # nothing beyond the first value that fails is believed
            for finding, (_, changes), p, good in zip(of, tries, *self.score(tries)[:2], strict=True):
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
        if not alerted:
            told = "It passes as it is."
            return {"row": event.row, "changes": [], "sentence": told, "p_value": p, "passes": True}
        if not event.found:
            return {"row": event.row, "changes": [], "sentence": self._nothing(event), "p_value": p, "passes": False}
        first = event.found[0]
        conditions = [self._conditions(event, finding.changes) for finding in event.found[:2]]
        return {
            "row": event.row,
            "changes": [self._struct(event, change) for change in first.changes],
            "sentence": f"It would pass if {', or if '.join(conditions)}.",
            "p_value": first.p,
            "passes": True,
        }

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


def editable(schema: Schema, name: str) -> str:
    """Which of an event's own fields (a column, "place" or "time") a raw column is made of.

    Examples
    --------
    >>> from anomaly.simulator import SIMULATED_SCHEMA
    >>> [editable(SIMULATED_SCHEMA, name) for name in ("amount", "first:merchant_id", "place:speed", "time:gap")]
    ['amount', 'merchant_id', 'place', 'time']
    """
    before_colon, _, rest = name.partition(":")
    if name in schema.categorical or any(one.name == name for one in schema.numeric):
        return name
    if before_colon in ("first", "changed"):
        return rest
    return "place" if before_colon == "place" else "time"


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
