"""Passages -> pairs: hand-made books with the exact pairs they give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clinpeft.core.errors import InputError, RecipeError, SourceError
from clinpeft.core.schemas import PAIR_SCHEMA, PASSAGE_SCHEMA, Attrition, build_arrow_table
from clinpeft.data.textbooks import pairs
from clinpeft.data.textbooks.pairs.filters import filter_pairs_as_cardio_study
from clinpeft.data.textbooks.pairs.kinds import PAIR_BUILDERS, TextPair, index_book
from clinpeft.data.textbooks.pairs.overlap import NgramIndex
from clinpeft.data.textbooks.pairs.split import assign_pair_splits
from clinpeft.recipe.textbooks import ImportedPairsSpec, PairSplitSpec, PairsSpec, PassagesSpec

Row = dict[str, Any]
ALL_TRAIN = PairSplitSpec(train=1.0, tuning=0.0, held_out=0.0)


def passage(kind: str, text: str, section: str = "B/1", **given: Any) -> Row:
    row: Row = {
        "book": "B",
        "chapter": "The Heart",
        "heading_path": [],
        "location": "p",
        "title": None,
        "names": [],
        "refers_to": [],
    }
    return {
        **row,
        "kind": kind,
        "text": text,
        "section": section,
        "passage_id": given.pop("id", f"{kind} {text}"),
        **given,
    }


def passages(rows: Sequence[Row]) -> pa.Table:
    return build_arrow_table(
        PASSAGE_SCHEMA, {name: [row[name] for row in rows] for name in PASSAGE_SCHEMA.names}
    )


HEART = [
    passage("objective", "Name the walls\nName the valves", id="o"),
    passage("lead-in", "You will be able to:"),
    passage("paragraph", "The heart is hollow.", id="1"),
    passage("paragraph", "See the figure of it.", id="2", refers_to=["f1", "f2"]),
    passage("caption", "Cut open.", id="f", title="The heart", names=["f1"]),
    passage("caption", "Nobody looks.", id="g", names=["f9"]),
    passage("paragraph", "Walls are thick.", "B/1/1", id="3", heading_path=["Walls"]),
    passage("list", "left\nright", "B/1/1", id="4", heading_path=["Walls"]),
    passage("paragraph", "They squeeze hard.", "B/1/1", id="5", heading_path=["Walls"]),
    passage("summary", "A hollow muscle.", id="s"),
    passage("question", "What squeezes?", id="q", names=["q1"]),
    passage("question", "What else?", id="r", names=["q2"]),
    passage("answer", "The walls.", id="a", refers_to=["q1"]),
    passage("answer", "Lost one.", id="b", refers_to=["q7"]),
    passage("definition", "the tip", id="d", title="apex"),
    passage("definition", "no term", id="e"),
]

EXPECTED: dict[str, tuple[list[tuple[str, str, str, str]], dict[str, int]]] = {
    "term-definition": ([("apex", "the tip", "d", "d")], {"definition without a term": 1}),
    "question-answer": (
        [("What squeezes?", "The walls.", "q", "a")],
        {"answer without its question": 1, "question without an answer": 1},
    ),
    "heading-paragraph": (
        [
            ("The Heart", "The heart is hollow.", "1", "1"),
            ("The Heart > Walls", "Walls are thick.", "3", "3"),
        ],
        {"not the first paragraph of its section": 2},
    ),
    "objective-section": (
        [("Name the walls Name the valves", "The heart is hollow. See the figure", "o", "1")],
        {},
    ),
    "caption-paragraph": (
        [("The heart. Cut open.", "See the figure of it.", "f", "2")],
        {"no paragraph refers to it": 1},
    ),
    "adjacent": (
        [
            ("The heart is hollow.", "See the figure of it.", "1", "2"),
            ("Walls are thick.", "They squeeze hard.", "3", "5"),
        ],
        {"no paragraph follows it in its section": 2},
    ),
    "abstract-section": (
        [("A hollow muscle.", "The heart is hollow. See the figure", "s", "1")],
        {},
    ),
}


@pytest.mark.parametrize("kind", PAIR_BUILDERS)
def test_a_book_gives_exactly_these_pairs(kind: str) -> None:
    found = list(PAIR_BUILDERS[kind](index_book(HEART), PairsSpec(section_words=7)))
    expected, reasons = EXPECTED[kind]
    assert [
        (pair.anchor, pair.positive, pair.anchor_id, pair.positive_id)
        for pair in found
        if isinstance(pair, TextPair)
    ] == expected
    assert {reason: found.count(reason) for reason in found if isinstance(reason, str)} == reasons
    assert {
        (pair.kind, pair.book, pair.chapter) for pair in found if isinstance(pair, TextPair)
    } == {(kind, "B", "The Heart")}


def test_an_objective_of_an_empty_section_gives_no_pair() -> None:
    assert list(
        PAIR_BUILDERS["objective-section"](
            index_book([passage("objective", "Name it", "B/2")]), PairsSpec()
        )
    ) == ["no paragraph in the section it is about"]


def test_a_caption_is_looked_for_in_its_own_chapter_only() -> None:
    rows = [
        passage("caption", "One.", names=["figure 1"]),
        passage("paragraph", "As figure 1 shows here.", chapter="The Lung", refers_to=["figure 1"]),
    ]
    assert list(PAIR_BUILDERS["caption-paragraph"](index_book(rows), PairsSpec())) == [
        "no paragraph refers to it"
    ]


def build(
    rows: Sequence[Row],
    folder: Path,
    split: PairSplitSpec = ALL_TRAIN,
    evaluation: Sequence[str] = (),
    **spec: Any,
) -> tuple[list[Row], pairs.PairCorpus]:
    found = pairs.build_pair_corpus(passages(rows), PairsSpec(**spec), split, folder, evaluation)
    written = pq.read_table(found.path)
    assert written.schema.equals(PAIR_SCHEMA)
    kept = written.num_rows
    assert found.attrition[-1].kept_rows == kept == sum(found.counts.values())
    for before, after in zip(found.attrition, found.attrition[1:], strict=False):
        assert before.kept_rows == after.entered_rows
    return written.to_pylist(), found


def test_all_that_a_book_gives_is_written_and_counted(tmp_path: Path) -> None:
    rows, found = build(HEART, tmp_path)
    assert [row["kind"] for row in rows] == [
        "term-definition",
        "question-answer",
        *["heading-paragraph"] * 2,
        "objective-section",
        "caption-paragraph",
        *["adjacent"] * 2,
        "abstract-section",
    ]
    assert [attrition.step for attrition in found.attrition] == [
        "pairs",
        "filter",
        "exact",
        "near",
        "decontaminate",
        "split",
    ]
    assert found.attrition[0].entered_rows == 9 + 8
    assert len({row["pair_id"] for row in rows}) == len(rows)
    assert list(tmp_path.iterdir()) == [tmp_path / "pairs.parquet"]
    assert build(HEART, tmp_path)[0] == rows


def test_a_stream_of_passages_gives_the_same_pairs(tmp_path: Path) -> None:
    rows, _ = build(HEART, tmp_path / "a")
    streamed = pairs.build_pair_corpus(
        passages(HEART).to_reader(max_chunksize=3), PairsSpec(), ALL_TRAIN, tmp_path / "b"
    )
    assert pq.read_table(streamed.path).to_pylist() == rows


DEFINITIONS = [
    passage(
        "definition",
        f"the meaning of word number {at}",
        title=f"term {at}",
        id=str(at),
        chapter=f"C{at // 10}",
    )
    for at in range(100)
]


def test_short_equal_and_long_sides_are_filtered_and_cut(tmp_path: Path) -> None:
    rows = [
        passage("definition", "Left Wall", title="left  wall", id="same"),
        passage("definition", "wall", title="septum", id="short"),
        passage("definition", "one two three four five", title="long", id="long"),
        passage("definition", "two sides", title="kept", id="kept"),
    ]
    written, found = build(rows, tmp_path, max_words=4)
    assert [row["positive"] for row in written] == ["one two three four", "two sides"]
    assert found.attrition[1].dropped_rows == {
        "both sides say the same": 1,
        "shorter than min_words": 1,
    }


def test_pairs_that_repeat_others_are_dropped_exact_and_near(tmp_path: Path) -> None:
    long = (
        "the wall between the two halves of the heart which has a thin part in "
        "the middle and a thick one below it all around it"
    )
    rows = [
        passage("definition", long, title="septum", id="1"),
        passage("definition", long.upper(), title="Septum", id="2"),
        passage("definition", long + " too", title="septum", id="3"),
        passage("definition", "another thing altogether", title="apex", id="4"),
    ]
    written, found = build(rows, tmp_path)
    assert [row["anchor_id"] for row in written] == ["1", "4"]
    assert found.attrition[2].dropped_rows == {"same words as an earlier pair": 1}
    assert found.attrition[3].dropped_rows == {"near duplicate of an earlier pair": 1}
    assert len(build(rows, tmp_path, deduplicate="none")[0]) == 4


def test_pairs_that_share_a_run_of_words_with_an_evaluation_text_are_dropped(
    tmp_path: Path,
) -> None:
    rows = [
        passage(
            "definition",
            "a flap that lets the blood go through one way only",
            title="valve",
            id="1",
        ),
        passage("definition", "lets the blood go one way", title="gate", id="2"),
        passage("definition", "what the evaluation asks for", title="Apex", id="3"),
        passage("definition", "none of this is asked", title="wall", id="4"),
    ]
    asked = ["It is a structure that: LETS the blood, go through one way!", "apex"]
    written, found = build(rows, tmp_path, evaluation=asked)
    assert [row["anchor_id"] for row in written] == ["2", "4"]
    assert found.attrition[-2].dropped_rows == {"shares an n-gram with an evaluation text": 2}
    assert [
        row["anchor_id"] for row in build(rows, tmp_path, evaluation=asked, max_overlap=0.9)[0]
    ] == ["1", "2", "4"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c d", 1.0),
        ("x b c d", 0.5),
        ("b c d a", 0.5),
        ("b a", 0.0),
        ("Y", 1.0),
        ("y z", 0.0),
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_the_share_of_known_ngrams_is_counted_over_distinct_ones(text: str, share: float) -> None:
    grams = NgramIndex(3)
    grams.add_texts(["a b c", "B, C; D", "y"])
    assert grams.compute_overlap(text) == share


def test_nothing_is_known_before_anything_was_added() -> None:
    assert NgramIndex(3).compute_overlap("a b c") == 0.0


def of_chapters(rows: Sequence[Row]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["chapter"], set()).add(row["split"])
    return found


def test_a_chapter_is_in_one_split_and_the_shares_are_near(tmp_path: Path) -> None:
    rows, found = build(
        DEFINITIONS,
        tmp_path,
        PairSplitSpec(train=0.7, tuning=0.1, held_out=0.2),
        against_held_out=False,
    )
    assert all(len(names) == 1 for names in of_chapters(rows).values())
    assert {
        name: found.counts["term-definition", name] for name in ("train", "tuning", "held_out")
    } == {"train": 70, "tuning": 10, "held_out": 20}
    again, _ = build(
        DEFINITIONS,
        tmp_path,
        PairSplitSpec(train=0.7, tuning=0.1, held_out=0.2, seed=5),
        against_held_out=False,
    )
    assert of_chapters(again) != of_chapters(rows)


def test_split_by_pair_lets_neighbours_straddle_as_the_study_did(tmp_path: Path) -> None:
    rows, found = build(
        DEFINITIONS,
        tmp_path,
        PairSplitSpec(by="pair", train=0.85, tuning=0.1, held_out=0.05, seed=42),
    )
    assert [found.counts["term-definition", name] for name in ("train", "tuning", "held_out")] == [
        85,
        10,
        5,
    ]
    assert any(len(names) > 1 for names in of_chapters(rows).values())


def test_named_chapters_are_held_out_and_the_rest_is_drawn(tmp_path: Path) -> None:
    split = PairSplitSpec(
        train=0.8, tuning=0.1, held_out=0.1, held_out_names=("C3",), tuning_names=("C5",)
    )
    rows, _ = build(DEFINITIONS, tmp_path, split, against_held_out=False)
    assert {
        chapter: names for chapter, names in of_chapters(rows).items() if names != {"train"}
    } == {"C3": {"held_out"}, "C5": {"tuning"}}
    with pytest.raises(RecipeError) as error:
        build(DEFINITIONS, tmp_path, PairSplitSpec(held_out_names=("C33",)))
    assert "did you mean 'C3'" in error.value.hint


def test_books_are_held_out_whole_and_one_book_cannot_be_split(tmp_path: Path) -> None:
    rows = [{**row, "book": f"Book {int(row['passage_id']) % 4}"} for row in DEFINITIONS]
    rows.sort(key=lambda row: row["book"])
    split = PairSplitSpec(by="book", train=0.5, tuning=0.25, held_out=0.25)
    written, _ = build(rows, tmp_path, split, against_held_out=False)
    assert len({(row["book"], row["split"]) for row in written}) == 4
    with pytest.raises(InputError) as error:
        build(DEFINITIONS, tmp_path, split)
    assert "1 book" in error.value.message


def test_training_pairs_that_say_what_is_held_out_are_dropped(tmp_path: Path) -> None:
    quoted = "a flap that lets the blood go through one way only"
    rows = [
        passage("definition", quoted, title="valve", chapter="C1", id="1"),
        passage("definition", f"namely {quoted}", title="flap", chapter="C2", id="2"),
    ]
    rows += [
        passage("definition", f"thing {at}", title=f"t{at}", chapter="C2", id=f"x{at}")
        for at in range(3)
    ]
    split = PairSplitSpec(train=0.8, tuning=0.0, held_out=0.2, held_out_names=("C1",))
    written, found = build(rows, tmp_path, split)
    assert [row["anchor_id"] for row in written] == ["1", "x0", "x1", "x2"]
    assert found.attrition[-1].dropped_rows == {"shares an n-gram with a pair held out": 1}
    assert len(build(rows, tmp_path, split, against_held_out=False)[0]) == 5


def test_pairs_without_a_book_go_with_those_of_the_same_anchor() -> None:
    given = [
        TextPair("imported", f"anchor {at // 2}", f"text {at}", None, None, None, None, None)
        for at in range(40)
    ]
    found = assign_pair_splits(given, PairSplitSpec(train=0.5, tuning=0.25, held_out=0.25))
    assert all(found[at] == found[at + 1] for at in range(0, 40, 2))
    assert {name: found.count(name) for name in set(found)} == {
        "train": 20,
        "tuning": 10,
        "held_out": 10,
    }


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def imported(path: Path, **given: Any) -> dict[str, Any]:
    return {"kinds": (), "imported": (ImportedPairsSpec(path=path, **given),)}


def test_pairs_made_elsewhere_know_the_passage_they_are_from(tmp_path: Path) -> None:
    given = [
        {
            "query": "What is hollow?",
            "pos": ["The heart is.", "A muscle that pumps."],
            "passage_id": "1",
        },
        {"query": "What is thick?", "pos": ["The walls are."], "book": "Elsewhere"},
        {"query": 5, "pos": ["five it is"]},
        {"query": "Who?", "pos": ["Nobody at all."], "passage_id": "unknown"},
    ]
    rows, found = build(
        HEART, tmp_path, **imported(lines(tmp_path / "given.jsonl", given), kind="written question")
    )
    assert [
        (row["kind"], row["anchor"], row["positive"], row["book"], row["chapter"], row["anchor_id"])
        for row in rows
    ] == [
        ("written question", "What is hollow?", "The heart is.", "B", "The Heart", "1"),
        ("written question", "What is hollow?", "A muscle that pumps.", "B", "The Heart", "1"),
        ("written question", "What is thick?", "The walls are.", "Elsewhere", None, None),
    ]
    assert found.attrition[0].dropped_rows == {
        "imported: a side is no text": 1,
        "imported: its passage is not there": 1,
    }


def test_the_columns_of_a_pair_file_can_be_named(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "given.jsonl",
        [{"left": "one a", "right": "one b"}, {"left": "two a", "right": "two b"}],
    )
    rows, _ = build([], tmp_path, **imported(path, anchor="left", positive="right"))
    assert [(row["anchor"], row["positive"]) for row in rows] == [
        ("one a", "one b"),
        ("two a", "two b"),
    ]
    with pytest.raises(InputError) as error:
        build([], tmp_path, **imported(path, anchor="up", positive="right"))
    assert "'up'" in error.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ('{"anchor": "secret one"}\n{"anchor": "secret two"}\n', "its only column is 'anchor'"),
        ('{"anchor": "secret one", "positive": "secret two"}\n', "1 pair is left"),
        ('{"anchor": "secret", "positive": ""}\n', r"no pair is left \(1 × a side is empty\)"),
        ('secret\n{"anchor": "secret one", "positive": "secret two"}\n', "1 of the 2 lines"),
        ("[1]\n[2]\n", "2 of the 2 lines"),
    ],
)
def test_a_pair_file_that_cannot_be_used_is_refused_without_its_text(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        build([], tmp_path, **imported(path))
    assert "secret" not in str(caught.value)


def test_a_pair_file_that_is_missing_or_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        build([], tmp_path, **imported(tmp_path / "none.jsonl"))
    assert error.value.location == str(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"anchor": "é", "positive": "à"}'.encode("latin-1"))
    with pytest.raises(InputError) as error:
        build([], tmp_path, **imported(tmp_path / "latin.jsonl"))
    assert error.value.location == str(tmp_path / "latin.jsonl")


def test_no_passage_and_nothing_imported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as error:
        build([], tmp_path)
    assert error.value.location == "source"


def test_the_filters_of_the_study_are_applied_as_its_code_does() -> None:
    given = [
        ("zebra original words here", "a fine paraphrase here"),
        ('"Quoted original words"', "'a quoted paraphrase here'"),
        ("two words", "not enough words there"),
        ("the same three", "The Same Three"),
        ("see figure 3 of it", "a picture of something"),
        ("in section 3 of it", "a part of something"),
        ("in section 3 the echo", "the echo shows something"),
        ("an original that failed", "This is Not A Medical Sentence, sorry"),
        ("Zebra original words here", "another paraphrase of it"),
        ("all rights reserved copyright", "still here as in theirs"),
        ("", "an empty one here"),
        ("word " * 501, "too long for them"),
    ]
    attrition = Attrition("filter")
    kept = list(
        filter_pairs_as_cardio_study(
            [TextPair("imported", *sides, None, None, None, None, None) for sides in given],
            PairsSpec(),
            attrition,
        )
    )
    assert [(pair.anchor, pair.positive) for pair in kept] == [
        ("Quoted original words", "a quoted paraphrase here"),
        ("all rights reserved copyright", "still here as in theirs"),
        ("in section 3 the echo", "the echo shows something"),
        ("zebra original words here", "a fine paraphrase here"),
    ]
    assert attrition.dropped_rows == {
        "study: not 3 to 500 words": 2,
        "both sides say the same": 1,
        "study: marks of a heading, a list or a licence": 2,
        "study: the paraphrase is a refusal": 1,
        "study: a second paraphrase of the same original": 1,
        "a side is empty": 1,
    }
    assert (attrition.entered_rows, attrition.kept_rows) == (12, 4)


def test_the_study_is_asked_for_by_name(tmp_path: Path) -> None:
    rows = [
        passage("definition", "FIGURE 3 shows this", title="a b c", id="1"),
        *(passage("definition", f"x y {at}", title=f"t u {at}") for at in range(3)),
    ]
    written, _ = build(rows, tmp_path, compat="cardio-study")
    assert [row["anchor"] for row in written] == ["t u 0", "t u 1", "t u 2"]


def test_books_and_chapters_are_chosen_by_name() -> None:
    rows = [
        *HEART,
        *(passage("paragraph", "x", chapter="The Lung", id=f"l{at}") for at in range(2)),
        passage("paragraph", "y", book="C", id="c"),
    ]
    attrition = Attrition("passages")
    found = pairs.select_passages(
        passages(rows), PassagesSpec(books=("B",), chapters=("The Lung",)), attrition
    )
    assert found["passage_id"].to_pylist() == ["l0", "l1"]
    assert attrition.dropped_rows == {"book not asked for": 1, "chapter not asked for": len(HEART)}
    assert attrition.kept_rows == 2
    with pytest.raises(RecipeError) as error:
        pairs.select_passages(
            passages(rows), PassagesSpec(chapters=("The Lungs",)), Attrition("passages")
        )
    assert error.value.location == "passages.chapters" and "'The Lung'" in error.value.hint


def test_no_pair_of_the_same_chapter_is_on_both_sides_whatever_the_seed(tmp_path: Path) -> None:
    for seed in range(5):
        rows, _ = build(DEFINITIONS, tmp_path, PairSplitSpec(seed=seed), against_held_out=False)
        assert all(len(names) == 1 for names in of_chapters(rows).values())
        assert {row["split"] for row in rows} == {"train", "tuning", "held_out"}
