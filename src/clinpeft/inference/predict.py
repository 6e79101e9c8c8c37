"""A fitted model and documents -> answers: logits, what is remembered of a note that nothing will change, and the table of predictions.

Memory: a micro-batch of tokens at a time; nothing is kept per token, whatever the number of labels.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from clinpeft import adapters, tokenization
from clinpeft.adapters import PackedInput, Stack
from clinpeft.core.errors import TrainingError
from clinpeft.core.schemas import PREDICTION_SCHEMA, LabelSpace
from clinpeft.models import (
    Head,
    PoolingMode,
    SequenceLengths,
    WindowPooling,
    pool_packed_hidden_states,
)
from clinpeft.tokenization import EncodedDocuments, IndexArray

LogitFunction = Callable[[IndexArray], torch.Tensor]
Float32Array = npt.NDArray[np.float32]
_Accelerator = Any  # accelerate.Accelerator, which is not typed

PREDICTION_COHORT_COLUMNS = tuple(
    name
    for name in PREDICTION_SCHEMA.names
    if name not in ("logits", "probabilities", "tokens", "tokens_read")
)


def build_logit_function(
    stack: Stack,
    documents: EncodedDocuments,
    head: Head,
    pooling: PoolingMode,
    window_pooling: WindowPooling,
    device: torch.device,
) -> LogitFunction:
    """Documents -> logits (documents, classes), float32, through base, adapters and head."""

    def answer(chosen: IndexArray) -> torch.Tensor:
        batch = documents.gather_batch(chosen).to(device)
        vectors = adapters.compute_pooled_embeddings(
            stack, batch.input_ids, batch.attention_mask, pooling
        )  # (windows, width)
        logits: torch.Tensor = head(
            vectors, batch.document_index, batch.num_documents, window_pooling
        )
        return logits

    return answer


def build_packed_input_function(
    documents: EncodedDocuments,
    head: Head,
    pooling: PoolingMode,
    window_pooling: WindowPooling,
    device: torch.device,
) -> Callable[[IndexArray], PackedInput[torch.Tensor]]:
    """The same in two parts, so that several models can be asked in one pass: documents -> texts, and what answers from their vectors."""

    def read(chosen: IndexArray) -> PackedInput[torch.Tensor]:
        batch = documents.gather_batch(chosen).to(device)
        spans = SequenceLengths(tuple(batch.attention_mask.sum(dim=1).tolist()))

        def answer(vectors: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = head(
                pool_packed_hidden_states(vectors, spans, pooling),
                batch.document_index,
                batch.num_documents,
                window_pooling,
            )
            return logits

        return PackedInput(batch.input_ids, batch.attention_mask, answer)

    return read


def build_cached_logit_function(
    features: Float32Array,
    documents: EncodedDocuments,
    head: Head,
    window_pooling: WindowPooling,
    device: torch.device,
) -> LogitFunction:
    """The same from vectors that were read before: what stands below the head does not change, so it need not run again."""

    def answer(chosen: IndexArray) -> torch.Tensor:
        windows, document = documents.find_windows(chosen)
        vectors = torch.from_numpy(np.asarray(features[windows])).to(device)
        logits: torch.Tensor = head(
            vectors, torch.from_numpy(document).to(device), len(chosen), window_pooling
        )
        return logits

    return answer


def cache_window_features(
    stack: Stack,
    documents: EncodedDocuments,
    pooling: PoolingMode,
    micro_batch_tokens: int,
    device: torch.device,
    path: Path,
) -> Float32Array:
    """The pooled vector of every window (windows, width), read once and mapped from ``path`` after that; the file appears whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        writing = path.with_suffix(".writing")
        vectors = np.lib.format.open_memmap(
            writing, "w+", np.float32, (len(documents.lengths), stack.base.width)
        )
        _preallocate_file(writing)
        for windows, pooled in _encode_window_batches(
            stack,
            documents,
            np.arange(len(documents.tokens_total)),
            pooling,
            micro_batch_tokens,
            device,
        ):
            vectors[windows] = pooled
        vectors.flush()
        writing.replace(path)
    mapped: Float32Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def encode_document_windows(
    stack: Stack,
    documents: EncodedDocuments,
    document_indices: IndexArray,
    pooling: PoolingMode,
    micro_batch_tokens: int,
    device: torch.device,
) -> Float32Array:
    """The pooled vectors (windows, width) of some documents, in an order that depends on their lengths alone."""
    return np.concatenate(
        [
            pooled
            for _, pooled in _encode_window_batches(
                stack, documents, document_indices, pooling, micro_batch_tokens, device
            )
        ]
    )


def _encode_window_batches(
    stack: Stack,
    documents: EncodedDocuments,
    document_indices: IndexArray,
    pooling: PoolingMode,
    micro_batch_tokens: int,
    device: torch.device,
) -> Iterator[tuple[IndexArray, Float32Array]]:
    """(windows, their pooled vectors), micro-batch by micro-batch."""
    for group in tokenization.group_documents(documents, document_indices, micro_batch_tokens):
        batch = documents.gather_batch(group).to(device)
        with torch.inference_mode():
            pooled = adapters.compute_pooled_embeddings(
                stack, batch.input_ids, batch.attention_mask, pooling
            )
        yield documents.find_windows(group)[0], pooled.cpu().numpy()


def _preallocate_file(path: Path) -> None:
    """Take the room of a mapped file now: on a full disk this is an error, while writing to a page that has no room kills the process."""
    if sys.platform == "linux":
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def gather_logits(
    logit_function: LogitFunction,
    num_classes: int,
    make_batches: Callable[[IndexArray], list[IndexArray]],
    accelerator: _Accelerator,
    document_indices: IndexArray,
) -> Float32Array:
    """Logits (documents, classes) of ``document_indices``, in their order, without gradient, shared between the processes. The caller sets eval mode."""
    found = torch.zeros(
        len(document_indices), num_classes, dtype=torch.float32, device=accelerator.device
    )
    at = {int(document): row for row, document in enumerate(document_indices)}
    with torch.inference_mode():
        for group in make_batches(document_indices)[
            accelerator.process_index :: accelerator.num_processes
        ]:
            found[[at[int(document)] for document in group]] = logit_function(group)
    table: Float32Array = accelerator.reduce(found, "sum").cpu().numpy()
    return table


def compute_probabilities(logits: Float32Array, label_space: LabelSpace) -> Float32Array:
    """Softmax over the classes of which one is asked, a sigmoid for each where all that apply are; (documents, classes)."""
    wide = logits.astype(np.float64)
    if label_space.kind == "multilabel":
        return (1.0 / (1.0 + np.exp(-np.clip(wide, -700, 700)))).astype(np.float32)
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: Float32Array = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def build_prediction_table(
    documents: EncodedDocuments,
    document_indices: IndexArray,
    logits: Float32Array,
    label_space: LabelSpace,
) -> pa.Table:
    """The answers to a question (schema ``tables.PREDICTION``), a row a document, with the question in the metadata.

    Raises:
        TrainingError: a logit that is no number, by the stay it answers.
    """
    known = documents.read_table(PREDICTION_COHORT_COLUMNS).take(pa.array(document_indices))
    _check_finite_logits(logits, known["stay_id"])
    columns = {name: known[name] for name in PREDICTION_COHORT_COLUMNS} | {
        "logits": _to_list_array(logits),
        "probabilities": _to_list_array(compute_probabilities(logits, label_space)),
        "tokens": pa.array(documents.tokens_total[document_indices]),
        "tokens_read": pa.array(documents.tokens_read[document_indices]),
    }
    about = {b"question": json.dumps(label_space.as_json()).encode()}
    return pa.table(
        {name: columns[name] for name in PREDICTION_SCHEMA.names}, schema=PREDICTION_SCHEMA
    ).replace_schema_metadata(about)


def _check_finite_logits(logits: Float32Array, stay_ids: pa.ChunkedArray) -> None:
    odd = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(odd):
        message = f"{len(odd)} of {len(logits)} documents have logits that are not all numbers"
        hint = 'set base.precision = "float32", or lower training.learning_rate'
        raise TrainingError(message, location=f"stay_id {stay_ids[int(odd[0])].as_py()}", hint=hint)


def _to_list_array(values: Float32Array) -> pa.Array:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), pa.float32()))


def concatenate_logits(logits: list[torch.Tensor]) -> torch.Tensor:
    """Logits of several questions in one row."""
    return torch.cat([some.reshape(-1) for some in logits])


def build_gathered_logit_function(
    logit_function: LogitFunction,
    num_classes: int,
    make_batches: Callable[[IndexArray], list[IndexArray]],
    accelerator: _Accelerator,
) -> Callable[[IndexArray], Float32Array]:
    """``scores`` of one answerer, to be called with documents."""
    return functools.partial(gather_logits, logit_function, num_classes, make_batches, accelerator)
