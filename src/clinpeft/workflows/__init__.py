"""READ FIRST: the paper's method, one room a line.

``adapt`` is the first half of arXiv 2307.03042: a frozen language model learns the language of clinical notes with a small adapter. ``classify`` is
the second: a stack of adapters, the first of them loaded from the run of ``adapt``, and a head learn to answer a clinical question. ``embed`` is
arXiv 2511.19739: books become pairs, and a backbone learns which texts belong together.

```
runs.py      a run opened, held and logged        language.py   the parts of adapt
questions.py notes -> documents to be asked       answers.py    the parts of classify
books.py     books -> pairs, sets to search       vectors.py    what vectors are asked
encoders.py  the parts of embed                   later.py      what is done with a finished run
provenance.py  is a run what it was, what leaves  privacy.py    what a run gives away
trials.py    several of classify in one pass      private.py    differential privacy in training
planning.py  what a run will take                 gate.py       a base in float8, let through or not
compiling.py  are norms and gates compiled
```
"""

from __future__ import annotations

import functools
from pathlib import Path

from clinpeft import adapters, models, training
from clinpeft.data.notes import corpus, sources
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.runs import Run
from clinpeft.workflows import (
    classifier,
    compilation,
    differential_privacy,
    embedding_evaluation,
    encoder,
    language_model,
    plan,
    quantization,
    task_cohorts,
    textbooks,
)
from clinpeft.workflows.context import (
    RunContext,
    compute_run_hashes,
    create_training_callbacks,
    get_code_version,
    open_training_run,
)
from clinpeft.workflows.joint_trials import can_train_jointly, train_classifiers_jointly
from clinpeft.workflows.post_run import (
    compare_run_results,
    encode_text_file,
    evaluate_run_retrieval,
    export_run_encoder,
    export_run_to_onnx,
    predict_new_notes,
    rescore_predictions,
)
from clinpeft.workflows.privacy import PrivacyAuditConfig as PrivacyAsked
from clinpeft.workflows.privacy import audit_run_privacy
from clinpeft.workflows.privacy import read_privacy_results as privacy_results
from clinpeft.workflows.provenance import release_run_folder, verify_run_provenance

__all__ = [
    "RunContext",
    "PrivacyAsked",
    "adapt_language_model",
    "can_train_jointly",
    "audit_run_privacy",
    "train_classifier",
    "train_classifiers_jointly",
    "get_code_version",
    "compare_run_results",
    "train_embedding_model",
    "encode_text_file",
    "rescore_predictions",
    "export_run_encoder",
    "export_run_to_onnx",
    "predict_new_notes",
    "privacy_results",
    "release_run_folder",
    "evaluate_run_retrieval",
    "verify_run_provenance",
]


def adapt_language_model(recipe: AdaptRecipe, home: Path, context: RunContext) -> Run:
    """Notes in, a recorded adapter out. The same recipe, source, base and code give the same run, which is made once.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    accelerator = training.create_accelerator()
    differential_privacy.check_differential_privacy(recipe, accelerator)
    quantization.check_base_options(recipe, accelerator)
    hashes = compute_run_hashes(
        sources.fingerprint_notes(recipe.source),
        recipe,
        corpus.format_policy_version(recipe.corpus.deidentification),
    )
    with open_training_run(recipe, hashes, home, context, accelerator) as run:
        if run.record.state == "finished":
            return differential_privacy.discard_noise_seed(run)
        base = models.load_base_model(
            quantization.disable_quantization(recipe.base), accelerator.device
        )
        encodings, attrition = language_model.prepare_corpus_encodings(
            recipe, base, home, accelerator, hashes
        )
        lesson = language_model.build_language_data(recipe, base, encodings)
        quantization.quantize_checking_perplexity(recipe, base, lesson, accelerator)
        scoring = functools.partial(
            language_model.score_note_likelihoods, recipe, lesson, accelerator
        )
        before = language_model.cache_base_likelihoods(
            home,
            run,
            encodings,
            base,
            accelerator,
            lambda: scoring(language_model.build_base_forward(base)),
        )
        stack = adapters.attach_adapters(base, recipe.adapters, seed=recipe.seed)
        plan.choose_checkpointing([recipe], [stack], accelerator)
        forward = functools.partial(adapters.compute_token_logits, stack)
        course = training.build_language_modeling_trainable(
            stack, forward, lesson, recipe.training, accelerator
        )
        compilation.choose_compilation([recipe], [stack], course, home, accelerator)
        learned = differential_privacy.apply_differential_privacy(
            course, differential_privacy.get_window_subjects(encodings), run, context
        )
        fitted = training.run_training(
            learned.trainable,
            recipe.training,
            accelerator,
            run.folder / "checkpoints",
            create_training_callbacks(run, context),
        )
        unigram = training.compute_unigram_likelihoods(
            lesson,
            lesson.train_windows,
            language_model.select_evaluation_windows(recipe, encodings),
        )
        thought = {"unigram": unigram, "base": before, "adapted": scoring(forward)}
        results = language_model.compute_perplexity_results(recipe, thought)
        dropped, noise = (
            (*attrition, encodings.attrition),
            differential_privacy.account_privacy(learned, fitted),
        )
        return differential_privacy.discard_noise_seed(
            language_model.record_adapt_run(
                run, context, accelerator, stack, fitted, results, dropped, thought, noise
            )
        )


def train_classifier(recipe: ClassifyRecipe, home: Path, context: RunContext) -> Run:
    """Notes and their answers in, a recorded stack with its head out. The same question asked twice is one run.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    accelerator = training.create_accelerator()
    differential_privacy.check_differential_privacy(recipe, accelerator)
    quantization.check_base_options(recipe, accelerator)
    recipe, origins = classifier.resolve_adapter_runs(recipe, home)
    hashes = compute_run_hashes(
        task_cohorts.fingerprint_cohort_sources(recipe),
        recipe,
        adapter_hashes=classifier.hash_adapters(origins),
    )
    with open_training_run(recipe, hashes, home, context, accelerator) as run:
        if run.record.state == "finished":
            return differential_privacy.discard_noise_seed(run)
        asked = task_cohorts.prepare_cohorts(recipe, home, accelerator, hashes)
        base = models.load_base_model(
            quantization.disable_quantization(classifier.set_trainable_precision(recipe.base)),
            accelerator.device,
            "vectors",
        )
        read = task_cohorts.prepare_cohort_documents(recipe, base, asked, home, accelerator)
        quantization.quantize_checking_documents(recipe, base, read[0], accelerator)
        stack = adapters.attach_adapters(
            base,
            recipe.adapters,
            recipe.seed,
            classifier.get_adapter_folders(origins),
            recipe.base.trainable,
        )
        plan.choose_checkpointing([recipe], [stack], accelerator)
        answering = classifier.build_classifier_setup(recipe, stack, read, home, accelerator)
        witness = adapters.monitor_adapters(stack, answering.head_parameters)
        compilation.choose_compilation([recipe], [stack], answering.trainable, home, accelerator)
        classifier.train_linear_probes(recipe, answering, read, home, accelerator, run, context)
        learned = differential_privacy.apply_differential_privacy(
            answering.trainable, differential_privacy.get_document_subjects(read), run, context
        )
        fitted = training.run_training(
            learned.trainable,
            recipe.training,
            accelerator,
            run.folder / "checkpoints",
            create_training_callbacks(run, context),
        )
        liveness = witness.verify(answering.compute_probe_logits)
        found = classifier.score_classifier(recipe, answering, read, home, accelerator)
        told, noise = (
            classifier.collect_classifier_notices(recipe, origins, read),
            differential_privacy.account_privacy(learned, fitted),
        )
        return differential_privacy.discard_noise_seed(
            classifier.record_classifier_run(
                recipe,
                run,
                context,
                accelerator,
                answering,
                fitted,
                liveness,
                found,
                told,
                read,
                noise,
            )
        )


def train_embedding_model(recipe: EmbedRecipe, home: Path, context: RunContext) -> Run:
    """Books in, a recorded encoder out, measured before and after on chapters that it has not read.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    accelerator = training.create_accelerator()
    quantization.check_base_options(recipe, accelerator)
    recipe, origins = classifier.resolve_adapter_runs(recipe, home)
    hashes = compute_run_hashes(
        textbooks.fingerprint_embedding_data(recipe),
        recipe,
        adapter_hashes=classifier.hash_adapters(origins),
    )
    with open_training_run(recipe, hashes, home, context, accelerator) as run:
        if run.record.state == "finished":
            return run
        shelf = textbooks.prepare_embedding_data(recipe, home, accelerator, hashes)
        asked = embedding_evaluation.build_embedding_benchmark(
            shelf, recipe.evaluation, recipe.split.seed
        )
        base, load_seconds = encoder.load_base_timed(
            classifier.set_trainable_precision(recipe.base), accelerator
        )
        embedding_config = encoder.resolve_recipe_embedding_config(recipe)
        quantization.quantize_checking_texts(recipe, base, embedding_config, shelf, accelerator)
        before = encoder.evaluate_zero_shot(recipe, base, embedding_config, asked, home)
        stack = adapters.attach_adapters(
            base,
            recipe.adapters,
            recipe.seed,
            classifier.get_adapter_folders(origins),
            recipe.base.trainable,
        )
        plan.choose_checkpointing([recipe], [stack], accelerator)
        learning = encoder.build_contrastive_setup(
            recipe, stack, embedding_config, shelf, accelerator
        )
        compilation.choose_compilation([recipe], [stack], learning.trainable, home, accelerator)
        witness = adapters.monitor_adapters(stack)
        fitted = training.run_training(
            learning.trainable,
            recipe.training,
            accelerator,
            run.folder / "checkpoints",
            create_training_callbacks(run, context),
        )
        liveness = witness.verify(learning.compute_probe_vectors)
        after = encoder.evaluate_encoder(stack, embedding_config, asked, "adapted")
        return encoder.record_encoder_run(
            recipe,
            run,
            context,
            accelerator,
            stack,
            embedding_config,
            fitted,
            liveness,
            (before, after),
            asked,
            learning,
            load_seconds,
        )
