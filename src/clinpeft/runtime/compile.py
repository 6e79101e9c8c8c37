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

COMPILE_TIMING_REPEATS, WARMUP_TOKENS = 5, 64
INDUCTOR_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where the compiler keeps what it made; by itself it takes a folder of the machine's that others can write to."""

RegionFunction = Callable[..., torch.Tensor]
"""(module, one or two tensors) -> tensor, of the shape of each."""


@dataclass(frozen=True)
class CompileTarget:
    """A part of a layer that is compiled by itself.

    Attributes:
        function: what is compiled.
        num_inputs: how many tensors it takes.
        get_width: numbers a token in each of them.
        call_module: (module, what to call for ``function``, the module's input) -> the module's output.
    """

    function: RegionFunction
    num_inputs: int
    get_width: Callable[[Any], int]
    call_module: Callable[[Any, RegionFunction, torch.Tensor], torch.Tensor]


def _create_norm_target(module_class: type[Any]) -> CompileTarget:
    return CompileTarget(
        module_class.forward,
        1,
        lambda norm: norm.weight.shape[0],
        lambda norm, whole, hidden: whole(norm, hidden),
    )


def _apply_gate(block: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = block.act_fn(gate) * up
    return product


def _call_gated_block(block: Any, function: RegionFunction, hidden: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = block.down_proj(
        function(block, block.gate_proj(hidden), block.up_proj(hidden))
    )
    return found


GATE_COMPILE_TARGET = CompileTarget(
    _apply_gate, 2, lambda block: int(block.intermediate_size), _call_gated_block
)

COMPILE_TARGETS: Mapping[type[Any], CompileTarget] = {
    **{
        kind: _create_norm_target(kind)
        for kind in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm, Gemma2RMSNorm)
    },
    **dict.fromkeys((LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP, Gemma2MLP), GATE_COMPILE_TARGET),
}
"""Module as transformers has it -> its region."""


@dataclass(frozen=True)
class CompileTiming:
    """What compiling brings.

    Attributes:
        eager_seconds, compiled_seconds: seconds of all regions for the tokens that were tried, forward and backward.
        compilation_seconds: seconds until the compiled functions were there.
        failure_reason: why there are none; empty where there are.
    """

    eager_seconds: float
    compiled_seconds: float = 0.0
    compilation_seconds: float = 0.0
    failure_reason: str = ""


def find_compile_targets(backbone: Any) -> list[Any]:
    """The modules of a model that can be compiled by themselves."""
    return [module for module in backbone.modules() if type(module) in COMPILE_TARGETS]


def describe_timing_conditions(backbone: Any) -> tuple[object, ...]:
    """What times on this machine depend on besides the model and the tokens: precision, device, threads, version of torch."""
    like = _get_reference_weight(backbone)
    return str(like.dtype), like.device.type, torch.get_num_threads(), torch.__version__


def measure_eager_seconds(backbone: Any, tokens: int) -> float:
    """Seconds of all regions of a model as they are, forward and backward, for so many tokens."""
    return sum(
        count
        * _measure_seconds(
            COMPILE_TARGETS[kind].function,
            module,
            _create_random_inputs(kind, module, _get_reference_weight(backbone), tokens),
        )
        for kind, module, count in _group_equal_modules(backbone)
    )


def measure_compilation(backbone: Any, tokens: int, folder: Path) -> CompileTiming:
    """Compile the regions of a model and time them beside what they are now. The model stays as it is.

    Args:
        backbone: with its weights on the device that is trained on.
        tokens: of a micro-batch.
        folder: where the compiler keeps what it makes.
    """
    before = measure_eager_seconds(backbone, tokens)
    began = time.perf_counter()
    obstacle = _warm_up_compiler(backbone, folder)
    compiling = time.perf_counter() - began
    if obstacle:
        return CompileTiming(before, failure_reason=obstacle)
    after = sum(
        count
        * _measure_seconds(
            _get_compiled_function(kind),
            module,
            _create_random_inputs(kind, module, _get_reference_weight(backbone), tokens),
        )
        for kind, module, count in _group_equal_modules(backbone)
    )
    return CompileTiming(before, after, compiling)


def compile_norms_and_gates(backbone: Any, folder: Path) -> str:
    """Let the norms and gates of a model run compiled wherever a gradient passes through them.

    Returns:
        Why they do not; empty where they do.
    """
    if obstacle := _warm_up_compiler(backbone, folder):
        return obstacle
    inside = find_compile_targets(backbone)
    classes = {kind: _create_compiled_class(kind) for kind in {type(module) for module in inside}}
    for module in inside:
        module.__class__ = classes[type(module)]
    return ""


def _warm_up_compiler(backbone: Any, folder: Path) -> str:
    """The compiled functions, called once; what was in the way, if anything."""
    os.environ.setdefault(INDUCTOR_CACHE_VARIABLE, str(folder))
    try:
        for kind, module, _ in _group_equal_modules(backbone):
            _run_forward_backward(
                module,
                _get_compiled_function(kind),
                _create_random_inputs(kind, module, _get_reference_weight(backbone), WARMUP_TOKENS),
            )
    except Exception as error:  # of a compiler, of its absence, of a folder that nothing may be run from: whatever it is, there is a way without
        return f"the compiler failed: {type(error).__name__}"
    return ""


_COMPILED_FUNCTIONS: dict[type[Any], RegionFunction] = {}
"""One function for all modules of a kind: the compiler works once."""


def _get_compiled_function(module_class: type[Any]) -> RegionFunction:
    if module_class not in _COMPILED_FUNCTIONS:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the compiler is made of parts that torch itself calls deprecated
            import torch._inductor.compile_fx
        _COMPILED_FUNCTIONS[module_class] = torch.compile(
            COMPILE_TARGETS[module_class].function, dynamic=True, options={"compile_threads": 1}
        )  # no processes beside this one
    return _COMPILED_FUNCTIONS[module_class]


def _create_compiled_class(module_class: type[Any]) -> type[Any]:
    region, compiled = COMPILE_TARGETS[module_class], _get_compiled_function(module_class)

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        # without a gradient the difference is small, and would want a function of its own
        return region.call_module(
            self, compiled if hidden.requires_grad else region.function, hidden
        )

    return type(f"Compiled{module_class.__name__}", (module_class,), {"forward": forward})


def _group_equal_modules(backbone: Any) -> list[tuple[type[Any], Any, int]]:
    """(type, one of them, how many there are of it and its width)."""
    inside = find_compile_targets(backbone)
    shapes = [(type(module), COMPILE_TARGETS[type(module)].get_width(module)) for module in inside]
    one = dict(zip(shapes, inside, strict=True))
    return [(kind, one[kind, width], count) for (kind, width), count in Counter(shapes).items()]


def _get_reference_weight(backbone: Any) -> torch.Tensor:
    """Of the precision and on the device that layers compute in, also where their own weights are quantized."""
    weight: torch.Tensor = backbone.get_input_embeddings().weight
    return weight


def _create_random_inputs(
    module_class: type[Any], module: Any, reference: torch.Tensor, tokens: int
) -> list[torch.Tensor]:
    region = COMPILE_TARGETS[module_class]
    drawn = torch.Generator(reference.device).manual_seed(0)
    shape = (1, tokens, region.get_width(module))
    return [
        torch.randn(shape, generator=drawn, device=reference.device)
        .to(reference.dtype)
        .requires_grad_()
        for _ in range(region.num_inputs)
    ]


def _run_forward_backward(
    module: Any, function: RegionFunction, inputs: list[torch.Tensor]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        found = function(module, *inputs)
        torch.autograd.grad(found, inputs, torch.ones_like(found))
    if found.is_cuda:
        torch.cuda.synchronize()


def _measure_seconds(function: RegionFunction, module: Any, inputs: list[torch.Tensor]) -> float:
    taken = []
    for _ in range(COMPILE_TIMING_REPEATS + 1):
        began = time.perf_counter()
        _run_forward_backward(module, function, inputs)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
