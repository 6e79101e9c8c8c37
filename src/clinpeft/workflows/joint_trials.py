"""Several recipes of ``classify`` trained in one pass over one base, each recorded as its own run.

A search uses it for proposals that differ in little. Every step is that of ``classify``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from clinpeft import adapters, runtime, training
from clinpeft.core.errors import ClinpeftError, RecipeError
from clinpeft.recipe import ClassifyRecipe, Recipe
from clinpeft.runs import Run
from clinpeft.training import TrialTraining
from clinpeft.workflows.adapter_sources import (
    AdapterSource,
    get_adapter_folders,
    hash_adapters,
    resolve_adapter_runs,
)
from clinpeft.workflows.base_loading import check_base_options
from clinpeft.workflows.classification_results import collect_classifier_notices
from clinpeft.workflows.classifier import ClassifierSetup, build_classifier, fit_linear_probes
from clinpeft.workflows.classify import evaluate_and_record, load_base_and_cohorts
from clinpeft.workflows.context import (
    RunContext,
    compute_run_hashes,
    create_training_callbacks,
    open_training_run,
)
from clinpeft.workflows.fitting import FittedTraining
from clinpeft.workflows.memory_estimates import create_runtime_policy
from clinpeft.workflows.task_cohorts import fingerprint_cohort_sources

TrialOutcome = Run | ClinpeftError
"""A finished run, or why there is none; the folder of a run that stopped says so, too."""

TRIAL_SPECIFIC_SECTIONS = frozenset({"name", "seed", "adapters", "head", "loss", "training"})
"""Sections in which recipes that are trained in one pass may differ."""


def can_train_jointly(recipes: Sequence[Recipe]) -> TypeGuard[Sequence[ClassifyRecipe]]:
    """Whether recipes can be trained in one pass.

    They are of kind ``classify``, differ in ``TRIAL_SPECIFIC_SECTIONS`` alone, have a low-rank
    adapter that is trained on a frozen base, and no differential privacy, which needs the gradient
    of every subject by itself.
    """
    if not all(recipe.tasks and _has_only_fused_adapters(recipe) for recipe in recipes):
        return False
    shared = [recipe.model_dump(exclude=set(TRIAL_SPECIFIC_SECTIONS)) for recipe in recipes]
    return bool(shared) and all(sections == shared[0] for sections in shared)


def _has_only_fused_adapters(recipe: Any) -> bool:
    specs = recipe.adapters
    fused = all(
        adapters.ADAPTER_METHODS[spec.method].supports_fusion and spec.active and not spec.merged
        for spec in specs
    )
    is_trained = any(spec.trainable for spec in specs) and not recipe.trains_base
    return fused and is_trained and recipe.differential_privacy is None


@dataclass(frozen=True)
class _OpenTrial:
    """A run that is to be trained, open until ``exit_stack`` is closed."""

    position: int
    recipe: ClassifyRecipe
    adapter_sources: Mapping[str, AdapterSource]
    run: Run
    context: RunContext
    exit_stack: contextlib.ExitStack


def train_classifiers_jointly(
    recipes: Sequence[ClassifyRecipe], contexts: Sequence[RunContext]
) -> list[TrialOutcome]:
    """Train several recipes of ``classify`` in one pass; each is recorded as its own run.

    It is the run that it would be alone, but for a notice that names the others; its seconds and
    memory are those of the pass. A run that was finished before is returned as it is. One that
    fails does not stop the others.

    Args:
        recipes: for which ``can_train_jointly`` holds.
        contexts: of each recipe, with the same home.

    Returns:
        Outcomes in the order of the recipes.

    Raises:
        ClinpeftError: what concerns all of them: the recipes cannot be trained together, the notes
            or the base cannot be read.
    """
    processes = contexts[0].accelerator.num_processes
    if not can_train_jointly(recipes) or processes > 1:
        raise RecipeError(
            f"{len(recipes)} recipes that cannot be trained in one pass by {processes} "
            f"process{'es' * (processes > 1)}",
            location="recipes",
            hint=f"let them differ in {', '.join(sorted(TRIAL_SPECIFIC_SECTIONS))} only, "
            "or train them one after another",
        )
    check_base_options(recipes[0], contexts[0])
    outcomes: dict[int, TrialOutcome] = {}
    with contextlib.ExitStack() as all_trials:
        open_trials: list[_OpenTrial] = []
        for position, recipe in enumerate(recipes):
            with _record_errors(outcomes, position):
                trial = _open_trial(position, recipe, contexts[position], all_trials)
                if trial.run.record.state == "finished":
                    outcomes[position] = trial.run
                else:
                    open_trials.append(trial)
        if open_trials:
            _train_open_trials(open_trials, outcomes)
    return [outcomes[position] for position in range(len(recipes))]


@contextlib.contextmanager
def _record_errors(
    outcomes: dict[int, TrialOutcome], position: int, trial: _OpenTrial | None = None
) -> Iterator[None]:
    """Make an error of one trial its outcome; its run, if it is open, records the error."""
    try:
        try:
            yield
        except ClinpeftError:
            if trial is None:
                raise
            with trial.exit_stack:  # leaves the run's context with this error
                raise
    except ClinpeftError as error:
        outcomes[position] = error


def _open_trial(
    position: int,
    recipe: ClassifyRecipe,
    context: RunContext,
    all_trials: contextlib.ExitStack,
) -> _OpenTrial:
    recipe, sources = resolve_adapter_runs(recipe, context.home)
    hashes = compute_run_hashes(
        fingerprint_cohort_sources(recipe), recipe, adapter_hashes=hash_adapters(sources)
    )
    exit_stack = all_trials.enter_context(contextlib.ExitStack())
    run = exit_stack.enter_context(open_training_run(recipe, hashes, context))
    return _OpenTrial(position, recipe, sources, run, context, exit_stack)


def _train_open_trials(
    open_trials: Sequence[_OpenTrial], outcomes: dict[int, TrialOutcome]
) -> None:
    """Train open runs in one pass and record each."""
    first = open_trials[0]
    base, cohorts = load_base_and_cohorts(first.recipe, first.run, first.context)
    # One base, a stack a trial; a pass computes the base once for all of them.
    joint_model = adapters.attach_stacks(
        base,
        [
            adapters.TrialAdapters(
                trial.recipe.adapters,
                trial.recipe.seed,
                get_adapter_folders(trial.adapter_sources),
            )
            for trial in open_trials
        ],
    )
    setups: list[ClassifierSetup] = []
    for index, trial in enumerate(open_trials):
        with joint_model.isolate_stack(index) as stack:
            setups.append(build_classifier(trial.recipe, stack, cohorts, trial.context))
            fit_linear_probes(setups[-1], trial.run, trial.context)
    # Decided once: the trials share layers and memory.
    policy = create_runtime_policy(
        [trial.recipe for trial in open_trials],
        joint_model.stacks[0],
        setups[0].trainable,
        first.context,
    )
    runtime.optimize(joint_model.stacks[0], policy, *joint_model.stacks[1:])
    trainings = [
        TrialTraining(
            setup.trainable,
            trial.recipe.training,
            trial.run.folder / "checkpoints",
            create_training_callbacks(trial.run, trial.context),
        )
        for setup, trial in zip(setups, open_trials, strict=True)
    ]
    results = training.train_jointly(joint_model, trainings, first.context.accelerator)
    for index, (trial, result) in enumerate(zip(open_trials, results, strict=True)):
        with (
            _record_errors(outcomes, trial.position, trial),
            joint_model.isolate_stack(index),
        ):
            if isinstance(result, ClinpeftError):
                raise result
            notices = (
                *collect_classifier_notices(trial.recipe, trial.adapter_sources, cohorts),
                *joint_model.notices,
                *_name_other_trials(trial, open_trials),
            )
            outcomes[trial.position] = evaluate_and_record(
                trial.run, setups[index], FittedTraining(result), notices, trial.context
            )


def _name_other_trials(trial: _OpenTrial, open_trials: Sequence[_OpenTrial]) -> tuple[str, ...]:
    others = ", ".join(other.run.id for other in open_trials if other is not trial)
    if not others:
        return ()
    return (f"trained in one pass with {others}: seconds and memory are those of all",)
