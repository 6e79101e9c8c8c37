"""Language-model training: windows of tokens, an objective, and the loss of a target token."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from clinpeft import tokenization
from clinpeft.adapters import PackedInput, Stack, enable_checkpointing_on_oom
from clinpeft.recipe import TrainingSpec
from clinpeft.runtime.memory import build_backward_with_oom_retry
from clinpeft.tokenization import IndexArray
from clinpeft.training.likelihood import compute_window_perplexity
from clinpeft.training.objectives import (
    LabeledBatch,
    LanguageModelingData,
    TokenLogitFunction,
    compute_batch_likelihoods,
    sum_packed_loss,
)
from clinpeft.training.trainer import JointStep, LossSum, Trainable, build_additive_backward

TUNING_PERPLEXITY = "tuning_perplexity"


def build_language_modeling_trainable(
    stack: Stack,
    forward: TokenLogitFunction,
    data: LanguageModelingData,
    spec: TrainingSpec,
    accelerator: Accelerator,
) -> Trainable:
    """Build the training of a stack's adapters on ``data``.

    The loss of a step is the mean negative log-likelihood of its targets. The best weights are
    those of the lowest perplexity on the tuning windows.

    Args:
        stack: base and adapters.
        forward: ids and mask to logits, through the stack.
        data: windows and objective.
        spec: sizes of steps and micro-batches.
        accelerator: the processes.
    """
    lengths, head = data.encodings.lengths, data.language_model_head

    def label_windows(windows: IndexArray, step: int) -> tuple[LabeledBatch, torch.Tensor]:
        batch = tokenization.gather_windows(data.encodings, windows).to(accelerator.device)
        # other masks in every step, the same in a resumed one
        labeled = data.label_batch(batch, data.tokenizer, (data.seed, step))
        return labeled, batch.attention_mask

    def loss(windows: IndexArray, step: int) -> LossSum:
        labeled, mask = label_windows(windows, step)
        # (rows,) sums over the targets of each window
        scores = compute_batch_likelihoods(forward, labeled, mask, head)
        return LossSum(scores.negative_log_likelihood.sum(), float(scores.target_counts.sum()))

    def prepare_input(windows: IndexArray, step: int) -> PackedInput[LossSum]:
        labeled, mask = label_windows(windows, step)

        def process_output(outputs: torch.Tensor) -> LossSum:  # (tokens, vocabulary or width)
            total, targets = sum_packed_loss(outputs, labeled, mask, head)
            return LossSum(total, float(targets))

        return PackedInput(labeled.input_ids, mask, process_output)

    def make_micro_batches(windows: IndexArray) -> list[IndexArray]:
        return tokenization.group_windows(lengths, windows, spec.micro_batch_tokens)

    def make_epoch_batches(number: int) -> list[IndexArray]:
        if not len(data.train_windows):
            return []
        rng = np.random.default_rng([data.seed, number])
        # steps of about batch_tokens tokens, as positions among the training windows
        steps = tokenization.shuffle_window_steps(
            lengths[data.train_windows], spec.batch_tokens, rng
        )
        return [data.train_windows[positions] for positions in steps]

    def evaluate() -> dict[str, float]:
        perplexity = compute_window_perplexity(
            forward, data, data.tuning_windows, spec.micro_batch_tokens, accelerator
        )
        return {TUNING_PERPLEXITY: perplexity}

    # recompute activations where a single window does not fit into memory
    reduce_memory = partial(enable_checkpointing_on_oom, stack)
    return Trainable(
        parameters=stack.trained_parameters,
        make_epoch_batches=make_epoch_batches,
        count_tokens=lambda windows: int(lengths[windows].sum()),
        backward=build_backward_with_oom_retry(
            partial(build_additive_backward, loss, seed=data.seed, accelerator=accelerator),
            make_micro_batches,
            stack.trained_parameters.values(),
            accelerator.num_processes,
            reduce_memory if spec.activations == "auto" else None,
        ),
        set_training_mode=stack.train,
        evaluate=evaluate if len(data.tuning_windows) else None,
        best_metric=TUNING_PERPLEXITY,
        joint_step=JointStep(make_micro_batches, prepare_input, data.seed, True, head),
    )
