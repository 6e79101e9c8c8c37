"""Norms and gates of a decoder as one compiled function each, tried on random numbers before it is believed that they pay.

Between the matrix products of a layer stand its norms and the gate of its feed-forward part: a handful of operations each, every one of which reads
and writes all tokens. ``torch.compile`` makes one function of each handful. That wants a C++ compiler (for a GPU: Triton), takes seconds to minutes,
and rounds in other places than the handful does, so that a run decides once and goes on as it began.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP, Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

REPEATS, WARM_TOKENS = 5, 64
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Where the compiler keeps what it made; by itself it takes a folder of the machine's that others can write to."""

Fused = Callable[..., torch.Tensor]
"""(module, one or two tensors) -> tensor, of the shape of each."""


@dataclass(frozen=True)
class Region:
    """A part of a layer that is compiled by itself.

    Attributes:
        whole: what is compiled.
        inputs: how many tensors it takes.
        width: numbers a token in each of them.
        context: (module, what to call for ``whole``, the module's input) -> the module's output.
    """

    whole: Fused
    inputs: int
    width: Callable[[Any], int]
    context: Callable[[Any, Fused, torch.Tensor], torch.Tensor]


def _norm(kind: type[Any]) -> Region:
    return Region(
        kind.forward,
        1,
        lambda norm: norm.weight.shape[0],
        lambda norm, whole, hidden: whole(norm, hidden),
    )


def _gated(block: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = block.act_fn(gate) * up
    return product


def _around_gate(block: Any, whole: Fused, hidden: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = block.down_proj(
        whole(block, block.gate_proj(hidden), block.up_proj(hidden))
    )
    return found


GATE = Region(_gated, 2, lambda block: int(block.intermediate_size), _around_gate)

REGIONS: Mapping[type[Any], Region] = {
    **{
        kind: _norm(kind)
        for kind in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, Gemma2RMSNorm)
    },
    **dict.fromkeys((LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP, Gemma2MLP), GATE),
}
"""Module as transformers has it -> its region."""


@dataclass(frozen=True)
class Tried:
    """What compiling brings.

    Attributes:
        before, after: seconds of all regions for the tokens that were tried, forward and backward.
        compiling: seconds until the compiled functions were there.
        obstacle: why there are none; empty where there are.
    """

    before: float
    after: float = 0.0
    compiling: float = 0.0
    obstacle: str = ""


def regions(backbone: Any) -> list[Any]:
    """The modules of a model that can be compiled by themselves."""
    return [module for module in backbone.modules() if type(module) in REGIONS]


def conditions(backbone: Any) -> tuple[object, ...]:
    """What times on this machine depend on besides the model and the tokens: precision, device, threads, version of torch."""
    like = _like(backbone)
    return str(like.dtype), like.device.type, torch.get_num_threads(), torch.__version__


def present(backbone: Any, tokens: int) -> float:
    """Seconds of all regions of a model as they are, forward and backward, for so many tokens."""
    return sum(
        count
        * _seconds(REGIONS[kind].whole, module, _inputs(kind, module, _like(backbone), tokens))
        for kind, module, count in _found(backbone)
    )


def tried(backbone: Any, tokens: int, folder: Path) -> Tried:
    """Compile the regions of a model and time them beside what they are now. The model stays as it is.

    Args:
        backbone: with its weights on the device that is trained on.
        tokens: of a micro-batch.
        folder: where the compiler keeps what it makes.
    """
    before = present(backbone, tokens)
    began = time.perf_counter()
    obstacle = _made(backbone, folder)
    compiling = time.perf_counter() - began
    if obstacle:
        return Tried(before, obstacle=obstacle)
    after = sum(
        count * _seconds(_compiled(kind), module, _inputs(kind, module, _like(backbone), tokens))
        for kind, module, count in _found(backbone)
    )
    return Tried(before, after, compiling)


def compile_regions(backbone: Any, folder: Path) -> str:
    """Let the norms and gates of a model run compiled wherever a gradient passes through them.

    Returns:
        Why they do not; empty where they do.
    """
    if obstacle := _made(backbone, folder):
        return obstacle
    inside = regions(backbone)
    classes = {kind: _compiled_class(kind) for kind in {type(module) for module in inside}}
    for module in inside:
        module.__class__ = classes[type(module)]
    return ""


def _made(backbone: Any, folder: Path) -> str:
    """The compiled functions, called once; what was in the way, if anything."""
    os.environ.setdefault(CACHE, str(folder))
    try:
        for kind, module, _ in _found(backbone):
            _run(module, _compiled(kind), _inputs(kind, module, _like(backbone), WARM_TOKENS))
    except Exception as error:  # of a compiler, of its absence, of a folder that nothing may be run from: whatever it is, there is a way without
        return f"the compiler failed: {type(error).__name__}"
    return ""


_COMPILED: dict[type[Any], Fused] = {}
"""One function for all modules of a kind: the compiler works once."""


def _compiled(kind: type[Any]) -> Fused:
    if kind not in _COMPILED:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the compiler is made of parts that torch itself calls deprecated
            import torch._inductor.compile_fx
        _COMPILED[kind] = torch.compile(
            REGIONS[kind].whole, dynamic=True, options={"compile_threads": 1}
        )  # no processes beside this one
    return _COMPILED[kind]


def _compiled_class(kind: type[Any]) -> type[Any]:
    region, compiled = REGIONS[kind], _compiled(kind)

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        # without a gradient the difference is small, and would want a function of its own
        return region.context(self, compiled if hidden.requires_grad else region.whole, hidden)

    return type(f"Compiled{kind.__name__}", (kind,), {"forward": forward})


def _found(backbone: Any) -> list[tuple[type[Any], Any, int]]:
    """(type, one of them, how many there are of it and its width)."""
    inside = regions(backbone)
    shapes = [(type(module), REGIONS[type(module)].width(module)) for module in inside]
    one = dict(zip(shapes, inside, strict=True))
    return [(kind, one[kind, width], count) for (kind, width), count in Counter(shapes).items()]


def _like(backbone: Any) -> torch.Tensor:
    """Of the precision and on the device that layers compute in, also where their own weights are quantized."""
    weight: torch.Tensor = backbone.get_input_embeddings().weight
    return weight


def _inputs(kind: type[Any], module: Any, like: torch.Tensor, tokens: int) -> list[torch.Tensor]:
    region = REGIONS[kind]
    drawn = torch.Generator(like.device).manual_seed(0)
    shape = (1, tokens, region.width(module))
    return [
        torch.randn(shape, generator=drawn, device=like.device).to(like.dtype).requires_grad_()
        for _ in range(region.inputs)
    ]


def _run(module: Any, whole: Fused, inputs: list[torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        found = whole(module, *inputs)
        torch.autograd.grad(found, inputs, torch.ones_like(found))
    if found.is_cuda:
        torch.cuda.synchronize()


def _seconds(whole: Fused, module: Any, inputs: list[torch.Tensor]) -> float:
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        _run(module, whole, inputs)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
