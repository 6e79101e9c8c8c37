"""Notes -> documents to be asked: the cohorts of a recipe's questions, built once and read as the recipe says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from clinpeft import tokenization
from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.locks import wait_for_folder_lock
from clinpeft.core.schemas import Attrition, LabelSpace
from clinpeft.data import cohorts, hospital
from clinpeft.data.notes import sources
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import ClassifyRecipe, CohortRecipe, TaskSpec
from clinpeft.runs import InputHashes
from clinpeft.tokenization import EncodedDocuments
from clinpeft.training import Accelerator
from clinpeft.workflows.context import compute_cache_key, get_code_version


@dataclass(frozen=True)
class TaskCohort:
    """A question and those who are asked.

    Attributes:
        folder: of the built cohort.
        label_space: what is asked.
        attrition: who left on the way.
        notices: what the reader of the results should know of the splits.
    """

    folder: Path
    label_space: LabelSpace
    attrition: tuple[Attrition, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class EncodedCohort:
    """A question with its notes as the model reads them."""

    cohort: TaskCohort
    documents: EncodedDocuments


def fingerprint_cohort_sources(recipe: ClassifyRecipe) -> str:
    """SHA-256 over the files that the cohorts are made of: notes and tables, label files, lists of subjects."""
    kinds = {
        cohorts.get_clinical_task(task).prediction_unit
        for task in (recipe.task, *recipe.more_tasks)
    }
    digest = hashlib.sha256()
    for kind in sorted(kinds):
        digest.update(
            {"notes": sources.fingerprint_notes, "stays": hospital.fingerprint_hospital}[kind](
                recipe.source
            ).encode()
        )
    for task in (recipe.task, *recipe.more_tasks):
        for path in (task.labels, task.subject_lists):
            digest.update(_hash_content(path).encode())
    return digest.hexdigest()


def _hash_content(path: Path | None) -> str:
    if path is None:
        return ""
    if not path.exists():
        raise SourceError(
            "there is no such file or folder",
            location=str(path),
            hint="check task.labels and task.subject_lists",
        )
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return " ".join(
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files
    )


def prepare_cohorts(
    recipe: ClassifyRecipe, home: Path, accelerator: Accelerator, hashes: InputHashes
) -> list[TaskCohort]:
    """The cohort of every question, made once for all runs that ask it; the first process makes them, the others wait.

    Raises:
        RecipeError: one question is asked twice.
        InputError: it cannot be answered: a split is empty, or training knows one class only.
    """
    specs = (recipe.task, *recipe.more_tasks)
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise RecipeError(
            f"{names} asks one question twice",
            location="more_tasks",
            hint="name each question once",
        )
    with accelerator.main_process_first():
        return [_prepare_cohort(recipe, spec, home, hashes) for spec in specs]


def _prepare_cohort(
    recipe: ClassifyRecipe, task: TaskSpec, home: Path, hashes: InputHashes
) -> TaskCohort:
    asking = CohortRecipe(
        kind="cohort",
        name=task.name,
        seed=recipe.split.seed,
        source=recipe.source,
        task=task,
        split=recipe.split,
    )
    folder = (
        home
        / "cache"
        / f"cohort-{compute_cache_key(hashes.source, task.model_dump(mode='json'), recipe.split.model_dump(), get_code_version())}"
    )
    with wait_for_folder_lock(
        folder.parent, f"{folder.name}.lock"
    ):  # workers of a study ask for the same people at the same time
        if not (folder / "labels.json").exists():
            building = folder.with_name(folder.name + ".building")
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True, mode=0o700)
            _build_cohort(asking, building)
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
    {"notes": _build_from_notes, "stays": _build_from_stays}[
        cohorts.get_clinical_task(cohort_recipe.task).prediction_unit
    ](cohort_recipe, folder)


def _build_from_notes(cohort_recipe: CohortRecipe, folder: Path) -> None:
    read = Attrition("read")
    cohorts.build_note_cohort(
        cohort_recipe, sources.read_notes(cohort_recipe.source, read, folder.parent), read, folder
    )


def _build_from_stays(cohort_recipe: CohortRecipe, folder: Path) -> None:
    working = folder.with_name(
        folder.name + ".working"
    )  # clinical data, which goes when the cohort stands
    try:
        tables = hospital.open_hospital_database(cohort_recipe.source, working)
        with contextlib.closing(tables.connection):
            cohorts.build_cohort(cohort_recipe, tables, folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def prepare_cohort_documents(
    recipe: ClassifyRecipe,
    base: FrozenBaseModel,
    task_cohorts: list[TaskCohort],
    home: Path,
    accelerator: Accelerator,
) -> list[EncodedCohort]:
    """The notes of every question as documents of tokens, made once for all runs that read them alike."""
    read = []
    with accelerator.main_process_first():
        for question in task_cohorts:
            named = compute_cache_key(
                question.folder.name,
                base.sha256,
                recipe.base.max_tokens,
                recipe.truncation.model_dump(),
            )
            folder = home / "cache" / f"documents-{named}"
            with wait_for_folder_lock(folder.parent, f"{folder.name}.lock"):
                if not tokenization.is_encoded(folder):
                    path = question.folder / "cohort.parquet"
                    tokenization.encode_documents(
                        path,
                        base.tokenizer,
                        recipe.truncation,
                        recipe.base.max_tokens,
                        base.family.objective,
                        folder,
                    )
            read.append(EncodedCohort(question, tokenization.open_encoded_documents(folder)))
    return read
