"""The search spaces of arXiv 2307.03042, as tables.

The values are those of the configurations that its authors released
(github.com/aryopg/clinical_peft, commit 5934aca of June 2023), from which the runs of the paper's
first version were made; the paper's own appendix, A.2 for language modeling and B for the clinical
tasks, was not available. A search had 20 trials, by the configurations 10 where two adapters are
stacked. The learning rate was fixed: 3e-4 for language modeling, 5e-5 for the tasks. For language
modeling the perplexity was minimized, for the tasks the AUROC on the validation split maximized.
AdaLoRA, which is in the configurations and not in the paper, is left out.
"""

from __future__ import annotations

from clinpeft.recipe.search import SettingValue

_VIRTUAL_TOKENS = (1, 5, 10, 15, 20)
_LORA_SPACE: dict[str, tuple[SettingValue, ...]] = {
    "rank": (2, 4, 8, 16),
    "alpha": (4, 8, 16, 32),
    "dropout": (0.0, 0.1, 0.2),
}

PAPER_SEARCH_SPACES: dict[str, dict[str, tuple[SettingValue, ...]]] = {
    "paper:lora": _LORA_SPACE,
    "paper:adaption-prompt": {"tokens": (5, 10), "layers": (10, 20, 30)},
    "paper:prefix": {"tokens": _VIRTUAL_TOKENS, "projection": (True, False)},
    "paper:prompt": {"tokens": _VIRTUAL_TOKENS, "init": ("text", "random")},
    "paper:p-tuning": {
        "tokens": _VIRTUAL_TOKENS,
        "encoder": ("mlp", "lstm"),
        "hidden": (64, 128, 256, 768),
        "layers": (1, 2, 4, 8, 12),
        "dropout": (0.0, 0.1, 0.2),
    },
    "paper:downstream": _LORA_SPACE,
}
"""Name -> key of one adapter -> choices. ``paper:downstream`` is for the LoRA of a clinical task,
alone or on top of an adapted model."""
