"""Notes to clean text, under a named and versioned de-identification policy.

A data set that was de-identified carries marks where a name or a date stood: MIMIC-III ``[**First Name (Titles) 12**]``, MIMIC-IV ``___``.
What becomes of them changes what a model learns, so the policy stands in the recipe, and its version in the run record.
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
"""A cleaned note before anybody knows whether it is kept: ``tables.CORPUS`` without the split."""

CATEGORY_NOT_SELECTED = "category not asked for"
EMPTY_AFTER_CLEANING = "empty after cleaning"
NO_WORDS_OUTSIDE_MARKS = "no letter or digit outside de-identification marks"
BELOW_MIN_CHARACTERS = "shorter than min_characters"

_MAX_COUNTED_CATEGORIES = (
    1000  # a column of free text named as the category must not be gathered here
)


@dataclass(frozen=True)
class DeidentificationPolicy:
    """What becomes of de-identification marks and white space.

    Attributes:
        version: raised whenever the same note would be cleaned to another text.
        clean_text: note text -> clean text.
    """

    version: int
    clean_text: Callable[[str], str]


# Read in order, matched without case against what stands between "[**" and "**]"; the first that matches names the token. Order matters:
# a "Hospital Ward Name" is a place and no person, a "Pager number" is called and no record, "Name (NI) 12" ends in a digit and is no date.
DEIDENTIFICATION_MARK_TOKENS: tuple[tuple[str, str], ...] = (
    (r"^[\d\s/-]*\d[\d\s/-]*$", "[DATE]"),  # 2151-7-16, 7-16, 7/2151, 2151
    (r"\bage over\b", "[AGE]"),
    (r"hospital|wardname|\bward\b", "[HOSPITAL]"),
    (r"telephone|\bfax\b|pager|phone", "[PHONE]"),
    (
        r"\bnumber\b|numeric identifier",
        "[ID]",
    ),  # medical record, MD, provider, job, clip, unit, social security
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
_MAX_MARK_CHARACTERS = 200  # characters; "[**" that is not closed within is left as it is
_MARK_PATTERN = re.compile(rf"\[\*\*([^\[\]]{{0,{_MAX_MARK_CHARACTERS}}})\*\*\]")
_REDACTION_BLANK_PATTERN = re.compile(
    r"___(?<!____)(?!_)"
)  # three exactly: a longer row of underscores is a ruled line
_NO_WORDS_PATTERN = re.compile(
    rf"(?:{_MARK_PATTERN.pattern}|{'|'.join(map(re.escape, DEIDENTIFICATION_TOKENS))}|[\W_])*+\Z"
)


def normalize_line_ends(text: str) -> str:
    """The text as it is but for line ends, which become ``\\n``; marks, trailing spaces and columns stay."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_mark_brackets(text: str) -> str:
    """As the code released with arXiv 2307.03042: each bracket of a mark and each line end becomes a space, a run of spaces one space.

    What stood in the mark stays, ``First Name (Titles) 12``; leading and trailing spaces are not cut, other white space is not touched.
    """
    flat = normalize_line_ends(text).replace("[**", " ").replace("**]", " ").replace("\n", " ")
    return re.sub(" +", " ", flat)


def replace_marks_with_tokens(text: str) -> str:
    """Each mark becomes a token that says what stood there, ``[NAME]``; lines and paragraphs stay, for the sections of a note live in them.

    A run of blanks within a line becomes one space, blanks at line ends go, more than one empty line becomes one.
    """
    typed = _REDACTION_BLANK_PATTERN.sub(
        REDACTED_TOKEN,
        _MARK_PATTERN.sub(
            lambda mark: _choose_mark_token(mark.group(1)), normalize_line_ends(text)
        ),
    )
    spaced = "\n".join(" ".join(line.split()) for line in typed.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", spaced).strip()


@functools.lru_cache(maxsize=4096)  # the same few hundred marks come again and again
def _choose_mark_token(mark_text: str) -> str:
    return next(
        (token for pattern, token in _MARK_TOKEN_PATTERNS if pattern.search(mark_text)),
        REDACTED_TOKEN,
    )


DEIDENTIFICATION_POLICIES: dict[str, DeidentificationPolicy] = {
    "keep": DeidentificationPolicy(version=1, clean_text=normalize_line_ends),
    "strip-brackets": DeidentificationPolicy(version=1, clean_text=strip_mark_brackets),
    "typed-tokens": DeidentificationPolicy(version=1, clean_text=replace_marks_with_tokens),
}


def format_policy_version(name: str) -> str:
    """A policy's name and version, as it stands in the run record: ``typed-tokens/1``."""
    return f"{name}/{DEIDENTIFICATION_POLICIES[name].version}"


def clean_notes(
    notes: pa.RecordBatch, spec: CorpusSpec, attrition: Attrition, categories: Counter[str]
) -> pa.RecordBatch:
    """The clean text of the notes that are asked for and have some.

    Args:
        notes: of schema ``tables.NOTE``.
        spec: policy, categories, shortest length.
        attrition: counts what entered and what is dropped, and why.
        categories: counts the categories that came by, asked for or not; the first thousand, and those it holds from the start.

    Returns:
        A batch of schema ``CLEANED``, in the order of ``notes``.
    """
    attrition.entered_rows += notes.num_rows
    names = pc.utf8_trim_whitespace(notes["category"])
    _count_categories(categories, names)
    asked = (
        notes.filter(pc.is_in(names, pa.array(strip_category_names(spec.categories), pa.string())))
        if spec.categories
        else notes
    )
    attrition.drop_rows(CATEGORY_NOT_SELECTED, notes.num_rows - asked.num_rows)
    policy = DEIDENTIFICATION_POLICIES[spec.deidentification].clean_text
    texts = [policy(text) for text in asked["text"].to_pylist()]
    reasons = [_find_drop_reason(text, spec.min_characters) for text in texts]
    for reason, count in Counter(reason for reason in reasons if reason).items():
        attrition.drop_rows(reason, count)
    columns = [
        *(asked[name] for name in CLEANED_NOTE_SCHEMA.names[:-1]),
        pa.array(texts, pa.large_string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=CLEANED_NOTE_SCHEMA).filter(
        pa.array([not reason for reason in reasons], pa.bool_())
    )


def strip_category_names(category_names: Iterable[str]) -> list[str]:
    """Category names without outer blanks, which MIMIC-III has on some (``"Physician "``)."""
    return [name.strip() for name in category_names]


def _count_categories(categories: Counter[str], category_names: pa.Array) -> None:
    for entry in category_names.value_counts().to_pylist():
        if entry["values"] is not None and (
            entry["values"] in categories or len(categories) < _MAX_COUNTED_CATEGORIES
        ):
            categories[entry["values"]] += entry["counts"]


def _find_drop_reason(text: str, min_characters: int) -> str:
    """Why a clean text is dropped; empty when it is kept."""
    if not text or text.isspace():
        return EMPTY_AFTER_CLEANING
    if _NO_WORDS_PATTERN.match(text):
        return NO_WORDS_OUTSIDE_MARKS
    return BELOW_MIN_CHARACTERS if len(text) < min_characters else ""
