"""The paired difference of two finished runs of one kind."""

from __future__ import annotations

import functools
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft import evaluation, runs
from clinpeft.core.errors import RefusedError
from clinpeft.core.schemas import PAIR_SCORE_SCHEMA
from clinpeft.evaluation import embedding
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import Run


def compare_likelihoods(first_run: Run, second_run: Run) -> tuple[pa.Table | None, str]:
    """Compare the perplexity of two runs of ``adapt`` on the notes that both scored.

    Returns:
        The paired difference, None where there is none; and the reason.
    """
    before, after = (runs.read_run_likelihoods(run, "adapted") for run in (first_run, second_run))
    names = (first_run.id, second_run.id)
    if reason := evaluation.find_likelihood_mismatch(before, after, names):
        return None, reason
    recipe = cast(AdaptRecipe, first_run.recipe)
    rng = np.random.default_rng([recipe.seed, 1])
    return evaluation.compare_perplexity(before, after, recipe.evaluation, rng, names), ""


def compare_predictions(first_run: Run, second_run: Run) -> tuple[pa.Table | None, str]:
    """Compare two runs of ``classify`` on every task that both predict.

    Returns:
        The paired differences, None where there are none; and the tasks without one, with the
        reason.
    """
    before, after = read_run_predictions(first_run), read_run_predictions(second_run)
    names, recipe = (first_run.id, second_run.id), cast(ClassifyRecipe, first_run.recipe)
    tables, reasons = [], []
    for task in before:
        if task not in after:
            continue
        if reason := evaluation.find_prediction_mismatch(before[task], after[task], names):
            reasons.append(f"{task}: {reason}")
            continue
        tables.append(
            evaluation.compare_paired_predictions(
                before[task],
                after[task],
                evaluation.read_prediction_label_space(before[task]),
                recipe.evaluation,
                np.random.default_rng([recipe.split.seed, 1]),
                names,
            )
        )
    return pa.concat_tables(tables) if tables else None, "; ".join(reasons)


def read_run_predictions(run: Run) -> dict[str, pa.Table]:
    """Read the predictions of a run, the first task of its recipe first.

    Returns:
        Task -> table.

    Raises:
        InputError: it has none, or a file is missing or damaged.
    """
    names = ["predictions", *(f"predictions-{task.name}" for task in run.recipe.tasks[1:])]
    tables = [runs.read_run_table(run, name) for name in names]
    return {evaluation.read_prediction_label_space(table).name: table for table in tables}


def compare_pair_scores(first_run: Run, second_run: Run) -> tuple[pa.Table | None, str]:
    """Compare two runs of ``embed`` on the pairs of every task that both scored.

    Returns:
        The paired differences, None where there are none; and the reason.
    """
    before, after = _read_adapted_scores(first_run), _read_adapted_scores(second_run)
    recipe = cast(EmbedRecipe, first_run.recipe)
    compare = functools.partial(
        embedding.compare_separation,
        names=(first_run.id, second_run.id),
        resamples=recipe.evaluation.resamples,
        level=recipe.evaluation.level,
    )
    tables = []
    for task in before:
        if task in after:
            rng = np.random.default_rng([recipe.split.seed, 1])
            try:
                tables.append(compare(before[task], after[task], rng=rng, task=task))
            except RefusedError as error:
                return None, f"{task}: {error.message}"
    return (pa.concat_tables(tables), "") if tables else (None, "they have no task in common")


def _read_adapted_scores(run: Run) -> dict[str, pa.Table]:
    """Task -> table of schema ``PAIR_SCORE_SCHEMA`` of the adapted model."""
    table = runs.read_run_table(run, "pair_scores")
    table = table.filter(pc.equal(table["state"], "adapted"))
    return {
        task: table.filter(pc.equal(table["task"], task))
        .select(PAIR_SCORE_SCHEMA.names)
        .cast(PAIR_SCORE_SCHEMA)
        for task in pc.unique(table["task"]).to_pylist()
    }
