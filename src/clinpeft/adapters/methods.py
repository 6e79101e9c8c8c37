"""The methods: spec and base in, peft config out. A new method is one function and one line in ``METHODS``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import peft
import torch

from clinpeft.core.errors import AdapterError
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import (
    AdaptionPromptSpec,
    AnyAdapterSpec,
    Ia3Spec,
    LoraSpec,
    PrefixSpec,
    PromptSpec,
    PTuningSpec,
)

PeftConfig = Any  # peft.PeftConfig, which is not typed
ConfigWithNotices = tuple[PeftConfig, tuple[str, ...]]
"""A peft config, and what had to be decided against the letter of the spec, for the record."""

PEFT_TASK_TYPES = {"causal-lm": "CAUSAL_LM", "masked-lm": "FEATURE_EXTRACTION"}
"""peft has no class for masked language models; the one for features passes everything through and knows virtual tokens."""

CompositionKind = Literal["added", "alone", "beside"]
"""How a method lives with others: its update is ``added`` to theirs on the same input; it stands ``alone`` on the weights; it stands ``beside`` the
weights, before the text or inside the attention."""


@dataclass(frozen=True)
class AdapterMethod:
    """What is true of an adapter method.

    Attributes:
        configure: spec and base to peft config.
        starts_as_identity: a new adapter leaves the base's logits as they are.
        is_mergeable: it can be folded into the base's weights.
        prepends: what stands before the text: ``inputs`` (vectors, which get logits too), ``keys`` (and values, in every layer), or nothing.
        composition: how it lives with other adapters, see ``combine.COMBINATIONS``.
        supports_fusion: it adds one low-rank product to a linear layer and nothing else, so that ``fused.fused_linear`` may compute it.
        mixes_precisions: its masters meet the base's weights in one product, which needs autocast where the base is not float32.
    """

    configure: Callable[[Any, FrozenBaseModel], ConfigWithNotices]
    starts_as_identity: bool = False
    is_mergeable: bool = False
    prepends: Literal["nothing", "keys", "inputs"] = "nothing"
    composition: CompositionKind = "alone"
    mixes_precisions: bool = False
    supports_fusion: bool = False


def configure_lora(spec: LoraSpec, base: FrozenBaseModel, **variant: bool) -> ConfigWithNotices:
    """W + (alpha / rank) B A (Hu et al. 2021, equation 3); ``variant`` switches on peft's rsLoRA or DoRA."""
    config = peft.LoraConfig(
        task_type=_get_task_type(base),
        r=spec.rank,
        lora_alpha=int(spec.alpha)
        if spec.alpha == int(spec.alpha)
        else spec.alpha,  # peft types it int
        lora_dropout=spec.dropout,
        target_modules=_resolve_target_modules(spec, base),
        bias="none",
        **variant,
    )
    return config, ()


def configure_ia3(spec: Ia3Spec, base: FrozenBaseModel) -> ConfigWithNotices:  # noqa: ARG001 - every method has the same shape
    """Learned rescaling of keys, values and the feed-forward activation (Liu et al. 2022, equation 1)."""
    family = base.family
    config = peft.IA3Config(
        task_type=_get_task_type(base),
        target_modules=family.ia3_targets,
        feedforward_modules=family.ia3_feedforward,
    )
    return config, ()


def configure_adaption_prompt(spec: AdaptionPromptSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Prompts behind a zero-initialised gate in the topmost layers (Zhang et al. 2023, section 3)."""
    available = int(base.model.config.num_hidden_layers)
    layers = min(spec.layers, available)
    notices = (
        (
            f"adaption-prompt: layers = {spec.layers}, and the base has {available}; all of them are used",
        )
        if layers < spec.layers
        else ()
    )
    return peft.AdaptionPromptConfig(
        task_type=_get_task_type(base), adapter_len=spec.tokens, adapter_layers=layers
    ), notices


def configure_prefix_tuning(spec: PrefixSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Learned keys and values before every layer (Li and Liang 2021, section 4)."""
    return peft.PrefixTuningConfig(
        task_type=_get_task_type(base),
        num_virtual_tokens=spec.tokens,
        prefix_projection=spec.projection,
    ), ()


def configure_prompt_tuning(spec: PromptSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Learned input vectors (Lester et al. 2021, section 2), started at random or from a text, which is repeated or cut to length."""
    start = {"prompt_tuning_init": "RANDOM"}
    if spec.init == "text":
        start = {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": spec.init_text,
            "tokenizer_name_or_path": str(base.folder),
        }
    return peft.PromptTuningConfig(
        task_type=_get_task_type(base), num_virtual_tokens=spec.tokens, **start
    ), ()


def configure_p_tuning(spec: PTuningSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Input vectors made by an encoder (Liu et al. 2021, section 3.2). The MLP of the reference has two layers and no dropout; an LSTM of one layer
    has nowhere to drop, because dropout sits between its layers."""
    recurrent = spec.encoder == "lstm"
    between = recurrent and spec.layers > 1
    unused = [f"dropout = {spec.dropout:g}"] if spec.dropout and not between else []
    notices = tuple(
        f"p-tuning: {what} has no place in a {spec.encoder} of {spec.layers if recurrent else 2} layers"
        for what in unused
    )
    config = peft.PromptEncoderConfig(
        task_type=_get_task_type(base),
        num_virtual_tokens=spec.tokens,
        encoder_reparameterization_type=spec.encoder.upper(),
        encoder_hidden_size=spec.hidden,
        encoder_num_layers=spec.layers if recurrent else 2,
        encoder_dropout=spec.dropout if between else 0.0,
    )
    return config, notices


ADAPTER_METHODS: dict[str, AdapterMethod] = {
    "lora": AdapterMethod(
        configure_lora,
        starts_as_identity=True,
        is_mergeable=True,
        composition="added",
        supports_fusion=True,
    ),
    "rslora": AdapterMethod(
        partial(configure_lora, use_rslora=True),
        starts_as_identity=True,
        is_mergeable=True,
        composition="added",
        supports_fusion=True,
    ),
    "dora": AdapterMethod(
        partial(configure_lora, use_dora=True), starts_as_identity=True, is_mergeable=True
    ),
    "ia3": AdapterMethod(configure_ia3, starts_as_identity=True, is_mergeable=True),
    "adaption-prompt": AdapterMethod(
        configure_adaption_prompt,
        starts_as_identity=True,
        composition="beside",
        mixes_precisions=True,
    ),
    "prefix": AdapterMethod(configure_prefix_tuning, prepends="keys", composition="beside"),
    "prompt": AdapterMethod(configure_prompt_tuning, prepends="inputs", composition="beside"),
    "p-tuning": AdapterMethod(configure_p_tuning, prepends="inputs", composition="beside"),
}


def _get_task_type(base: FrozenBaseModel) -> str:
    return PEFT_TASK_TYPES[base.family.objective]


def _resolve_target_modules(spec: LoraSpec, base: FrozenBaseModel) -> list[str]:
    """The suffixes to adapt, each of which names at least one linear layer inside the model. The output embedding is not one of them: where it is
    tied to the input embedding, merging would change both."""
    output = base.model.get_output_embeddings()
    linear = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    ]
    wanted = spec.targets or base.family.lora_targets
    absent = [
        target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if absent:
        known = sorted({name.rpartition(".")[2] for name in linear})
        near = difflib.get_close_matches(absent[0], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = (
            f"targets {absent} match no linear layer of this {base.model.config.model_type} model"
        )
        raise AdapterError(
            message, location="adapters.targets", hint=f"{hint}there are {', '.join(known)}"
        )
    return sorted(set(wanted))


def count_virtual_tokens(spec: AnyAdapterSpec) -> int:
    """Positions that an adapter takes before the text; 0 for methods that prepend nothing."""
    return 0 if ADAPTER_METHODS[spec.method].prepends == "nothing" else int(getattr(spec, "tokens"))  # noqa: B009 - specs that prepend have it
