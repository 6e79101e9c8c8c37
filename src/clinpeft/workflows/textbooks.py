"""Books -> passages and pairs, and what is searched: made once for all runs that ask for the same."""

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
from clinpeft.recipe import EmbedRecipe, PairSplitSpec, PairsSpec, RetrievalSetSpec, SourceSpec
from clinpeft.runs import InputHashes
from clinpeft.training import Accelerator
from clinpeft.workflows.context import compute_cache_key, get_code_version

ALL_HELD_OUT_SPLIT = PairSplitSpec(train=0.0, tuning=0.0, held_out=1.0, by="book")
STUDY_PAIR_KINDS = ("similar", "different", "negation")


@dataclass(frozen=True)
class PairData:
    """What books hold.

    Attributes:
        passages: of schema ``tables.PASSAGE``.
        pairs: of schema ``tables.PAIR``.
        attrition: what was left out on the way.
        folder: where both lie.
    """

    passages: pa.Table
    pairs: pa.Table
    attrition: tuple[Attrition, ...]
    folder: Path


@dataclass(frozen=True)
class EmbeddingData:
    """All that a run of embed reads.

    Attributes:
        training_books: the books that are learned from, some chapters of which are held out.
        other_books: books that are only asked; None where there are none.
        retrieval_sets: name -> a set to search.
        general_retrieval_sets: likewise, of another field.
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
"""What ``source.name`` can be in a recipe of kind embed: books of one's own, or the handbook of the invented hospital."""

RETRIEVAL_SET_READERS: dict[str, Callable[[RetrievalSetSpec], RetrievalSet]] = {
    "beir": lambda spec: beir.read_beir(spec.path),
    "medquad": lambda spec: medquad.read_medquad(spec.path, spec.queries),
    "liveqa": lambda spec: medquad.read_medquad_liveqa(spec.path, _get_query_path(spec)),
}


def _get_query_path(spec: RetrievalSetSpec) -> Path:
    if spec.queries is None:
        raise RecipeError(
            f"the search set {spec.name!r} has no questions",
            location="evaluation.retrieval.asked",
            hint="name the file of test questions",
        )
    return spec.queries


def fingerprint_embedding_data(recipe: EmbedRecipe) -> str:
    """SHA-256 over the books, and over every other file that is read.

    Raises:
        RecipeError: the source is no shelf of books.
        SourceError: a file is missing.
    """
    digest = hashlib.sha256(
        _get_book_source(recipe.source).compute_fingerprint(recipe.source).encode()
    )
    scoring = recipe.evaluation
    if scoring.other_books:
        digest.update(textbooks.fingerprint_textbooks(scoring.other_books).encode())
    sets = [
        path
        for spec in (*scoring.retrieval, *scoring.general)
        for path in (spec.path, spec.queries)
    ]
    for path in (*(spec.path for spec in recipe.pairs.imported), scoring.study, *sets):
        digest.update(_hash_content(path).encode())
    return digest.hexdigest()


def _get_book_source(spec: SourceSpec) -> BookSource:
    if spec.name not in BOOK_SOURCES:
        hint = f'name = "books" with path = "a book or a folder of books", or one of: {", ".join(BOOK_SOURCES)}'
        raise RecipeError(
            f"the source {spec.name!r} holds no books", location="source.name", hint=hint
        )
    return BOOK_SOURCES[spec.name]


def _hash_content(path: Path | None) -> str:
    if path is None or not path.exists():
        return ""  # whoever reads it says that it is missing
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return " ".join(
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files
    )


def prepare_embedding_data(
    recipe: EmbedRecipe, home: Path, accelerator: Accelerator, hashes: InputHashes
) -> EmbeddingData:
    """Passages and pairs of the books, without what the evaluation asks; the first process makes them, the others wait."""
    scoring = recipe.evaluation
    search = {spec.name: RETRIEVAL_SET_READERS[spec.layout](spec) for spec in scoring.retrieval}
    general = {spec.name: RETRIEVAL_SET_READERS[spec.layout](spec) for spec in scoring.general}
    study = (
        {
            kind: pair_sets.read_pair_set(scoring.study / f"{kind}.jsonl", kind)
            for kind in STUDY_PAIR_KINDS
        }
        if scoring.study
        else {}
    )
    with accelerator.main_process_first():
        made = compute_cache_key(
            hashes.source,
            recipe.passages.model_dump(),
            recipe.pairs.model_dump(mode="json"),
            recipe.split.model_dump(),
            get_code_version(),
        )
        folder = home / "cache" / f"pairs-{made}"
        asked = list(_collect_evaluation_texts({**search, **general}, study))
        path = _get_book_source(recipe.source).locate_books(recipe.source, home / "cache")
        learned = _prepare_pair_data(path, recipe, recipe.split, folder, asked)
        other = None
        if scoring.other_books:
            other = _prepare_pair_data(
                scoring.other_books,
                recipe,
                ALL_HELD_OUT_SPLIT,
                folder.with_name(f"{folder.name}-other"),
                [],
            )
    return EmbeddingData(learned, other, search, general, study)


def _collect_evaluation_texts(
    retrieval_sets: dict[str, RetrievalSet], study_pairs: dict[str, pa.Table]
) -> Iterator[str]:
    """Every question of the evaluation, and every passage that answers one."""
    for found in retrieval_sets.values():
        yield from found.queries["text"].to_pylist()
        judged = set(found.relevance_judgments["passage_id"].to_pylist())
        rows = zip(
            found.passages["passage_id"].to_pylist(),
            found.passages["text"].to_pylist(),
            strict=True,
        )
        yield from (text for name, text in rows if name in judged)
    for table in study_pairs.values():
        yield from (*table["anchor"].to_pylist(), *table["positive"].to_pylist())


def _prepare_pair_data(
    path: Path, recipe: EmbedRecipe, split: PairSplitSpec, folder: Path, evaluation_texts: list[str]
) -> PairData:
    counted = folder / "attrition.json"
    if not counted.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        read, chosen = Attrition("passages"), Attrition("passages chosen")
        passages = textbooks.read_textbooks(path, read).read_all()
        only = recipe.passages if split is recipe.split else type(recipe.passages)()
        passages = pairs.select_passages(passages, only, chosen)
        pq.write_table(passages, folder / "passages.parquet", compression="zstd")
        spec: PairsSpec = (
            recipe.pairs
            if split is recipe.split
            else recipe.pairs.model_copy(update={"imported": ()})
        )
        made = pairs.build_pair_corpus(passages, spec, split, folder, evaluation_texts)
        runs.write_file_atomically(
            counted, json.dumps([step.as_json() for step in (read, chosen, *made.attrition)])
        )
    steps = tuple(
        Attrition.from_json(step) for step in json.loads(counted.read_text(encoding="utf-8"))
    )
    return PairData(
        pq.read_table(folder / "passages.parquet"),
        pq.read_table(folder / "pairs.parquet"),
        steps,
        folder,
    )
