"""The paper's trained-parameter counts (arXiv 2307.03042 v1, table 2), on LLaMA-7B shapes without
weights."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from clinpeft import adapters, models
from clinpeft.adapters.checkpoint import ADAPTER_SPEC_TYPE

ROWS: list[tuple[str, dict[str, Any], int, str]] = [
    ("LLaMA LoRA", {"method": "lora", "rank": 16, "alpha": 32}, 8_388_608, "0.12"),
    (
        "LLaMA adaption prompt",
        {"method": "adaption-prompt", "tokens": 10, "layers": 30},
        1_228_830,
        "0.02",
    ),
    ("LLaMA prefix", {"method": "prefix", "tokens": 20}, 5_242_880, "0.08"),
    ("LLaMA prompt", {"method": "prompt", "tokens": 15}, 61_440, "0.0009"),
    (
        "LLaMA P-tuning",
        {"method": "p-tuning", "encoder": "lstm", "hidden": 256, "layers": 4, "tokens": 20},
        16_093_696,
        "0.24",
    ),
    (
        "PMC-LLaMA LoRA",
        {"method": "lora", "rank": 4, "alpha": 4, "dropout": 0.2},
        2_097_152,
        "0.03",
    ),
    (
        "PMC-LLaMA adaption prompt",
        {"method": "adaption-prompt", "tokens": 10, "layers": 30},
        1_228_830,
        "0.02",
    ),
    ("PMC-LLaMA prefix", {"method": "prefix", "tokens": 10}, 2_621_440, "0.04"),
    ("PMC-LLaMA prompt", {"method": "prompt", "tokens": 10}, 40_960, "0.0006"),
    (
        "PMC-LLaMA P-tuning",
        {"method": "p-tuning", "encoder": "mlp", "hidden": 256, "tokens": 1},
        2_171_392,
        "0.03",
    ),
]


@pytest.mark.parametrize(
    ("adapter", "trained", "percent"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_the_paper_s_counts_are_reproduced_exactly(
    adapter: dict[str, Any], trained: int, percent: str
) -> None:
    base = models.create_meta_model(
        transformers.LlamaConfig(vocab_size=32_000)
    )  # the other defaults are LLaMA-7B's: 32 layers, width 4096
    counts = adapters.attach_adapters(base, [ADAPTER_SPEC_TYPE.validate_python(adapter)]).counts
    assert counts.base_parameters == 6_738_415_616
    assert counts.trained_parameters == trained
    assert f"{100 * counts.trained_fraction:.{len(percent) - 2}f}" == percent
