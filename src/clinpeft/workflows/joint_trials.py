"""Several recipes of ``classify`` in one pass over one base, each a run of its own: what a search does with proposals that differ in little."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clinpeft import adapters, models, training
from clinpeft.adapters import AdapterMonitor, MultiAdapterModel
from clinpeft.core.errors import ClinpeftError, RecipeError
from clinpeft.recipe import ClassifyRecipe, Recipe
from clinpeft.runs import InputHashes, Run
from clinpeft.training import Accelerator, TrialTraining
from clinpeft.workflows import classifier, compilation, plan, quantization, task_cohorts
from clinpeft.workflows.classifier import AdapterSource, ClassifierSetup
from clinpeft.workflows.context import (
    RunContext,
    compute_run_hashes,
    create_training_callbacks,
    open_training_run,
)
from clinpeft.workflows.task_cohorts import EncodedCohort

TrialOutcome = Run | ClinpeftError
"""A finished run, or why there is none; a run that stopped says so in its folder as well."""

TRIAL_SPECIFIC_SECTIONS = frozenset({"name", "seed", "adapters", "head", "loss", "training"})
"""Sections in which recipes that are trained together may differ."""


def can_train_jointly(recipes: Sequence[Recipe]) -> bool:
    """Whether these can be trained in one pass: questions that differ in ``OWN`` alone, each with a low-rank adapter that is trained,
    and without differential privacy, which wants every subject on its own."""
    asked = [recipe for recipe in recipes if isinstance(recipe, ClassifyRecipe)]
    if len(asked) < len(recipes) or not asked or not all(map(_has_fused_adapters, asked)):
        return False
    shared = [recipe.model_dump(exclude=set(TRIAL_SPECIFIC_SECTIONS)) for recipe in asked]
    return all(each == shared[0] for each in shared)


def _has_fused_adapters(recipe: ClassifyRecipe) -> bool:
    fused = all(
        adapters.ADAPTER_METHODS[spec.method].supports_fusion and spec.active and not spec.merged
        for spec in recipe.adapters
    )
    return (
        fused
        and any(spec.trainable for spec in recipe.adapters)
        and not recipe.base.trainable
        and recipe.training.differential_privacy is None
    )


@dataclass(frozen=True)
class _OpenTrial:
    """A run that is to be made, open until ``exit_stack`` is closed."""

    position: int
    recipe: ClassifyRecipe
    adapter_sources: dict[str, AdapterSource]
    hashes: InputHashes
    run: Run
    exit_stack: contextlib.ExitStack


@dataclass(frozen=True)
class _PreparedTrial:
    """All of a trial that stands before the first step."""

    trial: _OpenTrial
    setup: ClassifierSetup
    monitor: AdapterMonitor


def train_classifiers_jointly(
    recipes: Sequence[ClassifyRecipe], home: Path, contexts: Sequence[RunContext]
) -> list[TrialOutcome]:
    """``classify`` of every recipe, trained in one pass; each is recorded as its own run under its own id.

    It is the run that it would be alone, but for a notice that names the others; its seconds and memory are those of the pass. A run that was there
    already is given back. One that fails leaves the others alone.

    Args:
        recipes: for which ``are_shareable`` holds.
        home: the folder of all runs.
        contexts: of each recipe.

    Returns:
        In the order of the recipes.

    Raises:
        ClinpeftError: what concerns all of them: the recipes cannot be trained together, the notes or the base cannot be read.
    """
    accelerator = training.create_accelerator()
    if not can_train_jointly(recipes) or accelerator.num_processes > 1:
        message = f"{len(recipes)} recipes that cannot be trained in one pass by {accelerator.num_processes} process{'es' * (accelerator.num_processes > 1)}"
        raise RecipeError(
            message,
            location="recipes",
            hint=f"let them differ in {', '.join(sorted(TRIAL_SPECIFIC_SECTIONS))} only, or make them one after another",
        )
    quantization.check_base_options(recipes[0], accelerator)
    outcomes: dict[int, TrialOutcome] = {}
    with contextlib.ExitStack() as every:
        waiting: list[_OpenTrial] = []
        for at, recipe in enumerate(recipes):
            with _record_errors(outcomes, at):
                held = _open_trial(at, recipe, home, contexts[at], accelerator, every)
                if held.run.record.state == "finished":
                    outcomes[at] = held.run
                else:
                    waiting.append(held)
        if waiting:
            _train_open_trials(waiting, home, contexts, accelerator, outcomes)
    return [outcomes[at] for at in range(len(recipes))]


@contextlib.contextmanager
def _record_errors(
    outcomes: dict[int, TrialOutcome], position: int, trial: _OpenTrial | None = None
) -> Iterator[None]:
    """An error of one run ends that run, which writes it down."""
    try:
        with contextlib.nullcontext() if trial is None else _close_on_error(trial.exit_stack):
            yield
    except ClinpeftError as error:
        outcomes[position] = error


@contextlib.contextmanager
def _close_on_error(exit_stack: contextlib.ExitStack) -> Iterator[None]:
    """An error closes what is held, with that error; without one it stays held."""
    try:
        yield
    except ClinpeftError:
        with exit_stack:
            raise


def _open_trial(
    position: int,
    recipe: ClassifyRecipe,
    home: Path,
    context: RunContext,
    accelerator: Accelerator,
    all_trials_stack: contextlib.ExitStack,
) -> _OpenTrial:
    recipe, origins = classifier.resolve_adapter_runs(recipe, home)
    hashes = compute_run_hashes(
        task_cohorts.fingerprint_cohort_sources(recipe),
        recipe,
        adapter_hashes=classifier.hash_adapters(origins),
    )
    end = all_trials_stack.enter_context(contextlib.ExitStack())
    return _OpenTrial(
        position,
        recipe,
        origins,
        hashes,
        end.enter_context(open_training_run(recipe, hashes, home, context, accelerator)),
        end,
    )


def _train_open_trials(
    open_trials: Sequence[_OpenTrial],
    home: Path,
    contexts: Sequence[RunContext],
    accelerator: Accelerator,
    outcomes: dict[int, TrialOutcome],
) -> None:
    """From open runs to recorded ones."""
    first = open_trials[0]
    asked = task_cohorts.prepare_cohorts(first.recipe, home, accelerator, first.hashes)
    base = models.load_base_model(
        quantization.disable_quantization(classifier.set_trainable_precision(first.recipe.base)),
        accelerator.device,
        "vectors",
    )
    read = task_cohorts.prepare_cohort_documents(first.recipe, base, asked, home, accelerator)
    quantization.quantize_checking_documents(first.recipe, base, read[0], accelerator)
    trials = [
        adapters.TrialAdapters(
            held.recipe.adapters,
            held.recipe.seed,
            classifier.get_adapter_folders(held.adapter_sources),
        )
        for held in open_trials
    ]
    joint = adapters.attach_stacks(base, trials)
    plan.choose_checkpointing([held.recipe for held in open_trials], joint.stacks, accelerator)
    prepared = [
        _prepare_trial(joint, location, held, read, home, contexts[held.position], accelerator)
        for location, held in enumerate(open_trials)
    ]
    compilation.choose_compilation(
        [held.recipe for held in open_trials],
        joint.stacks,
        prepared[0].setup.trainable,
        home,
        accelerator,
    )
    fits = [
        TrialTraining(
            each.setup.trainable,
            each.trial.recipe.training,
            each.trial.run.folder / "checkpoints",
            create_training_callbacks(each.trial.run, contexts[each.trial.position]),
        )
        for each in prepared
    ]
    for location, (each, fitted) in enumerate(
        zip(prepared, training.train_jointly(joint, fits, accelerator), strict=True)
    ):
        held = each.trial
        with _record_errors(outcomes, held.position, held), joint.isolate_stack(location):
            if isinstance(fitted, ClinpeftError):
                raise fitted
            liveness = each.monitor.verify(each.setup.compute_probe_logits)
            found = classifier.score_classifier(held.recipe, each.setup, read, home, accelerator)
            others = ", ".join(other.run.id for other in open_trials if other is not held)
            told = (
                *classifier.collect_classifier_notices(held.recipe, held.adapter_sources, read),
                *joint.notices,
            )
            told += (
                (f"trained in one pass with {others}: seconds and memory are those of all",)
                if others
                else ()
            )
            outcomes[held.position] = classifier.record_classifier_run(
                held.recipe,
                held.run,
                contexts[held.position],
                accelerator,
                each.setup,
                fitted,
                liveness,
                found,
                told,
                read,
            )


def _prepare_trial(
    joint_model: MultiAdapterModel,
    position: int,
    trial: _OpenTrial,
    encoded_cohorts: Sequence[EncodedCohort],
    home: Path,
    context: RunContext,
    accelerator: Accelerator,
) -> _PreparedTrial:
    with joint_model.isolate_stack(position) as stack:
        answering = classifier.build_classifier_setup(
            trial.recipe, stack, encoded_cohorts, home, accelerator
        )
        witness = adapters.monitor_adapters(stack, answering.head_parameters)
        classifier.train_linear_probes(
            trial.recipe, answering, encoded_cohorts, home, accelerator, trial.run, context
        )
    return _PreparedTrial(trial, answering, witness)
