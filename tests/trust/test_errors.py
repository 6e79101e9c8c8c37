"""Every error has its value, its place and its way out, and every ending of the command its number."""

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

HOUSE = ROOT / "src" / "clinpeft"
FAMILY = {
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
    "InterruptedRun": 5,
}
"""As docs/trust.md has them."""

PLAIN = {
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
"""What else may be raised: a mistake of the program, not of its user, or what is caught where it is raised from."""


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Every call that makes an error of the family, with its place in the package."""
    for path in sorted(HOUSE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in FAMILY
            ):
                yield f"{path.relative_to(HOUSE)}:{node.lineno}", node


def test_every_error_is_made_with_its_three_parts() -> None:
    found, wrong = 0, []
    for location, node in raised():
        found += 1
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        parts = [node.args[0] if node.args else None, given.get("location"), given.get("hint")]
        if any(part is None or _is_empty(part) for part in parts) and None not in given:
            wrong.append(location)
    assert not wrong, wrong
    assert found > 200  # otherwise this looked at nothing


def _is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not str(node.value).strip()


def test_a_way_out_says_what_to_do() -> None:
    """It begins with a word, not with a sign, and is not the problem again."""
    for location, node in raised():
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        said = given.get("way_out")
        if isinstance(said, ast.Constant) and isinstance(said.value, str):
            assert len(said.value.split()) >= 2 and not said.value.endswith("."), (
                location,
                said.value,
            )


def test_no_other_kind_of_error_is_raised() -> None:
    wrong = []
    for path in sorted(HOUSE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and isinstance(node.exc.func, ast.Name)
            ):
                name = node.exc.func.id
                if name[0].isupper() and name not in FAMILY.keys() | PLAIN | own:
                    wrong.append(f"{path.relative_to(HOUSE)}:{node.lineno} {name}")
    assert not wrong, wrong


def test_the_family_and_its_exit_codes_are_these() -> None:
    assert {name: kind.exit_code for name, kind in FAMILY.items()} == CODES


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
    said = clinpeft(*(word.replace("{}", str(tmp_path)) for word in words))
    assert said.code == code, said


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
