"""TRIPOD+AI and TRIPOD-LLM, filled from the record of the runs, with what only a person can write
left as marked gaps.

The items are theirs (Collins et al., BMJ 2024, 10.1136/bmj-2023-078378; Gallifant et al., Nature
Medicine 2025, 10.1038/s41591-024-03425-5), the wording is ours: read the statements themselves
before handing in. Of TRIPOD-LLM the 19 main items are listed, without their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
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

CHECKLIST_GAP_MARK = "☐ **To be written**"
CHECKLIST_DONE_MARK = "☑"

RunSequence = Sequence[Run]


@dataclass(frozen=True)
class ChecklistItem:
    """One item of a statement.

    Attributes:
        number: as printed there.
        topic: a word or two.
        requirement: what is to be told, in our words.
        describe_runs: runs -> what the record says of it; empty where it says nothing. None: no
            record can.
        remaining_gap: what a person still has to add; empty for nothing.
    """

    number: str
    topic: str
    requirement: str
    describe_runs: Callable[[RunSequence], str] | None = None
    remaining_gap: str = ""


def render_reporting_checklist(runs: RunSequence, title: str) -> str:
    """Both statements as Markdown, a line an item.

    Args:
        runs: finished ones; small counts suppressed where it is to leave.
        title: of the study.
    """
    head = f"# Reporting checklist: {title}"
    lead = (
        f"Filled from the record of {len(runs)} runs. {CHECKLIST_GAP_MARK}: no record knows "
        "it. Check every line before it is handed in."
    )
    return (
        "\n\n".join(
            [
                head,
                lead,
                _render_statement("TRIPOD+AI", TRIPOD_AI_ITEMS, runs),
                _render_statement("TRIPOD-LLM", TRIPOD_LLM_ITEMS, runs),
            ]
        )
        + "\n"
    )


def _render_statement(name: str, items: Sequence[ChecklistItem], runs: RunSequence) -> str:
    told = [(item, item.describe_runs(runs) if item.describe_runs else "") for item in items]
    filled = sum(bool(text) for _, text in told)
    lines = [
        f"## {name}",
        f"{filled} of {len(items)} items have something from the record.",
        "| item | topic | what is to be told | from the record |",
    ]
    rows = [
        f"| {item.number} | {item.topic} | {item.requirement} | {_render_item(item, text)} |"
        for item, text in told
    ]
    return "\n\n".join([*lines[:2], "\n".join([lines[2], "|---|---|---|---|", *rows])])


def _render_item(item: ChecklistItem, text: str) -> str:
    plain = text.replace("|", r"\|").replace("\n", " ")
    gap = (
        f"{CHECKLIST_GAP_MARK}: {item.remaining_gap or item.requirement}"
        if item.remaining_gap or not text
        else ""
    )
    return " ".join(
        part for part in (f"{CHECKLIST_DONE_MARK} {plain}" if text else "", gap) if part
    )


def _describe_each_run(runs: RunSequence, describe_run: Callable[[Run], str]) -> str:
    return "; ".join(dict.fromkeys(text for run in runs if (text := describe_run(run))))


def _describe_design(runs: RunSequence) -> str:
    return _describe_each_run(
        runs,
        lambda run: (
            f"{run.record.kind}, {describe_adapters(run.recipe) or 'no adapter'} on "
            f"{get_base_model_name(run.recipe)}"
        ),
    )


def _describe_data(runs: RunSequence) -> str:
    return _describe_each_run(
        runs,
        lambda run: (
            f"{run.recipe.source.name}, fingerprint {(run.record.hashes.source or 'unknown')[:12]}"
        ),
    )


def _describe_exclusions(runs: RunSequence) -> str:
    """Every step that left somebody out, of the first run of each question."""
    first = {get_task_names(run.recipe): run for run in reversed(runs)}
    steps = [
        (step.step, reason)
        for run in first.values()
        for step in run.attrition
        for reason in sorted(step.dropped_rows)
    ]
    return (
        "left out: " + "; ".join(dict.fromkeys(f"{step}, {reason}" for step, reason in steps))
        if steps
        else ""
    )


def _describe_preparation(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        recipe = run.recipe
        if isinstance(recipe, ClassifyRecipe):
            return (
                f"sections {recipe.task.model_dump().get('sections')}, read: "
                f"{recipe.truncation.keep}, at most {recipe.base.max_tokens} tokens"
            )
        if isinstance(recipe, AdaptRecipe):
            return (
                f"placeholders: {recipe.corpus.deidentification}; duplicates: "
                f"{recipe.corpus.deduplicate}; windows of {recipe.base.max_tokens} tokens"
            )
        return ""

    return _describe_each_run(runs, told)


def _describe_outcome(runs: RunSequence) -> str:
    asked = dict.fromkeys(task for run in runs for task in get_task_names(run.recipe))
    return (
        (
            f"asked: {', '.join(asked)}; defined by the code of the program, see the "
            "documentation of cohorts"
        )
        if asked
        else ""
    )


def _describe_predictors(runs: RunSequence) -> str:
    return (
        "the text of notes that could be read at the prediction time"
        if _describe_outcome(runs)
        else ""
    )


def _describe_sample_sizes(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        found = {
            row["task"] or "": (row["n"], row["n_subjects"], row["n_events"])
            for row in run.results.to_pylist()
            if _is_main_metric(run, row)
        }
        return "; ".join(
            f"{task or run.record.kind}: {_format_sample_size(*numbers)}"
            for task, numbers in found.items()
        )

    return _describe_each_run(runs, told)


def _format_sample_size(n: int, people: int | None, events: int | None) -> str:
    known = (
        f"n {format_suppressed_count(n)}",
        None if people is None else f"{format_suppressed_count(people)} people",
        None if events is None else f"{format_suppressed_count(events)} events",
    )
    return ", ".join(part for part in known if part) + ", held out"


def _is_main_metric(run: Run, row: dict[str, object]) -> bool:
    group = CLASSIFIER_GROUP if isinstance(run.recipe, ClassifyRecipe) else "adapted"
    metric = (
        find_main_metric(read_estimates(run), str(row["task"]))
        if isinstance(run.recipe, ClassifyRecipe)
        else "perplexity"
    )
    return (row["name"], row["split"], row["group"]) == (metric, HELD_OUT_SPLIT, group)


def _describe_split(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        split = getattr(run.recipe, "split", None)
        return (
            (
                f"by {split.by}, {split.train:g} / {split.tuning:g} / {split.held_out:g}, seed "
                f"{split.seed}"
            )
            if split
            else ""
        )

    return _describe_each_run(runs, told)


def _describe_model(runs: RunSequence) -> str:
    return _describe_each_run(
        runs,
        lambda run: (
            f"{describe_adapters(run.recipe) or 'head only'}, "
            f"{format_count(run.record.trained_parameters or 0)} parameters trained; "
            f"recipe.toml of run {run.id}"
        ),
    )


def _list_metrics(runs: RunSequence) -> str:
    names = dict.fromkeys(
        row["name"]
        for run in runs
        for row in run.results.to_pylist()
        if SUBGROUP_SEPARATOR not in (row["group"] or "")
    )
    return (
        f"{', '.join(name.replace('_', ' ') for name in names)}; intervals by bootstrap over people"
        if names
        else ""
    )


def _list_subgroups(runs: RunSequence) -> str:
    groups = (
        row["group"].partition(SUBGROUP_SEPARATOR)[2].split(" ")[0]
        for run in runs
        for row in run.results.to_pylist()
        if _is_subgroup(row)
    )
    found = dict.fromkeys(groups)
    return f"measured by {', '.join(found)}, with the largest gap of each" if found else ""


def _is_subgroup(row: dict[str, object]) -> bool:
    return str(row["group"] or "").startswith(f"{CLASSIFIER_GROUP}{SUBGROUP_SEPARATOR}")


def _describe_class_weights(runs: RunSequence) -> str:
    return _describe_each_run(
        runs,
        lambda run: (
            f"class weights {run.recipe.loss.class_weights}"
            if isinstance(run.recipe, ClassifyRecipe)
            else ""
        ),
    )


def _describe_output(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        return (
            f"a probability for every class, recalibrated by {run.recipe.evaluation.recalibration}"
            if isinstance(run.recipe, ClassifyRecipe)
            else ""
        )

    return _describe_each_run(runs, told)


def _describe_code_version(runs: RunSequence) -> str:
    return _describe_each_run(
        runs,
        lambda run: (
            f"clinpeft {run.record.versions.get('clinpeft', 'unknown')}, commit "
            f"{run.record.git_commit or 'unknown'}"
        ),
    )


def _describe_performance(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        found = read_estimates(run)
        keys = [
            (
                task,
                MetricKey(
                    find_main_metric(found, task) or "", HELD_OUT_SPLIT, CLASSIFIER_GROUP, task
                ),
            )
            for task in get_task_names(run.recipe)
        ] or [("", MetricKey("perplexity", HELD_OUT_SPLIT, "adapted"))]
        return "; ".join(
            f"{run.record.name or run.id}: {key.name} {format_cell(found[key], format_number)}"
            for _, key in keys
            if key in found
        )

    return _describe_each_run(runs, told)


def _describe_flow(runs: RunSequence) -> str:
    return (
        "the flow and its table stand in the report, counts below 10 not told"
        if any(run.attrition for run in runs)
        else ""
    )


def _list_seeds(runs: RunSequence) -> str:
    return (
        f"seeds {', '.join(str(seed) for seed in sorted({run.recipe.seed for run in runs}))}; "
        "spread over seeds stands apart from sampling error"
    )


def _describe_updates(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        recipe = run.recipe
        specs = (
            recipe.adapters
            if isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
            else ()
        )
        return ", ".join(f"goes on from run {spec.from_run}" for spec in specs if spec.from_run)

    return _describe_each_run(runs, told)


def _describe_compute(runs: RunSequence) -> str:
    def told(run: Run) -> str:
        hardware, seconds = run.record.hardware, run.record.total_seconds
        energy = (
            f", {run.record.energy_joules / 3600:.3g} Wh in training ({run.record.energy_of})"
            if run.record.energy_joules is not None
            else ""
        )
        return (
            f"{hardware.devices} × {hardware.device}, {seconds:,.0f} s{energy}"
            if hardware and seconds is not None
            else ""
        )

    return _describe_each_run(runs, told)


def _describe_base_model(runs: RunSequence) -> str:
    return _describe_each_run(
        runs,
        lambda run: (
            f"{get_base_model_name(run.recipe)}, SHA-256 "
            f"{(run.record.hashes.base or 'unknown')[:12]}, "
            f"{run.record.precision or 'precision unknown'}"
        ),
    )


TRIPOD_AI_ITEMS = (
    ChecklistItem(
        "1",
        "title",
        "say that a prediction model is developed or evaluated, for whom and for which outcome",
    ),
    ChecklistItem("2", "abstract", "a structured summary, by the checklist for abstracts"),
    ChecklistItem("3a", "background", "the medical question, why a model, which ones there are"),
    ChecklistItem("3b", "background", "who it is for, where in the care of a patient, who uses it"),
    ChecklistItem("3c", "background", "known inequalities in health between the groups concerned"),
    ChecklistItem(
        "4",
        "aims",
        "what the study wants to find out; development, evaluation or both",
        _describe_design,
        "the aims themselves",
    ),
    ChecklistItem(
        "5a",
        "data",
        "where the data are from, of training and of evaluation, and why these",
        _describe_data,
        "why these, and whom they represent",
    ),
    ChecklistItem("5b", "data", "when the participants were recorded, from and to"),
    ChecklistItem("6a", "participants", "the setting: hospitals, number, places"),
    ChecklistItem(
        "6b",
        "participants",
        "who was eligible and who was not",
        _describe_exclusions,
        "the criteria in clinical words",
    ),
    ChecklistItem("6c", "participants", "treatments that were given, and how they were dealt with"),
    ChecklistItem(
        "7",
        "preparation",
        "how data were cleaned and checked, and whether alike in all groups",
        _describe_preparation,
        "whether alike in all groups",
    ),
    ChecklistItem(
        "8a", "outcome", "what is predicted, when, and how it is known", _describe_outcome
    ),
    ChecklistItem("8b", "outcome", "who assessed it, if that takes judgement"),
    ChecklistItem("8c", "outcome", "whether those who assessed it were blinded"),
    ChecklistItem(
        "9a",
        "predictors",
        "which were taken and why",
        _describe_predictors,
        "why notes, and why these sections",
    ),
    ChecklistItem("9b", "predictors", "how and when each was measured"),
    ChecklistItem("9c", "predictors", "whether those who recorded them knew the outcome"),
    ChecklistItem(
        "10",
        "sample size",
        "how it was arrived at, and whether it suffices",
        _describe_sample_sizes,
        "why it suffices",
    ),
    ChecklistItem(
        "11",
        "missing data",
        "how much is missing and what was done",
        _describe_exclusions,
        "what is missing inside the notes",
    ),
    ChecklistItem("12a", "analysis", "how data were used and split", _describe_split),
    ChecklistItem("12b", "analysis", "how predictors were handled", _describe_preparation),
    ChecklistItem(
        "12c",
        "analysis",
        "type of model, how it was built, tuned and validated inside",
        _describe_model,
        "how the settings were chosen, where there was no search",
    ),
    ChecklistItem("12d", "analysis", "differences between clusters such as hospitals"),
    ChecklistItem(
        "12e", "analysis", "measures of performance and why these", _list_metrics, "why these"
    ),
    ChecklistItem(
        "12f", "analysis", "whether the model was updated after its evaluation", _describe_updates
    ),
    ChecklistItem(
        "12g",
        "analysis",
        "how predictions were calculated in the evaluation",
        _describe_code_version,
    ),
    ChecklistItem(
        "13",
        "class imbalance",
        "whether and why it was dealt with, and recalibration after it",
        _describe_class_weights,
    ),
    ChecklistItem(
        "14",
        "fairness",
        "what was done to make it fair, and why",
        _list_subgroups,
        "what was done, and why",
    ),
    ChecklistItem(
        "15",
        "output",
        "what the model gives out, and thresholds",
        _describe_output,
        "thresholds, where one acts on them",
    ),
    ChecklistItem(
        "16",
        "training and evaluation",
        "in what they differ: setting, people, outcome",
        _describe_split,
        "differences beyond the split",
    ),
    ChecklistItem("17", "ethics", "approval and consent"),
    ChecklistItem("18a", "funding", "who paid, and their part"),
    ChecklistItem("18b", "interests", "conflicts of interest of the authors"),
    ChecklistItem("18c", "protocol", "where it can be read, or that there is none"),
    ChecklistItem("18d", "registration", "where the study is registered, or that it is not"),
    ChecklistItem("18e", "data sharing", "who can have the data, and how"),
    ChecklistItem(
        "18f",
        "code sharing",
        "who can have the code, and how",
        _describe_code_version,
        "where it is to be had",
    ),
    ChecklistItem("19", "patients and public", "their part in the study, or that there was none"),
    ChecklistItem(
        "20a", "participants", "their flow, with and without the outcome", _describe_flow
    ),
    ChecklistItem("20b", "participants", "their characteristics, of all and by source"),
    ChecklistItem("20c", "participants", "how those of training and evaluation compare"),
    ChecklistItem(
        "21", "model development", "people and events in each analysis", _describe_sample_sizes
    ),
    ChecklistItem(
        "22",
        "specification",
        "all that is needed to get predictions for new people",
        _describe_model,
    ),
    ChecklistItem(
        "23a", "performance", "with intervals, of all and of groups", _describe_performance
    ),
    ChecklistItem("23b", "performance", "differences between clusters, where examined"),
    ChecklistItem(
        "24", "updating", "what came of it, where the model was updated", _describe_updates
    ),
    ChecklistItem(
        "25", "interpretation", "what the results mean, fairness included, beside other studies"
    ),
    ChecklistItem(
        "26", "limitations", "such as people not represented, size, overfitting, missing data"
    ),
    ChecklistItem("27a", "usability", "how poor or missing input is dealt with in use"),
    ChecklistItem("27b", "usability", "whether people must work with it, and what they must know"),
    ChecklistItem("27c", "usability", "what comes next for its use and generality"),
)
"""Statement on prediction models, with or without machine learning."""

TRIPOD_LLM_ITEMS = (
    ChecklistItem(
        "1",
        "title",
        "say that a large language model is developed, tuned or evaluated, for which task and whom",
    ),
    ChecklistItem("2", "abstract", "a structured summary"),
    ChecklistItem("3", "background", "the medical setting, and why a language model"),
    ChecklistItem(
        "4",
        "objectives",
        "which stages of the model's life the study is about",
        _describe_design,
        "the objectives themselves",
    ),
    ChecklistItem(
        "5",
        "data",
        (
            "sources and dates of all texts, for pretraining, tuning and evaluation; overlap "
            "between them"
        ),
        _describe_data,
        "dates, and texts the base was trained on",
    ),
    ChecklistItem(
        "6",
        "analysis",
        "name and version of the model, how it was developed, how its performance is measured",
        _describe_base_model,
        "who made the base, and its licence",
    ),
    ChecklistItem(
        "7",
        "output",
        "what comes out of the model and how it is turned into an answer",
        _describe_output,
    ),
    ChecklistItem(
        "8",
        "annotation",
        "how labels came about: by whom, with what agreement",
        _describe_outcome,
        "how far codes and records can be trusted",
    ),
    ChecklistItem(
        "9",
        "prompting",
        "how prompts were made, and on what data",
        lambda _: "no prompt in words is given: answers are read from a head",
    ),
    ChecklistItem(
        "10",
        "summarising",
        "how texts were shortened before the model read them",
        _describe_preparation,
    ),
    ChecklistItem(
        "11",
        "tuning",
        "instructions and alignment: on what data, how",
        _describe_model,
        "whether the base was aligned, and how",
    ),
    ChecklistItem(
        "12",
        "compute",
        "what it took: devices, time, energy",
        _describe_compute,
        "energy, where it was not measured",
    ),
    ChecklistItem("13", "ethics", "approval and consent"),
    ChecklistItem(
        "14",
        "open science",
        "funding, interests, protocol, registration, data and code",
        _describe_code_version,
        "all but the code",
    ),
    ChecklistItem("15", "patients and public", "their part in the study"),
    ChecklistItem(
        "16",
        "participants",
        "people and texts, of all and by group; flow",
        _describe_sample_sizes,
        "their characteristics",
    ),
    ChecklistItem(
        "17", "performance", "with intervals, of all and of groups", _describe_performance
    ),
    ChecklistItem(
        "18", "updating", "what came of it, where the model was updated", _describe_updates
    ),
    ChecklistItem("19", "discussion", "meaning, limitations, use in care, what comes next"),
)
"""Statement on large language models in medicine."""
