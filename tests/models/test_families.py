"""Every family on a tiny random model of its architecture, with every adapter method."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clinpeft import adapters, models
from clinpeft.adapters import ADAPTER_METHODS
from clinpeft.adapters.checkpoint import ADAPTER_SPEC_TYPE
from clinpeft.core.errors import AdapterError
from clinpeft.recipe import LanguageModelSpec
from tests.adapters.toys import copy_trained_state, load_trained_state

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": GROUPED,
    "gemma2": GROUPED,
    "modernbert": {"cls_token_id": 0, "sep_token_id": 2},
}
EVERY = [(family, method) for family in models.MODEL_FAMILIES for method in ADAPTER_METHODS]
POSSIBLE = [
    (family, method)
    for family, method in EVERY
    if method not in models.MODEL_FAMILIES[family].unsupported_methods
]


def folder_of(family: str, tokenizer: Path, folder: Path) -> Path:
    config = transformers.AutoConfig.for_model(family, **SHAPE, **SETTINGS.get(family, {}))
    torch.manual_seed(0)
    models.MODEL_FAMILIES[family].auto_class.from_config(config).save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def folders(
    toy_llama: Callable[..., Path], toy_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root, llama = tmp_path_factory.mktemp("families"), toy_llama()
    tokenizers = {"causal-lm": llama, "masked-lm": toy_bert}
    return {
        name: folder_of(name, tokenizers[family.objective], root / name)
        for name, family in models.MODEL_FAMILIES.items()
    }


@functools.cache
def loaded(folder: Path, precision: str) -> models.FrozenBaseModel:
    return models.load_base_model(
        LanguageModelSpec.model_validate(
            {"path": folder, "precision": precision, "max_tokens": 32}
        ),
        CPU,
    )


@functools.cache
def loaded_for_vectors(folder: Path) -> models.FrozenBaseModel:
    return models.load_base_model(
        LanguageModelSpec.model_validate(
            {"path": folder, "precision": "float32", "max_tokens": 32}
        ),
        CPU,
        "vectors",
    )


def base_of(folder: Path, precision: str = "float32") -> models.FrozenBaseModel:
    """A base of its own, copied from the one that was loaded."""
    return copy.deepcopy(loaded(folder, precision))


def spec_of(method: str) -> Any:
    sizes = {
        "lora": {"rank": 2},
        "adaption-prompt": {"tokens": 3, "layers": 2},
        "p-tuning": {"tokens": 3, "hidden": 8},
    }
    return ADAPTER_SPEC_TYPE.validate_python(
        {"method": method}
        | sizes.get(method, {"tokens": 3} if ADAPTER_METHODS[method].prepends != "nothing" else {})
    )


def shaken(stack: adapters.Stack) -> adapters.Stack:
    """Away from its start, where half of the weights have no say."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


ROWS = (torch.arange(5, 12), torch.arange(20, 24), torch.arange(30, 39))


def padded(
    rows: tuple[torch.Tensor, ...], side: str, extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for at, row in enumerate(rows):
        location = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[at, location], mask[at, location] = row, 1
    return ids, mask


@pytest.mark.parametrize("family", models.MODEL_FAMILIES)
def test_every_family_loads_frozen_and_answers(family: str, folders: dict[str, Path]) -> None:
    base = base_of(folders[family])
    ids, mask = padded(ROWS, "right")
    assert base.family == models.MODEL_FAMILIES[family]
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.model(input_ids=ids, attention_mask=mask).logits.shape == (3, 9, 96)


@pytest.mark.parametrize(("family", "method"), POSSIBLE)
def test_an_adapter_gives_the_same_vectors_with_and_without_the_language_modelling_head(
    family: str, method: str, folders: dict[str, Path]
) -> None:
    whole = shaken(adapters.attach_adapters(base_of(folders[family]), [spec_of(method)]))
    bare = adapters.attach_adapters(
        copy.deepcopy(loaded_for_vectors(folders[family])), [spec_of(method)]
    )
    load_trained_state(bare, copy_trained_state(whole))
    ids, mask = padded(ROWS, "left")
    with torch.no_grad():
        assert torch.equal(
            adapters.compute_hidden_states(bare, ids, mask)[mask == 1],
            adapters.compute_hidden_states(whole, ids, mask)[mask == 1],
        )
    assert (
        bare.counts.trained_parameters == whole.counts.trained_parameters and bare.base.width == 32
    )


@pytest.mark.parametrize(("family", "method"), POSSIBLE)
def test_a_row_depends_on_neither_its_padding_nor_its_neighbours(
    family: str, method: str, folders: dict[str, Path]
) -> None:
    stack = shaken(adapters.attach_adapters(base_of(folders[family]), [spec_of(method)]))
    with torch.no_grad():
        alone = [
            adapters.compute_token_logits(
                stack, row[None], torch.ones(1, len(row), dtype=torch.long)
            )[0]
            for row in ROWS
        ]
        for side, extra in (("right", 0), ("right", 5), ("left", 0), ("left", 5)):
            ids, mask = padded(ROWS, side, extra)
            together = adapters.compute_token_logits(stack, ids, mask)
            for at, expected in enumerate(alone):
                torch.testing.assert_close(together[at][mask[at] == 1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "method"), POSSIBLE)
def test_the_gradient_reaches_every_trained_tensor_and_nothing_else(
    family: str, method: str, folders: dict[str, Path]
) -> None:
    stack = shaken(adapters.attach_adapters(base_of(folders[family]), [spec_of(method)]))
    ids, mask = padded(ROWS, "right")
    adapters.compute_token_logits(stack, ids, mask)[mask == 1].float().logsumexp(
        -1
    ).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in stack.model.named_parameters():
        if name in stack.trained_parameters:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(
    ("family", "method"), [pair for pair in POSSIBLE if pair[0] in ("llama", "bert")]
)
def test_masters_are_float32_on_a_bfloat16_base(
    family: str, method: str, folders: dict[str, Path]
) -> None:
    exact = shaken(adapters.attach_adapters(base_of(folders[family]), [spec_of(method)]))
    stack = adapters.attach_adapters(base_of(folders[family], "bfloat16"), [spec_of(method)])
    load_trained_state(stack, copy_trained_state(exact))
    assert {parameter.dtype for parameter in stack.trained_parameters.values()} == {torch.float32}
    assert next(stack.base.model.parameters()).dtype == torch.bfloat16
    ids, mask = padded(ROWS, "left")
    answers, expected = (
        adapters.compute_token_logits(stack, ids, mask),
        adapters.compute_token_logits(exact, ids, mask),
    )
    answers[mask == 1].float().logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in stack.trained_parameters.values())
    difference = (answers[mask == 1].float() - expected[mask == 1]).abs().max().item()
    assert difference < 0.05 * expected[mask == 1].abs().max().item() + 0.02


@pytest.mark.parametrize(("family", "method"), [pair for pair in EVERY if pair not in POSSIBLE])
def test_what_a_family_cannot_do_is_refused_with_what_it_can(
    family: str, method: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(AdapterError) as refused:
        adapters.attach_adapters(base_of(folders[family]), [spec_of(method)])
    assert method in refused.value.message and family in refused.value.message
    assert "lora" in refused.value.hint and method not in refused.value.hint.split()


def test_ia3_takes_the_feed_forward_of_an_encoder_and_not_its_attention_output(
    folders: dict[str, Path],
) -> None:
    stack = adapters.attach_adapters(base_of(folders["bert"]), [spec_of("ia3")])
    adapted = sorted(
        {name.split("encoder.")[1].split(".ia3_l")[0] for name in stack.trained_parameters}
    )
    layers = [
        f"layer.{layer}.{part}"
        for layer in (0, 1)
        for part in ("attention.self.key", "attention.self.value", "output.dense")
    ]
    assert adapted == layers
