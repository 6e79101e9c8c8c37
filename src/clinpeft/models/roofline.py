"""What a base asks of a machine, counted from its config, and what the machine can give, measured by its matrix products.

The counts are those of a frozen base with a small adapter: forward and the gradient of the input, 4 floating-point operations a weight and token,
and none for the gradient of the weights.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from clinpeft.models.folder import check_model_folder
from clinpeft.models.load import read_cpu_capabilities, create_meta_model
from clinpeft.runtime import float8

TIMED_MATRIX_SIZE = 1024
"""Rows, inputs and outputs of the products that are timed."""


@dataclass(frozen=True)
class ModelShape:
    """A base in numbers.

    Attributes:
        parameter_count: all of them, each once.
        linear_weights: weights of its linear layers, the head over the vocabulary apart: what every token is multiplied with.
        block_linear_weights: weights of the linear layers inside the blocks, which are those that can be quantized.
        largest_block_weights: weights of the largest of these.
        vocabulary_size: entries of the head over the vocabulary.
        width, layers, key_width, inner_width: numbers in a vector of a token, layers, width of keys, width of the feed-forward part.
        causal: whether a token sees those before it only.
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
    """The numbers of a base, from its config alone: no weight is read.

    Raises:
        BaseModelError: the folder is no base.
    """
    check_model_folder(folder)
    config = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return compute_model_shape(config)


def compute_model_shape(config: Any) -> ModelShape:
    """The numbers of a transformers config."""
    base = create_meta_model(config)
    inside = [module for module in base.backbone.modules() if isinstance(module, torch.nn.Linear)]
    in_blocks = [
        linear.weight.numel()
        for linear in float8.iterate_linear_layers(base.backbone, base.family.linear_targets)
    ]
    heads = int(getattr(config, "num_attention_heads", 1))
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelShape(
        parameter_count=sum(parameter.numel() for parameter in base.model.parameters()),
        linear_weights=sum(module.weight.numel() for module in inside),
        block_linear_weights=sum(in_blocks),
        largest_block_weights=max(in_blocks),
        vocabulary_size=int(config.vocab_size),
        width=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        key_width=keys * head_width,
        inner_width=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        causal=base.family.objective == "causal-lm",
    )


def detect_bfloat16_instructions() -> dict[str, bool]:
    """Which instructions for bfloat16 this processor has: ``amx_tile``, ``avx512_bf16``."""
    known = read_cpu_capabilities()
    return {name: bool(known.get(name)) for name in ("amx_tile", "avx512_bf16")}


def measure_matmul_rate(
    precision: str, device: str = "cpu", size: int = TIMED_MATRIX_SIZE, repeats: int = 5
) -> float:
    """Floating-point operations a second of square matrix products, the median of a few.

    Args:
        precision: ``float32`` or ``bfloat16``.
        device: where.
        size: rows, inputs and outputs.
        repeats: how many are timed, after one that is not.
    """
    dtype = getattr(torch, precision)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        torch.mm(left, right)
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 2.0 * size**3 / statistics.median(taken[1:])


@dataclass(frozen=True)
class GpuProperties:
    """A GPU as torch sees it: its name, its memory, and whether it computes in bfloat16."""

    name: str
    memory_bytes: int
    supports_bfloat16: bool


def detect_gpu() -> GpuProperties | None:
    """The first GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return GpuProperties(
        torch.cuda.get_device_name(0),
        int(properties.total_memory),
        bool(torch.cuda.is_bf16_supported(including_emulation=False)),
    )


def get_thread_count() -> int:
    """How many torch computes with."""
    return torch.get_num_threads()


def measure_step_seconds(
    thread_counts: list[int], num_tokens: int = 1024, width: int = 512, repeats: int = 5
) -> dict[int, float]:
    """Seconds of a small training step of one transformer layer with each number of threads; the number that was set is set again.

    Args:
        thread_counts: numbers of threads to try.
        num_tokens, width: tokens, and numbers in a vector.
        repeats: of each, after one that is not timed; the median counts.
    """
    before = torch.get_num_threads()
    layer = torch.nn.TransformerEncoderLayer(
        width, 8, 4 * width, dropout=0.0, batch_first=True
    ).requires_grad_(False)
    tokens = torch.randn(num_tokens // 128, 128, width, requires_grad=True)
    found = {}
    try:
        for count in thread_counts:
            torch.set_num_threads(count)
            taken = []
            for _ in range(repeats + 1):
                began = time.perf_counter()
                torch.autograd.backward(layer(tokens).sum())
                taken.append(time.perf_counter() - began)
            found[count] = statistics.median(taken[1:])
    finally:
        torch.set_num_threads(before)
    return found


def get_cpu_device() -> torch.device:
    """The processor as a device, for rooms that name none themselves."""
    return torch.device("cpu")
