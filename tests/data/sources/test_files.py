"""Files of any layout: what is read, what is rejected, and that every row is counted."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import resource
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core.errors import RecipeError, SourceError
from clinpeft.core.schemas import NOTE_SCHEMA, Attrition
from clinpeft.data import sources
from clinpeft.data.formats import delimited
from clinpeft.recipe import SourceSpec

COLUMNS = {"note_id": "id", "subject_id": "who", "text": "note"}


def spec(path: Path, **changes: Any) -> SourceSpec:
    return SourceSpec(**{"name": "files", "path": path, "columns": COLUMNS, **changes})


def read(path: Path, **changes: Any) -> tuple[list[dict[str, Any]], Attrition]:
    attrition = Attrition("sources")
    found = sources.read_notes(spec(path, **changes), attrition, path.parent).read_all()
    assert found.schema == NOTE_SCHEMA
    assert attrition.entered_rows == attrition.kept_rows + sum(attrition.dropped_rows.values())
    assert attrition.kept_rows == found.num_rows
    return found.to_pylist(), attrition


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def many(path: Path, broken: dict[int, str], rows: int = 60) -> Path:
    """Rows ``n,n,"text n..."`` of two lines each, except the broken ones, written as they are."""
    lines = [
        broken.get(n, f'{n},{n},"note {n}, first line\nthe ""second"" line"')
        for n in range(1, rows + 1)
    ]
    return written(path, "id,who,note\n" + "\n".join(lines) + "\n")


def test_a_quoted_note_of_several_lines_with_commas_and_quotes_is_one_note(tmp_path: Path) -> None:
    notes, attrition = read(
        written(
            tmp_path / "notes.csv", 'id,who,note\na,7,"CC: cough, ""dry""\n\nPMH: HTN"\nb,8,plain\n'
        )
    )
    assert [note["text"] for note in notes] == ['CC: cough, "dry"\n\nPMH: HTN', "plain"]
    assert [(note["note_id"], note["subject_id"]) for note in notes] == [("a", 7), ("b", 8)]
    assert attrition.as_json() == {"step": "sources", "entered": 2, "dropped": {}, "kept": 2}


def test_every_format_gives_the_same_notes(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "who": 7, "note": 'one, "two"\nthree\tfour'},
        {"id": "b", "who": 8, "note": "üäß"},
    ]
    for name, delimiter in [("n.csv", ","), ("n.tsv", "\t")]:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["id", "who", "note"], delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
    (tmp_path / "n.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "n.parquet")
    for name in ["n.csv", "n.tsv", "n.jsonl"]:
        (tmp_path / f"packed-{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    expected, _ = read(tmp_path / "n.csv")
    assert [note["text"] for note in expected] == ['one, "two"\nthree\tfour', "üäß"]
    for name in [
        "n.tsv",
        "n.jsonl",
        "n.parquet",
        "packed-n.csv.gz",
        "packed-n.tsv.gz",
        "packed-n.jsonl.gz",
    ]:
        assert read(tmp_path / name)[0] == expected, name


def test_a_folder_of_one_format_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name, identity in [("b.csv", 2), ("a.csv", 1)]:
        written(tmp_path / name, f"note,who\ntext {identity},{identity}\n")
    notes, _ = read(tmp_path, columns={"text": "note", "subject_id": "who"})
    assert [note["note_id"] for note in notes] == ["a:1", "b:1"]


def test_a_folder_may_hold_more_files_than_may_be_open_at_once(tmp_path: Path) -> None:
    for n in range(120):
        written(tmp_path / f"{n}.csv", f"note\ntext {n}\n")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        notes, _ = read(tmp_path, columns={"text": "note"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(notes) == 120


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "note\nx\n")
    written(tmp_path / "b.tsv", "note\nx\n")
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert "(.csv, .tsv)" in error.value.message


def test_a_file_beside_its_gzipped_self_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "note\nx\n")
    written(tmp_path / "a.csv.gz", "note\nx\n")
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert error.value.location == str(tmp_path)


def test_without_a_subject_identical_texts_are_one_subject(tmp_path: Path) -> None:
    notes, _ = read(
        written(tmp_path / "n.csv", 'note\n"Chest  pain\n x2"\nchest pain X2\nother\n'),
        columns={"text": "note"},
    )
    first, second, third = (note["subject_id"] for note in notes)
    assert (
        first == second == int.from_bytes(hashlib.sha256(b"chest pain x2").digest()[:8], "big") >> 1
    )
    assert third != first


def test_a_subject_that_is_no_number_becomes_a_stable_63_bit_number(tmp_path: Path) -> None:
    notes, _ = read(written(tmp_path / "n.csv", "id,who,note\na,P-17,x\nb,17,y\nc,-3,z\n"))
    assert [note["subject_id"] for note in notes] == [
        int.from_bytes(hashlib.sha256(b"P-17").digest()[:8], "big") >> 1,
        17,
        -3,
    ]


def test_a_note_id_that_repeats_is_told_apart_by_its_place(tmp_path: Path) -> None:
    notes, _ = read(written(tmp_path / "n.csv", "id,who,note\n5,1,x\n5,1,y\n6,1,z\n5,1,x\n,1,w\n"))
    assert [note["note_id"] for note in notes] == [
        "5",
        "5#n.csv: row 2",
        "6",
        "5#n.csv: row 4",
        "n:5",
    ]


def test_note_ids_stay_unique_over_many_batches(tmp_path: Path) -> None:
    rows = "".join(f"{n % 1500},1,note {n}\n" for n in range(6000))
    notes, _ = read(written(tmp_path / "n.csv", f"id,who,note\n{rows}"))
    assert len({note["note_id"] for note in notes}) == 6000
    assert sum("#" in note["note_id"] for note in notes) == 4500


def test_times_are_read_and_an_offset_becomes_utc(tmp_path: Path) -> None:
    rows = 'when,note\n2151-07-16,a\n2151-07-16T08:04:30,b\n2151-07-16 08:00:00+02:00,c\n"",d\n'
    notes, _ = read(
        written(tmp_path / "n.csv", rows), columns={"text": "note", "available_at": "when"}
    )
    expected = [
        datetime(2151, 7, 16),
        datetime(2151, 7, 16, 8, 4, 30),
        datetime(2151, 7, 16, 6),
        None,
    ]
    assert [note["available_at"] for note in notes] == expected


def test_a_time_that_is_none_is_counted_with_its_place(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", "when,note\n2151-07-16,a\nyesterday,b\n")
    _, attrition = read(
        path, columns={"text": "note", "available_at": "when"}, max_bad_fraction=0.5
    )
    assert attrition.locations == {"unreadable: available_at is not an ISO time": ["n.csv: row 2"]}


def test_mtsamples_are_read_and_each_transcription_is_one_subject(shared_data: Path) -> None:
    columns = {"note_id": "sample_id", "category": "medical_specialty", "text": "transcription"}
    notes, attrition = read(shared_data / "mtsamples" / "mtsamples.csv.gz", columns=columns)
    assert attrition.entered_rows == attrition.kept_rows == 4999
    assert len({note["note_id"] for note in notes}) == 4999
    assert len({note["subject_id"] for note in notes}) <= 2376
    assert len({note["category"] for note in notes}) == 40


def test_a_missing_column_is_named_with_its_purpose_and_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", "sample_id,transcription\n1,SECRET words\n")
    with pytest.raises(SourceError) as caught:
        read(path, columns={"text": "transcript"})
    assert str(caught.value) == (
        "there is no column 'transcript', needed for 'text' of a note (source.columns)\n"
        f"  where: {path}: header\n"
        "  hint: did you mean 'transcription'? the columns are: sample_id, transcription"
    )


def test_a_file_without_a_header_does_not_show_its_first_row(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", '17,23,"SECRET, a patient\nwith a cough"\n')
    with pytest.raises(SourceError) as caught:
        read(path)
    assert caught.value.location == f"{path}: header"
    assert "SECRET" not in str(caught.value)


def test_a_semicolon_file_is_told_so(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", "id;who;note\n1;2;x\n")
    with pytest.raises(SourceError) as error:
        read(path)
    assert "(';')" in error.value.hint


def test_an_unknown_column_of_ours_and_a_missing_text_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", "a\nx\n")
    with pytest.raises(RecipeError) as recipe_error:
        read(path, columns={"txt": "a"})
    assert "'txt'" in recipe_error.value.message
    with pytest.raises(RecipeError) as recipe_error:
        read(path, columns={"note_id": "a"})
    assert recipe_error.value.location == "[source.columns]"


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        read(written(tmp_path / "n.csv", "note,note\nx,y\n"), columns={"text": "note"})
    assert error.value.location == f"{tmp_path / 'n.csv'}: line 1"


def test_a_row_of_the_wrong_width_is_counted_and_the_rest_kept(tmp_path: Path) -> None:
    notes, attrition = read(
        many(tmp_path / "n.csv", {3: "3,3,a,stray,comma"}), max_bad_fraction=0.05
    )
    assert [note["note_id"] for note in notes] == [str(n) for n in range(1, 61) if n != 3]
    assert attrition.dropped_rows == {"unreadable: wrong number of columns": 1}
    assert attrition.locations == {"unreadable: wrong number of columns": ["n.csv: row 3 (line 6)"]}


def test_a_quote_that_is_never_closed_is_named_where_it_began_and_the_rest_kept(
    tmp_path: Path,
) -> None:
    notes, attrition = read(
        many(tmp_path / "n.csv", {20: '20,20,"SECRET and open\nsecond line'}), max_bad_fraction=0.05
    )
    assert [note["note_id"] for note in notes] == [str(n) for n in range(1, 61) if n != 20]
    assert attrition.locations == {
        "unreadable: a quote is not closed or not doubled": ["n.csv: row 20 (line 40)"]
    }
    assert all(
        note["text"] == f'note {note["note_id"]}, first line\nthe "second" line' for note in notes
    )


def test_an_open_quote_in_the_last_row_is_found(tmp_path: Path) -> None:
    notes, attrition = read(
        many(tmp_path / "n.csv", {60: '60,60,"never\nclosed'}), max_bad_fraction=0.05
    )
    assert len(notes) == 59
    assert attrition.locations == {
        "unreadable: a quoted field is never closed": ["n.csv: row 60 (line 120)"]
    }


def test_an_open_quote_does_not_swallow_the_rows_after_it(tmp_path: Path) -> None:
    rows = [f"{n},{n},plain note {n}" for n in range(1, 101)]
    rows[9] = '10,10,"open and never closed'
    notes, attrition = read(
        written(tmp_path / "n.csv", "id,who,note\n" + "\n".join(rows) + "\n"), max_bad_fraction=0.01
    )
    assert len(notes) == 99
    assert attrition.locations == {
        "unreadable: a quoted field is never closed": ["n.csv: row 10 (line 11)"]
    }


def test_an_open_quote_in_the_first_row_does_not_swallow_the_rest(tmp_path: Path) -> None:
    rows = ['1,1,"open', *(f"{n},{n},plain note {n}" for n in range(2, 11))]
    notes, attrition = read(
        written(tmp_path / "n.csv", "id,who,note\n" + "\n".join(rows) + "\n"), max_bad_fraction=0.1
    )
    assert len(notes) == 9
    assert attrition.dropped_rows.total() == 1


def test_a_quote_not_doubled_costs_its_own_row_only(tmp_path: Path) -> None:
    notes, attrition = read(
        many(tmp_path / "n.csv", {20: '20,20,"he said "ow" and\nleft, 12, times"'}),
        max_bad_fraction=0.05,
    )
    assert [note["note_id"] for note in notes] == [str(n) for n in range(1, 61) if n != 20]
    assert attrition.entered_rows == 60


def test_a_damaged_byte_costs_at_most_two_notes(tmp_path: Path) -> None:
    """Whatever byte, quote or stretch is damaged: notes are as written, and all rows counted."""
    content = many(tmp_path / "n.csv", {}).read_bytes()
    whole = {note["note_id"]: note["text"] for note in read(tmp_path / "n.csv")[0]}
    draw = np.random.default_rng(0)
    for damage in range(150):
        at, some = int(draw.integers(12, len(content))), int(draw.integers(1, 40))
        middle = [bytes([some * 6]), b'"' + content[at : at + 1], b""][damage % 3]
        (tmp_path / "n.csv").write_bytes(
            content[:at] + middle + content[at + (some if damage % 3 == 2 else 1) :]
        )
        notes, _ = read(tmp_path / "n.csv", max_bad_fraction=1.0)
        same = sum(whole.get(note["note_id"]) == note["text"] for note in notes)
        assert len(whole) - same <= 2, (damage, at, some)
        assert len(notes) - same <= 1, (damage, at, some)


def test_an_endless_quoted_field_is_given_up_after_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited, "MAX_FIELD_CHARACTERS", 2000)
    rows = [f"{n},{n},plain note {n}" for n in range(1, 2001)]
    rows[999] = '1000,1000,"open and never closed'
    notes, attrition = read(written(tmp_path / "n.csv", "id,who,note\n" + "\n".join(rows) + "\n"))
    assert len(notes) == 1999
    assert attrition.locations == {
        "unreadable: a quoted field is never closed": ["n.csv: row 1000 (line 1001)"]
    }


def test_too_many_bad_rows_stop_and_name_places_but_no_text(tmp_path: Path) -> None:
    path = many(tmp_path / "n.csv", {3: "3,SECRET", 7: "7,SECRET"})
    with pytest.raises(SourceError) as caught:
        read(path)
    message = str(caught.value)
    assert (
        "2 of the first 60 rows cannot be read, more than max_bad_fraction = 0.01 allows" in message
    )
    assert "wrong number of columns at n.csv: row 3 (line 6), n.csv: row 7 (line 13)" in message
    assert "SECRET" not in message


def test_a_stream_with_too_many_bad_rows_stops_long_before_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "n.csv", "id,who,note\n" + "1,2\n" * 50_000)
    attrition = Attrition("sources")
    with pytest.raises(SourceError) as error:
        sources.read_notes(spec(path), attrition, tmp_path).read_all()
    assert "1,000 of the first 1,000 rows" in error.value.message
    assert attrition.entered_rows == 1000


def test_an_empty_note_is_dropped_and_counted(tmp_path: Path) -> None:
    notes, attrition = read(written(tmp_path / "n.csv", 'id,who,note\n1,1,\n2,1," \n "\n3,1,x\n\n'))
    assert [note["note_id"] for note in notes] == ["3"]
    assert attrition.dropped_rows == {"empty note": 2}


def test_an_empty_subject_is_counted_as_unreadable(tmp_path: Path) -> None:
    _, attrition = read(
        written(tmp_path / "n.csv", "id,who,note\n1,,x\n2,5,y\n"), max_bad_fraction=0.5
    )
    assert attrition.dropped_rows == {"unreadable: no subject_id": 1}


def test_a_nul_character_makes_a_row_unreadable(tmp_path: Path) -> None:
    notes, attrition = read(many(tmp_path / "n.csv", {5: "5,5,a\0b"}), max_bad_fraction=0.05)
    assert len(notes) == 59
    assert attrition.locations == {"unreadable: NUL character": ["n.csv: row 5"]}


def test_a_row_that_is_not_utf8_is_counted_and_the_rest_kept(tmp_path: Path) -> None:
    path = many(tmp_path / "n.csv", {5: "5,5,caf\N{LATIN SMALL LETTER E WITH ACUTE}"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9"))
    notes, attrition = read(path, max_bad_fraction=0.05)
    assert len(notes) == 59
    assert attrition.locations == {"unreadable: not UTF-8": ["n.csv: row 5"]}


def test_a_latin1_file_stops_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_bytes("id,who,note\n1,1,Fièvre\n2,2,Ödem\n".encode("latin-1"))
    with pytest.raises(SourceError) as error:
        read(path)
    assert "iconv -f LATIN1 -t UTF-8" in error.value.hint


def test_a_utf16_file_stops_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_bytes("id,who,note\n1,1,x\n".encode("utf-16"))
    with pytest.raises(SourceError) as error:
        read(path)
    assert "iconv -f UTF-16" in error.value.hint


def test_not_utf8_in_parquet_and_a_lone_surrogate_in_json_are_counted(tmp_path: Path) -> None:
    wrong = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"note": wrong}), tmp_path / "n.parquet")
    written(tmp_path / "n.jsonl", '{"note": "fine"}\n{"note": "\\ud800"}\n')
    for name in ["n.parquet", "n.jsonl"]:
        notes, attrition = read(tmp_path / name, columns={"text": "note"}, max_bad_fraction=0.5)
        assert [note["text"] for note in notes] == ["fine"]
        assert attrition.locations == {"unreadable: not UTF-8": [f"{name}: row 2"]}


def test_a_line_that_is_no_json_object_is_counted(tmp_path: Path) -> None:
    path = written(
        tmp_path / "n.jsonl", '{"note": "a"}\n{"note": \n[1]\n\n{"note": null}\n{"note": "b"}\n'
    )
    notes, attrition = read(path, columns={"text": "note"}, max_bad_fraction=0.5)
    assert [note["text"] for note in notes] == ["a", "b"]
    assert attrition.dropped_rows == {"unreadable: not a JSON object": 2, "empty note": 1}


def test_a_cut_off_gzip_stops_and_names_the_file(tmp_path: Path) -> None:
    text = "id,who,note\n" + "".join(
        f"{n},{n},note {n} {hashlib.sha256(str(n).encode()).hexdigest()}\n" for n in range(5000)
    )
    path = tmp_path / "n.csv.gz"
    path.write_bytes(gzip.compress(text.encode())[:-2000])
    with pytest.raises(SourceError) as caught:
        read(path)
    assert isinstance(caught.value.__cause__, EOFError)
    assert str(path) in str(caught.value)


def test_a_gzip_with_a_wrong_byte_stops(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"id,who,note\n" + b"1,1,some note\n" * 100))
    packed[-6] ^= 0xFF  # the checksum
    (tmp_path / "n.csv.gz").write_bytes(packed)
    with pytest.raises(SourceError) as error:
        read(tmp_path / "n.csv.gz")
    assert error.value.location == str(tmp_path / "n.csv.gz")


def test_a_gzip_is_known_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"note\nx\n"))
    written(tmp_path / "b.csv.gz", "note\nx\n")
    assert read(tmp_path / "a.csv", columns={"text": "note"})[0][0]["text"] == "x"
    assert read(tmp_path / "b.csv.gz", columns={"text": "note"})[0][0]["text"] == "x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("id,who,note\n", "0 rows"),
        ("id,who,note\n1,2,\n", "none of 1 rows"),
    ],
)
def test_a_file_without_notes_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(SourceError) as error:
        read(written(tmp_path / "n.csv", content))
    assert message in error.value.message


def test_a_missing_path_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        read(tmp_path / "nowhere.csv")
    assert error.value.location == str(tmp_path / "nowhere.csv")
    with pytest.raises(SourceError) as error:
        read(written(tmp_path / "n.docx", "x"))
    assert error.value.location == str(tmp_path / "n.docx")
    with pytest.raises(SourceError) as error:
        read(tmp_path)
    assert error.value.location == str(tmp_path)
    with pytest.raises(RecipeError) as recipe_error:
        sources.read_notes(
            SourceSpec(name="files", columns=COLUMNS), Attrition("sources"), tmp_path
        )
    assert recipe_error.value.location == "[source]"


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_bytes(b"\xef\xbb\xbf" + b'id,who,note\r\n1,7,"a\r\nb"\r\n2,8,c\r\n')
    notes, _ = read(path)
    assert [(note["note_id"], note["text"]) for note in notes] == [("1", "a\r\nb"), ("2", "c")]


def test_a_line_end_across_two_blocks_is_one_line_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n.csv"
    path.write_bytes('id,who,note\r\n1,7,"ä\r\nb"\r\n2,8,ü\r\n'.encode())
    expected, _ = read(path)
    for size in range(1, 12):
        monkeypatch.setattr(delimited, "READ_BLOCK_BYTES", size)
        assert read(path)[0] == expected, size


def test_the_fingerprint_follows_the_bytes_and_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = written(tmp_path / "n.csv", "note\nx\n")
    second = written(tmp_path / "elsewhere" / "n.csv", "note\nx\n")
    assert sources.fingerprint_notes(spec(first)) == sources.fingerprint_notes(spec(second))
    before = sources.fingerprint_notes(spec(first))
    written(first, "note\ny\n")
    assert sources.fingerprint_notes(spec(first)) != before
    with pytest.raises(SourceError) as error:
        sources.fingerprint_notes(spec(tmp_path / "nowhere.csv"))
    assert error.value.location == str(tmp_path / "nowhere.csv")


def test_an_unknown_source_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as recipe_error:
        sources.read_notes(SourceSpec(name="mimic-4"), Attrition("sources"), tmp_path)
    assert "did you mean 'mimic-iv'?" in recipe_error.value.hint
