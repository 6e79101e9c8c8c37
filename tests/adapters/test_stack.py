from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clinpeft import adapters, models
from clinpeft.adapters import ADAPTER_METHODS
from clinpeft.core.errors import AdapterError, InputError, RefusedError
from clinpeft.recipe import LanguageModelSpec
from tests.adapters.toys import (
    IDS,
    MASK,
    answers,
    copy_trained_state,
    earlier,
    finished,
    load,
    load_trained_state,
    shake,
    spec,
)

CPU = torch.device("cpu")
MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture
def base(llama: Path) -> models.FrozenBaseModel:
    return load(llama)


def bare(base: models.FrozenBaseModel) -> torch.Tensor:
    with torch.no_grad():
        actual: torch.Tensor = base.model(input_ids=IDS, attention_mask=MASK).logits
    return actual[MASK == 1]


@pytest.mark.parametrize(
    "method", [name for name, method in ADAPTER_METHODS.items() if method.starts_as_identity]
)
def test_a_fresh_adapter_changes_nothing(method: str, base: models.FrozenBaseModel) -> None:
    before = bare(base)
    torch.testing.assert_close(
        answers(adapters.attach_adapters(base, [spec(method)])), before, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_a_changed_adapter_changes_the_answer_and_off_is_the_bare_base(
    method: str, base: models.FrozenBaseModel
) -> None:
    before = bare(base)
    stack = adapters.attach_adapters(base, [spec(method)])
    shake(stack)
    assert (answers(stack) - before).abs().max() > 1e-3
    with stack.disable_adapters():
        torch.testing.assert_close(answers(stack), before, atol=1e-6, rtol=0)
    assert (answers(stack) - before).abs().max() > 1e-3
    assert {
        name for name, parameter in stack.model.named_parameters() if parameter.requires_grad
    } == set(stack.trained_parameters)


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_off_leaves_a_frozen_adapter_frozen(
    method: str, base: models.FrozenBaseModel, tmp_path: Path
) -> None:
    adapters.save_adapter(adapters.attach_adapters(base, [spec(method)]), tmp_path / "adapter")
    frozen = adapters.load_adapter(load(base.folder), tmp_path / "adapter")
    with frozen.disable_adapters():
        pass
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_an_optimiser_step_moves_the_adapter_and_no_weight_of_the_base(
    method: str, base: models.FrozenBaseModel
) -> None:
    stack = adapters.attach_adapters(base, [spec(method)])
    shake(stack)
    frozen = {
        name: parameter.clone()
        for name, parameter in stack.model.named_parameters()
        if name not in stack.trained_parameters
    }
    before, optimiser = (
        copy_trained_state(stack),
        torch.optim.AdamW(stack.trained_parameters.values(), lr=0.1),
    )
    adapters.compute_token_logits(stack, IDS, MASK)[MASK == 1].logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    now = dict(stack.model.named_parameters())
    assert frozen and all(torch.equal(now[name], weight) for name, weight in frozen.items())
    assert all(
        not torch.equal(before[name], tensor) for name, tensor in copy_trained_state(stack).items()
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "method", [name for name, method in ADAPTER_METHODS.items() if method.is_mergeable]
)
def test_merged_answers_like_unmerged(method: str, precision: str, llama: Path) -> None:
    stack = adapters.attach_adapters(load(llama, precision), [spec(method)])
    shake(stack)
    merged = stack.create_merged_model()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert type(merged) is transformers.LlamaForCausalLM
    assert next(stack.base.model.parameters()).dtype == stack.base.precision
    exact = adapters.attach_adapters(load(llama), [spec(method)])
    load_trained_state(exact, copy_trained_state(stack))
    exact.base.model.load_state_dict(
        {name: tensor.float() for name, tensor in stack.base.model.state_dict().items()}
    )
    with torch.no_grad():
        actual = merged(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]
    torch.testing.assert_close(actual, answers(exact), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "method", [name for name, method in ADAPTER_METHODS.items() if not method.is_mergeable]
)
def test_what_cannot_be_merged_says_what_can(method: str, base: models.FrozenBaseModel) -> None:
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(base, [spec(method)]).create_merged_model()
    assert method in error.value.message and "lora" in error.value.hint


@pytest.mark.parametrize(
    "dropping",
    [spec(name, dropout=0.5) for name in ("lora", "rslora", "dora")]
    + [spec("p-tuning", encoder="lstm", layers=2, dropout=0.5)],
    ids=lambda given: given.method,
)
def test_dropout_works_in_training_and_rests_in_evaluation(
    dropping: Any, base: models.FrozenBaseModel
) -> None:
    stack = adapters.attach_adapters(base, [dropping])
    shake(stack)
    assert torch.equal(answers(stack), answers(stack))
    stack.model.train()
    torch.manual_seed(0)
    first = answers(stack)
    assert (first - answers(stack)).abs().max() > 1e-4
    torch.manual_seed(0)
    torch.testing.assert_close(answers(stack), first)


def test_the_seed_decides_the_first_weights_and_leaves_the_global_generator_alone(
    llama: Path,
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    states = [
        copy_trained_state(adapters.attach_adapters(load(llama), [spec("lora")], seed=seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(3), expected)
    first = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][first], states[1][first]) and not torch.equal(
        states[0][first], states[2][first]
    )


def test_a_state_is_a_copy_and_comes_back_whole(base: models.FrozenBaseModel) -> None:
    stack = adapters.attach_adapters(base, [spec("lora")])
    start, before = copy_trained_state(stack), answers(stack)
    shake(stack)
    assert not torch.equal(answers(stack), before)
    load_trained_state(stack, start)
    assert torch.equal(answers(stack), before)
    name = next(iter(start))
    for wrong in (
        {**start, "more": torch.zeros(1)},
        {k: v for k, v in start.items() if k != name},
        {**start, name: torch.zeros(1, 1)},
    ):
        with pytest.raises(InputError) as error:
            load_trained_state(stack, wrong)
        assert error.value.location == "checkpoint"


# methods ------------------------------------------------------------------------------------------


def test_rslora_scales_by_the_root_of_the_rank(llama: Path) -> None:
    scaling = {}
    for method in ("lora", "rslora"):
        stack = adapters.attach_adapters(load(llama), [spec(method, rank=4, alpha=16)])
        scaling[method] = stack.model.base_model.model.model.layers[0].self_attn.q_proj.scaling[
            "default"
        ]
    assert scaling == {"lora": 4.0, "rslora": 8.0}  # 16 / 4 and 16 / sqrt(4)


def test_a_prompt_from_text_starts_at_its_embeddings_repeated_to_length(
    base: models.FrozenBaseModel,
) -> None:
    stack = adapters.attach_adapters(
        base, [spec("prompt", init="text", init_text="the patient is", tokens=5)]
    )
    ids = base.tokenizer("the patient is")["input_ids"]
    expected = base.model.get_input_embeddings().weight[(ids * 2)[:5]]
    torch.testing.assert_close(
        next(iter(stack.trained_parameters.values())), expected, check_dtype=False
    )


def test_adaption_prompts_on_more_layers_than_there_are_take_all_and_say_so(
    base: models.FrozenBaseModel,
) -> None:
    stack = adapters.attach_adapters(base, [spec("adaption-prompt", layers=30)])
    assert stack.notices == (
        "adaption-prompt: layers = 30, and the base has 2; all of them are used",
    )
    assert stack.counts.trained_parameters == 2 * (3 * 32 + 1)


def test_dropout_without_a_place_is_said(base: models.FrozenBaseModel) -> None:
    stack = adapters.attach_adapters(
        base, [spec("p-tuning", encoder="lstm", layers=1, dropout=0.2)]
    )
    (notice,) = stack.notices
    assert "dropout = 0.2" in notice and "1 layers" in notice and "lstm" in notice


def test_counts_and_virtual_tokens(base: models.FrozenBaseModel) -> None:
    total = sum(parameter.numel() for parameter in base.model.parameters())
    stack = adapters.attach_adapters(base, [spec("lora", rank=2)])
    assert stack.counts == adapters.ParameterCounts(
        trained_parameters=2 * 2 * (2 * 32 + 2 * 32), base_parameters=total
    )  # layers x (q, v) x (A, B)
    assert stack.counts.trained_fraction == pytest.approx(512 / total)
    assert stack.virtual_tokens == 0


def test_targets_that_match_nothing_get_the_nearest_that_would(
    base: models.FrozenBaseModel,
) -> None:
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(base, [spec("lora", targets=("q_proj", "qproj"))])
    assert "['qproj']" in error.value.message and error.value.location == "adapters.targets"
    assert "did you mean 'q_proj'?" in error.value.hint and "down_proj" in error.value.hint
    with pytest.raises(AdapterError, match="lm_head"):
        adapters.attach_adapters(base, [spec("lora", targets=("lm_head",))])


def test_chosen_targets_are_the_ones_adapted(base: models.FrozenBaseModel) -> None:
    stack = adapters.attach_adapters(base, [spec("lora", targets=("o_proj", "mlp.up_proj"))])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in stack.trained_parameters} == {
        "o_proj",
        "up_proj",
    }


def test_a_base_carries_one_stack(base: models.FrozenBaseModel) -> None:
    adapters.attach_adapters(base, [spec("lora")])
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(base, [spec("ia3")])
    assert error.value.location == base.folder.name


def test_virtual_tokens_must_find_a_position(toy_bert: Path) -> None:
    base = models.load_base_model(LanguageModelSpec(path=toy_bert, max_tokens=120), CPU)
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(base, [spec("prompt", tokens=9)])
    assert "need 129 positions of 128" in error.value.message
    assert error.value.hint == "set base.max_tokens to at most 119"
    assert adapters.attach_adapters(base, [spec("prompt", tokens=8)]).virtual_tokens == 8


# stacks -------------------------------------------------------------------------------------------


@pytest.fixture
def clinical(llama: Path, tmp_path: Path) -> Path:
    return finished(llama, "lora", tmp_path / "clinical", rank=4, dropout=0.3)


def test_no_adapter_is_the_bare_base_below_a_head(base: models.FrozenBaseModel) -> None:
    before = bare(base)
    stack = adapters.attach_adapters(base, [])
    assert (
        stack.adapters == ()
        and stack.trained_parameters == {}
        and stack.counts.trained_parameters == 0
    )
    assert torch.equal(answers(stack), before)
    stack.train()
    assert not base.model.training  # nothing of it is trained, so that its dropout would be noise


def test_one_new_adapter_has_the_names_that_earlier_checkpoints_have(
    base: models.FrozenBaseModel,
) -> None:
    stack = adapters.attach_adapters(base, [spec("lora")])
    assert (
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
        in stack.trained_parameters
    )
    assert [adapter.name for adapter in stack.adapters] == [
        "1-lora"
    ] and stack.model.active_adapter == "default"


def test_the_whole_base_is_trained_without_its_language_head(llama: Path) -> None:
    stack = adapters.attach_adapters(load(llama), [], base_trainable=True)
    model = stack.base.model
    assert {f"base.{name}" for name, _ in model.model.named_parameters()} == set(
        stack.trained_parameters
    )
    assert not model.lm_head.weight.requires_grad and model.model.norm.weight.requires_grad
    assert (
        stack.counts.trained_parameters
        == sum(parameter.numel() for parameter in model.model.parameters())
        < stack.counts.base_parameters
    )
    stack.train()
    assert model.training
    for specs, precision, value in (
        ([spec("lora")], "float32", "1 adapters"),
        ([], "bfloat16", "bfloat16"),
    ):
        with pytest.raises(AdapterError) as error:
            adapters.attach_adapters(load(llama, precision), specs, base_trainable=True)
        assert error.value.location == "base.trainable" and value in error.value.message


def test_an_earlier_adapter_keeps_its_own_options_and_a_frozen_one_rests(
    llama: Path, clinical: Path
) -> None:
    for trainable in (False, True):
        stack = adapters.attach_adapters(
            load(llama),
            [earlier("lora", trainable=trainable), spec("lora")],
            folders={"clinical": clinical},
        )
        assert stack.specs[0] == spec(
            "lora", rank=4, dropout=0.3, from_run="clinical", trainable=trainable
        )
        assert stack.adapters[0].source_run == "clinical"
        stack.train()
        assert torch.equal(answers(stack), answers(stack)) == (
            not trainable
        )  # the new one has no dropout; the earlier one 0.3


def test_options_that_an_earlier_adapter_overrules_are_said(llama: Path, clinical: Path) -> None:
    stack = adapters.attach_adapters(
        load(llama), [earlier("lora", rank=2, dropout=0.3)], folders={"clinical": clinical}
    )
    (notice,) = stack.notices
    assert notice.startswith("1-lora: rank = 2") and "4" in notice


def test_training_moves_the_new_adapter_and_leaves_the_frozen_one(
    llama: Path, clinical: Path
) -> None:
    stack = adapters.attach_adapters(
        load(llama), [earlier("lora"), spec("lora")], folders={"clinical": clinical}
    )
    frozen = {name: parameter.clone() for name, parameter in stack.adapters[0].parameters.items()}
    stack.train()
    optimiser = torch.optim.AdamW(stack.trained_parameters.values(), lr=0.1)
    for _ in range(2):
        adapters.compute_token_logits(stack, IDS, MASK)[MASK == 1].logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert all(
        torch.equal(frozen[name], parameter)
        for name, parameter in stack.adapters[0].parameters.items()
    )
    assert (
        all("adapter2" in name for name in stack.trained_parameters)
        and len(stack.trained_parameters) == 8
    )
    with stack.disable_adapters():
        pass
    assert {id(p) for p in stack.model.parameters() if p.requires_grad} == {
        id(p) for p in stack.trained_parameters.values()
    }


def test_an_inert_adapter_is_there_and_not_in_the_forward_pass(llama: Path, clinical: Path) -> None:
    """As the published code composes (arXiv 2307.03042): the second adapter is added and never
    activated."""
    stack = adapters.attach_adapters(
        load(llama), [earlier("lora"), spec("lora", active=False)], folders={"clinical": clinical}
    )
    alone = adapters.load_adapter(load(llama), clinical)
    assert (
        stack.trained_parameters == {}
        and len(stack.adapters[1].parameters) == 8
        and stack.disabled_adapters == {"2-lora"}
    )
    (notice,) = stack.notices
    assert notice.startswith("2-lora: ") and "active = false" in notice
    assert torch.equal(answers(stack), answers(alone))
    with torch.no_grad():
        for parameter in stack.adapters[1].parameters.values():
            parameter.mul_(100).add_(1)
    assert torch.equal(answers(stack), answers(alone))
    with stack.disable_adapters():
        assert torch.equal(answers(stack), bare(load(llama)))
    assert stack.disabled_adapters == {"2-lora"} and torch.equal(answers(stack), answers(alone))


@pytest.mark.parametrize("method", ADAPTER_METHODS)
def test_an_inert_adapter_of_any_method_leaves_the_base_as_it_is(
    method: str, base: models.FrozenBaseModel
) -> None:
    before = bare(base)
    stack = adapters.attach_adapters(base, [spec(method, active=False)])
    assert (
        stack.virtual_tokens == 0
        and stack.trained_parameters == {}
        and sum(p.numel() for p in stack.adapters[0].parameters.values()) > 0
    )
    torch.testing.assert_close(answers(stack), before, atol=0, rtol=0)


def test_two_new_adapters_start_from_different_weights(base: models.FrozenBaseModel) -> None:
    stack = adapters.attach_adapters(base, [spec("lora"), spec("lora")])
    first, second = (
        {name.replace(a.peft_name, ""): p for name, p in a.parameters.items()}
        for a in stack.adapters
    )
    assert first.keys() == second.keys()
    assert all(not torch.equal(first[name], second[name]) for name in first if "lora_A" in name)


def test_what_was_not_given_or_does_not_fit_is_said(
    llama: Path, clinical: Path, toy_llama: MakeFolder, tmp_path: Path
) -> None:
    folders = {"clinical": clinical}
    for specs, location in (
        ([earlier("lora", "unknown")], "adapters.from_run"),
        ([earlier("prefix")], "adapters.method"),
        ([spec("lora", trainable=False)], "adapters.trainable"),
    ):
        with pytest.raises(AdapterError) as error:
            adapters.attach_adapters(load(llama), specs, folders=folders)
        assert error.value.location == location
    with pytest.raises(RefusedError) as refused:
        adapters.attach_adapters(
            load(toy_llama(seed=1)), [earlier("lora"), spec("lora")], folders=folders
        )
    assert refused.value.location == str(clinical)
    with pytest.raises(AdapterError, match="'3-lora'"):
        adapters.attach_adapters(load(llama), [spec("lora")]).disable_adapter("3-lora").__enter__()
    encoded = finished(llama, "p-tuning", tmp_path / "encoded")
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(
            load(llama), [earlier("p-tuning", trainable=True)], folders={"clinical": encoded}
        )
    assert error.value.location == str(encoded) and "p-tuning" in error.value.message


def test_an_adapter_stands_on_those_it_was_trained_on(
    llama: Path, clinical: Path, tmp_path: Path
) -> None:
    stack = adapters.attach_adapters(
        load(llama), [earlier("lora"), spec("lora")], folders={"clinical": clinical}
    )
    shake(stack, seed=2)
    adapters.save_adapter_stack(stack, tmp_path / "run")
    other = finished(llama, "lora", tmp_path / "other", seed=9)
    folders = {"clinical": clinical, "task": tmp_path / "run" / "2-lora", "other": other}
    again = adapters.attach_adapters(
        load(llama), [earlier("lora"), earlier("lora", "task")], folders=folders
    )
    assert torch.equal(answers(again), answers(stack)) and again.notices == ()
    for below in ([], [earlier("lora", "other")], [spec("lora")]):
        with pytest.raises(RefusedError) as error:
            adapters.attach_adapters(
                load(llama), [*below, earlier("lora", "task")], folders=folders
            )
        assert error.value.location == str(folders["task"]) and "sha256" in error.value.message
    with pytest.raises(RefusedError) as error:
        adapters.load_adapter(load(llama), folders["task"])
    assert error.value.location == str(folders["task"]) and "bare base" in error.value.message
    more = adapters.attach_adapters(
        load(llama), [earlier("lora"), earlier("lora", "other")], folders=folders
    )
    (notice,) = more.notices
    assert notice.startswith("2-lora: trained on the bare base") and "above 1" in notice
