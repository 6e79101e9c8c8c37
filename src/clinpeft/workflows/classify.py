"""Clinical prediction from notes: a base, a stack of adapters and a head.

The second half of arXiv 2307.03042, section 3 (Downstream LLaMA-LoRA): the adapter of a run of
``adapt`` and a new one are attached to the frozen base, and both or the new one alone are trained
with a linear head on a clinical outcome.
"""

from __future__ import annotations

import functools

from clinpeft import adapters, runtime
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import ClassifyRecipe
from clinpeft.runs import Run
from clinpeft.workflows.adapter_sources import (
    get_adapter_folders,
    hash_adapters,
    resolve_adapter_runs,
)
from clinpeft.workflows.base_loading import check_base_options, load_base, prepare_document_check
from clinpeft.workflows.classification_results import (
    collect_classifier_notices,
    predict_and_evaluate,
    record_classifier_run,
)
from clinpeft.workflows.classifier import (
    ClassifierSetup,
    build_classifier,
    check_classifier_output,
    fit_linear_probes,
)
from clinpeft.workflows.comparison import compare_predictions
from clinpeft.workflows.context import RunContext, compute_run_hashes, open_training_run
from clinpeft.workflows.differential_privacy import (
    check_differential_privacy,
    discard_noise_seed,
    get_document_subjects,
    list_classifier_requirements,
)
from clinpeft.workflows.fitting import FittedTraining, fit
from clinpeft.workflows.memory_estimates import create_runtime_policy
from clinpeft.workflows.privacy_attacks import audit_classifier
from clinpeft.workflows.task_cohorts import (
    EncodedCohort,
    build_cohorts,
    encode_cohort_documents,
    fingerprint_cohort_sources,
)
from clinpeft.workflows.workflow import Workflow


def train_classifier(recipe: ClassifyRecipe, context: RunContext) -> Run:
    """Train adapters and heads on the labels of a cohort, and evaluate on held-out stays.

    The same recipe, source, base, adapters and code give the same run, which is trained once.

    Args:
        recipe: of kind ``classify``.
        context: home, processes, clock and callbacks.

    Raises:
        ClinpeftError: a step cannot be done; the run's record says so, too.
    """
    check_differential_privacy(recipe, context, list_classifier_requirements(recipe))
    check_base_options(recipe, context)
    recipe, sources = resolve_adapter_runs(recipe, context.home)
    hashes = compute_run_hashes(
        fingerprint_cohort_sources(recipe), recipe, adapter_hashes=hash_adapters(sources)
    )
    with open_training_run(recipe, hashes, context) as run:
        if run.record.state == "finished":
            return discard_noise_seed(run)
        # Cohort with labels and splits by subject, and its notes as tokens of the base.
        base, cohorts = load_base_and_cohorts(recipe, run, context)
        folders = get_adapter_folders(sources)
        # Earlier adapters of ``from_run`` and new ones, first to last, on the frozen base.
        stack = adapters.attach_adapters(
            base, recipe.adapters, recipe.seed, folders, recipe.base.trainable
        )
        # A linear head for each task on the pooled vector of a note.
        setup = build_classifier(recipe, stack, cohorts, context)
        runtime.optimize(stack, create_runtime_policy([recipe], stack, setup.trainable, context))
        # Optional: heads alone, on vectors of the untrained stack.
        fit_linear_probes(setup, run, context)
        # Adapters and heads together.
        fitted = fit(setup.trainable, get_document_subjects(cohorts), run, context)
        notices = collect_classifier_notices(recipe, sources, cohorts)
        return discard_noise_seed(evaluate_and_record(run, setup, fitted, notices, context))


def load_base_and_cohorts(
    recipe: ClassifyRecipe, run: Run, context: RunContext
) -> tuple[FrozenBaseModel, list[EncodedCohort]]:
    """Build the cohorts, load the base, and encode the cohorts' notes with its tokenizer."""
    cohorts = build_cohorts(recipe, run.record.hashes, context)
    check = functools.partial(prepare_document_check, recipe, cohorts, context)
    base = load_base(recipe, context, check)
    return base, encode_cohort_documents(recipe, base, cohorts, context)


def evaluate_and_record(
    run: Run,
    setup: ClassifierSetup,
    fitted: FittedTraining,
    notices: tuple[str, ...],
    context: RunContext,
) -> Run:
    """Verify that every adapter took part, evaluate on held-out stays, and record the run."""
    activity = setup.monitor.verify(setup.compute_probe_logits)
    results = predict_and_evaluate(setup, context)
    return record_classifier_run(run, setup, fitted, (results, activity), notices, context)


CLASSIFY = Workflow(
    kind="classify",
    recipe_class=ClassifyRecipe,
    purpose="vectors",
    run=train_classifier,
    fingerprint=fingerprint_cohort_sources,
    compare=compare_predictions,
    check_reference_output=check_classifier_output,
    audit_privacy=audit_classifier,
)
