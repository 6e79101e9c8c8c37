"""A frozen base with adapters on it: what is trained, what is active, and the merged model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from clinpeft.adapters.methods import ADAPTER_METHODS, count_virtual_tokens
from clinpeft.core.errors import AdapterError, RefusedError
from clinpeft.models import FrozenBaseModel
from clinpeft.recipe import AnyAdapterSpec

NamedParameters = dict[str, torch.nn.Parameter]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of trained and of base parameters.

    Attributes:
        trained_parameters: of the adapters, or of the base where it is trained itself.
        base_parameters: of the base without adapters.
    """

    trained_parameters: int
    base_parameters: int

    @property
    def trained_fraction(self) -> float:
        """Trained parameters over those of the base, as the tables of arXiv 2307.03042 give it."""
        return self.trained_parameters / self.base_parameters


@dataclass(frozen=True, eq=False)
class AttachedAdapter:
    """One adapter of a stack.

    Attributes:
        name: position and method, ``1-lora``.
        spec: its options; of a loaded adapter, those it was trained with.
        model: the peft model that holds it; None where it is merged into the base.
        peft_name: its name in that model.
        parameters: all of its own, under peft's names; none where it is merged.
        trained_parameters: those that are trained: all or none.
        source_run: the run it was loaded from, as the recipe names it; empty for a new one.
        sha256: of the folder it was loaded from (config and weights); empty for a new one.
        saved_files: of a loaded adapter that is not trained: the files of its folder, which are
            saved again byte for byte.
        merged_weights: of a merged adapter: the weights it changed, and their values before, on the
            CPU.
    """

    name: str
    spec: AnyAdapterSpec
    model: Any | None
    peft_name: str
    parameters: NamedParameters = field(repr=False)
    trained_parameters: NamedParameters = field(repr=False)
    source_run: str = ""
    sha256: str = ""
    saved_files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    merged_weights: tuple[tuple[torch.nn.Parameter, torch.Tensor], ...] = field(
        default=(), repr=False
    )

    @property
    def is_prompt(self) -> bool:
        """It changes no weight: virtual tokens, or prompts inside the attention."""
        return ADAPTER_METHODS[self.spec.method].composition == "beside"

    @property
    def swaps_attention(self) -> bool:
        """It wraps the attention modules, so that it is disabled by unwrapping them."""
        return self.is_prompt and ADAPTER_METHODS[self.spec.method].prepends == "nothing"


@dataclass
class Stack:
    """A base with adapters on it.

    Attributes:
        base: the frozen model. Methods that work inside the layers change its modules in place, so
            a base carries one stack.
        adapters: first to last.
        counts: trained and base parameters.
        notices: where the specs could not be followed to the letter, for the run's record.
        trained_parameters: name -> parameter of everything that is trained, all float32.
        disabled_adapters: names of the adapters that are out of the forward pass: those attached
            with ``active = false``, and others inside ``disable_adapters`` and ``disable_adapter``.
        other_parameters: parameters of other stacks on the same base (``attach_stacks``), which
            change while this one is trained.
        activations: whether activations are kept or recomputed in the backward pass, and why, for
            the run's record.
        compilation: whether norms and gates of the base are compiled, and why, for the run's
            record.
    """

    base: FrozenBaseModel
    adapters: tuple[AttachedAdapter, ...]
    counts: ParameterCounts
    notices: tuple[str, ...]
    trained_parameters: NamedParameters = field(repr=False)
    disabled_adapters: frozenset[str] = frozenset()
    other_parameters: frozenset[torch.nn.Parameter] = field(default=frozenset(), repr=False)
    activations: str = "kept"
    compilation: str = "not compiled"

    @property
    def specs(self) -> tuple[AnyAdapterSpec, ...]:
        """Specs of the adapters, first to last."""
        return tuple(adapter.spec for adapter in self.adapters)

    @property
    def model(self) -> Any:
        """The outermost module: that of the prompt, else of adapters in the layers, else the base.

        Call ``compute_token_logits`` or ``compute_hidden_states`` and not this module, which knows
        nothing of packing and of disabled prompts.
        """
        # sorted() is stable: the last prompt if there is one, else the last adapter in the layers
        attached = [adapter for adapter in self.adapters if adapter.model is not None]
        outermost = sorted(attached, key=lambda adapter: adapter.is_prompt)[-1:]
        return outermost[0].model if outermost else self.base.model

    @property
    def virtual_tokens(self) -> int:
        """Positions taken before the text; 0 for methods that prepend nothing."""
        return sum(
            count_virtual_tokens(adapter.spec) for adapter in self.adapters if adapter.spec.active
        )

    def train(self, mode: bool = True) -> None:
        """Turn dropout on or off; it stays off where neither base nor adapters are trained.

        With a frozen stack, dropout would only add noise to the inputs of a head.
        """
        # train() of the outermost module reaches the base and all adapters
        self.model.train(mode and bool(self.trained_parameters))

    @contextmanager
    def disable_adapters(self) -> Iterator[None]:
        """Run the block with the bare base."""
        with contextlib.ExitStack() as contexts:
            # in reverse, so that the first, which may be merged, is taken out last
            for adapter in reversed(self.adapters):
                contexts.enter_context(self.disable_adapter(adapter.name))
            yield

    @contextmanager
    def disable_adapter(self, adapter_name: str) -> Iterator[None]:
        """Run the block without one adapter; afterwards everything is as it was before.

        Raises:
            AdapterError: there is no adapter of this name.
        """
        adapter = self.get_adapter(adapter_name)
        if adapter_name in self.disabled_adapters:
            yield
            return
        disabled = self.disabled_adapters
        # peft makes every adapter that it switches trainable
        requires_grad = {
            parameter: parameter.requires_grad
            for parameters in (
                self.base.model.parameters(),
                *(attached.parameters.values() for attached in self.adapters),
            )
            for parameter in parameters
        }
        # outputs.py reads this set: prompts and packing depend on it
        self.disabled_adapters = disabled | {adapter_name}
        try:
            with _disable_in_forward(adapter):
                yield
        finally:
            self.disabled_adapters = disabled
            for parameter, required in requires_grad.items():
                parameter.requires_grad_(required)

    def get_adapter(self, adapter_name: str) -> AttachedAdapter:
        """Get an adapter by its name.

        Raises:
            AdapterError: there is none.
        """
        for adapter in self.adapters:
            if adapter.name == adapter_name:
                return adapter
        names = ", ".join(adapter.name for adapter in self.adapters) or "none"
        raise AdapterError(
            f"no adapter {adapter_name!r} in this stack",
            location="adapters",
            hint=f"there are: {names}",
        )

    def create_merged_model(self) -> Any:
        """Copy the base in float32 and merge the adapters into the copy.

        Returns:
            A plain transformers model, frozen, in evaluation mode.

        Raises:
            AdapterError: a method cannot be merged.
            RefusedError: the base is quantized.
        """
        check_not_quantized(self.base, "its adapters are to be merged into it")
        mergeable = [name for name, method in ADAPTER_METHODS.items() if method.is_mergeable]
        for adapter in self.adapters:
            if adapter.spec.method not in mergeable:
                raise AdapterError(
                    f"{adapter.spec.method} cannot be merged",
                    location="adapters.method",
                    hint=f"these can: {', '.join(mergeable)}",
                )
        # in bfloat16, an update below 1/512 of a weight is rounded away
        merged = copy.deepcopy(self.model).float()
        if any(adapter.model is not None for adapter in self.adapters):
            # peft merges the active adapters in the order in which they were added
            merged = merged.merge_and_unload(safe_merge=True)
        return merged.requires_grad_(False).eval()


@contextmanager
def _disable_in_forward(adapter: AttachedAdapter) -> Iterator[None]:
    """Take an adapter out of the forward pass, by the means of its method."""
    if adapter.merged_weights:
        # subtracting the update would round; both sets of weights are kept instead
        merged = [parameter.data for parameter, _ in adapter.merged_weights]
        # .data: the parameter objects stay, which the optimizer and hooks refer to
        for parameter, original in adapter.merged_weights:
            parameter.data = original.to(parameter.device)
        try:
            yield
        finally:
            for (parameter, _), weight in zip(adapter.merged_weights, merged, strict=True):
                parameter.data = weight
    elif adapter.swaps_attention:
        with switch_adapted_attention(adapter, adapted=False):
            yield
    elif adapter.is_prompt or adapter.model is None:
        yield  # virtual tokens are prepended by outputs.py, for active adapters only
    else:
        layers = [
            module for module in adapter.model.modules() if isinstance(module, BaseTunerLayer)
        ]
        active_names = [list(layer.active_adapters) for layer in layers]
        for layer, names in zip(layers, active_names, strict=True):
            layer.set_adapter([name for name in names if name != adapter.peft_name])
        try:
            yield
        finally:
            for layer, names in zip(layers, active_names, strict=True):
                layer.set_adapter(names)


@contextmanager
def use_eval_mode(model: Any) -> Iterator[None]:
    """Run the block without dropout; afterwards every module is in its own mode again."""
    # frozen parts may be in evaluation mode inside a model in training mode
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def switch_adapted_attention(adapter: AttachedAdapter, adapted: bool) -> Iterator[None]:
    """Run the block with or without an adaption prompt's modules around the attention.

    The names of all weights inside the attention depend on that.
    """
    peft_model: Any = adapter.model
    model = peft_model.base_model
    switches = {True: model.enable_adapter_layers, False: model.disable_adapter_layers}
    before = bool(model._enabled)
    # peft moves the modules at every call, also when nothing changes
    if before != adapted:
        switches[adapted]()
    try:
        yield
    finally:
        if bool(model._enabled) != before:
            switches[before]()


def check_not_quantized(base: FrozenBaseModel, purpose: str) -> None:
    """Check that the weights of a base may be changed.

    An update of a few percent is lost between two neighboring numbers of float8.

    Raises:
        RefusedError: the base is quantized; ``purpose`` says what its weights are needed for.
    """
    if base.quantization != "none":
        raise RefusedError(
            f"the base is in {base.quantization}, and {purpose}",
            location="base.quantization",
            hint='leave them unmerged and the base frozen, or set base.quantization = "none"',
        )


def describe_shape_differences(
    actual_shapes: Mapping[str, tuple[int, ...]], expected_shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Describe in one line how two sets of named shapes differ."""
    names_by_difference = {
        "missing": sorted(set(expected_shapes) - set(actual_shapes)),
        "unexpected": sorted(set(actual_shapes) - set(expected_shapes)),
        "of another shape": sorted(
            f"{name} {actual_shapes[name]} for {expected_shapes[name]}"
            for name in set(actual_shapes) & set(expected_shapes)
            if actual_shapes[name] != expected_shapes[name]
        ),
    }
    return "; ".join(
        f"{len(names)} {difference}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for difference, names in names_by_difference.items()
        if names
    )
