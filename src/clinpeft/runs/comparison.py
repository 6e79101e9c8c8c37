"""Comparison of two runs: how recipes and records differ, and whether results are comparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clinpeft.runs.store import RECIPE_LOCATION_FIELDS, Run

_COMPARED_FACTS = {"hashes", "versions", "precision", "hardware"}


@dataclass(frozen=True)
class RunDifference:
    """A key of the recipe, or a field of the record, that differs; None where a run has no such
    key."""

    key: str
    first: str | int | float | bool | None
    second: str | int | float | bool | None


@dataclass(frozen=True)
class RunComparison:
    """Two runs and their differences.

    Attributes:
        first, second: the runs.
        differences: keys of the recipe, then fields of the record.
        incomparable_reason: why their results cannot be compared; empty when nothing in the records
            prevents it. Whether the same tokens, stays or pairs were scored is checked by
            ``evaluation``, which reads what the runs wrote.
    """

    first: Run
    second: Run
    differences: tuple[RunDifference, ...]
    incomparable_reason: str


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Compare the recipes and records of two runs.

    Both must have finished and be of one kind. A classifier is comparable with one of the same
    tasks. A perplexity is per token, so that two language models are comparable on the same text
    and tokenizer only. Whether two encoders scored the same pairs shows in their scores.
    """
    facts, other_facts = dict(_iterate_facts(first)), dict(_iterate_facts(second))
    # The order of the first run, then what only the second has.
    keys = [*facts, *(key for key in other_facts if key not in facts)]
    differences = tuple(
        RunDifference(key, facts.get(key), other_facts.get(key))
        for key in keys
        if facts.get(key) != other_facts.get(key)
    )
    unfinished = [
        f"run {run.id} is {run.state}" for run in (first, second) if run.state != "finished"
    ]
    # A recipe states what its results are counted in; only language models have a corpus.
    unit = getattr(
        first.recipe, "compared_unit", "tokens" if "corpus.deidentification" in facts else ""
    )
    if unfinished:
        reason = "; ".join(unfinished)
    elif facts["kind"] != other_facts["kind"]:
        reason = f"one run is of kind {facts['kind']}, the other of kind {other_facts['kind']}"
    elif unit == "tokens":
        reason = _explain_other_tokens(facts, other_facts)
    elif facts.get("task.name") != other_facts.get("task.name"):  # None for a kind without tasks
        reason = f"one run answers {facts['task.name']}, the other {other_facts['task.name']}"
    else:
        reason = ""
    return RunComparison(first, second, differences, reason)


def _explain_other_tokens(facts: Mapping[str, Any], other_facts: Mapping[str, Any]) -> str:
    """Why two perplexities are not about the same tokens of the same text; empty if they are."""

    def differs(key: str) -> bool:
        return facts.get(key) != other_facts.get(key)

    if differs("corpus.deidentification") or differs("hashes.corpus_policy"):
        return "the text was cleaned differently, so the notes are not the same text"
    # The base stands for its tokenizer where a record has no hash of the tokenizer.
    has_hash = facts.get("hashes.tokenizer") and other_facts.get("hashes.tokenizer")
    key = "hashes.tokenizer" if has_hash else "hashes.base"
    if not (facts.get(key) and other_facts.get(key)):
        return "the records do not say which tokenizer cut the text"
    if differs(key):
        return "the tokenizers differ, so a token of one is not a token of the other"
    return ""


def _iterate_facts(run: Run) -> Iterator[tuple[str, Any]]:
    yield from _flatten_values(run.recipe.model_dump(mode="json", exclude=RECIPE_LOCATION_FIELDS))
    yield from _flatten_values(run.record.model_dump(mode="json", include=_COMPARED_FACTS))


def _flatten_values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values; entries of lists by their number from 0, as ``--set`` names
    them."""
    # An empty list or table has no facts, as if the key were missing.
    if isinstance(value, dict | list):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten_values(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
