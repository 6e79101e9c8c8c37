"""Filters of pairs: too short, two equal sides, or what a published study left out.

``cardio-study`` are the filters of the code of arXiv 2511.19739 (``01_merge_paraphrases.py``),
including its bugs: it looks for ``Copyright`` in a text that was converted to capitals, so that
line of its list never matches, and is not in ours.
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

# The trailing blanks are the study's: "CHAPTER " spares the word "CHAPTERS".
STUDY_BANNED_MARKS = (
    *("TABLE OF CONTENTS", "CHAPTER ", "PAGE ", "FIGURE ", "©"),
    *("INDEX", "APPENDIX", "REFERENCES", "PERSONAL PERSPECTIVES"),
)
STUDY_SECTION_MARK = "SECTION "
# "Section" is an anatomical or echocardiographic term next to these words of the original.
STUDY_SECTION_EXCEPTIONS = ("DOPPLER", "ECHO", "CARDIAC", "VENTRICULAR")
STUDY_REFUSAL_PHRASES = (
    *("does not appear to be", "cannot be provided"),
    *("not a medical sentence", "rather a title or heading"),
)


def filter_pairs(
    pairs: Iterable[TextPair], spec: PairsSpec, attrition: Attrition
) -> Iterator[TextPair]:
    """Yields pairs whose sides are long enough and differ.

    Sides are cut to ``max_words``, with single blanks between words.

    Args:
        pairs: in any order, which is kept.
        spec: ``min_words``, ``min_positive_words`` and ``max_words``.
        attrition: updated while the pairs are consumed.
    """
    for pair in pairs:
        attrition.entered_rows += 1
        sides = anchor, positive = pair.anchor.split(), pair.positive.split()
        min_positive_words = max(spec.min_words, spec.min_positive_words)
        if not all(sides):
            attrition.drop_rows(EMPTY_PAIR_SIDE)
        elif [word.casefold() for word in anchor] == [word.casefold() for word in positive]:
            attrition.drop_rows(IDENTICAL_PAIR_SIDES)
        elif len(anchor) < spec.min_words or len(positive) < min_positive_words:
            attrition.drop_rows(BELOW_MIN_WORDS)
        else:
            yield pair._replace(
                anchor=" ".join(anchor[: spec.max_words]),
                positive=" ".join(positive[: spec.max_words]),
            )


def filter_pairs_as_cardio_study(
    pairs: Iterable[TextPair], spec: PairsSpec, attrition: Attrition
) -> Iterator[TextPair]:
    """Yields pairs as the study (arXiv 2511.19739) did: the first paraphrase of each original.

    Args:
        pairs: originals as anchors, paraphrases as positives.
        spec: not used; the signature is that of every filter.
        attrition: updated while the pairs are consumed.

    Returns:
        Pairs sorted by their originals.
    """
    del spec
    accepted: dict[str, TextPair] = {}
    for quoted_pair in pairs:
        attrition.entered_rows += 1
        anchor, positive = (
            # Paraphrases by a language model often come in quotes.
            side.strip().strip("\"'“”‘’").strip()
            for side in (quoted_pair.anchor, quoted_pair.positive)
        )
        pair = quoted_pair._replace(anchor=anchor, positive=positive)
        reason = _find_study_drop_reason(pair)
        if reason or anchor.lower() in accepted:
            attrition.drop_rows(reason or STUDY_SECOND_PARAPHRASE)
        else:
            accepted[anchor.lower()] = pair
    yield from sorted(accepted.values(), key=lambda pair: pair.anchor)


def _find_study_drop_reason(pair: TextPair) -> str:
    """Returns why the study drops a pair; empty for a pair it keeps. The order is the study's."""
    sides = (pair.anchor, pair.positive)
    if not all(sides):
        return EMPTY_PAIR_SIDE
    if not all(3 <= len(side.split()) <= 500 for side in sides):
        return STUDY_LENGTH
    if pair.anchor.lower() == pair.positive.lower():
        return IDENTICAL_PAIR_SIDES
    is_section_term = any(word in pair.anchor.upper() for word in STUDY_SECTION_EXCEPTIONS)
    marks = (*STUDY_BANNED_MARKS, *(() if is_section_term else (STUDY_SECTION_MARK,)))
    if any(mark in side.upper() for mark in marks for side in sides):
        return STUDY_BANNED_TEXT
    is_refusal = any(phrase in pair.positive.lower() for phrase in STUDY_REFUSAL_PHRASES)
    return STUDY_REFUSAL if is_refusal else ""


PAIR_FILTERS: dict[
    str, Callable[[Iterable[TextPair], PairsSpec, Attrition], Iterator[TextPair]]
] = {
    "": filter_pairs,
    "cardio-study": filter_pairs_as_cardio_study,
}
"""What ``pairs.compat`` of a recipe may be."""
