"""The admission note as published in 2021, to the letter: its bugs are part of its results.

Source: van Aken et al. 2021, arXiv 2102.04110, and its code (github.com/bvanaken/
clinical-outcome-prediction, ``tasks/mimic_utils.py`` and ``tasks/mp/mp.py``, version of September
2021).

* A section runs from the *first* occurrence of its heading anywhere, also inside another section,
  to the first blank line that is followed by a line in which a colon comes before any digit or any
  of ``( ) . | \\``. At least one character is taken whatever it is, so that an empty section takes
  the next one.
* A section without such an end is empty: the last section of a note is lost.
* ``physical exam:`` takes the whole first section with an exam at discharge in it, a leak that
  remains.
* The death filter removes only the first phrase after a heading and on its line, and does so also
  where another person is meant ("father died").
"""

from __future__ import annotations

import re

# Title in the extract, heading in the note.
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
# Blank line, then a line with a colon before any digit, bracket, bar, dot or backslash.
_SECTION_END = re.compile(r"\n\n[^(\\|\d.)\n]+?:")

_DEATH_VERBS = r"(?:had\s|has\s)?(?:expired|died|passed away|deceased)"
_PATIENT_DIED = re.compile(rf"(?:patient|pt)\s+{_DEATH_VERBS}", re.IGNORECASE)
# "he expired" is also in "she expired".
_EXPLICIT_DEATH = re.compile(r"he expired|pronounced expired|time of death", re.IGNORECASE)
# The look-behind lets a run of blanks be entered only at its first, where the published pattern
# matches as well: this makes the search linear.
_DEATH_PHRASE = re.compile(rf"(?:patient|pt)?(?<!\s)\s+{_DEATH_VERBS}", re.IGNORECASE)
_FILTERED_HEADING = re.compile("(?:PHYSICAL EXAM|MEDICATION ON ADMISSION):", re.IGNORECASE)
# Every pattern above needs one of these words. Most notes have none, and a search for plain words
# takes a hundredth of the time of the patterns.
_DEATH_WORDS = ("expired", "died", "passed away", "deceased", "time of death")
_DEATH_WORD = re.compile("|".join(_DEATH_WORDS), re.IGNORECASE)


def extract_core_2021_sections(text: str) -> str | None:
    """The eight sections under their titles, empty ones too.

    Returns:
        None when chief complaint, present illness and medical history are all empty.
    """
    # The published code writes line ends as backslash and n, so that a backslash and an n in the
    # note are a line end as well.
    note = text.strip().replace("\\n", "\n")
    lowered = note.lower() if note.isascii() else ""
    bodies = {}
    for title, heading in CORE_2021_HEADINGS:
        if lowered:  # of the same length as the note, and faster to search than a pattern
            position = lowered.find(heading)
            start = position + len(heading) if position >= 0 else -1
        else:
            match = _HEADING_PATTERNS[heading].search(note)
            start = match.end() if match else -1
        # The published pattern finds any end after the first heading; without one, no later heading
        # can have one.
        end = _SECTION_END.search(note, start + 1) if start >= 0 else None
        bodies[title] = note[start : end.start()].replace("\n", " ").strip() if end else ""
    if not (bodies["CHIEF COMPLAINT"] or bodies["PRESENT ILLNESS"] or bodies["MEDICAL HISTORY"]):
        return None
    return "\n\n".join(f"{title}: {body}" for title, body in bodies.items())


def remove_death_phrases(text: str) -> str:
    """The note without the first phrase of death after every filtered heading.

    Headings are physical exam and medication on admission; phrases are "(patient/pt) (had/has)
    expired/died/passed away/deceased" on the line of the heading.
    """
    if not _has_death_word(text):
        return text
    pieces, copied_end, scanned_end = [], 0, 0
    for phrase in _DEATH_PHRASE.finditer(text):
        line_start = text.rfind("\n", scanned_end, phrase.start()) + 1 or scanned_end
        scanned_end = phrase.start()
        if _FILTERED_HEADING.search(text, line_start, phrase.start()):
            pieces.append(text[copied_end : phrase.start()])
            copied_end = scanned_end = phrase.end()
    return "".join([*pieces, text[copied_end:]])


def mentions_death(text: str) -> bool:
    """Whether the note says that the patient died; mortality cohorts exclude such a note."""
    return _has_death_word(text) and bool(
        _PATIENT_DIED.search(text) or _EXPLICIT_DEATH.search(text)
    )


def _has_death_word(text: str) -> bool:
    """Whether the text has a word that the patterns need.

    Outside ASCII a pattern decides, in which case folding makes a long s an s.
    """
    # İ and ı change length or identity in lower case, so that only patterns are safe.
    if not text.isascii():
        return _DEATH_WORD.search(text) is not None
    lowered = text.lower()
    return any(word in lowered for word in _DEATH_WORDS)
