"""Adapter methods: spec and base in, peft config out.

A new method is one function and one line in ``ADAPTER_METHODS``.
"""

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
"""A peft config, and where it could not follow the spec to the letter, for the run's record."""

PEFT_TASK_TYPES = {"causal-lm": "CAUSAL_LM", "masked-lm": "FEATURE_EXTRACTION"}
"""peft has no class for masked language models; the one for feature extraction passes everything
through and supports virtual tokens."""

CompositionKind = Literal["added", "alone", "beside"]
"""How a method is combined with others: its update is ``added`` to theirs on the same input; it
needs plain weights below it, ``alone``; or it changes no weight and works ``beside`` them, before
the text or inside the attention."""


@dataclass(frozen=True)
class AdapterMethod:
    """Properties of an adapter method.

    Attributes:
        configure: spec and base to peft config.
        starts_as_identity: a new adapter leaves the base's logits as they are.
        is_mergeable: it can be merged into the base's weights.
        prepends: what it puts before the text: ``inputs`` (vectors, which get logits too), ``keys``
            (and values, in every layer), or nothing.
        composition: how it is combined with others, see ``ADAPTER_COMBINATIONS``.
        mixes_precisions: its float32 weights meet the base's weights in one product, which needs
            autocast where the base is not float32.
        supports_fusion: it adds one low-rank product to a linear layer and nothing else, so that
            ``compute_fused_linear`` can compute it.
    """

    configure: Callable[[Any, FrozenBaseModel], ConfigWithNotices]
    starts_as_identity: bool = False
    is_mergeable: bool = False
    prepends: Literal["nothing", "keys", "inputs"] = "nothing"
    composition: CompositionKind = "alone"
    mixes_precisions: bool = False
    supports_fusion: bool = False


def configure_lora(spec: LoraSpec, base: FrozenBaseModel, **variant: bool) -> ConfigWithNotices:
    """Configure low-rank updates, W + (alpha / rank) B A.

    Hu et al. 2021, arXiv 2106.09685, equation 3. With ``use_rslora=True`` the factor is
    alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732); with ``use_dora=True`` magnitude and
    direction of W are trained apart (Liu et al. 2024, arXiv 2402.09353, equation 5).

    Raises:
        AdapterError: a target matches no linear layer of the base.
    """
    # the output embedding is no target: where it is tied to the input embedding, merging would
    # change both
    output_embedding = base.model.get_output_embeddings()
    linear_names = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output_embedding
    ]
    targets = spec.targets or base.family.lora_targets
    absent = [
        target
        for target in targets
        if not any(f".{name}".endswith(f".{target}") for name in linear_names)
    ]
    if absent:
        suffixes = sorted({name.rpartition(".")[2] for name in linear_names})
        close = difflib.get_close_matches(absent[0], suffixes, n=1)
        suggestion = f"did you mean {close[0]!r}? " if close else ""
        raise AdapterError(
            f"targets {absent} match no linear layer of this {base.model.config.model_type} model",
            location="adapters.targets",
            hint=f"{suggestion}there are {', '.join(suffixes)}",
        )
    # peft types alpha as an integer, and writes it so into the adapter's config
    alpha = int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha
    # A (rank, in) random, B (out, rank) zero: a new adapter changes nothing
    config = peft.LoraConfig(
        task_type=_get_task_type(base),
        r=spec.rank,
        lora_alpha=alpha,
        lora_dropout=spec.dropout,
        target_modules=sorted(set(targets)),
        # biases are the base's, and stay frozen
        bias="none",
        **variant,
    )
    return config, ()


def configure_ia3(spec: Ia3Spec, base: FrozenBaseModel) -> ConfigWithNotices:  # noqa: ARG001
    """Configure trained factors on keys, values and the feed-forward activation.

    IA3, Liu et al. 2022, arXiv 2205.05638, section 3.3.
    """
    # vectors of ones, multiplied onto activations: a new adapter changes nothing
    config = peft.IA3Config(
        task_type=_get_task_type(base),
        target_modules=base.family.ia3_targets,
        # peft scales the input of these, and the output of the other targets
        feedforward_modules=base.family.ia3_feedforward,
    )
    return config, ()


def configure_adaption_prompt(spec: AdaptionPromptSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Configure prompts behind a zero-initialized gate in the topmost layers.

    LLaMA-Adapter, Zhang et al. 2023, arXiv 2303.16199, section 3.
    """
    # the topmost layers, all of them where the base has fewer
    base_layers = int(base.model.config.num_hidden_layers)
    layers = min(spec.layers, base_layers)
    notice = (
        f"adaption-prompt: layers = {spec.layers}, and the base has {base_layers}; all of them are"
        " used"
    )
    # the gate of each layer starts at 0
    config = peft.AdaptionPromptConfig(
        task_type=_get_task_type(base), adapter_len=spec.tokens, adapter_layers=layers
    )
    return config, (notice,) if layers < spec.layers else ()


def configure_prefix_tuning(spec: PrefixSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Configure trained keys and values before every layer.

    Prefix tuning, Li and Liang 2021, arXiv 2101.00190, section 4.
    """
    # one embedding (tokens, layers * 2 * width of keys), read as keys and values
    config = peft.PrefixTuningConfig(
        task_type=_get_task_type(base),
        num_virtual_tokens=spec.tokens,
        # an MLP over the prefix while it is trained (section 4.3); saved without it
        prefix_projection=spec.projection,
    )
    return config, ()


def configure_prompt_tuning(spec: PromptSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Configure trained input vectors, started at random or from a text.

    Prompt tuning, Lester et al. 2021, arXiv 2104.08691, section 2. The text is repeated or cut to
    ``spec.tokens`` tokens.
    """
    # peft draws random prompts from a normal distribution
    initialization = {"prompt_tuning_init": "RANDOM"}
    if spec.init == "text":
        initialization = {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": spec.init_text,
            "tokenizer_name_or_path": str(base.folder),
        }
    config = peft.PromptTuningConfig(
        task_type=_get_task_type(base), num_virtual_tokens=spec.tokens, **initialization
    )
    return config, ()


def configure_p_tuning(spec: PTuningSpec, base: FrozenBaseModel) -> ConfigWithNotices:
    """Configure input vectors that an encoder computes.

    P-tuning, Liu et al. 2021, arXiv 2103.10385, section 3.2.
    """
    # the reference's MLP has two layers and no dropout; dropout of an LSTM sits between its layers,
    # so that one of a single layer has none
    is_lstm = spec.encoder == "lstm"
    layers = spec.layers if is_lstm else 2
    has_dropout = is_lstm and layers > 1
    notice = (
        f"p-tuning: dropout = {spec.dropout:g} is not used by an encoder of {layers} layers"
        f" ({spec.encoder})"
    )
    config = peft.PromptEncoderConfig(
        task_type=_get_task_type(base),
        num_virtual_tokens=spec.tokens,
        encoder_reparameterization_type=spec.encoder.upper(),
        encoder_hidden_size=spec.hidden,
        encoder_num_layers=layers,
        encoder_dropout=spec.dropout if has_dropout else 0.0,
    )
    return config, (notice,) if spec.dropout and not has_dropout else ()


def _get_task_type(base: FrozenBaseModel) -> str:
    return PEFT_TASK_TYPES[base.family.objective]


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


def count_virtual_tokens(spec: AnyAdapterSpec) -> int:
    """Count the positions that an adapter takes before the text, 0 where it prepends nothing."""
    if ADAPTER_METHODS[spec.method].prepends == "nothing":
        return 0
    # specs of methods that prepend have this field
    return int(getattr(spec, "tokens"))  # noqa: B009
