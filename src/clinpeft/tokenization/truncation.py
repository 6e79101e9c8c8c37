"""Which tokens of a note longer than a window are read, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from clinpeft.core.errors import RecipeError
from clinpeft.recipe import TruncationSpec
from clinpeft.tokenization.headings import normalize_heading_name

TokenSpan = tuple[int, int]
"""First token of a span of a note, and the one after its last."""

LOWER_PRIORITY_REASON = "in a section of lower priority"
AFTER_LAST_WINDOW_REASON = "behind the last window"
MIDDLE_OF_NOTE_REASON = "in the middle of the note"


@dataclass(frozen=True)
class SectionStart:
    """A section of a note by its first token.

    Attributes:
        start: the token.
        name: its heading by ``normalize_heading_name``.
    """

    start: int
    name: str


@dataclass(frozen=True)
class TokenizedNote:
    """A note as its number of tokens and its sections, which are empty where it has no heading."""

    token_count: int
    section_starts: tuple[SectionStart, ...] = ()


@dataclass(frozen=True)
class WindowLimits:
    """What fits into the windows of a note.

    Attributes:
        text_tokens: tokens of text in a window.
        overlap_tokens: tokens that two adjacent windows share.
        max_windows: windows of one note.
        section_ranks: normalized name of a section -> its rank, 0 for the most important.
    """

    text_tokens: int
    overlap_tokens: int
    max_windows: int
    section_ranks: dict[str, int]


@dataclass(frozen=True)
class TruncatedNote:
    """The tokens of a note that are read.

    Attributes:
        windows: the spans of each window, in the order of the note.
        dropped_tokens: reason -> tokens that are not read, the main reason first.
    """

    windows: tuple[tuple[TokenSpan, ...], ...]
    dropped_tokens: dict[str, int]


def create_window_limits(spec: TruncationSpec, text_tokens: int) -> WindowLimits:
    """Return the limits that a recipe sets for windows of ``text_tokens`` tokens of text.

    Raises:
        RecipeError: windows that overlap completely, or sections without names.
    """
    if spec.keep == "windows" and spec.overlap_tokens >= text_tokens:
        raise RecipeError(
            f"windows of {text_tokens} tokens of text cannot overlap by {spec.overlap_tokens}",
            location="truncation.overlap_tokens",
            hint=f"at most {text_tokens - 1}, or a larger base.max_tokens",
        )
    # a name of punctuation alone is empty after normalization and matches no heading
    names = [normalize_heading_name(name) for name in spec.sections]
    if spec.keep == "sections" and not (names and all(names)):
        raise RecipeError(
            f'keep = "sections" needs names of sections, and sections = {list(spec.sections)}',
            location="truncation.sections",
            hint='name headings, the most important first, such as ["chief complaint"]',
        )
    # reversed, so that the first rank of a repeated name wins
    ranks = {name: rank for rank, name in reversed(list(enumerate(names)))}
    return WindowLimits(text_tokens, spec.overlap_tokens, spec.max_windows, ranks)


def truncate_note(note: TokenizedNote, strategy: str, limits: WindowLimits) -> TruncatedNote:
    """Return the tokens of a note that are read.

    A note that fits is read completely whatever the strategy; a note without tokens has one empty
    window.

    Args:
        note: its length and its sections.
        strategy: a key of ``TRUNCATION_STRATEGIES``.
        limits: what fits.
    """
    if note.token_count <= limits.text_tokens:
        return TruncatedNote((((0, note.token_count),),), {})
    return TRUNCATION_STRATEGIES[strategy](note, limits)


def _keep_head(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    reason = f"past the first {limits.text_tokens} tokens of the note"
    dropped = note.token_count - limits.text_tokens
    return TruncatedNote((((0, limits.text_tokens),),), {reason: dropped})


def _keep_tail(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    reason = f"before the last {limits.text_tokens} tokens of the note"
    start = note.token_count - limits.text_tokens  # also the number of dropped tokens
    return TruncatedNote((((start, note.token_count),),), {reason: start})


def _keep_head_and_tail(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    """Half of the window each; the head takes the odd token."""
    # Sun et al. 2019 (arXiv 1905.05583) truncate long texts to head and tail
    tail = limits.text_tokens // 2
    spans = ((0, limits.text_tokens - tail), (note.token_count - tail, note.token_count))
    return TruncatedNote((spans,), {MIDDLE_OF_NOTE_REASON: note.token_count - limits.text_tokens})


def _keep_windows(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    """Overlapping windows, full but for the last; the last one has tokens of its own."""
    stride = limits.text_tokens - limits.overlap_tokens
    # a window that began later would hold only tokens of the one before
    starts = range(0, note.token_count - limits.overlap_tokens, stride)[: limits.max_windows]
    spans = [(start, min(start + limits.text_tokens, note.token_count)) for start in starts]
    dropped = note.token_count - spans[-1][1]
    reasons = {AFTER_LAST_WINDOW_REASON: dropped} if dropped else {}
    return TruncatedNote(tuple((span,) for span in spans), reasons)


def _keep_sections(note: TokenizedNote, limits: WindowLimits) -> TruncatedNote:
    """Whole sections by rank while they fit, read in the order of the note.

    The most important section is cut at its end if it does not fit.
    """
    if not note.section_starts:
        reason = f"no heading, and past the first {limits.text_tokens} tokens of the note"
        windows = _keep_head(note, limits).windows
        return TruncatedNote(windows, {reason: note.token_count - limits.text_tokens})
    # parallel lists: name, start and span of each section
    names = [section.name for section in note.section_starts]
    starts = [section.start for section in note.section_starts]
    # sections cover the note, so each ends where the next begins
    spans = list(pairwise([*starts, note.token_count]))
    # unnamed sections rank last; sections of one rank keep the order of the note
    last_rank = len(limits.section_ranks)
    ranks = [limits.section_ranks.get(name, last_rank) for name in names]
    first, *others = sorted(range(len(spans)), key=lambda section: (ranks[section], section))
    start, stop = spans[first]
    selected = {first: (start, min(stop, start + limits.text_tokens))}
    free_tokens = max(0, limits.text_tokens - (stop - start))
    # greedy: a section that does not fit is skipped, and a shorter one of lower rank may follow
    for section in others:
        length = spans[section][1] - spans[section][0]
        if length <= free_tokens:
            selected[section], free_tokens = spans[section], free_tokens - length
    # a section is whole unless it is the first, so only the first can lose tokens at its end
    past_first = stop - selected[first][1]
    selected_tokens = sum(stop - start for start, stop in selected.values())
    dropped = {
        f"past the first {limits.text_tokens} tokens of the most important section": past_first,
        LOWER_PRIORITY_REASON: note.token_count - past_first - selected_tokens,
    }
    return TruncatedNote(
        (tuple(selected[section] for section in sorted(selected)),),
        {reason: count for reason, count in dropped.items() if count},
    )


TRUNCATION_STRATEGIES: dict[str, Callable[[TokenizedNote, WindowLimits], TruncatedNote]] = {
    "head": _keep_head,
    "tail": _keep_tail,
    "head-and-tail": _keep_head_and_tail,
    "sections": _keep_sections,
    "windows": _keep_windows,
}
"""``TruncationSpec.keep`` -> which tokens are read of a note that does not fit."""
