"""Texts to vectors without padding, held against the plain padded loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clinpeft import adapters, models
from clinpeft.core.errors import InputError, StorageError, TrainingError, UsageError
from clinpeft.inference import Float32Array
from clinpeft.inference import encode_texts_to_file as encoding
from clinpeft.inference.encode import (
    EncodingProgress,
    EncodingSummary,
    bucket_by_length,
    encode_texts,
    encode_texts_to_file,
)
from clinpeft.models.embedding_config import EmbeddingConfig
from clinpeft.recipe import LoraSpec, PretrainedModelSpec, PromptSpec
from tests.conftest import WORDS

CPU = torch.device("cpu")
MakeFolder = Callable[..., Path]
MEAN = EmbeddingConfig("mean", max_tokens=40)


def texts(count: int, seed: int = 0) -> list[str]:
    """Invented texts of 2 to 30 words, all different."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 31))) for _ in range(count)]


def stack_of(folder: Path, *specs: Any, precision: str = "float32") -> adapters.Stack:
    base = models.load_base_model(
        PretrainedModelSpec.model_validate(
            {"path": folder, "max_tokens": 40, "precision": precision}
        ),
        CPU,
        "vectors",
    )
    stack = adapters.attach_adapters(base, specs)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in stack.trained_parameters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return stack


def plain(
    stack: adapters.Stack, embedding_config: EmbeddingConfig, given: list[str], prompt: str = ""
) -> np.ndarray[Any, Any]:
    """Ten texts at a time, padded to the longest, as everybody does it."""
    found, tokenizer = [], stack.base.tokenizer
    for start in range(0, len(given), 10):
        asked = [prompt + text for text in given[start : start + 10]]
        batch = tokenizer(
            asked,
            padding=True,
            truncation=True,
            max_length=embedding_config.max_tokens,
            return_tensors="pt",
        )
        with torch.no_grad():
            hidden = adapters.compute_hidden_states(
                stack, batch["input_ids"], batch["attention_mask"]
            )
            pooled = models.pool_hidden_states(
                hidden, batch["attention_mask"], embedding_config.pooling
            )
        found.append(
            torch.nn.functional.normalize(pooled, dim=1) if embedding_config.normalise else pooled
        )
    return torch.cat(found).numpy()


@pytest.fixture(scope="module")
def bert(toy_bert: Path) -> adapters.Stack:
    return stack_of(toy_bert, LoraSpec(rank=2))


# ----------------------------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize(
    "manner",
    [
        MEAN,
        EmbeddingConfig("cls", normalise=False, max_tokens=40),
        EmbeddingConfig("last", max_tokens=7),
    ],
    ids=str,
)
def test_vectors_are_those_of_the_plain_padded_loop(
    embedding_config: EmbeddingConfig, toy_bert: Path, toy_llama: MakeFolder
) -> None:
    for folder in (toy_bert, toy_llama(), toy_llama(pad_is_eos=True)):
        stack = stack_of(folder, LoraSpec(rank=2))
        given = texts(57)
        expected = plain(stack, embedding_config, given)
        length = np.linalg.norm(expected, axis=1).max()  # 1 where they are normalised
        np.testing.assert_allclose(
            encode_texts(stack, embedding_config, given, token_budget=64),
            expected,
            atol=1e-6 * length,
            rtol=0,
        )


def test_the_adapters_count_and_a_stack_that_is_off_gives_the_vectors_of_the_base(
    toy_bert: Path, bert: adapters.Stack
) -> None:
    given, bare = texts(9), stack_of(toy_bert)
    with bert.disable_adapters():
        np.testing.assert_allclose(
            encode_texts(bert, MEAN, given), plain(bare, MEAN, given), atol=1e-6
        )
    assert np.abs(encode_texts(bert, MEAN, given) - plain(bare, MEAN, given)).max() > 1e-2


def test_an_adapter_that_cannot_be_folded_is_asked_as_it_is(toy_llama: MakeFolder) -> None:
    stack = stack_of(toy_llama(), PromptSpec(tokens=3))
    given = texts(9)
    np.testing.assert_allclose(
        encode_texts(stack, MEAN, given), plain(stack, MEAN, given), atol=1e-6
    )


def test_the_model_is_the_same_afterwards(bert: adapters.Stack) -> None:
    before = {name: parameter.clone() for name, parameter in bert.base.model.named_parameters()}
    encode_texts(bert, MEAN, texts(5), precision="bfloat16")
    after = dict(bert.base.model.named_parameters())
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


def test_a_prompt_stands_before_every_text(bert: adapters.Stack) -> None:
    given = texts(6)
    np.testing.assert_allclose(
        encode_texts(bert, MEAN, given, prompt="the patient "),
        plain(bert, MEAN, ["the patient " + text for text in given]),
        atol=1e-6,
    )


def test_a_real_encoder_gives_the_vectors_of_the_plain_loop(minilm: Path) -> None:
    base = models.load_base_model(
        PretrainedModelSpec(path=minilm, max_tokens=128, precision="float32"), CPU, "vectors"
    )
    stack, embedding_config = (
        adapters.attach_adapters(base, []),
        EmbeddingConfig("mean", max_tokens=12),
    )
    given = [
        "Aortic stenosis.",
        "The valve between the left ventricle and the aorta does not open fully, and blood cannot leave.",
        "Mitral valve",
    ]
    np.testing.assert_allclose(
        encode_texts(stack, embedding_config, given),
        plain(stack, embedding_config, given),
        atol=1e-6,
    )


# -------------------------------------------------------------------------------------------------------------------------------- batches


def test_batches_hold_texts_of_like_length_within_the_budget() -> None:
    lengths = np.array([3, 5, 3, 3, 9, 5, 3])
    groups = [group.tolist() for group in bucket_by_length(lengths, token_budget=9)]
    assert groups == [[4], [1], [5, 0], [2, 3, 6]]
    assert [group.tolist() for group in bucket_by_length(np.array([20]), 9)] == [[0]]
    assert sorted(at for group in groups for at in group) == list(range(7))


def test_the_same_text_is_encoded_once_and_its_vector_stands_wherever_it_was(
    bert: adapters.Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rows = encoding.read, list[int]()

    def counted(
        engine: encoding.Engine, ids: list[list[int]], embedding_config: EmbeddingConfig
    ) -> Float32Array:
        rows.append(len(ids))
        return read(engine, ids, embedding_config)

    monkeypatch.setattr(encoding, "read", counted)
    one, two, three = texts(3)
    found = encode_texts(bert, MEAN, [one, two, one, three, two, one])
    assert sum(rows) == 3
    np.testing.assert_array_equal(found[[2, 5, 4]], found[[0, 0, 1]])
    np.testing.assert_allclose(
        found, plain(bert, MEAN, [one, two, one, three, two, one]), atol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK_TEXTS", 8)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_a_file_holds_the_vectors_in_the_order_of_the_texts_whatever_the_chunks(
    ending: str, bert: adapters.Stack, tmp_path: Path
) -> None:
    given = texts(21)
    given += given[:5] + given[-2:]  # repetitions from an earlier chunk, and from the same one
    told: list[EncodingProgress] = []
    encoded = encode_texts_to_file(
        bert, MEAN, iter(given), tmp_path / f"vectors{ending}", on_progress=told.append
    )
    found = (
        np.load(tmp_path / "vectors.npy")
        if ending == ".npy"
        else np.stack(pq.read_table(tmp_path / "vectors.parquet")["vector"].to_numpy())
    )
    assert found.dtype == np.float32 and found.shape == (28, 32)
    np.testing.assert_allclose(found, plain(bert, MEAN, given), atol=1e-6)
    np.testing.assert_array_equal(found[21:26], found[:5])
    assert (encoded.texts, encoded.unique_texts, encoded.width, encoded.truncated_texts) == (
        28,
        21,
        32,
        0,
    )
    assert (
        encoded.tokens == sum(len(text.split()) for text in given[:21]) == told[-1].tokens
    )  # one token a word
    assert told[-1].texts == 21 and [each.texts for each in told] == sorted(
        each.texts for each in told
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"vectors{ending}"]


def test_identifiers_of_record_batches_stand_beside_the_vectors_and_texts_do_not(
    bert: adapters.Stack, tmp_path: Path
) -> None:
    given = texts(5)
    table = pa.table(
        {"passage_id": list("abcde"), "text": pa.array(given, pa.large_string()), "title": given}
    )
    encode_texts_to_file(
        bert, MEAN, table.to_batches(max_chunksize=2), tmp_path / "vectors.parquet"
    )
    found = pq.read_table(tmp_path / "vectors.parquet")
    assert found.schema.names == ["passage_id", "vector"] and found[
        "passage_id"
    ].to_pylist() == list("abcde")
    assert found.schema.field("vector").type == pa.list_(pa.float32(), 32)
    np.testing.assert_allclose(
        np.stack(found["vector"].to_numpy()), plain(bert, MEAN, given), atol=1e-6
    )


def test_what_is_cut_is_counted(bert: adapters.Stack, tmp_path: Path) -> None:
    given = [
        "the patient is a",
        "the patient is a man with heart failure",
        "no fever no cough no pain",
    ]
    encoded = encode_texts_to_file(
        bert, EmbeddingConfig("mean", max_tokens=4), given, tmp_path / "vectors.npy"
    )
    assert (encoded.truncated_texts, encoded.tokens) == (2, 12)
    assert EncodingSummary(**encoded.as_json()) == encoded  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------------------------ precision


def test_bfloat16_is_taken_where_the_vectors_stay_the_same(
    bert: adapters.Stack, tmp_path: Path
) -> None:
    given = texts(20)
    encoded = encode_texts_to_file(
        bert, MEAN, given, tmp_path / "vectors.npy", precision="bfloat16"
    )
    found, exact = np.load(tmp_path / "vectors.npy"), plain(bert, MEAN, given)
    assert (
        encoded.precision == "bfloat16"
        and encoded.cosine is not None
        and 0.999 <= encoded.cosine < 1.0
    )
    assert "worst cosine" in encoded.precision_reason
    assert not np.array_equal(found, exact) and (found * exact).sum(axis=1).min() > 0.999


def test_bfloat16_that_would_give_other_vectors_is_given_up_and_said(
    bert: adapters.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "LEAST_COSINE", 0.9999999)
    given = texts(20)
    encoded = encode_texts_to_file(
        bert, MEAN, given, tmp_path / "vectors.npy", precision="bfloat16"
    )
    assert (
        encoded.precision == "float32"
        and "bfloat16 was tried" in encoded.precision_reason
        and encoded.cosine is not None
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "vectors.npy"), plain(bert, MEAN, given), atol=1e-6
    )


def test_auto_asks_the_processor(
    bert: adapters.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        encode_texts_to_file(bert, MEAN, texts(3), tmp_path / "vectors.npy").precision == "float32"
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert (
        encode_texts_to_file(bert, MEAN, texts(3), tmp_path / "vectors.npy").precision == "bfloat16"
    )


def test_angles_of_rotary_positions_stay_exact_in_bfloat16(toy_llama: MakeFolder) -> None:
    stack = stack_of(toy_llama(), LoraSpec(rank=2))
    rounded = encoding._rounded(stack, encoding._exact(stack), torch.bfloat16)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in rounded.buffers() if buffer.is_floating_point()} == {
        torch.float32
    }


def test_a_base_in_bfloat16_is_compared_with_itself_in_float32(toy_llama: MakeFolder) -> None:
    stack = stack_of(toy_llama(), precision="bfloat16")
    ready = encoding.engine(stack, "last", "bfloat16", [[1, 2, 3], [4, 5]])
    assert ready.precision == "bfloat16" and ready.cosine is not None and 0.99 < ready.cosine < 1.0


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("empty", ["", "  \n\t", None])
def test_an_empty_text_is_an_error_with_its_row_and_leaves_no_file(
    empty: Any, bert: adapters.Stack, tmp_path: Path
) -> None:
    given = texts(13)
    for stream in (
        [*given, empty],
        [pa.record_batch({"text": pa.array([*given, empty], pa.string())})],
    ):
        with pytest.raises(InputError, match="text 13, counted from 0") as error:
            encode_texts_to_file(bert, MEAN, stream, tmp_path / "vectors.parquet")
        assert not list(tmp_path.iterdir()) and not any(text in str(error.value) for text in given)


def test_no_text_at_all_is_an_error_for_a_file_and_nothing_in_memory(
    bert: adapters.Stack, tmp_path: Path
) -> None:
    for ending in ("npy", "parquet"):
        with pytest.raises(InputError, match="no text"):
            encode_texts_to_file(bert, MEAN, iter(()), tmp_path / f"vectors.{ending}")
    assert encode_texts(bert, MEAN, []).shape == (0, 32) and not list(tmp_path.iterdir())


def test_a_vector_that_is_not_a_number_is_an_error_with_its_row(toy_bert: Path) -> None:
    stack = stack_of(toy_bert)
    with torch.no_grad():
        stack.base.model.get_input_embeddings().weight[
            stack.base.tokenizer.convert_tokens_to_ids("fever")
        ] = torch.nan
    with pytest.raises(TrainingError, match="not a number") as error:
        encode_texts(stack, MEAN, ["the patient", "no fever", "a man"])
    assert error.value.location == "text 1, counted from 0" and "fever" not in str(error.value)


def test_a_vector_without_direction_is_an_error_only_where_one_is_needed(
    toy_llama: MakeFolder,
) -> None:
    stack = stack_of(toy_llama())
    with torch.no_grad():
        stack.base.backbone.norm.weight.zero_()
    with pytest.raises(TrainingError, match="zero"):
        encode_texts(stack, MEAN, ["the patient"])
    assert not encode_texts(stack, EmbeddingConfig("mean", normalise=False), ["the patient"]).any()


def test_another_ending_is_refused_before_anything_is_read(
    bert: adapters.Stack, tmp_path: Path
) -> None:
    def stream() -> Iterator[str]:
        raise AssertionError("read")
        yield ""

    with pytest.raises(UsageError, match="csv"):
        encode_texts_to_file(bert, MEAN, stream(), tmp_path / "vectors.csv")


def test_what_stood_there_before_stays_when_it_fails(bert: adapters.Stack, tmp_path: Path) -> None:
    encode_texts_to_file(bert, MEAN, ["the patient"], tmp_path / "vectors.npy")
    before = (tmp_path / "vectors.npy").read_bytes()
    with pytest.raises(InputError):
        encode_texts_to_file(bert, MEAN, ["a man", ""], tmp_path / "vectors.npy")
    assert (tmp_path / "vectors.npy").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        encode_texts_to_file(bert, MEAN, ["a man"], tmp_path / "file" / "vectors.npy")
