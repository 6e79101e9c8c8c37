"""Attaching adapters to a frozen base: base weights never change, trained weights are float32.

peft makes every adapter that it activates trainable, freezes what is there when a second method is
attached, and leaves the second of two adapters out of the forward pass until it is activated. So
what is active, and what requires a gradient, is set here once, at the end, for every tensor.
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
"""Set on a base's model that has an adapter merged into its weights, which nothing else shows."""

NO_ADAPTER_FOLDERS: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class AdapterRequest:
    """One adapter to attach.

    Attributes:
        spec: its options.
        saved_adapter: the folder it comes from; None for a new one.
        trainable: whether it is trained.
        overridden_options: options of the recipe that the saved adapter overrides, as text.
    """

    spec: AnyAdapterSpec
    saved_adapter: SavedAdapter | None = None
    trainable: bool = True
    overridden_options: tuple[str, ...] = ()


@dataclass
class AttachState:
    """What has been attached to a base so far.

    Attributes:
        base: the frozen model.
        seed: of the initial weights of new adapters.
        existing_parameters: all parameters so far; what comes next to them belongs to the adapter
            that is being attached.
        adapters: position -> adapter.
        notices: for the run's record.
        layer_model: the peft model of adapters inside the layers; None while there is none.
        name_suffix: keeps peft's names of one of several stacks apart from those of the others.
    """

    base: FrozenBaseModel
    seed: int
    existing_parameters: set[torch.nn.Parameter]
    adapters: dict[int, AttachedAdapter] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    layer_model: Any = None
    name_suffix: str = ""

    def name_adapter(self, index: int, spec: AnyAdapterSpec) -> str:
        """Name an adapter by position (from 1) and method."""
        return f"{index + 1}-{spec.method}"


def attach_adapters(
    base: FrozenBaseModel,
    specs: Sequence[AnyAdapterSpec],
    seed: int = 0,
    folders: Mapping[str, Path] = NO_ADAPTER_FOLDERS,
    base_trainable: bool = False,
) -> Stack:
    """Attach adapters to a base.

    Args:
        base: from ``models.load_base_model``, or without weights, to count only.
        specs: first to last; none for the bare base, below a head.
        seed: of the initial weights of new adapters; the global generators are left as they were.
        folders: ``spec.from_run`` -> the adapter folder of that run.
        base_trainable: full fine-tuning: the base without its language-modeling head is trained, as
            ``base.<name>``; only without adapters.

    Raises:
        AdapterError: a method does not fit the base or the others, an adapter cannot be read, or
            the base has adapters already.
        RefusedError: an adapter was trained on another base or above other adapters, its files were
            changed, or the weights of a quantized base are to change.
    """
    # all folders are read and checked before anything is changed on the base
    requests = [resolve_adapter_request(spec, base, folders) for spec in specs]
    stack = build_stack(base, requests, seed)
    if base_trainable:
        _unfreeze_base(stack)
    return stack


def build_stack(base: FrozenBaseModel, requests: Sequence[AdapterRequest], seed: int = 0) -> Stack:
    """Attach adapters whose folders have been read; see ``attach_adapters``."""
    specs = [request.spec for request in requests]
    check_adapter_combination(specs)
    for spec in specs:
        check_method_support(spec, base)
    check_base_without_adapters(base)
    # learned position embeddings end at max_positions; rotary ones have no end (None)
    virtual_tokens = sum(count_virtual_tokens(spec) for spec in specs if spec.active)
    positions = base.max_tokens + virtual_tokens
    if base.max_positions is not None and positions > base.max_positions:
        raise AdapterError(
            f"{virtual_tokens} virtual tokens and max_tokens = {base.max_tokens} need {positions}"
            f" positions of {base.max_positions}",
            location="adapters.tokens",
            hint=f"set base.max_tokens to at most {base.max_positions - virtual_tokens}",
        )
    state = AttachState(base, seed, set(base.model.parameters()))
    base_parameters = sum(parameter.numel() for parameter in state.existing_parameters)
    check_lower_adapters(state, requests)
    # before the others, which need plain layers
    _merge_first_adapter(state, requests)
    # all configs first: they name layers, which have other names once an adapter is attached
    configs = {
        index: create_peft_config(state, request)
        for index, request in enumerate(requests)
        if not request.spec.merged
    }
    # prompts last: they leave the names of the layers alone
    for index in sorted(
        configs, key=lambda index: ADAPTER_METHODS[specs[index].method].composition == "beside"
    ):
        state.adapters[index] = add_adapter(state, index, requests[index], configs[index])
    adapters = tuple(state.adapters[index] for index in range(len(requests)))
    return _finalize_stack(state, adapters, base_parameters)


def resolve_adapter_request(
    spec: AnyAdapterSpec, base: FrozenBaseModel, folders: Mapping[str, Path]
) -> AdapterRequest:
    """Read the folder that a spec names, if any.

    Raises:
        AdapterError: the spec fits no adapter, or the folder cannot be read.
        RefusedError: the adapter was trained on another base, or its files were changed.
    """
    if not spec.from_run:
        if not spec.trainable:
            raise AdapterError(
                "trainable = false on a new adapter trains nothing",
                location="adapters.trainable",
                hint="leave it out",
            )
        return AdapterRequest(spec)
    if spec.from_run not in folders:
        raise AdapterError(
            f"no adapter folder is known for from_run = {spec.from_run!r}",
            location="adapters.from_run",
            hint="give a run that has an adapter",
        )
    saved = adapter_folder.read_adapter_folder(base, folders[spec.from_run])
    if saved.spec.method != spec.method:
        raise AdapterError(
            f"method = {spec.method!r}, and the adapter of {spec.from_run} is {saved.spec.method}",
            location="adapters.method",
            hint=f'write method = "{saved.spec.method}"',
        )
    # fields of the base class (merged, active, ...) are the recipe's; those of the method are the
    # saved adapter's, and a recipe that sets them to something else is told so
    overridden = tuple(
        f"{name} = {getattr(spec, name)} is not used: it was trained with"
        f" {getattr(saved.spec, name)}"
        for name, field_info in type(spec).model_fields.items()
        if name not in AdapterSpec.model_fields
        and getattr(spec, name) not in (field_info.default, getattr(saved.spec, name))
    )
    # merged, active, trainable, from_run
    shared_options = {name: getattr(spec, name) for name in AdapterSpec.model_fields}
    return AdapterRequest(
        saved.spec.model_copy(update=shared_options), saved, spec.trainable, overridden
    )


def _unfreeze_base(stack: Stack) -> None:
    """Train everything below the head; a pooler, which the head does not read, stays frozen."""
    base = stack.base
    if stack.adapters:
        raise AdapterError(
            f"base.trainable = true with {len(stack.adapters)} adapters",
            location="base.trainable",
            hint="train the whole base, or adapters on it",
        )
    check_not_quantized(base, "base.trainable = true")
    if base.precision != torch.float32:
        precision = str(base.precision).removeprefix("torch.")
        raise AdapterError(
            f"base.trainable = true in {precision}, in which small steps are lost",
            location="base.trainable",
            hint='set base.precision = "float32"',
        )
    trained = {
        f"base.{name}": parameter
        for name, parameter in base.backbone.named_parameters()
        if not name.startswith("pooler.")
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    trained_parameters = sum(parameter.numel() for parameter in trained.values())
    # the names of a checkpoint: base.layers.0... of the backbone
    stack.trained_parameters = trained
    stack.counts = ParameterCounts(trained_parameters, stack.counts.base_parameters)


def create_peft_config(state: AttachState, request: AdapterRequest) -> Any:
    """Create the peft config of one adapter, while the layers that it names are still plain."""
    if request.saved_adapter:
        return adapter_folder.load_peft_config(request.saved_adapter, state.base, request.trainable)
    config, notices = ADAPTER_METHODS[request.spec.method].configure(request.spec, state.base)
    state.notices.extend(notices)
    return config


def add_adapter(
    state: AttachState, index: int, request: AdapterRequest, config: Any
) -> AttachedAdapter:
    """Add one adapter and its weights; ``_finalize_stack`` activates it.

    New parameters are the adapter's. They become float32 where peft made them in the base's
    precision, because the small steps of an optimizer are lost in bfloat16.
    """
    spec, saved = request.spec, request.saved_adapter
    is_prompt = ADAPTER_METHODS[spec.method].composition == "beside"
    # peft calls the first adapter of a model "default"; a prompt has a model of its own
    is_first = is_prompt or state.layer_model is None
    peft_name = "default" if is_first else f"adapter{index + 1}{state.name_suffix}"
    # the first adapter has the run's seed; two adapters with the same initial weights would get the
    # same gradients
    seed = state.seed if index == 0 else derive_torch_seed(state.seed, index)
    device = state.base.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if is_first:
            model = create_peft_model(state.base, config)
            # an adaption prompt projects queries once, where peft's does so twice
            use_single_projection(model)
        else:
            model = state.layer_model
            model.add_adapter(peft_name, config)
    if not is_prompt:
        state.layer_model = model
    # parameters hash by identity, so that tied weights count once
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter not in state.existing_parameters
    }
    # .data keeps the parameter object, which peft and the optimizer refer to
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    state.existing_parameters.update(parameters.values())
    if saved:
        _set_adapter_weights(model, peft_name, saved, parameters if request.trainable else {})
    # an inactive adapter is in no forward pass, and would get no gradient
    trained = parameters if request.trainable and spec.active else {}
    return AttachedAdapter(
        state.name_adapter(index, spec),
        spec,
        model,
        peft_name,
        parameters,
        trained,
        spec.from_run,
        saved.sha256 if saved else "",
        saved.files if saved and not trained else {},
    )


def derive_torch_seed(*entropy: int) -> int:
    """Derive a seed for torch from several numbers; below 2**63, which torch requires."""
    # SeedSequence mixes its numbers, so that neighboring seeds give unrelated states
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def create_peft_model(base: FrozenBaseModel, config: Any) -> Any:
    """Wrap the base in a peft model of ``config``."""
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 renamed; the value is right either way
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning
        )
        # a prompt in addition to a LoRA is intended
        warnings.filterwarnings(
            "ignore", message="You are trying to modify a model with PEFT for a second time.*"
        )
        return peft.get_peft_model(base.model, config)


def _set_adapter_weights(
    model: Any, peft_name: str, saved_adapter: SavedAdapter, trained_parameters: NamedParameters
) -> None:
    """Load every weight of the folder into the model, and check that none is missing."""
    tensors = adapter_folder.load_adapter_weights(saved_adapter)
    state = get_peft_model_state_dict(model, adapter_name=peft_name, save_embedding_layers=False)
    # peft loads what is there and leaves the rest at initial values, so names are compared here
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if actual != expected:
        raise AdapterError(
            describe_shape_differences(actual, expected),
            location=str(saved_adapter.folder / ADAPTER_WEIGHTS_FILE),
            hint="use the versions in clinpeft.json: a layer may have been renamed since",
        )
    # peft saves the output of an encoder (P-tuning, projected prefix), which cannot be trained on
    saved_numbers = sum(tensor.numel() for tensor in tensors.values())
    trained_numbers = sum(parameter.numel() for parameter in trained_parameters.values())
    if trained_parameters and trained_numbers != saved_numbers:
        raise AdapterError(
            f"the folder holds the output of the encoder of {saved_adapter.spec.method}, not the"
            " encoder",
            location=str(saved_adapter.folder),
            hint="load it frozen, or resume from the run's checkpoint",
        )
    set_peft_model_state_dict(model, tensors, adapter_name=peft_name)


def _finalize_stack(
    state: AttachState, adapters: tuple[AttachedAdapter, ...], base_parameters: int
) -> Stack:
    """Activate the active adapters, and set for every tensor whether it requires a gradient."""
    attached = [adapter for adapter in adapters if adapter.model is not None]
    # LoRA, DoRA and IA3 share one peft model, whose active adapters are a list
    in_layers = [adapter for adapter in attached if not adapter.is_prompt]
    active_names = [adapter.peft_name for adapter in in_layers if adapter.spec.active]
    if len(active_names) > 1 or len(active_names) != len(in_layers):
        # PeftModel.set_adapter takes one name, and other code reads it to learn what is trained;
        # its base_model takes several, and decides what is in the forward pass
        trained_names = [adapter.peft_name for adapter in in_layers if adapter.trained_parameters]
        state.layer_model.set_adapter((trained_names or [in_layers[-1].peft_name])[-1])
        state.layer_model.base_model.set_adapter(active_names)
    for adapter in attached:
        # an adaption prompt is active as soon as it is attached
        if adapter.swaps_attention and not adapter.spec.active and adapter.model is not None:
            adapter.model.base_model.disable_adapter_layers()
    trained = {
        name: parameter
        for adapter in adapters
        for name, parameter in adapter.trained_parameters.items()
    }
    # the one place that decides what requires a gradient
    trained_set = set(trained.values())
    for parameter in (*state.base.model.parameters(), *state.existing_parameters):
        parameter.requires_grad_(parameter in trained_set)
    inert = [adapter.name for adapter in adapters if not adapter.spec.active]
    state.notices += [
        f"{name}: attached and left out of the forward pass (active = false); it is not trained"
        for name in inert
    ]
    if state.layer_model is not None:
        fusible = [
            adapter.peft_name
            for adapter in adapters
            if ADAPTER_METHODS[adapter.spec.method].supports_fusion
        ]
        # replaces peft's LoRA layers by runtime.fused_lora, with the same parameters
        fuse_lora_layers(state.layer_model, fusible)
    # a set, so that tied weights count once
    counts = ParameterCounts(sum(map(torch.Tensor.numel, trained_set)), base_parameters)
    stack = Stack(state.base, adapters, counts, tuple(state.notices), trained, frozenset(inert))
    # a new dropout layer starts in training mode, also on a base in evaluation mode
    stack.model.eval()
    return stack


def _merge_first_adapter(state: AttachState, requests: Sequence[AdapterRequest]) -> None:
    """Merge the first adapter into the base's weights where its spec says so.

    The sum is computed in float32 and then rounded; the layers are plain again afterwards.
    """
    if not requests or not requests[0].spec.merged or requests[0].saved_adapter is None:
        return
    spec, saved, base = requests[0].spec, requests[0].saved_adapter, state.base
    check_not_quantized(base, "adapters.0.merged = true")
    name = state.name_adapter(0, spec)
    model = create_peft_model(base, adapter_folder.load_peft_config(saved, base, trainable=False))
    _set_adapter_weights(model, "default", saved, {})
    # (parameter, weights before) pairs, on the CPU, for disable_adapter
    originals, largest_rounding = [], 0.0
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        # DoRA and LoRA dropout apply in training mode only
        layer.eval()
        linear = layer.get_base_layer()
        # merging changes the data of a parameter, so that its identity survives the merge
        originals += [
            (parameter, parameter.detach().to("cpu", copy=True))
            for parameter in linear.parameters()
        ]
        # W + s B A in float32 (Hu et al. 2021, equation 3)
        layer.float()
        layer.merge(safe_merge=True)
        exact_weights = [parameter.detach().clone() for parameter in linear.parameters()]
        # rounded once, to the precision that the base is used in
        linear.to(base.precision)
        for parameter, exact in zip(linear.parameters(), exact_weights, strict=True):
            rounding = float((parameter.detach().float() - exact).abs().max())
            largest_rounding = max(largest_rounding, rounding)
    # removes the wrappers; the merged weights stay
    model.base_model.unload()
    # a second stack on these weights would take them for the base's
    setattr(base.model, MERGED_ADAPTER_ATTRIBUTE, name)
    if base.precision != torch.float32:
        precision = str(base.precision).removeprefix("torch.")
        state.notices.append(
            f"{name}: merged into {precision} weights; rounding changed a weight by up to"
            f" {largest_rounding:.1e}"
        )
    state.adapters[0] = AttachedAdapter(
        name,
        spec,
        None,
        "default",
        {},
        {},
        spec.from_run,
        saved.sha256,
        saved.files,
        tuple(originals),
    )


def check_lower_adapters(state: AttachState, requests: Sequence[AdapterRequest]) -> None:
    """Check that a saved adapter is attached above the adapters it was trained on.

    One that was trained on the bare base may be attached above others; a notice says so.

    Raises:
        RefusedError: the adapters below it are others.
    """
    for index, request in enumerate(requests):
        saved = request.saved_adapter
        if saved is None:
            continue
        name = state.name_adapter(index, request.spec)
        state.notices += [f"{name}: {option}" for option in request.overridden_options]
        # the empty string for a new adapter, which has no weights to compare yet
        lower_hashes = tuple(
            lower.saved_adapter.sha256 if lower.saved_adapter else "" for lower in requests[:index]
        )
        if saved.lower_adapter_hashes and saved.lower_adapter_hashes != lower_hashes:
            trained_above, attached_above = (
                ", ".join(f"sha256 {digest[:12]}" if digest else "a new one" for digest in hashes)
                or "the bare base"
                for hashes in (saved.lower_adapter_hashes, lower_hashes)
            )
            raise RefusedError(
                f"{name} was trained above {trained_above}, and is attached above {attached_above}",
                location=str(saved.folder),
                hint="attach the same adapters below it, in the same order",
            )
        if lower_hashes and not saved.lower_adapter_hashes:
            state.notices.append(
                f"{name}: trained on the bare base, and attached above {len(lower_hashes)} adapters"
            )


def check_method_support(spec: AnyAdapterSpec, base: FrozenBaseModel) -> None:
    """Check that a method is possible on the base's family.

    Raises:
        AdapterError: it is not; the hint names those that are.
    """
    # such as adaption prompts, which peft knows for LLaMA-like attention only
    possible = [name for name in ADAPTER_METHODS if name not in base.family.unsupported_methods]
    if spec.method not in possible:
        raise AdapterError(
            f"{spec.method} is not possible on a {base.model.config.model_type} model",
            location="adapters.method",
            hint=f"possible are {', '.join(possible)}",
        )


def check_base_without_adapters(base: FrozenBaseModel) -> None:
    """Check that nothing is attached to a base yet.

    Raises:
        AdapterError: it has adapters.
    """
    if hasattr(base.model, MERGED_ADAPTER_ATTRIBUTE) or any(
        isinstance(module, BaseTunerLayer | AdaptedAttention) for module in base.model.modules()
    ):
        raise AdapterError(
            "this base has adapters already",
            location=base.folder.name,
            hint="load the base again for another stack",
        )
