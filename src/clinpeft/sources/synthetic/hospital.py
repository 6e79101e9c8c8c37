"""Who comes to the invented hospital and what happens to them: people, stays, outcomes. No words here; ``notes.py`` writes them down.

Every person has a random stream of their own, so that person 7 is the same in a hospital of 12 and of 12,000. Severity follows from age and
chronic illness; length of stay, intensive care, ventilation and death follow from severity, so that outcomes can be learned from the notes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

FIRST_SUBJECT = 900_000_001  # MIMIC-III ends below 100,000 and MIMIC-IV below 20,000,000: an invented id cannot be taken for a real one
FIRST_STAY = 950_000_001
MOST_STAYS = 8


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
    """Why somebody is admitted: the numbers, each as (mild, moderate, severe) or (mild, severe), and the words of ``conditions.toml``."""

    name: str
    short: str
    share: float
    service: str
    days: tuple[int, int]
    icu: tuple[float, float, float]
    ventilated: tuple[float, float, float]
    mortality: tuple[float, float, float]
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


@dataclass(frozen=True)
class Stay:
    """One admission: why, how ill (0 mild, 1 moderate, 2 severe), how long, what was done, how it ended; labs are (at admission, at discharge)."""

    stay_id: int
    number: int
    patient: Patient
    age: int
    condition: Condition
    severity: int
    admitted: datetime
    discharged: datetime
    complaint: str
    procedure: str
    complications: tuple[str, ...]
    labs: Mapping[str, tuple[float, float]]
    drugs_before: tuple[str, ...]
    drugs_after: tuple[str, ...]
    needed_icu: bool
    ventilated: bool
    died: bool

    @property
    def days(self) -> int:
        """Whole nights in the hospital."""
        return (self.discharged.date() - self.admitted.date()).days


def stays_of(index: int, seed: int) -> list[Stay]:
    """All admissions of person ``index`` (from 0), in order of time; death ends them."""
    dice = Dice(seed, index)
    patient = _patient(index, dice)
    moment = datetime(dice.whole(2110, 2195), 1, 1) + timedelta(days=dice.whole(0, 364))
    count = 1 + sum(dice.chance(0.42) for _ in range(MOST_STAYS - 1))
    stays: list[Stay] = []
    for number in range(count):
        stays.append(_stay(patient, number, moment, stays, dice))
        if stays[-1].died:
            break
        moment = stays[-1].discharged + timedelta(days=dice.whole(6, 400))
    return stays


def _patient(index: int, dice: Dice) -> Patient:
    sex, age = dice.pick("FM"), min(91, int(24 + 70 * dice.between(0.0, 1.0) ** 0.6))
    burden = 0.35 + age / 80  # chronic illness grows with age
    known = [chronic for chronic in chronics() if chronic.sex in ("", sex)]
    history = tuple(chronic for chronic in known if dice.chance(chronic.share / 100 * burden))
    drugs = tuple(dice.pick(chronic.drugs) for chronic in history if chronic.drugs)
    return Patient(FIRST_SUBJECT + index, sex, age, history, drugs)


def _stay(patient: Patient, number: int, moment: datetime, before: Sequence[Stay], dice: Dice) -> Stay:
    condition = before[-1].condition if before and dice.chance(0.35) else _condition(dice)
    age = patient.age + (moment.year - before[0].admitted.year if before else 0)
    severity = _severity(age, len(patient.history), dice)
    admitted = moment.replace(hour=dice.whole(0, 23), minute=dice.whole(0, 59))
    nights = max(1, round(dice.between(*condition.days) * (0.55 + 0.3 * severity) * dice.between(0.8, 1.2)))
    discharged = (admitted + timedelta(days=nights)).replace(hour=dice.whole(10, 19), minute=dice.whole(0, 59))
    icu = dice.chance(condition.icu[severity])
    drugs_before = before[-1].drugs_after if before else patient.home_drugs
    return Stay(
        stay_id=FIRST_STAY + (patient.subject_id - FIRST_SUBJECT) * MOST_STAYS + number,
        number=number,
        patient=patient,
        age=age,
        condition=condition,
        severity=severity,
        admitted=admitted,
        discharged=discharged,
        complaint=dice.pick(condition.complaints),
        procedure=dice.pick(condition.procedures),
        complications=tuple(dice.some(condition.complications, severity)),
        labs=_labs(condition, severity, dice),
        drugs_before=drugs_before,
        drugs_after=tuple(dict.fromkeys([*drugs_before, *dice.some(condition.drugs, dice.whole(1, 3))]))[-14:],
        needed_icu=icu,
        ventilated=icu and dice.chance(condition.ventilated[severity]),
        died=dice.chance(condition.mortality[severity]),
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
        values[name] = (mild + (severe - mild) * at, mild + (severe - mild) * at * dice.between(0.0, 0.4))
    return values


@cache
def conditions() -> tuple[Condition, ...]:
    """Every reason for an admission."""
    return tuple(_condition_of(entry) for entry in _document()["condition"])


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
    return tomllib.loads(resources.files(__package__).joinpath("conditions.toml").read_text(encoding="utf-8"))
