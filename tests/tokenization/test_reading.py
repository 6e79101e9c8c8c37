"""Which tokens of a note are read: worked by hand, and held against what must be true of every note."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from clinpeft.core.errors import RecipeError
from clinpeft.recipe import TruncationSpec
from clinpeft.tokenization.truncation import (
    AFTER_LAST_WINDOW_REASON,
    TRUNCATION_STRATEGIES,
    LOWER_PRIORITY_REASON,
    MIDDLE_OF_NOTE_REASON,
    SectionStart,
    TokenizedNote,
    TruncatedNote,
    create_window_limits,
    truncate_note,
)

PAST = "past the first 6 tokens of the most important section"
NO_HEADING = "no heading, and past the first 6 tokens of the note"


def spec(keep: str, **more: object) -> TruncationSpec:
    return TruncationSpec.model_validate(
        {"keep": keep, "sections": ("plan", "cc"), "overlap_tokens": 2, **more}
    )


def reading(
    keep: str, tokens: int, room: int = 6, marks: tuple[SectionStart, ...] = (), **more: object
) -> TruncatedNote:
    return truncate_note(
        TokenizedNote(tokens, marks), keep, create_window_limits(spec(keep, **more), room)
    )


@pytest.mark.parametrize("keep", TRUNCATION_STRATEGIES)
@pytest.mark.parametrize("tokens", [0, 1, 6])
def test_a_note_that_fits_is_read_whole(keep: str, tokens: int) -> None:
    assert reading(keep, tokens) == TruncatedNote((((0, tokens),),), {})


def test_the_head_is_the_first_tokens() -> None:
    assert reading("head", 10) == TruncatedNote(
        (((0, 6),),), {"past the first 6 tokens of the note": 4}
    )


def test_the_tail_is_the_last_tokens() -> None:
    assert reading("tail", 10) == TruncatedNote(
        (((4, 10),),), {"before the last 6 tokens of the note": 4}
    )


@pytest.mark.parametrize(
    ("room", "spans"), [(6, ((0, 3), (7, 10))), (5, ((0, 3), (8, 10))), (1, ((0, 1), (10, 10)))]
)
def test_head_and_tail_have_half_each_and_the_head_the_odd_one(
    room: int, spans: tuple[tuple[int, int], ...]
) -> None:
    assert reading("head-and-tail", 10, room) == TruncatedNote(
        (spans,), {MIDDLE_OF_NOTE_REASON: 10 - room}
    )


@pytest.mark.parametrize(
    ("tokens", "overlap", "spans"),
    [
        (7, 2, [(0, 6), (4, 7)]),
        (10, 2, [(0, 6), (4, 10)]),  # the second ends the note: no third that only repeats
        (11, 2, [(0, 6), (4, 10), (8, 11)]),
        (12, 0, [(0, 6), (6, 12)]),
        (13, 0, [(0, 6), (6, 12), (12, 13)]),
        (8, 5, [(0, 6), (1, 7), (2, 8)]),
    ],
)
def test_windows_overlap_by_exactly_so_many_tokens(
    tokens: int, overlap: int, spans: list[tuple[int, int]]
) -> None:
    assert reading("windows", tokens, overlap_tokens=overlap) == TruncatedNote(
        tuple((span,) for span in spans), {}
    )


def test_what_lies_behind_the_last_allowed_window_is_cut() -> None:
    assert reading("windows", 100, max_windows=2) == TruncatedNote(
        (((0, 6),), ((4, 10),)), {AFTER_LAST_WINDOW_REASON: 90}
    )
    assert reading("windows", 10, max_windows=2).dropped_tokens == {}


def test_whole_sections_are_taken_by_importance_and_stand_in_the_order_of_the_note() -> None:
    marks = (
        SectionStart(0, ""),
        SectionStart(2, "cc"),
        SectionStart(5, "exam"),
        SectionStart(9, "plan"),
    )  # 2, 3, 4 and 3 tokens
    assert reading("sections", 12, marks=marks) == TruncatedNote(
        (((2, 5), (9, 12)),), {LOWER_PRIORITY_REASON: 6}
    )


def test_a_section_that_does_not_fit_makes_way_for_a_smaller_one() -> None:
    marks = (
        SectionStart(0, "cc"),
        SectionStart(4, "exam"),
        SectionStart(7, "plan"),
    )  # 4, 3 and 3 tokens
    assert reading("sections", 10, marks=marks) == TruncatedNote(
        (((4, 7), (7, 10)),), {LOWER_PRIORITY_REASON: 4}
    )


def test_sections_that_are_not_named_follow_in_the_order_of_the_note() -> None:
    marks = (
        SectionStart(0, "exam"),
        SectionStart(5, "social"),
        SectionStart(8, "family"),
    )  # 5, 3 and 3 tokens
    assert reading("sections", 11, marks=marks, room=8) == TruncatedNote(
        (((0, 5), (5, 8)),), {LOWER_PRIORITY_REASON: 3}
    )


def test_a_most_important_section_that_is_too_long_is_cut_at_its_end() -> None:
    marks = (SectionStart(0, "cc"), SectionStart(2, "plan"))
    found = reading("sections", 12, marks=marks)
    assert found == TruncatedNote((((2, 8),),), {PAST: 4, LOWER_PRIORITY_REASON: 2})
    assert list(found.dropped_tokens) == [PAST, LOWER_PRIORITY_REASON]  # the chief reason first


def test_a_section_that_comes_twice_counts_twice() -> None:
    marks = (SectionStart(0, "plan"), SectionStart(3, "exam"), SectionStart(9, "plan"))
    assert reading("sections", 12, marks=marks) == TruncatedNote(
        (((0, 3), (9, 12)),), {LOWER_PRIORITY_REASON: 6}
    )


def test_a_note_without_headings_is_read_from_its_head_under_a_reason_of_its_own() -> None:
    assert reading("sections", 10) == TruncatedNote((((0, 6),),), {NO_HEADING: 4})


def test_of_a_section_named_twice_the_first_place_counts() -> None:
    assert create_window_limits(
        spec("sections", sections=("Plan:", "cc", "PLAN")), 6
    ).section_ranks == {
        "plan": 0,
        "cc": 1,
    }


@pytest.mark.parametrize("keep", TRUNCATION_STRATEGIES)
def test_every_token_is_read_or_counted_and_no_window_is_too_long(keep: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens, room = int(rng.integers(0, 60)), int(rng.integers(1, 20))
        starts = [0, *sorted(rng.integers(0, tokens + 1, rng.integers(0, 6)).tolist())]
        marks = tuple(
            SectionStart(start, str(rng.choice(["plan", "cc", "exam", ""]))) for start in starts
        )
        overlap, most = int(rng.integers(0, room)), int(rng.integers(1, 9))
        found = reading(keep, tokens, room, marks, overlap_tokens=overlap, max_windows=most)
        seen = Counter(
            token
            for spans in found.windows
            for start, stop in spans
            for token in range(start, stop)
        )
        assert len(seen) + sum(found.dropped_tokens.values()) == tokens
        assert all(sum(stop - start for start, stop in spans) <= room for spans in found.windows)
        assert all(list(spans) == sorted(spans) for spans in found.windows)
        assert len(found.windows) <= (most if keep == "windows" else 1)
        assert keep == "windows" or set(seen.values()) <= {1}
        assert all(count > 0 for count in found.dropped_tokens.values())


@pytest.mark.parametrize("overlap", [6, 7])
def test_windows_that_overlap_wholly_are_refused(overlap: int) -> None:
    with pytest.raises(
        RecipeError, match=f"windows of 6 tokens of text cannot overlap by {overlap}"
    ) as refused:
        reading("windows", 10, overlap_tokens=overlap)
    assert refused.value.location == "reading.overlap_tokens" and "at most 5" in refused.value.hint
    reading("head", 10, overlap_tokens=overlap)  # where there are no windows it says nothing


@pytest.mark.parametrize("names", [(), ("plan", " : ")])
def test_sections_without_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="does not name them") as refused:
        reading("sections", 10, sections=names)
    assert refused.value.location == "truncation.sections"
