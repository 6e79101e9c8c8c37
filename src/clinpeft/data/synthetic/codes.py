"""What a stay is billed for: the codes of what its notes name. ICD-9 in MIMIC-III; ICD-9 or ICD-10 by the real year in MIMIC-IV."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from clinpeft.data.synthetic.hospital import Dice, Stay
from clinpeft.data.synthetic.rates import Rates

ICD9, ICD10 = 9, 10
SWITCH = (2015, 10)  # in October 2015 American hospitals changed to ICD-10
_FOUR_DAYS_HOURS = 96


@dataclass(frozen=True)
class Code:
    """One billed code, as it stands in the file (perhaps with a trailing blank)."""

    text: str
    version: int
    title: str


def diagnoses(
    stay: Stay, version: int, rates: Rates, dice: Dice, planted: Counter[str], *, mixed: bool
) -> list[Code]:
    """The condition first, then complications, signs and what was brought along; each code once; ``mixed`` where a data set has both versions."""
    names = [
        stay.condition.name,
        *stay.complications,
        *(sign.name for sign in stay.signs),
        *(chronic.name for chronic in stay.patient.history),
    ]
    billed = _billed(names, "diagnosis", version, rates, dice, planted)
    if mixed and version == ICD9 and dice.chance(rates.mixed_versions):
        planted["admissions with both versions"] += 1
        other = _document()["diagnosis"][stay.condition.name][1].split()[0]
        billed.append(Code(other, ICD10, stay.condition.name))
    return billed


def procedures(
    stay: Stay, version: int, rates: Rates, dice: Dice, tracheostomy: bool, planted: Counter[str]
) -> list[Code]:
    """The procedure that the note names, and breathing support."""
    names = [stay.procedure]
    care = stay.intensive
    if care and care.ventilated_from and care.ventilated_until:
        hours = (care.ventilated_until - care.ventilated_from).total_seconds() / 3600
        names += [
            f"ventilated for {'less than four days' if hours < _FOUR_DAYS_HOURS else 'four days or more'}",
            "intubated",
        ]
    if tracheostomy:
        names.append("tracheostomy")
    if stay.patient.newborn and stay.patient.sex == "M":
        names.append("circumcision")
    return _billed(names, "procedure", version, rates, dice, planted)


def version(year: int, month: int) -> int:
    """The version in use in a real year and month."""
    return ICD10 if (year, month) >= SWITCH else ICD9


def dictionary(kind: str) -> Iterator[tuple[str, int, str]]:
    """Every code of the hospital once, with its version and a title."""
    seen = set()
    for title, systems in _document()[kind].items():
        for version, texts in zip((ICD9, ICD10), systems, strict=True):
            for text in texts.split():
                if (text, version) not in seen:
                    seen.add((text, version))
                    yield text, version, title.split("{")[0].strip()


def _billed(
    names: Iterable[str], kind: str, version: int, rates: Rates, dice: Dice, planted: Counter[str]
) -> list[Code]:
    known = _document()[kind]
    column = 0 if version == ICD9 else 1
    billed = {
        text: Code(text, version, name)
        for name in names
        if name in known
        for text in known[name][column].split()
    }
    return [_padded(code, rates, dice, planted) for code in billed.values()]


def _padded(code: Code, rates: Rates, dice: Dice, planted: Counter[str]) -> Code:
    planted["codes"] += 1
    if code.text.startswith("0"):
        planted["codes with a leading zero"] += 1
    if not dice.chance(rates.padded_codes):
        return code
    planted["codes with a trailing blank"] += 1
    return Code(f"{code.text} ", code.version, code.title)


@cache
def _document() -> Mapping[str, Mapping[str, Sequence[str]]]:
    return tomllib.loads(
        resources.files(__package__).joinpath("codes.toml").read_text(encoding="utf-8")
    )
