"""The known architectures, one row of data each: a new family is one line in ``FAMILIES``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import transformers

from clinpeft.core.errors import BaseModelError

Objective = Literal["causal-lm", "masked-lm"]
Pooling = Literal["last", "cls", "mean", "max"]


@dataclass(frozen=True)
class Family:
    """What is true of every model of one architecture.

    Attributes:
        objective: what its pretraining head answers.
        auto: the transformers class that loads it with that head.
        lora_targets: suffixes of the query and value projections (Hu et al. 2021, section 4.2).
        linear_targets: suffixes of every linear layer inside the blocks, and of none outside them: no pooler, no head (Dettmers et al. 2023,
            section 4, "all linear layers").
        ia3_targets, ia3_feedforward: regular expressions over whole module names: all that IA3 rescales, and the part of it that is rescaled at
            its input (Liu et al. 2022, equation 1: keys, values, and the activation inside the feed-forward block).
        pooling: where a sentence's vector is read.
        padding_side: where its own tokenizers pad; ``adapters.logits`` takes both.
        reserved_positions: rows of the learned position table that no token uses (RoBERTa starts at padding_idx + 1 = 2). None: rotary positions,
            which have no table to run out of.
        impossible: adapter methods that peft cannot do on it, or does without any effect.
        flattens: many documents of it can stand in one row without padding (``models.attention``), which is tried when a base is loaded. False: its
            attention does not follow transformers' interface, and documents go side by side with those of the same length.
        kernels: what of it liger has a kernel for, as liger names it (``models.kernels``); empty: it does not know the family.
    """

    objective: Objective
    auto: Any
    lora_targets: tuple[str, ...]
    linear_targets: tuple[str, ...]
    ia3_targets: str
    ia3_feedforward: str
    pooling: Pooling
    padding_side: Literal["left", "right"]
    reserved_positions: int | None = None
    impossible: frozenset[str] = frozenset()
    flattens: bool = True
    kernels: tuple[str, ...] = ()


def _decoder(impossible: frozenset[str], gate: str = "swiglu") -> Family:
    return Family(
        objective="causal-lm",
        auto=transformers.AutoModelForCausalLM,
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
        impossible=impossible,
        kernels=("rms_norm", gate),
    )


def _encoder(
    reserved_positions: int | None,
    impossible: frozenset[str],
    pooling: Pooling = "cls",
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
    flattens: bool = True,
) -> Family:
    return Family(
        objective="masked-lm",
        auto=transformers.AutoModelForMaskedLM,
        lora_targets=lora_targets,
        linear_targets=linear_targets,
        # `attention.output.dense` ends like the feed-forward's `output.dense`, so the layer number is part of the pattern
        ia3_targets=rf".*\.({ia3_attention}|layer\.\d+\.output\.dense)",
        ia3_feedforward=r".*\.layer\.\d+\.output\.dense",
        pooling=pooling,
        padding_side="right",
        reserved_positions=reserved_positions,
        impossible=impossible,
        flattens=flattens,
    )


NO_PROMPT_IN_ATTENTION = frozenset({"adaption-prompt"})
NO_KEYS_FROM_OUTSIDE = frozenset(
    {"adaption-prompt", "prefix"}
)  # their attention takes no past keys: a prefix is dropped in silence
MPNET_LINEAR = ("attn.q", "attn.k", "attn.v", "attn.o", "intermediate.dense", "output.dense")

FAMILIES: dict[str, Family] = {
    "llama": _decoder(frozenset()),
    "mistral": _decoder(frozenset()),
    "qwen2": _decoder(NO_PROMPT_IN_ATTENTION),
    "qwen3": _decoder(NO_PROMPT_IN_ATTENTION),
    "gemma2": _decoder(NO_PROMPT_IN_ATTENTION, "geglu"),
    "bert": _encoder(0, NO_PROMPT_IN_ATTENTION),
    "roberta": _encoder(2, NO_PROMPT_IN_ATTENTION),
    "xlm-roberta": _encoder(2, NO_PROMPT_IN_ATTENTION),
    "mpnet": _encoder(
        2,
        NO_KEYS_FROM_OUTSIDE,
        "mean",
        ("attn.q", "attn.v"),
        r"attn\.k|attn\.v",
        MPNET_LINEAR,
        flattens=False,
    ),
    # query, key and value are one projection: LoRA takes it whole, and IA3 cannot leave the queries alone
    "modernbert": _encoder(
        None, NO_KEYS_FROM_OUTSIDE | {"ia3"}, "cls", ("Wqkv",), linear_targets=("Wqkv", "Wo", "Wi")
    ),
}


def known_type(model_type: object, location: str) -> str:
    """A ``model_type`` of a config that has a row here.

    Raises:
        BaseModelError: it has none; the message names the nearest that has.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise BaseModelError(
        f"unknown model_type {model_type!r}",
        location=location,
        hint=f"{hint}known are {', '.join(FAMILIES)}",
    )
