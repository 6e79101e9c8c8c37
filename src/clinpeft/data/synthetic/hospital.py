"""The synthetic hospital: people, their stays, and the outcomes; ``notes.py`` writes the notes.

Every person has a random stream of their own, so that person 7 is the same in a hospital of 12 and
of 12,000. Severity depends on age and chronic illness, the signs of a stay on its severity, and all
outcomes on the signs alone, by ``outcome_model.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

import numpy as np

from clinpeft.data.synthetic import outcome_model
from clinpeft.data.synthetic.conditions import (
    AdmissionCondition,
    ChronicIllness,
    load_chronic_illnesses,
    load_conditions,
    load_newborn_condition,
)
from clinpeft.data.synthetic.outcome_model import (
    OutcomeProbabilities,
    PrognosticSign,
    VentilationCategory,
)
from clinpeft.data.synthetic.rates import (
    DEFAULT_SYNTHETIC_RATES,
    EARLY_DEATH_FRACTION,
    SyntheticRates,
)

T = TypeVar("T")

# Ids of MIMIC-III end below 100,000 and those of MIMIC-IV below 20,000,000, so that a synthetic id
# cannot be taken for a real one.
FIRST_SYNTHETIC_SUBJECT_ID = 900_000_001
FIRST_SYNTHETIC_STAY_ID = 950_000_001
MAX_PATIENT_STAYS = 12


class RandomStream:
    """Scalar draws from one random stream.

    Uniform numbers are drawn in blocks and kept as Python floats: drawing one by one from numpy
    would take longer than writing the notes.
    """

    def __init__(self, *seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._uniform_floats: Iterator[float] = itertools.chain.from_iterable(
            generator.random(1024).tolist() for _ in itertools.count()
        )

    def draw_bool(self, probability: float) -> bool:
        """Draw True with this probability."""
        return next(self._uniform_floats) < probability

    def choose(self, options: Sequence[T]) -> T:
        """Draw one of the options, each equally likely."""
        return options[int(next(self._uniform_floats) * len(options))]

    def draw_float(self, low: float, high: float) -> float:
        """Draw a number from [low, high)."""
        return low + (high - low) * next(self._uniform_floats)

    def draw_int(self, low: int, high: int) -> int:
        """Draw a whole number from low to high, both included."""
        return low + int(next(self._uniform_floats) * (high - low + 1))

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Draw ``count`` of the options (or all, if fewer) without replacement, in their order.

        Selection sampling (Knuth, The Art of Computer Programming 2, section 3.4.2, algorithm S).
        """
        needed, selected = min(count, len(options)), []
        for i, option in enumerate(options):
            if next(self._uniform_floats) * (len(options) - i) < needed:
                selected.append(option)
                needed -= 1
        return selected


@dataclass(frozen=True)
class Patient:
    """One person; ``age`` in years and ``home_drugs`` are those of the first admission."""

    subject_id: int
    sex: str
    age: int
    history: tuple[ChronicIllness, ...]
    home_drugs: tuple[str, ...]
    is_newborn: bool = False


@dataclass(frozen=True)
class IntensiveCareStay:
    """Intensive care, and the invasive ventilation in it.

    ``ventilated_from`` and ``ventilated_until`` are its first and last moment, whatever lies
    between; both are None without ventilation.
    """

    began_at: datetime
    ended_at: datetime
    ventilated_from: datetime | None
    ventilated_until: datetime | None


@dataclass(frozen=True)
class DataDefects:
    """Defects planted in a stay.

    ``death_mention`` names the part of its summary that states the death: ``story``, ``exam``, or
    empty for none.
    """

    has_no_notes: bool = False
    has_discharge_before_admission: bool = False
    overlaps_next_stay: bool = False
    death_mention: str = ""


@dataclass(frozen=True)
class Stay:
    """One admission.

    Attributes:
        stay_id: unique in the hospital.
        number: from 0, among the stays of the person.
        patient: the person.
        age: in years, at admission.
        condition: why.
        severity: 0 mild, 1 moderate, 2 severe.
        signs: stated in the admission note.
        probabilities: of the outcomes, given the signs.
        admitted_at, discharged_at: as they were, whatever the tables say.
        complaint: chief complaint.
        procedure: template of the main procedure.
        complications: as many as the severity.
        labs: name -> (value at admission, value at discharge).
        drugs_before, drugs_after: medicines at admission and at discharge.
        intensive_care: None without.
        ventilation_category: of the invasive ventilation.
        died_in_hospital: whether the stay ended in death.
        was_readmitted: within 30 days; None where it cannot be known.
        died_after_discharge_at: day of a death outside the hospital, if any.
        defects: what was planted.
    """

    stay_id: int
    number: int
    patient: Patient
    age: int
    condition: AdmissionCondition
    severity: int
    signs: tuple[PrognosticSign, ...]
    probabilities: OutcomeProbabilities
    admitted_at: datetime
    discharged_at: datetime
    complaint: str
    procedure: str
    complications: tuple[str, ...]
    labs: Mapping[str, tuple[float, float]]
    drugs_before: tuple[str, ...]
    drugs_after: tuple[str, ...]
    intensive_care: IntensiveCareStay | None
    ventilation_category: VentilationCategory
    died_in_hospital: bool
    was_readmitted: bool | None = None
    died_after_discharge_at: datetime | None = None
    defects: DataDefects = DataDefects()  # frozen

    @property
    def days(self) -> int:
        """Whole nights in the hospital."""
        return (self.discharged_at.date() - self.admitted_at.date()).days

    @property
    def needed_icu(self) -> bool:
        """Whether the stay was in intensive care."""
        return self.intensive_care is not None

    @property
    def was_ventilated(self) -> bool:
        """Whether there was invasive ventilation."""
        return self.ventilation_category != "none"


def generate_patient_stays(
    index: int,
    seed: int,
    has_newborns: bool = False,
    rates: SyntheticRates = DEFAULT_SYNTHETIC_RATES,
) -> list[Stay]:
    """Generate all admissions of one person.

    Args:
        index: of the person, from 0.
        seed: of the hospital.
        has_newborns: whether some people are born here.
        rates: how often defects are planted.

    Returns:
        Stays in order of admission; a death ends them.
    """
    # Draws that are not used are made too, so that a rate of 0 leaves the other draws as they are.
    rng = RandomStream(seed, index)
    patient = _draw_patient(index, rng, rng.draw_bool(rates.newborns) and has_newborns)
    # Dates lie in the future, as the shifted dates of MIMIC do
    admission_time = datetime(rng.draw_int(2110, 2190), 1, 1)
    admission_time += timedelta(days=rng.draw_int(0, 364))
    if patient.is_newborn:
        return [_draw_birth_stay(patient, admission_time, rng)]
    if rng.draw_bool(rates.discharges_before_admission):
        # Such a person is admitted once, so that no outcome of another stay depends on this one.
        stay = _draw_stay(patient, admission_time, [], rates, rng)
        return [replace(stay, defects=replace(stay.defects, has_discharge_before_admission=True))]
    stays: list[Stay] = []
    next_admission: datetime | None = admission_time
    while next_admission and len(stays) < MAX_PATIENT_STAYS:
        stay = _draw_stay(patient, next_admission, stays, rates, rng)
        stay, next_admission = _draw_next_admission(stay, rates, rng)
        stays.append(stay)
    return stays


def _draw_patient(index: int, rng: RandomStream, is_newborn: bool) -> Patient:
    subject_id = FIRST_SYNTHETIC_SUBJECT_ID + index
    # The power makes ages skewed towards the old; 91 stands for all above 89
    sex, age = rng.choose("FM"), min(91, int(24 + 70 * rng.draw_float(0.0, 1.0) ** 0.6))
    if is_newborn:
        return Patient(subject_id, sex, 0, (), (), is_newborn=True)
    burden = 0.35 + age / 80  # chronic illness grows with age
    illnesses = [chronic for chronic in load_chronic_illnesses() if chronic.sex in ("", sex)]
    history = tuple(chronic for chronic in illnesses if rng.draw_bool(chronic.share / 100 * burden))
    drugs = tuple(rng.choose(chronic.drugs) for chronic in history if chronic.drugs)
    return Patient(subject_id, sex, age, history, drugs)


def _draw_next_admission(
    stay: Stay, rates: SyntheticRates, rng: RandomStream
) -> tuple[Stay, datetime | None]:
    """Return the stay with what follows it, and when the next one begins (None without one)."""
    # Drawn together before any return, so that the stream is the same for all outcomes
    overlaps_next, returns_early, returns_late = (
        rng.draw_bool(rates.overlapping_admissions),
        rng.draw_bool(stay.probabilities.readmitted),
        rng.draw_bool(rates.later_admissions),
    )
    if stay.died_in_hospital:
        return stay, None
    if overlaps_next and stay.days:
        admitted_at = stay.discharged_at - timedelta(minutes=rng.draw_int(30, 600))
        return replace(stay, defects=replace(stay.defects, overlaps_next_stay=True)), admitted_at
    # After the last stay that is generated, whether there would be another is unknown.
    is_last = stay.number + 1 == MAX_PATIENT_STAYS
    stay = replace(stay, was_readmitted=None if is_last else returns_early)
    if returns_early:
        pause = timedelta(days=rng.draw_int(2, 28), minutes=rng.draw_int(0, 1300))
        return stay, stay.discharged_at + pause
    if returns_late:
        pause = timedelta(days=rng.draw_int(45, 400), minutes=rng.draw_int(0, 1439))
        return stay, stay.discharged_at + pause
    if rng.draw_bool(rates.deaths_after_discharge):
        days = rng.draw_int(1, 29) if rng.draw_bool(EARLY_DEATH_FRACTION) else rng.draw_int(35, 360)
        discharge_day = datetime.combine(stay.discharged_at.date(), datetime.min.time())
        stay = replace(stay, died_after_discharge_at=discharge_day + timedelta(days=days))
    return stay, None


def _draw_birth_stay(patient: Patient, birth_day: datetime, rng: RandomStream) -> Stay:
    born_at = birth_day.replace(hour=rng.draw_int(0, 23), minute=rng.draw_int(0, 59))
    condition = load_newborn_condition()
    return Stay(
        stay_id=FIRST_SYNTHETIC_STAY_ID
        + (patient.subject_id - FIRST_SYNTHETIC_SUBJECT_ID) * MAX_PATIENT_STAYS,
        number=0,
        patient=patient,
        age=0,
        condition=condition,
        severity=0,
        signs=(),
        probabilities=outcome_model.compute_outcome_probabilities(()),
        admitted_at=born_at,
        discharged_at=born_at + timedelta(hours=rng.draw_int(40, 120)),
        complaint=condition.complaints[0],
        procedure="None",
        complications=(),
        labs={},
        drugs_before=(),
        drugs_after=condition.drugs,
        intensive_care=None,
        ventilation_category="none",
        died_in_hospital=False,
    )


def _draw_stay(
    patient: Patient,
    admission_time: datetime,
    earlier_stays: Sequence[Stay],
    rates: SyntheticRates,
    rng: RandomStream,
) -> Stay:
    """Draw a stay: condition, severity, signs, outcomes, and the details that notes report."""
    first, previous = (earlier_stays[0], earlier_stays[-1]) if earlier_stays else (None, None)
    # A third of readmissions are for the same condition.
    returns_with_same = previous is not None and rng.draw_bool(0.35)
    condition = previous.condition if previous and returns_with_same else _draw_condition(rng)
    age = patient.age + (admission_time.year - first.admitted_at.year if first else 0)
    # Age and chronic illness make severe stays more likely.
    score = rng.draw_float(0.0, 1.0) + 0.004 * (age - 60) + 0.03 * (len(patient.history) - 3)
    severity = 0 if score < 0.5 else 1 if score < 0.85 else 2
    # Independent given the severity
    signs = tuple(
        sign
        for sign in outcome_model.load_prognostic_signs()
        if rng.draw_bool(sign.share[severity])
    )
    probabilities = outcome_model.compute_outcome_probabilities(signs)
    died = rng.draw_bool(probabilities.death)
    ventilation_category = _draw_ventilation_category(probabilities, rng)
    admitted_at = admission_time
    if previous is None:  # a readmission has its time of day from the discharge before it
        admitted_at = admission_time.replace(hour=rng.draw_int(0, 23), minute=rng.draw_int(0, 59))
    # A death on a ventilation of less than seven days comes within them: whether the ventilation
    # would have been prolonged stays unknown.
    is_cut_short = died and ventilation_category in ("brief", "medium")
    length_of_stay_days = outcome_model.compute_length_of_stay_days(
        probabilities,
        rng.draw_float(0.0, 1.0),
        outcome_model.MIN_STAY_DAYS_BY_VENTILATION[ventilation_category],
        6.9 if is_cut_short else outcome_model.MAX_STAY_DAYS,
    )
    discharged_at = admitted_at + timedelta(minutes=round(1440 * length_of_stay_days))
    drugs_before = previous.drugs_after if previous else patient.home_drugs
    return Stay(
        stay_id=FIRST_SYNTHETIC_STAY_ID
        + (patient.subject_id - FIRST_SYNTHETIC_SUBJECT_ID) * MAX_PATIENT_STAYS
        + len(earlier_stays),
        number=len(earlier_stays),
        patient=patient,
        age=age,
        condition=condition,
        severity=severity,
        signs=signs,
        probabilities=probabilities,
        admitted_at=admitted_at,
        discharged_at=discharged_at,
        complaint=rng.choose(condition.complaints),
        procedure=rng.choose(condition.procedures),
        complications=tuple(rng.sample(condition.complications, severity)),
        labs=_draw_labs(condition, severity, rng),
        drugs_before=drugs_before,
        drugs_after=tuple(
            dict.fromkeys([*drugs_before, *rng.sample(condition.drugs, rng.draw_int(1, 3))])
        )[-14:],  # the latest, so that lists do not grow without end
        intensive_care=_draw_intensive_care(
            probabilities, ventilation_category, admitted_at, discharged_at, rng
        ),
        ventilation_category=ventilation_category,
        died_in_hospital=died,
        defects=_draw_defects(died, rates, rng),
    )


def _draw_defects(died: bool, rates: SyntheticRates, rng: RandomStream) -> DataDefects:
    # A dead patient's summary states the death, as some real ones do: an answer in the input
    has_no_notes = rng.draw_bool(rates.admissions_without_notes)
    if not died:
        return DataDefects(has_no_notes=has_no_notes)
    level = rng.draw_float(0.0, 1.0)
    if level < rates.death_in_exam:
        return DataDefects(has_no_notes=has_no_notes, death_mention="exam")
    is_in_story = level < rates.death_in_exam + rates.death_in_history
    return DataDefects(has_no_notes=has_no_notes, death_mention="story" if is_in_story else "")


def _draw_condition(rng: RandomStream) -> AdmissionCondition:
    """Draw a condition in proportion to its share."""
    conditions = load_conditions()
    remainder = rng.draw_float(0, sum(condition.share for condition in conditions))
    for condition in conditions:
        remainder -= condition.share
        if remainder < 0:
            return condition
    return conditions[-1]


def _draw_ventilation_category(
    probabilities: OutcomeProbabilities, rng: RandomStream
) -> VentilationCategory:
    if not rng.draw_bool(probabilities.ventilated):
        return "none"
    if rng.draw_bool(probabilities.prolonged):
        return "prolonged"
    return "brief" if rng.draw_bool(outcome_model.BRIEF_VENTILATION_FRACTION) else "medium"


def _draw_intensive_care(
    probabilities: OutcomeProbabilities,
    ventilation_category: VentilationCategory,
    admitted_at: datetime,
    discharged_at: datetime,
    rng: RandomStream,
) -> IntensiveCareStay | None:
    # Ventilation implies intensive care
    if ventilation_category == "none" and not rng.draw_bool(probabilities.intensive):
        return None
    began_at = admitted_at + timedelta(minutes=rng.draw_int(20, 150))
    if ventilation_category == "none":
        longest_hours = (discharged_at - began_at).total_seconds() / 3600 - 0.2
        hours = min(rng.draw_float(14.0, 100.0), longest_hours)
        ended_at = began_at + timedelta(minutes=round(60 * hours))
        return IntensiveCareStay(began_at, ended_at, None, None)
    stay_hours = (discharged_at - admitted_at).total_seconds() / 3600
    # One draw for each category, so that the stream does not depend on which it is
    ventilation_hours = {
        "brief": rng.draw_float(6.0, 40.0),
        "medium": rng.draw_float(54.0, 148.0),
        "prolonged": rng.draw_float(176.0, max(177.0, stay_hours - 12.0)),
    }[ventilation_category]
    first = began_at + timedelta(minutes=rng.draw_int(5, 60))
    last = first + timedelta(minutes=round(60 * ventilation_hours))
    ended_at = min(discharged_at, last + timedelta(minutes=rng.draw_int(60, 2400)))
    return IntensiveCareStay(began_at, ended_at, first, last)


def _draw_labs(
    condition: AdmissionCondition, severity: int, rng: RandomStream
) -> dict[str, tuple[float, float]]:
    """Draw values at admission, between mild and severe, and at discharge, back towards mild."""
    labs = {}
    for name, (mild, severe) in condition.labs.items():
        position = min(1.0, max(0.0, severity / 2 + rng.draw_float(-0.25, 0.25)))
        labs[name] = (
            mild + (severe - mild) * position,
            mild + (severe - mild) * position * rng.draw_float(0.0, 0.4),
        )
    return labs
