"""Domain-adaptive pretraining: a language model is adapted to clinical notes by a small adapter.

The first half of arXiv 2307.03042, section 3 (Clinical LLaMA-LoRA): the base stays frozen, and
an adapter is trained on notes with the base's own pretraining objective.
"""

from __future__ import annotations

import functools

from clinpeft import adapters, runtime, training
from clinpeft.data import notes as note_corpus
from clinpeft.data import sources
from clinpeft.recipe import AdaptRecipe
from clinpeft.runs import Run
from clinpeft.workflows.base_loading import (
    check_base_options,
    load_base,
    prepare_perplexity_check,
)
from clinpeft.workflows.comparison import compare_likelihoods
from clinpeft.workflows.context import RunContext, compute_run_hashes, open_training_run
from clinpeft.workflows.differential_privacy import (
    check_differential_privacy,
    discard_noise_seed,
    get_window_subjects,
    list_corpus_requirements,
)
from clinpeft.workflows.fitting import fit
from clinpeft.workflows.language_model import (
    build_language_data,
    check_language_model_output,
    prepare_corpus,
    record_adapt_run,
    score_all_states,
    score_base_notes,
)
from clinpeft.workflows.memory_estimates import create_runtime_policy
from clinpeft.workflows.privacy_attacks import audit_language_model
from clinpeft.workflows.workflow import Workflow


def adapt_language_model(recipe: AdaptRecipe, context: RunContext) -> Run:
    """Train an adapter on a corpus of notes, and measure perplexity before and after.

    The same recipe, source, base and code give the same run, which is trained once.

    Args:
        recipe: of kind ``adapt``.
        context: home, processes, clock and callbacks.

    Raises:
        ClinpeftError: a step cannot be done; the run's record says so, too.
    """
    check_differential_privacy(recipe, context, list_corpus_requirements(recipe))
    check_base_options(recipe, context)
    policy = note_corpus.format_policy_version(recipe.corpus.deidentification)
    hashes = compute_run_hashes(sources.fingerprint_notes(recipe.source), recipe, policy)
    with open_training_run(recipe, hashes, context) as run:
        if run.record.state == "finished":
            return discard_noise_seed(run)
        # Frozen base (measured before and after, if it is quantized).
        check = functools.partial(prepare_perplexity_check, recipe, hashes, context)
        base = load_base(recipe, context, check)
        corpus = prepare_corpus(recipe, base, hashes, context)
        data = build_language_data(recipe, base, corpus.encodings)
        # What the base says of every evaluation note, for the ratio of perplexities.
        base_likelihoods = score_base_notes(run, data, base, context)
        # W + (alpha / r) B A on the frozen W, or whichever methods the recipe names.
        stack = adapters.attach_adapters(base, recipe.adapters, seed=recipe.seed)
        forward = functools.partial(adapters.compute_token_logits, stack)
        trainable = training.build_language_modeling_trainable(
            stack, forward, data, recipe.training, context.accelerator
        )
        # Checkpointing and compilation: nothing that changes what is trained.
        runtime.optimize(stack, create_runtime_policy([recipe], stack, trainable, context))
        fitted = fit(trainable, get_window_subjects(corpus.encodings), run, context)
        likelihoods = score_all_states(recipe, data, base_likelihoods, forward, context)
        return discard_noise_seed(
            record_adapt_run(run, stack, fitted, likelihoods, corpus, context)
        )


ADAPT = Workflow(
    kind="adapt",
    recipe_class=AdaptRecipe,
    purpose="language",
    run=adapt_language_model,
    fingerprint=lambda recipe: sources.fingerprint_notes(recipe.source),
    compare=compare_likelihoods,
    check_reference_output=check_language_model_output,
    audit_privacy=audit_language_model,
)
