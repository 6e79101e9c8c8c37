"""Attention as plain products: equal to PyTorch's own, with what dropout drew, for one document as
among others, and only where it pays."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from clinpeft.models import SequenceLengths
from clinpeft.runtime import cpu_attention, packed_attention
from clinpeft.runtime.dropout import DROPOUT_LEVELS, sample_dropout_mask

SHAPES = [  # documents, heads, heads of keys, length, width of a head
    (1, 4, 4, 700, 16),
    (3, 4, 2, 300, 8),
    (2, 4, 4, 1, 8),
    (5, 6, 2, 9, 8),
    (1, 8, 1, 600, 8),
]
NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def drawn(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> Parts:
    documents, heads, of_keys, length, width = shape
    torch.manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(documents, length, each, width, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for each in (heads, of_keys, of_keys)
    )


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.detach().abs().max()) or 1.0
    assert float((found.double() - expected.double()).detach().abs().max()) <= NEAR[
        found.dtype
    ] * max(scale, 1.0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NEAR)
def test_answers_and_gradients_are_those_of_pytorch(
    dtype: torch.dtype, shape: tuple[int, int, int, int, int], causal: bool
) -> None:
    parts = drawn(shape, dtype)
    plain = [part.detach().double().requires_grad_() for part in parts]
    found = cpu_attention.compute_cpu_attention(*parts, None, causal, 0.0)
    query, key, value = plain
    expected = functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal and shape[3] > 1, enable_gqa=True
    )
    along = torch.randn(
        expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    torch.autograd.backward([found, expected], [along.to(dtype), along.to(dtype).double()])
    near(found, expected)
    for part, other in zip(parts, plain, strict=True):
        assert part.grad is not None
        assert other.grad is not None
        near(part.grad, other.grad)


def test_a_scale_that_is_given_is_used() -> None:
    parts = drawn(SHAPES[1], torch.float64)
    expected = functional.scaled_dot_product_attention(
        *parts, scale=0.7, is_causal=True, enable_gqa=True
    )
    near(cpu_attention.compute_cpu_attention(*parts, 0.7, True, 0.0), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_with_dropout_gradients_are_those_of_what_was_drawn(causal: bool) -> None:
    parts, dropped = drawn((2, 4, 2, 7, 8), torch.float64), round(0.3 * DROPOUT_LEVELS)
    torch.manual_seed(5)
    found = cpu_attention.compute_cpu_attention(*parts, None, causal, 0.3)
    torch.manual_seed(5)
    stays = (
        sample_dropout_mask((4, 14, 7), dropped, torch.device("cpu"))
        .view(2, 2, 2, 7, 7)
        .flatten(1, 2)
    )
    query, key, value = (part.detach().requires_grad_() for part in parts)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    if causal:
        scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -torch.inf)
    expected = (
        scores.softmax(-1) * stays * DROPOUT_LEVELS / (DROPOUT_LEVELS - dropped)
    ) @ value.repeat_interleave(2, 1)
    near(found, expected)
    torch.autograd.backward([found.square().sum(), expected.square().sum()])
    for part, other in zip(parts, (query, key, value), strict=True):
        assert part.grad is not None
        assert other.grad is not None
        near(part.grad, other.grad)


def test_dropout_leaves_the_share_that_was_asked_and_keeps_the_mean() -> None:
    query, key, _ = drawn((1, 2, 2, 400, 4), torch.float32)
    one = torch.ones(1, 2, 400, 4)
    torch.manual_seed(0)
    sums = cpu_attention.compute_cpu_attention(
        query, key, one, None, False, 0.25
    )  # of the weights that stay, scaled: 1 on average
    assert float(sums.detach().mean()) == pytest.approx(1.0, abs=0.01)
    assert float(sums.detach().std()) > 0.0


def test_gradients_that_nobody_wants_are_not_made() -> None:
    query, key, value = (part.detach() for part in drawn(SHAPES[1], torch.float32))
    value.requires_grad_()
    torch.autograd.backward(
        cpu_attention.compute_cpu_attention(query, key, value, None, True, 0.0).sum()
    )
    assert value.grad is not None
    assert query.grad is None
    assert key.grad is None


def test_what_is_kept_is_bounded_by_the_blocks_that_hold_the_diagonal() -> None:
    kept: list[int] = []
    parts = drawn((1, 2, 2, 1024, 4), torch.bfloat16)

    def count_numbers(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count_numbers, lambda tensor: tensor):
        cpu_attention.compute_cpu_attention(*parts, None, True, 0.0)
    weights = sum(kept) - 3 * 2 * 1024 * 4
    assert weights == 2 * 1024 * 1024 * 5 // 8


CASES = [  # (precision, length, dropout, pays)
    (torch.bfloat16, 5, 0.0, True),
    (torch.bfloat16, cpu_attention.MAX_CPU_ATTENTION_TOKENS, 0.0, True),
    (torch.bfloat16, cpu_attention.MAX_CPU_ATTENTION_TOKENS + 1, 0.0, False),
    (torch.float32, 5, 0.0, False),
    (torch.float32, 5, 0.1, True),
]


@pytest.mark.parametrize(("dtype", "length", "dropout", "expected"), CASES)
def test_it_is_taken_where_it_pays(
    dtype: torch.dtype, length: int, dropout: float, expected: bool
) -> None:
    query = torch.zeros(1, 1, length, 8, dtype=dtype)
    assert cpu_attention.is_cpu_attention_faster(query, dropout) is expected
    with torch.no_grad():
        assert cpu_attention.is_cpu_attention_faster(query, dropout) is expected, (
            "a text that is read twice is read alike"
        )
    with torch.inference_mode():
        assert cpu_attention.is_cpu_attention_faster(query, dropout) is (
            dtype == torch.bfloat16
            and cpu_attention.MIN_INFERENCE_WEIGHTS
            <= length**2
            <= cpu_attention.MAX_CPU_ATTENTION_TOKENS**2
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not cpu_attention.is_cpu_attention_faster(query, dropout)


MANY = [  # (documents, length, pays)
    (1, 1024, True),
    (8, 181, False),
    (8, 182, True),
    (1, cpu_attention.MAX_CPU_ATTENTION_TOKENS + 1, False),
]


@pytest.mark.parametrize(("documents", "length", "expected"), MANY)
def test_without_a_graph_it_is_taken_for_many_weights(
    documents: int, length: int, expected: bool
) -> None:
    query = torch.zeros(documents, 2, length, 4, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert cpu_attention.is_cpu_attention_faster(query, 0.0) is expected
        assert not cpu_attention.is_cpu_attention_faster(query.float(), 0.0)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    real = cpu_attention.compute_cpu_attention

    def look(query: torch.Tensor, *others: object) -> torch.Tensor:
        seen.append(query.shape[2])
        return real(query, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu_attention, "compute_cpu_attention", look)
    return seen


def test_a_document_has_the_answer_that_it_has_alone(looked: list[int]) -> None:
    lengths = (300, 5, 5, 1, 270)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, sum(lengths), 4, 8).bfloat16().transpose(1, 2) for _ in range(3)
    )
    module = torch.nn.Module()
    found = packed_attention.attend_packed_documents(
        module, query, key, value, None, spans=SequenceLengths(lengths)
    )[0]
    assert looked == [300, 5, 1, 270]
    at = 0
    for length in lengths:
        alone = slice(at, at + length)
        expected = packed_attention.attend_packed_documents(
            module,
            query[:, :, alone],
            key[:, :, alone],
            value[:, :, alone],
            None,
            spans=SequenceLengths((length,)),
        )[0]
        near(found[:, alone], expected)
        at += length


@pytest.mark.parametrize(
    ("heads", "length", "expected"),
    [(4, 1024, 2), (12, 1024, 1), (12, 256, 2), (12, 64, 42), (40, 1024, 1), (12, 1, 174762)],
)
def test_few_long_documents_or_many_short_ones_are_multiplied_at_once(
    heads: int, length: int, expected: int
) -> None:
    assert cpu_attention.choose_chunk_size(heads, length) == expected
    assert (
        expected == 1
        or heads * min(length, cpu_attention.QUERY_BLOCK_TOKENS) * length * expected
        <= cpu_attention.MAX_WEIGHTS_PER_CALL
    )


def test_a_run_that_is_cut_into_pieces_has_the_answers_of_the_whole(
    looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (7, 7, 7, 7, 7, 3, 3)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, sum(lengths), 4, 8).bfloat16().transpose(1, 2) for _ in range(3)
    )
    whole = packed_attention.attend_packed_documents(
        torch.nn.Module(), query, key, value, None, spans=SequenceLengths(lengths)
    )[0]
    assert looked == [7, 3]
    monkeypatch.setattr(cpu_attention, "MAX_WEIGHTS_PER_CALL", 2 * 4 * 7 * 7)
    assert [
        *SequenceLengths(lengths).iterate_chunks(
            lambda length: cpu_attention.choose_chunk_size(4, length)
        )
    ] == [
        (2, 7),
        (2, 7),
        (1, 7),
        (2, 3),
    ]
    cut = packed_attention.attend_packed_documents(
        torch.nn.Module(), query, key, value, None, spans=SequenceLengths(lengths)
    )[0]
    assert looked == [7, 3, 7, 7, 7, 3]
    near(cut, whole)
