"""How fast an encoder is and how much memory it needs, with the protocol of the measurement.

The study (arXiv 2511.19739, table 2) gives embeddings per second without the lengths of its texts,
and memory that fits float32 only. Here texts, lengths, batches, precision and threads are part of
the result.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from clinpeft.adapters import Stack
from clinpeft.core.errors import InputError
from clinpeft.inference.encode import (
    ENCODING_BATCH_TOKENS,
    EncodingPrecision,
    InferenceStack,
    bucket_by_length,
    compute_max_text_tokens,
    embed_token_ids,
    prepare_inference_stack,
    sample_by_length,
    tokenize_with_truncation,
)
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.tokenization import IndexArray

# of single texts, as in the study
LATENCY_WARMUP_ITERATIONS, LATENCY_ITERATIONS = 10, 100
TOKEN_HISTOGRAM_EDGES = (8, 16, 32, 64, 128, 256, 512, 1024)
PROC_CLEAR_REFS_PATH, PROC_STATUS_PATH = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class EncoderProfile:
    """A measurement of an encoder.

    Attributes:
        texts: number of distinct texts.
        tokens: of all of them, special tokens included, after truncation.
        token_histogram: (least tokens, most tokens, texts), without empty ranges.
        batch_policy: how texts were batched.
        batches: number of batches.
        precision: of the computation.
        precision_reason: why this precision.
        device: ``cpu``, or the name of the accelerator.
        threads: of torch.
        embeddings_per_second: of all texts in batches, tokenization included.
        tokens_per_second: of all texts in batches, tokenization included.
        latency_ms_p50: median of single texts, tokenization included; quantiles are interpolated
            linearly.
        latency_ms_p95: 95th percentile of the same.
        latency_ms_mean: mean of the same.
        latency_protocol: iterations, and iterations before the first that counts.
        peak_memory_bytes: most memory, of the process (``resident``, which includes the model), or
            of the accelerator (``allocated``).
        peak_memory_of: which of the two, and since when.
        load_seconds: from folder to model, as measured by the caller; None if unknown.
        parameters: of base and adapters.
        dimension: numbers in a vector.
    """

    texts: int
    tokens: int
    token_histogram: tuple[tuple[int, int, int], ...]
    batch_policy: str
    batches: int
    precision: str
    precision_reason: str
    device: str
    threads: int
    embeddings_per_second: float
    tokens_per_second: float
    latency_ms_p50: float
    latency_ms_p95: float
    latency_ms_mean: float
    latency_protocol: str
    peak_memory_bytes: int
    peak_memory_of: str
    load_seconds: float | None
    parameters: int
    dimension: int

    def as_json(self) -> dict[str, object]:
        """Return the measurement as in a run's record."""
        return asdict(self)


def profile_encoder(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: Sequence[str],
    load_seconds: float | None = None,
    token_budget: int = ENCODING_BATCH_TOKENS,
    precision: EncodingPrecision = "auto",
) -> EncoderProfile:
    """Measure an encoder on texts: all in batches, then single texts.

    Preparing the model (merging adapters, comparing precisions) and one batch are not timed.

    Args:
        stack: base and adapters.
        embedding_config: how a text is embedded.
        texts: repeated texts count once.
        load_seconds: time of loading the base.
        token_budget, precision: as for ``encode_texts_to_file``.

    Raises:
        InputError: no text.
    """
    # a repeated text would be encoded once by `encode_texts` and flatter the rate
    unique = list(dict.fromkeys(texts))
    if not unique:
        raise InputError(
            "no text to measure with", location="texts", hint="give a file with at least one text"
        )
    max_tokens = compute_max_text_tokens(stack, embedding_config)

    def tokenize(batch: list[str]) -> list[list[int]]:
        return tokenize_with_truncation(stack.base.tokenizer, batch, max_tokens)[0]

    ids = tokenize(unique)
    lengths = np.asarray([len(tokens) for tokens in ids], dtype=np.int64)  # (texts,)
    inference_stack = prepare_inference_stack(
        stack, embedding_config.pooling, precision, sample_by_length(ids, lengths)
    )
    device = inference_stack.device
    peak_scope = _reset_peak_memory(device)
    groups = bucket_by_length(lengths, token_budget)
    # the first batch compiles kernels and allocates the largest buffers
    embed_token_ids(inference_stack, [ids[index] for index in groups[0]], embedding_config)

    seconds, milliseconds = _time_encoding(
        inference_stack, tokenize, embedding_config, unique, token_budget
    )
    # linear interpolation between order statistics
    p50, p95 = np.quantile(milliseconds, (0.5, 0.95))
    # after all timing, so that the peak is that of both parts
    peak_bytes, peak_of = _read_peak_memory(device, peak_scope)
    num_adapter_parameters = sum(
        parameter.numel() for adapter in stack.adapters for parameter in adapter.parameters.values()
    )
    return EncoderProfile(
        texts=len(unique),
        tokens=int(lengths.sum()),
        token_histogram=build_token_histogram(lengths),
        batch_policy=f"texts of exactly one length, at most {token_budget:,} tokens a batch, "
        "longest first; no padding",
        batches=len(groups),
        precision=inference_stack.precision,
        precision_reason=inference_stack.reason,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        embeddings_per_second=len(unique) / seconds,
        tokens_per_second=float(lengths.sum()) / seconds,
        latency_ms_p50=float(p50),
        latency_ms_p95=float(p95),
        latency_ms_mean=float(milliseconds.mean()),
        latency_protocol=f"one text at a time, {LATENCY_WARMUP_ITERATIONS} warm-ups, "
        f"{LATENCY_ITERATIONS} iterations over the first texts in turn",
        peak_memory_bytes=peak_bytes,
        peak_memory_of=peak_of,
        load_seconds=load_seconds,
        parameters=stack.counts.base_parameters + num_adapter_parameters,
        dimension=stack.base.width,
    )


def _time_encoding(
    inference_stack: InferenceStack,
    tokenize: Callable[[list[str]], list[list[int]]],
    embedding_config: EmbeddingConfig,
    texts: list[str],
    token_budget: int,
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the seconds of all texts in batches, and milliseconds (iterations,) of single texts.

    Every time is from text to vectors on the CPU, so it includes all work of an accelerator.
    """
    started = time.perf_counter()
    ids = tokenize(texts)
    lengths = np.asarray([len(tokens) for tokens in ids], dtype=np.int64)  # (texts,)
    for group in bucket_by_length(lengths, token_budget):
        embed_token_ids(inference_stack, [ids[index] for index in group], embedding_config)
    seconds = time.perf_counter() - started
    milliseconds = []
    for iteration in range(LATENCY_WARMUP_ITERATIONS + LATENCY_ITERATIONS):
        started = time.perf_counter()
        ids = tokenize([texts[iteration % len(texts)]])
        embed_token_ids(inference_stack, ids, embedding_config)
        milliseconds.append(1000 * (time.perf_counter() - started))
    return seconds, np.asarray(milliseconds[LATENCY_WARMUP_ITERATIONS:])


def build_token_histogram(lengths: IndexArray) -> tuple[tuple[int, int, int], ...]:
    """Count texts by length in ranges 1-8, 9-16, and so on, doubling up to 1,024.

    Longer texts are in one more range, up to the longest.

    Args:
        lengths: (texts,) tokens of each.

    Returns:
        (least tokens, most tokens, texts) of each range that is not empty.
    """
    # the last range is closed by the longest text
    longest = max(TOKEN_HISTOGRAM_EDGES[-1] + 1, int(lengths.max(initial=0)))
    edges = (*TOKEN_HISTOGRAM_EDGES, longest)
    # a length equal to an edge belongs to the range that the edge closes
    counts = Counter(np.searchsorted(edges, lengths, side="left").tolist())
    return tuple(
        (edges[index - 1] + 1 if index else 1, edges[index], count)
        for index, count in sorted(counts.items())
    )


def _reset_peak_memory(device: torch.device) -> str:
    """Reset the peak of memory where the system allows it; return since when it counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "since the measurement began"
    try:
        # Linux: 5 sets the high-water mark of resident memory to the present value (man 5 proc)
        PROC_CLEAR_REFS_PATH.write_text("5")
        if _read_peak_resident_bytes() is not None:
            return "since the measurement began"
    except OSError:
        pass
    return "since the process began"


def _read_peak_memory(device: torch.device, peak_scope: str) -> tuple[int, str]:
    """Return the peak in bytes, and of which memory and since when it is."""
    if device.type == "cuda":
        allocated = int(torch.cuda.max_memory_allocated(device))
        return allocated, f"allocated on the accelerator, {peak_scope}"
    is_reset = peak_scope == "since the measurement began"
    peak_bytes = _read_peak_resident_bytes() if is_reset else None
    if peak_bytes is None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes on Linux
        peak_bytes = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_bytes, f"resident memory of the process, {peak_scope}"


def _read_peak_resident_bytes() -> int | None:
    """Return the high-water mark of resident memory; None where the system does not have it."""
    try:
        lines = PROC_STATUS_PATH.read_text().splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if line is None else 1024 * int(line.split()[1])  # "VmHWM:   123456 kB"
