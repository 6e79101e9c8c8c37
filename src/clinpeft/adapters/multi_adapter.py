"""Several LoRA stacks on one base, trained in one pass over a packed batch.

The trials of a search differ in rank, scale, dropout, targets and initial weights, and not in the
base, which is most of the work and of the memory (mLoRA, arXiv 2312.02515). The tokens of each
trial are rows of one packed batch and see their own stack only. Nothing is averaged or shared:
updates are added to the rows of their trial, so that its outputs and gradients are those that it
would have alone.
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
from clinpeft.adapters.stack import ParameterCounts, Stack
from clinpeft.core.errors import AdapterError
from clinpeft.models import (
    FrozenBaseModel,
    SequenceLengths,
    build_packed_inputs,
    has_packed_attention,
)
from clinpeft.recipe import AnyAdapterSpec
from clinpeft.runtime.fused_lora import FusedLoraLinear, TokenRoute, TokenRouting, fuse_lora_layers

PackedOutputT = TypeVar("PackedOutputT")


@dataclass(frozen=True)
class PackedInput(Generic[PackedOutputT]):
    """Texts for a packed forward pass, and what is computed from its output.

    Attributes:
        input_ids, attention_mask: (rows, time), as for ``compute_packed_hidden_states``.
        process_output: called with the model's output at every token, (tokens, width), row by row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    process_output: Callable[[torch.Tensor], PackedOutputT]


@dataclass(frozen=True)
class TrialAdapters:
    """The adapters of one of several trials.

    Attributes:
        specs: first to last, as for ``attach_adapters``; each of a method that supports fusion,
            active and not merged.
        seed: of the initial weights, as for ``attach_adapters``.
        folders: ``spec.from_run`` -> the adapter folder of that run.
    """

    specs: Sequence[AnyAdapterSpec]
    seed: int = 0
    folders: Mapping[str, Path] = field(default_factory=lambda: NO_ADAPTER_FOLDERS)


@dataclass
class MultiAdapterModel:
    """A base with several stacks on it.

    Outside of ``route_tokens`` and ``isolate_stack`` it computes what the bare base computes.

    Attributes:
        base: the frozen model that all share.
        stacks: one for each trial, whose ``trained_parameters`` have the names that they would have
            alone; evaluate, save or merge one inside ``isolate_stack``.
        notices: what differs from training each trial alone.
        routing: which tokens each adapter is applied to.
    """

    base: FrozenBaseModel
    stacks: tuple[Stack, ...]
    notices: tuple[str, ...]
    routing: TokenRouting = field(repr=False)

    def train(self, mode: bool = True) -> None:
        """Turn dropout on or off, in all trials."""
        self.stacks[0].model.train(mode)

    @contextmanager
    def route_tokens(
        self,
        slices: Sequence[slice | None],
        generators: Sequence[torch.Generator | None] | None = None,
        token_count: int | None = None,
    ) -> Iterator[None]:
        """Apply each trial's stack to its own tokens of a packed batch (1, tokens), in the block.

        Call ``base.model`` or ``base.backbone`` inside the block. The backward pass may come after
        it.

        Args:
            slices: of each trial, ``slice(start, stop)`` of its tokens, without overlaps; None for
                a trial without tokens. Tokens of no trial see the bare base.
            generators: of each trial's dropout, on the base's device; one seeded like torch's own
                generator gives the masks that the trial alone would have. None: torch's own
                generator, one trial after another in each layer.
            token_count: of the batch; None: the last slice ends with the batch.

        Raises:
            AdapterError: the slices are not those of the trials, or overlap.
        """
        # sorted by start, so that an overlap is one of neighbors
        bounds = sorted((tokens.start, tokens.stop) for tokens in slices if tokens)
        if (
            len(slices) != len(self.stacks)
            or any(left[1] > right[0] for left, right in pairwise(bounds))
            or not all(0 <= start <= stop for start, stop in bounds)
        ):
            raise AdapterError(
                f"{len(slices)} slices {bounds} for {len(self.stacks)} trials",
                location="slices",
                hint="give each trial slice(start, stop) of its tokens, or None, without overlaps",
            )
        # tokens after the last slice would be those of no trial
        if token_count is None:
            token_count = max((stop for _, stop in bounds), default=0)
        trials = zip(self.stacks, slices, generators or [None] * len(self.stacks), strict=True)
        # peft names of several stacks on one base are unique (AttachState.name_suffix)
        routes = {
            adapter.peft_name: TokenRoute(tokens, generator)
            for stack, tokens, generator in trials
            if tokens
            for adapter in stack.adapters
        }
        # adapters without a route are left out of the pass
        with self.routing.route_tokens(routes, token_count):
            yield

    def encode_packed(
        self,
        packed_inputs: Sequence[PackedInput[Any] | None],
        generators: Sequence[torch.Generator | None] | None = None,
        return_logits: bool = False,
    ) -> list[torch.Tensor | None]:
        """Compute ``compute_packed_hidden_states`` of every trial's own texts, in one pass.

        Args:
            packed_inputs: of each trial; None for a trial without texts.
            generators: as for ``route_tokens``.
            return_logits: whether to return the output of the model's head, (tokens, vocabulary),
                and not the hidden states below it.

        Returns:
            (tokens, width) of each trial with texts.

        Raises:
            AdapterError: the base does not support packed texts.
        """
        if not has_packed_attention(self.base.model):
            raise AdapterError(
                f"a {self.base.model.config.model_type} model does not support packed texts",
                location="base",
                hint="train these trials one after another",
            )
        token_ids = [
            None if packed is None else packed.input_ids[packed.attention_mask != 0]
            for packed in packed_inputs
        ]  # (tokens,) of each trial
        # of every text of every trial, in the order of the packed row
        lengths = [
            length
            for packed in packed_inputs
            if packed is not None
            for length in (packed.attention_mask != 0).sum(dim=1).tolist()
            if length
        ]
        # tokens of each trial, whose slices follow one another
        sizes = [0 if ids is None else len(ids) for ids in token_ids]
        slices = [
            None if ids is None else slice(stop - len(ids), stop)
            for ids, stop in zip(token_ids, accumulate(sizes), strict=True)
        ]
        # one row of all tokens (1, tokens); position ids start again with every text
        inputs = build_packed_inputs(
            torch.cat([ids for ids in token_ids if ids is not None]),
            SequenceLengths(tuple(lengths)),
            self.base.first_position,
        )
        with self.route_tokens(slices, generators):
            output = (
                self.base.model(**inputs).logits[0]
                if return_logits
                else self.base.backbone(**inputs).last_hidden_state[0]
            )  # (tokens of all trials, width)
        return [
            None if ids is None else part
            for ids, part in zip(token_ids, torch.split(output, sizes), strict=True)
        ]

    @contextmanager
    def isolate_stack(self, trial_index: int) -> Iterator[Stack]:
        """Activate one trial's stack alone in the block, to evaluate, save or merge it."""
        stack = self.stacks[trial_index]
        layers = [module for module in stack.model.modules() if isinstance(module, BaseTunerLayer)]
        # outside of this block every adapter is off, and routing decides instead
        disabled, stack.disabled_adapters = stack.disabled_adapters, frozenset()
        _set_active_adapters(layers, [adapter.peft_name for adapter in stack.adapters])
        try:
            yield stack
        finally:
            stack.disabled_adapters = disabled
            _set_active_adapters(layers, [])


def attach_stacks(base: FrozenBaseModel, trials: Sequence[TrialAdapters]) -> MultiAdapterModel:
    """Attach several stacks to one base.

    Raises:
        AdapterError: a method cannot be trained with other trials, does not fit the base or the
            others of its stack, or the base has adapters already.
        RefusedError: an adapter was trained on another base or above other adapters, or its files
            were changed.
    """
    check_base_without_adapters(base)
    requests = [
        [resolve_adapter_request(spec, base, trial.folders) for spec in trial.specs]
        for trial in trials
    ]
    for trial_requests in requests:
        _check_fusible([request.spec for request in trial_requests], base)
    # shared by all states: what one trial adds is not new for the next
    existing_parameters = set(base.model.parameters())
    base_parameters = sum(parameter.numel() for parameter in existing_parameters)
    states = [
        AttachState(base, trial.seed, existing_parameters, name_suffix=f"-trial{index:04d}")
        for index, trial in enumerate(trials)
    ]
    # all configs first: they name layers, which have other names once an adapter is attached
    configs = [
        [create_peft_config(state, request) for request in trial_requests]
        for state, trial_requests in zip(states, requests, strict=True)
    ]
    stacks: list[Stack] = []
    layer_model: Any = None
    for state, trial_requests, trial_configs in zip(states, requests, configs, strict=True):
        state.layer_model = layer_model
        stacks.append(_build_trial_stack(state, trial_requests, trial_configs, base_parameters))
        layer_model = state.layer_model
    return _finalize_joint_model(base, tuple(stacks), states[-1])


def _build_trial_stack(
    state: AttachState,
    requests: Sequence[AdapterRequest],
    configs: Sequence[Any],
    base_parameters: int,
) -> Stack:
    check_lower_adapters(state, requests)
    adapters = []
    for index, (request, config) in enumerate(zip(requests, configs, strict=True)):
        adapter = add_adapter(state, index, request, config)
        # the names that the weights would have in a stack alone, under which they are saved
        name_alone = "default" if index == 0 else f"adapter{index + 1}"
        renamed, renamed_trained = (
            {
                name.replace(f".{adapter.peft_name}.", f".{name_alone}."): parameter
                for name, parameter in parameters.items()
            }
            for parameters in (adapter.parameters, adapter.trained_parameters)
        )
        adapters.append(replace(adapter, parameters=renamed, trained_parameters=renamed_trained))
    trained = {
        name: parameter
        for adapter in adapters
        for name, parameter in adapter.trained_parameters.items()
    }
    counts = ParameterCounts(
        sum(parameter.numel() for parameter in trained.values()), base_parameters
    )
    # all are disabled until isolate_stack activates them, or route_tokens routes to them
    names = frozenset(adapter.name for adapter in adapters)
    return Stack(state.base, tuple(adapters), counts, tuple(state.notices), trained, names)


def _finalize_joint_model(
    base: FrozenBaseModel, stacks: tuple[Stack, ...], last_state: AttachState
) -> MultiAdapterModel:
    layer_model = last_state.layer_model
    peft_names = [adapter.peft_name for stack in stacks for adapter in stack.adapters]
    # each fused layer adds the update of an adapter to the rows of its trial only
    routing = fuse_lora_layers(layer_model, peft_names)
    layers = [
        module
        for module in layer_model.modules()
        if isinstance(module, BaseTunerLayer) and module is not layer_model.base_model
    ]
    # a layer that is not fused would apply its update to the rows of all trials
    if not all(isinstance(layer, FusedLoraLinear) for layer in layers):
        raise AdapterError(
            "a layer that is to be adapted is no plain linear layer",
            location="adapters.targets",
            hint="train these trials one after another",
        )
    _set_active_adapters(layers, [])
    # frozen adapters of other trials too: they are not this stack's to keep unchanged
    adapter_parameters = [
        {parameter for adapter in stack.adapters for parameter in adapter.parameters.values()}
        for stack in stacks
    ]
    for stack, parameters in zip(stacks, adapter_parameters, strict=True):
        stack.other_parameters = frozenset(set().union(*adapter_parameters) - parameters)
    # of all trials: one backward pass gives each its gradients
    trained = {parameter for stack in stacks for parameter in stack.trained_parameters.values()}
    # as in _finalize_stack: the one place that decides
    for parameter in (*base.model.parameters(), *last_state.existing_parameters):
        parameter.requires_grad_(parameter in trained)
    layer_model.eval()
    # dropout of the base itself draws one mask for all rows, whatever trial they belong to
    dropout = {
        name: value
        for name, value in sorted(base.model.config.to_dict().items())
        if "drop" in name and isinstance(value, float) and value > 0
    }
    settings = ", ".join(f"{name} = {value:g}" for name, value in dropout.items())
    notice = f"the base has dropout of its own ({settings}), drawn for all trials together"
    return MultiAdapterModel(base, stacks, (notice,) if dropout else (), routing)


def _set_active_adapters(layers: Sequence[Any], adapter_names: list[str]) -> None:
    """Set the active adapters without changing what requires a gradient, as peft does."""
    for layer in layers:
        requires_grad = {parameter: parameter.requires_grad for parameter in layer.parameters()}
        layer.set_adapter(adapter_names)
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)


def _check_fusible(specs: Sequence[AnyAdapterSpec], base: FrozenBaseModel) -> None:
    check_adapter_combination(specs)
    fusible = [name for name, method in ADAPTER_METHODS.items() if method.supports_fusion]
    for spec in specs:
        check_method_support(spec, base)
        if spec.method not in fusible or spec.merged or not spec.active:
            state = " merged" * spec.merged + " inactive" * (not spec.active)
            raise AdapterError(
                f"{spec.method}{state} cannot be trained together with other trials",
                location="adapters.method",
                hint=f"unmerged, active {', '.join(fusible)} can; train others one after another",
            )
    if not specs:
        raise AdapterError(
            "a trial without adapters",
            location="adapters",
            hint="give each trial at least one adapter",
        )
