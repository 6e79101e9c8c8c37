"""What the training loop trains: parameters, the items of every step, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from clinpeft.adapters import PackedInput
from clinpeft.adapters.attach import derive_torch_seed
from clinpeft.tokenization import IndexArray
from clinpeft.training.chunked_loss import LanguageModelHead

TrainableParameters = Mapping[str, torch.nn.Parameter]


@dataclass(frozen=True)
class LossSum:
    """A loss that can be added up.

    Attributes:
        loss: scalar with its gradient, summed over the targets.
        targets: number of targets, or the sum of their weights: what the sum is divided by.
    """

    loss: torch.Tensor
    targets: float


@dataclass(frozen=True)
class JointStep:
    """How a trainable takes a step in one pass with others, see ``train_jointly``.

    Attributes:
        make_micro_batches: items of a step -> its micro-batches.
        prepare_input: (items of a micro-batch, step) -> texts, and how their output becomes a loss.
        seed: of dropout, as for ``build_additive_backward``.
        needs_logits: whether the loss is computed from logits over the vocabulary, and not from
            hidden states.
        language_model_head: the output layer, where its logits are computed in blocks.
    """

    make_micro_batches: Callable[[IndexArray], list[IndexArray]]
    prepare_input: Callable[[IndexArray, int], PackedInput[LossSum]]
    seed: int
    needs_logits: bool = False
    language_model_head: LanguageModelHead | None = None


@dataclass(frozen=True)
class Trainable:
    """What is trained, as the loop sees it.

    Attributes:
        parameters: name -> trained parameter, in float32.
        make_epoch_batches: number of an epoch (from 0) -> the items of each of its steps; the same
            number gives the same steps.
        count_tokens: items -> their number of tokens.
        backward: (items, step) -> adds this process's share of the gradient of the summed loss to
            the parameters; returns summed loss and number of targets.
        set_training_mode: turns dropout on (True) or off (False).
        evaluate: computes the metrics of the tuning split by name; None where there is none.
        best_metric: the metric by which the best weights are selected; empty keeps the last ones.
        higher_is_better: of that metric.
        learning_rate_factors: name -> factor on the learning rate, where it is not 1.
        joint_step: ``backward`` in a form that several trainables can take in one pass; None where
            that is not possible.
    """

    parameters: TrainableParameters
    make_epoch_batches: Callable[[int], list[IndexArray]]
    count_tokens: Callable[[IndexArray], int]
    backward: Callable[[IndexArray, int], tuple[float, float]]
    set_training_mode: Callable[[bool], object]
    evaluate: Callable[[], dict[str, float]] | None = None
    best_metric: str = ""
    higher_is_better: bool = False
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    joint_step: JointStep | None = None


def build_additive_backward(
    loss: Callable[[IndexArray, int], LossSum],
    make_micro_batches: Callable[[IndexArray], list[IndexArray]],
    seed: int,
    accelerator: Accelerator,
) -> Callable[[IndexArray, int], tuple[float, float]]:
    """Build ``Trainable.backward`` of a loss that is a sum over items.

    Args:
        loss: (items of a micro-batch, step) -> summed loss.
        make_micro_batches: items of a step -> its micro-batches.
        seed: of dropout, together with step and micro-batch.
        accelerator: the processes, each of which takes its share of the micro-batches.
    """

    def backward(items: IndexArray, step: int) -> tuple[float, float]:
        summed, targets = 0.0, 0.0
        micro_batches = list(enumerate(make_micro_batches(items)))
        # the global generators are as before afterwards, for whatever else draws from them
        with torch.random.fork_rng():
            for index, micro_batch in micro_batches[
                accelerator.process_index :: accelerator.num_processes
            ]:
                # the index within the step, and not within the process: dropout does not depend on
                # the number of processes
                torch.manual_seed(derive_dropout_seed(seed, step, index))
                loss_sum = loss(micro_batch, step)
                torch.autograd.backward(loss_sum.loss)
                summed += loss_sum.loss.item()
                targets += loss_sum.targets
        return summed, targets

    return backward


def flatten_gradients(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Concatenate the gradients of parameters, zeros where a parameter has none.

    Returns:
        (numbers,) of all parameters, one after another.
    """
    return torch.cat(
        [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            .detach()
            .reshape(-1)
            for parameter in parameters
        ]
    )


def derive_dropout_seed(seed: int, step: int, micro_batch_index: int) -> int:
    """Derive the seed of a micro-batch's dropout from seed, step and micro-batch alone.

    So a resumed run, and a run on two processes, draw what one uninterrupted run would have drawn.
    """
    # one process draws for every micro-batch what several draw for their share
    return derive_torch_seed(seed, step, micro_batch_index)
