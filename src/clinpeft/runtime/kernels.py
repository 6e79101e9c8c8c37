"""Norms and gates of a GPU in one kernel each, where a recipe asks for those of liger (Hsu et al. 2024, arXiv 2410.10989).

liger replaces classes and functions in transformers' modules, for every model that is made afterwards; here they are put back, and the given model
alone keeps what it got. Losses stay ours: what liger has for them is switched off; and so does the rotation, which liger makes in place and can only
replace for every model of a kind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import Any

import torch

from clinpeft.core.errors import BaseModelError, UsageError
from clinpeft.models.families import MODEL_FAMILIES, ModelFamily
from clinpeft.models.folder import check_model_folder
from clinpeft.recipe import PretrainedModelSpec

LIGER_PACKAGE, LIGER_DISTRIBUTION = "liger_kernel", "liger-kernel"
DISABLED_LIGER_OPTIONS = {
    "rope": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}

TORCH_KERNELS = "torch"


def check_kernels_available(spec: PretrainedModelSpec, device: torch.device) -> None:
    """Stop before any weight is read where the kernels that are asked for cannot be had.

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
    model_type = check_model_folder(spec.path)["model_type"]
    if not MODEL_FAMILIES[model_type].liger_kernels:
        known = ", ".join(name for name, family in MODEL_FAMILIES.items() if family.liger_kernels)
        message = f'kernels = "{spec.kernels}" for a {model_type} model, for which there are none'
        raise BaseModelError(message, location=location, hint=f"{hint}; there are some for {known}")


def install_liger_kernels(
    model: Any, family: ModelFamily, spec: PretrainedModelSpec, device: torch.device
) -> str:
    """Give a model the kernels that are asked for, where they can be had: a run that learned with them is read without them elsewhere.

    Returns:
        Which it has, for the record.
    """
    if (
        spec.kernels == TORCH_KERNELS
        or device.type != "cuda"
        or not family.liger_kernels
        or not _is_liger_installed()
    ):
        return TORCH_KERNELS
    from liger_kernel.transformers import monkey_patch  # here, because it imports Triton

    model_type = model.config.model_type
    here = sys.modules[type(model).__module__]
    before = dict(vars(here))
    try:
        monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[model_type](
            model=model, **dict.fromkeys(family.liger_kernels, True), **DISABLED_LIGER_OPTIONS
        )
    finally:
        vars(here).update(before)
    return f"{LIGER_DISTRIBUTION} {importlib.metadata.version(LIGER_DISTRIBUTION)}"


def _is_liger_installed() -> bool:
    return importlib.util.find_spec(LIGER_PACKAGE) is not None
