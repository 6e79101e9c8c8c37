"""A cohort -> what needs no language model: the answers of trivial baselines, fitted on the training split alone, without torch.

```
linear.py     features and answers -> logistic regressions, of one class of several or of all that apply
features.py   stays -> features: words of the text, its length, age, sex and admission type
```
A model that does not beat the words of its notes has learned little; so these stand beside it in every table.
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
from clinpeft.core.schemas import PREDICTION_SCHEMA, LabelSpace

__all__ = [
    "BASELINE_NAMES",
    "BASELINES",
    "Baseline",
    "find_unavailable_baselines",
    "predict_baselines",
]

BaselineScores = NDArray[np.float32]


@dataclass(frozen=True)
class Baseline:
    """One trivial way to answer.

    Attributes:
        fit_features: stays, question, generator -> features of any stays, learned from the training split; None: the prevalence is the answer.
        regularization_c_values: of the regularisation (C of scikit-learn, larger is weaker), ascending, of which the tuning split chooses.
        required_columns: columns of ``tables.COHORT``, one of which must hold something.
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
    """The answers of each baseline that this cohort allows, one after the other, on all splits.

    Memory: a logit and a probability for each stay and class, the words of at most ``features.LEARNED_NOTES`` training notes, and one batch of texts.

    Args:
        cohort: Parquet of schema ``tables.COHORT``.
        label_space: what is asked of it.
        seed: of the training notes that words are learned from, where there are more.
        names: keys of ``BASELINES``; those that ``absent`` names are left out.

    Yields:
        (name, table of schema ``tables.PREDICTION`` in the order of the cohort, with the question in its metadata). ``logits`` are null for the
        prevalence, ``tokens`` everywhere.

    Raises:
        UsageError: there is no such baseline.
        InputError: the file is no cohort, does not fit the question, or has nobody in ``train``.
    """
    _check_baseline_names(names)
    stays = features.open_baseline_cohort(cohort, label_space)
    missing = find_unavailable_baselines(cohort, label_space, names)
    for name in names:
        if name not in missing:
            yield (
                name,
                _build_prediction_table(
                    stays,
                    label_space,
                    *_predict_baseline(
                        stays, label_space, BASELINES[name], np.random.default_rng([seed, 2])
                    ),
                ),
            )


def find_unavailable_baselines(
    cohort: Path, label_space: LabelSpace, names: Sequence[str] = BASELINE_NAMES
) -> dict[str, str]:
    """Baseline -> why this cohort does not allow it; a cohort of notes without stays knows nobody's age.

    Raises:
        UsageError: there is no such baseline.
        InputError: the file is no cohort or does not fit the question.
    """
    _check_baseline_names(names)
    stays = features.open_baseline_cohort(cohort, label_space)
    found = {}
    for name in names:
        needs = BASELINES[name].required_columns
        if needs and all(
            stays.table[column].null_count == stays.table.num_rows for column in needs
        ):
            found[name] = f"this cohort knows none of {', '.join(needs)}"
    return found


def _check_baseline_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in BASELINES:
            raise UsageError(
                f"there is no baseline {name!r}",
                location="baselines",
                hint=f"the baselines are: {', '.join(BASELINES)}",
            )


def _predict_baseline(
    baseline_cohort: BaselineCohort,
    label_space: LabelSpace,
    baseline: Baseline,
    rng: np.random.Generator,
) -> tuple[BaselineScores, BaselineScores | None]:
    """Probabilities and logits, (stays, classes) each."""
    if baseline.fit_features is None:
        return np.tile(
            linear.compute_prevalence(
                baseline_cohort.label_matrix[baseline_cohort.find_split_rows("train")]
            ),
            (len(baseline_cohort.splits), 1),
        ).astype(np.float32), None
    learned = baseline.fit_features(baseline_cohort, label_space, rng)
    tuning = baseline_cohort.find_split_rows("tuning")
    model = linear.fit_linear_classifier(
        learned.train_features,
        baseline_cohort.label_matrix[learned.train_rows],
        learned.compute_features(tuning)
        if len(tuning) and len(baseline.regularization_c_values) > 1
        else None,
        baseline_cohort.label_matrix[tuning],
        label_space.kind,
        baseline.regularization_c_values,
    )
    shape = (len(baseline_cohort.splits), len(label_space.classes))
    probabilities, logits = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for rows in baseline_cohort.iterate_row_batches():
        probabilities[rows], logits[rows] = linear.predict_linear_probabilities(
            model, learned.compute_features(rows), label_space.kind
        )
    return probabilities, logits


def _build_prediction_table(
    baseline_cohort: BaselineCohort,
    label_space: LabelSpace,
    probabilities: BaselineScores,
    logits: BaselineScores | None,
) -> pa.Table:
    found = {
        name: baseline_cohort.table[name]
        for name in PREDICTION_SCHEMA.names
        if name in baseline_cohort.table.column_names
    }
    found |= {"probabilities": _to_list_array(probabilities)} | (
        {} if logits is None else {"logits": _to_list_array(logits)}
    )
    columns = [
        found[field.name]
        if field.name in found
        else pa.nulls(baseline_cohort.table.num_rows, field.type)
        for field in PREDICTION_SCHEMA
    ]
    schema = PREDICTION_SCHEMA.with_metadata(
        {b"question": json.dumps(label_space.as_json()).encode()}
    )
    return pa.Table.from_arrays(columns, schema=schema)


def _to_list_array(scores: BaselineScores) -> pa.ChunkedArray:
    """Lists of equal length, in chunks, since one list array may not hold 2^31 numbers."""
    rows = max(1, 2**24 // max(scores.shape[1], 1))
    chunks = []
    for start in range(0, len(scores), rows):
        part = scores[start : start + rows]
        offsets = pa.array(np.arange(0, part.size + 1, part.shape[1], dtype=np.int32))
        chunks.append(pa.ListArray.from_arrays(offsets, pa.array(part.ravel())))
    return pa.chunked_array(chunks, pa.list_(pa.float32()))
