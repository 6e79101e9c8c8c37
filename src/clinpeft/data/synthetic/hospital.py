"""Who comes to the invented hospital and what happens to them: people, stays, outcomes. No words here; ``notes.py`` writes them down.

Every person has a random stream of their own, so that person 7 is the same in a hospital of 12 and of 12,000. Severity follows from age and
chronic illness, the signs of a stay from its severity, and everything that happens from the signs alone, by the known rule of ``rule.py``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import numpy as np

from clinpeft.data.synthetic import outcome_model
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

FIRST_SYNTHETIC_SUBJECT_ID = 900_000_001  # MIMIC-III ends below 100,000 and MIMIC-IV below 20,000,000: an invented id cannot be taken for a real one
FIRST_SYNTHETIC_STAY_ID = 950_000_001
MAX_PATIENT_STAYS = 12


class RandomStream:
    """Draws from one random stream, kept in plain floats: a thousand draws from numpy one by one cost more than the notes themselves."""

    def __init__(self, *seed: int) -> None:
        self._uniform_floats = _generate_uniform_floats(np.random.default_rng(seed))

    def draw_bool(self, probability: float) -> bool:
        """True so often."""
        return next(self._uniform_floats) < probability

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(next(self._uniform_floats) * len(options))]

    def draw_float(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * next(self._uniform_floats)

    def draw_int(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(next(self._uniform_floats) * (high - low + 1))

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` of the options (or all, if fewer), in their order."""
        left, chosen = min(count, len(options)), []
        for i, option in enumerate(options):
            if next(self._uniform_floats) * (len(options) - i) < left:
                chosen.append(option)
                left -= 1
        return chosen


def _generate_uniform_floats(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(1024).tolist()


@dataclass(frozen=True)
class ImagingStudy:
    """An imaging study and how it is reported."""

    exam: str
    technique: str
    findings: tuple[str, ...]
    impression: tuple[str, ...]


@dataclass(frozen=True)
class AdmissionCondition:
    """Why somebody is admitted: the words of ``conditions.toml``, and labs as (when mild, when severe)."""

    name: str
    short: str
    share: float
    service: str
    complaints: tuple[str, ...]
    story: tuple[str, ...]
    denies: tuple[str, ...]
    exam: Mapping[str, str]
    labs: Mapping[str, tuple[float, float]]
    micro: tuple[str, ...]
    procedures: tuple[str, ...]
    course: tuple[str, ...]
    severe: tuple[str, ...]
    complications: tuple[str, ...]
    drugs: tuple[str, ...]
    instructions: tuple[str, ...]
    nursing: tuple[str, ...]
    studies: tuple[ImagingStudy, ...]


@dataclass(frozen=True)
class ChronicIllness:
    """An illness that is brought along; ``sex`` where only one has it, else empty."""

    name: str
    short: str
    share: float
    drugs: tuple[str, ...]
    sex: str = ""


@dataclass(frozen=True)
class Patient:
    """One invented person; ``home_drugs`` are those of the first admission."""

    subject_id: int
    sex: str
    age: int
    history: tuple[ChronicIllness, ...]
    home_drugs: tuple[str, ...]
    is_newborn: bool = False


@dataclass(frozen=True)
class IntensiveCareStay:
    """Intensive care, and the ventilation in it: from the first to the last moment, whatever lies between; both None without."""

    began_at: datetime
    ended_at: datetime
    ventilated_from: datetime | None
    ventilated_until: datetime | None


@dataclass(frozen=True)
class DataDefects:
    """What was planted in a stay; ``death_mention`` names the part of its summary that says the patient died."""

    has_no_notes: bool = False
    has_discharge_before_admission: bool = False
    overlaps_next_stay: bool = False
    death_mention: str = ""


@dataclass(frozen=True)
class Stay:
    """One admission: why, how ill (0 mild, 1 moderate, 2 severe), with which signs, how long, what was done, how it ended.

    ``labs`` are (at admission, at discharge); ``was_readmitted`` is within 30 days, None where nobody will know; ``died_after_discharge_at`` the day of a death
    outside, if any.
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
    """All admissions of person ``index`` (from 0), in order of admission; death ends them. Some are born here, where there are ``has_newborns``."""
    dice = RandomStream(seed, index)
    patient = _draw_patient(index, dice, dice.draw_bool(rates.newborns) and has_newborns)
    moment = datetime(dice.draw_int(2110, 2190), 1, 1) + timedelta(days=dice.draw_int(0, 364))
    if patient.is_newborn:
        return [_draw_birth_stay(patient, moment, dice)]
    if dice.draw_bool(
        rates.discharges_before_admission
    ):  # comes once, so that no other stay's outcome hangs on it
        stay = _draw_stay(patient, 0, moment, [], rates, dice)
        return [replace(stay, defects=replace(stay.defects, has_discharge_before_admission=True))]
    stays: list[Stay] = []
    while not stays or not (stays[-1].died_in_hospital or len(stays) == MAX_PATIENT_STAYS):
        stay = _draw_stay(patient, len(stays), moment, stays, rates, dice)
        stay, after = _draw_next_admission(stay, rates, dice)
        stays.append(stay)
        if after is None:
            break
        moment = after
    return stays


def _draw_next_admission(
    stay: Stay, rates: SyntheticRates, rng: RandomStream
) -> tuple[Stay, datetime | None]:
    """The stay, knowing what follows it, and when the next one begins; None without one."""
    overlapped, back, later = (
        rng.draw_bool(rates.overlapping_admissions),
        rng.draw_bool(stay.probabilities.readmitted),
        rng.draw_bool(rates.later_admissions),
    )
    if stay.died_in_hospital:
        return stay, None
    if overlapped and stay.days:
        begun = stay.discharged_at - timedelta(minutes=rng.draw_int(30, 600))
        return replace(stay, defects=replace(stay.defects, overlaps_next_stay=True)), begun
    stay = replace(stay, was_readmitted=back if stay.number + 1 < MAX_PATIENT_STAYS else None)
    if back:
        return stay, stay.discharged_at + timedelta(
            days=rng.draw_int(2, 28), minutes=rng.draw_int(0, 1300)
        )
    if later:
        return stay, stay.discharged_at + timedelta(
            days=rng.draw_int(45, 400), minutes=rng.draw_int(0, 1439)
        )
    if rng.draw_bool(rates.deaths_after_discharge):
        days = rng.draw_int(1, 29) if rng.draw_bool(EARLY_DEATH_FRACTION) else rng.draw_int(35, 360)
        return replace(
            stay,
            died_after_discharge_at=datetime.combine(stay.discharged_at.date(), datetime.min.time())
            + timedelta(days=days),
        ), None
    return stay, None


def _draw_patient(index: int, rng: RandomStream, is_newborn: bool) -> Patient:
    sex, age = rng.choose("FM"), min(91, int(24 + 70 * rng.draw_float(0.0, 1.0) ** 0.6))
    if is_newborn:
        return Patient(FIRST_SYNTHETIC_SUBJECT_ID + index, sex, 0, (), (), is_newborn=True)
    burden = 0.35 + age / 80  # chronic illness grows with age
    known = [chronic for chronic in load_chronic_illnesses() if chronic.sex in ("", sex)]
    history = tuple(chronic for chronic in known if rng.draw_bool(chronic.share / 100 * burden))
    drugs = tuple(rng.choose(chronic.drugs) for chronic in history if chronic.drugs)
    return Patient(FIRST_SYNTHETIC_SUBJECT_ID + index, sex, age, history, drugs)


def _draw_birth_stay(patient: Patient, birth_day: datetime, rng: RandomStream) -> Stay:
    born = birth_day.replace(hour=rng.draw_int(0, 23), minute=rng.draw_int(0, 59))
    left = born + timedelta(hours=rng.draw_int(40, 120))
    why = load_newborn_condition()
    return Stay(
        stay_id=FIRST_SYNTHETIC_STAY_ID
        + (patient.subject_id - FIRST_SYNTHETIC_SUBJECT_ID) * MAX_PATIENT_STAYS,
        number=0,
        patient=patient,
        age=0,
        condition=why,
        severity=0,
        signs=(),
        probabilities=outcome_model.compute_outcome_probabilities(()),
        admitted_at=born,
        discharged_at=left,
        complaint=why.complaints[0],
        procedure="None",
        complications=(),
        labs={},
        drugs_before=(),
        drugs_after=why.drugs,
        intensive_care=None,
        ventilation_category="none",
        died_in_hospital=False,
    )


def _draw_stay(
    patient: Patient,
    number: int,
    admission_time: datetime,
    earlier_stays: Sequence[Stay],
    rates: SyntheticRates,
    rng: RandomStream,
) -> Stay:
    condition = (
        earlier_stays[-1].condition
        if earlier_stays and rng.draw_bool(0.35)
        else _draw_condition(rng)
    )
    age = patient.age + (
        admission_time.year - earlier_stays[0].admitted_at.year if earlier_stays else 0
    )
    severity = _draw_severity(age, len(patient.history), rng)
    signs = tuple(
        sign
        for sign in outcome_model.load_prognostic_signs()
        if rng.draw_bool(sign.share[severity])
    )
    chances = outcome_model.compute_outcome_probabilities(signs)
    died, breathing = rng.draw_bool(chances.death), _draw_ventilation_category(chances, rng)
    admitted = (
        admission_time
        if earlier_stays
        else admission_time.replace(hour=rng.draw_int(0, 23), minute=rng.draw_int(0, 59))
    )
    discharged = admitted + timedelta(
        minutes=round(1440 * _draw_length_of_stay_days(chances, breathing, died, rng))
    )
    drugs_before = earlier_stays[-1].drugs_after if earlier_stays else patient.home_drugs
    return Stay(
        stay_id=FIRST_SYNTHETIC_STAY_ID
        + (patient.subject_id - FIRST_SYNTHETIC_SUBJECT_ID) * MAX_PATIENT_STAYS
        + number,
        number=number,
        patient=patient,
        age=age,
        condition=condition,
        severity=severity,
        signs=signs,
        probabilities=chances,
        admitted_at=admitted,
        discharged_at=discharged,
        complaint=rng.choose(condition.complaints),
        procedure=rng.choose(condition.procedures),
        complications=tuple(rng.sample(condition.complications, severity)),
        labs=_draw_labs(condition, severity, rng),
        drugs_before=drugs_before,
        drugs_after=tuple(
            dict.fromkeys([*drugs_before, *rng.sample(condition.drugs, rng.draw_int(1, 3))])
        )[-14:],
        intensive_care=_draw_intensive_care(chances, breathing, admitted, discharged, rng),
        ventilation_category=breathing,
        died_in_hospital=died,
        defects=DataDefects(
            has_no_notes=rng.draw_bool(rates.admissions_without_notes),
            death_mention=_draw_death_mention(rng, rates) if died else "",
        ),
    )


def _draw_ventilation_category(
    probabilities: OutcomeProbabilities, rng: RandomStream
) -> VentilationCategory:
    if not rng.draw_bool(probabilities.ventilated):
        return "none"
    if rng.draw_bool(probabilities.prolonged):
        return "prolonged"
    return "brief" if rng.draw_bool(outcome_model.BRIEF_VENTILATION_FRACTION) else "medium"


def _draw_length_of_stay_days(
    probabilities: OutcomeProbabilities,
    ventilation_category: VentilationCategory,
    died_in_hospital: bool,
    rng: RandomStream,
) -> float:
    """Who dies on a ventilator before seven days does so within them: whether it would have been prolonged, nobody knows."""
    cut_short = died_in_hospital and ventilation_category in ("brief", "medium")
    longest = 6.9 if cut_short else outcome_model.MAX_STAY_DAYS
    return outcome_model.compute_length_of_stay_days(
        probabilities,
        rng.draw_float(0.0, 1.0),
        outcome_model.MIN_STAY_DAYS_BY_VENTILATION[ventilation_category],
        longest,
    )


def _draw_intensive_care(
    probabilities: OutcomeProbabilities,
    ventilation_category: VentilationCategory,
    admitted_at: datetime,
    discharged_at: datetime,
    rng: RandomStream,
) -> IntensiveCareStay | None:
    if ventilation_category == "none" and not rng.draw_bool(probabilities.intensive):
        return None
    began = admitted_at + timedelta(minutes=rng.draw_int(20, 150))
    if ventilation_category == "none":
        hours = min(
            rng.draw_float(14.0, 100.0), (discharged_at - began).total_seconds() / 3600 - 0.2
        )
        return IntensiveCareStay(began, began + timedelta(minutes=round(60 * hours)), None, None)
    stay_hours = (discharged_at - admitted_at).total_seconds() / 3600
    lasting = {
        "brief": rng.draw_float(6.0, 40.0),
        "medium": rng.draw_float(54.0, 148.0),
        "prolonged": rng.draw_float(176.0, max(177.0, stay_hours - 12.0)),
    }
    first = began + timedelta(minutes=rng.draw_int(5, 60))
    last = first + timedelta(minutes=round(60 * lasting[ventilation_category]))
    return IntensiveCareStay(
        began, min(discharged_at, last + timedelta(minutes=rng.draw_int(60, 2400))), first, last
    )


def _draw_death_mention(rng: RandomStream, rates: SyntheticRates) -> str:
    draw = rng.draw_float(0.0, 1.0)
    return (
        "exam"
        if draw < rates.death_in_exam
        else "story"
        if draw < rates.death_in_exam + rates.death_in_history
        else ""
    )


def _draw_condition(rng: RandomStream) -> AdmissionCondition:
    known = load_conditions()
    draw = rng.draw_float(0, sum(condition.share for condition in known))
    for condition in known:
        draw -= condition.share
        if draw < 0:
            return condition
    return known[-1]


def _draw_severity(age: int, illnesses: int, rng: RandomStream) -> int:
    score = rng.draw_float(0.0, 1.0) + 0.004 * (age - 60) + 0.03 * (illnesses - 3)
    return 0 if score < 0.5 else 1 if score < 0.85 else 2


def _draw_labs(
    condition: AdmissionCondition, severity: int, rng: RandomStream
) -> dict[str, tuple[float, float]]:
    """At admission near the severity's point between mild and severe; at discharge back towards mild."""
    values = {}
    for name, (mild, severe) in condition.labs.items():
        at = min(1.0, max(0.0, severity / 2 + rng.draw_float(-0.25, 0.25)))
        values[name] = (
            mild + (severe - mild) * at,
            mild + (severe - mild) * at * rng.draw_float(0.0, 0.4),
        )
    return values


@cache
def load_conditions() -> tuple[AdmissionCondition, ...]:
    """Every reason for an admission."""
    return tuple(_parse_condition(entry) for entry in _read_conditions_file()["condition"])


@cache
def load_newborn_condition() -> AdmissionCondition:
    """Why a newborn is here."""
    return _parse_condition(_read_conditions_file()["newborn"])


@cache
def load_chronic_illnesses() -> tuple[ChronicIllness, ...]:
    """Every illness that people bring along."""
    return tuple(
        ChronicIllness(**_freeze_lists(entry)) for entry in _read_conditions_file()["chronic"]
    )


def _parse_condition(entry: dict[str, Any]) -> AdmissionCondition:
    studies = tuple(ImagingStudy(**_freeze_lists(study)) for study in entry["studies"])
    return AdmissionCondition(
        **{**_freeze_lists(entry), "labs": _freeze_lists(entry["labs"]), "studies": studies}
    )


def _freeze_lists(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@cache
def _read_conditions_file() -> dict[str, Any]:
    return tomllib.loads(
        resources.files(__package__).joinpath("conditions.toml").read_text(encoding="utf-8")
    )
