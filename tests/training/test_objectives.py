"""Batch to loss, checked against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clinpeft.tokenization import WindowBatch
from clinpeft.training.objectives import (
    IGNORE_INDEX,
    compute_batch_likelihoods,
    label_next_tokens,
    mask_tokens,
)
from tests.conftest import WORDS, toy_tokenizer

BOS, EOS = 0, 1


def batch_of(rows: list[list[int]], windows: list[int] | None = None) -> WindowBatch:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return WindowBatch(
        ids,
        mask,
        torch.tensor(np.cumsum([0, *map(len, rows)])),
        np.array(windows or range(len(rows))),
    )


def test_every_real_token_but_the_first_is_asked_and_padding_never() -> None:
    question = label_next_tokens(batch_of([[BOS, 5, 6, EOS], [BOS, EOS]]), None, (0,))
    assert question.labels.tolist() == [
        [5, 6, EOS, IGNORE_INDEX],
        [EOS, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX],
    ]


def test_eos_is_asked_even_where_pad_is_the_same_id() -> None:
    tokenizer = toy_tokenizer({"bos_token": "<s>", "eos_token": "</s>"}, pad_is_eos=True)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOS
    batch = batch_of([[BOS, 5, EOS], [BOS, EOS]])
    padded = WindowBatch(
        torch.tensor([[BOS, 5, EOS], [BOS, EOS, EOS]]),
        batch.attention_mask,
        batch.boundaries,
        batch.window_indices,
    )
    assert label_next_tokens(padded, tokenizer, (0,)).labels.tolist() == [
        [5, EOS, IGNORE_INDEX],
        [EOS, IGNORE_INDEX, IGNORE_INDEX],
    ]


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary_for_each_token() -> None:
    batch = batch_of([[BOS, 5, 6, EOS], [BOS, EOS]])
    scores = compute_batch_likelihoods(
        lambda ids, mask: torch.zeros(*ids.shape, 10),
        label_next_tokens(batch, None, (0,)),
        batch.attention_mask,
    )
    assert scores.target_counts.tolist() == [3, 1]
    assert scores.negative_log_likelihood.tolist() == pytest.approx(
        [3 * math.log(10), math.log(10)]
    )


def test_the_loss_is_the_surprise_of_the_right_answer() -> None:
    batch = batch_of([[BOS, 1]])
    odds = torch.log(torch.tensor([0.25, 0.75]))  # the model gives the right token 3/4
    scores = compute_batch_likelihoods(
        lambda ids, mask: odds.expand(*ids.shape, 2),
        label_next_tokens(batch, None, (0,)),
        batch.attention_mask,
    )
    assert scores.negative_log_likelihood.item() == pytest.approx(-math.log(0.75))


def test_masks_depend_on_the_window_and_not_on_its_neighbours() -> None:
    tokenizer = toy_tokenizer(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    )
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    words = tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"]
    row = [cls, *words, sep]
    alone = mask_tokens(batch_of([row], [7]), tokenizer, (1, 2))
    among = mask_tokens(batch_of([row + [5] * 9, row, [cls, 5, sep]], [3, 7, 9]), tokenizer, (1, 2))
    assert torch.equal(alone.labels[0], among.labels[1, : len(row)]) and torch.equal(
        alone.input_ids[0], among.input_ids[1, : len(row)]
    )
    assert int((alone.labels != IGNORE_INDEX).sum()) == round(0.15 * len(words))
    assert not torch.equal(
        alone.labels, mask_tokens(batch_of([row], [7]), tokenizer, (1, 3)).labels
    )


def test_masking_spares_special_tokens_and_always_asks_something() -> None:
    tokenizer = toy_tokenizer(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    )
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    question = mask_tokens(batch_of([[cls, 9, sep], [cls, sep]]), tokenizer, (0,))
    assert question.labels.tolist() == [
        [IGNORE_INDEX, 9, IGNORE_INDEX],
        [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX],
    ]


def test_of_masked_tokens_eight_in_ten_become_the_mask_one_stays_one_is_random() -> None:
    tokenizer = toy_tokenizer(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    )
    rows = [[tokenizer.cls_token_id, *([10] * 100), tokenizer.sep_token_id] for _ in range(200)]
    question = mask_tokens(batch_of(rows), tokenizer, (0,))
    inputs = question.input_ids[question.labels != IGNORE_INDEX]
    assert len(inputs) == 200 * 15
    assert (inputs == tokenizer.mask_token_id).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (inputs == 10).float().mean().item() == pytest.approx(0.1, abs=0.03)
