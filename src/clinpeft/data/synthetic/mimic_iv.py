"""The invented hospital as MIMIC-IV 2.2 with MIMIC-IV-Note 2.2: its files, its columns, and what is odd about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from clinpeft.data.synthetic import charting, codes, writers
from clinpeft.data.synthetic.charting import METAVISION, Course, Procedure
from clinpeft.data.synthetic.hospital import Dice, Intensive, Stay
from clinpeft.data.synthetic.notes import Document
from clinpeft.data.synthetic.writers import Job, Person, second


def _columns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOTE_HEADER = _columns("note_id subject_id hadm_id note_type note_seq charttime storetime text")
HEADERS = {
    "hosp/patients": _columns("subject_id gender anchor_age anchor_year anchor_year_group dod"),
    "hosp/admissions": _columns(
        "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id admission_location discharge_location insurance language "
        "marital_status race edregtime edouttime hospital_expire_flag"
    ),
    "hosp/diagnoses_icd": _columns("subject_id hadm_id seq_num icd_code icd_version"),
    "hosp/procedures_icd": _columns("subject_id hadm_id seq_num chartdate icd_code icd_version"),
    "hosp/d_icd_diagnoses": _columns("icd_code icd_version long_title"),
    "hosp/d_icd_procedures": _columns("icd_code icd_version long_title"),
    "icu/icustays": _columns(
        "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los"
    ),
    "icu/chartevents": _columns(
        "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom warning"
    ),
    "icu/procedureevents": _columns(
        "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid value valueuom location locationcategory orderid linkorderid "
        "ordercategoryname ordercategorydescription patientweight isopenbag continueinnextdept statusdescription ORIGINALAMOUNT ORIGINALRATE"
    ),
    "icu/d_items": _columns(
        "itemid label abbreviation linksto category unitname param_type lownormalvalue highnormalvalue"
    ),
    "note/discharge": NOTE_HEADER,
    "note/radiology": NOTE_HEADER,
}
NOTE_TYPES = {
    "discharge": "DS",
    "discharge addendum": "AD",
    "radiology": "RR",
    "radiology addendum": "AR",
}
FILES = {kind: f"note/{kind.split()[0]}" for kind in NOTE_TYPES}
YEAR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019")
RACES = (
    "WHITE",
    "WHITE",
    "WHITE",
    "BLACK/AFRICAN AMERICAN",
    "HISPANIC/LATINO - PUERTO RICAN",
    "ASIAN",
    "UNKNOWN",
)
INSURANCES = ("Medicare", "Other", "Medicaid")
UNITS = (
    "Medical Intensive Care Unit (MICU)",
    "Surgical Intensive Care Unit (SICU)",
    "Coronary Care Unit (CCU)",
    "Trauma SICU (TSICU)",
)


def write(job: Job, people: Iterable[Person]) -> None:
    """All files of MIMIC-IV that a cohort or a corpus reads."""
    dice = Dice(job.seed, 0, 2)
    with writers.tables(job.folder, HEADERS) as table:
        _dictionaries(table)
        for person in people:
            _person(person, job, table)
            numbers: Counter[str] = Counter()
            for document in person.documents:
                kind = NOTE_TYPES[document.kind]
                numbers[kind] += 1
                table[FILES[document.kind]].writerow(
                    _note(document, kind, numbers[kind], job, dice)
                )


def _person(person: Person, job: Job, table: Mapping[str, Any]) -> None:
    first, subject = person.stays[0], person.stays[0].patient.subject_id
    dice = Dice(job.seed, subject, 4)  # 4: a stream apart from stays (0) and notes (1)
    inside, outside = writers.died(person.stays)
    dead, group, year = inside or outside, dice.pick(YEAR_GROUPS), first.admitted.year
    real_year = int(group[:4]) + dice.whole(0, 2)
    table["hosp/patients"].writerow(
        [subject, first.patient.sex, first.age, year, group, f"{dead:%Y-%m-%d}" if dead else ""]
    )
    about = (
        dice.pick(INSURANCES),
        dice.pick(("ENGLISH", "ENGLISH", "?")),
        dice.pick(("MARRIED", "SINGLE", "WIDOWED")),
        dice.pick(RACES),
    )
    for stay in person.stays:
        writers.count_stay(stay, job.planted)
        table["hosp/admissions"].writerow(_admission(stay, *about))
        version = codes.version(real_year + stay.admitted.year - year, stay.admitted.month)
        course = charting.course_of(stay, job.rates, dice)
        ids, day = [subject, stay.stay_id], f"{stay.admitted:%Y-%m-%d}"
        for number, code in enumerate(
            codes.diagnoses(stay, version, job.rates, dice, job.planted, mixed=True), start=1
        ):
            table["hosp/diagnoses_icd"].writerow([*ids, number, code.text, code.version])
        pierced = course.tracheostomy is not None
        for number, code in enumerate(
            codes.procedures(stay, version, job.rates, dice, pierced, job.planted), start=1
        ):
            table["hosp/procedures_icd"].writerow([*ids, number, day, code.text, code.version])
        if stay.intensive:
            _intensive(stay, stay.intensive, course, job, table, dice)


def _admission(stay: Stay, insurance: str, language: str, married: str, race: str) -> list[Any]:
    ended = writers.discharged(stay)
    return [
        stay.patient.subject_id,
        stay.stay_id,
        second(stay.admitted),
        second(ended),
        second(ended) if stay.died else "",
        "DIRECT EMER." if stay.severity == 0 and stay.stay_id % 3 == 0 else "EW EMER.",
        "P00AA1",
        "EMERGENCY ROOM",
        "DIED" if stay.died else "HOME",
        insurance,
        language,
        married,
        race,
        second(stay.admitted - timedelta(hours=4)),
        second(stay.admitted - timedelta(minutes=20)),
        int(stay.died),
    ]


def _intensive(
    stay: Stay, care: Intensive, course: Course, job: Job, table: Mapping[str, Any], dice: Dice
) -> None:
    unit, days = dice.pick(UNITS), (care.ended - care.began).total_seconds() / 86400
    ids = [stay.patient.subject_id, stay.stay_id, stay.stay_id]
    table["icu/icustays"].writerow(
        [*ids, unit, unit, second(care.began), second(care.ended), f"{days:.10f}"]
    )
    by, blanks, rows, write = dice.whole(10000, 99999), 0, 0, table["icu/chartevents"].writerow
    for moment in charting.moments(stay, course, METAVISION, job.rates, dice):
        at = second(moment.at)
        for item, value, digits, measure in moment.rows:
            write([*ids, by, at, at, item, value, digits, measure, 0])
            blanks += value[-1] == " "
        rows += len(moment.rows)
    job.planted.update(
        {"rows of icu/chartevents": rows, "charted values with a trailing blank": blanks}
    )
    for number, procedure in enumerate(charting.procedures(stay, course)):
        table["icu/procedureevents"].writerow(
            [*ids, by, *_procedure(procedure, stay.stay_id * 10 + number)]
        )


def _procedure(procedure: Procedure, order: int) -> Iterator[Any]:
    minutes = int((procedure.ended - procedure.began).total_seconds() // 60)
    yield from (
        second(procedure.began),
        second(procedure.ended),
        second(procedure.ended),
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


def _note(document: Document, note_type: str, number: int, job: Job, dice: Dice) -> list[Any]:
    writers.count_note(document, job.planted)
    subject, summary = document.stay.patient.subject_id, document.kind.startswith("discharge")
    charted = (
        datetime.combine(document.charted.date(), datetime.min.time())
        if summary
        else document.charted
    )
    early = dice.chance(job.rates.stored_early)
    stored = charted - timedelta(hours=dice.whole(1, 20)) if early else document.stored
    lost = not summary and dice.chance(job.rates.without_stay)
    job.planted.update({"notes without HADM_ID": lost, "notes stored early": early})
    stay = "" if lost else document.stay.stay_id
    return [
        f"{subject}-{note_type}-{number}",
        subject,
        stay,
        note_type,
        number,
        second(charted),
        second(stored),
        document.text,
    ]


def _dictionaries(table: Mapping[str, Any]) -> None:
    for name, kind in (
        ("hosp/d_icd_diagnoses", "diagnosis"),
        ("hosp/d_icd_procedures", "procedure"),
    ):
        for row in codes.dictionary(kind):
            table[name].writerow(row)
    for item, label in charting.LABELS.items():
        if item >= charting.FIRST_METAVISION:
            links = "procedureevents" if item in charting.PROCEDURES else "chartevents"
            table["icu/d_items"].writerow([item, label, label, links, "", "", "", "", ""])
