"""What a grid of embeddings measured: the cells that differ by seed only are one row, and its
numbers are found by what they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from clinpeft.recipe import EmbedRecipe, Recipe
from clinpeft.reports.facts import (
    DIFFERENCE_SEPARATOR,
    SUBGROUP_SEPARATOR,
    CellResult,
    describe_adapters,
    get_base_model_name,
    read_estimates,
)
from clinpeft.reports.tables import Estimate, average_estimates, compute_seed_spread
from clinpeft.runs import Run

ZERO_SHOT_ENCODER, ADAPTED_ENCODER, RANDOM_WEIGHTS_ENCODER, SHUFFLED_PAIRS_ENCODER = (
    "zero-shot",
    "adapted",
    "random weights",
    "shuffled pairs",
)
LEXICAL_CONTROLS = ("BM25", "TF-IDF")
"""Controls that have no weights, and so stand once in a table."""

STUDY_TASK, PROFILE_TASK, HELD_OUT_CHAPTERS_TASK = "study", "profile", "held-out chapters"
CLINICALLY_USEFUL_SEPARATION = 0.3
"""The separation from which the study (arXiv 2511.19739) calls an embedding clinically useful; it
gives no data for it."""

BYTES_PER_GIGABYTE = 1e9

EncoderArchitecture = Literal["encoder", "decoder", "unknown"]

PUBLISHED_ENCODER_KEYS = {
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
"""What a cell of a recipe may give as published (arXiv 2511.19739, tables 1 to 4): key ->
meaning."""


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without opening it.

    Attributes:
        license: SPDX name, or what its page calls it.
        architecture: whether every token sees every other (``encoder``), or only those before it.
        note: what to know before its vectors are offered to others; empty for nothing.
    """

    license: str
    architecture: EncoderArchitecture
    note: str = ""


_GEMMA_NOTE = (
    "its terms bind whoever passes the model or its derivatives on; the study reads them as "
    "barring embeddings as a service"
)
_JINA_NOTE = (
    "the study counts it as a decoder; it is a bidirectional encoder that brings its own code"
)

BACKBONE_INFO_BY_NAME: Mapping[str, BackboneInfo] = MappingProxyType(
    {
        "michiyasunaga/BioLinkBERT-large": BackboneInfo("Apache-2.0", "encoder"),
        "google/gemma-2-2b-it": BackboneInfo("Gemma Terms of Use", "decoder", _GEMMA_NOTE),
        "Qwen/Qwen3-Embedding-4B": BackboneInfo("Apache-2.0", "decoder"),
        "sentence-transformers/all-mpnet-base-v2": BackboneInfo("Apache-2.0", "encoder"),
        "Qwen/Qwen2.5-0.5B": BackboneInfo("Apache-2.0", "decoder"),
        "BAAI/bge-large-en-v1.5": BackboneInfo("MIT", "encoder"),
        "intfloat/e5-large-v2": BackboneInfo("MIT", "encoder"),
        "BAAI/bge-small-en-v1.5": BackboneInfo("MIT", "encoder"),
        "BAAI/bge-m3": BackboneInfo("MIT", "encoder"),
        "jinaai/jina-embeddings-v2-base-en": BackboneInfo("Apache-2.0", "encoder", _JINA_NOTE),
        "sentence-transformers/all-MiniLM-L6-v2": BackboneInfo("Apache-2.0", "encoder"),
        "answerdotai/ModernBERT-base": BackboneInfo("Apache-2.0", "encoder"),
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext": BackboneInfo(
            "MIT", "encoder"
        ),
        "ncbi/MedCPT-Query-Encoder": BackboneInfo("public domain", "encoder"),
        "ncbi/MedCPT-Article-Encoder": BackboneInfo("public domain", "encoder"),
    }
)
"""Backbone, by its name on the hub -> what is known of it (table 5 of the study, and those to
compare with)."""

UNKNOWN_BACKBONE_INFO = BackboneInfo("", "unknown")

EncoderMetricKey = tuple[str, str, str]
"""(metric, group, task)."""


@dataclass(frozen=True)
class EncoderRow:
    """A row: one backbone, trained in one way, with all its seeds.

    Attributes:
        model: what the row's backbone is called.
        state: how it was adapted.
        entries: its cells.
        run_estimates: the numbers of each cell that has a run.
    """

    model: str
    state: str
    entries: tuple[CellResult, ...]
    run_estimates: tuple[Mapping[EncoderMetricKey, Estimate], ...]

    @property
    def recipe(self) -> EmbedRecipe | None:
        """Of the first cell; the others differ in their seed."""
        return _as_embed_recipe(self.entries[0].effective_recipe)

    @property
    def runs(self) -> list[Run]:
        """Of the cells that have one."""
        return [entry.run for entry in self.entries if entry.run is not None]

    @property
    def hub_name(self) -> str:
        """A key of ``KNOWN``: the backbone that the recipe names, else the one whose name its
        folder has; empty for neither."""
        base = self.recipe.base if self.recipe else None
        if base is None or base.backbone in BACKBONE_INFO_BY_NAME:
            return base.backbone if base else ""
        return next(
            (
                name
                for name in BACKBONE_INFO_BY_NAME
                if name.partition("/")[2].lower() == base.path.name.lower()
            ),
            "",
        )

    @property
    def backbone_info(self) -> BackboneInfo:
        """Licence and architecture."""
        return BACKBONE_INFO_BY_NAME.get(self.hub_name, UNKNOWN_BACKBONE_INFO)

    @property
    def published(self) -> Mapping[str, str | int | float]:
        """What was printed for it, by the keys of ``PUBLISHED``."""
        return {key: value for entry in self.entries for key, value in entry.published.items()}

    def get_published_number(self, key: str) -> float | None:
        """A published number; None where there is none."""
        value = self.published.get(key)
        return float(value) if isinstance(value, int | float) else None

    def list_seed_estimates(self, name: str, group: str, task: str) -> list[Estimate]:
        """The number of each seed that has it."""
        return [
            found[name, group, task]
            for found in self.run_estimates
            if (name, group, task) in found and found[name, group, task].value is not None
        ]

    def average_metric(self, name: str, group: str, task: str) -> Estimate | None:
        """The mean over seeds; None where it was not measured."""
        return average_estimates(self.list_seed_estimates(name, group, task))

    def compute_metric_spread(self, name: str, group: str, task: str) -> Estimate | None:
        """What the seeds change; None of one seed, or where they change nothing."""
        found = compute_seed_spread(
            [
                known.value
                for known in self.list_seed_estimates(name, group, task)
                if known.value is not None
            ]
        )
        return found if found and found.value else None

    def get_profile_number(self, name: str) -> float | None:
        """A number of the profile, of the adapted model before any other state."""
        groups = dict.fromkeys(
            [
                ADAPTED_ENCODER,
                *(
                    group
                    for found in self.run_estimates
                    for _, group, task in found
                    if task == PROFILE_TASK
                ),
            ]
        )
        return next(
            (
                known.value
                for group in groups
                if (known := self.average_metric(name, group, PROFILE_TASK))
            ),
            None,
        )

    @property
    def memory_gb(self) -> float | None:
        """The most that was held while encoding, in units of 10⁹ bytes."""
        held = self.get_profile_number("peak_memory_bytes")
        return None if held is None else held / BYTES_PER_GIGABYTE

    @property
    def parameters(self) -> float | None:
        """Of base and adapters as profiled, else of the base as recorded."""
        return self.get_profile_number("parameters") or next(
            (run.record.base_parameters for run in self.runs if run.record.base_parameters), None
        )

    @property
    def dimension(self) -> float | None:
        """Numbers in a vector."""
        return self.get_profile_number("dimension")


@dataclass(frozen=True)
class EncoderGrid:
    """All rows, and the pairs on which their separation is measured: the same for all.

    Attributes:
        rows: in the order of the cells.
        task: ``study``, where every run that has ended followed the study's protocol; else the
            held-out chapters.
        stratum: of the unrelated pairs.
    """

    rows: tuple[EncoderRow, ...]
    task: str
    stratum: str

    def format_row_name(self, row: EncoderRow) -> str:
        """What a figure calls a row: the backbone, and how it was adapted where it was in several
        ways."""
        is_only = len([other for other in self.rows if other.model == row.model]) == 1
        return row.model if is_only else f"{row.model}, {row.state}"

    def get_pair_metric(
        self, row: EncoderRow, metric: str, state: str = ADAPTED_ENCODER
    ) -> Estimate | None:
        """A number of the pairs."""
        return row.average_metric(metric, f"{state}{SUBGROUP_SEPARATOR}{self.stratum}", self.task)

    def compute_gain(self, row: EncoderRow, metric: str = "separation") -> Estimate | None:
        """Adapted less zero-shot, with the paired interval where it was measured, else without
        one."""
        return compute_adaptation_gain(row, metric, self.task, self.stratum)

    @property
    def pairs_description(self) -> str:
        """Which pairs, in words."""
        return (
            "the study's similar and different pairs"
            if self.task == STUDY_TASK
            else f"{self.task}, against {self.stratum} pairs"
        )


def build_encoder_grid(entries: Sequence[CellResult]) -> EncoderGrid:
    """The rows of a grid: cells whose names differ only in the part that says their seed are one.

    A row's model is what the names of all cells on one base begin with, or else the base's folder;
    its state is the rest of its name, or else its adapters.
    """
    named = [
        (_get_base_path(entry.effective_recipe), _strip_seed(entry), entry) for entry in entries
    ]
    prefixes = {
        location: _find_shared_prefix([name for other, name, _ in named if other == location])
        for location, _, _ in named
    }
    rows = []
    for location, name in dict.fromkeys((location, name) for location, name, _ in named):
        cells = tuple(entry for other, also, entry in named if (other, also) == (location, name))
        asked = cells[0].effective_recipe
        model = " · ".join(prefixes[location]) or (get_base_model_name(asked) if asked else "")
        state = (
            " · ".join(name[len(prefixes[location]) :])
            or (describe_adapters(asked) if asked else "")
            or ADAPTED_ENCODER
        )
        rows.append(
            EncoderRow(
                model,
                state,
                cells,
                tuple(_read_metric_estimates(cell.run) for cell in cells if cell.run is not None),
            )
        )
    of_study = ("separation", f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}different", STUDY_TASK)
    ended = [found for row in rows for found in row.run_estimates if found]
    follows = bool(ended) and all(of_study in found for found in ended)
    return EncoderGrid(
        tuple(rows), *((STUDY_TASK, "different") if follows else (HELD_OUT_CHAPTERS_TASK, "random"))
    )


def compute_adaptation_gain(
    row: EncoderRow, metric: str, task: str, stratum: str = ""
) -> Estimate | None:
    """Adapted less zero-shot; ``stratum`` is empty for what has none, such as retrieval."""
    suffix = f"{SUBGROUP_SEPARATOR}{stratum}" if stratum else ""
    measured = row.average_metric(
        f"{metric}_difference",
        f"{ADAPTED_ENCODER}{DIFFERENCE_SEPARATOR}{ZERO_SHOT_ENCODER}{suffix}",
        task,
    )
    before, after = (
        row.average_metric(metric, f"{state}{suffix}", task)
        for state in (ZERO_SHOT_ENCODER, ADAPTED_ENCODER)
    )
    if measured or before is None or after is None or before.value is None or after.value is None:
        return measured
    return Estimate(after.value - before.value)


def _read_metric_estimates(run: Run) -> dict[EncoderMetricKey, Estimate]:
    return {
        (key.name, key.group, key.task): estimate for key, estimate in read_estimates(run).items()
    }


def _as_embed_recipe(recipe: Recipe | None) -> EmbedRecipe | None:
    return recipe if isinstance(recipe, EmbedRecipe) else None


def _get_base_path(recipe: Recipe | None) -> str:
    return str(recipe.base.path) if isinstance(recipe, EmbedRecipe) else ""


def _strip_seed(entry: CellResult) -> tuple[str, ...]:
    recipe = entry.effective_recipe
    said = set() if recipe is None else {f"seed={recipe.seed}", f"seed {recipe.seed}"}
    return tuple(part for part in entry.name.split(SUBGROUP_SEPARATOR) if part not in said)


def _find_shared_prefix(names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts that all names begin with."""
    return tuple(_take_shared_parts(zip(*names, strict=False)))


def _take_shared_parts(parts: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield from (part[0] for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))
