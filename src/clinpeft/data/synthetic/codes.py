"""The codes that a stay is billed for, of what its notes name.

ICD-9 in MIMIC-III; in MIMIC-IV ICD-9 or ICD-10, by the real year of the admission.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from clinpeft.data.synthetic.files import read_synthetic_data
from clinpeft.data.synthetic.hospital import RandomStream, Stay
from clinpeft.data.synthetic.rates import SyntheticRates

ICD9_VERSION, ICD10_VERSION = 9, 10
# American hospitals changed to ICD-10 in October 2015.
ICD10_START_MONTH = (2015, 10)
_FOUR_DAYS = timedelta(days=4)


@dataclass(frozen=True)
class BilledCode:
    """One billed code, as in the file (perhaps with a trailing blank), and what it is for."""

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
    """Bill the condition first, then complications, signs and chronic illnesses; each code once.

    Args:
        stay: the admission.
        icd_version: 9 or 10.
        rates: how often codes are padded, or of both versions.
        rng: of the tables.
        defect_counts: where codes and defects are counted.
        has_both_versions: whether the data set has codes of both versions.
    """
    names = [
        stay.condition.name,
        *stay.complications,
        *(sign.name for sign in stay.signs),
        *(chronic.name for chronic in stay.patient.history),
    ]
    billed = _bill_codes(names, "diagnosis", icd_version, rates, rng, defect_counts)
    # So that a reader has to take the version from each code, and not from the admission
    if has_both_versions and icd_version == ICD9_VERSION and rng.draw_bool(rates.mixed_versions):
        defect_counts["admissions with both versions"] += 1
        _, icd10_codes = read_synthetic_data("codes.toml")["diagnosis"][stay.condition.name]
        billed.append(BilledCode(icd10_codes.split()[0], ICD10_VERSION, stay.condition.name))
    return billed


def bill_procedures(
    stay: Stay,
    icd_version: int,
    rates: SyntheticRates,
    rng: RandomStream,
    has_tracheostomy: bool,
    defect_counts: Counter[str],
) -> list[BilledCode]:
    """Bill the procedure that the note names, and breathing support."""
    names = [stay.procedure]  # "None" has no code
    care = stay.intensive_care
    if care and care.ventilated_from and care.ventilated_until:
        # ICD tells ventilations of less than 96 consecutive hours from longer ones.
        is_long = care.ventilated_until - care.ventilated_from >= _FOUR_DAYS
        length = "four days or more" if is_long else "less than four days"
        names += [f"ventilated for {length}", "intubated"]
    if has_tracheostomy:
        names.append("tracheostomy")
    if stay.patient.is_newborn and stay.patient.sex == "M":
        names.append("circumcision")
    return _bill_codes(names, "procedure", icd_version, rates, rng, defect_counts)


def choose_icd_version(year: int, month: int) -> int:
    """Return the ICD version that was in use in a real year and month."""
    return ICD10_VERSION if (year, month) >= ICD10_START_MONTH else ICD9_VERSION


def generate_code_dictionary(kind: str) -> Iterator[tuple[str, int, str]]:
    """Yield every code of the hospital once: (code, ICD version, title).

    Args:
        kind: ``diagnosis`` or ``procedure``.
    """
    seen = set()
    for title, systems in read_synthetic_data("codes.toml")[kind].items():
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
    """Look the codes of names up; names without codes are not billed."""
    codes = read_synthetic_data("codes.toml")[kind]  # name -> (ICD-9 codes, ICD-10 codes)
    column = 0 if icd_version == ICD9_VERSION else 1
    names_by_code: dict[str, str] = {}  # one name has several codes, two names may share one
    for name in names:
        if name in codes:
            names_by_code |= dict.fromkeys(codes[name][column].split(), name)
    billed = []
    for code, name in names_by_code.items():
        defect_counts["codes"] += 1
        if code.startswith("0"):  # lost by programs that read codes as numbers
            defect_counts["codes with a leading zero"] += 1
        padding = " " * rng.draw_bool(rates.padded_codes)
        if padding:
            defect_counts["codes with a trailing blank"] += 1  # no longer equal to the code
        billed.append(BilledCode(code + padding, icd_version, name))
    return billed
