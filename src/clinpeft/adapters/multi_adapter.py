"""Several LoRA stacks on one base, trained in one pass: the tokens of each are rows of one flattened batch, and see their own stack only.

What a search tries differs in rank, scale, dropout, targets and first weights, and not in the base, which is most of the work and of the memory
(mLoRA, arXiv 2312.02515). Nothing is averaged or shared between trials: their updates are added to their own rows, so the outputs and gradients of
each are those that it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from clinpeft.adapters.attach import (
    NO_ADAPTER_FOLDERS,
    AdapterRequest,
    AttachState,
    add_adapter,
    check_base_without_adapters,
    check_lower_adapters,
    check_method_support,
    create_peft_config,
    resolve_adapter_request,
)
from clinpeft.adapters.compatibility import check_adapter_combination
from clinpeft.adapters.methods import ADAPTER_METHODS
from clinpeft.adapters.stack import AttachedAdapter, NamedParameters, ParameterCounts, Stack
from clinpeft.core.errors import AdapterError
from clinpeft.models import (
    FrozenBaseModel,
    SequenceLengths,
    has_packed_attention,
    build_packed_inputs,
)
from clinpeft.recipe import AnyAdapterSpec
from clinpeft.runtime.fused_lora import FusedLoraLinear, TokenRoute, TokenRouting, fuse_lora_layers

PackedOutputT = TypeVar("PackedOutputT")


@dataclass(frozen=True)
class PackedInput(Generic[PackedOutputT]):
    """Texts, and what becomes of them.

    Attributes:
        input_ids, attention_mask: (rows, time), as for ``flat``.
        process_output: (tokens, width) what the model says at every token, row by row -> what is made of it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    process_output: Callable[[torch.Tensor], PackedOutputT]


@dataclass(frozen=True)
class TrialAdapters:
    """One stack of several.

    Attributes:
        specs: first to last, as for ``attach``; each of a method that ``METHODS`` says is fused, active and not merged.
        seed: of the first weights, as for ``attach``.
        folders: ``spec.from_run`` -> the adapter folder of that run.
    """

    specs: Sequence[AnyAdapterSpec]
    seed: int = 0
    folders: Mapping[str, Path] = field(default_factory=lambda: NO_ADAPTER_FOLDERS)


@dataclass
class MultiAdapterModel:
    """A base with several stacks on it. Outside of ``route_tokens`` and ``isolate_stack`` it answers as the bare base.

    Attributes:
        base: what all share, frozen.
        stacks: one a trial, whose ``trained`` has the names that it would have alone; to ask, save or merge one, use ``isolate_stack``.
        notices: what is not as it would be alone.
    """

    base: FrozenBaseModel
    stacks: tuple[Stack, ...]
    notices: tuple[str, ...]
    routing: TokenRouting = field(repr=False)

    def train(self, mode: bool = True) -> None:
        """Dropout on or off, in all trials."""
        self.stacks[0].model.train(mode)

    @contextmanager
    def route_tokens(
        self,
        slices: Sequence[slice | None],
        generators: Sequence[torch.Generator | None] | None = None,
        token_count: int | None = None,
    ) -> Iterator[None]:
        """For as long as the block lasts, the base's model reads the flattened tokens of a batch, such as T in (1, T), each trial's with its stack.

        ``joint.base.model`` or ``joint.base.backbone`` is what to ask inside it. Its backward pass may come after it.

        Args:
            slices: of each trial, ``slice(start, stop)``; None: it is not asked. They do not overlap; tokens of none see the bare base.
            generators: of each trial's dropout, on the base's device; one seeded like torch's own draws what the trial alone would draw. None:
                torch's own, one trial after another in each layer.
            token_count: how many there are in all; None: the last slice ends with the batch.

        Raises:
            AdapterError: the slices are not those of the trials, or overlap.
        """
        _check_slices(slices, len(self.stacks))
        drawn = generators or [None] * len(self.stacks)
        ending = max((rows.stop for rows in slices if rows), default=0)
        asked = [
            (stack, TokenRoute(rows, generator))
            for stack, rows, generator in zip(self.stacks, slices, drawn, strict=True)
            if rows
        ]
        routes = {adapter.peft_name: route for stack, route in asked for adapter in stack.adapters}
        with self.routing.route_tokens(routes, ending if token_count is None else token_count):
            yield

    def encode_packed(
        self,
        packed_inputs: Sequence[PackedInput[Any] | None],
        generators: Sequence[torch.Generator | None] | None = None,
        return_logits: bool = False,
    ) -> list[torch.Tensor | None]:
        """``flat`` of every trial's own texts, in one pass.

        Args:
            packed_inputs: of each trial; None: it is not asked.
            generators: as for ``routed``.
            return_logits: whether the model answers with its last layer's scores and not with the vectors below.

        Returns:
            (tokens, width) of each trial that was asked.

        Raises:
            AdapterError: the base cannot read many texts in one row.
        """
        if not has_packed_attention(self.base.model):
            message = (
                f"a {self.base.model.config.model_type} model does not read many texts in one row"
            )
            raise AdapterError(
                message, location="base", hint="train these trials one after another"
            )
        texts = [
            None if each is None else each.input_ids[each.attention_mask != 0]
            for each in packed_inputs
        ]
        lengths = [
            length
            for each in packed_inputs
            if each is not None
            for length in (each.attention_mask != 0).sum(dim=1).tolist()
            if length
        ]
        sizes = [0 if text is None else len(text) for text in texts]
        ends = list(accumulate(sizes))
        slices = [
            None if text is None else slice(end - len(text), end)
            for text, end in zip(texts, ends, strict=True)
        ]
        asked = build_packed_inputs(
            torch.cat([text for text in texts if text is not None]),
            SequenceLengths(tuple(lengths)),
            self.base.first_position,
        )
        with self.route_tokens(slices, generators):
            found = (
                self.base.model(**asked).logits[0]
                if return_logits
                else self.base.backbone(**asked).last_hidden_state[0]
            )
        return [
            None if text is None else part
            for text, part in zip(texts, torch.split(found, sizes), strict=True)
        ]

    @contextmanager
    def isolate_stack(self, trial_index: int) -> Iterator[Stack]:
        """One trial's stack in the forward pass and nothing else, for as long as the block lasts: to score, save or merge it."""
        stack = self.stacks[trial_index]
        layers = [module for module in stack.model.modules() if isinstance(module, BaseTunerLayer)]
        silent, stack.disabled_adapters = stack.disabled_adapters, frozenset()
        _set_active_adapters(layers, [adapter.peft_name for adapter in stack.adapters])
        try:
            yield stack
        finally:
            stack.disabled_adapters = silent
            _set_active_adapters(layers, [])


def attach_stacks(base: FrozenBaseModel, trials: Sequence[TrialAdapters]) -> MultiAdapterModel:
    """Put several stacks on one base.

    Raises:
        AdapterError: a method is not one that can be trained with others, does not fit the base or the others of its stack, or the base carries
            adapters already.
        RefusedError: an adapter was trained on another base or above other adapters, or its files were changed.
    """
    check_base_without_adapters(base)
    wanted = [
        [resolve_adapter_request(spec, base, trial.folders) for spec in trial.specs]
        for trial in trials
    ]
    for each in wanted:
        _check_fusible([one.spec for one in each], base)
    sites = [
        AttachState(base, trial.seed, set(base.model.parameters()), name_suffix=f"-trial{at:04d}")
        for at, trial in enumerate(trials)
    ]
    size = sum(parameter.numel() for parameter in base.model.parameters())
    configs = [
        [create_peft_config(site, one) for one in each]
        for site, each in zip(sites, wanted, strict=True)
    ]  # all of them while the layers are plain
    stacks: list[Stack] = []
    for before, site, each, theirs in zip([None, *sites], sites, wanted, configs, strict=False):
        if before is not None:
            site.layer_model, site.existing_parameters = (
                before.layer_model,
                before.existing_parameters,
            )
        stacks.append(_build_trial_stack(site, each, theirs, size))
    return _finalize_joint_model(base, tuple(stacks), sites[-1])


def _build_trial_stack(
    state: AttachState,
    requests: Sequence[AdapterRequest],
    configs: Sequence[Any],
    base_parameter_count: int,
) -> Stack:
    check_lower_adapters(state, requests)
    adapters = tuple(
        _rename_parameters(add_adapter(state, at, each, config), at)
        for at, (each, config) in enumerate(zip(requests, configs, strict=True))
    )
    trained = {
        name: parameter
        for adapter in adapters
        for name, parameter in adapter.trained_parameters.items()
    }
    counts = ParameterCounts(
        sum(parameter.numel() for parameter in trained.values()), base_parameter_count
    )
    return Stack(
        state.base,
        adapters,
        counts,
        tuple(state.notices),
        trained,
        frozenset(adapter.name for adapter in adapters),
    )


def _rename_parameters(adapter: AttachedAdapter, index: int) -> AttachedAdapter:
    """Its weights under the names that they would have if the stack were alone."""
    own = "default" if index == 0 else f"adapter{index + 1}"

    def named(parameters: NamedParameters) -> NamedParameters:
        return {
            name.replace(f".{adapter.peft_name}.", f".{own}."): parameter
            for name, parameter in parameters.items()
        }

    return replace(
        adapter,
        parameters=named(adapter.parameters),
        trained_parameters=named(adapter.trained_parameters),
    )


def _finalize_joint_model(
    base: FrozenBaseModel, stacks: tuple[Stack, ...], last_state: AttachState
) -> MultiAdapterModel:
    moving = {parameter for stack in stacks for parameter in stack.trained_parameters.values()}
    routing = fuse_lora_layers(
        last_state.layer_model,
        [adapter.peft_name for stack in stacks for adapter in stack.adapters],
    )
    layers = [
        module
        for module in last_state.layer_model.modules()
        if isinstance(module, BaseTunerLayer) and module is not last_state.layer_model.base_model
    ]
    if not all(isinstance(layer, FusedLoraLinear) for layer in layers):
        message = "a layer that is to be adapted is no plain linear layer"
        raise AdapterError(
            message, location="adapters.targets", hint="train these trials one after another"
        )
    _set_active_adapters(layers, [])
    for stack in stacks:
        stack.other_parameters = frozenset(
            parameter
            for other in stacks
            if other is not stack
            for parameter in _list_adapter_parameters(other)
        )
    for parameter in (*base.model.parameters(), *last_state.existing_parameters):
        parameter.requires_grad_(parameter in moving)
    last_state.layer_model.eval()
    return MultiAdapterModel(base, stacks, _describe_base_dropout(base), routing)


def _list_adapter_parameters(stack: Stack) -> list[torch.nn.Parameter]:
    return [parameter for adapter in stack.adapters for parameter in adapter.parameters.values()]


def _set_active_adapters(layers: Sequence[Any], adapter_names: list[str]) -> None:
    """What is active, without a change to what requires a gradient, which peft makes."""
    for layer in layers:
        wanted = {parameter: parameter.requires_grad for parameter in layer.parameters()}
        layer.set_adapter(adapter_names)
        for parameter, required in wanted.items():
            parameter.requires_grad_(required)


def _describe_base_dropout(base: FrozenBaseModel) -> tuple[str, ...]:
    """Dropout of the base itself, which knows nothing of trials."""
    shares = {
        name: value
        for name, value in base.model.config.to_dict().items()
        if "drop" in name and isinstance(value, float) and value > 0
    }
    said = ", ".join(f"{name} = {value:g}" for name, value in sorted(shares.items()))
    return (
        (f"the base drops numbers while training ({said}), drawn for all trials together",)
        if said
        else ()
    )


def _check_fusible(specs: Sequence[AnyAdapterSpec], base: FrozenBaseModel) -> None:
    check_adapter_combination(specs)
    for spec in specs:
        check_method_support(spec, base)
        if not ADAPTER_METHODS[spec.method].supports_fusion or spec.merged or not spec.active:
            able = ", ".join(
                name for name, method in ADAPTER_METHODS.items() if method.supports_fusion
            )
            message = f"{spec.method}{' merged' * spec.merged}{' inactive' * (not spec.active)} cannot be trained together with other trials"
            raise AdapterError(
                message,
                location="adapters.method",
                hint=f"active and unmerged {able} can; train others one after another",
            )
    if not specs:
        raise AdapterError(
            "a trial without adapters", location="adapters", hint="give each trial one at least"
        )


def _check_slices(slices: Sequence[slice | None], trial_count: int) -> None:
    given = sorted((rows.start, rows.stop) for rows in slices if rows)
    apart = all(before[1] <= after[0] for before, after in pairwise(given))
    if (
        len(slices) != trial_count
        or not apart
        or not all(0 <= start <= stop for start, stop in given)
    ):
        message = f"{len(slices)} slices {given} for {trial_count} trials"
        raise AdapterError(
            message,
            location="routed",
            hint="give each trial slice(start, stop) of its tokens, or None, without overlaps",
        )
