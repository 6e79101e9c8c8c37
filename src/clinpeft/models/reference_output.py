"""The probe: invented tokens and what they were answered with, kept with a head, so that a model that answers otherwise is found out.

A wrong base, a missing adapter, another tokenizer or a library that computes differently all load without a complaint. Asked the same, they show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import transformers

from clinpeft.core.errors import AdapterError, RefusedError, UsageError
from clinpeft.models.load import FrozenBaseModel
from clinpeft.runtime.kernels import TORCH_KERNELS

REFERENCE_OUTPUT_TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}
"""How far a logit may lie off in another place, as a share of the largest logit of its task: bfloat16 carries 8 bits, and the looser place counts."""


@dataclass(frozen=True)
class ComputeEnvironment:
    """Where numbers were computed: in the same place they come out the same, to the bit.

    Attributes:
        torch, transformers: versions.
        device: its type.
        processor: the instructions that torch chose and the name of the processor, or that of the GPU.
        threads: of the CPU; how sums are cut depends on it.
        precision: of weights and computation.
        kernels: whose norms and gates; files of older versions say nothing of it.
    """

    torch: str
    transformers: str
    device: str
    processor: str
    threads: int
    precision: str
    kernels: str = TORCH_KERNELS

    def as_json(self) -> dict[str, object]:
        """As it stands in ``head.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ComputeEnvironment:
        """What ``as_json`` gave; a KeyError where something is missing."""
        return cls(
            **{
                field.name: {"kernels": TORCH_KERNELS, **document}[field.name]
                for field in fields(cls)
            }
        )


@dataclass(frozen=True, eq=False)
class ReferenceOutput:
    """A question about nobody, and its answer.

    Attributes:
        input_ids: (rows, time) int64, no padding; never from a note.
        logits: task -> (rows, classes), float32, on the CPU.
        environment: where they were computed.
    """

    input_ids: torch.Tensor
    logits: Mapping[str, torch.Tensor]
    environment: ComputeEnvironment


def sample_reference_tokens(
    base: FrozenBaseModel, seed: int, rows: int = 4, length_tokens: int = 32
) -> torch.Tensor:
    """Token ids (rows, time), int64, drawn with a seed from the tokenizer's ordinary ones: no special token, and none beyond ``max_tokens``.

    Raises:
        UsageError: a tokenizer without ordinary tokens.
    """
    special = set(base.tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(base.tokenizer)) if token not in special])
    if not len(ordinary):
        raise UsageError(
            "the tokenizer has special tokens only",
            location=str(base.folder),
            hint="use the tokenizer of these weights",
        )
    long = min(length_tokens, base.max_tokens) if base.max_tokens else length_tokens
    drawn = torch.randint(
        len(ordinary), (rows, long), generator=torch.Generator().manual_seed(seed)
    )
    return ordinary[drawn]


def describe_environment(base: FrozenBaseModel) -> ComputeEnvironment:
    """Where a base would compute at this moment."""
    device = base.model.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.backends.cpu.get_cpu_capability()} {_get_cpu_name()}".strip()
    )
    precision = str(base.precision).removeprefix("torch.")
    return ComputeEnvironment(
        torch.__version__,
        transformers.__version__,
        device.type,
        name,
        torch.get_num_threads(),
        precision,
        base.kernels,
    )


def _get_cpu_name() -> str:
    """Its name, where this release of torch knows it: two makes with the same instructions take different paths through a library."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return ""
    return str(torch.cpu.get_capabilities().get("cpu_name", ""))


def check_reference_output(
    reference_output: ReferenceOutput,
    current_logits: Mapping[str, torch.Tensor],
    current_environment: ComputeEnvironment,
) -> None:
    """That a model answers the probe as it did: to the bit in the same place, within ``TOLERANCE`` of the largest logit elsewhere.

    Args:
        reference_output: as it was kept.
        current_logits: task -> (rows, classes) for ``probe.input_ids``, on any device.
        current_environment: from ``place_now``.

    Raises:
        AdapterError: other tasks, or answers of another shape.
        RefusedError: other answers; it says how large the largest difference is.
    """
    now = {
        task: logits.detach().to("cpu", torch.float32) for task, logits in current_logits.items()
    }
    _check_logit_shapes(reference_output.logits, now)
    same_place = reference_output.environment == current_environment
    tolerance = max(
        REFERENCE_OUTPUT_TOLERANCES[location.precision]
        for location in (reference_output.environment, current_environment)
    )
    for task, then in reference_output.logits.items():
        difference, allowed = (
            float((now[task] - then).abs().max()),
            0.0 if same_place else tolerance * float(then.abs().max()),
        )
        if not difference <= allowed:  # so that NaN is refused
            raise _create_mismatch_error(
                task, difference, allowed, reference_output.environment, current_environment
            )


def _check_logit_shapes(
    reference_logits: Mapping[str, torch.Tensor], current_logits: Mapping[str, torch.Tensor]
) -> None:
    shapes, wanted = (
        {task: tuple(logits.shape) for task, logits in given.items()}
        for given in (current_logits, reference_logits)
    )
    if shapes != wanted:
        raise AdapterError(
            f"the probe has answers {wanted}, and now they are {shapes}",
            location="probe",
            hint="load the head's whole folder again",
        )


def _create_mismatch_error(
    task: str,
    difference: float,
    tolerance: float,
    reference_environment: ComputeEnvironment,
    current_environment: ComputeEnvironment,
) -> RefusedError:
    changed = [
        f"{name} {old} -> {current_environment.as_json()[name]}"
        for name, old in reference_environment.as_json().items()
        if old != current_environment.as_json()[name]
    ]
    where = (
        f"elsewhere ({', '.join(changed)}), where {tolerance:.3g} would pass"
        if changed
        else "in the same place, where every bit is the same"
    )
    message = f"the answers of {task} to the probe differ by {difference:.3g} from those at training, {where}"
    return RefusedError(
        message,
        location="probe",
        hint="load the base, adapters and head of one run; nothing this model says can be trusted",
    )
