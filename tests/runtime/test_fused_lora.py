"""The fused layer against stock peft: outputs and gradients, with dropout and without, in float32
and bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear

from clinpeft import adapters
from clinpeft.adapters import ADAPTER_METHODS, Stack
from clinpeft.runtime.dropout import DROPOUT_LEVELS
from clinpeft.runtime.fused_lora import (
    FusedLoraLinear,
    LowRankUpdate,
    _apply_keep_mask,
    _sample_keep_mask,
    _UpdatePlan,
    compute_fused_linear,
)
from tests.adapters.toys import IDS, MASK, answers, earlier, finished, load, shake, spec

MakeFolder = Callable[..., Path]
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = [name for name, method in ADAPTER_METHODS.items() if method.supports_fusion]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def clinical(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(llama, "lora", tmp_path_factory.mktemp("clinical") / "adapter")


class SameDraws(torch.nn.Dropout):
    """Dropout as a module, with the draws of the fused layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plan = _UpdatePlan.from_update(LowRankUpdate(x, x, 1.0, self.p if self.training else 0.0))
        flat = x.reshape(-1, x.shape[-1])
        stays = _sample_keep_mask(flat, plan)
        return (
            x
            if stays is None
            else _masked_with_gradient(flat, stays).view_as(x)
            * (DROPOUT_LEVELS / (DROPOUT_LEVELS - plan.drop_threshold))
        )


def _masked_with_gradient(x: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    return x * (stays != 0)


def layers_of(stack: Stack) -> list[Any]:
    return [module for module in stack.model.modules() if isinstance(module, Linear)]


@contextmanager
def stock(stack: Stack) -> Iterator[None]:
    """peft's own forward pass, with the same draws."""
    dropouts = [
        (module, name, dropout)
        for module in layers_of(stack)
        for name, dropout in module.lora_dropout.items()
        if dropout.training
    ]
    for layer in layers_of(stack):
        layer.__class__ = Linear
    for layer, name, dropout in dropouts:
        layer.lora_dropout[name] = SameDraws(getattr(dropout, "p", 0.0)).train()
    yield
    for layer, name, dropout in dropouts:
        layer.lora_dropout[name] = dropout
    for layer in layers_of(stack):
        layer.__class__ = FusedLoraLinear


def learned(stack: Stack) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of a step, and its gradients."""
    for parameter in stack.trained_parameters.values():
        parameter.grad = None
    with torch.random.fork_rng():
        torch.manual_seed(7)
        logits = adapters.compute_token_logits(stack, IDS, MASK)[MASK == 1].float()
        torch.nn.functional.cross_entropy(logits, IDS[MASK == 1], reduction="sum").backward()  # type: ignore[no-untyped-call]
    return logits.detach(), {
        name: parameter.grad
        for name, parameter in stack.trained_parameters.items()
        if parameter.grad is not None
    }


def distance(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """Of all gradients at once, relative to the truth."""
    assert found.keys() == truth.keys() and found
    apart = sum((found[name] - truth[name]).square().sum() for name in truth)
    return float(
        torch.as_tensor(apart / sum(each.square().sum() for each in truth.values())).sqrt()
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", FUSED)
def test_in_float32_outputs_and_gradients_are_those_of_peft(
    method: str, dropout: float, llama: Path, clinical: Path
) -> None:
    wanted = [
        earlier("lora"),
        spec(method, rank=4, alpha=12, dropout=dropout, targets=EVERY_LINEAR),
    ]
    stack = adapters.attach_adapters(load(llama), wanted, folders={"clinical": clinical})
    assert (
        all(type(layer) is FusedLoraLinear for layer in layers_of(stack))
        and len(layers_of(stack)) == 2 * 7
    )
    shake(stack)
    stack.train()
    ours, our_gradients = learned(stack)
    with stock(stack):
        theirs, their_gradients = learned(stack)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)
    assert (
        distance(our_gradients, their_gradients) < 5e-6
    )  # over all layers; of one layer see below
    assert all(gradient.dtype == torch.float32 for gradient in our_gradients.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_float32_one_layer_is_that_of_peft(dropout: float, llama: Path, clinical: Path) -> None:
    wanted = [earlier("lora"), spec("rslora", dropout=dropout)]
    stack = adapters.attach_adapters(load(llama), wanted, folders={"clinical": clinical})
    shake(stack)
    stack.train()
    layer = stack.base.model.model.layers[0].self_attn.q_proj
    factors = [layer.lora_A["adapter2"].weight, layer.lora_B["adapter2"].weight]
    found = []
    for way in (contextlib.nullcontext(), stock(stack)):
        with way, torch.random.fork_rng():
            torch.manual_seed(7)
            x = torch.randn(2, 50, 32, requires_grad=True)
            out = layer(x)
            found.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x, *factors])])
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_peft(dropout: float, llama: Path) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        base = load(llama)
        base.model.to(torch.bfloat16)  # the same rounded weights in both
        base.model.to(getattr(torch, precision))
        stack = adapters.attach_adapters(
            base, [spec("lora", rank=8, dropout=dropout, targets=EVERY_LINEAR)]
        )
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in stack.trained_parameters.values():
                parameter.add_(
                    0.01 * torch.randn_like(parameter)
                )  # an update that is smaller than what it is added to, as learned ones are
        stack.train()
        found[precision, "fused"] = learned(stack)
        with stock(stack):
            found[precision, "peft"] = learned(stack)
    truth = found["float32", "peft"][1]
    ours, theirs = (distance(found["bfloat16", whose][1], truth) for whose in ("fused", "peft"))
    assert theirs < 0.05
    assert ours < 1.25 * theirs


def keeping(kept: list[torch.Tensor]) -> Any:
    """What is saved for the way back, listed."""

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def test_the_input_is_kept_once_for_queries_keys_and_values_and_never_in_float32(
    llama: Path,
) -> None:
    stack = adapters.attach_adapters(
        load(llama, "bfloat16"), [spec("lora", targets=("q_proj", "k_proj", "v_proj"))]
    )
    attention = stack.base.model.model.layers[0].self_attn
    x = torch.randn(1, 40, 32, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with keeping(kept):
        _ = [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    wide = [tensor for tensor in kept if tensor.shape[-2:] == (40, 32)]
    assert len(wide) == 3 and {tensor.data_ptr() for tensor in wide} == {x.data_ptr()}


def test_a_frozen_adapter_keeps_nothing_for_itself(llama: Path, clinical: Path) -> None:
    stack = adapters.attach_adapters(load(llama), [earlier("lora")], folders={"clinical": clinical})
    layer = stack.base.model.model.layers[0].self_attn.q_proj
    kept: list[torch.Tensor] = []
    with keeping(kept):
        layer(torch.randn(1, 40, 32, requires_grad=True))
    assert not any(tensor.shape[0] == 40 for tensor in kept)


def test_rows_have_their_own_parts_and_dropout_and_others_have_none() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 6), torch.randn(4, 6), torch.randn(4)
    first, second = ((torch.randn(rank, 6), torch.randn(4, rank)) for rank in (2, 3))

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    parts = [
        LowRankUpdate(*first, 0.5, 0.2, slice(1, 4), seeded()),
        LowRankUpdate(*second, 2.0, 0.5, slice(4, 9), seeded()),
    ]
    out = compute_fused_linear(x, weight, bias, parts).view(10, 4)
    flat = x.view(10, 6)
    torch.testing.assert_close(out[[0, 9]], flat[[0, 9]] @ weight.T + bias)
    torch.testing.assert_close(
        out[1:4],
        compute_fused_linear(
            flat[1:4], weight, bias, [LowRankUpdate(*first, 0.5, 0.2, None, seeded())]
        ),
    )
    torch.testing.assert_close(
        out[4:9],
        compute_fused_linear(
            flat[4:9], weight, bias, [LowRankUpdate(*second, 2.0, 0.5, None, seeded())]
        ),
    )


def test_in_bfloat16_the_sum_of_the_base_and_all_updates_is_rounded_once() -> None:
    drawn = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(64, 128, generator=drawn).bfloat16(),
        (torch.randn(96, 128, generator=drawn) / 11).bfloat16(),
    )
    factors = [
        (torch.randn(4, 128, generator=drawn) / 11, 0.1 * torch.randn(96, 4, generator=drawn))
        for _ in range(3)
    ]
    found = compute_fused_linear(x, weight, None, [LowRankUpdate(a, b, 0.7) for a, b in factors])
    exact = torch.nn.functional.linear(x, weight).float()
    for a, b in factors:
        exact += (x @ a.bfloat16().T).float() @ (0.7 * b).bfloat16().float().T
    assert (
        (found != exact.bfloat16()).float().mean() < 0.005
    )  # where float32 adds up in another order; rounding after each update moves one in ten


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(0)
    x, weight = (
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(4, 5, dtype=torch.float64),
    )
    factors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 5), (4, 2), (1, 5), (4, 1))
    ]

    def out(x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(3)
        return compute_fused_linear(
            x,
            weight,
            None,
            [
                LowRankUpdate(factors[0], factors[1], 0.7),
                LowRankUpdate(factors[2], factors[3], 1.5, 0.4, slice(0, 2), drawn),
            ],
        )

    assert torch.autograd.gradcheck(
        out, (x, *factors), atol=1e-3, rtol=1e-3, eps=1e-4
    )  # gradients of factors come in float32


def test_dropout_drops_its_share_keeps_the_mean_and_is_drawn_again_by_the_seed() -> None:
    x, weight = torch.ones(400, 300), torch.zeros(300, 300)
    part = LowRankUpdate(torch.eye(300), torch.eye(300), 1.0, 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = compute_fused_linear(x, weight, None, [part])
        torch.manual_seed(3)
        assert torch.equal(first, compute_fused_linear(x, weight, None, [part]))
        assert not torch.equal(first, compute_fused_linear(x, weight, None, [part]))
    assert (first == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert first.mean().item() == pytest.approx(1.0, abs=0.003)
    assert sorted(set(first.flatten().tolist())) == pytest.approx([0.0, 1 / 0.9], abs=1e-4)


def test_dropout_is_off_while_evaluating(llama: Path) -> None:
    stack = adapters.attach_adapters(load(llama), [spec("lora", dropout=0.5)])
    shake(stack)
    assert torch.equal(answers(stack), answers(stack))
    stack.train()
    assert not torch.equal(answers(stack), answers(stack))


@pytest.mark.parametrize(
    "method", [name for name, method in ADAPTER_METHODS.items() if not method.supports_fusion]
)
def test_only_methods_that_are_a_low_rank_product_are_fused(method: str, llama: Path) -> None:
    stack = adapters.attach_adapters(load(llama), [spec(method)])
    assert not any(isinstance(module, FusedLoraLinear) for module in stack.model.modules())


def test_a_lora_beside_an_adaption_prompt_computes_in_the_precision_of_autocast(
    llama: Path,
) -> None:
    stack = adapters.attach_adapters(
        load(llama, "bfloat16"), [spec("lora"), spec("adaption-prompt")]
    )
    shake(stack)
    logits, gradients = learned(stack)
    assert bool(torch.isfinite(logits).all()) and len(gradients) == len(stack.trained_parameters)


def test_where_the_base_is_trained_too_the_layer_is_pefts(llama: Path) -> None:
    stack = adapters.attach_adapters(load(llama), [spec("lora")])
    layer = stack.base.model.model.layers[0].self_attn.q_proj
    layer.base_layer.weight.requires_grad_(True)
    layer(torch.randn(3, 32)).sum().backward()
    assert layer.base_layer.weight.grad is not None


def test_masking_leaves_what_stays_as_it_is() -> None:
    x = torch.tensor([[1.5, -2.0, float("inf")]], dtype=torch.bfloat16)
    assert _apply_keep_mask(x, torch.tensor([[-1, 0, -1]], dtype=torch.int16)).tolist() == [
        [1.5, 0.0, float("inf")]
    ]
