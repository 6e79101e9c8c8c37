"""How long the intervals of a question with many labels take, and in how much memory.

    python benchmarks/evaluation_bootstrap.py --labels 1266 --stays 10000 --resamples 1000

The defaults are the size of diagnosis coding in arXiv 2307.03042. Invented answers: three stays in four from a subject of their own, ten codes a
stay on average with frequencies as 1 / rank (Zipf), probabilities that know something. One process; set OMP_NUM_THREADS to compare with other work
on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from clinpeft.core import schemas
from clinpeft.core.schemas import LabelSpace
from clinpeft.evaluation.classification.discrimination import (
    build_discrimination_metrics,
    compute_label_metrics,
)
from clinpeft.evaluation.classification.metric_set import evaluate_metric_set
from clinpeft.evaluation.classification.scored_predictions import extract_scored_predictions
from clinpeft.recipe import ClassificationEvaluationSpec

CODES_A_STAY = 10


def peak_megabytes() -> float:
    """The largest resident set of this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) / 1024


def invented(stays: int, labels: int) -> tuple[pa.Table, LabelSpace]:
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, labels + 1)
    frequency = np.minimum(CODES_A_STAY * frequency / frequency.sum(), 0.9)
    truth = rng.random((stays, labels), np.float32) < frequency
    logits = (
        rng.standard_normal((stays, labels), np.float32)
        + truth
        + np.log(frequency).astype(np.float32)
    )
    probabilities = pa.array((1 / (1 + np.exp(-logits))).ravel())
    starts = np.arange(stays + 1, dtype=np.int32) * labels
    columns = {
        "subject_id": rng.integers(0, stays, stays),
        "stay_id": np.arange(stays),
        "prediction_time": [datetime.datetime(2100, 1, 1)] * stays,
        "split": ["held_out"] * stays,
        "labels": [np.flatnonzero(row) for row in truth],
        "probabilities": pa.ListArray.from_arrays(starts, probabilities),
    }
    names = tuple(f"code {at}" for at in range(labels))
    counts = tuple(int(4 * stays * share) for share in frequency)
    return schemas.build_arrow_table(schemas.PREDICTION_SCHEMA, columns), LabelSpace(
        "codes", "multilabel", names, ("icd9",) * labels, counts, "auroc_macro"
    )


def evaluate_discrimination(
    predictions: pa.Table,
    label_space: LabelSpace,
    split: str,
    spec: ClassificationEvaluationSpec,
    rng: np.random.Generator,
) -> None:
    scored = extract_scored_predictions(predictions, label_space, split)
    metric_set = build_discrimination_metrics(scored, label_space, split, spec)
    evaluate_metric_set(scored, metric_set, label_space, split, spec, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1266)
    parser.add_argument("--stays", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    answered, question = invented(given.stays, given.labels)
    spec = ClassificationEvaluationSpec(resamples=given.resamples)
    print(
        f"{given.labels:,} labels, {given.stays:,} stays, {given.resamples:,} resamples; before: peak {peak_megabytes():.0f} MB",
        flush=True,
    )
    for measured in (compute_label_metrics, evaluate_discrimination):
        began, busy = time.perf_counter(), time.process_time()
        measured(answered, question, "held_out", spec, np.random.default_rng(0))
        clock, busy = time.perf_counter() - began, time.process_time() - busy
        print(
            f"{measured.__name__}: {clock:.0f} s, {busy:.0f} processor seconds; peak {peak_megabytes():.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
