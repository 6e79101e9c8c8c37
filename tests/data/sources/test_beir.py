"""Evaluation sets of others: the layout of BEIR there and back, MedQuAD, and sets of pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from clinpeft.core.errors import SourceError
from clinpeft.data.retrieval import beir, medquad, pair_sets

CORPUS: list[dict[str, object]] = [
    {"_id": "p1", "title": "Heart", "text": "It pumps."},
    {"_id": "p2", "title": "", "text": "It breathes."},
    {"_id": "p3", "text": " "},
]
QUERIES: list[dict[str, object]] = [
    {"_id": "q1", "text": "What pumps?", "metadata": {"cluster": "heart"}},
    {"_id": "q2", "text": "What breathes?"},
    {"_id": "q3", "text": "Why?"},
]
QRELS = (
    "query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\tp2\t0\nq2\tp2\t1\nq2\tp2\t1\nq9\tp1\t1\nq2\tp9\t1\n"
)


def lines(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def laid_out(folder: Path, qrels: str = QRELS) -> Path:
    (folder / "qrels").mkdir()
    lines(folder / "corpus.jsonl", CORPUS)
    lines(folder / "queries.jsonl", QUERIES)
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return folder


def test_a_set_is_read_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    found = beir.read_beir(laid_out(tmp_path))
    assert found.queries.to_pylist() == [
        {"query_id": "q1", "cluster": "heart", "text": "What pumps?"},
        {"query_id": "q2", "cluster": None, "text": "What breathes?"},
    ]
    assert found.passages["passage_id"].to_pylist() == ["p1", "p2"]
    assert beir.join_titles_and_texts(found.passages) == ["Heart It pumps.", "It breathes."]
    assert [tuple(row.values()) for row in found.relevance_judgments.to_pylist()] == [
        ("q1", "p1", 2),
        ("q1", "p2", 0),
        ("q2", "p2", 1),
    ]
    counts = {
        one.step: (one.entered_rows, one.kept_rows, dict(one.dropped_rows))
        for one in found.attrition
    }
    assert counts["passages"] == (3, 2, {"no text": 1})
    assert counts["queries"] == (3, 2, {"not judged in test": 1})
    assert counts["judgements"] == (
        6,
        3,
        {"judged before": 1, "a query that is not there": 1, "a passage that is not there": 1},
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    first = beir.read_beir(laid_out(tmp_path))
    beir.write_beir(first, tmp_path / "again", "dev")
    second = beir.read_beir(tmp_path / "again", "dev")
    assert (second.queries, second.passages, second.relevance_judgments) == (
        first.queries,
        first.passages,
        first.relevance_judgments,
    )


BROKEN = [
    (
        "qrels/test.tsv",
        "query-id\tcorpus-id\tscore\nq1\tp1\thigh\n",
        "'high' is not a whole number",
    ),
    ("qrels/test.tsv", "query-id\tcorpus-id\nq1\tp1\n", "no column 'score'"),
    ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp1\t2\n", "have grades 1 and 2"),
    ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq7\tp1\t1\n", "no judgment"),
    (
        "corpus.jsonl",
        '{"_id": "p1", "text": "a"}\n{"_id": "p1", "text": "b"}\n',
        "'p1' is used twice",
    ),
    ("corpus.jsonl", '{"_id": "p1", "text": "a secret sentence"\n', "not a JSON object"),
    ("queries.jsonl", '{"_id": "q1"}\n', "'text' is missing"),
    ("queries.jsonl", '{"_id": 7, "text": "a secret sentence"}\n', "'_id' is not a text but int"),
]


@pytest.mark.parametrize(("file", "written", "said"), BROKEN, ids=[said for _, _, said in BROKEN])
def test_a_broken_file_is_refused_and_its_text_not_told(
    tmp_path: Path, file: str, written: str, said: str
) -> None:
    (laid_out(tmp_path) / file).write_text(written, encoding="utf-8")
    with pytest.raises(SourceError, match=said) as refused:
        beir.read_beir(tmp_path)
    assert "secret" not in str(refused.value)


def test_a_byte_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (laid_out(tmp_path) / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "caf\xe9"}\n')
    with pytest.raises(SourceError) as error:
        beir.read_beir(tmp_path)
    assert error.value.location.endswith("queries.jsonl: row 1")


def answer(
    number: str, question: str, given: str, focus: str = "Heart Attack"
) -> dict[str, object]:
    return {"source": "X", "qid": number, "focus": focus, "question": question, "answer": given}


def test_questions_find_their_own_answers_and_equal_texts_are_one(tmp_path: Path) -> None:
    rows = [
        answer("1", "What is it ?", "A"),
        answer("2", "what is  it ?", "B"),
        answer("2", "Why ?", "A"),
        answer("4", "How ?", "C", "Lung"),
    ]
    everything = lines(tmp_path / "all.jsonl", rows)
    found = medquad.read_medquad(
        everything,
        lines(tmp_path / "some.jsonl", [rows[0], rows[1], rows[3], answer("9", "New ?", "Z")]),
    )
    assert found.queries.to_pylist() == [
        {"query_id": "X/1", "cluster": "heart attack", "text": "What is it ?"},
        {"query_id": "X/4", "cluster": "lung", "text": "How ?"},
    ]
    assert found.passages["passage_id"].to_pylist() == ["X/1", "X/2", "X/4"]
    assert [tuple(row.values()) for row in found.relevance_judgments.to_pylist()] == [
        ("X/1", "X/1", 1),
        ("X/1", "X/2", 1),
        ("X/4", "X/4", 1),
    ]
    answers, questions = found.attrition
    assert (answers.entered_rows, dict(answers.dropped_rows)) == (
        4,
        {"the text of another answer": 1},
    )
    assert dict(questions.dropped_rows) == {
        "the text of another question": 1,
        "a question that is not in the collection": 1,
    }
    assert medquad.read_medquad(everything).queries["query_id"].to_pylist() == ["X/1", "X/2", "X/4"]
    with pytest.raises(SourceError) as error:
        medquad.read_medquad(
            everything, lines(tmp_path / "other.jsonl", [answer("9", "New ?", "Z")])
        )
    assert error.value.location == str(tmp_path / "other.jsonl")


def liveqa(folder: Path) -> Path:
    lines(
        folder / medquad.LIVEQA_ANSWERS_FILE,
        [
            {"AnswerID": "a", "Answer": "Question: Is it ?\nURL: http://x\nAnswer: It is."},
            {"AnswerID": "b", "Answer": "Plain."},
        ],
    )
    judged = (
        "1\t4-Excellent\ta\n1\t1-Incorrect\tb\n1\t3-Incomplete\ta\n"
        "2\t2-Related\tb\n3\t2-Related\ta\n"
    )
    (folder / medquad.LIVEQA_JUDGMENTS_FILE).write_text(
        "question_id\tjudgment\tanswer_id\n" + judged, encoding="utf-8"
    )
    return folder


def test_graded_answers_get_their_grades_from_0_to_3(tmp_path: Path) -> None:
    questions = tmp_path / "test.xml"
    paraphrases = '<NLM-QUESTION qid="TQ1"><Paraphrase> Is\n it?</Paraphrase></NLM-QUESTION>'
    paraphrases += '<NLM-QUESTION qid="TQ2"><NIST-PARAPHRASE>Why?</NIST-PARAPHRASE></NLM-QUESTION>'
    questions.write_text(
        f"<?xml version='1.0' encoding='UTF-8'?>\n<All>{paraphrases}</All>", encoding="utf-8"
    )
    found = medquad.read_medquad_liveqa(liveqa(tmp_path), questions)
    assert {row["query_id"]: row["text"] for row in found.queries.to_pylist()} == {
        "1": "Is it?",
        "2": "Why?",
    }
    assert found.passages.to_pylist() == [
        {"passage_id": "a", "title": "Is it ?", "text": "It is."},
        {"passage_id": "b", "title": None, "text": "Plain."},
    ]
    assert [tuple(row.values()) for row in found.relevance_judgments.to_pylist()] == [
        ("1", "a", 3),
        ("1", "b", 0),
        ("2", "b", 1),
    ]
    assert dict(found.attrition[1].dropped_rows) == {
        "graded twice: the higher grade is kept": 1,
        "a question without a text": 1,
    }
    same = medquad.read_medquad_liveqa(
        tmp_path,
        lines(
            tmp_path / "q.jsonl",
            [{"question_id": "1", "text": "Is it?"}, {"question_id": "TQ2", "text": "Why?"}],
        ),
    )
    assert same.queries == found.queries


def test_questions_in_xml_with_entities_or_broken_are_refused(tmp_path: Path) -> None:
    questions = tmp_path / "test.xml"
    questions.write_text(
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', encoding="utf-8"
    )
    with pytest.raises(SourceError) as error:
        medquad.read_medquad_liveqa(liveqa(tmp_path), questions)
    assert error.value.location == str(questions)
    questions.write_text("<a>\n<b></a>", encoding="utf-8")
    with pytest.raises(SourceError) as error:
        medquad.read_medquad_liveqa(tmp_path, questions)
    assert "line 2" in error.value.message


def test_a_judgment_that_is_none_of_the_four_is_refused(tmp_path: Path) -> None:
    (liveqa(tmp_path) / medquad.LIVEQA_JUDGMENTS_FILE).write_text(
        "question_id\tjudgment\tanswer_id\n1\t5-Perfect\ta\n", encoding="utf-8"
    )
    with pytest.raises(SourceError) as error:
        medquad.read_medquad_liveqa(
            tmp_path, lines(tmp_path / "q.jsonl", [{"question_id": "1", "text": "Is it?"}])
        )
    assert error.value.location.endswith("row 1")


def test_the_real_collection_is_read(shared_data: Path) -> None:
    folder = shared_data / "medquad"
    found = medquad.read_medquad(
        folder / "medquad_qa_with_answers.jsonl", folder / "medquad_cardiology.jsonl"
    )
    assert (len(found.queries), len(found.passages), len(found.relevance_judgments)) == (
        479,
        15_811,
        604,
    )
    assert len(set(found.passages["passage_id"].to_pylist())) == len(found.passages)
    assert set(found.relevance_judgments["passage_id"].to_pylist()) <= set(
        found.passages["passage_id"].to_pylist()
    )
    assert found.attrition[0].entered_rows == 16407


@pytest.mark.parametrize("keys", pair_sets.PAIR_SET_KEYS)
def test_pairs_are_read_under_any_of_their_names(tmp_path: Path, keys: tuple[str, str]) -> None:
    path = lines(
        tmp_path / "similar.jsonl",
        [dict(zip(keys, ("mitral stenosis", "aortic stenosis"), strict=True))],
    )
    row = pair_sets.read_pair_set(path, "similar").to_pylist()[0]
    assert (row["pair_id"], row["kind"], row["anchor"], row["positive"], row["split"]) == (
        *("similar 1", "similar", "mitral stenosis", "aortic stenosis"),
        "held_out",
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"anchor": "secret"}, "does not hold two texts"),
        ({"anchor": "secret", "positive": " "}, "is empty"),
    ],
)
def test_a_pair_with_one_text_is_refused_and_its_text_not_told(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    with pytest.raises(SourceError, match=said) as refused:
        pair_sets.read_pair_set(lines(tmp_path / "similar.jsonl", [row]), "similar")
    assert "secret" not in str(refused.value)
