"""The handbook of the synthetic hospital: reproducible, and a source of every kind of pair."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from clinpeft.core.errors import StorageError
from clinpeft.core.schemas import Attrition
from clinpeft.data import textbooks
from clinpeft.data.synthetic import handbook
from clinpeft.data.textbooks import pairs
from clinpeft.recipe import PairSplitSpec, PairsSpec


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, Attrition]:
    attrition = Attrition("passages")
    return textbooks.read_textbooks(
        handbook.write_handbook(tmp_path_factory.mktemp("handbook")), attrition
    ).read_all(), attrition


def test_the_same_bytes_come_out_every_time_and_the_fingerprint_is_of_them(tmp_path: Path) -> None:
    handbook.compose_handbook.cache_clear()
    first, second = (
        handbook.write_handbook(tmp_path / "a").read_bytes(),
        handbook.write_handbook(tmp_path / "b").read_bytes(),
    )
    assert first == second and hashlib.sha256(first).hexdigest() == handbook.fingerprint_handbook()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["handbook.md"]


def test_a_book_that_is_there_stays_and_one_that_was_changed_is_written_again(
    tmp_path: Path,
) -> None:
    path = handbook.write_handbook(tmp_path)
    before = path.stat()
    assert handbook.write_handbook(tmp_path).stat().st_mtime_ns == before.st_mtime_ns
    path.write_text("# Another book\n", encoding="utf-8")
    assert (
        handbook.write_handbook(tmp_path).read_text(encoding="utf-8") == handbook.compose_handbook()
    )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError) as raised:
        handbook.write_handbook(tmp_path / "file" / "folder")
    assert raised.value.location.endswith("folder")


def test_every_passage_is_read_as_what_it_is(read: tuple[pa.Table, Attrition]) -> None:
    passages, attrition = read
    kinds = Counter(passages["kind"].to_pylist())
    assert (
        len(set(passages["chapter"].to_pylist())) == 12
        and None not in passages["chapter"].to_pylist()
    )
    assert (
        kinds["definition"],
        kinds["summary"],
        kinds["objective"],
        kinds["caption"],
        kinds["table"],
    ) == (60, 12, 24, 12, 12)
    assert kinds["question"] == kinds["answer"] > 50
    assert attrition.dropped_rows == {"front matter": 2}
    running = [
        text
        for text, kind in zip(
            passages["text"].to_pylist(), passages["kind"].to_pylist(), strict=True
        )
        if kind != "table"
    ]
    assert not set("{}|*") & set("".join(running))  # no template is left unsaid


def test_it_gives_pairs_of_every_kind_to_learn_from_and_to_ask(
    read: tuple[pa.Table, Attrition], tmp_path: Path
) -> None:
    made = pairs.build_pair_corpus(read[0], PairsSpec(), PairSplitSpec(), tmp_path)
    assert {kind for kind, _ in made.counts} == set(pairs.PAIR_BUILDERS)
    total = Counter[str]()
    for (_, split), count in made.counts.items():
        total[split] += count
    assert 150 <= total.total() <= 400 and min(total.values()) >= 20
    assert all(
        step.entered_rows == step.kept_rows + sum(step.dropped_rows.values())
        for step in made.attrition
    )
    (apart,) = [step for step in made.attrition if step.step == "decontaminate"]
    assert not apart.dropped_rows  # no chapter repeats the sentences of another
