"""The errors that `anomaly` raises on purpose.

Every one of them derives from `AnomalyError`, and also from the builtin that a careful caller would have caught anyway,
so ``except ValueError`` keeps working. The classes differ by what the caller can do next, not by where they arise::

    AnomalyError                        anything below; the command line answers with exit code 2
    ├── SchemaError     (ValueError)    a column is wrong or missing: correct the schema or the table
    ├── InputError      (ValueError)    the data cannot be read, or holds no event: correct the file or the event
    ├── ParameterError  (ValueError)    an argument is out of its range: correct the call
    ├── NotFittedError  (RuntimeError)  asked for results before `fit`: fit first
    ├── ArtifactError   (ValueError)    a saved detector is of an unknown format, changed or incomplete: save it again
    ├── OrderError      (ValueError)    a live event is older than its entity's last one: hold events back and sort them
    └── PackageError    (ImportError)   an optional package is not installed: install the extra that the message names

A message says who refuses, what was expected, what was found, and what to do instead. A bad row among good ones is no
error: it lands in the rejects with its reason (see `anomaly.ingest`).

Examples
--------
>>> issubclass(SchemaError, ValueError) and issubclass(SchemaError, AnomalyError)
True
"""

from __future__ import annotations

__all__ = [
    "AnomalyError",
    "ArtifactError",
    "InputError",
    "NotFittedError",
    "OrderError",
    "PackageError",
    "ParameterError",
    "SchemaError",
]


class AnomalyError(Exception):
    """Base of every error that this package raises on purpose."""


class SchemaError(AnomalyError, ValueError):
    """A schema does not hold together, or the table lacks one of its columns."""


class InputError(AnomalyError, ValueError):
    """A source cannot be read, holds no event, or a single event is refused."""


class ParameterError(AnomalyError, ValueError):
    """An argument is outside what the function accepts."""


class NotFittedError(AnomalyError, RuntimeError):
    """A result was asked for before `fit`."""


class ArtifactError(AnomalyError, ValueError):
    """A saved detector has an unknown format, a changed part, or a missing one."""


class OrderError(AnomalyError, ValueError):
    """A live event is older than the newest event already seen of its entity."""


class PackageError(AnomalyError, ImportError):
    """A package that only some uses need is not installed."""
