"""How answers are learned: the loss by hand, steps over several questions, and gradients that do
not depend on how a step is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from clinpeft import training
from clinpeft.core.errors import InputError
from clinpeft.core.schemas import COHORT_SCHEMA, LabelSpace, ProblemType
from clinpeft.recipe import ClassifierTrainingSpec, LossSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training import ClassificationData, Trainable
from clinpeft.training.classification import sum_classification_loss

ACCELERATOR = training.create_accelerator()
VECTORS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
PLAIN = LossSpec()
SPEC = ClassifierTrainingSpec(batch_notes=5, learning_rate=1e-2, head_learning_rate=5e-2)


def question(kind: ProblemType = "multiclass", classes: int = 3, name: str = "asked") -> LabelSpace:
    return LabelSpace(
        name,
        kind,
        tuple(f"c{at}" for at in range(classes)),
        ("",) * classes,
        (1,) * classes,
        "auroc_ovo",
    )


def task_data(
    weights: torch.nn.Parameter,
    truth: torch.Tensor,
    label_space: LabelSpace | None = None,
    micro: int = 4,
) -> ClassificationData:
    """Twelve documents whose logits are VECTORS @ weights: the first nine to learn from, the others
    to tune on."""

    def answer(documents: IndexArray) -> torch.Tensor:
        return VECTORS[torch.from_numpy(documents)] @ weights

    return ClassificationData(
        label_space=label_space or question(),
        compute_logits=answer,
        labels=truth,
        token_counts=np.arange(1, 13),
        train_documents=np.arange(9),
        tuning_documents=np.arange(9, 12),
        make_micro_batches=lambda chosen: [
            chosen[start : start + micro] for start in range(0, len(chosen), micro)
        ],
        gather_logits=lambda chosen: answer(chosen).detach().numpy(),
        compute_metric=lambda _, chosen: float(len(chosen)),
    )


def parameter(classes: int = 3, seed: int = 1) -> torch.nn.Parameter:
    return torch.nn.Parameter(
        torch.randn(4, classes, generator=torch.Generator().manual_seed(seed))
    )


def build_trainable(
    exams: list[ClassificationData],
    parameters: dict[str, torch.nn.Parameter],
    loss: LossSpec = PLAIN,
    heads: tuple[str, ...] = (),
) -> Trainable:
    return training.build_classification_trainable(
        exams, parameters, lambda _: None, loss, SPEC, 7, ACCELERATOR, heads
    )


TRUTH = torch.tensor(
    [0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 1, 2]
)  # of the nine that are learned from: six, two and one


def test_a_step_has_the_mean_loss_and_its_gradient() -> None:
    weights = parameter()
    items = np.array([1, 6, 8, 2, 7])
    summed, targets = build_trainable([task_data(weights, TRUTH)], {"w": weights}).backward(
        items, 1
    )
    copy = weights.detach().clone().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(VECTORS[items] @ copy, TRUTH[items])
    wanted.backward()  # type: ignore[no-untyped-call]
    assert targets == 5 and summed / targets == pytest.approx(wanted.item(), rel=1e-6)
    assert (
        weights.grad is not None
        and copy.grad is not None
        and torch.allclose(weights.grad / targets, copy.grad, atol=1e-6)
    )


def test_balanced_classes_weigh_n_over_k_times_their_count_as_torch_weighs_them() -> None:
    weights, items = parameter(), np.arange(9)
    summed, targets = build_trainable(
        [task_data(weights, TRUTH)], {"w": weights}, LossSpec(class_weights="balanced")
    ).backward(items, 1)
    by_hand = torch.tensor([9 / (3 * 6), 9 / (3 * 2), 9 / (3 * 1)])  # 0.5, 1.5, 3
    assert targets == pytest.approx(6 * 0.5 + 2 * 1.5 + 3)
    wanted = torch.nn.functional.cross_entropy(
        VECTORS[:9] @ weights.detach(), TRUTH[:9], weight=by_hand
    )
    assert summed / targets == pytest.approx(wanted.item(), rel=1e-6)


def test_a_class_that_is_not_in_training_weighs_nothing_and_breaks_nothing() -> None:
    weights, label_space = parameter(4), question(classes=4)
    summed, targets = build_trainable(
        [task_data(weights, TRUTH, label_space)], {"w": weights}, LossSpec(class_weights="balanced")
    ).backward(np.arange(9), 1)
    assert np.isfinite(summed) and targets == pytest.approx(6 * 9 / 24 + 2 * 9 / 8 + 9 / 4)


def test_over_labels_the_loss_is_a_mean() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
    wanted = torch.tensor([[True, True], [False, True]])
    sums = sum_classification_loss(logits, wanted, question("multilabel", 2))
    # -log sigmoid of: 0, 2; 1, 0
    by_hand = (np.log(2) + np.log1p(np.exp(-2))) / 2 + (np.log1p(np.exp(-1)) + np.log(2)) / 2
    assert sums.targets == 2 and float(sums.loss) == pytest.approx(by_hand, rel=1e-6)
    mean = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted.float())
    assert float(sums.loss) / sums.targets == pytest.approx(float(mean), rel=1e-6)


def test_an_epoch_asks_every_document_of_every_question_once() -> None:
    weights = parameter()
    two = build_trainable(
        [task_data(weights, TRUTH), task_data(weights, TRUTH, question(name="other"))],
        {"w": weights},
    )
    steps = two.make_epoch_batches(0)
    assert [len(step) for step in steps] == [5, 5, 5, 3]
    assert sorted(np.concatenate(steps).tolist()) == [
        *range(9),
        *range(12, 21),
    ]  # the documents of the second begin behind those of the first
    assert any((step < 12).any() and (step >= 12).any() for step in steps)
    assert all(
        np.array_equal(one, again)
        for one, again in zip(steps, two.make_epoch_batches(0), strict=True)
    )
    assert not np.array_equal(np.concatenate(steps), np.concatenate(two.make_epoch_batches(1)))
    assert two.count_tokens(np.array([0, 2, 12, 23])) == 1 + 3 + 1 + 12


def test_several_questions_add_up_each_by_its_own_head() -> None:
    first, second = parameter(), parameter(2, seed=2)
    labels = torch.randint(0, 2, (12, 2), generator=torch.Generator().manual_seed(3)).bool()
    exams = [
        task_data(first, TRUTH),
        task_data(second, labels, question("multilabel", 2, "labels")),
    ]
    both = build_trainable(exams, {"first": first, "second": second})
    summed, targets = both.backward(np.array([3, 14, 8, 12, 20]), 1)
    one = torch.nn.functional.cross_entropy(
        VECTORS[[3, 8]] @ first.detach(), TRUTH[[3, 8]], reduction="sum"
    )
    other = (
        torch.nn.functional.binary_cross_entropy_with_logits(
            VECTORS[[2, 0, 8]] @ second.detach(), labels[[2, 0, 8]].float()
        )
        * 3
    )
    assert targets == 5 and summed == pytest.approx(float(one + other), rel=1e-6)
    assert both.evaluate is not None
    measured = both.evaluate()
    assert (
        measured["tuning_metric"] == measured["tuning_metric.asked"] == 3
        and measured["tuning_metric.labels"] == 3
    )
    losses = [
        float(torch.nn.functional.cross_entropy(VECTORS[9:] @ first.detach(), TRUTH[9:])),
        float(
            torch.nn.functional.binary_cross_entropy_with_logits(
                VECTORS[9:] @ second.detach(), labels[9:].float()
            )
        ),
    ]
    assert measured["tuning_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize("weighed", ["none", "balanced"])
def test_micro_batches_change_no_gradient(weighed: str) -> None:
    gradients = []
    for micro in (1, 4, 9):
        weights = parameter()
        build_trainable(
            [task_data(weights, TRUTH, micro=micro)],
            {"w": weights},
            LossSpec.model_validate({"class_weights": weighed}),
        ).backward(np.arange(9), 1)
        assert weights.grad is not None
        gradients.append(weights.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6) and torch.allclose(
        gradients[0], gradients[2], atol=1e-6
    )


def test_a_head_learns_at_its_own_rate_and_without_one_at_that_of_the_rest() -> None:
    weights = parameter()
    assert build_trainable(
        [task_data(weights, TRUTH)], {"w": weights}, heads=("w",)
    ).learning_rate_factors == {"w": 5.0}
    same = training.build_classification_trainable(
        [task_data(weights, TRUTH)],
        {"w": weights},
        lambda _: None,
        LossSpec(),
        ClassifierTrainingSpec(),
        7,
        ACCELERATOR,
        ("w",),
    )
    assert same.learning_rate_factors == {}


@pytest.mark.parametrize(
    ("by", "wanted"),
    [("loss", ("tuning_loss", False)), ("metric", ("tuning_metric", True)), ("last", ("", False))],
)
def test_the_best_weights_are_chosen_as_the_recipe_says(by: str, wanted: tuple[str, bool]) -> None:
    weights = parameter()
    spec = SPEC.model_copy(update={"select_by": by})
    actual = training.build_classification_trainable(
        [task_data(weights, TRUTH)],
        {"w": weights},
        lambda _: None,
        LossSpec(),
        spec,
        7,
        ACCELERATOR,
    )
    assert (actual.best_metric, actual.higher_is_better) == wanted


def test_without_a_tuning_split_nothing_is_measured() -> None:
    weights = parameter()
    assert (
        build_trainable(
            [replace(task_data(weights, TRUTH), tuning_documents=np.arange(0))], {"w": weights}
        ).evaluate
        is None
    )


def cohort(**columns: list[object]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    counts_of = {"stay_id": list(range(100, 100 + rows)), **columns}
    return pa.table(
        {
            name: pa.array(values, COHORT_SCHEMA.field(name).type)
            for name, values in counts_of.items()
        }
    )


def test_known_answers_are_classes_or_a_row_of_labels() -> None:
    assert training.encode_labels(cohort(label=[2, 0, 1]), question()).tolist() == [2, 0, 1]
    labels = training.encode_labels(cohort(labels=[[0, 2], [], [1]]), question("multilabel"))
    assert labels.tolist() == [[True, False, True], [False, False, False], [False, True, False]]


@pytest.mark.parametrize(
    ("columns", "label_space"),
    [({"label": [0, 3]}, question()), ({"labels": [[0], [1, -1]]}, question("multilabel"))],
)
def test_an_answer_that_is_no_class_is_named_by_its_stay(
    columns: dict[str, list[object]], label_space: LabelSpace
) -> None:
    with pytest.raises(InputError, match="3 classes of asked") as raised:
        training.encode_labels(cohort(**columns), label_space)
    assert raised.value.location == "stay_id 101"


def test_shuffled_answers_are_the_same_ones_dealt_out_anew_among_the_documents_named() -> None:
    counts_of = torch.arange(50)
    dealt = training.shuffle_labels(counts_of, np.arange(30), seed=3)
    assert sorted(dealt[:30].tolist()) == list(range(30)) and dealt[:30].tolist() != list(range(30))
    assert dealt[30:].tolist() == list(range(30, 50)) and counts_of.tolist() == list(range(50))
    assert torch.equal(dealt, training.shuffle_labels(counts_of, np.arange(30), seed=3))
