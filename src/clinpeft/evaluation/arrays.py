"""Array types of the evaluation package, and the divisions in which NaN means "not defined"."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

ScoreArray = NDArray[np.floating[Any]]
"""Scores or probabilities in the precision in which a model wrote them."""

CountArray = NDArray[np.number[Any]]
"""How often each row was drawn in each resample, shape (resamples, rows)."""


def divide_or_nan(numerators: NDArray[Any], denominators: NDArray[Any]) -> Float64Array:
    """Divide in double precision; NaN where the denominator is not positive.

    Args:
        numerators: any shape.
        denominators: a shape that broadcasts to that of ``numerators``.

    Returns:
        The quotients, in the shape of ``numerators``.
    """
    # ``where`` leaves the NaN of ``out`` in place, so that 0 / 0 raises no warning.
    quotients: Float64Array = np.divide(
        numerators,
        denominators,
        out=np.full(np.shape(numerators), np.nan),
        where=denominators > 0,
        dtype=np.float64,
    )
    return quotients


def average_defined(values: Float64Array) -> Float64Array:
    """Average over the first axis without the NaN; NaN where no value is defined.

    Args:
        values: shape (k, ...), such as (classes, resamples).

    Returns:
        Unweighted means, shape (...).
    """
    defined = ~np.isnan(values)
    # Not np.nanmean: it warns where all are NaN, and warnings are errors here.
    return divide_or_nan(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))
