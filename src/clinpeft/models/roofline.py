"""What a base model requires, counted from its config, and what a machine provides, measured.

The counts are those of a frozen base with a small adapter: the forward pass and the gradient of
its input, 4 floating-point operations per weight and token, and none for the gradient of weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from clinpeft.models.folder import check_model_folder
from clinpeft.models.load import create_meta_model, read_cpu_capabilities
from clinpeft.runtime import float8

TIMED_MATRIX_SIZE = 1024
"""Rows and columns of the matrices whose product is timed."""


@dataclass(frozen=True)
class ModelShape:
    """The size of a base model.

    Attributes:
        parameter_count: all parameters, tied ones counted once.
        linear_weights: weights of its linear layers without the language modeling head, by which
            every token is multiplied.
        block_linear_weights: weights of the linear layers inside the blocks, which are those that
            can be quantized.
        largest_block_weights: weights of the largest of these layers.
        vocabulary_size: entries of the language modeling head.
        width: numbers in the hidden state of a token.
        layers: number of blocks.
        key_width: numbers in the keys of a token, of all heads.
        inner_width: width of the feed-forward block.
        causal: whether a token attends only to those before it.
    """

    parameter_count: int
    linear_weights: int
    block_linear_weights: int
    largest_block_weights: int
    vocabulary_size: int
    width: int
    layers: int
    key_width: int
    inner_width: int
    causal: bool


def read_model_shape(folder: Path) -> ModelShape:
    """Return the size of a base from its config alone, without reading weights.

    Raises:
        BaseModelError: the folder is not a model folder that can be loaded.
    """
    check_model_folder(folder)
    config = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return compute_model_shape(config)


def compute_model_shape(config: Any) -> ModelShape:
    """Return the size of the model of a transformers config."""
    base = create_meta_model(config)
    # of the backbone: the language modeling head is outside of it
    linear_layers = [m for m in base.backbone.modules() if isinstance(m, torch.nn.Linear)]
    block_layers = float8.iterate_linear_layers(base.backbone, base.family.linear_targets)
    block_weights = [layer.weight.numel() for layer in block_layers]
    # configs of encoders lack the keys of grouped-query attention and explicit head widths
    num_heads = int(getattr(config, "num_attention_heads", 1))
    num_key_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    return ModelShape(
        # parameters() yields a tied matrix once
        parameter_count=sum(parameter.numel() for parameter in base.model.parameters()),
        linear_weights=sum(layer.weight.numel() for layer in linear_layers),
        block_linear_weights=sum(block_weights),
        largest_block_weights=max(block_weights),
        vocabulary_size=int(config.vocab_size),
        width=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        key_width=num_key_heads * head_width,
        inner_width=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        causal=base.family.objective == "causal-lm",
    )


def detect_bfloat16_instructions() -> dict[str, bool]:
    """Return whether the CPU has instructions for bfloat16: ``amx_tile``, ``avx512_bf16``."""
    capabilities = read_cpu_capabilities()
    return {name: bool(capabilities.get(name)) for name in ("amx_tile", "avx512_bf16")}


def _measure_median_seconds(operation: Callable[[], object], repeats: int) -> float:
    """Return the median time of ``repeats`` calls, after one that is not timed."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def measure_matmul_rate(
    precision: str, device: str = "cpu", size: int = TIMED_MATRIX_SIZE, repeats: int = 5
) -> float:
    """Return the floating-point operations per second of square matrix products, as a median.

    Args:
        precision: ``float32`` or ``bfloat16``.
        device: where the products are computed.
        size: rows and columns of the matrices.
        repeats: products that are timed, after one that is not.
    """
    # random numbers, because some processors are faster with zeros
    dtype = getattr(torch, precision)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)
        if device != "cpu":
            torch.cuda.synchronize()  # a kernel is only queued when the call returns

    # n multiplications and n additions for each of the n * n numbers of the product
    return 2.0 * size**3 / _measure_median_seconds(multiply, repeats)


@dataclass(frozen=True)
class GpuProperties:
    """A GPU as torch sees it: its name, its memory, and whether it has bfloat16 instructions."""

    name: str
    memory_bytes: int
    supports_bfloat16: bool


def detect_gpu() -> GpuProperties | None:
    """Return the first GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    return GpuProperties(
        torch.cuda.get_device_name(0),
        int(torch.cuda.get_device_properties(0).total_memory),
        # emulated bfloat16 is slower than float32
        bool(torch.cuda.is_bf16_supported(including_emulation=False)),
    )


def get_thread_count() -> int:
    """Return the number of threads with which torch computes."""
    return torch.get_num_threads()


def measure_step_seconds(
    thread_counts: list[int], num_tokens: int = 1024, width: int = 512, repeats: int = 5
) -> dict[int, float]:
    """Time a small training step of one transformer layer with each number of threads.

    The number of threads is restored afterwards.

    Args:
        thread_counts: numbers of threads to measure.
        num_tokens: tokens of a step, a multiple of 128.
        width: numbers in the hidden state of a token.
        repeats: steps that are timed for each, after one that is not.

    Returns:
        Number of threads -> median seconds of a step.
    """
    previous_count = torch.get_num_threads()
    # about the size of a layer of a small encoder: 8 heads, 4 * width inside
    layer = torch.nn.TransformerEncoderLayer(
        width, 8, 4 * width, dropout=0.0, batch_first=True
    ).requires_grad_(False)
    # frozen weights and a gradient of the input, as in training an adapter
    tokens = torch.randn(num_tokens // 128, 128, width, requires_grad=True)  # (rows, time, width)
    seconds = {}
    try:
        for count in thread_counts:
            torch.set_num_threads(count)
            seconds[count] = _measure_median_seconds(
                lambda: torch.autograd.backward(layer(tokens).sum()), repeats
            )
    finally:
        torch.set_num_threads(previous_count)
    return seconds


def get_cpu_device() -> torch.device:
    """Return the CPU as a device, for packages that do not import torch."""
    return torch.device("cpu")
