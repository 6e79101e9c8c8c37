"""Verification of a finished run: files, inputs and output against its record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from clinpeft import models, runs
from clinpeft.core.errors import ClinpeftError
from clinpeft.runs import ProvenanceCheck, Run
from clinpeft.workflows.context import RunContext, get_code_version
from clinpeft.workflows.registry import get_workflow


def verify_run_provenance(
    home: Path, run_name: str, *, with_reference_output: bool = True
) -> tuple[Run, list[ProvenanceCheck]]:
    """Compare everything that a run was made of with what is there now.

    Files, base, source, earlier adapters, recipe and code are compared with the hashes of the
    record, and the output of the model with the one stored with it. What is not there any more (a
    source elsewhere, a base that was moved) is reported as absent and is no failure.

    Args:
        home: folder of all runs.
        run_name: the run.
        with_reference_output: load base and weights and compare the output; without it no model is
            loaded.

    Raises:
        UsageError: there is no such run.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    workflow, hashes = get_workflow(run.recipe), run.record.hashes
    assert run.recipe.base is not None  # every kind that trains has a base
    base_path = run.recipe.base.path
    checks = [
        *runs.check_run_files(run),
        _check_run_id(run),
        _check_code_version(run),
        _check_hash(
            "base and tokenizer", hashes.base, lambda: models.fingerprint_base_model(base_path)
        ),
        _check_hash("source", hashes.source, lambda: workflow.fingerprint(run.recipe)),
        *_check_earlier_adapters(home, run),
    ]
    if with_reference_output:
        checks.append(_check_reference_output(run, base_path))
    return run, checks


def _check_hash(
    item: str, recorded_hash: str | None, compute_hash: Callable[[], str]
) -> ProvenanceCheck:
    if recorded_hash is None:
        return ProvenanceCheck(item, "unknown", "the record does not say what it was")
    try:
        current_hash = compute_hash()
    except ClinpeftError as error:
        return ProvenanceCheck(item, "absent", type(error).__name__)
    except OSError as error:
        return ProvenanceCheck(item, "absent", error.strerror or "cannot be read")
    if current_hash == recorded_hash:
        return ProvenanceCheck(item, "same", f"sha256 {current_hash[:12]}")
    message = f"sha256 {current_hash[:12]}, and was {recorded_hash[:12]}"
    return ProvenanceCheck(item, "changed", message)


def _check_run_id(run: Run) -> ProvenanceCheck:
    """The id is a hash over recipe, source, base and code; with the same code it is computed
    again."""
    hashes, version = run.record.hashes, run.record.versions.get("clinpeft", "")
    if version != get_code_version():
        return ProvenanceCheck(
            "id",
            "unknown",
            f"it is computed with the code of {version or 'an unknown version'}; recipe.toml is "
            "compared by its own hash",
        )
    run_id = runs.compute_run_id(run.recipe, hashes.source or "", hashes.base or "", version)
    return ProvenanceCheck(
        "id",
        "same" if run_id == run.id else "changed",
        f"{run_id} from recipe, source, base and code",
    )


def _check_code_version(run: Run) -> ProvenanceCheck:
    recorded, current = run.record.versions.get("clinpeft"), get_code_version()
    if recorded is None:
        return ProvenanceCheck("code", "unknown", "the record does not say which it was")
    if recorded == current:
        return ProvenanceCheck("code", "same", current)
    return ProvenanceCheck("code", "other", f"{current}, and the run was made with {recorded}")


def _check_earlier_adapters(home: Path, run: Run) -> Iterator[ProvenanceCheck]:
    """Adapters of earlier runs, where those runs are still in this home."""
    for name, recorded_hash in run.record.hashes.adapters.items():
        source, _, adapter = name.partition("/")
        weights = "adapter_model.safetensors"
        files = sorted((home / source).glob(f"adapter*/**/{adapter or '.'}/{weights}"))
        files = files or sorted((home / source).glob(f"adapter*/**/{weights}"))
        # Hashed only where the record names a hash.
        compute_hash = functools.partial(_hash_weights, files)
        yield _check_hash(f"adapter of run {name}", recorded_hash, compute_hash)


def _hash_weights(weight_files: list[Path]) -> str:
    if not weight_files:
        raise FileNotFoundError(2, "not in this home any more")
    return runs.compute_path_checksum(weight_files[0])


def _check_reference_output(run: Run, base_path: Path) -> ProvenanceCheck:
    """Load the model of the run and compare its output with the one stored with it."""
    device = RunContext(run.folder.parent).accelerator.device
    try:
        was_stored = get_workflow(run.recipe).check_reference_output(run, device)
    except ClinpeftError as error:
        return ProvenanceCheck(
            "probe", "changed" if base_path.is_dir() else "absent", error.message
        )
    if was_stored:
        return ProvenanceCheck("probe", "same", "the output is that of the saved model")
    return ProvenanceCheck("probe", "unknown", "none was stored with this run")
