"""How far related pairs stand from unrelated ones, for each way in which the unrelated were drawn.

``separation`` is the study's score (arXiv 2511.19739, equation 3), a difference of mean cosines. It grows with the spread of all cosines, which the
temperature of training sets, so that of two models the one with the larger separation need not rank better; the numbers beside it
do not depend on that: the AUROC and the average precision on no monotone map of the scores, d, d′ and the z-scored separation on no affine one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import METRIC_RESULT_SCHEMA, PAIR_SCORE_SCHEMA, build_arrow_table
from clinpeft.evaluation.bootstrap import Float64Array, Int64Array, RowStatistics
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
"""The separation that the study calls clinically useful; it gives no data for it."""

_SIMILAR_STRATUM, _DIFFERENT_STRATUM, _NEGATION_STRATUM = "similar", "different", "negation"

SEPARATION_METRICS = {
    "mean_related": "mean score of related pairs",
    "mean_unrelated": "mean score of unrelated pairs",
    "separation": "mean score of related less that of unrelated pairs (arXiv 2511.19739, equation 3)",
    "cohens_d": "separation over the pooled standard deviation, n - 1 (arXiv 2511.19739, equation 4)",
    "d_prime": "separation over the root of the mean of both variances, n - 1",
    "separation_z": "separation over the standard deviation of the random pairs, n - 1",
    "auroc": "chance that a related pair scores higher than an unrelated one (Mann-Whitney), ties counted half",
    "average_precision": "precision at each distinct score weighted by recall gained, without interpolation; depends on the share of related pairs",
}
"""Name -> definition."""


@dataclass(frozen=True)
class _Stratum:
    """All related pairs and the unrelated ones of a stratum, among n rows.

    Attributes:
        scores: shape (n,).
        is_related, is_unrelated, is_random: which rows, shape (n,) each; rows that are in none are there so that resamples are shared.
    """

    scores: Float64Array
    is_related: NDArray[np.bool_]
    is_unrelated: NDArray[np.bool_]
    is_random: NDArray[np.bool_]


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
    """Every metric of ``METRICS`` in every stratum, with a percentile interval by bootstrap over clusters.

    All related pairs are compared with the unrelated ones of each stratum. All strata and metrics share their resamples.

    Args:
        pair_scores: of schema ``tables.PAIR_SCORE``. The cluster of a pair is that of its anchor: a random pair reaches into a second chapter, and is
            drawn with the first.
        state: of the model, for ``group``, which is ``state · stratum``.
        resamples, level, rng: of the bootstrap.
        split, task: for the columns of these names.
        metric_names: those that are wanted.

    Returns:
        Of schema ``tables.RESULT``; ``n`` counts the pairs, ``n_events`` the related, ``n_subjects`` the clusters. A number that two pairs cannot
        give, or ``separation_z`` without a random stratum, is null.

    Raises:
        InputError: scores that are NaN, with how many and the first pair; no related pair, or no unrelated one.
    """
    rows: list[MetricRow] = []
    clusters = number_clusters(pair_scores["cluster"].to_pylist())
    for name, stratum in _build_strata(pair_scores, state).items():
        definitions = {metric: SEPARATION_METRICS[metric] for metric in metric_names}
        rows += _evaluate_stratum(
            stratum,
            _build_statistics(stratum, metric_names),
            definitions,
            clusters,
            f"{state} · {name}",
            split,
            task,
            resamples,
            level,
            rng,
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
    """Every metric of ``METRICS``, after less before on the same pairs, with a paired interval: a resample draws clusters for both at once.

    Differences only: a baseline separation near 0 makes any gain relative to it look large.

    Args:
        before, after: of schema ``tables.PAIR_SCORE``, in any order of rows.
        names: of the two, for ``group``: ``after - before · stratum``.
        resamples, level, rng, split, task: as in ``separation``.

    Returns:
        Of schema ``tables.RESULT``, rows ``auroc_difference`` and so on, each followed by ``auroc_difference_p``, the two-sided ``bootstrap_p``.

    Raises:
        RefusedError: the two did not score the same pairs.
        InputError: as ``separation``.
    """
    first, second = before.sort_by(_PAIR_KEYS), after.sort_by(_PAIR_KEYS)
    same = [column for column in PAIR_SCORE_SCHEMA.names if column != "score"]
    if not first.select(same).equals(second.select(same)):
        hint = "score the same pairs with both models"
        raise RefusedError(
            f"{len(first)} and {len(second)} pairs, which are not the same",
            location=" and ".join(names),
            hint=hint,
        )
    clusters = number_clusters(first["cluster"].to_pylist())
    rows: list[MetricRow] = []
    pairs = zip(
        _build_strata(first, names[0]).items(),
        _build_strata(second, names[1]).values(),
        strict=True,
    )
    for (name, one), other in pairs:
        definitions = {
            f"{metric}_difference": f"difference, {names[1]} less {names[0]} on the same pairs, of: {SEPARATION_METRICS[metric]}"
            for metric in SEPARATION_METRICS
        }
        kept: list[Float64Array] = []
        statistics = _store_statistics(
            subtract_statistics(_build_statistics(one), _build_statistics(other)), kept
        )
        group = f"{names[1]} - {names[0]} · {name}"
        found = _evaluate_stratum(
            other, statistics, definitions, clusters, group, split, task, resamples, level, rng
        )
        drawn = np.concatenate(kept[1:], axis=1) if len(kept) > 1 else np.zeros((len(found), 0))
        rows += [
            line
            for row, values in zip(found, drawn, strict=True)
            for line in (row, _build_p_row(row, values))
        ]
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
    """The protocol of arXiv 2511.19739: cosines of similar, different and negated pairs, each pair on its own.

    The study's intervals were simulated from means and standard deviations; these resample the pairs. It collected negated pairs and left them out of
    its score: here they are a stratum of their own, and what they are compared with are the similar pairs.

    Args:
        similar_cosines, different_cosines, negation_cosines: cosines, each of shape (n,); negation may be empty.
        state, resamples, level, rng, task: as in ``separation``.

    Returns:
        As ``separation``, groups ``state · different`` and ``state · negation``, without ``separation_z``; a separation of more than
        ``STUDY_THRESHOLD`` is what the study calls clinically useful, and the definition says so.
    """
    sets = {
        _SIMILAR_STRATUM: np.asarray(similar_cosines, np.float64),
        _DIFFERENT_STRATUM: np.asarray(different_cosines, np.float64),
        _NEGATION_STRATUM: np.asarray(negation_cosines, np.float64),
    }
    names = [name for name, values in sets.items() for _ in values]
    columns = {
        "pair_id": [
            f"{name} {at}" for name, values in sets.items() for at in range(1, len(values) + 1)
        ],
        "stratum": names,
        "related": [name == _SIMILAR_STRATUM for name in names],
        "score": np.concatenate(list(sets.values())),
    }
    kept = [metric for metric in SEPARATION_METRICS if metric != "separation_z"]
    found = evaluate_separation(
        build_arrow_table(PAIR_SCORE_SCHEMA, columns),
        state,
        resamples=resamples,
        level=level,
        rng=rng,
        task=task,
        metric_names=kept,
    )
    said = f"; the study calls more than {STUDY_SEPARATION_THRESHOLD} clinically useful"
    rows = [
        row | {"definition": row["definition"] + said} if row["name"] == "separation" else row
        for row in found.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def compute_bootstrap_p(differences: Float64Array) -> float:
    """Two-sided p of a difference from its values on resamples: twice the smaller of the shares at or below 0 and at or above 0, at most 1.

    One is added to both counts and to the number of resamples, so that p is never 0. NaN are left out; without a value p is NaN.
    """
    drawn = differences[~np.isnan(differences)]
    if not len(drawn):
        return float("nan")
    smaller = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + smaller) / (1 + len(drawn)))


_PAIR_KEYS = [("pair_id", "ascending"), ("stratum", "ascending"), ("related", "ascending")]


def _build_strata(pair_scores: pa.Table, location: str) -> dict[str, _Stratum]:
    values = np.asarray(pair_scores["score"].to_numpy(), np.float64)
    check_valid_rows(
        ~np.isfinite(values),
        "scores that are not finite (NaN)",
        pair_scores["pair_id"].to_pylist(),
        location,
    )
    related = np.asarray(pair_scores["related"].to_numpy(), np.bool_)
    if related.all() or not related.any():
        message = f"{int(related.sum())} related pairs and {int((~related).sum())} unrelated ones"
        raise InputError(message, location=location, hint="score at least one of each")
    strata = np.array(pair_scores["stratum"].to_pylist(), np.str_)
    names = pc.unique(pair_scores["stratum"].filter(pc.invert(pair_scores["related"]))).to_pylist()
    random = ~related & (strata == RANDOM_STRATUM)
    return {name: _Stratum(values, related, ~related & (strata == name), random) for name in names}


def _evaluate_stratum(
    stratum: _Stratum,
    statistics: RowStatistics,
    definitions: Mapping[str, str],
    clusters: Int64Array,
    group: str,
    split: str,
    task: str | None,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[MetricRow]:
    events = int(stratum.is_related.sum())
    about = MeasurementContext(events + int(stratum.is_unrelated.sum()), events, split, group, task)
    return bootstrap_metric_rows(
        dict(definitions), statistics, clusters, about, resamples, level, rng
    )


def _build_statistics(
    stratum: _Stratum, metric_names: Sequence[str] = tuple(SEPARATION_METRICS)
) -> RowStatistics:
    """Counts of rows (resamples, n) -> the metrics, shape (metrics, resamples)."""
    both = np.flatnonzero(stratum.is_related | stratum.is_unrelated)
    ranked = rank_scores(stratum.scores[both], stratum.is_related[both])
    at = [list(SEPARATION_METRICS).index(metric) for metric in metric_names]

    def statistics(counts: NDArray[np.int32]) -> Float64Array:
        columns = np.asarray(counts).T  # (n, resamples), contiguous
        area = compute_curve_areas(ranked, columns[both].T)
        return np.concatenate([_compute_moment_metrics(stratum, columns), area])[at]

    return statistics


def _compute_moment_metrics(stratum: _Stratum, counts: NDArray[np.int32]) -> Float64Array:
    """All metrics but the areas, shape (6, resamples), from ``counts`` (n, resamples)."""
    centre = (
        stratum.scores.mean()
    )  # taken away, since a variance is a small difference of large sums
    groups = [
        _compute_mean_and_squares(stratum.scores[rows] - centre, counts[rows])
        for rows in (stratum.is_related, stratum.is_unrelated, stratum.is_random)
    ]
    (
        (n_first, first, squares_first),
        (n_second, second, squares_second),
        (n_random, _, squares_random),
    ) = groups
    apart = first - second
    variances = (
        _divide_or_nan(squares_first, n_first - 1),
        _divide_or_nan(squares_second, n_second - 1),
    )
    pooled = np.sqrt(_divide_or_nan(squares_first + squares_second, n_first + n_second - 2))
    pooled[(n_first < 2) | (n_second < 2)] = np.nan
    scales = (
        pooled,
        np.sqrt((variances[0] + variances[1]) / 2),
        np.sqrt(_divide_or_nan(squares_random, n_random - 1)),
    )
    return np.stack(
        [
            first + centre,
            second + centre,
            apart,
            *(_divide_or_nan(apart, scale) for scale in scales),
        ]
    )


def _compute_mean_and_squares(
    values: Float64Array, counts: NDArray[np.int32]
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Number, mean and sum of squared deviations of each resample."""
    n, sums, squares = (weights @ counts for weights in (np.ones(len(values)), values, values**2))
    mean = _divide_or_nan(sums, n)
    deviations = np.maximum(squares - n * np.nan_to_num(mean) ** 2, 0.0)
    deviations[deviations <= 1e-14 * squares] = 0.0  # nothing but rounding: all rows alike
    return n, mean, deviations


def _divide_or_nan(numerators: Float64Array, denominators: Float64Array) -> Float64Array:
    found: Float64Array = np.divide(
        numerators, denominators, out=np.full(np.shape(numerators), np.nan), where=denominators > 0
    )
    return found


def _store_statistics(
    statistics: RowStatistics, stored_values: list[Float64Array]
) -> RowStatistics:
    """The same function, and what it gave."""

    def keep(counts: NDArray[np.int32]) -> Float64Array:
        stored_values.append(statistics(counts))
        return stored_values[-1]

    return keep


def _build_p_row(row: MetricRow, differences: Float64Array) -> MetricRow:
    p = compute_bootstrap_p(differences)
    said = f"two-sided bootstrap p of {row['name']}: twice the smaller share of resamples on either side of 0"
    value = None if np.isnan(p) or row["low"] is None else p
    return {
        **row,
        "name": f"{row['name']}_p",
        "value": value,
        "low": None,
        "high": None,
        "level": None,
        "definition": said,
    }
