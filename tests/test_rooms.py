"""The plan of the house (docs/house.md), held against every file of it by reading the syntax tree and nothing else.

Each rule is a function from a parsed file to the sentences it complains with, so that the rules are themselves tested on invented files.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "clinpeft"

CONTRACTS = frozenset({"errors", "tables", "recipe"})
"""What every room may import."""

MAY_IMPORT: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "tables": frozenset({"errors"}),
    "recipe": frozenset({"errors", "tables"}),
    **dict.fromkeys(
        (
            "sources",
            "corpora",
            "cohorts",
            "baselines",
            "tokens",
            "models",
            "evaluation",
            "registry",
        ),
        CONTRACTS,
    ),
    "adapters": CONTRACTS | {"models"},
    "training": CONTRACTS | {"tokens", "adapters"},
    "predictions": CONTRACTS | {"tokens", "models", "adapters"},
    "reports": CONTRACTS | {"registry"},
}
MAY_IMPORT["pipeline"] = frozenset(MAY_IMPORT)
MAY_IMPORT["search"] = CONTRACTS | {"pipeline", "registry"}
MAY_IMPORT["serving"] = CONTRACTS | {"tokens", "models", "adapters", "predictions", "registry"}
MAY_IMPORT["cli"] = frozenset(MAY_IMPORT)
MAY_IMPORT["__main__"] = CONTRACTS | {"cli"}

TENSOR_ROOMS = frozenset({"tokens", "models", "adapters", "training", "predictions", "serving"})
TENSOR_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors.torch",
)

OUTSIDE_ROOMS = frozenset({"cli", "sources", "models", "serving"})
OUTSIDE = (
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime"),
    *(
        "datetime.datetime.now",
        "datetime.datetime.utcnow",
        "datetime.datetime.today",
        "datetime.date.today",
    ),
    *("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.path.expandvars"),
    *(
        "socket",
        "urllib.request",
        "http",
        "ftplib",
        "smtplib",
        "requests",
        "httpx",
        "aiohttp",
        "huggingface_hub",
    ),
)
"""The clock, the environment, the network. A stopwatch (``time.monotonic``, ``time.perf_counter``) tells no time of day and is free."""

NOWHERE = (
    "pandas",
    "evaluate",
    "pickle",
    "transformers.Trainer",
    "transformers.trainer",
    "importlib.import_module",
)
NAMES_THAT_SAY_NOTHING = frozenset(
    {
        "util",
        "utils",
        "helper",
        "helpers",
        "manager",
        "handler",
        "processor",
        "wrapper",
        "common",
        "misc",
    }
)
LONGEST_BODY = 60
LONGEST_FILE = 500

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Room:
    """One file of the house: the room it belongs to, its text, its syntax tree."""

    name: str
    file: Path
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.file}:{getattr(node, 'lineno', 1)}"


def opened(file: Path, text: str) -> Room:
    """A file of the house, ``file`` given from the package's folder."""
    return Room(file.parts[0].removesuffix(".py"), file, text, ast.parse(text))


@functools.cache
def house() -> tuple[Room, ...]:
    return tuple(
        opened(path.relative_to(HOUSE), path.read_text(encoding="utf-8"))
        for path in sorted(HOUSE.rglob("*.py"))
    )


def imports(room: Room) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, local name, dotted name) for all that a file imports, wherever in the file it does so."""
    for node in ast.walk(room.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield (
                    node,
                    alias.asname or alias.name,
                    f"{'.' * node.level}{node.module or ''}.{alias.name}",
                )


def mentions(room: Room) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) for what is imported and for every attribute chain that begins at an imported name."""
    known: dict[str, str] = {}
    for node, local, dotted in imports(room):
        plain = isinstance(node, ast.Import) and "." in dotted and local == dotted.partition(".")[0]
        known[local] = local if plain else dotted
        yield node, dotted
    for node in ast.walk(room.tree):
        chain = _chain(node)
        if chain and chain[0] in known:
            yield node, ".".join([known[chain[0]], *chain[1:]])
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield node, "importlib.import_module"


def _chain(node: ast.AST) -> list[str]:
    """``a.b.c`` as its names; empty for anything else."""
    if isinstance(node, ast.Attribute):
        before = _chain(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


def _under(dotted: str, names: tuple[str, ...]) -> bool:
    return any(dotted == name or dotted.startswith(f"{name}.") for name in names)


def imports_within_the_table(room: Room) -> Iterator[str]:
    for node, _, dotted in imports(room):
        parts = dotted.split(".")
        if dotted.startswith("."):
            yield f"{room.at(node)}: relative import; say clinpeft.<room>"
        elif (
            parts[0] == "clinpeft"
            and len(parts) > 1
            and parts[1] not in {room.name, "__version__", *MAY_IMPORT.get(room.name, ())}
        ):
            yield f"{room.at(node)}: {room.name} may not import {parts[1]}"


def stands_in_the_table(room: Room) -> Iterator[str]:
    if room.name != "__init__" and room.name not in MAY_IMPORT:
        yield f"{room.file}: {room.name} is no room of the table"


def tensors_only_in_their_rooms(room: Room) -> Iterator[str]:
    if room.name not in TENSOR_ROOMS:
        yield from (
            f"{room.at(node)}: {room.name} may not use {dotted}"
            for node, dotted in mentions(room)
            if _under(dotted, TENSOR_LIBRARIES)
        )


def outside_only_at_the_doors(room: Room) -> Iterator[str]:
    if room.name not in OUTSIDE_ROOMS:
        yield from (
            f"{room.at(node)}: {dotted} belongs to a door of the house"
            for node, dotted in mentions(room)
            if _under(dotted, OUTSIDE)
        )


def nothing_that_is_banned(room: Room) -> Iterator[str]:
    yield from (
        f"{room.at(node)}: {dotted} is not used here, see docs/dependencies.md"
        for node, dotted in mentions(room)
        if _under(dotted, NOWHERE)
    )


def definitions(room: Room) -> Iterator[Definition]:
    yield from (node for node in ast.walk(room.tree) if isinstance(node, Definition))


def names_that_say_something(room: Room) -> Iterator[str]:
    named = [(str(room.file), part.removesuffix(".py")) for part in room.file.parts]
    named += [(room.at(node), node.name) for node in definitions(room)]
    for location, name in named:
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
        yield from (
            f"{location}: {name} says nothing with {word!r}"
            for word in words
            if word.lower() in NAMES_THAT_SAY_NOTHING
        )


def short_bodies(room: Room) -> Iterator[str]:
    for node in definitions(room):
        if isinstance(node, ast.ClassDef):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        if length > LONGEST_BODY:
            yield f"{room.at(node)}: {node.name} has {length} lines, {LONGEST_BODY} at most"


def short_files(room: Room) -> Iterator[str]:
    length = len(room.text.splitlines())
    if length > LONGEST_FILE:
        yield f"{room.file}: {length} lines, {LONGEST_FILE} at most; a room becomes a folder"


def public_things_explained(room: Room) -> Iterator[str]:
    if not ast.get_docstring(room.tree):
        yield f"{room.file}: the file has no docstring"
    yield from (
        f"{room.at(node)}: {name} has no docstring"
        for name, node in _public(room.tree, "")
        if not ast.get_docstring(node)
    )


def _public(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Public definitions of a file, methods of public classes among them; what stands inside a function is its own affair."""
    for node in parent.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{prefix}{node.name}.")


RULES: list[Callable[[Room], Iterator[str]]] = [
    stands_in_the_table,
    imports_within_the_table,
    tensors_only_in_their_rooms,
    outside_only_at_the_doors,
    nothing_that_is_banned,
    names_that_say_something,
    short_bodies,
    short_files,
    public_things_explained,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_of_the_house_keeps_the_rule(rule: Callable[[Room], Iterator[str]]) -> None:
    complaints = [complaint for room in house() for complaint in rule(room)]
    assert not complaints, "\n".join(complaints)


def test_the_house_is_not_empty() -> None:
    assert {"errors", "tables", "recipe"} <= {room.name for room in house()}


def test_the_table_has_no_cycle() -> None:
    order = list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())
    assert order.index("sources") < order.index("pipeline") < order.index("cli")
    assert "training" not in MAY_IMPORT["serving"]


def test_a_cycle_in_the_table_would_be_seen() -> None:
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({**MAY_IMPORT, "models": {"adapters"}}).static_order())


def test_the_page_says_what_is_enforced() -> None:
    page = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (yes|no) \| (yes|no) \|$", page, flags=re.MULTILINE)
    said = {room: frozenset(re.findall(r"`(\w+)`", allowed)) for room, allowed, _, _ in rows}
    everything_before = {
        "pipeline": MAY_IMPORT["pipeline"] - CONTRACTS,
        "cli": MAY_IMPORT["cli"] - CONTRACTS,
    }
    assert said == {
        room: frozenset() if room in everything_before else may - CONTRACTS
        for room, may in MAY_IMPORT.items()
        if room not in CONTRACTS
    }
    assert {room for room, _, tensors, _ in rows if tensors == "yes"} == TENSOR_ROOMS
    assert {room for room, _, _, outside in rows if outside == "yes"} == OUTSIDE_ROOMS


def _complaints(rule: Callable[[Room], Iterator[str]], file: str, text: str) -> list[str]:
    return list(rule(opened(Path(file), textwrap.dedent(text))))


VIOLATIONS = [
    (stands_in_the_table, "attic.py", "", "attic is no room"),
    (
        imports_within_the_table,
        "data/notes/files.py",
        "from clinpeft.data.notes.corpus import clean",
        "sources may not import corpora",
    ),
    (
        imports_within_the_table,
        "data/notes/files.py",
        "import clinpeft.data.notes.clean",
        "sources may not import corpora",
    ),
    (
        imports_within_the_table,
        "serving.py",
        "from clinpeft import training",
        "serving may not import training",
    ),
    (
        imports_within_the_table,
        "models.py",
        "def load():\n    from clinpeft.adapters import attach",
        "models may not import adapters",
    ),
    (
        imports_within_the_table,
        "tables.py",
        "from clinpeft.recipe import Recipe",
        "tables may not import recipe",
    ),
    (imports_within_the_table, "registry.py", "from .errors import InputError", "relative import"),
    (
        tensors_only_in_their_rooms,
        "data/cohorts/task.py",
        "def later():\n    import torch.nn",
        "cohorts may not use torch.nn",
    ),
    (
        tensors_only_in_their_rooms,
        "registry.py",
        "from safetensors import torch",
        "safetensors.torch",
    ),
    (
        tensors_only_in_their_rooms,
        "registry.py",
        "import safetensors.torch as tensors",
        "safetensors.torch",
    ),
    (
        outside_only_at_the_doors,
        "registry.py",
        "import datetime as dt\nnow = dt.datetime.now()",
        "datetime.datetime.now",
    ),
    (
        outside_only_at_the_doors,
        "registry.py",
        "from datetime import datetime\nnow = datetime.now()",
        "datetime.datetime.now",
    ),
    (outside_only_at_the_doors, "training/trainer.py", "from time import time", "time.time"),
    (outside_only_at_the_doors, "tokens.py", "import os\nos.environ['A'] = '1'", "os.environ"),
    (outside_only_at_the_doors, "tokens.py", "import os.path\nos.environ['A'] = '1'", "os.environ"),
    (outside_only_at_the_doors, "reports/page.py", "import urllib.request", "urllib.request"),
    (outside_only_at_the_doors, "registry.py", "def fetch():\n    import socket", "socket"),
    (nothing_that_is_banned, "data/notes/files.py", "import pandas as pd", "pandas"),
    (
        nothing_that_is_banned,
        "training/trainer.py",
        "from transformers import Trainer",
        "transformers.Trainer",
    ),
    (
        nothing_that_is_banned,
        "training/trainer.py",
        "import transformers\ntransformers.Trainer()",
        "transformers.Trainer",
    ),
    (nothing_that_is_banned, "cli.py", "__import__('torch')", "importlib.import_module"),
    (names_that_say_something, "corpora/text_utils.py", "", "text_utils"),
    (names_that_say_something, "helpers/io.py", "", "helpers"),
    (names_that_say_something, "models.py", "class HTTPHandler: ...", "HTTPHandler"),
    (names_that_say_something, "models.py", "def _common_part(): ...", "_common_part"),
    (short_bodies, "models.py", "def load():\n" + "    x = 1\n" * 61, "61 lines"),
    (short_files, "models.py", "x = 1\n" * 501, "501 lines"),
    (public_things_explained, "models.py", "x = 1", "the file has no docstring"),
    (
        public_things_explained,
        "models.py",
        '"""A file."""\ndef load(): ...',
        "load has no docstring",
    ),
    (
        public_things_explained,
        "models.py",
        '"""A file."""\nclass Base:\n    """A base."""\n    def size(self): ...',
        "Base.size has no docstring",
    ),
]


@pytest.mark.parametrize(
    ("rule", "file", "text", "expected"),
    VIOLATIONS,
    ids=[f"{rule.__name__}-{said}" for rule, _, _, said in VIOLATIONS],
)
def test_a_violation_is_caught(
    rule: Callable[[Room], Iterator[str]], file: str, text: str, expected: str
) -> None:
    assert any(expected in complaint for complaint in _complaints(rule, file, text))


ALLOWED = [
    (stands_in_the_table, "data/notes/files.py", ""),
    (
        imports_within_the_table,
        "pipeline.py",
        "from clinpeft import sources, training\nfrom clinpeft.reports.page import render",
    ),
    (
        imports_within_the_table,
        "training/trainer.py",
        "from clinpeft.training.checkpoint import save\nfrom clinpeft.core.schemas import LIKELIHOOD",
    ),
    (imports_within_the_table, "registry.py", "from clinpeft import __version__"),
    (tensors_only_in_their_rooms, "tokens.py", "import torch"),
    (tensors_only_in_their_rooms, "registry.py", "import safetensors.numpy\nimport torchless"),
    (outside_only_at_the_doors, "training/trainer.py", "import time\nstart = time.perf_counter()"),
    (
        outside_only_at_the_doors,
        "data/cohorts/task.py",
        "from datetime import datetime\nat = datetime(2020, 1, 1)",
    ),
    (outside_only_at_the_doors, "cli.py", "import os\nos.environ"),
    (nothing_that_is_banned, "evaluation/perplexity.py", "def evaluate(): ...\nevaluate()"),
    (names_that_say_something, "evaluation/perplexity.py", "def uncommon_mishandled(): ..."),
    (
        short_bodies,
        "models.py",
        'def load():\n    """' + "Long.\n" * 70 + '    """\n' + "    x = 1\n" * 60,
    ),
    (short_files, "models.py", "x = 1\n" * 500),
    (
        public_things_explained,
        "models.py",
        '"""A file."""\ndef _load(): ...\ndef load():\n    """Load."""\n    def inner(): ...',
    ),
]


@pytest.mark.parametrize(
    ("rule", "file", "text"), ALLOWED, ids=[f"{rule.__name__}-{file}" for rule, file, _ in ALLOWED]
)
def test_what_is_allowed_is_not_caught(
    rule: Callable[[Room], Iterator[str]], file: str, text: str
) -> None:
    assert not _complaints(rule, file, text)


def test_every_rule_has_a_violation_and_an_allowance_of_its_own() -> None:
    assert {rule for rule, _, _, _ in VIOLATIONS} == set(RULES) == {rule for rule, _, _ in ALLOWED}


def test_cohorts_corpora_and_numbers_need_no_torch() -> None:
    """In a data enclave torch is not installed: the rooms around the tensors must come up without it."""
    rooms = sorted(
        {room.name for room in house()} - TENSOR_ROOMS - {"__init__", "pipeline", "search"}
    )
    script = textwrap.dedent("""
        import importlib, sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name in ("torch", "transformers", "peft", "accelerate", "tokenizers"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent())
    """) + "".join(f"importlib.import_module('clinpeft.{room}')\n" for room in rooms)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
