"""Which pairs are no use: too short, saying the same twice, or what the study left out.

``cardio-study`` are the filters of the code beside arXiv 2511.19739 (``01_merge_paraphrases.py``), bug for bug: it looks for ``Copyright`` in a text
that was put into capitals, so that line of its list never matches, and is not in ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from clinpeft.core.schemas import Attrition
from clinpeft.data.textbooks.pairs.kinds import TextPair
from clinpeft.recipe.textbooks import PairsSpec

EMPTY_PAIR_SIDE = "a side is empty"
IDENTICAL_PAIR_SIDES = "both sides say the same"
BELOW_MIN_WORDS = "shorter than min_words"
STUDY_LENGTH = "study: not 3 to 500 words"
STUDY_BANNED_TEXT = "study: marks of a heading, a list or a licence"
STUDY_REFUSAL = "study: the paraphrase is a refusal"
STUDY_SECOND_PARAPHRASE = "study: a second paraphrase of the same original"

STUDY_BANNED_MARKS = (
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
STUDY_SECTION_MARK, STUDY_SECTION_EXCEPTIONS = (
    "SECTION ",
    ("DOPPLER", "ECHO", "CARDIAC", "VENTRICULAR"),
)
STUDY_REFUSAL_PHRASES = (
    "does not appear to be",
    "cannot be provided",
    "not a medical sentence",
    "rather a title or heading",
)


def filter_pairs(
    pairs: Iterable[TextPair], spec: PairsSpec, attrition: Attrition
) -> Iterator[TextPair]:
    """Pairs whose sides are long enough and differ, cut to ``max_words``, with single blanks."""
    for pair in pairs:
        attrition.entered_rows += 1
        sides = [pair.anchor.split(), pair.positive.split()]
        reason = _find_drop_reason(sides, spec)
        if reason:
            attrition.drop_rows(reason)
        else:
            anchor, positive = (" ".join(words[: spec.max_words]) for words in sides)
            yield pair._replace(anchor=anchor, positive=positive)


def _find_drop_reason(sides: list[list[str]], spec: PairsSpec) -> str:
    if not all(sides):
        return EMPTY_PAIR_SIDE
    if [word.casefold() for word in sides[0]] == [word.casefold() for word in sides[1]]:
        return IDENTICAL_PAIR_SIDES
    short = len(sides[0]) < spec.min_words or len(sides[1]) < max(
        spec.min_words, spec.min_positive_words
    )
    return BELOW_MIN_WORDS if short else ""


def filter_pairs_as_cardio_study(
    pairs: Iterable[TextPair], spec: PairsSpec, attrition: Attrition
) -> Iterator[TextPair]:
    """Pairs as the study kept them: one paraphrase an original, the first; in the order of the originals."""
    del spec
    kept: dict[str, TextPair] = {}
    for quoted in pairs:
        attrition.entered_rows += 1
        pair = quoted._replace(
            anchor=_strip_quotes(quoted.anchor), positive=_strip_quotes(quoted.positive)
        )
        key = pair.anchor.lower()
        reason = _find_study_drop_reason(pair) or (STUDY_SECOND_PARAPHRASE if key in kept else "")
        if reason:
            attrition.drop_rows(reason)
        else:
            kept[key] = pair
    yield from sorted(kept.values(), key=lambda pair: pair.anchor)


def _strip_quotes(text: str) -> str:
    return text.strip().strip("\"'“”‘’").strip()


def _find_study_drop_reason(pair: TextPair) -> str:
    sides = (pair.anchor, pair.positive)
    if not all(sides):
        return EMPTY_PAIR_SIDE
    if not all(3 <= len(side.split()) <= 500 for side in sides):
        return STUDY_LENGTH
    if pair.anchor.lower() == pair.positive.lower():
        return IDENTICAL_PAIR_SIDES
    if any(_is_banned(side.upper(), pair.anchor.upper()) for side in sides):
        return STUDY_BANNED_TEXT
    return (
        STUDY_REFUSAL
        if any(refusal in pair.positive.lower() for refusal in STUDY_REFUSAL_PHRASES)
        else ""
    )


def _is_banned(side: str, original: str) -> bool:
    return any(mark in side for mark in STUDY_BANNED_MARKS) or (
        STUDY_SECTION_MARK in side
        and not any(word in original for word in STUDY_SECTION_EXCEPTIONS)
    )


PAIR_FILTERS: dict[
    str, Callable[[Iterable[TextPair], PairsSpec, Attrition], Iterator[TextPair]]
] = {
    "": filter_pairs,
    "cardio-study": filter_pairs_as_cardio_study,
}
"""What ``pairs.compat`` names."""
