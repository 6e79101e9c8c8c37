"""Toy bases, trained adapters, and the inputs of the tests of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from clinpeft.adapters.checkpoint import ADAPTER_SPEC_TYPE
from clinpeft.recipe import LanguageModelSpec
from clinpeft.training.checkpoint import copy_into_parameters

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
SIZES: dict[str, dict[str, Any]] = {
    "adaption-prompt": {"tokens": 3, "layers": 2},
    "p-tuning": {"tokens": 3, "hidden": 8},
    "prefix": {"tokens": 3},
    "prompt": {"tokens": 3},
}


def load(folder: Path, precision: str = "float32") -> models.FrozenBaseModel:
    return models.load_base_model(
        LanguageModelSpec.model_validate(
            {"path": folder, "precision": precision, "max_tokens": 32}
        ),
        torch.device("cpu"),
    )


def spec(method: str, **options: Any) -> Any:
    return ADAPTER_SPEC_TYPE.validate_python({"method": method} | SIZES.get(method, {}) | options)


def earlier(method: str, run: str = "clinical", **options: Any) -> Any:
    """An adapter of an earlier run, frozen unless the options say otherwise."""
    return ADAPTER_SPEC_TYPE.validate_python(
        {"method": method, "from_run": run, "trainable": False} | options
    )


def shake(stack: Stack, seed: int = 1) -> None:
    """Every trained weight learns something."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def copy_trained_state(stack: Stack) -> dict[str, torch.Tensor]:
    """A copy of every trained tensor, in float32."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in stack.trained_parameters.items()
    }


def load_trained_state(stack: Stack, tensors: dict[str, torch.Tensor]) -> None:
    copy_into_parameters(stack.trained_parameters, tensors)


def answers(stack: Stack) -> torch.Tensor:
    with torch.no_grad():
        return adapters.compute_token_logits(stack, IDS, MASK)[MASK == 1]


def finished(base: Path, method: str, folder: Path, seed: int = 1, **options: Any) -> Path:
    """The adapter folder of a run that has learned something."""
    stack = adapters.attach_adapters(load(base), [spec(method, **options)])
    shake(stack, seed)
    adapters.save_adapter(stack, folder)
    return folder
