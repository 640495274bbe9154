"""Rescoring: an event with other values, behind its own history, scored as the whole table would score it.

Many versions of one event share all that went before it. So each history is read once, with every version at its end:
none of them is old enough to be remembered when the next one is judged, and none counts as the past of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anomaly.breakdown import before
from anomaly.evidence import UNUSUAL, loud
from anomaly.features import FIRST_CODE, OWN_VALUES, WINDOWS, Encoder, known_values
from anomaly.scorer import Errors, Scorer
from anomaly.sequences import MOST_RECENT, MOST_WAITING, Sequences, microseconds

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Mask = NDArray[np.bool_]

MOST_ROWS = 200_000  # of the shortened histories that are encoded at once


class Rescorer:
    """Scores versions of events, each the last one of a history.

    Parameters
    ----------
    encoder, scorer :
        The detector's own.
    errors : callable
        (sequences, which events) -> errors by model, as `Detector.errors`.
    quarantine : float
        Seconds until an event is in the models' memory.
    frame : polars.DataFrame
        Canonical events.
    histories : sequence of ndarray
        H histories as positions in the frame, in order of time; the last event of each is the one to change.
    categorical : sequence of str
        The schema's categories.
    """

    def __init__(
        self,
        encoder: Encoder,
        scorer: Scorer,
        errors: Callable[[Sequences, Mask], Errors],
        quarantine: float,
        frame: pl.DataFrame,
        histories: Sequence[Int],
        categorical: Sequence[str],
    ) -> None:
        self._encoder, self._scorer, self._errors = encoder, scorer, errors
        self._quarantine = round(quarantine * 1e6)
        lengths = np.array([len(one) for one in histories], dtype=np.int64)
        self._stop = np.cumsum(lengths)
        self._start, self.last = self._stop - lengths, self._stop - 1
        self.frame = _named(frame[np.concatenate(histories)], lengths)
        self._base = encoder.transform(self.frame)
        mask = np.zeros(len(self.frame), dtype=bool)
        mask[self.last] = True
        longest = max(scorer.combination.scales, default=0.0)
        self._fresh = scorer.fresh(errors(self._base, before(self._base, mask, longest)))
        self._total = np.concatenate([[0.0], np.cumsum(loud(self._fresh))])
        self._room = self._rooms(longest)
        self._short = _needed(self.frame, self._start, self.last, categorical)
        self._places = {at: self._places_of(column.name) for at, column in enumerate(encoder.category) if column.own}

    def _places_of(self, name: str) -> list[dict[str, int]]:
        """The places of a category's values before the last event of each history; see `Column.own`."""
        pasts = zip(self._start.tolist(), self.last.tolist(), strict=True)
        time = self.frame["time"].to_numpy()
        known = known_values(self.frame[f"c:{name}"], time, pasts, self._encoder.lately)
        return [{value: min(place, OWN_VALUES - 1) for place, value in enumerate(one)} for one in known]

    def _rooms(self, longest: float) -> Int:
        """How many versions each history may have behind it in one sequence, (H,), before it forgets for them."""
        base, last = self._base, self.last
        kept = [(self._quarantine / 1e6, MOST_WAITING), (longest, MOST_RECENT - 1)]
        rooms = [most - (last - base.lagged(seconds)[last]) for seconds, most in kept if seconds]
        return np.asarray(np.maximum(np.min([np.full(len(last), MOST_WAITING), *rooms], axis=0), 1), dtype=np.int64)

    def unusual_before(self, history: int) -> Int:
        """Positions within the history of the events in its last event's longest window that were rare by themselves.

        Rare: less than 1 in 20, without what sums up earlier events.
        """
        first, last = self._start[history], self.last[history]
        scales = self._scorer.combination.scales
        if not scales:
            return np.zeros(0, dtype=np.int64)
        at = np.arange(max(first, self._base.lagged(max(scales))[last]), last)
        return np.asarray(at[np.nan_to_num(self._fresh[at]) >= UNUSUAL] - first)

    def score(self, which: Int, edits: Sequence[Mapping[str, Any]]) -> tuple[Float, Float]:
        """Natural logs of the p-values of m versions, and of what they would be if usual by themselves; (m,) each.

        Parameters
        ----------
        which : ndarray of int, shape (m,)
            The history whose last event is changed.
        edits : sequence of mapping
            Canonical column -> value in it; a time may not lie before that of the event.
        """
        if not len(which):
            return np.zeros(0), np.zeros(0)
        numeric, category, time = self._encoded(which, edits)
        border, order, group = self._grouped(which, time)
        sequences, at, first = self._behind(which, numeric, category, time, order, group)
        mask = np.zeros(len(sequences), dtype=bool)
        mask[at] = True
        errors = {name: values[at] for name, values in self._errors(sequences, mask).items()}
        scales = self._scorer.combination.scales
        sums, number = np.zeros((2, len(which), len(scales)))
        for column, seconds in enumerate(scales):
            # Versions before this one are no past; what is left of the window lies in the history.
            oldest = np.minimum(self._start[which] + sequences.lagged(seconds)[at] - first, border)
            sums[:, column], number[:, column] = self._total[border] - self._total[oldest], border - oldest
        start = self._start[which]
        age = np.where(border == start, 0.0, time - self._base.time[start])
        pace = self._scorer.pace_of(border - start + 1, age)
        return self._scorer.judge_sums(errors, sums, number, pace).log_p, self._scorer.past_alone(sums, number, pace)

    def _encoded(
        self, which: Int, edits: Sequence[Mapping[str, Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], Float]:
        """Encoded columns of the versions, (m, F) and (m, C), and their times; from shortened histories."""
        lengths = np.array([len(self._short[one]) for one in which])
        parts, start = [], 0
        while start < len(which):
            stop = start + max(1, int(np.searchsorted(np.cumsum(lengths[start:]), MOST_ROWS, side="right")))
            index = np.concatenate([self._short[one] for one in which[start:stop]])
            last = np.cumsum(lengths[start:stop]) - 1
            frame = _edited(_named(self.frame[index], lengths[start:stop]), last, edits[start:stop])
            encoded = self._encoder.transform(frame)
            codes = encoded.category[last]
            self._correct(codes, which[start:stop], frame[last])
            parts.append((encoded.numeric[last], codes, encoded.time[last]))
            start = stop
        numeric, category, time = (np.concatenate(values) for values in zip(*parts, strict=True))
        return numeric, category, time

    def _correct(self, codes: NDArray[np.int32], which: Int, versions: pl.DataFrame) -> None:
        """Put the entity's own values in the places that they have behind the whole history; codes (m, C)."""
        for at, places in self._places.items():
            values = versions[f"c:{self._encoder.category[at].name}"].to_list()
            for version in np.flatnonzero(codes[:, at] >= FIRST_CODE).tolist():
                codes[version, at] = FIRST_CODE + places[which[version]][values[version]]

    def _grouped(self, which: Int, time: Float) -> tuple[Int, Int, Int]:
        """Where each version's history ends; the versions by group and time; and the group of each.

        Within a group all times lie closer than the quarantine, and there are no more versions than leave the bounds of
        a memory alone; without a quarantine each version is one.
        """
        border = self.last[which]
        if self._quarantine:
            span = (microseconds(time) - microseconds(self._base.time[border])) // self._quarantine
        else:
            span = np.arange(len(which))
        order = np.lexsort([time, span, which])
        key = np.stack([which, span], axis=1)[order]
        begins = np.flatnonzero(np.any(np.diff(key, axis=0, prepend=key[:1] - 1), axis=1))
        within = np.arange(len(which)) - np.repeat(begins, np.diff([*begins, len(which)]))
        key = np.concatenate([key, (within // self._room[key[:, 0]])[:, None]], axis=1)
        group = np.empty(len(which), dtype=np.int64)
        group[order] = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
        return border, order, group

    def _behind(
        self, which: Int, numeric: NDArray[np.float32], category: NDArray[np.int32], time: Float, order: Int, group: Int
    ) -> tuple[Sequences, Int, Int]:
        """One sequence per group: its history, then its versions; where these stand, and where their sequence begins.

        Both are (m,), in the order of the versions.
        """
        owner = which[order[np.searchsorted(group[order], np.arange(group.max() + 1))]]
        past, new = self.last[owner] - self._start[owner], np.bincount(group)
        offsets = np.concatenate([[0], np.cumsum(past + new)])
        at = np.empty(len(which), dtype=np.int64)
        within = np.arange(len(which)) - np.repeat(np.cumsum(new) - new, new)
        at[order] = (offsets[:-1] + past)[group[order]] + within
        index = np.arange(offsets[-1]) + np.repeat(self._start[owner] - offsets[:-1], past + new)
        index[at] = len(self._base) + np.arange(len(which))

        def joined(base: NDArray[Any], versions: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(np.concatenate([base, versions])[index])

        sequences = Sequences(
            entity=np.array([str(one) for one in range(len(owner))], dtype=object),
            offsets=offsets,
            time=joined(self._base.time, time),
            numeric=joined(self._base.numeric, numeric),
            category=joined(self._base.category, category),
            row=np.arange(offsets[-1]),
        )
        return sequences, at, offsets[:-1][group]


def _named(frame: pl.DataFrame, lengths: Int) -> pl.DataFrame:
    """The frame with so many rows for each of as many entities."""
    names = pl.Series([str(number) for number in range(len(lengths))], dtype=pl.String)
    return frame.with_columns(names.gather(np.repeat(np.arange(len(lengths)), lengths)).alias("entity"))


def _needed(frame: pl.DataFrame, start: Int, last: Int, categorical: Sequence[str]) -> list[Int]:
    """Of each history, the positions that the derived columns of its last event look at, and the event itself.

    Those in the longest window, the previous event, and the first of each value. What places an entity's own values
    have, they do not tell.
    """
    keep = np.zeros(len(frame), dtype=bool)
    for name in categorical:
        keep |= frame.select(pl.struct("entity", f"c:{name}").is_first_distinct()).to_series().to_numpy()
    time = microseconds(frame["time"].to_numpy())
    longest = max(WINDOWS.values()) * 1_000_000
    found = []
    for first, end in zip(start, last, strict=True):
        near = int(np.searchsorted(time[first:end], time[end] - longest, side="right"))
        some = keep[first : end + 1].copy()
        some[min(near, max(end - first - 1, 0)) :] = True
        found.append(first + np.flatnonzero(some))
    return found


def _edited(frame: pl.DataFrame, last: Int, edits: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The frame with the values of each version written into its row."""
    by_column: dict[str, dict[int, Any]] = {}
    for at, changes in zip(last.tolist(), edits, strict=True):
        for column, value in changes.items():
            by_column.setdefault(column, {})[at] = value
    for column, values in by_column.items():
        changed = frame[column].scatter(list(values), pl.Series(list(values.values()), dtype=frame.schema[column]))
        frame = frame.with_columns(changed.alias(column))
    return frame
