"""Decisions -> cases: alerting events merged per entity and burst, in order of priority, with reasons in words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.features import GIVEN
from anomaly.thresholds import case_numbers

LONGEST_TEXT = 60
"""Texts from the data are cut to this many characters in sentences."""
NOTABLE_SURPRISE = 1.0
"""A field is a reason from here on: stranger than one normal event in ten."""
LARGE_SHARE, LARGE_PART = 0.25, 0.5
"""So is what has this share of an event's surprise, and makes it at least three times as rare."""
MAJORITY = 0.5
"""The recent past is the first reason only above this share: it says less of the event than its own fields do."""
EXPLANATION_COLUMNS = (
    "row",
    "field",
    "kind",
    "surprise",
    "part",
    "share",
    "observed",
    "low",
    "median",
    "high",
    "observed_text",
    "likely",
)


def build_cases(
    scores: pl.DataFrame,
    decided: NDArray[np.bool_],
    *,
    entity_columns: Sequence[str],
    cooldown_hours: float = 24.0,
    money: pl.Series | None = None,
) -> pl.DataFrame:
    """Merge alerting events into cases: one per entity and burst.

    Parameters
    ----------
    scores : DataFrame (n rows)
        Needs `row`, `time` (Datetime), `p_value`, `surprise` and the entity columns.
    decided : bool array (n,)
        Which events alert.
    entity_columns : sequence of str
        Columns that make up the entity; none means that all events are of one.
    cooldown_hours : float
        Alerting events of one entity less than this apart are one case.
    money : Series (n,), optional
        What each event is worth; null or NaN where unknown.

    Returns
    -------
    DataFrame
        One row per case, first the smallest `p_value`, then the largest `evidence`: `case` (from 1), `entity` (values
        joined by " / "), `start`, `end`, `alerts`, `p_value` (smallest), `score` (1 - p_value), `surprise` (largest),
        `evidence` (surprises of the alerting events, summed), `money` (null if nowhere known), `peak_row` (row of the
        strangest event), `rows` (alerting rows in time order).

    Raises
    ------
    ParameterError
        If a column is missing, a length differs, or an event without a p-value alerts.
    """
    keys = list(entity_columns)
    decided = _checked_decisions(scores, decided, keys, money)
    alerting = scores.select(
        "row",
        pl.col("time").cast(pl.Datetime("us", "UTC"))
        if _has_zone(scores)
        else pl.col("time").dt.replace_time_zone("UTC").cast(pl.Datetime("us", "UTC")),
        "p_value",
        "surprise",
        *(pl.col(key).alias(f"entity:{i}") for i, key in enumerate(keys)),
        (pl.lit(None, dtype=pl.Float64) if money is None else money.cast(pl.Float64).fill_nan(None)).alias("money"),
    ).filter(pl.Series(decided))
    if alerting["p_value"].is_nan().any() or alerting["p_value"].null_count():
        raise ParameterError(
            "build_cases: expected a p-value for each alerting event, got none for some; "
            "an event without a statement cannot alert"
        )
    entity = [f"entity:{i}" for i in range(len(keys))]
    alerting = alerting.sort([*entity, "time", "row"])
    code, display = np.zeros(alerting.height), pl.lit("all")
    if entity:
        code = alerting.select(pl.struct(entity).rle_id()).to_series().to_numpy()
        display = pl.concat_str([pl.col(key).cast(pl.String).fill_null("") for key in entity], separator=" / ")
    seconds = alerting["time"].dt.epoch("us").to_numpy() / 1e6
    numbers = case_numbers(seconds, code, np.ones(alerting.height, dtype=np.bool_), cooldown_hours)
    return _summed(alerting.with_columns(pl.Series("case", numbers), display.alias("entity")))


def _has_zone(scores: pl.DataFrame) -> bool:
    kind = scores.schema["time"]
    return isinstance(kind, pl.Datetime) and kind.time_zone is not None


def _checked_decisions(
    scores: pl.DataFrame, decided: NDArray[np.bool_], keys: list[str], money: pl.Series | None
) -> NDArray[np.bool_]:
    missing = [name for name in ("row", "time", "p_value", "surprise", *keys) if name not in scores.columns]
    if missing:
        raise ParameterError(
            f"build_cases: expected scores with the columns {', '.join(missing)}, got {', '.join(scores.columns)}"
        )
    if not isinstance(scores.schema["time"], pl.Datetime):
        raise ParameterError(f"build_cases: expected scores.time of type Datetime, got {scores.schema['time']}")
    decided = np.asarray(decided)
    if decided.dtype != np.bool_ or decided.shape != (scores.height,):
        raise ParameterError(
            f"build_cases: expected one bool per event ({scores.height},), got {decided.dtype} of shape {decided.shape}"
        )
    if money is not None and len(money) != scores.height:
        raise ParameterError(f"build_cases: expected money for each of {scores.height} events, got {len(money)}")
    return decided


def _summed(alerting: pl.DataFrame) -> pl.DataFrame:
    """One row per case from alerting events in time order."""
    strangest = pl.col("surprise").arg_max()
    cases = alerting.group_by("case", maintain_order=True).agg(
        pl.col("entity").first(),
        pl.col("time").min().alias("start"),
        pl.col("time").max().alias("end"),
        pl.len().cast(pl.Int64).alias("alerts"),
        pl.col("p_value").min(),
        (1.0 - pl.col("p_value").min()).alias("score"),
        pl.col("surprise").max(),
        pl.col("surprise").sum().alias("evidence"),
        pl.when(pl.col("money").count() > 0).then(pl.col("money").sum()).alias("money"),
        pl.col("row").get(strangest).cast(pl.Int64).alias("peak_row"),
        pl.col("row").cast(pl.Int64).alias("rows"),
    )
    cases = cases.sort(["p_value", "evidence", "start", "case"], descending=[False, True, False, False])
    return cases.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("case"))


def add_reasons(cases: pl.DataFrame, explanations: pl.DataFrame, *, most: int = 3) -> pl.DataFrame:
    """Say in words why the strangest event of each case is strange.

    Parameters
    ----------
    cases : DataFrame
        As `build_cases` gives it.
    explanations : DataFrame
        One row per event and field, with the columns of `EXPLANATION_COLUMNS`.
    most : int
        How many reasons a case gets at most.

    Returns
    -------
    DataFrame
        `cases` with `reasons` and `fields` (lists of text): what has the largest part in the surprise of the peak event
        comes first, the recent past only where it outweighs all fields together. A field is a reason if its own
        surprise is above 1, stranger than one normal event in ten, or if its part is large; the recent past is one if
        its part is large. Both lists are empty where nothing is.
    """
    if most < 1:
        raise ParameterError(f"add_reasons: expected most of at least 1, got {most}")
    missing = [name for name in EXPLANATION_COLUMNS if name not in explanations.columns]
    if missing:
        raise ParameterError(
            f"add_reasons: expected explanations with the columns {', '.join(missing)}, got "
            f"{', '.join(explanations.columns)}"
        )
    large = (pl.col("share") >= LARGE_SHARE) & (pl.col("part") >= LARGE_PART)
    strange = (pl.col("surprise").fill_nan(None) > NOTABLE_SURPRISE) & (pl.col("kind") != "past")
    wanted = explanations.filter(
        large.fill_null(value=False) | strange.fill_null(value=False),
        pl.col("row").is_in(cases["peak_row"].unique().implode()),
    )
    past = pl.col("kind") == "past"
    own = pl.col("part").filter(~past).max().over("row")
    behind = past & (pl.col("share") <= MAJORITY) & (pl.col("part") > own)
    wanted = wanted.with_columns(weight=pl.when(behind).then(own).otherwise("part"), last=past).sort(
        ["row", "weight", "last", "surprise"],
        descending=[False, True, False, True],
        nulls_last=True,
        maintain_order=True,
    )
    # An amount may be strange as such and given its categories: the stranger statement is enough.
    wanted = wanted.with_columns(what=pl.col("field").str.strip_prefix(GIVEN))
    wanted = wanted.unique(["row", "what"], keep="first", maintain_order=True)
    reasons: dict[int, list[str]] = {}
    fields: dict[int, list[str]] = {}
    for told in wanted.group_by("row", maintain_order=True).head(most).iter_rows(named=True):
        reasons.setdefault(told["row"], []).append(sentence(told))
        fields.setdefault(told["row"], []).append(told["field"])
    peaks = cases["peak_row"].to_list()
    return cases.with_columns(
        pl.Series("reasons", [reasons.get(row, []) for row in peaks], dtype=pl.List(pl.String)),
        pl.Series("fields", [fields.get(row, []) for row in peaks], dtype=pl.List(pl.String)),
    )


def sentence(explanation_row: Mapping[str, Any]) -> str:
    """One reason in words: what was observed, what was expected (5 % to 95 %), and how rare that is.

    Parameters
    ----------
    explanation_row : mapping
        `field`, `kind` (number, duration, count, distance, speed, category, clock, flag or past), `surprise`,
        `about`, `observed`, `low`, `median`, `high`, `observed_text`, `likely`, `everybody`, `past_events`,
        `past_same`, `past_low`, `past_high` (see `anomaly.explain.explain`); what is absent or None is left out of the
        sentence. Durations in seconds, distances in km, speeds in km/h, clocks in hours.

    Examples
    --------
    >>> sentence({"field": "amount", "kind": "number", "surprise": 3.97, "observed": 5000.0,
    ...           "low": 12.0, "median": 31.0, "high": 80.0, "past_events": 214, "past_high": 96.0})
    'amount 5,000, expected 12-80 (median 31), its own highest before 96, 1 in 9,300'
    >>> sentence({"field": "time:gap", "kind": "duration", "observed": 180.0, "low": 7200.0, "high": 259200.0})
    '3 min since the previous event, expected 2 h - 3 d'
    >>> sentence({"field": "first:merchant_id", "kind": "flag", "observed_text": "M 17", "surprise": 0.4})
    "first time at merchant_id 'M 17'"
    >>> sentence({"field": "recent past", "kind": "past", "observed": 172800.0, "past_same": 17, "past_events": 23})
    '17 unusual events among the 23 in the 2 d before'
    """
    kind = explanation_row["kind"]
    if kind not in _OBSERVED:
        raise ParameterError(f"sentence: expected a kind among {', '.join(_OBSERVED)}, got {kind!r}")
    rarity = [_rarity(explanation_row.get("surprise")), _among_everybody(explanation_row.get("everybody"))]
    parts = [_OBSERVED[kind](explanation_row), _expected(explanation_row), _own_past(explanation_row), *rarity]
    return ", ".join(part for part in parts if part)


def _expected(told: Mapping[str, Any]) -> str:
    low, median, high = (_known(told.get(name)) for name in ("low", "median", "high"))
    kind = told["kind"]
    if kind == "flag":
        return ""
    if low is not None and high is not None:
        bound = _BOUND[kind]
        text = _range(bound(low), bound(high), spaced=kind == "duration")
        middle = f" (median {bound(median)})" if kind == "number" and median is not None else ""
        return f"expected {text}{middle}{_UNIT.get(kind, '')}"
    likely = [quoted for quoted in (_clip(text) for text in told.get("likely") or ()) if quoted]
    return f"expected {_either(likely)}" if likely else ""


def _own_past(told: Mapping[str, Any]) -> str:
    """What the entity itself did before: its highest or lowest number, or how often it had this value."""
    kind, events, same = told["kind"], told.get("past_events"), told.get("past_same")
    if kind in ("category", "clock") and events and same is not None:
        return f"seen {same:,} of {events:,} times before{' in that hour' if kind == 'clock' else ''}"
    observed = _known(told.get("observed"))
    if kind not in _EXTREMES or not events or observed is None:
        return ""
    middle = _known(told.get("median"))
    least, most = _EXTREMES[kind]
    low, high = _known(told.get("past_low")), _known(told.get("past_high"))
    upward = middle is None or observed >= middle
    name, value = (most, high) if upward else (least, low)
    return "" if value is None else f"its own {name} before {_BOUND[kind](value)}{_UNIT.get(kind, '')}"


def _among_everybody(surprise: float | None) -> str:
    """How rare the number is among those of all entities; said only of what is rare."""
    rarity = _rarity(surprise) if surprise is not None and surprise >= EVERYBODY_SURPRISE else ""
    return f"{rarity} among everybody" if rarity else ""


def _range(low: str, high: str, *, spaced: bool) -> str:
    if low == high:
        return low
    if spaced:
        return f"{low} - {high}"
    return f"{low} to {high}" if low.startswith("-") or high.startswith("-") else f"{low}-{high}"


def _either(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _rarity(surprise: float | None) -> str:
    """How rare, as "1 in 9,300"; said only of what is rarer than one in ten."""
    if surprise is None or not surprise >= NOTABLE_SURPRISE:
        return ""
    if surprise >= 12:
        return "less than 1 in a trillion"
    odds = float(f"{10.0**surprise:.2g}")
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if odds >= size:
            return f"1 in {odds / size:.3g} {name}"
    return f"1 in {odds:,.0f}"


def _number(told: Mapping[str, Any]) -> str:
    window = re.fullmatch(r"sum[:_](\d+)([smhd])(?:[:_](.+))?", told["field"])
    if window:
        what = _clip(window[3]) if window[3] else "sum"
        return f"{what} {_value(told, number_text)} in {window[1]} {_SHORT[window[2]]}"
    name = _clip(told["field"].removeprefix(GIVEN))
    return f"{name} {_value(told, number_text)}{_given(told)}"


def _given(told: Mapping[str, Any]) -> str:
    return " given its categories" if told["field"].startswith(GIVEN) else ""


def _duration(told: Mapping[str, Any]) -> str:
    return f"{_value(told, duration_text)} since the previous event"


def _count(told: Mapping[str, Any]) -> str:
    window = re.fullmatch(r"count[:_](\d+)([smhd])", told["field"])
    if not window:
        return f"{_clip(told['field'])} {_value(told, _whole)}"
    events = "event" if told.get("observed") == 1 else "events"
    return f"{_value(told, _whole)} {events} in {window[1]} {_SHORT[window[2]]}"


def _distance(told: Mapping[str, Any]) -> str:
    return f"{_value(told, _bound_text)} km from the previous place{_given(told)}"


def _speed(told: Mapping[str, Any]) -> str:
    why = {"time": ", since it came so soon", "place": ", since it is so far"}.get(told.get("about") or "", "")
    return f"{_value(told, _bound_text)} km/h from the previous place{_given(told)}{why}"


def _category(told: Mapping[str, Any]) -> str:
    return f"{_clip(told['field'])} {_clip(told.get('observed_text')) or 'missing'}"


def _clock(told: Mapping[str, Any]) -> str:
    return f"at {_clip(told.get('observed_text')) or _value(told, clock_text)}"


def _flag(told: Mapping[str, Any]) -> str:
    what, _, field = told["field"].partition(":")
    text = _clip(told.get("observed_text"))
    denied = text == "no" or _known(told.get("observed")) == 0 or bool(told.get("past_same"))
    name = _clip(field or what)
    value = f" '{text}'" if text and text not in ("yes", "no") else ""
    if what == "first":
        events = told.get("past_events")
        if told.get("past_same") and (told.get("surprise") or 0.0) > NOTABLE_SURPRISE:
            return f"{name}{value} met only lately"
        since = f" in {events + 1:,} events" if events and not denied else ""
        return f"{'not the first time' if denied else 'first time'} at {name}{value}{since}"
    if what == "changed":
        return f"{name}{value} as before" if denied else f"{name} changed{' to' + value if value else ''}"
    return f"{'no ' if denied else ''}{_clip(told['field'])}{value}"


def _past(told: Mapping[str, Any]) -> str:
    events, unusual = told.get("past_events") or 0, told.get("past_same") or 0
    before = f"in the {_value(told, duration_text)} before"
    if not unusual:
        return f"{events:,} {'event' if events == 1 else 'events'} {before}, unusual only together"
    of = f" among the {events:,}" if events > unusual else ""
    return f"{unusual:,} unusual {'event' if unusual == 1 else 'events'}{of} {before}"


def number_text(value: float) -> str:
    """A number as observed: thousands separators, two decimals at most from 1 on, three digits below 1."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}"
    if size >= 10_000:
        return f"{value:,.0f}"
    return _trimmed(f"{value:,.2f}") if size >= 1 else f"{value:.3g}"


def _bound_text(value: float) -> str:
    """A number as estimated: whole from 10 on, one decimal from 1 on, two digits below 1."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}"
    if size >= 9.95:
        return f"{value:,.0f}"
    return _trimmed(f"{value:.1f}") if size >= 1 else f"{value:.2g}"


def duration_text(seconds: float) -> str:
    """A time span in s, min, h or d: 35 s, 3 min, 1.5 h, 3 d."""
    size = abs(seconds)
    rounded = ((round(size / length, 0 if size / length >= 10 else 1), unit, end) for unit, length, end in _SPANS)
    value, unit = next(((value, unit) for value, unit, end in rounded if value < end), (size, "s"))
    return f"{'-' if seconds < 0 and value else ''}{_trimmed(f'{value:,.1f}')} {unit}"


def clock_text(hours: float) -> str:
    """A time of day, from hours (0 to 24): 03:12."""
    minutes = round(hours * 60) % (24 * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _whole(value: float) -> str:
    return f"{round(value):,}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _value(told: Mapping[str, Any], text: Callable[[float], str]) -> str:
    value = _known(told.get("observed"))
    return _clip(told.get("observed_text")) or "missing" if value is None else text(value)


def _clip(text: str | None) -> str:
    """Text from the data, made safe to read: one line, printable, at most 60 characters."""
    if text is None:
        return ""
    # Only a prefix is looked at, so that a value of many megabytes costs nothing.
    start = text[: 20 * LONGEST_TEXT]
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= LONGEST_TEXT and len(start) == len(text) else line[: LONGEST_TEXT - 1].rstrip() + "…"


_SPANS = (("s", 1.0, 60.0), ("min", 60.0, 60.0), ("h", 3600.0, 48.0), ("d", 86400.0, math.inf))
_SHORT = {"s": "s", "m": "min", "h": "h", "d": "d"}
EVERYBODY_SURPRISE = 3.0  # from 1 in 1,000 on it is said
_EXTREMES = {
    "number": ("lowest", "highest"),
    "duration": ("shortest", "longest"),
    "count": ("fewest", "most"),
    "distance": ("shortest", "longest"),
    "speed": ("slowest", "fastest"),
}
_UNIT = {"distance": " km", "speed": " km/h"}
_OBSERVED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "number": _number,
    "duration": _duration,
    "count": _count,
    "distance": _distance,
    "speed": _speed,
    "category": _category,
    "clock": _clock,
    "flag": _flag,
    "past": _past,
}
_BOUND: Mapping[str, Callable[[float], str]] = {
    "number": _bound_text,
    "duration": duration_text,
    "count": _whole,
    "distance": _bound_text,
    "speed": _bound_text,
    "category": _bound_text,
    "clock": clock_text,
}
