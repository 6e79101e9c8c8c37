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

from clinpeft import adapters, corpora, models, sources, training
from clinpeft.pipeline import answers, books, compiling, encoders, gate, language, planning, private, questions, vectors
from clinpeft.pipeline.later import compared, encoded, evaluated, exported, exported_to_onnx, predicted, searched
from clinpeft.pipeline.privacy import Asked as PrivacyAsked
from clinpeft.pipeline.privacy import audited
from clinpeft.pipeline.privacy import results_in as privacy_results
from clinpeft.pipeline.provenance import released, verified
from clinpeft.pipeline.runs import Circumstances, code_version, hashes_of, opened, watch
from clinpeft.pipeline.trials import are_shareable, classify_together
from clinpeft.recipe import AdaptRecipe, ClassifyRecipe, EmbedRecipe
from clinpeft.registry import Run

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


def adapt(recipe: AdaptRecipe, home: Path, around: Circumstances) -> Run:
    """Notes in, a recorded adapter out. The same recipe, source, base and code give the same run, which is made once.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    crew = training.assemble()
    private.refuse_inexact(recipe, crew)
    gate.refuse_impossible(recipe, crew)
    hashes = hashes_of(sources.fingerprint(recipe.source), recipe, corpora.policy_version(recipe.corpus.deidentification))
    with opened(recipe, hashes, home, around, crew) as run:
        if run.record.state == "finished":
            return private.forgotten(run)
        base = models.load(gate.whole(recipe.base), crew.device)
        encodings, attrition = language.encoded(recipe, base, home, crew, hashes)
        lesson = language.lesson_of(recipe, base, encodings)
        gate.by_words(recipe, base, lesson, crew)
        scoring = functools.partial(language.scored, recipe, lesson, crew)
        before = language.remembered(home, run, encodings, base, crew, lambda: scoring(language.bare(base)))
        stack = adapters.attach(base, recipe.adapters, seed=recipe.seed)
        planning.settle_activations([recipe], [stack], crew)
        forward = functools.partial(adapters.logits, stack)
        course = training.language(stack, forward, lesson, recipe.training, crew)
        compiling.settle_compilation([recipe], [stack], course, home, crew)
        learned = private.made(course, private.of_windows(encodings), run, around)
        fitted = training.fit(learned.course, recipe.training, crew, run.folder / "checkpoints", watch(run, around))
        unigram = training.unigram(lesson, lesson.train, language.asked(recipe, encodings))
        thought = {"unigram": unigram, "base": before, "adapted": scoring(forward)}
        results = language.perplexities(recipe, thought)
        dropped, noise = (*attrition, encodings.attrition), private.spent(learned, fitted)
        return private.forgotten(language.recorded(run, around, crew, stack, fitted, results, dropped, thought, noise))


def classify(recipe: ClassifyRecipe, home: Path, around: Circumstances) -> Run:
    """Notes and their answers in, a recorded stack with its head out. The same question asked twice is one run.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    crew = training.assemble()
    private.refuse_inexact(recipe, crew)
    gate.refuse_impossible(recipe, crew)
    recipe, origins = answers.resolved(recipe, home)
    hashes = hashes_of(questions.fingerprint(recipe), recipe, adapters=answers.adapter_hashes(origins))
    with opened(recipe, hashes, home, around, crew) as run:
        if run.record.state == "finished":
            return private.forgotten(run)
        asked = questions.cohorts_of(recipe, home, crew, hashes)
        base = models.load(gate.whole(answers.precise(recipe.base)), crew.device, "vectors")
        read = questions.encoded(recipe, base, asked, home, crew)
        gate.by_documents(recipe, base, read[0], crew)
        stack = adapters.attach(base, recipe.adapters, recipe.seed, answers.folders(origins), recipe.base.trainable)
        planning.settle_activations([recipe], [stack], crew)
        answering = answers.answering(recipe, stack, read, home, crew)
        witness = adapters.watch(stack, answering.head_parameters)
        compiling.settle_compilation([recipe], [stack], answering.course, home, crew)
        answers.probed(recipe, answering, read, home, crew, run, around)
        learned = private.made(answering.course, private.of_documents(read), run, around)
        fitted = training.fit(learned.course, recipe.training, crew, run.folder / "checkpoints", watch(run, around))
        liveness = witness.testify(answering.probe)
        found = answers.scored(recipe, answering, read, home, crew)
        told, noise = answers.notices(recipe, origins, read), private.spent(learned, fitted)
        return private.forgotten(answers.recorded(recipe, run, around, crew, answering, fitted, liveness, found, told, read, noise))


def embed(recipe: EmbedRecipe, home: Path, around: Circumstances) -> Run:
    """Books in, a recorded encoder out, measured before and after on chapters that it has not read.

    Raises:
        ClinpeftError: whatever a room cannot do; the run's folder says so too.
    """
    crew = training.assemble()
    gate.refuse_impossible(recipe, crew)
    recipe, origins = answers.resolved(recipe, home)
    hashes = hashes_of(books.fingerprint(recipe), recipe, adapters=answers.adapter_hashes(origins))
    with opened(recipe, hashes, home, around, crew) as run:
        if run.record.state == "finished":
            return run
        shelf = books.shelf(recipe, home, crew, hashes)
        asked = vectors.asking(shelf, recipe.evaluation, recipe.split.seed)
        base, load_seconds = encoders.loaded(answers.precise(recipe.base), crew)
        manner = encoders.manner_of(recipe)
        gate.by_texts(recipe, base, manner, shelf, crew)
        before = encoders.zero_shot(recipe, base, manner, asked, home)
        stack = adapters.attach(base, recipe.adapters, recipe.seed, answers.folders(origins), recipe.base.trainable)
        planning.settle_activations([recipe], [stack], crew)
        learning = encoders.learning(recipe, stack, manner, shelf, crew)
        compiling.settle_compilation([recipe], [stack], learning.course, home, crew)
        witness = adapters.watch(stack)
        fitted = training.fit(learning.course, recipe.training, crew, run.folder / "checkpoints", watch(run, around))
        liveness = witness.testify(learning.probe)
        after = encoders.measured(stack, manner, asked, "adapted")
        return encoders.recorded(recipe, run, around, crew, stack, manner, fitted, liveness, (before, after), asked, learning, load_seconds)
