"""The rows of a grid of embeddings: cells that differ by seed only are one row, whose numbers are
looked up by metric, state and task."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from clinpeft.recipe import Recipe
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
# Controls without weights, which appear once in a table
LEXICAL_CONTROLS = ("BM25", "TF-IDF")

STUDY_TASK, PROFILE_TASK, HELD_OUT_CHAPTERS_TASK = "study", "profile", "held-out chapters"
# The separation from which the study (arXiv 2511.19739) calls an embedding clinically useful; it
# gives no data for it
CLINICALLY_USEFUL_SEPARATION = 0.3

BYTES_PER_GIGABYTE = 1e9

EncoderArchitecture = Literal["encoder", "decoder", "unknown"]

# Published values that a cell of a recipe may give (arXiv 2511.19739, tables 1 to 4): key ->
# meaning
PUBLISHED_ENCODER_KEYS = {
    "similar": "mean cosine of similar pairs, adapted",
    "different": "mean cosine of different pairs, adapted",
    "separation": "similar less different, adapted",
    "zero_shot_separation": "similar less different, before adaptation",
    "embeddings_per_second": "the best of batches of 1, 4, 16 and 32",
    "memory_gb": "peak, in gigabytes",
    "dimension": "numbers in a vector",
    "parameters": "of the base",
    "latency_ms": "mean of one text at a time",
    "latency_ms_p95": "95th percentile of that",
}


@dataclass(frozen=True)
class BackboneInfo:
    """Facts about a backbone that its folder does not hold.

    Attributes:
        license: SPDX name, or the name on its page.
        architecture: whether every token attends to every other (``encoder``), or only to those
            before it (``decoder``).
        note: what to consider before its vectors are offered to others; empty for nothing.
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

# Name on the hub -> facts about the backbone (table 5 of the study, and those to compare with)
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

UNKNOWN_BACKBONE_INFO = BackboneInfo("", "unknown")

# (metric, group, task)
EncoderMetricKey = tuple[str, str, str]


@dataclass(frozen=True)
class EncoderRow:
    """One backbone, adapted in one way, with all its seeds.

    Attributes:
        model: name of the backbone.
        state: how it was adapted.
        entries: its cells.
        run_estimates: the numbers of each cell that has a run.
    """

    model: str
    state: str
    entries: tuple[CellResult, ...]
    run_estimates: tuple[Mapping[EncoderMetricKey, Estimate], ...]

    @property
    def recipe(self) -> Recipe | None:
        """Of the first cell; the others differ in their seed."""
        return self.entries[0].effective_recipe

    @property
    def runs(self) -> list[Run]:
        """The runs of the cells that have one."""
        return [entry.run for entry in self.entries if entry.run is not None]

    @property
    def hub_name(self) -> str:
        """A key of ``BACKBONE_INFO_BY_NAME``: the backbone that the recipe names, else the one
        whose name its folder has; empty for neither."""
        base = self.recipe.base if self.recipe else None
        if base is None:
            return ""
        # Only the base of an embedding recipe names its backbone
        backbone = str(getattr(base, "backbone", ""))
        if backbone in BACKBONE_INFO_BY_NAME:
            return backbone
        # Folders are often named after the model, without its owner and in lower case
        folder = base.path.name.lower()
        names = (n for n in BACKBONE_INFO_BY_NAME if n.partition("/")[2].lower() == folder)
        return next(names, "")

    @property
    def backbone_info(self) -> BackboneInfo:
        """License and architecture."""
        return BACKBONE_INFO_BY_NAME.get(self.hub_name, UNKNOWN_BACKBONE_INFO)

    @property
    def published(self) -> Mapping[str, str | int | float]:
        """Its published values, by the keys of ``PUBLISHED_ENCODER_KEYS``."""
        return {key: value for entry in self.entries for key, value in entry.published.items()}

    def get_published_number(self, key: str) -> float | None:
        """A published number; None if there is none."""
        value = self.published.get(key)
        return float(value) if isinstance(value, int | float) else None

    @property
    def published_gain(self) -> float | None:
        """The published separation, adapted less zero-shot; None if either is missing."""
        before = self.get_published_number("zero_shot_separation")
        after = self.get_published_number("separation")
        return None if before is None or after is None else after - before

    def list_seed_estimates(self, name: str, group: str, task: str) -> list[Estimate]:
        """The number of each seed that has it."""
        key = (name, group, task)
        estimates = [numbers[key] for numbers in self.run_estimates if key in numbers]
        return [estimate for estimate in estimates if estimate.value is not None]

    def average_metric(self, name: str, group: str, task: str) -> Estimate | None:
        """The mean over seeds; None if it was not measured."""
        return average_estimates(self.list_seed_estimates(name, group, task))

    def compute_metric_spread(self, name: str, group: str, task: str) -> Estimate | None:
        """The spread over seeds; None of one seed, or if all seeds give the same value."""
        estimates = self.list_seed_estimates(name, group, task)
        spread = compute_seed_spread([e.value for e in estimates if e.value is not None])
        # A number that no seed changes, such as that of a lexical control, has no spread to show
        return spread if spread and spread.value else None

    def get_profile_number(self, name: str) -> float | None:
        """A number of the profile, of the adapted model before any other state."""
        # The profile of another state is better than none
        groups = dict.fromkeys([ADAPTED_ENCODER])
        for numbers in self.run_estimates:
            groups |= dict.fromkeys(group for _, group, task in numbers if task == PROFILE_TASK)
        estimates = (self.average_metric(name, group, PROFILE_TASK) for group in groups)
        return next((estimate.value for estimate in estimates if estimate), None)

    @property
    def memory_gb(self) -> float | None:
        """Peak memory while encoding, in units of 10⁹ bytes."""
        peak_bytes = self.get_profile_number("peak_memory_bytes")
        return None if peak_bytes is None else peak_bytes / BYTES_PER_GIGABYTE

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
        task: ``study`` if every finished run followed the study's protocol; else the held-out
            chapters.
        stratum: of the unrelated pairs.
    """

    rows: tuple[EncoderRow, ...]
    task: str
    stratum: str

    def format_row_name(self, row: EncoderRow) -> str:
        """Name of a row in a figure: the backbone, and how it was adapted where there are several
        ways."""
        is_only = len([other for other in self.rows if other.model == row.model]) == 1
        return row.model if is_only else f"{row.model}, {row.state}"

    def get_pair_metric(
        self, row: EncoderRow, metric: str, state: str = ADAPTED_ENCODER
    ) -> Estimate | None:
        """A metric of the pairs, averaged over seeds."""
        return row.average_metric(metric, f"{state}{SUBGROUP_SEPARATOR}{self.stratum}", self.task)

    def compute_pair_spread(self, row: EncoderRow, metric: str) -> Estimate | None:
        """The spread over seeds of a metric of the pairs, adapted."""
        group = f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}{self.stratum}"
        return row.compute_metric_spread(metric, group, self.task)

    def compute_gain(self, row: EncoderRow, metric: str = "separation") -> Estimate | None:
        """Adapted less zero-shot, with the paired interval if it was measured."""
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
    """The rows of a grid: cells whose names differ only in the part with their seed are one.

    A row's model is the part that the names of all cells on one base share at their beginning, or
    else the base's folder; its state is the rest of its name, or else its adapters.
    """
    # (path of the base, parts of the name without the seed) -> cells
    cells: dict[tuple[str, tuple[str, ...]], list[CellResult]] = {}
    for entry in entries:
        recipe = entry.effective_recipe
        base = recipe.base if recipe is not None else None
        seeds = set() if recipe is None else {f"seed={recipe.seed}", f"seed {recipe.seed}"}
        name = tuple(part for part in entry.name.split(SUBGROUP_SEPARATOR) if part not in seeds)
        cells.setdefault((str(base.path) if base else "", name), []).append(entry)
    rows = []
    for (path, parts), row_cells in cells.items():
        names = [other_parts for other, other_parts in cells if other == path]
        # names: parts of each name; levels: first parts of all names, second parts ...
        levels = zip(*names, strict=False)
        shared = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
        recipe = row_cells[0].effective_recipe
        model = " · ".join(parts[:shared]) or (get_base_model_name(recipe) if recipe else "")
        state = " · ".join(parts[shared:]) or (describe_adapters(recipe) if recipe else "")
        estimates = tuple(
            {(key.name, key.group, key.task): one for key, one in read_estimates(cell.run).items()}
            for cell in row_cells
            if cell.run is not None
        )
        rows.append(EncoderRow(model, state or ADAPTED_ENCODER, tuple(row_cells), estimates))
    # One protocol for all rows, or their separations would not be comparable
    study_key = ("separation", f"{ADAPTED_ENCODER}{SUBGROUP_SEPARATOR}different", STUDY_TASK)
    finished = [numbers for row in rows for numbers in row.run_estimates if numbers]
    if finished and all(study_key in numbers for numbers in finished):
        return EncoderGrid(tuple(rows), STUDY_TASK, "different")
    return EncoderGrid(tuple(rows), HELD_OUT_CHAPTERS_TASK, "random")


def compute_adaptation_gain(
    row: EncoderRow, metric: str, task: str, stratum: str = ""
) -> Estimate | None:
    """Adapted less zero-shot.

    Args:
        row: of the backbone.
        metric: its name.
        task: of the metric.
        stratum: of the unrelated pairs; empty for a metric without, such as those of retrieval.

    Returns:
        The paired difference with its interval if it was measured, else the plain difference; None
        if either state was not measured.
    """
    suffix = f"{SUBGROUP_SEPARATOR}{stratum}" if stratum else ""
    # The paired difference is measured on the same pairs, and has an interval of its own
    states = f"{ADAPTED_ENCODER}{DIFFERENCE_SEPARATOR}{ZERO_SHOT_ENCODER}"
    paired = row.average_metric(f"{metric}_difference", f"{states}{suffix}", task)
    before = row.average_metric(metric, f"{ZERO_SHOT_ENCODER}{suffix}", task)
    after = row.average_metric(metric, f"{ADAPTED_ENCODER}{suffix}", task)
    if paired or before is None or after is None or before.value is None or after.value is None:
        return paired
    return Estimate(after.value - before.value)


@dataclass(frozen=True)
class AblationPoint:
    """A row of an ablation.

    Attributes:
        pairs_fraction: training pairs, as a fraction of the most that any row on this backbone was
            trained on; None if the runs do not say.
        objective: of training.
        rank: of the low-rank update; None for other adapters.
        row: its numbers.
    """

    pairs_fraction: float | None
    objective: str
    rank: int | None
    row: EncoderRow


def find_ablation(grid: EncoderGrid) -> tuple[AblationPoint, ...]:
    """Rows on one backbone that differ in the fraction of pairs, the objective or the rank; empty
    if none do. The first such backbone counts."""
    for model in dict.fromkeys(row.model for row in grid.rows):
        rows = [row for row in grid.rows if row.model == model]
        # Training pairs of each row; the most of them are 100 %
        pairs = [
            max((run.record.counts.get("pairs.train", 0) for run in row.runs), default=0)
            for row in rows
        ]
        points = []
        for row, n in zip(rows, pairs, strict=True):
            if row.recipe is not None and row.recipe.adapters:
                # The first low-rank adapter of the stack counts
                ranks = (getattr(spec, "rank", None) for spec in row.recipe.adapters)
                objective = row.recipe.model_dump()["training"]["objective"]
                # Two digits, since whole pairs seldom make an exact quarter
                fraction = round(n / max(pairs), 2) if n else None
                rank = next((rank for rank in ranks if rank), None)
                points.append(AblationPoint(fraction, objective, rank, row))
        if len({(point.pairs_fraction, point.objective, point.rank) for point in points}) > 1:
            points.sort(key=lambda p: (p.pairs_fraction or 0, p.objective, p.rank or 0))
            return tuple(points)
    return ()
