"""Where the special tokens of a tokenizer stand in a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clinpeft.core.errors import InputError

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which is not typed
IndexArray = npt.NDArray[np.int64]
"""Row numbers, lengths or offsets, int64."""


@dataclass(frozen=True)
class SpecialTokenLayout:
    """The special tokens around a window.

    Attributes:
        window_prefix: before every window.
        window_suffix: after every window.
        note_suffix: after the last window of a note, inside ``window_suffix``.
    """

    window_prefix: tuple[int, ...] = ()
    window_suffix: tuple[int, ...] = ()
    note_suffix: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens of a window that cannot hold text."""
        return len(self.window_prefix) + len(self.window_suffix) + len(self.note_suffix)

    def compute_text_capacity(self, max_tokens: int) -> int:
        """Return the tokens of text that fit into a window of ``max_tokens``.

        Raises:
            InputError: the special tokens fill the window.
        """
        if max_tokens <= len(self):
            raise InputError(
                f"max_tokens = {max_tokens} leaves no space for text",
                location="base.max_tokens",
                hint=f"set more than {len(self)}, the number of special tokens of a window",
            )
        return max_tokens - len(self)


def create_special_token_layout(tokenizer: Tokenizer, objective: str) -> SpecialTokenLayout:
    """Return where the special tokens of a tokenizer go for a language modeling objective.

    Decoders have ``bos`` before every window, so that every token of a note is predicted exactly
    once, and ``eos`` only where a note ends, so that they learn where notes end. Encoders have
    ``cls`` and ``sep`` around every window. A token that the tokenizer lacks is left out.

    Args:
        tokenizer: of the base model.
        objective: ``causal-lm`` or ``masked-lm``.
    """

    def as_tuple(token_id: int | None) -> tuple[int, ...]:
        return () if token_id is None else (token_id,)

    # decoder: a token sees only those before it, so `bos` is its only context in a new window
    if objective == "causal-lm":
        return SpecialTokenLayout(
            window_prefix=as_tuple(tokenizer.bos_token_id),
            note_suffix=as_tuple(tokenizer.eos_token_id),
        )
    return SpecialTokenLayout(
        window_prefix=as_tuple(tokenizer.cls_token_id),
        window_suffix=as_tuple(tokenizer.sep_token_id),
    )
