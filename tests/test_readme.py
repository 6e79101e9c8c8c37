"""What the pages tell people to type works: the quickstart on fewer words, and every verb with its
options."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from clinpeft import cli, runs
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FEWER: dict[str, object] = {
    "source.subjects": 60,
    "training.max_steps": 3,
    "training.batch_tokens": 512,
    "evaluation.max_notes": 3,
    "evaluation.resamples": 100,
}
FEWER_PAIRS: dict[str, object] = {
    "training.max_steps": 3,
    "evaluation.max_pairs": 20,
    "evaluation.resamples": 100,
    "evaluation.controls": "false",
}


def told(target: str) -> list[str]:
    """The commands that ``make TARGET`` would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    listed = subprocess.run(
        ["make", "-n", "-o", ".venv/installed", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.splitlines()


def test_the_quickstart_trains_the_small_base_twice_and_says_where_the_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [line for line in told("quickstart") if "clinpeft" in line]
    monkeypatch.chdir(ROOT)
    for command, fewer in zip(commands, (FEWER, FEWER_PAIRS), strict=True):
        program, *words = shlex.split(command)
        assert program == ".venv/bin/clinpeft"
        words = [str(tmp_path / "runs") if word == "runs" else word for word in words]
        changes = [word for key, value in fewer.items() for word in ("--set", f"{key}={value}")]
        monkeypatch.setattr(sys, "argv", ["clinpeft", *words, *changes])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
    adapted, embedded = runs.find_all_runs(tmp_path / "runs").runs
    said = capsys.readouterr().out
    assert adapted.record.state == embedded.record.state == "finished"
    assert (
        str(adapted.folder) in said
        and str(embedded.folder) in said
        and "perplexity" in said
        and "AUROC" in said
    )


def test_make_test_runs_linters_types_and_tests() -> None:
    commands = "\n".join(told("test"))
    assert all(word in commands for word in ("ruff check", "ruff format --check", "mypy", "pytest"))


def commands_in(page: Path) -> list[list[str]]:
    """Every ``clinpeft ...`` at the start of a line of a code block, or alone between back
    ticks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(
        r"`([^`\n]+)`", text
    )
    found = [re.match(r"(?:\.venv/bin/)?clinpeft +([a-z].*)", line.strip()) for line in lines]
    return [
        re.sub(r"[\[\]|]|\.\.\.|   .*", " ", match.group(1)).split() for match in found if match
    ]


SHOWN = [
    (page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands_in(page)
]


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=[f"{page}: {' '.join(words)}"[:80] for page, words in SHOWN]
)
def test_every_command_in_a_page_is_a_verb_with_those_options(page: str, words: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    taken = 0
    while taken < len(words) and words[taken] in getattr(command, "commands", {}):
        command, taken = command.commands[words[taken]], taken + 1  # type: ignore[attr-defined]
    assert taken, f"{page} shows a verb that does not exist: {words[0]}"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_help_is_there_without_loading_torch() -> None:
    script = (
        "import sys; sys.argv = ['clinpeft', '--help']\nfrom clinpeft import cli\ntry: "
        "cli.main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "adapt" in done.stdout and done.stdout.strip().endswith("False")
