"""The shape of the project, read from its source: import order, rooms, sizes, the public surface, the README's tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

import anomaly

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("anomaly", "scripts", "tests")
LONGEST_FILE = 600
LONGEST_FUNCTION = 60  # lines, the docstring not counted

# A module imports only from modules named before it. A new module gets its place here, as high up as it can go.
ORDER = (
    "errors",
    "files",
    "compiling",
    "loops",
    "values",
    "columns",
    "guessing",
    "schema",
    "sources",
    "ingest",
    "sequences",
    "entity_state",
    "features",
    "labels",
    "scenes",
    "episodes",
    "injections",
    "frauds",
    "calibration",
    "evidence",
    "population",
    "scorer",
    "single",
    "score_table",
    "rehearsal",
    "history",
    "progress",
    "artifacts",
    "models.kernels",
    "models.gathers",
    "models.batches",
    "models.backbones",
    "models.cells",
    "models.likelihood",
    "models.heads",
    "models.training",
    "models.base",
    "models.forecaster",
    "models.autoencoder",
    "models.abreast",
    "models.program",
    "models.plain",
    "models.probabilities",
    "models.objectives",
    "models.bins",
    "models.members",
    "models.labelled",
    "models.learning",
    "models.supervised",
    "models.classifier",
    "models.baselines",
    "models",
    "thresholds.cases",
    "thresholds.heldout",
    "thresholds.base",
    "thresholds.rates",
    "thresholds.discovery",
    "thresholds.extremes",
    "thresholds.cost",
    "thresholds.usual",
    "thresholds",
    "alerts",
    "breakdown",
    "rescoring",
    "explain",
    "wording",
    "figures",
    "case_figures",
    "casework",
    "drift",
    "printing",
    "report_data",
    "report",
    "masking",
    "export",
    "digest",
    "recalibration",
    "counterfactual",
    "scoring",
    "detector",
    "pilot",
    "views",
    "partitions",
    "event_story",
    "event_figure",
    "stream",
    "evaluation",
    "bootstrap",
    "comparison_measures",
    "comparison_world",
    "comparison_scorers",
    "comparison",
    "comparison_figures",
    "comparison_page",
    "simulator",
    "terminal",
    "telling",
    "verbs",
    "inputs",
    "cli",
    "__main__",
)

# The modules that may import a library: one library, one room. A new library needs a line here and in pyproject.toml.
EVERYWHERE = ORDER
MODELS = tuple(name for name in ORDER if name.startswith("models"))
THRESHOLDS = tuple(name for name in ORDER if name.startswith("thresholds"))
ROOMS: dict[str, tuple[str, ...]] = {
    "connectorx": ("sources",),
    "jinja2": ("report",),
    "markupsafe": ("report", "comparison_page"),  # comes with jinja2
    "matplotlib": ("figures", "event_figure", "comparison_figures"),
    "numba": ("compiling",),
    "numpy": EVERYWHERE,
    "pandas": ("sources",),
    "polars": (
        *("values", "columns", "guessing", "schema", "sources", "ingest", "features", "scenes", "injections", "alerts"),
        *(
            "score_table",
            "scoring",
            "history",
            "breakdown",
            "rescoring",
            "explain",
            "counterfactual",
            "wording",
            "casework",
            "drift",
            "report_data",
            "report",
            "masking",
            "export",
            "digest",
            "recalibration",
            "views",
            "detector",
            "pilot",
            "partitions",
            "event_story",
            "evaluation",
            "comparison_measures",
            "comparison_world",
            "comparison_scorers",
            "comparison",
            "comparison_page",
            "simulator",
            "terminal",
            "telling",
            "verbs",
            "inputs",
            "cli",
        ),
    ),
    "pyarrow": ("sources",),
    "pydantic": ("schema",),
    "rich": ("progress", "terminal", "verbs"),
    "safetensors": ("artifacts", "models.training"),
    "scipy": (
        "calibration",
        "evidence",
        "models.probabilities",
        *THRESHOLDS,
        "casework",
        "drift",
        "digest",
        "evaluation",
    ),
    "sklearn": ("models.baselines",),
    "torch": (*MODELS, "explain"),
    "typer": ("verbs", "cli"),
    "xgboost": ("models.baselines",),
}

# Saved Python objects run code when they are loaded.
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"torch.load", "torch.save", "read_pickle", "to_pickle"}


def source_files(*folders: str) -> list[Path]:
    """All Python files below the named folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """anomaly/models/base.py -> models.base, anomaly/models/__init__.py -> models, anomaly/__init__.py -> __init__."""
    parts = path.relative_to(ROOT / "anomaly").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


@cache
def package() -> dict[str, Path]:
    return {module_name(path): path for path in source_files("anomaly")}


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all imports, those inside functions and for types alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def order_faults(module: str, tree: ast.Module) -> list[str]:
    """Imports of `module` that do not lead to a module above it."""
    faults = []
    for line, name in imported(tree):
        place = f"anomaly.{module}, line {line}: "
        if name.startswith("."):
            faults.append(f"{place}relative import {name}; write `from anomaly.x import y`")
        elif name.split(".")[0] == "anomaly":
            owner = owning_module(name)
            if owner is None:
                faults.append(f"{place}{name} is no module; import from the module that owns the name")
            elif ORDER.index(owner) >= ORDER.index(module):
                faults.append(f"{place}imports anomaly.{owner}, which is not above it")
    return faults


def owning_module(name: str) -> str | None:
    """anomaly.models.base.Model -> models.base; None if the name is not below a module in ORDER."""
    parts = name.split(".")[1:]
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in ORDER), None)


def room_faults(module: str, tree: ast.Module) -> list[str]:
    """Libraries that `module` imports although it is not among their rooms."""
    faults = []
    for line, name in imported(tree):
        library = name.split(".")[0]
        place = f"anomaly.{module}, line {line}: "
        if library in ("", "anomaly") or library in sys.stdlib_module_names:
            continue
        if library not in ROOMS:
            faults.append(f"{place}{library} has no room; name its modules in ROOMS")
        elif module not in ROOMS[library]:
            faults.append(f"{place}{library} belongs to {', '.join(ROOMS[library])}")
    return faults


def unsafe_faults(tree: ast.Module) -> list[str]:
    """Ways in which a file could save or load Python objects."""
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    faults = []
    for line, name in imported(tree):
        if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS:
            faults.append(f"line {line}: imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = names.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            if f"{owner}.{node.attr}" in UNSAFE_CALLS or node.attr in UNSAFE_CALLS:
                faults.append(f"line {node.lineno}: uses {node.attr}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            faults.append(f"line {node.value.lineno}: allow_pickle")
    return faults


def long_functions(tree: ast.Module) -> list[str]:
    """Functions over the limit, by name and number of lines."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if length > LONGEST_FUNCTION:
                faults.append(f"{node.name}, line {node.lineno}: {length} lines")
    return faults


def tree_in(text: str) -> set[str]:
    """Paths that a drawn tree names, from the block of lines around the one for `anomaly/`.

    One path a line, then its caption; the depth is the indentation, drawn with spaces or with lines.
    """
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip() and not line.strip().startswith("```"):
            block.append(line)
        elif any(re.match(r"\W*anomaly/(\s|$)", line) for line in block):
            break
        else:
            block = []
    paths: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in block:
        found = re.match(r"[\s│├└─|`+-]*", line)
        depth = found.end() if found else 0
        name = line[depth:].split()[0]
        above = [(column, folder) for column, folder in above if column < depth]
        paths.add(str(PurePosixPath(*(folder for _, folder in above), name)))
        if name.endswith("/"):
            above.append((depth, name))
    return paths


def test_every_module_has_its_place_in_the_order() -> None:
    strangers = sorted(package().keys() - {*ORDER, "__init__"})
    assert not strangers, f"new modules {strangers}: add them to ORDER in tests/test_architecture.py"


def test_imports_run_upward_only() -> None:
    faults = [
        fault
        for module, path in package().items()
        if module in ORDER  # anomaly/__init__.py is the surface and leads to all of them
        for fault in order_faults(module, parsed(path))
    ]
    assert not faults, "\n".join(faults)


def test_one_library_one_room() -> None:
    faults = [fault for module, path in package().items() for fault in room_faults(module, parsed(path))]
    assert not faults, "\n".join(faults)


def test_no_python_objects_are_saved_or_loaded() -> None:
    faults = [f"{short(path)}, {fault}" for path in source_files(*FOLDERS) for fault in unsafe_faults(parsed(path))]
    assert not faults, "\n".join(faults)


def test_no_file_is_too_long() -> None:
    files = source_files(*FOLDERS) + [path for path in (ROOT / "anomaly" / "templates").rglob("*") if path.is_file()]
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    faults = [f"{path}: {length} lines" for path, length in lengths.items() if length > LONGEST_FILE]
    assert not faults, "\n".join(faults)


def test_no_function_is_too_long() -> None:
    faults = [f"{short(path)}, {fault}" for path in source_files(*FOLDERS) for fault in long_functions(parsed(path))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "start",
    [
        "import anomaly",
        "import anomaly; anomaly.AnomalyError",
        "from anomaly.cli import app; app(['--help'], standalone_mode=False)",
        "from anomaly.cli import app; app(['score', '--help'], standalone_mode=False)",
    ],
)
def test_what_is_not_needed_is_not_imported(start: str) -> None:
    """Heavy libraries take a second each: the package and its help answer without them."""
    heavy = ("torch", "polars", "numba", "numpy", "scipy", "matplotlib", "safetensors", "jinja2")
    question = f"{start}; import sys; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_the_public_names_are_sorted_and_exist() -> None:
    assert list(anomaly.__all__) == sorted(set(anomaly.__all__))
    missing = [name for name in anomaly.__all__ if not hasattr(anomaly, name)]
    assert not missing


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    """A folder's line stands for its __init__.py, except for the surface, anomaly/__init__.py."""
    readme = ROOT / "README.md"
    drawn = tree_in(readme.read_text(encoding="utf-8")) if readme.exists() else set()
    assert drawn, "there is no README.md with a tree that has a line for anomaly/"
    modules = {short(path) for path in package().values()}
    modules = {name for name in modules if name == "anomaly/__init__.py" or not name.endswith("/__init__.py")}
    listed = {name for name in drawn if name.startswith("anomaly/") and name.endswith(".py")}
    assert sorted(listed - modules) == [], "in the README, not on disk"
    assert sorted(modules - listed) == [], "on disk, not in the README"
    assert [name for name in sorted(drawn) if not (ROOT / name).exists()] == [], "in the README, not on disk"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from anomaly.errors import InputError", 0),
        ("import anomaly.errors", 0),
        ("from anomaly.models.base import Model", 0),
        ("from anomaly.alerts import build_cases", 1),
        ("from anomaly import alerts", 1),
        ("from anomaly import thresholds", 1),
        ("from anomaly import Detector", 1),
        ("import anomaly", 1),
        ("from .errors import InputError", 1),
        ("from . import errors", 1),
        ("def f():\n    from anomaly.cli import main", 1),
        ("if TYPE_CHECKING:\n    from anomaly.stream import Stream", 1),
    ],
)
def test_the_reader_of_imports_sees(source: str, expected: int) -> None:
    assert len(order_faults("thresholds", ast.parse(source))) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import numpy as np\nimport scipy.stats\nimport json", 0),
        ("from torch import Tensor", 1),
        ("import polars as pl", 1),
        ("def f():\n    import matplotlib.pyplot", 1),
        ("import requests", 1),
    ],
)
def test_the_reader_of_rooms_sees(source: str, expected: int) -> None:
    assert len(room_faults("thresholds", ast.parse(source))) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("np.load(path)\nnp.load(path, allow_pickle=False)\njson.load(file)", 0),
        ("import pickle", 1),
        ("from joblib import dump", 1),
        ("import torch\ntorch.load(path)", 1),
        ("import torch as t\nt.save(model, path)", 1),
        ("from torch import load", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("frame.to_pickle(path)", 1),
    ],
)
def test_the_reader_of_saved_objects_sees(source: str, expected: int) -> None:
    assert len(unsafe_faults(ast.parse(source))) == expected


def test_a_docstring_does_not_make_a_function_long() -> None:
    body = "    x = 1\n" * (LONGEST_FUNCTION - 1)
    assert long_functions(ast.parse(f"def f():\n{body}")) == []
    assert long_functions(ast.parse(f'def f():\n    """One.\n\n    Two.\n    """\n{body}')) == []
    assert long_functions(ast.parse(f"def f():\n{body}    x = 2\n")) == [f"f, line 1: {LONGEST_FUNCTION + 1} lines"]


@pytest.mark.parametrize(
    "text",
    [
        "Layout\n\n    a.toml        settings\n    anomaly/\n      b.py        b/ of `c`\n      models/     more\n"
        "        d.py\n      e.py\n    scripts/\n\nmore text about anomaly/\n",
        "Layout\n```text\na.toml\nanomaly/\n├── b.py    words\n├── models/\n│   └── d.py\n└── e.py\nscripts/\n```\n",
    ],
)
def test_both_ways_to_draw_a_tree_are_read(text: str) -> None:
    assert tree_in(text) == {
        "a.toml",
        "anomaly",
        "anomaly/b.py",
        "anomaly/models",
        "anomaly/models/d.py",
        "anomaly/e.py",
        "scripts",
    }


def test_a_text_without_a_tree_has_none() -> None:
    assert tree_in("# anomaly\n\nNothing is drawn here.\n") == set()
