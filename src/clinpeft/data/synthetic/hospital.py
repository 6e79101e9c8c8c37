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
from clinpeft.data.synthetic.outcome_model import Breathing, Chances, Sign
from clinpeft.data.synthetic.rates import EARLY_DEATHS, RATES, Rates

T = TypeVar("T")

FIRST_SUBJECT = 900_000_001  # MIMIC-III ends below 100,000 and MIMIC-IV below 20,000,000: an invented id cannot be taken for a real one
FIRST_STAY = 950_000_001
MOST_STAYS = 12


class Dice:
    """Draws from one random stream, kept in plain floats: a thousand draws from numpy one by one cost more than the notes themselves."""

    def __init__(self, *seed: int) -> None:
        self._floats = _floats(np.random.default_rng(seed))

    def chance(self, probability: float) -> bool:
        """True so often."""
        return next(self._floats) < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(next(self._floats) * len(options))]

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * next(self._floats)

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(next(self._floats) * (high - low + 1))

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` of the options (or all, if fewer), in their order."""
        left, chosen = min(count, len(options)), []
        for i, option in enumerate(options):
            if next(self._floats) * (len(options) - i) < left:
                chosen.append(option)
                left -= 1
        return chosen


def _floats(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(1024).tolist()


@dataclass(frozen=True)
class Study:
    """An imaging study and how it is reported."""

    exam: str
    technique: str
    findings: tuple[str, ...]
    impression: tuple[str, ...]


@dataclass(frozen=True)
class Condition:
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
    studies: tuple[Study, ...]


@dataclass(frozen=True)
class Chronic:
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
    history: tuple[Chronic, ...]
    home_drugs: tuple[str, ...]
    newborn: bool = False


@dataclass(frozen=True)
class Intensive:
    """Intensive care, and the ventilation in it: from the first to the last moment, whatever lies between; both None without."""

    began: datetime
    ended: datetime
    ventilated_from: datetime | None
    ventilated_until: datetime | None


@dataclass(frozen=True)
class Traps:
    """What was planted in a stay; ``death_told`` names the part of its summary that says the patient died."""

    without_notes: bool = False
    discharged_before: bool = False
    overlapped: bool = False
    death_told: str = ""


@dataclass(frozen=True)
class Stay:
    """One admission: why, how ill (0 mild, 1 moderate, 2 severe), with which signs, how long, what was done, how it ended.

    ``labs`` are (at admission, at discharge); ``readmitted`` is within 30 days, None where nobody will know; ``died_after`` the day of a death
    outside, if any.
    """

    stay_id: int
    number: int
    patient: Patient
    age: int
    condition: Condition
    severity: int
    signs: tuple[Sign, ...]
    chances: Chances
    admitted: datetime
    discharged: datetime
    complaint: str
    procedure: str
    complications: tuple[str, ...]
    labs: Mapping[str, tuple[float, float]]
    drugs_before: tuple[str, ...]
    drugs_after: tuple[str, ...]
    intensive: Intensive | None
    breathing: Breathing
    died: bool
    readmitted: bool | None = None
    died_after: datetime | None = None
    traps: Traps = Traps()  # frozen

    @property
    def days(self) -> int:
        """Whole nights in the hospital."""
        return (self.discharged.date() - self.admitted.date()).days

    @property
    def needed_icu(self) -> bool:
        """Whether the stay was in intensive care."""
        return self.intensive is not None

    @property
    def ventilated(self) -> bool:
        """Whether there was invasive ventilation."""
        return self.breathing != "none"


def stays_of(index: int, seed: int, newborns: bool = False, rates: Rates = RATES) -> list[Stay]:
    """All admissions of person ``index`` (from 0), in order of admission; death ends them. Some are born here, where there are ``newborns``."""
    dice = Dice(seed, index)
    patient = _patient(index, dice, dice.chance(rates.newborns) and newborns)
    moment = datetime(dice.whole(2110, 2190), 1, 1) + timedelta(days=dice.whole(0, 364))
    if patient.newborn:
        return [_birth(patient, moment, dice)]
    if dice.chance(
        rates.discharged_before
    ):  # comes once, so that no other stay's outcome hangs on it
        stay = _stay(patient, 0, moment, [], rates, dice)
        return [replace(stay, traps=replace(stay.traps, discharged_before=True))]
    stays: list[Stay] = []
    while not stays or not (stays[-1].died or len(stays) == MOST_STAYS):
        stay = _stay(patient, len(stays), moment, stays, rates, dice)
        stay, after = _afterwards(stay, rates, dice)
        stays.append(stay)
        if after is None:
            break
        moment = after
    return stays


def _afterwards(stay: Stay, rates: Rates, dice: Dice) -> tuple[Stay, datetime | None]:
    """The stay, knowing what follows it, and when the next one begins; None without one."""
    overlapped, back, later = (
        dice.chance(rates.overlapping),
        dice.chance(stay.chances.readmitted),
        dice.chance(rates.later),
    )
    if stay.died:
        return stay, None
    if overlapped and stay.days:
        begun = stay.discharged - timedelta(minutes=dice.whole(30, 600))
        return replace(stay, traps=replace(stay.traps, overlapped=True)), begun
    stay = replace(stay, readmitted=back if stay.number + 1 < MOST_STAYS else None)
    if back:
        return stay, stay.discharged + timedelta(
            days=dice.whole(2, 28), minutes=dice.whole(0, 1300)
        )
    if later:
        return stay, stay.discharged + timedelta(
            days=dice.whole(45, 400), minutes=dice.whole(0, 1439)
        )
    if dice.chance(rates.died_after):
        days = dice.whole(1, 29) if dice.chance(EARLY_DEATHS) else dice.whole(35, 360)
        return replace(
            stay,
            died_after=datetime.combine(stay.discharged.date(), datetime.min.time())
            + timedelta(days=days),
        ), None
    return stay, None


def _patient(index: int, dice: Dice, newborn: bool) -> Patient:
    sex, age = dice.pick("FM"), min(91, int(24 + 70 * dice.between(0.0, 1.0) ** 0.6))
    if newborn:
        return Patient(FIRST_SUBJECT + index, sex, 0, (), (), newborn=True)
    burden = 0.35 + age / 80  # chronic illness grows with age
    known = [chronic for chronic in chronics() if chronic.sex in ("", sex)]
    history = tuple(chronic for chronic in known if dice.chance(chronic.share / 100 * burden))
    drugs = tuple(dice.pick(chronic.drugs) for chronic in history if chronic.drugs)
    return Patient(FIRST_SUBJECT + index, sex, age, history, drugs)


def _birth(patient: Patient, moment: datetime, dice: Dice) -> Stay:
    born = moment.replace(hour=dice.whole(0, 23), minute=dice.whole(0, 59))
    left = born + timedelta(hours=dice.whole(40, 120))
    why = newborn()
    return Stay(
        stay_id=FIRST_STAY + (patient.subject_id - FIRST_SUBJECT) * MOST_STAYS,
        number=0,
        patient=patient,
        age=0,
        condition=why,
        severity=0,
        signs=(),
        chances=outcome_model.chances(()),
        admitted=born,
        discharged=left,
        complaint=why.complaints[0],
        procedure="None",
        complications=(),
        labs={},
        drugs_before=(),
        drugs_after=why.drugs,
        intensive=None,
        breathing="none",
        died=False,
    )


def _stay(
    patient: Patient,
    number: int,
    moment: datetime,
    before: Sequence[Stay],
    rates: Rates,
    dice: Dice,
) -> Stay:
    condition = before[-1].condition if before and dice.chance(0.35) else _condition(dice)
    age = patient.age + (moment.year - before[0].admitted.year if before else 0)
    severity = _severity(age, len(patient.history), dice)
    signs = tuple(sign for sign in outcome_model.signs() if dice.chance(sign.share[severity]))
    chances = outcome_model.chances(signs)
    died, breathing = dice.chance(chances.death), _breathing(chances, dice)
    admitted = (
        moment if before else moment.replace(hour=dice.whole(0, 23), minute=dice.whole(0, 59))
    )
    discharged = admitted + timedelta(minutes=round(1440 * _days(chances, breathing, died, dice)))
    drugs_before = before[-1].drugs_after if before else patient.home_drugs
    return Stay(
        stay_id=FIRST_STAY + (patient.subject_id - FIRST_SUBJECT) * MOST_STAYS + number,
        number=number,
        patient=patient,
        age=age,
        condition=condition,
        severity=severity,
        signs=signs,
        chances=chances,
        admitted=admitted,
        discharged=discharged,
        complaint=dice.pick(condition.complaints),
        procedure=dice.pick(condition.procedures),
        complications=tuple(dice.some(condition.complications, severity)),
        labs=_labs(condition, severity, dice),
        drugs_before=drugs_before,
        drugs_after=tuple(
            dict.fromkeys([*drugs_before, *dice.some(condition.drugs, dice.whole(1, 3))])
        )[-14:],
        intensive=_intensive(chances, breathing, admitted, discharged, dice),
        breathing=breathing,
        died=died,
        traps=Traps(
            without_notes=dice.chance(rates.without_notes),
            death_told=_told(dice, rates) if died else "",
        ),
    )


def _breathing(chances: Chances, dice: Dice) -> Breathing:
    if not dice.chance(chances.ventilated):
        return "none"
    if dice.chance(chances.prolonged):
        return "prolonged"
    return "brief" if dice.chance(outcome_model.BRIEF) else "medium"


def _days(chances: Chances, breathing: Breathing, died: bool, dice: Dice) -> float:
    """Who dies on a ventilator before seven days does so within them: whether it would have been prolonged, nobody knows."""
    cut_short = died and breathing in ("brief", "medium")
    longest = 6.9 if cut_short else outcome_model.LONGEST_DAYS
    return outcome_model.days_at(
        chances, dice.between(0.0, 1.0), outcome_model.LEAST_DAYS[breathing], longest
    )


def _intensive(
    chances: Chances, breathing: Breathing, admitted: datetime, discharged: datetime, dice: Dice
) -> Intensive | None:
    if breathing == "none" and not dice.chance(chances.intensive):
        return None
    began = admitted + timedelta(minutes=dice.whole(20, 150))
    if breathing == "none":
        hours = min(dice.between(14.0, 100.0), (discharged - began).total_seconds() / 3600 - 0.2)
        return Intensive(began, began + timedelta(minutes=round(60 * hours)), None, None)
    stay_hours = (discharged - admitted).total_seconds() / 3600
    lasting = {
        "brief": dice.between(6.0, 40.0),
        "medium": dice.between(54.0, 148.0),
        "prolonged": dice.between(176.0, max(177.0, stay_hours - 12.0)),
    }
    first = began + timedelta(minutes=dice.whole(5, 60))
    last = first + timedelta(minutes=round(60 * lasting[breathing]))
    return Intensive(
        began, min(discharged, last + timedelta(minutes=dice.whole(60, 2400))), first, last
    )


def _told(dice: Dice, rates: Rates) -> str:
    draw = dice.between(0.0, 1.0)
    return (
        "exam"
        if draw < rates.death_in_exam
        else "story"
        if draw < rates.death_in_exam + rates.death_in_history
        else ""
    )


def _condition(dice: Dice) -> Condition:
    known = conditions()
    draw = dice.between(0, sum(condition.share for condition in known))
    for condition in known:
        draw -= condition.share
        if draw < 0:
            return condition
    return known[-1]


def _severity(age: int, illnesses: int, dice: Dice) -> int:
    score = dice.between(0.0, 1.0) + 0.004 * (age - 60) + 0.03 * (illnesses - 3)
    return 0 if score < 0.5 else 1 if score < 0.85 else 2


def _labs(condition: Condition, severity: int, dice: Dice) -> dict[str, tuple[float, float]]:
    """At admission near the severity's point between mild and severe; at discharge back towards mild."""
    values = {}
    for name, (mild, severe) in condition.labs.items():
        at = min(1.0, max(0.0, severity / 2 + dice.between(-0.25, 0.25)))
        values[name] = (
            mild + (severe - mild) * at,
            mild + (severe - mild) * at * dice.between(0.0, 0.4),
        )
    return values


@cache
def conditions() -> tuple[Condition, ...]:
    """Every reason for an admission."""
    return tuple(_condition_of(entry) for entry in _document()["condition"])


@cache
def newborn() -> Condition:
    """Why a newborn is here."""
    return _condition_of(_document()["newborn"])


@cache
def chronics() -> tuple[Chronic, ...]:
    """Every illness that people bring along."""
    return tuple(Chronic(**_frozen(entry)) for entry in _document()["chronic"])


def _condition_of(entry: dict[str, Any]) -> Condition:
    studies = tuple(Study(**_frozen(study)) for study in entry["studies"])
    return Condition(**{**_frozen(entry), "labs": _frozen(entry["labs"]), "studies": studies})


def _frozen(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(
        resources.files(__package__).joinpath("conditions.toml").read_text(encoding="utf-8")
    )
