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
from clinpeft.adapters.adapter_folder import WEIGHTS, Saved
from clinpeft.adapters.compatibility import check_combination
from clinpeft.adapters.methods import METHODS, virtual_tokens
from clinpeft.adapters.stack import (
    Attached,
    Counts,
    Parameters,
    Stack,
    differences,
    refuse_quantized,
)
from clinpeft.core.errors import AdapterError, RefusedError
from clinpeft.models import Base
from clinpeft.recipe import AdapterSpec, AnyAdapterSpec
from clinpeft.runtime.adaption_prompt import project_once
from clinpeft.runtime.fused_lora import fuse

FOLDED = "clinpeft_folded"
"""The mark on a base's model that carries an adapter in its weights, where nothing else would show it."""

NOWHERE: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class Wanted:
    """One adapter to attach: its spec, the folder it comes from (None: it is new), whether it is trained, and what of the recipe it overrules."""

    spec: AnyAdapterSpec
    saved: Saved | None = None
    trainable: bool = True
    overruled: tuple[str, ...] = ()


@dataclass
class Site:
    """What has been put on a base so far. ``ending`` tells peft's names of one of several stacks from those of the others."""

    base: Base
    seed: int
    taken: set[torch.nn.Parameter]
    adapters: dict[int, Attached] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    layers: Any = None
    ending: str = ""

    def name(self, at: int, spec: AnyAdapterSpec) -> str:
        """Position and method."""
        return f"{at + 1}-{spec.method}"


def attach(
    base: Base,
    specs: Sequence[AnyAdapterSpec],
    seed: int = 0,
    folders: Mapping[str, Path] = NOWHERE,
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
    stack = build(base, [asked_for(spec, base, folders) for spec in specs], seed)
    return _whole_base(stack) if base_trainable else stack


def build(base: Base, wanted: Sequence[Wanted], seed: int = 0) -> Stack:
    """``attach`` with the folders read already."""
    specs = [each.spec for each in wanted]
    check_combination(specs)
    for spec in specs:
        check_possible(spec, base)
    check_bare(base)
    _check_positions(specs, base)
    site = Site(base, seed, set(base.model.parameters()))
    size = sum(parameter.numel() for parameter in site.taken)
    check_below(site, wanted)
    _fold_first(site, wanted)
    configs = {
        at: config_of(site, each) for at, each in enumerate(wanted) if not each.spec.merged
    }  # all of them while the layers are plain
    for at in sorted(
        configs, key=lambda at: METHODS[specs[at].method].joins == "beside"
    ):  # prompts last: they leave the layers' names alone
        site.adapters[at] = put_on(site, at, wanted[at], configs[at])
    adapters = tuple(site.adapters[at] for at in range(len(wanted)))
    _activate(site, adapters)
    return _settled(site, adapters, size)


def asked_for(spec: AnyAdapterSpec, base: Base, given: Mapping[str, Path]) -> Wanted:
    """A spec with the folder it names read, as ``attach`` takes it."""
    if not spec.from_run:
        if not spec.trainable:
            raise AdapterError(
                "trainable = false on a new adapter trains nothing",
                location="adapters.trainable",
                hint="leave it out",
            )
        return Wanted(spec)
    if spec.from_run not in given:
        hint = "give a run that has an adapter"
        raise AdapterError(
            f"from_run = {spec.from_run!r}, and no adapter folder is known for it",
            location="adapters.from_run",
            hint=hint,
        )
    saved = adapter_folder.read(base, given[spec.from_run])
    if saved.spec.method != spec.method:
        message = (
            f"method = {spec.method!r}, and the adapter of {spec.from_run} is {saved.spec.method}"
        )
        raise AdapterError(
            message, location="adapters.method", hint=f'write method = "{saved.spec.method}"'
        )
    standing = {name: getattr(spec, name) for name in AdapterSpec.model_fields}
    return Wanted(
        saved.spec.model_copy(update=standing), saved, spec.trainable, _overruled(spec, saved.spec)
    )


def _overruled(asked: AnyAdapterSpec, saved: AnyAdapterSpec) -> tuple[str, ...]:
    """Options that a recipe gives to an earlier adapter, which keeps its own; those at their defaults were not given."""
    fields = {
        name: field
        for name, field in type(asked).model_fields.items()
        if name not in AdapterSpec.model_fields
    }
    differing = [
        name
        for name, field in fields.items()
        if getattr(asked, name) not in (field.default, getattr(saved, name))
    ]
    return tuple(
        f"{name} = {getattr(asked, name)}, and it was trained with {getattr(saved, name)}, which stays"
        for name in differing
    )


def _whole_base(stack: Stack) -> Stack:
    """Full fine-tuning of everything below the head; a pooler that the head does not read is left alone."""
    base = stack.base
    if stack.adapters:
        message = f"base.trainable = true with {len(stack.adapters)} adapters"
        raise AdapterError(
            message, location="base.trainable", hint="train the whole base, or adapters on it"
        )
    refuse_quantized(base, "base.trainable = true")
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
    stack.trained, stack.counts = (
        trained,
        Counts(sum(parameter.numel() for parameter in trained.values()), stack.counts.base),
    )
    return stack


# ------------------------------------------------------------------------------------------------------------------------------- putting on


def config_of(site: Site, wanted: Wanted) -> Any:
    """The peft config of one adapter; the layers have to be plain still, to find those that it names."""
    if wanted.saved:
        return adapter_folder.configured(wanted.saved, site.base, wanted.trainable)
    config, notices = METHODS[wanted.spec.method].configure(wanted.spec, site.base)
    site.notices.extend(notices)
    return config


def put_on(site: Site, at: int, wanted: Wanted, config: Any) -> Attached:
    """One adapter on the base, its weights in place, not yet said whether it is active. Whatever was not there before is the adapter's: it becomes
    float32 where peft made it in the base's precision, because an optimiser's small steps are lost in bfloat16."""
    beside = METHODS[wanted.spec.method].joins == "beside"
    peft_name = "default" if beside or site.layers is None else f"adapter{at + 1}{site.ending}"
    devices = [site.base.model.device] if site.base.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(site.seed, at))
        if peft_name == "default":
            model = wrapped(site.base, config)
            project_once(model)
        else:
            model = site.layers
            model.add_adapter(peft_name, config)
    if not beside:
        site.layers = model
    added = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter not in site.taken
    }
    for parameter in added.values():
        parameter.data = parameter.data.float()
    site.taken.update(added.values())
    trained = added if wanted.trainable and wanted.spec.active else {}
    saved = wanted.saved
    if saved:
        _fill(model, peft_name, saved, added if wanted.trainable else {})
    kept = saved.files if saved and not trained else {}
    sha256 = saved.sha256 if saved else ""
    return Attached(
        site.name(at, wanted.spec),
        wanted.spec,
        model,
        peft_name,
        added,
        trained,
        wanted.spec.from_run,
        sha256,
        kept,
    )


def _seed(seed: int, at: int) -> int:
    """The first adapter's is the run's; two adapters that start from the same weights would learn the same."""
    return (
        seed
        if at == 0
        else int(np.random.SeedSequence([seed, at]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


def wrapped(base: Base, config: Any) -> Any:
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


def _fill(model: Any, peft_name: str, saved: Saved, trained: Parameters) -> None:
    """Every weight of the folder into the model, and none besides."""
    tensors = adapter_folder.weights(saved)
    found = get_peft_model_state_dict(model, adapter_name=peft_name, save_embedding_layers=False)
    wanted, given = (
        {name: tuple(tensor.shape) for name, tensor in named.items()} for named in (found, tensors)
    )
    if given != wanted:
        hint = "use the versions in clinpeft.json: a layer may have been renamed since"
        raise AdapterError(
            differences(given, wanted), location=str(saved.folder / WEIGHTS), hint=hint
        )
    if trained and sum(parameter.numel() for parameter in trained.values()) != sum(
        tensor.numel() for tensor in tensors.values()
    ):
        message = f"the folder holds what the encoder of {saved.spec.method} made, not the encoder"
        raise AdapterError(
            message,
            location=str(saved.folder),
            hint="load it frozen, or go on from the run's checkpoint",
        )
    set_peft_model_state_dict(model, tensors, adapter_name=peft_name)


def _activate(site: Site, adapters: Sequence[Attached]) -> None:
    """What was asked for is in the forward pass, and nothing else. ``peft.PeftModel.set_adapter`` takes one name only, its ``base_model`` several."""
    inside = [adapter for adapter in adapters if adapter.model is not None and not adapter.prompts]
    heard = [adapter.peft_name for adapter in inside if adapter.spec.active]
    if heard != [adapter.peft_name for adapter in inside] or len(heard) > 1:
        last = next(
            (adapter.peft_name for adapter in reversed(inside) if adapter.trained),
            inside[-1].peft_name,
        )
        site.layers.set_adapter(last)  # others read this attribute to find what is trained
        site.layers.base_model.set_adapter(heard)
    for adapter in adapters:
        if adapter.swaps_attention and adapter.model is not None and not adapter.spec.active:
            adapter.model.base_model.disable_adapter_layers()


def _settled(site: Site, adapters: tuple[Attached, ...], size: int) -> Stack:
    """The stack, with every tensor told whether it is trained. Dropout rests until the caller says ``train()``."""
    base = site.base
    trained = {
        name: parameter for adapter in adapters for name, parameter in adapter.trained.items()
    }
    moving = set(trained.values())
    for parameter in (*base.model.parameters(), *site.taken):
        parameter.requires_grad_(parameter in moving)
    inert = [adapter.name for adapter in adapters if not adapter.spec.active]
    site.notices.extend(
        f"{name}: attached and left out of the forward pass, as asked (active = false); it is not trained"
        for name in inert
    )
    counts = Counts(sum(map(torch.Tensor.numel, moving)), size)
    if site.layers is not None:
        fuse(
            site.layers,
            [adapter.peft_name for adapter in adapters if METHODS[adapter.spec.method].fused],
        )
    stack = Stack(base, adapters, counts, tuple(site.notices), trained, frozenset(inert))
    stack.model.eval()  # a new dropout layer starts in training mode, on an evaluating base
    return stack


# --------------------------------------------------------------------------------------------------------------------------------- folding


def _fold_first(site: Site, wanted: Sequence[Wanted]) -> None:
    """The first adapter into the base's weights, where that is asked for: in float32, then rounded; the layers are plain again afterwards."""
    if not wanted or not wanted[0].spec.merged or wanted[0].saved is None:
        return
    spec, saved, base = wanted[0].spec, wanted[0].saved, site.base
    refuse_quantized(base, "adapters.0.merged = true")
    name = site.name(0, spec)
    model = wrapped(base, adapter_folder.configured(saved, base, trainable=False))
    _fill(model, "default", saved, {})
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
    setattr(base.model, FOLDED, name)
    if base.precision != torch.float32:
        precision = str(base.precision).removeprefix("torch.")
        site.notices.append(
            f"{name}: folded into {precision} weights; rounding changed a weight by up to {worst:.1e}"
        )
    site.adapters[0] = Attached(
        name, spec, None, "default", {}, {}, spec.from_run, saved.sha256, saved.files, tuple(folded)
    )


# ---------------------------------------------------------------------------------------------------------------------------------- checks


def check_below(site: Site, wanted: Sequence[Wanted]) -> None:
    """What a loaded adapter stands on here is what it was trained on; to stand on more than the bare base it knew is said, not forbidden."""
    for at, each in enumerate(wanted):
        if each.saved is None:
            continue
        name = site.name(at, each.spec)
        site.notices.extend(f"{name}: {option}" for option in each.overruled)
        below = tuple(under.saved.sha256 if under.saved else "" for under in wanted[:at])
        if each.saved.below and each.saved.below != below:
            known, here = _short(each.saved.below), _short(below)
            message = f"{name} was trained above {known}, and stands here above {here}"
            raise RefusedError(
                message,
                location=str(each.saved.folder),
                hint="attach the same adapters below it, in the same order",
            )
        if below and not each.saved.below:
            site.notices.append(
                f"{name}: trained on the bare base, and stands here above {len(below)} more"
            )


def _short(hashes: Sequence[str]) -> str:
    return (
        ", ".join(f"sha256 {each[:12]}" if each else "a new one" for each in hashes)
        or "the bare base"
    )


def check_possible(spec: AnyAdapterSpec, base: Base) -> None:
    """The method can be done on the base's family."""
    possible = [name for name in METHODS if name not in base.family.impossible]
    if spec.method in possible:
        return
    message = f"{spec.method} is not possible on a {base.model.config.model_type} model"
    raise AdapterError(
        message, location="adapters.method", hint=f"possible are {', '.join(possible)}"
    )


def check_bare(base: Base) -> None:
    """The base carries nothing yet."""
    if hasattr(base.model, FOLDED) or any(
        isinstance(module, BaseTunerLayer | AdaptedAttention) for module in base.model.modules()
    ):
        raise AdapterError(
            "this base carries adapters already",
            location=base.folder.name,
            hint="load the base again for another stack",
        )


def _check_positions(specs: Sequence[AnyAdapterSpec], base: Base) -> None:
    before = sum(virtual_tokens(spec) for spec in specs if spec.active)
    needed = base.max_tokens + before
    if base.positions is not None and needed > base.positions:
        message = f"{before} virtual tokens and max_tokens = {base.max_tokens} need {needed} positions of {base.positions}"
        raise AdapterError(
            message,
            location="adapters.tokens",
            hint=f"set base.max_tokens to at most {base.positions - before}",
        )
