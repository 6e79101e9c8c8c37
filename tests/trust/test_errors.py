"""Every error has a message, a location and a hint, and every outcome of the command its code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clinpeft.core import errors
from clinpeft.core.errors import ClinpeftError
from tests.conftest import ROOT
from tests.test_classify import clinpeft

PACKAGE = ROOT / "src" / "clinpeft"
ERROR_CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, ClinpeftError)
}

CODES = {
    "ClinpeftError": 1,
    "UsageError": 2,
    "RecipeError": 2,
    "InputError": 3,
    "SourceError": 3,
    "BaseModelError": 3,
    "AdapterError": 3,
    "RefusedError": 4,
    "TrainingError": 1,
    "StorageError": 1,
    "InterruptedRunError": 5,
}
"""As docs/trust.md has them."""

BUILTIN_ERRORS = {
    "AttributeError",  # of the lazy package, which the language asks for
    "ValueError",
    "FileNotFoundError",
    "NotImplementedError",
    "KeyboardInterrupt",
    "AssertionError",
    "TypeError",
    "KeyError",
    "StopIteration",
    "ModuleNotFoundError",
}
"""What else may be raised: a mistake of the program, not of its user, or what a caller catches."""


def iterate_error_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that creates an error of ours, with its location in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ERROR_CLASSES
            ):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_every_error_is_raised_with_its_three_parts() -> None:
    calls, wrong = 0, []
    for location, node in iterate_error_calls():
        calls += 1
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        parts = [node.args[0] if node.args else None]
        parts += [keywords.get("location"), keywords.get("hint")]
        if any(part is None or _is_empty(part) for part in parts) and None not in keywords:
            wrong.append(location)
    assert not wrong, wrong
    assert calls > 200  # otherwise this looked at nothing


def _is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not str(node.value).strip()


def test_a_hint_says_what_to_do() -> None:
    """It has at least two words and no full stop."""
    for location, node in iterate_error_calls():
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        hint = keywords.get("hint")
        if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
            assert len(hint.value.split()) >= 2 and not hint.value.endswith("."), (
                location,
                hint.value,
            )


def test_no_other_kind_of_error_is_raised() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        local_classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and isinstance(node.exc.func, ast.Name)
            ):
                name = node.exc.func.id
                if (
                    name[0].isupper()
                    and name not in ERROR_CLASSES.keys() | BUILTIN_ERRORS | local_classes
                ):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {name}")
    assert not wrong, wrong


def test_the_errors_and_their_exit_codes_are_these() -> None:
    assert {name: kind.exit_code for name, kind in ERROR_CLASSES.items()} == CODES


def test_the_page_says_the_same_codes() -> None:
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    for code, word in {
        0: "done",
        1: "failed",
        2: "usage",
        3: "bad input",
        4: "refused",
        5: "interrupted",
    }.items():
        assert f"| {code} | {word}" in page


def test_an_error_shows_its_three_parts_in_three_lines() -> None:
    lines = str(
        ClinpeftError("3 is no rank", location="adapters.0.rank", hint="give a larger one")
    ).splitlines()
    assert lines == ["3 is no rank", "  where: adapters.0.rank", "  hint: give a larger one"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["runs", "--home", "{}"], 0),
        (["adapt"], 2),
        (["adept"], 2),
        (["adapt", "{}/absent.toml"], 2),
        (["adapt", "{}/empty.toml"], 2),
        (["adapt", f"{ROOT}/recipes/smoke.toml", "--set", "adapters.0.rank=-1", "--home", "{}"], 2),
        (["adapt", f"{ROOT}/recipes/smoke.toml", "--set", "base.path={}", "--home", "{}"], 3),
        (["models", "pull", "owner/model", "--to", "{}"], 4),
    ],
)
def test_the_command_ends_with_the_number_of_what_happened(
    words: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    result = clinpeft(*(word.replace("{}", str(tmp_path)) for word in words))
    assert result.code == code, result


def test_the_real_command_says_three_lines_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clinpeft", "adapt", str(tmp_path / "absent.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and not done.stdout
    first, where, hint = done.stderr.rstrip().splitlines()
    assert (
        first.startswith("clinpeft: ")
        and where.startswith("  where: ")
        and hint.startswith("  hint: ")
    )
