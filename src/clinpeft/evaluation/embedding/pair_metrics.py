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
from clinpeft.core.schemas import PAIR_SCORE, RESULT, table
from clinpeft.evaluation.bootstrap import Floats, Integers, RowStatistics
from clinpeft.evaluation.classification.ranks import areas, ranks
from clinpeft.evaluation.embedding.rows import Measured, Row, bootstrapped, codes, difference
from clinpeft.evaluation.embedding.vectors import refuse

RANDOM = "random"
"""The stratum whose spread scales ``separation_z``."""

STUDY_THRESHOLD = 0.3
"""The separation that the study calls clinically useful; it gives no data for it."""

_SIMILAR, _DIFFERENT, _NEGATION = "similar", "different", "negation"

METRICS = {
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
        related, unrelated, random: which rows, shape (n,) each; rows that are in none are there so that resamples are shared.
    """

    scores: Floats
    related: NDArray[np.bool_]
    unrelated: NDArray[np.bool_]
    random: NDArray[np.bool_]


def separation(
    scores: pa.Table,
    state: str,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    split: str = "held_out",
    task: str | None = None,
    metrics: Sequence[str] = tuple(METRICS),
) -> pa.Table:
    """Every metric of ``METRICS`` in every stratum, with a percentile interval by bootstrap over clusters.

    All related pairs are compared with the unrelated ones of each stratum. All strata and metrics share their resamples.

    Args:
        scores: of schema ``tables.PAIR_SCORE``. The cluster of a pair is that of its anchor: a random pair reaches into a second chapter, and is
            drawn with the first.
        state: of the model, for ``group``, which is ``state · stratum``.
        resamples, level, rng: of the bootstrap.
        split, task: for the columns of these names.
        metrics: those that are wanted.

    Returns:
        Of schema ``tables.RESULT``; ``n`` counts the pairs, ``n_events`` the related, ``n_subjects`` the clusters. A number that two pairs cannot
        give, or ``separation_z`` without a random stratum, is null.

    Raises:
        InputError: scores that are NaN, with how many and the first pair; no related pair, or no unrelated one.
    """
    rows: list[Row] = []
    clusters = codes(scores["cluster"].to_pylist())
    for name, stratum in _strata(scores, state).items():
        definitions = {metric: METRICS[metric] for metric in metrics}
        rows += _measured(
            stratum,
            _statistics(stratum, metrics),
            definitions,
            clusters,
            f"{state} · {name}",
            split,
            task,
            resamples,
            level,
            rng,
        )
    return pa.Table.from_pylist(rows, schema=RESULT)


def separation_difference(
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
    first, second = before.sort_by(_KEYS), after.sort_by(_KEYS)
    same = [column for column in PAIR_SCORE.names if column != "score"]
    if not first.select(same).equals(second.select(same)):
        hint = "score the same pairs with both models"
        raise RefusedError(
            f"{len(first)} and {len(second)} pairs, which are not the same",
            location=" and ".join(names),
            hint=hint,
        )
    clusters = codes(first["cluster"].to_pylist())
    rows: list[Row] = []
    pairs = zip(_strata(first, names[0]).items(), _strata(second, names[1]).values(), strict=True)
    for (name, one), other in pairs:
        definitions = {
            f"{metric}_difference": f"difference, {names[1]} less {names[0]} on the same pairs, of: {METRICS[metric]}"
            for metric in METRICS
        }
        kept: list[Floats] = []
        statistics = _keeping(difference(_statistics(one), _statistics(other)), kept)
        group = f"{names[1]} - {names[0]} · {name}"
        found = _measured(
            other, statistics, definitions, clusters, group, split, task, resamples, level, rng
        )
        drawn = np.concatenate(kept[1:], axis=1) if len(kept) > 1 else np.zeros((len(found), 0))
        rows += [
            line
            for row, values in zip(found, drawn, strict=True)
            for line in (row, _p_row(row, values))
        ]
    return pa.Table.from_pylist(rows, schema=RESULT)


def study(
    similar: ArrayLike,
    different: ArrayLike,
    negation: ArrayLike,
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
        similar, different, negation: cosines, each of shape (n,); negation may be empty.
        state, resamples, level, rng, task: as in ``separation``.

    Returns:
        As ``separation``, groups ``state · different`` and ``state · negation``, without ``separation_z``; a separation of more than
        ``STUDY_THRESHOLD`` is what the study calls clinically useful, and the definition says so.
    """
    sets = {
        _SIMILAR: np.asarray(similar, np.float64),
        _DIFFERENT: np.asarray(different, np.float64),
        _NEGATION: np.asarray(negation, np.float64),
    }
    names = [name for name, values in sets.items() for _ in values]
    columns = {
        "pair_id": [
            f"{name} {at}" for name, values in sets.items() for at in range(1, len(values) + 1)
        ],
        "stratum": names,
        "related": [name == _SIMILAR for name in names],
        "score": np.concatenate(list(sets.values())),
    }
    kept = [metric for metric in METRICS if metric != "separation_z"]
    found = separation(
        table(PAIR_SCORE, columns),
        state,
        resamples=resamples,
        level=level,
        rng=rng,
        task=task,
        metrics=kept,
    )
    said = f"; the study calls more than {STUDY_THRESHOLD} clinically useful"
    rows = [
        row | {"definition": row["definition"] + said} if row["name"] == "separation" else row
        for row in found.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=RESULT)


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p of a difference from its values on resamples: twice the smaller of the shares at or below 0 and at or above 0, at most 1.

    One is added to both counts and to the number of resamples, so that p is never 0. NaN are left out; without a value p is NaN.
    """
    drawn = differences[~np.isnan(differences)]
    if not len(drawn):
        return float("nan")
    smaller = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + smaller) / (1 + len(drawn)))


_KEYS = [("pair_id", "ascending"), ("stratum", "ascending"), ("related", "ascending")]


def _strata(scores: pa.Table, location: str) -> dict[str, _Stratum]:
    values = np.asarray(scores["score"].to_numpy(), np.float64)
    refuse(
        ~np.isfinite(values),
        "scores that are not finite (NaN)",
        scores["pair_id"].to_pylist(),
        location,
    )
    related = np.asarray(scores["related"].to_numpy(), np.bool_)
    if related.all() or not related.any():
        message = f"{int(related.sum())} related pairs and {int((~related).sum())} unrelated ones"
        raise InputError(message, location=location, hint="score at least one of each")
    strata = np.array(scores["stratum"].to_pylist(), np.str_)
    names = pc.unique(scores["stratum"].filter(pc.invert(scores["related"]))).to_pylist()
    random = ~related & (strata == RANDOM)
    return {name: _Stratum(values, related, ~related & (strata == name), random) for name in names}


def _measured(
    stratum: _Stratum,
    statistics: RowStatistics,
    definitions: Mapping[str, str],
    clusters: Integers,
    group: str,
    split: str,
    task: str | None,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> list[Row]:
    events = int(stratum.related.sum())
    about = Measured(events + int(stratum.unrelated.sum()), events, split, group, task)
    return bootstrapped(dict(definitions), statistics, clusters, about, resamples, level, rng)


def _statistics(stratum: _Stratum, metrics: Sequence[str] = tuple(METRICS)) -> RowStatistics:
    """Counts of rows (resamples, n) -> the metrics, shape (metrics, resamples)."""
    both = np.flatnonzero(stratum.related | stratum.unrelated)
    ranked = ranks(stratum.scores[both], stratum.related[both])
    at = [list(METRICS).index(metric) for metric in metrics]

    def statistics(counts: NDArray[np.int32]) -> Floats:
        columns = np.asarray(counts).T  # (n, resamples), contiguous
        area = areas(ranked, columns[both].T)
        return np.concatenate([_moments(stratum, columns), area])[at]

    return statistics


def _moments(stratum: _Stratum, drawn: NDArray[np.int32]) -> Floats:
    """All metrics but the areas, shape (6, resamples), from ``drawn`` (n, resamples)."""
    centre = (
        stratum.scores.mean()
    )  # taken away, since a variance is a small difference of large sums
    groups = [
        _mean_and_squares(stratum.scores[rows] - centre, drawn[rows])
        for rows in (stratum.related, stratum.unrelated, stratum.random)
    ]
    (
        (n_first, first, squares_first),
        (n_second, second, squares_second),
        (n_random, _, squares_random),
    ) = groups
    apart = first - second
    variances = _over(squares_first, n_first - 1), _over(squares_second, n_second - 1)
    pooled = np.sqrt(_over(squares_first + squares_second, n_first + n_second - 2))
    pooled[(n_first < 2) | (n_second < 2)] = np.nan
    scales = (
        pooled,
        np.sqrt((variances[0] + variances[1]) / 2),
        np.sqrt(_over(squares_random, n_random - 1)),
    )
    return np.stack(
        [first + centre, second + centre, apart, *(_over(apart, scale) for scale in scales)]
    )


def _mean_and_squares(values: Floats, drawn: NDArray[np.int32]) -> tuple[Floats, Floats, Floats]:
    """Number, mean and sum of squared deviations of each resample."""
    n, sums, squares = (weights @ drawn for weights in (np.ones(len(values)), values, values**2))
    mean = _over(sums, n)
    deviations = np.maximum(squares - n * np.nan_to_num(mean) ** 2, 0.0)
    deviations[deviations <= 1e-14 * squares] = 0.0  # nothing but rounding: all rows alike
    return n, mean, deviations


def _over(numbers: Floats, of: Floats) -> Floats:
    found: Floats = np.divide(numbers, of, out=np.full(np.shape(numbers), np.nan), where=of > 0)
    return found


def _keeping(statistics: RowStatistics, kept: list[Floats]) -> RowStatistics:
    """The same function, and what it gave."""

    def keep(counts: NDArray[np.int32]) -> Floats:
        kept.append(statistics(counts))
        return kept[-1]

    return keep


def _p_row(row: Row, drawn: Floats) -> Row:
    p = bootstrap_p(drawn)
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
