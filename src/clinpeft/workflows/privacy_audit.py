"""The privacy audit of a finished run, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from clinpeft import runs
from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.runs import PRIVACY_AUDIT_FILE, Run
from clinpeft.workflows.context import RunContext
from clinpeft.workflows.privacy_attacks import PrivacyAuditConfig
from clinpeft.workflows.registry import get_workflow


def audit_run_privacy(
    home: Path, run_name: str, config: PrivacyAuditConfig, now: datetime, version: str
) -> Run:
    """Attack a finished run, and write the results into its folder as ``privacy.json``.

    A run of ``classify`` also gets ``privacy/``, the probabilities by split. The file names the
    hashes of the weights that were attacked, so that it is not taken for the audit of others.

    Args:
        home: folder of all runs.
        run_name: the run.
        config: how hard it is attacked.
        now: the time.
        version: of the package.

    Raises:
        UsageError: there is no such run.
        RefusedError: the run's files are not those that it finished with.
        InputError: the training data is not there any more.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    runs.check_model_files(run)
    results = get_workflow(run.recipe).audit_privacy(run, RunContext(home), config)
    document = {
        "format": 1,
        "run": run.id,
        "kind": run.recipe.kind,
        "weights": runs.hash_trained_weights(run.folder),
        "made": now.isoformat(),
        "clinpeft": version,
        "asked": asdict(config),
        "results": results.results.to_pylist(),
        "left_out": results.skipped_attacks,
    }
    text = json.dumps(document, indent=1) + "\n"
    runs.write_file_atomically(run.folder / PRIVACY_AUDIT_FILE, text)
    return run


def read_privacy_results(run: Run) -> tuple[pa.Table, dict[str, str]]:
    """Read ``privacy.json`` of a run.

    Returns:
        Results of schema ``METRIC_RESULT_SCHEMA``, and attack -> the reason why it was skipped.

    Raises:
        UsageError: the run was not audited.
        InputError: the file cannot be read.
    """
    audit = runs.read_privacy_audit(run)
    if audit is None:
        raise UsageError(
            f"run {run.id} was not audited",
            location=str(run.folder),
            hint=f"clinpeft privacy {run.id}",
        )
    results = pa.Table.from_pylist(audit["results"], schema=METRIC_RESULT_SCHEMA)
    return results, dict(audit["left_out"])
