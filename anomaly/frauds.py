"""The planted frauds of `anomaly.simulator`, eight kinds, and the small world in which they happen.

| kind | what the fraudster does |
|---|---|
| ``account_takeover`` | logs in from a device of his own and shops online, in a day or two, for what resells well |
| ``card_testing`` | tries the card on tiny amounts at several online shops within minutes, then buys in earnest |
| ``stolen_card_burst`` | carries the card itself through the shops of the same town before it is blocked |
| ``bust_out`` | is the customer, who spends more and more for a week or so, and then disappears |
| ``impossible_travel`` | uses a copy of the card in another country while its owner is at home |
| ``dormant_woken`` | wakes an account that has been silent for at least 30 days |
| ``structuring`` | moves money in pieces just under the reporting limit |
| ``slow_drip`` | takes small sums at one or two online shops over weeks |

Each kind turns a `Plan` (who, from when, how many events) into `Payments`. A fraud buys from the same merchants and
goes through the same till as everybody else, so that no format gives it away: prices, channels and identifiers are made
in `anomaly.simulator`, for genuine and fraudulent payments at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from anomaly.features import great_circle_km

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

CATEGORIES = (
    "grocery", "fuel", "dining", "transport", "health", "clothing", "household", "electronics",
    "jewellery", "travel", "digital", "gambling", "money_transfer", "cash", "bills",
)  # fmt: skip
CODE: Mapping[str, int] = {name: code for code, name in enumerate(CATEGORIES)}
DAY = 86400.0
HOUR = 3600.0
MINUTE = 60.0
DORMANT_DAYS = 30.0
REPORTING_LIMIT = 1000.0
FAR_KM = 1500.0
STRANGER = 1 << 40  # device codes of fraudsters start here, those of customers stay below
POPULARITY = 1.7  # merchant = floor(count * u ** POPULARITY): the first ones of a town have most of the trade
CELL_DAYS = 28.0  # a customer has at most one fraud in such a stretch of time, wholly inside it


@dataclass(frozen=True)
class Payments:
    """Payments before they go through the till, as equally long arrays.

    Attributes
    ----------
    customer, category, merchant, device : int arrays
        Codes; see `CATEGORIES` for the categories.
    time : float array
        Seconds since the start of the simulation.
    amount : float array
        Money before price endings, above 0.
    online : bool array
        Paid over the internet rather than at a counter or a cash machine.
    latitude, longitude : float arrays
        Degrees; of the merchant, or of the payer's internet address where online.
    """

    customer: Int
    time: Float
    category: Int
    amount: Float
    merchant: Int
    online: Bool
    device: Int
    latitude: Float
    longitude: Float

    def __len__(self) -> int:
        """Number of payments."""
        return len(self.time)

    def take(self, index: Int | Bool) -> Payments:
        """The payments at these positions, or where the mask is true."""
        return Payments(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def choose(mask: Bool, yes: Payments, no: Payments) -> Payments:
        """Payment by payment, the one of `yes` where the mask is true and that of `no` elsewhere."""
        return Payments(*(np.where(mask, getattr(yes, f.name), getattr(no, f.name)) for f in fields(Payments)))

    @staticmethod
    def join(parts: Sequence[Payments]) -> Payments:
        """All payments of all parts, one part after the other."""
        return Payments(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Payments)))


@dataclass(frozen=True)
class World:
    """Towns, merchants and customers: what a payment, genuine or not, is made of.

    Attributes
    ----------
    days : int
        Length of the simulation.
    place_latitude, place_longitude : (P,) float
        Degrees; the customers' towns first, then `abroad` and onwards the places abroad.
    abroad : int
        Number of towns in the customers' own country.
    merchant_latitude, merchant_longitude : (M,) float
        Degrees.
    first, count : (P + 1, 15) int
        Merchants of a place and category are ``first .. first + count - 1``; the last row holds the online merchants.
    town : (C,) int
        Home town of each customer.
    latitude, longitude : (C,) float
        Home of each customer, degrees.
    level : (C, 15) float
        Logarithm of what this customer typically pays in this category.
    devices : (C,) int
        1 to 3: the card, a telephone, a computer.
    device_age, device_life : (C, 3) float
        Days since the device was new when the simulation starts, and days after which it is replaced.
    """

    days: int
    place_latitude: Float
    place_longitude: Float
    abroad: int
    merchant_latitude: Float
    merchant_longitude: Float
    first: Int
    count: Int
    town: Int
    latitude: Float
    longitude: Float
    level: Float
    devices: Int
    device_age: Float
    device_life: Float

    @property
    def internet(self) -> int:
        """The row of `first` and `count` that holds the online merchants."""
        return len(self.place_latitude)

    def merchant(self, u: Float, place: Int, category: Int) -> Int:
        """A merchant of this place and category by popularity; `u` is uniform on [0, 1)."""
        return self.first[place, category] + (self.count[place, category] * u**POPULARITY).astype(np.int64)

    def device(self, customer: Int, slot: Int, time: Float) -> Int:
        """The customer's own device of that slot (0 the card, 1 and 2 for online) at that time."""
        slot = np.minimum(slot, self.devices[customer] - 1)
        days = time / DAY + self.device_age[customer, slot]
        return (customer * 3 + slot) * 64 + np.minimum(days / self.device_life[customer, slot], 63).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """Runs of one kind of fraud that are to be turned into payments.

    Attributes
    ----------
    customer : (n,) int
        Victim, or culprit, of each run.
    start : (n,) float
        Seconds; of a genuine payment of this customer, or later where the account lies dormant first.
    latitude, longitude : (n,) float
        Degrees; the place of that payment.
    run : (m,) int
        Run of each fraudulent payment.
    rank : (m,) int
        0 for a run's first payment.
    reserve : float
        Seconds after `start` within which the run must be over (payments by day may shift within their day).
    """

    customer: Int
    start: Float
    latitude: Float
    longitude: Float
    run: Int
    rank: Int
    reserve: float

    @property
    def who(self) -> Int:
        """Customer of each payment."""
        return self.customer[self.run]

    def flip(self, rng: np.random.Generator, share: float) -> Bool:
        """One coin per run, repeated for its payments."""
        return (rng.random(len(self.customer)) < share)[self.run]

    def lognormal(self, rng: np.random.Generator, median: float, sigma: float) -> Float:
        """One factor per run, repeated for its payments."""
        return (median * np.exp(sigma * rng.standard_normal(len(self.customer))))[self.run]

    def times(self, gap: Float, delay: Float) -> Float:
        """Times of the payments: `delay` (n,) seconds after the start, and `gap` (m,) after the payment before.

        A run that would take too long is squeezed into its reserve.
        """
        total = np.cumsum(gap)
        opening = np.flatnonzero(self.rank == 0)
        since = delay[self.run] + total - total[opening][self.run]
        longest = np.maximum.reduceat(since, opening)
        squeeze = np.minimum(1.0, self.reserve / np.maximum(longest, 1.0))
        return self.start[self.run] + since * squeeze[self.run]


@dataclass(frozen=True)
class Kind:
    """A kind of fraud.

    Attributes
    ----------
    shortest, longest : int
        Payments of a run.
    days : float
        A run is over after so many days.
    make : callable
        Turns a plan into payments.
    silent_before, silent_after : float
        Days without any genuine payment before and after the run's start; such a customer meets no other fraud.
    """

    shortest: int
    longest: int
    days: float
    make: Callable[[np.random.Generator, World, Plan], Payments]
    silent_before: float = 0.0
    silent_after: float = 0.0


def _choose(rng: np.random.Generator, m: int, weights: Mapping[str, float]) -> Int:
    """Draw `m` category codes by weight."""
    codes = np.array([CODE[name] for name in weights])
    share = np.array(list(weights.values()))
    return codes[rng.choice(len(codes), m, p=share / share.sum())]


def _by_day(time: Float) -> Float:
    """The same payments between 7 in the morning and half past 10 at night, on the same days and in the same order."""
    midnight = np.floor(time / DAY) * DAY
    return midnight + 7 * HOUR + (time - midnight) * 15.5 / 24


def _usual(rng: np.random.Generator, world: World, plan: Plan, category: Int, sigma: float) -> Float:
    """What the customer usually pays in this category, with some spread."""
    return np.exp(world.level[plan.who, category] + sigma * rng.standard_normal(len(category)))


def _nearest(world: World, latitude: Float, longitude: Float) -> Int:
    """The place nearest to each point."""
    km = great_circle_km(latitude[:, None], longitude[:, None], world.place_latitude, world.place_longitude)
    return np.asarray(np.argmin(km, axis=1), dtype=np.int64)


def _stranger(rng: np.random.Generator, plan: Plan) -> Int:
    """One device per run that the customer never had."""
    return rng.integers(STRANGER, 1 << 62, len(plan.customer))[plan.run]


def _own(rng: np.random.Generator, world: World, plan: Plan, time: Float, online: Bool) -> Int:
    """The customer's own card at the counter, the telephone or the computer online."""
    slot = np.where(online, 1 + (rng.random(len(time)) < 0.4), 0)
    return world.device(plan.who, slot, time)


def _at_shops(
    rng: np.random.Generator, world: World, plan: Plan, time: Float, category: Int, amount: Float, town: Int
) -> Payments:
    """Payments with the customer's own card at counters in `town` (m,)."""
    m = len(time)
    merchant = world.merchant(rng.random(m), town, category)
    online = np.zeros(m, dtype=bool)
    where = world.merchant_latitude[merchant], world.merchant_longitude[merchant]
    device = _own(rng, world, plan, time, online)
    return Payments(plan.who, time, category, amount, merchant, online, device, *where)


def _online(
    rng: np.random.Generator, world: World, plan: Plan, time: Float, category: Int, amount: Float, device: Int,
    where: tuple[Float, Float],
) -> Payments:  # fmt: skip
    """Payments at online merchants, from an internet address near `where` (m,)."""
    m = len(time)
    merchant = world.merchant(rng.random(m), np.full(m, world.internet), category)
    latitude, longitude = (degrees + 0.02 * rng.standard_normal(m) for degrees in where)
    return Payments(plan.who, time, category, amount, merchant, np.ones(m, dtype=bool), device, latitude, longitude)


def _hideout(rng: np.random.Generator, world: World, plan: Plan, near: float) -> tuple[Float, Float]:
    """Where a fraudster's internet address lies: next to the victim's home (a proxy), or in any town or country."""
    place = rng.integers(0, world.internet, len(plan.customer))[plan.run]
    proxy = plan.flip(rng, near)
    latitude = np.where(proxy, world.latitude[plan.who], world.place_latitude[place])
    return latitude, np.where(proxy, world.longitude[plan.who], world.place_longitude[place])


def _account_takeover(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    time = plan.times(rng.exponential(1.2 * HOUR, m) * plan.lognormal(rng, 1.0, 0.8), rng.uniform(0, 20 * HOUR, n))
    wares = {"electronics": 3, "jewellery": 1, "travel": 2, "clothing": 3, "digital": 2, "money_transfer": 1}
    category = _choose(rng, m, wares)
    bold = plan.lognormal(rng, 4.5, 0.7)  # some takeovers stay at the customer's own level
    amount = bold * _usual(rng, world, plan, category, 0.7)
    return _online(rng, world, plan, time, category, amount, _stranger(rng, plan), _hideout(rng, world, plan, 0.45))


def _card_testing(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    length = np.bincount(plan.run, minlength=n)
    trial = plan.rank < np.ceil(0.65 * length)[plan.run]
    gap = np.where(trial, rng.exponential(1.5 * MINUTE, m), rng.exponential(2.5 * HOUR, m))
    time = plan.times(gap, rng.uniform(0, 24 * HOUR, n))
    category = np.where(
        trial,
        _choose(rng, m, {"digital": 6, "household": 1, "health": 1, "transport": 2}),
        _choose(rng, m, {"electronics": 3, "clothing": 3, "travel": 1, "gambling": 1, "household": 2}),
    )
    tiny = np.exp(rng.normal(np.log(1.6), 0.6, m)).clip(0.1, 9.0)
    large = plan.lognormal(rng, 3.5, 0.6) * _usual(rng, world, plan, category, 0.6)
    amount = np.where(trial, tiny, np.maximum(large, 12.0))
    return _online(rng, world, plan, time, category, amount, _stranger(rng, plan), _hideout(rng, world, plan, 0.35))


def _stolen_card_burst(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    time = _by_day(plan.times(rng.exponential(15 * MINUTE, m), rng.uniform(0.2 * HOUR, 6 * HOUR, n)))
    wares = {"grocery": 4, "clothing": 3, "electronics": 2, "fuel": 2, "dining": 2, "cash": 2, "household": 2}
    category = _choose(rng, m, {**wares, "jewellery": 0.5})
    unknown_code = rng.uniform(24.0, 50.0, m)  # under the limit for paying without the secret number
    bold = plan.lognormal(rng, 3.0, 0.5) * _usual(rng, world, plan, category, 0.6)
    amount = np.where((rng.random(m) < 0.4) & (category != CODE["cash"]), unknown_code, bold)
    town = _nearest(world, plan.latitude, plan.longitude)[plan.run]
    return _at_shops(rng, world, plan, time, category, amount, town)


def _bust_out(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    length = np.bincount(plan.run, minlength=n)[plan.run]
    time = _by_day(plan.times(rng.exponential(11 * HOUR, m), rng.uniform(0, 24 * HOUR, n)))
    wares = {"electronics": 4, "jewellery": 2, "travel": 2, "household": 3, "cash": 3, "clothing": 2}
    category = _choose(rng, m, wares)
    ramp = np.exp(plan.rank / np.maximum(length - 1, 1) * np.log(plan.lognormal(rng, 14.0, 0.4)))
    amount = ramp * _usual(rng, world, plan, category, 0.6)
    shops = _at_shops(rng, world, plan, time, category, amount, world.town[plan.who])
    online = (rng.random(m) < 0.35) & (category != CODE["cash"])
    home = world.latitude[plan.who], world.longitude[plan.who]
    web = _online(rng, world, plan, time, category, amount, _own(rng, world, plan, time, online), home)
    return Payments.choose(online, web, shops)


def _impossible_travel(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    time = plan.times(rng.exponential(22 * MINUTE, m), rng.uniform(4 * MINUTE, 75 * MINUTE, n))
    wares = {"electronics": 3, "clothing": 3, "cash": 3, "dining": 2, "grocery": 2, "fuel": 1, "jewellery": 0.5}
    category = _choose(rng, m, wares)
    amount = plan.lognormal(rng, 3.0, 0.6) * _usual(rng, world, plan, category, 0.7)
    away = slice(world.abroad, None)
    place = world.place_latitude[away], world.place_longitude[away]
    km = great_circle_km(plan.latitude[:, None], plan.longitude[:, None], *place)
    country = world.abroad + np.argmax(np.where(km >= FAR_KM, rng.random(km.shape), 0.0), axis=1)
    return _at_shops(rng, world, plan, time, category, amount, country[plan.run])


def _dormant_woken(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    time = plan.times(rng.exponential(4 * HOUR, m), rng.uniform(0, 12 * HOUR, n))
    wares = {"electronics": 3, "clothing": 3, "travel": 2, "household": 2, "money_transfer": 2, "digital": 2}
    category = _choose(rng, m, {**wares, "gambling": 1})
    amount = plan.lognormal(rng, 4.0, 0.7) * _usual(rng, world, plan, category, 0.7)
    known = _own(rng, world, plan, time, np.ones(m, dtype=bool))  # the old telephone was sold with its passwords
    device = np.where(plan.flip(rng, 0.4), known, _stranger(rng, plan))
    return _online(rng, world, plan, time, category, amount, device, _hideout(rng, world, plan, 0.5))


def _structuring(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    time = _by_day(plan.times(rng.exponential(16 * HOUR, m), rng.uniform(0, 24 * HOUR, n)))
    by_transfer = plan.flip(rng, 0.75)  # the others draw cash
    category = np.where(by_transfer, CODE["money_transfer"], CODE["cash"])
    amount = REPORTING_LIMIT - np.minimum(2.0 + rng.exponential(35.0, m), 140.0)
    home = world.latitude[plan.who], world.longitude[plan.who]
    shops = _at_shops(rng, world, plan, time, category, amount, world.town[plan.who])
    online_category = np.full(m, CODE["money_transfer"])
    device = _own(rng, world, plan, time, by_transfer)
    web = _online(rng, world, plan, time, online_category, amount, device, home)
    return Payments.choose(by_transfer, web, shops)


def _slow_drip(rng: np.random.Generator, world: World, plan: Plan) -> Payments:
    m, n = len(plan.run), len(plan.customer)
    length = np.bincount(plan.run, minlength=n)[plan.run]
    weeks = plan.lognormal(rng, 20.0, 0.1)
    time = plan.times(rng.gamma(3.0, 1 / 3.0, m) * weeks * DAY / length, rng.uniform(0, 24 * HOUR, n))
    category = _choose(rng, n, {"digital": 6, "household": 2, "gambling": 2})[plan.run]
    amount = plan.lognormal(rng, 16.0, 0.5) * np.exp(0.35 * rng.standard_normal(m))
    device = np.where(plan.flip(rng, 0.5), _own(rng, world, plan, time, np.ones(m, dtype=bool)), _stranger(rng, plan))
    paid = _online(rng, world, plan, time, category, amount, device, _hideout(rng, world, plan, 0.7))
    # one or two shops per run, instead of another one each time
    shop = np.where(rng.random(m) < 0.75, 0, 1)
    u = rng.random((n, 2))[plan.run, shop]
    return replace(paid, merchant=world.merchant(u, np.full(m, world.internet), category))


# Those that silence their customer come first, because they change how many genuine payments there are.
KINDS: Mapping[str, Kind] = {
    "dormant_woken": Kind(5, 12, 5.0, _dormant_woken, silent_before=DORMANT_DAYS, silent_after=20.0),
    "bust_out": Kind(8, 15, 12.0, _bust_out, silent_after=np.inf),
    "account_takeover": Kind(5, 12, 3.0, _account_takeover),
    "card_testing": Kind(7, 13, 3.0, _card_testing),
    "stolen_card_burst": Kind(6, 13, 1.5, _stolen_card_burst),
    "impossible_travel": Kind(5, 9, 1.0, _impossible_travel),
    "structuring": Kind(6, 13, 13.0, _structuring),
    "slow_drip": Kind(8, 15, 25.0, _slow_drip),
}


def plant(
    rng: np.random.Generator, world: World, genuine: Payments, rate: float
) -> tuple[Payments, list[tuple[str, Payments]]]:
    """Plant frauds of all kinds among genuine payments.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of chance.
    world : World
        The world that the payments come from.
    genuine : Payments
        Sorted by customer and time.
    rate : float
        Wanted share of frauds among all payments, in [0, 1).

    Returns
    -------
    genuine : Payments
        Those that are left: a dormant or vanished customer makes none.
    planted : list of (str, Payments)
        Kind and its payments. What one kind cannot use, since the data are too short or too few for it, goes to the
        kinds after it.
    """
    customers = len(world.town)
    cells = _Cells.draw(rng, world)
    stretch = _stretch(rate / (1.0 - rate) * len(genuine), customers, cells.taken.size)
    silencing = [name for name, kind in KINDS.items() if kind.silent_after]
    others = [name for name in KINDS if name not in silencing]
    planted: list[tuple[str, Payments]] = []
    done = 0
    for place, name in enumerate([*silencing, *rng.permutation(others).tolist()]):
        budget = (rate / (1.0 - rate) * len(genuine) - done) / (len(KINDS) - place)
        kind = KINDS[name]
        plan, silent = _plan(rng, cells, genuine, kind, budget, stretch)
        if len(plan.customer):
            planted.append((name, kind.make(rng, world, plan)))
            genuine = genuine.take(~silent)
            done += len(plan.run)
    return genuine, planted


@dataclass(frozen=True)
class _Cells:
    """Stretches of each customer's time with room for one run of fraud each."""

    begin: Float  # (C, B) seconds
    end: Float  # (C, B) seconds
    taken: Bool  # (C, B) holds a fraud; changed by `_plan`
    span: float  # twice the length of the simulation in seconds: keeps customers apart in one sorted key
    longest: float  # days that a run may take at most

    @staticmethod
    def draw(rng: np.random.Generator, world: World) -> _Cells:
        width = min(CELL_DAYS, float(world.days))
        # each customer's cells begin elsewhere, so that frauds do not come in step
        shifted = world.days >= 2 * CELL_DAYS
        phase = -width * rng.random((len(world.town), 1)) * shifted
        begin = phase + width * np.arange(np.ceil(world.days / width) + shifted)
        begin, end = (np.clip(edge, 0.0, world.days) * DAY for edge in (begin, begin + width))
        return _Cells(begin, end, np.zeros(begin.shape, dtype=bool), 2.0 * world.days * DAY, 0.9 * width)


def _stretch(target: float, customers: int, cells: int) -> float:
    """By how much runs must be longer than usual for `target` frauds to find room."""
    runs = np.array([2.0 * target / len(KINDS) / (kind.shortest + kind.longest) for kind in KINDS.values()])
    silencing = np.array([kind.silent_after > 0 for kind in KINDS.values()])
    return float(max(1.0, runs[silencing].sum() / (0.25 * customers), runs.sum() / (0.6 * cells)))


def _plan(
    rng: np.random.Generator, cells: _Cells, genuine: Payments, kind: Kind, budget: float, stretch: float
) -> tuple[Plan, Bool]:
    """Choose customers, times and lengths for about `budget` payments, and the genuine payments to be silenced."""
    reserve = min(kind.days, cells.longest) * DAY
    before_days = kind.silent_before * DAY
    customers = len(cells.taken)
    free, begin, end = ~cells.taken, cells.begin, cells.end
    if kind.silent_after:  # the whole of the customer's time is one cell
        free = np.asarray(free.all(axis=1, keepdims=True))
        begin, end = np.zeros(free.shape), np.full(free.shape, cells.span / 2)
    # The genuine payments of a cell lie from `low` to `high`; one of them, at random, is where the run begins.
    who = np.arange(customers)[:, None]
    key = genuine.customer * cells.span + genuine.time
    low = np.searchsorted(key, who * cells.span + begin)
    high = np.searchsorted(key, who * cells.span + np.maximum(begin, end - reserve - before_days))
    length = np.rint(stretch * rng.integers(kind.shortest, kind.longest + 1, int(max(budget, 0.0) / kind.shortest) + 8))
    total = np.concatenate([[0.0], np.cumsum(length)])
    chosen = rng.permutation(np.flatnonzero(free & (high > low)))[: int(np.argmin(np.abs(total - budget)))]
    n = len(chosen)
    customer = chosen // free.shape[1]
    anchor = low.flat[chosen] + (rng.random(n) * (high - low).flat[chosen]).astype(np.int64)
    last = genuine.time[anchor]
    start = last
    if before_days:  # the payment is the last one for a long time
        start = last + before_days + rng.random(n) * np.minimum(cells.span / 2 - reserve - before_days - last, 40 * DAY)
    cells.taken[customer, slice(None) if kind.silent_after else chosen % free.shape[1]] = True
    run = np.repeat(np.arange(n), length[:n].astype(np.int64))
    rank = np.arange(len(run)) - np.searchsorted(run, np.arange(n))[run]
    silent = np.zeros(len(genuine), dtype=bool)
    if kind.silent_after:
        silence = np.full((2, customers), np.inf)
        silence[:, customer] = last if before_days else last + reserve, start + kind.silent_after * DAY
        silent = (genuine.time > silence[0][genuine.customer]) & (genuine.time < silence[1][genuine.customer])
    return Plan(customer, start, genuine.latitude[anchor], genuine.longitude[anchor], run, rank, reserve), silent
