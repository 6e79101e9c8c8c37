"""How often the synthetic hospital has the defects of real data, and how much of everything it has.

What was planted is counted in ``invented.json`` beside the data, so that tests can compare the
counts with these rates.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SyntheticRates:
    """Fractions of what is named first in each line, and amounts at the end.

    The same rates, seed and number of people give the same bytes.

    Attributes:
        newborns: of people: born here (MIMIC-III only, MIMIC-IV has none).
        admissions_without_notes: of admissions: no note was written or saved.
        reports_without_stay: of radiology reports: no HADM_ID.
        addenda: of discharge summaries and radiology reports: followed by an addendum.
        exact_duplicates: of notes: once more, word for word.
        near_duplicates: of notes: once more, after an edit.
        notes_in_error: of nursing notes: ISERROR = 1 (MIMIC-III).
        notes_stored_early: of notes: stored before they were charted (MIMIC-IV).
        quoted_summaries: of discharge summaries: quotation marks around several lines.
        death_in_exam: of the dead: the physical exam says so.
        death_in_history: of the dead: the history of present illness says so.
        other_deaths_mentioned: of discharge summaries: the death of a relative is mentioned.
        overlapping_admissions: of admissions: the next one begins before it ends.
        discharges_before_admission: of people: one admission, with DISCHTIME before ADMITTIME.
        deaths_after_discharge: of people discharged alive for the last time: a death within a year,
            a quarter of them within 30 days.
        charted_rows_in_error: of charted rows: ERROR = 1 (MIMIC-III).
        padded_codes: of codes: with a trailing blank.
        mixed_versions: of admissions coded in ICD-9: a code of ICD-10 as well (MIMIC-IV).
        uncharted_intervals: of ventilations of two days and more: 9 to 20 hours in which nothing is
            charted.
        tracheostomies: of prolonged ventilations.
        reintubations: of ventilations without a tracheostomy.
        self_extubations: of extubations.
        later_admissions: of survivors without a readmission within 30 days: a later one.
        max_nursing_days: days of a stay that have nursing notes, at most.
        nursing_notes: in 12 hours of intensive care, and in a day on the ward.
        charting_interval_minutes: from one charted minute to the next.
    """

    newborns: float = 0.03
    admissions_without_notes: float = 0.02
    reports_without_stay: float = 0.1
    addenda: float = 0.1
    exact_duplicates: float = 0.02
    near_duplicates: float = 0.04
    notes_in_error: float = 0.01
    notes_stored_early: float = 0.01
    quoted_summaries: float = 0.15
    death_in_exam: float = 0.05
    death_in_history: float = 0.03
    other_deaths_mentioned: float = 0.05
    overlapping_admissions: float = 0.01
    discharges_before_admission: float = 0.01
    deaths_after_discharge: float = 0.1
    charted_rows_in_error: float = 0.002
    padded_codes: float = 0.002
    mixed_versions: float = 0.01
    uncharted_intervals: float = 0.1
    tracheostomies: float = 0.45
    reintubations: float = 0.2
    self_extubations: float = 0.1
    later_admissions: float = 0.75
    max_nursing_days: int = 6
    nursing_notes: int = 1
    charting_interval_minutes: int = 240


# Small and fast, with every defect frequent enough to occur among a few hundred people
DEFAULT_SYNTHETIC_RATES = SyntheticRates()
# With 46,520 people, about as many admissions, notes and charted rows about breathing as MIMIC-III
# has; docs/synthetic.md has the numbers.
MIMIC_SIZE_RATES = SyntheticRates(
    newborns=0.12,
    later_admissions=0.12,
    max_nursing_days=14,
    nursing_notes=4,
    charting_interval_minutes=30,
)
# Of deaths after discharge, those within 30 days; they leave the cohort of readmission.
EARLY_DEATH_FRACTION = 0.25
