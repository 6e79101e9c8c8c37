"""The known rule: signs that the admission note states in words -> the chance of each outcome, and so the best that any reader of it can do.

With ``x`` the sum of the weights in ``signs.toml`` over the signs of a stay:

- death, ventilation, prolonged ventilation and readmission are drawn from ``1 / (1 + exp(-x))``;
- the length of stay is log-normal around ``exp(x)`` days, cut to [0.5, 90]; who is ventilated stays at least as long as that takes.

Given the signs nothing else in the hospital tells more about these outcomes, so the AUROC of the true probabilities is the Bayes limit of the
admission note. It holds in expectation: a sample has its noise, and a reader who is lucky or cheats can be above.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import NormalDist
from typing import Any, Literal

from clinpeft.data.synthetic.rates import EARLY_DEATH_FRACTION, SyntheticRates

MIN_STAY_DAYS, MAX_STAY_DAYS = 0.5, 90.0
STAY_CLASS_ENDS_DAYS = (
    3.05,
    7.05,
    14.05,
)  # 3, 7 and 14 days after rounding to one decimal, half to even
MIN_STAY_DAYS_BY_VENTILATION = {"none": 0.5, "brief": 2.0, "medium": 6.6, "prolonged": 9.0}
"""The shortest stay with a ventilation of under 2 days, of 2 to 7 (up to 6.2, that no definition is at its edge), of 7 and more."""
BRIEF_VENTILATION_FRACTION = 0.35
"""Of ventilations that are not prolonged, those of under 2 days: they are in no cohort of Clinical XLNet."""

VentilationCategory = Literal["none", "brief", "medium", "prolonged"]


@dataclass(frozen=True)
class PrognosticSign:
    """One thing that admission notes say: ``share`` of stays by severity, the ways to say it, and what it adds to each outcome."""

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
    """What a stay's signs make of it: probabilities, and the logarithm of the median length of stay in days.

    ``prolonged`` is given ventilation, ``readmitted`` (within 30 days) given survival.
    """

    death: float
    intensive: float
    ventilated: float
    prolonged: float
    readmitted: float
    log_days: float


def compute_outcome_probabilities(signs: Sequence[PrognosticSign]) -> OutcomeProbabilities:
    """The chances of a stay with these signs."""
    return OutcomeProbabilities(
        **{
            outcome: _apply_logistic(_sum_sign_weights(outcome, signs)) for outcome in OUTCOME_NAMES
        },
        log_days=_sum_sign_weights("days", signs),
    )


OUTCOME_NAMES = ("death", "intensive", "ventilated", "prolonged", "readmitted")


def compute_length_of_stay_days(
    probabilities: OutcomeProbabilities,
    quantile: float,
    min_days: float = MIN_STAY_DAYS,
    max_days: float = MAX_STAY_DAYS,
) -> float:
    """The length of stay in days at a quantile in [0, 1) of its distribution between ``min_days`` and ``max_days``."""
    low, high = (
        _compute_length_of_stay_cdf(probabilities, min_days),
        _compute_length_of_stay_cdf(probabilities, max_days),
    )
    at = min(max(low + (high - low) * quantile, 1e-12), 1 - 1e-12)
    return min(
        max(
            math.exp(probabilities.log_days + _read_days_spread() * _STANDARD_NORMAL.inv_cdf(at)),
            min_days,
        ),
        max_days,
    )


def compute_length_class_probabilities(probabilities: OutcomeProbabilities) -> tuple[float, ...]:
    """The probabilities of up to 3, 7, 14 and more days for a stay that is survived; they add up to 1."""
    ventilated, prolonged = (
        probabilities.ventilated,
        probabilities.ventilated * probabilities.prolonged,
    )
    shares = {
        "none": 1 - ventilated,
        "brief": (ventilated - prolonged) * BRIEF_VENTILATION_FRACTION,
        "medium": (ventilated - prolonged) * (1 - BRIEF_VENTILATION_FRACTION),
    }
    parts = [
        (share, _compute_class_cdf(probabilities, MIN_STAY_DAYS_BY_VENTILATION[how]))
        for how, share in {**shares, "prolonged": prolonged}.items()
    ]
    ends = [
        0.0,
        *(
            sum(share * below[i] for share, below in parts)
            for i in range(len(STAY_CLASS_ENDS_DAYS))
        ),
        1.0,
    ]
    return tuple(after - before for before, after in itertools.pairwise(ends))


def compute_cohort_death_probability(
    probabilities: OutcomeProbabilities, rates: SyntheticRates
) -> float:
    """Death among those whose admission note does not tell it."""
    untold = probabilities.death * (1 - _compute_death_mention_rate(rates))
    return untold / (untold + 1 - probabilities.death)


def compute_cohort_prolonged_ventilation_probability(
    probabilities: OutcomeProbabilities, rates: SyntheticRates
) -> float:
    """Prolonged ventilation among those ventilated for 2 days and more, without deaths that the note tells or that cut it short.

    All deaths on shorter ventilations cut it short.
    """
    prolonged = probabilities.prolonged * (
        1 - probabilities.death * _compute_death_mention_rate(rates)
    )
    seen_through = (
        (1 - probabilities.prolonged) * (1 - BRIEF_VENTILATION_FRACTION) * (1 - probabilities.death)
    )
    return prolonged / (prolonged + seen_through)


def compute_cohort_readmission_probability(
    probabilities: OutcomeProbabilities, rates: SyntheticRates
) -> float:
    """Readmission within 30 days among survivors, without those who die in that time and never come back."""
    lost = (1 - rates.later_admissions) * rates.deaths_after_discharge * EARLY_DEATH_FRACTION
    return probabilities.readmitted / (
        probabilities.readmitted + (1 - probabilities.readmitted) * (1 - lost)
    )


def _compute_death_mention_rate(rates: SyntheticRates) -> float:
    return rates.death_in_exam + rates.death_in_history


def _compute_class_cdf(probabilities: OutcomeProbabilities, min_days: float) -> list[float]:
    low, high = (
        _compute_length_of_stay_cdf(probabilities, min_days),
        _compute_length_of_stay_cdf(probabilities, MAX_STAY_DAYS),
    )
    return [
        max(0.0, _compute_length_of_stay_cdf(probabilities, end) - low) / (high - low)
        for end in STAY_CLASS_ENDS_DAYS
    ]


def _compute_length_of_stay_cdf(probabilities: OutcomeProbabilities, days: float) -> float:
    return _STANDARD_NORMAL.cdf((math.log(days) - probabilities.log_days) / _read_days_spread())


def _sum_sign_weights(outcome: str, signs: Sequence[PrognosticSign]) -> float:
    base: float = _read_signs_file()["base"][outcome]
    weights: list[float] = [getattr(sign, outcome) for sign in signs]
    return base + sum(weights)


def _apply_logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _read_days_spread() -> float:
    spread: float = _read_signs_file()["base"]["days_spread"]
    return spread


@cache
def load_prognostic_signs() -> tuple[PrognosticSign, ...]:
    """Every sign there is."""
    return tuple(PrognosticSign(**_freeze_lists(entry)) for entry in _read_signs_file()["sign"])


def describe_outcome_model() -> Mapping[str, Any]:
    """The rule as it stands in ``truth.json``: the base and the weights of each sign."""
    weights = {
        sign.name: {
            outcome: getattr(sign, outcome)
            for outcome in (*OUTCOME_NAMES, "days")
            if getattr(sign, outcome)
        }
        for sign in load_prognostic_signs()
    }
    return {"base": _read_signs_file()["base"], "signs": weights}


def _freeze_lists(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@cache
def _read_signs_file() -> dict[str, Any]:
    return tomllib.loads(
        resources.files(__package__).joinpath("signs.toml").read_text(encoding="utf-8")
    )


_STANDARD_NORMAL = NormalDist()
