"""Books, passages and pairs of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clinpeft.recipe.spec import PositiveCount, RecipeSpec, UnitFraction
from clinpeft.recipe.specs import SplitFractionsSpec

PairKind = Literal[
    "term-definition",
    "question-answer",
    "heading-paragraph",
    "objective-section",
    "caption-paragraph",
    "adjacent",
    "abstract-section",
]


class PassagesSpec(RecipeSpec):
    """Which passages are used.

    Attributes:
        books: only these, by their titles. Empty: all.
        chapters: only these, by their titles. Empty: all.
    """

    books: tuple[str, ...] = ()
    chapters: tuple[str, ...] = ()


class ImportedPairsSpec(RecipeSpec):
    """Pairs from a file: paraphrases, questions written by a language model.

    Attributes:
        path: of a file of JSON lines.
        anchor: the key of the first text. Empty: one of ``anchor``, ``query``, ``question``,
            ``original``.
        positive: the key of the second. Empty: one of ``positive``, ``pos``, ``answer``,
            ``paraphrase``; a list gives one pair for each entry.
        kind: name of these pairs.
    """

    path: Path
    anchor: str = ""
    positive: str = ""
    kind: str = "imported"


class PairsSpec(RecipeSpec):
    """How passages become pairs.

    Attributes:
        kinds: which pairs are made from passages.
        imported: pairs from files, which are added.
        min_words: of either text; a term of one word has one.
        min_positive_words: of the second text.
        max_words: a longer text is cut after so many.
        section_words: how much of a section represents it, from its beginning.
        compat: ``cardio-study`` applies the filters of the study (arXiv 2511.19739) in their
            order, instead of the limits on words.
        deduplicate: ``none``, ``exact`` or ``near`` (exact, then MinHash), over both texts
            together.
        near_threshold: estimated Jaccard similarity of word 5-grams from which two pairs are near
            duplicates.
        ngram_words: length of the word n-grams by which a pair and an evaluation text are compared.
        max_overlap: fraction of a text's n-grams that may occur in evaluation texts before its pair
            is dropped.
        against_held_out: whether training pairs are also compared with the held-out pairs, where
            whole books or chapters are held out.
    """

    kinds: tuple[PairKind, ...] = (
        "term-definition",
        "question-answer",
        "heading-paragraph",
        "objective-section",
        "caption-paragraph",
        "adjacent",
        "abstract-section",
    )
    imported: tuple[ImportedPairsSpec, ...] = ()
    min_words: PositiveCount = 1
    min_positive_words: PositiveCount = 2
    max_words: PositiveCount = 400
    section_words: PositiveCount = 200
    compat: Literal["", "cardio-study"] = ""
    # Two pairs are duplicates only if both of their texts are
    deduplicate: Literal["none", "exact", "near"] = "near"
    near_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    ngram_words: Annotated[int, Field(ge=2)] = 8
    max_overlap: UnitFraction = 0.0
    # A split of pairs would lose all pairs whose passages are in two splits
    against_held_out: bool = True


class PairSplitSpec(SplitFractionsSpec):
    """Which pairs are for training and which for evaluation.

    Attributes:
        by: ``chapter`` or ``book``, as a whole; ``pair`` only to reproduce the study, where
            neighboring passages are in several splits.
        train, tuning, held_out: fractions of the pairs, which sum to 1; of whole books and chapters
            the nearest possible ones.
        held_out_names: titles of books or chapters that are held out, instead of a draw; of the
            rest, tuning is drawn.
        tuning_names: titles of those that are for tuning, instead of a draw.
        seed: of the draw.
    """

    by: Literal["book", "chapter", "pair"] = "chapter"
    held_out_names: tuple[str, ...] = ()
    tuning_names: tuple[str, ...] = ()
