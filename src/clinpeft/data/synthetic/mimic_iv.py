"""The invented hospital as MIMIC-IV 2.2 with MIMIC-IV-Note 2.2: its files, its columns, and what is odd about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from clinpeft.data.synthetic import charting, codes, writers
from clinpeft.data.synthetic.charting import METAVISION_SYSTEM, ProcedureEvent, VentilationCourse
from clinpeft.data.synthetic.hospital import IntensiveCareStay, RandomStream, Stay
from clinpeft.data.synthetic.notes import SyntheticNote
from clinpeft.data.synthetic.writers import PatientRecord, WriterContext, format_timestamp


def _split_columns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MIMIC_IV_NOTE_HEADER = _split_columns(
    "note_id subject_id hadm_id note_type note_seq charttime storetime text"
)
MIMIC_IV_HEADERS = {
    "hosp/patients": _split_columns(
        "subject_id gender anchor_age anchor_year anchor_year_group dod"
    ),
    "hosp/admissions": _split_columns(
        "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id admission_location discharge_location insurance language "
        "marital_status race edregtime edouttime hospital_expire_flag"
    ),
    "hosp/diagnoses_icd": _split_columns("subject_id hadm_id seq_num icd_code icd_version"),
    "hosp/procedures_icd": _split_columns(
        "subject_id hadm_id seq_num chartdate icd_code icd_version"
    ),
    "hosp/d_icd_diagnoses": _split_columns("icd_code icd_version long_title"),
    "hosp/d_icd_procedures": _split_columns("icd_code icd_version long_title"),
    "icu/icustays": _split_columns(
        "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los"
    ),
    "icu/chartevents": _split_columns(
        "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom warning"
    ),
    "icu/procedureevents": _split_columns(
        "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid value valueuom location locationcategory orderid linkorderid "
        "ordercategoryname ordercategorydescription patientweight isopenbag continueinnextdept statusdescription ORIGINALAMOUNT ORIGINALRATE"
    ),
    "icu/d_items": _split_columns(
        "itemid label abbreviation linksto category unitname param_type lownormalvalue highnormalvalue"
    ),
    "note/discharge": MIMIC_IV_NOTE_HEADER,
    "note/radiology": MIMIC_IV_NOTE_HEADER,
}
MIMIC_IV_NOTE_TYPES = {
    "discharge": "DS",
    "discharge addendum": "AD",
    "radiology": "RR",
    "radiology addendum": "AR",
}
MIMIC_IV_NOTE_FILES = {kind: f"note/{kind.split()[0]}" for kind in MIMIC_IV_NOTE_TYPES}
MIMIC_IV_YEAR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019")
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
    """All files of MIMIC-IV that a cohort or a corpus reads."""
    dice = RandomStream(context.seed, 0, 2)
    with writers.open_table_writers(context.folder, MIMIC_IV_HEADERS) as table:
        _write_dictionaries(table)
        for person in people:
            _write_patient(person, context, table)
            numbers: Counter[str] = Counter()
            for document in person.documents:
                kind = MIMIC_IV_NOTE_TYPES[document.kind]
                numbers[kind] += 1
                table[MIMIC_IV_NOTE_FILES[document.kind]].writerow(
                    _build_note_row(document, kind, numbers[kind], context, dice)
                )


def _write_patient(
    patient_record: PatientRecord, context: WriterContext, tables: Mapping[str, Any]
) -> None:
    first, subject = patient_record.stays[0], patient_record.stays[0].patient.subject_id
    dice = RandomStream(context.seed, subject, 4)  # 4: a stream apart from stays (0) and notes (1)
    inside, outside = writers.find_death_times(patient_record.stays)
    dead, group, year = inside or outside, dice.choose(MIMIC_IV_YEAR_GROUPS), first.admitted_at.year
    real_year = int(group[:4]) + dice.draw_int(0, 2)
    tables["hosp/patients"].writerow(
        [subject, first.patient.sex, first.age, year, group, f"{dead:%Y-%m-%d}" if dead else ""]
    )
    about = (
        dice.choose(MIMIC_IV_INSURANCES),
        dice.choose(("ENGLISH", "ENGLISH", "?")),
        dice.choose(("MARRIED", "SINGLE", "WIDOWED")),
        dice.choose(MIMIC_IV_RACES),
    )
    for stay in patient_record.stays:
        writers.count_stay_defects(stay, context.defect_counts)
        tables["hosp/admissions"].writerow(_build_admission_row(stay, *about))
        version = codes.choose_icd_version(
            real_year + stay.admitted_at.year - year, stay.admitted_at.month
        )
        course = charting.draw_ventilation_course(stay, context.rates, dice)
        ids, day = [subject, stay.stay_id], f"{stay.admitted_at:%Y-%m-%d}"
        for number, code in enumerate(
            codes.bill_diagnoses(
                stay, version, context.rates, dice, context.defect_counts, has_both_versions=True
            ),
            start=1,
        ):
            tables["hosp/diagnoses_icd"].writerow([*ids, number, code.text, code.version])
        pierced = course.tracheostomy_at is not None
        for number, code in enumerate(
            codes.bill_procedures(
                stay, version, context.rates, dice, pierced, context.defect_counts
            ),
            start=1,
        ):
            tables["hosp/procedures_icd"].writerow([*ids, number, day, code.text, code.version])
        if stay.intensive_care:
            _write_intensive_care(stay, stay.intensive_care, course, context, tables, dice)


def _build_admission_row(
    stay: Stay, insurance: str, language: str, marital_status: str, race: str
) -> list[Any]:
    ended = writers.compute_recorded_discharge(stay)
    return [
        stay.patient.subject_id,
        stay.stay_id,
        format_timestamp(stay.admitted_at),
        format_timestamp(ended),
        format_timestamp(ended) if stay.died_in_hospital else "",
        "DIRECT EMER." if stay.severity == 0 and stay.stay_id % 3 == 0 else "EW EMER.",
        "P00AA1",
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
    unit, days = (
        rng.choose(MIMIC_IV_CARE_UNITS),
        (intensive_care.ended_at - intensive_care.began_at).total_seconds() / 86400,
    )
    ids = [stay.patient.subject_id, stay.stay_id, stay.stay_id]
    tables["icu/icustays"].writerow(
        [
            *ids,
            unit,
            unit,
            format_timestamp(intensive_care.began_at),
            format_timestamp(intensive_care.ended_at),
            f"{days:.10f}",
        ]
    )
    by, blanks, rows, write = rng.draw_int(10000, 99999), 0, 0, tables["icu/chartevents"].writerow
    for moment in charting.generate_charted_minutes(
        stay, ventilation_course, METAVISION_SYSTEM, context.rates, rng
    ):
        at = format_timestamp(moment.charted_at)
        for item, value, digits, measure in moment.values:
            write([*ids, by, at, at, item, value, digits, measure, 0])
            blanks += value[-1] == " "
        rows += len(moment.values)
    context.defect_counts.update(
        {"rows of icu/chartevents": rows, "charted values with a trailing blank": blanks}
    )
    for number, procedure in enumerate(
        charting.generate_procedure_events(stay, ventilation_course)
    ):
        tables["icu/procedureevents"].writerow(
            [*ids, by, *_build_procedure_columns(procedure, stay.stay_id * 10 + number)]
        )


def _build_procedure_columns(procedure: ProcedureEvent, order: int) -> Iterator[Any]:
    minutes = int((procedure.ended_at - procedure.began_at).total_seconds() // 60)
    yield from (
        format_timestamp(procedure.began_at),
        format_timestamp(procedure.ended_at),
        format_timestamp(procedure.ended_at),
        procedure.item,
        minutes,
        "min",
        "",
        "",
        order,
        order,
    )
    yield from (
        procedure.category.removeprefix("2-"),
        "ContinuousProcess",
        80,
        1,
        0,
        "FinishedRunning",
        minutes,
        1,
    )


def _build_note_row(
    document: SyntheticNote, note_type: str, number: int, context: WriterContext, rng: RandomStream
) -> list[Any]:
    writers.count_note_defects(document, context.defect_counts)
    subject, summary = document.stay.patient.subject_id, document.kind.startswith("discharge")
    charted = (
        datetime.combine(document.charted_at.date(), datetime.min.time())
        if summary
        else document.charted_at
    )
    early = rng.draw_bool(context.rates.notes_stored_early)
    stored = charted - timedelta(hours=rng.draw_int(1, 20)) if early else document.stored_at
    lost = not summary and rng.draw_bool(context.rates.reports_without_stay)
    context.defect_counts.update({"notes without HADM_ID": lost, "notes stored early": early})
    stay = "" if lost else document.stay.stay_id
    return [
        f"{subject}-{note_type}-{number}",
        subject,
        stay,
        note_type,
        number,
        format_timestamp(charted),
        format_timestamp(stored),
        document.text,
    ]


def _write_dictionaries(tables: Mapping[str, Any]) -> None:
    for name, kind in (
        ("hosp/d_icd_diagnoses", "diagnosis"),
        ("hosp/d_icd_procedures", "procedure"),
    ):
        for row in codes.generate_code_dictionary(kind):
            tables[name].writerow(row)
    for item, label in charting.CHART_ITEM_LABELS.items():
        if item >= charting.FIRST_METAVISION_ITEM:
            links = "procedureevents" if item in charting.PROCEDURE_ITEMS else "chartevents"
            tables["icu/d_items"].writerow([item, label, label, links, "", "", "", "", ""])
