from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core import schemas
from clinpeft.core.errors import InputError, RecipeError, SourceError, StorageError
from clinpeft.data.formats import working_folder
from clinpeft.data.notes.clean import EMPTY_AFTER_CLEANING, NO_WORDS_OUTSIDE_MARKS
from clinpeft.data.notes.corpus import NoteCorpus, build_note_corpus, slice_note_batch
from clinpeft.recipe import CorpusSpec, SplitSpec

ALL_TRAIN = SplitSpec(train=1.0, tuning=0.0, held_out=0.0)
SECRET = "mevrouw Jansen uit Zwolle"


def stream(
    texts: list[str], batch_rows: int = 1000, **columns: list[object]
) -> pa.RecordBatchReader:
    rows: dict[str, object] = {
        "note_id": [f"n{at}" for at in range(len(texts))],
        "subject_id": [at // 2 for at in range(len(texts))],
        "text": texts,
    }
    return schemas.build_arrow_table(schemas.NOTE_SCHEMA, rows | columns).to_reader(
        max_chunksize=batch_rows
    )


def hospital(subjects: int = 40) -> list[str]:
    """Two notes a subject: every fifth an exact copy, every seventh a near copy of another."""
    rng = np.random.default_rng(0)
    notes: list[list[str]] = []
    for at in range(2 * subjects):
        said = [f"w{word}" for word in rng.integers(0, 3000, 120)]
        if at % 5 == 4:
            said = notes[at - 4]
        elif at % 7 == 6:
            said = [*notes[at - 6][:-2], f"other{at}", "words"]
        notes.append(said)
    return [" ".join(said) for said in notes]


def built(corpus: NoteCorpus) -> pa.Table:
    return pq.read_table(corpus.path)


def test_a_corpus_is_one_file_of_the_published_schema_in_reading_order(tmp_path: Path) -> None:
    corpus = build_note_corpus(stream(hospital()), CorpusSpec(), SplitSpec(), 1234, tmp_path)
    table = built(corpus)
    assert corpus.path == tmp_path / "corpus.parquet"
    assert pq.read_schema(corpus.path).equals(schemas.CORPUS_SCHEMA)
    order = [int(note_id[1:]) for note_id in table["note_id"].to_pylist()]
    assert order == sorted(order)
    assert set(table["split"].to_pylist()) == set(schemas.SPLIT_NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


@pytest.mark.parametrize(
    ("kind", "steps"), [("none", []), ("exact", ["exact"]), ("near", ["exact", "near"])]
)
def test_what_enters_a_step_is_what_the_one_before_kept(
    tmp_path: Path, kind: str, steps: list[str]
) -> None:
    texts = [*hospital(), "", "[**Name (NI) 3**]"]
    corpus = build_note_corpus(
        stream(texts), CorpusSpec.model_validate({"deduplicate": kind}), SplitSpec(), 1234, tmp_path
    )
    assert [step.step for step in corpus.attrition] == ["clean", *steps, "split"]
    assert corpus.attrition[0].entered_rows == len(texts)
    assert all(
        later.entered_rows == earlier.kept_rows
        for earlier, later in zip(corpus.attrition, corpus.attrition[1:], strict=False)
    )
    assert corpus.attrition[-1].kept_rows == built(corpus).num_rows


def test_every_drop_is_counted_under_its_reason(tmp_path: Path) -> None:
    texts = [*hospital(), "", "[**Name (NI) 3**]"]
    corpus = build_note_corpus(stream(texts), CorpusSpec(), SplitSpec(), 1234, tmp_path)
    assert [dict(step.dropped_rows) for step in corpus.attrition] == [
        {"empty after cleaning": 1, "no letter or digit outside de-identification marks": 1},
        {"same words as an earlier note": 16},
        {"near duplicate of an earlier note": 9},
        {},
    ]


def test_the_kept_text_is_the_clean_text_whole(tmp_path: Path) -> None:
    texts = ["Dr. [**Last Name (un) 3**] came.\r\n\r\n\r\nPlan:  rest", "second " * 20_000]
    corpus = build_note_corpus(stream(texts), CorpusSpec(), ALL_TRAIN, 1234, tmp_path)
    assert built(corpus)["text"].to_pylist() == [
        "Dr. [NAME] came.\n\nPlan: rest",
        ("second " * 20_000).strip(),
    ]


def test_however_the_stream_is_cut_the_corpus_is_the_same(tmp_path: Path) -> None:
    corpora_built = [
        build_note_corpus(
            stream(hospital(), rows), CorpusSpec(), SplitSpec(), 1234, tmp_path / str(rows)
        )
        for rows in (1, 7, 1000)
    ]
    first, *others = [built(corpus) for corpus in corpora_built]
    assert all(other.equals(first) for other in others)


def test_the_same_notes_give_the_same_bytes(tmp_path: Path) -> None:
    once, again = (
        build_note_corpus(stream(hospital()), CorpusSpec(), SplitSpec(), 1234, tmp_path / name)
        for name in "ab"
    )
    assert once.path.read_bytes() == again.path.read_bytes()


def test_a_subject_is_in_one_split_and_by_note_in_several(tmp_path: Path) -> None:
    texts = [f"note number {at} of somebody" for at in range(400)]
    subjects: list[object] = [at % 20 for at in range(400)]
    by_subject = built(
        build_note_corpus(
            stream(texts, subject_id=subjects),
            CorpusSpec(deduplicate="exact"),
            SplitSpec(),
            1234,
            tmp_path,
        )
    )
    by_note = built(
        build_note_corpus(
            stream(texts, subject_id=subjects),
            CorpusSpec(deduplicate="exact"),
            SplitSpec(by="note"),
            1234,
            tmp_path,
        )
    )
    pairs = [
        {*zip(table["subject_id"].to_pylist(), table["split"].to_pylist(), strict=True)}
        for table in (by_subject, by_note)
    ]
    assert len(pairs[0]) == 20
    assert len(pairs[1]) > 20


def test_a_large_batch_is_worked_on_in_pieces_and_no_note_is_cut() -> None:
    notes = next(iter(stream(["x" * 3_000_000] * 4 + ["y"] * 1200 + ["z" * 20_000_000], 5000)))
    pieces = list(slice_note_batch(notes))
    assert all(
        piece.num_rows == 1 or (piece.num_rows <= 512 and piece.nbytes <= 8 * 2**20)
        for piece in pieces
    )
    assert pa.Table.from_batches(pieces).equals(pa.Table.from_batches([notes]))


def test_no_note_at_all_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        build_note_corpus(stream([]), CorpusSpec(), SplitSpec(), 1234, tmp_path)
    assert error.value.location == "source"
    assert list(tmp_path.iterdir()) == []


def test_when_cleaning_leaves_nothing_the_reasons_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        build_note_corpus(
            stream(["", " ", "[**7-16**]", SECRET]),
            CorpusSpec(min_characters=1000),
            SplitSpec(),
            1234,
            tmp_path,
        )
    assert error.value.location == "corpus"
    assert "0 of 4 notes" in error.value.message
    assert f"2 × {EMPTY_AFTER_CLEANING}, 1 × {NO_WORDS_OUTSIDE_MARKS}" in error.value.message
    assert "Jansen" not in str(error.value)


def test_of_notes_that_are_all_alike_the_first_stays(tmp_path: Path) -> None:
    corpus = build_note_corpus(
        stream(["The same note."] * 50), CorpusSpec(), ALL_TRAIN, 1234, tmp_path
    )
    assert built(corpus)["note_id"].to_pylist() == ["n0"]


def test_a_split_left_empty_by_deduplication_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        build_note_corpus(stream([SECRET] * 50), CorpusSpec(), SplitSpec(), 1234, tmp_path)
    assert error.value.location.startswith("split.")
    assert list(tmp_path.iterdir()) == []


def test_one_enormous_word_is_a_note_like_any_other(tmp_path: Path) -> None:
    texts = ["x" * 10_000_000, "y z", "x" * 10_000_000]
    corpus = build_note_corpus(stream(texts), CorpusSpec(), ALL_TRAIN, 1234, tmp_path)
    assert built(corpus)["text"].to_pylist() == texts[:2]


def test_unusual_letters_come_out_as_they_went_in(tmp_path: Path) -> None:
    texts = [
        "Cafe\u0301 au lait",
        "\u05e9\u05dc\u05d5\u05dd \u202e\u0645\u0631\u062d\u0628\u0627\u202c",
        "\U0001f489 2 doses",
        "\u0e01\u0e33 \u0e02",
    ]
    corpus = build_note_corpus(stream(texts), CorpusSpec(), ALL_TRAIN, 1234, tmp_path)
    assert built(corpus)["text"].to_pylist() == texts


def test_a_category_that_no_note_has_is_named_with_those_there_are(tmp_path: Path) -> None:
    categories: list[object] = ["Radiology", "Discharge summary", "Radiology", None]
    with pytest.raises(RecipeError) as error:
        build_note_corpus(
            stream(["a b"] * 4, category=categories),
            CorpusSpec(categories=("Radiolgy",)),
            ALL_TRAIN,
            1234,
            tmp_path,
        )
    assert error.value.location == "corpus.categories"
    assert "'Radiolgy'" in error.value.message
    assert error.value.hint.startswith("did you mean 'Radiology'?")
    assert error.value.hint.endswith(": 'Radiology' (2), 'Discharge summary' (1)")


def test_a_column_of_text_named_as_the_category_is_not_printed_whole(tmp_path: Path) -> None:
    categories: list[object] = [f"{at:02d} " + "long text " * 50 for at in range(30)]
    with pytest.raises(RecipeError) as error:
        build_note_corpus(
            stream(["a b"] * 30, category=categories),
            CorpusSpec(categories=("Echo",)),
            ALL_TRAIN,
            1234,
            tmp_path,
        )
    assert len(error.value.hint) < 20 * 60


def test_without_any_category_the_hint_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        build_note_corpus(
            stream(["a b"]), CorpusSpec(categories=("Echo",)), ALL_TRAIN, 1234, tmp_path
        )
    assert error.value.location == "corpus.categories"


def test_a_full_disk_is_a_storage_error_and_leaves_the_old_corpus_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = build_note_corpus(
        stream(hospital()), CorpusSpec(), SplitSpec(), 1234, tmp_path
    ).path.read_bytes()

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", SECRET)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError) as error:
        build_note_corpus(stream(hospital()), CorpusSpec(), SplitSpec(), 99, tmp_path)
    assert "No space left on device" in error.value.message
    assert "Jansen" not in str(error.value)
    assert error.value.__cause__ is None
    assert (tmp_path / "corpus.parquet").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_device_that_is_full_is_error_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "full.parquet").symlink_to("/dev/full")
    with (
        pytest.raises(StorageError),
        working_folder.open_parquet_writer(
            tmp_path / "full.parquet", schemas.CORPUS_SCHEMA
        ) as write,
    ):
        write(
            schemas.build_arrow_table(
                schemas.CORPUS_SCHEMA,
                {"note_id": ["1"], "subject_id": [1], "split": ["train"], "text": ["x" * 100_000]},
            ).to_batches()[0]
        )


@pytest.mark.parametrize(
    "error", [OSError(SECRET), duckdb.IOException(SECRET), duckdb.OutOfMemoryException(SECRET)]
)
def test_whatever_refuses_to_write_is_a_storage_error_that_quotes_nothing(
    tmp_path: Path, error: Exception
) -> None:
    with (
        pytest.raises(StorageError, match=type(error).__name__) as raised,
        working_folder.translate_storage_errors(tmp_path),
    ):
        raise error
    assert "Jansen" not in str(raised.value)


def test_an_error_of_the_source_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from stream(hospital())
        raise SourceError("line 812 cannot be read", location="notes.csv.gz", hint="repair it")

    with pytest.raises(SourceError, match="line 812"):
        build_note_corpus(
            pa.RecordBatchReader.from_batches(schemas.NOTE_SCHEMA, broken()),
            CorpusSpec(),
            SplitSpec(),
            1234,
            tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "cleaned.parquet").write_text("half a file")
    build_note_corpus(stream(hospital()), CorpusSpec(), SplitSpec(), 1234, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError):
        build_note_corpus(stream(hospital()), CorpusSpec(), SplitSpec(), 1234, tmp_path / "taken")


def test_a_folder_with_a_quote_and_blanks_in_its_name_will_do(tmp_path: Path) -> None:
    corpus = build_note_corpus(
        stream(hospital()), CorpusSpec(), SplitSpec(), 1234, tmp_path / "St. Mary's notes"
    )
    assert built(corpus).num_rows > 0


def test_the_footer_of_the_file_carries_no_word_of_a_note(tmp_path: Path) -> None:
    corpus = build_note_corpus(
        stream([SECRET, "another note"]), CorpusSpec(), ALL_TRAIN, 1234, tmp_path
    )
    statistics = (
        pq.ParquetFile(corpus.path)
        .metadata.row_group(0)
        .column(schemas.CORPUS_SCHEMA.names.index("text"))
        .statistics
    )
    assert statistics is None
