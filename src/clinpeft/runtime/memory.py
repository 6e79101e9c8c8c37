"""Peak memory of this process, and training steps that are repeated in smaller micro-batches.

A step that runs out of GPU memory is taken again in smaller micro-batches. The items of the step,
and so its gradient but for rounding and the draws of dropout, stay the same: micro-batches are
sub-groups of a step.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clinpeft.core.errors import TrainingError

ItemIndices = NDArray[np.int64]
"""(items,) rows of the training data."""

MicroBatchFunction = Callable[[ItemIndices], list[ItemIndices]]
"""Items of a step -> its micro-batches."""

BackwardFunction = Callable[[ItemIndices, int], tuple[float, float]]
"""(items of a step, its number) -> summed loss and number of targets; adds to the gradients."""

PROCESS_STATUS_FILE = Path("/proc/self/status")


def measure_peak_memory_bytes(device: torch.device) -> int | None:
    """Measure the most memory that this process has held so far.

    Args:
        device: of a GPU, what was allocated on it is counted; else the resident set.

    Returns:
        Bytes; None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not PROCESS_STATUS_FILE.exists():
        return None
    match = re.search(r"VmHWM:\s+(\d+) kB", PROCESS_STATUS_FILE.read_text(encoding="utf-8"))
    return 1024 * int(match.group(1)) if match else None


def build_backward_with_oom_retry(
    build_backward: Callable[[MicroBatchFunction], BackwardFunction],
    make_micro_batches: MicroBatchFunction,
    parameters: Iterable[torch.nn.Parameter],
    num_processes: int,
    reduce_memory: Callable[[], bool] | None = None,
) -> BackwardFunction:
    """Build the backward pass of a step, which warns and retries where memory is too small.

    Args:
        build_backward: micro-batches of a step -> its backward pass.
        make_micro_batches: items of a step -> its micro-batches, as they are with enough memory.
        parameters: what is trained.
        num_processes: of several, each would have to know of the others' retries, so that none
            retries.
        reduce_memory: as for ``retry_backward_on_oom``.
    """
    if num_processes > 1:
        return build_backward(make_micro_batches)

    def warn_of_split(pieces: int) -> None:
        warnings.warn(
            f"the memory of this GPU is too small: micro-batches are cut into {pieces} from here "
            "on, and steps stay the same",
            stacklevel=2,
        )

    return retry_backward_on_oom(
        build_backward, make_micro_batches, parameters, warn_of_split, reduce_memory
    )


def retry_backward_on_oom(
    build_backward: Callable[[MicroBatchFunction], BackwardFunction],
    make_micro_batches: MicroBatchFunction,
    parameters: Iterable[torch.nn.Parameter],
    on_split: Callable[[int], object] = lambda _: None,
    reduce_memory: Callable[[], bool] | None = None,
) -> BackwardFunction:
    """Build a backward pass that halves the micro-batches and starts the step again on OOM.

    Later steps keep the smaller size. Smaller pieces come first, since they cost next to nothing
    as long as one fills the device; what costs time is the last resort, where a single item does
    not fit. For one process: several would have to agree on the groups that they share.

    Args:
        build_backward: micro-batches of a step -> its backward pass.
        make_micro_batches: items of a step -> its micro-batches, as they are with enough memory.
        parameters: what is trained; gradients of the attempt that failed are discarded.
        on_split: called with the number of pieces that a micro-batch is now cut into.
        reduce_memory: computes the same gradients in less memory from here on, and returns whether
            that is new; called where a single item does not fit.

    Raises:
        TrainingError: not even a single item fits.
    """
    trained = list(parameters)
    pieces = 1

    def backward(items: ItemIndices, step: int) -> tuple[float, float]:
        nonlocal pieces
        while True:
            try:
                return build_backward(partial(_split_micro_batches, make_micro_batches, pieces))(
                    items, step
                )
            except torch.OutOfMemoryError as error:
                # A micro-batch of one item cannot be split any more.
                largest = max(len(group) for group in make_micro_batches(items))
                can_split = pieces < largest
                if not can_split and (reduce_memory is None or not reduce_memory()):
                    raise TrainingError(
                        "the memory of this device is too small for one item",
                        location=f"step {step}",
                        hint='set training.activations = "recompute" if it is not, lower '
                        "base.max_tokens, or take a smaller base",
                    ) from error
            # Outside the except clause: the error's traceback holds the tensors of the failed step.
            for parameter in trained:
                parameter.grad = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if can_split:
                pieces *= 2
                on_split(pieces)

    return backward


def _split_micro_batches(
    make_micro_batches: MicroBatchFunction, pieces: int, items: ItemIndices
) -> list[ItemIndices]:
    """Each micro-batch in at most ``pieces`` parts, none of which is empty."""
    return [
        part
        for group in make_micro_batches(items)
        for part in np.array_split(group, min(pieces, len(group)))
    ]
