"""What counts as ventilation, as data: item ids, charted values, statuses and diagnoses.

Values are compared byte for byte. The trailing blank of ``'Trach mask '`` is how MetaVision spells it; without it the rule never fires.

Sources: mimic-code's concepts for MIMIC-III (``ventilation_classification``, ``ventilation_durations``) and MIMIC-IV (``ventilator_setting``,
``oxygen_delivery``, ``ventilation``), CPAP/PSV of its issue 1401 included; the cohort of Clinical XLNet (Huang et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# ---- MIMIC-III: what one charted row says

VENTILATED_STATUS, OXYGEN_STATUS, EXTUBATED_STATUS, SELF_EXTUBATED_STATUS = (
    "ventilated",
    "oxygen",
    "extubated",
    "self-extubated",
)


class ChartedSign(NamedTuple):
    """A charted item that says something: with this ``value``, or with any value but ``excepted``; an empty one sets no condition."""

    item: str
    signal: str
    value: str | None = None
    excepted: str | None = None


_VENTILATOR_SETTING_ITEMS = {
    "minute volume": (445, 448, 449, 450, 1340, 1486, 1600, 224687),
    "tidal volume": (639, 654, 681, 682, 683, 684, 224684, 224685, 224686),
    # mimic-code lists 459 (negative inspiratory force) here too, and then does not read it: its rows never reach the rule. They are not read
    # here either, so that the episodes are the published ones; see NEVER_READ.
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
UNUSED_SETTING_ITEMS = (459,)
"""Named by mimic-code's rule for ventilated rows, and missing from the list of items that it reads."""

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
        "720", VENTILATED_STATUS, excepted="Other/Remarks"
    )  # ventilator mode, CareVue
    yield ChartedSign("223848", VENTILATED_STATUS, excepted="Other")  # ventilator type
    yield ChartedSign("467", VENTILATED_STATUS, value="Ventilator")
    yield from (
        ChartedSign(str(item), OXYGEN_STATUS, value=device)
        for item, devices in _OXYGEN_DEVICE_VALUES.items()
        for device in devices
    )
    yield ChartedSign("640", EXTUBATED_STATUS, value="Extubated")
    yield ChartedSign("640", SELF_EXTUBATED_STATUS, value="Self Extubation")


CHARTED_SIGNS: tuple[ChartedSign, ...] = tuple(_build_charted_signs())
"""What MIMIC-III's charted rows say; mimic-code reads the oxygen flows (468-471, 223834, 227287) too, but no rule of it uses them."""

EXTUBATION_PROCEDURES = {
    "227194": EXTUBATED_STATUS,
    "225468": SELF_EXTUBATED_STATUS,
    "225477": EXTUBATED_STATUS,
}
"""Procedures of MIMIC-III whose start is an extubation: planned, by the patient, unplanned by others. Rewritten ones count, as in mimic-code."""

# ---- MIMIC-IV: the status of one moment

TRACHEOSTOMY_STATUS, INVASIVE_STATUS, NON_INVASIVE_STATUS = (
    "Tracheostomy",
    "InvasiveVent",
    "NonInvasiveVent",
)
VENTILATION_STATUSES = (
    TRACHEOSTOMY_STATUS,
    INVASIVE_STATUS,
    NON_INVASIVE_STATUS,
    "HFNC",
    "SupplementalOxygen",
    "None",
)
"""The states of MIMIC-IV; where a moment shows several, the first in this order holds."""

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
    """The status that one value of one item shows; ``rank`` 0 is the strongest."""

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

# ---- procedures with a start and an end, for data that comes without charted rows

VENTILATION_PROCEDURES = {
    "mimic-iii": {"225792": VENTILATED_STATUS, "225794": NON_INVASIVE_STATUS},
    "mimic-iv": {"225792": INVASIVE_STATUS, "225794": NON_INVASIVE_STATUS},
}

# ---- the prolonged label

MECHANICAL_VENTILATION_STATUSES = (VENTILATED_STATUS, INVASIVE_STATUS, TRACHEOSTOMY_STATUS)
"""The statuses that are mechanical ventilation. Tracheostomy is among them because MIMIC-IV moves a ventilated patient to that status when the
tube is changed, which is what happens to those who are ventilated for long: without it exactly the prolonged cases would be cut short."""


class DiagnosisExclusion(NamedTuple):
    """Admissions with a diagnosis code that starts like this are not asked, for this reason."""

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
    # The published code picks burns by their position in a list printed from the data. The rule it states, head, face and neck or more than
    # 30 % of the body surface, is in codes: eye and adnexa, face and head and neck, 30-39 % and more.
    "burns of head, face or neck, or of 30 % of the body or more": {
        "icd9": ("940", "941", *(f"948{digit}" for digit in range(3, 10))),
        "icd10": ("T20", "T26", *(f"T3{kind}{digit}" for kind in (1, 2) for digit in range(3, 10))),
    },
    # every title of the ICD-9 dictionary that contains "donor" is in V59
    "organ or tissue donor": {"icd9": ("V59",), "icd10": ("Z52",)},
}
DIAGNOSIS_EXCLUSIONS: tuple[DiagnosisExclusion, ...] = tuple(
    DiagnosisExclusion(reason, system, prefix)
    for reason, systems in _EXCLUDED_CODE_PREFIXES.items()
    for system, prefixes in systems.items()
    for prefix in prefixes
)
"""Diagnoses that Clinical XLNet excludes, by the start of the code, dots removed. It knows ICD-9 only; the ICD-10 codes are the images of those
under the general equivalence mappings of CMS, so that a stay of MIMIC-IV is not kept for being coded later."""
