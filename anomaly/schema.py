"""Schema: which column is the entity, the time, a number, a category, a place, the label.

The schema is the only place where a user's column names stand. It is a value: frozen, compared by content, checked when
it is made, and kept with every saved detector. As a file it is the ``[schema]`` table of ``anomaly.toml``::

    [schema]
    time = "when"
    entity = ["card"]
    categorical = ["merchant"]
    label = "is_fraud"

    [[schema.numeric]]
    name = "amount"
    scale = "log"
    tail = "upper"
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from anomaly.errors import SchemaError
from anomaly.guessing import guess


class _Value(BaseModel):
    """A frozen value whose faults are told in this package's words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # the type checker shall see the fields as arguments

        def __init__(self, **data):
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise SchemaError(_told(type(self), error)) from None


def _told(model: type[BaseModel], error: ValidationError) -> str:
    """The faults that pydantic found, one clause each, with the closest name for an unknown key."""
    clauses = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            clauses.append(f"unknown key {where!r}{_closest(where, list(model.model_fields))}")
        elif fault["type"] == "missing":
            clauses.append(f"the key {where!r} is missing")
        else:
            words = fault["msg"].removeprefix("Value error, ")
            got = "" if fault["type"] == "value_error" else f", got {fault['input']!r}"
            clauses.append(f"{where}: {words}{got}" if where else words)
    return f"{model.__name__}: " + "; ".join(clauses)


def _closest(name: str, names: Sequence[str]) -> str:
    folded = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


class NumericField(_Value):
    """A column of numbers.

    Parameters
    ----------
    name : str
        The column.
    scale : {"linear", "log"}
        ``log`` for what spreads over powers of ten (money, bytes), ``linear`` for the rest. Negative values are fine
        in both: ``log`` is linear near zero and keeps the sign.
    tail : {"upper", "lower", "both"}
        Which values are strange: large ones (money), small ones, or both.
    """

    name: str
    scale: Literal["linear", "log"] = "log"
    tail: Literal["upper", "lower", "both"] = "both"


class Place(_Value):
    """The two columns that say where an event happened, in degrees (WGS 84)."""

    latitude: str
    longitude: str


class Schema(_Value):
    """Which column plays which role.

    Parameters
    ----------
    time : str
        When the event happened: ISO text, a date or time type, or an epoch number (see `time_unit`).
    entity : tuple of str, or of tuples of str
        Whose event it is. Each member is a view of the same events: ``("card", "terminal")`` looks at them by card and
        by terminal (see `anomaly.views`), and the first view is the one that cases are made of. Several columns that
        together name one entity stand in a tuple of their own: ``(("bank", "account"),)``. () = the whole table is one
        sequence.
    event_id : str, optional
        Names the event; a second event of the same id is a duplicate.
    numeric : tuple of NumericField
        Numbers.
    categorical : tuple of str
        Categories; numbers in them are codes. What names the entities of one view may be a category of the others.
    place : Place, optional
        Latitude and longitude.
    label : str, optional
        What is known about fraud. Held apart: never read as a feature, in no use of this package.
    time_zone : str
        Zone of times written without an offset, and of hour and weekday.
    time_unit : {"s", "ms", "us"}
        Unit of numeric times since 1970-01-01 UTC.
    decimal : {".", ","}
        Decimal mark of numbers written as text; the other one then separates thousands.

    Raises
    ------
    SchemaError
        If a column has two roles, a name is empty, a key is unknown or a value is not one of those above.

    Examples
    --------
    >>> amount = NumericField(name="amount", scale="log", tail="upper")
    >>> Schema(time="when", entity=("card",), numeric=(amount,), label="fraud").columns()
    ['when', 'card', 'amount']

    One column has one role; above all, a label is no feature:

    >>> Schema(time="when", categorical=("fraud",), label="fraud")
    Traceback (most recent call last):
        ...
    anomaly.errors.SchemaError: Schema: column 'fraud' is used twice, as categorical and as label: give it one role

    >>> Schema(time="when", time_zone="Europe/Pari")
    Traceback (most recent call last):
        ...
    anomaly.errors.SchemaError: Schema: time_zone: no time zone is called 'Europe/Pari'; write it like 'Europe/Paris' or
    'UTC'
    """

    time: str
    entity: tuple[str | tuple[str, ...], ...] = ()
    event_id: str | None = None
    numeric: tuple[NumericField, ...] = ()
    categorical: tuple[str, ...] = ()
    place: Place | None = None
    label: str | None = None
    time_zone: str = "UTC"
    time_unit: Literal["s", "ms", "us"] = "s"
    decimal: Literal[".", ","] = "."

    @field_validator("entity", mode="before")
    @classmethod
    def _column_is_a_view(cls, value: Any) -> Any:
        value = _listed(value)
        if not isinstance(value, list | tuple):
            return value
        return tuple(key[0] if isinstance(key, list | tuple) and len(key) == 1 else key for key in value)

    @field_validator("categorical", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("numeric", mode="before")
    @classmethod
    def _name_is_a_field(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple({"name": item} if isinstance(item, str) else item for item in value)

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"no time zone is called {value!r}; write it like 'Europe/Paris' or 'UTC'") from None
        return value

    @model_validator(mode="after")
    def _one_role_each(self) -> Self:
        if () in self.entity:
            raise ValueError("entity: a view without a column; name its columns, or leave it out")
        if len(set(map(frozenset, self.keys))) < len(self.keys):
            raise ValueError("entity: two views are of the same columns; name each view once")
        for column in (column for key in self.keys for column in key if key.count(column) > 1):
            raise ValueError(f"column {column!r} is used twice, as entity and as entity: give it one role")
        for view in self.views or (self,):
            view._check_roles()
        return self

    def _check_roles(self) -> None:
        """One role for each column of a single view."""
        seen: dict[str, str] = {}
        for role, column in self._roles():
            if not column.strip():
                raise ValueError(f"the name of a column is empty ({role}): name a column, or leave the key out")
            if column in seen:
                raise ValueError(f"column {column!r} is used twice, as {seen[column]} and as {role}: give it one role")
            seen[column] = role

    def _roles(self) -> list[tuple[str, str]]:
        """(role, column) of every column, the label last."""
        roles = [("time", self.time), *(("entity", name) for name in dict.fromkeys(sum(self.keys, ())))]
        roles += [("event_id", self.event_id)] if self.event_id is not None else []
        roles += [("numeric", field.name) for field in self.numeric] + [
            ("categorical", name) for name in self.categorical
        ]
        if self.place is not None:
            roles += [("place.latitude", self.place.latitude), ("place.longitude", self.place.longitude)]
        return roles + ([("label", self.label)] if self.label is not None else [])

    def columns(self) -> list[str]:
        """All columns that are read, in a fixed order: time, entity, event id, numbers, categories, place. No label."""
        return list(dict.fromkeys(column for role, column in self._roles() if role != "label"))

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """The columns that name the entities of each view."""
        return tuple((key,) if isinstance(key, str) else key for key in self.entity)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that name the entities of the first view; () = the whole table is one sequence."""
        return self.keys[0] if self.entity else ()

    @property
    def views(self) -> tuple[Schema, ...]:
        """The schema of each view: one key, and as categories all that are not part of it; () without an entity.

        Examples
        --------
        >>> both = Schema(time="when", entity=["card", "shop"], categorical=["shop", "country"])
        >>> [(view.key, view.categorical) for view in both.views]
        [(('card',), ('shop', 'country')), (('shop',), ('country',))]
        """
        if len(self.entity) == 1:
            return (self,)
        return tuple(
            self.model_copy(
                update={"entity": (one,), "categorical": tuple(c for c in self.categorical if c not in key)}
            )
            for one, key in zip(self.entity, self.keys, strict=True)
        )

    @property
    def view_names(self) -> tuple[str, ...]:
        """What the views are called: their columns, joined by "+"."""
        return tuple("+".join(key) for key in self.keys)

    @classmethod
    def from_toml(cls, path: str | Path) -> Schema:
        """Reads the ``[schema]`` table of a TOML file; other tables are left alone.

        Raises
        ------
        SchemaError
            If the file is absent, is no TOML, has no ``[schema]`` table, or the schema does not hold together.
        """
        try:
            with Path(path).open("rb") as file:
                tables = tomllib.load(file)
        except OSError as error:
            raise SchemaError(
                f"{path}: no schema can be read ({error.strerror}); `anomaly init FILE` writes one"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SchemaError(f"{path}: not a TOML file ({error})") from None
        if not isinstance(tables.get("schema"), dict):
            raise SchemaError(f"{path}: no [schema] table; tables there are: {', '.join(tables) or 'none'}")
        try:
            return cls(**tables["schema"])
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from None

    def to_toml(self, comments: Mapping[str, str] | None = None) -> str:
        """The ``[schema]`` table as text; `from_toml` reads it back.

        Parameters
        ----------
        comments : mapping of str to str, optional
            What `infer_schema` returns as reasons: comments by key (``time``, ``numeric.amount``, ...), written at the
            end of the line; those of columns left out (``left_out.<column>``) get a line of their own.

        Examples
        --------
        >>> schema = Schema(time="ts", numeric=(NumericField(name="value", scale="linear"),))
        >>> print(schema.to_toml({"time": "its values are times"}))
        [schema]
        time = "ts"  # its values are times
        entity = []
        categorical = []
        time_zone = "UTC"
        time_unit = "s"
        decimal = "."
        <BLANKLINE>
        [[schema.numeric]]
        name = "value"
        scale = "linear"
        tail = "both"
        <BLANKLINE>
        """
        notes = comments or {}
        lines = ["[schema]", _line("time", self.time, notes), _line("entity", self.entity, notes)]
        lines += [_line("event_id", self.event_id, notes)] if self.event_id is not None else []
        lines += self._categorical_lines(notes)
        if self.place is not None:
            pair = f"{{ latitude = {_quoted(self.place.latitude)}, longitude = {_quoted(self.place.longitude)} }}"
            lines.append(f"place = {pair}{_comment(notes.get('place'))}")
        lines += [_line("label", self.label, notes)] if self.label is not None else []
        lines += [_line(key, getattr(self, key), notes) for key in ("time_zone", "time_unit", "decimal")]
        left_out = [(key.removeprefix("left_out."), why) for key, why in notes.items() if key.startswith("left_out.")]
        lines += [f"# left out: {_one_line(column)} ({_one_line(why)})" for column, why in left_out]
        for field in self.numeric:
            lines += [
                "",
                "[[schema.numeric]]",
                f"name = {_quoted(field.name)}{_comment(notes.get(f'numeric.{field.name}'))}",
            ]
            lines += [f"scale = {_quoted(field.scale)}", f"tail = {_quoted(field.tail)}"]
        return "\n".join(lines) + "\n"

    def _categorical_lines(self, notes: Mapping[str, str]) -> list[str]:
        if not any(f"categorical.{name}" in notes for name in self.categorical):
            return [_line("categorical", self.categorical, notes)]
        items = [f"    {_quoted(name)},{_comment(notes.get(f'categorical.{name}'))}" for name in self.categorical]
        return ["categorical = [", *items, "]"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _comment(text: str | None) -> str:
    return f"  # {_one_line(text)}" if text else ""


def _line(key: str, value: str | tuple[Any, ...] | None, notes: Mapping[str, str]) -> str:
    return f"{key} = {_said(value)}{_comment(notes.get(key))}"


def _said(value: str | tuple[Any, ...] | None) -> str:
    """A text, or a list of texts and lists."""
    if not isinstance(value, tuple):
        return _quoted(str(value))
    return f"[{', '.join(map(_said, value))}]"


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def infer_schema(frame: pl.DataFrame) -> tuple[Schema, dict[str, str]]:
    """Guesses a schema from the first rows of a table, and says why.

    Parameters
    ----------
    frame : polars.DataFrame
        The first rows, typed or as text; a few thousand are plenty, a few do.

    Returns
    -------
    schema : Schema
        The guess.
    reasons : dict of str to str
        The reason of each guess, for `Schema.to_toml`: keyed like the schema, with ``numeric.<column>``,
        ``categorical.<column>`` and ``left_out.<column>`` for single columns.

    Raises
    ------
    InputError
        If there is no row.
    SchemaError
        If no column can be a time.

    Examples
    --------
    Labels are recognised, and left out:

    >>> head = pl.DataFrame({
    ...     "TX_DATETIME": ["2018-04-01 00:00:31", "2018-04-01 00:02:10", "2018-04-01 00:07:56"],
    ...     "CUSTOMER_ID": [596, 4961, 596], "TX_AMOUNT": [57.16, 81.51, 146.0],
    ...     "TX_FRAUD": [0, 0, 0], "TX_FRAUD_SCENARIO": [0, 0, 0],
    ... })
    >>> schema, reasons = infer_schema(head)
    >>> schema.time, schema.key, schema.numeric[0].scale, schema.label, schema.categorical
    ('TX_DATETIME', ('CUSTOMER_ID',), 'log', 'TX_FRAUD', ())
    >>> reasons["left_out.TX_FRAUD_SCENARIO"]
    'by its name another label; a label is never a feature'
    """
    guesses, reasons = guess(frame)
    return Schema(**guesses), reasons


def check_columns(schema: Schema, available: Sequence[str], source: str) -> None:
    """Refuses a table that lacks a column of the schema. The label may be absent; further columns are ignored.

    Parameters
    ----------
    schema : Schema
        What is needed.
    available : sequence of str
        The columns that the table has.
    source : str
        The table's name, for the message.

    Raises
    ------
    SchemaError
        Names every missing column with its role, the closest name, and the columns there are.

    Examples
    --------
    >>> check_columns(Schema(time="when", entity=("card_id",)), ["when", "Card_ID", "amount"], "june.csv")
    Traceback (most recent call last):
        ...
    anomaly.errors.SchemaError: june.csv has no column 'card_id' (entity; did you mean 'Card_ID'?). Columns there are:
    when, Card_ID, amount
    """
    missing = []
    roles = {column: role for role, column in reversed(schema._roles())}
    for column in schema.columns():
        role = roles[column]
        if column not in available:
            hint = _closest(column, available).strip(" ()")
            missing.append(f"{column!r} ({role}; {hint})" if hint else f"{column!r} ({role})")
    if missing:
        many = "columns" if len(missing) > 1 else "column"
        there = ", ".join(available) if available else "none"
        raise SchemaError(f"{source} has no {many} {', '.join(missing)}. Columns there are: {there}")
