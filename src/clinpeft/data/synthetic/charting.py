"""What is charted in intensive care: vital signs, the ventilator and its settings, oxygen, extubations and tracheostomies, moment by moment.

Item ids and values are those of the data sets, blanks at the end included. From the first to the last moment of a ventilation everything in
between may happen (silence, an extubation that fails); only those two decide whether it was prolonged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from clinpeft.data.synthetic.hospital import Dice, Stay
from clinpeft.data.synthetic.rates import Rates


class Row(NamedTuple):
    """One charted value; ``number`` and ``unit`` are empty for words."""

    item: int
    value: str
    number: str = ""
    unit: str = ""


class Moment(NamedTuple):
    """All that is charted in one minute."""

    at: datetime
    rows: list[Row]


class Procedure(NamedTuple):
    """An entry of the procedures with start and end."""

    item: int
    began: datetime
    ended: datetime
    category: str


@dataclass(frozen=True)
class Course:
    """How a stay in intensive care went: spells on the ventilator, when the tube became a tracheostomy, when silence fell, which extubations."""

    spells: tuple[tuple[datetime, datetime], ...] = ()
    tracheostomy: datetime | None = None
    silence: tuple[datetime, datetime] | None = None
    extubations: tuple[tuple[datetime, bool], ...] = ()
    mask: bool = False


@dataclass(frozen=True)
class Charting:
    """The words of one charting system: items, and how each state is written. ``devices`` are (tube, tracheostomy, mask after it, non-invasive)."""

    vitals: tuple[tuple[int, str], ...]
    device: int
    devices: tuple[str, str, str, str]
    oxygen: tuple[str, ...]
    mode: int
    modes: tuple[str, str]
    kind: tuple[int, str] | None
    settings: tuple[tuple[int, float, float, str], ...]
    extubation: tuple[int, str, str] | None


CAREVUE = Charting(
    vitals=((211, "BPM"), (618, "BPM"), (646, "%")),
    device=467,
    devices=("Ventilator", "Ventilator", "Trach Mask", "Bipap Mask"),
    oxygen=("Nasal Cannula", "Face Tent", "None"),
    mode=720,
    modes=("Assist Control", "Pressure Support"),
    kind=None,
    settings=((506, 5, 14, "cmH2O"), (682, 320, 580, "ml"), (543, 14, 32, "cmH2O")),
    extubation=(640, "Extubated", "Self Extubation"),
)
METAVISION = Charting(
    vitals=((220045, "bpm"), (220210, "insp/min"), (220277, "%")),
    device=226732,
    devices=("Endotracheal tube", "Tracheostomy tube", "Trach mask ", "Bipap mask "),
    oxygen=("Nasal cannula", "Venti mask ", "Face tent", "None"),
    mode=223849,
    modes=("CMV/ASSIST/AutoFlow", "CPAP/PSV"),
    kind=(223848, "Drager"),
    settings=((220339, 5, 14, "cmH2O"), (224685, 320, 580, "mL"), (224687, 5, 14, "L/min")),
    extubation=None,
)
LABELS = {
    211: "Heart Rate",
    618: "Respiratory Rate",
    646: "SpO2",
    467: "O2 Delivery Device",
    720: "Ventilator Mode",
    506: "PEEP Set",
    682: "Tidal Volume (Obser)",
    543: "Plateau Pressure",
    640: "Significant Events",
    220045: "Heart Rate",
    220210: "Respiratory Rate",
    220277: "O2 saturation pulseoxymetry",
    226732: "O2 Delivery Device(s)",
    223849: "Ventilator Mode",
    223848: "Ventilator Type",
    220339: "PEEP set",
    224685: "Tidal Volume (observed)",
    224687: "Minute Volume",
    225792: "Invasive Ventilation",
    225794: "Non-invasive Ventilation",
    225448: "Percutaneous Tracheostomy",
    227194: "Extubation",
    225468: "Unplanned Extubation (patient-initiated)",
}
FIRST_METAVISION = 220000
INVASIVE, NON_INVASIVE, TRACHEOSTOMY, EXTUBATION, SELF_EXTUBATION = (
    225792,
    225794,
    225448,
    227194,
    225468,
)
PROCEDURES = frozenset({INVASIVE, NON_INVASIVE, TRACHEOSTOMY, EXTUBATION, SELF_EXTUBATION})
_NUMBERS = tuple(map(str, range(1000)))


def course_of(stay: Stay, rates: Rates, dice: Dice) -> Course:
    """How intensive care went; ventilation begins and ends when the stay says so."""
    care = stay.intensive
    if care is None:
        return Course()
    first, last = care.ventilated_from, care.ventilated_until
    if first is None or last is None:
        return Course(mask=dice.chance(0.1))
    hours = (last - first).total_seconds() / 3600
    silence = _silence(first, hours, dice) if hours >= 48 and dice.chance(rates.silences) else None
    if stay.breathing == "prolonged" and dice.chance(rates.tracheostomies):
        return Course(((first, last),), first + timedelta(hours=dice.whole(100, 160)), silence)
    if hours >= 30 and dice.chance(rates.reintubations):
        out = first + timedelta(hours=round(hours * 0.6))
        back = out + timedelta(minutes=dice.whole(150, 600))
        return Course(
            ((first, out), (back, last)),
            None,
            silence,
            ((out, dice.chance(rates.self_extubations)), *_extubated(stay, last, rates, dice)),
        )
    return Course(((first, last),), None, silence, tuple(_extubated(stay, last, rates, dice)))


def _silence(first: datetime, hours: float, dice: Dice) -> tuple[datetime, datetime]:
    begins = first + timedelta(hours=dice.between(8.0, hours * 0.4))
    return begins, begins + timedelta(hours=dice.whole(9, 20))


def _extubated(
    stay: Stay, last: datetime, rates: Rates, dice: Dice
) -> Iterator[tuple[datetime, bool]]:
    if not stay.died:
        yield last, dice.chance(rates.self_extubations)


def moments(
    stay: Stay, course: Course, words: Charting, rates: Rates, dice: Dice
) -> Iterator[Moment]:
    """Everything charted in a stay, in order of time."""
    care = stay.intensive
    if care is None:
        return
    edges = {moment for spell in course.spells for moment in spell}
    steps = int((care.ended - care.began).total_seconds() // 60 // rates.charted_minutes)
    regular = {
        care.began + timedelta(minutes=rates.charted_minutes * step) for step in range(steps + 1)
    }
    device = dice.pick(words.oxygen)
    for at in sorted(edges | regular):
        if course.silence and course.silence[0] < at < course.silence[1] and at not in edges:
            continue
        yield Moment(at, [*_vitals(words, dice), *_breathing(at, course, words, device, dice)])
    if words.extubation:
        item, planned, by_patient = words.extubation
        for at, self_extubated in course.extubations:
            yield Moment(
                at + timedelta(minutes=1), [Row(item, by_patient if self_extubated else planned)]
            )


def _vitals(words: Charting, dice: Dice) -> list[Row]:
    heart, breaths, oxygen = (
        _NUMBERS[dice.whole(low, high)] for low, high in ((55, 130), (10, 34), (88, 100))
    )
    return [
        Row(item, value, value, unit)
        for (item, unit), value in zip(words.vitals, (heart, breaths, oxygen), strict=True)
    ]


def _breathing(at: datetime, course: Course, words: Charting, device: str, dice: Dice) -> list[Row]:
    tube, tracheostomy, mask_after, non_invasive = words.devices
    pierced = course.tracheostomy is not None and at >= course.tracheostomy
    if any(began <= at <= ended for began, ended in course.spells):
        last = course.spells[-1][1]
        rows = [
            Row(words.device, tracheostomy if pierced else tube),
            Row(words.mode, words.modes[at > last - timedelta(hours=18)]),
        ]
        if words.kind:
            rows.append(Row(*words.kind))
        values = [_NUMBERS[dice.whole(int(low), int(high))] for _, low, high, _ in words.settings]
        return [
            *rows,
            *(
                Row(item, value, value, unit)
                for (item, _, _, unit), value in zip(words.settings, values, strict=True)
            ),
        ]
    return [Row(words.device, mask_after if pierced else non_invasive if course.mask else device)]


def procedures(stay: Stay, course: Course) -> Iterator[Procedure]:
    """Procedures with start and end, as MetaVision documents them."""
    for began, ended in course.spells:
        yield Procedure(INVASIVE, began, ended, "2-Ventilation")
    if course.mask and stay.intensive:
        yield Procedure(NON_INVASIVE, stay.intensive.began, stay.intensive.ended, "2-Ventilation")
    for at, self_extubated in course.extubations:
        yield Procedure(
            SELF_EXTUBATION if self_extubated else EXTUBATION,
            at,
            at + timedelta(minutes=1),
            "Intubation/Extubation",
        )
    if course.tracheostomy:
        yield Procedure(
            TRACHEOSTOMY,
            course.tracheostomy,
            course.tracheostomy + timedelta(minutes=30),
            "Intubation/Extubation",
        )
