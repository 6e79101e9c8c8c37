"""The outcome model: signs stated in the admission note -> the probability of each outcome.

With ``x`` the sum of the base and of the weights in ``signs.toml`` over the signs of a stay:

- death, ventilation, prolonged ventilation and readmission are drawn from ``1 / (1 + exp(-x))``;
- the length of stay is log-normal with median ``exp(x)`` days, truncated to [0.5, 90]; a ventilated
  patient stays at least as long as the ventilation takes.

Given the signs, nothing else in the hospital is informative about these outcomes. So the AUROC of
the true probabilities is the Bayes limit of any reader of the admission note. It holds in
expectation: on a finite sample a model may be above it by chance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

from clinpeft.data.synthetic.files import read_synthetic_data
from clinpeft.data.synthetic.rates import EARLY_DEATH_FRACTION, SyntheticRates

MIN_STAY_DAYS, MAX_STAY_DAYS = 0.5, 90.0
# 3, 7 and 14 days after rounding to one decimal, half to even
STAY_CLASS_ENDS_DAYS = (3.05, 7.05, 14.05)
# Of ventilations under 2 days, of 2 to 7 (6.2 at most, so that none is at the edge of a definition
# of "prolonged"), and of 7 days and more
MIN_STAY_DAYS_BY_VENTILATION = {"none": 0.5, "brief": 2.0, "medium": 6.6, "prolonged": 9.0}
# Of ventilations that are not prolonged, those under 2 days; they are in no cohort of Clinical
# XLNet (Huang et al. 2020, arXiv 1912.11975).
BRIEF_VENTILATION_FRACTION = 0.35
OUTCOME_NAMES = ("death", "intensive", "ventilated", "prolonged", "readmitted")
_STANDARD_NORMAL = NormalDist()

VentilationCategory = Literal["none", "brief", "medium", "prolonged"]


@dataclass(frozen=True)
class PrognosticSign:
    """One thing that admission notes state.

    Attributes:
        name: of the sign.
        part: of the note that states it: ``story`` or ``exam``.
        share: fraction of the stays that have it, by severity (mild, moderate, severe).
        says: templates that state it.
        death, intensive, ventilated, prolonged, readmitted: added to the log-odds of the outcome.
        days: added to the logarithm of the median length of stay in days.
    """

    name: str
    part: str
    share: tuple[float, float, float]
    says: tuple[str, ...]
    death: float = 0.0
    intensive: float = 0.0
    ventilated: float = 0.0
    prolonged: float = 0.0
    readmitted: float = 0.0
    days: float = 0.0


@dataclass(frozen=True)
class OutcomeProbabilities:
    """What follows from the signs of a stay.

    Attributes:
        death: probability of death in the hospital.
        intensive: probability of intensive care.
        ventilated: probability of invasive ventilation.
        prolonged: probability of at least 7 days of ventilation, given ventilation.
        readmitted: probability of a readmission within 30 days, given survival.
        log_days: logarithm of the median length of stay in days.
    """

    death: float
    intensive: float
    ventilated: float
    prolonged: float
    readmitted: float
    log_days: float


def compute_outcome_probabilities(signs: Sequence[PrognosticSign]) -> OutcomeProbabilities:
    """Compute the outcome probabilities of a stay with these signs."""

    # A logistic model of each outcome, and a linear one of the logarithm of the length of stay
    def sum_weights(outcome: str) -> float:
        base: float = read_synthetic_data("signs.toml")["base"][outcome]
        weights: list[float] = [getattr(sign, outcome) for sign in signs]
        return base + sum(weights)

    return OutcomeProbabilities(
        **{outcome: 1 / (1 + math.exp(-sum_weights(outcome))) for outcome in OUTCOME_NAMES},
        log_days=sum_weights("days"),
    )


def compute_length_of_stay_days(
    probabilities: OutcomeProbabilities,
    quantile: float,
    min_days: float = MIN_STAY_DAYS,
    max_days: float = MAX_STAY_DAYS,
) -> float:
    """Compute a quantile of the truncated log-normal length of stay.

    Args:
        probabilities: of the stay, for its median.
        quantile: in [0, 1).
        min_days: lower end of the distribution.
        max_days: upper end of the distribution.

    Returns:
        The length of stay in days.
    """
    # Inverse of the truncated distribution: F^-1(F(min) + q (F(max) - F(min)))
    low = _compute_length_of_stay_cdf(probabilities, min_days)
    high = _compute_length_of_stay_cdf(probabilities, max_days)
    # The inverse of the normal distribution is infinite at 0 and 1.
    level = min(max(low + (high - low) * quantile, 1e-12), 1 - 1e-12)
    spread = read_synthetic_data("signs.toml")["base"]["days_spread"]
    days = math.exp(probabilities.log_days + spread * _STANDARD_NORMAL.inv_cdf(level))
    return min(max(days, min_days), max_days)


def compute_length_class_probabilities(probabilities: OutcomeProbabilities) -> tuple[float, ...]:
    """Compute the probabilities of up to 3, 7, 14 and more days, given survival.

    The length of stay depends on the ventilation through its minimum, so the four ventilation
    categories are mixed by their probabilities.

    Returns:
        Four probabilities that sum to 1.
    """
    ventilated = probabilities.ventilated
    prolonged = probabilities.ventilated * probabilities.prolonged
    category_probabilities = {
        "none": 1 - ventilated,
        "brief": (ventilated - prolonged) * BRIEF_VENTILATION_FRACTION,
        "medium": (ventilated - prolonged) * (1 - BRIEF_VENTILATION_FRACTION),
        "prolonged": prolonged,
    }
    components = []
    for category, probability in category_probabilities.items():
        min_days = MIN_STAY_DAYS_BY_VENTILATION[category]
        low = _compute_length_of_stay_cdf(probabilities, min_days)
        high = _compute_length_of_stay_cdf(probabilities, MAX_STAY_DAYS)
        # Truncated to [min_days, MAX_STAY_DAYS]: (F(x) - F(min)) / (F(max) - F(min)), 0 below min
        cdf = [
            max(0.0, _compute_length_of_stay_cdf(probabilities, end) - low) / (high - low)
            for end in STAY_CLASS_ENDS_DAYS
        ]
        components.append((probability, cdf))
    mixture = [
        sum(probability * cdf[i] for probability, cdf in components)
        for i in range(len(STAY_CLASS_ENDS_DAYS))
    ]
    return tuple(after - before for before, after in itertools.pairwise([0.0, *mixture, 1.0]))


def compute_cohort_death_probability(
    probabilities: OutcomeProbabilities, rates: SyntheticRates
) -> float:
    """Compute the probability of death among stays whose admission note does not mention it.

    Stays with a mention leave the cohort, so P(death | no mention) by Bayes' rule.
    """
    unmentioned = probabilities.death * (1 - (rates.death_in_exam + rates.death_in_history))
    return unmentioned / (unmentioned + 1 - probabilities.death)


def compute_cohort_prolonged_ventilation_probability(
    probabilities: OutcomeProbabilities, rates: SyntheticRates
) -> float:
    """Compute the probability of prolonged ventilation in the cohort of that task.

    The cohort holds stays with at least 2 days of ventilation, without those whose death the note
    mentions or whose death cut the ventilation short (every death during a shorter ventilation).
    """
    mention_rate = rates.death_in_exam + rates.death_in_history
    prolonged = probabilities.prolonged * (1 - probabilities.death * mention_rate)
    # Survivors of a ventilation of 2 to 7 days
    shorter = (
        (1 - probabilities.prolonged) * (1 - BRIEF_VENTILATION_FRACTION) * (1 - probabilities.death)
    )
    return prolonged / (prolonged + shorter)


def compute_cohort_readmission_probability(
    probabilities: OutcomeProbabilities, rates: SyntheticRates
) -> float:
    """Compute the probability of readmission within 30 days in the cohort of that task.

    The cohort holds survivors, without those who die within 30 days and never return.
    """
    died_early = (1 - rates.later_admissions) * rates.deaths_after_discharge * EARLY_DEATH_FRACTION
    return probabilities.readmitted / (
        probabilities.readmitted + (1 - probabilities.readmitted) * (1 - died_early)
    )


def _compute_length_of_stay_cdf(probabilities: OutcomeProbabilities, days: float) -> float:
    """Cumulative distribution of the log-normal before truncation."""
    spread = read_synthetic_data("signs.toml")["base"]["days_spread"]
    return _STANDARD_NORMAL.cdf((math.log(days) - probabilities.log_days) / spread)


@cache
def load_prognostic_signs() -> tuple[PrognosticSign, ...]:
    """Load every sign of ``signs.toml``."""
    return tuple(PrognosticSign(**entry) for entry in read_synthetic_data("signs.toml")["sign"])


def describe_outcome_model() -> Mapping[str, Any]:
    """Describe the model for ``truth.json``: the base and the nonzero weights of each sign."""
    weights = {
        sign.name: {
            outcome: getattr(sign, outcome)
            for outcome in (*OUTCOME_NAMES, "days")
            if getattr(sign, outcome)
        }
        for sign in load_prognostic_signs()
    }
    return {"base": read_synthetic_data("signs.toml")["base"], "signs": weights}
