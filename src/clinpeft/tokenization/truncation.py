"""What of a note longer than a window is read: which of its tokens, in which windows, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from clinpeft.core.errors import RecipeError
from clinpeft.recipe import TruncationSpec
from clinpeft.tokenization.headings import normalize_heading_name

TokenSpan = tuple[int, int]
"""First token of a note, and the one behind the last."""

LOWER_PRIORITY_REASON = "in a section of lower priority"
AFTER_LAST_WINDOW_REASON = "behind the last window"
MIDDLE_OF_NOTE_REASON = "in the middle of the note"


@dataclass(frozen=True)
class SectionStart:
    """A section of a note that begins at a token; ``name`` is the ``headings.key`` of its heading."""

    start: int
    name: str


@dataclass(frozen=True)
class TokenizedNote:
    """A note as its number of tokens and, where they are asked for, its sections; without any heading there are none."""

    token_count: int
    section_starts: tuple[SectionStart, ...] = ()


@dataclass(frozen=True)
class WindowLimits:
    """What fits.

    Attributes:
        text_tokens: tokens of text in a window.
        overlap_tokens: tokens that two neighbouring windows share.
        max_windows: of one note.
        section_ranks: ``headings.key`` of a section -> its place in the order of importance.
    """

    text_tokens: int
    overlap_tokens: int
    max_windows: int
    section_ranks: dict[str, int]


@dataclass(frozen=True)
class TruncatedNote:
    """What is read of a note: for each window its spans, in the order of the note; and reason -> tokens that are not read, the chief reason first."""

    windows: tuple[tuple[TokenSpan, ...], ...]
    dropped_tokens: dict[str, int]


def create_window_limits(spec: TruncationSpec, text_tokens: int) -> WindowLimits:
    """What a recipe allows for windows of ``text_tokens`` tokens of text.

    Raises:
        RecipeError: windows that overlap wholly, or sections without names.
    """
    if spec.keep == "windows" and spec.overlap_tokens >= text_tokens:
        message = f"windows of {text_tokens} tokens of text cannot overlap by {spec.overlap_tokens}"
        raise RecipeError(
            message,
            location="reading.overlap_tokens",
            hint=f"at most {text_tokens - 1}, or a larger base.max_tokens",
        )
    names = [normalize_heading_name(name) for name in spec.sections]
    if spec.keep == "sections" and not (names and all(names)):
        message = (
            f"sections are to be kept, and sections = {list(spec.sections)} does not name them"
        )
        raise RecipeError(
            message,
            location="truncation.sections",
            hint='name headings, the most important first, such as ["chief complaint"]',
        )
    rank = {
        name: at for at, name in reversed(list(enumerate(names)))
    }  # of a name that comes twice, the first counts
    return WindowLimits(text_tokens, spec.overlap_tokens, spec.max_windows, rank)


def truncate_note(note: TokenizedNote, strategy: str, limits: WindowLimits) -> TruncatedNote:
    """What is read of a note; a note that fits is read whole, whatever ``strategy`` says, and one without tokens in one empty window."""
    if note.token_count <= limits.text_tokens:
        return TruncatedNote((((0, note.token_count),),), {})
    return TRUNCATION_STRATEGIES[strategy](note, limits)


def _keep_head(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    return TruncatedNote(
        (((0, limits.text_tokens),),),
        {
            f"past the first {limits.text_tokens} tokens of the note": note.token_count
            - limits.text_tokens
        },
    )


def _keep_tail(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    cut = note.token_count - limits.text_tokens
    return TruncatedNote(
        (((cut, note.token_count),),),
        {f"before the last {limits.text_tokens} tokens of the note": cut},
    )


def _keep_head_and_tail(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    """Half of the room each; of an odd room the head has one more."""
    last = limits.text_tokens // 2
    return TruncatedNote(
        (((0, limits.text_tokens - last), (note.token_count - last, note.token_count)),),
        {MIDDLE_OF_NOTE_REASON: note.token_count - limits.text_tokens},
    )


def _keep_windows(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    """Every window but the last is full; none holds only what the one before it has shown already."""
    starts = range(
        0, note.token_count - limits.overlap_tokens, limits.text_tokens - limits.overlap_tokens
    )[: limits.max_windows]
    spans = [(start, min(start + limits.text_tokens, note.token_count)) for start in starts]
    behind = note.token_count - spans[-1][1]
    return TruncatedNote(
        tuple((span,) for span in spans), {AFTER_LAST_WINDOW_REASON: behind} if behind else {}
    )


def _keep_sections(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    """Whole sections down the order of importance, each that still fits, in the order of the note; the first is cut at its end if it must be."""
    if not note.section_starts:
        return TruncatedNote(
            _keep_head(note, limits).windows,
            {
                f"no heading, and past the first {limits.text_tokens} tokens of the note": note.token_count
                - limits.text_tokens
            },
        )
    starts = [mark.start for mark in note.section_starts]
    spans = list(pairwise([*starts, note.token_count]))
    first, *others = sorted(
        range(len(spans)),
        key=lambda at: (
            limits.section_ranks.get(note.section_starts[at].name, len(limits.section_ranks)),
            at,
        ),
    )
    start, stop = spans[first]
    taken, left = (
        {first: (start, min(stop, start + limits.text_tokens))},
        max(0, limits.text_tokens - (stop - start)),
    )
    for at in others:
        start, stop = spans[at]
        if stop - start <= left:
            taken[at], left = (start, stop), left - (stop - start)
    past = spans[first][1] - taken[first][1]
    lower = note.token_count - past - sum(stop - start for start, stop in taken.values())
    dropped = {
        f"past the first {limits.text_tokens} tokens of the most important section": past,
        LOWER_PRIORITY_REASON: lower,
    }
    return TruncatedNote(
        (tuple(taken[at] for at in sorted(taken)),),
        {reason: count for reason, count in dropped.items() if count},
    )


TRUNCATION_STRATEGIES: dict[str, Callable[[TokenizedNote, WindowLimits], TruncatedNote]] = {
    "head": _keep_head,
    "tail": _keep_tail,
    "head-and-tail": _keep_head_and_tail,
    "sections": _keep_sections,
    "windows": _keep_windows,
}
"""``ReadingSpec.keep`` -> what is read of a note that does not fit."""
