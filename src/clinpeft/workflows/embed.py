"""Text embeddings adapted to a field: contrastive training on pairs of textbooks.

The method of arXiv 2511.19739, section 3: pairs are built from textbooks, adapters on an encoder
are trained with a contrastive loss, and the vectors are evaluated before and after on chapters that
were not trained on.
"""

from __future__ import annotations

import functools

from clinpeft import adapters, runtime
from clinpeft.recipe import EmbedRecipe
from clinpeft.runs import Run
from clinpeft.workflows.adapter_sources import (
    get_adapter_folders,
    hash_adapters,
    resolve_adapter_runs,
)
from clinpeft.workflows.base_loading import (
    check_base_options,
    load_base_timed,
    prepare_text_check,
)
from clinpeft.workflows.comparison import compare_pair_scores
from clinpeft.workflows.context import RunContext, compute_run_hashes, open_training_run
from clinpeft.workflows.embedding_benchmark import build_embedding_benchmark
from clinpeft.workflows.embedding_evaluation import evaluate_embeddings
from clinpeft.workflows.embedding_results import (
    ADAPTED_STATE,
    EmbeddingOutcome,
    evaluate_zero_shot,
    record_encoder_run,
)
from clinpeft.workflows.encoder import (
    build_encoder,
    check_encoder_output,
    create_encode_function,
    resolve_recipe_embedding_config,
)
from clinpeft.workflows.fitting import fit
from clinpeft.workflows.memory_estimates import create_runtime_policy
from clinpeft.workflows.privacy_attacks import audit_encoder
from clinpeft.workflows.textbooks import fingerprint_embedding_data, prepare_embedding_data
from clinpeft.workflows.workflow import Workflow


def train_embedding_model(recipe: EmbedRecipe, context: RunContext) -> Run:
    """Train an encoder on pairs of textbooks, and evaluate its vectors before and after.

    The same recipe, books, base, adapters and code give the same run, which is trained once.

    Args:
        recipe: of kind ``embed``.
        context: home, processes, clock and callbacks.

    Raises:
        ClinpeftError: a step cannot be done; the run's record says so, too.
    """
    check_base_options(recipe, context)
    recipe, sources = resolve_adapter_runs(recipe, context.home)
    hashes = compute_run_hashes(
        fingerprint_embedding_data(recipe), recipe, adapter_hashes=hash_adapters(sources)
    )
    with open_training_run(recipe, hashes, context) as run:
        if run.record.state == "finished":
            return run
        # Passages and pairs of textbooks, without texts of the evaluation.
        data = prepare_embedding_data(recipe, hashes, context)
        benchmark = build_embedding_benchmark(data, recipe.evaluation, recipe.split.seed)
        config = resolve_recipe_embedding_config(recipe)
        check = functools.partial(prepare_text_check, recipe, data, config, context)
        base, load_seconds = load_base_timed(recipe, context, check)
        # The base as it is, and the controls.
        before = evaluate_zero_shot(recipe, base, config, benchmark, context)
        folders = get_adapter_folders(sources)
        stack = adapters.attach_adapters(
            base, recipe.adapters, recipe.seed, folders, recipe.base.trainable
        )
        # InfoNCE or triplet loss over the pairs of a step.
        setup = build_encoder(recipe, stack, config, data, context)
        runtime.optimize(stack, create_runtime_policy([recipe], stack, setup.trainable, context))
        fitted = fit(setup.trainable, None, run, context)
        # Evidence that each adapter changed and reached the vectors.
        activity = setup.monitor.verify(setup.compute_probe_vectors)
        encode = create_encode_function(stack, config)
        after = evaluate_embeddings(benchmark, encode, config, ADAPTED_STATE)
        outcome = EmbeddingOutcome(benchmark, before, after, activity, load_seconds)
        return record_encoder_run(recipe, run, setup, fitted, outcome, context)


EMBED = Workflow(
    kind="embed",
    recipe_class=EmbedRecipe,
    purpose="vectors",
    run=train_embedding_model,
    fingerprint=fingerprint_embedding_data,
    compare=compare_pair_scores,
    check_reference_output=check_encoder_output,
    audit_privacy=audit_encoder,
)
