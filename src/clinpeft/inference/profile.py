"""How fast a model encodes and how much memory that takes, by a protocol that is written down with the numbers.

The study (arXiv 2511.19739, table 2) gives embeddings a second without the length of its texts, and memory that fits float32 only. Here the texts,
their lengths, the batches, the precision and the threads are part of the result.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
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

LATENCY_WARMUP_ITERATIONS, LATENCY_ITERATIONS = (
    10,
    100,
)  # of single texts, as in the study's protocol
TOKEN_HISTOGRAM_EDGES = (8, 16, 32, 64, 128, 256, 512, 1024)
PROC_CLEAR_REFS_PATH, PROC_STATUS_PATH = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class EncoderProfile:
    """One measurement.

    Attributes:
        texts: how many, all different.
        tokens: of all of them, special tokens included, after truncation.
        token_histogram: (least tokens, most tokens, texts), without empty ranges.
        batch_policy: how texts were put side by side.
        batches: how many that made.
        precision, precision_reason: of the computation.
        device: ``cpu``, or the name of the accelerator.
        threads: of torch.
        embeddings_per_second, tokens_per_second: from texts to vectors, tokenising included, over all texts at once.
        latency_ms_p50, latency_ms_p95, latency_ms_mean: of one text at a time, tokenising included; quantiles by linear interpolation.
        latency_protocol: warm-ups and iterations.
        peak_memory_bytes, peak_memory_of: what the process held at most (``resident``: the model included), or the accelerator (``allocated``);
            and since when.
        load_seconds: from folder to model, as the caller measured it; None where nobody did.
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
        """As it stands in a record."""
        return asdict(self)


def profile_encoder(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: Sequence[str],
    load_seconds: float | None = None,
    token_budget: int = ENCODING_BATCH_TOKENS,
    precision: EncodingPrecision = "auto",
) -> EncoderProfile:
    """Measure a stack on texts: all at once, then one at a time.

    Making the model ready (folding adapters, comparing precisions) and one batch are done before the clock runs.

    Args:
        stack: base and adapters.
        embedding_config: how a text becomes a vector.
        texts: a text that comes twice is measured once.
        load_seconds: what loading the base took.
        token_budget, precision: as for ``encode``.

    Raises:
        InputError: no text.
    """
    different = list(dict.fromkeys(texts))
    if not different:
        raise InputError(
            "no text to measure with", location="texts", hint="give a file with at least one text"
        )
    ids, _ = tokenize_with_truncation(
        stack.base.tokenizer, different, compute_max_text_tokens(stack, embedding_config)
    )
    lengths = np.asarray([len(each) for each in ids], dtype=np.int64)
    ready = prepare_inference_stack(
        stack, embedding_config.pooling, precision, sample_by_length(ids, lengths)
    )
    since = _reset_peak_memory(ready.device)
    groups = bucket_by_length(lengths, token_budget)
    embed_token_ids(ready, [ids[at] for at in groups[0]], embedding_config)
    seconds = _measure_encoding_seconds(stack, embedding_config, ready, different, token_budget)
    milliseconds = _measure_latencies_ms(stack, embedding_config, ready, different)
    held, of = _read_peak_memory(ready.device, since)
    p50, p95 = np.quantile(milliseconds, (0.5, 0.95))
    return EncoderProfile(
        texts=len(different),
        tokens=int(lengths.sum()),
        token_histogram=build_token_histogram(lengths),
        batch_policy=f"texts of exactly one length, at most {token_budget:,} tokens a batch, longest first; no padding",
        batches=len(groups),
        precision=ready.precision,
        precision_reason=ready.reason,
        device=torch.cuda.get_device_name(ready.device)
        if ready.device.type == "cuda"
        else ready.device.type,
        threads=torch.get_num_threads(),
        embeddings_per_second=len(different) / seconds,
        tokens_per_second=float(lengths.sum()) / seconds,
        latency_ms_p50=float(p50),
        latency_ms_p95=float(p95),
        latency_ms_mean=float(milliseconds.mean()),
        latency_protocol=f"one text at a time, {LATENCY_WARMUP_ITERATIONS} warm-ups, {LATENCY_ITERATIONS} iterations over the first texts in turn",
        peak_memory_bytes=held,
        peak_memory_of=of,
        load_seconds=load_seconds,
        parameters=stack.counts.base_parameters
        + sum(value.numel() for adapter in stack.adapters for value in adapter.parameters.values()),
        dimension=stack.base.width,
    )


def build_token_histogram(lengths: IndexArray) -> tuple[tuple[int, int, int], ...]:
    """How many texts have 1 to 8 tokens, 9 to 16, and so on doubling; what is longer than the last edge stands in one range up to the longest."""
    edges = (
        *TOKEN_HISTOGRAM_EDGES,
        max(TOKEN_HISTOGRAM_EDGES[-1] + 1, int(lengths.max(initial=0))),
    )
    counted = Counter(np.searchsorted(edges, lengths, side="left").tolist())
    return tuple(
        (1 if at == 0 else edges[at - 1] + 1, edges[at], count)
        for at, count in sorted(counted.items())
    )


def _measure_encoding_seconds(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    inference_stack: InferenceStack,
    texts: list[str],
    token_budget: int,
) -> float:
    """Seconds from texts to vectors."""
    began = time.perf_counter()
    ids, _ = tokenize_with_truncation(
        stack.base.tokenizer, texts, compute_max_text_tokens(stack, embedding_config)
    )
    for group in bucket_by_length(
        np.asarray([len(each) for each in ids], dtype=np.int64), token_budget
    ):
        embed_token_ids(
            inference_stack, [ids[at] for at in group], embedding_config
        )  # ends on the processor, so that an accelerator has finished
    return time.perf_counter() - began


def _measure_latencies_ms(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    inference_stack: InferenceStack,
    texts: list[str],
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Milliseconds of every iteration."""
    taken = []
    for turn in range(LATENCY_WARMUP_ITERATIONS + LATENCY_ITERATIONS):
        began = time.perf_counter()
        ids, _ = tokenize_with_truncation(
            stack.base.tokenizer,
            [texts[turn % len(texts)]],
            compute_max_text_tokens(stack, embedding_config),
        )
        embed_token_ids(inference_stack, ids, embedding_config)
        taken.append(1000 * (time.perf_counter() - began))
    return np.asarray(taken[LATENCY_WARMUP_ITERATIONS:])


def _reset_peak_memory(device: torch.device) -> str:
    """Forget what was held before, where that can be done; says since when the peak counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "since the measurement began"
    try:
        PROC_CLEAR_REFS_PATH.write_text(
            "5"
        )  # Linux: sets the high-water mark of resident memory to what is resident now
        if _read_peak_resident_bytes() is not None:
            return "since the measurement began"
    except OSError:
        pass
    return "since the process began"


def _read_peak_memory(device: torch.device, peak_scope: str) -> tuple[int, str]:
    if device.type == "cuda":
        return int(
            torch.cuda.max_memory_allocated(device)
        ), f"allocated on the accelerator, {peak_scope}"
    held = _read_peak_resident_bytes() if peak_scope == "since the measurement began" else None
    if held is None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes here
        held = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held, f"resident memory of the process, {peak_scope}"


def _read_peak_resident_bytes() -> int | None:
    """The high-water mark in bytes; None where the system does not tell."""
    try:
        line = next(
            (
                line
                for line in PROC_STATUS_PATH.read_text().splitlines()
                if line.startswith("VmHWM:")
            ),
            None,
        )
    except OSError:
        return None
    return None if line is None else 1024 * int(line.split()[1])
