"""A clinical question as data: who is asked, when, what may be read then, and which answer is known.

Everything that decides is a relation in SQL over the tables ``stay``, ``icu_stay``, ``code`` and the table ``asked``: the stays still in the
cohort, with the columns of ``stay`` and ``prediction_time``. Nothing here touches a file; ``cohorts.build`` does what a task says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clinpeft.core.schemas import Attrition, HospitalDatabase, ProblemType
from clinpeft.data.cohorts.sections import Style
from clinpeft.recipe import TaskSpec


@dataclass(frozen=True)
class Rule:
    """One named step of a cohort.

    Attributes:
        name: what the step asks for, as it stands in ``attrition.json``.
        leaves: SELECT ``stay_id``, ``reason`` of the stays among ``asked`` that leave; of several reasons the first in the alphabet is counted.
    """

    name: str
    leaves: str


@dataclass(frozen=True)
class Reading:
    """What may be read for an answer.

    Attributes:
        style: how the text is cut (``cohorts.sections``); a simulated admission note is cut from the discharge summary, the one exception to the
            rule that a note must be available at the prediction time, since no public data set has the notes written at admission.
        simulated: that exception; otherwise a note that became available after the prediction time is left out, and counted.
        waits: the prediction is made when the last note is there, so that all of them may be read.
        repeated: where a text that occurs twice is read once: within its ``stay``, or ``everywhere`` (the published builder).
        without_deaths: notes in which the patient's death is mentioned leave, since they tell the answer.
        categories: of the notes, in lower case; none: every note.
    """

    style: Style
    simulated: bool
    waits: bool = False
    repeated: Literal["stay", "everywhere"] = "stay"
    without_deaths: bool = False
    categories: tuple[str, ...] = ("discharge summary", "discharge addendum")


@dataclass(frozen=True)
class Task:
    """A clinical question.

    Attributes:
        name: its key in ``TASKS``.
        question: what is asked, in one sentence.
        kind: one of two classes, one of several, or all that apply.
        metric: the main one: ``auroc`` (binary), ``auroc_ovo`` (multiclass), ``auroc_macro`` (multilabel).
        reading: what is read.
        asks: of ``stays``; or of ``notes`` that belong to none, under which category each is filed, which needs nothing of what follows.
        prediction_time: SQL over ``stay``: everything up to and including it may be read.
        needs: of ``icu_stay``, ``diagnosis`` and ``procedure``, the tables without which the question cannot be put.
        rules: steps, first to last; an unknown answer leaves by one of them and never becomes a class.
        answer: SELECT ``stay_id``, ``label`` (index of the class); for multilabel ``stay_id``, ``kind``, ``system``, ``code`` of all that apply.
        classes: names in the order of their index; empty where the codes or categories of the data make them.
        label_space: multilabel: SELECT ``kind``, ``system``, ``code`` of all classes; empty: those that occur in the cohort.
        group: multilabel: SQL over ``code`` that makes the class of a code; what ``answer`` is made of.
        prepare: makes the tables that rules and answer use, if any, and says what it left out.
    """

    name: str
    question: str
    kind: ProblemType
    metric: str
    reading: Reading
    asks: Literal["stays", "notes"] = "stays"
    prediction_time: str = ""
    rules: tuple[Rule, ...] = ()
    answer: str = ""
    classes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    label_space: str = ""
    group: str = ""
    prepare: Callable[[HospitalDatabase, TaskSpec], tuple[Attrition, ...]] | None = None
