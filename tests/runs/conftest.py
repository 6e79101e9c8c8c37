"""An invented recipe, its record and its numbers, for the tests of the registry and of the
reports."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clinpeft import runs
from clinpeft.core import schemas
from clinpeft.recipe import Recipe, validate_recipe

NOON = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
NIGHT = datetime(2025, 3, 1, 23, 0, tzinfo=UTC)


def make_recipe(**changes: Any) -> Recipe:
    document = {
        "kind": "adapt",
        "name": "clinical-lora",
        "source": {"name": "synthetic", "path": "/data/here"},
        "base": {"path": "/models/toy-llama"},
        "adapters": [{"method": "lora", "rank": 16, "alpha": 32}],
    }
    return validate_recipe({**document, **changes}, "a test")


def opening(run_id: str = "0123456789ab", **changes: Any) -> runs.RunRecord:
    hashes = runs.InputHashes(source="s1", base="b1", tokenizer="t1", corpus_policy="1")
    known = {
        "name": "clinical-lora",
        "kind": "adapt",
        "created": NOON,
        "started": NOON,
        "versions": {"clinpeft": "0.1.0"},
        "hashes": hashes,
    }
    return runs.RunRecord.model_validate({"id": run_id, **known, **changes})


def result(
    value: float | None, split: str = "held_out", group: str = "adapted", **changes: Any
) -> dict[str, Any]:
    interval = (
        {"low": None, "high": None, "level": None}
        if value is None
        else {"low": value - 0.25, "high": value + 0.5, "level": 0.95}
    )
    counts = {"n": 12, "n_subjects": 6, "n_events": 3400}
    about = {"split": split, "group": group, "definition": "exp(nats / tokens)", "task": None}
    return {"name": "perplexity", "value": value, **interval, **counts, **about, **changes}


def results_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schemas.METRIC_RESULT_SCHEMA)


def likelihoods_of(nats_a_token: float = 2.0) -> pa.Table:
    tokens = [10, 20, 30]
    columns = {
        "note_id": ["a", "b", "c"],
        "subject_id": [1, 1, 2],
        "category": ["Surgery", None, "Surgery"],
        "split": ["train", "train", "held_out"],
    }
    return schemas.build_arrow_table(
        schemas.LIKELIHOOD_SCHEMA,
        {
            **columns,
            "tokens": tokens,
            "negative_log_likelihood": [n * nats_a_token for n in tokens],
        },
    )


def finished_run(
    home: Path,
    run_id: str = "0123456789ab",
    recipe: Recipe | None = None,
    rows: tuple[dict[str, Any], ...] = (),
    **facts: Any,
) -> runs.Run:
    """A run that ended well; ``facts`` go into its record from the beginning."""
    rows = rows or (result(14.0, group="base"), result(12.0, "train"), result(9.0))
    with runs.open_run_folder(home, recipe or make_recipe(), opening(run_id, **facts)) as run:
        kept = schemas.Attrition("corpus", entered_rows=10)
        kept.drop_rows("exact duplicate", 3)
        thoughts = {"base": likelihoods_of(), "adapted": likelihoods_of(math.log(2))}
        return runs.finish_run(
            run, results=results_of(*rows), attrition=[kept], likelihoods=thoughts, finished=NIGHT
        )
