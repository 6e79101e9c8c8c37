"""A clinical task as data: which stays, at what time, from which text, with which label.

All rules are SQL over the tables ``stay``, ``icu_stay`` and ``code`` and the table
``selected_stay``: the stays still in the cohort, with the columns of ``stay`` and
``prediction_time``. Nothing here reads a file; ``cohorts.build_cohort`` executes a task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clinpeft.core.schemas import Attrition, HospitalDatabase, ProblemType
from clinpeft.data.cohorts.sections import SectionStyle
from clinpeft.recipe import TaskSpec


@dataclass(frozen=True)
class ExclusionCriterion:
    """One named step of a cohort.

    Attributes:
        name: what the remaining stays satisfy, as in ``attrition.json``.
        excluded_query: SELECT ``stay_id``, ``reason`` of the excluded stays; of several reasons of
            one stay the first in alphabetical order is counted.
    """

    name: str
    excluded_query: str


@dataclass(frozen=True)
class NoteSelection:
    """Which notes a model may read for a prediction.

    Attributes:
        section_style: which sections of a note are kept (``cohorts.sections``).
        is_simulated: the text is an admission note simulated from the discharge summary, the one
            exception to the rule that a note must be available at the prediction time, since no
            public data set has the notes written at admission. Otherwise a note that became
            available after the prediction time is dropped and counted.
        waits_for_last_note: the prediction time is that of the last note, so that all may be read.
        deduplication_scope: a repeated text is read once within its ``stay``, or ``everywhere`` as
            in the published builder.
        excludes_death_mentions: notes that mention the patient's death are dropped, since they
            state the label.
        categories: categories of notes in lower case; empty: all.
    """

    section_style: SectionStyle
    is_simulated: bool
    waits_for_last_note: bool = False
    deduplication_scope: Literal["stay", "everywhere"] = "stay"
    excludes_death_mentions: bool = False
    categories: tuple[str, ...] = ("discharge summary", "discharge addendum")


@dataclass(frozen=True)
class ClinicalTask:
    """A clinical prediction task.

    Attributes:
        name: its key in ``CLINICAL_TASKS``.
        question: what is predicted, in one sentence.
        kind: binary, multiclass or multilabel.
        metric: the main one: ``auroc`` (binary), ``auroc_ovo`` (multiclass), ``auroc_macro``
            (multilabel).
        note_selection: the text.
        prediction_unit: ``stays``; or ``notes`` without stays, whose category is predicted and
            which need none of the fields below.
        prediction_time: SQL over ``stay``; what is available up to and including it may be read.
        exclusion_criteria: in order; a stay whose label is unknown is excluded by one of them and
            never becomes a class.
        label_query: SELECT ``stay_id``, ``label`` (class index); of a multilabel task ``stay_id``,
            ``kind``, ``system``, ``code`` of all that apply.
        classes: names in the order of their index; empty where codes or categories of the data are
            the classes.
        required_tables: of ``icu_stay``, ``diagnosis`` and ``procedure``, those the labels need.
        label_space_query: of a multilabel task, SELECT ``kind``, ``system``, ``code`` of all
            classes; empty: those that occur in the cohort.
        code_grouping: of a multilabel task, SQL over ``code``: the class of a code, as in
            ``label_query``.
        prepare_tables: creates further tables for criteria and labels; returns their attrition.
    """

    name: str
    question: str
    kind: ProblemType
    metric: str
    note_selection: NoteSelection
    prediction_unit: Literal["stays", "notes"] = "stays"
    prediction_time: str = ""
    exclusion_criteria: tuple[ExclusionCriterion, ...] = ()
    label_query: str = ""
    classes: tuple[str, ...] = ()
    required_tables: tuple[str, ...] = ()
    label_space_query: str = ""
    code_grouping: str = ""
    prepare_tables: Callable[[HospitalDatabase, TaskSpec], tuple[Attrition, ...]] | None = None
