"""Norms and gates of a decoder as one compiled function each.

Between the matrix products of a layer stand its norms and the gate of its feed-forward part: a
handful of elementwise operations, each of which reads and writes all tokens. ``torch.compile``
fuses each handful into one function. That needs a C++ compiler (on a GPU: Triton), takes seconds to
minutes, and rounds in other places, so that a run decides once (see ``optimization``) and stays
with its decision.
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

TIMING_REPEATS = 5
WARMUP_TOKENS = 64
COMPILER_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Names the folder in which the compiler caches its output; its default is a shared folder of the
machine that other users can write to."""

FusibleFunction = Callable[..., torch.Tensor]
"""(module, one or two tensors) -> tensor of the shape of each."""


@dataclass(frozen=True)
class CompilableRegion:
    """A part of a layer that is compiled by itself.

    Attributes:
        function: what is compiled.
        input_count: how many tensors it takes.
        get_width: module -> numbers per token in each of these tensors.
        forward: (module, the plain or compiled function, the module's input) -> its output.
    """

    function: FusibleFunction
    input_count: int
    get_width: Callable[[Any], int]
    forward: Callable[[Any, FusibleFunction, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CompileTiming:
    """What compiling saves, and what it takes.

    Attributes:
        seconds_before, seconds_after: of all regions for one micro-batch, forward and backward.
        compile_seconds: until the compiled functions are ready.
        obstacle: why there are none; empty where there are.
    """

    seconds_before: float
    seconds_after: float = 0.0
    compile_seconds: float = 0.0
    obstacle: str = ""


def _multiply_by_gate(block: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    # act(x W_gate) * (x W_up): SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6)
    product: torch.Tensor = block.act_fn(gate) * up
    return product


def _forward_gated_mlp(block: Any, function: FusibleFunction, hidden: torch.Tensor) -> torch.Tensor:
    product = function(block, block.gate_proj(hidden), block.up_proj(hidden))
    output: torch.Tensor = block.down_proj(product)
    return output


GATE_REGION = CompilableRegion(
    _multiply_by_gate, 2, lambda block: int(block.intermediate_size), _forward_gated_mlp
)

COMPILABLE_REGIONS: Mapping[type[Any], CompilableRegion] = {
    **{
        norm_class: CompilableRegion(
            norm_class.forward,
            1,
            lambda norm: norm.weight.shape[0],
            lambda norm, function, hidden: function(norm, hidden),
        )
        for norm_class in (
            LlamaRMSNorm,
            MistralRMSNorm,
            Qwen2RMSNorm,
            Qwen3RMSNorm,
            Gemma2RMSNorm,
        )
    },
    **dict.fromkeys((LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP, Gemma2MLP), GATE_REGION),
}
"""Module class of transformers -> its region. A class that is not here, or that was replaced by
another (an adapter, another kernel), is left alone."""


def list_compilable_modules(backbone: Any) -> list[Any]:
    """List the modules of a model that can be compiled by themselves."""
    return [module for module in backbone.modules() if type(module) in COMPILABLE_REGIONS]


def describe_timing_conditions(backbone: Any) -> tuple[object, ...]:
    """Say what times on this machine depend on, besides the model and the number of tokens.

    Returns:
        Precision, device, number of threads, version of torch.
    """
    weight = _get_embedding_weight(backbone)
    return str(weight.dtype), weight.device.type, torch.get_num_threads(), torch.__version__


def time_regions(backbone: Any, tokens: int) -> float:
    """Time all regions of a model as they are, forward and backward.

    Args:
        backbone: with its weights on the device that is trained on.
        tokens: of a micro-batch.

    Returns:
        Seconds.
    """
    return sum(
        count
        * _time_function(
            COMPILABLE_REGIONS[kind].function,
            module,
            _draw_inputs(module, _get_embedding_weight(backbone), tokens),
        )
        for kind, module, count in _count_region_shapes(backbone)
    )


def time_compilation(backbone: Any, tokens: int, folder: Path) -> CompileTiming:
    """Compile the regions of a model and time them beside the plain ones; the model is unchanged.

    Args:
        backbone: with its weights on the device that is trained on.
        tokens: of a micro-batch.
        folder: where the compiler caches its output.
    """
    seconds_before = time_regions(backbone, tokens)
    start = time.perf_counter()
    obstacle = _compile_and_run_once(backbone, folder)
    compile_seconds = time.perf_counter() - start
    if obstacle:
        return CompileTiming(seconds_before, obstacle=obstacle)
    seconds_after = sum(
        count
        * _time_function(
            _get_compiled(kind),
            module,
            _draw_inputs(module, _get_embedding_weight(backbone), tokens),
        )
        for kind, module, count in _count_region_shapes(backbone)
    )
    return CompileTiming(seconds_before, seconds_after, compile_seconds)


def compile_regions(backbone: Any, folder: Path) -> str:
    """Replace norms and gates of a model by compiled ones, wherever a gradient passes through.

    Args:
        backbone: changed in place: its modules get another class.
        folder: where the compiler caches its output.

    Returns:
        Why they were not replaced; empty where they were.
    """
    if obstacle := _compile_and_run_once(backbone, folder):
        return obstacle
    modules = list_compilable_modules(backbone)
    # One subclass a kind, so that all modules of a kind stay instances of it.
    classes = {kind: _create_compiled_class(kind) for kind in {type(module) for module in modules}}
    for module in modules:
        module.__class__ = classes[type(module)]
    return ""


def _compile_and_run_once(backbone: Any, folder: Path) -> str:
    """Compile every region and call it once; gives the obstacle, if there is any."""
    os.environ.setdefault(COMPILER_CACHE_VARIABLE, str(folder))
    try:
        for kind, module, _ in _count_region_shapes(backbone):
            inputs = _draw_inputs(module, _get_embedding_weight(backbone), WARMUP_TOKENS)
            _run_forward_backward(_get_compiled(kind), module, inputs)
    except Exception as error:
        # Of the compiler, of its absence, of a folder that nothing may be run from: whatever it
        # is, the plain functions remain.
        return f"the compiler failed: {type(error).__name__}"
    return ""


_COMPILED: dict[type[Any], FusibleFunction] = {}
"""One compiled function for all modules of a class, so that the compiler works once."""


def _get_compiled(kind: type[Any]) -> FusibleFunction:
    if kind not in _COMPILED:
        with warnings.catch_warnings():
            # The compiler uses parts that torch itself calls deprecated.
            warnings.simplefilter("ignore")
            import torch._inductor.compile_fx
        # dynamic: packed rows have another number of tokens nearly every time.
        # One compile thread: no worker processes beside this one.
        _COMPILED[kind] = torch.compile(
            COMPILABLE_REGIONS[kind].function, dynamic=True, options={"compile_threads": 1}
        )
    return _COMPILED[kind]


def _create_compiled_class(kind: type[Any]) -> type[Any]:
    region, compiled = COMPILABLE_REGIONS[kind], _get_compiled(kind)

    # (1, tokens, width) -> the same shape
    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        # Without a gradient little is saved, and it would take a second compiled function.
        function = compiled if hidden.requires_grad else region.function
        return region.forward(self, function, hidden)

    return type(f"Compiled{kind.__name__}", (kind,), {"forward": forward})


def _count_region_shapes(backbone: Any) -> list[tuple[type[Any], Any, int]]:
    """(class, one of its modules, how many of that class and width there are)."""
    modules = list_compilable_modules(backbone)
    shapes = [
        (type(module), COMPILABLE_REGIONS[type(module)].get_width(module)) for module in modules
    ]
    module_of = dict(zip(shapes, modules, strict=True))
    return [(shape[0], module_of[shape], count) for shape, count in Counter(shapes).items()]


def _get_embedding_weight(backbone: Any) -> torch.Tensor:
    """A tensor of the precision and device that layers compute in, even if they are quantized."""
    weight: torch.Tensor = backbone.get_input_embeddings().weight
    return weight


def _draw_inputs(module: Any, like: torch.Tensor, tokens: int) -> list[torch.Tensor]:
    """Random inputs of a region, each (1, tokens, width), in the precision and place of
    ``like``."""
    region = COMPILABLE_REGIONS[type(module)]
    generator = torch.Generator(like.device).manual_seed(0)
    shape = (1, tokens, region.get_width(module))
    return [
        torch.randn(shape, generator=generator, device=like.device).to(like.dtype).requires_grad_()
        for _ in range(region.input_count)
    ]


def _run_forward_backward(
    function: FusibleFunction, module: Any, inputs: list[torch.Tensor]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        output = function(module, *inputs)
        torch.autograd.grad(output, inputs, torch.ones_like(output))
    if output.is_cuda:
        torch.cuda.synchronize()  # a kernel is only launched by the calls above


def _time_function(function: FusibleFunction, module: Any, inputs: list[torch.Tensor]) -> float:
    """Median seconds of a forward and backward pass; the first is not counted."""
    seconds = []
    for _ in range(TIMING_REPEATS + 1):
        start = time.perf_counter()
        _run_forward_backward(function, module, inputs)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
