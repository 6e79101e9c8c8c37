"""What is charted in intensive care, minute by minute.

That is vital signs, the ventilator and its settings, oxygen, extubations and tracheostomies. Item
ids and values are those of the data sets, trailing blanks included. Between the first and the last
moment of a ventilation there may be silence, or an extubation that fails; only those two moments
decide whether it was prolonged.
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
    """A procedure with start and end."""

    item: int
    began_at: datetime
    ended_at: datetime
    category: str


@dataclass(frozen=True)
class VentilationCourse:
    """How breathing was supported in one stay.

    Attributes:
        ventilation_spells: (first, last) moment of each spell on the ventilator.
        tracheostomy_at: when the tube was replaced; None without.
        uncharted_interval: (start, end) of a time in which nothing is charted; None without.
        extubations: (time, whether by the patient).
        has_mask: whether there is non-invasive ventilation.
    """

    ventilation_spells: tuple[tuple[datetime, datetime], ...] = ()
    tracheostomy_at: datetime | None = None
    uncharted_interval: tuple[datetime, datetime] | None = None
    extubations: tuple[tuple[datetime, bool], ...] = ()
    has_mask: bool = False


@dataclass(frozen=True)
class ChartingSystem:
    """The item ids and words of one charting system.

    Attributes:
        vitals: (item, unit) of heart rate, respiratory rate and oxygen saturation.
        device_item: of the device that gives oxygen.
        devices: words for tube, tracheostomy, mask after a tracheostomy, non-invasive mask.
        oxygen_devices: words without ventilation.
        mode_item: of the ventilator mode.
        modes: words for the mode, and for that of the last 18 hours.
        ventilator_type: (item, word), where it is charted.
        settings: (item, lowest, highest, unit) of each ventilator setting.
        extubation: (item, word, word where the patient did it), where it is charted as an event.
    """

    vitals: tuple[tuple[int, str], ...]
    device_item: int
    devices: tuple[str, str, str, str]
    oxygen_devices: tuple[str, ...]
    mode_item: int
    modes: tuple[str, str]
    ventilator_type: tuple[int, str] | None
    settings: tuple[tuple[int, float, float, str], ...]
    extubation: tuple[int, str, str] | None


# In use until 2008; MIMIC-III only. Item ids are below FIRST_METAVISION_ITEM.
CAREVUE_SYSTEM = ChartingSystem(
    vitals=((211, "BPM"), (618, "BPM"), (646, "%")),
    device_item=467,
    # CareVue has one word for a ventilator on a tube and on a tracheostomy
    devices=("Ventilator", "Ventilator", "Trach Mask", "Bipap Mask"),
    oxygen_devices=("Nasal Cannula", "Face Tent", "None"),
    mode_item=720,
    modes=("Assist Control", "Pressure Support"),
    ventilator_type=None,
    settings=((506, 5, 14, "cmH2O"), (682, 320, 580, "ml"), (543, 14, 32, "cmH2O")),
    extubation=(640, "Extubated", "Self Extubation"),
)
# In use from 2008; the later part of MIMIC-III, and all of MIMIC-IV
METAVISION_SYSTEM = ChartingSystem(
    vitals=((220045, "bpm"), (220210, "insp/min"), (220277, "%")),
    device_item=226732,
    # The trailing blanks are in the data set
    devices=("Endotracheal tube", "Tracheostomy tube", "Trach mask ", "Bipap mask "),
    oxygen_devices=("Nasal cannula", "Venti mask ", "Face tent", "None"),
    mode_item=223849,
    modes=("CMV/ASSIST/AutoFlow", "CPAP/PSV"),
    ventilator_type=(223848, "Drager"),
    settings=((220339, 5, 14, "cmH2O"), (224685, 320, 580, "mL"), (224687, 5, 14, "L/min")),
    extubation=None,
)
# Item -> label, as in D_ITEMS
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
# Items of the table of procedures, which have a start and an end
INVASIVE_VENTILATION_ITEM = 225792
NON_INVASIVE_VENTILATION_ITEM = 225794
TRACHEOSTOMY_ITEM = 225448
EXTUBATION_ITEM = 227194
SELF_EXTUBATION_ITEM = 225468
PROCEDURE_ITEMS = frozenset(
    {
        INVASIVE_VENTILATION_ITEM,
        NON_INVASIVE_VENTILATION_ITEM,
        TRACHEOSTOMY_ITEM,
        EXTUBATION_ITEM,
        SELF_EXTUBATION_ITEM,
    }
)
# Millions of whole numbers are charted: their texts are made once.
_NUMBER_TEXTS = tuple(map(str, range(1000)))
_VITAL_RANGES = ((55, 130), (10, 34), (88, 100))  # beats, breaths in a minute; % saturation


def draw_ventilation_course(
    stay: Stay, rates: SyntheticRates, rng: RandomStream
) -> VentilationCourse:
    """Draw how ventilation went, between its first and last moment in the stay."""
    care = stay.intensive_care
    if care is None:
        return VentilationCourse()
    first, last = care.ventilated_from, care.ventilated_until
    if first is None or last is None:
        # A mask is no invasive ventilation, and must not count as one
        return VentilationCourse(has_mask=rng.draw_bool(0.1))
    hours = (last - first).total_seconds() / 3600
    silence = None  # gaps of the record must not end a ventilation
    if hours >= 48 and rng.draw_bool(rates.uncharted_intervals):
        begins = first + timedelta(hours=rng.draw_float(8.0, hours * 0.4))
        silence = begins, begins + timedelta(hours=rng.draw_int(9, 20))
    if stay.ventilation_category == "prolonged" and rng.draw_bool(rates.tracheostomies):
        tracheostomy_at = first + timedelta(hours=rng.draw_int(100, 160))
        return VentilationCourse(((first, last),), tracheostomy_at, silence)
    # A spell ends at a failed extubation, and the next begins when the tube is replaced.
    spells: tuple[tuple[datetime, datetime], ...] = ((first, last),)
    if hours >= 30 and rng.draw_bool(rates.reintubations):
        removed_at = first + timedelta(hours=round(hours * 0.6))
        replaced_at = removed_at + timedelta(minutes=rng.draw_int(150, 600))
        spells = ((first, removed_at), (replaced_at, last))
    # The dead are not extubated at the end.
    ends = [end for _, end in (spells[:-1] if stay.died_in_hospital else spells)]
    extubations = tuple((end, rng.draw_bool(rates.self_extubations)) for end in ends)
    return VentilationCourse(spells, None, silence, extubations)


def generate_charted_minutes(
    stay: Stay,
    ventilation_course: VentilationCourse,
    charting_system: ChartingSystem,
    rates: SyntheticRates,
    rng: RandomStream,
) -> Iterator[ChartedMinute]:
    """Generate everything charted in a stay, in order of time, then the extubation events."""
    care = stay.intensive_care
    if care is None:
        return
    edges = {moment for spell in ventilation_course.ventilation_spells for moment in spell}
    minutes = (care.ended_at - care.began_at).total_seconds() // 60
    regular = {
        care.began_at + timedelta(minutes=rates.charting_interval_minutes * step)
        for step in range(int(minutes // rates.charting_interval_minutes) + 1)
    }
    device = rng.choose(charting_system.oxygen_devices)
    silence = ventilation_course.uncharted_interval
    for moment in sorted(edges | regular):
        # First and last moments of a spell are always charted: they decide the outcome.
        if silence and silence[0] < moment < silence[1] and moment not in edges:
            continue
        vitals = [_NUMBER_TEXTS[rng.draw_int(low, high)] for low, high in _VITAL_RANGES]
        values = [
            ChartedValue(item, value, value, unit)
            for (item, unit), value in zip(charting_system.vitals, vitals, strict=True)
        ]
        values += _chart_breathing(moment, ventilation_course, charting_system, device, rng)
        yield ChartedMinute(moment, values)
    if charting_system.extubation:
        item, planned, by_patient = charting_system.extubation
        for moment, is_self_extubated in ventilation_course.extubations:
            value = ChartedValue(item, by_patient if is_self_extubated else planned)
            yield ChartedMinute(moment + timedelta(minutes=1), [value])


def _chart_breathing(
    charted_at: datetime,
    ventilation_course: VentilationCourse,
    charting_system: ChartingSystem,
    oxygen_device: str,
    rng: RandomStream,
) -> list[ChartedValue]:
    """Chart the ventilator and its settings during a spell, else the device that gives oxygen."""
    tube, tracheostomy, mask_after, non_invasive = charting_system.devices
    tracheostomy_at = ventilation_course.tracheostomy_at
    has_tracheostomy = tracheostomy_at is not None and charted_at >= tracheostomy_at
    spells, device_item = ventilation_course.ventilation_spells, charting_system.device_item
    if not any(began <= charted_at <= ended for began, ended in spells):
        oxygen_device = non_invasive if ventilation_course.has_mask else oxygen_device
        return [ChartedValue(device_item, mask_after if has_tracheostomy else oxygen_device)]
    # Support is reduced before the end, so that modes tell something of how far it has come.
    is_weaning = charted_at > spells[-1][1] - timedelta(hours=18)
    values = [
        ChartedValue(device_item, tracheostomy if has_tracheostomy else tube),
        ChartedValue(charting_system.mode_item, charting_system.modes[is_weaning]),
    ]
    if charting_system.ventilator_type:
        values.append(ChartedValue(*charting_system.ventilator_type))
    for item, low, high, unit in charting_system.settings:
        number = _NUMBER_TEXTS[rng.draw_int(int(low), int(high))]
        values.append(ChartedValue(item, number, number, unit))
    return values


def generate_procedure_events(
    stay: Stay, ventilation_course: VentilationCourse
) -> Iterator[ProcedureEvent]:
    """Generate procedures with start and end, as MetaVision documents them."""
    for began, ended in ventilation_course.ventilation_spells:
        yield ProcedureEvent(INVASIVE_VENTILATION_ITEM, began, ended, "2-Ventilation")
    care = stay.intensive_care
    if ventilation_course.has_mask and care:
        item = NON_INVASIVE_VENTILATION_ITEM
        yield ProcedureEvent(item, care.began_at, care.ended_at, "2-Ventilation")
    for began, is_self_extubated in ventilation_course.extubations:
        item = SELF_EXTUBATION_ITEM if is_self_extubated else EXTUBATION_ITEM
        ended = began + timedelta(minutes=1)
        yield ProcedureEvent(item, began, ended, "Intubation/Extubation")
    if began_at := ventilation_course.tracheostomy_at:
        ended = began_at + timedelta(minutes=30)
        yield ProcedureEvent(TRACHEOSTOMY_ITEM, began_at, ended, "Intubation/Extubation")
