"""A stack as an ONNX graph from token ids to vectors, with a report on how far its vectors are from ours. Needs the ``onnx`` extra."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clinpeft import models
from clinpeft.adapters import Stack
from clinpeft.core.errors import RefusedError, StorageError, UsageError
from clinpeft.inference.encode import compute_max_text_tokens, encode_texts
from clinpeft.models.embedding_config import EmbeddingConfig

ONNX_GRAPH_FILE, ONNX_PARITY_FILE, ONNX_CONFIG_FILE = "model.onnx", "parity.json", "encoder.json"
MAX_PARITY_DIFFERENCE = (
    1e-4  # of a number of a vector of length 1: another engine adds in another order
)
PARITY_BATCH_TEXTS = 8


@dataclass(frozen=True)
class OnnxParity:
    """How far the graph's vectors are from ours.

    Attributes:
        texts: how many were compared.
        largest_difference: between two numbers, of vectors divided by the length of ours.
        least_cosine: of a text's two vectors.
        tolerance: the largest difference that passes.
        engine: what ran the graph, with its version.
    """

    texts: int
    largest_difference: float
    least_cosine: float
    tolerance: float
    engine: str

    def as_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``."""
        return asdict(self)


class _OnnxEncoder(torch.nn.Module):
    """Token ids and mask (rows, time) -> vectors (rows, width), pooled and normalised inside the graph."""

    def __init__(self, backbone: Any, embedding_config: EmbeddingConfig) -> None:
        super().__init__()
        self.backbone, self.embedding_config = backbone, embedding_config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = _pool_hidden_states(hidden, attention_mask, self.embedding_config.pooling)
        return (
            torch.nn.functional.normalize(pooled, dim=1)
            if self.embedding_config.normalise
            else pooled
        )


def _pool_hidden_states(
    hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: models.PoolingMode
) -> torch.Tensor:
    """``models.pool`` for texts that have tokens and padding on the right: an exported graph cannot look for rows without any."""
    mask = attention_mask.to(hidden.dtype)[:, :, None]
    if pooling == "mean":
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)
    last = attention_mask.sum(dim=1) - 1
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def export_onnx(
    stack: Stack, embedding_config: EmbeddingConfig, folder: Path, sample: Sequence[str]
) -> OnnxParity:
    """Write ``model.onnx``, the tokenizer, ``encoder.json`` (prompts and length) and ``parity.json``; the folder appears whole or not at all, and
    only if the vectors are the same.

    Its inputs are ``input_ids`` and ``attention_mask`` (rows, time) int64, padded on the right; its output is ``vectors`` (rows, width) float32.

    Args:
        stack: base and adapters that can be folded in.
        embedding_config: pooling and normalisation go into the graph; prompts and length are the caller's.
        folder: to be made.
        sample: texts to compare on.

    Raises:
        RefusedError: the folder exists, or the graph gives other vectors.
        UsageError: the packages are not there, or no text to compare on.
        AdapterError: an adapter cannot be folded in.
        StorageError: it cannot be written.
    """
    if folder.exists():
        raise RefusedError(
            f"{str(folder)!r} exists",
            location="export --out",
            hint="name a new folder, or remove this one yourself",
        )
    if not sample:
        raise UsageError(
            "no text to compare the graph on",
            location="export",
            hint="give some texts of the kind that will be encoded",
        )
    runtime = _import_onnxruntime()
    writing = folder.with_name(folder.name + ".writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        _build_graph(stack, embedding_config).save(str(writing / ONNX_GRAPH_FILE))
        stack.base.tokenizer.save_pretrained(writing)
        (writing / ONNX_CONFIG_FILE).write_text(
            json.dumps(asdict(embedding_config), indent=2) + "\n", encoding="utf-8"
        )
        parity = _measure_parity(
            stack, embedding_config, runtime, writing / ONNX_GRAPH_FILE, sample
        )
        (writing / ONNX_PARITY_FILE).write_text(
            json.dumps(parity.as_json(), indent=2) + "\n", encoding="utf-8"
        )
        if not parity.largest_difference <= parity.tolerance:  # so that NaN is refused
            message = f"the graph's vectors differ by {parity.largest_difference:.3g} from ours, and {parity.tolerance:.3g} would pass"
            raise RefusedError(
                message,
                location=str(folder),
                hint="export to sentence-transformers, or with other versions of the onnx extra",
            )
        writing.rename(folder)
    except OSError as error:
        raise StorageError(
            f"the graph cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return parity


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]
        import onnxscript  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed",
            location="export --format onnx",
            hint="pip install 'clinpeft[onnx]'",
        ) from error
    return onnxruntime


def _build_graph(stack: Stack, embedding_config: EmbeddingConfig) -> Any:
    text = _OnnxEncoder(stack.create_merged_model().base_model.cpu(), embedding_config).eval()
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0  # some padding, or the exporter would take the mask for a constant
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _suppress_exporter_messages(), torch.no_grad():
        return torch.onnx.export(
            text,
            (torch.zeros_like(mask), mask),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["vectors"],
            dynamic_shapes={"input_ids": free, "attention_mask": free},
            verbose=False,
        )


@contextmanager
def _suppress_exporter_messages() -> Iterator[None]:
    """Without the exporter's remarks on its own innards and on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _measure_parity(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    runtime: Any,
    graph: Path,
    sample: Sequence[str],
) -> OnnxParity:
    session = runtime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    ours, tokenizer = encode_texts(stack, embedding_config, sample), stack.base.tokenizer
    theirs = []
    for start in range(0, len(sample), PARITY_BATCH_TEXTS):
        ids = tokenizer(
            list(sample[start : start + PARITY_BATCH_TEXTS]),
            truncation=True,
            max_length=compute_max_text_tokens(stack, embedding_config),
            verbose=False,
        )["input_ids"]
        longest = max(map(len, ids))
        given = np.asarray(
            [[*each, *([0] * (longest - len(each)))] for each in ids], dtype=np.int64
        )
        mask = np.asarray(
            [[1] * len(each) + [0] * (longest - len(each)) for each in ids], dtype=np.int64
        )
        theirs.append(session.run(["vectors"], {"input_ids": given, "attention_mask": mask})[0])
    found, length = np.concatenate(theirs), np.linalg.norm(ours, axis=1, keepdims=True)
    cosine = (ours * found).sum(axis=1) / (length[:, 0] * np.linalg.norm(found, axis=1))
    engine = f"onnxruntime {runtime.__version__}"
    return OnnxParity(
        len(sample),
        float((np.abs(ours - found) / length).max()),
        float(cosine.min()),
        MAX_PARITY_DIFFERENCE,
        engine,
    )
