"""Perplexity of language models, and its ratio between two models on the same tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clinpeft.core.errors import InputError, RefusedError
from clinpeft.core.schemas import LIKELIHOOD_SCHEMA, METRIC_RESULT_SCHEMA, SPLIT_NAMES
from clinpeft.evaluation.arrays import Float64Array, Int64Array
from clinpeft.evaluation.bootstrap import ConfidenceInterval, bootstrap_clusters, sum_by_cluster
from clinpeft.recipe import EvaluationSpec

MIN_CATEGORY_SUBJECTS = 5
"""Note categories with fewer subjects in a split are pooled: their numbers would be about persons
and not about a kind of note."""

MISSING_CATEGORY_LABEL = "no category"

_PERPLEXITY_DEFINITION = "exp(summed negative log-likelihood / scored tokens)"
_RATIO_DEFINITION = (
    "exp(summed difference of negative log-likelihood / scored tokens) "
    "on the same tokens of the same notes; below 1 is better"
)
_COUNTS_REMARK = "n: notes with a scored token, n_events: scored tokens"
_TOLERANCE_NATS = 1e-3  # rounding may leave a token's likelihood this little above 1
_MAX_NATS = float(np.log(np.finfo(np.float64).max))  # exp of more overflows


def evaluate_perplexity(
    likelihoods: pa.Table, state: str, spec: EvaluationSpec, rng: np.random.Generator
) -> pa.Table:
    """Compute the perplexity exp(-Σ log p / tokens) on every split and note category.

    Token-weighted: the sum over all notes of a group divided by its tokens (Jelinek et al. 1977),
    with a percentile interval by bootstrap over subjects. Every split has a row (group ``state``);
    where categories are known, each with at least ``MIN_CATEGORY_SUBJECTS`` subjects has a row
    (group ``state · category``), and the smaller ones have one together
    (``state · other categories (k)``). A note without a scored token counts nowhere.

    Args:
        likelihoods: of schema ``LIKELIHOOD_SCHEMA``, one row a note.
        state: of the model: ``base``, ``adapted``, ``unigram`` ...
        spec: resamples and level.
        rng: source of the resamples.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``, name ``perplexity``; ``n`` counts notes and ``n_events``
        scored tokens. A value or an interval that is undefined is null, and ``definition`` says
        why.

    Raises:
        InputError: an invalid likelihood, with its note_id.
    """
    checked = _check_likelihoods(likelihoods, state)
    return _build_rows(checked, "perplexity", _PERPLEXITY_DEFINITION, state, spec, rng)


def compare_perplexity(
    before: pa.Table,
    after: pa.Table,
    spec: EvaluationSpec,
    rng: np.random.Generator,
    names: tuple[str, str] = ("base", "adapted"),
) -> pa.Table:
    """Compute the ratio of two perplexities on the same tokens, with a paired interval.

    A resample draws subjects for both models at once. The logarithm of a row is the difference of
    log-perplexities in nats a token.

    Args:
        before, after: of schema ``LIKELIHOOD_SCHEMA``.
        spec: resamples and level.
        rng: source of the resamples.
        names: of the two, for ``group``: ``after / before``.

    Returns:
        Of schema ``METRIC_RESULT_SCHEMA``, name ``perplexity_ratio``, rows as in
        ``evaluate_perplexity``.

    Raises:
        RefusedError: the two did not score the same tokens of the same notes.
        InputError: an invalid likelihood, with its note_id.
    """
    first = _check_likelihoods(before, names[0]).sort_by("note_id")
    second = _check_likelihoods(after, names[1]).sort_by("note_id")
    reason = find_likelihood_mismatch(first, second, names)
    if reason:
        raise RefusedError(
            f"not the same tokens: {reason}",
            location=" and ".join(names),
            hint="compare on notes scored under both, with one tokenizer and one split",
        )
    # The ratio of perplexities is exp of the mean difference of nats a token.
    change = pc.subtract(second["negative_log_likelihood"], first["negative_log_likelihood"])
    at = first.schema.get_field_index("negative_log_likelihood")
    changes = first.set_column(at, LIKELIHOOD_SCHEMA.field(at), change)
    state = f"{names[1]} / {names[0]}"
    return _build_rows(changes, "perplexity_ratio", _RATIO_DEFINITION, state, spec, rng)


def find_likelihood_mismatch(
    before: pa.Table, after: pa.Table, names: tuple[str, str] = ("base", "adapted")
) -> str:
    """Say why two tables of likelihoods cannot be compared on perplexity.

    The tables cannot show whether equally many tokens are the same tokens: that takes one tokenizer
    and one cleaning of the text, which the run records of both state.

    Args:
        before, after: of schema ``LIKELIHOOD_SCHEMA``, in any order of rows.
        names: of the two, for the reason.

    Returns:
        The reason; empty if both scored as many tokens of the same notes.
    """
    only_before, only_after = (
        pc.sum(pc.invert(pc.is_in(table["note_id"], value_set=other["note_id"]))).as_py() or 0
        for table, other in ((before, after), (after, before))
    )
    if only_before or only_after:
        return f"{only_before} notes are scored only by {names[0]}, {only_after} only by {names[1]}"
    keys = ["note_id", "subject_id", "split", "tokens"]
    first, second = before.select(keys).sort_by("note_id"), after.select(keys).sort_by("note_id")
    for column, noun in {
        "subject_id": "subject",
        "split": "split",
        "tokens": "number of scored tokens",
    }.items():
        differs = pc.not_equal(first[column], second[column])
        count = pc.sum(differs).as_py() or 0
        if count:
            note_id = first["note_id"].filter(differs)[0].as_py()
            return f"{count} notes have another {noun}, the first is note_id {note_id!r}"
    return ""


def _build_rows(
    likelihoods: pa.Table,
    name: str,
    definition: str,
    state: str,
    spec: EvaluationSpec,
    rng: np.random.Generator,
) -> pa.Table:
    """Rows of exp(sum of the likelihood column / sum of tokens) for each split and category."""
    # A note of one token scores none: a causal model predicts from the second token on.
    scored = likelihoods.filter(pc.greater(likelihoods["tokens"], 0))
    rows = [
        {
            "name": name,
            "split": split,
            "group": group,
            **_build_group_row(notes, definition, spec, rng),
        }
        for split in SPLIT_NAMES
        for group, notes in _iterate_groups(scored.filter(pc.equal(scored["split"], split)), state)
    ]
    return pa.Table.from_pylist(rows, schema=METRIC_RESULT_SCHEMA)


def _iterate_groups(notes: pa.Table, state: str) -> Iterator[tuple[str, pa.Table]]:
    """All notes of a split, then those of each category; the same notes give the same groups,
    whatever their likelihoods."""
    yield state, notes
    if notes["category"].null_count == len(notes):
        return
    categories = pc.fill_null(notes["category"], MISSING_CATEGORY_LABEL)
    subjects = (
        pa.table({"category": categories, "subject_id": notes["subject_id"]})
        .group_by("category")
        .aggregate([("subject_id", "count_distinct")])
    )
    counts = subjects["subject_id_count_distinct"].to_pylist()
    sizes = dict(zip(subjects["category"].to_pylist(), counts, strict=True))
    for category in sorted(name for name, size in sizes.items() if size >= MIN_CATEGORY_SUBJECTS):
        yield f"{state} · {category}", notes.filter(pc.equal(categories, category))
    small = [name for name, size in sizes.items() if size < MIN_CATEGORY_SUBJECTS]
    if small:
        is_small = pc.is_in(categories, value_set=pa.array(small, pa.string()))
        yield f"{state} · other categories ({len(small)})", notes.filter(is_small)


def _build_group_row(
    notes: pa.Table, definition: str, spec: EvaluationSpec, rng: np.random.Generator
) -> dict[str, object]:
    """Value, interval and counts of one group."""
    subjects: Int64Array = np.asarray(notes["subject_id"].to_numpy(), dtype=np.int64)
    columns = notes["tokens"].to_numpy(), notes["negative_log_likelihood"].to_numpy()
    sums = sum_by_cluster(subjects, *columns)  # (subjects, 2)
    # Sums before the ratio: every token has the same weight, whatever its note.
    tokens, nats = sums.sum(axis=0)
    interval, remark = ConfidenceInterval(None, None, spec.level), ""
    if not tokens:
        remark = "unknown: no token was scored"
    elif nats / tokens >= _MAX_NATS:
        remark = "unknown: larger than the largest number"
    else:
        # The logarithm is resampled: exp keeps the order, and so the percentiles.
        def compute_mean_nats(counts: Int64Array) -> Float64Array:
            totals = counts @ sums  # (resamples, 2)
            return totals[:, 1] / totals[:, 0]

        interval = bootstrap_clusters(
            len(sums), compute_mean_nats, resamples=spec.resamples, level=spec.level, rng=rng
        )
        remark = f"interval: percentile bootstrap over subjects, {spec.resamples} resamples"
        if len(sums) < 2:
            remark = "no interval: one subject"
    value, low, high = (
        None if limit is None or limit >= _MAX_NATS else float(np.exp(limit))
        for limit in (nats / tokens if tokens else None, interval.low, interval.high)
    )
    return {
        "value": value,
        "low": low,
        "high": high,
        "level": None if interval.low is None else spec.level,
        "n": len(notes),
        "n_subjects": len(sums),
        "n_events": int(tokens),
        "definition": f"{definition}; {_COUNTS_REMARK}; {remark}",
    }


def _check_likelihoods(likelihoods: pa.Table, state: str) -> pa.Table:
    """The table itself, or an InputError that names the first invalid note."""
    if likelihoods.schema.names != LIKELIHOOD_SCHEMA.names:
        raise InputError(
            f"not a table of likelihoods: columns {', '.join(likelihoods.schema.names)}",
            location=state,
            hint=f"give the columns {', '.join(LIKELIHOOD_SCHEMA.names)}",
        )
    nats, tokens = likelihoods["negative_log_likelihood"], likelihoods["tokens"]
    # In this order: a NaN is not less than any bound, and would pass the second check.
    checks = (
        (
            pc.invert(pc.fill_null(pc.is_finite(nats), False)),
            "a likelihood that is not finite",
            "score the notes again; a NaN comes from weights or activations that overflowed, "
            "often in half precision",
        ),
        (
            pc.less(nats, pc.multiply(pc.cast(tokens, pa.float64()), -_TOLERANCE_NATS)),
            "a probability above 1",
            "give summed negative log-likelihoods in nats",
        ),
        (
            pc.fill_null(pc.less(tokens, 0), True),
            "a missing or negative number of tokens",
            "count the scored tokens of each note",
        ),
        (
            pc.invert(pc.is_in(likelihoods["split"], value_set=pa.array(SPLIT_NAMES))),
            "an unknown split",
            f"use {', '.join(SPLIT_NAMES)}",
        ),
    )
    for is_invalid, message, hint in checks:
        count = pc.sum(is_invalid).as_py() or 0
        if count:
            note_id = likelihoods["note_id"].filter(is_invalid)[0].as_py()
            location = f"{state}, note_id {note_id!r}"
            raise InputError(f"{message}, in {count} notes", location=location, hint=hint)
    if pc.count_distinct(likelihoods["note_id"]).as_py() < len(likelihoods):
        counts = pc.value_counts(likelihoods["note_id"].combine_chunks())
        note_id = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise InputError(
            "a note that is scored twice",
            location=f"{state}, note_id {note_id!r}",
            hint="give one row a note",
        )
    return likelihoods
