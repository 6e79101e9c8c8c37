"""Questions, as a course: documents, answered by heads, with the loss an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from clinpeft.tokenization import IndexArray
from clinpeft.training.memory import build_backward_with_oom_retry
from clinpeft.training.trainer import JointStep, LossSum, Trainable, TrainableParameters

DocumentLogitFunction = Callable[[IndexArray], torch.Tensor]
"""Documents -> logits (documents, classes), float32, through whatever is trained."""

DocumentLogits = npt.NDArray[np.float32]
CLASSIFICATION_TUNING_LOSS = "tuning_loss"


@dataclass(frozen=True)
class ClassificationData:
    """One question as it is trained and measured.

    Attributes:
        label_space: what is asked.
        compute_logits: documents to logits.
        labels: (documents,) index of the class, int64; where all that apply are asked (documents, classes), bool.
        token_counts: (documents,) tokens of all windows of each.
        train_documents, tuning_documents: documents to learn from, and to choose the best weights by.
        make_micro_batches: documents -> micro-batches of them.
        gather_logits: documents -> logits of all of them, without gradient, the work shared between processes.
        compute_metric: (logits, documents) -> the question's main metric; NaN where it is not defined.
        prepare_input: documents -> the texts that ``compute_logits`` asks the model, and its logits; None where it asks what is remembered of them.
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
    """The known answers of a cohort's rows (schema ``tables.COHORT``), as ``Exam.truth`` holds them.

    Raises:
        InputError: an answer that is none of the classes, by its stay.
    """
    if label_space.kind != "multilabel":
        found = torch.from_numpy(cohort["label"].to_numpy().astype(np.int64))
        _check_label_range(found, torch.arange(len(found)), cohort, label_space)
        return found
    lists = cohort["labels"].combine_chunks()
    rows = np.repeat(np.arange(len(cohort)), np.diff(lists.offsets.to_numpy()))
    indices = torch.from_numpy(lists.flatten().to_numpy().astype(np.int64))
    _check_label_range(indices, torch.from_numpy(rows), cohort, label_space)
    dense = torch.zeros(len(cohort), len(label_space.classes), dtype=torch.bool)
    dense[torch.from_numpy(rows), indices] = True
    return dense


def shuffle_labels(labels: torch.Tensor, documents: IndexArray, seed: int) -> torch.Tensor:
    """The answers of these documents dealt out anew among them: the control in which nothing can be learned."""
    dealt = labels.clone()
    dealt[torch.from_numpy(documents)] = labels[
        torch.from_numpy(np.random.default_rng([seed, 2]).permutation(documents))
    ]
    return dealt


def _check_label_range(
    class_indices: torch.Tensor, rows: torch.Tensor, cohort: pa.Table, label_space: LabelSpace
) -> None:
    outside = torch.nonzero(
        (class_indices < 0) | (class_indices >= len(label_space.classes))
    ).flatten()
    if len(outside):
        at = outside[0]
        stay = cohort["stay_id"][int(rows[at])].as_py()
        message = f"label {int(class_indices[at])} is none of the {len(label_space.classes)} classes of {label_space.name}"
        raise InputError(message, location=f"stay_id {stay}", hint="build the cohort again")


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
    """How head and adapters learn to answer one question, or several at once: steps of documents drawn from all of them alike.

    The loss of a step is summed over its documents and divided by their number, or by the sum of their weights where classes are weighed, which is
    what cross-entropy with weights means; over labels, binary cross-entropy is a mean.

    Args:
        tasks: the questions.
        parameters: name -> what is trained.
        set_training_mode: dropout on and off.
        loss_spec: how classes are weighed.
        spec: sizes of steps; how the best weights are chosen.
        seed: of order and dropout.
        accelerator: the processes.
        head_names: names among ``parameters`` that learn at ``head_learning_rate``.
        reduce_memory: of a device whose memory does not do for one document, see ``memory.sparing``.
    """
    numbered = _DocumentNumbering(tasks)
    weights = [_compute_class_weights(exam, loss_spec, accelerator) for exam in tasks]

    def worth(logits: torch.Tensor, at: int, documents: IndexArray) -> LossSum:
        wanted = tasks[at].labels[torch.from_numpy(documents)].to(accelerator.device)
        return sum_classification_loss(logits, wanted, tasks[at].label_space, weights[at])

    def loss(items: IndexArray, step: int) -> LossSum:  # noqa: ARG001 - what is asked does not change from step to step
        at, documents = numbered.get_single_task(items)
        return worth(tasks[at].compute_logits(documents), at, documents)

    def reading(items: IndexArray, step: int) -> PackedInput[LossSum]:  # noqa: ARG001
        at, documents = numbered.get_single_task(items)
        read = tasks[at].prepare_input
        assert read is not None  # else nothing is shared, see below
        found = read(documents)
        return PackedInput(
            found.input_ids,
            found.attention_mask,
            lambda vectors: worth(found.process_output(vectors), at, documents),
        )

    scale = spec.head_learning_rate / spec.learning_rate if spec.head_learning_rate else 1.0
    return Trainable(
        parameters=parameters,
        make_epoch_batches=lambda number: numbered.make_epoch_batches(
            spec.batch_notes, np.random.default_rng([seed, number])
        ),
        count_tokens=numbered.count_tokens,
        backward=build_backward_with_oom_retry(
            loss, numbered.make_micro_batches, parameters.values(), seed, accelerator, reduce_memory
        ),
        set_training_mode=set_training_mode,
        evaluate=(lambda: _evaluate_tuning_split(tasks))
        if any(len(exam.tuning_documents) for exam in tasks)
        else None,
        best_metric={"loss": CLASSIFICATION_TUNING_LOSS, "metric": "tuning_metric", "last": ""}[
            spec.select_by
        ],
        higher_is_better=spec.select_by == "metric",
        learning_rate_factors={name: scale for name in head_names if scale != 1.0},
        joint_step=JointStep(numbered.make_micro_batches, reading, seed)
        if all(exam.prepare_input for exam in tasks)
        else None,
    )


def sum_classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_space: LabelSpace,
    class_weights: torch.Tensor | None = None,
) -> LossSum:
    """The loss summed over documents, and what to divide it by.

    Args:
        logits: (documents, classes).
        labels: (documents,) classes, or (documents, classes) bool where all that apply are asked.
        label_space: its kind decides which loss.
        class_weights: (classes,) of cross-entropy.
    """
    if label_space.kind == "multilabel":
        whole = (
            functional.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="sum"
            )
            / logits.shape[1]
        )
        return LossSum(whole, float(len(logits)))
    whole = functional.cross_entropy(logits, labels, weight=class_weights, reduction="sum")
    return LossSum(
        whole, float(len(logits)) if class_weights is None else float(class_weights[labels].sum())
    )


def _compute_class_weights(
    task: ClassificationData, spec: LossSpec, accelerator: Accelerator
) -> torch.Tensor | None:
    """n / (K n_k) over the training split, as in the paper's code; a class that is not there weighs nothing."""
    if spec.class_weights == "none" or task.label_space.kind == "multilabel":
        return None
    counts = torch.bincount(
        task.labels[torch.from_numpy(task.train_documents)], minlength=len(task.label_space.classes)
    ).float()
    weights = torch.where(
        counts > 0, len(task.train_documents) / (len(counts) * counts.clamp(min=1)), 0.0
    )
    return weights.to(accelerator.device)


def _evaluate_tuning_split(tasks: Sequence[ClassificationData]) -> dict[str, float]:
    """Loss and main metric on the tuning split: means over the questions, and each of several."""
    losses, metrics = {}, {}
    for exam in (exam for exam in tasks if len(exam.tuning_documents)):
        scores = exam.gather_logits(exam.tuning_documents)
        sums = sum_classification_loss(
            torch.from_numpy(scores),
            exam.labels[torch.from_numpy(exam.tuning_documents)],
            exam.label_space,
        )
        losses[exam.label_space.name], metrics[exam.label_space.name] = (
            float(sums.loss) / sums.targets,
            exam.compute_metric(scores, exam.tuning_documents),
        )
    means = {
        CLASSIFICATION_TUNING_LOSS: float(np.mean(list(losses.values()))),
        "tuning_metric": float(np.mean(list(metrics.values()))),
    }
    several = (
        {f"tuning_metric.{name}": value for name, value in metrics.items()}
        if len(tasks) > 1
        else {}
    )
    return means | several


class _DocumentNumbering:
    """The documents of several questions under one numbering: those of the second begin where those of the first end."""

    def __init__(self, tasks: Sequence[ClassificationData]) -> None:
        self.tasks = tasks
        self.task_offsets = np.concatenate(
            [[0], np.cumsum([len(exam.token_counts) for exam in tasks])]
        )
        self.train_documents = np.concatenate(
            [
                start + exam.train_documents
                for start, exam in zip(self.task_offsets[:-1], tasks, strict=True)
            ]
        )

    def make_epoch_batches(self, batch_notes: int, rng: np.random.Generator) -> list[IndexArray]:
        """Every training document once, in steps of ``batch_notes``; the last step is as small as what is left."""
        order = self.train_documents[rng.permutation(len(self.train_documents))]
        return [order[start : start + batch_notes] for start in range(0, len(order), batch_notes)]

    def split_by_task(self, items: IndexArray) -> list[tuple[int, IndexArray]]:
        """(question, its documents) for each question with documents among the items."""
        spans = enumerate(pairwise(self.task_offsets))
        found = [
            (at, items[(items >= start) & (items < end)] - start) for at, (start, end) in spans
        ]
        return [(at, documents) for at, documents in found if len(documents)]

    def get_single_task(self, items: IndexArray) -> tuple[int, IndexArray]:
        """The question that all items belong to, and its documents."""
        ((at, documents),) = self.split_by_task(items)
        return at, documents

    def make_micro_batches(self, items: IndexArray) -> list[IndexArray]:
        """Micro-batches, each of one question."""
        return [
            self.task_offsets[at] + group
            for at, documents in self.split_by_task(items)
            for group in self.tasks[at].make_micro_batches(documents)
        ]

    def count_tokens(self, items: IndexArray) -> int:
        """Tokens of all windows of the items."""
        return sum(
            int(self.tasks[at].token_counts[documents].sum())
            for at, documents in self.split_by_task(items)
        )


def collect_module_parameters(modules: Mapping[str, Any]) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter over several modules, each name led by that of its module."""
    return {
        f"{name}.{inner}": parameter
        for name, module in modules.items()
        for inner, parameter in module.named_parameters()
    }
