"""The adaption prompt that projects once, beside stock peft's, which does so twice: the same
outputs, gradients and files, with less work."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.adaption_prompt import AdaptedAttention
from safetensors.torch import load_file

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.models import MODEL_FAMILIES
from clinpeft.recipe import AdaptionPromptSpec, LoraSpec
from clinpeft.runtime.adaption_prompt import SingleProjectionAttention
from tests.adapters.toys import IDS, MASK, load
from tests.conftest import MakeFolder
from tests.models.test_families import SETTINGS, SHAPE, shaken

PROMPT = AdaptionPromptSpec(tokens=3, layers=2)


@functools.cache
def attach(family: str, bias: bool = False) -> models.FrozenBaseModel:
    config = transformers.AutoConfig.for_model(
        family, **SHAPE, **SETTINGS[family], **({"attention_bias": True} if bias else {})
    )
    torch.manual_seed(0)
    model = MODEL_FAMILIES[family].auto_class.from_config(config).eval()
    return models.FrozenBaseModel(
        model, None, MODEL_FAMILIES[family], Path("toy"), "", torch.float32, "", max_tokens=32
    )


def base_of(
    family: str, bias: bool = False, precision: torch.dtype = torch.float32
) -> models.FrozenBaseModel:
    base = copy.deepcopy(attach(family, bias))
    base.precision = precision
    base.model.to(precision)
    models.enable_packing(base)
    return base


def adapted(stack: Stack) -> list[AdaptedAttention]:
    return [module for module in stack.model.modules() if isinstance(module, AdaptedAttention)]


def as_peft_does(stack: Stack) -> Stack:
    for module in adapted(stack):
        module.__class__ = AdaptedAttention
    return stack


def both(base: models.FrozenBaseModel, *below: Any) -> tuple[Stack, Stack]:
    attach = [
        shaken(adapters.attach_adapters(copy.deepcopy(base), [*below, PROMPT])) for _ in range(2)
    ]
    return attach[0], as_peft_does(attach[1])


def gradients(stack: Stack, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*stack.trained_parameters.items(), strict=True)
    return dict(zip(names, torch.autograd.grad((vectors * weights).sum(), parameters), strict=True))


@pytest.mark.parametrize(
    "below",
    [(), (LoraSpec(rank=2, targets=("q_proj", "k_proj", "v_proj", "o_proj")),)],
    ids=["alone", "above a LoRA"],
)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_outputs_and_gradients_are_those_of_stock_peft(
    family: str, below: tuple[LoraSpec, ...]
) -> None:
    ours, stock = both(base_of(family), *below)
    assert {type(module) for module in adapted(ours)} == {SingleProjectionAttention} and {
        type(module) for module in adapted(stock)
    } == {AdaptedAttention}
    actual, wanted = (
        adapters.compute_packed_hidden_states(ours, IDS, MASK),
        adapters.compute_packed_hidden_states(stock, IDS, MASK),
    )
    torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-5)
    for (name, gradient), other in zip(
        gradients(ours, actual).items(), gradients(stock, wanted).values(), strict=True
    ):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(gradient, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_in_bfloat16_it_is_as_near_to_float32_as_stock_peft_is() -> None:
    exact = adapters.compute_packed_hidden_states(both(base_of("llama"))[1], IDS, MASK).detach()
    actual, wanted = (
        adapters.compute_packed_hidden_states(stack, IDS, MASK).detach().float()
        for stack in both(base_of("llama", precision=torch.bfloat16))
    )
    ours, theirs = float((actual - exact).abs().mean()), float((wanted - exact).abs().mean())
    assert 0 < ours < 1.2 * theirs


def test_every_projection_is_asked_for_the_text_once() -> None:
    counted = []
    for stack in both(base_of("llama")):
        seen: dict[str, int] = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 0)

        def note(module: Any, given: Any, _: Any, seen: dict[str, int] = seen) -> None:
            if given[0].shape[1] == 6:  # the text, and not the prompt of three tokens
                seen[module.fragment] += 1

        for name, module in stack.model.named_modules():
            if name.rpartition(".")[2] in seen:
                module.fragment = name.rpartition(".")[2]
                module.register_forward_hook(note)
        with torch.no_grad():
            adapters.compute_packed_hidden_states(stack, IDS[:1], MASK[:1])
        counted.append(seen)
    assert counted == [
        dict.fromkeys(counted[0], 2),
        {"q_proj": 4, "k_proj": 2, "v_proj": 4, "o_proj": 4},
    ]  # of two layers


def test_an_output_with_a_bias_is_left_to_peft() -> None:
    stack = adapters.attach_adapters(base_of("llama", bias=True), [PROMPT])
    assert {type(module) for module in adapted(stack)} == {AdaptedAttention}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_it_is_switched_off_and_on_and_its_file_is_read_by_stock_peft(
    toy_llama: MakeFolder, tmp_path: Path
) -> None:
    folder = toy_llama()
    stack = shaken(adapters.attach_adapters(load(folder), [PROMPT]))
    bare = adapters.compute_token_logits(adapters.attach_adapters(load(folder), ()), IDS, MASK)
    before = adapters.compute_token_logits(stack, IDS, MASK).detach()
    with stack.disable_adapters(), torch.no_grad():
        torch.testing.assert_close(adapters.compute_token_logits(stack, IDS, MASK), bare)
    adapters.save_adapter(stack, tmp_path / "adapter")
    assert all(
        name.endswith(("adaption_prompt", "adaption_gate"))
        for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    )
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    stock = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        actual = stock(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(adapters.compute_token_logits(stack, IDS, MASK), before)
    torch.testing.assert_close(actual[MASK == 1], before[MASK == 1], atol=1e-5, rtol=1e-5)
