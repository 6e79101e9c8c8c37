"""Norms and gates that are compiled: the same vectors and gradients; where a compiler cannot, or
brings nothing, they stay as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.models import SequenceLengths
from clinpeft.recipe import LoraSpec
from clinpeft.runtime import compile as regional_compile
from tests.models.test_families import shaken
from tests.runtime.test_packed_attention import LENGTHS, base_of, rows, texts

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[type[Any]]:
    """Kinds of module whose compiled function was called, in order."""
    called: list[type[Any]] = []
    real = regional_compile._get_compiled

    def spied(kind: type[Any]) -> regional_compile.FusibleFunction:
        def call(*given: Any) -> torch.Tensor:
            called.append(kind)
            return real(kind)(*given)

        return call

    monkeypatch.setattr(regional_compile, "_get_compiled", spied)
    return called


def stack_of(family: str) -> Stack:
    base = base_of(family)
    return shaken(
        adapters.attach_adapters(base, [LoraSpec(rank=2, targets=base.family.linear_targets)])
    )


def learned(stack: Stack) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    vectors = models.pool_packed_hidden_states(
        adapters.compute_packed_hidden_states(stack, *rows(texts())),
        SequenceLengths(LENGTHS),
        "mean",
    )
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*stack.trained_parameters.items(), strict=True)
    return vectors.detach(), dict(
        zip(names, torch.autograd.grad((vectors * weights).sum(), parameters), strict=True)
    )


@compiler
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_vectors_and_gradients_stay_what_they_were(
    family: str, calls: list[type[Any]], tmp_path: Path
) -> None:
    stack = stack_of(family)
    before, slopes = learned(stack)
    inside = regional_compile.list_compilable_modules(stack.base.backbone)
    kinds, count = {type(module) for module in inside}, len(inside)
    assert regional_compile.compile_regions(stack.base.backbone, tmp_path) == ""
    calls.clear()
    after, again = learned(stack)
    assert set(calls) == kinds and len(calls) >= count - 1  # to the first norm no gradient comes
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    for name, slope in again.items():
        torch.testing.assert_close(
            slope, slopes[name], atol=1e-5 * float(slopes[name].abs().max()), rtol=1e-4
        )


@compiler
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_a_trial_times_both_ways_and_changes_nothing(tmp_path: Path) -> None:
    backbone = base_of("llama").backbone
    kinds = [type(module) for module in backbone.modules()]
    found = regional_compile.time_compilation(backbone, 32, tmp_path)
    assert (
        not found.obstacle
        and found.seconds_before > 0
        and found.seconds_after > 0
        and found.compile_seconds > 0
    )
    assert [type(module) for module in backbone.modules()] == kinds


@compiler
@pytest.mark.filterwarnings("ignore")
def test_without_a_gradient_nothing_is_compiled(calls: list[type[Any]], tmp_path: Path) -> None:
    stack = stack_of("llama")
    before, _ = learned(stack)
    regional_compile.compile_regions(stack.base.backbone, tmp_path)
    calls.clear()
    with torch.no_grad():
        after = models.pool_packed_hidden_states(
            adapters.compute_packed_hidden_states(stack, *rows(texts())),
            SequenceLengths(LENGTHS),
            "mean",
        )
    assert not calls
    torch.testing.assert_close(after, before, atol=0, rtol=0)


@pytest.mark.parametrize("family", DECODERS)
def test_every_norm_and_gate_of_a_decoder_is_found(family: str) -> None:
    base = base_of(family)
    layers = base.model.config.num_hidden_layers
    norms = {"gemma2": 4, "qwen3": 4}.get(family, 2)
    assert len(regional_compile.list_compilable_modules(base.backbone)) == layers * (norms + 1) + 1
    assert (
        sum(count for *_, count in regional_compile._count_region_shapes(base.backbone))
        == layers * (norms + 1) + 1
    )


def test_an_encoder_has_none() -> None:
    assert regional_compile.list_compilable_modules(base_of("bert").backbone) == []


def test_a_compiler_that_fails_is_an_obstacle_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: type[Any]) -> regional_compile.FusibleFunction:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(regional_compile, "_get_compiled", broken)
    backbone = base_of("llama").backbone
    found = regional_compile.time_compilation(backbone, 8, tmp_path)
    assert (
        found.obstacle
        == regional_compile.compile_regions(backbone, tmp_path)
        == "the compiler failed: RuntimeError"
        and found.seconds_before > 0
    )
    assert regional_compile.list_compilable_modules(backbone)
