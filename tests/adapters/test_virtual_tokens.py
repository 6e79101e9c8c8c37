"""Virtual tokens are made once for all texts that are asked together, and everything learns what it
learns when each text is asked by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clinpeft import adapters, models
from clinpeft.adapters import Stack
from tests.adapters.toys import load, shake, spec

MakeFolder = Callable[..., Path]
LENGTHS = (11, 11, 10, 3, 5, 2, 1)  # groups of about the same length: three, one, two and one
METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"tokens": 3},
    "p-tuning": {"tokens": 3, "hidden": 8, "encoder": "lstm", "layers": 2},
    "p-tuning-mlp": {"tokens": 3, "hidden": 8},
    "prefix": {"tokens": 3, "projection": True},
    "prefix-plain": {"tokens": 3, "projection": False},
}


@pytest.fixture(scope="module")
def bases(toy_llama: MakeFolder, toy_bert: Path) -> dict[str, models.FrozenBaseModel]:
    return {"llama": load(toy_llama()), "bert": load(toy_bert)}


def stack_of(bases: dict[str, models.FrozenBaseModel], family: str, name: str) -> Stack:
    method = name.removesuffix("-mlp").removesuffix("-plain")
    stack = adapters.attach_adapters(copy.deepcopy(bases[family]), [spec(method, **METHODS[name])])
    shake(stack)
    return stack


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(5, 30, mask.shape, generator=torch.Generator().manual_seed(1)) * mask, mask


def train_once(stack: Stack, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*stack.trained_parameters.items(), strict=True)
    return dict(zip(names, torch.autograd.grad((vectors * weights).sum(), parameters), strict=True))


def peft_alone(stack: Stack, ids: torch.Tensor) -> torch.Tensor:
    """One text by peft's own way, which makes the virtual tokens for it anew."""
    actual = stack.model(
        input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
    )
    vectors: torch.Tensor = actual.hidden_states[-1][0, -ids.shape[1] :]
    return vectors


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("name", METHODS)
def test_vectors_and_gradients_are_those_of_each_text_asked_by_peft(
    name: str, family: str, bases: dict[str, models.FrozenBaseModel]
) -> None:
    stack, plain = stack_of(bases, family, name), stack_of(bases, family, name)
    ids, mask = rows()
    actual = adapters.compute_packed_hidden_states(stack, ids, mask)
    expected = torch.cat(
        [peft_alone(plain, ids[row : row + 1, :length]) for row, length in enumerate(LENGTHS)]
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for (name_, gradient), wanted in zip(
        train_once(stack, actual).items(), train_once(plain, expected).values(), strict=True
    ):
        assert wanted.abs().max() > 0, name_
        torch.testing.assert_close(
            gradient, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4
        )


@pytest.mark.parametrize("name", METHODS)
def test_their_encoder_is_asked_once_whatever_is_read_and_for_one_row(
    name: str, bases: dict[str, models.FrozenBaseModel]
) -> None:
    stack, inputs = stack_of(bases, "llama", name), []
    stack.model.prompt_encoder["default"].register_forward_hook(
        lambda _, given, __: inputs.append(len(given[0]))
    )
    torch.autograd.backward(adapters.compute_packed_hidden_states(stack, *rows()).sum())
    assert inputs == [1]


def test_a_prefix_is_the_same_for_the_next_group(bases: dict[str, models.FrozenBaseModel]) -> None:
    """The model lengthens the keys that it is handed; the next group gets them as they were."""
    stack = stack_of(bases, "llama", "prefix")
    ids, mask = rows()
    with torch.no_grad():
        together = adapters.compute_hidden_states(stack, ids, mask)
        alone = [
            adapters.compute_hidden_states(
                stack, ids[row : row + 1, :length], mask[row : row + 1, :length]
            )[0]
            for row, length in enumerate(LENGTHS)
        ]
    torch.testing.assert_close(together[mask == 1], torch.cat(alone), atol=1e-5, rtol=1e-5)
