"""Where a tokenizer's special tokens stand in a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clinpeft.core.errors import InputError

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which is not typed
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The special tokens around a window: ``first`` before every window, ``last`` after every window, ``end`` after the last one of a note."""

    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Tokens a window must leave free."""
        return len(self.first) + len(self.last) + len(self.end)

    def room(self, max_tokens: int) -> int:
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


def layout(tokenizer: Tokenizer, objective: str) -> Layout:
    """Where a tokenizer's special tokens go for a kind of language modelling.

    Decoders read ``bos`` before every window, so that every token of a note is predicted exactly once, and learn ``eos`` only where a note really
    ends. Encoders read ``cls`` and ``sep`` around every window. A token that the tokenizer lacks is left out.
    """
    if objective == "causal-lm":
        return Layout(first=_known(tokenizer.bos_token_id), end=_known(tokenizer.eos_token_id))
    return Layout(first=_known(tokenizer.cls_token_id), last=_known(tokenizer.sep_token_id))


def _known(token_id: int | None) -> tuple[int, ...]:
    return () if token_id is None else (token_id,)
