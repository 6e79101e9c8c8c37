"""Predictions: documents to logits, cached window features, and the table of predictions.

Memory: one micro-batch of tokens at a time; nothing is stored per token, for any number of labels.
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
"""Document indices (documents,) -> logits (documents, classes), float32."""

Float32Array = npt.NDArray[np.float32]
_Accelerator = Any  # accelerate.Accelerator, which is not typed

# the other columns of the table come from the model
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
    """Return a function from document indices to logits, through base, adapters and head.

    Args:
        stack: base and adapters.
        documents: of a cohort.
        head: of the task.
        pooling: which hidden state of a window is its vector.
        window_pooling: how the logits of a document are computed from those of its windows.
        device: of stack and head.
    """

    def compute_logits(document_indices: IndexArray) -> torch.Tensor:
        batch = documents.gather_batch(document_indices).to(device)
        vectors = adapters.compute_pooled_embeddings(
            stack, batch.input_ids, batch.attention_mask, pooling
        )  # (windows, width)
        # (documents, classes)
        logits: torch.Tensor = head(
            vectors, batch.document_index, batch.num_documents, window_pooling
        )
        return logits

    return compute_logits


def build_packed_input_function(
    documents: EncodedDocuments,
    head: Head,
    pooling: PoolingMode,
    window_pooling: WindowPooling,
    device: torch.device,
) -> Callable[[IndexArray], PackedInput[torch.Tensor]]:
    """Return the function of ``build_logit_function`` in two parts, around the forward pass.

    So several models can share one forward pass of the base.

    Returns:
        Document indices -> token ids and mask (windows, time), with a function from packed hidden
        states (tokens, width) to logits (documents, classes).
    """

    def build_input(document_indices: IndexArray) -> PackedInput[torch.Tensor]:
        batch = documents.gather_batch(document_indices).to(device)
        # on the CPU: the lengths decide shapes
        lengths = SequenceLengths(tuple(batch.attention_mask.sum(dim=1).tolist()))

        def compute_logits(hidden: torch.Tensor) -> torch.Tensor:
            vectors = pool_packed_hidden_states(hidden, lengths, pooling)  # (windows, width)
            logits: torch.Tensor = head(
                vectors, batch.document_index, batch.num_documents, window_pooling
            )
            return logits

        return PackedInput(batch.input_ids, batch.attention_mask, compute_logits)

    return build_input


def build_cached_logit_function(
    features: Float32Array,
    documents: EncodedDocuments,
    head: Head,
    window_pooling: WindowPooling,
    device: torch.device,
) -> LogitFunction:
    """Return the function of ``build_logit_function`` from cached features, for a frozen stack.

    Args:
        features: (windows, width) from ``cache_window_features``.
        documents: of a cohort.
        head: of the task.
        window_pooling: how the logits of a document are computed from those of its windows.
        device: of the head.
    """

    def compute_logits(document_indices: IndexArray) -> torch.Tensor:
        windows, position = documents.find_windows(document_indices)  # (windows,) each
        vectors = torch.from_numpy(np.asarray(features[windows])).to(device)  # (windows, width)
        document_index = torch.from_numpy(position).to(device)
        logits: torch.Tensor = head(vectors, document_index, len(document_indices), window_pooling)
        return logits

    return compute_logits


def cache_window_features(
    stack: Stack,
    documents: EncodedDocuments,
    pooling: PoolingMode,
    micro_batch_tokens: int,
    device: torch.device,
    path: Path,
) -> Float32Array:
    """Return the pooled vector of every window, computed once and mapped from a file afterwards.

    Args:
        stack: base and adapters, which must not change while the file exists.
        documents: of a cohort.
        pooling: which hidden state of a window is its vector.
        micro_batch_tokens: tokens that go through the model together.
        device: of the stack.
        path: of the file, ``.npy``; it is written whole or not at all.

    Returns:
        (windows, width) float32, mapped.
    """
    if not path.exists():
        # vectors are derived from notes: readable by the owner only
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(".writing")
        shape = (len(documents.lengths), stack.base.width)
        vectors = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        if sys.platform == "linux":
            # allocate the blocks now: a full disk is an error here, while a write to a mapped page
            # without a block would kill the process
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        document_indices = np.arange(len(documents.tokens_total))
        for windows, pooled in _encode_window_batches(
            stack, documents, document_indices, pooling, micro_batch_tokens, device
        ):
            vectors[windows] = pooled
        # a renamed file must be complete, also after a crash of the machine
        vectors.flush()
        temporary.replace(path)
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
    """Return the pooled vectors (windows, width) of the windows of some documents.

    Their order is that of the micro-batches, and depends on the lengths alone.
    """
    batches = _encode_window_batches(
        stack, documents, document_indices, pooling, micro_batch_tokens, device
    )
    return np.concatenate([pooled for _, pooled in batches])


def _encode_window_batches(
    stack: Stack,
    documents: EncodedDocuments,
    document_indices: IndexArray,
    pooling: PoolingMode,
    micro_batch_tokens: int,
    device: torch.device,
) -> Iterator[tuple[IndexArray, Float32Array]]:
    """Yield window indices (batch,) and their pooled vectors (batch, width)."""
    for group in tokenization.group_documents(documents, document_indices, micro_batch_tokens):
        # ids and mask (windows, time)
        batch = documents.gather_batch(group).to(device)
        with torch.inference_mode():
            pooled = adapters.compute_pooled_embeddings(
                stack, batch.input_ids, batch.attention_mask, pooling
            )
        yield documents.find_windows(group)[0], pooled.cpu().numpy()


def gather_logits(
    logit_function: LogitFunction,
    num_classes: int,
    make_batches: Callable[[IndexArray], list[IndexArray]],
    accelerator: _Accelerator,
    document_indices: IndexArray,
) -> Float32Array:
    """Compute logits without gradient, with the work divided between processes.

    The caller sets evaluation mode.

    Args:
        logit_function: document indices -> logits.
        num_classes: logits of a document.
        make_batches: document indices -> micro-batches.
        accelerator: of accelerate.
        document_indices: (documents,).

    Returns:
        (documents, classes), in the order of ``document_indices``, on every process.
    """
    logits = torch.zeros(
        len(document_indices), num_classes, dtype=torch.float32, device=accelerator.device
    )
    # micro-batches are grouped by length, so they arrive in another order
    row_of_document = {int(document): row for row, document in enumerate(document_indices)}
    groups = make_batches(document_indices)
    with torch.inference_mode():
        for group in groups[accelerator.process_index :: accelerator.num_processes]:
            logits[[row_of_document[int(document)] for document in group]] = logit_function(group)
    # every row is 0 on all processes but one, so the sum is exact
    gathered: Float32Array = accelerator.reduce(logits, "sum").cpu().numpy()
    return gathered


def compute_probabilities(logits: Float32Array, label_space: LabelSpace) -> Float32Array:
    """Return probabilities: sigmoids for multilabel tasks, else the softmax over classes.

    Args:
        logits: (documents, classes).
        label_space: its kind.

    Returns:
        (documents, classes) float32, computed in float64.
    """
    wide = logits.astype(np.float64)
    if label_space.kind == "multilabel":
        # exp overflows beyond 709; at 700 the sigmoid is 0 or 1 in float32
        return (1.0 / (1.0 + np.exp(-np.clip(wide, -700, 700)))).astype(np.float32)
    # softmax does not change with a constant; the largest exponent becomes 0
    exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    rounded: Float32Array = probabilities.astype(np.float32)
    return rounded


def build_prediction_table(
    documents: EncodedDocuments,
    document_indices: IndexArray,
    logits: Float32Array,
    label_space: LabelSpace,
) -> pa.Table:
    """Return predictions (schema ``PREDICTION_SCHEMA``), with the label space in the metadata.

    Args:
        documents: of a cohort.
        document_indices: (documents,) those that were predicted; one row each.
        logits: (documents, classes).
        label_space: of the task.

    Raises:
        TrainingError: a logit that is not finite, with the stay of its document.
    """
    # in the order of `document_indices`
    cohort = documents.read_table(PREDICTION_COHORT_COLUMNS).take(pa.array(document_indices))
    odd_rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(odd_rows):
        stay_id = cohort["stay_id"][int(odd_rows[0])].as_py()
        raise TrainingError(
            f"{len(odd_rows)} of {len(logits)} documents have logits that are not all numbers",
            location=f"stay_id {stay_id}",
            hint='set base.precision = "float32", or lower training.learning_rate',
        )

    def as_lists(values: Float32Array) -> pa.Array:  # (documents, classes) -> a list per document
        # all lists have the length of the number of classes
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        flat = pa.array(values.reshape(-1), pa.float32())
        return pa.ListArray.from_arrays(pa.array(offsets), flat)

    columns = {name: cohort[name] for name in PREDICTION_COHORT_COLUMNS} | {
        "logits": as_lists(logits),
        "probabilities": as_lists(compute_probabilities(logits, label_space)),
        "tokens": pa.array(documents.tokens_total[document_indices]),
        "tokens_read": pa.array(documents.tokens_read[document_indices]),
    }
    # columns in the order of the schema
    table = pa.table({n: columns[n] for n in PREDICTION_SCHEMA.names}, schema=PREDICTION_SCHEMA)
    metadata = {b"question": json.dumps(label_space.as_json()).encode()}
    return table.replace_schema_metadata(metadata)


def concatenate_logits(logits: list[torch.Tensor]) -> torch.Tensor:
    """Return the logits of several tasks in one flat tensor."""
    return torch.cat([task_logits.reshape(-1) for task_logits in logits])


def build_gathered_logit_function(
    logit_function: LogitFunction,
    num_classes: int,
    make_batches: Callable[[IndexArray], list[IndexArray]],
    accelerator: _Accelerator,
) -> Callable[[IndexArray], Float32Array]:
    """Return ``gather_logits`` as a function of document indices alone."""
    return functools.partial(gather_logits, logit_function, num_classes, make_batches, accelerator)
