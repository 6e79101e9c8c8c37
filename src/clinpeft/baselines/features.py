"""Stays -> features of a logistic regression, all estimates from the training split alone."""

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
# Training notes that words are counted in, drawn at random where there are more: about 1 GB.
MAX_VOCABULARY_NOTES = 100_000
# Words are hashed, so that memory does not grow with the vocabulary; of 100,000 frequent terms one
# in twenty shares its bucket.
TERM_HASH_BUCKETS = 2**20
# (training notes from, notes that a term must occur in)
MIN_DOCUMENT_FREQUENCIES = ((10_000, 5), (200, 2), (0, 1))
# The terms that occur in most notes; fewer where there are many classes, since time and memory grow
# with both.
MAX_TFIDF_TERMS: dict[ProblemType, int] = {
    "binary": 50_000,
    "multiclass": 20_000,
    "multilabel": 20_000,
}


@dataclass(frozen=True)
class BaselineCohort:
    """A cohort without its texts.

    Attributes:
        path: the Parquet file.
        table: all columns but ``text``.
        splits: ``(stays,)``, the split of each.
        label_matrix: ``(stays, classes)``, 1 where a class applies.
    """

    path: Path
    table: pa.Table
    splits: NDArray[np.str_]
    label_matrix: sp.csr_array

    def find_split_rows(self, split: str) -> StayRowIndices:
        """Return the rows of a split, ``(stays of the split,)``."""
        return np.flatnonzero(self.splits == split)

    def iterate_row_batches(self) -> Iterator[StayRowIndices]:
        """Yield all rows, ``FEATURE_BATCH_STAYS`` at a time."""
        for start in range(0, len(self.splits), FEATURE_BATCH_STAYS):
            yield np.arange(start, min(start + FEATURE_BATCH_STAYS, len(self.splits)))

    def iterate_texts(self, rows: StayRowIndices) -> Iterator[str]:
        """Yield the texts of rows, which must ascend; they are read in batches."""
        is_selected = np.zeros(len(self.splits), np.bool_)
        is_selected[rows] = True
        start = 0
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if not is_selected[start : start + size].any():
                    start += size
                    continue
                for batch in file.iter_batches(
                    FEATURE_BATCH_STAYS, row_groups=[group], columns=["text"]
                ):
                    mask = pa.array(is_selected[start : start + batch.num_rows])
                    yield from batch.column(0).filter(mask).to_pylist()
                    start += batch.num_rows


@dataclass(frozen=True)
class FittedFeatures:
    """Features whose parameters are fixed.

    Attributes:
        train_rows: the training stays that the parameters were estimated on.
        train_features: ``(those stays, features)``.
        compute_features: rows, which must ascend -> ``(stays, features)``.
    """

    train_rows: StayRowIndices
    train_features: FeatureMatrix
    compute_features: Callable[[StayRowIndices], FeatureMatrix]


def open_baseline_cohort(cohort: Path, label_space: LabelSpace) -> BaselineCohort:
    """Read a cohort and its answers.

    Raises:
        InputError: the file is no cohort, an answer is no class of the task, or ``train`` is empty.
    """
    try:
        names = [name for name in COHORT_SCHEMA.names if name != "text"]
        table = pq.read_table(cohort, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "this cannot be read as a cohort",
            location=str(cohort),
            hint="build it: clinpeft cohort build RECIPE",
        ) from error
    splits = np.array(table["split"].to_pylist(), dtype=np.str_)
    label_matrix = _build_label_matrix(table, label_space, cohort)
    if not (splits == "train").any():
        raise InputError(
            "the split train is empty",
            location=str(cohort),
            hint="give split.train a larger fraction",
        )
    return BaselineCohort(cohort, table, splits, label_matrix)


def _build_label_matrix(table: pa.Table, label_space: LabelSpace, location: Path) -> sp.csr_array:
    """``(stays, classes)``, 1 where a class applies."""
    is_multilabel = label_space.kind == "multilabel"
    column = table["labels" if is_multilabel else "label"].combine_chunks()
    if column.null_count:
        raise InputError(
            f"{column.null_count} stays have no answer to {label_space.name}",
            location=str(location),
            hint=f"build the cohort as {label_space.kind}; stays with unknown answers leave it",
        )
    flat = column.flatten() if is_multilabel else column
    indices = np.asarray(flat.to_numpy(), dtype=np.int64)  # (labels of all stays,)
    lengths = column.value_lengths().to_numpy() if is_multilabel else np.ones(len(column), np.int64)
    classes = len(label_space.classes)
    if len(indices) and not 0 <= indices.min() <= indices.max() < classes:
        raise InputError(
            f"answers run from {indices.min()} to {indices.max()}, "
            f"and {label_space.name} has {classes} classes",
            location=str(location),
            hint="give the task that the cohort was built for",
        )
    pointers = np.concatenate([[0], np.cumsum(lengths)])  # (stays + 1,)
    ones = np.ones(len(indices), np.int64)
    return sp.csr_array((ones, indices, pointers), shape=(table.num_rows, classes))


def fit_tfidf_features(
    cohort: BaselineCohort, label_space: LabelSpace, rng: np.random.Generator
) -> FittedFeatures:
    """Fit TF-IDF features of words and of pairs of neighboring words, each note of length 1.

    A weight is ``(1 + log tf) (1 + log((1 + N) / (1 + n)))``. Terms and weights are those of
    scikit-learn's ``TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))``, but that terms are
    hashed.

    Args:
        cohort: stays and their texts.
        label_space: of the task; its kind limits the number of terms.
        rng: draws the notes that terms are counted in, where there are more than
            ``MAX_VOCABULARY_NOTES``.
    """
    rows = cohort.find_split_rows("train")
    rows = np.sort(rng.choice(rows, min(MAX_VOCABULARY_NOTES, len(rows)), replace=False))
    counts = _hash_terms(cohort.iterate_texts(rows))  # (notes, buckets)
    # Select buckets that enough notes have, the most frequent ones, of equals the first.
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])  # (buckets,)
    minimum = next(least for size, least in MIN_DOCUMENT_FREQUENCIES if counts.shape[0] >= size)
    terms = np.flatnonzero(frequency >= minimum)
    if not len(terms):  # no note has a word: a column of zeros, which is not informative
        terms = np.arange(1)
    by_frequency = np.argsort(-frequency[terms], kind="stable")
    terms = np.sort(terms[by_frequency[: MAX_TFIDF_TERMS[label_space.kind]]])
    weighting = TfidfTransformer(sublinear_tf=True).fit(counts[:, terms])

    def compute_features(rows: StayRowIndices) -> FeatureMatrix:
        return sp.csr_array(weighting.transform(_hash_terms(cohort.iterate_texts(rows))[:, terms]))

    train_features = sp.csr_array(weighting.transform(counts[:, terms]))
    return FittedFeatures(rows, train_features, compute_features)


def _hash_terms(texts: Iterable[str]) -> sp.csr_matrix:
    """Counts of words and of pairs of neighbors, ``(texts, buckets)``."""
    vectorizer = HashingVectorizer(
        ngram_range=(1, 2), n_features=TERM_HASH_BUCKETS, norm=None, alternate_sign=False
    )
    counts: sp.csr_matrix = vectorizer.transform(texts)
    return counts


def fit_length_features(
    cohort: BaselineCohort, label_space: LabelSpace, rng: np.random.Generator
) -> FittedFeatures:
    """Fit the length of a note: log(1 + words) and its square, standardized."""
    del label_space, rng

    def compute_columns(rows: StayRowIndices) -> DenseFeatures:
        words = np.log1p([float(len(text.split())) for text in cohort.iterate_texts(rows)])
        return np.stack([words, words**2], axis=1)  # (stays, 2)

    train_features, compute_features = _fit_standardization(cohort, compute_columns)
    return FittedFeatures(cohort.find_split_rows("train"), train_features, compute_features)


def _fit_standardization(
    cohort: BaselineCohort, compute_columns: Callable[[StayRowIndices], DenseFeatures]
) -> tuple[DenseFeatures, Callable[[StayRowIndices], DenseFeatures]]:
    """Standardize by mean and standard deviation of the training split; NaN becomes the mean.

    Returns:
        The columns of the training split, and a function for those of any rows.
    """
    values = compute_columns(cohort.find_split_rows("train"))  # (training stays, columns)
    is_known = ~np.isnan(values)
    count = np.maximum(is_known.sum(axis=0), 1)
    mean = np.where(is_known, values, 0.0).sum(axis=0) / count
    deviation = np.sqrt((np.where(is_known, values - mean, 0.0) ** 2).sum(axis=0) / count)
    scale = np.where(deviation > 1e-12, deviation, 1.0)  # a constant column becomes 0

    def standardize(values: DenseFeatures) -> DenseFeatures:
        return np.asarray(np.nan_to_num((values - mean) / scale, nan=0.0), dtype=np.float64)

    return standardize(values), lambda rows: standardize(compute_columns(rows))


def fit_admission_features(
    cohort: BaselineCohort, label_space: LabelSpace, rng: np.random.Generator
) -> FittedFeatures:
    """Fit what is known of every patient at admission.

    That is age (standardized, and whether it is unknown), sex and admission type, one column for
    each value. Unknown is a value like others; values that no training stay has have no column.
    """
    del label_space, rng
    train_rows = cohort.find_split_rows("train")
    ages = np.array(
        [np.nan if age is None else age for age in cohort.table["age_years"].to_pylist()],
        dtype=np.float64,
    )
    train_age, compute_age = _fit_standardization(cohort, lambda rows: ages[rows, None])
    indicators = [np.isnan(ages)]
    for column in ("sex", "admission_type"):
        # "=" keeps a value that is the empty text apart from an unknown one
        values = np.array(
            ["" if value is None else f"={value}" for value in cohort.table[column].to_pylist()],
            dtype=np.str_,
        )
        indicators += [values == value for value in np.unique(values[train_rows])]
    flags = np.stack(indicators, axis=1).astype(np.float64)  # (stays, indicators)
    return FittedFeatures(
        train_rows,
        np.hstack([train_age, flags[train_rows]]),
        lambda rows: np.hstack([compute_age(rows), flags[rows]]),
    )
