"""The backbones of the embedding study as rows of data, and how each embeds a text.

The study (arXiv 2511.19739, table 1) compares ten models that it embeds in the same way, although
most of them were trained with a pooling, a prompt or a maximum length of their own. A row has
these settings; a folder with files of sentence-transformers has precedence over its row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import transformers
from pydantic import TypeAdapter

from clinpeft.core.errors import BaseModelError, UsageError
from clinpeft.models.families import MODEL_FAMILIES, PoolingMode, suggest_known_name
from clinpeft.models.folder import (
    SENTENCE_TRANSFORMERS_LENGTH_FILE,
    SENTENCE_TRANSFORMERS_MODULES_FILE,
    SENTENCE_TRANSFORMERS_PROMPTS_FILE,
    JsonObject,
    read_model_json,
)
from clinpeft.models.pooling import read_pooling_mode

# OWNER/MODEL, OWNER--MODEL (with "models--" in a hub cache), OWNER_MODEL; at the end of a path
HUB_NAME_PATTERN = re.compile(r"(?:^|[/\\])(?:models--)?([\w.-]+?)(?:--|[/\\_])([\w.-]+)$")

AdapterTargetSet = Literal["study", "all-linear"]


@dataclass(frozen=True)
class EmbeddingConfig:
    """How a text is embedded.

    Attributes:
        pooling: which hidden state is its vector.
        normalise: whether the vector is divided by its Euclidean norm, so that the inner product
            of two is their cosine.
        query_prompt: text before a query; of two texts of one kind (paraphrases) before both.
        document_prompt: text before a document that is searched.
        max_tokens: a longer text is truncated at its end; special tokens included.
    """

    pooling: PoolingMode
    normalise: bool = True
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int = 512

    def as_json(self) -> dict[str, object]:
        """Return the settings as in ``encoder.json``."""
        document: dict[str, object] = _CONFIG_ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> EmbeddingConfig:
        """Read what ``as_json`` returned.

        Raises:
            TypeError: a field that is not known, which could change the vectors.
            pydantic.ValidationError: a field is missing or of another type.
        """
        # pydantic would ignore unknown fields of a dataclass
        unknown = sorted(document.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise TypeError(f"unknown fields {unknown}")
        return _CONFIG_ADAPTER.validate_python(dict(document))


_CONFIG_ADAPTER = TypeAdapter(EmbeddingConfig)


@dataclass(frozen=True)
class Backbone:
    """A published model.

    Attributes:
        name: on the Hugging Face hub.
        family: its ``model_type``.
        embedding_config: as its authors embed a text; for a model that was not trained for
            embeddings the mean of an encoder, which is also the default of sentence-transformers,
            or the last token of a decoder.
        trained_for_vectors: whether it was trained for embeddings; false for a language model.
        license: SPDX name, or the name on its page.
        shape: the keys of its ``config.json`` that decide number and names of its parameters.
        padding_side: of its own tokenizer.
        refusal_reason: why it cannot be loaded; empty if it can.
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
        """Return the suffixes of the layers to adapt.

        Args:
            target_set: ``study`` for query and value projections, or the joint projection where
                query, key and value are one; ``all-linear`` for every linear layer of the blocks.
        """
        family = MODEL_FAMILIES[self.family]
        return {"study": family.lora_targets, "all-linear": family.linear_targets}[target_set]

    def create_config(self, **overrides: int) -> Any:
        """Return its transformers config, with ``overrides`` where a smaller model is wanted."""
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
    """Return keys of ``config.json`` that cannot be changed by accident."""
    keys = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
    }
    return MappingProxyType(keys | extra)


# (layers, width, heads, feed-forward width, vocabulary, positions); Devlin et al. 2019
BERT_BASE_SHAPE = _create_model_shape(12, 768, 12, 3072, 30522, 512)
BERT_LARGE_SHAPE = _create_model_shape(24, 1024, 16, 4096, 30522, 512)
BGE_QUERY_PROMPT = "Represent this sentence for searching relevant passages: "
# no space after "Query:", as in config_sentence_transformers.json of the model
QWEN3_QUERY_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
JINA_REFUSAL_REASON = (
    "a JinaBERT, whose config calls it bert and whose code comes with its folder; loaded as a "
    "plain BERT it has random feed-forward weights and position embeddings that were not trained"
)

_BACKBONE_ROWS = (
    # Yasunaga et al. 2022, arXiv 2203.15827; BERT large with a vocabulary of PubMed
    Backbone(
        "michiyasunaga/BioLinkBERT-large",
        "bert",
        EmbeddingConfig("mean"),
        False,
        "Apache-2.0",
        _create_model_shape(24, 1024, 16, 4096, 28895, 512),
    ),
    # Gemma Team 2024, arXiv 2408.00118; heads of width 256, so 8 * 256 differs from the width
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
    # Zhang et al. 2025, arXiv 2506.05176; an instruction before queries, none before documents
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
    # Song et al. 2020, arXiv 2004.09297; two of its 514 positions are reserved
    Backbone(
        name="sentence-transformers/all-mpnet-base-v2",
        family="mpnet",
        embedding_config=EmbeddingConfig("mean", max_tokens=384),
        trained_for_vectors=True,
        license="Apache-2.0",
        shape=_create_model_shape(12, 768, 12, 3072, 30527, 514),
    ),
    # Qwen Team 2024, arXiv 2412.15115
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
    # Xiao et al. 2023, arXiv 2309.07597; an instruction before queries, none before documents
    Backbone(
        "BAAI/bge-large-en-v1.5",
        "bert",
        EmbeddingConfig("cls", query_prompt=BGE_QUERY_PROMPT),
        True,
        "MIT",
        BERT_LARGE_SHAPE,
    ),
    # Wang et al. 2022, arXiv 2212.03533; a prefix before every text
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
    # Chen et al. 2024, arXiv 2402.03216; no instruction; two of its 8,194 positions are reserved
    Backbone(
        name="BAAI/bge-m3",
        family="xlm-roberta",
        embedding_config=EmbeddingConfig("cls", max_tokens=8192),
        trained_for_vectors=True,
        license="MIT",
        shape=_create_model_shape(24, 1024, 16, 4096, 250002, 8194, type_vocab_size=1),
    ),
    # Günther et al. 2023, arXiv 2310.19923; ALiBi instead of position embeddings
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
    # Warner et al. 2024, arXiv 2412.13663; rotary positions, gated feed-forward block
    Backbone(
        name="answerdotai/ModernBERT-base",
        family="modernbert",
        embedding_config=EmbeddingConfig("mean", max_tokens=8192),
        trained_for_vectors=False,
        license="Apache-2.0",
        shape=_create_model_shape(22, 768, 12, 1152, 50368, 8192),
    ),
    # Gu et al. 2020, arXiv 2007.15779
    Backbone(
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        "bert",
        EmbeddingConfig("mean"),
        False,
        "MIT",
        BERT_BASE_SHAPE,
    ),
    # Jin et al. 2023, arXiv 2307.00589; two encoders whose inner product is the score, so that
    # their vectors are not normalized; queries have up to 64 tokens
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
"""The ten of the study (its table 1, in order of its separation), then others for comparison; by
name on the hub."""


def find_backbone(folder: Path, backbone_name: str = "") -> Backbone | None:
    """Return the row of a local folder, or None where there is none.

    It is the named row; else the one whose hub name the path of the folder ends with
    (``OWNER/MODEL``, ``OWNER--MODEL``, ``OWNER_MODEL``, or ``MODEL`` alone); else the one of
    ``_name_or_path`` in the config. Without a name, family and width of the folder must be those
    of the row: a distilled or tiny copy often keeps the name of its parent.

    Args:
        folder: of the model; its weights are not read.
        backbone_name: a key of ``BACKBONES``; empty to guess.

    Raises:
        UsageError: no row has the given name.
        BaseModelError: the folder is another model than the named one, or one that cannot be
            loaded (``check_standard_architecture``).
    """
    config = read_model_json(folder / "config.json", "no config.json: this is not a model folder")
    check_standard_architecture(folder, config)

    def matches_config(row: Backbone) -> bool:
        is_family = config.get("model_type") == row.family
        return bool(is_family and config.get("hidden_size") == row.shape["hidden_size"])

    if backbone_name:
        # an explicit name is never guessed around: it must exist, and it must fit
        if backbone_name not in BACKBONES:
            raise UsageError(
                f"no backbone is called {backbone_name!r}",
                location="base.backbone",
                hint=suggest_known_name(backbone_name, BACKBONES, cutoff=0.4),
            )
        row = BACKBONES[backbone_name]
        if not matches_config(row):
            raise BaseModelError(
                f"the folder holds a {config.get('model_type')} of width "
                f"{config.get('hidden_size')}, and {backbone_name} is a {row.family} of width "
                f"{row.shape['hidden_size']}",
                location=str(folder),
                hint="name the backbone that this folder holds, or none",
            )
        return row
    # the path first: `_name_or_path` often names the parent of a fine-tuned model
    guesses = (_find_backbone_by_path(folder), BACKBONES.get(str(config.get("_name_or_path", ""))))
    return next((row for row in guesses if row is not None and matches_config(row)), None)


def _find_backbone_by_path(folder: Path) -> Backbone | None:
    # links of a hub cache lead to blobs; the folder itself is not a link
    resolved = folder.resolve()
    # in a hub cache the folder is models--OWNER--MODEL/snapshots/REVISION
    path = resolved.parent.parent if resolved.parent.name == "snapshots" else resolved
    # the last two parts, OWNER/MODEL, before the last one alone, which may be OWNER_MODEL
    for text in ("/".join(path.parts[-2:]), path.name):
        match = HUB_NAME_PATTERN.search(text)
        row = BACKBONES.get(f"{match[1]}/{match[2]}") if match else None
        if row:
            return row
    # MODEL alone, as `models pull --to MODEL` writes it
    rows = BACKBONES.items()
    return next((row for name, row in rows if name.partition("/")[2] == path.name), None)


def resolve_embedding_config(
    folder: Path, backbone_name: str = "", pooling: PoolingMode | None = None
) -> EmbeddingConfig:
    """Return how the model in a folder embeds a text: by its own files, else by its row.

    Args:
        folder: of the model.
        backbone_name: a key of ``BACKBONES``; empty to guess it (``find_backbone``).
        pooling: has precedence over folder and row.

    Raises:
        BaseModelError: neither folder nor row states the pooling, or it is not supported.
    """
    row = find_backbone(folder, backbone_name)
    # precedence: argument, then folder, then row
    default_pooling = row.embedding_config.pooling if row else None
    pooling = pooling or read_pooling_mode(folder) or default_pooling
    if pooling is None:
        raise BaseModelError(
            "the pooling of this model is not known",
            location=str(folder),
            hint='set pooling = "mean", "cls", "last" or "max" in the recipe, or the name of its '
            "backbone",
        )
    if row:
        defaults = row.embedding_config
    else:
        # the tokens for which the model has positions; 512 where its config does not say
        config = read_model_json(folder / "config.json", "")
        # RoBERTa counts positions from padding_idx + 1 (`ModelFamily.reserved_positions`)
        family = MODEL_FAMILIES.get(str(config.get("model_type")))
        reserved = (family.reserved_positions if family else 0) or 0
        max_tokens = int(config.get("max_position_embeddings", 512)) - reserved
        defaults = EmbeddingConfig(pooling, max_tokens=max_tokens)
    try:
        # modules.json lists the classes of a sentence-transformers model in order
        modules = (folder / SENTENCE_TRANSFORMERS_MODULES_FILE).read_text(encoding="utf-8")
        normalise = bool(re.search(r'"type"\s*:\s*"[\w.]*\.Normalize"', modules))
    except OSError:
        normalise = defaults.normalise
    prompt_file, length_file = (
        read_model_json(path, "") if path.is_file() else {}
        for path in (
            folder / SENTENCE_TRANSFORMERS_PROMPTS_FILE,
            folder / SENTENCE_TRANSFORMERS_LENGTH_FILE,
        )
    )
    # a null prompt counts as none; documents are called "passage" in folders of E5
    prompts = {k: str(v) for k, v in (prompt_file.get("prompts") or {}).items() if v is not None}
    document_prompt = prompts.get("passage", defaults.document_prompt)
    return EmbeddingConfig(
        pooling=pooling,
        normalise=normalise,
        query_prompt=prompts.get("query", defaults.query_prompt),
        document_prompt=prompts.get("document", document_prompt),
        max_tokens=int(length_file.get("max_seq_length") or 0) or defaults.max_tokens,
    )


def check_standard_architecture(folder: Path, config: JsonObject) -> None:
    """Check that a folder is of the architecture that its ``model_type`` names.

    transformers loads a JinaBERT folder without its code as a plain BERT: with learned positions
    instead of ALiBi, and with random feed-forward weights, because their names are not in the
    folder. It gives vectors without an error (embeddings-benchmark/mteb, issue 1060).

    Args:
        folder: of the model.
        config: its ``config.json``.

    Raises:
        BaseModelError: it has ``auto_map``, ALiBi positions, or a gated feed-forward block.
    """
    position_type = config.get("position_embedding_type", "absolute")
    feed_forward_type = config.get("feed_forward_type", "original")
    # any of the three means that the weights do not fit a plain BERT
    signs = []
    if config.get("auto_map"):
        signs.append("auto_map")
    if position_type == "alibi":
        signs.append(f"position_embedding_type = {position_type!r}")
    if feed_forward_type and feed_forward_type != "original":
        signs.append(f"feed_forward_type = {feed_forward_type!r}")
    if not signs:
        return
    # the only published model of the study with these signs, so the message names it
    jina = BACKBONES["jinaai/jina-embeddings-v2-base-en"]
    # a model of the same size and purpose that can be loaded
    alternatives = ", ".join(
        row.name for row in BACKBONES.values() if not row.refusal_reason and row.family == "mpnet"
    )
    raise BaseModelError(
        f"{', '.join(signs)} in config.json: the code of this model comes with its folder, and "
        f"code from a model folder is never run; {jina.name} is such a model: "
        f"{JINA_REFUSAL_REASON}",
        location=str(folder / "config.json"),
        hint=f"use a backbone of a known family (of its size: {alternatives}); to evaluate this "
        "one, encode the texts with the model's own code where you trust it, and give the vectors "
        "to the evaluation",
    )
