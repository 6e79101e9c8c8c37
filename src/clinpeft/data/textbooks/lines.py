"""Lines of print -> running text: words cut at line ends are made whole again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD_PATTERN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_HYPHENATED_END_PATTERN = re.compile(
    r"(?P<word>[^\W\d_]+(?:-[^\W\d_]+)*)[-\u00ad\u2010\ufffe\u0002]$"
)
_WORD_START_PATTERN = re.compile(r"[^\W\d_]+")


def count_unbroken_words(lines: Iterable[str]) -> Counter[str]:
    """How often each word stands in full in these lines: not at the end of a line with a hyphen, nor at the start of the line after."""
    counts, cut = Counter[str](), False
    for line in lines:
        words = [match[0].lower() for match in _WORD_PATTERN.finditer(line)]
        after, cut = cut, bool(_HYPHENATED_END_PATTERN.search(line))
        counts.update(words[int(after) : len(words) - int(cut)])
    return counts


def join_hyphenated_lines(lines: Sequence[str], word_counts: Counter[str]) -> str:
    """One text from lines.

    A hyphen at the end of a line goes where the next line begins in lower case, unless the book knows the word only with it (``follow-up``).
    Numbers are never joined: ``10-`` and ``20`` stay a range.

    Args:
        lines: without their ends.
        word_counts: the words of the book, ``vocabulary``.
    """
    text = ""
    for line in (line.strip() for line in lines):
        cut = _HYPHENATED_END_PATTERN.search(text)
        rest = _WORD_START_PATTERN.match(line)
        if cut and rest and rest[0][0].islower():
            text = (
                text[:-1] + ("-" if _keeps_hyphen(cut["word"], rest[0], word_counts) else "") + line
            )
        elif cut or text.endswith("-"):
            text = f"{text[:-1]}-{line}"
        else:
            text = f"{text} {line}" if text else line
    return text


def _keeps_hyphen(before: str, after: str, word_counts: Counter[str]) -> bool:
    return word_counts[f"{before}-{after}".lower()] > word_counts[f"{before}{after}".lower()]
