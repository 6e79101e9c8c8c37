"""Two runs side by side: what was asked differently, and whether what they measured may be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clinpeft.runs.store import Run, WHEREABOUTS


@dataclass(frozen=True)
class Difference:
    """A key of the recipe, or a fact of the record, that is not the same in both; None where one has it not."""

    key: str
    first: str | int | float | bool | None
    second: str | int | float | bool | None


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        first, second: the runs.
        differences: what was asked or stood on differently, in the order of the recipe.
        incomparable: why their numbers say nothing about each other; empty when nothing in the records speaks against it. Whether as many tokens of
            the same notes were scored, or the same stays were asked, is for ``evaluation``, which reads what they wrote.
    """

    first: Run
    second: Run
    differences: tuple[Difference, ...]
    incomparable: str


def compare(first: Run, second: Run) -> Comparison:
    """What two runs have in common, and what not."""
    one, other = dict(_facts(first)), dict(_facts(second))
    keys = [*one, *(key for key in other if key not in one)]
    differences = tuple(Difference(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key))
    unfinished = [f"run {run.id} is {run.state}" for run in (first, second) if run.state != "finished"]
    return Comparison(first, second, differences, "; ".join(unfinished) or _incomparable(one, other))


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    yield from _flat(run.recipe.model_dump(mode="json", exclude=WHEREABOUTS))
    yield from _flat(run.record.model_dump(mode="json", include={"hashes", "versions", "precision", "hardware"}))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values, entries of lists by their number from 0, as ``--set`` writes them."""
    if isinstance(value, dict | list):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(entry, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _incomparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Why numbers of two runs say nothing about each other, from what is on record."""
    if one["kind"] != other["kind"]:
        return f"one run is of kind {one['kind']}, the other of kind {other['kind']}"
    return _REASONS[one["kind"]](one, other)


def _other_question(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = (one["task.name"], other["task.name"])
    return "" if names[0] == names[1] else f"one run answers {names[0]}, the other {names[1]}"


def _other_tokens(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """A perplexity is per token: it takes the same text, cut into the same tokens."""
    if any(one.get(key) != other.get(key) for key in ("corpus.deidentification", "hashes.corpus_policy")):
        return "the text was cleaned differently, so the notes are not the same text"
    key = "hashes.tokenizer" if one.get("hashes.tokenizer") and other.get("hashes.tokenizer") else "hashes.base"
    if not (one.get(key) and other.get(key)):
        return "the records do not say which tokenizer cut the text"
    return "" if one[key] == other[key] else "the tokenizers differ, so a token of one is not a token of the other"


_REASONS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "adapt": _other_tokens,
    "classify": _other_question,
    "embed": lambda one, other: "",  # whether the same pairs were scored is seen from the scores  # noqa: ARG005
}
