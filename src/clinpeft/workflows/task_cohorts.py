"""Cohort step of ``classify``: the cohorts of all tasks, and their notes as tokens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft import tokenization
from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.locks import wait_for_folder_lock
from clinpeft.core.schemas import Attrition, LabelSpace
from clinpeft.data import cohorts, hospital, sources
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import ClassifyRecipe, CohortRecipe, TaskSpec
from clinpeft.runs import InputHashes
from clinpeft.tokenization import EncodedDocuments
from clinpeft.workflows.context import RunContext, get_code_version


@dataclass(frozen=True)
class TaskCohort:
    """The cohort of a task.

    Attributes:
        folder: of the built cohort.
        label_space: task and classes.
        attrition: who left at which step, for which reason.
        notices: what a reader of the results should know of the splits.
    """

    folder: Path
    label_space: LabelSpace
    attrition: tuple[Attrition, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class EncodedCohort:
    """The cohort of a task with its notes as documents of tokens."""

    cohort: TaskCohort
    documents: EncodedDocuments


def fingerprint_cohort_sources(recipe: ClassifyRecipe) -> str:
    """Compute SHA-256 over notes, tables, label files and subject lists of a recipe.

    Raises:
        SourceError: a file is missing.
    """
    digest = hashlib.sha256()
    # A task about single notes reads no hospital table, and one about stays reads all of them.
    for unit in sorted({cohorts.get_clinical_task(task).prediction_unit for task in recipe.tasks}):
        compute = sources.fingerprint_notes if unit == "notes" else hospital.fingerprint_hospital
        digest.update(compute(recipe.source).encode())
    for task in recipe.tasks:
        for path in (task.labels, task.subject_lists):
            if path is not None and not path.exists():
                raise SourceError(
                    "there is no such file or folder",
                    location=str(path),
                    hint="check task.labels and task.subject_lists",
                )
            digest.update(hash_path_content(path).encode())
    return digest.hexdigest()


def hash_path_content(path: Path | None) -> str:
    """Hash a file, or all files of a folder.

    Returns:
        Name and SHA-256 of each; empty where there is no such path.
    """
    if path is None or not path.exists():
        return ""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return " ".join(
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files
    )


def build_cohorts(
    recipe: ClassifyRecipe, hashes: InputHashes, context: RunContext
) -> list[TaskCohort]:
    """Build the cohort of every task, once for all runs of the same task.

    The first process builds them, the others wait.

    Raises:
        RecipeError: a task is named twice.
        InputError: a split is empty, or training has a single class.
    """
    names = [task.name for task in recipe.tasks]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"{names} names one task twice", location="more_tasks", hint="name each task once"
        )
    with context.accelerator.main_process_first():
        return [_prepare_cohort(recipe, task, hashes, context) for task in recipe.tasks]


def _prepare_cohort(
    recipe: ClassifyRecipe, task: TaskSpec, hashes: InputHashes, context: RunContext
) -> TaskCohort:
    task_json, split_json = task.model_dump(mode="json"), recipe.split.model_dump()
    folder = context.get_cache_path(
        "cohort", hashes.source, task_json, split_json, get_code_version()
    )
    # Workers of a study build the same cohort at the same time.
    with wait_for_folder_lock(folder.parent, f"{folder.name}.lock"):
        if not (folder / "labels.json").exists():
            # Built beside its place and renamed, so that a killed process leaves no half cohort.
            building = folder.with_name(folder.name + ".building")
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True, mode=0o700)
            cohort_recipe = CohortRecipe(
                kind="cohort",
                name=task.name,
                seed=recipe.split.seed,
                source=recipe.source,
                task=task,
                split=recipe.split,
            )
            _build_cohort(cohort_recipe, building)
            building.rename(folder)
    cohorts.check_cohort_classes(folder)
    steps = json.loads((folder / "attrition.json").read_text(encoding="utf-8"))
    return TaskCohort(
        folder,
        cohorts.read_label_space(folder),
        tuple(Attrition.from_json(step) for step in steps),
        cohorts.find_class_notices(folder),
    )


def _build_cohort(cohort_recipe: CohortRecipe, folder: Path) -> None:
    """Build a cohort of single notes from the notes, and one of stays from the hospital's
    tables."""
    if cohorts.get_clinical_task(cohort_recipe.task).prediction_unit == "notes":
        read = Attrition("read")
        notes = sources.read_notes(cohort_recipe.source, read, folder.parent)
        cohorts.build_note_cohort(cohort_recipe, notes, read, folder)
        return
    working = folder.with_name(folder.name + ".working")
    try:
        tables = hospital.open_hospital_database(cohort_recipe.source, working)
        with contextlib.closing(tables.connection):
            cohorts.build_cohort(cohort_recipe, tables, folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)  # clinical data, not needed any more


def encode_cohort_documents(
    recipe: ClassifyRecipe,
    base: FrozenBaseModel,
    task_cohorts: Sequence[TaskCohort],
    context: RunContext,
) -> list[EncodedCohort]:
    """Encode the notes of every cohort as documents of tokens, once for all runs that truncate
    alike.

    Args:
        recipe: truncation and length of a document.
        base: its tokenizer cuts the text.
        task_cohorts: of all tasks.
        context: home and processes.
    """
    encoded = []
    with context.accelerator.main_process_first():
        for cohort in task_cohorts:
            folder = context.get_cache_path(
                "documents",
                cohort.folder.name,
                base.sha256,
                recipe.base.max_tokens,
                recipe.truncation.model_dump(),
            )
            with wait_for_folder_lock(folder.parent, f"{folder.name}.lock"):
                if not tokenization.is_encoded(folder):
                    tokenization.encode_documents(
                        cohort.folder / "cohort.parquet",
                        base.tokenizer,
                        recipe.truncation,
                        recipe.base.max_tokens,
                        base.family.objective,
                        folder,
                    )
            encoded.append(EncodedCohort(cohort, tokenization.open_encoded_documents(folder)))
    return encoded
