"""What of a note longer than a window is read: which of its tokens, in which windows, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from clinpeft.core.errors import RecipeError
from clinpeft.recipe import TruncationSpec
from clinpeft.tokenization.headings import key

Span = tuple[int, int]
"""First token of a note, and the one behind the last."""

LOWER_PRIORITY = "in a section of lower priority"
BEHIND = "behind the last window"
MIDDLE = "in the middle of the note"


@dataclass(frozen=True)
class Mark:
    """A section of a note that begins at a token; ``name`` is the ``headings.key`` of its heading."""

    start: int
    name: str


@dataclass(frozen=True)
class Note:
    """A note as its number of tokens and, where they are asked for, its sections; without any heading there are none."""

    tokens: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What fits.

    Attributes:
        room: tokens of text in a window.
        overlap: tokens that two neighbouring windows share.
        max_windows: of one note.
        rank: ``headings.key`` of a section -> its place in the order of importance.
    """

    room: int
    overlap: int
    max_windows: int
    rank: dict[str, int]


@dataclass(frozen=True)
class Read:
    """What is read of a note: for each window its spans, in the order of the note; and reason -> tokens that are not read, the chief reason first."""

    windows: tuple[tuple[Span, ...], ...]
    dropped: dict[str, int]


def limits(spec: TruncationSpec, room: int) -> Limits:
    """What a recipe allows for windows of ``room`` tokens of text.

    Raises:
        RecipeError: windows that overlap wholly, or sections without names.
    """
    if spec.keep == "windows" and spec.overlap_tokens >= room:
        message = f"windows of {room} tokens of text cannot overlap by {spec.overlap_tokens}"
        raise RecipeError(
            message,
            location="reading.overlap_tokens",
            hint=f"at most {room - 1}, or a larger base.max_tokens",
        )
    names = [key(name) for name in spec.sections]
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
    return Limits(room, spec.overlap_tokens, spec.max_windows, rank)


def read(note: Note, keep: str, allowed: Limits) -> Read:
    """What is read of a note; a note that fits is read whole, whatever ``keep`` says, and one without tokens in one empty window."""
    if note.tokens <= allowed.room:
        return Read((((0, note.tokens),),), {})
    return KEEP[keep](note, allowed)


def _head(note: Note, allowed: Limits) -> Read:
    return Read(
        (((0, allowed.room),),),
        {f"past the first {allowed.room} tokens of the note": note.tokens - allowed.room},
    )


def _tail(note: Note, allowed: Limits) -> Read:
    cut = note.tokens - allowed.room
    return Read(
        (((cut, note.tokens),),), {f"before the last {allowed.room} tokens of the note": cut}
    )


def _head_and_tail(note: Note, allowed: Limits) -> Read:
    """Half of the room each; of an odd room the head has one more."""
    last = allowed.room // 2
    return Read(
        (((0, allowed.room - last), (note.tokens - last, note.tokens)),),
        {MIDDLE: note.tokens - allowed.room},
    )


def _windows(note: Note, allowed: Limits) -> Read:
    """Every window but the last is full; none holds only what the one before it has shown already."""
    starts = range(0, note.tokens - allowed.overlap, allowed.room - allowed.overlap)[
        : allowed.max_windows
    ]
    spans = [(start, min(start + allowed.room, note.tokens)) for start in starts]
    behind = note.tokens - spans[-1][1]
    return Read(tuple((span,) for span in spans), {BEHIND: behind} if behind else {})


def _sections(note: Note, allowed: Limits) -> Read:
    """Whole sections down the order of importance, each that still fits, in the order of the note; the first is cut at its end if it must be."""
    if not note.marks:
        return Read(
            _head(note, allowed).windows,
            {
                f"no heading, and past the first {allowed.room} tokens of the note": note.tokens
                - allowed.room
            },
        )
    starts = [mark.start for mark in note.marks]
    spans = list(pairwise([*starts, note.tokens]))
    first, *others = sorted(
        range(len(spans)),
        key=lambda at: (allowed.rank.get(note.marks[at].name, len(allowed.rank)), at),
    )
    start, stop = spans[first]
    taken, left = (
        {first: (start, min(stop, start + allowed.room))},
        max(0, allowed.room - (stop - start)),
    )
    for at in others:
        start, stop = spans[at]
        if stop - start <= left:
            taken[at], left = (start, stop), left - (stop - start)
    past = spans[first][1] - taken[first][1]
    lower = note.tokens - past - sum(stop - start for start, stop in taken.values())
    dropped = {
        f"past the first {allowed.room} tokens of the most important section": past,
        LOWER_PRIORITY: lower,
    }
    return Read(
        (tuple(taken[at] for at in sorted(taken)),),
        {reason: count for reason, count in dropped.items() if count},
    )


KEEP: dict[str, Callable[[Note, Limits], Read]] = {
    "head": _head,
    "tail": _tail,
    "head-and-tail": _head_and_tail,
    "sections": _sections,
    "windows": _windows,
}
"""``ReadingSpec.keep`` -> what is read of a note that does not fit."""
