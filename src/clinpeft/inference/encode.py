"""Texts to vectors for inference: tokenized once, each distinct text once, and without padding.

Texts of a batch are packed into one row (``runtime.packed_attention``), where each attends only to
itself, so that its vector does not depend on the others but for rounding. The model is a copy with
merged adapters where they can be merged, in bfloat16 where the processor has instructions for it
and the vectors stay the same.
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

ENCODING_CHUNK_TEXTS = 16_384  # texts in memory at a time
ENCODING_BATCH_TOKENS = 8_192
PRECISION_SAMPLE_TEXTS = 32
MIN_PRECISION_COSINE = 0.999
"""Least cosine between the bfloat16 and float32 vectors of each text of the sample."""

EncodingPrecision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class EncodingProgress:
    """Progress of an encoding: texts with a vector, tokens processed, seconds since the start."""

    texts: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class InferenceStack:
    """A stack prepared for encoding.

    Attributes:
        stack: base and adapters; without adapters where they are merged.
        precision: of the computation.
        reason: why this precision.
        cosine: least cosine with float32 on the sample; None without a comparison.
    """

    stack: Stack
    precision: str
    reason: str
    cosine: float | None = None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(self.stack.base.model.device)


@dataclass(frozen=True)
class EncodingSummary:
    """What was encoded, and how.

    Attributes:
        texts: rows of the output.
        unique_texts: distinct texts, each of which went through the model once.
        tokens: of the distinct texts, after truncation.
        truncated_texts: distinct texts that were longer than the maximum length.
        width: numbers in a vector.
        seconds: in all, reading and writing included.
        precision: as of ``InferenceStack``.
        precision_reason: as of ``InferenceStack``.
        cosine: as of ``InferenceStack``.
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
        """Return the summary as in a run's record."""
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
    """Write the vector of every text, in order, to a file that is written whole or not at all.

    An existing file is replaced. Memory: a chunk of 16,384 texts, one copy of the model, and some
    200 bytes per distinct text, by which repeated texts are recognized.

    Args:
        stack: base and adapters, of a base loaded for any purpose.
        embedding_config: how a text is embedded.
        texts: texts, or record batches with a column ``text``; columns of these that end in
            ``_id`` go into a Parquet file with the vectors.
        out: ``.npy`` for (texts, width) float32, or ``.parquet`` with a row per text and its
            vector in ``vector``. No text is written.
        prompt: before every text, such as ``embedding_config.query_prompt``.
        token_budget: tokens of a batch at most, unless it is a single text.
        precision: ``auto`` takes bfloat16 where the processor has it; bfloat16 is used only if
            its vectors agree with float32 (``MIN_PRECISION_COSINE``).
        on_progress: called after every batch.

    Raises:
        InputError: an empty text, or no text.
        TrainingError: a vector that is not finite, or that is zero and has to be normalized.
        UsageError: ``out`` ends in neither ``.npy`` nor ``.parquet``.
        StorageError: the file cannot be written.
    """
    stream = _EncodingStream(stack, embedding_config, prompt, token_budget, precision, on_progress)
    with open_vector_file(out, stack.base.width) as file:
        # the width is known before the first text, so an unusable name fails at once
        for chunk, ids in _iterate_chunks(texts):
            vectors = stream.encode_chunk(chunk, file)  # (texts of chunk, width)
            with convert_vector_storage_errors(out):
                file.append(vectors, ids)
        if not stream.num_texts:
            raise InputError(
                "no text to encode", location="texts", hint="give a file with at least one text"
            )
    return stream.summarize()


def encode_texts(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    texts: Sequence[str],
    prompt: str = "",
    token_budget: int = ENCODING_BATCH_TOKENS,
    precision: EncodingPrecision = "float32",
    on_progress: Callable[[EncodingProgress], None] = lambda _: None,
) -> Float32Array:
    """Return the vectors of texts.

    The default precision is float32, so that evaluations do not depend on the processor. Inside
    ``stack.disable_adapters()`` these are the vectors of the base.

    Args:
        stack, embedding_config, texts, prompt, token_budget, precision, on_progress: as for
            ``encode_texts_to_file``.

    Returns:
        (texts, width) float32.

    Raises:
        InputError, TrainingError: as for ``encode_texts_to_file``.
    """
    stream = _EncodingStream(stack, embedding_config, prompt, token_budget, precision, on_progress)
    if not texts:
        return np.zeros((0, stack.base.width), dtype=np.float32)
    return stream.encode_chunk(list(texts), None)


class _EncodingStream:
    """The encoding of a stream of texts, chunk by chunk, with its counts."""

    def __init__(
        self,
        stack: Stack,
        embedding_config: EmbeddingConfig,
        prompt: str,
        token_budget: int,
        precision: EncodingPrecision,
        on_progress: Callable[[EncodingProgress], None],
    ) -> None:
        self.stack, self.embedding_config, self.prompt = stack, embedding_config, prompt
        self.token_budget, self.precision = token_budget, precision
        self.on_progress = on_progress
        self.start_seconds = time.perf_counter()
        # hash of a text -> row of the output where it occurs first
        self.row_by_hash: dict[bytes, int] = {}
        self.num_texts = self.num_tokens = self.num_truncated = 0
        self.inference_stack: InferenceStack | None = None

    def encode_chunk(self, texts: list[str], file: VectorFile | None) -> Float32Array:
        """Return the vectors (texts, width) of the next texts.

        Args:
            texts: a chunk.
            file: with the vectors of earlier chunks, from which those of repeated texts are read.
        """
        start = self.num_texts
        first_rows = []  # (texts,) row of the output where each text occurs first
        for row, text in enumerate(texts, start):
            if not text or not text.strip():
                raise InputError(
                    "a text is empty",
                    location=_format_row_location(row),
                    hint="leave out empty texts, and count them",
                )
            # surrogates survive, so that a text that is not valid Unicode does not end the run
            encoded = text.encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(encoded, digest_size=16).digest()
            first_rows.append(self.row_by_hash.setdefault(digest, row))
        # only now: an error above leaves the counts of complete chunks
        self.num_texts += len(texts)
        # distinct texts that occur here for the first time
        new = [index for index, row in enumerate(first_rows) if row == start + index]
        vectors = np.empty((len(texts), self.stack.base.width), dtype=np.float32)
        if new:
            new_rows = [start + index for index in new]
            vectors[new] = self.encode_new_texts([texts[index] for index in new], new_rows)
        index = np.asarray(first_rows) - start  # in this chunk, or negative: in an earlier one
        # repeated texts of this chunk, whose first occurrence is now encoded
        vectors[index >= 0] = vectors[index[index >= 0]]
        if (index < 0).any() and file is not None:
            vectors[index < 0] = file.take(index[index < 0] + start)
        return vectors

    def encode_new_texts(self, texts: list[str], rows: list[int]) -> Float32Array:
        """Return the vectors (texts, width) of distinct texts at ``rows`` of the output."""
        max_tokens = compute_max_text_tokens(self.stack, self.embedding_config)
        # the hash is of the text without the prompt, which is the same for all
        prompted = [self.prompt + text for text in texts]
        ids, num_truncated = tokenize_with_truncation(
            self.stack.base.tokenizer, prompted, max_tokens
        )
        empty = next((row for row, tokens in zip(rows, ids, strict=True) if not tokens), None)
        if empty is not None:
            raise InputError(
                "a text has no token",
                location=_format_row_location(empty),
                hint="leave out texts without tokens, and count them",
            )
        self.num_truncated += num_truncated
        lengths = np.asarray([len(tokens) for tokens in ids], dtype=np.int64)  # (texts,)
        if self.inference_stack is None:
            # the first chunk decides the precision of all
            # evenly over lengths: rounding errors grow with the length of a text
            sample = sample_by_length(ids, lengths)
            self.inference_stack = prepare_inference_stack(
                self.stack, self.embedding_config.pooling, self.precision, sample
            )
        vectors = np.empty((len(ids), self.stack.base.width), dtype=np.float32)
        # distinct texts before this chunk
        num_encoded = len(self.row_by_hash) - len(ids)
        for group in bucket_by_length(lengths, self.token_budget):
            batch = [ids[index] for index in group]
            vectors[group] = embed_token_ids(self.inference_stack, batch, self.embedding_config)
            self.check_vectors(vectors[group], [rows[index] for index in group])
            num_encoded += len(group)
            self.num_tokens += int(lengths[group].sum())
            seconds = time.perf_counter() - self.start_seconds
            self.on_progress(EncodingProgress(num_encoded, self.num_tokens, seconds))
        return vectors

    def check_vectors(self, vectors: Float32Array, rows: list[int]) -> None:
        """Check that vectors (texts, width) are finite, and not zero if they are normalized."""
        is_odd = ~np.isfinite(vectors).all(axis=1)  # (texts,)
        # normalization leaves a zero vector zero, and its cosine with any other is undefined
        is_zero = ~is_odd & self.embedding_config.normalise & ~vectors.any(axis=1)
        for mask, state in ((is_odd, "is not a number"), (is_zero, "is zero and has no direction")):
            if mask.any():
                raise TrainingError(
                    f"the vector of {int(mask.sum())} of {len(rows)} texts of a batch {state}",
                    location=_format_row_location(rows[int(np.argmax(mask))]),
                    hint="see the run's log: the training has diverged, or the model's folder is "
                    "damaged; the error remains with precision = float32 in these cases",
                )

    def summarize(self) -> EncodingSummary:
        """Return counts and precision of the texts so far, of which there is at least one."""
        inference_stack = self.inference_stack
        assert inference_stack is not None  # set with the first text
        return EncodingSummary(
            texts=self.num_texts,
            unique_texts=len(self.row_by_hash),
            tokens=self.num_tokens,
            truncated_texts=self.num_truncated,
            width=self.stack.base.width,
            seconds=time.perf_counter() - self.start_seconds,
            precision=inference_stack.precision,
            precision_reason=inference_stack.reason,
            cosine=inference_stack.cosine,
        )


def _format_row_location(row: int) -> str:
    return f"text {row}, counted from 0"  # never the text


def _iterate_chunks(
    texts: Iterable[str | pa.RecordBatch],
) -> Iterator[tuple[list[str], pa.RecordBatch | None]]:
    """Yield at most ``ENCODING_CHUNK_TEXTS`` texts at a time, with their identifier columns."""
    stream = iter(texts)
    # the first item decides the type of all
    first = next(stream, None)
    if first is None:
        return
    items: Iterator[Any] = chain([first], stream)
    if isinstance(first, str):
        while chunk := list(islice(items, ENCODING_CHUNK_TEXTS)):
            # anything but a text counts as an empty text, which is an error with its row
            yield [text if isinstance(text, str) else "" for text in chunk], None
        return
    for batch in items:
        id_columns = [name for name in batch.schema.names if name.endswith("_id")]
        # a record batch can be of any size
        for start in range(0, batch.num_rows, ENCODING_CHUNK_TEXTS):
            part = batch.slice(start, ENCODING_CHUNK_TEXTS)
            yield [text or "" for text in part.column("text").to_pylist()], part.select(id_columns)


# ---------------------------------------------------------------------------------------- tokens


def compute_max_text_tokens(stack: Stack, embedding_config: EmbeddingConfig) -> int:
    """Return the tokens of the longest text: as configured, and as many as have a position.

    Virtual tokens of prompt methods take positions of the base's table.
    """
    positions = stack.base.max_positions
    if positions is None:
        return embedding_config.max_tokens
    return min(embedding_config.max_tokens, positions - stack.virtual_tokens)


def tokenize_with_truncation(
    tokenizer: Any, texts: list[str], max_tokens: int
) -> tuple[list[list[int]], int]:
    """Tokenize texts with the tokenizer's own special tokens, as sentence-transformers does.

    Returns:
        Token ids of each text, and the number of texts that were truncated at their end.
    """
    # lists of ids only: packing needs neither masks nor segment ids
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    # tokenized again, because only the tokenizer knows which special tokens to keep at the end
    long = [index for index, tokens in enumerate(ids) if len(tokens) > max_tokens]
    if long:
        truncated = tokenizer(
            [texts[index] for index in long], truncation=True, max_length=max_tokens, **options
        )["input_ids"]
        for index, tokens in zip(long, truncated, strict=True):
            ids[index] = tokens
    return ids, len(long)


def bucket_by_length(lengths: IndexArray, token_budget: int) -> list[IndexArray]:
    """Group texts of similar length into batches of at most ``token_budget`` tokens or one text.

    The longest texts come first, so that a lack of memory shows at the start.

    Args:
        lengths: (texts,) tokens of each.
        token_budget: tokens of a batch.

    Returns:
        The indices of the texts of each batch.
    """
    return tokenization.group_windows(lengths, np.arange(len(lengths)), token_budget)


def sample_by_length(ids: list[list[int]], lengths: IndexArray) -> list[list[int]]:
    """Return token ids of up to ``PRECISION_SAMPLE_TEXTS`` texts, spread evenly over lengths.

    Args:
        ids: of all texts.
        lengths: (texts,) tokens of each.
    """
    order = np.argsort(lengths, kind="stable")  # (texts,)
    size = min(PRECISION_SAMPLE_TEXTS, len(order))
    # quantiles of the lengths, shortest and longest text included
    ranks = np.unique(np.linspace(0, len(order) - 1, num=size).astype(np.int64))
    return [ids[int(index)] for index in order[ranks]]


# ----------------------------------------------------------------------------------------- model


def embed_token_ids(
    inference_stack: InferenceStack, ids: Sequence[list[int]], embedding_config: EmbeddingConfig
) -> Float32Array:
    """Return the vectors (texts, width), float32, of token ids."""
    input_ids, mask = pad_token_ids(ids)  # (texts, time)
    device = inference_stack.device
    with torch.inference_mode():
        vectors = adapters.compute_pooled_embeddings(
            inference_stack.stack, input_ids.to(device), mask.to(device), embedding_config.pooling
        )  # (texts, width)
        if embedding_config.normalise:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
    array: Float32Array = vectors.cpu().numpy()
    return array


def pad_token_ids(ids: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, (texts, time) int64 each, with zeros on the right."""
    lengths = torch.tensor([len(tokens) for tokens in ids])  # (texts,)
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]  # (texts, time)
    input_ids = torch.zeros(mask.shape, dtype=torch.int64)
    # a boolean index fills row by row, which is the order of the flat list
    input_ids[mask] = torch.tensor(list(chain.from_iterable(ids)))
    return input_ids, mask.long()


def prepare_inference_stack(
    stack: Stack, pooling: PoolingMode, precision: EncodingPrecision, sample: Sequence[list[int]]
) -> InferenceStack:
    """Prepare a stack for encoding.

    The adapters are merged into a copy, which saves their matrix products for every text. A stack
    with a method that cannot be merged, with a float8 base, or with disabled adapters is used as
    it is, in its own precision.

    Args:
        stack: base and adapters.
        pooling: of the vectors that are compared.
        precision: as for ``encode_texts_to_file``.
        sample: token ids of texts on which bfloat16 is compared with float32.
    """
    is_mergeable = all(ADAPTER_METHODS[a.spec.method].is_mergeable for a in stack.adapters)
    if stack.disabled_adapters or stack.base.quantization != "none" or not is_mergeable:
        name = str(stack.base.precision).removeprefix("torch.")
        reason = f"{name}: that of the base, into which the adapters cannot be merged"
        return InferenceStack(stack, name, reason)
    # `auto` may choose float32, and then there is nothing to compare
    dtype, reason = models.choose_precision(precision, torch.device(stack.base.model.device))
    float32_model = _get_float32_model(stack)
    if dtype == torch.float32:
        return InferenceStack(_wrap_bare_model(stack, float32_model), "float32", reason)

    def embed_sample(model: Any) -> list[Float32Array]:
        # one text at a time: a batch of another composition would add rounding differences
        bare = InferenceStack(_wrap_bare_model(stack, model), "", "")
        config = EmbeddingConfig(pooling)  # normalized, so that products are cosines
        return [embed_token_ids(bare, [tokens], config)[0] for tokens in sample]

    # before the cast, which may change the weights of the float32 copy in place
    expected = embed_sample(float32_model)
    low_precision_model = _cast_weights(stack, float32_model, dtype)
    pairs = zip(expected, embed_sample(low_precision_model), strict=True)
    cosine = float(np.min([first @ second for first, second in pairs]))
    name = str(dtype).removeprefix("torch.")
    comparison = f"worst cosine to float32 on {len(sample)} texts"
    if cosine >= MIN_PRECISION_COSINE:  # false for NaN
        bare = _wrap_bare_model(stack, low_precision_model)
        return InferenceStack(bare, name, f"{reason}; {comparison} {cosine:.5f}", cosine)
    del low_precision_model  # frees its memory before the next copy is made
    reason = (
        f"float32: {name} was tried, with {comparison} {cosine:.5f}, below {MIN_PRECISION_COSINE}"
    )
    bare = _wrap_bare_model(stack, _get_float32_model(stack))
    return InferenceStack(bare, "float32", reason, cosine)


def _has_adapter_modules(stack: Stack) -> bool:
    return any(adapter.model is not None for adapter in stack.adapters)


def _get_float32_model(stack: Stack) -> Any:
    """Return the base's model if it is float32 without adapters, else a merged float32 copy."""
    if stack.base.precision == torch.float32 and not _has_adapter_modules(stack):
        return stack.base.model
    return stack.create_merged_model()


def _cast_weights(stack: Stack, float32_model: Any, precision: torch.dtype) -> Any:
    """Return the model with its parameters, but not its buffers, in a lower precision.

    Buffers hold the angles of rotary positions, which in bfloat16 would be off by whole positions.
    """
    if stack.base.precision == precision and not _has_adapter_modules(stack):
        return stack.base.model
    # the base itself must not change; a merged copy may
    is_base = float32_model is stack.base.model
    model = copy.deepcopy(float32_model) if is_base else float32_model
    for parameter in model.parameters():
        # in place, one tensor at a time: at most one is in memory twice
        parameter.data = parameter.data.to(precision)
    return model


def _wrap_bare_model(stack: Stack, model: Any) -> Stack:
    """Return a stack of a model without adapter modules."""
    # no adapters, no virtual tokens, nothing disabled
    counts = ParameterCounts(0, stack.counts.base_parameters)
    return Stack(replace(stack.base, model=model), (), counts, (), {})
