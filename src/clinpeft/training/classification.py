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
from torch.nn import functional

from clinpeft.adapters import Reading
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import Question
from clinpeft.recipe import ClassifierTrainingSpec, LossSpec
from clinpeft.tokenization import Ints
from clinpeft.training.memory import spared
from clinpeft.training.trainer import Course, Crew, Parameters, Share, Sums

Answer = Callable[[Ints], torch.Tensor]
"""Documents -> logits (documents, classes), float32, through whatever is trained."""

Scores = npt.NDArray[np.float32]
TUNING_LOSS = "tuning_loss"


@dataclass(frozen=True)
class Exam:
    """One question as it is trained and measured.

    Attributes:
        question: what is asked.
        answer: documents to logits.
        truth: (documents,) index of the class, int64; where all that apply are asked (documents, classes), bool.
        lengths: (documents,) tokens of all windows of each.
        train, tuning: documents to learn from, and to choose the best weights by.
        grouped: documents -> micro-batches of them.
        scores: documents -> logits of all of them, without gradient, the work shared between processes.
        metric: (logits, documents) -> the question's main metric; NaN where it is not defined.
        reading: documents -> the texts that ``answer`` asks the model, and its logits; None where it asks what is remembered of them.
    """

    question: Question
    answer: Answer
    truth: torch.Tensor
    lengths: Ints
    train: Ints
    tuning: Ints
    grouped: Callable[[Ints], list[Ints]]
    scores: Callable[[Ints], Scores]
    metric: Callable[[Scores, Ints], float]
    reading: Callable[[Ints], Reading[torch.Tensor]] | None = None


def truth(cohort: pa.Table, question: Question) -> torch.Tensor:
    """The known answers of a cohort's rows (schema ``tables.COHORT``), as ``Exam.truth`` holds them.

    Raises:
        InputError: an answer that is none of the classes, by its stay.
    """
    if question.kind != "multilabel":
        found = torch.from_numpy(cohort["label"].to_numpy().astype(np.int64))
        _refuse_outside(found, torch.arange(len(found)), cohort, question)
        return found
    lists = cohort["labels"].combine_chunks()
    rows = np.repeat(np.arange(len(cohort)), np.diff(lists.offsets.to_numpy()))
    indices = torch.from_numpy(lists.flatten().to_numpy().astype(np.int64))
    _refuse_outside(indices, torch.from_numpy(rows), cohort, question)
    dense = torch.zeros(len(cohort), len(question.classes), dtype=torch.bool)
    dense[torch.from_numpy(rows), indices] = True
    return dense


def shuffled(known: torch.Tensor, documents: Ints, seed: int) -> torch.Tensor:
    """The answers of these documents dealt out anew among them: the control in which nothing can be learned."""
    dealt = known.clone()
    dealt[torch.from_numpy(documents)] = known[
        torch.from_numpy(np.random.default_rng([seed, 2]).permutation(documents))
    ]
    return dealt


def _refuse_outside(
    indices: torch.Tensor, rows: torch.Tensor, cohort: pa.Table, question: Question
) -> None:
    outside = torch.nonzero((indices < 0) | (indices >= len(question.classes))).flatten()
    if len(outside):
        at = outside[0]
        stay = cohort["stay_id"][int(rows[at])].as_py()
        message = f"label {int(indices[at])} is none of the {len(question.classes)} classes of {question.name}"
        raise InputError(message, location=f"stay_id {stay}", hint="build the cohort again")


def classification(
    exams: Sequence[Exam],
    parameters: Parameters,
    mode: Callable[[bool], object],
    loss_spec: LossSpec,
    spec: ClassifierTrainingSpec,
    seed: int,
    accelerator: Crew,
    heads: Sequence[str] = (),
    last_resort: Callable[[], bool] | None = None,
) -> Course:
    """How head and adapters learn to answer one question, or several at once: steps of documents drawn from all of them alike.

    The loss of a step is summed over its documents and divided by their number, or by the sum of their weights where classes are weighed, which is
    what cross-entropy with weights means; over labels, binary cross-entropy is a mean.

    Args:
        exams: the questions.
        parameters: name -> what is trained.
        mode: dropout on and off.
        loss_spec: how classes are weighed.
        spec: sizes of steps; how the best weights are chosen.
        seed: of order and dropout.
        accelerator: the processes.
        heads: names among ``parameters`` that learn at ``head_learning_rate``.
        last_resort: of a device whose memory does not do for one document, see ``memory.sparing``.
    """
    numbered = _Numbered(exams)
    weights = [_class_weights(exam, loss_spec, accelerator) for exam in exams]

    def worth(logits: torch.Tensor, at: int, documents: Ints) -> Sums:
        wanted = exams[at].truth[torch.from_numpy(documents)].to(accelerator.device)
        return summed_loss(logits, wanted, exams[at].question, weights[at])

    def loss(items: Ints, step: int) -> Sums:  # noqa: ARG001 - what is asked does not change from step to step
        at, documents = numbered.one(items)
        return worth(exams[at].answer(documents), at, documents)

    def reading(items: Ints, step: int) -> Reading[Sums]:  # noqa: ARG001
        at, documents = numbered.one(items)
        read = exams[at].reading
        assert read is not None  # else nothing is shared, see below
        found = read(documents)
        return Reading(
            found.input_ids,
            found.attention_mask,
            lambda vectors: worth(found.answer(vectors), at, documents),
        )

    scale = spec.head_learning_rate / spec.learning_rate if spec.head_learning_rate else 1.0
    return Course(
        parameters=parameters,
        epoch=lambda number: numbered.epoch(
            spec.batch_notes, np.random.default_rng([seed, number])
        ),
        tokens=numbered.tokens,
        backward=spared(
            loss, numbered.grouped, parameters.values(), seed, accelerator, last_resort
        ),
        mode=mode,
        measure=(lambda: _measured(exams)) if any(len(exam.tuning) for exam in exams) else None,
        best_by={"loss": TUNING_LOSS, "metric": "tuning_metric", "last": ""}[spec.select_by],
        higher_is_better=spec.select_by == "metric",
        scales={name: scale for name in heads if scale != 1.0},
        share=Share(numbered.grouped, reading, seed)
        if all(exam.reading for exam in exams)
        else None,
    )


def summed_loss(
    logits: torch.Tensor,
    wanted: torch.Tensor,
    question: Question,
    weights: torch.Tensor | None = None,
) -> Sums:
    """The loss summed over documents, and what to divide it by.

    Args:
        logits: (documents, classes).
        wanted: (documents,) classes, or (documents, classes) bool where all that apply are asked.
        question: its kind decides which loss.
        weights: (classes,) of cross-entropy.
    """
    if question.kind == "multilabel":
        whole = (
            functional.binary_cross_entropy_with_logits(
                logits, wanted.to(logits.dtype), reduction="sum"
            )
            / logits.shape[1]
        )
        return Sums(whole, float(len(logits)))
    whole = functional.cross_entropy(logits, wanted, weight=weights, reduction="sum")
    return Sums(whole, float(len(logits)) if weights is None else float(weights[wanted].sum()))


def _class_weights(exam: Exam, spec: LossSpec, accelerator: Crew) -> torch.Tensor | None:
    """n / (K n_k) over the training split, as in the paper's code; a class that is not there weighs nothing."""
    if spec.class_weights == "none" or exam.question.kind == "multilabel":
        return None
    counts = torch.bincount(
        exam.truth[torch.from_numpy(exam.train)], minlength=len(exam.question.classes)
    ).float()
    weights = torch.where(counts > 0, len(exam.train) / (len(counts) * counts.clamp(min=1)), 0.0)
    return weights.to(accelerator.device)


def _measured(exams: Sequence[Exam]) -> dict[str, float]:
    """Loss and main metric on the tuning split: means over the questions, and each of several."""
    losses, metrics = {}, {}
    for exam in (exam for exam in exams if len(exam.tuning)):
        scores = exam.scores(exam.tuning)
        sums = summed_loss(
            torch.from_numpy(scores), exam.truth[torch.from_numpy(exam.tuning)], exam.question
        )
        losses[exam.question.name], metrics[exam.question.name] = (
            float(sums.loss) / sums.targets,
            exam.metric(scores, exam.tuning),
        )
    means = {
        TUNING_LOSS: float(np.mean(list(losses.values()))),
        "tuning_metric": float(np.mean(list(metrics.values()))),
    }
    several = (
        {f"tuning_metric.{name}": value for name, value in metrics.items()}
        if len(exams) > 1
        else {}
    )
    return means | several


class _Numbered:
    """The documents of several questions under one numbering: those of the second begin where those of the first end."""

    def __init__(self, exams: Sequence[Exam]) -> None:
        self.exams = exams
        self.starts = np.concatenate([[0], np.cumsum([len(exam.lengths) for exam in exams])])
        self.train = np.concatenate(
            [start + exam.train for start, exam in zip(self.starts[:-1], exams, strict=True)]
        )

    def epoch(self, batch_notes: int, rng: np.random.Generator) -> list[Ints]:
        """Every training document once, in steps of ``batch_notes``; the last step is as small as what is left."""
        order = self.train[rng.permutation(len(self.train))]
        return [order[start : start + batch_notes] for start in range(0, len(order), batch_notes)]

    def parts(self, items: Ints) -> list[tuple[int, Ints]]:
        """(question, its documents) for each question with documents among the items."""
        spans = enumerate(pairwise(self.starts))
        found = [
            (at, items[(items >= start) & (items < end)] - start) for at, (start, end) in spans
        ]
        return [(at, documents) for at, documents in found if len(documents)]

    def one(self, items: Ints) -> tuple[int, Ints]:
        """The question that all items belong to, and its documents."""
        ((at, documents),) = self.parts(items)
        return at, documents

    def grouped(self, items: Ints) -> list[Ints]:
        """Micro-batches, each of one question."""
        return [
            self.starts[at] + group
            for at, documents in self.parts(items)
            for group in self.exams[at].grouped(documents)
        ]

    def tokens(self, items: Ints) -> int:
        """Tokens of all windows of the items."""
        return sum(
            int(self.exams[at].lengths[documents].sum()) for at, documents in self.parts(items)
        )


def as_parameters(modules: Mapping[str, Any]) -> dict[str, torch.nn.Parameter]:
    """Name -> parameter over several modules, each name led by that of its module."""
    return {
        f"{name}.{inner}": parameter
        for name, module in modules.items()
        for inner, parameter in module.named_parameters()
    }
