"""The rules of ventilation as data: item ids, charted values, statuses and diagnoses.

Values are compared byte for byte. The trailing blank of ``'Trach mask '`` is the spelling of
MetaVision; without it the rule never matches.

Sources: github.com/MIT-LCP/mimic-code, concepts of MIMIC-III
(``durations/ventilation_classification.sql``, ``durations/ventilation_durations.sql``) and of
MIMIC-IV (``measurement/ventilator_setting.sql``, ``measurement/oxygen_delivery.sql``,
``treatment/ventilation.sql``), with CPAP/PSV of its issue 1401; the cohort of Clinical XLNet (Huang
et al. 2020, arXiv 1912.11975, ``cohort_curation`` of github.com/lindvalllab/clinicalXLNet).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# ---- MIMIC-III: the sign of one charted row (ventilation_classification.sql)

VENTILATED_STATUS, OXYGEN_STATUS, EXTUBATED_STATUS, SELF_EXTUBATED_STATUS = (
    "ventilated",
    "oxygen",
    "extubated",
    "self-extubated",
)


class ChartedSign(NamedTuple):
    """A charted item that is a sign of ventilation, oxygen or extubation.

    Attributes:
        item: its id.
        signal: what it is a sign of.
        value: the only value that is a sign; None: any.
        excluded_value: a value that is no sign; None: none.
    """

    item: str
    signal: str
    value: str | None = None
    excluded_value: str | None = None


_VENTILATOR_SETTING_ITEMS = {
    "minute volume": (445, 448, 449, 450, 1340, 1486, 1600, 224687),
    "tidal volume": (639, 654, 681, 682, 683, 684, 224684, 224685, 224686),
    # mimic-code lists 459 (negative inspiratory force) here too, and then does not read it: its
    # rows never reach the rule. They are not read here either, so that the episodes are the
    # published ones; see UNUSED_SETTING_ITEMS.
    "respiratory pressure": (218, 436, 444, 535, 224695, 224696, 224697, 224746, 224747),
    "inspiratory pressure and time": (
        1,
        221,
        1211,
        1655,
        2000,
        224419,
        224738,
        224750,
        226873,
        227187,
    ),
    "plateau pressure": (543,),
    "airway pressure release": (5865, 5866, 224705, 224706, 224707, 224709),
    "PEEP": (60, 437, 505, 506, 686, 220339, 224700),
    "high pressure relief": (3459,),
    "pressure control": (501, 502, 503, 224702),
    "TCPCV": (223, 667, 668, 669, 670, 671, 672),
    "pressure support": (224701,),
    "ventilator mode": (223849,),
}
# Items in mimic-code's rule for ventilated rows that are not in its list of items to read.
UNUSED_SETTING_ITEMS = (459,)

_OXYGEN_DEVICE_VALUES = {
    226732: (
        "Nasal cannula",
        "Face tent",
        "Aerosol-cool",
        "Trach mask ",
        "High flow neb",
        "Non-rebreather",
        "Venti mask ",
        "Medium conc mask ",
        "T-piece",
        "High flow nasal cannula",
        "Ultrasonic neb",
        "Vapomist",
    ),
    467: (
        "Cannula",
        "Nasal Cannula",
        "Face Tent",
        "Aerosol-Cool",
        "Trach Mask",
        "Hi Flow Neb",
        "Non-Rebreather",
        "Venti Mask",
        "Medium Conc Mask",
        "Vapotherm",
        "T-Piece",
        "Hood",
        "Hut",
        "TranstrachealCat",
        "Heated Neb",
        "Ultrasonic Neb",
    ),
}


def _build_charted_signs() -> Iterator[ChartedSign]:
    yield from (
        ChartedSign(str(item), VENTILATED_STATUS)
        for items in _VENTILATOR_SETTING_ITEMS.values()
        for item in items
    )
    yield ChartedSign(
        "720", VENTILATED_STATUS, excluded_value="Other/Remarks"
    )  # ventilator mode, CareVue
    yield ChartedSign("223848", VENTILATED_STATUS, excluded_value="Other")  # ventilator type
    yield ChartedSign("467", VENTILATED_STATUS, value="Ventilator")
    yield from (
        ChartedSign(str(item), OXYGEN_STATUS, value=device)
        for item, devices in _OXYGEN_DEVICE_VALUES.items()
        for device in devices
    )
    yield ChartedSign("640", EXTUBATED_STATUS, value="Extubated")
    yield ChartedSign("640", SELF_EXTUBATED_STATUS, value="Self Extubation")


# The signs in charted rows of MIMIC-III. mimic-code also reads the oxygen flows (468-471, 223834,
# 227287), which none of its rules uses.
CHARTED_SIGNS: tuple[ChartedSign, ...] = tuple(_build_charted_signs())

# Procedures of MIMIC-III whose start is an extubation: planned, by the patient, unplanned by
# others. Procedures of status ``Rewritten`` count, as in mimic-code.
EXTUBATION_PROCEDURES = {
    "227194": EXTUBATED_STATUS,
    "225468": SELF_EXTUBATED_STATUS,
    "225477": EXTUBATED_STATUS,
}

# ---- MIMIC-IV: the status of one moment (ventilation.sql)

TRACHEOSTOMY_STATUS, INVASIVE_STATUS, NON_INVASIVE_STATUS = (
    "Tracheostomy",
    "InvasiveVent",
    "NonInvasiveVent",
)
# The statuses of MIMIC-IV; of several at one moment the first in this order holds.
VENTILATION_STATUSES = (
    TRACHEOSTOMY_STATUS,
    INVASIVE_STATUS,
    NON_INVASIVE_STATUS,
    "HFNC",
    "SupplementalOxygen",
    "None",
)

OXYGEN_DEVICE_ITEM, VENTILATOR_MODE_ITEM, HAMILTON_MODE_ITEM = "226732", "223849", "229314"
OXYGEN_FLOW_ITEMS = ("223834", "227582", "227287")

_DEVICE_VALUES = {
    TRACHEOSTOMY_STATUS: (
        "Tracheostomy tube",
        "Trach mask ",
    ),  # not 'T-piece': it sits on either kind of tube
    INVASIVE_STATUS: ("Endotracheal tube",),
    NON_INVASIVE_STATUS: ("Bipap mask ", "CPAP mask "),
    "HFNC": ("High flow nasal cannula",),
    "SupplementalOxygen": (
        "Non-rebreather",
        "Face tent",
        "Aerosol-cool",
        "Venti mask ",
        "Medium conc mask ",
        "Ultrasonic neb",
        "Vapomist",
        "Oxymizer",
        "High flow neb",
        "Nasal cannula",
    ),
    "None": ("None",),
}
_MODE_VALUES = {
    INVASIVE_STATUS: (
        "(S) CMV",
        "APRV",
        "APRV/Biphasic+ApnPress",
        "APRV/Biphasic+ApnVol",
        "APV (cmv)",
        "Ambient",
        "Apnea Ventilation",
        "CMV",
        "CMV/ASSIST",
        "CMV/ASSIST/AutoFlow",
        "CMV/AutoFlow",
        "CPAP/PPS",
        "CPAP/PSV",
        "CPAP/PSV+Apn TCPL",
        "CPAP/PSV+ApnPres",
        "CPAP/PSV+ApnVol",
        "MMV",
        "MMV/AutoFlow",
        "MMV/PSV",
        "MMV/PSV/AutoFlow",
        "P-CMV",
        "PCV+",
        "PCV+/PSV",
        "PCV+Assist",
        "PRES/AC",
        "PRVC/AC",
        "PRVC/SIMV",
        "PSV/SBT",
        "SIMV",
        "SIMV/AutoFlow",
        "SIMV/PRES",
        "SIMV/PSV",
        "SIMV/PSV/AutoFlow",
        "SIMV/VOL",
        "SYNCHRON MASTER",
        "SYNCHRON SLAVE",
        "VOL/AC",
    ),
}
_HAMILTON_MODE_VALUES = {
    INVASIVE_STATUS: (
        "APRV",
        "APV (cmv)",
        "Ambient",
        "(S) CMV",
        "P-CMV",
        "SIMV",
        "APV (simv)",
        "P-SIMV",
        "VS",
        "ASV",
    ),
    NON_INVASIVE_STATUS: ("DuoPaP", "NIV", "NIV-ST"),
}


class StatusValue(NamedTuple):
    """The status that one value of one item means; ``rank`` 0 is the strongest."""

    item: str
    value: str
    status: str
    rank: int


STATUS_VALUES: tuple[StatusValue, ...] = tuple(
    StatusValue(item, value, status, VENTILATION_STATUSES.index(status))
    for item, by_status in (
        (OXYGEN_DEVICE_ITEM, _DEVICE_VALUES),
        (VENTILATOR_MODE_ITEM, _MODE_VALUES),
        (HAMILTON_MODE_ITEM, _HAMILTON_MODE_VALUES),
    )
    for status, values in by_status.items()
    for value in values
)

# ---- procedures with start and end, for data without charted rows

VENTILATION_PROCEDURES = {
    "mimic-iii": {"225792": VENTILATED_STATUS, "225794": NON_INVASIVE_STATUS},
    "mimic-iv": {"225792": INVASIVE_STATUS, "225794": NON_INVASIVE_STATUS},
}

# ---- the prolonged label

# The statuses of mechanical ventilation. Tracheostomy is one of them because MIMIC-IV gives a
# ventilated patient that status when the tube is changed, which happens after long ventilation:
# without it the prolonged cases would be cut short.
MECHANICAL_VENTILATION_STATUSES = (VENTILATED_STATUS, INVASIVE_STATUS, TRACHEOSTOMY_STATUS)


class DiagnosisExclusion(NamedTuple):
    """Admissions with a diagnosis code of this prefix are excluded for this reason."""

    reason: str
    system: str
    prefix: str


_EXCLUDED_CODE_PREFIXES: dict[str, dict[str, tuple[str, ...]]] = {
    "head, face or neck cancer": {
        "icd9": tuple(f"14{digit}" for digit in range(10)),
        "icd10": tuple(f"C{number:02d}" for number in range(15)),
    },
    "neuromuscular disease": {
        "icd9": ("3589", "3590", "3591", "35801"),
        "icd10": ("G709", "G712", "G710", "G7001"),
    },
    # The published code selects burns by their position in a list printed from the data. The rule
    # it states, head, face and neck or more than 30 % of the body surface, is in codes: eye and
    # adnexa, face and head and neck, 30-39 % and more.
    "burns of head, face or neck, or of 30 % of the body or more": {
        "icd9": ("940", "941", *(f"948{digit}" for digit in range(3, 10))),
        "icd10": ("T20", "T26", *(f"T3{kind}{digit}" for kind in (1, 2) for digit in range(3, 10))),
    },
    # Every title of the ICD-9 dictionary that contains "donor" is in V59.
    "organ or tissue donor": {"icd9": ("V59",), "icd10": ("Z52",)},
}
# Diagnoses that Clinical XLNet excludes, by the prefix of the code without dots. It has ICD-9 only;
# the ICD-10 codes are those that the general equivalence mappings of CMS give, so that a stay of
# MIMIC-IV does not remain because it was coded later.
DIAGNOSIS_EXCLUSIONS: tuple[DiagnosisExclusion, ...] = tuple(
    DiagnosisExclusion(reason, system, prefix)
    for reason, systems in _EXCLUDED_CODE_PREFIXES.items()
    for system, prefixes in systems.items()
    for prefix in prefixes
)
