"""Text to windows to batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clinpeft import tokenization
from clinpeft.core import schemas
from clinpeft.core.errors import InputError
from clinpeft.recipe import LanguageModelSpec
from tests.conftest import toy_tokenizer

BOS, EOS = 0, 1


@pytest.fixture
def tokenizer() -> tokenization.Tokenizer:
    return toy_tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})


def write_corpus(folder: Path, texts: list[str], splits: list[str] | None = None) -> Path:
    rows = range(len(texts))
    columns = {
        "note_id": [f"n{row}" for row in rows],
        "subject_id": [100 + row for row in rows],
        "category": ["Discharge summary" for _ in rows],
        "split": splits or ["train" for _ in rows],
        "text": texts,
    }
    pq.write_table(
        schemas.build_arrow_table(schemas.CORPUS_SCHEMA, columns), folder / "corpus.parquet"
    )
    return folder / "corpus.parquet"


def encode(
    folder: Path,
    texts: list[str],
    tokenizer: tokenization.Tokenizer,
    base: LanguageModelSpec,
    objective: str = "causal-lm",
) -> tokenization.EncodedCorpus:
    corpus = write_corpus(folder, texts)
    return tokenization.encode_corpus(
        corpus,
        tokenizer,
        tokenization.create_special_token_layout(tokenizer, objective),
        base,
        folder / "encoded",
    )


def test_a_long_note_becomes_windows_that_hold_every_token_once(
    tmp_path: Path, tokenizer: tokenization.Tokenizer
) -> None:
    text = "the patient is a year old man with known heart failure who came to hospital because of short breath"
    encodings = encode(tmp_path, [text], tokenizer, LanguageModelSpec(path=tmp_path, max_tokens=8))
    pieces = [
        encodings.tokens[start : start + length].tolist()
        for start, length in zip(encodings.starts, encodings.lengths, strict=True)
    ]
    assert all(piece[0] == BOS for piece in pieces)
    assert [piece[-1] == EOS for piece in pieces] == [
        False,
        False,
        False,
        True,
    ]  # 19 words in windows of 6, eos only at the very end
    words = [token for piece in pieces for token in piece if token not in (BOS, EOS)]
    assert words == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (encodings.attrition.entered_rows, encodings.attrition.kept_rows) == (19, 19)


def test_truncation_keeps_the_first_tokens_and_counts_the_rest(
    tmp_path: Path, tokenizer: tokenization.Tokenizer
) -> None:
    base = LanguageModelSpec(path=tmp_path, max_tokens=8, overflow="truncate")
    encodings = encode(
        tmp_path,
        ["the patient is a year old man with known heart failure", "no fever"],
        tokenizer,
        base,
    )
    assert encodings.lengths.tolist() == [8, 4]
    assert encodings.attrition.dropped_rows == {"past the first 6 tokens of its note": 5}


def test_an_empty_note_is_only_its_special_tokens(
    tmp_path: Path, tokenizer: tokenization.Tokenizer
) -> None:
    encodings = encode(
        tmp_path, ["", "no fever"], tokenizer, LanguageModelSpec(path=tmp_path, max_tokens=8)
    )
    assert encodings.lengths.tolist() == [2, 4]


def test_no_room_for_text_is_an_error_that_says_how_much_is_needed(tmp_path: Path) -> None:
    shape = tokenization.SpecialTokenLayout(window_prefix=(0,) * 4, note_suffix=(1,) * 4)
    with pytest.raises(InputError, match="max_tokens = 8 leaves no room for text"):
        tokenization.encode_corpus(
            tmp_path / "none",
            None,
            shape,
            LanguageModelSpec(path=tmp_path, max_tokens=8),
            tmp_path / "encoded",
        )


def test_interrupted_encoding_leaves_nothing_finished(
    tmp_path: Path, tokenizer: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, ["no fever"], tokenizer, LanguageModelSpec(path=tmp_path))
    assert not tokenization.is_encoded(tmp_path / "encoded")


def test_encodings_are_the_same_when_opened_again(
    tmp_path: Path, tokenizer: tokenization.Tokenizer
) -> None:
    first = encode(
        tmp_path, ["no fever was found", "chest pain"], tokenizer, LanguageModelSpec(path=tmp_path)
    )
    again = tokenization.open_encoded_corpus(tmp_path / "encoded")
    assert first.tokens.tolist() == again.tokens.tolist() and first.note_table.equals(
        again.note_table
    )
    assert (
        again.count_by_split()["train_tokens"] == 6 + 4
    )  # bos and eos around 4 and 2 words: 6 + 4


def test_steps_hold_every_window_once_and_do_not_depend_on_the_micro_batch() -> None:
    lengths = np.random.default_rng(0).integers(2, 100, 500)
    cut = tokenization.shuffle_window_steps(lengths, 1000, np.random.default_rng(1))
    assert sorted(np.concatenate(cut).tolist()) == list(range(500))
    assert all(900 <= lengths[part].sum() <= 1100 for part in cut[:-1])  # off by at most one window
    for micro in (100, 400, 100_000):
        groups = tokenization.group_windows(lengths, cut[0], micro)
        assert sorted(np.concatenate(groups).tolist()) == sorted(cut[0].tolist())
        assert all(lengths[group].sum() <= micro or len(group) == 1 for group in groups)
        assert all(len(group) * lengths[group].max() <= 4 * micro for group in groups)


def test_a_long_window_does_not_stand_beside_thousands_of_short_ones() -> None:
    lengths = np.array([500, *([1] * 500)])
    groups = tokenization.group_windows(lengths, np.arange(501), 1000)
    assert [len(group) for group in groups] == [8, 493]


def test_a_batch_knows_its_documents(tmp_path: Path, tokenizer: tokenization.Tokenizer) -> None:
    encodings = encode(
        tmp_path,
        ["no fever", "the patient is stable", "cough"],
        tokenizer,
        LanguageModelSpec(path=tmp_path),
    )
    batch = tokenization.gather_windows(encodings, np.array([1, 2]))
    assert batch.boundaries.tolist() == [0, 6, 9]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.input_ids[1, 3:].tolist() == [0, 0, 0]


def test_encoders_read_cls_and_sep_around_every_window(tmp_path: Path) -> None:
    bert = toy_tokenizer(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    )
    encodings = encode(
        tmp_path,
        ["the patient is a year old man with known heart failure"],
        bert,
        LanguageModelSpec(path=tmp_path, max_tokens=8),
        "masked-lm",
    )
    pieces = [
        encodings.tokens[start : start + length].tolist()
        for start, length in zip(encodings.starts, encodings.lengths, strict=True)
    ]
    assert (
        all((piece[0], piece[-1]) == (bert.cls_token_id, bert.sep_token_id) for piece in pieces)
        and len(pieces) == 2
    )
