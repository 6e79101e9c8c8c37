from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from clinpeft import adapters, models
from clinpeft.core.errors import BaseModelError, RefusedError, UsageError
from clinpeft.recipe import LanguageModelSpec, LoraSpec

CPU = torch.device("cpu")
MakeFolder = Callable[..., Path]


@pytest.fixture
def folder(toy_llama: MakeFolder, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(toy_llama(), tmp_path / "llama"))


@pytest.fixture
def encoder(toy_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bert, tmp_path / "bert"))


def load(folder: Path, **options: Any) -> models.FrozenBaseModel:
    return models.load_base_model(
        LanguageModelSpec.model_validate({"path": folder, "max_tokens": 32} | options), CPU
    )


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    described = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(described | changes))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path, **options: Any) -> BaseModelError:
    with pytest.raises(BaseModelError) as error:
        load(folder, **options)
    assert error.value.location and error.value.hint
    return error.value


def test_a_base_is_frozen_evaluating_and_keeps_no_cache(folder: Path) -> None:
    base = load(folder)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training and base.model.config.use_cache is False
    assert (base.folder, base.max_tokens) == (folder, 32)


def test_weights_on_disk_in_bfloat16_are_computed_in_float32_without_loss(folder: Path) -> None:
    weights(
        folder,
        lambda tensors: tensors.update(
            {name: tensor.bfloat16() for name, tensor in tensors.items()}
        ),
    )
    base = load(folder, precision="float32")
    stored = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert stored.dtype == torch.bfloat16 and base.model.lm_head.weight.dtype == torch.float32
    assert torch.equal(base.model.lm_head.weight, stored.float())


@pytest.mark.parametrize(
    ("able", "precision", "reason"),
    [
        (
            {"amx_tile": True, "avx512_bf16": True},
            torch.bfloat16,
            "bfloat16: this processor has AMX",
        ),
        ({"avx512_bf16": True}, torch.bfloat16, "bfloat16: this processor has AVX512-BF16"),
        ({"avx2": True}, torch.float32, "float32: this processor has neither AMX nor AVX512-BF16"),
    ],
)
def test_auto_precision_follows_the_processor(
    able: dict[str, bool], precision: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clinpeft.models.load._instructions", lambda: able)
    assert models.choose_precision("auto", CPU) == (precision, reason)
    assert models.choose_precision("bfloat16", CPU)[0] == torch.bfloat16


def test_the_fingerprint_is_of_names_and_contents_and_of_nothing_else(
    folder: Path, tmp_path: Path
) -> None:
    before = models.fingerprint_base_model(folder)
    (folder / "README.md").write_text("read me")
    assert models.fingerprint_base_model(folder) == before == load(folder).sha256
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert models.fingerprint_base_model(moved) == before
    (moved / "model.safetensors").rename(moved / "other.safetensors")
    assert models.fingerprint_base_model(moved) != before
    weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    assert models.fingerprint_base_model(folder) != before


# ------------------------------------------------------------------------------------------------------------------ folders that are no base


def test_a_hub_name_where_a_folder_belongs_points_at_the_one_door() -> None:
    error = refused(Path("meta-llama/Llama-2-7b-hf"))
    assert "meta-llama/Llama-2-7b-hf" in error.message and error.location == "base.path"
    assert "clinpeft models pull meta-llama/Llama-2-7b-hf --to DIR" in error.hint
    with pytest.raises(BaseModelError, match="there is no folder"):
        models.fingerprint_base_model(Path("meta-llama/Llama-2-7b-hf"))


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder).message


def test_a_config_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(folder).message


def test_an_unknown_family_gets_the_nearest_known_one(folder: Path) -> None:
    edit(folder, model_type="lama")
    error = refused(folder)
    assert (
        "'lama'" in error.message
        and "did you mean 'llama'?" in error.hint
        and "modernbert" in error.hint
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(folder: Path, name: str) -> None:
    edit(folder, name, auto_map={"AutoConfig": "configuration_evil.EvilConfig"})
    assert "never run" in refused(folder).message


def test_quantized_weights_are_refused(folder: Path) -> None:
    edit(folder, quantization_config={"load_in_4bit": True})
    assert "quantized" in refused(folder).message


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in refused(folder).message


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer cannot be loaded" in refused(folder).message


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refused(folder)
    assert "pytorch_model.bin" in error.message and "save_pretrained" in error.hint


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refused(folder).message


def test_a_file_that_is_cut_short_is_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    error = refused(folder)
    assert (
        error.message.startswith("model.safetensors cannot be read") and "cut short" in error.hint
    )


def test_a_missing_shard_is_refused_by_name(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    )
    assert "model-00002-of-00002.safetensors" in refused(folder).message


def test_a_weight_that_would_be_random_is_an_error_that_names_it(folder: Path) -> None:
    weights(
        folder,
        lambda tensors: (
            tensors.pop("lm_head.weight"),
            tensors.pop("model.layers.1.mlp.up_proj.weight"),
        ),
    )
    message = refused(folder).message
    assert (
        "would be random" in message
        and "lm_head.weight" in message
        and "model.layers.1.mlp.up_proj.weight" in message
    )


def test_a_head_tied_to_the_embedding_is_not_missing(folder: Path) -> None:
    edit(folder, tie_word_embeddings=True)
    weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    base = load(folder)
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight


def test_a_layer_that_the_config_leaves_out_is_an_error(folder: Path) -> None:
    edit(folder, num_hidden_layers=1)
    message = refused(folder).message
    assert "not in its config" in message and "model.layers.1." in message


def test_another_shape_is_an_error_with_both_shapes(folder: Path) -> None:
    weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(8)}))
    message = refused(folder).message
    assert "model.norm.weight is (8,) in the folder and (32,) by its config" in message


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder: Path) -> None:
    edit(folder, vocab_size=10)
    weights(
        folder,
        lambda tensors: tensors.update(
            {
                name: tensors[name][:10].clone()
                for name in ("lm_head.weight", "model.embed_tokens.weight")
            }
        ),
    )
    assert "the embedding matrix 10 rows" in refused(folder).message


def test_an_encoder_without_a_mask_token_is_refused(encoder: Path) -> None:
    edit(encoder, "tokenizer_config.json", mask_token=None)
    assert "no mask token" in refused(encoder).message


def test_more_tokens_than_positions_are_refused(encoder: Path) -> None:
    assert load(encoder, max_tokens=128).max_positions == 128
    error = refused(encoder, max_tokens=129)
    assert (
        "129" in error.message
        and error.hint == "set at most 128"
        and error.location == "base.max_tokens"
    )


def test_a_pretraining_head_that_is_not_used_does_no_harm(encoder: Path) -> None:
    extra = {
        "cls.seq_relationship.weight": torch.zeros(2, 32),
        "cls.seq_relationship.bias": torch.zeros(2),
    }
    weights(encoder, lambda tensors: tensors.update(extra))
    assert load(encoder).family.objective == "masked-lm"


def test_a_decoder_without_pad_token_loads(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", pad_token=None)
    edit(folder, pad_token_id=None)
    assert load(folder).tokenizer.pad_token_id is None


# ------------------------------------------------------------------------------------------------------------------------------ the network


def test_loading_attaching_and_answering_need_no_socket(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    stack = adapters.attach_adapters(load(folder), [LoraSpec(rank=2)])
    adapters.save_adapter(stack, tmp_path / "adapter")
    again = adapters.load_adapter(load(folder), tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    assert adapters.compute_token_logits(again, ids, torch.ones_like(ids)).shape == (
        1,
        3,
        len(stack.base.tokenizer),
    )


def test_pull_is_the_one_door_and_closes_behind_itself(folder: Path, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(**request: Any) -> None:
        asked.append(request | {"offline": constants.HF_HUB_OFFLINE})
        shutil.copytree(folder, request["local_dir"], dirs_exist_ok=True)
        (Path(request["local_dir"]) / ".cache").mkdir()

    assert constants.HF_HUB_OFFLINE
    models.download_model("someone/llama", tmp_path / "pulled", snapshot)
    assert constants.HF_HUB_OFFLINE
    assert [(request["repo_id"], request["offline"]) for request in asked] == [
        ("someone/llama", False)
    ]
    assert not any(pattern.endswith((".bin", ".py")) for pattern in asked[0]["allow_patterns"])
    assert load(tmp_path / "pulled").sha256 == models.fingerprint_base_model(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "pulled"]
    assert not (tmp_path / "pulled" / ".cache").exists()


def test_a_pull_that_fails_leaves_no_folder_and_no_open_door(tmp_path: Path) -> None:
    def snapshot(**request: Any) -> None:
        raise ConnectionError("cable cut")

    with pytest.raises(
        BaseModelError, match="someone/llama cannot be fetched: ConnectionError: cable cut"
    ):
        models.download_model("someone/llama", tmp_path / "pulled", snapshot)
    assert constants.HF_HUB_OFFLINE and not (tmp_path / "pulled").exists()


def test_a_pull_of_what_is_no_base_says_so(folder: Path, tmp_path: Path) -> None:
    def snapshot(**request: Any) -> None:
        shutil.copytree(folder, request["local_dir"], dirs_exist_ok=True)
        (Path(request["local_dir"]) / "model.safetensors").unlink()

    with pytest.raises(BaseModelError, match="no weights"):
        models.download_model("someone/llama", tmp_path / "pulled", snapshot)
    assert not (tmp_path / "pulled").exists()


def test_pull_takes_a_hub_name_and_a_new_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a hub name"):
        models.download_model("https://hub/x/y", tmp_path / "new")
    with pytest.raises(RefusedError, match="exists"):
        models.download_model("someone/llama", tmp_path)


def test_the_real_fetcher_is_refused_while_the_door_is_closed(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"offline|local|cache"):
        huggingface_hub.snapshot_download("someone/llama", local_dir=str(tmp_path / "x"))
