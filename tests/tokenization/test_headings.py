"""Where sections begin, on invented notes in the ways hospitals write them."""

from __future__ import annotations

import time

import pytest

from clinpeft.tokenization.headings import normalize_heading_name, split_headed_sections


def names(text: str, *asked: str) -> list[str]:
    """Every section's name, after checking that the sections are the whole note."""
    found = split_headed_sections(text, {normalize_heading_name(name) for name in asked})
    assert not found or found[0].start == 0
    assert [section.start for section in found] == sorted({section.start for section in found})
    return [section.name for section in found]


def test_a_heading_ends_in_a_colon_or_is_a_line_of_capitals() -> None:
    assert names("Chief Complaint:\ncough\n\nPLAN\nrest\n\nAllergies: none") == [
        "chief complaint",
        "plan",
        "allergies",
    ]


def test_a_section_begins_with_its_heading() -> None:
    text = "came by ambulance\n\nPLAN: rest"
    assert [text[section.start :] for section in split_headed_sections(text, ())] == [
        text,
        "PLAN: rest",
    ]


def test_what_stands_before_the_first_heading_is_a_section_without_a_name() -> None:
    assert names("came by ambulance\n\nPLAN: rest") == ["", "plan"]


def test_a_subheading_belongs_to_its_section_unless_it_is_asked_for() -> None:
    text = "Exam:\nHEENT: clear\nLungs: clear\n\nPlan: rest"
    assert names(text) == ["exam", "plan"]
    assert names(text, "lungs") == ["exam", "lungs", "plan"]


def test_a_note_that_opens_without_a_heading_tells_subheadings_apart_too() -> None:
    assert names("came by ambulance\n\nExam:\nLungs: clear") == ["", "exam"]
    assert names("\n\nExam:\nclear\nPlan: rest") == [
        "",
        "exam",
        "plan",
    ]  # above the first line there is no note to be apart from


def test_a_heading_may_hold_commas() -> None:
    assert names("NOSE, MOUTH AND THROAT: clear\nPLAN: rest") == ["nose mouth and throat", "plan"]


def test_without_blank_lines_every_heading_counts() -> None:
    assert names("S: cough\nO: clear\nA: cold\nP: rest") == ["s", "o", "a", "p"]


def test_blank_lines_may_hold_spaces_and_lines_may_end_as_on_windows() -> None:
    assert names("CC:\r\ncough\r\n  \t\r\nPLAN:\r\nrest") == ["cc", "plan"]


def test_headings_between_commas_are_found() -> None:
    text = "SUBJECTIVE:, This woman, aged 23, has a cough.,MEDICATIONS: , Zyrtec,PLAN:,1.  Rest at 10:30."
    assert names(text) == ["subjective", "medications", "plan"]
    assert [text[section.start :][:5] for section in split_headed_sections(text, ())] == [
        "SUBJE",
        "MEDIC",
        "PLAN:",
    ]


def test_names_are_compared_without_case_and_punctuation() -> None:
    assert (
        normalize_heading_name("  History of Present-Illness: ")
        == normalize_heading_name("HISTORY OF PRESENT ILLNESS")
        == "history of present illness"
    )
    assert (
        normalize_heading_name("Ärztlicher Befund")
        == normalize_heading_name("ÄRZTLICHER BEFUND")
        != ""
    )


@pytest.mark.parametrize(
    "line",
    [
        "seen at 10:30 today",
        "she came to us with a long story of many things: cough",
        "A B C D E F G",
        "12:30",
        "NO FEVER.",
        "- aspirin: daily",
        "x" * 70 + ":",
    ],
)
def test_what_only_looks_like_a_heading_is_none(line: str) -> None:
    assert names(f"{line}\nand so on") == []


@pytest.mark.parametrize("text", ["", " \n\n ", "no heading here"])
def test_a_note_without_headings_has_no_sections(text: str) -> None:
    assert names(text) == []


@pytest.mark.parametrize(
    "piece", [",", ", ", ",A", "A ", ": ", "\n", "A:\n", ",A:", " ", "A" * 50 + ","]
)
def test_strange_notes_take_linear_time(piece: str) -> None:
    began = time.perf_counter()
    split_headed_sections(piece * (100_000 // len(piece)), ())
    assert time.perf_counter() - began < 5  # a second; quadratic time would be many minutes
