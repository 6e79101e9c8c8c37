"""Classification heads: one linear layer on pooled hidden states, always in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch

from clinpeft.core.errors import InputError, UsageError

WindowPooling = Literal["mean", "max"]
HEAD_INIT_STD = 0.02
"""Standard deviation of the initial weights, as in BERT (Devlin et al. 2019, arXiv 1810.04805)."""


class Head(torch.nn.Module):
    """Vectors of windows to logits of documents.

    Nothing is stored per token: with 1,266 classes the largest tensor is (windows, classes).

    Args:
        width: numbers in a vector.
        num_classes: logits of a document.
        dropout: fraction of a vector's numbers that is zeroed in training.
        seed: of the initial weights, N(0, 0.02); biases are 0. The global generators of torch do
            not change.
    """

    def __init__(self, width: int, num_classes: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(dropout)
        # without torch's own initialization, which would draw from the global generator
        self.linear: torch.nn.Linear = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
            torch.nn.Linear, width, num_classes, dtype=torch.float32
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            # weight (classes, width), bias (classes,)
            self.linear.weight.normal_(0.0, HEAD_INIT_STD, generator=generator)
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
        """Return the mean, or the maximum per class, of the logits of a document's windows.

        Args:
            vectors: (windows, width).
            document_index: (windows,) int64, the document of each window, from 0 to
                ``num_documents`` - 1, in any order.
            num_documents: number of documents.
            window_pooling: ``mean`` or ``max``.

        Returns:
            (documents, classes), float32.

        Raises:
            InputError: a document without windows, or a window without document.
        """
        documents = torch.arange(num_documents, device=document_index.device)
        membership = document_index[None, :] == documents[:, None]  # (documents, windows)
        has_windows, has_document = membership.any(dim=1), membership.any(dim=0)
        # a document without windows would have logits of -inf or NaN
        if not has_windows.all() & has_document.all():  # one transfer from the accelerator
            empty = torch.nonzero(~has_windows).flatten().tolist()
            stray = torch.nonzero(~has_document).flatten().tolist()
            raise InputError(
                f"documents without windows: {empty[:5]}; windows without document: {stray[:5]}",
                location="head",
                hint="give every document at least one window, and every window one document",
            )
        # float32 also where the caller runs under autocast: logits decide calibration
        with torch.autocast(vectors.device.type, enabled=False):
            logits = self.linear(self.dropout(vectors.float()))  # (windows, classes)
            if window_pooling == "mean":
                # a matrix product, because scattered sums on a GPU depend on the order of threads
                weights = membership.float() / membership.sum(dim=1, keepdim=True)
                mean: torch.Tensor = weights @ logits  # (documents, classes)
                return mean
            # amax replaces the initial value, which a document with windows never returns
            lowest = logits.new_full((num_documents, logits.shape[1]), -torch.inf)
            index = document_index[:, None].expand_as(logits)  # (windows, classes)
            highest: torch.Tensor = lowest.scatter_reduce(
                0, index, logits, "amax", include_self=False
            )  # (documents, classes)
            return highest


class TaskHeads(torch.nn.Module, Mapping[str, Head]):
    """A module of several heads that is read like a dictionary: name of a task -> its head.

    Args:
        heads: at least one; names may contain any character.

    Raises:
        UsageError: no head.
    """

    # Mapping compares contents; a module is equal to itself only, and hashable
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        if not heads:
            raise UsageError("no head", location="heads", hint="give at least one task")
        # the keys of ModuleDict are escaped, so the names are stored apart
        self._task_names = tuple(heads)
        self._heads = torch.nn.ModuleDict(
            {_escape_task_name(name): head for name, head in heads.items()}
        )

    def __getitem__(self, task: str) -> Head:
        head: Head = self._heads[_escape_task_name(task)]  # type: ignore[assignment]  # a Module
        return head

    def __iter__(self) -> Iterator[str]:
        return iter(self._task_names)

    def __len__(self) -> int:
        return len(self._task_names)


def _escape_task_name(name: str) -> str:
    """Return a key for ModuleDict: without dots, and never an attribute of a module."""
    # "%" first, so that the escape of "." is not escaped again
    return "@" + name.replace("%", "%25").replace(".", "%2E")
