"""Logistic regressions on the features of any baseline: multinomial where one class applies, one a label where all that apply are asked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from clinpeft.core.schemas import Kind

Floats = NDArray[np.float64]
Features = sp.csr_array | Floats

LEAST = 1e-7  # a class that was never seen has this probability, not 0, which would be an infinite logit
CHOSEN_BY_LABELS = 40  # the most frequent labels choose the strength for all: rare ones have too few stays in tuning to say
THREADS = 2
STEPS = (
    1000  # of the optimiser; a model that is not at its optimum by then is as good as one that is
)


@dataclass(frozen=True)
class Linear:
    """Logits are ``features @ weights + intercepts``.

    Attributes:
        weights: (features, classes); 0 for a class that all training stays have, or none.
        intercepts: (classes,); -inf for a class never seen where one of several is asked.
        strength: the C that was chosen.
    """

    weights: Floats
    intercepts: Floats
    strength: float


def prevalence(answers: sp.csr_array) -> Floats:
    """The share of stays to which each class applies, (classes,)."""
    return np.asarray(answers.sum(axis=0)).ravel() / answers.shape[0]


def fitted(
    train: Features,
    answers: sp.csr_array,
    tuning: Features | None,
    truth: sp.csr_array,
    kind: Kind,
    strengths: Sequence[float],
) -> Linear:
    """Regressions on ``train``, at that one of ``strengths`` from which on the log loss on ``tuning`` rises.

    With L2 penalty and free intercept, by L-BFGS; many labels in ``THREADS`` threads. 1,266 labels of 21,000 notes with 250 of 20,000 terms each
    (invented) take five to ten minutes on two cores and less than 1 GB; so the strength is chosen on the ``CHOSEN_BY_LABELS`` most frequent of them.

    Args:
        train: (stays, features).
        answers: (stays, classes), 1 where a class applies.
        tuning: (tuning stays, features); None where there is none, and ``strengths`` names but one, or the one nearest to 1 is taken.
        truth: (tuning stays, classes).
        kind: of the question.
        strengths: C of scikit-learn, larger is weaker; ascending.
    """
    if tuning is None or len(strengths) == 1:
        return _fit(
            train, answers, kind, min(strengths, key=lambda strength: abs(np.log(strength)))
        )
    ranked = np.argsort(-prevalence(answers), kind="stable")
    often = np.sort(ranked[:CHOSEN_BY_LABELS] if kind == "multilabel" else ranked)
    best, least = None, np.inf
    for strength in strengths:
        model = _fit(train, answers[:, often], kind, strength)
        loss = _log_loss(model, tuning, truth[:, often], kind)
        if best is not None and loss >= least:
            break
        best, least = model, loss
    assert best is not None
    return best if len(often) == answers.shape[1] else _fit(train, answers, kind, best.strength)


def scored(model: Linear, asked: Features, kind: Kind) -> tuple[Floats, Floats]:
    """Probabilities and logits, (stays, classes) each: softmax and sigmoid of the second are the first."""
    logits = np.asarray(asked @ model.weights) + model.intercepts
    if kind == "multilabel":
        return expit(logits), logits
    probabilities = np.maximum(softmax(logits, axis=1), LEAST)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, np.log(probabilities)


def _log_loss(model: Linear, asked: Features, truth: sp.csr_array, kind: Kind) -> float:
    told, logits = truth.toarray(), np.asarray(asked @ model.weights) + model.intercepts
    if kind == "multilabel":
        return float(np.mean(np.logaddexp(0, logits) - told * logits))
    probabilities, _ = scored(model, asked, kind)
    return float(-np.mean(np.log(probabilities[told > 0])))


def _fit(train: Features, answers: sp.csr_array, kind: Kind, strength: float) -> Linear:
    with (
        warnings.catch_warnings()
    ):  # the filter is the process's, and so is set outside the threads
        warnings.simplefilter("ignore", ConvergenceWarning)
        return (_each if kind == "multilabel" else _one)(train, answers, strength)


def _one(train: Features, answers: sp.csr_array, strength: float) -> Linear:
    """One class of several: all answers in one regression; a class never seen gets no weight and no chance."""
    weights, intercepts = (
        np.zeros((train.shape[1], answers.shape[1])),
        np.full(answers.shape[1], -np.inf),
    )
    told = answers.indices.astype(np.int64)
    seen = np.unique(told)
    intercepts[seen] = 0.0
    if len(seen) > 1:
        found, added = _regression(train, told, strength)
        # of two classes scikit-learn gives the second alone
        weights[:, seen[-len(found) :]], intercepts[seen[-len(found) :]] = found.T, added
    return Linear(weights, intercepts, strength)


def _each(train: Features, answers: sp.csr_array, strength: float) -> Linear:
    """All that apply: a regression a label; one that no training stay has, or every one, keeps its prevalence."""
    share, by_label = np.clip(prevalence(answers), LEAST, 1 - LEAST), answers.tocsc()
    weights, intercepts = (
        np.zeros((train.shape[1], answers.shape[1])),
        np.log(share) - np.log1p(-share),
    )
    counts = np.diff(by_label.indptr)

    def fit(label: int) -> None:
        told = np.zeros(answers.shape[0], np.int64)
        told[by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]] = 1
        found, added = _regression(train, told, strength)
        weights[:, label], intercepts[label] = found[0], added[0]

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(fit, np.flatnonzero((counts > 0) & (counts < answers.shape[0])).tolist()))
    return Linear(weights, intercepts, strength)


def _regression(train: Features, told: NDArray[np.int64], strength: float) -> tuple[Floats, Floats]:
    """Weights (classes, features) and intercepts (classes,); of two classes those of the second alone."""
    model = LogisticRegression(C=strength, max_iter=STEPS).fit(train, told)
    return model.coef_, model.intercept_
