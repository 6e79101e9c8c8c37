"""The published counts beside ours, and every difference between the published builder and the corrected one, counted.

Published: the split lists and the thread counts of the builder of arXiv 2102.04110 (MIMIC-III v1.4, script of September 2021) and, for ventilation,
the labels that arXiv 2307.03042 used. They can be met only with the complete MIMIC-III and the published subject lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.schemas import SPLIT_NAMES, HospitalDatabase
from clinpeft.data.cohorts.cohort import Cohort, write_cohort
from clinpeft.data.cohorts.outcomes import CORE_2021_TASKS, CLINICAL_TASKS
from clinpeft.data.cohorts.selection import get_clinical_task
from clinpeft.recipe import CohortRecipe

PUBLISHED_COMPAT = "core-2021"

CONFORMANCE_SCHEMA = pa.schema(
    [
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("compat", pa.int64()),
        pa.field("published", pa.int64()),
        pa.field("corrected", pa.int64()),
        pa.field("explanation", pa.string(), nullable=False),
    ]
)
"""One count a row: as the published builder makes it here, as published, as corrected; ``explanation`` says why they differ, or what is counted."""


def _build_split_counts(train: int, tuning: int, held_out: int) -> dict[str, int]:
    return {
        "stays": train + tuning + held_out,
        "stays in train": train,
        "stays in tuning": tuning,
        "stays in held_out": held_out,
    }


PUBLISHED_COUNTS: dict[str, dict[str, int]] = {
    "mortality": _build_split_counts(33_954, 4_908, 9_822),
    "length_of_stay": _build_split_counts(30_421, 4_391, 8_797),
    "diagnoses": _build_split_counts(33_994, 4_918, 9_829) | {"classes": 1_266},
    "procedures": _build_split_counts(30_030, 4_357, 8_681) | {"classes": 711},
    "ventilation": _build_split_counts(5_666, 707, 706),
}
"""Task -> quantity -> count, for MIMIC-III v1.4. Those of ``ventilation`` come from labels split by admission, and cannot be met by subject."""


@dataclass
class _CountPair:
    compat: int | None = None
    corrected: int | None = None
    explanation: str = ""


@dataclass
class _CountTable:
    """Rows in the order in which they were first named."""

    rows: dict[str, _CountPair] = field(default_factory=dict)

    def add_count_pair(
        self, quantity: str, count_pair: Sequence[int], explanation: str = ""
    ) -> None:
        compat, corrected = count_pair
        self.rows[quantity] = _CountPair(compat, corrected, explanation)


def compare_with_published_counts(
    recipe: CohortRecipe, hospital: HospitalDatabase, folder: Path
) -> pa.Table:
    """Build the cohort of a recipe twice, as published and corrected, and count (schema ``VERIFICATION``).

    Args:
        recipe: the question; its ``compat`` and ``sections`` are replaced by those of either build.
        hospital: open tables.
        folder: gets ``compat/`` and ``corrected/``, two cohorts without audit and MEDS.

    Raises:
        RecipeError: the question was not published.
        ClinpeftError: whatever a build raises.
    """
    get_clinical_task(
        recipe.task.model_copy(update={"compat": PUBLISHED_COMPAT, "sections": "admission"})
    )
    compat = write_cohort(_replace_compat(recipe, PUBLISHED_COMPAT), hospital, folder / "compat")
    corrected = write_cohort(_replace_compat(recipe, ""), hospital, folder / "corrected")
    counts = _CountTable()
    _count_sizes(counts, compat, corrected)
    _count_dropped_stays(counts, compat, corrected)
    _count_changed_stays(counts, compat, corrected)
    _count_class_differences(counts, recipe.task.name, hospital)
    published = PUBLISHED_COUNTS[recipe.task.name] if hospital.layout == "mimic-iii" else {}
    return _build_conformance_table(counts, published)


def _replace_compat(recipe: CohortRecipe, compat: str) -> CohortRecipe:
    return recipe.model_copy(
        update={"task": recipe.task.model_copy(update={"compat": compat, "sections": "admission"})}
    )


def _read_cohort_rows(cohort: Cohort) -> list[Mapping[str, object]]:
    rows: list[Mapping[str, object]] = pq.read_table(
        cohort.path, columns=["subject_id", "stay_id", "split", "label", "labels"]
    ).to_pylist()
    return rows


def _count_sizes(counts: _CountTable, compat: Cohort, corrected: Cohort) -> None:
    first, second = _read_cohort_rows(compat), _read_cohort_rows(corrected)
    counts.add_count_pair("stays", [len(first), len(second)], "differ by the reasons below")
    for split in SPLIT_NAMES:
        counts.add_count_pair(
            f"stays in {split}",
            [sum(row["split"] == split for row in rows) for rows in (first, second)],
        )
    counts.add_count_pair(
        "subjects", [len({row["subject_id"] for row in rows}) for rows in (first, second)]
    )
    used = (
        "compat lists every code of the table, used or not" if compat.task.label_space_query else ""
    )
    counts.add_count_pair("classes", [len(compat.classes), len(corrected.classes)], used)
    for at, name in enumerate(compat.task.classes):
        counts.add_count_pair(
            f"stays of class {name}",
            [sum(row["label"] == at for row in rows) for rows in (first, second)],
        )


def _count_dropped_stays(counts: _CountTable, compat: Cohort, corrected: Cohort) -> None:
    """Of every step, what left for which reason: rows in = rows out + these, so that they explain every difference in size."""
    reasons: dict[tuple[str, str], None] = {}
    for cohort in (compat, corrected):
        reasons |= {
            (step.step, reason): None for step in cohort.attrition for reason in step.dropped_rows
        }
    for step, reason in reasons:
        left = [
            sum(s.dropped_rows[reason] for s in cohort.attrition if s.step == step)
            for cohort in (compat, corrected)
        ]
        counts.add_count_pair(
            f"{step}: {reason}", left, "" if left[0] == left[1] else "the rules differ"
        )


def _count_changed_stays(counts: _CountTable, compat: Cohort, corrected: Cohort) -> None:
    first, second = (
        {row["stay_id"]: row for row in _read_cohort_rows(cohort)} for cohort in (compat, corrected)
    )
    both = first.keys() & second.keys()
    counts.add_count_pair(
        "stays only in one of them",
        [len(first) - len(both), len(second) - len(both)],
        "cut, repeated texts or answers cut short by death",
    )
    moved = sum(first[stay]["split"] != second[stay]["split"] for stay in both)
    counts.add_count_pair(
        "stays in another split",
        [moved, moved],
        "a split is a property of the subject alone: 0 unless the seeds differ",
    )
    named = [
        {stay: {cohort.classes[at] for at in _get_class_indices(rows[stay])} for stay in both}
        for cohort, rows in ((compat, first), (corrected, second))
    ]
    changed = sum(named[0][stay] != named[1][stay] for stay in both)
    counts.add_count_pair("stays with another answer", [changed, changed], "of those in both")


def _get_class_indices(row: Mapping[str, object]) -> list[int]:
    label, labels = row["label"], row["labels"]
    if isinstance(label, int):
        return [label]
    return [int(at) for at in labels] if isinstance(labels, list) else []


def _count_class_differences(
    counts: _CountTable, task_name: str, hospital: HospitalDatabase
) -> None:
    """Where the published builder makes other classes of the same codes: how many it merges, and how many it tears apart."""
    compat, corrected = CORE_2021_TASKS[task_name], CLINICAL_TASKS[task_name]
    if compat.code_grouping == corrected.code_grouping:
        return
    pairs = f"SELECT stay_id, {compat.code_grouping} AS published, {corrected.code_grouping} AS truth FROM code WHERE kind IN ({_quote_kinds(corrected.required_tables)})"
    merged = f"SELECT published FROM ({pairs}) GROUP BY published HAVING count(DISTINCT truth) > 1"
    torn = f"SELECT truth FROM ({pairs}) GROUP BY truth HAVING count(DISTINCT published) > 1"
    questions = {
        "classes that merge several true ones": (
            f"SELECT count(*) FROM ({merged})",
            "codes are read as whole numbers: 0331 and 3310 become 331",
        ),
        "true classes torn into several": (
            f"SELECT count(*) FROM ({torn})",
            "0331 and 0332 become 331 and 332, and belong together in 033",
        ),
        "stays with a merged class": (
            f"SELECT count(DISTINCT stay_id) FROM ({pairs}) WHERE published IN ({merged})",
            "of all stays with such codes",
        ),
    }
    for quantity, (query, explanation) in questions.items():
        ((number,),) = hospital.connection.execute(query).fetchall()
        counts.add_count_pair(quantity, [int(number), 0], explanation)


def _quote_kinds(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)


def _build_conformance_table(counts: _CountTable, published_counts: Mapping[str, int]) -> pa.Table:
    rows = [
        {
            "quantity": name,
            "compat": c.compat,
            "published": published_counts.get(name),
            "corrected": c.corrected,
            "explanation": c.explanation,
        }
        for name, c in counts.rows.items()
    ]
    return pa.Table.from_pylist(rows, schema=CONFORMANCE_SCHEMA)
