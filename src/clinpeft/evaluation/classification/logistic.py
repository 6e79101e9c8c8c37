"""Logistic regressions of one variable for calibration: an offset, a line, a restricted spline.

Maximum likelihood without a penalty, by damped Newton steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from clinpeft.evaluation.arrays import BoolArray, Float64Array, Int64Array

_MAX_NEWTON_STEPS = 50  # about six are needed; where 50 do not suffice there is no maximum
_STEP_TOLERANCE = 1e-9  # a last step smaller than this ends the search


def fit_logistic_regression(
    x: Float64Array, is_event: BoolArray, *, fit_slope: bool
) -> tuple[float, float]:
    """Fit intercept and slope of a logistic regression on x; with the slope fixed at 1, x is an
    offset.

    Args:
        x: shape (m,).
        is_event: shape (m,).
        fit_slope: whether the slope is fitted too.

    Returns:
        Intercept and slope; NaN where no maximum exists: one class only, and for the slope an x
        that does not vary or that separates the classes (Albert and Anderson 1984).
    """
    if not is_event.any() or is_event.all() or (fit_slope and _is_unbounded(x, is_event)):
        return float("nan"), float("nan")
    # With slope 1 as an offset only the intercept is free: calibration in the large.
    columns = [np.ones_like(x), x] if fit_slope else [np.ones_like(x)]
    offset, start = np.zeros_like(x) if fit_slope else x, np.array([0.0, 1.0])[: len(columns)]
    coefficients = _maximize_likelihood(columns, offset, is_event, start)
    if coefficients is None:
        return float("nan"), float("nan")
    return float(coefficients[0]), float(coefficients[1]) if fit_slope else 1.0


def fit_logistic_spline(
    x: Float64Array, is_event: BoolArray, clusters: Int64Array, points: Float64Array, level: float
) -> tuple[Float64Array, Float64Array, Float64Array] | None:
    """Fit a logistic regression on a restricted cubic spline of x, with cluster-robust intervals.

    Three knots at the 10th, 50th and 90th percentile of x (Harrell 2015, Regression Modeling
    Strategies, section 2.4.5); the interval is that of the linear predictor by the sandwich
    variance over clusters (Liang and Zeger 1986).

    Args:
        x: shape (m,).
        is_event: shape (m,).
        clusters: cluster of each row, shape (m,).
        points: values of x to predict at, shape (k,).
        level: of the interval.

    Returns:
        Probabilities and the limits of their intervals, each of shape (k,); None where knots
        coincide or no maximum exists.
    """
    knots = np.quantile(x, [0.1, 0.5, 0.9])
    has_one_class = not is_event.any() or is_event.all()
    if len(np.unique(knots)) < 3 or has_one_class or _is_unbounded(x, is_event):
        return None
    columns = [np.ones_like(x), x, _compute_spline_term(x, knots)]
    offset = np.zeros_like(x)
    coefficients = _maximize_likelihood(columns, offset, is_event, np.array([0.0, 1.0, 0.0]))
    if coefficients is None:
        return None
    # Sandwich variance I⁻¹ (Σ_c s_c s_cᵀ) I⁻¹ with the score s_c summed within each cluster
    # (Liang and Zeger 1986), times C / (C - 1) for C clusters.
    z = _compute_linear_predictor(columns, np.zeros_like(columns[0]), coefficients)
    _, information = _compute_derivatives(columns, z, is_event)
    residual = is_event - special.expit(z)
    _, position = np.unique(clusters, return_inverse=True)
    scores = np.stack(
        [np.bincount(position, weights=residual * column) for column in columns], axis=1
    )  # (clusters, 3)
    inverse = np.linalg.inv(information)
    variance = inverse @ (scores.T @ scores) @ inverse * len(scores) / max(len(scores) - 1, 1)
    # (k, 3)
    design = np.stack([np.ones_like(points), points, _compute_spline_term(points, knots)], axis=1)
    middle = design @ coefficients  # (k,)
    error = np.sqrt(np.einsum("ki,ij,kj->k", design, variance, design))
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    return special.expit(middle), special.expit(middle - half), special.expit(middle + half)


def _compute_spline_term(x: Float64Array, knots: Float64Array) -> Float64Array:
    """The nonlinear term of a restricted cubic spline with three knots, linear beyond the outer
    ones (Harrell 2015, equation 2.25)."""
    first, second, third = (np.maximum(x - knot, 0.0) ** 3 for knot in knots)
    low, middle, high = knots
    term: Float64Array = (
        first - second * (high - low) / (high - middle) + third * (middle - low) / (high - middle)
    ) / (high - low) ** 2
    return term


def _maximize_likelihood(
    columns: Sequence[Float64Array], offset: Float64Array, is_event: BoolArray, start: Float64Array
) -> Float64Array | None:
    """The coefficients of the maximum, shape (d,); None where Newton's method does not converge."""

    def compute_log_likelihood(coefficients: Float64Array) -> float:
        z = _compute_linear_predictor(columns, offset, coefficients)
        return float(z[is_event].sum() - np.logaddexp(0, z).sum())

    # Started at intercept 0 and slope 1, a perfectly calibrated model.
    coefficients, likelihood = start, compute_log_likelihood(start)
    for _ in range(_MAX_NEWTON_STEPS):
        z = _compute_linear_predictor(columns, offset, coefficients)
        score, information = _compute_derivatives(columns, z, is_event)
        # A singular information matrix: some direction has no finite maximum.
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return None
        step = np.linalg.solve(information, score)
        new_likelihood = compute_log_likelihood(coefficients + step)
        # A full Newton step can overshoot where p is near 0 or 1: halve it until it improves.
        while new_likelihood < likelihood and np.abs(step).max() > _STEP_TOLERANCE:
            step = step / 2
            new_likelihood = compute_log_likelihood(coefficients + step)
        coefficients, likelihood = coefficients + step, new_likelihood
        if np.abs(step).max() <= _STEP_TOLERANCE:
            return coefficients
    return None


def _compute_linear_predictor(
    columns: Sequence[Float64Array], offset: Float64Array, coefficients: Float64Array
) -> Float64Array:
    z = offset.copy()
    for column, coefficient in zip(columns, coefficients, strict=True):
        z += coefficient * column
    return z


def _compute_derivatives(
    columns: Sequence[Float64Array], linear_predictor: Float64Array, is_event: BoolArray
) -> tuple[Float64Array, Float64Array]:
    """Score Xᵀ(y - p), shape (d,), and information XᵀWX with W = p(1 - p), shape (d, d)."""
    p: Float64Array = special.expit(linear_predictor)
    residual, variance = is_event - p, p * (1 - p)
    information = np.array(
        [[float((variance * row) @ column) for column in columns] for row in columns]
    )
    return np.array([float(residual @ column) for column in columns]), information


def _is_unbounded(x: Float64Array, is_event: BoolArray) -> bool:
    """Whether the likelihood has no maximum in the slope: x is constant or separates the classes,
    touching included (Albert and Anderson 1984)."""
    events, others = x[is_event], x[~is_event]
    return bool(x.min() == x.max() or events.min() >= others.max() or events.max() <= others.min())
