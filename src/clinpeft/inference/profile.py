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
    TOKEN_BUDGET,
    Engine,
    Precision,
    buckets,
    engine,
    limit,
    read,
    spread,
    tokenised,
)
from clinpeft.models.embedding_config import Manner
from clinpeft.tokenization import Ints

WARM_UP, ITERATIONS = 10, 100  # of single texts, as in the study's protocol
EDGES = (8, 16, 32, 64, 128, 256, 512, 1024)
RESIDENT_RESET, RESIDENT = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Profile:
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


def profile(
    stack: Stack,
    embedding_config: Manner,
    texts: Sequence[str],
    load_seconds: float | None = None,
    token_budget: int = TOKEN_BUDGET,
    precision: Precision = "auto",
) -> Profile:
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
    ids, _ = tokenised(stack.base.tokenizer, different, limit(stack, embedding_config))
    lengths = np.asarray([len(each) for each in ids], dtype=np.int64)
    ready = engine(stack, embedding_config.pooling, precision, spread(ids, lengths))
    since = _reset_peak(ready.device)
    groups = buckets(lengths, token_budget)
    read(ready, [ids[at] for at in groups[0]], embedding_config)
    seconds = _throughput(stack, embedding_config, ready, different, token_budget)
    milliseconds = _latencies(stack, embedding_config, ready, different)
    held, of = _peak(ready.device, since)
    p50, p95 = np.quantile(milliseconds, (0.5, 0.95))
    return Profile(
        texts=len(different),
        tokens=int(lengths.sum()),
        token_histogram=histogram(lengths),
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
        latency_protocol=f"one text at a time, {WARM_UP} warm-ups, {ITERATIONS} iterations over the first texts in turn",
        peak_memory_bytes=held,
        peak_memory_of=of,
        load_seconds=load_seconds,
        parameters=stack.counts.base
        + sum(value.numel() for adapter in stack.adapters for value in adapter.parameters.values()),
        dimension=stack.base.width,
    )


def histogram(lengths: Ints) -> tuple[tuple[int, int, int], ...]:
    """How many texts have 1 to 8 tokens, 9 to 16, and so on doubling; what is longer than the last edge stands in one range up to the longest."""
    edges = (*EDGES, max(EDGES[-1] + 1, int(lengths.max(initial=0))))
    counted = Counter(np.searchsorted(edges, lengths, side="left").tolist())
    return tuple(
        (1 if at == 0 else edges[at - 1] + 1, edges[at], count)
        for at, count in sorted(counted.items())
    )


def _throughput(
    stack: Stack, embedding_config: Manner, ready: Engine, texts: list[str], token_budget: int
) -> float:
    """Seconds from texts to vectors."""
    began = time.perf_counter()
    ids, _ = tokenised(stack.base.tokenizer, texts, limit(stack, embedding_config))
    for group in buckets(np.asarray([len(each) for each in ids], dtype=np.int64), token_budget):
        read(
            ready, [ids[at] for at in group], embedding_config
        )  # ends on the processor, so that an accelerator has finished
    return time.perf_counter() - began


def _latencies(
    stack: Stack, embedding_config: Manner, ready: Engine, texts: list[str]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Milliseconds of every iteration."""
    taken = []
    for turn in range(WARM_UP + ITERATIONS):
        began = time.perf_counter()
        ids, _ = tokenised(
            stack.base.tokenizer, [texts[turn % len(texts)]], limit(stack, embedding_config)
        )
        read(ready, ids, embedding_config)
        taken.append(1000 * (time.perf_counter() - began))
    return np.asarray(taken[WARM_UP:])


def _reset_peak(device: torch.device) -> str:
    """Forget what was held before, where that can be done; says since when the peak counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "since the measurement began"
    try:
        RESIDENT_RESET.write_text(
            "5"
        )  # Linux: sets the high-water mark of resident memory to what is resident now
        if _resident() is not None:
            return "since the measurement began"
    except OSError:
        pass
    return "since the process began"


def _peak(device: torch.device, since: str) -> tuple[int, str]:
    if device.type == "cuda":
        return int(
            torch.cuda.max_memory_allocated(device)
        ), f"allocated on the accelerator, {since}"
    held = _resident() if since == "since the measurement began" else None
    if held is None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes here
        held = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held, f"resident memory of the process, {since}"


def _resident() -> int | None:
    """The high-water mark in bytes; None where the system does not tell."""
    try:
        line = next(
            (line for line in RESIDENT.read_text().splitlines() if line.startswith("VmHWM:")), None
        )
    except OSError:
        return None
    return None if line is None else 1024 * int(line.split()[1])
