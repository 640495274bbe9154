"""``python -m anomaly``: the same as the command ``anomaly``."""

from __future__ import annotations

from anomaly.cli import main

if __name__ == "__main__":
    main()
