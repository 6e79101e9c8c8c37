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

from clinpeft.adapters.stack import Attached, Stack, at_rest
from clinpeft.core.errors import TrainingError

Answer = Callable[[], torch.Tensor]
Trained = Mapping[str, torch.nn.Parameter]
Gradients = Mapping[str, torch.Tensor | None]

CHUNK_BYTES = 1 << 26
HASHING_THREADS = 4
BASE, HEAD = "base", "head"


@dataclass(frozen=True)
class Proof:
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
class Liveness:
    """What a witness saw of a run in which everything was as it should be.

    Attributes:
        proofs: adapters first to last, then base and heads, where they are trained.
        noise: how far two answers to the same probe lie apart, 0 where a forward pass repeats itself exactly; a change counts from there on.
        frozen_tensors: how many tensors were to stay, and stayed.
        frozen_sha256: over all of them, before and after.
    """

    proofs: tuple[Proof, ...]
    noise: float
    frozen_tensors: int
    frozen_sha256: str

    def as_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Witness:
    """A stack (and heads) as they were before the first step; ``watch`` makes it.

    Attributes:
        stack: what is trained, or stands below what is.
        extra: trained parameters outside of the stack: heads.
        start: a copy of everything that is trained, on the CPU.
        frozen: name -> sha256 of everything that is to stay.
    """

    stack: Stack
    extra: Trained = field(repr=False)
    start: dict[str, torch.Tensor] = field(repr=False)
    frozen: dict[str, str] = field(repr=False)

    def testify(self, answer: Answer) -> Liveness:
        """Compare with the state after the last step; everything is left as it was found, and gradients are cleared.

        Args:
            answer: the logits of a few examples, by the way that leads through the stack, with gradients.

        Raises:
            TrainingError: an adapter or a head is dead, an inert one is not, or something moved that was to stay. The message names each, and which
                proof failed.
        """
        frozen = _frozen(self.stack)
        _must_be_frozen(frozen)
        with at_rest(self.stack.model), _cleared(self._trained()):
            _probe(answer)
            logits, noise = _repeated(answer)
            gradients = {name: parameter.grad for name, parameter in self._trained().items()}
            proofs = [
                self._of_adapter(adapter, gradients, logits, answer)
                for adapter in self.stack.adapters
            ]
            proofs += [
                self._of_group(name, names, gradients) for name, names in self._others().items()
            ]
        failures = [
            *_moved_by_mistake(self.frozen, _hashes(frozen)),
            *(f"{proof.name} {what}" for proof in proofs for what in _failures(proof, noise)),
        ]
        if failures:
            raise _dead("; ".join(failures))
        return Liveness(tuple(proofs), noise, len(self.frozen), _digest(self.frozen))

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {
            **self.stack.trained,
            **{_outside(name): parameter for name, parameter in self.extra.items()},
        }

    def _others(self) -> dict[str, list[str]]:
        """Group -> names of what is trained beside adapters: the base as a whole, every head by itself."""
        owned = {name for adapter in self.stack.adapters for name in adapter.trained}
        groups: dict[str, list[str]] = {}
        for name in self.stack.trained:
            if name not in owned:
                groups.setdefault(BASE, []).append(name)
        for name in self.extra:
            groups.setdefault(name.rpartition(".")[0] or HEAD, []).append(_outside(name))
        return groups

    def _of_adapter(
        self, adapter: Attached, gradients: Gradients, logits: torch.Tensor, answer: Answer
    ) -> Proof:
        change = self._change_without(adapter, logits, answer)
        if not adapter.trained:
            return Proof(
                adapter.name,
                "inert" if not adapter.spec.active else "merged" if adapter.folded else "frozen",
                0,
                change_when_off=change,
            )
        return replace(
            self._of_group(adapter.name, list(adapter.trained), gradients), change_when_off=change
        )

    def _of_group(self, name: str, names: list[str], gradients: Gradients) -> Proof:
        parameters = {each: self._trained()[each] for each in names}
        asked = [gradient for each in names if (gradient := gradients[each]) is not None]
        norm = (
            math.sqrt(sum(gradient.double().square().sum().item() for gradient in asked))
            if asked
            else None
        )
        moved = max(
            (_difference(parameter, self.start[each]) for each, parameter in parameters.items()),
            default=0.0,
        )
        return Proof(
            name,
            "trained",
            sum(parameter.numel() for parameter in parameters.values()),
            norm,
            moved,
        )

    def _change_without(self, adapter: Attached, logits: torch.Tensor, answer: Answer) -> float:
        with torch.no_grad():
            if adapter.name in self.stack.silent:
                return _change_if_shaken(adapter, logits, answer)
            with self.stack.without(adapter.name):
                return float((answer() - logits).abs().max())


def watch(stack: Stack, extra: Trained | None = None) -> Witness:
    """Begin to watch a run: before its first step, and before the weights of a checkpoint are put in.

    Every frozen tensor is read once here and once at the end, 64 MB at a time.

    Args:
        stack: as ``attach`` gave it.
        extra: name -> parameter of what is trained outside of it: ``weight`` and ``bias`` of one head, or ``mortality.weight`` of one of several.
    """
    trained = {
        **stack.trained,
        **{_outside(name): parameter for name, parameter in (extra or {}).items()},
    }
    start = {name: parameter.detach().to("cpu", copy=True) for name, parameter in trained.items()}
    return Witness(stack, dict(extra or {}), start, _hashes(_frozen(stack)))


def _outside(name: str) -> str:
    """The name of a head's parameter among the stack's."""
    return f"{HEAD}:{name}"


# -------------------------------------------------------------------------------------------------------------------------- what stays


def _frozen(stack: Stack) -> dict[str, torch.Tensor]:
    """Every tensor that is not trained: of the base, with the buffers it is saved with, and of adapters that are frozen or inert."""
    own = {
        id(parameter): f"{adapter.name}: {name}"
        for adapter in stack.adapters
        for name, parameter in adapter.parameters.items()
    }
    trained = {id(parameter) for parameter in (*stack.trained.values(), *stack.strangers)}
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
            id(tensor), (f"{BASE}: {name.replace('.base_layer.', '.')}", tensor)
        )  # its own name, whatever lies around it
    return {name: tensor for at, (name, tensor) in found.items() if at not in trained}


def _hashes(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    with ThreadPoolExecutor(HASHING_THREADS) as threads:  # hashing lets other threads run
        return dict(zip(tensors, threads.map(_sha256, tensors.values()), strict=True))


def _sha256(tensor: torch.Tensor) -> str:
    """Of the bytes of one tensor, brought to the CPU piece by piece."""
    whole = hashlib.sha256(str((tensor.dtype, tuple(tensor.shape))).encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for piece in torch.split(flat, CHUNK_BYTES):
        whole.update(piece.cpu().numpy().data)
    return whole.hexdigest()


def _digest(hashes: Mapping[str, str]) -> str:
    """One hash of many, in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(hashes):
        whole.update(f"{name} {hashes[name]}\n".encode())
    return whole.hexdigest()


def _must_be_frozen(tensors: Mapping[str, torch.Tensor]) -> None:
    loose = sorted(name for name, tensor in tensors.items() if tensor.requires_grad)
    if loose:
        raise _dead(
            f"{_owner(loose[0])} is to stay as it is, and {len(loose)} of its tensors take gradients, such as {loose[0]}"
        )


def _moved_by_mistake(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    if changed:
        yield f"{_owner(changed[0])} was to stay as it was, and {len(changed)} frozen tensors changed, such as {changed[0]}"


def _owner(name: str) -> str:
    return name.partition(": ")[0]


# -------------------------------------------------------------------------------------------------------------------------- what lives


@contextmanager
def _cleared(parameters: Trained) -> Iterator[None]:
    """Without gradients, before and after the block."""
    for parameter in parameters.values():
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _probe(answer: Answer) -> None:
    """Leaves the gradient of the squared logits in whatever is trained."""
    with torch.enable_grad():
        logits = answer()
        if not bool(torch.isfinite(logits).all()):
            raise _dead("the probe gave logits that are not all numbers")
        if logits.requires_grad:
            logits.float().square().sum().backward()  # type: ignore[no-untyped-call]


def _repeated(answer: Answer) -> tuple[torch.Tensor, float]:
    """The probe's logits, and how far they are from those of the same question asked again: on a GPU, sums may come out in another order."""
    with torch.no_grad():
        first, second = answer(), answer()
    return first, float((first - second).abs().max())


def _change_if_shaken(adapter: Attached, logits: torch.Tensor, answer: Answer) -> float:
    """Of an adapter that is out of the forward pass: how far the logits move when its weights do. They are put back."""
    before = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
    try:
        for parameter in adapter.parameters.values():
            parameter.add_(1.0)
        return float((answer() - logits).abs().max())
    finally:
        for name, parameter in adapter.parameters.items():
            parameter.copy_(before[name])


def _difference(parameter: torch.Tensor, start: torch.Tensor) -> float:
    return (
        float((parameter.detach().to("cpu", start.dtype) - start).abs().max())
        if start.numel()
        else 0.0
    )


def _failures(proof: Proof, noise: float) -> Iterator[str]:
    """What of a proof is not as its role wants it. A head that the probe did not ask has no gradient; an adapter without one is dead."""
    change = proof.change_when_off
    if proof.role == "inert" and not (change is not None and change <= noise):
        yield f"is inert by the recipe, and a logit changes by {change:g} with its weights"
    if proof.role != "inert" and change is not None and not change > noise:
        yield f"changes no logit when it is switched off ({change:g}): it is not part of the forward pass, or zero"
    if (
        proof.role == "trained"
        and (proof.gradient is not None or change is not None or proof.name == BASE)
        and not _positive(proof.gradient)
    ):
        yield f"is to be trained, and gets no gradient (norm {proof.gradient or 0.0:g}): it is not part of the forward pass"
    if proof.role == "trained" and not _positive(proof.moved):
        yield f"was to be trained, and did not move (largest change {proof.moved or 0.0:g})"


def _positive(number: float | None) -> bool:
    return number is not None and math.isfinite(number) and number > 0


def _dead(what: str) -> TrainingError:
    hint = "the numbers of this run would be another model's: report it with the recipe, unless the learning rate is too small to matter"
    return TrainingError(what, location="adapters", hint=hint)
