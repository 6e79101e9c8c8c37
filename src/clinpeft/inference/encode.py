"""Texts -> vectors, fast: tokenised once, the same text once, many texts in one row of tokens, so that nothing is ever padded.

A text sees itself alone (``models.attention``), so that its vector is independent of its neighbours but for rounding. What is read is a plain copy
with the adapters folded in where they can be, in bfloat16 where the processor has instructions for it and the vectors stay the same.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from clinpeft import adapters, models, tokenization
from clinpeft.adapters import ADAPTER_METHODS, ParameterCounts, Stack
from clinpeft.core.errors import InputError, TrainingError
from clinpeft.inference.predict import Float32Array
from clinpeft.inference.vector_files import (
    VectorFile,
    convert_vector_storage_errors,
    open_vector_file,
)
from clinpeft.models import PoolingMode
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.tokenization import IndexArray

ENCODING_CHUNK_TEXTS = 16_384
ENCODING_BATCH_TOKENS = 8_192
PRECISION_SAMPLE_TEXTS = 32
MIN_PRECISION_COSINE = 0.999  # between bfloat16 and float32, the worst of the sample

EncodingPrecision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class EncodingProgress:
    """How far it is: texts whose vectors are there, tokens read, seconds since the start."""

    texts: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class InferenceStack:
    """A stack made ready to give vectors.

    Attributes:
        stack: what is asked.
        precision: of the computation.
        reason: why this precision.
        cosine: the least agreement with float32 on the sample; None where it is float32, or could not be compared.
    """

    stack: Stack
    precision: str
    reason: str
    cosine: float | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device(self.stack.base.model.device)


@dataclass(frozen=True)
class EncodingSummary:
    """What was encoded, and how.

    Attributes:
        texts: rows of the output.
        unique_texts: different texts, which is what went through the model.
        tokens: of the different texts, after truncation.
        truncated_texts: different texts that were longer than the manner allows.
        width: numbers in a vector.
        seconds: in all, reading and writing included.
        precision, precision_reason, cosine: as of the ``Engine``.
    """

    texts: int
    unique_texts: int
    tokens: int
    truncated_texts: int
    width: int
    seconds: float
    precision: str
    precision_reason: str
    cosine: float | None

    def as_json(self) -> dict[str, object]:
        """As it stands in a record."""
        return asdict(self)


def encode_texts_to_file(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: Iterable[str | pa.RecordBatch],
    out: Path,
    prompt: str = "",
    token_budget: int = ENCODING_BATCH_TOKENS,
    precision: EncodingPrecision = "auto",
    on_progress: Callable[[EncodingProgress], None] = lambda _: None,
) -> EncodingSummary:
    """The vector of every text, in their order, in a file that is there whole or not at all; one that was there before is replaced.

    Memory: a chunk of 16,384 texts, one plain copy of the model, and some 200 bytes for every different text, by which its repetitions are found.

    Args:
        stack: base and adapters; of a base loaded for vectors or for language.
        embedding_config: how a text becomes a vector.
        texts: texts, or record batches with a column ``text``, whose columns that end in ``_id`` go into a Parquet file beside the vectors.
        out: ``.npy`` (texts, width) float32, or ``.parquet`` with a row a text and the vector in ``vector``. No text is written.
        prompt: what stands before every text, such as ``manner.query_prompt``.
        token_budget: tokens in a batch at most, but for a single text that is longer.
        precision: ``auto`` takes bfloat16 where the processor has it; either way only if its vectors agree with float32 (worst cosine 0.999).
        on_progress: called after every batch with numbers.

    Raises:
        InputError: an empty text, or none at all.
        TrainingError: a vector that is not a number, or has no direction although it is to be normalised.
        UsageError: another ending than these two.
        StorageError: it cannot be written.
    """
    work = _EncodingStream(stack, embedding_config, prompt, token_budget, precision, on_progress)
    with open_vector_file(out, stack.base.width) as file:
        for chunk, ids in _iterate_chunks(texts):
            found = work.encode_chunk(chunk, file)
            with convert_vector_storage_errors(out):
                file.append(found, ids)
        if not work.text_count:
            raise InputError(
                "no text to encode", location="texts", hint="give a file with at least one text"
            )
    return work.summarize()


def encode_texts(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: Sequence[str],
    prompt: str = "",
    token_budget: int = ENCODING_BATCH_TOKENS,
    precision: EncodingPrecision = "float32",
    on_progress: Callable[[EncodingProgress], None] = lambda _: None,
) -> Float32Array:
    """The same in memory (texts, width), float32, in float32 unless told otherwise: what evaluation compares should not hang on the processor.

    Inside ``stack.off()`` these are the vectors of the base.

    Raises:
        InputError, TrainingError: as ``encode``.
    """
    work = _EncodingStream(stack, embedding_config, prompt, token_budget, precision, on_progress)
    if not texts:
        return np.zeros((0, stack.base.width), dtype=np.float32)
    return work.encode_chunk(list(texts), None)


class _EncodingStream:
    """The encoding of one stream: what was seen, what was counted."""

    def __init__(
        self,
        stack: Stack,
        embedding_config: EmbeddingConfig,
        prompt: str,
        token_budget: int,
        precision: EncodingPrecision,
        on_progress: Callable[[EncodingProgress], None],
    ) -> None:
        (
            self.stack,
            self.embedding_config,
            self.prompt,
            self.token_budget,
            self.precision,
            self.on_progress,
        ) = stack, embedding_config, prompt, token_budget, precision, on_progress
        self.start_seconds = time.perf_counter()
        self.row_by_hash: dict[
            bytes, int
        ] = {}  # hash of a text -> row of the output where it was first
        self.text_count = self.token_count = self.truncated_texts = 0
        self.inference_stack: InferenceStack | None = None

    def encode_chunk(self, texts: list[str], file: VectorFile | None) -> Float32Array:
        """Vectors (texts, width) of the next texts; what was encoded before is read back from ``file``."""
        first = self.text_count
        rows = [self._find_first_row(text, first + at) for at, text in enumerate(texts)]
        self.text_count += len(texts)
        fresh = [at for at, row in enumerate(rows) if row == first + at]
        found = np.empty((len(texts), self.stack.base.width), dtype=np.float32)
        if fresh:
            found[fresh] = self._encode_new_texts(
                [texts[at] for at in fresh], [first + at for at in fresh]
            )
        here = np.asarray(rows) - first  # below 0: in the file
        found[here >= 0] = found[here[here >= 0]]
        if (here < 0).any() and file is not None:
            found[here < 0] = file.take(here[here < 0] + first)
        return found

    def _find_first_row(self, text: str, row: int) -> int:
        if not text or not text.strip():
            raise InputError(
                "a text is empty",
                location=_format_row_location(row),
                hint="leave out what has no text, and count it",
            )
        return self.row_by_hash.setdefault(
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), row
        )

    def _encode_new_texts(self, texts: list[str], rows: list[int]) -> Float32Array:
        ids, cut = tokenize_with_truncation(
            self.stack.base.tokenizer,
            [self.prompt + text for text in texts],
            compute_max_text_tokens(self.stack, self.embedding_config),
        )
        empty = next((row for row, each in zip(rows, ids, strict=True) if not each), None)
        if empty is not None:
            raise InputError(
                "a text has no token in it",
                location=_format_row_location(empty),
                hint="leave out what has no text, and count it",
            )
        self.truncated_texts += cut
        lengths = np.asarray([len(each) for each in ids], dtype=np.int64)
        if self.inference_stack is None:
            self.inference_stack = prepare_inference_stack(
                self.stack,
                self.embedding_config.pooling,
                self.precision,
                sample_by_length(ids, lengths),
            )
        found = np.empty((len(ids), self.stack.base.width), dtype=np.float32)
        done = len(self.row_by_hash) - len(ids)
        for group in bucket_by_length(lengths, self.token_budget):
            found[group] = self._check_vectors(
                embed_token_ids(
                    self.inference_stack, [ids[at] for at in group], self.embedding_config
                ),
                [rows[at] for at in group],
            )
            done, self.token_count = done + len(group), self.token_count + int(lengths[group].sum())
            self.on_progress(
                EncodingProgress(done, self.token_count, time.perf_counter() - self.start_seconds)
            )
        return found

    def _check_vectors(self, vectors: Float32Array, rows: list[int]) -> Float32Array:
        odd = ~np.isfinite(vectors).all(axis=1)
        without = ~odd & self.embedding_config.normalise & ~vectors.any(axis=1)
        for bad, said in ((odd, "is not a number"), (without, "is zero and has no direction")):
            if bad.any():
                message = f"the vector of {int(bad.sum())} of {len(rows)} texts of a batch {said}"
                hint = "look at the run's log: the training has diverged, or the model's folder is damaged; precision = float32 tells which"
                raise TrainingError(
                    message, location=_format_row_location(rows[int(np.argmax(bad))]), hint=hint
                )
        return vectors

    def summarize(self) -> EncodingSummary:
        engine, seconds = self.inference_stack, time.perf_counter() - self.start_seconds
        assert engine is not None  # there was a text
        how = engine.precision, engine.reason, engine.cosine
        return EncodingSummary(
            self.text_count,
            len(self.row_by_hash),
            self.token_count,
            self.truncated_texts,
            self.stack.base.width,
            seconds,
            *how,
        )


def _format_row_location(row: int) -> str:
    return f"text {row}, counted from 0"


def _iterate_chunks(
    texts: Iterable[str | pa.RecordBatch],
) -> Iterator[tuple[list[str], pa.RecordBatch | None]]:
    """A stream in pieces of at most ``CHUNK_TEXTS``, with the identifiers of each where there are any."""
    stream = iter(texts)
    first = next(stream, None)
    if first is None:
        return
    if isinstance(first, str):
        whole = _prepend_item(first, stream)
        while some := [_as_text(each) for each in islice(whole, ENCODING_CHUNK_TEXTS)]:
            yield some, None
        return
    for batch in _prepend_item(first, stream):
        kept = [name for name in batch.schema.names if name.endswith("_id")]
        for start in range(0, batch.num_rows, ENCODING_CHUNK_TEXTS):
            part = batch.slice(start, ENCODING_CHUNK_TEXTS)
            yield [text or "" for text in part.column("text").to_pylist()], part.select(kept)


def _prepend_item(first_item: Any, remaining_items: Iterator[Any]) -> Iterator[Any]:
    yield first_item
    yield from remaining_items


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


# --------------------------------------------------------------------------------------------------------------------------------- tokens


def compute_max_text_tokens(stack: Stack, embedding_config: EmbeddingConfig) -> int:
    """The longest text in tokens: the manner's, and what the position table of the base holds beside virtual tokens."""
    positions = stack.base.max_positions
    return (
        embedding_config.max_tokens
        if positions is None
        else min(embedding_config.max_tokens, positions - stack.virtual_tokens)
    )


def tokenize_with_truncation(
    tokenizer: Any, texts: list[str], max_tokens: int
) -> tuple[list[list[int]], int]:
    """Token ids with the tokenizer's own special tokens, as sentence-transformers asks for them; and how many texts were cut at their end."""
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    long = [at for at, each in enumerate(ids) if len(each) > max_tokens]
    if long:
        again = tokenizer(
            [texts[at] for at in long], truncation=True, max_length=max_tokens, **options
        )["input_ids"]
        for at, each in zip(long, again, strict=True):
            ids[at] = each
    return ids, len(long)


def bucket_by_length(lengths: IndexArray, token_budget: int) -> list[IndexArray]:
    """Groups of texts of at most ``token_budget`` tokens, or of one text; the longest first, so that too little memory shows at once, and texts of
    one length together.

    Args:
        lengths: (texts,) tokens of each.
    """
    return tokenization.group_windows(lengths, np.arange(len(lengths)), token_budget)


def sample_by_length(ids: list[list[int]], lengths: IndexArray) -> list[list[int]]:
    """The sample: token ids of texts of all lengths."""
    order = np.argsort(lengths, kind="stable")
    chosen = np.unique(
        np.linspace(0, len(order) - 1, num=min(PRECISION_SAMPLE_TEXTS, len(order))).astype(np.int64)
    )
    return [ids[int(at)] for at in order[chosen]]


# --------------------------------------------------------------------------------------------------------------------------------- the model


def embed_token_ids(
    inference_stack: InferenceStack, ids: Sequence[list[int]], embedding_config: EmbeddingConfig
) -> Float32Array:
    """Vectors (texts, width), float32."""
    input_ids, mask = pad_token_ids(ids)
    with torch.inference_mode():
        pooled = adapters.compute_pooled_embeddings(
            inference_stack.stack,
            input_ids.to(inference_stack.device),
            mask.to(inference_stack.device),
            embedding_config.pooling,
        )
        pooled = (
            torch.nn.functional.normalize(pooled, dim=1) if embedding_config.normalise else pooled
        )
    found: Float32Array = pooled.cpu().numpy()
    return found


def pad_token_ids(ids: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(texts, time) ids and mask, with zeros on the right."""
    lengths = torch.tensor([len(each) for each in ids])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    rows = torch.zeros(mask.shape, dtype=torch.int64)
    rows[mask] = torch.tensor(list(chain.from_iterable(ids)))
    return rows, mask.long()


def prepare_inference_stack(
    stack: Stack, pooling: PoolingMode, precision: EncodingPrecision, sample: Sequence[list[int]]
) -> InferenceStack:
    """A stack made ready to give vectors.

    The adapters are folded into a copy, which saves their products for every text; a method that cannot be folded, a base in float8, or a stack of
    which something is switched off, is asked as it is, in its own precision.

    Args:
        stack: base and adapters.
        pooling: where the vectors are read that are compared.
        precision: what is wanted.
        sample: token ids of texts on which bfloat16 is compared with float32.
    """
    device = torch.device(stack.base.model.device)
    if (
        stack.disabled_adapters
        or stack.base.quantization != "none"
        or not all(ADAPTER_METHODS[adapter.spec.method].is_mergeable for adapter in stack.adapters)
    ):
        named = str(stack.base.precision).removeprefix("torch.")
        return InferenceStack(
            stack, named, f"{named}: that of the base, whose adapters cannot be folded into it"
        )
    wanted, reason = models.choose_precision(precision, device)
    exact = _get_float32_model(stack)
    if wanted == torch.float32:
        return InferenceStack(_wrap_bare_model(stack, exact), "float32", reason)
    look = EmbeddingConfig(pooling)
    expected = [
        embed_token_ids(InferenceStack(_wrap_bare_model(stack, exact), "", ""), [ids], look)[0]
        for ids in sample
    ]
    fast = _cast_weights(stack, exact, wanted)
    found = [
        embed_token_ids(InferenceStack(_wrap_bare_model(stack, fast), "", ""), [ids], look)[0]
        for ids in sample
    ]
    cosine = float(
        np.min([one @ other for one, other in zip(expected, found, strict=True)])
    )  # NaN stays NaN, and fails below
    named = str(wanted).removeprefix("torch.")
    if cosine >= MIN_PRECISION_COSINE:
        return InferenceStack(
            _wrap_bare_model(stack, fast),
            named,
            f"{reason}; worst cosine to float32 on {len(sample)} texts {cosine:.5f}",
            cosine,
        )
    del fast
    reason = f"float32: {named} was tried, and its worst cosine to float32 on {len(sample)} texts is {cosine:.5f}, below {MIN_PRECISION_COSINE}"
    return InferenceStack(
        _wrap_bare_model(stack, _get_float32_model(stack)), "float32", reason, cosine
    )


def _get_float32_model(stack: Stack) -> Any:
    """The model in float32: the base itself where it is that and bare, else a copy with the adapters folded in."""
    if stack.base.precision == torch.float32 and not any(
        adapter.model is not None for adapter in stack.adapters
    ):
        return stack.base.model
    return stack.create_merged_model()


def _cast_weights(stack: Stack, float32_model: Any, precision: torch.dtype) -> Any:
    """The model in a lower precision: only its weights. Its buffers stay: angles of rotary positions in bfloat16 would be off by whole positions."""
    if stack.base.precision == precision and not any(
        adapter.model is not None for adapter in stack.adapters
    ):
        return stack.base.model
    rounded = copy.deepcopy(float32_model) if float32_model is stack.base.model else float32_model
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(precision)
    return rounded


def _wrap_bare_model(stack: Stack, model: Any) -> Stack:
    """A model without adapters beside it, asked like any stack."""
    return Stack(
        replace(stack.base, model=model),
        (),
        ParameterCounts(0, stack.counts.base_parameters),
        (),
        {},
    )
