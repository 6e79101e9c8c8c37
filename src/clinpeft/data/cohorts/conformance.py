"""Published counts beside ours, and every difference between published and corrected rules.

Published are the split lists and class counts of the builder of arXiv 2102.04110 (MIMIC-III v1.4,
script of September 2021) and, for ventilation, the labels that arXiv 2307.03042 used. They can be
reproduced only with the complete MIMIC-III and the published subject lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft.core.database import count_table_rows
from clinpeft.core.schemas import SPLIT_NAMES, HospitalDatabase
from clinpeft.data.cohorts.cohort import Cohort, write_cohort
from clinpeft.data.cohorts.outcomes import CLINICAL_TASKS, CORE_2021_TASKS
from clinpeft.data.cohorts.selection import get_clinical_task
from clinpeft.recipe import CohortRecipe

PUBLISHED_COMPAT = "core-2021"

# One count a row: by the published rules here, as published, and by the corrected rules;
# ``explanation`` says why they differ, or what is counted.
CONFORMANCE_SCHEMA = pa.schema(
    [
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("compat", pa.int64()),
        pa.field("published", pa.int64()),
        pa.field("corrected", pa.int64()),
        pa.field("explanation", pa.string(), nullable=False),
    ]
)


def _build_split_counts(train: int, tuning: int, held_out: int) -> dict[str, int]:
    return {
        "stays": train + tuning + held_out,
        "stays in train": train,
        "stays in tuning": tuning,
        "stays in held_out": held_out,
    }


# Task -> quantity -> count, for MIMIC-III v1.4.
#
# Those of ``ventilation`` come from labels split by admission and cannot be reproduced by subject.
PUBLISHED_COUNTS: dict[str, dict[str, int]] = {
    "mortality": _build_split_counts(33_954, 4_908, 9_822),
    "length_of_stay": _build_split_counts(30_421, 4_391, 8_797),
    "diagnoses": _build_split_counts(33_994, 4_918, 9_829) | {"classes": 1_266},
    "procedures": _build_split_counts(30_030, 4_357, 8_681) | {"classes": 711},
    "ventilation": _build_split_counts(5_666, 707, 706),
}


class _CountRow(NamedTuple):
    """One quantity by the published (``compat``) and by the corrected rules."""

    quantity: str
    compat: int
    corrected: int
    explanation: str = ""


def compare_with_published_counts(
    recipe: CohortRecipe, hospital: HospitalDatabase, folder: Path
) -> pa.Table:
    """Build the cohort of a recipe by the published and by the corrected rules, and compare counts.

    Args:
        recipe: the task; its ``compat`` and ``sections`` are replaced by those of each build.
        hospital: an open hospital.
        folder: gets ``compat/`` and ``corrected/``, two cohorts without audit and MEDS.

    Returns:
        A table of ``CONFORMANCE_SCHEMA``.

    Raises:
        RecipeError: the task was not published.
        ClinpeftError: as ``write_cohort``.
    """
    recipes = [
        recipe.model_copy(
            update={
                "task": recipe.task.model_copy(update={"compat": compat, "sections": "admission"})
            }
        )
        for compat in (PUBLISHED_COMPAT, "")
    ]
    get_clinical_task(recipes[0].task)  # before anything is written
    compat, corrected = (
        write_cohort(build_recipe, hospital, folder / name)
        for build_recipe, name in zip(recipes, ("compat", "corrected"), strict=True)
    )
    published = PUBLISHED_COUNTS[recipe.task.name] if hospital.layout == "mimic-iii" else {}
    rows = {  # a later row of the same quantity replaces the earlier one
        row.quantity: row._asdict() | {"published": published.get(row.quantity)}
        for row in (
            *_count_sizes(compat, corrected),
            *_count_dropped_stays(compat, corrected),
            *_count_changed_stays(compat, corrected),
            *_count_class_differences(recipe.task.name, hospital),
        )
    }
    return pa.Table.from_pylist(list(rows.values()), schema=CONFORMANCE_SCHEMA)


def _read_cohort_rows(cohort: Cohort) -> list[dict[str, Any]]:
    columns = ["subject_id", "stay_id", "split", "label", "labels"]
    rows: list[dict[str, Any]] = pq.read_table(cohort.path, columns=columns).to_pylist()
    return rows


def _count_sizes(compat: Cohort, corrected: Cohort) -> Iterator[_CountRow]:
    """Stays, subjects and classes; stays by split and by class."""
    first, second = _read_cohort_rows(compat), _read_cohort_rows(corrected)
    yield _CountRow("stays", len(first), len(second), "differ by the reasons below")
    for split in SPLIT_NAMES:
        stays = [sum(row["split"] == split for row in rows) for rows in (first, second)]
        yield _CountRow(f"stays in {split}", stays[0], stays[1])
    subjects = [len({row["subject_id"] for row in rows}) for rows in (first, second)]
    yield _CountRow("subjects", subjects[0], subjects[1])
    explanation = (
        "compat lists every code of the table, used or not" if compat.task.label_space_query else ""
    )
    yield _CountRow("classes", len(compat.classes), len(corrected.classes), explanation)
    for index, name in enumerate(compat.task.classes):
        stays = [sum(row["label"] == index for row in rows) for rows in (first, second)]
        yield _CountRow(f"stays of class {name}", stays[0], stays[1])


def _count_dropped_stays(compat: Cohort, corrected: Cohort) -> Iterator[_CountRow]:
    """Dropped rows of every step by reason: together they explain every difference in size."""
    # A dictionary as an ordered set: reasons of compat first, then those only of corrected.
    reasons = dict.fromkeys(
        (step.step, reason)
        for cohort in (compat, corrected)
        for step in cohort.attrition
        for reason in step.dropped_rows
    )
    for name, reason in reasons:
        first, second = (
            sum(step.dropped_rows[reason] for step in cohort.attrition if step.step == name)
            for cohort in (compat, corrected)
        )
        explanation = "" if first == second else "the rules differ"
        yield _CountRow(f"{name}: {reason}", first, second, explanation)


def _count_changed_stays(compat: Cohort, corrected: Cohort) -> Iterator[_CountRow]:
    """Stays in one of the cohorts only, and those with another split or another label."""
    first, second = (
        {row["stay_id"]: row for row in _read_cohort_rows(cohort)} for cohort in (compat, corrected)
    )
    # Labels and splits can be compared only for stays that both rules select.
    common = first.keys() & second.keys()
    yield _CountRow(
        "stays only in one of them",
        len(first) - len(common),
        len(second) - len(common),
        "extraction, repeated texts or labels cut short by death",
    )
    moved = sum(first[stay]["split"] != second[stay]["split"] for stay in common)
    yield _CountRow(
        "stays in another split",
        moved,
        moved,
        "a split is a property of the subject alone: 0 unless the seeds differ",
    )
    # Classes are compared by name, since the two label spaces number them differently.
    first_names, second_names = (
        {
            stay: {
                cohort.classes[index]
                for index in (
                    rows[stay]["labels"] or []
                    if rows[stay]["label"] is None
                    else [rows[stay]["label"]]
                )
            }
            for stay in common
        }
        for cohort, rows in ((compat, first), (corrected, second))
    )
    changed = sum(first_names[stay] != second_names[stay] for stay in common)
    yield _CountRow("stays with another answer", changed, changed, "of those in both")


def _count_class_differences(task_name: str, hospital: HospitalDatabase) -> Iterator[_CountRow]:
    """How many classes the published grouping of codes merges, and how many it splits."""
    compat, corrected = CORE_2021_TASKS[task_name], CLINICAL_TASKS[task_name]
    if compat.code_grouping == corrected.code_grouping:
        return
    kinds = ", ".join(f"'{kind}'" for kind in corrected.required_tables)
    pairs = f"""SELECT stay_id, {compat.code_grouping} AS published,
        {corrected.code_grouping} AS truth FROM code WHERE kind IN ({kinds})"""
    # A class merges others when codes of several corrected groups have one published group.
    merged = f"SELECT published FROM ({pairs}) GROUP BY published HAVING count(DISTINCT truth) > 1"
    # It is divided when codes of one corrected group have several published groups.
    divided = f"SELECT truth FROM ({pairs}) GROUP BY truth HAVING count(DISTINCT published) > 1"
    stays = f"SELECT DISTINCT stay_id FROM ({pairs}) WHERE published IN ({merged})"
    for quantity, query, explanation in (
        (
            "classes that merge several true ones",
            merged,
            "codes are read as whole numbers: 0331 and 3310 become 331",
        ),
        (
            "true classes torn into several",
            divided,
            "0331 and 0332 become 331 and 332, and belong together in 033",
        ),
        ("stays with a merged class", stays, "of all stays with such codes"),
    ):
        rows = count_table_rows(hospital.connection, f"({query})")
        yield _CountRow(quantity, rows, 0, explanation)
