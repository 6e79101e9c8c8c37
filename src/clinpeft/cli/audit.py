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

from clinpeft.cli.console import shown
from clinpeft.cli.options import HERE, Home
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, RefusedError

if TYPE_CHECKING:
    from clinpeft.recipe import Recipe
    from clinpeft.runs import Run

app = typer.Typer(
    no_args_is_help=True, help="Who made or gave away what: the hash-chained log of a home."
)


def user() -> str:
    """The name of the user in the operating system: by the number of the process's owner, since a variable of the shell can say anything."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # another system, or a container whose user has no entry
        return getpass.getuser() if os.name == "nt" else f"uid {os.getuid()}"


def noted(
    home: Path,
    verb: str,
    *,
    made: Path | None = None,
    run: Run | None = None,
    counts: Mapping[str, int] | None = None,
) -> None:
    """One line: a verb has made, or given away, something.

    Args:
        home: the folder of all runs.
        verb: which.
        made: the file or folder that was made.
        run: the run that was made, or that was asked.
        counts: what was counted.
    """
    from clinpeft.runs import compute_path_checksum

    result = (
        compute_path_checksum(made)
        if made is not None and made.exists()
        else _record_of(run)
        if run is not None
        else ""
    )
    _write(
        home,
        verb,
        run,
        run.recipe if run is not None else None,
        result,
        {**_counts(run), **(counts or {})},
        "finished",
    )


@contextmanager
def attempted(home: Path, recipe: Recipe) -> Iterator[list[Run]]:
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
            _write(home, recipe.kind, None, recipe, "", {}, "interrupted" if stopped else "failed")
        raise
    for run in runs:
        if run.record.finished is not None and (
            run.record.finished >= begun or not _is_known(home, run)
        ):
            noted(home, recipe.kind, run=run)


def _is_known(home: Path, run: Run) -> bool:
    """Whether a line says that this run was made; a process killed right after its run was recorded wrote none."""
    from clinpeft.runs import audit_log

    return any(
        line.get("run") == run.id and line.get("state") == "finished"
        for line in audit_log.read_audit_lines(home)
    )


def _write(
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
        user(),
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


def _record_of(run: Run) -> str:
    from clinpeft.runs import compute_path_checksum

    return compute_path_checksum(run.folder / "run.json")


def _counts(run: Run | None) -> dict[str, int]:
    """What the run counted, and what entered and was kept at each step on the way to it."""
    if run is None:
        return {}
    steps = {
        f"{step.step}.{word}": count
        for step in run.attrition
        for word, count in (("entered", step.entered_rows), ("kept", step.kept_rows))
    }
    return {**run.record.counts, **steps}


@app.command()
def verify(
    home: Home = HERE,
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


@app.command()
def show(
    home: Home = HERE, last: Annotated[int, typer.Option(help="How many lines.")] = 20
) -> None:
    """The last lines of the log."""
    import pyarrow as pa

    from clinpeft.reports import plain
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
        shown(plain("Audit log", pa.Table.from_pylist(rows)))
