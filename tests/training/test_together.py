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
from clinpeft.adapters import Joint, Reading, Stack, Trial
from clinpeft.core.errors import ClinpeftError, InterruptedRun, TrainingError
from clinpeft.core.schemas import Question
from clinpeft.recipe import BaseSpec, ClassifierTrainingSpec, LoraSpec, LossSpec, TrainingSpec
from clinpeft.tokenization import Ints
from clinpeft.training import Course, Exam, Fit, Fitted, Lesson, Vocabulary, Watch
from tests.conftest import WORDS, MakeFolder
from tests.tokenization.test_tokens import write_corpus

CREW = training.assemble()
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


SETTINGS = [  # of different length; the second measures itself to an early end, the third goes by several micro-batches a step
    Setting(2, 4.0, 0.0, 1e-2, seed=3),
    Setting(4, 16.0, 0.3, 3.0, seed=4, epochs=3.0, patience=1),
    Setting(8, 8.0, 0.1, 3e-2, seed=3, epochs=3.0, targets=EVERY, micro=40),
]
Make = Callable[[models.Base, Stack, Setting], tuple[Course, Any]]


@pytest.fixture(scope="module")
def folder(toy_llama: MakeFolder) -> Path:
    return toy_llama(pad_is_eos=True)


@pytest.fixture(scope="module")
def lesson(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """Twenty-four notes of 4 to 15 words, six of them to tune on."""
    rng, at = np.random.default_rng(0), tmp_path_factory.mktemp("lesson")
    texts = [" ".join(rng.choice(WORDS, rng.integers(4, 16))) for _ in range(24)]
    corpus = write_corpus(at, texts, ["train"] * 18 + ["tuning"] * 6)
    tokenizer = models.load(BaseSpec(path=folder), CPU).tokenizer
    encodings = tokenization.encode(
        corpus,
        tokenizer,
        tokenization.layout(tokenizer, "causal-lm"),
        BaseSpec(path=folder),
        at / "encoded",
    )
    return Lesson(
        encodings,
        tokenizer,
        training.OBJECTIVES["causal-lm"],
        0,
        encodings.windows("train"),
        encodings.windows("tuning"),
    )


@pytest.fixture
def words(lesson: Lesson) -> Make:
    """The language objective, its scores made in blocks."""

    def make(base: models.Base, stack: Stack, setting: Setting) -> tuple[Course, Any]:
        own = replace(lesson, seed=setting.seed, vocabulary=Vocabulary(base.model))
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
        return training.language(stack, partial(adapters.logits, stack), own, spec, CREW), spec

    return make


TEXTS = [
    torch.randint(5, 15, (length,), generator=torch.Generator().manual_seed(length))
    for length in (3, 9, 1, 5, 5, 8, 2, 7, 6, 4, 9, 3)
]
TRUTH = torch.tensor([0, 1, 2] * 4)


def read(documents: Ints) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), padded."""
    some = [TEXTS[at] for at in documents]
    ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
    return ids, (
        torch.arange(ids.shape[1])[None] < torch.tensor([len(text) for text in some])[:, None]
    ).long()


@pytest.fixture
def answers() -> Make:
    """Twelve documents of three classes, with a head that drops numbers as well."""

    def make(base: models.Base, stack: Stack, setting: Setting) -> tuple[Course, Any]:
        head = models.Head(base.width, 3, setting.dropout, seed=setting.seed)

        def answered(vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            pooled = models.pool_spans(
                vectors, models.Spans(tuple(mask.sum(dim=1).tolist())), "mean"
            )
            logits: torch.Tensor = head(pooled, torch.arange(len(mask)), len(mask), "mean")
            return logits

        def live(documents: Ints) -> torch.Tensor:
            ids, mask = read(documents)
            return answered(adapters.flat(stack, ids, mask), mask)

        def reading(documents: Ints) -> Reading[torch.Tensor]:
            ids, mask = read(documents)
            return Reading(ids, mask, lambda vectors: answered(vectors, mask))

        def scores(documents: Ints) -> Any:
            with torch.inference_mode():
                return live(documents).numpy()

        lengths, size = np.array([len(text) for text in TEXTS]), 4 if setting.micro > 100 else 2
        exam = Exam(
            question=Question(
                "asked", "multiclass", ("a", "b", "c"), ("",) * 3, (1,) * 3, "auroc_ovo"
            ),
            answer=live,
            truth=TRUTH,
            lengths=lengths,
            train=np.arange(9),
            tuning=np.arange(9, 12),
            grouped=lambda chosen: [chosen[at : at + size] for at in range(0, len(chosen), size)],
            scores=scores,
            metric=lambda logits, _: float(logits.mean()),
            reading=reading,
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
        own = training.as_parameters({"head": head})

        def mode(on: bool) -> None:
            stack.train(on)
            head.train(on)

        loss = LossSpec(class_weights="balanced")
        return training.classification(
            [exam], {**stack.trained, **own}, mode, loss, spec, setting.seed, CREW, tuple(own)
        ), spec

    return make


def load(folder: Path) -> models.Base:
    return models.load(BaseSpec(path=folder), CPU)


def alone(folder: Path, make: Make, setting: Setting, into: Path) -> tuple[Fitted, Course]:
    base = load(folder)
    course, spec = make(base, adapters.attach(base, [setting.spec()], setting.seed), setting)
    return training.fit(course, spec, CREW, into), course


def joined(
    folder: Path,
    make: Make,
    settings: Sequence[Setting],
    into: Path,
    watch: Watch = Watch(),  # noqa: B008
) -> tuple[Joint, list[Fit]]:
    base = load(folder)
    joint = adapters.together(base, [Trial([setting.spec()], setting.seed) for setting in settings])
    made = [
        make(base, stack, setting) for stack, setting in zip(joint.stacks, settings, strict=True)
    ]
    return joint, [
        Fit(course, spec, into / str(at), watch) for at, (course, spec) in enumerate(made)
    ]


def same(
    outcome: Fitted | ClinpeftError, fit: Fit, wanted: Fitted, course: Course, folder: Path
) -> None:
    """Every loss and measurement, the best weights, and which checkpoints there are."""
    assert isinstance(outcome, Fitted)
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
    assert fit.course.parameters.keys() == course.parameters.keys()
    for name, parameter in course.parameters.items():
        torch.testing.assert_close(fit.course.parameters[name], parameter, rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in fit.folder.iterdir()) == sorted(
        path.name for path in folder.iterdir()
    )


@pytest.mark.parametrize("kind", ["words", "answers"])
def test_each_learns_what_it_learns_alone(
    kind: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue(kind)
    joint, fits = joined(folder, make, SETTINGS, tmp_path / "together")
    outcomes = training.fit_together(joint, fits, CREW)
    steps = []
    for at, (setting, fit, outcome) in enumerate(zip(SETTINGS, fits, outcomes, strict=True)):
        wanted, course = alone(folder, make, setting, tmp_path / "alone" / str(at))
        same(outcome, fit, wanted, course, tmp_path / "alone" / str(at))
        steps.append((wanted.progress.step, wanted.total_steps))
    assert (
        steps[0][0] < steps[2][0] and steps[1][0] < steps[1][1]
    )  # one is over before the others, one has lost its patience


def test_a_stopped_pass_goes_on_from_the_checkpoint_of_each(
    folder: Path, words: Make, tmp_path: Path
) -> None:
    seen: list[int] = []
    watch = Watch(tell=lambda event: seen.append(event.step), stopping=lambda: len(seen) >= 5)
    joint, fits = joined(folder, words, SETTINGS, tmp_path / "together", watch)
    assert all(
        isinstance(outcome, InterruptedRun) for outcome in training.fit_together(joint, fits, CREW)
    )
    assert 5 <= len(seen) <= 7
    joint, fits = joined(folder, words, SETTINGS, tmp_path / "together")
    outcomes = training.fit_together(joint, fits, CREW)
    for at in (0, 2):
        wanted, course = alone(folder, words, SETTINGS[at], tmp_path / "alone" / str(at))
        same(outcomes[at], fits[at], wanted, course, tmp_path / "alone" / str(at))


def test_activations_that_are_computed_again_change_nothing(
    folder: Path, words: Make, tmp_path: Path
) -> None:
    found = []
    for again in (False, True):
        joint, fits = joined(folder, words, SETTINGS[1:], tmp_path / str(again))
        if again:
            adapters.recompute(joint.stacks[0], "a test")
        found.append(
            [
                outcome.progress.history
                for outcome in training.fit_together(joint, fits, CREW)
                if isinstance(outcome, Fitted)
            ]
        )
    assert len(found[0]) == 2 and found[0] == found[1]


def test_a_trial_that_fails_leaves_the_others_as_they_are(
    folder: Path, answers: Make, tmp_path: Path
) -> None:
    joint, fits = joined(folder, answers, SETTINGS, tmp_path / "together")
    share = fits[1].course.share
    assert share is not None

    def broken(items: Ints, step: int) -> Reading[training.Sums]:
        found = share.reading(items, step)
        return replace(
            found,
            answer=lambda vectors: found.answer(vectors * (float("nan") if step == 2 else 1.0)),
        )

    fits[1] = replace(fits[1], course=replace(fits[1].course, share=replace(share, reading=broken)))
    outcomes = training.fit_together(joint, fits, CREW)
    assert isinstance(outcomes[1], TrainingError) and "step 2 of" in str(outcomes[1])
    wanted, course = alone(folder, answers, SETTINGS[0], tmp_path / "alone")
    same(outcomes[0], fits[0], wanted, course, tmp_path / "alone")


def test_what_cannot_be_learned_in_one_pass_is_refused(
    folder: Path, words: Make, answers: Make, tmp_path: Path
) -> None:
    joint, fits = joined(folder, words, SETTINGS[:2], tmp_path)
    with pytest.raises(TrainingError, match="1 courses for 2 stacks"):
        training.fit_together(joint, fits[:1], CREW)
    with pytest.raises(TrainingError, match="does not say how"):
        training.fit_together(
            joint, [fits[0], replace(fits[1], course=replace(fits[1].course, share=None))], CREW
        )
    other, _ = answers(joint.base, joint.stacks[1], SETTINGS[1])
    with pytest.raises(TrainingError, match="for words and trials that ask for vectors"):
        training.fit_together(joint, [fits[0], replace(fits[1], course=other)], CREW)
