"""What is trained: small adapters on a frozen base, one or a stack of them.

``attach`` puts new and earlier ones on a base, ``save`` and ``load`` write and read their folders, ``pooled``, ``flat`` and ``logits`` ask base and
adapters together, ``watch`` proves afterwards that what was meant to learn has learned and nothing else. ``together`` puts several stacks on one
base, to be trained in one pass.
"""

from clinpeft.adapters.activity import (
    AdapterActivity,
    AdapterEvidence,
    AdapterMonitor,
    monitor_adapters,
)
from clinpeft.adapters.attach import attach_adapters
from clinpeft.adapters.checkpoint import (
    load_adapter,
    load_adapter_stack,
    save_adapter,
    save_adapter_stack,
)
from clinpeft.adapters.compatibility import (
    ADAPTER_COMBINATIONS,
    AdapterCombination,
    list_adapter_combinations,
)
from clinpeft.adapters.generation import generate_greedily
from clinpeft.adapters.methods import ADAPTER_METHODS, AdapterMethod
from clinpeft.adapters.multi_adapter import (
    MultiAdapterModel,
    PackedInput,
    TrialAdapters,
    attach_stacks,
)
from clinpeft.adapters.outputs import (
    compute_hidden_states,
    compute_packed_hidden_states,
    compute_pooled_embeddings,
    compute_token_logits,
)
from clinpeft.adapters.reference_output import (
    check_stack_reference_output,
    save_stack_reference_output,
)
from clinpeft.adapters.stack import AttachedAdapter, ParameterCounts, Stack
from clinpeft.runtime.checkpointing import (
    enable_activation_checkpointing,
    enable_checkpointing_on_oom,
    find_checkpointing_unsupported_reason,
)

__all__ = [
    "ADAPTER_COMBINATIONS",
    "ADAPTER_METHODS",
    "AttachedAdapter",
    "AdapterCombination",
    "ParameterCounts",
    "MultiAdapterModel",
    "AdapterActivity",
    "AdapterMethod",
    "AdapterEvidence",
    "PackedInput",
    "Stack",
    "TrialAdapters",
    "AdapterMonitor",
    "attach_adapters",
    "check_stack_reference_output",
    "list_adapter_combinations",
    "generate_greedily",
    "compute_packed_hidden_states",
    "compute_hidden_states",
    "save_stack_reference_output",
    "load_adapter",
    "load_adapter_stack",
    "compute_token_logits",
    "find_checkpointing_unsupported_reason",
    "compute_pooled_embeddings",
    "enable_activation_checkpointing",
    "enable_checkpointing_on_oom",
    "save_adapter",
    "save_adapter_stack",
    "attach_stacks",
    "monitor_adapters",
]
