"""An invented grid of questions with everything a report shows: two methods, two tasks, two seeds,
curves, labels, subgroups, a log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft import runs
from clinpeft.core import schemas
from clinpeft.reports import CellResult
from tests.reports.test_classification import (
    TFIDF,
    against_tfidf,
    id_of,
    make_classify_recipe,
    score,
)
from tests.runs.conftest import NIGHT, opening, results_of

LABELS = (
    ("401", 60, 40, 0.7),
    ("250", 30, 20, 0.65),
    ("038", 12, 11, 0.6),
    ("rare", 9, 3, 0.99),
)  # class, in training, positives, AUROC
ODD = 'LoRA <b>&"quoted"</b>'
NAMES = ("head only", ODD)


def point(
    name: str, x: float, y: float, group: str, n: int = 100, width: float | None = 0.05
) -> dict[str, Any]:
    ends = (
        {"low": None, "high": None}
        if width is None
        else {"low": max(0.0, y - width), "high": y + width}
    )
    return {
        "name": name,
        "task": None,
        "group": group,
        "split": "held_out",
        "x": x,
        "y": y,
        "n": n,
        **ends,
    }


def curves() -> pa.Table:
    rows = [point("calibration", x / 10, x / 12, "model") for x in range(1, 8)]
    rows += [point("calibration_smooth", x / 20, x / 24, "model") for x in range(1, 16)]
    for group, worth in (("model", 0.2), ("treat all", 0.1), ("treat none", 0.0)):
        rows += [point("net_benefit", x / 100, worth * (1 - x / 50), group) for x in range(1, 51)]
    for group, shares in (
        ("survived", (0.5, 0.45, 0.03, 0.02)),
        ("died in hospital", (0.1, 0.2, 0.4, 0.3)),
    ):
        rows += [
            point("probabilities", 0.125 + 0.25 * at, share, group, 100, None)
            for at, share in enumerate(shares)
        ]
    return pa.Table.from_pylist(rows, schema=schemas.CURVE_POINT_SCHEMA)


def labels() -> pa.Table:
    names = ("class", "train_count", "n_positives", "auroc")
    return pa.Table.from_pylist(
        [
            {**dict(zip(names, row, strict=True)), "low": row[3] - 0.1, "high": row[3] + 0.1}
            for row in LABELS
        ]
    )


def answering(
    home: Path, number: int, task: str, seed: int, value: float, small: int = 7
) -> runs.Run:
    """A finished run; one of its subgroups is of ``small`` people."""
    name = "auroc_macro" if task == "diagnoses" else "auroc"
    rows = [
        score(value, task, name),
        score(0.9, task, name, TFIDF),
        score(0.5, task, name, "prevalence"),
        score(0.1, task, "brier"),
    ]
    rows += [against_tfidf(value - 0.9, task=task, name=f"{name}_difference")]
    rows += [
        score(value + 0.01, task, name, "model · sex F", n_subjects=150),
        score(value - 0.01, task, name, "model · sex M", n_subjects=150),
    ]
    rows += [score(0.123, task, name, "model · race small", n_subjects=small, n_events=None)]
    facts = {
        "kind": "classify",
        "name": "grid",
        "trained_parameters": 1000,
        "trained_fraction": 0.01,
        "training_seconds": 60.0,
        "tokens_seen": 6000,
    }
    recipe = make_classify_recipe(task, seed)
    with runs.open_run_folder(
        home, recipe, opening(id_of(number), **facts, command="clinpeft classify grid.toml")
    ) as run:
        for step in range(1, 21):
            tuning = {"tuning_metric": 0.5 + step / 100} if step % 5 == 0 else {}
            runs.append_log_event(
                run,
                "step",
                step=step,
                loss=1 / step,
                tokens=100 * step,
                seconds=float(step),
                learning_rate=0.1,
                **tuning,
            )
        dropped = schemas.Attrition("stays", entered_rows=412)
        dropped.drop_rows("no note", 9)
        dropped.drop_rows("newborn", 90)
        run_tables = {"curves": curves(), **({"labels": labels()} if task == "diagnoses" else {})}
        return runs.finish_run(
            run, results=results_of(*rows), attrition=[dropped], tables=run_tables, finished=NIGHT
        )


def grid(home: Path) -> list[CellResult]:
    """Names as a grid gives them, with what a paper printed for one of them."""
    entries = []
    cells = [
        (name, task, seed)
        for name in NAMES
        for task in ("mortality", "diagnoses")
        for seed in (1, 2)
    ]
    for at, (name, task, seed) in enumerate(cells):
        run = answering(home, at + 1, task, seed, 0.6 + 0.1 * NAMES.index(name) + 0.02 * seed)
        published = {"mortality": 0.7489} if name == ODD else {}
        entries.append(CellResult(f"{name} · {task} · seed={seed}", run, published=published))
    return entries
