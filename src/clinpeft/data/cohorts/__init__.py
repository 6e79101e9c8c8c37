"""Notes and stays -> who is asked what, when, with which answer; everybody else is counted under the reason why not.

```
task.py          what a clinical question is: data                outcomes.py    the questions, TASKS
selection.py     who is asked, rule by rule                       texts.py       what of the notes may be read
codes.py         ICD codes -> classes                             split.py       who is learned from, who is asked
sections/        admission notes cut from discharge summaries     ventilation/   episodes, and which are prolonged
cohort.py        the written cohort                               conformance.py the published counts beside ours
filing.py        the same of notes that belong to no stay         answering.py   what a model that is to answer must know of it
audit/           every known way to leak, measured                meds.py        the cohort in the MEDS format
```
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from clinpeft.core.schemas import Attrition, HospitalDatabase
from clinpeft.data.cohorts import codes, leakage, meds, note_categories
from clinpeft.data.cohorts.cohort import Cohort, summarize_cohort, write_cohort
from clinpeft.data.cohorts.conformance import compare_with_published_counts
from clinpeft.data.cohorts.label_space import (
    find_class_notices,
    read_label_space,
    check_cohort_classes,
)
from clinpeft.data.cohorts.outcomes import CLINICAL_TASKS
from clinpeft.data.cohorts.selection import select_stays, get_clinical_task
from clinpeft.recipe import CohortRecipe

__all__ = [
    "CLINICAL_TASKS",
    "Cohort",
    "build_cohort",
    "build_note_cohort",
    "find_class_notices",
    "read_label_space",
    "check_cohort_classes",
    "select_stays",
    "summarize_cohort",
    "get_clinical_task",
    "compare_with_published_counts",
    "write_cohort",
]


def build_cohort(
    recipe: CohortRecipe,
    hospital: HospitalDatabase,
    folder: Path,
    adaptation_corpus: Path | None = None,
) -> Cohort:
    """The cohort of a recipe, with its audit and its MEDS form beside it.

    Args:
        recipe: the question, the split, the seed.
        hospital: open tables; its database gets working tables.
        folder: where the cohort is written; what an earlier build left there is replaced.
        adaptation_corpus: a corpus a language model learned from, searched for copies of what is held out.

    Raises:
        RecipeError: there is no such question, or it cannot be put like this.
        SourceError: a table is missing or damaged, or not one stay is left.
        RefusedError: a subject would be in two splits.
        StorageError: ``folder`` cannot be written.
    """
    cohort = write_cohort(recipe, hospital, folder)
    kind, name = cohort.task.kind, cohort.task.name
    titles = (
        codes.read_code_titles(hospital.connection, cohort.task.code_grouping)
        if cohort.task.code_grouping
        else {}
    )
    leakage.audit_leakage(
        cohort.path,
        cohort.classes,
        kind,
        folder,
        recipe.seed,
        adaptation_corpus,
        task_name=name,
        titles=titles,
    )
    reading = cohort.task.note_selection
    category = (
        "Admission note"
        if reading.is_simulated
        else "Discharge summary"
        if reading.categories
        else "Notes"
    )
    meds.write_meds_dataset(
        cohort.path,
        kind,
        cohort.classes,
        folder / "meds",
        hospital.layout,
        "as shipped",
        category=category,
        task_name=name,
    )
    return cohort


def build_note_cohort(
    recipe: CohortRecipe,
    notes: pa.RecordBatchReader,
    source_attrition: Attrition,
    folder: Path,
    adaptation_corpus: Path | None = None,
) -> Cohort:
    """The cohort of a question that is asked of notes without stays (``Task.asks``), with its audit and its MEDS form beside it.

    A row is a distinct text, white space and case aside: ``stay_id`` is a hash of it, ``subject_id`` that of its first note, ``prediction_time`` the
    first time at which it could be read, or 1970-01-01 where no note says so. Columns that only a stay has are null.

    Args:
        recipe: the question, the split, the seed.
        notes: of schema ``tables.NOTE``; read once.
        source_attrition: what reading counts; it becomes the first entry of the attrition.
        folder: where the cohort is written; what an earlier build left there is replaced.
        adaptation_corpus: a corpus a language model learned from, searched for copies of what is held out.

    Raises:
        RecipeError: there is no such question, it is asked of stays, or the split needs stays.
        SourceError: notes are damaged, or not one is left.
        StorageError: ``folder`` cannot be written.
    """
    cohort = note_categories.write_note_cohort(recipe, notes, source_attrition, folder)
    kind, name = cohort.task.kind, cohort.task.name
    titles = {category: (category,) for category in cohort.classes}
    leakage.audit_leakage(
        cohort.path,
        cohort.classes,
        kind,
        folder,
        recipe.seed,
        adaptation_corpus,
        task_name=name,
        titles=titles,
    )
    meds.write_meds_dataset(
        cohort.path,
        kind,
        cohort.classes,
        folder / "meds",
        recipe.source.name,
        "as shipped",
        category="Note",
        task_name=name,
    )
    return cohort
