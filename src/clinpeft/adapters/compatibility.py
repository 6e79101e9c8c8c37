"""Which adapters can stand in one stack, and how: a table, the check that reads it, and its rows for the documentation.

What composes is what adds up in any order: W x + s1 B1 A1 x + s2 B2 A2 x. DoRA rescales whole columns of the summed weight and IA3 the layer's
output, so that two of them, or one with a LoRA, depend on the order in which they were put on; folded into the base first, they are part of W and
anything stands on them. Virtual tokens and gated prompts change no weight, so that one of them stands beside LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations as pairs
from typing import Literal

from clinpeft.adapters.methods import METHODS, Joins
from clinpeft.core.errors import AdapterError
from clinpeft.recipe import AnyAdapterSpec


@dataclass(frozen=True)
class Combination:
    """How a first adapter and a second, attached after it, stand together, and why."""

    how: Literal["additive", "kept beside", "merged first", "impossible"]
    why: str


_ADDED = Combination(
    "additive", "both updates are added to the layer's output; their order does not matter"
)
_BESIDE = Combination(
    "kept beside", "one changes what the layers compute, the other what they attend to"
)
_FOLD = "in the order of the two lies a difference; the first, frozen and merged = true, becomes part of the base's weights"
_ONE_PROMPT = Combination(
    "impossible", "peft has one prompt active at a time, and prompts cannot be merged"
)
_NO_FOLD = Combination(
    "impossible",
    "a prompt cannot be merged, and {second} stands on plain weights alone; the other way round, {second} is merged first",
)

COMBINATIONS: dict[tuple[Joins, Joins], Combination] = {
    ("added", "added"): _ADDED,
    ("added", "beside"): _BESIDE,
    ("beside", "added"): _BESIDE,
    ("added", "alone"): Combination("merged first", _FOLD),
    ("alone", "added"): Combination("merged first", _FOLD),
    ("alone", "alone"): Combination("merged first", _FOLD),
    ("alone", "beside"): Combination(
        "merged first", "{first} stands on the weights alone; merged = true makes it part of them"
    ),
    ("beside", "alone"): _NO_FOLD,
    ("beside", "beside"): _ONE_PROMPT,
}
LIVE = frozenset({"additive", "kept beside"})


def combinations() -> list[tuple[str, str, str, str]]:
    """(first method, second method, how, why) for every pair of methods, as the documentation prints it.

    Whatever merges (``METHODS``) may also be merged first where the table says additive or kept beside.
    """
    return [(first, second, *_between(first, second)) for first in METHODS for second in METHODS]


def _between(first: str, second: str) -> tuple[str, str]:
    found = COMBINATIONS[METHODS[first].joins, METHODS[second].joins]
    return found.how, found.why.format(first=first, second=second)


def check_combination(specs: Sequence[AnyAdapterSpec]) -> None:
    """That adapters can stand in one stack in this order.

    Raises:
        AdapterError: they cannot; the message names what can.
    """
    for at, spec in enumerate(specs):
        _check_merged(spec, at)
    for first, second in pairs([spec.method for spec in specs if not spec.merged], 2):
        how, why = _between(first, second)
        if how not in LIVE:
            raise AdapterError(
                f"{first} and then {second}, both unmerged: {why}",
                location="adapters",
                hint=_possible(first),
            )


def _check_merged(spec: AnyAdapterSpec, at: int) -> None:
    """Only one, the first: what is folded away later has been trained below by nothing, and is put back exactly when it is switched off."""
    if not spec.merged:
        return
    if not METHODS[spec.method].merges:
        able = ", ".join(name for name, method in METHODS.items() if method.merges)
        raise AdapterError(
            f"{spec.method} cannot be merged",
            location=f"adapters.{at}.merged",
            hint=f"these can: {able}",
        )
    asked = {
        "from_run": bool(spec.from_run),
        "trainable = false": not spec.trainable,
        "active": spec.active,
        "the first place": at == 0,
    }
    missing = [what for what, there in asked.items() if not there]
    if missing:
        message = (
            f"merged = true on adapter {at + 1}, and a merged adapter needs {', '.join(missing)}"
        )
        raise AdapterError(
            message,
            location=f"adapters.{at}.merged",
            hint="merge one finished adapter, frozen and first; leave the others unmerged",
        )


def _possible(first: str) -> str:
    live = [second for second in METHODS if _between(first, second)[0] in LIVE]
    merged = (
        "; with the first frozen and merged = true, any method stands on it"
        if METHODS[first].merges
        else ""
    )
    return f"beside an unmerged {first} can stand: {', '.join(live) or 'nothing'}{merged}"
