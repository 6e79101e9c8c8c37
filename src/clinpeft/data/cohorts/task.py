"""A clinical question as data: who is asked, when, what may be read then, and which answer is known.

Everything that decides is a relation in SQL over the tables ``stay``, ``icu_stay``, ``code`` and the table ``asked``: the stays still in the
cohort, with the columns of ``stay`` and ``prediction_time``. Nothing here touches a file; ``cohorts.build`` does what a task says.
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
        name: what the step asks for, as it stands in ``attrition.json``.
        excluded_query: SELECT ``stay_id``, ``reason`` of the stays among ``asked`` that leave; of several reasons the first in the alphabet is counted.
    """

    name: str
    excluded_query: str


@dataclass(frozen=True)
class NoteSelection:
    """What may be read for an answer.

    Attributes:
        section_style: how the text is cut (``cohorts.sections``); a simulated admission note is cut from the discharge summary, the one exception to the
            rule that a note must be available at the prediction time, since no public data set has the notes written at admission.
        is_simulated: that exception; otherwise a note that became available after the prediction time is left out, and counted.
        waits_for_last_note: the prediction is made when the last note is there, so that all of them may be read.
        deduplication_scope: where a text that occurs twice is read once: within its ``stay``, or ``everywhere`` (the published builder).
        excludes_death_mentions: notes in which the patient's death is mentioned leave, since they tell the answer.
        categories: of the notes, in lower case; none: every note.
    """

    section_style: SectionStyle
    is_simulated: bool
    waits_for_last_note: bool = False
    deduplication_scope: Literal["stay", "everywhere"] = "stay"
    excludes_death_mentions: bool = False
    categories: tuple[str, ...] = ("discharge summary", "discharge addendum")


@dataclass(frozen=True)
class ClinicalTask:
    """A clinical question.

    Attributes:
        name: its key in ``TASKS``.
        question: what is asked, in one sentence.
        kind: one of two classes, one of several, or all that apply.
        metric: the main one: ``auroc`` (binary), ``auroc_ovo`` (multiclass), ``auroc_macro`` (multilabel).
        note_selection: what is read.
        prediction_unit: of ``stays``; or of ``notes`` that belong to none, under which category each is filed, which needs nothing of what follows.
        prediction_time: SQL over ``stay``: everything up to and including it may be read.
        required_tables: of ``icu_stay``, ``diagnosis`` and ``procedure``, the tables without which the question cannot be put.
        exclusion_criteria: steps, first to last; an unknown answer leaves by one of them and never becomes a class.
        label_query: SELECT ``stay_id``, ``label`` (index of the class); for multilabel ``stay_id``, ``kind``, ``system``, ``code`` of all that apply.
        classes: names in the order of their index; empty where the codes or categories of the data make them.
        label_space_query: multilabel: SELECT ``kind``, ``system``, ``code`` of all classes; empty: those that occur in the cohort.
        code_grouping: multilabel: SQL over ``code`` that makes the class of a code; what ``label_query`` is made of.
        prepare_tables: makes the tables that rules and answer use, if any, and says what it left out.
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
