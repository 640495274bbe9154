"""Cases hold every alerting event once, in the order an investigator wants; sentences read as a person would write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly.alerts import add_reasons, build_cases, clock_text, duration_text, number_text, sentence
from anomaly.errors import ParameterError
from anomaly.thresholds import count_cases

START = datetime(2024, 3, 1, tzinfo=UTC)
NAN = float("nan")


def scores_frame(rows: list[tuple[str, str, float, float]]) -> pl.DataFrame:
    """Rows of (bank, card, hours since the start, p)."""
    p = np.array([r[3] for r in rows], dtype=np.float64)
    return pl.DataFrame(
        {
            "row": pl.Series(range(100, 100 + len(rows)), dtype=pl.Int64),
            "bank": pl.Series([r[0] for r in rows], dtype=pl.String),
            "card": pl.Series([r[1] for r in rows], dtype=pl.String),
            "time": pl.Series([START + timedelta(hours=r[2]) for r in rows], dtype=pl.Datetime("us", "UTC")),
            "p_value": p,
            "score": 1 - p,
            "surprise": -np.log10(p),
        }
    )


SCORES = scores_frame(
    [
        ("A", "1", 50.0, 1e-2),  # 100: same card as 102, but a new burst
        ("A", "2", 1.0, 1e-4),  # 101
        ("A", "1", 0.0, 1e-3),  # 102
        ("B", "1", 0.5, 1e-5),  # 103: another bank's card 1
        ("A", "2", 20.0, 1e-4),  # 104
        ("A", "1", 2.0, 0.9),  # 105: does not alert
        ("A", "2", 10.0, NAN),  # 106: no statement
    ]
)
DECIDED = np.array([True, True, True, True, True, False, False])


def test_cases_by_hand() -> None:
    money = pl.Series([1.0, 10.0, None, None, 30.0, 500.0, 500.0])
    cases = build_cases(SCORES, DECIDED, entity_columns=("bank", "card"), cooldown_hours=24.0, money=money)
    assert cases["case"].to_list() == [1, 2, 3, 4]
    assert cases["entity"].to_list() == ["B / 1", "A / 2", "A / 1", "A / 1"]
    assert cases["rows"].to_list() == [[103], [101, 104], [102], [100]]
    assert cases["alerts"].to_list() == [1, 2, 1, 1]
    assert cases["peak_row"].to_list() == [103, 101, 102, 100]
    assert cases["money"].to_list() == [None, 40.0, None, 1.0]
    assert cases["start"].to_list()[1] == START + timedelta(hours=1)
    assert cases["end"].to_list()[1] == START + timedelta(hours=20)
    np.testing.assert_allclose(cases["p_value"], [1e-5, 1e-4, 1e-3, 1e-2])
    np.testing.assert_allclose(cases["score"], 1 - np.array([1e-5, 1e-4, 1e-3, 1e-2]))
    np.testing.assert_allclose(cases["surprise"], [5, 4, 3, 2])
    np.testing.assert_allclose(cases["evidence"], [5, 8, 3, 2])


def test_types() -> None:
    cases = build_cases(SCORES, DECIDED, entity_columns=("bank", "card"))
    stamp = pl.Datetime("us", "UTC")
    assert dict(cases.schema) == {
        "case": pl.Int64(),
        "entity": pl.String(),
        "start": stamp,
        "end": stamp,
        "alerts": pl.Int64(),
        "p_value": pl.Float64(),
        "score": pl.Float64(),
        "surprise": pl.Float64(),
        "evidence": pl.Float64(),
        "money": pl.Float64(),
        "peak_row": pl.Int64(),
        "rows": pl.List(pl.Int64()),
    }
    none = build_cases(SCORES, np.zeros(7, dtype=bool), entity_columns=("bank", "card"))
    assert none.height == 0
    assert none.schema == cases.schema


def test_equal_p_is_ordered_by_evidence() -> None:
    scores = scores_frame([("A", "1", 0.0, 1e-4), ("A", "2", 0.0, 1e-4), ("A", "2", 1.0, 1e-2)])
    cases = build_cases(scores, np.ones(3, dtype=bool), entity_columns=("card",))
    assert cases["entity"].to_list() == ["2", "1"]


def test_without_entity_all_is_one() -> None:
    cases = build_cases(SCORES, DECIDED, entity_columns=())
    assert cases["entity"].unique().to_list() == ["all"]
    assert cases["rows"].to_list() == [[102, 103, 101, 104], [100]]


def test_joined_names_do_not_join_entities() -> None:
    scores = scores_frame([("A / B", "C", 0.0, 1e-4), ("A", "B / C", 0.0, 1e-4)])
    cases = build_cases(scores, np.ones(2, dtype=bool), entity_columns=("bank", "card"))
    assert cases["entity"].to_list() == ["A / B / C", "A / B / C"]


def test_missing_entity_part_and_time_without_zone() -> None:
    scores = scores_frame([("A", "1", 0.0, 1e-4), ("A", "1", 1.0, 1e-4)]).with_columns(
        pl.lit(None, dtype=pl.String).alias("bank"), pl.col("time").dt.replace_time_zone(None).cast(pl.Datetime("ms"))
    )
    cases = build_cases(scores, np.ones(2, dtype=bool), entity_columns=("bank", "card"))
    assert cases["entity"].to_list() == [" / 1"]
    assert cases["start"].to_list() == [START]


alert_lists = st.lists(
    st.tuples(st.sampled_from("AB"), st.sampled_from("12"), st.integers(0, 200), st.floats(1e-9, 1.0), st.booleans()),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(alert_lists, st.sampled_from([0.0, 5.0, 24.0]))
def test_every_alerting_event_is_in_one_case(rows: list[tuple[str, str, int, float, bool]], cooldown: float) -> None:
    scores = scores_frame([(r[0], r[1], float(r[2]), r[3]) for r in rows])
    decided = np.array([r[4] for r in rows], dtype=bool)
    cases = build_cases(scores, decided, entity_columns=("bank", "card"), cooldown_hours=cooldown)
    assert sorted(cases["rows"].explode().drop_nulls().to_list()) == (100 + np.flatnonzero(decided)).tolist()
    code = np.array([ord(r[0]) * 100 + ord(r[1]) for r in rows], dtype=np.int64)
    assert cases.height == count_cases(np.array([r[2] * 3600.0 for r in rows]), code, decided, cooldown)
    assert cases["p_value"].is_sorted()


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ParameterError, match="columns shop, got"):
        build_cases(SCORES, DECIDED, entity_columns=("shop",))
    with pytest.raises(ParameterError, match="one bool per event"):
        build_cases(SCORES, DECIDED[:-1], entity_columns=())
    with pytest.raises(ParameterError, match="one bool per event"):
        build_cases(SCORES, DECIDED.astype(np.float64), entity_columns=())
    with pytest.raises(ParameterError, match="without a statement"):
        build_cases(SCORES, np.ones(7, dtype=bool), entity_columns=())
    with pytest.raises(ParameterError, match="money"):
        build_cases(SCORES, DECIDED, entity_columns=(), money=pl.Series([1.0]))
    with pytest.raises(ParameterError, match="Datetime"):
        build_cases(SCORES.with_columns(pl.lit("now").alias("time")), DECIDED, entity_columns=())
    with pytest.raises(ParameterError, match="cooldown_hours"):
        build_cases(SCORES, DECIDED, entity_columns=(), cooldown_hours=-1.0)


def told(
    field: str,
    kind: str,
    observed: float | None = None,
    low: float | None = None,
    high: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    row = dict.fromkeys(("median", "observed_text", "likely", "surprise", "part", "share")) | {
        "row": 7,
        "field": field,
        "kind": kind,
        "observed": observed,
        "low": low,
        "high": high,
    }
    return row | more


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            told("amount", "number", 5000, 12, 80, median=31, surprise=3.97),
            "amount 5,000, expected 12-80 (median 31), 1 in 9,300",
        ),
        (told("amount", "number", 49.99, 1.234, 9.96, median=3.04), "amount 49.99, expected 1.2-10 (median 3)"),
        (told("balance", "number", -1234.5, -50, 80), "balance -1,234.5, expected -50 to 80"),
        (told("rate", "number", 0.01234, 0.5, 0.5), "rate 0.0123, expected 0.5"),
        (told("amount", "number", None, 12, 80), "amount missing, expected 12-80"),
        (told("amount", "number", 12, None, None), "amount 12"),
        (told("amount", "number", 12, None, None, surprise=0.5), "amount 12"),
        (told("sum:24h:amount", "number", 812.5, 0, 200), "amount 812.5 in 24 h, expected 0-200"),
        (
            told("merchant_category", "category", observed_text="jewellery", likely=["grocery", "fuel", "dining"]),
            "merchant_category jewellery, expected grocery, fuel or dining",
        ),
        (
            told("channel", "category", observed_text="web", likely=["card", "chip"], surprise=6.6),
            "channel web, expected card or chip, 1 in 4 million",
        ),
        (told("channel", "category", observed_text="web", likely=["card"]), "channel web, expected card"),
        (told("channel", "category"), "channel missing"),
        (told("time:gap", "duration", 180, 7200, 259200), "3 min since the previous event, expected 2 h - 3 d"),
        (told("count_1h", "count", 14, 1, 2), "14 events in 1 h, expected 1-2"),
        (told("count:7d", "count", 1, 2.0, 2.4), "1 event in 7 d, expected 2"),
        (told("given:amount", "number", 900, 2.0, 40), "amount 900 given its categories, expected 2-40"),
        (
            told("given:place:speed", "speed", 900, 2.0, 40),
            "900 km/h from the previous place given its categories, expected 2-40 km/h",
        ),
        (told("visits", "count", 1200, 1, 2), "visits 1,200, expected 1-2"),
        (told("place:distance", "distance", 412.4, 0, 12.2), "412 km from the previous place, expected 0-12 km"),
        (told("place:speed", "speed", 2890.3, 0, 64), "2,890 km/h from the previous place, expected 0-64 km/h"),
        (
            told("place:speed", "speed", 300, 0, 64, about="time"),
            "300 km/h from the previous place, since it came so soon, expected 0-64 km/h",
        ),
        (told("place:speed", "speed", 300, about="place"), "300 km/h from the previous place, since it is so far"),
        (told("clock:hour", "clock", 3.2, 9.5, 20.25), "at 03:12, expected 09:30-20:15"),
        (told("clock:hour", "clock", observed_text="03", likely=["10", "11"]), "at 03, expected 10 or 11"),
        (told("first:merchant_id", "flag", 1, observed_text="X"), "first time at merchant_id 'X'"),
        (told("first:merchant_id", "flag", observed_text="yes", surprise=2.0), "first time at merchant_id, 1 in 100"),
        (told("first:merchant_id", "flag", observed_text="no"), "not the first time at merchant_id"),
        (told("changed:device_id", "flag", 1, observed_text="D 9"), "device_id changed to 'D 9'"),
        (told("changed:device_id", "flag", 0), "device_id as before"),
        (told("online", "flag", 0), "no online"),
        (
            told("amount", "number", 5000, 12, 80, median=31, surprise=4, everybody=3.5, past_events=9, past_high=96),
            "amount 5,000, expected 12-80 (median 31), its own highest before 96, 1 in 10,000, "
            "1 in 3,200 among everybody",
        ),
        (told("amount", "number", 5000, surprise=4, everybody=2.9, past_events=0), "amount 5,000, 1 in 10,000"),
        (
            told("balance", "number", -900, -50, 80, median=10, past_events=9, past_low=-60, past_high=90),
            "balance -900, expected -50 to 80 (median 10), its own lowest before -60",
        ),
        (
            told("time:gap", "duration", 3, 60, 600, median=120, past_events=2, past_low=60, past_high=9000),
            "3 s since the previous event, expected 1 min - 10 min, its own shortest before 1 min",
        ),
        (
            told("place:speed", "speed", 900, 2.0, 40, median=9, past_events=2, past_low=0, past_high=95),
            "900 km/h from the previous place, expected 2-40 km/h, its own fastest before 95 km/h",
        ),
        (
            told("channel", "category", observed_text="web", likely=["card"], past_events=214, past_same=0),
            "channel web, expected card, seen 0 of 214 times before",
        ),
        (
            told("clock:hour", "clock", 3.2, past_events=214, past_same=2),
            "at 03:12, seen 2 of 214 times before in that hour",
        ),
        (
            told("first:shop", "flag", observed_text="X", past_events=214, past_same=0),
            "first time at shop 'X' in 215 events",
        ),
        (told("first:shop", "flag", observed_text="X", past_events=9, past_same=3), "not the first time at shop 'X'"),
        (
            told("first:shop", "flag", observed_text="X", past_events=9, past_same=3, surprise=2.0),
            "shop 'X' met only lately, 1 in 100",
        ),
        (
            told("recent past", "past", 172800, past_events=23, past_same=17, surprise=3),
            "17 unusual events among the 23 in the 2 d before, 1 in 1,000",
        ),
        (
            told("recent past", "past", 3600, past_events=1, past_same=1),
            "1 unusual event in the 1 h before",
        ),
        (
            told("recent past", "past", 3600, past_events=5, past_same=0),
            "5 events in the 1 h before, unusual only together",
        ),
    ],
)
def test_sentences(row: dict[str, Any], text: str) -> None:
    assert sentence(row) == text


@pytest.mark.parametrize(
    ("surprise", "text"),
    [
        (1.0, "1 in 10"),
        (2.52, "1 in 330"),
        (5.0, "1 in 100,000"),
        (6.0, "1 in 1 million"),
        (9.3, "1 in 2 billion"),
        (12.0, "less than 1 in a trillion"),
        (400.0, "less than 1 in a trillion"),
        (float("inf"), "less than 1 in a trillion"),
    ],
)
def test_rarity(surprise: float, text: str) -> None:
    assert sentence(told("x", "number", 1, surprise=surprise)) == f"x 1, {text}"


def test_numbers_durations_and_clocks() -> None:
    assert [number_text(x) for x in (0, 5, 12.3, 123.456, 9_999.5, 12_345.6, 1e9, 1e18, -0.00123)] == [
        "0",
        "5",
        "12.3",
        "123.46",
        "9,999.5",
        "12,346",
        "1,000,000,000",
        "1e+18",
        "-0.00123",
    ]
    assert [duration_text(x) for x in (0, 0.4, 35, 59.6, 90, 180, 3_599, 5_400, 86_400, 172_800, 4e7, -180)] == [
        "0 s",
        "0.4 s",
        "35 s",
        "1 min",
        "1.5 min",
        "3 min",
        "1 h",
        "1.5 h",
        "24 h",
        "2 d",
        "463 d",
        "-3 min",
    ]
    assert [clock_text(x) for x in (0, 3.2, 23.999, 24)] == ["00:00", "03:12", "00:00", "00:00"]


def test_hostile_text_is_cut_and_kept_on_one_line() -> None:
    long = "<b>" + "x" * 10_000_000
    text = sentence(told("merchant", "category", observed_text=long, likely=["a\nb\x00\u202ec", ""]))
    observed, expected = text.split(", ")
    assert observed == "merchant <b>" + "x" * 56 + "…"
    assert expected == "expected a b c"
    assert len(sentence(told("first:" + "f" * 99, "flag", observed_text="v" * 99))) < 150
    exact = "y" * 60
    assert sentence(told("m", "category", observed_text=exact)) == f"m {exact}"


words = st.text(max_size=80) | st.none()
values = st.floats() | st.none()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["number", "duration", "count", "distance", "speed", "category", "clock", "flag"]),
    st.text(min_size=1, max_size=80),
    values,
    values,
    values,
    values,
    values,
    words,
    st.lists(words, max_size=3),
)
def test_any_row_gives_one_printable_line(
    kind: str,
    field: str,
    surprise: float | None,
    observed: float | None,
    low: float | None,
    median: float | None,
    high: float | None,
    text: str | None,
    likely: list[str | None],
) -> None:
    row = {
        "field": field,
        "kind": kind,
        "surprise": surprise,
        "observed": observed,
        "low": low,
        "median": median,
        "high": high,
        "observed_text": text,
        "likely": likely,
    }
    said = sentence(row)
    assert said.isprintable()
    assert "nan" not in said.replace(str(text), "").replace(field, "") or "nan" in str(likely)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ParameterError, match="kind"):
        sentence(told("x", "colour"))


def test_reasons_of_the_peak_event_by_their_part() -> None:
    cases = build_cases(SCORES, DECIDED, entity_columns=("bank", "card"))
    rows = [
        told("amount", "number", 5000, 12, 80, surprise=2.0, part=1.5, share=0.3) | {"row": 101},
        told("channel", "category", observed_text="web", likely=["chip"], surprise=4.0, part=0.9) | {"row": 101},
        told("time:gap", "duration", 10.0, 3600.0, 7200.0, surprise=0.9, part=0.4, share=0.3) | {"row": 101},  # usual
        told("count:1h", "count", 9.0, 1.0, 2.0, surprise=3.0, part=0.2) | {"row": 101},
        told("clock:hour", "clock", 3.0, 9.0, 17.0, surprise=1.5, part=0.1) | {"row": 101},
        told("given:amount", "number", 5000, 90, 400, surprise=1.2, part=1.5) | {"row": 101},  # amount itself says more
        told("recent past", "past", 172800.0, surprise=5.0, part=2.0, share=0.2, past_events=9)
        | {"row": 101},  # little
        told("recent past", "past", 172800.0, surprise=5.0, part=2.0, share=0.6, past_same=4) | {"row": 102},
        told("device", "category", observed_text="D 1", surprise=0.8, part=1.0, share=0.25) | {"row": 102},
        told("amount", "number", 9, 12, 80, surprise=9.0) | {"row": 104},  # not the peak of its case
        told("amount", "number", 9, 12, 80, surprise=NAN) | {"row": 103},
    ]
    explained = pl.DataFrame(
        rows,
        schema_overrides={
            "observed": pl.Float64,
            "low": pl.Float64,
            "high": pl.Float64,
            "median": pl.Float64,
            "likely": pl.List(pl.String),
            "part": pl.Float64,
            "share": pl.Float64,
            "past_events": pl.Int64,
            "past_same": pl.Int64,
        },
    )
    with_reasons = add_reasons(cases, explained)
    assert with_reasons["fields"].to_list() == [[], ["amount", "channel", "count:1h"], ["recent past", "device"], []]
    assert with_reasons["reasons"].to_list()[1:3] == [
        [
            "amount 5,000, expected 12-80, 1 in 100",
            "channel web, expected chip, 1 in 10,000",
            "9 events in 1 h, expected 1-2, 1 in 1,000",
        ],
        ["4 unusual events in the 2 d before, 1 in 100,000", "device D 1"],
    ]
    assert add_reasons(cases, explained, most=1)["fields"].to_list()[1] == ["amount"]
    assert with_reasons.schema["reasons"] == pl.List(pl.String)
    assert add_reasons(cases.clear(), explained.clear()).schema == with_reasons.schema
    with pytest.raises(ParameterError, match="columns likely"):
        add_reasons(cases, explained.drop("likely"))
    with pytest.raises(ParameterError, match="most"):
        add_reasons(cases, explained, most=0)


@pytest.mark.parametrize(("share", "first"), [(0.45, ["amount", "recent past", "channel"]), (0.55, ["recent past"])])
def test_the_recent_past_comes_first_only_if_it_outweighs_the_rest(share: float, first: list[str]) -> None:
    rows = [
        told("channel", "category", observed_text="web", surprise=2.0, part=0.6, share=0.15),
        told("recent past", "past", 172800, past_events=23, past_same=17, surprise=3.0, part=4 * share, share=share),
        told("amount", "number", 900, surprise=3.0, part=1.2, share=0.3),
    ]
    for order in (rows, rows[::-1]):
        frame = pl.DataFrame(order, infer_schema_length=None)
        found = add_reasons(pl.DataFrame({"peak_row": [7]}), frame)["fields"][0].to_list()
        assert found[: len(first)] == first
