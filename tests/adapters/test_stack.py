from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clinpeft import adapters, models
from clinpeft.adapters import METHODS, Stack
from clinpeft.adapters.store import SPEC
from clinpeft.errors import AdapterError
from clinpeft.recipe import BaseSpec

CPU = torch.device("cpu")
MakeFolder = Callable[..., Path]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture
def base(llama: Path) -> models.Base:
    return load(llama)


def load(folder: Path, precision: str = "float32") -> models.Base:
    return models.load(BaseSpec.model_validate({"path": folder, "precision": precision, "max_tokens": 32}), CPU)


def spec(method: str, **options: Any) -> Any:
    sizes: dict[str, Any] = {"adaption-prompt": {"tokens": 3, "layers": 2}, "p-tuning": {"tokens": 3, "hidden": 8}}
    return SPEC.validate_python({"method": method} | sizes.get(method, {}) | options)


def answers(stack: Stack) -> torch.Tensor:
    with torch.no_grad():
        return adapters.logits(stack, IDS, MASK)[MASK == 1]


def bare(base: models.Base) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = base.model(input_ids=IDS, attention_mask=MASK).logits
    return found[MASK == 1]


def shake(stack: Stack) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.fresh_is_identity])
def test_a_fresh_adapter_changes_nothing(method: str, base: models.Base) -> None:
    before = bare(base)
    torch.testing.assert_close(answers(adapters.attach(base, [spec(method)])), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_adapter_changes_the_answer_and_off_is_the_bare_base(method: str, base: models.Base) -> None:
    before = bare(base)
    stack = adapters.attach(base, [spec(method)])
    shake(stack)
    assert (answers(stack) - before).abs().max() > 1e-3
    with stack.off():
        torch.testing.assert_close(answers(stack), before, atol=1e-6, rtol=0)
    assert (answers(stack) - before).abs().max() > 1e-3
    assert {name for name, parameter in stack.model.named_parameters() if parameter.requires_grad} == set(stack.trained)


@pytest.mark.parametrize("method", METHODS)
def test_off_leaves_a_frozen_adapter_frozen(method: str, base: models.Base, tmp_path: Path) -> None:
    adapters.save(adapters.attach(base, [spec(method)]), tmp_path / "adapter")
    frozen = adapters.load(load(base.folder), tmp_path / "adapter")
    with frozen.off():
        pass
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_an_optimiser_step_moves_the_adapter_and_no_weight_of_the_base(method: str, base: models.Base) -> None:
    stack = adapters.attach(base, [spec(method)])
    shake(stack)
    frozen = {name: parameter.clone() for name, parameter in stack.model.named_parameters() if name not in stack.trained}
    before, optimiser = stack.state(), torch.optim.AdamW(stack.trained.values(), lr=0.1)
    adapters.logits(stack, IDS, MASK)[MASK == 1].logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    now = dict(stack.model.named_parameters())
    assert frozen and all(torch.equal(now[name], weight) for name, weight in frozen.items())
    assert all(not torch.equal(before[name], tensor) for name, tensor in stack.state().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.merges])
def test_merged_answers_like_unmerged(method: str, precision: str, llama: Path) -> None:
    stack = adapters.attach(load(llama, precision), [spec(method)])
    shake(stack)
    merged = stack.merged()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert type(merged) is transformers.LlamaForCausalLM
    assert next(stack.base.model.parameters()).dtype == stack.base.precision
    exact = adapters.attach(load(llama), [spec(method)])
    exact.load_state(stack.state())
    exact.base.model.load_state_dict({name: tensor.float() for name, tensor in stack.base.model.state_dict().items()})
    with torch.no_grad():
        found = merged(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]
    torch.testing.assert_close(found, answers(exact), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.merges])
def test_what_cannot_be_merged_says_what_can(method: str, base: models.Base) -> None:
    with pytest.raises(AdapterError) as error:
        adapters.attach(base, [spec(method)]).merged()
    assert method in error.value.problem and "lora" in error.value.way_out


@pytest.mark.parametrize(
    "dropping",
    [spec(name, dropout=0.5) for name in ("lora", "rslora", "dora")] + [spec("p-tuning", encoder="lstm", layers=2, dropout=0.5)],
    ids=lambda given: given.method,
)
def test_dropout_works_in_training_and_rests_in_evaluation(dropping: Any, base: models.Base) -> None:
    stack = adapters.attach(base, [dropping])
    shake(stack)
    assert torch.equal(answers(stack), answers(stack))
    stack.model.train()
    torch.manual_seed(0)
    first = answers(stack)
    assert (first - answers(stack)).abs().max() > 1e-4
    torch.manual_seed(0)
    torch.testing.assert_close(answers(stack), first)


def test_the_seed_decides_the_first_weights_and_leaves_the_global_generator_alone(llama: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    states = [adapters.attach(load(llama), [spec("lora")], seed=seed).state() for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][first], states[1][first]) and not torch.equal(states[0][first], states[2][first])


def test_a_state_is_a_copy_and_comes_back_whole(base: models.Base) -> None:
    stack = adapters.attach(base, [spec("lora")])
    start, before = stack.state(), answers(stack)
    shake(stack)
    assert not torch.equal(answers(stack), before)
    stack.load_state(start)
    assert torch.equal(answers(stack), before)
    name = next(iter(start))
    for wrong in ({**start, "more": torch.zeros(1)}, {k: v for k, v in start.items() if k != name}, {**start, name: torch.zeros(1, 1)}):
        with pytest.raises(AdapterError, match=r"unexpected: more|missing|of another shape"):
            stack.load_state(wrong)


# --------------------------------------------------------------------------------------------------------------------------------- methods


def test_rslora_scales_by_the_root_of_the_rank(llama: Path) -> None:
    scaling = {}
    for method in ("lora", "rslora"):
        stack = adapters.attach(load(llama), [spec(method, rank=4, alpha=16)])
        scaling[method] = stack.model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert scaling == {"lora": 4.0, "rslora": 8.0}  # 16 / 4 and 16 / sqrt(4)


def test_a_prompt_from_text_starts_at_its_embeddings_repeated_to_length(base: models.Base) -> None:
    stack = adapters.attach(base, [spec("prompt", init="text", init_text="the patient is", tokens=5)])
    ids = base.tokenizer("the patient is")["input_ids"]
    expected = base.model.get_input_embeddings().weight[(ids * 2)[:5]]
    torch.testing.assert_close(next(iter(stack.trained.values())), expected, check_dtype=False)


def test_adaption_prompts_on_more_layers_than_there_are_take_all_and_say_so(base: models.Base) -> None:
    stack = adapters.attach(base, [spec("adaption-prompt", layers=30)])
    assert stack.notices == ("adaption-prompt: layers = 30, and the base has 2; all of them are used",)
    assert stack.counts.trained == 2 * (3 * 32 + 1)


def test_dropout_without_a_place_is_said(base: models.Base) -> None:
    stack = adapters.attach(base, [spec("p-tuning", encoder="lstm", layers=1, dropout=0.2)])
    assert stack.notices == ("p-tuning: dropout = 0.2 has no place in a lstm of 1 layers",)


def test_counts_and_virtual_tokens(base: models.Base) -> None:
    total = sum(parameter.numel() for parameter in base.model.parameters())
    stack = adapters.attach(base, [spec("lora", rank=2)])
    assert stack.counts == adapters.Counts(trained=2 * 2 * (2 * 32 + 2 * 32), base=total)  # layers x (q, v) x (A, B)
    assert stack.counts.share == pytest.approx(512 / total)
    assert stack.virtual_tokens == 0


def test_targets_that_match_nothing_get_the_nearest_that_would(base: models.Base) -> None:
    with pytest.raises(AdapterError) as error:
        adapters.attach(base, [spec("lora", targets=("q_proj", "qproj"))])
    assert "['qproj']" in error.value.problem and error.value.place == "adapters.targets"
    assert "did you mean 'q_proj'?" in error.value.way_out and "down_proj" in error.value.way_out
    with pytest.raises(AdapterError, match="lm_head"):
        adapters.attach(base, [spec("lora", targets=("lm_head",))])


def test_chosen_targets_are_the_ones_adapted(base: models.Base) -> None:
    stack = adapters.attach(base, [spec("lora", targets=("o_proj", "mlp.up_proj"))])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in stack.trained} == {"o_proj", "up_proj"}


def test_one_adapter_on_a_bare_base(base: models.Base) -> None:
    with pytest.raises(AdapterError, match="2 adapters"):
        adapters.attach(base, [spec("lora"), spec("lora")])
    with pytest.raises(AdapterError, match="from_run = 'clinical'"):
        adapters.attach(base, [spec("lora", from_run="clinical")])
    with pytest.raises(AdapterError, match="trains nothing"):
        adapters.attach(base, [spec("lora", trainable=False)])
    adapters.attach(base, [spec("lora")])
    with pytest.raises(AdapterError, match="carries adapters already"):
        adapters.attach(base, [spec("ia3")])


def test_virtual_tokens_must_find_a_position(toy_bert: Path) -> None:
    base = models.load(BaseSpec(path=toy_bert, max_tokens=120), CPU)
    with pytest.raises(AdapterError) as error:
        adapters.attach(base, [spec("prompt", tokens=9)])
    assert "need 129 positions of 128" in error.value.problem
    assert error.value.way_out == "set base.max_tokens to at most 119"
    assert adapters.attach(base, [spec("prompt", tokens=8)]).virtual_tokens == 8
