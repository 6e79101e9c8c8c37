"""How a number is printed: one function each, from a number to its text."""

from __future__ import annotations

import numpy as np

from clinpeft.runs import RELEASE_SMALLEST_CELL

MISSING_VALUE_TEXT = "–"


def format_count(number: float) -> str:
    """``8,388,608``."""
    return f"{number:,.0f}"


def format_suppressed_count(number: int) -> str:
    """A count that may be released: ``<10`` for one that is smaller and not 0."""
    return (
        f"<{RELEASE_SMALLEST_CELL}" if 0 < number < RELEASE_SMALLEST_CELL else format_count(number)
    )


def format_number(value: float) -> str:
    """``2.244``; from 1,000 on without decimals: three of them would be noise."""
    # 999.95 would print as 999.950, with one digit more than 1,000
    return f"{value:.3f}" if abs(value) < 999.95 else f"{value:,.0f}"


def format_score(value: float) -> str:
    """``0.6680``: an AUROC as the papers print it, with a digit more than its interval supports."""
    return f"{value:.4f}"


def format_p_value(value: float) -> str:
    """``0.012``, and ``<0.001`` below: a p-value is never 0."""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def format_percent(fraction: float) -> str:
    """A fraction as percent without the leading zero, as arXiv 2307.03042 prints it: ``.12%``;
    below 0.01 % with two significant digits: ``.00091%``."""
    percent = 100 * fraction
    # ``format_float_positional`` has no significant digit of 0
    if percent == 0:
        return "0%"
    text = (
        f"{percent:.2f}"
        if percent >= 0.01
        else str(np.format_float_positional(percent, precision=2, fractional=False, trim="-"))
    )
    # The paper prints .12%, and 1.00% above one percent
    return text.removeprefix("0") + "%"


def format_duration(seconds: float) -> str:
    """``21:37:42``: hours, minutes, seconds; hours may exceed 24."""
    # Rounded first: 59.6 s is 0:01:00 and not 0:00:60
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
