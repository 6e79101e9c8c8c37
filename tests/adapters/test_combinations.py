"""Every pair of methods in the table does what the table says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clinpeft import adapters
from clinpeft.adapters import ADAPTER_METHODS, Stack, list_adapter_combinations
from clinpeft.adapters.compatibility import UNMERGED_COMBINATION_KINDS
from clinpeft.core.errors import AdapterError
from tests.adapters.toys import IDS, MASK, answers, earlier, finished, load, shake, spec

MakeFolder = Callable[..., Path]
ROWS = {(first, second): how for first, second, how, _ in list_adapter_combinations()}
LIVING = [pair for pair, how in ROWS.items() if how in UNMERGED_COMBINATION_KINDS]
MERGING = [(first, second) for first, second in ROWS if ADAPTER_METHODS[first].is_mergeable]
APART = [pair for pair, how in ROWS.items() if how not in UNMERGED_COMBINATION_KINDS]
ON_AN_ENCODER = [
    ("lora", "lora"),
    ("lora", "rslora"),
    ("lora", "prompt"),
    ("prompt", "lora"),
    ("p-tuning", "lora"),
    ("lora", "prefix"),
    ("prefix", "lora"),
]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture(scope="module")
def clinical(
    llama: Path, toy_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Path], Path]:
    """The folder of a finished adapter of a method on a base, made once."""
    attach: dict[tuple[str, Path], Path] = {}

    def folder(method: str, base: Path) -> Path:
        if (method, base) not in attach:
            attach[method, base] = finished(
                base, method, tmp_path_factory.mktemp("clinical") / "adapter"
            )
        return attach[method, base]

    return folder


Clinical = Callable[[str, Path], Path]


def names_with_gradients(stack: Stack) -> set[str]:
    adapters.compute_token_logits(stack, IDS, MASK)[MASK == 1].square().sum().backward()  # type: ignore[no-untyped-call]
    every = {id(p): f"{a.name}: {n}" for a in stack.adapters for n, p in a.parameters.items()}
    every |= {
        id(p): f"base: {n}" for n, p in stack.base.model.named_parameters() if id(p) not in every
    }
    parameters = [p for a in stack.adapters for p in a.parameters.values()] + list(
        stack.base.model.parameters()
    )
    return {every[id(p)] for p in parameters if p.grad is not None and p.grad.abs().max() > 0}


def check_lives(base: Path, first: str, second: str, folder: Path, attach: Path) -> None:
    stack = adapters.attach_adapters(
        load(base), [earlier(first), spec(second)], folders={"clinical": folder}
    )
    assert [adapter.name for adapter in stack.adapters] == [f"1-{first}", f"2-{second}"]
    shake(stack, seed=2)
    both = answers(stack)
    for adapter in stack.adapters:
        with stack.disable_adapter(adapter.name):
            assert (answers(stack) - both).abs().max() > 1e-4, adapter.name
        assert torch.equal(answers(stack), both)
    assert names_with_gradients(stack) == {
        f"2-{second}: {name}" for name in stack.trained_parameters
    }
    assert adapters.save_adapter_stack(stack, attach) == (f"1-{first}", f"2-{second}")
    again = adapters.load_adapter_stack(load(base), attach)
    assert again.counts.trained_parameters == 0 and [
        adapter.name for adapter in again.adapters
    ] == [
        f"1-{first}",
        f"2-{second}",
    ]
    assert torch.equal(answers(again), both)
    with again.disable_adapters():
        assert torch.equal(answers(again), answers(adapters.attach_adapters(load(base), [])))


@pytest.mark.parametrize(("first", "second"), LIVING)
def test_two_that_stand_together_both_work_one_learns_and_both_come_back(
    first: str, second: str, llama: Path, clinical: Clinical, tmp_path: Path
) -> None:
    check_lives(llama, first, second, clinical(first, llama), tmp_path / "adapters")


@pytest.mark.parametrize(("first", "second"), ON_AN_ENCODER)
def test_two_stand_together_on_an_encoder(
    first: str, second: str, toy_bert: Path, clinical: Clinical, tmp_path: Path
) -> None:
    check_lives(toy_bert, first, second, clinical(first, toy_bert), tmp_path / "adapters")


@pytest.mark.parametrize(("first", "second"), [pair for pair in LIVING if pair[0] != "p-tuning"])
def test_two_trainable_adapters_both_get_gradients(
    first: str, second: str, llama: Path, clinical: Clinical
) -> None:
    stack = adapters.attach_adapters(
        load(llama),
        [earlier(first, trainable=True), spec(second)],
        folders={"clinical": clinical(first, llama)},
    )
    shake(stack)
    wanted = {
        f"{adapter.name}: {name}"
        for adapter in stack.adapters
        for name in adapter.trained_parameters
    }
    assert names_with_gradients(stack) == wanted
    assert {name.partition(":")[0] for name in wanted} == {f"1-{first}", f"2-{second}"}
    assert len(stack.trained_parameters) == sum(
        len(adapter.trained_parameters) for adapter in stack.adapters
    )


@pytest.mark.parametrize(("first", "second"), MERGING)
def test_what_is_merged_first_answers_as_before_and_anything_stands_on_it(
    first: str, second: str, llama: Path, clinical: Clinical, tmp_path: Path
) -> None:
    folder = clinical(first, llama)
    alone = answers(adapters.load_adapter(load(llama), folder))
    bare = answers(adapters.attach_adapters(load(llama), []))
    stack = adapters.attach_adapters(
        load(llama), [earlier(first, merged=True), spec(second)], folders={"clinical": folder}
    )
    with stack.disable_adapter(f"2-{second}"):
        torch.testing.assert_close(answers(stack), alone, atol=1e-5, rtol=0)
    shake(stack, seed=2)
    both = answers(stack)
    with stack.disable_adapters():
        assert torch.equal(answers(stack), bare)
    for adapter in stack.adapters:
        with stack.disable_adapter(adapter.name):
            assert (answers(stack) - both).abs().max() > 1e-4
    assert names_with_gradients(stack) == {
        f"2-{second}: {name}" for name in stack.trained_parameters
    }
    adapters.save_adapter_stack(stack, tmp_path / "adapters")
    assert torch.equal(
        answers(adapters.load_adapter_stack(load(llama), tmp_path / "adapters")), both
    )


@pytest.mark.parametrize(("first", "second"), APART)
def test_what_cannot_stand_together_says_what_can(
    first: str, second: str, llama: Path, clinical: Clinical
) -> None:
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(
            load(llama),
            [earlier(first), spec(second)],
            folders={"clinical": clinical(first, llama)},
        )
    assert f"{first} and then {second}" in error.value.message
    assert error.value.location == "adapters" and f"unmerged {first}" in error.value.hint
    assert ("merged = true" in error.value.hint) == ADAPTER_METHODS[first].is_mergeable


def test_the_table_has_every_pair_and_each_kind_of_answer() -> None:
    rows = list_adapter_combinations()
    assert len(rows) == len(ADAPTER_METHODS) ** 2 == len(ROWS)
    assert ROWS["lora", "lora"] == ROWS["lora", "rslora"] == "additive"
    assert ROWS["prompt", "lora"] == ROWS["lora", "adaption-prompt"] == "kept beside"
    assert ROWS["dora", "lora"] == ROWS["lora", "ia3"] == ROWS["ia3", "prefix"] == "merged first"
    assert ROWS["prompt", "prefix"] == ROWS["prompt", "dora"] == "impossible"
    assert not any("{" in why for *_, why in rows)


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"from_run": ""}, "from_run"),
        ({"trainable": True}, "trainable = false"),
        ({"active": False}, "active"),
    ],
)
def test_only_a_finished_frozen_adapter_is_merged(
    options: dict[str, Any], missing: str, llama: Path, clinical: Clinical
) -> None:
    selected = spec(
        "lora", **({"from_run": "clinical", "trainable": False, "merged": True} | options)
    )
    is_new = not options.get("from_run", "x")
    with pytest.raises(AdapterError, match="trainable = false" if is_new else missing) as error:
        adapters.attach_adapters(
            load(llama), [selected], folders={"clinical": clinical("lora", llama)}
        )
    assert error.value.location == ("adapters.trainable" if is_new else "adapters.0.merged")


def test_only_the_first_is_merged_and_only_what_has_weights(
    llama: Path, clinical: Clinical
) -> None:
    folders = {"clinical": clinical("lora", llama), "prompted": clinical("prompt", llama)}
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(
            load(llama), [earlier("lora"), earlier("lora", merged=True)], folders=folders
        )
    assert error.value.location == "adapters.1.merged"
    with pytest.raises(AdapterError, match="prompt") as error:
        adapters.attach_adapters(
            load(llama), [earlier("prompt", "prompted", merged=True)], folders=folders
        )
    assert error.value.location == "adapters.0.merged"


def test_merging_into_bfloat16_rounds_once_and_says_how_far(
    llama: Path, clinical: Clinical
) -> None:
    folder = clinical("lora", llama)
    stack = adapters.attach_adapters(
        load(llama, "bfloat16"), [earlier("lora", merged=True)], folders={"clinical": folder}
    )
    (notice,) = stack.notices
    assert notice.startswith("1-lora: ") and "bfloat16" in notice
    exact = (
        adapters.load_adapter(load(llama, "bfloat16"), folder).create_merged_model().state_dict()
    )
    now = stack.base.model.state_dict()
    assert {tensor.dtype for tensor in now.values()} == {torch.bfloat16}
    assert now.keys() == exact.keys() and all(
        torch.equal(now[name], exact[name].bfloat16()) for name in exact
    )
    worst = max(
        float((now[name].float() - exact[name]).abs().max())
        for name in exact
        if "q_proj" in name or "v_proj" in name
    )
    assert f"{worst:.1e}" in notice
    assert type(stack.base.model) is transformers.LlamaForCausalLM
    with pytest.raises(AdapterError) as error:
        adapters.attach_adapters(stack.base, [spec("lora")])
    assert error.value.location == stack.base.folder.name


def test_the_order_of_additive_adapters_does_not_matter(llama: Path, tmp_path: Path) -> None:
    folders = {
        name: finished(llama, "lora", tmp_path / name, seed=seed)
        for seed, name in enumerate(("one", "two"))
    }
    there = adapters.attach_adapters(
        load(llama), [earlier("lora", "one"), earlier("lora", "two")], folders=folders
    )
    back = adapters.attach_adapters(
        load(llama), [earlier("lora", "two"), earlier("lora", "one")], folders=folders
    )
    torch.testing.assert_close(answers(there), answers(back), atol=1e-5, rtol=0)


def test_additive_adapters_merge_together(llama: Path, clinical: Clinical) -> None:
    stack = adapters.attach_adapters(
        load(llama),
        [earlier("lora"), spec("rslora"), spec("lora", active=False)],
        folders={"clinical": clinical("lora", llama)},
    )
    shake(stack)
    with torch.no_grad():
        actual = stack.create_merged_model()(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]
    torch.testing.assert_close(actual, answers(stack), atol=1e-5, rtol=0)
