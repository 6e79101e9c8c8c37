"""Classification training: documents, one or several tasks with a head each, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch.nn import functional

from clinpeft.adapters import PackedInput
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import LabelSpace
from clinpeft.recipe import ClassifierTrainingSpec, LossSpec
from clinpeft.runtime.memory import build_backward_with_oom_retry
from clinpeft.tokenization import IndexArray
from clinpeft.training.trainer import (
    JointStep,
    LossSum,
    Trainable,
    TrainableParameters,
    build_additive_backward,
)

DocumentLogitFunction = Callable[[IndexArray], torch.Tensor]
"""Documents -> logits (documents, classes), float32, through everything that is trained."""

DocumentLogits = npt.NDArray[np.float32]
"""(documents, classes)."""

CLASSIFICATION_TUNING_LOSS = "tuning_loss"
CLASSIFICATION_TUNING_METRIC = "tuning_metric"


@dataclass(frozen=True)
class ClassificationData:
    """Data of one classification task, for training and evaluation.

    Attributes:
        label_space: name, kind and classes of the task.
        compute_logits: documents to logits.
        labels: (documents,) index of the class, int64; of a multilabel task (documents, classes),
            bool.
        token_counts: (documents,) tokens in all windows of each.
        train_documents: trained on.
        tuning_documents: select the best weights.
        make_micro_batches: documents -> micro-batches of them.
        gather_logits: documents -> logits of all of them, without gradient, the work shared between
            processes.
        compute_metric: (logits, documents) -> the task's main metric; NaN where it is undefined.
        prepare_input: documents -> the texts that ``compute_logits`` runs the model on, and how
            their output becomes logits; None where it reads cached vectors.
    """

    label_space: LabelSpace
    compute_logits: DocumentLogitFunction
    labels: torch.Tensor
    token_counts: IndexArray
    train_documents: IndexArray
    tuning_documents: IndexArray
    make_micro_batches: Callable[[IndexArray], list[IndexArray]]
    gather_logits: Callable[[IndexArray], DocumentLogits]
    compute_metric: Callable[[DocumentLogits, IndexArray], float]
    prepare_input: Callable[[IndexArray], PackedInput[torch.Tensor]] | None = None


def encode_labels(cohort: pa.Table, label_space: LabelSpace) -> torch.Tensor:
    """Encode the labels of a cohort's rows as ``ClassificationData.labels`` holds them.

    Args:
        cohort: (stays,) rows of schema ``COHORT_SCHEMA``.
        label_space: of the task.

    Returns:
        (stays,) int64, or (stays, classes) bool of a multilabel task.

    Raises:
        InputError: a label is none of the classes; the location names its stay.
    """
    is_multilabel = label_space.kind == "multilabel"
    if is_multilabel:
        # a list column: the labels of all stays one after another, and where each stay's begin
        lists = cohort["labels"].combine_chunks()
        rows = np.repeat(np.arange(len(cohort)), np.diff(lists.offsets.to_numpy()))
        class_indices = lists.flatten().to_numpy().astype(np.int64)
    else:
        rows = np.arange(len(cohort))
        class_indices = cohort["label"].to_numpy().astype(np.int64)
    class_count = len(label_space.classes)
    outside = np.flatnonzero((class_indices < 0) | (class_indices >= class_count))
    if len(outside):
        stay = cohort["stay_id"][int(rows[outside[0]])].as_py()
        raise InputError(
            f"label {int(class_indices[outside[0]])} is none of the {class_count} classes of"
            f" {label_space.name}",
            location=f"stay_id {stay}",
            hint="build the cohort again",
        )
    if not is_multilabel:
        return torch.from_numpy(class_indices)
    labels = torch.zeros(len(cohort), class_count, dtype=torch.bool)
    labels[torch.from_numpy(rows), torch.from_numpy(class_indices)] = True
    return labels


def shuffle_labels(labels: torch.Tensor, documents: IndexArray, seed: int) -> torch.Tensor:
    """Permute the labels of these documents among them: a control without any signal.

    Args:
        labels: (documents,) or (documents, classes).
        documents: whose labels are permuted.
        seed: of the permutation.

    Returns:
        A copy of ``labels``.
    """
    permutation = np.random.default_rng([seed, 2]).permutation(documents)
    # labels of other documents stay, so that evaluation is on true labels
    shuffled = labels.clone()
    shuffled[torch.from_numpy(documents)] = labels[torch.from_numpy(permutation)]
    return shuffled


def build_classification_trainable(
    tasks: Sequence[ClassificationData],
    parameters: TrainableParameters,
    set_training_mode: Callable[[bool], object],
    loss_spec: LossSpec,
    spec: ClassifierTrainingSpec,
    seed: int,
    accelerator: Accelerator,
    head_names: Sequence[str] = (),
    reduce_memory: Callable[[], bool] | None = None,
) -> Trainable:
    """Build the training of heads and adapters on one task or several.

    Steps are drawn from the documents of all tasks alike. The loss of a step is summed over its
    documents and divided by their number, or by the sum of their weights where classes are
    weighted, as torch's weighted cross-entropy does.

    Args:
        tasks: data of each task.
        parameters: name -> trained parameter.
        set_training_mode: turns dropout on and off.
        loss_spec: class weights.
        spec: sizes of steps; how the best weights are selected.
        seed: of order and dropout.
        accelerator: the processes.
        head_names: names among ``parameters`` that are trained at ``head_learning_rate``.
        reduce_memory: as for ``retry_backward_on_oom``.
    """
    # items of a step are numbers over the documents of all tasks
    numbering = _DocumentNumbering(tasks)
    class_weights = [_compute_class_weights(task, loss_spec, accelerator) for task in tasks]

    def sum_task_loss(logits: torch.Tensor, index: int, documents: IndexArray) -> LossSum:
        task = tasks[index]
        # (documents,) or (documents, classes)
        labels = task.labels[torch.from_numpy(documents)].to(accelerator.device)
        return sum_classification_loss(logits, labels, task.label_space, class_weights[index])

    # a step's number matters to objectives that draw masks, and not here
    def loss(items: IndexArray, step: int) -> LossSum:  # noqa: ARG001
        index, documents = numbering.get_single_task(items)
        return sum_task_loss(tasks[index].compute_logits(documents), index, documents)

    def prepare_input(items: IndexArray, step: int) -> PackedInput[LossSum]:  # noqa: ARG001
        index, documents = numbering.get_single_task(items)
        prepare = tasks[index].prepare_input
        assert prepare is not None  # else there is no joint step, see below
        texts = prepare(documents)
        return PackedInput(
            texts.input_ids,
            # hidden: (tokens, width) of this task's texts
            texts.attention_mask,
            lambda hidden: sum_task_loss(texts.process_output(hidden), index, documents),
        )

    # a new head needs a larger rate than adapters on a trained base
    scale = spec.head_learning_rate / spec.learning_rate if spec.head_learning_rate else 1.0
    has_tuning = any(len(task.tuning_documents) for task in tasks)
    # cached vectors need no forward pass of the base, and so no joint one
    joint_step = JointStep(numbering.make_micro_batches, prepare_input, seed)
    best_metric = {
        "loss": CLASSIFICATION_TUNING_LOSS,
        "metric": CLASSIFICATION_TUNING_METRIC,
        "last": "",
    }
    return Trainable(
        parameters=parameters,
        make_epoch_batches=lambda number: numbering.make_epoch_batches(
            spec.batch_notes, np.random.default_rng([seed, number])
        ),
        count_tokens=numbering.count_tokens,
        backward=build_backward_with_oom_retry(
            partial(build_additive_backward, loss, seed=seed, accelerator=accelerator),
            numbering.make_micro_batches,
            parameters.values(),
            accelerator.num_processes,
            reduce_memory,
        ),
        set_training_mode=set_training_mode,
        evaluate=(lambda: _evaluate_tuning_split(tasks)) if has_tuning else None,
        best_metric=best_metric[spec.select_by],
        higher_is_better=spec.select_by == "metric",
        learning_rate_factors={name: scale for name in head_names if scale != 1.0},
        joint_step=joint_step if all(task.prepare_input for task in tasks) else None,
    )


def sum_classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_space: LabelSpace,
    class_weights: torch.Tensor | None = None,
) -> LossSum:
    """Sum the loss over documents.

    Cross-entropy of one class, or, of a multilabel task, binary cross-entropy averaged over labels.

    Args:
        logits: (documents, classes).
        labels: (documents,) classes, or (documents, classes) bool of a multilabel task.
        label_space: its kind decides which loss.
        class_weights: (classes,) of cross-entropy.

    Returns:
        The sum, and what to divide it by: the number of documents or the sum of their weights.
    """
    if label_space.kind == "multilabel":
        # summed over documents and labels, then a mean over labels
        label_losses = functional.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), reduction="sum"
        )
        return LossSum(label_losses / logits.shape[1], float(len(logits)))
    # torch's weighted mean divides by the weights of the targets, and so does the loop
    total = functional.cross_entropy(logits, labels, weight=class_weights, reduction="sum")
    divisor = len(logits) if class_weights is None else class_weights[labels].sum()
    return LossSum(total, float(divisor))


def _compute_class_weights(
    task: ClassificationData, spec: LossSpec, accelerator: Accelerator
) -> torch.Tensor | None:
    """(classes,) n / (K n_k) over the training split; 0 for a class without documents.

    The weights of the released code of arXiv 2307.03042, which are scikit-learn's "balanced" ones.
    """
    if spec.class_weights == "none" or task.label_space.kind == "multilabel":
        return None
    class_count = len(task.label_space.classes)
    train_labels = task.labels[torch.from_numpy(task.train_documents)]
    # of the training split alone: other splits must not influence training
    counts = torch.bincount(train_labels, minlength=class_count).float()  # (classes,)
    # (classes,); clamp, since a class without documents would divide by 0
    balanced = len(task.train_documents) / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, balanced, 0.0).to(accelerator.device)


def _evaluate_tuning_split(tasks: Sequence[ClassificationData]) -> dict[str, float]:
    """Loss and main metric on the tuning split: macro-averaged over tasks, and each of several."""
    losses, metrics = {}, {}
    for task in tasks:
        documents, name = task.tuning_documents, task.label_space.name
        if not len(documents):
            continue
        logits = task.gather_logits(documents)  # (documents, classes)
        labels = task.labels[torch.from_numpy(documents)]
        # without class weights: the tuning loss estimates that of the evaluation set
        loss_sum = sum_classification_loss(torch.from_numpy(logits), labels, task.label_space)
        # a mean, as the loss of a step is
        losses[name] = float(loss_sum.loss) / loss_sum.targets
        metrics[name] = task.compute_metric(logits, documents)
    means = {
        CLASSIFICATION_TUNING_LOSS: float(np.mean(list(losses.values()))),
        CLASSIFICATION_TUNING_METRIC: float(np.mean(list(metrics.values()))),
    }
    if len(tasks) == 1:
        return means
    return means | {
        f"{CLASSIFICATION_TUNING_METRIC}.{name}": value for name, value in metrics.items()
    }


class _DocumentNumbering:
    """Items of several tasks: the documents of each task are numbered after those before it."""

    def __init__(self, tasks: Sequence[ClassificationData]) -> None:
        self.tasks = tasks
        # (tasks,) documents of each, of all splits
        sizes = [len(task.token_counts) for task in tasks]
        self.task_offsets = np.concatenate([[0], np.cumsum(sizes)])  # (tasks + 1,)
        self.train_items = np.concatenate(
            [
                start + task.train_documents
                for start, task in zip(self.task_offsets[:-1], tasks, strict=True)
            ]
        )

    def make_epoch_batches(self, batch_notes: int, rng: np.random.Generator) -> list[IndexArray]:
        """Every training document once, ``batch_notes`` a step; the last step may be smaller."""
        # documents of all tasks in one permutation, so that steps mix tasks by their size
        order = self.train_items[rng.permutation(len(self.train_items))]
        return [order[start : start + batch_notes] for start in range(0, len(order), batch_notes)]

    def split_by_task(self, items: IndexArray) -> list[tuple[int, IndexArray]]:
        """(task, its documents) for each task with documents among the items."""
        parts = [
            (index, items[(items >= start) & (items < stop)] - start)
            for index, (start, stop) in enumerate(pairwise(self.task_offsets))
        ]
        return [(index, documents) for index, documents in parts if len(documents)]

    def get_single_task(self, items: IndexArray) -> tuple[int, IndexArray]:
        """The task that all items belong to, and its documents."""
        # micro-batches are of one task, see make_micro_batches
        ((index, documents),) = self.split_by_task(items)
        return index, documents

    def make_micro_batches(self, items: IndexArray) -> list[IndexArray]:
        """Micro-batches of items, each of one task."""
        return [
            self.task_offsets[index] + micro_batch
            for index, documents in self.split_by_task(items)
            for micro_batch in self.tasks[index].make_micro_batches(documents)
        ]

    def count_tokens(self, items: IndexArray) -> int:
        """Tokens in all windows of the items."""
        return sum(
            int(self.tasks[index].token_counts[documents].sum())
            for index, documents in self.split_by_task(items)
        )


def collect_module_parameters(modules: Mapping[str, Any]) -> dict[str, torch.nn.Parameter]:
    """Collect the parameters of several modules, named ``<module>.<parameter>``."""
    return {
        f"{module_name}.{name}": parameter
        for module_name, module in modules.items()
        for name, parameter in module.named_parameters()
    }
