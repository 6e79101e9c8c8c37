"""Release of a finished run: the folder that may leave."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft import evaluation, runs
from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.runs import RELEASE_SMALLEST_CELL, ReleaseContent, Run


def release_run_folder(
    home: Path,
    run_name: str,
    folder: Path,
    data_license: str,
    private_words: tuple[str, ...],
    release_time: datetime,
) -> Path:
    """Write the folder of a run that may leave the data enclave.

    It holds adapters, head, card, aggregates, the privacy audit and a manifest; no prediction, no
    text, no id of a person.

    Args:
        home: folder of all runs.
        run_name: the run.
        folder: a new folder.
        data_license: of the training data, as it binds whoever receives the weights.
        private_words: words that no file may hold, such as the name of the user.
        release_time: the time.

    Raises:
        UsageError: there is no such run, or no license is named.
        RefusedError: there is no privacy audit of these weights, a file was changed, ``folder``
            exists, or a private word would leave.
    """
    if not data_license.strip():
        raise UsageError(
            "no data license",
            location="release --data-licence",
            hint="name the terms of the data, such as 'PhysioNet Credentialed 1.5.0'",
        )
    run = runs.find_run(home, run_name, finished_only=True)
    runs.check_model_files(run)
    audit = runs.read_matching_privacy_audit(run)
    audit_table = pa.Table.from_pylist(audit.pop("results"), schema=METRIC_RESULT_SCHEMA)
    recipe: Any = run.recipe
    paths = (recipe.source.path, recipe.base.path, home)
    content = ReleaseContent(
        _suppress_small_cells(run.results),
        {**audit, "results": _suppress_small_cells(audit_table)},
        _read_train_counts(run),
        data_license.strip(),
        (*private_words, *(str(path) for path in paths if path is not None)),
        release_time,
    )
    return runs.write_release_folder(run, folder, content)


def _suppress_small_cells(results: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = evaluation.suppress_for_release(
        results, RELEASE_SMALLEST_CELL
    ).to_pylist()
    return rows


def _read_train_counts(run: Run) -> dict[str, list[int | None]]:
    """Task -> training stays of each class, small counts suppressed."""
    path = run.folder / "head.json"
    if not path.exists():
        return {}
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {
        name: evaluation.suppress_small_counts(
            task["question"]["train_counts"], RELEASE_SMALLEST_CELL
        )
        for name, task in tasks.items()
    }
