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
from clinpeft.workflows.context import Circumstances, code_version, hashes_of, opened, watch
from clinpeft.workflows.joint_trials import are_shareable, classify_together
from clinpeft.workflows.post_run import (
    compared,
    encoded,
    evaluated,
    exported,
    exported_to_onnx,
    predicted,
    searched,
)
from clinpeft.workflows.privacy import Asked as PrivacyAsked
from clinpeft.workflows.privacy import audited
from clinpeft.workflows.privacy import results_in as privacy_results
from clinpeft.workflows.provenance import released, verified

__all__ = [
    "Circumstances",
    "PrivacyAsked",
    "adapt",
    "are_shareable",
    "audited",
    "classify",
    "classify_together",
    "code_version",
    "compared",
    "embed",
    "encoded",
    "evaluated",
    "exported",
    "exported_to_onnx",
    "predicted",
    "privacy_results",
    "released",
    "searched",
    "verified",
]


def adapt(recipe: AdaptRecipe, home: Path, context: Circumstances) -> Run:
    """Notes in, a recorded adapter out. The same recipe, source, base and code give the same run, which is made once.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    accelerator = training.assemble()
    differential_privacy.refuse_inexact(recipe, accelerator)
    quantization.refuse_impossible(recipe, accelerator)
    hashes = hashes_of(
        sources.fingerprint(recipe.source),
        recipe,
        corpus.policy_version(recipe.corpus.deidentification),
    )
    with opened(recipe, hashes, home, context, accelerator) as run:
        if run.record.state == "finished":
            return differential_privacy.forgotten(run)
        base = models.load(quantization.whole(recipe.base), accelerator.device)
        encodings, attrition = language_model.encoded(recipe, base, home, accelerator, hashes)
        lesson = language_model.lesson_of(recipe, base, encodings)
        quantization.by_words(recipe, base, lesson, accelerator)
        scoring = functools.partial(language_model.scored, recipe, lesson, accelerator)
        before = language_model.remembered(
            home, run, encodings, base, accelerator, lambda: scoring(language_model.bare(base))
        )
        stack = adapters.attach(base, recipe.adapters, seed=recipe.seed)
        plan.settle_activations([recipe], [stack], accelerator)
        forward = functools.partial(adapters.logits, stack)
        course = training.language(stack, forward, lesson, recipe.training, accelerator)
        compilation.settle_compilation([recipe], [stack], course, home, accelerator)
        learned = differential_privacy.made(
            course, differential_privacy.of_windows(encodings), run, context
        )
        fitted = training.fit(
            learned.course,
            recipe.training,
            accelerator,
            run.folder / "checkpoints",
            watch(run, context),
        )
        unigram = training.unigram(lesson, lesson.train, language_model.asked(recipe, encodings))
        thought = {"unigram": unigram, "base": before, "adapted": scoring(forward)}
        results = language_model.perplexities(recipe, thought)
        dropped, noise = (
            (*attrition, encodings.attrition),
            differential_privacy.spent(learned, fitted),
        )
        return differential_privacy.forgotten(
            language_model.recorded(
                run, context, accelerator, stack, fitted, results, dropped, thought, noise
            )
        )


def classify(recipe: ClassifyRecipe, home: Path, context: Circumstances) -> Run:
    """Notes and their answers in, a recorded stack with its head out. The same question asked twice is one run.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    accelerator = training.assemble()
    differential_privacy.refuse_inexact(recipe, accelerator)
    quantization.refuse_impossible(recipe, accelerator)
    recipe, origins = classifier.resolved(recipe, home)
    hashes = hashes_of(
        task_cohorts.fingerprint(recipe), recipe, adapters=classifier.adapter_hashes(origins)
    )
    with opened(recipe, hashes, home, context, accelerator) as run:
        if run.record.state == "finished":
            return differential_privacy.forgotten(run)
        asked = task_cohorts.cohorts_of(recipe, home, accelerator, hashes)
        base = models.load(
            quantization.whole(classifier.precise(recipe.base)), accelerator.device, "vectors"
        )
        read = task_cohorts.encoded(recipe, base, asked, home, accelerator)
        quantization.by_documents(recipe, base, read[0], accelerator)
        stack = adapters.attach(
            base, recipe.adapters, recipe.seed, classifier.folders(origins), recipe.base.trainable
        )
        plan.settle_activations([recipe], [stack], accelerator)
        answering = classifier.answering(recipe, stack, read, home, accelerator)
        witness = adapters.watch(stack, answering.head_parameters)
        compilation.settle_compilation([recipe], [stack], answering.course, home, accelerator)
        classifier.probed(recipe, answering, read, home, accelerator, run, context)
        learned = differential_privacy.made(
            answering.course, differential_privacy.of_documents(read), run, context
        )
        fitted = training.fit(
            learned.course,
            recipe.training,
            accelerator,
            run.folder / "checkpoints",
            watch(run, context),
        )
        liveness = witness.testify(answering.probe)
        found = classifier.scored(recipe, answering, read, home, accelerator)
        told, noise = (
            classifier.notices(recipe, origins, read),
            differential_privacy.spent(learned, fitted),
        )
        return differential_privacy.forgotten(
            classifier.recorded(
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


def embed(recipe: EmbedRecipe, home: Path, context: Circumstances) -> Run:
    """Books in, a recorded encoder out, measured before and after on chapters that it has not read.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    accelerator = training.assemble()
    quantization.refuse_impossible(recipe, accelerator)
    recipe, origins = classifier.resolved(recipe, home)
    hashes = hashes_of(
        textbooks.fingerprint(recipe), recipe, adapters=classifier.adapter_hashes(origins)
    )
    with opened(recipe, hashes, home, context, accelerator) as run:
        if run.record.state == "finished":
            return run
        shelf = textbooks.shelf(recipe, home, accelerator, hashes)
        asked = embedding_evaluation.asking(shelf, recipe.evaluation, recipe.split.seed)
        base, load_seconds = encoder.loaded(classifier.precise(recipe.base), accelerator)
        embedding_config = encoder.manner_of(recipe)
        quantization.by_texts(recipe, base, embedding_config, shelf, accelerator)
        before = encoder.zero_shot(recipe, base, embedding_config, asked, home)
        stack = adapters.attach(
            base, recipe.adapters, recipe.seed, classifier.folders(origins), recipe.base.trainable
        )
        plan.settle_activations([recipe], [stack], accelerator)
        learning = encoder.learning(recipe, stack, embedding_config, shelf, accelerator)
        compilation.settle_compilation([recipe], [stack], learning.course, home, accelerator)
        witness = adapters.watch(stack)
        fitted = training.fit(
            learning.course,
            recipe.training,
            accelerator,
            run.folder / "checkpoints",
            watch(run, context),
        )
        liveness = witness.testify(learning.probe)
        after = encoder.measured(stack, embedding_config, asked, "adapted")
        return encoder.recorded(
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
