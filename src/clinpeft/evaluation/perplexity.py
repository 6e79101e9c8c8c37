"""Metrics: one function each, a table in, ``tables.RESULT`` rows out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import LIKELIHOOD_SCHEMA, METRIC_RESULT_SCHEMA, SPLIT_NAMES
from clinpeft.evaluation.bootstrap import (
    ConfidenceInterval,
    Float64Array,
    Int64Array,
    bootstrap_clusters,
    sum_by_cluster,
)
from clinpeft.recipe import EvaluationSpec

MIN_CATEGORY_SUBJECTS = 5
"""Note categories with fewer subjects in a split are pooled: their numbers would be about persons and not about a kind of note."""

MISSING_CATEGORY_LABEL = "no category"

_PERPLEXITY_DEFINITION = "exp(summed negative log-likelihood / scored tokens)"
_RATIO_DEFINITION = "exp(summed difference of negative log-likelihood / scored tokens) on the same tokens of the same notes; below 1 is better"
_COUNTS_REMARK = "n: notes with a scored token, n_events: scored tokens"
_TOLERANCE_NATS = 1e-3  # rounding may leave a token's likelihood this little above 1


def evaluate_perplexity(
    likelihoods: pa.Table, state: str, spec: EvaluationSpec, rng: np.random.Generator
) -> pa.Table:
    """Token-weighted perplexity on every split and note category, with a percentile interval by bootstrap over subjects.

    Every split has a row (group = ``state``); where categories are known, each with at least ``SMALLEST_CATEGORY_SUBJECTS`` subjects has a row
    (group ``state · category``), and the smaller ones have one together (``state · other categories (k)``). ``n`` counts notes and ``n_events``
    scored tokens; a note without a scored token counts nowhere. A value or an interval that cannot be given is null, and ``definition`` says why.

    Args:
        likelihoods: of schema ``tables.LIKELIHOOD``, one row a note.
        state: of the model: ``base``, ``adapted``, ``unigram`` ...
        spec: resamples and level.
        rng: for the resamples.

    Returns:
        Of schema ``tables.RESULT``, name ``perplexity``.

    Raises:
        InputError: a likelihood that is not one, with its note_id.
    """
    return _build_rows(
        _check_likelihoods(likelihoods, state),
        "perplexity",
        _PERPLEXITY_DEFINITION,
        state,
        spec,
        rng,
    )


def compare_perplexity(
    before: pa.Table,
    after: pa.Table,
    spec: EvaluationSpec,
    rng: np.random.Generator,
    names: tuple[str, str] = ("base", "adapted"),
) -> pa.Table:
    """The perplexity after over the perplexity before, on the same tokens, with a paired interval: a resample draws subjects for both at once.

    Rows as in ``perplexity``, with group ``after / before`` by ``names``; the logarithm of a row is the difference of log-perplexities in nats a
    token.

    Args:
        before, after: of schema ``tables.LIKELIHOOD``.
        spec: resamples and level.
        rng: for the resamples.
        names: of the two, for ``group``.

    Returns:
        Of schema ``tables.RESULT``, name ``perplexity_ratio``.

    Raises:
        RefusedError: the two did not score the same tokens of the same notes.
        InputError: a likelihood that is not one, with its note_id.
    """
    first, second = (
        _check_likelihoods(before, names[0]).sort_by("note_id"),
        _check_likelihoods(after, names[1]).sort_by("note_id"),
    )
    reason = find_likelihood_mismatch(first, second, names)
    if reason:
        hint = "compare on notes scored under both, with one tokenizer and one split"
        raise RefusedError(
            f"not the same tokens: {reason}", location=" and ".join(names), hint=hint
        )
    change = pc.subtract(second["negative_log_likelihood"], first["negative_log_likelihood"])
    at = first.schema.get_field_index("negative_log_likelihood")
    return _build_rows(
        first.set_column(at, LIKELIHOOD_SCHEMA.field(at), change),
        "perplexity_ratio",
        _RATIO_DEFINITION,
        f"{names[1]} / {names[0]}",
        spec,
        rng,
    )


def find_likelihood_mismatch(
    before: pa.Table, after: pa.Table, names: tuple[str, str] = ("base", "adapted")
) -> str:
    """Why two ``tables.LIKELIHOOD`` tables cannot be compared on perplexity; empty if they scored as many tokens of the same notes.

    The tables cannot show whether equally many tokens are the same tokens: that takes one tokenizer and one cleaning of the text, which the run
    records of both say.
    """
    only = [
        pc.sum(pc.invert(pc.is_in(one["note_id"], value_set=other["note_id"]))).as_py() or 0
        for one, other in ((before, after), (after, before))
    ]
    if any(only):
        return f"{only[0]} notes are scored only by {names[0]}, {only[1]} only by {names[1]}"
    keys = ["note_id", "subject_id", "split", "tokens"]
    first, second = before.select(keys).sort_by("note_id"), after.select(keys).sort_by("note_id")
    for column, word in (
        ("subject_id", "subject"),
        ("split", "split"),
        ("tokens", "number of scored tokens"),
    ):
        differs = pc.not_equal(first[column], second[column])
        count = pc.sum(differs).as_py() or 0
        if count:
            return f"{count} notes have another {word}, the first is note_id {first['note_id'].filter(differs)[0].as_py()!r}"
    return ""


def _build_rows(
    likelihoods: pa.Table,
    name: str,
    definition: str,
    state: str,
    spec: EvaluationSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Rows of ``exp(sum of the likelihood column / sum of tokens)`` for each split and category."""
    likelihoods = likelihoods.filter(pc.greater(likelihoods["tokens"], 0))
    rows = []
    for split in SPLIT_NAMES:
        for group, notes in _iterate_groups(
            likelihoods.filter(pc.equal(likelihoods["split"], split)), state
        ):
            rows.append(
                {
                    "name": name,
                    "split": split,
                    "group": group,
                    **_build_group_row(notes, definition, spec, rng),
                }
            )
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def _iterate_groups(notes: pa.Table, state: str) -> Iterator[tuple[str, pa.Table]]:
    """All notes of a split, then those of each category; the same notes give the same groups, whatever their likelihoods."""
    yield state, notes
    if notes["category"].null_count == len(notes):
        return
    categories = pc.fill_null(notes["category"], MISSING_CATEGORY_LABEL)
    subjects = (
        pa.table({"category": categories, "subject_id": notes["subject_id"]})
        .group_by("category")
        .aggregate([("subject_id", "count_distinct")])
    )
    sizes = dict(
        zip(
            subjects["category"].to_pylist(),
            subjects["subject_id_count_distinct"].to_pylist(),
            strict=True,
        )
    )
    for category in sorted(name for name, size in sizes.items() if size >= MIN_CATEGORY_SUBJECTS):
        yield f"{state} · {category}", notes.filter(pc.equal(categories, category))
    small = [name for name, size in sizes.items() if size < MIN_CATEGORY_SUBJECTS]
    if small:
        yield (
            f"{state} · other categories ({len(small)})",
            notes.filter(pc.is_in(categories, value_set=pa.array(small, pa.string()))),
        )


def _build_group_row(
    notes: pa.Table, definition: str, spec: EvaluationSpec, rng: np.random.Generator
) -> dict[str, object]:
    """Value, interval and counts of one group; the logarithm is resampled, since exp keeps the order and so the percentiles."""
    sums = sum_by_cluster(
        _as_int64(notes["subject_id"]),
        notes["tokens"].to_numpy(),
        notes["negative_log_likelihood"].to_numpy(),
    )  # (subjects, 2)
    tokens, nats = sums.sum(axis=0)
    value = _compute_exp(nats / tokens) if tokens else None
    interval = ConfidenceInterval(None, None, spec.level)
    if value is not None:
        interval = bootstrap_clusters(
            len(sums),
            lambda counts: _average_nats(counts @ sums),
            resamples=spec.resamples,
            level=spec.level,
            rng=rng,
        )
    return {
        "value": value,
        "low": None if interval.low is None else _compute_exp(interval.low),
        "high": None if interval.high is None else _compute_exp(interval.high),
        "level": None if interval.low is None else spec.level,
        "n": len(notes),
        "n_subjects": len(sums),
        "n_events": int(tokens),
        "definition": f"{definition}; {_COUNTS_REMARK}; {_describe_interval(int(tokens), value, len(sums), spec)}",
    }


def _describe_interval(
    tokens: int, value: float | None, subject_count: int, spec: EvaluationSpec
) -> str:
    if not tokens:
        return "unknown: no token was scored"
    if value is None:
        return "unknown: larger than the largest number"
    if subject_count < 2:
        return "no interval: one subject"
    return f"interval: percentile bootstrap over subjects, {spec.resamples} resamples"


def _average_nats(sums: Float64Array) -> Float64Array:
    """Nats a token from sums of tokens and nats, shape (resamples, 2) to (resamples,)."""
    return sums[:, 1] / sums[:, 0]


def _compute_exp(nats: float) -> float | None:
    """None where a float cannot hold it."""
    return float(np.exp(nats)) if nats < np.log(np.finfo(np.float64).max) else None


def _as_int64(column: pa.ChunkedArray) -> Int64Array:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _check_likelihoods(likelihoods: pa.Table, state: str) -> pa.Table:
    """The table itself, or an error that names the first note whose row means nothing."""
    if likelihoods.schema.names != LIKELIHOOD_SCHEMA.names:
        hint = f"give the columns {', '.join(LIKELIHOOD_SCHEMA.names)}"
        raise InputError(
            f"not a table of likelihoods: columns {', '.join(likelihoods.schema.names)}",
            location=state,
            hint=hint,
        )
    nats, tokens = likelihoods["negative_log_likelihood"], likelihoods["tokens"]
    hint = "score the notes again; a NaN comes from weights or activations that overflowed, often in half precision"
    _check_rows(
        likelihoods,
        pc.invert(pc.fill_null(pc.is_finite(nats), False)),
        "a likelihood that is not finite",
        state,
        hint,
    )
    below = pc.less(nats, pc.multiply(pc.cast(tokens, pa.float64()), -_TOLERANCE_NATS))
    _check_rows(
        likelihoods,
        below,
        "a probability above 1",
        state,
        "give summed negative log-likelihoods in nats",
    )
    _check_rows(
        likelihoods,
        pc.fill_null(pc.less(tokens, 0), True),
        "a missing or negative number of tokens",
        state,
        "count the scored tokens of each note",
    )
    _check_rows(
        likelihoods,
        pc.invert(pc.is_in(likelihoods["split"], value_set=pa.array(SPLIT_NAMES))),
        "an unknown split",
        state,
        f"use {', '.join(SPLIT_NAMES)}",
    )
    if pc.count_distinct(likelihoods["note_id"]).as_py() < len(likelihoods):
        twice = pc.value_counts(likelihoods["note_id"].combine_chunks())
        found = twice.filter(pc.greater(twice.field("counts"), 1))[0]["values"].as_py()
        raise InputError(
            "a note that is scored twice",
            location=f"{state}, note_id {found!r}",
            hint="give one row a note",
        )
    return likelihoods


def _check_rows(
    likelihoods: pa.Table, is_invalid: pa.ChunkedArray, message: str, state: str, hint: str
) -> None:
    count = pc.sum(is_invalid).as_py() or 0
    if count:
        first = likelihoods["note_id"].filter(is_invalid)[0].as_py()
        raise InputError(
            f"{message}, in {count} notes", location=f"{state}, note_id {first!r}", hint=hint
        )
