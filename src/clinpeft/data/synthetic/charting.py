"""What is charted in intensive care: vital signs, the ventilator and its settings, oxygen, extubations and tracheostomies, moment by moment.

Item ids and values are those of the data sets, blanks at the end included. From the first to the last moment of a ventilation everything in
between may happen (silence, an extubation that fails); only those two decide whether it was prolonged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from clinpeft.data.synthetic.hospital import RandomStream, Stay
from clinpeft.data.synthetic.rates import SyntheticRates


class ChartedValue(NamedTuple):
    """One charted value; ``number`` and ``unit`` are empty for words."""

    item: int
    value: str
    number: str = ""
    unit: str = ""


class ChartedMinute(NamedTuple):
    """All that is charted in one minute."""

    charted_at: datetime
    values: list[ChartedValue]


class ProcedureEvent(NamedTuple):
    """An entry of the procedures with start and end."""

    item: int
    began_at: datetime
    ended_at: datetime
    category: str


@dataclass(frozen=True)
class VentilationCourse:
    """How a stay in intensive care went: spells on the ventilator, when the tube became a tracheostomy, when silence fell, which extubations."""

    ventilation_spells: tuple[tuple[datetime, datetime], ...] = ()
    tracheostomy_at: datetime | None = None
    uncharted_interval: tuple[datetime, datetime] | None = None
    extubations: tuple[tuple[datetime, bool], ...] = ()
    has_mask: bool = False


@dataclass(frozen=True)
class ChartingSystem:
    """The words of one charting system: items, and how each state is written. ``devices`` are (tube, tracheostomy, mask after it, non-invasive)."""

    vitals: tuple[tuple[int, str], ...]
    device_item: int
    devices: tuple[str, str, str, str]
    oxygen_devices: tuple[str, ...]
    mode_item: int
    modes: tuple[str, str]
    ventilator_type: tuple[int, str] | None
    settings: tuple[tuple[int, float, float, str], ...]
    extubation: tuple[int, str, str] | None


CAREVUE_SYSTEM = ChartingSystem(
    vitals=((211, "BPM"), (618, "BPM"), (646, "%")),
    device_item=467,
    devices=("Ventilator", "Ventilator", "Trach Mask", "Bipap Mask"),
    oxygen_devices=("Nasal Cannula", "Face Tent", "None"),
    mode_item=720,
    modes=("Assist Control", "Pressure Support"),
    ventilator_type=None,
    settings=((506, 5, 14, "cmH2O"), (682, 320, 580, "ml"), (543, 14, 32, "cmH2O")),
    extubation=(640, "Extubated", "Self Extubation"),
)
METAVISION_SYSTEM = ChartingSystem(
    vitals=((220045, "bpm"), (220210, "insp/min"), (220277, "%")),
    device_item=226732,
    devices=("Endotracheal tube", "Tracheostomy tube", "Trach mask ", "Bipap mask "),
    oxygen_devices=("Nasal cannula", "Venti mask ", "Face tent", "None"),
    mode_item=223849,
    modes=("CMV/ASSIST/AutoFlow", "CPAP/PSV"),
    ventilator_type=(223848, "Drager"),
    settings=((220339, 5, 14, "cmH2O"), (224685, 320, 580, "mL"), (224687, 5, 14, "L/min")),
    extubation=None,
)
CHART_ITEM_LABELS = {
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
FIRST_METAVISION_ITEM = 220000
(
    INVASIVE_VENTILATION_ITEM,
    NON_INVASIVE_VENTILATION_ITEM,
    TRACHEOSTOMY_ITEM,
    EXTUBATION_ITEM,
    SELF_EXTUBATION_ITEM,
) = (
    225792,
    225794,
    225448,
    227194,
    225468,
)
PROCEDURE_ITEMS = frozenset(
    {
        INVASIVE_VENTILATION_ITEM,
        NON_INVASIVE_VENTILATION_ITEM,
        TRACHEOSTOMY_ITEM,
        EXTUBATION_ITEM,
        SELF_EXTUBATION_ITEM,
    }
)
_NUMBER_TEXTS = tuple(map(str, range(1000)))


def draw_ventilation_course(
    stay: Stay, rates: SyntheticRates, rng: RandomStream
) -> VentilationCourse:
    """How intensive care went; ventilation begins and ends when the stay says so."""
    care = stay.intensive_care
    if care is None:
        return VentilationCourse()
    first, last = care.ventilated_from, care.ventilated_until
    if first is None or last is None:
        return VentilationCourse(has_mask=rng.draw_bool(0.1))
    hours = (last - first).total_seconds() / 3600
    silence = (
        _draw_uncharted_interval(first, hours, rng)
        if hours >= 48 and rng.draw_bool(rates.uncharted_intervals)
        else None
    )
    if stay.ventilation_category == "prolonged" and rng.draw_bool(rates.tracheostomies):
        return VentilationCourse(
            ((first, last),), first + timedelta(hours=rng.draw_int(100, 160)), silence
        )
    if hours >= 30 and rng.draw_bool(rates.reintubations):
        out = first + timedelta(hours=round(hours * 0.6))
        back = out + timedelta(minutes=rng.draw_int(150, 600))
        return VentilationCourse(
            ((first, out), (back, last)),
            None,
            silence,
            (
                (out, rng.draw_bool(rates.self_extubations)),
                *_draw_extubations(stay, last, rates, rng),
            ),
        )
    return VentilationCourse(
        ((first, last),), None, silence, tuple(_draw_extubations(stay, last, rates, rng))
    )


def _draw_uncharted_interval(
    first: datetime, hours: float, rng: RandomStream
) -> tuple[datetime, datetime]:
    begins = first + timedelta(hours=rng.draw_float(8.0, hours * 0.4))
    return begins, begins + timedelta(hours=rng.draw_int(9, 20))


def _draw_extubations(
    stay: Stay, last: datetime, rates: SyntheticRates, rng: RandomStream
) -> Iterator[tuple[datetime, bool]]:
    if not stay.died_in_hospital:
        yield last, rng.draw_bool(rates.self_extubations)


def generate_charted_minutes(
    stay: Stay,
    ventilation_course: VentilationCourse,
    charting_system: ChartingSystem,
    rates: SyntheticRates,
    rng: RandomStream,
) -> Iterator[ChartedMinute]:
    """Everything charted in a stay, in order of time."""
    care = stay.intensive_care
    if care is None:
        return
    edges = {moment for spell in ventilation_course.ventilation_spells for moment in spell}
    steps = int(
        (care.ended_at - care.began_at).total_seconds() // 60 // rates.charting_interval_minutes
    )
    regular = {
        care.began_at + timedelta(minutes=rates.charting_interval_minutes * step)
        for step in range(steps + 1)
    }
    device = rng.choose(charting_system.oxygen_devices)
    for at in sorted(edges | regular):
        if (
            ventilation_course.uncharted_interval
            and ventilation_course.uncharted_interval[0]
            < at
            < ventilation_course.uncharted_interval[1]
            and at not in edges
        ):
            continue
        yield ChartedMinute(
            at,
            [
                *_chart_vitals(charting_system, rng),
                *_chart_breathing(at, ventilation_course, charting_system, device, rng),
            ],
        )
    if charting_system.extubation:
        item, planned, by_patient = charting_system.extubation
        for at, self_extubated in ventilation_course.extubations:
            yield ChartedMinute(
                at + timedelta(minutes=1),
                [ChartedValue(item, by_patient if self_extubated else planned)],
            )


def _chart_vitals(charting_system: ChartingSystem, rng: RandomStream) -> list[ChartedValue]:
    heart, breaths, oxygen = (
        _NUMBER_TEXTS[rng.draw_int(low, high)] for low, high in ((55, 130), (10, 34), (88, 100))
    )
    return [
        ChartedValue(item, value, value, unit)
        for (item, unit), value in zip(
            charting_system.vitals, (heart, breaths, oxygen), strict=True
        )
    ]


def _chart_breathing(
    charted_at: datetime,
    ventilation_course: VentilationCourse,
    charting_system: ChartingSystem,
    device: str,
    rng: RandomStream,
) -> list[ChartedValue]:
    tube, tracheostomy, mask_after, non_invasive = charting_system.devices
    pierced = (
        ventilation_course.tracheostomy_at is not None
        and charted_at >= ventilation_course.tracheostomy_at
    )
    if any(began <= charted_at <= ended for began, ended in ventilation_course.ventilation_spells):
        last = ventilation_course.ventilation_spells[-1][1]
        rows = [
            ChartedValue(charting_system.device_item, tracheostomy if pierced else tube),
            ChartedValue(
                charting_system.mode_item,
                charting_system.modes[charted_at > last - timedelta(hours=18)],
            ),
        ]
        if charting_system.ventilator_type:
            rows.append(ChartedValue(*charting_system.ventilator_type))
        values = [
            _NUMBER_TEXTS[rng.draw_int(int(low), int(high))]
            for _, low, high, _ in charting_system.settings
        ]
        return [
            *rows,
            *(
                ChartedValue(item, value, value, unit)
                for (item, _, _, unit), value in zip(charting_system.settings, values, strict=True)
            ),
        ]
    return [
        ChartedValue(
            charting_system.device_item,
            mask_after if pierced else non_invasive if ventilation_course.has_mask else device,
        )
    ]


def generate_procedure_events(
    stay: Stay, ventilation_course: VentilationCourse
) -> Iterator[ProcedureEvent]:
    """Procedures with start and end, as MetaVision documents them."""
    for began, ended in ventilation_course.ventilation_spells:
        yield ProcedureEvent(INVASIVE_VENTILATION_ITEM, began, ended, "2-Ventilation")
    if ventilation_course.has_mask and stay.intensive_care:
        yield ProcedureEvent(
            NON_INVASIVE_VENTILATION_ITEM,
            stay.intensive_care.began_at,
            stay.intensive_care.ended_at,
            "2-Ventilation",
        )
    for at, self_extubated in ventilation_course.extubations:
        yield ProcedureEvent(
            SELF_EXTUBATION_ITEM if self_extubated else EXTUBATION_ITEM,
            at,
            at + timedelta(minutes=1),
            "Intubation/Extubation",
        )
    if ventilation_course.tracheostomy_at:
        yield ProcedureEvent(
            TRACHEOSTOMY_ITEM,
            ventilation_course.tracheostomy_at,
            ventilation_course.tracheostomy_at + timedelta(minutes=30),
            "Intubation/Extubation",
        )
