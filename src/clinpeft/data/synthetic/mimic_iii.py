"""The invented hospital as MIMIC-III v1.4: its files, its columns, and what is odd about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any

from clinpeft.data.synthetic import charting, codes, writers
from clinpeft.data.synthetic.charting import CAREVUE, METAVISION, Course, Procedure
from clinpeft.data.synthetic.hospital import Dice, Intensive, Stay
from clinpeft.data.synthetic.notes import Document
from clinpeft.data.synthetic.writers import Job, Person, second


def _columns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


HEADERS = {
    "PATIENTS": _columns("ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG"),
    "ADMISSIONS": _columns(
        "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION "
        "MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA"
    ),
    "DIAGNOSES_ICD": _columns("ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE"),
    "PROCEDURES_ICD": _columns("ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE"),
    "ICUSTAYS": _columns(
        "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT FIRST_WARDID LAST_WARDID INTIME OUTTIME LOS"
    ),
    "CHARTEVENTS": _columns(
        "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE VALUENUM VALUEUOM WARNING ERROR RESULTSTATUS STOPPED"
    ),
    "PROCEDUREEVENTS_MV": _columns(
        "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID VALUE VALUEUOM LOCATION LOCATIONCATEGORY STORETIME CGID ORDERID LINKORDERID "
        "ORDERCATEGORYNAME SECONDARYORDERCATEGORYNAME ORDERCATEGORYDESCRIPTION ISOPENBAG CONTINUEINNEXTDEPT CANCELREASON STATUSDESCRIPTION "
        "COMMENTS_EDITEDBY COMMENTS_CANCELEDBY COMMENTS_DATE"
    ),
    "NOTEEVENTS": _columns(
        "ROW_ID SUBJECT_ID HADM_ID CHARTDATE CHARTTIME STORETIME CATEGORY DESCRIPTION CGID ISERROR TEXT"
    ),
    "D_ICD_DIAGNOSES": _columns("ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE"),
    "D_ICD_PROCEDURES": _columns("ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE"),
    "D_ITEMS": _columns(
        "ROW_ID ITEMID LABEL ABBREVIATION DBSOURCE LINKSTO CATEGORY UNITNAME PARAM_TYPE CONCEPTID"
    ),
}
CATEGORIES = {  # two of them end in a space, as in MIMIC-III
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
DATED = frozenset(
    {"discharge", "discharge addendum", "ecg"}
)  # MIMIC-III knows only the day of these
RACES = (
    "WHITE",
    "WHITE",
    "WHITE",
    "BLACK/AFRICAN AMERICAN",
    "HISPANIC OR LATINO",
    "ASIAN",
    "UNKNOWN/NOT SPECIFIED",
)
INSURANCES = ("Medicare", "Private", "Medicaid", "Government", "Self Pay")
UNITS = ("MICU", "SICU", "CCU", "TSICU", "CSRU")


def write(job: Job, people: Iterable[Person]) -> None:
    """All files of MIMIC-III that a cohort or a corpus reads."""
    dice = Dice(job.seed, 0, 3)
    with writers.tables(job.folder, HEADERS) as opened:
        table = {name: _Numbered(rows) for name, rows in opened.items()}
        _dictionaries(table)
        for person in people:
            _person(person, job, table)
            for document in person.documents:
                table["NOTEEVENTS"].write(_note(document, job, dice))
    job.planted.update({f"rows of {name}": rows.last for name, rows in table.items()})


class _Numbered:
    """A table whose rows are numbered as they come."""

    def __init__(self, rows: Any) -> None:
        self._write, self._numbers, self.last = rows.writerow, count(1), 0

    def write(self, row: list[Any]) -> None:
        """Write one row behind its ROW_ID."""
        self.last = next(self._numbers)
        self._write([self.last, *row])


def _person(person: Person, job: Job, table: dict[str, _Numbered]) -> None:
    first, subject = person.stays[0], person.stays[0].patient.subject_id
    dice = Dice(job.seed, subject, 4)  # 4: a stream apart from stays (0) and notes (1)
    inside, outside = writers.died(person.stays)
    dead = inside or outside
    day = f"{dead:%Y-%m-%d} 00:00:00" if dead else ""
    table["PATIENTS"].write(
        [
            subject,
            first.patient.sex,
            second(writers.born(first)),
            day,
            day if inside else "",
            "" if inside else day,
            int(bool(dead)),
        ]
    )
    system, about = (
        dice.pick(("carevue", "metavision")),
        (dice.pick(INSURANCES), dice.pick(RACES), dice.pick(("MARRIED", "SINGLE", "WIDOWED"))),
    )
    for stay in person.stays:
        writers.count_stay(stay, job.planted)
        table["ADMISSIONS"].write(_admission(stay, *about))
        course = charting.course_of(stay, job.rates, dice)
        coded = {
            "DIAGNOSES_ICD": codes.diagnoses(
                stay, codes.ICD9, job.rates, dice, job.planted, mixed=False
            ),
            "PROCEDURES_ICD": codes.procedures(
                stay, codes.ICD9, job.rates, dice, course.tracheostomy is not None, job.planted
            ),
        }
        for name, billed in coded.items():
            for number, code in enumerate(billed, start=1):
                table[name].write([subject, stay.stay_id, number, code.text])
        if stay.intensive:
            _intensive(stay, stay.intensive, course, system, job, table, dice)


def _admission(stay: Stay, insurance: str, race: str, married: str) -> list[Any]:
    newborn = stay.patient.newborn
    ended = writers.discharged(stay)
    registered = "" if newborn else second(stay.admitted - timedelta(hours=4))
    return [
        stay.patient.subject_id,
        stay.stay_id,
        second(stay.admitted),
        second(ended),
        second(ended) if stay.died else "",
        "NEWBORN"
        if newborn
        else "ELECTIVE"
        if stay.severity == 0 and stay.stay_id % 3 == 0
        else "EMERGENCY",
        "PHYS REFERRAL/NORMAL DELI" if newborn else "EMERGENCY ROOM ADMIT",
        "DEAD/EXPIRED" if stay.died else "HOME",
        insurance,
        "ENGL",
        "NOT SPECIFIED",
        "" if newborn else married,
        race,
        registered,
        "" if newborn else second(stay.admitted - timedelta(minutes=20)),
        "NEWBORN" if newborn else stay.complaint.upper(),
        int(stay.died),
        int(stay.needed_icu),
    ]


def _intensive(
    stay: Stay,
    care: Intensive,
    course: Course,
    system: str,
    job: Job,
    table: dict[str, _Numbered],
    dice: Dice,
) -> None:
    unit, days = dice.pick(UNITS), (care.ended - care.began).total_seconds() / 86400
    ids = [stay.patient.subject_id, stay.stay_id, stay.stay_id]
    times = [second(care.began), second(care.ended), f"{days:.4f}"]
    table["ICUSTAYS"].write([*ids, system, unit, unit, 50, 50, *times])
    _chart(stay, course, system, job, table["CHARTEVENTS"], dice)
    if system == "metavision":
        for number, procedure in enumerate(charting.procedures(stay, course)):
            table["PROCEDUREEVENTS_MV"].write(
                [*ids, *_procedure(procedure, stay.stay_id * 10 + number)]
            )


def _chart(stay: Stay, course: Course, system: str, job: Job, table: _Numbered, dice: Dice) -> None:
    """One row an item; the tail of a row is the same for all but the few marked as errors, which is what keeps millions of them quick."""
    ids = (stay.patient.subject_id, stay.stay_id, stay.stay_id)
    words = METAVISION if system == "metavision" else CAREVUE
    result, stopped = ("", "") if system == "metavision" else ("", "NotStopd")
    by, write, wrong = dice.whole(14000, 21999), table.write, job.rates.charted_in_error
    errors = blanks = 0
    for moment in charting.moments(stay, course, words, job.rates, dice):
        at = second(moment.at)
        in_error = dice.chance(wrong * len(moment.rows))  # at most one row a moment
        for item, value, number, unit in moment.rows:
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
    job.planted.update(
        {"charted rows in error": errors, "charted values with a trailing blank": blanks}
    )


def _procedure(procedure: Procedure, order: int) -> Iterator[Any]:
    minutes = (procedure.ended - procedure.began).total_seconds() // 60
    yield from (
        second(procedure.began),
        second(procedure.ended),
        procedure.item,
        int(minutes),
        "min",
        "",
        "",
        second(procedure.ended),
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


def _note(document: Document, job: Job, dice: Dice) -> list[Any]:
    writers.count_note(document, job.planted)
    dated, radiology = document.kind in DATED, document.kind.startswith("radiology")
    charted, stored = (
        ("", "")
        if dated
        else (second(document.charted), "" if radiology else second(document.stored))
    )
    lost = radiology and dice.chance(job.rates.without_stay)
    error = document.kind.startswith("nursing") and dice.chance(job.rates.in_error)
    job.planted.update({"notes without HADM_ID": lost, "notes in error": error})
    writer = "" if dated or radiology else dice.whole(14000, 21999)
    ids = [document.stay.patient.subject_id, "" if lost else document.stay.stay_id]
    words = [
        CATEGORIES[document.kind],
        document.description,
        writer,
        "1" if error else "",
        document.text,
    ]
    return [*ids, f"{document.charted:%Y-%m-%d}", charted, stored, *words]


def _dictionaries(table: dict[str, _Numbered]) -> None:
    for name, kind in (("D_ICD_DIAGNOSES", "diagnosis"), ("D_ICD_PROCEDURES", "procedure")):
        for text, version, title in codes.dictionary(kind):
            if version == codes.ICD9:
                table[name].write([text, title[:24], title])
    for item, label in charting.LABELS.items():
        system = "metavision" if item >= charting.FIRST_METAVISION else "carevue"
        links = "procedureevents_mv" if item in charting.PROCEDURES else "chartevents"
        table["D_ITEMS"].write(
            [item, label, label if system == "metavision" else "", system, links, "", "", "", ""]
        )
