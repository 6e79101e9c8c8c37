"""Which pairs are no use: too short, saying the same twice, or what the study left out.

``cardio-study`` are the filters of the code beside arXiv 2511.19739 (``01_merge_paraphrases.py``), bug for bug: it looks for ``Copyright`` in a text
that was put into capitals, so that line of its list never matches, and is not in ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks.pairs.kinds import Pair
from clinpeft.recipe.textbooks import PairsSpec

EMPTY = "a side is empty"
SAME = "both sides say the same"
SHORT = "shorter than min_words"
STUDY_LENGTH = "study: not 3 to 500 words"
STUDY_BANNED = "study: marks of a heading, a list or a licence"
STUDY_REFUSAL = "study: the paraphrase is a refusal"
STUDY_SECOND = "study: a second paraphrase of the same original"

BANNED = (
    "TABLE OF CONTENTS",
    "CHAPTER ",
    "PAGE ",
    "FIGURE ",
    "©",
    "INDEX",
    "APPENDIX",
    "REFERENCES",
    "PERSONAL PERSPECTIVES",
)
SECTION, SAVED_BY = "SECTION ", ("DOPPLER", "ECHO", "CARDIAC", "VENTRICULAR")
REFUSALS = (
    "does not appear to be",
    "cannot be provided",
    "not a medical sentence",
    "rather a title or heading",
)


def plain(pairs: Iterable[Pair], spec: PairsSpec, attrition: Attrition) -> Iterator[Pair]:
    """Pairs whose sides are long enough and differ, cut to ``max_words``, with single blanks."""
    for pair in pairs:
        attrition.entered_rows += 1
        sides = [pair.anchor.split(), pair.positive.split()]
        reason = _plain_reason(sides, spec)
        if reason:
            attrition.drop_rows(reason)
        else:
            anchor, positive = (" ".join(words[: spec.max_words]) for words in sides)
            yield pair._replace(anchor=anchor, positive=positive)


def _plain_reason(sides: list[list[str]], spec: PairsSpec) -> str:
    if not all(sides):
        return EMPTY
    if [word.casefold() for word in sides[0]] == [word.casefold() for word in sides[1]]:
        return SAME
    short = len(sides[0]) < spec.min_words or len(sides[1]) < max(
        spec.min_words, spec.min_positive_words
    )
    return SHORT if short else ""


def cardio_study(pairs: Iterable[Pair], spec: PairsSpec, attrition: Attrition) -> Iterator[Pair]:
    """Pairs as the study kept them: one paraphrase an original, the first; in the order of the originals."""
    del spec
    kept: dict[str, Pair] = {}
    for quoted in pairs:
        attrition.entered_rows += 1
        pair = quoted._replace(anchor=_unquoted(quoted.anchor), positive=_unquoted(quoted.positive))
        key = pair.anchor.lower()
        reason = _study_reason(pair) or (STUDY_SECOND if key in kept else "")
        if reason:
            attrition.drop_rows(reason)
        else:
            kept[key] = pair
    yield from sorted(kept.values(), key=lambda pair: pair.anchor)


def _unquoted(text: str) -> str:
    return text.strip().strip("\"'“”‘’").strip()


def _study_reason(pair: Pair) -> str:
    sides = (pair.anchor, pair.positive)
    if not all(sides):
        return EMPTY
    if not all(3 <= len(side.split()) <= 500 for side in sides):
        return STUDY_LENGTH
    if pair.anchor.lower() == pair.positive.lower():
        return SAME
    if any(_banned(side.upper(), pair.anchor.upper()) for side in sides):
        return STUDY_BANNED
    return STUDY_REFUSAL if any(refusal in pair.positive.lower() for refusal in REFUSALS) else ""


def _banned(side: str, original: str) -> bool:
    return any(mark in side for mark in BANNED) or (
        SECTION in side and not any(word in original for word in SAVED_BY)
    )


FILTERS: dict[str, Callable[[Iterable[Pair], PairsSpec, Attrition], Iterator[Pair]]] = {
    "": plain,
    "cardio-study": cardio_study,
}
"""What ``pairs.compat`` names."""
