"""Planted frauds: each kind does what it says, and the copies are exact histories up to there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from oracles import UNTIDY_SCHEMA, untidy_table
from polars.testing import assert_frame_equal

from anomaly.episodes import GREED, KINDS, destination, moved
from anomaly.errors import ParameterError
from anomaly.features import Encoder, great_circle_km
from anomaly.ingest import read_events
from anomaly.injections import Injected, inject, possible_kinds
from anomaly.scenes import AFTERMATH, Population, quantile, robust_spread
from anomaly.schema import NumericField, Place, Schema
from anomaly.simulator import SIMULATED_SCHEMA, simulate

HOUR, DAY = 3600.0, 86_400.0
EVENTS = tuple(name for name in KINDS if name not in ("frozen", "noise"))
CATEGORIES = [f"c:{name}" for name in SIMULATED_SCHEMA.categorical]
PLACE = ("p:latitude", "p:longitude")
SERIES = Schema(time="at", numeric=(NumericField(name="value", scale="linear", tail="both"),))


@dataclass(frozen=True)
class View:
    """One episode: its events, which of them are planted, and the original events of its entity."""

    frame: pl.DataFrame
    planted: NDArray[np.bool_]
    source: NDArray[np.int64]
    original: pl.DataFrame
    since: float

    @property
    def added(self) -> pl.DataFrame:
        return self.frame.filter(pl.Series(self.planted))

    @property
    def past(self) -> pl.DataFrame:
        """The copied events before the first planted one."""
        return self.frame.head(int(np.argmax(self.planted)))


def views(injected: Injected, frame: pl.DataFrame, kind: str) -> Iterator[View]:
    by_entity = frame.partition_by("entity", as_dict=True)
    mine = np.flatnonzero(injected.kind == injected.kinds.index(kind))
    for number in np.unique(injected.episode[mine]):
        at = np.flatnonzero(injected.episode == number)
        source = injected.source[at]
        entity = frame["entity"][int(source[source >= 0][0])]
        yield View(
            injected.frame[at], injected.planted[at], source, by_entity[(entity,)], float(injected.since[number])
        )


def held(frame: pl.DataFrame, share: float = 0.7) -> float:
    return float(np.quantile(frame["time"].to_numpy(), share))


def table(gaps: list[float], entities: int = 1, seed: int = 0) -> pl.DataFrame:
    """Events of entities at the same gaps, with a normal value."""
    rng = np.random.default_rng(seed)
    at = 1.7e9 + np.cumsum(gaps)
    time, n = np.tile(at, entities), len(gaps) * entities
    who = np.repeat([f"K{number}" for number in range(entities)], len(gaps))
    return pl.DataFrame({"at": time, "card": who, "value": rng.normal(50.0, 4.0, n).round(3)})


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return read_events(simulate(customers=80, days=60, seed=4)[0], SIMULATED_SCHEMA).frame


@pytest.fixture(scope="module")
def injected(frame: pl.DataFrame) -> Injected:
    return inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=40, seed=2)


@pytest.fixture(scope="module")
def untidy_frame() -> pl.DataFrame:
    return read_events(untidy_table(entities=12, events=60), UNTIDY_SCHEMA).frame


@pytest.fixture(scope="module")
def series() -> pl.DataFrame:
    return read_events(table([300.0] * 2000), SERIES).frame


def check(injected: Injected, frame: pl.DataFrame, schema: Schema) -> None:
    """What holds of every injection, whatever the table."""
    found, n = injected.frame, len(injected)
    assert found.schema == frame.schema and found.height == n
    assert_frame_equal(found, found.sort("entity", "time", "row"))
    assert found["row"].to_list() == list(range(n))
    for name in found.columns:
        if found.schema[name] == pl.Float64:
            assert found[name].drop_nulls().is_finite().all(), name
    for name in ("entity", "time", "clock"):
        assert found[name].null_count() == 0
    assert not set(found["entity"]) & set(frame["entity"])
    sequences = Encoder(schema).fit(frame).transform(found)
    assert len(sequences) == n and len(sequences.entity) == len(injected.since)
    assert sequences.sequence.tolist() == injected.episode.tolist()
    assert [len(array) for array in (injected.planted, injected.kind, injected.episode, injected.source)] == [n] * 4
    assert np.array_equal(np.unique(injected.episode[injected.planted]), np.arange(len(injected.since)))
    added = injected.source < 0
    assert injected.planted[added].all()
    assert found["event_id"].filter(pl.Series(added)).null_count() == added.sum()
    genuine = frame[injected.source[~added]]
    mine = found.filter(pl.Series(~added))
    fixed = [name for name in frame.columns if name not in ("row", "entity") and not name.startswith("n:")]
    assert_frame_equal(mine.select(fixed), genuine.select(fixed))
    numbers = [name for name in frame.columns if name.startswith("n:")]
    untouched = pl.Series(~injected.planted[~added])
    assert_frame_equal(mine.filter(untouched).select(numbers), genuine.filter(untouched).select(numbers))
    assert (injected.planted[~added].sum() == 0) or not mine.select(numbers).equals(genuine.select(numbers))


def test_the_copies_are_canonical_and_only_what_is_planted_differs(injected: Injected, frame: pl.DataFrame) -> None:
    assert injected.kinds == EVENTS == possible_kinds(frame, SIMULATED_SCHEMA)
    assert np.bincount(injected.kind[np.unique(injected.episode, return_index=True)[1]]).tolist() == [40] * 9
    check(injected, frame, SIMULATED_SCHEMA)


def test_the_original_frame_stays_as_it_is(frame: pl.DataFrame) -> None:
    before = frame.clone()
    inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=3)
    assert_frame_equal(frame, before)


@pytest.mark.parametrize("kind", EVENTS)
def test_a_copy_holds_the_exact_past_of_its_entity_and_ends_soon_after_the_episode(
    kind: str, injected: Injected, frame: pl.DataFrame
) -> None:
    for view in views(injected, frame, kind):
        columns = [name for name in frame.columns if name not in ("row", "entity")]
        before = view.past.select(columns)
        assert_frame_equal(before, view.original.select(columns).head(before.height))
        assert view.since == view.added["time"][0] >= held(frame)
        assert np.argmax(view.planted[::-1]) <= AFTERMATH
        if kind not in ("wake_up", "far_place"):
            earlier = view.original.filter(pl.col("time") < view.since).height
            assert earlier <= before.height <= earlier + 5  # and those of the same second


@pytest.mark.parametrize("kind", ["burst", "testing", "new_category", "odd_hours", "drip"])
def test_genuine_events_go_on_meanwhile(kind: str, injected: Injected, frame: pl.DataFrame) -> None:
    for view in views(injected, frame, kind):
        last = view.added["time"][-1]
        during = view.original.filter(pl.col("time") <= last).height
        expected = view.original["event_id"].to_list()[: during + AFTERMATH]
        assert view.frame["event_id"].drop_nulls().to_list() == expected


def test_the_same_seed_gives_the_same_and_another_seed_another(injected: Injected, frame: pl.DataFrame) -> None:
    again = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=40, seed=2)
    assert_frame_equal(again.frame, injected.frame)
    assert again.planted.tolist() == injected.planted.tolist()
    other = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=40, seed=3)
    assert not other.frame.equals(injected.frame)


def test_an_episode_does_not_depend_on_the_other_kinds(injected: Injected, frame: pl.DataFrame) -> None:
    alone = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=40, seed=2, kinds=["testing"])
    mine = injected.frame.filter(pl.Series(injected.kind == injected.kinds.index("testing")))
    columns = ["time", "n:amount", "c:merchant_id"]
    assert_frame_equal(alone.frame.select(columns), mine.select(columns))


def test_busy_entities_are_hit_more_often(frame: pl.DataFrame) -> None:
    found = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=300, kinds=["large"])
    first = np.unique(found.episode, return_index=True)[1]
    entity = frame["entity"][found.source[first]]
    events = frame.group_by("entity").len()
    hit = events.join(entity.value_counts(), on="entity", how="left").fill_null(0).sort("len")["count"].to_numpy()
    assert hit[len(hit) // 2 :].sum() > 1.5 * hit[: len(hit) // 2].sum()


def test_scaled_multiplies_some_amounts_of_a_window_by_one_factor(injected: Injected, frame: pl.DataFrame) -> None:
    shares = []
    for view in views(injected, frame, "scaled"):
        before = frame["n:amount"][view.source[view.planted]].to_numpy()
        factor = view.added["n:amount"].to_numpy() / before
        assert 2 <= factor[0] <= 10 and np.allclose(factor, factor[0])
        assert len(factor) <= 60
        planted = np.flatnonzero(view.planted)
        window = view.planted[planted[0] + 1 : planted[-1] + 1]
        shares.append((window.sum(), len(window)))
    hit, among = np.sum(shares, axis=0)
    assert 0.33 < hit / among < 0.6  # the last of a window is always hit


def test_scaled_follows_scale_and_tail() -> None:
    down = NumericField(name="x", scale="log", tail="lower")
    level = NumericField(name="x", scale="linear", tail="upper")
    values = np.array([8.0, 0.0, -8.0])
    assert moved(values, down, -1, 4.0, 1.0).tolist() == [2.0, 0.0, -32.0]
    assert moved(values, down, 1, 4.0, 1.0).tolist() == [32.0, 0.0, -2.0]
    assert moved(values, level, 1, 4.0, 0.5).tolist() == [10.0, 2.0, -6.0]
    assert moved(np.array([1.7e308]), down, 1, 9.0, 1.0).tolist() == [1e308]


def test_large_is_rare_in_the_population(injected: Injected, frame: pl.DataFrame) -> None:
    low, high = np.quantile(frame["n:amount"].to_numpy(), [0.99, 0.9999])
    counts, amounts = set(), []
    for view in views(injected, frame, "large"):
        amounts += view.added["n:amount"].to_list()
        counts.add(view.added.height)
    assert counts == {1, 2}
    assert low <= min(amounts) < 1.5 * low and high < 1.5 * max(amounts) <= 1.5 * 1.6 * high


def test_burst_is_many_events_of_the_population_within_two_hours(injected: Injected, frame: pl.DataFrame) -> None:
    known = set(frame.select("c:merchant_id", "c:merchant_category", "c:channel").rows())
    dearest = frame["n:amount"].max()
    devices = set(frame["c:device_id"])
    strange = []
    for view in views(injected, frame, "burst"):
        added = view.added
        assert 5 <= added.height <= 15
        assert added["time"][-1] - added["time"][0] <= 2 * HOUR
        assert set(added.select("c:merchant_id", "c:merchant_category", "c:channel").rows()) <= known
        assert added["n:amount"].max() <= GREED * dearest  # type: ignore[operator]
        assert added["c:device_id"].n_unique() == 1
        strange.append(added["c:device_id"][0] not in devices)
        assert added.select("p:latitude", "p:longitude").n_unique() == 1
    assert 0.2 < np.mean(strange) < 0.8


def test_testing_is_tiny_amounts_and_then_large_ones(injected: Injected, frame: pl.DataFrame) -> None:
    low, high = np.quantile(frame["n:amount"].to_numpy(), [0.011, 0.96])
    for view in views(injected, frame, "testing"):
        amounts, time = view.added["n:amount"].to_numpy(), view.added["time"].to_numpy()
        tiny = int((amounts <= low).sum())
        assert 3 <= tiny <= 8 and 1 <= len(amounts) - tiny <= 3
        assert (amounts[:tiny] <= low).all() and (amounts[tiny:] >= high).all()
        assert time[tiny - 1] - time[0] <= 20 * 60 and time[tiny] - time[tiny - 1] >= 5 * 60 - 1


def test_new_category_is_one_that_the_entity_never_met(injected: Injected, frame: pl.DataFrame) -> None:
    devices = set(frame["c:device_id"])
    new = dict.fromkeys(CATEGORIES, 0)
    for view in views(injected, frame, "new_category"):
        added = view.added
        assert 1 <= added.height <= 6 and added["time"][-1] - added["time"][0] <= 2 * DAY
        unmet = {name: set(added[name]).isdisjoint(view.past[name]) for name in CATEGORIES}
        assert any(unmet.values())
        new = {name: count + unmet[name] for name, count in new.items()}
        if unmet["c:device_id"]:
            assert devices.isdisjoint(added["c:device_id"])
        for name in CATEGORIES[:3]:
            assert set(added[name]) <= set(frame[name])
    assert min(new["c:device_id"], new["c:merchant_id"]) > 5


def test_odd_hours_are_rarely_used(injected: Injected, frame: pl.DataFrame) -> None:
    shares, usual = [], []
    devices = []
    for view in views(injected, frame, "odd_hours"):
        assert 1 <= view.added.height <= 5
        hours = np.floor(view.past["clock"].to_numpy() % DAY / HOUR)
        odd = np.floor(view.added["clock"].to_numpy() % DAY / HOUR)
        shares += [float((hours == hour).mean()) for hour in odd]
        usual += [float((hours == hour).mean()) for hour in hours]
        devices.append(set(view.added["c:device_id"]) <= set(view.past["c:device_id"]))
    assert max(shares) < 0.05 and np.mean(shares) < 0.2 * np.mean(usual)
    assert all(devices)


def test_far_place_is_far_and_only_half_of_the_trips_are_possible(injected: Injected, frame: pl.DataFrame) -> None:
    possible, alone = [], []
    for view in views(injected, frame, "far_place"):
        past, added = view.past.tail(100), view.added
        assert 1 <= added.height <= 6
        home = [np.median(past[name].to_numpy()) for name in PLACE]
        km = great_circle_km(added[PLACE[0]].to_numpy(), added[PLACE[1]].to_numpy(), *home)
        assert (km > 400).all() and (km < 10_100).all()
        assert set(added["c:merchant_id"]) <= set(view.past["c:merchant_id"])
        anchor = view.past.row(-1, named=True)
        first = added.row(0, named=True)
        way = great_circle_km(first[PLACE[0]], first[PLACE[1]], anchor[PLACE[0]], anchor[PLACE[1]])
        possible.append(way / max((first["time"] - anchor["time"]) / HOUR, 1e-9) < 900)
        alone += [view.planted[view.past.height :].all()] if possible[-1] else []
    assert 0.2 < np.mean(possible) < 0.8
    assert np.mean(alone) > 0.8  # a traveller is not at home meanwhile


def test_a_destination_is_as_far_as_asked_whatever_the_place() -> None:
    for latitude, longitude in ((0.0, 0.0), (52.5, 179.9), (-33.9, -179.9), (90.0, 0.0), (-90.0, 10.0)):
        km = np.array([510.0, 3000.0, 9990.0])
        for bearing in (0.0, 1.0, 3.0, 6.0):
            there = destination(latitude, longitude, km, bearing)
            assert np.allclose(great_circle_km(there[0], there[1], latitude, longitude), km, rtol=1e-6)
            assert (np.abs(there[0]) <= 90).all() and (np.abs(there[1]) <= 180).all()


def test_drip_is_small_daily_and_new_in_the_same_way(injected: Injected, frame: pl.DataFrame) -> None:
    middle = float(np.median(frame["n:amount"].to_numpy()))
    for view in views(injected, frame, "drip"):
        added = view.added
        assert 8 <= added.height <= 25
        time, amounts = added["time"].to_numpy(), added["n:amount"].to_numpy()
        assert time[-1] <= frame["time"].to_numpy().max() + HOUR
        steps = np.diff(time) / DAY
        assert (steps > 0.3).all() and (steps < 2.0).all()
        assert (amounts < middle).all() and amounts.std() < 0.5 * amounts.mean()
        new = [name for name in CATEGORIES if set(added[name]).isdisjoint(view.past[name])]
        assert new and added.select(CATEGORIES).n_unique() == 1


def test_wake_up_follows_a_long_silence(injected: Injected, frame: pl.DataFrame) -> None:
    new = []
    for view in views(injected, frame, "wake_up"):
        added, past = view.added, view.past
        assert 2 <= added.height <= 8 and past.height >= 5
        assert view.planted[past.height :].all()
        silence = added["time"][0] - past["time"][-1]
        gaps = np.diff(view.original.filter(pl.col("time") < added["time"][0])["time"].to_numpy())
        assert silence >= max(3 * DAY, 19 * gaps.mean())
        new.append(np.mean([set(added[name]).isdisjoint(past[name]) for name in CATEGORIES]))
    assert np.mean(new) > 0.4


def test_a_regular_series_gets_no_extra_events(series: pl.DataFrame) -> None:
    assert possible_kinds(series, SERIES) == ("scaled", "large", "frozen", "noise")
    found = inject(series, SERIES, since=held(series), episodes=20)
    check(found, series, SERIES)
    assert (found.source >= 0).all()
    spread = robust_spread(np.sort(series["n:value"].to_numpy()))
    runs = []
    for view in views(found, series, "scaled"):
        shift = view.added["n:value"].to_numpy() - series["n:value"][view.source[view.planted]].to_numpy()
        assert np.allclose(shift, shift[0]) and 3 <= abs(shift[0]) / spread <= 10.01
        runs.append(int(view.planted.sum()))
    assert min(runs) <= 5 and max(runs) > 10
    for view in views(found, series, "large"):
        low, high = np.quantile(series["n:value"].to_numpy(), [0.011, 0.989])
        assert not view.added["n:value"].is_between(low, high, closed="none").any()
    for view in views(found, series, "frozen"):
        assert view.added["n:value"].n_unique() == 1 and view.added["n:value"][0] == view.past["n:value"][-1]
        assert 9 <= view.added.height <= 60
    factors = []
    for view in views(found, series, "noise"):
        assert 10 <= view.added.height <= 60
        factors.append(float(view.added["n:value"].to_numpy().std()) / spread)
    assert 2.5 < np.mean(factors) < 11


def test_a_few_missing_readings_leave_a_series_regular() -> None:
    gaps = [300.0] * 500
    gaps[100] = 3600.0
    frame = read_events(table(gaps), SERIES).frame
    assert "burst" not in possible_kinds(frame, SERIES)


def test_one_irregular_series_without_entity_is_its_own_population() -> None:
    rng = np.random.default_rng(0)
    rows = table(list(rng.exponential(5000.0, 400))).with_columns(
        word=pl.Series(rng.choice(["a", "b"], 400)), amount=pl.Series(rng.lognormal(3.0, 1.0, 400))
    )
    numbers = (*SERIES.numeric, NumericField(name="amount", tail="upper"))
    schema = SERIES.model_copy(update={"categorical": ("word",), "numeric": numbers})
    frame = read_events(rows, schema).frame
    found = inject(frame, schema, since=held(frame), episodes=8)
    assert found.kinds == tuple(name for name in KINDS if name != "far_place")
    check(found, frame, schema)
    for view in views(found, frame, "burst"):
        assert set(view.added["n:value"]) <= set(view.past["n:value"])
    for view in views(found, frame, "new_category"):
        assert set(view.added["c:word"]).isdisjoint({"a", "b"})


def test_untidy_tables_with_holes_can_be_injected(untidy_frame: pl.DataFrame) -> None:
    found = inject(untidy_frame, UNTIDY_SCHEMA, since=held(untidy_frame), episodes=25)
    assert set(found.kinds) == set(KINDS)
    check(found, untidy_frame, UNTIDY_SCHEMA)
    offset = (found.frame["clock"] - found.frame["time"]).to_numpy()
    assert set(offset.round(3)) <= {-4 * HOUR, -5 * HOUR}
    drawn = found.frame.filter(pl.Series(found.source < 0))
    assert drawn["n:amount"].null_count() and drawn["c:merchant"].null_count()


def test_a_value_that_nobody_has_is_not_one_that_looks_like_it() -> None:
    rng = np.random.default_rng(0)
    gaps = list(rng.exponential(5000.0, 50))
    rows = table(gaps, entities=4).with_columns(
        word=pl.format("new {}", pl.int_range(pl.len()) % 7 + pl.col("card").rank("dense") * 7)
    )
    schema = SERIES.model_copy(update={"entity": ("card",), "categorical": ("word",)})
    frame = read_events(rows, schema).frame
    found = inject(frame, schema, since=held(frame), kinds=["new_category"], episodes=10)
    for view in views(found, frame, "new_category"):
        assert set(view.added["c:word"]).isdisjoint(frame["c:word"])
    assert found.frame.filter(pl.Series(found.source < 0))["c:word"].n_unique() == 10


def test_entities_of_one_event_have_episodes_too() -> None:
    rows = simulate(customers=300, days=20, seed=1)[0].group_by("customer_id", maintain_order=True).first()
    frame = read_events(rows, SIMULATED_SCHEMA).frame
    found = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=6)
    check(found, frame, SIMULATED_SCHEMA)
    assert sorted({found.kinds[kind] for kind in found.kind} ^ set(EVENTS)) == ["wake_up"]


@pytest.mark.parametrize(
    ("update", "without"),
    [
        ({"place": None}, {"far_place"}),
        ({"categorical": ()}, {"new_category", "drip"}),
        ({"numeric": ()}, {"scaled", "large", "testing", "drip"}),
        ({"numeric": (NumericField(name="amount", tail="lower"),)}, {"testing", "drip"}),
        ({"numeric": (NumericField(name="amount", scale="linear"),)}, {"testing", "drip"}),
    ],
)
def test_kinds_whose_roles_are_absent_are_left_out(
    update: dict[str, object], without: set[str], frame: pl.DataFrame
) -> None:
    schema = SIMULATED_SCHEMA.model_copy(update=update)
    linear = {"frozen", "noise"} if schema.numeric and schema.numeric[0].scale == "linear" else set()
    assert set(possible_kinds(frame, schema)) == (set(EVENTS) | linear) - without
    keep = ["row", "entity", "time", "clock", "event_id"]
    keep += [f"n:{field.name}" for field in schema.numeric] + [f"c:{name}" for name in schema.categorical]
    keep += ["p:latitude", "p:longitude"] if schema.place else []
    small = frame.select(keep)
    check(inject(small, schema, since=held(small), episodes=4), small, schema)


def test_dates_without_hours_stay_dates(frame: pl.DataFrame) -> None:
    rows = simulate(customers=60, days=50, seed=2)[0].with_columns(pl.col("time").dt.date())
    days = read_events(rows, SIMULATED_SCHEMA).frame
    found = inject(days, SIMULATED_SCHEMA, since=held(days), episodes=10)
    assert "odd_hours" not in found.kinds and "burst" in found.kinds
    check(found, days, SIMULATED_SCHEMA)
    assert not (found.frame["clock"].to_numpy() % DAY).any()
    whole = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=2).frame
    assert not (whole["clock"].to_numpy() % 1.0).any()


def test_planted_events_come_after_genuine_ones_of_the_same_time() -> None:
    rows = simulate(customers=60, days=50, seed=2)[0].with_columns(pl.col("time").dt.date())
    days = read_events(rows, SIMULATED_SCHEMA).frame
    found = inject(days, SIMULATED_SCHEMA, since=held(days), episodes=10, kinds=["burst"])
    both = found.frame.with_columns(planted=pl.Series(found.planted))
    steps = both.select(pl.col("planted").cast(pl.Int8).diff().over("entity", "time")).to_series()
    assert steps.min() == 0 and both.filter("planted").select("entity", "time").n_unique() < both["planted"].sum()


def test_many_events_mean_fewer_episodes_and_then_shorter_histories(frame: pl.DataFrame) -> None:
    def taken(most_events: int) -> tuple[int, list[int]]:
        found = inject(frame, SIMULATED_SCHEMA, since=held(frame), episodes=40, most_events=most_events)
        check(found, frame, SIMULATED_SCHEMA)
        first = np.unique(found.episode, return_index=True)[1]
        return len(found), np.bincount(found.kind[first]).tolist()

    full, episodes = taken(400_000)
    assert episodes == [40] * 9 and full > 20_000
    less, episodes = taken(20_000)
    assert len(set(episodes)) == 1 and 5 < episodes[0] < 40 and less <= 20_000
    least, episodes = taken(2_500)
    assert episodes == [5] * 9 and least <= 2_500


def test_shorter_histories_keep_the_most_recent_part(series: pl.DataFrame) -> None:
    found = inject(series, SERIES, since=held(series), most_events=2_000)
    assert len(found) <= 2_000 and len(found.since) == 20
    for kind in found.kinds:
        for view in views(found, series, kind):
            assert view.source.tolist() == list(range(view.source[0], view.source[-1] + 1))
            assert view.past.height >= 5


@pytest.mark.parametrize("kind", ["odd_hours", "far_place"])
def test_only_what_was_before_the_start_and_the_population_shape_an_episode(kind: str, frame: pl.DataFrame) -> None:
    """Another future of the entity changes nothing that is planted (these kinds take nothing from other entities)."""
    plain = inject(frame, SIMULATED_SCHEMA, since=held(frame), kinds=[kind], episodes=30, seed=5)
    for number in range(8):
        at = np.flatnonzero(plain.episode == number)
        entity = frame["entity"][int(plain.source[at[0]])]
        later = (pl.col("entity") == entity) & (pl.col("time") > plain.since[number])
        futures = {"c:merchant_id": "elsewhere", "n:amount": 1e6, "p:latitude": -5.0}
        changed = frame.with_columns(
            pl.when(later).then(pl.lit(value)).otherwise(name).alias(name) for name, value in futures.items()
        )
        other = inject(changed, SIMULATED_SCHEMA, since=held(frame), kinds=[kind], episodes=30, seed=5)
        for name in ("time", "n:amount", *CATEGORIES, *PLACE):
            mine = plain.frame[name].filter(pl.Series((plain.episode == number) & plain.planted))
            theirs = other.frame[name].filter(pl.Series((other.episode == number) & other.planted))
            assert mine.to_list() == theirs.to_list()


def test_the_population_is_measured_robustly() -> None:
    values = np.sort(np.random.default_rng(0).normal(3.0, 2.0, 4001))
    assert robust_spread(values) == pytest.approx(2.0, rel=0.1)
    assert robust_spread(np.zeros(5)) == 1.0 and robust_spread(np.zeros(0)) == 1.0
    assert robust_spread(np.array([0.0] * 9 + [10.0])) == pytest.approx(3.0)
    assert quantile(np.arange(10.0), 0.25) == 2.0 and quantile(np.arange(10.0), 0.25, up=True) == 3.0


def test_a_private_field_is_one_whose_values_belong_to_one_entity(frame: pl.DataFrame) -> None:
    population = Population.of(frame, SIMULATED_SCHEMA)
    assert population.private.tolist() == [False, False, False, True]
    assert population.grain == 1.0 and not population.regular


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["brust"]}, r"no kind is called 'brust' \(did you mean 'burst'\?\); there are scaled, large"),
        ({"kinds": ["frozen"]}, r"'frozen' needs a numeric field of scale linear .* lacks; possible are scaled"),
        ({"kinds": []}, "expected at least one kind, got none"),
        ({"since": 4e9}, r"events at or after since = 4000000000 .* the last is at 17\d+; give an earlier"),
        ({"since": float("nan")}, "give an earlier `since`"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"most_events": 0}, "most_events must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused_with_advice(
    arguments: dict[str, object], message: str, frame: pl.DataFrame
) -> None:
    given: dict[str, object] = {"since": held(frame), **arguments}
    with pytest.raises(ParameterError, match=message):
        inject(frame, SIMULATED_SCHEMA, **given)  # type: ignore[arg-type]


def test_tables_in_which_nothing_can_be_planted_are_refused(frame: pl.DataFrame) -> None:
    bare = Schema(time="at")
    clock = read_events(table([60.0] * 100), bare).frame
    assert possible_kinds(clock, bare) == ()
    with pytest.raises(ParameterError, match="no kind of fraud is possible here"):
        inject(clock, bare, since=0.0)
    with pytest.raises(ParameterError, match="an empty frame"):
        inject(frame.clear(), SIMULATED_SCHEMA, since=0.0)
    assert possible_kinds(frame.clear(), SIMULATED_SCHEMA) == ()
    young = frame.filter(pl.col("entity").is_first_distinct())
    with pytest.raises(ParameterError, match=r"none of the .* suits wake_up; give an earlier `since`"):
        inject(young, SIMULATED_SCHEMA, since=held(young), kinds=["wake_up"])


def test_places_across_the_date_line_have_a_usual_one() -> None:
    rng = np.random.default_rng(1)
    gaps = list(rng.exponential(9000.0, 60))
    side = rng.choice([-1.0, 1.0], 180)
    rows = table(gaps, entities=3).with_columns(lat=pl.Series(rng.normal(60, 0.1, 180)), lon=pl.Series(side * 179.9))
    schema = Schema(time="at", entity=("card",), place=Place(latitude="lat", longitude="lon"))
    frame = read_events(rows, schema).frame
    found = inject(frame, schema, since=held(frame), kinds=["far_place"], episodes=20)
    there = found.frame.filter(pl.Series(found.planted))
    km = great_circle_km(there["p:latitude"].to_numpy(), there["p:longitude"].to_numpy(), 60.0, 180.0)
    assert (km > 450).all() and (km < 10_050).all()


def test_amounts_of_added_events_are_raised_by_one_factor_an_episode(injected: Injected, frame: pl.DataFrame) -> None:
    """Those of odd hours are the entity's own otherwise: each is one of its amounts, times the episode's factor."""
    factors = []
    for view in views(injected, frame, "odd_hours"):
        own = view.original.filter(pl.col("time") <= view.since)["n:amount"].to_numpy()
        ratio = view.added["n:amount"].to_numpy()[:, None] / own[None, :]
        fits = [f for f in ratio[0] if 0.999 <= f <= GREED and all(np.isclose(row, f).any() for row in ratio)]
        assert fits
        factors.append(min(fits))
    assert max(factors) > 2
