"""The vectors below the language-modelling head, against the logits above it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.adapters import ADAPTER_METHODS, Stack
from clinpeft.recipe import LanguageModelSpec
from tests.adapters.toys import (
    IDS,
    MASK,
    copy_trained_state,
    earlier,
    finished,
    load,
    load_trained_state,
    shake,
    spec,
)

MakeFolder = Callable[..., Path]
HEADS = {"llama": "lm_head", "bert": "cls"}
LEFT_IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 0, 11, 12, 13]])
LEFT_MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
STACKS = [
    (),
    *((method,) for method in ADAPTER_METHODS),
    ("lora", "prompt"),
    ("lora", "prefix"),
    ("lora", "lora"),
]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


def attach(folder: Path, methods: tuple[str, ...], precision: str = "float32") -> Stack:
    base = load(folder, precision)
    if base.family.unsupported_methods & set(methods):
        pytest.skip("not possible on this family")
    stack = adapters.attach_adapters(base, [spec(method) for method in methods])
    shake(stack)
    return stack


def head_of(stack: Stack) -> Any:
    return getattr(stack.base.model, HEADS[stack.base.model.config.model_type])


@pytest.mark.parametrize("methods", STACKS, ids="-".join)
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_on_the_hidden_vectors_gives_the_logits(
    kind: str, methods: tuple[str, ...], llama: Path, toy_bert: Path
) -> None:
    stack = attach(llama if kind == "llama" else toy_bert, methods)
    with torch.no_grad():
        for ids, mask in ((IDS, MASK), (LEFT_IDS, LEFT_MASK)):
            vectors = adapters.compute_hidden_states(stack, ids, mask)
            assert vectors.shape == (2, 6, 32)
            torch.testing.assert_close(
                head_of(stack)(vectors)[mask == 1],
                adapters.compute_token_logits(stack, ids, mask)[mask == 1],
                atol=1e-6,
                rtol=0,
            )


@pytest.mark.parametrize("methods", STACKS, ids="-".join)
def test_a_row_s_vectors_depend_on_neither_padding_nor_neighbours(
    methods: tuple[str, ...], llama: Path
) -> None:
    stack = attach(llama, methods)
    with torch.no_grad():
        alone = adapters.compute_hidden_states(
            stack, torch.tensor([[11, 12, 13]]), torch.ones(1, 3, dtype=torch.long)
        )[0]
        torch.testing.assert_close(
            adapters.compute_hidden_states(stack, IDS, MASK)[1, :3], alone, atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            adapters.compute_hidden_states(stack, LEFT_IDS, LEFT_MASK)[1, 3:],
            alone,
            atol=1e-6,
            rtol=0,
        )


def test_nothing_as_wide_as_the_vocabulary_is_computed(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = attach(llama, ("lora",))

    def wide(*arguments: object) -> None:
        raise AssertionError("the output embedding was asked")

    monkeypatch.setattr(stack.base.model.lm_head, "forward", wide)
    with pytest.raises(AssertionError):
        adapters.compute_token_logits(stack, IDS, MASK)
    assert adapters.compute_hidden_states(stack, IDS, MASK).requires_grad


@pytest.mark.parametrize("methods", STACKS, ids="-".join)
def test_in_bfloat16_the_vectors_are_near_those_in_float32(
    methods: tuple[str, ...], llama: Path
) -> None:
    exact, rough = attach(llama, methods), attach(llama, methods, "bfloat16")
    load_trained_state(rough, copy_trained_state(exact))
    with torch.no_grad():
        actual, wanted = (
            adapters.compute_hidden_states(stack, IDS, MASK)[MASK == 1].float()
            for stack in (rough, exact)
        )
    assert (actual - wanted).abs().max() < 0.1
    assert torch.nn.functional.cosine_similarity(actual, wanted).min() > 0.995


def test_an_adapter_that_learned_language_stands_in_a_base_without_its_head(
    llama: Path, tmp_path: Path
) -> None:
    clinical = finished(llama, "lora", tmp_path / "clinical")
    headless = models.load_base_model(
        LanguageModelSpec(path=llama, precision="float32"), torch.device("cpu"), "vectors"
    )
    actual = []
    for base in (load(llama), headless):
        stack = adapters.attach_adapters(
            base, [earlier("lora"), spec("prompt")], folders={"clinical": clinical}
        )
        shake(stack, seed=2)
        actual.append(adapters.compute_hidden_states(stack, IDS, MASK)[MASK == 1].detach())
    assert torch.equal(*actual)
