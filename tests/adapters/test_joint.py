"""Trials trained in one pass: each answers and learns as it would alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import adapters
from clinpeft.adapters import MultiAdapterModel, Stack, TrialAdapters
from clinpeft.core.errors import AdapterError
from tests.adapters.toys import answers, earlier, finished, load, spec

MakeFolder = Callable[..., Path]
LENGTHS = (5, 9, 4)
ROW = torch.randint(5, 15, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
STARTS = (0, 5, 14)
SLICES = [slice(start, start + length) for start, length in zip(STARTS, LENGTHS, strict=True)]
PLACES = torch.cat([torch.arange(length) for length in LENGTHS])[None]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def clinical(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(llama, "lora", tmp_path_factory.mktemp("clinical") / "adapter")


def trials(clinical: Path, dropout: float = 0.0) -> list[TrialAdapters]:
    """Of different rank, scale, dropout, targets and seed, one above a frozen adapter."""
    return [
        TrialAdapters([spec("lora", rank=2, dropout=dropout)], seed=3),
        TrialAdapters(
            [
                earlier("lora"),
                spec(
                    "rslora", rank=4, alpha=3, dropout=dropout / 2, targets=("k_proj", "down_proj")
                ),
            ],
            4,
            {"clinical": clinical},
        ),
        TrialAdapters(
            [spec("lora", rank=8, alpha=32, targets=("q_proj", "o_proj", "up_proj"))], seed=3
        ),
    ]


def shaken(stack: Stack, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(stack.trained_parameters):
            stack.trained_parameters[name].add_(
                0.1 * torch.randn(stack.trained_parameters[name].shape, generator=draws)
            )


def joined(llama: Path, clinical: Path, dropout: float = 0.0) -> MultiAdapterModel:
    joint = adapters.attach_stacks(load(llama), trials(clinical, dropout))
    for at, stack in enumerate(joint.stacks):
        shaken(stack, at)
    return joint


def single(llama: Path, clinical: Path, at: int, dropout: float = 0.0) -> Stack:
    trial = trials(clinical, dropout)[at]
    stack = adapters.attach_adapters(load(llama), trial.specs, trial.seed, trial.folders)
    shaken(stack, at)
    return stack


def take_gradients(vectors: torch.Tensor, rows: slice = slice(None)) -> None:
    """A loss that a norm over the width does not make constant."""
    wanted = torch.randn(
        sum(LENGTHS), vectors.shape[1], generator=torch.Generator().manual_seed(2)
    )[rows]
    (vectors * wanted).sum().backward()  # type: ignore[no-untyped-call]


def run_model(model: Any, rows: slice | None = None) -> torch.Tensor:
    """Vectors of the whole row, or of one document alone, each document seeing itself only."""
    documents = torch.cat([torch.full((length,), at) for at, length in enumerate(LENGTHS)])
    seen = (documents[:, None] == documents[None]) & torch.ones(
        len(documents), len(documents), dtype=torch.bool
    ).tril()
    rows = rows or slice(None)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[
        None, None, rows, rows
    ]
    vectors: torch.Tensor = model(
        input_ids=ROW[:, rows], position_ids=PLACES[:, rows], attention_mask=mask
    ).last_hidden_state
    return vectors[0]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_and_gradients_of_each_are_those_of_the_trial_alone(
    dropout: float, llama: Path, clinical: Path
) -> None:
    joint = joined(llama, clinical, dropout)
    joint.train()
    with joint.route_tokens(SLICES, [torch.Generator().manual_seed(10 + at) for at in range(3)]):
        together = run_model(joint.base.backbone)
    take_gradients(together)
    for at, rows in enumerate(SLICES):
        alone = single(llama, clinical, at, dropout)
        alone.train()
        with torch.random.fork_rng():
            torch.manual_seed(10 + at)
            vectors = run_model(alone.base.backbone, rows)
        take_gradients(vectors, rows)
        torch.testing.assert_close(together[rows], vectors, rtol=1e-5, atol=1e-6)
        assert joint.stacks[at].trained_parameters.keys() == alone.trained_parameters.keys()
        for name, parameter in alone.trained_parameters.items():
            ours, theirs = joint.stacks[at].trained_parameters[name].grad, parameter.grad
            assert (
                ours is not None
                and theirs is not None
                and float((ours - theirs).norm() / theirs.norm()) < 5e-6
            )


def test_first_weights_are_those_of_the_trial_alone(llama: Path, clinical: Path) -> None:
    joint = adapters.attach_stacks(load(llama), trials(clinical))
    for trial, stack in zip(trials(clinical), joint.stacks, strict=True):
        alone = adapters.attach_adapters(load(llama), trial.specs, trial.seed, trial.folders)
        assert (
            alone.trained_parameters.keys() == stack.trained_parameters.keys()
            and stack.counts == alone.counts
        )
        assert all(
            torch.equal(alone.trained_parameters[name], parameter)
            for name, parameter in stack.trained_parameters.items()
        )


def test_a_gradient_goes_to_no_other_trial(llama: Path, clinical: Path) -> None:
    joint = joined(llama, clinical)
    with joint.route_tokens(SLICES):
        run_model(joint.base.backbone)[SLICES[1]].sum().backward()  # type: ignore[no-untyped-call]
    for at, stack in enumerate(joint.stacks):
        assert all(
            (parameter.grad is not None and bool(parameter.grad.any())) == (at == 1)
            for parameter in stack.trained_parameters.values()
        )


def test_tokens_of_no_trial_see_the_bare_base(llama: Path, clinical: Path) -> None:
    joint, bare = joined(llama, clinical), load(llama)
    with torch.no_grad(), joint.route_tokens([None, SLICES[1], None], token_count=18):
        actual = run_model(joint.base.backbone)
    with torch.no_grad():
        wanted = run_model(bare.backbone)
    torch.testing.assert_close(actual[SLICES[0]], wanted[SLICES[0]])
    assert not torch.allclose(actual[SLICES[1]], wanted[SLICES[1]])


def test_outside_of_everything_it_is_the_bare_base_and_alone_it_is_the_trial(
    llama: Path, clinical: Path
) -> None:
    joint = joined(llama, clinical)
    bare = answers(adapters.attach_adapters(load(llama), []))
    trained = {
        parameter for stack in joint.stacks for parameter in stack.trained_parameters.values()
    }
    for at in (1, 0, 2):
        with joint.isolate_stack(at) as stack:
            torch.testing.assert_close(answers(stack), answers(single(llama, clinical, at)))
            with stack.disable_adapters():
                torch.testing.assert_close(answers(stack), bare)
        names = {adapter.name for adapter in joint.stacks[at].adapters}
        assert joint.stacks[at].disabled_adapters == names
        torch.testing.assert_close(answers(joint.stacks[at]), bare)
        assert {
            parameter for parameter in joint.stacks[0].model.parameters() if parameter.requires_grad
        } == trained


def test_a_trial_is_saved_and_merged_as_if_it_were_alone(
    llama: Path, clinical: Path, tmp_path: Path
) -> None:
    joint = joined(llama, clinical)
    with joint.isolate_stack(2) as stack:
        adapters.save_adapter(stack, tmp_path / "third")
        merged, unmerged = stack.create_merged_model(), answers(stack)
    torch.testing.assert_close(
        answers(adapters.load_adapter(load(llama), tmp_path / "third")), unmerged
    )
    with joint.isolate_stack(1) as stack:
        adapters.save_adapter_stack(stack, tmp_path / "second")
        wanted = answers(stack)
    torch.testing.assert_close(
        answers(adapters.load_adapter_stack(load(llama), tmp_path / "second")), wanted
    )
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_more_than_nine_trials_keep_their_weights_apart(llama: Path, tmp_path: Path) -> None:
    joint = adapters.attach_stacks(
        load(llama), [TrialAdapters([spec("lora", rank=1)], seed) for seed in range(11)]
    )
    for at in (1, 10):
        with joint.isolate_stack(at) as stack:
            adapters.save_adapter(stack, tmp_path / str(at))
        again = adapters.load_adapter(load(llama), tmp_path / str(at))
        saved = sum(
            parameter.numel()
            for adapter in again.adapters
            for parameter in adapter.parameters.values()
        )
        assert saved == stack.counts.trained_parameters


@pytest.mark.parametrize(
    ("slices", "fragment"),
    [
        ([slice(0, 5), slice(5, 18)], "2 slices"),
        ([slice(0, 6), slice(5, 14), slice(14, 18)], "without overlaps"),
        ([slice(0, 5), slice(5, 14), slice(14, 17)], "17"),
    ],
)
def test_slices_that_do_not_fit_are_refused(
    slices: list[slice], fragment: str, llama: Path, clinical: Path
) -> None:
    joint = joined(llama, clinical)
    with pytest.raises(AdapterError) as error, joint.route_tokens(slices):
        run_model(joint.base.backbone)
    assert fragment in str(error.value)


@pytest.mark.parametrize("method", ["dora", "prefix"])
def test_a_method_that_is_more_than_a_low_rank_product_is_refused(method: str, llama: Path) -> None:
    with pytest.raises(AdapterError, match=method) as error:
        adapters.attach_stacks(
            load(llama), [TrialAdapters([spec("lora")]), TrialAdapters([spec(method)])]
        )
    assert error.value.location == "adapters.method"


def test_dropout_of_the_base_is_told(toy_bert: Path, llama: Path) -> None:
    joint = adapters.attach_stacks(load(toy_bert), [TrialAdapters([spec("lora")])])
    assert "hidden_dropout_prob = 0.1" in joint.notices[0]
    assert adapters.attach_stacks(load(llama), [TrialAdapters([spec("lora")])]).notices == ()


def test_after_an_error_it_is_the_bare_base_again(llama: Path, clinical: Path) -> None:
    joint = joined(llama, clinical)
    with contextlib.suppress(KeyError), joint.route_tokens(SLICES):
        raise KeyError
    assert not joint.routing.routes
