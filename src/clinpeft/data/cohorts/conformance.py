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
from clinpeft.data.cohorts.cohort import Cohort, write
from clinpeft.data.cohorts.outcomes import CORE_2021, TASKS
from clinpeft.data.cohorts.selection import task_of
from clinpeft.recipe import CohortRecipe

COMPAT = "core-2021"

VERIFICATION = pa.schema(
    [
        pa.field("quantity", pa.string(), nullable=False),
        pa.field("compat", pa.int64()),
        pa.field("published", pa.int64()),
        pa.field("corrected", pa.int64()),
        pa.field("explanation", pa.string(), nullable=False),
    ]
)
"""One count a row: as the published builder makes it here, as published, as corrected; ``explanation`` says why they differ, or what is counted."""


def _stays(train: int, tuning: int, held_out: int) -> dict[str, int]:
    return {
        "stays": train + tuning + held_out,
        "stays in train": train,
        "stays in tuning": tuning,
        "stays in held_out": held_out,
    }


PUBLISHED: dict[str, dict[str, int]] = {
    "mortality": _stays(33_954, 4_908, 9_822),
    "length_of_stay": _stays(30_421, 4_391, 8_797),
    "diagnoses": _stays(33_994, 4_918, 9_829) | {"classes": 1_266},
    "procedures": _stays(30_030, 4_357, 8_681) | {"classes": 711},
    "ventilation": _stays(5_666, 707, 706),
}
"""Task -> quantity -> count, for MIMIC-III v1.4. Those of ``ventilation`` come from labels split by admission, and cannot be met by subject."""


@dataclass
class _Count:
    compat: int | None = None
    corrected: int | None = None
    explanation: str = ""


@dataclass
class _Counts:
    """Rows in the order in which they were first named."""

    rows: dict[str, _Count] = field(default_factory=dict)

    def both(self, quantity: str, found: Sequence[int], explanation: str = "") -> None:
        compat, corrected = found
        self.rows[quantity] = _Count(compat, corrected, explanation)


def verify(recipe: CohortRecipe, hospital: HospitalDatabase, folder: Path) -> pa.Table:
    """Build the cohort of a recipe twice, as published and corrected, and count (schema ``VERIFICATION``).

    Args:
        recipe: the question; its ``compat`` and ``sections`` are replaced by those of either build.
        hospital: open tables.
        folder: gets ``compat/`` and ``corrected/``, two cohorts without audit and MEDS.

    Raises:
        RecipeError: the question was not published.
        ClinpeftError: whatever a build raises.
    """
    task_of(recipe.task.model_copy(update={"compat": COMPAT, "sections": "admission"}))
    compat = write(_as(recipe, COMPAT), hospital, folder / "compat")
    corrected = write(_as(recipe, ""), hospital, folder / "corrected")
    counts = _Counts()
    _count_sizes(counts, compat, corrected)
    _count_leavers(counts, compat, corrected)
    _count_moves(counts, compat, corrected)
    _count_merges(counts, recipe.task.name, hospital)
    published = PUBLISHED[recipe.task.name] if hospital.layout == "mimic-iii" else {}
    return _table(counts, published)


def _as(recipe: CohortRecipe, compat: str) -> CohortRecipe:
    return recipe.model_copy(
        update={"task": recipe.task.model_copy(update={"compat": compat, "sections": "admission"})}
    )


def _read(cohort: Cohort) -> list[Mapping[str, object]]:
    rows: list[Mapping[str, object]] = pq.read_table(
        cohort.path, columns=["subject_id", "stay_id", "split", "label", "labels"]
    ).to_pylist()
    return rows


def _count_sizes(counts: _Counts, compat: Cohort, corrected: Cohort) -> None:
    first, second = _read(compat), _read(corrected)
    counts.both("stays", [len(first), len(second)], "differ by the reasons below")
    for split in SPLIT_NAMES:
        counts.both(
            f"stays in {split}",
            [sum(row["split"] == split for row in rows) for rows in (first, second)],
        )
    counts.both("subjects", [len({row["subject_id"] for row in rows}) for rows in (first, second)])
    used = "compat lists every code of the table, used or not" if compat.task.label_space else ""
    counts.both("classes", [len(compat.classes), len(corrected.classes)], used)
    for at, name in enumerate(compat.task.classes):
        counts.both(
            f"stays of class {name}",
            [sum(row["label"] == at for row in rows) for rows in (first, second)],
        )


def _count_leavers(counts: _Counts, compat: Cohort, corrected: Cohort) -> None:
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
        counts.both(f"{step}: {reason}", left, "" if left[0] == left[1] else "the rules differ")


def _count_moves(counts: _Counts, compat: Cohort, corrected: Cohort) -> None:
    first, second = (
        {row["stay_id"]: row for row in _read(cohort)} for cohort in (compat, corrected)
    )
    both = first.keys() & second.keys()
    counts.both(
        "stays only in one of them",
        [len(first) - len(both), len(second) - len(both)],
        "cut, repeated texts or answers cut short by death",
    )
    moved = sum(first[stay]["split"] != second[stay]["split"] for stay in both)
    counts.both(
        "stays in another split",
        [moved, moved],
        "a split is a property of the subject alone: 0 unless the seeds differ",
    )
    named = [
        {stay: {cohort.classes[at] for at in _indices(rows[stay])} for stay in both}
        for cohort, rows in ((compat, first), (corrected, second))
    ]
    changed = sum(named[0][stay] != named[1][stay] for stay in both)
    counts.both("stays with another answer", [changed, changed], "of those in both")


def _indices(row: Mapping[str, object]) -> list[int]:
    label, labels = row["label"], row["labels"]
    if isinstance(label, int):
        return [label]
    return [int(at) for at in labels] if isinstance(labels, list) else []


def _count_merges(counts: _Counts, name: str, hospital: HospitalDatabase) -> None:
    """Where the published builder makes other classes of the same codes: how many it merges, and how many it tears apart."""
    compat, corrected = CORE_2021[name], TASKS[name]
    if compat.group == corrected.group:
        return
    pairs = f"SELECT stay_id, {compat.group} AS published, {corrected.group} AS truth FROM code WHERE kind IN ({_kinds(corrected.needs)})"
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
        counts.both(quantity, [int(number), 0], explanation)


def _kinds(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"'{kind}'" for kind in kinds)


def _table(counts: _Counts, published: Mapping[str, int]) -> pa.Table:
    rows = [
        {
            "quantity": name,
            "compat": c.compat,
            "published": published.get(name),
            "corrected": c.corrected,
            "explanation": c.explanation,
        }
        for name, c in counts.rows.items()
    ]
    return pa.Table.from_pylist(rows, schema=VERIFICATION)
