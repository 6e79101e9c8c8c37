"""A cohort to documents: the ids the model is given, what is counted, and how documents are grouped."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clinpeft import tokenization
from clinpeft.core import schemas
from clinpeft.core.errors import InputError, RecipeError
from clinpeft.recipe import TruncationSpec
from clinpeft.tokenization import documents as documents_file
from tests.conftest import WORDS, toy_tokenizer

LONG = "the patient is a year old man woman with known heart failure"  # twelve different words, twelve tokens
SECTIONS = "home stable\n\nPLAN:\nfollow up\n\nEXAM:\nlungs clear legs swollen"  # tokens: 2, 4 and 6, heading and colon included
REMAINDER = "past the first 6 tokens of the note"


@pytest.fixture
def decoder() -> tokenization.Tokenizer:
    return toy_tokenizer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})


@pytest.fixture
def encoder() -> tokenization.Tokenizer:
    return toy_tokenizer(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    )


def write_cohort(folder: Path, texts: list[str], splits: list[str] | None = None) -> Path:
    rows = range(len(texts))
    columns = {
        "subject_id": [100 + row for row in rows],
        "stay_id": [200 + row for row in rows],
        "prediction_time": [datetime(2150, 1, 1) for _ in rows],
        "split": splits or ["train" for _ in rows],
        "label": [row % 2 for row in rows],
        "text": texts,
        "sex": ["F" for _ in rows],
    }
    pq.write_table(
        schemas.build_arrow_table(schemas.COHORT_SCHEMA, columns), folder / "cohort.parquet"
    )
    return folder / "cohort.parquet"


def encode(
    folder: Path,
    texts: list[str],
    tokenizer: tokenization.Tokenizer,
    room: int = 6,
    splits: list[str] | None = None,
    **spec: object,
) -> tokenization.EncodedDocuments:
    """Documents of ``texts`` in windows of ``room`` tokens beside the special ones."""
    masked = tokenizer.cls_token_id is not None
    special = len(
        tokenization.create_document_layout(tokenizer, "masked-lm" if masked else "causal-lm")
    )
    reading = TruncationSpec.model_validate({"overlap_tokens": 2, **spec})
    cohort = write_cohort(folder, texts, splits)
    return tokenization.encode_documents(
        cohort,
        tokenizer,
        reading,
        room + special,
        "masked-lm" if masked else "causal-lm",
        folder / "documents",
    )


def words(documents: tokenization.EncodedDocuments, tokenizer: tokenization.Tokenizer) -> list[str]:
    """What each window says."""
    spans = zip(documents.starts, documents.lengths, strict=True)
    return [
        " ".join(tokenizer.convert_ids_to_tokens(documents.tokens[start : start + length].tolist()))
        for start, length in spans
    ]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("head", ["<s> the patient is a year old"]),
        ("tail", ["<s> man woman with known heart failure"]),
        ("head-and-tail", ["<s> the patient is known heart failure"]),
        (
            "windows",
            [
                "<s> the patient is a year old",
                "<s> year old man woman with known",
                "<s> with known heart failure",
            ],
        ),
    ],
)
def test_decoders_read_bos_and_what_is_kept(
    tmp_path: Path, decoder: tokenization.Tokenizer, keep: str, expected: list[str]
) -> None:
    documents = encode(tmp_path, [LONG], decoder, keep=keep)
    assert words(documents, decoder) == expected
    assert documents.tokens_total.tolist() == [12] and documents.tokens_read.tolist() == [
        12 if keep == "windows" else 6
    ]
    assert documents.window_documents.tolist() == [0] * len(expected)


def test_encoders_read_cls_and_sep_around_every_window(
    tmp_path: Path, encoder: tokenization.Tokenizer
) -> None:
    documents = encode(tmp_path, [LONG, "no fever"], encoder, keep="windows", overlap_tokens=0)
    assert words(documents, encoder) == [
        "[CLS] the patient is a year old [SEP]",
        "[CLS] man woman with known heart failure [SEP]",
        "[CLS] no fever [SEP]",
    ]
    assert documents.window_documents.tolist() == [0, 0, 1]


def test_whole_sections_are_read_by_importance_in_the_order_of_the_note(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(tmp_path, [SECTIONS], decoder, keep="sections", sections=["Plan"])
    assert words(documents, decoder) == ["<s> home stable <unk> <unk> follow up"]
    assert documents.token_attrition.dropped_rows == {"in a section of lower priority": 6}
    (exam,) = words(
        encode(tmp_path, [SECTIONS], decoder, keep="sections", sections=["exam", "plan"]), decoder
    )
    assert exam == "<s> <unk> <unk> lungs clear legs swollen"


def test_a_long_first_section_is_cut_and_a_note_without_headings_read_from_its_head(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(
        tmp_path, [SECTIONS, LONG, "no fever"], decoder, room=5, keep="sections", sections=["exam"]
    )
    assert words(documents, decoder) == [
        "<s> <unk> <unk> lungs clear legs",
        "<s> the patient is a year",
        "<s> no fever",
    ]
    past, no_heading = (
        "past the first 5 tokens of the most important section",
        "no heading, and past the first 5 tokens of the note",
    )
    assert documents.token_attrition.dropped_rows == {
        past: 1,
        "in a section of lower priority": 6,
        no_heading: 7,
    }
    assert (
        documents.document_attrition.dropped_rows == {past: 1, no_heading: 1}
        and documents.document_attrition.kept_rows == 1
    )  # a note counts once, under its chief reason


def test_sections_are_found_behind_characters_of_several_bytes(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    text = "home — 漢字 \U0001f600 é stable\n\nPLAN:\nfollow up"
    (window,) = words(
        encode(tmp_path, [text], decoder, room=4, keep="sections", sections=["plan"]), decoder
    )
    assert window == "<s> <unk> <unk> follow up"


def test_counts_add_up_in_tokens_and_in_documents(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(tmp_path, [LONG, "no fever", "fever", LONG + " stable"], decoder)
    assert documents.token_attrition.as_json() == {
        "step": "documents",
        "entered": 28,
        "dropped": {REMAINDER: 13},
        "kept": 15,
    }
    assert documents.document_attrition.as_json() == {
        "step": "documents read whole",
        "entered": 4,
        "dropped": {REMAINDER: 2},
        "kept": 2,
    }
    assert documents.tokens_total.tolist() == [12, 2, 1, 13] and documents.tokens_read.tolist() == [
        6,
        2,
        1,
        6,
    ]
    assert documents.token_attrition.kept_rows == documents.tokens_read.sum()


@pytest.mark.parametrize("keep", ["head", "tail", "head-and-tail", "sections", "windows"])
@pytest.mark.parametrize("room", [1, 2, 7, 200])
def test_notes_of_any_length_add_up_under_every_way_of_reading(
    tmp_path: Path, decoder: tokenization.Tokenizer, keep: str, room: int
) -> None:
    rng = np.random.default_rng(room)
    texts = [" ".join(rng.choice(WORDS, size)) for size in (0, 1, 2, 6, 7, 50, 199, 200, 201)] + [
        SECTIONS
    ]
    documents = encode(
        tmp_path,
        texts,
        decoder,
        room=room,
        keep=keep,
        sections=["plan"],
        overlap_tokens=min(2, room - 1),
        max_windows=4,
    )
    lengths = [len(ids) for ids in decoder(texts, add_special_tokens=False)["input_ids"]]
    assert (
        documents.tokens_total.tolist() == lengths
        and documents.token_attrition.entered_rows == sum(lengths)
    )
    assert (
        documents.token_attrition.kept_rows == documents.tokens_read.sum()
        and documents.document_attrition.entered_rows == len(texts)
    )
    assert (
        documents.lengths.max() <= room + 1
        and (documents.tokens[documents.starts] == decoder.bos_token_id).all()
    )
    assert np.array_equal(np.unique(documents.window_documents), np.arange(len(texts)))
    assert documents.document_attrition.kept_rows == sum(
        documents.tokens_read[1:] == documents.tokens_total[1:]
    )  # the first has no text
    assert np.bincount(documents.window_documents).max() <= (4 if keep == "windows" else 1)


def test_windows_without_overlap_hold_every_token_once(
    tmp_path: Path, encoder: tokenization.Tokenizer
) -> None:
    texts = [" ".join(np.random.default_rng(size).choice(WORDS, size)) for size in (1, 7, 30, 31)]
    documents = encode(
        tmp_path, texts, encoder, room=5, keep="windows", overlap_tokens=0, max_windows=100
    )
    for row, ids in enumerate(encoder(texts, add_special_tokens=False)["input_ids"]):
        pieces = [
            documents.tokens[
                documents.starts[at] + 1 : documents.starts[at] + documents.lengths[at] - 1
            ]
            for at in np.flatnonzero(documents.window_documents == row)
        ]
        assert np.concatenate(pieces).tolist() == ids


def test_a_note_longer_than_all_its_windows_is_cut_behind_the_last(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(
        tmp_path, [" ".join(["fever"] * 20_000)], decoder, keep="windows", max_windows=3
    )
    assert documents.lengths.tolist() == [7, 7, 7]
    assert documents.tokens_read.tolist() == [
        6 + 4 + 4
    ] and documents.token_attrition.dropped_rows == {"behind the last window": 20_000 - 14}


def test_a_note_without_text_is_its_special_tokens_and_counted(
    tmp_path: Path, encoder: tokenization.Tokenizer
) -> None:
    documents = encode(tmp_path, ["no fever", " \n "], encoder)
    assert words(documents, encoder) == ["[CLS] no fever [SEP]", "[CLS] [SEP]"]
    assert documents.document_attrition.dropped_rows == {"no text": 1} and documents.select_split(
        "train"
    ).tolist() == [
        0,
        1,
    ]


def test_without_special_tokens_a_note_without_text_is_left_out_and_counted(tmp_path: Path) -> None:
    plain = toy_tokenizer({"pad_token": "<pad>"})
    documents = encode(tmp_path, ["no fever", "", LONG, ""], plain, keep="windows")
    assert documents.document_attrition.dropped_rows == {
        "no text, and no special tokens to read instead: left out": 2
    }
    assert documents.select_split("train").tolist() == [
        0,
        2,
    ] and documents.window_documents.tolist() == [0, 2, 2, 2]
    assert documents.count_tokens(np.arange(4)).tolist() == [2, 0, 6 + 6 + 4, 0]
    assert sorted(
        np.concatenate(tokenization.group_documents(documents, np.arange(4), 8)).tolist()
    ) == [0, 2]
    with pytest.raises(InputError, match="without any token") as refused:
        documents.gather_batch(np.array([0, 3]))
    assert refused.value.location.startswith("row 3 of ")


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_cohort_with_nothing_to_read_is_no_crash(tmp_path: Path, texts: list[str]) -> None:
    documents = encode(tmp_path, texts, toy_tokenizer({"pad_token": "<pad>"}))
    assert (
        documents.select_split("train").tolist() == []
        and documents.token_attrition.entered_rows == 0
    )
    assert tokenization.group_documents(documents, documents.select_split("train"), 8) == []


def test_a_batch_says_which_document_each_window_belongs_to(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(tmp_path, ["no fever", LONG, "cough", LONG], decoder, keep="windows")
    batch = documents.gather_batch(np.array([2, 1, 0])).to(torch.device("cpu"))
    assert batch.num_documents == 3 and batch.document_index.tolist() == [0, 1, 1, 1, 2]
    assert batch.boundaries.tolist() == [0, 2, 9, 16, 21, 24]
    assert batch.attention_mask.tolist() == [
        [1] * 2 + [0] * 5,
        [1] * 7,
        [1] * 7,
        [1] * 5 + [0] * 2,
        [1] * 3 + [0] * 4,
    ]
    said = [
        " ".join(decoder.convert_ids_to_tokens(row[mask.bool()]))
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    assert said == [
        "<s> cough",
        "<s> the patient is a year old",
        "<s> year old man woman with known",
        "<s> with known heart failure",
        "<s> no fever",
    ]
    assert (
        not batch.input_ids[batch.attention_mask == 0].any()
        and batch.input_ids.dtype == batch.document_index.dtype == torch.int64
    )
    assert documents.count_tokens(np.array([2, 1, 0])).tolist() == [2, 19, 3]


def test_documents_know_their_split_and_the_columns_of_their_cohort_but_no_text(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(
        tmp_path, ["no fever", "cough", "pain"], decoder, splits=["held_out", "train", "held_out"]
    )
    assert [documents.select_split(split).tolist() for split in schemas.SPLIT_NAMES] == [
        [1],
        [],
        [0, 2],
    ]
    assert documents.read_table(["stay_id", "sex"]).to_pylist() == [
        {"stay_id": 200 + row, "sex": "F"} for row in range(3)
    ]
    assert documents.read_table(["sex", "split", "stay_id"]).column_names == [
        "sex",
        "split",
        "stay_id",
    ]
    assert documents.read_table().column_names == [
        name for name in schemas.COHORT_SCHEMA.names if name != "text"
    ]
    assert not any(b"cough" in path.read_bytes() for path in documents.folder.iterdir())
    with pytest.raises(KeyError, match="text"):
        documents.read_table(["text"])


def test_documents_are_the_same_when_opened_again(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    first = encode(tmp_path, [LONG, "no fever"], decoder, keep="windows")
    again = tokenization.open_encoded_documents(tmp_path / "documents")
    assert isinstance(again.tokens, np.memmap) and again.tokens.dtype == np.uint16
    assert again.tokens.tolist() == first.tokens.tolist() and again.window_documents.tolist() == [
        0,
        0,
        0,
        1,
    ]
    assert (again.token_attrition, again.document_attrition, again.cohort) == (
        first.token_attrition,
        first.document_attrition,
        tmp_path / "cohort.parquet",
    )
    assert (tmp_path / "documents").stat().st_mode & 0o777 == 0o700


def test_interrupted_encoding_leaves_nothing_finished_and_the_next_one_is_whole(
    tmp_path: Path, decoder: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(np, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        encode(tmp_path, ["cough", "pain"], decoder)
    assert (
        not tokenization.is_encoded(tmp_path / "documents")
        and (tmp_path / "documents.building").exists()
    )
    documents = encode(tmp_path, ["no fever"], decoder)
    assert tokenization.is_encoded(tmp_path / "documents") and words(documents, decoder) == [
        "<s> no fever"
    ]
    assert not (tmp_path / "documents.building").exists()


def test_it_does_not_matter_how_many_notes_are_cut_at_a_time(
    tmp_path: Path, decoder: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [" ".join(np.random.default_rng(row).choice(WORDS, row)) for row in range(20)] + [
        SECTIONS
    ]
    together = words(encode(tmp_path, texts, decoder, keep="sections", sections=["plan"]), decoder)
    monkeypatch.setattr(documents_file, "DOCUMENT_CHUNK_NOTES", 3)
    assert (
        words(encode(tmp_path, texts, decoder, keep="sections", sections=["plan"]), decoder)
        == together
    )


@pytest.mark.parametrize("budget", [1, 16, 40, 1000])
def test_groups_hold_every_document_whole_and_stay_within_the_budget(
    tmp_path: Path, decoder: tokenization.Tokenizer, budget: int
) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 40, 60)]
    documents = encode(tmp_path, texts, decoder, keep="windows")
    chosen = rng.permutation(60)[:45]
    groups = tokenization.group_documents(documents, chosen, budget)
    assert sorted(np.concatenate(groups).tolist()) == sorted(chosen.tolist())
    assert all(documents.count_tokens(group).sum() <= budget or len(group) == 1 for group in groups)
    one_more = [np.append(group, following[0]) for group, following in pairwise(groups)]
    assert all(documents.count_tokens(group).sum() > budget for group in one_more)


def test_documents_of_like_length_share_a_group(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    documents = encode(
        tmp_path, ["cough", LONG, "pain", LONG], decoder
    )  # one window each, of 2 and 7 tokens
    assert [
        sorted(group.tolist())
        for group in tokenization.group_documents(documents, np.arange(4), 14)
    ] == [[1, 3], [0, 2]]


def test_an_epoch_is_every_document_once_in_steps_of_so_many() -> None:
    chosen = np.arange(100, 123)
    epoch = tokenization.shuffle_document_steps(chosen, 5, np.random.default_rng(0))
    assert [len(step) for step in epoch] == [5, 5, 5, 5, 3] and sorted(
        np.concatenate(epoch).tolist()
    ) == chosen.tolist()
    assert np.concatenate(epoch).tolist() != chosen.tolist()
    assert (
        np.concatenate(epoch).tolist()
        == np.concatenate(
            tokenization.shuffle_document_steps(chosen, 23, np.random.default_rng(0))
        ).tolist()
    )
    assert tokenization.shuffle_document_steps(chosen[:0], 5, np.random.default_rng(0)) == []


def test_no_room_for_text_is_refused_before_anything_is_written(
    tmp_path: Path, encoder: tokenization.Tokenizer
) -> None:
    with pytest.raises(InputError, match="max_tokens = 2 leaves no room for text") as refused:
        encode(tmp_path, [LONG], encoder, room=0)
    assert refused.value.location == "base.max_tokens" and not list(tmp_path.glob("documents*"))


def test_windows_that_overlap_wholly_and_sections_without_names_are_refused(
    tmp_path: Path, decoder: tokenization.Tokenizer
) -> None:
    for wrong, location in (
        ({"keep": "windows", "overlap_tokens": 6}, "reading.overlap_tokens"),
        ({"keep": "sections"}, "truncation.sections"),
    ):
        with pytest.raises(RecipeError) as refused:
            encode(tmp_path, [LONG], decoder, **wrong)
        assert refused.value.location == location and not list(tmp_path.glob("documents*"))


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand_cannot_find_sections(
    tmp_path: Path, decoder: tokenization.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(decoder), "is_fast", property(lambda self: False))
    with pytest.raises(InputError, match="does not tell where in the text"):
        encode(tmp_path, [SECTIONS], decoder, keep="sections", sections=["plan"])
    assert words(encode(tmp_path, ["no fever"], decoder), decoder) == ["<s> no fever"]


def test_the_small_base_finds_sections_with_its_own_tokenizer(
    tmp_path: Path, small_base: Path
) -> None:
    """Byte-pair tokens may swallow line ends and spaces; what is kept must still begin with its heading."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(small_base), local_files_only=True)
    text = "Came by ambulance — 39 °C.\n\nEXAM: lungs clear, legs swollen on both sides.\n\nPLAN: follow up in clinic."
    documents = encode(tmp_path, [text], tokenizer, room=16, keep="sections", sections=["plan"])
    said = tokenizer.decode(
        documents.tokens[
            len(tokenization.create_document_layout(tokenizer, "causal-lm").window_prefix) :
        ].tolist()
    )
    assert "PLAN: follow up in clinic." in said and "EXAM" not in said.split("PLAN")[1]
