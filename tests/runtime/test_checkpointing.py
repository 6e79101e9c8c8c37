"""Activations computed again: loss and gradients are those of activations kept, dropout included,
in much less memory; or it is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clinpeft import adapters, models
from clinpeft.adapters import (
    ADAPTER_METHODS,
    MultiAdapterModel,
    PackedInput,
    Stack,
    TrialAdapters,
    enable_checkpointing_on_oom,
)
from clinpeft.adapters.checkpoint import ADAPTER_SPEC_TYPE
from clinpeft.core.errors import AdapterError
from clinpeft.models import MODEL_FAMILIES
from tests.models.test_families import SETTINGS, SHAPE, shaken

Learned = tuple[torch.Tensor, dict[str, torch.Tensor]]
IDS = torch.randint(3, 96, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(9)[None] < torch.tensor([9, 4, 1])[:, None]).long()
SIZES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "dropout": 0.2},
    "rslora": {"rank": 2, "dropout": 0.2},
    "dora": {"rank": 2, "dropout": 0.2},
    "adaption-prompt": {"tokens": 3, "layers": 2},
    "p-tuning": {"tokens": 3, "hidden": 8, "encoder": "lstm", "layers": 2, "dropout": 0.2},
    "prompt": {"tokens": 3},
    "prefix": {"tokens": 3},
}
ABLE = [name for name in MODEL_FAMILIES if name != "mpnet"]
METHOD_SETS = [
    *((method,) for method in ADAPTER_METHODS if method != "prefix"),
    ("lora", "adaption-prompt"),
    ("lora", "prompt"),
]


@functools.cache
def made(family: str, layers: int = 2) -> models.FrozenBaseModel:
    shape = SHAPE | {"num_hidden_layers": layers}
    config = transformers.AutoConfig.for_model(family, **shape, **SETTINGS.get(family, {}))
    torch.manual_seed(0)
    model = MODEL_FAMILIES[family].auto_class.from_config(config).eval()
    return models.FrozenBaseModel(
        model, None, MODEL_FAMILIES[family], Path("toy"), "", torch.float32, "", max_tokens=32
    )


def base_of(family: str, layers: int = 2) -> models.FrozenBaseModel:
    base = copy.deepcopy(made(family, layers))
    models.enable_packing(base)
    return base


def spec_of(method: str, **options: Any) -> Any:
    return ADAPTER_SPEC_TYPE.validate_python({"method": method} | SIZES.get(method, {}) | options)


def stack_of(family: str, *methods: str, layers: int = 2, **options: Any) -> Stack:
    return shaken(
        adapters.attach_adapters(
            base_of(family, layers), [spec_of(method, **options) for method in methods]
        )
    )


def learned(
    stack: Stack, ask: Callable[..., torch.Tensor] = adapters.compute_packed_hidden_states
) -> Learned:
    """A loss with dropout drawn from a seed, and its gradients; what was drawn after the forward
    pass is put back."""
    stack.train()
    torch.manual_seed(5)
    loss = ask(stack, IDS, MASK).tanh().square().sum()
    torch.rand(7)  # a head draws on before the backward pass begins
    names, parameters = zip(*stack.trained_parameters.items(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def same(found: Learned, wanted: Learned) -> None:
    assert torch.equal(found[0], wanted[0])
    for name, gradient in wanted[1].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(found[1][name], gradient), name


@pytest.mark.parametrize("family", ABLE)
def test_loss_and_gradients_are_those_of_kept_activations_to_the_bit(family: str) -> None:
    kept, again = stack_of(family, "lora"), stack_of(family, "lora")
    assert (
        adapters.find_checkpointing_unsupported_reason(again) == ""
        and adapters.enable_activation_checkpointing(again, "a test")
        and again.activations == "recomputed: a test"
    )
    same(learned(again), learned(kept))
    if MODEL_FAMILIES[family].objective == "causal-lm":
        same(
            learned(again, adapters.compute_token_logits),
            learned(kept, adapters.compute_token_logits),
        )


@pytest.mark.parametrize("methods", METHOD_SETS, ids="-".join)
def test_so_they_are_of_every_method_that_can(methods: tuple[str, ...]) -> None:
    kept, again = stack_of("llama", *methods), stack_of("llama", *methods)
    adapters.enable_activation_checkpointing(again, "a test")
    same(learned(again), learned(kept))


def test_so_they_are_where_the_whole_base_is_trained() -> None:
    kept, again = (
        adapters.attach_adapters(base_of("bert"), (), base_trainable=True) for _ in range(2)
    )
    adapters.enable_activation_checkpointing(again, "a test")
    same(learned(again), learned(kept))


def saved_bytes(stack: Stack) -> int:
    """What the graph of a training step holds beside weights, each piece of memory once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in stack.model.parameters()}
    held: dict[int, int] = {}
    whole: list[torch.Tensor] = []  # alive, so that no memory is counted twice or handed out again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        whole.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    stack.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = adapters.compute_packed_hidden_states(stack, IDS, MASK)
    assert vectors.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_what_the_graph_holds_falls_to_less_than_half(family: str) -> None:
    kept, again = stack_of(family, "lora", layers=6), stack_of(family, "lora", layers=6)
    adapters.enable_activation_checkpointing(again, "a test")
    assert 0 < 2 * saved_bytes(again) < saved_bytes(kept)


def test_nothing_is_computed_again_where_nothing_is_trained() -> None:
    stack, seen = stack_of("llama", "lora"), []
    adapters.enable_activation_checkpointing(stack, "a test")
    stack.base.backbone.layers[0].self_attn.v_proj.register_forward_hook(lambda *_: seen.append(1))
    stack.train(False)
    torch.autograd.backward(adapters.compute_packed_hidden_states(stack, IDS, MASK).sum())
    assert len(seen) == 1
    stack.train()
    with torch.no_grad():
        adapters.compute_packed_hidden_states(stack, IDS, MASK)
    assert len(seen) == 2
    torch.autograd.backward(adapters.compute_packed_hidden_states(stack, IDS, MASK).sum())
    assert len(seen) == 4


# several trials in one pass -----------------------------------------------------------------------


def joint_of() -> MultiAdapterModel:
    specs = [
        spec_of("lora"),
        spec_of("rslora", rank=4, dropout=0.4, targets=("k_proj", "down_proj")),
    ]
    joint = adapters.attach_stacks(
        base_of("llama"), [TrialAdapters([each], seed) for seed, each in enumerate(specs)]
    )
    for stack in joint.stacks:
        shaken(stack)
    return joint


def learned_together(joint: MultiAdapterModel) -> list[Learned]:
    """Two steps, the generators of the second going on from those of the first."""
    joint.train()
    drawn = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    found = []
    for _ in range(2):
        readings = [
            PackedInput(IDS, MASK, lambda vectors: vectors),
            PackedInput(IDS[:2], MASK[:2], lambda vectors: vectors),
        ]
        answers = joint.encode_packed(readings, drawn)
        losses = [answer.tanh().square().sum() for answer in answers if answer is not None]
        for stack, loss in zip(joint.stacks, losses, strict=True):
            names, parameters = zip(*stack.trained_parameters.items(), strict=True)
            gradients = torch.autograd.grad(
                loss, parameters, retain_graph=stack is not joint.stacks[-1]
            )
            found.append((loss.detach(), dict(zip(names, gradients, strict=True))))
    assert len(drawn) == 2
    return found


def test_trials_in_one_pass_draw_again_what_they_drew() -> None:
    kept, again = joint_of(), joint_of()
    adapters.enable_activation_checkpointing(again.stacks[0], "a test")
    for found, wanted in zip(learned_together(again), learned_together(kept), strict=True):
        same(found, wanted)
    assert not again.routing.routes  # nothing of the second run is left behind


# refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method", "reason"),
    [("llama", "prefix", "keys and values"), ("mpnet", "lora", "mpnet")],
)
def test_where_it_cannot_be_done_it_is_refused(family: str, method: str, reason: str) -> None:
    stack = stack_of(family, method)
    assert reason in adapters.find_checkpointing_unsupported_reason(
        stack
    ) and not enable_checkpointing_on_oom(stack)
    with pytest.raises(AdapterError, match=reason) as caught:
        adapters.enable_activation_checkpointing(stack, "a test")
    assert stack.activations == "kept" and "keep" in caught.value.hint


def test_a_prefix_that_is_silent_stands_in_nobody_s_way() -> None:
    assert not adapters.find_checkpointing_unsupported_reason(stack_of("llama", "lora", "prompt"))


def test_a_rescue_in_the_middle_of_a_run_warns_once_and_changes_nothing_twice() -> None:
    stack = stack_of("llama", "lora")
    with pytest.warns(UserWarning, match="recomputed from here on"):
        assert enable_checkpointing_on_oom(stack)
    assert stack.activations.startswith("recomputed") and not enable_checkpointing_on_oom(stack)
