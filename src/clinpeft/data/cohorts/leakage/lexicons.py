"""Words that state the label of a task, as data: stems and phrases in lower case."""

from __future__ import annotations

import re

_CODING_WORDS = ("icd", "billing code", "coded as", "discharge diagnos", "final diagnos")

# Task -> stems, matched from the start of a word. A task without an entry has no lexicon; its audit
# reports ``outcome_words`` as not measured.
OUTCOME_LEXICONS: dict[str, tuple[str, ...]] = {
    "mortality": (
        *(
            "expired",
            "died",
            "deceased",
            "passed away",
            "pronounced",
            "time of death",
            "cause of death",
            "autopsy",
            "postmortem",
            "post-mortem",
        ),
        *(
            "morgue",
            "medical examiner",
            "comfort measures",
            "comfort care",
            "cmo",
            "hospice",
            "withdrawal of care",
            "withdrew care",
            "terminally extubated",
        ),
    ),
    "length_of_stay": (
        *(
            "hospital day",
            "day of discharge",
            "discharged",
            "length of stay",
            "prolonged hospital",
            "prolonged stay",
            "prolonged course",
        ),
        *("weeks in the hospital", "uneventful hospital"),
    ),
    "ventilation": (
        *(
            "tracheostomy",
            "trached",
            "trach",
            "failure to wean",
            "ventilator wean",
            "weaned",
            "prolonged ventilation",
            "prolonged intubation",
        ),
        *(
            "ventilator dependen",
            "vent dependen",
            "extubat",
            "reintubat",
            "ventilator day",
            "long-term acute",
        ),
    ),
    "readmission_30d": (
        "readmi",
        "re-admi",
        "rehospitali",
        "bounce back",
        "returned to the hospital",
        "subsequent admission",
    ),
    "diagnoses": _CODING_WORDS,
    "procedures": (
        *_CODING_WORDS,
        "status post procedure",
        "underwent",
        "operative note",
        "postoperative",
        "post-operative",
    ),
    "icd_coding": _CODING_WORDS[:3],
}


def compile_outcome_pattern(task_name: str) -> re.Pattern[str] | None:
    """The pattern of the words of a task in lower-case text; None for a task without a lexicon."""
    stems = OUTCOME_LEXICONS.get(task_name)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, stems)) + ")") if stems else None
