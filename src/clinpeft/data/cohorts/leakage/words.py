"""Whether labels can be read off words: outcome words, a bag-of-words probe, names of classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from clinpeft.data.cohorts import sections
from clinpeft.data.cohorts.leakage.overlap import TextBatches, normalize_note_words

_Int64Array = NDArray[np.int64]
_FloatArray = NDArray[np.float64]

# A word of the probe is printed; one in the notes of fewer subjects might identify one of them.
MIN_WORD_SUBJECTS = 10
TOP_PROBE_WORDS = 20
MAX_PROBED_CLASSES = 10  # the most frequent first
LABEL_SHUFFLES = 10


@dataclass(frozen=True)
class OutcomeWordCounts:
    """Stays whose text has an outcome word.

    Attributes:
        by_section: section -> group -> stays.
        matching_stays: group -> stays with an outcome word.
        total_stays: group -> stays.
    """

    by_section: dict[str, dict[str, int]]
    matching_stays: dict[str, int]
    total_stays: dict[str, int]

    @property
    def ratio(self) -> float:
        """The rate ratio of one group against all others, the largest over groups.

        One half is added to each count, so that a word that occurs in one group only does not give
        an infinite ratio (Haldane 1956, Anscombe 1956).
        """
        matching, total = sum(self.matching_stays.values()), sum(self.total_stays.values())
        ratios = []
        for group, size in self.total_stays.items():
            count = self.matching_stays[group]
            if not 0 < size < total:
                continue
            group_rate = (count + 0.5) / (size + 1)
            other_rate = (matching - count + 0.5) / (total - size + 1)
            ratios.append(group_rate / other_rate if count else 0.0)
        return max(ratios, default=1.0 if matching else 0.0)


def count_outcome_words(
    texts: TextBatches, groups: Sequence[str], outcome_pattern: re.Pattern[str]
) -> OutcomeWordCounts:
    """Count the stays with an outcome word in each section.

    Args:
        texts: row numbers and texts.
        groups: of every row, its class, or one name for all where a stay has several classes.
        outcome_pattern: of the words, for lower-case text.
    """
    by_section: dict[str, Counter[str]] = {}
    matching_stays, total_stays = Counter[str](), Counter[str]()
    for rows, batch in texts:
        for row, text in zip(rows.tolist(), batch.to_pylist(), strict=True):
            group = groups[row]
            matching_sections = (
                {
                    section.name or "before any heading"
                    for section in sections.split_note_sections(text)
                    if outcome_pattern.search(section.text.lower())
                }
                # Splitting into sections is slow, and most notes have no such word.
                if outcome_pattern.search(text.lower())
                else set()
            )
            total_stays[group] += 1
            matching_stays[group] += bool(matching_sections)
            for name in matching_sections:
                by_section.setdefault(name, Counter())[group] += 1
    return OutcomeWordCounts(
        {name: dict(sorted(counts.items())) for name, counts in sorted(by_section.items())},
        dict(matching_stays),
        dict(total_stays),
    )


@dataclass(frozen=True)
class ClassNameCounts:
    """Labels whose class is named in the text.

    Attributes:
        named_stays: stays of each class whose text has one of its titles, ``(classes,)``.
        labeled_stays: stays of each class, 0 for a class without a title, ``(classes,)``.
    """

    named_stays: _Int64Array
    labeled_stays: _Int64Array


def count_class_names(
    texts: TextBatches, label_matrix: sp.csr_array, titles: Sequence[Sequence[str]]
) -> ClassNameCounts:
    """Count the stays whose text has a title of one of their classes, word for word.

    Args:
        texts: row numbers and texts.
        label_matrix: ``(stays, classes)``.
        titles: of every class; a class without any is not searched.
    """
    # Blanks on both sides, so that a title matches whole words.
    phrases = [
        [f" {title} " for title in _normalize_texts(class_titles) if title]
        for class_titles in titles
    ]
    named = np.zeros(len(phrases), np.int64)
    labeled = np.zeros(len(phrases), np.int64)
    for rows, batch in texts:
        for row, text in zip(rows.tolist(), normalize_note_words(batch).to_pylist(), strict=True):
            padded = f" {text} "
            start, end = label_matrix.indptr[row : row + 2]
            for class_index in label_matrix.indices[start:end].tolist():
                if phrases[class_index]:
                    labeled[class_index] += 1
                    named[class_index] += any(phrase in padded for phrase in phrases[class_index])
    return ClassNameCounts(named, labeled)


def _normalize_texts(texts: Iterable[str]) -> list[str]:
    words: list[str] = normalize_note_words(pa.array(list(texts), pa.large_string())).to_pylist()
    return words


@dataclass(frozen=True)
class ProbeSample:
    """Stays of one split.

    Attributes:
        texts: one a stay.
        subjects: ``(stays,)``.
        label_matrix: ``(stays, classes)``.
    """

    texts: list[str]
    subjects: _Int64Array
    label_matrix: sp.csr_array


@dataclass(frozen=True)
class ProbeResult:
    """A bag-of-words classifier of one class.

    Attributes:
        name: of the class.
        auroc: on held-out stays.
        n, n_events: held-out stays, and those of the class.
        top_words: the words of largest absolute weight, with their weights.
    """

    name: str
    auroc: float
    n: int
    n_events: int
    top_words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class WordFeatures:
    """TF-IDF of single words.

    Attributes:
        train, held_out: ``(stays, words)``.
        vocabulary: ``(words,)``.
    """

    train: sp.csr_array
    held_out: sp.csr_array
    vocabulary: NDArray[np.str_]


def build_word_features(train: ProbeSample, held_out: ProbeSample) -> WordFeatures | None:
    """TF-IDF of the words of three letters or more in the notes of enough training subjects.

    Returns:
        The features of words in the training notes of ``MIN_WORD_SUBJECTS`` subjects or more; None
        when there is no such word.
    """
    counter = CountVectorizer(token_pattern=r"\b[a-z]{3,}\b", dtype=np.float32)
    try:
        counts = counter.fit_transform(_normalize_texts(train.texts))  # (stays, words)
    except ValueError:  # no word in any note
        return None
    # Subjects, not stays, so that one patient's stays cannot reach the threshold.
    people, person = np.unique(train.subjects, return_inverse=True)
    notes_of_people = sp.csr_array(
        (np.ones(len(person), np.int64), (person, np.arange(len(person)))),
        shape=(len(people), len(person)),
    )
    uses = (notes_of_people @ (counts > 0).astype(np.int64)) > 0  # (subjects, words)
    columns = np.flatnonzero(np.asarray(uses.sum(axis=0)).ravel() >= MIN_WORD_SUBJECTS)
    if not len(columns):
        return None
    # Fitted on train alone: document frequencies of held_out would leak.
    weighting = TfidfTransformer(sublinear_tf=True).fit(counts[:, columns])
    held_out_counts = counter.transform(_normalize_texts(held_out.texts))[:, columns]
    return WordFeatures(
        weighting.transform(counts[:, columns]),
        weighting.transform(held_out_counts),
        counter.get_feature_names_out()[columns],
    )


def probe_classes(
    features: WordFeatures, train: ProbeSample, held_out: ProbeSample, classes: Sequence[str]
) -> list[ProbeResult]:
    """Fit a logistic regression for each class of ``select_probe_classes``."""
    results = []
    for class_index in select_probe_classes(train, held_out):
        train_labels = _get_label_column(train, class_index)
        held_out_labels = _get_label_column(held_out, class_index)
        auroc, weights = _fit_probe(features, train_labels, held_out_labels)
        order = np.argsort(-np.abs(weights), kind="stable")[:TOP_PROBE_WORDS]
        top_words = tuple(
            (str(features.vocabulary[index]), round(float(weights[index]), 3)) for index in order
        )
        results.append(
            ProbeResult(
                classes[class_index],
                auroc,
                len(held_out_labels),
                int(held_out_labels.sum()),
                top_words,
            )
        )
    return results


def select_probe_classes(train: ProbeSample, held_out: ProbeSample) -> list[int]:
    """The classes that have stays with and without them in train and held_out.

    Returns:
        Up to ``MAX_PROBED_CLASSES`` indices, the most frequent first; of two classes, which are one
        binary label, only the second.
    """
    counts = [np.asarray(side.label_matrix.sum(axis=0)).ravel() for side in (train, held_out)]
    sizes = [side.label_matrix.shape[0] for side in (train, held_out)]
    # AUROC is undefined without both labels.
    usable = np.logical_and.reduce(
        [(count > 0) & (count < size) for count, size in zip(counts, sizes, strict=True)]
    )
    ranked = [index for index in np.argsort(-counts[0], kind="stable").tolist() if usable[index]]
    # The two classes of a binary task are complements: one probe is enough.
    return [1] if len(usable) == 2 and 1 in ranked else ranked[:MAX_PROBED_CLASSES]


def _get_label_column(sample: ProbeSample, class_index: int) -> _Int64Array:
    return np.asarray(sample.label_matrix[:, [class_index]].toarray()).ravel()


def _fit_probe(
    features: WordFeatures, train_labels: _Int64Array, held_out_labels: _Int64Array
) -> tuple[float, _FloatArray]:
    """AUROC on held_out, and the weight of every word ``(words,)``."""
    model = LogisticRegression(max_iter=2000).fit(features.train, train_labels)
    auroc = float(roc_auc_score(held_out_labels, model.decision_function(features.held_out)))
    return auroc, model.coef_[0]


def probe_shuffled_labels(
    features: WordFeatures,
    train: ProbeSample,
    held_out: ProbeSample,
    class_index: int,
    rng: np.random.Generator,
) -> _FloatArray:
    """The AUROC after training on shuffled labels.

    Returns:
        One a shuffle, ``(LABEL_SHUFFLES,)``; near 0.5 unless the evaluation has access to the
        labels.
    """
    train_labels = _get_label_column(train, class_index)
    held_out_labels = _get_label_column(held_out, class_index)
    return np.array(
        [
            _fit_probe(features, rng.permutation(train_labels), held_out_labels)[0]
            for _ in range(LABEL_SHUFFLES)
        ]
    )
