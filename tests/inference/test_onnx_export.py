"""The ONNX graph, run by another engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clinpeft import adapters, models
from clinpeft.core.errors import RefusedError, UsageError
from clinpeft.inference import onnx_export
from clinpeft.inference.encode import encode_texts
from clinpeft.inference.onnx_export import _pool_hidden_states, export_onnx
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.recipe import LoraSpec, PretrainedModelSpec

MEAN = EmbeddingConfig("mean", max_tokens=12)
TEXTS = [
    "the patient is a man",
    "no fever",
    "short breath and cough for three days no fever chest pain was found on exam",
    "heart failure",
]


@pytest.fixture(scope="module")
def stack(toy_bert: Path) -> adapters.Stack:
    base = models.load_base_model(
        PretrainedModelSpec(path=toy_bert, max_tokens=32, precision="float32"),
        torch.device("cpu"),
        "vectors",
    )
    stack = adapters.attach_adapters(base, [LoraSpec(rank=2)])
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.05)
    return stack


def test_the_graph_gives_the_same_vectors_for_batches_of_any_shape(
    stack: adapters.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    parity = export_onnx(stack, MEAN, tmp_path / "out", TEXTS)
    assert parity.texts == 4 and parity.largest_difference < 1e-5 and parity.least_cosine > 0.99999
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == parity.as_json()
    session = runtime.InferenceSession(
        str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for text in TEXTS[:2]:  # one row at a time, of two lengths
        ids = np.asarray([stack.base.tokenizer(text)["input_ids"]])
        found = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        np.testing.assert_allclose(found, encode_texts(stack, MEAN, [text]), atol=1e-5)

    monkeypatch.setattr(
        onnx_export,
        "_build_graph",
        lambda stack, embedding_config: _Kept(tmp_path / "out" / "model.onnx"),
    )
    with pytest.raises(RefusedError, match="differ by"):  # the graph of another model
        export_onnx(stack, EmbeddingConfig("cls", max_tokens=12), tmp_path / "other", TEXTS)
    assert not (tmp_path / "other").exists()


class _Kept:
    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, to: str) -> None:
        Path(to).write_bytes(self.path.read_bytes())


@pytest.mark.parametrize("how", ["mean", "cls", "last", "max"])
def test_pooling_in_the_graph_is_that_of_the_house(how: models.PoolingMode) -> None:
    hidden, mask = (
        torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]),
    )
    torch.testing.assert_close(
        _pool_hidden_states(hidden, mask, how), models.pool_hidden_states(hidden, mask, how)
    )


def test_a_missing_package_names_the_extra(
    stack: adapters.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="onnxruntime is not installed") as error:
        export_onnx(stack, MEAN, tmp_path / "out", TEXTS)
    assert "clinpeft[onnx]" in error.value.hint
    with pytest.raises(UsageError, match="no text"):
        export_onnx(stack, MEAN, tmp_path / "out", [])
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError, match="exists"):
        export_onnx(stack, MEAN, tmp_path / "out", TEXTS)
