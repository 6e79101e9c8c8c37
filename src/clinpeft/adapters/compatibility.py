"""Which adapters can be combined in one stack: the table, the check, and the rows for the docs.

Updates that add up can be combined in any order: W x + s1 B1 A1 x + s2 B2 A2 x. DoRA rescales whole
columns of the summed weight and IA3 the layer's output, so that two of them, or one with a LoRA,
depend on the order; merged into the base first, they are part of W, and anything can follow.
Virtual tokens and gated prompts change no weight, so that one of them can be combined with LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from clinpeft.adapters.methods import ADAPTER_METHODS, CompositionKind
from clinpeft.core.errors import AdapterError
from clinpeft.recipe import AnyAdapterSpec


@dataclass(frozen=True)
class AdapterCombination:
    """How a first adapter and a second, attached after it, are combined, and why."""

    kind: Literal["additive", "kept beside", "merged first", "impossible"]
    reason: str


_ADDITIVE_COMBINATION = AdapterCombination(
    "additive", "both updates are added to the layer's output; their order does not matter"
)
_SIDE_BY_SIDE_COMBINATION = AdapterCombination(
    "kept beside", "one changes what the layers compute, the other what they attend to"
)
_MERGE_FIRST_COMBINATION = AdapterCombination(
    "merged first",
    "the result depends on their order; the first, frozen and merged = true, becomes part of the"
    " base's weights",
)
_MERGE_BEFORE_PROMPT_COMBINATION = AdapterCombination(
    "merged first", "{first} needs plain weights below it; merged = true makes it part of them"
)
_SINGLE_PROMPT_COMBINATION = AdapterCombination(
    "impossible", "peft has one prompt active at a time, and prompts cannot be merged"
)
_UNMERGEABLE_PROMPT_COMBINATION = AdapterCombination(
    "impossible",
    "a prompt cannot be merged, and {second} needs plain weights below it; in the other order,"
    " {second} is merged first",
)

ADAPTER_COMBINATIONS: dict[tuple[CompositionKind, CompositionKind], AdapterCombination] = {
    ("added", "added"): _ADDITIVE_COMBINATION,
    ("added", "beside"): _SIDE_BY_SIDE_COMBINATION,
    ("beside", "added"): _SIDE_BY_SIDE_COMBINATION,
    ("added", "alone"): _MERGE_FIRST_COMBINATION,
    ("alone", "added"): _MERGE_FIRST_COMBINATION,
    ("alone", "alone"): _MERGE_FIRST_COMBINATION,
    ("alone", "beside"): _MERGE_BEFORE_PROMPT_COMBINATION,
    ("beside", "alone"): _UNMERGEABLE_PROMPT_COMBINATION,
    ("beside", "beside"): _SINGLE_PROMPT_COMBINATION,
}
"""(composition of the first, composition of the second) -> how they are combined."""

UNMERGED_COMBINATION_KINDS = frozenset({"additive", "kept beside"})


def list_adapter_combinations() -> list[tuple[str, str, str, str]]:
    """List how every pair of methods is combined, as the documentation prints it.

    A mergeable method may also be merged first where the table says additive or kept beside.

    Returns:
        (first method, second method, kind, reason) of each pair.
    """
    return [
        (first, second, *_get_combination(first, second))
        for first in ADAPTER_METHODS
        for second in ADAPTER_METHODS
    ]


def _get_combination(first_method: str, second_method: str) -> tuple[str, str]:
    # by composition and not by method, so that a new method needs no row
    combination = ADAPTER_COMBINATIONS[
        ADAPTER_METHODS[first_method].composition, ADAPTER_METHODS[second_method].composition
    ]
    reason = combination.reason.format(first=first_method, second=second_method)
    return combination.kind, reason


def check_adapter_combination(specs: Sequence[AnyAdapterSpec]) -> None:
    """Check that adapters can be combined in one stack in this order.

    Raises:
        AdapterError: they cannot; the hint names what can.
    """
    for index, spec in enumerate(specs):
        if spec.merged:
            _check_merged_adapter(spec, index)
    # merged adapters are part of the base, and combine with anything
    for first, second in combinations([spec.method for spec in specs if not spec.merged], 2):
        kind, reason = _get_combination(first, second)
        if kind in UNMERGED_COMBINATION_KINDS:
            continue
        # for the hint: what could follow the first instead
        compatible = [
            method
            for method in ADAPTER_METHODS
            if _get_combination(first, method)[0] in UNMERGED_COMBINATION_KINDS
        ]
        hint = f"with an unmerged {first}, these can be combined: {', '.join(compatible) or 'none'}"
        if ADAPTER_METHODS[first].is_mergeable:
            hint += "; with the first frozen and merged = true, any method can follow"
        raise AdapterError(
            f"{first} and then {second}, both unmerged: {reason}", location="adapters", hint=hint
        )


def _check_merged_adapter(spec: AnyAdapterSpec, index: int) -> None:
    mergeable = [name for name, method in ADAPTER_METHODS.items() if method.is_mergeable]
    location = f"adapters.{index}.merged"
    if spec.method not in mergeable:
        raise AdapterError(
            f"{spec.method} cannot be merged",
            location=location,
            hint=f"these can: {', '.join(mergeable)}",
        )
    # only a finished adapter right above the base: the adapters below a later one would have been
    # trained without it, and undoing the merge (disable_adapter) has to give the base exactly
    requirements = {
        "from_run": bool(spec.from_run),
        "trainable = false": not spec.trainable,
        "active": spec.active,
        "the first place": index == 0,
    }
    if missing := [name for name, is_met in requirements.items() if not is_met]:
        raise AdapterError(
            f"merged = true on adapter {index + 1}, and a merged adapter needs"
            f" {', '.join(missing)}",
            location=location,
            hint="merge one finished adapter, frozen and first; leave the others unmerged",
        )
