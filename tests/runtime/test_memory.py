from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from clinpeft.core.errors import TrainingError
from clinpeft.runtime.memory import build_backward_with_oom_retry
from clinpeft.tokenization import IndexArray
from clinpeft.training import (
    LossSum,
    build_additive_backward,
    measure_peak_memory_bytes,
    retry_backward_on_oom,
)


def _everything(items: IndexArray) -> list[IndexArray]:
    return [items]


def _course(fits: int, tried: list[int]) -> tuple[torch.nn.Parameter, object]:
    """A weight and the backward of a loss whose micro-batches fit up to so many items; a larger one
    leaves half a gradient behind, then fails."""
    weight = torch.nn.Parameter(torch.ones(()))

    def loss(items: IndexArray, step: int) -> LossSum:
        tried.append(len(items))
        if len(items) > fits:
            weight.grad = torch.tensor(99.0)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return LossSum((weight * torch.from_numpy(items).float()).sum(), float(len(items)))

    return weight, lambda grouped: build_additive_backward(loss, grouped, 0, Accelerator())


def test_too_little_memory_halves_the_micro_batch_until_it_fits_and_the_gradient_is_that_of_the_whole_step() -> (  # noqa: E501
    None
):
    tried: list[int] = []
    told: list[int] = []
    weight, backward_of = _course(3, tried)
    backward = retry_backward_on_oom(backward_of, _everything, [weight], told.append)  # type: ignore[arg-type]
    assert backward(np.arange(8), 1) == (28.0, 8.0)
    assert (
        weight.grad is not None and float(weight.grad) == 28.0
    )  # 0 + 1 + ... + 7, and nothing of the attempts that failed
    assert (tried, told) == ([8, 4, 2, 2, 2, 2], [2, 4])


def test_a_run_says_that_its_micro_batches_became_smaller() -> None:
    weight, size = torch.nn.Parameter(torch.ones(())), []

    def loss(items: IndexArray, step: int) -> LossSum:
        size.append(len(items))
        if len(items) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return LossSum((weight * torch.from_numpy(items).float()).sum(), float(len(items)))

    backward = build_backward_with_oom_retry(
        partial(build_additive_backward, loss, seed=0, accelerator=Accelerator()),
        _everything,
        [weight],
        1,
    )
    with pytest.warns(UserWarning, match="cut into 2"):
        assert backward(np.arange(8), 1) == (28.0, 8.0)
    assert size == [8, 4, 4]


def test_later_steps_begin_with_the_size_that_fitted() -> None:
    tried: list[int] = []
    weight, backward_of = _course(4, tried)
    backward = retry_backward_on_oom(backward_of, _everything, [weight])  # type: ignore[arg-type]
    backward(np.arange(8), 1)
    tried.clear()
    backward(np.arange(8), 2)
    assert tried == [4, 4]


def test_where_not_even_one_item_fits_the_error_says_what_to_do() -> None:
    weight, backward_of = _course(0, [])
    with pytest.raises(TrainingError, match="one item") as caught:
        retry_backward_on_oom(backward_of, _everything, [weight])(np.arange(4), 7)  # type: ignore[arg-type]
    assert caught.value.location == "step 7" and "max_tokens" in caught.value.hint


def test_the_last_resort_is_taken_where_one_item_does_not_fit_and_not_before() -> None:
    weight, tried = torch.nn.Parameter(torch.ones(())), list[int]()
    taken: list[int] = []

    def loss(items: IndexArray, step: int) -> LossSum:
        tried.append(len(items))
        if len(items) > 1 or not taken:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return LossSum((weight * torch.from_numpy(items).float()).sum(), float(len(items)))

    def last_resort() -> bool:
        taken.append(len(tried))
        return len(taken) == 1

    with pytest.warns(UserWarning, match="cut into"):
        assert build_backward_with_oom_retry(
            partial(build_additive_backward, loss, seed=0, accelerator=Accelerator()),
            _everything,
            [weight],
            1,
            last_resort,
        )(np.arange(4), 1) == (6.0, 4.0)
    assert (tried, taken) == ([4, 2, 1, 1, 1, 1, 1], [3])
    with pytest.raises(TrainingError, match="one item") as caught:
        retry_backward_on_oom(_course(0, [])[1], _everything, [weight], reduce_memory=last_resort)(  # type: ignore[arg-type]
            np.arange(1), 1
        )
    assert "recompute" in caught.value.hint


def test_the_peak_of_this_process_is_what_the_kernel_says() -> None:
    status = Path("/proc/self/status")
    found = measure_peak_memory_bytes(torch.device("cpu"))
    if not status.exists():
        assert found is None
        return
    known = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert known and found is not None and 0 < found <= 1024 * int(known.group(1))
