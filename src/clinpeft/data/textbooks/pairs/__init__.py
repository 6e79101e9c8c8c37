"""Passages -> pairs of related texts: without duplicates, split so that evaluation is on new text.

```
kinds.py     passages -> pairs, one function for each kind     pair_files.py  imported pairs
filters.py   which pairs are useless                           overlap.py     shared word n-grams
split.py     training, tuning and held-out books or chapters
```
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import InputError, RecipeError, SourceError
from clinpeft.core.schemas import PAIR_SCHEMA, Attrition
from clinpeft.data.formats import working_folder
from clinpeft.data.formats.hashing import create_stable_id
from clinpeft.data.formats.hints import format_drop_reasons, suggest_name
from clinpeft.data.notes import deduplicate
from clinpeft.data.textbooks.pairs import pair_files
from clinpeft.data.textbooks.pairs.filters import PAIR_FILTERS
from clinpeft.data.textbooks.pairs.kinds import PAIR_BUILDERS, PassageRow, TextPair, index_book
from clinpeft.data.textbooks.pairs.overlap import NgramIndex, is_contaminated
from clinpeft.data.textbooks.pairs.split import assign_pair_splits
from clinpeft.recipe.textbooks import PairSplitSpec, PairsSpec, PassagesSpec

__all__ = ["PAIR_BUILDERS", "PairCorpus", "build_pair_corpus", "select_passages"]

OVERLAPS_EVALUATION_TEXT = "shares an n-gram with an evaluation text"
OVERLAPS_HELD_OUT_PAIR = "shares an n-gram with a pair held out"
_PAIR_BATCH_SIZE, _DATABASE_MEGABYTES = 1024, 512


@dataclass(frozen=True)
class PairCorpus:
    """Pairs for training and evaluation.

    Attributes:
        path: one Parquet file of ``PAIR_SCHEMA``.
        attrition: one entry for each step, in order; each step receives what the one before kept.
        counts: (kind, split) -> number of pairs.
    """

    path: Path
    attrition: tuple[Attrition, ...]
    counts: Mapping[tuple[str, str], int]


def build_pair_corpus(
    passages: pa.Table | pa.RecordBatchReader,
    spec: PairsSpec,
    split: PairSplitSpec,
    folder: Path,
    evaluation_texts: Iterable[str] = (),
) -> PairCorpus:
    """Writes the pairs of books to ``folder/pairs.parquet``, all of them or nothing.

    Args:
        passages: of ``PASSAGE_SCHEMA``, each book in reading order; held in memory, about 10 MB a
            book.
        spec: which pairs are built, and which are dropped.
        split: unit and fractions of the splits.
        folder: for the pairs, and for temporary files, which are removed.
        evaluation_texts: texts of evaluation sets; a pair that shares words with one is dropped
            from every split.

    Raises:
        RecipeError: a named book or chapter has no pairs.
        InputError: a pair file cannot be used, fewer than two pairs remain, or a requested split is
            empty.
        SourceError: there is no passage, and nothing is imported.
        StorageError: the disk is full; earlier pairs in ``folder`` are intact.
    """
    if isinstance(passages, pa.RecordBatchReader):
        passages = pa.Table.from_batches(passages, passages.schema)
    rows = passages.to_pylist()
    if not rows and not spec.imported:
        raise SourceError(
            "there are 0 passages to build pairs from",
            location="source",
            hint="give books that hold text",
        )
    # The filters consume the generator, so both counts are complete after this line.
    built, filtered = Attrition("pairs"), Attrition("filter")
    pairs = list(PAIR_FILTERS[spec.compat](_collect_pairs(rows, spec, built), spec, filtered))
    _check_pair_count(pairs, filtered)
    path = folder / "pairs.parquet"
    with working_folder.create_working_folder(folder) as partial:
        pairs, deduplicated = _deduplicate_pairs(pairs, spec, partial)
        # Before the split: an overlap with an evaluation text is dropped from every split.
        decontaminated = Attrition("decontaminate", entered_rows=len(pairs))
        ngrams = NgramIndex(spec.ngram_words)
        ngrams.add_texts(evaluation_texts)
        pairs = [
            pair
            for pair in pairs
            if not is_contaminated((pair.anchor, pair.positive), ngrams, spec.max_overlap)
        ]
        decontaminated.drop_rows(OVERLAPS_EVALUATION_TEXT, decontaminated.entered_rows - len(pairs))
        _check_pair_count(pairs, decontaminated)
        pair_splits = list(zip(pairs, assign_pair_splits(pairs, split), strict=True))
        pair_splits, separated = _remove_held_out_overlap(pair_splits, spec, split)
        _write_pairs(pair_splits, partial / "pairs.parquet")
        with working_folder.translate_storage_errors(folder):
            (partial / "pairs.parquet").replace(path)
    counts = Counter((pair.kind, name) for pair, name in pair_splits)
    return PairCorpus(
        path, (built, filtered, *deduplicated, decontaminated, separated), dict(counts)
    )


def select_passages(passages: pa.Table, spec: PassagesSpec, attrition: Attrition) -> pa.Table:
    """Selects the passages of the books and chapters that a recipe names; all where it names none.

    Args:
        passages: of ``PASSAGE_SCHEMA``.
        spec: titles of books and chapters.
        attrition: updated by what entered and what is dropped.

    Raises:
        RecipeError: a book or chapter does not exist.
    """
    attrition.entered_rows += passages.num_rows
    for column, names in (("book", spec.books), ("chapter", spec.chapters)):
        titles = set(passages[column].to_pylist())
        for name in names:
            if name not in titles:
                suggestion = suggest_name(name, [title for title in titles if title])
                raise RecipeError(
                    f"no {column} is called {name[:80]!r}",
                    location=f"passages.{column}s",
                    hint=suggestion or f"there are {len(titles)} {column}s",
                )
        if names:
            # By title, so chapters of several books may be selected together.
            selected = passages.filter(pc.is_in(passages[column], pa.array(names, pa.string())))
            attrition.drop_rows(f"{column} not asked for", passages.num_rows - selected.num_rows)
            passages = selected
    return passages


def _collect_pairs(
    rows: Sequence[PassageRow], spec: PairsSpec, attrition: Attrition
) -> Iterator[TextPair]:
    """Yields the pairs of the books and of the imported files; passages without one are counted."""
    # groupby needs no sorting: the passages of a book are adjacent.
    books = [
        index_book(list(group)) for _, group in itertools.groupby(rows, key=lambda row: row["book"])
    ]
    from_books = (
        pair for kind in spec.kinds for book in books for pair in PAIR_BUILDERS[kind](book, spec)
    )
    passages = {row["passage_id"]: row for row in rows}
    imported = (
        pair for file in spec.imported for pair in pair_files.read_pair_file(file, passages)
    )
    for candidate in itertools.chain(from_books, imported):
        attrition.entered_rows += 1
        if isinstance(candidate, TextPair):
            yield candidate
        else:  # the reason why there is no pair
            attrition.drop_rows(candidate)


def _check_pair_count(pairs: Sequence[TextPair], attrition: Attrition) -> None:
    """Raises for fewer than two pairs: contrastive training needs another pair as a negative."""
    if len(pairs) < 2:
        reasons = format_drop_reasons(attrition.dropped_rows)
        message = f"{len(pairs)} pair is left" if pairs else "no pair is left"
        raise InputError(
            message + (f" ({reasons})" if reasons else ""),
            location=f"pairs: {attrition.step}",
            hint="give more books or pairs; contrastive training needs at least two",
        )


def _deduplicate_pairs(
    pairs: list[TextPair], spec: PairsSpec, partial: Path
) -> tuple[list[TextPair], list[Attrition]]:
    """Drops pairs whose two sides, together, repeat those of an earlier pair."""
    with deduplicate.open_text_writer(spec.deduplicate, partial, spec.near_threshold) as write:
        for start in range(0, len(pairs), _PAIR_BATCH_SIZE):
            batch = pairs[start : start + _PAIR_BATCH_SIZE]
            write([f"{pair.anchor} {pair.positive}" for pair in batch])
    with contextlib.closing(
        working_folder.create_working_database(partial, _DATABASE_MEGABYTES)
    ) as connection:
        dropped, attrition = deduplicate.find_duplicates(
            spec.deduplicate, connection, partial, len(pairs), spec.near_threshold, unit="pair"
        )
    unique = [
        pair for pair, is_dropped in zip(pairs, dropped.tolist(), strict=True) if not is_dropped
    ]
    return unique, attrition


def _remove_held_out_overlap(
    pair_splits: list[tuple[TextPair, str]], spec: PairsSpec, split: PairSplitSpec
) -> tuple[list[tuple[TextPair, str]], Attrition]:
    """Drops training and tuning pairs that share n-grams with held-out ones.

    Books quote each other and themselves, so separate books or chapters alone do not suffice.
    """
    attrition = Attrition("split", entered_rows=len(pair_splits))
    # Pairs of one chapter share words by nature: a split by pair accepts that.
    if not spec.against_held_out or split.by == "pair":
        return pair_splits, attrition
    ngrams = NgramIndex(spec.ngram_words)
    ngrams.add_texts(
        text
        for pair, name in pair_splits
        if name == "held_out"
        for text in (pair.anchor, pair.positive)
    )
    separated = [
        (pair, name)
        for pair, name in pair_splits
        if name == "held_out"
        or not is_contaminated((pair.anchor, pair.positive), ngrams, spec.max_overlap)
    ]
    attrition.drop_rows(OVERLAPS_HELD_OUT_PAIR, len(pair_splits) - len(separated))
    return separated, attrition


def _write_pairs(pair_splits: Sequence[tuple[TextPair, str]], path: Path) -> None:
    """Writes pairs as ``PAIR_SCHEMA``; the id is a hash of kind and texts."""
    # Counted over all batches: a repeated pair gets another id wherever it is.
    id_counts = Counter[str]()
    with working_folder.open_parquet_writer(path, PAIR_SCHEMA) as write:
        for start in range(0, len(pair_splits), _PAIR_BATCH_SIZE):
            pairs, splits = zip(*pair_splits[start : start + _PAIR_BATCH_SIZE], strict=True)
            columns: dict[str, Sequence[object]] = dict(
                zip(TextPair._fields, zip(*pairs, strict=True), strict=True)
            )
            columns["pair_id"] = [
                create_stable_id((pair.kind, pair.anchor, pair.positive), id_counts)
                for pair in pairs
            ]
            columns["split"] = splits
            arrays = [pa.array(columns[field.name], field.type) for field in PAIR_SCHEMA]
            write(pa.record_batch(arrays, schema=PAIR_SCHEMA))
