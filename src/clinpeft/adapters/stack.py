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

from clinpeft.adapters.methods import METHODS, virtual_tokens
from clinpeft.core.errors import AdapterError, RefusedError
from clinpeft.models import Base
from clinpeft.recipe import AnyAdapterSpec

Tensors = dict[str, torch.Tensor]
Parameters = dict[str, torch.nn.Parameter]


@dataclass(frozen=True)
class Counts:
    """How much is trained: parameters of the adapters (and of the base, where it is trained too), and of the base without them."""

    trained: int
    base: int

    @property
    def share(self) -> float:
        """Trained parameters as a fraction of the base's, as in the paper's tables."""
        return self.trained / self.base


@dataclass(frozen=True, eq=False)
class Attached:
    """One adapter of a stack.

    Attributes:
        name: position and method, ``1-lora``.
        spec: what it is; of a loaded adapter, as it was trained.
        model: the peft model it lives in; None where it is merged into the base.
        peft_name: its name in there.
        parameters: all of its own, under peft's names; none where it is merged.
        trained: those that are trained: all or none.
        origin: the run it was loaded from, as the recipe names it; empty for a new one.
        sha256: of the folder it was loaded from (config and weights); empty for a new one.
        kept: of a loaded adapter that stays as it is: the files of its folder, to be written again byte for byte.
        folded: of a merged adapter: the weights it changed, and what they were before, on the CPU.
    """

    name: str
    spec: AnyAdapterSpec
    model: Any | None
    peft_name: str
    parameters: Parameters = field(repr=False)
    trained: Parameters = field(repr=False)
    origin: str = ""
    sha256: str = ""
    kept: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    folded: tuple[tuple[torch.nn.Parameter, torch.Tensor], ...] = field(default=(), repr=False)

    @property
    def prompts(self) -> bool:
        """It changes no weight and stands beside those that do."""
        return METHODS[self.spec.method].joins == "beside"

    @property
    def swaps_attention(self) -> bool:
        """It puts modules of its own around the attention's, so that it is switched by taking them out."""
        return self.prompts and METHODS[self.spec.method].prepends == "nothing"


@dataclass
class Stack:
    """A base with adapters on it.

    Attributes:
        base: what is frozen. Methods that work inside the layers change its modules in place, so a base carries one stack.
        adapters: first to last.
        counts: trained and base parameters.
        notices: what was decided against the letter of the specs, or should be known beside them.
        trained: name -> parameter of everything that is trained, all float32.
        silent: names of the adapters that are out of the forward pass: those attached so, and others inside ``off`` and ``without``.
        strangers: parameters of other stacks on the same base (``together``), which this one neither trains nor keeps as they are.
        activations: what its layers' backward passes read, and why so, for the record: ``kept``, or ``recomputed`` (``adapters.recompute``).
        compiled: whether its base's norms and gates run compiled (``models.compile_regions``), and why so, for the record.
    """

    base: Base
    adapters: tuple[Attached, ...]
    counts: Counts
    notices: tuple[str, ...]
    trained: Parameters = field(repr=False)
    silent: frozenset[str] = frozenset()
    strangers: frozenset[torch.nn.Parameter] = field(default=frozenset(), repr=False)
    activations: str = "kept"
    compiled: str = "not compiled"

    @property
    def specs(self) -> tuple[AnyAdapterSpec, ...]:
        """What was attached, first to last."""
        return tuple(adapter.spec for adapter in self.adapters)

    @property
    def model(self) -> Any:
        """The outermost model: of the prompt, else of the layers' adapters, else the base; ``logits`` and ``hidden`` are the ways to ask it."""
        live = sorted(
            (adapter for adapter in self.adapters if adapter.model is not None),
            key=lambda adapter: adapter.prompts,
        )
        return live[-1].model if live else self.base.model

    @property
    def active(self) -> bool:
        """Whether any adapter is in the forward pass."""
        return any(adapter.name not in self.silent for adapter in self.adapters)

    @property
    def virtual_tokens(self) -> int:
        """Positions taken before the text; 0 for methods that prepend nothing."""
        return sum(virtual_tokens(adapter.spec) for adapter in self.adapters if adapter.spec.active)

    def train(self, mode: bool = True) -> None:
        """Dropout on or off. Where nothing of base and adapters is trained it stays off: noise would only blur what a head learns from."""
        self.model.train(mode and bool(self.trained))

    def state(self) -> Tensors:
        """A copy of every trained tensor, on the CPU: for checkpoints, and for going back to the best weights."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True)
            for name, parameter in self.trained.items()
        }

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what ``state`` gave.

        Raises:
            AdapterError: the tensors are not exactly this stack's.
        """
        wanted = {name: tuple(parameter.shape) for name, parameter in self.trained.items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != wanted:
            raise AdapterError(
                differences(given, wanted),
                location="trained tensors",
                hint="use a checkpoint of the same recipe",
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    @contextmanager
    def off(self) -> Iterator[None]:
        """The bare base, for as long as the block lasts."""
        with contextlib.ExitStack() as every:
            for adapter in reversed(self.adapters):
                every.enter_context(self.without(adapter.name))
            yield

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """One adapter out of the forward pass, for as long as the block lasts; afterwards everything is as it was, whatever that was.

        peft makes every adapter that it switches trainable; what required a gradient before is put back.

        Raises:
            AdapterError: there is no adapter of this name.
        """
        adapter = self.named(name)
        if name in self.silent:
            yield
            return
        before = self.silent
        self.silent = before | {name}
        try:
            with self._gradients_kept(), _switched_off(adapter):
                yield
        finally:
            self.silent = before

    def named(self, name: str) -> Attached:
        """The adapter of this name.

        Raises:
            AdapterError: there is none.
        """
        for adapter in self.adapters:
            if adapter.name == name:
                return adapter
        there = ", ".join(adapter.name for adapter in self.adapters) or "none"
        raise AdapterError(
            f"no adapter {name!r} in this stack", location="adapters", hint=f"there are: {there}"
        )

    def merged(self) -> Any:
        """A plain transformers model with the adapters folded in, in float32 on its own copy: folding in bfloat16 rounds small updates away.

        Raises:
            AdapterError: a method has nothing to fold.
            RefusedError: the base is quantized.
        """
        refuse_quantized(self.base, "its adapters are to be folded into it")
        for adapter in self.adapters:
            if not METHODS[adapter.spec.method].merges:
                able = ", ".join(name for name, method in METHODS.items() if method.merges)
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
    def _gradients_kept(self) -> Iterator[None]:
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
def _switched_off(adapter: Attached) -> Iterator[None]:
    """Out of the forward pass by the means of its method; what is prepended is simply left away, see ``hidden``."""
    if adapter.folded:
        with _unfolded(adapter):
            yield
    elif adapter.swaps_attention:
        with attention(adapter, adapted=False):
            yield
    elif adapter.prompts:
        yield
    else:
        with _out_of_the_layers(adapter):
            yield


@contextmanager
def _unfolded(adapter: Attached) -> Iterator[None]:
    """The weights as they were before the adapter was folded in; no rounding, because both are kept."""
    changed = [parameter.data for parameter, _ in adapter.folded]
    for parameter, original in adapter.folded:
        parameter.data = original.to(parameter.device)
    try:
        yield
    finally:
        for (parameter, _), weight in zip(adapter.folded, changed, strict=True):
            parameter.data = weight


@contextmanager
def _out_of_the_layers(adapter: Attached) -> Iterator[None]:
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
def at_rest(model: Any) -> Iterator[None]:
    """Dropout off, for as long as the block lasts; afterwards every module is in the mode it was in, also where they differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def attention(adapter: Attached, adapted: bool) -> Iterator[None]:
    """The attention with an adaption prompt's modules around it, or without: the names of all weights inside it depend on that."""
    peft_model: Any = adapter.model
    model = peft_model.base_model
    was = bool(model._enabled)
    _swap(model, adapted)
    try:
        yield
    finally:
        _swap(model, was)


def _swap(model: Any, adapted: bool) -> None:
    if model._enabled != adapted:
        (model.enable_adapter_layers if adapted else model.disable_adapter_layers)()


def refuse_quantized(base: Base, wanted: str) -> None:
    """Whatever changes weights needs them as they are: an update of a few percent is lost between two numbers of float8.

    Raises:
        RefusedError: the base is quantized; ``wanted`` says what for.
    """
    if base.quantization != "none":
        hint = 'leave them unmerged and the base frozen, or set base.quantization = "none"'
        raise RefusedError(
            f"the base is in {base.quantization}, and {wanted}",
            location="base.quantization",
            hint=hint,
        )


def differences(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """One line on how two sets of named shapes differ."""
    missing, unexpected = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    shapes = sorted(
        f"{name} {given[name]} for {wanted[name]}"
        for name in set(given) & set(wanted)
        if given[name] != wanted[name]
    )
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for what, names in parts.items()
        if names
    )
