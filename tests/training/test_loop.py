"""The loop on toy models: what it adds up, where it stops, how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from clinpeft import adapters, models, tokenization, training
from clinpeft.core.errors import InputError, InterruptedRunError, TrainingError
from clinpeft.recipe import LanguageModelSpec, LoraSpec, TrainingSpec
from clinpeft.training import LanguageModelingData, StepEvent, TrainingCallbacks
from clinpeft.training.checkpoint import TrainingProgress
from clinpeft.training.trainer import compute_learning_rate, count_total_steps
from tests.conftest import WORDS, MakeFolder
from tests.tokenization.test_tokens import write_corpus

ACCELERATOR = training.create_accelerator()
SPEC = TrainingSpec(
    learning_rate=1e-2,
    epochs=2,
    batch_tokens=100,
    micro_batch_tokens=1000,
    evaluations=4,
    checkpoints=4,
)


@pytest.fixture(scope="module")
def folder(toy_llama: MakeFolder) -> Path:
    return toy_llama(pad_is_eos=True)


@pytest.fixture
def language_data(folder: Path, tmp_path: Path) -> LanguageModelingData:
    """Forty notes of 4 to 19 words, ten of them to tune on."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(4, 20))) for _ in range(40)]
    corpus = write_corpus(tmp_path, texts, ["train"] * 30 + ["tuning"] * 10)
    tokenizer = models.load_base_model(
        LanguageModelSpec(path=folder), torch.device("cpu")
    ).tokenizer
    encodings = tokenization.encode_corpus(
        corpus,
        tokenizer,
        tokenization.create_special_token_layout(tokenizer, "causal-lm"),
        LanguageModelSpec(path=folder),
        tmp_path / "encoded",
    )
    asking = training.LANGUAGE_OBJECTIVES["causal-lm"]
    return LanguageModelingData(
        encodings,
        tokenizer,
        asking,
        seed=5,
        train_windows=encodings.select_windows("train"),
        tuning_windows=encodings.select_windows("tuning"),
    )


Build = Callable[..., adapters.Stack]


@pytest.fixture
def build(folder: Path) -> Build:
    def make(dropout: float = 0.0, targets: tuple[str, ...] = ()) -> adapters.Stack:
        torch.manual_seed(1)
        return adapters.attach_adapters(
            models.load_base_model(LanguageModelSpec(path=folder), torch.device("cpu")),
            [LoraSpec(rank=4, dropout=dropout, targets=targets)],
        )

    return make


@dataclass(frozen=True)
class Trained:
    """What was trained, and how it went."""

    stack: adapters.Stack
    progress: TrainingProgress
    total_steps: int


def fit(
    stack: adapters.Stack,
    language_data: LanguageModelingData,
    spec: TrainingSpec,
    folder: Path,
    watch: TrainingCallbacks | None = None,
    forward: training.TokenLogitFunction | None = None,
) -> Trained:
    trainable = training.build_language_modeling_trainable(
        stack,
        forward or partial(adapters.compute_token_logits, stack),
        language_data,
        spec,
        ACCELERATOR,
    )
    fitted = training.run_training(
        trainable, spec, ACCELERATOR, folder, watch or TrainingCallbacks()
    )
    return Trained(stack, fitted.progress, fitted.total_steps)


def weights(stack: adapters.Stack) -> torch.Tensor:
    return torch.cat(
        [parameter.detach().reshape(-1) for parameter in stack.trained_parameters.values()]
    )


def test_eight_micro_batches_of_one_learn_what_one_of_eight_learns(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    whole = fit(build(), language_data, SPEC, tmp_path / "whole")
    parts = fit(
        build(),
        language_data,
        SPEC.model_copy(update={"micro_batch_tokens": 1}),
        tmp_path / "parts",
    )
    assert torch.allclose(weights(whole.stack), weights(parts.stack), atol=1e-5)
    assert not torch.allclose(weights(whole.stack), weights(build()), atol=1e-3)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    first, again = (
        fit(build(0.3), language_data, SPEC, tmp_path / "1"),
        fit(build(0.3), language_data, SPEC, tmp_path / "2"),
    )
    assert torch.equal(weights(first.stack), weights(again.stack))
    other = LanguageModelingData(
        language_data.encodings,
        language_data.tokenizer,
        language_data.label_batch,
        6,
        language_data.train_windows,
        language_data.tuning_windows,
    )
    assert not torch.equal(
        weights(first.stack), weights(fit(build(0.3), other, SPEC, tmp_path / "3").stack)
    )


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_stopped_run_goes_on_to_bit_equal_weights(
    language_data: LanguageModelingData, build: Build, tmp_path: Path, stop_after: int
) -> None:
    straight = fit(build(0.3), language_data, SPEC, tmp_path / "straight")
    seen: list[StepEvent] = []
    watch = TrainingCallbacks(on_step=seen.append, should_stop=lambda: len(seen) == stop_after)
    with pytest.raises(InterruptedRunError, match=f"stopped after step {stop_after} of"):
        fit(build(0.3), language_data, SPEC, tmp_path / "stopped", watch)
    went_on = fit(
        build(0.3),
        language_data,
        SPEC,
        tmp_path / "stopped",
        TrainingCallbacks(on_step=seen.append),
    )
    assert torch.equal(weights(straight.stack), weights(went_on.stack))
    assert [event.step for event in seen] == list(range(1, straight.total_steps + 1))
    assert [point["loss"] for point in straight.progress.history] == [
        point["loss"] for point in went_on.progress.history
    ]


def test_the_loss_falls_and_the_end_of_a_note_is_learned_where_pad_is_eos(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(update={"epochs": 20, "learning_rate": 3e-2})
    stack = build(targets=("o_proj", "down_proj", "up_proj", "gate_proj"))
    ids = torch.from_numpy(
        language_data.encodings.tokens[: int(language_data.encodings.lengths[0])].astype(np.int64)
    )[None]
    ones, eos = torch.ones_like(ids), language_data.tokenizer.eos_token_id

    def chance_of_eos() -> float:
        stack.model.eval()
        with torch.no_grad():
            return (
                partial(adapters.compute_token_logits, stack)(ids, ones)
                .softmax(-1)[0, -2, eos]
                .item()
            )

    before = chance_of_eos()
    to_the_end = replace(
        language_data, tuning_windows=language_data.tuning_windows[:0]
    )  # random words leave little to learn but where they end
    history = fit(stack, to_the_end, spec, tmp_path / "run").progress.history
    assert history[-1]["loss"] < history[0]["loss"] - 0.05
    assert chance_of_eos() > 1.2 * before  # where it were never asked, it would fall


def test_the_best_weights_by_tuning_perplexity_are_kept(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(
        update={
            "learning_rate": 3.0,
            "schedule": "constant",
            "warmup_fraction": 1.0,
            "clip_norm": 100.0,
            "evaluations": 1000,
        }
    )
    fitted = fit(
        build(), language_data, spec, tmp_path / "run"
    )  # the rate climbs until it ruins the weights
    measured = [point["tuning_perplexity"] for point in fitted.progress.history]
    assert fitted.progress.best_step == int(np.argmin(measured)) + 1 < fitted.total_steps
    table = training.compute_note_likelihoods(
        partial(adapters.compute_token_logits, fitted.stack),
        language_data,
        language_data.tuning_windows,
        1000,
        ACCELERATOR,
    )
    nll, count = sum(table["negative_log_likelihood"].to_pylist()), sum(table["tokens"].to_pylist())
    assert np.exp(nll / count) == pytest.approx(min(measured), rel=1e-5)


def test_patience_ends_a_run_that_no_longer_improves(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    spec = SPEC.model_copy(
        update={"learning_rate": 3.0, "clip_norm": 100.0, "evaluations": 1000, "patience": 2}
    )
    fitted = fit(build(), language_data, spec, tmp_path / "run")
    assert fitted.progress.step == fitted.progress.best_step + 2 < fitted.total_steps


def test_a_loss_that_is_not_a_number_stops_the_run(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    stack = build()
    broken = lambda ids, mask: (  # noqa: E731
        partial(adapters.compute_token_logits, stack)(ids, mask) * float("nan")
    )
    with pytest.raises(TrainingError, match="loss nan") as raised:
        fit(stack, language_data, SPEC, tmp_path, forward=broken)
    assert "step 1 of" in str(raised.value) and "learning_rate" in str(raised.value)


def test_an_adapter_outside_the_forward_pass_stops_the_run(
    language_data: LanguageModelingData, build: Build, folder: Path, tmp_path: Path
) -> None:
    bare = models.load_base_model(LanguageModelSpec(path=folder), torch.device("cpu"))
    anchor = torch.zeros((), requires_grad=True)
    outside = lambda ids, mask: bare.model(input_ids=ids, attention_mask=mask).logits + anchor  # noqa: E731
    with pytest.raises(TrainingError, match=r"8 trained tensors .* in 3 steps"):
        fit(
            build(),
            language_data,
            SPEC.model_copy(update={"weight_decay": 0.0}),
            tmp_path,
            forward=outside,
        )


def test_an_empty_training_split_is_an_error(
    language_data: LanguageModelingData, build: Build, tmp_path: Path
) -> None:
    nothing = LanguageModelingData(
        language_data.encodings,
        language_data.tokenizer,
        language_data.label_batch,
        0,
        language_data.train_windows[:0],
        language_data.tuning_windows,
    )
    with pytest.raises(InputError) as raised:
        fit(build(), nothing, SPEC, tmp_path)
    assert raised.value.location == "split.train"


def test_the_warm_up_is_a_share_of_the_steps_and_the_schedule_ends_near_nothing() -> None:
    spec = TrainingSpec(learning_rate=1.0, warmup_fraction=0.1, schedule="linear")
    rates = [compute_learning_rate(spec, step, 20) for step in range(1, 21)]
    assert rates[:3] == [0.5, 1.0, pytest.approx(18 / 19)]
    assert rates[-1] == pytest.approx(1 / 19)
    cosine = spec.model_copy(update={"schedule": "cosine"})
    assert compute_learning_rate(cosine, 11, 20) == pytest.approx(
        0.5 * (1 - np.cos(np.pi * 10 / 19))
    )
    assert compute_learning_rate(spec.model_copy(update={"schedule": "constant"}), 20, 20) == 1.0
    assert compute_learning_rate(
        spec.model_copy(update={"warmup_fraction": 0.0}), 1, 20
    ) == pytest.approx(20 / 21)


def test_steps_follow_epochs_and_the_upper_bound(
    language_data: LanguageModelingData, build: Build
) -> None:
    stack = build()
    trainable = training.build_language_modeling_trainable(
        stack, partial(adapters.compute_token_logits, stack), language_data, SPEC, ACCELERATOR
    )
    one = count_total_steps(trainable, SPEC.model_copy(update={"epochs": 1}))
    assert one == len(trainable.make_epoch_batches(0))
    assert count_total_steps(trainable, SPEC.model_copy(update={"epochs": 0.5})) == -(-one // 2)
    assert count_total_steps(trainable, SPEC.model_copy(update={"max_steps": 2})) == 2


def test_the_unigram_baseline_is_counted_by_hand(folder: Path, tmp_path: Path) -> None:
    tokenizer = models.load_base_model(
        LanguageModelSpec(path=folder), torch.device("cpu")
    ).tokenizer
    corpus = write_corpus(tmp_path, ["cough cough fever", "cough"], ["train", "held_out"])
    encodings = tokenization.encode_corpus(
        corpus,
        tokenizer,
        tokenization.create_special_token_layout(tokenizer, "causal-lm"),
        LanguageModelSpec(path=folder),
        tmp_path / "encoded",
    )
    train, held_out = encodings.select_windows("train"), encodings.select_windows("held_out")
    language_data = LanguageModelingData(
        encodings, tokenizer, training.LANGUAGE_OBJECTIVES["causal-lm"], 0, train, held_out
    )
    table = training.compute_unigram_likelihoods(language_data, train, held_out)
    seen = 4 + len(tokenizer)  # cough cough fever eos, and one more of each
    assert table["tokens"].to_pylist() == [2]
    assert table["negative_log_likelihood"].to_pylist() == [
        pytest.approx(-np.log(3 / seen) - np.log(2 / seen))
    ]


def metered() -> Callable[[], float]:
    """Ten joules further at every look."""
    looks = iter(range(500, 10_000, 10))
    return lambda: float(next(looks))


def test_energy_is_added_up_over_attempts(
    build: Build, language_data: LanguageModelingData, tmp_path: Path
) -> None:
    seen: list[StepEvent] = []
    with pytest.raises(InterruptedRunError):
        fit(
            build(),
            language_data,
            SPEC,
            tmp_path,
            TrainingCallbacks(
                on_step=seen.append, should_stop=lambda: len(seen) == 2, read_joules=metered()
            ),
        )
    actual = fit(build(), language_data, SPEC, tmp_path, TrainingCallbacks(read_joules=metered()))
    assert actual.total_steps > 2
    assert actual.progress.joules == 10.0 * actual.total_steps


def test_energy_is_unknown_where_it_is_of_a_part_of_the_steps(
    build: Build, language_data: LanguageModelingData, tmp_path: Path
) -> None:
    seen: list[StepEvent] = []
    with pytest.raises(InterruptedRunError):
        fit(
            build(),
            language_data,
            SPEC,
            tmp_path,
            TrainingCallbacks(on_step=seen.append, should_stop=lambda: len(seen) == 2),
        )
    assert (
        fit(
            build(), language_data, SPEC, tmp_path, TrainingCallbacks(read_joules=metered())
        ).progress.joules
        is None
    )
