"""Show the whole path on simulated card payments.

As in::

    python3 scripts/demo.py  (which makes the environment in .venv first if need be)
"""

from __future__ import annotations

import sys

from _environment import ensure, inside, run_inside


def main() -> int:
    """Run the demo inside the project's environment and return its exit code."""
    python = ensure(())
    if not inside():
        return run_inside(python, __file__, sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
