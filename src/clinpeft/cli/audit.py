"""``clinpeft audit``: the log of what was made or released; and how commands write to it."""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinpeft.cli.console import print_table
from clinpeft.cli.options import DEFAULT_HOME, HomeOption
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, RefusedError

if TYPE_CHECKING:
    from clinpeft.recipe import Recipe
    from clinpeft.runs import Run

audit_app = typer.Typer(
    no_args_is_help=True, help="Verify and show the hash-chained log of a home."
)


def get_user_name() -> str:
    """Name of the user in the operating system.

    By the number of the process's owner, since a variable of the shell can say anything.
    """
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # another system, or a container whose user has no entry
        return getpass.getuser() if os.name == "nt" else f"uid {os.getuid()}"


def record_audit_entry(
    home: Path,
    verb: str,
    *,
    output_path: Path | None = None,
    run: Run | None = None,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Write one line: a command has made or released something.

    Args:
        home: folder of all runs.
        verb: the command.
        output_path: the file or folder that was written.
        run: the run that was trained or used.
        counts: what was counted.
    """
    from clinpeft.runs import compute_path_checksum

    result, run_counts = "", {}
    if run is not None:
        result = compute_path_checksum(run.folder / "run.json")
        steps = {
            f"{step.step}.{word}": count
            for step in run.attrition
            for word, count in (("entered", step.entered_rows), ("kept", step.kept_rows))
        }
        run_counts = {**run.record.counts, **steps}
    if output_path is not None and output_path.exists():
        result = compute_path_checksum(output_path)
    recipe = run.recipe if run is not None else None
    _write_entry(home, verb, run, recipe, result, {**run_counts, **(counts or {})}, "finished")


@contextmanager
def audit_run_attempt(home: Path, recipe: Recipe) -> Iterator[list[Run]]:
    """Write a line for the run that is trained in the block, or for the attempt that failed.

    A run that had finished before, and is only returned, gets no second line.

    Yields:
        A list to which the block appends its run.
    """
    from clinpeft.runs import audit_log

    start = datetime.now(UTC)
    runs: list[Run] = []
    audit_log.remove_stale_audit_heads(home)
    try:
        yield runs
    except BaseException as error:
        stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        with suppress(ClinpeftError):  # a full disk has an error to show already
            state = "interrupted" if stopped else "failed"
            _write_entry(home, recipe.kind, None, recipe, "", {}, state)
        raise
    for run in runs:
        finished = run.record.finished
        if finished is not None and (finished >= start or not _is_recorded(home, run)):
            record_audit_entry(home, recipe.kind, run=run)


def _is_recorded(home: Path, run: Run) -> bool:
    """Whether a line names the run: a process killed right after its run finished wrote none."""
    from clinpeft.runs import audit_log

    return any(
        line.get("run") == run.id and line.get("state") == "finished"
        for line in audit_log.read_audit_lines(home)
    )


def _write_entry(
    home: Path,
    verb: str,
    run: Run | None,
    recipe: Recipe | None,
    result: str,
    counts: Mapping[str, int],
    state: str,
) -> None:
    from clinpeft.recipe import format_recipe_toml
    from clinpeft.runs import audit_log

    # Of several processes that train together only the first writes.
    if os.environ.get("RANK", "0") != "0":
        return
    toml = format_recipe_toml(recipe).encode() if recipe is not None else None
    entry = audit_log.AuditEntry(
        get_user_name(),
        datetime.now(UTC),
        verb,
        state,
        run.id if run is not None else "",
        hashlib.sha256(toml).hexdigest() if toml is not None else "",
        (run.record.hashes.source or "") if run is not None else "",
        result,
        counts,
    )
    audit_log.write_audit_entry(home.resolve(), entry)


@audit_app.command("verify", epilog="Example: `clinpeft audit verify --home runs`")
def verify_audit_chain(
    home: HomeOption = DEFAULT_HOME,
    seen: Annotated[
        str,
        typer.Option(help="A hash noted elsewhere at an earlier time; it must be in the chain."),
    ] = "",
) -> None:
    """Verify that no line was edited, deleted, inserted, moved or cut off; prints the head hash."""
    from clinpeft.runs import audit_log

    check = audit_log.verify_audit_log(home.resolve(), seen)
    for notice in check.notices:
        print(f"notice: {notice}")
    if check.problems:
        raise RefusedError(
            "; ".join(check.problems[:5]),
            location=str(home / audit_log.AUDIT_LOG_FILE),
            hint="find out who can write this folder; the lines before the first of these hold",
        )
    print(f"{check.line_count} lines, none edited, deleted, inserted, moved or cut off")
    print(f"head {check.head_hash}")


@audit_app.command("show", epilog="Example: `clinpeft audit show --last 50`")
def show_audit_log(
    home: HomeOption = DEFAULT_HOME,
    last: Annotated[int, typer.Option(help="Number of lines.")] = 20,
) -> None:
    """Show the last lines of the log."""
    import pyarrow as pa

    from clinpeft.reports import table_from_arrow
    from clinpeft.runs import audit_log

    widths = {"when": 19, "recipe": 12, "data": 12, "result": 12}
    lines = audit_log.read_audit_lines(home.resolve())[-last:] if last > 0 else []
    rows = [
        {"line": str(line.get("number", ""))}
        | {
            name: str(line.get(name, ""))[: widths.get(name)]
            for name in ("when", "who", "verb", "state", "run", "recipe", "data", "result")
        }
        for line in lines
    ]
    if rows:
        print_table(table_from_arrow("Audit log", pa.Table.from_pylist(rows)))
