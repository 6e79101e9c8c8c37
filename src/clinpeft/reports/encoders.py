"""What a grid of embeddings measured: the cells that differ by seed only are one row, and its numbers are found by what they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from clinpeft.recipe import EmbedRecipe, Recipe
from clinpeft.reports.facts import MINUS, SUBGROUP, Entry, adapters, base_name, estimates
from clinpeft.reports.tables import Estimate, mean, spread
from clinpeft.runs import Run

ZERO_SHOT, ADAPTED, RANDOM_WEIGHTS, SHUFFLED = (
    "zero-shot",
    "adapted",
    "random weights",
    "shuffled pairs",
)
LEXICAL = ("BM25", "TF-IDF")
"""Controls that have no weights, and so stand once in a table."""

STUDY, PROFILE, HELD_OUT = "study", "profile", "held-out chapters"
THRESHOLD = 0.3
"""The separation from which the study (arXiv 2511.19739) calls an embedding clinically useful; it gives no data for it."""

GIGABYTE = 1e9

Architecture = Literal["encoder", "decoder", "unknown"]

PUBLISHED = {
    "similar": "mean cosine of similar pairs, adapted",
    "different": "mean cosine of different pairs, adapted",
    "separation": "similar less different, adapted",
    "zero_shot_separation": "similar less different, as it comes",
    "embeddings_per_second": "the best of batches of 1, 4, 16 and 32",
    "memory_gb": "peak, in gigabytes",
    "dimension": "numbers in a vector",
    "parameters": "of the base",
    "latency_ms": "mean of one text at a time",
    "latency_ms_p95": "95th percentile of that",
}
"""What a cell of a recipe may give as published (arXiv 2511.19739, tables 1 to 4): key -> meaning."""


@dataclass(frozen=True)
class Known:
    """What is known of a backbone without opening it.

    Attributes:
        licence: SPDX name, or what its page calls it.
        architecture: whether every token sees every other (``encoder``), or only those before it.
        note: what to know before its vectors are offered to others; empty for nothing.
    """

    licence: str
    architecture: Architecture
    note: str = ""


_GEMMA = "its terms bind whoever passes the model or its derivatives on; the study reads them as barring embeddings as a service"
_JINA = "the study counts it as a decoder; it is a bidirectional encoder that brings its own code"

KNOWN: Mapping[str, Known] = MappingProxyType(
    {
        "michiyasunaga/BioLinkBERT-large": Known("Apache-2.0", "encoder"),
        "google/gemma-2-2b-it": Known("Gemma Terms of Use", "decoder", _GEMMA),
        "Qwen/Qwen3-Embedding-4B": Known("Apache-2.0", "decoder"),
        "sentence-transformers/all-mpnet-base-v2": Known("Apache-2.0", "encoder"),
        "Qwen/Qwen2.5-0.5B": Known("Apache-2.0", "decoder"),
        "BAAI/bge-large-en-v1.5": Known("MIT", "encoder"),
        "intfloat/e5-large-v2": Known("MIT", "encoder"),
        "BAAI/bge-small-en-v1.5": Known("MIT", "encoder"),
        "BAAI/bge-m3": Known("MIT", "encoder"),
        "jinaai/jina-embeddings-v2-base-en": Known("Apache-2.0", "encoder", _JINA),
        "sentence-transformers/all-MiniLM-L6-v2": Known("Apache-2.0", "encoder"),
        "answerdotai/ModernBERT-base": Known("Apache-2.0", "encoder"),
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext": Known("MIT", "encoder"),
        "ncbi/MedCPT-Query-Encoder": Known("public domain", "encoder"),
        "ncbi/MedCPT-Article-Encoder": Known("public domain", "encoder"),
    }
)
"""Backbone, by its name on the hub -> what is known of it (table 5 of the study, and those to compare with)."""

UNKNOWN = Known("", "unknown")

Name = tuple[str, str, str]
"""(metric, group, task)."""


@dataclass(frozen=True)
class Encoder:
    """A row: one backbone, trained in one way, with all its seeds.

    Attributes:
        model: what the row's backbone is called.
        state: how it was adapted.
        entries: its cells.
        found: the numbers of each cell that has a run.
    """

    model: str
    state: str
    entries: tuple[Entry, ...]
    found: tuple[Mapping[Name, Estimate], ...]

    @property
    def recipe(self) -> EmbedRecipe | None:
        """Of the first cell; the others differ in their seed."""
        return _embed(self.entries[0].asked)

    @property
    def runs(self) -> list[Run]:
        """Of the cells that have one."""
        return [entry.run for entry in self.entries if entry.run is not None]

    @property
    def hub_name(self) -> str:
        """A key of ``KNOWN``: the backbone that the recipe names, else the one whose name its folder has; empty for neither."""
        base = self.recipe.base if self.recipe else None
        if base is None or base.backbone in KNOWN:
            return base.backbone if base else ""
        return next(
            (name for name in KNOWN if name.partition("/")[2].lower() == base.path.name.lower()), ""
        )

    @property
    def known(self) -> Known:
        """Licence and architecture."""
        return KNOWN.get(self.hub_name, UNKNOWN)

    @property
    def published(self) -> Mapping[str, str | int | float]:
        """What was printed for it, by the keys of ``PUBLISHED``."""
        return {key: value for entry in self.entries for key, value in entry.published.items()}

    def printed(self, key: str) -> float | None:
        """A published number; None where there is none."""
        value = self.published.get(key)
        return float(value) if isinstance(value, int | float) else None

    def seeds(self, name: str, group: str, task: str) -> list[Estimate]:
        """The number of each seed that has it."""
        return [
            found[name, group, task]
            for found in self.found
            if (name, group, task) in found and found[name, group, task].value is not None
        ]

    def number(self, name: str, group: str, task: str) -> Estimate | None:
        """The mean over seeds; None where it was not measured."""
        return mean(self.seeds(name, group, task))

    def spread(self, name: str, group: str, task: str) -> Estimate | None:
        """What the seeds change; None of one seed, or where they change nothing."""
        found = spread(
            [known.value for known in self.seeds(name, group, task) if known.value is not None]
        )
        return found if found and found.value else None

    def profiled(self, name: str) -> float | None:
        """A number of the profile, of the adapted model before any other state."""
        groups = dict.fromkeys(
            [
                ADAPTED,
                *(group for found in self.found for _, group, task in found if task == PROFILE),
            ]
        )
        return next(
            (known.value for group in groups if (known := self.number(name, group, PROFILE))), None
        )

    @property
    def memory_gb(self) -> float | None:
        """The most that was held while encoding, in units of 10⁹ bytes."""
        held = self.profiled("peak_memory_bytes")
        return None if held is None else held / GIGABYTE

    @property
    def parameters(self) -> float | None:
        """Of base and adapters as profiled, else of the base as recorded."""
        return self.profiled("parameters") or next(
            (run.record.base_parameters for run in self.runs if run.record.base_parameters), None
        )

    @property
    def dimension(self) -> float | None:
        """Numbers in a vector."""
        return self.profiled("dimension")


@dataclass(frozen=True)
class Grid:
    """All rows, and the pairs on which their separation is measured: the same for all.

    Attributes:
        rows: in the order of the cells.
        task: ``study``, where every run that has ended followed the study's protocol; else the held-out chapters.
        stratum: of the unrelated pairs.
    """

    rows: tuple[Encoder, ...]
    task: str
    stratum: str

    def name(self, row: Encoder) -> str:
        """What a figure calls a row: the backbone, and how it was adapted where it was in several ways."""
        is_only = len([other for other in self.rows if other.model == row.model]) == 1
        return row.model if is_only else f"{row.model}, {row.state}"

    def pairs(self, row: Encoder, metric: str, state: str = ADAPTED) -> Estimate | None:
        """A number of the pairs."""
        return row.number(metric, f"{state}{SUBGROUP}{self.stratum}", self.task)

    def gain(self, row: Encoder, metric: str = "separation") -> Estimate | None:
        """Adapted less zero-shot, with the paired interval where it was measured, else without one."""
        return gain(row, metric, self.task, self.stratum)

    @property
    def said(self) -> str:
        """Which pairs, in words."""
        return (
            "the study's similar and different pairs"
            if self.task == STUDY
            else f"{self.task}, against {self.stratum} pairs"
        )


def grid(entries: Sequence[Entry]) -> Grid:
    """The rows of a grid: cells whose names differ only in the part that says their seed are one.

    A row's model is what the names of all cells on one base begin with, or else the base's folder; its state is the rest of its name, or else its
    adapters.
    """
    named = [(_place(entry.asked), _without_seed(entry), entry) for entry in entries]
    prefixes = {
        location: _prefix([name for other, name, _ in named if other == location])
        for location, _, _ in named
    }
    rows = []
    for location, name in dict.fromkeys((location, name) for location, name, _ in named):
        cells = tuple(entry for other, also, entry in named if (other, also) == (location, name))
        asked = cells[0].asked
        model = " · ".join(prefixes[location]) or (base_name(asked) if asked else "")
        state = (
            " · ".join(name[len(prefixes[location]) :])
            or (adapters(asked) if asked else "")
            or ADAPTED
        )
        rows.append(
            Encoder(
                model,
                state,
                cells,
                tuple(_numbers(cell.run) for cell in cells if cell.run is not None),
            )
        )
    of_study = ("separation", f"{ADAPTED}{SUBGROUP}different", STUDY)
    ended = [found for row in rows for found in row.found if found]
    follows = bool(ended) and all(of_study in found for found in ended)
    return Grid(tuple(rows), *((STUDY, "different") if follows else (HELD_OUT, "random")))


def gain(row: Encoder, metric: str, task: str, stratum: str = "") -> Estimate | None:
    """Adapted less zero-shot; ``stratum`` is empty for what has none, such as retrieval."""
    suffix = f"{SUBGROUP}{stratum}" if stratum else ""
    measured = row.number(f"{metric}_difference", f"{ADAPTED}{MINUS}{ZERO_SHOT}{suffix}", task)
    before, after = (row.number(metric, f"{state}{suffix}", task) for state in (ZERO_SHOT, ADAPTED))
    if measured or before is None or after is None or before.value is None or after.value is None:
        return measured
    return Estimate(after.value - before.value)


def _numbers(run: Run) -> dict[Name, Estimate]:
    return {(key.name, key.group, key.task): estimate for key, estimate in estimates(run).items()}


def _embed(recipe: Recipe | None) -> EmbedRecipe | None:
    return recipe if isinstance(recipe, EmbedRecipe) else None


def _place(recipe: Recipe | None) -> str:
    return str(recipe.base.path) if isinstance(recipe, EmbedRecipe) else ""


def _without_seed(entry: Entry) -> tuple[str, ...]:
    recipe = entry.asked
    said = set() if recipe is None else {f"seed={recipe.seed}", f"seed {recipe.seed}"}
    return tuple(part for part in entry.name.split(SUBGROUP) if part not in said)


def _prefix(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts that all names begin with."""
    return tuple(_shared(zip(*names, strict=False)))


def _shared(parts: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield from (part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))
