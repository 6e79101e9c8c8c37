from __future__ import annotations

from collections import Counter
from typing import get_args

import pyarrow as pa
import pytest

from clinpeft.core import schemas
from clinpeft.data.notes import clean
from clinpeft.data.notes.clean import (
    BELOW_MIN_CHARACTERS,
    CATEGORY_NOT_SELECTED,
    CLEANED_NOTE_SCHEMA,
    DEIDENTIFICATION_POLICIES,
    EMPTY_AFTER_CLEANING,
    NO_WORDS_OUTSIDE_MARKS,
    clean_notes,
    format_policy_version,
    normalize_line_ends,
    replace_marks_with_tokens,
    strip_mark_brackets,
)
from clinpeft.recipe import CorpusSpec

MARKED = {
    "[**First Name (Titles) 12**]": "[NAME]",
    "[**Last Name (NamePattern1) 4**]": "[NAME]",
    "[**Known firstname 5**]": "[NAME]",
    "[**Known lastname **]": "[NAME]",
    "[**Name (NI) 12**]": "[NAME]",
    "[**Doctor Last Name **]": "[NAME]",
    "[**Initials (NamePattern4) **]": "[NAME]",
    "[**2151-7-16**]": "[DATE]",
    "[**7-16**]": "[DATE]",
    "[**7/2151**]": "[DATE]",
    "[**2151**]": "[DATE]",
    "[**Month (only) 5**]": "[DATE]",
    "[**Month/Day (1) 9**]": "[DATE]",
    "[**Year (4 digits) 100**]": "[DATE]",
    "[**Date range (1) 3**]": "[DATE]",
    "[**Holiday 7**]": "[DATE]",
    "[**Hospital1 18**]": "[HOSPITAL]",
    "[**Hospital Ward Name 5**]": "[HOSPITAL]",
    "[**Hospital Unit Name 10**]": "[HOSPITAL]",
    "[**Wardname 2**]": "[HOSPITAL]",
    "[**Location (un)**]": "[LOCATION]",
    "[**Street Address(2) 3**]": "[LOCATION]",
    "[**State/Zipcode 4**]": "[LOCATION]",
    "[**Country 9**]": "[LOCATION]",
    "[**Telephone/Fax (1) 123**]": "[PHONE]",
    "[**Pager number 77**]": "[PHONE]",
    "[**Age over 90 **]": "[AGE]",
    "[**Medical Record Number 5**]": "[ID]",
    "[**MD Number 3**]": "[ID]",
    "[**MD Number(1) 3**]": "[ID]",
    "[**Numeric Identifier 1**]": "[ID]",
    "[**Job Number 9**]": "[ID]",
    "[**Clip Number (Radiology) 9**]": "[ID]",
    "[**Unit Number 4**]": "[ID]",
    "[**Social Security Number 8**]": "[ID]",
    "[**Company 3**]": "[REDACTED]",
    "[**E-mail address 3**]": "[REDACTED]",
    "[** **]": "[REDACTED]",
    "___": "[REDACTED]",
}


@pytest.mark.parametrize(("mark", "token"), MARKED.items())
def test_a_mark_becomes_the_token_of_its_type(mark: str, token: str) -> None:
    assert (
        replace_marks_with_tokens(f"seen by {mark}, who agrees") == f"seen by {token}, who agrees"
    )


def test_a_mark_broken_over_two_lines_is_one_mark() -> None:
    assert replace_marks_with_tokens("at [**Hospital1\n 18**] today") == "at [HOSPITAL] today"


@pytest.mark.parametrize(
    "text", ["[**Name", "Name**]", "a [b] (c) [1]", "[**" + "x" * 201 + "**]", "______", "____"]
)
def test_what_is_no_mark_is_left_as_it_is(text: str) -> None:
    assert replace_marks_with_tokens(text) == text


def test_two_marks_side_by_side_are_two() -> None:
    assert (
        replace_marks_with_tokens(
            "Dr. [**First Name8 (NamePattern2) **] [**Last Name (un) 3**]: ___ ___"
        )
        == "Dr. [NAME] [NAME]: [REDACTED] [REDACTED]"
    )


def test_typed_tokens_keeps_lines_and_paragraphs_and_drops_the_columns() -> None:
    raw = (
        "Admission Date:  [**2151-7-16**]      Sex:\tF \r\n \r\n\r\n\r\nHistory:\n "
        " short of breath  \n"
    )
    assert (
        replace_marks_with_tokens(raw)
        == "Admission Date: [DATE] Sex: F\n\nHistory:\nshort of breath"
    )


def test_strip_brackets_does_what_the_papers_code_does() -> None:
    # "[**" and "**]" -> " ", "\n" -> " ", " +" -> " "; nothing is cut at the ends, tabs stay
    raw = "Dr. [**Last Name (un) 12**] saw\n\nhim.\tThen  ___ \n"
    assert strip_mark_brackets(raw) == "Dr. Last Name (un) 12 saw him.\tThen ___ "


def test_keep_changes_line_ends_and_nothing_else() -> None:
    assert (
        normalize_line_ends("Name:  ___  \r\n[**2151**]\r\t x \n")
        == "Name:  ___  \n[**2151**]\n\t x \n"
    )


@pytest.mark.parametrize("name", DEIDENTIFICATION_POLICIES)
def test_a_clean_note_stays_as_it_is_when_cleaned_again(name: str) -> None:
    raw = "\r\n A  [**7-16**]\r\n\r\n \n\n___ [**Name (NI) **]  b\tc \r"
    once = DEIDENTIFICATION_POLICIES[name].clean_text(raw)
    assert DEIDENTIFICATION_POLICIES[name].clean_text(once) == once


def test_every_policy_a_recipe_may_name_is_there_and_has_a_version() -> None:
    assert set(get_args(CorpusSpec.model_fields["deidentification"].annotation)) == set(
        DEIDENTIFICATION_POLICIES
    )
    assert format_policy_version("typed-tokens") == "typed-tokens/1"


@pytest.mark.parametrize("name", DEIDENTIFICATION_POLICIES)
def test_a_megabyte_of_open_brackets_is_cleaned_in_linear_time(name: str) -> None:
    assert len(DEIDENTIFICATION_POLICIES[name].clean_text("[**" * 350_000)) > 0


def test_unusual_letters_come_through_every_policy() -> None:
    text = (
        "Cafe\u0301 \u05e9\u05dc\u05d5\u05dd "
        "\u202e\u0645\u0631\u062d\u0628\u0627\u202c \U0001f489 \u0e01\u0e33"
    )
    assert all(policy.clean_text(text) == text for policy in DEIDENTIFICATION_POLICIES.values())


def batch(texts: list[str], categories: list[str | None] | None = None) -> pa.RecordBatch:
    rows: dict[str, object] = {
        "note_id": [f"n{at}" for at in range(len(texts))],
        "subject_id": list(range(len(texts))),
        "text": texts,
    }
    return schemas.build_arrow_table(
        schemas.NOTE_SCHEMA, rows | ({"category": categories} if categories else {})
    ).to_batches()[0]


def test_every_dropped_note_is_counted_under_its_reason() -> None:
    texts = [
        "long enough to stay",
        "",
        " \r\n\t ",
        "[**Name (NI) 3**] - ___ .",
        "[**2151**]",
        "short",
        "\u0301",
    ]
    attrition = schemas.Attrition("clean")
    kept = clean_notes(batch(texts), CorpusSpec(min_characters=6), attrition, Counter())
    assert kept["text"].to_pylist() == ["long enough to stay"]
    assert attrition.entered_rows == 7
    assert attrition.dropped_rows == {
        EMPTY_AFTER_CLEANING: 2,
        NO_WORDS_OUTSIDE_MARKS: 3,
        BELOW_MIN_CHARACTERS: 1,
    }


def test_a_note_as_long_as_the_shortest_allowed_stays() -> None:
    kept = clean_notes(
        batch(["fever", "fine"]),
        CorpusSpec(min_characters=5),
        schemas.Attrition("clean"),
        Counter(),
    )
    assert kept["text"].to_pylist() == ["fever"]


def test_a_mark_that_strip_brackets_opens_is_text() -> None:
    kept = clean_notes(
        batch(["[**Name (NI) 3**]"]),
        CorpusSpec(deidentification="strip-brackets"),
        schemas.Attrition("clean"),
        Counter(),
    )
    assert kept["text"].to_pylist() == [" Name (NI) 3 "]


def test_only_the_categories_asked_for_stay_whatever_their_outer_blanks() -> None:
    attrition, seen = schemas.Attrition("clean"), Counter[str]()
    notes = batch(["one", "two", "three", "four"], ["Physician ", "Nursing", None, "Physician"])
    kept = clean_notes(notes, CorpusSpec(categories=("Physician",)), attrition, seen)
    assert kept["note_id"].to_pylist() == ["n0", "n3"]
    assert attrition.dropped_rows == {CATEGORY_NOT_SELECTED: 2}
    assert seen == {"Physician": 2, "Nursing": 1}


def test_a_column_of_free_text_named_as_category_is_not_gathered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clean, "_MAX_COUNTED_CATEGORIES", 2)
    seen = Counter({"asked for": 0})
    clean_notes(
        batch(["x"] * 5, ["a", "b", "c", "a", "asked for"]),
        CorpusSpec(),
        schemas.Attrition("clean"),
        seen,
    )
    assert seen == {"a": 2, "asked for": 1}


def test_cleaning_gives_the_schema_it_says_even_of_nothing() -> None:
    kept = clean_notes(batch(["", " "]), CorpusSpec(), schemas.Attrition("clean"), Counter())
    assert kept.schema.equals(CLEANED_NOTE_SCHEMA)
    assert kept.num_rows == 0
