"""Proof, in every run, that what was meant to work works: nothing else would notice.

An adapter that is not in the forward pass trains without complaint: the loss falls, because the head learns; the numbers come out, and they are those
of another model. It has happened in print (the released code of arXiv 2307.03042 adds a second adapter and never activates it). So a run is watched
from its first weights to its last, and ends without a result when something in it was dead, or moved that was to stay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from clinpeft.adapters.stack import AttachedAdapter, Stack, use_eval_mode
from clinpeft.core.errors import TrainingError

ProbeFunction = Callable[[], torch.Tensor]
MonitoredParameters = Mapping[str, torch.nn.Parameter]
NamedGradients = Mapping[str, torch.Tensor | None]

HASHING_CHUNK_BYTES = 1 << 26
HASHING_THREADS = 4
BASE_GROUP, HEAD_GROUP = "base", "head"


@dataclass(frozen=True)
class AdapterEvidence:
    """What was found of one adapter, of one head, or of the base where it is trained.

    Attributes:
        name: the adapter's; ``base``; or the head's.
        role: what it was meant to be.
        parameters: how many of its own are trained.
        gradient: norm of the gradient of the squared probe logits at the end; None for what is not trained, or was not part of the probe.
        moved: largest change of a trained weight since the start; None for what is not trained.
        change_when_off: largest change of a probe logit when it is switched off, and for an inert one when its weights are moved; None for what
            cannot be switched off.
    """

    name: str
    role: Literal["trained", "frozen", "merged", "inert"]
    parameters: int
    gradient: float | None = None
    moved: float | None = None
    change_when_off: float | None = None


@dataclass(frozen=True)
class AdapterActivity:
    """What a witness saw of a run in which everything was as it should be.

    Attributes:
        proofs: adapters first to last, then base and heads, where they are trained.
        noise: how far two answers to the same probe lie apart, 0 where a forward pass repeats itself exactly; a change counts from there on.
        frozen_tensors: how many tensors were to stay, and stayed.
        frozen_sha256: over all of them, before and after.
    """

    proofs: tuple[AdapterEvidence, ...]
    noise: float
    frozen_tensors: int
    frozen_sha256: str

    def as_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        return asdict(self)


@dataclass(frozen=True)
class AdapterMonitor:
    """A stack (and heads) as they were before the first step; ``watch`` makes it.

    Attributes:
        stack: what is trained, or stands below what is.
        head_parameters: trained parameters outside of the stack: heads.
        initial_values: a copy of everything that is trained, on the CPU.
        frozen_hashes: name -> sha256 of everything that is to stay.
    """

    stack: Stack
    head_parameters: MonitoredParameters = field(repr=False)
    initial_values: dict[str, torch.Tensor] = field(repr=False)
    frozen_hashes: dict[str, str] = field(repr=False)

    def verify(self, compute_probe_logits: ProbeFunction) -> AdapterActivity:
        """Compare with the state after the last step; everything is left as it was found, and gradients are cleared.

        Args:
            compute_probe_logits: the logits of a few examples, by the way that leads through the stack, with gradients.

        Raises:
            TrainingError: an adapter or a head is dead, an inert one is not, or something moved that was to stay. The message names each, and which
                proof failed.
        """
        frozen = _collect_frozen_tensors(self.stack)
        _check_frozen(frozen)
        with use_eval_mode(self.stack.model), _clear_gradients(self._collect_trained_parameters()):
            _backpropagate_probe(compute_probe_logits)
            logits, noise = _measure_repeat_noise(compute_probe_logits)
            gradients = {
                name: parameter.grad
                for name, parameter in self._collect_trained_parameters().items()
            }
            proofs = [
                self._measure_adapter(adapter, gradients, logits, compute_probe_logits)
                for adapter in self.stack.adapters
            ]
            proofs += [
                self._measure_group(name, names, gradients)
                for name, names in self._group_other_parameters().items()
            ]
        failures = [
            *_describe_changed_tensors(self.frozen_hashes, _hash_tensors(frozen)),
            *(f"{proof.name} {what}" for proof in proofs for what in _list_failures(proof, noise)),
        ]
        if failures:
            raise _create_activity_error("; ".join(failures))
        return AdapterActivity(
            tuple(proofs), noise, len(self.frozen_hashes), _combine_hashes(self.frozen_hashes)
        )

    def _collect_trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {
            **self.stack.trained_parameters,
            **{
                _prefix_head_name(name): parameter
                for name, parameter in self.head_parameters.items()
            },
        }

    def _group_other_parameters(self) -> dict[str, list[str]]:
        """Group -> names of what is trained beside adapters: the base as a whole, every head by itself."""
        owned = {name for adapter in self.stack.adapters for name in adapter.trained_parameters}
        groups: dict[str, list[str]] = {}
        for name in self.stack.trained_parameters:
            if name not in owned:
                groups.setdefault(BASE_GROUP, []).append(name)
        for name in self.head_parameters:
            groups.setdefault(name.rpartition(".")[0] or HEAD_GROUP, []).append(
                _prefix_head_name(name)
            )
        return groups

    def _measure_adapter(
        self,
        adapter: AttachedAdapter,
        gradients: NamedGradients,
        logits: torch.Tensor,
        compute_probe_logits: ProbeFunction,
    ) -> AdapterEvidence:
        change = self._measure_change_without(adapter, logits, compute_probe_logits)
        if not adapter.trained_parameters:
            return AdapterEvidence(
                adapter.name,
                "inert"
                if not adapter.spec.active
                else "merged"
                if adapter.merged_weights
                else "frozen",
                0,
                change_when_off=change,
            )
        return replace(
            self._measure_group(adapter.name, list(adapter.trained_parameters), gradients),
            change_when_off=change,
        )

    def _measure_group(
        self, name: str, parameter_names: list[str], gradients: NamedGradients
    ) -> AdapterEvidence:
        parameters = {each: self._collect_trained_parameters()[each] for each in parameter_names}
        asked = [gradient for each in parameter_names if (gradient := gradients[each]) is not None]
        norm = (
            math.sqrt(sum(gradient.double().square().sum().item() for gradient in asked))
            if asked
            else None
        )
        moved = max(
            (
                _compute_largest_change(parameter, self.initial_values[each])
                for each, parameter in parameters.items()
            ),
            default=0.0,
        )
        return AdapterEvidence(
            name,
            "trained",
            sum(parameter.numel() for parameter in parameters.values()),
            norm,
            moved,
        )

    def _measure_change_without(
        self, adapter: AttachedAdapter, logits: torch.Tensor, compute_probe_logits: ProbeFunction
    ) -> float:
        with torch.no_grad():
            if adapter.name in self.stack.disabled_adapters:
                return _measure_change_when_perturbed(adapter, logits, compute_probe_logits)
            with self.stack.disable_adapter(adapter.name):
                return float((compute_probe_logits() - logits).abs().max())


def monitor_adapters(
    stack: Stack, head_parameters: MonitoredParameters | None = None
) -> AdapterMonitor:
    """Begin to watch a run: before its first step, and before the weights of a checkpoint are put in.

    Every frozen tensor is read once here and once at the end, 64 MB at a time.

    Args:
        stack: as ``attach`` gave it.
        head_parameters: name -> parameter of what is trained outside of it: ``weight`` and ``bias`` of one head, or ``mortality.weight`` of one of several.
    """
    trained = {
        **stack.trained_parameters,
        **{
            _prefix_head_name(name): parameter
            for name, parameter in (head_parameters or {}).items()
        },
    }
    start = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items()}
    return AdapterMonitor(
        stack, dict(head_parameters or {}), start, _hash_tensors(_collect_frozen_tensors(stack))
    )


def _prefix_head_name(name: str) -> str:
    """The name of a head's parameter among the stack's."""
    return f"{HEAD_GROUP}:{name}"


# -------------------------------------------------------------------------------------------------------------------------- what stays


def _collect_frozen_tensors(stack: Stack) -> dict[str, torch.Tensor]:
    """Every tensor that is not trained: of the base, with the buffers it is saved with, and of adapters that are frozen or inert."""
    own = {
        id(parameter): f"{adapter.name}: {name}"
        for adapter in stack.adapters
        for name, parameter in adapter.parameters.items()
    }
    trained = {
        id(parameter) for parameter in (*stack.trained_parameters.values(), *stack.other_parameters)
    }
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for adapter in stack.adapters:
        found |= {
            id(parameter): (own[id(parameter)], parameter)
            for parameter in adapter.parameters.values()
        }
    for name, tensor in stack.base.model.state_dict(
        keep_vars=True
    ).items():  # without buffers that are computed again when they are needed
        found.setdefault(
            id(tensor), (f"{BASE_GROUP}: {name.replace('.base_layer.', '.')}", tensor)
        )  # its own name, whatever lies around it
    return {name: tensor for at, (name, tensor) in found.items() if at not in trained}


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    with ThreadPoolExecutor(HASHING_THREADS) as threads:  # hashing lets other threads run
        return dict(zip(tensors, threads.map(_hash_tensor, tensors.values()), strict=True))


def _hash_tensor(tensor: torch.Tensor) -> str:
    """Of the bytes of one tensor, brought to the CPU piece by piece."""
    whole = hashlib.sha256(str((tensor.dtype, tuple(tensor.shape))).encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for piece in torch.split(flat, HASHING_CHUNK_BYTES):
        whole.update(piece.cpu().numpy().data)
    return whole.hexdigest()


def _combine_hashes(hashes: Mapping[str, str]) -> str:
    """One hash of many, in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(hashes):
        whole.update(f"{name} {hashes[name]}\n".encode())
    return whole.hexdigest()


def _check_frozen(tensors: Mapping[str, torch.Tensor]) -> None:
    loose = sorted(name for name, tensor in tensors.items() if tensor.requires_grad)
    if loose:
        raise _create_activity_error(
            f"{_get_owner_name(loose[0])} is to stay as it is, and {len(loose)} of its tensors take gradients, such as {loose[0]}"
        )


def _describe_changed_tensors(
    hashes_before: Mapping[str, str], hashes_after: Mapping[str, str]
) -> Iterator[str]:
    changed = sorted(
        name
        for name in hashes_before.keys() | hashes_after.keys()
        if hashes_before.get(name) != hashes_after.get(name)
    )
    if changed:
        yield f"{_get_owner_name(changed[0])} was to stay as it was, and {len(changed)} frozen tensors changed, such as {changed[0]}"


def _get_owner_name(tensor_name: str) -> str:
    return tensor_name.partition(": ")[0]


# -------------------------------------------------------------------------------------------------------------------------- what lives


@contextmanager
def _clear_gradients(parameters: MonitoredParameters) -> Iterator[None]:
    """Without gradients, before and after the block."""
    for parameter in parameters.values():
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _backpropagate_probe(compute_probe_logits: ProbeFunction) -> None:
    """Leaves the gradient of the squared logits in whatever is trained."""
    with torch.enable_grad():
        logits = compute_probe_logits()
        if not bool(torch.isfinite(logits).all()):
            raise _create_activity_error("the probe gave logits that are not all numbers")
        if logits.requires_grad:
            logits.float().square().sum().backward()  # type: ignore[no-untyped-call]


def _measure_repeat_noise(compute_probe_logits: ProbeFunction) -> tuple[torch.Tensor, float]:
    """The probe's logits, and how far they are from those of the same question asked again: on a GPU, sums may come out in another order."""
    with torch.no_grad():
        first, second = compute_probe_logits(), compute_probe_logits()
    return first, float((first - second).abs().max())


def _measure_change_when_perturbed(
    adapter: AttachedAdapter, logits: torch.Tensor, compute_probe_logits: ProbeFunction
) -> float:
    """Of an adapter that is out of the forward pass: how far the logits move when its weights do. They are put back."""
    before = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
    try:
        for parameter in adapter.parameters.values():
            parameter.add_(1.0)
        return float((compute_probe_logits() - logits).abs().max())
    finally:
        for name, parameter in adapter.parameters.items():
            parameter.copy_(before[name])


def _compute_largest_change(parameter: torch.Tensor, initial_value: torch.Tensor) -> float:
    return (
        float((parameter.detach().to("cpu", initial_value.dtype) - initial_value).abs().max())
        if initial_value.numel()
        else 0.0
    )


def _list_failures(evidence: AdapterEvidence, noise: float) -> Iterator[str]:
    """What of a proof is not as its role wants it. A head that the probe did not ask has no gradient; an adapter without one is dead."""
    change = evidence.change_when_off
    if evidence.role == "inert" and not (change is not None and change <= noise):
        yield f"is inert by the recipe, and a logit changes by {change:g} with its weights"
    if evidence.role != "inert" and change is not None and not change > noise:
        yield f"changes no logit when it is switched off ({change:g}): it is not part of the forward pass, or zero"
    if (
        evidence.role == "trained"
        and (evidence.gradient is not None or change is not None or evidence.name == BASE_GROUP)
        and not _is_positive(evidence.gradient)
    ):
        yield f"is to be trained, and gets no gradient (norm {evidence.gradient or 0.0:g}): it is not part of the forward pass"
    if evidence.role == "trained" and not _is_positive(evidence.moved):
        yield f"was to be trained, and did not move (largest change {evidence.moved or 0.0:g})"


def _is_positive(number: float | None) -> bool:
    return number is not None and math.isfinite(number) and number > 0


def _create_activity_error(message: str) -> TrainingError:
    hint = "the numbers of this run would be another model's: report it with the recipe, unless the learning rate is too small to matter"
    return TrainingError(message, location="adapters", hint=hint)
