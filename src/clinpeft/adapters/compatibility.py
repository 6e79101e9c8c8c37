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

from clinpeft.adapters.methods import ADAPTER_METHODS, CompositionKind
from clinpeft.core.errors import AdapterError
from clinpeft.recipe import AnyAdapterSpec


@dataclass(frozen=True)
class AdapterCombination:
    """How a first adapter and a second, attached after it, stand together, and why."""

    kind: Literal["additive", "kept beside", "merged first", "impossible"]
    reason: str


_ADDITIVE_COMBINATION = AdapterCombination(
    "additive", "both updates are added to the layer's output; their order does not matter"
)
_SIDE_BY_SIDE_COMBINATION = AdapterCombination(
    "kept beside", "one changes what the layers compute, the other what they attend to"
)
_MERGE_FIRST_REASON = "in the order of the two lies a difference; the first, frozen and merged = true, becomes part of the base's weights"
_SINGLE_PROMPT_COMBINATION = AdapterCombination(
    "impossible", "peft has one prompt active at a time, and prompts cannot be merged"
)
_UNMERGEABLE_PROMPT_COMBINATION = AdapterCombination(
    "impossible",
    "a prompt cannot be merged, and {second} stands on plain weights alone; the other way round, {second} is merged first",
)

ADAPTER_COMBINATIONS: dict[tuple[CompositionKind, CompositionKind], AdapterCombination] = {
    ("added", "added"): _ADDITIVE_COMBINATION,
    ("added", "beside"): _SIDE_BY_SIDE_COMBINATION,
    ("beside", "added"): _SIDE_BY_SIDE_COMBINATION,
    ("added", "alone"): AdapterCombination("merged first", _MERGE_FIRST_REASON),
    ("alone", "added"): AdapterCombination("merged first", _MERGE_FIRST_REASON),
    ("alone", "alone"): AdapterCombination("merged first", _MERGE_FIRST_REASON),
    ("alone", "beside"): AdapterCombination(
        "merged first", "{first} stands on the weights alone; merged = true makes it part of them"
    ),
    ("beside", "alone"): _UNMERGEABLE_PROMPT_COMBINATION,
    ("beside", "beside"): _SINGLE_PROMPT_COMBINATION,
}
UNMERGED_COMBINATION_KINDS = frozenset({"additive", "kept beside"})


def list_adapter_combinations() -> list[tuple[str, str, str, str]]:
    """(first method, second method, how, why) for every pair of methods, as the documentation prints it.

    Whatever merges (``METHODS``) may also be merged first where the table says additive or kept beside.
    """
    return [
        (first, second, *_get_combination(first, second))
        for first in ADAPTER_METHODS
        for second in ADAPTER_METHODS
    ]


def _get_combination(first_method: str, second_method: str) -> tuple[str, str]:
    found = ADAPTER_COMBINATIONS[
        ADAPTER_METHODS[first_method].composition, ADAPTER_METHODS[second_method].composition
    ]
    return found.kind, found.reason.format(first=first_method, second=second_method)


def check_adapter_combination(specs: Sequence[AnyAdapterSpec]) -> None:
    """That adapters can stand in one stack in this order.

    Raises:
        AdapterError: they cannot; the message names what can.
    """
    for at, spec in enumerate(specs):
        _check_merged_adapter(spec, at)
    for first, second in pairs([spec.method for spec in specs if not spec.merged], 2):
        how, why = _get_combination(first, second)
        if how not in UNMERGED_COMBINATION_KINDS:
            raise AdapterError(
                f"{first} and then {second}, both unmerged: {why}",
                location="adapters",
                hint=_list_compatible_methods(first),
            )


def _check_merged_adapter(spec: AnyAdapterSpec, index: int) -> None:
    """Only one, the first: what is folded away later has been trained below by nothing, and is put back exactly when it is switched off."""
    if not spec.merged:
        return
    if not ADAPTER_METHODS[spec.method].is_mergeable:
        able = ", ".join(name for name, method in ADAPTER_METHODS.items() if method.is_mergeable)
        raise AdapterError(
            f"{spec.method} cannot be merged",
            location=f"adapters.{index}.merged",
            hint=f"these can: {able}",
        )
    asked = {
        "from_run": bool(spec.from_run),
        "trainable = false": not spec.trainable,
        "active": spec.active,
        "the first place": index == 0,
    }
    missing = [what for what, there in asked.items() if not there]
    if missing:
        message = (
            f"merged = true on adapter {index + 1}, and a merged adapter needs {', '.join(missing)}"
        )
        raise AdapterError(
            message,
            location=f"adapters.{index}.merged",
            hint="merge one finished adapter, frozen and first; leave the others unmerged",
        )


def _list_compatible_methods(first_method: str) -> str:
    live = [
        second
        for second in ADAPTER_METHODS
        if _get_combination(first_method, second)[0] in UNMERGED_COMBINATION_KINDS
    ]
    merged = (
        "; with the first frozen and merged = true, any method stands on it"
        if ADAPTER_METHODS[first_method].is_mergeable
        else ""
    )
    return f"beside an unmerged {first_method} can stand: {', '.join(live) or 'nothing'}{merged}"
