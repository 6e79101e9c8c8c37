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
from clinpeft.data.cohorts.leakage.overlap import Texts, words

Int64 = NDArray[np.int64]
Float = NDArray[np.float64]

FEWEST_SUBJECTS = (
    10  # a word that is printed stands in the notes of so many people, or it might name one of them
)
TOP_WORDS = 20
QUESTIONS = 10  # classes probed, the most frequent first
SHUFFLES = 10


@dataclass(frozen=True)
class Mentions:
    """Stays whose text holds an outcome word: ``by_section[section][group]``, and in all, ``stays[group]`` of ``asked[group]``."""

    by_section: dict[str, dict[str, int]]
    stays: dict[str, int]
    asked: dict[str, int]

    @property
    def ratio(self) -> float:
        """How many times as often the words stand in the notes of one group as in those of all others; the largest over groups."""
        found, asked = sum(self.stays.values()), sum(self.asked.values())
        ratios = [
            _ratio(self.stays[group], n, found - self.stays[group], asked - n)
            for group, n in self.asked.items()
            if 0 < n < asked
        ]
        return max(ratios, default=1.0 if found else 0.0)


def _ratio(here: int, n_here: int, elsewhere: int, n_elsewhere: int) -> float:
    # one half is added to each count, so that a word that stands nowhere else gives no infinite ratio (Haldane)
    return ((here + 0.5) / (n_here + 1)) / ((elsewhere + 0.5) / (n_elsewhere + 1)) if here else 0.0


def mentions(texts: Texts, groups: Sequence[str], outcome: re.Pattern[str]) -> Mentions:
    """Count the stays with an outcome word in each section.

    Args:
        texts: (row numbers, texts).
        groups: the group of every row: its class, or one name for all where a stay has several classes.
        outcome: finds a word in lower-case text.
    """
    by_section: dict[str, Counter[str]] = {}
    stays, asked = Counter[str](), Counter[str]()
    for rows, batch in texts:
        for row, text in zip(rows.tolist(), batch.to_pylist(), strict=True):
            group, hit = groups[row], _sections_with(text, outcome)
            asked[group] += 1
            stays[group] += bool(hit)
            for name in hit:
                by_section.setdefault(name, Counter())[group] += 1
    return Mentions(
        {name: dict(sorted(counts.items())) for name, counts in sorted(by_section.items())},
        dict(stays),
        dict(asked),
    )


def _sections_with(text: str, outcome: re.Pattern[str]) -> set[str]:
    if not outcome.search(text.lower()):
        return set()
    return {
        block.name or "before any heading"
        for block in sections.blocks(text)
        if outcome.search(block.text.lower())
    }


@dataclass(frozen=True)
class Named:
    """Answers whose class is named in the text: ``named[i]`` of ``answered[i]`` stays of class i."""

    named: Int64
    answered: Int64


def named(texts: Texts, answered: sp.csr_array, titles: Sequence[Sequence[str]]) -> Named:
    """How often one of the titles of a class stands in the note of a stay of that class, word for word; a class without any is not looked for."""
    phrases = [_phrases(names) for names in titles]
    found, asked = np.zeros(len(phrases), np.int64), np.zeros(len(phrases), np.int64)
    for rows, batch in texts:
        for row, text in zip(rows.tolist(), words(batch).to_pylist(), strict=True):
            padded = f" {text} "
            for location in answered.indices[
                answered.indptr[row] : answered.indptr[row + 1]
            ].tolist():
                if phrases[location]:
                    asked[location] += 1
                    found[location] += any(phrase in padded for phrase in phrases[location])
    return Named(found, asked)


def _phrases(titles: Sequence[str]) -> list[str]:
    return [
        f" {title} " for title in words(pa.array(list(titles), pa.string())).to_pylist() if title
    ]


@dataclass(frozen=True)
class Sample:
    """Stays to probe: ``texts``, ``subjects`` (stays,) and ``answers`` (stays, classes)."""

    texts: list[str]
    subjects: Int64
    answers: sp.csr_array


@dataclass(frozen=True)
class Probe:
    """What a bag of words makes of one class: the AUROC on held-out stays, and the words it leans on with their weights."""

    name: str
    auroc: float
    n: int
    n_events: int
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Bags:
    """TF-IDF of single words: (stays, words) of train and held_out, and the words."""

    train: sp.csr_array
    held_out: sp.csr_array
    names: NDArray[np.str_]


def bags(train: Sample, held_out: Sample) -> Bags | None:
    """Words of three letters or more that stand in the training notes of ``FEWEST_SUBJECTS`` people; None when there is no such word."""
    counter = CountVectorizer(token_pattern=r"\b[a-z]{3,}\b", dtype=np.float32)
    try:
        counts = counter.fit_transform(_plain(train.texts))
    except ValueError:  # not one word in all notes
        return None
    kept = np.flatnonzero(_subjects_with(counts, train.subjects) >= FEWEST_SUBJECTS)
    if not len(kept):
        return None
    weighting = TfidfTransformer(sublinear_tf=True).fit(counts[:, kept])
    asked = counter.transform(_plain(held_out.texts))[:, kept]
    return Bags(
        weighting.transform(counts[:, kept]),
        weighting.transform(asked),
        counter.get_feature_names_out()[kept],
    )


def _plain(texts: Iterable[str]) -> list[str]:
    plain: list[str] = words(pa.array(list(texts), pa.large_string())).to_pylist()
    return plain


def _subjects_with(counts: sp.csr_matrix, subjects: Int64) -> Int64:
    """In the notes of how many people each word stands, (words,)."""
    people, person = np.unique(subjects, return_inverse=True)
    mine = sp.csr_array(
        (np.ones(len(person), np.int64), (person, np.arange(len(person)))),
        shape=(len(people), len(person)),
    )
    return np.asarray(((mine @ (counts > 0).astype(np.int64)) > 0).sum(axis=0)).ravel()


def probed(bag: Bags, train: Sample, held_out: Sample, classes: Sequence[str]) -> list[Probe]:
    """A logistic regression for each of the most frequent classes that has both answers in train and held_out."""
    return [
        _probe(bag, train, held_out, location, classes[location])
        for location in answerable(train, held_out)
    ]


def answerable(train: Sample, held_out: Sample) -> list[int]:
    """The most frequent classes with both answers on both sides; of two classes, which are one question, the second."""
    sides = [np.asarray(side.answers.sum(axis=0)).ravel() for side in (train, held_out)]
    sizes = [side.answers.shape[0] for side in (train, held_out)]
    both = np.logical_and.reduce(
        [(count > 0) & (count < size) for count, size in zip(sides, sizes, strict=True)]
    )
    ranked = [
        location for location in np.argsort(-sides[0], kind="stable").tolist() if both[location]
    ]
    return [1] if len(both) == 2 and 1 in ranked else ranked[:QUESTIONS]


def _probe(bag: Bags, train: Sample, held_out: Sample, location: int, name: str) -> Probe:
    told, truth = _column(train, location), _column(held_out, location)
    auroc, weights = _fitted(bag, told, truth)
    order = np.argsort(-np.abs(weights), kind="stable")[:TOP_WORDS]
    top = tuple((str(bag.names[at]), round(float(weights[at]), 3)) for at in order)
    return Probe(name, auroc, len(truth), int(truth.sum()), top)


def _column(side: Sample, location: int) -> Int64:
    return np.asarray(side.answers[:, [location]].toarray()).ravel()


def _fitted(bag: Bags, told: Int64, truth: Int64) -> tuple[float, Float]:
    """AUROC on held_out, and the weight of every word."""
    model = LogisticRegression(max_iter=2000).fit(bag.train, told)
    return float(roc_auc_score(truth, model.decision_function(bag.held_out))), model.coef_[0]


def shuffled(
    bag: Bags, train: Sample, held_out: Sample, location: int, generator: np.random.Generator
) -> Float:
    """The AUROC after training on shuffled answers, (SHUFFLES,): near 0.5 when nothing but the words tells the answer."""
    told, truth = _column(train, location), _column(held_out, location)
    return np.array([_fitted(bag, generator.permutation(told), truth)[0] for _ in range(SHUFFLES)])


def as_titles(titles: Mapping[str, Sequence[str]], classes: Sequence[str]) -> list[Sequence[str]]:
    """The titles of every class, none for a class without."""
    return [titles.get(name, ()) for name in classes]
