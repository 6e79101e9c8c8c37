"""What a layer's backward pass reads: kept from its forward pass, or computed again, for a third more work in the memory of one layer instead of all.

transformers' layers can run inside ``torch.utils.checkpoint`` and are told to do so here. A second run has to find everything as the first did: the
text and torch's own generators are put back by the checkpoint, and here what several trials in one pass have besides, which tokens are whose and the
generators that their dropout is drawn from. So loss and gradients are the same numbers, dropout included.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from clinpeft.adapters.methods import ADAPTER_METHODS
from clinpeft.adapters.stack import Stack
from clinpeft.core.errors import AdapterError
from clinpeft.models import FrozenBaseModel
from clinpeft.runtime.fused_lora import FusedLoraLinear, TokenRoute, TokenRouting


def find_checkpointing_unsupported_reason(stack: Stack) -> str:
    """Why the activations of this stack cannot be recomputed; empty where they can."""
    for adapter in stack.adapters:
        if adapter.spec.active and ADAPTER_METHODS[adapter.spec.method].prepends == "keys":
            return f"{adapter.spec.method} hands keys and values to every layer, and one that runs again gets none"
    if not _list_checkpointable_layers(stack.base):
        return (
            f"transformers cannot run a layer of a {stack.base.model.config.model_type} model again"
        )
    return ""


def enable_activation_checkpointing(stack: Stack, reason: str) -> bool:
    """From here on, and while it is trained, the layers of a stack keep their input alone; the stack's ``activations`` says so.

    Of several stacks on one base this concerns all, whichever is given.

    Args:
        stack: what is trained.
        reason: for the record.

    Returns:
        Whether this is new: False where they did so before.

    Raises:
        AdapterError: they cannot, see ``obstacle``.
    """
    if found := find_checkpointing_unsupported_reason(stack):
        raise AdapterError(
            f"activations cannot be recomputed: {found}",
            location="training.activations",
            hint='set it to "keep"',
        )
    new = not any(layer.gradient_checkpointing for layer in _list_checkpointable_layers(stack.base))
    routing = next(
        (
            module.routing
            for module in stack.base.model.modules()
            if isinstance(module, FusedLoraLinear)
        ),
        TokenRouting(),
    )
    for layer in _list_checkpointable_layers(stack.base):
        layer._gradient_checkpointing_func = partial(
            checkpoint,
            use_reentrant=False,
            context_fn=partial(_create_checkpoint_contexts, routing),
        )
        layer.gradient_checkpointing = True
    stack.activations = f"recomputed: {reason}"
    return new


def enable_checkpointing_on_oom(stack: Stack) -> bool:
    """``recompute`` in the middle of a run whose memory does not do, with a warning; whether that changed anything."""
    if (
        not stack.trained_parameters
        or find_checkpointing_unsupported_reason(stack)
        or not enable_activation_checkpointing(stack, "a single item did not fit otherwise")
    ):
        return False
    warnings.warn(
        "the memory of this GPU did not do for one item: activations are recomputed from here on, which takes longer",
        stacklevel=2,
    )
    return True


def _list_checkpointable_layers(base: FrozenBaseModel) -> list[GradientCheckpointingLayer]:
    return [
        module
        for module in base.backbone.modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]


def _create_checkpoint_contexts(
    routing: TokenRouting,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What stands around the two runs of a layer, asked for before the first."""
    generators = {
        route.generator for route in routing.routes.values() if route.generator is not None
    }
    states = {generator: generator.get_state() for generator in generators}
    return contextlib.nullcontext(), _RestoredRouting(
        routing, routing.routes, routing.token_count, states
    )


@dataclass(frozen=True, eq=False)
class _RestoredRouting(AbstractContextManager[None]):
    """The trials' tokens and generators as they were before the first run, for as long as a block lasts: again and again, where a graph is kept."""

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
