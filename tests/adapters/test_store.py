from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from clinpeft import adapters, models
from clinpeft.adapters import ADAPTER_METHODS, Stack
from clinpeft.adapters.checkpoint import ADAPTER_SPEC_TYPE
from clinpeft.core.errors import AdapterError, RefusedError, StorageError
from clinpeft.recipe import LanguageModelSpec
from tests.adapters.toys import copy_trained_state

MakeFolder = Callable[..., Path]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
VARIANTS: list[dict[str, Any]] = [
    *({"method": method} for method in ADAPTER_METHODS),
    {"method": "prefix", "projection": True},
    {"method": "prompt", "init": "text"},
    {"method": "p-tuning", "encoder": "lstm", "dropout": 0.5, "hidden": 8},
]


@pytest.fixture(scope="module")
def llama(toy_llama: MakeFolder) -> Path:
    return toy_llama()


def name_of(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values())


def load(folder: Path, precision: str = "float32") -> models.FrozenBaseModel:
    return models.load_base_model(
        LanguageModelSpec.model_validate(
            {"path": folder, "precision": precision, "max_tokens": 32}
        ),
        torch.device("cpu"),
    )


def trained(folder: Path, variant: dict[str, Any], precision: str = "float32") -> Stack:
    stack = adapters.attach_adapters(
        load(folder, precision), [ADAPTER_SPEC_TYPE.validate_python(variant)]
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


def answers(stack: Stack) -> torch.Tensor:
    stack.model.eval()
    with torch.no_grad():
        return adapters.compute_token_logits(stack, IDS, MASK)[MASK == 1]


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_stock_peft_loads_the_folder_and_answers_alike(
    variant: dict[str, Any], kind: str, llama: Path, toy_bert: Path, tmp_path: Path
) -> None:
    folder = llama if kind == "decoder" else toy_bert
    if variant["method"] in load(folder).family.unsupported_methods:
        pytest.skip("not possible on this family")
    stack = trained(folder, variant)
    stack.model.train()  # a folder is the same whenever it is written
    adapters.save_adapter(stack, tmp_path / "adapter")
    assert stack.model.training
    stock = peft.PeftModel.from_pretrained(
        stack.base.family.auto_class.from_pretrained(folder), str(tmp_path / "adapter")
    ).eval()
    with torch.no_grad():
        actual = stock(input_ids=IDS, attention_mask=MASK).logits[:, -IDS.shape[1] :][MASK == 1]
    torch.testing.assert_close(actual, answers(stack), atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_what_is_saved_is_what_is_loaded(
    variant: dict[str, Any], precision: str, llama: Path, tmp_path: Path
) -> None:
    stack = trained(llama, variant, precision)
    adapters.save_adapter(stack, tmp_path / "adapter")
    again = adapters.load_adapter(load(llama, precision), tmp_path / "adapter")
    assert (
        again.specs == stack.specs
        and again.counts.trained_parameters == 0
        and again.counts.base_parameters == stack.counts.base_parameters
    )
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    torch.testing.assert_close(answers(again), answers(stack), atol=1e-6, rtol=0)
    again.model.train()
    with torch.no_grad():
        torch.testing.assert_close(
            adapters.compute_token_logits(again, IDS, MASK)[MASK == 1],
            answers(stack),
            atol=1e-6,
            rtol=0,
        )


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_saved_adapter_can_be_trained_on_where_all_of_it_was_saved(
    variant: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    stack = trained(llama, variant)
    adapters.save_adapter(stack, tmp_path / "adapter")
    base = load(llama)
    if variant["method"] == "p-tuning" or variant.get("projection"):
        with pytest.raises(AdapterError, match=variant["method"]) as error:
            adapters.load_adapter(base, tmp_path / "adapter", trainable=True)
        assert error.value.location == str(tmp_path / "adapter")
        return
    again = adapters.load_adapter(base, tmp_path / "adapter", trainable=True)
    state, expected = copy_trained_state(again), copy_trained_state(stack)
    assert state.keys() == expected.keys() and all(
        torch.equal(state[name], expected[name]) for name in expected
    )
    assert again.counts == stack.counts


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_a_folder_says_what_it_belongs_to_and_no_path_of_this_machine(
    variant: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    stack = trained(llama, variant)
    adapters.save_adapter(stack, tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "clinpeft.json").read_text())
    assert (
        about["base"]["sha256"] == stack.base.sha256
        and about["trained_parameters"] == stack.counts.trained_parameters
    )
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "clinpeft.json",
    }
    for path in (tmp_path / "adapter").iterdir():
        assert str(stack.base.folder.parent).encode() not in path.read_bytes()


def test_the_same_adapter_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        adapters.save_adapter(
            trained(llama, {"method": "lora", "targets": ("v_proj", "q_proj", "o_proj")}),
            tmp_path / name,
        )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        written = [(tmp_path / run / name).read_bytes() for run in ("one", "two")]
        if name.endswith("json"):
            written = [
                json.dumps(json.loads(text) | {"base_model_name_or_path": ""}).encode()
                for text in written
            ]
        assert written[0] == written[1]


@pytest.fixture
def saved(llama: Path, tmp_path: Path) -> Path:
    adapters.save_adapter(trained(llama, {"method": "lora"}), tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Other weights under a description that agrees with them, so that only the weights are
    wrong."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = json.loads((folder / "clinpeft.json").read_text())
    del about["files"]["adapter_model.safetensors"]
    (folder / "clinpeft.json").write_text(json.dumps(about))


def test_another_base_is_refused(saved: Path, toy_llama: MakeFolder) -> None:
    with pytest.raises(RefusedError) as error:
        adapters.load_adapter(load(toy_llama(seed=1)), saved)
    assert error.value.location == str(saved)


def test_a_missing_weight_is_an_error_and_not_a_start_value(saved: Path, llama: Path) -> None:
    rewrite(
        saved,
        lambda tensors: tensors.pop(
            "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
        ),
    )
    with pytest.raises(
        AdapterError,
        match=r"1 missing: base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
    ):
        adapters.load_adapter(load(llama), saved)


def test_a_renamed_layer_is_an_error(saved: Path, llama: Path) -> None:
    rewrite(
        saved,
        lambda tensors: [
            tensors.update({name.replace("model.layers", "blocks"): tensors.pop(name)})
            for name in list(tensors)
        ],
    )
    with pytest.raises(AdapterError, match=r"8 missing: .* 8 unexpected: base_model.model.blocks"):
        adapters.load_adapter(load(llama), saved)


def test_a_changed_file_is_refused(saved: Path, llama: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 64}))
    with pytest.raises(RefusedError, match=r"adapter_config\.json"):
        adapters.load_adapter(load(llama), saved)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "clinpeft.json"]
)
def test_a_missing_file_is_named(saved: Path, name: str, llama: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(AdapterError, match=f"no {name}"):
        adapters.load_adapter(load(llama), saved)


def test_a_description_that_cannot_be_read_is_an_error(saved: Path, llama: Path) -> None:
    about = json.loads((saved / "clinpeft.json").read_text())
    for broken, value in (
        ("{", "clinpeft.json"),
        (json.dumps(about | {"adapter": {"method": "lore"}}), "lore"),
    ):
        (saved / "clinpeft.json").write_text(broken)
        with pytest.raises(AdapterError, match=value) as error:
            adapters.load_adapter(load(llama), saved)
        assert error.value.location == str(saved / "clinpeft.json")


def test_a_save_that_fails_leaves_the_old_folder_whole(
    saved: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    stack = trained(llama, {"method": "lora", "rank": 2})

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError) as error:
        adapters.save_adapter(stack, saved)
    assert error.value.location == str(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_saving_again_replaces(saved: Path, llama: Path) -> None:
    stack = trained(llama, {"method": "lora", "rank": 2})
    adapters.save_adapter(stack, saved)
    torch.testing.assert_close(
        answers(adapters.load_adapter(load(llama), saved)), answers(stack), atol=1e-6, rtol=0
    )
