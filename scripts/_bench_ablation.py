"""What each part of our detector earns: on the frauds of a simulation, and on planted ones, which need no labels.

A part is taken out where it can be without another fit, and the rest is calibrated anew on the same held-out slice. The
same is done for each value that a rehearsal may choose, so that its preferences can be held against the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from _bench_work import with_interval
from numpy.typing import NDArray
from scipy import stats

from anomaly.detector import EPISODES, Detector
from anomaly.features import GIVEN
from anomaly.history import as_seconds
from anomaly.ingest import read_events
from anomaly.pilot import rehearsed
from anomaly.rehearsal import CANDIDATES, SCALE_GAPS, Copies, Reference, choose, precisions, scales_of
from anomaly.schema import Schema
from anomaly.scorer import NEVER, Combination, Errors, Scorer
from anomaly.sequences import Sequences

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Quality = Callable[[Floats], Mapping[str, float]]  # of the scored events' surprises, in the order of their rows

RESCORED = ("evidence", "population", "autoencoder", "rehearsal", "fields", "given")
KEYS = ("ap", "recall.macro", "planted")
AFAR: Mapping[str, Any] = {"ceiling": 0.0, "population": 0.0, "other": 1.0}  # no past, amounts first, every field alike
SEED = 1  # of the planted frauds: others than those that a fit has chosen by


@dataclass(frozen=True)
class Planted:
    """Planted frauds and genuine events beside them, judged by the models of a fitted detector."""

    detector: Detector
    copies: Copies
    reference: Reference

    @classmethod
    def by(cls, detector: Detector, history: pl.DataFrame, schema: Schema) -> Planted:
        """Plant frauds into the held-out part of the history that was fitted."""
        return cls(detector, *rehearsed(detector, read_events(history, schema), EPISODES, SEED))

    def precision(self, combination: Combination, part: str = "") -> float:
        """Mean over the kinds of the average precision among genuine events as rare as fraud is."""
        copies, reference = self.copies, self.reference
        if part == "given":
            copies = replace(copies, errors=without_given(self.detector, copies.errors))
            reference = replace(reference, errors=without_given(self.detector, reference.errors))
        found = precisions(combination, copies, reference, self.detector.scorer_.fields)
        return float(np.nanmean(found, axis=1).mean())


@dataclass(frozen=True)
class Judged:
    """What the models of a fitted detector say of all events: all that another combination needs."""

    detector: Detector
    sequences: Sequences
    errors: Errors
    held: Bools
    scored: Bools

    @classmethod
    def by(cls, detector: Detector, events: pl.DataFrame, since: str) -> Judged:
        """Run the models over all events once."""
        frame = read_events(events, detector.schema).frame
        sequences = detector.encoder_.transform(frame)
        begin, end = detector.fitted_["held_out_since"], as_seconds(since)
        assert end is not None
        longest = max(scales_of(detector.gap_, sequences.time.max() - begin, "long"), default=0.0)
        errors = detector.errors(sequences, sequences.time > begin - longest)
        later = sequences.time >= end
        return cls(detector, sequences, errors, (sequences.time >= begin) & ~later, later)

    @property
    def span(self) -> float:
        """Seconds from the first to the last held-out event."""
        held = self.sequences.time[self.held]
        return float(held.max() - held.min())

    def rescored(self, combination: Combination, part: str = "") -> Floats:
        """Score anew with another combination, calibrated on the same held-out slice; (n,) in the order of the rows."""
        errors = without_given(self.detector, self.errors) if part == "given" else self.errors
        scorer = Scorer(self.detector.scorer_.fields, combination)
        scorer.fit(errors, self.sequences, self.held)
        log_p = scorer.judge(errors, self.sequences, self.scored).log_p
        surprise: Floats = np.nan_to_num(-log_p / np.log(10), nan=0.0)
        return surprise[np.argsort(self.sequences.row[self.scored], kind="stable")]


def without(whole: Combination, scales: tuple[float, ...]) -> dict[str, Combination]:
    """The combination without each part that needs no new fit; `scales` are the default's."""
    return {
        "evidence": replace(whole, evidence=0.0),
        "population": replace(whole, population=NEVER),
        "autoencoder": replace(whole, autoencoder=0.0),
        "rehearsal": Combination(scales=scales),
        "fields": replace(whole, other=0.0),
        "given": whole,  # no number is judged given the categories of its event: the errors tell
    }


def without_given(detector: Detector, errors: Errors) -> dict[str, NDArray[np.float32]]:
    """The errors, none of them given the categories of the event."""
    said = {}
    for name, values in errors.items():
        given = [column.name.startswith(GIVEN) for column in detector.scorer_.fields[name]]
        said[name] = np.where(given, np.float32(np.nan), values)
    return said


def planted_alone(planted: Planted) -> dict[str, dict[str, float]]:
    """What each part earns on planted frauds, where there is no other truth to look at; `whole` = with all parts."""
    detector, whole = planted.detector, planted.detector.scorer_.combination
    held = detector.holdout_.time
    parts = {"whole": whole, **without(whole, scales_of(detector.gap_, float(held.max() - held.min())))}
    return {part: {"planted": planted.precision(one, part)} for part, one in parts.items()}


def ablation(judged: Judged, planted: Planted, quality: Quality) -> dict[str, dict[str, float]]:
    """Quality without each part that needs no new fit, on the truth and on planted frauds."""
    parts = without(judged.detector.scorer_.combination, scales_of(judged.detector.gap_, judged.span))
    return {
        part: {**quality(judged.rescored(one, part)), "planted": planted.precision(one, part)}
        for part, one in parts.items()
    }


def choices(judged: Judged, planted: Planted, quality: Quality) -> dict[str, dict[str, float]]:
    """What each value that a rehearsal may choose gains over the whole combination, in `ap` and on planted frauds."""
    whole = judged.detector.scorer_.combination
    before = {"ap": quality(judged.rescored(whole))["ap"], "planted": planted.precision(whole)}
    found = {}
    for name, one in _candidates(whole, judged.detector.gap_, judged.span):
        after = {"ap": quality(judged.rescored(one))["ap"], "planted": planted.precision(one)}
        found[name] = {key: after[key] - before[key] for key in before}
    return found


def from_afar(judged: Judged, planted: Planted, quality: Quality) -> dict[str, float]:
    """What a rehearsal makes of a combination that is far from good: `ap` and `planted` before and after its choice."""
    detector, afar = judged.detector, replace(judged.detector.scorer_.combination, **AFAR)
    fields = detector.scorer_.fields
    chosen, _ = choose(afar, planted.copies, planted.reference, fields, detector.gap_, judged.span)
    return {
        f"{when}.{key}": value
        for when, one in (("before", afar), ("after", chosen))
        for key, value in (("ap", quality(judged.rescored(one))["ap"]), ("planted", planted.precision(one)))
    }


def _candidates(whole: Combination, gap: float, span: float) -> Iterator[tuple[str, Combination]]:
    settings: dict[str, dict[str, Any]] = {"scales": {name: scales_of(gap, span, name) for name in SCALE_GAPS}} | {
        what: {("never" if value == NEVER else f"{value:g}"): value for value in values}
        for what, values in CANDIDATES.items()
    }
    for what, values in settings.items():
        for told, value in values.items():
            if value != getattr(whole, what):
                yield f"{what}.{told}", replace(whole, **{what: value})


def ablation_figures(
    each: Mapping[int, Mapping[str, Mapping[str, float]]], whole: Mapping[int, Mapping[str, float]]
) -> dict[str, float]:
    """Means over the seeds without each part, and of the differences to the whole on the same seeds.

    Parameters
    ----------
    each, whole : mapping
        By seed: what was found without each part, and with all of them.
    """
    result: dict[str, float] = {}
    for part in dict.fromkeys(part for found in each.values() for part in found):
        paired = sorted(seed for seed in set(each) & set(whole) if part in each[seed])
        for key in KEYS:
            mine = [seed for seed in paired if key in each[seed][part] and key in whole[seed]]
            if mine:
                result |= with_interval(f"ablation.{part}.{key}", [each[seed][part][key] for seed in mine])
                change = [each[seed][part][key] - whole[seed][key] for seed in mine]
                result |= with_interval(f"ablation.{part}.{key}.difference", change)
        if paired:
            result[f"ablation.{part}.seeds"] = len(paired)
    return result


def choice_figures(
    each: Sequence[Mapping[str, Mapping[str, float]]], afar: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """Mean gains of each value that a rehearsal may choose, and how well the planted frauds foretell the true ones.

    `afar` is what a rehearsal makes of a combination that is far from good.
    """
    names = sorted(set.intersection(*(set(found) for found in each))) if each else []
    result = {
        f"choice.{name}.{key}": float(np.mean([found[name][key] for found in each]))
        for name in names
        for key in ("planted", "ap")
    }
    if len(names) > 2:
        planted, true = ([result[f"choice.{name}.{key}"] for name in names] for key in ("planted", "ap"))
        result["choice.rank_correlation"] = float(stats.spearmanr(planted, true).statistic)
    for key in afar[0] if afar else ():
        result[f"choice.afar.{key}"] = float(np.mean([one[key] for one in afar]))
    return result
