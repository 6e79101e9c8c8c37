"""``clinpeft audit``: who made or gave away what; and the one place where verbs write that down."""

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
    no_args_is_help=True, help="Who made or gave away what: the hash-chained log of a home."
)


def get_user_name() -> str:
    """The name of the user in the operating system: by the number of the process's owner, since a variable of the shell can say anything."""
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
    """One line: a verb has made, or given away, something.

    Args:
        home: the folder of all runs.
        verb: which.
        output_path: the file or folder that was made.
        run: the run that was made, or that was asked.
        counts: what was counted.
    """
    from clinpeft.runs import compute_path_checksum

    result = (
        compute_path_checksum(output_path)
        if output_path is not None and output_path.exists()
        else _hash_run_record(run)
        if run is not None
        else ""
    )
    _write_entry(
        home,
        verb,
        run,
        run.recipe if run is not None else None,
        result,
        {**_collect_counts(run), **(counts or {})},
        "finished",
    )


@contextmanager
def audit_run_attempt(home: Path, recipe: Recipe) -> Iterator[list[Run]]:
    """A line for a run that is made inside the block, which appends it to the list; and one for an attempt that did not get to its end.

    A run that was there already, and is only given back, is none that was made.
    """
    from clinpeft.runs import audit_log

    begun = datetime.now(UTC)
    runs: list[Run] = []
    audit_log.remove_stale_audit_heads(home)
    try:
        yield runs
    except BaseException as error:
        stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        with suppress(ClinpeftError):  # a full disk has an error to show already
            _write_entry(
                home, recipe.kind, None, recipe, "", {}, "interrupted" if stopped else "failed"
            )
        raise
    for run in runs:
        if run.record.finished is not None and (
            run.record.finished >= begun or not _is_recorded(home, run)
        ):
            record_audit_entry(home, recipe.kind, run=run)


def _is_recorded(home: Path, run: Run) -> bool:
    """Whether a line says that this run was made; a process killed right after its run was recorded wrote none."""
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
    from clinpeft import recipe as recipes
    from clinpeft.runs import audit_log

    if (
        os.environ.get("RANK", "0") != "0"
    ):  # of several processes that train together the first one writes
        return
    asked = (
        hashlib.sha256(recipes.format_recipe_toml(recipe).encode()).hexdigest()
        if recipe is not None
        else ""
    )
    data = (run.record.hashes.source or "") if run is not None else ""
    line = audit_log.AuditEntry(
        get_user_name(),
        datetime.now(UTC),
        verb,
        state,
        run.id if run is not None else "",
        asked,
        data,
        result,
        counts,
    )
    audit_log.write_audit_entry(home.resolve(), line)


def _hash_run_record(run: Run) -> str:
    from clinpeft.runs import compute_path_checksum

    return compute_path_checksum(run.folder / "run.json")


def _collect_counts(run: Run | None) -> dict[str, int]:
    """What the run counted, and what entered and was kept at each step on the way to it."""
    if run is None:
        return {}
    steps = {
        f"{step.step}.{word}": count
        for step in run.attrition
        for word, count in (("entered", step.entered_rows), ("kept", step.kept_rows))
    }
    return {**run.record.counts, **steps}


@audit_app.command()
def verify(
    home: HomeOption = DEFAULT_HOME,
    seen: Annotated[
        str,
        typer.Option(
            help="A hash that was noted elsewhere at an earlier time, and must be in the chain."
        ),
    ] = "",
) -> None:
    """Whether any line was edited, deleted, inserted, moved or cut off; prints the hash to note elsewhere."""
    from clinpeft.runs import audit_log

    found = audit_log.verify_audit_log(home.resolve(), seen)
    for notice in found.notices:
        print(f"notice: {notice}")
    if found.problems:
        hint = "find out who can write this folder; the lines before the first of these still hold"
        raise RefusedError(
            "; ".join(found.problems[:5]), location=str(home / audit_log.AUDIT_LOG_FILE), hint=hint
        )
    print(f"{found.line_count} lines, none edited, deleted, inserted, moved or cut off")
    print(f"head {found.head_hash}")


@audit_app.command()
def show(
    home: HomeOption = DEFAULT_HOME, last: Annotated[int, typer.Option(help="How many lines.")] = 20
) -> None:
    """The last lines of the log."""
    import pyarrow as pa

    from clinpeft.reports import table_from_arrow
    from clinpeft.runs import audit_log

    lines = audit_log.read_audit_lines(home.resolve())[-last:] if last > 0 else []
    rows = [
        {
            "line": str(line.get("number", "")),
            "when": str(line.get("when", ""))[:19],
            "who": str(line.get("who", "")),
            "verb": str(line.get("verb", "")),
            "state": str(line.get("state", "")),
            "run": str(line.get("run", "")),
            "recipe": str(line.get("recipe", ""))[:12],
            "data": str(line.get("data", ""))[:12],
            "result": str(line.get("result", ""))[:12],
        }
        for line in lines
    ]
    if rows:
        print_table(table_from_arrow("Audit log", pa.Table.from_pylist(rows)))
