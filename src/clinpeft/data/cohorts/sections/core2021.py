"""The admission note as published in 2021 (van Aken et al., arXiv 2102.04110, code of September 2021), to the letter: its bugs are its results.

* A section runs from the *first* occurrence of its heading anywhere, also inside another section, to the first blank line that is followed by a
  line in which a colon comes before any digit or any of ``( ) . | \\``. One character at least is taken whatever it is, so that an empty
  section swallows the next one.
* A section without such an end is empty: the last section of a note is lost.
* ``physical exam:`` takes the whole first section, with an exam at discharge in it: a leak that stays.
* The death filter removes the first phrase after a heading and on its line only, and there also where nobody is named ("father died").
"""

from __future__ import annotations

import re

CORE_2021_HEADINGS: tuple[tuple[str, str], ...] = (
    ("CHIEF COMPLAINT", "chief complaint:"),
    ("PRESENT ILLNESS", "present illness:"),
    ("MEDICAL HISTORY", "medical history:"),
    ("MEDICATION ON ADMISSION", "medications on admission:"),
    ("ALLERGIES", "allergies:"),
    ("PHYSICAL EXAM", "physical exam:"),
    ("FAMILY HISTORY", "family history:"),
    ("SOCIAL HISTORY", "social history:"),
)

_HEADING_PATTERNS = {
    heading: re.compile(heading, re.IGNORECASE) for _, heading in CORE_2021_HEADINGS
}
_SECTION_END = re.compile(r"\n\n[^(\\|\d.)\n]+?:")

_DEATH_VERBS = r"(?:had\s|has\s)?(?:expired|died|passed away|deceased)"
_PATIENT_DIED = re.compile(rf"(?:patient|pt)\s+{_DEATH_VERBS}", re.IGNORECASE)
_EXPLICIT_DEATH = re.compile(
    r"he expired|pronounced expired|time of death", re.IGNORECASE
)  # "she expired" too
# The look-behind lets a run of blanks be entered at its first only, where the published pattern would end up as well: linear time.
_DEATH_PHRASE = re.compile(rf"(?:patient|pt)?(?<!\s)\s+{_DEATH_VERBS}", re.IGNORECASE)
_FILTERED_HEADING = re.compile("(?:PHYSICAL EXAM|MEDICATION ON ADMISSION):", re.IGNORECASE)
# Every pattern above needs one of these. Most notes have none, and a search for plain words takes a hundredth of theirs.
_DEATH_WORDS = ("expired", "died", "passed away", "deceased", "time of death")
_DEATH_WORD = re.compile("|".join(_DEATH_WORDS), re.IGNORECASE)


def extract_core_2021_sections(text: str) -> str | None:
    """The eight sections under their headings, empty ones too; None when chief complaint, present illness and medical history are all empty.

    Source: arXiv 2102.04110, section 3.1, and its code.
    """
    # the published code writes line ends as backslash and n, so that a backslash and an n in the note are a line end as well
    note = text.strip().replace("\\n", "\n")
    lowered = note.lower() if note.isascii() else ""
    found = {
        title: _extract_section(note, lowered, heading) for title, heading in CORE_2021_HEADINGS
    }
    if not (found["CHIEF COMPLAINT"] or found["PRESENT ILLNESS"] or found["MEDICAL HISTORY"]):
        return None
    return "\n\n".join(f"{title}: {body}" for title, body in found.items())


def _extract_section(note: str, lowered: str, heading: str) -> str:
    start = _find_section_start(note, lowered, heading)
    # an end anywhere after the first heading is what the published pattern finds; without one no later heading can have one
    end = _SECTION_END.search(note, start + 1) if start >= 0 else None
    return note[start : end.start()].replace("\n", " ").strip() if end else ""


def _find_section_start(note: str, lowered: str, heading: str) -> int:
    """Where the text after the first such heading begins, -1 without one; ``lowered`` is the note in lower case where that is as long."""
    if lowered:
        at = lowered.find(heading)
        return at + len(heading) if at >= 0 else -1
    match = _HEADING_PATTERNS[heading].search(note)
    return match.end() if match else -1


def remove_death_phrases(text: str) -> str:
    """The note without the first "(patient/pt) (had/has) expired/died/passed away/deceased" after every physical exam and medication heading."""
    if not _has_death_word(text):
        return text
    kept, done, scanned = [], 0, 0
    for phrase in _DEATH_PHRASE.finditer(text):
        line = text.rfind("\n", scanned, phrase.start()) + 1 or scanned
        scanned = phrase.start()
        if _FILTERED_HEADING.search(text, line, phrase.start()):
            kept.append(text[done : phrase.start()])
            done = scanned = phrase.end()
    return "".join([*kept, text[done:]])


def mentions_death(text: str) -> bool:
    """Whether the note says that the patient died: such a note asks for what it tells, and leaves the cohort of the mortality task."""
    return _has_death_word(text) and bool(
        _PATIENT_DIED.search(text) or _EXPLICIT_DEATH.search(text)
    )


def _has_death_word(text: str) -> bool:
    """Whether a word is there that the patterns need; beyond ASCII the pattern decides, for which a long s is an s."""
    if not text.isascii():
        return _DEATH_WORD.search(text) is not None
    lowered = text.lower()
    return any(word in lowered for word in _DEATH_WORDS)
