"""Two runs side by side: what was asked differently, and whether what they measured may be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clinpeft.runs.store import Run, RECIPE_LOCATION_FIELDS


@dataclass(frozen=True)
class RunDifference:
    """A key of the recipe, or a fact of the record, that is not the same in both; None where one has it not."""

    key: str
    first: str | int | float | bool | None
    second: str | int | float | bool | None


@dataclass(frozen=True)
class RunComparison:
    """Two runs.

    Attributes:
        first, second: the runs.
        differences: what was asked or stood on differently, in the order of the recipe.
        incomparable_reason: why their numbers say nothing about each other; empty when nothing in the records speaks against it. Whether as many tokens of
            the same notes were scored, or the same stays were asked, is for ``evaluation``, which reads what they wrote.
    """

    first: Run
    second: Run
    differences: tuple[RunDifference, ...]
    incomparable_reason: str


def compare_runs(first: Run, second: Run) -> RunComparison:
    """What two runs have in common, and what not."""
    one, other = dict(_iterate_facts(first)), dict(_iterate_facts(second))
    keys = [*one, *(key for key in other if key not in one)]
    differences = tuple(RunDifference(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key))
    unfinished = [f"run {run.id} is {run.state}" for run in (first, second) if run.state != "finished"]
    return RunComparison(first, second, differences, "; ".join(unfinished) or _explain_incomparable(one, other))


def _iterate_facts(run: Run) -> Iterator[tuple[str, Any]]:
    yield from _flatten_values(run.recipe.model_dump(mode="json", exclude=RECIPE_LOCATION_FIELDS))
    yield from _flatten_values(run.record.model_dump(mode="json", include={"hashes", "versions", "precision", "hardware"}))


def _flatten_values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values, entries of lists by their number from 0, as ``--set`` writes them."""
    if isinstance(value, dict | list):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten_values(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _explain_incomparable(first_facts: Mapping[str, Any], second_facts: Mapping[str, Any]) -> str:
    """Why numbers of two runs say nothing about each other, from what is on record."""
    if first_facts["kind"] != second_facts["kind"]:
        return f"one run is of kind {first_facts['kind']}, the other of kind {second_facts['kind']}"
    return _INCOMPARABLE_REASONS[first_facts["kind"]](first_facts, second_facts)


def _compare_tasks(first_facts: Mapping[str, Any], second_facts: Mapping[str, Any]) -> str:
    names = (first_facts["task.name"], second_facts["task.name"])
    return "" if names[0] == names[1] else f"one run answers {names[0]}, the other {names[1]}"


def _compare_tokenizers(first_facts: Mapping[str, Any], second_facts: Mapping[str, Any]) -> str:
    """A perplexity is per token: it takes the same text, cut into the same tokens."""
    if any(first_facts.get(key) != second_facts.get(key) for key in ("corpus.deidentification", "hashes.corpus_policy")):
        return "the text was cleaned differently, so the notes are not the same text"
    key = "hashes.tokenizer" if first_facts.get("hashes.tokenizer") and second_facts.get("hashes.tokenizer") else "hashes.base"
    if not (first_facts.get(key) and second_facts.get(key)):
        return "the records do not say which tokenizer cut the text"
    return "" if first_facts[key] == second_facts[key] else "the tokenizers differ, so a token of one is not a token of the other"


_INCOMPARABLE_REASONS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "adapt": _compare_tokenizers,
    "classify": _compare_tasks,
    "embed": lambda one, other: "",  # whether the same pairs were scored is seen from the scores  # noqa: ARG005
}
