"""Separation of related from unrelated pairs, for each stratum from which unrelated pairs are
drawn.

``separation`` is the score of the study (arXiv 2511.19739, equation 3), a difference of mean
cosines. It grows with the spread of all cosines, which the temperature of training sets, so that of
two models the one with the larger separation need not rank better. The metrics beside it do not
depend on that: AUROC and average precision are invariant under monotone maps of the scores, d, d′
and the z-scored separation under affine ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA, PAIR_SCORE_SCHEMA, build_arrow_table
from clinpeft.evaluation.arrays import BoolArray, Float64Array, divide_or_nan
from clinpeft.evaluation.bootstrap import RowStatistics
from clinpeft.evaluation.classification.ranks import compute_curve_areas, rank_scores
from clinpeft.evaluation.embedding.rows import (
    MeasurementContext,
    MetricRow,
    bootstrap_metric_rows,
    number_clusters,
    subtract_statistics,
)
from clinpeft.evaluation.embedding.vectors import check_valid_rows

RANDOM_STRATUM = "random"
"""The stratum whose spread scales ``separation_z``."""

STUDY_SEPARATION_THRESHOLD = 0.3
"""The separation that arXiv 2511.19739 calls clinically useful; it gives no data for it."""

_SIMILAR_STRATUM, _DIFFERENT_STRATUM, _NEGATION_STRATUM = "similar", "different", "negation"
_PAIR_KEYS = [("pair_id", "ascending"), ("stratum", "ascending"), ("related", "ascending")]

SEPARATION_METRICS = {
    "mean_related": "mean score of related pairs",
    "mean_unrelated": "mean score of unrelated pairs",
    "separation": "mean score of related less that of unrelated pairs "
    "(arXiv 2511.19739, equation 3)",
    "cohens_d": "separation over the pooled standard deviation, n - 1 "
    "(arXiv 2511.19739, equation 4)",
    "d_prime": "separation over the root of the mean of both variances, n - 1",
    "separation_z": "separation over the standard deviation of the random pairs, n - 1",
    "auroc": "chance that a related pair scores higher than an unrelated one (Mann-Whitney), "
    "ties counted half",
    "average_precision": "precision at each distinct score weighted by recall gained, "
    "without interpolation; depends on the share of related pairs",
}
"""Name -> definition."""


@dataclass(frozen=True)
class _Stratum:
    """All related pairs and the unrelated ones of a stratum, among n rows.

    Attributes:
        scores: shape (n,).
        is_related, is_unrelated, is_random: which rows, shape (n,) each; rows that are in none are
            there so that all strata share their resamples.
    """

    scores: Float64Array
    is_related: BoolArray
    is_unrelated: BoolArray
    is_random: BoolArray

    def describe_rows(self, split: str, group: str, task: str | None) -> MeasurementContext:
        """What the rows of results are about: their numbers of pairs and of related pairs."""
        related = int(self.is_related.sum())
        return MeasurementContext(
            related + int(self.is_unrelated.sum()), related, split, group, task
        )


def evaluate_separation(
    pair_scores: pa.Table,
    state: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
    metric_names: Sequence[str] = tuple(SEPARATION_METRICS),
) -> pa.Table:
    """Compute the metrics of ``SEPARATION_METRICS`` in every stratum.

    All related pairs are compared with the unrelated ones of each stratum. Intervals are percentile
    intervals by bootstrap over clusters; all strata and metrics share their resamples. Ties count
    half in the AUROC.

    Args:
        pair_scores: of schema ``PAIR_SCORE_SCHEMA``. The cluster of a pair is that of its anchor: a
            random pair reaches into a second chapter, and is drawn with the first.
        state: of the model, for ``group``, which is ``state · stratum``.
        resamples, level, rng: of the bootstrap.
        split, task: for the columns of these names.
        metric_names: keys of ``SEPARATION_METRICS``.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``; ``n`` counts the pairs, ``n_events`` the related,
        ``n_subjects`` the clusters. A standard deviation of fewer than two pairs, or
        ``separation_z`` without a random stratum, is null.

    Raises:
        InputError: scores that are NaN, with how many and the first pair; no related pair, or no
            unrelated one.
    """
    rows: list[MetricRow] = []
    clusters = number_clusters(pair_scores["cluster"].to_pylist())
    definitions = {metric: SEPARATION_METRICS[metric] for metric in metric_names}
    for name, stratum in _build_strata(pair_scores, state).items():
        statistics = _build_statistics(stratum, metric_names)
        context = stratum.describe_rows(split, f"{state} · {name}", task)
        rows += bootstrap_metric_rows(
            definitions, statistics, clusters, context, resamples, level, rng
        )
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def compare_separation(
    before: pa.Table,
    after: pa.Table,
    names: tuple[str, str],
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
) -> pa.Table:
    """Compare separation metrics, after less before on the same pairs, with paired intervals.

    A resample draws clusters for both models at once. Differences only: a baseline separation near
    0 makes any gain relative to it look large.

    Args:
        before, after: of schema ``PAIR_SCORE_SCHEMA``, in any order of rows.
        names: of the two, for ``group``: ``after - before · stratum``.
        resamples, level, rng, split, task: as in ``evaluate_separation``.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``, rows ``auroc_difference`` and so on, each followed by
        ``auroc_difference_p``, from ``compute_bootstrap_p``.

    Raises:
        RefusedError: the two did not score the same pairs.
        InputError: as ``evaluate_separation``.
    """
    first, second = before.sort_by(_PAIR_KEYS), after.sort_by(_PAIR_KEYS)
    columns = [column for column in PAIR_SCORE_SCHEMA.names if column != "score"]
    if not first.select(columns).equals(second.select(columns)):
        raise RefusedError(
            f"{len(first)} and {len(second)} pairs, which are not the same",
            location=" and ".join(names),
            hint="score the same pairs with both models",
        )
    clusters = number_clusters(first["cluster"].to_pylist())
    definitions = {
        f"{metric}_difference": f"difference, {names[1]} less {names[0]} on the same pairs, "
        f"of: {definition}"
        for metric, definition in SEPARATION_METRICS.items()
    }
    rows: list[MetricRow] = []
    second_strata = _build_strata(second, names[1])
    for name, stratum in _build_strata(first, names[0]).items():
        change = subtract_statistics(
            _build_statistics(stratum), _build_statistics(second_strata[name])
        )
        chunks: list[Float64Array] = []
        context = second_strata[name].describe_rows(
            split, f"{names[1]} - {names[0]} · {name}", task
        )
        statistics = _record_values(change, chunks)
        results = bootstrap_metric_rows(
            definitions, statistics, clusters, context, resamples, level, rng
        )
        # The first call is the sample itself; without a second one there is one cluster only.
        resampled = np.zeros((len(results), 0))
        if len(chunks) > 1:
            resampled = np.concatenate(chunks[1:], axis=1)  # (metrics, resamples)
        for row, values in zip(results, resampled, strict=True):
            p = compute_bootstrap_p(values)
            p_row = {
                "name": f"{row['name']}_p",
                "value": None if np.isnan(p) or row["low"] is None else p,
                "low": None,
                "high": None,
                "level": None,
                "definition": f"two-sided bootstrap p of {row['name']}: "
                "twice the smaller share of resamples on either side of 0",
            }
            rows += [row, row | p_row]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def evaluate_study_protocol(
    similar_cosines: ArrayLike,
    different_cosines: ArrayLike,
    negation_cosines: ArrayLike,
    state: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    task: str | None = "study",
) -> pa.Table:
    """Evaluate by the protocol of arXiv 2511.19739: similar, different and negated pairs.

    Each pair is a cluster of its own. The study's intervals were simulated from means and standard
    deviations; these resample the pairs. It collected negated pairs and left them out of its score:
    here they are a stratum of their own, compared with the similar pairs.

    Args:
        similar_cosines, different_cosines, negation_cosines: each of shape (n,); negation may be
            empty.
        state, resamples, level, rng, task: as in ``evaluate_separation``.

    Returns:
        As ``evaluate_separation``, groups ``state · different`` and ``state · negation``, without
        ``separation_z``; a separation of more than ``STUDY_SEPARATION_THRESHOLD`` is what the study
        calls clinically useful, and the definition says so.
    """
    cosines = {
        _SIMILAR_STRATUM: np.asarray(similar_cosines, np.float64),
        _DIFFERENT_STRATUM: np.asarray(different_cosines, np.float64),
        _NEGATION_STRATUM: np.asarray(negation_cosines, np.float64),
    }
    # The study has no clusters: every pair is resampled on its own.
    strata = [name for name, values in cosines.items() for _ in values]
    columns = {
        "pair_id": [
            f"{name} {number}"
            for name, values in cosines.items()
            for number in range(1, len(values) + 1)
        ],
        "stratum": strata,
        "related": [name == _SIMILAR_STRATUM for name in strata],
        "score": np.concatenate(list(cosines.values())),
    }
    results = evaluate_separation(
        build_arrow_table(PAIR_SCORE_SCHEMA, columns),
        state,
        resamples=resamples,
        level=level,
        rng=rng,
        task=task,
        metric_names=[metric for metric in SEPARATION_METRICS if metric != "separation_z"],
    )
    rows = results.to_pylist()
    for row in rows:
        if row["name"] == "separation":
            row["definition"] += (
                f"; the study calls more than {STUDY_SEPARATION_THRESHOLD} clinically useful"
            )
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def compute_bootstrap_p(differences: Float64Array) -> float:
    """Compute the two-sided p of a difference from its values on resamples.

    Twice the smaller of the shares at or below 0 and at or above 0, at most 1 (Davison and Hinkley
    1997, section 4.4). One is added to both counts and to the number of resamples, so that p is
    never 0.

    Args:
        differences: shape (resamples,); NaN are left out.

    Returns:
        p; NaN without a value.
    """
    defined = differences[~np.isnan(differences)]
    if not len(defined):
        return float("nan")
    smaller = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + smaller) / (1 + len(defined)))


def _build_strata(pair_scores: pa.Table, location: str) -> dict[str, _Stratum]:
    """The strata of unrelated pairs by name, in the order of their first rows."""
    scores = np.asarray(pair_scores["score"].to_numpy(), np.float64)
    pair_ids = pair_scores["pair_id"].to_pylist()
    check_valid_rows(~np.isfinite(scores), "scores that are not finite (NaN)", pair_ids, location)
    related = np.asarray(pair_scores["related"].to_numpy(), np.bool_)
    if related.all() or not related.any():
        message = f"{int(related.sum())} related pairs and {int((~related).sum())} unrelated ones"
        raise InputError(message, location=location, hint="score at least one of each")
    strata = np.array(pair_scores["stratum"].to_pylist(), np.str_)
    # Strata of unrelated pairs only; related pairs are shared by all of them.
    names = pc.unique(pair_scores["stratum"].filter(pc.invert(pair_scores["related"]))).to_pylist()
    random = ~related & (strata == RANDOM_STRATUM)  # (n,)
    return {name: _Stratum(scores, related, ~related & (strata == name), random) for name in names}


def _build_statistics(
    stratum: _Stratum, metric_names: Sequence[str] = tuple(SEPARATION_METRICS)
) -> RowStatistics:
    """Counts of rows (resamples, n) to the metrics, shape (metrics, resamples)."""
    pairs = np.flatnonzero(stratum.is_related | stratum.is_unrelated)
    # Ranks do not change between resamples: computed once.
    ranks = rank_scores(stratum.scores[pairs], stratum.is_related[pairs])
    selected = [list(SEPARATION_METRICS).index(metric) for metric in metric_names]

    def compute_values(counts: NDArray[np.int32]) -> Float64Array:
        row_counts = np.asarray(counts).T  # (n, resamples), contiguous
        areas = compute_curve_areas(ranks, row_counts[pairs].T)
        return np.concatenate([_compute_moment_metrics(stratum, row_counts), areas])[selected]

    return compute_values


def _record_values(statistics: RowStatistics, chunks: list[Float64Array]) -> RowStatistics:
    """The same function, which also appends its values to ``chunks``: a p needs them all."""

    def compute_and_record(counts: NDArray[np.int32]) -> Float64Array:
        chunks.append(statistics(counts))
        return chunks[-1]

    return compute_and_record


def _compute_moment_metrics(stratum: _Stratum, counts: NDArray[np.int32]) -> Float64Array:
    """All metrics but the areas, shape (6, resamples), from ``counts`` (n, resamples)."""
    # The mean is subtracted first, since a variance is a small difference of large sums.
    center = stratum.scores.mean()
    moments = []
    for rows in (stratum.is_related, stratum.is_unrelated, stratum.is_random):
        values, row_counts = stratum.scores[rows] - center, counts[rows]
        n, sums, squares = (
            weights @ row_counts for weights in (np.ones(len(values)), values, values**2)
        )  # (resamples,) each
        mean = divide_or_nan(sums, n)
        deviations = np.maximum(squares - n * np.nan_to_num(mean) ** 2, 0.0)
        deviations[deviations <= 1e-14 * squares] = 0.0  # nothing but rounding: all rows are equal
        moments.append((n, mean, deviations))
    (n_related, related, squares_related), (n_other, other, squares_other), random = moments
    separation = related - other
    # Cohen's d takes the pooled variance, d' the mean of both variances.
    pooled = np.sqrt(divide_or_nan(squares_related + squares_other, n_related + n_other - 2))
    pooled[(n_related < 2) | (n_other < 2)] = np.nan
    variances = (
        divide_or_nan(squares_related, n_related - 1),
        divide_or_nan(squares_other, n_other - 1),
    )
    mean_deviation = np.sqrt((variances[0] + variances[1]) / 2)
    random_deviation = np.sqrt(divide_or_nan(random[2], random[0] - 1))
    return np.stack(
        [
            related + center,
            other + center,
            separation,
            divide_or_nan(separation, pooled),
            divide_or_nan(separation, mean_deviation),
            divide_or_nan(separation, random_deviation),
        ]
    )
