"""Stays -> features that a logistic regression can use; whatever is estimated, is estimated on the training split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from clinpeft.core.errors import InputError
from clinpeft.core.schemas import COHORT_SCHEMA, LabelSpace, ProblemType

StayRowIndices = NDArray[np.int64]
DenseFeatures = NDArray[np.float64]
FeatureMatrix = sp.csr_array | DenseFeatures

FEATURE_BATCH_STAYS = 1024
MAX_VOCABULARY_NOTES = 100_000  # training notes that words are learned from, drawn at random where there are more: some 1 GB
TERM_HASH_BUCKETS = (
    2**20
)  # words are hashed, so that memory does not grow with the vocabulary; of 100,000 frequent terms one in twenty shares its bucket
MIN_DOCUMENT_FREQUENCIES = ((10_000, 5), (200, 2), (0, 1))
"""(training notes from, a term must stand in so many of them)."""
MAX_TFIDF_TERMS: dict[ProblemType, int] = {
    "binary": 50_000,
    "multiclass": 20_000,
    "multilabel": 20_000,
}
"""The terms in most notes are kept; fewer where there are many classes, since time and memory grow with both."""


@dataclass(frozen=True)
class BaselineCohort:
    """A cohort without its texts.

    Attributes:
        path: the Parquet file.
        table: all columns but ``text``.
        splits: the split of every stay.
        label_matrix: (stays, classes), 1 where a class applies.
    """

    path: Path
    table: pa.Table
    splits: NDArray[np.str_]
    label_matrix: sp.csr_array

    def find_split_rows(self, split: str) -> StayRowIndices:
        """The rows of a split."""
        return np.flatnonzero(self.splits == split)

    def iterate_row_batches(self) -> Iterator[StayRowIndices]:
        """All rows, some at a time."""
        for start in range(0, len(self.splits), FEATURE_BATCH_STAYS):
            yield np.arange(start, min(start + FEATURE_BATCH_STAYS, len(self.splits)))

    def iterate_texts(self, rows: StayRowIndices) -> Iterator[str]:
        """The texts of rows, which ascend, read batch by batch."""
        chosen = np.zeros(len(self.splits), np.bool_)
        chosen[rows] = True
        start = 0
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if chosen[start : start + size].any():
                    for batch in file.iter_batches(
                        FEATURE_BATCH_STAYS, row_groups=[group], columns=["text"]
                    ):
                        yield from (
                            batch.column(0)
                            .filter(pa.array(chosen[start : start + batch.num_rows]))
                            .to_pylist()
                        )
                        start += batch.num_rows
                else:
                    start += size


@dataclass(frozen=True)
class FittedFeatures:
    """Features whose parameters are fixed.

    Attributes:
        train_rows: the training stays they were learned from.
        train_features: (those stays, features).
        compute_features: rows, which ascend -> (stays, features).
    """

    train_rows: StayRowIndices
    train_features: FeatureMatrix
    compute_features: Callable[[StayRowIndices], FeatureMatrix]


def open_baseline_cohort(cohort: Path, label_space: LabelSpace) -> BaselineCohort:
    """A cohort and its answers.

    Raises:
        InputError: no cohort, an answer that is no class of the question, or nobody in ``train``.
    """
    try:
        table = pq.read_table(
            cohort, columns=[name for name in COHORT_SCHEMA.names if name != "text"]
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "this cannot be read as a cohort",
            location=str(cohort),
            hint="build it: clinpeft cohort build RECIPE",
        ) from error
    stays = BaselineCohort(
        cohort,
        table,
        np.array(table["split"].to_pylist(), dtype=np.str_),
        _build_label_matrix(table, label_space, cohort),
    )
    if not len(stays.find_split_rows("train")):
        raise InputError(
            "nobody is in the split train",
            location=str(cohort),
            hint="give split.train a larger share",
        )
    return stays


def _build_label_matrix(table: pa.Table, label_space: LabelSpace, location: Path) -> sp.csr_array:
    several = label_space.kind == "multilabel"
    column = table["labels" if several else "label"].combine_chunks()
    if column.null_count:
        message = f"{column.null_count} stays have no answer to {label_space.name}"
        raise InputError(
            message,
            location=str(location),
            hint=f"build the cohort as {label_space.kind}; unknown answers leave it",
        )
    places = np.asarray((column.flatten() if several else column).to_numpy(), dtype=np.int64)
    lengths = column.value_lengths().to_numpy() if several else np.ones(len(column), np.int64)
    if len(places) and not 0 <= places.min() <= places.max() < len(label_space.classes):
        message = f"answers run from {places.min()} to {places.max()}, and {label_space.name} has {len(label_space.classes)} classes"
        raise InputError(
            message, location=str(location), hint="give the question that the cohort was built with"
        )
    pointers = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_array(
        (np.ones(len(places), np.int64), places, pointers),
        shape=(table.num_rows, len(label_space.classes)),
    )


def fit_tfidf_features(
    cohort: BaselineCohort, label_space: LabelSpace, rng: np.random.Generator
) -> FittedFeatures:
    """TF-IDF of single words and pairs of neighbours: 1 + log of the count, times the smoothed inverse share of notes, each note of length 1.

    What a term is, and its weight, is as in ``TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))`` of scikit-learn, but that terms are hashed.
    """
    rows = cohort.find_split_rows("train")
    rows = np.sort(rng.choice(rows, min(MAX_VOCABULARY_NOTES, len(rows)), replace=False))
    counts = _hash_terms(cohort.iterate_texts(rows))
    kept = _select_frequent_terms(counts, MAX_TFIDF_TERMS[label_space.kind])
    weighting = TfidfTransformer(sublinear_tf=True).fit(counts[:, kept])

    def asked(rows: StayRowIndices) -> FeatureMatrix:
        return sp.csr_array(weighting.transform(_hash_terms(cohort.iterate_texts(rows))[:, kept]))

    return FittedFeatures(rows, sp.csr_array(weighting.transform(counts[:, kept])), asked)


def _hash_terms(texts: Iterable[str]) -> sp.csr_matrix:
    hashing = HashingVectorizer(
        ngram_range=(1, 2), n_features=TERM_HASH_BUCKETS, norm=None, alternate_sign=False
    )
    hashed: sp.csr_matrix = hashing.transform(texts)
    return hashed


def _select_frequent_terms(counts: sp.csr_matrix, max_terms: int) -> StayRowIndices:
    """The buckets that enough notes have, at most ``max_terms`` of them, ascending; of equals the first."""
    notes = np.bincount(counts.indices, minlength=counts.shape[1])
    fewest = next(least for size, least in MIN_DOCUMENT_FREQUENCIES if counts.shape[0] >= size)
    found = np.flatnonzero(notes >= fewest)
    found = (
        found if len(found) else np.arange(1)
    )  # not one word in all notes: a column of zeros, which tells nothing
    return np.sort(found[np.argsort(-notes[found], kind="stable")[:max_terms]])


def fit_length_features(
    cohort: BaselineCohort, label_space: LabelSpace, rng: np.random.Generator
) -> FittedFeatures:
    """How long a note is, and nothing of what it says: log(1 + words) and its square, standardised."""
    del label_space, rng

    def measured(rows: StayRowIndices) -> DenseFeatures:
        words = np.log1p([float(len(text.split())) for text in cohort.iterate_texts(rows)])
        return np.stack([words, words**2], axis=1)

    train, asked = _fit_standardization(cohort, measured)
    return FittedFeatures(cohort.find_split_rows("train"), train, asked)


def _fit_standardization(
    cohort: BaselineCohort, compute_columns: Callable[[StayRowIndices], DenseFeatures]
) -> tuple[DenseFeatures, Callable[[StayRowIndices], DenseFeatures]]:
    """Columns less their training mean, over their training standard deviation, where there is one; what is NaN becomes the mean.

    Returns:
        Those of the training split, and what makes those of any rows.
    """
    values = compute_columns(cohort.find_split_rows("train"))
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    deviation = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(deviation > 1e-12, deviation, 1.0)

    def scaled(values: DenseFeatures) -> DenseFeatures:
        return np.asarray(np.nan_to_num((values - mean) / scale, nan=0.0), dtype=np.float64)

    return scaled(values), lambda rows: scaled(compute_columns(rows))


def fit_admission_features(
    cohort: BaselineCohort, label_space: LabelSpace, rng: np.random.Generator
) -> FittedFeatures:
    """What is known of everybody at the door: age (standardised, and whether it is unknown), sex and admission type, a column each value.

    Values that no training stay has are no column; unknown is a value like others.
    """
    del label_space, rng
    train = cohort.find_split_rows("train")
    ages = np.array(
        [np.nan if age is None else age for age in cohort.table["age_years"].to_pylist()],
        dtype=np.float64,
    )
    age, age_of = _fit_standardization(cohort, lambda rows: ages[rows, None])
    named = [np.isnan(ages)]
    for column in ("sex", "admission_type"):
        values = np.array(
            ["" if value is None else f"={value}" for value in cohort.table[column].to_pylist()],
            dtype=np.str_,
        )
        named += [values == value for value in np.unique(values[train])]
    flags = np.stack(named, axis=1).astype(np.float64)
    return FittedFeatures(
        train, np.hstack([age, flags[train]]), lambda rows: np.hstack([age_of(rows), flags[rows]])
    )
