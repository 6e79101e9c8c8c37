"""What a finished run stands on, compared with what is there now; and what of it may leave."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft import adapters, evaluation, inference, models, runs, training
from clinpeft.core.errors import ClinpeftError, UsageError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA
from clinpeft.data.notes import sources
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import RELEASE_SMALLEST_CELL, ProvenanceCheck, ReleaseContent, Run
from clinpeft.workflows import task_cohorts, textbooks
from clinpeft.workflows.context import get_code_version


def verify_run_provenance(
    home: Path, run_name: str, *, with_reference_output: bool = True
) -> tuple[Run, list[ProvenanceCheck]]:
    """Every file of a run, base, source, earlier adapters, recipe and code against what the record says, and the stored probe asked again.

    What is not here any more (a source in another place, a base that was moved) is said to be absent and fails nothing.

    Args:
        home: the folder of all runs.
        run_name: the run.
        with_reference_output: load base and weights and ask the probe; without it no model is loaded.

    Raises:
        UsageError: there is no such run.
    """
    run = runs.find_run(home, run_name, finished_only=True)
    checks = [
        *runs.check_run_files(run),
        _check_run_id(run),
        _check_code_version(run),
        _check_base(run),
        _check_source(run),
        *_check_earlier_adapters(home, run),
    ]
    return run, [*checks, _check_reference_output(run)] if with_reference_output else checks


def _check_hash(
    check_name: str, recorded_hash: str | None, compute_hash: Callable[[], str]
) -> ProvenanceCheck:
    if recorded_hash is None:
        return ProvenanceCheck(check_name, "unknown", "the record does not say what it was")
    try:
        found = compute_hash()
    except ClinpeftError as error:
        return ProvenanceCheck(check_name, "absent", type(error).__name__)
    except OSError as error:
        return ProvenanceCheck(check_name, "absent", error.strerror or "cannot be read")
    return (
        ProvenanceCheck(check_name, "same", f"sha256 {found[:12]}")
        if found == recorded_hash
        else ProvenanceCheck(
            check_name, "changed", f"sha256 {found[:12]}, and was {recorded_hash[:12]}"
        )
    )


def _check_run_id(run: Run) -> ProvenanceCheck:
    """The run's id is a hash over recipe, source, base and code: with the code of the run it can be worked out again."""
    hashes, version = run.record.hashes, run.record.versions.get("clinpeft", "")
    if version != get_code_version():
        return ProvenanceCheck(
            "id",
            "unknown",
            f"it is worked out with the code of {version or 'an unknown version'}; recipe.toml is compared by its own hash",
        )
    found = runs.compute_run_id(run.recipe, hashes.source or "", hashes.base or "", version)
    return ProvenanceCheck(
        "id",
        "same" if found == run.id else "changed",
        f"{found} from recipe, source, base and code",
    )


def _check_code_version(run: Run) -> ProvenanceCheck:
    written, now = run.record.versions.get("clinpeft"), get_code_version()
    if written is None:
        return ProvenanceCheck("code", "unknown", "the record does not say which it was")
    return (
        ProvenanceCheck("code", "same", now)
        if written == now
        else ProvenanceCheck("code", "other", f"{now}, and the run was made with {written}")
    )


def _check_base(run: Run) -> ProvenanceCheck:
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
    return _check_hash(
        "base and tokenizer",
        run.record.hashes.base,
        lambda: models.fingerprint_base_model(recipe.base.path),
    )


def _check_source(run: Run) -> ProvenanceCheck:
    return _check_hash("source", run.record.hashes.source, lambda: _fingerprint_source(run))


def _fingerprint_source(run: Run) -> str:
    recipe = run.recipe
    if isinstance(recipe, ClassifyRecipe):
        return task_cohorts.fingerprint_cohort_sources(recipe)
    return (
        textbooks.fingerprint_embedding_data(recipe)
        if isinstance(recipe, EmbedRecipe)
        else sources.fingerprint_notes(recipe.source)
    )


def _check_earlier_adapters(home: Path, run: Run) -> Iterator[ProvenanceCheck]:
    """Adapters of earlier runs, where those runs are still in this home."""
    for name, written in run.record.hashes.adapters.items():
        origin, _, adapter = name.partition("/")
        folders = sorted(
            (home / origin).glob(f"adapter*/**/{adapter or '.'}/adapter_model.safetensors")
        )
        found = folders or sorted((home / origin).glob("adapter*/**/adapter_model.safetensors"))
        yield _check_hash(
            f"adapter of run {name}", written, functools.partial(_hash_weights, found)
        )


def _hash_weights(weight_files: list[Path]) -> str:
    if not weight_files:
        raise FileNotFoundError(2, "not in this home any more")
    return runs.compute_path_checksum(weight_files[0])


def _check_reference_output(run: Run) -> ProvenanceCheck:
    """The model put together again and asked what it was asked when it was kept."""
    device = training.create_accelerator().device
    try:
        kept = {
            "adapt": _check_language_model_output,
            "classify": _check_classifier_output,
            "embed": _check_encoder_output,
        }[run.recipe.kind](run, device)
    except ClinpeftError as error:
        absent = not run.recipe.model_dump()["base"]["path"].is_dir()
        return ProvenanceCheck("probe", "absent" if absent else "changed", error.message)
    return (
        ProvenanceCheck("probe", "same", "answered as when it was kept")
        if kept
        else ProvenanceCheck("probe", "unknown", "none was kept with this run")
    )


def _check_language_model_output(run: Run, device: Any) -> bool:
    assert isinstance(run.recipe, AdaptRecipe)
    base = models.load_base_model(run.recipe.base, device)
    return adapters.check_stack_reference_output(
        adapters.load_adapter(base, run.folder / "adapter"), run.folder
    )


def _check_classifier_output(run: Run, device: Any) -> bool:
    assert isinstance(run.recipe, ClassifyRecipe)
    inference.load_classifier(run.folder, run.recipe.base, device)
    return True


def _check_encoder_output(run: Run, device: Any) -> bool:
    assert isinstance(run.recipe, EmbedRecipe)
    stack, _ = inference.load_encoder(run.folder, run.recipe.base, device)
    return adapters.check_stack_reference_output(stack, run.folder)


def release_run_folder(
    home: Path,
    run_name: str,
    folder: Path,
    data_license: str,
    private_words: tuple[str, ...],
    release_time: datetime,
) -> Path:
    """The folder of a run that may leave: adapters, head, card, aggregates, the audit, a manifest. No prediction, no text, no id of a person.

    Args:
        home: the folder of all runs.
        run_name: the run.
        folder: a new folder.
        data_license: of the data that the run learned from, as it binds who receives the weights.
        private_words: words that no file may hold, such as the name of the user.
        release_time: the time.

    Raises:
        UsageError: there is no such run, or no licence is named.
        RefusedError: there is no privacy audit of these weights, a file was changed, ``folder`` exists, or a private word would leave.
    """
    if not data_license.strip():
        hint = "name the terms of the data, such as 'PhysioNet Credentialed 1.5.0'"
        raise UsageError("no data licence", location="release --data-licence", hint=hint)
    run = runs.find_run(home, run_name, finished_only=True)
    runs.check_model_files(run)
    audit = runs.read_matching_privacy_audit(run)
    privacy = {name: value for name, value in audit.items() if name != "results"}
    rows = evaluation.suppress_for_release(
        pa.Table.from_pylist(audit["results"], schema=METRIC_RESULT_SCHEMA), RELEASE_SMALLEST_CELL
    ).to_pylist()
    results = evaluation.suppress_for_release(run.results, RELEASE_SMALLEST_CELL).to_pylist()
    recipe = run.recipe
    assert isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
    folders = tuple(
        str(path) for path in (recipe.source.path, recipe.base.path, home) if path is not None
    )
    content = ReleaseContent(
        results,
        {**privacy, "results": rows},
        _read_train_counts(run),
        data_license.strip(),
        (*private_words, *folders),
        release_time,
    )
    return runs.write_release_folder(run, folder, content)


def _read_train_counts(run: Run) -> dict[str, list[int | None]]:
    """Task -> training stays of each class, small counts withheld."""
    path = run.folder / "head.json"
    if not path.exists():
        return {}
    tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {
        task: evaluation.suppress_small_counts(
            said["question"]["train_counts"], RELEASE_SMALLEST_CELL
        )
        for task, said in tasks.items()
    }
