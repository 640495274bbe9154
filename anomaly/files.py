"""Files written whole or not at all, and values as JSON knows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it takes the place of `path` when the block ends well.

    Whatever happens in between, `path` holds all of the old or all of the new, and no half stays behind.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def json_value(value: Any) -> Any:
    """The same with plain JSON values: None for what JSON has no number for, text for paths and times.

    Examples
    --------
    >>> json_value({"share": float("nan"), "where": (Path("a"), 1)})
    {'share': None, 'where': ['a', 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value
