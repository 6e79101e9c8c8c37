"""The rules of docs/architecture.md, held against every file of the package.

Each rule is a function from a parsed file to its complaints, so that every rule is itself tested
on small texts that break it. The files are parsed and never imported.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import re
import subprocess
import sys
import textwrap
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "clinpeft"
PAGE = ROOT / "docs" / "architecture.md"

CONTRACTS = frozenset({"core", "recipe"})
"""What every package may import; ``core`` imports nothing, ``recipe`` only ``core``."""

MAY_IMPORT: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "recipe": frozenset({"core"}),
    "data.formats": CONTRACTS,
    "data.notes": CONTRACTS | {"data.formats"},
    "data.synthetic": CONTRACTS | {"data.formats", "data.notes"},
    "data.hospital": CONTRACTS | {"data.formats", "data.synthetic"},
    "data.cohorts": CONTRACTS,
    "data.retrieval": CONTRACTS | {"data.formats"},
    "data.textbooks": CONTRACTS | {"data.formats", "data.notes"},
    "data": CONTRACTS | {"data.formats", "data.notes", "data.synthetic"},
    **dict.fromkeys(("baselines", "tokenization", "runtime", "evaluation", "runs"), CONTRACTS),
    "models": CONTRACTS | {"runtime"},
    "adapters": CONTRACTS | {"models", "runtime"},
    "training": CONTRACTS | {"tokenization", "adapters", "runtime"},
    "inference": CONTRACTS | {"tokenization", "models", "adapters", "runtime"},
    "search": CONTRACTS | {"runs"},
    "reports": CONTRACTS | {"runs"},
}
MAY_IMPORT["workflows"] = frozenset(MAY_IMPORT)
MAY_IMPORT["cli"] = frozenset(MAY_IMPORT)
MAY_IMPORT["api"] = frozenset(MAY_IMPORT)
MAY_IMPORT["__main__"] = CONTRACTS | {"cli"}

TENSOR_PACKAGES = frozenset(
    {"tokenization", "runtime", "models", "adapters", "training", "inference"}
)
TENSOR_LIBRARIES = (
    *("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors.torch"),
)

OUTSIDE_PACKAGES = frozenset(
    {"api", "cli", "models", "runtime", "data.formats", "data.hospital", "data.notes"}
    | {"data.retrieval", "data.synthetic", "data.textbooks"}
)
OUTSIDE = (
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "time.strftime"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today"),
    *("datetime.date.today", "os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"),
    *("os.path.expandvars", "socket", "urllib.request", "http", "ftplib", "smtplib"),
    *("requests", "httpx", "aiohttp", "huggingface_hub"),
)
"""Clock, environment, network. ``time.monotonic`` and ``time.perf_counter`` tell no time of day."""

ALLOWED_OUTSIDE = {("reports/cards.py", "huggingface_hub"), ("workflows/context.py", "datetime")}
"""``ModelCard`` is a text template: nothing of it opens a connection."""

BANNED_IMPORTS = (
    *("pandas", "evaluate", "pickle", "transformers.Trainer", "transformers.trainer"),
    "importlib.import_module",
)
EMPTY_NAMES = frozenset(
    "util utils helper helpers manager handler processor wrapper common misc".split()
)
BANNED_WORDS = frozenset(
    """asked bench circumstances course crew dice drawn exam forgotten found heard kept known lesson
    made manner said settle sheet shelf shown tally thought told twin way_out whereabouts
    witness""".split()
)
"""House words and participles that no identifier consists of. The list grows, and never shrinks."""

VERBS = ROOT / "tests" / "verbs.txt"
LONGEST_BODY = 60
LEAST_COMMENTS = 0.04
LONGEST_FILE = 640
"""At 100 columns; 500 at the 150 columns of before."""


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class SourceFile:
    """One file of the package: the subpackage it belongs to, its text, its syntax tree."""

    package: str
    file: Path
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.file}:{getattr(node, 'lineno', 1)}"


def parse_file(file: Path, text: str) -> SourceFile:
    """A file, ``file`` given from the folder of the package."""
    name = file.parts[0].removesuffix(".py")
    if name == "data" and len(file.parts) > 2:
        name = f"data.{file.parts[1]}"
    return SourceFile(name, file, text, ast.parse(text))


@functools.cache
def parse_package() -> tuple[SourceFile, ...]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return tuple(parse_file(path.relative_to(PACKAGE), path.read_text("utf-8")) for path in paths)


def list_imports(source: SourceFile) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, local name, dotted name) of all that a file imports, wherever in the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                dotted = f"{'.' * node.level}{node.module or ''}.{alias.name}"
                yield node, alias.asname or alias.name, dotted


def list_mentions(source: SourceFile) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) of imports and of attribute chains that begin at an imported name."""
    origins: dict[str, str] = {}
    for node, local, dotted in list_imports(source):
        top = isinstance(node, ast.Import) and "." in dotted and local == dotted.partition(".")[0]
        origins[local] = local if top else dotted
        yield node, dotted
    for node in ast.walk(source.tree):
        chain = split_attributes(node)
        if chain and chain[0] in origins:
            yield node, ".".join([origins[chain[0]], *chain[1:]])
        elif isinstance(node, ast.Name) and node.id == "__import__":
            yield node, "importlib.import_module"


def split_attributes(node: ast.AST) -> list[str]:
    """``a.b.c`` as its names; empty for anything else."""
    if isinstance(node, ast.Attribute):
        before = split_attributes(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


def is_under(dotted: str, names: tuple[str, ...]) -> bool:
    return any(dotted == name or dotted.startswith(f"{name}.") for name in names)


def package_of(dotted: str) -> str:
    """``clinpeft.data.notes.files.x`` -> ``data.notes``; ``clinpeft.models.Base`` -> ``models``."""
    parts = dotted.split(".")[1:]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in MAY_IMPORT else parts[0]


def imports_stay_within_the_table(source: SourceFile) -> Iterator[str]:
    allowed = {source.package, "__version__", *MAY_IMPORT.get(source.package, ())}
    for node, _, dotted in list_imports(source):
        if dotted.startswith("."):
            yield f"{source.at(node)}: relative import; write clinpeft.<package>"
        elif source.package == "__init__" or not dotted.startswith("clinpeft."):
            continue
        elif package_of(dotted) not in allowed:
            yield f"{source.at(node)}: {source.package} may not import {package_of(dotted)}"


def packages_stand_in_the_table(source: SourceFile) -> Iterator[str]:
    if source.package != "__init__" and source.package not in MAY_IMPORT:
        yield f"{source.file}: {source.package} is not in the table"


def tensors_stay_in_their_packages(source: SourceFile) -> Iterator[str]:
    if source.package not in TENSOR_PACKAGES:
        for node, dotted in list_mentions(source):
            if is_under(dotted, TENSOR_LIBRARIES):
                yield f"{source.at(node)}: {source.package} may not use {dotted}"


def clock_environment_network_stay_outside(source: SourceFile) -> Iterator[str]:
    if source.package not in OUTSIDE_PACKAGES:
        for node, dotted in list_mentions(source):
            allowed = (source.file.as_posix(), dotted.partition(".")[0]) in ALLOWED_OUTSIDE
            if is_under(dotted, OUTSIDE) and not allowed:
                yield f"{source.at(node)}: {dotted} is for packages that read the outside"


def nothing_banned_is_imported(source: SourceFile) -> Iterator[str]:
    for node, dotted in list_mentions(source):
        if is_under(dotted, BANNED_IMPORTS):
            yield f"{source.at(node)}: {dotted} is not used here, see docs/dependencies.md"


def names_say_something(source: SourceFile) -> Iterator[str]:
    named = [(str(source.file), part.removesuffix(".py")) for part in source.file.parts]
    named += [(source.at(node), node.name) for node in list_definitions(source)]
    for location, name in named:
        for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
            if word.lower() in EMPTY_NAMES:
                yield f"{location}: {name} says nothing with {word!r}"


def list_definitions(source: SourceFile) -> Iterator[Definition]:
    yield from (node for node in ast.walk(source.tree) if isinstance(node, Definition))


def list_identifiers(source: SourceFile) -> Iterator[tuple[ast.AST, str]]:
    """Every name that a file gives to something: definitions, parameters, variables, fields."""
    for node in ast.walk(source.tree):
        if isinstance(node, Definition):
            yield node, node.name
        elif isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node, node.attr


def no_banned_word_is_a_name(source: SourceFile) -> Iterator[str]:
    for node, name in list_identifiers(source):
        if name.strip("_").lower() in BANNED_WORDS:
            yield f"{source.at(node)}: {name!r} is a banned word; name what it holds"


def functions_are_verbs(source: SourceFile) -> Iterator[str]:
    """Public functions of a module: a verb first, a predicate, a conversion or a metric's name."""
    verbs = set(VERBS.read_text("utf-8").split())
    for node in source.tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            first = node.name.partition("_")[0]
            if first not in verbs and node.name not in verbs:
                yield f"{source.at(node)}: {node.name} does not begin with a verb of {VERBS.name}"


def bodies_are_short(source: SourceFile) -> Iterator[str]:
    for node in list_definitions(source):
        if isinstance(node, ast.ClassDef):
            continue
        documented = ast.get_docstring(node, clean=False) is not None
        body = node.body[1:] if documented else node.body
        length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        if length > LONGEST_BODY:
            yield f"{source.at(node)}: {node.name} has {length} lines, {LONGEST_BODY} at most"


def files_are_short(source: SourceFile) -> Iterator[str]:
    length = len(source.text.splitlines())
    if length > LONGEST_FILE:
        yield f"{source.file}: {length} lines, {LONGEST_FILE} at most; make it a folder"


def public_things_are_documented(source: SourceFile) -> Iterator[str]:
    if not ast.get_docstring(source.tree):
        yield f"{source.file}: the file has no docstring"
    for name, node in list_public(source.tree, ""):
        if not ast.get_docstring(node):
            yield f"{source.at(node)}: {name} has no docstring"


def list_public(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Public definitions of a file and methods of its public classes."""
    for node in parent.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from list_public(node, f"{prefix}{node.name}.")


RULES: list[Callable[[SourceFile], Iterator[str]]] = [
    packages_stand_in_the_table,
    imports_stay_within_the_table,
    tensors_stay_in_their_packages,
    clock_environment_network_stay_outside,
    nothing_banned_is_imported,
    names_say_something,
    no_banned_word_is_a_name,
    functions_are_verbs,
    bodies_are_short,
    files_are_short,
    public_things_are_documented,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Callable[[SourceFile], Iterator[str]]) -> None:
    complaints = [complaint for source in parse_package() for complaint in rule(source)]
    assert not complaints, "\n".join(complaints)


def list_public_names() -> Counter[str]:
    """How often each public function, class or constant is defined at the top of a module."""
    names: Counter[str] = Counter()
    for source in parse_package():
        for node in source.tree.body:
            targets: list[ast.expr] = []
            if isinstance(node, Definition):
                names[node.name] += 1
            elif isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def test_a_public_name_is_defined_once() -> None:
    dunder = {"__all__", "__version__", "__getattr__", "__dir__"}
    repeated = {
        name: count
        for name, count in list_public_names().items()
        if count > 1 and not name.startswith("_") and name not in dunder
    }
    assert not repeated


def test_every_package_of_the_table_exists() -> None:
    assert set(MAY_IMPORT) == {source.package for source in parse_package()} - {"__init__"}


def test_the_table_has_no_cycle() -> None:
    order = list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())
    assert order.index("data.notes") < order.index("workflows") < order.index("cli")


def test_a_cycle_in_the_table_would_be_seen() -> None:
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({**MAY_IMPORT, "models": {"adapters"}}).static_order())


def test_the_page_says_what_is_enforced() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)` \| (.+?) \| (yes|no) \| (yes|no) \|$", PAGE.read_text("utf-8"), re.M
    )
    stated = {name: frozenset(re.findall(r"`([\w.]+)`", allowed)) for name, allowed, _, _ in rows}
    every = {"workflows", "api", "cli"}  # the page says "every package above"
    expected = {
        name: frozenset() if name in every else allowed - CONTRACTS
        for name, allowed in MAY_IMPORT.items()
        if name not in CONTRACTS
    }
    assert stated == expected
    assert {name for name, _, tensors, _ in rows if tensors == "yes"} == TENSOR_PACKAGES
    assert {name for name, _, _, outside in rows if outside == "yes"} == OUTSIDE_PACKAGES


VIOLATIONS = [
    (packages_stand_in_the_table, "attic.py", "", "attic is not in the table"),
    (
        imports_stay_within_the_table,
        "data/notes/files.py",
        "from clinpeft.data.cohorts import task",
        "data.notes may not import data.cohorts",
    ),
    (
        imports_stay_within_the_table,
        "data/notes/files.py",
        "import clinpeft.data.cohorts.task",
        "data.notes may not import data.cohorts",
    ),
    (
        imports_stay_within_the_table,
        "models/load.py",
        "def load():\n    from clinpeft.adapters import attach",
        "models may not import adapters",
    ),
    (
        imports_stay_within_the_table,
        "core/files.py",
        "from clinpeft.recipe import Recipe",
        "core may not import recipe",
    ),
    (
        imports_stay_within_the_table,
        "runs/store.py",
        "from .errors import InputError",
        "relative import",
    ),
    (
        tensors_stay_in_their_packages,
        "data/cohorts/task.py",
        "def later():\n    import torch.nn",
        "data.cohorts may not use torch.nn",
    ),
    (
        tensors_stay_in_their_packages,
        "runs/store.py",
        "from safetensors import torch",
        "safetensors.torch",
    ),
    (
        tensors_stay_in_their_packages,
        "runs/store.py",
        "import safetensors.torch as tensors",
        "safetensors.torch",
    ),
    (
        clock_environment_network_stay_outside,
        "runs/store.py",
        "import datetime as dt\nnow = dt.datetime.now()",
        "datetime.datetime.now",
    ),
    (
        clock_environment_network_stay_outside,
        "training/trainer.py",
        "from time import time",
        "time.time",
    ),
    (
        clock_environment_network_stay_outside,
        "tokenization/windows.py",
        "import os.path\nos.environ['A'] = '1'",
        "os.environ",
    ),
    (
        clock_environment_network_stay_outside,
        "reports/page.py",
        "import urllib.request",
        "urllib.request",
    ),
    (
        clock_environment_network_stay_outside,
        "reports/page.py",
        "import huggingface_hub",
        "huggingface_hub",
    ),
    (nothing_banned_is_imported, "data/notes/files.py", "import pandas as pd", "pandas"),
    (
        nothing_banned_is_imported,
        "training/trainer.py",
        "from transformers import Trainer",
        "transformers.Trainer",
    ),
    (nothing_banned_is_imported, "cli/run.py", "__import__('torch')", "importlib.import_module"),
    (names_say_something, "data/notes/text_utils.py", "", "text_utils"),
    (names_say_something, "models/load.py", "class HTTPHandler: ...", "HTTPHandler"),
    (names_say_something, "models/load.py", "def _common_part(): ...", "_common_part"),
    (no_banned_word_is_a_name, "models/load.py", "found = 1", "'found'"),
    (no_banned_word_is_a_name, "models/load.py", "def load(crew): ...", "'crew'"),
    (no_banned_word_is_a_name, "models/load.py", "class Course: ...", "'Course'"),
    (no_banned_word_is_a_name, "models/load.py", "for told in (): ...", "'told'"),
    (functions_are_verbs, "models/load.py", "def scored(): ...", "scored"),
    (functions_are_verbs, "models/load.py", "def pooling_of(): ...", "pooling_of"),
    (bodies_are_short, "models/load.py", "def load():\n" + "    x = 1\n" * 61, "61 lines"),
    (files_are_short, "models/load.py", "x = 1\n" * 641, "641 lines"),
    (public_things_are_documented, "models/load.py", "x = 1", "the file has no docstring"),
    (
        public_things_are_documented,
        "models/load.py",
        '"""A file."""\ndef load(): ...',
        "load has no docstring",
    ),
    (
        public_things_are_documented,
        "models/load.py",
        '"""A file."""\nclass Base:\n    """A base."""\n    def size(self): ...',
        "Base.size has no docstring",
    ),
]


@pytest.mark.parametrize(("rule", "file", "text", "expected"), VIOLATIONS)
def test_a_violation_is_caught(
    rule: Callable[[SourceFile], Iterator[str]], file: str, text: str, expected: str
) -> None:
    complaints = list(rule(parse_file(Path(file), textwrap.dedent(text))))
    assert any(expected in complaint for complaint in complaints)


PERMITTED = [
    (packages_stand_in_the_table, "data/notes/files.py", ""),
    (
        imports_stay_within_the_table,
        "workflows/adapt.py",
        "from clinpeft import training\nfrom clinpeft.reports.page import render",
    ),
    (imports_stay_within_the_table, "runs/store.py", "from clinpeft import __version__"),
    (tensors_stay_in_their_packages, "tokenization/windows.py", "import torch"),
    (tensors_stay_in_their_packages, "runs/store.py", "import safetensors.numpy\nimport torchless"),
    (
        clock_environment_network_stay_outside,
        "training/trainer.py",
        "import time\nstart = time.perf_counter()",
    ),
    (
        clock_environment_network_stay_outside,
        "data/cohorts/task.py",
        "from datetime import datetime\nat = datetime(2020, 1, 1)",
    ),
    (clock_environment_network_stay_outside, "cli/run.py", "import os\nos.environ"),
    (
        clock_environment_network_stay_outside,
        "reports/cards.py",
        "from huggingface_hub import ModelCard",
    ),
    (nothing_banned_is_imported, "evaluation/metrics.py", "def evaluate(): ...\nevaluate()"),
    (names_say_something, "evaluation/metrics.py", "def uncommon_mishandled(): ..."),
    (no_banned_word_is_a_name, "models/load.py", "found_rows = unknown = 1"),
    (functions_are_verbs, "models/load.py", "def load_base(): ...\ndef is_fast(): ..."),
    (functions_are_verbs, "models/load.py", "def _scored(): ..."),
    (bodies_are_short, "models/load.py", 'def f():\n    """' + "D.\n" * 70 + '    """\n    x = 1'),
    (files_are_short, "models/load.py", "x = 1\n" * 640),
    (
        public_things_are_documented,
        "models/load.py",
        '"""A file."""\ndef _load(): ...\ndef load():\n    """Load."""\n    def inner(): ...',
    ),
]


@pytest.mark.parametrize(("rule", "file", "text"), PERMITTED)
def test_what_is_permitted_is_not_caught(
    rule: Callable[[SourceFile], Iterator[str]], file: str, text: str
) -> None:
    assert not list(rule(parse_file(Path(file), textwrap.dedent(text))))


def test_every_rule_has_a_violation_and_a_permission() -> None:
    assert {case[0] for case in VIOLATIONS} == set(RULES) == {case[0] for case in PERMITTED}


def test_the_target_figures_of_the_architecture_hold() -> None:
    """Bodies, private functions and comments, as docs/architecture.md says."""
    bodies, private, comments, lines = [], 0, 0, 0
    for source in parse_package():
        lines += len(source.text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
        remarks = (token.string for token in tokens if token.type == tokenize.COMMENT)
        comments += sum(not re.match(r"#\s*(noqa|type:)", remark) for remark in remarks)
        for node in ast.walk(source.tree):
            if isinstance(node, Function):
                skip = ast.get_docstring(node, clean=False) is not None
                body = node.body[1:] if skip else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                bodies.append(length)
        private += sum(
            isinstance(node, Function) and bool(re.match("_[a-z]", node.name))
            for node in source.tree.body
        )
    bodies.sort()
    assert 8 <= bodies[len(bodies) // 2] <= 12
    assert bodies[int(0.9 * len(bodies))] <= 35
    assert 1000 * private / lines <= 12
    assert comments / lines >= LEAST_COMMENTS


def test_data_recipes_and_numbers_need_no_torch() -> None:
    """In a research environment torch may be absent: packages without tensors import without it."""
    with_tensors = TENSOR_PACKAGES | {"workflows", "search", "api", "__main__"}
    names = sorted(set(MAY_IMPORT) - with_tensors)
    script = textwrap.dedent("""
        import importlib, sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name in ("torch", "transformers", "peft", "accelerate", "tokenizers"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Absent())
    """) + "".join(f"importlib.import_module('clinpeft.{name}')\n" for name in names)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
