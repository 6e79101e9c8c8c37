"""Printed lines -> running text: words hyphenated at line ends are joined again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_WORD_PATTERN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
# Hyphen-minus, soft hyphen, hyphen, and the two codes by which PDFium marks a line-end hyphen.
_HYPHENATED_END_PATTERN = re.compile(
    r"(?P<word>[^\W\d_]+(?:-[^\W\d_]+)*)[-\u00ad\u2010\ufffe\u0002]$"
)
_WORD_START_PATTERN = re.compile(r"[^\W\d_]+")


def count_unbroken_words(lines: Iterable[str]) -> Counter[str]:
    """Counts the words that are complete within these lines, in lower case.

    Excluded are the word before a hyphen at a line end and the first word of the line after it.
    """
    counts, is_after_hyphen = Counter[str](), False
    for line in lines:
        words = [match[0].lower() for match in _WORD_PATTERN.finditer(line)]
        ends_in_hyphen = bool(_HYPHENATED_END_PATTERN.search(line))
        counts.update(words[int(is_after_hyphen) : len(words) - int(ends_in_hyphen)])
        is_after_hyphen = ends_in_hyphen
    return counts


def join_hyphenated_lines(lines: Sequence[str], word_counts: Counter[str]) -> str:
    """Joins lines to one text.

    A hyphen at the end of a line is removed where the next line begins in lower case, unless the
    book has the word more often with the hyphen (``follow-up``). Numbers are never joined: ``10-``
    and ``20`` stay a range.

    Args:
        lines: without their line ends.
        word_counts: the words of the book, as ``count_unbroken_words`` counts them.
    """
    text = ""
    for line in (line.strip() for line in lines):
        hyphenated = _HYPHENATED_END_PATTERN.search(text)
        continuation = _WORD_START_PATTERN.match(line)
        if hyphenated and continuation and continuation[0][0].islower():
            before, after = hyphenated["word"], continuation[0]
            with_hyphen = word_counts[f"{before}-{after}".lower()]
            is_compound = with_hyphen > word_counts[f"{before}{after}".lower()]
            # A tie, such as a word that occurs nowhere else, joins the two halves.
            text = text[:-1] + ("-" if is_compound else "") + line
        elif hyphenated or text.endswith("-"):
            text = f"{text[:-1]}-{line}"
        else:
            text = f"{text} {line}" if text else line
    return text
