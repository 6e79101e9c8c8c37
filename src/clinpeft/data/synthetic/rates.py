"""How often the invented hospital does what makes real data hard, and how much of everything there is: numbers to set, counts to check.

What was planted is counted in ``invented.json`` beside the data, so that a test can compare the counts with these rates.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Shares of what is named first in each line, and amounts at the end; the same rates, seed and number of people give the same bytes.

    Attributes:
        newborns: of people: born here (MIMIC-III only, MIMIC-IV has none).
        without_notes: of admissions: nothing was written, or nothing was kept.
        without_stay: of radiology reports: no HADM_ID.
        addenda: of discharge summaries and radiology reports: followed by an addendum.
        saved_twice: of notes: once more, word for word.
        saved_again: of notes: once more, after an edit.
        in_error: of nursing notes: ISERROR = 1 (MIMIC-III).
        stored_early: of notes: stored before they were charted (MIMIC-IV).
        quoted: of discharge summaries: quotation marks around several lines.
        death_in_exam: of the dead: the physical exam says so.
        death_in_history: of the dead: the history of present illness says so.
        bereaved: of discharge summaries: somebody else's death is mentioned.
        overlapping: of admissions: the next one begins before it ends.
        discharged_before: of people: come once, with DISCHTIME before ADMITTIME.
        died_after: of people discharged alive for the last time: a death within a year, a quarter of them within 30 days.
        charted_in_error: of charted rows: ERROR = 1 (MIMIC-III).
        padded_codes: of codes: with a trailing blank.
        mixed_versions: of admissions coded in ICD-9: a code of ICD-10 as well (MIMIC-IV).
        silences: of ventilations of two days and more: 9 to 20 hours in which nothing is charted.
        tracheostomies: of prolonged ventilations.
        reintubations: of ventilations without a tracheostomy.
        self_extubations: of extubations.
        later: of survivors who are not back within 30 days: an admission after that.
        charted_days: at most so many days of nursing notes in a stay.
        nursing_notes: in twelve hours of intensive care, and in a day on the ward.
        charted_minutes: from one charted moment to the next.
    """

    newborns: float = 0.03
    without_notes: float = 0.02
    without_stay: float = 0.1
    addenda: float = 0.1
    saved_twice: float = 0.02
    saved_again: float = 0.04
    in_error: float = 0.01
    stored_early: float = 0.01
    quoted: float = 0.15
    death_in_exam: float = 0.05
    death_in_history: float = 0.03
    bereaved: float = 0.05
    overlapping: float = 0.01
    discharged_before: float = 0.01
    died_after: float = 0.1
    charted_in_error: float = 0.002
    padded_codes: float = 0.002
    mixed_versions: float = 0.01
    silences: float = 0.1
    tracheostomies: float = 0.45
    reintubations: float = 0.2
    self_extubations: float = 0.1
    later: float = 0.75
    charted_days: int = 6
    nursing_notes: int = 1
    charted_minutes: int = 240


RATES = Rates()
REAL_SIZE = Rates(newborns=0.12, later=0.12, charted_days=14, nursing_notes=4, charted_minutes=30)
"""With 46,520 people, about as many admissions, notes and charted rows about breathing as MIMIC-III has; ``docs/synthetic.md`` has the numbers."""
EARLY_DEATHS = 0.25
"""Of deaths after discharge, those within 30 days."""
