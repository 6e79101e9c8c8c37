"""What is done before anything leaves, and after all is done: verify, privacy, release, purge."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from clinpeft.cli.audit import record_audit_entry, get_user_name
from clinpeft.cli.console import to_relative_path, print_table
from clinpeft.cli.options import DEFAULT_HOME, HomeOption
from clinpeft.core.errors import RefusedError, UsageError

RunArgument = Annotated[
    str, typer.Argument(help="A finished run: id, the beginning of one, or name.")
]
PRIVACY_REPORT_FILE = "privacy.md"


def verify(
    run: RunArgument,
    probe: Annotated[
        bool, typer.Option(help="Load base and weights, and ask the stored probe.")
    ] = True,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Whether a run is still what it was: files, base, tokenizer, source, recipe, code, and its answers to the stored probe."""
    import pyarrow as pa

    from clinpeft import reports, workflows

    found, checks = workflows.verify_run_provenance(
        home.resolve(), run, with_reference_output=probe
    )
    rows = [{"what": check.item, "state": check.state, "detail": check.detail} for check in checks]
    print_table(reports.table_from_arrow(f"Run {found.id}", pa.Table.from_pylist(rows)))
    wrong = [check for check in checks if check.fails]
    if wrong:
        named = ", ".join(f"{check.item} ({check.state})" for check in wrong[:5])
        hint = "copy it again from where it was made; do not use what cannot be explained"
        raise RefusedError(
            f"{len(wrong)} of {len(checks)} are not what the run says: {named}",
            location=str(to_relative_path(found.folder)),
            hint=hint,
        )
    compared = sum(check.state == "same" for check in checks)
    print(f"{compared} of {len(checks)} compared and the same; none changed")


def privacy(
    run: RunArgument,
    home: HomeOption = DEFAULT_HOME,
    resamples: Annotated[
        int, typer.Option(min=100, help="Bootstrap resamples of subjects.")
    ] = 1000,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Of a note, what the model is shown.")
    ] = 32,
    continuation_tokens: Annotated[int, typer.Option(min=1, help="How far it goes on.")] = 32,
    overlap_tokens: Annotated[
        int, typer.Option(min=1, help="From how many tokens in a row a note counts as given back.")
    ] = 16,
    subjects: Annotated[
        int, typer.Option(min=1, help="At most so many of each split are asked for their words.")
    ] = 100,
    candidates: Annotated[
        int, typer.Option(min=2, help="Among which an invented secret is ranked.")
    ] = 1000,
) -> None:
    """Attack a run: are its people recognised, are invented secrets known, are notes given back word for word."""
    import clinpeft
    from clinpeft import reports, runs, workflows

    if overlap_tokens > continuation_tokens:
        message = f"{overlap_tokens} tokens in a row cannot stand in a continuation of {continuation_tokens}"
        raise UsageError(
            message, location="privacy --overlap-tokens", hint="raise --continuation-tokens"
        )
    asked = workflows.PrivacyAsked(
        resamples=resamples,
        prompt_tokens=prompt_tokens,
        continuation_tokens=continuation_tokens,
        overlap_tokens=overlap_tokens,
        subjects=subjects,
        candidates=candidates,
    )
    audited = workflows.audit_run_privacy(
        home.resolve(), run, asked, datetime.now(UTC), clinpeft.__version__
    )
    results, left_out = workflows.privacy_results(audited)
    notes = [f"Not measured: {name}: {reason}." for name, reason in left_out.items()]
    columns = ["task", "group", "split", "name", "value", "low", "high"]
    table = reports.table_from_arrow(
        f"Privacy audit of run {audited.id}",
        results.select(columns).append_column("n", results["n"].cast("string")),
        notes,
    )
    print_table(table)
    runs.write_file_atomically(
        audited.folder / PRIVACY_REPORT_FILE, reports.as_markdown_table(table)
    )
    record_audit_entry(
        home, "privacy", output_path=audited.folder / runs.PRIVACY_AUDIT_FILE, run=audited
    )
    print(to_relative_path(audited.folder / runs.PRIVACY_AUDIT_FILE))


def release(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", help="A new folder.")],
    data_license: Annotated[
        str, typer.Option("--data-licence", help="Of the data that the run learned from.")
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """The folder that may leave: adapters, head, card, aggregates without small cells, the privacy audit, a manifest."""
    from clinpeft import runs, workflows

    here = home.resolve()
    private = (get_user_name(), str(Path.home()), str(Path.cwd()))
    workflows.release_run_folder(here, run, to, data_license, private, datetime.now(UTC))
    record_audit_entry(
        home, "release", output_path=to, run=runs.find_run(here, run, finished_only=True)
    )
    for path in sorted(path for path in to.rglob("*") if path.is_file()):
        print(to_relative_path(path))


def purge(
    run: Annotated[
        str,
        typer.Argument(help="A run: id, the beginning of one, or name; none with --caches alone."),
    ] = "",
    caches: Annotated[
        bool, typer.Option("--caches", help="All text and tokens that were derived from notes.")
    ] = False,
    predictions: Annotated[
        bool,
        typer.Option(
            "--predictions", help="Of the run, also the tables with a row for a stay or a note."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Remove text that was derived from notes, checkpoints, and on request answers of single stays; says what and how many bytes, and asks."""
    from clinpeft import runs
    from clinpeft.runs import purge as purging

    if not run and not caches:
        raise UsageError(
            "nothing was named", location="purge", hint="name a run, or give --caches, or both"
        )
    here = home.resolve()
    of_run = runs.find_run(here, run) if run else None
    own = (
        purging.list_run_removals(of_run, include_predictions=predictions)
        if of_run is not None
        else []
    )
    derived = purging.list_cache_removals(here) if caches else []
    for removal in (*own, *derived):
        print(
            f"{to_relative_path(removal.path)}  {removal.file_count:,} files  {removal.size_bytes:,} bytes  {removal.description}"
        )
    if not own and not derived:
        print("there is nothing to remove")
        return
    if not yes and not typer.confirm("remove all of this?"):
        raise typer.Exit(1)
    day = datetime.now(UTC).date().isoformat()
    removed = purging.execute_removals(own, of_run, day) + purging.execute_removals(
        derived, None, day
    )
    record_audit_entry(
        home,
        "purge",
        run=of_run,
        counts={"files": sum(one.file_count for one in (*own, *derived)), "bytes": removed},
    )
    print(f"removed {removed:,} bytes")
