"""The known architectures, one row of data each: a new family is one line in ``FAMILIES``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import transformers

from clinpeft.core.errors import BaseModelError

PretrainingObjective = Literal["causal-lm", "masked-lm"]
PoolingMode = Literal["last", "cls", "mean", "max"]


@dataclass(frozen=True)
class ModelFamily:
    """What is true of every model of one architecture.

    Attributes:
        objective: what its pretraining head answers.
        auto_class: the transformers class that loads it with that head.
        lora_targets: suffixes of the query and value projections (Hu et al. 2021, section 4.2).
        linear_targets: suffixes of every linear layer inside the blocks, and of none outside them: no pooler, no head (Dettmers et al. 2023,
            section 4, "all linear layers").
        ia3_targets, ia3_feedforward: regular expressions over whole module names: all that IA3 rescales, and the part of it that is rescaled at
            its input (Liu et al. 2022, equation 1: keys, values, and the activation inside the feed-forward block).
        pooling: where a sentence's vector is read.
        padding_side: where its own tokenizers pad; ``adapters.logits`` takes both.
        reserved_positions: rows of the learned position table that no token uses (RoBERTa starts at padding_idx + 1 = 2). None: rotary positions,
            which have no table to run out of.
        unsupported_methods: adapter methods that peft cannot do on it, or does without any effect.
        supports_packing: many documents of it can stand in one row without padding (``models.attention``), which is tried when a base is loaded. False: its
            attention does not follow transformers' interface, and documents go side by side with those of the same length.
        liger_kernels: what of it liger has a kernel for, as liger names it (``models.kernels``); empty: it does not know the family.
    """

    objective: PretrainingObjective
    auto_class: Any
    lora_targets: tuple[str, ...]
    linear_targets: tuple[str, ...]
    ia3_targets: str
    ia3_feedforward: str
    pooling: PoolingMode
    padding_side: Literal["left", "right"]
    reserved_positions: int | None = None
    unsupported_methods: frozenset[str] = frozenset()
    supports_packing: bool = True
    liger_kernels: tuple[str, ...] = ()


def _create_decoder_family(
    unsupported_methods: frozenset[str], gate_kernel: str = "swiglu"
) -> ModelFamily:
    return ModelFamily(
        objective="causal-lm",
        auto_class=transformers.AutoModelForCausalLM,
        lora_targets=("q_proj", "v_proj"),
        linear_targets=(
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        ia3_targets=r".*\.(k_proj|v_proj|down_proj)",
        ia3_feedforward=r".*\.down_proj",
        pooling="last",
        padding_side="right",
        unsupported_methods=unsupported_methods,
        liger_kernels=("rms_norm", gate_kernel),
    )


def _create_encoder_family(
    reserved_positions: int | None,
    unsupported_methods: frozenset[str],
    pooling: PoolingMode = "cls",
    lora_targets: tuple[str, ...] = ("query", "value"),
    ia3_attention: str = "key|value",
    # `output.dense` is the attention's and the feed-forward's; a bare `dense` would be the pooler's and the head's too
    linear_targets: tuple[str, ...] = (
        "query",
        "key",
        "value",
        "intermediate.dense",
        "output.dense",
    ),
    supports_packing: bool = True,
) -> ModelFamily:
    return ModelFamily(
        objective="masked-lm",
        auto_class=transformers.AutoModelForMaskedLM,
        lora_targets=lora_targets,
        linear_targets=linear_targets,
        # `attention.output.dense` ends like the feed-forward's `output.dense`, so the layer number is part of the pattern
        ia3_targets=rf".*\.({ia3_attention}|layer\.\d+\.output\.dense)",
        ia3_feedforward=r".*\.layer\.\d+\.output\.dense",
        pooling=pooling,
        padding_side="right",
        reserved_positions=reserved_positions,
        unsupported_methods=unsupported_methods,
        supports_packing=supports_packing,
    )


WITHOUT_ADAPTION_PROMPT = frozenset({"adaption-prompt"})
WITHOUT_PAST_KEYS = frozenset(
    {"adaption-prompt", "prefix"}
)  # their attention takes no past keys: a prefix is dropped in silence
MPNET_LINEAR_TARGETS = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.o",
    "intermediate.dense",
    "output.dense",
)

MODEL_FAMILIES: dict[str, ModelFamily] = {
    "llama": _create_decoder_family(frozenset()),
    "mistral": _create_decoder_family(frozenset()),
    "qwen2": _create_decoder_family(WITHOUT_ADAPTION_PROMPT),
    "qwen3": _create_decoder_family(WITHOUT_ADAPTION_PROMPT),
    "gemma2": _create_decoder_family(WITHOUT_ADAPTION_PROMPT, "geglu"),
    "bert": _create_encoder_family(0, WITHOUT_ADAPTION_PROMPT),
    "roberta": _create_encoder_family(2, WITHOUT_ADAPTION_PROMPT),
    "xlm-roberta": _create_encoder_family(2, WITHOUT_ADAPTION_PROMPT),
    "mpnet": _create_encoder_family(
        2,
        WITHOUT_PAST_KEYS,
        "mean",
        ("attn.q", "attn.v"),
        r"attn\.k|attn\.v",
        MPNET_LINEAR_TARGETS,
        supports_packing=False,
    ),
    # query, key and value are one projection: LoRA takes it whole, and IA3 cannot leave the queries alone
    "modernbert": _create_encoder_family(
        None, WITHOUT_PAST_KEYS | {"ia3"}, "cls", ("Wqkv",), linear_targets=("Wqkv", "Wo", "Wi")
    ),
}


def check_model_type(model_type: object, location: str) -> str:
    """A ``model_type`` of a config that has a row here.

    Raises:
        BaseModelError: it has none; the message names the nearest that has.
    """
    if isinstance(model_type, str) and model_type in MODEL_FAMILIES:
        return model_type
    near = difflib.get_close_matches(str(model_type), MODEL_FAMILIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BaseModelError(
        f"unknown model_type {model_type!r}",
        location=location,
        hint=f"{hint}known are {', '.join(MODEL_FAMILIES)}",
    )
