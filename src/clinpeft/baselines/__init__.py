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
from clinpeft.baselines.features import Learned, Stays
from clinpeft.core.errors import UsageError
from clinpeft.core.schemas import PREDICTION, Question

__all__ = ["ALL", "BASELINES", "Baseline", "absent", "answered"]

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Baseline:
    """One trivial way to answer.

    Attributes:
        learn: stays, question, generator -> features of any stays, learned from the training split; None: the prevalence is the answer.
        strengths: of the regularisation (C of scikit-learn, larger is weaker), ascending, of which the tuning split chooses.
        needs: columns of ``tables.COHORT``, one of which must hold something.
    """

    learn: Callable[[Stays, Question, np.random.Generator], Learned] | None
    strengths: tuple[float, ...] = (1.0,)
    needs: tuple[str, ...] = ()


BASELINES: dict[str, Baseline] = {
    "prevalence": Baseline(None),
    "TF-IDF + logistic regression": Baseline(
        features.words, strengths=(0.1, 1.0, 10.0, 100.0, 1000.0)
    ),
    "note length": Baseline(features.length),
    "age, sex, admission type": Baseline(
        features.admission, needs=("age_years", "sex", "admission_type")
    ),
}
ALL = tuple(BASELINES)


def answered(
    cohort: Path, question: Question, seed: int, names: Sequence[str] = ALL
) -> Iterator[tuple[str, pa.Table]]:
    """The answers of each baseline that this cohort allows, one after the other, on all splits.

    Memory: a logit and a probability for each stay and class, the words of at most ``features.LEARNED_NOTES`` training notes, and one batch of texts.

    Args:
        cohort: Parquet of schema ``tables.COHORT``.
        question: what is asked of it.
        seed: of the training notes that words are learned from, where there are more.
        names: keys of ``BASELINES``; those that ``absent`` names are left out.

    Yields:
        (name, table of schema ``tables.PREDICTION`` in the order of the cohort, with the question in its metadata). ``logits`` are null for the
        prevalence, ``tokens`` everywhere.

    Raises:
        UsageError: there is no such baseline.
        InputError: the file is no cohort, does not fit the question, or has nobody in ``train``.
    """
    _refuse_unknown(names)
    stays = features.opened(cohort, question)
    missing = absent(cohort, question, names)
    for name in names:
        if name not in missing:
            yield (
                name,
                _table(
                    stays,
                    question,
                    *_answers(stays, question, BASELINES[name], np.random.default_rng([seed, 2])),
                ),
            )


def absent(cohort: Path, question: Question, names: Sequence[str] = ALL) -> dict[str, str]:
    """Baseline -> why this cohort does not allow it; a cohort of notes without stays knows nobody's age.

    Raises:
        UsageError: there is no such baseline.
        InputError: the file is no cohort or does not fit the question.
    """
    _refuse_unknown(names)
    stays = features.opened(cohort, question)
    found = {}
    for name in names:
        needs = BASELINES[name].needs
        if needs and all(
            stays.table[column].null_count == stays.table.num_rows for column in needs
        ):
            found[name] = f"this cohort knows none of {', '.join(needs)}"
    return found


def _refuse_unknown(names: Sequence[str]) -> None:
    for name in names:
        if name not in BASELINES:
            raise UsageError(
                f"there is no baseline {name!r}",
                location="baselines",
                hint=f"the baselines are: {', '.join(BASELINES)}",
            )


def _answers(
    stays: Stays, question: Question, baseline: Baseline, generator: np.random.Generator
) -> tuple[Scores, Scores | None]:
    """Probabilities and logits, (stays, classes) each."""
    if baseline.learn is None:
        return np.tile(
            linear.prevalence(stays.answers[stays.rows("train")]), (len(stays.splits), 1)
        ).astype(np.float32), None
    learned = baseline.learn(stays, question, generator)
    tuning = stays.rows("tuning")
    model = linear.fitted(
        learned.train,
        stays.answers[learned.rows],
        learned.asked(tuning) if len(tuning) and len(baseline.strengths) > 1 else None,
        stays.answers[tuning],
        question.kind,
        baseline.strengths,
    )
    shape = (len(stays.splits), len(question.classes))
    probabilities, logits = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for rows in stays.batches():
        probabilities[rows], logits[rows] = linear.scored(model, learned.asked(rows), question.kind)
    return probabilities, logits


def _table(
    stays: Stays, question: Question, probabilities: Scores, logits: Scores | None
) -> pa.Table:
    found = {
        name: stays.table[name] for name in PREDICTION.names if name in stays.table.column_names
    }
    found |= {"probabilities": _lists(probabilities)} | (
        {} if logits is None else {"logits": _lists(logits)}
    )
    columns = [
        found[field.name] if field.name in found else pa.nulls(stays.table.num_rows, field.type)
        for field in PREDICTION
    ]
    schema = PREDICTION.with_metadata({b"question": json.dumps(question.as_json()).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


def _lists(scores: Scores) -> pa.ChunkedArray:
    """Lists of equal length, in chunks, since one list array may not hold 2^31 numbers."""
    rows = max(1, 2**24 // max(scores.shape[1], 1))
    chunks = []
    for start in range(0, len(scores), rows):
        part = scores[start : start + rows]
        offsets = pa.array(np.arange(0, part.size + 1, part.shape[1], dtype=np.int32))
        chunks.append(pa.ListArray.from_arrays(offsets, pa.array(part.ravel())))
    return pa.chunked_array(chunks, pa.list_(pa.float32()))
