"""Attach what is trained to what is frozen, and keep the two apart: base weights never move, trained weights are always float32."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from peft.tuners.adaption_prompt import AdaptedAttention
from peft.tuners.tuners_utils import BaseTunerLayer

from clinpeft.adapters.methods import METHODS, Method
from clinpeft.errors import AdapterError
from clinpeft.models import Base
from clinpeft.recipe import AnyAdapterSpec

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Counts:
    """How much is trained: parameters of the adapters, and of the base without them."""

    trained: int
    base: int

    @property
    def share(self) -> float:
        """Trained parameters as a fraction of the base's, as in the paper's tables."""
        return self.trained / self.base


@dataclass
class Stack:
    """A base with adapters on it.

    Attributes:
        base: what is frozen. Methods that work inside the layers change its modules in place, so a base carries one stack.
        model: the peft model; ``logits`` is the way to call it.
        specs: what was attached, first to last.
        counts: trained and base parameters.
        notices: what was decided against the letter of the specs.
        trained: name -> parameter of everything that is trained, all float32.
        active: False inside ``off``.
    """

    base: Base
    model: Any
    specs: tuple[AnyAdapterSpec, ...]
    counts: Counts
    notices: tuple[str, ...]
    trained: dict[str, torch.nn.Parameter] = field(repr=False)
    active: bool = True

    @property
    def method(self) -> Method:
        """What is true of the attached method."""
        return METHODS[self.specs[0].method]

    @property
    def virtual_tokens(self) -> int:
        """Positions taken before the text; 0 for methods that prepend nothing."""
        return _virtual_tokens(self.specs[0])

    def state(self) -> Tensors:
        """A copy of every trained tensor, on the CPU: for checkpoints, and for going back to the best weights."""
        return {name: parameter.detach().to("cpu", torch.float32, copy=True) for name, parameter in self.trained.items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what ``state`` gave.

        Raises:
            AdapterError: the tensors are not exactly this stack's.
        """
        wanted = {name: tuple(parameter.shape) for name, parameter in self.trained.items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != wanted:
            raise AdapterError(differences(given, wanted), place="trained tensors", way_out="use a checkpoint of the same recipe")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    @contextmanager
    def off(self) -> Iterator[None]:
        """The bare base, for as long as the block lasts.

        peft makes every active adapter trainable on the way out, frozen ones too; what required a gradient before is put back.
        """
        gradients = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        inside = self.method.prepends == "nothing"  # what stands before the text is simply left away
        if inside:
            self.model.base_model.disable_adapter_layers()
        self.active = False
        try:
            yield
        finally:
            self.active = True
            if inside:
                self.model.base_model.enable_adapter_layers()
            for parameter, required in gradients.items():
                parameter.requires_grad_(required)

    def merged(self) -> Any:
        """A plain transformers model with the adapter folded in, in float32 on its own copy: folding in bfloat16 rounds small updates away.

        Raises:
            AdapterError: the method has nothing to fold.
        """
        if not self.method.merges:
            able = ", ".join(name for name, method in METHODS.items() if method.merges)
            raise AdapterError(f"{self.specs[0].method} cannot be merged", place="adapters.method", way_out=f"these can: {able}")
        merged = copy.deepcopy(self.model).float().merge_and_unload(safe_merge=True)
        return merged.requires_grad_(False).eval()


def attach(base: Base, specs: Sequence[AnyAdapterSpec], seed: int = 0) -> Stack:
    """Put new adapters on a base.

    Args:
        base: from ``models.load``, or from ``models.meta`` to count only.
        specs: one adapter.
        seed: of the adapter's first weights; nothing else draws from it, and the global generators stay as they were.

    Raises:
        AdapterError: the method does not fit the base, or the base carries a stack already.
    """
    spec = _only(specs)
    check_fit(spec, base)
    before = set(base.model.parameters())
    config, notices = METHODS[spec.method].configure(spec, base)
    devices = [base.model.device] if base.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = wrapped(base, config)
    return assembled(base, model, spec, before, notices)


def wrapped(base: Base, config: Any) -> Any:
    """The base inside a peft model of ``config``."""
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5.23 renamed; the value is right either way
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return peft.get_peft_model(base.model, config)


def assembled(base: Base, model: Any, spec: AnyAdapterSpec, before: set[torch.nn.Parameter], notices: tuple[str, ...]) -> Stack:
    """A stack over a peft model. Whatever is not among the parameters from ``before`` is the adapter's: it becomes float32 where peft made it in the
    base's precision, because an optimiser's small steps are lost in bfloat16. Dropout rests until the caller says ``model.train()``."""
    added = {name: parameter for name, parameter in model.named_parameters() if parameter not in before}
    for parameter in added.values():
        parameter.data = parameter.data.float()
    frozen = model.peft_config[model.active_adapter].inference_mode
    for parameter in added.values():
        parameter.requires_grad_(not frozen)
    trained = {} if frozen else added
    model.eval()  # a new dropout layer starts in training mode, on an evaluating base
    counts = Counts(sum(map(torch.Tensor.numel, trained.values())), sum(map(torch.Tensor.numel, before)))
    return Stack(base, model, (spec,), counts, notices, trained)


def logits(stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """What the model answers at every position of the text.

    Padding may stand on either side. Rows are first moved to start at position 0, so that a row's logits depend on neither its padding nor its
    neighbours: with virtual tokens before it, left padding would otherwise come between prompt and text.

    Args:
        input_ids: (rows, time) token ids.
        attention_mask: (rows, time) 1 on text, 0 on padding, which is one block on the left or on the right of a row.

    Returns:
        (rows, time, vocabulary), aligned with ``input_ids``; logits of virtual tokens are dropped.
    """
    starts = attention_mask.argmax(dim=1, keepdim=True)  # (rows, 1)
    if not starts.any():
        return _left_aligned(stack, input_ids, attention_mask)
    time = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :]
    there, back = (time + starts) % input_ids.shape[1], (time - starts) % input_ids.shape[1]
    answers = _left_aligned(stack, input_ids.gather(1, there), attention_mask.gather(1, there))
    return answers.gather(1, back[:, :, None].expand_as(answers))


def _left_aligned(stack: Stack, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    prepends = stack.method.prepends if stack.active else "nothing"
    model = stack.model if stack.active or stack.method.prepends == "nothing" else stack.base.model
    mixes = stack.method.mixes_precisions and stack.base.precision != torch.float32
    with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=mixes):
        answers: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
    return answers[:, stack.virtual_tokens :] if prepends == "inputs" else answers


def differences(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """One line on how two sets of named shapes differ."""
    missing, unexpected = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    shapes = sorted(f"{name} {given[name]} for {wanted[name]}" for name in set(given) & set(wanted) if given[name] != wanted[name])
    parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" for what, names in parts.items() if names)


def _only(specs: Sequence[AnyAdapterSpec]) -> AnyAdapterSpec:
    if len(specs) != 1:
        way_out = "give one [[adapters]] table; stacks come with classification"
        raise AdapterError(f"{len(specs)} adapters, and one can be attached", place="adapters", way_out=way_out)
    if specs[0].from_run:
        way_out = "leave it out for a new adapter; stacks on earlier runs come with classification"
        raise AdapterError(f"from_run = {specs[0].from_run!r} cannot be attached yet", place="adapters.from_run", way_out=way_out)
    if not specs[0].trainable:
        raise AdapterError("trainable = false on a new adapter trains nothing", place="adapters.trainable", way_out="leave it out")
    return specs[0]


def check_fit(spec: AnyAdapterSpec, base: Base) -> None:
    """That the method works on this family, that the base is bare, and that virtual tokens find room.

    Raises:
        AdapterError: it does not fit.
    """
    _check_possible(spec, base)
    _check_bare(base)
    _check_positions(spec, base)


def _check_possible(spec: AnyAdapterSpec, base: Base) -> None:
    possible = [name for name in METHODS if name not in base.family.impossible]
    if spec.method in possible:
        return
    problem = f"{spec.method} is not possible on a {base.model.config.model_type} model"
    raise AdapterError(problem, place="adapters.method", way_out=f"possible are {', '.join(possible)}")


def _check_bare(base: Base) -> None:
    if any(isinstance(module, BaseTunerLayer | AdaptedAttention) for module in base.model.modules()):
        raise AdapterError("this base carries adapters already", place=base.folder.name, way_out="load the base again for another stack")


def _check_positions(spec: AnyAdapterSpec, base: Base) -> None:
    needed = base.max_tokens + _virtual_tokens(spec)
    if base.positions is not None and needed > base.positions:
        problem = f"{_virtual_tokens(spec)} virtual tokens and max_tokens = {base.max_tokens} need {needed} positions of {base.positions}"
        raise AdapterError(problem, place="adapters.tokens", way_out=f"set base.max_tokens to at most {base.positions - _virtual_tokens(spec)}")


def _virtual_tokens(spec: AnyAdapterSpec) -> int:
    return 0 if METHODS[spec.method].prepends == "nothing" else int(getattr(spec, "tokens"))  # noqa: B009 - specs that prepend have it
