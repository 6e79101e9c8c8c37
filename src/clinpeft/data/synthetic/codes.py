"""What a stay is billed for: the codes of what its notes name. ICD-9 in MIMIC-III; ICD-9 or ICD-10 by the real year in MIMIC-IV."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from clinpeft.data.synthetic.hospital import RandomStream, Stay
from clinpeft.data.synthetic.rates import SyntheticRates

ICD9_VERSION, ICD10_VERSION = 9, 10
ICD10_START_MONTH = (2015, 10)  # in October 2015 American hospitals changed to ICD-10
_FOUR_DAYS_HOURS = 96


@dataclass(frozen=True)
class BilledCode:
    """One billed code, as it stands in the file (perhaps with a trailing blank)."""

    text: str
    version: int
    title: str


def bill_diagnoses(
    stay: Stay,
    icd_version: int,
    rates: SyntheticRates,
    rng: RandomStream,
    defect_counts: Counter[str],
    *,
    has_both_versions: bool,
) -> list[BilledCode]:
    """The condition first, then complications, signs and what was brought along; each code once; ``has_both_versions`` where a data set has both versions."""
    names = [
        stay.condition.name,
        *stay.complications,
        *(sign.name for sign in stay.signs),
        *(chronic.name for chronic in stay.patient.history),
    ]
    billed = _bill_codes(names, "diagnosis", icd_version, rates, rng, defect_counts)
    if has_both_versions and icd_version == ICD9_VERSION and rng.draw_bool(rates.mixed_versions):
        defect_counts["admissions with both versions"] += 1
        other = _read_codes_file()["diagnosis"][stay.condition.name][1].split()[0]
        billed.append(BilledCode(other, ICD10_VERSION, stay.condition.name))
    return billed


def bill_procedures(
    stay: Stay,
    icd_version: int,
    rates: SyntheticRates,
    rng: RandomStream,
    has_tracheostomy: bool,
    defect_counts: Counter[str],
) -> list[BilledCode]:
    """The procedure that the note names, and breathing support."""
    names = [stay.procedure]
    care = stay.intensive_care
    if care and care.ventilated_from and care.ventilated_until:
        hours = (care.ventilated_until - care.ventilated_from).total_seconds() / 3600
        names += [
            f"ventilated for {'less than four days' if hours < _FOUR_DAYS_HOURS else 'four days or more'}",
            "intubated",
        ]
    if has_tracheostomy:
        names.append("tracheostomy")
    if stay.patient.is_newborn and stay.patient.sex == "M":
        names.append("circumcision")
    return _bill_codes(names, "procedure", icd_version, rates, rng, defect_counts)


def choose_icd_version(year: int, month: int) -> int:
    """The version in use in a real year and month."""
    return ICD10_VERSION if (year, month) >= ICD10_START_MONTH else ICD9_VERSION


def generate_code_dictionary(kind: str) -> Iterator[tuple[str, int, str]]:
    """Every code of the hospital once, with its version and a title."""
    seen = set()
    for title, systems in _read_codes_file()[kind].items():
        for version, texts in zip((ICD9_VERSION, ICD10_VERSION), systems, strict=True):
            for text in texts.split():
                if (text, version) not in seen:
                    seen.add((text, version))
                    yield text, version, title.split("{")[0].strip()


def _bill_codes(
    names: Iterable[str],
    kind: str,
    icd_version: int,
    rates: SyntheticRates,
    rng: RandomStream,
    defect_counts: Counter[str],
) -> list[BilledCode]:
    known = _read_codes_file()[kind]
    column = 0 if icd_version == ICD9_VERSION else 1
    billed = {
        text: BilledCode(text, icd_version, name)
        for name in names
        if name in known
        for text in known[name][column].split()
    }
    return [_pad_code(code, rates, rng, defect_counts) for code in billed.values()]


def _pad_code(
    code: BilledCode, rates: SyntheticRates, rng: RandomStream, defect_counts: Counter[str]
) -> BilledCode:
    defect_counts["codes"] += 1
    if code.text.startswith("0"):
        defect_counts["codes with a leading zero"] += 1
    if not rng.draw_bool(rates.padded_codes):
        return code
    defect_counts["codes with a trailing blank"] += 1
    return BilledCode(f"{code.text} ", code.version, code.title)


@cache
def _read_codes_file() -> Mapping[str, Mapping[str, Sequence[str]]]:
    return tomllib.loads(
        resources.files(__package__).joinpath("codes.toml").read_text(encoding="utf-8")
    )
