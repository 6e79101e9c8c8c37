"""Stacks as folders: whole by themselves, open to stock peft, and refused when they are not what
was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from clinpeft import adapters
from clinpeft.adapters import Stack
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from tests.adapters.toys import IDS, MASK, answers, earlier, finished, load, shake, spec

MakeFolder = Callable[..., Path]
FILES = {"adapter_config.json", "adapter_model.safetensors", "clinpeft.json"}


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


@pytest.fixture
def clinical(llama: Path, tmp_path: Path) -> Path:
    return finished(llama, "lora", tmp_path / "clinical", dropout=0.1)


@pytest.fixture
def stack(llama: Path, clinical: Path) -> Stack:
    actual = adapters.attach_adapters(
        load(llama),
        [earlier("lora"), spec("lora", rank=4, dropout=0.2)],
        folders={"clinical": clinical},
    )
    shake(actual, seed=2)
    return actual


@pytest.fixture
def saved(stack: Stack, tmp_path: Path) -> Path:
    adapters.save_adapter_stack(stack, tmp_path / "adapters")
    return tmp_path / "adapters"


def about(folder: Path) -> dict[str, object]:
    actual: dict[str, object] = json.loads((folder / "clinpeft.json").read_text())
    return actual


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_stock_peft_opens_a_pair_and_gives_the_same_logits(stack: Stack, saved: Path) -> None:
    stock = peft.PeftModel.from_pretrained(
        stack.base.family.auto_class.from_pretrained(stack.base.folder),
        str(saved / "1-lora"),
        adapter_name="clinical",
    )
    loaded = stock.load_adapter(str(saved / "2-lora"), "task")
    assert not loaded.missing_keys and not loaded.unexpected_keys
    stock.base_model.set_adapter(["clinical", "task"])
    stock.eval()
    with torch.no_grad():
        actual = stock(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]
    torch.testing.assert_close(
        actual, answers(stack), rtol=1e-5, atol=1e-6
    )  # stock peft adds the parts up in another order


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("prompt", ["adaption-prompt", "prefix", "prompt", "p-tuning"])
def test_stock_peft_opens_each_of_a_lora_and_a_prompt(
    prompt: str, llama: Path, clinical: Path, tmp_path: Path
) -> None:
    """Also where the prompt puts modules of its own around those that the LoRA is in."""
    stack = adapters.attach_adapters(
        load(llama), [earlier("lora", trainable=True), spec(prompt)], folders={"clinical": clinical}
    )
    shake(stack, seed=2)
    stack.train()
    modes = {name: module.training for name, module in stack.base.model.named_modules()}
    adapters.save_adapter_stack(stack, tmp_path / "adapters")
    assert modes == {name: module.training for name, module in stack.base.model.named_modules()}
    stack.train(False)
    for off, on in (("1-lora", f"2-{prompt}"), (f"2-{prompt}", "1-lora")):
        stock = peft.PeftModel.from_pretrained(
            stack.base.family.auto_class.from_pretrained(llama), str(tmp_path / "adapters" / on)
        ).eval()
        with stack.disable_adapter(off), torch.no_grad():
            actual = stock(input_ids=IDS, attention_mask=MASK).logits[:, -IDS.shape[1] :][MASK == 1]
            torch.testing.assert_close(actual, answers(stack), atol=1e-6, rtol=0)


def test_a_folder_of_a_stack_is_whole_by_itself(
    stack: Stack, saved: Path, clinical: Path, llama: Path
) -> None:
    assert {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()} == {
        f"{name}/{file}" for name in ("1-lora", "2-lora") for file in FILES
    }
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (saved / "1-lora" / name).read_bytes() == (clinical / name).read_bytes()
    shutil.rmtree(clinical)
    again = adapters.load_adapter_stack(load(llama), saved)
    assert torch.equal(answers(again), answers(stack))
    assert [adapter.source_run for adapter in again.adapters] == ["clinical", ""] and not any(
        p.requires_grad for p in again.model.parameters()
    )
    again.train()
    assert torch.equal(answers(again), answers(stack))


def test_each_folder_says_where_it_stands(saved: Path) -> None:
    first, second = (about(saved / name)["stack"] for name in ("1-lora", "2-lora"))
    assert isinstance(first, dict) and isinstance(second, dict)
    (below,) = second.pop("below")
    assert first.pop("below") == [] and below["name"] == "1-lora" and len(below["sha256"]) == 64
    assert first == {
        "name": "1-lora",
        "position": 1,
        "adapters": 2,
        "merged": False,
        "frozen": True,
        "active": True,
        "origin": "clinical",
    }
    assert second == {
        "name": "2-lora",
        "position": 2,
        "adapters": 2,
        "merged": False,
        "frozen": False,
        "active": True,
        "origin": "",
    }
    assert about(saved / "2-lora")["trained_parameters"] == 2 * 2 * 2 * 4 * 32


def test_a_stack_that_was_loaded_and_saved_again_is_the_same(
    saved: Path, llama: Path, tmp_path: Path
) -> None:
    adapters.save_adapter_stack(adapters.load_adapter_stack(load(llama), saved), tmp_path / "again")
    for name in ("1-lora", "2-lora"):
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "again" / name / file).read_bytes() == (
                saved / name / file
            ).read_bytes()
    assert torch.equal(
        answers(adapters.load_adapter_stack(load(llama), tmp_path / "again")),
        answers(adapters.load_adapter_stack(load(llama), saved)),
    )


def test_merged_inert_and_trained_adapters_come_back_as_they_were(
    llama: Path, clinical: Path, tmp_path: Path
) -> None:
    specs = [earlier("lora", merged=True), spec("lora"), spec("rslora", active=False)]
    stack = adapters.attach_adapters(load(llama, "bfloat16"), specs, folders={"clinical": clinical})
    shake(stack, seed=2)
    assert adapters.save_adapter_stack(stack, tmp_path / "adapters") == (
        "1-lora",
        "2-lora",
        "3-rslora",
    )
    again = adapters.load_adapter_stack(load(llama, "bfloat16"), tmp_path / "adapters")
    assert torch.equal(answers(again), answers(stack))
    assert [bool(adapter.merged_weights) for adapter in again.adapters] == [
        True,
        False,
        False,
    ] and again.disabled_adapters == {"3-rslora"}


def test_an_empty_stack_is_an_empty_folder(llama: Path, tmp_path: Path) -> None:
    assert (
        adapters.save_adapter_stack(
            adapters.attach_adapters(load(llama), []), tmp_path / "adapters"
        )
        == ()
    )
    assert adapters.load_adapter_stack(load(llama), tmp_path / "adapters").adapters == ()


def test_several_adapters_are_not_one_folder(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="2 adapters"):
        adapters.save_adapter(stack, tmp_path / "adapter")


def test_another_adapter_below_is_refused(saved: Path, llama: Path, tmp_path: Path) -> None:
    other = finished(llama, "lora", tmp_path / "other", seed=9)
    stack = adapters.attach_adapters(
        load(llama), [earlier("lora", "other"), spec("lora")], folders={"other": other}
    )
    adapters.save_adapter_stack(stack, tmp_path / "theirs")
    shutil.rmtree(saved / "1-lora")
    shutil.copytree(tmp_path / "theirs" / "1-lora", saved / "1-lora")
    with pytest.raises(RefusedError, match="adapter 1 below 2-lora") as error:
        adapters.load_adapter_stack(load(llama), saved)
    assert error.value.location == str(saved / "2-lora")


def test_a_missing_adapter_and_a_missing_weight_are_errors(saved: Path, llama: Path) -> None:
    weights = saved / "2-lora" / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, weights)
    changed = json.loads((saved / "2-lora" / "clinpeft.json").read_text())
    del changed["files"]["adapter_model.safetensors"]
    (saved / "2-lora" / "clinpeft.json").write_text(json.dumps(changed))
    with pytest.raises(
        AdapterError,
        match=r"1 missing: base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
    ):
        adapters.load_adapter_stack(load(llama), saved)
    shutil.rmtree(saved / "1-lora")
    with pytest.raises(AdapterError, match=r"adapters \[2\] of a stack of 2"):
        adapters.load_adapter_stack(load(llama), saved)
    with pytest.raises(AdapterError) as error:
        adapters.load_adapter_stack(load(llama), saved / "nowhere")
    assert error.value.location == str(saved / "nowhere")


def test_another_base_is_refused(saved: Path, toy_llama: MakeFolder) -> None:
    with pytest.raises(RefusedError) as error:
        adapters.load_adapter_stack(load(toy_llama(seed=1)), saved)
    assert error.value.location == str(saved / "1-lora")


def test_a_stack_is_written_whole_or_not_at_all(
    saved: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        adapters.save_adapter_stack(stack, saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
    assert not saved.with_name("adapters.writing").exists()
