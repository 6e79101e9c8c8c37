"""Adapters on a frozen base, one or a stack of them: attach, run, check, save, load.

``attach_adapters`` attaches new and saved adapters to a base; ``save_adapter_stack`` and
``load_adapter_stack`` write and read their folders; ``compute_pooled_embeddings``,
``compute_hidden_states`` and ``compute_token_logits`` run base and adapters; ``monitor_adapters``
checks after a run that every adapter took part in it and nothing frozen moved. ``attach_stacks``
puts several stacks on one base, to be trained in one pass.
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
    "AdapterActivity",
    "AdapterCombination",
    "AdapterEvidence",
    "AdapterMethod",
    "AdapterMonitor",
    "AttachedAdapter",
    "MultiAdapterModel",
    "PackedInput",
    "ParameterCounts",
    "Stack",
    "TrialAdapters",
    "attach_adapters",
    "attach_stacks",
    "check_stack_reference_output",
    "compute_hidden_states",
    "compute_packed_hidden_states",
    "compute_pooled_embeddings",
    "compute_token_logits",
    "enable_activation_checkpointing",
    "enable_checkpointing_on_oom",
    "find_checkpointing_unsupported_reason",
    "generate_greedily",
    "list_adapter_combinations",
    "load_adapter",
    "load_adapter_stack",
    "monitor_adapters",
    "save_adapter",
    "save_adapter_stack",
    "save_stack_reference_output",
]
