"""The backbones of the study: each row on a tiny random model of its true architecture, and its adapters at true size without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.core.errors import BaseModelError, UsageError
from clinpeft.models.embedding_config import (
    BACKBONES,
    Backbone,
    EmbeddingConfig,
    AdapterTargetSet,
    find_backbone,
    resolve_embedding_config,
)
from clinpeft.recipe import LoraSpec, PretrainedModelSpec

CPU = torch.device("cpu")
LOADABLE = {name: row for name, row in BACKBONES.items() if not row.refusal_reason}
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
STUDY = (
    "michiyasunaga/BioLinkBERT-large google/gemma-2-2b-it Qwen/Qwen3-Embedding-4B sentence-transformers/all-mpnet-base-v2 Qwen/Qwen2.5-0.5B "
    "BAAI/bge-large-en-v1.5 intfloat/e5-large-v2 BAAI/bge-small-en-v1.5 BAAI/bge-m3 jinaai/jina-embeddings-v2-base-en"
).split()

# by hand, rank 16: layers x (inputs + outputs) x 16 of every adapted layer
COUNTS: dict[str, tuple[int, int]] = {
    "michiyasunaga/BioLinkBERT-large": (
        24 * 2 * 2048 * 16,
        24 * (4 * 2048 + 2 * 5120) * 16,
    ),  # 1.57 million and 7.08 million
    "google/gemma-2-2b-it": (26 * (4352 + 3328) * 16, 26 * (2 * 4352 + 2 * 3328 + 3 * 11520) * 16),
    "Qwen/Qwen3-Embedding-4B": (
        36 * (6656 + 3584) * 16,
        36 * (2 * 6656 + 2 * 3584 + 3 * 12288) * 16,
    ),  # 5.9 million and 33.0 million
    "sentence-transformers/all-mpnet-base-v2": (
        12 * 2 * 1536 * 16,
        12 * (4 * 1536 + 2 * 3840) * 16,
    ),
    "Qwen/Qwen2.5-0.5B": (24 * (1792 + 1024) * 16, 24 * (2 * 1792 + 2 * 1024 + 3 * 5760) * 16),
    "BAAI/bge-small-en-v1.5": (12 * 2 * 768 * 16, 12 * (4 * 768 + 2 * 1920) * 16),
    "answerdotai/ModernBERT-base": (
        22 * (768 + 2304) * 16,
        22 * (3072 + 1536 + 768 + 2304 + 1152 + 768) * 16,
    ),
    "sentence-transformers/all-MiniLM-L6-v2": (6 * 2 * 768 * 16, 6 * (4 * 768 + 2 * 1920) * 16),
}
COUNTS |= dict.fromkeys(
    ("BAAI/bge-large-en-v1.5", "intfloat/e5-large-v2", "BAAI/bge-m3"),
    COUNTS["michiyasunaga/BioLinkBERT-large"],
)
PUBMED, MEDCPT = (
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
    ("ncbi/MedCPT-Query-Encoder", "ncbi/MedCPT-Article-Encoder"),
)
COUNTS |= dict.fromkeys((PUBMED, *MEDCPT), COUNTS["sentence-transformers/all-mpnet-base-v2"])


def tiny(row: Backbone) -> Any:
    grouped = (
        {"num_key_value_heads": 2, "head_dim": 8} if "num_key_value_heads" in row.shape else {}
    )
    return row.create_config(
        **TINY, num_attention_heads=4, **grouped, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )


@pytest.fixture(scope="module")
def folders(
    toy_llama: Any, toy_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root, made = tmp_path_factory.mktemp("backbones"), {}
    tokenizers = {"causal-lm": toy_llama(), "masked-lm": toy_bert}
    for row in {row.family: row for row in LOADABLE.values()}.values():
        folder = root / row.family
        torch.manual_seed(0)
        models.MODEL_FAMILIES[row.family].auto_class.from_config(
            tiny(row)
        ).base_model.save_pretrained(folder)  # published without head, as vectors are
        for path in tokenizers[models.MODEL_FAMILIES[row.family].objective].glob("tokenizer*"):
            shutil.copy(path, folder)
        made[row.family] = folder
    return made


def folder_named(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


# ------------------------------------------------------------------------------------------------------------------------------ the rows


def test_the_ten_of_the_study_come_first_and_each_is_named_as_on_the_hub() -> None:
    assert list(BACKBONES)[:10] == STUDY
    assert all(
        name == row.name and row.family in models.MODEL_FAMILIES and row.license
        for name, row in BACKBONES.items()
    )
    assert set(COUNTS) == set(LOADABLE)


def test_each_is_read_as_its_authors_read_it() -> None:
    pooled = {
        row.name: row.embedding_config.pooling
        for row in BACKBONES.values()
        if row.trained_for_vectors
    }
    assert {name for name, pooling in pooled.items() if pooling == "cls"} == {
        name for name in pooled if name.startswith(("BAAI/", "ncbi/"))
    }
    assert pooled["Qwen/Qwen3-Embedding-4B"] == "last" and pooled["intfloat/e5-large-v2"] == "mean"
    assert {
        BACKBONES[name].embedding_config.pooling
        for name in ("google/gemma-2-2b-it", "Qwen/Qwen2.5-0.5B")
    } == {"last"}
    prompted = {
        name: (row.embedding_config.query_prompt, row.embedding_config.document_prompt)
        for name, row in BACKBONES.items()
        if row.embedding_config.query_prompt
    }
    assert prompted["intfloat/e5-large-v2"] == ("query: ", "passage: ")
    assert prompted["Qwen/Qwen3-Embedding-4B"][0].startswith("Instruct: ") and prompted[
        "Qwen/Qwen3-Embedding-4B"
    ][0].endswith("\nQuery:")
    assert len(prompted) == 4 and not prompted["BAAI/bge-small-en-v1.5"][1]


@pytest.mark.parametrize("name", LOADABLE)
def test_a_tiny_model_of_the_true_architecture_takes_its_adapters_and_gives_vectors(
    name: str, folders: dict[str, Path]
) -> None:
    row = BACKBONES[name]
    ids, mask = (
        torch.tensor([[5, 6, 7, 8, 0], [9, 10, 11, 12, 13]]),
        torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    )
    for which in get_args(AdapterTargetSet):
        base = models.load_base_model(
            PretrainedModelSpec(path=folders[row.family], max_tokens=32, precision="float32"),
            CPU,
            "vectors",
        )
        with torch.no_grad():
            before = models.pool_hidden_states(
                base.backbone(input_ids=ids, attention_mask=mask).last_hidden_state,
                mask,
                row.embedding_config.pooling,
            )
            stack = adapters.attach_adapters(
                base, [LoraSpec(rank=2, targets=row.select_targets(which))]
            )
            fresh = models.pool_hidden_states(
                adapters.compute_hidden_states(stack, ids, mask), mask, row.embedding_config.pooling
            )
            torch.testing.assert_close(fresh, before, atol=1e-6, rtol=0)
            for parameter in stack.trained_parameters.values():
                parameter.add_(0.1)
            assert not torch.allclose(
                models.pool_hidden_states(
                    adapters.compute_hidden_states(stack, ids, mask),
                    mask,
                    row.embedding_config.pooling,
                ),
                before,
                atol=1e-3,
            )
        adapted = {name.rpartition(".lora_")[0] for name in stack.trained_parameters}
        linear = (
            4 if row.family == "modernbert" else 7 if base.family.objective == "causal-lm" else 6
        )
        assert (
            len(adapted)
            == 2 * {"study": len(row.select_targets("study")), "all-linear": linear}[which]
        )


@pytest.mark.parametrize(
    ("name", "which"), [(name, which) for name in LOADABLE for which in get_args(AdapterTargetSet)]
)
def test_adapters_at_true_size_have_the_parameters_that_arithmetic_gives(
    name: str, which: AdapterTargetSet
) -> None:
    row = BACKBONES[name]
    stack = adapters.attach_adapters(
        models.create_meta_model(row.create_config()),
        [LoraSpec(rank=16, targets=row.select_targets(which))],
    )
    assert stack.counts.trained_parameters == COUNTS[name][get_args(AdapterTargetSet).index(which)]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("google/gemma-2-2b-it", "2614.3"),  # as its page counts its weights
        ("Qwen/Qwen2.5-0.5B", "494.0"),
        ("Qwen/Qwen3-Embedding-4B", "4021.8"),
        ("BAAI/bge-large-en-v1.5", "335.1"),  # with the pooler, as published
        ("BAAI/bge-small-en-v1.5", "33.4"),
        ("BAAI/bge-m3", "567.8"),
        ("sentence-transformers/all-mpnet-base-v2", "109.5"),
        ("sentence-transformers/all-MiniLM-L6-v2", "22.7"),
    ],
)
def test_the_shapes_are_those_of_the_published_weights(name: str, millions: str) -> None:
    base, width = (
        models.create_meta_model(BACKBONES[name].create_config()),
        BACKBONES[name].shape["hidden_size"],
    )
    pooler = width * (width + 1) if base.family.objective == "masked-lm" else 0
    assert (
        f"{(sum(parameter.numel() for parameter in base.backbone.parameters()) + pooler) / 1e6:.1f}"
        == millions
    )


def test_the_real_encoder_has_the_shape_of_its_row(minilm: Path) -> None:
    row = BACKBONES["sentence-transformers/all-MiniLM-L6-v2"]
    found = json.loads((minilm / "config.json").read_text())
    assert {key: found[key] for key in row.shape} == dict(row.shape)
    assert (
        find_backbone(minilm) is None and find_backbone(minilm, row.name) == row
    )  # its folder is called `model`
    assert (
        resolve_embedding_config(minilm)
        == row.embedding_config
        == resolve_embedding_config(minilm, row.name)
    )


# --------------------------------------------------------------------------------------------------------------------- a folder and its row

E5 = {"model_type": "bert", "hidden_size": 1024}


@pytest.mark.parametrize(
    "path",
    [
        "intfloat/e5-large-v2",
        "e5-large-v2",
        "intfloat_e5-large-v2",
        "intfloat--e5-large-v2",
        "models--intfloat--e5-large-v2",
        "models--intfloat--e5-large-v2/snapshots/b322e09",
    ],
)
def test_a_folder_is_known_by_its_path(path: str, tmp_path: Path) -> None:
    found = find_backbone(folder_named(tmp_path / path, E5))
    assert found is not None and found.name == "intfloat/e5-large-v2"


def test_a_folder_is_known_by_what_its_config_was_made_from_or_by_the_user(tmp_path: Path) -> None:
    made = find_backbone(
        folder_named(tmp_path / "a", E5 | {"_name_or_path": "BAAI/bge-large-en-v1.5"})
    )
    assert made is not None and made.name == "BAAI/bge-large-en-v1.5"
    assert find_backbone(folder_named(tmp_path / "b", E5)) is None
    assert (
        find_backbone(tmp_path / "b", "intfloat/e5-large-v2") == BACKBONES["intfloat/e5-large-v2"]
    )


def test_a_small_copy_under_the_same_name_is_not_the_backbone(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "intfloat" / "e5-large-v2", E5 | {"hidden_size": 32})
    assert find_backbone(folder) is None
    with pytest.raises(
        BaseModelError, match="bert of width 32, and intfloat/e5-large-v2 is a bert of width 1024"
    ):
        find_backbone(folder, "intfloat/e5-large-v2")


def test_a_name_that_no_row_has_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        find_backbone(folder_named(tmp_path / "a", E5), "intfloat/e5-large")
    assert "did you mean 'intfloat/e5-large-v2'" in error.value.hint


def test_a_folder_that_says_how_it_is_read_is_believed_before_its_row(tmp_path: Path) -> None:
    folder = folder_named(tmp_path / "intfloat" / "e5-large-v2", E5)
    assert resolve_embedding_config(folder) == EmbeddingConfig(
        "mean", True, "query: ", "passage: ", 512
    )
    folder_named(folder / "1_Pooling", {"pooling_mode_cls_token": True})
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Transformer"}])
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "ask: ", "document": "read: "}})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
    assert find_backbone(folder) == BACKBONES["intfloat/e5-large-v2"]
    assert resolve_embedding_config(folder) == EmbeddingConfig("cls", False, "ask: ", "read: ", 128)
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.base.modules.normalize.Normalize"}])
    )
    assert resolve_embedding_config(folder).normalise


def test_what_the_user_says_of_pooling_is_enough_where_the_folder_says_something_unknown(
    tmp_path: Path,
) -> None:
    folder = folder_named(
        tmp_path / "a", {"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 96}
    )
    folder_named(folder / "1_Pooling", {"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(BaseModelError, match="weightedmean"):
        resolve_embedding_config(folder)
    assert resolve_embedding_config(folder, pooling="cls") == EmbeddingConfig("cls", max_tokens=96)
    row = folder_named(tmp_path / "intfloat" / "e5-large-v2", E5)
    assert resolve_embedding_config(row, pooling="last") == EmbeddingConfig(
        "last", True, "query: ", "passage: ", 512
    )


def test_a_model_whose_pooling_nobody_knows_is_refused_with_how_to_say_it(toy_bert: Path) -> None:
    with pytest.raises(BaseModelError, match="pooling") as error:
        resolve_embedding_config(toy_bert)
    assert "mean" in error.value.hint and "backbone" in error.value.hint


@pytest.mark.parametrize(
    ("sign", "said"),
    [
        (
            {
                "auto_map": {
                    "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"
                }
            },
            "auto_map",
        ),
        ({"position_embedding_type": "alibi"}, "alibi"),
        ({"feed_forward_type": "geglu"}, "geglu"),
    ],
)
def test_a_jina_folder_is_refused_with_the_reason_and_the_way_out(
    sign: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = folder_named(
        tmp_path / "jina-embeddings-v2-base-en", {"model_type": "bert", "hidden_size": 768} | sign
    )
    for ask in (find_backbone, resolve_embedding_config):
        with pytest.raises(BaseModelError, match=said) as error:
            ask(folder)
        assert (
            "random feed-forward weights" in error.value.message
            and "all-mpnet-base-v2" in error.value.hint
        )
    assert BACKBONES["jinaai/jina-embeddings-v2-base-en"].refusal_reason
