"""Norms and gates of a GPU as one kernel each, by liger (Hsu et al. 2024, arXiv 2410.10989).

liger replaces classes and functions in transformers' modules, for every model that is created
afterwards; here they are put back, and the given model alone keeps its replacements. Its losses are
switched off, and so is its rotary embedding, which works in place and can only be replaced for
every model of a kind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from clinpeft.core.errors import BaseModelError, UsageError
from clinpeft.recipe import PretrainedModelSpec

LIGER_PACKAGE, LIGER_DISTRIBUTION = "liger_kernel", "liger-kernel"
DISABLED_LIGER_OPTIONS = {
    "rope": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}

TORCH_KERNELS = "torch"


def check_kernels_available(
    spec: PretrainedModelSpec,
    device: torch.device,
    supported_model_types: Collection[str],
    read_model_type: Callable[[], str],
) -> None:
    """Check, before any weight is read, that the requested kernels are available.

    Args:
        spec: the base and whose kernels it is to have.
        device: that the base is computed on.
        supported_model_types: architectures for which the package has kernels.
        read_model_type: architecture of the base; called only where kernels are requested.

    Raises:
        UsageError: this is no CUDA device, or the package is not installed.
        BaseModelError: the package has none for this family, or the folder is no base.
    """
    if spec.kernels == TORCH_KERNELS:
        return
    location, hint = "base.kernels", 'leave base.kernels out, or set it to "torch"'
    if device.type != "cuda":
        raise UsageError(
            f'kernels = "{spec.kernels}" on {device.type}: they are written for CUDA',
            location=location,
            hint=hint,
        )
    if not _is_liger_installed():
        raise UsageError(
            f"{LIGER_DISTRIBUTION} is not installed",
            location=location,
            hint=f'install it: pip install "clinpeft[gpu]"; or {hint}',
        )
    model_type = read_model_type()
    if model_type not in supported_model_types:
        message = f'kernels = "{spec.kernels}" for a {model_type} model, for which there are none'
        hint = f"{hint}; there are some for {', '.join(supported_model_types)}"
        raise BaseModelError(message, location=location, hint=hint)


def install_liger_kernels(
    model: Any, parts: Sequence[str], spec: PretrainedModelSpec, device: torch.device
) -> str:
    """Give a model the requested kernels where they are available.

    A run that was trained with them is loaded without them on another device.

    Args:
        model: the transformers model, changed in place.
        parts: of the architecture, those that have kernels, by liger's names; empty: none.
        spec: whose kernels are requested.
        device: that the model is computed on.

    Returns:
        Whose kernels it has, for the record.
    """
    if (
        spec.kernels == TORCH_KERNELS
        or device.type != "cuda"
        or not parts
        or not _is_liger_installed()
    ):
        return TORCH_KERNELS
    from liger_kernel.transformers import monkey_patch  # here, because it imports Triton

    model_type = model.config.model_type
    here = sys.modules[type(model).__module__]
    before = dict(vars(here))
    try:
        monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[model_type](
            model=model, **dict.fromkeys(parts, True), **DISABLED_LIGER_OPTIONS
        )
    finally:
        vars(here).update(before)
    return f"{LIGER_DISTRIBUTION} {importlib.metadata.version(LIGER_DISTRIBUTION)}"


def _is_liger_installed() -> bool:
    return importlib.util.find_spec(LIGER_PACKAGE) is not None
