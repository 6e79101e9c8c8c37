"""Learning from pairs: gradients in flat memory equal the plain ones, what may be an answer is no
negative, and the loss falls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clinpeft import adapters, models, tokenization, training
from clinpeft.core.errors import InputError, RecipeError, TrainingError
from clinpeft.models import PoolingMode
from clinpeft.recipe import LanguageModelSpec, LoraSpec
from clinpeft.recipe.contrastive import ContrastiveTrainingSpec
from clinpeft.tokenization import IndexArray
from clinpeft.training.contrastive import (
    TUNING_ACCURACY,
    TUNING_LOSS,
    Embedder,
    build_contrastive_batch,
    build_contrastive_trainable,
    build_tuning_evaluation,
    compute_step_loss,
    embed_text_ids,
    run_cached_backward,
)
from clinpeft.training.contrastive_batches import TextAttributes, TextPairs
from clinpeft.training.trainer import LossSum, derive_dropout_seed
from tests.adapters.toys import copy_trained_state, load_trained_state
from tests.conftest import MakeFolder

ACCELERATOR = training.create_accelerator()
COUNT = 12  # pairs
SPEC = ContrastiveTrainingSpec(
    learning_rate=1e-2,
    epochs=10,
    batch_pairs=6,
    micro_batch_tokens=40,
    evaluations=3,
    checkpoints=2,
)
Gradients = dict[str, torch.Tensor]


@dataclass
class Toy:
    """A toy model that reads invented texts, and how often it did so."""

    stack: adapters.Stack
    ids: list[torch.Tensor]
    pooling: PoolingMode
    micro_batch_tokens: int = 40
    readings: list[tuple[int, bool]] = field(default_factory=list)  # (texts, with a graph)

    @property
    def lengths(self) -> IndexArray:
        return np.array([len(text) for text in self.ids])

    def embed(self, texts: IndexArray) -> torch.Tensor:
        self.readings.append((len(texts), torch.is_grad_enabled()))
        padded = torch.nn.utils.rnn.pad_sequence(
            [self.ids[text] for text in texts], batch_first=True
        )
        mask = (
            torch.arange(padded.shape[1])[None] < torch.from_numpy(self.lengths[texts])[:, None]
        ).long()
        return models.pool_hidden_states(
            adapters.compute_hidden_states(self.stack, padded, mask), mask, self.pooling
        )

    @property
    def embedder(self) -> Embedder:
        def make_micro_batches(texts: IndexArray) -> list[IndexArray]:
            return tokenization.group_windows(self.lengths, texts, self.micro_batch_tokens)

        return Embedder(self.embed, make_micro_batches, self.stack.base.width)


def toy(
    folder: Path, pooling: PoolingMode, dropout: float = 0.3, targets: tuple[str, ...] = ()
) -> Toy:
    torch.manual_seed(1)
    stack = adapters.attach_adapters(
        models.load_base_model(LanguageModelSpec(path=folder, max_tokens=128), torch.device("cpu")),
        [LoraSpec(rank=4, dropout=dropout, targets=targets)],
    )
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(
                0.3 * torch.randn_like(parameter)
            )  # a fresh B is 0, and would hide A and its dropout
    rng = np.random.default_rng(0)
    words = [torch.from_numpy(rng.integers(5, 50, rng.integers(3, 12))) for _ in range(4 * COUNT)]
    return Toy(stack, words, pooling)


@pytest.fixture(scope="module", params=["llama", "bert"])
def model(request: pytest.FixtureRequest, toy_llama: MakeFolder, toy_bert: Path) -> Toy:
    makers: dict[str, Callable[[], Toy]] = {
        "llama": lambda: toy(toy_llama(), "last"),
        "bert": lambda: toy(toy_bert, "mean"),
    }
    return makers[request.param]()


def twelve(lengths: IndexArray, hard: bool = True) -> TextPairs:
    """Pairs of a passage each, with two hard negatives each, one of them shared."""
    every = np.arange(len(lengths))
    texts = TextAttributes(lengths, every, every, every)
    named = np.stack([2 * COUNT + np.arange(COUNT), np.full(COUNT, 3 * COUNT)], axis=1)
    return TextPairs(texts, np.arange(COUNT), COUNT + np.arange(COUNT), named if hard else None)


def gradients(stack: adapters.Stack, backward: Callable[[], object]) -> Gradients:
    stack.train()
    for parameter in stack.trained_parameters.values():
        parameter.grad = None
    backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in stack.trained_parameters.items()
        if parameter.grad is not None
    }


def uncached(
    model: Toy, loss: Callable[[torch.Tensor], LossSum], texts: IndexArray, seed: int, step: int
) -> LossSum:
    """The plain way: every micro-batch with its graph, all at once."""
    vectors: dict[int, torch.Tensor] = {}
    for at, group in enumerate(model.embedder.make_micro_batches(texts)):
        torch.manual_seed(derive_dropout_seed(seed, step, at))
        vectors |= dict(zip(group.tolist(), model.embed(group), strict=True))
    sums = loss(torch.stack([vectors[text] for text in texts.tolist()]))
    torch.autograd.backward(sums.loss)
    return sums


def same(given: Gradients, expected: Gradients, relative: float) -> bool:
    assert given.keys() == expected.keys() and len(given)
    return all(
        bool((given[name] - wanted).norm() <= relative * wanted.norm()) and bool(wanted.norm() > 0)
        for name, wanted in expected.items()
    )


SPECS = {
    "symmetric, hard negatives": SPEC,
    "matryoshka": SPEC.model_copy(
        update={"matryoshka_dims": (8, 16), "matryoshka_weights": (0.5, 2.0)}
    ),
    "triplet, masked": SPEC.model_copy(
        update={"objective": "triplet", "mask_margin": 0.05, "triplet_margin": 0.5}
    ),
}


@pytest.mark.parametrize("named", SPECS)
def test_cached_gradients_equal_the_plain_ones_with_dropout_on(model: Toy, named: str) -> None:
    pairs = twelve(model.lengths)
    question = build_contrastive_batch(pairs, np.arange(COUNT), "section")
    loss = partial(
        compute_step_loss,
        batch=question,
        spec=SPECS[named],
        location="step 3",
        mask_counts=Counter(),
    )
    assert len(model.embedder.make_micro_batches(question.text_ids)) > 5
    plain = gradients(model.stack, lambda: uncached(model, loss, question.text_ids, 5, 3))
    cached = gradients(
        model.stack,
        lambda: run_cached_backward(loss, model.embedder, question.text_ids, 5, 3, ACCELERATOR),
    )
    assert same(cached, plain, 1e-6)
    undrawn = gradients(
        model.stack,
        lambda: run_cached_backward(loss, model.embedder, question.text_ids, 6, 3, ACCELERATOR),
    )
    assert not same(undrawn, plain, 1e-2)  # other dropout, other gradients: it was on


def test_the_course_gives_the_loss_and_gradients_of_the_plain_way(model: Toy) -> None:
    pairs = twelve(model.lengths)
    counts: Counter[str] = Counter()
    trainable = build_contrastive_trainable(
        pairs,
        model.embedder,
        model.stack.trained_parameters,
        model.stack.train,
        SPEC,
        5,
        ACCELERATOR,
        mask_counts=counts,
    )
    (chosen, *_) = trainable.make_epoch_batches(0)
    question = build_contrastive_batch(pairs, chosen, "section")
    loss = partial(compute_step_loss, batch=question, spec=SPEC, location="", mask_counts=Counter())
    plain = gradients(model.stack, lambda: uncached(model, loss, question.text_ids, 5, 1))
    results: list[tuple[float, float]] = []
    given = gradients(model.stack, lambda: results.append(trainable.backward(chosen, 1)))
    sums = loss(embed_text_ids(model.embedder, question.text_ids, ACCELERATOR))
    assert same(given, plain, 1e-6) and results[0][1] == sums.targets == 6
    assert counts["anchors"] == 6 and not counts["anchors without negatives"]
    assert trainable.count_tokens(chosen) == int(model.lengths[question.text_ids].sum())


def test_memory_is_that_of_one_micro_batch_and_one_micro_batch_is_read_once(model: Toy) -> None:
    pairs = twelve(model.lengths)
    question = build_contrastive_batch(pairs, np.arange(COUNT), "section")
    loss = partial(compute_step_loss, batch=question, spec=SPEC, location="", mask_counts=Counter())
    model.readings.clear()
    gradients(
        model.stack,
        lambda: run_cached_backward(loss, model.embedder, question.text_ids, 5, 1, ACCELERATOR),
    )
    sizes = [len(group) for group in model.embedder.make_micro_batches(question.text_ids)]
    assert model.readings == [(size, False) for size in sizes] + [(size, True) for size in sizes]
    model.readings.clear()
    whole = replace(model, micro_batch_tokens=100_000, readings=[])
    plain = gradients(model.stack, lambda: uncached(whole, loss, question.text_ids, 5, 1))
    whole.readings.clear()
    once = gradients(
        model.stack,
        lambda: run_cached_backward(loss, whole.embedder, question.text_ids, 5, 1, ACCELERATOR),
    )
    assert whole.readings == [(len(question.text_ids), True)] and same(once, plain, 1e-6)


class Seen(Exception):
    """What a process put into the sum."""

    def __init__(self, share: torch.Tensor) -> None:
        self.share = share


@dataclass
class Half:
    """One of two processes, played after another: it stops at the sum to show its share, or goes on
    with both shares."""

    process_index: int
    shares: list[torch.Tensor] = field(default_factory=list)
    num_processes: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        if not self.shares:
            raise Seen(tensor)
        return torch.stack(self.shares).sum(dim=0)


@pytest.mark.parametrize("micro_batch_tokens", [40, 100_000])
def test_two_processes_learn_what_one_learns(model: Toy, micro_batch_tokens: int) -> None:
    model = replace(model, micro_batch_tokens=micro_batch_tokens)
    pairs = twelve(model.lengths)
    losses: list[tuple[float, float]] = []

    def backward(accelerator: Any) -> None:
        trainable = build_contrastive_trainable(
            pairs,
            model.embedder,
            model.stack.trained_parameters,
            model.stack.train,
            SPEC,
            5,
            accelerator,
        )
        losses.append(trainable.backward(np.arange(6), 2))

    one = gradients(model.stack, lambda: backward(ACCELERATOR))
    shares: list[torch.Tensor] = []
    for rank in (0, 1):
        try:
            backward(Half(rank))
        except Seen as seen:
            shares.append(seen.share)
    assert len(shares) == (
        2 if micro_batch_tokens == 40 else 0
    )  # one micro-batch needs no exchange
    del losses[1:]
    halves = [
        gradients(model.stack, partial(backward, Half(rank, list(shares)))) for rank in (0, 1)
    ]
    zero = {name: torch.zeros_like(tensor) for name, tensor in one.items()}
    assert same(
        {name: halves[0].get(name, zero[name]) + halves[1].get(name, zero[name]) for name in one},
        one,
        1e-6,
    )
    assert [sum(parts) for parts in zip(*losses[1:], strict=True)] == pytest.approx(losses[0])


def test_a_second_reading_that_differs_stops_the_run(model: Toy) -> None:
    rng = np.random.default_rng(0)
    rescale = lambda texts: model.embed(texts) * float(rng.uniform(0.5, 1.5))  # noqa: E731
    pairs = twelve(model.lengths)
    trainable = build_contrastive_trainable(
        pairs,
        replace(model.embedder, embed=rescale),
        model.stack.trained_parameters,
        model.stack.train,
        SPEC,
        5,
        ACCELERATOR,
    )
    with pytest.raises(TrainingError, match="differ by") as raised:
        trainable.backward(np.arange(6), 4)
    assert raised.value.location.startswith("step 4")


def test_a_candidate_that_shares_a_section_is_no_negative_unless_it_is_named() -> None:
    ten = np.arange(10)
    texts = TextAttributes(
        np.ones(10, dtype=np.int64),
        np.array([0, 1, 2, 3, 4, 5, 6, 1, 3, 9]),
        ten,
        np.array([0, 0, 2, 2, 4, 0, 2, 7, 8, -1]),
    )
    named = np.array(
        [[5, 9], [6, 7], [8, -1]]
    )  # 5 is of the first pair's own section; 7 says what 1 says; 8 says what 3 says
    question = build_contrastive_batch(
        TextPairs(texts, np.array([0, 2, 4]), np.array([1, 3, 4]), named), np.arange(3), "section"
    )
    candidates = [
        question.text_ids[at]
        for at in question.positive_rows.tolist() + question.negative_rows.tolist()
    ]
    assert candidates == [1, 3, 4, 5, 6, 9]
    assert question.candidate_mask.tolist() == [
        [True, True, True, True, True, True],
        [True, True, True, True, True, True],
        [True, True, True, True, True, True],
    ]
    assert question.named_negative_mask.tolist() == [
        [False, False, False, True, False, True],
        [True, False, False, False, True, False],
        [False, True, False, False, False, False],
    ]
    other = build_contrastive_batch(
        TextPairs(texts, np.array([0, 2, 4]), np.array([1, 3, 4]), named[[2, 2, 0]]),
        np.arange(3),
        "section",
    )
    assert other.text_ids[other.negative_rows].tolist() == [5, 9]
    assert other.candidate_mask[:, 3:].tolist() == [
        [False, True],
        [True, True],
        [True, True],
    ]  # 5 is of the section of 0, and named for another


class Still:
    """Vectors that are parameters: a model that knows its texts by heart."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = torch.nn.Parameter(vectors)

    @property
    def embedder(self) -> Embedder:
        grouped = lambda texts: np.array_split(texts, 3)  # noqa: E731
        return Embedder(
            lambda texts: self.vectors[torch.from_numpy(texts)], grouped, self.vectors.shape[1]
        )

    def build_trainable(
        self, pairs: TextPairs, spec: ContrastiveTrainingSpec, **more: Any
    ) -> training.Trainable:
        return build_contrastive_trainable(
            pairs,
            self.embedder,
            {"vectors": self.vectors},
            lambda on: None,
            spec,
            0,
            ACCELERATOR,
            **more,
        )


def two(hard: int = 0) -> TextPairs:
    every = np.arange(6)
    named = np.full((2, hard), 4) if hard else None
    return TextPairs(
        TextAttributes(np.ones(6, dtype=np.int64), every, every, every),
        np.array([0, 2]),
        np.array([1, 3]),
        named,
    )


def angles(*degrees: float) -> torch.Tensor:
    turned = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([turned.cos(), turned.sin()], dim=1)


def test_what_is_much_more_similar_than_the_positive_is_masked_and_counted() -> None:
    still, counts = Still(angles(0, 60, 170, 10, 90, 0)), Counter[str]()
    spec = SPEC.model_copy(update={"mask_margin": 0.1, "temperature": 1.0, "symmetric": False})
    loss, targets = still.build_trainable(two(hard=1), spec, mask_counts=counts).backward(
        np.arange(2), 1
    )
    # the first anchor has cosine 0.5 with its positive, 0.985 with the other's, 0 with the hard
    # negative; the second -0.940, -0.342 and 0.174
    assert counts == {
        "anchors": 2,
        "negatives masked by id": 0,
        "negatives masked by margin": 3,
        "anchors without negatives": 1,
    }
    assert loss == pytest.approx(np.log(1 + np.exp(0 - 0.5)), rel=1e-6) and targets == 1


def test_a_step_in_which_everything_is_masked_stops_the_run() -> None:
    still = Still(angles(0, 180, 180, 0, 0, 0))  # each anchor stands on the other's positive
    with pytest.raises(
        TrainingError,
        match=r"2 anchors .*training\.mask_margin = 0\.5",
    ) as raised:
        still.build_trainable(two(), SPEC.model_copy(update={"mask_margin": 0.5})).backward(
            np.arange(2), 7
        )
    assert raised.value.location == "step 7" and "training.mask_margin" in raised.value.hint
    assert (
        still.build_trainable(two(), SPEC.model_copy(update={"mask_margin": 2.5})).backward(
            np.arange(2), 7
        )[1]
        == 2
    )


def test_a_vector_that_is_no_number_stops_the_run() -> None:
    still = Still(angles(0, 60, 170, 10, 90, 0))
    with torch.no_grad():
        still.vectors[3, 1] = float("nan")
    with pytest.raises(TrainingError, match="1 of 4 texts") as raised:
        still.build_trainable(two(), SPEC).backward(np.arange(2), 2)
    assert raised.value.location == "step 2"


def test_the_loss_of_a_step_is_the_mean_over_its_anchors() -> None:
    spec = SPEC.model_copy(update={"temperature": 1.0, "symmetric": False})
    vectors = angles(0, 60, 170, 10, 90, 0)
    cosines = np.cos(np.deg2rad(np.array([[60, 10, 90], [110, 160, 80]])))
    loss, targets = Still(vectors).build_trainable(two(hard=1), spec).backward(np.arange(2), 1)
    by_hand = [-np.log(np.exp(row[own]) / np.exp(row).sum()) for own, row in enumerate(cosines)]
    assert loss == pytest.approx(sum(by_hand), rel=1e-6) and targets == 2


def test_the_triplet_loss_asks_the_named_negatives_alone_and_without_them_those_of_the_step() -> (
    None
):
    spec = SPEC.model_copy(update={"objective": "triplet", "triplet_margin": 1.0})
    vectors = angles(0, 60, 170, 10, 90, 0)
    own, hard, others = (
        np.cos(np.deg2rad([60, 160])),
        np.cos(np.deg2rad([90, 80])),
        np.cos(np.deg2rad([10, 110])),
    )
    named, _ = Still(vectors).build_trainable(two(hard=1), spec).backward(np.arange(2), 1)
    unnamed, _ = Still(vectors).build_trainable(two(), spec).backward(np.arange(2), 1)
    assert named == pytest.approx(np.maximum(0, hard - own + 1).sum(), rel=1e-6)
    assert unnamed == pytest.approx(np.maximum(0, others - own + 1).sum(), rel=1e-6)


def test_pairs_that_cannot_stand_side_by_side_are_refused() -> None:
    alone = two()
    alone = TextPairs(alone.texts, alone.anchors[:1], alone.positives[:1])
    with pytest.raises(InputError, match="1 pairs") as raised:
        Still(angles(0, 60, 170, 10, 90, 0)).build_trainable(alone, SPEC)
    assert "training.apart_by" in raised.value.hint


def test_a_dimension_that_is_not_below_the_width_is_refused() -> None:
    with pytest.raises(RecipeError) as raised:
        Still(angles(0, 60, 170, 10, 90, 0)).build_trainable(
            two(), SPEC.model_copy(update={"matryoshka_dims": (1, 2)})
        )
    assert raised.value.location == "training.matryoshka_dims"
    with pytest.raises(ValueError, match="1 matryoshka_weights for 2 matryoshka_dims"):
        ContrastiveTrainingSpec(matryoshka_dims=(1, 2), matryoshka_weights=(1.0,))


def test_the_tuning_split_gives_loss_and_accuracy_by_hand() -> None:
    spec = SPEC.model_copy(update={"temperature": 1.0, "symmetric": False, "mask_margin": 0.0})
    still = Still(angles(0, 60, 170, 100, 90, 0))
    measure = build_tuning_evaluation(two(), still.embedder, spec, 0, ACCELERATOR)
    assert measure is not None
    cosines = np.cos(np.deg2rad(np.array([[60, 100], [110, 70]])))
    losses = [-np.log(np.exp(row[own]) / np.exp(row).sum()) for own, row in enumerate(cosines)]
    assert measure() == {
        TUNING_LOSS: pytest.approx(np.mean(losses), rel=1e-6),
        TUNING_ACCURACY: 1.0,
    }
    with torch.no_grad():
        still.vectors[1] = angles(-110)[0]
    assert measure()[TUNING_ACCURACY] == 0.5  # both anchors are nearest to the second positive
    assert (
        build_tuning_evaluation(
            TextPairs(two().texts, np.array([0]), np.array([1])),
            still.embedder,
            spec,
            0,
            ACCELERATOR,
        )
        is None
    )


def test_the_loss_falls_and_answers_are_found(toy_llama: MakeFolder, tmp_path: Path) -> None:
    model = toy(toy_llama(), "mean", 0.05, ("q_proj", "v_proj", "up_proj", "down_proj"))
    spec = SPEC.model_copy(update={"epochs": 15.0, "learning_rate": 2e-2})
    pairs = twelve(model.lengths, hard=False)
    measure = build_tuning_evaluation(pairs, model.embedder, spec, 0, ACCELERATOR)
    assert measure is not None
    model.stack.model.eval()
    before = measure()
    trainable = build_contrastive_trainable(
        pairs,
        model.embedder,
        model.stack.trained_parameters,
        model.stack.train,
        spec,
        0,
        ACCELERATOR,
        measure,
        TUNING_LOSS,
    )
    fitted = training.run_training(trainable, spec, ACCELERATOR, tmp_path)
    after = measure()
    assert fitted.total_steps == 30 and after[TUNING_LOSS] == pytest.approx(
        fitted.progress.best, rel=1e-4
    )
    assert (
        after[TUNING_LOSS] < 0.3 * before[TUNING_LOSS]
        and after[TUNING_ACCURACY] > 0.5 > before[TUNING_ACCURACY]
    )


def test_the_same_seed_gives_the_same_weights(model: Toy, tmp_path: Path) -> None:
    fresh, ends = copy_trained_state(model.stack), []
    for run in ("first", "again", "other"):
        load_trained_state(model.stack, fresh)
        pairs, seed = twelve(model.lengths), 1 if run == "other" else 0
        trainable = build_contrastive_trainable(
            pairs,
            model.embedder,
            model.stack.trained_parameters,
            model.stack.train,
            SPEC,
            seed,
            ACCELERATOR,
        )
        training.run_training(
            trainable, SPEC.model_copy(update={"epochs": 1.0}), ACCELERATOR, tmp_path / run
        )
        ends.append(
            torch.cat([tensor.reshape(-1) for tensor in copy_trained_state(model.stack).values()])
        )
    load_trained_state(model.stack, fresh)
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
