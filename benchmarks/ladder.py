"""One rung a technique: everything taken away, then one technique after the other put back, in the
same steps and with the same losses.

    python benchmarks/ladder.py --out results --minutes 4

Techniques are taken away from outside, in this process alone; the product has no switches for them.
A rung whose technique is not found under the name that is known here fails, and says so. What does
not pay here does not belong into the product.

Norms and gates are compiled in long runs alone, so that the rung which has them is one above the
product.

``small-answers`` answers a question from notes of 50 to 2,048 tokens, where a note's vector is its
last token. Activations recomputed are the one technique that a recipe can ask for: it saves memory
and costs time, which no other rung does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _side_by_side as side
import adapt
import classify

Taken = AbstractContextManager[Any]


def inside(name: str) -> Any:
    """A file of the product; where a room exports a function of the file's name, a plain import
    would give that."""
    return importlib.import_module(f"clinpeft.{name}")


def rows_padded() -> list[Taken]:
    """All documents of a micro-batch side by side, padded to the longest."""
    together = lambda lengths, _: [
        [row for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]) if lengths[row]]
    ]
    return [
        *rows_of_one_length(),
        mock.patch.object(inside("adapters.outputs"), "group_rows_by_length", together),
    ]


def rows_of_one_length() -> list[Taken]:
    """Documents side by side only with those of the same length, so that nothing is padded, and
    never one behind the other in a row."""
    return [mock.patch.object(inside("adapters.outputs"), "_supports_packing", lambda _: False)]


def stock_layers() -> list[Taken]:
    """peft's own LoRA layers."""
    from clinpeft.runtime.fused_lora import TokenRouting

    attach = inside("adapters.attach")
    return [mock.patch.object(attach, "fuse_lora_layers", lambda *_: TokenRouting())]


def fused_attention() -> list[Taken]:
    """PyTorch's fused attention, in float32 on a processor, in place of plain products whose
    weights are kept."""
    from clinpeft.runtime import cpu_attention

    return [mock.patch.object(cpu_attention, "is_cpu_attention_faster", lambda *_: False)]


def whole_vocabulary() -> list[Taken]:
    """Logits of all asked tokens at once."""
    from clinpeft.training.chunked_loss import LanguageModelHead

    return [mock.patch.object(LanguageModelHead, "get_projection", lambda _: None)]


def whole_last_layer() -> list[Taken]:
    """The last layer for all tokens, and not for those alone that are pooled."""
    from clinpeft import models

    return [mock.patch.object(models, "select_pooled_tokens", lambda *_: None)]


def compiled() -> list[Taken]:
    """Norms and gates compiled, whatever that takes: put in, where everything else here is taken
    away, since a run this short does without."""
    compiling = inside("pipeline.compiling")
    return [
        mock.patch.object(
            compiling, "_remembered", lambda *_: compiling.Decision(True, "the ladder")
        )
    ]


Away = Callable[[], list[Taken]]


def rung(
    precision: str, away: tuple[Away, ...], work: Path, activations: str = "keep"
) -> side.Measured:
    """The product with some techniques taken away."""
    return adapt.ours(precision, work, [patch for take in away for patch in take()], activations)


def answers(away: tuple[Away, ...], work: Path) -> side.Measured:
    """The product with some techniques taken away, answering a question."""
    return classify.ours("bfloat16", work, [patch for take in away for patch in take()])


RUNGS = {
    "nothing: padded, peft's layers, all logits, float32": partial(
        rung, "float32", (rows_padded, stock_layers, whole_vocabulary)
    ),
    "+ bfloat16": partial(rung, "bfloat16", (rows_padded, stock_layers, whole_vocabulary)),
    "+ rows of one length": partial(
        rung, "bfloat16", (rows_of_one_length, stock_layers, whole_vocabulary)
    ),
    "+ documents one behind the other": partial(
        rung, "bfloat16", (fused_attention, stock_layers, whole_vocabulary)
    ),
    "+ one function a LoRA layer": partial(rung, "bfloat16", (fused_attention, whole_vocabulary)),
    "+ vocabulary in blocks": partial(rung, "bfloat16", (fused_attention,)),
    "+ attention as plain products (the product)": partial(rung, "bfloat16", ()),
    "the product, norms and gates compiled": partial(rung, "bfloat16", (compiled,)),
    "the product in float32": partial(rung, "float32", ()),
    "the product, activations recomputed": partial(rung, "bfloat16", (), activations="recompute"),
}

ANSWERS = {
    "answers: the last layer for all tokens": partial(answers, (whole_last_layer,)),
    "+ the last layer for pooled tokens alone (the product)": partial(answers, ()),
}

BENCHMARK = side.Benchmark(
    file="ladder.py",
    about="One technique after the other, real tokens or notes a second",
    workloads={
        "small-notes": partial(adapt.prepare, "small", 0),
        "60M-notes": partial(adapt.prepare, "60M", 0),
        "small-answers": partial(classify.prepare, "adapters", lengths=(50, classify.LONGEST)),
    },
    arms=RUNGS | ANSWERS,
    only={"small-notes": list(RUNGS), "60M-notes": list(RUNGS), "small-answers": list(ANSWERS)},
    goals=(
        (
            "Every rung trains the same documents in the same steps; its losses stay within "
            "those of float32 and bfloat16 of the first two rungs."
        ),
    ),
)

if __name__ == "__main__":
    side.main(BENCHMARK)
