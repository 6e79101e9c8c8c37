"""The known architectures, one row of data each: a new family is a row of ``MODEL_FAMILIES``."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import transformers

from clinpeft.core.errors import BaseModelError

PretrainingObjective = Literal["causal-lm", "masked-lm"]
PoolingMode = Literal["last", "cls", "mean", "max"]


@dataclass(frozen=True)
class ModelFamily:
    """What every model of one architecture has in common.

    Attributes:
        objective: of its pretraining, which its head computes.
        auto_class: the transformers class that loads it with that head.
        lora_targets: suffixes of the query and value projections (Hu et al. 2021, arXiv
            2106.09685, section 4.2).
        linear_targets: suffixes of every linear layer inside the blocks and of none outside them,
            so neither pooler nor head (Dettmers et al. 2023, arXiv 2305.14314, section 4: "all
            linear transformer block layers").
        ia3_targets: regular expression over whole names of the modules that IA3 rescales: keys,
            values, and the activation inside the feed-forward block (Liu et al. 2022, arXiv
            2205.05638, section 3.3).
        ia3_feedforward: regular expression over those of ``ia3_targets`` that are rescaled at
            their input instead of their output.
        pooling: which hidden state is the vector of a sequence.
        padding_side: of its own tokenizers; every function here takes both.
        reserved_positions: rows of the learned position table that no token uses (RoBERTa starts
            at padding_idx + 1 = 2). None: rotary positions, which need no table.
        unsupported_methods: adapter methods that peft cannot apply to it, or applies without any
            effect.
        supports_packing: whether many documents can be packed into one row without padding
            (``runtime.packed_attention``); this is checked when a base is loaded. False: its
            attention does not use transformers' attention interface, and documents are batched
            with others of the same length.
        liger_kernels: names of the liger kernels for it (``runtime.kernels``); empty: there are
            none.
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
    """Return a family with the module names of Llama (Touvron et al. 2023, arXiv 2302.13971)."""
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
    # `output.dense` matches attention and feed-forward; `dense` would match pooler and head too
    linear_targets: tuple[str, ...] = (
        "query",
        "key",
        "value",
        "intermediate.dense",
        "output.dense",
    ),
    supports_packing: bool = True,
) -> ModelFamily:
    """Return a family with the module names of BERT, unless others are given."""
    return ModelFamily(
        objective="masked-lm",
        auto_class=transformers.AutoModelForMaskedLM,
        lora_targets=lora_targets,
        linear_targets=linear_targets,
        # `attention.output.dense` ends like the feed-forward's `output.dense`, so the layer
        # number is part of the pattern
        ia3_targets=rf".*\.({ia3_attention}|layer\.\d+\.output\.dense)",
        ia3_feedforward=r".*\.layer\.\d+\.output\.dense",
        pooling=pooling,
        padding_side="right",
        reserved_positions=reserved_positions,
        unsupported_methods=unsupported_methods,
        supports_packing=supports_packing,
    )


# of these families, peft implements adaption prompts for Llama and Mistral alone
WITHOUT_ADAPTION_PROMPT = frozenset({"adaption-prompt"})
# their attention takes no past keys, so a prefix would be dropped without an error
WITHOUT_PAST_KEYS = frozenset({"adaption-prompt", "prefix"})
MPNET_LINEAR_TARGETS = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.o",
    "intermediate.dense",
    "output.dense",
)

MODEL_FAMILIES: dict[str, ModelFamily] = {
    # decoders
    "llama": _create_decoder_family(frozenset()),
    "mistral": _create_decoder_family(frozenset()),
    "qwen2": _create_decoder_family(WITHOUT_ADAPTION_PROMPT),
    "qwen3": _create_decoder_family(WITHOUT_ADAPTION_PROMPT),
    # Gemma gates with GELU instead of SiLU
    "gemma2": _create_decoder_family(WITHOUT_ADAPTION_PROMPT, "geglu"),
    # encoders; the number is that of reserved rows of the position table
    "bert": _create_encoder_family(0, WITHOUT_ADAPTION_PROMPT),
    "roberta": _create_encoder_family(2, WITHOUT_ADAPTION_PROMPT),
    "xlm-roberta": _create_encoder_family(2, WITHOUT_ADAPTION_PROMPT),
    # its attention does not use transformers' attention interface, so documents are not packed
    "mpnet": _create_encoder_family(
        2,
        WITHOUT_PAST_KEYS,
        "mean",
        ("attn.q", "attn.v"),
        r"attn\.k|attn\.v",
        MPNET_LINEAR_TARGETS,
        supports_packing=False,
    ),
    # query, key and value are one projection: LoRA adapts all of it, and IA3 is not possible,
    # because it would rescale the queries too
    "modernbert": _create_encoder_family(
        None, WITHOUT_PAST_KEYS | {"ia3"}, "cls", ("Wqkv",), linear_targets=("Wqkv", "Wo", "Wi")
    ),
}


def check_model_type(model_type: object, location: str) -> str:
    """Return the ``model_type`` of a config, if it is a known family.

    Args:
        model_type: as the config has it.
        location: of the config, for the error.

    Raises:
        BaseModelError: it is unknown; the hint has the closest known one.
    """
    if isinstance(model_type, str) and model_type in MODEL_FAMILIES:
        return model_type
    raise BaseModelError(
        f"unknown model_type {model_type!r}",
        location=location,
        hint=suggest_known_name(str(model_type), MODEL_FAMILIES),
    )


def suggest_known_name(name: str, known_names: Collection[str], cutoff: float = 0.6) -> str:
    """Return a hint that lists the known names, with the closest one, if any, in front.

    Args:
        name: an unknown name.
        known_names: what is known.
        cutoff: least similarity of the closest one, from 0 to 1 (``difflib``).
    """
    closest = difflib.get_close_matches(name, known_names, n=1, cutoff=cutoff)
    suggestion = f"did you mean {closest[0]!r}? " if closest else ""
    return f"{suggestion}known are {', '.join(known_names)}"
