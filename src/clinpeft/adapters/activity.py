"""Checks, in every run, that each adapter takes part in it and that nothing frozen changed.

An adapter that is not in the forward pass trains without an error: the loss falls because the head
is trained, and the metrics are those of another model. The released code of arXiv 2307.03042 adds a
second adapter and never activates it. So a run is monitored from its first weights to its last, and
ends without a result when an adapter had no effect, or when something frozen moved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic
import torch

from clinpeft.adapters.stack import AttachedAdapter, Stack, use_eval_mode
from clinpeft.core.errors import TrainingError

ProbeFunction = Callable[[], torch.Tensor]
MonitoredParameters = Mapping[str, torch.nn.Parameter]

HASHING_CHUNK_BYTES = 1 << 26  # 64 MiB on the CPU at a time
HASHING_THREADS = 4  # each with one chunk in memory
BASE_GROUP, HEAD_GROUP = "base", "head"


@dataclass(frozen=True)
class AdapterEvidence:
    """Measurements of one adapter, of one head, or of the base where it is trained.

    Attributes:
        name: of the adapter or the head; ``base`` for the base.
        role: what the recipe says of it.
        parameters: number of trained parameters.
        gradient: norm of the gradient of the sum of squared probe logits at the end; None for what
            is not trained or is no part of the probe.
        moved: largest change of a trained weight since the start; None for what is not trained.
        change_when_off: largest change of a probe logit when it is switched off, and for an inert
            adapter when its weights are changed; None for what cannot be switched off.
    """

    name: str
    role: Literal["trained", "frozen", "merged", "inert"]
    parameters: int
    gradient: float | None = None
    moved: float | None = None
    change_when_off: float | None = None

    def list_failures(self, noise: float) -> list[str]:
        """List what contradicts the role, empty where everything is as it should be.

        Args:
            noise: largest difference of two forward passes over the same probe.
        """
        failures = []
        change, gradient, moved = self.change_when_off, self.gradient, self.moved
        # all comparisons are written so that NaN counts as a failure
        if self.role == "inert" and not (change is not None and change <= noise):
            failures.append(f"is inert by the recipe, and its weights change a logit by {change:g}")
        if self.role != "inert" and change is not None and not change > noise:
            failures.append(
                f"changes no logit when it is switched off ({change:g}): it is zero, or not part of"
                " the forward pass"
            )
        # a head outside of the probe has no gradient; an adapter without one has no effect
        in_probe = gradient is not None or change is not None or self.name == BASE_GROUP
        if self.role == "trained" and in_probe and not 0 < (gradient or 0.0) < math.inf:
            failures.append(
                f"is trained, and gets no gradient (norm {gradient or 0.0:g}): it is not part of"
                " the forward pass"
            )
        if self.role == "trained" and not 0 < (moved or 0.0) < math.inf:
            failures.append(f"was trained, and did not move (largest change {moved or 0.0:g})")
        return failures


@dataclass(frozen=True)
class AdapterActivity:
    """Evidence of a run in which every check passed.

    Attributes:
        proofs: adapters first to last, then base and heads, where they are trained.
        noise: largest difference of two forward passes over the same probe; 0 where a forward pass
            is deterministic. Only a change above it counts.
        frozen_tensors: number of frozen tensors, all unchanged.
        frozen_sha256: over all of them, the same before and after.
    """

    proofs: tuple[AdapterEvidence, ...]
    noise: float
    frozen_tensors: int
    frozen_sha256: str

    def as_json(self) -> dict[str, Any]:
        """Dump the evidence as ``run.json`` holds it."""
        document: dict[str, Any] = _ACTIVITY_TYPE.dump_python(self, mode="json")
        return document


_ACTIVITY_TYPE = pydantic.TypeAdapter(AdapterActivity)


@dataclass(frozen=True)
class AdapterMonitor:
    """A stack (and heads) as they were before the first step; made by ``monitor_adapters``.

    Attributes:
        stack: base and adapters of the run.
        head_parameters: trained parameters outside of the stack: heads.
        initial_values: a copy of everything that is trained, on the CPU.
        frozen_hashes: name -> sha256 of every frozen tensor.
    """

    stack: Stack
    head_parameters: MonitoredParameters = field(repr=False)
    initial_values: dict[str, torch.Tensor] = field(repr=False)
    frozen_hashes: dict[str, str] = field(repr=False)

    def verify(self, compute_probe_logits: ProbeFunction) -> AdapterActivity:
        """Compare with the state after the last step.

        Weights, modes and active adapters are left as they were; gradients are cleared.

        Args:
            compute_probe_logits: computes the logits of a few examples (any shape) through the
                stack, with gradients.

        Raises:
            TrainingError: an adapter or a head has no effect, an inert adapter has one, or a frozen
                tensor changed. The message names each of them and the failed check.
        """
        # 1. nothing frozen may be trainable: peft changes requires_grad when it switches adapters
        frozen = _collect_frozen_tensors(self.stack)
        if unfrozen := sorted(name for name, tensor in frozen.items() if tensor.requires_grad):
            raise _create_activity_error(
                f"{unfrozen[0].partition(': ')[0]} is frozen, and {len(unfrozen)} of its tensors"
                f" take gradients, such as {unfrozen[0]}"
            )
        parameters = _prefix_head_names(self.stack, self.head_parameters)
        # 2. without dropout, or two forward passes would differ by their masks
        with use_eval_mode(self.stack.model), _clear_gradients(parameters):
            with torch.enable_grad():
                # any shape; every reduction below is over all of its numbers
                logits = compute_probe_logits()
                if not bool(torch.isfinite(logits).all()):
                    raise _create_activity_error("the probe gave logits that are NaN or infinite")
                if logits.requires_grad:
                    # the squared norm depends on every logit and needs no labels
                    logits.float().square().sum().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                # on a GPU, atomic additions may sum in another order each time
                logits, repeated = compute_probe_logits(), compute_probe_logits()
                noise = float((logits - repeated).abs().max())
                proofs = [
                    self._measure_adapter(adapter, parameters, logits, compute_probe_logits)
                    for adapter in self.stack.adapters
                ]
            proofs += [
                self._measure_group(name, group)
                for name, group in self._group_other_parameters(parameters).items()
            ]
        # 3. nothing frozen may have moved, to the bit
        hashes = _hash_tensors(frozen)
        names = hashes.keys() | self.frozen_hashes.keys()
        changed = sorted(name for name in names if hashes.get(name) != self.frozen_hashes.get(name))
        failures = [
            f"{proof.name} {what}" for proof in proofs for what in proof.list_failures(noise)
        ]
        if changed:
            owner = changed[0].partition(": ")[0]
            failures.insert(
                0, f"{owner} is frozen, and {len(changed)} tensors changed, such as {changed[0]}"
            )
        if failures:
            raise _create_activity_error("; ".join(failures))
        digest = combine_tensor_hashes(self.frozen_hashes)
        return AdapterActivity(tuple(proofs), noise, len(self.frozen_hashes), digest)

    def _group_other_parameters(
        self, parameters: MonitoredParameters
    ) -> dict[str, MonitoredParameters]:
        """Group what is trained beside adapters: the base as a whole, every head by itself."""
        # "owned" by an adapter, which is measured by itself
        owned = {name for adapter in self.stack.adapters for name in adapter.trained_parameters}
        groups: dict[str, dict[str, torch.nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if name in self.stack.trained_parameters:
                if name not in owned:
                    groups.setdefault(BASE_GROUP, {})[name] = parameter
            else:  # head:mortality.weight is of the head mortality, head:weight of the head
                head = name.removeprefix(f"{HEAD_GROUP}:").rpartition(".")[0] or HEAD_GROUP
                groups.setdefault(head, {})[name] = parameter
        return dict(groups)

    def _measure_adapter(
        self,
        adapter: AttachedAdapter,
        parameters: MonitoredParameters,
        logits: torch.Tensor,
        compute_probe_logits: ProbeFunction,
    ) -> AdapterEvidence:
        if adapter.name in self.stack.disabled_adapters:
            # inert: its weights may be anything, so that a change of them must change no logit
            originals = {parameter: parameter.clone() for parameter in adapter.parameters.values()}
            try:
                for parameter in originals:
                    parameter.add_(1.0)
                change = float((compute_probe_logits() - logits).abs().max())
            finally:
                for parameter, original in originals.items():
                    parameter.copy_(original)
        else:
            # switched off, an adapter that takes part must change at least one logit
            with self.stack.disable_adapter(adapter.name):
                change = float((compute_probe_logits() - logits).abs().max())
        # gradient and movement are measured for trained adapters only
        if not adapter.trained_parameters:
            role: Literal["merged", "frozen"] = "merged" if adapter.merged_weights else "frozen"
            return AdapterEvidence(
                adapter.name, role if adapter.spec.active else "inert", 0, change_when_off=change
            )
        group = {name: parameters[name] for name in adapter.trained_parameters}
        return self._measure_group(adapter.name, group, change)

    def _measure_group(
        self, name: str, parameters: MonitoredParameters, change_when_off: float | None = None
    ) -> AdapterEvidence:
        gradients = [
            parameter.grad for parameter in parameters.values() if parameter.grad is not None
        ]
        # float64, or the squares of many small gradients vanish in the sum
        squares = [gradient.double().square().sum().item() for gradient in gradients]
        # compared on the CPU, where the initial values are
        changes = [
            parameter.detach().to("cpu", initial.dtype).sub(initial).abs().max()
            for parameter, initial in (
                (parameter, self.initial_values[key]) for key, parameter in parameters.items()
            )
            if initial.numel()
        ]
        return AdapterEvidence(
            # None where no parameter has a gradient: not part of the probe
            name,
            "trained",
            sum(parameter.numel() for parameter in parameters.values()),
            math.sqrt(sum(squares)) if squares else None,
            max(map(float, changes), default=0.0),
            change_when_off,
        )


def monitor_adapters(
    stack: Stack, head_parameters: MonitoredParameters | None = None
) -> AdapterMonitor:
    """Start to monitor a run: before its first step, and before a checkpoint is loaded.

    Every frozen tensor is read once here and once at the end, 64 MiB at a time.

    Args:
        stack: as ``attach_adapters`` returned it.
        head_parameters: name -> parameter of what is trained outside of it: ``weight`` and ``bias``
            of one head, or ``mortality.weight`` of one of several.
    """
    trained = _prefix_head_names(stack, head_parameters or {})
    initial = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items()}
    hashes = _hash_tensors(_collect_frozen_tensors(stack))
    return AdapterMonitor(stack, dict(head_parameters or {}), initial, hashes)


def _prefix_head_names(stack: Stack, head_parameters: MonitoredParameters) -> MonitoredParameters:
    """Name every trained parameter of a run, those of heads with a prefix."""
    heads = {f"{HEAD_GROUP}:{name}": parameter for name, parameter in head_parameters.items()}
    return {**stack.trained_parameters, **heads}


def _collect_frozen_tensors(stack: Stack) -> dict[str, torch.Tensor]:
    """Collect every tensor that is not trained: of the base and of frozen or inert adapters."""
    # by identity: a tied weight has several names, and is one tensor
    trained = {
        id(parameter) for parameter in (*stack.trained_parameters.values(), *stack.other_parameters)
    }
    tensors: dict[int, tuple[str, torch.Tensor]] = {
        id(parameter): (f"{adapter.name}: {name}", parameter)
        for adapter in stack.adapters
        for name, parameter in adapter.parameters.items()
    }
    # a state dict holds parameters and persistent buffers; other buffers are computed when needed
    for name, tensor in stack.base.model.state_dict(keep_vars=True).items():
        # peft wraps a layer as "base_layer"; its name is to be the same with and without a wrapper
        plain_name = f"{BASE_GROUP}: {name.replace('.base_layer.', '.')}"
        tensors.setdefault(id(tensor), (plain_name, tensor))
    return {name: tensor for key, (name, tensor) in tensors.items() if key not in trained}


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    # hashlib releases the interpreter lock, so that threads run in parallel
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        return dict(zip(tensors, threads.map(hash_tensor, tensors.values()), strict=True))


def hash_tensor(tensor: torch.Tensor) -> str:
    """Hash type, shape and bytes of a tensor, brought to the CPU chunk by chunk.

    Returns:
        sha256, hexadecimal.
    """
    # the type and shape first, so that a reinterpretation of the same bytes differs
    digest = hashlib.sha256(str((tensor.dtype, tuple(tensor.shape))).encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)  # (bytes,)
    for chunk in torch.split(flat, HASHING_CHUNK_BYTES):
        digest.update(chunk.cpu().numpy().data)
    return digest.hexdigest()


def combine_tensor_hashes(hashes: Mapping[str, str]) -> str:
    """Combine the hashes of named tensors into one sha256, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name} {hashes[name]}\n".encode())
    return digest.hexdigest()


@contextmanager
def _clear_gradients(parameters: MonitoredParameters) -> Iterator[None]:
    """No parameter has a gradient, before the block and after it."""
    for parameter in parameters.values():
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _create_activity_error(message: str) -> TrainingError:
    hint = (
        "the results of this run would be those of another model: report it with the recipe, unless"
        " the learning rate is too small to matter"
    )
    return TrainingError(message, location="adapters", hint=hint)
