"""Logistic regressions of one variable, as calibration asks for them: a shift, a line, a bent line. No penalty; damped Newton steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from clinpeft.evaluation.bootstrap import Float64Array, Int64Array
from clinpeft.evaluation.classification.ranks import BoolArray

_MAX_NEWTON_STEPS = 50  # about six are needed; where none suffice there is no maximum
_STEP_TOLERANCE = 1e-9  # a last step smaller than this ends the search


def fit_logistic_regression(
    x: Float64Array, is_event: BoolArray, *, fit_slope: bool
) -> tuple[float, float]:
    """Intercept and slope of a logistic regression on x; with the slope held at 1, x is an offset.

    Args:
        x: shape (m,).
        is_event: shape (m,).
        fit_slope: whether the slope is fitted too.

    Returns:
        NaN where no maximum exists: one class only, and for the slope an x that does not vary or that separates the classes.
    """
    if not is_event.any() or is_event.all() or (fit_slope and _is_unbounded(x, is_event)):
        return float("nan"), float("nan")
    columns = [np.ones_like(x), x] if fit_slope else [np.ones_like(x)]
    found = _maximize_likelihood(
        columns,
        np.zeros_like(x) if fit_slope else x,
        is_event,
        np.array([0.0, 1.0])[: len(columns)],
    )
    if found is None:
        return float("nan"), float("nan")
    return float(found[0]), float(found[1]) if fit_slope else 1.0


def fit_logistic_spline(
    x: Float64Array, is_event: BoolArray, clusters: Int64Array, points: Float64Array, level: float
) -> tuple[Float64Array, Float64Array, Float64Array] | None:
    """The probability at some points by a logistic regression on a restricted cubic spline of x, with an interval that knows clusters.

    Three knots at the 10th, 50th and 90th percentile of x (Harrell 2015, Regression Modeling Strategies, section 2.4.5); the interval is that of the
    linear predictor by the sandwich variance over clusters (Liang and Zeger 1986).

    Args:
        x: shape (m,).
        is_event: shape (m,).
        clusters: of the m, shape (m,).
        points: values of x to answer for, shape (k,).
        level: of the interval.

    Returns:
        Probabilities and the ends of their intervals, each of shape (k,); None where knots coincide or no maximum exists.
    """
    knots = np.quantile(x, [0.1, 0.5, 0.9])
    if (
        len(np.unique(knots)) < 3
        or not is_event.any()
        or is_event.all()
        or _is_unbounded(x, is_event)
    ):
        return None
    columns = [np.ones_like(x), x, _compute_spline_term(x, knots)]
    found = _maximize_likelihood(columns, np.zeros_like(x), is_event, np.array([0.0, 1.0, 0.0]))
    if found is None:
        return None
    variance = _compute_sandwich_variance(columns, found, is_event, clusters)
    design = np.stack([np.ones_like(points), points, _compute_spline_term(points, knots)], axis=1)
    middle, half = (
        design @ found,
        float(stats.norm.ppf((1 + level) / 2))
        * np.sqrt(np.einsum("ki,ij,kj->k", design, variance, design)),
    )
    return special.expit(middle), special.expit(middle - half), special.expit(middle + half)


def _compute_spline_term(x: Float64Array, knots: Float64Array) -> Float64Array:
    """The nonlinear term of a restricted cubic spline with three knots: straight outside of them (Harrell 2015, equation 2.25)."""
    first, second, third = (np.maximum(x - knot, 0.0) ** 3 for knot in knots)
    low, middle, high = knots
    bent: Float64Array = (
        first - second * (high - low) / (high - middle) + third * (middle - low) / (high - middle)
    ) / (high - low) ** 2
    return bent


def _maximize_likelihood(
    columns: Sequence[Float64Array], offset: Float64Array, is_event: BoolArray, start: Float64Array
) -> Float64Array | None:
    """The coefficients with the highest likelihood; a Newton step that lowers it is halved. None where the search does not end."""
    at, reached = (
        start,
        _compute_log_likelihood(_compute_linear_predictor(columns, offset, start), is_event),
    )
    for _ in range(_MAX_NEWTON_STEPS):
        score, information = _compute_derivatives(
            columns, _compute_linear_predictor(columns, offset, at), is_event
        )
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return None
        step = np.linalg.solve(information, score)
        following = _compute_log_likelihood(
            _compute_linear_predictor(columns, offset, at + step), is_event
        )
        while following < reached and np.abs(step).max() > _STEP_TOLERANCE:
            step = step / 2
            following = _compute_log_likelihood(
                _compute_linear_predictor(columns, offset, at + step), is_event
            )
        at, reached = at + step, following
        if np.abs(step).max() <= _STEP_TOLERANCE:
            return at
    return None


def _compute_linear_predictor(
    columns: Sequence[Float64Array], offset: Float64Array, coefficients: Float64Array
) -> Float64Array:
    z = offset.copy()
    for column, coefficient in zip(columns, coefficients, strict=True):
        z += coefficient * column
    return z


def _compute_log_likelihood(linear_predictor: Float64Array, is_event: BoolArray) -> float:
    return float(linear_predictor[is_event].sum() - np.logaddexp(0, linear_predictor).sum())


def _compute_derivatives(
    columns: Sequence[Float64Array], linear_predictor: Float64Array, is_event: BoolArray
) -> tuple[Float64Array, Float64Array]:
    """Score, shape (d,), and information, shape (d, d), of the log-likelihood."""
    p: Float64Array = special.expit(linear_predictor)
    missed, spread = is_event - p, p * (1 - p)
    information = np.array(
        [[float((spread * one) @ other) for other in columns] for one in columns]
    )
    return np.array([float(missed @ one) for one in columns]), information


def _compute_sandwich_variance(
    columns: Sequence[Float64Array],
    coefficients: Float64Array,
    is_event: BoolArray,
    clusters: Int64Array,
) -> Float64Array:
    """Variance of the coefficients when what belongs to a cluster goes together, shape (d, d)."""
    z = _compute_linear_predictor(columns, np.zeros_like(columns[0]), coefficients)
    _, information = _compute_derivatives(columns, z, is_event)
    missed = is_event - special.expit(z)
    _, position = np.unique(clusters, return_inverse=True)
    scores = np.stack(
        [np.bincount(position, weights=missed * one) for one in columns], axis=1
    )  # (clusters, d)
    inverse = np.linalg.inv(information)
    variance: Float64Array = (
        inverse @ (scores.T @ scores) @ inverse * len(scores) / max(len(scores) - 1, 1)
    )
    return variance


def _is_unbounded(x: Float64Array, is_event: BoolArray) -> bool:
    """Whether the likelihood has no maximum in the slope: x is constant or, touching included, separates the classes (Albert and Anderson 1984)."""
    with_event, without = x[is_event], x[~is_event]
    return bool(
        x.min() == x.max() or with_event.min() >= without.max() or with_event.max() <= without.min()
    )
