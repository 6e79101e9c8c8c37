"""Everything that makes training fast or small, and nothing that changes what is trained.

A workflow makes one call, ``runtime.optimize(stack, policy)``; the rest is used by models and
adapters: packed attention, fused LoRA layers, float8 weights, kernels, a last layer that computes
one token a document.

```
optimization.py      what is decided for a run after its adapters are attached
checkpointing.py     activations recomputed in the backward pass
compile.py           norms and gates compiled, after a timed trial
memory.py            peak memory; a step repeated in smaller micro-batches
packed_attention.py  many documents in one row, without padding
cpu_attention.py     attention of a CPU as plain matrix products
last_token_layer.py  the last layer for one token of each document
fused_lora.py        a frozen linear layer and its low-rank updates as one function
adaption_prompt.py   LLaMA-Adapter attention with one projection
float8.py            frozen weights in eight bits
kernels.py           norms and gates by liger on a GPU
dropout.py           fast dropout masks
energy.py            energy by the machine's own meters
```
"""

from clinpeft.runtime.optimization import (
    ActivationPolicy,
    RuntimePolicy,
    choose_activation_policy,
    optimize,
)

__all__ = ["ActivationPolicy", "RuntimePolicy", "choose_activation_policy", "optimize"]
