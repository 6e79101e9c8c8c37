"""The backbones of the embedding study as rows of data, and how a text becomes a vector on a folder of one of them.

The study (arXiv 2511.19739, table 1) reads ten models alike. Most of them were trained to be read in a way of their own: another token, a prompt
before the text, a length. A row says which; a folder that says so itself (sentence-transformers' files) is believed before the row.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import transformers

from clinpeft.core.errors import BaseModelError, UsageError
from clinpeft.models.families import MODEL_FAMILIES, PoolingMode
from clinpeft.models.folder import JsonObject, read_model_json
from clinpeft.models.pooling import read_pooling_mode

(
    SENTENCE_TRANSFORMERS_MODULES_FILE,
    SENTENCE_TRANSFORMERS_PROMPTS_FILE,
    SENTENCE_TRANSFORMERS_LENGTH_FILE,
) = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
HUB_NAME_PATTERN = re.compile(r"(?:^|[/\\])(?:models--)?([\w.-]+?)(?:--|[/\\_])([\w.-]+)$")

AdapterTargetSet = Literal["study", "all-linear"]


@dataclass(frozen=True)
class EmbeddingConfig:
    """How a text becomes a vector.

    Attributes:
        pooling: where it is read.
        normalise: whether it is divided by its length, so that a product of two is their cosine.
        query_prompt, document_prompt: what stands before a question and before what is searched; of two texts of one kind (paraphrases), both are
            questions.
        max_tokens: what is longer is cut at its end, special tokens included.
    """

    pooling: PoolingMode
    normalise: bool = True
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int = 512


@dataclass(frozen=True)
class Backbone:
    """One published model.

    Attributes:
        name: on the hub.
        family: its ``model_type``.
        embedding_config: how its authors read it; of a model that was never trained for vectors, what is usual: the mean of an encoder, which is also what
            sentence-transformers takes for a folder without a word on it, and the last token of a decoder.
        trained_for_vectors: false for a language model.
        license: SPDX name, or what its page calls it.
        shape: its ``config.json``, as far as it decides parameters and their names.
        padding_side: of its own tokenizer.
        refusal_reason: why it cannot be loaded here; empty for those that can.
    """

    name: str
    family: str
    embedding_config: EmbeddingConfig
    trained_for_vectors: bool
    license: str
    shape: Mapping[str, int]
    padding_side: Literal["left", "right"] = "right"
    refusal_reason: str = ""

    def select_targets(self, target_set: AdapterTargetSet) -> tuple[str, ...]:
        """Suffixes of the layers to adapt: ``study`` (query and value; where the three are one projection, all of it) or ``all-linear``."""
        family = MODEL_FAMILIES[self.family]
        return {"study": family.lora_targets, "all-linear": family.linear_targets}[target_set]

    def create_config(self, **overrides: int) -> Any:
        """The transformers config of its true architecture, with some numbers changed where a smaller one is wanted."""
        return transformers.AutoConfig.for_model(self.family, **{**self.shape, **overrides})


def _create_model_shape(
    layers: int,
    width: int,
    heads: int,
    intermediate: int,
    vocabulary: int,
    positions: int,
    **extra: int,
) -> Mapping[str, int]:
    named = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }
    return MappingProxyType(named | extra)


BERT_BASE_SHAPE, BERT_LARGE_SHAPE = (
    _create_model_shape(12, 768, 12, 3072, 30522, 512),
    _create_model_shape(24, 1024, 16, 4096, 30522, 512),
)
BGE_QUERY_PROMPT = "Represent this sentence for searching relevant passages: "
QWEN3_QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"  # no blank, as its own file has it
JINA_REFUSAL_REASON = "a JinaBERT, which calls itself bert, brings its own code, and read as a plain BERT has random feed-forward weights and positions it never had"

_BACKBONE_ROWS = (
    Backbone(
        "michiyasunaga/BioLinkBERT-large",
        "bert",
        EmbeddingConfig("mean"),
        False,
        "Apache-2.0",
        _create_model_shape(24, 1024, 16, 4096, 28895, 512),
    ),
    Backbone(
        name="google/gemma-2-2b-it",
        family="gemma2",
        embedding_config=EmbeddingConfig("last", max_tokens=8192),
        trained_for_vectors=False,
        license="Gemma Terms of Use",
        shape=_create_model_shape(
            26, 2304, 8, 9216, 256000, 8192, num_key_value_heads=4, head_dim=256
        ),
        padding_side="left",
    ),
    Backbone(
        name="Qwen/Qwen3-Embedding-4B",
        family="qwen3",
        embedding_config=EmbeddingConfig("last", query_prompt=QWEN3_QUERY_PROMPT, max_tokens=32768),
        trained_for_vectors=True,
        license="Apache-2.0",
        shape=_create_model_shape(
            36,
            2560,
            32,
            9728,
            151665,
            40960,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        padding_side="left",
    ),
    Backbone(
        name="sentence-transformers/all-mpnet-base-v2",
        family="mpnet",
        embedding_config=EmbeddingConfig("mean", max_tokens=384),
        trained_for_vectors=True,
        license="Apache-2.0",
        shape=_create_model_shape(12, 768, 12, 3072, 30527, 514),
    ),
    Backbone(
        name="Qwen/Qwen2.5-0.5B",
        family="qwen2",
        embedding_config=EmbeddingConfig("last", max_tokens=32768),
        trained_for_vectors=False,
        license="Apache-2.0",
        shape=_create_model_shape(
            24, 896, 14, 4864, 151936, 32768, num_key_value_heads=2, tie_word_embeddings=True
        ),
    ),
    Backbone(
        "BAAI/bge-large-en-v1.5",
        "bert",
        EmbeddingConfig("cls", query_prompt=BGE_QUERY_PROMPT),
        True,
        "MIT",
        BERT_LARGE_SHAPE,
    ),
    Backbone(
        "intfloat/e5-large-v2",
        "bert",
        EmbeddingConfig("mean", True, "query: ", "passage: "),
        True,
        "MIT",
        BERT_LARGE_SHAPE,
    ),
    Backbone(
        "BAAI/bge-small-en-v1.5",
        "bert",
        EmbeddingConfig("cls", query_prompt=BGE_QUERY_PROMPT),
        True,
        "MIT",
        _create_model_shape(12, 384, 12, 1536, 30522, 512),
    ),
    Backbone(
        name="BAAI/bge-m3",
        family="xlm-roberta",
        embedding_config=EmbeddingConfig("cls", max_tokens=8192),
        trained_for_vectors=True,
        license="MIT",
        shape=_create_model_shape(24, 1024, 16, 4096, 250002, 8194, type_vocab_size=1),
    ),
    Backbone(
        name="jinaai/jina-embeddings-v2-base-en",
        family="bert",
        embedding_config=EmbeddingConfig("mean", max_tokens=8192),
        trained_for_vectors=True,
        license="Apache-2.0",
        shape=_create_model_shape(12, 768, 12, 3072, 30528, 8192),
        refusal_reason=JINA_REFUSAL_REASON,
    ),
    Backbone(
        name="sentence-transformers/all-MiniLM-L6-v2",
        family="bert",
        embedding_config=EmbeddingConfig("mean", max_tokens=256),
        trained_for_vectors=True,
        license="Apache-2.0",
        shape=_create_model_shape(6, 384, 12, 1536, 30522, 512),
    ),
    Backbone(
        name="answerdotai/ModernBERT-base",
        family="modernbert",
        embedding_config=EmbeddingConfig("mean", max_tokens=8192),
        trained_for_vectors=False,
        license="Apache-2.0",
        shape=_create_model_shape(22, 768, 12, 1152, 50368, 8192),
    ),
    Backbone(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        "bert",
        EmbeddingConfig("mean"),
        False,
        "MIT",
        BERT_BASE_SHAPE,
    ),
    Backbone(
        "ncbi/MedCPT-Query-Encoder",
        "bert",
        EmbeddingConfig("cls", normalise=False, max_tokens=64),
        True,
        "public domain",
        BERT_BASE_SHAPE,
    ),
    Backbone(
        "ncbi/MedCPT-Article-Encoder",
        "bert",
        EmbeddingConfig("cls", normalise=False),
        True,
        "public domain",
        BERT_BASE_SHAPE,
    ),
)

BACKBONES: dict[str, Backbone] = {row.name: row for row in _BACKBONE_ROWS}
"""The ten of the study (its table 1, in order of its separation), then those to compare with; by their names on the hub."""


def find_backbone(folder: Path, backbone_name: str = "") -> Backbone | None:
    """The row of a local folder: the one that is named; else the one whose hub name its path ends with (``OWNER/MODEL``, ``OWNER--MODEL``,
    ``OWNER_MODEL``, or ``MODEL`` alone); else the one that its config says it was made from. None where there is none.

    A guess counts only where family and width of the folder are the row's: a distilled or tiny copy keeps its parent's name.

    Args:
        folder: of the model; its weights are not read.
        backbone_name: a key of ``BACKBONES``, where the user says which; it must fit.

    Raises:
        UsageError: no row has the name that was given.
        BaseModelError: the folder is another model than the one named, or one that cannot be loaded as it is (``check_plain``).
    """
    config = read_model_json(
        folder / "config.json", "no config.json: this is not the folder of a model"
    )
    check_standard_architecture(folder, config)
    if backbone_name:
        row = _get_backbone(backbone_name)
        if not _matches_config(row, config):
            found = f"{config.get('model_type')} of width {config.get('hidden_size')}"
            message = f"the folder holds a {found}, and {backbone_name} is a {row.family} of width {row.shape['hidden_size']}"
            raise BaseModelError(
                message,
                location=str(folder),
                hint="name the backbone that this folder holds, or none",
            )
        return row
    guesses = (_find_backbone_by_path(folder), BACKBONES.get(str(config.get("_name_or_path", ""))))
    return next((row for row in guesses if row is not None and _matches_config(row, config)), None)


def resolve_embedding_config(
    folder: Path, backbone_name: str = "", pooling: PoolingMode | None = None
) -> EmbeddingConfig:
    """How the vectors of a folder are read: by its own word, else by the row of its backbone.

    Args:
        folder: of the model.
        backbone_name: a key of ``BACKBONES``; empty: by ``backbone_of``.
        pooling: what the user says; neither folder nor row is asked then.

    Raises:
        BaseModelError: neither says how it is pooled, or it says so in a way that is not known here.
    """
    row = find_backbone(folder, backbone_name)
    pooling = (
        pooling or read_pooling_mode(folder) or (row.embedding_config.pooling if row else None)
    )
    if pooling is None:
        hint = 'say how: pooling = "mean", "cls", "last" or "max" in the recipe, or the name of the backbone it is; without either nobody knows'
        raise BaseModelError(
            "how a vector is read from this model is not known: its pooling",
            location=str(folder),
            hint=hint,
        )
    usual = (
        row.embedding_config
        if row
        else EmbeddingConfig(pooling, max_tokens=_count_positions(folder))
    )
    prompts = _read_prompts(folder)
    return EmbeddingConfig(
        pooling=pooling,
        normalise=_is_normalized(folder, usual.normalise),
        query_prompt=prompts.get("query", usual.query_prompt),
        document_prompt=next(
            (prompts[name] for name in ("document", "passage") if name in prompts),
            usual.document_prompt,
        ),
        max_tokens=_read_max_tokens(folder) or usual.max_tokens,
    )


def check_standard_architecture(folder: Path, config: JsonObject) -> None:
    """A folder whose config calls itself ``bert`` and is none.

    transformers loads such a folder without its code as a plain BERT: it has learned positions instead of ALiBi, and the feed-forward weights,
    whose names do not exist in the folder, are drawn at random. It gives vectors without a complaint (embeddings-benchmark/mteb, issue 1060).

    Raises:
        BaseModelError: it has ``auto_map``, ALiBi positions, or a gated feed-forward block.
    """
    signs = {
        "auto_map": config.get("auto_map"),
        "position_embedding_type": config.get("position_embedding_type", "absolute") == "alibi"
        and "alibi",
        "feed_forward_type": config.get("feed_forward_type", "original") != "original"
        and config.get("feed_forward_type"),
    }
    found = [
        name if name == "auto_map" else f"{name} = {value!r}"
        for name, value in signs.items()
        if value
    ]
    if not found:
        return
    row = BACKBONES["jinaai/jina-embeddings-v2-base-en"]
    message = f"{', '.join(found)} in config.json: the code of this model comes with its folder, and code from a model folder is never run; "
    message += f"{row.name} is such a model: {JINA_REFUSAL_REASON}"
    plain = ", ".join(
        name
        for name, each in BACKBONES.items()
        if not each.refusal_reason and each.family == "mpnet"
    )
    hint = (
        f"take a backbone of a known family (of its size: {plain}); to have its numbers all the same, encode the texts with the model's own code "
        "where you trust it, and give the vectors to the evaluation"
    )
    raise BaseModelError(message, location=str(folder / "config.json"), hint=hint)


def _get_backbone(name: str) -> Backbone:
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name, BACKBONES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(
        f"no backbone is called {name!r}",
        location="base.backbone",
        hint=f"{hint}known are {', '.join(BACKBONES)}",
    )


def _matches_config(backbone: Backbone, config: JsonObject) -> bool:
    return bool(
        config.get("model_type") == backbone.family
        and config.get("hidden_size") == backbone.shape["hidden_size"]
    )


def _find_backbone_by_path(folder: Path) -> Backbone | None:
    """Also inside a hub cache, where the folder is ``models--OWNER--MODEL/snapshots/REVISION``."""
    resolved = folder.resolve()
    location = resolved.parent.parent if resolved.parent.name == "snapshots" else resolved
    match = HUB_NAME_PATTERN.search("/".join(location.parts[-2:]))
    owned = BACKBONES.get(f"{match[1]}/{match[2]}") if match else None
    whole = HUB_NAME_PATTERN.search(location.name)
    owned = owned or (BACKBONES.get(f"{whole[1]}/{whole[2]}") if whole else None)
    return owned or next(
        (row for name, row in BACKBONES.items() if name.partition("/")[2] == location.name), None
    )


def _is_normalized(folder: Path, default: bool) -> bool:
    """Whether the modules of a sentence-transformers folder end with a division by the length."""
    try:
        text = (folder / SENTENCE_TRANSFORMERS_MODULES_FILE).read_text(encoding="utf-8")
    except OSError:
        return default
    return bool(re.search(r'"type"\s*:\s*"[\w.]*\.Normalize"', text))


def _read_prompts(folder: Path) -> dict[str, str]:
    path = folder / SENTENCE_TRANSFORMERS_PROMPTS_FILE
    found = read_model_json(path, "").get("prompts") if path.is_file() else None
    return {str(name): str(text) for name, text in (found or {}).items() if text is not None}


def _read_max_tokens(folder: Path) -> int:
    path = folder / SENTENCE_TRANSFORMERS_LENGTH_FILE
    return int((read_model_json(path, "").get("max_seq_length") if path.is_file() else 0) or 0)


def _count_positions(folder: Path) -> int:
    """What a model of an unknown backbone can take; 512 where its config does not say."""
    config = read_model_json(folder / "config.json", "")
    reserved = (
        MODEL_FAMILIES[config["model_type"]].reserved_positions or 0
        if config.get("model_type") in MODEL_FAMILIES
        else 0
    )
    return int(config.get("max_position_embeddings", 512)) - reserved
