"""Language, as a course: windows of tokens, asked by an objective, with the loss a token."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from clinpeft import tokenization
from clinpeft.adapters import Reading, Stack, rescue
from clinpeft.recipe import TrainingSpec
from clinpeft.tokenization import Ints
from clinpeft.training.likelihood import perplexity_of
from clinpeft.training.memory import spared
from clinpeft.training.objectives import Forward, Lesson, score, summed
from clinpeft.training.trainer import Course, Crew, Share, Sums

TUNING_PERPLEXITY = "tuning_perplexity"


def language(
    stack: Stack, forward: Forward, lesson: Lesson, spec: TrainingSpec, accelerator: Crew
) -> Course:
    """How the adapters of a stack learn what ``lesson`` teaches; the best weights are those of the lowest perplexity on its tuning windows.

    Args:
        stack: what is trained.
        forward: ids and mask to logits, through the stack.
        lesson: windows and objective.
        spec: sizes of steps and micro-batches.
        accelerator: the processes.
    """
    lengths = lesson.encodings.lengths

    def loss(windows: Ints, step: int) -> Sums:
        batch = tokenization.gather(lesson.encodings, windows).to(accelerator.device)
        scores = score(
            forward,
            lesson.asking(batch, lesson.tokenizer, (lesson.seed, step)),
            batch.attention_mask,
            lesson.vocabulary,
        )
        return Sums(scores.negative_log_likelihood.sum(), float(scores.targets.sum()))

    def reading(windows: Ints, step: int) -> Reading[Sums]:
        batch = tokenization.gather(lesson.encodings, windows).to(accelerator.device)
        question = lesson.asking(batch, lesson.tokenizer, (lesson.seed, step))

        def answer(found: torch.Tensor) -> Sums:
            total, targets = summed(found, question, batch.attention_mask, lesson.vocabulary)
            return Sums(total, float(targets))

        return Reading(question.input_ids, batch.attention_mask, answer)

    def grouped(windows: Ints) -> list[Ints]:
        return tokenization.micro_batches(lengths, windows, spec.micro_batch_tokens)

    def epoch(number: int) -> list[Ints]:
        order = np.random.default_rng([lesson.seed, number])
        return (
            [
                lesson.train[part]
                for part in tokenization.steps(lengths[lesson.train], spec.batch_tokens, order)
            ]
            if len(lesson.train)
            else []
        )

    def measure() -> dict[str, float]:
        return {
            TUNING_PERPLEXITY: perplexity_of(
                forward, lesson, lesson.tuning, spec.micro_batch_tokens, accelerator
            )
        }

    return Course(
        parameters=stack.trained,
        epoch=epoch,
        tokens=lambda windows: int(lengths[windows].sum()),
        backward=spared(
            loss,
            grouped,
            stack.trained.values(),
            lesson.seed,
            accelerator,
            partial(rescue, stack) if spec.activations == "auto" else None,
        ),
        mode=stack.train,
        measure=measure if len(lesson.tuning) else None,
        best_by=TUNING_PERPLEXITY,
        share=Share(grouped, reading, lesson.seed, words=True, vocabulary=lesson.vocabulary),
    )
