"""How a verb of the command line is declared, answered and refused; the options that several verbs share.

Each verb returns an `Answer`. It is printed on standard output, as text or, with ``--json``, as one JSON object;
progress, notes and errors go to standard error. An `AnomalyError` ends in exit code 2 and one message; anything else is
a bug and keeps its traceback.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from anomaly.errors import AnomalyError
from anomaly.files import json_value

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_WIDTH = 140  # of tables where there is no terminal

EXAMPLES = {
    "simulate": "anomaly simulate play",
    "init": "anomaly init play/events.parquet",
    "fit": "anomaly fit play/events.parquet --until 2024-03-01",
    "rehearse": "anomaly rehearse play/events.parquet",
    "score": "anomaly score play/events.parquet --since 2024-03-01",
    "report": "anomaly report play/events.parquet --since 2024-03-01 --scores scores.parquet",
    "explain": "anomaly explain play/events.parquet --scores scores.parquet --event E0267094",
    "recalibrate": "anomaly recalibrate play/events.parquet",
    "compare": "anomaly compare play/events.parquet --labels play/labels.parquet --since 2024-03-01",
}
HELP = """Find fraud and other anomalies in sequences of events per entity, without labels.

The verbs in the order of use, on play data; with data of your own, begin at init:

\b
{examples}

EVENTS are CSV, Parquet, NDJSON or Arrow files, folders of them, or a database (sqlite:///events.db) with --query. Give
score and report the history as well: each event is judged by what came before it. A row that cannot be read is put
aside with its reason. Every verb takes --json. Exit code 2 means bad input, told in one message.
"""

app = typer.Typer(
    help=HELP.format(examples="\n".join(f"  {example}" for example in EXAMPLES.values())),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Sources = Annotated[list[str], typer.Argument(metavar="EVENTS", help="Files, folders, or one database address.")]
DetectorFolder = Annotated[Path, typer.Option("--detector", metavar="DIR", help="What `anomaly fit` wrote.")]
Query = Annotated[str | None, typer.Option(metavar="SQL", help="What to read from a database.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Score from this time on (UTC without an offset).")]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Take no more memory than this, as 2GB: for more events than fit in.")
]
BudgetPerDay = Annotated[
    float | None, typer.Option(metavar="N", help="Alert on so many cases a day. [default: 50, without the next two]")
]
FalseAlertRate = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Alert on this share of the normal events, as 0.001.")
]
FalseDiscoveryRate = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Alert so that this share of the entities that alert may be false, as 0.1."),
]
AlertCost = Annotated[
    float | None,
    typer.Option(metavar="MONEY", help="Alert where the money at risk may be worth this cost; needs --fraud-share."),
]
FraudShare = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Share of fraud among the events, as 0.001, for --alert-cost.")
]
CooldownHours = Annotated[
    float, typer.Option(min=0, metavar="HOURS", help="Alerts of one entity closer than this are one case.")
]
Mask = Annotated[bool, typer.Option("--mask", help="Hide the names of entities; the key is in $ANOMALY_MASK_KEY.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


@dataclass(frozen=True)
class Answer:
    """What a verb found: plain values for a program; text and a table, or several, for a person."""

    facts: dict[str, Any]
    text: str
    table: RenderableType | None = None
    after: str = field(default="", kw_only=True)


def verb(told: str) -> Callable[[Callable[..., Answer]], Callable[..., None]]:
    """Make a function that returns an `Answer` a verb with ``--json``; `told` says in a line what it does."""

    def register(function: Callable[..., Answer]) -> Callable[..., None]:
        @wraps(function)
        def command(*, as_json: bool, **options: Any) -> None:
            _answer(partial(function, **options), as_json)

        json_option = Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
        known = signature(function, eval_str=True)
        command.__signature__ = known.replace(parameters=[*known.parameters.values(), json_option])  # type: ignore[attr-defined]
        app.command(short_help=told, epilog=f"\b\nExample:\n  {EXAMPLES[function.__name__]}")(command)
        return command

    return register


def _answer(function: Callable[[], Answer], as_json: bool) -> None:
    """Run a verb and print what it found, or why it could not."""
    began = time.perf_counter()
    gc.disable()  # until `settled`
    try:
        answer = function()
    except AnomalyError as error:
        _refuse(str(error), type(error).__name__, as_json)
    except OSError as error:  # a folder that may not be written, a full disk
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}", type(error).__name__, as_json)
    finally:
        gc.unfreeze()
        gc.enable()
    if as_json:
        facts = {**answer.facts, "seconds": round(time.perf_counter() - began, 3)}
        typer.echo(json.dumps(json_value(facts), allow_nan=False))
    else:
        _show(answer)


def settled() -> None:
    """Let the garbage collector work again, once a verb has imported what it needs, on what comes from now on.

    What modules hold stays for good, and the collector would go through all of it again and again while they are
    imported: a third of the time that this takes.
    """
    gc.freeze()
    gc.enable()


def note(text: str) -> None:
    """Say something on standard error."""
    typer.echo(text, err=True)


def _refuse(message: str, kind: str, as_json: bool) -> NoReturn:
    note(f"Error: {message}")
    if as_json:
        typer.echo(json.dumps({"error": message, "kind": kind}))
    raise typer.Exit(2)


def _show(answer: Answer) -> None:
    typer.echo(answer.text)
    if answer.table is not None:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=PLAIN_WIDTH)
        console.print(answer.table)
    if answer.after:
        typer.echo(answer.after)
