"""Data step of ``embed``: passages and pairs of textbooks, and the sets that are searched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import runs
from clinpeft.core.errors import RecipeError
from clinpeft.core.schemas import Attrition, RetrievalSet
from clinpeft.data import textbooks
from clinpeft.data.retrieval import beir, medquad, pair_sets
from clinpeft.data.synthetic import handbook
from clinpeft.data.textbooks import pairs
from clinpeft.recipe import EmbedRecipe, PairSplitSpec, PassagesSpec, RetrievalSetSpec, SourceSpec
from clinpeft.runs import InputHashes
from clinpeft.workflows.context import RunContext, get_code_version
from clinpeft.workflows.task_cohorts import hash_path_content

ALL_HELD_OUT_SPLIT = PairSplitSpec(train=0.0, tuning=0.0, held_out=1.0, by="book")
STUDY_PAIR_KINDS = ("similar", "different", "negation")


@dataclass(frozen=True)
class PairData:
    """Passages and pairs of books.

    Attributes:
        passages: of schema ``PASSAGE_SCHEMA``.
        pairs: of schema ``PAIR_SCHEMA``.
        attrition: what was left out at which step, for which reason.
        folder: in the cache, where both are.
    """

    passages: pa.Table
    pairs: pa.Table
    attrition: tuple[Attrition, ...]
    folder: Path


@dataclass(frozen=True)
class EmbeddingData:
    """Everything that a run of ``embed`` reads.

    Attributes:
        training_books: books that are trained on, some chapters of which are held out.
        other_books: books that are only evaluated on; None where there are none.
        retrieval_sets: name -> a retrieval set.
        general_retrieval_sets: the same, of another field.
        study_pairs: ``similar``, ``different``, ``negation`` -> pairs; empty without them.
    """

    training_books: PairData
    other_books: PairData | None
    retrieval_sets: dict[str, RetrievalSet]
    general_retrieval_sets: dict[str, RetrievalSet]
    study_pairs: dict[str, pa.Table]


@dataclass(frozen=True)
class BookSource:
    """Where books come from.

    Attributes:
        locate_books: spec and cache folder -> a book, or a folder of books.
        compute_fingerprint: SHA-256 in hexadecimal over what would be read.
    """

    locate_books: Callable[[SourceSpec, Path], Path]
    compute_fingerprint: Callable[[SourceSpec], str]


def _get_source_path(spec: SourceSpec) -> Path:
    if spec.path is None:
        raise RecipeError(
            "the source 'books' has no path",
            location="source.path",
            hint='write path = "a book or a folder of books"',
        )
    return spec.path


BOOK_SOURCES: dict[str, BookSource] = {
    "books": BookSource(
        lambda spec, _: _get_source_path(spec),
        lambda spec: textbooks.fingerprint_textbooks(_get_source_path(spec)),
    ),
    "handbook": BookSource(
        lambda _, cache: handbook.write_handbook(
            cache / f"handbook-{handbook.fingerprint_handbook()[:12]}"
        ),
        lambda _: handbook.fingerprint_handbook(),
    ),
}
"""``source.name`` of a recipe of kind ``embed`` -> where its books come from: the user's own, or
the handbook of the synthetic hospital."""

RETRIEVAL_SET_READERS: dict[str, Callable[[RetrievalSetSpec], RetrievalSet]] = {
    "beir": lambda spec: beir.read_beir(spec.path),
    "medquad": lambda spec: medquad.read_medquad(spec.path, spec.queries),
    "liveqa": lambda spec: medquad.read_medquad_liveqa(spec.path, _get_query_path(spec)),
}
"""``layout`` of a retrieval set -> how it is read."""


def _get_query_path(spec: RetrievalSetSpec) -> Path:
    if spec.queries is None:
        raise RecipeError(
            f"the retrieval set {spec.name!r} has no questions",
            location="evaluation.retrieval.queries",
            hint="name the file of test questions",
        )
    return spec.queries


def fingerprint_embedding_data(recipe: EmbedRecipe) -> str:
    """Compute SHA-256 over the books and every other file that a recipe reads.

    Raises:
        RecipeError: the source holds no books.
        SourceError: a book is missing.
    """
    source, spec = recipe.source, recipe.evaluation
    digest = hashlib.sha256(_get_book_source(source).compute_fingerprint(source).encode())
    if spec.other_books:
        digest.update(textbooks.fingerprint_textbooks(spec.other_books).encode())
    sets = [path for each in (*spec.retrieval, *spec.general) for path in (each.path, each.queries)]
    for path in (*(each.path for each in recipe.pairs.imported), spec.study, *sets):
        # A missing file is reported by its reader, which knows what it is for.
        digest.update(hash_path_content(path).encode())
    return digest.hexdigest()


def _get_book_source(spec: SourceSpec) -> BookSource:
    if spec.name not in BOOK_SOURCES:
        raise RecipeError(
            f"the source {spec.name!r} holds no books",
            location="source.name",
            hint='name = "books" with path = "a book or a folder of books", '
            f"or one of: {', '.join(BOOK_SOURCES)}",
        )
    return BOOK_SOURCES[spec.name]


def prepare_embedding_data(
    recipe: EmbedRecipe, hashes: InputHashes, context: RunContext
) -> EmbeddingData:
    """Read books as passages and pairs, without the texts of the evaluation.

    They are computed once for all runs that need the same; the first process computes them, the
    others wait.

    Args:
        recipe: books, kinds of pairs, split, evaluation sets.
        hashes: of the run; that of the source is part of the cache key.
        context: home and processes.
    """
    spec = recipe.evaluation
    retrieval = {each.name: RETRIEVAL_SET_READERS[each.layout](each) for each in spec.retrieval}
    general = {each.name: RETRIEVAL_SET_READERS[each.layout](each) for each in spec.general}
    study = (
        {
            kind: pair_sets.read_pair_set(spec.study / f"{kind}.jsonl", kind)
            for kind in STUDY_PAIR_KINDS
        }
        if spec.study
        else {}
    )
    with context.accelerator.main_process_first():
        folder = context.get_cache_path(
            "pairs",
            hashes.source,
            recipe.passages.model_dump(),
            recipe.pairs.model_dump(mode="json"),
            recipe.split.model_dump(),
            get_code_version(),
        )
        evaluation_texts = list(_collect_evaluation_texts({**retrieval, **general}, study))
        books = _get_book_source(recipe.source).locate_books(recipe.source, context.cache)
        training_books = _prepare_pair_data(books, recipe, folder, evaluation_texts)
        other_books = None
        if spec.other_books:
            # All of them are evaluated on, so that nothing is chosen, imported or left out.
            other_recipe = recipe.model_copy(
                update={
                    "split": ALL_HELD_OUT_SPLIT,
                    "passages": PassagesSpec(),
                    "pairs": recipe.pairs.model_copy(update={"imported": ()}),
                }
            )
            other_folder = folder.with_name(f"{folder.name}-other")
            other_books = _prepare_pair_data(spec.other_books, other_recipe, other_folder, [])
    return EmbeddingData(training_books, other_books, retrieval, general, study)


def _collect_evaluation_texts(
    retrieval_sets: dict[str, RetrievalSet], study_pairs: dict[str, pa.Table]
) -> Iterator[str]:
    """Every query of the evaluation, and every passage that is judged for one."""
    for retrieval_set in retrieval_sets.values():
        yield from retrieval_set.queries["text"].to_pylist()
        judged = set(retrieval_set.relevance_judgments["passage_id"].to_pylist())
        ids = retrieval_set.passages["passage_id"].to_pylist()
        texts = retrieval_set.passages["text"].to_pylist()
        yield from (text for name, text in zip(ids, texts, strict=True) if name in judged)
    for table in study_pairs.values():
        yield from (*table["anchor"].to_pylist(), *table["positive"].to_pylist())


def _prepare_pair_data(
    books: Path, recipe: EmbedRecipe, folder: Path, evaluation_texts: list[str]
) -> PairData:
    """Read books into ``folder`` unless that was done before."""
    path = folder / "attrition.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        read, selected = Attrition("passages"), Attrition("passages chosen")
        passages = textbooks.read_textbooks(books, read).read_all()
        passages = pairs.select_passages(passages, recipe.passages, selected)
        pq.write_table(passages, folder / "passages.parquet", compression="zstd")
        built = pairs.build_pair_corpus(
            passages, recipe.pairs, recipe.split, folder, evaluation_texts
        )
        steps = [step.as_json() for step in (read, selected, *built.attrition)]
        runs.write_file_atomically(path, json.dumps(steps))  # last: the data is complete
    steps = json.loads(path.read_text(encoding="utf-8"))
    return PairData(
        pq.read_table(folder / "passages.parquet"),
        pq.read_table(folder / "pairs.parquet"),
        tuple(Attrition.from_json(step) for step in steps),
        folder,
    )
