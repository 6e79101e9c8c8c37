"""Activation checkpointing: a layer's activations are kept for the backward pass, or computed a
second time.

Recomputing costs one more forward pass of the layers (about a third more work) and needs the
activations of one layer instead of all (Chen et al. 2016, arXiv 1604.06174). transformers' layers
run inside ``torch.utils.checkpoint``, which restores the inputs and torch's own random state. Where
several trials share one pass, the second run also needs to know which tokens belong to which
trial, and the generator state of each trial's dropout; both are restored here. Loss and gradients
are therefore the same numbers, dropout included.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from peft import PeftType
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from clinpeft.core.errors import AdapterError
from clinpeft.runtime.fused_lora import FusedLoraLinear, TokenRoute, TokenRouting


class OptimizableStack(Protocol):
    """What this package needs of a base with adapters (``adapters.Stack``).

    Attributes:
        base: the frozen base; ``base.model`` is the transformers model, ``base.backbone`` the part
            below its head, ``base.kernels`` the provider of norms and gates, ``base.sha256`` its
            content hash.
        trained_parameters: name -> parameter of everything that is trained.
        activations: whether activations are kept or recomputed and why, for the run's record.
        compilation: whether norms and gates are compiled and why, for the run's record.
    """

    activations: str
    compilation: str

    @property
    def base(self) -> Any:
        """The frozen base."""

    @property
    def adapters(self) -> Sequence[Any]:
        """The attached adapters, first to last; ``spec``, ``model`` and ``peft_name`` of each."""

    @property
    def trained_parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Name -> parameter of everything that is trained."""


def find_checkpointing_unsupported_reason(stack: OptimizableStack) -> str:
    """Say why the activations of a stack cannot be recomputed.

    Args:
        stack: the base with its adapters.

    Returns:
        The reason; empty where they can be recomputed.
    """
    for adapter in stack.adapters:
        configs = getattr(adapter.model, "peft_config", {})
        config = configs.get(adapter.peft_name)
        # Prefix tuning passes its keys and values as a cache, which a layer consumes only once.
        if adapter.spec.active and config and config.peft_type == PeftType.PREFIX_TUNING:
            return (
                f"{adapter.spec.method} hands keys and values to every layer, "
                "and a layer that runs a second time gets none"
            )
    if not any(True for _ in _iterate_layers(stack)):
        model_type = stack.base.model.config.model_type
        return f"transformers cannot checkpoint the layers of a {model_type} model"
    return ""


def enable_activation_checkpointing(stack: OptimizableStack, reason: str) -> bool:
    """Recompute the activations of a stack's layers in every training step from now on.

    The reason is written to ``stack.activations``. Of several stacks on one base this concerns
    all, whichever is given.

    Args:
        stack: what is trained.
        reason: for the record.

    Returns:
        Whether this changed anything: False where the layers were checkpointed already.

    Raises:
        AdapterError: the layers cannot be checkpointed, see
            ``find_checkpointing_unsupported_reason``.
    """
    if obstacle := find_checkpointing_unsupported_reason(stack):
        raise AdapterError(
            f"activations cannot be recomputed: {obstacle}",
            location="training.activations",
            hint='set it to "keep"',
        )
    layers = list(_iterate_layers(stack))
    # Several stacks share the layers of one base, so that another may have enabled it.
    is_new = not any(layer.gradient_checkpointing for layer in layers)
    modules = stack.base.model.modules()
    fused = next((module for module in modules if isinstance(module, FusedLoraLinear)), None)
    # Without fused layers there is no routing: an empty one restores nothing.
    routing = fused.routing if fused is not None else TokenRouting()
    for layer in layers:
        # Not re-entrant: the re-entrant variant needs an input that requires a gradient, which the
        # first layer above a frozen embedding does not have.
        layer._gradient_checkpointing_func = partial(
            checkpoint,
            use_reentrant=False,
            context_fn=partial(_create_checkpoint_contexts, routing),
        )
        layer.gradient_checkpointing = True
    stack.activations = f"recomputed: {reason}"
    return is_new


def enable_checkpointing_on_oom(stack: OptimizableStack) -> bool:
    """Recompute activations in the middle of a run whose memory is too small, with a warning.

    Args:
        stack: what is trained.

    Returns:
        Whether that changed anything.
    """
    if not stack.trained_parameters or find_checkpointing_unsupported_reason(stack):
        return False
    if not enable_activation_checkpointing(stack, "a single item did not fit otherwise"):
        return False
    warnings.warn(
        "the memory of this GPU is too small for one item: activations are recomputed from here "
        "on, which takes longer",
        stacklevel=2,
    )
    return True


def _iterate_layers(stack: OptimizableStack) -> Iterator[GradientCheckpointingLayer]:
    for module in stack.base.backbone.modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield module


def _create_checkpoint_contexts(
    routing: TokenRouting,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first and the second run of a layer; called before the first."""
    # Before the first run: the dropout of the second has to draw the same numbers.
    generators = {
        route.generator for route in routing.routes.values() if route.generator is not None
    }
    states = {generator: generator.get_state() for generator in generators}
    return contextlib.nullcontext(), _RestoredRouting(
        routing, routing.routes, routing.token_count, states
    )


@dataclass(frozen=True, eq=False)
class _RestoredRouting(AbstractContextManager[None]):
    """Token routes and generator states as they were before the first run of a layer.

    It is entered once for every backward pass through the layer, so more than once where a graph
    is retained; the generators' later states come back when it is left.
    """

    routing: TokenRouting
    routes: Mapping[str, TokenRoute]
    token_count: int
    generator_states: Mapping[torch.Generator, torch.Tensor]
    exit_stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> None:
        for generator, state in self.generator_states.items():
            self.exit_stack.callback(generator.set_state, generator.get_state())
            generator.set_state(state)
        self.exit_stack.enter_context(self.routing.route_tokens(self.routes, self.token_count))

    def __exit__(self, *error: object) -> None:
        self.exit_stack.close()
