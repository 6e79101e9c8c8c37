"""Reference outputs: logits of random tokens, saved with a head to recognize a changed model.

A wrong base, a missing adapter, another tokenizer, or a library that computes differently all load
without an error. They show when the saved tokens give other logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from pydantic import TypeAdapter

from clinpeft.core.errors import AdapterError, RefusedError, UsageError
from clinpeft.models.load import FrozenBaseModel, read_cpu_capabilities
from clinpeft.runtime.kernels import TORCH_KERNELS

REFERENCE_OUTPUT_TOLERANCES = {"float32": 1e-3, "bfloat16": 3e-2}
"""Precision -> largest difference of a logit between environments, as a fraction of the largest
logit of its task; the larger one applies. bfloat16 has 8 bits of precision, 2**-8 = 0.004."""


@dataclass(frozen=True)
class ComputeEnvironment:
    """Where numbers were computed; in an equal environment they are equal to the bit.

    Attributes:
        torch: version.
        transformers: version.
        device: its type.
        processor: the instruction set that torch uses and the name of the CPU, or the name of the
            GPU.
        threads: of the CPU, which decide the order of sums.
        precision: of weights and computation.
        kernels: implementation of norms and gates; files of older versions lack it.
    """

    torch: str
    transformers: str
    device: str
    processor: str
    threads: int
    precision: str
    kernels: str = TORCH_KERNELS

    def as_json(self) -> dict[str, object]:
        """Return the environment as in ``head.json``."""
        document: dict[str, object] = _ENVIRONMENT_ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ComputeEnvironment:
        """Read what ``as_json`` returned.

        Raises:
            pydantic.ValidationError: a field is missing or of another type.
        """
        return _ENVIRONMENT_ADAPTER.validate_python(dict(document))


_ENVIRONMENT_ADAPTER = TypeAdapter(ComputeEnvironment)


@dataclass(frozen=True, eq=False)
class ReferenceOutput:
    """Random tokens and their logits.

    Attributes:
        input_ids: (rows, time) int64, without padding; never tokens of a note.
        logits: task -> (rows, classes), float32, on the CPU.
        environment: where they were computed.
    """

    input_ids: torch.Tensor
    logits: Mapping[str, torch.Tensor]
    environment: ComputeEnvironment


def sample_reference_tokens(
    base: FrozenBaseModel, seed: int, rows: int = 4, length_tokens: int = 32
) -> torch.Tensor:
    """Sample token ids uniformly from those of a tokenizer that are not special tokens.

    Args:
        base: whose tokenizer; its ``max_tokens`` limits the length.
        seed: of the sample.
        rows: number of sequences.
        length_tokens: tokens of each.

    Returns:
        (rows, time) int64.

    Raises:
        UsageError: the tokenizer has special tokens only.
    """
    # padding or mask tokens are treated specially by some models
    special = set(base.tokenizer.all_special_ids)
    ids = [token for token in range(len(base.tokenizer)) if token not in special]
    if not ids:
        raise UsageError(
            "the tokenizer has special tokens only",
            location=str(base.folder),
            hint="use the tokenizer of these weights",
        )
    # a base may have fewer positions than the default length
    length = min(length_tokens, base.max_tokens) if base.max_tokens else length_tokens
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(len(ids), (rows, length), generator=generator)  # (rows, time)
    return torch.tensor(ids)[sample]


def describe_environment(base: FrozenBaseModel) -> ComputeEnvironment:
    """Return the environment in which a base computes now."""
    device = base.model.device
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        # two CPUs with the same instruction set can take different paths through a library;
        # older releases of torch do not know the name
        name = str(read_cpu_capabilities().get("cpu_name", ""))
        processor = f"{torch.backends.cpu.get_cpu_capability()} {name}".strip()
    return ComputeEnvironment(
        torch=torch.__version__,
        transformers=transformers.__version__,
        device=device.type,
        processor=processor,
        threads=torch.get_num_threads(),
        precision=str(base.precision).removeprefix("torch."),
        kernels=base.kernels,
    )


def check_reference_output(
    reference_output: ReferenceOutput,
    current_logits: Mapping[str, torch.Tensor],
    current_environment: ComputeEnvironment,
) -> None:
    """Check that a model computes the logits of a reference output again.

    They must be equal to the bit in an equal environment, and otherwise equal within
    ``REFERENCE_OUTPUT_TOLERANCES`` of the largest logit of their task.

    Args:
        reference_output: as it was saved.
        current_logits: task -> (rows, classes) of ``reference_output.input_ids``, on any device.
        current_environment: from ``describe_environment``.

    Raises:
        AdapterError: other tasks, or logits of another shape.
        RefusedError: other logits; the message has the largest difference.
    """
    # float32 holds bfloat16 exactly, so the conversion changes no comparison
    current = {
        task: logits.detach().to("cpu", torch.float32) for task, logits in current_logits.items()
    }
    shapes = {task: tuple(logits.shape) for task, logits in current.items()}
    expected = {task: tuple(logits.shape) for task, logits in reference_output.logits.items()}
    if shapes != expected:
        raise AdapterError(
            f"the reference output has logits of {expected}, and the model gives {shapes}",
            location="probe",
            hint="load the head's whole folder again",
        )
    before, now = reference_output.environment.as_json(), current_environment.as_json()
    changes = [
        f"{name} {before[name]} -> {now[name]}" for name in before if before[name] != now[name]
    ]
    # both matter: the saved logits may be the less precise ones
    precisions = (reference_output.environment.precision, current_environment.precision)
    fraction = max(REFERENCE_OUTPUT_TOLERANCES[precision] for precision in precisions)
    for task, logits in reference_output.logits.items():  # (rows, classes)
        # over (rows, classes)
        difference = float((current[task] - logits).abs().max())
        tolerance = fraction * float(logits.abs().max()) if changes else 0.0
        if not difference <= tolerance:  # negated, so that NaN is refused
            context = (
                f"in another environment ({', '.join(changes)}), with tolerance {tolerance:.3g}"
                if changes
                else "in the same environment, where they are equal to the bit"
            )
            raise RefusedError(
                f"the reference logits of {task} differ by {difference:.3g} {context}",
                location="probe",
                hint="load the base, adapters and head of one run; do not use the outputs of this "
                "model",
            )
