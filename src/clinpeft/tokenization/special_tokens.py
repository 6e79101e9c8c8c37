"""Where a tokenizer's special tokens stand in a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clinpeft.core.errors import InputError

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which is not typed
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpecialTokenLayout:
    """The special tokens around a window: ``window_prefix`` before every window, ``window_suffix`` after every window, ``note_suffix`` after the last one of a note."""

    window_prefix: tuple[int, ...] = ()
    window_suffix: tuple[int, ...] = ()
    note_suffix: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens a window must leave free."""
        return len(self.window_prefix) + len(self.window_suffix) + len(self.note_suffix)

    def compute_text_capacity(self, max_tokens: int) -> int:
        """Tokens of text in a window of ``max_tokens``.

        Raises:
            InputError: there is no room for text beside the special tokens.
        """
        if max_tokens <= len(self):
            raise InputError(
                f"max_tokens = {max_tokens} leaves no room for text",
                location="base.max_tokens",
                hint=f"more than {len(self)}",
            )
        return max_tokens - len(self)


def create_special_token_layout(tokenizer: Tokenizer, objective: str) -> SpecialTokenLayout:
    """Where a tokenizer's special tokens go for a kind of language modelling.

    Decoders read ``bos`` before every window, so that every token of a note is predicted exactly once, and learn ``eos`` only where a note really
    ends. Encoders read ``cls`` and ``sep`` around every window. A token that the tokenizer lacks is left out.
    """
    if objective == "causal-lm":
        return SpecialTokenLayout(
            window_prefix=_to_token_tuple(tokenizer.bos_token_id),
            note_suffix=_to_token_tuple(tokenizer.eos_token_id),
        )
    return SpecialTokenLayout(
        window_prefix=_to_token_tuple(tokenizer.cls_token_id),
        window_suffix=_to_token_tuple(tokenizer.sep_token_id),
    )


def _to_token_tuple(token_id: int | None) -> tuple[int, ...]:
    return () if token_id is None else (token_id,)
