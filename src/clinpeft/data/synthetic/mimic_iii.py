"""The invented hospital as MIMIC-III v1.4: its files, its columns, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any

from clinpeft.data.synthetic import charting, codes, writers
from clinpeft.data.synthetic.charting import (
    CAREVUE_SYSTEM,
    METAVISION_SYSTEM,
    ProcedureEvent,
    VentilationCourse,
)
from clinpeft.data.synthetic.hospital import IntensiveCareStay, RandomStream, Stay
from clinpeft.data.synthetic.notes import SyntheticNote
from clinpeft.data.synthetic.writers import PatientRecord, WriterContext, format_timestamp


def _split_columns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MIMIC_III_HEADERS = {
    "PATIENTS": _split_columns("ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG"),
    "ADMISSIONS": _split_columns(
        "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION "
        "MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA"
    ),
    "DIAGNOSES_ICD": _split_columns("ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE"),
    "PROCEDURES_ICD": _split_columns("ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE"),
    "ICUSTAYS": _split_columns(
        "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT FIRST_WARDID LAST_WARDID INTIME OUTTIME LOS"
    ),
    "CHARTEVENTS": _split_columns(
        "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE VALUENUM VALUEUOM WARNING ERROR RESULTSTATUS STOPPED"
    ),
    "PROCEDUREEVENTS_MV": _split_columns(
        "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID VALUE VALUEUOM LOCATION LOCATIONCATEGORY STORETIME CGID ORDERID LINKORDERID "
        "ORDERCATEGORYNAME SECONDARYORDERCATEGORYNAME ORDERCATEGORYDESCRIPTION ISOPENBAG CONTINUEINNEXTDEPT CANCELREASON STATUSDESCRIPTION "
        "COMMENTS_EDITEDBY COMMENTS_CANCELEDBY COMMENTS_DATE"
    ),
    "NOTEEVENTS": _split_columns(
        "ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME CATEGORY DESCRIPTION CGID ISERROR TEXT"
    ),
    "D_ICD_DIAGNOSES": _split_columns("ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE"),
    "D_ICD_PROCEDURES": _split_columns("ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE"),
    "D_ITEMS": _split_columns(
        "ROW_ID ITEMID LABEL ABBREVIATION DBSOURCE LINKSTO CATEGORY UNITNAME PARAM_TYPE CONCEPTID"
    ),
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
DATE_ONLY_NOTE_KINDS = frozenset(
    {"discharge", "discharge addendum", "ecg"}
)  # MIMIC-III knows only the day of these
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


def write_mimic_iii(context: WriterContext, people: Iterable[PatientRecord]) -> None:
    """All files of MIMIC-III that a cohort or a corpus reads."""
    dice = RandomStream(context.seed, 0, 3)
    with writers.open_table_writers(context.folder, MIMIC_III_HEADERS) as opened:
        table = {name: _NumberedTable(rows) for name, rows in opened.items()}
        _write_dictionaries(table)
        for person in people:
            _write_patient(person, context, table)
            for document in person.documents:
                table["NOTEEVENTS"].write_row(_build_note_row(document, context, dice))
    context.defect_counts.update(
        {f"rows of {name}": rows.last_row_id for name, rows in table.items()}
    )


class _NumberedTable:
    """A table whose rows are numbered as they come."""

    def __init__(self, rows: Any) -> None:
        self._write_row, self._row_ids, self.last_row_id = rows.writerow, count(1), 0

    def write_row(self, row: list[Any]) -> None:
        """Write one row behind its ROW_ID."""
        self.last_row_id = next(self._row_ids)
        self._write_row([self.last_row_id, *row])


def _write_patient(
    patient_record: PatientRecord, context: WriterContext, tables: dict[str, _NumberedTable]
) -> None:
    first, subject = patient_record.stays[0], patient_record.stays[0].patient.subject_id
    dice = RandomStream(context.seed, subject, 4)  # 4: a stream apart from stays (0) and notes (1)
    inside, outside = writers.find_death_times(patient_record.stays)
    dead = inside or outside
    day = f"{dead:%Y-%m-%d} 00:00:00" if dead else ""
    tables["PATIENTS"].write_row(
        [
            subject,
            first.patient.sex,
            format_timestamp(writers.compute_birth_time(first)),
            day,
            day if inside else "",
            "" if inside else day,
            int(bool(dead)),
        ]
    )
    system, about = (
        dice.choose(("carevue", "metavision")),
        (
            dice.choose(MIMIC_III_INSURANCES),
            dice.choose(MIMIC_III_RACES),
            dice.choose(("MARRIED", "SINGLE", "WIDOWED")),
        ),
    )
    for stay in patient_record.stays:
        writers.count_stay_defects(stay, context.defect_counts)
        tables["ADMISSIONS"].write_row(_build_admission_row(stay, *about))
        course = charting.draw_ventilation_course(stay, context.rates, dice)
        coded = {
            "DIAGNOSES_ICD": codes.bill_diagnoses(
                stay,
                codes.ICD9_VERSION,
                context.rates,
                dice,
                context.defect_counts,
                has_both_versions=False,
            ),
            "PROCEDURES_ICD": codes.bill_procedures(
                stay,
                codes.ICD9_VERSION,
                context.rates,
                dice,
                course.tracheostomy_at is not None,
                context.defect_counts,
            ),
        }
        for name, billed in coded.items():
            for number, code in enumerate(billed, start=1):
                tables[name].write_row([subject, stay.stay_id, number, code.text])
        if stay.intensive_care:
            _write_intensive_care(stay, stay.intensive_care, course, system, context, tables, dice)


def _build_admission_row(stay: Stay, insurance: str, race: str, marital_status: str) -> list[Any]:
    newborn = stay.patient.is_newborn
    ended = writers.compute_recorded_discharge(stay)
    registered = "" if newborn else format_timestamp(stay.admitted_at - timedelta(hours=4))
    return [
        stay.patient.subject_id,
        stay.stay_id,
        format_timestamp(stay.admitted_at),
        format_timestamp(ended),
        format_timestamp(ended) if stay.died_in_hospital else "",
        "NEWBORN"
        if newborn
        else "ELECTIVE"
        if stay.severity == 0 and stay.stay_id % 3 == 0
        else "EMERGENCY",
        "PHYS REFERRAL/NORMAL DELI" if newborn else "EMERGENCY ROOM ADMIT",
        "DEAD/EXPIRED" if stay.died_in_hospital else "HOME",
        insurance,
        "ENGL",
        "NOT SPECIFIED",
        "" if newborn else marital_status,
        race,
        registered,
        "" if newborn else format_timestamp(stay.admitted_at - timedelta(minutes=20)),
        "NEWBORN" if newborn else stay.complaint.upper(),
        int(stay.died_in_hospital),
        int(stay.needed_icu),
    ]


def _write_intensive_care(
    stay: Stay,
    intensive_care: IntensiveCareStay,
    ventilation_course: VentilationCourse,
    system: str,
    context: WriterContext,
    tables: dict[str, _NumberedTable],
    rng: RandomStream,
) -> None:
    unit, days = (
        rng.choose(MIMIC_III_CARE_UNITS),
        (intensive_care.ended_at - intensive_care.began_at).total_seconds() / 86400,
    )
    ids = [stay.patient.subject_id, stay.stay_id, stay.stay_id]
    times = [
        format_timestamp(intensive_care.began_at),
        format_timestamp(intensive_care.ended_at),
        f"{days:.4f}",
    ]
    tables["ICUSTAYS"].write_row([*ids, system, unit, unit, 50, 50, *times])
    _write_chart_events(stay, ventilation_course, system, context, tables["CHARTEVENTS"], rng)
    if system == "metavision":
        for number, procedure in enumerate(
            charting.generate_procedure_events(stay, ventilation_course)
        ):
            tables["PROCEDUREEVENTS_MV"].write_row(
                [*ids, *_build_procedure_columns(procedure, stay.stay_id * 10 + number)]
            )


def _write_chart_events(
    stay: Stay,
    ventilation_course: VentilationCourse,
    system: str,
    context: WriterContext,
    table: _NumberedTable,
    rng: RandomStream,
) -> None:
    """One row an item; the tail of a row is the same for all but the few marked as errors, which is what keeps millions of them quick."""
    ids = (stay.patient.subject_id, stay.stay_id, stay.stay_id)
    words = METAVISION_SYSTEM if system == "metavision" else CAREVUE_SYSTEM
    result, stopped = ("", "") if system == "metavision" else ("", "NotStopd")
    by, write, wrong = (
        rng.draw_int(14000, 21999),
        table.write_row,
        context.rates.charted_rows_in_error,
    )
    errors = blanks = 0
    for moment in charting.generate_charted_minutes(
        stay, ventilation_course, words, context.rates, rng
    ):
        at = format_timestamp(moment.charted_at)
        in_error = rng.draw_bool(wrong * len(moment.values))  # at most one row a moment
        for item, value, number, unit in moment.values:
            write(
                [
                    *ids,
                    item,
                    at,
                    at,
                    by,
                    value,
                    number,
                    unit,
                    "",
                    "1" if in_error else "",
                    result,
                    stopped,
                ]
            )
            errors += in_error
            blanks += value[-1] == " "
            in_error = False
    context.defect_counts.update(
        {"charted rows in error": errors, "charted values with a trailing blank": blanks}
    )


def _build_procedure_columns(procedure: ProcedureEvent, order: int) -> Iterator[Any]:
    minutes = (procedure.ended_at - procedure.began_at).total_seconds() // 60
    yield from (
        format_timestamp(procedure.began_at),
        format_timestamp(procedure.ended_at),
        procedure.item,
        int(minutes),
        "min",
        "",
        "",
        format_timestamp(procedure.ended_at),
        15000,
    )
    yield from (
        order,
        order,
        procedure.category,
        "",
        "Task",
        1,
        0,
        0,
        "FinishedRunning",
        "",
        "",
        "",
    )


def _build_note_row(
    document: SyntheticNote, context: WriterContext, rng: RandomStream
) -> list[Any]:
    writers.count_note_defects(document, context.defect_counts)
    dated, radiology = document.kind in DATE_ONLY_NOTE_KINDS, document.kind.startswith("radiology")
    charted, stored = (
        ("", "")
        if dated
        else (
            format_timestamp(document.charted_at),
            "" if radiology else format_timestamp(document.stored_at),
        )
    )
    lost = radiology and rng.draw_bool(context.rates.reports_without_stay)
    error = document.kind.startswith("nursing") and rng.draw_bool(context.rates.notes_in_error)
    context.defect_counts.update({"notes without HADM_ID": lost, "notes in error": error})
    writer = "" if dated or radiology else rng.draw_int(14000, 21999)
    ids = [document.stay.patient.subject_id, "" if lost else document.stay.stay_id]
    words = [
        MIMIC_III_NOTE_CATEGORIES[document.kind],
        document.description,
        writer,
        "1" if error else "",
        document.text,
    ]
    return [*ids, f"{document.charted_at:%Y-%m-%d}", charted, stored, *words]


def _write_dictionaries(tables: dict[str, _NumberedTable]) -> None:
    for name, kind in (("D_ICD_DIAGNOSES", "diagnosis"), ("D_ICD_PROCEDURES", "procedure")):
        for text, version, title in codes.generate_code_dictionary(kind):
            if version == codes.ICD9_VERSION:
                tables[name].write_row([text, title[:24], title])
    for item, label in charting.CHART_ITEM_LABELS.items():
        system = "metavision" if item >= charting.FIRST_METAVISION_ITEM else "carevue"
        links = "procedureevents_mv" if item in charting.PROCEDURE_ITEMS else "chartevents"
        tables["D_ITEMS"].write_row(
            [item, label, label if system == "metavision" else "", system, links, "", "", "", ""]
        )
