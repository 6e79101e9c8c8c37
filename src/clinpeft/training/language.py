"""Language, as a course: windows of tokens, asked by an objective, with the loss a token."""

from __future__ import annotations

import numpy as np

from clinpeft import tokens
from clinpeft.adapters import Stack
from clinpeft.recipe import TrainingSpec
from clinpeft.tokens import Ints
from clinpeft.training.likelihood import perplexity_of
from clinpeft.training.loop import Course, Crew, Sums, additive
from clinpeft.training.objectives import Forward, Lesson, score

TUNING_PERPLEXITY = "tuning_perplexity"


def language(stack: Stack, forward: Forward, lesson: Lesson, spec: TrainingSpec, crew: Crew) -> Course:
    """How the adapters of a stack learn what ``lesson`` teaches; the best weights are those of the lowest perplexity on its tuning windows.

    Args:
        stack: what is trained.
        forward: ids and mask to logits, through the stack.
        lesson: windows and objective.
        spec: sizes of steps and micro-batches.
        crew: the processes.
    """
    lengths = lesson.encodings.lengths

    def loss(windows: Ints, step: int) -> Sums:
        batch = tokens.gather(lesson.encodings, windows).to(crew.device)
        scores = score(forward, lesson.asking(batch, lesson.tokenizer, (lesson.seed, step)), batch.attention_mask, lesson.vocabulary)
        return Sums(scores.negative_log_likelihood.sum(), float(scores.targets.sum()))

    def epoch(number: int) -> list[Ints]:
        order = np.random.default_rng([lesson.seed, number])
        return [lesson.train[part] for part in tokens.steps(lengths[lesson.train], spec.batch_tokens, order)] if len(lesson.train) else []

    def measure() -> dict[str, float]:
        return {TUNING_PERPLEXITY: perplexity_of(forward, lesson, lesson.tuning, spec.micro_batch_tokens, crew)}

    return Course(
        parameters=stack.trained,
        epoch=epoch,
        tokens=lambda windows: int(lengths[windows].sum()),
        backward=additive(loss, lambda windows: tokens.micro_batches(lengths, windows, spec.micro_batch_tokens), lesson.seed, crew),
        mode=stack.train,
        measure=measure if len(lesson.tuning) else None,
        best_by=TUNING_PERPLEXITY,
    )
