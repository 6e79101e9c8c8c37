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
from clinpeft.adapters import Reading, Stack
from clinpeft.core.errors import TrainingError
from clinpeft.core.schemas import PREDICTION, Question
from clinpeft.models import Head, Pooling, Spans, WindowPooling, pool_spans
from clinpeft.tokenization import Documents, Ints

Answer = Callable[[Ints], torch.Tensor]
Floats = npt.NDArray[np.float32]
Crew = Any  # accelerate.Accelerator, which is not typed

FROM_THE_COHORT = tuple(
    name
    for name in PREDICTION.names
    if name not in ("logits", "probabilities", "tokens", "tokens_read")
)


def live(
    stack: Stack,
    documents: Documents,
    head: Head,
    pooling: Pooling,
    window_pooling: WindowPooling,
    device: torch.device,
) -> Answer:
    """Documents -> logits (documents, classes), float32, through base, adapters and head."""

    def answer(chosen: Ints) -> torch.Tensor:
        batch = documents.gather(chosen).to(device)
        vectors = adapters.pooled(
            stack, batch.input_ids, batch.attention_mask, pooling
        )  # (windows, width)
        logits: torch.Tensor = head(vectors, batch.document, batch.documents, window_pooling)
        return logits

    return answer


def reading(
    documents: Documents,
    head: Head,
    pooling: Pooling,
    window_pooling: WindowPooling,
    device: torch.device,
) -> Callable[[Ints], Reading[torch.Tensor]]:
    """The same in two parts, so that several models can be asked in one pass: documents -> texts, and what answers from their vectors."""

    def read(chosen: Ints) -> Reading[torch.Tensor]:
        batch = documents.gather(chosen).to(device)
        spans = Spans(tuple(batch.attention_mask.sum(dim=1).tolist()))

        def answer(vectors: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = head(
                pool_spans(vectors, spans, pooling), batch.document, batch.documents, window_pooling
            )
            return logits

        return Reading(batch.input_ids, batch.attention_mask, answer)

    return read


def remembered(
    features: Floats,
    documents: Documents,
    head: Head,
    window_pooling: WindowPooling,
    device: torch.device,
) -> Answer:
    """The same from vectors that were read before: what stands below the head does not change, so it need not run again."""

    def answer(chosen: Ints) -> torch.Tensor:
        windows, document = documents.windows_of(chosen)
        vectors = torch.from_numpy(np.asarray(features[windows])).to(device)
        logits: torch.Tensor = head(
            vectors, torch.from_numpy(document).to(device), len(chosen), window_pooling
        )
        return logits

    return answer


def features(
    stack: Stack,
    documents: Documents,
    pooling: Pooling,
    micro_batch_tokens: int,
    device: torch.device,
    path: Path,
) -> Floats:
    """The pooled vector of every window (windows, width), read once and mapped from ``path`` after that; the file appears whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        writing = path.with_suffix(".writing")
        vectors = np.lib.format.open_memmap(
            writing, "w+", np.float32, (len(documents.lengths), stack.base.width)
        )
        _reserve(writing)
        for windows, pooled in _by_group(
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
    mapped: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def window_vectors(
    stack: Stack,
    documents: Documents,
    chosen: Ints,
    pooling: Pooling,
    micro_batch_tokens: int,
    device: torch.device,
) -> Floats:
    """The pooled vectors (windows, width) of some documents, in an order that depends on their lengths alone."""
    return np.concatenate(
        [
            pooled
            for _, pooled in _by_group(
                stack, documents, chosen, pooling, micro_batch_tokens, device
            )
        ]
    )


def _by_group(
    stack: Stack,
    documents: Documents,
    chosen: Ints,
    pooling: Pooling,
    micro_batch_tokens: int,
    device: torch.device,
) -> Iterator[tuple[Ints, Floats]]:
    """(windows, their pooled vectors), micro-batch by micro-batch."""
    for group in tokenization.document_batches(documents, chosen, micro_batch_tokens):
        batch = documents.gather(group).to(device)
        with torch.inference_mode():
            pooled = adapters.pooled(stack, batch.input_ids, batch.attention_mask, pooling)
        yield documents.windows_of(group)[0], pooled.cpu().numpy()


def _reserve(path: Path) -> None:
    """Take the room of a mapped file now: on a full disk this is an error, while writing to a page that has no room kills the process."""
    if sys.platform == "linux":
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def scores(
    answer: Answer,
    classes: int,
    grouped: Callable[[Ints], list[Ints]],
    accelerator: Crew,
    chosen: Ints,
) -> Floats:
    """Logits (documents, classes) of ``chosen``, in their order, without gradient, shared between the processes. The caller sets eval mode."""
    found = torch.zeros(len(chosen), classes, dtype=torch.float32, device=accelerator.device)
    at = {int(document): row for row, document in enumerate(chosen)}
    with torch.inference_mode():
        for group in grouped(chosen)[accelerator.process_index :: accelerator.num_processes]:
            found[[at[int(document)] for document in group]] = answer(group)
    table: Floats = accelerator.reduce(found, "sum").cpu().numpy()
    return table


def probabilities(logits: Floats, question: Question) -> Floats:
    """Softmax over the classes of which one is asked, a sigmoid for each where all that apply are; (documents, classes)."""
    wide = logits.astype(np.float64)
    if question.kind == "multilabel":
        return (1.0 / (1.0 + np.exp(-np.clip(wide, -700, 700)))).astype(np.float32)
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: Floats = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def predictions(documents: Documents, chosen: Ints, logits: Floats, question: Question) -> pa.Table:
    """The answers to a question (schema ``tables.PREDICTION``), a row a document, with the question in the metadata.

    Raises:
        TrainingError: a logit that is no number, by the stay it answers.
    """
    known = documents.table(FROM_THE_COHORT).take(pa.array(chosen))
    _refuse_no_numbers(logits, known["stay_id"])
    columns = {name: known[name] for name in FROM_THE_COHORT} | {
        "logits": _lists(logits),
        "probabilities": _lists(probabilities(logits, question)),
        "tokens": pa.array(documents.tokens_total[chosen]),
        "tokens_read": pa.array(documents.tokens_read[chosen]),
    }
    about = {b"question": json.dumps(question.as_json()).encode()}
    return pa.table(
        {name: columns[name] for name in PREDICTION.names}, schema=PREDICTION
    ).replace_schema_metadata(about)


def _refuse_no_numbers(logits: Floats, stays: pa.ChunkedArray) -> None:
    odd = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(odd):
        message = f"{len(odd)} of {len(logits)} documents have logits that are not all numbers"
        hint = 'set base.precision = "float32", or lower training.learning_rate'
        raise TrainingError(message, location=f"stay_id {stays[int(odd[0])].as_py()}", hint=hint)


def _lists(values: Floats) -> pa.Array:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), pa.float32()))


def joined(logits: list[torch.Tensor]) -> torch.Tensor:
    """Logits of several questions in one row."""
    return torch.cat([some.reshape(-1) for some in logits])


def shared(
    answer: Answer, classes: int, grouped: Callable[[Ints], list[Ints]], accelerator: Crew
) -> Callable[[Ints], Floats]:
    """``scores`` of one answerer, to be called with documents."""
    return functools.partial(scores, answer, classes, grouped, accelerator)
