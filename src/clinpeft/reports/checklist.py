"""TRIPOD+AI and TRIPOD-LLM, filled from the record of the runs, with what only a person can write left as marked gaps.

The items are theirs (Collins et al., BMJ 2024, 10.1136/bmj-2023-078378; Gallifant et al., Nature Medicine 2025, 10.1038/s41591-024-03425-5), the
wording is ours: read the statements themselves before handing in. Of TRIPOD-LLM the 19 main items are listed, without their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.reports.facts import (
    MODEL,
    SUBGROUP,
    TEST,
    Key,
    adapters,
    base_name,
    estimates,
    main_metric,
    tasks,
)
from clinpeft.reports.formats import count, counted, number
from clinpeft.reports.tables import printed
from clinpeft.runs import Run

GAP = "☐ **To be written**"
DONE = "☑"

Runs = Sequence[Run]


@dataclass(frozen=True)
class Item:
    """One item of a statement.

    Attributes:
        number: as printed there.
        topic: a word or two.
        asks: what is to be told, in our words.
        told: runs -> what the record says of it; empty where it says nothing. None: no record can.
        left: what a person still has to add; empty for nothing.
    """

    number: str
    topic: str
    asks: str
    told: Callable[[Runs], str] | None = None
    left: str = ""


def checklist(runs: Runs, title: str) -> str:
    """Both statements as Markdown, a line an item.

    Args:
        runs: finished ones; small counts suppressed where it is to leave.
        title: of the study.
    """
    head = f"# Reporting checklist: {title}"
    lead = f"Filled from the record of {len(runs)} runs. {GAP}: no record knows it. Check every line before it is handed in."
    return (
        "\n\n".join(
            [
                head,
                lead,
                _statement("TRIPOD+AI", TRIPOD_AI, runs),
                _statement("TRIPOD-LLM", TRIPOD_LLM, runs),
            ]
        )
        + "\n"
    )


def _statement(name: str, items: Sequence[Item], runs: Runs) -> str:
    told = [(item, item.told(runs) if item.told else "") for item in items]
    filled = sum(bool(text) for _, text in told)
    lines = [
        f"## {name}",
        f"{filled} of {len(items)} items have something from the record.",
        "| item | topic | what is to be told | from the record |",
    ]
    rows = [
        f"| {item.number} | {item.topic} | {item.asks} | {_entry(item, text)} |"
        for item, text in told
    ]
    return "\n\n".join([*lines[:2], "\n".join([lines[2], "|---|---|---|---|", *rows])])


def _entry(item: Item, text: str) -> str:
    plain = text.replace("|", r"\|").replace("\n", " ")
    gap = f"{GAP}: {item.left or item.asks}" if item.left or not text else ""
    return " ".join(part for part in (f"{DONE} {plain}" if text else "", gap) if part)


def _each(runs: Runs, told: Callable[[Run], str]) -> str:
    return "; ".join(dict.fromkeys(text for run in runs if (text := told(run))))


def _design(runs: Runs) -> str:
    return _each(
        runs,
        lambda run: (
            f"{run.record.kind}, {adapters(run.recipe) or 'no adapter'} on {base_name(run.recipe)}"
        ),
    )


def _data(runs: Runs) -> str:
    return _each(
        runs,
        lambda run: (
            f"{run.recipe.source.name}, fingerprint {(run.record.hashes.source or 'unknown')[:12]}"
        ),
    )


def _eligible(runs: Runs) -> str:
    """Every step that left somebody out, of the first run of each question."""
    first = {tasks(run.recipe): run for run in reversed(runs)}
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


def _preparation(runs: Runs) -> str:
    def told(run: Run) -> str:
        recipe = run.recipe
        if isinstance(recipe, ClassifyRecipe):
            return f"sections {recipe.task.model_dump().get('sections')}, read: {recipe.truncation.keep}, at most {recipe.base.max_tokens} tokens"
        if isinstance(recipe, AdaptRecipe):
            return f"placeholders: {recipe.corpus.deidentification}; duplicates: {recipe.corpus.deduplicate}; windows of {recipe.base.max_tokens} tokens"
        return ""

    return _each(runs, told)


def _outcome(runs: Runs) -> str:
    asked = dict.fromkeys(task for run in runs for task in tasks(run.recipe))
    return (
        f"asked: {', '.join(asked)}; defined by the code of the program, see the documentation of cohorts"
        if asked
        else ""
    )


def _predictors(runs: Runs) -> str:
    return "the text of notes that could be read at the prediction time" if _outcome(runs) else ""


def _sizes(runs: Runs) -> str:
    def told(run: Run) -> str:
        found = {
            row["task"] or "": (row["n"], row["n_subjects"], row["n_events"])
            for row in run.results.to_pylist()
            if _is_main(run, row)
        }
        return "; ".join(
            f"{task or run.record.kind}: {_counted(*numbers)}" for task, numbers in found.items()
        )

    return _each(runs, told)


def _counted(n: int, people: int | None, events: int | None) -> str:
    known = (
        f"n {counted(n)}",
        None if people is None else f"{counted(people)} people",
        None if events is None else f"{counted(events)} events",
    )
    return ", ".join(part for part in known if part) + ", held out"


def _is_main(run: Run, row: dict[str, object]) -> bool:
    group = MODEL if isinstance(run.recipe, ClassifyRecipe) else "adapted"
    metric = (
        main_metric(estimates(run), str(row["task"]))
        if isinstance(run.recipe, ClassifyRecipe)
        else "perplexity"
    )
    return (row["name"], row["split"], row["group"]) == (metric, TEST, group)


def _split(runs: Runs) -> str:
    def told(run: Run) -> str:
        split = getattr(run.recipe, "split", None)
        return (
            f"by {split.by}, {split.train:g} / {split.tuning:g} / {split.held_out:g}, seed {split.seed}"
            if split
            else ""
        )

    return _each(runs, told)


def _model(runs: Runs) -> str:
    return _each(
        runs,
        lambda run: (
            f"{adapters(run.recipe) or 'head only'}, {count(run.record.trained_parameters or 0)} parameters trained; recipe.toml of run {run.id}"
        ),
    )


def _measures(runs: Runs) -> str:
    names = dict.fromkeys(
        row["name"]
        for run in runs
        for row in run.results.to_pylist()
        if SUBGROUP not in (row["group"] or "")
    )
    return (
        f"{', '.join(name.replace('_', ' ') for name in names)}; intervals by bootstrap over people"
        if names
        else ""
    )


def _groups(runs: Runs) -> str:
    groups = (
        row["group"].partition(SUBGROUP)[2].split(" ")[0]
        for run in runs
        for row in run.results.to_pylist()
        if _is_subgroup(row)
    )
    found = dict.fromkeys(groups)
    return f"measured by {', '.join(found)}, with the largest gap of each" if found else ""


def _is_subgroup(row: dict[str, object]) -> bool:
    return str(row["group"] or "").startswith(f"{MODEL}{SUBGROUP}")


def _imbalance(runs: Runs) -> str:
    return _each(
        runs,
        lambda run: (
            f"class weights {run.recipe.loss.class_weights}"
            if isinstance(run.recipe, ClassifyRecipe)
            else ""
        ),
    )


def _output(runs: Runs) -> str:
    def told(run: Run) -> str:
        return (
            f"a probability for every class, recalibrated by {run.recipe.evaluation.recalibration}"
            if isinstance(run.recipe, ClassifyRecipe)
            else ""
        )

    return _each(runs, told)


def _code(runs: Runs) -> str:
    return _each(
        runs,
        lambda run: (
            f"clinpeft {run.record.versions.get('clinpeft', 'unknown')}, commit {run.record.git_commit or 'unknown'}"
        ),
    )


def _performance(runs: Runs) -> str:
    def told(run: Run) -> str:
        found = estimates(run)
        keys = [
            (task, Key(main_metric(found, task) or "", TEST, MODEL, task))
            for task in tasks(run.recipe)
        ] or [("", Key("perplexity", TEST, "adapted"))]
        return "; ".join(
            f"{run.record.name or run.id}: {key.name} {printed(found[key], number)}"
            for _, key in keys
            if key in found
        )

    return _each(runs, told)


def _flow(runs: Runs) -> str:
    return (
        "the flow and its table stand in the report, counts below 10 not told"
        if any(run.attrition for run in runs)
        else ""
    )


def _seeds(runs: Runs) -> str:
    return f"seeds {', '.join(str(seed) for seed in sorted({run.recipe.seed for run in runs}))}; spread over seeds stands apart from sampling error"


def _updated(runs: Runs) -> str:
    def told(run: Run) -> str:
        recipe = run.recipe
        specs = (
            recipe.adapters
            if isinstance(recipe, AdaptRecipe | ClassifyRecipe | EmbedRecipe)
            else ()
        )
        return ", ".join(f"goes on from run {spec.from_run}" for spec in specs if spec.from_run)

    return _each(runs, told)


def _compute(runs: Runs) -> str:
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

    return _each(runs, told)


def _base(runs: Runs) -> str:
    return _each(
        runs,
        lambda run: (
            f"{base_name(run.recipe)}, SHA-256 {(run.record.hashes.base or 'unknown')[:12]}, {run.record.precision or 'precision unknown'}"
        ),
    )


TRIPOD_AI = (
    Item(
        "1",
        "title",
        "say that a prediction model is developed or evaluated, for whom and for which outcome",
    ),
    Item("2", "abstract", "a structured summary, by the checklist for abstracts"),
    Item("3a", "background", "the medical question, why a model, which ones there are"),
    Item("3b", "background", "who it is for, where in the care of a patient, who uses it"),
    Item("3c", "background", "known inequalities in health between the groups concerned"),
    Item(
        "4",
        "aims",
        "what the study wants to find out; development, evaluation or both",
        _design,
        "the aims themselves",
    ),
    Item(
        "5a",
        "data",
        "where the data are from, of training and of evaluation, and why these",
        _data,
        "why these, and whom they represent",
    ),
    Item("5b", "data", "when the participants were recorded, from and to"),
    Item("6a", "participants", "the setting: hospitals, number, places"),
    Item(
        "6b",
        "participants",
        "who was eligible and who was not",
        _eligible,
        "the criteria in clinical words",
    ),
    Item("6c", "participants", "treatments that were given, and how they were dealt with"),
    Item(
        "7",
        "preparation",
        "how data were cleaned and checked, and whether alike in all groups",
        _preparation,
        "whether alike in all groups",
    ),
    Item("8a", "outcome", "what is predicted, when, and how it is known", _outcome),
    Item("8b", "outcome", "who assessed it, if that takes judgement"),
    Item("8c", "outcome", "whether those who assessed it were blinded"),
    Item(
        "9a",
        "predictors",
        "which were taken and why",
        _predictors,
        "why notes, and why these sections",
    ),
    Item("9b", "predictors", "how and when each was measured"),
    Item("9c", "predictors", "whether those who recorded them knew the outcome"),
    Item(
        "10",
        "sample size",
        "how it was arrived at, and whether it suffices",
        _sizes,
        "why it suffices",
    ),
    Item(
        "11",
        "missing data",
        "how much is missing and what was done",
        _eligible,
        "what is missing inside the notes",
    ),
    Item("12a", "analysis", "how data were used and split", _split),
    Item("12b", "analysis", "how predictors were handled", _preparation),
    Item(
        "12c",
        "analysis",
        "type of model, how it was built, tuned and validated inside",
        _model,
        "how the settings were chosen, where there was no search",
    ),
    Item("12d", "analysis", "differences between clusters such as hospitals"),
    Item("12e", "analysis", "measures of performance and why these", _measures, "why these"),
    Item("12f", "analysis", "whether the model was updated after its evaluation", _updated),
    Item("12g", "analysis", "how predictions were calculated in the evaluation", _code),
    Item(
        "13",
        "class imbalance",
        "whether and why it was dealt with, and recalibration after it",
        _imbalance,
    ),
    Item(
        "14",
        "fairness",
        "what was done to make it fair, and why",
        _groups,
        "what was done, and why",
    ),
    Item(
        "15",
        "output",
        "what the model gives out, and thresholds",
        _output,
        "thresholds, where one acts on them",
    ),
    Item(
        "16",
        "training and evaluation",
        "in what they differ: setting, people, outcome",
        _split,
        "differences beyond the split",
    ),
    Item("17", "ethics", "approval and consent"),
    Item("18a", "funding", "who paid, and their part"),
    Item("18b", "interests", "conflicts of interest of the authors"),
    Item("18c", "protocol", "where it can be read, or that there is none"),
    Item("18d", "registration", "where the study is registered, or that it is not"),
    Item("18e", "data sharing", "who can have the data, and how"),
    Item("18f", "code sharing", "who can have the code, and how", _code, "where it is to be had"),
    Item("19", "patients and public", "their part in the study, or that there was none"),
    Item("20a", "participants", "their flow, with and without the outcome", _flow),
    Item("20b", "participants", "their characteristics, of all and by source"),
    Item("20c", "participants", "how those of training and evaluation compare"),
    Item("21", "model development", "people and events in each analysis", _sizes),
    Item("22", "specification", "all that is needed to get predictions for new people", _model),
    Item("23a", "performance", "with intervals, of all and of groups", _performance),
    Item("23b", "performance", "differences between clusters, where examined"),
    Item("24", "updating", "what came of it, where the model was updated", _updated),
    Item("25", "interpretation", "what the results mean, fairness included, beside other studies"),
    Item("26", "limitations", "such as people not represented, size, overfitting, missing data"),
    Item("27a", "usability", "how poor or missing input is dealt with in use"),
    Item("27b", "usability", "whether people must work with it, and what they must know"),
    Item("27c", "usability", "what comes next for its use and generality"),
)
"""Statement on prediction models, with or without machine learning."""

TRIPOD_LLM = (
    Item(
        "1",
        "title",
        "say that a large language model is developed, tuned or evaluated, for which task and whom",
    ),
    Item("2", "abstract", "a structured summary"),
    Item("3", "background", "the medical setting, and why a language model"),
    Item(
        "4",
        "objectives",
        "which stages of the model's life the study is about",
        _design,
        "the objectives themselves",
    ),
    Item(
        "5",
        "data",
        "sources and dates of all texts, for pretraining, tuning and evaluation; overlap between them",
        _data,
        "dates, and texts the base was trained on",
    ),
    Item(
        "6",
        "analysis",
        "name and version of the model, how it was developed, how its performance is measured",
        _base,
        "who made the base, and its licence",
    ),
    Item("7", "output", "what comes out of the model and how it is turned into an answer", _output),
    Item(
        "8",
        "annotation",
        "how labels came about: by whom, with what agreement",
        _outcome,
        "how far codes and records can be trusted",
    ),
    Item(
        "9",
        "prompting",
        "how prompts were made, and on what data",
        lambda _: "no prompt in words is given: answers are read from a head",
    ),
    Item("10", "summarising", "how texts were shortened before the model read them", _preparation),
    Item(
        "11",
        "tuning",
        "instructions and alignment: on what data, how",
        _model,
        "whether the base was aligned, and how",
    ),
    Item(
        "12",
        "compute",
        "what it took: devices, time, energy",
        _compute,
        "energy, where it was not measured",
    ),
    Item("13", "ethics", "approval and consent"),
    Item(
        "14",
        "open science",
        "funding, interests, protocol, registration, data and code",
        _code,
        "all but the code",
    ),
    Item("15", "patients and public", "their part in the study"),
    Item(
        "16",
        "participants",
        "people and texts, of all and by group; flow",
        _sizes,
        "their characteristics",
    ),
    Item("17", "performance", "with intervals, of all and of groups", _performance),
    Item("18", "updating", "what came of it, where the model was updated", _updated),
    Item("19", "discussion", "meaning, limitations, use in care, what comes next"),
)
"""Statement on large language models in medicine."""
