"""The proof that what was meant to work works: it holds for what lives, and names what is dead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from clinpeft import adapters
from clinpeft.adapters import ADAPTER_METHODS, AdapterMonitor, Stack
from clinpeft.adapters.activity import combine_tensor_hashes, hash_tensor
from clinpeft.core.errors import TrainingError
from tests.adapters.toys import (
    IDS,
    MASK,
    copy_trained_state,
    earlier,
    finished,
    load,
    load_trained_state,
    spec,
)

MakeFolder = Callable[..., Path]
Change = Callable[[], object]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def clinical(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(llama, "lora", tmp_path_factory.mktemp("clinical") / "adapter")


class Run:
    """A stack and a head of two classes on its last token, watched from the start."""

    def __init__(self, stack: Stack, heads: int = 1) -> None:
        self.stack = stack
        torch.manual_seed(0)
        self.heads = [torch.nn.Linear(32, 2) for _ in range(heads)]
        named = {
            f"task{at}.{name}" if heads > 1 else name: p
            for at, head in enumerate(self.heads)
            for name, p in head.named_parameters()
        }
        self.extra: dict[str, torch.nn.Parameter] = named
        self.monitor: AdapterMonitor = adapters.monitor_adapters(stack, self.extra)

    def answer(self, head: int = 0) -> torch.Tensor:
        vectors = adapters.compute_hidden_states(self.stack, IDS, MASK)
        activity: torch.Tensor = self.heads[head](vectors[torch.arange(len(IDS)), MASK.sum(1) - 1])
        return activity

    def learn(self, steps: int = 3) -> Run:
        optimiser = torch.optim.AdamW(
            [*self.stack.trained_parameters.values(), *self.extra.values()], lr=0.01
        )
        for _ in range(steps):
            self.stack.train()
            for head in range(len(self.heads)):
                torch.nn.functional.cross_entropy(
                    self.answer(head), torch.tensor([0, 1])
                ).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
        self.stack.train(False)
        return self

    def testify(self) -> adapters.AdapterActivity:
        return self.monitor.verify(self.answer)

    def fails(self) -> str:
        with pytest.raises(TrainingError) as error:
            self.testify()
        assert error.value.location == "adapters"
        return error.value.message


@pytest.fixture
def composed(llama: Path, clinical: Path) -> Run:
    return Run(
        adapters.attach_adapters(
            load(llama),
            [earlier("lora"), spec("lora", dropout=0.1)],
            folders={"clinical": clinical},
        )
    )


def activate(stack: Stack, *names: str) -> None:
    for module in stack.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(list(names))
    for adapter in stack.adapters:
        for parameter in adapter.parameters.values():
            parameter.requires_grad_(bool(adapter.trained_parameters))


# what lives ---------------------------------------------------------------------------------------


def test_a_frozen_and_a_trained_adapter_both_live(composed: Run) -> None:
    activity = composed.learn().testify()
    assert [(proof.name, proof.role) for proof in activity.proofs] == [
        ("1-lora", "frozen"),
        ("2-lora", "trained"),
        ("head", "trained"),
    ]
    frozen, trained, head = activity.proofs
    assert (
        frozen.change_when_off
        and frozen.gradient is None
        and frozen.moved is None
        and frozen.parameters == 0
    )
    assert (
        trained.change_when_off
        and trained.gradient
        and trained.moved
        and trained.parameters == composed.stack.counts.trained_parameters
    )
    assert head.gradient and head.moved and head.change_when_off is None and head.parameters == 66
    saved = composed.stack.base.model.state_dict()
    assert activity.frozen_tensors == len(saved) - len(composed.stack.trained_parameters)
    assert json.loads(json.dumps(activity.as_json()))["proofs"][1]["name"] == "2-lora"


def test_what_is_proven_is_left_as_it_was_found(composed: Run) -> None:
    composed.learn()
    model = composed.stack.model
    next(iter(composed.stack.trained_parameters.values())).grad = torch.ones(8, 32)
    composed.stack.train()
    modes = {name: module.training for name, module in model.named_modules()}
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    composed.testify()
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert required == {
        name: parameter.requires_grad for name, parameter in model.named_parameters()
    }
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    assert all(
        parameter.grad is None
        for parameter in (*model.parameters(), *composed.heads[0].parameters())
    )
    assert composed.stack.disabled_adapters == frozenset()


def test_the_numbers_are_those_computed_by_hand(composed: Run) -> None:
    start = {
        name: parameter.detach().clone()
        for name, parameter in composed.stack.trained_parameters.items()
    }
    activity = composed.learn().testify().proofs[1]
    assert activity.moved == max(
        float((parameter.detach() - start[name]).abs().max())
        for name, parameter in composed.stack.trained_parameters.items()
    )
    before = composed.answer()
    gradients = torch.autograd.grad(
        before.square().sum(), list(composed.stack.trained_parameters.values())
    )
    assert activity.gradient == pytest.approx(
        torch.cat([gradient.flatten() for gradient in gradients]).norm().item(), rel=1e-5
    )
    with composed.stack.disable_adapter("2-lora"):
        assert activity.change_when_off == float((composed.answer() - before).detach().abs().max())


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_every_method_lives_after_a_few_steps(method: str, llama: Path) -> None:
    activity = Run(adapters.attach_adapters(load(llama), [spec(method)])).learn().testify()
    assert [proof.role for proof in activity.proofs] == ["trained", "trained"]


def test_a_prompt_beside_a_lora_and_an_adapter_merged_below_live(
    llama: Path, clinical: Path
) -> None:
    folders = {"clinical": clinical}
    beside = (
        Run(
            adapters.attach_adapters(
                load(llama), [earlier("lora"), spec("adaption-prompt")], folders=folders
            )
        )
        .learn()
        .testify()
    )
    assert [proof.role for proof in beside.proofs] == ["frozen", "trained", "trained"]
    merged = (
        Run(
            adapters.attach_adapters(
                load(llama), [earlier("lora", merged=True), spec("lora")], folders=folders
            )
        )
        .learn()
        .testify()
    )
    assert [proof.role for proof in merged.proofs] == ["merged", "trained", "trained"]


def test_a_head_alone_and_a_head_on_frozen_adapters_live(llama: Path, clinical: Path) -> None:
    alone = Run(adapters.attach_adapters(load(llama), [])).learn().testify()
    assert [proof.name for proof in alone.proofs] == ["head"]
    frozen = (
        Run(
            adapters.attach_adapters(load(llama), [earlier("lora")], folders={"clinical": clinical})
        )
        .learn()
        .testify()
    )
    assert [(proof.name, proof.role) for proof in frozen.proofs] == [
        ("1-lora", "frozen"),
        ("head", "trained"),
    ]


def test_a_whole_base_that_is_trained_lives(llama: Path) -> None:
    run = Run(adapters.attach_adapters(load(llama), [], base_trainable=True))
    activity = run.learn().testify()
    assert [(proof.name, proof.role) for proof in activity.proofs] == [
        ("base", "trained"),
        ("head", "trained"),
    ]
    assert activity.frozen_tensors == 1  # the language-modelling head


def test_of_several_heads_each_must_move_and_the_probe_may_ask_one(llama: Path) -> None:
    activity = Run(adapters.attach_adapters(load(llama), [spec("lora")]), heads=2).learn().testify()
    assert [proof.name for proof in activity.proofs] == ["1-lora", "task0", "task1"]
    assert (
        activity.proofs[1].gradient is not None
        and activity.proofs[2].gradient is None
        and activity.proofs[2].moved
    )


def test_a_run_that_goes_on_is_compared_with_the_first_weights(llama: Path) -> None:
    before = Run(adapters.attach_adapters(load(llama), [spec("lora")], seed=5)).learn()
    after = Run(
        adapters.attach_adapters(load(llama), [spec("lora")], seed=5)
    )  # watched before the checkpoint is put in
    load_trained_state(after.stack, copy_trained_state(before.stack))
    after.heads[0].load_state_dict(before.heads[0].state_dict())
    assert after.testify() == before.testify()


def test_an_adapter_that_is_inert_as_asked_is_recorded_as_inert(
    llama: Path, clinical: Path
) -> None:
    specs = [earlier("lora"), spec("lora", active=False)]
    run = Run(adapters.attach_adapters(load(llama), specs, folders={"clinical": clinical})).learn()
    activity = run.testify()
    assert [
        (proof.name, proof.role, proof.change_when_off == 0) for proof in activity.proofs[:2]
    ] == [
        ("1-lora", "frozen", False),
        ("2-lora", "inert", True),
    ]
    activate(run.stack, "default", "adapter2")
    assert run.fails().startswith("2-lora is inert by the recipe")


# what is dead -------------------------------------------------------------------------------------


def test_the_published_bug_is_caught(composed: Run) -> None:
    """``add_adapter`` without ``set_adapter``: the second adapter is never in the forward pass."""
    activate(composed.stack, "default")
    message = composed.learn().fails()
    assert "2-lora changes no logit" in message and "2-lora is trained" in message
    assert "1-lora" not in message and "head" not in message


def test_an_adapter_that_is_trained_by_mistake_is_caught(composed: Run) -> None:
    """peft's ``set_adapter`` makes every active adapter trainable."""
    composed.learn()
    composed.stack.model.base_model.set_adapter(["default", "adapter2"])
    message = composed.fails()
    assert message.startswith("1-lora is frozen, and 8 of its tensors")
    assert "1-lora: base_model.model.model.layers.0." in message


@pytest.mark.parametrize("whose", ["base", "1-lora"])
def test_a_frozen_tensor_that_was_touched_is_caught(whose: str, composed: Run) -> None:
    composed.learn()
    frozen = (
        next(iter(composed.stack.adapters[0].parameters.values()))
        if whose == "1-lora"
        else composed.stack.base.model.model.norm.weight
    )
    with torch.no_grad():
        frozen[0] += 1e-3
    message = composed.fails()
    assert f"{whose} is frozen, and 1 tensors changed" in message and f"{whose}: " in message


def test_a_head_that_did_not_move_is_caught(llama: Path, clinical: Path) -> None:
    run = Run(adapters.attach_adapters(load(llama), [spec("lora")]), heads=2)
    start = {name: parameter.detach().clone() for name, parameter in run.extra.items()}
    run.learn()
    with torch.no_grad():
        for name in ("task1.weight", "task1.bias"):
            run.extra[name].copy_(start[name])
    message = run.fails()
    assert message.startswith("task1 was trained") and "(largest change 0)" in message


def test_a_lora_that_is_zero_is_caught(composed: Run) -> None:
    composed.learn()
    with torch.no_grad():
        for name, parameter in composed.stack.trained_parameters.items():
            if "lora_B" in name:
                parameter.zero_()
    message = composed.fails()
    assert message.startswith("2-lora changes no logit") and "(0)" in message


def test_a_frozen_adapter_of_zeros_is_caught(llama: Path, tmp_path: Path) -> None:
    adapters.save_adapter(adapters.attach_adapters(load(llama), [spec("lora")]), tmp_path / "fresh")
    run = Run(
        adapters.attach_adapters(
            load(llama), [earlier("lora")], folders={"clinical": tmp_path / "fresh"}
        )
    ).learn()
    assert run.fails().startswith("1-lora changes no logit")


def test_logits_that_are_not_numbers_are_caught(composed: Run) -> None:
    composed.learn()
    with torch.no_grad():
        composed.extra["bias"][0] = float("nan")
    assert "NaN" in composed.fails()


def test_what_is_no_more_than_the_noise_of_the_device_is_no_change(composed: Run) -> None:
    composed.learn()
    with torch.no_grad():
        for name, parameter in composed.stack.trained_parameters.items():
            if "lora_B" in name:
                parameter.zero_()
    times = iter(range(100))
    with pytest.raises(TrainingError, match="2-lora changes no logit"):
        composed.monitor.verify(lambda: composed.answer() + 1e-3 * (next(times) % 2))
    assert composed.learn(1).testify().noise == 0


def test_a_hash_depends_on_every_byte_the_shape_and_the_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensor = torch.arange(10, dtype=torch.bfloat16)
    expected = hashlib.sha256(
        b"(torch.bfloat16, (10,))" + tensor.view(torch.uint8).numpy().tobytes()
    ).hexdigest()
    monkeypatch.setattr("clinpeft.adapters.activity.HASHING_CHUNK_BYTES", 3)
    assert hash_tensor(tensor) == expected
    assert hash_tensor(tensor.view(2, 5)) != expected != hash_tensor(tensor.float())
    assert hash_tensor(torch.tensor(1.0)) != hash_tensor(torch.tensor(-1.0))
    assert (
        combine_tensor_hashes({"a": "1", "b": "2"})
        == combine_tensor_hashes({"b": "2", "a": "1"})
        != combine_tensor_hashes({"a": "2", "b": "1"})
    )
