"""Results of finished runs: two runs compared, predictions scored again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clinpeft import evaluation, runs
from clinpeft.core.errors import InputError
from clinpeft.recipe import ClassificationEvaluationSpec, CohortSplitSpec
from clinpeft.runs import RunComparison
from clinpeft.workflows.comparison import read_run_predictions
from clinpeft.workflows.registry import get_workflow


def compare_run_results(
    home: Path, first_run_name: str, second_run_name: str
) -> tuple[RunComparison, pa.Table | None, str]:
    """Compare two runs: what differs, and the paired difference of what they measured.

    Args:
        home: folder of all runs.
        first_run_name, second_run_name: id, name, or the beginning of an id.

    Returns:
        The differences, the paired difference (None where there is none), and the reason.

    Raises:
        UsageError: there is no such run.
    """
    first, second = runs.find_run(home, first_run_name), runs.find_run(home, second_run_name)
    comparison = runs.compare_runs(first, second)
    if comparison.incomparable_reason:
        return comparison, None, comparison.incomparable_reason
    return comparison, *get_workflow(first.recipe).compare(first, second)


def rescore_predictions(home: Path, run_or_file: str, resamples: int) -> tuple[pa.Table, pa.Table]:
    """Score predictions again: those of a run as its recipe says, with the seed of its split.

    Args:
        home: folder of all runs.
        run_or_file: a run, or a Parquet file of predictions with its task in the metadata.
        resamples: bootstrap resamples of subjects.

    Returns:
        Results and curves.

    Raises:
        InputError: the file holds no predictions.
        UsageError: there is no such run.
    """
    tables, spec, seed = _read_scoring_inputs(home, run_or_file)
    spec = spec.model_copy(update={"resamples": resamples})
    label_spaces = [evaluation.read_prediction_label_space(table) for table in tables]
    # The seed of the run itself: its own numbers come out again.
    results = [
        evaluation.score_prediction_table(
            table, label_space, spec, np.random.default_rng([seed, 1])
        )
        for table, label_space in zip(tables, label_spaces, strict=True)
    ]
    curves = [
        evaluation.compute_classification_curves(
            table, label_space, spec, np.random.default_rng([seed, 1])
        )
        for table, label_space in zip(tables, label_spaces, strict=True)
    ]
    return pa.concat_tables(results), pa.concat_tables(curves)


def _read_scoring_inputs(
    home: Path, run_or_file: str
) -> tuple[list[pa.Table], ClassificationEvaluationSpec, int]:
    """Predictions, how they are scored, and the seed of the resamples."""
    spec, seed = ClassificationEvaluationSpec(), CohortSplitSpec().seed
    if run_or_file.endswith(".parquet"):
        try:
            return [pq.read_table(run_or_file)], spec, seed
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                "this file of predictions cannot be read",
                location=run_or_file,
                hint="give a Parquet file that clinpeft wrote",
            ) from error
    run = runs.find_run(home, run_or_file, finished_only=True)
    tables = list(read_run_predictions(run).values())  # an error for a run without predictions
    recipe = run.recipe
    if not recipe.tasks:
        return tables, spec, 0
    return tables, recipe.evaluation, recipe.split.seed  # type: ignore[attr-defined]
