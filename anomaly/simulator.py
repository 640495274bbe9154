"""Card payments of made-up customers, with planted fraud of eight kinds and its labels.

For the demonstration and the tests: `simulate` gives events as a bank would see them, and in a table of its own which
of them are fraud (`anomaly.frauds` tells what the frauds do). The genuine payments are meant to be as untidy as real
ones: people differ in wealth, habits and hours; they travel, move house, go on shopping sprees, fall silent and come
back, buy a new telephone, try new shops, and now and then pay a lot. Where they live and what shops are called is made
up; no figure is taken from anybody's data.

Everything is drawn as whole arrays from one `numpy.random.Generator`, so that a million payments take seconds and the
same seed gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from anomaly.errors import ParameterError
from anomaly.features import great_circle_km
from anomaly.frauds import CATEGORIES, CODE, DAY, HOUR, Bool, Float, Int, Payments, World, plant
from anomaly.ingest import write_table
from anomaly.schema import NumericField, Place, Schema

__all__ = ["SIMULATED_SCHEMA", "simulate", "write_simulation"]

SIMULATED_SCHEMA = Schema(
    time="time",
    entity=("customer_id",),
    event_id="event_id",
    numeric=(NumericField(name="amount", scale="log", tail="upper"),),
    categorical=("merchant_category", "channel", "merchant_id", "device_id"),
    place=Place(latitude="latitude", longitude="longitude"),
)
"""The schema of the events that `simulate` returns."""

# By category, in the order of CATEGORIES: share of the payments, median amount, spread of its logarithm, how it grows
# with wealth (exponent), share paid online, how evenly customers take to it (shape of a gamma), the usual hour.
_TASTE = np.array(
    [
        (0.230, 27.0, 0.65, 0.60, 0.05, 4.0, 17.0),  # grocery
        (0.075, 46.0, 0.35, 0.35, 0.00, 1.5, 17.0),  # fuel
        (0.215, 13.0, 0.65, 0.75, 0.10, 2.5, 14.0),  # dining
        (0.095, 6.5, 0.70, 0.45, 0.30, 1.5, 8.5),  # transport
        (0.045, 18.0, 0.70, 0.55, 0.10, 3.0, 15.0),  # health
        (0.060, 45.0, 0.60, 0.85, 0.40, 2.0, 15.0),  # clothing
        (0.065, 36.0, 0.75, 0.80, 0.45, 2.0, 16.0),  # household
        (0.025, 90.0, 0.80, 0.85, 0.55, 1.5, 17.0),  # electronics
        (0.004, 150.0, 0.75, 1.00, 0.25, 0.5, 15.0),  # jewellery
        (0.020, 160.0, 0.75, 0.95, 0.80, 1.0, 20.0),  # travel
        (0.075, 7.0, 0.70, 0.50, 1.00, 0.7, 20.0),  # digital
        (0.020, 20.0, 0.85, 0.70, 0.75, 0.12, 22.0),  # gambling
        (0.013, 110.0, 0.75, 0.90, 0.85, 0.25, 14.0),  # money_transfer
        (0.058, 65.0, 0.55, 0.70, 0.00, 2.0, 14.0),  # cash
        (0.000, 75.0, 0.50, 0.70, 1.00, 2.0, 9.0),  # bills: only by the month
    ]
)
_SHARE, _MEDIAN, _SPREAD, _WEALTH, _ONLINE, _EVEN, _HOUR = _TASTE.T
_TOWNS = np.array(
    [(48.9, 2.4), (45.8, 4.8), (43.5, 5.3), (43.6, 1.4), (47.2, -1.6), (48.6, 7.7), (50.6, 3.1), (44.8, -0.6),
     (47.3, 5.0), (48.1, -1.7), (49.4, 1.1), (45.8, 1.3)]
)  # fmt: skip
_ABROAD = np.array(
    [(28.3, -16.5), (64.1, -21.9), (41.0, 29.0), (30.0, 31.2), (25.2, 55.3), (40.7, -74.0), (13.7, 100.5),
     (25.8, -80.2)]
)  # fmt: skip
_PEOPLE_IN_TOWN = 1.0 / np.arange(1, len(_TOWNS) + 1) ** 0.8
_FAVOURITES = 6
_RANK_SHARE = np.cumsum(1.0 / np.arange(1, _FAVOURITES + 1) ** 1.2)
_CONTACTLESS_LIMIT = 50.0
_GROUND_KMH, _CHECK_IN = 700.0, 2 * HOUR


@dataclass(frozen=True)
class _Burst:
    """An occasion on which several payments come together: how often a year, for how long, on what, how dear."""

    per_year: float
    payments: float
    hours: float
    from_hour: float
    dearer: float
    on: tuple[str, ...]


_BURSTS = (
    _Burst(6.0, 4.0, 4.0, 11.0, 0.25, ("clothing", "household", "electronics", "clothing", "dining", "health")),
    _Burst(6.0, 4.0, 5.0, 18.5, 0.10, ("dining", "dining", "cash", "transport", "gambling", "dining")),
    _Burst(3.0, 5.0, 0.6, 17.0, -0.50, ("digital", "digital", "digital", "digital", "digital", "digital")),
    _Burst(0.8, 6.0, 200.0, 9.0, 0.60, ("household", "electronics", "household", "household", "transport", "cash")),
    _Burst(0.8, 4.0, 60.0, 10.0, 0.45, ("jewellery", "clothing", "electronics", "travel", "clothing", "household")),
    _Burst(0.4, 5.0, 150.0, 9.0, 0.80, ("money_transfer", "money_transfer", "cash", "money_transfer", "cash", "bills")),
)


@dataclass(frozen=True)
class _Habits:
    """How each customer lives: arrays of one row per customer, and their trips."""

    rate: Float  # payments a day
    mix: Float  # (C, 15) cumulative shares of the categories
    peak: Float  # the hour around which the customer mostly pays
    width: Float  # hours of spread around it
    owl: Bool  # is awake at night
    weekend: Float  # factor of Saturday and Sunday
    payday: Int  # day of the month
    slope: Float  # growth of the amounts per year, logarithmic
    online: Float  # exponent of a category's online share: below 1 likes to buy online
    tap: Float  # probability of paying contactless where allowed
    explore: Float  # probability of trying another merchant
    favourites: Int  # (C, 15, 6) merchants in the home town, the dearest first
    online_favourites: Int  # (C, 15, 6)
    drift: Float  # days after which the favourites shift by one


@dataclass(frozen=True)
class _Trips:
    """Stays elsewhere, sorted by customer and time; seconds, and seconds on the way each side."""

    customer: Int
    begin: Float
    end: Float
    way: Float
    place: Int
    taste: Float  # (T, 3) uniform: which merchants are visited there
    span: float

    def at(self, customer: Int, time: Float) -> tuple[Int, Bool]:
        """The trip on which each payment is made (-1: at home), and whether the customer is then under way."""
        if not len(self.customer):
            return np.full(len(time), -1), np.zeros(len(time), dtype=bool)
        last = np.searchsorted(self.customer * self.span + self.begin, customer * self.span + time, side="right") - 1
        back = np.maximum(last, 0)
        mine = (last >= 0) & (self.customer[back] == customer)
        away = mine & (time < self.end[back])
        coming = np.minimum(last + 1, len(self.customer) - 1)
        leaving = (self.customer[coming] == customer) & (time >= self.begin[coming] - self.way[coming])
        under_way = ~away & ((mine & (time < self.end[back] + self.way[back])) | (leaving & (coming > last)))
        return np.where(away, last, -1), under_way


def simulate(
    customers: int = 2000, days: int = 90, start: str = "2024-01-01", fraud_rate: float = 0.01, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Card payments of made-up customers, with planted fraud.

    Parameters
    ----------
    customers : int
        Number of customers. Each makes about 2 payments a day; the rate differs widely between customers, and some
        arrive later, fall silent or leave.
    days : int
        Length in days. Accounts that lie dormant for 30 days before they are abused need some 45 days.
    start : str
        First day, ``YYYY-MM-DD``; times are in UTC.
    fraud_rate : float
        Share of frauds among all payments, in [0, 0.2], spread evenly over the kinds as far as whole runs allow. Runs
        have 5 to 15 payments; above a rate of about 0.05 they are longer, as a customer has room for only one run in
        four weeks.
    seed : int
        Same seed and same versions of the libraries, same bytes.

    Returns
    -------
    events : polars.DataFrame
        One row per payment, sorted by time: ``event_id``, ``customer_id``, ``time`` (UTC, whole seconds), ``amount``
        (money, two decimals), ``merchant_id``, ``merchant_category``, ``channel`` (chip, contactless, online or atm),
        ``device_id``, ``latitude`` and ``longitude`` (degrees; the merchant's place, or about where the payer's
        internet address is). Nothing is null. `SIMULATED_SCHEMA` describes it.
    labels : polars.DataFrame
        In the same order: ``event_id``, ``fraud`` (Boolean), ``kind`` (a key of `anomaly.frauds.KINDS`, empty where
        genuine).

    Raises
    ------
    ParameterError
        A number out of its range, or a start that is no date.

    Examples
    --------
    >>> events, labels = simulate(customers=50, days=30, fraud_rate=0.02, seed=1)
    >>> events.columns[:4]
    ['event_id', 'customer_id', 'time', 'amount']
    >>> labels.height == events.height
    True
    """
    first = _check(customers, days, start, fraud_rate, seed)
    rng = np.random.default_rng(seed)
    world = _world(rng, customers, days)
    habits = _habits(rng, world)
    trips = _trips(rng, world)
    genuine = _genuine(rng, world, habits, trips, first)
    genuine, planted = plant(rng, world, genuine, fraud_rate)
    kind = np.repeat(
        np.array(["", *(name for name, _ in planted)], dtype=object),
        [len(genuine), *(len(payments) for _, payments in planted)],
    )
    payments = Payments.join([genuine, *(payments for _, payments in planted)])
    order = np.argsort(payments.time)
    events = _till(rng, world, habits, payments.take(order), first)
    kinds = pl.Series("kind", kind[order], dtype=pl.String)
    return events, pl.DataFrame({"event_id": events["event_id"], "fraud": kinds != "", "kind": kinds})


def write_simulation(
    folder: str | Path,
    customers: int = 2000,
    days: int = 90,
    start: str = "2024-01-01",
    fraud_rate: float = 0.01,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Simulate and write ``events.parquet`` and ``labels.parquet`` into a folder, which is made if need be.

    Parameters
    ----------
    folder : str or Path
        Where to write.
    customers, days, start, fraud_rate, seed
        As for `simulate`.

    Returns
    -------
    events, labels : Path
        The two files. Each appears whole or not at all.
    """
    tables = simulate(customers, days, start, fraud_rate, seed)
    paths = Path(folder) / "events.parquet", Path(folder) / "labels.parquet"
    Path(folder).mkdir(parents=True, exist_ok=True)
    for table, path in zip(tables, paths, strict=True):
        write_table(table, path)
    return paths


def _check(customers: int, days: int, start: str, fraud_rate: float, seed: int) -> date:
    """Check the arguments of `simulate`; the first day."""
    for name, value, least in (("customers", customers, 1), ("days", days, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ParameterError(f"simulate: expected {name} to be a whole number from {least} up, got {value!r}")
    if not isinstance(fraud_rate, int | float) or not 0.0 <= fraud_rate <= 0.2:
        raise ParameterError(
            f"simulate: expected fraud_rate to be a share from 0 to 0.2, got {fraud_rate!r}; for 1 % give 0.01"
        )
    try:
        return date.fromisoformat(start)
    except (TypeError, ValueError):
        raise ParameterError(f"simulate: expected start to be a date such as '2024-01-01', got {start!r}") from None


def _world(rng: np.random.Generator, customers: int, days: int) -> World:
    """Towns, merchants and customers."""
    place = np.concatenate([_TOWNS, _ABROAD])
    share = _PEOPLE_IN_TOWN / _PEOPLE_IN_TOWN.sum()
    count = np.full((len(place) + 1, len(CATEGORIES)), 5)
    trade = 3 + 0.35 * customers * (_SHARE * (1 - _ONLINE)) ** 0.8
    count[: len(_TOWNS)] = np.ceil(3 + share[:, None] * trade)
    count[-1] = np.ceil(8 + 0.05 * customers * (_SHARE * _ONLINE) ** 0.8)
    merchants = int(count.sum())
    place_of = np.repeat(np.arange(len(place) + 1), count.sum(axis=1))
    centre = np.concatenate([place, place[:1]])[place_of]  # where an online merchant sits is never looked at
    town = rng.choice(len(_TOWNS), customers, p=share)
    wealth = 0.5 * rng.standard_t(4, customers).clip(-4, 5)  # logarithm, with a heavy tail
    own_taste = 0.25 * rng.standard_normal((customers, len(CATEGORIES)))
    return World(
        days=days,
        place_latitude=place[:, 0],
        place_longitude=place[:, 1],
        abroad=len(_TOWNS),
        merchant_latitude=centre[:, 0] + 0.05 * rng.standard_normal(merchants),
        merchant_longitude=centre[:, 1] + 0.07 * rng.standard_normal(merchants),
        first=(np.cumsum(count) - count.ravel()).reshape(count.shape),
        count=count,
        town=town,
        latitude=place[town, 0] + 0.05 * rng.standard_normal(customers),
        longitude=place[town, 1] + 0.07 * rng.standard_normal(customers),
        level=np.log(_MEDIAN) + _WEALTH * wealth[:, None] + own_taste,
        devices=rng.choice([1, 2, 3], customers, p=[0.15, 0.45, 0.4]),
        device_age=rng.uniform(0, 900, (customers, 3)),
        device_life=900 * np.exp(0.3 * rng.standard_normal((customers, 3))),
    )


def _habits(rng: np.random.Generator, world: World) -> _Habits:
    """What each customer is like."""
    n, k = len(world.level), len(CATEGORIES)
    liking = _SHARE * rng.gamma(_EVEN, 1 / _EVEN, (n, k))
    mix = np.cumsum(liking, axis=1)
    codes = np.arange(k)[None, :, None]
    # of three shops that come to mind, the one nearest to home becomes a favourite
    known = world.merchant(rng.random((3, n, k, _FAVOURITES)), world.town[:, None, None], codes)
    distance = np.abs(world.merchant_latitude[known] - world.latitude[:, None, None])
    distance += 0.7 * np.abs(world.merchant_longitude[known] - world.longitude[:, None, None])
    favourites = np.take_along_axis(known, np.argmin(distance, axis=0)[None], axis=0)[0]
    return _Habits(
        rate=rng.gamma(1.6, 1.9 / 1.6, n),
        mix=mix / mix[:, -1:],
        peak=rng.normal(14.0, 2.2, n),
        width=rng.uniform(1.5, 4.0, n),
        owl=rng.random(n) < 0.07,
        weekend=np.exp(rng.normal(0.1, 0.35, n)),
        payday=rng.choice([1, 15, 25, 28], n, p=[0.3, 0.1, 0.3, 0.3]),
        slope=rng.normal(0.05, 0.2, n),
        online=np.exp(0.5 * rng.standard_normal(n)),
        tap=rng.beta(4, 1.5, n),
        explore=rng.beta(1.5, 14, n),
        favourites=favourites,
        online_favourites=world.merchant(rng.random((n, k, _FAVOURITES)), np.array(world.internet), codes),
        drift=rng.uniform(60, 300, n),
    )


def _trips(rng: np.random.Generator, world: World) -> _Trips:
    """At most one trip in each stretch of some 40 days; most are short and in the same country."""
    customers, stretches = len(world.town), max(1, world.days // 40)
    width = world.days / stretches
    fond = rng.beta(1.2, 3.0, (customers, 1))
    goes = (rng.random((customers, stretches)) < fond) & (width > 8)
    customer, stretch = np.nonzero(goes)
    n = len(customer)
    far = rng.random(n) < 0.3
    length = np.where(far, rng.uniform(4, 15, n), 1 + rng.exponential(2.0, n)).clip(0, 0.6 * width)
    begin = stretch * width + 1.0 + rng.random(n) * (width - length - 2.0)  # a day to spare for the way
    elsewhere = (world.town[customer] + rng.integers(1, world.abroad, n)) % world.abroad
    place = np.where(far, rng.integers(world.abroad, world.internet, n), elsewhere)
    km = great_circle_km(
        world.latitude[customer], world.longitude[customer], world.place_latitude[place], world.place_longitude[place]
    )
    return _Trips(
        customer=customer,
        begin=begin * DAY,
        end=(begin + length) * DAY,
        way=km / _GROUND_KMH * HOUR + _CHECK_IN,
        place=place,
        taste=rng.random((n, 3)),
        span=2.0 * world.days * DAY,
    )


def _spell(rng: np.random.Generator, customers: int, days: int, share: float, least: float, most: float) -> Bool:
    """One stretch of `least` to `most` days for a share of the customers, as a (C, D) mask."""
    length = np.where(rng.random((customers, 1)) < share, rng.uniform(least, most, (customers, 1)), 0)
    begin = rng.uniform(0, max(days - least, 1), (customers, 1))
    day = np.arange(days)
    return (day >= begin) & (day < begin + length)


def _calendar(rng: np.random.Generator, habits: _Habits, first: date, days: int) -> tuple[Float, Bool]:
    """Expected payments (C, D) of each customer and day, and the days on which the account is in use at all."""
    customers = len(habits.rate)
    dates = np.datetime64(first, "D") + np.arange(days)
    weekday = (dates.astype(np.int64) + 3) % 7
    month = dates.astype("datetime64[M]")
    of_month = (dates - month).astype(np.int64) + 1
    december = (month.astype(np.int64) % 12 == 11) & (of_month < 25)
    season = np.where(december, 1.25, 1.0)
    day = np.arange(days)
    wave = 1 + 0.15 * np.sin(2 * np.pi * day / 365 + rng.uniform(0, 2 * np.pi, (customers, 1)))
    since_pay = (of_month - habits.payday[:, None]) % 30
    expected = habits.rate[:, None] * season * wave * (0.93 + 0.4 * np.exp(-since_pay / 2.5))
    expected = np.where(weekday >= 5, expected * habits.weekend[:, None], expected)
    expected[_spell(rng, customers, days, 0.3, 7, 25)] *= 0.15
    joins = np.where(rng.random(customers) < 0.12, rng.uniform(0, days, customers), 0)[:, None]
    leaves = np.where(rng.random(customers) < 0.03, rng.uniform(0, days, customers), days)[:, None]
    dormant = _spell(rng, customers, days, 0.06, 30, 80)
    return expected, (day >= joins) & (day < leaves) & ~dormant


@dataclass(frozen=True)
class _Moments:
    """Decisions to buy something: who, when, of which category, and how much dearer than usual (logarithm)."""

    customer: Int
    time: Float
    category: Int
    dearer: Float

    def take(self, mask: Bool) -> _Moments:
        return _Moments(self.customer[mask], self.time[mask], self.category[mask], self.dearer[mask])


def _genuine(rng: np.random.Generator, world: World, habits: _Habits, trips: _Trips, first: date) -> Payments:
    """All genuine payments, sorted by customer and time."""
    expected, in_use = _calendar(rng, habits, first, world.days)
    parts = [
        _settle(rng, world, habits, trips, _in_use(_everyday(rng, habits, expected * in_use), in_use)),
        _settle(rng, world, habits, trips, _in_use(_bursts(rng, world, habits), in_use)),
        _by_the_month(rng, world, habits, trips, in_use),
    ]
    payments = Payments.join(parts)
    return payments.take(np.lexsort((payments.time, payments.customer)))


def _in_use(moments: _Moments, in_use: Bool) -> _Moments:
    """Those that fall on a day on which the account is in use."""
    day = np.floor(moments.time / DAY).astype(np.int64)
    inside = (day >= 0) & (day < in_use.shape[1])
    return moments.take(inside & in_use[moments.customer, np.where(inside, day, 0)])


def _everyday(rng: np.random.Generator, habits: _Habits, expected: Float) -> _Moments:
    """The daily round."""
    cell = np.repeat(np.arange(expected.size), rng.poisson(expected.ravel()))
    customer, day = np.divmod(cell, expected.shape[1])
    n = len(cell)
    # one sorted array holds the cumulative shares of all customers, each one's raised by its number
    k = len(CATEGORIES)
    stairs = (habits.mix + np.arange(len(habits.rate))[:, None]).ravel()
    category = np.minimum(np.searchsorted(stairs, customer + rng.random(n), side="right") - customer * k, k - 2)
    own = habits.peak[customer] + habits.width[customer] * rng.standard_normal(n)
    usual = _HOUR[category] + 2.8 * rng.standard_normal(n)
    hour = np.where(rng.random(n) < 0.5, own, usual) % 24
    awake = (hour >= 6.5) | habits.owl[customer] | (rng.random(n) < 0.12)
    hour = np.where(awake, hour, 9 + 12 * rng.random(n))
    return _Moments(customer, (day + hour / 24) * DAY, category, np.zeros(n))


def _bursts(rng: np.random.Generator, world: World, habits: _Habits) -> _Moments:
    """Shopping sprees, nights out, games, removals, presents, a helping hand to relatives."""
    customers = len(habits.rate)
    per_year = np.array([burst.per_year for burst in _BURSTS])
    sort = np.repeat(np.arange(len(_BURSTS)), rng.poisson(per_year * customers * world.days / 365))
    numbers = np.array([(b.payments, b.hours, b.from_hour, b.dearer) for b in _BURSTS])[sort].T
    payments, hours, from_hour, dearer = numbers
    size = 2 + rng.poisson(payments)
    who = rng.integers(0, customers, len(sort))
    begin = rng.integers(0, world.days, len(sort)) * DAY + (from_hour + rng.exponential(1.5, len(sort))) * HOUR
    burst = np.repeat(np.arange(len(sort)), size)
    palette = np.array([[CODE[name] for name in b.on] for b in _BURSTS])
    category = palette[sort[burst], rng.integers(0, palette.shape[1], len(burst))]
    time = begin[burst] + rng.random(len(burst)) * hours[burst] * HOUR
    extent = dearer + 0.3 * rng.standard_normal(len(sort))
    return _Moments(who[burst], time, category, extent[burst])


def _settle(rng: np.random.Generator, world: World, habits: _Habits, trips: _Trips, moments: _Moments) -> Payments:
    """Turn decisions to buy into payments: at which merchant, where, through which device, for how much."""
    moments = moments.take(~trips.at(moments.customer, moments.time)[1])
    who, time, category = moments.customer, moments.time, moments.category
    trip = trips.at(who, time)[0]
    n = len(who)
    online = rng.random(n) < _ONLINE[category] ** habits.online[who]
    merchant = _merchants(rng, world, habits, trips, trip, moments, online)
    latitude, longitude = _whereabouts(rng, world, trips, trip, who)
    z = rng.standard_normal(n) * np.where(rng.random(n) < 0.02, 1.8, 1.0)
    rare = np.isin(category, [CODE[name] for name in ("transport", "fuel", "dining", "cash")], invert=True)
    large = np.where(rare & (rng.random(n) < 0.005), rng.normal(1.5, 0.4, n), 0.0)
    drift = habits.slope[who] * time / (365 * DAY)
    amount = np.exp(world.level[who, category] + _SPREAD[category] * z + large + drift + moments.dearer)
    slot = np.where(online, 1 + (rng.random(n) < 0.4), 0)
    return Payments(
        who, time, category, amount, merchant, online, world.device(who, slot, time),
        np.where(online, latitude, world.merchant_latitude[merchant]),
        np.where(online, longitude, world.merchant_longitude[merchant]),
    )  # fmt: skip


def _merchants(
    rng: np.random.Generator, world: World, habits: _Habits, trips: _Trips, trip: Int, moments: _Moments, online: Bool
) -> Int:
    """A favourite, another one of the same town, or on a trip one of the few that are visited there."""
    who, category = moments.customer, moments.category
    n = len(who)
    rank = np.searchsorted(_RANK_SHARE / _RANK_SHARE[-1], rng.random(n))
    shift = (moments.time / DAY / habits.drift[who]).astype(np.int64)
    rank = (rank + shift) % _FAVOURITES
    favourite = np.where(online, habits.online_favourites[who, category, rank], habits.favourites[who, category, rank])
    away = (trip >= 0) & ~online
    u = rng.random(n)
    place = np.where(online, world.internet, world.town[who])
    if len(trips.customer):
        place = np.where(away, trips.place[trip], place)
        visited = (trips.taste[trip, rng.integers(0, 3, n)] + 0.618 * category) % 1.0
        u = np.where(away & (rng.random(n) < 0.8), visited, u)
    explores = away | (rng.random(n) < habits.explore[who])
    return np.where(explores, world.merchant(u, place, category), favourite)


def _whereabouts(rng: np.random.Generator, world: World, trips: _Trips, trip: Int, who: Int) -> tuple[Float, Float]:
    """Where an internet address seems to be: near home, near the hotel, or at the operator's gateway in the capital."""
    n = len(who)
    latitude, longitude = world.latitude[who], world.longitude[who]
    if len(trips.customer):
        latitude = np.where(trip >= 0, world.place_latitude[trips.place[trip]], latitude)
        longitude = np.where(trip >= 0, world.place_longitude[trips.place[trip]], longitude)
    gateway = (rng.random(n) < 0.003) & (trip < 0)
    latitude = np.where(gateway, world.place_latitude[0], latitude)
    longitude = np.where(gateway, world.place_longitude[0], longitude)
    return latitude + 0.02 * rng.standard_normal(n), longitude + 0.02 * rng.standard_normal(n)


def _by_the_month(rng: np.random.Generator, world: World, habits: _Habits, trips: _Trips, in_use: Bool) -> Payments:
    """Subscriptions and bills: the same merchant and nearly the same amount on the same day of each month."""
    customers = len(habits.rate)
    customer = np.repeat(np.arange(customers), np.minimum(rng.poisson(2.2, customers), 6))
    contracts = len(customer)
    bill = rng.random(contracts) < 0.4
    category = np.where(bill, CODE["bills"], CODE["digital"])
    merchant = world.merchant(rng.random(contracts), np.full(contracts, world.internet), category)
    usual = world.level[customer, category] + _SPREAD[category] * rng.standard_normal(contracts)
    since = rng.uniform(-60, world.days, contracts) * (rng.random(contracts) < 0.25)  # some begin on the way
    turn = rng.uniform(0, 30.4, contracts)
    months = world.days // 30 + 2
    contract = np.repeat(np.arange(contracts), months)
    day = np.floor(turn[contract] + 30.4 * np.tile(np.arange(months), contracts))
    time = (day + (6 + 5 * rng.random(len(contract))) / 24) * DAY
    who = customer[contract]
    due = (day < world.days) & (day >= since[contract])
    due &= in_use[who, np.minimum(day, world.days - 1).astype(np.int64)] & ~trips.at(who, time)[1]
    contract, who, time = contract[due], who[due], time[due]
    n = len(who)
    varies = np.where(bill[contract] & (rng.random(n) < 0.5), 0.12 * rng.standard_normal(n), 0.0)
    latitude, longitude = _whereabouts(rng, world, trips, trips.at(who, time)[0], who)
    return Payments(
        who, time, category[contract], np.exp(usual[contract] + varies), merchant[contract],
        np.ones(n, dtype=bool), world.device(who, np.ones(n, dtype=np.int64), time), latitude, longitude,
    )  # fmt: skip


def _till(rng: np.random.Generator, world: World, habits: _Habits, payments: Payments, first: date) -> pl.DataFrame:
    """Ring up all payments alike, genuine or not: prices, channels, identifiers. In the order of time."""
    n = len(payments)
    amount = _price(rng, payments)
    in_person = np.where(
        (amount <= _CONTACTLESS_LIMIT) & (rng.random(n) < habits.tap[payments.customer]), "contactless", "chip"
    )
    channel = np.where(payments.category == CODE["cash"], "atm", np.where(payments.online, "online", in_person))
    midnight = np.datetime64(first, "us").astype(np.int64)
    time = np.floor(payments.time).astype(np.int64) * 1_000_000 + midnight
    devices, device = np.unique(payments.device, return_inverse=True)
    number = pl.int_range(1, n + 1, eager=True).cast(pl.String).str.zfill(max(7, len(str(n))))
    return pl.DataFrame(
        {
            "event_id": "E" + number,
            "customer_id": _names(rng, "C", payments.customer, len(world.town)),
            "time": pl.Series(time).cast(pl.Datetime("us", "UTC")),
            "amount": amount,
            "merchant_id": _names(rng, "M", payments.merchant, int(world.count.sum())),
            "merchant_category": pl.Series(CATEGORIES, dtype=pl.String).gather(payments.category),
            "channel": pl.Series(channel, dtype=pl.String),
            "device_id": _names(rng, "D", device, len(devices)),
            "latitude": payments.latitude.round(4),
            "longitude": payments.longitude.round(4),
        }
    )


def _price(rng: np.random.Generator, payments: Payments) -> Float:
    """Prices as they are written: many end in .00, .50, .95 or .99, cash and transfers are round sums."""
    n = len(payments)
    whole = np.floor(payments.amount)
    ending = rng.choice([0.0, 0.5, 0.95, 0.99, np.nan], n, p=[0.17, 0.06, 0.07, 0.2, 0.5])
    price = np.where(np.isnan(ending) | (whole < 1), payments.amount, whole + ending)
    fives = (payments.category == CODE["money_transfer"]) & (rng.random(n) < 0.7) & (whole >= 20)
    price = np.where(fives, np.floor(payments.amount / 5) * 5, price)
    notes = np.maximum(10.0, np.floor(payments.amount / 10) * 10)
    price = np.where(payments.category == CODE["cash"], notes, price)
    return np.maximum(np.floor(price * 100 + 1e-6) / 100, 0.1)


def _names(rng: np.random.Generator, letter: str, code: Int, count: int) -> pl.Series:
    """Identifiers in random order, so that the number says nothing."""
    number = pl.Series(rng.permutation(count) + 1).cast(pl.String).str.zfill(len(str(count)))
    return (letter + number).gather(code)
