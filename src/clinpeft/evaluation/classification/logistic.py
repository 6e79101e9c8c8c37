"""Logistic regressions of one variable, as calibration asks for them: a shift, a line, a bent line. No penalty; damped Newton steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from clinpeft.evaluation.bootstrap import Floats, Integers
from clinpeft.evaluation.classification.ranks import Flags

_STEPS = 50  # about six are needed; where none suffice there is no maximum
_ENOUGH = 1e-9  # a last step smaller than this ends the search


def logistic(x: Floats, happened: Flags, *, free_slope: bool) -> tuple[float, float]:
    """Intercept and slope of a logistic regression on x; with the slope held at 1, x is an offset.

    Args:
        x: shape (m,).
        happened: shape (m,).
        free_slope: whether the slope is fitted too.

    Returns:
        NaN where no maximum exists: one class only, and for the slope an x that does not vary or that separates the classes.
    """
    if not happened.any() or happened.all() or (free_slope and _unbounded(x, happened)):
        return float("nan"), float("nan")
    columns = [np.ones_like(x), x] if free_slope else [np.ones_like(x)]
    found = _maximum(
        columns,
        np.zeros_like(x) if free_slope else x,
        happened,
        np.array([0.0, 1.0])[: len(columns)],
    )
    if found is None:
        return float("nan"), float("nan")
    return float(found[0]), float(found[1]) if free_slope else 1.0


def smooth(
    x: Floats, happened: Flags, clusters: Integers, points: Floats, level: float
) -> tuple[Floats, Floats, Floats] | None:
    """The probability at some points by a logistic regression on a restricted cubic spline of x, with an interval that knows clusters.

    Three knots at the 10th, 50th and 90th percentile of x (Harrell 2015, Regression Modeling Strategies, section 2.4.5); the interval is that of the
    linear predictor by the sandwich variance over clusters (Liang and Zeger 1986).

    Args:
        x: shape (m,).
        happened: shape (m,).
        clusters: of the m, shape (m,).
        points: values of x to answer for, shape (k,).
        level: of the interval.

    Returns:
        Probabilities and the ends of their intervals, each of shape (k,); None where knots coincide or no maximum exists.
    """
    knots = np.quantile(x, [0.1, 0.5, 0.9])
    if len(np.unique(knots)) < 3 or not happened.any() or happened.all() or _unbounded(x, happened):
        return None
    columns = [np.ones_like(x), x, _bend(x, knots)]
    found = _maximum(columns, np.zeros_like(x), happened, np.array([0.0, 1.0, 0.0]))
    if found is None:
        return None
    variance = _sandwich(columns, found, happened, clusters)
    design = np.stack([np.ones_like(points), points, _bend(points, knots)], axis=1)
    middle, half = (
        design @ found,
        float(stats.norm.ppf((1 + level) / 2))
        * np.sqrt(np.einsum("ki,ij,kj->k", design, variance, design)),
    )
    return special.expit(middle), special.expit(middle - half), special.expit(middle + half)


def _bend(x: Floats, knots: Floats) -> Floats:
    """The nonlinear term of a restricted cubic spline with three knots: straight outside of them (Harrell 2015, equation 2.25)."""
    first, second, third = (np.maximum(x - knot, 0.0) ** 3 for knot in knots)
    low, middle, high = knots
    bent: Floats = (
        first - second * (high - low) / (high - middle) + third * (middle - low) / (high - middle)
    ) / (high - low) ** 2
    return bent


def _maximum(
    columns: Sequence[Floats], offset: Floats, happened: Flags, start: Floats
) -> Floats | None:
    """The coefficients with the highest likelihood; a Newton step that lowers it is halved. None where the search does not end."""
    at, reached = start, _likelihood(_predictor(columns, offset, start), happened)
    for _ in range(_STEPS):
        score, information = _derivatives(columns, _predictor(columns, offset, at), happened)
        if np.linalg.cond(information) > 1 / np.finfo(np.float64).eps:
            return None
        step = np.linalg.solve(information, score)
        following = _likelihood(_predictor(columns, offset, at + step), happened)
        while following < reached and np.abs(step).max() > _ENOUGH:
            step = step / 2
            following = _likelihood(_predictor(columns, offset, at + step), happened)
        at, reached = at + step, following
        if np.abs(step).max() <= _ENOUGH:
            return at
    return None


def _predictor(columns: Sequence[Floats], offset: Floats, at: Floats) -> Floats:
    z = offset.copy()
    for column, coefficient in zip(columns, at, strict=True):
        z += coefficient * column
    return z


def _likelihood(z: Floats, happened: Flags) -> float:
    return float(z[happened].sum() - np.logaddexp(0, z).sum())


def _derivatives(columns: Sequence[Floats], z: Floats, happened: Flags) -> tuple[Floats, Floats]:
    """Score, shape (d,), and information, shape (d, d), of the log-likelihood."""
    p: Floats = special.expit(z)
    missed, spread = happened - p, p * (1 - p)
    information = np.array(
        [[float((spread * one) @ other) for other in columns] for one in columns]
    )
    return np.array([float(missed @ one) for one in columns]), information


def _sandwich(columns: Sequence[Floats], at: Floats, happened: Flags, clusters: Integers) -> Floats:
    """Variance of the coefficients when what belongs to a cluster goes together, shape (d, d)."""
    z = _predictor(columns, np.zeros_like(columns[0]), at)
    _, information = _derivatives(columns, z, happened)
    missed = happened - special.expit(z)
    _, position = np.unique(clusters, return_inverse=True)
    scores = np.stack(
        [np.bincount(position, weights=missed * one) for one in columns], axis=1
    )  # (clusters, d)
    inverse = np.linalg.inv(information)
    variance: Floats = (
        inverse @ (scores.T @ scores) @ inverse * len(scores) / max(len(scores) - 1, 1)
    )
    return variance


def _unbounded(x: Floats, happened: Flags) -> bool:
    """Whether the likelihood has no maximum in the slope: x is constant or, touching included, separates the classes (Albert and Anderson 1984)."""
    with_event, without = x[happened], x[~happened]
    return bool(
        x.min() == x.max() or with_event.min() >= without.max() or with_event.max() <= without.min()
    )
