"""Command line: simulate, init, fit, rehearse, score, report, explain, recalibrate and compare, thin.

How a verb answers is told in `anomaly.verbs`. Heavy modules are imported inside the verbs, so that ``anomaly --help``
answers at once.
"""

from __future__ import annotations

import gc
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly.errors import InputError, ParameterError
from anomaly.files import whole_file
from anomaly.inputs import (
    check_report_files,
    check_scores,
    loaded,
    made,
    read_beside,
    read_events_told,
    read_scores,
    seconds_of,
    source_of,
    tell_rejects,
)
from anomaly.telling import fit_facts, fit_text, recalibration_facts, row_counts, row_counts_text, threshold_facts
from anomaly.verbs import (
    AlertCost,
    Answer,
    BudgetPerDay,
    CooldownHours,
    DetectorFolder,
    FalseAlertRate,
    FalseDiscoveryRate,
    FraudShare,
    Mask,
    Memory,
    Query,
    Since,
    Sources,
    app,
    note,
    verb,
)

if TYPE_CHECKING:
    import polars as pl

    from anomaly.detector import Detector
    from anomaly.ingest import Events
    from anomaly.schema import Schema

__all__ = ["app", "main"]

REJECTS = "rejects.parquet"
TOP_CASES = 10  # cases shown in the terminal
INTERRUPTED = 130  # the exit code that shells give to Ctrl-C


@verb("Write play data: 90 days of card payments with fraud.")
def simulate(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if need be.")],
    customers: Annotated[int, typer.Option(help="How many; each pays about twice a day.")] = 2000,
    days: Annotated[int, typer.Option(help="How many, from 2024-01-01 on.")] = 90,
    fraud_rate: Annotated[float, typer.Option(help="Share of the payments that are fraud.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Same seed, same payments.")] = 0,
) -> Answer:
    """Write play data: card payments of made-up customers, with planted fraud."""
    from anomaly.simulator import SIMULATED_SCHEMA, write_simulation

    schema, text = folder / "anomaly.toml", SIMULATED_SCHEMA.to_toml()
    if schema.exists() and schema.read_text(encoding="utf-8") != text:
        raise ParameterError(f"{schema} is there already and holds something else; give a new folder")
    events, labels = write_simulation(folder, customers=customers, days=days, fraud_rate=fraud_rate, seed=seed)
    _write(schema, text)
    told = _planted(labels)
    until = date(2024, 1, 1) + timedelta(days=2 * days // 3)
    return Answer(
        {"events": events, "labels": labels, "schema": schema, **told},
        f"{told['rows']:,} payments, {told['frauds']:,} of them planted fraud.\n"
        f"{events}   the payments\n{labels}   which of them are fraud; only for checking\n{schema}   the schema\n"
        f"Next: anomaly fit {_quoted(events)} --schema {_quoted(schema)} --until {until}",
    )


@verb("Guess which column is what; write anomaly.toml.")
def init(
    file: Annotated[str, typer.Argument(help="A table of events.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the schema.")] = Path("anomaly.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite it.")] = False,
    query: Query = None,
) -> Answer:
    """Guess which column is what, with reasons, and write the schema."""
    from anomaly.schema import infer_schema
    from anomaly.sources import read_head

    if out.exists() and not force:
        raise ParameterError(f"{out} is there already: --force overwrites it, --out names another file")
    source = source_of([file], query, writes=[out])
    head = read_head(source, query)
    schema, reasons = infer_schema(head)
    name = file.split("://")[0] + " database" if "://" in file else Path(file).name
    text = f"# Guessed from the first {len(head):,} rows of {name}. Check each line.\n\n{schema.to_toml(reasons)}"
    _write(out, text)
    return Answer(
        {"schema": out, "rows": len(head), "guess": schema.model_dump(), "reasons": reasons},
        f"{text}\n# Written to {out}. Next: anomaly fit {_quoted(file)} --schema {_quoted(out)}",
    )


@verb("Learn from unlabelled history; write a detector.")
def fit(
    events: Sources,
    schema: Annotated[Path, typer.Option(metavar="FILE", help="Which column is what.")] = Path("anomaly.toml"),
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the detector.")] = Path("detector"),
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Learn from events before this time only.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most passes over the history. [default: by size]")
    ] = None,
    hidden: Annotated[int, typer.Option(min=1, metavar="N", help="Size of the memory of each model.")] = 64,
    quarantine_hours: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="HOURS", help="Age at which an event enters the memory. [default: 30 typical gaps]"
        ),
    ] = None,
    pilot: Annotated[
        bool, typer.Option("--pilot", help="Choose the quarantine first, by small fits and planted frauds.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Same seed, same machine, same detector.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the state after each epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    memory: Memory = None,
    query: Query = None,
) -> Answer:
    """Learn from unlabelled history how each entity behaves. Ctrl-C keeps the best epoch so far.

    With --memory, from as many whole entities, drawn by the seed, as fit into it.
    """
    from anomaly.artifacts import check_folder
    from anomaly.schema import Schema

    if resume and checkpoint is None:
        raise ParameterError("--resume needs --checkpoint DIR, the folder of the fit that was cut off")
    if pilot and (quarantine_hours is not None or memory is not None):
        raise ParameterError("--pilot chooses the quarantine, from all events: no --quarantine-hours, no --memory")
    check_folder(out)
    known = Schema.from_toml(schema)
    source = source_of(events, query)

    end = seconds_of("--until", until)
    options = {"hidden": hidden, "quarantine_hours": quarantine_hours, "epochs": epochs, "seed": seed}
    try:
        if memory is not None:
            detector = made(known, options)
            read = _fit_within(detector, source, until, query, memory, checkpoint=checkpoint, resume=resume)
        else:
            detector, read = read_beside(partial(made, known, options), source, known, query)
            if end is not None and not (read.frame["time"] < end).any():
                raise InputError(f"--until {until}: no event is before it")
            if pilot:
                detector.quarantine_hours = _piloted(read, known, end, seed)
            detector.fit(read, until=until, progress=True, checkpoint=checkpoint, resume=resume)
    except KeyboardInterrupt:
        again = "" if checkpoint is None else "; the same command with --resume goes on from the last whole epoch"
        note(f"Interrupted before the first epoch of a model was over: no detector is written{again}.")
        raise typer.Exit(INTERRUPTED) from None
    detector.save(out)
    facts = {"detector": out, **fit_facts(detector.fitted_, read), "quarantine_hours": detector.quarantine_ / 3600}
    since = "" if until is None else f" --since {_quoted(until)}"
    go_on = f"Next: anomaly score {' '.join(map(_quoted, events))} --detector {_quoted(out)}{since}"
    return Answer(facts, f"{fit_text(facts)}\n{out}   the detector\n{go_on}")


@verb("Say how strange each event is; write scores.parquet.")
def score(
    events: Sources,
    detector: DetectorFolder = Path("detector"),
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to write the scores: .parquet, .csv or .ndjson.")
    ] = Path("scores.parquet"),
    since: Since = None,
    memory: Memory = None,
    query: Query = None,
) -> Answer:
    """Say of each event how strange it is, and put the rows that cannot be read beside it, with reasons.

    With --memory whole entities are scored in turn, to the same scores; after an interruption the same command goes on.
    """
    from anomaly.artifacts import read_schema
    from anomaly.ingest import check_target, write_table

    rejects = out.with_name(REJECTS)
    check_target(out)
    if out.name == REJECTS:
        raise ParameterError(f"--out {out}: that name is taken by the rejected rows; give another one")
    source = source_of(events, query, writes=[out, rejects])

    seconds_of("--since", since)
    if memory is not None:
        fitted = loaded(detector)
        counts, status, notes = _score_within(fitted, source, out, since, query, memory)
    else:
        fitted, read = read_beside(partial(loaded, detector), source, read_schema(detector), query)
        scores = fitted.score(read, since=since)
        write_table(scores, out)
        write_table(read.rejects, rejects)
        status = dict(sorted(scores["status"].value_counts().iter_rows()))
        counts, notes = row_counts(read, scores), read.notes
    return Answer(
        {"scores": out, "rejects": rejects, **counts, "status": status, "notes": notes},
        f"{row_counts_text(counts)}\nOf the scored: {', '.join(f'{n:,} {name}' for name, n in status.items())}.\n"
        f"{out}   one row per scored event\n{rejects}   the rejected rows, with reasons",
    )


def _fit_within(
    detector: Detector, source: str | list[str], until: str | None, query: str | None, memory: str, **options: Any
) -> Events:
    """Fit on a sample that fits into memory, and say so."""
    from anomaly.partitions import Sample, fit_within

    def told(sample: Sample) -> None:
        tell_rejects(sample.events.rejects, sample.events.notes)
        if not sample.whole:
            drawn = f"{len(sample.events):,} of {sample.of_events:,} events"
            note(f"note: --memory {memory} holds a sample of the {len(sample.entities):,} entities, {drawn}")

    sample = fit_within(detector, source, memory=memory, until=until, query=query, told=told, progress=True, **options)
    return sample.events


def _piloted(read: Events, schema: Schema, until: float | None, seed: int) -> float:
    """The quarantine in hours that a pilot chooses; what it tried is told."""
    from anomaly.pilot import choose_quarantine

    note("Pilot: some small fits to choose the quarantine")
    found = choose_quarantine(read, schema, until=until, seed=seed, progress=True)
    for one in found.trials:
        taken = "   taken" if one["taken"] else ""
        note(f"Pilot: quarantine {one['hours']:.1f} h ranks planted frauds at {one['precision']:.3f}{taken}")
    return found.hours


def _score_within(
    detector: Detector, source: str | list[str], out: Path, since: str | None, query: str | None, memory: str
) -> tuple[dict[str, int], dict[str, int], tuple[str, ...]]:
    """Score out of core: counts of rows, of scored events by status, and notes."""
    from anomaly.ingest import write_table
    from anomaly.partitions import score_within

    try:
        found = score_within(detector, source, out, memory=memory, since=since, query=query, progress=note)
    except KeyboardInterrupt:
        note("Interrupted: no scores are written; the same command goes on with the next partition.")
        raise typer.Exit(INTERRUPTED) from None
    tell_rejects(found.rejects, found.notes)
    write_table(found.rejects, out.with_name(REJECTS))
    history = found.rows - found.scored - len(found.rejects)
    counts = {"rows": found.rows, "history": history, "scored": found.scored, "rejected": len(found.rejects)}
    return counts, found.status, found.notes


@verb("Rank cases with reasons; write report.html.")
def report(
    events: Sources,
    detector: DetectorFolder = Path("detector"),
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `anomaly score` wrote. [default: score now]")
    ] = None,
    since: Since = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the report: .html, .pdf or .md.")] = Path(
        "report.html"
    ),
    budget_per_day: BudgetPerDay = None,
    false_alert_rate: FalseAlertRate = None,
    false_discovery_rate: FalseDiscoveryRate = None,
    alert_cost: AlertCost = None,
    fraud_share: FraudShare = None,
    cooldown_hours: CooldownHours = 24.0,
    alerts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the cases as a table too: .parquet, .csv or .ndjson.")
    ] = None,
    mask: Mask = False,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Anomaly report",
    query: Query = None,
) -> Answer:
    """Rank the strange events as cases with reasons, on one page for the people who look into them."""
    given = _rule(
        budget_per_day=budget_per_day,
        false_alert_rate=false_alert_rate,
        false_discovery_rate=false_discovery_rate,
        alert_cost=alert_cost,
        fraud_share=fraud_share,
    ) | {"cooldown_hours": cooldown_hours}
    check_report_files(scores, out, alerts)
    source = source_of(events, query, reads=[] if scores is None else [scores], writes=[out, alerts])

    from anomaly.masking import mask_key
    from anomaly.terminal import case_table
    from anomaly.views import load_detector

    start = seconds_of("--since", since)
    key = mask_key() if mask else None
    fitted = load_detector(detector)
    rule = fitted.threshold(**given)
    read = read_events_told(source, fitted.schema, query)
    table = fitted.score(read, since=since) if scores is None else read_scores(scores, read, fitted, start)
    files = {"detector": detector, "scores": scores, "since": since, "out": out, "alerts": alerts}
    command = _command("report", events, {**files, **given, "title": title, "mask": mask})
    cases = fitted.report(out, table, events=read, title=title, command=command, mask_key=key, **given)
    counts = row_counts(read, table)
    written = (
        f"{out}   the {'page' if out.suffix.lower() == '.html' else 'report'}{_write_alerts(cases, table, alerts)}"
    )
    facts = {"report": out, "alerts": alerts, **counts, **threshold_facts(rule), "cases": len(cases)}
    top = cases.head(TOP_CASES)
    shown = f"The {len(top)} strangest of {len(cases):,} cases:" if len(top) else "No case."
    return Answer(
        {**facts, "top": top.drop("rows", "fields").to_dicts(), "notes": read.notes},
        f"{row_counts_text(counts)}\n{rule.describe()}\n{shown}",
        case_table(top, fitted.schema) if len(top) else None,
        after=written,
    )


@verb("Why one event is strange, and what would have let it pass.")
def explain(
    events: Sources,
    event: Annotated[str | None, typer.Option(metavar="ID", help="The event, by its id.")] = None,
    row: Annotated[int | None, typer.Option(min=0, metavar="N", help="Or by its row in EVENTS, from 0.")] = None,
    detector: DetectorFolder = Path("detector"),
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `anomaly score` wrote. [default: score now]")
    ] = None,
    budget_per_day: BudgetPerDay = None,
    false_alert_rate: FalseAlertRate = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it too: .svg or .png.")] = None,
    mask: Mask = False,
    query: Query = None,
) -> Answer:
    """Split the surprise of an event into its parts, and say what was expected and which change would let it pass."""
    from anomaly.event_figure import check_figure, story_figure, write_figure
    from anomaly.event_story import event_story, find_row
    from anomaly.terminal import story_tables

    if (event is None) == (row is None):
        raise ParameterError("explain: of which event? Give either --event ID or --row N")
    given: dict[str, Any] = {"budget_per_day": budget_per_day, "false_alert_rate": false_alert_rate}
    if figure is not None:
        check_figure(figure)
    check_scores(scores)
    source = source_of(events, query, reads=[] if scores is None else [scores], writes=[figure])

    from anomaly.masking import NameMask, mask_key
    from anomaly.views import load_detector

    key = mask_key() if mask else None
    fitted = load_detector(detector)
    rule = fitted.threshold(**{name: value for name, value in given.items() if value is not None})
    read = read_events_told(source, fitted.schema, query)
    table = fitted.score(read) if scores is None else read_scores(scores, read, fitted, None)
    hidden = None if key is None else NameMask(key, read.names)
    story = event_story(fitted, read, table, find_row(read, table, event, row), rule, hidden)
    facts, notes = story.facts, list(read.notes)
    notes = notes if hidden is None else hidden.values(notes)
    if figure is not None:
        write_figure(story_figure(story), figure, label=facts["summary"])
    return Answer(
        {**facts, "threshold": rule.describe(), "figure": figure, "notes": notes},
        f"{facts['summary']}\n",
        story_tables(story),
        after="" if figure is None else f"{figure}   the figure",
    )


@verb("Recall by kind of fraud, without labels.")
def rehearse(
    events: Sources,
    detector: DetectorFolder = Path("detector"),
    budget_per_day: BudgetPerDay = None,
    false_alert_rate: FalseAlertRate = None,
    episodes: Annotated[int, typer.Option(min=2, metavar="N", help="Planted frauds of each kind.")] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed plants other frauds.")] = 1,
    query: Query = None,
) -> Answer:
    """Plant frauds of known kinds into copies of held-out histories, and tell how much of each kind would alert.

    EVENTS is the history that was fitted. Nothing is learned from the copies, and no label is read. It shows what the
    detector is blind to; what real thieves do is another question.
    """
    from anomaly.terminal import rehearsal_table
    from anomaly.views import load_detector

    given: dict[str, Any] = {"budget_per_day": budget_per_day, "false_alert_rate": false_alert_rate}
    fitted = load_detector(detector)
    rule = fitted.threshold(**{name: value for name, value in given.items() if value is not None})
    read = read_events_told(source_of(events, query), fitted.schema, query)
    found = fitted.rehearsal(read, rule, episodes=episodes, seed=seed)
    return Answer(
        {**threshold_facts(rule), "kinds": found.to_dicts()},
        f"{rule.describe()}\nOf the planted frauds:",
        rehearsal_table(found),
        after="recall: share of the planted events that alert, with a 95 % interval; noticed: share of the frauds that "
        "have an alert.",
    )


@verb("Calibrate anew on later events, without a fit.")
def recalibrate(
    events: Sources,
    detector: DetectorFolder = Path("detector"),
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write the detector; that of --detector replaces it.")
    ] = Path("recalibrated"),
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Calibrate on events from this time on. [default: on all that trained nothing]"
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Use events before this time only.")] = None,
    query: Query = None,
) -> Answer:
    """Calibrate a detector anew on events that came after its fit: p-values keep their promise, nothing is trained.

    EVENTS are the history and the new events. Do it monthly, or where a report tells that levels have drifted. Fit
    again after a change of habits; and leave out a month full of fraud, or fraud becomes usual.
    """
    from anomaly.artifacts import check_folder, read_schema
    from anomaly.terminal import recalibration_table

    check_folder(out)
    source = source_of(events, query)
    for option, time in (("--since", since), ("--until", until)):
        seconds_of(option, time)
    fitted, read = read_beside(partial(loaded, detector), source, read_schema(detector), query)
    former = fitted.threshold(), fitted.holdout_
    fitted.recalibrate(read, since=since, until=until)
    facts = recalibration_facts(*former, fitted.threshold(), fitted.holdout_, fitted.fitted_["recalibrated"])
    fitted.save(out)
    later = ["--since", until or facts["after"]["last"], *([] if query is None else ["--query", query])]
    go_on = shlex.join(["anomaly", "score", *events, "--detector", str(out), *later])
    return Answer(
        {"detector": out, "rows": read.n_input, "rejected": len(read.rejects), **facts, "notes": read.notes},
        f"{read.n_input:,} rows read, {len(read.rejects):,} rejected\n"
        "The models are the same; only the calibration is new. Its shares are of the events that it was made from.",
        recalibration_table(facts),
        after=f"{out}   the detector\nNext: {go_on}",
    )


@verb("What labels would add: rules, the detector, labelled models.")
def compare(
    events: Sources,
    schema: Annotated[Path, typer.Option(metavar="FILE", help="Which column is what.")] = Path("anomaly.toml"),
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Event ids and labels. [default: the schema's label column]")
    ] = None,
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The label in --labels.")] = "fraud",
    since: Since = None,
    label_delay_days: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="How long until it is known whether an event was fraud.")
    ] = 7.0,
    folds: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Test windows in a row, all learned anew for each: N times the time."),
    ] = 1,
    budget_per_day: Annotated[int, typer.Option(min=1, metavar="N", help="Events looked into each day.")] = 50,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write page and figures.")] = Path("comparison"),
    epochs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most passes over the history.")] = None,
    hidden: Annotated[int, typer.Option(min=1, metavar="N", help="Size of the memory of each model.")] = 64,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Same seed, same figures.")] = 0,
    query: Query = None,
) -> Answer:
    """Measure what finds fraud without labels beside what finds it with them, on the same later events."""
    from anomaly.schema import Schema

    known = Schema.from_toml(schema)
    source = source_of(events, query, reads=[] if labels is None else [labels])
    if labels is None and known.label is None:
        raise ParameterError(
            'compare needs labels: give --labels FILE, or name the column in the schema, label = "..."'
        )

    from anomaly.comparison import Comparison, write_comparison
    from anomaly.comparison_page import PAGE, write_comparison_page
    from anomaly.comparison_world import read_label_table
    from anomaly.ingest import read_labels
    from anomaly.terminal import comparison_table

    if labels is None:
        told: Any = read_labels(source, known, query=query)["label"].fill_null(value=False)
    else:
        told = read_label_table(labels, known, label)
    seconds_of("--since", since)
    options: dict[str, Any] = {"label_delay_days": label_delay_days, "folds": folds, "budget_per_day": budget_per_day}
    options |= {"hidden": hidden, "epochs": epochs, "seed": seed}
    comparison = Comparison(schema=known, since=since, say=note, **options)
    found = comparison.run(read_events_told(source, known, query), told)
    files = {"labels": labels, "label": label if labels else None, "schema": schema, "since": since, "out": out}
    command = _command("compare", events, {**files, **options})
    page = write_comparison_page(found, out / PAGE, asked=comparison, command=command)
    written = [page, *write_comparison(found, out, command)]
    return Answer(
        {"files": written, "sentence": found.sentence, **found.facts, "scorers": found.table.to_dicts()},
        found.sentence,
        comparison_table(found.table, budget_per_day),
        after=f"{page}   the page, with the curve over the number of known frauds; all figures are beside it",
    )


def main() -> None:
    """Entry point of the command ``anomaly``."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows another one
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    finally:
        gc.freeze()  # or Python would go through all that is left before it exits


def _rule(**rules: float | None) -> dict[str, Any]:
    """The options that set the threshold and were given: one, or an alert's cost with the share of fraud."""
    given: dict[str, Any] = {name: value for name, value in rules.items() if value is not None}
    if len(given.keys() - {"fraud_share"}) > 1:
        raise ParameterError(f"give one of {' and '.join(map(_option, given))}: each of them sets the threshold")
    return given


def _write_alerts(cases: pl.DataFrame, scores: pl.DataFrame, path: Path | None) -> str:
    """Write the cases as a table with its layout beside it, if wished, and tell where they are."""
    from anomaly.export import write_cases

    if path is None:
        return ""
    status = dict(scores.select("row", "status").iter_rows())
    layout = write_cases(cases.with_columns(status=cases["peak_row"].replace_strict(status)), path)
    return f"\n{path}   the cases as a table\n{layout}   what its columns mean"


def _planted(labels: Path) -> dict[str, int]:
    import polars as pl

    fraud = pl.read_parquet(labels)["fraud"]
    return {"rows": len(fraud), "frauds": int(fraud.sum())}


def _write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    if not path.parent.is_dir():
        raise ParameterError(f"{path}: there is no folder {path.parent}: make it first")
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _command(verb: str, events: Sequence[str], options: Mapping[str, Any]) -> str | None:
    """The command that makes a page again; None for a database, whose address may hold a password."""
    if any("://" in name for name in events):
        return None
    given = [
        part
        for name, value in options.items()
        if value is not None and value is not False
        for part in ((_option(name),) if value is True else (_option(name), str(value)))
    ]
    return shlex.join(["anomaly", verb, *events, *given])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _quoted(path: str | Path) -> str:
    return shlex.quote(str(path))
