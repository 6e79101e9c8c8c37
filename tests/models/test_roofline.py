from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from clinpeft import models
from clinpeft.recipe import PretrainedModelSpec

SEVEN_BILLION = transformers.LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    tie_word_embeddings=False,
)


def test_the_numbers_of_a_base_are_those_worked_out_by_hand() -> None:
    shape = models.compute_model_shape(SEVEN_BILLION)
    in_layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert shape.linear_weights == in_layers
    assert shape.linear_weights + shape.vocabulary_size * shape.width == pytest.approx(
        6.607e9, rel=1e-3
    )
    assert shape.parameter_count == in_layers + 2 * 32_000 * 4096 + 65 * 4096
    assert (shape.layers, shape.key_width, shape.inner_width, shape.causal) == (
        32,
        4096,
        11_008,
        True,
    )


def test_shared_keys_make_them_narrower() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_hidden_layers=1,
        vocab_size=16,
    )
    assert models.compute_model_shape(config).key_width == 16


def test_matrix_products_are_timed_and_the_number_of_threads_stays_what_it_was() -> None:
    before = torch.get_num_threads()
    assert models.measure_matmul_rate("float32", size=64, repeats=1) > 0
    found = models.measure_step_seconds([1], num_tokens=128, width=64, repeats=1)
    assert found[1] > 0 and torch.get_num_threads() == before == models.get_thread_count()


def test_the_tiny_base_is_a_base_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (models.write_toy_model(tmp_path / name) for name in ("first", "second"))
    assert models.fingerprint_base_model(first) == models.fingerprint_base_model(second)
    base = models.load_base_model(
        PretrainedModelSpec(path=first, max_tokens=32, precision="float32"), models.get_cpu_device()
    )
    assert base.tokenizer.decode(base.tokenizer("no pain")["input_ids"]) == "no pain"
