"""Logistic regressions on the features of any baseline.

A binary or multiclass task has one multinomial regression, a multilabel task one for each label.
"""

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

# Of a class that training never saw: a probability of 0 would be an infinite logit.
MIN_CLASS_PROBABILITY = 1e-7
# The most frequent labels choose the strength for all: rare ones have too few tuning stays.
REGULARIZATION_SELECTION_LABELS = 40
REGRESSION_THREADS = 2
# Of L-BFGS; a model that has not converged by then predicts as well as one that has.
REGRESSION_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier with logits ``features @ weights + intercepts``.

    Attributes:
        weights: ``(features, classes)``; 0 for a class that all training stays have, or none.
        intercepts: ``(classes,)``; -inf for a class that training never saw, unless multilabel.
        regularization_c: the C that was selected.
    """

    weights: RegressionArray
    intercepts: RegressionArray
    regularization_c: float


def compute_prevalence(label_matrix: sp.csr_array) -> RegressionArray:
    """Compute the fraction of stays to which each class applies.

    Args:
        label_matrix: ``(stays, classes)``, 1 where a class applies.

    Returns:
        ``(classes,)``.
    """
    return np.asarray(label_matrix.sum(axis=0)).ravel() / label_matrix.shape[0]


def fit_linear_classifier(
    train_features: DesignMatrix,
    train_labels: sp.csr_array,
    tuning_features: DesignMatrix | None,
    tuning_labels: sp.csr_array,
    problem_type: ProblemType,
    regularization_c_values: Sequence[float],
) -> LinearClassifier:
    """Fit logistic regressions with the C that has the lowest log loss on the tuning stays.

    They have an L2 penalty and a free intercept and are fitted by L-BFGS. C rises until the tuning
    loss rises. 1,266 labels of 21,000 synthetic notes with 250 of 20,000 terms each take five to
    ten minutes on two cores and less than 1 GB; so C is selected on the
    ``REGULARIZATION_SELECTION_LABELS`` most frequent labels.

    Args:
        train_features: ``(stays, features)``.
        train_labels: ``(stays, classes)``, 1 where a class applies.
        tuning_features: ``(tuning stays, features)``; None without any: the C nearest to 1 is used.
        tuning_labels: ``(tuning stays, classes)``.
        problem_type: of the task.
        regularization_c_values: C of scikit-learn, larger is weaker; ascending.
    """
    fit = _fit_one_vs_rest if problem_type == "multilabel" else _fit_multinomial
    # The filter belongs to the process, and so is set outside the threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if tuning_features is None or len(regularization_c_values) == 1:
            nearest_to_1 = min(regularization_c_values, key=lambda c: abs(np.log(c)))
            return fit(train_features, train_labels, nearest_to_1)
        # (classes,), the most frequent first; of equals the first
        by_frequency = np.argsort(-compute_prevalence(train_labels), kind="stable")
        if problem_type == "multilabel":
            by_frequency = by_frequency[:REGULARIZATION_SELECTION_LABELS]
        classes = np.sort(by_frequency)
        best, lowest_loss = None, np.inf
        for c in regularization_c_values:
            model = fit(train_features, train_labels[:, classes], c)
            loss = _compute_log_loss(
                model, tuning_features, tuning_labels[:, classes], problem_type
            )
            if best is not None and loss >= lowest_loss:
                break
            best, lowest_loss = model, loss
        assert best is not None
        if len(classes) == train_labels.shape[1]:
            return best
        return fit(train_features, train_labels, best.regularization_c)


def predict_linear_probabilities(
    model: LinearClassifier, features: DesignMatrix, problem_type: ProblemType
) -> tuple[RegressionArray, RegressionArray]:
    """Predict probabilities and logits: softmax (multilabel: sigmoid) of the logits.

    Returns:
        Probabilities and logits, ``(stays, classes)`` each.
    """
    logits = np.asarray(features @ model.weights) + model.intercepts  # (stays, classes)
    if problem_type == "multilabel":
        return expit(logits), logits
    probabilities = np.maximum(softmax(logits, axis=1), MIN_CLASS_PROBABILITY)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    # Logits of the probabilities as they are now: those above may be -inf
    return probabilities, np.log(probabilities)


def _compute_log_loss(
    model: LinearClassifier,
    features: DesignMatrix,
    label_matrix: sp.csr_array,
    problem_type: ProblemType,
) -> float:
    """The mean over stays, and over labels where there are several, in nats."""
    labels = label_matrix.toarray()  # (stays, classes)
    if problem_type == "multilabel":
        logits = np.asarray(features @ model.weights) + model.intercepts
        # log(1 + exp(z)) - y z, which is -log p without overflow
        return float(np.mean(np.logaddexp(0, logits) - labels * logits))
    probabilities, _ = predict_linear_probabilities(model, features, problem_type)
    return float(-np.mean(np.log(probabilities[labels > 0])))


def _fit_multinomial(
    features: DesignMatrix, label_matrix: sp.csr_array, regularization_c: float
) -> LinearClassifier:
    """Fit all classes at once; one that training never saw has weight 0 and intercept -inf."""
    classes = label_matrix.shape[1]
    weights, intercepts = np.zeros((features.shape[1], classes)), np.full(classes, -np.inf)
    targets = label_matrix.indices.astype(np.int64)  # (stays,), the class of each
    present = np.unique(targets)
    intercepts[present] = 0.0
    if len(present) > 1:
        model = LogisticRegression(C=regularization_c, max_iter=REGRESSION_MAX_ITERATIONS)
        model.fit(features, targets)
        # Of two classes scikit-learn gives the second alone: coef_ is (1, features).
        columns = present[-len(model.coef_) :]
        weights[:, columns], intercepts[columns] = model.coef_.T, model.intercept_
    return LinearClassifier(weights, intercepts, regularization_c)


def _fit_one_vs_rest(
    features: DesignMatrix, label_matrix: sp.csr_array, regularization_c: float
) -> LinearClassifier:
    """Fit one regression for each label.

    A label that all training stays have, or none, keeps its prevalence.
    """
    stays, labels = label_matrix.shape
    prevalence = np.clip(
        compute_prevalence(label_matrix), MIN_CLASS_PROBABILITY, 1 - MIN_CLASS_PROBABILITY
    )
    weights = np.zeros((features.shape[1], labels))
    intercepts = np.log(prevalence) - np.log1p(-prevalence)  # logit of the prevalence, (labels,)
    by_label = label_matrix.tocsc()
    counts = np.diff(by_label.indptr)  # (labels,)

    def fit_label(label: int) -> None:
        targets = np.zeros(stays, np.int64)
        targets[by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]] = 1
        model = LogisticRegression(C=regularization_c, max_iter=REGRESSION_MAX_ITERATIONS)
        model.fit(features, targets)
        weights[:, label], intercepts[label] = model.coef_[0], model.intercept_[0]

    # Threads write to columns of their own, so the result does not depend on their order.
    with ThreadPoolExecutor(REGRESSION_THREADS) as threads:
        list(threads.map(fit_label, np.flatnonzero((counts > 0) & (counts < stays)).tolist()))
    return LinearClassifier(weights, intercepts, regularization_c)
