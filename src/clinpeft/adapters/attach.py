"""Attach what is trained to what is frozen, and keep the two apart: base weights never move, trained weights are always float32.

peft makes every adapter that it activates trainable, freezes what it finds when a second method is put on, and leaves the second of two adapters out
of the forward pass until it is told otherwise. So what is active and what requires a gradient is said here once, at the end, of every tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import peft
import torch
from peft.tuners.adaption_prompt import AdaptedAttention
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict

from clinpeft.adapters import adapter_folder
from clinpeft.adapters.adapter_folder import ADAPTER_WEIGHTS_FILE, SavedAdapter
from clinpeft.adapters.compatibility import check_adapter_combination
from clinpeft.adapters.methods import ADAPTER_METHODS, count_virtual_tokens
from clinpeft.adapters.stack import (
    AttachedAdapter,
    NamedParameters,
    ParameterCounts,
    Stack,
    check_not_quantized,
    describe_shape_differences,
)
from clinpeft.core.errors import AdapterError, RefusedError
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AdapterSpec, AnyAdapterSpec
from clinpeft.runtime.adaption_prompt import use_single_projection
from clinpeft.runtime.fused_lora import fuse_lora_layers

MERGED_ADAPTER_ATTRIBUTE = "clinpeft_folded"
"""The mark on a base's model that carries an adapter in its weights, where nothing else would show it."""

NO_ADAPTER_FOLDERS: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class AdapterRequest:
    """One adapter to attach: its spec, the folder it comes from (None: it is new), whether it is trained, and what of the recipe it overrules."""

    spec: AnyAdapterSpec
    saved_adapter: SavedAdapter | None = None
    trainable: bool = True
    overridden_options: tuple[str, ...] = ()


@dataclass
class AttachState:
    """What has been put on a base so far. ``name_suffix`` tells peft's names of one of several stacks from those of the others."""

    base: FrozenBaseModel
    seed: int
    existing_parameters: set[torch.nn.Parameter]
    adapters: dict[int, AttachedAdapter] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    layer_model: Any = None
    name_suffix: str = ""

    def name_adapter(self, index: int, spec: AnyAdapterSpec) -> str:
        """Position and method."""
        return f"{index + 1}-{spec.method}"


def attach_adapters(
    base: FrozenBaseModel,
    specs: Sequence[AnyAdapterSpec],
    seed: int = 0,
    folders: Mapping[str, Path] = NO_ADAPTER_FOLDERS,
    base_trainable: bool = False,
) -> Stack:
    """Put adapters on a base.

    Args:
        base: from ``models.load``, or from ``models.meta`` to count only.
        specs: first to last; none for the bare base, below a head.
        seed: of the first weights of new adapters; nothing else draws from it, and the global generators stay as they were.
        folders: ``spec.from_run`` -> the adapter folder of that run.
        base_trainable: full fine-tuning: the base without its language-modelling head is trained, as ``base.<name>``; only without adapters.

    Raises:
        AdapterError: a method does not fit the base or the others, an adapter cannot be read, or the base carries a stack already.
        RefusedError: an adapter was trained on another base or above other adapters, or its files were changed; the base is quantized, and weights of
            it are to change.
    """
    stack = build_stack(
        base, [resolve_adapter_request(spec, base, folders) for spec in specs], seed
    )
    return _unfreeze_base(stack) if base_trainable else stack


def build_stack(base: FrozenBaseModel, requests: Sequence[AdapterRequest], seed: int = 0) -> Stack:
    """``attach`` with the folders read already."""
    specs = [each.spec for each in requests]
    check_adapter_combination(specs)
    for spec in specs:
        check_method_support(spec, base)
    check_base_without_adapters(base)
    _check_positions(specs, base)
    site = AttachState(base, seed, set(base.model.parameters()))
    size = sum(parameter.numel() for parameter in site.existing_parameters)
    check_lower_adapters(site, requests)
    _merge_first_adapter(site, requests)
    configs = {
        at: create_peft_config(site, each)
        for at, each in enumerate(requests)
        if not each.spec.merged
    }  # all of them while the layers are plain
    for at in sorted(
        configs, key=lambda at: ADAPTER_METHODS[specs[at].method].composition == "beside"
    ):  # prompts last: they leave the layers' names alone
        site.adapters[at] = add_adapter(site, at, requests[at], configs[at])
    adapters = tuple(site.adapters[at] for at in range(len(requests)))
    _activate_adapters(site, adapters)
    return _finalize_stack(site, adapters, size)


def resolve_adapter_request(
    spec: AnyAdapterSpec, base: FrozenBaseModel, folders: Mapping[str, Path]
) -> AdapterRequest:
    """A spec with the folder it names read, as ``attach`` takes it."""
    if not spec.from_run:
        if not spec.trainable:
            raise AdapterError(
                "trainable = false on a new adapter trains nothing",
                location="adapters.trainable",
                hint="leave it out",
            )
        return AdapterRequest(spec)
    if spec.from_run not in folders:
        hint = "give a run that has an adapter"
        raise AdapterError(
            f"from_run = {spec.from_run!r}, and no adapter folder is known for it",
            location="adapters.from_run",
            hint=hint,
        )
    saved = adapter_folder.read_adapter_folder(base, folders[spec.from_run])
    if saved.spec.method != spec.method:
        message = (
            f"method = {spec.method!r}, and the adapter of {spec.from_run} is {saved.spec.method}"
        )
        raise AdapterError(
            message, location="adapters.method", hint=f'write method = "{saved.spec.method}"'
        )
    standing = {name: getattr(spec, name) for name in AdapterSpec.model_fields}
    return AdapterRequest(
        saved.spec.model_copy(update=standing),
        saved,
        spec.trainable,
        _find_overridden_options(spec, saved.spec),
    )


def _find_overridden_options(spec: AnyAdapterSpec, saved_spec: AnyAdapterSpec) -> tuple[str, ...]:
    """Options that a recipe gives to an earlier adapter, which keeps its own; those at their defaults were not given."""
    fields = {
        name: field
        for name, field in type(spec).model_fields.items()
        if name not in AdapterSpec.model_fields
    }
    differing = [
        name
        for name, field in fields.items()
        if getattr(spec, name) not in (field.default, getattr(saved_spec, name))
    ]
    return tuple(
        f"{name} = {getattr(spec, name)}, and it was trained with {getattr(saved_spec, name)}, which stays"
        for name in differing
    )


def _unfreeze_base(stack: Stack) -> Stack:
    """Full fine-tuning of everything below the head; a pooler that the head does not read is left alone."""
    base = stack.base
    if stack.adapters:
        message = f"base.trainable = true with {len(stack.adapters)} adapters"
        raise AdapterError(
            message, location="base.trainable", hint="train the whole base, or adapters on it"
        )
    check_not_quantized(base, "base.trainable = true")
    if base.precision != torch.float32:
        message = f"base.trainable = true in {str(base.precision).removeprefix('torch.')}, in which small steps are lost"
        raise AdapterError(
            message, location="base.trainable", hint='set base.precision = "float32"'
        )
    trained = {
        f"base.{name}": parameter
        for name, parameter in base.backbone.named_parameters()
        if not name.startswith("pooler.")
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    stack.trained_parameters, stack.counts = (
        trained,
        ParameterCounts(
            sum(parameter.numel() for parameter in trained.values()), stack.counts.base_parameters
        ),
    )
    return stack


# ------------------------------------------------------------------------------------------------------------------------------- putting on


def create_peft_config(state: AttachState, request: AdapterRequest) -> Any:
    """The peft config of one adapter; the layers have to be plain still, to find those that it names."""
    if request.saved_adapter:
        return adapter_folder.load_peft_config(request.saved_adapter, state.base, request.trainable)
    config, notices = ADAPTER_METHODS[request.spec.method].configure(request.spec, state.base)
    state.notices.extend(notices)
    return config


def add_adapter(
    state: AttachState, index: int, request: AdapterRequest, config: Any
) -> AttachedAdapter:
    """One adapter on the base, its weights in place, not yet said whether it is active. Whatever was not there before is the adapter's: it becomes
    float32 where peft made it in the base's precision, because an optimiser's small steps are lost in bfloat16."""
    beside = ADAPTER_METHODS[request.spec.method].composition == "beside"
    peft_name = (
        "default"
        if beside or state.layer_model is None
        else f"adapter{index + 1}{state.name_suffix}"
    )
    devices = [state.base.model.device] if state.base.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_derive_adapter_seed(state.seed, index))
        if peft_name == "default":
            model = create_peft_model(state.base, config)
            use_single_projection(model)
        else:
            model = state.layer_model
            model.add_adapter(peft_name, config)
    if not beside:
        state.layer_model = model
    added = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter not in state.existing_parameters
    }
    for parameter in added.values():
        parameter.data = parameter.data.float()
    state.existing_parameters.update(added.values())
    trained = added if request.trainable and request.spec.active else {}
    saved = request.saved_adapter
    if saved:
        _set_adapter_weights(model, peft_name, saved, added if request.trainable else {})
    kept = saved.files if saved and not trained else {}
    sha256 = saved.sha256 if saved else ""
    return AttachedAdapter(
        state.name_adapter(index, request.spec),
        request.spec,
        model,
        peft_name,
        added,
        trained,
        request.spec.from_run,
        sha256,
        kept,
    )


def _derive_adapter_seed(seed: int, index: int) -> int:
    """The first adapter's is the run's; two adapters that start from the same weights would learn the same."""
    return (
        seed
        if index == 0
        else int(
            np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        )
    )


def create_peft_model(base: FrozenBaseModel, config: Any) -> Any:
    """The base inside a peft model of ``config``."""
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 renamed; the value is right either way
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning
        )
        warnings.filterwarnings(
            "ignore", message="You are trying to modify a model with PEFT for a second time.*"
        )  # a prompt beside a LoRA: yes
        return peft.get_peft_model(base.model, config)


def _set_adapter_weights(
    model: Any, peft_name: str, saved_adapter: SavedAdapter, trained_parameters: NamedParameters
) -> None:
    """Every weight of the folder into the model, and none besides."""
    tensors = adapter_folder.load_adapter_weights(saved_adapter)
    found = get_peft_model_state_dict(model, adapter_name=peft_name, save_embedding_layers=False)
    wanted, given = (
        {name: tuple(tensor.shape) for name, tensor in named.items()} for named in (found, tensors)
    )
    if given != wanted:
        hint = "use the versions in clinpeft.json: a layer may have been renamed since"
        raise AdapterError(
            describe_shape_differences(given, wanted),
            location=str(saved_adapter.folder / ADAPTER_WEIGHTS_FILE),
            hint=hint,
        )
    if trained_parameters and sum(
        parameter.numel() for parameter in trained_parameters.values()
    ) != sum(tensor.numel() for tensor in tensors.values()):
        message = f"the folder holds what the encoder of {saved_adapter.spec.method} made, not the encoder"
        raise AdapterError(
            message,
            location=str(saved_adapter.folder),
            hint="load it frozen, or go on from the run's checkpoint",
        )
    set_peft_model_state_dict(model, tensors, adapter_name=peft_name)


def _activate_adapters(state: AttachState, adapters: Sequence[AttachedAdapter]) -> None:
    """What was asked for is in the forward pass, and nothing else. ``peft.PeftModel.set_adapter`` takes one name only, its ``base_model`` several."""
    inside = [
        adapter for adapter in adapters if adapter.model is not None and not adapter.is_prompt
    ]
    heard = [adapter.peft_name for adapter in inside if adapter.spec.active]
    if heard != [adapter.peft_name for adapter in inside] or len(heard) > 1:
        last = next(
            (adapter.peft_name for adapter in reversed(inside) if adapter.trained_parameters),
            inside[-1].peft_name,
        )
        state.layer_model.set_adapter(last)  # others read this attribute to find what is trained
        state.layer_model.base_model.set_adapter(heard)
    for adapter in adapters:
        if adapter.swaps_attention and adapter.model is not None and not adapter.spec.active:
            adapter.model.base_model.disable_adapter_layers()


def _finalize_stack(
    state: AttachState, adapters: tuple[AttachedAdapter, ...], base_parameter_count: int
) -> Stack:
    """The stack, with every tensor told whether it is trained. Dropout rests until the caller says ``train()``."""
    base = state.base
    trained = {
        name: parameter
        for adapter in adapters
        for name, parameter in adapter.trained_parameters.items()
    }
    moving = set(trained.values())
    for parameter in (*base.model.parameters(), *state.existing_parameters):
        parameter.requires_grad_(parameter in moving)
    inert = [adapter.name for adapter in adapters if not adapter.spec.active]
    state.notices.extend(
        f"{name}: attached and left out of the forward pass, as asked (active = false); it is not trained"
        for name in inert
    )
    counts = ParameterCounts(sum(map(torch.Tensor.numel, moving)), base_parameter_count)
    if state.layer_model is not None:
        fuse_lora_layers(
            state.layer_model,
            [
                adapter.peft_name
                for adapter in adapters
                if ADAPTER_METHODS[adapter.spec.method].supports_fusion
            ],
        )
    stack = Stack(base, adapters, counts, tuple(state.notices), trained, frozenset(inert))
    stack.model.eval()  # a new dropout layer starts in training mode, on an evaluating base
    return stack


# --------------------------------------------------------------------------------------------------------------------------------- folding


def _merge_first_adapter(state: AttachState, requests: Sequence[AdapterRequest]) -> None:
    """The first adapter into the base's weights, where that is asked for: in float32, then rounded; the layers are plain again afterwards."""
    if not requests or not requests[0].spec.merged or requests[0].saved_adapter is None:
        return
    spec, saved, base = requests[0].spec, requests[0].saved_adapter, state.base
    check_not_quantized(base, "adapters.0.merged = true")
    name = state.name_adapter(0, spec)
    model = create_peft_model(base, adapter_folder.load_peft_config(saved, base, trainable=False))
    _set_adapter_weights(model, "default", saved, {})
    folded, worst = [], 0.0
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        layer.eval()
        inside = layer.get_base_layer()
        folded += [
            (parameter, parameter.detach().to("cpu", copy=True))
            for parameter in inside.parameters()
        ]
        layer.float()
        layer.merge(safe_merge=True)
        exact = [parameter.detach().clone() for parameter in inside.parameters()]
        inside.to(base.precision)
        rounded = zip(inside.parameters(), exact, strict=True)
        worst = max(
            worst,
            *(
                float((parameter.detach().float() - weight).abs().max())
                for parameter, weight in rounded
            ),
        )
    model.base_model.unload()
    setattr(base.model, MERGED_ADAPTER_ATTRIBUTE, name)
    if base.precision != torch.float32:
        precision = str(base.precision).removeprefix("torch.")
        state.notices.append(
            f"{name}: folded into {precision} weights; rounding changed a weight by up to {worst:.1e}"
        )
    state.adapters[0] = AttachedAdapter(
        name, spec, None, "default", {}, {}, spec.from_run, saved.sha256, saved.files, tuple(folded)
    )


# ---------------------------------------------------------------------------------------------------------------------------------- checks


def check_lower_adapters(state: AttachState, requests: Sequence[AdapterRequest]) -> None:
    """What a loaded adapter stands on here is what it was trained on; to stand on more than the bare base it knew is said, not forbidden."""
    for at, each in enumerate(requests):
        if each.saved_adapter is None:
            continue
        name = state.name_adapter(at, each.spec)
        state.notices.extend(f"{name}: {option}" for option in each.overridden_options)
        below = tuple(
            under.saved_adapter.sha256 if under.saved_adapter else "" for under in requests[:at]
        )
        if (
            each.saved_adapter.lower_adapter_hashes
            and each.saved_adapter.lower_adapter_hashes != below
        ):
            known, here = (
                _format_hashes(each.saved_adapter.lower_adapter_hashes),
                _format_hashes(below),
            )
            message = f"{name} was trained above {known}, and stands here above {here}"
            raise RefusedError(
                message,
                location=str(each.saved_adapter.folder),
                hint="attach the same adapters below it, in the same order",
            )
        if below and not each.saved_adapter.lower_adapter_hashes:
            state.notices.append(
                f"{name}: trained on the bare base, and stands here above {len(below)} more"
            )


def _format_hashes(hashes: Sequence[str]) -> str:
    return (
        ", ".join(f"sha256 {each[:12]}" if each else "a new one" for each in hashes)
        or "the bare base"
    )


def check_method_support(spec: AnyAdapterSpec, base: FrozenBaseModel) -> None:
    """The method can be done on the base's family."""
    possible = [name for name in ADAPTER_METHODS if name not in base.family.unsupported_methods]
    if spec.method in possible:
        return
    message = f"{spec.method} is not possible on a {base.model.config.model_type} model"
    raise AdapterError(
        message, location="adapters.method", hint=f"possible are {', '.join(possible)}"
    )


def check_base_without_adapters(base: FrozenBaseModel) -> None:
    """The base carries nothing yet."""
    if hasattr(base.model, MERGED_ADAPTER_ATTRIBUTE) or any(
        isinstance(module, BaseTunerLayer | AdaptedAttention) for module in base.model.modules()
    ):
        raise AdapterError(
            "this base carries adapters already",
            location=base.folder.name,
            hint="load the base again for another stack",
        )


def _check_positions(specs: Sequence[AnyAdapterSpec], base: FrozenBaseModel) -> None:
    before = sum(count_virtual_tokens(spec) for spec in specs if spec.active)
    needed = base.max_tokens + before
    if base.max_positions is not None and needed > base.max_positions:
        message = f"{before} virtual tokens and max_tokens = {base.max_tokens} need {needed} positions of {base.max_positions}"
        raise AdapterError(
            message,
            location="adapters.tokens",
            hint=f"set base.max_tokens to at most {base.max_positions - before}",
        )
