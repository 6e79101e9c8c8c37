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
from clinpeft.data.cohorts.cohort import Cohort, show, write
from clinpeft.data.cohorts.conformance import verify
from clinpeft.data.cohorts.label_space import notices, question, refuse_unanswerable
from clinpeft.data.cohorts.outcomes import TASKS
from clinpeft.data.cohorts.selection import select, task_of
from clinpeft.recipe import CohortRecipe

__all__ = [
    "TASKS",
    "Cohort",
    "build",
    "build_from_notes",
    "notices",
    "question",
    "refuse_unanswerable",
    "select",
    "show",
    "task_of",
    "verify",
    "write",
]


def build(
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
    cohort = write(recipe, hospital, folder)
    kind, name = cohort.task.kind, cohort.task.name
    titles = codes.titles(hospital.connection, cohort.task.group) if cohort.task.group else {}
    leakage.run(
        cohort.path,
        cohort.classes,
        kind,
        folder,
        recipe.seed,
        adaptation_corpus,
        task=name,
        titles=titles,
    )
    reading = cohort.task.reading
    category = (
        "Admission note"
        if reading.simulated
        else "Discharge summary"
        if reading.categories
        else "Notes"
    )
    meds.write(
        cohort.path,
        kind,
        cohort.classes,
        folder / "meds",
        hospital.layout,
        "as shipped",
        category=category,
        question=name,
    )
    return cohort


def build_from_notes(
    recipe: CohortRecipe,
    notes: pa.RecordBatchReader,
    read: Attrition,
    folder: Path,
    adaptation_corpus: Path | None = None,
) -> Cohort:
    """The cohort of a question that is asked of notes without stays (``Task.asks``), with its audit and its MEDS form beside it.

    A row is a distinct text, white space and case aside: ``stay_id`` is a hash of it, ``subject_id`` that of its first note, ``prediction_time`` the
    first time at which it could be read, or 1970-01-01 where no note says so. Columns that only a stay has are null.

    Args:
        recipe: the question, the split, the seed.
        notes: of schema ``tables.NOTE``; read once.
        read: what reading counts; it becomes the first entry of the attrition.
        folder: where the cohort is written; what an earlier build left there is replaced.
        adaptation_corpus: a corpus a language model learned from, searched for copies of what is held out.

    Raises:
        RecipeError: there is no such question, it is asked of stays, or the split needs stays.
        SourceError: notes are damaged, or not one is left.
        StorageError: ``folder`` cannot be written.
    """
    cohort = note_categories.write(recipe, notes, read, folder)
    kind, name = cohort.task.kind, cohort.task.name
    titles = {category: (category,) for category in cohort.classes}
    leakage.run(
        cohort.path,
        cohort.classes,
        kind,
        folder,
        recipe.seed,
        adaptation_corpus,
        task=name,
        titles=titles,
    )
    meds.write(
        cohort.path,
        kind,
        cohort.classes,
        folder / "meds",
        recipe.source.name,
        "as shipped",
        category="Note",
        question=name,
    )
    return cohort
