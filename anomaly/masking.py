"""Names of entities replaced by keyed hashes, so that a report can leave the house that knows who they are.

A mask is HMAC-SHA256 of the name under a secret key (RFC 2104), cut to 64 bits: the same key gives the same mask, so
that cases of different days can be joined; without the key no name can be tried out. It hides names, not behaviour:
amounts, times, places and merchants stay, and somebody who knows a customer's payments may still recognise them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from anomaly.errors import ParameterError
from anomaly.ingest import JOINER
from anomaly.report_data import CaseTimeline, ReportData

__all__ = ["NameMask", "mask_key"]

KEY, KEY_FILE = "ANOMALY_MASK_KEY", "ANOMALY_MASK_KEY_FILE"
SHORTEST_KEY = 16  # bytes
_DIGITS = 16  # hexadecimal ones of a mask: 64 bits, one pair in 10 million alike among two million names
_SHORT, _SHORT_NUMBER = 3, 6  # a name below this length is a word or number like any other within a text


def mask_key(environment: Mapping[str, str] | None = None) -> bytes:
    """The key, from the environment variable ``ANOMALY_MASK_KEY`` or the file that ``ANOMALY_MASK_KEY_FILE`` names.

    Raises
    ------
    ParameterError
        If neither is set, the file cannot be read, or the key has fewer than 16 bytes.
    """
    known = os.environ if environment is None else environment
    text, file = known.get(KEY, ""), known.get(KEY_FILE, "")
    if not text and not file:
        raise ParameterError(
            f"a mask needs a secret key: set {KEY} to at least {SHORTEST_KEY} characters, or {KEY_FILE} to a file "
            "that holds them"
        )
    try:
        key = text.encode() if text else Path(file).read_bytes().strip()
    except OSError as error:
        raise ParameterError(f"{KEY_FILE}={file}: the key cannot be read ({error.strerror})") from None
    if len(key) < SHORTEST_KEY:
        raise ParameterError(
            f"the key of the mask has {len(key)} bytes, at least {SHORTEST_KEY} are needed; a short one can be guessed"
        )
    return key


class NameMask:
    """Replaces names by keyed hashes.

    Parameters
    ----------
    key : bytes
        The secret.
    entities : iterable of str
        Keys of all entities, as in canonical events; what to look for within texts.

    Examples
    --------
    >>> mask = NameMask(b"sixteen bytes or", ["Anna Berg", "C-0042", "7"])
    >>> mask.name("Anna Berg") == mask.text("Anna Berg") != mask.name("C-0042")
    True
    >>> mask.text("amount 7, first time at 'C-0042'").replace(mask.name("C-0042"), "***")
    "amount 7, first time at '***'"
    """

    def __init__(self, key: bytes, entities: Iterable[str]) -> None:
        self._key = key
        whole = set(entities)
        parts = {part for name in whole if JOINER in name for part in name.split(JOINER)}
        self._names = {name.replace(JOINER, " / ") for name in whole} | parts
        self._names.discard("")
        within = [name for name in self._names if len(name) >= (_SHORT_NUMBER if name.isdigit() else _SHORT)]
        self._within = set(within)
        # Where a name's first word begins, and how long the name is: all that a search has to try at each word.
        starts = {(_first_word(name), len(name)) for name in within}
        self._shapes = sorted(starts, key=lambda shape: -shape[1])

    def name(self, entity: str) -> str:
        """The mask of a name, as "M-3f2a…": always the same under one key."""
        return "M-" + hmac.new(self._key, entity.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:_DIGITS]

    def text(self, text: str) -> str:
        """A text with every name in it masked.

        A name counts where it stands as whole words. One of fewer than three characters, or of fewer than six digits,
        is masked only where it is the whole text: within a sentence it would be any word or number.
        """
        if text in self._names:
            return self.name(text)
        parts: list[str] = []
        done = 0
        for word in re.finditer(r"\w+|\W", text):
            for offset, length in self._shapes:
                start = word.start() - offset
                found = text[start : start + length] if start >= done else ""
                if found in self._within and not _goes_on(text, start, start + length):
                    parts += [text[done:start], self.name(found)]
                    done = start + length
                    break
        return "".join([*parts, text[done:]])

    def column(self, texts: pl.Series) -> pl.Series:
        """A column of texts, or of lists of texts, masked; null stays null."""
        if texts.dtype == pl.List:
            lists = [None if row is None else [self.text(str(item)) for item in row] for row in texts.to_list()]
            return pl.Series(texts.name, lists, dtype=pl.List(pl.String))
        known = texts.drop_nulls().unique().to_list()
        return texts.replace_strict(known, [self.text(text) for text in known], default=None, return_dtype=pl.String)

    def frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A table with every text masked."""
        texts = [name for name, kind in frame.schema.items() if kind in (pl.String, pl.List(pl.String))]
        return frame.with_columns(self.column(frame[name]) for name in texts)

    def values(self, value: Any) -> Any:
        """Plain values, as of a JSON object, with every text in them masked."""
        if isinstance(value, Mapping):
            return {key: self.values(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.values(one) for one in value]
        return self.text(value) if isinstance(value, str) else value

    def explanations(self, told: pl.DataFrame) -> pl.DataFrame:
        """An explanation table whose texts from the data are masked, before sentences are cut to their length."""
        return told.with_columns(self.column(told["observed_text"]), self.column(told["likely"]))

    def cases(self, cases: pl.DataFrame) -> pl.DataFrame:
        """Cases with the names of their entities masked, in their reasons too."""
        entities = cases["entity"].to_list()
        masked = self.frame(cases.drop("fields", strict=False))
        fields = [cases["fields"]] if "fields" in cases.columns else []
        return masked.with_columns(
            pl.Series("entity", [self.name(name) for name in entities], dtype=pl.String), *fields
        )

    def report(self, data: ReportData) -> ReportData:
        """A report whose cases are masked already, with every other text masked. Examples of rejects are left out."""
        return replace(
            data,
            title=self.text(data.title),
            command=None if data.command is None else self.text(data.command),
            rejects=self.frame(data.rejects.with_columns(example=pl.lit("")) if data.rejects.height else data.rejects),
            notes=[self.text(note) for note in data.notes],
            timelines={number: self._timeline(timeline) for number, timeline in data.timelines.items()},
        )

    def _timeline(self, timeline: CaseTimeline) -> CaseTimeline:
        linked = timeline.linked
        if linked.height:
            linked = linked.with_columns(self.column(linked["value"]))
        return replace(
            timeline,
            events=self.frame(timeline.events),
            similar=self.frame(timeline.similar),
            parts=self.frame(timeline.parts),
            counterfactual=self.text(timeline.counterfactual),
            linked=linked,
        )


def _first_word(name: str) -> int:
    found = re.search(r"\w", name)
    return found.start() if found else 0


def _goes_on(text: str, start: int, stop: int) -> bool:
    """Whether the piece of text is the middle of a longer word."""
    before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    return before or (stop < len(text) and text[stop].isalnum() and text[stop - 1].isalnum())
