"""The card of an adapter that reads notes: metadata as the hub reads them, results with intervals,
and what only a person can write as gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator

from clinpeft.recipe import AdaptRecipe, ClassifyRecipe
from clinpeft.reports.classification import group_classification_rows
from clinpeft.reports.classification_measures import build_baseline_comparison_table
from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    HELD_OUT_SPLIT,
    TFIDF_BASELINE_GROUP,
    CellResult,
    MetricKey,
    describe_adapter_activity,
    describe_adapters,
    find_main_metric,
    get_base_model_name,
    get_task_names,
    read_estimates,
)
from clinpeft.reports.formats import format_count, format_number, format_percent
from clinpeft.reports.tables import (
    Estimate,
    ReportColumn,
    ReportTable,
    as_markdown_table,
    format_cell,
)
from clinpeft.runs import Run

CARD_GAP_MARK = "**To be written:**"
"""Stands before what no record knows."""

ADAPTER_CARD_GAPS = (
    "intended use, and who decides with it",
    "for whom it must not be used",
    "licence of these weights, which the agreement on the notes may restrict",
    "what has been done to find out whether the weights give away text of the notes",
    "who looks after it, and until when",
)

ADAPTER_LIMITATIONS = (
    (
        "It was trained on notes and may have kept some of their text: treat the weights as "
        "the notes they were trained on."
    ),
    "Not a medical device, and not validated for decisions about patients.",
    "Measured on held-out people of the same source; another hospital writes otherwise.",
)


def render_adapter_card(run: Run) -> str:
    """The card of a run of adapt or classify: Markdown with YAML metadata (``base_model``,
    ``library_name: peft``, ``tags``, ``license``, ``model-index``). What leaves should come from a
    run whose small counts are suppressed."""
    record, recipe = run.record, run.recipe
    name = record.name or run.id
    parts = [
        "\n".join(_list_metadata_lines(run, name)),
        f"# {name}",
        (
            f"{describe_adapters(recipe) or 'An adapter'} on {get_base_model_name(recipe)}, "
            "which has to be at hand: here are the adapter's weights alone."
        ),
        "## What it was trained for",
        _describe_purpose(run),
        f"{CARD_GAP_MARK} {ADAPTER_CARD_GAPS[0]}; {ADAPTER_CARD_GAPS[1]}.",
        "## Training",
        "\n".join(f"- {line}" for line in _describe_training(run)),
        "## Results",
        _render_results(_build_results_table(run)),
        _describe_baseline_comparison(run),
        "## Limits",
        "\n".join(f"- {limit}" for limit in ADAPTER_LIMITATIONS),
        "## Gaps",
        "\n".join(f"- {CARD_GAP_MARK} {gap}." for gap in ADAPTER_CARD_GAPS[2:]),
        (
            f"Made with clinpeft {record.versions.get('clinpeft', '')}, run `{run.id}`, commit "
            f"{record.git_commit or 'unknown'}."
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list_metadata_lines(run: Run, name: str) -> Iterator[str]:
    """YAML, whose strings are written as JSON, which is YAML too."""
    answers = isinstance(run.recipe, ClassifyRecipe)
    methods = dict.fromkeys(
        str(getattr(spec, "method", "")) for spec in getattr(run.recipe, "adapters", ())
    )
    yield from (
        "---",
        "language: en",
        "license: other",
        "license_name: see-the-agreement-on-the-data",
    )
    yield f"base_model: {json.dumps(get_base_model_name(run.recipe))}"
    yield from (
        "base_model_relation: adapter",
        "library_name: peft",
        f"pipeline_tag: {'text-classification' if answers else 'text-generation'}",
        "tags:",
    )
    yield from (f"- {json.dumps(tag)}" for tag in ("peft", *methods, "medical", "clinical-notes"))
    found = list(_list_held_out_metrics(run))
    if found:
        yield from ("model-index:", f"- name: {json.dumps(name)}", "  results:")
    for task, rows in found:
        kind = {
            "type": "text-classification" if answers else "text-generation",
            "name": task or "language of notes",
        }
        data = {"name": run.recipe.source.name, "type": "clinical-notes", "split": HELD_OUT_SPLIT}
        yield from (
            f"  - task: {json.dumps(kind)}",
            f"    dataset: {json.dumps(data)}",
            "    metrics:",
        )
        for metric, known in rows:
            ends = (
                ""
                if known.low is None or known.high is None
                else f", 95 % interval {format_number(known.low)} to {format_number(known.high)}"
            )
            yield (
                f"    - {json.dumps({'type': metric, 'value': known.value, 'name': metric + ends})}"
            )
    yield "---"


def _list_held_out_metrics(run: Run) -> Iterator[tuple[str, list[tuple[str, Estimate]]]]:
    """Question (empty for language) -> its metrics on the held-out split."""
    found = read_estimates(run)
    if isinstance(run.recipe, AdaptRecipe):
        known = {
            "perplexity": found.get(MetricKey("perplexity", HELD_OUT_SPLIT, "adapted")),
            "perplexity_ratio": found.get(
                MetricKey("perplexity_ratio", HELD_OUT_SPLIT, "adapted / base")
            ),
        }
        if rows := [
            (name, one) for name, one in known.items() if one is not None and one.value is not None
        ]:
            yield "", rows
    for task in get_task_names(run.recipe):
        names = [
            name
            for name in (find_main_metric(found, task), "auprc", "brier", "calibration_slope")
            if name
        ]
        rows = [
            (name, found[key])
            for name in names
            if (key := MetricKey(name, HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)) in found
            and found[key].value is not None
        ]
        if rows:
            yield task, rows


def _describe_purpose(run: Run) -> str:
    asked = get_task_names(run.recipe)
    return (
        f"To answer from the notes of a stay: {', '.join(asked)}."
        if asked
        else "To model the language of clinical notes."
    )


def _describe_training(run: Run) -> Iterator[str]:
    record, recipe = run.record, run.recipe
    yield f"data: {recipe.source.name}, SHA-256 {record.hashes.source or 'unknown'}"
    yield f"base: {get_base_model_name(recipe)}, SHA-256 {record.hashes.base or 'unknown'}"
    if record.trained_parameters is not None:
        yield f"trained: {format_count(record.trained_parameters)} parameters" + (
            f", {format_percent(record.trained_fraction)} of the base"
            if record.trained_fraction is not None
            else ""
        )
    if record.tokens_seen is not None:
        yield f"tokens seen: {format_count(record.tokens_seen)}"
    yield f"seed: {recipe.seed}"
    yield from (
        f"{key.replace('.', ', ')}: {format_count(n)}"
        for key, n in record.counts.items()
        if n >= 10
    )
    if (noise := record.differential_privacy) is not None:
        yield (
            f"differential privacy: epsilon {noise['epsilon']:.3g}, delta {noise['delta']:g}, "
            f"for {noise['adjacency']}"
        )
    if said := describe_adapter_activity(record.liveness):
        yield f"proof that every adapter takes part: {said}"
    yield from (f"notice: {notice}" for notice in record.notices)


def _build_results_table(run: Run) -> ReportTable:
    rows = tuple(
        (task or "language", metric, known)
        for task, of in _list_held_out_metrics(run)
        for metric, known in of
    )
    found = read_estimates(run)
    beside = tuple(
        (task, f"{metric}, {TFIDF_BASELINE_GROUP}", found[key])
        for task in get_task_names(run.recipe)
        if (metric := find_main_metric(found, task))
        and (key := MetricKey(metric, HELD_OUT_SPLIT, TFIDF_BASELINE_GROUP, task)) in found
    )
    columns = (
        ReportColumn("question", is_text=True),
        ReportColumn("metric", is_text=True),
        ReportColumn("value", is_estimate=True),
    )
    return ReportTable(
        "Held-out people",
        columns,
        rows + beside,
        ("In brackets the 95 % interval, people resampled.",),
    )


def _render_results(table: ReportTable) -> str:
    return (
        as_markdown_table(table).replace("## ", "### ", 1).strip()
        if table.rows
        else "No number can be told: fewer than ten people stand behind each."
    )


def _describe_baseline_comparison(run: Run) -> str:
    """A sentence for each question on which it does not beat TF-IDF."""
    table = build_baseline_comparison_table(
        group_classification_rows([CellResult(run.record.name or run.id, run)]),
        get_task_names(run.recipe),
    )
    lost = [row for row in table.rows if str(row[-1]).startswith("no")]
    return "\n".join(
        f"- **Does not beat TF-IDF on {row[1]}**: difference {format_cell(row[3], format_number)}."
        for row in lost
    )
