"""A base without its language-modelling head, and the vectors that are read from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaModel

from clinpeft import adapters, models
from clinpeft.core.errors import BaseModelError, InputError, RefusedError
from clinpeft.recipe import EncoderModelSpec, LoraSpec, PretrainedModelSpec, PromptSpec

CPU = torch.device("cpu")
MakeFolder = Callable[..., Path]


def load(
    folder: Path, purpose: models.LoadPurpose = "vectors", **options: Any
) -> models.FrozenBaseModel:
    return models.load_base_model(
        PretrainedModelSpec.model_validate({"path": folder, "max_tokens": 32} | options),
        CPU,
        purpose,
    )


def bare(folder: Path, kind: Any, to: Path) -> Path:
    """The folder of the same model as its backbone alone, as sentence encoders are published."""
    shutil.copytree(folder, to)
    (to / "model.safetensors").unlink()
    kind.from_pretrained(folder).save_pretrained(to)
    return to


@pytest.fixture
def bare_bert(toy_bert: Path, tmp_path: Path) -> Path:
    return bare(toy_bert, BertModel, tmp_path / "bare")


def vectors(base: models.FrozenBaseModel, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = base.backbone(
        input_ids=ids, attention_mask=torch.ones_like(ids)
    ).last_hidden_state
    return found


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


# --------------------------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_of_the_backbone_alone_is_a_base_for_vectors_and_none_for_language(
    bare_bert: Path, toy_bert: Path
) -> None:
    names = load_file(bare_bert / "model.safetensors")
    assert (
        not any(name.startswith("cls.") for name in names) and "pooler.dense.weight" in names
    )  # an unused pooler does no harm
    before = torch.get_rng_state()
    base, whole = load(bare_bert), load(toy_bert, "language")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(vectors(base, IDS), vectors(whole, IDS))
    with pytest.raises(BaseModelError, match=r"would be random: cls\.predictions"):
        load(bare_bert, "language")


def test_a_decoder_without_head_is_a_base_for_vectors(
    toy_llama: MakeFolder, tmp_path: Path
) -> None:
    folder = toy_llama()
    base, whole = load(bare(folder, LlamaModel, tmp_path / "bare")), load(folder, "language")
    assert torch.equal(vectors(base, IDS), vectors(whole, IDS))
    assert base.width == 32 and base.purpose == "vectors"


def test_names_stay_those_of_the_language_model_and_the_head_is_freed(
    toy_bert: Path, toy_llama: MakeFolder
) -> None:
    for folder, prefix in ((toy_bert, "bert."), (toy_llama(), "model.")):
        whole = {
            name: parameter
            for name, parameter in load(folder, "language").model.named_parameters()
            if name.startswith(prefix)
        }
        kept = dict(load(folder).model.named_parameters())
        assert list(kept) == list(whole)
        assert all(torch.equal(kept[name], whole[name]) for name in kept)


def test_an_embedding_that_the_head_was_tied_to_stays(toy_bert: Path) -> None:
    base = load(toy_bert)
    stored = load_file(toy_bert / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(base.model.get_input_embeddings().weight, stored)
    assert base.model.get_output_embeddings() is None


def test_logits_of_a_base_for_vectors_are_refused_and_not_nonsense(toy_bert: Path) -> None:
    with pytest.raises(RefusedError, match="loaded for vectors"):
        load(toy_bert).model(input_ids=IDS)


@pytest.mark.parametrize(
    "spec", [LoraSpec(rank=2), PromptSpec(tokens=2)], ids=lambda spec: spec.method
)
def test_an_adapter_that_learned_language_fits_a_base_for_vectors(
    spec: Any, toy_bert: Path, tmp_path: Path
) -> None:
    taught = adapters.attach_adapters(load(toy_bert, "language"), [spec])
    with torch.no_grad():
        for parameter in taught.trained_parameters.values():
            parameter.add_(0.1)
    adapters.save_adapter(taught, tmp_path / "adapter")
    worn = adapters.load_adapter(load(toy_bert), tmp_path / "adapter")
    wanted = dict(taught.model.named_parameters())
    learned = {
        name: tensor
        for name, tensor in worn.model.named_parameters()
        if name in taught.trained_parameters
    }
    assert learned.keys() == taught.trained_parameters.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in learned.items())


def test_lora_on_a_base_for_vectors_changes_its_backbone_and_merges(toy_bert: Path) -> None:
    base = load(toy_bert)
    before = vectors(base, IDS)
    stack = adapters.attach_adapters(base, [LoraSpec(rank=2)])
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.1)
        after = vectors(base, IDS)
        assert not torch.allclose(before, after, atol=1e-3)
        torch.testing.assert_close(
            stack.create_merged_model().base_model(input_ids=IDS).last_hidden_state,
            after,
            atol=1e-5,
            rtol=0,
        )


def test_a_weight_missing_inside_the_backbone_is_an_error_for_vectors_too(bare_bert: Path) -> None:
    tensors = load_file(bare_bert / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, bare_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BaseModelError, match=r"would be random: bert\.encoder\.layer\.1\.output\.dense\.weight"
    ) as error:
        load(bare_bert)
    assert "head" not in error.value.hint


def test_a_layer_that_the_config_leaves_out_is_an_error_for_vectors_too(bare_bert: Path) -> None:
    config = json.loads((bare_bert / "config.json").read_text())
    (bare_bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(BaseModelError, match="not in its config"):
        load(bare_bert)


def test_vectors_need_no_mask_token(toy_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bert, tmp_path / "bert"))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"mask_token": None}))
    assert load(folder).tokenizer.mask_token_id is None
    with pytest.raises(BaseModelError, match="no mask token"):
        load(folder, "language")


def test_every_kind_of_model_in_a_recipe_can_be_loaded(toy_bert: Path) -> None:
    base = models.load_base_model(
        EncoderModelSpec(path=toy_bert, max_tokens=16, trainable=True), CPU, "vectors"
    )
    assert base.max_tokens == 16 and not any(
        parameter.requires_grad for parameter in base.model.parameters()
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_base_for_vectors_that_was_trained_whole_is_saved_and_loaded_as_one(
    family: str,
    toy_bert: Path,
    toy_llama: MakeFolder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    base = load({"bert": toy_bert, "llama": toy_llama()}[family])
    with torch.no_grad():
        base.model.get_input_embeddings().weight.mul_(1.5)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(vectors(load(tmp_path), IDS), vectors(base, IDS))


# --------------------------------------------------------------------------------------------------------------------------------- pooling


def test_vectors_are_read_by_the_mask_on_either_side() -> None:
    hidden = torch.tensor(
        [[[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]], [[3.0, 30.0], [5.0, 50.0], [7.0, 70.0]]]
    )
    right, left = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert models.pool_hidden_states(hidden, right, "last").tolist() == [[2, 20], [7, 70]]
    assert models.pool_hidden_states(hidden, left, "last").tolist() == [[6, 60], [7, 70]]
    assert models.pool_hidden_states(hidden, right, "cls").tolist() == [[1, 10], [3, 30]]
    assert models.pool_hidden_states(hidden, left, "cls").tolist() == [[2, 20], [7, 70]]
    assert models.pool_hidden_states(hidden, right, "mean").tolist() == [[1.5, 15], [5, 50]]
    assert models.pool_hidden_states(hidden, left.bool(), "mean").tolist() == [[4, 40], [7, 70]]


def test_the_mean_of_bfloat16_is_taken_in_float32() -> None:
    hidden = torch.tensor([256.0, 1.0, 1.0, 1.0]).bfloat16().reshape(1, 4, 1)
    pooled = models.pool_hidden_states(hidden, torch.ones(1, 4), "mean")
    assert (
        pooled.dtype == torch.float32 and pooled.item() == 64.75
    )  # nine bits: bfloat16 has 64.5 and 65
    assert models.pool_hidden_states(hidden, torch.ones(1, 4), "last").dtype == torch.float32


def test_what_stands_on_padding_has_no_say() -> None:
    hidden = torch.tensor([[[1.0], [torch.nan], [3.0]]])
    assert models.pool_hidden_states(hidden, torch.tensor([[1, 0, 1]]), "mean").tolist() == [[2.0]]


@pytest.mark.parametrize("how", ["last", "cls", "mean"])
def test_a_row_without_tokens_is_an_error(how: models.PoolingMode) -> None:
    with pytest.raises(InputError, match="1 of 3 rows have no token") as error:
        models.pool_hidden_states(torch.zeros(3, 2, 4), torch.tensor([[1, 0], [0, 0], [0, 1]]), how)
    assert error.value.location == "row 1 of the batch"


def says(folder: Path, described: object) -> Path:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (
            {
                "word_embedding_dimension": 32,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": False,
            },
            "mean",
        ),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"embedding_dimension": 32, "pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
        ({"word_embedding_dimension": 32}, None),
    ],
)
def test_a_sentence_transformers_folder_says_how_it_is_pooled(
    described: object, expected: str | None, tmp_path: Path
) -> None:
    assert models.read_pooling_mode(says(tmp_path, described)) == expected


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "pooling_mode_weightedmean_tokens"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "pooling_mode_cls_token and pooling_mode_mean_tokens",
        ),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ([], "is a list"),
    ],
)
def test_a_pooling_that_is_not_known_here_is_refused(
    described: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(BaseModelError, match=said):
        models.read_pooling_mode(says(tmp_path, described))


def test_pooling_is_what_was_asked_else_what_the_folder_says_else_the_familys_own(
    toy_bert: Path, toy_llama: MakeFolder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_bert, tmp_path / "bert"))
    base = load(folder)
    assert (
        models.read_pooling_mode(folder) is None
        and models.resolve_pooling_mode(base, "auto") == "cls"
    )
    says(folder, {"pooling_mode_mean_tokens": True})
    assert (
        models.resolve_pooling_mode(base, "auto") == "mean"
        and models.resolve_pooling_mode(base, "last") == "last"
    )
    assert models.resolve_pooling_mode(load(toy_llama()), "auto") == "last"


def test_what_says_how_to_pool_is_pulled_too() -> None:
    from clinpeft.models import download

    assert "1_Pooling/config.json" in download.DOWNLOADED_FILE_PATTERNS


# ---------------------------------------------------------------------------------------------------------------------- a real encoder


def test_a_real_sentence_encoder_knows_a_paraphrase(minilm: Path) -> None:
    base = load(minilm, max_tokens=128)
    assert (base.width, models.resolve_pooling_mode(base, "auto"), base.max_positions) == (
        384,
        "mean",
        512,
    )
    texts = [
        "The patient was admitted with shortness of breath.",
        "A man came to the hospital because he could not breathe well.",
        "The museum opens on Sunday at nine.",
    ]
    batch = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = base.backbone(**batch).last_hidden_state
    pooled = torch.nn.functional.normalize(
        models.pool_hidden_states(hidden, batch["attention_mask"], "mean"), dim=1
    )
    likeness = pooled @ pooled.T
    assert likeness[0, 1] > 0.5 and likeness[0, 2].abs() < 0.2
    with torch.no_grad():  # stock transformers, the model's own class
        plain = BertModel.from_pretrained(
            minilm,
            local_files_only=True,
            attn_implementation=base.model.config._attn_implementation,
        ).eval()
        torch.testing.assert_close(hidden, plain(**batch).last_hidden_state, atol=1e-5, rtol=0)


def test_a_model_of_another_class_with_the_same_backbone_gives_the_same_vectors(
    tmp_path: Path, toy_bert: Path
) -> None:
    """BERT with tied and with untied head: the embedding is the same memory in one and not in the other, and stays in both."""
    config = BertConfig.from_pretrained(toy_bert, tie_word_embeddings=False)
    folder = Path(shutil.copytree(toy_bert, tmp_path / "untied"))
    torch.manual_seed(3)
    BertForMaskedLM(config).save_pretrained(folder)
    whole = load(folder, "language")
    assert (
        whole.model.cls.predictions.decoder.weight is not whole.model.get_input_embeddings().weight
    )
    assert torch.equal(vectors(load(folder), IDS), vectors(whole, IDS))
