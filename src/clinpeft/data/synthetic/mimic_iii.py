"""The synthetic hospital as MIMIC-III v1.4: its files, its columns, and their oddities.

Columns follow the schema of MIMIC-III (Johnson et al. 2016, https://doi.org/10.1038/sdata.2016.35).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from clinpeft.data.synthetic import charting, codes, writers
from clinpeft.data.synthetic.charting import (
    CAREVUE_SYSTEM,
    METAVISION_SYSTEM,
    VentilationCourse,
)
from clinpeft.data.synthetic.hospital import IntensiveCareStay, RandomStream, Stay
from clinpeft.data.synthetic.notes import SyntheticNote
from clinpeft.data.synthetic.writers import PatientRecord, WriterContext, format_timestamp

# File -> columns, in the order and the case of the distribution
MIMIC_III_HEADERS = {
    name: tuple(columns.split())
    for name, columns in {
        "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
        "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE "
        "ADMISSION_LOCATION DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION MARITAL_STATUS "
        "ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
        "DIAGNOSES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
        "PROCEDURES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
        "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT "
        "FIRST_WARDID LAST_WARDID INTIME OUTTIME LOS",
        "CHARTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE "
        "VALUENUM VALUEUOM WARNING ERROR RESULTSTATUS STOPPED",
        "PROCEDUREEVENTS_MV": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID VALUE "
        "VALUEUOM LOCATION LOCATIONCATEGORY STORETIME CGID ORDERID LINKORDERID ORDERCATEGORYNAME "
        "SECONDARYORDERCATEGORYNAME ORDERCATEGORYDESCRIPTION ISOPENBAG CONTINUEINNEXTDEPT "
        "CANCELREASON STATUSDESCRIPTION COMMENTS_EDITEDBY COMMENTS_CANCELEDBY COMMENTS_DATE",
        "NOTEEVENTS": "ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME CATEGORY "
        "DESCRIPTION CGID ISERROR TEXT",
        "D_ICD_DIAGNOSES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
        "D_ICD_PROCEDURES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
        "D_ITEMS": "ROW_ID ITEMID LABEL ABBREVIATION DBSOURCE LINKSTO CATEGORY UNITNAME PARAM_TYPE "
        "CONCEPTID",
    }.items()
}
MIMIC_III_NOTE_CATEGORIES = {  # two of them end in a space, as in MIMIC-III
    "discharge": "Discharge summary",
    "discharge addendum": "Discharge summary",
    "radiology": "Radiology",
    "radiology addendum": "Radiology",
    "nursing": "Nursing",
    "nursing/other": "Nursing/other",
    "respiratory": "Respiratory ",
    "physician": "Physician ",
    "ecg": "ECG",
}
# MIMIC-III has only the day of these.
DATE_ONLY_NOTE_KINDS = frozenset({"discharge", "discharge addendum", "ecg"})
# Drawn with equal probability: repeated values are as much more frequent
MIMIC_III_RACES = (
    "WHITE",
    "WHITE",
    "WHITE",
    "BLACK/AFRICAN AMERICAN",
    "HISPANIC OR LATINO",
    "ASIAN",
    "UNKNOWN/NOT SPECIFIED",
)
MIMIC_III_INSURANCES = ("Medicare", "Private", "Medicaid", "Government", "Self Pay")
MIMIC_III_CARE_UNITS = ("MICU", "SICU", "CCU", "TSICU", "CSRU")


class NumberedTable:
    """A table whose rows are numbered from 1 in the column ROW_ID."""

    def __init__(self, writer: Any) -> None:
        self._writer, self.last_row_id = writer, 0

    def write_row(self, row: list[Any]) -> None:
        """Write one row after its ROW_ID."""
        self.last_row_id += 1
        self._writer.writerow([self.last_row_id, *row])


def write_mimic_iii(context: WriterContext, people: Iterable[PatientRecord]) -> None:
    """Write all files of MIMIC-III that a cohort or a corpus reads.

    Args:
        context: folder, seed and rates; defects and rows are counted there.
        people: written one by one, so that memory does not grow with their number.
    """
    rng = RandomStream(context.seed, 0, 3)  # 3: the stream of the notes' columns
    with writers.open_table_writers(context.folder, MIMIC_III_HEADERS) as csv_writers:
        tables = {name: NumberedTable(writer) for name, writer in csv_writers.items()}
        _write_dictionaries(tables)
        for person in people:
            _write_patient(person, context, tables)
            for note in person.documents:
                tables["NOTEEVENTS"].write_row(_build_note_row(note, context, rng))
    context.defect_counts.update(
        {f"rows of {name}": table.last_row_id for name, table in tables.items()}
    )


def _write_patient(
    patient_record: PatientRecord, context: WriterContext, tables: dict[str, NumberedTable]
) -> None:
    """Write a person, and the admissions, codes and intensive care of each stay."""
    stays, rates, counts = patient_record.stays, context.rates, context.defect_counts
    patient = stays[0].patient
    rng = RandomStream(context.seed, patient.subject_id, 4)  # 0: the stays, 1: the notes
    death_in_hospital, death_outside = writers.find_death_times(stays)
    death = death_in_hospital or death_outside
    day = f"{death:%Y-%m-%d} 00:00:00" if death else ""
    birth = format_timestamp(writers.compute_birth_time(stays[0]))
    # DOD from whatever source, DOD_HOSP from the hospital, DOD_SSN from social security
    deaths = [day, day if death_in_hospital else "", "" if death_in_hospital else day]
    tables["PATIENTS"].write_row(
        [patient.subject_id, patient.sex, birth, *deaths, int(bool(death))]
    )
    # A person was charted in one of two systems: CareVue until 2008, MetaVision after that.
    system = rng.choose(("carevue", "metavision"))
    insurance, race = rng.choose(MIMIC_III_INSURANCES), rng.choose(MIMIC_III_RACES)
    marital_status = rng.choose(("MARRIED", "SINGLE", "WIDOWED"))
    version = codes.ICD9_VERSION
    for stay in stays:
        writers.count_stay_defects(stay, counts)
        tables["ADMISSIONS"].write_row(_build_admission_row(stay, insurance, race, marital_status))
        ventilation = charting.draw_ventilation_course(stay, rates, rng)
        diagnoses = codes.bill_diagnoses(stay, version, rates, rng, counts, has_both_versions=False)
        has_tracheostomy = ventilation.tracheostomy_at is not None
        procedures = codes.bill_procedures(stay, version, rates, rng, has_tracheostomy, counts)
        for name, billed in (("DIAGNOSES_ICD", diagnoses), ("PROCEDURES_ICD", procedures)):
            for number, code in enumerate(billed, start=1):
                tables[name].write_row([patient.subject_id, stay.stay_id, number, code.text])
        if stay.intensive_care:
            _write_intensive_care(
                stay, stay.intensive_care, ventilation, system, context, tables, rng
            )


def _build_admission_row(stay: Stay, insurance: str, race: str, marital_status: str) -> list[Any]:
    is_newborn = stay.patient.is_newborn
    is_elective = stay.severity == 0 and stay.stay_id % 3 == 0
    discharged_at = format_timestamp(writers.compute_recorded_discharge(stay))
    # Registration in the emergency department, and leaving it for the ward
    registered_at = format_timestamp(stay.admitted_at - timedelta(hours=4))
    left_emergency_at = format_timestamp(stay.admitted_at - timedelta(minutes=20))
    return [
        stay.patient.subject_id,
        stay.stay_id,
        format_timestamp(stay.admitted_at),
        discharged_at,
        discharged_at if stay.died_in_hospital else "",
        "NEWBORN" if is_newborn else "ELECTIVE" if is_elective else "EMERGENCY",
        "PHYS REFERRAL/NORMAL DELI" if is_newborn else "EMERGENCY ROOM ADMIT",
        "DEAD/EXPIRED" if stay.died_in_hospital else "HOME",
        insurance,
        "ENGL",  # abbreviated to four letters, as in MIMIC-III
        "NOT SPECIFIED",
        "" if is_newborn else marital_status,
        race,
        "" if is_newborn else registered_at,
        "" if is_newborn else left_emergency_at,
        "NEWBORN" if is_newborn else stay.complaint.upper(),
        int(stay.died_in_hospital),
        int(stay.needed_icu),
    ]


def _write_intensive_care(
    stay: Stay,
    intensive_care: IntensiveCareStay,
    ventilation_course: VentilationCourse,
    system: str,
    context: WriterContext,
    tables: dict[str, NumberedTable],
    rng: RandomStream,
) -> None:
    """Write the stay on the unit, its charted values, and procedures where MetaVision has them."""
    ids = [stay.patient.subject_id, stay.stay_id, stay.stay_id]
    began_at, ended_at = intensive_care.began_at, intensive_care.ended_at
    unit, days = rng.choose(MIMIC_III_CARE_UNITS), (ended_at - began_at).total_seconds() / 86400
    times = [format_timestamp(began_at), format_timestamp(ended_at), f"{days:.4f}"]
    # One stay on one unit, whose ward number is 50
    tables["ICUSTAYS"].write_row([*ids, system, unit, unit, 50, 50, *times])
    _write_chart_events(stay, ventilation_course, system, context, tables["CHARTEVENTS"], rng)
    if system != "metavision":  # CareVue charts procedures as events only
        return
    procedures = charting.generate_procedure_events(stay, ventilation_course)
    for order, procedure in enumerate(procedures, start=stay.stay_id * 10):
        start, end = format_timestamp(procedure.began_at), format_timestamp(procedure.ended_at)
        minutes = int((procedure.ended_at - procedure.began_at).total_seconds() // 60)
        measured = [start, end, procedure.item, minutes, "min", "", "", end, 15000]
        ordered = [order, order, procedure.category, "", "Task", 1, 0, 0, "FinishedRunning"]
        tables["PROCEDUREEVENTS_MV"].write_row([*ids, *measured, *ordered, "", "", ""])


def _write_chart_events(
    stay: Stay,
    ventilation_course: VentilationCourse,
    system: str,
    context: WriterContext,
    table: NumberedTable,
    rng: RandomStream,
) -> None:
    """Write one row for each charted value; there are millions, so the loop does little."""
    ids = (stay.patient.subject_id, stay.stay_id, stay.stay_id)
    is_metavision = system == "metavision"
    charting_system = METAVISION_SYSTEM if is_metavision else CAREVUE_SYSTEM
    stopped = "" if is_metavision else "NotStopd"
    caregiver, error_rate = rng.draw_int(14000, 21999), context.rates.charted_rows_in_error
    errors = blanks = 0
    for minute in charting.generate_charted_minutes(
        stay, ventilation_course, charting_system, context.rates, rng
    ):
        time = format_timestamp(minute.charted_at)  # stored in the minute it was charted
        # One draw for the whole minute, and at most one row of it in error: its first
        is_in_error = rng.draw_bool(error_rate * len(minute.values))
        for item, value, number, unit in minute.values:
            error = "1" if is_in_error else ""
            measured = [item, time, time, caregiver, value, number, unit]
            table.write_row([*ids, *measured, "", error, "", stopped])
            errors += is_in_error
            blanks += value[-1] == " "  # MetaVision ends some words so
            is_in_error = False
    context.defect_counts.update(
        {"charted rows in error": errors, "charted values with a trailing blank": blanks}
    )


def _build_note_row(note: SyntheticNote, context: WriterContext, rng: RandomStream) -> list[Any]:
    writers.count_note_defects(note, context.defect_counts)
    has_only_date, is_radiology = (
        note.kind in DATE_ONLY_NOTE_KINDS,
        note.kind.startswith("radiology"),
    )
    charted_at = "" if has_only_date else format_timestamp(note.charted_at)
    stored_at = "" if has_only_date or is_radiology else format_timestamp(note.stored_at)
    # Reports of outpatients and of the emergency department belong to no admission.
    lacks_stay = is_radiology and rng.draw_bool(context.rates.reports_without_stay)
    is_in_error = note.kind.startswith("nursing") and rng.draw_bool(context.rates.notes_in_error)
    context.defect_counts.update(
        {"notes without HADM_ID": lacks_stay, "notes in error": is_in_error}
    )
    return [
        note.stay.patient.subject_id,
        "" if lacks_stay else note.stay.stay_id,
        f"{note.charted_at:%Y-%m-%d}",
        charted_at,
        stored_at,
        MIMIC_III_NOTE_CATEGORIES[note.kind],
        note.description,
        "" if has_only_date or is_radiology else rng.draw_int(14000, 21999),
        "1" if is_in_error else "",
        note.text,
    ]


def _write_dictionaries(tables: dict[str, NumberedTable]) -> None:
    """Write the titles of codes and the labels of charted items."""
    for name, kind in (("D_ICD_DIAGNOSES", "diagnosis"), ("D_ICD_PROCEDURES", "procedure")):
        for code, version, title in codes.generate_code_dictionary(kind):
            if version == codes.ICD9_VERSION:
                tables[name].write_row([code, title[:24], title])  # SHORT_TITLE has 24 characters
    for item, label in charting.CHART_ITEM_LABELS.items():
        system = "metavision" if item >= charting.FIRST_METAVISION_ITEM else "carevue"
        links = "procedureevents_mv" if item in charting.PROCEDURE_ITEMS else "chartevents"
        abbreviation = label if system == "metavision" else ""
        tables["D_ITEMS"].write_row([item, label, abbreviation, system, links, "", "", "", ""])
