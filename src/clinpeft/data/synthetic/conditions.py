"""Why people are admitted and which illnesses they bring: the entries of ``conditions.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from clinpeft.data.synthetic.files import read_synthetic_data


@dataclass(frozen=True)
class ImagingStudy:
    """An imaging study: its title, its technique, and templates of its report."""

    examination: str
    technique: str
    findings: tuple[str, ...]
    impression: tuple[str, ...]


@dataclass(frozen=True)
class AdmissionCondition:
    """A reason for admission, from ``conditions.toml``.

    Attributes:
        name: in full, as in the diagnoses; a key of ``codes.toml``.
        short: abbreviation.
        share: of all admissions, relative to that of the others.
        service: of the hospital.
        complaints: chief complaints, of which a stay has one.
        story: templates of the history of present illness.
        denies: symptoms that are denied.
        examination: part of the body -> template of the finding.
        labs: name -> (value when mild, value when severe).
        micro: templates of microbiology results.
        procedures: of which a stay has one.
        hospital_course: templates of what is done.
        severe: templates that are added where the severity is 2.
        complications: of which a stay has as many as its severity.
        drugs: medicines that are begun.
        instructions: templates of discharge instructions.
        nursing: templates of nursing notes.
        studies: imaging studies.
    """

    name: str
    short: str
    share: float
    service: str
    complaints: tuple[str, ...]
    story: tuple[str, ...]
    denies: tuple[str, ...]
    examination: Mapping[str, str]
    labs: Mapping[str, tuple[float, float]]
    micro: tuple[str, ...]
    procedures: tuple[str, ...]
    hospital_course: tuple[str, ...]
    severe: tuple[str, ...]
    complications: tuple[str, ...]
    drugs: tuple[str, ...]
    instructions: tuple[str, ...]
    nursing: tuple[str, ...]
    studies: tuple[ImagingStudy, ...]


@dataclass(frozen=True)
class ChronicIllness:
    """An illness that precedes the first admission; ``sex`` where only one has it, else empty.

    ``share`` is the percentage of people who have it, before age is taken into account.
    """

    name: str
    short: str
    share: float
    drugs: tuple[str, ...]
    sex: str = ""


@cache
def load_conditions() -> tuple[AdmissionCondition, ...]:
    """Load every reason for an admission."""
    return tuple(map(_parse_condition, read_synthetic_data("conditions.toml")["condition"]))


@cache
def load_newborn_condition() -> AdmissionCondition:
    """Load the condition of newborns."""
    return _parse_condition(read_synthetic_data("conditions.toml")["newborn"])


@cache
def load_chronic_illnesses() -> tuple[ChronicIllness, ...]:
    """Load every chronic illness."""
    entries = read_synthetic_data("conditions.toml")["chronic"]
    return tuple(ChronicIllness(**entry) for entry in entries)


def _parse_condition(entry: Mapping[str, Any]) -> AdmissionCondition:
    studies = tuple(ImagingStudy(**study) for study in entry["studies"])
    return AdmissionCondition(**{**entry, "studies": studies})
