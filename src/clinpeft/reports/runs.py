"""The tables about runs: what one is, what all are, two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path

import pyarrow as pa

from clinpeft.core.schemas import Attrition
from clinpeft.reports.facts import (
    MINUS,
    MODEL,
    SUBGROUP,
    TEST,
    TFIDF,
    TRAIN,
    Key,
    adapters,
    base_name,
    estimates,
    liveness,
    main_metric,
    tasks,
    tokens_a_second,
)
from clinpeft.reports.formats import MISSING, count, duration, number, share
from clinpeft.reports.scores import scores_table, subgroups_table
from clinpeft.reports.tables import Column, Estimate, Table, Value, printed
from clinpeft.runs import Run, RunComparison, RunListing


def run_summary(run: Run) -> Table:
    """What one run is, a line a fact; facts that are not known have no line."""
    rows = tuple((label, text) for label, text in _facts(run) if text)
    return Table(
        f"Run {run.id}", (Column("fact", is_text=True), Column("value", is_text=True)), rows
    )


def run_results(run: Run) -> Table:
    """Every number of one run, with its interval and what it counts; the subgroups of a question are in ``run_subgroups``."""
    return scores_table(run.results, f"Results of run {run.id}")


def run_subgroups(run: Run) -> Table:
    """The numbers of one run by sex, age band and so on; without rows where none were measured."""
    return subgroups_table(run.results, f"Subgroups of run {run.id}")


def run_attrition(run: Run) -> Table:
    """What left at which step of a run, for which reason."""
    return attrition_table(f"What run {run.id} read, dropped and kept", run.attrition)


def attrition_table(title: str, steps: Sequence[Attrition]) -> Table:
    """What entered, what left for which reason and what was kept, step by step; below, where the first damaged rows stand."""
    rows = [
        (step.step, word, n)
        for step in steps
        for word, n in _counted(step.entered_rows, step.dropped_rows, step.kept_rows)
    ]
    places = tuple(
        f"{step.step}, {reason}: {'; '.join(found)}"
        for step in steps
        for reason, found in step.locations.items()
    )
    return Table(
        title,
        (Column("step", is_text=True), Column("what", is_text=True), Column("n", count)),
        tuple(rows),
        places,
    )


def runs_list(listing: RunListing) -> Table:
    """All runs of a home, oldest first, and what of it could not be read."""
    words = [
        Column(title, is_text=True, is_unbroken=title == "id")
        for title in ("id", "name", "kind", "state", "created", "base", "adapters")
    ]
    numbers = [Column("trained", count), Column("held out", is_text=True), Column("time", duration)]
    rows: list[tuple[Value, ...]] = [_listed(run) for run in listing.runs]
    rows += [
        (Path(error.location).parent.name, "", "", "unreadable", "", "", "", None, "", None)
        for error in listing.errors
    ]
    notes = tuple(f"{error.location}: {error.message}" for error in listing.errors)
    return Table("Runs", (*words, *numbers), tuple(rows), notes)


def comparison(
    found: RunComparison, paired: pa.Table | None = None, reason: str = ""
) -> tuple[Table, ...]:
    """Two runs side by side: what differs between them, their results, and the paired comparison: of perplexities their ratio, of answers the
    differences of their metrics.

    Of two runs that answer questions only what both measured is shown, and no subgroups.

    Args:
        found: as ``registry.compare`` gives it.
        paired: of schema ``tables.RESULT``, from their likelihoods or their predictions; None where they cannot be compared.
        reason: why they cannot, when not ``found`` but their likelihoods or predictions show it.
    """
    kind = found.first.recipe.kind
    answers = kind != "adapt"
    why = found.incomparable_reason or reason
    notes = [f"Not comparable{'' if answers else ' on perplexity'}: {why}."] if why else []
    tables = (_differences(found), _side_by_side(found, answers, notes))
    title = f"Paired, on the same {_SAME.get(kind, 'rows')}"
    return tables if paired is None else (*tables, scores_table(paired, title))


_SAME = {"adapt": "tokens", "classify": "stays", "embed": "pairs"}
"""Kind of run -> what two of them are compared on."""


def _differences(found: RunComparison) -> Table:
    asked = tuple(
        (d.key, *(MISSING if value is None else str(value) for value in (d.first, d.second)))
        for d in found.differences
    )
    return Table(
        "What differs",
        (
            Column("key", is_text=True),
            *(Column(run.id, is_text=True) for run in (found.first, found.second)),
        ),
        asked,
    )


def _side_by_side(found: RunComparison, answers: bool, notes: list[str]) -> Table:
    first, second = estimates(found.first), estimates(found.second)
    keys = list(dict.fromkeys([*first, *second]))
    shown = [
        key
        for key in keys
        if not answers or (key in first and key in second and SUBGROUP not in key.group)
    ]
    left_out = len([key for key in keys if (key in first) != (key in second) and key not in shown])
    notes = [
        *notes,
        *(
            [
                f"Not shown, since only one of the two has them: {left_out} number{'s' * (left_out > 1)}."
            ]
            if left_out
            else []
        ),
    ]
    words = ("metric", "task", "split", "model") if answers else ("metric", "split", "model")
    named = [
        (key.name, key.task, key.split, key.group) if answers else (key.name, key.split, key.group)
        for key in shown
    ]
    rows = tuple(
        (*texts, first.get(key), second.get(key)) for texts, key in zip(named, shown, strict=True)
    )
    numbers = (Column(run.id, is_estimate=True) for run in (found.first, found.second))
    return Table(
        "Results", (*(Column(title, is_text=True) for title in words), *numbers), rows, tuple(notes)
    )


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    record = run.record
    yield from (("id", run.id), ("name", record.name), ("kind", record.kind), ("state", run.state))
    if record.error:
        yield "error", record.error.message
        yield "where", record.error.location
        yield "hint", record.error.hint
    yield from (
        ("source", run.recipe.source.name),
        ("base", base_name(run.recipe)),
        ("adapters", adapters(run.recipe)),
    )
    yield from (
        ("trained", _trained(run)),
        ("precision", record.precision_reason or record.precision or ""),
    )
    yield from (("quantization", record.quantization), ("activations", record.activations))
    yield "kernels", record.kernels
    yield "norms and gates", record.compilation
    yield from _answers(run)
    yield from _perplexities(estimates(run))
    yield "tokens seen", _shown(record.tokens_seen, count)
    yield "training time", _shown(record.training_seconds, duration)
    yield "tokens/s", _shown(tokens_a_second(run), count)
    yield "time for features", _shown(record.features_seconds, duration)
    yield "time for baselines", _shown(record.baselines_seconds, duration)
    yield "total time", _shown(record.total_seconds, duration)
    yield (
        "hardware",
        f"{record.hardware.devices} x {record.hardware.device}" if record.hardware else "",
    )
    yield "created", f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    yield from (("notice", notice) for notice in record.notices)
    yield "folder", str(run.folder)


def _answers(run: Run) -> Iterator[tuple[str, str]]:
    """A line a question: ``auroc 0.812 (0.790–0.834); TF-IDF + logistic regression 0.801 (0.779–0.822), difference 0.011 (-0.004–0.026)``."""
    found = estimates(run)
    yield "tasks", ", ".join(tasks(run.recipe))
    yield "liveness", liveness(run.record.liveness)
    for task in tasks(run.recipe):
        metric = main_metric(found, task) or ""
        against, difference = (
            found.get(Key(metric, TEST, TFIDF, task)),
            found.get(Key(f"{metric}_difference", TEST, f"{MODEL}{MINUS}{TFIDF}", task)),
        )
        parts = (
            [f"{metric} {_shown(found.get(Key(metric, TEST, MODEL, task)), number)}"]
            if metric
            else []
        )
        parts += [f"{TFIDF} {_shown(against, number)}"] if against else []
        parts += [f"difference {_shown(difference, number)}"] if difference else []
        yield f"{task}, held out", "; ".join(parts)


def _perplexities(found: Mapping[Key, Estimate]) -> Iterator[tuple[str, str]]:
    """``14.214 before, 9.810 (9.512–10.103) after, 0.690 (0.672–0.709) times``, a line a split."""
    for split, word in ((TRAIN, "train"), ("tuning", "tuning"), (TEST, "test")):
        before, after, times = (
            found.get(Key(name, split, group))
            for name, group in (
                ("perplexity", "base"),
                ("perplexity", "adapted"),
                ("perplexity_ratio", "adapted / base"),
            )
        )
        parts = [
            (_shown(before, number), "before"),
            (_shown(after, number), "after"),
            (_shown(times, number), "times"),
        ]
        yield f"{word} perplexity", ", ".join(f"{text} {when}" for text, when in parts if text)


def _listed(run: Run) -> tuple[Value, ...]:
    record = run.record
    created = f"{record.created.astimezone(UTC):%Y-%m-%d %H:%M}"
    words = (
        run.id,
        record.name,
        record.kind,
        run.state,
        created,
        base_name(run.recipe),
        adapters(run.recipe),
    )
    return (*words, record.trained_parameters, _held_out(run), record.training_seconds)


def _held_out(run: Run) -> str:
    """``perplexity 9.000``, or the main metric of each question: ``auroc 0.812 (mortality)``."""
    found = estimates(run)
    perplexity = found.get(Key("perplexity", TEST, "adapted"))
    metrics = ((task, main_metric(found, task)) for task in tasks(run.recipe))
    words = [
        f"{metric} {printed(found[Key(metric, TEST, MODEL, task)].value, number)} ({task})"
        for task, metric in metrics
        if metric
    ]
    return ", ".join(
        [*([f"perplexity {printed(perplexity.value, number)}"] if perplexity else []), *words]
    )


def _counted(entered: int, dropped: Mapping[str, int], kept: int) -> Iterator[tuple[str, int]]:
    yield "entered", entered
    yield from ((f"dropped: {reason}", dropped[reason]) for reason in sorted(dropped))
    yield "kept", kept


def _trained(run: Run) -> str:
    record = run.record
    if record.trained_parameters is None:
        return ""
    of = f" of {count(record.base_parameters)}" if record.base_parameters else ""
    return f"{count(record.trained_parameters)}{of} parameters" + (
        f" ({share(record.trained_fraction)})" if record.trained_fraction is not None else ""
    )


def _shown(value: Value, show: Callable[[float], str]) -> str:
    """Empty, and not a dash, where nothing is known."""
    known = value.value if isinstance(value, Estimate) else value
    return "" if known is None else printed(value, show)
