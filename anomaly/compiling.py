"""Compiling: arithmetic on single events as machine code, where a call into a library costs more than what it computes.

numba compiles such functions when they first meet their arguments, and keeps the result beside their file, or in the
user's cache where that folder cannot be written (NUMBA_CACHE_DIR names another). What it keeps is known by the function
and the file that it stands in, and by nothing else. So a compiled function takes what it needs as arguments: it calls
only functions of its own file and those of this one, and reads no constant that another file defines, or an old result
would outlive a change.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numba.extending
from numba.core import event, types
from numba.experimental import structref

Given = ParamSpec("Given")
Found = TypeVar("Found")

Held = Any  # has the fields of what it holds; see `holder`
PATIENCE = 2.0  # seconds after which a user is told what takes so long
# x / 0 is infinity, as in numpy, and costs no test.
_OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}
_njit: Any = numba.njit  # its types do not know all of its options
_intrinsic: Any = numba.extending.intrinsic


def compiled(function: Callable[Given, Found], fast: Any = False) -> Callable[Given, Found]:
    """A function of numbers and arrays as machine code, to be called from Python, by several threads at once.

    `fast` names what LLVM may assume of floats; by default nothing, so that NaN is NaN and each sum is as written.
    """
    options = {**_OPTIONS, "fastmath": fast, "nogil": True}
    try:
        # What numba keeps has a name with the function's in it: with the state of its file in it too, nothing that
        # another version of the file has left behind is ever read.
        function.__qualname__ += f"_{_digest(function.__code__.co_filename)}"
        made = _njit(cache=True, **options)(function)
    except (OSError, RuntimeError):  # no file, or no folder to keep it in: then it is compiled in each process
        made = _njit(**options)(function)
    return cast("Callable[Given, Found]", made)


@cache
def _digest(path: str) -> str:
    """Of the contents of a file and of this one, read once for all functions in it."""
    return blake2b(Path(path).read_bytes() + Path(__file__).read_bytes(), digest_size=4).hexdigest()


@_intrinsic  # type: ignore[untyped-decorator]
def fma(context: Any, x: Any, y: Any, z: Any) -> Any:  # noqa: ARG001
    """Product of `x` and `y` plus `z`, float32, rounded once: alone as in a vector, so no last bit comes and goes."""
    if not all(one == types.float32 for one in (x, y, z)):
        raise TypeError(f"fma: expected three float32, got {x}, {y}, {z}")

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        return builder.fma(*given)

    return types.float32(x, y, z), made


@_intrinsic  # type: ignore[untyped-decorator]
def widely(context: Any) -> Any:  # noqa: ARG001
    """Let the function that says so work in vectors as wide as the processor has, where half as wide is the default."""

    def made(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ARG001
        # llvmlite writes attributes as they are, and knows but a few of them.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), made


def part(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """A function that only compiled functions of its own file call, each operation as it is written."""
    return _part(function, fastmath=False)


def loose_part(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """As `part`, where the last bits do not matter: sums may be added up in any order, and so are vectorised.

    A product goes into a sum unrounded. NaN and infinity stay what they are.
    """
    return _part(function, fastmath={"contract", "reassoc", "nsz"})


def _part(function: Callable[Given, Found], *, fastmath: Any) -> Callable[Given, Found]:
    # What Python would need to call it takes longer to compile than what it does.
    made = _njit(no_cpython_wrapper=True, fastmath=fastmath, **_OPTIONS)(function)
    return cast("Callable[Given, Found]", made)


def holder(name: str, module: str, *shapes: type[tuple[Any, ...]]) -> Any:
    """Make a class that holds the fields of some named tuples for compiled functions.

    An array costs a fifth of a microsecond each time that it is handed over, whatever is done with it then; what is
    held is handed over in one piece, and compiled functions read ``held.field``. The arrays are those of the tuples,
    not copies. Only a compiled function can make one: ``HeldBench(*fields)``.

    Parameters
    ----------
    name, module : str
        Of the class; its type has the same name, with ``Type`` behind it, in that module.
    shapes : named tuples
        Classes whose fields it has, in this order; no two alike.
    """
    fields = [field for shape in shapes for field in shape._fields]  # type: ignore[attr-defined]
    kind = type(f"{name}Type", (_HeldType,), {"__module__": module})
    structref.register(kind)  # type: ignore[no-untyped-call]
    made = type(name, (structref.StructRefProxy,), {"__module__": module, "__new__": _refuse})
    structref.define_proxy(made, kind, fields)  # type: ignore[no-untyped-call]
    setattr(sys.modules[module], f"{name}Type", kind)  # where numba's cache looks for it
    return made


class _HeldType(types.StructRef):
    def preprocess_fields(self, fields: Any) -> Any:
        """Constants are of the type of their like, or each would make a type of its own."""
        return tuple((name, types.unliteral(kind)) for name, kind in fields)  # type: ignore[no-untyped-call]


def _refuse(cls: type, *_: Any) -> Any:
    raise TypeError(f"{cls.__name__}: only a compiled function can make one")


class _Teller(event.Listener):
    """Says what is being compiled as soon as that has gone on for `PATIENCE`."""

    def __init__(self, what: str) -> None:
        self.words = (
            f"{what}: compiling for this processor; it takes ten to twenty seconds, once, where a cache can be written"
        )
        self.compiling = 0
        self.timer: threading.Timer | None = None

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        """Something is being compiled, which was not found in the cache."""
        self.compiling += 1
        if self.timer is None:
            self.timer = threading.Timer(PATIENCE, self.tell)
            self.timer.daemon = True
            self.timer.start()

    def on_end(self, event: Any) -> None:  # noqa: ARG002
        """It is compiled."""
        self.compiling -= 1

    def tell(self) -> None:
        """Say it, unless all is compiled by now."""
        if self.compiling:
            print(self.words, file=sys.stderr, flush=True)  # noqa: T201
        else:
            self.timer = None


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Tell on standard error what is being compiled, if it takes longer than `PATIENCE`."""
    teller = _Teller(what)
    with event.install_listener("numba:compile", teller):
        try:
            yield
        finally:
            if teller.timer is not None:
                teller.timer.cancel()
