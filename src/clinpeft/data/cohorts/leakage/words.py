"""Whether the answer can be read off the words: outcome words by section, a bag-of-words probe, the names of the classes themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

MIN_WORD_SUBJECTS = (
    10  # a word that is printed stands in the notes of so many people, or it might name one of them
)
TOP_PROBE_WORDS = 20
MAX_PROBED_CLASSES = 10  # classes probed, the most frequent first
LABEL_SHUFFLES = 10


@dataclass(frozen=True)
class OutcomeWordCounts:
    """Stays whose text holds an outcome word: ``by_section[section][group]``, and in all, ``stays[group]`` of ``asked[group]``."""

    by_section: dict[str, dict[str, int]]
    matching_stays: dict[str, int]
    total_stays: dict[str, int]

    @property
    def ratio(self) -> float:
        """How many times as often the words stand in the notes of one group as in those of all others; the largest over groups."""
        found, asked = sum(self.matching_stays.values()), sum(self.total_stays.values())
        ratios = [
            _compute_rate_ratio(
                self.matching_stays[group], n, found - self.matching_stays[group], asked - n
            )
            for group, n in self.total_stays.items()
            if 0 < n < asked
        ]
        return max(ratios, default=1.0 if found else 0.0)


def _compute_rate_ratio(
    group_count: int, group_size: int, other_count: int, other_size: int
) -> float:
    # one half is added to each count, so that a word that stands nowhere else gives no infinite ratio (Haldane)
    return (
        ((group_count + 0.5) / (group_size + 1)) / ((other_count + 0.5) / (other_size + 1))
        if group_count
        else 0.0
    )


def count_outcome_words(
    texts: TextBatches, groups: Sequence[str], outcome_pattern: re.Pattern[str]
) -> OutcomeWordCounts:
    """Count the stays with an outcome word in each section.

    Args:
        texts: (row numbers, texts).
        groups: the group of every row: its class, or one name for all where a stay has several classes.
        outcome_pattern: finds a word in lower-case text.
    """
    by_section: dict[str, Counter[str]] = {}
    stays, asked = Counter[str](), Counter[str]()
    for rows, batch in texts:
        for row, text in zip(rows.tolist(), batch.to_pylist(), strict=True):
            group, hit = groups[row], _find_sections_with_word(text, outcome_pattern)
            asked[group] += 1
            stays[group] += bool(hit)
            for name in hit:
                by_section.setdefault(name, Counter())[group] += 1
    return OutcomeWordCounts(
        {name: dict(sorted(counts.items())) for name, counts in sorted(by_section.items())},
        dict(stays),
        dict(asked),
    )


def _find_sections_with_word(text: str, outcome_pattern: re.Pattern[str]) -> set[str]:
    if not outcome_pattern.search(text.lower()):
        return set()
    return {
        block.name or "before any heading"
        for block in sections.split_note_sections(text)
        if outcome_pattern.search(block.text.lower())
    }


@dataclass(frozen=True)
class ClassNameCounts:
    """Answers whose class is named in the text: ``named[i]`` of ``answered[i]`` stays of class i."""

    named_stays: _Int64Array
    labeled_stays: _Int64Array


def count_class_names(
    texts: TextBatches, label_matrix: sp.csr_array, titles: Sequence[Sequence[str]]
) -> ClassNameCounts:
    """How often one of the titles of a class stands in the note of a stay of that class, word for word; a class without any is not looked for."""
    phrases = [_normalize_titles(names) for names in titles]
    found, asked = np.zeros(len(phrases), np.int64), np.zeros(len(phrases), np.int64)
    for rows, batch in texts:
        for row, text in zip(rows.tolist(), normalize_note_words(batch).to_pylist(), strict=True):
            padded = f" {text} "
            for location in label_matrix.indices[
                label_matrix.indptr[row] : label_matrix.indptr[row + 1]
            ].tolist():
                if phrases[location]:
                    asked[location] += 1
                    found[location] += any(phrase in padded for phrase in phrases[location])
    return ClassNameCounts(found, asked)


def _normalize_titles(titles: Sequence[str]) -> list[str]:
    return [
        f" {title} "
        for title in normalize_note_words(pa.array(list(titles), pa.string())).to_pylist()
        if title
    ]


@dataclass(frozen=True)
class ProbeSample:
    """Stays to probe: ``texts``, ``subjects`` (stays,) and ``label_matrix`` (stays, classes)."""

    texts: list[str]
    subjects: _Int64Array
    label_matrix: sp.csr_array


@dataclass(frozen=True)
class ProbeResult:
    """What a bag of words makes of one class: the AUROC on held-out stays, and the words it leans on with their weights."""

    name: str
    auroc: float
    n: int
    n_events: int
    top_words: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class WordFeatures:
    """TF-IDF of single words: (stays, words) of train and held_out, and the words."""

    train: sp.csr_array
    held_out: sp.csr_array
    vocabulary: NDArray[np.str_]


def build_word_features(train: ProbeSample, held_out: ProbeSample) -> WordFeatures | None:
    """Words of three letters or more that stand in the training notes of ``FEWEST_SUBJECTS`` people; None when there is no such word."""
    counter = CountVectorizer(token_pattern=r"\b[a-z]{3,}\b", dtype=np.float32)
    try:
        counts = counter.fit_transform(_normalize_texts(train.texts))
    except ValueError:  # not one word in all notes
        return None
    kept = np.flatnonzero(_count_subjects_by_word(counts, train.subjects) >= MIN_WORD_SUBJECTS)
    if not len(kept):
        return None
    weighting = TfidfTransformer(sublinear_tf=True).fit(counts[:, kept])
    asked = counter.transform(_normalize_texts(held_out.texts))[:, kept]
    return WordFeatures(
        weighting.transform(counts[:, kept]),
        weighting.transform(asked),
        counter.get_feature_names_out()[kept],
    )


def _normalize_texts(texts: Iterable[str]) -> list[str]:
    plain: list[str] = normalize_note_words(pa.array(list(texts), pa.large_string())).to_pylist()
    return plain


def _count_subjects_by_word(counts: sp.csr_matrix, subjects: _Int64Array) -> _Int64Array:
    """In the notes of how many people each word stands, (words,)."""
    people, person = np.unique(subjects, return_inverse=True)
    mine = sp.csr_array(
        (np.ones(len(person), np.int64), (person, np.arange(len(person)))),
        shape=(len(people), len(person)),
    )
    return np.asarray(((mine @ (counts > 0).astype(np.int64)) > 0).sum(axis=0)).ravel()


def probe_classes(
    features: WordFeatures, train: ProbeSample, held_out: ProbeSample, classes: Sequence[str]
) -> list[ProbeResult]:
    """A logistic regression for each of the most frequent classes that has both answers in train and held_out."""
    return [
        _probe_class(features, train, held_out, location, classes[location])
        for location in select_probe_classes(train, held_out)
    ]


def select_probe_classes(train: ProbeSample, held_out: ProbeSample) -> list[int]:
    """The most frequent classes with both answers on both sides; of two classes, which are one question, the second."""
    sides = [np.asarray(side.label_matrix.sum(axis=0)).ravel() for side in (train, held_out)]
    sizes = [side.label_matrix.shape[0] for side in (train, held_out)]
    both = np.logical_and.reduce(
        [(count > 0) & (count < size) for count, size in zip(sides, sizes, strict=True)]
    )
    ranked = [
        location for location in np.argsort(-sides[0], kind="stable").tolist() if both[location]
    ]
    return [1] if len(both) == 2 and 1 in ranked else ranked[:MAX_PROBED_CLASSES]


def _probe_class(
    features: WordFeatures,
    train: ProbeSample,
    held_out: ProbeSample,
    class_index: int,
    class_name: str,
) -> ProbeResult:
    told, truth = _get_label_column(train, class_index), _get_label_column(held_out, class_index)
    auroc, weights = _fit_probe(features, told, truth)
    order = np.argsort(-np.abs(weights), kind="stable")[:TOP_PROBE_WORDS]
    top = tuple((str(features.vocabulary[at]), round(float(weights[at]), 3)) for at in order)
    return ProbeResult(class_name, auroc, len(truth), int(truth.sum()), top)


def _get_label_column(sample: ProbeSample, class_index: int) -> _Int64Array:
    return np.asarray(sample.label_matrix[:, [class_index]].toarray()).ravel()


def _fit_probe(
    features: WordFeatures, train_labels: _Int64Array, held_out_labels: _Int64Array
) -> tuple[float, _FloatArray]:
    """AUROC on held_out, and the weight of every word."""
    model = LogisticRegression(max_iter=2000).fit(features.train, train_labels)
    return float(
        roc_auc_score(held_out_labels, model.decision_function(features.held_out))
    ), model.coef_[0]


def probe_shuffled_labels(
    features: WordFeatures,
    train: ProbeSample,
    held_out: ProbeSample,
    class_index: int,
    rng: np.random.Generator,
) -> _FloatArray:
    """The AUROC after training on shuffled answers, (SHUFFLES,): near 0.5 when nothing but the words tells the answer."""
    told, truth = _get_label_column(train, class_index), _get_label_column(held_out, class_index)
    return np.array(
        [_fit_probe(features, rng.permutation(told), truth)[0] for _ in range(LABEL_SHUFFLES)]
    )


def list_class_titles(
    titles: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> list[Sequence[str]]:
    """The titles of every class, none for a class without."""
    return [titles.get(name, ()) for name in classes]
