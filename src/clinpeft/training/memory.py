"""Memory: the peak of this process, and a step that is done again in smaller micro-batches when a GPU had too little for it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from clinpeft.core.errors import TrainingError
from clinpeft.tokenization import IndexArray
from clinpeft.training.trainer import LossSum, build_additive_backward

MicroBatchFunction = Callable[[IndexArray], list[IndexArray]]
BackwardFunction = Callable[[IndexArray, int], tuple[float, float]]
PROCESS_STATUS_FILE = Path("/proc/self/status")


def measure_peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that this process has held so far: of a GPU what was allocated on it, else the resident set; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not PROCESS_STATUS_FILE.exists():
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", PROCESS_STATUS_FILE.read_text(encoding="utf-8"))
    return 1024 * int(found.group(1)) if found else None


def build_backward_with_oom_retry(
    loss: Callable[[IndexArray, int], LossSum],
    make_micro_batches: MicroBatchFunction,
    parameters: Iterable[torch.nn.Parameter],
    seed: int,
    accelerator: Accelerator,
    reduce_memory: Callable[[], bool] | None = None,
) -> BackwardFunction:
    """``additive``, in smaller micro-batches where a GPU's memory did not do; a warning says so. Of several processes each is on its own.

    ``reduce_memory``: as for ``sparing``.
    """
    if accelerator.num_processes > 1:
        return build_additive_backward(loss, make_micro_batches, seed, accelerator)

    def tell(pieces: int) -> None:
        said = f"the memory of this GPU did not do: micro-batches are cut into {pieces} from here on, steps stay what they are"
        warnings.warn(said, stacklevel=2)

    return retry_backward_on_oom(
        lambda some: build_additive_backward(loss, some, seed, accelerator),
        make_micro_batches,
        parameters,
        tell,
        reduce_memory,
    )


def retry_backward_on_oom(
    build_backward: Callable[[MicroBatchFunction], BackwardFunction],
    make_micro_batches: MicroBatchFunction,
    parameters: Iterable[torch.nn.Parameter],
    on_split: Callable[[int], object] = lambda _: None,
    reduce_memory: Callable[[], bool] | None = None,
) -> BackwardFunction:
    """``Course.backward`` that halves the micro-batches when the memory of a GPU does not do, and begins the step anew.

    The items of the step, and so the gradient but for rounding and the draws of dropout, stay what they were: micro-batches are sub-groups of a step.
    Later steps keep the smaller size. For one process: several would have to agree on the groups that they share. Smaller pieces come first, since
    they cost next to nothing as long as one fills the device; what costs time is the last resort, where a single item does not fit.

    Args:
        build_backward: micro-batches of a step -> ``Course.backward``, such as ``additive`` with its other arguments given.
        make_micro_batches: the items of a step -> its micro-batches, as they would be with enough memory.
        parameters: what is trained; gradients of the attempt that failed are thrown away.
        on_split: called with the number of pieces that a micro-batch is now cut into.
        reduce_memory: makes the same gradients in less memory from here on, and says whether that is new; asked where a single item does not fit.

    Raises:
        TrainingError: not even a single item fits.
    """
    trained = list(parameters)
    pieces = 1

    def backward(chosen: IndexArray, step: int) -> tuple[float, float]:
        nonlocal pieces
        while True:
            try:
                return build_backward(partial(_split_micro_batches, make_micro_batches, pieces))(
                    chosen, step
                )
            except torch.OutOfMemoryError as error:
                largest = max(len(group) for group in make_micro_batches(chosen))
                smaller = pieces < largest
                if not smaller and (reduce_memory is None or not reduce_memory()):
                    hint = 'set training.activations = "recompute" if it is not, lower base.max_tokens, or take a smaller base'
                    raise TrainingError(
                        "the memory of this device does not do for one item",
                        location=f"step {step}",
                        hint=hint,
                    ) from error
            for parameter in trained:
                parameter.grad = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if smaller:
                pieces *= 2
                on_split(pieces)

    return backward


def _split_micro_batches(
    make_micro_batches: MicroBatchFunction, pieces: int, items: IndexArray
) -> list[IndexArray]:
    return [
        part
        for group in make_micro_batches(items)
        for part in np.array_split(group, min(pieces, len(group)))
    ]
