"""Exported folders, opened by the stock library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from clinpeft import adapters, models
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from clinpeft.inference.encode import encode_texts
from clinpeft.inference.export import export_sentence_transformer
from clinpeft.models.embedding_config import EmbeddingConfig, resolve_embedding_config
from clinpeft.recipe import LoraSpec, PretrainedModelSpec, PromptSpec

CPU = torch.device("cpu")
MakeFolder = Callable[..., Path]
TEXTS = [
    "the patient is a man",
    "short breath and cough for three days no fever chest pain was found on exam",
    "heart failure",
    "the patient is a year old woman with known heart failure who came to hospital because of short breath",
]
MANNERS = {
    "bert": EmbeddingConfig("mean", True, "the patient ", "found on exam ", 12),
    "llama": EmbeddingConfig("last", False, "the patient ", "", 12),
    "minilm": EmbeddingConfig("mean", max_tokens=64),
}


def stack_of(folder: Path, *specs: Any) -> adapters.Stack:
    base = models.load_base_model(
        PretrainedModelSpec(path=folder, max_tokens=64, precision="float32"), CPU, "vectors"
    )
    stack = adapters.attach_adapters(base, specs)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return stack


@pytest.fixture
def bases(
    toy_bert: Path, toy_llama: MakeFolder, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    def base(name: str) -> Path:
        made: dict[str, Callable[[], Path]] = {
            "bert": lambda: toy_bert,
            "llama": toy_llama,
            "minilm": lambda: request.getfixturevalue("minilm"),
        }
        return made[name]()

    return base


def opened(folder: Path) -> Any:
    stock = pytest.importorskip("sentence_transformers")
    return stock.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "adapter"])
@pytest.mark.parametrize("name", MANNERS)
def test_stock_sentence_transformers_gives_the_same_vectors(
    name: str,
    merged: bool,
    bases: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, embedding_config = bases(name), MANNERS[name]
    stack = stack_of(folder, LoraSpec(rank=2))
    bare = encode_texts(stack_of(folder), embedding_config, TEXTS)
    export_sentence_transformer(
        stack, embedding_config, tmp_path / "out", "# A card\n", merged, base_name=str(folder)
    )
    model = opened(tmp_path / "out")
    assert not merged or not [
        record for record in caplog.records if record.levelname == "WARNING"
    ]  # with the adapter alone, the base has its say
    expected = encode_texts(stack, embedding_config, TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5, rtol=0)
    assert np.abs(expected - bare).max() > 1e-3  # the adapter has a say
    np.testing.assert_allclose(
        model.encode_query(TEXTS),
        encode_texts(stack, embedding_config, TEXTS, embedding_config.query_prompt),
        atol=1e-5,
        rtol=0,
    )
    np.testing.assert_allclose(
        model.encode_document(TEXTS),
        encode_texts(stack, embedding_config, TEXTS, embedding_config.document_prompt),
        atol=1e-5,
        rtol=0,
    )
    assert model.max_seq_length == embedding_config.max_tokens


def test_a_merged_folder_is_a_base_of_this_program_and_says_how_it_is_read(
    toy_bert: Path, tmp_path: Path
) -> None:
    stack = stack_of(toy_bert, LoraSpec(rank=2))
    export_sentence_transformer(stack, MANNERS["bert"], tmp_path / "out")
    assert resolve_embedding_config(tmp_path / "out") == MANNERS["bert"]
    np.testing.assert_allclose(
        encode_texts(stack_of(tmp_path / "out"), MANNERS["bert"], TEXTS),
        encode_texts(stack, MANNERS["bert"], TEXTS),
        atol=1e-6,
    )


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"
)  # peft 0.21 on transformers 5.23
def test_the_adapter_is_a_folder_that_stock_peft_puts_on_the_backbone(
    toy_bert: Path, tmp_path: Path
) -> None:
    import peft

    stack = stack_of(toy_bert, LoraSpec(rank=2))
    export_sentence_transformer(stack, MANNERS["bert"], tmp_path / "out", merge_adapters=False)
    worn = peft.PeftModel.from_pretrained(
        AutoModel.from_pretrained(toy_bert, add_pooling_layer=False), str(tmp_path / "out")
    ).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(
            worn(input_ids=ids).last_hidden_state,
            adapters.compute_hidden_states(stack, ids, torch.ones_like(ids)),
            atol=1e-6,
            rtol=0,
        )


def test_no_path_of_this_machine_is_written(
    toy_bert: Path, toy_llama: MakeFolder, tmp_path: Path
) -> None:
    for base in (toy_bert, toy_llama()):
        for merged in (True, False):
            out = tmp_path / f"{base.name}-{merged}"
            export_sentence_transformer(
                stack_of(base, LoraSpec(rank=2)), MANNERS["bert"], out, merge_adapters=merged
            )
            texts = {path.name: path.read_text() for path in out.rglob("*.json")}
            assert not [name for name, text in texts.items() if str(base.parent) in text]
    assert (
        json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
        == base.name
    )
    assert not (out / "clinpeft.json").exists() and not (out / "model.safetensors").exists()


def test_a_decoder_without_padding_token_is_given_one(
    toy_llama: MakeFolder, tmp_path: Path
) -> None:
    stack = stack_of(toy_llama())
    stack.base.tokenizer.pad_token = None
    export_sentence_transformer(stack, MANNERS["llama"], tmp_path / "out")
    assert stack.base.tokenizer.pad_token is None
    np.testing.assert_allclose(
        opened(tmp_path / "out").encode(TEXTS),
        encode_texts(stack, MANNERS["llama"], TEXTS),
        atol=1e-5,
    )


def test_what_exists_is_left_alone(toy_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError, match="exists"):
        export_sentence_transformer(stack_of(toy_bert), MANNERS["bert"], tmp_path / "out")


def test_what_cannot_be_exported_says_what_can(
    toy_bert: Path, toy_llama: MakeFolder, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="cannot be merged"):
        export_sentence_transformer(
            stack_of(toy_llama(), PromptSpec(tokens=2)), MANNERS["llama"], tmp_path / "out"
        )
    for specs, hint in (((), "whole model"), ((LoraSpec(rank=2), LoraSpec(rank=2)), "folded in")):
        with pytest.raises(AdapterError, match="only one adapter") as error:
            export_sentence_transformer(
                stack_of(toy_bert, *specs), MANNERS["bert"], tmp_path / "out", merge_adapters=False
            )
        assert hint in error.value.hint
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        export_sentence_transformer(stack_of(toy_bert), MANNERS["bert"], tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
