"""What a recipe can say about books, passages and pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clinpeft.recipe.spec import RecipeSpec, UnitFraction
from clinpeft.recipe.specs import PositiveCount, SplitFractionsSpec

PairKind = Literal[
    "term-definition",
    "question-answer",
    "heading-paragraph",
    "objective-section",
    "caption-paragraph",
    "adjacent",
    "abstract-section",
]


class BookSourceSpec(RecipeSpec):
    """Where the books are.

    Attributes:
        path: a book, or a folder of books.
        scan_models: folder with the models of docling, which reads scanned books; none: a scan is refused.
    """

    path: Path
    scan_models: Path | None = None


class PassagesSpec(RecipeSpec):
    """Which passages are used.

    Attributes:
        books: only these, by their titles. Empty: all.
        chapters: only these, by their titles. Empty: all.
    """

    books: tuple[str, ...] = ()
    chapters: tuple[str, ...] = ()


class ImportedPairsSpec(RecipeSpec):
    """Pairs made elsewhere: paraphrases, questions that a language model wrote.

    Attributes:
        path: of a file of JSON lines.
        anchor: the key that holds the first text. Empty: one of ``anchor``, ``query``, ``question``, ``original``.
        positive: the key that holds the second. Empty: one of ``positive``, ``pos``, ``answer``, ``paraphrase``; a list gives one pair an entry.
        kind: what these pairs are called.
    """

    path: Path
    anchor: str = ""
    positive: str = ""
    kind: str = "imported"


class PairsSpec(RecipeSpec):
    """How passages become pairs.

    Attributes:
        kinds: which pairs are made of passages.
        imported: pairs made elsewhere, which are added.
        min_words: of either side; a term of one word has one.
        min_positive_words: of the second side.
        max_words: a longer text is cut after so many.
        section_words: how much of a section stands for it, from its beginning.
        compat: ``cardio-study`` applies the filters of the study (arXiv 2511.19739) in their order, in place of the limits on words.
        deduplicate: ``none``, ``exact`` or ``near`` (exact, then MinHash), over both sides together.
        near_threshold: estimated Jaccard similarity of word 5-grams from which two pairs are near duplicates.
        ngram_words: length of the word n-grams by which a pair and an evaluation text are compared.
        max_overlap: share of a text's n-grams that may stand in evaluation texts before its pair is dropped.
        against_held_out: whether training pairs are also compared with the pairs held out, where whole books or chapters are.
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
    deduplicate: Literal["none", "exact", "near"] = "near"
    near_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    ngram_words: Annotated[int, Field(ge=2)] = 8
    max_overlap: UnitFraction = 0.0
    against_held_out: bool = True


class PairSplitSpec(SplitFractionsSpec):
    """Which pairs are learned from and which are asked.

    Attributes:
        by: ``chapter`` or ``book``, as a whole; ``pair`` only to reproduce the study, whose neighbours straddle its splits.
        train, tuning, held_out: shares of the pairs, which sum to 1; of whole books and chapters the nearest that can be had.
        held_out_names: titles of books or chapters that are held out, in place of a draw; of the rest, tuning is drawn.
        tuning_names: titles of those that are for tuning, in place of a draw.
        seed: of the draw.
    """

    by: Literal["book", "chapter", "pair"] = "chapter"
    held_out_names: tuple[str, ...] = ()
    tuning_names: tuple[str, ...] = ()
