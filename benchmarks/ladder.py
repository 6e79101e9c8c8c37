"""One rung a technique: adapting with everything taken away, then one technique after the other put back, in the same steps and with the same losses.

    python benchmarks/ladder.py --out results --minutes 4

Techniques are taken away from outside, in this process alone; the product has no switches for them. A rung whose technique is not found under the
name that is known here fails, and says so. What does not pay here does not belong into the product.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _side_by_side as side
import adapt

Taken = AbstractContextManager[Any]


def rows_padded() -> list[Taken]:
    """All documents of a micro-batch side by side, padded to the longest."""
    from clinpeft.adapters import hidden

    together = lambda lengths, _: [[row for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]) if lengths[row]]]  # noqa: E731
    return [*rows_of_one_length(), mock.patch.object(hidden, "_groups", together)]


def rows_of_one_length() -> list[Taken]:
    """Documents side by side only with those of the same length, so that nothing is padded, and never one behind the other in a row."""
    from clinpeft.adapters import hidden

    return [mock.patch.object(hidden, "_as_one_row", lambda _: False)]


def stock_layers() -> list[Taken]:
    """peft's own LoRA layers."""
    from clinpeft.adapters import attach, fused

    none = fused.Routing
    return [mock.patch.object(attach, "fuse", lambda *_: none())]


def fused_attention() -> list[Taken]:
    """PyTorch's fused attention, in float32 on a processor, in place of plain products whose weights are kept."""
    from clinpeft.models import products

    return [mock.patch.object(products, "pays", lambda *_: False)]


def whole_vocabulary() -> list[Taken]:
    """Logits of all asked tokens at once."""
    from clinpeft.training import objectives

    real = objectives._losses
    return [mock.patch.object(objectives, "_losses", lambda forward, question, mask, asked, _: real(forward, question, mask, asked, None))]


Away = Callable[[], list[Taken]]


def rung(precision: str, away: tuple[Away, ...], work: Path) -> side.Measured:
    """The product with some techniques taken away."""
    return adapt.ours(precision, work, [patch for take in away for patch in take()])


RUNGS = {
    "nothing: padded, peft's layers, all logits, float32": partial(rung, "float32", (rows_padded, stock_layers, whole_vocabulary)),
    "+ bfloat16": partial(rung, "bfloat16", (rows_padded, stock_layers, whole_vocabulary)),
    "+ rows of one length": partial(rung, "bfloat16", (rows_of_one_length, stock_layers, whole_vocabulary)),
    "+ documents one behind the other": partial(rung, "bfloat16", (fused_attention, stock_layers, whole_vocabulary)),
    "+ one function a LoRA layer": partial(rung, "bfloat16", (fused_attention, whole_vocabulary)),
    "+ vocabulary in blocks": partial(rung, "bfloat16", (fused_attention,)),
    "+ attention as plain products (the product)": partial(rung, "bfloat16", ()),
    "the product in float32": partial(rung, "float32", ()),
}

BENCHMARK = side.Benchmark(
    file="ladder.py",
    about="Adapting, one technique after the other, real tokens a second",
    workloads={"small-notes": partial(adapt.prepare, "small", 0), "60M-notes": partial(adapt.prepare, "60M", 0)},
    arms=RUNGS,
    goals=("Every rung trains the same documents in the same steps; its losses stay within those of float32 and bfloat16 of the first two rungs.",),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
