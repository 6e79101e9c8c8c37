"""What answers a question: one linear layer on a sequence's vector, in float32 whatever the base computes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch

from clinpeft.core.errors import InputError, UsageError

WindowPooling = Literal["mean", "max"]
HEAD_INIT_STD = 0.02  # of the first weights, as in BERT (Devlin et al. 2019) and its descendants


class Head(torch.nn.Module):
    """Vectors of windows -> logits of documents.

    Nothing is kept per token: with 1,266 classes the largest tensor is (windows, classes).

    Args:
        width: numbers in a vector.
        num_classes: logits of a document.
        dropout: share of a vector's numbers that is left out while training.
        seed: of the first weights, N(0, 0.02); biases start at 0, and the global generators stay as they were.
    """

    def __init__(self, width: int, num_classes: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(dropout)
        self.linear: torch.nn.Linear = torch.nn.utils.skip_init(
            torch.nn.Linear, width, num_classes, dtype=torch.float32
        )  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.linear.weight.normal_(
                0.0, HEAD_INIT_STD, generator=torch.Generator().manual_seed(seed)
            )
            self.linear.bias.zero_()

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(self.linear.in_features)

    @property
    def num_classes(self) -> int:
        """Logits of a document."""
        return int(self.linear.out_features)

    def forward(
        self,
        vectors: torch.Tensor,
        document_index: torch.Tensor,
        num_documents: int,
        window_pooling: WindowPooling,
    ) -> torch.Tensor:
        """A document's logits are the mean, or class by class the maximum, of its windows' logits.

        Args:
            vectors: (windows, width).
            document_index: (windows,) int64, the document of each window, from 0 to ``num_documents`` - 1, in any order.
            num_documents: how many.
            window_pooling: ``mean`` or ``max``.

        Returns:
            (documents, classes), float32.

        Raises:
            InputError: a document without windows, or a window without document.
        """
        belongs = (
            document_index[None, :]
            == torch.arange(num_documents, device=document_index.device)[:, None]
        )  # (documents, windows)
        _check_window_membership(belongs)
        with torch.autocast(vectors.device.type, enabled=False):
            return _WINDOW_POOLING_FUNCTIONS[window_pooling](
                self.linear(self.dropout(vectors.float())), belongs, document_index
            )


def _check_window_membership(membership: torch.Tensor) -> None:
    if membership.any(dim=1).all() & membership.any(dim=0).all():
        return
    without, stray = (torch.nonzero(~membership.any(dim=dim)).flatten().tolist() for dim in (1, 0))
    message = f"documents without windows: {without[:5]}; windows without document: {stray[:5]}"
    raise InputError(
        message,
        location="head",
        hint="give every document at least one window, and every window one of the documents",
    )


def _pool_mean(
    logits: torch.Tensor, membership: torch.Tensor, document_index: torch.Tensor
) -> torch.Tensor:  # noqa: ARG001 - both ways have one shape
    """As one product, because sums that are scattered on a GPU come out in another order each time."""
    shares = membership.float() / membership.sum(dim=1, keepdim=True)  # (documents, windows)
    return shares @ logits


def _pool_max(
    logits: torch.Tensor, membership: torch.Tensor, document_index: torch.Tensor
) -> torch.Tensor:
    lowest = logits.new_full((len(membership), logits.shape[1]), -torch.inf)
    return lowest.scatter_reduce(
        0, document_index[:, None].expand_as(logits), logits, "amax", include_self=False
    )


_WINDOW_POOLING_FUNCTIONS: dict[
    str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
] = {
    "mean": _pool_mean,
    "max": _pool_max,
}


class TaskHeads(torch.nn.Module, Mapping[str, Head]):
    """A module of several heads, read like a dictionary: name of a task -> its head. Any name will do, also one with dots.

    Args:
        heads: at least one.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # modules are told apart by what they are, not by what they hold

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        if not heads:
            raise UsageError("no head", location="heads", hint="ask at least one question")
        self._task_names = tuple(heads)
        self._heads = torch.nn.ModuleDict(
            {_escape_task_name(name): head for name, head in heads.items()}
        )

    def __getitem__(self, task: str) -> Head:
        head: Head = self._heads[_escape_task_name(task)]  # type: ignore[assignment]  # torch says Module of whatever it holds
        return head

    def __iter__(self) -> Iterator[str]:
        return iter(self._task_names)

    def __len__(self) -> int:
        return len(self._task_names)


def _escape_task_name(name: str) -> str:
    """A name that torch takes: no dots, and never one of a module's own attributes."""
    return "@" + name.replace("%", "%25").replace(".", "%2E")
