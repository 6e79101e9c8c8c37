"""Predictions that need no language model, fitted on the training split alone, without torch.

```
features.py   stays -> features: words, length of the note, age, sex and admission type
linear.py     features and labels -> logistic regressions
lexical.py    passages -> BM25 and TF-IDF rankings
```

A model that is no better than the words of its notes has learned little, so these baselines are
reported with it in every table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clinpeft.baselines import features, linear
from clinpeft.baselines.features import BaselineCohort, FittedFeatures
from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import LABEL_SPACE_ADAPTER, PREDICTION_SCHEMA, LabelSpace

__all__ = [
    "BASELINES",
    "BASELINE_NAMES",
    "Baseline",
    "find_unavailable_baselines",
    "predict_baselines",
]

BaselineScores = NDArray[np.float32]


@dataclass(frozen=True)
class Baseline:
    """One trivial predictor.

    Attributes:
        fit_features: cohort, task, generator -> features fitted on the training split; None: the
            prediction is the prevalence.
        regularization_c_values: C of scikit-learn (larger is weaker), ascending; the tuning split
            selects one.
        required_columns: of the cohort, at least one of which must have values.
    """

    fit_features: Callable[[BaselineCohort, LabelSpace, np.random.Generator], FittedFeatures] | None
    regularization_c_values: tuple[float, ...] = (1.0,)
    required_columns: tuple[str, ...] = ()


BASELINES: dict[str, Baseline] = {
    "prevalence": Baseline(None),
    "TF-IDF + logistic regression": Baseline(
        features.fit_tfidf_features, regularization_c_values=(0.1, 1.0, 10.0, 100.0, 1000.0)
    ),
    "note length": Baseline(features.fit_length_features),
    "age, sex, admission type": Baseline(
        features.fit_admission_features, required_columns=("age_years", "sex", "admission_type")
    ),
}
BASELINE_NAMES = tuple(BASELINES)


def predict_baselines(
    cohort: Path, label_space: LabelSpace, seed: int, names: Sequence[str] = BASELINE_NAMES
) -> Iterator[tuple[str, pa.Table]]:
    """Fit each baseline that this cohort allows and predict all splits.

    Memory: a logit and a probability for each stay and class, the terms of at most
    ``features.MAX_VOCABULARY_NOTES`` training notes, and one batch of texts.

    Args:
        cohort: Parquet file of ``COHORT_SCHEMA``.
        label_space: of the task.
        seed: of the draw of training notes that terms are counted in, where there are too many.
        names: keys of ``BASELINES``; those of ``find_unavailable_baselines`` are left out.

    Yields:
        (name, table of ``PREDICTION_SCHEMA`` in the order of the cohort, with the label space in
        its metadata). ``logits`` are null for the prevalence, ``tokens`` everywhere.

    Raises:
        UsageError: there is no such baseline.
        InputError: the file is no cohort, does not fit the task, or has no training stay.
    """
    missing = find_unavailable_baselines(cohort, label_space, names)
    stays = features.open_baseline_cohort(cohort, label_space)
    for name in names:
        if name in missing:
            continue
        # A generator for each baseline, so that its result does not depend on the others
        rng = np.random.default_rng([seed, 2])
        probabilities, logits = _predict_baseline(stays, label_space, BASELINES[name], rng)
        columns = {"probabilities": _to_list_array(probabilities)}
        if logits is not None:
            columns["logits"] = _to_list_array(logits)
        for field in PREDICTION_SCHEMA:
            if field.name in stays.table.column_names:
                columns[field.name] = stays.table[field.name]
            elif field.name not in columns:
                columns[field.name] = pa.nulls(stays.table.num_rows, field.type)
        document = LABEL_SPACE_ADAPTER.dump_python(label_space, mode="json")
        schema = PREDICTION_SCHEMA.with_metadata({b"question": json.dumps(document).encode()})
        yield name, pa.Table.from_arrays([columns[key] for key in schema.names], schema=schema)


def find_unavailable_baselines(
    cohort: Path, label_space: LabelSpace, names: Sequence[str] = BASELINE_NAMES
) -> dict[str, str]:
    """Find the baselines whose columns this cohort lacks; notes without stays have no ages.

    Returns:
        Baseline -> the reason.

    Raises:
        UsageError: there is no such baseline.
        InputError: the file is no cohort or does not fit the task.
    """
    for name in names:
        if name not in BASELINES:
            raise UsageError(
                f"there is no baseline {name!r}",
                location="baselines",
                hint=f"the baselines are: {', '.join(BASELINES)}",
            )
    table = features.open_baseline_cohort(cohort, label_space).table
    reasons = {}
    for name in names:
        columns = BASELINES[name].required_columns
        if columns and all(table[column].null_count == table.num_rows for column in columns):
            reasons[name] = f"this cohort has no values of {', '.join(columns)}"
    return reasons


def _predict_baseline(
    cohort: BaselineCohort, label_space: LabelSpace, baseline: Baseline, rng: np.random.Generator
) -> tuple[BaselineScores, BaselineScores | None]:
    """Probabilities and logits, ``(stays, classes)`` each."""
    labels, stays = cohort.label_matrix, len(cohort.splits)
    if baseline.fit_features is None:
        prevalence = linear.compute_prevalence(labels[cohort.find_split_rows("train")])
        return np.tile(prevalence, (stays, 1)).astype(np.float32), None
    fitted = baseline.fit_features(cohort, label_space, rng)
    tuning, c_values = cohort.find_split_rows("tuning"), baseline.regularization_c_values
    has_choice = len(tuning) and len(c_values) > 1
    model = linear.fit_linear_classifier(
        fitted.train_features,
        labels[fitted.train_rows],
        fitted.compute_features(tuning) if has_choice else None,
        labels[tuning],
        label_space.kind,
        c_values,
    )
    shape = (stays, len(label_space.classes))
    probabilities, logits = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for rows in cohort.iterate_row_batches():
        probabilities[rows], logits[rows] = linear.predict_linear_probabilities(
            model, fitted.compute_features(rows), label_space.kind
        )
    return probabilities, logits


def _to_list_array(scores: BaselineScores) -> pa.ChunkedArray:
    """Lists of equal length, in chunks, since one list array cannot hold 2^31 numbers."""
    rows = max(1, 2**24 // max(scores.shape[1], 1))
    chunks = []
    for start in range(0, len(scores), rows):
        part = scores[start : start + rows]  # (rows, classes)
        offsets = pa.array(np.arange(0, part.size + 1, part.shape[1], dtype=np.int32))
        chunks.append(pa.ListArray.from_arrays(offsets, pa.array(part.ravel())))
    return pa.chunked_array(chunks, pa.list_(pa.float32()))
