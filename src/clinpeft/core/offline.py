"""Environment variables by which the libraries stay offline, and by which they cache fewer kernels.

Nothing is changed on import. The command line sets them for its whole process before it imports a
library that reads them; the Python API sets them while it runs a workflow and restores them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, MutableMapping

OFFLINE_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Set over whatever the shell says: the only connection is that of ``clinpeft models pull``."""

KERNEL_CACHE_VARIABLES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "64"}
"""How many compiled matrix products oneDNN and PyTorch cache, in place of 1,024 each; read at the
first product, and a value of the shell stays.

Rows without padding have a new number of tokens nearly every time, so that both caches only fill:
in long runs they held more memory than the model. Fewer than 256 would make short documents slower,
of which every length has its own products of attention."""


def set_offline_mode(environment: MutableMapping[str, str]) -> None:
    """Keep the libraries of this process offline, and limit their kernel caches.

    Args:
        environment: variables of the process, which are changed.
    """
    environment.update(OFFLINE_VARIABLES)
    for name, value in KERNEL_CACHE_VARIABLES.items():
        environment.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it read its variables when it was imported
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def offline_mode(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Keep the libraries offline while a block runs; afterwards everything is as it was before.

    Args:
        environment: variables of the process, which are changed and restored.
    """
    names = (*OFFLINE_VARIABLES, *KERNEL_CACHE_VARIABLES)
    variables = {name: environment.get(name) for name in names}
    constants = sys.modules.get("huggingface_hub.constants")
    was_offline = getattr(constants, "HF_HUB_OFFLINE", None)
    set_offline_mode(environment)
    try:
        yield
    finally:
        for name, value in variables.items():
            environment.pop(name, None)
            if value is not None:
                environment[name] = value
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            # Imported inside the block, it read the variables of the block.
            online = (variables["HF_HUB_OFFLINE"] or "").upper() not in {"1", "ON", "YES", "TRUE"}
            is_offline = (not online) if was_offline is None else was_offline
            constants.HF_HUB_OFFLINE = is_offline  # type: ignore[attr-defined]
