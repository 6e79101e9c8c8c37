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

from clinpeft.data.synthetic.rates import EARLY_DEATHS, Rates

SHORTEST_DAYS, LONGEST_DAYS = 0.5, 90.0
CLASS_ENDS_DAYS = (
    3.05,
    7.05,
    14.05,
)  # 3, 7 and 14 days after rounding to one decimal, half to even
LEAST_DAYS = {"none": 0.5, "brief": 2.0, "medium": 6.6, "prolonged": 9.0}
"""The shortest stay with a ventilation of under 2 days, of 2 to 7 (up to 6.2, that no definition is at its edge), of 7 and more."""
BRIEF = 0.35
"""Of ventilations that are not prolonged, those of under 2 days: they are in no cohort of Clinical XLNet."""

Breathing = Literal["none", "brief", "medium", "prolonged"]


@dataclass(frozen=True)
class Sign:
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
class Chances:
    """What a stay's signs make of it: probabilities, and the logarithm of the median length of stay in days.

    ``prolonged`` is given ventilation, ``readmitted`` (within 30 days) given survival.
    """

    death: float
    intensive: float
    ventilated: float
    prolonged: float
    readmitted: float
    log_days: float


def chances(signs: Sequence[Sign]) -> Chances:
    """The chances of a stay with these signs."""
    return Chances(
        **{outcome: _logistic(_sum(outcome, signs)) for outcome in PROBABILITIES},
        log_days=_sum("days", signs),
    )


PROBABILITIES = ("death", "intensive", "ventilated", "prolonged", "readmitted")


def days_at(
    chances: Chances,
    quantile: float,
    shortest: float = SHORTEST_DAYS,
    longest: float = LONGEST_DAYS,
) -> float:
    """The length of stay in days at a quantile in [0, 1) of its distribution between ``shortest`` and ``longest``."""
    low, high = _below(chances, shortest), _below(chances, longest)
    at = min(max(low + (high - low) * quantile, 1e-12), 1 - 1e-12)
    return min(max(math.exp(chances.log_days + _spread() * _NORMAL.inv_cdf(at)), shortest), longest)


def length_classes(chances: Chances) -> tuple[float, ...]:
    """The probabilities of up to 3, 7, 14 and more days for a stay that is survived; they add up to 1."""
    ventilated, prolonged = chances.ventilated, chances.ventilated * chances.prolonged
    shares = {
        "none": 1 - ventilated,
        "brief": (ventilated - prolonged) * BRIEF,
        "medium": (ventilated - prolonged) * (1 - BRIEF),
    }
    parts = [
        (share, _cumulated(chances, LEAST_DAYS[how]))
        for how, share in {**shares, "prolonged": prolonged}.items()
    ]
    ends = [
        0.0,
        *(sum(share * below[i] for share, below in parts) for i in range(len(CLASS_ENDS_DAYS))),
        1.0,
    ]
    return tuple(after - before for before, after in itertools.pairwise(ends))


def death_when_asked(chances: Chances, rates: Rates) -> float:
    """Death among those whose admission note does not tell it."""
    untold = chances.death * (1 - _told(rates))
    return untold / (untold + 1 - chances.death)


def prolonged_when_asked(chances: Chances, rates: Rates) -> float:
    """Prolonged ventilation among those ventilated for 2 days and more, without deaths that the note tells or that cut it short.

    All deaths on shorter ventilations cut it short.
    """
    prolonged = chances.prolonged * (1 - chances.death * _told(rates))
    seen_through = (1 - chances.prolonged) * (1 - BRIEF) * (1 - chances.death)
    return prolonged / (prolonged + seen_through)


def readmitted_when_asked(chances: Chances, rates: Rates) -> float:
    """Readmission within 30 days among survivors, without those who die in that time and never come back."""
    lost = (1 - rates.later) * rates.died_after * EARLY_DEATHS
    return chances.readmitted / (chances.readmitted + (1 - chances.readmitted) * (1 - lost))


def _told(rates: Rates) -> float:
    return rates.death_in_exam + rates.death_in_history


def _cumulated(chances: Chances, shortest: float) -> list[float]:
    low, high = _below(chances, shortest), _below(chances, LONGEST_DAYS)
    return [max(0.0, _below(chances, end) - low) / (high - low) for end in CLASS_ENDS_DAYS]


def _below(chances: Chances, days: float) -> float:
    return _NORMAL.cdf((math.log(days) - chances.log_days) / _spread())


def _sum(outcome: str, signs: Sequence[Sign]) -> float:
    base: float = _document()["base"][outcome]
    weights: list[float] = [getattr(sign, outcome) for sign in signs]
    return base + sum(weights)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _spread() -> float:
    spread: float = _document()["base"]["days_spread"]
    return spread


@cache
def signs() -> tuple[Sign, ...]:
    """Every sign there is."""
    return tuple(Sign(**_frozen(entry)) for entry in _document()["sign"])


def as_json() -> Mapping[str, Any]:
    """The rule as it stands in ``truth.json``: the base and the weights of each sign."""
    weights = {
        sign.name: {
            outcome: getattr(sign, outcome)
            for outcome in (*PROBABILITIES, "days")
            if getattr(sign, outcome)
        }
        for sign in signs()
    }
    return {"base": _document()["base"], "signs": weights}


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(
        resources.files(__package__).joinpath("signs.toml").read_text(encoding="utf-8")
    )


_NORMAL = NormalDist()
