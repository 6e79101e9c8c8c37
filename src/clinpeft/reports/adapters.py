"""The card of an adapter that reads notes: metadata as the hub reads them, results with intervals, and what only a person can write as gaps."""

from __future__ import annotations

import json
from collections.abc import Iterator

from clinpeft.recipe import AdaptRecipe, ClassifyRecipe
from clinpeft.reports.classification import rows_of
from clinpeft.reports.classification_measures import against_table
from clinpeft.reports.facts import (
    MODEL,
    TEST,
    TFIDF,
    Entry,
    Key,
    adapters,
    base_name,
    estimates,
    liveness,
    main_metric,
    tasks,
)
from clinpeft.reports.formats import count, number, share
from clinpeft.reports.tables import Column, Estimate, Table, as_markdown, printed
from clinpeft.runs import Run

GAP = "**To be written:**"
"""Stands before what no record knows."""

GAPS = (
    "intended use, and who decides with it",
    "for whom it must not be used",
    "licence of these weights, which the agreement on the notes may restrict",
    "what has been done to find out whether the weights give away text of the notes",
    "who looks after it, and until when",
)

LIMITS = (
    "It was trained on notes and may have kept some of their text: treat the weights as the notes they were trained on.",
    "Not a medical device, and not validated for decisions about patients.",
    "Measured on held-out people of the same source; another hospital writes otherwise.",
)


def adapter_card(run: Run) -> str:
    """The card of a run of adapt or classify: Markdown with YAML metadata (``base_model``, ``library_name: peft``, ``tags``, ``license``,
    ``model-index``). What leaves should come from a run whose small counts are suppressed."""
    record, recipe = run.record, run.recipe
    name = record.name or run.id
    parts = [
        "\n".join(_metadata(run, name)),
        f"# {name}",
        f"{adapters(recipe) or 'An adapter'} on {base_name(recipe)}, which has to be at hand: here are the adapter's weights alone.",
        "## What it was trained for",
        _purpose(run),
        f"{GAP} {GAPS[0]}; {GAPS[1]}.",
        "## Training",
        "\n".join(f"- {line}" for line in _training(run)),
        "## Results",
        _shown(_results(run)),
        _against(run),
        "## Limits",
        "\n".join(f"- {limit}" for limit in LIMITS),
        "## Gaps",
        "\n".join(f"- {GAP} {gap}." for gap in GAPS[2:]),
        f"Made with clinpeft {record.versions.get('clinpeft', '')}, run `{run.id}`, commit {record.git_commit or 'unknown'}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(run: Run, name: str) -> Iterator[str]:
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
    yield f"base_model: {json.dumps(base_name(run.recipe))}"
    yield from (
        "base_model_relation: adapter",
        "library_name: peft",
        f"pipeline_tag: {'text-classification' if answers else 'text-generation'}",
        "tags:",
    )
    yield from (f"- {json.dumps(tag)}" for tag in ("peft", *methods, "medical", "clinical-notes"))
    found = list(_metrics(run))
    if found:
        yield from ("model-index:", f"- name: {json.dumps(name)}", "  results:")
    for task, rows in found:
        kind = {
            "type": "text-classification" if answers else "text-generation",
            "name": task or "language of notes",
        }
        data = {"name": run.recipe.source.name, "type": "clinical-notes", "split": TEST}
        yield from (
            f"  - task: {json.dumps(kind)}",
            f"    dataset: {json.dumps(data)}",
            "    metrics:",
        )
        for metric, known in rows:
            ends = (
                ""
                if known.low is None or known.high is None
                else f", 95 % interval {number(known.low)} to {number(known.high)}"
            )
            yield f"    - {json.dumps({'type': metric, 'value': known.value, 'name': metric + ends})}"
    yield "---"


def _metrics(run: Run) -> Iterator[tuple[str, list[tuple[str, Estimate]]]]:
    """Question (empty for language) -> its metrics on the held-out split."""
    found = estimates(run)
    if isinstance(run.recipe, AdaptRecipe):
        known = {
            "perplexity": found.get(Key("perplexity", TEST, "adapted")),
            "perplexity_ratio": found.get(Key("perplexity_ratio", TEST, "adapted / base")),
        }
        if rows := [
            (name, one) for name, one in known.items() if one is not None and one.value is not None
        ]:
            yield "", rows
    for task in tasks(run.recipe):
        names = [
            name
            for name in (main_metric(found, task), "auprc", "brier", "calibration_slope")
            if name
        ]
        rows = [
            (name, found[key])
            for name in names
            if (key := Key(name, TEST, MODEL, task)) in found and found[key].value is not None
        ]
        if rows:
            yield task, rows


def _purpose(run: Run) -> str:
    asked = tasks(run.recipe)
    return (
        f"To answer from the notes of a stay: {', '.join(asked)}."
        if asked
        else "To model the language of clinical notes."
    )


def _training(run: Run) -> Iterator[str]:
    record, recipe = run.record, run.recipe
    yield f"data: {recipe.source.name}, SHA-256 {record.hashes.source or 'unknown'}"
    yield f"base: {base_name(recipe)}, SHA-256 {record.hashes.base or 'unknown'}"
    if record.trained_parameters is not None:
        yield f"trained: {count(record.trained_parameters)} parameters" + (
            f", {share(record.trained_fraction)} of the base" if record.trained_fraction is not None else ""
        )
    if record.tokens_seen is not None:
        yield f"tokens seen: {count(record.tokens_seen)}"
    yield f"seed: {recipe.seed}"
    yield from (
        f"{key.replace('.', ', ')}: {count(n)}" for key, n in record.counts.items() if n >= 10
    )
    if (noise := record.differential_privacy) is not None:
        yield f"differential privacy: epsilon {noise['epsilon']:.3g}, delta {noise['delta']:g}, for {noise['adjacency']}"
    if said := liveness(record.liveness):
        yield f"proof that every adapter takes part: {said}"
    yield from (f"notice: {notice}" for notice in record.notices)


def _results(run: Run) -> Table:
    rows = tuple(
        (task or "language", metric, known) for task, of in _metrics(run) for metric, known in of
    )
    found = estimates(run)
    beside = tuple(
        (task, f"{metric}, {TFIDF}", found[key])
        for task in tasks(run.recipe)
        if (metric := main_metric(found, task)) and (key := Key(metric, TEST, TFIDF, task)) in found
    )
    columns = (
        Column("question", is_text=True),
        Column("metric", is_text=True),
        Column("value", is_estimate=True),
    )
    return Table(
        "Held-out people",
        columns,
        rows + beside,
        ("In brackets the 95 % interval, people resampled.",),
    )


def _shown(table: Table) -> str:
    return (
        as_markdown(table).replace("## ", "### ", 1).strip()
        if table.rows
        else "No number can be told: fewer than ten people stand behind each."
    )


def _against(run: Run) -> str:
    """A sentence for each question on which it does not beat TF-IDF."""
    table = against_table(rows_of([Entry(run.record.name or run.id, run)]), tasks(run.recipe))
    lost = [row for row in table.rows if str(row[-1]).startswith("no")]
    return "\n".join(
        f"- **Does not beat TF-IDF on {row[1]}**: difference {printed(row[3], number)}."
        for row in lost
    )
