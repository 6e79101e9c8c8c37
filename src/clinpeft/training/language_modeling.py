"""Language, as a course: windows of tokens, asked by an objective, with the loss a token."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from clinpeft import tokenization
from clinpeft.adapters import PackedInput, Stack, enable_checkpointing_on_oom
from clinpeft.recipe import TrainingSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.likelihood import compute_window_perplexity
from clinpeft.training.memory import build_backward_with_oom_retry
from clinpeft.training.objectives import (
    LanguageModelingData,
    TokenLogitFunction,
    compute_batch_likelihoods,
    sum_packed_loss,
)
from clinpeft.training.trainer import JointStep, LossSum, Trainable

TUNING_PERPLEXITY = "tuning_perplexity"


def build_language_modeling_trainable(
    stack: Stack,
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    spec: TrainingSpec,
    accelerator: Accelerator,
) -> Trainable:
    """How the adapters of a stack learn what ``data`` teaches; the best weights are those of the lowest perplexity on its tuning windows.

    Args:
        stack: what is trained.
        forward: ids and mask to logits, through the stack.
        data: windows and objective.
        spec: sizes of steps and micro-batches.
        accelerator: the processes.
    """
    lengths = data.encodings.lengths

    def loss(windows: IndexArray, step: int) -> LossSum:
        batch = tokenization.gather_windows(data.encodings, windows).to(accelerator.device)
        scores = compute_batch_likelihoods(
            forward,
            data.label_batch(batch, data.tokenizer, (data.seed, step)),
            batch.attention_mask,
            data.language_model_head,
        )
        return LossSum(scores.negative_log_likelihood.sum(), float(scores.target_counts.sum()))

    def reading(windows: IndexArray, step: int) -> PackedInput[LossSum]:
        batch = tokenization.gather_windows(data.encodings, windows).to(accelerator.device)
        question = data.label_batch(batch, data.tokenizer, (data.seed, step))

        def answer(found: torch.Tensor) -> LossSum:
            total, targets = sum_packed_loss(
                found, question, batch.attention_mask, data.language_model_head
            )
            return LossSum(total, float(targets))

        return PackedInput(question.input_ids, batch.attention_mask, answer)

    def grouped(windows: IndexArray) -> list[IndexArray]:
        return tokenization.group_windows(lengths, windows, spec.micro_batch_tokens)

    def epoch(number: int) -> list[IndexArray]:
        order = np.random.default_rng([data.seed, number])
        return (
            [
                data.train_windows[part]
                for part in tokenization.shuffle_window_steps(
                    lengths[data.train_windows], spec.batch_tokens, order
                )
            ]
            if len(data.train_windows)
            else []
        )

    def measure() -> dict[str, float]:
        return {
            TUNING_PERPLEXITY: compute_window_perplexity(
                forward, data, data.tuning_windows, spec.micro_batch_tokens, accelerator
            )
        }

    return Trainable(
        parameters=stack.trained_parameters,
        make_epoch_batches=epoch,
        count_tokens=lambda windows: int(lengths[windows].sum()),
        backward=build_backward_with_oom_retry(
            loss,
            grouped,
            stack.trained_parameters.values(),
            data.seed,
            accelerator,
            partial(enable_checkpointing_on_oom, stack) if spec.activations == "auto" else None,
        ),
        set_training_mode=stack.train,
        evaluate=measure if len(data.tuning_windows) else None,
        best_metric=TUNING_PERPLEXITY,
        joint_step=JointStep(
            grouped,
            reading,
            data.seed,
            needs_logits=True,
            language_model_head=data.language_model_head,
        ),
    )
