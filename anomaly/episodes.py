"""The kinds of fraud that `anomaly.injections` plants: what each one does to the history of one entity.

An episode either gives events of the entity another number, or adds events. It knows nothing but the roles of the
schema, the entity's events up to the episode's start, and how the population behaves.

| kind | what happens |
|---|---|
| ``scaled`` | for some days a third to a half of the events have a number scaled (a regular series: spikes, a shift) |
| ``large`` | one event or two have a number as rare in the population as 1 in 100 to 1 in 10,000, or beyond |
| ``burst`` | 5-15 events within five minutes to two hours, made of the population's |
| ``testing`` | 3-8 tiny amounts within minutes, then 1-3 large ones |
| ``new_category`` | 1-6 events within two days, with categories that the entity never met |
| ``odd_hours`` | 1-5 events at hours of the day that the entity rarely uses, otherwise like its own |
| ``far_place`` | 1-6 events 500-10,000 km from the entity's usual place, otherwise like its own |
| ``drip`` | 8-25 small amounts, about one a day, with one or two new categories that stay the same |
| ``wake_up`` | a long silence, then 2-8 events, mostly with new categories |
| ``frozen`` | a number that usually changes stays the same for 10-60 events |
| ``noise`` | a number that usually changes spreads 3-10 times as much for 10-60 events |

The entity's own events go on meanwhile, except in ``wake_up`` and in those half of ``far_place`` that keep the pace of
a traveller. Added events happen where the entity was last, minutes to hours after the event at which the episode
begins. Their amounts (numbers on a log scale whose large values are strange) are raised by a factor of 1 to 8, one for
each episode, but for the tiny amounts of ``testing`` and ``drip``. In a *private* field, whose values belong to one
entity each (a device), a new value is one that nobody has; elsewhere it is a value of other entities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from anomaly.features import EARTH_RADIUS_KM
from anomaly.scenes import (
    DAY,
    HOUR,
    MINUTE,
    RECENT,
    Bool,
    Episode,
    Float,
    Int,
    Population,
    Scene,
    hour_of,
    quantile,
    robust_spread,
)
from anomaly.schema import NumericField

LONGEST_ALTERED = 60  # events
LEAST_PAST = 5  # events before a silence
SILENT_GAPS, SILENT_DAYS = 20.0, 3.0
SERIES_BEFORE, SERIES_AFTER = 20, 10  # events that a series needs before, and from, the first frozen or noisy one
EXTREME = (1e-4, 1e-2)  # a large number is one of so few in the population, or beyond
LARGEST = 1e308  # numbers stay finite
RARE_HOUR = 0.01  # an hour of the day with less than this share of the events is an odd one
PRIOR_EVENTS = 24.0  # as many events of the population are added to the entity's own to tell its hours
AIRLINER_KMH = 700.0
GREED = 8.0  # the largest factor by which the amounts of added events are raised


@dataclass(frozen=True)
class Need:
    """What a kind of episode needs of a table.

    Attributes
    ----------
    words : str
        For messages.
    met : callable
        Does the population have it.
    """

    words: str
    met: Callable[[Population], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of planted fraud.

    Attributes
    ----------
    about : str
        What happens, in a line.
    needs : tuple of Need
        What the table must have.
    anchors : callable
        Which of these events such an episode may begin at, shape (n,) of bool.
    make : callable
        The episode of a scene. It plants nothing if the new numbers happen to be the old ones.
    """

    about: str
    needs: tuple[Need, ...]
    anchors: Callable[[Population, Int], Bool]
    make: Callable[[Scene], Episode]


def moved(values: Float, field: NumericField, direction: int, factor: Float | float, spread: float) -> Float:
    """Numbers moved up (direction 1) or down (-1): log ones by a factor from 1 on, linear ones by so many spreads."""
    with np.errstate(over="ignore"):
        if field.scale == "log":
            result = values * factor ** (direction * np.sign(values))
        else:
            result = values + direction * factor * spread
    return np.asarray(np.clip(result, -LARGEST, LARGEST), dtype=np.float64)


def _greedy(scene: Scene, numbers: Float) -> Float:
    """The numbers (F, m) of added events with amounts raised by one factor: a thief wants money, not an average day."""
    for field in scene.population.amounts:
        numbers[field] = moved(numbers[field], scene.population.fields[field], 1, scene.span(1.0, GREED), 0.0)
    return numbers


def _scaled(scene: Scene) -> Episode:
    population, rng, anchor = scene.population, scene.rng, scene.anchor
    longest = min(anchor + LONGEST_ALTERED, scene.end)
    if not population.regular:
        until = population.time[anchor] + max(rng.uniform(2 * DAY, 10 * DAY), 5 * scene.gap)
        events = np.arange(anchor, longest)[population.time[anchor:longest] <= until]
        hit = rng.random(len(events)) < rng.uniform(1 / 3, 1 / 2)
        hit[0] = True
        events = events[hit]
    elif scene.coin():  # a level shift
        events = np.arange(anchor, min(anchor + int(rng.integers(5, LONGEST_ALTERED)), longest))
    else:  # spikes
        events = np.union1d([anchor], rng.integers(anchor, longest, int(rng.integers(0, 5))))
    f = scene.movable()
    field = population.fields[f]
    factor = scene.span(2.0 if field.scale == "log" else 3.0, 10.0)
    values = moved(population.numbers[f, events], field, scene.direction(f), factor, population.spread[f])
    return scene.changed(events, f, values)


def _large(scene: Scene) -> Episode:
    population, rng = scene.population, scene.rng
    f = scene.movable()
    field, direction = population.fields[f], scene.direction(f)
    events = np.arange(scene.anchor, min(scene.anchor + int(rng.integers(1, 3)), scene.end))
    up = direction > 0
    rare = scene.span(*EXTREME)
    extreme = np.full(len(events), quantile(population.sorted[f], 1 - rare if up else rare, up=up))
    beyond = rng.uniform(*((1.0, 1.5) if field.scale == "log" else (0.0, 1.0)), len(events))
    values = moved(extreme, field, direction, beyond, population.spread[f])
    return scene.changed(events, f, np.where(extreme == 0, direction * population.spread[f], values))


def _burst(scene: Scene) -> Episode:
    count = int(scene.rng.integers(5, 16))
    events = scene.others(count)
    times = scene.times(count, scene.span(5 * MINUTE, 2 * HOUR))
    return scene.added(times, _greedy(scene, scene.population.numbers[:, events]), scene.borrowed(events))


def _testing(scene: Scene) -> Episode:
    rng = scene.rng
    tiny, large = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    probes = scene.times(tiny, rng.uniform(2 * MINUTE, 20 * MINUTE))
    earnest = scene.times(large, rng.uniform(10 * MINUTE, 3 * HOUR), probes[-1] + scene.span(5 * MINUTE, 2 * HOUR))
    events = scene.others(tiny + large)
    numbers = scene.population.numbers[:, events]
    amount = int(rng.choice(scene.population.amounts))
    numbers[amount] = scene.amounts(amount, np.append(rng.uniform(0, 0.01, tiny), rng.uniform(0.97, 0.999, large)))
    return scene.added(np.concatenate([probes, earnest]), numbers, scene.borrowed(events))


def _new_category(scene: Scene) -> Episode:
    rng = scene.rng
    count = int(rng.integers(1, 7))
    fields = int(rng.integers(1, len(scene.population.filled) + 1))
    codes, events = scene.strange(count, fields, constant=scene.coin())
    numbers = _greedy(scene, scene.population.numbers[:, events])
    return scene.added(scene.times(count, rng.uniform(HOUR, 2 * DAY)), numbers, codes)


def _odd_hours(scene: Scene) -> Episode:
    population, rng, anchor = scene.population, scene.rng, scene.anchor
    count = int(rng.integers(1, 6))
    met = np.bincount(hour_of(population.clock[scene.first : anchor + 1]), minlength=24)
    share = (met + PRIOR_EVENTS * population.hours) / (met.sum() + PRIOR_EVENTS)
    rarest = np.argsort(share, kind="stable")
    odd = rarest[: max(3, int((share < RARE_HOUR).sum()))]
    now = population.clock[anchor]
    midnight = np.floor(now / DAY) * DAY
    clock = midnight + rng.integers(0, count + 1, count) * DAY + (rng.choice(odd, count) + rng.random(count)) * HOUR
    events = scene.own(count)
    times = np.sort(np.where(clock <= now, clock + DAY, clock) - now)
    return scene.added(times, _greedy(scene, population.numbers[:, events]), population.categories[:, events])


def _far_place(scene: Scene) -> Episode:
    population, rng = scene.population, scene.rng
    count = int(rng.integers(1, 7))
    distance = scene.span(510.0, 9990.0)
    steps = distance + rng.uniform(-10.0, 10.0, count)
    place = destination(*scene.usual_place(), steps, rng.uniform(0, 2 * np.pi))
    travels = scene.coin()  # the entity is not at home meanwhile; otherwise somebody else is there already
    speed = AIRLINER_KMH / rng.uniform(1.0, 2.0) if travels else scene.span(1500.0, 10_000.0)
    times = scene.times(count, rng.uniform(HOUR, 2 * DAY), distance / speed * HOUR)
    events = scene.own(count)
    stop = scene.anchor + 1 if travels else None
    numbers = _greedy(scene, population.numbers[:, events])
    return scene.added(times, numbers, population.categories[:, events], place, stop=stop)


def _drip(scene: Scene) -> Episode:
    population, rng = scene.population, scene.rng
    delay = scene.span(MINUTE, 3 * HOUR)
    left = scene.left(delay)
    step = rng.uniform(0.7 * DAY, 1.5 * DAY)
    count = max(8, min(int(rng.integers(8, 26)), int(left / step)))
    step = min(step, left / count)
    times = delay + (np.arange(count) + rng.uniform(0.0, 0.3, count)) * step
    codes, _ = scene.strange(count, int(rng.integers(1, 3)), constant=True)
    numbers = population.numbers[:, scene.own(count)]
    amount = int(rng.choice(population.amounts))
    level = scene.amounts(amount, rng.uniform(0.05, 0.35, 1))
    numbers[amount] = level * np.exp(0.1 * rng.standard_normal(count))
    return scene.added(times, numbers, codes)


def _wake_up(scene: Scene) -> Episode:
    population, rng, first, anchor = scene.population, scene.rng, scene.first, scene.anchor
    time = population.time
    count = int(rng.integers(2, 9))
    silence = scene.span(
        max(SILENT_GAPS * scene.gap, SILENT_DAYS * DAY), float(time[anchor] - time[first + LEAST_PAST - 1])
    )
    kept = int(np.searchsorted(time[first:anchor], time[anchor] - silence, side="right"))
    codes, events = scene.strange(count, max(1, int(rng.binomial(len(population.filled), 0.8))), constant=scene.coin())
    numbers = _greedy(scene, population.numbers[:, events])
    times = scene.times(count, rng.uniform(2 * HOUR, 3 * DAY))
    return scene.added(times, numbers, codes, stop=first + max(kept, LEAST_PAST))


def _frozen(scene: Scene) -> Episode:
    field, events = _reading(scene)
    before = scene.population.numbers[field, max(scene.first, scene.anchor - RECENT) : scene.anchor]
    before = before[np.isfinite(before)]
    values = scene.population.numbers[field, events]
    stuck = before[-1] if len(before) else values[0]
    return scene.changed(events, field, np.where(np.isfinite(values), stuck, values))


def _noise(scene: Scene) -> Episode:
    field, events = _reading(scene)
    before = scene.population.numbers[field, max(scene.first, scene.anchor - RECENT) : scene.anchor]
    before = np.sort(before[np.isfinite(before)])
    varied = len(before) >= LEAST_PAST and before[0] < before[-1]
    spread = robust_spread(before) if varied else scene.population.spread[field]
    more = np.sqrt(scene.rng.uniform(3.0, 10.0) ** 2 - 1) * spread
    with np.errstate(over="ignore"):
        values = scene.population.numbers[field, events] + more * scene.rng.standard_normal(len(events))
    return scene.changed(events, field, np.clip(values, -LARGEST, LARGEST))


def _reading(scene: Scene) -> tuple[int, Int]:
    """A linear field and the 10 to 60 events, as far as there are any, from the anchor on."""
    population = scene.population
    known = population.readings[np.isfinite(population.numbers[population.readings, scene.anchor])]
    count = int(scene.rng.integers(SERIES_AFTER, LONGEST_ALTERED + 1))
    return int(scene.rng.choice(known)), np.arange(scene.anchor, min(scene.anchor + count, scene.end))


def destination(latitude: float, longitude: float, km: Float, bearing: float) -> Float:
    """Places so many km from another one along a great circle, shape (2, n); degrees, the bearing in radians.

    Examples
    --------
    >>> destination(0.0, 179.0, np.array([0.0, 222.39]), np.pi / 2).round(2).tolist()
    [[0.0, 0.0], [179.0, -179.0]]
    """
    phi, angle = np.radians(latitude), km / EARTH_RADIUS_KM
    sine = np.sin(phi) * np.cos(angle) + np.cos(phi) * np.sin(angle) * np.cos(bearing)
    east = np.arctan2(np.sin(bearing) * np.sin(angle) * np.cos(phi), np.cos(angle) - np.sin(phi) * sine)
    degrees = longitude + np.degrees(east)
    return np.stack([np.degrees(np.arcsin(np.clip(sine, -1.0, 1.0))), np.mod(degrees + 180.0, 360.0) - 180.0])


def _anywhere(_: Population, events: Int) -> Bool:
    return np.ones(len(events), dtype=bool)


def _with_number(population: Population, events: Int) -> Bool:
    return np.asarray(population.movable(events).any(axis=0), dtype=bool)


def _with_place(population: Population, events: Int) -> Bool:
    assert population.place is not None
    return np.asarray(np.isfinite(population.place[:, events]).all(axis=0), dtype=bool)


def _with_weeks_left(population: Population, events: Int) -> Bool:
    """Ten days before the end, or in the first half of a shorter time."""
    time = population.time[events]
    middle = (time.min(initial=population.last) + population.last) / 2
    return np.asarray(time <= max(population.last - 10 * DAY, middle), dtype=bool)


def _with_silence(population: Population, events: Int) -> Bool:
    """After a history of which five events and a silence fit in."""
    first, _ = population.bounds(events)
    time, earlier = population.time, events - first
    gap = (time[events] - time[first]) / np.maximum(earlier, 1)
    most = time[events] - time[np.minimum(first + LEAST_PAST - 1, events)]
    need = np.maximum(SILENT_GAPS * gap, SILENT_DAYS * DAY)
    return np.asarray((earlier >= LEAST_PAST) & (most >= need), dtype=bool)


def _in_series(population: Population, events: Int) -> Bool:
    first, end = population.bounds(events)
    known = np.isfinite(population.numbers[np.ix_(population.readings, events)]).any(axis=0)
    return np.asarray(known & (events - first >= SERIES_BEFORE) & (end - events >= SERIES_AFTER), dtype=bool)


NUMBER = Need(
    "a numeric field with values that can be moved",
    lambda population: bool(_with_number(population, np.arange(len(population.time))).any()),
)
AMOUNT = Need(
    "a numeric field of scale log and tail upper or both, not always 0", lambda population: len(population.amounts) > 0
)
READING = Need(
    "a numeric field of scale linear that changes from event to event", lambda population: len(population.readings) > 0
)
CATEGORY = Need("a categorical field with values", lambda population: len(population.filled) > 0)
PLACE = Need("a place", lambda population: population.placed)
HOURS = Need("times at four hours of the day or more", lambda population: int((population.hours > 0).sum()) >= 4)
IRREGULAR = Need("times that do not come at equal gaps", lambda population: not population.regular)

KINDS: Mapping[str, Kind] = {
    "scaled": Kind(
        "over some days a third to a half of the events have a number scaled", (NUMBER,), _with_number, _scaled
    ),
    "large": Kind("one event or two have a number that is rare in the population", (NUMBER,), _with_number, _large),
    "burst": Kind("many events within minutes to two hours", (IRREGULAR,), _anywhere, _burst),
    "testing": Kind("tiny amounts within minutes, then large ones", (AMOUNT, IRREGULAR), _anywhere, _testing),
    "new_category": Kind(
        "a few events with categories that the entity never met", (CATEGORY, IRREGULAR), _anywhere, _new_category
    ),
    "odd_hours": Kind("a few events at hours that the entity rarely uses", (HOURS, IRREGULAR), _anywhere, _odd_hours),
    "far_place": Kind("a few events far from the entity's usual place", (PLACE, IRREGULAR), _with_place, _far_place),
    "drip": Kind(
        "small amounts every day or so, with a new category that stays the same",
        (AMOUNT, CATEGORY, IRREGULAR),
        _with_weeks_left,
        _drip,
    ),
    "wake_up": Kind(
        "a long silence, then a few events, mostly with new categories", (IRREGULAR,), _with_silence, _wake_up
    ),
    "frozen": Kind("a number that usually changes stays the same for a while", (READING,), _in_series, _frozen),
    "noise": Kind("a number that usually changes spreads several times as much", (READING,), _in_series, _noise),
}
"""All kinds by name; `anomaly.injections.possible_kinds` leaves out those for which a table lacks something."""
