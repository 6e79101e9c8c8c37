"""Passages -> pairs of texts that belong together, without repetition, split so that what is asked was not learned.

```
kinds.py        passages -> pairs, one function a kind        imported.py     pairs made elsewhere
filters.py      which are no use                              overlap.py      which share words with evaluation texts
partition.py    which are learned from and which are asked
```
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import InputError, RecipeError, SourceError
from clinpeft.core.schemas import PAIR_SCHEMA, Attrition
from clinpeft.data.formats import working_folder
from clinpeft.data.notes import deduplicate
from clinpeft.data.textbooks.pairs import pair_files
from clinpeft.data.textbooks.pairs.filters import PAIR_FILTERS
from clinpeft.data.textbooks.pairs.kinds import PAIR_BUILDERS, TextPair, PassageRow, index_book
from clinpeft.data.textbooks.pairs.overlap import NgramIndex, is_contaminated
from clinpeft.data.textbooks.pairs.split import assign_pair_splits
from clinpeft.recipe.textbooks import PairSplitSpec, PairsSpec, PassagesSpec

__all__ = [
    "PAIR_BUILDERS",
    "PairCorpus",
    "build_pair_corpus",
    "read_evaluation_texts",
    "select_passages",
]

OVERLAPS_EVALUATION_TEXT = "shares an n-gram with an evaluation text"
OVERLAPS_HELD_OUT_PAIR = "shares an n-gram with a pair held out"
_PAIR_BATCH_SIZE, _DATABASE_MEGABYTES = 1024, 512


@dataclass(frozen=True)
class PairCorpus:
    """Pairs to learn from and to be asked.

    Attributes:
        path: one Parquet file of schema ``tables.PAIR``.
        attrition: one entry a step, in order; what enters a step is what the one before kept.
        counts: (kind, split) -> how many.
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
    """The pairs of books, written to ``folder/pairs.parquet`` at once and whole, or not at all.

    Args:
        passages: of schema ``tables.PASSAGE``, each book in reading order; held in memory, some 10 MB a book.
        spec: which pairs, and which of them are dropped.
        split: who is held out.
        folder: where the pairs go; temporary files live in it too, and are removed.
        evaluation_texts: texts that are used to evaluate; a pair that shares words with one is dropped from every split.

    Raises:
        RecipeError: a book or chapter is named that has no pairs.
        InputError: a pair file cannot be used; fewer than two pairs are left; a split that is asked for gets none.
        SourceError: there is no passage, and nothing is imported.
        StorageError: the disk is full; pairs that stood in ``folder`` before are intact.
    """
    rows = (
        pa.Table.from_batches(passages, passages.schema)
        if isinstance(passages, pa.RecordBatchReader)
        else passages
    ).to_pylist()
    if not rows and not spec.imported:
        raise SourceError(
            "there are 0 passages to make pairs of",
            location="source",
            hint="give books that hold text",
        )
    made, filtered = Attrition("pairs"), Attrition("filter")
    kept = list(PAIR_FILTERS[spec.compat](_collect_pairs(rows, spec, made), spec, filtered))
    _check_pair_count(kept, filtered)
    with working_folder.create_working_folder(folder) as partial:
        kept, repeated = _deduplicate_pairs(kept, spec, partial)
        kept, clean = _remove_evaluation_overlap(kept, spec, evaluation_texts)
        _check_pair_count(kept, clean)
        placed = list(zip(kept, assign_pair_splits(kept, split), strict=True))
        placed, apart = _remove_held_out_overlap(placed, spec, split)
        _write_pairs(placed, partial / "pairs.parquet")
        with working_folder.translate_storage_errors(folder):
            (partial / "pairs.parquet").replace(folder / "pairs.parquet")
    counts = Counter((pair.kind, name) for pair, name in placed)
    return PairCorpus(
        folder / "pairs.parquet", (made, filtered, *repeated, clean, apart), dict(counts)
    )


def select_passages(passages: pa.Table, spec: PassagesSpec, attrition: Attrition) -> pa.Table:
    """The passages of the books and chapters that are asked for.

    Raises:
        RecipeError: a book or chapter that is not there.
    """
    attrition.entered_rows += passages.num_rows
    for column, names in (("book", spec.books), ("chapter", spec.chapters)):
        there = set(passages[column].to_pylist())
        for name in names:
            if name not in there:
                near = difflib.get_close_matches(name, [title for title in there if title], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {len(there)} {column}s"
                raise RecipeError(
                    f"no {column} is called {name[:80]!r}",
                    location=f"passages.{column}s",
                    hint=hint,
                )
        if names:
            found = passages.filter(pc.is_in(passages[column], pa.array(names, pa.string())))
            attrition.drop_rows(f"{column} not asked for", passages.num_rows - found.num_rows)
            passages = found
    return passages


def read_evaluation_texts(paths: Iterable[Path]) -> Iterator[str]:
    """All texts of files of JSON lines, whatever their keys are called: every string, and every string in a list.

    Raises:
        InputError: a file cannot be read, or a line is no JSON.
    """
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig") as file:
                for line in file:
                    if line.strip():
                        yield from _iterate_strings(json.loads(line))
        except (OSError, ValueError) as error:
            message = f"this file of evaluation texts cannot be read ({type(error).__name__})"
            raise InputError(message, location=str(path), hint="give UTF-8 JSON lines") from None


def _iterate_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _iterate_strings(inner)


def _collect_pairs(
    rows: Sequence[PassageRow], spec: PairsSpec, attrition: Attrition
) -> Iterator[TextPair]:
    """All pairs that the books and the imported files give; what gave none is counted by its reason."""
    books = [
        index_book(list(group)) for _, group in itertools.groupby(rows, key=lambda row: row["book"])
    ]
    made = (
        found for kind in spec.kinds for book in books for found in PAIR_BUILDERS[kind](book, spec)
    )
    known = {row["passage_id"]: row for row in rows}
    given = (found for file in spec.imported for found in pair_files.read_pair_file(file, known))
    for found in itertools.chain(made, given):
        attrition.entered_rows += 1
        if isinstance(found, TextPair):
            yield found
        else:
            attrition.drop_rows(found)


def _check_pair_count(pairs: Sequence[TextPair], attrition: Attrition) -> None:
    """One pair has nothing to be told apart from."""
    if len(pairs) < 2:
        dropped = ", ".join(
            f"{count:,} × {reason}" for reason, count in sorted(attrition.dropped_rows.items())
        )
        message = f"{len(pairs)} pair is left" if pairs else "no pair is left"
        hint = "give more books or pairs; learning by contrast needs two at the least"
        raise InputError(
            message + (f" ({dropped})" if dropped else ""),
            location=f"pairs: {attrition.step}",
            hint=hint,
        )


def _deduplicate_pairs(
    pairs: list[TextPair], spec: PairsSpec, partial: Path
) -> tuple[list[TextPair], list[Attrition]]:
    """Pairs whose two sides together do not say again what those of an earlier pair said."""
    steps = deduplicate.DEDUPLICATION_STEPS[spec.deduplicate]
    with contextlib.ExitStack() as files:
        told = [
            files.enter_context(step.open_writer(partial, spec.near_threshold)) for step in steps
        ]
        for batch in (
            pairs[at : at + _PAIR_BATCH_SIZE] for at in range(0, len(pairs), _PAIR_BATCH_SIZE)
        ):
            words = [
                deduplicate.normalize_words(f"{pair.anchor} {pair.positive}") for pair in batch
            ]
            for remember in told:
                remember(words)
    dropped, attritions = np.zeros(len(pairs), np.bool_), []
    with contextlib.closing(
        working_folder.create_working_database(partial, _DATABASE_MEGABYTES)
    ) as connection:
        for step in steps:
            attrition = Attrition(step.name, entered_rows=int((~dropped).sum()))
            found = step.find_duplicates(connection, partial, dropped, spec.near_threshold)
            attrition.drop_rows(step.reason.replace("note", "pair"), int(found.sum()))
            dropped |= found
            attritions.append(attrition)
    return [
        pair for pair, gone in zip(pairs, dropped.tolist(), strict=True) if not gone
    ], attritions


def _remove_evaluation_overlap(
    pairs: list[TextPair], spec: PairsSpec, evaluation_texts: Iterable[str]
) -> tuple[list[TextPair], Attrition]:
    attrition = Attrition("decontaminate", entered_rows=len(pairs))
    grams = NgramIndex(spec.ngram_words)
    grams.add_texts(evaluation_texts)
    kept = [
        pair
        for pair in pairs
        if not is_contaminated((pair.anchor, pair.positive), grams, spec.max_overlap)
    ]
    attrition.drop_rows(OVERLAPS_EVALUATION_TEXT, len(pairs) - len(kept))
    return kept, attrition


def _remove_held_out_overlap(
    pair_splits: list[tuple[TextPair, str]], spec: PairsSpec, split: PairSplitSpec
) -> tuple[list[tuple[TextPair, str]], Attrition]:
    """Books quote each other and themselves: what is learned from must not hold what is asked, where whole books or chapters are held out."""
    attrition = Attrition("split", entered_rows=len(pair_splits))
    if not spec.against_held_out or split.by == "pair":
        return pair_splits, attrition
    grams = NgramIndex(spec.ngram_words)
    grams.add_texts(
        text
        for pair, name in pair_splits
        if name == "held_out"
        for text in (pair.anchor, pair.positive)
    )
    kept = [
        (pair, name)
        for pair, name in pair_splits
        if name == "held_out"
        or not is_contaminated((pair.anchor, pair.positive), grams, spec.max_overlap)
    ]
    attrition.drop_rows(OVERLAPS_HELD_OUT_PAIR, len(pair_splits) - len(kept))
    return kept, attrition


def _write_pairs(pair_splits: Sequence[tuple[TextPair, str]], path: Path) -> None:
    used = Counter[str]()
    with working_folder.open_parquet_writer(path, PAIR_SCHEMA) as write:
        for batch in (
            pair_splits[at : at + _PAIR_BATCH_SIZE]
            for at in range(0, len(pair_splits), _PAIR_BATCH_SIZE)
        ):
            columns: dict[str, Sequence[object]] = dict(
                zip(TextPair._fields, zip(*(pair for pair, _ in batch), strict=True), strict=True)
            )
            columns["pair_id"] = [_create_pair_id(pair, used) for pair, _ in batch]
            columns["split"] = [name for _, name in batch]
            write(
                pa.record_batch(
                    [pa.array(columns[field.name], field.type) for field in PAIR_SCHEMA],
                    schema=PAIR_SCHEMA,
                )
            )


def _create_pair_id(pair: TextPair, id_counts: Counter[str]) -> str:
    """A hash of kind and texts; the second pair that is alike in both gets ``-2``."""
    key = hashlib.blake2b(
        "\0".join((pair.kind, pair.anchor, pair.positive)).encode(), digest_size=8
    ).hexdigest()
    id_counts[key] += 1
    return key if id_counts[key] == 1 else f"{key}-{id_counts[key]}"
