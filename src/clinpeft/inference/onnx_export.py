"""Export of a stack as an ONNX graph from token ids to vectors, compared with the stack's vectors.

Needs the ``onnx`` extra.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clinpeft import models
from clinpeft.adapters import Stack
from clinpeft.core.errors import RefusedError, StorageError, UsageError
from clinpeft.inference.encode import compute_max_text_tokens, encode_texts, pad_token_ids
from clinpeft.models import EmbeddingConfig

ONNX_GRAPH_FILE, ONNX_PARITY_FILE, ONNX_CONFIG_FILE = "model.onnx", "parity.json", "encoder.json"
# of a component of a vector of norm 1: another engine adds in another order
MAX_PARITY_DIFFERENCE = 1e-4
PARITY_BATCH_TEXTS = 8


@dataclass(frozen=True)
class OnnxParity:
    """How far the vectors of the graph are from those of the stack.

    Attributes:
        texts: number of texts that were compared.
        largest_difference: of a component, of vectors divided by the norm of the stack's vector.
        least_cosine: between the two vectors of a text.
        tolerance: largest difference that is accepted.
        engine: what ran the graph, with its version.
    """

    texts: int
    largest_difference: float
    least_cosine: float
    tolerance: float
    engine: str

    def as_json(self) -> dict[str, object]:
        """Return the comparison as in ``parity.json``."""
        return asdict(self)


class _OnnxEncoder(torch.nn.Module):
    """Token ids and mask (rows, time) -> vectors (rows, width), pooled and normalized."""

    def __init__(self, backbone: Any, embedding_config: EmbeddingConfig) -> None:
        super().__init__()
        self.backbone, self.embedding_config = backbone, embedding_config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # (rows, time, width)
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        vectors = _pool_hidden_states(hidden, attention_mask, self.embedding_config.pooling)
        if self.embedding_config.normalise:
            return torch.nn.functional.normalize(vectors, dim=1)
        return vectors


def _pool_hidden_states(
    hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: models.PoolingMode
) -> torch.Tensor:
    """Compute ``models.pool_hidden_states`` without branches on data, which a graph cannot have.

    Args:
        hidden: (rows, time, width).
        attention_mask: (rows, time), with padding on the right and a token in every row.
        pooling: mode.

    Returns:
        (rows, width).
    """
    mask = attention_mask.to(hidden.dtype)[:, :, None]  # (rows, time, 1)
    if pooling == "mean":
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)
    last = attention_mask.sum(dim=1) - 1  # (rows,)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def export_onnx(
    stack: Stack, embedding_config: EmbeddingConfig, folder: Path, sample: Sequence[str]
) -> OnnxParity:
    """Write a folder with an ONNX graph, whole or not at all, if the graph gives the same vectors.

    It holds ``model.onnx``, the tokenizer, ``encoder.json`` (prompts and length) and
    ``parity.json``. Inputs of the graph are ``input_ids`` and ``attention_mask`` (rows, time)
    int64, padded on the right; its output is ``vectors`` (rows, width) float32.

    Args:
        stack: base and adapters that can be merged.
        embedding_config: pooling and normalization become part of the graph; prompts and maximum
            length are the caller's to apply.
        folder: a new folder.
        sample: texts on which the vectors are compared.

    Raises:
        RefusedError: the folder exists, or the graph gives other vectors.
        UsageError: the packages are not installed, or there is no text to compare.
        AdapterError: an adapter cannot be merged.
        StorageError: the folder cannot be written.
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
    try:
        import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]
        import onnxscript  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed",
            location="export --format onnx",
            hint="pip install 'clinpeft[onnx]'",
        ) from error
    temporary = folder.with_name(folder.name + ".writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        # weights of large graphs go into a file beside it
        graph = temporary / ONNX_GRAPH_FILE
        _build_graph(stack, embedding_config).save(str(graph))
        stack.base.tokenizer.save_pretrained(temporary)
        parity = _measure_parity(stack, embedding_config, onnxruntime, graph, sample)
        for name, content in (
            # prompts and maximum length are not part of the graph
            (ONNX_CONFIG_FILE, embedding_config.as_json()),
            (ONNX_PARITY_FILE, parity.as_json()),
        ):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if not parity.largest_difference <= parity.tolerance:  # negated, so that NaN is refused
            raise RefusedError(
                f"the graph's vectors differ by {parity.largest_difference:.3g} from the stack's, "
                f"more than {parity.tolerance:.3g}",
                location=str(folder),
                hint="export to sentence-transformers, or with other versions of the onnx extra",
            )
        temporary.rename(folder)
    except OSError as error:
        raise StorageError(
            f"the graph cannot be written: {error}",
            location=str(folder),
            hint="free some space and try again",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return parity


def _build_graph(stack: Stack, embedding_config: EmbeddingConfig) -> Any:
    """Return the exported program, with dynamic numbers of rows and tokens."""
    # on the CPU in float32, which every engine supports
    backbone = stack.create_merged_model().base_model.cpu()
    encoder = _OnnxEncoder(backbone, embedding_config).eval()
    mask = torch.ones(2, 7, dtype=torch.int64)  # (rows, time)
    mask[1, 5:] = 0  # some padding, or the exporter would fold the mask into a constant
    # axes: rows, time
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # the exporter logs and warns about its internals and about packages that are not needed
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                encoder,
                (torch.zeros_like(mask), mask),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["vectors"],
                dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
                verbose=False,
            )
    finally:
        logger.setLevel(level)


def _measure_parity(
    stack: Stack,
    embedding_config: EmbeddingConfig,
    runtime: Any,
    graph: Path,
    sample: Sequence[str],
) -> OnnxParity:
    """Compare the vectors of the graph, run by onnxruntime, with those of the stack."""
    # on the CPU, where the stack's float32 vectors are reproducible
    session = runtime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    expected = encode_texts(stack, embedding_config, sample)  # (texts, width)
    max_tokens = compute_max_text_tokens(stack, embedding_config)
    batches = []
    for start in range(0, len(sample), PARITY_BATCH_TEXTS):
        texts = list(sample[start : start + PARITY_BATCH_TEXTS])
        ids = stack.base.tokenizer(texts, truncation=True, max_length=max_tokens, verbose=False)
        # batches of texts of different lengths, so that padding is part of the comparison
        input_ids, mask = pad_token_ids(ids["input_ids"])  # (texts, time)
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        batches.append(session.run(["vectors"], inputs)[0])
    actual = np.concatenate(batches)  # (texts, width)
    # relative to the norm, for vectors that are not normalized
    norms = np.linalg.norm(expected, axis=1, keepdims=True)  # (texts, 1)
    cosines = (expected * actual).sum(axis=1) / (norms[:, 0] * np.linalg.norm(actual, axis=1))
    return OnnxParity(
        texts=len(sample),
        largest_difference=float((np.abs(expected - actual) / norms).max()),
        least_cosine=float(cosines.min()),
        tolerance=MAX_PARITY_DIFFERENCE,
        engine=f"onnxruntime {runtime.__version__}",
    )
