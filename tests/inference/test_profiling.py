"""The measurement says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clinpeft import adapters, models
from clinpeft.core.errors import InputError
from clinpeft.inference import profile_encoder as measuring
from clinpeft.inference.profile import build_token_histogram, profile_encoder
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.recipe import LoraSpec, PretrainedModelSpec

MEAN = EmbeddingConfig("mean", max_tokens=10)


@pytest.fixture(scope="module")
def stack(toy_bert: Path) -> adapters.Stack:
    base = models.load_base_model(
        PretrainedModelSpec(path=toy_bert, max_tokens=32, precision="float32"),
        torch.device("cpu"),
        "vectors",
    )
    return adapters.attach_adapters(base, [LoraSpec(rank=2)])


def test_lengths_are_counted_in_doubling_ranges() -> None:
    assert build_token_histogram(np.array([1, 8, 9, 16, 17, 600, 3000])) == (
        (1, 8, 2),
        (9, 16, 2),
        (17, 32, 1),
        (513, 1024, 1),
        (1025, 3000, 1),
    )
    assert build_token_histogram(np.array([5])) == ((1, 8, 1),)


def test_a_profile_tells_what_it_rests_on(stack: adapters.Stack) -> None:
    given = [
        "the patient is a man",
        "no fever",
        "no cough",
        "no fever",
        "the patient is a man with known heart failure and short breath",
    ]
    found = profile_encoder(stack, MEAN, given, load_seconds=1.5, token_budget=8)
    assert (found.texts, found.tokens) == (4, 5 + 2 + 2 + 10)  # one came twice, one is cut
    assert found.token_histogram == ((1, 8, 3), (9, 16, 1)) and found.batches == 3
    assert "8 tokens" in found.batch_policy and "no padding" in found.batch_policy
    assert (found.precision, found.device, found.threads) == (
        "float32",
        "cpu",
        torch.get_num_threads(),
    )
    assert 0 < found.latency_ms_p50 <= found.latency_ms_p95 and found.latency_ms_mean > 0
    assert found.tokens_per_second == pytest.approx(found.embeddings_per_second * 19 / 4)
    assert "10 warm-ups, 100 iterations" in found.latency_protocol
    assert found.peak_memory_bytes > 10_000_000 and found.peak_memory_of.startswith("resident")
    assert found.load_seconds == 1.5 and found.dimension == 32
    assert found.parameters == sum(parameter.numel() for parameter in stack.model.parameters())
    assert json.loads(json.dumps(found.as_json()))["texts"] == 4 and not any(
        text in json.dumps(found.as_json()) for text in given
    )


def test_quantiles_are_of_the_iterations_after_the_warm_up(
    stack: adapters.Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(
        [
            0.0,
            1.0,
            *(
                tick
                for turn in range(110)
                for tick in (10.0 * turn, 10.0 * turn + (5.0 if turn < 10 else (turn - 9) / 1000))
            ),
        ]
    )
    monkeypatch.setattr("clinpeft.inference.profile.time.perf_counter", lambda: next(ticks))
    found = profile_encoder(stack, MEAN, ["the patient", "no fever"])
    assert found.embeddings_per_second == 2.0 and found.tokens_per_second == 4.0
    assert found.latency_ms_p50 == pytest.approx(50.5) and found.latency_ms_mean == pytest.approx(
        50.5
    )  # 1, 2, ... 100 ms
    assert found.latency_ms_p95 == pytest.approx(95.05)


def test_where_the_system_does_not_tell_the_peak_it_is_that_of_the_process(
    stack: adapters.Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "RESIDENT_RESET", tmp_path / "none" / "clear_refs")
    found = profile_encoder(stack, MEAN, ["the patient"])
    assert (
        found.peak_memory_of.endswith("since the process began")
        and found.peak_memory_bytes > 10_000_000
    )


def test_no_text_is_an_error(stack: adapters.Stack) -> None:
    with pytest.raises(InputError, match="no text"):
        profile_encoder(stack, MEAN, [])
