"""``clinpeft verify``, ``privacy``, ``release`` and ``purge``: before results leave, and after."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from clinpeft.cli.audit import get_user_name, record_audit_entry
from clinpeft.cli.console import print_table, to_relative_path
from clinpeft.cli.options import DEFAULT_HOME, HomeOption, RunArgument
from clinpeft.core.errors import RefusedError, UsageError

PRIVACY_REPORT_FILE = "privacy.md"


def verify_run(
    run: RunArgument,
    probe: Annotated[
        bool, typer.Option(help="Load the model and compare its output with the stored one.")
    ] = True,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Verify a run against its record: files, base, data, recipe, code and reference output."""
    import pyarrow as pa

    from clinpeft import reports, workflows

    verified, checks = workflows.verify_run_provenance(
        home.resolve(), run, with_reference_output=probe
    )
    rows = [{"what": check.item, "state": check.state, "detail": check.detail} for check in checks]
    print_table(reports.table_from_arrow(f"Run {verified.id}", pa.Table.from_pylist(rows)))
    failed = [check for check in checks if check.fails]
    if failed:
        names = ", ".join(f"{check.item} ({check.state})" for check in failed[:5])
        raise RefusedError(
            f"{len(failed)} of {len(checks)} differ from the record of the run: {names}",
            location=str(to_relative_path(verified.folder)),
            hint="copy the run again from where it was trained; do not use what is unexplained",
        )
    same = sum(check.state == "same" for check in checks)
    print(f"{same} of {len(checks)} compared and the same; none changed")


def audit_privacy_command(
    run: RunArgument,
    home: HomeOption = DEFAULT_HOME,
    resamples: Annotated[
        int, typer.Option(min=100, help="Bootstrap resamples of subjects.")
    ] = 1000,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a note that the model is given.")
    ] = 32,
    continuation_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that the model generates.")
    ] = 32,
    overlap_tokens: Annotated[
        int, typer.Option(min=1, help="Consecutive tokens that count as a note reproduced.")
    ] = 16,
    subjects: Annotated[
        int, typer.Option(min=1, help="Subjects of each split whose notes are prompted, at most.")
    ] = 100,
    candidates: Annotated[
        int, typer.Option(min=2, help="Numbers among which a canary is ranked.")
    ] = 1000,
) -> None:
    """Attack a run: membership inference, exposure of canaries, verbatim reproduction of notes."""
    import clinpeft
    from clinpeft import reports, runs, workflows

    if overlap_tokens > continuation_tokens:
        raise UsageError(
            f"an overlap of {overlap_tokens} tokens does not fit into a continuation of "
            f"{continuation_tokens}",
            location="privacy --overlap-tokens",
            hint="raise --continuation-tokens",
        )
    config = workflows.PrivacyAuditConfig(
        resamples=resamples,
        prompt_tokens=prompt_tokens,
        continuation_tokens=continuation_tokens,
        overlap_tokens=overlap_tokens,
        subjects=subjects,
        candidates=candidates,
    )
    audited = workflows.audit_run_privacy(
        home.resolve(), run, config, datetime.now(UTC), clinpeft.__version__
    )
    results, unmeasured = workflows.read_privacy_results(audited)
    notes = [f"Not measured: {name}: {reason}." for name, reason in unmeasured.items()]
    columns = ["task", "group", "split", "name", "value", "low", "high"]
    table = reports.table_from_arrow(
        f"Privacy audit of run {audited.id}",
        results.select(columns).append_column("n", results["n"].cast("string")),
        notes,
    )
    print_table(table)
    path = audited.folder / runs.PRIVACY_AUDIT_FILE
    runs.write_file_atomically(
        audited.folder / PRIVACY_REPORT_FILE, reports.as_markdown_table(table)
    )
    record_audit_entry(home, "privacy", output_path=path, run=audited)
    print(to_relative_path(path))


def release_run(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    data_license: Annotated[
        str, typer.Option("--data-licence", help="Licence of the data that the run trained on.")
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write the folder that may leave: adapters, head, card, suppressed metrics, manifest."""
    from clinpeft import runs, workflows

    private_texts = (get_user_name(), str(Path.home()), str(Path.cwd()))
    workflows.release_run_folder(
        home.resolve(), run, to, data_license, private_texts, datetime.now(UTC)
    )
    released = runs.find_run(home.resolve(), run, finished_only=True)
    record_audit_entry(home, "release", output_path=to, run=released)
    for path in sorted(path for path in to.rglob("*") if path.is_file()):
        print(to_relative_path(path))


def purge_run(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run; none with --caches alone.")
    ] = "",
    caches: Annotated[
        bool, typer.Option("--caches", help="All text and tokens derived from notes.")
    ] = False,
    predictions: Annotated[
        bool,
        typer.Option("--predictions", help="Also the run's tables with a row per stay or note."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Remove text derived from notes, checkpoints and, on request, predictions; asks first."""
    from clinpeft.runs import find_run
    from clinpeft.runs.purge import execute_removals, list_cache_removals, list_run_removals

    if not run and not caches:
        raise UsageError(
            "neither a run nor --caches was given",
            location="purge",
            hint="name a run, or give --caches, or both",
        )
    purged = find_run(home.resolve(), run) if run else None
    of_run = list_run_removals(purged, include_predictions=predictions) if purged else []
    of_caches = list_cache_removals(home.resolve()) if caches else []
    for removal in (*of_run, *of_caches):
        print(
            f"{to_relative_path(removal.path)}  {removal.file_count:,} files  "
            f"{removal.size_bytes:,} bytes  {removal.description}"
        )
    if not of_run and not of_caches:
        print("there is nothing to remove")
        return
    if not yes and not typer.confirm("remove all of this?"):
        raise typer.Exit(1)
    day = datetime.now(UTC).date().isoformat()
    removed = execute_removals(of_run, purged, day) + execute_removals(of_caches, None, day)
    files = sum(removal.file_count for removal in (*of_run, *of_caches))
    counts = {"files": files, "bytes": removed}
    record_audit_entry(home, "purge", run=purged, counts=counts)
    print(f"removed {removed:,} bytes")
