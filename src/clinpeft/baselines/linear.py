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

from clinpeft.core.schemas import ProblemType

RegressionArray = NDArray[np.float64]
DesignMatrix = sp.csr_array | RegressionArray

MIN_CLASS_PROBABILITY = 1e-7  # a class that was never seen has this probability, not 0, which would be an infinite logit
REGULARIZATION_SELECTION_LABELS = 40  # the most frequent labels choose the strength for all: rare ones have too few stays in tuning to say
REGRESSION_THREADS = 2
REGRESSION_MAX_ITERATIONS = (
    1000  # of the optimiser; a model that is not at its optimum by then is as good as one that is
)


@dataclass(frozen=True)
class LinearClassifier:
    """Logits are ``features @ weights + intercepts``.

    Attributes:
        weights: (features, classes); 0 for a class that all training stays have, or none.
        intercepts: (classes,); -inf for a class never seen where one of several is asked.
        regularization_c: the C that was chosen.
    """

    weights: RegressionArray
    intercepts: RegressionArray
    regularization_c: float


def compute_prevalence(label_matrix: sp.csr_array) -> RegressionArray:
    """The share of stays to which each class applies, (classes,)."""
    return np.asarray(label_matrix.sum(axis=0)).ravel() / label_matrix.shape[0]


def fit_linear_classifier(
    train_features: DesignMatrix,
    train_labels: sp.csr_array,
    tuning_features: DesignMatrix | None,
    tuning_labels: sp.csr_array,
    problem_type: ProblemType,
    regularization_c_values: Sequence[float],
) -> LinearClassifier:
    """Regressions on ``train_features``, at that one of ``regularization_c_values`` from which on the log loss on ``tuning_features`` rises.

    With L2 penalty and free intercept, by L-BFGS; many labels in ``THREADS`` threads. 1,266 labels of 21,000 notes with 250 of 20,000 terms each
    (invented) take five to ten minutes on two cores and less than 1 GB; so the strength is chosen on the ``CHOSEN_BY_LABELS`` most frequent of them.

    Args:
        train_features: (stays, features).
        train_labels: (stays, classes), 1 where a class applies.
        tuning_features: (tuning stays, features); None where there is none, and ``regularization_c_values`` names but one, or the one nearest to 1 is taken.
        tuning_labels: (tuning stays, classes).
        problem_type: of the question.
        regularization_c_values: C of scikit-learn, larger is weaker; ascending.
    """
    if tuning_features is None or len(regularization_c_values) == 1:
        return _fit_regressions(
            train_features,
            train_labels,
            problem_type,
            min(regularization_c_values, key=lambda strength: abs(np.log(strength))),
        )
    ranked = np.argsort(-compute_prevalence(train_labels), kind="stable")
    often = np.sort(
        ranked[:REGULARIZATION_SELECTION_LABELS] if problem_type == "multilabel" else ranked
    )
    best, least = None, np.inf
    for strength in regularization_c_values:
        model = _fit_regressions(train_features, train_labels[:, often], problem_type, strength)
        loss = _compute_log_loss(model, tuning_features, tuning_labels[:, often], problem_type)
        if best is not None and loss >= least:
            break
        best, least = model, loss
    assert best is not None
    return (
        best
        if len(often) == train_labels.shape[1]
        else _fit_regressions(train_features, train_labels, problem_type, best.regularization_c)
    )


def predict_linear_probabilities(
    model: LinearClassifier, features: DesignMatrix, problem_type: ProblemType
) -> tuple[RegressionArray, RegressionArray]:
    """Probabilities and logits, (stays, classes) each: softmax and sigmoid of the second are the first."""
    logits = np.asarray(features @ model.weights) + model.intercepts
    if problem_type == "multilabel":
        return expit(logits), logits
    probabilities = np.maximum(softmax(logits, axis=1), MIN_CLASS_PROBABILITY)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, np.log(probabilities)


def _compute_log_loss(
    model: LinearClassifier,
    features: DesignMatrix,
    label_matrix: sp.csr_array,
    problem_type: ProblemType,
) -> float:
    told, logits = label_matrix.toarray(), np.asarray(features @ model.weights) + model.intercepts
    if problem_type == "multilabel":
        return float(np.mean(np.logaddexp(0, logits) - told * logits))
    probabilities, _ = predict_linear_probabilities(model, features, problem_type)
    return float(-np.mean(np.log(probabilities[told > 0])))


def _fit_regressions(
    features: DesignMatrix,
    label_matrix: sp.csr_array,
    problem_type: ProblemType,
    regularization_c: float,
) -> LinearClassifier:
    with (
        warnings.catch_warnings()
    ):  # the filter is the process's, and so is set outside the threads
        warnings.simplefilter("ignore", ConvergenceWarning)
        return (_fit_one_vs_rest if problem_type == "multilabel" else _fit_multinomial)(
            features, label_matrix, regularization_c
        )


def _fit_multinomial(
    features: DesignMatrix, label_matrix: sp.csr_array, regularization_c: float
) -> LinearClassifier:
    """One class of several: all answers in one regression; a class never seen gets no weight and no chance."""
    weights, intercepts = (
        np.zeros((features.shape[1], label_matrix.shape[1])),
        np.full(label_matrix.shape[1], -np.inf),
    )
    told = label_matrix.indices.astype(np.int64)
    seen = np.unique(told)
    intercepts[seen] = 0.0
    if len(seen) > 1:
        found, added = _fit_regression(features, told, regularization_c)
        # of two classes scikit-learn gives the second alone
        weights[:, seen[-len(found) :]], intercepts[seen[-len(found) :]] = found.T, added
    return LinearClassifier(weights, intercepts, regularization_c)


def _fit_one_vs_rest(
    features: DesignMatrix, label_matrix: sp.csr_array, regularization_c: float
) -> LinearClassifier:
    """All that apply: a regression a label; one that no training stay has, or every one, keeps its prevalence."""
    share, by_label = (
        np.clip(compute_prevalence(label_matrix), MIN_CLASS_PROBABILITY, 1 - MIN_CLASS_PROBABILITY),
        label_matrix.tocsc(),
    )
    weights, intercepts = (
        np.zeros((features.shape[1], label_matrix.shape[1])),
        np.log(share) - np.log1p(-share),
    )
    counts = np.diff(by_label.indptr)

    def fit(label: int) -> None:
        told = np.zeros(label_matrix.shape[0], np.int64)
        told[by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]] = 1
        found, added = _fit_regression(features, told, regularization_c)
        weights[:, label], intercepts[label] = found[0], added[0]

    with ThreadPoolExecutor(REGRESSION_THREADS) as threads:
        list(
            threads.map(
                fit, np.flatnonzero((counts > 0) & (counts < label_matrix.shape[0])).tolist()
            )
        )
    return LinearClassifier(weights, intercepts, regularization_c)


def _fit_regression(
    features: DesignMatrix, targets: NDArray[np.int64], regularization_c: float
) -> tuple[RegressionArray, RegressionArray]:
    """Weights (classes, features) and intercepts (classes,); of two classes those of the second alone."""
    model = LogisticRegression(C=regularization_c, max_iter=REGRESSION_MAX_ITERATIONS).fit(
        features, targets
    )
    return model.coef_, model.intercept_
