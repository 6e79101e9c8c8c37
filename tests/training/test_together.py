"""Trials in one pass: each learns, measures, stops and is kept as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clinpeft import adapters, models, tokenization, training
from clinpeft.adapters import MultiAdapterModel, PackedInput, Stack, TrialAdapters
from clinpeft.core.errors import ClinpeftError, InterruptedRunError, TrainingError
from clinpeft.core.schemas import LabelSpace
from clinpeft.recipe import (
    ClassifierTrainingSpec,
    LanguageModelSpec,
    LoraSpec,
    LossSpec,
    TrainingSpec,
)
from clinpeft.tokenization import IndexArray
from clinpeft.training import (
    ClassificationData,
    LanguageModelHead,
    LanguageModelingData,
    Trainable,
    TrainingCallbacks,
    TrainingResult,
    TrialTraining,
)
from tests.conftest import WORDS, MakeFolder
from tests.tokenization.test_tokens import write_corpus

ACCELERATOR = training.create_accelerator()
CPU = torch.device("cpu")
EVERY = ("q_proj", "v_proj", "down_proj")


@dataclass(frozen=True)
class Setting:
    """What a trial differs in."""

    rank: int
    alpha: float
    dropout: float
    rate: float
    seed: int
    epochs: float = 2.0
    patience: int = 0
    targets: tuple[str, ...] = ()
    micro: int = 1000

    def spec(self) -> LoraSpec:
        return LoraSpec(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets
        )


# of different length; the second measures itself to an early end, the third goes by several
# micro-batches a step
SETTINGS = [
    Setting(2, 4.0, 0.0, 1e-2, seed=3),
    Setting(4, 16.0, 0.3, 3.0, seed=4, epochs=3.0, patience=1),
    Setting(8, 8.0, 0.1, 3e-2, seed=3, epochs=3.0, targets=EVERY, micro=40),
]
Make = Callable[[models.FrozenBaseModel, Stack, Setting], tuple[Trainable, Any]]


@pytest.fixture(scope="module")
def folder(toy_llama: MakeFolder) -> Path:
    return toy_llama(pad_is_eos=True)


@pytest.fixture(scope="module")
def language_data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LanguageModelingData:
    """Twenty-four notes of 4 to 15 words, six of them to tune on."""
    rng, at = np.random.default_rng(0), tmp_path_factory.mktemp("lesson")
    texts = [" ".join(rng.choice(WORDS, rng.integers(4, 16))) for _ in range(24)]
    corpus = write_corpus(at, texts, ["train"] * 18 + ["tuning"] * 6)
    tokenizer = models.load_base_model(LanguageModelSpec(path=folder), CPU).tokenizer
    encodings = tokenization.encode_corpus(
        corpus,
        tokenizer,
        tokenization.create_special_token_layout(tokenizer, "causal-lm"),
        LanguageModelSpec(path=folder),
        at / "encoded",
    )
    return LanguageModelingData(
        encodings,
        tokenizer,
        training.LANGUAGE_OBJECTIVES["causal-lm"],
        0,
        encodings.select_windows("train"),
        encodings.select_windows("tuning"),
    )


@pytest.fixture
def words(language_data: LanguageModelingData) -> Make:
    """The language objective, its scores made in blocks."""

    def make(base: models.FrozenBaseModel, stack: Stack, setting: Setting) -> tuple[Trainable, Any]:
        own = replace(
            language_data, seed=setting.seed, language_model_head=LanguageModelHead(base.model)
        )
        spec = TrainingSpec(
            learning_rate=setting.rate,
            epochs=setting.epochs,
            patience=setting.patience,
            clip_norm=0.5,
            batch_tokens=60,
            micro_batch_tokens=setting.micro,
            evaluations=9,
            checkpoints=4,
        )
        return training.build_language_modeling_trainable(
            stack, partial(adapters.compute_token_logits, stack), own, spec, ACCELERATOR
        ), spec

    return make


TEXTS = [
    torch.randint(5, 15, (length,), generator=torch.Generator().manual_seed(length))
    for length in (3, 9, 1, 5, 5, 8, 2, 7, 6, 4, 9, 3)
]
TRUTH = torch.tensor([0, 1, 2] * 4)


def read(documents: IndexArray) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), padded."""
    some = [TEXTS[at] for at in documents]
    ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
    return ids, (
        torch.arange(ids.shape[1])[None] < torch.tensor([len(text) for text in some])[:, None]
    ).long()


@pytest.fixture
def answers() -> Make:
    """Twelve documents of three classes, with a head that drops numbers as well."""

    def make(base: models.FrozenBaseModel, stack: Stack, setting: Setting) -> tuple[Trainable, Any]:
        head = models.Head(base.width, 3, setting.dropout, seed=setting.seed)

        def answered(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            pooled = models.pool_packed_hidden_states(
                vectors, models.SequenceLengths(tuple(mask.sum(dim=1).tolist())), "mean"
            )
            logits: torch.Tensor = head(pooled, torch.arange(len(mask)), len(mask), "mean")
            return logits

        def live(documents: IndexArray) -> torch.Tensor:
            ids, mask = read(documents)
            return answered(adapters.compute_packed_hidden_states(stack, ids, mask), mask)

        def reading(documents: IndexArray) -> PackedInput[torch.Tensor]:
            ids, mask = read(documents)
            return PackedInput(ids, mask, lambda vectors: answered(vectors, mask))

        def scores(documents: IndexArray) -> Any:
            with torch.inference_mode():
                return live(documents).numpy()

        lengths, size = np.array([len(text) for text in TEXTS]), 4 if setting.micro > 100 else 2
        task_data = ClassificationData(
            label_space=LabelSpace(
                "asked", "multiclass", ("a", "b", "c"), ("",) * 3, (1,) * 3, "auroc_ovo"
            ),
            compute_logits=live,
            labels=TRUTH,
            token_counts=lengths,
            train_documents=np.arange(9),
            tuning_documents=np.arange(9, 12),
            make_micro_batches=lambda chosen: [
                chosen[at : at + size] for at in range(0, len(chosen), size)
            ],
            gather_logits=scores,
            compute_metric=lambda logits, _: float(logits.mean()),
            prepare_input=reading,
        )
        spec = ClassifierTrainingSpec(
            learning_rate=setting.rate,
            epochs=setting.epochs,
            patience=setting.patience,
            head_learning_rate=0.05,
            batch_notes=4,
            evaluations=9,
            checkpoints=4,
            select_by="loss",
        )
        own = training.collect_module_parameters({"head": head})

        def mode(on: bool) -> None:
            stack.train(on)
            head.train(on)

        loss = LossSpec(class_weights="balanced")
        return training.build_classification_trainable(
            [task_data],
            {**stack.trained_parameters, **own},
            mode,
            loss,
            spec,
            setting.seed,
            ACCELERATOR,
            tuple(own),
        ), spec

    return make


def load(folder: Path) -> models.FrozenBaseModel:
    return models.load_base_model(LanguageModelSpec(path=folder), CPU)


def alone(
    folder: Path, make: Make, setting: Setting, into: Path
) -> tuple[TrainingResult, Trainable]:
    base = load(folder)
    trainable, spec = make(
        base, adapters.attach_adapters(base, [setting.spec()], setting.seed), setting
    )
    return training.run_training(trainable, spec, ACCELERATOR, into), trainable


def joined(
    folder: Path,
    make: Make,
    settings: Sequence[Setting],
    into: Path,
    watch: TrainingCallbacks = TrainingCallbacks(),  # noqa: B008
) -> tuple[MultiAdapterModel, list[TrialTraining]]:
    base = load(folder)
    joint = adapters.attach_stacks(
        base, [TrialAdapters([setting.spec()], setting.seed) for setting in settings]
    )
    attach = [
        make(base, stack, setting) for stack, setting in zip(joint.stacks, settings, strict=True)
    ]
    return joint, [
        TrialTraining(trainable, spec, into / str(at), watch)
        for at, (trainable, spec) in enumerate(attach)
    ]


def same(
    outcome: TrainingResult | ClinpeftError,
    fit: TrialTraining,
    wanted: TrainingResult,
    trainable: Trainable,
    folder: Path,
) -> None:
    """Every loss and measurement, the best weights, and which checkpoints there are."""
    assert isinstance(outcome, TrainingResult)
    ours, theirs = outcome.progress, wanted.progress
    assert (ours.step, ours.tokens, ours.best_step, outcome.total_steps) == (
        theirs.step,
        theirs.tokens,
        theirs.best_step,
        wanted.total_steps,
    )
    assert [sorted(point) for point in ours.history] == [sorted(point) for point in theirs.history]
    for one, other in zip(ours.history, theirs.history, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert fit.trainable.parameters.keys() == trainable.parameters.keys()
    for name, parameter in trainable.parameters.items():
        torch.testing.assert_close(fit.trainable.parameters[name], parameter, rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in fit.folder.iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )


@pytest.mark.parametrize("kind", ["words", "answers"])
def test_each_learns_what_it_learns_alone(
    kind: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue(kind)
    joint, fits = joined(folder, make, SETTINGS, tmp_path / "together")
    outcomes = training.train_jointly(joint, fits, ACCELERATOR)
    steps = []
    for at, (setting, fit, outcome) in enumerate(zip(SETTINGS, fits, outcomes, strict=True)):
        wanted, trainable = alone(folder, make, setting, tmp_path / "alone" / str(at))
        same(outcome, fit, wanted, trainable, tmp_path / "alone" / str(at))
        steps.append((wanted.progress.step, wanted.total_steps))
    assert (
        steps[0][0] < steps[2][0] and steps[1][0] < steps[1][1]
    )  # one is over before the others, one has lost its patience


def test_a_stopped_pass_goes_on_from_the_checkpoint_of_each(
    folder: Path, words: Make, tmp_path: Path
) -> None:
    seen: list[int] = []
    watch = TrainingCallbacks(
        on_step=lambda event: seen.append(event.step), should_stop=lambda: len(seen) >= 5
    )
    joint, fits = joined(folder, words, SETTINGS, tmp_path / "together", watch)
    assert all(
        isinstance(outcome, InterruptedRunError)
        for outcome in training.train_jointly(joint, fits, ACCELERATOR)
    )
    assert 5 <= len(seen) <= 7
    joint, fits = joined(folder, words, SETTINGS, tmp_path / "together")
    outcomes = training.train_jointly(joint, fits, ACCELERATOR)
    for at in (0, 2):
        wanted, trainable = alone(folder, words, SETTINGS[at], tmp_path / "alone" / str(at))
        same(outcomes[at], fits[at], wanted, trainable, tmp_path / "alone" / str(at))


def test_activations_that_are_computed_again_change_nothing(
    folder: Path, words: Make, tmp_path: Path
) -> None:
    actual = []
    for again in (False, True):
        joint, fits = joined(folder, words, SETTINGS[1:], tmp_path / str(again))
        if again:
            adapters.enable_activation_checkpointing(joint.stacks[0], "a test")
        actual.append(
            [
                outcome.progress.history
                for outcome in training.train_jointly(joint, fits, ACCELERATOR)
                if isinstance(outcome, TrainingResult)
            ]
        )
    assert len(actual[0]) == 2 and actual[0] == actual[1]


def test_a_trial_that_fails_leaves_the_others_as_they_are(
    folder: Path, answers: Make, tmp_path: Path
) -> None:
    joint, fits = joined(folder, answers, SETTINGS, tmp_path / "together")
    share = fits[1].trainable.joint_step
    assert share is not None

    def broken(items: IndexArray, step: int) -> PackedInput[training.LossSum]:
        actual = share.prepare_input(items, step)
        return replace(
            actual,
            process_output=lambda vectors: actual.process_output(
                vectors * (float("nan") if step == 2 else 1.0)
            ),
        )

    fits[1] = replace(
        fits[1],
        trainable=replace(fits[1].trainable, joint_step=replace(share, prepare_input=broken)),
    )
    outcomes = training.train_jointly(joint, fits, ACCELERATOR)
    assert isinstance(outcomes[1], TrainingError) and "step 2 of" in str(outcomes[1])
    wanted, trainable = alone(folder, answers, SETTINGS[0], tmp_path / "alone")
    same(outcomes[0], fits[0], wanted, trainable, tmp_path / "alone")


def test_what_cannot_be_learned_in_one_pass_is_refused(
    folder: Path, words: Make, answers: Make, tmp_path: Path
) -> None:
    joint, fits = joined(folder, words, SETTINGS[:2], tmp_path)
    with pytest.raises(TrainingError, match="1 trainings for 2 stacks"):
        training.train_jointly(joint, fits[:1], ACCELERATOR)
    with pytest.raises(TrainingError, match="without a joint step"):
        training.train_jointly(
            joint,
            [fits[0], replace(fits[1], trainable=replace(fits[1].trainable, joint_step=None))],
            ACCELERATOR,
        )
    other, _ = answers(joint.base, joint.stacks[1], SETTINGS[1])
    with pytest.raises(TrainingError, match="on logits and trials on hidden states"):
        training.train_jointly(joint, [fits[0], replace(fits[1], trainable=other)], ACCELERATOR)
