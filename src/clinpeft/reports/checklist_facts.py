"""What the records of runs say about the items of a reporting checklist, one text per fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clinpeft.reports.facts import (
    CLASSIFIER_GROUP,
    HELD_OUT_SPLIT,
    SUBGROUP_SEPARATOR,
    MetricKey,
    describe_adapters,
    find_main_metric,
    get_base_model_name,
    get_task_names,
    read_estimates,
)
from clinpeft.reports.formats import format_count, format_number, format_suppressed_count
from clinpeft.reports.tables import format_cell
from clinpeft.runs import Run

DescribeRuns = Callable[[Sequence[Run]], str]


def describe_each_run(describe_run: Callable[[Run], str]) -> DescribeRuns:
    """A fact of one run as a fact of several: their different texts, in their order."""
    return lambda runs: "; ".join(dict.fromkeys(filter(None, map(describe_run, runs))))


def describe_exclusions(runs: Sequence[Run]) -> str:
    """Every step and reason for which rows were dropped, of the first run of each set of tasks."""
    # One run of each set of tasks; reversed, so that the first one remains
    first_runs = {get_task_names(run.recipe): run for run in reversed(runs)}
    reasons = dict.fromkeys(
        f"{step.step}, {reason}"
        for run in first_runs.values()
        for step in run.attrition
        for reason in sorted(step.dropped_rows)
    )
    return f"left out: {'; '.join(reasons)}" if reasons else ""


def describe_preparation(run: Run) -> str:
    """How notes were selected, cleaned and cut."""
    # Kinds differ in their tables: a recipe with a corpus cuts windows, one with a truncation reads
    # the notes of a stay
    settings: Mapping[str, Any] = run.recipe.model_dump()
    if "truncation" in settings:
        sections = run.recipe.tasks[0].model_dump().get("sections")
        return (
            f"sections {sections}, read: {settings['truncation']['keep']}, at most "
            f"{settings['base']['max_tokens']} tokens"
        )
    if "corpus" in settings:
        corpus = settings["corpus"]
        return (
            f"placeholders: {corpus['deidentification']}; duplicates: {corpus['deduplicate']}; "
            f"windows of {settings['base']['max_tokens']} tokens"
        )
    return ""


def describe_outcome(runs: Sequence[Run]) -> str:
    """The tasks, in words."""
    tasks = dict.fromkeys(task for run in runs for task in get_task_names(run.recipe))
    definition = "defined by the code of the program, see the documentation of cohorts"
    return f"tasks: {', '.join(tasks)}; {definition}" if tasks else ""


def describe_predictors(runs: Sequence[Run]) -> str:
    """What a task is predicted from."""
    has_tasks = any(get_task_names(run.recipe) for run in runs)
    return "the text of notes that could be read at the prediction time" if has_tasks else ""


def describe_sample_sizes(run: Run) -> str:
    """``mortality: n 1,165, 900 people, 90 events, held out``, small counts suppressed."""
    sizes, estimates = {}, read_estimates(run)
    for row in run.results.to_pylist():
        # Counts are those of the main metric: other metrics may leave stays out
        metric: str | None = "perplexity"
        if run.recipe.tasks:
            metric = find_main_metric(estimates, str(row["task"]))
        key = (metric, HELD_OUT_SPLIT, run.recipe.trained_state)
        if (row["name"], row["split"], row["group"]) == key:
            counts = {"people": row["n_subjects"], "events": row["n_events"]}
            parts = [f"n {format_suppressed_count(row['n'])}"]
            parts += [
                f"{format_suppressed_count(n)} {of}" for of, n in counts.items() if n is not None
            ]
            sizes[row["task"] or run.record.kind] = ", ".join([*parts, "held out"])
    return "; ".join(f"{task}: {size}" for task, size in sizes.items())


def describe_split(run: Run) -> str:
    """Unit, fractions and seed of the split."""
    # Kinds have different classes of split, with the same fractions
    split = getattr(run.recipe, "split", None)
    if not split:
        return ""
    fractions = f"{split.train:g} / {split.tuning:g} / {split.held_out:g}"
    return f"by {split.by}, {fractions}, seed {split.seed}"


def list_reported_metrics(runs: Sequence[Run]) -> str:
    """Names of all metrics of whole splits."""
    rows = (row for run in runs for row in run.results.to_pylist())
    names = dict.fromkeys(
        row["name"].replace("_", " ")
        for row in rows
        if SUBGROUP_SEPARATOR not in (row["group"] or "")
    )
    return f"{', '.join(names)}; intervals by bootstrap over people" if names else ""


def list_reported_subgroups(runs: Sequence[Run]) -> str:
    """``measured by sex, age``: the first word of a subgroup is what it divides by."""
    groups = (str(row["group"] or "") for run in runs for row in run.results.to_pylist())
    # ``model · sex F``
    prefix = f"{CLASSIFIER_GROUP}{SUBGROUP_SEPARATOR}"
    names = dict.fromkeys(
        group.removeprefix(prefix).split(" ")[0] for group in groups if group.startswith(prefix)
    )
    return f"measured by {', '.join(names)}, with the largest gap of each" if names else ""


def describe_class_weights(run: Run) -> str:
    """The class weights of the loss."""
    # Only classifiers have a table [loss]
    loss = run.recipe.model_dump().get("loss")
    return f"class weights {loss['class_weights']}" if loss else ""


def describe_output(run: Run) -> str:
    """What a classifier returns."""
    if not run.recipe.tasks:
        return ""
    recalibration = run.recipe.model_dump()["evaluation"]["recalibration"]
    return f"a probability for every class, recalibrated by {recalibration}"


def describe_performance(run: Run) -> str:
    """The main metric of every task, or the perplexity, with intervals."""
    estimates = read_estimates(run)
    # A language model has no task, and its perplexity in place of a main metric
    keys = [
        MetricKey(find_main_metric(estimates, task) or "", HELD_OUT_SPLIT, CLASSIFIER_GROUP, task)
        for task in get_task_names(run.recipe)
    ] or [MetricKey("perplexity", HELD_OUT_SPLIT, "adapted")]
    return "; ".join(
        f"{run.record.name or run.id}: {key.name} {format_cell(estimates[key], format_number)}"
        for key in keys
        if key in estimates
    )


def describe_flow(runs: Sequence[Run]) -> str:
    """Where the flow of participants is found."""
    has_attrition = any(run.attrition for run in runs)
    return "flow and table are in the report, counts below 10 suppressed" if has_attrition else ""


def describe_updates(run: Run) -> str:
    """The runs whose adapters were trained further."""
    return ", ".join(
        f"continues from run {spec.from_run}" for spec in run.recipe.adapters if spec.from_run
    )


def describe_compute(run: Run) -> str:
    """Devices, time, and energy if it was measured."""
    record = run.record
    if record.hardware is None or record.total_seconds is None:
        return ""
    text = f"{record.hardware.devices} × {record.hardware.device}, {record.total_seconds:,.0f} s"
    if record.energy_joules is not None:
        text += f", {record.energy_joules / 3600:.3g} Wh in training ({record.energy_of})"
    return text


# Name of a fact, as in ``checklists/*.toml`` -> runs to its text; empty if they do not say
CHECKLIST_FACTS: Mapping[str, DescribeRuns] = {
    "design": describe_each_run(
        lambda run: (
            f"{run.record.kind}, {describe_adapters(run.recipe) or 'no adapter'} on "
            f"{get_base_model_name(run.recipe)}"
        )
    ),
    "data": describe_each_run(
        lambda run: (
            f"{run.recipe.source.name}, fingerprint {(run.record.hashes.source or 'unknown')[:12]}"
        )
    ),
    "exclusions": describe_exclusions,
    "preparation": describe_each_run(describe_preparation),
    "outcome": describe_outcome,
    "predictors": describe_predictors,
    "sample_sizes": describe_each_run(describe_sample_sizes),
    "split": describe_each_run(describe_split),
    "model": describe_each_run(
        lambda run: (
            f"{describe_adapters(run.recipe) or 'head only'}, "
            f"{format_count(run.record.trained_parameters or 0)} parameters trained; "
            f"recipe.toml of run {run.id}"
        )
    ),
    "base_model": describe_each_run(
        lambda run: (
            f"{get_base_model_name(run.recipe)}, SHA-256 "
            f"{(run.record.hashes.base or 'unknown')[:12]}, "
            f"{run.record.precision or 'precision unknown'}"
        )
    ),
    "metrics": list_reported_metrics,
    "subgroups": list_reported_subgroups,
    "class_weights": describe_each_run(describe_class_weights),
    "output": describe_each_run(describe_output),
    "code_version": describe_each_run(
        lambda run: (
            f"clinpeft {run.record.versions.get('clinpeft', 'unknown')}, commit "
            f"{run.record.git_commit or 'unknown'}"
        )
    ),
    "performance": describe_each_run(describe_performance),
    "participant_flow": describe_flow,
    "updates": describe_each_run(describe_updates),
    "compute": describe_each_run(describe_compute),
    "prompting": lambda _: "no prompt in words is used: predictions are read from a head",
}
