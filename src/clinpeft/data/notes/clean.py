"""Notes -> clean text, under a named and versioned de-identification policy.

A de-identified data set has marks in place of names and dates: MIMIC-III ``[**First Name (Titles)
12**]``, MIMIC-IV ``___``. How they are replaced changes what a model learns, so the policy is part
of the recipe, and its version part of the run record.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.schemas import CORPUS_SCHEMA, Attrition
from clinpeft.recipe import CorpusSpec

CLEANED_NOTE_SCHEMA = pa.schema([field for field in CORPUS_SCHEMA if field.name != "split"])
"""A cleaned note before deduplication: ``CORPUS_SCHEMA`` without the split."""

CATEGORY_NOT_SELECTED = "category not asked for"
EMPTY_AFTER_CLEANING = "empty after cleaning"
NO_WORDS_OUTSIDE_MARKS = "no letter or digit outside de-identification marks"
BELOW_MIN_CHARACTERS = "shorter than min_characters"

# A column of free text may be named as the category by mistake; it must not be collected in memory.
_MAX_COUNTED_CATEGORIES = 1000


@dataclass(frozen=True)
class DeidentificationPolicy:
    """How de-identification marks and white space are replaced.

    Attributes:
        version: raised whenever the same note would be cleaned to another text.
        clean_text: note text -> clean text.
    """

    version: int
    clean_text: Callable[[str], str]


# Tried in order, without regard to case, on the text between "[**" and "**]"; the first match gives
# the token. The order matters: a "Hospital Ward Name" is no person, a "Pager number" is no record,
# and "Name (NI) 12" ends in a digit and is no date.
DEIDENTIFICATION_MARK_TOKENS: tuple[tuple[str, str], ...] = (
    (r"^[\d\s/-]*\d[\d\s/-]*$", "[DATE]"),  # 2151-7-16, 7-16, 7/2151, 2151
    (r"\bage over\b", "[AGE]"),
    (r"hospital|wardname|\bward\b", "[HOSPITAL]"),
    (r"telephone|\bfax\b|pager|phone", "[PHONE]"),
    # medical record, MD, provider, job, clip, unit, social security
    (r"\bnumber\b|numeric identifier", "[ID]"),
    (r"\b(?:date|month|year|day|holiday)\b", "[DATE]"),
    (r"name|initials", "[NAME]"),  # first, last, known firstname, doctor, dictator's and so on
    (r"location|(?:street|apartment) address|\bstate\b|country|zip ?code|po box", "[LOCATION]"),
)
REDACTED_TOKEN = "[REDACTED]"
DEIDENTIFICATION_TOKENS = tuple(
    dict.fromkeys([*(token for _, token in DEIDENTIFICATION_MARK_TOKENS), REDACTED_TOKEN])
)

_MARK_TOKEN_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), token) for pattern, token in DEIDENTIFICATION_MARK_TOKENS
)
# A limit keeps the search linear; a "[**" that is not closed within it stays as it is.
_MAX_MARK_CHARACTERS = 200
_MARK_PATTERN = re.compile(rf"\[\*\*([^\[\]]{{0,{_MAX_MARK_CHARACTERS}}})\*\*\]")
# Exactly three underscores: a longer run is a ruled line.
_REDACTION_BLANK_PATTERN = re.compile(r"___(?<!____)(?!_)")
# The possessive quantifier *+ forbids backtracking over the alternatives, which overlap.
_NO_WORDS_PATTERN = re.compile(
    rf"(?:{_MARK_PATTERN.pattern}|{'|'.join(map(re.escape, DEIDENTIFICATION_TOKENS))}|[\W_])*+\Z"
)


def normalize_line_ends(text: str) -> str:
    """Replaces line ends by ``\\n``; marks, trailing spaces and columns stay."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_mark_brackets(text: str) -> str:
    """Replaces brackets of marks and line ends by spaces, as the code of arXiv 2307.03042 does.

    The content of a mark stays, ``First Name (Titles) 12``. A run of spaces becomes one; leading
    and trailing spaces and other white space stay.
    """
    flat = normalize_line_ends(text).replace("[**", " ").replace("**]", " ").replace("\n", " ")
    return re.sub(" +", " ", flat)


def replace_marks_with_tokens(text: str) -> str:
    """Replaces each mark by a token of its type, ``[NAME]``; lines and paragraphs stay.

    A run of blanks within a line becomes one space, blanks at line ends are removed, and several
    empty lines become one.
    """
    typed = _MARK_PATTERN.sub(lambda mark: _choose_token(mark.group(1)), normalize_line_ends(text))
    typed = _REDACTION_BLANK_PATTERN.sub(REDACTED_TOKEN, typed)
    # Line by line: the sections of a note are recognized by their lines.
    spaced = "\n".join(" ".join(line.split()) for line in typed.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", spaced).strip()


@functools.lru_cache(maxsize=4096)  # the same few hundred marks occur again and again
def _choose_token(mark_text: str) -> str:
    return next(
        (token for pattern, token in _MARK_TOKEN_PATTERNS if pattern.search(mark_text)),
        REDACTED_TOKEN,
    )


DEIDENTIFICATION_POLICIES: dict[str, DeidentificationPolicy] = {
    "keep": DeidentificationPolicy(version=1, clean_text=normalize_line_ends),
    "strip-brackets": DeidentificationPolicy(version=1, clean_text=strip_mark_brackets),
    "typed-tokens": DeidentificationPolicy(version=1, clean_text=replace_marks_with_tokens),
}
"""What ``corpus.deidentification`` of a recipe may be."""


def format_policy_version(name: str) -> str:
    """Returns name and version of a policy for the run record: ``typed-tokens/1``."""
    return f"{name}/{DEIDENTIFICATION_POLICIES[name].version}"


def clean_notes(
    notes: pa.RecordBatch, spec: CorpusSpec, attrition: Attrition, categories: Counter[str]
) -> pa.RecordBatch:
    """Cleans the notes of the selected categories and drops those without text.

    Args:
        notes: of ``NOTE_SCHEMA``.
        spec: policy, categories, minimum length.
        attrition: updated by what entered and what is dropped, and why.
        categories: updated by the categories of all notes, selected or not: those it contains
            already and the first thousand others.

    Returns:
        A batch of ``CLEANED_NOTE_SCHEMA``, in the order of ``notes``.
    """
    attrition.entered_rows += notes.num_rows
    # MIMIC-III has "Physician " with a blank at its end.
    names = pc.utf8_trim_whitespace(notes["category"])
    for entry in names.value_counts().to_pylist():
        name = entry["values"]
        if name is not None and (name in categories or len(categories) < _MAX_COUNTED_CATEGORIES):
            categories[name] += entry["counts"]
    selected = notes
    if spec.categories:
        selected = notes.filter(
            pc.is_in(names, pa.array(strip_category_names(spec.categories), pa.string()))
        )
    attrition.drop_rows(CATEGORY_NOT_SELECTED, notes.num_rows - selected.num_rows)
    clean_text = DEIDENTIFICATION_POLICIES[spec.deidentification].clean_text
    texts = [clean_text(text) for text in selected["text"].to_pylist()]
    reasons = []
    for text in texts:
        if not text or text.isspace():
            reasons.append(EMPTY_AFTER_CLEANING)
        elif _NO_WORDS_PATTERN.match(text):
            reasons.append(NO_WORDS_OUTSIDE_MARKS)
        else:
            reasons.append(BELOW_MIN_CHARACTERS if len(text) < spec.min_characters else "")
    # Counted once a batch: a call for every note would dominate the time.
    for reason, count in Counter(reason for reason in reasons if reason).items():
        attrition.drop_rows(reason, count)
    columns = [
        *(selected[name] for name in CLEANED_NOTE_SCHEMA.names[:-1]),  # the text is the last
        pa.array(texts, pa.large_string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=CLEANED_NOTE_SCHEMA).filter(
        pa.array([not reason for reason in reasons], pa.bool_())
    )


def strip_category_names(category_names: Iterable[str]) -> list[str]:
    """Removes surrounding blanks, which MIMIC-III has on some categories (``"Physician "``)."""
    return [name.strip() for name in category_names]
