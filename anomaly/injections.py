"""Frauds of known kinds, planted into copies of held-out histories, so that a detector can rehearse without labels.

A rehearsal tells which fields and which time scales find what, and how much of each kind is found. Each episode copies
the history of one entity up to the episode's end under a key of its own, and plants one fraud there (the kinds are in
`anomaly.episodes`). Nothing is assumed of the table but the roles that the schema names: a kind whose roles are absent
is left out.

What is planted is made of the population's events and of the entity's own up to the episode's start. The genuine events
between the start and the end of an episode are kept, as real life goes on; they are not among the planted ones.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.episodes import KINDS, LEAST_PAST
from anomaly.errors import ParameterError
from anomaly.scenes import MISSING, NOBODYS, Episode, Float, Int, Population, Scene
from anomaly.schema import Schema

__all__ = ["Injected", "inject", "possible_kinds"]

SEPARATOR = "\x1e"  # between the kind and the number in a copy's key
FEWEST_EPISODES = 5  # of each kind, however long the histories are
LONGEST_EPISODE = 40  # events that an episode adds to a history, for a first estimate


@dataclass(frozen=True, eq=False, kw_only=True)
class Injected:
    """Copied histories, each with one planted fraud: N events in E episodes.

    Attributes
    ----------
    frame : polars.DataFrame
        The copies as canonical events (see `anomaly.ingest`), sorted by entity, time and row. Each episode is an entity
        with a key that no table has; ``row`` counts from 0, and a planted event comes after the genuine ones of the
        same time. An added event has no ``event_id``.
    planted : ndarray of bool, shape (N,)
        The events that were added, or given another number. Each episode has at least one.
    kind : ndarray of int16, shape (N,)
        The kind of the event's episode, as a position in `kinds`.
    episode : ndarray of int64, shape (N,)
        Number of the event's episode, rising from 0 to E - 1.
    source : ndarray of int64, shape (N,)
        The event in the original frame that was copied; -1 = added.
    since : ndarray of float64, shape (E,)
        Time of the first planted event of each episode.
    kinds : tuple of str
        Names of the kinds, in the order of `anomaly.episodes.KINDS`. One without a suitable held-out event has no
        episode.
    """

    frame: pl.DataFrame
    planted: NDArray[np.bool_]
    kind: NDArray[np.int16]
    episode: NDArray[np.int64]
    source: NDArray[np.int64]
    since: NDArray[np.float64]
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of events N."""
        return len(self.planted)


def possible_kinds(frame: pl.DataFrame, schema: Schema) -> tuple[str, ...]:
    """The kinds of fraud that can be planted into such events.

    Parameters
    ----------
    frame : polars.DataFrame
        Canonical events.
    schema : Schema
        Their roles.

    Returns
    -------
    tuple of str
        In the order of `anomaly.episodes.KINDS`; none for a frame without events.
    """
    return _possible(Population.of(frame, schema)) if len(frame) else ()


def inject(
    frame: pl.DataFrame,
    schema: Schema,
    *,
    since: float,
    kinds: Sequence[str] | None = None,
    episodes: int = 60,
    most_events: int = 400_000,
    seed: int = 0,
) -> Injected:
    """Plant frauds into copies of held-out histories.

    Each episode begins at a held-out event drawn at random, so that busy entities are hit more often. An episode
    depends on the seed, its kind and its number alone, not on the other kinds.

    Parameters
    ----------
    frame : polars.DataFrame
        Canonical events, sorted by entity, time and row; it stays as it is. All of them are the population, and the
        history of the copies.
    schema : Schema
        Their roles.
    since : float
        Seconds since 1970-01-01 UTC; episodes begin at events from then on.
    kinds : sequence of str, optional
        Names of kinds; by default all that are possible.
    episodes : int
        Episodes of each kind.
    most_events : int
        If the copies would hold more events, there are fewer episodes of each kind, down to five, and then shorter
        histories: the longest lose their oldest events, down to five before the episode.
    seed : int
        The same seed gives the same frame.

    Raises
    ------
    ParameterError
        If a kind is unknown or not possible here, no event is held out, none of the held-out ones suits the kinds, or
        a number is out of its range.
    """
    _check(frame, since, episodes, most_events, seed)
    population = Population.of(frame, schema)
    names = _chosen(kinds, population)
    held = np.flatnonzero(population.time >= since)
    anchors = {name: _anchors(population, name, held, episodes, seed) for name in names}
    count = _affordable(population, anchors, episodes, most_events)
    made = [
        (name, episode)
        for name in sorted(names)  # the order of the keys
        for number, anchor in enumerate(anchors[name][:count])
        if (episode := _episode(population, name, int(anchor), [seed, list(KINDS).index(name), number])) is not None
    ]
    if not made:
        raise ParameterError(
            f"inject: none of the {len(held):,} events from `since` on suits {', '.join(names)}; "
            "give an earlier `since` or other kinds"
        )
    return _assembled(frame, schema, population, names, _shortened(made, most_events))


def _check(frame: pl.DataFrame, since: float, episodes: int, most_events: int, seed: int) -> None:
    for name, value, least in (("episodes", episodes, 1), ("most_events", most_events, 1), ("seed", seed, 0)):
        if value < least:
            raise ParameterError(f"inject: {name} must be at least {least}, got {value}")
    if not len(frame):
        raise ParameterError("inject: expected events to copy, got an empty frame")
    last = float(frame["time"].to_numpy().max())
    if math.isnan(since) or last < since:
        raise ParameterError(
            f"inject: expected events at or after since = {since:.0f} (seconds since 1970), got none, the last is at "
            f"{last:.0f}; give an earlier `since`"
        )


def _possible(population: Population) -> tuple[str, ...]:
    return tuple(name for name, kind in KINDS.items() if all(need.met(population) for need in kind.needs))


def _chosen(kinds: Sequence[str] | None, population: Population) -> tuple[str, ...]:
    """The kinds asked for, or all that are possible, in the order of `KINDS`."""
    possible = _possible(population)
    wanted = possible if kinds is None else kinds
    for name in wanted:
        if name not in KINDS:
            close = difflib.get_close_matches(name, list(KINDS), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ParameterError(f"inject: no kind is called {name!r}{hint}; there are {', '.join(KINDS)}")
        if name not in possible:
            lacks = "; ".join(need.words for need in KINDS[name].needs if not need.met(population))
            raise ParameterError(
                f"inject: the kind {name!r} needs {lacks}, which this table lacks; possible are "
                f"{', '.join(possible) or 'none'}"
            )
    if not wanted:
        raise ParameterError(
            "inject: expected at least one kind, got none"
            if kinds is not None
            else "inject: no kind of fraud is possible here: the times come at equal gaps, and there is no number to "
            "alter; name a numeric field in the schema"
        )
    return tuple(name for name in KINDS if name in wanted)


def _anchors(population: Population, name: str, held: Int, episodes: int, seed: int) -> Int:
    """Held-out events at which the episodes of a kind begin, in random order; fewer, if none suits."""
    suitable = held[KINDS[name].anchors(population, held)]
    if not len(suitable):
        return suitable
    rng = np.random.default_rng([seed, list(KINDS).index(name)])
    return rng.choice(suitable, episodes, replace=len(suitable) < episodes)


def _affordable(population: Population, anchors: Mapping[str, Int], episodes: int, most_events: int) -> int:
    """Episodes of each kind whose histories hold about `most_events` events in all."""
    chosen = np.concatenate(list(anchors.values()))
    total = int((chosen - population.bounds(chosen)[0] + LONGEST_EPISODE).sum())
    if total <= most_events:
        return episodes
    return min(episodes, max(FEWEST_EPISODES, episodes * most_events // total))


def _episode(population: Population, name: str, anchor: int, seed: Sequence[int]) -> Episode | None:
    """One episode; None if it would plant nothing."""
    first, end = population.bounds(np.array([anchor]))
    scene = Scene(population, np.random.default_rng(seed), anchor, int(first[0]), int(end[0]))
    episode = KINDS[name].make(scene)
    return episode if len(episode.altered) or len(episode.time) else None


def _shortened(made: list[tuple[str, Episode]], most_events: int) -> list[tuple[str, Episode]]:
    """The episodes with histories so short that all events together are at most `most_events`, if that can be."""
    past = np.array([episode.past - episode.begin for _, episode in made])
    budget = most_events - sum(episode.stop - episode.past + len(episode.time) for _, episode in made)
    low, high = LEAST_PAST, max(LEAST_PAST, int(past.max()))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(past, middle).sum() <= budget else (low, middle - 1)
    return [(name, replace(episode, begin=max(episode.begin, episode.past - low))) for name, episode in made]


def _assembled(
    frame: pl.DataFrame,
    schema: Schema,
    population: Population,
    names: tuple[str, ...],
    made: list[tuple[str, Episode]],
) -> Injected:
    every = [episode for _, episode in made]
    copied = np.array([episode.stop - episode.begin for episode in every])
    length = copied + [len(episode.time) for episode in every]
    offset = np.cumsum(length) - length
    number = np.repeat(np.arange(len(every)), length)
    added = np.concatenate(
        [
            start
            + np.searchsorted(population.time[one.begin : one.stop], one.time, side="right")
            + np.arange(len(one.time))
            for start, one in zip(offset, every, strict=True)
        ]
    ).astype(np.int64)
    source = np.zeros(int(length.sum()), dtype=np.int64)
    source[added] = -1
    begin = np.array([episode.begin for episode in every]) - (np.cumsum(copied) - copied)
    source[source == 0] = np.arange(copied.sum()) + np.repeat(begin, copied)
    planted = source < 0
    for start, one in zip(offset, every, strict=True):
        planted[start + one.altered - one.begin] = True
    return Injected(
        frame=_frame(frame, schema, population, made, offset, number, source),
        planted=planted,
        kind=np.array([names.index(name) for name, _ in made], dtype=np.int16)[number],
        episode=number,
        source=source,
        since=np.array([episode.start for episode in every]),
        kinds=names,
    )


def _frame(
    frame: pl.DataFrame,
    schema: Schema,
    population: Population,
    made: list[tuple[str, Episode]],
    offset: Int,
    number: Int,
    source: Int,
) -> pl.DataFrame:
    """The canonical events: those of `source`, the added ones where it is -1, and the altered numbers."""
    every = [episode for _, episode in made]
    width = len(str(len(made)))
    keys = pl.Series([f"{name}{SEPARATOR}{at:0{width}d}" for at, (name, _) in enumerate(made)], dtype=pl.String)
    added = source < 0
    columns: dict[str, pl.Series] = {
        "row": pl.Series(np.arange(len(source))),
        "entity": keys.gather(number),
    }
    for name, originals, parts in (
        ("time", population.time, [one.time for one in every]),
        ("clock", population.clock, [one.clock for one in every]),
    ):
        columns[name] = _numbers(originals, source, added, np.concatenate(parts))
    for f, field in enumerate(schema.numeric):
        values = population.numbers[f][source]
        values[added] = np.concatenate([one.numbers[f] for one in every])
        for start, one in zip(offset, every, strict=True):
            if len(one.altered) and one.field == f:
                values[start + one.altered - one.begin] = one.values
        columns[f"n:{field.name}"] = pl.Series(values).fill_nan(None)
    for c, category in enumerate(schema.categorical):
        codes = population.categories[c][source]
        codes[added] = np.concatenate([one.categories[c] for one in every])
        columns[f"c:{category}"] = _categories(frame[f"c:{category}"], codes, number)
    if population.place is not None:
        for p, name in enumerate(("p:latitude", "p:longitude")):
            parts = [one.place[p] for one in every if one.place is not None]
            columns[name] = _numbers(population.place[p], source, added, np.concatenate(parts))
    genuine = pl.Series(source).set(pl.Series(added), None)
    return pl.DataFrame(
        {name: columns[name] if name in columns else frame[name].gather(genuine) for name in frame.columns}
    )


def _numbers(originals: Float, source: Int, added: NDArray[np.bool_], values: Float) -> pl.Series:
    numbers = originals[source]
    numbers[added] = values
    return pl.Series(numbers).fill_nan(None)


def _categories(originals: pl.Series, codes: Int, number: Int) -> pl.Series:
    """Values of codes (see `Population`); in each episode `NOBODYS` is a value of its own that `originals` lacks."""
    values = originals.drop_nulls().unique().sort()
    alone = np.unique(number[codes == NOBODYS])
    taken = set(values.filter(values.str.starts_with("new ")))
    fresh = [word for at in range(len(alone) + len(taken)) if (word := f"new {at}") not in taken][: len(alone)]
    codes = np.where(codes == NOBODYS, len(values) + np.searchsorted(alone, number), codes)
    known = pl.Series(codes).set(pl.Series(codes == MISSING), None)
    return pl.concat([values, pl.Series(fresh, dtype=pl.String)]).gather(known)
