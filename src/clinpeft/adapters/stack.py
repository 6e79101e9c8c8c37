"""A frozen base with adapters on it, first to last: what is trained, what can be switched off, what is one function again when merged."""

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

NamedTensors = dict[str, torch.Tensor]
NamedParameters = dict[str, torch.nn.Parameter]


@dataclass(frozen=True)
class ParameterCounts:
    """How much is trained: parameters of the adapters (and of the base, where it is trained too), and of the base without them."""

    trained_parameters: int
    base_parameters: int

    @property
    def trained_fraction(self) -> float:
        """Trained parameters as a fraction of the base's, as in the paper's tables."""
        return self.trained_parameters / self.base_parameters


@dataclass(frozen=True, eq=False)
class AttachedAdapter:
    """One adapter of a stack.

    Attributes:
        name: position and method, ``1-lora``.
        spec: what it is; of a loaded adapter, as it was trained.
        model: the peft model it lives in; None where it is merged into the base.
        peft_name: its name in there.
        parameters: all of its own, under peft's names; none where it is merged.
        trained_parameters: those that are trained: all or none.
        source_run: the run it was loaded from, as the recipe names it; empty for a new one.
        sha256: of the folder it was loaded from (config and weights); empty for a new one.
        saved_files: of a loaded adapter that stays as it is: the files of its folder, to be written again byte for byte.
        merged_weights: of a merged adapter: the weights it changed, and what they were before, on the CPU.
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
        """It changes no weight and stands beside those that do."""
        return ADAPTER_METHODS[self.spec.method].composition == "beside"

    @property
    def swaps_attention(self) -> bool:
        """It puts modules of its own around the attention's, so that it is switched by taking them out."""
        return self.is_prompt and ADAPTER_METHODS[self.spec.method].prepends == "nothing"


@dataclass
class Stack:
    """A base with adapters on it.

    Attributes:
        base: what is frozen. Methods that work inside the layers change its modules in place, so a base carries one stack.
        adapters: first to last.
        counts: trained and base parameters.
        notices: what was decided against the letter of the specs, or should be known beside them.
        trained_parameters: name -> parameter of everything that is trained, all float32.
        disabled_adapters: names of the adapters that are out of the forward pass: those attached so, and others inside ``disable_adapters`` and ``disable_adapter``.
        other_parameters: parameters of other stacks on the same base (``together``), which this one neither trains nor keeps as they are.
        activations: what its layers' backward passes read, and why so, for the record: ``kept``, or ``recomputed`` (``adapters.recompute``).
        compilation: whether its base's norms and gates run compiled (``models.compile_regions``), and why so, for the record.
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
        """What was attached, first to last."""
        return tuple(adapter.spec for adapter in self.adapters)

    @property
    def model(self) -> Any:
        """The outermost model: of the prompt, else of the layers' adapters, else the base; ``logits`` and ``hidden`` are the ways to ask it."""
        live = sorted(
            (adapter for adapter in self.adapters if adapter.model is not None),
            key=lambda adapter: adapter.is_prompt,
        )
        return live[-1].model if live else self.base.model

    @property
    def has_active_adapters(self) -> bool:
        """Whether any adapter is in the forward pass."""
        return any(adapter.name not in self.disabled_adapters for adapter in self.adapters)

    @property
    def virtual_tokens(self) -> int:
        """Positions taken before the text; 0 for methods that prepend nothing."""
        return sum(
            count_virtual_tokens(adapter.spec) for adapter in self.adapters if adapter.spec.active
        )

    def train(self, mode: bool = True) -> None:
        """Dropout on or off. Where nothing of base and adapters is trained it stays off: noise would only blur what a head learns from."""
        self.model.train(mode and bool(self.trained_parameters))

    def copy_trained_state(self) -> NamedTensors:
        """A copy of every trained tensor, on the CPU: for checkpoints, and for going back to the best weights."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self.trained_parameters.items()
        }

    def load_trained_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what ``state`` gave.

        Raises:
            AdapterError: the tensors are not exactly this stack's.
        """
        wanted = {
            name: tuple(parameter.shape) for name, parameter in self.trained_parameters.items()
        }
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != wanted:
            raise AdapterError(
                describe_shape_differences(given, wanted),
                location="trained tensors",
                hint="use a checkpoint of the same recipe",
            )
        with torch.no_grad():
            for name, parameter in self.trained_parameters.items():
                parameter.copy_(tensors[name])

    @contextmanager
    def disable_adapters(self) -> Iterator[None]:
        """The bare base, for as long as the block lasts."""
        with contextlib.ExitStack() as every:
            for adapter in reversed(self.adapters):
                every.enter_context(self.disable_adapter(adapter.name))
            yield

    @contextmanager
    def disable_adapter(self, adapter_name: str) -> Iterator[None]:
        """One adapter out of the forward pass, for as long as the block lasts; afterwards everything is as it was, whatever that was.

        peft makes every adapter that it switches trainable; what required a gradient before is put back.

        Raises:
            AdapterError: there is no adapter of this name.
        """
        adapter = self.get_adapter(adapter_name)
        if adapter_name in self.disabled_adapters:
            yield
            return
        before = self.disabled_adapters
        self.disabled_adapters = before | {adapter_name}
        try:
            with self._preserve_requires_grad(), _disable_in_forward(adapter):
                yield
        finally:
            self.disabled_adapters = before

    def get_adapter(self, adapter_name: str) -> AttachedAdapter:
        """The adapter of this name.

        Raises:
            AdapterError: there is none.
        """
        for adapter in self.adapters:
            if adapter.name == adapter_name:
                return adapter
        there = ", ".join(adapter.name for adapter in self.adapters) or "none"
        raise AdapterError(
            f"no adapter {adapter_name!r} in this stack",
            location="adapters",
            hint=f"there are: {there}",
        )

    def create_merged_model(self) -> Any:
        """A plain transformers model with the adapters folded in, in float32 on its own copy: folding in bfloat16 rounds small updates away.

        Raises:
            AdapterError: a method has nothing to fold.
            RefusedError: the base is quantized.
        """
        check_not_quantized(self.base, "its adapters are to be folded into it")
        for adapter in self.adapters:
            if not ADAPTER_METHODS[adapter.spec.method].is_mergeable:
                able = ", ".join(
                    name for name, method in ADAPTER_METHODS.items() if method.is_mergeable
                )
                raise AdapterError(
                    f"{adapter.spec.method} cannot be merged",
                    location="adapters.method",
                    hint=f"these can: {able}",
                )
        merged = copy.deepcopy(self.model).float()
        if any(adapter.model is not None for adapter in self.adapters):
            merged = merged.merge_and_unload(safe_merge=True)
        return merged.requires_grad_(False).eval()

    @contextmanager
    def _preserve_requires_grad(self) -> Iterator[None]:
        """Everything requires a gradient afterwards that did before, and nothing else."""
        wanted = {
            parameter: parameter.requires_grad
            for adapter in self.adapters
            for parameter in adapter.parameters.values()
        }
        wanted |= {parameter: parameter.requires_grad for parameter in self.base.model.parameters()}
        try:
            yield
        finally:
            for parameter, required in wanted.items():
                parameter.requires_grad_(required)


@contextmanager
def _disable_in_forward(adapter: AttachedAdapter) -> Iterator[None]:
    """Out of the forward pass by the means of its method; what is prepended is simply left away, see ``hidden``."""
    if adapter.merged_weights:
        with _restore_unmerged_weights(adapter):
            yield
    elif adapter.swaps_attention:
        with switch_adapted_attention(adapter, adapted=False):
            yield
    elif adapter.is_prompt:
        yield
    else:
        with _disable_in_layers(adapter):
            yield


@contextmanager
def _restore_unmerged_weights(adapter: AttachedAdapter) -> Iterator[None]:
    """The weights as they were before the adapter was folded in; no rounding, because both are kept."""
    changed = [parameter.data for parameter, _ in adapter.merged_weights]
    for parameter, original in adapter.merged_weights:
        parameter.data = original.to(parameter.device)
    try:
        yield
    finally:
        for (parameter, _), weight in zip(adapter.merged_weights, changed, strict=True):
            parameter.data = weight


@contextmanager
def _disable_in_layers(adapter: AttachedAdapter) -> Iterator[None]:
    layers = (
        [module for module in adapter.model.modules() if isinstance(module, BaseTunerLayer)]
        if adapter.model
        else []
    )
    before = [list(layer.active_adapters) for layer in layers]
    for layer, names in zip(layers, before, strict=True):
        layer.set_adapter([name for name in names if name != adapter.peft_name])
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer.set_adapter(names)


@contextmanager
def use_eval_mode(model: Any) -> Iterator[None]:
    """Dropout off, for as long as the block lasts; afterwards every module is in the mode it was in, also where they differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def switch_adapted_attention(adapter: AttachedAdapter, adapted: bool) -> Iterator[None]:
    """The attention with an adaption prompt's modules around it, or without: the names of all weights inside it depend on that."""
    peft_model: Any = adapter.model
    model = peft_model.base_model
    was = bool(model._enabled)
    _set_adapted_attention(model, adapted)
    try:
        yield
    finally:
        _set_adapted_attention(model, was)


def _set_adapted_attention(model: Any, adapted: bool) -> None:
    if model._enabled != adapted:
        (model.enable_adapter_layers if adapted else model.disable_adapter_layers)()


def check_not_quantized(base: FrozenBaseModel, purpose: str) -> None:
    """Whatever changes weights needs them as they are: an update of a few percent is lost between two numbers of float8.

    Raises:
        RefusedError: the base is quantized; ``purpose`` says what for.
    """
    if base.quantization != "none":
        hint = 'leave them unmerged and the base frozen, or set base.quantization = "none"'
        raise RefusedError(
            f"the base is in {base.quantization}, and {purpose}",
            location="base.quantization",
            hint=hint,
        )


def describe_shape_differences(
    actual_shapes: Mapping[str, tuple[int, ...]], expected_shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """One line on how two sets of named shapes differ."""
    missing, unexpected = (
        sorted(set(expected_shapes) - set(actual_shapes)),
        sorted(set(actual_shapes) - set(expected_shapes)),
    )
    shapes = sorted(
        f"{name} {actual_shapes[name]} for {expected_shapes[name]}"
        for name in set(actual_shapes) & set(expected_shapes)
        if actual_shapes[name] != expected_shapes[name]
    )
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in parts.items()
        if names
    )
