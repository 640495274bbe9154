"""What a report shows, as values: `ReportData`, and `CaseTimeline` for the details of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["CaseTimeline", "ReportData"]


@dataclass(frozen=True)
class CaseTimeline:
    """What one case's details show.

    Attributes
    ----------
    entity : str
        Name of the entity.
    time : ndarray of datetime64, shape (n,)
        UTC, not decreasing: the entity's history up to the case, and the case.
    value : ndarray of shape (n,), or None
        The value to follow, such as the amount, in its own unit; NaN = missing.
    value_name : str
        Its name; "" if there is no value.
    surprise : ndarray of shape (n,)
        -log10 p of each event; NaN = no statement.
    alerting : ndarray of bool, shape (n,)
        The events that alert, those of the entity's other cases too.
    events : DataFrame
        The events of the case and a few before it, ready to show. Columns with a meaning of their own, each optional:
        ``alerting`` (Boolean, marks the row), ``surprise`` (Float64, shown as "1 in n"), ``reasons`` (List[String] or
        String). Times with a zone are shown in the report's zone; all else is shown as text.
    low, high : ndarray of shape (n,), or None
        Range in which each value was expected, in the value's unit; NaN = not known.
    inside, remembered : ndarray of bool, shape (n,), or None
        Events from the case's first alert to its last, and events that were in the models' memory when it began; the
        others were in quarantine. None: from the case's times, and all.
    gap : ndarray of shape (n,), or None
        Seconds since the previous event of the entity; NaN = none. None: from `time`.
    strips : mapping of str to ndarray of int8, shape (n,)
        Category -> how familiar each value was; see `anomaly.case_figures.case_figure`.
    latitude, longitude : ndarray of shape (n,), or None
        Degrees, NaN = missing.
    known : int
        Events of the entity in all, up to the case's end; 0 = as many as are drawn.
    similar : DataFrame
        Earlier events like the strangest one, ready to show, the most alike first; numbers in [0, 1] under the heading
        `anomaly.casework.LIKENESS`.
    linked : DataFrame
        Columns of `anomaly.casework.linked_entities`.
    parts : DataFrame
        ``part`` (text), ``share`` (Float64): what adds up to the surprise.
    counterfactual : str
        What would have passed, in a sentence; "" if not known.
    money_since : float
        What all the entity's events since the first alert are worth, alerting or not; NaN = not known.
    """

    entity: str
    time: NDArray[np.datetime64]
    value: NDArray[np.float64] | None
    value_name: str
    surprise: NDArray[np.float64]
    alerting: NDArray[np.bool_]
    events: pl.DataFrame
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    inside: NDArray[np.bool_] | None = None
    remembered: NDArray[np.bool_] | None = None
    gap: NDArray[np.float64] | None = None
    strips: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    latitude: NDArray[np.float64] | None = None
    longitude: NDArray[np.float64] | None = None
    known: int = 0
    similar: pl.DataFrame = field(default_factory=pl.DataFrame)
    linked: pl.DataFrame = field(default_factory=pl.DataFrame)
    parts: pl.DataFrame = field(default_factory=pl.DataFrame)
    counterfactual: str = ""
    money_since: float = float("nan")


@dataclass(frozen=True)
class ReportData:
    """Everything on the page, in its order. A frame without rows leaves its part of the page out.

    Attributes
    ----------
    title : str
        Heading and title of the page.
    created : datetime
        When the report was made; shown in its own zone.
    summary : mapping of str to str
        Label -> text, shown as tiles, in order.
    settings, versions : mapping of str to str
        Label -> text, shown as lists, in order.
    command : str or None
        The command that makes this page again.
    threshold_p : float
        p-value at which events begin to alert; NaN if the decision has no single line.
    threshold_text : str
        The decision in a sentence.
    score_histogram : (edges (B + 1,), counts of all events (B,), counts of alerting events (B,))
        On surprise = -log10 p.
    alerts_per_day : DataFrame
        day (Date), cases, and optionally money; further columns are not shown.
    cases : DataFrame
        The table of `anomaly.alerts.build_cases`, with reasons; ranked. Optionally ``status`` (that of the strangest
        event) and ``fields`` (names of the fields in the reasons), to filter by.
    timelines : mapping of int to CaseTimeline
        Case number -> details, for the top cases; shown in this order.
    calibration : DataFrame
        nominal, observed, low, high: stated p-values and the observed shares on held-out events.
    histories : mapping of str to DataFrame
        Model -> epoch, train_loss, valid_loss.
    drift : DataFrame
        Columns of `anomaly.drift.drift`.
    quality : DataFrame
        what, events, share: missing fields and statuses of the scored events.
    rejects : DataFrame
        reason, rows, example.
    notes : sequence of str
        Things worth telling.
    budget_per_day : float or None
        Cases per day that the desk asked for; a line in the figure of alerts per day.
    money_name : str
        Heading of the money column, such as "Amount (EUR)"; "" gives "Money".
    time_zone : str
        Zone in which all times are shown, such as "Europe/Paris".
    """

    title: str
    created: datetime
    summary: Mapping[str, str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    command: str | None
    threshold_p: float
    threshold_text: str
    score_histogram: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
    alerts_per_day: pl.DataFrame
    cases: pl.DataFrame
    timelines: Mapping[int, CaseTimeline] = field(default_factory=dict)
    calibration: pl.DataFrame = field(default_factory=pl.DataFrame)
    histories: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    drift: pl.DataFrame = field(default_factory=pl.DataFrame)
    quality: pl.DataFrame = field(default_factory=pl.DataFrame)
    rejects: pl.DataFrame = field(default_factory=pl.DataFrame)
    notes: Sequence[str] = ()
    budget_per_day: float | None = None
    money_name: str = ""
    time_zone: str = "UTC"
