"""Notes and stays -> a cohort: stays with text, label and split; every excluded one is counted.

```
task.py          a clinical task, as data              outcomes.py     the tasks, CLINICAL_TASKS
selection.py     the stays of a task, rule by rule     texts.py        the text of each stay
codes.py         ICD codes -> classes                  split.py        train, tuning, held-out
sections/        admission notes from discharge        ventilation/    ventilation episodes, and
                 summaries                                             which are prolonged
cohort.py        the written cohort                    conformance.py  published counts and ours
note_categories.py  cohorts of notes without stays     label_space.py  the cohort as a model sees it
leakage/         the leakage audit                     meds.py         the cohort in the MEDS format
cohort_files.py  names, schemas and checked reading of the files of a cohort
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts import codes, leakage, meds, note_categories
from clinpeft.data.cohorts.cohort import Cohort, summarize_cohort, write_cohort
from clinpeft.data.cohorts.conformance import compare_with_published_counts
from clinpeft.data.cohorts.label_space import (
    check_cohort_classes,
    find_class_notices,
    read_label_space,
)
from clinpeft.data.cohorts.outcomes import CLINICAL_TASKS
from clinpeft.data.cohorts.selection import get_clinical_task, select_stays
from clinpeft.recipe import CohortRecipe

__all__ = [
    "CLINICAL_TASKS",
    "Cohort",
    "build_cohort",
    "build_note_cohort",
    "check_cohort_classes",
    "compare_with_published_counts",
    "find_class_notices",
    "get_clinical_task",
    "read_label_space",
    "select_stays",
    "summarize_cohort",
    "write_cohort",
]


def build_cohort(
    recipe: CohortRecipe,
    hospital: HospitalDatabase,
    folder: Path,
    adaptation_corpus: Path | None = None,
) -> Cohort:
    """Build the cohort of a recipe, with its leakage audit and its MEDS form.

    Args:
        recipe: the task, the split, the seed.
        hospital: an open hospital; working tables are created in its database.
        folder: of the cohort; files of an earlier build are replaced.
        adaptation_corpus: a corpus that a language model was adapted on, searched for copies of
            held-out notes.

    Raises:
        RecipeError: there is no such task, or it does not fit the hospital.
        SourceError: a table is missing or damaged, or no stay remains.
        RefusedError: a subject is in two splits.
        StorageError: ``folder`` cannot be written.
    """
    cohort = write_cohort(recipe, hospital, folder)
    task = cohort.task
    titles = (
        codes.read_code_titles(hospital.connection, task.code_grouping)
        if task.code_grouping
        else {}
    )
    if task.note_selection.is_simulated:
        category = "Admission note"
    else:
        category = "Discharge summary" if task.note_selection.categories else "Notes"
    _audit_and_export(
        cohort, recipe.seed, adaptation_corpus, titles, dataset=hospital.layout, category=category
    )
    return cohort


def build_note_cohort(
    recipe: CohortRecipe,
    notes: pa.RecordBatchReader,
    source_attrition: Attrition,
    folder: Path,
    adaptation_corpus: Path | None = None,
) -> Cohort:
    """Build the cohort of a task of notes without stays, with its audit and its MEDS form.

    A row is a distinct text, white space and case aside: ``stay_id`` is its hash, ``subject_id``
    the subject of its first note, ``prediction_time`` the first time at which it was available, or
    1970-01-01 where no note has a time. Columns that only a stay has are null.

    Args:
        recipe: the task, the split, the seed.
        notes: of ``NOTE_SCHEMA``; read once.
        source_attrition: of reading the notes; it becomes the first step.
        folder: of the cohort; files of an earlier build are replaced.
        adaptation_corpus: a corpus that a language model was adapted on, searched for copies of
            held-out notes.

    Raises:
        RecipeError: there is no such task, it is a task of stays, or the split needs stays.
        SourceError: notes are damaged, or none remains.
        StorageError: ``folder`` cannot be written.
    """
    cohort = note_categories.write_note_cohort(recipe, notes, source_attrition, folder)
    titles = {category: (category,) for category in cohort.classes}
    _audit_and_export(
        cohort, recipe.seed, adaptation_corpus, titles, dataset=recipe.source.name, category="Note"
    )
    return cohort


def _audit_and_export(
    cohort: Cohort,
    seed: int,
    adaptation_corpus: Path | None,
    titles: Mapping[str, Sequence[str]],
    *,
    dataset: str,
    category: str,
) -> None:
    """Write ``leakage.json`` and ``meds/`` beside a cohort."""
    leakage.audit_leakage(
        cohort.path,
        cohort.classes,
        cohort.task.kind,
        cohort.folder,
        seed,
        adaptation_corpus,
        task_name=cohort.task.name,
        titles=titles,
    )
    meds.write_meds_dataset(
        cohort.path,
        cohort.task.kind,
        cohort.classes,
        cohort.folder / "meds",
        dataset,
        "as shipped",
        category=category,
        task_name=cohort.task.name,
    )
