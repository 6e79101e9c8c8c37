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

CLEANED = pa.schema([field for field in CORPUS_SCHEMA if field.name != "split"])
"""A cleaned note before anybody knows whether it is kept: ``tables.CORPUS`` without the split."""

NOT_ASKED_FOR = "category not asked for"
EMPTY = "empty after cleaning"
NO_WORDS = "no letter or digit outside de-identification marks"
TOO_SHORT = "shorter than min_characters"

_CATEGORIES_COUNTED = 1000  # a column of free text named as the category must not be gathered here


@dataclass(frozen=True)
class Policy:
    """What becomes of de-identification marks and white space.

    Attributes:
        version: raised whenever the same note would be cleaned to another text.
        clean: note text -> clean text.
    """

    version: int
    clean: Callable[[str], str]


# Read in order, matched without case against what stands between "[**" and "**]"; the first that matches names the token. Order matters:
# a "Hospital Ward Name" is a place and no person, a "Pager number" is called and no record, "Name (NI) 12" ends in a digit and is no date.
MARKS: tuple[tuple[str, str], ...] = (
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
REDACTED = "[REDACTED]"
TOKENS = tuple(dict.fromkeys([*(token for _, token in MARKS), REDACTED]))

_MARKS = tuple((re.compile(pattern, re.IGNORECASE), token) for pattern, token in MARKS)
_LONGEST_MARK = 200  # characters; "[**" that is not closed within is left as it is
_MARK = re.compile(rf"\[\*\*([^\[\]]{{0,{_LONGEST_MARK}}})\*\*\]")
_BLANK = re.compile(
    r"___(?<!____)(?!_)"
)  # three exactly: a longer row of underscores is a ruled line
_NO_WORDS = re.compile(rf"(?:{_MARK.pattern}|{'|'.join(map(re.escape, TOKENS))}|[\W_])*+\Z")


def keep(text: str) -> str:
    """The text as it is but for line ends, which become ``\\n``; marks, trailing spaces and columns stay."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_brackets(text: str) -> str:
    """As the code released with arXiv 2307.03042: each bracket of a mark and each line end becomes a space, a run of spaces one space.

    What stood in the mark stays, ``First Name (Titles) 12``; leading and trailing spaces are not cut, other white space is not touched.
    """
    flat = keep(text).replace("[**", " ").replace("**]", " ").replace("\n", " ")
    return re.sub(" +", " ", flat)


def typed_tokens(text: str) -> str:
    """Each mark becomes a token that says what stood there, ``[NAME]``; lines and paragraphs stay, for the sections of a note live in them.

    A run of blanks within a line becomes one space, blanks at line ends go, more than one empty line becomes one.
    """
    typed = _BLANK.sub(REDACTED, _MARK.sub(lambda mark: _token(mark.group(1)), keep(text)))
    spaced = "\n".join(" ".join(line.split()) for line in typed.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", spaced).strip()


@functools.lru_cache(maxsize=4096)  # the same few hundred marks come again and again
def _token(inside: str) -> str:
    return next((token for pattern, token in _MARKS if pattern.search(inside)), REDACTED)


POLICIES: dict[str, Policy] = {
    "keep": Policy(version=1, clean=keep),
    "strip-brackets": Policy(version=1, clean=strip_brackets),
    "typed-tokens": Policy(version=1, clean=typed_tokens),
}


def policy_version(name: str) -> str:
    """A policy's name and version, as it stands in the run record: ``typed-tokens/1``."""
    return f"{name}/{POLICIES[name].version}"


def cleaned(
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
    _count(categories, names)
    asked = (
        notes.filter(pc.is_in(names, pa.array(stripped(spec.categories), pa.string())))
        if spec.categories
        else notes
    )
    attrition.drop_rows(NOT_ASKED_FOR, notes.num_rows - asked.num_rows)
    policy = POLICIES[spec.deidentification].clean
    texts = [policy(text) for text in asked["text"].to_pylist()]
    reasons = [_reason(text, spec.min_characters) for text in texts]
    for reason, count in Counter(reason for reason in reasons if reason).items():
        attrition.drop_rows(reason, count)
    columns = [*(asked[name] for name in CLEANED.names[:-1]), pa.array(texts, pa.large_string())]
    return pa.RecordBatch.from_arrays(columns, schema=CLEANED).filter(
        pa.array([not reason for reason in reasons], pa.bool_())
    )


def stripped(names: Iterable[str]) -> list[str]:
    """Category names without outer blanks, which MIMIC-III has on some (``"Physician "``)."""
    return [name.strip() for name in names]


def _count(categories: Counter[str], names: pa.Array) -> None:
    for entry in names.value_counts().to_pylist():
        if entry["values"] is not None and (
            entry["values"] in categories or len(categories) < _CATEGORIES_COUNTED
        ):
            categories[entry["values"]] += entry["counts"]


def _reason(text: str, min_characters: int) -> str:
    """Why a clean text is dropped; empty when it is kept."""
    if not text or text.isspace():
        return EMPTY
    if _NO_WORDS.match(text):
        return NO_WORDS
    return TOO_SHORT if len(text) < min_characters else ""
