"""The synthetic hospital as MIMIC-IV 2.2 with MIMIC-IV-Note 2.2: files, columns, oddities.

Columns follow the schema of MIMIC-IV (Johnson et al. 2023,
https://doi.org/10.1038/s41597-022-01899-x).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from clinpeft.data.synthetic import charting, codes, writers
from clinpeft.data.synthetic.charting import METAVISION_SYSTEM, VentilationCourse
from clinpeft.data.synthetic.hospital import IntensiveCareStay, RandomStream, Stay
from clinpeft.data.synthetic.notes import SyntheticNote
from clinpeft.data.synthetic.writers import PatientRecord, WriterContext, format_timestamp

_NOTE_COLUMNS = "note_id subject_id hadm_id note_type note_seq charttime storetime text"
# File -> columns, in the order and the case of the distribution
MIMIC_IV_HEADERS = {
    name: tuple(columns.split())
    for name, columns in {
        "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
        "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type "
        "admit_provider_id admission_location discharge_location insurance language marital_status "
        "race edregtime edouttime hospital_expire_flag",
        "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
        "hosp/procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
        "hosp/d_icd_diagnoses": "icd_code icd_version long_title",
        "hosp/d_icd_procedures": "icd_code icd_version long_title",
        "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime "
        "los",
        "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid "
        "value valuenum valueuom warning",
        "icu/procedureevents": "subject_id hadm_id stay_id caregiver_id starttime endtime "
        "storetime itemid value valueuom location locationcategory orderid linkorderid "
        "ordercategoryname ordercategorydescription patientweight isopenbag continueinnextdept "
        "statusdescription ORIGINALAMOUNT ORIGINALRATE",
        "icu/d_items": "itemid label abbreviation linksto category unitname param_type "
        "lownormalvalue highnormalvalue",
        "note/discharge": _NOTE_COLUMNS,
        "note/radiology": _NOTE_COLUMNS,
    }.items()
}
MIMIC_IV_NOTE_TYPES = {
    "discharge": "DS",
    "discharge addendum": "AD",
    "radiology": "RR",
    "radiology addendum": "AR",
}
# Addenda are in the file of the notes that they amend.
MIMIC_IV_NOTE_FILES = {kind: f"note/{kind.split()[0]}" for kind in MIMIC_IV_NOTE_TYPES}
# The real time of a person is known to three years only.
MIMIC_IV_YEAR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019")
# Drawn with equal probability: repeated values are as much more frequent
MIMIC_IV_RACES = (
    "WHITE",
    "WHITE",
    "WHITE",
    "BLACK/AFRICAN AMERICAN",
    "HISPANIC/LATINO - PUERTO RICAN",
    "ASIAN",
    "UNKNOWN",
)
MIMIC_IV_INSURANCES = ("Medicare", "Other", "Medicaid")
MIMIC_IV_CARE_UNITS = (
    "Medical Intensive Care Unit (MICU)",
    "Surgical Intensive Care Unit (SICU)",
    "Coronary Care Unit (CCU)",
    "Trauma SICU (TSICU)",
)


def write_mimic_iv(context: WriterContext, people: Iterable[PatientRecord]) -> None:
    """Write all files of MIMIC-IV that a cohort or a corpus reads.

    Args:
        context: folder, seed and rates; defects and rows are counted there.
        people: written one by one, so that memory does not grow with their number.
    """
    rng = RandomStream(context.seed, 0, 2)  # 2: the stream of the notes' columns
    with writers.open_table_writers(context.folder, MIMIC_IV_HEADERS) as tables:
        _write_dictionaries(tables)
        for person in people:
            _write_patient(person, context, tables)
            sequence_numbers: Counter[str] = Counter()
            for note in person.documents:
                note_type = MIMIC_IV_NOTE_TYPES[note.kind]
                sequence_numbers[note_type] += 1
                tables[MIMIC_IV_NOTE_FILES[note.kind]].writerow(
                    _build_note_row(note, note_type, sequence_numbers[note_type], context, rng)
                )


def _write_patient(
    patient_record: PatientRecord, context: WriterContext, tables: Mapping[str, Any]
) -> None:
    """Write a person, and the admissions, codes and intensive care of each stay."""
    stays, rates, counts = patient_record.stays, context.rates, context.defect_counts
    patient, anchor_year = stays[0].patient, stays[0].admitted_at.year
    rng = RandomStream(context.seed, patient.subject_id, 4)  # 0: the stays, 1: the notes
    death_in_hospital, death_outside = writers.find_death_times(stays)
    death = death_in_hospital or death_outside
    year_group = rng.choose(MIMIC_IV_YEAR_GROUPS)
    # The year within the group that the data set does not tell
    real_year = int(year_group[:4]) + rng.draw_int(0, 2)
    day_of_death = f"{death:%Y-%m-%d}" if death else ""
    tables["hosp/patients"].writerow(
        [patient.subject_id, patient.sex, stays[0].age, anchor_year, year_group, day_of_death]
    )
    insurance = rng.choose(MIMIC_IV_INSURANCES)
    language = rng.choose(("ENGLISH", "ENGLISH", "?"))
    marital_status = rng.choose(("MARRIED", "SINGLE", "WIDOWED"))
    race = rng.choose(MIMIC_IV_RACES)
    for stay in stays:
        writers.count_stay_defects(stay, counts)
        tables["hosp/admissions"].writerow(
            _build_admission_row(stay, insurance, language, marital_status, race)
        )
        # Dates are shifted by a number of years of the person's own; codes follow the real year.
        year = real_year + stay.admitted_at.year - anchor_year
        version = codes.choose_icd_version(year, stay.admitted_at.month)
        ventilation = charting.draw_ventilation_course(stay, rates, rng)
        ids, day = [patient.subject_id, stay.stay_id], f"{stay.admitted_at:%Y-%m-%d}"
        diagnoses = codes.bill_diagnoses(stay, version, rates, rng, counts, has_both_versions=True)
        for number, code in enumerate(diagnoses, start=1):
            tables["hosp/diagnoses_icd"].writerow([*ids, number, code.text, code.version])
        has_tracheostomy = ventilation.tracheostomy_at is not None
        procedures = codes.bill_procedures(stay, version, rates, rng, has_tracheostomy, counts)
        for number, code in enumerate(procedures, start=1):
            tables["hosp/procedures_icd"].writerow([*ids, number, day, code.text, code.version])
        if stay.intensive_care:
            _write_intensive_care(stay, stay.intensive_care, ventilation, context, tables, rng)


def _build_admission_row(
    stay: Stay, insurance: str, language: str, marital_status: str, race: str
) -> list[Any]:
    discharged_at = format_timestamp(writers.compute_recorded_discharge(stay))
    is_direct = stay.severity == 0 and stay.stay_id % 3 == 0
    return [
        stay.patient.subject_id,
        stay.stay_id,
        format_timestamp(stay.admitted_at),
        discharged_at,
        discharged_at if stay.died_in_hospital else "",
        "DIRECT EMER." if is_direct else "EW EMER.",
        "P00AA1",  # admit_provider_id
        "EMERGENCY ROOM",
        "DIED" if stay.died_in_hospital else "HOME",
        insurance,
        language,
        marital_status,
        race,
        format_timestamp(stay.admitted_at - timedelta(hours=4)),
        format_timestamp(stay.admitted_at - timedelta(minutes=20)),
        int(stay.died_in_hospital),
    ]


def _write_intensive_care(
    stay: Stay,
    intensive_care: IntensiveCareStay,
    ventilation_course: VentilationCourse,
    context: WriterContext,
    tables: Mapping[str, Any],
    rng: RandomStream,
) -> None:
    """Write the stay on the unit, its charted values and its procedures."""
    ids = [stay.patient.subject_id, stay.stay_id, stay.stay_id]
    began_at, ended_at = intensive_care.began_at, intensive_care.ended_at
    unit, days = rng.choose(MIMIC_IV_CARE_UNITS), (ended_at - began_at).total_seconds() / 86400
    times = [format_timestamp(began_at), format_timestamp(ended_at), f"{days:.10f}"]
    tables["icu/icustays"].writerow([*ids, unit, unit, *times])
    caregiver, write_row = rng.draw_int(10000, 99999), tables["icu/chartevents"].writerow
    blanks = rows = 0
    for minute in charting.generate_charted_minutes(
        stay, ventilation_course, METAVISION_SYSTEM, context.rates, rng
    ):
        time = format_timestamp(minute.charted_at)
        for item, value, number, unit_of_measure in minute.values:
            write_row([*ids, caregiver, time, time, item, value, number, unit_of_measure, 0])
            blanks += value[-1] == " "  # some words of the data set end so
        rows += len(minute.values)
    context.defect_counts.update(
        {"rows of icu/chartevents": rows, "charted values with a trailing blank": blanks}
    )
    procedures = charting.generate_procedure_events(stay, ventilation_course)
    for order, procedure in enumerate(procedures, start=stay.stay_id * 10):
        start, end = format_timestamp(procedure.began_at), format_timestamp(procedure.ended_at)
        minutes = int((procedure.ended_at - procedure.began_at).total_seconds() // 60)
        measured = [start, end, end, procedure.item, minutes, "min", "", ""]
        category = procedure.category.removeprefix("2-")
        ordered = [order, order, category, "ContinuousProcess", 80, 1, 0, "FinishedRunning"]
        row = [*ids, caregiver, *measured, *ordered, minutes, 1]
        tables["icu/procedureevents"].writerow(row)


def _build_note_row(
    note: SyntheticNote, note_type: str, number: int, context: WriterContext, rng: RandomStream
) -> list[Any]:
    writers.count_note_defects(note, context.defect_counts)
    subject_id, is_summary = note.stay.patient.subject_id, note.kind.startswith("discharge")
    charted_at = note.charted_at
    if is_summary:  # MIMIC-IV has only the day of discharge summaries
        charted_at = datetime.combine(charted_at.date(), datetime.min.time())
    is_early = rng.draw_bool(context.rates.notes_stored_early)
    stored_at = charted_at - timedelta(hours=rng.draw_int(1, 20)) if is_early else note.stored_at
    # Reports of outpatients and of the emergency department belong to no admission.
    lacks_stay = not is_summary and rng.draw_bool(context.rates.reports_without_stay)
    context.defect_counts.update(
        {"notes without HADM_ID": lacks_stay, "notes stored early": is_early}
    )
    return [
        f"{subject_id}-{note_type}-{number}",
        subject_id,
        "" if lacks_stay else note.stay.stay_id,
        note_type,
        number,
        format_timestamp(charted_at),
        format_timestamp(stored_at),
        note.text,
    ]


def _write_dictionaries(tables: Mapping[str, Any]) -> None:
    """Write the titles of codes and the labels of charted items."""
    tables["hosp/d_icd_diagnoses"].writerows(codes.generate_code_dictionary("diagnosis"))
    tables["hosp/d_icd_procedures"].writerows(codes.generate_code_dictionary("procedure"))
    for item, label in charting.CHART_ITEM_LABELS.items():
        if item >= charting.FIRST_METAVISION_ITEM:  # MIMIC-IV has no items of CareVue
            links = "procedureevents" if item in charting.PROCEDURE_ITEMS else "chartevents"
            tables["icu/d_items"].writerow([item, label, label, links, "", "", "", "", ""])
