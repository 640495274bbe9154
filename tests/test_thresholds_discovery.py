"""Shares of false alerts: in batches against hand-made and simulated truth, in streams against the literal formula."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from anomaly.errors import ArtifactError, NotFittedError, ParameterError
from anomaly.thresholds import FalseDiscoveryRate, OnlineFalseDiscoveryRate

DAY = 86_400.0
Floats = NDArray[np.float64]


def uniform_slice(n: int = 2_000) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(0)
    return 1.0 - rng.random(n), np.sort(rng.uniform(0, 10 * DAY, n)), np.arange(n, dtype=np.float64)


def online(q: float) -> OnlineFalseDiscoveryRate:
    return OnlineFalseDiscoveryRate(q).fit(*uniform_slice())


def stream(n: int, share: float, seed: int, strength: float = 2e-4) -> tuple[Floats, NDArray[np.bool_]]:
    """P-values of normal events and of fraud in runs of ten, and which are fraud."""
    rng = np.random.default_rng(seed)
    fraud = np.zeros(n, dtype=np.bool_)
    for start in rng.choice(n - 30, max(1, int(n * share / 10)), replace=False):
        fraud[start + 3 * np.arange(10)] = True
    p = 1.0 - rng.random(n)
    return np.where(fraud, p * strength, p), fraud


def g_of_the_rule(lag: int) -> float:
    return sum(0.125 * (1 - 10.0**-k) ** (lag - 1) * 10.0**-k for k in range(1, 9)) if lag > 0 else 0.0


def usual_g(lag: int) -> float:
    """Javanmard & Montanari (2018), equation 31."""
    return 0.0722 * np.log(max(lag, 2)) / (lag * np.exp(np.sqrt(np.log(lag)))) if lag > 0 else 0.0


def slow_lord(p: Floats, q: float, g: Callable[[int], float]) -> tuple[NDArray[np.bool_], Floats]:
    """LORD++ as it is written down: decisions, and the level of each event."""
    shares = [g(lag) for lag in range(len(p) + 1)]
    alerts: list[int] = []
    levels = []
    for t in range(1, len(p) + 1):
        level = q / 2 * shares[t]
        for j, alert in enumerate(alerts):
            level += (q / 2 if j == 0 else q) * shares[t - alert]
        levels.append(level)
        if p[t - 1] <= level:
            alerts.append(t)
    decided = np.zeros(len(p), dtype=np.bool_)
    decided[[alert - 1 for alert in alerts]] = True
    return decided, np.array(levels)


def test_benjamini_yekutieli_by_hand() -> None:
    # 1 + 1/2 + 1/3 + 1/4 = 25/12, so that i q / (m 25/12) = 0.012, 0.024, 0.036, 0.048 for q = 0.1
    p = np.array([0.011, 0.030, 0.035, 0.049])
    rule = FalseDiscoveryRate(0.1, "any").fit(*uniform_slice())
    np.testing.assert_array_equal(rule.decide(p), [True, True, True, False])
    assert rule.batch_threshold(p) == 0.035
    np.testing.assert_array_equal(FalseDiscoveryRate(0.1).fit(*uniform_slice()).decide(p), [True] * 4)
    assert "in a batch are expected to be false (Benjamini-Yekutieli); " in rule.describe()


def test_only_benjamini_yekutieli_keeps_q_under_the_worst_dependence() -> None:
    """Guo & Rao (2008): with probability q / j, just j of the m p-values share the stretch below q j / m.

    Each p-value alone is uniform and none is fraud, so each batch with an alert is all false.
    """
    m, q = 20, 0.1
    rng = np.random.default_rng(1)
    rules = {kind: FalseDiscoveryRate(q, kind).fit(*uniform_slice()) for kind in ("positive", "any")}
    false = dict.fromkeys(rules, 0)
    batches = 500
    for _ in range(batches):
        together = int(rng.choice(m + 1, p=np.r_[1 - q * np.sum(1 / np.arange(1, m + 1)), q / np.arange(1, m + 1)]))
        p = rng.uniform(q, 1, m)
        p[rng.permutation(m)[:together]] = rng.uniform((together - 1) * q / m, together * q / m, together)
        for kind, rule in rules.items():
            false[kind] += bool(rule.decide(p).any())
    assert false["positive"] / batches > 0.25  # q (1 + 1/2 + ... + 1/m) = 0.36 in the long run
    assert false["any"] / batches <= q + 0.02


def test_entities_by_hand() -> None:
    # Simes: a min(3 * 0.02 / 1, 3 * 0.03 / 2, 3 * 0.9 / 3) = 0.045; b 0.04; c min(2 * 0.5, 0.6) = 0.6; d 0.8.
    # Of four, q i / 4 = 0.025, 0.05, ... for q = 0.1: a and b alert, at 0.05; a's first two pass 0.05 i / 3.
    p = np.array([0.5, 0.03, 0.04, 0.9, np.nan, 0.02, 0.8, 0.6])
    entity = np.array([7, 2, 5, 2, 2, 2, 1, 7])
    rule = FalseDiscoveryRate(0.1).fit(*uniform_slice())
    np.testing.assert_array_equal(rule.decide(p, entity=entity), [0, 1, 1, 0, 0, 1, 0, 0])
    assert rule.batch_threshold(p, entity=entity) == 0.04
    assert not FalseDiscoveryRate(0.1, "any").fit(*uniform_slice()).decide(p, entity=entity).any()
    with pytest.raises(ParameterError, match="same length as p"):
        rule.decide(p, entity=entity[1:])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(1e-6, 1.0)), min_size=1, max_size=30),
    st.sampled_from(["positive", "any"]),
    st.sampled_from([0.05, 0.3, 0.8]),
)
def test_entities_are_the_slow_rule(rows: list[tuple[int, float]], dependence: str, q: float) -> None:
    entity, p = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    p = p * 0.9876543  # no value at a level itself, where rounding decides
    rule = FalseDiscoveryRate(q, dependence).fit(*uniform_slice())  # type: ignore[arg-type]

    def divisor(number: int) -> float:
        return 1.0 if dependence == "positive" else float(np.sum(1 / np.arange(1, number + 1)))

    def stepped(values: list[float], level: float) -> int:
        """How many of the values pass the step-up rule at this level."""
        values, n = sorted(values), len(values)
        return max((i + 1 for i in range(n) if values[i] <= level * (i + 1) / (n * divisor(n))), default=0)

    simes = {}
    for one in set(entity.tolist()):
        own = sorted(p[entity == one].tolist())
        simes[one] = min(value * len(own) * divisor(len(own)) / (i + 1) for i, value in enumerate(own))
    chosen = stepped(list(simes.values()), q * (1 - 1e-12))
    level = q * chosen / (len(simes) * divisor(len(simes)))
    expected = np.zeros(len(p), dtype=bool)
    for one in sorted(simes, key=lambda one: simes[one])[:chosen]:
        mine = np.flatnonzero(entity == one)
        number = stepped(p[mine].tolist(), level * (1 + 1e-12))
        expected[mine[np.argsort(p[mine], kind="stable")[:number]]] = True
    np.testing.assert_array_equal(rule.decide(p, entity=entity), expected)
    assert len(set(entity[expected].tolist())) == chosen  # at least one event of each entity that alerts


def test_entities_keep_q_of_entities_and_find_runs() -> None:
    rng = np.random.default_rng(5)
    rule = FalseDiscoveryRate(0.1).fit(*uniform_slice())
    entity = np.repeat(np.arange(300), 60)
    shares: list[float] = []
    found = []
    for _ in range(60):
        shared = np.repeat(rng.standard_normal(300), 60)
        x = np.sqrt(0.3) * shared + np.sqrt(0.7) * rng.standard_normal(entity.size)
        fraud = (entity < 15) & (np.arange(entity.size) % 60 < 8)
        p = ndtr(-(x + 2.8 * fraud))
        alerting = np.unique(entity[rule.decide(p, entity=entity)])
        shares.append(float(np.mean(alerting >= 15)) if alerting.size else 0.0)
        found.append(np.mean(np.isin(np.arange(15), alerting)))
    assert np.mean(shares) <= 0.1
    assert np.mean(found) > 0.5


@pytest.mark.parametrize("dependence", ["positive", "any"])
def test_a_batch_keeps_q_when_entities_are_strange_together(dependence: str) -> None:
    rng = np.random.default_rng(3)
    rule = FalseDiscoveryRate(0.2, dependence).fit(*uniform_slice())  # type: ignore[arg-type]
    shares, found = [], []
    for _ in range(150):
        shared = np.repeat(rng.standard_normal(60), 10)
        x = np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.standard_normal(600)
        fraud = np.arange(600) < 60
        p = ndtr(-(x + 4.0 * fraud))
        decided = rule.decide(p)
        shares.append(np.sum(decided & ~fraud) / max(1, decided.sum()))
        found.append(decided[fraud].mean())
    assert np.mean(shares) <= 0.2
    assert np.mean(found) > 0.5


@pytest.mark.parametrize(("q", "share"), [(0.05, 0.0), (0.2, 0.02), (0.5, 0.2)])
def test_the_stream_is_the_formula(q: float, share: float) -> None:
    p, _ = stream(1_000, share, seed=4)
    oracle, levels = slow_lord(p, q, g_of_the_rule)
    rule = online(q)
    np.testing.assert_array_equal(rule.decide(p), oracle)
    for value, expected, level in zip(p, oracle, levels, strict=True):
        assert rule.threshold_ == pytest.approx(level, rel=1e-12)
        assert rule.decide_one(value) == expected


def test_shares_sum_to_one() -> None:
    # each geometric series sums to its eighth: 1/8 (1 - r) (1 + r + r**2 + ...); up to 200,000 the five short ones do
    lag = np.arange(1, 200_001)
    total = sum(float(np.sum(0.125 * 10.0**-k * (1 - 10.0**-k) ** (lag - 1))) for k in range(1, 9))
    assert 0.6 < total < 1
    assert sum(g_of_the_rule(t) for t in range(1, 200)) < 1
    assert all(g_of_the_rule(t) >= g_of_the_rule(t + 1) for t in range(1, 200))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_levels_are_paid_for_by_alerts(share: float) -> None:
    p, _ = stream(2_500, share, seed=5)
    rule = online(0.1)
    spent, alerts = 0.0, 0
    for value in p:
        spent += rule.threshold_
        alerts += rule.decide_one(value)
        assert spent <= 0.1 * max(1, alerts) * (1 + 1e-12)


def test_a_stream_keeps_q_at_any_time_and_finds_more_than_with_the_usual_shares() -> None:
    rule = online(0.2)
    false, found, usual = [], 0, 0
    for seed in range(60):
        p, fraud = stream(1_000, 0.05, seed=seed, strength=1e-4)
        decided = rule.decide(p)
        false += [np.sum((decided & ~fraud)[:end]) / max(1, decided[:end].sum()) for end in (100, 300, 1_000)]
        if seed < 15:
            found += int(np.sum(decided & fraud))
            usual += int(np.sum(slow_lord(p, 0.2, usual_g)[0] & fraud))
    assert np.mean(false) <= 0.2
    assert found > 0.4 * 15 * 50
    assert found > usual > 0


def test_a_quiet_stream_is_still_alive_after_ten_million_events() -> None:
    rule = online(0.1)
    assert not rule.decide(np.ones(1_000)).any()
    rule._sums = 0.05 * (1 - np.logspace(-1, -8, 8)) ** 1e7  # what ten million events leave of the first budget
    assert rule.decide([1e-10])[0]
    assert not rule.decide([1e-8])[0]


def test_a_long_stream_in_pieces_is_the_same_stream() -> None:
    p, _ = stream(3_000, 0.02, seed=6)
    p[100:130] = np.nan
    whole = online(0.1).decide(p)
    rule = online(0.1)
    pieces = []
    for piece in np.array_split(p, [3, 4, 117, 118, 2_000]):
        pieces.append(rule.decide(piece))
        for value in piece:
            rule.decide_one(value)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert not whole[100:130].any()
    np.testing.assert_array_equal(online(0.1).decide(p[~np.isnan(p)]), whole[~np.isnan(p)])


def test_a_stream_goes_on_from_its_state() -> None:
    p, _ = stream(2_400, 0.03, seed=7)
    rule = online(0.1)
    for value in p[:1_200]:
        rule.decide_one(value)
    saved = json.loads(json.dumps(rule.state()))
    other = online(0.1).restore(saved)
    assert other.threshold_ == rule.threshold_
    assert other.state() == rule.state()
    np.testing.assert_array_equal(other.decide(p[1_200:]), rule.decide(p[1_200:]))
    assert [other.decide_one(v) for v in p[1_200:]] == [rule.decide_one(v) for v in p[1_200:]]
    assert other.fit(*uniform_slice()).state() == online(0.1).state()  # fit begins anew


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"cooldown_hours": 24.0, "q": 0.2}}, "expected the state of a OnlineFalseDiscoveryRate with"),
        ({"rule": "PeaksOverThreshold"}, "got PeaksOverThreshold"),
        ({"sums": [1.0]}, "incomplete or changed"),
        ({"sums": [-1.0] * 8}, "incomplete or changed"),
        ({"alerts": None}, "incomplete or changed"),
        ({"threshold": "high"}, "incomplete or changed"),
    ],
)
def test_a_changed_state_is_refused(change: dict[str, object], message: str) -> None:
    rule = online(0.1)
    before = rule.state()
    with pytest.raises(ArtifactError, match=message):
        rule.restore({**before, **change})
    assert rule.state() == before
    with pytest.raises(NotFittedError):
        OnlineFalseDiscoveryRate(0.1).restore(before)


def test_the_held_out_slice_is_run_in_the_order_of_time() -> None:
    p, time, entity = uniform_slice()
    p[1_000:1_020], p[1_020:1_040] = 1e-8, 1e-4  # the first alerts pay for the others: backwards, those would not pass
    mixed = np.random.default_rng(2).permutation(p.size)
    rule = OnlineFalseDiscoveryRate(0.1).fit(p[mixed], time[mixed], -entity[mixed])  # by entity, time runs backwards
    alerts = OnlineFalseDiscoveryRate(0.1).fit(*uniform_slice()).decide(p)
    assert alerts.sum() >= 30
    assert rule.events_per_day == pytest.approx(alerts.sum() / ((time.max() - time.min()) / DAY))
    assert rule.backtest_.events.sum() == alerts.sum()
    assert "(LORD++); the next event alerts at p <= 0.000694; " in rule.describe()
