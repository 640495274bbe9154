"""anomaly: finds fraud and other anomalies in event sequences per entity, without labels.

>>> from anomaly import Detector, Schema, Stream
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch loads OpenMP: threads that wait by spinning make training ten times slower as soon as another process
# wants a core; threads that sleep cost a fifth on an idle machine. A value that is set already is left alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from anomaly.comparison import Comparison
    from anomaly.detector import Detector
    from anomaly.errors import AnomalyError
    from anomaly.ingest import Events, read_events
    from anomaly.schema import NumericField, Place, Schema, infer_schema
    from anomaly.simulator import SIMULATED_SCHEMA, simulate
    from anomaly.stream import Stream
    from anomaly.views import Views

_HOMES = {
    "AnomalyError": "errors",
    "Comparison": "comparison",
    "Detector": "detector",
    "Events": "ingest",
    "NumericField": "schema",
    "Place": "schema",
    "SIMULATED_SCHEMA": "simulator",
    "Schema": "schema",
    "Stream": "stream",
    "Views": "views",
    "infer_schema": "schema",
    "read_events": "ingest",
    "simulate": "simulator",
}

__all__ = [
    "AnomalyError",
    "Comparison",
    "Detector",
    "Events",
    "NumericField",
    "Place",
    "SIMULATED_SCHEMA",
    "Schema",
    "Stream",
    "Views",
    "infer_schema",
    "read_events",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch is slow to load, and `anomaly --help` does not need it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'anomaly' has no attribute {name!r}")
    return getattr(import_module(f"anomaly.{_HOMES[name]}"), name)
