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
from clinpeft.models.load import Base
from clinpeft.runtime.kernels import PLAIN

TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
"""How far a logit may lie off in another place, as a share of the largest logit of its task: bfloat16 carries 8 bits, and the looser place counts."""


@dataclass(frozen=True)
class Place:
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
    kernels: str = PLAIN

    def as_json(self) -> dict[str, object]:
        """As it stands in ``head.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Place:
        """What ``as_json`` gave; a KeyError where something is missing."""
        return cls(**{field.name: {"kernels": PLAIN, **found}[field.name] for field in fields(cls)})


@dataclass(frozen=True, eq=False)
class Probe:
    """A question about nobody, and its answer.

    Attributes:
        input_ids: (rows, time) int64, no padding; never from a note.
        logits: task -> (rows, classes), float32, on the CPU.
        location: where they were computed.
    """

    input_ids: torch.Tensor
    logits: Mapping[str, torch.Tensor]
    location: Place


def probe_ids(base: Base, seed: int, rows: int = 4, time: int = 32) -> torch.Tensor:
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
    long = min(time, base.max_tokens) if base.max_tokens else time
    drawn = torch.randint(
        len(ordinary), (rows, long), generator=torch.Generator().manual_seed(seed)
    )
    return ordinary[drawn]


def place_now(base: Base) -> Place:
    """Where a base would compute at this moment."""
    device = base.model.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.backends.cpu.get_cpu_capability()} {_cpu_name()}".strip()
    )
    precision = str(base.precision).removeprefix("torch.")
    return Place(
        torch.__version__,
        transformers.__version__,
        device.type,
        name,
        torch.get_num_threads(),
        precision,
        base.kernels,
    )


def _cpu_name() -> str:
    """Its name, where this release of torch knows it: two makes with the same instructions take different paths through a library."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return ""
    return str(torch.cpu.get_capabilities().get("cpu_name", ""))


def check_probe(probe: Probe, logits_now: Mapping[str, torch.Tensor], where_now: Place) -> None:
    """That a model answers the probe as it did: to the bit in the same place, within ``TOLERANCE`` of the largest logit elsewhere.

    Args:
        probe: as it was kept.
        logits_now: task -> (rows, classes) for ``probe.input_ids``, on any device.
        where_now: from ``place_now``.

    Raises:
        AdapterError: other tasks, or answers of another shape.
        RefusedError: other answers; it says how large the largest difference is.
    """
    now = {task: logits.detach().to("cpu", torch.float32) for task, logits in logits_now.items()}
    _check_shapes(probe.logits, now)
    same_place = probe.location == where_now
    tolerance = max(TOLERANCE[location.precision] for location in (probe.location, where_now))
    for task, then in probe.logits.items():
        difference, allowed = (
            float((now[task] - then).abs().max()),
            0.0 if same_place else tolerance * float(then.abs().max()),
        )
        if not difference <= allowed:  # so that NaN is refused
            raise _refused(task, difference, allowed, probe.location, where_now)


def _check_shapes(then: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> None:
    shapes, wanted = (
        {task: tuple(logits.shape) for task, logits in given.items()} for given in (now, then)
    )
    if shapes != wanted:
        raise AdapterError(
            f"the probe has answers {wanted}, and now they are {shapes}",
            location="probe",
            hint="load the head's whole folder again",
        )


def _refused(task: str, difference: float, allowed: float, then: Place, now: Place) -> RefusedError:
    changed = [
        f"{name} {old} -> {now.as_json()[name]}"
        for name, old in then.as_json().items()
        if old != now.as_json()[name]
    ]
    where = (
        f"elsewhere ({', '.join(changed)}), where {allowed:.3g} would pass"
        if changed
        else "in the same place, where every bit is the same"
    )
    message = f"the answers of {task} to the probe differ by {difference:.3g} from those at training, {where}"
    return RefusedError(
        message,
        location="probe",
        hint="load the base, adapters and head of one run; nothing this model says can be trusted",
    )
