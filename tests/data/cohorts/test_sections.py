"""Notes of both data sets, cut by hand and by both rules; all of them synthetic."""

from __future__ import annotations

import re
import time

import pytest

from clinpeft.data.cohorts import sections
from clinpeft.data.cohorts.sections import core2021, headings

# A MIMIC-III summary: template headings, the medications at admission behind the hospital course.
OLDER = """Admission Date:  [**2150-1-2**]              Discharge Date:   [**2150-1-9**]

Service: MEDICINE

Allergies:
Penicillins

Attending:[**First Name3 (LF) 12**]
Chief Complaint:
Dyspnea

Major Surgical or Invasive Procedure:
Thoracentesis

History of Present Illness:
70 year old man with heart failure, three days
of dyspnea.

In the ED:
Vitals 98.1 80 120/80.

Past Medical History:
1. CHF
2. COPD

Social History:
Lives alone.

Family History:
Father with MI.

Physical Exam:
VS: T 98
HEENT: dry

Pertinent Results:
WBC 12

Brief Hospital Course:
He was diuresed.

Medications on Admission:
1. Furosemide 20 mg

Discharge Medications:
1. Furosemide 40 mg

Discharge Condition:
Good
"""

# A MIMIC-IV summary: both exams under one heading, ruled lines.
NEWER = """Name:  ___                    Unit No:   ___

Allergies:
No Known Allergies / Adverse Drug Reactions

Attending: ___.

Chief Complaint:
Abdominal pain

Major Surgical or Invasive Procedure:
None

History of Present Illness:
___ with pain.

Past Medical History:
HTN

Social History:
___
Family History:
Non-contributory.

Physical Exam:
ADMISSION PHYSICAL EXAM:
========================
VS: 98.2
ABD: tender

DISCHARGE PHYSICAL EXAM:
========================
ABD: soft

Pertinent Results:
LIPASE 900

Brief Hospital Course:
Pancreatitis.

Medications on Admission:
The Preadmission Medication list is accurate and complete.
1. Lisinopril 10 mg

Discharge Disposition:
Home
"""


def cut(text: str) -> str:
    extract = sections.extract_note_text(text, "admission").text
    assert extract is not None
    return extract


def test_an_older_note_keeps_its_eight_sections_and_nothing_of_the_stay() -> None:
    assert cut(OLDER) == (
        "CHIEF COMPLAINT: Dyspnea\n\n"
        "PRESENT ILLNESS: 70 year old man with heart failure, three days\nof dyspnea.\nIn "
        "the ED:\nVitals 98.1 80 120/80.\n\n"
        "MEDICAL HISTORY: 1. CHF\n2. COPD\n\n"
        "MEDICATION ON ADMISSION: 1. Furosemide 20 mg\n\n"
        "ALLERGIES: Penicillins\n\n"
        "PHYSICAL EXAM: VS: T 98\nHEENT: dry\n\n"
        "FAMILY HISTORY: Father with MI.\n\n"
        "SOCIAL HISTORY: Lives alone."
    )


def test_a_newer_note_keeps_the_exam_at_admission_and_not_the_one_at_discharge() -> None:
    extract = cut(NEWER)
    assert (
        "PHYSICAL EXAM: VS: 98.2\nABD: tender\n\nFAMILY HISTORY: Non-contributory.\n\n"
        "SOCIAL HISTORY: ___"
    ) in extract
    assert (
        "MEDICATION ON ADMISSION: The Preadmission Medication list is accurate and "
        "complete.\n1. Lisinopril 10 mg"
    ) in extract
    assert not re.search("soft|LIPASE|Pancreatitis|Home|====", extract)


@pytest.mark.parametrize("note", [OLDER, NEWER])
def test_line_ends_and_case_change_nothing(note: str) -> None:
    assert cut(note.replace("\n", "\r\n")) == cut(note)
    assert cut(note.upper()).casefold() == cut(note).casefold()


@pytest.mark.parametrize("note", [OLDER, NEWER])
def test_headings_need_no_blank_line_before_them(note: str) -> None:
    tight = re.sub(r"\n\n+", "\n", note)
    assert cut(tight) == cut(note)


def test_a_dictated_note_with_abbreviations_is_cut_too() -> None:
    note = """HPI:  The patient is a 60-year-old female
with fever.
PMH:  1. Diabetes.
ADMISSION MEDICATIONS:  Insulin.
ALLERGIES:  NKDA.
PHYSICAL EXAMINATION ON ADMISSION:  Febrile.
LABORATORY DATA:  WBC 20.
HOSPITAL COURSE:  She died of sepsis.
MEDICATIONS:  None.
PHYSICAL EXAM:  No pulse.
"""
    assert cut(note) == (
        "PRESENT ILLNESS: The patient is a 60-year-old female\nwith fever.\n\nMEDICAL "
        "HISTORY: 1. Diabetes.\n\n"
        "MEDICATION ON ADMISSION: Insulin.\n\nALLERGIES: NKDA.\n\nPHYSICAL EXAM: Febrile."
    )


def test_a_note_in_one_line_is_cut_at_its_headings() -> None:
    note = (
        "Chief Complaint: cough History of Present Illness: 3 days of cough. PMH: asthma Brief "
        "Hospital Course: intubated Social History: none"
    )
    assert (
        cut(note)
        == "CHIEF COMPLAINT: cough\n\nPRESENT ILLNESS: 3 days of cough.\n\nMEDICAL HISTORY: asthma"
    )


@pytest.mark.parametrize(
    "discharge",
    [
        "On discharge: WELL",
        "DISCHARGE:\nWELL",
        "Exam on discharge\nWELL",
        "Discharge PE:\nWELL",
        "no edema. On day of discharge, WELL",
        "Exam at Discharge: WELL",
    ],
)
def test_no_spelling_of_the_exam_at_discharge_is_kept(discharge: str) -> None:
    assert "WELL" not in cut(f"CC: pain\n\nPhysical Exam:\nLungs clear\n{discharge}\n")
    assert "Lungs clear" in cut(f"CC: pain\n\nPhysical Exam:\nLungs clear\n{discharge}\n")


def test_purulent_discharge_is_no_going_home() -> None:
    assert "purulent discharge. Lungs clear" in cut(
        "CC: pain\n\nPhysical Exam:\nNose: purulent discharge. Lungs clear\n"
    )


def test_an_unknown_heading_alone_on_its_line_ends_a_section_and_a_part_of_the_exam_does_not() -> (
    None
):
    extract = cut("CC: pain\n\nPhysical Exam:\nwell\n\nHEENT:\ndry\n\nEvents of the week:\nshock\n")
    assert "well\nHEENT:\ndry" in extract
    assert "shock" not in extract


def test_a_wrapped_sentence_is_no_heading() -> None:
    assert (
        cut("CC: pain\nHPI: known for a long\nmedical history\nand more")
        == "CHIEF COMPLAINT: pain\n\nPRESENT ILLNESS: known for a long\nmedical history\nand more"
    )


@pytest.mark.parametrize("style", ["admission", "core-2021", "all"])
def test_an_empty_text_is_dropped_under_its_own_reason(style: sections.SectionStyle) -> None:
    for text in ("", " \r\n\t"):
        assert sections.extract_note_text(text, style) == sections.NoteExtract(
            None, sections.EMPTY_TEXT_REASON
        )


@pytest.mark.parametrize("style", ["admission", "core-2021"])
def test_a_note_without_history_is_dropped_and_the_reason_named(
    style: sections.SectionStyle,
) -> None:
    for text in (
        "Physical Exam:\nwell\n\nLabs:\n1",
        "no heading at all",
        "Chief Complaint:\n\n\nLabs:\n",
    ):
        assert sections.extract_note_text(text, style) == sections.NoteExtract(
            None, sections.NO_HISTORY_REASON
        )


def test_all_keeps_the_whole_note() -> None:
    assert sections.extract_note_text(f"\n{OLDER}\n", "all").text == OLDER.strip()


def test_the_published_cutter_prints_all_eight_headings_and_joins_lines() -> None:
    assert sections.extract_note_text(OLDER, "core-2021").text == (
        "CHIEF COMPLAINT: Dyspnea\n\n"
        "PRESENT ILLNESS: 70 year old man with heart failure, three days of dyspnea.\n\n"
        "MEDICAL HISTORY: 1. CHF 2. COPD\n\n"
        "MEDICATION ON ADMISSION: 1. Furosemide 20 mg\n\n"
        "ALLERGIES: Penicillins\n\n"
        "PHYSICAL EXAM: VS: T 98 HEENT: dry\n\n"
        "FAMILY HISTORY: Father with MI.\n\n"
        "SOCIAL HISTORY: Lives alone."
    )


def section(note: str, title: str) -> str:
    text = core2021.extract_core_2021_sections(note)
    assert text is not None
    return dict(part.split(": ", 1) for part in text.split("\n\n"))[title]


def test_the_published_cutter_keeps_its_bugs() -> None:
    assert "soft" in section(
        NEWER.replace("\n\nDISCHARGE", "\nDISCHARGE"), "PHYSICAL EXAM"
    )  # the exam at discharge stays
    assert (
        section(
            "Chief Complaint:\nlast section of the note\n\nAllergies:\n\nx:\n", "CHIEF COMPLAINT"
        )
        == "last section of the note"
    )
    # an empty section takes the next one, heading and all
    swallowed = "Chief Complaint:\n\nAllergies:\nnuts\n\nSex:\n"
    assert section(swallowed, "CHIEF COMPLAINT") == "Allergies: nuts"
    # digits, brackets and dots before the colon are no heading
    numbered = "Chief Complaint:\na\n\n1. b:\n\n(c):\n\nd (e):\n\nf. g:\n\nEnd:\n"
    assert section(numbered, "CHIEF COMPLAINT") == "a  1. b:  (c):  d (e):  f. g:"
    assert (
        section(
            "Chief Complaint:\nfirst\n\nB:\nChief Complaint:\nsecond\n\nC:\n", "CHIEF COMPLAINT"
        )
        == "first"
    )
    assert (
        section("Chief Complaint: a\\nb\n\nSex:", "CHIEF COMPLAINT") == "a b"
    )  # a backslash and an n are a line end


def published(text: str, heading: str) -> str:
    """The rule of the publication as one pattern, on text whose line ends are written out; slow,
    and the reference here."""
    match = re.search(
        rf"(?i){heading}(.+?)\\n\\n[^(\\|\d|\.)]+?:", text.strip().replace("\n", "\\n")
    )
    return match.group(1).replace("\\n", " ").strip() if match else ""


def test_the_published_cutter_equals_the_published_rule_on_any_text() -> None:
    pieces = [
        "\n",
        "\n\n",
        "Chief Complaint:",
        "ALLERGIES:",
        "Present illness:",
        " a b",
        "1. ",
        "(x):",
        "Sex:",
        "\\",
        "n",
        "|",
        ":",
        "ſocial history:",
        "é",
    ]
    state = 12345
    for _ in range(400):
        picked = []
        for _ in range(24):
            state = (state * 1103515245 + 12345) % 2**31
            picked.append(pieces[(state >> 16) % len(pieces)])
        text = "Chief Complaint: q\n\nSex:" + "".join(picked)
        got = core2021.extract_core_2021_sections(text)
        assert got == "\n\n".join(
            f"{title}: {published(text, heading)}" for title, heading in core2021.CORE_2021_HEADINGS
        )


def test_the_death_filter_clears_the_exam_once_and_finds_what_is_left() -> None:
    note = (
        "PRESENT ILLNESS: fell\n\nPHYSICAL EXAM: cold. patient has expired. pt died\n\nFAMILY "
        "HISTORY: father died"
    )
    cleared = sections.remove_death_phrases(note)
    assert (
        cleared
        == "PRESENT ILLNESS: fell\n\nPHYSICAL EXAM: cold. . pt died\n\nFAMILY HISTORY: father died"
    )
    assert sections.mentions_death(cleared)
    assert not sections.mentions_death(cleared.replace("pt died", ""))
    assert (
        sections.remove_death_phrases("MEDICATION ON ADMISSION: father died")
        == "MEDICATION ON ADMISSION: father"
    )


def test_looking_for_the_words_first_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [
        *(
            "patient ",
            "pt",
            " ",
            "\n",
            " had ",
            "has\t",
            "expired",
            "DIED",
            "dıed",
            "paſſed away",
            "passed away",
            "deceaſed",
            "deceased",
        ),
        *(
            "PHYSICAL EXAM:",
            "Medication on admission:",
            "he ",
            "pronounced ",
            "time of death",
            "TİME OF DEATH",
            "tıme of death",
            "lungs clear",
            "é",
        ),
    ]
    state, with_death_word = 4711, 0
    for number in range(3000):
        picked = []
        for _ in range(6):
            state = (state * 1103515245 + 12345) % 2**31
            picked.append(pieces[(state >> 16) % len(pieces)])
        text = "".join(picked) if number % 2 else "".join(picked).encode("ascii", "ignore").decode()
        fast = sections.remove_death_phrases(text), sections.mentions_death(text)
        with monkeypatch.context() as slowly:
            slowly.setattr(core2021, "_has_death_word", lambda _: True)
            assert fast == (sections.remove_death_phrases(text), sections.mentions_death(text))
        with_death_word += core2021._has_death_word(text)
    assert 300 < with_death_word < 2700  # both ways were taken


@pytest.mark.parametrize(
    "phrase",
    [
        "Pt  passed away",
        "patient\nhad deceased",
        "She expired",
        "was PRONOUNCED EXPIRED",
        "Time of death 10:00",
    ],
)
def test_death_mentions_are_found_in_any_case(phrase: str) -> None:
    assert sections.mentions_death(f"PRESENT ILLNESS: {phrase}.")


@pytest.mark.parametrize(
    "phrase", ["her mother died", "expired air", "death in the family", "the patient's father died"]
)
def test_deaths_of_others_are_none(phrase: str) -> None:
    assert not sections.mentions_death(phrase)


def test_every_heading_of_the_tables_is_written_as_it_is_looked_up_and_only_once() -> None:
    listed = [
        h for s in headings.ADMISSION_SECTIONS for h in s.headings_before_course | s.headings
    ] + [h for hs in headings.NON_ADMISSION_HEADINGS.values() for h in hs]
    assert [
        heading for heading in listed if headings.normalize_section_heading(heading) != heading
    ] == []
    assert sorted(listed) == sorted(set(listed))


@pytest.mark.parametrize(
    "piece",
    [
        "word ",
        "\n",
        " ",
        "Chief Complaint:",
        "Chief Complaint: a\n\n",
        "Physical Exam: ",
        "a: ",
        "\n\n\n1",
        "[**",
        "(",
        "PHYSICAL EXAM: died ",
        "patient ",
        "=",
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    spent = []
    for size in (20_000, 400_000):
        text = "CC: x\n" + piece * (size // len(piece))
        began = time.process_time()
        for style in ("admission", "core-2021"):
            sections.extract_note_text(text, style)
        sections.mentions_death(sections.remove_death_phrases(text))
        spent.append(time.process_time() - began)
    assert (
        spent[1] < 100 * spent[0] + 0.5
    )  # twenty times the text; quadratic time would be 400 times as much


def test_ten_megabytes_are_cut_in_seconds() -> None:
    text = (
        OLDER
        + "He was seen again and again by all teams, and nothing changed for the better.\n"
        * 130_000
    )
    began = time.process_time()
    assert sections.extract_note_text(text, "admission").text == cut(OLDER)
    assert (
        sections.extract_note_text(text, "core-2021").text
        == sections.extract_note_text(OLDER, "core-2021").text
    )
    assert time.process_time() - began < 10
